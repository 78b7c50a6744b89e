//! Which router address to try next, and after what pause.
//!
//! All known addresses are walked: the owner as last told, the other routers as last told, then those of the
//! configuration; one that fell silent or couldn't be reached comes behind all others, whoever names it, because waiting
//! for a router that sleeps costs seconds. Each address is tried once per walk, but a redirect to a router that isn't
//! suspected is followed at once. The first walk is without pause; after it each step waits, doubling up to a bound,
//! jittered (L8), so that a redirect to an owner that is down can't become a busy loop. It never gives up: giving up is
//! decided per request, by its deadline.

use std::collections::BTreeSet;
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
    /// Tried in the present walk.
    walked: BTreeSet<String>,
    /// Silent or out of reach when tried last.
    suspects: BTreeSet<String>,
    /// Tries since the last success.
    tries: u32,
}

impl Route {
    /// `seeds`: the configured addresses, at least one.
    #[must_use]
    pub fn new(seeds: Vec<String>) -> Self {
        let addresses = seeds.clone();
        Self { seeds, addresses, walked: BTreeSet::new(), suspects: BTreeSet::new(), tries: 0 }
    }

    /// The address to try now.
    pub fn next_address(&mut self) -> String {
        let untried = |this: &Self| {
            let suspected = |address: &&String| this.suspects.contains(*address);
            let left = || this.addresses.iter().filter(|address| !this.walked.contains(*address));
            left().find(|address| !suspected(address)).or_else(|| left().next()).cloned()
        };
        let address = untried(self).unwrap_or_else(|| {
            self.walked.clear();
            untried(self).expect("at least one seed")
        });
        self.walked.insert(address.clone());
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

    /// Somebody told where the vDisk is: go there next, unless it is just known not to answer.
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
        for address in &location.owner.addresses {
            if !self.suspects.contains(address) {
                self.walked.remove(address);
            }
        }
    }

    /// Nothing could be had there: the connection was lost, fell silent, or didn't come about.
    pub fn failed(&mut self, address: &str) {
        self.walked.insert(address.to_owned());
        self.suspects.insert(address.to_owned());
    }

    /// It answers that something of the vDisk is missing there, or room for it. An owner that says so can't serve it, so whoever names it as
    /// the owner is asked to take the vDisk (P19). Another router says along whose the vDisk is, and is as good as before.
    pub fn has_gap(&mut self, address: &str, elsewhere: Option<&Location>) {
        let is_other = |location: &&Location| location.owner.addresses.iter().all(|a| a != address);
        match elsewhere.filter(is_other) {
            Some(location) => self.told(location),
            None => self.failed(address),
        }
    }

    /// Whether the owner doesn't answer at any of its addresses, as far as was seen.
    #[must_use]
    pub fn suspects(&self, location: &Location) -> bool {
        location.owner.addresses.iter().all(|address| self.suspects.contains(address))
    }

    /// It answers, whatever it says.
    pub fn answered(&mut self, address: &str) {
        self.suspects.remove(address);
    }

    /// The vDisk is served there: the next walk begins with it.
    pub fn arrived(&mut self, address: &str) {
        self.tries = 0;
        self.walked.clear();
        self.suspects.remove(address);
        if let Some(at) = self.addresses.iter().position(|known| known == address) {
            let here = self.addresses.remove(at);
            self.addresses.insert(0, here);
        }
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
        assert_eq!(walk, ["owner", "other", "s2", "owner", "other"]);
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

    #[test]
    fn a_router_that_fell_silent_is_tried_after_all_others_whoever_names_it() {
        let mut route = Route::new(vec!["s1".to_owned()]);
        route.told(&location("owner", &["other", "third"]));
        assert_eq!(route.next_address(), "owner");
        route.arrived("owner");
        route.failed("owner");
        assert!(
            route.suspects(&location("owner", &[])) && !route.suspects(&location("other", &[]))
        );
        let mut walk = Vec::new();
        for _ in 0..8 {
            let address = route.next_address();
            if address == "owner" {
                route.failed(&address);
            } else {
                route.answered(&address);
                route.told(&location("owner", &["other", "third"]));
            }
            walk.push(address);
        }
        assert_eq!(walk, ["other", "third", "s1", "other", "third", "s1", "owner", "other"]);
        // It answers again: a redirect to it is followed at once.
        route.answered("owner");
        route.told(&location("owner", &["other", "third"]));
        assert_eq!(route.next_address(), "owner");
    }

    #[test]
    fn p19_only_the_owners_gap_makes_it_suspect() {
        let mut route = Route::new(vec!["s1".to_owned(), "s2".to_owned()]);
        assert_eq!(route.next_address(), "s1");
        route.has_gap("s1", Some(&location("owner", &["s1", "s2"])));
        assert!(!route.suspects(&location("s1", &[])), "it may own the vDisk later, and serve it");
        assert_eq!(route.next_address(), "owner");
        route.has_gap("owner", None);
        assert!(route.suspects(&location("owner", &[])));
        route.answered("owner");
        route.has_gap("owner", Some(&location("owner", &["s1"])));
        assert!(route.suspects(&location("owner", &[])), "it owns the vDisk by its own word");
    }

    #[test]
    fn a_lone_router_is_tried_again_although_it_is_suspected() {
        let mut route = Route::new(vec!["s1".to_owned()]);
        for _ in 0..3 {
            assert_eq!(route.next_address(), "s1");
            route.failed("s1");
        }
    }
}
