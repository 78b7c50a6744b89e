//! Start and stop of a router: lock the directories, read the log, open what it owns, serve; then drain and let go.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arakoon_client::{ArakoonClient, Transaction};
use model::{LogId, RouterId, VdiskId};
use router_core::log::pool::{Batch, OpenLog};
use router_core::log::scan::NoList;
use router_core::log::{Log, Scan, Scanner};
use runtime::clock::boot_now;
use runtime::dirlock::{DirLock, DirLockError};
use runtime::endpoint::Endpoint;
use runtime::net::{Listener, NetError};
use runtime::peer::Identity;
use runtime::random::{jitter, u64 as random_u64, u128 as random_u128};
use runtime::rpc::{ServerOptions, serve};
use runtime::shutdown::Shutdown;
use runtime::tls::TlsError;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use wire::facts::{RouterState, VdiskRecord};
use wire::{Role, WireError};

use crate::backend::Backend;
use crate::config::Config;
use crate::dtl::server::{TargetOptions, TargetServer};
use crate::dtl::ties::Ties;
use crate::facts::{Change, Facts, Read};
use crate::handoff::PAUSE;
use crate::log_disk::{LogDisk, LogDiskError};
use crate::map_store::{MapError, MapStore, TAIL_MAX};
use crate::router::{Parts, Router};
use crate::server::Server;
use crate::state::{Records, Slot, State};

/// For saying that this router is offline. With the drain it must fit into what whoever stops us waits: others take over
/// what it had only once they read that.
const REGISTER_LIMIT: Duration = Duration::from_secs(4);

/// vDisks whose page maps and records are written at once at the end.
const DRAINED_AT_ONCE: usize = 16;

/// Why a router doesn't run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    Lock(#[from] DirLockError),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Net(#[from] NetError),
    #[error(transparent)]
    Log(#[from] LogDiskError),
    #[error("{0}; the write log can't be used, and needs an operator")]
    LogLists(#[from] NoList),
    #[error(transparent)]
    Map(#[from] MapError),
    #[error("can't use the DTL's directory {path}: {cause}")]
    Dtl { path: PathBuf, cause: std::io::Error },
    #[error("can't use {path}: {cause}")]
    Identity { path: PathBuf, cause: std::io::Error },
    #[error("{path} doesn't hold a router id but `{found}`")]
    BadIdentity { path: PathBuf, found: String },
    #[error("a task failed: {0}")]
    Task(#[from] tokio::task::JoinError),
    #[error("stopped because its write log failed: {0}")]
    Failed(String),
}

/// Runs until shutdown, then drains.
///
/// # Errors
/// When it can't start, or had to stop because its log failed.
pub async fn run(config: Config, shutdown: Shutdown) -> Result<(), RunError> {
    run_ready(config, shutdown, |_| {}).await
}

/// As [`run`]; `ready` is told where it listens, once it does.
///
/// # Errors
/// As [`run`].
pub async fn run_ready(
    config: Config,
    shutdown: Shutdown,
    ready: impl FnOnce(&Endpoint),
) -> Result<(), RunError> {
    let _data = DirLock::acquire(&config.data_dir)?;
    // P10: the log directory has its own lock; it may be shared by mistake where the data directory isn't.
    let _log = DirLock::acquire(&config.log_dir)?;
    let identity = Identity::new(Role::Router, &config.name, &config.cluster, config.tls.as_ref())?;
    let id = router_id(&config)?;
    let listener = Listener::bind(&config.listen, &identity).await?;
    let endpoint = listener.local_endpoint();
    let addresses = match &config.addresses[..] {
        [] => vec![endpoint.to_string()],
        given => given.iter().map(ToString::to_string).collect(),
    };
    let (disk, state) = open_log(&config).await?;
    let map_dir = config.data_dir.join("map");
    let map_cache = config.map_cache;
    // A checkpoint is of the map on disk.
    let tail_max = config.map_checkpoint_every.min(TAIL_MAX.into());
    let tail_max = u32::try_from(tail_max).expect("at most the usual");
    let open = move || MapStore::open_with_tail(&map_dir, map_cache, tail_max);
    let maps = tokio::task::spawn_blocking(open).await??;
    let backend = Backend::new(&config.proxies, &identity);
    let facts = Facts::new(&ArakoonClient::new(&config.arakoon, &identity));
    let own: Vec<String> = std::iter::once(endpoint.to_string()).chain(addresses.clone()).collect();
    let ties = Arc::new(Ties::new(id, &own, config.domain.to_string(), disk.id, facts.clone()));
    let dtl = open_dtl(&config, &identity, &ties).await?;
    let router = Router::new(Parts {
        config,
        id,
        identity: Arc::clone(&identity),
        addresses,
        facts,
        backend,
        maps,
        disk,
        state,
        dtl,
        ties,
    });
    tokio::spawn(Arc::clone(&router).lease_loop());
    tokio::spawn(Arc::clone(&router).append_loop());
    tokio::spawn(Arc::clone(&router).relief_loop());
    tokio::spawn(Arc::clone(&router).routers_loop());
    tokio::spawn(Arc::clone(&router).adopt_loop());
    tokio::spawn(Arc::clone(&router).follow_loop());
    tokio::spawn(Arc::clone(&router).checkpoint_loop());
    tokio::spawn(Arc::clone(&router).balance_loop());
    tokio::spawn(Arc::clone(&router).sweep_loop());
    tracing::info!(%endpoint, id = %router.id, log = %format!("{:016x}", router.disk.id.0), "router is up");
    ready(&endpoint);
    let options = ServerOptions::allowing(&[Role::Edge, Role::Router, Role::Admin]);
    let service = Arc::new(Server { router: Arc::clone(&router) });
    let serving = Shutdown::new();
    let server = tokio::spawn(serve(listener, identity, service, options, serving.clone()));
    tokio::select! {
        () = shutdown.wait() => router.drain().await,
        () = router.stop.wait() => {}
    }
    router.stop.trigger();
    serving.trigger();
    server.await?;
    match router.failure() {
        Some(reason) => Err(RunError::Failed(reason)),
        None => Ok(()),
    }
}

/// Reads what this router keeps of other routers' logs.
async fn open_dtl(
    config: &Config,
    identity: &Identity,
    ties: &Arc<Ties>,
) -> Result<TargetServer, RunError> {
    let dir = config.data_dir.join("dtl");
    let (incarnation, ties) = (identity.incarnation, Arc::clone(ties));
    let options = TargetOptions::in_dir(dir.clone());
    let opened =
        tokio::task::spawn_blocking(move || TargetServer::open(options, incarnation, ties)).await?;
    opened.map_err(|cause| RunError::Dtl { path: dir, cause })
}

/// Drawn once, kept in the data directory.
fn router_id(config: &Config) -> Result<RouterId, RunError> {
    let path = config.data_dir.join("router-id");
    let io = |cause| RunError::Identity { path: path.clone(), cause };
    match std::fs::read_to_string(&path) {
        Ok(text) => text.trim().parse().map_err(|_| RunError::BadIdentity {
            path: path.clone(),
            found: text.trim().to_owned(),
        }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let id = RouterId(random_u128());
            let new = config.data_dir.join("router-id.new");
            std::fs::write(&new, format!("{id}\n")).map_err(io)?;
            std::fs::File::open(&new).and_then(|file| file.sync_all()).map_err(io)?;
            std::fs::rename(&new, &path).map_err(io)?;
            Ok(id)
        }
        Err(error) => Err(io(error)),
    }
}

/// Scans what of the log is on the disk (a page cache may show more, L2), and opens the next segment behind it.
async fn open_log(config: &Config) -> Result<(Arc<LogDisk>, State), RunError> {
    let (dir, segment_size, segments) =
        (config.log_dir.clone(), config.log_segment_size, config.log_segments);
    let overlay_limit = config.overlay_limit;
    let opened = tokio::task::spawn_blocking(move || -> Result<_, RunError> {
        let started = boot_now();
        let disk = LogDisk::open(&dir, segment_size, LogId(random_u64().max(1)))?;
        let mut scanner = Scanner::new(disk.id, segment_size);
        let ready = disk.ready();
        disk.refresh(&ready)?;
        for file in &ready {
            scanner.add_file(*file, &disk.read_segment(*file)?);
        }
        let scan: Scan = scanner.finish()?;
        // A file that no segment uses; one more than configured when a full log was killed.
        let used = |file: &u32| scan.segments.iter().any(|segment| segment.file == *file);
        let first = (0..).find(|file| !used(file)).expect("the range has no end");
        let files = segments.max(first + 1).max(ready.iter().max().map_or(0, |last| last + 1));
        disk.prepare(first)?;
        let mut batch = Batch::default();
        let mut log = Log::open(
            OpenLog {
                id: disk.id,
                segment_size,
                files,
                segments: scan.segments.clone(),
                next_lap: scan.next_lap,
                first,
            },
            &mut batch,
        );
        for file in &ready {
            log.file_ready(*file);
        }
        // The new list is durable before anything is accepted: what lies behind the torn end never counts again.
        disk.append(&batch)?;
        batch.clear();
        if let Some(job) = log.begin_sync() {
            disk.sync(&job.files)?;
            log.sync_done();
        }
        for damage in &scan.damages {
            tracing::error!(
                from = damage.from,
                to = damage.to,
                "the write log is damaged below what was synced"
            );
        }
        let (records, took) = (scan.records.len(), boot_now().since(started));
        tracing::info!(records, end = scan.end, ?took, "write log read");
        Ok((Arc::new(disk), State::new(log, batch, scan, overlay_limit)))
    });
    opened.await?
}

impl Router {
    /// Once registered, opens every vDisk that this router owns; again now and then, for those made meanwhile.
    async fn adopt_loop(self: Arc<Self>) {
        let mut pause = Duration::from_millis(300);
        let mut released = false;
        while !self.stop.is_triggered() {
            if released || self.lease.current().is_some() {
                match self.facts.vdisks().await {
                    Ok(records) => {
                        self.withdraw(&records);
                        self.resume_deletions(&records).await;
                        let owned =
                            records.iter().map(|read| &read.value).filter(|r| r.owner == self.id);
                        let owned: Vec<VdiskRecord> = owned.cloned().collect();
                        if !released {
                            self.release_strangers(&owned);
                            released = true;
                        }
                        for record in owned {
                            self.ensure_opening(record.vdisk);
                        }
                        pause = Duration::from_secs(5);
                    }
                    Err(error) => tracing::warn!(%error, "can't read the vDisks from arakoon yet"),
                }
            }
            tokio::select! {
                () = self.stop.wait() => return,
                () = tokio::time::sleep(jitter(pause)) => {}
            }
        }
    }

    /// Log records of vDisks that are deleted, or owned by others, pin nothing.
    fn release_strangers(&self, owned: &[VdiskRecord]) {
        let mut state = self.state();
        let strangers: Vec<VdiskId> = state
            .unclaimed
            .keys()
            .filter(|vdisk| owned.iter().all(|record| record.vdisk != **vdisk))
            .copied()
            .collect();
        for vdisk in strangers {
            state.release_unclaimed(vdisk);
        }
    }

    /// Lets go of vDisks that others have claimed: nothing else may ever tell an owner that slept.
    pub(crate) fn withdraw(&self, records: &[Read<VdiskRecord>]) {
        for VdiskRecord { vdisk, owner, epoch, .. } in records.iter().map(|read| &read.value) {
            let lost = match self.state().serving(*vdisk) {
                Ok(serving) => {
                    *owner != self.id
                        && (serving.protection.is_some() || !serving.handing_over)
                        && serving.core.epoch() < *epoch
                }
                Err(_) => false,
            };
            if lost {
                let reason = format!("router {owner} claimed it at epoch {epoch}");
                self.leave(*vdisk, Slot::Fenced(reason));
            }
        }
    }

    /// A clean stop: nothing new is accepted, all that is pending goes to the backend, and each vDisk's record says that
    /// no log is needed for it any more.
    async fn drain(self: &Arc<Self>) {
        let limit = self.config.drain_timeout;
        let vdisks: Vec<VdiskId> = {
            let mut state = self.state();
            state.stopping = true;
            for slot in state.volumes.values_mut() {
                if let Slot::Serving(serving) = slot {
                    serving.core.seal();
                    serving.committer.notify_one();
                }
            }
            state.volumes.keys().copied().collect()
        };
        // Side by side: one that is stuck takes nobody's time. What isn't done by then ends with the set.
        let (mut drains, turns) = (JoinSet::new(), Arc::new(Semaphore::new(DRAINED_AT_ONCE)));
        for vdisk in vdisks {
            drains.spawn(Arc::clone(self).drain_one(vdisk, Arc::clone(&turns)));
        }
        let all = async { while drains.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(limit, all).await;
        drop(drains);
        self.leave_undrained();
        let synced = {
            let mut state = self.state();
            state.log.begin_sync()
        };
        if let Some(job) = synced {
            let disk = Arc::clone(&self.disk);
            let done = tokio::task::spawn_blocking(move || disk.sync(&job.files)).await;
            if !matches!(done, Ok(Ok(()))) {
                tracing::error!("the write log couldn't be synced at the end");
            }
        }
        let offline = self.record(RouterState::Offline);
        let session = self.lease.current().map(|session| session.incarnation());
        let last = self.facts.sign_off(&offline, session);
        let _ = tokio::time::timeout(REGISTER_LIMIT, last).await;
    }

    /// Once the session is over others may claim what rests on it: nothing more is answered here (L3, P16).
    fn leave_undrained(&self) {
        let mut state = self.state();
        let served = state.volumes.iter().filter(|(_, slot)| matches!(slot, Slot::Serving(_)));
        for vdisk in served.map(|(vdisk, _)| *vdisk).collect::<Vec<_>>() {
            tracing::warn!(%vdisk, "not all of the vDisk is in the backend; the write log keeps the rest");
            let (slot, error) = stopping();
            state.stop_serving(vdisk, slot, &error, Records::Keep);
        }
    }

    async fn drain_one(self: Arc<Self>, vdisk: VdiskId, turns: Arc<Semaphore>) {
        let (epoch, head) = loop {
            {
                let mut state = self.state();
                let Ok(serving) = state.serving(vdisk) else { return };
                if serving.is_idle() && serving.core.is_drained() {
                    break (serving.core.epoch(), serving.core.committed_lsn());
                }
                // Changes that were accepted before the stop may still be on their way in.
                serving.core.seal();
                serving.committer.notify_one();
            }
            tokio::time::sleep(PAUSE).await;
        };
        let Ok(_turn) = turns.acquire().await else { return };
        let maps = self.maps.clone();
        let written = tokio::task::spawn_blocking(move || maps.write_back(vdisk)).await;
        if !matches!(written, Ok(Ok(()))) {
            tracing::warn!(%vdisk, "the page map wasn't written back; the next start replays more");
        }
        let Ok(Some(read)) = self.facts.vdisk(vdisk).await else { return };
        if read.value.epoch == epoch {
            let drained = VdiskRecord { log_id: 0, ..read.value.clone() };
            let Ok(dtl) = self.facts.dtl(vdisk).await else { return };
            let dtl = dtl.as_ref().map(|dtl| (dtl, dtl.value.drained(epoch, head)));
            let change = Change { vdisk: (&read, drained), dtl };
            // From then on another router may take it: not even reads are answered here any more (L3).
            let (slot, error) = stopping();
            self.state().stop_serving(vdisk, slot, &error, Records::Release);
            if let Err(error) = self.facts.change(change, Transaction::new()).await {
                tracing::warn!(%vdisk, %error, "the clean stop couldn't be recorded");
            }
        }
    }
}

/// What a vDisk is from its end here on, and what those are told who wait for it.
fn stopping() -> (Slot, WireError) {
    let why = "the router is stopping";
    (Slot::Elsewhere(why.to_owned()), WireError::retry(wire::error::code::STOPPING, why))
}
