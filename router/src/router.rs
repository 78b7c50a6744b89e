//! The loop around the state: what was placed is appended, what must be durable is synced, ragged clusters are read.
//!
//! Appends run on the one thread that also reads sockets: a write into the page cache of a preallocated file costs a few
//! microseconds, a hand-over to another thread costs more than that, and what queued while the loop was busy goes out in
//! one vectored write. Syncs, which take milliseconds, never run there.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use model::{Cluster, RouterId, VdiskId};
use runtime::clock::boot_now;
use runtime::events::Events;
use runtime::peer::Identity;
use runtime::shutdown::Shutdown;
use tokio::sync::{Notify, Semaphore};
use wire::WireError;
use wire::common::Severity;
use wire::router::{RouterAddress, code};

use crate::backend::Backend;
use crate::config::Config;
use crate::directory::Other;
use crate::dtl::peers::Peers;
use crate::dtl::server::TargetServer;
use crate::dtl::ties::Ties;
use crate::facts::Facts;
use crate::fetch::FETCHED_MAX;
use crate::frames::{Frames, ReadError};
use crate::lease::Lease;
use crate::lend::Lent;
use crate::log_disk::LogDisk;
use crate::map_store::MapStore;
use crate::reader::Content;
use crate::state::{Action, Ragged, State};

/// How often a router that runs short looks for space by itself.
const RELIEF_TICK: Duration = Duration::from_millis(200);
/// How often at least what was asked of vDisks is folded into their rates.
const FOLD_EVERY: Duration = Duration::from_secs(5);

/// Everything a running router has.
pub struct Router {
    pub config: Config,
    pub id: RouterId,
    pub identity: Arc<Identity>,
    pub addresses: Vec<String>,
    pub facts: Facts,
    pub backend: Backend,
    pub frames: Frames,
    pub maps: MapStore,
    pub disk: Arc<LogDisk>,
    pub lease: Lease,
    /// Logs of other routers' vDisks.
    pub dtl: TargetServer,
    pub ties: Arc<Ties>,
    pub peers: Arc<Peers>,
    /// What an operator should know of this router.
    pub events: Arc<Events>,
    /// The other routers, as last read from arakoon.
    pub others: Mutex<(u64, Vec<Other>)>,
    state: Mutex<State>,
    append: Notify,
    /// A checkpoint of some page map may be due.
    pub checkpoints: Notify,
    /// Page maps that other routers are reading.
    pub lent: Lent,
    /// The right to fetch one, first come first served.
    pub fetching: Semaphore,
    /// Ends the tasks of this router.
    pub stop: Shutdown,
    /// Set when the router can't go on: why.
    failure: Mutex<Option<String>>,
}

/// What [`Router::new`] is made of.
pub struct Parts {
    pub config: Config,
    pub id: RouterId,
    pub identity: Arc<Identity>,
    pub addresses: Vec<String>,
    pub facts: Facts,
    pub backend: Backend,
    pub maps: MapStore,
    pub disk: Arc<LogDisk>,
    pub state: State,
    pub dtl: TargetServer,
    pub ties: Arc<Ties>,
}

impl Router {
    #[must_use]
    pub fn new(parts: Parts) -> Arc<Self> {
        let Parts { config, id, identity, addresses, facts, backend, maps, disk, state, dtl, ties } =
            parts;
        let peers = Peers::new(Arc::clone(&identity), Arc::clone(&ties) as _);
        let events = Arc::clone(&ties.events);
        let frames = Frames::new(config.read_cache, backend.clone());
        Arc::new(Self {
            config,
            id,
            identity,
            addresses,
            facts,
            backend,
            frames,
            maps,
            disk,
            lease: Lease::default(),
            dtl,
            ties,
            peers,
            events,
            others: Mutex::default(),
            state: Mutex::new(state),
            append: Notify::new(),
            checkpoints: Notify::new(),
            lent: Lent::default(),
            fetching: Semaphore::new(FETCHED_MAX),
            stop: Shutdown::new(),
            failure: Mutex::default(),
        })
    }

    /// One thread takes this lock, so it is never waited for; it is a lock because tasks must be `Send`.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A contained panic may have left what all vDisks share half changed.
    ///
    /// # Panics
    /// If it did.
    pub(crate) fn check_shared(&self) {
        assert!(!self.state.is_poisoned(), "what all vDisks share was left half changed");
    }

    /// Why the router can't go on, if it can't.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn me(&self) -> RouterAddress {
        RouterAddress { router: self.id, addresses: self.addresses.clone() }
    }

    /// Something was placed or wants a sync: the append loop runs when the requests read so far are done.
    pub fn wake_append(&self) {
        self.append.notify_one();
    }

    /// Appends until stopped.
    pub async fn append_loop(self: Arc<Self>) {
        loop {
            tokio::select! {
                () = self.append.notified() => {}
                () = self.stop.wait() => return,
            }
            self.append_now();
        }
    }

    /// Looks after space until stopped, also when nobody writes; and sees how much is asked.
    pub async fn relief_loop(self: Arc<Self>) {
        let (damping, mut folded) = (self.config.damping, boot_now());
        let fold_every = (damping / 16).min(FOLD_EVERY);
        let mut tick = tokio::time::interval(RELIEF_TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                () = self.stop.wait() => return,
            }
            let mut state = self.state();
            state.relieve();
            let now = boot_now();
            if fold_every <= now.since(folded) {
                state.fold_demand(now, damping);
                folded = now;
            }
            let wake =
                state.has_answers() || state.wants_sync() || state.log.file_wanted().is_some();
            drop(state);
            if wake {
                self.wake_append();
            }
        }
    }

    /// Writes what is placed, answers, starts the sync and the segment that are wanted.
    fn append_now(self: &Arc<Self>) {
        let mut state = self.state();
        if state.log_failed {
            return;
        }
        if state.has_answers() {
            let batch = state.take_batch();
            if let Err(error) = self.disk.append(&batch) {
                drop(state);
                self.fail(&error.to_string());
                return;
            }
            state.appended(batch);
        }
        if state.wants_sync()
            && let Some(job) = state.log.begin_sync()
        {
            state.sync_since = Some(boot_now());
            let router = Arc::clone(self);
            tokio::spawn(async move {
                let disk = Arc::clone(&router.disk);
                let synced = tokio::task::spawn_blocking(move || disk.sync(&job.files)).await;
                match synced {
                    Ok(Ok(())) => router.synced(),
                    Ok(Err(error)) => router.fail(&error.to_string()),
                    Err(error) => router.fail(&error.to_string()),
                }
            });
        }
        if state.preparing.is_none()
            && let Some(file) = state.log.file_wanted()
        {
            state.preparing = Some(boot_now());
            let router = Arc::clone(self);
            tokio::spawn(async move { router.prepare(file).await });
        }
    }

    fn synced(self: &Arc<Self>) {
        let mut actions = Vec::new();
        let mut state = self.state();
        state.sync_since = None;
        state.log.sync_done();
        state.answer_synced();
        state.unstall(&mut actions);
        drop(state);
        self.run_actions(actions);
        self.append_now();
    }

    async fn prepare(self: Arc<Self>, file: u32) {
        let disk = Arc::clone(&self.disk);
        let prepared = tokio::task::spawn_blocking(move || disk.prepare(file)).await;
        let mut actions = Vec::new();
        match prepared {
            Ok(Ok(())) => {
                let mut state = self.state();
                state.preparing = None;
                state.log_problem = None;
                state.log.file_ready(file);
                state.unstall(&mut actions);
            }
            Ok(Err(error)) => {
                // A full disk: writers wait until there is space, and an operator is told why.
                tracing::error!(%error, "a log segment can't be made; writes wait when the others are full");
                self.note(
                    Severity::Error,
                    "log-full",
                    &format!(
                        "a log segment can't be made: {error}; writes wait when the others are full"
                    ),
                );
                self.state().log_problem = Some(error.to_string());
                tokio::time::sleep(Duration::from_secs(1)).await;
                self.state().preparing = None;
            }
            Err(error) => self.fail(&error.to_string()),
        }
        self.run_actions(actions);
        self.wake_append();
    }

    /// An event of this router, about no vDisk in particular.
    pub fn note(&self, severity: Severity, kind: &'static str, text: &str) {
        self.events.note(severity, kind, text);
    }

    /// The log can't be trusted any more: nobody is acknowledged, and the process ends. A restart scans anew.
    pub fn fail(&self, reason: &str) {
        tracing::error!(reason, "the write log failed, stopping");
        self.note(
            Severity::Error,
            "log-failed",
            &format!("the write log failed: {reason}; the router stops"),
        );
        let error = WireError::fatal(
            wire::error::code::STOPPING,
            format!("the router's write log failed: {reason}"),
        );
        self.state().fail_all(&error);
        self.failure
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_or_insert_with(|| reason.to_owned());
        self.stop.trigger();
    }

    /// Log space came free.
    pub fn space_freed(self: &Arc<Self>) {
        let mut actions = Vec::new();
        self.state().unstall(&mut actions);
        self.run_actions(actions);
        self.wake_append();
    }

    pub fn run_actions(self: &Arc<Self>, mut actions: Vec<Action>) {
        while let Some(action) = actions.pop() {
            let router = Arc::clone(self);
            match action {
                Action::ReadRagged { vdisk, ticket, clusters } => {
                    // Mostly in memory: then no task is needed.
                    if let Some(content) = self.peek_all(vdisk, &clusters) {
                        let ragged = ragged_of(clusters, content);
                        self.state().ragged_read(vdisk, ticket, Ok(ragged), &mut actions);
                        self.wake_append();
                        continue;
                    }
                    tokio::spawn(async move {
                        let content = router.read_clusters(vdisk, &clusters).await;
                        let content = content.map(|content| ragged_of(clusters, content));
                        let content = content.map_err(|error| read_failed(&error));
                        let mut actions = Vec::new();
                        router.state().ragged_read(vdisk, ticket, content, &mut actions);
                        router.wake_append();
                        router.run_actions(actions);
                    });
                }
                Action::RunGate(vdisk) => {
                    tokio::spawn(async move { router.run_gate(vdisk).await });
                }
            }
        }
    }

    async fn run_gate(self: Arc<Self>, vdisk: VdiskId) {
        loop {
            let mut actions = Vec::new();
            let wait = self.state().drain_gate(vdisk, boot_now(), &mut actions);
            self.run_actions(actions);
            self.wake_append();
            match wait {
                None => return,
                Some(wait) => tokio::time::sleep(wait).await,
            }
        }
    }
}

fn ragged_of(clusters: Vec<Cluster>, content: Vec<Content>) -> Ragged {
    let pairs = clusters.into_iter().zip(content);
    pairs
        .map(|(cluster, content)| match content {
            Content::Data(data, _) => (cluster, Some(data)),
            Content::Zero => (cluster, None::<Bytes>),
        })
        .collect()
}

/// L5: an I/O error, never zeroes; and only where the data are at fault. What passes is waited for.
#[must_use]
pub fn read_failed(error: &ReadError) -> WireError {
    let code = match error {
        ReadError::Gone { .. } | ReadError::Damaged { .. } => code::UNREADABLE,
        ReadError::Backend { .. }
        | ReadError::Map(_)
        | ReadError::MapDamaged(_)
        | ReadError::MapBehind(_)
        | ReadError::Stopping => code::RECOVERING,
    };
    WireError::retry(code, error.to_string())
}
