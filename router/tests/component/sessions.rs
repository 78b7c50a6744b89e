//! A router loses its session in arakoon once, is well, and goes on under another (P16, P17).
//!
//! Invariant: a vDisk rests on the new session only when its record names it and nobody had claimed it meanwhile.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use model::{Incarnation, RouterId};
use wire::ErrorClass;
use wire::dtl::DtlMode;
use wire::facts::{DtlRecord, Record, VdiskRecord, key};
use wire::router::{AttachMode, Durability, code};

use crate::support::{Disk, Router, WITHIN, World};

const MIB: u64 = 1 << 20;

fn dtl_of(world: &World) -> DtlRecord {
    let key = key::vdisk_dtl(world.vdisk("demo").vdisk);
    DtlRecord::from_record(world.arakoon.get(&key).unwrap()).unwrap()
}

fn until(what: &str, holds: impl Fn() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < WITHIN, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Expires the owner's session; returns when it has opened another one.
fn lose_session(world: &World) -> Incarnation {
    let id = key::router_session(world.vdisk("demo").owner);
    let former = world.arakoon.session(&id).unwrap();
    world.expire_owner("demo");
    until("no new session", || world.arakoon.session(&id).is_some_and(|now| now != former));
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
    until("never claimed", || world.vdisk("demo").owner == RouterId(77));
    let start = Instant::now();
    loop {
        let refused = disk.try_read(0, 4096).expect_err("read what another router owns");
        match refused.class {
            ErrorClass::Retry => assert!(start.elapsed() < WITHIN, "it never withdraws"),
            _ => break assert_eq!(refused.code, code::NOT_OWNER, "{refused}"),
        }
    }
    owner.stop();
}
