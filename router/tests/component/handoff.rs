//! Hand-overs that end badly: either side is killed at every step, and several run at once.
//!
//! A step is a message to arakoon or the backend, before it was carried out or after. Wherever a hand-over ends, one router
//! serves the vDisk with all that was acknowledged, and the other one knows that it isn't the owner (L1, L3).

use std::time::{Duration, Instant};

use wire::dtl::DtlMode;
use wire::facts::key;
use wire::router::{Durability, Transferred, code};
use wire::{ErrorClass, WireError};

use crate::support::gate::Moment;
use crate::support::{Disk, Router, WITHIN, World};

const MIB: u64 = 1 << 20;
/// Far more messages than a hand-over needs.
const STEPS_MAX: usize = 200;
/// After so many kills one vDisk is handed to the router that was killed.
const GIVEN_BACK_EVERY: usize = 8;
/// What the next owner still asks when the former one has answered; less of it is struck on a slow machine.
const AFTERWARDS: Duration = Duration::from_millis(400);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Owner,
    Next,
}

/// Attaches again wherever it is served, and everything is there.
fn served_at(disk: &mut Disk, routers: &[&Router]) -> usize {
    let start = Instant::now();
    loop {
        for (at, router) in routers.iter().enumerate() {
            match disk.try_reattach(router) {
                Ok(_) => {
                    disk.replay_complete();
                    disk.check_all();
                    return at;
                }
                Err(error) => assert_eq!(error.class, ErrorClass::Redirect, "{error}"),
            }
        }
        assert!(start.elapsed() < WITHIN, "nobody serves it");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// One hand-over with a kill at this step; false when it was through before.
fn kill_at(number: usize, moment: Moment, victim: Victim) -> bool {
    let world = World::new().with_dtl(DtlMode::Sync);
    let (owner, next, mut disk) = world.in_sync(MIB);
    for at in 0..8 {
        disk.write(at * 4096, &[at as u8 + 1; 4096], Durability::Normal);
    }
    let to = world.id_of("router-2");
    let epoch = world.vdisk("demo").epoch;
    let watch = world.gate.arm(number, moment);
    let asked = owner.begin_transfer("demo", to);
    let (mut owner, mut next) = (Some(owner), Some(next));
    let struck = watch.until(
        || asked.is_finished(),
        AFTERWARDS,
        || match victim {
            Victim::Owner => owner.take().unwrap().kill(),
            Victim::Next => next.take().unwrap().kill(),
        },
    );
    world.gate.disarm();
    if struck {
        // As arakoon does when it hears nothing of it.
        let name = if victim == Victim::Owner { "router-1" } else { "router-2" };
        world.arakoon.expire(&key::router_session(world.id_of(name)));
    }
    println!("{victim:?} to be killed {moment:?} message {number}: {struck}");
    // Whether it came about is as it may be; who asked gets an answer, or sees that its router is gone.
    let _outcome: Option<Result<Transferred, WireError>> = asked.join().unwrap();
    let alive: Vec<&Router> = owner.iter().chain(&next).collect();
    served_at(&mut disk, &alive);
    disk.write(0, &[99; 8192], Durability::Durable);
    let record = world.vdisk("demo");
    assert!(epoch <= record.epoch, "step {number}: the epoch went back");
    if struck {
        let (mut back, name) = match victim {
            Victim::Owner => (Some(world.start()), "router-1"),
            Victim::Next => (Some(world.start_other()), "router-2"),
        };
        let survivor = owner.as_ref().or(next.as_ref()).unwrap();
        assert_ne!(record.owner, world.id_of(name), "step {number}: the dead one owns it");
        let refused = back.as_ref().unwrap().until_settled("demo");
        assert_eq!(refused.code, code::NOT_OWNER, "step {number}: {refused}");
        if number.is_multiple_of(GIVEN_BACK_EVERY) {
            survivor.until_in_sync("demo");
            survivor.transfer("demo", world.id_of(name));
            let served = served_at(&mut disk, &[survivor, back.as_ref().unwrap()]);
            assert_eq!(served, 1, "step {number}");
        }
        back.take().unwrap().stop();
    }
    for router in [owner, next].into_iter().flatten() {
        router.stop();
    }
    struck
}

/// In CI one moment of each message, in the soak both.
fn at_every_step(victim: Victim) {
    let soak = std::env::var_os("HOLDFAST_SOAK").is_some();
    let moments = |number| match number % 2 {
        _ if soak => &[Moment::Before, Moment::After][..],
        0 => &[Moment::Before],
        _ => &[Moment::After],
    };
    let struck =
        |number: &usize| moments(*number).iter().all(|moment| kill_at(*number, *moment, victim));
    let through = (0..STEPS_MAX).find(|number| !struck(number));
    let through = through.expect("a hand-over takes fewer messages");
    println!("{victim:?} killed at each of {through} messages");
    assert!(8 <= through, "{through} messages are too few for a hand-over");
}

#[test]
fn an_owner_killed_at_any_step_of_a_hand_over_leaves_one_owner() {
    at_every_step(Victim::Owner);
}

#[test]
fn a_next_owner_killed_at_any_step_of_a_hand_over_leaves_one_owner() {
    at_every_step(Victim::Next);
}

#[test]
fn hand_overs_at_once_end_with_one_owner() {
    let world = World::new().with_dtl(DtlMode::Sync);
    let third = world.start_third();
    let (owner, next, mut disk) = world.in_sync(MIB);
    for round in 0..4_u8 {
        disk.write(0, &[round + 1; 4096], Durability::Normal);
        let routers = [&owner, &next, &third];
        let at = world.vdisk("demo").owner;
        let names = ["router-1", "router-2", "router-3"];
        let at = names.iter().position(|name| world.id_of(name) == at).unwrap();
        let others: Vec<usize> = (0..3).filter(|other| *other != at).collect();
        let asked = [0, 1, 0].map(|which: usize| {
            routers[at].begin_transfer("demo", world.id_of(names[others[which]]))
        });
        let mut done = 0;
        for outcome in asked.map(|asked| asked.join().unwrap()) {
            match outcome.expect("its router lives") {
                Ok(moved) => {
                    done += 1;
                    assert!(others.iter().any(|other| world.id_of(names[*other]) == moved.owner));
                }
                Err(error) => assert_ne!(error.class, ErrorClass::Fatal, "{error}"),
            }
        }
        assert!(done <= 1, "{done} hand-overs of one vDisk came about");
        let served = served_at(&mut disk, &routers);
        assert_eq!(world.id_of(names[served]), world.vdisk("demo").owner);
        assert_eq!(served == at, done == 0);
        routers[served].until_in_sync("demo");
    }
    for router in [owner, next, third] {
        router.stop();
    }
}

/// A router that lives and owns a vDisk which it can't open keeps it from everybody.
#[test]
fn nobody_is_given_a_vdisk_who_couldnt_open_it() {
    let world = World::new().with_dtl(DtlMode::Sync);
    let (owner, next, mut disk) = world.in_sync(MIB);
    disk.write(0, &[1; 4096], Durability::Normal);
    disk.sync();
    world.proxy.set_out(true);
    let asked = owner.begin_transfer("demo", world.id_of("router-2"));
    let refused = asked.join().unwrap().expect("it lives").unwrap_err();
    assert_eq!(refused.code, code::HANDOVER_ABORTED, "{refused}");
    assert_eq!(world.vdisk("demo").owner, world.id_of("router-1"));
    disk.write(4096, &[2; 4096], Durability::Durable);
    world.proxy.set_out(false);
    owner.transfer("demo", world.id_of("router-2"));
    assert_eq!(served_at(&mut disk, &[&owner, &next]), 1);
    owner.stop();
    next.stop();
}
