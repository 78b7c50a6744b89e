//! The store's twin in memory, for simulations: a crash keeps what was synced and any beginning of what wasn't.
//!
//! It keeps the promise of [`Store`] and no more: that is what makes it a test of the replica.

use crate::log_index::{LogIndex, Position};
use crate::store::{LogWrite, Store, StoreError};
use crate::view::{Changes, Span, View, Visit};
use bytes::Bytes;
use raft::eraftpb::{ConfState, Entry, HardState, Snapshot};
use raft::{GetEntriesContext, RaftState, Storage, StorageError};
use std::collections::BTreeMap;
use wire::arakoon::Direction;

/// One write, as the disk would see it.
#[derive(Debug, Clone)]
enum Write {
    Snapshot(Snapshot),
    Append(Vec<Entry>),
    Hard(HardState),
    Apply { changes: Changes, applied: u64 },
    Compact(u64),
}

#[derive(Debug, Clone)]
struct State {
    conf: ConfState,
    hard: HardState,
    index: LogIndex,
    entries: BTreeMap<u64, Entry>,
    rows: BTreeMap<Bytes, Bytes>,
    applied: u64,
}

impl State {
    fn write(&mut self, write: Write) -> Result<(), StoreError> {
        match write {
            Write::Snapshot(snapshot) => {
                let metadata = snapshot.get_metadata();
                let rows: Vec<(Bytes, Bytes)> = wire::decode_all(snapshot.data.clone())
                    .map_err(|cause| StoreError::corrupt(format!("snapshot: {cause}")))?;
                self.rows = rows.into_iter().collect();
                self.entries.clear();
                self.index = LogIndex::new(Position { index: metadata.index, term: metadata.term });
                self.applied = metadata.index;
                self.conf = metadata.get_conf_state().clone();
                self.hard.commit = self.hard.commit.max(metadata.index);
            }
            Write::Append(entries) => {
                for entry in entries {
                    self.index.append(Position { index: entry.index, term: entry.term });
                    self.entries.split_off(&entry.index);
                    self.entries.insert(entry.index, entry);
                }
            }
            Write::Hard(hard) => self.hard = hard,
            Write::Apply { changes, applied } => {
                for (row, value) in changes {
                    match value {
                        Some(value) => self.rows.insert(row, value),
                        None => self.rows.remove(&row),
                    };
                }
                self.applied = applied;
                self.hard.commit = self.hard.commit.max(applied);
            }
            Write::Compact(through) => {
                self.index.compact(through);
                self.entries = self.entries.split_off(&(through + 1));
            }
        }
        Ok(())
    }
}

/// See the module.
#[derive(Debug)]
pub struct MemoryStore {
    /// What survives any crash.
    synced: State,
    /// What was written since, in order.
    unsynced: Vec<Write>,
    /// Both together: what the running node sees.
    live: State,
    /// Counts, for tests of how often it syncs.
    syncs: u64,
}

impl MemoryStore {
    /// An empty store of a cluster of these nodes.
    #[must_use]
    pub fn new(voters: Vec<u64>) -> Self {
        let conf = ConfState { voters, ..ConfState::default() };
        let state = State {
            conf,
            hard: HardState::default(),
            index: LogIndex::new(Position::default()),
            entries: BTreeMap::new(),
            rows: BTreeMap::new(),
            applied: 0,
        };
        Self { synced: state.clone(), unsynced: Vec::new(), live: state, syncs: 0 }
    }

    /// Writes that a crash may lose.
    #[must_use]
    pub fn unsynced(&self) -> usize {
        self.unsynced.len()
    }

    #[must_use]
    pub const fn syncs(&self) -> u64 {
        self.syncs
    }

    #[must_use]
    pub const fn rows(&self) -> &BTreeMap<Bytes, Bytes> {
        &self.live.rows
    }

    /// What a node finds after a crash that kept the first `kept` unsynced writes.
    ///
    /// # Errors
    /// Never for writes that were accepted before.
    pub fn crash(self, kept: usize) -> Result<Self, StoreError> {
        let mut state = self.synced;
        for write in self.unsynced.into_iter().take(kept) {
            state.write(write)?;
        }
        Ok(Self { synced: state.clone(), unsynced: Vec::new(), live: state, syncs: self.syncs })
    }

    fn write(&mut self, write: Write) -> Result<(), StoreError> {
        self.live.write(write.clone())?;
        self.unsynced.push(write);
        Ok(())
    }
}

impl Store for MemoryStore {
    fn persist(&mut self, write: LogWrite) -> Result<(), StoreError> {
        if let Some(snapshot) = write.snapshot {
            self.write(Write::Snapshot(snapshot))?;
        }
        if !write.entries.is_empty() {
            self.write(Write::Append(write.entries))?;
        }
        if let Some(hard) = write.hard_state {
            self.write(Write::Hard(hard))?;
        }
        if write.sync {
            self.syncs += 1;
            for write in std::mem::take(&mut self.unsynced) {
                self.synced.write(write)?;
            }
        }
        Ok(())
    }

    fn apply(&mut self, changes: Changes, applied: u64) -> Result<(), StoreError> {
        self.write(Write::Apply { changes, applied })
    }

    fn applied(&self) -> u64 {
        self.live.applied
    }

    fn compact(&mut self, through: u64) -> Result<(), StoreError> {
        self.write(Write::Compact(through))
    }

    fn log_bytes(&self) -> u64 {
        self.live.entries.values().map(|entry| model::u64_of(entry.data.len())).sum()
    }
}

impl View for MemoryStore {
    fn get(&self, row: &[u8]) -> Result<Option<Bytes>, StoreError> {
        View::get(&self.live.rows, row)
    }

    fn scan(
        &self,
        span: Span<'_>,
        direction: Direction,
        visit: &mut Visit<'_>,
    ) -> Result<(), StoreError> {
        self.live.rows.scan(span, direction, visit)
    }
}

impl Storage for MemoryStore {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(RaftState::new(self.live.hard.clone(), self.live.conf.clone()))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if low < self.live.index.first() {
            return Err(raft::Error::Store(StorageError::Compacted));
        }
        let mut entries: Vec<Entry> =
            self.live.entries.range(low..high).map(|(_, entry)| entry.clone()).collect();
        raft::util::limit_size(&mut entries, max_size.into());
        Ok(entries)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index < self.live.index.truncated().index {
            return Err(raft::Error::Store(StorageError::Compacted));
        }
        self.live.index.term(index).ok_or(raft::Error::Store(StorageError::Unavailable))
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.live.index.first())
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.live.index.last())
    }

    fn snapshot(&self, _request_index: u64, _to: u64) -> raft::Result<Snapshot> {
        let rows: Vec<(Bytes, Bytes)> =
            self.live.rows.iter().map(|(row, value)| (row.clone(), value.clone())).collect();
        let mut snapshot = Snapshot { data: wire::encode_to_bytes(&rows), ..Snapshot::default() };
        let metadata = snapshot.mut_metadata();
        metadata.index = self.live.applied;
        metadata.term = self.term(self.live.applied)?;
        *metadata.mut_conf_state() = self.live.conf.clone();
        Ok(snapshot)
    }
}
