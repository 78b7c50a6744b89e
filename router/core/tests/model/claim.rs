//! Claims: from an owner that is gone, and in place; then P18's order.
//!
//! Follows `router/src/claim.rs`, `router/src/protect.rs`, `router/src/open.rs` and `router/core/src/recover.rs`. What may be
//! believed is asked of the real `takeover::judge`. The code's claim from another router is followed by one in place; here
//! they are one step, as a router that dies between the two is one that dies right after both.
//!
//! Invariant: every step may be the claimant's last.

use std::collections::BTreeMap;

use model::{Epoch, Lsn, RouterId};
use router_core::dtl::takeover::{Evidence, Plan, judge};
use wire::dtl::{DtlFacts, DtlMode, Held};

use crate::edge;
use crate::rules::{Fault, Rules};
use crate::state::{
    DiskRecord, Facts, History, Life, Mode, Phase, Proposal, ROUTERS, Record, Session, Set, State,
    small, target_id,
};
use crate::step::Step;

fn byte(index: usize) -> u8 {
    u8::try_from(index).expect("the model's numbers are small")
}

fn router_id(router: u8) -> RouterId {
    RouterId(100 + u128::from(router))
}

/// Who begins to open the vDisk.
pub fn claims(state: &State, rules: &Rules, out: &mut Vec<Step>) {
    if rules.bounds.lives <= state.used.lives {
        return;
    }
    let record = &state.arakoon;
    for router in (0..ROUTERS).filter(|router| state.routers[*router].up) {
        let router = byte(router);
        // One that was claimed from has found it out before it claims.
        let newest = &state.lives[usize::from(record.life)];
        let busy = newest.router == router && newest.phase != Phase::Over && !reopens(newest);
        if busy {
            continue;
        }
        if record.owner == router {
            out.push(Step::ClaimInPlace { router });
        } else if is_gone(state, rules) && could_recover(state, router) {
            out.push(Step::ClaimFromGone { router });
        }
    }
}

/// `Router::reopen_when_drained`: its session is lost and it rests on it, so it claims anew once the backend has all.
fn reopens(life: &Life) -> bool {
    life.phase == Phase::Serving
        && life.session == Session::Gone
        && life.facts.state != Mode::InSync
        && life.committed == life.history.len
}

/// While InSync no evidence is needed for safety, so none is asked for here (P16).
fn is_gone(state: &State, rules: &Rules) -> bool {
    let session = state.lives[usize::from(state.arakoon.life)].session;
    state.arakoon.facts.state == Mode::InSync
        || session != Session::Valid
        || rules.broken(Fault::ClaimBesideSession)
}

/// With every target in reach: that one can't be reached later is another step.
fn could_recover(state: &State, router: u8) -> bool {
    let facts = &state.arakoon.facts;
    judged(state, router, facts, facts.holders(), (None, &state.namespace.head.epochs())).is_some()
}

pub fn steps(state: &State, index: usize, out: &mut Vec<Step>) {
    let (at, life) = (&state.lives[index], byte(index));
    match at.phase {
        Phase::Claimed => {
            let unsealed = at.facts.holders().iter().filter(|target| !at.sealed.has(*target));
            out.extend(unsealed.map(|target| Step::Seal { life, target: byte(target) }));
            out.push(Step::Raise { life });
        }
        Phase::Raised => out.push(Step::Recover { life }),
        Phase::Serving | Phase::Over => {}
    }
}

pub fn take(state: &mut State, step: Step, rules: &Rules) -> Result<(), String> {
    match step {
        Step::ClaimFromGone { router } => claim(state, router, false, rules),
        Step::ClaimInPlace { router } => {
            let named = state.arakoon.log == Some(router) || rules.broken(Fault::TrustOwnLog);
            let trusts = named && !state.routers[usize::from(router)].served;
            claim(state, router, trusts, rules);
        }
        Step::Seal { life, target } => seal(state, life.into(), target.into(), rules),
        Step::Raise { life } => {
            let at = &mut state.lives[usize::from(life)];
            if at.epoch < state.namespace.fence {
                at.phase = Phase::Over;
            } else if rules.broken(Fault::HeadBeforeRaise) {
                at.history = state.namespace.head;
                at.after = state.namespace.by;
                at.phase = Phase::Raised;
            } else {
                state.namespace.fence = at.epoch;
                // What happens between this and the reading of the head could as well happen before.
                return recover(state, life.into(), rules);
            }
        }
        Step::Recover { life } => return recover(state, life.into(), rules),
        other => unreachable!("{other} isn't a claimant's"),
    }
    Ok(())
}

/// P12, P16: lower epochs are refused, what is held is synced, and every lease that was given has run out.
fn seal(state: &mut State, life: usize, target: usize, rules: &Rules) {
    let epoch = state.lives[life].epoch;
    let there = &mut state.targets[target];
    if epoch < there.fence {
        state.lives[life].phase = Phase::Over;
        return;
    }
    state.lives[life].sealed = state.lives[life].sealed.with(target);
    if rules.broken(Fault::NoSeal) {
        return;
    }
    there.fence = epoch;
    there.logs.iter_mut().for_each(|log| log.synced = log.history.len);
    if std::mem::take(&mut there.granted) && !rules.broken(Fault::NoLeaseMargin) {
        for life in state.lives.iter_mut().filter(|life| life.epoch < epoch) {
            life.leases = life.leases.without(target);
        }
    }
}

/// One transaction: owner, epoch and session, and whose log is named.
fn claim(state: &mut State, router: u8, trusts_log: bool, rules: &Rules) {
    for life in state.lives.iter_mut().filter(|life| life.router == router) {
        life.phase = Phase::Over;
    }
    let record = &mut state.arakoon;
    let same_epoch = record.owner == router && rules.broken(Fault::SameEpoch);
    record.epoch += u8::from(!same_epoch);
    record.owner = router;
    record.life = state.used.lives;
    record.log = trusts_log.then_some(router);
    state.lives[usize::from(record.life)] = Life {
        phase: Phase::Claimed,
        router,
        epoch: record.epoch,
        session: Session::Valid,
        trusts_log,
        facts: record.facts,
        ..Life::default()
    };
    state.used.lives += 1;
}

/// `Router::recover_protected`.
fn recover(state: &mut State, life: usize, rules: &Rules) -> Result<(), String> {
    let mut at = state.lives[life];
    let (mut head, mut by) = (state.namespace.head, state.namespace.by);
    if rules.broken(Fault::HeadBeforeRaise) {
        (head, by) = (at.history, at.after);
        state.namespace.fence = state.namespace.fence.max(at.epoch);
    }
    let mut history = head;
    let own = if at.trusts_log { own_log(state, &at, &head) } else { None };
    for record in own.iter().flatten() {
        history.push(*record);
    }
    let own_last = own.is_some().then_some(history.len);
    let epochs =
        if rules.broken(Fault::LogsWithoutEpochs) { BTreeMap::new() } else { history.epochs() };
    let Some(plan) =
        judged_at(state, (at.router, &head), &at.facts, at.sealed, (own_last, &epochs))
    else {
        // L7: it says what is missing, and claims anew when that may have come back.
        state.lives[life].phase = Phase::Over;
        return Ok(());
    };
    if let Some(source) = &plan.source {
        let target = (0..).find(|target| target_id(*target) == source.router);
        let there = &state.targets[target.expect("a holder is a target")];
        let log = there.sound().find(|log| u64::from(log.generation) == source.generation.0);
        let Some(log) = log.filter(|_| there.fence <= at.epoch || rules.broken(Fault::NoSeal))
        else {
            state.lives[life].phase = Phase::Over;
            return Ok(());
        };
        let log = log.history;
        for lsn in small(source.from.0)..=small(source.through.0) {
            history.push(log.at(lsn));
            if !state.routers[usize::from(at.router)].place(lsn, log.at(lsn)) {
                state.lives[life].phase = Phase::Over;
                return Ok(());
            }
        }
    }
    let mut next = Facts::of(&plan.next);
    if rules.broken(Fault::FloorWithoutOwnLog) && plan.source.is_none() && at.sealed.is_empty() {
        next.floor = at.facts.floor.max(head.len);
    }
    at = Life {
        phase: Phase::Serving,
        history,
        committed: head.len,
        after: by,
        log_synced: own_last.unwrap_or(head.len),
        proposal: Proposal::Sent(next),
        awaiting: edge::living(state),
        sealed: Set::default(),
        trusts_log: false,
        ..at
    };
    state.lives[life] = at;
    state.routers[usize::from(at.router)].served = true;
    // An owner that was claimed from meanwhile can't begin.
    if usize::from(state.arakoon.life) == life && !history.begins_with(&state.promised) {
        return Err("a flushed write is missing from what was recovered (L2, L7)".to_owned());
    }
    Ok(())
}

/// `recover::plan`: `None` = a hole. A record counts only below the first LSN of every later epoch (P10).
fn own_log(state: &State, at: &Life, head: &History) -> Option<Vec<Record>> {
    let found = state.routers[usize::from(at.router)].records();
    let mut first: BTreeMap<u8, u8> =
        head.epochs().iter().map(|(epoch, lsn)| (small(epoch.0), small(lsn.0))).collect();
    for DiskRecord { lsn, record } in found {
        let known = first.entry(record.epoch).or_insert(*lsn);
        *known = (*known).min(*lsn);
    }
    let owned = |found: &&DiskRecord| {
        first.range(found.record.epoch + 1..).all(|(_, first)| found.lsn < *first)
    };
    let mut chosen: BTreeMap<u8, Record> = BTreeMap::new();
    for DiskRecord { lsn, record } in found.iter().filter(|f| head.len < f.lsn).filter(owned) {
        let better = chosen.get(lsn).is_none_or(|other| other.epoch <= record.epoch);
        if better {
            chosen.insert(*lsn, *record);
        }
    }
    let joined = chosen.keys().zip(head.len + 1..).all(|(lsn, wanted)| *lsn == wanted);
    joined.then(|| chosen.into_values().collect())
}

fn judged(
    state: &State,
    router: u8,
    facts: &Facts,
    sealed: Set,
    own: (Option<u8>, &BTreeMap<Epoch, Lsn>),
) -> Option<Plan> {
    judged_at(state, (router, &state.namespace.head), facts, sealed, own)
}

fn judged_at(
    state: &State,
    (router, head): (u8, &History),
    facts: &Facts,
    sealed: Set,
    (own_last, epochs): (Option<u8>, &BTreeMap<Epoch, Lsn>),
) -> Option<Plan> {
    let real: DtlFacts = facts.real();
    let holds = |target: usize| (target_id(target), state.targets[target].held());
    let sealed: Vec<(RouterId, Vec<Held>)> = sealed.iter().map(holds).collect();
    let evidence = Evidence {
        me: router_id(router),
        facts: &real,
        mode: DtlMode::Async,
        head: Lsn(head.len.into()),
        own_last: own_last.map(|last| Lsn(last.into())),
        epochs,
        sealed: &sealed,
    };
    judge(&evidence).ok()
}
