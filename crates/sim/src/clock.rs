//! What time a node believes it is.
//!
//! A node's clock runs a little fast or slow, and jumps ahead, as the boot-time clock does over a suspension. It never
//! goes back: drivers read a monotonic clock, so a simulation in which it went back would prove nothing about them.
//!
//! Invariant: later moments never read as earlier times.

use std::time::Duration;

const PARTS: u64 = 1_000_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clock {
    /// Parts per million that pass here while a million pass in the world.
    rate: u64,
    /// When the rate was set, in the world's time and in this clock's.
    since: (Duration, Duration),
}

impl Default for Clock {
    fn default() -> Self {
        Self { rate: PARTS, since: (Duration::ZERO, Duration::ZERO) }
    }
}

impl Clock {
    /// What it shows at a moment of the world, no earlier than its last change.
    #[must_use]
    pub fn read(&self, world: Duration) -> Duration {
        let passed = world.saturating_sub(self.since.0).as_nanos() * u128::from(self.rate);
        let passed = u64::try_from(passed / u128::from(PARTS)).unwrap_or(u64::MAX);
        self.since.1 + Duration::from_nanos(passed)
    }

    /// From now on it runs at this rate, in parts per million.
    pub fn drift(&mut self, world: Duration, rate: u64) {
        *self = Self { rate, since: (world, self.read(world)) };
    }

    /// It shows so much more at once.
    pub fn jump(&mut self, world: Duration, ahead: Duration) {
        *self = Self { rate: self.rate, since: (world, self.read(world) + ahead) };
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn it_runs_as_told_and_jumps() {
        let seconds = Duration::from_secs;
        let mut clock = Clock::default();
        assert_eq!(clock.read(seconds(5)), seconds(5));
        clock.drift(seconds(10), 500_000);
        assert_eq!(clock.read(seconds(20)), seconds(15));
        clock.jump(seconds(20), seconds(100));
        assert_eq!(clock.read(seconds(22)), seconds(116));
    }

    proptest! {
        #[test]
        fn it_never_goes_back(changes in prop::collection::vec((0_u64..10_000, 0_u64..2_000_000, 0_u64..1000), 1..40)) {
            let mut clock = Clock::default();
            let (mut now, mut last) = (Duration::ZERO, Duration::ZERO);
            for (passed, rate, ahead) in changes {
                now += Duration::from_micros(passed);
                prop_assert!(last <= clock.read(now));
                clock.drift(now, rate);
                clock.jump(now, Duration::from_micros(ahead));
                last = clock.read(now);
            }
        }
    }
}
