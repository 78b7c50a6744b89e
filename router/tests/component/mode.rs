//! The mode of a vDisk's DTL changes while the vDisk is served: whatever dies at whatever message, what was acknowledged is
//! where arakoon's record says.

use std::time::{Duration, Instant};

use model::EdgeId;
use wire::dtl::{DtlMode, DtlState};
use wire::facts::{
    AttachmentMode, AttachmentRecord, AttachmentsRecord, DtlRecord, Record, VdiskRecord, key,
};
use wire::router::{AttachMode, Durability, SetVdisk, VdiskInfo, code, method};
use wire::{ErrorClass, WireError};

use crate::support::gate::Moment;
use crate::support::{Disk, Held, Router, WITHIN, World};

const MIB: u64 = 1 << 20;
/// Far more messages than a change needs.
const STEPS_MAX: usize = 200;
/// What a router still asks when the change is through; less of it is struck on a slow machine.
const AFTERWARDS: Duration = Duration::from_millis(400);

fn setting(dtl: Option<DtlMode>, dtl_targets: Option<u8>) -> SetVdisk {
    SetVdisk { name: "demo".into(), dtl, dtl_targets }
}

fn try_set(router: &Router, dtl: DtlMode) -> Result<VdiskInfo, WireError> {
    router.call(method::SET_VDISK, &setting(Some(dtl), None))
}

/// As the CLI does: again while it may still come about.
fn set(router: &Router, dtl: DtlMode) {
    let start = Instant::now();
    while let Err(error) = try_set(router, dtl) {
        assert_eq!(error.class, ErrorClass::Retry, "{error}");
        assert!(start.elapsed() < WITHIN, "{error}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn record(world: &World) -> Option<DtlRecord> {
    let key = key::vdisk_dtl(world.vdisk("demo").vdisk);
    world.arakoon.get(&key).map(|bytes| DtlRecord::from_record(bytes).unwrap())
}

fn recorded(world: &World) -> DtlMode {
    record(world).map_or(DtlMode::NoTarget, |record| record.mode)
}

const NONE: &str = r#""dtl":{"mode":"none""#;

/// The mode that its owner says it has.
fn shown(owner: &Router) -> String {
    let details = owner.try_show("demo").unwrap().details_json;
    let (_, rest) = details.split_once(r#""dtl":{"mode":""#).unwrap();
    rest.split('"').next().unwrap().to_owned()
}

/// Two routers; the first one's vDisk "demo" has this mode.
fn served_as(mode: DtlMode) -> (World, Router, Router, Disk) {
    let world = World::new();
    let (owner, other) = (world.start(), world.start_other());
    owner.try_create_with("demo", MIB, "default", Some(mode)).unwrap();
    let disk = Disk::attach(&owner, "demo");
    if mode != DtlMode::NoTarget {
        owner.until_in_sync("demo");
    }
    (world, owner, other, disk)
}

/// Some that are flushed, and some that are only acknowledged.
fn write_some(disk: &mut Disk, seed: u8) {
    for at in 0..8_u8 {
        let durability = if at == 5 { Durability::Durable } else { Durability::Normal };
        disk.write(u64::from(at) * 6000, &[seed + at; 5000], durability);
    }
}

#[test]
fn l2_a_vdisk_that_gets_a_dtl_outlives_its_owner_and_one_that_loses_it_stays_with_its_owner() {
    let (world, owner, other, mut disk) = served_as(DtlMode::NoTarget);
    write_some(&mut disk, 1);
    set(&owner, DtlMode::Sync);
    disk.reattach(&owner);
    disk.check_all();
    owner.until_in_sync("demo");
    write_some(&mut disk, 20);
    owner.kill();
    world.expire_owner("demo");
    disk.reattach(&other);
    disk.check_all();
    // And back, where it is now: who held a copy of its log isn't asked any more.
    let owner = world.start();
    other.until_in_sync("demo");
    write_some(&mut disk, 40);
    let generation = record(&world).unwrap().facts.generation;
    set(&other, DtlMode::NoTarget);
    let after = record(&world).unwrap();
    assert_eq!((after.mode, after.facts.state), (DtlMode::NoTarget, DtlState::Standalone));
    assert_eq!((after.facts.targets.len(), after.facts.previous), (0, None));
    assert!(generation < after.facts.generation, "a former log could count again");
    disk.reattach(&other);
    write_some(&mut disk, 60);
    other.kill();
    world.expire_owner("demo");
    let refused = disk.try_reattach(&owner).unwrap_err();
    assert_eq!(refused.code, code::NOT_OWNER, "{refused}");
    owner.kill();
    let other = world.start_other();
    disk.reattach(&other);
    disk.check_all();
    other.stop();
}

/// One change with its owner killed at this step; false when it was through before.
fn kill_at(number: usize, moment: Moment, (from, to): (DtlMode, DtlMode)) -> bool {
    let (world, owner, other, mut disk) = served_as(from);
    write_some(&mut disk, 1);
    let watch = world.gate.arm(number, moment);
    let asked = owner.begin::<_, VdiskInfo>(method::SET_VDISK, setting(Some(to), None));
    let mut owner = Some(owner);
    let struck = watch.until(|| asked.is_finished(), AFTERWARDS, || owner.take().unwrap().kill());
    world.gate.disarm();
    let _outcome = asked.join().unwrap();
    // Behind whatever was held.
    other.list();
    let now = recorded(&world);
    println!("{from:?} to {to:?}, killed {moment:?} message {number}: {struck}; it is {now:?}");
    let Some(owner) = owner else {
        world.expire_owner("demo");
        let back = if now == DtlMode::NoTarget {
            let refused = disk.try_reattach(&other).unwrap_err();
            assert_eq!(refused.code, code::NOT_OWNER, "step {number}: {refused}");
            other.kill();
            let back = world.start();
            disk.reattach(&back);
            back
        } else {
            disk.reattach(&other);
            other
        };
        disk.check_all();
        disk.write(0, &[99; 8192], Durability::Durable);
        // What it became lasts, and can be changed further.
        set(&back, to);
        assert_eq!(recorded(&world), to, "step {number}");
        disk.reattach(&back);
        disk.check_all();
        back.stop();
        return struck;
    };
    assert_eq!(now, to);
    disk.reattach(&owner);
    disk.check_all();
    owner.stop();
    other.stop();
    struck
}

/// In CI one moment of each message, in the soak both.
fn at_every_step(change: (DtlMode, DtlMode)) {
    let soak = std::env::var_os("HOLDFAST_SOAK").is_some();
    let moments = |number| match number % 2 {
        _ if soak => &[Moment::Before, Moment::After][..],
        0 => &[Moment::Before],
        _ => &[Moment::After],
    };
    let struck =
        |number: &usize| moments(*number).iter().all(|moment| kill_at(*number, *moment, change));
    let through = (0..STEPS_MAX).find(|number| !struck(number));
    let through = through.expect("a change takes fewer messages");
    assert!(3 <= through, "{through} messages are too few for a change");
}

#[test]
fn l1_an_owner_killed_at_any_step_of_getting_a_dtl_loses_nothing() {
    at_every_step((DtlMode::NoTarget, DtlMode::Sync));
}

#[test]
fn l1_an_owner_killed_at_any_step_of_losing_its_dtl_loses_nothing() {
    at_every_step((DtlMode::Sync, DtlMode::NoTarget));
}

#[test]
fn l1_an_owner_killed_at_any_step_of_a_change_in_place_loses_nothing() {
    at_every_step((DtlMode::Sync, DtlMode::Async));
}

#[test]
fn between_sync_and_async_nobody_waits_and_no_copy_is_made_anew() {
    let (world, owner, other, mut disk) = served_as(DtlMode::Sync);
    let (epoch, facts) = (world.vdisk("demo").epoch, record(&world).unwrap().facts);
    for mode in [DtlMode::Async, DtlMode::Async, DtlMode::Sync] {
        let info = try_set(&owner, mode).unwrap();
        assert_eq!(info.epoch, epoch);
        assert_eq!((recorded(&world), record(&world).unwrap().facts), (mode, facts.clone()));
        write_some(&mut disk, 7);
    }
    assert_eq!(shown(&owner), "sync");
    // By the word of `sync`, without a replay.
    owner.kill();
    world.expire_owner("demo");
    disk.reattach(&other);
    disk.check_all();
    other.stop();
}

/// P5: who shares it replays nothing.
#[test]
fn p5_a_vdisk_that_is_shared_stays_sync() {
    let (world, owner, other, disk) = served_as(DtlMode::Sync);
    disk.detach();
    let shared = Disk::try_attach(&owner, "demo", 1, AttachMode::Shared, false).unwrap();
    for mode in [DtlMode::Async, DtlMode::NoTarget] {
        let refused = try_set(&owner, mode).unwrap_err();
        assert_eq!((refused.class, refused.code), (ErrorClass::Refuse, code::INVALID), "{refused}");
        assert!(refused.message.contains("edge-1"), "{refused}");
        assert_eq!(recorded(&world), DtlMode::Sync);
    }
    Disk::try_attach(&owner, "demo", 2, AttachMode::Shared, false).unwrap().detach();
    shared.detach();
    set(&owner, DtlMode::Async);
    let refused = Disk::try_attach(&owner, "demo", 1, AttachMode::Shared, false).unwrap_err();
    assert!(refused.message.contains("synchronous"), "{refused}");
    set(&owner, DtlMode::Sync);
    Disk::try_attach(&owner, "demo", 1, AttachMode::Shared, false).unwrap();
    owner.stop();
    other.stop();
}

fn attachments(world: &World) -> AttachmentsRecord {
    let key = key::attachments(world.vdisk("demo").vdisk);
    AttachmentsRecord::from_record(world.arakoon.get(&key).unwrap()).unwrap()
}

/// It was let in while the mode was sync, and is recorded while that ends.
#[test]
fn p5_an_edge_that_comes_to_share_while_the_mode_changes_is_in_time_or_asks_again() {
    for mode in [DtlMode::Async, DtlMode::NoTarget] {
        let (world, owner, other, disk) = served_as(DtlMode::Sync);
        disk.detach();
        let vdisk = world.vdisk("demo").vdisk;
        let before = attachments(&world);
        let last_generation = before.last_generation.next();
        let shares = AttachmentRecord {
            edge: EdgeId(7),
            edge_name: "edge-7".into(),
            generation: last_generation,
            mode: AttachmentMode::Shared,
            domain: String::new(),
        };
        let shared = AttachmentsRecord { last_generation, live: vec![shares] };
        let (in_place, row) = (mode == DtlMode::Async, key::attachments(vdisk));
        let step = if in_place { row.clone() } else { key::vdisk(vdisk) };
        let came = (row.clone(), shared.to_record());
        world.arakoon.before(step, move |store| drop(store.map.insert(came.0, came.1)));
        let refused = try_set(&owner, mode).unwrap_err();
        let expected = if in_place { code::INVALID } else { code::UNCHANGED };
        assert_eq!(refused.code, expected, "{refused}");
        let refused = try_set(&owner, mode).unwrap_err();
        assert!(refused.code == code::INVALID && refused.message.contains("edge-7"), "{refused}");
        assert_eq!((recorded(&world), attachments(&world)), (DtlMode::Sync, shared));
        // The other way round: whoever was let in by what is over now finds that others came meanwhile.
        let gone = AttachmentsRecord { last_generation, live: Vec::new() };
        world.arakoon.set(row, gone.to_record());
        let epoch = world.vdisk("demo").epoch;
        set(&owner, mode);
        let asserted = (attachments(&world) != gone, world.vdisk("demo").epoch != epoch);
        assert!(asserted.0 || asserted.1, "what it asserted still holds");
        owner.stop();
        other.stop();
    }
}

#[test]
fn l1_a_change_whose_answer_is_lost_is_found_or_never_was() {
    let (world, owner, other, mut disk) = served_as(DtlMode::NoTarget);
    let vdisk = world.vdisk("demo").vdisk;
    for (round, mode) in [DtlMode::Sync, DtlMode::NoTarget].into_iter().enumerate() {
        write_some(&mut disk, 10 * round as u8);
        world.arakoon.hold_answer(key::vdisk(vdisk));
        let asked = owner.begin::<_, VdiskInfo>(method::SET_VDISK, setting(Some(mode), None));
        let start = Instant::now();
        while !world.arakoon.holds_answer() {
            assert!(start.elapsed() < WITHIN && !asked.is_finished(), "nothing was asked");
            std::thread::sleep(Duration::from_millis(5));
        }
        // Committed, for all it knows: nothing is answered by the old right.
        let refused = disk.try_read(0, 4096).unwrap_err();
        assert_eq!(refused.code, code::RECOVERING, "{refused}");
        world.arakoon.lose_answer();
        let unknown = asked.join().unwrap().unwrap().unwrap_err();
        assert_eq!(
            (unknown.class, unknown.code),
            (ErrorClass::Retry, code::UNCHANGED),
            "{unknown}"
        );
        disk.reattach(&owner);
        disk.check_all();
        let epoch = world.vdisk("demo").epoch;
        // Asked again, it is so already.
        let info = try_set(&owner, mode).unwrap();
        assert_eq!((info.epoch, recorded(&world)), (epoch, mode));
    }
    // In place, it is served on meanwhile.
    set(&owner, DtlMode::Sync);
    disk.reattach(&owner);
    owner.until_in_sync("demo");
    world.arakoon.hold_answer(key::vdisk_dtl(vdisk));
    let asked = owner.begin::<_, VdiskInfo>(method::SET_VDISK, setting(Some(DtlMode::Async), None));
    let start = Instant::now();
    while !world.arakoon.holds_answer() {
        assert!(start.elapsed() < WITHIN && !asked.is_finished(), "nothing was asked");
        std::thread::sleep(Duration::from_millis(5));
    }
    write_some(&mut disk, 30);
    disk.check_all();
    let twice = try_set(&owner, DtlMode::Sync).unwrap_err();
    assert!(twice.message.contains("being changed already"), "{twice}");
    world.arakoon.lose_answer();
    assert_eq!(asked.join().unwrap().unwrap().unwrap_err().class, ErrorClass::Retry);
    set(&owner, DtlMode::Sync);
    assert_eq!((recorded(&world), &shown(&owner)[..]), (DtlMode::Sync, "sync"));
    disk.check_all();
    owner.stop();
    other.stop();
}

#[test]
fn what_doesnt_go_together_or_cant_be_now_changes_nothing_and_says_why() {
    let (world, owner, other, mut disk) = served_as(DtlMode::NoTarget);
    let before = world.vdisk("demo");
    for (dtl, targets, why) in [
        (None, None, "nothing"),
        (None, Some(1), "without a DTL"),
        (Some(DtlMode::NoTarget), Some(2), "without a DTL"),
        (Some(DtlMode::Sync), Some(0), "0 DTL targets"),
        (Some(DtlMode::Sync), Some(3), "3 DTL targets"),
    ] {
        let refused = owner.call::<_, VdiskInfo>(method::SET_VDISK, &setting(dtl, targets));
        let refused = refused.unwrap_err();
        assert_eq!((refused.class, refused.code), (ErrorClass::Refuse, code::INVALID), "{refused}");
        assert!(refused.message.contains(why), "{refused}");
    }
    assert_eq!(try_set(&other, DtlMode::Sync).unwrap_err().code, code::NOT_OWNER);
    let unknown = SetVdisk { name: "nobody".into(), ..setting(Some(DtlMode::Sync), None) };
    let refused = owner.call::<_, VdiskInfo>(method::SET_VDISK, &unknown).unwrap_err();
    assert_eq!(refused.code, code::NO_VDISK, "{refused}");
    try_set(&owner, DtlMode::NoTarget).unwrap();
    assert_eq!((world.vdisk("demo"), record(&world)), (before.clone(), None));
    // Slower than requests may wait: it is served on as it was.
    disk.write(0, &[1; 4096], Durability::Durable);
    world.proxy.set_delay_ms(12_000);
    let refused = try_set(&owner, DtlMode::Sync).unwrap_err();
    assert_eq!((refused.class, refused.code), (ErrorClass::Retry, code::UNCHANGED), "{refused}");
    // L8: asked again and again, it doesn't make them wait each time.
    let refused = try_set(&owner, DtlMode::Sync).unwrap_err();
    assert!(refused.message.contains("in vain"), "{refused}");
    world.proxy.set_delay_ms(0);
    disk.write(4096, &[2; 4096], Durability::Durable);
    disk.check_all();
    assert_eq!((world.vdisk("demo").epoch, record(&world)), (before.epoch, None));
    owner.stop();
    other.stop();
}

/// Of an owner that has tried.
fn until_tried(owner: &Router) {
    let start = Instant::now();
    loop {
        // Refused for itself, as soon as no other change is under way.
        let ask = setting(None, Some(0));
        let refused = owner.call::<_, VdiskInfo>(method::SET_VDISK, &ask).unwrap_err();
        if refused.code == code::INVALID {
            return;
        }
        assert!(start.elapsed() < WITHIN, "{refused}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn nothing_is_changed_after_whoever_asked_gave_up() {
    use DtlMode::{Async, NoTarget, Sync};
    for (from, to) in [(NoTarget, Sync), (Sync, NoTarget), (Sync, Async), (Async, Sync)] {
        let world = World::new().with_cables();
        let (owner, other) = (world.start(), world.start_other());
        owner.try_create_with("demo", MIB, "default", Some(from)).unwrap();
        let mut disk = Disk::attach(&owner, "demo");
        if from != NoTarget {
            owner.until_in_sync("demo");
        }
        write_some(&mut disk, 1);
        let known = || (world.vdisk("demo"), record(&world), attachments(&world));
        let before = known();
        // It asks arakoon for what it decides by, and hears too late.
        world.cables().arakoon.hold(Held { requests: true, answers: true });
        let patience = Duration::from_millis(500);
        let asked = owner
            .call_briefly::<_, VdiskInfo>((method::SET_VDISK, patience), &setting(Some(to), None));
        assert!(asked.is_none_or(|answer| answer.is_err()), "{from:?} to {to:?}");
        world.cables().arakoon.mend();
        until_tried(&owner);
        assert_eq!(known(), before, "{from:?} to {to:?}");
        disk.reattach(&owner);
        disk.check_all();
        // Asked by who waits, it comes about.
        set(&owner, to);
        assert_eq!(recorded(&world), to);
        owner.stop();
        other.stop();
    }
}

/// As when an earlier try came about, and its answer was lost.
#[test]
fn p10_what_arakoon_says_already_is_confirmed_under_the_owners_epoch() {
    let (world, owner, other, _disk) = served_as(DtlMode::Async);
    let vdisk = world.vdisk("demo").vdisk;
    let row = key::vdisk_dtl(vdisk);
    let came_about = || {
        let record = DtlRecord { mode: DtlMode::Sync, ..record(&world).unwrap() };
        world.arakoon.set(row.clone(), record.to_record());
    };
    came_about();
    try_set(&owner, DtlMode::Sync).unwrap();
    assert_eq!((recorded(&world), &shown(&owner)[..]), (DtlMode::Sync, "sync"));
    set(&owner, DtlMode::Async);
    // Now it is claimed between the look and the confirmation.
    came_about();
    let (claimed, of_dtl) = (key::vdisk(vdisk), row.clone());
    world.arakoon.before_asserting(row, move |store| {
        let record = VdiskRecord::from_record(store.map[&claimed].clone()).unwrap();
        let dtl = DtlRecord::from_record(store.map[&of_dtl].clone()).unwrap();
        let epoch = record.epoch.next();
        store.map.insert(claimed, VdiskRecord { epoch, ..record }.to_record());
        store.map.insert(of_dtl, DtlRecord { epoch, ..dtl }.to_record());
    });
    let refused = try_set(&owner, DtlMode::Sync).unwrap_err();
    assert_eq!((refused.class, refused.code), (ErrorClass::Retry, code::UNCHANGED), "{refused}");
    assert!(refused.message.contains("claimed"), "{refused}");
    owner.kill();
    other.kill();
}

/// How many targets the record names, once they have everything.
fn until_targets(world: &World, owner: &Router, count: usize) -> DtlRecord {
    let start = Instant::now();
    loop {
        owner.until_in_sync("demo");
        let record = record(world).unwrap();
        if record.facts.state == DtlState::InSync && record.facts.targets.len() == count {
            return record;
        }
        assert!(start.elapsed() < WITHIN, "never {count} targets: {record:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn p13_an_operator_says_how_many_targets_there_are_and_it_lasts() {
    let (world, owner, other, mut disk) = served_as(DtlMode::Sync);
    let third = world.start_third();
    let count = |router: &Router, count| {
        router.call::<_, VdiskInfo>(method::SET_VDISK, &setting(None, Some(count))).unwrap();
    };
    count(&owner, 2);
    write_some(&mut disk, 1);
    until_targets(&world, &owner, 2);
    write_some(&mut disk, 20);
    // A claim takes the wish with it.
    owner.kill();
    world.expire_owner("demo");
    disk.reattach(&other);
    disk.check_all();
    let owner = world.start();
    until_targets(&world, &other, 2);
    count(&other, 1);
    let one = until_targets(&world, &other, 1);
    count(&other, 1);
    write_some(&mut disk, 40);
    assert_eq!(record(&world), Some(one), "asked for again, nothing changes");
    assert_eq!(other.detail("demo", "wanted_targets"), "1");
    other.kill();
    world.expire_owner("demo");
    disk.reattach(&owner);
    disk.check_all();
    owner.stop();
    third.stop();
}

/// As `p10_what_was_lost_with_an_owner_doesnt_come_back_with_its_log`, without a DTL in the end.
#[test]
fn p10_what_was_lost_under_a_dtl_doesnt_come_back_with_the_log_after_it() {
    let world = World::new().with_dtl(DtlMode::Async).with_cables();
    let (owner, other, mut lost) = world.in_sync(8 * MIB);
    lost.write(0, &[1; 4096], Durability::Durable);
    world.cables().dtl.hold(Held { requests: true, answers: false });
    lost.try_write(0, &[2; 4096]).unwrap();
    owner.kill();
    world.expire_owner("demo");
    let disk = Disk::try_attach(&other, "demo", 2, AttachMode::Exclusive, true).unwrap();
    world.cables().dtl.mend();
    assert_eq!(disk.try_read(0, 4096).unwrap(), [1; 4096]);
    let mut disk = disk;
    let owner = world.start();
    set(&other, DtlMode::NoTarget);
    other.transfer("demo", world.id_of("router-1"));
    disk.reattach(&owner);
    assert_eq!(disk.try_read(0, 4096).unwrap(), [1; 4096]);
    owner.kill();
    let owner = world.start();
    disk.reattach(&owner);
    assert_eq!(disk.try_read(0, 4096).unwrap(), [1; 4096], "a lost write came back");
    owner.stop();
    other.stop();
}

/// Its own DTL finds another regime before the answer comes, and the vDisk is opened anew and served by that.
#[test]
fn l1_a_late_answer_takes_nothing_from_what_was_served_since() {
    let (world, owner, other, mut disk) = served_as(DtlMode::Sync);
    write_some(&mut disk, 1);
    owner.call::<_, VdiskInfo>(method::SET_VDISK, &setting(None, Some(2))).unwrap();
    world.arakoon.hold_answer(key::vdisk(world.vdisk("demo").vdisk));
    let none = setting(Some(DtlMode::NoTarget), None);
    let changing = owner.begin::<_, VdiskInfo>(method::SET_VDISK, none);
    let start = Instant::now();
    while !world.arakoon.holds_answer() {
        assert!(start.elapsed() < WITHIN, "nothing was asked of arakoon");
        std::thread::sleep(Duration::from_millis(5));
    }
    // A second target may be had: its proposal is refused.
    let third = world.start_third();
    let (start, soon) = (Instant::now(), Duration::from_secs(2));
    let anew = || owner.try_show("demo").is_ok_and(|info| info.details_json.contains(NONE));
    while !anew() && start.elapsed() < soon {
        std::thread::sleep(Duration::from_millis(5));
    }
    if anew() {
        disk.reattach(&owner);
        disk.write(0, &[9; 4096], Durability::Durable);
    }
    world.arakoon.let_answer_go();
    changing.join().unwrap();
    disk.reattach(&owner);
    disk.check_all();
    assert_eq!(recorded(&world), DtlMode::NoTarget);
    for router in [owner, other, third] {
        router.stop();
    }
}
