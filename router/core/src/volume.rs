//! One vDisk: which LSN a change gets, which unit it belongs to, what is committed.
//!
//! ```text
//!  accept()            seal                 next_unit()         unit_done() in order     drop_through()
//!    ──▶ open unit ───────────▶ sealed queue ──────────▶ in flight ───────────────▶ committed ──────▶ forgotten
//! ```
//!
//! A unit is a prefix of what isn't sealed yet, and becomes one SCO with its TLog part, committed as a whole (P7). Units
//! are numbered and committed in LSN order; several may be in flight, each naming its predecessor (P18).
//!
//! Invariant: `committed <= sealed <= last`, pending changes have consecutive LSNs from `committed + 1` on, and units cover
//! them without gaps.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use model::{
    AttachmentGeneration, Cluster, ClusterRange, Epoch, Lap, Lsn, ObjectId, RequestSeq, ScoNumber,
    VdiskId,
};
use wire::router::UnmapKind;

use crate::CLUSTER;
use crate::applied::AppliedMap;
use crate::dtl::block;
use crate::log::Placement;
use crate::log::pool::Entry;
use crate::log::record::Op;
use crate::overlay::Overlay;

/// Changes in one unit at most: bounds the TLog part even when nothing but one hot cluster is written.
const UNIT_CHANGES_MAX: usize = 1 << 16;

/// A change of whole clusters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    Write { cluster: Cluster, data: Bytes, checksums: Vec<u32> },
    Unmap { range: ClusterRange, kind: UnmapKind },
}

impl Change {
    #[must_use]
    pub fn range(&self) -> ClusterRange {
        match self {
            Self::Write { cluster, checksums, .. } => {
                ClusterRange { start: *cluster, end: Cluster(cluster.0 + checksums.len() as u64) }
            }
            Self::Unmap { range, .. } => *range,
        }
    }

    /// Bytes of data.
    #[must_use]
    pub const fn data_len(&self) -> u64 {
        match self {
            Self::Write { data, .. } => data.len() as u64,
            Self::Unmap { .. } => 0,
        }
    }

    /// (checksums, payload) of its log record, for its size.
    #[must_use]
    pub const fn record_shape(&self) -> (usize, usize) {
        match self {
            Self::Write { data, checksums, .. } => (checksums.len(), data.len()),
            Self::Unmap { .. } => (0, 0),
        }
    }
}

/// Whose request a change belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    pub generation: AttachmentGeneration,
    pub seq: RequestSeq,
    /// With this change the request is applied.
    pub last: bool,
}

#[derive(Debug)]
struct Pending {
    change: Change,
    stamp: Stamp,
    epoch: Epoch,
    placement: Placement,
}

/// What becomes one SCO.
#[derive(Debug, Clone)]
pub struct Unit {
    pub object: ObjectId,
    pub predecessor: Option<ObjectId>,
    pub first_lsn: Lsn,
    pub last_lsn: Lsn,
    pub size_bytes: u64,
    pub epochs: Vec<(Epoch, Lsn)>,
    pub applied: AppliedMap,
    pub changes: Vec<(Lsn, Change)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum UnitState {
    Sealed,
    InFlight,
    Done,
}

#[derive(Debug)]
struct Sealed {
    object: ObjectId,
    first_lsn: Lsn,
    last_lsn: Lsn,
    applied: AppliedMap,
    state: UnitState,
}

/// A unit that is committed, and every one before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Committed {
    pub object: ObjectId,
    pub last_lsn: Lsn,
}

/// What the backend holds when a vDisk is opened.
#[derive(Debug, Clone, Default)]
pub struct HeadState {
    pub object: Option<ObjectId>,
    pub last_lsn: Lsn,
    pub applied: AppliedMap,
    pub epochs: BTreeMap<Epoch, Lsn>,
}

/// How a vDisk is opened.
#[derive(Debug, Clone)]
pub struct Opening {
    pub vdisk: VdiskId,
    pub epoch: Epoch,
    pub size_bytes: u64,
    /// Clusters after which a unit is full.
    pub unit_clusters: u32,
    pub head: HeadState,
}

/// Pending state of one vDisk.
#[derive(Debug)]
pub struct Volume {
    vdisk: VdiskId,
    epoch: Epoch,
    pub size_bytes: u64,
    unit_clusters: u64,
    pub overlay: Overlay,
    pending: VecDeque<Pending>,
    pending_bytes: u64,
    log_bytes: u64,
    committed: Lsn,
    sealed: Lsn,
    last: Lsn,
    open_clusters: u64,
    /// What the open unit takes of the log at a DTL target, and how much it may.
    open_copy: u64,
    unit_copy_max: u64,
    units: VecDeque<Sealed>,
    applied: AppliedMap,
    epochs: BTreeMap<Epoch, Lsn>,
    head: Option<ObjectId>,
    next_number: ScoNumber,
}

impl Volume {
    #[must_use]
    pub fn open(opening: Opening) -> Self {
        let Opening { vdisk, epoch, size_bytes, unit_clusters, head } = opening;
        let last = head.last_lsn;
        Self {
            vdisk,
            epoch,
            size_bytes,
            unit_clusters: u64::from(unit_clusters.max(1)),
            overlay: Overlay::default(),
            pending: VecDeque::new(),
            pending_bytes: 0,
            log_bytes: 0,
            committed: last,
            sealed: last,
            last,
            open_clusters: 0,
            open_copy: 0,
            unit_copy_max: u64::MAX,
            units: VecDeque::new(),
            applied: head.applied,
            epochs: head.epochs,
            next_number: head.object.map_or(ScoNumber(1), |object| object.number.next()),
            head: head.object,
        }
    }

    /// So much may a unit take at a DTL target: what only grows by being overwritten must not fill the log there (L8).
    pub const fn bound_units(&mut self, copy_max: u64) {
        self.unit_copy_max = copy_max;
    }

    #[must_use]
    pub const fn vdisk(&self) -> VdiskId {
        self.vdisk
    }

    #[must_use]
    pub const fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// LSN of the newest accepted change.
    #[must_use]
    pub const fn last_lsn(&self) -> Lsn {
        self.last
    }

    /// Everything up to here is in the backend and in the page map.
    #[must_use]
    pub const fn committed_lsn(&self) -> Lsn {
        self.committed
    }

    /// Bytes of data held in memory until they are committed.
    #[must_use]
    pub const fn pending_bytes(&self) -> u64 {
        self.pending_bytes
    }

    /// Bytes of log records that are still needed.
    #[must_use]
    pub const fn log_bytes(&self) -> u64 {
        self.log_bytes
    }

    #[must_use]
    pub const fn applied(&self) -> &AppliedMap {
        &self.applied
    }

    pub const fn applied_mut(&mut self) -> &mut AppliedMap {
        &mut self.applied
    }

    /// First LSN of each epoch that the backend's head or a pending change knows of (P10).
    #[must_use]
    pub const fn epochs(&self) -> &BTreeMap<Epoch, Lsn> {
        &self.epochs
    }

    /// A change that recovery found: it has an LSN and a place in the log already.
    pub fn replay(&mut self, found: Replayed) {
        assert_eq!(found.lsn, self.last.next(), "replay is contiguous");
        self.take(found.change, found.stamp, found.epoch, found.placement);
    }

    /// The log record of a change that would be accepted next.
    #[must_use]
    pub fn entry(&self, change: &Change, stamp: Stamp) -> Entry {
        self.entry_for(change, stamp, self.epoch, self.last.next())
    }

    /// A change that was given a place in the log; returns its LSN.
    pub fn accept(&mut self, change: Change, stamp: Stamp, placement: Placement) -> Lsn {
        self.take(change, stamp, self.epoch, placement);
        self.last
    }

    fn entry_for(&self, change: &Change, stamp: Stamp, epoch: Epoch, lsn: Lsn) -> Entry {
        let range = change.range();
        let (op, payload, checksums) = match change {
            Change::Write { data, checksums, .. } => (Op::Write, data.clone(), checksums.clone()),
            Change::Unmap { kind: UnmapKind::Trim, .. } => (Op::Trim, Bytes::new(), Vec::new()),
            Change::Unmap { kind: UnmapKind::Zero, .. } => (Op::Zero, Bytes::new(), Vec::new()),
        };
        Entry {
            vdisk: self.vdisk,
            epoch,
            lsn,
            generation: stamp.generation,
            seq: stamp.seq,
            last: stamp.last,
            copied: false,
            op,
            cluster: range.start,
            count: range.count(),
            checksums,
            payload,
        }
    }

    fn take(&mut self, change: Change, stamp: Stamp, epoch: Epoch, placement: Placement) {
        let clusters = match &change {
            Change::Write { checksums, .. } => checksums.len() as u64,
            Change::Unmap { .. } => 0,
        };
        let open_changes = self.last.0 - self.sealed.0;
        let copy = block::synced_alone(placement.bytes);
        if (0 < self.open_clusters && self.unit_clusters < self.open_clusters + clusters)
            || UNIT_CHANGES_MAX as u64 <= open_changes
            || self.unit_copy_max < self.open_copy.saturating_add(copy)
        {
            self.seal();
        }
        self.last = self.last.next();
        let lsn = self.last;
        self.epochs.entry(epoch).or_insert(lsn);
        match &change {
            Change::Write { cluster, data, checksums } => {
                for (index, checksum) in checksums.iter().enumerate() {
                    let data = data.slice(index * CLUSTER..(index + 1) * CLUSTER);
                    let cluster = Cluster(cluster.0 + index as u64);
                    let replaced = self.overlay.write(lsn, cluster, data, *checksum);
                    if replaced.is_none_or(|old| old <= self.sealed) {
                        self.open_clusters += 1;
                    }
                }
            }
            Change::Unmap { range, .. } => self.overlay.unmap(lsn, *range),
        }
        self.pending_bytes += change.data_len();
        self.log_bytes += placement.bytes;
        self.open_copy += copy;
        if stamp.last {
            self.applied.insert(stamp.generation, stamp.seq);
        }
        self.pending.push_back(Pending { change, stamp, epoch, placement });
        if self.unit_clusters <= self.open_clusters {
            self.seal();
        }
    }

    /// Ends the open unit, if it holds anything. Called when it is full, and early for log pressure, sync, detach,
    /// resize and shutdown; never by a timer at light load: the log is durable, and hot clusters die in it.
    pub fn seal(&mut self) {
        if self.last == self.sealed {
            return;
        }
        let object = ObjectId { vdisk: self.vdisk, epoch: self.epoch, number: self.next_number };
        self.next_number = self.next_number.next();
        self.units.push_back(Sealed {
            object,
            first_lsn: self.sealed.next(),
            last_lsn: self.last,
            applied: self.applied.clone(),
            state: UnitState::Sealed,
        });
        self.sealed = self.last;
        (self.open_clusters, self.open_copy) = (0, 0);
    }

    /// The next unit to store, when fewer than `in_flight_max` are on their way.
    pub fn next_unit(&mut self, in_flight_max: usize) -> Option<Unit> {
        let started = self.units.iter().filter(|unit| unit.state != UnitState::Sealed).count();
        if in_flight_max <= started {
            return None;
        }
        let at = self.units.iter().position(|unit| unit.state == UnitState::Sealed)?;
        let predecessor = match at {
            0 => self.head,
            _ => Some(self.units[at - 1].object),
        };
        let sealed = &mut self.units[at];
        sealed.state = UnitState::InFlight;
        let (first, last) = (sealed.first_lsn, sealed.last_lsn);
        let skip = model::usize_of(first.0 - self.committed.0 - 1);
        let count = model::usize_of(last.0 - first.0 + 1);
        let changes = self.pending.iter().skip(skip).take(count).zip(first.0..);
        Some(Unit {
            object: sealed.object,
            predecessor,
            first_lsn: first,
            last_lsn: last,
            size_bytes: self.size_bytes,
            epochs: epochs_between(&self.epochs, first, last),
            applied: sealed.applied.clone(),
            changes: changes.map(|(pending, lsn)| (Lsn(lsn), pending.change.clone())).collect(),
        })
    }

    /// The backend stored a unit. Returns what is committed now: a unit counts once all before it do.
    pub fn unit_done(&mut self, object: ObjectId) -> Vec<Committed> {
        if let Some(unit) = self.units.iter_mut().find(|unit| unit.object == object) {
            unit.state = UnitState::Done;
        }
        let mut committed = Vec::new();
        while let Some(unit) = self.units.pop_front_if(|unit| unit.state == UnitState::Done) {
            self.head = Some(unit.object);
            committed.push(Committed { object: unit.object, last_lsn: unit.last_lsn });
        }
        committed
    }

    /// The page map holds everything up to `lsn`: forget it, and free its log records.
    pub fn drop_through(&mut self, lsn: Lsn) -> Vec<(Lap, u64)> {
        assert!(lsn <= self.sealed, "only committed units are dropped");
        let mut released = Vec::new();
        while self.committed < lsn {
            let pending = self.pending.pop_front().expect("one change per pending LSN");
            self.committed = self.committed.next();
            match &pending.change {
                Change::Write { .. } => {
                    for cluster in pending.change.range().iter() {
                        self.overlay.drop_write(self.committed, cluster);
                    }
                }
                Change::Unmap { range, .. } => self.overlay.drop_unmap(self.committed, *range),
            }
            self.pending_bytes -= pending.change.data_len();
            self.log_bytes -= pending.placement.bytes;
            released.push((pending.placement.lap, pending.placement.bytes));
        }
        released
    }

    /// Nothing waits for the backend.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.committed == self.last
    }

    /// Units sealed or on their way.
    #[must_use]
    pub fn units(&self) -> usize {
        self.units.len()
    }

    /// The object committed last.
    #[must_use]
    pub const fn head(&self) -> Option<ObjectId> {
        self.head
    }

    /// The segment that holds the oldest record still needed.
    #[must_use]
    pub fn oldest_lap(&self) -> Option<Lap> {
        self.pending.iter().map(|pending| pending.placement.lap).min()
    }

    /// The segment that holds the oldest record of the open unit; `None`: that is empty.
    #[must_use]
    pub fn oldest_open_lap(&self) -> Option<Lap> {
        let open = self.pending.iter().skip(model::usize_of(self.sealed.0 - self.committed.0));
        open.map(|pending| pending.placement.lap).min()
    }

    /// Every log record still needed: (segment, bytes).
    #[must_use]
    pub fn placements(&self) -> Vec<(Lap, u64)> {
        self.pending
            .iter()
            .map(|pending| (pending.placement.lap, pending.placement.bytes))
            .collect()
    }

    /// Every change that isn't in the backend, in LSN order.
    #[must_use]
    pub fn pending_entries(&self) -> Vec<Entry> {
        let pending = self.pending.iter().zip(self.committed.0 + 1..);
        pending.map(|(p, lsn)| self.entry_for(&p.change, p.stamp, p.epoch, Lsn(lsn))).collect()
    }

    /// Records of this vDisk in segment `lap`, to be copied forward: (LSN, record).
    #[must_use]
    pub fn records_in(&self, lap: Lap) -> Vec<(Lsn, Entry)> {
        let pending = self.pending.iter().zip(self.committed.0 + 1..);
        pending
            .filter(|(pending, _)| pending.placement.lap == lap)
            .map(|(pending, lsn)| {
                let entry = self.entry_for(&pending.change, pending.stamp, pending.epoch, Lsn(lsn));
                (Lsn(lsn), Entry { copied: true, ..entry })
            })
            .collect()
    }

    /// The record of `lsn` has a new place; returns the old one. The caller frees it once the copy is placed: its file
    /// isn't overwritten before a list behind the copy is synced.
    pub fn moved(&mut self, lsn: Lsn, placement: Placement) -> Option<Placement> {
        let index = lsn.0.checked_sub(self.committed.0 + 1)?;
        let pending = self.pending.get_mut(model::usize_of(index))?;
        self.log_bytes = self.log_bytes - pending.placement.bytes + placement.bytes;
        Some(std::mem::replace(&mut pending.placement, placement))
    }
}

/// A change that recovery found.
#[derive(Debug)]
pub struct Replayed {
    pub lsn: Lsn,
    pub epoch: Epoch,
    pub change: Change,
    pub stamp: Stamp,
    pub placement: Placement,
}

/// The epochs that own LSNs of `first..=last`, with their first LSN.
fn epochs_between(epochs: &BTreeMap<Epoch, Lsn>, first: Lsn, last: Lsn) -> Vec<(Epoch, Lsn)> {
    let started_before = epochs.iter().rev().find(|(_, from)| **from < first);
    let within = epochs.iter().filter(|(_, from)| first <= **from && **from <= last);
    started_before.into_iter().chain(within).map(|(epoch, from)| (*epoch, *from)).collect()
}
