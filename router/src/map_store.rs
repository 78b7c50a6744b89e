//! Page maps on disk: RocksDB behind a bounded cache, written back lazily (P26).
//!
//! Dirty pages stay in memory until a write-back puts them, the drops of whole ranges, and "last TLog" into *one* batch: a
//! crash leaves the map as of some committed TLog, and the rest is replayed. There is no write-ahead log: what is lost is
//! derived (L6). A page that fails its checksum is never used; the map is rebuilt then.
//!
//! Checksums don't see what is missing: RocksDB opens without a file whose mention in the manifest was lost. So opening a
//! table counts all of it and compares with its state. Readers see a map only once it is whole ([`MapStore::complete`]).
//!
//! Invariant: at most one change of a vDisk's map is under way (its committer's); readers may look at any time.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use model::{Epoch, MapGeneration, ObjectId, ScoNumber, VdiskId};
use quick_cache::sync::Cache;
use rocksdb::{IteratorMode, WriteBatch};
use router_core::checkpoint::Written;
use router_core::map::{Delta, Totals};
use router_core::page::{Page, page_key};
use router_core::tlog::Tlog;

mod cut;
mod install;
mod place;
mod state;

pub use cut::Cut;
pub use install::Install;
use place::Place;
pub use router_core::map_state::MapState;
use state::{epoch_key, kind_range, state_key};

/// The only generation so far; snapshots start further ones.
const GENERATION: MapGeneration = MapGeneration(0);
/// Dirty pages of one vDisk that force a write-back.
const DIRTY_MAX: usize = 4096;
/// TLogs that a restart replays at most, when the map wasn't closed cleanly.
pub const TAIL_MAX: u32 = 64;

#[derive(Debug, Clone, thiserror::Error)]
pub enum MapError {
    #[error("page map: {0}")]
    Store(String),
    #[error("page map of vDisk {vdisk}: page {page} fails its checksum")]
    BadPage { vdisk: VdiskId, page: u64 },
    /// RocksDB can't read its own files.
    #[error("page map: its files are damaged: {0}")]
    Damaged(String),
    #[error("page map of vDisk {vdisk} isn't what its state says: {problem}")]
    Mismatch { vdisk: VdiskId, problem: String },
    /// A map from elsewhere can't be put in; what is stored is not to blame.
    #[error("page map on its way here: {0}")]
    Incoming(String),
    /// Also after the files were replaced: what was open must be rebuilt.
    #[error("page map of vDisk {0} isn't open")]
    Closed(VdiskId),
    /// It doesn't hold all TLogs yet: a page of it would be one of the past (L5).
    #[error("page map of vDisk {0} is being rebuilt; try again")]
    Behind(VdiskId),
}

impl MapError {
    /// Whether throwing the map away and following the TLogs again helps (L6).
    #[must_use]
    pub const fn is_damage(&self) -> bool {
        match self {
            Self::BadPage { .. } | Self::Damaged(_) | Self::Mismatch { .. } | Self::Closed(_) => {
                true
            }
            Self::Store(_) | Self::Incoming(_) | Self::Behind(_) => false,
        }
    }
}

/// (first SCO number → epoch): a location names only the number.
type Epochs = BTreeMap<ScoNumber, Epoch>;

struct Table {
    state: MapState,
    dirty: BTreeMap<u64, Arc<Page>>,
    /// Whole pages dropped since the last write-back: what the store has there doesn't count.
    dropped: Vec<(u64, u64)>,
    epochs: Epochs,
    new_epochs: Epochs,
    /// The last TLog that is on disk.
    written: Option<ObjectId>,
    tail: u32,
    /// Grows with every write-back, so that a slow load can't bring an old page back.
    version: u64,
    /// All TLogs of the backend are in it, so readers may look.
    complete: bool,
}

impl Table {
    /// What it holds beyond the disk is nothing, or only the newest TLog's name.
    fn is_written(&self) -> bool {
        self.dirty.is_empty() && self.dropped.is_empty() && self.new_epochs.is_empty()
    }

    fn is_dropped(&self, page: u64) -> bool {
        self.dropped.iter().any(|(start, end)| (*start..*end).contains(&page))
    }
}

/// Who asks: its own changes see a map that isn't complete yet, nobody else does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reader {
    Own,
    Outside,
}

fn seen_by(
    reader: Reader,
    tables: &BTreeMap<VdiskId, Table>,
    vdisk: VdiskId,
) -> Result<&Table, MapError> {
    let table = tables.get(&vdisk).ok_or(MapError::Closed(vdisk))?;
    if reader == Reader::Outside && !table.complete {
        return Err(MapError::Behind(vdisk));
    }
    Ok(table)
}

/// State and epochs, if all that is stored agrees with them. It reads every page: less than what a stale map would
/// cost.
fn read_table(place: &Place, vdisk: VdiskId) -> Result<(MapState, Epochs), MapError> {
    let mismatch = |problem: &str| MapError::Mismatch { vdisk, problem: problem.to_owned() };
    let stored = place.with(|db| db.get(state_key(vdisk)))?;
    let state = match stored.as_deref().map(MapState::decode) {
        None => MapState::default(),
        Some(Some(state)) => state,
        Some(None) => return Err(mismatch("the state fails its checksum")),
    };
    let mut epochs = Epochs::new();
    for (key, value) in place.all(b'e', vdisk)? {
        let (Some((_, number)), Ok(epoch)) =
            (key.split_last_chunk::<8>(), <[u8; 8]>::try_from(&value[..]))
        else {
            return Err(mismatch("an epoch has a wrong length"));
        };
        epochs.insert(ScoNumber(u64::from_be_bytes(*number)), Epoch(u64::from_le_bytes(epoch)));
    }
    if epochs.len() as u64 != state.epochs {
        return Err(mismatch("some epochs are missing"));
    }
    let mut totals = Totals::default();
    place.each(b'p', vdisk, |key, value| {
        let number = state::page_of(key).ok_or_else(|| mismatch("a strange key"))?;
        let page = Page::decode(key, value).ok_or(MapError::BadPage { vdisk, page: number })?;
        totals.add_page(number, &page);
        Ok(())
    })?;
    if totals != state.totals {
        return Err(mismatch("some pages are missing, or not the newest"));
    }
    Ok((state, epochs))
}

/// What is known about a page without asking the disk.
enum Known {
    Page(Arc<Page>),
    /// Ask the store; believe it only while the table's version is this.
    Ask(u64),
}

/// Maps that may change at the same time, if their vDisks don't share a lock.
const CHANGING: usize = 16;

struct Shared {
    place: Place,
    tail_max: u32,
    /// Where the versions of the next table begin: none is that of a table of the same vDisk before it.
    versions: AtomicU64,
    tables: Mutex<BTreeMap<VdiskId, Table>>,
    /// One of them is held while a map takes a TLog or is opened: each step rests on the one before.
    changing: [Mutex<()>; CHANGING],
    clean: Cache<(VdiskId, u64), Arc<Page>>,
    empty: Arc<Page>,
}

/// All page maps of this router.
#[derive(Clone)]
pub struct MapStore {
    shared: Arc<Shared>,
}

impl MapStore {
    #[cfg(test)]
    pub fn open(dir: &Path, cache_bytes: u64) -> Result<Self, MapError> {
        Self::open_with_tail(dir, cache_bytes, TAIL_MAX)
    }

    /// A map is written back after so many TLogs at the latest.
    ///
    /// # Errors
    /// When RocksDB can't open the directory.
    pub fn open_with_tail(dir: &Path, cache_bytes: u64, tail_max: u32) -> Result<Self, MapError> {
        let place = Place::open(dir)?;
        let pages = model::usize_of(cache_bytes / 4200).max(64);
        let shared = Shared {
            place,
            tail_max,
            versions: AtomicU64::new(0),
            tables: Mutex::default(),
            changing: Default::default(),
            clean: Cache::new(pages),
            empty: Arc::new(Page::default()),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    fn tables(&self) -> MutexGuard<'_, BTreeMap<VdiskId, Table>> {
        self.shared.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changing(&self, vdisk: VdiskId) -> MutexGuard<'_, ()> {
        let lock = model::usize_of(u64::try_from(vdisk.0 % CHANGING as u128).expect("small"));
        self.shared.changing[lock].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads what is stored of a vDisk's map; blocking. What is damaged is thrown away: the map is empty then (L6).
    ///
    /// # Errors
    /// When the store fails.
    pub fn open_table(&self, vdisk: VdiskId) -> Result<MapState, MapError> {
        let _changing = self.changing(vdisk);
        let place = &self.shared.place;
        let (state, epochs) = match read_table(place, vdisk) {
            Err(error) if error.is_damage() => {
                tracing::error!(%vdisk, %error, "the page map is damaged; it is rebuilt from the backend");
                self.erase(vdisk)?;
                read_table(place, vdisk)?
            }
            read => read?,
        };
        let table = Table {
            written: state.object,
            state: state.clone(),
            dirty: BTreeMap::new(),
            dropped: Vec::new(),
            epochs,
            new_epochs: BTreeMap::new(),
            tail: 0,
            version: self.shared.versions.fetch_add(1 << 32, Ordering::Relaxed),
            complete: false,
        };
        self.tables().insert(vdisk, table);
        Ok(state)
    }

    /// Like [`Self::open_table`], but a map that is open, and wholly on disk, isn't read again. Readers wait until it is
    /// complete again.
    ///
    /// # Errors
    /// When the store fails.
    pub fn ready_table(&self, vdisk: VdiskId) -> Result<MapState, MapError> {
        if let Some(table) = self.tables().get_mut(&vdisk).filter(|table| table.is_written()) {
            table.complete = false;
            return Ok(table.state.clone());
        }
        self.open_table(vdisk)
    }

    /// vDisks that have a map on disk; blocking.
    ///
    /// # Errors
    /// When the store fails.
    pub fn stored(&self) -> Result<Vec<VdiskId>, MapError> {
        self.shared.place.vdisks()
    }

    /// The map holds every TLog of the backend: from now on readers may look.
    pub fn complete(&self, vdisk: VdiskId) {
        if let Some(table) = self.tables().get_mut(&vdisk) {
            table.complete = true;
        }
    }

    /// Forgets a map, in memory and on disk; blocking. Files that RocksDB can't read are replaced as a whole; then every
    /// other map is [`MapError::Closed`] too, and rebuilt by who uses it.
    ///
    /// # Errors
    /// When the store fails.
    pub fn erase(&self, vdisk: VdiskId) -> Result<(), MapError> {
        self.tables().remove(&vdisk);
        if self.shared.place.is_suspect() {
            // In this order: nobody may take an old table for what the new files hold.
            let mut tables = self.tables();
            tables.clear();
            self.shared.clean.clear();
            return self.shared.place.replace();
        }
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
        self.shared.place.with(|db| db.write_opt(batch, &place::without_log()))
    }

    /// Of every map that is open.
    #[must_use]
    pub fn states(&self) -> Vec<(VdiskId, MapState)> {
        self.tables().iter().map(|(vdisk, table)| (*vdisk, table.state.clone())).collect()
    }

    #[must_use]
    pub fn state(&self, vdisk: VdiskId) -> Option<MapState> {
        self.tables().get(&vdisk).map(|table| table.state.clone())
    }

    /// How far the map on disk is, of a map that is open.
    #[must_use]
    pub fn written(&self, vdisk: VdiskId) -> Written {
        let tables = self.tables();
        let written =
            |table: &Table| Written { object: table.written, mapped: table.state.totals.mapped };
        tables.get(&vdisk).map_or_else(Written::default, written)
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
        match self.known(vdisk, page, Reader::Outside) {
            Ok(Known::Page(page)) => Some(page),
            Ok(Known::Ask(_)) | Err(_) => None,
        }
    }

    fn known(&self, vdisk: VdiskId, page: u64, reader: Reader) -> Result<Known, MapError> {
        let tables = self.tables();
        let table = seen_by(reader, &tables, vdisk)?;
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
    /// When the store fails, the page is damaged, or the map is behind.
    pub fn load(&self, vdisk: VdiskId, number: u64) -> Result<Arc<Page>, MapError> {
        self.load_for(Reader::Outside, vdisk, number)
    }

    fn load_for(&self, reader: Reader, vdisk: VdiskId, number: u64) -> Result<Arc<Page>, MapError> {
        loop {
            let version = match self.known(vdisk, number, reader)? {
                Known::Page(page) => return Ok(page),
                Known::Ask(version) => version,
            };
            let key = page_key(vdisk, number, GENERATION);
            let page = match self.shared.place.with(|db| db.get(key))? {
                None => Arc::clone(&self.shared.empty),
                Some(bytes) => Arc::new(
                    Page::decode(&key, &bytes).ok_or(MapError::BadPage { vdisk, page: number })?,
                ),
            };
            let tables = self.tables();
            let table = seen_by(reader, &tables, vdisk)?;
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
    /// When the store fails, or the map is behind.
    pub fn next_page(&self, vdisk: VdiskId, from: u64) -> Result<Option<u64>, MapError> {
        self.next_page_for(Reader::Outside, vdisk, from)
    }

    fn next_page_for(
        &self,
        reader: Reader,
        vdisk: VdiskId,
        from: u64,
    ) -> Result<Option<u64>, MapError> {
        let mut at = from;
        loop {
            let key = page_key(vdisk, at, GENERATION);
            let (_, end) = kind_range(b'p', vdisk);
            let first = self.shared.place.with(|db| {
                let mode = IteratorMode::From(&key, rocksdb::Direction::Forward);
                db.iterator(mode).next().transpose()
            })?;
            let stored = first
                .filter(|(key, _)| key[..] < end[..])
                .and_then(|(key, _)| state::page_of(&key));
            let tables = self.tables();
            let table = seen_by(reader, &tables, vdisk)?;
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
    /// When the store fails, a page is damaged, or TLogs are missing in between; the map must be rebuilt then.
    pub fn apply(&self, tlog: &Tlog) -> Result<(), MapError> {
        let vdisk = tlog.object.vdisk;
        let delta = Delta::of(tlog);
        let _changing = self.changing(vdisk);
        let state = self.state(vdisk).ok_or(MapError::Closed(vdisk))?;
        if tlog.last_lsn <= state.last_lsn {
            return Ok(());
        }
        // Whoever else had the map may have gone back to what is on disk: a hole in it would be data of the past (L5).
        if tlog.first_lsn != state.last_lsn.next() {
            let problem = format!("LSN {} follows {}", tlog.first_lsn, state.last_lsn);
            return Err(MapError::Mismatch { vdisk, problem });
        }
        let mut totals = state.totals;
        for (start, end) in &delta.dropped {
            self.drop_pages(vdisk, *start, *end, &mut totals)?;
        }
        let mut changed = Vec::with_capacity(delta.pages.len());
        for (number, changes) in &delta.pages {
            let mut page = self.load_for(Reader::Own, vdisk, *number)?;
            changes.apply(*number, Arc::make_mut(&mut page), &mut totals);
            changed.push((*number, page));
        }
        let mut tables = self.tables();
        let table = tables.get_mut(&vdisk).ok_or(MapError::Closed(vdisk))?;
        table.dirty.extend(changed);
        if table.epochs.values().next_back() != Some(&tlog.object.epoch) {
            table.epochs.insert(tlog.object.number, tlog.object.epoch);
            table.new_epochs.insert(tlog.object.number, tlog.object.epoch);
        }
        let epochs = table.epochs.len() as u64;
        table.state =
            MapState { object: Some(tlog.object), last_lsn: tlog.last_lsn, totals, epochs };
        table.tail += 1;
        let due = DIRTY_MAX <= table.dirty.len() || self.shared.tail_max <= table.tail;
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
        let next = |at| self.next_page_for(Reader::Own, vdisk, at);
        while let Some(number) = next(at)?.filter(|page| *page < end) {
            totals.remove_page(number, &*self.load_for(Reader::Own, vdisk, number)?);
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
        let (dirty, written) = {
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
            (table.dirty.clone(), table.state.object)
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
        self.shared.place.with(rocksdb::DB::flush)?;
        let mut tables = self.tables();
        let table = tables.get_mut(&vdisk).ok_or(MapError::Closed(vdisk))?;
        table.version += 1;
        table.written = written;
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
