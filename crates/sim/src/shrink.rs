//! Makes the schedule of a failed run smaller while it still fails.
//!
//! A run is a function of its seed and a [`Schedule`]: how many operations, and which kinds of faults may strike. A failure
//! with twenty operations and one kind of fault is read in minutes; one with two thousand and thirty isn't read at all.
//! Fewer operations are tried first, since they make every later try cheaper; then each kind of fault is left out.
//!
//! Invariant: what comes out fails, and the number of tries is bounded.

use std::collections::BTreeSet;
use std::fmt;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule {
    pub operations: u64,
    /// The kinds of faults that may strike.
    pub faults: BTreeSet<&'static str>,
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let faults: Vec<&str> = self.faults.iter().copied().collect();
        write!(f, "{} operations, faults: {}", self.operations, faults.join(", "))
    }
}

/// A smaller schedule for which `fails` says yes; at most `tries` are asked about.
pub fn shrink(start: Schedule, tries: usize, mut fails: impl FnMut(&Schedule) -> bool) -> Schedule {
    let mut best = start;
    let mut left = tries;
    let mut try_one = |candidate: &Schedule| {
        if left == 0 {
            return false;
        }
        left -= 1;
        fails(candidate)
    };
    loop {
        let before = best.clone();
        let mut cut = best.operations / 2;
        while 0 < cut {
            let candidate = Schedule { operations: best.operations - cut, ..best.clone() };
            if try_one(&candidate) {
                best = candidate;
                cut = cut.min(best.operations / 2);
            } else {
                cut /= 2;
            }
        }
        // Half of them at once, then one by one.
        let kinds: Vec<&'static str> = best.faults.iter().copied().collect();
        let (first, second) = kinds.split_at(kinds.len() / 2);
        let singles = kinds.chunks(1);
        for unneeded in [first, second].into_iter().chain(singles) {
            let mut candidate = best.clone();
            candidate.faults.retain(|kind| !unneeded.contains(kind));
            if candidate != best && try_one(&candidate) {
                best = candidate;
            }
        }
        if best == before {
            return best;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule() -> Schedule {
        Schedule { operations: 2000, faults: ["cut", "loss", "pause", "rot", "torn"].into() }
    }

    #[test]
    fn what_the_failure_needs_is_kept_and_nothing_else() {
        let fails = |candidate: &Schedule| {
            137 <= candidate.operations
                && candidate.faults.contains("rot")
                && candidate.faults.contains("cut")
        };
        let small = shrink(schedule(), 200, fails);
        assert_eq!(small, Schedule { operations: 137, faults: ["cut", "rot"].into() });
        assert_eq!(small.to_string(), "137 operations, faults: cut, rot");
    }

    #[test]
    fn what_comes_out_fails_also_when_the_tries_run_out() {
        for tries in 0..40 {
            let mut asked = 0;
            let fails = |candidate: &Schedule| 999 <= candidate.operations;
            let small = shrink(schedule(), tries, |candidate| {
                asked += 1;
                fails(candidate)
            });
            assert!(fails(&small) && asked <= tries, "{tries}: {small}");
        }
    }
}
