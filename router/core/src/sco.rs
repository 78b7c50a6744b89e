//! Bytes of a SCO: clusters in groups of four with their checksums behind them, then the TLog part.
//!
//! ```text
//! ┌────────────── group 0 ──────────────┬─ … ─┬─ last group, 1 to 4 ─┬───────────┐
//! │ 4 × 4096 data │ 4 × 16 trailer      │     │ n × 4096 │ n × 16    │ TLog part │
//! └─────────────────────────────────────┴─────┴──────────────────────┴───────────┘
//! trailer: cluster u64, CRC-32C of the data u32, low 32 bits of the LSN u32
//! ```
//! A full group is one frame of the backend (16,448 bytes): a cold 4 KiB read touches one frame of one fragment (P25), and
//! the checksum that the edge computed comes back with the data (L5). Of a frame all of it is asked for, or one cluster
//! with its trailer.
//!
//! Invariant: clusters are in ascending order and unique; slot `s` lies in group `s / 4`.

use std::collections::BTreeMap;
use std::ops::Range;

use bytes::{Bytes, BytesMut};
use model::{Cluster, ClusterRange, Lsn};

use crate::page::Location;
use crate::tlog::{Meta, Run, Tlog};
use crate::volume::{Change, Unit};
use crate::{CLUSTER, crc32c};

/// Clusters in a full group.
pub const GROUP: u32 = 4;
pub const TRAILER: usize = 16;
/// Bytes that one cluster takes, trailer included.
const SLOT: u32 = 4096 + 16;
const _: () = assert!(SLOT as usize == CLUSTER + TRAILER);
/// Bytes of a full group: the frame size asked of the backend.
pub const FRAME: u32 = GROUP * SLOT;

/// A SCO ready to be stored.
#[derive(Debug, Clone)]
pub struct Built {
    pub payload: Bytes,
    /// CRC-32C of the payload.
    pub checksum: u32,
    pub meta: Meta,
    pub tlog: Tlog,
}

/// A frame doesn't hold what the page map says: damage, never to be returned as data (L5).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("frame has {found} bytes instead of {expected}")]
    Length { found: usize, expected: usize },
    #[error("slot {slot} of SCO {number} fails its checksum")]
    Checksum { number: u64, slot: u32 },
    #[error("slot {slot} of SCO {number} holds cluster {found} instead of {expected}")]
    Cluster { number: u64, slot: u32, found: u64, expected: u64 },
}

/// Clusters in the group that holds `slot`, when the SCO has `clusters`.
#[must_use]
pub fn group_of(slot: u32, clusters: u32) -> u32 {
    (clusters - slot / GROUP * GROUP).min(GROUP)
}

/// (offset, length) of the frame of a location.
#[must_use]
pub fn frame_range(location: Location) -> (u64, u32) {
    let offset = u64::from(location.slot() / GROUP) * u64::from(FRAME);
    (offset, location.group() * SLOT)
}

/// (offset, length) of a location's cluster and of its trailer.
#[must_use]
pub fn cluster_ranges(location: Location) -> [(u64, u32); 2] {
    let (frame, _) = frame_range(location);
    let index = u64::from(location.slot() % GROUP);
    let trailers = frame + u64::from(location.group()) * CLUSTER as u64;
    let part = |from: u64, len: usize| (from + index * len as u64, model::u32_of(len));
    [part(frame, CLUSTER), part(trailers, TRAILER)]
}

/// What was read of one frame of a SCO, verified: all of its clusters, or one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// The clusters, then their trailers.
    bytes: Bytes,
    /// The frame's slots that are here.
    slots: Range<u32>,
}

impl Frame {
    /// Checks every cluster of the frame against its trailer.
    ///
    /// # Errors
    /// When a length or checksum is wrong.
    pub fn verify(location: Location, bytes: Bytes) -> Result<Self, FrameError> {
        Self::checked(location, 0..location.group(), bytes)
    }

    /// The same for the bytes of [`cluster_ranges`], one behind the other.
    ///
    /// # Errors
    /// When the length or the checksum is wrong.
    pub fn verify_one(location: Location, bytes: Bytes) -> Result<Self, FrameError> {
        let index = location.slot() % GROUP;
        Self::checked(location, index..index + 1, bytes)
    }

    fn checked(location: Location, slots: Range<u32>, bytes: Bytes) -> Result<Self, FrameError> {
        let expected = slots.len() * (CLUSTER + TRAILER);
        if bytes.len() != expected {
            return Err(FrameError::Length { found: bytes.len(), expected });
        }
        let frame = Self { bytes, slots };
        let first = location.slot() / GROUP * GROUP;
        for at in 0..frame.slots.len() {
            if crc32c(&frame.data(at)) != frame.trailer(at).1 {
                let slot = first + frame.slots.start + model::u32_of(at);
                return Err(FrameError::Checksum { number: location.number().0, slot });
            }
        }
        Ok(frame)
    }

    /// Whether the cluster at `location`, one of this frame, is here.
    #[must_use]
    pub fn has(&self, location: Location) -> bool {
        self.slots.contains(&(location.slot() % GROUP))
    }

    /// The data of `cluster` at `location`, and its checksum.
    ///
    /// # Errors
    /// When another cluster lies there, or that slot isn't here.
    pub fn cluster(
        &self,
        location: Location,
        cluster: Cluster,
    ) -> Result<(Bytes, u32), FrameError> {
        if !self.has(location) {
            let expected = self.bytes.len() + 1;
            return Err(FrameError::Length { found: self.bytes.len(), expected });
        }
        let at = (location.slot() % GROUP - self.slots.start) as usize;
        let (found, checksum) = self.trailer(at);
        if found != cluster.0 {
            let (number, slot) = (location.number().0, location.slot());
            return Err(FrameError::Cluster { number, slot, found, expected: cluster.0 });
        }
        Ok((self.data(at), checksum))
    }

    #[must_use]
    pub const fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Never: a frame has at least one cluster.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        false
    }

    /// Of the `at`-th cluster that is here.
    fn data(&self, at: usize) -> Bytes {
        self.bytes.slice(at * CLUSTER..(at + 1) * CLUSTER)
    }

    /// Of the `at`-th cluster that is here: which one it is, and its checksum.
    fn trailer(&self, at: usize) -> (u64, u32) {
        let from = self.slots.len() * CLUSTER + at * TRAILER;
        let bytes = &self.bytes[from..from + TRAILER];
        let cluster = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes"));
        (cluster, u32::from_le_bytes(bytes[8..12].try_into().expect("4 bytes")))
    }
}

struct Slot {
    lsn: Lsn,
    data: Bytes,
    checksum: u32,
}

/// Lays out a unit. Clusters overwritten or unmapped within the unit are left out (P7): it commits as a whole.
#[must_use]
pub fn build(unit: &Unit) -> Built {
    let (slots, unmaps) = coalesce(unit);
    let clusters = model::u32_of(slots.len());
    let mut out = BytesMut::with_capacity(slots.len() * (CLUSTER + TRAILER) + 4096);
    let mut runs: Vec<Run> = Vec::new();
    let all: Vec<(u64, Slot)> = slots.into_iter().collect();
    for group in all.chunks(GROUP as usize) {
        for (cluster, slot) in group {
            out.extend_from_slice(&slot.data);
            match runs.last_mut() {
                Some(run) if run.start.0 + u64::from(run.count) == *cluster => run.count += 1,
                Some(_) | None => runs.push(Run { start: Cluster(*cluster), count: 1 }),
            }
        }
        for (cluster, slot) in group {
            out.extend_from_slice(&cluster.to_le_bytes());
            out.extend_from_slice(&slot.checksum.to_le_bytes());
            #[expect(clippy::cast_possible_truncation, reason = "the low half is what is stored")]
            out.extend_from_slice(&(slot.lsn.0 as u32).to_le_bytes());
        }
    }
    let tlog = Tlog {
        object: unit.object,
        first_lsn: unit.first_lsn,
        last_lsn: unit.last_lsn,
        size_bytes: unit.size_bytes,
        epochs: unit.epochs.clone(),
        unmaps,
        runs,
        applied: unit.applied.iter().map(|(g, set)| (g, set.to_wire())).collect(),
    };
    let encoded = tlog.encode();
    let meta = Meta {
        first_lsn: unit.first_lsn,
        last_lsn: unit.last_lsn,
        clusters,
        tlog_offset: out.len() as u64,
        tlog_len: model::u32_of(encoded.len()),
        predecessor: unit.predecessor,
    };
    out.extend_from_slice(&encoded);
    let payload = out.freeze();
    Built { checksum: crc32c(&payload), payload, meta, tlog }
}

fn coalesce(unit: &Unit) -> (BTreeMap<u64, Slot>, Vec<ClusterRange>) {
    let mut slots: BTreeMap<u64, Slot> = BTreeMap::new();
    let mut unmaps: BTreeMap<u64, u64> = BTreeMap::new();
    for (lsn, change) in &unit.changes {
        match change {
            Change::Write { cluster, data, checksums } => {
                for (index, checksum) in checksums.iter().enumerate() {
                    let data = data.slice(index * CLUSTER..(index + 1) * CLUSTER);
                    let slot = Slot { lsn: *lsn, data, checksum: *checksum };
                    slots.insert(cluster.0 + index as u64, slot);
                }
            }
            Change::Unmap { range, .. } => {
                let dead: Vec<u64> =
                    slots.range(range.start.0..range.end.0).map(|(cluster, _)| *cluster).collect();
                for cluster in dead {
                    slots.remove(&cluster);
                }
                if !range.is_empty() {
                    add_range(&mut unmaps, range.start.0, range.end.0);
                }
            }
        }
    }
    let ranges = unmaps
        .into_iter()
        .map(|(start, end)| ClusterRange { start: Cluster(start), end: Cluster(end) });
    (slots, ranges.collect())
}

/// Adds `start..end` to a set of disjoint ranges, joining what touches.
fn add_range(set: &mut BTreeMap<u64, u64>, mut start: u64, mut end: u64) {
    let touching: Vec<(u64, u64)> = set
        .range(..=end)
        .rev()
        .take_while(|(_, right)| start <= **right)
        .map(|(left, right)| (*left, *right))
        .collect();
    for (left, right) in touching {
        set.remove(&left);
        start = start.min(left);
        end = end.max(right);
    }
    set.insert(start, end);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::applied::AppliedMap;
    use model::{Epoch, ObjectId, ScoNumber, VdiskId};
    use wire::router::UnmapKind;

    pub(crate) fn unit(changes: Vec<(Lsn, Change)>) -> Unit {
        let object = ObjectId { vdisk: VdiskId(9), epoch: Epoch(2), number: ScoNumber(7) };
        Unit {
            object,
            predecessor: None,
            first_lsn: changes[0].0,
            last_lsn: changes[changes.len() - 1].0,
            size_bytes: 1 << 30,
            epochs: vec![(Epoch(2), Lsn(1))],
            applied: AppliedMap::default(),
            changes,
        }
    }

    fn write(lsn: u64, cluster: u64, fill: u8) -> (Lsn, Change) {
        let data = Bytes::from(vec![fill; CLUSTER]);
        let checksums = vec![crc32c(&data)];
        (Lsn(lsn), Change::Write { cluster: Cluster(cluster), data, checksums })
    }

    fn unmap(lsn: u64, start: u64, count: u64) -> (Lsn, Change) {
        let range = ClusterRange::new(Cluster(start), count).unwrap();
        (Lsn(lsn), Change::Unmap { range, kind: UnmapKind::Trim })
    }

    #[test]
    fn a_unit_holds_the_last_content_of_each_cluster_in_order() {
        let built = build(&unit(vec![
            write(1, 9, 1),
            write(2, 3, 2),
            write(3, 9, 3),
            write(4, 5, 4),
            unmap(5, 5, 2),
            write(6, 4, 6),
            write(7, 6, 7),
            write(8, 100, 8),
        ]));
        assert_eq!(built.meta.clusters, 5);
        assert_eq!(
            built.tlog.runs,
            vec![
                Run { start: Cluster(3), count: 2 },
                Run { start: Cluster(6), count: 1 },
                Run { start: Cluster(9), count: 1 },
                Run { start: Cluster(100), count: 1 }
            ]
        );
        let full = 4 * (CLUSTER + TRAILER);
        assert_eq!(model::usize_of(built.meta.tlog_offset), full + CLUSTER + TRAILER);
        for (slot, cluster, fill) in [(0, 3, 2), (1, 4, 6), (2, 6, 7), (3, 9, 3), (4, 100, 8)] {
            let location = Location::new(ScoNumber(7), slot, group_of(slot, 5));
            let (offset, len) = frame_range(location);
            let offset = model::usize_of(offset);
            let bytes = built.payload.slice(offset..offset + len as usize);
            let frame = Frame::verify(location, bytes).unwrap();
            let (data, checksum) = frame.cluster(location, Cluster(cluster)).unwrap();
            assert_eq!(data, vec![fill; CLUSTER]);
            assert_eq!(checksum, crc32c(&data));
            assert!(frame.cluster(location, Cluster(cluster + 1)).is_err());
            let one: Vec<u8> = cluster_ranges(location)
                .into_iter()
                .flat_map(|(at, len)| built.payload[model::usize_of(at)..][..len as usize].to_vec())
                .collect();
            let one = Frame::verify_one(location, one.into()).unwrap();
            assert_eq!(one.cluster(location, Cluster(cluster)), Ok((data, checksum)));
            for other in 0..4 {
                let neighbour = Location::new(ScoNumber(7), other, group_of(other, 5));
                assert_eq!(one.has(neighbour), other % GROUP == slot % GROUP);
            }
        }
        let tlog = built.payload.slice(model::usize_of(built.meta.tlog_offset)..);
        assert_eq!(Tlog::decode(&tlog), Ok(built.tlog));
    }

    #[test]
    fn a_flipped_bit_in_a_frame_is_seen() {
        let built = build(&unit(vec![write(1, 9, 1)]));
        let location = Location::new(ScoNumber(7), 0, 1);
        let mut bytes = built.payload[..CLUSTER + TRAILER].to_vec();
        bytes[77] ^= 1;
        assert!(matches!(
            Frame::verify(location, Bytes::from(bytes)),
            Err(FrameError::Checksum { number: 7, slot: 0 })
        ));
        assert!(Frame::verify(location, built.payload.slice(1..100)).is_err());
        for at in 0..SLOT {
            let mut bytes = built.payload[..SLOT as usize].to_vec();
            bytes[at as usize] ^= 4;
            let read = Frame::verify_one(location, bytes.into());
            let read = read.and_then(|frame| frame.cluster(location, Cluster(9)));
            // The LSN's bits, the last four bytes, are for people.
            assert_eq!(read.is_ok(), SLOT - 4 <= at, "byte {at}");
        }
        assert!(Frame::verify_one(location, built.payload.slice(1..SLOT as usize)).is_err());
    }

    #[test]
    fn ranges_that_touch_are_joined() {
        let mut set = BTreeMap::new();
        for (start, end) in [(10, 20), (30, 40), (20, 25), (0, 5), (24, 31), (50, 60)] {
            add_range(&mut set, start, end);
        }
        assert_eq!(set.into_iter().collect::<Vec<_>>(), vec![(0, 5), (10, 40), (50, 60)]);
    }
}
