//! Which router address to try next, and after what pause.
//!
//! All known addresses are walked in order: the owner as last told, the other routers as last told, then those of the
//! configuration. The first walk is without pause; after it each step waits, doubling up to a bound, jittered (L8), so
//! that a redirect to an owner that is down can't become a busy loop. It never gives up: giving up is decided per
//! request, by its deadline.

use std::time::Duration;
use wire::router::Location;

/// Pause after the first fruitless walk.
const PAUSE_MIN: Duration = Duration::from_millis(20);
/// Longest pause; a restarted router is found this soon.
const PAUSE_MAX: Duration = Duration::from_millis(1000);
/// Addresses kept; a cluster that tells more is walked in part.
const ADDRESSES_MAX: usize = 64;

#[derive(Debug)]
pub struct Route {
    seeds: Vec<String>,
    addresses: Vec<String>,
    next: usize,
    /// Tries since the last success.
    tries: u32,
}

impl Route {
    /// `seeds`: the configured addresses, at least one.
    #[must_use]
    pub fn new(seeds: Vec<String>) -> Self {
        let addresses = seeds.clone();
        Self { seeds, addresses, next: 0, tries: 0 }
    }

    /// The address to try now.
    pub fn next_address(&mut self) -> String {
        let address = self.addresses[self.next % self.addresses.len()].clone();
        self.next = (self.next + 1) % self.addresses.len();
        self.tries = self.tries.saturating_add(1);
        address
    }

    /// How long to wait before the next try; `chance` is a random number.
    #[must_use]
    pub fn pause(&self, chance: u64) -> Duration {
        let first_walk = model::u32_of(self.addresses.len());
        let Some(more) = self.tries.checked_sub(first_walk) else { return Duration::ZERO };
        let full = PAUSE_MIN.saturating_mul(1 << more.min(6)).min(PAUSE_MAX);
        // Between half and all of it, so that many edges don't come back in step.
        let half = full / 2;
        let micros = u64::try_from(half.as_micros()).expect("under a second");
        half + Duration::from_micros(chance % (micros + 1))
    }

    /// Somebody told where the vDisk is: go there next.
    pub fn told(&mut self, location: &Location) {
        let routers = std::iter::once(&location.owner).chain(&location.routers);
        let told = routers.flat_map(|router| router.addresses.iter());
        let mut addresses: Vec<String> = Vec::new();
        for address in told.chain(&self.seeds) {
            if addresses.len() < ADDRESSES_MAX && !addresses.contains(address) {
                addresses.push(address.clone());
            }
        }
        self.addresses = addresses;
        self.next = 0;
    }

    /// The vDisk is served there: begin with it after the next cut.
    pub fn arrived(&mut self, address: &str) {
        self.tries = 0;
        self.next = self.addresses.iter().position(|known| known == address).unwrap_or(0);
    }

    /// What is known, best first.
    #[must_use]
    pub fn addresses(&self) -> &[String] {
        &self.addresses
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{Epoch, RouterId, VdiskId};
    use wire::router::RouterAddress;

    fn location(owner: &str, others: &[&str]) -> Location {
        let router = |address: &str| RouterAddress {
            router: RouterId(1),
            addresses: vec![address.to_owned()],
        };
        Location {
            vdisk: VdiskId(1),
            size_bytes: 0,
            epoch: Epoch(1),
            owner: router(owner),
            routers: others.iter().map(|other| router(other)).collect(),
            list_version: 1,
            cluster: "c".to_owned(),
        }
    }

    #[test]
    fn a_redirect_is_followed_at_once_and_the_seeds_stay_known() {
        let mut route = Route::new(vec!["s1".to_owned(), "s2".to_owned()]);
        assert_eq!(route.next_address(), "s1");
        route.told(&location("owner", &["other", "s2"]));
        assert_eq!(route.pause(9), Duration::ZERO);
        let walk: Vec<String> = (0..5).map(|_| route.next_address()).collect();
        assert_eq!(walk, ["owner", "other", "s2", "s1", "owner"]);
        route.arrived("other");
        assert_eq!(route.next_address(), "other");
    }

    #[test]
    fn redirects_to_a_dead_owner_are_slowed_down() {
        let mut route = Route::new(vec!["s1".to_owned()]);
        let mut waited = Duration::ZERO;
        for step in 0..100 {
            waited += route.pause(step);
            assert!(route.pause(u64::MAX) <= PAUSE_MAX);
            if route.next_address() != "owner" {
                route.told(&location("owner", &[]));
            }
        }
        assert!(waited > Duration::from_secs(20), "{waited:?}");
        route.arrived("owner");
        assert_eq!(route.pause(1), Duration::ZERO);
    }
}
