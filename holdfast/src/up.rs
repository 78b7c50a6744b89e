//! `holdfast up`: a whole cluster of real processes on one machine, made when absent, then supervised until a signal.
//!
//! | module | does |
//! | --- | --- |
//! | [`plan`] | options → the cluster (pure) |
//! | [`files`] | configuration, certificates, keys |
//! | [`spawn`] | one child process |
//! | [`supervise`] | keeps them running, stops them in order |
//! | [`facts`] | backend, preset, vPool and OSDs in arakoon |
//! | [`bootstrap`] | role after role, up to a read through NBD |
//! | [`screen`] | what a person sees |
//!
//! Invariant: one `up` per directory (a lock), and `cluster.toml` stands before anything that it describes.

pub mod bootstrap;
pub mod facts;
pub mod files;
pub mod plan;
pub mod screen;
pub mod spawn;
pub mod supervise;

use crate::client::Admin;
use crate::cluster::{Cluster, FILE, Where};
use crate::failure::{Failure, io_failure};
use crate::probe::nbd_uri;
use crate::status::{Gatherer, show};
use crate::table::Paint;
use bootstrap::Bootstrap;
use plan::{VdiskWanted, Wanted};
use runtime::dirlock::{DirLock, DirLockError};
use runtime::endpoint::Endpoint;
use runtime::shutdown::Shutdown;
use screen::Screen;
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use supervise::{Fleet, Restart};
use tokio::sync::mpsc;

const EVENTS: usize = 256;
const REDRAW: Duration = Duration::from_secs(1);

#[derive(Debug, clap::Args)]
pub struct UpArgs {
    #[command(flatten)]
    pub wanted: Wanted,

    /// A vDisk to make if it isn't there; may be given several times [default for a cluster without any: demo:4GiB]
    #[arg(long = "vdisk", value_name = "NAME:SIZE")]
    pub vdisks: Vec<VdiskWanted>,

    /// Leave processes that die dead
    #[arg(long)]
    pub no_restart: bool,
}

/// Runs until a signal stops the cluster.
///
/// # Errors
/// When the options contradict the cluster in the directory, or it can't start.
pub async fn run(args: UpArgs, place: &Where, shutdown: Shutdown) -> Result<(), Failure> {
    let dir = place.directory();
    let lock = DirLock::acquire(&dir).map_err(lock_failure)?;
    let dir = dir.canonicalize().map_err(|cause| io_failure("find", &dir, &cause))?;
    let cluster = prepare(&args, &dir)?;
    let admin = Admin::new(&cluster)?;
    let screen = Screen::new();
    let (events, happened) = mpsc::channel(EVENTS);
    let restart = if args.no_restart { Restart::Never } else { Restart::Always };
    let fleet = Fleet::new(Arc::new(cluster.clone()), restart, events);
    let mut front = Front { screen, happened, shutdown };
    let ended = front.live(cluster, &admin, &fleet, &args.vdisks).await;
    front.stop(fleet).await;
    drop(lock);
    ended
}

/// The cluster of this directory: as it was, or a new one; all its files are there afterwards.
fn prepare(args: &UpArgs, dir: &Path) -> Result<Cluster, Failure> {
    let cluster = if dir.join(FILE).exists() { continued(args, dir)? } else { made(args, dir)? };
    check_nbd_is_free(&cluster.nbd)?;
    files::make_absent(&cluster)?;
    Ok(cluster)
}

fn continued(args: &UpArgs, dir: &Path) -> Result<Cluster, Failure> {
    let mut cluster = Cluster::load(&dir.join(FILE))?;
    if cluster.dir != dir {
        return Err(Failure::config(format!(
            "the cluster in {} was made in {}, and its configuration has paths of that place; move it back",
            dir.display(),
            cluster.dir.display()
        )));
    }
    if let Some(problem) = plan::contradiction(&args.wanted, &cluster) {
        return Err(Failure::Config(problem));
    }
    if let Some(nbd) = &args.wanted.nbd
        && *nbd != cluster.nbd
    {
        cluster.nbd = nbd.clone();
        cluster.save()?;
        files::rewrite_edges(&cluster)?;
    }
    Ok(cluster)
}

fn made(args: &UpArgs, dir: &Path) -> Result<Cluster, Failure> {
    let id = format!("{:016x}", runtime::random::u64());
    let mut wanted = args.wanted.clone();
    wanted.asd_capacity =
        wanted.asd_capacity.or_else(|| plan::fair_share(free_bytes(dir)?, wanted.asds));
    let cluster = plan::new_cluster(&wanted, dir, &id, &mut free_port).map_err(Failure::config)?;
    if let Some(member) =
        cluster.members.iter().find(|member| cluster.member_dir(&member.id).exists())
    {
        return Err(Failure::config(format!(
            "{} has a directory {} but no {FILE}: put that back, or choose another directory with --dir",
            dir.display(),
            member.id
        )));
    }
    check_nbd_is_free(&cluster.nbd)?;
    cluster.save()?;
    Ok(cluster)
}

fn free_port() -> std::io::Result<u16> {
    TcpListener::bind(("127.0.0.1", 0))?.local_addr().map(|address| address.port())
}

/// What the directory's file system has left; `None` when it doesn't say, and each ASD finds out by itself.
fn free_bytes(dir: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(dir).ok()?;
    stat.f_bavail.checked_mul(stat.f_frsize)
}

fn lock_failure(error: DirLockError) -> Failure {
    match error {
        DirLockError::Held { dir, holder } => Failure::failed(format!(
            "another `holdfast up` (pid {holder}) runs the cluster in {}; stop that one, or choose another directory \
             with --dir",
            dir.display()
        )),
        DirLockError::Io { dir, cause } => io_failure("use", &dir, &cause),
    }
}

/// Found out before fourteen processes are started for nothing. The edge itself has the last word.
fn check_nbd_is_free(nbd: &Endpoint) -> Result<(), Failure> {
    let problem = match nbd {
        Endpoint::Tcp(address) | Endpoint::Tls(address) if address.port() == 0 => {
            return Err(Failure::config(format!(
                "can't serve NBD at {nbd}: clients couldn't know the port; give one with --nbd, as in --nbd {}:10809",
                address.ip()
            )));
        }
        Endpoint::Tcp(address) | Endpoint::Tls(address) => match TcpListener::bind(address) {
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
                "another process has it".to_owned()
            }
            Err(error) => error.to_string(),
        },
        Endpoint::Unix(path) => match UnixStream::connect(path) {
            Ok(_) => "another process listens there".to_owned(),
            Err(_) => return Ok(()),
        },
    };
    Err(Failure::config(format!(
        "can't serve NBD at {nbd}: {problem}; stop that, or choose another address with --nbd"
    )))
}

/// The part that a person talks to.
struct Front {
    screen: Screen,
    happened: mpsc::Receiver<String>,
    shutdown: Shutdown,
}

impl Front {
    /// Starts everything and keeps showing it, until a signal.
    async fn live(
        &mut self,
        cluster: Cluster,
        admin: &Admin,
        fleet: &Fleet,
        vdisks: &[VdiskWanted],
    ) -> Result<(), Failure> {
        let Self { screen, happened, shutdown } = self;
        let screen = &*screen;
        let bootstrap = Bootstrap { fleet, admin, vdisks, screen };
        let mut starting = Box::pin(bootstrap.run(cluster));
        let cluster = loop {
            tokio::select! {
                started = &mut starting => break started?,
                Some(line) = happened.recv() => screen.event(&line),
                () = shutdown.wait() => return Ok(()),
            }
        };
        drop(starting);
        screen.begin_picture();
        let gatherer = Gatherer::new(&cluster, admin);
        let mut redraw = tokio::time::interval(REDRAW);
        redraw.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                Some(line) = happened.recv() => screen.event(&line),
                () = draw(&gatherer, screen, &cluster, &mut redraw), if screen.is_terminal() => {}
                () = shutdown.wait() => return Ok(()),
            }
        }
    }

    async fn stop(mut self, fleet: Fleet) {
        self.screen.clear();
        self.screen.event("stopping the cluster");
        let mut stopping = Box::pin(fleet.stop_all());
        loop {
            tokio::select! {
                () = &mut stopping => break,
                Some(line) = self.happened.recv() => self.screen.event(&line),
            }
        }
        self.screen.event("stopped");
    }
}

async fn draw(
    gatherer: &Gatherer,
    screen: &Screen,
    cluster: &Cluster,
    redraw: &mut tokio::time::Interval,
) {
    redraw.tick().await;
    let report = gatherer.gather().await;
    let paint = Paint::on(&std::io::stderr());
    let shown = show::report(&report, paint);
    let nbd = nbd_uri(&cluster.nbd, "");
    screen.picture(&format!(
        "\ncluster {} in {}, NBD at {nbd}; Ctrl-C stops it\n\n{shown}",
        cluster.id,
        cluster.dir.display()
    ));
}

#[cfg(test)]
mod tests;
