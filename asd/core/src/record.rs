//! A record: one fragment, one delete, or one mark, describing itself.
//!
//! | offset | length | field |
//! |---:|---:|---|
//! | 0 | 8 | magic `HFASDREC` |
//! | 8 | 4 | CRC-32C of bytes 12..end of the block checksums |
//! | 12 | 1 | version, 1 |
//! | 13 | 1 | kind: 1 put, 2 tombstone, 3 mark |
//! | 14 | 2 | key length, 1..=128 (0 for a mark) |
//! | 16 | 4 | data length (0 unless a put) |
//! | 20 | 4 | number of the record within its lap, from 0 |
//! | 24 | 16 | OSD id |
//! | 40 | 8 | lap: which use of which segment; a new one for each segment opened |
//! | 48 | 8 | offset of this record in the file |
//! | 56 | 8 | sequence of the operation: the highest per key counts; a copy by compaction keeps it |
//! | 64 | 8 | synced: everything of this lap below this offset was on stable storage when this was written |
//! | 72 | 8 | where the lap before this one ended: nothing of it beyond was ever acknowledged |
//! | 80 | … | key |
//! | … | 4 each | CRC-32C of each 4 KiB block of the data |
//! | … | … | data |
//!
//! Records begin at multiples of 64, the first of a batch at a multiple of 4096, so that an append never rewrites a
//! sector that holds synced data (P8); the gaps are zero.
//!
//! Lap and offset make a left-over of an earlier use of the segment, or a record that someone stored as data,
//! something else than a record here. The number tells how many are missing where a stretch is damaged.
//!
//! Invariant: [`Header::decode`] accepts nothing that [`Header::encode`] would not write.

use crate::crc::crc32c;
use crate::segment::take;
use bytes::Bytes;
use model::{Lap, OsdId};
use wire::asd::{BLOCK, FRAGMENT_MAX, KEY_MAX};

pub const MAGIC: [u8; 8] = *b"HFASDREC";
pub const VERSION: u8 = 1;
/// Bytes before the key.
pub const FIXED_LEN: usize = 80;
/// Records begin at multiples of this.
pub const ALIGN: u64 = 64;
/// Batches begin at multiples of this: no device has larger sectors (P8).
pub const BATCH_ALIGN: u64 = 4096;
/// Longest header.
pub const HEADER_MAX: usize = FIXED_LEN + KEY_MAX + 4 * FRAGMENT_MAX.div_ceil(BLOCK);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A fragment.
    Put,
    /// The key is gone as of this sequence.
    Tombstone,
    /// Says only how far this lap is synced.
    Mark,
}

impl Kind {
    pub(crate) const fn tag(self) -> u8 {
        match self {
            Self::Put => 1,
            Self::Tombstone => 2,
            Self::Mark => 3,
        }
    }

    pub(crate) const fn from_tag(tag: u8) -> Option<Self> {
        match tag {
            1 => Some(Self::Put),
            2 => Some(Self::Tombstone),
            3 => Some(Self::Mark),
            _ => None,
        }
    }
}

/// Everything before the data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    pub kind: Kind,
    pub key: Bytes,
    pub data_len: u32,
    pub number: u32,
    pub osd: OsdId,
    pub lap: Lap,
    pub offset: u64,
    pub seq: u64,
    pub synced: u64,
    pub prev_end: u64,
    pub checksums: Vec<u32>,
}

/// Why bytes aren't a record header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// No record begins here.
    #[error("no record here")]
    NotARecord,
    /// The header goes on beyond the bytes given.
    #[error("header needs {0} bytes")]
    Short(usize),
    #[error("record header fails its checksum")]
    Checksum,
    #[error("record header contradicts itself or its place")]
    Inconsistent,
}

/// Length of a header with such a key and data.
#[must_use]
pub const fn header_len(key_len: usize, data_len: usize) -> usize {
    FIXED_LEN + key_len + 4 * data_len.div_ceil(BLOCK)
}

/// Room that a record takes in a segment, up to where the next may begin.
#[must_use]
pub const fn record_len(key_len: usize, data_len: usize) -> u64 {
    align(model::u64_of(header_len(key_len, data_len) + data_len), ALIGN)
}

/// The first multiple of `to` at or after `value`.
#[must_use]
pub const fn align(value: u64, to: u64) -> u64 {
    value.div_ceil(to) * to
}

impl Header {
    #[must_use]
    pub fn header_len(&self) -> usize {
        header_len(self.key.len(), model::usize_of(self.data_len.into()))
    }

    #[must_use]
    pub fn record_len(&self) -> u64 {
        record_len(self.key.len(), model::usize_of(self.data_len.into()))
    }

    /// Where the next record of the same batch begins.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.offset + self.record_len()
    }

    /// # Panics
    /// When key or data break the limits that were checked when the request came in.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let data_len = model::usize_of(self.data_len.into());
        assert!(self.key.len() <= KEY_MAX && data_len <= FRAGMENT_MAX, "checked at the door");
        assert_eq!(self.checksums.len(), data_len.div_ceil(BLOCK), "one checksum per block");
        let mut out = Vec::with_capacity(self.header_len());
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&[0; 4]);
        out.push(VERSION);
        out.push(self.kind.tag());
        let key_len = u16::try_from(self.key.len()).expect("at most KEY_MAX, asserted above");
        out.extend_from_slice(&key_len.to_le_bytes());
        out.extend_from_slice(&self.data_len.to_le_bytes());
        out.extend_from_slice(&self.number.to_le_bytes());
        out.extend_from_slice(&self.osd.0.to_le_bytes());
        for number in [self.lap.0, self.offset, self.seq, self.synced, self.prev_end] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(&self.key);
        for sum in &self.checksums {
            out.extend_from_slice(&sum.to_le_bytes());
        }
        let crc = crc32c(&out[12..]);
        out[8..12].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Length of the header that begins with `bytes`.
    ///
    /// # Errors
    /// When none does.
    pub fn peek_len(bytes: &[u8]) -> Result<usize, RecordError> {
        let Some(fixed) = bytes.first_chunk::<FIXED_LEN>() else {
            return Err(RecordError::Short(FIXED_LEN));
        };
        if fixed[..8] != MAGIC || fixed[12] != VERSION {
            return Err(RecordError::NotARecord);
        }
        let kind = Kind::from_tag(fixed[13]).ok_or(RecordError::Inconsistent)?;
        let key_len = usize::from(u16::from_le_bytes(take(fixed, 14)));
        let data_len = model::usize_of(u32::from_le_bytes(take(fixed, 16)).into());
        let fits = match kind {
            Kind::Put => (1..=KEY_MAX).contains(&key_len) && data_len <= FRAGMENT_MAX,
            Kind::Tombstone => (1..=KEY_MAX).contains(&key_len) && data_len == 0,
            Kind::Mark => key_len == 0 && data_len == 0,
        };
        if fits { Ok(header_len(key_len, data_len)) } else { Err(RecordError::Inconsistent) }
    }

    /// # Errors
    /// When `bytes`, read at `offset` of a segment of `osd`, don't begin with a whole record header of that place.
    pub fn decode(bytes: &[u8], osd: OsdId, offset: u64) -> Result<Self, RecordError> {
        let len = Self::peek_len(bytes)?;
        let Some(bytes) = bytes.get(..len) else { return Err(RecordError::Short(len)) };
        if u32::from_le_bytes(take(bytes, 8)) != crc32c(&bytes[12..]) {
            return Err(RecordError::Checksum);
        }
        let key_len = usize::from(u16::from_le_bytes(take(bytes, 14)));
        let header = Self {
            kind: Kind::from_tag(bytes[13]).ok_or(RecordError::Inconsistent)?,
            data_len: u32::from_le_bytes(take(bytes, 16)),
            number: u32::from_le_bytes(take(bytes, 20)),
            osd: OsdId(u128::from_le_bytes(take(bytes, 24))),
            lap: Lap(u64::from_le_bytes(take(bytes, 40))),
            offset: u64::from_le_bytes(take(bytes, 48)),
            seq: u64::from_le_bytes(take(bytes, 56)),
            synced: u64::from_le_bytes(take(bytes, 64)),
            prev_end: u64::from_le_bytes(take(bytes, 72)),
            key: Bytes::copy_from_slice(&bytes[FIXED_LEN..FIXED_LEN + key_len]),
            checksums: bytes[FIXED_LEN + key_len..]
                .chunks_exact(4)
                .map(|sum| u32::from_le_bytes(take(sum, 0)))
                .collect(),
        };
        let in_place = header.osd == osd && header.offset == offset && header.synced <= offset;
        if in_place { Ok(header) } else { Err(RecordError::Inconsistent) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header(key: &[u8], data: &[u8]) -> Header {
        Header {
            kind: Kind::Put,
            key: Bytes::copy_from_slice(key),
            data_len: model::u32_of(data.len()),
            number: 3,
            osd: OsdId(9),
            lap: Lap(4),
            offset: 8192,
            seq: 17,
            synced: 4096,
            prev_end: 65536,
            checksums: crate::crc::blocks(data),
        }
    }

    #[test]
    fn golden_bytes() {
        let hex: String =
            header(b"key", b"123456789").encode().iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(
            hex,
            "4846415344524543639a7b3d01010300090000000300000009000000000000000000000000000000\
             04000000000000000020000000000000110000000000000000100000000000000000010000000000\
             6b6579839206e3"
        );
    }

    #[test]
    fn any_flipped_bit_is_seen() {
        let good = header(b"key", &[5; 5000]).encode();
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Header::decode(&bad, OsdId(9), 8192).is_err(), "bit {bit}");
        }
        assert!(Header::decode(&good, OsdId(8), 8192).is_err());
        assert!(Header::decode(&good, OsdId(9), 4096).is_err());
    }

    proptest! {
        #[test]
        fn headers_survive_their_bytes(
            key in proptest::collection::vec(any::<u8>(), 1..=KEY_MAX),
            data in proptest::collection::vec(any::<u8>(), 0..20_000),
        ) {
            let header = header(&key, &data);
            let mut bytes = header.encode();
            prop_assert_eq!(bytes.len(), header.header_len());
            bytes.extend_from_slice(&data);
            prop_assert_eq!(Header::decode(&bytes, OsdId(9), 8192), Ok(header));
        }

        #[test]
        fn garbage_never_panics(mut bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(Header::decode(&bytes, OsdId(9), 0).is_err());
            if bytes.len() > 13 {
                bytes[..8].copy_from_slice(&MAGIC);
                bytes[12] = VERSION;
                prop_assert!(Header::decode(&bytes, OsdId(9), 0).is_err());
            }
        }
    }
}
