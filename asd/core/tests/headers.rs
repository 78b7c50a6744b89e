//! The two copies of a segment's header, and power cuts that shred every sector that wasn't synced: the worst that they can do.
//!
//! Invariant: a segment that something was appended to has a header that can be read, and a lap that was freed stays
//! freed; else a rebuild of the index would bring back fragments that were deleted (L1).

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use asd_core::crc;
use asd_core::disk::{Disk, FileId, ReadAt};
use asd_core::segment::{HEADER_ROOM, SegmentHeader};
use asd_core::space::Limits;
use asd_core::store::{Op, Options, Put, Store};
use asd_core::twin::{Dice, MemoryDisk, MemoryIndex, Power, Survival};
use asd_core::walk::{Step, Walk};
use bytes::Bytes;
use model::{Lap, Now, OsdId};
use std::collections::BTreeSet;
use std::time::Duration;
use wire::asd::PutCondition;

const OSD: OsdId = OsdId(0xa5d);
const SEGMENT: u64 = 64 << 10;
/// Batches in one life.
const BATCHES: u32 = 5;

fn random_op(dice: &mut Dice) -> Op {
    let key = Bytes::from(format!("key-{}", dice.below(7)));
    if dice.below(3) == 0 {
        return Op::Delete(key);
    }
    let len = [1, 5000, 12_000, 30_000][model::usize_of(dice.below(4))];
    let data = Bytes::from(vec![u8::try_from(dice.below(256)).unwrap(); len]);
    let checksums = crc::blocks(&data);
    Op::Put(Put { key, data, checksums, condition: PutCondition::Always })
}

/// One life of a disk, until the power goes off or the history ends.
fn live(disk: &mut MemoryDisk, index: &mut MemoryIndex, power: &Power, dice: &mut Dice) {
    let options = Options { osd: OSD, limits: Limits::new(14 * SEGMENT, SEGMENT).unwrap() };
    let Ok((mut store, _)) = Store::open(disk, index, options, Now::default()) else {
        assert!(power.is_off(), "a disk that only power cuts harmed can be opened");
        return;
    };
    for batch in 0..BATCHES {
        // A disk that failed is tried again by then.
        let now = Now(Duration::from_secs(2 * u64::from(batch)));
        let ops: Vec<Op> = (0..=dice.below(5)).map(|_| random_op(dice)).collect();
        store.commit(&ops, now);
        for _ in 0..dice.below(6) {
            store.compact(20_000, now);
        }
        if power.is_off() {
            return;
        }
    }
}

/// The copies of a segment's header that are whole.
fn headers(disk: &MemoryDisk, file: FileId, len: u64) -> Vec<SegmentHeader> {
    let at = [0, len - HEADER_ROOM];
    let copies = at.map(|at| disk.read_at(file, at, model::usize_of(HEADER_ROOM)).unwrap());
    copies.iter().filter_map(|copy| SegmentHeader::decode(copy, OSD, len).ok()).collect()
}

/// Nothing was ever written between the headers.
fn is_new(disk: &MemoryDisk, file: FileId, len: u64) -> bool {
    let room = model::usize_of(len - 2 * HEADER_ROOM);
    disk.read_at(file, HEADER_ROOM, room).unwrap().iter().all(|byte| *byte == 0)
}

/// The laps of all records that lie in a file, dead or not.
fn laps(disk: &MemoryDisk, file: FileId, len: u64) -> BTreeSet<Lap> {
    let (mut walk, mut laps) = (Walk::new(OSD, Lap(0), len, 0), BTreeSet::new());
    loop {
        match walk.step() {
            Step::Need { offset, len } => {
                walk.feed(offset, disk.read_at(file, offset, len).unwrap());
            }
            Step::Found(record) => _ = laps.insert(record.lap),
            Step::End => return laps,
        }
    }
}

/// Holds the invariant against a disk whose power was cut; `dead` are the laps that were once durably freed.
fn assert_headers(disk: &MemoryDisk, dead: &mut BTreeSet<Lap>, when: &str) {
    for (file, len) in disk.list().unwrap() {
        let freed = headers(disk, file, len).iter().map(|header| header.freed).max();
        // A file that is being made holds nothing yet: with no copy whole it is given back.
        let has_header = freed.is_some() || is_new(disk, file, len);
        assert!(has_header, "segment {file} has no header, {when}");
        for lap in laps(disk, file, len) {
            if freed.is_some_and(|freed| lap <= freed) {
                dead.insert(lap);
            } else {
                assert!(!dead.contains(&lap), "lap {lap} in segment {file} is back, {when}");
            }
        }
    }
}

/// A disk that lived until the power went off, and its index.
fn lived(seed: u64, power: &Power) -> (MemoryDisk, MemoryIndex) {
    lived_with(seed, power, None, &Dice::default())
}

/// The same, with one sync that fails after so many others; the dice say what of it lands.
fn lived_with(
    seed: u64,
    power: &Power,
    fails: Option<u64>,
    dice: &Dice,
) -> (MemoryDisk, MemoryIndex) {
    let mut disk = MemoryDisk::new(power.clone());
    disk.deal(dice.clone());
    disk.fail_sync_after(fails);
    let mut index = MemoryIndex::new(power.clone());
    live(&mut disk, &mut index, power, &mut Dice::new(seed));
    (disk, index)
}

/// What a header says is said twice, and a power cut harms one copy at most.
#[test]
fn l1_every_segment_keeps_a_header_whatever_a_power_cut_shreds() {
    for seed in 0..6 {
        let power = Power::stays();
        lived(seed, &power);
        for off_at in 0..power.used() {
            let (disk, _) = lived(seed, &Power::off_at(off_at));
            let cut = Survival::Shredded;
            let disk = disk.after_power_cut(cut, &mut Dice::new(seed), Power::stays());
            let when = format!("power off after {off_at} operations of seed {seed}");
            assert_headers(&disk, &mut BTreeSet::new(), &when);
        }
    }
}

/// How the first of two lives ends.
#[derive(Debug, Clone, Copy)]
enum End {
    /// What it wrote stays in the page cache.
    Killed,
    /// That, and its syncs fail.
    KilledInFailingSyncs,
    Cut(Survival),
}

/// Whether a power cut now could leave a segment with one copy.
fn is_writing_a_header(disk: &MemoryDisk) -> bool {
    let (disk, mut dice) = (disk.clone(), Dice::new(0));
    let disk = disk.after_power_cut(Survival::Shredded, &mut dice, Power::stays());
    let files = disk.list().unwrap();
    files.into_iter().any(|(file, len)| headers(&disk, file, len).len() == 1)
}

/// A second life after the first one's end, with a power cut after each of its operations.
fn second_lives(disk: &MemoryDisk, index: &MemoryIndex, end: End, when: &str) {
    let (mut dead, mut dice) = (BTreeSet::new(), Dice::new(1));
    let (mut disk, mut index) = (disk.clone(), index.clone());
    match end {
        End::Killed => {}
        End::KilledInFailingSyncs => disk = disk.after_kill_in_failing_syncs(Power::stays()),
        End::Cut(survival) => {
            disk = disk.after_power_cut(survival, &mut dice, Power::stays());
            index = index.after_power_cut(&mut dice, Power::stays());
            assert_headers(&disk, &mut dead, when);
        }
    }
    for off_at in 0.. {
        let power = Power::off_at(off_at);
        let mut disk = disk.clone().after_kill(power.clone());
        let mut index = index.clone().after_kill(power.clone());
        let mut dice = dice.clone();
        live(&mut disk, &mut index, &power, &mut dice);
        if !power.is_off() {
            return;
        }
        let disk = disk.after_power_cut(Survival::Shredded, &mut dice, Power::stays());
        let when = format!("{when}, then power off after {off_at}");
        assert_headers(&disk, &mut dead.clone(), &when);
    }
}

/// The life before may have left one whole copy only, or the newer of two, or one of them in the page cache.
#[test]
fn l1_a_header_outlives_a_power_cut_though_the_life_before_ended_while_it_was_written() {
    const SEED: u64 = 0;
    let power = Power::stays();
    lived(SEED, &power);
    let mut ends = 0;
    for off_at in 0..power.used() {
        let (disk, index) = lived(SEED, &Power::off_at(off_at));
        if !is_writing_a_header(&disk) {
            continue;
        }
        ends += 1;
        let cuts = [Survival::Nothing, Survival::Shredded].map(End::Cut);
        for end in [End::Killed, End::KilledInFailingSyncs].into_iter().chain(cuts) {
            second_lives(&disk, &index, end, &format!("{end:?} after {off_at} operations"));
        }
    }
    assert!(ends > 10, "headers were written: {ends}");
}

/// What the page cache shows of a header isn't what is on the disk once a sync of it failed.
#[test]
fn l1_a_header_outlives_a_power_cut_though_a_sync_failed_while_it_was_written() {
    const SEED: u64 = 0;
    // Between them, nothing lands, all, some, and what was there is spoilt.
    for dice in (0..6).map(Dice::new) {
        for fails in 0.. {
            let power = Power::stays();
            if !lived_with(SEED, &power, Some(fails), &dice).0.sync_failed() {
                assert!(fails > 10, "syncs of headers fail, too: {fails}");
                break;
            }
            // Before that many operations nothing has failed yet.
            for off_at in fails..power.used() {
                let (disk, _) = lived_with(SEED, &Power::off_at(off_at), Some(fails), &dice);
                let cut = Survival::Shredded;
                let disk = disk.after_power_cut(cut, &mut Dice::new(SEED), Power::stays());
                let when = format!("power off after {off_at} operations, sync {fails} failed");
                assert_headers(&disk, &mut BTreeSet::new(), &when);
            }
        }
    }
}
