//! A vDisk that can't start by itself: what an operator is told, and that it starts without what is missing only by word.

use wire::ErrorClass;
use wire::dtl::DtlMode;
use wire::router::{AttachMode, Durability, RecoveryVerdict, code};

use crate::support::{Disk, Router, WITHIN, World};

const MIB: u64 = 1 << 20;

fn reads(router: &Router, edge: u128, offset: u64) -> u8 {
    let disk = Disk::try_attach(router, "demo", edge, AttachMode::Exclusive, true).unwrap();
    disk.try_read(offset, 4096).unwrap()[0]
}

/// Right after a start: tried again until the router has found its vDisks.
fn until_reads(router: &Router, edge: u128, offset: u64) -> u8 {
    let start = std::time::Instant::now();
    loop {
        match router.try_show("demo") {
            Ok(_) => break reads(router, edge, offset),
            Err(error) => assert_eq!(error.class, ErrorClass::Retry, "{error}"),
        }
        assert!(start.elapsed() < WITHIN, "never served");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

#[test]
fn l7_without_a_gap_there_is_no_loss_to_accept() {
    let world = World::new().with_dtl(DtlMode::Sync);
    let (owner, other, mut disk) = world.in_sync(8 * MIB);
    disk.write(0, &[1; 4096], Durability::Durable);
    assert_eq!(owner.recover("demo", true).verdict, RecoveryVerdict::Whole);
    // Another router says who knows best.
    let error = other.try_recover("demo", true).unwrap_err();
    assert_eq!((error.class, error.code), (ErrorClass::Redirect, code::NOT_OWNER), "{error}");
    owner.kill();
    world.expire_owner("demo");
    let before = world.vdisk("demo");
    assert_eq!(other.recover("demo", true).verdict, RecoveryVerdict::Whole);
    assert_eq!((world.vdisk("demo"), world.losses("demo")), (before, vec![]));
    disk.reattach(&other);
    disk.check_all();
    other.stop();
}

#[test]
fn l7_an_owner_gone_with_its_dtl_is_replaced_only_when_the_loss_is_accepted() {
    let world = World::new().with_dtl(DtlMode::Sync);
    let (owner, other, mut disk) = world.in_sync(8 * MIB);
    disk.write(0, &[1; 4096], Durability::Durable);
    disk.sync();
    disk.write(4096, &[2; 4096], Durability::Durable);
    owner.kill();
    other.kill();
    world.remove_other("dtl");
    let other = world.start_other();
    world.expire_owner("demo");
    let before = world.vdisk("demo");
    let gap = other.recover("demo", false);
    assert_eq!(
        (gap.verdict, gap.head.0, gap.from.0, gap.through),
        (RecoveryVerdict::Gap, 1, 2, None)
    );
    let shown: Vec<_> = gap.places.iter().map(|p| (&p.name[..], p.reached, p.last)).collect();
    assert_eq!(shown, [("router-2", true, None), ("router-1", false, None)]);
    assert_eq!((world.vdisk("demo"), world.losses("demo")), (before, vec![]), "nothing changed");
    let accepted = other.recover("demo", true);
    assert_eq!(accepted.verdict, RecoveryVerdict::Accepted);
    assert_eq!(world.losses("demo"), [("tester".to_owned(), 2)]);
    assert_eq!((reads(&other, 2, 0), reads(&other, 2, 4096)), (1, 0));
    assert_eq!(other.recover("demo", true).verdict, RecoveryVerdict::Whole);
    // P10: what was given up doesn't come back with the router that has it, nor when that owns the vDisk again.
    let owner = world.start();
    other.transfer("demo", world.id_of("router-1"));
    assert_eq!((reads(&owner, 2, 0), reads(&owner, 2, 4096)), (1, 0));
    owner.until_in_sync("demo");
    owner.kill();
    let owner = world.start();
    assert_eq!((until_reads(&owner, 2, 0), reads(&owner, 2, 4096)), (1, 0));
    assert_eq!(world.losses("demo").len(), 1);
    owner.stop();
    other.stop();
}

#[test]
fn l7_a_vdisk_without_a_dtl_leaves_its_owner_only_by_an_operators_word() {
    let world = World::new();
    let owner = world.start();
    let other = world.start_other();
    owner.create("demo", 8 * MIB);
    let mut disk = Disk::attach(&owner, "demo");
    disk.write(0, &[1; 4096], Durability::Durable);
    disk.sync();
    disk.write(4096, &[2; 4096], Durability::Durable);
    owner.kill();
    world.expire_owner("demo");
    let gap = other.recover("demo", false);
    assert_eq!((gap.verdict, gap.from.0, gap.through), (RecoveryVerdict::Gap, 2, None));
    assert!(gap.missing.contains("no DTL") && gap.owner_name == "router-1", "{gap:?}");
    assert_eq!(other.recover("demo", true).verdict, RecoveryVerdict::Accepted);
    assert_eq!((reads(&other, 2, 0), reads(&other, 2, 4096)), (1, 0));
    // Its former owner comes back with the log, finds another one, and takes nothing with it when it owns it again.
    let owner = world.start();
    let error = owner.until_settled("demo");
    assert_eq!(error.code, code::NOT_OWNER, "{error}");
    other.transfer("demo", world.id_of("router-1"));
    assert_eq!((reads(&owner, 2, 0), reads(&owner, 2, 4096)), (1, 0));
    owner.kill();
    let owner = world.start();
    assert_eq!(
        (until_reads(&owner, 2, 0), reads(&owner, 2, 4096)),
        (1, 0),
        "a lost write came back"
    );
    owner.stop();
    other.stop();
}

#[test]
fn l7_an_owner_that_lost_its_log_goes_on_from_the_backend_when_told() {
    let world = World::new();
    let owner = world.start();
    owner.create("demo", 8 * MIB);
    let mut disk = Disk::attach(&owner, "demo");
    disk.write(0, &[1; 4096], Durability::Durable);
    disk.sync();
    disk.write(4096, &[2; 4096], Durability::Durable);
    owner.kill();
    world.remove("log");
    let owner = world.start();
    assert_eq!(owner.until_settled("demo").code, code::GAP);
    let gap = owner.recover("demo", false);
    assert_eq!((gap.verdict, gap.from.0), (RecoveryVerdict::Gap, 2));
    assert!(gap.missing.contains("write log"), "{gap:?}");
    assert_eq!(owner.recover("demo", true).verdict, RecoveryVerdict::Accepted);
    assert_eq!((reads(&owner, 2, 0), reads(&owner, 2, 4096)), (1, 0));
    assert_eq!(world.losses("demo"), [("tester".to_owned(), 2)]);
    owner.stop();
}
