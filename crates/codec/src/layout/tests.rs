//! Tests of [`super`]: known answers, properties, and damage that must be noticed.

use proptest::prelude::*;

use super::*;
use crate::frames::tests::any_table;
use crate::frames::{FrameSize, Suite};

fn raw(plain_len: u32) -> FrameTable {
    FrameTable::all_raw(Suite::Crc32c, FrameSize::MIN, plain_len).unwrap()
}

#[test]
fn equal_frames_spread_evenly() {
    let layout = Layout::new(&raw(16 * 4096), 4).unwrap();
    assert_eq!(layout.fragment_lens(), [4 * 4100; 4]);
    assert_eq!(layout.stripe_len(), 4 * 4100);
    assert_eq!(
        layout.place(6),
        Some(FramePlace { fragment: 1, offset: 2 * 4100, stored_len: 4100 })
    );
}

/// The rule is a format: these places may never change.
#[test]
fn golden_places_with_fewer_frames_than_fragments() {
    let fragments = |frames: u32, k: u8| -> Vec<u8> {
        let table = raw(frames * 4096);
        let layout = Layout::new(&table, k).unwrap();
        (0..frames).map(|i| layout.place(i).unwrap().fragment).collect()
    };
    assert_eq!(fragments(1, 4), [2]);
    assert_eq!(fragments(2, 4), [1, 3]);
    assert_eq!(fragments(3, 4), [0, 2, 3]);
    assert_eq!(fragments(5, 4), [0, 1, 2, 2, 3]);
    assert_eq!(fragments(6, 4), [0, 1, 1, 2, 3, 3]);
    assert_eq!(fragments(3, 1), [0, 0, 0]);
    assert_eq!(fragments(0, 3), [0u8; 0]);
}

#[test]
fn impossible_requests_are_refused() {
    let table = raw(5000);
    assert_eq!(Layout::new(&table, 0), Err(PlanError::DataFragments(0)));
    assert_eq!(Layout::new(&table, 33), Err(PlanError::DataFragments(33)));
    let layout = Layout::new(&table, 2).unwrap();
    assert!(layout.plan_read(&table, 0..5001).is_err());
    #[expect(clippy::reversed_empty_ranges, reason = "the mistake under test")]
    let backwards = 3..2;
    assert!(layout.plan_read(&table, backwards).is_err());
    assert_eq!(layout.plan_read(&table, 5000..5000), Ok(vec![]));
}

#[test]
fn a_small_read_touches_one_frame_of_one_fragment() {
    let table = raw(16 * 4096);
    let layout = Layout::new(&table, 4).unwrap();
    let reads = layout.plan_read(&table, 5 * 4096..6 * 4096).unwrap();
    assert_eq!(reads.len(), 1);
    assert_eq!(reads[0].slice, 0..4096);
    assert_eq!(coalesce(&reads), [FragmentRange { fragment: 1, range: 4100..8200 }]);
}

proptest! {
    #[test]
    fn fragments_in_order_are_the_stream_and_balanced(table in any_table(), k in 1u8..=32) {
        let layout = Layout::new(&table, k).unwrap();
        let mut ends = vec![0u32; usize::from(k)];
        let mut last = 0;
        for frame in table.iter() {
            let place = layout.place(frame.index).unwrap();
            prop_assert!(place.fragment >= last && place.fragment < k);
            last = place.fragment;
            let end = &mut ends[usize::from(place.fragment)];
            // Starts where the one before ended and lies wholly inside one fragment (P25).
            prop_assert_eq!(place.offset, *end);
            prop_assert_eq!(place.stored_len, frame.stored_len);
            *end += place.stored_len;
        }
        prop_assert_eq!(&ends, layout.fragment_lens());
        prop_assert_eq!(ends.iter().sum::<u32>(), table.stored_len());
        let longest = table.iter().map(|f| f.stored_len).max().unwrap_or(0);
        prop_assert!(layout.stripe_len() <= table.stored_len() / u32::from(k) + 1 + longest);
    }

    #[test]
    fn plans_cover_exactly_the_range(
        table in any_table(), k in 1u8..=32, a in any::<u32>(), b in any::<u32>(),
    ) {
        let layout = Layout::new(&table, k).unwrap();
        let (a, b) = (a % (table.plain_len() + 1), b % (table.plain_len() + 1));
        let range = a.min(b)..a.max(b);
        let reads = layout.plan_read(&table, range.clone()).unwrap();
        let mut at = range.start;
        for read in &reads {
            let frame_start = read.info.index * table.frame_size().bytes();
            prop_assert_eq!(frame_start + read.slice.start, at);
            prop_assert_eq!(read.out_offset, at - range.start);
            prop_assert!(read.slice.end <= read.info.plain_len && !read.slice.is_empty());
            prop_assert_eq!(Some(read.place), layout.place(read.info.index));
            at = frame_start + read.slice.end;
        }
        prop_assert_eq!(at, range.end);
        let fetched: u32 = coalesce(&reads).iter().map(|r| r.range.end - r.range.start).sum();
        prop_assert_eq!(fetched, reads.iter().map(|r| r.info.stored_len).sum::<u32>());
    }
}
