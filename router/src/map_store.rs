//! Page maps on disk: RocksDB behind a bounded cache, written back lazily (P26).
//!
//! Dirty pages stay in memory until a write-back puts them, the drops of whole ranges, and "last TLog" into *one* batch: a
//! crash leaves the map as of some committed TLog, and the rest is replayed. There is no write-ahead log: what is lost is
//! derived (L6). A page that fails its checksum is never used; the map is rebuilt then.
//!
//! Invariant: at most one change of a vDisk's map is under way (its committer's); readers may look at any time.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use model::{Epoch, Lsn, MapGeneration, ObjectId, ScoNumber, VdiskId};
use quick_cache::sync::Cache;
use rocksdb::{
    BlockBasedOptions, DB, DBCompressionType, IteratorMode, Options, WriteBatch, WriteOptions,
};
use router_core::crc32c;
use router_core::map::{Delta, Totals};
use router_core::page::{Page, page_key};
use router_core::tlog::Tlog;
use wire::{Decode, Encode, Reader};

/// The only generation so far; snapshots start further ones.
const GENERATION: MapGeneration = MapGeneration(0);
const STATE_VERSION: u8 = 1;
/// Dirty pages of one vDisk that force a write-back.
const DIRTY_MAX: usize = 4096;
/// TLogs that a restart replays at most, when the map wasn't closed cleanly.
const TAIL_MAX: u32 = 64;

#[derive(Debug, Clone, thiserror::Error)]
pub enum MapError {
    #[error("page map: {0}")]
    Store(String),
    #[error("page map of vDisk {vdisk}: page {page} fails its checksum")]
    BadPage { vdisk: VdiskId, page: u64 },
    #[error("page map of vDisk {0} isn't open")]
    Closed(VdiskId),
}

impl From<rocksdb::Error> for MapError {
    fn from(error: rocksdb::Error) -> Self {
        Self::Store(error.to_string())
    }
}

/// What a map says about itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MapState {
    /// The last TLog it holds.
    pub object: Option<ObjectId>,
    pub last_lsn: Lsn,
    pub totals: Totals,
}

impl MapState {
    fn encode(&self) -> Vec<u8> {
        let mut out = vec![STATE_VERSION];
        self.object.encode(&mut out);
        self.last_lsn.encode(&mut out);
        self.totals.mapped.encode(&mut out);
        self.totals.digest.encode(&mut out);
        crc32c(&out).encode(&mut out);
        out
    }

    /// `None` = can't be believed: rebuild.
    fn decode(bytes: &[u8]) -> Option<Self> {
        let (body, crc) = bytes.split_last_chunk::<4>()?;
        if crc32c(body) != u32::from_le_bytes(*crc) {
            return None;
        }
        let mut from = Reader::new(bytes::Bytes::copy_from_slice(body));
        if u8::decode(&mut from).ok()? != STATE_VERSION {
            return None;
        }
        Some(Self {
            object: Decode::decode(&mut from).ok()?,
            last_lsn: Decode::decode(&mut from).ok()?,
            totals: Totals {
                mapped: Decode::decode(&mut from).ok()?,
                digest: Decode::decode(&mut from).ok()?,
            },
        })
    }
}

fn state_key(vdisk: VdiskId) -> Vec<u8> {
    let mut key = vec![b's'];
    key.extend_from_slice(&vdisk.0.to_be_bytes());
    key
}

fn epoch_key(vdisk: VdiskId, first: ScoNumber) -> Vec<u8> {
    let mut key = vec![b'e'];
    key.extend_from_slice(&vdisk.0.to_be_bytes());
    key.extend_from_slice(&first.0.to_be_bytes());
    key
}

/// All keys of one kind of one vDisk: `start..end`.
fn kind_range(kind: u8, vdisk: VdiskId) -> (Vec<u8>, Vec<u8>) {
    let mut start = vec![kind];
    start.extend_from_slice(&vdisk.0.to_be_bytes());
    let end = wire::arakoon::prefix_end(&start).map_or_else(|| vec![kind + 1], |end| end.to_vec());
    (start, end)
}

struct Table {
    state: MapState,
    dirty: BTreeMap<u64, Arc<Page>>,
    /// Whole pages dropped since the last write-back: what the store has there doesn't count.
    dropped: Vec<(u64, u64)>,
    /// (first SCO number → epoch): a location names only the number.
    epochs: BTreeMap<ScoNumber, Epoch>,
    new_epochs: BTreeMap<ScoNumber, Epoch>,
    tail: u32,
    /// Grows with every write-back, so that a slow load can't bring an old page back.
    version: u64,
}

impl Table {
    fn is_dropped(&self, page: u64) -> bool {
        self.dropped.iter().any(|(start, end)| (*start..*end).contains(&page))
    }
}

/// What is known about a page without asking the disk.
enum Known {
    Page(Arc<Page>),
    /// Ask the store; believe it only while the table's version is this.
    Ask(u64),
}

struct Shared {
    db: DB,
    tables: Mutex<BTreeMap<VdiskId, Table>>,
    clean: Cache<(VdiskId, u64), Arc<Page>>,
    empty: Arc<Page>,
}

/// All page maps of this router.
#[derive(Clone)]
pub struct MapStore {
    shared: Arc<Shared>,
}

impl MapStore {
    /// # Errors
    /// When RocksDB can't open the directory.
    pub fn open(dir: &Path, cache_bytes: u64) -> Result<Self, MapError> {
        let mut options = Options::default();
        options.create_if_missing(true);
        options.set_compression_type(DBCompressionType::Lz4);
        options.set_write_buffer_size(16 << 20);
        options.set_max_write_buffer_number(3);
        options.set_max_background_jobs(2);
        options.set_max_open_files(128);
        options.set_keep_log_file_num(4);
        options.set_max_log_file_size(1 << 20);
        // Most first writes to a thin vDisk ask for a page that isn't there.
        let mut blocks = BlockBasedOptions::default();
        blocks.set_bloom_filter(10.0, false);
        options.set_block_based_table_factory(&blocks);
        let db = match DB::open(&options, dir) {
            Ok(db) => db,
            Err(error) => {
                // Derived data (L6): a map that doesn't open is put aside and rebuilt.
                tracing::error!(%error, dir = %dir.display(), "the page map doesn't open; it is rebuilt from the backend");
                let aside = dir.with_extension("damaged");
                let _ = std::fs::remove_dir_all(&aside);
                std::fs::rename(dir, &aside).map_err(|error| MapError::Store(error.to_string()))?;
                DB::open(&options, dir)?
            }
        };
        let pages = model::usize_of(cache_bytes / 4200).max(64);
        let shared = Shared {
            db,
            tables: Mutex::default(),
            clean: Cache::new(pages),
            empty: Arc::new(Page::default()),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    fn tables(&self) -> MutexGuard<'_, BTreeMap<VdiskId, Table>> {
        self.shared.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads what is stored of a vDisk's map; blocking.
    ///
    /// # Errors
    /// When the store fails.
    pub fn open_table(&self, vdisk: VdiskId) -> Result<MapState, MapError> {
        let stored = self.shared.db.get(state_key(vdisk))?;
        let state = match stored.as_deref().map(MapState::decode) {
            None => MapState::default(),
            Some(Some(state)) => state,
            Some(None) => {
                tracing::error!(%vdisk, "the page map's state fails its checksum; it is rebuilt");
                self.erase(vdisk)?;
                MapState::default()
            }
        };
        let mut epochs = BTreeMap::new();
        let (start, end) = kind_range(b'e', vdisk);
        for entry in
            self.shared.db.iterator(IteratorMode::From(&start, rocksdb::Direction::Forward))
        {
            let (key, value) = entry?;
            if end[..] <= key[..] {
                break;
            }
            let (Some((_, number)), Ok(epoch)) =
                (key.split_last_chunk::<8>(), <[u8; 8]>::try_from(&value[..]))
            else {
                return Err(MapError::Store("an epoch entry has a wrong length".to_owned()));
            };
            epochs.insert(ScoNumber(u64::from_be_bytes(*number)), Epoch(u64::from_le_bytes(epoch)));
        }
        let table = Table {
            state: state.clone(),
            dirty: BTreeMap::new(),
            dropped: Vec::new(),
            epochs,
            new_epochs: BTreeMap::new(),
            tail: 0,
            version: 0,
        };
        self.tables().insert(vdisk, table);
        Ok(state)
    }

    /// Forgets a map, in memory and on disk; blocking.
    ///
    /// # Errors
    /// When the store fails.
    pub fn erase(&self, vdisk: VdiskId) -> Result<(), MapError> {
        self.tables().remove(&vdisk);
        let mut batch = WriteBatch::default();
        for kind in [b'p', b'e'] {
            let (start, end) = kind_range(kind, vdisk);
            batch.delete_range(start, end);
        }
        batch.delete(state_key(vdisk));
        self.write(batch)?;
        self.shared.clean.clear();
        Ok(())
    }

    fn write(&self, batch: WriteBatch) -> Result<(), MapError> {
        let mut options = WriteOptions::default();
        options.disable_wal(true);
        self.shared.db.write_opt(batch, &options)?;
        Ok(())
    }

    #[must_use]
    pub fn state(&self, vdisk: VdiskId) -> Option<MapState> {
        self.tables().get(&vdisk).map(|table| table.state.clone())
    }

    /// The whole name of a SCO.
    #[must_use]
    pub fn object(&self, vdisk: VdiskId, number: ScoNumber) -> Option<ObjectId> {
        let tables = self.tables();
        let (_, epoch) = tables.get(&vdisk)?.epochs.range(..=number).next_back()?;
        Some(ObjectId { vdisk, epoch: *epoch, number })
    }

    /// A page, if memory has it: `None` = [`Self::load`] it.
    #[must_use]
    pub fn peek(&self, vdisk: VdiskId, page: u64) -> Option<Arc<Page>> {
        match self.known(vdisk, page) {
            Ok(Known::Page(page)) => Some(page),
            Ok(Known::Ask(_)) | Err(_) => None,
        }
    }

    fn known(&self, vdisk: VdiskId, page: u64) -> Result<Known, MapError> {
        let tables = self.tables();
        let table = tables.get(&vdisk).ok_or(MapError::Closed(vdisk))?;
        if let Some(dirty) = table.dirty.get(&page) {
            return Ok(Known::Page(Arc::clone(dirty)));
        }
        if table.is_dropped(page) {
            return Ok(Known::Page(Arc::clone(&self.shared.empty)));
        }
        match self.shared.clean.get(&(vdisk, page)) {
            Some(clean) => Ok(Known::Page(clean)),
            None => Ok(Known::Ask(table.version)),
        }
    }

    /// A page, from memory or disk; blocking.
    ///
    /// # Errors
    /// When the store fails or the page is damaged.
    pub fn load(&self, vdisk: VdiskId, number: u64) -> Result<Arc<Page>, MapError> {
        loop {
            let version = match self.known(vdisk, number)? {
                Known::Page(page) => return Ok(page),
                Known::Ask(version) => version,
            };
            let key = page_key(vdisk, number, GENERATION);
            let page = match self.shared.db.get_pinned(key)? {
                None => Arc::clone(&self.shared.empty),
                Some(bytes) => Arc::new(
                    Page::decode(&key, &bytes).ok_or(MapError::BadPage { vdisk, page: number })?,
                ),
            };
            let tables = self.tables();
            let table = tables.get(&vdisk).ok_or(MapError::Closed(vdisk))?;
            if table.version == version
                && !table.is_dropped(number)
                && !table.dirty.contains_key(&number)
            {
                self.shared.clean.insert((vdisk, number), Arc::clone(&page));
                return Ok(page);
            }
        }
    }

    /// The first page at or after `from` that may hold something; blocking.
    ///
    /// # Errors
    /// When the store fails.
    pub fn next_page(&self, vdisk: VdiskId, from: u64) -> Result<Option<u64>, MapError> {
        let mut at = from;
        loop {
            let key = page_key(vdisk, at, GENERATION);
            let (_, end) = kind_range(b'p', vdisk);
            let mut stored = None;
            if let Some(entry) = self
                .shared
                .db
                .iterator(IteratorMode::From(&key, rocksdb::Direction::Forward))
                .next()
            {
                let (key, _) = entry?;
                if key[..] < end[..]
                    && let Some(number) = key.get(17..25)
                {
                    stored = Some(u64::from_be_bytes(number.try_into().expect("8 bytes")));
                }
            }
            let tables = self.tables();
            let table = tables.get(&vdisk).ok_or(MapError::Closed(vdisk))?;
            let dirty = table.dirty.range(from..).next().map(|(page, _)| *page);
            let hidden = stored.and_then(|page| {
                table
                    .dropped
                    .iter()
                    .find(|(start, end)| (*start..*end).contains(&page))
                    .map(|(_, end)| *end)
            });
            match (hidden, dirty) {
                (Some(end), dirty) if dirty.is_none_or(|page| end <= page) => at = end,
                (Some(_), dirty) => return Ok(dirty),
                (None, dirty) => return Ok(stored.into_iter().chain(dirty).min()),
            }
        }
    }

    /// Follows a committed TLog; blocking. TLogs must come in order of commit; one that the map holds changes nothing.
    ///
    /// # Errors
    /// When the store fails or a page is damaged; the map must be rebuilt then.
    pub fn apply(&self, tlog: &Tlog) -> Result<(), MapError> {
        let vdisk = tlog.object.vdisk;
        let delta = Delta::of(tlog);
        let state = self.state(vdisk).ok_or(MapError::Closed(vdisk))?;
        if tlog.last_lsn <= state.last_lsn {
            return Ok(());
        }
        let mut totals = state.totals;
        for (start, end) in &delta.dropped {
            self.drop_pages(vdisk, *start, *end, &mut totals)?;
        }
        let mut changed = Vec::with_capacity(delta.pages.len());
        for (number, changes) in &delta.pages {
            let mut page = self.load(vdisk, *number)?;
            changes.apply(*number, Arc::make_mut(&mut page), &mut totals);
            changed.push((*number, page));
        }
        let mut tables = self.tables();
        let table = tables.get_mut(&vdisk).ok_or(MapError::Closed(vdisk))?;
        table.dirty.extend(changed);
        table.state = MapState { object: Some(tlog.object), last_lsn: tlog.last_lsn, totals };
        if table.epochs.values().next_back() != Some(&tlog.object.epoch) {
            table.epochs.insert(tlog.object.number, tlog.object.epoch);
            table.new_epochs.insert(tlog.object.number, tlog.object.epoch);
        }
        table.tail += 1;
        let due = DIRTY_MAX <= table.dirty.len() || TAIL_MAX <= table.tail;
        drop(tables);
        if due { self.write_back(vdisk) } else { Ok(()) }
    }

    fn drop_pages(
        &self,
        vdisk: VdiskId,
        start: u64,
        end: u64,
        totals: &mut Totals,
    ) -> Result<(), MapError> {
        let mut at = start;
        while let Some(number) = self.next_page(vdisk, at)?.filter(|page| *page < end) {
            totals.remove_page(number, &*self.load(vdisk, number)?);
            at = number + 1;
        }
        let mut tables = self.tables();
        let table = tables.get_mut(&vdisk).ok_or(MapError::Closed(vdisk))?;
        let gone: Vec<u64> = table.dirty.range(start..end).map(|(page, _)| *page).collect();
        for page in gone {
            table.dirty.remove(&page);
        }
        table.dropped.push((start, end));
        Ok(())
    }

    /// Puts everything dirty of a vDisk, with its last TLog, on disk; blocking.
    ///
    /// # Errors
    /// When the store fails.
    pub fn write_back(&self, vdisk: VdiskId) -> Result<(), MapError> {
        let mut batch = WriteBatch::default();
        let dirty = {
            let tables = self.tables();
            let table = tables.get(&vdisk).ok_or(MapError::Closed(vdisk))?;
            for (start, end) in &table.dropped {
                let (start, end) =
                    (page_key(vdisk, *start, GENERATION), page_key(vdisk, *end, GENERATION));
                batch.delete_range(start, end);
            }
            for (first, epoch) in &table.new_epochs {
                batch.put(epoch_key(vdisk, *first), epoch.0.to_le_bytes());
            }
            batch.put(state_key(vdisk), table.state.encode());
            table.dirty.clone()
        };
        for (number, page) in &dirty {
            let key = page_key(vdisk, *number, GENERATION);
            if page.is_empty() {
                batch.delete(key);
            } else {
                batch.put(key, page.encode(&key));
            }
        }
        self.write(batch)?;
        self.shared.db.flush()?;
        let mut tables = self.tables();
        let table = tables.get_mut(&vdisk).ok_or(MapError::Closed(vdisk))?;
        table.version += 1;
        // Cached pages of dropped ranges would come back to light once the drops are forgotten.
        if !table.dropped.is_empty() {
            self.shared.clean.clear();
        }
        table.dropped.clear();
        table.new_epochs.clear();
        table.dirty.clear();
        table.tail = 0;
        for (number, page) in dirty {
            self.shared.clean.insert((vdisk, number), page);
        }
        Ok(())
    }

    /// Every mapped cluster, counted anew from memory and disk: must equal what the state says.
    #[cfg(test)]
    fn recount(&self, vdisk: VdiskId) -> Result<Totals, MapError> {
        let mut totals = Totals::default();
        let mut at = 0;
        while let Some(number) = self.next_page(vdisk, at)? {
            let page = self.load(vdisk, number)?;
            for (index, location) in page.mapped() {
                let cluster = router_core::map::cluster_at(number, index);
                totals.add(router_core::page::digest_of(cluster, location));
            }
            at = number + 1;
        }
        Ok(totals)
    }
}

#[cfg(test)]
mod tests;
