//! When an edge that gets no service may have its vDisk moved to another router (P19).
//!
//! Two edges that reach different routers could have a vDisk moved to and fro for ever. So each move in a row doubles the
//! time for which the next owner is left alone, and a vDisk that stayed long in one place begins anew. The number of moves
//! in a row is a fact in arakoon; time is measured by the router that would take the vDisk, from when it first saw the
//! last move's epoch, so no two clocks are ever compared, and a router that has just started only waits longer.
//!
//! None of this is needed for safety: the claim's transaction and the seal decide who owns (P18).

use std::collections::BTreeMap;
use std::time::Duration;

use model::{Epoch, Now, VdiskId};

/// How long an owner that got the vDisk by a contest is left alone at least.
pub const HOLD_MIN: Duration = Duration::from_secs(5);
/// And at most, so that a contest is never refused for ever.
pub const HOLD_MAX: Duration = Duration::from_secs(320);
/// After so many times that long in one place the moves count as a matter of the past.
const FORGOTTEN_AFTER: u32 = 4;
/// An edge that attached so recently has service: what it complained about before is over.
pub const FRESH: Duration = Duration::from_secs(2);
/// A backend that takes what is pending shows it within this.
pub const MOVES: Duration = Duration::from_secs(15);
/// So long a backend that is full is a reason to stay: it may be full for this router only.
pub const FULL: Duration = Duration::from_secs(60);
/// So long an owner that froze a vDisk for a hand-over in vain serves on before a contest freezes it again.
pub const SPARED: Duration = Duration::from_secs(30);
/// Between two events of a vDisk that say that it is contested.
const TOLD_EVERY: Duration = Duration::from_secs(60);
/// vDisks whose owners' times are kept; more begin to count anew.
const RULED_MAX: usize = 4096;

/// How long a vDisk stays where it is after so many moves in a row.
#[must_use]
pub fn hold(rounds: u32) -> Duration {
    match rounds.checked_sub(1) {
        None => Duration::ZERO,
        Some(more) => HOLD_MIN.saturating_mul(1 << more.min(16)).min(HOLD_MAX),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The vDisk may be claimed; so many moves in a row it is then.
    Move { rounds: u32 },
    /// Not yet.
    Wait(Duration),
}

/// `rounds`: moves in a row so far. `ruled`: how long the last of them is known here.
#[must_use]
pub fn judge(rounds: u32, ruled: Duration) -> Verdict {
    let hold = hold(rounds);
    match hold.checked_sub(ruled) {
        Some(left) if !left.is_zero() => Verdict::Wait(left),
        Some(_) | None if hold.saturating_mul(FORGOTTEN_AFTER) <= ruled => {
            Verdict::Move { rounds: 1 }
        }
        Some(_) | None => Verdict::Move { rounds: rounds.saturating_add(1) },
    }
}

/// What an owner that is contested knows of itself.
#[derive(Debug, Clone, Copy, Default)]
pub struct Service {
    /// When the edge's attachment was last begun here, if it ever was.
    pub attached: Option<Now>,
    /// Changes of that edge are here, and wait for room in log or memory until the backend takes what is pending.
    pub waits_for_room: bool,
    /// Its requests wait for another edge to replay (P6), or for a hand-over to end, and not for this router.
    pub waits_for_others: bool,
    /// When what is pending got less last, unless proxies can't be used since.
    pub moved: Option<Now>,
    /// Since when proxies say that the backend itself takes nothing.
    pub full_since: Option<Now>,
    /// Since when the log's disk owes an answer, if it does.
    pub disk_owes: Option<Now>,
}

/// Whether the owner refutes the contest.
///
/// Where all that is missing is room, the edge waits for the backend, and would at every router: a claimant would only
/// recover the same changes into its own log, and be contested in turn. That is believed while what is pending gets
/// less, or for a while if proxies say that the backend is full. Nor would another router give back what an edge owes that
/// hasn't replayed; where that one can't reach this router, it contests for itself. A disk that hangs, a page map that can't
/// follow, or a backend that this router alone can't use, are no such case.
#[must_use]
pub fn is_refuted(now: Now, service: &Service) -> bool {
    let Service { attached, waits_for_room, waits_for_others, moved, full_since, disk_owes } =
        *service;
    let within = |since: Option<Now>, limit| since.is_some_and(|since| now.since(since) < limit);
    let fresh = within(attached, FRESH);
    let disk_works = disk_owes.is_none_or(|since| now.since(since) < FRESH);
    let gets_less = within(moved, MOVES) || within(full_since, FULL);
    fresh || (disk_works && (waits_for_others || (waits_for_room && gets_less)))
}

/// Whether that it is contested is told again: an outage makes every edge contest again and again. `told`: when it was last.
#[must_use]
pub fn is_told(now: Now, told: Option<Now>) -> bool {
    told.is_none_or(|told| TOLD_EVERY <= now.since(told))
}

/// Whether a router has the room to recover a contested vDisk.
#[must_use]
pub const fn has_room(used: u64, capacity: u64) -> bool {
    used <= capacity / 4 * 3
}

/// Whether a contest freezes nothing now. `in_vain`: when requests last waited for a hand-over that didn't come about.
#[must_use]
pub fn is_spared(now: Now, in_vain: Option<Now>) -> bool {
    in_vain.is_some_and(|in_vain| now.since(in_vain) < SPARED)
}

/// Since when this router knows of the last move of each vDisk.
#[derive(Debug, Default)]
pub struct Ruled {
    seen: BTreeMap<VdiskId, (Epoch, Now)>,
}

impl Ruled {
    /// How long the move to this epoch is known here.
    pub fn by(&mut self, vdisk: VdiskId, epoch: Epoch, now: Now) -> Duration {
        if RULED_MAX <= self.seen.len() && !self.seen.contains_key(&vdisk) {
            self.seen.clear();
        }
        let seen = self.seen.entry(vdisk).or_insert((epoch, now));
        if seen.0 != epoch {
            *seen = (epoch, now);
        }
        now.since(seen.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const VDISK: VdiskId = VdiskId(1);

    #[test]
    fn the_first_contest_moves_at_once_and_the_next_ones_wait_longer_and_longer() {
        assert_eq!(judge(0, Duration::ZERO), Verdict::Move { rounds: 1 });
        assert_eq!(judge(1, Duration::from_secs(4)), Verdict::Wait(Duration::from_secs(1)));
        assert_eq!(judge(1, HOLD_MIN), Verdict::Move { rounds: 2 });
        assert_eq!(judge(2, HOLD_MIN), Verdict::Wait(HOLD_MIN));
        assert_eq!(judge(3, 4 * hold(3)), Verdict::Move { rounds: 1 });
        assert_eq!(hold(u32::MAX), HOLD_MAX);
    }

    #[test]
    fn an_edge_that_has_just_attached_refutes_its_own_contest() {
        let now = Now(Duration::from_secs(100));
        let refuted = |attached| is_refuted(now, &Service { attached, ..Service::default() });
        assert!(!refuted(None));
        assert!(refuted(Some(Now(Duration::from_secs(99)))));
        assert!(!refuted(Some(Now(Duration::from_secs(98)))));
    }

    #[test]
    fn p19_an_owner_that_lacks_nothing_but_room_refutes() {
        let now = Now(Duration::from_secs(100));
        let full_since = Some(Now(Duration::from_secs(41)));
        let full = Service { waits_for_room: true, full_since, ..Service::default() };
        assert!(is_refuted(now, &full));
        let later = Now(Duration::from_secs(101));
        assert!(!is_refuted(later, &full), "it may be so here only");
        let stuck = Service { full_since: None, ..full };
        assert!(!is_refuted(now, &stuck), "nothing moves, and nobody says why");
        let moved = |at| Service { moved: Some(Now(Duration::from_secs(at))), ..stuck };
        assert!(is_refuted(now, &moved(86)) && !is_refuted(now, &moved(85)));
        let owing = |since| Service { disk_owes: Some(Now(Duration::from_secs(since))), ..full };
        assert!(is_refuted(now, &owing(99)), "a sync takes its time");
        assert!(!is_refuted(now, &owing(98)), "a disk that hangs");
        assert!(!is_refuted(now, &Service { waits_for_room: false, ..owing(100) }));
        assert!(has_room(75, 100) && !has_room(76, 100));
    }

    #[test]
    fn p19_an_owner_that_waits_for_somebody_else_refutes_unless_its_disk_hangs() {
        let now = Now(Duration::from_secs(100));
        let waits = Service { waits_for_others: true, ..Service::default() };
        assert!(is_refuted(now, &waits), "any owner would wait");
        let owing = |since| Service { disk_owes: Some(Now(Duration::from_secs(since))), ..waits };
        assert!(is_refuted(now, &owing(99)) && !is_refuted(now, &owing(98)));
    }

    #[test]
    fn l8_that_a_vdisk_is_contested_is_told_once_a_minute() {
        let at = |secs| Now(Duration::from_secs(secs));
        assert!(is_told(at(100), None));
        assert!(!is_told(at(159), Some(at(100))) && is_told(at(160), Some(at(100))));
    }

    proptest! {
        /// Edges that each reach one router only, and ask whenever they like: few moves, yet each is heard in the end.
        #[test]
        fn p19_edges_that_disagree_move_a_vdisk_ever_more_seldom(
            routers in 2_usize..4,
            pauses in prop::collection::vec(1_u64..3000, 2000),
        ) {
            let mut memories: Vec<Ruled> = (0..routers).map(|_| Ruled::default()).collect();
            let (mut owner, mut epoch, mut rounds) = (0, Epoch(1), 0);
            let (mut now, mut last_move, mut moves) = (Now(Duration::ZERO), Now(Duration::ZERO), 0);
            for (at, pause) in pauses.iter().enumerate() {
                now = now.plus(Duration::from_millis(*pause));
                let asks = at % routers;
                if asks == owner {
                    continue;
                }
                let ruled = memories[asks].by(VDISK, epoch, now);
                prop_assert!(ruled <= now.since(last_move));
                if let Verdict::Move { rounds: next } = judge(rounds, ruled) {
                    prop_assert!(hold(rounds) <= now.since(last_move));
                    (owner, epoch, rounds, last_move) = (asks, epoch.next(), next, now);
                    moves += 1;
                }
                let patience = HOLD_MAX + Duration::from_secs(60);
                prop_assert!(now.since(last_move) < patience, "nobody is heard any more");
            }
            let span = u32::try_from(now.since(Now(Duration::ZERO)).as_secs()).expect("an hour");
            prop_assert!(moves <= 8 + span / 320, "{moves} moves in {span} s");
        }
    }
}
