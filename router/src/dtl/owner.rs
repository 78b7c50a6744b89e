//! Runs the owner's core of one vDisk: sends what it wants, tells it what came back, and shows what may be acknowledged.
//!
//! Whoever serves the vDisk calls [`DtlOwner::append`] for every record right after its own log has a place for it, and
//! answers writes and flushes by [`DtlOwner::acks`]. One lock, never held across an `.await`; requests are queued under it,
//! so records reach a target in LSN order.
//!
//! Invariant: the records `kept_above + 1 ..= last` of the core are held here, so that any target can be given all of them.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use model::{Epoch, Lsn, Now, RouterId, VdiskId};
use router_core::dtl::owner::{
    Acks, Effect, Failure, FromTarget, Opening, Owner, ReadRight, RequestId, ToTarget,
};
pub use router_core::dtl::owner::{Session, Writers};
use router_core::dtl::records::{Outgoing, outgoing};
use router_core::log::pool::Entry;
use runtime::clock::boot_now;
use runtime::random::jitter;
use runtime::rpc::{Call, CallError, Connection};
use runtime::shutdown::Shutdown;
use tokio::sync::watch;
use wire::ErrorClass;
use wire::dtl::{
    Append, Appended, Create, DtlFacts, DtlMode, DtlState, LogName, Open, Opened, Sync, Synced,
    Trim, code, detail_number, method,
};

use super::peers::{Candidates, Peers};

/// While something is under way, time-outs are looked at this often.
const TICK: Duration = Duration::from_millis(100);
/// When nothing is.
const IDLE_TICK: Duration = Duration::from_millis(1000);

/// What the outside sees change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct View {
    pub acks: Acks,
    pub read_right: ReadRight,
    /// Somebody else owns the vDisk: stop serving it.
    pub fenced: bool,
}

struct Inner {
    core: Owner,
    records: VecDeque<Outgoing>,
    connections: BTreeMap<RouterId, Connection>,
}

struct Shared {
    vdisk: VdiskId,
    epoch: Epoch,
    patience: Duration,
    peers: Arc<Peers>,
    inner: Mutex<Inner>,
    view: watch::Sender<View>,
    stop: Shutdown,
}

/// The owner's DTL of one vDisk. Dropped or stopped, it sends nothing more.
pub struct DtlOwner {
    shared: Arc<Shared>,
}

impl Drop for DtlOwner {
    fn drop(&mut self) {
        self.shared.stop.trigger();
    }
}

impl DtlOwner {
    /// Begins, right after recovery: proposes the next facts and then copies `replayed`, the records above the base.
    #[must_use]
    pub fn start(opening: Opening, replayed: &[Entry], peers: Arc<Peers>) -> Self {
        let Opening { vdisk, epoch, patience, .. } = opening;
        let (now, mut out) = (boot_now(), Vec::new());
        let mut core = Owner::open(opening, now, &mut out);
        let records: VecDeque<Outgoing> = replayed.iter().map(outgoing).collect();
        for record in &records {
            core.appended(record.lsn, bytes_of(record));
        }
        let view = View { acks: core.acks(), read_right: core.read_right(), fenced: false };
        let inner = Inner { core, records, connections: BTreeMap::new() };
        let shared = Arc::new(Shared {
            vdisk,
            epoch,
            patience: patience.answer,
            peers,
            inner: Mutex::new(inner),
            view: watch::Sender::new(view),
            stop: Shutdown::new(),
        });
        let mut inner = shared.inner();
        shared.carry_out(&mut inner, out);
        drop(inner);
        tokio::spawn(Arc::clone(&shared).run());
        tokio::spawn(Arc::clone(&shared).look_out());
        Self { shared }
    }

    /// A record has its place in the own log. LSNs are consecutive.
    pub fn append(&self, entry: &Entry) {
        let record = outgoing(entry);
        self.shared.tell(|inner, _| {
            inner.core.appended(record.lsn, bytes_of(&record));
            inner.records.push_back(record);
        });
    }

    /// The own log is synced through here.
    pub fn local_synced(&self, lsn: Lsn) {
        self.shared.tell(|inner, _| inner.core.local_synced(lsn));
    }

    /// The backend has everything through here.
    pub fn backend_has(&self, lsn: Lsn) {
        self.shared.tell(|inner, _| {
            inner.core.backend_has(lsn);
            let kept = inner.core.kept_above();
            while inner.records.pop_front_if(|record| record.lsn <= kept).is_some() {}
        });
    }

    /// Somebody waits for this to be flushed. When the state isn't InSync, only the backend can give it: seal and store
    /// the unit (P13, P14).
    pub fn want_flush(&self, lsn: Lsn) {
        self.shared.tell(|inner, _| inner.core.want_flush(lsn));
    }

    /// What may be acknowledged now.
    #[must_use]
    pub fn acks(&self) -> Acks {
        self.shared.view.borrow().acks
    }

    /// Edges came or went.
    pub fn set_writers(&self, writers: Writers) {
        self.shared.tell(|inner, _| inner.core.set_writers(writers));
    }

    /// What an acknowledgement of a write means changes.
    pub fn set_mode(&self, mode: DtlMode) {
        self.shared.tell(|inner, _| inner.core.set_mode(mode));
    }

    /// How many targets an operator wants.
    pub fn want_targets(&self, wish: Option<usize>) {
        self.shared.tell(|inner, _| inner.core.want_targets(wish));
    }

    #[must_use]
    pub fn wish(&self) -> Option<usize> {
        self.shared.inner().core.wish()
    }

    /// Waits until arakoon has the first proposal, or somebody else owns the vDisk.
    pub async fn wait_begun(&self) {
        let mut view = self.watch();
        // Ends only with this owner.
        let _ = view.wait_for(|view| view.fenced || view.read_right != ReadRight::Never).await;
    }

    /// Waits until everything through `lsn` is elsewhere too, at most `patience`.
    pub async fn wait_written(&self, lsn: Lsn, patience: Duration) -> bool {
        let mut view = self.watch();
        let written = view.wait_for(|view| lsn <= view.acks.write || view.fenced);
        match tokio::time::timeout(patience, written).await {
            Ok(Ok(view)) => lsn <= view.acks.write,
            Ok(Err(_)) | Err(_) => false,
        }
    }

    /// Changes of what may be acknowledged or read.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<View> {
        self.shared.view.subscribe()
    }

    #[must_use]
    pub fn state(&self) -> DtlState {
        self.shared.inner().core.facts().state
    }

    #[must_use]
    pub fn facts(&self) -> DtlFacts {
        self.shared.inner().core.facts().clone()
    }

    /// Each target with what it has in memory and synced, and its problem.
    #[must_use]
    pub fn targets(&self) -> Vec<(RouterId, Lsn, Lsn, Option<String>)> {
        self.shared.inner().core.progress_of_targets()
    }

    /// May a read be served at `now`? Keeps the lease alive while somebody asks; to be asked again after the data was gathered, right before it is answered.
    #[must_use]
    pub fn may_read(&self, now: Now, session: Session) -> bool {
        self.shared.tell(|inner, now| inner.core.reading(now));
        self.shared.view.borrow().read_right.allows(now, session)
    }

    /// Waits until a read may be served, at most `patience`; `session` is asked each time something changes.
    pub async fn wait_to_read(&self, session: impl Fn() -> Session, patience: Duration) -> bool {
        let mut view = self.watch();
        let wait = async {
            loop {
                if self.may_read(boot_now(), session()) {
                    return true;
                }
                if view.borrow_and_update().fenced {
                    return false;
                }
                // The session may change without the view.
                let _ = tokio::time::timeout(TICK, view.changed()).await;
            }
        };
        tokio::time::timeout(patience, wait).await.unwrap_or(false)
    }

    /// Sends nothing more. What was promised stays promised.
    pub fn stop(&self) {
        self.shared.stop.trigger();
    }
}

fn bytes_of(record: &Outgoing) -> u32 {
    u32::try_from(record.bytes()).unwrap_or(u32::MAX)
}

impl Shared {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the core something, does what it wants then, and shows what has changed.
    fn tell(self: &Arc<Self>, tell: impl FnOnce(&mut Inner, Now)) {
        let now = boot_now();
        let mut inner = self.inner();
        tell(&mut inner, now);
        let mut out = Vec::new();
        inner.core.progress(now, &mut out);
        self.carry_out(&mut inner, out);
    }

    fn carry_out(self: &Arc<Self>, inner: &mut Inner, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Send { target, request, what } => self.send(inner, target, request, &what),
                Effect::Forget { target } => {
                    inner.connections.remove(&target);
                }
                Effect::Propose { from, to } => {
                    let shared = Arc::clone(self);
                    tokio::spawn(async move { shared.propose(from, to).await });
                }
                Effect::Drop { target, through } => {
                    let shared = Arc::clone(self);
                    tokio::spawn(async move { shared.drop_log(target, through).await });
                }
                Effect::Changed { why } => {
                    tracing::info!(vdisk = %self.vdisk, why, "DTL");
                    self.peers.cluster.changed(self.vdisk, &why);
                }
                Effect::Fenced => {
                    tracing::warn!(vdisk = %self.vdisk, "another owner has claimed it");
                }
            }
        }
        let core = &mut inner.core;
        let (acks, fenced) = (core.acks(), core.is_fenced());
        let view = View { acks, read_right: core.read_right(), fenced };
        self.view.send_if_modified(|shown| std::mem::replace(shown, view) != view);
    }

    async fn propose(self: Arc<Self>, from: DtlFacts, to: DtlFacts) {
        let outcome = self.peers.cluster.propose((self.vdisk, self.epoch), from, to).await;
        let mut inner = self.inner();
        let mut out = Vec::new();
        inner.core.decided(outcome, boot_now(), &mut out);
        self.carry_out(&mut inner, out);
    }

    async fn drop_log(&self, target: RouterId, through: Lsn) {
        let dropped = self.peers.drop_log(target, self.vdisk, self.epoch, through).await;
        if let Err(error) = dropped {
            tracing::info!(vdisk = %self.vdisk, %target, %error, "a former DTL target keeps its log");
        }
    }

    /// Time-outs.
    async fn run(self: Arc<Self>) {
        loop {
            let wait = if self.inner().core.is_busy(boot_now()) { TICK } else { IDLE_TICK };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.stop.wait() => return,
            }
            self.tell(|_, _| {});
        }
    }

    /// Who else could be a target. Apart from the time-outs, as arakoon and those who are asked may take long.
    async fn look_out(self: Arc<Self>) {
        loop {
            let (wants, alone) = {
                let core = &self.inner().core;
                (core.wants_candidates(), core.facts().targets.is_empty())
            };
            if wants {
                let found = self.peers.cluster.candidates(self.vdisk);
                let found = tokio::select! {
                    found = found => found,
                    () = self.stop.wait() => return,
                };
                let Candidates { routers, copies } = found;
                let routers = self.peers.answering(routers).await;
                self.tell(|inner, _| inner.core.candidates(routers, copies));
            }
            let wait = if wants && alone { TICK } else { IDLE_TICK };
            tokio::select! {
                () = tokio::time::sleep(jitter(wait)) => {}
                () = self.stop.wait() => return,
            }
        }
    }

    fn send(
        self: &Arc<Self>,
        inner: &mut Inner,
        target: RouterId,
        request: RequestId,
        what: &ToTarget,
    ) {
        if self.stop.is_triggered() {
            return;
        }
        let log = inner.core.log_name();
        match what {
            ToTarget::Open | ToTarget::Create { .. } => {
                let (shared, what) = (Arc::clone(self), what.clone());
                tokio::spawn(async move { shared.open(target, request, log, &what).await });
            }
            ToTarget::Renew => {
                let shared = Arc::clone(self);
                tokio::spawn(async move {
                    let renewed = shared.peers.renew(target, log).await;
                    let answer = renewed.map(|()| FromTarget::Done);
                    shared.answered(target, request, answer.map_err(|error| failure(&error)));
                });
            }
            ToTarget::Append { first, last } => {
                let (count, payload) = payload(&inner.records, *first, *last);
                let append = Append { log, first: *first, count };
                let call = Call { payload, timeout: self.patience };
                self.begin(inner, (target, request), (method::APPEND, &append, call), |a| {
                    let Appended { last } = a;
                    FromTarget::Appended(last)
                });
            }
            ToTarget::Sync { through } => {
                let sync = Sync { log, through: *through };
                let call = Call::within(self.patience);
                self.begin(inner, (target, request), (method::SYNC, &sync, call), |a| {
                    let Synced { through } = a;
                    FromTarget::Synced(through)
                });
            }
            ToTarget::Trim { through } => {
                let (vdisk, epoch, through) = (self.vdisk, self.epoch, *through);
                let trim = Trim { vdisk, epoch, through };
                let call = Call::within(self.patience);
                self.begin(inner, (target, request), (method::TRIM, &trim, call), |()| {
                    FromTarget::Done
                });
            }
        }
    }

    /// Queues a request on the connection now, and waits for its answer elsewhere.
    fn begin<Q: wire::Encode + 'static, A: wire::Decode + Send + 'static>(
        self: &Arc<Self>,
        inner: &Inner,
        (target, request): (RouterId, RequestId),
        (method, body, call): (u16, &Q, Call),
        understand: fn(A) -> FromTarget,
    ) {
        let shared = Arc::clone(self);
        let begun = inner.connections.get(&target).map(|c| c.begin::<Q, A>(method, body, call));
        match begun {
            Some(Ok(answer)) => {
                tokio::spawn(async move {
                    let answer = answer.await;
                    let answer = answer.map(|(answer, _)| understand(answer));
                    shared.answered(target, request, answer.map_err(|error| failure(&error)));
                });
            }
            Some(Err(_)) | None => {
                tokio::spawn(async move {
                    shared.answered(target, request, Err(Failure::Lost));
                });
            }
        }
    }

    /// Connects anew where needed; from then on requests go over this connection.
    async fn open(
        self: Arc<Self>,
        target: RouterId,
        request: RequestId,
        log: LogName,
        what: &ToTarget,
    ) {
        let opened = async {
            let connection = self.peers.connection(target).await?;
            self.inner().connections.insert(target, connection.clone());
            let call = Call::within(self.patience);
            let (answer, _): (Opened, Bytes) = match what {
                ToTarget::Create { base } => {
                    connection.call(method::CREATE, &Create { log, base: *base }, call).await?
                }
                ToTarget::Open
                | ToTarget::Append { .. }
                | ToTarget::Sync { .. }
                | ToTarget::Renew
                | ToTarget::Trim { .. } => {
                    connection.call(method::OPEN, &Open { log }, call).await?
                }
            };
            Ok::<_, CallError>(FromTarget::Opened(answer.held))
        };
        let answer = opened.await.map_err(|error| failure(&error));
        self.answered(target, request, answer);
    }

    fn answered(
        self: &Arc<Self>,
        target: RouterId,
        request: RequestId,
        answer: Result<FromTarget, Failure>,
    ) {
        if self.stop.is_triggered() {
            return;
        }
        let mut inner = self.inner();
        let mut out = Vec::new();
        inner.core.answered((target, request), answer, boot_now(), &mut out);
        self.carry_out(&mut inner, out);
    }
}

/// Header and payload of each of these records, unjoined.
fn payload(records: &VecDeque<Outgoing>, first: Lsn, last: Lsn) -> (u32, Vec<Bytes>) {
    let front = records.front().map_or(first, |record| record.lsn);
    let skip = model::usize_of(first.0 - front.0);
    let take = model::usize_of(last.0 - first.0 + 1);
    let mut parts = Vec::with_capacity(2 * take);
    for record in records.iter().skip(skip).take(take) {
        parts.push(record.header.clone());
        if !record.payload.is_empty() {
            parts.push(record.payload.clone());
        }
    }
    (model::u32_of(take), parts)
}

/// What a failed call means for the core.
fn failure(error: &CallError) -> Failure {
    let CallError::Refused(refusal) = error else { return Failure::Lost };
    let number = detail_number(&refusal.detail);
    match refusal.code {
        code::FENCED => Failure::Fenced,
        code::GAP => number.map_or(Failure::Lost, |last| Failure::Gap { last: Lsn(last) }),
        _ => match refusal.class {
            ErrorClass::Retry | ErrorClass::Redirect | ErrorClass::Reconstruct => Failure::Lost,
            ErrorClass::Refuse | ErrorClass::Fatal => Failure::Refused(refusal.message.clone()),
        },
    }
}
