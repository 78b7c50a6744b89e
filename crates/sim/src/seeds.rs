//! Runs a simulation over many seeds, and names the one that failed.
//!
//! `HOLDFAST_SEED=17` runs that seed alone; `HOLDFAST_SEEDS=100000` runs so many, from `HOLDFAST_FIRST_SEED` on. Some seeds are run twice and must
//! give equal digests.
//!
//! Invariant: no failure without its seed on the screen.

use std::env;

/// One in so many seeds is run twice.
const TWICE_EVERY: u64 = 16;

/// Calls `run` with each seed below `count` (or as the environment says); `run` returns the digest of its trace.
///
/// # Panics
/// When `run` does, after the seed was printed; when two runs of one seed differ; when the environment holds nonsense.
pub fn check(count: u64, run: impl FnMut(u64) -> u64) {
    check_part((0, 1), count, run);
}

/// The seeds of one part of several, so that tests side by side share a range: part 1 of 4 has the seeds 1, 5, 9 ….
///
/// # Panics
/// As [`check`] does.
pub fn check_part((part, parts): (u64, u64), count: u64, mut run: impl FnMut(u64) -> u64) {
    let seeds = if let Some(seed) = from_environment("HOLDFAST_SEED") {
        seed..seed + 1
    } else {
        let first = from_environment("HOLDFAST_FIRST_SEED").unwrap_or(0);
        first..first + from_environment("HOLDFAST_SEEDS").unwrap_or(count)
    };
    for (turn, seed) in (0_u64..).zip(seeds.filter(|seed| seed % parts == part)) {
        let _named = NameOnPanic(seed);
        let digest = run(seed);
        if turn.is_multiple_of(TWICE_EVERY) {
            assert_eq!(digest, run(seed), "two runs of seed {seed} differ: something isn't seeded");
        }
    }
}

fn from_environment(name: &str) -> Option<u64> {
    let text = env::var(name).ok()?;
    match text.parse() {
        Ok(number) => Some(number),
        Err(error) => panic!("{name}={text}: {error}"),
    }
}

/// What was being tried, on the screen if a panic drops it.
pub struct Shown(String);

impl Shown {
    #[must_use]
    pub const fn new(what: String) -> Self {
        Self(what)
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("failed at: {}", self.0);
        }
    }
}

struct NameOnPanic(u64);

impl Drop for NameOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("failed with seed {0}; again with HOLDFAST_SEED={0}", self.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    #[test]
    fn each_seed_runs_and_some_run_twice() {
        let mut runs = Vec::new();
        check(20, |seed| {
            runs.push(seed);
            Random::new(seed).u64()
        });
        assert_eq!(runs.len(), 22);
        assert_eq!(runs.iter().collect::<std::collections::BTreeSet<_>>().len(), 20);
    }

    #[test]
    fn the_parts_of_a_range_are_the_range() {
        let mut runs = std::collections::BTreeSet::new();
        for part in 0..3 {
            check_part((part, 3), 10, |seed| {
                assert_eq!(seed % 3, part);
                runs.insert(seed);
                seed
            });
        }
        assert_eq!(runs, (0..10).collect());
    }

    #[test]
    #[should_panic(expected = "two runs of seed 0 differ")]
    fn a_run_that_is_not_a_function_of_its_seed_is_found() {
        let mut calls = 0;
        check(1, |_| {
            calls += 1;
            calls
        });
    }
}
