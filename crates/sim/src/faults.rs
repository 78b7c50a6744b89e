//! How often each kind of fault struck.
//!
//! A simulation that never meets a fault proves nothing, so tests assert that over all their seeds each kind did happen.
//!
//! Invariant: counts only grow.

use std::collections::BTreeMap;
use std::fmt;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FaultCounts {
    counts: BTreeMap<&'static str, u64>,
}

impl FaultCounts {
    pub fn count(&mut self, kind: &'static str) {
        *self.counts.entry(kind).or_default() += 1;
    }

    #[must_use]
    pub fn of(&self, kind: &str) -> u64 {
        self.counts.get(kind).copied().unwrap_or(0)
    }

    /// All of them together.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.counts.values().sum()
    }

    /// Which of these never struck.
    #[must_use]
    pub fn never(&self, kinds: &[&'static str]) -> Vec<&'static str> {
        kinds.iter().copied().filter(|kind| self.of(kind) == 0).collect()
    }

    /// Only these kinds.
    #[must_use]
    pub fn only(&self, kinds: &[&'static str]) -> Self {
        let counts = self.counts.iter().filter(|(kind, _)| kinds.contains(kind));
        Self { counts: counts.map(|(kind, count)| (*kind, *count)).collect() }
    }

    /// Takes the counts of another world or part in.
    pub fn add(&mut self, other: &Self) {
        for (kind, count) in &other.counts {
            *self.counts.entry(kind).or_default() += count;
        }
    }
}

/// `loss 3, power cut 1`
impl fmt::Display for FaultCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, (kind, count)) in self.counts.iter().enumerate() {
            let comma = if number == 0 { "" } else { ", " };
            write!(f, "{comma}{kind} {count}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_add_up_and_read_well() {
        let mut one = FaultCounts::default();
        one.count("loss");
        one.count("loss");
        let mut other = FaultCounts::default();
        other.count("loss");
        other.count("power cut");
        one.add(&other);
        assert_eq!(one.of("loss"), 3);
        assert_eq!(one.of("rot"), 0);
        assert_eq!(one.to_string(), "loss 3, power cut 1");
        assert_eq!(one.total(), 4);
        assert_eq!(one.never(&["rot", "loss"]), ["rot"]);
        assert_eq!(one.only(&["loss", "rot"]).to_string(), "loss 3");
    }
}
