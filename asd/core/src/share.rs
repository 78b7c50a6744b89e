//! Maintenance's share of the disk: a token bucket over bytes.
//!
//! Work is charged after it was let in, so one piece larger than the bucket is possible and is paid off before the next.
//!
//! Invariant: over any stretch of time, what was charged exceeds `rate × time` by at most one bucket and one piece.

use model::Now;
use std::time::Duration;

#[derive(Debug, Clone)]
pub struct Share {
    bytes_per_second: u64,
    /// Negative while a large piece is paid off.
    tokens: i128,
    filled_at: Now,
}

impl Share {
    /// A full bucket of one second's bytes.
    #[must_use]
    pub fn new(bytes_per_second: u64, now: Now) -> Self {
        let bytes_per_second = bytes_per_second.max(1);
        Self { bytes_per_second, tokens: bytes_per_second.into(), filled_at: now }
    }

    /// How long until work may be let in; zero = now.
    pub fn wait(&mut self, now: Now) -> Duration {
        self.fill(now);
        if self.tokens > 0 {
            return Duration::ZERO;
        }
        let missing = (1 - self.tokens).unsigned_abs();
        let nanos = (missing * 1_000_000_000).div_ceil(self.bytes_per_second.into());
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    /// Work of this many bytes was let in.
    pub fn charge(&mut self, bytes: u64) {
        self.tokens -= i128::from(bytes);
    }

    fn fill(&mut self, now: Now) {
        let earned = now.since(self.filled_at).as_nanos() * u128::from(self.bytes_per_second)
            / 1_000_000_000;
        if earned > 0 {
            let earned = i128::try_from(earned).unwrap_or(i128::MAX / 2);
            self.tokens = (self.tokens + earned).min(self.bytes_per_second.into());
            self.filled_at = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_large_piece_is_let_in_and_paid_off() {
        let mut share = Share::new(1000, Now::default());
        assert_eq!(share.wait(Now::default()), Duration::ZERO);
        share.charge(3000);
        let wait = share.wait(Now::default());
        assert_eq!(wait, Duration::from_millis(2001));
        assert_eq!(share.wait(Now(wait)), Duration::ZERO);
    }

    proptest! {
        #[test]
        fn the_rate_is_never_exceeded_by_more_than_a_bucket_and_a_piece(
            pieces in proptest::collection::vec((0_u64..5000, 0_u64..3000), 1..100),
        ) {
            let mut share = Share::new(1000, Now::default());
            let (mut now, mut charged, mut largest) = (Now::default(), 0, 0);
            for (bytes, pause_ms) in pieces {
                now = now.plus(Duration::from_millis(pause_ms));
                if share.wait(now).is_zero() {
                    share.charge(bytes);
                    charged += bytes;
                    largest = largest.max(bytes);
                }
                let allowed = 1000 + largest + u64::try_from(now.0.as_millis()).unwrap();
                prop_assert!(charged <= allowed);
            }
        }
    }
}
