//! What the router knows in memory: its log, its vDisks, and who waits for what. One owner, one thread, one lock.
//!
//! ```text
//!  request ──▶ gate (log or memory short) ──▶ range lock (ragged or behind one) ──▶ apply ──▶ append ──▶ answer
//!                                                                                     │                  ▲
//!                                                                                     └ stalled (log full)┘ sync, when durable
//! ```
//!
//! Invariant: changes of one vDisk are applied in the order in which their requests overlap; an answer leaves only after
//! its records are in the page cache, and a durable one only after the log is synced through them.

pub mod protection;
mod relief;
mod requests;
mod stage;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use model::{
    AttachmentGeneration, ByteRange, Cluster, Epoch, Lsn, Now, ObjectId, RequestSeq, Revision,
    VdiskId,
};
use router_core::CLUSTER;
use router_core::checkpoint::Course;
use router_core::contest::Ruled;
use router_core::demand::Demand;
use router_core::log::pool::Batch;
use router_core::log::{Found, Log, Scan};
use router_core::range_lock::{RangeLock, Ticket};
use router_core::recover::Gap;
use router_core::tlog::Tlog;
use router_core::volume::{Change, Volume};
use runtime::clock::boot_now;
use runtime::peer::Peer;
use runtime::rpc::Responder;
use tokio::sync::{Notify, watch};
use wire::facts::{AttachmentsRecord, VdiskRecord};
use wire::router::{Applied, AttachMode, Flushed, UnmapKind, code};
use wire::{ErrorClass, WireError};

use protection::{Need, Protection, Waiter};
pub use stage::Stage;

/// What a request changes.
#[derive(Debug)]
pub enum JobKind {
    Write(Bytes, Vec<u32>),
    Unmap(UnmapKind),
}

/// A write or unmap on its way.
#[derive(Debug)]
pub struct Job {
    pub vdisk: VdiskId,
    pub range: ByteRange,
    pub kind: JobKind,
    pub generation: AttachmentGeneration,
    pub seq: RequestSeq,
    pub durable: bool,
    pub responder: Responder,
    /// The same request again, after a reconnect: answered along with the first.
    pub again: Vec<Responder>,
}

impl Job {
    /// Bytes of log and memory that it will take, about: an unmap of any length is a record and two ragged clusters.
    fn cost(&self) -> u64 {
        match &self.kind {
            JobKind::Write(payload, _) => payload.len() as u64 + CLUSTER as u64,
            JobKind::Unmap(_) => 2 * CLUSTER as u64,
        }
    }

    fn fail(self, error: &WireError) {
        for responder in self.again {
            responder.fail(error.clone());
        }
        self.responder.fail(error.clone());
    }
}

/// A job that has its changes but not (all of) its log space.
#[derive(Debug)]
struct Stalled {
    job: Job,
    changes: VecDeque<Change>,
    ticket: Option<Ticket>,
}

#[derive(Debug)]
struct Gated {
    job: Job,
    since: Now,
}

/// Applied, and in the batch that is written next.
#[derive(Debug)]
struct Ack {
    responder: Responder,
    epoch: Epoch,
    lsn: Lsn,
    end: u64,
    durable: bool,
    /// The vDisk, when a DTL has a say in it.
    protected: Option<VdiskId>,
}

/// Waits for the log to be synced.
#[derive(Debug)]
pub struct SyncWaiter {
    pub responder: Responder,
    pub epoch: Epoch,
    pub lsn: Lsn,
    pub end: u64,
    pub is_flush: bool,
}

impl SyncWaiter {
    pub fn answer(self) {
        let Self { responder, epoch, lsn, .. } = self;
        if self.is_flush {
            responder.reply(&Flushed { epoch, lsn }, Bytes::new());
        } else {
            responder.reply(&Applied { epoch, lsn }, Bytes::new());
        }
    }
}

/// An attached edge.
#[derive(Debug, Clone)]
pub struct Session {
    pub edge_name: String,
    pub mode: AttachMode,
    /// Of its connection: gone when that is.
    pub peer: Weak<Peer>,
    /// When it attached last (P19).
    pub attached: Now,
}

impl Session {
    #[must_use]
    pub fn is_connected(&self) -> bool {
        0 < self.peer.strong_count()
    }
}

/// A vDisk that is served.
#[derive(Debug)]
pub struct Serving {
    pub core: Volume,
    pub record: VdiskRecord,
    pub attachments: AttachmentsRecord,
    /// Of the last change of them.
    pub attachments_at: Revision,
    pub sessions: BTreeMap<AttachmentGeneration, Session>,
    /// Writers whose replay isn't complete: reads wait for them (P6).
    pub awaiting: BTreeSet<AttachmentGeneration>,
    locks: RangeLock,
    /// Jobs that hold or wait for a lock.
    locked: BTreeMap<Ticket, Job>,
    gate: VecDeque<Gated>,
    gate_runs: bool,
    stalled: VecDeque<Stalled>,
    /// Log position behind this vDisk's newest record.
    pub last_end: u64,
    /// When it began to be served here.
    pub since: Now,
    pub committer: Arc<Notify>,
    pub committed: watch::Sender<Lsn>,
    pub tlogs: BTreeMap<ObjectId, Arc<Tlog>>,
    /// Why the backend doesn't take what is pending, if it doesn't.
    pub degraded: Option<String>,
    /// When what is pending got less last; `None` while its objects can't be put for another reason than a full backend.
    pub moved: Option<Now>,
    /// Since when proxies say that the backend is full.
    pub full_since: Option<Now>,
    /// A page failed its checksum: the committer rebuilds the map.
    pub map_damaged: bool,
    /// It goes to another router: nothing new is taken.
    pub handing_over: bool,
    /// An operator's change of its DTL is under way.
    pub changing_dtl: bool,
    /// When its requests last waited for a hand-over that didn't come about.
    pub frozen_in_vain: Option<Now>,
    /// When it was told last that it is contested (P19).
    pub told_contested: Option<Now>,
    pub objects: u64,
    /// TLogs that were replayed into the page map when the vDisk was opened.
    pub map_followed: u64,
    /// Of its page map, in the backend.
    pub checkpoints: Course,
    /// Where the last read of this vDisk ended, and how many in a row were sequential.
    pub read_end: u64,
    pub read_streak: u32,
    /// What is asked of it.
    pub demand: Demand,
    /// The second copy of its log, if it has one.
    pub protection: Option<Protection>,
}

impl Serving {
    #[must_use]
    pub fn new(
        core: Volume,
        record: VdiskRecord,
        attachments: AttachmentsRecord,
        objects: u64,
    ) -> Self {
        let committed = watch::Sender::new(core.committed_lsn());
        Self {
            core,
            record,
            attachments,
            attachments_at: Revision(0),
            sessions: BTreeMap::new(),
            awaiting: BTreeSet::new(),
            locks: RangeLock::default(),
            locked: BTreeMap::new(),
            gate: VecDeque::new(),
            gate_runs: false,
            stalled: VecDeque::new(),
            last_end: 0,
            since: boot_now(),
            committer: Arc::new(Notify::new()),
            committed,
            tlogs: BTreeMap::new(),
            degraded: None,
            moved: Some(boot_now()),
            full_since: None,
            map_damaged: false,
            handing_over: false,
            changing_dtl: false,
            frozen_in_vain: None,
            told_contested: None,
            objects,
            read_end: 0,
            read_streak: 0,
            demand: Demand::new(boot_now()),
            protection: None,
            map_followed: 0,
            checkpoints: Course::new(u64::MAX, None),
        }
    }

    /// Whose DTL is asked before an answer leaves.
    fn protected(&self) -> Option<VdiskId> {
        self.protection.as_ref().map(|_| self.core.vdisk())
    }

    /// The session of a request, or why it is refused.
    ///
    /// # Errors
    /// `ATTACHMENT_FENCED` or `NOT_ATTACHED`.
    pub fn session(&self, generation: AttachmentGeneration) -> Result<&Session, WireError> {
        if let Some(session) = self.sessions.get(&generation) {
            return Ok(session);
        }
        let live = self.attachments.live.iter().any(|live| live.generation == generation);
        if generation <= self.attachments.last_generation && !live {
            let message =
                "another edge took this vDisk over, or this attachment was ended".to_owned();
            return Err(WireError::refuse(code::ATTACHMENT_FENCED, message));
        }
        Err(WireError::refuse(code::NOT_ATTACHED, "not attached here: attach again"))
    }

    /// Unmounts what waits, when the vDisk stops being served here.
    pub fn fail_waiting(&mut self, error: &WireError) {
        let gated = std::mem::take(&mut self.gate).into_iter().map(|gated| gated.job);
        let stalled = std::mem::take(&mut self.stalled).into_iter().map(|stalled| stalled.job);
        let locked = std::mem::take(&mut self.locked).into_values();
        for job in gated.chain(stalled).chain(locked) {
            job.fail(error);
        }
        self.locks = RangeLock::default();
        if let Some(protection) = &mut self.protection {
            protection.fail(error);
        }
    }

    fn queued_again(&mut self, job: Job) -> Option<Job> {
        let same = |other: &Job| other.generation == job.generation && other.seq == job.seq;
        let gated = self.gate.iter_mut().map(|gated| &mut gated.job);
        let stalled = self.stalled.iter_mut().map(|stalled| &mut stalled.job);
        let mut waiting = gated.chain(stalled).chain(self.locked.values_mut());
        match waiting.find(|other| same(other)) {
            Some(first) => {
                first.again.push(job.responder);
                None
            }
            None => Some(job),
        }
    }

    /// Changes of this attachment are here and wait for log or memory.
    #[must_use]
    pub fn waits_for_room(&self, generation: AttachmentGeneration) -> bool {
        let gated = self.gate.iter().map(|gated| &gated.job);
        let mut waiting = gated.chain(self.stalled.iter().map(|stalled| &stalled.job));
        waiting.any(|job| job.generation == generation)
    }

    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.gate.is_empty() && self.stalled.is_empty() && self.locked.is_empty()
    }
}

/// What this router does with a vDisk it owns.
#[derive(Debug)]
pub enum Slot {
    /// Claiming and recovering, and how far that is.
    Opening(Stage),
    Serving(Box<Serving>),
    /// Something is missing: an operator decides (L7).
    Gap(String),
    /// Another router or an operator claimed it (L4).
    Fenced(String),
    /// Another router has it, and nothing of it is left here: it may come back.
    Elsewhere(String),
    Deleting,
}

impl Slot {
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Opening(_) => "recovering",
            Self::Serving(_) => "serving",
            Self::Gap(_) => "gap",
            Self::Fenced(_) => "fenced",
            Self::Elsewhere(_) => "elsewhere",
            Self::Deleting => "deleting",
        }
    }
}

/// What recovery found where a vDisk can't start.
#[derive(Debug, Clone, Default)]
pub struct KnownGap {
    /// The own log isn't whole.
    pub log: Option<Gap>,
    /// Of a vDisk with a DTL: where the own log ends, if that counts, and the first LSNs of epochs that it and the
    /// backend know.
    pub dtl: Option<(Option<Lsn>, BTreeMap<Epoch, Lsn>)>,
    /// Nothing is served by this one any more: the next try claims another.
    pub epoch: Epoch,
}

/// Work that the caller starts after letting go of the lock.
#[derive(Debug)]
pub enum Action {
    /// Read these clusters, then [`State::ragged_read`].
    ReadRagged { vdisk: VdiskId, ticket: Ticket, clusters: Vec<Cluster> },
    /// Call [`State::drain_gate`] until it says done.
    RunGate(VdiskId),
}

/// What becomes of the log records of a vDisk that isn't served any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Records {
    /// A restart decides about them.
    Keep,
    Release,
}

/// Content of ragged clusters: `None` = unmapped.
pub type Ragged = BTreeMap<Cluster, Option<Bytes>>;

/// All of it.
#[derive(Debug)]
pub struct State {
    pub log: Log,
    batch: Batch,
    acks: Vec<Ack>,
    syncs: Vec<SyncWaiter>,
    pub volumes: BTreeMap<VdiskId, Slot>,
    /// What the scan found, until each vDisk took its part.
    pub scan: Scan,
    pub unclaimed: BTreeMap<VdiskId, Vec<Found>>,
    pending_bytes: u64,
    overlay_limit: u64,
    next_ticket: Ticket,
    /// A segment is being made, since then.
    pub preparing: Option<Now>,
    /// The log is being synced, since then.
    pub sync_since: Option<Now>,
    pub log_failed: bool,
    /// Why no further segment can be made, if so (a full disk).
    pub log_problem: Option<String>,
    pub stopping: bool,
    /// Takes no further vDisks, by an operator's wish.
    pub draining: bool,
    /// vDisks of others whose page maps are brought up to date here before they change hands; woken where an opening wants one.
    pub following: BTreeMap<VdiskId, Arc<Notify>>,
    /// vDisks served with a DTL.
    pub protected: BTreeSet<VdiskId>,
    /// Served in this life of the process: what the scan found of them says nothing any more.
    pub served: BTreeSet<VdiskId>,
    /// Of vDisks in [`Slot::Gap`]: what an operator may decide to do without (L7).
    pub gaps: BTreeMap<VdiskId, KnownGap>,
    /// Since when whose turn it is, for contests (P19).
    pub ruled: Ruled,
    /// A vDisk with a DTL wants the log synced through this position.
    sync_wanted: u64,
}

impl State {
    #[must_use]
    pub fn new(log: Log, batch: Batch, scan: Scan, overlay_limit: u64) -> Self {
        let mut log = log;
        let mut unclaimed: BTreeMap<VdiskId, Vec<Found>> = BTreeMap::new();
        for found in &scan.records {
            // Nothing of what was found is overwritten before its vDisk has decided about it.
            log.pin(found.record.lap, found.record.len() as u64);
            unclaimed.entry(found.record.vdisk).or_default().push(found.clone());
        }
        Self {
            log,
            batch,
            acks: Vec::new(),
            syncs: Vec::new(),
            volumes: BTreeMap::new(),
            scan,
            unclaimed,
            pending_bytes: 0,
            overlay_limit,
            next_ticket: 0,
            preparing: None,
            sync_since: None,
            log_failed: false,
            log_problem: None,
            stopping: false,
            draining: false,
            following: BTreeMap::new(),
            protected: BTreeSet::new(),
            served: BTreeSet::new(),
            gaps: BTreeMap::new(),
            ruled: Ruled::default(),
            sync_wanted: 0,
        }
    }

    /// Bytes of data in memory that aren't in the backend yet.
    #[must_use]
    pub const fn pending_bytes(&self) -> u64 {
        self.pending_bytes
    }

    pub const fn add_pending(&mut self, bytes: u64) {
        self.pending_bytes += bytes;
    }

    /// How far the opening is.
    #[must_use]
    pub fn opening(&self, vdisk: VdiskId) -> Option<Stage> {
        match self.volumes.get(&vdisk) {
            Some(Slot::Opening(stage)) => Some(*stage),
            Some(_) | None => None,
        }
    }

    pub fn opens(&mut self, vdisk: VdiskId, stage: Stage) {
        if let Some(Slot::Opening(now)) = self.volumes.get_mut(&vdisk) {
            *now = stage;
        }
    }

    /// # Errors
    /// What the caller of a vDisk that isn't served here is told.
    pub fn serving(&mut self, vdisk: VdiskId) -> Result<&mut Serving, WireError> {
        match self.volumes.get_mut(&vdisk) {
            Some(Slot::Serving(serving)) => Ok(serving),
            Some(Slot::Opening(stage @ Stage::NoRoom { .. })) => {
                let message = format!("the vDisk can't be opened here: {stage}");
                Err(WireError::retry(code::NO_ROOM, message))
            }
            Some(Slot::Opening(stage)) => {
                let message = format!("the vDisk is being opened here ({stage}); try again");
                Err(WireError::retry(code::RECOVERING, message))
            }
            Some(Slot::Gap(reason)) => Err(WireError::refuse(code::GAP, reason.clone())),
            Some(Slot::Fenced(reason) | Slot::Elsewhere(reason)) => {
                Err(WireError::new(ErrorClass::Redirect, code::NOT_OWNER, reason.clone()))
            }
            Some(Slot::Deleting) => {
                Err(WireError::refuse(code::NO_VDISK, "the vDisk is being deleted"))
            }
            None => Err(WireError::refuse(
                code::NOT_ATTACHED,
                "the vDisk isn't served here: locate it again",
            )),
        }
    }

    /// What was asked of the vDisks since the last time goes into their rates.
    pub fn fold_demand(&mut self, now: Now, damping: Duration) {
        for slot in self.volumes.values_mut() {
            if let Slot::Serving(serving) = slot {
                serving.demand.fold(now, damping);
            }
        }
    }

    /// A flush: answered at once when everything of the vDisk is durable, else after the next sync.
    pub fn flush(&mut self, vdisk: VdiskId, responder: Responder) {
        let synced = self.log.synced();
        let Some(Slot::Serving(serving)) = self.volumes.get_mut(&vdisk) else { return };
        let (epoch, lsn, end) = (serving.core.epoch(), serving.core.last_lsn(), serving.last_end);
        if let Some(protected) = serving.protected() {
            let waiter = Waiter { responder, epoch, lsn, need: Need::Flushed };
            return self.wait_protected(protected, waiter, end);
        }
        let waiter = SyncWaiter { responder, epoch, lsn, end, is_flush: true };
        if end <= synced {
            waiter.answer();
        } else {
            self.syncs.push(waiter);
        }
    }

    /// Everything that is to be written now, and who is answered then.
    pub fn take_batch(&mut self) -> Batch {
        std::mem::take(&mut self.batch)
    }

    /// The batch is in the page cache.
    pub fn appended(&mut self, mut batch: Batch) {
        batch.clear();
        if self.batch.is_empty() {
            self.batch = batch;
        }
        let synced = self.log.synced();
        let mut acks = std::mem::take(&mut self.acks);
        for ack in acks.drain(..) {
            let Ack { responder, epoch, lsn, end, durable, protected } = ack;
            if let Some(vdisk) = protected {
                let need = if durable { Need::WrittenDurably } else { Need::Written };
                self.wait_protected(vdisk, Waiter { responder, epoch, lsn, need }, end);
                continue;
            }
            let waiter = SyncWaiter { responder, epoch, lsn, end, is_flush: false };
            if durable && synced < end { self.syncs.push(waiter) } else { waiter.answer() }
        }
        // Its room is kept for the next ones.
        self.acks = acks;
    }

    /// The log is synced further: answers whom that covers.
    pub fn answer_synced(&mut self) {
        let synced = self.log.synced();
        let (done, waiting): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.syncs).into_iter().partition(|waiter| waiter.end <= synced);
        self.syncs = waiting;
        for waiter in done {
            waiter.answer();
        }
        self.synced_protected();
    }

    #[must_use]
    pub fn wants_sync(&self) -> bool {
        !self.syncs.is_empty() || self.log.synced() < self.sync_wanted || self.log.wants_sync()
    }

    #[must_use]
    pub fn has_answers(&self) -> bool {
        !self.acks.is_empty() || !self.batch.is_empty()
    }

    /// Frees what a vDisk committed, and forgets it.
    pub fn drop_through(&mut self, vdisk: VdiskId, lsn: Lsn) {
        let Some(Slot::Serving(serving)) = self.volumes.get_mut(&vdisk) else { return };
        let before = serving.core.pending_bytes();
        for (lap, bytes) in serving.core.drop_through(lsn) {
            self.log.release(lap, bytes);
        }
        self.pending_bytes -= before - serving.core.pending_bytes();
        let committed = serving.core.committed_lsn();
        serving.committed.send_replace(committed);
        if let Some(protection) = &serving.protection {
            protection.owner.backend_has(committed);
            serving.tend();
        }
    }

    /// Takes a vDisk out of service.
    pub fn stop_serving(
        &mut self,
        vdisk: VdiskId,
        slot: Slot,
        error: &WireError,
        records: Records,
    ) {
        if let Some(Slot::Serving(mut serving)) = self.volumes.insert(vdisk, slot) {
            serving.fail_waiting(error);
            self.protected.remove(&vdisk);
            if let Some(protection) = &serving.protection {
                protection.owner.stop();
            }
            self.pending_bytes -= serving.core.pending_bytes();
            if records == Records::Release {
                for (lap, bytes) in serving.core.placements() {
                    self.log.release(lap, bytes);
                }
            }
            serving.committer.notify_one();
        }
    }

    /// A vDisk is served from now on.
    pub fn begin_serving(&mut self, mut serving: Serving) {
        let vdisk = serving.core.vdisk();
        if let Some(protection) = &mut serving.protection {
            // What recovery placed may have been synced meanwhile, with others' records.
            protection.synced(self.log.synced());
        }
        self.add_pending(serving.core.pending_bytes());
        self.served.insert(vdisk);
        self.gaps.remove(&vdisk);
        if serving.protection.is_some() {
            self.protected.insert(vdisk);
        }
        self.volumes.insert(vdisk, Slot::Serving(Box::new(serving)));
    }

    /// What the log has of a vDisk that isn't this router's pins nothing.
    pub fn release_unclaimed(&mut self, vdisk: VdiskId) {
        for found in self.unclaimed.remove(&vdisk).unwrap_or_default() {
            self.log.release(found.record.lap, found.record.len() as u64);
        }
    }

    /// The log failed: nobody who waits for it can be told yes.
    pub fn fail_all(&mut self, error: &WireError) {
        self.log_failed = true;
        for ack in self.acks.drain(..) {
            ack.responder.fail(error.clone());
        }
        for waiter in self.syncs.drain(..) {
            waiter.responder.fail(error.clone());
        }
        for slot in self.volumes.values_mut() {
            if let Slot::Serving(serving) = slot {
                serving.fail_waiting(error);
            }
        }
    }
}
