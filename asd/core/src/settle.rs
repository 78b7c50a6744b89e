//! Says which of the records found in one lap count: the torn end is told from damage (P8).
//!
//! ```text
//!      accepted; a missing number is damage      accepted while contiguous and whole      left-overs
//! |---------------------------------------------|-----------------------------------|------------------|
//! start                                      synced                               end
//! ```
//!
//! Below `synced` everything was on stable storage once: what is missing there was lost, and is counted. From `synced` on
//! a crash may have lost, torn or reordered writes of the one batch that was under way: its whole, contiguous beginning
//! is accepted, although nobody was told; the rest never happened. It must be wiped before the lap is written on, else a
//! later append could end just before it and a later recovery take it for its continuation.
//!
//! Invariant: every acknowledged record that still has a valid header is accepted.

use crate::record::{BATCH_ALIGN, align};
use crate::walk::Placed;

/// Where the next record begins, and its number in the lap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cursor {
    pub offset: u64,
    pub number: u32,
}

/// What is known of a lap from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bounds {
    /// A later lap was begun after this one was synced up to `end` (unknown when that later lap is gone): the end of its
    /// last record, or that rounded up to [`BATCH_ALIGN`].
    Closed { end: Option<u64> },
    /// The newest lap; the index saw it synced up to `synced`.
    Open { synced: u64 },
}

#[derive(Debug, PartialEq, Eq)]
pub struct Settled {
    pub accepted: Vec<Placed>,
    /// Where the lap ends; a batch may begin here.
    pub end: Cursor,
    /// Where its last record ends.
    pub last_end: u64,
    /// Acknowledged records whose headers are gone; at least this many.
    pub lost: u64,
    /// Offsets of records that never happened.
    pub leftovers: Vec<u64>,
}

/// Settles the records that were found from `from` on. `whole` says whether a record's data matches its checksums; it is
/// asked only where a crash may have torn it.
pub fn settle(
    records: Vec<Placed>,
    from: Cursor,
    bounds: Bounds,
    mut whole: impl FnMut(&Placed) -> bool,
) -> Settled {
    let marked = records.iter().map(|record| record.synced).max().unwrap_or(0);
    let synced = match bounds {
        Bounds::Open { synced } => synced.max(marked).max(from.offset),
        Bounds::Closed { end } => end.unwrap_or(u64::MAX),
    };
    let mut out = Settled {
        accepted: Vec::new(),
        end: from,
        last_end: from.offset,
        lost: 0,
        leftovers: Vec::new(),
    };
    let mut rest = records.into_iter().peekable();
    while let Some(record) = rest.next_if(|record| record.offset < synced) {
        if record.number >= out.end.number {
            out.take(record);
        }
    }
    let next = rest.peek().filter(|record| record.offset == synced);
    // Within its last page a batch may have lost records though its end looks right: then only the next number shows it.
    let gap = next.is_some_and(|record| out.end.number < record.number);
    let whole_batches = synced.is_multiple_of(BATCH_ALIGN);
    let reached = if whole_batches { align(out.end.offset, BATCH_ALIGN) } else { out.end.offset };
    if gap || synced != u64::MAX && reached < synced {
        // The last synced records are gone; how many, the next one's number tells if there is one.
        let number = next.map_or(out.end.number + 1, |record| record.number);
        out.lost += u64::from(number.saturating_sub(out.end.number).max(1));
        out.end = Cursor { offset: synced, number };
    }
    if let Bounds::Open { .. } = bounds {
        while let Some(record) = rest.next_if(|record| out.continues_with(record) && whole(record))
        {
            out.take(record);
        }
    }
    out.last_end = out.end.offset;
    out.leftovers = rest.map(|record| record.offset).collect();
    out.end.offset = align(out.end.offset, BATCH_ALIGN);
    out
}

impl Settled {
    fn take(&mut self, record: Placed) {
        self.lost += u64::from(record.number.saturating_sub(self.end.number));
        self.end = Cursor { offset: record.end(), number: record.number + 1 };
        self.accepted.push(record);
    }

    fn continues_with(&self, record: &Placed) -> bool {
        let in_place = record.offset == self.end.offset
            || record.offset == align(self.end.offset, BATCH_ALIGN);
        in_place && record.number == self.end.number
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Kind;
    use bytes::Bytes;
    use model::Lap;

    const START: Cursor = Cursor { offset: 4096, number: 0 };

    /// Records of one page each, a batch each: number n lies on page n + 1 and was written when that much was synced.
    fn page(number: u32) -> Placed {
        let offset = 4096 * (u64::from(number) + 1);
        Placed {
            kind: Kind::Put,
            key: Bytes::from_static(b"k"),
            data_len: 3000,
            number,
            lap: Lap(1),
            offset,
            seq: 1,
            synced: offset,
            prev_end: 0,
        }
    }

    fn numbers(settled: &Settled) -> Vec<u32> {
        settled.accepted.iter().map(|record| record.number).collect()
    }

    #[test]
    fn a_record_lost_within_the_last_page_of_a_batch_is_counted_and_the_next_batch_stays() {
        // Numbers 0 and 1 share a page; 1 is gone. The batch behind it was acknowledged, though nothing says so.
        let records = vec![page(0), Placed { offset: 8192, synced: 8192, ..page(2) }];
        let settled = settle(records, START, Bounds::Open { synced: 0 }, |_| true);
        assert_eq!((numbers(&settled), settled.lost), (vec![0, 2], 1));
        assert_eq!(settled.leftovers, Vec::<u64>::new());
    }

    #[test]
    fn a_bad_record_above_everything_synced_is_the_torn_end() {
        let records = vec![page(0), page(1), page(2)];
        let settled =
            settle(records, START, Bounds::Open { synced: 0 }, |record| record.number != 2);
        assert_eq!((numbers(&settled), settled.lost), (vec![0, 1], 0));
        assert_eq!(settled.leftovers, [12_288]);
        assert_eq!(settled.end, Cursor { offset: 12_288, number: 2 });
    }

    #[test]
    fn a_missing_record_below_the_synced_mark_is_damage() {
        let settled = settle(vec![page(0), page(3)], START, Bounds::Open { synced: 0 }, |_| true);
        assert_eq!((numbers(&settled), settled.lost), (vec![0, 3], 2));
        assert_eq!(settled.leftovers, []);
    }

    #[test]
    fn the_index_knows_of_a_synced_record_that_rotted_at_the_very_end() {
        let settled = settle(vec![page(0)], START, Bounds::Open { synced: 12_288 }, |_| true);
        assert_eq!((numbers(&settled), settled.lost), (vec![0], 1));
        assert_eq!(settled.end, Cursor { offset: 12_288, number: 2 });
    }

    #[test]
    fn what_lies_behind_a_hole_in_the_unsynced_batch_never_happened() {
        let mut behind = page(2);
        behind.synced = 8192;
        let settled = settle(vec![page(0), behind], START, Bounds::Open { synced: 8192 }, |_| true);
        assert_eq!((numbers(&settled), settled.lost), (vec![0], 0));
        assert_eq!(settled.leftovers, [12_288]);
    }

    #[test]
    fn the_last_record_of_a_closed_lap_is_missed_within_its_page_too() {
        let whole = page(0);
        let (start, end) = (whole.end(), whole.end() + 640);
        let small = Placed { offset: start, number: 1, data_len: 500, ..page(0) };
        assert_eq!(small.end(), end);
        let closed = |records| settle(records, START, Bounds::Closed { end: Some(end) }, |_| true);
        let both = closed(vec![whole.clone(), small]);
        assert_eq!((numbers(&both), both.lost, both.last_end), (vec![0, 1], 0, end));
        let one = closed(vec![whole]);
        assert_eq!((numbers(&one), one.lost), (vec![0], 1));
    }

    #[test]
    fn a_closed_lap_ends_where_the_next_one_says() {
        let records = vec![page(0), page(1), page(2)];
        let settled = settle(records.clone(), START, Bounds::Closed { end: Some(8192) }, |_| false);
        assert_eq!((numbers(&settled), settled.lost), (vec![0], 0));
        assert_eq!(settled.leftovers, [8192, 12_288]);
        let settled = settle(records, START, Bounds::Closed { end: None }, |_| false);
        assert_eq!((numbers(&settled), settled.lost), (vec![0, 1, 2], 0));
        let settled = settle(vec![page(0)], START, Bounds::Closed { end: Some(16_384) }, |_| true);
        assert_eq!(settled.lost, 1);
    }
}
