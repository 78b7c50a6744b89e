//! The store: the one writer of a disk.
//!
//! ```text
//! open: segments ─walk─▶ records ─settle─▶ what counts ─merge─▶ index      (recover.rs)
//! commit: batch ─▶ records appended ─▶ one sync ─▶ index ─▶ outcomes        (append.rs)
//! compact: victim's live records ─▶ appended, synced ─▶ index synced ─▶ victim freed   (compact.rs)
//! ```
//!
//! Deterministic: disk, index and time are arguments, so a twin can cut the power at each of its steps.
//!
//! ```text
//! Good ──write or sync fails──▶ ReadOnly ──a retry works──▶ Good
//!   ├──no segment to be had───▶ (Full, an answer) ──room returns──▶ Good
//!   └──the directory is gone──▶ Failed, for good
//! ```
//!
//! Invariants: before the first byte of a lap is written, all of the lap before it is synced; a segment is freed only
//! after the index that no longer needs it is synced, and no further one is compacted before that is durable.

mod append;
mod audit;
mod compact;
mod recover;

pub use append::{Op, Outcome, Put};
pub use compact::Progress;
pub use recover::{OpenError, Recovery};

use crate::disk::{Disk, DiskError, FileId};
use crate::index::{Batch, Checkpoint, Durability, Index, IndexError, Location, SegmentRow};
use crate::ledger::{Changes, Ledger, Pass};
use crate::record::{BATCH_ALIGN, FIXED_LEN, Header, Kind, align};
use crate::segment::{HEADER_ROOM, SegmentError, SegmentHeader};
use crate::settle::Cursor;
use crate::space::{Limits, Purpose};
use bytes::Bytes;
use model::{Lap, Now, OsdId};
use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::time::Duration;
use wire::asd::DiskState;

/// How long after a failed write the next one is tried.
pub const RETRY_AFTER: Duration = Duration::from_secs(1);
/// Freed segment files kept for reuse: their blocks are initialised, so syncs on them touch no file system metadata.
const FREE_KEPT: usize = 4;

/// What a store is opened with.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    pub osd: OsdId,
    pub limits: Limits,
}

/// The segment being written. Everything before `next` is synced, or the segment is given up.
#[derive(Debug, Clone, Copy)]
struct Head {
    file: FileId,
    len: u64,
    lap: Lap,
    next: Cursor,
    prev_end: u64,
    /// The highest offset that a record of this lap vouches for.
    vouched: u64,
}

impl Head {
    const fn end(&self) -> u64 {
        self.len - HEADER_ROOM
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Health {
    Good,
    ReadOnly { retry_at: Now },
    Failed,
}

/// Counted since the store was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    pub puts: u64,
    pub deletes: u64,
    pub syncs: u64,
    pub corruptions: u64,
    pub io_errors: u64,
    pub segments_freed: u64,
    pub bytes_copied: u64,
}

/// How full the disk is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    pub capacity: u64,
    /// Bytes of segment files that are in use, garbage included.
    pub used: u64,
    pub live: u64,
    pub fragments: u64,
    pub segments: u64,
}

pub struct Store<D, I> {
    disk: D,
    index: I,
    options: Options,
    ledger: Ledger,
    head: Option<Head>,
    /// The newest lap and where it ends; the next head names both.
    last: (Lap, u64),
    /// The head that a failed write ended. What it left behind `next` may come back, unless the file says where this lap
    /// ends, or it is wiped.
    doubt: Option<Head>,
    /// Saying where the last lap ends failed: what its header holds is in doubt.
    closing: bool,
    free: Vec<FileId>,
    next_file: u32,
    health: Health,
    /// The file system had no room for the segment that was wanted last.
    no_space: bool,
    /// A put found no room, and none was made since.
    refused: bool,
    /// Why the index must be reopened before anything else is written.
    broken: Option<IndexError>,
    compaction: Option<compact::Compaction>,
    pinned: BTreeMap<Lap, u64>,
    counters: Counters,
}

impl<D: Disk, I: Index> Store<D, I> {
    #[must_use]
    pub const fn disk(&self) -> &D {
        &self.disk
    }

    #[must_use]
    pub const fn index(&self) -> &I {
        &self.index
    }

    pub const fn disk_mut(&mut self) -> &mut D {
        &mut self.disk
    }

    pub const fn index_mut(&mut self) -> &mut I {
        &mut self.index
    }

    /// Ends the store without writing anything.
    #[must_use]
    pub fn into_parts(self) -> (D, I) {
        (self.disk, self.index)
    }

    #[must_use]
    pub const fn counters(&self) -> Counters {
        self.counters
    }

    /// Why nothing can be written until the store is opened again.
    #[must_use]
    pub const fn broken(&self) -> Option<&IndexError> {
        self.broken.as_ref()
    }

    /// The directory is gone, or something as final was found by the driver.
    pub const fn fail(&mut self) {
        self.health = Health::Failed;
    }

    #[must_use]
    pub fn usage(&self) -> Usage {
        Usage {
            capacity: self.options.limits.capacity(),
            used: self.ledger.used(),
            live: self.ledger.meta.live_bytes,
            fragments: self.ledger.meta.fragments,
            segments: model::u64_of(self.ledger.rows.len()),
        }
    }

    #[must_use]
    pub fn state(&self) -> DiskState {
        match self.health {
            Health::Failed => DiskState::Failed,
            Health::ReadOnly { .. } => DiskState::ReadOnly,
            Health::Good if self.broken.is_some() => DiskState::ReadOnly,
            Health::Good if self.is_full() => DiskState::Full,
            Health::Good => DiskState::Writable,
        }
    }

    /// Whether a put of a usual size would be refused.
    fn is_full(&self) -> bool {
        let limits = self.options.limits;
        let rest = self.head.map_or(0, |head| head.end().saturating_sub(head.next.offset));
        let next_is_allowed =
            limits.allows(self.ledger.allocated(), limits.segment(), Purpose::Put);
        let rest_is_small = rest < limits.segment() / 8 || self.refused;
        rest_is_small && (self.no_space || !next_is_allowed)
    }

    /// Says on the disk that all of the last batch was synced, so that its loss would be seen even without the index,
    /// and syncs the index. Call it before a clean stop; leaving it out loses nothing.
    pub fn close(&mut self, now: Now) {
        if self.head.is_some_and(|head| head.vouched < head.next.offset) {
            self.append_mark(now);
        }
        if self.broken.is_none() {
            let meta = self.ledger.meta;
            let batch = Batch { meta: Some(meta), ..Batch::default() };
            if let Err(error) = self.index.apply(&batch, Durability::Synced) {
                self.broken = Some(error);
            }
        }
    }

    /// Whether [`Store::probe`] may find that writes work again.
    #[must_use]
    pub const fn needs_probe(&self) -> bool {
        let doubtful = match self.health {
            Health::ReadOnly { .. } => true,
            Health::Good => self.no_space,
            Health::Failed => false,
        };
        doubtful && self.broken.is_none()
    }

    /// Tries by itself what failed, since nobody sends puts to a disk that says it takes none.
    pub fn probe(&mut self, now: Now) {
        match self.health {
            Health::ReadOnly { retry_at } if now >= retry_at => {
                let has_head =
                    self.head.is_some() || self.open_head(0, Purpose::Delete, now).is_ok();
                if has_head {
                    self.append_mark(now);
                }
            }
            Health::Good if self.no_space => {
                let limits = self.options.limits;
                let wanted = limits.allows(self.ledger.allocated(), limits.segment(), Purpose::Put);
                if !wanted {
                    self.no_space = false;
                } else if let Ok(file) = self.create_segment(limits.segment()) {
                    self.free.push(file);
                    self.no_space = false;
                    self.refused = false;
                }
            }
            Health::ReadOnly { .. } | Health::Good | Health::Failed => {}
        }
    }

    /// Durably says that all before it was synced; in a full segment the header does.
    fn append_mark(&mut self, now: Now) {
        let Some(mut head) = self.head else { return };
        if head.next.offset + BATCH_ALIGN > head.end() {
            match self.close_last() {
                Ok(()) => self.synced(),
                Err(error) => self.write_failed(&error, now),
            }
            return;
        }
        let mark = Header {
            kind: Kind::Mark,
            key: Bytes::new(),
            data_len: 0,
            number: head.next.number,
            osd: self.options.osd,
            lap: head.lap,
            offset: head.next.offset,
            seq: self.ledger.meta.next_seq,
            synced: head.next.offset,
            prev_end: head.prev_end,
            checksums: Vec::new(),
        };
        let mut bytes = mark.encode();
        debug_assert_eq!(bytes.len(), FIXED_LEN);
        bytes.resize(model::usize_of(BATCH_ALIGN), 0);
        let written = self.disk.write(head.file, mark.offset, &[Bytes::from(bytes)]);
        if let Err(error) = written.and_then(|()| self.disk.sync(head.file)) {
            self.write_failed(&error, now);
            return;
        }
        self.synced();
        head.vouched = head.next.offset;
        let end = align(mark.end(), BATCH_ALIGN);
        head.next = Cursor { offset: end, number: head.next.number + 1 };
        self.head = Some(head);
        self.last = (head.lap, mark.end());
        self.ledger.meta.checkpoint = checkpoint_of(&head);
        if let Some(row) = self.ledger.rows.get_mut(&head.lap) {
            row.used = end;
        }
    }

    const fn synced(&mut self) {
        self.counters.syncs += 1;
        if let Health::ReadOnly { .. } = self.health {
            self.health = Health::Good;
        }
    }

    /// The head's unsynced end is in doubt. The next record goes to another segment, since this one may lie on bad
    /// sectors; only when none is to be had it is tried again.
    fn write_failed(&mut self, error: &DiskError, now: Now) {
        self.doubt = self.head.take().or(self.doubt);
        match error {
            DiskError::NoSpace => self.no_space = true,
            DiskError::ReadOnly(_) | DiskError::Io(_) => {
                self.counters.io_errors += 1;
                if self.health != Health::Failed {
                    self.health = Health::ReadOnly { retry_at: now.plus(RETRY_AFTER) };
                }
            }
            DiskError::Gone(_) => {
                self.counters.io_errors += 1;
                self.health = Health::Failed;
            }
        }
    }

    /// Makes a segment that fits `record_len` the head; the head before it is wholly synced.
    fn open_head(&mut self, record_len: u64, purpose: Purpose, now: Now) -> Result<(), NoHead> {
        let limits = self.options.limits;
        let len = limits.segment_for(record_len);
        if !limits.allows(self.ledger.allocated(), len, purpose) {
            return self.resume_head(record_len, now);
        }
        let reused = if len == limits.segment() { self.free.pop() } else { None };
        let file = match reused {
            Some(file) => file,
            None => self.make_room_and_create(len).map_err(|error| {
                if error == DiskError::NoSpace {
                    self.no_space = true;
                    return NoHead::Full;
                }
                self.write_failed(&error, now);
                NoHead::Failed
            })?,
        };
        self.no_space = false;
        self.refused = false;
        if let Err(error) = self.close_last() {
            // Best effort: a file that holds nothing is found and reused at the next start.
            let _ = self.keep_or_remove(file, len);
            self.write_failed(&error, now);
            return Err(NoHead::Failed);
        }
        let (last, prev_end) = self.last;
        let lap = last.next();
        let next = Cursor { offset: HEADER_ROOM, number: 0 };
        self.head = Some(Head { file, len, lap, next, prev_end, vouched: HEADER_ROOM });
        self.last = (lap, HEADER_ROOM);
        self.ledger.rows.insert(lap, SegmentRow { file, len, used: HEADER_ROOM, live: 0 });
        Ok(())
    }

    /// Goes on with the head that a failed write ended, once what that left is durably removed: with all segments in use
    /// the disk would else never be written again.
    fn resume_head(&mut self, record_len: u64, now: Now) -> Result<(), NoHead> {
        let fits = |head: &Head| head.next.offset + record_len <= head.end();
        let Some(head) = self.doubt.filter(fits) else { return Err(NoHead::Full) };
        let Head { file, len, lap, next, .. } = head;
        // An earlier attempt may have failed to sync its wiping.
        let refreshed = self.disk.refresh(file);
        let span = (next.offset, len);
        let wiped = refreshed
            .and_then(|()| compact::walk_lap(&self.disk, self.options.osd, file, span, lap))
            .and_then(|left| self.wipe(file, left.iter().map(|record| record.offset)));
        if let Err(error) = wiped {
            self.write_failed(&error, now);
            return Err(NoHead::Failed);
        }
        (self.head, self.doubt) = (Some(head), None);
        Ok(())
    }

    /// Durably says in the file of the newest lap where its last record ends: nothing more is written to it. The next lap
    /// says so too, but may be freed first.
    fn close_last(&mut self) -> Result<(), DiskError> {
        (self.head, self.doubt) = (None, None);
        let (lap, end) = self.last;
        let Some(row) = self.ledger.rows.get(&lap) else { return Ok(()) };
        let (SegmentRow { file, len, .. }, before) = (*row, Lap(lap.0 - 1));
        if std::mem::replace(&mut self.closing, true) {
            self.disk.refresh(file)?;
        }
        self.write_segment_header(file, len, before, NonZeroU64::new(end))?;
        self.closing = false;
        Ok(())
    }

    /// Durably makes records at these offsets ones that never were.
    fn wipe(&mut self, file: FileId, offsets: impl Iterator<Item = u64>) -> Result<(), DiskError> {
        for offset in offsets {
            self.disk.write(file, offset, &[Bytes::from_static(&[0; FIXED_LEN])])?;
        }
        self.disk.sync(file)
    }

    /// Files kept for reuse are given back where they stand in the way.
    fn make_room_and_create(&mut self, len: u64) -> Result<FileId, DiskError> {
        let limits = self.options.limits;
        loop {
            let kept = model::u64_of(self.free.len()) * limits.segment();
            let fits = self.ledger.allocated() + kept + len <= limits.capacity();
            let created = if fits || self.free.is_empty() {
                self.create_segment(len)
            } else {
                Err(DiskError::NoSpace)
            };
            match (created, self.free.pop()) {
                (Err(DiskError::NoSpace), Some(unneeded)) => self.disk.remove(unneeded)?,
                (created, unneeded) => {
                    self.free.extend(unneeded);
                    return created;
                }
            }
        }
    }

    fn create_segment(&mut self, len: u64) -> Result<FileId, DiskError> {
        let file = FileId(self.next_file);
        self.disk.create(file, len)?;
        self.next_file += 1;
        if let Err(error) = self.write_segment_header(file, len, Lap(0), None) {
            // Best effort: without a header it is found and reused at the next start.
            let _ = self.disk.remove(file);
            return Err(error);
        }
        Ok(file)
    }

    /// A file that holds nothing waits for its reuse, or is given back.
    fn keep_or_remove(&mut self, file: FileId, len: u64) -> Result<(), DiskError> {
        if len == self.options.limits.segment() && self.free.len() < FREE_KEPT {
            self.free.push(file);
            return Ok(());
        }
        self.disk.remove(file)
    }

    fn write_segment_header(
        &mut self,
        file: FileId,
        len: u64,
        freed: Lap,
        closed_at: Option<NonZeroU64>,
    ) -> Result<(), DiskError> {
        let header = SegmentHeader { osd: self.options.osd, len, freed, closed_at };
        let bytes = Bytes::from(header.encode());
        // The copy that holds goes last: an earlier power cut, or rot, may have left no other.
        let mut places = [0, len - HEADER_ROOM];
        places.sort_by_key(|at| self.read_header(file, *at, len).ok().map(|copy| copy.rank()));
        // One after the other: a power cut that tears a copy leaves the other, else what this file held would be back.
        for at in places {
            self.disk.write(file, at, std::slice::from_ref(&bytes))?;
            self.disk.sync(file)?;
        }
        Ok(())
    }

    fn read_header(&self, file: FileId, at: u64, len: u64) -> Result<SegmentHeader, SegmentError> {
        let bytes = self.disk.read_at(file, at, model::usize_of(HEADER_ROOM));
        let bytes = bytes.map_err(|_| SegmentError::Damaged)?;
        SegmentHeader::decode(&bytes, self.options.osd, len)
    }

    /// A changed row of the head and the checkpoint belong to every batch.
    fn finish(&self, mut changes: Changes<'_, I>) -> Batch {
        if let Some(head) = &self.head {
            if let Some(mut row) = changes.row(head.lap) {
                row.used = head.next.offset;
                changes.set_row(head.lap, Some(row));
            }
            changes.meta.checkpoint = checkpoint_of(head);
        }
        changes.into_batch(Pass::InOrder)
    }

    /// Applies `batch` to the index and follows it; a failure breaks the store until it is opened again.
    fn apply(&mut self, batch: &Batch, durability: Durability) -> bool {
        match self.index.apply(batch, durability) {
            Ok(()) => {
                self.ledger.follow(batch);
                true
            }
            Err(error) => {
                self.broken = Some(error);
                false
            }
        }
    }
}

/// Why there is no segment to write to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NoHead {
    Full,
    Failed,
}

const fn checkpoint_of(head: &Head) -> Checkpoint {
    Checkpoint {
        lap: head.lap,
        offset: head.next.offset,
        number: head.next.number,
        prev_end: head.prev_end,
    }
}

const fn location(file: FileId, lap: Lap, offset: u64) -> Location {
    Location { lap, offset, file }
}
