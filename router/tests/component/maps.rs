//! Page maps are derived (L6): whatever is slow, silent, gone or damaged about them costs time, and holds up no opening for
//! long.

use std::time::{Duration, Instant};

use router_core::checkpoint::{PartMeta, namespace_of};
use wire::dtl::DtlMode;
use wire::facts::key;
use wire::proxy::method;
use wire::router::{Durability, code};

use crate::support::proxy::{Beside, Contents, Trouble};
use crate::support::{Disk, Router, World, until};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 32 * MIB;
const SCO: u64 = 256 << 10;
/// Checkpoints after few small SCOs, in several objects; maps of others aren't followed.
const EVERY: u64 = 8;
const ALONE: &str = "log_segments = 6\nlog_segment_size = \"8MiB\"\nsco_size = \"256KiB\"\nmap_follow_ms = 600000\nmap_checkpoint_every = 8\nmap_part_size = \"8KiB\"";
/// The same, but they are.
const OFTEN: &str = "log_segments = 6\nlog_segment_size = \"8MiB\"\nsco_size = \"256KiB\"\nmap_follow_ms = 100\nmap_checkpoint_every = 8\nmap_part_size = \"8KiB\"";
/// After what was waited for, when nothing comes any more.
const AFTERWARDS: Duration = Duration::from_millis(300);
/// Half of what a router once waited for a list of checkpoints.
const SOON: Duration = Duration::from_secs(30);

fn number(router: &Router, name: &str, field: &str) -> u64 {
    router.detail(name, field).parse().unwrap()
}

/// What lies beside a vDisk is one complete checkpoint: of which SCO it is.
fn checkpoint_of(world: &World, name: &str) -> Option<u64> {
    let parts = world.proxy.objects(namespace_of(world.vdisk(name).vdisk));
    let metas: Vec<PartMeta> =
        parts.iter().map(|(_, meta)| PartMeta::decode(meta).unwrap()).collect();
    let in_turn = metas.iter().zip(0..).all(|(meta, index)| meta.index == index);
    let ends = metas.iter().position(|meta| meta.last).is_some_and(|end| end + 1 == metas.len());
    (in_turn && ends).then(|| metas[0].map.number.0)
}

/// Writes all over the vDisk, so that its map has many pages.
fn scatter(disk: &mut Disk, seed: u64, writes: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    for _ in 0..writes {
        let byte = random.u8(1..);
        let at = random.u64(0..(SIZE - SCO) / 4096) * 4096;
        disk.write(at, &vec![byte; SCO as usize], Durability::Normal);
    }
    disk.sync();
}

/// Writes until one checkpoint is all that lies beside the vDisk, and no other is due; says of which SCO it is.
fn until_checkpointed((world, owner): (&World, &Router), disk: &mut Disk, name: &str) -> u64 {
    let before = number(owner, name, "objects");
    scatter(disk, before, 50);
    let objects = number(owner, name, "objects");
    assert!(before + 2 * EVERY < objects);
    let newest = || checkpoint_of(world, name).filter(|newest| objects < newest + EVERY);
    until("a checkpoint near the head", || newest().is_some());
    assert!(3 < world.proxy.objects(namespace_of(world.vdisk(name).vdisk)).len(), "it has parts");
    newest().unwrap()
}

/// A vDisk with a checkpoint, whose router was killed and lost its map.
fn without_a_map() -> (World, Disk, u64) {
    let world = World::new();
    let owner = world.start_with(ALONE);
    owner.create("demo", SIZE);
    let mut disk = Disk::attach(&owner, "demo");
    let newest = until_checkpointed((&world, &owner), &mut disk, "demo");
    owner.kill();
    world.remove("map");
    (world, disk, newest)
}

/// A claimant waits until the former owner has no right to read any more (P16): that is time enough for the map.
#[test]
fn l9_a_claimant_follows_the_backend_while_it_fences_the_former_owner() {
    let world = World::new().with_dtl(DtlMode::Sync);
    let (owner, other) = (world.start_with(ALONE), world.start_other_with(ALONE));
    owner.create("demo", SIZE);
    let mut disk = Disk::attach(&owner, "demo");
    owner.until_in_sync("demo");
    scatter(&mut disk, 1, 5);
    let vdisk = world.vdisk("demo").vdisk;
    owner.kill();
    world.proxy.trouble(method::RAISE_EPOCH, Beside::No, Trouble::Silent);
    let brought = || {
        let head = world.proxy.objects(vdisk).last().map(|(object, _)| *object);
        head.is_some() && other.maps().iter().any(|map| map.vdisk == vdisk && map.object == head)
    };
    assert!(!brought(), "it follows no maps of others");
    std::thread::scope(|scope| {
        let attach = scope.spawn(|| disk.reattach(&other));
        until("the map is brought while the raise waits", brought);
        until("the raise waits", || 0 < world.proxy.silenced());
        world.proxy.no_trouble();
        attach.join().unwrap();
    });
    disk.check_all();
    other.stop();
}

#[test]
fn l8_a_router_that_lost_all_its_maps_fetches_a_few_at_a_time() {
    const VDISKS: usize = 8;
    let world = World::new();
    let owner = world.start_with(ALONE);
    let names: Vec<String> = (0..VDISKS).map(|at| format!("demo-{at}")).collect();
    let mut disks: Vec<Disk> = Vec::new();
    for name in &names {
        owner.create(name, SIZE);
        let mut disk = Disk::attach(&owner, name);
        until_checkpointed((&world, &owner), &mut disk, name);
        disks.push(disk);
    }
    owner.kill();
    world.remove("map");
    world.proxy.set_delay_ms(20);
    let owner = world.start_with(ALONE);
    for disk in &mut disks {
        disk.reattach(&owner);
    }
    world.proxy.set_delay_ms(0);
    let at_once = world.proxy.parts_at_once();
    assert!((1..=4).contains(&at_once), "{at_once} at once");
    let brought = owner.events("map-fetched").len() + owner.events("map-rebuilt").len();
    assert_eq!(brought, VDISKS);
    for disk in &disks {
        disk.check_all();
    }
    owner.stop();
}

/// With a SCO for every few KiB, checkpoints every so many SCOs would write many times what users do (P26).
#[test]
fn p26_checkpoints_cost_an_eighth_of_what_is_written_however_small_its_scos_are() {
    let world = World::new();
    let owner = world.start_with(ALONE);
    owner.create("demo", SIZE);
    let mut disk = Disk::attach(&owner, "demo");
    let mut random = fastrand::Rng::with_seed(3);
    // Each write is a SCO, and the map is on disk as of every eighth.
    let mut write = |disk: &mut Disk, scos: u64, len: usize| {
        for _ in 0..scos {
            let at = random.u64(0..(SIZE - SCO) / 4096) * 4096;
            disk.write(at, &vec![random.u8(1..); len], Durability::Normal);
            disk.sync();
        }
    };
    write(&mut disk, 6 * EVERY, SCO as usize);
    until("a checkpoint", || checkpoint_of(&world, "demo") == Some(6 * EVERY));
    let small = 8 * world.proxy.bytes(namespace_of(world.vdisk("demo").vdisk)) / 4096;
    assert!(5 * EVERY < small, "{small} SCOs of 4 KiB are eight times its bytes");
    write(&mut disk, 3 * EVERY, 4096);
    std::thread::sleep(AFTERWARDS);
    assert_eq!(checkpoint_of(&world, "demo"), Some(6 * EVERY), "too little was written");
    // What was written before an owner died counts for the next one.
    owner.kill();
    let owner = world.start_with(ALONE);
    disk.reattach(&owner);
    write(&mut disk, (small + 2 - 3 * EVERY).next_multiple_of(EVERY), 4096);
    let newer = || checkpoint_of(&world, "demo").is_some_and(|newest| 6 * EVERY < newest);
    until("the next checkpoint", newer);
    disk.check_all();
    owner.stop();
}

#[test]
fn l6_an_opening_does_without_checkpoints_that_are_silent_or_out() {
    for method in [method::LIST_OBJECTS, method::READ_OBJECT] {
        for trouble in [Trouble::Silent, Trouble::Out, Trouble::Refused] {
            let (world, mut disk, newest) = without_a_map();
            world.proxy.trouble(method, Beside::Yes, trouble);
            let start = Instant::now();
            let owner = world.start_with(ALONE);
            disk.reattach(&owner);
            assert!(start.elapsed() < SOON, "{trouble:?}: {:?}", start.elapsed());
            assert_eq!(owner.events("not-opened"), [""; 0]);
            let objects = number(&owner, "demo", "objects");
            assert!(newest <= objects, "{newest} of {objects}");
            assert_eq!(number(&owner, "demo", "map_followed"), objects, "{trouble:?}");
            disk.check_all();
            world.proxy.no_trouble();
            owner.stop();
        }
    }
}

#[test]
fn l6_an_opening_takes_the_map_from_a_copier_that_still_waits_for_the_backend() {
    let world = World::new();
    let owner = world.start_with(ALONE);
    owner.create("demo", SIZE);
    let mut disk = Disk::attach(&owner, "demo");
    scatter(&mut disk, 1, 6);
    // It leaves all in the backend.
    owner.stop();
    world.arakoon.expire(&key::router_session(world.id_of("router-1")));
    world.proxy.trouble(method::READ_OBJECT, Beside::No, Trouble::Silent);
    let other = world.start_other_with(OFTEN);
    until("it copies the map", || 0 < world.proxy.silenced());
    std::thread::scope(|scope| {
        let opening = scope.spawn(|| disk.reattach(&other));
        until("the opening follows the TLogs itself", || 1 < world.proxy.silenced());
        world.proxy.no_trouble();
        opening.join().unwrap();
    });
    assert_eq!(other.events("not-opened"), [""; 0]);
    disk.check_all();
    other.stop();
}

#[test]
fn a_checkpoint_that_is_replaced_while_it_is_read_is_followed_by_the_newer_one() {
    for newer_stays in [true, false] {
        let world = World::new();
        let owner = world.start_with(ALONE);
        owner.create("demo", SIZE);
        let mut disk = Disk::attach(&owner, "demo");
        let first = until_checkpointed((&world, &owner), &mut disk, "demo");
        let beside = namespace_of(world.vdisk("demo").vdisk);
        let old: Contents = world.proxy.contents(beside);
        let second = until_checkpointed((&world, &owner), &mut disk, "demo");
        let new = world.proxy.contents(beside);
        let third = until_checkpointed((&world, &owner), &mut disk, "demo");
        let newest = world.proxy.contents(beside);
        let objects = number(&owner, "demo", "objects");
        assert!(first < second && second < third);
        owner.kill();
        world.remove("map");
        // Its owner replaces it when two parts of it were read.
        world.proxy.set_contents(beside, old);
        world.proxy.at_part(2, move |proxy| {
            proxy.set_contents(beside, new);
            if !newer_stays {
                // And that one, too: faster than anybody can read.
                proxy.at_part(1, move |proxy| proxy.set_contents(beside, newest));
            }
        });
        let owner = world.start_with(ALONE);
        disk.reattach(&owner);
        let told = owner.events("map-fetched");
        if newer_stays {
            assert!(told.len() == 1 && told[0].contains(&format!("SCO {second};")), "{told:?}");
            assert_eq!(number(&owner, "demo", "map_followed"), objects - second);
        } else {
            assert_eq!((told.len(), owner.events("map-rebuilt").len()), (0, 1), "{told:?}");
        }
        disk.check_all();
        owner.stop();
    }
}

/// Who reads while a damaged map is rebuilt is told to wait, and asks for no further rebuild: with a large map each could
/// earn the next (L8).
#[test]
fn l8_a_damaged_map_is_rebuilt_once_however_many_read_meanwhile() {
    let world = World::new();
    let owner = world.start_with(ALONE);
    owner.create("demo", SIZE);
    let mut disk = Disk::attach(&owner, "demo");
    until_checkpointed((&world, &owner), &mut disk, "demo");
    owner.stop();
    // Opened anew, so that no page is in memory.
    let owner = world.start_with(ALONE);
    disk.reattach(&owner);
    let brought = || owner.events("map-fetched").len() + owner.events("map-rebuilt").len();
    assert_eq!(brought(), 0, "it is there");
    world.spoil_maps();
    world.proxy.trouble(method::READ_HEAD, Beside::No, Trouble::Silent);
    let read = |at: u64| disk.try_read(at * SCO, 4096).map(drop).map_err(|error| error.code);
    until("it is being rebuilt", || {
        let one = read(3);
        assert!(one.is_ok() || one == Err(code::RECOVERING), "{one:?}");
        0 < world.proxy.silenced()
    });
    for at in 0..SIZE / SCO {
        assert_eq!(read(at), Err(code::RECOVERING));
    }
    assert_eq!(brought(), 0, "it waits for the backend");
    world.proxy.no_trouble();
    disk.check_all();
    std::thread::sleep(AFTERWARDS);
    disk.check_all();
    assert_eq!(brought(), 1, "{:?}", owner.events("map-rebuilt"));
    owner.stop();
}
