//! Routers that failed as targets, and until when each is left alone.
//!
//! The pause doubles with each failure that follows soon upon the last one, up to a bound, and differs a little from vDisk
//! to vDisk, so that a router that comes back isn't asked by all of them at once (L8).
//!
//! Invariant: a router that didn't fail is never left alone, and none for longer than [`PAUSE_MAX`].

use std::collections::BTreeMap;
use std::time::Duration;

use model::{Now, RouterId};

/// The longest pause, before what differs from vDisk to vDisk.
const PAUSE_MAX: Duration = Duration::from_secs(24);
/// Remembered at once; the one whose pause ends first is forgotten.
const ROUTERS_MAX: usize = 64;

#[derive(Debug)]
struct Pause {
    until: Now,
    len: Duration,
}

/// See the module's page.
#[derive(Debug)]
pub(super) struct Avoided {
    /// Makes the pauses of one vDisk differ from another's.
    salt: u128,
    pauses: BTreeMap<RouterId, Pause>,
}

impl Avoided {
    pub const fn new(salt: u128) -> Self {
        Self { salt, pauses: BTreeMap::new() }
    }

    /// `first`: the pause after a failure that follows none.
    pub fn failed(&mut self, router: RouterId, now: Now, first: Duration) {
        // Failed again before as much time went by as it had been left alone.
        let soon = self.pauses.get(&router).filter(|p| now.since(p.until) < p.len);
        let len = soon.map_or(first, |pause| (pause.len * 2).min(PAUSE_MAX));
        let until = now.plus(len + len * self.spread(router) / 32);
        self.pauses.insert(router, Pause { until, len });
        while ROUTERS_MAX < self.pauses.len() {
            let first = self.pauses.iter().min_by_key(|(_, pause)| pause.until);
            let Some(first) = first.map(|(router, _)| *router) else { return };
            self.pauses.remove(&first);
        }
    }

    pub fn is_free(&self, router: RouterId, now: Now) -> bool {
        self.pauses.get(&router).is_none_or(|pause| pause.until <= now)
    }

    /// 0 to 7: up to nearly a quarter of a pause on top.
    fn spread(&self, router: RouterId) -> u32 {
        let mixed = (self.salt ^ router.0).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
        u32::try_from(mixed >> 125).expect("three bits")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: RouterId = RouterId(1);
    const FIRST: Duration = Duration::from_secs(3);

    #[test]
    fn l8_who_fails_again_and_again_is_left_alone_ever_longer_up_to_a_bound() {
        let mut avoided = Avoided::new(5);
        let mut now = Now::default();
        let mut pauses = Vec::new();
        for _ in 0..6 {
            avoided.failed(A, now, FIRST);
            let from = now;
            while !avoided.is_free(A, now) {
                now = now.plus(Duration::from_millis(100));
            }
            pauses.push(now.since(from));
        }
        assert!(FIRST <= pauses[0] && pauses[0] < FIRST * 5 / 4, "{pauses:?}");
        assert!(pauses.is_sorted() && PAUSE_MAX <= pauses[5], "{pauses:?}");
        assert!(pauses[5] <= PAUSE_MAX * 5 / 4, "{pauses:?}");
        // After as long without a failure it begins anew.
        now = now.plus(PAUSE_MAX);
        avoided.failed(A, now, FIRST);
        assert!(avoided.is_free(A, now.plus(FIRST * 5 / 4)));
    }

    #[test]
    fn l8_what_is_remembered_is_bounded() {
        let mut avoided = Avoided::new(5);
        for router in 0..1000 {
            avoided.failed(RouterId(router), Now::default(), FIRST);
        }
        assert_eq!(avoided.pauses.len(), ROUTERS_MAX);
    }
}
