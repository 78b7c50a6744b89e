//! One log of one vDisk at a target: append-only chunk files, what of them counts after a crash, and where a record lies.
//!
//! Chunks are what space is given back in: a chunk whose records are all in the backend is removed. The next append goes
//! behind the last good block; after a start it goes into a new chunk, so bytes behind a torn end are never believed.
//!
//! Invariant: the records `base + 1 ..= last` are in the files without a gap, and after a crash at least those up to
//! `synced` are found again, or the log says that it is damaged.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use model::{DtlGeneration, Lsn, VdiskId};
use wire::dtl::Held;

use super::block::{self, HEADER, Header, LogPromise, SYNC_ALIGN, Whose};
use crate::log::pool::Entry;

/// One file of one log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ChunkId {
    pub generation: DtlGeneration,
    pub number: u64,
}

/// Blocks of one chunk are found by their first LSN in steps of about this, so that small records cost little memory.
const GROUP_BYTES: u64 = 64 << 10;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DiskError {
    #[error("the disk is full")]
    Full,
    #[error("{0}")]
    Failed(String),
}

/// The files of one vDisk at a target.
pub trait Disk {
    /// All chunk files.
    ///
    /// # Errors
    /// When the directory can't be read.
    fn chunks(&self) -> Result<Vec<ChunkId>, DiskError>;

    /// Writes `parts` one behind the other, making the file if it isn't there; not durable before [`Disk::sync`].
    ///
    /// # Errors
    /// After an error any part of it may have been written.
    fn write(&self, chunk: ChunkId, offset: u64, parts: &[Bytes]) -> Result<(), DiskError>;

    /// The data and the names of these chunks are on stable storage when this returns.
    ///
    /// # Errors
    /// What was written since the last sync is in an unknown state then, whatever a later sync says.
    fn sync(&self, chunks: &[ChunkId]) -> Result<(), DiskError>;

    /// Syncs these chunks, and from now on readers see what is on stable storage: a failed sync, also of a process before
    /// this one, leaves in memory what readers see and no later sync writes.
    ///
    /// # Errors
    /// As [`Disk::sync`]; readers may then see either.
    fn refresh(&self, chunks: &[ChunkId]) -> Result<(), DiskError>;

    /// A part of a chunk; shorter where the file ends.
    ///
    /// # Errors
    /// When the disk fails.
    fn read(&self, chunk: ChunkId, offset: u64, len: u64) -> Result<Bytes, DiskError>;

    /// # Errors
    /// When the disk fails; a later start removes what is left over.
    fn remove(&self, chunk: ChunkId) -> Result<(), DiskError>;

    /// The file of promises, if there is one.
    ///
    /// # Errors
    /// When the disk fails.
    fn promises(&self) -> Result<Option<Bytes>, DiskError>;

    /// Replaces the file of promises: whole, and on stable storage when this returns.
    ///
    /// # Errors
    /// The old one or the new one is there then.
    fn promise(&self, bytes: &Bytes) -> Result<(), DiskError>;
}

/// One sync: what it covers once it is done, and the files it must sync.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SyncJob {
    pub through: Lsn,
    pub chunks: Vec<ChunkId>,
}

#[derive(Debug)]
struct Chunk {
    last: Lsn,
    len: u64,
}

#[derive(Debug, Clone, Copy)]
struct Group {
    chunk: u64,
    /// Where its first block may begin: the end of the block before.
    previous_end: u64,
    end: u64,
}

/// See the module's page.
#[derive(Debug)]
pub struct Log {
    vdisk: VdiskId,
    pub promise: LogPromise,
    last: Lsn,
    synced: Lsn,
    damaged: bool,
    chunk_bytes: u64,
    chunks: BTreeMap<u64, Chunk>,
    groups: BTreeMap<Lsn, Group>,
    open: Option<u64>,
    next_chunk: u64,
    align_next: bool,
    dirty: BTreeSet<u64>,
    syncing: Option<SyncJob>,
}

impl Log {
    #[must_use]
    pub fn new(vdisk: VdiskId, promise: LogPromise, chunk_bytes: u64) -> Self {
        Self {
            vdisk,
            last: promise.base,
            synced: promise.base,
            promise,
            damaged: false,
            chunk_bytes,
            chunks: BTreeMap::new(),
            groups: BTreeMap::new(),
            open: None,
            next_chunk: 0,
            align_next: false,
            dirty: BTreeSet::new(),
            syncing: None,
        }
    }

    /// What a crash left of a log. Chunks that don't count are removed, the others synced: a page cache isn't a disk.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn recover<D: Disk>(
        vdisk: VdiskId,
        promise: LogPromise,
        chunk_bytes: u64,
        disk: &D,
    ) -> Result<Self, DiskError> {
        let mut log = Self::new(vdisk, promise, chunk_bytes);
        let generation = log.promise.generation;
        let mut found = disk.chunks()?;
        found.retain(|chunk| chunk.generation == generation);
        found.sort_unstable();
        log.next_chunk = found.last().map_or(0, |chunk| chunk.number + 1);
        // Before anything is believed: a seal tells others that it is synced (L2).
        disk.refresh(&found)?;
        let mut next = None;
        let mut witness = Lsn::ZERO;
        let mut torn = Vec::new();
        for chunk in found {
            let bytes = disk.read(chunk, 0, u64::MAX)?;
            witness = witness.max(block::testimony(&bytes, &log.whose(chunk.number)));
            if log.take_chunk(chunk.number, &bytes, &mut next) == 0 {
                torn.push(chunk);
            }
        }
        log.last = next.map_or(log.promise.base, |next: Lsn| Lsn(next.0 - 1)).max(log.promise.base);
        log.synced = log.last;
        // P8: a missing record that was synced is damage, one that wasn't is the torn end.
        log.damaged = log.last < witness;
        if !log.damaged {
            torn.iter().try_for_each(|chunk| disk.remove(*chunk))?;
        }
        Ok(log)
    }

    /// Takes the good blocks at the start of a chunk; returns how many.
    fn take_chunk(&mut self, number: u64, bytes: &Bytes, next: &mut Option<Lsn>) -> usize {
        let whose = self.whose(number);
        let (mut end, mut taken) = (0, 0);
        while let Some(block) = block::next(bytes, 0, end, &whose) {
            let first = block.header.first;
            // Below the base nothing is needed, so there may be holes: a trim can overtake the records.
            let immaterial = self.promise.base.next();
            let joins = next.map_or(first <= immaterial, |next| {
                first == next || (next < first && first <= immaterial)
            });
            if !joins {
                break;
            }
            let last = Lsn(first.0 + block.entries.len() as u64 - 1);
            self.note(number, first, last, (end, block.end));
            *next = Some(last.next());
            end = block.end;
            taken += 1;
        }
        taken
    }

    fn note(&mut self, number: u64, first: Lsn, last: Lsn, (previous_end, end): (u64, u64)) {
        self.chunks.insert(number, Chunk { last, len: end });
        if let Some(mut group) = self.groups.last_entry()
            && group.get().chunk == number
            && group.get().end == previous_end
            && group.get().end - group.get().previous_end < GROUP_BYTES
        {
            group.get_mut().end = end;
        } else {
            self.groups.insert(first, Group { chunk: number, previous_end, end });
        }
    }

    fn whose(&self, chunk: u64) -> Whose {
        let LogPromise { epoch, nonce, .. } = self.promise;
        Whose { vdisk: self.vdisk, epoch, nonce, chunk }
    }

    const fn id(&self, number: u64) -> ChunkId {
        ChunkId { generation: self.promise.generation, number }
    }

    #[must_use]
    pub const fn last(&self) -> Lsn {
        self.last
    }

    #[must_use]
    pub const fn synced(&self) -> Lsn {
        self.synced
    }

    #[must_use]
    pub const fn is_sound(&self) -> bool {
        !self.damaged && !self.promise.failed
    }

    /// All its files.
    #[must_use]
    pub fn chunks(&self) -> Vec<ChunkId> {
        self.chunks.keys().map(|number| self.id(*number)).collect()
    }

    /// Bytes of its files.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.chunks.values().map(|chunk| chunk.len).sum()
    }

    /// Bytes of its files that may hold what isn't in the backend, about.
    #[must_use]
    pub fn needed_bytes(&self) -> u64 {
        if self.is_empty() {
            return 0;
        }
        let from = self.promise.base.next();
        let start = self.groups.range(..=from).next_back().map_or(from, |(first, _)| *first);
        let groups = self.groups.range(start..);
        groups.map(|(_, group)| group.end - group.previous_end).sum()
    }

    #[must_use]
    pub const fn held(&self) -> Held {
        Held {
            generation: self.promise.generation,
            epoch: self.promise.epoch,
            base: self.promise.base,
            last: self.last,
            synced: self.synced,
            damaged: !self.is_sound(),
        }
    }

    /// Appends records `first ..` with consecutive LSNs; `first` is the one after the last.
    ///
    /// # Errors
    /// Nothing has changed then; the same place is written again by the next append.
    pub fn append<D: Disk>(
        &mut self,
        first: Lsn,
        count: usize,
        records: Bytes,
        disk: &D,
    ) -> Result<(), DiskError> {
        assert_eq!(first, self.last.next(), "appends join");
        assert!(0 < count, "an append has records");
        let open = self.open.filter(|open| self.chunks[open].len < self.chunk_bytes);
        let number = open.unwrap_or(self.next_chunk);
        let previous_end = open.map_or(0, |open| self.chunks[&open].len);
        let align = if self.align_next { SYNC_ALIGN } else { HEADER as u64 };
        let header = Header {
            nonce: self.promise.nonce,
            chunk: number,
            offset: previous_end.next_multiple_of(align),
            previous_end,
            first,
            synced: self.synced,
            len: model::u32_of(records.len()),
        };
        let end = header.offset + (HEADER + records.len()) as u64;
        let parts = [Bytes::copy_from_slice(&header.bytes()), records];
        disk.write(self.id(number), header.offset, &parts)?;
        self.open = Some(number);
        self.next_chunk = self.next_chunk.max(number + 1);
        self.align_next = false;
        self.dirty.insert(number);
        self.last = Lsn(first.0 + count as u64 - 1);
        self.note(number, first, self.last, (previous_end, end));
        Ok(())
    }

    /// A sync of everything appended so far, unless one is running or nothing is new.
    pub fn begin_sync(&mut self) -> Option<SyncJob> {
        if self.syncing.is_some() || self.last <= self.synced || !self.is_sound() {
            return None;
        }
        let dirty = std::mem::take(&mut self.dirty);
        let chunks = dirty.into_iter().map(|number| self.id(number)).collect();
        let job = SyncJob { through: self.last, chunks };
        // P8: whatever is appended from now on must not rewrite a sector that this sync covers.
        self.align_next = true;
        self.syncing = Some(job.clone());
        Some(job)
    }

    /// The running sync succeeded.
    pub fn sync_done(&mut self) {
        let job = self.syncing.take().expect("a sync was running");
        self.synced = self.synced.max(job.through);
    }

    /// The running sync failed: what is on the disk can't be known any more.
    pub fn sync_failed(&mut self) {
        self.syncing = None;
        self.promise.failed = true;
    }

    #[must_use]
    pub const fn is_syncing(&self) -> bool {
        self.syncing.is_some()
    }

    /// Everything up to `through` is in the backend.
    pub fn trim(&mut self, through: Lsn) {
        self.promise.base = self.promise.base.max(through);
        self.last = self.last.max(through);
        self.synced = self.synced.max(through);
    }

    /// Nothing is held that isn't in the backend.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.last <= self.promise.base
    }

    /// Forgets chunks that hold nothing needed; the caller removes the files.
    pub fn release(&mut self) -> Vec<ChunkId> {
        let base = self.promise.base;
        let busy: Vec<ChunkId> = self.syncing.iter().flat_map(|job| job.chunks.clone()).collect();
        let dead: Vec<ChunkId> = self
            .chunks
            .iter()
            .filter(|(_, chunk)| chunk.last <= base)
            .map(|(number, _)| self.id(*number))
            .filter(|chunk| !busy.contains(chunk))
            .collect();
        for chunk in &dead {
            self.chunks.remove(&chunk.number);
            self.dirty.remove(&chunk.number);
            self.open = self.open.filter(|open| *open != chunk.number);
        }
        self.groups.retain(|_, group| self.chunks.contains_key(&group.chunk));
        dead
    }

    /// Records from `from` on, as many as `bytes_max` holds but at least one; none when the log ends before it.
    ///
    /// # Errors
    /// When the disk fails or what it holds is damaged.
    pub fn read<D: Disk>(
        &self,
        from: Lsn,
        bytes_max: u64,
        disk: &D,
    ) -> Result<Vec<Entry>, DiskError> {
        let mut out: Vec<Entry> = Vec::new();
        let mut room = bytes_max;
        let start = self.groups.range(..=from).next_back().map_or(from, |(first, _)| *first);
        for group in self.groups.range(start..).map(|(_, group)| *group) {
            let whose = self.whose(group.chunk);
            let len = group.end - group.previous_end;
            let bytes = disk.read(self.id(group.chunk), group.previous_end, len)?;
            let mut end = group.previous_end;
            while end < group.end {
                let block = block::next(&bytes, group.previous_end, end, &whose);
                let block = block.ok_or_else(|| {
                    let place = format!("chunk {} at {end}", group.chunk);
                    DiskError::Failed(format!("{place} was written and is unreadable now"))
                })?;
                end = block.end;
                for entry in block.entries.into_iter().filter(|entry| from <= entry.lsn) {
                    let cost = record_bytes(&entry);
                    if room < cost && !out.is_empty() {
                        return Ok(out);
                    }
                    room = room.saturating_sub(cost);
                    out.push(entry);
                }
            }
            if room == 0 {
                break;
            }
        }
        Ok(out)
    }
}

fn record_bytes(entry: &Entry) -> u64 {
    crate::log::record::record_len(entry.checksums.len(), entry.payload.len()) as u64
}
