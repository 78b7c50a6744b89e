//! A router loses its session in arakoon once, is well, and goes on under another; or ends it by a clean stop (P16, P17).
//!
//! Invariant: a vDisk rests on the new session only when its record names it and nobody had claimed it meanwhile.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use model::{Incarnation, RouterId};
use wire::ErrorClass;
use wire::dtl::DtlMode;
use wire::facts::{DtlRecord, Record, VdiskRecord, key};
use wire::router::{AttachMode, Durability, code};

use crate::support::{Disk, Held, Router, WITHIN, World, until};

const MIB: u64 = 1 << 20;
const LOGS: &str = "log_segments = 6\nlog_segment_size = \"8MiB\"";

fn dtl_of(world: &World) -> DtlRecord {
    let key = key::vdisk_dtl(world.vdisk("demo").vdisk);
    DtlRecord::from_record(world.arakoon.get(&key).unwrap()).unwrap()
}

/// Expires the owner's session; returns when it has opened another one.
fn lose_session(world: &World) -> Incarnation {
    let id = key::router_session(world.vdisk("demo").owner);
    let former = world.arakoon.session(&id).unwrap();
    world.expire_owner("demo");
    until("a new session", || world.arakoon.session(&id).is_some_and(|now| now != former));
    world.arakoon.session(&id).unwrap()
}

/// Without any target: all that it promises is in the backend.
fn degraded(world: &World) -> (Router, Disk) {
    let owner = world.start();
    owner.create("demo", 8 * MIB);
    let mut disk = Disk::attach(&owner, "demo");
    disk.write(0, &[1; 4096], Durability::Durable);
    (owner, disk)
}

#[test]
fn l8_a_lost_session_ends_no_reads_for_ever_whatever_is_pending() {
    let world = World::new().with_dtl(DtlMode::Sync);
    let (owner, disk) = degraded(&world);
    world.proxy.set_delay_ms(100);
    let (seq, done) = (AtomicU64::new(1), AtomicBool::new(false));
    let read = std::thread::scope(|scope| {
        for at in 1..=8 {
            let (disk, seq, done) = (&disk, &seq, &done);
            scope.spawn(move || {
                while !done.load(Ordering::SeqCst) {
                    let seq = 1 + seq.fetch_add(1, Ordering::SeqCst);
                    disk.resend(seq, at * 4096, &[7; 4096]);
                }
            });
        }
        lose_session(&world);
        let start = Instant::now();
        let read = loop {
            match disk.try_read(0, 4096) {
                Err(refused) if refused.class == ErrorClass::Retry && start.elapsed() < WITHIN => {}
                read => break read,
            }
        };
        done.store(true, Ordering::SeqCst);
        read
    });
    assert_eq!(read.unwrap(), vec![1; 4096]);
    owner.stop();
}

#[test]
fn p16_an_owner_that_lost_its_session_once_keeps_its_vdisk() {
    let world = World::new().with_dtl(DtlMode::Sync);
    let (owner, other, mut disk) = world.in_sync(8 * MIB);
    disk.write(0, &[1; 4096], Durability::Durable);
    let before = world.vdisk("demo");
    let session = lose_session(&world);
    until("its record names the lost session", || dtl_of(&world).session == session);
    let refused = Disk::try_attach(&other, "demo", 2, AttachMode::ReadOnly, false).unwrap_err();
    assert_eq!(refused.code, code::NOT_OWNER, "{refused}");
    assert_eq!(world.vdisk("demo"), before);
    disk.write(4096, &[2; 4096], Durability::Durable);
    disk.check_all();
    owner.stop();
    other.stop();
}

#[test]
fn l4_a_new_session_gives_no_right_to_what_was_claimed_meanwhile() {
    let world = World::new().with_dtl(DtlMode::Sync);
    let (owner, disk) = degraded(&world);
    let record = world.vdisk("demo");
    let (vdisk, dtl) = (key::vdisk(record.vdisk), key::vdisk_dtl(record.vdisk));
    let claim = dtl_of(&world);
    world.arakoon.before(dtl.clone(), move |store| {
        let epoch = record.epoch.next();
        let taken = VdiskRecord { owner: RouterId(77), epoch, ..record };
        store.map.insert(vdisk, taken.to_record());
        let claim = DtlRecord { epoch, session: Incarnation(77), log_id: 0, ..claim };
        store.map.insert(dtl, claim.to_record());
    });
    lose_session(&world);
    until("it is claimed", || world.vdisk("demo").owner == RouterId(77));
    let start = Instant::now();
    loop {
        let refused = disk.try_read(0, 4096).expect_err("read what another router owns");
        if refused.class != ErrorClass::Retry {
            break assert_eq!(refused.code, code::NOT_OWNER, "{refused}");
        }
        assert!(start.elapsed() < WITHIN, "it never withdraws");
    }
    owner.stop();
}

/// The end of the session reaches arakoon, and the answer doesn't come back.
#[test]
fn p16_a_clean_stop_reads_nothing_once_its_session_may_be_over() {
    let world = World::new().with_dtl(DtlMode::Sync).with_cables();
    let owner = world.start_with(&format!("{LOGS}\ndrain_timeout_ms = 200"));
    owner.create("demo", 8 * MIB);
    let mut disk = Disk::attach(&owner, "demo");
    disk.write(0, &[1; 4096], Durability::Durable);
    let reader = Disk::try_attach(&owner, "demo", 2, AttachMode::ReadOnly, false).unwrap();
    let id = key::router_session(world.vdisk("demo").owner);
    world.proxy.set_out(true);
    world.cables().arakoon.hold(Held { requests: false, answers: true });
    std::thread::scope(|scope| {
        let write =
            scope.spawn(|| disk.try_write_as(4096, &[2; 4096], Durability::Durable).unwrap_err());
        std::thread::sleep(Duration::from_millis(100));
        let stop = scope.spawn(|| owner.stop());
        until("the session ends", || world.arakoon.session(&id).is_none());
        let refused =
            reader.try_read(4096, 4096).expect_err("read after another may have claimed it");
        assert!(matches!(refused.class, ErrorClass::Retry | ErrorClass::Redirect), "{refused}");
        assert_eq!(write.join().unwrap().class, ErrorClass::Retry);
        world.cables().arakoon.mend();
        stop.join().unwrap();
    });
}

#[test]
fn l8_a_vdisk_that_cant_be_drained_takes_nobody_elses_time() {
    let world = World::new();
    let owner = world.start_with(&format!("{LOGS}\ndrain_timeout_ms = 2000"));
    let mut disks = Vec::new();
    for name in ["one", "two"] {
        owner.create(name, 8 * MIB);
        disks.push((world.vdisk(name).vdisk, name, Disk::attach(&owner, name)));
    }
    // They are looked at in this order.
    disks.sort_by_key(|(vdisk, _, _)| *vdisk);
    world.proxy.set_stuck(disks[0].0);
    for (_, _, disk) in &mut disks {
        disk.write(0, &[1; 4096], Durability::Durable);
    }
    owner.stop();
    assert_ne!(world.vdisk(disks[0].1).log_id, 0, "what is in the log only was left behind");
    assert_eq!(world.vdisk(disks[1].1).log_id, 0, "it was in the backend, and nobody said so");
    let owner = world.start();
    for (_, _, disk) in &mut disks {
        disk.reattach(&owner);
        disk.check_all();
    }
    owner.kill();
}

#[test]
fn l9_a_router_that_arakoon_doesnt_hear_says_that_it_doesnt_read() {
    let world = World::new().with_dtl(DtlMode::Sync).with_cables();
    let (owner, disk) = degraded(&world);
    world.cables().arakoon.cut();
    until("somebody is told", || !owner.events("session-unheard").is_empty());
    let refused = disk.try_read(0, 4096).unwrap_err();
    assert_eq!((refused.class, refused.code), (ErrorClass::Retry, code::RECOVERING), "{refused}");
    world.cables().arakoon.mend();
    until("it is heard again", || disk.try_read(0, 4096).is_ok());
    until("that is told", || owner.events("session").iter().any(|e| e.contains("again")));
    assert_eq!(owner.events("session-unheard").len(), 1);
    disk.check_all();
    owner.stop();
}
