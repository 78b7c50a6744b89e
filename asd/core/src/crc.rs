//! CRC-32C (iSCSI), the one checksum of every record, block and header.
//!
//! Invariant: block `i` of a fragment covers bytes `i * BLOCK .. min((i + 1) * BLOCK, len)`.

use wire::asd::BLOCK;

/// CRC-32C of a buffer.
#[must_use]
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::crc32_iscsi(bytes)
}

/// One checksum per [`BLOCK`].
#[must_use]
pub fn blocks(data: &[u8]) -> Vec<u32> {
    data.chunks(BLOCK).map(crc32c).collect()
}

/// Whether `data` is what `checksums` were computed from: right number, each equal.
#[must_use]
pub fn matches(data: &[u8], checksums: &[u32]) -> bool {
    data.len().div_ceil(BLOCK) == checksums.len()
        && data.chunks(BLOCK).zip(checksums).all(|(block, sum)| crc32c(block) == *sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_polynomial_is_the_one_of_rfc_3720() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn a_missing_or_extra_checksum_is_a_mismatch() {
        let data = vec![7; BLOCK + 1];
        let sums = blocks(&data);
        assert_eq!(sums.len(), 2);
        assert!(matches(&data, &sums));
        assert!(!matches(&data, &sums[..1]));
        assert!(!matches(&data[..BLOCK], &sums));
        assert!(matches(&[], &[]));
    }
}
