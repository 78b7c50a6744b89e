//! The disk thread: the only one that writes.
//!
//! It takes everything that queued while the last batch was being synced, appends it in one go, syncs once, and answers: the
//! busier the disk, the larger the batches, with no timer anywhere. Between batches it compacts a little, within
//! maintenance's share, or without regard to it when puts are waiting for room.
//!
//! When the index can't be written, the store is opened again from the segments, at growing intervals, until it works.
//!
//! Invariant: no request is answered before the sync that covers it; none is left without an answer.

use crate::disk::{Files, SegmentDisk};
use crate::index::RocksIndex;
use crate::queue::{Portion, Taken};
use crate::reader::{is_too_late, too_late};
use crate::shared::{Phase, Shared, Snapshot};
use asd_core::index::IndexError;
use asd_core::space::Limits;
use asd_core::store::{
    Counters, Op, OpenError, Options, Outcome, Progress, Recovery, Store, Usage,
};
use model::{Now, OsdId};
use runtime::clock::boot_now;
use runtime::rpc::Responder;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::Instant;
use wire::asd::{DiskState, PutResult, PutResults, code as asd_code};
use wire::{ErrorClass, WireError};

/// The most that one sync covers: more would make the first of them wait too long.
const BATCH: Portion = Portion { jobs: 512, bytes: 16 << 20 };
/// Bytes copied between two batches.
const COMPACTION_STEP: u64 = 2 << 20;
/// When compaction can't go on, it is tried again after this long.
const BLOCKED_PAUSE: Duration = Duration::from_secs(5);
/// How often a disk that can't be written is asked whether it can.
const PROBE_EVERY: Duration = Duration::from_secs(2);
/// Between attempts to open a store that failed.
const REOPEN_MIN: Duration = Duration::from_millis(200);
const REOPEN_MAX: Duration = Duration::from_secs(10);

/// What a put or delete asks, checked at the door.
pub(crate) enum WriteRequest {
    /// `Err` = the answer is known already.
    Put(Vec<Result<Op, PutResult>>),
    Delete(Vec<Op>),
}

pub(crate) struct WriteJob {
    pub request: WriteRequest,
    pub deadline: Option<Instant>,
    pub responder: Responder,
}

/// Where the disk is and what it may hold.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub index_dir: PathBuf,
    pub limits: Limits,
    /// Bytes of the file system that segments leave free.
    pub reserve: u64,
}

type DiskStore = Store<SegmentDisk, RocksIndex>;

/// Opens the disk; an index that is damaged is deleted and made anew from the segments.
fn open_disk(
    files: &Arc<Files>,
    place: &Place,
    osd: OsdId,
) -> Result<(DiskStore, Recovery), OpenError> {
    let attempt = || {
        let index = RocksIndex::open(&place.index_dir)?;
        let disk = SegmentDisk::new(Arc::clone(files), place.reserve);
        Store::open(disk, index, Options { osd, limits: place.limits }, boot_now())
    };
    match attempt() {
        Err(OpenError::Index(IndexError::Damaged(problem))) => {
            tracing::warn!(%problem, "the index is damaged; it is rebuilt from the segments");
            std::fs::remove_dir_all(&place.index_dir)
                .map_err(|error| IndexError::Io(error.to_string()))?;
            attempt()
        }
        result => result,
    }
}

fn report(store: &DiskStore, recovery: Recovery) {
    let usage = store.usage();
    tracing::info!(
        fragments = usage.fragments,
        segments = usage.segments,
        replayed = recovery.replayed,
        rebuilt = recovery.rebuilt,
        wiped = recovery.wiped,
        "disk opened"
    );
    if recovery.lost + recovery.missing_segments > 0 {
        tracing::warn!(
            records = recovery.lost,
            segments = recovery.missing_segments,
            "acknowledged records are missing; their fragments must be repaired from the others"
        );
    }
}

pub(crate) struct Writer {
    shared: Arc<Shared>,
    place: Place,
    /// Counted by stores that were closed since.
    carried: Counters,
    /// The store's last known usage, while there is none.
    usage: Usage,
    reopen_in: Duration,
    compaction_after: Now,
}

impl Writer {
    pub(crate) fn new(shared: Arc<Shared>, place: Place) -> Self {
        let usage = Usage { capacity: place.limits.capacity(), ..Usage::default() };
        Self {
            shared,
            place,
            carried: Counters::default(),
            usage,
            reopen_in: REOPEN_MIN,
            compaction_after: Now::default(),
        }
    }

    /// Opens the store, says whether that worked, and serves until the queue is closed and empty.
    pub(crate) fn run(mut self, opened: oneshot::Sender<Result<(), OpenError>>) {
        let mut store = match self.open() {
            Ok(store) => Some(store),
            Err(error) => {
                // Nobody waits for it only when the process is ending anyway.
                let _ = opened.send(Err(error));
                return;
            }
        };
        let _ = opened.send(Ok(()));
        loop {
            let wait = self.wait(store.as_ref());
            match self.shared.writes.take(BATCH, wait, boot_now) {
                Taken::Closed => break,
                Taken::Jobs(jobs) => self.serve(store.as_mut(), jobs),
                Taken::Nothing => self.probe(store.as_mut()),
            }
            store = match store.filter(|store| store.broken().is_none()) {
                Some(mut store) => {
                    self.compact(&mut store);
                    Some(store)
                }
                None => self.reopen(),
            };
        }
        if let Some(mut store) = store {
            store.close(boot_now());
        }
        self.shared.set_index(None);
    }

    /// How long to wait for work; `None` when there is nothing else to do.
    fn wait(&self, store: Option<&DiskStore>) -> Option<Duration> {
        let Some(store) = store else { return Some(self.reopen_in) };
        let probe = store.needs_probe().then_some(PROBE_EVERY);
        if !store.compaction_is_due() {
            return probe;
        }
        let now = boot_now();
        let share = if store.is_tight() {
            Duration::ZERO
        } else {
            self.shared.writes.maintenance_wait(now)
        };
        let compaction = share.max(self.compaction_after.since(now));
        Some(probe.map_or(compaction, |probe| probe.min(compaction)))
    }

    fn open(&mut self) -> Result<DiskStore, OpenError> {
        // Nobody may hold the index that is perhaps about to be deleted.
        self.shared.set_index(None);
        let (store, recovery) = open_disk(&self.shared.files, &self.place, self.shared.osd)?;
        report(&store, recovery);
        self.shared.set_index(Some(store.index().clone()));
        self.reopen_in = REOPEN_MIN;
        self.publish(&store);
        Ok(store)
    }

    /// Opens the store again after its index failed. What was synced and not indexed is replayed.
    fn reopen(&mut self) -> Option<DiskStore> {
        self.shared.set_index(None);
        match self.open() {
            Ok(store) => {
                tracing::info!("the index works again");
                Some(store)
            }
            Err(error) => {
                tracing::warn!(%error, "the disk can't be opened again yet");
                self.reopen_in = (self.reopen_in * 2).min(REOPEN_MAX);
                self.publish_closed();
                None
            }
        }
    }

    fn probe(&mut self, store: Option<&mut DiskStore>) {
        if let Some(store) = store.filter(|store| store.needs_probe()) {
            store.probe(boot_now());
            self.publish(store);
        }
    }

    fn compact(&mut self, store: &mut DiskStore) {
        let now = boot_now();
        let may = store.compaction_is_due()
            && now >= self.compaction_after
            && (store.is_tight() || self.shared.writes.maintenance_wait(now).is_zero());
        if !may {
            return;
        }
        match store.compact(COMPACTION_STEP, now) {
            Progress::Idle => {}
            Progress::Copied(bytes) => self.shared.writes.charge_maintenance(bytes),
            Progress::Freed(bytes) => tracing::debug!(bytes, "segment freed"),
            Progress::Pinned(lap) => {
                tracing::warn!(%lap, "a segment holds damaged fragments and can't be emptied");
            }
            Progress::Blocked => self.compaction_after = now.plus(BLOCKED_PAUSE),
        }
        self.publish(store);
    }

    fn serve(&mut self, store: Option<&mut DiskStore>, jobs: Vec<WriteJob>) {
        let Some(store) = store else {
            for job in jobs {
                let message = "the disk is being opened again";
                job.responder.fail(WireError::retry(asd_code::RECOVERING, message));
            }
            return;
        };
        let mut ops = Vec::new();
        let mut waiting = Vec::with_capacity(jobs.len());
        for job in jobs {
            if is_too_late(job.deadline) {
                job.responder.fail(too_late());
                continue;
            }
            waiting.push((Pending::of(job.request, &mut ops), job.responder));
        }
        let mut outcomes = store.commit(&ops, boot_now()).into_iter();
        // Data may be released before the answers leave; the queue's bound counts only what waits.
        drop(ops);
        self.publish(store);
        let state = store.state();
        for (pending, responder) in waiting {
            pending.answer(&mut outcomes, state, responder);
        }
    }

    fn publish(&mut self, store: &DiskStore) {
        self.usage = store.usage();
        let before = self.shared.snapshot();
        let state = store.state();
        if before.phase == Phase::Open && before.state != state {
            tracing::warn!(from = ?before.state, to = ?state, "the disk's state changed");
        }
        let counters = sum(self.carried, store.counters());
        self.shared.publish(Snapshot { phase: Phase::Open, state, usage: self.usage, counters });
        if let Some(error) = store.broken() {
            tracing::warn!(%error, "the index failed; the disk is opened again");
            self.carried = counters;
        }
    }

    fn publish_closed(&self) {
        let state = DiskState::ReadOnly;
        let (usage, counters) = (self.usage, self.carried);
        self.shared.publish(Snapshot { phase: Phase::Open, state, usage, counters });
    }
}

const fn sum(a: Counters, b: Counters) -> Counters {
    Counters {
        puts: a.puts + b.puts,
        deletes: a.deletes + b.deletes,
        syncs: a.syncs + b.syncs,
        corruptions: a.corruptions + b.corruptions,
        io_errors: a.io_errors + b.io_errors,
        segments_freed: a.segments_freed + b.segments_freed,
        bytes_copied: a.bytes_copied + b.bytes_copied,
    }
}

/// A request of the batch under way.
enum Pending {
    /// Per item the answer, or `None` for the next outcome.
    Put(Vec<Option<PutResult>>),
    /// So many outcomes.
    Delete(usize),
}

impl Pending {
    fn of(request: WriteRequest, ops: &mut Vec<Op>) -> Self {
        match request {
            WriteRequest::Put(items) => Self::Put(
                items
                    .into_iter()
                    .map(|item| match item {
                        Ok(op) => {
                            ops.push(op);
                            None
                        }
                        Err(result) => Some(result),
                    })
                    .collect(),
            ),
            WriteRequest::Delete(deletes) => {
                let count = deletes.len();
                ops.extend(deletes);
                Self::Delete(count)
            }
        }
    }

    fn answer(
        self,
        outcomes: &mut impl Iterator<Item = Outcome>,
        state: DiskState,
        responder: Responder,
    ) {
        match self {
            Self::Put(items) => {
                let mut outcome = || outcomes.next().map_or(PutResult::Failed, put_result);
                let results =
                    items.into_iter().map(|known| known.unwrap_or_else(&mut outcome)).collect();
                responder.reply(&PutResults { results }, bytes::Bytes::new());
            }
            Self::Delete(count) => {
                let worst = outcomes.take(count).find(|outcome| *outcome != Outcome::Deleted);
                match worst {
                    None => responder.reply(&(), bytes::Bytes::new()),
                    Some(outcome) => responder.fail(delete_error(outcome, state)),
                }
            }
        }
    }
}

const fn put_result(outcome: Outcome) -> PutResult {
    match outcome {
        Outcome::Stored => PutResult::Stored,
        Outcome::Exists => PutResult::Exists,
        Outcome::Full => PutResult::Full,
        Outcome::Deleted | Outcome::Failed => PutResult::Failed,
    }
}

fn delete_error(outcome: Outcome, state: DiskState) -> WireError {
    if outcome == Outcome::Full {
        return WireError::retry(
            asd_code::FULL,
            "no room for a tombstone yet; compaction makes some",
        );
    }
    let class = if state == DiskState::Failed { ErrorClass::Fatal } else { ErrorClass::Retry };
    WireError::new(class, asd_code::DISK, "the disk can't be written")
}

#[cfg(test)]
mod tests;
