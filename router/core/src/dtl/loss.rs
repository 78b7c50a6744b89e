//! What starting without what is missing would mean: which writes are given up, and what arakoon has to say then so that
//! recovery finds nothing missing any more.
//!
//! A vDisk with a gap starts only by an operator's word (L7). The decision lies in the facts themselves: they promise
//! what was found and no more, so every later claimant goes on from there, and needs no exception of its own. Targets
//! that weren't reached aren't named any more: what they hold is given up, also when they come back.
//!
//! Invariant: there is something to accept only where [`judge`] finds a gap; with the new facts it finds none.

use model::{Lsn, RouterId};
use wire::dtl::{DtlFacts, DtlPromise, DtlState};

use super::takeover::{Evidence, Gap, judge};

/// What would be given up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loss {
    pub gap: Gap,
    /// The history ends here.
    pub kept: Lsn,
    /// The last LSN that was promised, where that is known: while InSync nobody but the lost logs knows it.
    pub through: Option<Lsn>,
    /// To be committed together with the claim.
    pub facts: DtlFacts,
}

/// `None`: nothing is missing.
#[must_use]
pub fn weigh(evidence: &Evidence<'_>) -> Option<Loss> {
    let gap = judge(evidence).err()?;
    let facts = evidence.facts;
    let reached = |router: &&RouterId| evidence.sealed.iter().any(|(other, _)| other == *router);
    let reached =
        |named: &[RouterId]| -> Vec<RouterId> { named.iter().filter(reached).copied().collect() };
    let targets = reached(&facts.targets);
    let previous = facts.previous.as_ref().map(|promise| DtlPromise {
        generation: promise.generation,
        targets: reached(&promise.targets),
        through: promise.through,
    });
    let previous = previous.filter(|promise| !promise.targets.is_empty());
    let state = match facts.state {
        DtlState::Standalone => DtlState::Standalone,
        DtlState::CatchingUp | DtlState::InSync | DtlState::Degraded if targets.is_empty() => {
            DtlState::Degraded
        }
        DtlState::CatchingUp | DtlState::InSync | DtlState::Degraded => DtlState::CatchingUp,
    };
    let mut given_up = DtlFacts { state, targets, previous, floor: Lsn::ZERO, ..facts.clone() };
    let plan = judge(&Evidence { facts: &given_up, ..evidence.clone() });
    let kept = plan.expect("facts that promise nothing lack nothing").last;
    given_up.floor = kept;
    let through = match gap {
        Gap::BelowFloor { floor, .. } if facts.state != DtlState::InSync => Some(floor),
        Gap::BelowFloor { .. } | Gap::NoLog { .. } => None,
    };
    Some(Loss { gap, kept, through, facts: given_up })
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{DtlGeneration, Epoch};
    use proptest::prelude::*;
    use std::collections::BTreeMap;
    use wire::dtl::{DtlMode, Held};

    const A: RouterId = RouterId(1);
    const B: RouterId = RouterId(2);
    const OLD: RouterId = RouterId(3);

    fn held(generation: u64, base: u64, last: u64) -> Held {
        let (generation, epoch) = (DtlGeneration(generation), Epoch(1));
        Held {
            generation,
            epoch,
            base: Lsn(base),
            last: Lsn(last),
            synced: Lsn(last),
            damaged: false,
        }
    }

    fn facts(state: DtlState, targets: &[RouterId], floor: u64) -> DtlFacts {
        let (generation, through) = (DtlGeneration(4), Lsn(u64::MAX));
        let previous = Some(DtlPromise { generation, targets: vec![OLD], through });
        let generation = DtlGeneration(5);
        DtlFacts { state, generation, targets: targets.into(), floor: Lsn(floor), previous }
    }

    fn evidence<'a>(facts: &'a DtlFacts, sealed: &'a [(RouterId, Vec<Held>)]) -> Evidence<'a> {
        static NOBODY: BTreeMap<Epoch, Lsn> = BTreeMap::new();
        let (me, mode, head) = (RouterId(9), DtlMode::Sync, Lsn(10));
        Evidence { me, facts, mode, head, own_last: None, epochs: &NOBODY, sealed }
    }

    #[test]
    fn l7_without_a_gap_there_is_nothing_to_accept() {
        let facts = facts(DtlState::InSync, &[A], 12);
        assert_eq!(weigh(&evidence(&facts, &[(A, vec![held(5, 10, 12)])])), None);
    }

    #[test]
    fn l7_what_a_reached_log_holds_is_kept_and_unreached_targets_count_for_nothing_any_more() {
        let facts = facts(DtlState::CatchingUp, &[A, B], 20);
        let sealed = [(A, vec![held(5, 10, 14)])];
        let loss = weigh(&evidence(&facts, &sealed)).unwrap();
        assert_eq!((loss.kept, loss.through), (Lsn(14), Some(Lsn(20))));
        assert_eq!((loss.facts.floor, &loss.facts.targets[..]), (Lsn(14), &[A][..]));
        assert_eq!(loss.facts.previous, None);
    }

    #[test]
    fn l7_all_logs_of_an_in_sync_vdisk_gone_leaves_the_backend() {
        let facts = facts(DtlState::InSync, &[A], 12);
        let loss = weigh(&evidence(&facts, &[])).unwrap();
        assert_eq!((loss.kept, loss.through), (Lsn(10), None));
        assert_eq!((loss.facts.state, loss.facts.targets.len()), (DtlState::Degraded, 0));
    }

    proptest! {
        #[test]
        fn l7_what_is_accepted_is_what_judge_refused_and_goes_on_from_what_was_found(
            state in prop::sample::select(vec![DtlState::CatchingUp, DtlState::InSync, DtlState::Degraded]),
            named in prop::collection::vec(prop::sample::select(vec![A, B]), 0..3),
            floor in 0_u64..40,
            logs in prop::collection::vec((prop::sample::select(vec![A, B, OLD]), 4_u64..6, 5_u64..14, 0_u64..30), 0..5),
            own in prop::option::of(10_u64..35),
        ) {
            let facts = facts(state, &named, floor);
            let mut sealed: BTreeMap<RouterId, Vec<Held>> = BTreeMap::new();
            for (router, generation, base, more) in logs {
                sealed.entry(router).or_default().push(held(generation, base, base + more));
            }
            let sealed: Vec<(RouterId, Vec<Held>)> = sealed.into_iter().collect();
            let evidence = Evidence { own_last: own.map(Lsn), ..evidence(&facts, &sealed) };
            match (judge(&evidence), weigh(&evidence)) {
                (Ok(_), None) => {}
                (Err(gap), Some(loss)) => {
                    prop_assert_eq!(gap, loss.gap);
                    let then = judge(&Evidence { facts: &loss.facts, ..evidence.clone() });
                    prop_assert_eq!(then.map(|plan| plan.last), Ok(loss.kept));
                    prop_assert!(evidence.head <= loss.kept);
                    prop_assert!(loss.through.is_none_or(|through| loss.kept < through));
                }
                (judged, weighed) => prop_assert!(false, "{:?} but {:?}", judged, weighed),
            }
        }
    }
}
