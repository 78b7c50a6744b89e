//! The index: where the newest version of each key lies, and how much of each segment is still needed.
//!
//! It is derived: thrown away, it is rebuilt from the segments. So it is written without a sync, always after the segment
//! it points into was synced, and each batch carries the place up to which it has followed ([`Checkpoint`]). After a
//! crash it may be behind by any number of whole batches, never ahead; the segments from the checkpoint on are replayed.
//!
//! Merging records is the same for a fresh append, a replay and a rebuild: per key the highest sequence counts, equal
//! sequences are copies and the later copy counts. `stale` counts the older puts of a key that still lie on the disk.
//! A tombstone must outlive them, else a rebuild would bring them back; it is garbage when `stale` reaches 0.
//!
//! Invariant: for every key, `stale` + (1 if it is a put) is the number of its put records in segments in use.

use crate::crc::crc32c;
use crate::disk::FileId;
use crate::record::Kind;
use crate::segment::take;
use bytes::Bytes;
use model::Lap;

/// Where a record begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Location {
    pub lap: Lap,
    pub offset: u64,
    pub file: FileId,
}

/// The newest version of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// `Put` or `Tombstone`.
    pub kind: Kind,
    pub seq: u64,
    pub at: Location,
    pub data_len: u32,
    pub stale: u32,
}

/// A segment in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentRow {
    pub file: FileId,
    pub len: u64,
    /// Where its records end.
    pub used: u64,
    /// Bytes of records that are the newest of their key.
    pub live: u64,
}

/// How far the index has followed: everything before this place is in it and was synced.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Checkpoint {
    pub lap: Lap,
    pub offset: u64,
    pub number: u32,
    pub prev_end: u64,
}

/// What isn't per key or segment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Meta {
    pub checkpoint: Checkpoint,
    pub next_seq: u64,
    pub fragments: u64,
    /// Bytes of data of all fragments.
    pub live_bytes: u64,
    /// Sum of [`Entry::digest`] over all keys: whether the index still is all that was written to it.
    pub digest: u64,
}

/// Changes that take effect together.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    pub entries: Vec<(Bytes, Option<Entry>)>,
    pub segments: Vec<(Lap, Option<SegmentRow>)>,
    /// Written last; absent while a rebuild is under way, so that an interrupted one begins again.
    pub meta: Option<Meta>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// May be lost in a power cut, with all later batches.
    Lazy,
    /// On stable storage, with all earlier batches, when it returns.
    Synced,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IndexError {
    /// Rebuild it.
    #[error("index is damaged: {0}")]
    Damaged(String),
    /// It can't be read or written now; reopening may help.
    #[error("index: {0}")]
    Io(String),
}

/// Reading, which any number of threads do side by side with the one writer.
pub trait Lookup {
    /// # Errors
    /// When the index can't be read.
    fn get(&self, key: &[u8]) -> Result<Option<Entry>, IndexError>;

    /// Up to `limit` entries in key order, from `start` on.
    ///
    /// # Errors
    /// When the index can't be read.
    fn entries_from(&self, start: &[u8], limit: usize) -> Result<Vec<(Bytes, Entry)>, IndexError>;
}

pub trait Index: Lookup {
    /// `None` in a fresh index and in one whose rebuild was interrupted.
    ///
    /// # Errors
    /// When the index can't be read.
    fn meta(&self) -> Result<Option<Meta>, IndexError>;

    /// # Errors
    /// When the index can't be read.
    fn segments(&self) -> Result<Vec<(Lap, SegmentRow)>, IndexError>;

    /// All of `batch` or nothing of it.
    ///
    /// # Errors
    /// When it may not have been written; the index must be reopened before it is used again.
    fn apply(&mut self, batch: &Batch, durability: Durability) -> Result<(), IndexError>;

    /// Forgets everything.
    ///
    /// # Errors
    /// When it can't be cleared.
    fn clear(&mut self) -> Result<(), IndexError>;
}

impl<T: Lookup> Lookup for &mut T {
    fn get(&self, key: &[u8]) -> Result<Option<Entry>, IndexError> {
        (**self).get(key)
    }

    fn entries_from(&self, start: &[u8], limit: usize) -> Result<Vec<(Bytes, Entry)>, IndexError> {
        (**self).entries_from(start, limit)
    }
}

impl<T: Index> Index for &mut T {
    fn meta(&self) -> Result<Option<Meta>, IndexError> {
        (**self).meta()
    }

    fn segments(&self) -> Result<Vec<(Lap, SegmentRow)>, IndexError> {
        (**self).segments()
    }

    fn apply(&mut self, batch: &Batch, durability: Durability) -> Result<(), IndexError> {
        (**self).apply(batch, durability)
    }

    fn clear(&mut self) -> Result<(), IndexError> {
        (**self).clear()
    }
}

/// Version byte of entries and rows.
const VERSION: u8 = 1;
/// Version byte of the meta row.
const META_VERSION: u8 = 2;

fn damaged(what: &str) -> IndexError {
    IndexError::Damaged(format!("{what} is of another version, or none at all"))
}

impl Entry {
    pub const LEN: usize = 38;

    /// What this entry adds to the digest of an index: a sum, so that the order of changes doesn't matter.
    #[must_use]
    pub fn digest(&self, key: &[u8]) -> u64 {
        // splitmix64's finaliser: sums of related inputs stay unrelated.
        let mut z = u64::from(crc32c(key)) << 32 | u64::from(crc32c(&self.encode()));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// | version 1 | kind 1 | sequence 8 | lap 8 | offset 8 | file 4 | data length 4 | stale 4 |
    #[must_use]
    pub fn encode(&self) -> [u8; Self::LEN] {
        let mut out = [0; Self::LEN];
        out[0] = VERSION;
        out[1] = self.kind.tag();
        out[2..10].copy_from_slice(&self.seq.to_le_bytes());
        out[10..18].copy_from_slice(&self.at.lap.0.to_le_bytes());
        out[18..26].copy_from_slice(&self.at.offset.to_le_bytes());
        out[26..30].copy_from_slice(&self.at.file.0.to_le_bytes());
        out[30..34].copy_from_slice(&self.data_len.to_le_bytes());
        out[34..38].copy_from_slice(&self.stale.to_le_bytes());
        out
    }

    /// # Errors
    /// When the bytes aren't what `encode` writes.
    pub fn decode(bytes: &[u8]) -> Result<Self, IndexError> {
        let bytes: &[u8; Self::LEN] = bytes.try_into().map_err(|_| damaged("entry"))?;
        let kind = Kind::from_tag(bytes[1]).filter(|kind| *kind != Kind::Mark);
        let (VERSION, Some(kind)) = (bytes[0], kind) else { return Err(damaged("entry")) };
        Ok(Self {
            kind,
            seq: u64::from_le_bytes(take(bytes, 2)),
            at: Location {
                lap: Lap(u64::from_le_bytes(take(bytes, 10))),
                offset: u64::from_le_bytes(take(bytes, 18)),
                file: FileId(u32::from_le_bytes(take(bytes, 26))),
            },
            data_len: u32::from_le_bytes(take(bytes, 30)),
            stale: u32::from_le_bytes(take(bytes, 34)),
        })
    }
}

impl SegmentRow {
    pub const LEN: usize = 29;

    /// | version 1 | file 4 | length 8 | used 8 | live 8 |
    #[must_use]
    pub fn encode(&self) -> [u8; Self::LEN] {
        let mut out = [0; Self::LEN];
        out[0] = VERSION;
        out[1..5].copy_from_slice(&self.file.0.to_le_bytes());
        out[5..13].copy_from_slice(&self.len.to_le_bytes());
        out[13..21].copy_from_slice(&self.used.to_le_bytes());
        out[21..29].copy_from_slice(&self.live.to_le_bytes());
        out
    }

    /// # Errors
    /// When the bytes aren't what `encode` writes.
    pub fn decode(bytes: &[u8]) -> Result<Self, IndexError> {
        let bytes: &[u8; Self::LEN] = bytes.try_into().map_err(|_| damaged("segment row"))?;
        if bytes[0] != VERSION {
            return Err(damaged("segment row"));
        }
        Ok(Self {
            file: FileId(u32::from_le_bytes(take(bytes, 1))),
            len: u64::from_le_bytes(take(bytes, 5)),
            used: u64::from_le_bytes(take(bytes, 13)),
            live: u64::from_le_bytes(take(bytes, 21)),
        })
    }
}

impl Meta {
    pub const LEN: usize = 61;

    /// | version 1 | checkpoint: lap 8, offset 8, number 4, end of the lap before 8 | next sequence 8 | fragments 8 | bytes 8 | digest 8 |
    #[must_use]
    pub fn encode(&self) -> [u8; Self::LEN] {
        let mut out = [0; Self::LEN];
        out[0] = META_VERSION;
        out[1..9].copy_from_slice(&self.checkpoint.lap.0.to_le_bytes());
        out[9..17].copy_from_slice(&self.checkpoint.offset.to_le_bytes());
        out[17..21].copy_from_slice(&self.checkpoint.number.to_le_bytes());
        out[21..29].copy_from_slice(&self.checkpoint.prev_end.to_le_bytes());
        out[29..37].copy_from_slice(&self.next_seq.to_le_bytes());
        out[37..45].copy_from_slice(&self.fragments.to_le_bytes());
        out[45..53].copy_from_slice(&self.live_bytes.to_le_bytes());
        out[53..61].copy_from_slice(&self.digest.to_le_bytes());
        out
    }

    /// # Errors
    /// When the bytes aren't what `encode` writes.
    pub fn decode(bytes: &[u8]) -> Result<Self, IndexError> {
        let bytes: &[u8; Self::LEN] = bytes.try_into().map_err(|_| damaged("meta row"))?;
        if bytes[0] != META_VERSION {
            return Err(damaged("meta row"));
        }
        Ok(Self {
            checkpoint: Checkpoint {
                lap: Lap(u64::from_le_bytes(take(bytes, 1))),
                offset: u64::from_le_bytes(take(bytes, 9)),
                number: u32::from_le_bytes(take(bytes, 17)),
                prev_end: u64::from_le_bytes(take(bytes, 21)),
            },
            next_seq: u64::from_le_bytes(take(bytes, 29)),
            fragments: u64::from_le_bytes(take(bytes, 37)),
            live_bytes: u64::from_le_bytes(take(bytes, 45)),
            digest: u64::from_le_bytes(take(bytes, 53)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENTRY: Entry = Entry {
        kind: Kind::Tombstone,
        seq: 1,
        at: Location { lap: Lap(2), offset: 3, file: FileId(4) },
        data_len: 5,
        stale: 6,
    };
    const ROW: SegmentRow = SegmentRow { file: FileId(1), len: 2, used: 3, live: 4 };
    const META: Meta = Meta {
        checkpoint: Checkpoint { lap: Lap(1), offset: 2, number: 3, prev_end: 4 },
        next_seq: 5,
        fragments: 6,
        live_bytes: 7,
        digest: 8,
    };

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn golden_bytes() {
        assert_eq!(
            hex(&ENTRY.encode()),
            "010201000000000000000200000000000000030000000000000004000000050000000600\
             0000"
        );
        assert_eq!(
            hex(&ROW.encode()),
            "0101000000020000000000000003000000000000000400000000000000"
        );
        assert_eq!(
            hex(&META.encode()),
            "020100000000000000020000000000000003000000040000000000000005000000000000000600000000000000\
             07000000000000000800000000000000"
        );
    }

    #[test]
    fn values_survive_their_bytes_and_strange_ones_are_refused() {
        assert_eq!(Entry::decode(&ENTRY.encode()), Ok(ENTRY));
        assert_eq!(SegmentRow::decode(&ROW.encode()), Ok(ROW));
        assert_eq!(Meta::decode(&META.encode()), Ok(META));
        let mut newer = ENTRY.encode();
        newer[0] = 2;
        assert!(Entry::decode(&newer).is_err());
        assert!(Entry::decode(&ENTRY.encode()[1..]).is_err());
        assert!(Meta::decode(&[]).is_err());
        assert!(SegmentRow::decode(&[2; SegmentRow::LEN]).is_err());
    }
}
