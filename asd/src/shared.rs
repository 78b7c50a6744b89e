//! What all threads of an ASD see: the files, the index while it is open, the two queues, and how the disk is doing.
//!
//! Invariant: the snapshot is written by the disk thread alone, after each batch; everybody else reads it.

use crate::disk::Files;
use crate::index::RocksIndex;
use crate::queue::Queue;
use crate::reader::ReadJob;
use crate::writer::WriteJob;
use asd_core::store::{Counters, Usage};
use model::OsdId;
use runtime::peer::Identity;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use wire::asd::{DiskState, Stats};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// The disk is being read; nothing is served yet.
    Recovering,
    Open,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Snapshot {
    pub phase: Phase,
    pub state: DiskState,
    pub usage: Usage,
    pub counters: Counters,
}

/// Counted by readers.
#[derive(Debug, Default)]
pub(crate) struct Reads {
    pub gets: AtomicU64,
    pub corruptions: AtomicU64,
}

pub(crate) struct Shared {
    pub identity: Arc<Identity>,
    pub osd: OsdId,
    pub files: Arc<Files>,
    /// `None` while it is being opened.
    index: RwLock<Option<RocksIndex>>,
    pub writes: Queue<WriteJob>,
    pub reads: Queue<ReadJob>,
    pub read_counters: Reads,
    snapshot: Mutex<Snapshot>,
}

impl Shared {
    pub(crate) fn new(
        identity: Arc<Identity>,
        osd: OsdId,
        files: Arc<Files>,
        capacity: u64,
        maintenance_rate: u64,
    ) -> Self {
        let now = runtime::clock::boot_now();
        let snapshot = Snapshot {
            phase: Phase::Recovering,
            state: DiskState::ReadOnly,
            usage: Usage { capacity, ..Usage::default() },
            counters: Counters::default(),
        };
        Self {
            identity,
            osd,
            files,
            index: RwLock::new(None),
            writes: Queue::new(maintenance_rate, now),
            reads: Queue::new(maintenance_rate, now),
            read_counters: Reads::default(),
            snapshot: Mutex::new(snapshot),
        }
    }

    pub(crate) fn index(&self) -> Option<RocksIndex> {
        self.index.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn set_index(&self, index: Option<RocksIndex>) {
        *self.index.write().unwrap_or_else(PoisonError::into_inner) = index;
    }

    pub(crate) fn publish(&self, snapshot: Snapshot) {
        *self.snapshot.lock().unwrap_or_else(PoisonError::into_inner) = snapshot;
    }

    /// How the disk is doing; a directory that is gone is noticed here even when nothing is written.
    pub(crate) fn snapshot(&self) -> Snapshot {
        let mut snapshot = *self.snapshot.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.files.is_there() {
            snapshot.state = DiskState::Failed;
        }
        snapshot
    }

    pub(crate) fn stats(&self) -> Stats {
        let Snapshot { state, usage, counters, .. } = self.snapshot();
        Stats {
            state,
            capacity_bytes: usage.capacity,
            used_bytes: usage.used,
            live_bytes: usage.live,
            fragments: usage.fragments,
            segments: usage.segments,
            puts: counters.puts,
            gets: self.read_counters.gets.load(Ordering::Relaxed),
            deletes: counters.deletes,
            syncs: counters.syncs,
            corruptions: counters.corruptions
                + self.read_counters.corruptions.load(Ordering::Relaxed),
            io_errors: counters.io_errors,
        }
    }

    /// The word for the state in `status`.
    pub(crate) fn state_name(&self) -> &'static str {
        let snapshot = self.snapshot();
        match (snapshot.phase, snapshot.state) {
            (_, DiskState::Failed) => "failed",
            (Phase::Recovering, _) => "recovering",
            (Phase::Open, DiskState::Writable) => "running",
            (Phase::Open, DiskState::Full) => "full",
            (Phase::Open, DiskState::ReadOnly) => "read-only",
        }
    }

    /// Facts for `status`. All values are numbers, hexadecimal digits or fixed words, so nothing needs escaping.
    pub(crate) fn details_json(&self) -> String {
        let stats = self.stats();
        format!(
            concat!(
                r#"{{"osd":"{}","state":"{}","capacity_bytes":{},"used_bytes":{},"live_bytes":{},"fragments":{},"#,
                r#""corruptions":{},"io_errors":{},"segments":{},"puts":{},"gets":{},"deletes":{},"syncs":{}}}"#
            ),
            self.osd,
            self.state_name(),
            stats.capacity_bytes,
            stats.used_bytes,
            stats.live_bytes,
            stats.fragments,
            stats.corruptions,
            stats.io_errors,
            stats.segments,
            stats.puts,
            stats.gets,
            stats.deletes,
            stats.syncs,
        )
    }
}
