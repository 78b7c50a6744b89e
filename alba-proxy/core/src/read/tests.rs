//! Read plans by example, and under every mix of holes, damage and order.

use super::*;
use crate::manifest::tests::manifest_with;
use proptest::prelude::*;
use std::collections::BTreeSet;

fn stored(osds: &[u128]) -> Vec<Place> {
    osds.iter().map(|osd| Place::Stored(OsdId(*osd))).collect()
}

fn manifest() -> Manifest {
    manifest_with("4,2,5,1", &stored(&[0, 1, 2, 3, 4, 5]))
}

#[test]
fn a_healthy_read_asks_one_osd_for_one_range() {
    let mut plan = ReadPlan::new(&manifest(), &[(2, 10..20)], |_| Rank::Good);
    let fetches = plan.start();
    assert_eq!(fetches, [Fetch { column: 0, fragment: 2, osd: OsdId(2), range: 10..20 }]);
    assert_eq!(plan.state(0), ColumnState::Pending);
    assert!(plan.answered(0, 2, Answer::Good).is_empty());
    assert_eq!(plan.state(0), ColumnState::Direct);
    assert!(plan.is_settled());
}

#[test]
fn a_bad_fragment_is_rebuilt_from_the_same_range_of_k_others() {
    let mut plan = ReadPlan::new(&manifest(), &[(2, 10..20)], |_| Rank::Good);
    plan.start();
    let fetches = plan.answered(0, 2, Answer::Bad);
    let asked: Vec<u8> = fetches.iter().map(|fetch| fetch.fragment).collect();
    assert_eq!(asked, [0, 1, 3, 4]);
    assert!(fetches.iter().all(|fetch| fetch.range == (10..20)));
    assert!(plan.answered(0, 0, Answer::Good).is_empty());
    let instead = plan.answered(0, 1, Answer::Bad);
    assert_eq!(instead.iter().map(|fetch| fetch.fragment).collect::<Vec<_>>(), [5]);
    for fragment in [3, 4, 5] {
        assert_eq!(plan.state(0), ColumnState::Pending);
        plan.answered(0, fragment, Answer::Good);
    }
    assert_eq!(plan.state(0), ColumnState::Rebuild(vec![0, 3, 4, 5]));
}

#[test]
fn osds_that_are_down_are_asked_last_but_asked() {
    let down = |osd: OsdId| if osd.0 < 3 { Rank::Down } else { Rank::Good };
    let mut plan = ReadPlan::new(&manifest(), &[(1, 0..8)], down);
    let asked: Vec<u8> = plan.start().iter().map(|fetch| fetch.fragment).collect();
    // Three are up; k = 4: one of the down ones must help.
    assert_eq!(asked, [3, 4, 5, 0]);
    let more: Vec<u8> =
        plan.answered(0, 0, Answer::Bad).iter().map(|fetch| fetch.fragment).collect();
    assert_eq!(more, [2]);
    let more: Vec<u8> =
        plan.answered(0, 2, Answer::Bad).iter().map(|fetch| fetch.fragment).collect();
    assert_eq!(more, [1], "the wanted one itself, at the very last");
    for fragment in [3, 4, 5] {
        plan.answered(0, fragment, Answer::Good);
    }
    plan.answered(0, 1, Answer::Bad);
    assert_eq!(plan.state(0), ColumnState::Lost);
}

#[test]
fn a_slow_osd_is_asked_round_and_may_still_win() {
    let mut plan = ReadPlan::new(&manifest(), &[(0, 0..8)], |_| Rank::Good);
    plan.start();
    assert_eq!(plan.hedge().len(), 4);
    assert_eq!(plan.hedge().len(), 1, "a second hedge asks one more");
    assert!(plan.hedge().is_empty());
    plan.answered(0, 0, Answer::Good);
    assert_eq!(plan.state(0), ColumnState::Direct);
}

#[test]
fn sources_without_bytes_in_the_range_cost_nothing() {
    // One frame in fragment 3; 0..3 are empty, 4 and 5 copies of it.
    let mut places = stored(&[9, 9, 9, 3, 4, 5]);
    places[..3].fill(Place::Empty);
    let manifest = manifest_with("4,2,5,1", &places);
    let mut plan = ReadPlan::new(&manifest, &[(3, 0..116)], |_| Rank::Good);
    plan.start();
    let fetches = plan.answered(0, 3, Answer::Bad);
    assert_eq!(fetches.iter().map(|fetch| fetch.fragment).collect::<Vec<_>>(), [4]);
    plan.answered(0, 4, Answer::Good);
    assert_eq!(plan.state(0), ColumnState::Rebuild(vec![0, 1, 2, 4]));
}

proptest! {
    /// Whatever fails, hangs or is missing: what k fragments can answer is answered, the rest is lost, nothing twice.
    #[test]
    fn a_column_is_answered_exactly_when_it_can_be(
        holes in proptest::collection::vec(proptest::bool::weighted(0.2), 6),
        bad in proptest::collection::vec(proptest::bool::weighted(0.4), 6),
        ranks in proptest::collection::vec(0..3_u8, 6),
        wanted in 0..4_u8,
        order in proptest::collection::vec((any::<prop::sample::Index>(), proptest::bool::weighted(0.2)), 40),
    ) {
        let places: Vec<Place> = holes
            .iter()
            .zip(0..)
            .map(|(hole, osd)| if *hole { Place::Hole } else { Place::Stored(OsdId(osd)) })
            .collect();
        let manifest = manifest_with("4,2,5,1", &places);
        let rank = |osd: OsdId| match ranks[usize::try_from(osd.0).unwrap()] {
            0 => Rank::Good,
            1 => Rank::Doubtful,
            _ => Rank::Down,
        };
        let mut plan = ReadPlan::new(&manifest, &[(wanted, 4..100)], rank);
        let mut open = plan.start();
        let mut asked: BTreeSet<u8> = open.iter().map(|fetch| fetch.fragment).collect();
        prop_assert_eq!(asked.len(), open.len());
        for (pick, hedge) in order {
            if plan.is_settled() { break; }
            let mut more = Vec::new();
            if hedge { more.extend(plan.hedge()); }
            let fetch = open.swap_remove(pick.index(open.len()));
            let good = !bad[usize::from(fetch.fragment)];
            more.extend(plan.answered(0, fetch.fragment, if good { Answer::Good } else { Answer::Bad }));
            for fetch in &more {
                prop_assert!(asked.insert(fetch.fragment), "asked twice");
            }
            open.extend(more);
        }
        let sound = |at: &u8| !holes[usize::from(*at)] && !bad[usize::from(*at)];
        let direct = sound(&wanted);
        let others = (0..6).filter(|at| *at != wanted).filter(sound).count();
        match plan.state(0) {
            ColumnState::Pending => prop_assert!(false, "stuck"),
            ColumnState::Direct => prop_assert!(direct),
            ColumnState::Rebuild(sources) => {
                prop_assert_eq!(sources.len(), 4);
                prop_assert!(sources.iter().all(|at| sound(at) && *at != wanted));
            }
            ColumnState::Lost => prop_assert!(!direct && others < 4),
        }
    }
}
