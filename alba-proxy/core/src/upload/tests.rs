//! Uploads by example, and under every order of answers.

use super::*;
use crate::placement::tests::candidate;
use proptest::prelude::*;
use std::collections::BTreeSet;

fn ms(n: u64) -> Now {
    Now(Duration::from_millis(n))
}

fn plan(policy: &str, osds: u128, seed: u64) -> UploadPlan {
    let list: model::PolicyList = policy.parse().unwrap();
    let policy = list.policies()[0];
    UploadPlan {
        policy,
        spread: Spread::of(policy, list.level()),
        fragments: policy.indexes().collect(),
        candidates: (0..osds).map(|i| candidate(i, 0, 10, true)).collect(),
        slack: Duration::from_millis(100),
        deadline: ms(5000),
        seed,
    }
}

#[test]
fn all_stored_commits_without_waiting() {
    let (mut upload, puts) = Upload::start(plan("4,2,5,1", 6, 1), ms(0));
    assert_eq!(puts.len(), 6);
    for put in &puts {
        assert_eq!(upload.verdict(), None);
        assert_eq!(upload.answered(*put, PutAnswer::Stored, ms(1)), Next::Nothing);
    }
    let mut all = puts;
    all.sort_unstable();
    assert_eq!(upload.verdict(), Some(&Verdict::Commit(all)));
}

#[test]
fn with_c_stored_the_rest_has_the_slack_and_comes_late_after_it() {
    let (mut upload, puts) = Upload::start(plan("4,2,5,1", 6, 1), ms(0));
    for put in &puts[..5] {
        upload.answered(*put, PutAnswer::Stored, ms(10));
    }
    assert_eq!(upload.verdict(), None);
    assert_eq!(upload.wake_at(), ms(110));
    upload.tick(ms(109));
    assert_eq!(upload.verdict(), None);
    upload.tick(ms(110));
    assert!(matches!(upload.verdict(), Some(Verdict::Commit(places)) if places.len() == 5));
    assert_eq!(upload.answered(puts[5], PutAnswer::Stored, ms(200)), Next::Late(puts[5]));
    assert_eq!(upload.answered(puts[5], PutAnswer::Stored, ms(200)), Next::Nothing);
}

#[test]
fn a_failed_put_goes_to_another_osd_while_there_is_one() {
    let (mut upload, puts) = Upload::start(plan("4,2,6,1", 7, 3), ms(0));
    let used: BTreeSet<OsdId> = puts.iter().map(|put| put.osd).collect();
    let Next::Put(again) = upload.answered(puts[2], PutAnswer::Failed, ms(1)) else { panic!() };
    assert_eq!(again.index, puts[2].index);
    assert!(!used.contains(&again.osd));
    // The next failure finds none: six of six are out of reach, and what was stored is nobody's.
    upload.answered(puts[0], PutAnswer::Stored, ms(2));
    assert_eq!(upload.answered(puts[1], PutAnswer::Failed, ms(3)), Next::Nothing);
    let Some(Verdict::Failed { orphans }) = upload.verdict() else { panic!() };
    assert!(orphans.contains(&puts[0]) && orphans.contains(&puts[1]) && orphans.contains(&again));
    assert_eq!(upload.answered(again, PutAnswer::Stored, ms(4)), Next::Orphan(again));
}

#[test]
fn what_finds_no_place_is_parity_and_becomes_a_hole() {
    let (mut upload, puts) = Upload::start(plan("4,2,5,1", 5, 9), ms(0));
    let indexes: Vec<u8> = puts.iter().map(|put| put.index.get()).collect();
    assert_eq!(indexes, [0, 1, 2, 3, 4]);
    for put in puts {
        upload.answered(put, PutAnswer::Stored, ms(1));
    }
    assert!(matches!(upload.verdict(), Some(Verdict::Commit(places)) if places.len() == 5));
}

#[test]
fn fragments_without_bytes_count_as_stored() {
    // One frame: fragments 0..2 are empty, 3 has it, 4 and 5 are its copies.
    let mut small = plan("4,2,5,1", 6, 1);
    small.fragments.drain(..3);
    let (mut upload, puts) = Upload::start(small, ms(0));
    assert_eq!(puts.len(), 3);
    upload.answered(puts[0], PutAnswer::Stored, ms(1));
    upload.tick(ms(1000));
    assert_eq!(upload.verdict(), None, "one copy is below c");
    upload.answered(puts[1], PutAnswer::Stored, ms(1001));
    upload.tick(ms(1101));
    assert!(matches!(upload.verdict(), Some(Verdict::Commit(places)) if places.len() == 2));

    let mut nothing = plan("4,2,5,1", 6, 1);
    nothing.fragments.clear();
    let (upload, puts) = Upload::start(nothing, ms(0));
    assert!(puts.is_empty());
    assert_eq!(upload.verdict(), Some(&Verdict::Commit(Vec::new())));
}

#[test]
fn silence_ends_at_the_deadline() {
    let (mut upload, puts) = Upload::start(plan("4,2,5,1", 6, 1), ms(0));
    assert_eq!(upload.wake_at(), ms(5000));
    upload.answered(puts[0], PutAnswer::Stored, ms(1));
    upload.tick(ms(5000));
    let Some(Verdict::Failed { orphans }) = upload.verdict() else { panic!() };
    assert_eq!(orphans.len(), 6);
}

proptest! {
    #[test]
    fn whatever_answers_come_the_decision_is_one_and_right(
        osds in 4..10_u128, c in 4..7_u8, x in 1..3_u8, seed: u64,
        answers in proptest::collection::vec((any::<prop::sample::Index>(), any::<bool>(), 0..200_u64), 0..60),
    ) {
        let plan = plan(&format!("4,2,{c},{x}"), osds, seed);
        let (mut upload, mut open) = Upload::start(plan, ms(0));
        let mut now = 0;
        let mut decided: Option<Verdict> = upload.verdict().cloned();
        let mut stored = BTreeSet::new();
        for (pick, good, passed) in answers {
            now += passed;
            upload.tick(ms(now));
            if open.is_empty() { break; }
            decided = decided.or_else(|| upload.verdict().cloned());
            let put = open.swap_remove(pick.index(open.len()));
            let answer = if good { PutAnswer::Stored } else { PutAnswer::Failed };
            match upload.answered(put, answer, ms(now)) {
                Next::Put(again) => open.push(again),
                Next::Late(late) => prop_assert!(matches!(decided, Some(Verdict::Commit(_))) && late == put),
                Next::Orphan(_) => {
                    let failed = matches!(decided, Some(Verdict::Failed { .. }));
                    prop_assert!(failed);
                }
                Next::Nothing => {}
            }
            if good && decided.is_none() { stored.insert(put); }
            if let Some(first) = &decided {
                prop_assert_eq!(upload.verdict(), Some(first), "decided twice");
            }
            decided = decided.or_else(|| upload.verdict().cloned());
        }
        // With every put answered, or the deadline passed, there is a decision.
        upload.tick(ms(5000));
        match upload.verdict() {
            None => prop_assert!(false, "undecided"),
            Some(Verdict::Commit(places)) => {
                prop_assert!(places.len() >= usize::from(c));
                prop_assert!(places.iter().all(|put| stored.contains(put)));
                for put in places {
                    let here = places.iter().filter(|other| other.osd == put.osd).count();
                    prop_assert!(here <= usize::from(x));
                    prop_assert_eq!(places.iter().filter(|other| other.index == put.index).count(), 1);
                }
            }
            Some(Verdict::Failed { orphans }) => {
                prop_assert!(stored.iter().all(|put| orphans.contains(put)), "an orphan forgotten");
            }
        }
    }
}
