//! Units of 512 bytes that say who wrote them.
//!
//! The whole unit is a function of (run, unit, operation), so a read is judged by regenerating what should be there: no
//! checksum can collide, and a unit of another place, another run or half of two writes is seen.
//!
//! Invariant: two different stamps differ, and no stamp is all zeroes.

/// What a disk writes whole, and what the history keeps book of.
pub const UNIT: usize = 512;

const MAGIC: [u8; 8] = *b"holdfast";

/// What a unit holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Observed {
    /// Never written, trimmed or zeroed.
    Zero,
    /// Written by this operation.
    Write(u64),
    /// Nothing that this run wrote there.
    Foreign,
}

/// Stamps one unit of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    pub run: u64,
    pub unit: u64,
    pub operation: u64,
}

impl Stamp {
    pub fn write_to(self, bytes: &mut [u8]) {
        assert_eq!(bytes.len(), UNIT, "stamps fill a unit");
        let Self { run, unit, operation } = self;
        for (place, word) in [run, unit, operation].into_iter().enumerate() {
            bytes[8 + 8 * place..16 + 8 * place].copy_from_slice(&word.to_le_bytes());
        }
        bytes[..8].copy_from_slice(&MAGIC);
        // SplitMix64 seeded by all three: cheap, and incompressible as encrypted or media data is.
        let mut state = run ^ unit.rotate_left(20) ^ operation.rotate_left(40);
        for word in bytes[32..].chunks_exact_mut(8) {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut mixed = state;
            mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            word.copy_from_slice(&(mixed ^ (mixed >> 31)).to_le_bytes());
        }
    }

    /// What `bytes`, read from `unit`, are.
    #[must_use]
    pub fn observe(run: u64, unit: u64, bytes: &[u8]) -> Observed {
        if bytes.iter().all(|byte| *byte == 0) {
            return Observed::Zero;
        }
        let word = bytes[24..32].try_into().expect("8 bytes");
        let operation = u64::from_le_bytes(word);
        let mut expected = [0; UNIT];
        Self { run, unit, operation }.write_to(&mut expected);
        if bytes == expected { Observed::Write(operation) } else { Observed::Foreign }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(stamp: Stamp) -> [u8; UNIT] {
        let mut bytes = [0; UNIT];
        stamp.write_to(&mut bytes);
        bytes
    }

    #[test]
    fn a_unit_tells_its_operation() {
        let bytes = unit(Stamp { run: 1, unit: 2, operation: 3 });
        assert_eq!(Stamp::observe(1, 2, &bytes), Observed::Write(3));
        assert_eq!(Stamp::observe(1, 2, &[0; UNIT]), Observed::Zero);
    }

    #[test]
    fn another_run_another_place_a_torn_and_a_rotten_unit_are_foreign() {
        let bytes = unit(Stamp { run: 1, unit: 2, operation: 3 });
        assert_eq!(Stamp::observe(9, 2, &bytes), Observed::Foreign);
        assert_eq!(Stamp::observe(1, 9, &bytes), Observed::Foreign);
        let mut torn = bytes;
        torn[256..].copy_from_slice(&unit(Stamp { run: 1, unit: 2, operation: 4 })[256..]);
        assert_eq!(Stamp::observe(1, 2, &torn), Observed::Foreign);
        for at in 0..UNIT {
            let mut rotten = bytes;
            rotten[at] ^= 1;
            assert_eq!(Stamp::observe(1, 2, &rotten), Observed::Foreign, "byte {at}");
        }
    }
}
