//! Who must wait, and how long, when the write log or the memory for pending data runs short (P9).
//!
//! Writes are slowed smoothly from half full on and wait when it is full; they are never refused. Each vDisk has a
//! guaranteed minimum that the others can't take, so one stalled vDisk doesn't stop the rest.
//!
//! Invariant: the sum of all guaranteed minimums is at most half the capacity.

use std::time::Duration;

/// Longest delay before the hard limit.
const DELAY_MAX: Duration = Duration::from_millis(200);

/// How full one resource is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    pub capacity: u64,
    /// Used by all vDisks.
    pub used: u64,
    /// Used by the vDisk that asks.
    pub own: u64,
    /// Guaranteed to others and not used by them yet.
    pub reserved_by_others: u64,
    /// vDisks that share the resource.
    pub sharers: u64,
}

/// The verdict about one write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Now,
    After(Duration),
    /// Until something is freed.
    Wait,
}

/// What each of `sharers` is guaranteed.
#[must_use]
pub const fn minimum(capacity: u64, sharers: u64) -> u64 {
    capacity / 2 / if sharers == 0 { 1 } else { sharers }
}

impl Usage {
    /// May a write of `bytes` go on?
    #[must_use]
    pub fn admit(self, bytes: u64) -> Verdict {
        if self.own + bytes <= minimum(self.capacity, self.sharers)
            && self.used + bytes <= self.capacity
        {
            // Within its guarantee a vDisk isn't slowed until the whole is really nearly full.
            return if self.used <= self.capacity / 4 * 3 {
                Verdict::Now
            } else {
                self.slowed(bytes)
            };
        }
        if self.capacity < self.used + bytes + self.reserved_by_others {
            return Verdict::Wait;
        }
        self.slowed(bytes)
    }

    fn slowed(self, bytes: u64) -> Verdict {
        let soft = self.capacity / 2;
        let over = (self.used + bytes).saturating_sub(soft);
        if over == 0 {
            return Verdict::Now;
        }
        // Quadratic: hardly felt at first, DELAY_MAX at the brim.
        let share = (u128::from(over) << 16) / u128::from(self.capacity - soft).max(1);
        let share = u64::try_from(share.min(1 << 16)).unwrap_or(1 << 16);
        let micros = u64::try_from(DELAY_MAX.as_micros()).unwrap_or(u64::MAX);
        match (micros * ((share * share) >> 16)) >> 16 {
            0 => Verdict::Now,
            delay => Verdict::After(Duration::from_micros(delay)),
        }
    }
}

impl Verdict {
    /// The stricter of two.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Wait, _) | (_, Self::Wait) => Self::Wait,
            (Self::After(a), Self::After(b)) => Self::After(a.max(b)),
            (Self::After(a), Self::Now) | (Self::Now, Self::After(a)) => Self::After(a),
            (Self::Now, Self::Now) => Self::Now,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_stalled_vdisk_stops_itself_and_not_its_neighbour() {
        let capacity = 1000;
        // Two sharers: each is guaranteed 250. One took all it can get: 750.
        let hog = Usage { capacity, used: 750, own: 750, reserved_by_others: 250, sharers: 2 };
        assert_eq!(hog.admit(10), Verdict::Wait);
        let neighbour = Usage { capacity, used: 750, own: 0, reserved_by_others: 0, sharers: 2 };
        assert_ne!(neighbour.admit(10), Verdict::Wait);
    }

    #[test]
    fn an_empty_log_slows_nobody() {
        let usage = Usage { capacity: 1 << 30, used: 0, own: 0, reserved_by_others: 0, sharers: 1 };
        assert_eq!(usage.admit(4096), Verdict::Now);
    }

    proptest! {
        #[test]
        fn the_fuller_the_slower(a in 0u64..1000, b in 0u64..1000, own_share in 0u64..=100) {
            let (low, high) = (a.min(b), a.max(b));
            let verdict = |used: u64| {
                Usage { capacity: 1000, used, own: used * own_share / 100, reserved_by_others: 0, sharers: 1 }.admit(1)
            };
            let delay = |v: Verdict| match v {
                Verdict::Now => Duration::ZERO,
                Verdict::After(d) => d,
                Verdict::Wait => Duration::MAX,
            };
            if low * own_share / 100 >= 500 || high * own_share / 100 < 500 {
                prop_assert!(delay(verdict(low)) <= delay(verdict(high)));
            }
            prop_assert!(delay(verdict(999)) < Duration::MAX, "the last byte can be had");
        }
    }
}
