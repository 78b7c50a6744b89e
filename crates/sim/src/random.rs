//! The one source of chance of a simulation.
//!
//! Each part of a world draws from a stream of its own, [forked](Random::fork) from its parent's, so that a change in
//! how often one part draws doesn't reshuffle the luck of all others. Chances are whole numbers (parts per million):
//! floating point would tie a digest to a machine.
//!
//! Invariant: equal seeds and equal calls give equal answers, on every machine.

use std::ops::RangeInclusive;
use std::time::Duration;

/// How likely something is, in parts per million.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Chance(u32);

impl Chance {
    const WHOLE: u32 = 1_000_000;
    pub const NEVER: Self = Self(0);
    pub const ALWAYS: Self = Self(Self::WHOLE);

    /// # Panics
    /// Above 100.
    #[must_use]
    pub const fn percent(percent: u32) -> Self {
        assert!(percent <= 100, "at most always");
        Self(percent * 10_000)
    }

    /// # Panics
    /// Above a million.
    #[must_use]
    pub const fn parts(parts: u32) -> Self {
        assert!(parts <= Self::WHOLE, "at most always");
        Self(parts)
    }

    /// # Panics
    /// Above 1000.
    #[must_use]
    pub const fn per_mille(per_mille: u32) -> Self {
        assert!(per_mille <= 1000, "at most always");
        Self(per_mille * 1000)
    }
}

/// A seeded stream of random numbers.
#[derive(Debug, Clone)]
pub struct Random {
    generator: fastrand::Rng,
}

impl Random {
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { generator: fastrand::Rng::with_seed(seed) }
    }

    /// An independent stream: what is drawn from it doesn't shift what is drawn here.
    #[must_use]
    pub fn fork(&mut self) -> Self {
        Self { generator: self.generator.fork() }
    }

    pub fn u64(&mut self) -> u64 {
        self.generator.u64(..)
    }

    pub fn u128(&mut self) -> u128 {
        self.generator.u128(..)
    }

    /// A number below `limit`.
    ///
    /// # Panics
    /// When `limit` is zero: no number is below it.
    pub fn below(&mut self, limit: u64) -> u64 {
        assert!(0 < limit, "no number is below zero");
        self.generator.u64(..limit)
    }

    /// A position in a list of `len` elements.
    ///
    /// # Panics
    /// When the list is empty.
    pub fn index(&mut self, len: usize) -> usize {
        assert!(0 < len, "an empty list has no positions");
        self.generator.usize(..len)
    }

    pub fn between(&mut self, range: RangeInclusive<u64>) -> u64 {
        self.generator.u64(range)
    }

    /// Whole nanoseconds, evenly spread.
    pub fn duration(&mut self, range: &RangeInclusive<Duration>) -> Duration {
        let (low, high) = (nanos(*range.start()), nanos(*range.end()));
        Duration::from_nanos(self.between(low..=high))
    }

    pub fn happens(&mut self, chance: Chance) -> bool {
        // Certain answers draw nothing, so that a fault that is switched off leaves no trace in the stream.
        match chance {
            Chance::NEVER => false,
            Chance::ALWAYS => true,
            Chance(parts) => self.generator.u32(..Chance::WHOLE) < parts,
        }
    }

    pub fn fill(&mut self, bytes: &mut [u8]) {
        self.generator.fill(bytes);
    }

    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        self.generator.shuffle(items);
    }

    /// One of the items, if there are any.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> Option<&'a T> {
        if items.is_empty() { None } else { Some(&items[self.index(items.len())]) }
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).expect("simulations last less than five centuries")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_seeds_give_equal_streams_and_other_seeds_give_others() {
        let draw = |seed| {
            let mut random = Random::new(seed);
            (0..16).map(|_| random.u64()).collect::<Vec<_>>()
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
    }

    #[test]
    fn what_a_fork_draws_does_not_shift_its_parent() {
        let mut quiet = Random::new(3);
        let mut busy = Random::new(3);
        let _unused = quiet.fork();
        let mut used = busy.fork();
        for _ in 0..100 {
            used.u64();
        }
        assert_eq!(quiet.u64(), busy.u64());
    }

    #[test]
    fn chances_come_true_about_as_often_as_they_say() {
        let mut random = Random::new(1);
        let hits = (0..100_000).filter(|_| random.happens(Chance::percent(10))).count();
        assert!((9_000..11_000).contains(&hits), "{hits}");
        assert!(!random.happens(Chance::NEVER));
        assert!(random.happens(Chance::ALWAYS));
    }

    #[test]
    fn durations_stay_within_their_range() {
        let mut random = Random::new(1);
        let range = Duration::from_micros(3)..=Duration::from_micros(5);
        for _ in 0..1000 {
            assert!(range.contains(&random.duration(&range)));
        }
    }

    #[test]
    fn nothing_is_picked_from_nothing() {
        assert_eq!(Random::new(1).pick::<u8>(&[]), None);
        assert_eq!(Random::new(1).pick(&[9]), Some(&9));
    }
}
