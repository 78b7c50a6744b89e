//! One promise at a time.

use model::{ClusterRange, DtlGeneration, Epoch, Lap, Lsn, RouterId};
use router_core::dtl::records::outgoing;
use router_core::dtl::store::{ChunkId, Disk};
use router_core::dtl::target::{Answer, Ask, LEASE_HOLD, Refusal, Target, confirm, may_count};
use router_core::log::{Op, Placement};
use router_core::volume::{Change, HeadState, Opening, Replayed, Stamp, Volume};
use sim::{Chance, Random};
use wire::dtl::{DtlFacts, DtlPromise, DtlState};
use wire::router::UnmapKind;

use crate::disk::{MemDisk, Promising};
use crate::support::{Driven, LIMITS, VDISK, append, at, entry, name};

fn fresh() -> Driven {
    Driven::open(MemDisk::default(), at(10_000))
}

/// A log of epoch 1, generation 1, that holds LSNs 1 to 8, synced.
fn with_log() -> Driven {
    let mut driven = fresh();
    driven.create(&name(1, 1), 0).unwrap();
    driven.answer(append(name(1, 1), 1..=8)).unwrap();
    let synced = driven.answer(Ask::Sync { log: name(1, 1), through: Lsn(8) });
    assert_eq!(synced, Ok(Answer::Synced(Lsn(8))));
    driven
}

fn seal(epoch: u64) -> Ask {
    Ask::Seal { epoch: Epoch(epoch) }
}

fn trim(epoch: u64, through: u64) -> Ask {
    Ask::Trim { epoch: Epoch(epoch), through: Lsn(through) }
}

fn sealed(driven: &mut Driven, epoch: u64) -> Vec<(u64, u64)> {
    let ticket = driven.ask(seal(epoch));
    driven.do_all();
    driven.advance(u64::try_from(LEASE_HOLD.as_millis()).unwrap());
    driven.do_all();
    match driven.answers.get(&ticket) {
        Some(Ok(Answer::Sealed(held))) => held.iter().map(|h| (h.generation.0, h.last.0)).collect(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn p12_a_log_is_made_only_when_arakoon_says_so() {
    let mut driven = fresh();
    driven.authorizes = false;
    assert!(matches!(driven.create(&name(1, 1), 0), Err(Refusal::NotNamed(_))));
    assert_eq!(driven.answer(append(name(1, 1), 1..=1)), Err(Refusal::NoLog));
    assert!(driven.target.is_idle());
    driven.authorizes = true;
    assert!(matches!(driven.create(&name(1, 1), 0), Ok(Answer::Opened(_))));
    assert_eq!(driven.answer(append(name(1, 1), 1..=1)), Ok(Answer::Appended(Lsn(1))));
    // Again, its answer lost: what it holds is kept.
    assert!(
        matches!(driven.create(&name(1, 1), 0), Ok(Answer::Opened(held)) if held.last == Lsn(1))
    );
}

#[test]
fn a_gap_is_refused_and_a_repetition_is_not() {
    let mut driven = with_log();
    assert_eq!(driven.answer(append(name(1, 1), 10..=11)), Err(Refusal::Gap { last: Lsn(8) }));
    assert_eq!(driven.answer(append(name(1, 1), 3..=5)), Ok(Answer::Appended(Lsn(8))));
    assert_eq!(driven.answer(append(name(1, 1), 7..=12)), Ok(Answer::Appended(Lsn(12))));
    let beyond = Ask::Sync { log: name(1, 1), through: Lsn(13) };
    assert_eq!(driven.answer(beyond), Err(Refusal::Gap { last: Lsn(12) }));
    driven.check_records(&driven.held(1).unwrap(), |_| 1);
}

/// h_08.
#[test]
fn l4_lower_epochs_and_other_generations_are_refused() {
    let mut driven = with_log();
    driven.create(&name(1, 2), 8).unwrap();
    let newest = DtlGeneration(2);
    let old = Err(Refusal::WrongGeneration { newest });
    assert_eq!(driven.answer(append(name(1, 1), 9..=9)), old);
    assert_eq!(driven.answer(Ask::Open(name(1, 1))), old);
    assert_eq!(driven.answer(append(name(2, 2), 9..=9)), old);
    assert_eq!(driven.answer(append(name(1, 3), 9..=9)), Err(Refusal::NoLog));
    driven.create(&name(3, 3), 8).unwrap();
    let by = Epoch(3);
    for ask in [append(name(1, 2), 9..=9), Ask::Renew(name(2, 3)), trim(2, 9), seal(2)] {
        assert_eq!(driven.answer(ask), Err(Refusal::Fenced { by }));
    }
}

#[test]
fn p16_a_seal_refuses_at_once_and_answers_after_the_last_lease() {
    let mut driven = with_log();
    driven.advance(300);
    assert_eq!(driven.answer(Ask::Renew(name(1, 1))), Ok(Answer::Renewed));
    let ticket = driven.ask(seal(2));
    driven.do_all();
    let fenced = Err(Refusal::Fenced { by: Epoch(2) });
    assert_eq!(driven.answer(Ask::Renew(name(1, 1))), fenced);
    assert_eq!(driven.answer(append(name(1, 1), 9..=9)), fenced);
    driven.advance(1049);
    assert_eq!(driven.answers.get(&ticket), None, "a lease runs for another millisecond");
    assert_eq!(driven.target.wake_at(), Some(at(10_300 + 1050)));
    driven.advance(1);
    assert!(matches!(driven.answers.get(&ticket), Some(Ok(Answer::Sealed(_)))));
}

#[test]
fn p16_a_restarted_target_waits_out_what_its_former_life_granted() {
    let driven = with_log();
    let mut driven = Driven::open(driven.disk.survivor(), at(20_000));
    let ticket = driven.ask(seal(2));
    driven.do_all();
    driven.advance(1049);
    assert_eq!(driven.answers.get(&ticket), None);
    driven.advance(1);
    assert!(driven.answers.contains_key(&ticket));
}

/// h_13.
#[test]
fn p12_a_seal_is_on_disk_before_it_is_answered() {
    let mut driven = with_log();
    driven.advance(2000);
    let ticket = driven.ask(seal(5));
    assert_eq!(driven.answers.get(&ticket), None, "answered before the promise is written");
    driven.do_all();
    assert!(driven.answers.contains_key(&ticket));
    let image = driven.disk.image(Chance::NEVER, &mut Random::new(1));
    let mut driven = Driven::open(image, at(30_000));
    assert_eq!(driven.answer(append(name(1, 1), 9..=9)), Err(Refusal::Fenced { by: Epoch(5) }));
    assert_eq!(sealed(&mut driven, 5), [(1, 8)]);
}

#[test]
fn p12_a_repeated_trim_is_on_disk_before_it_is_answered() {
    let mut driven = with_log();
    let tickets = [driven.ask(trim(1, 5)), driven.ask(trim(1, 5))];
    assert!(tickets.iter().all(|ticket| !driven.answers.contains_key(ticket)));
    driven.do_all();
    assert!(tickets.iter().all(|ticket| driven.answers[ticket] == Ok(Answer::Trimmed)));
}

#[test]
fn a_seal_syncs_what_is_held() {
    let mut driven = with_log();
    driven.answer(append(name(1, 1), 9..=12)).unwrap();
    assert_eq!(sealed(&mut driven, 2), [(1, 12)]);
    let image = driven.disk.image(Chance::NEVER, &mut Random::new(1));
    let driven = Driven::open(image, at(30_000));
    let held = driven.held(1).unwrap();
    assert_eq!((held.last, held.damaged), (Lsn(12), false));
    driven.check_records(&held, |_| 1);
}

/// h_05.
#[test]
fn of_two_claimants_the_lower_is_told() {
    let mut driven = with_log();
    let first = driven.ask(seal(2));
    let second = driven.ask(seal(3));
    driven.do_all();
    driven.advance(1050);
    driven.do_all();
    assert_eq!(driven.answers[&first], Err(Refusal::Fenced { by: Epoch(3) }));
    assert!(matches!(driven.answers[&second], Ok(Answer::Sealed(_))));
}

#[test]
fn a_log_that_arakoon_confirms_too_late_is_not_made() {
    let mut driven = with_log();
    let late = driven.ask(Ask::Create { log: name(1, 2), base: Lsn(0), nonce: 9 });
    driven.ask(seal(2));
    driven.do_all();
    assert_eq!(driven.answers[&late], Err(Refusal::Fenced { by: Epoch(2) }));
    assert_eq!(driven.held(2), None);
}

#[test]
fn p13_an_older_generation_is_kept_until_it_is_in_the_backend() {
    let mut driven = with_log();
    driven.create(&name(1, 2), 4).unwrap();
    assert_eq!(driven.held(1).map(|held| held.last), Some(Lsn(8)));
    driven.answer(trim(1, 7)).unwrap();
    assert!(driven.held(1).is_some());
    let not_empty = driven.answer(Ask::Drop { epoch: Epoch(1), through: Lsn(7) });
    assert_eq!(not_empty, Err(Refusal::NotEmpty));
    driven.answer(trim(1, 8)).unwrap();
    assert_eq!(driven.held(1), None);
    assert!(driven.held(2).is_some());
    driven.answer(Ask::Drop { epoch: Epoch(1), through: Lsn(8) }).unwrap();
    assert!(driven.target.is_idle());
    assert_eq!(driven.disk.chunks(), Ok(Vec::new()));
}

#[test]
fn trimmed_chunks_are_given_back_and_the_rest_is_read() {
    let mut driven = fresh();
    driven.create(&name(1, 1), 0).unwrap();
    for first in (1..=91).step_by(10) {
        driven.answer(append(name(1, 1), first..=first + 9)).unwrap();
        driven.answer(Ask::Sync { log: name(1, 1), through: Lsn(first + 9) }).unwrap();
    }
    let before = driven.disk.chunks().unwrap().len();
    driven.answer(trim(1, 63)).unwrap();
    let after = driven.disk.chunks().unwrap().len();
    assert!(after <= before / 2, "{before} chunks, then {after}");
    for driven in [&driven, &Driven::open(driven.disk.survivor(), at(0))] {
        let held = driven.held(1).unwrap();
        assert_eq!((held.base, held.last, held.damaged), (Lsn(63), Lsn(100), false));
        driven.check_records(&held, |_| 1);
        // What a claimant would have to take over: 28 writes and 9 trims.
        let needed = driven.target.needed();
        assert!(needed.len() == 1 && needed[0].0 == held, "{needed:?}");
        assert!((28 * 4096..=driven.target.bytes()).contains(&needed[0].1), "{needed:?}");
    }
    driven.answer(trim(1, 100)).unwrap();
    assert_eq!(driven.target.needed()[0].1, 0);
}

#[test]
fn a_trim_may_overtake_the_records() {
    let mut driven = with_log();
    driven.answer(trim(1, 20)).unwrap();
    assert_eq!(driven.answer(append(name(1, 1), 9..=21)), Ok(Answer::Appended(Lsn(21))));
    let driven = Driven::open(driven.disk.survivor(), at(0));
    let held = driven.held(1).unwrap();
    assert_eq!((held.base, held.last, held.damaged), (Lsn(20), Lsn(21), false));
    driven.check_records(&held, |_| 1);
}

#[test]
fn l7_rot_below_what_was_synced_is_damage_and_no_torn_end() {
    let mut driven = with_log();
    driven.answer(append(name(1, 1), 9..=9)).unwrap();
    driven.disk.flip(ChunkId { generation: DtlGeneration(1), number: 0 }, 6000);
    let mut driven = Driven::open(driven.disk.survivor(), at(0));
    let held = driven.held(1).unwrap();
    assert!(held.damaged && held.last < Lsn(8), "{held:?}");
    assert!(matches!(driven.answer(append(name(1, 1), 9..=9)), Err(Refusal::Failed(_))));
}

#[test]
fn a_full_disk_refuses_and_what_was_taken_stays() {
    let mut driven = with_log();
    driven.disk.0.borrow_mut().room = Some(5000);
    assert_eq!(driven.answer(append(name(1, 1), 9..=12)), Err(Refusal::Full));
    driven.disk.0.borrow_mut().room = None;
    assert_eq!(driven.answer(append(name(1, 1), 9..=10)), Ok(Answer::Appended(Lsn(10))));
    let driven = Driven::open(driven.disk.survivor(), at(0));
    let held = driven.held(1).unwrap();
    assert_eq!((held.last, held.damaged), (Lsn(10), false));
    driven.check_records(&held, |_| 1);
}

#[test]
fn l8_a_log_has_a_bound() {
    let mut driven = fresh();
    driven.create(&name(1, 1), 0).unwrap();
    let mut first = 1;
    let refused = loop {
        match driven.answer(append(name(1, 1), first..=first + 99)) {
            Ok(_) => first += 100,
            Err(refusal) => break refusal,
        }
    };
    assert_eq!(refused, Refusal::Full);
    assert!(driven.target.bytes() <= crate::support::LIMITS.log_bytes);
    assert!(1000 < first);
}

/// One small set of clusters, overwritten and flushed again and again: its unit never holds many clusters.
#[test]
fn l8_a_unit_ends_long_before_its_records_fill_the_log() {
    let mut driven = fresh();
    driven.create(&name(1, 1), 0).unwrap();
    let mut volume = Volume::open(Opening {
        vdisk: VDISK,
        epoch: Epoch(1),
        size_bytes: 1 << 30,
        unit_clusters: 1024,
        head: HeadState::default(),
    });
    volume.bound_units(LIMITS.log_bytes / 4);
    let mut on_its_way = None;
    for number in 1..=4000 {
        let (lsn, entry) = (Lsn(number), entry(1, number));
        let range = ClusterRange::new(entry.cluster, 1).unwrap();
        let change = match entry.op {
            Op::Write => Change::Write {
                cluster: entry.cluster,
                data: entry.payload.clone(),
                checksums: entry.checksums.clone(),
            },
            Op::Trim | Op::Zero | Op::Start | Op::List => {
                Change::Unmap { range, kind: UnmapKind::Trim }
            }
        };
        let record = outgoing(&entry).bytes();
        let placement = Placement { lap: Lap(1), bytes: record, end: number * 8192 };
        let stamp = Stamp { generation: entry.generation, seq: entry.seq, last: true };
        volume.replay(Replayed { lsn, epoch: Epoch(1), change, stamp, placement });
        driven.answer(append(name(1, 1), number..=number)).expect("the log is full");
        driven.answer(Ask::Sync { log: name(1, 1), through: lsn }).unwrap();
        // The backend has a unit only when the next one is full as well.
        let Some(unit) = volume.next_unit(2) else { continue };
        if let Some((object, last)) = on_its_way.replace((unit.object, unit.last_lsn)) {
            volume.unit_done(object);
            volume.drop_through(last);
            driven.answer(trim(1, last.0)).unwrap();
        }
    }
    assert!(on_its_way.is_some_and(|(_, last)| Lsn(3000) < last), "{on_its_way:?}");
}

#[test]
fn after_a_failed_sync_a_log_counts_for_nothing_even_after_a_restart() {
    let mut driven = with_log();
    driven.answer(append(name(1, 1), 9..=10)).unwrap();
    driven.disk.0.borrow_mut().sync_fails = true;
    let sync = driven.answer(Ask::Sync { log: name(1, 1), through: Lsn(10) });
    assert!(matches!(sync, Err(Refusal::Failed(_))));
    driven.disk.0.borrow_mut().sync_fails = false;
    let driven = Driven::open(driven.disk.survivor(), at(0));
    assert!(driven.held(1).unwrap().damaged);
}

/// Its disk takes no promise either, so nothing but the file itself tells the next process.
#[test]
fn l2_what_a_failed_sync_left_in_memory_counts_for_nothing_after_a_restart() {
    let mut driven = with_log();
    driven.answer(append(name(1, 1), 9..=10)).unwrap();
    driven.disk.0.borrow_mut().sync_fails = true;
    driven.disk.0.borrow_mut().promising = Promising::Fails;
    let sync = driven.answer(Ask::Sync { log: name(1, 1), through: Lsn(10) });
    assert!(matches!(sync, Err(Refusal::Failed(_))));
    driven.disk.0.borrow_mut().sync_fails = false;
    driven.disk.0.borrow_mut().promising = Promising::Works;
    let driven = Driven::open(driven.disk.survivor(), at(0));
    let held = driven.held(1).unwrap();
    assert_eq!((held.last, held.damaged), (Lsn(8), false));
}

#[test]
fn a_promise_that_cannot_be_written_ends_all_promises() {
    let mut driven = with_log();
    driven.disk.0.borrow_mut().promising = Promising::Fails;
    driven.advance(5000);
    assert!(matches!(driven.answer(seal(2)), Err(Refusal::Failed(_))));
    driven.disk.0.borrow_mut().promising = Promising::Works;
    assert!(matches!(driven.answer(append(name(1, 1), 9..=9)), Err(Refusal::Failed(_))));
    assert!(matches!(driven.create(&name(3, 3), 0), Err(Refusal::Failed(_))));
}

/// The next process reads a file of promises of which the directory doesn't know for sure.
#[test]
fn l2_a_promise_that_is_believed_at_opening_outlives_a_power_cut() {
    let mut driven = with_log();
    driven.advance(5000);
    driven.disk.0.borrow_mut().promising = Promising::FailsWithItsName;
    assert!(matches!(driven.answer(seal(2)), Err(Refusal::Failed(_))));
    driven.disk.0.borrow_mut().promising = Promising::Works;
    let driven = Driven::open(driven.disk.survivor(), at(0));
    assert_eq!(driven.target.fence(), Epoch(2));
    let left = driven.disk.image(Chance::NEVER, &mut Random::new(1));
    assert_eq!(Driven::open(left, at(0)).target.fence(), Epoch(2));
}

#[test]
fn l7_a_target_is_opened_on_a_full_disk_and_not_on_one_that_fails() {
    let driven = with_log();
    let opened = |promising| {
        let disk = driven.disk.survivor();
        disk.0.borrow_mut().promising = promising;
        Target::open(VDISK, LIMITS, disk, at(0))
    };
    assert_eq!(opened(Promising::Full).unwrap().held().len(), 1);
    assert!(opened(Promising::Fails).is_err());
}

#[test]
fn p12_arakoon_confirms_only_the_log_it_names_while_it_catches_up() {
    let me = RouterId(3);
    let facts = DtlFacts {
        state: DtlState::CatchingUp,
        generation: DtlGeneration(4),
        targets: vec![me],
        ..DtlFacts::standalone()
    };
    let log = name(2, 4);
    assert_eq!(confirm((Epoch(2), &facts), &log, me), Ok(()));
    let in_sync = DtlFacts { state: DtlState::InSync, ..facts.clone() };
    let not_named = [
        confirm((Epoch(3), &facts), &log, me),
        confirm((Epoch(2), &facts), &name(2, 3), me),
        confirm((Epoch(2), &facts), &log, RouterId(4)),
        confirm((Epoch(2), &in_sync), &log, me),
    ];
    for verdict in not_named {
        assert!(matches!(verdict, Err(Refusal::NotNamed(_))), "{verdict:?}");
    }
}

#[test]
fn l2_a_log_counts_while_any_claimant_could_be_led_to_it() {
    let (me, other) = (RouterId(3), RouterId(4));
    let counts =
        |facts: Option<&DtlFacts>, generation| may_count(facts, me, DtlGeneration(generation));
    let facts = |targets: &[RouterId], previous: &[RouterId]| DtlFacts {
        state: DtlState::CatchingUp,
        generation: DtlGeneration(6),
        targets: targets.into(),
        floor: Lsn(9),
        previous: Some(DtlPromise {
            generation: DtlGeneration(4),
            targets: previous.into(),
            through: Lsn(9),
        }),
    };
    let of =
        |facts: &DtlFacts| -> Vec<u64> { (3..8).filter(|g| counts(Some(facts), *g)).collect() };
    assert_eq!(of(&facts(&[me], &[other])), [6, 7]);
    assert_eq!(of(&facts(&[other], &[me])), [4, 7]);
    assert_eq!(of(&facts(&[other, me], &[me, other])), [4, 6, 7]);
    assert_eq!(of(&facts(&[other], &[])), [7], "a later record than the one that was read");
    assert!(!counts(None, 6), "deleted");
}

#[test]
fn p12_a_forgotten_log_is_gone_for_good_and_the_others_keep_their_promises() {
    let mut driven = with_log();
    driven.create(&name(2, 2), 8).unwrap();
    driven.answer(append(name(2, 2), 9..=12)).unwrap();
    let synced = driven.answer(Ask::Sync { log: name(2, 2), through: Lsn(12) });
    assert_eq!(synced, Ok(Answer::Synced(Lsn(12))));
    driven.forget(&[1]);
    assert_eq!(driven.held(1), None);
    assert_eq!(driven.held(2).map(|held| (held.base, held.synced)), Some((Lsn(8), Lsn(12))));
    assert!(driven.disk.chunks().unwrap().iter().all(|chunk| chunk.generation == DtlGeneration(2)));
    // Over a restart too, and an owner of its time gets nothing more (L4).
    let mut driven = Driven::open(driven.disk.clone(), driven.now);
    assert_eq!(sealed(&mut driven, 3), [(2, 12)]);
    assert!(matches!(driven.answer(append(name(1, 1), 9..=9)), Err(Refusal::Fenced { .. })));
    // A sync that is waited for isn't promised any more.
    driven.create(&name(4, 3), 12).unwrap();
    driven.answer(append(name(4, 3), 13..=13)).unwrap();
    let waits = driven.ask(Ask::Sync { log: name(4, 3), through: Lsn(13) });
    driven.forget(&[2, 3]);
    assert_eq!(driven.answers.get(&waits), Some(&Err(Refusal::NoLog)));
    driven.do_all();
    assert!(driven.target.is_idle() && driven.disk.chunks().unwrap().is_empty());
}
