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
