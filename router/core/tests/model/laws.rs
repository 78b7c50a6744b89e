//! What must be true in every state.
//!
//! The other laws are checked where a step could break them: a flush that isn't recovered (`claim::recover`), a flush of
//! another history (`edge::flushed`), a commit of an epoch that is over (`owner::arrives`).
//!
//! Invariant: a reader sees what was acknowledged last, at one router only (L1, L3).

use crate::owner::may_read;
use crate::rules::Rules;
use crate::state::{State, Write};

/// # Errors
/// Which law is broken.
pub fn check(state: &State, rules: &Rules) -> Result<(), String> {
    let readers: Vec<usize> =
        (0..usize::from(state.used.lives)).filter(|life| may_read(state, *life, rules)).collect();
    for life in &readers {
        nothing_stale(state, *life, rules)?;
    }
    match readers[..] {
        [one, other, ..] => Err(format!("openings {one} and {other} may both read (L3)")),
        _ => Ok(()),
    }
}

/// L1, L2: of each block the last write that was acknowledged to a client that lives, or flushed, or a later one.
fn nothing_stale(state: &State, life: usize, rules: &Rules) -> Result<(), String> {
    let history = &state.lives[life].history;
    let wanted = rules.bounds.writes;
    for block in wanted.iter().map(|wanted| wanted.block) {
        let of_block = |write: &usize| wanted[*write].block == block;
        let due = (0..wanted.len()).filter(of_block).rfind(|write| match state.writes[*write] {
            Write::Flushed => true,
            Write::Acked => state.edges[wanted[*write].edge].up,
            Write::New | Write::Issued => false,
        });
        let read = history.records().iter().rev().map(|record| usize::from(record.write) - 1);
        let read = read.clone().find(of_block);
        if let Some(due) = due
            && read.is_none_or(|read| read < due)
        {
            let shown = read.map_or("nothing".to_owned(), |read| format!("write {}", read + 1));
            let due = due + 1;
            return Err(format!(
                "opening {life} reads {shown} where write {due} was acknowledged (L1, L3)"
            ));
        }
    }
    Ok(())
}

/// Somebody serves what is acknowledged, and may say so.
pub fn is_in_service(state: &State, rules: &Rules) -> bool {
    may_read(state, state.arakoon.life.into(), rules)
}

/// A healthy majority: a router that runs, targets and arakoon that answer, nothing wiped, and an opening left.
///
/// Except where a restart in place reached no target and took its own log's end for the floor: until the backend has that
/// tail, nobody but this router can tell that the rest of it was never promised (L7).
pub fn must_come_back(state: &State, rules: &Rules) -> bool {
    let healthy = state.routers.iter().any(|router| router.up) && state.used.wipes == 0;
    let guessed = state.promised.len.max(state.namespace.head.len) < state.arakoon.facts.floor;
    healthy && state.used.lives < rules.bounds.lives && !guessed
}
