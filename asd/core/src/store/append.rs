//! Group commit: one batch of puts and deletes, appended together, synced once, answered together.
//!
//! ```text
//! ops ─decide─▶ known already | same as an earlier one of the batch | a record
//! records ─▶ run (fits the head) ─▶ write, sync ─▶ next head … ─▶ index ─▶ outcomes
//! ```
//!
//! Operations count in the order given. A batch takes one sync per segment it touches: one, or two where it rolls over.
//!
//! Invariant: an outcome of `Stored` or `Deleted` is only given after the sync that covers it and everything before it.

use super::{Head, Health, NoHead, Store, location};
use crate::disk::{Disk, DiskError, FileId};
use crate::index::{Durability, Index, IndexError};
use crate::ledger::{Changes, Pass};
use crate::read::stored_checksums;
use crate::record::{BATCH_ALIGN, Header, Kind, align, record_len};
use crate::settle::Cursor;
use crate::space::Purpose;
use crate::walk::Placed;
use bytes::Bytes;
use model::Now;
use std::collections::BTreeMap;
use wire::asd::PutCondition;

const ZEROES: &[u8] = &[0; 4096];

/// A fragment whose data was checked against its checksums at the door.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Put {
    pub key: Bytes,
    pub data: Bytes,
    pub checksums: Vec<u32>,
    pub condition: PutCondition,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    Put(Put),
    Delete(Bytes),
}

impl Op {
    #[must_use]
    pub const fn key(&self) -> &Bytes {
        match self {
            Self::Put(put) => &put.key,
            Self::Delete(key) => key,
        }
    }

    /// Room its record takes.
    #[must_use]
    pub const fn record_len(&self) -> u64 {
        match self {
            Self::Put(put) => record_len(put.key.len(), put.data.len()),
            Self::Delete(key) => record_len(key.len(), 0),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Durable.
    Stored,
    /// Durably gone, or never there.
    Deleted,
    /// Another value is there.
    Exists,
    /// No room.
    Full,
    /// The disk failed; a restart may still show it.
    Failed,
}

enum Decision {
    Known(Outcome),
    /// The same as operation `first` asks; or its opposite, so that it exists if that is stored.
    Follows {
        first: usize,
        equal: bool,
    },
    Append,
}

/// A record to append; the head gives it its place.
pub(super) struct Draft {
    pub kind: Kind,
    pub key: Bytes,
    pub seq: u64,
    pub data: Bytes,
    pub checksums: Vec<u32>,
}

/// Records that go to the head in one write.
#[derive(Default)]
pub(super) struct Run {
    parts: Vec<Bytes>,
    len: u64,
    records: Vec<Placed>,
}

impl Run {
    fn push(&mut self, head: &Head, osd: model::OsdId, draft: Draft) {
        let header = Header {
            kind: draft.kind,
            key: draft.key,
            data_len: model::u32_of(draft.data.len()),
            number: head.next.number + model::u32_of(self.records.len()),
            osd,
            lap: head.lap,
            offset: head.next.offset + self.len,
            seq: draft.seq,
            synced: head.next.offset,
            prev_end: head.prev_end,
            checksums: draft.checksums,
        };
        let bare = model::u64_of(header.header_len() + draft.data.len());
        self.parts.push(Bytes::from(header.encode()));
        if !draft.data.is_empty() {
            self.parts.push(draft.data);
        }
        self.pad(header.record_len() - bare);
        self.len += header.record_len();
        self.records.push(Placed::of(&header));
    }

    fn pad(&mut self, len: u64) {
        if len > 0 {
            self.parts.push(Bytes::from_static(&ZEROES[..model::usize_of(len)]));
        }
    }

    pub(super) const fn len(&self) -> u64 {
        self.len
    }
}

/// Records that are on stable storage and not yet in the index.
pub(super) type Durable = Vec<(FileId, Placed)>;

impl<D: Disk, I: Index> Store<D, I> {
    /// Carries out `ops` in order; the outcomes are in the same order.
    pub fn commit(&mut self, ops: &[Op], now: Now) -> Vec<Outcome> {
        let mut decided: Vec<Option<Outcome>> = vec![None; ops.len()];
        let mut follows = Vec::new();
        let mut pending: BTreeMap<&Bytes, usize> = BTreeMap::new();
        let (mut run, mut in_run) = (Run::default(), Vec::new());
        let mut durable = Durable::new();
        let mut appended = Vec::new();
        for (number, op) in ops.iter().enumerate() {
            match self.decide(ops, op, &pending, now) {
                Decision::Known(outcome) => decided[number] = Some(outcome),
                Decision::Follows { first, equal } => follows.push((number, first, equal)),
                Decision::Append => {
                    if !self.head_fits(run.len() + op.record_len()) {
                        let outcome = self.flush(&mut run, &mut durable, now);
                        settle_run(&mut decided, &mut in_run, &mut appended, &outcome);
                        if let Err(no_head) = self.roll(op, now) {
                            self.refused |= no_head == NoHead::Full;
                            decided[number] = Some(no_head.into());
                            continue;
                        }
                    }
                    let draft = self.draft(op);
                    let head = self.head.as_ref().expect("it fits the head, so there is one");
                    run.push(head, self.options.osd, draft);
                    in_run.push(number);
                    pending.insert(op.key(), number);
                }
            }
        }
        let outcome = self.flush(&mut run, &mut durable, now);
        settle_run(&mut decided, &mut in_run, &mut appended, &outcome);
        let indexed = self.index_appended(&durable, Durability::Lazy);
        for number in appended {
            decided[number] = Some(match &ops[number] {
                _ if !indexed => Outcome::Failed,
                Op::Put(_) => self.stored(),
                Op::Delete(_) => self.deleted(),
            });
        }
        for (number, first, equal) in follows {
            decided[number] = match decided[first] {
                Some(Outcome::Stored) if !equal => Some(Outcome::Exists),
                outcome => outcome,
            };
        }
        decided.into_iter().map(|outcome| outcome.expect("each operation was decided")).collect()
    }

    const fn stored(&mut self) -> Outcome {
        self.counters.puts += 1;
        Outcome::Stored
    }

    const fn deleted(&mut self) -> Outcome {
        self.counters.deletes += 1;
        Outcome::Deleted
    }

    fn decide(
        &mut self,
        ops: &[Op],
        op: &Op,
        pending: &BTreeMap<&Bytes, usize>,
        now: Now,
    ) -> Decision {
        if let Some(outcome) = self.refusal(op, now) {
            return Decision::Known(outcome);
        }
        let earlier = pending.get(op.key()).map(|first| (*first, &ops[*first]));
        match (op, earlier) {
            (Op::Put(put), Some((first, Op::Put(earlier))))
                if put.condition == PutCondition::Absent =>
            {
                let equal = put.checksums == earlier.checksums && put.data == earlier.data;
                Decision::Follows { first, equal }
            }
            (Op::Put(put), None) if put.condition == PutCondition::Absent => {
                self.decide_absent(put)
            }
            (Op::Put(_), _) | (Op::Delete(_), Some((_, Op::Put(_)))) => Decision::Append,
            (Op::Delete(_), Some((first, Op::Delete(_)))) => {
                Decision::Follows { first, equal: true }
            }
            (Op::Delete(key), None) => match self.index.get(key) {
                Ok(Some(entry)) if entry.kind == Kind::Put => Decision::Append,
                Ok(_) => Decision::Known(Outcome::Deleted),
                Err(error) => self.index_failed(error),
            },
        }
    }

    /// Present with equal checksums counts as done: a retried put whose answer was lost.
    fn decide_absent(&mut self, put: &Put) -> Decision {
        let entry = match self.index.get(&put.key) {
            Ok(Some(entry)) if entry.kind == Kind::Put => entry,
            Ok(_) => return Decision::Append,
            Err(error) => return self.index_failed(error),
        };
        match stored_checksums(&self.disk, self.options.osd, &put.key, &entry) {
            Ok(stored) => {
                let equal = model::usize_of(entry.data_len.into()) == put.data.len()
                    && stored == put.checksums;
                Decision::Known(if equal { Outcome::Stored } else { Outcome::Exists })
            }
            // What is there can't be read any more: the new value heals it.
            Err(_) => {
                self.counters.corruptions += 1;
                Decision::Append
            }
        }
    }

    fn index_failed(&mut self, error: IndexError) -> Decision {
        self.broken = Some(error);
        Decision::Known(Outcome::Failed)
    }

    /// Why nothing is tried at all. Deletes are tried also while writes fail.
    fn refusal(&self, op: &Op, now: Now) -> Option<Outcome> {
        let refused = match (self.health, op) {
            _ if self.broken.is_some() => true,
            (Health::Failed, _) => true,
            (Health::ReadOnly { retry_at }, Op::Put(_)) => now < retry_at,
            (Health::ReadOnly { .. } | Health::Good, _) => false,
        };
        refused.then_some(Outcome::Failed)
    }

    fn draft(&mut self, op: &Op) -> Draft {
        // Burnt even if the write fails: what it left may turn up after a restart, and must be older than what follows.
        let seq = self.ledger.meta.next_seq;
        self.ledger.meta.next_seq += 1;
        match op {
            Op::Put(put) => Draft {
                kind: Kind::Put,
                key: put.key.clone(),
                seq,
                data: put.data.clone(),
                checksums: put.checksums.clone(),
            },
            Op::Delete(key) => Draft {
                kind: Kind::Tombstone,
                key: key.clone(),
                seq,
                data: Bytes::new(),
                checksums: Vec::new(),
            },
        }
    }

    fn head_fits(&self, len: u64) -> bool {
        self.head.is_some_and(|head| head.next.offset + len <= head.end())
    }

    fn roll(&mut self, op: &Op, now: Now) -> Result<(), NoHead> {
        if self.head_fits(op.record_len()) {
            return Ok(());
        }
        let purpose = match op {
            Op::Put(_) => Purpose::Put,
            Op::Delete(_) => Purpose::Delete,
        };
        self.open_head(op.record_len(), purpose, now)
    }

    /// A record for the run, or a new head when it doesn't fit; for compaction.
    pub(super) fn place(
        &mut self,
        run: &mut Run,
        durable: &mut Durable,
        draft: Draft,
        now: Now,
    ) -> Result<(), NoHead> {
        let len = record_len(draft.key.len(), draft.data.len());
        if !self.head_fits(run.len() + len) {
            self.flush(run, durable, now).map_err(|_| NoHead::Failed)?;
            if !self.head_fits(len) {
                self.open_head(len, Purpose::Compaction, now)?;
            }
        }
        let head = self.head.as_ref().expect("it fits the head, so there is one");
        run.push(head, self.options.osd, draft);
        Ok(())
    }

    /// Writes and syncs the run. Afterwards it is empty, whatever happened.
    pub(super) fn flush(
        &mut self,
        run: &mut Run,
        durable: &mut Durable,
        now: Now,
    ) -> Result<(), DiskError> {
        let mut run = std::mem::take(run);
        if run.records.is_empty() {
            return Ok(());
        }
        let mut head = self.head.expect("a run is only begun on a head");
        let start = head.next.offset;
        let last_end = start + run.len;
        let end = align(last_end, BATCH_ALIGN);
        run.pad(end - last_end);
        let written =
            self.disk.write(head.file, start, &run.parts).and_then(|()| self.disk.sync(head.file));
        if let Err(error) = written {
            self.write_failed(&error, now);
            return Err(error);
        }
        self.synced();
        let number = head.next.number + model::u32_of(run.records.len());
        head.vouched = start;
        head.next = Cursor { offset: end, number };
        self.head = Some(head);
        self.last = (head.lap, last_end);
        if let Some(row) = self.ledger.rows.get_mut(&head.lap) {
            row.used = end;
        }
        durable.extend(run.records.into_iter().map(|record| (head.file, record)));
        Ok(())
    }

    /// The index follows what was appended and synced.
    pub(super) fn index_appended(&mut self, durable: &Durable, durability: Durability) -> bool {
        if durable.is_empty() {
            return true;
        }
        let mut changes = Changes::new(&self.index, &self.ledger);
        for (file, record) in durable {
            if let Some(row) = changes.row(record.lap) {
                changes.set_row(record.lap, Some(row));
            }
            let at = location(*file, record.lap, record.offset);
            if let Err(error) = changes.absorb(record, at, Pass::InOrder) {
                self.broken = Some(error);
                return false;
            }
        }
        let batch = self.finish(changes);
        self.apply(&batch, durability)
    }
}

/// The operations of a run that was flushed.
fn settle_run(
    decided: &mut [Option<Outcome>],
    in_run: &mut Vec<usize>,
    appended: &mut Vec<usize>,
    outcome: &Result<(), DiskError>,
) {
    let failed = match outcome {
        Ok(()) => return appended.append(in_run),
        Err(DiskError::NoSpace) => Outcome::Full,
        Err(DiskError::ReadOnly(_) | DiskError::Gone(_) | DiskError::Io(_)) => Outcome::Failed,
    };
    for number in in_run.drain(..) {
        decided[number] = Some(failed);
    }
}

impl From<NoHead> for Outcome {
    fn from(no_head: NoHead) -> Self {
        match no_head {
            NoHead::Full => Self::Full,
            NoHead::Failed => Self::Failed,
        }
    }
}
