//! Holes of a system of this shape that was read closely (`docs/TESTING.md`, "The holes"), shown not to be here.
//!
//! Invariant: each test bears the number of its hole.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use bytes::Bytes;
use edge_core::route::Route;
use edge_core::session::{Answer, CallKey, Effect, Failure, Op, Request, Session, Settings};
use model::{AttachmentGeneration, Epoch, Incarnation, Lsn, Now, RequestSeq, VdiskId};
use wire::router::{AppliedSequences, Attached, Durability};

const NOW: Now = Now(Duration::from_secs(100));

#[test]
fn h_01_the_walk_over_the_routers_never_ends() {
    let mut route = Route::new(vec!["a".to_owned(), "b".to_owned(), "c".to_owned()]);
    for round in 0..1000 {
        let walk: Vec<String> = (0..3).map(|_| route.next_address()).collect();
        assert_eq!(walk, ["a", "b", "c"], "round {round}");
        let pause = route.pause(round);
        assert!(pause <= Duration::from_secs(1), "round {round} waits {pause:?}");
    }
}

#[test]
fn h_22_pauses_between_tries_differ_from_edge_to_edge() {
    let mut route = Route::new(vec!["a".to_owned()]);
    for _ in 0..20 {
        route.next_address();
        let pauses: Vec<Duration> = (0..8).map(|edge| route.pause(edge * 7919)).collect();
        let (least, most) = (pauses.iter().min().unwrap(), pauses.iter().max().unwrap());
        assert!(*most <= 2 * *least, "{pauses:?}");
        assert!(*most == Duration::ZERO || least < most, "{pauses:?}");
    }
}

/// What the session wants sent; a wish for another connection is counted.
fn calls(session: &mut Session<u32>) -> (Vec<(CallKey, Request)>, usize) {
    let (mut calls, mut relinks) = (Vec::new(), 0);
    for effect in session.effects(NOW).collect::<Vec<_>>() {
        match effect {
            Effect::Call { key, request } => calls.push((key, request)),
            Effect::Relink { .. } => relinks += 1,
            Effect::Reply { .. } | Effect::Event(_) => {}
        }
    }
    (calls, relinks)
}

fn attach(session: &mut Session<u32>, epoch: u64) {
    let answer = Attached {
        vdisk: VdiskId(1),
        generation: AttachmentGeneration(1),
        epoch: Epoch(epoch),
        incarnation: Incarnation(epoch),
        size_bytes: 1 << 30,
        applied: AppliedSequences { contiguous: RequestSeq(0), above: Vec::new() },
        last_lsn: Lsn(0),
    };
    session.attached(NOW, &answer).unwrap();
}

#[test]
fn h_21_the_end_of_an_old_connection_says_nothing_about_the_new_one() {
    let mut session = Session::new(Settings::default(), 1);
    attach(&mut session, 1);
    let (replay, _) = calls(&mut session);
    session.answered(NOW, replay[0].0, Ok(Answer::Done));
    let data = Bytes::from(vec![1; 100]);
    let write = Op::Write { offset: 0, data, checksums: vec![0], durability: Durability::Normal };
    session.submit(NOW, write, 7);
    let (old, _) = calls(&mut session);
    assert_eq!(old.len(), 1);
    // A redirect: another router serves it now, and has the write replayed.
    attach(&mut session, 2);
    let (new, _) = calls(&mut session);
    assert!(new.iter().any(|(_, request)| matches!(request, Request::Write(..))), "{new:?}");
    for failure in [Failure::Lost, Failure::Elsewhere(None), Failure::Fenced] {
        session.answered(NOW, old[0].0, Err(failure.clone()));
        session.answered(NOW, replay[0].0, Err(failure));
    }
    let (more, relinks) = calls(&mut session);
    assert_eq!((more, relinks), (Vec::new(), 0), "the healthy owner is left");
    assert_eq!(session.stats().in_flight, 1);
}
