//! Starts and stops an ASD: lock, identity, threads, server; and the reverse.
//!
//! It listens before the disk is read, so that a long rebuild is seen as `recovering` and not as absence.

use crate::config::{self, Config};
use crate::disk::{Files, free_bytes};
use crate::identity::{Contents, DiskIdentity, IdentityError, load_or_create};
use crate::reader;
use crate::server::Server;
use crate::shared::Shared;
use crate::writer::{Place, Writer};
use asd_core::store::OpenError;
use model::{ByteSize, OsdId};
use runtime::dirlock::{DirLock, DirLockError};
use runtime::net::{Listener, NetError};
use runtime::peer::Identity;
use runtime::rpc::{ServerOptions, Service, serve};
use runtime::shutdown::Shutdown;
use runtime::tls::TlsError;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use tokio::sync::{Notify, oneshot};
use wire::Role;

/// Share of the file system's free space that the default capacity leaves, and the room that the index is always left.
const LEFT_FREE: u64 = 20;
const INDEX_ROOM: u64 = 64;
const INDEX_ROOM_MAX: u64 = 256 << 20;

/// Why an ASD doesn't run. Nothing on the disk was changed by it.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    Lock(#[from] DirLockError),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Net(#[from] NetError),
    #[error("{key}: {problem}")]
    Config { key: &'static str, problem: String },
    #[error("can't use {path}: {cause}")]
    Directory { path: PathBuf, cause: io::Error },
    #[error("can't open the disk in {path}: {cause}")]
    Open { path: PathBuf, cause: OpenError },
    #[error("can't start a thread: {0}")]
    Thread(io::Error),
    /// A bug: the disk thread panicked.
    #[error("the disk thread ended by itself")]
    Died,
}

/// Runs until `shutdown`; everything acknowledged by then is on the disk, as it is after a crash.
///
/// # Errors
/// When it can't start, or its disk thread dies.
pub async fn run(config: Config, shutdown: Shutdown) -> Result<(), RunError> {
    let _lock = DirLock::acquire(&config.data_dir)?;
    let identity = Identity::new(Role::Asd, &config.name, &config.cluster, config.tls.as_ref())?;
    let (shared, place) = prepare(&config, Arc::clone(&identity))?;
    let listener = Listener::bind(&config.listen, &identity).await?;
    tracing::info!(osd = %shared.osd, listen = %listener.local_endpoint(), "ASD started");
    let mut threads = start_threads(&shared, place, config.read_threads)?;
    let service: Arc<dyn Service> = Arc::new(Server { shared: Arc::clone(&shared) });
    let options = ServerOptions::allowing(&[Role::AlbaProxy, Role::Admin]);
    let serving = serve(listener, identity, service, options, shutdown.clone());
    let failed = tokio::select! {
        () = serving => None,
        failed = threads.trouble(&config) => Some(failed),
    };
    shared.writes.close();
    shared.reads.close();
    for thread in threads.handles {
        let joined = tokio::task::spawn_blocking(move || thread.join()).await;
        if !matches!(joined, Ok(Ok(()))) && failed.is_none() {
            return Err(RunError::Died);
        }
    }
    failed.map_or(Ok(()), Err)
}

/// Files, identity and limits.
fn prepare(config: &Config, identity: Arc<Identity>) -> Result<(Arc<Shared>, Place), RunError> {
    let dir = &config.data_dir;
    let segments = dir.join("segments");
    let directory = |path: &PathBuf| {
        let path = path.clone();
        move |cause| RunError::Directory { path, cause }
    };
    let files = Files::open(&segments).map_err(directory(&segments))?;
    let found = files.list().map_err(directory(&segments))?;
    let contents = if found.is_empty() { Contents::Empty } else { Contents::Segments };
    let free = free_bytes(dir).map_err(directory(dir))?;
    let wanted = config.capacity.unwrap_or(ByteSize(free - free / LEFT_FREE));
    let disk = load_or_create(dir, &config.cluster, contents, || DiskIdentity {
        osd: OsdId(runtime::random::u128()),
        capacity: wanted.0,
        cluster: config.cluster.clone(),
    })?;
    let capacity = config.capacity.unwrap_or(ByteSize(disk.capacity));
    let limits = config::limits(capacity, config.segment_size)
        .map_err(|(key, problem)| RunError::Config { key, problem })?;
    let reserve = (capacity.0 / INDEX_ROOM).min(INDEX_ROOM_MAX);
    let shared = Shared::new(identity, disk.osd, files, capacity.0, config.maintenance_rate.0);
    Ok((Arc::new(shared), Place { index_dir: dir.join("index"), limits, reserve }))
}

/// The threads, and what they have to say.
struct Threads {
    handles: Vec<JoinHandle<()>>,
    opened: oneshot::Receiver<Result<(), OpenError>>,
    ended: Arc<Notify>,
}

/// Tells when its thread ends, also by a panic.
struct Alarm(Arc<Notify>);

impl Drop for Alarm {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

fn start_threads(
    shared: &Arc<Shared>,
    place: Place,
    read_threads: usize,
) -> Result<Threads, RunError> {
    let (opened_sender, opened) = oneshot::channel();
    let ended = Arc::new(Notify::new());
    let writer = Writer::new(Arc::clone(shared), place);
    let alarm = Alarm(Arc::clone(&ended));
    let disk = std::thread::Builder::new().name("asd-disk".to_owned()).spawn(move || {
        let _alarm = alarm;
        writer.run(opened_sender);
    });
    let mut handles = vec![disk.map_err(RunError::Thread)?];
    for number in 0..read_threads {
        let (shared, alarm) = (Arc::clone(shared), Alarm(Arc::clone(&ended)));
        let reader =
            std::thread::Builder::new().name(format!("asd-read-{number}")).spawn(move || {
                let _alarm = alarm;
                reader::run(&shared);
            });
        handles.push(reader.map_err(RunError::Thread)?);
    }
    Ok(Threads { handles, opened, ended })
}

impl Threads {
    /// Returns only when the disk can't be served.
    async fn trouble(&mut self, config: &Config) -> RunError {
        match (&mut self.opened).await {
            Ok(Err(cause)) => RunError::Open { path: config.data_dir.clone(), cause },
            Err(_) => RunError::Died,
            Ok(Ok(())) => {
                self.ended.notified().await;
                RunError::Died
            }
        }
    }
}
