//! Which policy a write can use now: the first of the preset that can be met.
//!
//! A policy can be met when the writable OSDs have room for at least `c` of its fragments with at most `x` per
//! domain; what finds no place becomes a hole. So a wide first policy is used, degraded, down to `c` before a
//! narrower one is tried.
//!
//! Invariant: what [`choose`] returns, an upload can satisfy if no OSD fails on the way.

use crate::placement::{Candidate, Spread, room};
use model::{Policy, PolicyList};

impl Spread {
    #[must_use]
    pub const fn of(policy: Policy, level: model::DomainLevel) -> Self {
        Self { level, per_domain: policy.x() }
    }
}

/// The first policy that can be met; `None` when none can.
#[must_use]
pub fn choose(policies: &PolicyList, candidates: &[Candidate]) -> Option<Policy> {
    policies.policies().iter().copied().find(|policy| {
        let spread = Spread::of(*policy, policies.level());
        room(candidates, spread, &[], policy.total()) >= policy.c()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::placement::tests::candidate;

    #[test]
    fn the_default_falls_back_as_osds_go() {
        let policies: PolicyList = "4,2,5,1;2,2,3,1".parse().unwrap();
        let chosen = |up: usize| {
            let candidates: Vec<Candidate> =
                (0..6).map(|i| candidate(i, 0, 10, usize::try_from(i).unwrap() < up)).collect();
            choose(&policies, &candidates).map(|policy| policy.to_string())
        };
        assert_eq!(chosen(6).as_deref(), Some("4,2,5,1"));
        assert_eq!(chosen(5).as_deref(), Some("4,2,5,1"));
        assert_eq!(chosen(4).as_deref(), Some("2,2,3,1"));
        assert_eq!(chosen(3).as_deref(), Some("2,2,3,1"));
        assert_eq!(chosen(2), None);
        assert_eq!(chosen(0), None);
    }

    #[test]
    fn x_counts_at_the_policys_level() {
        // Six disks on two hosts: at most three per host means six, at most two means four.
        let candidates: Vec<Candidate> =
            (0..6).map(|i| candidate(i, u8::try_from(i % 2).unwrap(), 10, true)).collect();
        let chosen = |text: &str| choose(&text.parse().unwrap(), &candidates).is_some();
        assert!(chosen("4,2,6,3@host"));
        assert!(!chosen("4,2,5,2@host"));
        assert!(chosen("2,2,4,2@host"));
        // Both hosts stand in one rack.
        assert!(!chosen("4,2,5,3@rack"));
        // One disk may hold several only where the policy says so.
        assert!(chosen("10,2,12,2@disk"));
        assert!(!chosen("10,2,12,1@disk"));
    }
}
