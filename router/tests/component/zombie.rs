//! Owners that were claimed from and hear nothing of it, and claims that somebody is quicker than.
//!
//! Cables are held, so that an owner neither learns from arakoon nor from its DTL that it is over: it must know by its own
//! clock, and by what it isn't told.
//!
//! Invariant: from the first answer of a later owner on, no earlier one answers a read or acknowledges anything (L3, L4).

use std::time::{Duration, Instant};

use arakoon_client::TTL_DEFAULT;
use model::{Epoch, LogId, RouterId};
use router::dtl::peers::{Cluster, Proposed};
use router::dtl::ties::Ties;
use wire::dtl::{DtlFacts, DtlMode};
use wire::facts::{Record, VdiskRecord, key};
use wire::router::{AttachMode, Durability, code};
use wire::{ErrorClass, WireError};

use crate::support::{Disk, Held, Router, WITHIN, World, runtime};

const MIB: u64 = 1 << 20;
const CUT: Held = Held { requests: true, answers: true };
const ANSWERS: Held = Held { requests: false, answers: true };
/// Somewhere that isn't in memory when it is read.
const COLD: u64 = 2 * MIB;

struct Cut {
    world: World,
    owner: Router,
    other: Router,
    old: Disk,
}

/// An owner InSync, with something in its log and something in the backend, that no longer hears from arakoon.
fn cut_from_arakoon() -> Cut {
    let world = World::new().with_dtl(DtlMode::Sync).with_cables();
    let (owner, other, mut old) = world.in_sync(8 * MIB);
    old.write(COLD, &[1; 4096], Durability::Durable);
    old.sync();
    old.write(0, &[1; 4096], Durability::Durable);
    world.cables().arakoon.cut();
    Cut { world, owner, other, old }
}

impl Cut {
    /// Another edge writes at the next owner.
    fn claim(&self) -> Disk {
        self.world.expire_owner("demo");
        let mut new =
            Disk::try_attach(&self.other, "demo", 2, AttachMode::Exclusive, true).unwrap();
        for offset in [0, COLD] {
            new.write(offset, &[2; 4096], Durability::Durable);
        }
        new
    }

    /// What a write ends with once the owner is told what happened.
    fn write_and_mend(&mut self, durability: Durability) -> WireError {
        let (old, cables) = (&mut self.old, self.world.cables());
        std::thread::scope(|scope| {
            let write = scope.spawn(|| old.try_write_as(4096, &[3; 4096], durability));
            // Time to be acknowledged, if it were.
            std::thread::sleep(Duration::from_millis(300));
            cables.dtl.mend();
            cables.arakoon.mend();
            write.join().unwrap().expect_err("acknowledged by an owner that was over")
        })
    }

    fn end(self, new: &Disk) {
        let start = Instant::now();
        let gone = loop {
            match self.owner.try_show("demo") {
                Err(gone) if gone.class != ErrorClass::Retry => break gone,
                Ok(_) | Err(_) => assert!(start.elapsed() < WITHIN, "it never withdraws"),
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        assert_eq!(gone.code, code::NOT_OWNER, "{gone}");
        assert_eq!(new.try_read(0, 4096).unwrap(), vec![2; 4096]);
        self.owner.stop();
        self.other.stop();
    }
}

fn is_no_answer(error: &WireError) -> bool {
    matches!(error.class, ErrorClass::Retry | ErrorClass::Redirect)
}

#[test]
fn p16_an_owner_that_hears_nothing_reads_nothing_stale() {
    let cut = cut_from_arakoon();
    // It has its lease still, and never hears that it isn't renewed.
    assert_eq!(cut.old.try_read(0, 4096).unwrap(), vec![1; 4096]);
    cut.world.cables().dtl.hold(ANSWERS);
    let new = cut.claim();
    for offset in [0, COLD] {
        let refused = cut.old.try_read(offset, 4096).expect_err("a stale read");
        assert!(is_no_answer(&refused), "{refused}");
    }
    let refused = cut.old.try_status(0, 8 * MIB).expect_err("a stale status");
    assert!(is_no_answer(&refused), "{refused}");
    cut.world.cables().dtl.mend();
    cut.world.cables().arakoon.mend();
    cut.end(&new);
}

#[test]
fn p11_an_owner_that_hears_nothing_acknowledges_nothing() {
    for durability in [Durability::Normal, Durability::Durable] {
        let mut cut = cut_from_arakoon();
        cut.world.cables().dtl.hold(ANSWERS);
        let new = cut.claim();
        let refused = cut.write_and_mend(durability);
        assert!(is_no_answer(&refused), "{refused}");
        cut.end(&new);
    }
}

#[test]
fn p18_a_claim_seals_the_dtl_before_it_serves() {
    let mut cut = cut_from_arakoon();
    // Only the DTL tells it.
    let new = cut.claim();
    let refused = cut.old.try_write(4096, &[3; 4096]).expect_err("the DTL wasn't sealed");
    assert!(is_no_answer(&refused), "{refused}");
    let refused = cut.old.try_read(0, 4096).expect_err("a stale read");
    assert!(is_no_answer(&refused), "{refused}");
    cut.world.cables().arakoon.mend();
    cut.end(&new);
}

#[test]
fn p16_a_degraded_owner_without_arakoon_stops_reading_before_its_session_can_be_over() {
    let world = World::new().with_dtl(DtlMode::Sync).with_cables();
    let owner = world.start();
    owner.create("demo", 8 * MIB);
    let mut disk = Disk::attach(&owner, "demo");
    disk.write(0, &[1; 4096], Durability::Durable);
    disk.check_all();
    let cut = Instant::now();
    world.cables().arakoon.cut();
    let mut last = cut;
    let refused = loop {
        match disk.try_read(0, 4096) {
            Ok(_) => last = Instant::now(),
            Err(refused) => break refused,
        }
        assert!(cut.elapsed() < 2 * TTL_DEFAULT, "it reads on for ever");
        std::thread::sleep(Duration::from_millis(20));
    };
    assert!(is_no_answer(&refused), "{refused}");
    let read = last.duration_since(cut);
    assert!(read < TTL_DEFAULT, "it read for {read:?} without arakoon");
    world.cables().arakoon.mend();
    owner.stop();
}

/// An owner whose target is gone proposes to go on without it. That another router has claimed the vDisk meanwhile shows
/// in the record's epoch alone, as the claimant hasn't changed the facts yet: it waits for the target that it must seal.
#[test]
fn l4_an_owner_that_was_claimed_from_changes_nothing_in_arakoon() {
    let world = World::new().with_dtl(DtlMode::Sync).with_cables();
    let (owner, other, mut old) = world.in_sync(8 * MIB);
    old.write(0, &[1; 4096], Durability::Durable);
    let third = world.start_third();
    let VdiskRecord { vdisk, owner: first, .. } = world.vdisk("demo");
    let cable = world.cables().dtl.switch();
    world.arakoon.before(key::vdisk(vdisk), move |_| {
        cable.send_replace(CUT);
    });
    world.expire_owner("demo");
    let new = std::thread::scope(|scope| {
        let attach = || Disk::try_attach(&third, "demo", 2, AttachMode::Exclusive, true);
        // What it can't seal it doesn't serve (L7), until it can.
        let attach = scope.spawn(move || {
            let start = Instant::now();
            loop {
                match attach() {
                    Err(gap) if gap.code == code::GAP => assert!(start.elapsed() < WITHIN, "{gap}"),
                    attached => break attached.unwrap(),
                }
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        let start = Instant::now();
        while world.vdisk("demo").owner == first {
            assert!(start.elapsed() < WITHIN, "never claimed");
            std::thread::sleep(Duration::from_millis(5));
        }
        let refused = old.try_write(4096, &[3; 4096]).expect_err("acknowledged after the claim");
        assert!(is_no_answer(&refused), "{refused}");
        world.cables().dtl.mend();
        attach.join().unwrap()
    });
    // The second write has no answer: it may have reached the target once the cable was mended, before the seal.
    let [first, second] = [0, 4096].map(|offset| new.try_read(offset, 4096).unwrap());
    assert_eq!(first, vec![1; 4096]);
    assert!([[0; 4096], [3; 4096]].contains(&second.try_into().unwrap()));
    for router in [owner, other, third] {
        router.stop();
    }
}

#[test]
fn l4_a_proposal_of_an_earlier_epoch_is_refused() {
    let world = World::new().with_dtl(DtlMode::Sync);
    let owner = world.start();
    owner.create("demo", 8 * MIB);
    owner.kill();
    let VdiskRecord { vdisk, owner, .. } = world.vdisk("demo");
    let facts = world.facts();
    let ties = Ties::new(owner, &[], "rack".to_owned(), LogId(7), facts.clone());
    runtime().block_on(async {
        let before = facts.dtl(vdisk).await.unwrap().unwrap().value;
        let (epoch, from) = (before.epoch, before.facts.clone());
        let to = DtlFacts { generation: from.generation.next(), ..from.clone() };
        for over in [Epoch(epoch.0 - 1), epoch.next()] {
            let outcome = ties.propose((vdisk, over), from.clone(), to.clone()).await;
            assert_eq!(outcome, Proposed::Refused, "epoch {over} of {epoch}");
            assert_eq!(facts.dtl(vdisk).await.unwrap().unwrap().value, before);
        }
        let outcome = ties.propose((vdisk, epoch), from, to.clone()).await;
        assert_eq!(outcome, Proposed::Committed);
        let after = facts.dtl(vdisk).await.unwrap().unwrap().value;
        assert_eq!((after.facts, after.log_id), (to, 7));
    });
}

/// A Degraded vDisk whose owner's session is over, and what is between the claimant's reads and its claim.
fn claim_against(interfere: impl FnOnce(&World, &VdiskRecord)) -> VdiskRecord {
    let world = World::new().with_dtl(DtlMode::Sync);
    let owner = world.start();
    owner.create("demo", 8 * MIB);
    let mut old = Disk::attach(&owner, "demo");
    old.write(0, &[1; 4096], Durability::Durable);
    owner.kill();
    let other = world.start_other();
    interfere(&world, &world.vdisk("demo"));
    world.expire_owner("demo");
    let refused = Disk::try_attach(&other, "demo", 2, AttachMode::Exclusive, true).unwrap_err();
    assert_eq!(refused.code, code::NOT_OWNER, "{refused}");
    other.kill();
    world.vdisk("demo")
}

#[test]
fn l4_a_claim_of_what_somebody_else_has_claimed_meanwhile_is_refused() {
    let quicker = RouterId(77);
    let now = claim_against(|world, record| {
        let taken = VdiskRecord { owner: quicker, epoch: record.epoch.next(), ..record.clone() };
        let vdisk = key::vdisk(record.vdisk);
        world.arakoon.before(vdisk.clone(), move |store| {
            store.map.insert(vdisk, taken.to_record());
        });
    });
    assert_eq!(now.owner, quicker);
}

#[test]
fn p16_a_claim_outside_in_sync_asserts_that_the_owners_session_is_over() {
    let mut owner = RouterId(0);
    let now = claim_against(|world, record| {
        owner = record.owner;
        let (session, incarnation) = world.session_of(owner);
        world.arakoon.before(key::vdisk(record.vdisk), move |store| {
            store.sessions.insert(session, incarnation);
        });
    });
    assert_eq!(now.owner, owner, "it was back when the claim came");
}
