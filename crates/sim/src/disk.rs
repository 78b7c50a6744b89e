//! A disk that forgets what wasn't synced, and sometimes lies.
//!
//! Writes are seen by reads at once (the page cache) and are safe after a sync. A power cut keeps any subset of what
//! wasn't synced, in units of 512 bytes: each sector ends as one of the versions it had since the last sync, so writes
//! are lost, torn and reordered. Beyond that the disk may fail with an error (whether or not the work was done), lose a
//! write it confirmed, put one elsewhere, confirm a sync that it never does, rot, be full, be slow.
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

/// Bytes by sector; as long as what was written so far.
#[derive(Debug, Clone, Default)]
struct Image {
    bytes: Vec<u8>,
    /// Whether the sector was ever written.
    held: Vec<bool>,
}

impl Image {
    fn holds(&self, sector: u64) -> bool {
        self.held.get(index(sector)).is_some_and(|held| *held)
    }

    /// The sector's bytes, from now on held.
    fn sector_mut(&mut self, sector: u64) -> &mut [u8] {
        let sector = index(sector);
        if self.held.len() <= sector {
            self.held.resize(sector + 1, false);
            self.bytes.resize((sector + 1) * SECTOR, 0);
        }
        self.held[sector] = true;
        &mut self.bytes[sector * SECTOR..(sector + 1) * SECTOR]
    }

    /// As `other` has it, which may be not at all.
    fn copy_sector(&mut self, other: &Self, sector: u64) {
        let at = index(sector);
        if other.holds(sector) {
            let bytes = &other.bytes[at * SECTOR..(at + 1) * SECTOR];
            self.sector_mut(sector).copy_from_slice(bytes);
        } else if self.holds(sector) {
            self.sector_mut(sector).fill(0);
            self.held[at] = false;
        }
    }
}

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
    /// The sync is confirmed and never done: what wasn't synced stays so.
    pub lying_sync: Chance,
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
            lying_sync: Chance::NEVER,
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
    data: Sector,
}

#[derive(Debug, Clone)]
pub struct Disk {
    random: Random,
    size: u64,
    /// How many sectors may hold data: less than the size for a thin or a nearly full disk.
    sectors_max: u64,
    pub faults: DiskFaults,
    /// What a power cut leaves for certain.
    durable: Image,
    /// What reads see. Differs from `durable` in the sectors of `unsynced` only.
    cached: Image,
    held: u64,
    /// Sector writes since the last sync, oldest first.
    unsynced: Vec<UnsyncedWrite>,
    /// How many of those a sync was confirmed for.
    promised: usize,
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
            durable: Image::default(),
            cached: Image::default(),
            held: 0,
            unsynced: Vec::new(),
            promised: 0,
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
        let mut bytes = vec![0; len];
        self.read_into(offset, &mut bytes)?;
        Ok(bytes)
    }

    /// Fills `bytes`, for those who read much.
    pub fn read_into(&mut self, offset: u64, bytes: &mut [u8]) -> Result<(), DiskError> {
        self.check_range(offset, bytes.len())?;
        if self.random.happens(self.faults.read_error) {
            self.counts.count("read error");
            return Err(DiskError::Io);
        }
        let written = self.cached.bytes.get(index(offset)..).unwrap_or_default();
        let (there, never) = bytes.split_at_mut(written.len().min(bytes.len()));
        there.copy_from_slice(&written[..there.len()]);
        never.fill(0);
        Ok(())
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
        if self.random.happens(self.faults.lying_sync) {
            self.counts.count("lying sync");
            self.promised = self.unsynced.len();
            return Ok(());
        }
        for UnsyncedWrite { sector, .. } in self.unsynced.drain(..) {
            self.durable.copy_sector(&self.cached, sector);
        }
        self.promised = 0;
        Ok(())
    }

    /// Whether a power cut now could take what a sync was confirmed for.
    #[must_use]
    pub fn owes(&self) -> bool {
        0 < self.promised
    }

    /// The power fails and comes back: of what wasn't synced, some is there.
    pub fn power_cut(&mut self) {
        self.counts.count("power cut");
        self.promised = 0;
        let unsynced = std::mem::take(&mut self.unsynced);
        if unsynced.is_empty() {
            return;
        }
        let touched: Vec<u64> = unsynced.iter().map(|write| write.sector).collect();
        match self.random.below(4) {
            0 => self.counts.count("unsynced lost"),
            1 => self.keep(unsynced),
            2 => {
                self.counts.count("unsynced cut off");
                let len = self.random.index(unsynced.len() + 1);
                self.keep(unsynced.into_iter().take(len));
            }
            _ => {
                self.counts.count("unsynced torn");
                self.keep_scattered(unsynced);
            }
        }
        for sector in touched {
            self.cached.copy_sector(&self.durable, sector);
        }
        self.held = self.cached.held.iter().map(|held| u64::from(*held)).sum();
    }

    /// The process dies and the power stays: everything that was written is still to be read, and still not synced.
    pub fn process_crash(&mut self) {
        self.counts.count("process crash");
    }

    /// Flips a bit of a sector that holds data; says where.
    pub fn rot(&mut self) -> Option<u64> {
        let held: Vec<u64> = (0..self.durable.held.len() as u64)
            .filter(|sector| self.durable.holds(*sector))
            .collect();
        let sector = *self.random.pick(&held)?;
        let offset = sector * SECTOR as u64 + self.random.below(SECTOR as u64);
        self.flip(offset);
        Some(offset)
    }

    /// Flips one bit of the byte at `offset`, as stored.
    pub fn flip(&mut self, offset: u64) {
        self.counts.count("rot");
        let bit = 1 << self.random.below(8);
        for image in [&mut self.durable, &mut self.cached] {
            if let Some(byte) = image.bytes.get_mut(index(offset)) {
                *byte ^= bit;
            }
        }
    }

    fn keep(&mut self, writes: impl IntoIterator<Item = UnsyncedWrite>) {
        for UnsyncedWrite { sector, data } in writes {
            self.durable.sector_mut(sector).copy_from_slice(&data);
        }
    }

    /// Each sector ends as any of its versions since the last sync.
    fn keep_scattered(&mut self, unsynced: Vec<UnsyncedWrite>) {
        let mut versions: BTreeMap<u64, Vec<Sector>> = BTreeMap::new();
        for UnsyncedWrite { sector, data } in unsynced {
            versions.entry(sector).or_default().push(data);
        }
        for (sector, versions) in versions {
            let chosen = self.random.index(versions.len() + 1);
            if chosen < versions.len() {
                self.durable.sector_mut(sector).copy_from_slice(&versions[chosen]);
            }
        }
    }

    fn store(&mut self, offset: u64, mut bytes: &[u8]) {
        for piece in pieces(offset, bytes.len()) {
            let (now, rest) = bytes.split_at(piece.within.len());
            bytes = rest;
            self.held += u64::from(!self.cached.holds(piece.sector));
            let held = self.cached.sector_mut(piece.sector);
            held[piece.within].copy_from_slice(now);
            let data = Sector::try_from(&*held).expect("one sector");
            self.unsynced.push(UnsyncedWrite { sector: piece.sector, data });
        }
    }

    fn check_range(&self, offset: u64, len: usize) -> Result<(), DiskError> {
        match offset.checked_add(len as u64) {
            Some(end) if end <= self.size => Ok(()),
            Some(_) | None => Err(DiskError::OutOfRange),
        }
    }

    fn check_space(&mut self, offset: u64, len: usize) -> Result<(), DiskError> {
        let is_new = |sector: &u64| !self.cached.holds(*sector);
        let new = pieces(offset, len).map(|piece| piece.sector).filter(is_new).count() as u64;
        if new == 0 {
            return Ok(());
        }
        if self.sectors_max < self.held + new {
            self.counts.count("full disk");
            return Err(DiskError::Full);
        }
        Ok(())
    }
}

/// A place on a disk of this size as a place in memory.
fn index(number: u64) -> usize {
    usize::try_from(number).expect("simulated disks fit in memory")
}

fn within(offset: u64) -> usize {
    usize::try_from(offset % SECTOR as u64).expect("below a sector")
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
        let start = within(at);
        let len = (SECTOR - start).min(usize::try_from(end - at).unwrap_or(SECTOR));
        at += len as u64;
        Some(Piece { sector, within: start..start + len })
    })
}

#[cfg(test)]
mod tests;
