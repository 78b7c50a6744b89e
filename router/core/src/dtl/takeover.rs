//! What a claimant may believe: from arakoon's facts and what sealed targets hold, where recovery reads, and what the next
//! facts are; or exactly what is missing (L7).
//!
//! The longest contiguous range of the current and the previous generation counts (P13). One sealed target of a set that
//! was InSync suffices, because nothing was acknowledged that not all of them had (P11). A log counts only below the first
//! LSN of any later epoch (P10): who restarts in place without reaching a target goes on where its own log ends, and what
//! the target has beyond that is of a history that was over then. The next facts say so (`through`) before that owner serves
//! anything: its own records of the new epoch may be lost with it, and then nothing else would tell.
//!
//! Invariant: a plan reaches the floor; and whatever the next facts promise is held by whom they name, or in the backend.

use std::collections::BTreeMap;

use model::{DtlGeneration, Epoch, Lsn, RouterId};
use wire::dtl::{DtlFacts, DtlMode, DtlPromise, DtlState, Held};

/// What a claimant knows after sealing.
#[derive(Debug, Clone)]
pub struct Evidence<'a> {
    pub me: RouterId,
    /// As arakoon had them when the claim was committed.
    pub facts: &'a DtlFacts,
    pub mode: DtlMode,
    /// Last LSN in the backend.
    pub head: Lsn,
    /// Last LSN that this router's own log holds without a gap above the head. Only when the last owner was this router,
    /// and that log is the one its record names.
    pub own_last: Option<Lsn>,
    /// (epoch → first LSN), of the backend's head and of what the own log holds above it.
    pub epochs: &'a BTreeMap<Epoch, Lsn>,
    /// Who was sealed, and what they hold.
    pub sealed: &'a [(RouterId, Vec<Held>)],
}

/// Where the records that neither the backend nor the own log has are read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    pub router: RouterId,
    pub generation: DtlGeneration,
    pub from: Lsn,
    pub through: Lsn,
}

/// How to go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The own log and the backend suffice without it.
    pub source: Option<Source>,
    /// Where the vDisk's history ends after recovery.
    pub last: Lsn,
    /// To be proposed, with the next generation, before anything is acknowledged (P11).
    pub next: DtlFacts,
}

/// Why the vDisk can't start by itself (L7).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Gap {
    #[error(
        "the DTL was InSync, and none of its targets ({targets}) shows a sound log of generation {generation} that joins the backend's head {head}; flushed writes above LSN {head} may be missing"
    )]
    NoLog { targets: String, generation: DtlGeneration, head: Lsn },
    #[error(
        "writes through LSN {floor} were promised, and LSNs {from} to {floor} are neither in the backend (head {head}) nor in any DTL that was reached"
    )]
    BelowFloor { floor: Lsn, from: Lsn, head: Lsn },
}

struct Candidate {
    router: RouterId,
    generation: DtlGeneration,
    last: Lsn,
}

/// See the module's page.
///
/// # Errors
/// When what was promised isn't all there.
pub fn judge(evidence: &Evidence<'_>) -> Result<Plan, Gap> {
    let Evidence { facts, head, own_last, .. } = *evidence;
    let current = candidates(evidence, (facts.generation, Lsn(u64::MAX)), &facts.targets);
    if facts.state == DtlState::InSync && current.is_empty() && own_last.is_none() {
        let names: Vec<String> = facts.targets.iter().map(ToString::to_string).collect();
        let targets = names.join(", ");
        return Err(Gap::NoLog { targets, generation: facts.generation, head });
    }
    let previous = facts.previous.as_ref();
    let previous = previous.map(|p| candidates(evidence, (p.generation, p.through), &p.targets));
    let all = current.iter().chain(previous.iter().flatten());
    let best = all.max_by_key(|c| (c.last, c.generation)).filter(|c| head < c.last);
    let kept = best.map_or(head, |best| best.last).max(head);
    let last = kept.max(own_last.unwrap_or(head));
    if last < facts.floor {
        return Err(Gap::BelowFloor { floor: facts.floor, from: last.next(), head });
    }
    let source = best.filter(|best| own_last.unwrap_or(head) < best.last).map(|best| Source {
        router: best.router,
        generation: best.generation,
        from: own_last.unwrap_or(head).max(head).next(),
        through: best.last,
    });
    // P13: no target shows up to where it was promised in this generation; the own log has all of that.
    let unseen = facts.state == DtlState::InSync && current.is_empty();
    let floor = facts.floor.max(if unseen { last } else { kept });
    let next = next_facts(evidence, (&current, best), (kept, last, floor));
    Ok(Plan { source, last, next })
}

/// Sound logs of this generation that join the backend's head.
fn candidates(
    evidence: &Evidence<'_>,
    (generation, through): (DtlGeneration, Lsn),
    named: &[RouterId],
) -> Vec<Candidate> {
    let sealed = evidence.sealed.iter().filter(|(router, _)| named.contains(router));
    let logs = sealed.flat_map(|(router, logs)| logs.iter().map(|held| (*router, held)));
    logs.filter(|(_, held)| held.generation == generation && !held.damaged)
        .filter(|(_, held)| held.base <= evidence.head)
        .map(|(router, held)| {
            let last = held.last.min(last_owned(evidence.epochs, held.epoch)).min(through);
            Candidate { router, generation, last }
        })
        .collect()
}

/// The last LSN that may be of this epoch (P10).
fn last_owned(epochs: &BTreeMap<Epoch, Lsn>, epoch: Epoch) -> Lsn {
    let later = epochs.range(epoch.next()..).map(|(_, first)| *first).min();
    later.map_or(Lsn(u64::MAX), |first| Lsn(first.0.saturating_sub(1)))
}

fn next_facts(
    evidence: &Evidence<'_>,
    (current, best): (&[Candidate], Option<&Candidate>),
    (kept, last, floor): (Lsn, Lsn, Lsn),
) -> DtlFacts {
    let Evidence { me, facts, mode, sealed, .. } = *evidence;
    // P11: whoever wasn't sealed may still take records of the old owner.
    let held_by = |generation| {
        let holders = current.iter().filter(|c| c.generation == generation && kept <= c.last);
        holders.map(|c| c.router).collect::<Vec<_>>()
    };
    let previous = match best {
        // What was promised lies where it was read, until it is in the backend; a log that just catches up may end below.
        Some(best) if best.generation == facts.generation && facts.floor <= best.last => {
            let (generation, through) = (best.generation, kept);
            Some(DtlPromise { generation, targets: held_by(generation), through })
        }
        None if facts.state == DtlState::InSync => {
            let (generation, targets) = (facts.generation, facts.targets.clone());
            Some(DtlPromise { generation, targets, through: last })
        }
        Some(_) | None => facts.previous.clone().map(|promise| {
            // P10: the history went on without what such a log holds beyond; never below what was promised.
            let shown = best.filter(|best| best.generation == promise.generation);
            let end = shown.map_or(last, |_| kept).max(floor);
            DtlPromise { through: promise.through.min(end), ..promise }
        }),
    };
    let reached = |router: &RouterId| sealed.iter().any(|(sealed, _)| sealed == router);
    let targets = facts.targets.iter().filter(|router| **router != me && reached(router));
    let targets: Vec<RouterId> = targets.copied().collect();
    let generation = facts.generation.next();
    let (state, targets) = match mode {
        DtlMode::NoTarget => (DtlState::Standalone, Vec::new()),
        DtlMode::Sync | DtlMode::Async if targets.is_empty() => (DtlState::Degraded, targets),
        DtlMode::Sync | DtlMode::Async => (DtlState::CatchingUp, targets),
    };
    DtlFacts { state, generation, targets, floor, previous }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::Epoch;

    const ME: RouterId = RouterId(9);
    const A: RouterId = RouterId(1);
    const B: RouterId = RouterId(2);

    fn facts(state: DtlState, targets: &[RouterId]) -> DtlFacts {
        let generation = DtlGeneration(5);
        DtlFacts { state, generation, targets: targets.into(), floor: Lsn(12), previous: None }
    }

    const ALL: Lsn = Lsn(u64::MAX);

    #[expect(clippy::unnecessary_wraps, reason = "as the facts have it")]
    fn promise(generation: u64, targets: &[RouterId], through: Lsn) -> Option<DtlPromise> {
        let generation = DtlGeneration(generation);
        Some(DtlPromise { generation, targets: targets.into(), through })
    }

    fn held(generation: u64, base: u64, last: u64) -> Held {
        Held {
            generation: DtlGeneration(generation),
            epoch: Epoch(1),
            base: Lsn(base),
            last: Lsn(last),
            synced: Lsn(last),
            damaged: false,
        }
    }

    fn evidence<'a>(facts: &'a DtlFacts, sealed: &'a [(RouterId, Vec<Held>)]) -> Evidence<'a> {
        static NOBODY: BTreeMap<Epoch, Lsn> = BTreeMap::new();
        let (mode, head) = (DtlMode::Async, Lsn(10));
        Evidence { me: ME, facts, mode, head, own_last: None, epochs: &NOBODY, sealed }
    }

    /// h_13.
    #[test]
    fn p11_one_sealed_target_of_two_suffices_and_the_set_is_cut_to_it() {
        let facts = facts(DtlState::InSync, &[A, B]);
        let sealed = [(B, vec![held(5, 7, 30)])];
        let plan = judge(&evidence(&facts, &sealed)).unwrap();
        let source =
            Source { router: B, generation: DtlGeneration(5), from: Lsn(11), through: Lsn(30) };
        assert_eq!((plan.source, plan.last), (Some(source), Lsn(30)));
        let previous = promise(5, &[B], Lsn(30));
        assert_eq!(
            plan.next,
            DtlFacts {
                state: DtlState::CatchingUp,
                generation: DtlGeneration(6),
                targets: vec![B],
                floor: Lsn(30),
                previous,
            }
        );
    }

    /// h_09, h_10.
    #[test]
    fn l7_a_wiped_or_unreachable_or_damaged_target_is_a_gap() {
        let facts = facts(DtlState::InSync, &[A]);
        let damaged = Held { damaged: true, ..held(5, 7, 30) };
        for sealed in [
            vec![],
            vec![(A, vec![])],
            vec![(A, vec![held(4, 7, 30)])],
            vec![(A, vec![held(5, 11, 30)])],
            vec![(A, vec![damaged])],
            vec![(B, vec![held(5, 7, 30)])],
        ] {
            let verdict = judge(&evidence(&facts, &sealed));
            assert!(matches!(verdict, Err(Gap::NoLog { .. })), "{sealed:?}: {verdict:?}");
        }
        let short = [(A, vec![held(5, 7, 11)])];
        let gap = Gap::BelowFloor { floor: Lsn(12), from: Lsn(12), head: Lsn(10) };
        assert_eq!(judge(&evidence(&facts, &short)), Err(gap));
    }

    /// h_10.
    #[test]
    fn p13_while_catching_up_the_former_promise_counts_too() {
        let mut facts = facts(DtlState::CatchingUp, &[B]);
        facts.previous = promise(3, &[A], ALL);
        let both = [(A, vec![held(3, 8, 12)]), (B, vec![held(5, 10, 10)])];
        let plan = judge(&evidence(&facts, &both)).unwrap();
        assert_eq!(plan.source.map(|s| (s.router, s.through)), Some((A, Lsn(12))));
        assert_eq!((plan.next.targets, plan.next.previous), (vec![B], promise(3, &[A], Lsn(12))));
        let only_new = [(B, vec![held(5, 10, 11)])];
        assert!(matches!(judge(&evidence(&facts, &only_new)), Err(Gap::BelowFloor { .. })));
    }

    #[test]
    fn p13_a_target_that_just_catches_up_doesnt_replace_who_holds_the_promise() {
        let mut facts = facts(DtlState::CatchingUp, &[B]);
        facts.floor = Lsn(20);
        facts.previous = promise(3, &[A], ALL);
        let previous = promise(3, &[A], Lsn(30));
        let sealed = [(B, vec![held(5, 10, 12)])];
        let own = Evidence { own_last: Some(Lsn(30)), ..evidence(&facts, &sealed) };
        let plan = judge(&own).unwrap();
        assert_eq!((plan.last, plan.next.floor, plan.next.previous), (Lsn(30), Lsn(20), previous));
    }

    #[test]
    fn a_restart_in_place_needs_no_target_and_keeps_their_promise() {
        let facts = facts(DtlState::InSync, &[A]);
        let own = Evidence { own_last: Some(Lsn(20)), ..evidence(&facts, &[]) };
        let plan = judge(&own).unwrap();
        assert_eq!((plan.source, plan.last, plan.next.state), (None, Lsn(20), DtlState::Degraded));
        assert_eq!(plan.next.previous, promise(5, &[A], Lsn(20)));
        // What was promised beyond the old floor is in the own log, and nobody else has been seen to have it.
        assert_eq!(plan.next.floor, Lsn(20));
        let later = judge(&Evidence { head: Lsn(15), ..evidence(&plan.next, &[]) });
        assert!(matches!(later, Err(Gap::BelowFloor { floor: Lsn(20), .. })), "{later:?}");
    }

    #[test]
    fn p13_the_floor_after_a_restart_in_place_is_what_a_sealed_target_shows() {
        let facts = facts(DtlState::InSync, &[A]);
        let sealed = [(A, vec![held(5, 7, 15)])];
        let plan =
            judge(&Evidence { own_last: Some(Lsn(20)), ..evidence(&facts, &sealed) }).unwrap();
        assert_eq!((plan.source, plan.last, plan.next.floor), (None, Lsn(20), Lsn(15)));
    }

    #[test]
    fn p10_a_target_counts_only_below_the_first_lsn_of_a_later_epoch() {
        let mut facts = facts(DtlState::Degraded, &[]);
        facts.previous = promise(5, &[A], ALL);
        // The owner of epoch 1 lost 14 to 17 from its own log in a power cut, and as epoch 2 it wrote another 14.
        let sealed = [(A, vec![held(5, 7, 17)])];
        let epochs = BTreeMap::from([(Epoch(1), Lsn(1)), (Epoch(2), Lsn(14))]);
        let second = Evidence { head: Lsn(14), epochs: &epochs, ..evidence(&facts, &sealed) };
        let plan = judge(&second).unwrap();
        assert_eq!((plan.source, plan.last), (None, Lsn(14)));
        let in_place = Evidence { own_last: Some(Lsn(15)), head: Lsn(12), ..second.clone() };
        let plan = judge(&in_place).unwrap();
        assert_eq!((plan.source, plan.last), (None, Lsn(15)));
        let untouched = Evidence { epochs: &BTreeMap::from([(Epoch(1), Lsn(1))]), ..second };
        assert_eq!(judge(&untouched).unwrap().last, Lsn(17));
    }

    /// A power cut took 14 to 17 from the owner's log; it restarted in place without its target, and its readers saw that they
    /// weren't there. All that it wrote since is lost with it, so no record of its epochs tells of that.
    #[test]
    fn p10_what_a_restart_in_place_went_on_without_doesnt_come_back_with_its_target() {
        let sealed = [(A, vec![held(5, 7, 17)])];
        let first = facts(DtlState::InSync, &[A]);
        let in_place = |facts: &DtlFacts, last| {
            judge(&Evidence { own_last: Some(Lsn(last)), ..evidence(facts, &[]) }).unwrap().next
        };
        let second = in_place(&first, 13);
        // And again, after it had written 14 and 15 anew.
        let third = in_place(&second, 15);
        for facts in [&second, &third] {
            let plan = judge(&evidence(facts, &sealed)).unwrap();
            assert_eq!((plan.last, plan.next.floor), (Lsn(13), Lsn(13)), "{facts:?}");
        }
        // Who reaches the target goes on with all of it.
        let plan =
            judge(&Evidence { own_last: Some(Lsn(13)), ..evidence(&first, &sealed) }).unwrap();
        assert_eq!((plan.last, plan.next.previous), (Lsn(17), promise(5, &[A], Lsn(17))));
    }

    #[test]
    fn the_next_target_is_never_the_claimant() {
        let facts = facts(DtlState::InSync, &[ME]);
        let sealed = [(ME, vec![held(5, 7, 30)])];
        let plan = judge(&evidence(&facts, &sealed)).unwrap();
        assert_eq!((plan.next.state, plan.next.targets), (DtlState::Degraded, vec![]));
        assert_eq!(plan.last, Lsn(30));
    }

    #[test]
    fn degraded_everything_promised_is_in_the_backend() {
        let mut facts = facts(DtlState::Degraded, &[]);
        facts.floor = Lsn(10);
        let plan = judge(&evidence(&facts, &[])).unwrap();
        assert_eq!((plan.source, plan.last), (None, Lsn(10)));
        facts.floor = Lsn(11);
        assert!(judge(&evidence(&facts, &[])).is_err());
    }
}
