//! The header of a segment file, in its first and its last 4 KiB.
//!
//! | offset | length | field |
//! |---:|---:|---|
//! | 0 | 8 | magic `HFASDSEG` |
//! | 8 | 4 | CRC-32C of bytes 12..64 |
//! | 12 | 4 | version, 1 |
//! | 16 | 16 | OSD id |
//! | 32 | 8 | length of the file |
//! | 40 | 8 | freed lap: every record of this lap or an earlier one is dead |
//! | 48 | 8 | where the last record of the lap after the freed one ends; 0 while it is being written |
//! | 56 | 8 | zero |
//!
//! It is written when the file is made, when it is full and when it is freed: which lap is being written stands in the
//! records. The copies are synced one after the other, the one that holds last, so a power cut tears one at most, and never
//! the only whole one. If both are damaged all the same, the newest lap found in the file counts, which can at worst show
//! fragments again that were deleted.
//!
//! Invariant: a copy is only believed if its checksum, OSD id and length fit.

use crate::crc::crc32c;
use model::{Lap, OsdId};
use std::num::NonZeroU64;

pub const MAGIC: [u8; 8] = *b"HFASDSEG";
pub const VERSION: u32 = 1;
/// Room that the header takes at both ends of the file.
pub const HEADER_ROOM: u64 = 4096;
const ENCODED_LEN: usize = 64;
/// Smallest segment: headers and one batch of the smallest fragments.
pub const SEGMENT_MIN: u64 = 64 << 10;
/// Largest segment.
pub const SEGMENT_MAX: u64 = 4 << 30;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentHeader {
    pub osd: OsdId,
    pub len: u64,
    pub freed: Lap,
    /// Where the last record of the lap after that ends, once nothing more is written to it: without an index nothing
    /// else in the file says that a record is missing at its end.
    pub closed_at: Option<NonZeroU64>,
}

/// Why a header isn't one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SegmentError {
    #[error("segment header is damaged")]
    Damaged,
    #[error("segment has format version {found}, this program reads {VERSION}")]
    Version { found: u32 },
    #[error("segment belongs to OSD {found}, this is {expected}")]
    Foreign { found: OsdId, expected: OsdId },
}

impl SegmentHeader {
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![0; model::usize_of(HEADER_ROOM)];
        out[..8].copy_from_slice(&MAGIC);
        out[12..16].copy_from_slice(&VERSION.to_le_bytes());
        out[16..32].copy_from_slice(&self.osd.0.to_le_bytes());
        out[32..40].copy_from_slice(&self.len.to_le_bytes());
        out[40..48].copy_from_slice(&self.freed.0.to_le_bytes());
        out[48..56].copy_from_slice(&self.closed_at.map_or(0, NonZeroU64::get).to_le_bytes());
        let crc = crc32c(&out[12..ENCODED_LEN]);
        out[8..12].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Of two copies the one with the greater rank holds.
    #[must_use]
    pub const fn rank(&self) -> (Lap, Option<NonZeroU64>) {
        (self.freed, self.closed_at)
    }

    /// # Errors
    /// When the bytes aren't a header of this OSD and of a file of this length.
    pub fn decode(bytes: &[u8], osd: OsdId, len: u64) -> Result<Self, SegmentError> {
        let bytes: &[u8; ENCODED_LEN] = bytes.first_chunk().ok_or(SegmentError::Damaged)?;
        let crc = u32::from_le_bytes(take(bytes, 8));
        if bytes[..8] != MAGIC || crc != crc32c(&bytes[12..]) {
            return Err(SegmentError::Damaged);
        }
        let version = u32::from_le_bytes(take(bytes, 12));
        if version != VERSION {
            return Err(SegmentError::Version { found: version });
        }
        let found = OsdId(u128::from_le_bytes(take(bytes, 16)));
        if found != osd {
            return Err(SegmentError::Foreign { found, expected: osd });
        }
        let header = Self {
            osd,
            len: u64::from_le_bytes(take(bytes, 32)),
            freed: Lap(u64::from_le_bytes(take(bytes, 40))),
            closed_at: NonZeroU64::new(u64::from_le_bytes(take(bytes, 48))),
        };
        if header.len == len { Ok(header) } else { Err(SegmentError::Damaged) }
    }
}

/// `N` bytes from `at`.
///
/// # Panics
/// When they lie outside; callers pass constants within a checked length.
pub(crate) fn take<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("N bytes were sliced")
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: SegmentHeader = SegmentHeader {
        osd: OsdId(0xfeed),
        len: 1 << 20,
        freed: Lap(7),
        closed_at: NonZeroU64::new(0x1_2345),
    };

    #[test]
    fn golden_bytes() {
        let bytes = HEADER.encode();
        assert_eq!(bytes.len(), 4096);
        let hex: String = bytes[..64].iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(
            hex,
            "484641534453454794ce169901000000edfe00000000000000000000000000000000100000000000\
             070000000000000045230100000000000000000000000000"
        );
    }

    #[test]
    fn any_flipped_bit_of_the_header_is_seen() {
        let good = HEADER.encode();
        assert_eq!(SegmentHeader::decode(&good, HEADER.osd, HEADER.len), Ok(HEADER));
        for bit in 0..ENCODED_LEN * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(SegmentHeader::decode(&bad, HEADER.osd, HEADER.len).is_err(), "bit {bit}");
        }
        assert!(SegmentHeader::decode(&good[..63], HEADER.osd, HEADER.len).is_err());
        assert!(matches!(
            SegmentHeader::decode(&good, OsdId(1), HEADER.len),
            Err(SegmentError::Foreign { .. })
        ));
    }
}
