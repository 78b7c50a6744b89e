//! The router as a whole, over loopback sockets, between a fake arakoon and a fake proxy that hold what they are given.
//!
//! Invariant of every test: what an edge was told is true, whatever was killed in between.
#![expect(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::fn_params_excessive_bools,
    reason = "a test that is wrong about its own small numbers fails, as it should"
)]

mod attach;
mod away;
mod balance;
mod checkpoint;
mod contest;
mod delete;
mod dtl;
mod durability;
mod follow;
mod gap;
mod handoff;
mod loss;
mod maps;
mod mode;
mod orphans;
mod relief;
mod room;
mod sessions;
mod sharing;
mod standing;
mod support;
mod takeover;
mod torn;
mod unprotected;
mod zombie;

use support::{Disk, World};
use wire::router::{AttachMode, Durability, ExtentKind, UnmapKind, code};

#[test]
fn what_is_written_is_read_in_any_size_and_alignment() {
    let world = World::new();
    let router = world.start();
    router.create("demo", 64 << 20);
    let mut disk = Disk::attach(&router, "demo");
    let mut random = fastrand::Rng::with_seed(1);
    for _ in 0..300 {
        disk.random_step(&mut random);
    }
    disk.check_all();
    disk.sync();
    disk.check_all();
    router.stop();
}

#[test]
fn everything_acknowledged_survives_a_kill() {
    for seed in 0..3 {
        let world = World::new();
        let mut random = fastrand::Rng::with_seed(seed);
        let mut router = world.start();
        router.create("demo", 32 << 20);
        let mut disk = Disk::attach(&router, "demo");
        for round in 0..4 {
            for _ in 0..60 {
                disk.random_step(&mut random);
            }
            if round == 1 {
                disk.sync();
            }
            router.kill();
            router = world.start();
            disk.reattach(&router);
            disk.check_all();
        }
        disk.sync();
        disk.check_all();
        router.stop();
    }
}

#[test]
fn a_clean_stop_needs_no_log_afterwards_and_a_lost_log_is_a_gap() {
    let world = World::new();
    let router = world.start();
    router.create("demo", 8 << 20);
    let mut disk = Disk::attach(&router, "demo");
    disk.write(0, &[7; 9000], Durability::Normal);
    router.stop();
    assert_eq!(world.vdisk("demo").log_id, 0);
    world.remove("log");
    let router = world.start();
    disk.reattach(&router);
    disk.check_all();
    disk.write(4096, &[8; 5000], Durability::Durable);
    router.kill();
    world.remove("log");
    let router = world.start();
    let error = router.until_settled("demo");
    assert_eq!(error.code, code::GAP, "{error}");
    assert!(error.message.contains("write log"), "{error}");
    router.kill();
}

#[test]
fn a_clean_stop_waits_for_a_change_that_is_still_on_its_way_in() {
    let world = World::new();
    let router = world.start();
    router.create("demo", 8 << 20);
    let mut disk = Disk::attach(&router, "demo");
    disk.write(0, &[7; 4096], Durability::Normal);
    router.stop();
    // With nothing in its memory, it must read what a part of a block is written into.
    let router = world.start();
    disk.reattach(&router);
    world.proxy.set_delay_ms(700);
    let before = world.proxy.reads();
    let writer = std::thread::spawn(move || {
        let written = disk.try_write(512, &[8; 512]);
        (disk, written)
    });
    while world.proxy.reads() == before {
        assert!(!writer.is_finished(), "the block is read before a part of it is written");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    router.stop();
    let (mut disk, written) = writer.join().unwrap();
    assert_eq!(world.vdisk("demo").log_id, 0, "nothing of the vDisk is left behind");
    world.proxy.set_delay_ms(0);
    let router = world.start();
    disk.reattach(&router);
    let sector = disk.try_read(512, 512).unwrap();
    let allowed: &[u8] = if written.is_ok() { &[8] } else { &[7, 8] };
    assert!(allowed.iter().any(|byte| sector == [*byte; 512]), "{written:?}: {sector:?}");
    router.stop();
}

#[test]
fn a_deleted_page_map_comes_back_equal_from_the_tlogs() {
    let world = World::new();
    let router = world.start();
    router.create("demo", 64 << 20);
    let mut disk = Disk::attach(&router, "demo");
    let mut random = fastrand::Rng::with_seed(9);
    for _ in 0..200 {
        disk.random_step(&mut random);
    }
    disk.sync();
    let digest = router.detail("demo", "map_digest");
    let mapped = router.detail("demo", "mapped_bytes");
    router.stop();
    world.remove("map");
    let router = world.start();
    disk.reattach(&router);
    assert_eq!(router.detail("demo", "map_digest"), digest);
    assert_eq!(router.detail("demo", "mapped_bytes"), mapped);
    disk.check_all();
    router.stop();
}

#[test]
fn writes_go_on_while_the_backend_is_out_and_reach_it_afterwards() {
    let world = World::new();
    let router = world.start();
    router.create("demo", 64 << 20);
    let mut disk = Disk::attach(&router, "demo");
    world.proxy.set_out(true);
    for at in 0..24_u64 {
        disk.write(at << 18, &vec![at as u8 + 1; 1 << 18], Durability::Normal);
    }
    disk.flush();
    disk.check_all();
    router.until("demo", |details| details.contains("\"backend\":\"degraded\""));
    world.proxy.set_out(false);
    disk.sync();
    disk.check_all();
    assert!(router.detail("demo", "pending_bytes") == "0");
    router.stop();
}

/// h_16.
#[test]
fn a_full_log_slows_writes_and_refuses_none() {
    let world = World::new();
    world.proxy.set_delay_ms(30);
    let router = world
        .start_with("log_segments = 4\nlog_segment_size = \"8MiB\"\noverlay_limit = \"16MiB\"");
    router.create("demo", 256 << 20);
    let mut disk = Disk::attach(&router, "demo");
    for at in 0..96_u64 {
        disk.write(at << 19, &vec![at as u8 + 1; 1 << 19], Durability::Normal);
    }
    disk.check_all();
    disk.sync();
    router.kill();
    let router = world
        .start_with("log_segments = 4\nlog_segment_size = \"8MiB\"\noverlay_limit = \"16MiB\"");
    disk.reattach(&router);
    disk.check_all();
    router.stop();
}

#[test]
fn hot_blocks_die_in_the_log() {
    let world = World::new();
    let router = world.start();
    router.create("demo", 8 << 20);
    let mut disk = Disk::attach(&router, "demo");
    for round in 0..500_u32 {
        disk.write(0, &vec![(round % 251) as u8; 16384], Durability::Normal);
    }
    assert_eq!(world.proxy.puts(), 0, "four hot clusters fill no SCO");
    disk.sync();
    assert_eq!(world.proxy.puts(), 1);
    disk.check_all();
    router.stop();
}

#[test]
fn p20_a_full_sco_is_one_put_and_the_router_writes_nothing_else_down() {
    let world = World::new();
    let router = world.start();
    router.create("demo", 8 << 20);
    let mut disk = Disk::attach(&router, "demo");
    disk.write(0, &[1; 4096], Durability::Normal);
    disk.sync();
    let (puts, changes) = (world.proxy.puts(), world.arakoon.changes());
    // Four SCOs of this vPool, to the byte.
    for at in 0..16_u64 {
        disk.write(at << 18, &vec![at as u8 + 1; 1 << 18], Durability::Normal);
    }
    router.until("demo", |details| details.contains("\"pending_bytes\":0"));
    assert_eq!(world.proxy.puts() - puts, 4);
    assert_eq!(world.arakoon.changes(), changes, "the proxy's transaction is the only one");
    disk.check_all();
    router.stop();
}

/// h_07.
#[test]
fn a_raised_epoch_fences_the_owner() {
    let world = World::new();
    let router = world.start();
    router.create("demo", 64 << 20);
    let mut disk = Disk::attach(&router, "demo");
    disk.write(0, &[1; 4096], Durability::Normal);
    world.proxy.raise_epoch(world.vdisk("demo").vdisk, 99);
    let error = disk.try_sync().unwrap_err();
    assert!(error.code == code::NOT_OWNER || error.code == code::RECOVERING, "{error:?}");
    assert_eq!(disk.try_write(0, &[2; 4096]).unwrap_err().code, code::NOT_OWNER);
    assert_eq!(disk.try_read(0, 4096).unwrap_err().code, code::NOT_OWNER);
    router.kill();
}

#[test]
fn an_edge_may_do_io_and_nothing_else() {
    let world = World::new();
    let router = world.start();
    router.create("demo", 8 << 20);
    let mut disk = Disk::attach(&router, "demo");
    disk.write(0, &[1; 4096], Durability::Normal);
    let refused = disk.try_sync_as_edge().unwrap_err();
    assert_eq!(refused.code, wire::error::code::FORBIDDEN, "{refused:?}");
    disk.sync();
    router.kill();
}

#[test]
fn an_exclusive_attachment_keeps_others_out_until_they_take_over() {
    let world = World::new();
    let router = world.start();
    router.create("demo", 8 << 20);
    let mut first = Disk::attach(&router, "demo");
    first.write(0, &[1; 4096], Durability::Normal);
    let error = Disk::try_attach(&router, "demo", 2, AttachMode::Exclusive, false).unwrap_err();
    assert_eq!(error.code, code::ATTACHED_ELSEWHERE);
    assert!(error.message.contains("edge-1"), "{error}");
    let mut reader = Disk::try_attach(&router, "demo", 3, AttachMode::ReadOnly, false).unwrap();
    assert_eq!(reader.try_write(0, &[9; 4096]).unwrap_err().code, code::READ_ONLY);
    assert_eq!(reader.try_read(0, 4096).unwrap(), vec![1; 4096]);
    let mut second = Disk::try_attach(&router, "demo", 2, AttachMode::Exclusive, true).unwrap();
    assert_eq!(first.try_write(0, &[3; 4096]).unwrap_err().code, code::ATTACHMENT_FENCED);
    assert_eq!(first.try_reattach(&router).unwrap_err().code, code::ATTACHMENT_FENCED);
    second.try_write(4096, &[4; 4096]).unwrap();
    assert_eq!(second.try_read(0, 8192).unwrap(), [[1; 4096], [4; 4096]].concat());
    router.stop();
}

#[test]
fn after_a_restart_reads_wait_for_the_replay_and_duplicates_change_nothing() {
    let world = World::new();
    let router = world.start();
    router.create("demo", 8 << 20);
    let mut disk = Disk::attach(&router, "demo");
    disk.write(0, &[1; 4096], Durability::Normal);
    disk.write(0, &[2; 4096], Durability::Normal);
    router.kill();
    let router = world.start();
    let attached = disk.try_reattach(&router).unwrap();
    assert_eq!(attached.applied.contiguous.0, 2);
    assert_eq!(disk.try_read(0, 4096).unwrap_err().code, code::RECOVERING);
    assert_eq!(disk.try_status(0, 4096).unwrap_err().code, code::RECOVERING);
    // P3: the first write again, after the second: acknowledged, not applied.
    let lsn = disk.resend(1, 0, &[1; 4096]);
    assert!(lsn >= 1);
    disk.replay_complete();
    assert_eq!(disk.try_read(0, 4096).unwrap(), vec![2; 4096]);
    router.stop();
}

#[test]
fn sixteen_tebibytes_are_trimmed_by_one_record() {
    let world = World::new();
    let router = world.start();
    router.create("big", 16 << 40);
    let mut disk = Disk::try_attach(&router, "big", 1, AttachMode::Exclusive, false).unwrap();
    let first = disk.try_write(1 << 43, &[5; 8192]).unwrap();
    let second = disk.try_unmap(0, 16 << 40, UnmapKind::Trim).unwrap();
    assert_eq!(second.lsn.0, first.lsn.0 + 1);
    let extents = disk.try_status(0, 16 << 40).unwrap();
    assert_eq!(extents, vec![(16 << 40, ExtentKind::Hole)]);
    disk.try_write(1 << 42, &[6; 4096]).unwrap();
    disk.sync();
    let extents = disk.try_status(0, 16 << 40).unwrap();
    assert_eq!(
        extents,
        vec![
            (1 << 42, ExtentKind::Hole),
            (4096, ExtentKind::Data),
            ((16 << 40) - (1 << 42) - 4096, ExtentKind::Hole)
        ]
    );
    assert_eq!(router.detail("big", "mapped_bytes"), "4096");
    router.stop();
}

/// h_18.
#[test]
fn vdisks_are_created_once_resized_carefully_and_deleted_wholly() {
    let world = World::new();
    let router = world.start();
    router.create("demo", 8 << 20);
    assert_eq!(router.try_create("demo", 8 << 20, "default").unwrap_err().code, code::EXISTS);
    assert_eq!(router.try_create("x y", 8 << 20, "default").unwrap_err().code, code::INVALID);
    assert_eq!(router.try_create("odd", 5000, "default").unwrap_err().code, code::INVALID);
    assert_eq!(router.try_create("nopool", 8 << 20, "gold").unwrap_err().code, code::INVALID);
    assert_eq!(router.list(), vec![("demo".to_owned(), 8 << 20)]);
    let mut disk = Disk::attach(&router, "demo");
    assert_eq!(router.try_delete("demo").unwrap_err().code, code::IN_USE);
    assert_eq!(disk.try_write(8 << 20, &[1; 4096]).unwrap_err().code, code::OUT_OF_RANGE);
    router.try_resize("demo", 16 << 20, false).unwrap();
    disk.try_write(8 << 20, &[1; 4096]).unwrap();
    assert_eq!(router.try_resize("demo", 8 << 20, false).unwrap_err().code, code::INVALID);
    let error = router.try_resize("demo", 8 << 20, true).unwrap_err();
    assert!(error.message.contains("data"), "{error}");
    disk.try_unmap(8 << 20, 8 << 20, UnmapKind::Trim).unwrap();
    router.try_resize("demo", 8 << 20, true).unwrap();
    disk.detach();
    router.try_delete("demo").unwrap();
    assert!(router.list().is_empty());
    assert_eq!(world.proxy.namespaces(), 0);
    assert_eq!(router.try_show("demo").unwrap_err().code, code::NO_VDISK);
    router.create("demo", 8 << 20);
    router.stop();
}

/// h_20.
#[test]
fn damage_in_the_backend_is_an_error_and_never_zeroes() {
    let world = World::new();
    let router = world.start();
    router.create("demo", 8 << 20);
    let mut disk = Disk::attach(&router, "demo");
    disk.write(0, &[1; 16384], Durability::Normal);
    disk.sync();
    router.stop();
    world.proxy.flip_byte(5000);
    let router = world.start();
    disk.reattach(&router);
    // It costs the cluster that it hit, read alone or with its neighbours, and none of those.
    assert_eq!(disk.try_read(4096, 4096).unwrap_err().code, code::UNREADABLE);
    assert_eq!(disk.try_read(0, 4096).unwrap(), [1; 4096]);
    assert_eq!(disk.try_read(4096, 4096).unwrap_err().code, code::UNREADABLE);
    assert_eq!(disk.try_read(0, 16384).unwrap_err().code, code::UNREADABLE);
    world.proxy.flip_byte(5000);
    disk.check_all();
    router.stop();
}

/// h_20.
#[test]
fn a_payload_damaged_on_the_way_is_refused() {
    let world = World::new();
    let router = world.start();
    router.create("demo", 8 << 20);
    let mut disk = Disk::attach(&router, "demo");
    assert_eq!(disk.write_with_bad_checksum().unwrap_err().code, code::BAD_CHECKSUM);
    disk.check_all();
    router.stop();
}

#[test]
fn a_second_router_sends_callers_to_the_owner() {
    let world = World::new();
    let owner = world.start();
    owner.create("demo", 8 << 20);
    let other = world.start_other();
    let error = Disk::try_attach(&other, "demo", 1, AttachMode::Exclusive, false).unwrap_err();
    assert_eq!(error.code, code::NOT_OWNER);
    let location: wire::router::Location = wire::decode_all(error.detail).unwrap();
    assert_eq!(location.owner.addresses, vec![owner.address()]);
    assert_eq!(other.locate("demo").owner, location.owner);
    other.stop();
    owner.stop();
}
