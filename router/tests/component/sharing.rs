//! Several edges write one vDisk (P5).

use wire::dtl::DtlMode;
use wire::router::{AttachMode, Durability, code};

use crate::support::{Disk, Held, Router, World};

const MIB: u64 = 1 << 20;

fn share(router: &Router, edge: u128) -> Disk {
    Disk::try_attach(router, "demo", edge, AttachMode::Shared, false).unwrap()
}

/// Two routers InSync, and an edge that shares the vDisk with whoever comes.
fn shared() -> (World, Router, Router, Disk) {
    let world = World::new().with_dtl(DtlMode::Sync).with_cables();
    let (owner, other) = (world.start(), world.start_other());
    owner.create("demo", 8 * MIB);
    let one = share(&owner, 1);
    owner.until_in_sync("demo");
    (world, owner, other, one)
}

#[test]
fn p5_what_one_was_told_the_others_read_whoever_dies_and_nobody_waits_for_a_replay() {
    let (_world, owner, other, mut one) = shared();
    let mut two = share(&owner, 2);
    let alone = Disk::try_attach(&owner, "demo", 3, AttachMode::Exclusive, false).unwrap_err();
    assert_eq!(alone.code, code::ATTACHED_ELSEWHERE, "{alone}");
    for round in 0..20 {
        let (mine, theirs) = if round % 2 == 0 { (&mut one, &two) } else { (&mut two, &one) };
        mine.write(u64::from(round) * 4096, &[round + 1; 4096], Durability::Normal);
        assert_eq!(theirs.try_read(u64::from(round) * 4096, 4096).unwrap(), [round + 1; 4096]);
    }
    owner.kill();
    // One of them never comes back.
    drop(two);
    one.try_reattach(&other).unwrap();
    for round in 0..20 {
        let read = one.try_read(u64::from(round) * 4096, 4096).unwrap();
        assert_eq!(read, [round + 1; 4096], "round {round}");
    }
    other.stop();
}

#[test]
fn p5_nobody_reads_what_could_still_be_lost() {
    let (world, owner, other, mut one) = shared();
    let two = share(&owner, 2);
    one.write(0, &[1; 4096], Durability::Normal);
    // The DTL gets the next write and can't say so, nor does the backend take its place.
    world.proxy.set_out(true);
    world.cables().dtl.hold(Held { requests: false, answers: true });
    std::thread::scope(|scope| {
        let write = scope.spawn(|| one.try_write(0, &[2; 4096]));
        std::thread::sleep(std::time::Duration::from_millis(200));
        let refused = two.try_read(0, 4096).expect_err("its writer doesn't know yet");
        assert_eq!(refused.code, code::RECOVERING, "{refused}");
        world.proxy.set_out(false);
        world.cables().dtl.mend();
        write.join().unwrap().unwrap();
    });
    assert_eq!(two.try_read(0, 4096).unwrap(), [2; 4096]);
    owner.stop();
    other.stop();
}

#[test]
fn p5_without_a_dtl_in_reach_every_acknowledgement_rests_on_the_backend() {
    let world = World::new().with_dtl(DtlMode::Sync);
    let owner = world.start();
    owner.create("demo", 8 * MIB);
    let mut one = share(&owner, 1);
    one.write(0, &[7; 4096], Durability::Normal);
    let committed: u64 = owner.detail("demo", "committed_lsn").parse().unwrap();
    assert_eq!(committed, 1, "told before the backend had it");
    assert_eq!(one.try_read(0, 4096).unwrap(), [7; 4096]);
    owner.stop();
}

#[test]
fn p5_sharing_needs_a_synchronous_dtl() {
    for mode in [DtlMode::Async, DtlMode::NoTarget] {
        let world = World::new().with_dtl(mode);
        let owner = world.start();
        owner.create("demo", 8 * MIB);
        let refused = Disk::try_attach(&owner, "demo", 1, AttachMode::Shared, false).unwrap_err();
        assert_eq!(refused.code, code::INVALID, "{refused}");
        assert!(refused.message.contains("--dtl sync"), "{refused}");
        owner.stop();
    }
}
