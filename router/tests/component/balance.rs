//! Routers that were told so spread vDisks by themselves, by their number or by what is asked of them, and stop when all
//! carry alike.

use model::Incarnation;
use wire::common::{EventList, EventsAsk, method};
use wire::facts::{RebalanceTurn, Record, RouterState, key};

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

const BY_LOAD: &str = "log_segments = 6\nlog_segment_size = \"8MiB\"\nrebalance_every_ms = 100\nrebalance_by = \"load\"\nrebalance_damping_ms = 1000";
const NO_REST: &str = "rebalance_rest_ms = 0";
/// Far more than a measure that is averaged over a second and a few rounds take.
const A_WHILE: Duration = Duration::from_secs(4);

/// Two of five vDisks that are read in turn, so that as much is asked of each, however fast that goes.
struct Asked<'a> {
    world: &'a World,
    routers: [&'a Router; 2],
    disks: [(&'static str, Disk); 2],
}

impl<'a> Asked<'a> {
    fn start(world: &'a World, routers: [&'a Router; 2]) -> Self {
        for name in NAMES {
            routers[0].create(name, 8 << 20);
        }
        let disks = ["one", "two"].map(|name| (name, Disk::attach(routers[0], name)));
        Self { world, routers, disks }
    }

    fn ask(&mut self) {
        for (name, disk) in &mut self.disks {
            if disk.try_read(0, 65536).is_ok() {
                continue;
            }
            let owner = self.world.vdisk(name).owner;
            let at = usize::from(owner != self.world.id_of("router-1"));
            // It may move again meanwhile: then the next time finds where it is.
            let there = disk.try_reattach(self.routers[at]);
            let _ = there.and_then(|_| disk.try_replay_complete());
        }
    }

    fn ask_for(&mut self, time: Duration) {
        let start = Instant::now();
        while start.elapsed() < time {
            self.ask();
        }
    }

    fn until_moved(&mut self) {
        let start = Instant::now();
        while self.owned_by_other() == 0 {
            assert!(start.elapsed() < WITHIN, "both stay");
            self.ask();
        }
    }

    /// How many of those that are asked.
    fn owned_by_other(&self) -> usize {
        let other = self.world.id_of("router-2");
        ["one", "two"].iter().filter(|name| self.world.vdisk(name).owner == other).count()
    }

    fn moves(&self) -> usize {
        self.routers.iter().map(|router| moves(router)).sum()
    }
}

#[test]
fn by_load_one_of_two_busy_vdisks_moves_and_then_all_stay() {
    let world = World::new();
    let with = format!("{BY_LOAD}\n{NO_REST}");
    let (first, other) = (world.start_with(&with), world.start_other_with(&with));
    let mut asked = Asked::start(&world, [&first, &other]);
    asked.until_moved();
    asked.ask_for(A_WHILE);
    assert_eq!((asked.owned_by_other(), asked.moves()), (1, 1), "one for each, and none back");
    for idle in ["three", "four", "five"] {
        assert_eq!(world.vdisk(idle).owner, world.id_of("router-1"), "{idle} isn't asked");
    }
    let turn = || world.arakoon.get(&key::rebalance_turn());
    let start = Instant::now();
    while turn().is_some() {
        assert!(start.elapsed() < WITHIN, "the turn is never over");
        std::thread::sleep(Duration::from_millis(5));
    }
    // What it carries is told to whoever asks.
    let details = first.try_show("five").unwrap().details_json;
    assert!(details.contains(r#""load":0,"load_known":true"#), "{details}");
    for router in [first, other] {
        router.stop();
    }
}

#[test]
fn by_load_what_was_opened_lately_stays() {
    let world = World::new();
    let (first, other) = (world.start_with(BY_LOAD), world.start_other_with(BY_LOAD));
    let mut asked = Asked::start(&world, [&first, &other]);
    asked.ask_for(A_WHILE);
    assert_eq!((asked.owned_by_other(), asked.moves()), (0, 0));
    for router in [first, other] {
        router.stop();
    }
}

#[test]
fn by_load_one_router_at_a_time_hands_over() {
    let world = World::new();
    let with = format!("{BY_LOAD}\n{NO_REST}");
    let (first, other) = (world.start_with(&with), world.start_other_with(&with));
    let mut asked = Asked::start(&world, [&first, &other]);
    let router = world.id_of("router-2");
    world.until_standing("router-2", RouterState::Online);
    let (_, incarnation) = world.session_of(router);
    let turn = |incarnation| {
        let vdisk = world.vdisk("five").vdisk;
        let turn = RebalanceTurn { router, incarnation, vdisk };
        world.arakoon.set(key::rebalance_turn(), turn.to_record());
    };
    turn(incarnation);
    asked.ask_for(A_WHILE);
    assert_eq!((asked.owned_by_other(), asked.moves()), (0, 0), "it isn't its turn");
    // Who took it is gone.
    turn(Incarnation(incarnation.0.wrapping_add(1)));
    asked.until_moved();
    for router in [first, other] {
        router.stop();
    }
}
