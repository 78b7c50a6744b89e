//! Reading a fragment, or part of one, so that every byte returned was checked (L5).
//!
//! The index says where the record begins; its header, checked against its own checksum and the key, brings the block
//! checksums; of the data exactly the touched 4 KiB blocks are read and checked. A disk may remember headers, then the
//! blocks alone are read.
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
use std::sync::Arc;
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
    let remembered = disk.remembered(entry).filter(|header| is_of(header, key, entry));
    let along = remembered.is_none() && from <= READ_ALONG;
    let (header, read_along) = match remembered {
        Some(header) => (header, Bytes::new()),
        None => {
            let len = if along { head + to } else { head };
            let bytes = match disk.read_at(entry.at.file, entry.at.offset, len) {
                Ok(bytes) => Bytes::from(bytes),
                Err(error) => return failed(total_len, &error),
            };
            let Some(header) = header_of(&bytes, osd, key, entry).map(Arc::new) else {
                return Reading::Elsewhere;
            };
            disk.remember(entry, &header);
            (header, bytes)
        }
    };
    let blocks = if along {
        read_along.slice(head + from..)
    } else {
        let offset = entry.at.offset + model::u64_of(head + from);
        match disk.read_at(entry.at.file, offset, to - from) {
            Ok(bytes) => Bytes::from(bytes),
            Err(error) => return failed(total_len, &error),
        }
    };
    let checksums = &header.checksums[first..last];
    for ((number, block), sum) in (first..).zip(blocks.chunks(BLOCK)).zip(checksums) {
        if crc::crc32c(block) != *sum {
            // Between reading header and blocks the segment may have been reused: look at the header once more.
            let again = disk.read_at(entry.at.file, entry.at.offset, head);
            let moved = again.is_ok_and(|bytes| header_of(&bytes, osd, key, entry).is_none());
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
    header_of(&bytes, osd, key, entry)
        .map(|header| header.checksums)
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

fn header_of(bytes: &[u8], osd: OsdId, key: &[u8], entry: &Entry) -> Option<Header> {
    let header = Header::decode(bytes, osd, entry.at.offset).ok()?;
    is_of(&header, key, entry).then_some(header)
}

/// Whether a header found where `entry` points is the one that it means.
fn is_of(header: &Header, key: &[u8], entry: &Entry) -> bool {
    header.kind == Kind::Put
        && header.key[..] == *key
        && header.lap == entry.at.lap
        && header.offset == entry.at.offset
        && header.seq == entry.seq
        && header.data_len == entry.data_len
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::FileId;
    use crate::index::Location;
    use model::Lap;
    use std::cell::{Cell, RefCell};

    /// One file, and the header that was read last.
    struct Remembering {
        bytes: RefCell<Vec<u8>>,
        header: RefCell<Option<Arc<Header>>>,
        reads: Cell<usize>,
    }

    impl ReadAt for Remembering {
        fn read_at(&self, _: FileId, offset: u64, len: usize) -> Result<Vec<u8>, DiskError> {
            self.reads.set(self.reads.get() + 1);
            let at = model::usize_of(offset);
            Ok(self.bytes.borrow()[at..at + len].to_vec())
        }

        fn remembered(&self, _: &Entry) -> Option<Arc<Header>> {
            self.header.borrow().clone()
        }

        fn remember(&self, _: &Entry, header: &Arc<Header>) {
            *self.header.borrow_mut() = Some(Arc::clone(header));
        }
    }

    const OSD: OsdId = OsdId(9);
    const KEY: &[u8] = b"key";
    /// Far enough behind the header to be read on its own.
    const FAR: Want = Want { offset: 20_000, len: 5000 };

    fn header(lap: u64, seq: u64, data: &[u8]) -> Header {
        Header {
            kind: Kind::Put,
            key: Bytes::from_static(KEY),
            data_len: model::u32_of(data.len()),
            number: 0,
            osd: OSD,
            lap: Lap(lap),
            offset: 0,
            seq,
            synced: 0,
            prev_end: 0,
            checksums: crc::blocks(data),
        }
    }

    fn record(header: &Header, data: &[u8]) -> Vec<u8> {
        [&header.encode(), data].concat()
    }

    fn entry(header: &Header) -> Entry {
        let at = Location { lap: header.lap, offset: 0, file: FileId(1) };
        Entry { kind: Kind::Put, seq: header.seq, at, data_len: header.data_len, stale: 0 }
    }

    fn data(salt: usize) -> Vec<u8> {
        (0..40_000_usize).map(|i| u8::try_from((i * 7 + i / 4096 + salt) % 251).unwrap()).collect()
    }

    fn disk(header: &Header, data: &[u8]) -> Remembering {
        let bytes = RefCell::new(record(header, data));
        Remembering { bytes, header: RefCell::default(), reads: Cell::new(0) }
    }

    #[test]
    fn with_its_header_remembered_only_the_blocks_of_a_fragment_are_read_and_checked() {
        let data = data(1);
        let header = header(4, 17, &data);
        let disk = disk(&header, &data);
        let entry = entry(&header);
        for reads in [2, 3] {
            let reading = read_at(&disk, OSD, KEY, &entry, FAR);
            let Reading::Found { bytes, total_len: 40_000 } = reading else {
                panic!("{reading:?}")
            };
            assert_eq!(bytes, data[20_000..25_000]);
            assert_eq!(disk.reads.get(), reads);
        }
        let at = header.header_len() + 21_000;
        disk.bytes.borrow_mut()[at] ^= 1;
        let damaged = read_at(&disk, OSD, KEY, &entry, FAR);
        assert!(matches!(damaged, Reading::Corrupt { .. }), "{damaged:?}");
    }

    #[test]
    fn a_remembered_header_answers_for_no_other_record() {
        let (old, new) = (data(1), data(2));
        let first = header(4, 17, &old);
        let disk = disk(&first, &old);
        assert_eq!(read_at(&disk, OSD, KEY, &entry(&first), FAR).status(), GetStatus::Found);
        // The segment is used anew: who still has the old entry is told to look again, who has the new one reads it.
        let second = header(5, 18, &new);
        *disk.bytes.borrow_mut() = record(&second, &new);
        assert_eq!(read_at(&disk, OSD, KEY, &entry(&first), FAR), Reading::Elsewhere);
        let reading = read_at(&disk, OSD, KEY, &entry(&second), FAR);
        let Reading::Found { bytes, .. } = reading else { panic!("{reading:?}") };
        assert_eq!(bytes, new[20_000..25_000]);
        // An index that mixes up keys is not believed either.
        assert_eq!(read_at(&disk, OSD, b"yek", &entry(&second), FAR), Reading::Elsewhere);
    }
}
