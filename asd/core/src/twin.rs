//! Disk and index in memory, for tests and simulation: they remember what was synced and what was not.
//!
//! [`Power`] goes off after a given number of operations, so a test can stop a history at each of them. What is on the disk
//! then is for [`Survival`] to say: of the unsynced writes nothing, everything, or any sectors of any of them. The index
//! comes back as it was after any whole number of batches since its last sync, or not at all.
//!
//! Of a sync that fails any part lands; readers see all of it until the file is refreshed or the power goes off.
//!
//! Invariant: what was synced before the power went off is there afterwards.

use crate::disk::{Disk, DiskError, FileId, ReadAt, SECTOR};
use crate::index::{Batch, Durability, Entry, Index, IndexError, Lookup, Meta, SegmentRow};
use bytes::Bytes;
use model::Lap;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A small seeded generator (SplitMix64): the same seed rolls the same.
#[derive(Debug, Clone, Default)]
pub struct Dice(u64);

impl Dice {
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub const fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which isn't 0.
    pub const fn below(&mut self, bound: u64) -> u64 {
        self.roll() % bound
    }
}

/// Counts operations that change something, and fails them all from a given one on.
#[derive(Debug, Clone)]
pub struct Power {
    used: Arc<AtomicU64>,
    off_at: u64,
}

impl Power {
    #[must_use]
    pub fn off_at(operation: u64) -> Self {
        Self { used: Arc::new(AtomicU64::new(0)), off_at: operation }
    }

    #[must_use]
    pub fn stays() -> Self {
        Self::off_at(u64::MAX)
    }

    /// Operations so far.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    #[must_use]
    pub fn is_off(&self) -> bool {
        self.used() > self.off_at
    }

    /// Whether this operation still completes.
    fn spend(&self) -> bool {
        self.used.fetch_add(1, Ordering::Relaxed) < self.off_at
    }
}

impl Default for Power {
    fn default() -> Self {
        Self::stays()
    }
}

/// Largest physical sector of a drive.
const PHYSICAL: usize = 4096;

/// What becomes of one unsynced sector.
enum Fate {
    Lost,
    Lands,
    Shreds,
}

/// What becomes of unsynced writes when the power goes off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Survival {
    Nothing,
    Everything,
    /// Each sector of each write by itself; some shred the whole 4 KiB around them, as a drive with large physical
    /// sectors may when it is rewriting one.
    Torn,
    /// Each sector of each write shreds the 4 KiB around it: the worst that a power cut can do.
    Shredded,
}

#[derive(Debug, Clone, Default)]
struct File {
    /// What a read sees.
    current: Vec<u8>,
    /// What a power cut leaves for sure.
    durable: Vec<u8>,
    unsynced: Vec<(usize, Vec<u8>)>,
    /// A sync failed: `current` and `durable` may differ where nothing is unsynced.
    apart: bool,
}

impl File {
    fn suffer(&mut self, fate: &Fate, at: usize, sector: &[u8]) {
        match fate {
            Fate::Lost => {}
            Fate::Lands => self.durable[at..at + sector.len()].copy_from_slice(sector),
            Fate::Shreds => {
                let page = at / PHYSICAL * PHYSICAL;
                self.durable[page..page + PHYSICAL].fill(0xdb);
            }
        }
    }

    fn land(&mut self) {
        for (start, bytes) in std::mem::take(&mut self.unsynced) {
            self.durable[start..start + bytes.len()].copy_from_slice(&bytes);
        }
    }

    /// Like the page cache: readers still see it, no later sync writes it. What of it came to the platter, nobody knows.
    fn fail_to_land(&mut self, dice: &mut Dice) {
        self.apart |= !self.unsynced.is_empty();
        let landing = dice.below(4);
        for (start, bytes) in std::mem::take(&mut self.unsynced) {
            for (number, sector) in bytes.chunks(SECTOR).enumerate() {
                let fate = match landing {
                    0 => Fate::Lost,
                    1 => Fate::Lands,
                    2 => Fate::Shreds,
                    _ if dice.below(2) == 0 => Fate::Lost,
                    _ => Fate::Lands,
                };
                self.suffer(&fate, start + number * SECTOR, sector);
            }
        }
    }
}

/// An operation that fails on demand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    Create,
    Write,
    Sync,
    Read,
}

#[derive(Debug, Clone, Default)]
pub struct MemoryDisk {
    files: BTreeMap<FileId, File>,
    /// May be there again after a power cut.
    removed: BTreeMap<FileId, File>,
    power: Power,
    faults: BTreeMap<Fault, DiskError>,
    /// So many syncs before one that fails.
    syncs_left: Option<u64>,
    /// What lands of a sync that fails.
    dice: Dice,
}

fn power_is_off() -> DiskError {
    DiskError::Io("power is off".to_owned())
}

fn gone(file: FileId) -> DiskError {
    DiskError::Gone(format!("segment {file}"))
}

impl MemoryDisk {
    #[must_use]
    pub fn new(power: Power) -> Self {
        Self { power, ..Self::default() }
    }

    /// From now on operations of this kind fail so, or work again.
    pub fn set_fault(&mut self, fault: Fault, error: Option<DiskError>) {
        match error {
            Some(error) => self.faults.insert(fault, error),
            None => self.faults.remove(&fault),
        };
    }

    /// After so many more, one sync fails; or none.
    pub const fn fail_sync_after(&mut self, count: Option<u64>) {
        self.syncs_left = count;
    }

    /// What lands of syncs that fail is for these dice to say.
    pub const fn deal(&mut self, dice: Dice) {
        self.dice = dice;
    }

    /// Whether the sync that was to fail did.
    #[must_use]
    pub const fn sync_failed(&self) -> bool {
        self.syncs_left.is_none()
    }

    /// Flips one bit, on the platter, for readers, and in what is yet to be written.
    ///
    /// # Panics
    /// When there is no such byte.
    pub fn flip(&mut self, file: FileId, offset: u64) {
        let file = self.files.get_mut(&file).expect("the file is there");
        let at = model::usize_of(offset);
        file.current[at] ^= 0x10;
        file.durable[at] ^= 0x10;
        for (start, bytes) in &mut file.unsynced {
            if let Some(byte) = at.checked_sub(*start).and_then(|at| bytes.get_mut(at)) {
                *byte ^= 0x10;
            }
        }
    }

    /// Lets `act` do what it likes to the bytes of a file, on the platter and for readers; nothing of it is unsynced then.
    ///
    /// # Panics
    /// When there is no such file.
    pub fn alter<T>(&mut self, file: FileId, act: impl FnOnce(&mut Vec<u8>) -> T) -> T {
        let file = self.files.get_mut(&file).expect("the file is there");
        let out = act(&mut file.current);
        file.durable.clone_from(&file.current);
        file.unsynced.clear();
        file.apart = false;
        out
    }

    /// The disk as the next process finds it after this one was killed: what was written is there, and still unsynced.
    #[must_use]
    pub fn after_kill(self, power: Power) -> Self {
        Self { power, faults: BTreeMap::new(), syncs_left: None, ..self }
    }

    /// Syncs of all that isn't failed, and the process that was to hear of it was killed: the next one finds everything as
    /// it was written, and no sync of its own says otherwise.
    #[must_use]
    pub fn after_kill_in_failing_syncs(self, power: Power) -> Self {
        let mut disk = self.after_kill(power);
        for file in disk.files.values_mut() {
            file.fail_to_land(&mut disk.dice);
        }
        disk
    }

    /// The disk as the next start finds it.
    #[must_use]
    pub fn after_power_cut(mut self, survival: Survival, dice: &mut Dice, power: Power) -> Self {
        for (id, file) in std::mem::take(&mut self.removed) {
            if dice.below(2) == 0 {
                self.files.entry(id).or_insert(file);
            }
        }
        let differs = |file: &&mut File| file.apart || !file.unsynced.is_empty();
        for file in self.files.values_mut().filter(differs) {
            let unsynced = std::mem::take(&mut file.unsynced);
            for (start, bytes) in &unsynced {
                for (number, sector) in bytes.chunks(SECTOR).enumerate() {
                    let at = start + number * SECTOR;
                    let fate = match survival {
                        Survival::Nothing => Fate::Lost,
                        Survival::Everything => Fate::Lands,
                        Survival::Shredded => Fate::Shreds,
                        Survival::Torn => match dice.below(16) {
                            0 => Fate::Shreds,
                            1..=7 => Fate::Lost,
                            _ => Fate::Lands,
                        },
                    };
                    file.suffer(&fate, at, sector);
                }
            }
            if std::mem::take(&mut file.apart) {
                file.current.clone_from(&file.durable);
                continue;
            }
            for (start, bytes) in unsynced {
                let pages =
                    start / PHYSICAL * PHYSICAL..(start + bytes.len()).next_multiple_of(PHYSICAL);
                let pages = pages.start..pages.end.min(file.durable.len());
                file.current[pages.clone()].copy_from_slice(&file.durable[pages]);
            }
        }
        Self { files: self.files, power, dice: self.dice, ..Self::default() }
    }

    /// Whether a sync may go on.
    fn check_sync(&mut self) -> Result<(), DiskError> {
        self.check(Fault::Sync)?;
        self.syncs_left = match self.syncs_left {
            Some(0) => {
                self.syncs_left = None;
                return Err(DiskError::Io("EIO".to_owned()));
            }
            left => left.map(|left| left - 1),
        };
        Ok(())
    }

    fn check(&self, fault: Fault) -> Result<(), DiskError> {
        self.faults.get(&fault).cloned().map_or(Ok(()), Err)
    }
}

impl ReadAt for MemoryDisk {
    fn read_at(&self, file: FileId, offset: u64, len: usize) -> Result<Vec<u8>, DiskError> {
        if self.power.is_off() {
            return Err(power_is_off());
        }
        self.check(Fault::Read)?;
        let start = model::usize_of(offset);
        let bytes = self.files.get(&file).ok_or_else(|| gone(file))?;
        let bytes = bytes.current.get(start..start + len);
        bytes.map(<[u8]>::to_vec).ok_or_else(|| DiskError::Io("read past the end".to_owned()))
    }
}

impl Disk for MemoryDisk {
    fn list(&self) -> Result<Vec<(FileId, u64)>, DiskError> {
        Ok(self.files.iter().map(|(id, file)| (*id, model::u64_of(file.current.len()))).collect())
    }

    fn create(&mut self, file: FileId, len: u64) -> Result<(), DiskError> {
        self.check(Fault::Create)?;
        if self.power.is_off() {
            return Err(power_is_off());
        }
        let zeroes = || vec![0; model::usize_of(len)];
        let made = File { current: zeroes(), durable: zeroes(), ..File::default() };
        let completes = self.power.spend();
        // A power cut may leave the file and may leave none; both are as good, so it alternates.
        if completes || self.power.used().is_multiple_of(2) {
            self.files.insert(file, made);
        }
        if completes { Ok(()) } else { Err(power_is_off()) }
    }

    fn write(&mut self, file: FileId, offset: u64, parts: &[Bytes]) -> Result<(), DiskError> {
        self.check(Fault::Write)?;
        if self.power.is_off() {
            return Err(power_is_off());
        }
        let completes = self.power.spend();
        let file = self.files.get_mut(&file).ok_or_else(|| gone(file))?;
        let (start, bytes) = (model::usize_of(offset), parts.concat());
        // Only a file that damage made shorter is ever written beyond its end.
        let len = file.current.len().max(start + bytes.len());
        file.current.resize(len, 0);
        file.durable.resize(len, 0);
        file.current[start..start + bytes.len()].copy_from_slice(&bytes);
        file.unsynced.push((start, bytes));
        if completes { Ok(()) } else { Err(power_is_off()) }
    }

    fn sync(&mut self, file: FileId) -> Result<(), DiskError> {
        if self.power.is_off() {
            return Err(power_is_off());
        }
        let failed = self.check_sync();
        let file = self.files.get_mut(&file).ok_or_else(|| gone(file))?;
        if failed.is_err() {
            file.fail_to_land(&mut self.dice);
            return failed;
        }
        if !self.power.spend() {
            return Err(power_is_off());
        }
        file.land();
        Ok(())
    }

    fn refresh(&mut self, file: FileId) -> Result<(), DiskError> {
        self.sync(file)?;
        let file = self.files.get_mut(&file).ok_or_else(|| gone(file))?;
        if std::mem::take(&mut file.apart) {
            file.current.clone_from(&file.durable);
        }
        Ok(())
    }

    fn remove(&mut self, file: FileId) -> Result<(), DiskError> {
        if !self.power.spend() {
            return Err(power_is_off());
        }
        let removed = self.files.remove(&file).ok_or_else(|| gone(file))?;
        self.removed.insert(file, removed);
        Ok(())
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Tables {
    entries: BTreeMap<Bytes, Entry>,
    segments: BTreeMap<Lap, SegmentRow>,
    meta: Option<Meta>,
}

impl Tables {
    fn apply(&mut self, batch: &Batch) {
        for (key, entry) in &batch.entries {
            match entry {
                Some(entry) => self.entries.insert(key.clone(), *entry),
                None => self.entries.remove(key),
            };
        }
        for (lap, row) in &batch.segments {
            match row {
                Some(row) => self.segments.insert(*lap, *row),
                None => self.segments.remove(lap),
            };
        }
        self.meta = batch.meta.or(self.meta);
    }
}

#[derive(Debug, Clone, Default)]
pub struct MemoryIndex {
    current: Tables,
    durable: Tables,
    lazy: Vec<Batch>,
    power: Power,
    fault: Option<IndexError>,
}

impl MemoryIndex {
    #[must_use]
    pub fn new(power: Power) -> Self {
        Self { power, ..Self::default() }
    }

    /// From now on writing fails so, or works again.
    pub fn set_fault(&mut self, error: Option<IndexError>) {
        self.fault = error;
    }

    /// The entry is gone, and nothing else says so: what a database does that has lost one of its files.
    pub fn lose(&mut self, key: &[u8]) {
        self.current.entries.remove(key);
        self.durable.entries.remove(key);
    }

    /// The index as the next process finds it after this one was killed.
    #[must_use]
    pub fn after_kill(self, power: Power) -> Self {
        Self { power, fault: None, ..self }
    }

    /// The index as the next start finds it: some number of batches behind.
    #[must_use]
    pub fn after_power_cut(self, dice: &mut Dice, power: Power) -> Self {
        let mut tables = self.durable;
        let kept = dice.below(model::u64_of(self.lazy.len()) + 1);
        for batch in &self.lazy[..model::usize_of(kept)] {
            tables.apply(batch);
        }
        Self { current: tables.clone(), durable: tables, lazy: Vec::new(), power, fault: None }
    }
}

impl Lookup for MemoryIndex {
    fn get(&self, key: &[u8]) -> Result<Option<Entry>, IndexError> {
        Ok(self.current.entries.get(key).copied())
    }

    fn entries_from(&self, start: &[u8], limit: usize) -> Result<Vec<(Bytes, Entry)>, IndexError> {
        let entries = self.current.entries.range(Bytes::copy_from_slice(start)..);
        Ok(entries.take(limit).map(|(key, entry)| (key.clone(), *entry)).collect())
    }
}

impl Index for MemoryIndex {
    fn meta(&self) -> Result<Option<Meta>, IndexError> {
        Ok(self.current.meta)
    }

    fn segments(&self) -> Result<Vec<(Lap, SegmentRow)>, IndexError> {
        Ok(self.current.segments.iter().map(|(lap, row)| (*lap, *row)).collect())
    }

    fn apply(&mut self, batch: &Batch, durability: Durability) -> Result<(), IndexError> {
        self.fault.clone().map_or(Ok(()), Err)?;
        if !self.power.spend() {
            return Err(IndexError::Io("power is off".to_owned()));
        }
        self.current.apply(batch);
        self.lazy.push(batch.clone());
        if durability == Durability::Synced {
            self.lazy.clear();
            self.durable = self.current.clone();
        }
        Ok(())
    }

    fn clear(&mut self) -> Result<(), IndexError> {
        if !self.power.spend() {
            return Err(IndexError::Io("power is off".to_owned()));
        }
        *self = Self { power: self.power.clone(), ..Self::default() };
        Ok(())
    }
}
