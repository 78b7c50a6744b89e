//! An owner that lives is contested by an edge that has no service from it (P19).

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use wire::ErrorClass;
use wire::dtl::DtlMode;
use wire::router::{AttachMode, Durability, code, method};

use crate::support::{Disk, Router, World};

const MIB: u64 = 1 << 20;
/// The owner refutes for two seconds after an attach, and a move is followed by five of rest.
const LIMIT: Duration = Duration::from_secs(30);

/// Contests until it isn't refuted any more; says whether it was at first.
fn until_unrefuted(world: &World, disk: &Disk, at: &Router) -> bool {
    let start = Instant::now();
    let mut refuted = false;
    loop {
        match disk.contest(at, world.vdisk("demo").epoch) {
            Ok(()) => return refuted,
            Err(error) => {
                assert_eq!(error.code, code::REFUTED, "{error}");
                refuted = true;
            }
        }
        assert!(start.elapsed() < LIMIT, "refuted for ever");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Attaches, however long the redirect to the old owner still comes.
fn reattach(disk: &mut Disk, at: &Router) {
    let start = Instant::now();
    loop {
        match disk.try_reattach(at) {
            Ok(_) => return disk.replay_complete(),
            Err(error) => assert_eq!(error.code, code::NOT_OWNER, "{error}"),
        }
        assert!(start.elapsed() < LIMIT, "it stays where it is");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn p19_a_living_owner_loses_the_vdisk_unless_the_edge_has_just_attached_and_then_it_rests() {
    let world = World::new().with_dtl(DtlMode::Sync);
    let (owner, other, mut disk) = world.in_sync(8 * MIB);
    disk.write(0, &[1; 4096], Durability::Durable);
    let reader = Disk::try_attach(&owner, "demo", 2, AttachMode::ReadOnly, false).unwrap();
    assert!(until_unrefuted(&world, &disk, &other), "the edge had just attached at the owner");
    reattach(&mut disk, &other);
    disk.check_all();
    disk.write(4096, &[2; 4096], Durability::Durable);
    // Whoever still asks the old owner hears nothing stale, and by that it learns of its end (P16).
    let refused = reader.try_read(0, 4096).unwrap_err();
    assert!(matches!(refused.class, ErrorClass::Retry | ErrorClass::Redirect), "{refused}");
    let gone = owner.until_settled("demo");
    assert_eq!(gone.code, code::NOT_OWNER, "{gone}");
    // Back again: both what it has just attached and that it has just moved speak against it.
    other.until_in_sync("demo");
    assert!(until_unrefuted(&world, &disk, &owner), "no rest after a move");
    reattach(&mut disk, &owner);
    disk.check_all();
    owner.stop();
    other.stop();
}

#[test]
fn p19_a_contest_of_an_epoch_that_is_over_and_one_of_a_stranger_change_nothing() {
    let world = World::new().with_dtl(DtlMode::Sync);
    let (owner, other, mut disk) = world.in_sync(8 * MIB);
    let before = world.vdisk("demo");
    // Refuses nothing and does nothing: the edge is to look who the owner is now.
    disk.contest(&other, model::Epoch(before.epoch.0 - 1)).unwrap();
    let stranger = Disk::try_attach(&owner, "demo", 2, AttachMode::ReadOnly, false).unwrap();
    stranger.detach();
    let refuted = stranger.contest(&other, before.epoch).unwrap_err();
    assert_eq!(refuted.code, code::REFUTED, "{refuted}");
    disk.write(0, &[1; 4096], Durability::Durable);
    assert_eq!(world.vdisk("demo").owner, before.owner);
    assert_eq!(world.vdisk("demo").epoch, before.epoch);
    owner.stop();
    other.stop();
}

#[test]
fn p19_without_a_dtl_a_contested_owner_hands_over_by_itself() {
    let world = World::new();
    let owner = world.start();
    let other = world.start_other();
    owner.create("demo", 8 * MIB);
    let mut disk = Disk::attach(&owner, "demo");
    disk.write(0, &[1; 4096], Durability::Durable);
    until_unrefuted(&world, &disk, &other);
    reattach(&mut disk, &other);
    disk.check_all();
    owner.stop();
    other.stop();
}

/// Contests until the owner refutes for this reason.
fn until_refuted_as(world: &World, disk: &Disk, at: &Router, why: &str) {
    let (start, epoch) = (Instant::now(), world.vdisk("demo").epoch);
    loop {
        let refuted = disk.contest(at, epoch).is_err_and(|error| error.message.contains(why));
        if refuted {
            return;
        }
        assert!(start.elapsed() < LIMIT, "never refuted as: {why}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn l8_a_contested_owner_whose_backend_is_out_freezes_nobody() {
    let world = World::new();
    let (owner, other) = (world.start(), world.start_other());
    owner.create("demo", 8 * MIB);
    let mut disk = Disk::attach(&owner, "demo");
    let before = world.vdisk("demo");
    world.proxy.set_out(true);
    disk.write(0, &[1; 4096], Durability::Durable);
    std::thread::scope(|scope| {
        scope.spawn(|| drop(disk.try_sync()));
        owner.until("demo", |details| details.contains("backend_problem"));
        until_refuted_as(&world, &disk, &other, "the backend doesn't take");
        world.proxy.set_out(false);
    });
    disk.write(4096, &[2; 4096], Durability::Durable);
    disk.check_all();
    assert_eq!(world.vdisk("demo"), before);
    owner.stop();
    other.stop();
}

#[test]
fn l8_a_hand_over_in_vain_isnt_tried_again_at_once() {
    let world = World::new();
    let (owner, other) = (world.start(), world.start_other());
    owner.create("demo", 8 * MIB);
    let mut disk = Disk::attach(&owner, "demo");
    let before = world.vdisk("demo");
    disk.write(0, &[1; 4096], Durability::Durable);
    // Slower than a contest may have others wait.
    world.proxy.set_delay_ms(3000);
    until_refuted_as(&world, &disk, &other, "in vain");
    disk.write(4096, &[2; 4096], Durability::Durable);
    disk.check_all();
    assert_eq!(world.vdisk("demo").owner, before.owner);
    world.proxy.set_delay_ms(0);
    owner.stop();
    other.stop();
}

/// Fills the log until the write that is under way waits for room, and calls `then` meanwhile.
fn with_a_full_log(world: &World, disk: &mut Disk, then: impl FnOnce()) {
    world.proxy.set_out(true);
    let written = AtomicU64::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // More than the log holds.
            for at in 0..56 {
                disk.write(at * MIB, &[at as u8 + 1; 1 << 20], Durability::Normal);
                written.fetch_add(1, Ordering::SeqCst);
            }
        });
        let (start, mut seen, mut since) = (Instant::now(), 0, Instant::now());
        // Longer than an attach refutes.
        while since.elapsed() < Duration::from_secs(3) {
            std::thread::sleep(Duration::from_millis(50));
            let now = written.load(Ordering::SeqCst);
            if now != seen {
                (seen, since) = (now, Instant::now());
            }
            assert!(start.elapsed() < 2 * LIMIT && seen < 56, "nothing waits for room");
        }
        then();
        world.proxy.set_out(false);
    });
}

#[test]
fn p19_an_owner_that_waits_for_nothing_but_the_backend_keeps_the_vdisk() {
    let world = World::new().with_dtl(DtlMode::Sync);
    let (owner, other, mut disk) = world.in_sync(64 * MIB);
    let before = world.vdisk("demo");
    let contest = disk.contesting(before.epoch);
    with_a_full_log(&world, &mut disk, || {
        let refuted = other.call::<_, ()>(method::CONTEST, &contest).unwrap_err();
        assert_eq!(refuted.code, code::REFUTED, "{refuted}");
        assert!(refuted.message.contains("waits for the backend"), "{refuted}");
    });
    disk.check_all();
    let after = world.vdisk("demo");
    assert_eq!((after.owner, after.epoch), (before.owner, before.epoch));
    owner.stop();
    other.stop();
}

#[test]
fn p19_a_contest_of_an_owner_whose_session_is_over_claims_in_every_state() {
    let world = World::new().with_dtl(DtlMode::Sync);
    let owner = world.start();
    owner.create("demo", 8 * MIB);
    let mut disk = Disk::attach(&owner, "demo");
    // Nobody takes a copy: the DTL is Degraded, and all of it in the backend.
    disk.write(0, &[1; 4096], Durability::Durable);
    let before = world.vdisk("demo");
    owner.kill();
    let other = world.start_other();
    let refuted = disk.contest(&other, before.epoch).unwrap_err();
    assert_eq!(refuted.code, code::REFUTED, "{refuted}");
    assert!(refuted.message.contains("only the end of its session"), "{refuted}");
    world.expire_owner("demo");
    disk.contest(&other, before.epoch).unwrap();
    assert_eq!(world.vdisk("demo").owner, world.id_of("router-2"));
    disk.reattach(&other);
    disk.check_all();
    other.stop();
}

/// A reader that contests has no service, and would have none elsewhere.
#[test]
fn p19_an_owner_that_waits_for_another_edge_to_replay_keeps_the_vdisk() {
    let world = World::new().with_dtl(DtlMode::Sync);
    let (other, owner, mut disk) = world.in_sync(8 * MIB);
    disk.write(0, &[1; 4096], Durability::Durable);
    other.transfer("demo", world.id_of("router-2"));
    let reader = Disk::try_attach(&owner, "demo", 2, AttachMode::ReadOnly, false).unwrap();
    let refused = reader.try_read(0, 4096).unwrap_err();
    assert_eq!(refused.code, code::RECOVERING, "{refused}");
    let before = world.vdisk("demo");
    until_refuted_as(&world, &reader, &other, "another edge to replay");
    // Longer than an attach refutes.
    std::thread::sleep(Duration::from_millis(2500));
    until_refuted_as(&world, &reader, &other, "another edge to replay");
    assert_eq!(world.vdisk("demo"), before);
    // Whom it waits for may contest, and can't reach it perhaps.
    disk.contest(&other, before.epoch).unwrap();
    reattach(&mut disk, &other);
    disk.check_all();
    owner.stop();
    other.stop();
}
