//! A write log with a torn end: its owner lost power, opens in place, and a DTL target holds records of the same LSNs (P10).
//!
//! What was flushed is there, and what was acknowledged by the DTL's word where the DTL is reached. Where it isn't, the new
//! epoch goes on where the log ends, gives out the same LSNs again, and nothing of the old ones ever mixes with its own.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;

use model::Lsn;
use router_core::log::Found;
use wire::dtl::DtlMode;
use wire::router::Durability;

use crate::support::{Disk, Held, Router, World};

const MIB: u64 = 1 << 20;
const SEGMENT: u64 = 8 << 20;
const CUT: Held = Held { requests: true, answers: true };

/// What a power cut leaves of what wasn't synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Torn {
    /// Nothing.
    Lost,
    /// What was there never, or long ago.
    Garbled,
    /// Sectors are written in any order: the first record is half there, those behind it are whole.
    HoleInFront,
    /// The first is whole but for its end, of the others nothing is left.
    Cut,
}

const ALL: [Torn; 4] = [Torn::Lost, Torn::Garbled, Torn::HoleInFront, Torn::Cut];

/// The first router's log, while it doesn't run, loses what lies behind this LSN and wasn't synced; says what is left.
fn tear(world: &World, flushed: Lsn, torn: Torn) -> Lsn {
    let records = world.scan_log().records;
    let synced = records.iter().map(|found| found.record.synced_through).max().unwrap();
    let unsynced = |f: &&Found| flushed < f.record.lsn && synced <= f.record.position;
    let tail: Vec<&Found> = records.iter().filter(unsynced).collect();
    assert!(!tail.is_empty(), "there is an end to be torn");
    for (at, found) in tail.iter().enumerate() {
        let path = world.path("router-1").join(format!("log/seg-{:04}", found.file));
        let file = OpenOptions::new().write(true).open(path).unwrap();
        let (offset, len) = (found.record.position % SEGMENT, found.record.len());
        let fill = |from: usize, byte| {
            file.write_all_at(&vec![byte; len - from], offset + from as u64).unwrap();
        };
        match (torn, at) {
            (Torn::Lost, _) => fill(0, 0),
            (Torn::Garbled, _) => fill(0, 0x5a),
            (Torn::Cut | Torn::HoleInFront, 0) => fill(len / 2, 0),
            (Torn::Cut, _) => fill(0, 0),
            (Torn::HoleInFront, _) => {}
        }
    }
    Lsn(tail[0].record.lsn.0 - 1)
}

/// Flushed, in the own log and in the DTL.
fn write_flushed(disk: &mut Disk) -> Lsn {
    for at in 0..8 {
        disk.write(at * 8192, &[at as u8 + 1; 8192], Durability::Normal);
    }
    disk.flush().lsn
}

#[test]
fn p10_a_torn_end_of_the_own_log_is_made_good_by_the_dtl() {
    for torn in ALL {
        let world = World::new().with_dtl(DtlMode::Sync);
        let (owner, other, mut disk) = world.in_sync(8 * MIB);
        let flushed = write_flushed(&mut disk);
        // Acknowledged, as the DTL has it.
        for at in 0..8 {
            disk.write(at * 12288, &[at as u8 + 101; 4096], Durability::Normal);
        }
        owner.kill();
        tear(&world, flushed, torn);
        let owner = world.start();
        let last = disk.try_reattach(&owner).unwrap().last_lsn;
        assert_eq!(last, Lsn(flushed.0 + 8), "{torn:?}");
        disk.replay_complete();
        disk.check_all();
        owner.until_in_sync("demo");
        for at in 0..4 {
            disk.write(at * 16384, &[at as u8 + 201; 4096], Durability::Normal);
        }
        // Once more in place, and then elsewhere.
        owner.kill();
        tear(&world, last, torn);
        let owner = world.start();
        disk.reattach(&owner);
        disk.check_all();
        owner.until_in_sync("demo");
        disk.write(0, &[251; 4096], Durability::Normal);
        owner.kill();
        world.expire_owner("demo");
        disk.reattach(&other);
        disk.check_all();
        other.stop();
    }
}

/// What becomes of the owner that went on where its own log ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    /// It opens in place again, and the target is still out of reach.
    InPlace,
    /// It dies before it reached the target again.
    ClaimedFromApart,
    /// The target takes a copy of the new epoch's log before it dies.
    ClaimedFromInSync,
}

/// Goes on with everything that it served, and with nothing else.
fn reopened(world: &World, disk: &mut Disk, router: &Router) {
    disk.reattach(router);
    disk.check_all();
    disk.write(7 * 8192, &[77; 4096], Durability::Durable);
    disk.check_all();
    assert_eq!(world.losses("demo"), []);
}

fn the_same_lsns_twice(torn: Torn, then: Then) {
    println!("{torn:?}, {then:?}");
    let world = World::new().with_dtl(DtlMode::Sync).with_cables();
    let (owner, other, mut disk) = world.in_sync(8 * MIB);
    let flushed = write_flushed(&mut disk);
    // Acknowledged and not flushed: if the log's end and the DTL are out of reach, they are for their edge to send again,
    // and this one doesn't.
    for at in 0..8 {
        disk.try_write(at * 8192, &[at as u8 + 101; 4096]).unwrap();
    }
    owner.kill();
    assert_eq!(tear(&world, flushed, torn), flushed);
    world.cables().dtl.hold(CUT);
    let owner = world.start();
    let attached = disk.try_reattach(&owner).unwrap();
    assert_eq!(attached.last_lsn, flushed, "{torn:?}: the log ends where it was synced");
    disk.replay_complete();
    disk.check_all();
    // The same LSNs, other writes.
    for at in 0..3 {
        disk.write(at * 16384 + 4096, &[at as u8 + 201; 4096], Durability::Durable);
    }
    disk.check_all();
    match then {
        Then::InPlace => {
            owner.kill();
            let owner = world.start();
            reopened(&world, &mut disk, &owner);
            world.cables().dtl.mend();
            owner.until_in_sync("demo");
            owner.kill();
        }
        Then::ClaimedFromApart => {
            owner.kill();
            world.cables().dtl.mend();
        }
        Then::ClaimedFromInSync => {
            world.cables().dtl.mend();
            owner.until_in_sync("demo");
            disk.write(5 * 8192, &[55; 4096], Durability::Normal);
            owner.kill();
        }
    }
    world.expire_owner("demo");
    reopened(&world, &mut disk, &other);
    // And where the torn log still lies.
    let back = world.start();
    other.until_in_sync("demo");
    other.transfer("demo", world.id_of("router-1"));
    reopened(&world, &mut disk, &back);
    back.kill();
    let back = world.start();
    reopened(&world, &mut disk, &back);
    back.stop();
    other.stop();
}

#[test]
fn p10_the_lsns_of_a_torn_end_are_given_out_again_and_the_old_ones_never_come_back() {
    let all = [Then::InPlace, Then::ClaimedFromApart, Then::ClaimedFromInSync];
    let soak = std::env::var_os("HOLDFAST_SOAK").is_some();
    for (turn, torn) in ALL.into_iter().enumerate() {
        for then in all.into_iter().enumerate().filter(|(at, _)| soak || turn % 3 == *at) {
            the_same_lsns_twice(torn, then.1);
        }
    }
}
