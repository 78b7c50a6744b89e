//! A disk that forgets what wasn't synced, and sometimes lies.
//!
//! Writes are seen by reads at once (the page cache) and are safe after a sync. A power cut keeps any subset of what
//! wasn't synced, in units of 512 bytes: each sector ends as one of the versions it had since the last sync, so writes
//! are lost, torn and reordered. Beyond that the disk may fail with an error (whether or not the work was done), lose a
//! write it confirmed, put one elsewhere, rot, be full, be slow.
//!
//! Invariant: without faults, what was written before a successful sync is read after any power cut.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

use crate::faults::FaultCounts;
use crate::random::{Chance, Random};

/// What a disk writes whole or not at all.
pub const SECTOR: usize = 512;

type Sector = [u8; SECTOR];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskError {
    /// The call failed; whether it took effect is unknown.
    Io,
    /// No room for sectors that were never written.
    Full,
    /// Past the end of the disk.
    OutOfRange,
}

impl fmt::Display for DiskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Io => "input/output error",
            Self::Full => "no space left on device",
            Self::OutOfRange => "past the end of the disk",
        })
    }
}

impl std::error::Error for DiskError {}

/// What may go wrong while the power is on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskFaults {
    pub read_error: Chance,
    /// The write fails, and half of the time it took effect all the same.
    pub write_error: Chance,
    /// The sync fails, and what wasn't synced stays so.
    pub sync_error: Chance,
    /// A write is confirmed and never done.
    pub lost_write: Chance,
    /// A write is confirmed and lands elsewhere.
    pub misdirected_write: Chance,
    /// What one operation costs.
    pub latency: RangeInclusive<Duration>,
    pub slow: Chance,
    /// What a slow operation costs.
    pub slow_latency: RangeInclusive<Duration>,
}

impl DiskFaults {
    /// An honest disk; power may still fail.
    #[must_use]
    pub fn none() -> Self {
        Self {
            read_error: Chance::NEVER,
            write_error: Chance::NEVER,
            sync_error: Chance::NEVER,
            lost_write: Chance::NEVER,
            misdirected_write: Chance::NEVER,
            latency: Duration::from_micros(20)..=Duration::from_micros(200),
            slow: Chance::NEVER,
            slow_latency: Duration::from_millis(50)..=Duration::from_secs(2),
        }
    }
}

#[derive(Debug, Clone)]
struct UnsyncedWrite {
    sector: u64,
    data: Box<Sector>,
}

#[derive(Debug, Clone)]
pub struct Disk {
    random: Random,
    size: u64,
    /// How many sectors may hold data: less than the size for a thin or a nearly full disk.
    sectors_max: u64,
    pub faults: DiskFaults,
    durable: BTreeMap<u64, Box<Sector>>,
    /// What reads see, where it differs from `durable`.
    cached: BTreeMap<u64, Box<Sector>>,
    /// Sector writes since the last sync, oldest first.
    unsynced: Vec<UnsyncedWrite>,
    counts: FaultCounts,
}

impl Disk {
    /// A disk of zeroes.
    #[must_use]
    pub fn new(random: Random, size: u64) -> Self {
        Self {
            random,
            size,
            sectors_max: size.div_ceil(SECTOR as u64),
            faults: DiskFaults::none(),
            durable: BTreeMap::new(),
            cached: BTreeMap::new(),
            unsynced: Vec::new(),
            counts: FaultCounts::default(),
        }
    }

    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    #[must_use]
    pub fn fault_counts(&self) -> &FaultCounts {
        &self.counts
    }

    /// From now on only this many bytes may hold data.
    pub fn limit_space(&mut self, bytes: u64) {
        self.sectors_max = bytes / SECTOR as u64;
    }

    /// What the next operation takes, for the caller to schedule its answer.
    pub fn latency(&mut self) -> Duration {
        if self.random.happens(self.faults.slow) {
            self.counts.count("slow disk");
            self.random.duration(&self.faults.slow_latency.clone())
        } else {
            self.random.duration(&self.faults.latency.clone())
        }
    }

    pub fn read(&mut self, offset: u64, len: usize) -> Result<Vec<u8>, DiskError> {
        self.check_range(offset, len)?;
        if self.random.happens(self.faults.read_error) {
            self.counts.count("read error");
            return Err(DiskError::Io);
        }
        let mut bytes = Vec::with_capacity(len);
        for piece in pieces(offset, len) {
            let sector = self.sector(piece.sector);
            bytes.extend_from_slice(&sector[piece.within]);
        }
        Ok(bytes)
    }

    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), DiskError> {
        self.check_range(offset, bytes.len())?;
        self.check_space(offset, bytes.len())?;
        if self.random.happens(self.faults.write_error) {
            self.counts.count("write error");
            if self.random.happens(Chance::percent(50)) {
                self.store(offset, bytes);
            }
            return Err(DiskError::Io);
        }
        if self.random.happens(self.faults.lost_write) {
            self.counts.count("lost write");
            return Ok(());
        }
        let mut place = offset;
        if self.random.happens(self.faults.misdirected_write) {
            self.counts.count("misdirected write");
            place = self.random.below(self.size - bytes.len() as u64 + 1);
        }
        self.store(place, bytes);
        Ok(())
    }

    pub fn sync(&mut self) -> Result<(), DiskError> {
        if self.random.happens(self.faults.sync_error) {
            self.counts.count("sync error");
            return Err(DiskError::Io);
        }
        self.unsynced.clear();
        self.durable.append(&mut self.cached);
        Ok(())
    }

    /// The power fails and comes back: of what wasn't synced, some is there.
    pub fn power_cut(&mut self) {
        self.counts.count("power cut");
        self.cached.clear();
        let unsynced = std::mem::take(&mut self.unsynced);
        match self.random.below(4) {
            0 => {}
            1 => self.keep(unsynced),
            2 => {
                let len = self.random.index(unsynced.len() + 1);
                self.keep(unsynced.into_iter().take(len));
            }
            _ => self.keep_scattered(unsynced),
        }
    }

    /// The process dies and the power stays: everything that was written is still to be read, and still not synced.
    pub fn process_crash(&mut self) {
        self.counts.count("process crash");
    }

    /// Flips a bit of a sector that holds data; says where.
    pub fn rot(&mut self) -> Option<u64> {
        let held: Vec<u64> = self.durable.keys().copied().collect();
        let sector = *self.random.pick(&held)?;
        let offset = sector * SECTOR as u64 + self.random.below(SECTOR as u64);
        self.flip(offset);
        Some(offset)
    }

    /// Flips one bit of the byte at `offset`, as stored.
    pub fn flip(&mut self, offset: u64) {
        self.counts.count("rot");
        let bit = 1 << self.random.below(8);
        let within = usize::try_from(offset % SECTOR as u64).expect("below a sector");
        let sector = offset / SECTOR as u64;
        for layer in [&mut self.durable, &mut self.cached] {
            if let Some(data) = layer.get_mut(&sector) {
                data[within] ^= bit;
            }
        }
    }

    fn keep(&mut self, writes: impl IntoIterator<Item = UnsyncedWrite>) {
        for UnsyncedWrite { sector, data } in writes {
            self.durable.insert(sector, data);
        }
    }

    /// Each sector ends as any of its versions since the last sync.
    fn keep_scattered(&mut self, unsynced: Vec<UnsyncedWrite>) {
        let mut versions: BTreeMap<u64, Vec<Box<Sector>>> = BTreeMap::new();
        for UnsyncedWrite { sector, data } in unsynced {
            versions.entry(sector).or_default().push(data);
        }
        for (sector, mut versions) in versions {
            let chosen = self.random.index(versions.len() + 1);
            if chosen < versions.len() {
                self.durable.insert(sector, versions.swap_remove(chosen));
            }
        }
    }

    fn store(&mut self, offset: u64, mut bytes: &[u8]) {
        for piece in pieces(offset, bytes.len()) {
            let mut data = Box::new(*self.sector(piece.sector));
            let (now, rest) = bytes.split_at(piece.within.len());
            data[piece.within].copy_from_slice(now);
            bytes = rest;
            self.unsynced.push(UnsyncedWrite { sector: piece.sector, data: data.clone() });
            self.cached.insert(piece.sector, data);
        }
    }

    fn sector(&self, sector: u64) -> &Sector {
        const ZEROES: &Sector = &[0; SECTOR];
        let held = self.cached.get(&sector).or_else(|| self.durable.get(&sector));
        held.map_or(ZEROES, |data| data)
    }

    fn check_range(&self, offset: u64, len: usize) -> Result<(), DiskError> {
        match offset.checked_add(len as u64) {
            Some(end) if end <= self.size => Ok(()),
            Some(_) | None => Err(DiskError::OutOfRange),
        }
    }

    fn check_space(&mut self, offset: u64, len: usize) -> Result<(), DiskError> {
        let is_new =
            |sector: &u64| !self.durable.contains_key(sector) && !self.cached.contains_key(sector);
        let new = pieces(offset, len).map(|piece| piece.sector).filter(is_new).count();
        let only_cached = self.cached.keys().filter(|sector| !self.durable.contains_key(sector));
        let held = self.durable.len() + only_cached.count();
        if self.sectors_max < (held + new) as u64 && 0 < new {
            self.counts.count("full disk");
            return Err(DiskError::Full);
        }
        Ok(())
    }
}

/// The part of one sector that a range covers.
struct Piece {
    sector: u64,
    within: std::ops::Range<usize>,
}

fn pieces(offset: u64, len: usize) -> impl Iterator<Item = Piece> {
    let end = offset + len as u64;
    let mut at = offset;
    std::iter::from_fn(move || {
        if at == end {
            return None;
        }
        let sector = at / SECTOR as u64;
        let start = usize::try_from(at % SECTOR as u64).expect("below a sector");
        let len = (SECTOR - start).min(usize::try_from(end - at).unwrap_or(SECTOR));
        at += len as u64;
        Some(Piece { sector, within: start..start + len })
    })
}

#[cfg(test)]
mod tests;
