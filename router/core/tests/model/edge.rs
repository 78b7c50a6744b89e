//! The users' side: requests, replays, flushes (P2, P3, P4, P6). The code is `edge/core/src/session*`.
//!
//! An acknowledgement costs nothing and binds the owner, so it is given as soon as it may be: that is the world in which
//! most can go wrong.
//!
//! Invariant: an edge applies its own writes in their order, and replays what no flush has covered.

use crate::rules::Rules;
use crate::state::{Phase, Set, State, Write};
use crate::step::Step;

fn byte(index: usize) -> u8 {
    u8::try_from(index).expect("the model's numbers are small")
}

pub fn steps(state: &State, rules: &Rules, out: &mut Vec<Step>) {
    for (index, edge) in state.edges.iter().enumerate().filter(|(_, edge)| edge.up) {
        let name = byte(index);
        for (life, serving) in state.lives.iter().enumerate() {
            let serves = serving.phase == Phase::Serving;
            // An edge that has seen an epoch attaches at no lower one.
            if serves && usize::from(edge.at) < life {
                out.push(Step::Attach { edge: name, life: byte(life) });
            }
        }
        let (life, at) = (edge.at, &state.lives[usize::from(edge.at)]);
        if at.phase != Phase::Serving {
            continue;
        }
        let mine =
            || (0..rules.bounds.writes.len()).filter(|w| rules.bounds.writes[*w].edge == index);
        let missing = |w: &usize| at.history.position(byte(w + 1)).is_none();
        // In the order of sequences (P3): the first that isn't applied there.
        if let Some(next) = mine().filter(|w| state.writes[*w] != Write::Flushed).find(missing)
            && may_issue(state, rules, next)
        {
            out.push(Step::Write { write: byte(next + 1), life });
        }
        let covered = |w: usize| {
            state.writes[w] == Write::Acked
                && at.history.position(byte(w + 1)).is_some_and(|lsn| lsn <= at.flushed)
        };
        if at.begun && mine().any(covered) {
            out.push(Step::Flushed { edge: name, life });
        }
    }
    if state.used.ends < rules.bounds.ends {
        let up = state.edges.iter().enumerate().filter(|(_, edge)| edge.up);
        out.extend(up.map(|(edge, _)| Step::EdgeEnds { edge: byte(edge) }));
    }
}

/// A block belongs to one edge at a time (P4): the next one takes over when the one before has ended.
fn may_issue(state: &State, rules: &Rules, write: usize) -> bool {
    if state.writes[write] != Write::New {
        return true;
    }
    let wanted = rules.bounds.writes;
    (0..write).filter(|before| wanted[*before].block == wanted[write].block).all(|before| {
        let (edge, same) = (wanted[before].edge, wanted[before].edge == wanted[write].edge);
        same || !state.edges[edge].up
    })
}

pub fn take(state: &mut State, step: Step, rules: &Rules) -> Result<(), String> {
    match step {
        Step::Write { write, life } => {
            let index = usize::from(write) - 1;
            let at = &mut state.lives[usize::from(life)];
            let record = crate::state::Record { epoch: at.epoch, write };
            at.history.push(record);
            let lsn = at.history.len;
            let log = &mut state.routers[usize::from(at.router)];
            if !log.place(lsn, record) {
                // No room: the request waits for ever, which is no state of its own.
                at.history = at.history.prefix(lsn - 1);
                return Ok(());
            }
            let acked = if at.begun { Write::Acked } else { Write::Issued };
            state.writes[index] = state.writes[index].max(acked);
        }
        Step::Attach { edge, life } => {
            state.edges[usize::from(edge)].at = life;
            acknowledge(state, rules, usize::from(edge));
        }
        Step::Flushed { edge, life } => return flushed(state, rules, edge, life),
        Step::EdgeEnds { edge } => {
            state.used.ends += 1;
            state.edges[usize::from(edge)] = Default::default();
            for life in &mut state.lives {
                life.awaiting = life.awaiting.without(edge.into());
            }
        }
        other => unreachable!("{other} isn't an edge's"),
    }
    Ok(())
}

/// P6: who has replayed all that isn't applied there says so. It is said at once: only then is anything read.
pub fn replayed(state: &mut State, rules: &Rules) {
    for (index, edge) in state.edges.iter().enumerate().filter(|(_, edge)| edge.up) {
        let at = &mut state.lives[usize::from(edge.at)];
        let applied = |(write, wanted): (usize, &crate::rules::Wanted)| {
            wanted.edge != index
                || matches!(state.writes[write], Write::New | Write::Flushed)
                || at.history.position(byte(write + 1)).is_some()
        };
        if at.phase == Phase::Serving && rules.bounds.writes.iter().enumerate().all(applied) {
            at.awaiting = at.awaiting.without(index);
        }
    }
}

/// P3: what an owner says is applied is done.
pub fn acknowledge(state: &mut State, rules: &Rules, edge: usize) {
    let at = &state.lives[usize::from(state.edges[edge].at)];
    for (index, wanted) in rules.bounds.writes.iter().enumerate() {
        let write = &mut state.writes[index];
        if wanted.edge == edge
            && *write == Write::Issued
            && at.history.position(byte(index + 1)).is_some()
        {
            *write = Write::Acked;
        }
    }
}

/// From here on what is covered is nowhere but where the protocol says.
fn flushed(state: &mut State, rules: &Rules, edge: u8, life: u8) -> Result<(), String> {
    let at = state.lives[usize::from(life)];
    for (index, wanted) in rules.bounds.writes.iter().enumerate() {
        let covered = at.history.position(byte(index + 1)).is_some_and(|lsn| lsn <= at.flushed);
        let write = &mut state.writes[index];
        if wanted.edge == usize::from(edge) && *write == Write::Acked && covered {
            *write = Write::Flushed;
        }
    }
    let now = at.history.prefix(at.flushed);
    if now.begins_with(&state.promised) {
        state.promised = now;
    } else if !state.promised.begins_with(&now) {
        return Err("two owners acknowledged flushes of different histories (L4)".to_owned());
    }
    let newest = &state.lives[usize::from(state.arakoon.life)];
    if newest.phase == Phase::Serving && !newest.history.begins_with(&state.promised) {
        return Err("a flush is acknowledged that the newest owner didn't recover (L2)".to_owned());
    }
    Ok(())
}

/// Everybody who must replay.
pub fn living(state: &State) -> Set {
    let up = state.edges.iter().enumerate().filter(|(_, edge)| edge.up);
    up.fold(Set::default(), |all, (edge, _)| all.with(edge))
}
