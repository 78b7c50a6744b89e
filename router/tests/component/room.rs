//! A router whose write log has no room for what recovery takes over isn't given the vDisk, or gives it on (P19); and what
//! is longer than a segment finds room segment by segment.

use std::time::Duration;

use wire::dtl::{DtlMode, DtlState};
use wire::facts::{DtlRecord, Record, RouterLoad, key};
use wire::proxy;
use wire::router::{AttachMode, Attached, Durability, Location, code, method};
use wire::{ErrorClass, WireError};

use crate::support::proxy::{Beside, Trouble};
use crate::support::{Disk, Held, Router, World, until};

const MIB: u64 = 1 << 20;
/// More than the second router can take beside its own, or in two segments.
const MUCH: u64 = 20;
/// Of the second router's log.
const SEGMENT: u64 = 8 * MIB;
const SPACIOUS: &str = "log_segments = 12\nlog_segment_size = \"8MiB\"";

/// Nothing of it reaches the backend, and all of it the DTL.
fn write_much(world: &World, disk: &mut Disk, name: &str, mib: u64) {
    world.proxy.set_stuck(world.vdisk(name).vdisk);
    for at in 0..mib {
        disk.write(at * MIB, &vec![at as u8 + 1; 1 << 20], Durability::Normal);
    }
}

/// The first router's "demo", of which the second one holds much; by arakoon's record its DTL was in this state when its
/// owner died.
fn with_a_dead_owner(state: DtlState) -> (World, Router, Disk) {
    let world = World::new().with_dtl(DtlMode::Sync).with_cables();
    let (owner, other, mut disk) = world.in_sync(64 * MIB);
    write_much(&world, &mut disk, "demo", MUCH);
    if state == DtlState::Degraded {
        world.cables().dtl.hold(Held { requests: true, answers: true });
        // Nobody flushes it: it is for its edge to send again.
        disk.try_write(40 * MIB, &[1; 4096]).unwrap();
    }
    let key = key::vdisk_dtl(world.vdisk("demo").vdisk);
    let facts = DtlRecord::from_record(world.arakoon.get(&key).unwrap()).unwrap().facts;
    assert_eq!(facts.state, state, "{facts:?}");
    owner.kill();
    world.expire_owner("demo");
    world.cables().dtl.mend();
    (world, other, disk)
}

fn with_hog(router: &Router) -> Disk {
    router.try_create_with("hog", 64 * MIB, "default", Some(DtlMode::NoTarget)).unwrap();
    Disk::try_attach(router, "hog", 2, AttachMode::Exclusive, false).unwrap()
}

/// As much as the second router takes of its own while the backend doesn't.
fn fill(world: &World, hog: &mut Disk) {
    write_much(world, hog, "hog", 14);
}

/// The second router had room when it claimed.
fn claims_and_finds_no_room(world: &World, (other, hog): (&Router, &mut Disk), disk: &Disk) {
    world.proxy.trouble(proxy::method::RAISE_EPOCH, Beside::No, Trouble::Silent);
    let asked = other.begin::<_, Attached>(method::ATTACH, disk.reattaching());
    until("it claims", || world.vdisk("demo").owner == world.id_of("router-2"));
    fill(world, hog);
    world.proxy.no_trouble();
    until("it finds no room", || {
        other.try_show("demo").is_err_and(|error| error.code == code::NO_ROOM)
    });
    let _refused = asked.join().unwrap();
}

/// Served there, with all that was promised.
fn served_at(router: &Router, disk: &mut Disk) {
    disk.reattach(router);
    // What nobody flushed may be there or not; from now on this is.
    disk.write(40 * MIB, &[7; 4096], Durability::Normal);
    disk.check_all();
}

fn asked_once(router: &Router, disk: &Disk) -> Result<Attached, WireError> {
    router.call(method::ATTACH, &disk.reattaching())
}

/// The edge at the third router says that the second one gives no service.
fn contested_until_it_moves(world: &World, disk: &Disk, third: &Router) {
    until("another takes it", || {
        let record = world.vdisk("demo");
        if record.owner != world.id_of("router-2") {
            return true;
        }
        if let Err(error) = disk.contest(third, record.epoch) {
            assert_eq!(error.code, code::REFUTED, "{error}");
        }
        false
    });
    assert_eq!(world.vdisk("demo").owner, world.id_of("router-3"));
}

/// h_14.
#[test]
fn h_14_a_router_that_is_too_full_to_recover_a_vdisk_isnt_given_it() {
    let (world, other, mut disk) = with_a_dead_owner(DtlState::InSync);
    let mut hog = with_hog(&other);
    fill(&world, &mut hog);
    let before = world.vdisk("demo");
    let refused = asked_once(&other, &disk).unwrap_err();
    assert_eq!((refused.class, refused.code), (ErrorClass::Retry, code::NO_ROOM), "{refused}");
    assert!(refused.message.contains("must be recovered, and the write log here"), "{refused}");
    // Whose it is, for the edge to go on from there.
    let location: Location = wire::decode_all(refused.detail).unwrap();
    assert_eq!(location.owner.router, before.owner);
    assert_eq!(world.vdisk("demo"), before);
    let third = world.start_third_with(SPACIOUS);
    served_at(&third, &mut disk);
    assert_eq!(world.vdisk("demo").owner, world.id_of("router-3"));
    world.proxy.none_is_stuck();
    disk.sync();
    disk.check_all();
    hog.check_all();
    third.stop();
    other.stop();
}

/// h_14.
#[test]
fn h_14_a_claimant_that_finds_no_room_says_so_and_yields_to_a_router_that_has_some() {
    for state in [DtlState::Degraded, DtlState::InSync] {
        let (world, other, mut disk) = with_a_dead_owner(state);
        let mut hog = with_hog(&other);
        claims_and_finds_no_room(&world, (&other, &mut hog), &disk);
        let told = other.events("not-opened");
        let says = |text: &String| text.contains("must be recovered, and the write log here");
        assert!(told.iter().any(says), "{told:?}");

        let third = world.start_third_with(SPACIOUS);
        contested_until_it_moves(&world, &disk, &third);
        served_at(&third, &mut disk);
        let gone = other.until_settled("demo");
        assert_eq!(gone.code, code::NOT_OWNER, "{gone}");
        // Nor does it come back: there is no room for it still.
        let moved = world.vdisk("demo");
        let _refuted = disk.contest(&other, moved.epoch);
        assert_eq!(world.vdisk("demo"), moved);
        // What the try had placed is released.
        world.proxy.none_is_stuck();
        for at in 0..24 {
            hog.write(at * MIB, &vec![at as u8 + 101; 1 << 20], Durability::Normal);
        }
        hog.check_all();
        hog.sync();
        disk.sync();
        disk.check_all();
        let told = key::router_load(world.id_of("router-2"));
        until("nothing is pinned but where it writes", || {
            let load =
                world.arakoon.get(&told).map(|bytes| RouterLoad::from_record(bytes).unwrap());
            load.is_some_and(|load| load.log_used <= SEGMENT)
        });
        third.stop();
        other.stop();
    }
}

/// h_14.
#[test]
fn h_14_a_claimant_whose_log_disk_is_full_yields_and_isnt_asked_again() {
    let (world, other, mut disk) = with_a_dead_owner(DtlState::Degraded);
    for file in 1..4 {
        std::fs::create_dir(world.path("router-2").join(format!("log/seg-{file:04}.new"))).unwrap();
    }
    let asked = other.begin::<_, Attached>(method::ATTACH, disk.reattaching());
    until("it claims, and finds no room", || {
        other.try_show("demo").is_err_and(|error| error.code == code::NO_ROOM)
    });
    let _refused = asked.join().unwrap();
    let told = other.events("not-opened");
    assert!(told.iter().any(|text| text.contains("can't grow")), "{told:?}");
    let third = world.start_third_with(SPACIOUS);
    contested_until_it_moves(&world, &disk, &third);
    served_at(&third, &mut disk);
    assert_eq!(other.until_settled("demo").code, code::NOT_OWNER);
    // Its owner dies as well: who has no disk for it leaves it alone.
    third.kill();
    world.expire_owner("demo");
    let before = world.vdisk("demo");
    let refused = asked_once(&other, &disk).unwrap_err();
    assert_eq!(refused.code, code::NOT_OWNER, "{refused}");
    assert_eq!(world.vdisk("demo"), before);
    let third = world.start_third_with(SPACIOUS);
    disk.reattach(&third);
    disk.check_all();
    world.proxy.none_is_stuck();
    third.stop();
    other.kill();
}

/// A single router that waits for room finds it.
#[test]
fn l8_a_claimant_without_room_tries_again_when_there_is_some_and_not_before() {
    let (world, other, mut disk) = with_a_dead_owner(DtlState::InSync);
    let mut hog = with_hog(&other);
    claims_and_finds_no_room(&world, (&other, &mut hog), &disk);
    let epoch = world.vdisk("demo").epoch;
    std::thread::sleep(Duration::from_secs(11));
    assert_eq!(world.vdisk("demo").epoch, epoch, "it claims again and again, in vain");
    world.proxy.none_is_stuck();
    disk.reattach(&other);
    disk.check_all();
    hog.check_all();
    other.stop();
}

#[test]
fn p18_what_is_longer_than_a_segment_is_recovered_segment_by_segment() {
    let world = World::new().with_dtl(DtlMode::Sync);
    let (owner, other) = (world.start(), world.start_other_with(SPACIOUS));
    owner.create("demo", 64 * MIB);
    let mut disk = Disk::attach(&owner, "demo");
    owner.until_in_sync("demo");
    write_much(&world, &mut disk, "demo", MUCH);
    owner.kill();
    disk.reattach(&other);
    disk.check_all();
    // Also where it lies now.
    other.kill();
    let other = world.start_other_with(SPACIOUS);
    disk.reattach(&other);
    disk.check_all();
    world.proxy.none_is_stuck();
    disk.sync();
    disk.check_all();
    other.stop();
}
