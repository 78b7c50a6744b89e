//! A log in memory, whose vDisks are stored or not as a test wishes.

use bytes::Bytes;
use model::{AttachmentGeneration, Cluster, Epoch, LogId, RequestSeq, RouterId};
use router_core::log::Scan;
use router_core::log::pool::OpenLog;
use router_core::volume::{Change, HeadState, Opening, Stamp, Volume};
use router_core::{CLUSTER, crc32c};
use wire::facts::{AttachmentsRecord, VdiskRecord};

use super::*;

const SEGMENT: u64 = 256 << 10;
const FILES: u32 = 20;
const MEMORY: u64 = 1 << 20;
const STUCK: VdiskId = VdiskId(1);
const BUSY: VdiskId = VdiskId(2);

struct World {
    state: State,
    writes: u64,
}

fn serving(vdisk: VdiskId) -> Serving {
    let opening = Opening {
        vdisk,
        epoch: Epoch(1),
        size_bytes: 1 << 30,
        unit_clusters: 1 << 16,
        head: HeadState::default(),
    };
    let record = VdiskRecord {
        vdisk,
        name: vdisk.to_string(),
        size_bytes: 1 << 30,
        vpool: "default".to_owned(),
        owner: RouterId(1),
        epoch: Epoch(1),
        log_id: 7,
        deleting: false,
    };
    let attachments =
        AttachmentsRecord { last_generation: AttachmentGeneration(1), live: Vec::new() };
    Serving::new(Volume::open(opening), record, attachments, 0)
}

impl World {
    fn new(vdisks: impl IntoIterator<Item = VdiskId>) -> Self {
        let mut batch = Batch::default();
        let open = OpenLog {
            id: LogId(7),
            segment_size: SEGMENT,
            files: FILES,
            segments: Vec::new(),
            next_lap: Lap(1),
            first: 0,
        };
        let mut log = Log::open(open, &mut batch);
        (0..FILES).for_each(|file| log.file_ready(file));
        let mut state = State::new(log, batch, Scan::default(), MEMORY);
        vdisks.into_iter().for_each(|vdisk| state.begin_serving(serving(vdisk)));
        let mut world = Self { state, writes: 0 };
        world.settle();
        world
    }

    fn core(&self, vdisk: VdiskId) -> &Volume {
        let Slot::Serving(serving) = &self.state.volumes[&vdisk] else { panic!("{vdisk}") };
        &serving.core
    }

    /// All that is placed is written and synced, and the next segment chosen.
    fn settle(&mut self) {
        self.state.take_batch();
        if self.state.log.begin_sync().is_some() {
            self.state.log.sync_done();
        }
        self.state.log.reserve(&mut self.state.batch);
        if self.state.log.begin_sync().is_some() {
            self.state.log.sync_done();
        }
    }

    /// A cluster that was never written before; false when the log has no room for it.
    fn write(&mut self, vdisk: VdiskId) -> bool {
        self.writes += 1;
        let (seq, cluster) = (RequestSeq(self.writes), Cluster(self.writes));
        let data = Bytes::from(vec![7; CLUSTER]);
        let change = Change::Write { cluster, checksums: vec![crc32c(&data)], data };
        let stamp = Stamp { generation: AttachmentGeneration(1), seq, last: true };
        let entry = self.core(vdisk).entry(&change, stamp);
        let mut placed = self.state.log.place(entry.clone(), &mut self.state.batch);
        if placed.is_err() {
            self.settle();
            placed = self.state.log.place(entry, &mut self.state.batch);
        }
        let Ok(placement) = placed else { return false };
        self.state.serving(vdisk).unwrap().core.accept(change, stamp, placement);
        self.state.add_pending(CLUSTER as u64);
        true
    }

    /// The backend has all of it.
    fn store(&mut self, vdisk: VdiskId) {
        let serving = self.state.serving(vdisk).unwrap();
        serving.core.seal();
        let mut last = None;
        while let Some(unit) = serving.core.next_unit(100) {
            last = serving.core.unit_done(unit.object).last().map(|done| done.last_lsn);
        }
        if let Some(lsn) = last {
            self.state.drop_through(vdisk, lsn);
        }
    }

    /// One write of the one, so many of the other, until so many bytes of segments are pinned.
    fn fill(&mut self, each: u64, until: u64) {
        while self.state.log.used() < until {
            assert!(self.write(STUCK));
            for _ in 0..each {
                assert!(self.write(BUSY));
            }
            self.store(BUSY);
        }
    }
}

/// One fifth of each segment is of a vDisk that can't be stored, and well within what it is guaranteed.
#[test]
fn p9_what_cant_be_stored_is_brought_together_before_it_stops_others() {
    let mut world = World::new([STUCK, BUSY]);
    let capacity = world.state.log.capacity();
    world.fill(4, capacity);
    let stuck = world.core(STUCK).log_bytes();
    assert!(stuck < capacity / 4, "{stuck} of {capacity}");
    world.state.serving(STUCK).unwrap().degraded = Some("no policy".to_owned());
    let mut written = 0;
    while written < 3 * capacity {
        world.state.relieve();
        world.settle();
        assert!(world.write(BUSY));
        written += CLUSTER as u64;
        world.store(BUSY);
    }
    let used = world.state.log.used();
    assert!(used <= capacity / 4 * 3 + SEGMENT, "{used} of {capacity} bytes: the neighbour waits");
    assert_eq!(world.core(STUCK).log_bytes(), stuck, "nothing of it is lost");
}

/// What recovery found of a vDisk that can't start stays where it is.
#[test]
fn p9_a_segment_that_nobody_can_empty_keeps_no_other_from_being_emptied() {
    let gone = VdiskId(9);
    let mut world = World::new([STUCK, BUSY, gone]);
    assert!(world.write(gone));
    world.state.volumes.insert(gone, Slot::Gap("its log isn't whole".to_owned()));
    let capacity = world.state.log.capacity();
    world.fill(50, capacity / 4 * 3);
    for _ in 0..10 {
        world.state.relieve();
        world.settle();
    }
    let used = world.state.log.used();
    assert!(used <= capacity / 2, "few records pin {used} bytes of {capacity}");
}

/// The oldest segment is one's that can't be stored; of the others none has much, and no unit is full.
#[test]
fn p9_open_units_of_many_vdisks_are_stored_when_somebody_waits_for_memory() {
    let others: Vec<VdiskId> = (2..=8).map(VdiskId).collect();
    let mut world = World::new([STUCK].into_iter().chain(others.clone()));
    while world.core(STUCK).placements().last().is_none_or(|(lap, _)| *lap == Lap(1)) {
        assert!(world.write(STUCK));
    }
    world.state.serving(STUCK).unwrap().core.seal();
    for round in 0..=(MEMORY / 8 / CLUSTER as u64) {
        for vdisk in &others {
            let writes = if *vdisk == VdiskId(5) && round == 3 { 2 } else { 1 };
            (0..writes).for_each(|_| assert!(world.write(*vdisk)));
        }
    }
    assert!(MEMORY < world.state.pending_bytes());
    let sealed = |world: &World| {
        let all = others.iter().filter(|vdisk| 0 < world.core(**vdisk).units());
        all.copied().collect::<Vec<_>>()
    };
    world.state.relieve_waiting();
    assert_eq!(sealed(&world), [VdiskId(2), VdiskId(5)], "the oldest and the largest");
    for _ in 0..others.len() {
        world.state.relieve_waiting();
    }
    assert_eq!(sealed(&world), others);
}
