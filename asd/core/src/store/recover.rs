//! Opening a disk: from segment files, and an index that may be behind, damaged or gone, to what counts.
//!
//! With an index: what lies after its checkpoint is replayed. Without: everything is. Either way the newest lap's torn end
//! is told from damage ([`crate::settle`]) and left-overs of the torn end are wiped, before the index hears of what is
//! accepted; then the index, up to date, is synced.
//!
//! The process before may have been killed after a sync failed: then its files show what no sync will ever write. So a file
//! is refreshed before anything in it is looked at, unless the index knows that it is closed: all of it was synced then.
//!
//! Interrupted at any point it can simply be done again: a replay moves the checkpoint with each batch, a rebuild writes no
//! checkpoint before its end.
//!
//! Invariant: the order of records per key, and so what a reader sees, doesn't depend on which of the two ways was taken.

use super::audit::audit;
use super::{Counters, checkpoint_of};
use super::{FREE_KEPT, Head, Health, Options, RETRY_AFTER, Store, location};
use crate::crc;
use crate::disk::{Disk, DiskError, FileId};
use crate::index::{Batch, Checkpoint, Durability, Index, IndexError, SegmentRow};
use crate::ledger::{Changes, Ledger, Pass};
use crate::record::{Header, Kind};
use crate::segment::{HEADER_ROOM, SEGMENT_MIN, SegmentError};
use crate::settle::{Bounds, Cursor, Settled, settle};
use crate::walk::{Placed, Step, Walk};
use bytes::Bytes;
use model::{Lap, Now, OsdId};
use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU64;

/// Records per batch of the index.
const CHUNK: usize = 2048;
/// Entries per page of a walk over all of them.
pub(super) const PAGE: usize = 1024;

/// What opening found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Recovery {
    /// The index was missing or unusable and was made anew.
    pub rebuilt: bool,
    /// Records that the index heard of.
    pub replayed: u64,
    /// Acknowledged records whose headers are gone.
    pub lost: u64,
    /// Records of the torn end that were wiped.
    pub wiped: u64,
    /// Segments that the index knows and the disk doesn't have; their fragments read as corrupt.
    pub missing_segments: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    #[error("segment {file}: {cause}")]
    Segment { file: FileId, cause: SegmentError },
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error(transparent)]
    Index(#[from] IndexError),
}

/// A segment file, before its records are looked at.
#[derive(Debug, Clone, Copy)]
struct Survey {
    file: FileId,
    len: u64,
    freed: Lap,
    /// Where the last record of the lap after that ends, when the file says so.
    closed_at: Option<NonZeroU64>,
    has_header: bool,
}

impl Survey {
    /// The newest lap that the file says was freed or closed.
    fn newest_over(&self) -> Lap {
        if self.closed_at.is_some() { self.freed.next() } else { self.freed }
    }
}

/// A lap whose records the index has yet to hear of.
#[derive(Debug, Clone, Copy)]
struct Source {
    survey: Survey,
    from: Cursor,
    prev_end: u64,
}

/// What is to be done, from a look at all segment files.
#[derive(Default)]
struct Plan {
    sources: BTreeMap<Lap, Source>,
    /// Hold nothing that counts: reusable as they are.
    free: Vec<Survey>,
    /// Were being freed when the power went.
    half_freed: Vec<(Survey, Lap)>,
    /// Laps in the index that were begun and hold nothing.
    empty: Vec<Lap>,
}

impl<D: Disk, I: Index> Store<D, I> {
    /// Opens the disk, whatever state a crash left it in.
    ///
    /// # Errors
    /// When the disk isn't this OSD's, or disk or index can't be read. After [`IndexError::Damaged`] delete the index
    /// and open again.
    pub fn open(
        disk: D,
        index: I,
        options: Options,
        now: Now,
    ) -> Result<(Self, Recovery), OpenError> {
        let mut store = Self {
            disk,
            index,
            options,
            ledger: Ledger::default(),
            head: None,
            last: (Lap(0), 0),
            doubt: None,
            closing: false,
            free: Vec::new(),
            next_file: 1,
            health: Health::Good,
            no_space: false,
            refused: false,
            broken: None,
            compaction: None,
            pinned: BTreeMap::new(),
            counters: Counters::default(),
        };
        let mut recovery = Recovery::default();
        let closed = store.closed_files()?;
        let mut surveys = store.survey(&closed)?;
        let plan = match store.plan_replay(&surveys, &mut recovery)? {
            Some(plan) => plan,
            None => {
                surveys = store.survey(&BTreeSet::new())?;
                store.plan_rebuild(&surveys, &mut recovery)?
            }
        };
        store.replay(&plan.sources, &mut recovery, now)?;
        if recovery.rebuilt {
            store.sweep_tombstones()?;
        }
        store.take_free(&plan, &surveys)?;
        store.counters.corruptions += recovery.lost + recovery.missing_segments;
        if let Some(head) = &store.head {
            store.ledger.meta.checkpoint = checkpoint_of(head);
        }
        let rows = store.ledger.rows.iter().map(|(lap, row)| (*lap, Some(*row)));
        let batch = Batch {
            entries: Vec::new(),
            segments: plan.empty.iter().map(|lap| (*lap, None)).chain(rows).collect(),
            meta: Some(store.ledger.meta),
        };
        store.index.apply(&batch, Durability::Synced)?;
        Ok((store, recovery))
    }

    /// Files of the laps before the one that the index saw last: each was synced, and said so, before the next was begun.
    fn closed_files(&self) -> Result<BTreeSet<FileId>, OpenError> {
        let Some(meta) = self.index.meta()? else { return Ok(BTreeSet::new()) };
        let rows = self.index.segments()?.into_iter();
        let closed = rows.filter(|(lap, _)| *lap < meta.checkpoint.lap);
        Ok(closed.map(|(_, row)| row.file).collect())
    }

    /// A look at all files; those that aren't `closed` show what is on stable storage from now on.
    fn survey(&mut self, closed: &BTreeSet<FileId>) -> Result<Vec<Survey>, OpenError> {
        let mut surveys = Vec::new();
        for (file, len) in self.disk.list()? {
            self.next_file = self.next_file.max(file.0 + 1);
            if len < SEGMENT_MIN {
                // Being made when the power went; nothing can be in it.
                self.disk.remove(file)?;
                continue;
            }
            if !closed.contains(&file) {
                self.disk.refresh(file)?;
            }
            let (mut newest, mut has_header) = ((Lap(0), None), false);
            for offset in [0, len - HEADER_ROOM] {
                match self.read_header(file, offset, len) {
                    Ok(header) => {
                        newest = newest.max(header.rank());
                        has_header = true;
                    }
                    Err(SegmentError::Damaged) => {}
                    Err(cause @ (SegmentError::Version { .. } | SegmentError::Foreign { .. })) => {
                        return Err(OpenError::Segment { file, cause });
                    }
                }
            }
            let (freed, closed_at) = newest;
            surveys.push(Survey { file, len, freed, closed_at, has_header });
        }
        Ok(surveys)
    }

    /// What the index hasn't heard of yet; `None` when there is no index to go by.
    fn plan_replay(
        &mut self,
        surveys: &[Survey],
        recovery: &mut Recovery,
    ) -> Result<Option<Plan>, OpenError> {
        let Some(meta) = self.index.meta()? else { return Ok(None) };
        let mut rows: BTreeMap<Lap, SegmentRow> = self.index.segments()?.into_iter().collect();
        audit(&self.index, &meta, &rows)?;
        let by_file: BTreeMap<FileId, &Survey> =
            surveys.iter().map(|survey| (survey.file, survey)).collect();
        for (lap, row) in &rows {
            match by_file.get(&row.file) {
                // The index is older than what was durably freed after it: not the one that belongs here.
                Some(survey) if survey.freed >= *lap => return Ok(None),
                Some(survey) if survey.len == row.len => {}
                Some(_) | None => recovery.missing_segments += 1,
            }
        }
        let mut plan = Plan::default();
        let checkpoint = meta.checkpoint;
        // Rows above the checkpoint were begun, but no record of theirs was indexed.
        plan.empty = rows.range(checkpoint.lap.next()..).map(|(lap, _)| *lap).collect();
        for lap in &plan.empty {
            rows.remove(lap);
        }
        self.last = (checkpoint.lap, checkpoint.offset);
        let known: BTreeSet<FileId> = rows.values().map(|row| row.file).collect();
        if let Some(survey) = rows.get(&checkpoint.lap).and_then(|row| by_file.get(&row.file)) {
            let Checkpoint { offset, number, prev_end, .. } = checkpoint;
            let from = Cursor { offset, number };
            plan.sources.insert(checkpoint.lap, Source { survey: **survey, from, prev_end });
        }
        for survey in surveys.iter().filter(|survey| !known.contains(&survey.file)) {
            match self.first_of_newest_lap(survey)? {
                None => plan.free.push(*survey),
                Some(record) if record.lap > checkpoint.lap => plan.add(survey, &record),
                Some(record) => plan.half_freed.push((*survey, record.lap)),
            }
        }
        self.ledger = Ledger { rows, meta };
        Ok(Some(plan))
    }

    fn plan_rebuild(
        &mut self,
        surveys: &[Survey],
        recovery: &mut Recovery,
    ) -> Result<Plan, OpenError> {
        *recovery = Recovery { rebuilt: true, ..Recovery::default() };
        self.index.clear()?;
        self.ledger = Ledger::default();
        let mut plan = Plan::default();
        for survey in surveys {
            match self.first_of_newest_lap(survey)? {
                None => plan.free.push(*survey),
                Some(record) => plan.add(survey, &record),
            }
        }
        Ok(plan)
    }

    /// The first record of the newest lap in a file. With a whole header that is the first record found.
    fn first_of_newest_lap(&self, survey: &Survey) -> Result<Option<Placed>, DiskError> {
        let mut newest: Option<Placed> = None;
        let start = Cursor { offset: HEADER_ROOM, number: 0 };
        self.walk(survey, start, |record| {
            if newest.as_ref().is_none_or(|newest| newest.lap < record.lap) {
                newest = Some(record);
            }
            !survey.has_header
        })?;
        Ok(newest)
    }

    /// Calls `visit` with each record from `from` on, until it says no more.
    fn walk(
        &self,
        survey: &Survey,
        from: Cursor,
        mut visit: impl FnMut(Placed) -> bool,
    ) -> Result<(), DiskError> {
        let mut walk = Walk::new(self.options.osd, survey.freed, survey.len, from.offset);
        loop {
            match walk.step() {
                Step::Need { offset, len } => {
                    walk.feed(offset, self.disk.read_at(survey.file, offset, len)?);
                }
                Step::Found(record) => {
                    if !visit(record) {
                        return Ok(());
                    }
                }
                Step::End => return Ok(()),
            }
        }
    }

    fn replay(
        &mut self,
        sources: &BTreeMap<Lap, Source>,
        recovery: &mut Recovery,
        now: Now,
    ) -> Result<(), OpenError> {
        let newest = sources.keys().next_back().copied();
        let pass = if recovery.rebuilt { Pass::Rebuild } else { Pass::InOrder };
        for (lap, source) in sources {
            let Survey { freed, closed_at, .. } = source.survey;
            let closed_at = closed_at.filter(|_| freed.next() == *lap).map(NonZeroU64::get);
            let bounds = if Some(*lap) == newest && closed_at.is_none() {
                Bounds::Open { synced: source.from.offset }
            } else {
                let prev_end = || sources.get(&lap.next()).map(|next| next.prev_end);
                Bounds::Closed { end: closed_at.or_else(prev_end) }
            };
            let mut records = Vec::new();
            self.walk(&source.survey, source.from, |record| {
                if record.lap == *lap {
                    records.push(record);
                }
                true
            })?;
            let settled = settle(records, source.from, bounds, |record| {
                is_whole(&self.disk, self.options.osd, source.survey.file, record)
            });
            recovery.lost += settled.lost;
            recovery.replayed += model::u64_of(settled.accepted.len());
            match (Some(*lap) == newest, closed_at) {
                (false, _) => {}
                (true, None) => {
                    recovery.wiped += model::u64_of(settled.leftovers.len());
                    self.continue_lap(*lap, source, &settled, now);
                }
                // Nothing may be added behind the end that its file names.
                (true, Some(end)) => self.last = (*lap, end),
            }
            self.absorb_lap(*lap, source, &settled, pass)?;
        }
        Ok(())
    }

    /// Wipes what the crash left behind the end and goes on there.
    fn continue_lap(&mut self, lap: Lap, source: &Source, settled: &Settled, now: Now) {
        let file = source.survey.file;
        let wiped = self.wipe(file, settled.leftovers.iter().copied());
        self.last = (lap, settled.last_end);
        let vouched = settled.accepted.iter().map(|record| record.synced).max();
        let head = Head {
            file,
            len: source.survey.len,
            lap,
            next: settled.end,
            prev_end: source.prev_end,
            vouched: vouched.unwrap_or(source.from.offset),
        };
        match wiped {
            Ok(()) => self.head = Some(head),
            Err(_) => {
                self.doubt = Some(head);
                self.counters.io_errors += 1;
                self.health = Health::ReadOnly { retry_at: now.plus(RETRY_AFTER) };
            }
        }
    }

    fn absorb_lap(
        &mut self,
        lap: Lap,
        source: &Source,
        settled: &Settled,
        pass: Pass,
    ) -> Result<(), OpenError> {
        let Survey { file, len, .. } = source.survey;
        let live = self.ledger.rows.get(&lap).map_or(0, |row| row.live);
        let row = SegmentRow { file, len, used: settled.end.offset, live };
        self.ledger.rows.insert(lap, row);
        for chunk in settled.accepted.chunks(CHUNK) {
            let mut changes = Changes::new(&self.index, &self.ledger);
            changes.set_row(lap, Some(row_of(&self.ledger, lap)));
            for record in chunk {
                let at = location(file, lap, record.offset);
                changes.absorb(record, at, pass)?;
                changes.meta.checkpoint = Checkpoint {
                    lap,
                    offset: record.end(),
                    number: record.number + 1,
                    prev_end: source.prev_end,
                };
            }
            let meta = changes.meta;
            let batch = changes.into_batch(pass);
            self.index.apply(&batch, Durability::Lazy)?;
            self.ledger.follow(&batch);
            self.ledger.meta = meta;
        }
        Ok(())
    }

    /// Tombstones whose puts are all gone; only a rebuild meets them.
    fn sweep_tombstones(&mut self) -> Result<(), OpenError> {
        let mut start = Bytes::new();
        loop {
            let page = self.index.entries_from(&start, PAGE)?;
            let Some((last, _)) = page.last() else { return Ok(()) };
            start = [&last[..], &[0]].concat().into();
            let mut changes = Changes::new(&self.index, &self.ledger);
            for (key, entry) in &page {
                debug_assert_ne!(entry.kind, Kind::Mark);
                changes.drop_if_spent(key, *entry);
            }
            let meta = changes.meta;
            let batch = changes.into_batch(Pass::Rebuild);
            self.index.apply(&batch, Durability::Lazy)?;
            self.ledger.follow(&batch);
            self.ledger.meta = meta;
        }
    }

    /// Files without records that count: some are kept for reuse, the others given back.
    fn take_free(&mut self, plan: &Plan, surveys: &[Survey]) -> Result<(), OpenError> {
        let newest_over = surveys.iter().map(Survey::newest_over).max().unwrap_or_default();
        let newest_half = plan.half_freed.iter().map(|(_, lap)| *lap).max().unwrap_or_default();
        let newest_dead = newest_over.max(newest_half);
        if newest_dead > self.last.0 {
            // A new lap must be above every freed one, and above one that was closed before anything came to be in it: its
            // file, which is free now, would say of a second lap of that number that it ends where the first did.
            self.head = None;
            self.last = (newest_dead, 0);
        }
        for (survey, lap) in &plan.half_freed {
            self.free_file(survey.file, survey.len, *lap)?;
        }
        for survey in &plan.free {
            let reusable = survey.has_header && survey.len == self.options.limits.segment();
            if reusable && self.free.len() < FREE_KEPT {
                self.free.push(survey.file);
            } else {
                self.disk.remove(survey.file)?;
            }
        }
        Ok(())
    }
}

impl Plan {
    fn add(&mut self, survey: &Survey, first: &Placed) {
        let from = Cursor { offset: HEADER_ROOM, number: 0 };
        let source = Source { survey: *survey, from, prev_end: first.prev_end };
        self.sources.insert(first.lap, source);
    }
}

fn row_of(ledger: &Ledger, lap: Lap) -> SegmentRow {
    *ledger.rows.get(&lap).expect("the row of a replayed lap was just inserted")
}

/// Whether the record's data is what its checksums say.
fn is_whole(disk: &impl Disk, osd: OsdId, file: FileId, record: &Placed) -> bool {
    let data_len = model::usize_of(record.data_len.into());
    let len = crate::record::header_len(record.key.len(), data_len) + data_len;
    let Ok(bytes) = disk.read_at(file, record.offset, len) else { return false };
    let Ok(header) = Header::decode(&bytes, osd, record.offset) else { return false };
    crc::matches(&bytes[header.header_len()..], &header.checksums)
}
