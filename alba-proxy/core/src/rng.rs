//! A small seeded generator: placement wants spread, not secrecy, and must be repeatable.
//!
//! Invariant: equal seeds give equal draws, on every machine and in every version: simulations depend on it.

/// `SplitMix64`.
#[derive(Debug, Clone)]
pub struct Rng(u64);

impl Rng {
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which isn't 0; the bias of the remainder is below 2^-32 for our bounds.
    pub const fn below(&mut self, bound: u64) -> u64 {
        assert!(bound > 0, "nothing lies below 0");
        self.next() % bound
    }

    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            let other = model::usize_of(self.below(model::u64_of(last) + 1));
            items.swap(last, other);
        }
    }

    /// Index drawn with probability proportional to its weight; weights of 0 count as 1.
    pub fn weighted(&mut self, weights: impl Iterator<Item = u64> + Clone) -> Option<usize> {
        // Scaled down so that the sum of many petabytes still fits.
        let scaled = weights.map(|weight| (weight >> 10).max(1));
        let total = scaled.clone().fold(0_u64, u64::saturating_add);
        if total == 0 {
            return None;
        }
        let mut left = self.below(total);
        for (index, weight) in scaled.enumerate() {
            match left.checked_sub(weight) {
                Some(rest) => left = rest,
                None => return Some(index),
            }
        }
        None
    }
}
