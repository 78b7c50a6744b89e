//! Claim, seal, commit: every order of events up to a bound (L1–L4, L7, P2, P3, P6, P10–P13, P16–P18).
//!
//! A model checker. Arakoon's record, two routers that crash and restart in place, two DTL targets that lose power and are
//! wiped, the namespace's fence and head with commits that land late, two edges that replay. What decides is the code itself
//! where it can be asked (`takeover::judge`, `target::confirm`); the rest is written out beside the place it follows.
//!
//! | module | holds |
//! | --- | --- |
//! | [`state`], [`values`] | the world at one moment |
//! | [`step`] | what can happen |
//! | [`edge`], [`owner`], [`claim`] | how it happens |
//! | [`laws`] | what must be true |
//! | [`rules`] | bounds, and faults that are put in |
//! | [`search`] | all of it, breadth first |
//!
//! Invariant: the true model breaks no law within its bounds, and every fault does.

#![expect(
    clippy::wildcard_enum_match_arm,
    clippy::fn_params_excessive_bools,
    reason = "each module takes its own steps of all there are; a flag of a small helper reads well enough"
)]

mod claim;
mod edge;
mod laws;
mod owner;
mod rules;
mod search;
mod state;
mod step;
mod values;

use rules::{Bounds, Fault, Rules, Wanted};
use search::{Found, search};
use step::Step;

const fn wanted(edge: usize, block: u8) -> Wanted {
    Wanted { edge, block }
}

const ONE: &[Wanted] = &[wanted(0, 0)];
const TWO: &[Wanted] = &[wanted(0, 0), wanted(0, 0)];
const TWO_EDGES: &[Wanted] = &[wanted(0, 0), wanted(1, 1)];
/// One edge writes a block twice and ends; another takes over and writes it.
const TAKE_OVER: &[Wanted] = &[wanted(0, 0), wanted(0, 0), wanted(1, 0)];

/// The first owner's log has lost two writes that a target has, and their edge is gone.
const LOST_TAIL: &[Step] = &[
    Step::Write { write: 1, life: 0 },
    Step::Write { write: 2, life: 0 },
    Step::Append { life: 0, target: 0 },
    Step::PowerCut { router: 0 },
    Step::EdgeEnds { edge: 0 },
    Step::Start { router: 0 },
];

/// A unit is on its way to the backend, and may arrive whenever it likes.
const UNIT_UNDER_WAY: &[Step] =
    &[Step::Write { write: 1, life: 0 }, Step::Commit { life: 0, to: 1 }];
/// A flush rests on the target.
const FLUSHED: &[Step] = &[
    Step::Write { write: 1, life: 0 },
    Step::Append { life: 0, target: 0 },
    Step::SyncLog { life: 0 },
    Step::Flushed { edge: 0, life: 0 },
];

/// Two openings, nothing else.
const LEAST: Bounds = Bounds {
    name: "two openings",
    writes: ONE,
    lives: 2,
    copies: 1,
    crashes: 0,
    wipes: 0,
    target_restarts: 0,
    changes: 0,
    ends: 0,
    before: &[],
};
const CHANGE: Bounds = Bounds { name: "a change of targets", changes: 1, ..LEAST };
const CRASH: Bounds = Bounds { name: "a crash, a change", crashes: 1, ..CHANGE };
const TAIL: Bounds = Bounds {
    name: "a lost tail, then a takeover",
    writes: TAKE_OVER,
    lives: 3,
    crashes: 1,
    ends: 1,
    before: LOST_TAIL,
    ..LEAST
};

/// What CI looks at.
const USUAL: [Bounds; 8] = [
    Bounds { name: "two writes, a crash, a change", writes: TWO, ..CRASH },
    Bounds { name: "two edges", writes: TWO_EDGES, ..LEAST },
    Bounds { name: "three openings, two crashes", lives: 3, crashes: 2, ..LEAST },
    Bounds { name: "a crash, two changes", changes: 2, ..CRASH },
    Bounds { name: "a crash, a wipe", wipes: 1, ..CRASH },
    Bounds { name: "a crash, a target's power cut", target_restarts: 1, ..CRASH },
    Bounds { name: "two copies, two changes", copies: 2, changes: 2, ..LEAST },
    TAIL,
];

/// And what a soak looks at.
const LARGE: [Bounds; 7] = [
    Bounds { name: "two edges, a change", writes: TWO_EDGES, ..CHANGE },
    Bounds { name: "two edges, a crash, a change", writes: TWO_EDGES, ..CRASH },
    Bounds { name: "three openings, a crash, a change", lives: 3, ..CRASH },
    Bounds { name: "four openings, two crashes", lives: 4, crashes: 2, ..LEAST },
    Bounds { name: "a crash, a wipe, a target's power cut", wipes: 1, target_restarts: 1, ..CRASH },
    Bounds { name: "two copies, a crash, two changes", copies: 2, changes: 2, ..CRASH },
    Bounds { name: "a lost tail, a takeover, two crashes", crashes: 2, ..TAIL },
];

const fn where_it_shows(fault: Fault) -> Bounds {
    match fault {
        Fault::NoSeal
        | Fault::AckBeforeDtl
        | Fault::CommitWithoutEpoch
        | Fault::HeadBeforeRaise
        | Fault::ServeBeforeReplay
        | Fault::NoLeaseMargin => LEAST,
        Fault::NoFloor
        | Fault::NoSessionMargin
        | Fault::ClaimBesideSession
        | Fault::LeaseAloneWhileLeaving => CHANGE,
        Fault::AckByOneTarget => Bounds { copies: 2, changes: 2, ..LEAST },
        Fault::SameEpoch => Bounds { writes: TWO_EDGES, before: UNIT_UNDER_WAY, ..CRASH },
        Fault::NoCatchUp => Bounds { changes: 2, before: FLUSHED, ..CRASH },
        Fault::TrustOwnLog => Bounds { lives: 3, ..CRASH },
        Fault::FloorWithoutOwnLog => Bounds { lives: 3, crashes: 1, ..LEAST },
        Fault::LogsWithoutEpochs => TAIL,
    }
}

fn counterexample(found: Found) -> Option<String> {
    let stuck = found.stuck.map(|way| ("there is no way back to service".to_owned(), way));
    let (law, way) = found.broken.or(stuck)?;
    Some(format!("{law}:\n  {}", way.join("\n  ")))
}

fn keeps_the_laws(bounds: Bounds) {
    let found = search(&Rules { bounds, fault: None }, true);
    let Found { states, steps, depth, in_service, .. } = found;
    println!(
        "{}: {states} states, {steps} steps, depth {depth}, {in_service} in service",
        bounds.name
    );
    if let Some(told) = counterexample(found) {
        panic!("{}: {told}", bounds.name);
    }
}

/// h_02, h_05, h_19.
#[test]
fn every_order_of_claims_seals_and_commits_keeps_the_laws() {
    USUAL.into_iter().for_each(keeps_the_laws);
    if std::env::var_os("HOLDFAST_SOAK").is_some() {
        LARGE.into_iter().for_each(keeps_the_laws);
    }
}

/// h_11.
#[test]
fn every_fault_has_a_counterexample() {
    for fault in Fault::ALL {
        let found = search(&Rules { bounds: where_it_shows(fault), fault: Some(fault) }, false);
        let states = found.states;
        match counterexample(found) {
            Some(told) => println!("{fault:?}, after {states} states: {told}"),
            None => panic!("{fault:?}: nothing found in {states} states"),
        }
    }
}
