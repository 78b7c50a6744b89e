//! An owner: its log, its targets, the facts in arakoon, its commits.
//!
//! Follows `router/core/src/dtl/owner.rs` (acks, decide, retarget, `read_right`), `router/core/src/dtl/target.rs` (check,
//! create, append, sync), `router/src/dtl/ties.rs` (`propose_until_known`) and `router/src/committer.rs`. Whether arakoon's
//! record names a log is asked of the real `target::confirm`.
//!
//! Invariant: an owner learns only by answers; what it sent before it died may still arrive.

use model::{DtlGeneration, Epoch, VdiskId};
use router_core::dtl::target::confirm;
use wire::dtl::LogName;

use crate::edge;
use crate::rules::{Fault, Rules};
use crate::state::{
    Commit, EDGES, Facts, Life, Log, Mode, Phase, Proposal, Session, Set, State, TARGETS, Target,
    target_id,
};
use crate::step::Step;

fn byte(index: usize) -> u8 {
    u8::try_from(index).expect("the model's numbers are small")
}

fn in_sync(life: &Life) -> bool {
    life.facts.state == Mode::InSync && life.proposal == Proposal::None
}

/// `Owner::read_right`, and the driver's guard on it.
pub fn may_read(state: &State, index: usize, rules: &Rules) -> bool {
    let life = &state.lives[index];
    if life.phase != Phase::Serving || !life.begun {
        return false;
    }
    if !life.awaiting.is_empty() && !rules.broken(Fault::ServeBeforeReplay) {
        return false;
    }
    let session = life.session != Session::Gone;
    let leased = life.leases.covers(life.facts.targets);
    match (life.facts.state, life.proposal) {
        (Mode::InSync, Proposal::None) => leased,
        (Mode::InSync, _) => leased && (session || rules.broken(Fault::LeaseAloneWhileLeaving)),
        (Mode::CatchingUp, Proposal::Sent(to) | Proposal::Committed(to))
            if to.state == Mode::InSync =>
        {
            leased && session
        }
        (Mode::CatchingUp | Mode::Degraded | Mode::Standalone, _) => session,
    }
}

/// What the driver does under the same lock after everything that happens: `Owner::acks`.
pub fn tend(state: &mut State, rules: &Rules) {
    for index in 0..usize::from(state.used.lives) {
        let life = &mut state.lives[index];
        if life.phase != Phase::Serving || !life.begun {
            continue;
        }
        let mut flush = life.committed;
        if in_sync(life) {
            let synced = life.facts.targets.iter().map(|target| life.synced[target]);
            let all = if rules.broken(Fault::AckByOneTarget) { synced.max() } else { synced.min() };
            let all = all.unwrap_or(0).min(life.log_synced);
            let all = if rules.broken(Fault::AckBeforeDtl) { life.log_synced } else { all };
            life.promised = life.promised.max(all);
            flush = flush.max(all);
        }
        life.flushed = life.flushed.max(flush);
        renew(life, &mut state.targets);
    }
    edge::replayed(state, rules);
}

/// P16: a lease is renewed whenever it can be, and runs until a seal has waited for its end: that is when a reader is most
/// dangerous.
fn renew(life: &mut Life, targets: &mut [Target; TARGETS]) {
    let into = matches!(life.proposal, Proposal::Sent(to) | Proposal::Committed(to) if to.state == Mode::InSync);
    if life.facts.state != Mode::InSync && !into {
        return;
    }
    for target in life.facts.targets.iter() {
        if life.created.has(target) && named(&targets[target], life).is_some() {
            life.leases = life.leases.with(target);
            targets[target].granted = true;
        }
    }
}

/// What an owner may do. Of one that was claimed from, only what could still have an effect: that it hears of its end, or
/// not, changes nothing for others.
pub fn steps(state: &State, index: usize, rules: &Rules, out: &mut Vec<Step>) {
    let at = &state.lives[index];
    let life = byte(index);
    if matches!(at.proposal, Proposal::Sent(_)) {
        out.push(Step::ProposalLands { life });
    }
    if at.commit.is_some() {
        out.push(Step::CommitLands { life });
    }
    if at.phase != Phase::Serving {
        return;
    }
    let newest = at.epoch == state.arakoon.epoch;
    if matches!(at.proposal, Proposal::Committed(_)) {
        out.push(Step::ProposalKnown { life });
    }
    if at.log_synced < at.history.len {
        out.push(Step::SyncLog { life });
    }
    if at.commit.is_none() && takes_commits(state, at, rules) {
        out.extend((at.committed + 1..=at.history.len).map(|to| Step::Commit { life, to }));
    }
    if !at.begun {
        return;
    }
    for name in at.facts.targets.iter() {
        let target = byte(name);
        let log = named(&state.targets[name], at).filter(|log| at.synced[name] <= log.history.len);
        if !at.created.has(name) {
            if newest {
                out.push(Step::Create { life, target });
            }
            continue;
        }
        if log.is_some_and(|log| log.history.len < at.history.len) {
            out.push(Step::Append { life, target });
        }
        if log.is_some_and(|log| at.synced[name] < log.history.len) {
            out.push(Step::SyncTarget { life, target });
        }
    }
    let may_change = at.proposal == Proposal::None && state.used.changes < rules.bounds.changes;
    if newest && may_change {
        propose(at, life, rules, out);
    }
}

/// L4.
fn takes_commits(state: &State, life: &Life, rules: &Rules) -> bool {
    state.namespace.fence <= life.epoch || rules.broken(Fault::CommitWithoutEpoch)
}

/// `Owner::decide`. Any target may have failed, and any other one may have been found.
fn propose(at: &Life, life: u8, rules: &Rules, out: &mut Vec<Step>) {
    let members = at.facts.targets;
    let caught_up = |target| {
        at.created.has(target)
            && (at.goal[target] <= at.synced[target] || rules.broken(Fault::NoCatchUp))
    };
    let is_in_sync = at.facts.state == Mode::InSync;
    if at.facts.state == Mode::CatchingUp && members.iter().all(caught_up) {
        return out.push(Step::Propose { life, targets: members, in_sync: true });
    }
    let others = (0..1 << TARGETS).map(Set).filter(|choice| *choice != members);
    for targets in others.filter(|choice| choice.len() <= rules.bounds.copies) {
        // Degraded at once is worth a look only where something was promised.
        if !targets.is_empty() || is_in_sync {
            out.push(Step::Propose { life, targets, in_sync: false });
        }
    }
}

/// `Owner::retarget`, and the end of a catch-up.
fn proposed(at: &Life, targets: Set, in_sync: bool, rules: &Rules) -> Facts {
    let facts = at.facts;
    if in_sync {
        let synced = targets.iter().map(|target| at.synced[target]).min().unwrap_or(0);
        let floor = facts.floor.max(synced);
        return Facts { state: Mode::InSync, floor, previous: None, ..facts };
    }
    let was_in_sync = facts.state == Mode::InSync;
    let no_floor = rules.broken(Fault::NoFloor);
    Facts {
        state: if targets.is_empty() { Mode::Degraded } else { Mode::CatchingUp },
        generation: facts.generation + 1,
        targets,
        floor: if no_floor { facts.floor } else { facts.floor.max(at.promised) },
        previous: if was_in_sync {
            Some((facts.generation, facts.targets, crate::state::ALL))
        } else {
            facts.previous
        },
    }
}

pub fn take(state: &mut State, step: Step, rules: &Rules) -> Result<(), String> {
    match step {
        Step::SyncLog { life } => {
            let at = &mut state.lives[usize::from(life)];
            at.log_synced = at.history.len;
            state.routers[usize::from(at.router)].sync();
        }
        Step::Create { life, target } => create(state, life.into(), target.into(), rules),
        Step::Append { life, target } | Step::SyncTarget { life, target } => {
            asked(state, step, life.into(), target.into(), rules);
        }
        Step::Propose { life, targets, in_sync } => {
            let at = &mut state.lives[usize::from(life)];
            state.used.changes += 1;
            at.proposal = Proposal::Sent(proposed(at, targets, in_sync, rules));
        }
        Step::ProposalLands { life } => lands(state, life.into()),
        Step::ProposalKnown { life } => known(state, life.into(), rules),
        Step::Commit { life, to } => {
            let at = &mut state.lives[usize::from(life)];
            at.commit = Some(Commit { from: at.committed, to, after: at.after });
        }
        Step::CommitLands { life } => return arrives(state, life.into(), rules),
        other => unreachable!("{other} isn't an owner's"),
    }
    Ok(())
}

/// `Target::check`: the log that this owner speaks of, if it may.
fn named<'a>(target: &'a Target, life: &Life) -> Option<&'a Log> {
    let newest = target.newest().filter(|_| target.fence <= life.epoch);
    newest.filter(|log| log.generation == life.facts.generation && log.epoch == life.epoch)
}

/// `Target::on_create`, `confirm`, `Target::create`.
fn create(state: &mut State, life: usize, target: usize, rules: &Rules) {
    let at = state.lives[life];
    let name = LogName {
        vdisk: VdiskId(1),
        epoch: Epoch(at.epoch.into()),
        generation: DtlGeneration(at.facts.generation.into()),
    };
    let record = (Epoch(state.arakoon.epoch.into()), &state.arakoon.facts.real());
    let there = &state.targets[target];
    let newest = there.newest().map_or(0, |log| log.generation);
    let again = named(there, &at).is_some();
    let may = there.fence <= at.epoch && (again || newest < at.facts.generation);
    if !may || confirm(record, &name, target_id(target)).is_err() {
        return;
    }
    let there = &mut state.targets[target];
    there.fence = there.fence.max(at.epoch);
    if !again {
        let log = Log {
            generation: at.facts.generation,
            epoch: at.epoch,
            base: at.committed,
            synced: at.committed,
            // What lies below the base isn't there, and nobody looks at it.
            history: at.history.prefix(at.committed),
        };
        if !there.add(log, state.namespace.head.len) {
            return;
        }
    }
    let held = named(&state.targets[target], &at).map_or(0, |log| log.synced);
    let owner = &mut state.lives[life];
    owner.created = owner.created.with(target);
    owner.goal[target] = owner.history.len;
    owner.synced[target] = held;
    if rules.bounds.target_restarts == 0 && !rules.broken(Fault::NoCatchUp) {
        let (life, target) = (byte(life), byte(target));
        asked(state, Step::Append { life, target }, life.into(), target.into(), rules);
    }
}

/// Append and sync at a target that has the log.
fn asked(state: &mut State, step: Step, life: usize, target: usize, rules: &Rules) {
    let at = state.lives[life];
    let last = named(&state.targets[target], &at).map(|log| log.history.len);
    // Less than it promised is a loss (P12).
    let Some(mut last) = last.filter(|last| at.synced[target] <= *last) else {
        return;
    };
    let log = state.targets[target].newest_mut().expect("just seen");
    let append = matches!(step, Step::Append { .. });
    if append {
        // Records that are there already aren't looked at again: of one epoch they can't differ.
        (last + 1..=at.history.len).for_each(|lsn| log.history.push(at.history.at(lsn)));
        last = log.history.len;
    }
    // Where no target loses power, what isn't synced yet is as good as synced.
    if !append || rules.bounds.target_restarts == 0 {
        log.synced = last;
        state.lives[life].synced[target] = last.min(at.history.len);
    }
}

/// Compare-and-set, asserting the epoch; the log that is named is the proposer's from now on.
fn lands(state: &mut State, life: usize) {
    let at = &mut state.lives[life];
    let Proposal::Sent(to) = at.proposal else { return };
    let record = &mut state.arakoon;
    if record.epoch == at.epoch && record.facts == at.facts {
        record.facts = to;
        record.log = Some(at.router);
        at.proposal = Proposal::Committed(to);
    } else {
        at.proposal = Proposal::Refused;
    }
}

/// `Owner::decided`.
fn known(state: &mut State, life: usize, rules: &Rules) {
    let at = &mut state.lives[life];
    let Proposal::Committed(to) = std::mem::take(&mut at.proposal) else { return };
    let same_set = at.begun && to.generation == at.facts.generation;
    at.facts = to;
    at.begun = true;
    if !same_set {
        at.created = Set::default();
        at.leases = Set::default();
        at.goal = Default::default();
        at.synced = Default::default();
    }
    for edge in 0..EDGES {
        if usize::from(state.edges[edge].at) == life {
            edge::acknowledge(state, rules, edge);
        }
    }
}

/// L4, P18: epoch and predecessor are asserted.
fn arrives(state: &mut State, life: usize, rules: &Rules) -> Result<(), String> {
    if !takes_commits(state, &state.lives[life], rules) {
        state.lives[life].commit = None;
        return Ok(());
    }
    let at = &mut state.lives[life];
    let Some(commit) = at.commit.take() else { return Ok(()) };
    let there = &mut state.namespace;
    if there.head.len != commit.from || there.by != commit.after {
        return Ok(());
    }
    there.head = at.history.prefix(commit.to);
    there.by = byte(life) + 1;
    at.committed = commit.to;
    at.after = there.by;
    if at.epoch < there.fence {
        return Err("a commit of an epoch that is over has landed (L4)".to_owned());
    }
    let (head, promised) = (there.head, state.promised);
    if !head.begins_with(&promised) && !promised.begins_with(&head) {
        return Err("the backend's history isn't the one that was flushed (L2)".to_owned());
    }
    Ok(())
}
