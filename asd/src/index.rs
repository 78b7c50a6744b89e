//! The index in RocksDB: `k` + key → entry, `s` + lap → segment, `m` → meta.
//!
//! Written through its log without a sync: a killed process loses nothing, a power cut some last batches, which are
//! replayed from the segments. Only where the core says so is the log synced. What RocksDB finds damaged is deleted and
//! rebuilt; nothing is stored only here.

use asd_core::index::{Batch, Durability, Entry, Index, IndexError, Lookup, Meta, SegmentRow};
use bytes::Bytes;
use model::Lap;
use rocksdb::{
    BlockBasedOptions, Cache, DB, DBCompressionType, Direction, ErrorKind, IteratorMode, Options,
    ReadOptions, ReadTier, WriteBatch, WriteOptions,
};
use runtime::rocks_logs::{self, RocksLogError};
use std::cell::Cell;
use std::path::Path;
use std::sync::Arc;

const KEY: u8 = b'k';
const SEGMENT: u8 = b's';
const META: &[u8] = b"m";
/// Block cache: an entry takes about a hundred bytes, so this holds the entries of some hundred GiB.
const CACHE_BYTES: usize = 16 << 20;
const MEMTABLE_BYTES: usize = 8 << 20;

/// Key and value as RocksDB hands them out.
type Row = (Box<[u8]>, Box<[u8]>);

/// Clones share the database.
#[derive(Clone)]
pub(crate) struct RocksIndex {
    db: Arc<DB>,
}

fn index_error(error: &rocksdb::Error) -> IndexError {
    if matches!(error.kind(), ErrorKind::Corruption | ErrorKind::InvalidArgument) {
        IndexError::Damaged(error.to_string())
    } else {
        IndexError::Io(error.to_string())
    }
}

fn key_of(key: &[u8]) -> Vec<u8> {
    [&[KEY], key].concat()
}

fn segment_key(lap: Lap) -> Vec<u8> {
    [&[SEGMENT][..], &lap.0.to_be_bytes()].concat()
}

fn options() -> Options {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(&Cache::new_lru_cache(CACHE_BYTES));
    table.set_bloom_filter(10.0, false);
    let mut options = Options::default();
    options.create_if_missing(true);
    options.set_block_based_table_factory(&table);
    options.set_compression_type(DBCompressionType::Lz4);
    options.set_write_buffer_size(MEMTABLE_BYTES);
    options.set_max_total_wal_size(4 * MEMTABLE_BYTES as u64);
    options.set_max_open_files(64);
    options.set_max_background_jobs(2);
    options.set_keep_log_file_num(2);
    options.set_max_log_file_size(1 << 20);
    // An idle ASD uses no CPU: no periodic statistics.
    options.set_stats_dump_period_sec(0);
    options.set_stats_persist_period_sec(0);
    options
}

impl RocksIndex {
    /// Opens or makes the index in `dir`.
    pub(crate) fn open(dir: &Path) -> Result<Self, IndexError> {
        rocks_logs::check(dir).map_err(|error| match error {
            RocksLogError::Damaged { .. } => IndexError::Damaged(error.to_string()),
            RocksLogError::Io { .. } => IndexError::Io(error.to_string()),
        })?;
        let db = DB::open(&options(), dir).map_err(|error| {
            // Files that somebody deleted are damage too; a rebuild brings all back.
            let missing = error.to_string().contains("No such file");
            if missing { IndexError::Damaged(error.to_string()) } else { index_error(&error) }
        })?;
        Ok(Self { db: Arc::new(db) })
    }

    /// Names of the tables that it counts on.
    #[cfg(test)]
    pub(crate) fn live_files(&self) -> Result<Vec<String>, IndexError> {
        let files = self.db.live_files().map_err(|error| index_error(&error))?;
        Ok(files.into_iter().map(|file| file.name).collect())
    }

    fn rows(&self, start: &[u8]) -> impl Iterator<Item = Result<Row, IndexError>> + '_ {
        let mode = IteratorMode::From(start, Direction::Forward);
        self.db.iterator(mode).map(|row| row.map_err(|error| index_error(&error)))
    }
}

impl Lookup for RocksIndex {
    fn get(&self, key: &[u8]) -> Result<Option<Entry>, IndexError> {
        let found = self.db.get_pinned(key_of(key)).map_err(|error| index_error(&error))?;
        found.map(|value| Entry::decode(&value)).transpose()
    }

    fn entries_from(&self, start: &[u8], limit: usize) -> Result<Vec<(Bytes, Entry)>, IndexError> {
        let mut entries = Vec::new();
        for row in self.rows(&key_of(start)).take(limit) {
            let (key, value) = row?;
            let Some((&KEY, key)) = key.split_first() else { break };
            entries.push((Bytes::copy_from_slice(key), Entry::decode(&value)?));
        }
        Ok(entries)
    }
}

/// The index as far as it is in memory: what would take a read from the disk sets `blocked` instead.
pub(crate) struct InMemory<'a> {
    index: &'a RocksIndex,
    blocked: &'a Cell<bool>,
    options: ReadOptions,
}

impl<'a> InMemory<'a> {
    pub(crate) fn new(index: &'a RocksIndex, blocked: &'a Cell<bool>) -> Self {
        let mut options = ReadOptions::default();
        options.set_read_tier(ReadTier::BlockCache);
        Self { index, blocked, options }
    }
}

impl Lookup for InMemory<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<Entry>, IndexError> {
        let found = self.index.db.get_pinned_opt(key_of(key), &self.options).map_err(|error| {
            if error.kind() == ErrorKind::Incomplete {
                self.blocked.set(true);
            }
            index_error(&error)
        })?;
        found.map(|value| Entry::decode(&value)).transpose()
    }

    fn entries_from(&self, _: &[u8], _: usize) -> Result<Vec<(Bytes, Entry)>, IndexError> {
        self.blocked.set(true);
        Ok(Vec::new())
    }
}

impl Index for RocksIndex {
    fn meta(&self) -> Result<Option<Meta>, IndexError> {
        let found = self.db.get_pinned(META).map_err(|error| index_error(&error))?;
        found.map(|value| Meta::decode(&value)).transpose()
    }

    fn segments(&self) -> Result<Vec<(Lap, SegmentRow)>, IndexError> {
        let mut segments = Vec::new();
        for row in self.rows(&[SEGMENT]) {
            let (key, value) = row?;
            let Some((&SEGMENT, lap)) = key.split_first() else { break };
            let lap = lap
                .try_into()
                .map_err(|_| IndexError::Damaged("a segment's key isn't a lap".to_owned()))?;
            segments.push((Lap(u64::from_be_bytes(lap)), SegmentRow::decode(&value)?));
        }
        Ok(segments)
    }

    fn apply(&mut self, batch: &Batch, durability: Durability) -> Result<(), IndexError> {
        let mut writes = WriteBatch::default();
        for (key, entry) in &batch.entries {
            match entry {
                Some(entry) => writes.put(key_of(key), entry.encode()),
                None => writes.delete(key_of(key)),
            }
        }
        for (lap, row) in &batch.segments {
            match row {
                Some(row) => writes.put(segment_key(*lap), row.encode()),
                None => writes.delete(segment_key(*lap)),
            }
        }
        if let Some(meta) = batch.meta {
            writes.put(META, meta.encode());
        }
        let mut how = WriteOptions::default();
        how.set_sync(durability == Durability::Synced);
        self.db.write_opt(writes, &how).map_err(|error| index_error(&error))
    }

    fn clear(&mut self) -> Result<(), IndexError> {
        let mut writes = WriteBatch::default();
        writes.delete_range(&[0_u8][..], &[0xff_u8][..]);
        let mut how = WriteOptions::default();
        how.set_sync(true);
        self.db.write_opt(writes, &how).map_err(|error| index_error(&error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use asd_core::disk::FileId;
    use asd_core::index::Location;
    use asd_core::record::Kind;

    const ENTRY: Entry = Entry {
        kind: Kind::Put,
        seq: 1,
        at: Location { lap: Lap(2), offset: 3, file: FileId(4) },
        data_len: 5,
        stale: 0,
    };
    const ROW: SegmentRow = SegmentRow { file: FileId(1), len: 2, used: 3, live: 4 };

    fn batch() -> Batch {
        let key = |key: &'static [u8]| (Bytes::from_static(key), Some(ENTRY));
        Batch {
            entries: vec![key(b"a"), key(b"\xff\xff"), key(b"b")],
            segments: vec![(Lap(256), Some(ROW)), (Lap(1), Some(ROW))],
            meta: Some(Meta { next_seq: 9, ..Meta::default() }),
        }
    }

    #[test]
    fn batches_are_found_again_in_order_and_can_be_cleared() {
        let dir = tempfile::tempdir().unwrap();
        let mut index = RocksIndex::open(dir.path()).unwrap();
        assert_eq!(index.meta(), Ok(None));
        index.apply(&batch(), Durability::Lazy).unwrap();
        drop(index);
        let mut index = RocksIndex::open(dir.path()).unwrap();
        assert_eq!(index.get(b"a"), Ok(Some(ENTRY)));
        assert_eq!(index.get(b"c"), Ok(None));
        let keys = |start: &[u8], limit| -> Vec<Bytes> {
            index.entries_from(start, limit).unwrap().into_iter().map(|(key, _)| key).collect()
        };
        assert_eq!(keys(b"", 10), [&b"a"[..], b"b", b"\xff\xff"]);
        assert_eq!(keys(b"a\0", 1), [&b"b"[..]]);
        assert_eq!(index.segments(), Ok(vec![(Lap(1), ROW), (Lap(256), ROW)]));
        assert_eq!(index.meta().unwrap().unwrap().next_seq, 9);
        index.clear().unwrap();
        assert_eq!(index.entries_from(b"", 10), Ok(vec![]));
        assert_eq!((index.meta(), index.segments()), (Ok(None), Ok(vec![])));
    }

    #[test]
    fn an_index_with_a_missing_piece_is_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let mut index = RocksIndex::open(dir.path()).unwrap();
        index.apply(&batch(), Durability::Synced).unwrap();
        drop(index);
        std::fs::write(dir.path().join("CURRENT"), b"MANIFEST-999999\n").unwrap();
        assert!(matches!(RocksIndex::open(dir.path()), Err(IndexError::Damaged(_))));
    }
}
