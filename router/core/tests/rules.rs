//! One test per rule of the protocol's fine print that this core keeps: the execution that breaks without it.
#![expect(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test that is wrong about its own small numbers fails, as it should"
)]

use std::collections::BTreeMap;

use bytes::Bytes;
use model::{
    AttachmentGeneration, Cluster, ClusterRange, Epoch, Lap, LogId, Lsn, RequestSeq, VdiskId,
};
use router_core::log::pool::{Batch, OpenLog};
use router_core::log::record::SYNC_ALIGN;
use router_core::log::{Log, Placement, Scan, Scanner};
use router_core::recover::{self, Accepted, Facts, Gap};
use router_core::volume::{Change, HeadState, Opening, Stamp, Volume};
use router_core::{CLUSTER, crc32c, sco};
use wire::router::UnmapKind;

const SEGMENT: u64 = 256 << 10;
const LOG: LogId = LogId(77);
const VDISK: VdiskId = VdiskId(5);

/// A log on files in memory, and one vDisk.
struct World {
    files: Vec<Vec<u8>>,
    log: Log,
    batch: Batch,
    volume: Volume,
    seq: u64,
}

fn volume(epoch: u64, unit_clusters: u32, head: HeadState) -> Volume {
    Volume::open(Opening {
        vdisk: VDISK,
        epoch: Epoch(epoch),
        size_bytes: 1 << 30,
        unit_clusters,
        head,
    })
}

fn open(
    segments: Vec<router_core::log::Reopened>,
    next_lap: Lap,
    first: u32,
    batch: &mut Batch,
) -> Log {
    Log::open(
        OpenLog { id: LOG, segment_size: SEGMENT, files: 4, segments, next_lap, first },
        batch,
    )
}

impl World {
    fn new(unit_clusters: u32) -> Self {
        let mut batch = Batch::default();
        let mut log = open(Vec::new(), Lap(1), 0, &mut batch);
        (0..4).for_each(|file| log.file_ready(file));
        let files = vec![vec![0; SEGMENT as usize]; 4];
        let mut world = Self {
            files,
            log,
            batch,
            volume: volume(1, unit_clusters, HeadState::default()),
            seq: 0,
        };
        world.append();
        world.sync();
        world
    }

    fn append(&mut self) {
        for run in &self.batch.runs {
            let mut at = run.offset as usize;
            let file = &mut self.files[run.file as usize];
            for piece in &run.pieces {
                for part in [&self.batch.headers[piece.header.clone()], &piece.payload[..]] {
                    file[at..at + part.len()].copy_from_slice(part);
                    at += part.len();
                }
                at += piece.padding;
            }
        }
        self.batch.clear();
    }

    fn sync(&mut self) {
        self.append();
        if self.log.begin_sync().is_some() {
            self.log.sync_done();
        }
    }

    fn stamp(&mut self) -> Stamp {
        self.seq += 1;
        Stamp { generation: AttachmentGeneration(1), seq: RequestSeq(self.seq), last: true }
    }

    fn put(&mut self, change: Change) -> (Lsn, Placement) {
        let stamp = self.stamp();
        let entry = self.volume.entry(&change, stamp);
        let placement = self.log.place(entry, &mut self.batch).unwrap();
        let lsn = self.volume.accept(change, stamp, placement);
        self.append();
        (lsn, placement)
    }

    fn write(&mut self, cluster: u64, fill: u8) -> (Lsn, Placement) {
        self.put(write(cluster, fill))
    }

    fn scan(&self) -> Scan {
        let mut scanner = Scanner::new(LOG, SEGMENT);
        for (index, file) in (0..).zip(&self.files) {
            scanner.add_file(index, file);
        }
        scanner.finish().unwrap()
    }

    fn lsns(&self) -> Vec<u64> {
        self.scan().records.iter().map(|found| found.record.lsn.0).collect()
    }

    /// Where the data of a placement of one cluster lies: (file, offset).
    fn data_at(&self, placement: Placement) -> (usize, usize) {
        let scan = self.scan();
        let found = scan.records.iter().find(|found| found.record.end() == placement.end).unwrap();
        (found.file as usize, found.payload_offset as usize)
    }
}

fn write(cluster: u64, fill: u8) -> Change {
    let data = Bytes::from(vec![fill; CLUSTER]);
    Change::Write { cluster: Cluster(cluster), checksums: vec![crc32c(&data)], data }
}

fn facts(head: u64, epochs: &BTreeMap<Epoch, Lsn>) -> Facts<'_> {
    Facts {
        vdisk: VDISK,
        head_lsn: Lsn(head),
        epochs,
        promised_log: LOG,
        log_from: 0,
        own_log: LOG,
        accepted: &[],
    }
}

#[test]
fn p1_a_trim_of_any_length_is_one_small_record() {
    let mut world = World::new(16);
    let range = ClusterRange::new(Cluster(0), 1 << 32).unwrap();
    let (_, placement) = world.put(Change::Unmap { range, kind: UnmapKind::Trim });
    assert!(placement.bytes <= 128);
    let scan = world.scan();
    assert_eq!((scan.records.len(), scan.records[0].record.count), (1, 1 << 32));
}

#[test]
fn p2_a_sync_covers_what_was_placed_before_it_began_and_nothing_after() {
    let mut world = World::new(16);
    let (_, before) = world.write(1, 1);
    world.log.begin_sync().unwrap();
    let (_, after) = world.write(2, 2);
    world.log.sync_done();
    assert!(before.end <= world.log.synced());
    assert!(
        world.log.synced() < after.end,
        "write 11 isn't covered by a flush that began at write 10"
    );
}

#[test]
fn p3_an_applied_sequence_is_known_again_after_recovery() {
    let mut world = World::new(16);
    // W1, unacknowledged but applied; then W2 over it, flushed. The owner dies.
    world.write(7, 1);
    world.write(7, 2);
    world.sync();
    let scan = world.scan();
    let plan = recover::plan(&facts(0, &BTreeMap::new()), &scan).unwrap();
    let mut recovered = volume(2, 16, HeadState::default());
    for index in plan.records {
        let record = &scan.records[index].record;
        recovered.replay(router_core::volume::Replayed {
            lsn: record.lsn,
            epoch: record.epoch,
            change: write(7, u8::try_from(record.lsn.0).unwrap()),
            stamp: Stamp { generation: record.generation, seq: record.seq, last: record.last },
            placement: Placement { lap: record.lap, bytes: record.len() as u64, end: record.end() },
        });
    }
    let generation = AttachmentGeneration(1);
    assert!(
        recovered.applied().contains(generation, RequestSeq(1)),
        "so that W1 isn't applied over W2"
    );
    assert!(recovered.applied().contains(generation, RequestSeq(2)));
    assert!(!recovered.applied().contains(generation, RequestSeq(3)));
    assert!(!recovered.applied().contains(AttachmentGeneration(2), RequestSeq(1)));
}

#[test]
fn p7_a_write_that_is_replaced_by_a_later_unit_stays_in_its_own() {
    let mut world = World::new(2);
    world.write(1, 10);
    world.write(2, 20);
    // The first unit is full. What follows overwrites it, and lands in the next.
    world.write(1, 11);
    world.write(3, 30);
    let first = sco::build(&world.volume.next_unit(2).unwrap());
    let second = sco::build(&world.volume.next_unit(2).unwrap());
    assert_eq!((first.meta.first_lsn, first.meta.last_lsn), (Lsn(1), Lsn(2)));
    assert_eq!(
        first.payload[..CLUSTER],
        [10; CLUSTER],
        "not left out: the unit that replaces it may never commit"
    );
    assert_eq!(second.payload[..CLUSTER], [11; CLUSTER]);
    assert_eq!(second.meta.predecessor, Some(first.tlog.object));
}

#[test]
fn p8_a_bad_record_above_all_synced_is_the_torn_end() {
    let mut world = World::new(16);
    world.write(1, 1);
    world.sync();
    world.write(2, 2);
    let (_, torn) = world.write(3, 3);
    world.write(4, 4);
    let (file, offset) = world.data_at(torn);
    world.files[file][offset] ^= 1;
    let scan = world.scan();
    assert!(scan.damages.is_empty());
    assert_eq!(
        world.lsns(),
        vec![1, 2],
        "what lies behind the torn record doesn't count, though it is intact"
    );
}

#[test]
fn p8_a_bad_record_below_what_was_synced_is_damage_and_a_gap() {
    for (what, skip) in [("data", 0), ("header", 128)] {
        let mut world = World::new(16);
        let (_, first) = world.write(1, 1);
        world.sync();
        world.write(2, 2);
        let (file, offset) = world.data_at(first);
        world.files[file][offset - skip] ^= 1;
        let scan = world.scan();
        assert_eq!(scan.damages.len(), 1, "{what}");
        let epochs = BTreeMap::new();
        let gap = recover::plan(&facts(0, &epochs), &scan).unwrap_err();
        assert_eq!(gap, Gap::Hole { from: Lsn(1), to: Lsn(1), head: Lsn(0) }, "{what}");
        // The backend has it: nothing is missing.
        let plan = recover::plan(&facts(1, &epochs), &scan).unwrap();
        assert_eq!(plan.records.len(), 1, "{what}");
    }
}

#[test]
fn p8_damage_that_may_have_held_the_newest_writes_is_a_gap_too() {
    let mut world = World::new(16);
    world.write(1, 1);
    let (_, last) = world.write(2, 2);
    world.sync();
    // Another vDisk's record says how far was synced.
    let mut other = Volume::open(Opening {
        vdisk: VdiskId(6),
        epoch: Epoch(1),
        size_bytes: 1 << 30,
        unit_clusters: 16,
        head: HeadState::default(),
    });
    let stamp = world.stamp();
    let entry = other.entry(&write(9, 9), stamp);
    let placement = world.log.place(entry, &mut world.batch).unwrap();
    other.accept(write(9, 9), stamp, placement);
    world.append();
    let (file, offset) = world.data_at(last);
    world.files[file][offset - 128] ^= 1;
    let scan = world.scan();
    let epochs = BTreeMap::new();
    assert!(matches!(
        recover::plan(&facts(0, &epochs), &scan),
        Err(Gap::Damaged { last: Lsn(1), .. })
    ));
}

#[test]
fn p8_after_a_sync_the_next_record_begins_on_a_fresh_block() {
    let mut world = World::new(16);
    world.write(1, 1);
    world.sync();
    let synced = world.log.synced();
    let (_, next) = world.write(2, 2);
    let start = next.end - next.bytes;
    assert_eq!(start % SYNC_ALIGN, 0);
    assert!(synced <= start && start < synced + SYNC_ALIGN);
    let (_, third) = world.write(3, 3);
    assert_eq!(
        third.end - third.bytes,
        next.end,
        "without a sync records lie one behind the other"
    );
}

#[test]
fn p8_records_of_an_older_lap_are_never_read_as_new() {
    let mut world = World::new(1000);
    let mut placements = Vec::new();
    // Around the pool: every file is used again.
    for round in 0..400_u64 {
        let (lsn, placement) = world.write(round % 7, u8::try_from(round % 251).unwrap());
        placements.push(placement);
        world.sync();
        if lsn.0 % 5 == 0 {
            // As if the backend had it: the log forgets the five oldest.
            world.volume.seal();
            while let Some(unit) = world.volume.next_unit(9) {
                let done = world.volume.unit_done(unit.object);
                for (lap, bytes) in world.volume.drop_through(done.last().unwrap().last_lsn) {
                    world.log.release(lap, bytes);
                }
            }
            world.log.reserve(&mut world.batch);
            world.sync();
        }
    }
    let committed = world.volume.committed_lsn();
    let scan = world.scan();
    let epochs = BTreeMap::new();
    let plan = recover::plan(&facts(committed.0, &epochs), &scan).unwrap();
    assert_eq!(plan.records.len() as u64, world.volume.last_lsn().0 - committed.0);
    assert!(4 < scan.next_lap.0, "the files were reused");
}

#[test]
fn p8_what_lay_behind_a_torn_end_stays_dead_when_the_log_goes_on() {
    let mut world = World::new(16);
    world.write(1, 1);
    world.sync();
    let (_, torn) = world.write(2, 2);
    world.write(3, 3);
    let (file, offset) = world.data_at(torn);
    let saved = world.files[file][offset];
    world.files[file][offset] ^= 1;
    let scan = world.scan();
    let mut batch = Batch::default();
    world.log = open(scan.segments.clone(), scan.next_lap, 1, &mut batch);
    world.batch = batch;
    world.sync();
    world.files[file][offset] = saved;
    assert_eq!(world.lsns(), vec![1], "LSN 2 and 3 were refused once and for all");
}

/// Fills segments with what another vDisk writes and commits, so that nothing of it pins them.
fn fill_with_committed(world: &mut World) {
    let mut busy = Volume::open(Opening {
        vdisk: VdiskId(6),
        epoch: Epoch(1),
        size_bytes: 1 << 30,
        unit_clusters: 1000,
        head: HeadState::default(),
    });
    for round in 0..60 {
        let stamp = world.stamp();
        let change = write(round, 3);
        let entry = busy.entry(&change, stamp);
        let placement = world.log.place(entry, &mut world.batch).unwrap();
        busy.accept(change, stamp, placement);
        world.sync();
    }
    busy.seal();
    let unit = busy.next_unit(1).unwrap();
    let done = busy.unit_done(unit.object);
    for (lap, bytes) in busy.drop_through(done[0].last_lsn) {
        world.log.release(lap, bytes);
    }
}

#[test]
fn p9_the_last_records_of_a_nearly_dead_segment_move_on_and_free_it() {
    let mut world = World::new(1000);
    let (first, _) = world.write(1, 1);
    fill_with_committed(&mut world);
    let pinned = *world.log.sparse(8).first().expect("one old record pins a whole segment");
    let used = world.log.used();
    for (lsn, entry) in world.volume.records_in(pinned) {
        assert_eq!(lsn, first);
        let placement = world.log.place(entry, &mut world.batch).unwrap();
        let old = world.volume.moved(lsn, placement).unwrap();
        world.log.release(old.lap, old.bytes);
    }
    world.sync();
    assert!(world.log.used() < used);
    let epochs = BTreeMap::new();
    let scan = world.scan();
    assert_eq!(recover::plan(&facts(0, &epochs), &scan).unwrap().records.len(), 1);
}

#[test]
fn p10_a_record_counts_only_if_its_epoch_owned_that_lsn() {
    let mut world = World::new(16);
    for lsn in 1..=6 {
        world.write(lsn, 5);
    }
    // A later life recovered to LSN 3 only (the rest wasn't synced), and wrote its own 4 and 5.
    let head = HeadState { last_lsn: Lsn(3), ..HeadState::default() };
    world.volume = volume(2, 16, head);
    world.write(40, 6);
    world.write(41, 6);
    let scan = world.scan();
    let plan = recover::plan(&facts(0, &BTreeMap::new()), &scan).unwrap();
    let chosen: Vec<(u64, u64)> = plan
        .records
        .iter()
        .map(|index| (scan.records[*index].record.epoch.0, scan.records[*index].record.lsn.0))
        .collect();
    assert_eq!(
        chosen,
        vec![(1, 1), (1, 2), (1, 3), (2, 4), (2, 5)],
        "the old 4 to 6 are another history"
    );
    // The same when only the backend knows of the later epoch.
    let epochs = BTreeMap::from([(Epoch(3), Lsn(5))]);
    let plan = recover::plan(&facts(4, &epochs), &scan).unwrap();
    assert!(plan.records.is_empty(), "epoch 3 owns everything from LSN 5 on");
}

#[test]
fn p10_what_was_logged_before_another_owned_the_vdisk_never_counts_again() {
    let mut world = World::new(16);
    for lsn in 1..=4 {
        world.write(lsn, 5);
    }
    // Another router took it over at the backend's head, wrote nothing, and gave it back.
    let log_from = world.log.written();
    let epochs = BTreeMap::new();
    let back = Facts { log_from, ..facts(0, &epochs) };
    assert!(recover::plan(&back, &world.scan()).unwrap().records.is_empty());
    world.volume = volume(3, 16, HeadState::default());
    world.write(40, 6);
    let scan = world.scan();
    let plan = recover::plan(&back, &scan).unwrap();
    let epochs: Vec<u64> = plan.records.iter().map(|i| scan.records[*i].record.epoch.0).collect();
    assert_eq!(epochs, [3], "LSNs 2 to 4 were another history's");
}

#[test]
fn l7_what_an_operator_gave_up_never_counts_again_and_what_joins_does() {
    let mut world = World::new(16);
    for lsn in 1..=4 {
        world.write(lsn, 5);
    }
    world.sync();
    let mut scan = world.scan();
    scan.records.remove(1);
    let epochs = BTreeMap::new();
    let gap = recover::plan(&facts(0, &epochs), &scan).unwrap_err();
    let (from, through) = gap.lost();
    assert_eq!((from, through), (Lsn(2), None), "{gap}");
    let accepted = [Accepted { epoch: scan.records[0].record.epoch, from, log_end: scan.end }];
    let given_up = Facts { accepted: &accepted, ..facts(0, &epochs) };
    assert_eq!(recover::plan(&given_up, &scan).unwrap().records, [0]);
    // Also when the disk shows it again later.
    let whole = world.scan();
    assert_eq!(recover::plan(&given_up, &whole).unwrap().records, [0]);
    // A later life goes on behind what was kept.
    let later = Accepted { epoch: Epoch(0), ..accepted[0] };
    let all = Facts { accepted: &[later], ..facts(0, &epochs) };
    assert_eq!(recover::plan(&all, &whole).unwrap().records.len(), 4);
}

#[test]
fn l7_a_log_that_is_gone_or_another_is_a_gap_unless_it_was_drained() {
    let world = World::new(16);
    let scan = world.scan();
    let epochs = BTreeMap::new();
    let other = Facts { promised_log: LogId(1), ..facts(7, &epochs) };
    let gap = recover::plan(&other, &scan).unwrap_err();
    assert!(gap.to_string().contains("LSN 7"), "{gap}");
    let drained = Facts { promised_log: LogId::ZERO, ..facts(7, &epochs) };
    assert!(recover::plan(&drained, &scan).unwrap().records.is_empty());
}

#[test]
fn l7_an_unreadable_list_is_an_error_when_something_was_synced() {
    let mut world = World::new(16);
    world.write(1, 1);
    world.sync();
    world.write(2, 2);
    // The list at the head of the only segment, and the one that reserved the next.
    for at in (0..SEGMENT as usize).step_by(64) {
        if world.files[0][at..at + 4] == *b"HFWL" && 16 <= world.files[0][at + 5] {
            world.files[0][at + 20] ^= 1;
        }
    }
    let mut scanner = Scanner::new(LOG, SEGMENT);
    scanner.add_file(0, &world.files[0]);
    assert!(scanner.finish().unwrap_err().to_string().contains("list"));
}

#[test]
fn a_full_log_says_so_and_goes_on_when_space_is_freed() {
    let mut world = World::new(1000);
    let mut placed = 0;
    loop {
        let change = write(placed, 1);
        let stamp = world.stamp();
        let entry = world.volume.entry(&change, stamp);
        match world.log.place(entry, &mut world.batch) {
            Ok(placement) => drop(world.volume.accept(change, stamp, placement)),
            Err(_) if world.log.wants_sync() => {}
            Err(_) => break,
        }
        world.sync();
        placed += 1;
        assert!(placed < 1000, "a log has an end");
    }
    assert!(world.log.used() <= 4 * SEGMENT);
    world.volume.seal();
    let unit = world.volume.next_unit(1).unwrap();
    let done = world.volume.unit_done(unit.object);
    for (lap, bytes) in world.volume.drop_through(done[0].last_lsn) {
        world.log.release(lap, bytes);
    }
    world.log.reserve(&mut world.batch);
    world.sync();
    let change = write(9, 9);
    let stamp = world.stamp();
    let entry = world.volume.entry(&change, stamp);
    assert!(world.log.place(entry, &mut world.batch).is_ok());
}

#[test]
fn p8_a_small_torn_record_before_a_fresh_block_isnt_taken_for_padding() {
    let mut world = World::new(16);
    world.sync();
    world.write(1, 1);
    let range = ClusterRange::new(Cluster(9), 1).unwrap();
    let (_, trim) = world.put(Change::Unmap { range, kind: UnmapKind::Trim });
    // A sync begins, and what follows it lands first; the power fails before the trim does.
    world.log.begin_sync().unwrap();
    world.write(2, 2);
    let start = (trim.end - trim.bytes) % SEGMENT;
    world.files[0][start as usize..][..128].fill(0);
    assert_eq!(world.lsns(), vec![1], "LSN 3 without LSN 2 would be another history");
}

#[test]
fn p8_a_list_behind_the_torn_end_is_not_believed() {
    let mut world = World::new(1000);
    let (first, _) = world.write(1, 1);
    fill_with_committed(&mut world);
    let pinned = *world.log.sparse(8).first().unwrap();
    // The last record moves on; the segment dies; a roll-over writes a list without it. Nothing of that is synced.
    let mut copies = Vec::new();
    for (lsn, entry) in world.volume.records_in(pinned) {
        let placement = world.log.place(entry, &mut world.batch).unwrap();
        let old = world.volume.moved(lsn, placement).unwrap();
        world.log.release(old.lap, old.bytes);
        copies.push(placement);
    }
    let synced = world.log.synced();
    let mut round = 0;
    while world.log.place(other_entry(round), &mut world.batch).is_ok() {
        world.append();
        round += 1;
    }
    world.append();
    assert!(synced == world.log.synced() && copies.len() == 1);
    // The power fails: the copy is torn, everything behind it landed.
    let start = ((copies[0].end - copies[0].bytes) % SEGMENT) as usize;
    let lap = copies[0].end / SEGMENT;
    let file = world
        .scan()
        .segments
        .iter()
        .find(|segment| segment.lap.0 == lap)
        .map(|segment| segment.file as usize)
        .unwrap();
    world.files[file][start..start + 64].fill(0);
    let scan = world.scan();
    let plan = recover::plan(&facts(0, &BTreeMap::new()), &scan).unwrap();
    let lsns: Vec<Lsn> = plan.records.iter().map(|at| scan.records[*at].record.lsn).collect();
    assert_eq!(lsns, vec![first], "the old copy is still there, and was promised");
}

/// A record of a vDisk that nobody asks about.
fn other_entry(round: u64) -> router_core::log::pool::Entry {
    let volume = Volume::open(Opening {
        vdisk: VdiskId(8),
        epoch: Epoch(1),
        size_bytes: 1 << 30,
        unit_clusters: 1000,
        head: HeadState { last_lsn: Lsn(round), ..HeadState::default() },
    });
    let stamp =
        Stamp { generation: AttachmentGeneration(1), seq: RequestSeq(round + 1), last: true };
    volume.entry(&write(round, 8), stamp)
}
