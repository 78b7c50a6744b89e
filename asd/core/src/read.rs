//! Reading a fragment, or part of one, so that every byte returned was checked (L5).
//!
//! The index says where the record begins; its header, checked against its own checksum and the key, brings the block
//! checksums; of the data exactly the touched 4 KiB blocks are read and checked.
//!
//! Readers hold no lock: while one reads, compaction may move the record and the segment may be reused. Then the header
//! is another one and the answer is [`Reading::Elsewhere`]: ask the index again. The same answer twice for the same place
//! is damage, see [`read`].
//!
//! Invariant: bytes in [`Reading::Found`] matched the checksums stored with them, under this key, at this place.

use crate::crc;
use crate::disk::{DiskError, ReadAt};
use crate::index::{Entry, IndexError, Lookup};
use crate::record::{Header, Kind, header_len};
use bytes::Bytes;
use model::OsdId;
use wire::asd::{BLOCK, GetStatus};

/// A gap between header and first wanted block that is read along rather than read around.
const READ_ALONG: usize = 8 << 10;
/// How often a record may move while it is read.
const MOVES_MAX: usize = 8;
/// `len` of a request that means "to the end".
pub const TO_THE_END: u32 = u32::MAX;

/// Which bytes of a fragment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Want {
    pub offset: u32,
    /// [`TO_THE_END`] or a length.
    pub len: u32,
}

impl Want {
    pub const ALL: Self = Self { offset: 0, len: TO_THE_END };

    /// Start and end within a fragment of `total` bytes.
    fn within(self, total: u32) -> Option<(usize, usize)> {
        let end = if self.len == TO_THE_END { total } else { self.offset.checked_add(self.len)? };
        let fits = self.offset <= end && end <= total;
        fits.then(|| (model::usize_of(self.offset.into()), model::usize_of(end.into())))
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reading {
    Found {
        bytes: Bytes,
        total_len: u32,
    },
    Absent,
    OutOfRange {
        total_len: u32,
    },
    /// The header fails its checksum or isn't this key's.
    Elsewhere,
    Corrupt {
        total_len: u32,
        why: String,
    },
}

impl Reading {
    #[must_use]
    pub const fn status(&self) -> GetStatus {
        match self {
            Self::Found { .. } => GetStatus::Found,
            Self::Absent => GetStatus::Absent,
            Self::OutOfRange { .. } => GetStatus::OutOfRange,
            Self::Elsewhere | Self::Corrupt { .. } => GetStatus::Corrupt,
        }
    }
}

/// Looks `key` up and reads `want` of it.
///
/// # Errors
/// When the index can't be read. A disk that can't be read is [`Reading::Corrupt`]: the caller rebuilds from the others.
pub fn read(
    index: &impl Lookup,
    disk: &impl ReadAt,
    osd: OsdId,
    key: &[u8],
    want: Want,
) -> Result<Reading, IndexError> {
    let mut last: Option<Entry> = None;
    for _ in 0..MOVES_MAX {
        let Some(entry) = index.get(key)?.filter(|entry| entry.kind == Kind::Put) else {
            return Ok(Reading::Absent);
        };
        if last.is_some_and(|last| last.at == entry.at) {
            break;
        }
        match read_at(disk, osd, key, &entry, want) {
            Reading::Elsewhere => last = Some(entry),
            reading @ (Reading::Found { .. }
            | Reading::Absent
            | Reading::OutOfRange { .. }
            | Reading::Corrupt { .. }) => return Ok(reading),
        }
    }
    let total_len = last.map_or(0, |entry| entry.data_len);
    Ok(Reading::Corrupt { total_len, why: "its record isn't where the index says".to_owned() })
}

/// Reads `want` of the fragment that `entry` points to.
pub fn read_at(disk: &impl ReadAt, osd: OsdId, key: &[u8], entry: &Entry, want: Want) -> Reading {
    let total_len = entry.data_len;
    let Some((start, end)) = want.within(total_len) else {
        return Reading::OutOfRange { total_len };
    };
    let total = model::usize_of(total_len.into());
    let (first, last) = (start / BLOCK, end.div_ceil(BLOCK));
    let (from, to) = (first * BLOCK, (last * BLOCK).min(total));
    let head = header_len(key.len(), total);
    let along = from <= READ_ALONG;
    let bytes =
        match disk.read_at(entry.at.file, entry.at.offset, if along { head + to } else { head }) {
            Ok(bytes) => Bytes::from(bytes),
            Err(error) => return failed(total_len, &error),
        };
    let Some(checksums) = checksums_of(&bytes, osd, key, entry) else {
        return Reading::Elsewhere;
    };
    let blocks = if along {
        bytes.slice(head + from..)
    } else {
        let offset = entry.at.offset + model::u64_of(head + from);
        match disk.read_at(entry.at.file, offset, to - from) {
            Ok(bytes) => Bytes::from(bytes),
            Err(error) => return failed(total_len, &error),
        }
    };
    for ((number, block), sum) in (first..).zip(blocks.chunks(BLOCK)).zip(&checksums[first..last]) {
        if crc::crc32c(block) != *sum {
            // Between reading header and blocks the segment may have been reused: look at the header once more.
            let again = disk.read_at(entry.at.file, entry.at.offset, head);
            let moved = again.is_ok_and(|bytes| checksums_of(&bytes, osd, key, entry).is_none());
            if moved {
                return Reading::Elsewhere;
            }
            return Reading::Corrupt {
                total_len,
                why: format!("block {number} fails its checksum"),
            };
        }
    }
    Reading::Found { bytes: blocks.slice(start - from..end - from), total_len }
}

/// The block checksums of the record that `entry` points to.
///
/// # Errors
/// Why they can't be had.
pub fn stored_checksums(
    disk: &impl ReadAt,
    osd: OsdId,
    key: &[u8],
    entry: &Entry,
) -> Result<Vec<u32>, DiskError> {
    let head = header_len(key.len(), model::usize_of(entry.data_len.into()));
    let bytes = disk.read_at(entry.at.file, entry.at.offset, head)?;
    checksums_of(&bytes, osd, key, entry)
        .ok_or_else(|| DiskError::Io("record header is damaged".to_owned()))
}

fn failed(total_len: u32, error: &DiskError) -> Reading {
    match error {
        // A segment without records may be removed while it is read.
        DiskError::Gone(_) => Reading::Elsewhere,
        DiskError::NoSpace | DiskError::ReadOnly(_) | DiskError::Io(_) => {
            Reading::Corrupt { total_len, why: error.to_string() }
        }
    }
}

fn checksums_of(bytes: &[u8], osd: OsdId, key: &[u8], entry: &Entry) -> Option<Vec<u32>> {
    let header = Header::decode(bytes, osd, entry.at.offset).ok()?;
    let ours = header.kind == Kind::Put
        && header.key[..] == *key
        && header.lap == entry.at.lap
        && header.seq == entry.seq
        && header.data_len == entry.data_len;
    ours.then_some(header.checksums)
}
