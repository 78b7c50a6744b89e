//! The TLog part of a SCO: what the unit changed, and the `meta` that the backend keeps beside the object.
//!
//! A page map, the applied sequences and the order of epochs are rebuilt from these alone (L6, P3, P10).
//!
//! Invariant: applying the unmaps, then the runs, to the state before the unit gives the state after it.

use bytes::Bytes;
use model::{AttachmentGeneration, Cluster, ClusterRange, Epoch, Lsn, ObjectId};
use wire::router::AppliedSequences;
use wire::{Decode, DecodeError, Encode, Reader};

use crate::crc32c;
use crate::page::{Location, SLOTS_MAX};
use crate::sco::group_of;

const TLOG_MAGIC: u32 = u32::from_le_bytes(*b"HFTL");
const TLOG_VERSION: u8 = 1;
const META_VERSION: u8 = 1;
/// No disk is larger: its bytes are counted in 64 bits.
const CLUSTERS_MAX: u64 = u64::MAX / model::CLUSTER_SIZE;

/// Clusters in consecutive slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    pub start: Cluster,
    pub count: u32,
}

/// What a unit changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tlog {
    pub object: ObjectId,
    pub first_lsn: Lsn,
    pub last_lsn: Lsn,
    pub size_bytes: u64,
    /// (epoch, first LSN it owns) of every epoch that owns an LSN of this unit (P10).
    pub epochs: Vec<(Epoch, Lsn)>,
    pub unmaps: Vec<ClusterRange>,
    /// In slot order: the first run begins at slot 0.
    pub runs: Vec<Run>,
    /// As of `last_lsn` (P3).
    pub applied: Vec<(AttachmentGeneration, AppliedSequences)>,
}

/// Bytes that aren't a TLog part or its `meta`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TlogError {
    #[error("TLog part fails its checksum")]
    Checksum,
    #[error("not a TLog part of a known version")]
    Version,
    #[error("TLog part names an impossible range")]
    Range,
    #[error(transparent)]
    Decode(#[from] DecodeError),
}

impl Tlog {
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(256 + self.runs.len() * 12);
        TLOG_MAGIC.encode(&mut out);
        TLOG_VERSION.encode(&mut out);
        self.object.encode(&mut out);
        self.first_lsn.encode(&mut out);
        self.last_lsn.encode(&mut out);
        self.size_bytes.encode(&mut out);
        self.epochs.encode(&mut out);
        let unmaps: Vec<(Cluster, Cluster)> =
            self.unmaps.iter().map(|r| (r.start, r.end)).collect();
        unmaps.encode(&mut out);
        let runs: Vec<(Cluster, u32)> = self.runs.iter().map(|r| (r.start, r.count)).collect();
        runs.encode(&mut out);
        model::u32_of(self.applied.len()).encode(&mut out);
        for (generation, applied) in &self.applied {
            generation.encode(&mut out);
            applied.encode(&mut out);
        }
        crc32c(&out).encode(&mut out);
        out
    }

    /// # Errors
    /// When the bytes aren't a whole TLog part.
    pub fn decode(bytes: &Bytes) -> Result<Self, TlogError> {
        let Some((body, crc)) = bytes.split_last_chunk::<4>() else {
            return Err(TlogError::Checksum);
        };
        if crc32c(body) != u32::from_le_bytes(*crc) {
            return Err(TlogError::Checksum);
        }
        let mut from = Reader::new(bytes.slice(..bytes.len() - 4));
        if u32::decode(&mut from)? != TLOG_MAGIC || u8::decode(&mut from)? != TLOG_VERSION {
            return Err(TlogError::Version);
        }
        let tlog = Self {
            object: Decode::decode(&mut from)?,
            first_lsn: Decode::decode(&mut from)?,
            last_lsn: Decode::decode(&mut from)?,
            size_bytes: Decode::decode(&mut from)?,
            epochs: Decode::decode(&mut from)?,
            unmaps: Vec::<(Cluster, Cluster)>::decode(&mut from)?
                .into_iter()
                .map(|(start, end)| ClusterRange { start, end })
                .collect(),
            runs: Vec::<(Cluster, u32)>::decode(&mut from)?
                .into_iter()
                .map(|(start, count)| Run { start, count })
                .collect(),
            applied: {
                let count = u32::decode(&mut from)?;
                let mut applied = Vec::new();
                for _ in 0..count {
                    applied.push((Decode::decode(&mut from)?, Decode::decode(&mut from)?));
                }
                applied
            },
        };
        match from.remaining() {
            0 => tlog.checked(),
            extra => Err(DecodeError::Trailing { extra }.into()),
        }
    }

    fn checked(self) -> Result<Self, TlogError> {
        let slots: u64 = self.runs.iter().map(|run| u64::from(run.count)).sum();
        let end_of = |run: &Run| run.start.0.checked_add(run.count.into());
        let runs_fit = self
            .runs
            .iter()
            .all(|run| 0 < run.count && end_of(run).is_some_and(|end| end <= CLUSTERS_MAX));
        let unmaps_fit =
            self.unmaps.iter().all(|range| range.start <= range.end && range.end.0 <= CLUSTERS_MAX);
        let legal = slots <= u64::from(SLOTS_MAX)
            && runs_fit
            && unmaps_fit
            && self.first_lsn <= self.last_lsn
            && 0 < self.object.number.0
            && self.object.number.0 < 1 << 46;
        if legal { Ok(self) } else { Err(TlogError::Range) }
    }

    #[must_use]
    pub fn clusters(&self) -> u32 {
        self.runs.iter().map(|run| run.count).sum()
    }

    /// Every cluster written, with where it lies.
    pub fn locations(&self) -> impl Iterator<Item = (Cluster, Location)> {
        let clusters = self.clusters();
        let number = self.object.number;
        self.runs
            .iter()
            .flat_map(|run| (0..u64::from(run.count)).map(|at| Cluster(run.start.0 + at)))
            .zip(0..clusters)
            .map(move |(cluster, slot)| {
                (cluster, Location::new(number, slot, group_of(slot, clusters)))
            })
    }
}

/// Kept by the backend beside the object, and listed with it: enough to find the TLog part and to join the chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meta {
    pub first_lsn: Lsn,
    pub last_lsn: Lsn,
    pub clusters: u32,
    pub tlog_offset: u64,
    pub tlog_len: u32,
    pub predecessor: Option<ObjectId>,
}

impl Meta {
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut out = Vec::with_capacity(80);
        META_VERSION.encode(&mut out);
        self.first_lsn.encode(&mut out);
        self.last_lsn.encode(&mut out);
        self.clusters.encode(&mut out);
        self.tlog_offset.encode(&mut out);
        self.tlog_len.encode(&mut out);
        self.predecessor.encode(&mut out);
        Bytes::from(out)
    }

    /// # Errors
    /// When the bytes aren't a `meta` of a known version.
    pub fn decode(bytes: Bytes) -> Result<Self, TlogError> {
        let mut from = Reader::new(bytes);
        if u8::decode(&mut from)? != META_VERSION {
            return Err(TlogError::Version);
        }
        let meta = Self {
            first_lsn: Decode::decode(&mut from)?,
            last_lsn: Decode::decode(&mut from)?,
            clusters: Decode::decode(&mut from)?,
            tlog_offset: Decode::decode(&mut from)?,
            tlog_len: Decode::decode(&mut from)?,
            predecessor: Decode::decode(&mut from)?,
        };
        match from.remaining() {
            0 => Ok(meta),
            extra => Err(DecodeError::Trailing { extra }.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{RequestSeq, ScoNumber, VdiskId};
    use proptest::prelude::*;

    fn sample() -> Tlog {
        Tlog {
            object: ObjectId { vdisk: VdiskId(1), epoch: Epoch(2), number: ScoNumber(3) },
            first_lsn: Lsn(4),
            last_lsn: Lsn(6),
            size_bytes: 8192,
            epochs: vec![(Epoch(2), Lsn(1))],
            unmaps: vec![ClusterRange { start: Cluster(1), end: Cluster(1 << 32) }],
            runs: vec![Run { start: Cluster(7), count: 2 }, Run { start: Cluster(20), count: 4 }],
            applied: vec![(
                AttachmentGeneration(1),
                AppliedSequences { contiguous: RequestSeq(5), above: vec![RequestSeq(9)] },
            )],
        }
    }

    #[test]
    fn a_tlog_part_has_these_bytes() {
        let bytes = sample().encode();
        assert_eq!(&bytes[..5], b"HFTL\x01");
        assert_eq!(
            bytes.len(),
            5 + 32 + 24 + (4 + 16) + (4 + 16) + (4 + 24) + (4 + 8 + 8 + 4 + 8) + 4
        );
        assert_eq!(bytes[61], 1, "count of epochs");
        assert_eq!(bytes[37], 4, "first LSN");
    }

    #[test]
    fn meta_has_these_bytes() {
        let meta = Meta {
            first_lsn: Lsn(1),
            last_lsn: Lsn(2),
            clusters: 3,
            tlog_offset: 4,
            tlog_len: 5,
            predecessor: None,
        };
        let expected = [
            1, 1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0,
            5, 0, 0, 0, 0,
        ];
        assert_eq!(meta.encode()[..], expected);
        assert_eq!(Meta::decode(meta.encode()), Ok(meta));
        assert!(Meta::decode(Bytes::from_static(&[2; 40])).is_err());
    }

    #[test]
    fn slots_follow_the_runs() {
        let tlog = sample();
        let places: Vec<(u64, u32, u32)> =
            tlog.locations().map(|(c, l)| (c.0, l.slot(), l.group())).collect();
        assert_eq!(
            places,
            vec![(7, 0, 4), (8, 1, 4), (20, 2, 4), (21, 3, 4), (22, 4, 2), (23, 5, 2)]
        );
    }

    #[test]
    fn any_flipped_byte_is_seen() {
        let good = sample().encode();
        assert_eq!(Tlog::decode(&Bytes::from(good.clone())), Ok(sample()));
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            assert!(Tlog::decode(&Bytes::from(bad)).is_err(), "byte {at}");
        }
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes: Vec<u8>) {
            let _ = Meta::decode(Bytes::from(bytes.clone()));
            let mut with_sum = b"HFTL\x01".to_vec();
            with_sum.extend_from_slice(&bytes);
            let sum = crc32c(&with_sum);
            with_sum.extend_from_slice(&sum.to_le_bytes());
            prop_assert!(Tlog::decode(&Bytes::from(with_sum)).is_err());
        }
    }
}
