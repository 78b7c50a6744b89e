//! What a reader is told while the backend is away, or can't give an object.

use std::time::{Duration, Instant};

use wire::ErrorClass;
use wire::router::{Durability, code};

use crate::support::{Disk, Router, WITHIN, World};

const MIB: u64 = 1 << 20;
const PAUSE: Duration = Duration::from_millis(100);
/// Somewhere that isn't in memory when it is read.
const COLD: u64 = 2 * MIB;

/// A router with a vDisk whose contents are in the backend alone.
fn with_cold_data(world: &World) -> (Router, Disk) {
    let router = world.start();
    router.create("demo", 8 * MIB);
    let mut disk = Disk::attach(&router, "demo");
    disk.write(COLD, &[1; 4096], Durability::Durable);
    disk.sync();
    (router, disk)
}

/// Another proxy of theirs is dead all the time: it says nothing about the backend.
#[test]
fn l5_unreadable_is_said_of_data_and_not_of_proxies_that_are_away() {
    let world = World::new().with_cables();
    let (router, disk) = with_cold_data(&world);
    let told = || {
        let error = disk.try_read(COLD, 4096).unwrap_err();
        (error.class, error.code)
    };
    world.proxy.set_unreadable(true);
    assert_eq!(told(), (ErrorClass::Retry, code::UNREADABLE));
    world.proxy.set_unreadable(false);
    world.cables().proxy.cut();
    assert_eq!(told(), (ErrorClass::Retry, code::RECOVERING));
    world.cables().proxy.mend();
    let start = Instant::now();
    let read = loop {
        match disk.try_read(COLD, 4096) {
            Ok(read) => break read,
            Err(error) => assert_eq!(error.class, ErrorClass::Retry, "{error}"),
        }
        assert!(start.elapsed() < WITHIN, "its proxy is back");
    };
    assert_eq!(read, [1; 4096]);
    router.stop();
}

#[test]
fn l9_an_opening_that_takes_long_says_what_it_waits_for() {
    let world = World::new().with_cables();
    let (router, mut disk) = with_cold_data(&world);
    router.kill();
    world.cables().proxy.cut();
    let router = world.start();
    let start = Instant::now();
    let waits = "the backend is told the epoch";
    while !router.events("not-opened").iter().any(|told| told.contains(waits)) {
        assert!(start.elapsed() < WITHIN, "{:?}", router.events("not-opened"));
        std::thread::sleep(PAUSE);
    }
    world.cables().proxy.mend();
    let start = Instant::now();
    while let Err(error) = disk.try_reattach(&router) {
        assert!(start.elapsed() < WITHIN, "{error}");
        std::thread::sleep(PAUSE);
    }
    disk.replay_complete();
    assert_eq!(disk.try_read(COLD, 4096).unwrap(), [1; 4096]);
    router.stop();
}
