//! One RocksDB for Raft's log, its hard state and the rows, so that one sync covers all of a batch.
//!
//! | column family | key | value |
//! |---|---|---|
//! | `log` | index (8, big-endian) | entry record, see `arakoon_core::entry` |
//! | `meta` | name | [`meta`] records |
//! | `state_a`, `state_b` | row, see `arakoon_core::rows` | its value |
//!
//! One of the two state families is active; a snapshot is staged in the other and made active by the write that also
//! replaces the log. Invariant (that of `arakoon_core::Store`): RocksDB keeps writes in order, so after a crash it holds
//! all synced ones and a beginning of the rest. That none of the synced ones is missing, the [`witness`] checks.

mod meta;
mod open;
mod pages;
mod witness;

pub use open::{OpenError, OpenOptions};
pub use pages::{Page, SnapshotPages};

use arakoon_core::entry;
use arakoon_core::log_index::{LogIndex, Position};
use arakoon_core::view::{Changes, Span, Visit};
use arakoon_core::{LogWrite, Store, StoreError, View};
use bytes::Bytes;
use meta::{Family, Hard, Truncated};
use raft::eraftpb::{ConfState, Entry, HardState, Snapshot};
use raft::{GetEntriesContext, RaftState, Storage, StorageError};
use rocksdb::{
    BoundColumnFamily, DBWithThreadMode, IteratorMode, MultiThreaded, ReadOptions, WriteBatch,
    WriteOptions,
};
use std::sync::Arc;
use wire::arakoon::Direction;
use witness::Witness;

pub type Db = DBWithThreadMode<MultiThreaded>;

/// See the module. Made by [`RocksStore::open`].
pub struct RocksStore {
    db: Arc<Db>,
    witness: Witness,
    sequence: u64,
    active: Family,
    conf: ConfState,
    hard: HardState,
    index: LogIndex,
    /// Chain at the end of the log.
    chain: u32,
    applied: u64,
    log_bytes: u64,
    pages: SnapshotPages,
    /// The snapshot that lies complete in the inactive family.
    staged: Option<Bytes>,
}

impl RocksStore {
    /// Serves snapshots that this store made to the nodes they were made for.
    #[must_use]
    pub fn pages(&self) -> SnapshotPages {
        self.pages.clone()
    }

    /// It began with an empty directory, and hasn't been told or found out yet that it may vote.
    pub fn is_joining(&self) -> Result<bool, StoreError> {
        meta::get::<meta::Joining>(&self.db, meta::JOINING).map(|record| record.is_some())
    }

    /// It votes from now on, also after a crash.
    pub fn end_joining(&mut self) -> Result<(), StoreError> {
        let mut batch = WriteBatch::default();
        batch.delete_cf(&self.family("meta"), meta::JOINING);
        let mut options = WriteOptions::default();
        options.set_sync(true);
        self.db.write_opt(batch, &options).map_err(io)
    }

    /// Called every tick: what was synced becomes durable in the witness, too.
    pub fn settle(&mut self) {
        self.witness.settle();
    }

    #[must_use]
    pub fn db_bytes(&self) -> u64 {
        let sizes = ["rocksdb.total-sst-files-size", "rocksdb.cur-size-all-mem-tables"];
        let families = ["log", "meta", "state_a", "state_b"];
        let size = |family: &str, property| {
            let family = self.db.cf_handle(family)?;
            self.db.property_int_value_cf(&family, property).ok().flatten()
        };
        families
            .iter()
            .flat_map(|family| sizes.map(|property| size(family, property)))
            .flatten()
            .sum()
    }

    /// Empties the inactive family for a new snapshot.
    pub fn begin_staging(&mut self) -> Result<(), StoreError> {
        self.staged = None;
        let name = self.active.other().name();
        self.db.drop_cf(name).map_err(io)?;
        self.db.create_cf(name, &open::family_options()).map_err(io)
    }

    /// Adds rows to the snapshot that is being staged.
    pub fn stage(&mut self, rows: Vec<(Bytes, Bytes)>) -> Result<(), StoreError> {
        let family = self.family(self.active.other().name());
        let mut batch = WriteBatch::default();
        for (row, value) in rows {
            batch.put_cf(&family, row, value);
        }
        self.db.write(batch).map_err(io)
    }

    /// The staged rows are all of the snapshot with this data.
    pub fn finish_staging(&mut self, data: Bytes) {
        self.staged = Some(data);
    }

    fn family(&self, name: &str) -> Arc<BoundColumnFamily<'_>> {
        self.db.cf_handle(name).expect("all families are made when the store is opened")
    }

    fn active_family(&self) -> Arc<BoundColumnFamily<'_>> {
        self.family(self.active.name())
    }

    /// The chain after the entry at `index`.
    fn chain_at(&self, index: u64) -> Result<u32, StoreError> {
        if index == self.index.last() {
            return Ok(self.chain);
        }
        if index == self.index.truncated().index {
            return self.truncated_chain();
        }
        self.entry(index).map(|(_, chain)| chain)
    }

    fn truncated_chain(&self) -> Result<u32, StoreError> {
        let truncated: Option<Truncated> = meta::get(&self.db, meta::TRUNCATED)?;
        Ok(truncated.map_or(entry::CHAIN_START, |truncated| truncated.chain))
    }

    fn entry(&self, index: u64) -> Result<(Entry, u32), StoreError> {
        let row = self.db.get_cf(&self.family("log"), index.to_be_bytes()).map_err(io)?;
        let row =
            row.ok_or_else(|| StoreError::corrupt(format!("log entry {index} is missing")))?;
        entry::decode(index, Bytes::from(row))
            .map_err(|cause| StoreError::corrupt(cause.to_string()))
    }

    fn append(&mut self, batch: &mut WriteBatch, entries: Vec<Entry>) -> Result<(), StoreError> {
        let Some(first) = entries.first().map(|entry| entry.index) else { return Ok(()) };
        let before = self.index.last();
        let mut chain = self.chain_at(first - 1)?;
        let family =
            self.db.cf_handle("log").expect("all families are made when the store is opened");
        for entry in entries {
            let (row, next) = entry::encode(chain, &entry);
            chain = next;
            self.log_bytes += model::u64_of(row.len());
            batch.put_cf(&family, entry.index.to_be_bytes(), row);
            self.index.append(Position { index: entry.index, term: entry.term });
        }
        self.chain = chain;
        if self.index.last() < before {
            let from = (self.index.last() + 1).to_be_bytes();
            batch.delete_range_cf(&family, from, (before + 1).to_be_bytes());
        }
        Ok(())
    }

    /// Makes the staged rows the rows, and the log empty behind them.
    fn install(&mut self, batch: &mut WriteBatch, snapshot: &Snapshot) -> Result<(), StoreError> {
        if self.staged.take().as_ref() != Some(&snapshot.data) {
            return Err(StoreError::corrupt("a snapshot was accepted that isn't staged"));
        }
        let metadata = snapshot.get_metadata();
        let at = Position { index: metadata.index, term: metadata.term };
        self.active = self.active.other();
        self.applied = at.index;
        self.conf = metadata.get_conf_state().clone();
        self.hard.commit = self.hard.commit.max(at.index);
        self.index = LogIndex::new(at);
        self.chain = entry::CHAIN_START;
        self.log_bytes = 0;
        batch.delete_range_cf(&self.family("log"), 0u64.to_be_bytes(), u64::MAX.to_be_bytes());
        let meta = self.family("meta");
        meta::put(batch, &meta, meta::ACTIVE, &self.active.record());
        meta::put(batch, &meta, meta::APPLIED, &meta::Applied::new(at.index));
        meta::put(batch, &meta, meta::TRUNCATED, &Truncated::new(at, entry::CHAIN_START));
        meta::put(batch, &meta, meta::VOTERS, &meta::Voters::new(self.conf.voters.clone()));
        Ok(())
    }
}

impl Drop for RocksStore {
    fn drop(&mut self) {
        self.pages.close();
    }
}

impl Store for RocksStore {
    fn persist(&mut self, write: LogWrite) -> Result<(), StoreError> {
        let mut batch = WriteBatch::default();
        if let Some(snapshot) = &write.snapshot {
            self.install(&mut batch, snapshot)?;
        }
        self.append(&mut batch, write.entries)?;
        if let Some(hard) = write.hard_state {
            self.hard = hard;
        }
        let meta = self.family("meta");
        meta::put(&mut batch, &meta, meta::HARD, &Hard::new(&self.hard));
        let mut options = WriteOptions::default();
        if write.sync {
            meta::put(&mut batch, &meta, meta::SEQUENCE, &meta::Sequence::new(self.sequence + 1));
            options.set_sync(true);
        }
        drop(meta);
        self.db.write_opt(batch, &options).map_err(io)?;
        if write.sync {
            self.sequence += 1;
            self.witness
                .note(self.sequence)
                .map_err(|error| StoreError::Io(format!("witness: {error}")))?;
        }
        Ok(())
    }

    fn apply(&mut self, changes: Changes, applied: u64) -> Result<(), StoreError> {
        let mut batch = WriteBatch::default();
        let family = self.active_family();
        for (row, value) in changes {
            match value {
                Some(value) => batch.put_cf(&family, row, value),
                None => batch.delete_cf(&family, row),
            }
        }
        let mut hard = self.hard.clone();
        hard.commit = hard.commit.max(applied);
        let meta = self.family("meta");
        meta::put(&mut batch, &meta, meta::APPLIED, &meta::Applied::new(applied));
        meta::put(&mut batch, &meta, meta::HARD, &Hard::new(&hard));
        self.db.write(batch).map_err(io)?;
        drop((family, meta));
        self.hard = hard;
        self.applied = applied;
        Ok(())
    }

    fn applied(&self) -> u64 {
        self.applied
    }

    fn compact(&mut self, through: u64) -> Result<(), StoreError> {
        let chain = self.chain_at(through)?;
        let before = self.index.len().max(1);
        self.index.compact(through);
        let mut batch = WriteBatch::default();
        batch.delete_range_cf(&self.family("log"), 0u64.to_be_bytes(), (through + 1).to_be_bytes());
        let truncated = Truncated::new(self.index.truncated(), chain);
        meta::put(&mut batch, &self.family("meta"), meta::TRUNCATED, &truncated);
        self.db.write(batch).map_err(io)?;
        self.log_bytes = self.log_bytes / before * self.index.len();
        Ok(())
    }

    fn log_bytes(&self) -> u64 {
        self.log_bytes
    }
}

impl View for RocksStore {
    fn get(&self, row: &[u8]) -> Result<Option<Bytes>, StoreError> {
        let found = self.db.get_cf(&self.active_family(), row).map_err(io)?;
        Ok(found.map(Bytes::from))
    }

    fn scan(
        &self,
        span: Span<'_>,
        direction: Direction,
        visit: &mut Visit<'_>,
    ) -> Result<(), StoreError> {
        let mut options = ReadOptions::default();
        options.set_iterate_lower_bound(span.start);
        if let Some(end) = span.end {
            if end <= span.start {
                return Ok(());
            }
            options.set_iterate_upper_bound(end);
        }
        let mode = match direction {
            Direction::Forward => IteratorMode::Start,
            Direction::Backward => IteratorMode::End,
        };
        for found in self.db.iterator_cf_opt(&self.active_family(), options, mode) {
            let (row, value) = found.map_err(io)?;
            if visit(&row, &value).is_break() {
                break;
            }
        }
        Ok(())
    }
}

impl Storage for RocksStore {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(RaftState::new(self.hard.clone(), self.conf.clone()))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if low < self.index.first() {
            return Err(raft::Error::Store(StorageError::Compacted));
        }
        let max = max_size.into().unwrap_or(u64::MAX);
        let mut entries = Vec::new();
        let mut bytes = 0;
        // Not `raft::util::limit_size`: entries beyond the limit shouldn't be read at all.
        for index in low..high {
            let (entry, _) = self.entry(index)?;
            bytes += model::u64_of(entry.data.len()) + 32;
            if bytes > max && !entries.is_empty() {
                break;
            }
            entries.push(entry);
        }
        Ok(entries)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index < self.index.truncated().index {
            return Err(raft::Error::Store(StorageError::Compacted));
        }
        self.index.term(index).ok_or(raft::Error::Store(StorageError::Unavailable))
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.index.first())
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.index.last())
    }

    /// Freezes the rows for `to`, who fetches them in pages; the message carries only their number.
    fn snapshot(&self, _request_index: u64, to: u64) -> raft::Result<Snapshot> {
        let unavailable = raft::Error::Store(StorageError::SnapshotTemporarilyUnavailable);
        let number = self.pages.freeze(&self.db, self.active.name(), to).ok_or(unavailable)?;
        let mut snapshot = Snapshot { data: wire::encode_to_bytes(&number), ..Snapshot::default() };
        let metadata = snapshot.mut_metadata();
        metadata.index = self.applied;
        metadata.term = self.term(self.applied)?;
        *metadata.mut_conf_state() = self.conf.clone();
        Ok(snapshot)
    }
}

#[expect(clippy::needless_pass_by_value, reason = "used as a map_err function")]
fn io(error: rocksdb::Error) -> StoreError {
    StoreError::Io(error.to_string())
}

#[cfg(test)]
mod tests;
