//! One log and one memory for all vDisks of a router: who can't be stored stops itself and nobody else (P9).

use std::time::{Duration, Instant};

use wire::router::Durability;

use crate::support::{Disk, World};

const MIB: u64 = 1 << 20;

/// The backend takes nothing of one vDisk, of which there is something in every segment: well within what it may have.
#[test]
fn p9_a_vdisk_that_cant_be_stored_doesnt_stop_its_neighbour() {
    let world = World::new();
    let logs = "log_segments = 6\nlog_segment_size = \"8MiB\"\noverlay_limit = \"64MiB\"";
    let router = world.start_with(logs);
    router.create("stuck", 8 * MIB);
    router.create("busy", 16 * MIB);
    let mut stuck = Disk::attach(&router, "stuck");
    let mut busy = Disk::attach(&router, "busy");
    world.proxy.set_stuck(world.vdisk("stuck").vdisk);
    let quarter = |at: u64| at * (256 << 10) % (16 * MIB);
    for at in 0..96 {
        stuck.write(at << 16, &[at as u8 + 1; 1 << 16], Durability::Normal);
        busy.write(quarter(at), &vec![at as u8 + 2; 256 << 10], Durability::Normal);
    }
    // Twice the log.
    for at in 0..256 {
        busy.write(quarter(at), &vec![at as u8 ^ 0x55; 256 << 10], Durability::Normal);
    }
    busy.check_all();
    // What was moved about in the log is whole, also for who reads that.
    router.kill();
    let router = world.start_with(logs);
    busy.reattach(&router);
    stuck.reattach(&router);
    stuck.check_all();
    busy.check_all();
    world.proxy.none_is_stuck();
    stuck.sync();
    stuck.check_all();
    router.stop();
}

/// One that can't be stored has half of the memory and the oldest segment; of the others none has much, or a full unit.
#[test]
fn p9_who_waits_for_memory_gets_it_from_units_that_arent_full() {
    let world = World::new();
    let logs = "log_segments = 16\nlog_segment_size = \"8MiB\"";
    let router =
        world.start_with(&format!("{logs}\noverlay_limit = \"16MiB\"\nsco_size = \"8MiB\""));
    let names: Vec<String> = (0..7).map(|number| format!("demo-{number}")).collect();
    let mut disks = Vec::new();
    for name in &names {
        router.create(name, 16 * MIB);
        disks.push(Disk::attach(&router, name));
    }
    world.proxy.set_stuck(world.vdisk(&names[0]).vdisk);
    let (stuck, others) = disks.split_first_mut().unwrap();
    let write = |disk: &mut Disk, at: u64| {
        disk.write(at << 19, &vec![at as u8 + 1; 1 << 19], Durability::Normal);
    };
    (0..17).for_each(|at| write(stuck, at));
    for disk in others {
        (0..3).for_each(|at| write(disk, at));
    }
    disks.iter().for_each(Disk::check_all);
    world.proxy.none_is_stuck();
    router.stop();
}

#[test]
fn p9_what_is_pending_keeps_within_the_memory_for_it() {
    const LIMIT: u64 = 16 * MIB;
    let world = World::new();
    let router = world.start_with("overlay_limit = \"16MiB\"");
    router.create("demo", 32 * MIB);
    let mut disk = Disk::attach(&router, "demo");
    world.proxy.set_out(true);
    let pending = || router.detail("demo", "pending_bytes").parse::<u64>().unwrap();
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for at in 0..64 {
                disk.write(at << 19, &vec![at as u8 + 1; 1 << 19], Durability::Normal);
            }
            disk
        });
        while pending() < LIMIT / 2 && !writer.is_finished() {
            std::thread::sleep(Duration::from_millis(5));
        }
        // Time to take more than there is room for, if it did.
        let (start, mut most) = (Instant::now(), 0);
        while start.elapsed() < Duration::from_secs(3) && most <= LIMIT {
            most = most.max(pending());
            std::thread::sleep(Duration::from_millis(5));
        }
        world.proxy.set_out(false);
        assert!(most <= LIMIT, "{most} bytes are pending");
        writer.join().unwrap().check_all();
    });
    router.stop();
}
