//! Everything that can happen next.
//!
//! Invariant: [`steps`] lists exactly what may happen in a state; [`take`] carries one out and says what it broke.

use std::fmt;

use crate::rules::{Fault, Rules};
use crate::state::{Phase, ROUTERS, Session, Set, State, TARGETS};
use crate::{claim, edge, owner};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// A request is applied at an owner, for the first time or replayed.
    Write {
        write: u8,
        life: u8,
    },
    Attach {
        edge: u8,
        life: u8,
    },
    Flushed {
        edge: u8,
        life: u8,
    },
    EdgeEnds {
        edge: u8,
    },
    SyncLog {
        life: u8,
    },
    Create {
        life: u8,
        target: u8,
    },
    Append {
        life: u8,
        target: u8,
    },
    SyncTarget {
        life: u8,
        target: u8,
    },
    Propose {
        life: u8,
        targets: Set,
        in_sync: bool,
    },
    ProposalLands {
        life: u8,
    },
    ProposalKnown {
        life: u8,
    },
    Commit {
        life: u8,
        to: u8,
    },
    CommitLands {
        life: u8,
    },
    SessionGone {
        life: u8,
    },
    ClaimFromGone {
        router: u8,
    },
    ClaimInPlace {
        router: u8,
    },
    Seal {
        life: u8,
        target: u8,
    },
    Raise {
        life: u8,
    },
    Recover {
        life: u8,
    },
    PowerCut {
        router: u8,
    },
    Start {
        router: u8,
    },
    TargetPowerCut {
        target: u8,
    },
    TargetWiped {
        target: u8,
    },
}

impl Step {
    /// An accident, or somebody dead coming back: what a way back to service doesn't rest on.
    pub fn is_accident(self) -> bool {
        matches!(
            self,
            Self::PowerCut { .. }
                | Self::Start { .. }
                | Self::TargetPowerCut { .. }
                | Self::TargetWiped { .. }
                | Self::EdgeEnds { .. }
        )
    }
}

fn byte(index: usize) -> u8 {
    u8::try_from(index).expect("the model's numbers are small")
}

/// Everything that may happen now.
pub fn steps(state: &State, rules: &Rules, out: &mut Vec<Step>) {
    out.clear();
    edge::steps(state, rules, out);
    for life in 0..usize::from(state.used.lives) {
        owner::steps(state, life, rules, out);
        claim::steps(state, life, out);
    }
    // P17: its holder has stopped by its own clock before, or is dead. Nobody asks for another one's.
    let life = state.arakoon.life;
    if state.lives[usize::from(life)].session == Session::Valid {
        out.push(Step::SessionGone { life });
    }
    claim::claims(state, rules, out);
    let (bounds, used) = (&rules.bounds, &state.used);
    for router in 0..ROUTERS {
        if !state.routers[router].up {
            out.push(Step::Start { router: byte(router) });
        } else if used.crashes < bounds.crashes {
            out.push(Step::PowerCut { router: byte(router) });
        }
    }
    for target in 0..TARGETS {
        let holds = state.targets[target].newest().is_some();
        let target = byte(target);
        if holds && used.target_restarts < bounds.target_restarts {
            out.push(Step::TargetPowerCut { target });
        }
        if holds && used.wipes < bounds.wipes {
            out.push(Step::TargetWiped { target });
        }
    }
}

/// # Errors
/// What law is broken by it.
pub fn take(state: &mut State, step: Step, rules: &Rules) -> Result<(), String> {
    match step {
        Step::Write { .. } | Step::Attach { .. } | Step::Flushed { .. } | Step::EdgeEnds { .. } => {
            edge::take(state, step, rules)?;
        }
        Step::SyncLog { .. }
        | Step::Create { .. }
        | Step::Append { .. }
        | Step::SyncTarget { .. }
        | Step::Propose { .. }
        | Step::ProposalLands { .. }
        | Step::ProposalKnown { .. }
        | Step::Commit { .. }
        | Step::CommitLands { .. } => owner::take(state, step, rules)?,
        Step::ClaimFromGone { .. }
        | Step::ClaimInPlace { .. }
        | Step::Seal { .. }
        | Step::Raise { .. }
        | Step::Recover { .. } => claim::take(state, step, rules)?,
        Step::SessionGone { life } => {
            let at = &mut state.lives[usize::from(life)];
            let outlived = rules.broken(Fault::NoSessionMargin) && at.phase != Phase::Over;
            at.session = if outlived { Session::Outlived } else { Session::Gone };
        }
        Step::PowerCut { router } => {
            state.routers[usize::from(router)].lose_unsynced();
            crash(state, router);
        }
        Step::Start { router } => {
            let router = &mut state.routers[usize::from(router)];
            router.up = true;
            router.served = false;
            // What the scan found is synced before anything rests on it.
            router.sync();
        }
        Step::TargetPowerCut { target } => {
            state.used.target_restarts += 1;
            let target = &mut state.targets[usize::from(target)];
            for log in &mut target.logs {
                log.history = log.history.prefix(log.synced);
            }
            // What a life before this one may have granted is waited for: `granted` stays.
        }
        Step::TargetWiped { target } => {
            state.used.wipes += 1;
            state.targets[usize::from(target)] = Default::default();
        }
    }
    owner::tend(state, rules);
    state.forget(rules);
    crate::laws::check(state, rules)
}

fn crash(state: &mut State, router: u8) {
    state.used.crashes += 1;
    state.routers[usize::from(router)].up = false;
    for life in state.lives.iter_mut().filter(|life| life.router == router) {
        life.phase = Phase::Over;
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let life = |life: u8| format!("opening {life}");
        match *self {
            Self::Write { write, life: l } => write!(f, "{} applies write {write}", life(l)),
            Self::Attach { edge, life: l } => write!(f, "edge {edge} attaches at {}", life(l)),
            Self::Flushed { edge, life: l } => {
                write!(f, "{} acknowledges a flush of edge {edge}", life(l))
            }
            Self::EdgeEnds { edge } => write!(f, "edge {edge} ends, and another may take over"),
            Self::SyncLog { life: l } => write!(f, "{}: its router syncs its log", life(l)),
            Self::Create { life: l, target } => {
                write!(f, "{} has its log made at target {target}", life(l))
            }
            Self::Append { life: l, target } => {
                write!(f, "{} appends all it has at target {target}", life(l))
            }
            Self::SyncTarget { life: l, target } => write!(f, "{} syncs target {target}", life(l)),
            Self::Propose { life: l, targets, in_sync } => {
                let targets: Vec<usize> = targets.iter().collect();
                let what = if in_sync { "InSync" } else { "another set of targets" };
                write!(f, "{} proposes {what}: {targets:?}", life(l))
            }
            Self::ProposalLands { life: l } => {
                write!(f, "arakoon decides about the proposal of {}", life(l))
            }
            Self::ProposalKnown { life: l } => write!(f, "{} hears arakoon's decision", life(l)),
            Self::Commit { life: l, to } => {
                write!(f, "{} sends a unit through LSN {to} to the backend", life(l))
            }
            Self::CommitLands { life: l } => write!(f, "the unit of {} arrives", life(l)),
            Self::SessionGone { life: l } => write!(f, "arakoon ends the session of {}", life(l)),
            Self::ClaimFromGone { router } => {
                write!(f, "router {router} claims the vDisk from its owner")
            }
            Self::ClaimInPlace { router } => write!(f, "router {router} claims its own vDisk"),
            Self::Seal { life: l, target } => write!(f, "{} seals target {target}", life(l)),
            Self::Raise { life: l } => write!(f, "{} raises the namespace's epoch", life(l)),
            Self::Recover { life: l } => write!(f, "{} reads the head and recovers", life(l)),
            Self::PowerCut { router } => {
                write!(f, "router {router} loses power, and what its log hadn't synced")
            }
            Self::Start { router } => write!(f, "router {router} starts"),
            Self::TargetPowerCut { target } => {
                write!(f, "target {target} loses power, and what it hadn't synced; it starts again")
            }
            Self::TargetWiped { target } => write!(f, "target {target} is wiped, and starts empty"),
        }
    }
}
