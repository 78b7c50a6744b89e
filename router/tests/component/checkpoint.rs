//! Page maps as objects of the backend, and from other routers: what is replayed without a copy is a tail (L6), whatever
//! was killed, damaged or late on the way (P18).

use std::time::Duration;

use model::NamespaceId;
use router_core::checkpoint::{PartMeta, namespace_of};
use wire::facts::key;
use wire::router::Durability;

use crate::support::gate::Moment;
use crate::support::{Disk, Router, WITHIN, World, until};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 32 * MIB;
const SCO: u64 = 256 << 10;
/// Checkpoints after few small SCOs, in several objects.
const EVERY: u64 = 8;
const OFTEN: &str = "log_segments = 6\nlog_segment_size = \"8MiB\"\nsco_size = \"256KiB\"\nmap_follow_ms = 100\nmap_checkpoint_every = 8\nmap_part_size = \"8KiB\"";
/// The same, but maps of others aren't followed.
const ALONE: &str = "log_segments = 6\nlog_segment_size = \"8MiB\"\nsco_size = \"256KiB\"\nmap_follow_ms = 600000\nmap_checkpoint_every = 8\nmap_part_size = \"8KiB\"";
/// After what was waited for, when nothing comes any more.
const AFTERWARDS: Duration = Duration::from_millis(300);

fn number(router: &Router, field: &str) -> u64 {
    router.detail("demo", field).parse().unwrap()
}

/// SCO of the newest checkpoint as the owner tells.
fn checkpoint_of(owner: &Router) -> u64 {
    let details = owner.try_show("demo").unwrap().details_json;
    let told = details.split_once("\"checkpoint\":{\"sco\":");
    told.map_or(0, |(_, rest)| rest.split(',').next().unwrap().parse().unwrap())
}

fn until_checkpointed(owner: &Router) {
    until("a checkpoint near the head", || number(owner, "objects") < checkpoint_of(owner) + EVERY);
}

fn beside(world: &World) -> NamespaceId {
    namespace_of(world.vdisk("demo").vdisk)
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

/// What lies there is one whole checkpoint and nothing else.
fn is_one_whole(world: &World) -> bool {
    let parts = world.proxy.objects(beside(world));
    let metas: Vec<PartMeta> =
        parts.iter().map(|(_, meta)| PartMeta::decode(meta).unwrap()).collect();
    let in_turn = metas.iter().zip(0..).all(|(meta, index)| meta.index == index);
    let of_one = metas.windows(2).all(|two| two[0].map == two[1].map);
    let ends = metas.iter().position(|meta| meta.last);
    in_turn && of_one && ends.is_some_and(|end| end + 1 == metas.len())
}

#[test]
fn a_router_without_a_map_replays_only_what_is_behind_the_checkpoint() {
    let world = World::new();
    let owner = world.start_with(ALONE);
    owner.create("demo", SIZE);
    let mut disk = Disk::attach(&owner, "demo");
    scatter(&mut disk, 1, 60);
    until_checkpointed(&owner);
    until("older ones are deleted", || is_one_whole(&world));
    assert!(3 < world.proxy.objects(beside(&world)).len(), "it has several parts");
    let (objects, newest) = (number(&owner, "objects"), checkpoint_of(&owner));
    let digest = owner.detail("demo", "map_digest");
    assert!(objects < newest + EVERY && 40 < newest, "{newest} of {objects}");
    owner.kill();
    world.remove("map");
    let before = world.proxy.reads();
    let owner = world.start_with(ALONE);
    disk.reattach(&owner);
    assert_eq!(number(&owner, "map_followed"), objects - newest);
    assert_eq!(owner.detail("demo", "map_digest"), digest);
    // Parts of the checkpoint, TLogs of the tail, and that of the head.
    let parts = world.proxy.objects(beside(&world)).len() as u64;
    let reads = world.proxy.reads() - before;
    assert!(reads <= parts + (objects - newest) + 1, "{reads} reads");
    let told = owner.events("map-fetched");
    assert!(told.len() == 1 && told[0].contains("checkpoint in the backend"), "{told:?}");
    assert_eq!(checkpoint_of(&owner), newest, "the next life knows it");
    disk.check_all();
    owner.stop();
}

#[test]
fn a_damaged_checkpoint_costs_time_and_nothing_else() {
    for place in 0..4 {
        let world = World::new();
        let owner = world.start_with(ALONE);
        owner.create("demo", SIZE);
        let mut disk = Disk::attach(&owner, "demo");
        scatter(&mut disk, 2, 40);
        until_checkpointed(&owner);
        until("older ones are deleted", || is_one_whole(&world));
        let parts = world.proxy.objects(beside(&world)).len();
        owner.kill();
        world.remove("map");
        world.proxy.damage(beside(&world), place * (parts - 1) / 3);
        let owner = world.start_with(ALONE);
        disk.reattach(&owner);
        assert_eq!(number(&owner, "map_followed"), number(&owner, "objects"));
        assert_eq!(owner.events("map-rebuilt").len(), 1, "{:?}", owner.events("map-fetched"));
        disk.check_all();
        // The next one is whole again.
        scatter(&mut disk, 3, 20);
        until_checkpointed(&owner);
        owner.kill();
        world.remove("map");
        let owner = world.start_with(ALONE);
        disk.reattach(&owner);
        assert_eq!(owner.events("map-fetched").len(), 1);
        disk.check_all();
        owner.stop();
    }
}

#[test]
fn a_new_follower_takes_the_map_from_another_router() {
    let world = World::new();
    let owner = world.start_with(OFTEN);
    owner.create("demo", SIZE);
    let mut disk = Disk::attach(&owner, "demo");
    scatter(&mut disk, 4, 50);
    until_checkpointed(&owner);
    let objects = number(&owner, "objects");
    let before = world.proxy.reads();
    let other = world.start_other_with(OFTEN);
    let holds = |lsn: u64| other.maps().iter().any(|map| map.last_lsn.0 == lsn);
    let committed = number(&owner, "committed_lsn");
    until("it follows", || holds(committed));
    let reads = world.proxy.reads() - before;
    assert!(reads < EVERY, "{reads} TLogs of {objects} were read");
    let told = other.events("map-fetched");
    assert!(told.len() == 1 && told[0].contains("from router-1"), "{told:?}");
    owner.transfer("demo", world.id_of("router-2"));
    disk.reattach(&other);
    disk.check_all();
    assert!(other.maps()[0].checkpoint.is_some() || checkpoint_of(&other) == 0);
    owner.stop();
    other.stop();
}

#[test]
fn when_one_router_dies_while_the_map_is_read_from_it_the_next_one_is_asked() {
    let world = World::new().with_cables();
    let owner = world.start_with(OFTEN);
    let cable = &world.cables().dtl;
    let other = world.start_other_with(&format!("addresses = [\"{}\"]\n{OFTEN}", cable.endpoint));
    cable.lead_to(other.endpoint());
    owner.create("demo", SIZE);
    let mut disk = Disk::attach(&owner, "demo");
    scatter(&mut disk, 5, 50);
    until_checkpointed(&owner);
    let committed = number(&owner, "committed_lsn");
    until("the second follows", || other.maps().iter().any(|map| map.last_lsn.0 == committed));
    // A few parts, and it is dead.
    cable.break_after(20 << 10);
    let third = world.start_third_with(OFTEN);
    until("the third follows", || third.maps().iter().any(|map| map.last_lsn.0 == committed));
    let told = third.events("map-fetched");
    assert!(told.len() == 1 && told[0].contains("from router-1"), "{told:?}");
    assert!(cable.is_broken(), "the second was asked first");
    owner.transfer("demo", world.id_of("router-3"));
    disk.reattach(&third);
    disk.check_all();
    for router in [owner, other, third] {
        router.stop();
    }
}

#[test]
fn when_no_router_is_left_to_ask_the_checkpoint_is_taken() {
    let world = World::new().with_cables();
    let owner = world.start_with(OFTEN);
    let cable = &world.cables().dtl;
    let other = world.start_other_with(&format!("addresses = [\"{}\"]\n{OFTEN}", cable.endpoint));
    cable.lead_to(other.endpoint());
    owner.create("demo", SIZE);
    let mut disk = Disk::attach(&owner, "demo");
    scatter(&mut disk, 6, 50);
    until_checkpointed(&owner);
    let (committed, newest) = (number(&owner, "committed_lsn"), checkpoint_of(&owner));
    until("the second follows", || other.maps().iter().any(|map| map.last_lsn.0 == committed));
    // It leaves all in the backend; who takes it over has followed nothing.
    owner.stop();
    world.arakoon.expire(&key::router_session(world.id_of("router-1")));
    cable.break_after(20 << 10);
    let third = world.start_third_with(ALONE);
    disk.reattach(&third);
    let told = third.events("map-fetched");
    assert!(told.len() == 1 && told[0].contains("checkpoint in the backend"), "{told:?}");
    assert!(told[0].contains(&format!("SCO {newest};")), "{told:?}");
    assert!(cable.is_broken(), "the second was asked first");
    disk.check_all();
    other.stop();
    third.stop();
}

/// As many messages as there are; what is there afterwards is one whole checkpoint, and it is taken.
fn killed_at(number_of_message: usize, moment: Moment) -> bool {
    let world = World::new();
    let owner = world.start_with(ALONE);
    owner.create("demo", SIZE);
    let mut disk = Disk::attach(&owner, "demo");
    scatter(&mut disk, 7, 30);
    until_checkpointed(&owner);
    until("the first is whole", || is_one_whole(&world));
    let first = checkpoint_of(&owner);
    let watch = world.checkpoint_gate.arm(number_of_message, moment);
    let mut owner = Some(owner);
    for at in 0..EVERY * 2 {
        disk.write(at * SCO, &vec![at as u8 + 1; SCO as usize], Durability::Durable);
    }
    let done = || {
        let parts = world.proxy.objects(beside(&world));
        let newest = parts.last().and_then(|(_, meta)| PartMeta::decode(meta)).unwrap();
        is_one_whole(&world) && first < newest.map.number.0
    };
    let struck = watch.until(done, AFTERWARDS, || owner.take().unwrap().kill());
    world.checkpoint_gate.disarm();
    if struck {
        assert!(complete_ones(&world) >= 1, "message {number_of_message}: none is whole");
    }
    // The next life tidies up at its first look, and goes on where it was.
    if let Some(owner) = owner {
        owner.kill();
    }
    world.remove("map");
    let owner = world.start_with(ALONE);
    disk.reattach(&owner);
    assert_eq!(owner.events("map-fetched").len(), 1, "message {number_of_message}");
    disk.sync();
    until_checkpointed(&owner);
    until("one whole checkpoint is left", || is_one_whole(&world));
    disk.check_all();
    disk.detach();
    owner.try_delete("demo").unwrap();
    assert_eq!(world.proxy.namespaces(), 0, "message {number_of_message}: something is left");
    owner.stop();
    struck
}

fn complete_ones(world: &World) -> usize {
    let listed: Vec<_> = world
        .proxy
        .objects(beside(world))
        .into_iter()
        .map(|(object, meta)| router_core::checkpoint::Listed {
            object,
            bytes: 1,
            meta: PartMeta::decode(&meta),
        })
        .collect();
    router_core::checkpoint::complete(&listed).len()
}

#[test]
fn p18_an_owner_killed_at_any_message_of_a_checkpoint_leaves_the_one_before_or_a_newer_one() {
    for moment in [Moment::Before, Moment::After] {
        let mut message = 0;
        while killed_at(message, moment) {
            message += 1;
            assert!(message < 60, "a checkpoint has an end");
        }
        assert!(5 < message, "only {message} messages");
    }
}

#[test]
fn p18_an_owner_of_the_past_neither_completes_nor_makes_nor_deletes() {
    let world = World::new();
    let owner = world.start_with(ALONE);
    owner.create("demo", SIZE);
    let mut disk = Disk::attach(&owner, "demo");
    scatter(&mut disk, 8, 10);
    until_checkpointed(&owner);
    until("the first is whole", || is_one_whole(&world));
    // Somebody else looked after them since.
    let epoch = world.vdisk("demo").epoch.0;
    world.proxy.raise_epoch(beside(&world), epoch + 1);
    let first = world.proxy.objects(beside(&world));
    scatter(&mut disk, 9, 20);
    std::thread::sleep(AFTERWARDS);
    assert_eq!(world.proxy.objects(beside(&world)), first, "fenced");
    owner.kill();

    // Where there was none yet, none is made by who doesn't hold the vDisk's own namespace any more.
    let world = World::new();
    let owner = world.start_with(ALONE);
    owner.create("demo", SIZE);
    let mut disk = Disk::attach(&owner, "demo");
    scatter(&mut disk, 8, 4);
    // It looks, finds none, and is about to make the namespace.
    let watch = world.checkpoint_gate.arm(1, Moment::Before);
    for at in 0..EVERY {
        disk.write(at * SCO, &vec![at as u8 + 1; SCO as usize], Durability::Durable);
    }
    let vdisk = world.vdisk("demo");
    let claim = || world.proxy.raise_epoch(vdisk.vdisk, vdisk.epoch.0 + 1);
    assert!(watch.until(|| true, WITHIN, claim));
    std::thread::sleep(AFTERWARDS);
    assert_eq!(world.proxy.namespaces(), 1, "nothing was made beside it");
    owner.kill();
}

#[test]
fn a_deletion_leaves_no_checkpoint_behind_killed_in_between_or_not() {
    for moment in [Moment::Before, Moment::After] {
        let world = World::new();
        let owner = world.start_with(ALONE);
        owner.create("demo", SIZE);
        let mut disk = Disk::attach(&owner, "demo");
        scatter(&mut disk, 10, 20);
        until_checkpointed(&owner);
        until("it rests", || is_one_whole(&world));
        disk.detach();
        assert_eq!(world.proxy.namespaces(), 2);
        let watch = world.checkpoint_gate.arm(0, moment);
        let mut owner = Some(owner);
        let deleting = owner.as_ref().unwrap().begin_delete("demo");
        assert!(watch.until(|| true, WITHIN, || owner.take().unwrap().kill()));
        let _ = deleting.join();
        let owner = world.start_with(ALONE);
        until("the deletion is finished", || world.proxy.namespaces() == 0);
        until("its record is gone", || owner.list().is_empty());
        owner.stop();
    }
}
