//! Bytes of a target's files: blocks, each a header and a run of records; and the file of promises.
//!
//! A block begins on a multiple of 64, the first after a sync on a multiple of 4096, so that no append rewrites a sector
//! that holds synced data (P8). A header names its log (a number drawn when the log was made), its chunk and its offset,
//! so nothing old or misplaced is taken for it, and the end of the block before it, so padding isn't taken for a loss.
//!
//! Invariant: `Header::parse(&header.bytes())` gives the header back.

use bytes::Bytes;
use model::{DtlGeneration, Epoch, Lsn, VdiskId};
use wire::{Decode, Encode, Reader};

use super::records;
use crate::crc32c;
use crate::log::pool::Entry;

const MAGIC: [u8; 4] = *b"HFDT";
const VERSION: u8 = 1;
/// Length of a header, and what blocks begin on multiples of.
pub const HEADER: usize = 64;
/// The first block after a sync begins on a multiple of this.
pub const SYNC_ALIGN: u64 = 4096;

/// What a record of this length takes when it is synced alone.
#[must_use]
pub const fn synced_alone(record: u64) -> u64 {
    (HEADER as u64 + record).next_multiple_of(SYNC_ALIGN)
}

/// What stands before a run of records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Drawn at random when the log was made.
    pub nonce: u64,
    pub chunk: u64,
    pub offset: u64,
    /// Where the block before this one ended in this chunk; 0 for the first.
    pub previous_end: u64,
    pub first: Lsn,
    /// All records up to here were on stable storage when this was written (P8).
    pub synced: Lsn,
    /// Of the records.
    pub len: u32,
}

impl Header {
    #[must_use]
    pub fn bytes(&self) -> [u8; HEADER] {
        let mut out = [0; HEADER];
        out[..4].copy_from_slice(&MAGIC);
        out[4] = VERSION;
        let fields = [self.nonce, self.chunk, self.offset, self.previous_end];
        for (at, value) in fields.into_iter().chain([self.first.0, self.synced.0]).enumerate() {
            out[8 + at * 8..16 + at * 8].copy_from_slice(&value.to_le_bytes());
        }
        out[56..60].copy_from_slice(&self.len.to_le_bytes());
        let crc = crc32c(&out[..60]);
        out[60..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// The header at the start of `bytes`, if there is a whole, undamaged one.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.get(..HEADER)?;
        let u64_at = |at: usize| {
            u64::from_le_bytes(bytes[8 + at * 8..16 + at * 8].try_into().expect("8 bytes"))
        };
        let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"));
        if bytes[..4] != MAGIC || bytes[4] != VERSION || bytes[5..8] != [0; 3] {
            return None;
        }
        if crc32c(&bytes[..60]) != u32_at(60) {
            return None;
        }
        Some(Self {
            nonce: u64_at(0),
            chunk: u64_at(1),
            offset: u64_at(2),
            previous_end: u64_at(3),
            first: Lsn(u64_at(4)),
            synced: Lsn(u64_at(5)),
            len: u32_at(56),
        })
    }
}

/// A block whose header and records are sound.
#[derive(Debug, Clone)]
pub struct Block {
    pub header: Header,
    pub entries: Vec<Entry>,
    /// Offset behind its records.
    pub end: u64,
}

/// Whose blocks are looked for.
#[derive(Debug, Clone, Copy)]
pub struct Whose {
    pub vdisk: VdiskId,
    pub epoch: Epoch,
    pub nonce: u64,
    pub chunk: u64,
}

/// The block that follows on `previous_end`, in `bytes` that begin at `start` of the chunk; `None` = nothing sound there.
#[must_use]
pub fn next(bytes: &Bytes, start: u64, previous_end: u64, whose: &Whose) -> Option<Block> {
    let near = previous_end.next_multiple_of(HEADER as u64);
    let far = previous_end.next_multiple_of(SYNC_ALIGN);
    at(bytes, start, near, previous_end, whose)
        .or_else(|| at(bytes, start, far, previous_end, whose))
}

fn at(bytes: &Bytes, start: u64, offset: u64, previous_end: u64, whose: &Whose) -> Option<Block> {
    let from = model::usize_of(offset.checked_sub(start)?);
    let header = Header::parse(bytes.get(from..)?)?;
    let placed = (header.nonce, header.chunk, header.offset, header.previous_end);
    if placed != (whose.nonce, whose.chunk, offset, previous_end) {
        return None;
    }
    let records = bytes.get(from + HEADER..from + HEADER + header.len as usize)?;
    let mut rest = bytes.slice_ref(records);
    let mut entries: Vec<Entry> = Vec::new();
    while !rest.is_empty() {
        let (entry, len) = records::parse_one(&rest).ok()?;
        let expected = header.first.0.checked_add(entries.len() as u64)?;
        if entry.lsn.0 != expected || entry.vdisk != whose.vdisk || whose.epoch < entry.epoch {
            return None;
        }
        rest = rest.slice(len..);
        entries.push(entry);
    }
    let end = offset + HEADER as u64 + u64::from(header.len);
    (!entries.is_empty()).then_some(Block { header, entries, end })
}

/// The highest "synced through" that any sound header of this log says in `bytes` of a chunk: what lies behind a bad place
/// still testifies about it.
#[must_use]
pub fn testimony(bytes: &[u8], whose: &Whose) -> Lsn {
    let headers = (0..bytes.len()).step_by(HEADER).filter_map(|at| Header::parse(&bytes[at..]));
    let ours = headers.filter(|h| (h.nonce, h.chunk) == (whose.nonce, whose.chunk));
    ours.map(|header| header.synced).max().unwrap_or(Lsn::ZERO)
}

wire::message! {
    /// What is promised about one log.
    pub struct LogPromise {
        pub generation: DtlGeneration,
        pub epoch: Epoch,
        pub nonce: u64,
        /// Everything up to here is in the backend.
        pub base: Lsn,
        /// Its disk failed once: what it holds counts for nothing, whatever a later read says.
        pub failed: bool,
    }

    /// What a target has promised about one vDisk; on stable storage before the promise is answered (P12).
    pub struct Promises {
        /// Nothing below this epoch is taken.
        pub fence: Epoch,
        pub logs: Vec<LogPromise>,
    }
}

const PROMISES_MAGIC: [u8; 4] = *b"HFDP";

impl Promises {
    #[must_use]
    pub fn to_file(&self) -> Bytes {
        let mut out = PROMISES_MAGIC.to_vec();
        out.push(VERSION);
        self.encode(&mut out);
        let crc = crc32c(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        out.into()
    }

    /// `None` when the bytes aren't such a file, whole and undamaged.
    #[must_use]
    pub fn from_file(bytes: &Bytes) -> Option<Self> {
        let split = bytes.len().checked_sub(4)?;
        let body = bytes.get(..split)?;
        if crc32c(body).to_le_bytes() != bytes[split..]
            || !body.starts_with(&PROMISES_MAGIC)
            || body.get(4) != Some(&VERSION)
        {
            return None;
        }
        let mut reader = Reader::new(bytes.slice(5..split));
        let promises = Self::decode(&mut reader).ok()?;
        (reader.remaining() == 0).then_some(promises)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HEADER_SAMPLE: Header = Header {
        nonce: 0x0102_0304_0506_0708,
        chunk: 3,
        offset: 4096,
        previous_end: 4000,
        first: Lsn(9),
        synced: Lsn(8),
        len: 128,
    };

    #[test]
    fn a_header_has_these_bytes() {
        let bytes = HEADER_SAMPLE.bytes();
        assert_eq!(&bytes[..16], b"HFDT\x01\0\0\0\x08\x07\x06\x05\x04\x03\x02\x01");
        assert_eq!((bytes[16], bytes[25], bytes[40], bytes[48], bytes[56]), (3, 16, 9, 8, 128));
        assert_eq!(bytes[32..34], 4000_u16.to_le_bytes());
        assert_eq!(bytes[60..], crc32c(&bytes[..60]).to_le_bytes());
        assert_eq!(Header::parse(&bytes), Some(HEADER_SAMPLE));
    }

    #[test]
    fn promises_have_these_bytes() {
        let log = LogPromise {
            generation: DtlGeneration(2),
            epoch: Epoch(3),
            nonce: 4,
            base: Lsn(5),
            failed: true,
        };
        let promises = Promises { fence: Epoch(6), logs: vec![log] };
        let bytes = promises.to_file();
        assert_eq!(&bytes[..14], b"HFDP\x01\x06\0\0\0\0\0\0\0\x01");
        assert_eq!((bytes[17], bytes[25], bytes[33], bytes[41], bytes[49]), (2, 3, 4, 5, 1));
        assert_eq!(bytes.len(), 54);
        assert_eq!(Promises::from_file(&bytes), Some(promises));
    }

    proptest! {
        #[test]
        fn any_flipped_bit_is_seen(at in 0usize..HEADER, bit in 0u8..8, file_at in 0usize..54) {
            let mut bytes = HEADER_SAMPLE.bytes();
            bytes[at] ^= 1 << bit;
            prop_assert_eq!(Header::parse(&bytes), None);
            let log = LogPromise {
                generation: DtlGeneration(2), epoch: Epoch(3), nonce: 4, base: Lsn(5), failed: true,
            };
            let mut file = Promises { fence: Epoch(6), logs: vec![log] }.to_file().to_vec();
            file[file_at] ^= 1 << bit;
            prop_assert_eq!(Promises::from_file(&file.into()), None);
        }

        #[test]
        fn garbage_never_panics(bytes: Vec<u8>) {
            let whose = Whose { vdisk: VdiskId(1), epoch: Epoch(1), nonce: 1, chunk: 1 };
            prop_assert!(next(&bytes.clone().into(), 0, 0, &whose).is_none());
            prop_assert_eq!(Promises::from_file(&bytes.into()), None);
        }
    }
}
