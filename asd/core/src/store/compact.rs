//! Compaction: the records of a segment that still count are copied to the head, then the segment is freed.
//!
//! A copy keeps its sequence, so merging sees it as the same version at a later place. Tombstones are copied as long as
//! they hide a put in another segment. Order makes it safe at every power cut: copies synced → index, without the victim's
//! records, synced → victim's header says freed, synced → only now may another segment be compacted, and so may a
//! tombstone that hid a put of this one disappear.
//!
//! A fragment that is damaged can't be copied: its segment stays, pinned, until the fragment is overwritten or deleted.
//!
//! Invariant: a segment is freed only when the index has no entry in it.

use super::append::{Draft, Durable, Run};
use super::{Health, NoHead, Store};
use crate::crc;
use crate::disk::{Disk, DiskError, FileId};
use crate::index::{Durability, Entry, Index, IndexError};
use crate::ledger::Changes;
use crate::record::{Header, Kind};
use crate::segment::HEADER_ROOM;
use crate::walk::{Placed, Step, Walk};
use bytes::Bytes;
use model::{Lap, Now};
use std::collections::{BTreeMap, VecDeque};

/// A victim that is being emptied.
pub(super) struct Compaction {
    lap: Lap,
    file: FileId,
    len: u64,
    todo: VecDeque<Placed>,
    /// Put records of each key in the victim.
    puts: BTreeMap<Bytes, u32>,
}

/// What a step did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// No segment is worth emptying.
    Idle,
    /// Bytes read and written again.
    Copied(u64),
    /// A segment of this many bytes is free.
    Freed(u64),
    /// The segment holds damaged fragments and stays.
    Pinned(Lap),
    /// It can't go on now: no room, or the disk or the index fails.
    Blocked,
}

enum Stop {
    Index(IndexError),
    NoHead,
}

impl From<IndexError> for Stop {
    fn from(error: IndexError) -> Self {
        Self::Index(error)
    }
}

impl<D: Disk, I: Index> Store<D, I> {
    /// Whether [`Store::compact`] would find something to do.
    #[must_use]
    pub fn compaction_is_due(&self) -> bool {
        self.may_compact() && (self.compaction.is_some() || self.next_victim().is_some())
    }

    /// Whether puts wait for what compaction frees.
    #[must_use]
    pub fn is_tight(&self) -> bool {
        self.options.limits.is_tight(self.ledger.allocated())
    }

    fn may_compact(&self) -> bool {
        self.broken.is_none() && self.health == Health::Good
    }

    fn next_victim(&self) -> Option<Lap> {
        let head = self.head.map(|head| head.lap);
        self.options.limits.victim(&self.ledger, head, &self.pinned)
    }

    /// One step: chooses a victim, copies about `budget` bytes of it, or frees it.
    pub fn compact(&mut self, budget: u64, now: Now) -> Progress {
        if !self.may_compact() {
            return Progress::Blocked;
        }
        let Some(mut compaction) = self.compaction.take() else {
            return self.begin();
        };
        if compaction.todo.is_empty() {
            return self.free_victim(&compaction, now);
        }
        match self.copy_some(&mut compaction, budget, now) {
            Ok(bytes) => {
                self.counters.bytes_copied += bytes;
                self.compaction = Some(compaction);
                Progress::Copied(bytes)
            }
            Err(Stop::Index(error)) => {
                self.broken = Some(error);
                Progress::Blocked
            }
            Err(Stop::NoHead) => Progress::Blocked,
        }
    }

    fn begin(&mut self) -> Progress {
        let Some(lap) = self.next_victim() else { return Progress::Idle };
        let row = self.ledger.rows[&lap];
        match walk_lap(&self.disk, self.options.osd, row.file, (HEADER_ROOM, row.len), lap) {
            Ok(records) => {
                let todo: VecDeque<Placed> =
                    records.into_iter().filter(|record| record.offset < row.used).collect();
                let mut puts = BTreeMap::new();
                for record in todo.iter().filter(|record| record.kind == Kind::Put) {
                    *puts.entry(record.key.clone()).or_insert(0) += 1;
                }
                let (file, len) = (row.file, row.len);
                self.compaction = Some(Compaction { lap, file, len, todo, puts });
                Progress::Copied(0)
            }
            Err(_) => {
                self.counters.io_errors += 1;
                self.pinned.insert(lap, row.live);
                Progress::Pinned(lap)
            }
        }
    }

    fn copy_some(&mut self, victim: &mut Compaction, budget: u64, now: Now) -> Result<u64, Stop> {
        let (mut run, mut durable) = (Run::default(), Durable::new());
        let (mut copied, mut stop) = (0, None);
        while copied < budget
            && let Some(record) = victim.todo.pop_front()
        {
            let Some(entry) = self.needed(victim, &record)? else { continue };
            let Some(draft) = self.draft_copy(&record, &entry) else {
                self.counters.corruptions += 1;
                continue;
            };
            copied += record.record_len();
            if let Err(no_head) = self.place(&mut run, &mut durable, draft, now) {
                stop = Some(no_head);
                break;
            }
        }
        if stop.is_none() && self.flush(&mut run, &mut durable, now).is_err() {
            stop = Some(NoHead::Failed);
        }
        // What was synced must be indexed also when the rest could not be copied.
        if !self.index_appended(&durable, Durability::Lazy) || stop.is_some() {
            return Err(Stop::NoHead);
        }
        Ok(copied)
    }

    /// The entry of a record that must be copied before its segment goes.
    fn needed(&self, victim: &Compaction, record: &Placed) -> Result<Option<Entry>, IndexError> {
        if record.kind == Kind::Mark {
            return Ok(None);
        }
        let entry = self.index.get(&record.key)?;
        Ok(entry.filter(|entry| {
            let here = entry.at.lap == record.lap && entry.at.offset == record.offset;
            let hidden_here = victim.puts.get(&record.key).copied().unwrap_or(0);
            here && (entry.kind == Kind::Put || entry.stale > hidden_here)
        }))
    }

    /// The record as it is to be written again; `None` when it is damaged.
    fn draft_copy(&self, record: &Placed, entry: &Entry) -> Option<Draft> {
        let len =
            crate::record::header_len(record.key.len(), model::usize_of(record.data_len.into()))
                + model::usize_of(record.data_len.into());
        let bytes = Bytes::from(self.disk.read_at(entry.at.file, record.offset, len).ok()?);
        let header = Header::decode(&bytes, self.options.osd, record.offset).ok()?;
        let data = bytes.slice(header.header_len()..);
        let same = Placed::of(&header) == *record && crc::matches(&data, &header.checksums);
        same.then(|| Draft {
            kind: header.kind,
            key: header.key.clone(),
            seq: header.seq,
            data,
            checksums: header.checksums,
        })
    }

    fn free_victim(&mut self, victim: &Compaction, now: Now) -> Progress {
        let mut changes = Changes::new(&self.index, &self.ledger);
        for (key, count) in &victim.puts {
            if let Err(error) = changes.forget_stale(key, *count) {
                self.broken = Some(error);
                return Progress::Blocked;
            }
        }
        let live = changes.row(victim.lap).map_or(0, |row| row.live);
        if live > 0 {
            drop(changes);
            self.pinned.insert(victim.lap, live);
            return Progress::Pinned(victim.lap);
        }
        changes.set_row(victim.lap, None);
        let batch = self.finish(changes);
        if !self.apply(&batch, Durability::Synced) {
            return Progress::Blocked;
        }
        self.pinned.remove(&victim.lap);
        self.doubt = self.doubt.filter(|doubt| doubt.lap != victim.lap);
        if let Err(error) = self.free_file(victim.file, victim.len, victim.lap) {
            // It is found and freed at the next start. Until then nothing more is compacted, since a tombstone that
            // hid a put of this segment must stay while it can come back.
            self.write_failed(&error, now);
            self.broken = Some(IndexError::Io(format!("segment {} can't be freed", victim.file)));
            return Progress::Blocked;
        }
        self.counters.segments_freed += 1;
        self.refused = false;
        Progress::Freed(victim.len)
    }

    /// Durably declares all laps up to `lap` in `file` dead, and keeps the file for reuse or gives it back.
    pub(super) fn free_file(&mut self, file: FileId, len: u64, lap: Lap) -> Result<(), DiskError> {
        self.write_segment_header(file, len, lap, None)?;
        self.keep_or_remove(file, len)
    }
}

/// All records of `lap` from an offset of `file` to its length.
pub(super) fn walk_lap(
    disk: &impl Disk,
    osd: model::OsdId,
    file: FileId,
    (from, len): (u64, u64),
    lap: Lap,
) -> Result<Vec<Placed>, DiskError> {
    let mut walk = Walk::new(osd, Lap(lap.0.saturating_sub(1)), len, from);
    let mut found = Vec::new();
    loop {
        match walk.step() {
            Step::Need { offset, len } => walk.feed(offset, disk.read_at(file, offset, len)?),
            Step::Found(record) if record.lap == lap => found.push(record),
            Step::Found(_) => {}
            Step::End => return Ok(found),
        }
    }
}
