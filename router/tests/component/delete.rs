//! Deletions that end badly: the owner is killed at every message, comes back or never does, or the backend is out. The
//! vDisk is there and can be deleted again, or it is gone; in the end nothing of it is left, and its name is free.

use std::path::Path;
use std::time::{Duration, Instant};

use model::VdiskId;
use wire::dtl::{self, DtlMode, LogList, LogsOf};
use wire::facts::key;
use wire::router::{Durability, code};
use wire::{ErrorClass, WireError};

use crate::support::gate::Moment;
use crate::support::{Disk, Router, WITHIN, World, until};

const MIB: u64 = 1 << 20;
/// Far more messages than a deletion needs.
const STEPS_MAX: usize = 100;
/// What a router still asks when the deletion is through; less of it is struck on a slow machine.
const AFTERWARDS: Duration = Duration::from_millis(400);
/// Checkpoints after few small SCOs.
fn owners(follow_ms: u64) -> String {
    format!("{}\nsco_size = \"256KiB\"\nmap_checkpoint_every = 4", others(follow_ms))
}

fn others(follow_ms: u64) -> String {
    format!("log_segments = 6\nlog_segment_size = \"8MiB\"\nmap_follow_ms = {follow_ms}")
}

/// Nobody copies others' page maps: each look would be a message.
const NEVER: u64 = 600_000;
const OFTEN: u64 = 100;

/// The first router's "demo" has objects, a checkpoint, a log, a DTL log, and perhaps a copy of its map; nobody is attached.
fn with_everything(follow_ms: u64) -> (World, Router, Router) {
    let world = World::new().with_dtl(DtlMode::Sync);
    let owner = world.start_with(&owners(follow_ms));
    let other = world.start_other_with(&others(follow_ms));
    owner.create("demo", 8 * MIB);
    let mut disk = Disk::attach(&owner, "demo");
    owner.until_in_sync("demo");
    for at in 0..8 {
        disk.write(at * MIB, &vec![at as u8 + 1; 256 << 10], Durability::Normal);
    }
    disk.sync();
    until("a checkpoint", || world.proxy.namespaces() == 2);
    let copied = || other.maps().iter().any(|map| map.object.is_some());
    until("a copy of its map", || follow_ms == NEVER || copied());
    // Nowhere but in the logs.
    for at in 0..4 {
        disk.write(at * MIB, &[99; 4096], Durability::Durable);
    }
    disk.detach();
    (world, owner, other)
}

fn dtl_logs(router: &Router, vdisk: VdiskId) -> usize {
    router.call::<_, LogList>(dtl::method::LOGS, &LogsOf { vdisk }).unwrap().logs.len()
}

fn is_empty(dir: &Path) -> bool {
    std::fs::read_dir(dir).map_or(true, |mut found| found.next().is_none())
}

/// Nothing of it is left at these routers, in arakoon or the backend, and its name is free.
fn is_gone(world: &World, vdisk: VdiskId, routers: &[(&str, &Router)]) {
    until("its objects and checkpoints are gone", || world.proxy.namespaces() == 0);
    let named = || world.arakoon.mentions(&vdisk.to_string(), &vdisk.0.to_le_bytes());
    until("nothing in arakoon names it", || named().is_empty());
    for (name, router) in routers {
        until("its page maps are gone", || router.maps().is_empty());
        until("the DTL is empty", || dtl_logs(router, vdisk) == 0);
        assert!(router.list().is_empty());
        let kept = world.path(name).join("dtl");
        until("no file of the DTL is left", || is_empty(&kept));
    }
    let (name, router) = routers[0];
    let again = router.try_create("demo", MIB, "default");
    assert!(again.is_ok(), "{name}: {again:?}");
    let mut disk = Disk::attach(router, "demo");
    disk.check_all();
    disk.write(0, &[1; 4096], Durability::Durable);
    disk.check_all();
}

/// As an operator does: until it is done, or nobody knows it any more.
fn delete(router: &Router) {
    let start = Instant::now();
    loop {
        match router.try_delete("demo") {
            Ok(()) => return,
            Err(WireError { code: code::NO_VDISK, .. }) => return,
            Err(error) => assert_eq!(error.class, ErrorClass::Retry, "{error}"),
        }
        assert!(start.elapsed() < WITHIN, "it can't be deleted");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Whole, and served.
fn still_there(router: &Router) {
    let disk = Disk::attach(router, "demo");
    assert_eq!(disk.read_patiently(0, 4096), [99; 4096]);
    assert_eq!(disk.read_patiently(7 * MIB, 4096), [8; 4096]);
    disk.detach();
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    ComesBack,
    NeverReturns,
}

/// One deletion with its owner killed at this message; false when it was through before.
fn kill_at(number: usize, moment: Moment, then: Then) -> bool {
    let (world, owner, other) = with_everything(NEVER);
    let vdisk = world.vdisk("demo").vdisk;
    let watch = world.gate.arm(number, moment);
    let asked = owner.begin_delete("demo");
    let mut owner = Some(owner);
    let struck = watch.until(|| asked.is_finished(), AFTERWARDS, || owner.take().unwrap().kill());
    world.gate.disarm();
    let outcome = asked.join().unwrap();
    // Behind whatever was held.
    let listed = !other.list().is_empty();
    println!("{moment:?} message {number}: {struck}, {then:?}; listed: {listed}, told {outcome:?}");
    if matches!(outcome, Some(Ok(()))) {
        assert!(!listed, "told that it is deleted");
    }
    let Some(owner) = owner else {
        world.arakoon.expire(&key::router_session(world.id_of("router-1")));
        let survivor = match then {
            Then::ComesBack => {
                let back = world.start_with(&owners(NEVER));
                if listed {
                    still_there(&back);
                    delete(&back);
                }
                Some(back)
            }
            Then::NeverReturns => {
                if listed {
                    still_there(&other);
                    delete(&other);
                }
                None
            }
        };
        let named = || world.arakoon.mentions(&vdisk.to_string(), &vdisk.0.to_le_bytes());
        until("its record is gone", || named().is_empty());
        // Who keeps a copy of its log, and wasn't told, looks now and then, and when it starts.
        let other = if 0 < dtl_logs(&other, vdisk) {
            other.stop();
            world.start_other_with(&others(NEVER))
        } else {
            other
        };
        match survivor {
            Some(back) => {
                is_gone(&world, vdisk, &[("router-1", &back), ("router-2", &other)]);
                back.stop();
            }
            None => is_gone(&world, vdisk, &[("router-2", &other)]),
        }
        other.stop();
        return struck;
    };
    is_gone(&world, vdisk, &[("router-1", &owner), ("router-2", &other)]);
    owner.stop();
    other.stop();
    struck
}

/// In CI one moment of each message, in the soak both.
fn at_every_message(then: Then) {
    let soak = std::env::var_os("HOLDFAST_SOAK").is_some();
    let moments = |number| match (number + usize::from(then == Then::ComesBack)) % 2 {
        _ if soak => &[Moment::Before, Moment::After][..],
        0 => &[Moment::Before],
        _ => &[Moment::After],
    };
    let struck =
        |number: &usize| moments(*number).iter().all(|moment| kill_at(*number, *moment, then));
    let through = (0..STEPS_MAX).find(|number| !struck(number));
    let through = through.expect("a deletion takes fewer messages");
    println!("killed at each of {through} messages");
    assert!(6 <= through, "{through} messages are too few for a deletion");
}

/// h_18.
#[test]
fn h_18_an_owner_killed_at_any_message_of_a_deletion_leaves_nothing_once_it_is_back() {
    at_every_message(Then::ComesBack);
}

/// h_18. Nobody claims what is being deleted, so somebody else must end it.
#[test]
fn h_18_an_owner_that_dies_for_good_at_any_message_of_a_deletion_leaves_nothing() {
    at_every_message(Then::NeverReturns);
}

/// h_18.
#[test]
fn h_18_a_deletion_that_the_backend_or_arakoon_put_off_is_gone_on_with() {
    let (world, owner, other) = with_everything(OFTEN);
    let vdisk = world.vdisk("demo").vdisk;
    world.proxy.set_out(true);
    let refused = owner.try_delete("demo").unwrap_err();
    assert_eq!(refused.class, ErrorClass::Retry, "{refused}");
    assert!(owner.list().is_empty(), "it is being deleted");
    world.proxy.set_out(false);
    is_gone(&world, vdisk, &[("router-1", &owner), ("router-2", &other)]);
    owner.stop();
    other.stop();

    // It is recorded, and who asked hears that nobody knows.
    let (world, owner, other) = with_everything(OFTEN);
    let vdisk = world.vdisk("demo").vdisk;
    world.arakoon.hold_answer(key::vdisk(vdisk));
    let asked = owner.begin_delete("demo");
    until("it is recorded", || world.arakoon.holds_answer());
    world.arakoon.lose_answer();
    let _unknown = asked.join().unwrap();
    is_gone(&world, vdisk, &[("router-1", &owner), ("router-2", &other)]);
    owner.stop();
    other.stop();
}
