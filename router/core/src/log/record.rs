//! One record of the write log (P1), byte for byte; `docs/formats/write-log.md` has the table.
//!
//! The header's checksum covers identity (log, lap, position, vDisk, LSN, cluster) and the checksums of the data, so a
//! record in the wrong place, of an older lap or of another log never reads as valid.
//!
//! Invariant: `Record::parse(&record.header())` gives the record back.

use bytes::Bytes;
use model::{AttachmentGeneration, Cluster, Epoch, Lap, LogId, Lsn, RequestSeq, VdiskId};

use crate::{CLUSTER, crc32c};

pub const MAGIC: u32 = u32::from_le_bytes(*b"HFWL");
const VERSION: u8 = 1;
/// Records begin on multiples of this.
pub const ALIGN: usize = 64;
/// After a sync the next record begins on a multiple of this: no append rewrites a sector that holds synced data (P8).
pub const SYNC_ALIGN: u64 = 4096;
/// Header bytes before the checksums of the data.
pub const FIXED: usize = 124;
/// Most clusters in one write record: the largest request and its two ragged ends.
pub const WRITE_CLUSTERS_MAX: usize = (wire::router::IO_MAX as usize / CLUSTER) + 2;
/// Most entries in a list of segments.
pub const LIST_MAX: usize = 4096;
/// Bytes of one list entry.
const LIST_ENTRY: usize = 16;

/// What a record does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// `count` clusters of data from `cluster` on.
    Write,
    /// `count` clusters from `cluster` on read as zeroes from now on: a discard.
    Trim,
    /// The same, asked for as data.
    Zero,
    /// First record of a segment; carries the list of segments that still count.
    Start,
    /// A newer list, written before a file outside of it is reused.
    List,
}

impl Op {
    const fn tag(self) -> u8 {
        match self {
            Self::Write => 1,
            Self::Trim => 2,
            Self::Zero => 3,
            Self::Start => 16,
            Self::List => 17,
        }
    }

    const fn from_tag(tag: u8) -> Option<Self> {
        match tag {
            1 => Some(Self::Write),
            2 => Some(Self::Trim),
            3 => Some(Self::Zero),
            16 => Some(Self::Start),
            17 => Some(Self::List),
            _ => None,
        }
    }

    /// True for records that carry a list of segments instead of a change to a vDisk.
    #[must_use]
    pub const fn is_list(self) -> bool {
        matches!(self, Self::Start | Self::List)
    }
}

/// One segment that still counts. `end` = 0 while it is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListEntry {
    pub lap: Lap,
    /// Position behind its last record.
    pub end: u64,
}

/// The header of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub log: LogId,
    pub lap: Lap,
    pub position: u64,
    /// Where the record before this one ended: padding can't be taken for a lost record, nor the other way round.
    pub previous_end: u64,
    /// Every record that ended at or below this was on stable storage when this one was written (P8).
    pub synced_through: u64,
    pub vdisk: VdiskId,
    pub epoch: Epoch,
    pub lsn: Lsn,
    pub generation: AttachmentGeneration,
    pub seq: RequestSeq,
    /// The last record of its request: with it the request's sequence counts as applied.
    pub last: bool,
    /// Copied forward: younger records may lie before it.
    pub copied: bool,
    pub op: Op,
    pub cluster: Cluster,
    pub count: u64,
    pub payload_len: u32,
    /// Write: one per cluster. Lists: one for the payload. Else none.
    pub checksums: Vec<u32>,
}

/// Why bytes aren't a record. All mean the same to a scan; the words are for the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    #[error("no record magic")]
    Magic,
    #[error("record version {0} is not known")]
    Version(u8),
    #[error("record operation {0} is not known")]
    Op(u8),
    #[error("record is cut short")]
    Short,
    #[error("record lengths contradict each other")]
    Lengths,
    #[error("record header fails its checksum")]
    Checksum,
}

const fn align(len: usize) -> usize {
    len.div_ceil(ALIGN) * ALIGN
}

/// Padded header length with this many data checksums.
#[must_use]
pub const fn header_len(checksums: usize) -> usize {
    align(FIXED + 4 * checksums)
}

/// Bytes of log that a record takes.
#[must_use]
pub const fn record_len(checksums: usize, payload_len: usize) -> usize {
    header_len(checksums) + align(payload_len)
}

struct Fields<'a> {
    bytes: &'a [u8],
}

impl Fields<'_> {
    fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.bytes[at..at + 4].try_into().expect("4 bytes"))
    }

    fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.bytes[at..at + 8].try_into().expect("8 bytes"))
    }
}

impl Record {
    #[must_use]
    pub const fn header_len(&self) -> usize {
        header_len(self.checksums.len())
    }

    /// Bytes of log that the record takes, payload and padding included.
    #[must_use]
    pub const fn len(&self) -> usize {
        record_len(self.checksums.len(), self.payload_len as usize)
    }

    /// Never: a record has at least its header.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        false
    }

    /// Position behind the record.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.position + self.len() as u64
    }

    /// Appends the padded header to `out`.
    pub fn write_header(&self, out: &mut Vec<u8>) {
        let start = out.len();
        let len = self.header_len();
        out.extend_from_slice(&MAGIC.to_le_bytes());
        out.push(VERSION);
        out.push(self.op.tag());
        out.extend_from_slice(&(u16::from(self.last) | u16::from(self.copied) << 1).to_le_bytes());
        out.extend_from_slice(&model::u32_of(len).to_le_bytes());
        out.extend_from_slice(&self.payload_len.to_le_bytes());
        for value in [self.log.0, self.lap.0, self.position, self.previous_end, self.synced_through]
        {
            out.extend_from_slice(&value.to_le_bytes());
        }
        out.extend_from_slice(&self.vdisk.0.to_le_bytes());
        for value in
            [self.epoch.0, self.lsn.0, self.generation.0, self.seq.0, self.cluster.0, self.count]
        {
            out.extend_from_slice(&value.to_le_bytes());
        }
        out.extend_from_slice(&[0; 4]);
        debug_assert_eq!(out.len() - start, FIXED);
        for checksum in &self.checksums {
            out.extend_from_slice(&checksum.to_le_bytes());
        }
        out.resize(start + len, 0);
        let crc = crc32c(&out[start..]);
        out[start + FIXED - 4..start + FIXED].copy_from_slice(&crc.to_le_bytes());
    }

    #[must_use]
    pub fn header(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.header_len());
        self.write_header(&mut out);
        out
    }

    /// Reads a header at the start of `bytes`; the payload isn't looked at.
    ///
    /// # Errors
    /// When the bytes don't begin with a whole, undamaged header.
    pub fn parse(bytes: &[u8]) -> Result<Self, RecordError> {
        if bytes.len() < FIXED {
            return Err(RecordError::Short);
        }
        let f = Fields { bytes };
        if f.u32(0) != MAGIC {
            return Err(RecordError::Magic);
        }
        if bytes[4] != VERSION {
            return Err(RecordError::Version(bytes[4]));
        }
        let op = Op::from_tag(bytes[5]).ok_or(RecordError::Op(bytes[5]))?;
        let (len, payload_len) = (f.u32(8) as usize, f.u32(12));
        let count = f.u64(112);
        let checksums = match op {
            Op::Write => usize::try_from(count).unwrap_or(usize::MAX),
            Op::Trim | Op::Zero => 0,
            Op::Start | Op::List => 1,
        };
        let payload_fits = match op {
            Op::Write => {
                0 < checksums
                    && checksums <= WRITE_CLUSTERS_MAX
                    && payload_len as usize == checksums * CLUSTER
            }
            Op::Trim | Op::Zero => payload_len == 0,
            Op::Start | Op::List => {
                (payload_len as usize).is_multiple_of(LIST_ENTRY)
                    && payload_len as usize <= LIST_MAX * LIST_ENTRY
            }
        };
        if !payload_fits || len != header_len(checksums) {
            return Err(RecordError::Lengths);
        }
        let header = bytes.get(..len).ok_or(RecordError::Short)?;
        verify_checksum(header)?;
        let vdisk = u128::from_le_bytes(header[56..72].try_into().expect("16 bytes"));
        Ok(Self {
            log: LogId(f.u64(16)),
            lap: Lap(f.u64(24)),
            position: f.u64(32),
            previous_end: f.u64(40),
            synced_through: f.u64(48),
            vdisk: VdiskId(vdisk),
            epoch: Epoch(f.u64(72)),
            lsn: Lsn(f.u64(80)),
            generation: AttachmentGeneration(f.u64(88)),
            seq: RequestSeq(f.u64(96)),
            last: header[6] & 1 == 1,
            copied: header[6] & 2 == 2,
            op,
            cluster: Cluster(f.u64(104)),
            count,
            payload_len,
            checksums: (0..checksums).map(|at| f.u32(FIXED + 4 * at)).collect(),
        })
    }

    /// Does the payload match the checksums of the header?
    #[must_use]
    pub fn payload_is_intact(&self, payload: &[u8]) -> bool {
        if payload.len() != self.payload_len as usize {
            return false;
        }
        match self.op {
            Op::Write => payload
                .chunks_exact(CLUSTER)
                .zip(&self.checksums)
                .all(|(cluster, sum)| crc32c(cluster) == *sum),
            Op::Trim | Op::Zero => true,
            Op::Start | Op::List => self.checksums.first() == Some(&crc32c(payload)),
        }
    }
}

fn verify_checksum(header: &[u8]) -> Result<(), RecordError> {
    let stored = u32::from_le_bytes(header[FIXED - 4..FIXED].try_into().expect("4 bytes"));
    let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
    digest.update(&header[..FIXED - 4]);
    digest.update(&[0; 4]);
    digest.update(&header[FIXED..]);
    if digest.finalize() == u64::from(stored) { Ok(()) } else { Err(RecordError::Checksum) }
}

/// Bytes of a list of segments.
#[must_use]
pub fn encode_list(entries: &[ListEntry]) -> Bytes {
    let mut out = Vec::with_capacity(entries.len() * LIST_ENTRY);
    for entry in entries {
        out.extend_from_slice(&entry.lap.0.to_le_bytes());
        out.extend_from_slice(&entry.end.to_le_bytes());
    }
    Bytes::from(out)
}

/// The list in a verified payload.
#[must_use]
pub fn decode_list(payload: &[u8]) -> Vec<ListEntry> {
    payload
        .chunks_exact(LIST_ENTRY)
        .map(|entry| {
            let f = Fields { bytes: entry };
            ListEntry { lap: Lap(f.u64(0)), end: f.u64(8) }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> Record {
        Record {
            log: LogId(0x0102_0304_0506_0708),
            lap: Lap(3),
            position: 3 << 20,
            previous_end: 77,
            synced_through: 66,
            vdisk: VdiskId(0xabcd),
            epoch: Epoch(5),
            lsn: Lsn(9),
            generation: AttachmentGeneration(2),
            seq: RequestSeq(11),
            last: true,
            copied: false,
            op: Op::Write,
            cluster: Cluster(42),
            count: 1,
            payload_len: 4096,
            checksums: vec![crc32c(&[7; CLUSTER])],
        }
    }

    #[test]
    fn a_record_has_these_bytes() {
        let bytes = sample().header();
        assert_eq!(bytes.len(), 128);
        assert_eq!(&bytes[..16], b"HFWL\x01\x01\x01\x00\x80\x00\x00\x00\x00\x10\x00\x00");
        assert_eq!(bytes[16..24], 0x0102_0304_0506_0708_u64.to_le_bytes());
        assert_eq!(bytes[24], 3);
        assert_eq!(bytes[32..40], (3u64 << 20).to_le_bytes());
        assert_eq!((bytes[40], bytes[48]), (77, 66));
        assert_eq!(bytes[56..58], [0xcd, 0xab]);
        assert_eq!((bytes[72], bytes[80], bytes[88], bytes[96]), (5, 9, 2, 11));
        assert_eq!((bytes[104], bytes[112]), (42, 1));
        assert_eq!(sample().len(), 128 + 4096);
    }

    #[test]
    fn any_flipped_bit_of_a_header_is_seen() {
        let good = sample().header();
        assert_eq!(Record::parse(&good), Ok(sample()));
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Record::parse(&bad).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_payload_is_checked_cluster_by_cluster() {
        let record = sample();
        assert!(record.payload_is_intact(&[7; CLUSTER]));
        let mut bad = [7; CLUSTER];
        bad[4000] = 8;
        assert!(!record.payload_is_intact(&bad));
        assert!(!record.payload_is_intact(&[7; 100]));
    }

    #[test]
    fn a_list_survives_its_bytes() {
        let list =
            vec![ListEntry { lap: Lap(1), end: 5 }, ListEntry { lap: Lap(9), end: u64::MAX }];
        assert_eq!(decode_list(&encode_list(&list)), list);
    }

    proptest! {
        #[test]
        fn garbage_is_an_error_and_never_a_panic(mut bytes: Vec<u8>, magic: bool) {
            if magic && bytes.len() >= 6 {
                bytes[..6].copy_from_slice(b"HFWL\x01\x01");
            }
            prop_assert!(Record::parse(&bytes).is_err());
        }

        #[test]
        fn records_survive_their_bytes(count in 1u64..20, lsn: u64, position: u64, last: bool, copied: bool, trim: bool) {
            let mut record = Record {
                lsn: Lsn(lsn), position, last, copied, count,
                payload_len: u32::try_from(count).unwrap() * 4096,
                checksums: (0..u32::try_from(count).unwrap()).collect(),
                ..sample()
            };
            if trim {
                record = Record { op: Op::Trim, payload_len: 0, checksums: Vec::new(), count: lsn, ..record };
            }
            let bytes = record.header();
            prop_assert_eq!(bytes.len() % ALIGN, 0);
            prop_assert_eq!(Record::parse(&bytes), Ok(record));
        }
    }
}
