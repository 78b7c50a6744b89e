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

/// The one request of this kind.
fn asked(out: &[Effect], wanted: impl Fn(&ToTarget) -> bool) -> RequestId {
    let found = out.iter().find_map(|effect| match effect {
        Effect::Send { target: TARGET, request, what } if wanted(what) => Some(*request),
        _ => None,
    });
    found.unwrap_or_else(|| panic!("not asked: {out:?}"))
}

/// InSync with one target, which has just given it a lease.
fn in_sync(now: Now) -> Owner {
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
        mode: DtlMode::Async,
        copies: 1,
        unprotected: false,
        strict: false,
        facts,
        next,
        base: Lsn::ZERO,
        patience: Patience::default(),
    };
    let mut out = Vec::new();
    let mut owner = Owner::open(opening, now, &mut out);
    owner.decided(Proposed::Committed, now, &mut out);
    let create = asked(&out, |what| matches!(what, ToTarget::Create { .. }));
    let held = Held {
        generation: DtlGeneration(1),
        epoch: Epoch(1),
        base: Lsn::ZERO,
        last: Lsn::ZERO,
        synced: Lsn::ZERO,
        damaged: false,
    };
    owner.answered((TARGET, create), Ok(FromTarget::Opened(held)), now, &mut out);
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
