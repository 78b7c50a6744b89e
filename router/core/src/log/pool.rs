//! The pool of segments: where the next record goes, what a sync covers, when a file may be overwritten.
//!
//! ```text
//!            place()                    every record released          list without it synced
//!   open ───────────────▶ closed ───────────────────────────▶ dead ──────────────────────────▶ free ──▶ open …
//! ```
//!
//! The next file is chosen (*reserved*) long before it is needed: a list record without it is written and synced in
//! passing, so rolling over costs no wait.
//!
//! Invariant: `synced <= written`, and no placement overlaps bytes that were placed before in the same lap.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use model::{AttachmentGeneration, Cluster, Epoch, Lap, LogId, Lsn, RequestSeq, VdiskId};

use super::record::{self, ListEntry, Op, Record, SYNC_ALIGN};
use crate::crc32c;

/// Index of a segment file.
pub type FileIndex = u32;

/// What a record of a vDisk says; the log adds where and when.
#[derive(Debug, Clone)]
pub struct Entry {
    pub vdisk: VdiskId,
    pub epoch: Epoch,
    pub lsn: Lsn,
    pub generation: AttachmentGeneration,
    pub seq: RequestSeq,
    pub last: bool,
    /// It was in the log before, and is moved.
    pub copied: bool,
    pub op: Op,
    pub cluster: Cluster,
    pub count: u64,
    pub checksums: Vec<u32>,
    pub payload: Bytes,
}

/// Where a record went, and how many bytes of which segment it pins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placement {
    pub lap: Lap,
    pub bytes: u64,
    /// Durable once the log is synced through here.
    pub end: u64,
}

/// Bytes to be written: pieces of one run lie one behind the other in one file.
#[derive(Debug)]
pub struct Run {
    pub file: FileIndex,
    pub offset: u64,
    pub pieces: Vec<Piece>,
}

/// Header (a range of [`Batch::headers`]), payload, zeroes.
#[derive(Debug)]
pub struct Piece {
    pub header: std::ops::Range<usize>,
    pub payload: Bytes,
    pub padding: usize,
}

/// What one append writes.
#[derive(Debug, Default)]
pub struct Batch {
    pub headers: Vec<u8>,
    pub runs: Vec<Run>,
}

impl Batch {
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    pub fn clear(&mut self) {
        self.headers.clear();
        self.runs.clear();
    }

    fn push(&mut self, file: FileIndex, offset: u64, record: &Record, payload: Bytes) {
        let start = self.headers.len();
        record.write_header(&mut self.headers);
        let header = start..self.headers.len();
        let padding = record.len() - header.len() - payload.len();
        let piece = Piece { header, payload, padding };
        if let Some(run) = self.runs.last_mut()
            && run.file == file
            && run.offset + run.len() == offset
        {
            run.pieces.push(piece);
        } else {
            self.runs.push(Run { file, offset, pieces: vec![piece] });
        }
    }
}

impl Run {
    #[must_use]
    pub fn len(&self) -> u64 {
        self.pieces.iter().map(|p| (p.header.len() + p.payload.len() + p.padding) as u64).sum()
    }

    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }
}

#[derive(Debug)]
struct Segment {
    file: FileIndex,
    /// Position behind the last record; 0 while open.
    end: u64,
    /// Bytes of records that are still needed.
    live: u64,
}

#[derive(Debug, Clone, Copy)]
struct Reserved {
    file: FileIndex,
    /// The file may be overwritten once the log is synced through here.
    list_end: u64,
}

/// One segment as a scan left it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reopened {
    pub lap: Lap,
    pub file: FileIndex,
    pub end: u64,
}

/// One sync: what it covers once it is done, and the files it must sync.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SyncJob {
    pub through: u64,
    pub files: Vec<FileIndex>,
}

/// The log is full until segments are released or a sync completes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the write log has no free segment")]
pub struct NoRoom;

/// The pool.
#[derive(Debug)]
pub struct Log {
    id: LogId,
    segment_size: u64,
    files: u32,
    /// Files whose zeroes are on disk.
    ready: BTreeSet<FileIndex>,
    free: BTreeSet<FileIndex>,
    segments: BTreeMap<Lap, Segment>,
    open: Lap,
    offset: u64,
    next_lap: Lap,
    reserved: Option<Reserved>,
    written: u64,
    synced: u64,
    syncing: Option<u64>,
    /// Files with bytes that no started sync covers.
    dirty: BTreeSet<FileIndex>,
    align_next: bool,
}

impl Log {
    /// A log that goes on after `segments` (empty for a new one). The first record of `first` is put into `batch`; write
    /// and sync it before anything else. `first` must be a file that none of the segments uses.
    #[must_use]
    pub fn open(start: OpenLog, batch: &mut Batch) -> Self {
        let OpenLog { id, segment_size, files, segments, next_lap, first } = start;
        assert!(segments.iter().all(|segment| segment.file != first), "file {first} is in use");
        let written = segments.iter().map(|segment| segment.end).max().unwrap_or(0);
        let free = (0..files).filter(|f| *f != first && segments.iter().all(|s| s.file != *f));
        let mut log = Self {
            id,
            segment_size,
            files,
            ready: BTreeSet::from([first]),
            free: free.collect(),
            segments: segments
                .iter()
                .map(|s| (s.lap, Segment { file: s.file, end: s.end, live: 0 }))
                .collect(),
            open: next_lap,
            offset: 0,
            next_lap,
            reserved: None,
            written,
            synced: written,
            syncing: None,
            dirty: BTreeSet::new(),
            align_next: false,
        };
        log.begin_segment(first, batch);
        log
    }

    #[must_use]
    pub const fn id(&self) -> LogId {
        self.id
    }

    #[must_use]
    pub const fn synced(&self) -> u64 {
        self.synced
    }

    /// Position behind the newest record.
    #[must_use]
    pub const fn written(&self) -> u64 {
        self.written
    }

    #[must_use]
    pub const fn is_syncing(&self) -> bool {
        self.syncing.is_some()
    }

    #[must_use]
    pub fn capacity(&self) -> u64 {
        // One segment is always open and one is the next: what may be pinned is the rest.
        u64::from(self.files.saturating_sub(2).max(1)) * self.segment_size
    }

    /// Bytes of segments that can't be reused now.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.segments
            .values()
            .map(|s| match (s.end, s.live) {
                (0, _) => self.offset,
                (_, 0) => 0,
                _ => self.segment_size,
            })
            .sum()
    }

    /// Bytes of records that are still needed.
    #[must_use]
    pub fn live(&self) -> u64 {
        self.segments.values().map(|segment| segment.live).sum()
    }

    /// Bytes that records may still take, but for the ends of segments that are too short for the next one. There is a
    /// segment more once an open one of which nothing is needed any more is closed.
    #[must_use]
    pub fn room(&self) -> u64 {
        let dead = self.segments.values().filter(|s| s.end != 0 && s.live == 0).count();
        let whole = model::u64_of(self.free.len() + dead + usize::from(self.reserved.is_some()));
        self.segment_size.saturating_sub(self.offset_of_next()) + whole * self.segment_size
    }

    /// After [`NoRoom`]: whether a segment is on its way, so that there will be room although nothing is released.
    #[must_use]
    pub const fn room_is_coming(&self) -> bool {
        self.reserved.is_some()
    }

    /// Places a record and queues its bytes in `batch`.
    ///
    /// # Errors
    /// When there is no room now. Nothing is changed then but that a sync may be wanted.
    pub fn place(&mut self, entry: Entry, batch: &mut Batch) -> Result<Placement, NoRoom> {
        let len = record::record_len(entry.checksums.len(), entry.payload.len()) as u64;
        self.make_room(len, batch)?;
        let record = Record {
            vdisk: entry.vdisk,
            epoch: entry.epoch,
            lsn: entry.lsn,
            generation: entry.generation,
            seq: entry.seq,
            last: entry.last,
            copied: entry.copied,
            op: entry.op,
            cluster: entry.cluster,
            count: entry.count,
            checksums: entry.checksums,
            ..self.blank(model::u32_of(entry.payload.len()))
        };
        let end = self.put(&record, entry.payload, batch);
        let lap = self.open;
        self.segments.get_mut(&lap).expect("the open segment exists").live += len;
        if self.reserved.is_none() {
            self.reserve(batch);
        }
        Ok(Placement { lap, bytes: len, end })
    }

    /// Could a record of this size be placed now?
    #[must_use]
    pub fn has_room(&self, checksums: usize, payload: usize) -> bool {
        let len = record::record_len(checksums, payload) as u64;
        self.fits(len) || self.reserved_is_ready()
    }

    /// A record that recovery found is still needed.
    pub fn pin(&mut self, lap: Lap, bytes: u64) {
        if let Some(segment) = self.segments.get_mut(&lap) {
            segment.live += bytes;
        }
    }

    /// A record isn't needed any more: it is in the backend, or a synced copy of it lies elsewhere in the log.
    pub fn release(&mut self, lap: Lap, bytes: u64) {
        let segment = self.segments.get_mut(&lap).expect("released records lie in known segments");
        segment.live = segment.live.checked_sub(bytes).expect("released no more than was pinned");
    }

    /// Closed segments of which at most one part in `parts` is still needed, oldest first: what to empty by copying its
    /// last records forward, when the log runs short (P9).
    #[must_use]
    pub fn sparse(&self, parts: u64) -> Vec<Lap> {
        let live_max = self.segment_size / parts;
        let closed = self.segments.iter().filter(|(_, segment)| segment.end != 0);
        closed.filter(|(_, s)| 0 < s.live && s.live <= live_max).map(|(lap, _)| *lap).collect()
    }

    /// The oldest segment with needed records.
    #[must_use]
    pub fn oldest(&self) -> Option<Lap> {
        self.segments.iter().find(|(_, s)| 0 < s.live).map(|(lap, _)| *lap)
    }

    /// A sync of everything placed so far, unless one is running or nothing is new.
    pub fn begin_sync(&mut self) -> Option<SyncJob> {
        if self.syncing.is_some() || self.written <= self.synced {
            return None;
        }
        self.syncing = Some(self.written);
        // P8: whatever is appended from now on must not rewrite a sector that this sync covers.
        self.align_next = true;
        let files = std::mem::take(&mut self.dirty).into_iter().collect();
        Some(SyncJob { through: self.written, files })
    }

    /// The running sync succeeded.
    pub fn sync_done(&mut self) {
        let through = self.syncing.take().expect("a sync was running");
        self.synced = self.synced.max(through);
    }

    /// The zeroes of `file` are on disk.
    pub fn file_ready(&mut self, file: FileIndex) {
        self.ready.insert(file);
    }

    /// The file that must be zero-written before it is needed.
    #[must_use]
    pub fn file_wanted(&self) -> Option<FileIndex> {
        self.reserved.map(|r| r.file).filter(|file| !self.ready.contains(file))
    }

    /// True when writers wait for the reserved segment and only a sync is missing.
    #[must_use]
    pub fn wants_sync(&self) -> bool {
        self.syncing.is_none() && self.reserved.is_some_and(|r| self.synced < r.list_end)
    }

    /// Chooses the next file if none is chosen yet; called when segments died.
    pub fn reserve(&mut self, batch: &mut Batch) {
        if self.reserved.is_some() {
            return;
        }
        let dead: Vec<Lap> = self
            .segments
            .iter()
            .filter(|(_, segment)| segment.end != 0 && segment.live == 0)
            .map(|(lap, _)| *lap)
            .collect();
        for lap in dead {
            let segment = self.segments.remove(&lap).expect("just seen");
            self.free.insert(segment.file);
        }
        let ready = self.free.iter().find(|file| self.ready.contains(file)).copied();
        let Some(file) = ready.or_else(|| self.free.first().copied()) else { return };
        if self.segment_size < self.offset + SYNC_ALIGN + self.list_len() {
            // The list doesn't fit behind; `make_room` keeps space for it, so this is only reached after a scan.
            return;
        }
        self.free.remove(&file);
        let list = self.list();
        let record = self.list_record(Op::List, &list);
        let list_end = self.put(&record, list, batch);
        self.reserved = Some(Reserved { file, list_end });
    }

    fn reserved_is_ready(&self) -> bool {
        self.reserved.is_some_and(|r| r.list_end <= self.synced && self.ready.contains(&r.file))
    }

    /// Space for one list is kept free at the end of each segment.
    fn fits(&self, len: u64) -> bool {
        let list = if self.reserved.is_none() { SYNC_ALIGN + self.list_len() } else { 0 };
        self.offset_of_next() + len + list <= self.segment_size
    }

    fn list_len(&self) -> u64 {
        record::record_len(1, (self.segments.len() + 2) * 16) as u64
    }

    fn make_room(&mut self, len: u64, batch: &mut Batch) -> Result<(), NoRoom> {
        assert!(
            len + 4 * SYNC_ALIGN + self.list_len() <= self.segment_size,
            "segments are too small"
        );
        if self.fits(len) {
            return Ok(());
        }
        if self.reserved.is_none() {
            self.reserve(batch);
        }
        if !self.reserved_is_ready() {
            return Err(NoRoom);
        }
        let file = self.reserved.take().expect("checked").file;
        let written = self.written;
        self.segments.get_mut(&self.open).expect("the open segment exists").end = written;
        self.begin_segment(file, batch);
        Ok(())
    }

    fn begin_segment(&mut self, file: FileIndex, batch: &mut Batch) {
        self.open = self.next_lap;
        self.next_lap = self.next_lap.next();
        self.segments.insert(self.open, Segment { file, end: 0, live: 0 });
        self.offset = 0;
        self.align_next = false;
        let list = self.list();
        let record = self.list_record(Op::Start, &list);
        self.put(&record, list, batch);
    }

    fn list(&self) -> Bytes {
        let entries: Vec<ListEntry> =
            self.segments.iter().map(|(lap, s)| ListEntry { lap: *lap, end: s.end }).collect();
        record::encode_list(&entries)
    }

    fn list_record(&self, op: Op, list: &Bytes) -> Record {
        Record { op, checksums: vec![crc32c(list)], ..self.blank(model::u32_of(list.len())) }
    }

    fn offset_of_next(&self) -> u64 {
        if self.align_next { self.offset.next_multiple_of(SYNC_ALIGN) } else { self.offset }
    }

    fn blank(&self, payload_len: u32) -> Record {
        Record {
            log: self.id,
            lap: self.open,
            position: self.open.0 * self.segment_size + self.offset_of_next(),
            previous_end: self.written,
            synced_through: self.synced,
            vdisk: VdiskId(0),
            epoch: Epoch(0),
            lsn: Lsn(0),
            generation: AttachmentGeneration(0),
            seq: RequestSeq(0),
            last: false,
            copied: false,
            op: Op::List,
            cluster: Cluster(0),
            count: 0,
            payload_len,
            checksums: Vec::new(),
        }
    }

    fn put(&mut self, record: &Record, payload: Bytes, batch: &mut Batch) -> u64 {
        let file = self.segments[&self.open].file;
        let offset = self.offset_of_next();
        batch.push(file, offset, record, payload);
        self.dirty.insert(file);
        self.offset = offset + record.len() as u64;
        self.align_next = false;
        self.written = record.end();
        self.written
    }
}

/// How a log is opened.
#[derive(Debug)]
pub struct OpenLog {
    pub id: LogId,
    pub segment_size: u64,
    pub files: u32,
    pub segments: Vec<Reopened>,
    pub next_lap: Lap,
    pub first: FileIndex,
}
