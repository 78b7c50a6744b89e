//! Routers that were told so spread vDisks by themselves, and stop when all carry alike.

use wire::common::{EventList, EventsAsk, method};

use crate::support::{Disk, Router, WITHIN, World};
use std::time::{Duration, Instant};
use wire::router::Durability;

const BALANCED: &str = "log_segments = 6\nlog_segment_size = \"8MiB\"\nrebalance_every_ms = 100\nrebalance_slack = 0\nrebalance_moves = 2";
const NAMES: [&str; 5] = ["one", "two", "three", "four", "five"];

/// Moves for balance that a router tells of.
fn moves(router: &Router) -> usize {
    let ask = EventsAsk { after: 0, events_max: 256 };
    let list: EventList = router.call(method::EVENTS, &ask).unwrap();
    list.events.iter().filter(|event| event.kind == "rebalance").count()
}

#[test]
fn a_vdisk_follows_its_edge_and_stays_there() {
    let world = World::new();
    let first = world.start_with(&format!("{BALANCED}\ndomain = \"dc1/rack1/host1\""));
    for name in NAMES {
        first.create(name, 8 << 20);
    }
    let mut disk = Disk::attach(&first, "one");
    disk.write(0, &[7; 4096], Durability::Durable);
    // It comes back from where it runs now.
    disk.domain = "dc2/rack1/host9".to_owned();
    disk.reattach(&first);
    let other = world.start_other_with(&format!("{BALANCED}\ndomain = \"dc2/rack1/host2\""));
    let start = Instant::now();
    while world.vdisk("one").owner != world.id_of("router-2") {
        assert!(start.elapsed() < WITHIN, "it stays with router-1");
        std::thread::sleep(Duration::from_millis(5));
    }
    disk.reattach(&other);
    disk.check_all();
    // Others go there to even things out; it stays.
    while moves(&first) < 2 {
        assert!(start.elapsed() < WITHIN, "{} moves", moves(&first));
        std::thread::sleep(Duration::from_millis(5));
    }
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!((moves(&first), moves(&other)), (2, 0));
    assert_eq!(world.vdisk("one").owner, world.id_of("router-2"));
    for router in [first, other] {
        router.stop();
    }
}

#[test]
fn vdisks_spread_over_routers_that_come_and_then_stay() {
    let world = World::new();
    let first = world.start_with(BALANCED);
    for name in NAMES {
        first.create(name, 8 << 20);
    }
    let mut disk = Disk::attach(&first, "one");
    disk.write(0, &[7; 4096], Durability::Durable);
    let other = world.start_other_with(BALANCED);
    let owned = |router: &str| {
        let id = world.id_of(router);
        NAMES.iter().filter(|name| world.vdisk(name).owner == id).count()
    };
    let start = Instant::now();
    while owned("router-2") != 2 {
        assert!(start.elapsed() < WITHIN, "router-2 owns {}", owned("router-2"));
        std::thread::sleep(Duration::from_millis(5));
    }
    // One more, so that a round passes; three and three is even.
    other.create("six", 8 << 20);
    let third = world.start_third();
    let start = Instant::now();
    let of_third = || {
        let id = world.id_of("router-3");
        NAMES.iter().chain(&["six"]).filter(|name| world.vdisk(name).owner == id).count()
    };
    while of_third() != 2 {
        assert!(start.elapsed() < WITHIN, "router-3 owns {}", of_third());
        std::thread::sleep(Duration::from_millis(5));
    }
    let made = || moves(&first) + moves(&other);
    while made() < 4 {
        assert!(start.elapsed() < WITHIN, "{} moves", made());
        std::thread::sleep(Duration::from_millis(5));
    }
    // Many rounds in which nothing has to be moved any more.
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(made(), 4, "two to each that came, and none back");
    let owner = world.vdisk("one").owner;
    let routers = [&first, &other, &third];
    let names = ["router-1", "router-2", "router-3"];
    let at = names.iter().position(|name| world.id_of(name) == owner).unwrap();
    disk.reattach(routers[at]);
    disk.check_all();
    for router in [first, other, third] {
        router.stop();
    }
}
