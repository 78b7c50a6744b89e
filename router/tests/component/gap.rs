//! An owner that can't recover its vDisk, and lives: a router that reaches what it misses takes it (P19), and nobody else
//! does (L7).

use std::collections::BTreeMap;
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

use bytes::Bytes;
use model::{Epoch, VdiskId};
use wire::ErrorClass;
use wire::dtl::{DtlMode, DtlState};
use wire::facts::{DtlRecord, Record, VdiskRecord, key};
use wire::router::{Durability, code};

use crate::support::{Disk, Held, Router, WITHIN, World};

const MIB: u64 = 1 << 20;
const CUT: Held = Held { requests: true, answers: true };

fn dtl_of(world: &World) -> DtlRecord {
    let key = key::vdisk_dtl(world.vdisk("demo").vdisk);
    DtlRecord::from_record(world.arakoon.get(&key).unwrap()).unwrap()
}

/// The first router owns "demo" and lost its log; what it had flushed lies at the second one, which it doesn't reach. By
/// arakoon's record its DTL was in this state.
fn with_a_gap(state: DtlState) -> (World, Router, Router, Disk) {
    let world = World::new().with_dtl(DtlMode::Sync).with_cables();
    let (owner, other, mut disk) = world.in_sync(8 * MIB);
    disk.write(0, &[1; 4096], Durability::Durable);
    disk.sync();
    disk.write(4096, &[2; 4096], Durability::Durable);
    world.cables().dtl.hold(CUT);
    if state == DtlState::Degraded {
        // Nobody flushes it: it is for its edge to send again.
        disk.try_write(8192, &[3; 4096]).unwrap();
    }
    let facts = dtl_of(&world).facts;
    assert_eq!(facts.state, state, "{facts:?}");
    owner.kill();
    world.remove("log");
    let owner = world.start();
    let gap = owner.until_settled("demo");
    assert_eq!(gap.code, code::GAP, "{gap}");
    assert!(gap.detail.is_empty(), "its own");
    (world, owner, other, disk)
}

/// Contests the owner that there is until it doesn't refute.
fn until_unrefuted(world: &World, disk: &Disk, at: &Router) -> Result<(), wire::WireError> {
    let start = Instant::now();
    loop {
        match disk.contest(at, world.vdisk("demo").epoch) {
            Err(error) if error.code == code::REFUTED => {}
            answer => return answer,
        }
        assert!(start.elapsed() < WITHIN, "refuted for ever");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Until it is served by one of them, with everything; the other one knows that it isn't the owner.
fn served_by_one(world: &World, disk: &mut Disk, routers: [&Router; 2]) -> usize {
    let start = Instant::now();
    let served = loop {
        let found = routers.iter().position(|router| disk.try_reattach(router).is_ok());
        // The last contest may have been a claim, of which the former owner hears by this write.
        let writes = |disk: &mut Disk| {
            disk.try_replay_complete()?;
            disk.try_write_as(8192, &[4; 4096], Durability::Durable)
        };
        if let Some(found) = found
            && writes(disk).is_ok()
        {
            break found;
        }
        assert!(start.elapsed() < WITHIN, "nobody serves it");
        std::thread::sleep(Duration::from_millis(20));
    };
    // What nobody flushed may be there or not; from now on this is.
    disk.write(8192, &[4; 4096], Durability::Durable);
    disk.check_all();
    disk.write(16384, &[9; 4096], Durability::Durable);
    let name = ["router-1", "router-2"][served];
    assert_eq!(world.vdisk("demo").owner, world.id_of(name));
    loop {
        match routers[1 - served].try_show("demo") {
            Ok(info) => panic!("two serve it: {info:?}"),
            Err(error) if error.code == code::NOT_OWNER => break,
            Err(error) => assert!(start.elapsed() < WITHIN, "{error}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    disk.check_all();
    served
}

#[test]
fn p19_an_owner_with_a_gap_yields_to_a_router_that_reaches_what_it_misses() {
    for state in [DtlState::InSync, DtlState::Degraded] {
        let (world, owner, other, mut disk) = with_a_gap(state);
        assert_eq!(dtl_of(&world).facts.state, state);
        let start = Instant::now();
        while world.vdisk("demo").owner == world.id_of("router-1") {
            until_unrefuted(&world, &disk, &other).unwrap();
            assert!(start.elapsed() < WITHIN, "{state:?}: nobody takes it");
        }
        assert_eq!(served_by_one(&world, &mut disk, [&owner, &other]), 1, "{state:?}");
        // It is whole again, and the former owner is its next target.
        other.until_in_sync("demo");
        assert_eq!(world.losses("demo"), []);
        owner.stop();
        other.stop();
    }
}

#[test]
fn l7_an_owner_with_a_gap_keeps_its_vdisk_from_who_reaches_no_more() {
    for state in [DtlState::InSync, DtlState::Degraded] {
        let (world, owner, other, disk) = with_a_gap(state);
        other.kill();
        world.remove_other("dtl");
        let other = world.start_other();
        world.cables().dtl.hold(CUT);
        for _ in 0..3 {
            let refused = until_unrefuted(&world, &disk, &other).unwrap_err();
            assert_eq!((refused.class, refused.code), (ErrorClass::Refuse, code::GAP), "{refused}");
            let true_of_it = ["can't recover it either", "an edge has no service from it"];
            assert!(true_of_it.iter().any(|text| refused.message.contains(text)), "{refused}");
        }
        assert_eq!(world.vdisk("demo").owner, world.id_of("router-1"));
        assert_eq!(owner.try_show("demo").unwrap_err().code, code::GAP);
        owner.stop();
        other.stop();
    }
}

/// As the owner's next try does first of all; says which epoch that was.
fn next_try(map: &mut BTreeMap<Bytes, Bytes>, vdisk: VdiskId) -> Epoch {
    let (row, dtl_row) = (key::vdisk(vdisk), key::vdisk_dtl(vdisk));
    let record = VdiskRecord::from_record(map[&row].clone()).unwrap();
    let dtl = DtlRecord::from_record(map[&dtl_row].clone()).unwrap();
    let record = VdiskRecord { epoch: record.epoch.next(), ..record };
    let dtl = DtlRecord { epoch: record.epoch, ..dtl };
    map.insert(row, record.to_record());
    map.insert(dtl_row, dtl.to_record());
    record.epoch
}

/// The owner's next try is committed right before the claim, and goes on while it is contested again.
#[test]
fn l3_an_owner_that_tries_again_in_the_same_moment_keeps_its_vdisk() {
    loop {
        let (world, owner, other, mut disk) = with_a_gap(DtlState::Degraded);
        let VdiskRecord { vdisk, epoch, .. } = world.vdisk("demo");
        let (tell, told) = sync_channel(1);
        world.arakoon.before(key::vdisk(vdisk), move |store| {
            tell.send(next_try(&mut store.map, vdisk)).unwrap();
        });
        let contested = disk.contest(&other, epoch);
        if told.try_recv() != Ok(epoch.next()) {
            // A try of its own came between.
            owner.kill();
            other.kill();
            continue;
        }
        assert_eq!(contested, Ok(()), "there is nothing to contest any more");
        assert_eq!(world.vdisk("demo").owner, world.id_of("router-1"));
        let _of_the_try = disk.contest(&other, epoch.next());
        assert_eq!(world.vdisk("demo").owner, world.id_of("router-1"), "taken while it tries");
        // It reaches its target now, and serves on.
        world.cables().dtl.mend();
        assert_eq!(served_by_one(&world, &mut disk, [&owner, &other]), 0);
        owner.stop();
        other.stop();
        return;
    }
}

#[test]
fn l3_an_owner_that_recovers_while_it_is_contested_or_who_contests_serves_and_never_both() {
    let soak = std::env::var_os("HOLDFAST_SOAK").is_some();
    for round in 0..if soak { 40 } else { 4_u64 } {
        let (world, owner, other, mut disk) = with_a_gap(DtlState::Degraded);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(round * 700 % 6000));
                world.cables().dtl.mend();
            });
            for _ in 0..40 {
                let _ = disk.contest(&other, world.vdisk("demo").epoch);
                std::thread::sleep(Duration::from_millis(150));
            }
        });
        let served = served_by_one(&world, &mut disk, [&owner, &other]);
        println!("round {round}: router {served}");
        owner.stop();
        other.stop();
    }
}

/// What another epoch wrote lies under its name in the backend.
#[test]
fn l6_a_later_epoch_at_another_router_reads_cold_what_earlier_ones_wrote() {
    let world = World::new().with_dtl(DtlMode::Sync);
    let (owner, other, mut disk) = world.in_sync(8 * MIB);
    for at in 0..64 {
        disk.write(at * 65536, &[at as u8 + 1; 65536], Durability::Normal);
    }
    disk.sync();
    let (epoch, reads) = (world.vdisk("demo").epoch, world.proxy.reads());
    owner.kill();
    world.expire_owner("demo");
    disk.reattach(&other);
    assert!(epoch < world.vdisk("demo").epoch);
    // Written beside it by the new epoch, and in part over it.
    disk.write(100, &[200; 70_000], Durability::Normal);
    disk.sync();
    disk.check_all();
    assert!(reads < world.proxy.reads(), "nothing came from the backend");
    // And both from a third life, which has read none of it.
    other.kill();
    let other = world.start_other();
    disk.reattach(&other);
    disk.check_all();
    other.stop();
}
