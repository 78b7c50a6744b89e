//! What the pool of segments says of its room: recovery rests on it where it takes over a log longer than a segment.

use bytes::Bytes;
use model::{AttachmentGeneration, Cluster, Epoch, Lap, LogId, Lsn, RequestSeq, VdiskId};
use proptest::prelude::*;
use router_core::log::pool::{Batch, Entry, OpenLog};
use router_core::log::record::{SYNC_ALIGN, record_len};
use router_core::log::{Log, Op, Placement};
use std::collections::BTreeMap;

const SEGMENT: u64 = 256 << 10;
const BIGGEST: usize = 12;

fn log(files: u32) -> Log {
    let mut batch = Batch::default();
    let segments = Vec::new();
    let (id, next_lap, first) = (LogId(7), Lap(1), 0);
    let start = OpenLog { id, segment_size: SEGMENT, files, segments, next_lap, first };
    let mut log = Log::open(start, &mut batch);
    log.file_ready(0);
    log
}

fn entry(clusters: usize) -> Entry {
    Entry {
        vdisk: VdiskId(5),
        epoch: Epoch(1),
        lsn: Lsn(1),
        generation: AttachmentGeneration(1),
        seq: RequestSeq(1),
        last: true,
        copied: false,
        op: Op::Write,
        cluster: Cluster(0),
        count: model::u64_of(clusters),
        checksums: vec![0; clusters],
        payload: Bytes::from(vec![1; clusters * 4096]),
    }
}

/// As a router does between two tries; false when nothing was wanted.
fn settle(log: &mut Log) -> bool {
    let synced = log.begin_sync().is_some();
    if synced {
        log.sync_done();
    }
    let wanted = log.file_wanted();
    if let Some(file) = wanted {
        log.file_ready(file);
    }
    synced || wanted.is_some()
}

/// Until there is no room any more.
fn fill(log: &mut Log, sizes: impl IntoIterator<Item = usize>) -> Vec<Placement> {
    let (mut batch, mut placed) = (Batch::default(), Vec::new());
    for clusters in sizes {
        let placement = loop {
            match log.place(entry(clusters), &mut batch) {
                Ok(placement) => break Some(placement),
                Err(_) if log.room_is_coming() => assert!(settle(log), "it waits for nothing"),
                Err(_) => break None,
            }
        };
        match placement {
            Some(placement) => placed.push(placement),
            None => return placed,
        }
    }
    panic!("it is never full");
}

/// h_14.
#[test]
fn h_14_what_has_no_room_now_has_it_after_a_sync_as_long_as_a_segment_is_left() {
    let mut log = log(4);
    let mut batch = Batch::default();
    let at_once = (0..).take_while(|_| log.place(entry(8), &mut batch).is_ok()).count();
    assert!(log.room_is_coming(), "{at_once} were placed");
    let placed = fill(&mut log, std::iter::repeat(8));
    assert!(2 * at_once < placed.len(), "{at_once} at once, {} then", placed.len());
    settle(&mut log);
    assert!(log.place(entry(8), &mut batch).is_err() && !log.room_is_coming());
}

/// Fills the log three times, and in between lets go of the first two records and of those that `released` says.
fn check_room(files: u32, sizes: &[usize], released: &[bool]) {
    let mut log = log(files);
    let lost = record_len(BIGGEST, BIGGEST * 4096) as u64 + 4 * SYNC_ALIGN;
    let mut live: BTreeMap<Lap, u64> = BTreeMap::new();
    for _ in 0..3 {
        let before = log.room();
        // Closed, the open segment is as good as new when nothing in it is needed.
        let open_is_dead = live.last_key_value().is_some_and(|(_, live)| *live == 0);
        let spare = if open_is_dead { SEGMENT } else { 0 };
        let placed = fill(&mut log, sizes.iter().copied().cycle());
        let bytes: u64 = placed.iter().map(|placement| placement.bytes).sum();
        assert!(bytes <= before + spare, "{bytes} of {before} and {spare}");
        assert!(before <= bytes + u64::from(files) * lost, "{bytes} of {before}");
        assert!(log.room() <= lost, "{} are left", log.room());
        for Placement { lap, bytes, .. } in &placed {
            *live.entry(*lap).or_default() += bytes;
        }
        for (at, Placement { lap, bytes, .. }) in placed.iter().enumerate() {
            if released[at % released.len()] || at < 2 {
                log.release(*lap, *bytes);
                live.entry(*lap).and_modify(|live| *live -= bytes);
            }
        }
    }
}

/// What is left of the open segment is too short for the next record, and nothing in it is needed.
#[test]
fn an_open_segment_of_which_nothing_is_needed_gives_another_one() {
    let sizes = [8, 12, 2, 2, 10, 10, 12, 7, 1, 1, 8, 2, 11, 3, 9, 9, 1, 7, 2, 10, 8, 3];
    let mut released = [false; 64];
    released[..8].fill(true);
    check_room(8, &sizes, &released);
}

proptest! {
    #[test]
    fn what_is_said_to_be_room_is_room_but_for_the_ends_of_segments(
        files in 4_u32..9,
        sizes in prop::collection::vec(1..=BIGGEST, 1..40),
        released in prop::collection::vec(any::<bool>(), 64),
    ) {
        check_room(files, &sizes, &released);
    }
}
