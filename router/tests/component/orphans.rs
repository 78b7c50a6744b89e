//! DTL logs whose target didn't hear that nobody needs them any more.

use std::time::{Duration, Instant};

use model::VdiskId;
use wire::dtl::{DtlMode, LogList, LogsOf, method};
use wire::router::Durability;

use crate::support::{Router, WITHIN, World};

const MIB: u64 = 1 << 20;

fn logs(router: &Router, vdisk: VdiskId) -> usize {
    router.call::<_, LogList>(method::LOGS, &LogsOf { vdisk }).unwrap().logs.len()
}

fn until_forgotten(router: &Router, vdisk: VdiskId) {
    let start = Instant::now();
    while logs(router, vdisk) != 0 {
        assert!(start.elapsed() < WITHIN, "it keeps what nobody needs");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn l8_a_target_that_was_away_forgets_the_log_of_a_vdisk_that_was_deleted() {
    let world = World::new().with_dtl(DtlMode::Sync);
    let (owner, other, mut disk) = world.in_sync(8 * MIB);
    let vdisk = world.vdisk("demo").vdisk;
    disk.write(0, &[1; 4096], Durability::Durable);
    other.kill();
    disk.detach();
    owner.try_delete("demo").unwrap();
    let other = world.start_other();
    until_forgotten(&other, vdisk);
    owner.stop();
    other.stop();
}

#[test]
fn l8_a_target_that_was_replaced_while_it_was_away_forgets_its_log_and_a_needed_one_is_kept() {
    let world = World::new().with_dtl(DtlMode::Sync);
    let (owner, other, mut disk) = world.in_sync(8 * MIB);
    let vdisk = world.vdisk("demo").vdisk;
    disk.write(0, &[1; 4096], Durability::Durable);
    other.kill();
    disk.write(4096, &[3; 4096], Durability::Durable);
    // Degraded: the record still names it as who was InSync last, and it keeps its log.
    owner.until("demo", |details| details.contains(r#""dtl_state":"degraded""#));
    let third = world.start_third();
    owner.until_in_sync("demo");
    let other = world.start_other();
    until_forgotten(&other, vdisk);
    disk.write(4096, &[2; 4096], Durability::Durable);
    // The other target, restarted, is still the one that the record names.
    third.kill();
    owner.kill();
    let third = world.start_third();
    world.expire_owner("demo");
    disk.reattach(&third);
    disk.check_all();
    other.stop();
    third.stop();
}
