//! An owner by itself: what it may do while arakoon's answer is on its way.
//!
//! Invariant: the right to read never rests on what a claimant need not end (P16).

use model::{DtlGeneration, Epoch, Lsn, Now, RouterId};
use router_core::dtl::owner::{
    Effect, Failure, FromTarget, Opening, Owner, Patience, Proposed, ReadRight, RequestId, ToTarget,
};
use wire::dtl::{DtlFacts, DtlMode, DtlState, Held};

use crate::support::{VDISK, at};

const TARGET: RouterId = RouterId(1);
const OTHER: RouterId = RouterId(2);

/// The one request of this kind.
fn asked(out: &[Effect], wanted: impl Fn(&ToTarget) -> bool) -> RequestId {
    let found = out.iter().find_map(|effect| {
        let Effect::Send { target: TARGET, request, what } = effect else { return None };
        wanted(what).then_some(*request)
    });
    found.unwrap_or_else(|| panic!("not asked: {out:?}"))
}

/// Begun by the first proposal, with these records recovered; the target's log is being made.
fn catching_up(recovered: u64, now: Now, out: &mut Vec<Effect>) -> Owner {
    catching_up_as(DtlMode::Async, recovered, now, out)
}

fn catching_up_as(mode: DtlMode, recovered: u64, now: Now, out: &mut Vec<Effect>) -> Owner {
    let facts = DtlFacts::standalone();
    let next = DtlFacts {
        state: DtlState::CatchingUp,
        generation: DtlGeneration(1),
        targets: vec![TARGET],
        ..facts.clone()
    };
    let opening = Opening {
        vdisk: VDISK,
        epoch: Epoch(1),
        me: RouterId(100),
        mode,
        unprotected: false,
        strict: false,
        facts,
        next,
        base: Lsn::ZERO,
        patience: Patience::default(),
    };
    let mut owner = Owner::open(opening, now, out);
    for lsn in 1..=recovered {
        owner.appended(Lsn(lsn), 4224);
    }
    owner.local_synced(Lsn(recovered));
    owner.decided(Proposed::Committed, now, out);
    owner
}

const EMPTY: Held = Held {
    generation: DtlGeneration(1),
    epoch: Epoch(1),
    base: Lsn::ZERO,
    last: Lsn::ZERO,
    synced: Lsn::ZERO,
    damaged: false,
};

/// InSync with one target, which has just given it a lease.
fn in_sync(now: Now) -> Owner {
    in_sync_as(DtlMode::Async, now)
}

fn in_sync_as(mode: DtlMode, now: Now) -> Owner {
    let mut out = Vec::new();
    let mut owner = catching_up_as(mode, 0, now, &mut out);
    let create = asked(&out, |what| matches!(what, ToTarget::Create { .. }));
    owner.answered((TARGET, create), Ok(FromTarget::Opened(EMPTY)), now, &mut out);
    owner.decided(Proposed::Committed, now, &mut out);
    owner.reading(now);
    out.clear();
    owner.progress(now, &mut out);
    let renew = asked(&out, |what| matches!(what, ToTarget::Renew));
    owner.answered((TARGET, renew), Ok(FromTarget::Done), now, &mut out);
    owner
}

#[test]
fn p16_who_leaves_in_sync_reads_by_lease_and_session_until_it_knows_the_outcome() {
    let now = at(1000);
    let mut owner = in_sync(now);
    let until = now.plus(std::time::Duration::from_secs(1));
    assert_eq!(owner.read_right(), ReadRight::Dtl(Some(until)));
    let mut out = Vec::new();
    owner.appended(Lsn(1), 4224);
    owner.progress(now, &mut out);
    let append = asked(&out, |what| matches!(what, ToTarget::Append { .. }));
    let full = Err(Failure::Refused("no room".to_owned()));
    owner.answered((TARGET, append), full, now, &mut out);
    assert!(owner.is_proposing(), "{out:?}");
    // Committed already, for all it knows: then nobody who claims need seal the target before he serves.
    assert_eq!(owner.read_right(), ReadRight::Both(Some(until)));
    owner.decided(Proposed::Committed, now, &mut out);
    assert_eq!(owner.facts().state, DtlState::Degraded);
    assert_eq!(owner.read_right(), ReadRight::Session);
}

#[test]
fn l4_who_leaves_in_sync_acknowledges_nothing_that_nobody_else_has() {
    for mode in [DtlMode::Sync, DtlMode::Async] {
        let now = at(1000);
        let mut owner = in_sync_as(mode, now);
        let mut out = Vec::new();
        owner.appended(Lsn(1), 4224);
        owner.progress(now, &mut out);
        let append = asked(&out, |what| matches!(what, ToTarget::Append { .. }));
        owner.answered((TARGET, append), Ok(FromTarget::Appended(Lsn(1))), now, &mut out);
        assert_eq!(owner.acks().write, Lsn(1));
        owner.appended(Lsn(2), 4224);
        let is_early = |owner: &mut Owner| owner.acks().write < owner.acks().early;
        assert_eq!(is_early(&mut owner), mode == DtlMode::Async, "rests on the lease");
        out.clear();
        owner.progress(now, &mut out);
        let append = asked(&out, |what| matches!(what, ToTarget::Append { .. }));
        let full = Err(Failure::Refused("no room".to_owned()));
        owner.answered((TARGET, append), full, now, &mut out);
        assert!(owner.is_proposing(), "{out:?}");
        // Sealed by a claimant, for all it knows: what is acknowledged now is lost.
        assert_eq!(owner.acks().write, Lsn(1));
        assert_eq!(is_early(&mut owner), mode == DtlMode::Async);
        owner.decided(Proposed::Refused, now, &mut out);
        assert_eq!(owner.acks().write, Lsn(1));
        assert_eq!(owner.read_right(), ReadRight::Never);
    }
}

#[test]
fn p13_from_the_proposal_on_the_old_target_counts_for_nothing() {
    let now = at(1000);
    let mut owner = in_sync(now);
    let mut out = Vec::new();
    owner.appended(Lsn(1), 4224);
    owner.local_synced(Lsn(1));
    owner.want_flush(Lsn(1));
    owner.progress(now, &mut out);
    let append = asked(&out, |what| matches!(what, ToTarget::Append { .. }));
    owner.answered((TARGET, append), Ok(FromTarget::Appended(Lsn(1))), now, &mut out);
    let sync = asked(&out, |what| matches!(what, ToTarget::Sync { .. }));
    let late = now.plus(Patience::default().answer);
    out.clear();
    owner.progress(late, &mut out);
    let floor = out.iter().find_map(|effect| {
        let Effect::Propose { to, .. } = effect else { return None };
        Some(to.floor)
    });
    assert_eq!(floor, Some(Lsn::ZERO), "{out:?}");
    // What it says now is above the floor that recovery will go by.
    owner.answered((TARGET, sync), Ok(FromTarget::Synced(Lsn(1))), late, &mut out);
    assert_eq!(owner.acks().flush, Lsn::ZERO);
    owner.decided(Proposed::Committed, late, &mut out);
    assert_eq!(owner.acks().flush, Lsn::ZERO);
}

#[test]
fn h_11_a_target_is_in_sync_only_when_it_holds_what_was_recovered() {
    let (now, mut out) = (at(1000), Vec::new());
    let mut owner = catching_up(3, now, &mut out);
    let create = asked(&out, |what| matches!(what, ToTarget::Create { .. }));
    out.clear();
    owner.answered((TARGET, create), Ok(FromTarget::Opened(EMPTY)), now, &mut out);
    assert!(!owner.is_proposing(), "in reach is not in sync: {out:?}");
    assert_eq!(owner.acks().flush, Lsn::ZERO);
    let append = asked(&out, |what| matches!(what, ToTarget::Append { .. }));
    let sync = asked(&out, |what| matches!(what, ToTarget::Sync { through: Lsn(3) }));
    owner.answered((TARGET, append), Ok(FromTarget::Appended(Lsn(3))), now, &mut out);
    assert!(!owner.is_proposing(), "in its memory is not in sync");
    owner.answered((TARGET, sync), Ok(FromTarget::Synced(Lsn(3))), now, &mut out);
    assert!(owner.is_proposing());
    // Only arakoon makes it so.
    assert_eq!((owner.facts().state, owner.acks().flush), (DtlState::CatchingUp, Lsn::ZERO));
    owner.decided(Proposed::Committed, now, &mut out);
    assert_eq!((owner.facts().state, owner.acks().flush), (DtlState::InSync, Lsn(3)));
}

#[test]
fn h_12_degraded_flushes_wait_for_the_backend_and_another_target_is_taken_at_once() {
    let now = at(1000);
    let mut owner = in_sync(now);
    owner.candidates(vec![TARGET, OTHER], 1);
    let mut out = Vec::new();
    owner.appended(Lsn(1), 4224);
    owner.local_synced(Lsn(1));
    owner.want_flush(Lsn(1));
    owner.progress(now, &mut out);
    let append = asked(&out, |what| matches!(what, ToTarget::Append { .. }));
    out.clear();
    let gone = Err(Failure::Refused("gone".to_owned()));
    owner.answered((TARGET, append), gone, now, &mut out);
    let next = out.iter().find_map(|effect| match effect {
        Effect::Propose { to, .. } => Some((to.state, to.targets.clone())),
        Effect::Send { .. }
        | Effect::Forget { .. }
        | Effect::Drop { .. }
        | Effect::Changed { .. }
        | Effect::Fenced => None,
    });
    assert_eq!(next, Some((DtlState::CatchingUp, vec![OTHER])));
    assert_eq!(owner.acks().flush, Lsn::ZERO);
    owner.decided(Proposed::Committed, now, &mut out);
    assert_eq!(owner.acks().flush, Lsn::ZERO, "the own log alone is no protection");
    owner.backend_has(Lsn(1));
    assert_eq!(owner.acks().flush, Lsn(1));
}

/// Written, and sent to the target, which says nothing yet.
fn written(owner: &mut Owner, lsn: u64, now: Now) -> RequestId {
    let mut out = Vec::new();
    owner.appended(Lsn(lsn), 4224);
    owner.progress(now, &mut out);
    asked(&out, |what| matches!(what, ToTarget::Append { .. }))
}

#[test]
fn l1_what_waits_when_the_mode_becomes_async_still_waits_for_every_target() {
    let (now, mut out) = (at(1000), Vec::new());
    let mut owner = in_sync_as(DtlMode::Sync, now);
    written(&mut owner, 1, now);
    let second = written(&mut owner, 2, now);
    owner.set_mode(DtlMode::Async);
    let third = written(&mut owner, 3, now);
    let acks = owner.acks();
    assert_eq!((acks.write, acks.early), (Lsn::ZERO, Lsn::ZERO), "taken when it was sync");
    owner.answered((TARGET, second), Ok(FromTarget::Appended(Lsn(2))), now, &mut out);
    let acks = owner.acks();
    assert_eq!((acks.write, acks.early), (Lsn(2), Lsn(3)), "taken since it is async");
    owner.answered((TARGET, third), Ok(FromTarget::Appended(Lsn(3))), now, &mut out);
    assert_eq!(owner.acks().write, Lsn(3));
}

#[test]
fn l1_what_waits_when_the_mode_becomes_sync_waits_for_every_target() {
    let (now, mut out) = (at(1000), Vec::new());
    let mut owner = in_sync_as(DtlMode::Async, now);
    let first = written(&mut owner, 1, now);
    assert_eq!(owner.acks().early, Lsn(1), "it might have been acknowledged, and wasn't");
    owner.set_mode(DtlMode::Sync);
    assert_eq!(owner.acks().early, Lsn::ZERO);
    owner.answered((TARGET, first), Ok(FromTarget::Appended(Lsn(1))), now, &mut out);
    assert_eq!(owner.acks().early, Lsn(1));
    written(&mut owner, 2, now);
    assert_eq!(owner.acks().early, Lsn(1));
}

/// The one proposal, decided as wished.
fn proposed(owner: &mut Owner, now: Now, mut out: Vec<Effect>) -> DtlFacts {
    let next = out.iter().find_map(|effect| {
        let Effect::Propose { to, .. } = effect else { return None };
        Some(to.clone())
    });
    let next = next.unwrap_or_else(|| panic!("nothing is proposed: {out:?}"));
    out.clear();
    owner.decided(Proposed::Committed, now, &mut out);
    next
}

#[test]
fn p13_another_number_of_targets_is_a_new_generation_that_names_who_holds_the_promise() {
    let now = at(1000);
    let mut owner = in_sync(now);
    owner.candidates(vec![TARGET, OTHER], 1);
    let append = written(&mut owner, 1, now);
    let mut out = Vec::new();
    owner.local_synced(Lsn(1));
    owner.want_flush(Lsn(1));
    owner.answered((TARGET, append), Ok(FromTarget::Appended(Lsn(1))), now, &mut out);
    let sync = asked(&out, |what| matches!(what, ToTarget::Sync { .. }));
    owner.answered((TARGET, sync), Ok(FromTarget::Synced(Lsn(1))), now, &mut out);
    assert_eq!(owner.acks().flush, Lsn(1));
    let held = owner.facts().clone();
    out.clear();
    owner.want_targets(Some(2));
    owner.progress(now, &mut out);
    let both = proposed(&mut owner, now, out);
    assert_eq!((both.state, &both.targets[..]), (DtlState::CatchingUp, &[TARGET, OTHER][..]));
    assert_eq!((both.generation, both.floor), (held.generation.next(), Lsn(1)));
    let previous = both.previous.clone().expect("who holds the promise");
    assert_eq!((previous.generation, &previous.targets[..]), (held.generation, &[TARGET][..]));
    // And back, before the second one has anything: what is said of further domains doesn't count.
    let mut out = Vec::new();
    owner.want_targets(Some(1));
    owner.candidates(vec![TARGET, OTHER], 2);
    owner.progress(now, &mut out);
    let one = proposed(&mut owner, now, out);
    assert_eq!((one.state, &one.targets[..]), (DtlState::CatchingUp, &[TARGET][..]));
    assert_eq!((one.previous, one.floor), (both.previous, Lsn(1)));
    let mut out = Vec::new();
    owner.progress(now, &mut out);
    assert!(!owner.is_proposing(), "as many as are wanted: {out:?}");
}

#[test]
fn of_too_many_targets_those_stay_that_would_be_chosen_first() {
    let (now, mut out) = (at(1000), Vec::new());
    let mut owner = in_sync(now);
    owner.candidates(vec![TARGET, OTHER], 1);
    owner.want_targets(Some(2));
    owner.progress(now, &mut out);
    let both = proposed(&mut owner, now, out);
    assert_eq!(&both.targets[..], &[TARGET, OTHER][..]);
    let mut out = Vec::new();
    owner.candidates(Vec::new(), 2);
    owner.want_targets(Some(1));
    owner.progress(now, &mut out);
    assert!(!owner.is_proposing() && owner.wants_candidates(), "who is better isn't known yet");
    owner.candidates(vec![OTHER, TARGET], 2);
    owner.progress(now, &mut out);
    let one = proposed(&mut owner, now, out);
    assert_eq!(&one.targets[..], &[OTHER][..]);
}
