//! Copies of page maps: other routers follow the TLogs, and a takeover replays what they lack (L6).

use wire::dtl::DtlMode;
use wire::router::Durability;

use crate::support::{Disk, Router, World};

const MIB: u64 = 1 << 20;
const QUICKLY: &str = "log_segments = 6\nlog_segment_size = \"8MiB\"\nmap_follow_ms = 100";

/// What the router's copy of the only vDisk holds, once that is all the owner has stored.
fn until_followed(follower: &Router, owner: &Router) {
    let committed: u64 = owner.detail("demo", "committed_lsn").parse().unwrap();
    let start = std::time::Instant::now();
    loop {
        let maps = follower.maps();
        if maps.iter().any(|map| !map.serving && map.last_lsn.0 == committed) {
            return;
        }
        assert!(start.elapsed() < crate::support::WITHIN, "{committed} isn't in {maps:?}");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

#[test]
fn a_takeover_replays_no_tlog_that_a_copy_of_the_map_holds() {
    let world = World::new().with_dtl(DtlMode::Sync);
    let owner = world.start_with(QUICKLY);
    let other = world.start_other_with(QUICKLY);
    owner.create("demo", 32 * MIB);
    let mut disk = Disk::attach(&owner, "demo");
    owner.until_in_sync("demo");
    let mut random = fastrand::Rng::with_seed(3);
    for _ in 0..120 {
        disk.random_step(&mut random);
    }
    disk.sync();
    let digest = owner.detail("demo", "map_digest");
    let objects: u64 = owner.detail("demo", "objects").parse().unwrap();
    assert!(3 < objects, "several TLogs: {objects}");
    until_followed(&other, &owner);
    owner.kill();
    disk.reattach(&other);
    assert_eq!(other.detail("demo", "map_followed"), "0", "nothing was left to replay");
    assert_eq!(other.detail("demo", "map_digest"), digest);
    disk.check_all();
    disk.write(0, &[1; 9000], Durability::Durable);
    disk.sync();
    disk.check_all();
    // And back: what the first owner had is a copy now, and follows.
    let owner = world.start_with(QUICKLY);
    until_followed(&owner, &other);
    other.until_in_sync("demo");
    other.kill();
    disk.reattach(&owner);
    assert_eq!(owner.detail("demo", "map_followed"), "0");
    disk.check_all();
    owner.stop();
}

#[test]
fn a_copy_that_is_far_behind_or_lost_costs_time_and_nothing_else() {
    let world = World::new().with_dtl(DtlMode::Sync);
    let owner = world.start_with(QUICKLY);
    let other = world.start_other_with(QUICKLY);
    owner.create("demo", 16 * MIB);
    let mut disk = Disk::attach(&owner, "demo");
    let mut random = fastrand::Rng::with_seed(4);
    for _ in 0..40 {
        disk.random_step(&mut random);
    }
    disk.sync();
    until_followed(&other, &owner);
    other.kill();
    for _ in 0..40 {
        disk.random_step(&mut random);
    }
    disk.sync();
    world.remove_other("map");
    let other = world.start_other_with(QUICKLY);
    owner.until_in_sync("demo");
    owner.kill();
    disk.reattach(&other);
    disk.check_all();
    other.stop();
}

#[test]
fn a_hand_over_and_a_look_at_the_same_map_wait_for_each_other() {
    let world = World::new();
    let routers = [world.start_with(QUICKLY), world.start_other_with(QUICKLY)];
    routers[0].create("demo", 16 * MIB);
    let mut disk = Disk::attach(&routers[0], "demo");
    let mut random = fastrand::Rng::with_seed(5);
    for round in 0..12 {
        let (from, to) = (&routers[round % 2], &routers[(round + 1) % 2]);
        let name = ["router-2", "router-1"][round % 2];
        for _ in 0..10 {
            disk.random_step(&mut random);
        }
        from.transfer("demo", world.id_of(name));
        disk.reattach(to);
    }
    disk.check_all();
    for router in routers {
        router.stop();
    }
}
