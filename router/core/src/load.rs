//! What a router carries and could still take, as it tells the others now and then.
//!
//! Nobody's right rests on it: it says whom to ask first. A router that can't take a vDisk says so itself when it is asked.

use std::cmp::Reverse;

use model::RouterId;
use wire::facts::RouterLoad;

use crate::rebalance::nearness;

/// A vDisk's guaranteed part of the write log is never less than this: a client's usual depth of small requests. So
/// many vDisks as have that are the most of one router (P9).
pub const SHARE_MIN: u64 = 256 << 10;
/// A log that is fuller than this (in hundredths) is left alone.
const FULL: u64 = 90;

/// A router, seen by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Carries {
    /// It is in service, and its log is well.
    pub takes: bool,
    /// vDisks it owns.
    pub vdisks: u64,
    pub log_bytes: u64,
    pub log_used: u64,
}

/// What it tells.
#[must_use]
pub fn load(carries: Carries) -> RouterLoad {
    let Carries { takes, vdisks, log_bytes, log_used } = carries;
    let filled =
        if log_bytes == 0 { 100 } else { u128::from(log_used) * 100 / u128::from(log_bytes) };
    let most = crate::quota::minimum(log_bytes, 1) / SHARE_MIN;
    let room = if takes && filled < u128::from(FULL) { most.saturating_sub(vdisks) } else { 0 };
    RouterLoad { vdisks, room, log_bytes, log_used }
}

/// What speaks for one router or another when a vDisk's owner is lost.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Near {
    /// Who keeps its log: nobody can take it over faster.
    pub targets: Vec<RouterId>,
    /// Where its edge runs; empty: not known.
    pub domain: String,
}

/// A router that an edge may turn to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate<'a> {
    pub router: RouterId,
    pub domain: &'a str,
    /// It said that it could take no more.
    pub full: bool,
}

impl Near {
    /// The lower the better.
    #[must_use]
    pub fn rank(&self, candidate: Candidate<'_>) -> impl Ord + use<> {
        let Candidate { router, domain, full } = candidate;
        let near = nearness(&self.domain, domain);
        (full, !self.targets.contains(&router), Reverse(near))
    }
}

/// Whether others should hear of it: how full the log is changes all the time, and matters when it changes much.
#[must_use]
pub fn is_news(told: Option<&RouterLoad>, now: &RouterLoad) -> bool {
    told.is_none_or(|told| {
        (told.vdisks, told.room, told.log_bytes) != (now.vdisks, now.room, now.log_bytes)
            || now.log_bytes / 8 < told.log_used.abs_diff(now.log_used)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;
    const WELL: Carries = Carries { takes: true, vdisks: 3, log_bytes: GIB, log_used: 0 };

    #[test]
    fn a_router_has_room_while_each_vdisk_keeps_its_guarantee() {
        assert_eq!(load(WELL).room, 2048 - 3);
        let all = Carries { vdisks: 2048, ..WELL };
        assert!(SHARE_MIN <= crate::quota::minimum(GIB, all.vdisks));
        assert_eq!(load(all).room, 0);
        assert_eq!(load(Carries { vdisks: 5000, ..WELL }).room, 0);
        assert_eq!(load(Carries { takes: false, ..WELL }).room, 0);
        assert_eq!(load(Carries { log_used: GIB / 10 * 9 + 10, ..WELL }).room, 0);
        assert_eq!(load(Carries { log_bytes: 0, ..WELL }).room, 0);
    }

    #[test]
    fn an_edge_turns_to_who_keeps_the_log_then_to_who_is_near_and_last_to_who_is_full() {
        let near = Near { targets: vec![RouterId(2), RouterId(5)], domain: "dc1/r1/h1".into() };
        let of = |router, domain, full| Candidate { router: RouterId(router), domain, full };
        let mut all = [
            of(1, "dc2/r1/h1", false),
            of(2, "dc2/r1/h2", false),
            of(3, "dc1/r2/h3", false),
            of(4, "dc1/r1/h4", false),
            of(5, "dc1/r1/h1", true),
        ];
        all.sort_by_cached_key(|one| near.rank(*one));
        assert_eq!(all.map(|one| one.router.0), [2, 4, 3, 1, 5]);
    }

    #[test]
    fn it_is_told_when_it_matters() {
        let told = load(WELL);
        assert!(is_news(None, &told) && !is_news(Some(&told), &told));
        assert!(is_news(Some(&told), &load(Carries { vdisks: 4, ..WELL })));
        assert!(is_news(Some(&told), &load(Carries { takes: false, ..WELL })));
        assert!(!is_news(Some(&told), &load(Carries { log_used: GIB / 100, ..WELL })));
        assert!(is_news(Some(&told), &load(Carries { log_used: GIB / 2, ..WELL })));
    }
}
