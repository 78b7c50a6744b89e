//! Who keeps a copy of a vDisk's page map besides its owner, and how often it looks for what is new.
//!
//! A map can be rebuilt from the backend (L6), but for a large vDisk that takes longer than a takeover may. So other
//! routers follow its TLogs; whoever claims the vDisk then replays a short tail. The vDisk's DTL targets come first: they are
//! who will most likely claim it. Nothing rests on a copy: it is checked against the chain of TLogs when it is opened.
//!
//! Invariant: routers that see the same records choose the same followers.

use model::{Now, RouterId, VdiskId};
use std::time::Duration;

/// Copies of a map besides the owner's: one with two routers, two with three or more.
const COPIES: usize = 2;
/// An idle vDisk is looked at less and less often, down to this share of the usual.
const SELDOM: u32 = 32;

/// What a choice of followers depends on.
#[derive(Debug, Clone, Copy)]
pub struct Followed<'a> {
    pub vdisk: VdiskId,
    pub owner: RouterId,
    /// The vDisk's DTL targets.
    pub targets: &'a [RouterId],
    /// Routers in service.
    pub online: &'a [RouterId],
}

/// Whether `me` keeps a copy.
#[must_use]
pub fn follows(me: RouterId, followed: &Followed<'_>) -> bool {
    by_weight(followed).iter().take(COPIES).any(|id| *id == me)
}

/// Routers in the order in which one would ask them for a copy: those that follow, the owner, and the rest, who may have
/// followed or owned it before.
#[must_use]
pub fn ranked(followed: &Followed<'_>) -> Vec<RouterId> {
    let mut all = by_weight(followed);
    if followed.online.contains(&followed.owner) {
        all.insert(COPIES.min(all.len()), followed.owner);
    }
    all
}

/// All but the owner.
fn by_weight(followed: &Followed<'_>) -> Vec<RouterId> {
    let Followed { vdisk, owner, targets, online } = *followed;
    let mut others: Vec<RouterId> = online.iter().filter(|id| **id != owner).copied().collect();
    others.sort_by_key(|id| (!targets.contains(id), weight(*id, vdisk)));
    others
}

/// Differs from vDisk to vDisk, so that copies spread over the routers, and hardly changes when a router comes or goes
/// (highest random weight; Thaler and Ravishankar, 1998).
fn weight(router: RouterId, vdisk: VdiskId) -> u64 {
    let bytes = [router.0.to_le_bytes(), vdisk.0.to_le_bytes()].concat();
    let (low, high) = bytes.split_at(bytes.len() / 2);
    u64::from(crate::crc32c(&bytes)) << 32 | u64::from(crate::crc32c(&[high, low].concat()))
}

/// When a vDisk is looked at next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// While it is written to.
    usual: Duration,
    every: Duration,
    due: Now,
}

impl Pace {
    #[must_use]
    pub fn new(usual: Duration) -> Self {
        Self { usual, every: usual, due: Now::default() }
    }

    #[must_use]
    pub fn is_due(&self, now: Now) -> bool {
        self.due <= now
    }

    /// After a look that found so many new TLogs; none also when it failed.
    #[must_use]
    pub fn after(self, found: u64, now: Now) -> Self {
        let seldom = self.usual * SELDOM;
        let every = if 0 < found { self.usual } else { (2 * self.every).min(seldom) };
        Self { every, due: now.plus(every), ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const USUAL: Duration = Duration::from_secs(5);

    const fn routers(count: u128) -> [RouterId; 5] {
        let mut all = [RouterId(0); 5];
        let mut at = 0;
        while at < 5 {
            all[at] = RouterId(count + at as u128);
            at += 1;
        }
        all
    }

    proptest! {
        #[test]
        fn some_others_follow_and_targets_come_first(
            vdisk: u128, first in 1..u128::MAX / 2, count in 0_usize..6, target in 0_usize..5,
        ) {
            let all = routers(first);
            let (owner, targets) = (all[0], [all[target]]);
            let online = &all[..count.min(5)];
            let followed = Followed { vdisk: VdiskId(vdisk), owner, targets: &targets, online };
            let chosen: Vec<_> = all.iter().filter(|id| follows(**id, &followed)).collect();
            let others = online.iter().filter(|id| **id != owner).count();
            prop_assert_eq!(chosen.len(), others.min(COPIES));
            prop_assert!(!chosen.contains(&&owner));
            if online[..].contains(&targets[0]) && targets[0] != owner {
                prop_assert!(chosen.contains(&&targets[0]));
            }
        }
    }

    #[test]
    fn copies_spread_over_the_routers() {
        let online = routers(1);
        let followed = |vdisk, me| {
            let (owner, targets) = (online[0], &[][..]);
            follows(me, &Followed { vdisk: VdiskId(vdisk), owner, targets, online: &online })
        };
        for me in &online[1..] {
            let mine = (0..1000).filter(|vdisk| followed(*vdisk, *me)).count();
            assert!((400..600).contains(&mine), "{me} follows {mine} of 1000, two of four do");
        }
    }

    #[test]
    fn an_idle_vdisk_is_looked_at_ever_more_seldom() {
        let (mut pace, mut now) = (Pace::new(USUAL), Now::default());
        assert!(pace.is_due(now));
        let mut looks = 0;
        while now < Now(Duration::from_secs(3600)) {
            if pace.is_due(now) {
                pace = pace.after(0, now);
                looks += 1;
            }
            now = now.plus(Duration::from_secs(1));
        }
        assert!(looks < 30, "{looks} looks in an hour");
        pace = pace.after(3, now);
        assert!(!pace.is_due(now) && pace.is_due(now.plus(USUAL)));
    }
}
