//! What we know of each OSD: from its answers to our own requests and to probes.
//!
//! ```text
//!            success                     failure: unreachable, timeout, disk error
//!   Ok ◀───────────────── Down/Suspect ◀──────────────────────────────── Ok
//!    │ full                     │ probe at back-off (250 ms doubling to 10 s)
//!    ▼                          └─▶ success: Ok
//!   Full ──▶ room again: Ok
//! ```
//!
//! Down: it refuses connections or failed twice in a row. Suspect: it failed once, or was too slow several times
//! running. Neither gets new fragments; a suspect one is still asked for reads, since asking costs only a hedge.
//!
//! Invariant: an OSD that isn't Ok is probed for ever, at a bounded rate; one success makes it Ok again.

use model::{Now, OsdId};
use std::collections::BTreeMap;
use std::time::Duration;

const BACKOFF_FIRST: Duration = Duration::from_millis(250);
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// Slow answers in a row that make an OSD suspect.
const SLOW_STRIKES: u32 = 3;

/// How an OSD failed us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// No connection: the process or the host is gone.
    Unreachable,
    /// No answer in time: the outcome is unknown.
    Timeout,
    /// It answered that its disk fails.
    Disk,
}

/// Whether an OSD has room for more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    Left,
    Full,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OsdCondition {
    Ok,
    /// Reads and deletes only; not a failure.
    Full,
    Suspect,
    Down,
}

impl OsdCondition {
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Full => "full",
            Self::Suspect => "suspect",
            Self::Down => "down",
        }
    }
}

/// What is kept of one OSD.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct OsdHealth {
    failures: u32,
    unreachable: bool,
    slow: u32,
    full: bool,
    last_success: Option<Now>,
    probe_at: Now,
}

impl OsdHealth {
    const fn condition(&self) -> OsdCondition {
        if self.unreachable || self.failures >= 2 {
            OsdCondition::Down
        } else if self.failures > 0 || self.slow >= SLOW_STRIKES {
            OsdCondition::Suspect
        } else if self.full {
            OsdCondition::Full
        } else {
            OsdCondition::Ok
        }
    }
}

/// The OSDs of a backend, as one proxy sees them. One that was never heard of is Suspect until its first answer.
#[derive(Debug, Clone, Default)]
pub struct HealthView {
    osds: BTreeMap<OsdId, OsdHealth>,
}

impl HealthView {
    /// Takes over the list of OSDs; what is known of those that stay is kept.
    pub fn set_osds(&mut self, osds: &[OsdId]) {
        self.osds.retain(|osd, _| osds.contains(osd));
        for osd in osds {
            self.osds
                .entry(*osd)
                .or_insert_with(|| OsdHealth { failures: 1, ..OsdHealth::default() });
        }
    }

    /// An answer in time that says nothing bad. True when that is news.
    pub fn success(&mut self, osd: OsdId, now: Now) -> bool {
        self.update(osd, |health| {
            health.failures = 0;
            health.unreachable = false;
            health.slow = 0;
            health.last_success = Some(now);
        })
    }

    /// True when that is news.
    pub fn set_room(&mut self, osd: OsdId, room: Room) -> bool {
        self.update(osd, |health| health.full = room == Room::Full)
    }

    /// It hadn't answered when its fellows had. True when that is news.
    pub fn slow(&mut self, osd: OsdId, now: Now) -> bool {
        self.update(osd, |health| {
            health.slow = health.slow.saturating_add(1);
            if health.slow == SLOW_STRIKES {
                health.probe_at = now.plus(BACKOFF_FIRST);
            }
        })
    }

    /// `chance` spreads the probes of many proxies (L8). True when that is news.
    pub fn failure(&mut self, osd: OsdId, failure: Failure, now: Now, chance: u64) -> bool {
        self.update(osd, |health| {
            health.failures = health.failures.saturating_add(1);
            health.unreachable = failure == Failure::Unreachable;
            let doubled = BACKOFF_FIRST.saturating_mul(1 << health.failures.min(10));
            let backoff = doubled.min(BACKOFF_MAX) / 2;
            let span = u64::try_from(backoff.as_millis()).unwrap_or(u64::MAX).max(1);
            health.probe_at = now.plus(backoff).plus(Duration::from_millis(chance % span));
        })
    }

    fn update(&mut self, osd: OsdId, change: impl FnOnce(&mut OsdHealth)) -> bool {
        let Some(health) = self.osds.get_mut(&osd) else { return false };
        let before = health.condition();
        change(health);
        before != health.condition()
    }

    /// An unknown OSD (retired, of another backend) is Down.
    #[must_use]
    pub fn condition(&self, osd: OsdId) -> OsdCondition {
        self.osds.get(&osd).map_or(OsdCondition::Down, OsdHealth::condition)
    }

    #[must_use]
    pub fn writable(&self, osd: OsdId) -> bool {
        self.condition(osd) == OsdCondition::Ok
    }

    /// Worth asking for a read.
    #[must_use]
    pub fn readable(&self, osd: OsdId) -> bool {
        match self.condition(osd) {
            OsdCondition::Ok | OsdCondition::Full | OsdCondition::Suspect => true,
            OsdCondition::Down => false,
        }
    }

    /// Those that aren't Ok and may be asked again now.
    #[must_use]
    pub fn due_probes(&self, now: Now) -> Vec<OsdId> {
        let due = |health: &OsdHealth| match health.condition() {
            OsdCondition::Ok | OsdCondition::Full => false,
            OsdCondition::Suspect | OsdCondition::Down => health.probe_at <= now,
        };
        self.osds.iter().filter(|(_, health)| due(health)).map(|(osd, _)| *osd).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const A: OsdId = OsdId(1);

    fn view() -> HealthView {
        let mut view = HealthView::default();
        view.set_osds(&[A]);
        view.success(A, Now::default());
        view
    }

    #[test]
    fn a_refused_connection_takes_an_osd_out_at_once_and_one_answer_brings_it_back() {
        let mut view = view();
        assert!(view.writable(A));
        assert!(view.failure(A, Failure::Unreachable, Now::default(), 0));
        assert_eq!(view.condition(A), OsdCondition::Down);
        assert!(!view.readable(A));
        assert!(view.success(A, Now::default()));
        assert!(view.writable(A) && view.readable(A));
    }

    #[test]
    fn one_timeout_makes_suspect_two_make_down() {
        let mut view = view();
        view.failure(A, Failure::Timeout, Now::default(), 0);
        assert_eq!(view.condition(A), OsdCondition::Suspect);
        assert!(!view.writable(A) && view.readable(A));
        view.failure(A, Failure::Timeout, Now::default(), 0);
        assert_eq!(view.condition(A), OsdCondition::Down);
    }

    #[test]
    fn slowness_counts_only_in_a_row_and_full_is_not_failed() {
        let mut view = view();
        for _ in 0..10 {
            view.slow(A, Now::default());
            view.slow(A, Now::default());
            assert!(view.writable(A));
            view.success(A, Now::default());
        }
        for _ in 0..SLOW_STRIKES {
            view.slow(A, Now::default());
        }
        assert_eq!(view.condition(A), OsdCondition::Suspect);
        view.success(A, Now::default());
        assert!(view.set_room(A, Room::Full));
        assert_eq!(view.condition(A), OsdCondition::Full);
        assert!(view.readable(A) && !view.writable(A));
        view.set_room(A, Room::Left);
        assert!(view.writable(A));
    }

    #[test]
    fn osds_that_never_answered_get_nothing_and_are_probed_at_once() {
        let mut view = HealthView::default();
        view.set_osds(&[A]);
        assert!(!view.writable(A));
        assert_eq!(view.due_probes(Now::default()), vec![A]);
        view.set_osds(&[]);
        assert_eq!(view.condition(A), OsdCondition::Down);
        assert!(!view.success(A, Now::default()));
    }

    proptest! {
        #[test]
        fn whatever_happened_probes_come_at_a_bounded_rate_and_one_success_heals(
            failures in proptest::collection::vec((0..3_u8, any::<u64>()), 1..50),
        ) {
            let mut view = view();
            let mut now = Now::default();
            for (kind, chance) in failures {
                let kind = match kind {
                    0 => Failure::Unreachable,
                    1 => Failure::Timeout,
                    _ => Failure::Disk,
                };
                view.failure(A, kind, now, chance);
                prop_assert!(view.due_probes(now).is_empty());
                now = now.plus(BACKOFF_MAX);
                prop_assert_eq!(view.due_probes(now), vec![A]);
            }
            view.success(A, now);
            prop_assert!(view.writable(A));
            prop_assert!(view.due_probes(now.plus(BACKOFF_MAX)).is_empty());
        }
    }
}
