//! Attachments that end: by another edge, by a new life of their own, or while nobody listens (P4, P6).

use wire::ErrorClass;
use wire::facts::key;
use wire::router::{AttachMode, Durability, code};

use crate::support::{Disk, WITHIN, World};

const MIB: u64 = 1 << 20;
/// Somewhere that isn't in memory when it is read.
const COLD: u64 = 2 * MIB;

#[test]
fn p4_a_fenced_write_that_waits_for_the_backend_never_lands() {
    let world = World::new();
    let router = world.start();
    router.create("demo", 8 * MIB);
    let mut old = Disk::attach(&router, "demo");
    old.write(COLD, &[1; 4096], Durability::Durable);
    old.sync();
    let reads = world.proxy.reads();
    world.proxy.set_delay_ms(1500);
    std::thread::scope(|scope| {
        // A part of a cluster: its old content is read first.
        let write = scope.spawn(|| old.try_write(COLD + 512, &[3; 512]));
        while world.proxy.reads() == reads {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        let new = Disk::try_attach(&router, "demo", 2, AttachMode::Exclusive, true).unwrap();
        let first = new.try_read(COLD, 4096).unwrap();
        let refused = write.join().unwrap().expect_err("it was fenced");
        assert_eq!(refused.code, code::ATTACHMENT_FENCED, "{refused}");
        assert_eq!(first, [1; 4096]);
        assert_eq!(new.try_read(COLD, 4096).unwrap(), first, "changed under its only writer");
    });
    world.proxy.set_delay_ms(0);
    router.stop();
}

#[test]
fn p4_an_attach_that_nobody_waits_for_fences_nobody() {
    let world = World::new();
    let mut router = world.start();
    router.create("demo", 8 * MIB);
    let disk = Disk::attach(&router, "demo");
    disk.detach();
    for round in 0..6 {
        router.kill();
        world.proxy.set_out(true);
        router = world.start();
        Disk::attach_and_hang_up(&router, "demo", 1);
        let mut disk = std::thread::scope(|scope| {
            let attach = scope.spawn(|| Disk::attach(&router, "demo"));
            std::thread::sleep(std::time::Duration::from_millis(200));
            world.proxy.set_out(false);
            attach.join().unwrap()
        });
        std::thread::sleep(std::time::Duration::from_millis(100));
        let written = disk.try_write(0, &[round; 4096]);
        written.unwrap_or_else(|refused| panic!("round {round}: {refused}"));
        disk.detach();
    }
    router.stop();
}

#[test]
fn p6_nobody_resizes_or_calls_safe_what_edges_have_not_replayed() {
    let world = World::new();
    let router = world.start();
    router.create("demo", 8 * MIB);
    let mut disk = Disk::attach(&router, "demo");
    disk.write(0, &[1; 4096], Durability::Durable);
    router.kill();
    let router = world.start();
    disk.try_reattach(&router).unwrap();
    let refused = router.try_resize("demo", 4 * MIB, true).unwrap_err();
    assert_eq!(refused.class, ErrorClass::Retry, "{refused}");
    let refused = disk.try_sync().unwrap_err();
    assert_eq!(refused.class, ErrorClass::Retry, "{refused}");
    disk.replay_complete();
    disk.try_sync().unwrap();
    router.try_resize("demo", 4 * MIB, true).unwrap();
    router.stop();
}

/// Nobody guesses that an edge is gone: an operator says so.
#[test]
fn p6_who_waits_for_an_edge_that_died_with_its_owner_goes_on_when_an_operator_ends_it() {
    let world = World::new();
    let router = world.start();
    router.create("demo", 8 * MIB);
    let mut writer = Disk::attach(&router, "demo");
    let mut reader = Disk::try_attach(&router, "demo", 2, AttachMode::ReadOnly, false).unwrap();
    writer.write(0, &[1; 4096], Durability::Durable);
    router.kill();
    let router = world.start();
    reader.try_reattach(&router).unwrap();
    let waits = reader.try_read(0, 4096).unwrap_err();
    assert_eq!((waits.class, waits.code), (ErrorClass::Retry, code::RECOVERING), "{waits}");
    let unknown = router.end_attachment("demo", "edge-9", true).unwrap_err();
    assert_eq!(unknown.code, code::INVALID, "{unknown}");
    assert!(unknown.message.contains("edge-1") && unknown.message.contains("edge-2"), "{unknown}");
    let early = router.end_attachment("demo", "edge-1", false).unwrap_err();
    assert!(early.message.contains("on its way back"), "{early}");
    let ended = router.end_attachment("demo", "edge-1", true).unwrap();
    assert!(ended.owes_replay && !ended.connected, "{ended:?}");
    assert_eq!(reader.try_read(0, 4096).unwrap(), [1; 4096]);
    // It comes back all the same (P4).
    assert_eq!(writer.try_reattach(&router).unwrap_err().code, code::ATTACHMENT_FENCED);
    // One that is connected is ended only by insisting.
    let connected = router.end_attachment("demo", "edge-2", false).unwrap_err();
    assert!(connected.message.contains("--force"), "{connected}");
    assert!(router.end_attachment("demo", "edge-2", true).unwrap().connected);
    assert_eq!(reader.try_read(0, 4096).unwrap_err().code, code::ATTACHMENT_FENCED);
    router.stop();
}

#[test]
fn p6_ending_an_attachment_whose_answer_was_lost_works_when_it_is_said_again() {
    let world = World::new();
    let router = world.start();
    router.create("demo", 8 * MIB);
    let mut disk = Disk::attach(&router, "demo");
    world.arakoon.hold_answer(key::attachments(world.vdisk("demo").vdisk));
    std::thread::scope(|scope| {
        let end = scope.spawn(|| router.end_attachment("demo", "edge-1", true));
        until_held(&world);
        world.arakoon.lose_answer();
        end.join().unwrap().unwrap_err();
    });
    disk.write(0, &[1; 4096], Durability::Durable);
    assert!(router.end_attachment("demo", "edge-1", true).unwrap().connected);
    assert_eq!(disk.try_write(0, &[2; 4096]).unwrap_err().code, code::ATTACHMENT_FENCED);
    assert_eq!(Disk::attach(&router, "demo").try_read(0, 4096).unwrap(), [1; 4096]);
    router.stop();
}

fn until_held(world: &World) {
    let start = std::time::Instant::now();
    while !world.arakoon.holds_answer() {
        assert!(start.elapsed() < WITHIN, "nothing was asked of arakoon");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

#[test]
fn p4_an_attachment_that_arakoon_confirms_late_undoes_none_that_came_after_it() {
    let world = World::new();
    let router = world.start();
    router.create("demo", 8 * MIB);
    let mut old = Disk::attach(&router, "demo");
    world.arakoon.hold_answer(key::attachments(world.vdisk("demo").vdisk));
    std::thread::scope(|scope| {
        let late =
            scope.spawn(|| Disk::try_attach(&router, "demo", 2, AttachMode::ReadOnly, false));
        until_held(&world);
        let mut new = Disk::try_attach(&router, "demo", 3, AttachMode::Exclusive, true).unwrap();
        new.write(0, &[3; 4096], Durability::Durable);
        world.arakoon.let_answer_go();
        let late = late.join().unwrap().unwrap();
        new.write(0, &[4; 4096], Durability::Durable);
        assert_eq!(late.try_read(0, 4096).unwrap(), [4; 4096]);
    });
    assert_eq!(old.try_write(0, &[1; 4096]).unwrap_err().code, code::ATTACHMENT_FENCED);
    router.stop();
}

#[test]
fn a_resize_whose_answer_was_lost_is_learned_by_the_next_attachment() {
    let world = World::new();
    let router = world.start();
    router.create("demo", 8 * MIB);
    world.arakoon.hold_answer(key::vdisk(world.vdisk("demo").vdisk));
    std::thread::scope(|scope| {
        let resize = scope.spawn(|| router.try_resize("demo", 16 * MIB, false));
        until_held(&world);
        world.arakoon.lose_answer();
        resize.join().unwrap().unwrap_err();
    });
    assert_eq!(router.try_show("demo").unwrap().size_bytes, 8 * MIB, "it wasn't told");
    let mut disk = Disk::attach(&router, "demo");
    disk.write(12 * MIB, &[1; 4096], Durability::Durable);
    assert_eq!(router.try_show("demo").unwrap().size_bytes, 16 * MIB);
    router.stop();
}
