//! Room: who may take the next segment, and which segment is worth emptying.
//!
//! ```text
//! |··················· puts ···················|·· deletes ··|·· compaction ··|
//! 0                              capacity − 3 segments    − 1 segment     capacity
//! ```
//!
//! Puts stop while there still is room for tombstones, and those while compaction can still copy a segment's live
//! records: so a full disk can always be emptied. Full is an answer, not a failure.
//!
//! Invariant: the segment files in use never take more than `capacity`.

use crate::index::SegmentRow;
use crate::ledger::Ledger;
use crate::segment::{HEADER_ROOM, SEGMENT_MAX, SEGMENT_MIN};
use model::Lap;
use std::collections::BTreeMap;

/// Segments that puts leave to deletes and compaction.
pub const RESERVED_SEGMENTS: u64 = 3;
/// Fewest segments that a capacity must hold.
pub const SEGMENTS_MIN: u64 = 8;
pub const SEGMENT_DEFAULT: u64 = 64 << 20;

/// Who wants a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    Put,
    Delete,
    Compaction,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    capacity: u64,
    segment: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LimitsError {
    #[error(
        "segment size {segment} isn't a multiple of 4096 between {SEGMENT_MIN} and {SEGMENT_MAX}"
    )]
    Segment { segment: u64 },
    #[error("capacity {capacity} holds fewer than {SEGMENTS_MIN} segments of {segment} bytes")]
    Capacity { capacity: u64, segment: u64 },
}

impl Limits {
    /// # Errors
    /// When the segment size is odd or the capacity too small for it.
    pub const fn new(capacity: u64, segment: u64) -> Result<Self, LimitsError> {
        if !segment.is_multiple_of(4096) || segment < SEGMENT_MIN || segment > SEGMENT_MAX {
            return Err(LimitsError::Segment { segment });
        }
        if capacity / segment < SEGMENTS_MIN {
            return Err(LimitsError::Capacity { capacity, segment });
        }
        Ok(Self { capacity, segment })
    }

    /// The segment size for a capacity: 64 MiB, smaller on small disks so that the reserve stays under a tenth.
    #[must_use]
    pub fn default_segment(capacity: u64) -> u64 {
        (capacity / 32 / 4096 * 4096).clamp(SEGMENT_MIN, SEGMENT_DEFAULT)
    }

    #[must_use]
    pub const fn capacity(&self) -> u64 {
        self.capacity
    }

    #[must_use]
    pub const fn segment(&self) -> u64 {
        self.segment
    }

    /// Length of a segment for a record: the usual one, or one of its own for a record that wouldn't fit.
    #[must_use]
    pub fn segment_for(&self, record_len: u64) -> u64 {
        let own = crate::record::align(record_len, 4096) + 2 * HEADER_ROOM;
        self.segment.max(own)
    }

    /// Whether a segment of `len` bytes may be taken into use.
    #[must_use]
    pub fn allows(&self, allocated: u64, len: u64, purpose: Purpose) -> bool {
        let kept = match purpose {
            Purpose::Put => RESERVED_SEGMENTS * self.segment,
            Purpose::Delete => self.segment,
            Purpose::Compaction => 0,
        };
        allocated + len + kept <= self.capacity
    }

    /// Whether puts are near their limit, so that also segments with little garbage are worth emptying.
    #[must_use]
    pub fn is_tight(&self, allocated: u64) -> bool {
        let for_puts = self.capacity - RESERVED_SEGMENTS * self.segment;
        allocated + 2 * self.segment > for_puts || allocated / 7 > for_puts / 8
    }

    /// The segment whose emptying frees most per byte copied; `None` when none is worth it.
    ///
    /// `pinned` names segments that couldn't be emptied, with the live bytes they had: they hold damaged fragments and
    /// are tried again when some of those are gone.
    #[must_use]
    pub fn victim(
        &self,
        ledger: &Ledger,
        head: Option<Lap>,
        pinned: &BTreeMap<Lap, u64>,
    ) -> Option<Lap> {
        let tight = self.is_tight(ledger.allocated());
        ledger
            .rows
            .iter()
            .filter(|(lap, _)| Some(**lap) != head)
            .filter(|(lap, row)| pinned.get(lap) != Some(&row.live))
            .filter(|(_, row)| garbage_percent(row) >= if tight { 20 } else { 50 })
            .max_by_key(|(lap, row)| (garbage_percent(row), std::cmp::Reverse(**lap)))
            .map(|(lap, _)| *lap)
    }
}

/// Share of a closed segment that emptying it would free. An unused end counts only where it is most of the segment:
/// otherwise the next record just didn't fit, and it wouldn't fit better after copying.
fn garbage_percent(row: &SegmentRow) -> u64 {
    let unused = row.len.saturating_sub(row.used);
    let end = if unused > row.len / 2 || row.live == 0 { row.len } else { row.used };
    end.saturating_sub(row.live) * 100 / row.len.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::FileId;
    use crate::index::Meta;

    const SEGMENT: u64 = 64 << 10;

    fn ledger(live: &[u64]) -> Ledger {
        let rows = (1..).zip(live).map(|(lap, live)| {
            (Lap(lap), SegmentRow { file: FileId(0), len: SEGMENT, used: SEGMENT, live: *live })
        });
        Ledger { rows: rows.collect(), meta: Meta::default() }
    }

    #[test]
    fn puts_stop_before_deletes_and_those_before_compaction() {
        let limits = Limits::new(10 * SEGMENT, SEGMENT).unwrap();
        let most =
            |purpose| (0..=10).take_while(|n| limits.allows(n * SEGMENT, SEGMENT, purpose)).count();
        assert_eq!(most(Purpose::Put), 7);
        assert_eq!(most(Purpose::Delete), 9);
        assert_eq!(most(Purpose::Compaction), 10);
    }

    #[test]
    fn the_emptiest_segment_is_the_victim_and_full_ones_are_left_alone() {
        let limits = Limits::new(100 * SEGMENT, SEGMENT).unwrap();
        let none = BTreeMap::new();
        let half = SEGMENT / 2;
        assert_eq!(limits.victim(&ledger(&[SEGMENT, half + 1]), None, &none), None);
        assert_eq!(limits.victim(&ledger(&[half, 0, 0]), Some(Lap(2)), &none), Some(Lap(3)));
        assert_eq!(limits.victim(&ledger(&[half, 0]), None, &[(Lap(2), 0)].into()), Some(Lap(1)));
        let tight = Limits::new(8 * SEGMENT, SEGMENT).unwrap();
        let nearly = [SEGMENT, SEGMENT, SEGMENT, SEGMENT - SEGMENT / 4];
        assert_eq!(tight.victim(&ledger(&nearly), None, &none), Some(Lap(4)));
        assert_eq!(limits.victim(&ledger(&nearly), None, &none), None);
    }

    #[test]
    fn sizes_that_cannot_work_are_refused() {
        assert!(Limits::new(SEGMENT * 7, SEGMENT).is_err());
        assert!(Limits::new(1 << 30, 5000).is_err());
        assert!(Limits::new(1 << 30, 4096).is_err());
        assert_eq!(Limits::default_segment(1 << 40), 64 << 20);
        let small = Limits::default_segment(10 << 20);
        assert!(Limits::new(10 << 20, small).is_ok());
        let limits = Limits::new(1 << 30, 64 << 20).unwrap();
        assert!(limits.segment_for(64 << 20) > 64 << 20);
        assert_eq!(limits.segment_for(1 << 20), 64 << 20);
    }
}
