//! The account of the disk: segments in use with their live bytes, and the totals; changed only by whole batches.
//!
//! [`Ledger`] is what the index holds of it, in memory. [`Changes`] collects what a batch of records does to entries,
//! segments and totals, reading through to the index; [`Changes::into_batch`] is what the index then applies, and only
//! when that succeeded does the ledger follow.
//!
//! Invariant: a segment's `live` is the sum of the lengths of its records that are the newest of their key.

use crate::index::{Batch, Entry, IndexError, Location, Lookup, Meta, SegmentRow};
use crate::record::{Kind, record_len};
use crate::walk::Placed;
use bytes::Bytes;
use model::Lap;
use std::collections::BTreeMap;

#[derive(Debug, Clone, Default)]
pub struct Ledger {
    pub rows: BTreeMap<Lap, SegmentRow>,
    pub meta: Meta,
}

impl Ledger {
    /// Follows a batch that the index applied.
    pub fn follow(&mut self, batch: &Batch) {
        for (lap, row) in &batch.segments {
            match row {
                Some(row) => self.rows.insert(*lap, *row),
                None => self.rows.remove(lap),
            };
        }
        if let Some(meta) = batch.meta {
            self.meta = meta;
        }
    }

    /// Bytes of all segment files in use.
    #[must_use]
    pub fn allocated(&self) -> u64 {
        self.rows.values().map(|row| row.len).sum()
    }

    /// Bytes of them that records were written to.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.rows.values().map(|row| row.used).sum()
    }
}

/// In which order records come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pass {
    /// As they were appended: all older records of a key are known, and each batch moves the checkpoint.
    InOrder,
    /// In any order, from the segments alone: nothing is final before the end.
    Rebuild,
}

/// What a batch of records changes.
pub struct Changes<'a, L> {
    index: &'a L,
    ledger: &'a Ledger,
    entries: BTreeMap<Bytes, Option<Entry>>,
    rows: BTreeMap<Lap, Option<SegmentRow>>,
    pub meta: Meta,
}

impl<'a, L: Lookup> Changes<'a, L> {
    #[must_use]
    pub fn new(index: &'a L, ledger: &'a Ledger) -> Self {
        let meta = ledger.meta;
        Self { index, ledger, entries: BTreeMap::new(), rows: BTreeMap::new(), meta }
    }

    /// Keys that changed so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.rows.is_empty()
    }

    /// # Errors
    /// When the index can't be read.
    pub fn entry(&self, key: &[u8]) -> Result<Option<Entry>, IndexError> {
        match self.entries.get(key) {
            Some(entry) => Ok(*entry),
            None => self.index.get(key),
        }
    }

    #[must_use]
    pub fn row(&self, lap: Lap) -> Option<SegmentRow> {
        match self.rows.get(&lap) {
            Some(row) => *row,
            None => self.ledger.rows.get(&lap).copied(),
        }
    }

    pub fn set_row(&mut self, lap: Lap, row: Option<SegmentRow>) {
        self.rows.insert(lap, row);
    }

    /// A record counts. In order, a tombstone that hides nothing goes at once; a rebuild may yet meet what it hides, and
    /// sweeps at its end.
    ///
    /// # Errors
    /// When the index can't be read.
    pub fn absorb(&mut self, record: &Placed, at: Location, pass: Pass) -> Result<(), IndexError> {
        self.meta.next_seq = self.meta.next_seq.max(record.seq + 1);
        if record.kind == Kind::Mark {
            return Ok(());
        }
        let new =
            Entry { kind: record.kind, seq: record.seq, at, data_len: record.data_len, stale: 0 };
        let old = self.entry(&record.key)?;
        let entry = match old {
            None => {
                self.count(&record.key, new);
                new
            }
            Some(old) if (new.seq, new.at) > (old.seq, old.at) => {
                self.uncount(&record.key, old);
                self.count(&record.key, new);
                Entry { stale: old.stale + u32::from(old.kind == Kind::Put), ..new }
            }
            Some(old) => Entry { stale: old.stale + u32::from(new.kind == Kind::Put), ..old },
        };
        self.set_entry(&record.key, old, Some(entry));
        if pass == Pass::InOrder {
            self.drop_if_spent(&record.key, entry);
        }
        Ok(())
    }

    /// `count` older puts of `key` are about to disappear with their segment.
    ///
    /// # Errors
    /// When the index can't be read.
    pub fn forget_stale(&mut self, key: &Bytes, count: u32) -> Result<(), IndexError> {
        let Some(old) = self.entry(key)? else { return Ok(()) };
        let entry = Entry { stale: old.stale.saturating_sub(count), ..old };
        self.set_entry(key, Some(old), Some(entry));
        self.drop_if_spent(key, entry);
        Ok(())
    }

    /// A tombstone that hides nothing any more is garbage.
    pub fn drop_if_spent(&mut self, key: &Bytes, entry: Entry) {
        if entry.kind == Kind::Tombstone && entry.stale == 0 {
            self.uncount(key, entry);
            self.set_entry(key, Some(entry), None);
        }
    }

    /// The only way to change an entry, so that the digest follows.
    fn set_entry(&mut self, key: &Bytes, old: Option<Entry>, new: Option<Entry>) {
        let digest = |entry: Option<Entry>| entry.map_or(0, |entry| entry.digest(key));
        self.meta.digest = self.meta.digest.wrapping_sub(digest(old)).wrapping_add(digest(new));
        self.entries.insert(key.clone(), new);
    }

    #[must_use]
    pub fn into_batch(self, pass: Pass) -> Batch {
        Batch {
            entries: self.entries.into_iter().collect(),
            segments: self.rows.into_iter().collect(),
            meta: (pass == Pass::InOrder).then_some(self.meta),
        }
    }

    fn count(&mut self, key: &Bytes, entry: Entry) {
        if entry.kind == Kind::Put {
            self.meta.fragments += 1;
            self.meta.live_bytes += u64::from(entry.data_len);
        }
        if let Some(mut row) = self.row(entry.at.lap) {
            row.live += entry_len(key, entry);
            self.set_row(entry.at.lap, Some(row));
        }
    }

    fn uncount(&mut self, key: &Bytes, entry: Entry) {
        if entry.kind == Kind::Put {
            self.meta.fragments = self.meta.fragments.saturating_sub(1);
            self.meta.live_bytes = self.meta.live_bytes.saturating_sub(entry.data_len.into());
        }
        if let Some(mut row) = self.row(entry.at.lap) {
            row.live = row.live.saturating_sub(entry_len(key, entry));
            self.set_row(entry.at.lap, Some(row));
        }
    }
}

/// Length of the record that an entry points to.
#[must_use]
pub fn entry_len(key: &[u8], entry: Entry) -> u64 {
    record_len(key.len(), model::usize_of(entry.data_len.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::FileId;
    use crate::index::{Durability, Index};
    use crate::twin::MemoryIndex;
    use proptest::prelude::*;

    fn placed(kind: Kind, key: u8, seq: u64, lap: u64, offset: u64) -> (Placed, Location) {
        let data_len = if kind == Kind::Put { 100 } else { 0 };
        let placed = Placed {
            kind,
            key: Bytes::copy_from_slice(&[key]),
            data_len,
            number: 0,
            lap: Lap(lap),
            offset,
            seq,
            synced: 0,
            prev_end: 0,
        };
        (placed, Location { lap: Lap(lap), offset, file: FileId(1) })
    }

    fn ledger() -> Ledger {
        let row = SegmentRow { file: FileId(1), len: 1 << 20, used: 0, live: 0 };
        Ledger { rows: [(Lap(1), row), (Lap(2), row)].into(), meta: Meta::default() }
    }

    /// Entries, live bytes per lap and totals after absorbing `records` one batch each.
    fn absorbed(records: &[(Placed, Location)]) -> (Vec<(Bytes, Entry)>, Vec<u64>, Meta) {
        let (mut index, mut ledger) = (MemoryIndex::default(), ledger());
        for (record, at) in records {
            let mut changes = Changes::new(&index, &ledger);
            changes.absorb(record, *at, Pass::Rebuild).unwrap();
            let batch = changes.into_batch(Pass::InOrder);
            index.apply(&batch, Durability::Lazy).unwrap();
            ledger.follow(&batch);
        }
        let live = ledger.rows.values().map(|row| row.live).collect();
        (index.entries_from(&[], 1000).unwrap(), live, ledger.meta)
    }

    #[test]
    fn a_tombstone_lives_until_the_last_put_it_hides_is_gone() {
        let (mut index, mut ledger) = (MemoryIndex::default(), ledger());
        let history = [
            placed(Kind::Put, 7, 1, 1, 4096),
            placed(Kind::Put, 7, 2, 1, 8192),
            placed(Kind::Tombstone, 7, 3, 2, 4096),
        ];
        let mut changes = Changes::new(&index, &ledger);
        for (record, at) in &history {
            changes.absorb(record, *at, Pass::Rebuild).unwrap();
        }
        let batch = changes.into_batch(Pass::InOrder);
        index.apply(&batch, Durability::Lazy).unwrap();
        ledger.follow(&batch);
        assert_eq!(index.get(&[7]).unwrap().unwrap().stale, 2);
        assert_eq!((ledger.meta.fragments, ledger.meta.live_bytes), (0, 0));
        assert_eq!((ledger.rows[&Lap(1)].live, ledger.rows[&Lap(2)].live), (0, 128));

        let mut changes = Changes::new(&index, &ledger);
        let key = Bytes::from_static(&[7]);
        changes.forget_stale(&key, 1).unwrap();
        assert_eq!(changes.entry(&key).unwrap().unwrap().stale, 1);
        changes.forget_stale(&key, 1).unwrap();
        assert_eq!(changes.entry(&key).unwrap(), None);
        assert_eq!(changes.row(Lap(2)).unwrap().live, 0);
    }

    proptest! {
        /// A rebuild meets records in any order and must end where the appends ended.
        #[test]
        fn order_of_records_does_not_matter(
            kinds in proptest::collection::vec((any::<bool>(), 0_u8..4, 1_u64..3), 1..40),
            seed: u64,
        ) {
            let mut records: Vec<_> = kinds
                .iter()
                .enumerate()
                .map(|(i, (put, key, lap))| {
                    let kind = if *put { Kind::Put } else { Kind::Tombstone };
                    let seq = u64::try_from(i).unwrap();
                    placed(kind, *key, seq / 2, *lap, 4096 + 128 * seq)
                })
                .collect();
            // Two records of one sequence are copies: of one kind.
            for pair in records.chunks_mut(2) {
                if let [first, second] = pair {
                    let at = second.1;
                    let seq = second.0.seq;
                    second.0 = Placed { offset: at.offset, lap: at.lap, seq, ..first.0.clone() };
                }
            }
            let straight = absorbed(&records);
            let mut rng = crate::twin::Dice::new(seed);
            for i in (1..records.len()).rev() {
                let j = rng.below(model::u64_of(i + 1));
                records.swap(i, model::usize_of(j));
            }
            prop_assert_eq!(absorbed(&records), straight);
        }
    }
}
