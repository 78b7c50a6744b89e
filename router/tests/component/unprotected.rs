//! vDisks that shall have a second copy of their log and have none now (P14), and what a hand-over leaves behind (P15).

use std::time::Duration;

use wire::dtl::DtlMode;
use wire::router::Durability;

use crate::support::{Disk, World};

const MIB: u64 = 1 << 20;

/// A write that is to last, while the backend is out at first.
fn rests_on_the_backend(world: &World, disk: &mut Disk) {
    world.proxy.set_out(true);
    std::thread::scope(|scope| {
        let write = scope.spawn(|| disk.write(4096, &[2; 4096], Durability::Durable));
        // Time to be acknowledged, if it were.
        std::thread::sleep(Duration::from_millis(300));
        let early = write.is_finished();
        world.proxy.set_out(false);
        assert!(!early, "acknowledged as durable by the owner's log alone");
    });
}

#[test]
fn p14_what_is_flushed_without_the_second_copy_outlives_its_owner() {
    let world = World::new().with_dtl(DtlMode::Sync);
    let owner = world.start();
    owner.create("demo", 8 * MIB);
    let mut disk = Disk::attach(&owner, "demo");
    disk.write(0, &[1; 4096], Durability::Normal);
    disk.flush();
    rests_on_the_backend(&world, &mut disk);
    owner.kill();
    let other = world.start_other();
    world.expire_owner("demo");
    disk.reattach(&other);
    disk.check_all();
    other.stop();
}

/// The next owner kept the copy of the former one's log; it has no target of its own.
#[test]
fn p15_after_a_hand_over_to_the_dtls_host_nothing_rests_on_what_lies_there() {
    let world = World::new().with_dtl(DtlMode::Sync);
    let (owner, other, mut disk) = world.in_sync(8 * MIB);
    disk.write(0, &[1; 4096], Durability::Durable);
    assert_eq!(world.proxy.puts(), 0, "it rests on the DTL");
    owner.transfer("demo", world.id_of("router-2"));
    owner.kill();
    disk.reattach(&other);
    disk.check_all();
    rests_on_the_backend(&world, &mut disk);
    other.kill();
    for part in ["log", "dtl"] {
        world.remove_other(part);
    }
    let other = world.start_other();
    disk.reattach(&other);
    disk.check_all();
    other.stop();
}
