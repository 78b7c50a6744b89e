//! Whether something failed in this test. Who returns an error doesn't panic, and the logs of its cluster are wanted too.
//!
//! Invariant: a test runs in a process of its own (nextest), so what is noted is of no other.

use std::sync::atomic::{AtomicBool, Ordering};

static SEEN: AtomicBool = AtomicBool::new(false);

pub fn note() {
    SEEN.store(true, Ordering::Relaxed);
}

#[must_use]
pub fn seen() -> bool {
    SEEN.load(Ordering::Relaxed) || std::thread::panicking()
}
