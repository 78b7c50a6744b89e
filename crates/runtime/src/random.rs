//! The one place where chance comes from: the operating system, through a library that may make keys.

use std::time::Duration;

/// # Panics
/// When the operating system gives no random bytes; nothing safe can be done then.
pub fn fill(out: &mut [u8]) {
    aws_lc_rs::rand::fill(out).expect("the operating system gives random bytes");
}

#[must_use]
pub fn u64() -> u64 {
    let mut out = [0; 8];
    fill(&mut out);
    u64::from_le_bytes(out)
}

#[must_use]
pub fn u128() -> u128 {
    let mut out = [0; 16];
    fill(&mut out);
    u128::from_le_bytes(out)
}

/// Between half of `base` and `base`, so that clients that failed together don't come back together (L8).
#[must_use]
pub fn jitter(base: Duration) -> Duration {
    let half = base / 2;
    let span = u64::try_from(half.as_nanos()).unwrap_or(u64::MAX).max(1);
    half + Duration::from_nanos(u64() % span)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Half of the span is left to chance, and all of it is used: two that failed together soon come at other times.
    #[test]
    fn h_22_a_jittered_pause_is_half_of_it_at_least_and_spread_over_the_rest() {
        let base = Duration::from_secs(8);
        let mut parts = [0_u32; 8];
        for _ in 0..8192 {
            let pause = jitter(base);
            assert!((base / 2..base).contains(&pause), "{pause:?}");
            parts[usize::try_from((pause - base / 2).as_millis() / 500).unwrap()] += 1;
        }
        // 1,024 are expected in each: so far off is nobody in the lifetime of this program.
        assert!(parts.iter().all(|part| (700..1400).contains(part)), "{parts:?}");
    }

    #[test]
    fn l8_any_pause_can_be_jittered() {
        assert_eq!(jitter(Duration::ZERO), Duration::ZERO);
        assert_eq!(jitter(Duration::from_nanos(1)), Duration::ZERO);
        for base in [Duration::from_nanos(2), Duration::from_millis(1), Duration::MAX] {
            let pause = jitter(base);
            assert!(base / 2 <= pause && pause <= base, "{base:?}: {pause:?}");
        }
    }
}
