//! A vDisk with a DTL outlives its owner: claimed by another router, with all that was acknowledged.
//!
//! The edge of these tests replays nothing: what was acknowledged under a `sync` DTL must be there without it.

use wire::dtl::DtlMode;
use wire::router::{AttachMode, Durability, Location, code};
use wire::{ErrorClass, WireError};

use crate::support::{Disk, Held, Router, World};

const MIB: u64 = 1 << 20;

fn steps(disk: &mut Disk, random: &mut fastrand::Rng, count: usize) {
    for _ in 0..count {
        disk.random_step(random);
    }
}

/// h_02, h_23.
#[test]
fn p18_a_killed_owners_vdisk_is_claimed_with_all_that_was_acknowledged() {
    for (mode, rounds) in [(DtlMode::Sync, 2), (DtlMode::Async, 1)] {
        let world = World::new().with_dtl(mode);
        let mut random = fastrand::Rng::with_seed(u64::from(mode == DtlMode::Sync));
        let mut owner = world.start();
        let mut other = world.start_other();
        owner.create("demo", 32 * MIB);
        let mut disk = Disk::attach(&owner, "demo");
        for round in 0..rounds {
            owner.until_in_sync("demo");
            steps(&mut disk, &mut random, 60);
            if mode == DtlMode::Async {
                disk.write(0, &[round; 4096], Durability::Durable);
            }
            owner.kill();
            disk.reattach(&other);
            disk.check_all();
            // Also what comes before the next target has everything: it rests on the backend then.
            steps(&mut disk, &mut random, 20);
            disk.write(0, &[round; 4096], Durability::Durable);
            disk.check_all();
            let back = if round % 2 == 0 { world.start() } else { world.start_other() };
            (owner, other) = (other, back);
        }
        owner.until_in_sync("demo");
        disk.sync();
        disk.check_all();
        owner.stop();
        other.stop();
    }
}

#[test]
fn a_restart_in_place_needs_nobody_else() {
    let world = World::new().with_dtl(DtlMode::Sync);
    let mut random = fastrand::Rng::with_seed(7);
    let (owner, other, mut disk) = world.in_sync(16 * MIB);
    steps(&mut disk, &mut random, 60);
    other.kill();
    owner.kill();
    let owner = world.start();
    disk.reattach(&owner);
    disk.check_all();
    // Degraded: each flush goes to the backend.
    disk.write(0, &[7; 4096], Durability::Durable);
    disk.check_all();
    owner.stop();
}

/// Claimed from though it is well: what it then says first, to a reader or to a writer.
fn claimed_from(first: impl FnOnce(&mut Disk) -> WireError) {
    let world = World::new().with_dtl(DtlMode::Sync);
    let (owner, other, mut old) = world.in_sync(8 * MIB);
    old.write(0, &[1; 4096], Durability::Durable);
    old.check_all();
    world.expire_owner("demo");
    let mut new = Disk::try_attach(&other, "demo", 2, AttachMode::Exclusive, true).unwrap();
    new.write(0, &[2; 4096], Durability::Durable);
    let refused = first(&mut old);
    assert!(matches!(refused.class, ErrorClass::Retry | ErrorClass::Redirect), "{refused}");
    let gone = owner.until_settled("demo");
    assert_eq!(gone.code, code::NOT_OWNER, "{gone}");
    assert_eq!(new.try_read(0, 4096).unwrap(), vec![2; 4096]);
    owner.stop();
    other.stop();
}

/// h_08, h_19.
#[test]
fn p16_an_owner_that_was_claimed_from_reads_nothing_stale_and_withdraws() {
    claimed_from(|old| old.try_read(0, 4096).unwrap_err());
}

/// h_03, h_08.
#[test]
fn p11_an_owner_that_was_claimed_from_acknowledges_nothing_and_withdraws() {
    claimed_from(|old| old.try_write(0, &[3; 4096]).unwrap_err());
}

/// h_14.
#[test]
fn l7_what_cant_be_claimed_without_loss_stays_with_its_owner_and_says_what_is_missing() {
    let world = World::new().with_dtl(DtlMode::Sync);
    let (owner, other, mut disk) = world.in_sync(8 * MIB);
    disk.write(0, &[1; 4096], Durability::Durable);
    owner.kill();
    other.kill();
    world.remove_other("dtl");
    let other = world.start_other();
    let gap = disk.try_reattach(&other).unwrap_err();
    assert_eq!(gap.code, code::GAP, "{gap}");
    assert!(gap.message.contains("InSync") && gap.message.contains("LSN 0"), "{gap}");
    // Who asks hears whose gap it is.
    let location: Location = wire::decode_all(gap.detail).unwrap();
    assert_eq!(location.owner.router, world.id_of("router-1"));
    let owner: Router = world.start();
    disk.reattach(&owner);
    disk.check_all();
    owner.stop();
    other.stop();
}

/// What an owner had acknowledged and nobody has any more is gone once another owner was without it: readers have seen so.
#[test]
fn p10_what_was_lost_with_an_owner_doesnt_come_back_with_its_log() {
    let world = World::new().with_dtl(DtlMode::Async).with_cables();
    let (owner, other, mut lost) = world.in_sync(8 * MIB);
    lost.write(0, &[1; 4096], Durability::Durable);
    world.cables().dtl.hold(Held { requests: true, answers: false });
    lost.try_write(0, &[2; 4096]).unwrap();
    owner.kill();
    world.expire_owner("demo");
    // Its edge is gone as well.
    let mut disk = Disk::try_attach(&other, "demo", 2, AttachMode::Exclusive, true).unwrap();
    let kept = [[1; 4096], [0; 4096]].concat();
    // What was on its way finds a log that is sealed.
    world.cables().dtl.mend();
    assert_eq!(disk.try_read(0, 8192).unwrap(), kept);
    // It goes back without a record of its own, and the router that lost something restarts.
    let owner = world.start();
    other.transfer("demo", world.id_of("router-1"));
    disk.reattach(&owner);
    assert_eq!(disk.try_read(0, 8192).unwrap(), kept);
    owner.until_in_sync("demo");
    owner.kill();
    let owner = world.start();
    disk.reattach(&owner);
    assert_eq!(disk.try_read(0, 8192).unwrap(), kept, "a lost write came back");
    owner.stop();
    other.stop();
}

#[test]
fn a_vdisk_may_have_another_dtl_than_its_vpool() {
    let world = World::new().with_dtl(DtlMode::Sync);
    let router = world.start();
    for (name, dtl, mode) in [
        ("vpools", None, "sync"),
        ("own", Some(DtlMode::Async), "async"),
        ("without", Some(DtlMode::NoTarget), "none"),
    ] {
        router.try_create_with(name, MIB, "default", dtl).unwrap();
        assert_eq!(router.detail(name, "mode"), mode, "{name}");
    }
    router.stop();
}

#[test]
fn a_clean_stop_and_a_hand_over_need_no_dtl() {
    let world = World::new().with_dtl(DtlMode::Sync);
    let owner = world.start();
    owner.create("demo", 8 * MIB);
    let mut disk = Disk::attach(&owner, "demo");
    disk.write(0, &[1; 4096], Durability::Normal);
    owner.stop();
    let other = world.start_other();
    disk.reattach(&other);
    disk.check_all();
    other.stop();
}
