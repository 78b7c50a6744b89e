//! What is asked of a vDisk: requests and bytes per second, damped, so that a burst doesn't look like a habit.
//!
//! Requests are only counted; now and then what came since is folded into the rate. The rate forgets as an exponential
//! average does, once it is as old as the damping; before that it is the plain average of all that came, so a vDisk that
//! was opened just now isn't taken for an idle one for longer than it must.
//!
//! Invariant: asked steadily, the rate is what is asked; asked nothing, it ends at zero.

use std::time::Duration;

use model::Now;

/// Bytes that cost about what a request costs: so much of one is copied, hashed and sent in the time that it takes to
/// receive and answer it.
const BYTES_OF_REQUEST: u64 = 16 << 10;

/// Per second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rate {
    pub millirequests: u64,
    pub bytes: u64,
}

impl Rate {
    /// In one figure: requests, and what bytes count as.
    #[must_use]
    pub fn load(self) -> u64 {
        let bytes = u128::from(self.bytes) * 1000 / u128::from(BYTES_OF_REQUEST);
        u64::try_from((u128::from(self.millirequests) + bytes) / 1000).unwrap_or(u64::MAX)
    }
}

/// See the module's page.
#[derive(Debug, Clone)]
pub struct Demand {
    /// Since the last fold.
    requests: u64,
    bytes: u64,
    rate: Rate,
    since: Now,
    folded: Now,
}

impl Demand {
    #[must_use]
    pub const fn new(now: Now) -> Self {
        let rate = Rate { millirequests: 0, bytes: 0 };
        Self { requests: 0, bytes: 0, rate, since: now, folded: now }
    }

    /// A request that moves so many bytes.
    pub const fn count(&mut self, bytes: u64) {
        self.requests = self.requests.saturating_add(1);
        self.bytes = self.bytes.saturating_add(bytes);
    }

    /// To be called several times within the damping.
    pub fn fold(&mut self, now: Now, damping: Duration) {
        let passed = now.since(self.folded).as_micros();
        if passed == 0 {
            return;
        }
        let age = now.since(self.since).as_micros();
        let span = age.min(damping.as_micros()).max(passed);
        let folded = |rate: u64, came: u64, scale: u128| {
            let sum = u128::from(rate) * (span - passed) + u128::from(came) * scale * 1_000_000;
            u64::try_from(sum / span).unwrap_or(u64::MAX)
        };
        self.rate.millirequests = folded(self.rate.millirequests, self.requests, 1000);
        self.rate.bytes = folded(self.rate.bytes, self.bytes, 1);
        (self.requests, self.bytes, self.folded) = (0, 0, now);
    }

    #[must_use]
    pub const fn rate(&self) -> Rate {
        self.rate
    }

    /// It was watched for long enough.
    #[must_use]
    pub fn is_known(&self, damping: Duration) -> bool {
        damping <= self.folded.since(self.since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: Duration = Duration::from_secs(1);
    const DAMPING: Duration = Duration::from_secs(100);

    fn at(seconds: u64) -> Now {
        Now(SECOND * u32::try_from(seconds).unwrap())
    }

    /// Asked so many times in each of these seconds.
    fn asked(demand: &mut Demand, seconds: std::ops::Range<u64>, times: u64) {
        for second in seconds {
            (0..times).for_each(|_| demand.count(4096));
            demand.fold(at(second + 1), DAMPING);
        }
    }

    #[test]
    fn a_burst_is_no_habit_and_a_habit_is_seen_soon() {
        let mut demand = Demand::new(at(0));
        asked(&mut demand, 0..200, 0);
        assert!(demand.is_known(DAMPING));
        asked(&mut demand, 200..202, 1000);
        let burst = demand.rate().load();
        assert!((10..30).contains(&burst), "2 s of 100: {burst}");
        asked(&mut demand, 202..302, 1000);
        let habit = demand.rate().load();
        assert!((600..1100).contains(&habit), "more than half within the damping: {habit}");
        asked(&mut demand, 302..402, 0);
        assert!(demand.rate().load() < habit / 2, "and forgotten as soon");
        asked(&mut demand, 402..3000, 0);
        assert_eq!(demand.rate(), Rate::default(), "nothing is left of it");
    }

    #[test]
    fn what_was_just_opened_is_unknown_and_still_not_taken_for_idle() {
        let mut demand = Demand::new(at(50));
        asked(&mut demand, 50..52, 100);
        assert_eq!(demand.rate(), Rate { millirequests: 100_000, bytes: 409_600 });
        assert!(!demand.is_known(DAMPING));
        asked(&mut demand, 52..150, 100);
        assert!(demand.is_known(DAMPING));
    }

    #[test]
    fn bytes_count_beside_requests() {
        assert_eq!(Rate { millirequests: 10_000, bytes: 0 }.load(), 10);
        assert_eq!(Rate { millirequests: 10_000, bytes: 1 << 20 }.load(), 74);
        assert_eq!(Rate { millirequests: 500, bytes: 8 << 10 }.load(), 1);
        assert_eq!(
            Rate { millirequests: u64::MAX, bytes: u64::MAX }.load(),
            u64::MAX / 1000 + (1 << 50)
        );
    }

    proptest! {
        #[test]
        fn asked_steadily_the_rate_is_what_is_asked_however_it_is_folded(
            times in 0_u64..50, steps in prop::collection::vec(1_u64..30, 1..40),
        ) {
            let mut demand = Demand::new(at(7));
            let mut now = 7;
            for step in steps {
                (0..times * step).for_each(|_| demand.count(512));
                now += step;
                demand.fold(at(now), DAMPING);
                // Rounding loses less than a thousandth of a request in each fold.
                let rate = demand.rate().millirequests;
                prop_assert!((times * 1000).saturating_sub(100) <= rate && rate <= times * 1000, "{rate}");
            }
        }
    }
}
