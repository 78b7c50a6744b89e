//! CRC-32C over whole buffers and over their blocks.
//!
//! What: the one checksum of Holdfast's formats (iSCSI's polynomial 0x1EDC6F41, RFC 3720 B.4), and a
//! vector of it per 4 KiB block, so that a part of a fragment can be verified without the rest (L5).
//!
//! Invariant: block `i` covers bytes `i * block .. min((i + 1) * block, len)`, and a range is verified
//! only in whole blocks: [`BlockChecksums::aligned`] says which bytes must be read for it.

use std::ops::Range;

use thiserror::Error;

/// Bytes under one checksum of a [`BlockChecksums`] where nothing else is said.
pub const BLOCK_BYTES: u32 = 4096;

/// CRC-32C of a buffer.
#[must_use]
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::crc32_iscsi(bytes)
}

/// CRC-32C of the concatenation of two buffers, without joining them.
#[must_use]
pub fn crc32c_of_two(head: &[u8], tail: &[u8]) -> u32 {
    let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
    digest.update(head);
    digest.update(tail);
    u32::try_from(digest.finalize()).expect("a 32-bit checksum fits in 32 bits")
}

/// What a verification found. `Mismatch` asks for reconstruction, the others are the caller's mistake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ChecksumError {
    #[error("block {block} does not match its checksum")]
    Mismatch { block: u32 },
    #[error("range {start}..{end} is outside {len} bytes or does not cover whole blocks")]
    Range { start: u64, end: u64, len: u64 },
}

/// One CRC-32C per block of a buffer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockChecksums {
    block: u32,
    len: u64,
    sums: Vec<u32>,
}

impl BlockChecksums {
    /// Checksums of `bytes`, one per 4 KiB.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        let sums = bytes.chunks(BLOCK_BYTES as usize).map(crc32c).collect();
        Self { block: BLOCK_BYTES, len: bytes.len() as u64, sums }
    }

    /// Takes checksums that were stored; `None` if their number doesn't fit the length.
    #[must_use]
    pub fn from_parts(len: u64, sums: Vec<u32>) -> Option<Self> {
        let fits = len.div_ceil(u64::from(BLOCK_BYTES)) == sums.len() as u64;
        fits.then_some(Self { block: BLOCK_BYTES, len, sums })
    }

    /// The checksums in block order, as they are stored.
    #[must_use]
    pub fn sums(&self) -> &[u32] {
        &self.sums
    }

    /// Bytes that are covered.
    #[must_use]
    pub fn covered(&self) -> u64 {
        self.len
    }

    /// The smallest range of whole blocks that holds `range`: what must be read to verify it.
    #[must_use]
    pub fn aligned(&self, range: Range<u64>) -> Range<u64> {
        let block = u64::from(self.block);
        let start = range.start / block * block;
        let end = range.end.div_ceil(block).saturating_mul(block).min(self.len);
        start..end.max(start)
    }

    /// Verifies `bytes`, which begin at `offset` and cover whole blocks (the last may end the buffer).
    pub fn verify(&self, offset: u64, bytes: &[u8]) -> Result<(), ChecksumError> {
        let end = offset.saturating_add(bytes.len() as u64);
        if end > self.len || self.aligned(offset..end) != (offset..end) {
            return Err(ChecksumError::Range { start: offset, end, len: self.len });
        }
        let first = u32::try_from(offset / u64::from(self.block))
            .map_err(|_| ChecksumError::Range { start: offset, end, len: self.len })?;
        for (block, piece) in (first..).zip(bytes.chunks(self.block as usize)) {
            if self.sums.get(block as usize) != Some(&crc32c(piece)) {
                return Err(ChecksumError::Mismatch { block });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_the_castagnoli_polynomial_of_rfc_3720() {
        assert_eq!(crc32c(b"123456789"), 0xE306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8A91_36AA);
        assert_eq!(crc32c(&[0xFF; 32]), 0x62A8_AB43);
        let ascending: Vec<u8> = (0..32).collect();
        assert_eq!(crc32c(&ascending), 0x46DD_794E);
        assert_eq!(crc32c(b""), 0);
    }

    #[test]
    fn two_parts_sum_like_one_buffer() {
        for cut in 0..=9 {
            let (head, tail) = b"123456789".split_at(cut);
            assert_eq!(crc32c_of_two(head, tail), 0xE306_9283);
        }
    }

    #[test]
    fn sub_ranges_verify_and_every_flipped_block_is_named() {
        let bytes: Vec<u8> = (0..10_000u32).map(|i| (i * 7 % 251) as u8).collect();
        let sums = BlockChecksums::of(&bytes);
        assert_eq!(sums.sums().len(), 3);
        assert_eq!(sums.aligned(5000..5001), 4096..8192);
        assert_eq!(sums.aligned(9000..10_000), 8192..10_000);
        assert_eq!(sums.verify(0, &bytes), Ok(()));
        assert_eq!(sums.verify(4096, &bytes[4096..8192]), Ok(()));
        assert_eq!(sums.verify(8192, &bytes[8192..]), Ok(()));
        for at in [0usize, 4095, 4096, 9999] {
            let mut bad = bytes.clone();
            bad[at] ^= 1;
            let block = u32::try_from(at / 4096).unwrap();
            assert_eq!(sums.verify(0, &bad), Err(ChecksumError::Mismatch { block }));
        }
        for (offset, end) in [(1usize, 4096usize), (0, 4095), (8192, 9999)] {
            assert!(matches!(
                sums.verify(offset as u64, &bytes[offset..end]),
                Err(ChecksumError::Range { .. })
            ));
        }
        assert!(BlockChecksums::from_parts(10_000, sums.sums().to_vec()) == Some(sums.clone()));
        assert!(BlockChecksums::from_parts(12_289, sums.sums().to_vec()).is_none());
    }

    #[test]
    fn nothing_has_no_blocks() {
        let sums = BlockChecksums::of(&[]);
        assert!(sums.sums().is_empty());
        assert_eq!(sums.verify(0, &[]), Ok(()));
        assert_eq!(sums.covered(), 0);
    }
}
