//! The clock of sessions alone: when a leader asks for an expiry, and what it replicates.

use super::*;
use wire::arakoon::TTL_MS_MIN;

const TTL_MS: u64 = 9000;

fn table(renewal: u64, age_ms: u64) -> TtlTable {
    let record = SessionRecord {
        incarnation: Incarnation(1),
        ttl_ms: TTL_MS,
        renewal,
        opened: model::Revision(1),
        age_ms,
    };
    TtlTable::from([(Bytes::from_static(b"r/1"), record)])
}

/// Ticks every 100 ms from one time to another, in milliseconds; returns when something expired first.
fn expires(clock: &mut SessionClock, table: &TtlTable, from: u64, to: u64) -> Option<u64> {
    (from..to).step_by(100).find(|ms| {
        let entries = clock.tick_leading(Now(Duration::from_millis(*ms)), table);
        entries.iter().any(|entry| matches!(entry, LeaderEntry::Expire(_)))
    })
}

#[test]
fn p17_a_leader_waits_for_the_ttl_and_the_drift_of_two_clocks() {
    let least = TTL_MS * 1010 / 990;
    for age in [0, 1000, 5000] {
        let mut clock = SessionClock::default();
        let at = expires(&mut clock, &table(1, age), 500_000, 520_000).unwrap() - 500_000 + age;
        assert!((least..TTL_MS + 500).contains(&at), "after {at} ms");
    }
}

#[test]
fn p17_a_renewal_counts_from_the_tick_that_sees_it() {
    let mut clock = SessionClock::default();
    assert_eq!(expires(&mut clock, &table(1, 0), 0, 9000), None);
    assert_eq!(expires(&mut clock, &table(2, 0), 9000, 18_000), None);
    assert!(expires(&mut clock, &table(2, 0), 18_000, 18_500).is_some());
}

#[test]
fn a_leader_that_is_new_or_was_deaf_listens_before_it_expires() {
    let mut clock = SessionClock::default();
    let old = table(1, TTL_MS * 2);
    assert_eq!(expires(&mut clock, &old, 0, 3000), Some(1500));
    assert_eq!(expires(&mut clock, &old, 60_000, 63_000), Some(61_500), "it was paused");
    clock.tick_following(Now(Duration::from_millis(61_600)), &old);
    assert_eq!(expires(&mut clock, &old, 61_700, 65_000), Some(63_200), "it leads again");
}

#[test]
fn p17_a_leader_whose_every_sync_takes_long_expires_the_dead() {
    for gap in [500, 600, 900, 5000] {
        let mut clock = SessionClock::default();
        let old = table(1, TTL_MS);
        let mut ticks = (0..40_u64).map(|tick| Now(Duration::from_millis(tick * gap)));
        let expires = |now| {
            let entries = clock.tick_leading(now, &old);
            entries.iter().any(|entry| matches!(entry, LeaderEntry::Expire(_)))
        };
        let at = ticks.position(expires);
        assert!(at.is_some_and(|tick| (3..=8).contains(&tick)), "ticks of {gap} ms: {at:?}");
    }
}

#[test]
fn what_isnt_committed_is_asked_for_again_once_a_second() {
    let mut clock = SessionClock::default();
    let old = table(1, TTL_MS * 2);
    let asked: Vec<u64> = (0..50)
        .map(|tick| tick * 100)
        .filter(|ms| {
            let entries = clock.tick_leading(Now(Duration::from_millis(*ms)), &old);
            entries.iter().any(|entry| matches!(entry, LeaderEntry::Expire(_)))
        })
        .collect();
    assert_eq!(asked, [1500, 2500, 3500, 4500]);
}

#[test]
fn ages_are_replicated_when_they_have_grown_by_a_second() {
    let mut clock = SessionClock::default();
    let mut told = Vec::new();
    let mut now = table(1, 0);
    for ms in (0..=3500).step_by(100) {
        for entry in clock.tick_leading(Now(Duration::from_millis(ms)), &now) {
            let LeaderEntry::Ages(ages) = entry else { panic!("nothing expires in 3.5 s") };
            now = table(1, ages[0].age_ms);
            told.push((ms, ages[0].age_ms));
        }
    }
    assert_eq!(told, [(1000, 1000), (2000, 2000), (3000, 3000)]);
    let nobody = TtlTable::new();
    assert!(
        (0..100).all(|tick| clock
            .tick_leading(Now(Duration::from_secs(10 + tick)), &nobody)
            .is_empty())
    );
    assert!(clock.heard.is_empty());
    assert!(TTL_MS_MIN >= millis(AGE_STEP), "ages are coarse, TTLs aren't finer");
}
