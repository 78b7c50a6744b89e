//! What a log holds after a crash (P8).
//!
//! Every file is read once. Of what is valid, the newest list that isn't itself behind the torn end says which segments
//! count and where the closed ones end. A bad place above everything that was ever synced is the torn end: nothing behind
//! it counts. A bad place below that is damage, and is reported, never skipped silently (L7).
//!
//! Invariant: of two logs that differ only in bytes written after the last completed sync, both scans agree on every
//! record below it.

use std::collections::BTreeMap;

use model::{Lap, LogId};

use super::pool::{FileIndex, Reopened};
use super::record::{self, ALIGN, ListEntry, MAGIC, Record, SYNC_ALIGN};

/// A record of a vDisk, its payload verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    pub record: Record,
    pub file: FileIndex,
    /// Of the payload within the file.
    pub payload_offset: u64,
}

/// Bytes below the synced position that aren't what was written there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    pub from: u64,
    pub to: u64,
    /// Set when the header is intact and only its data is bad: then it is known what is missing.
    pub record: Option<Record>,
}

/// What a log holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scan {
    /// In order of position. Copies of one LSN may occur (copy-forward).
    pub records: Vec<Found>,
    pub damages: Vec<Damage>,
    pub segments: Vec<Reopened>,
    pub next_lap: Lap,
    /// Nothing at or above this position counts.
    pub end: u64,
    /// Highest position that was known to be on stable storage.
    pub synced: u64,
}

/// The lists are gone though records say that something was synced: nothing can be said about this log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the write log has synced records up to position {synced} but no readable segment list")]
pub struct NoList {
    pub synced: u64,
}

#[derive(Debug, Clone)]
enum Spot {
    Good(Found),
    List { position: u64, entries: Vec<ListEntry> },
    Bad { from: u64, to: u64, record: Option<Record> },
}

impl Spot {
    const fn from(&self) -> u64 {
        match self {
            Self::Good(found) => found.record.position,
            Self::List { position, .. } => *position,
            Self::Bad { from, .. } => *from,
        }
    }
}

struct FileScan {
    file: FileIndex,
    spots: Vec<Spot>,
}

/// Takes the files one by one, then judges.
pub struct Scanner {
    log: LogId,
    segment_size: u64,
    laps: BTreeMap<Lap, FileScan>,
    synced: u64,
}

impl Scanner {
    #[must_use]
    pub const fn new(log: LogId, segment_size: u64) -> Self {
        Self { log, segment_size, laps: BTreeMap::new(), synced: 0 }
    }

    /// Reads one whole segment file.
    pub fn add_file(&mut self, file: FileIndex, bytes: &[u8]) {
        let Some(lap) = self.lap_of(bytes) else { return };
        let base = lap.0 * self.segment_size;
        let end = base + bytes.len() as u64;
        let mut spots = Vec::new();
        let mut at = 0;
        let mut previous_end: Option<u64> = None;
        while at + record::FIXED <= bytes.len() {
            if let Some((offset, found)) = self.next_in_chain(bytes, lap, at, previous_end) {
                at = offset + found.len();
                previous_end = Some(found.end());
                spots.push(self.spot(file, bytes, offset, found));
                continue;
            }
            let resumed = self.resync(bytes, lap, at);
            let to = resumed.map_or(end, |offset| base + offset as u64);
            spots.push(Spot::Bad {
                from: previous_end.unwrap_or(base + at as u64),
                to,
                record: None,
            });
            let Some(offset) = resumed else { break };
            at = offset;
            previous_end = None;
        }
        if !matches!(spots.last(), Some(Spot::Bad { .. })) {
            spots.push(Spot::Bad { from: base + at as u64, to: end, record: None });
        }
        self.laps.insert(lap, FileScan { file, spots });
    }

    /// # Errors
    /// When something was synced but no list of segments is readable.
    pub fn finish(self) -> Result<Scan, NoList> {
        let next_lap = self.laps.keys().next_back().map_or(Lap(1), |lap| lap.next());
        let mut lists: Vec<(u64, &Vec<ListEntry>)> = self
            .laps
            .values()
            .flat_map(|file| &file.spots)
            .filter_map(|spot| match spot {
                Spot::List { position, entries } => Some((*position, entries)),
                Spot::Good(_) | Spot::Bad { .. } => None,
            })
            .collect();
        lists.sort_by_key(|(position, _)| std::cmp::Reverse(*position));
        for (position, entries) in lists {
            let scan = self.judge(entries, next_lap);
            // A list behind the torn end may leave out segments whose copies-forward were torn away with it.
            if position < scan.end {
                return Ok(scan);
            }
        }
        if self.synced == 0 {
            return Ok(Scan { next_lap, ..Scan::default() });
        }
        Err(NoList { synced: self.synced })
    }

    fn judge(&self, entries: &[ListEntry], next_lap: Lap) -> Scan {
        let mut scan = Scan { next_lap, synced: self.synced, ..Scan::default() };
        for entry in entries {
            let base = entry.lap.0.saturating_mul(self.segment_size);
            let whole = base.saturating_add(self.segment_size);
            let end = if entry.end == 0 { whole } else { entry.end };
            let missing = [Spot::Bad { from: base, to: end, record: None }];
            let known = self.laps.get(&entry.lap);
            let spots = known.map_or(&missing[..], |file| &file.spots);
            for spot in spots.iter().filter(|spot| spot.from() < end) {
                match spot {
                    Spot::Good(found) => scan.records.push(found.clone()),
                    Spot::List { .. } => {}
                    Spot::Bad { from, to, record } if *from < self.synced => {
                        scan.damages.push(Damage {
                            from: *from,
                            to: *to.min(&end),
                            record: record.clone(),
                        });
                    }
                    Spot::Bad { from, .. } => {
                        // The torn end, or simply the end.
                        scan.end = *from;
                        let file = known.map(|file| file.file);
                        scan.segments.extend(file.map(|file| Reopened {
                            lap: entry.lap,
                            file,
                            end: *from,
                        }));
                        return scan;
                    }
                }
            }
            scan.end = end;
            scan.segments.extend(known.map(|file| Reopened {
                lap: entry.lap,
                file: file.file,
                end,
            }));
        }
        scan
    }

    /// The lap of the file's newest use: its first record says it, or else the newest valid record in it.
    fn lap_of(&mut self, bytes: &[u8]) -> Option<Lap> {
        let mut newest = None;
        let mut at = 0;
        while at + record::FIXED <= bytes.len() {
            let Some(record) = self.own_record(bytes, at) else {
                at += ALIGN;
                continue;
            };
            self.synced = self.synced.max(record.synced_through);
            newest = newest.max(Some(record.lap));
            at += record.header_len();
        }
        newest
    }

    /// A valid record of this log that lies where it says.
    fn own_record(&self, bytes: &[u8], at: usize) -> Option<Record> {
        let rest = bytes.get(at..)?;
        if rest.get(..4) != Some(&MAGIC.to_le_bytes()) {
            return None;
        }
        let record = Record::parse(rest).ok()?;
        // A lap that no log ever reaches is none of ours, however right its checksum is.
        let base = record.lap.0.checked_mul(self.segment_size)?;
        base.checked_add(self.segment_size)?;
        let fits = record.log == self.log
            && record.position == base + at as u64
            && at + record.len() <= bytes.len();
        fits.then_some(record)
    }

    fn record_of(&self, bytes: &[u8], lap: Lap, at: usize) -> Option<Record> {
        self.own_record(bytes, at).filter(|record| record.lap == lap)
    }

    /// The record that follows: right here, or on the next fresh block if it says that it follows right here.
    fn next_in_chain(
        &self,
        bytes: &[u8],
        lap: Lap,
        at: usize,
        previous_end: Option<u64>,
    ) -> Option<(usize, Record)> {
        let linked = |record: &Record| previous_end.is_none_or(|end| record.previous_end == end);
        if let Some(record) = self.record_of(bytes, lap, at).filter(linked) {
            return Some((at, record));
        }
        let fresh = at.next_multiple_of(model::usize_of(SYNC_ALIGN));
        let record = self.record_of(bytes, lap, fresh)?;
        (previous_end == Some(record.previous_end)).then_some((fresh, record))
    }

    fn resync(&self, bytes: &[u8], lap: Lap, at: usize) -> Option<usize> {
        (at.next_multiple_of(ALIGN)..bytes.len())
            .step_by(ALIGN)
            .find(|offset| self.record_of(bytes, lap, *offset).is_some())
    }

    fn spot(&self, file: FileIndex, bytes: &[u8], offset: usize, record: Record) -> Spot {
        let start = offset + record.header_len();
        let payload = &bytes[start..start + record.payload_len as usize];
        if !record.payload_is_intact(payload) {
            return Spot::Bad { from: record.position, to: record.end(), record: Some(record) };
        }
        if record.op.is_list() {
            return Spot::List { position: record.position, entries: record::decode_list(payload) };
        }
        Spot::Good(Found { record, file, payload_offset: start as u64 })
    }
}

#[cfg(test)]
mod tests;
