//! Checkpoints of a page map in the backend: what bounds the replay when nobody has a copy of it (L6).
//!
//! They lie in a namespace of their own beside the vDisk's, as a chain like every other: a put asserts epoch and head
//! (P18), an object id is used once (P21). One checkpoint is a run of consecutive numbers of one epoch, its last object
//! says so:
//!
//! ```text
//!  number   11      12      13      14        15      16
//!  meta     …       0       1       2, last   0       1          map of SCO …
//!           └ deleted       └ complete: 12…14         └ being written, or left by who died
//! ```
//! A map follows only what is committed, and what is committed stays: a complete checkpoint is right whoever wrote it.
//! So a fence is needed for what is deleted and for what is left over, not for what is read. An owner raises the
//! namespace's epoch before it looks: from then on nothing changes there but by itself.
//!
//! Invariant: [`deletable`] never names an object of the newest complete checkpoint.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use model::{Epoch, Lsn, NamespaceId, Now, ObjectId, ScoNumber, VdiskId};
use wire::{Decode, Encode, Reader};

use crate::crc32c;

/// Largest object of a checkpoint.
pub const PART_BYTES: usize = 4 << 20;
const VERSION: u8 = 1;
/// After a checkpoint that couldn't be written; doubles up to the longest.
const PAUSE: Duration = Duration::from_secs(10);
const PAUSE_MAX: Duration = Duration::from_secs(600);
/// Mapped clusters for each of which a large map waits for one SCO more: with full SCOs of 4 MiB, checkpoints write no more
/// than an eighth of what users write (P26).
const MAPPED_PER_SCO: u64 = (4 << 20) / 8 / 8;
/// Tells the two namespaces of a vDisk apart; ids are drawn from all 128 bits.
const BESIDE: u128 = u128::from_be_bytes(*b"map checkpoints\0");

/// Where the checkpoints of a vDisk's page map lie.
#[must_use]
pub const fn namespace_of(vdisk: VdiskId) -> NamespaceId {
    NamespaceId(vdisk.0 ^ BESIDE)
}

/// Kept by the backend beside an object of a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartMeta {
    /// The last TLog that the map holds.
    pub map: ObjectId,
    pub last_lsn: Lsn,
    /// Which part, from 0.
    pub index: u32,
    /// With it the checkpoint is complete.
    pub last: bool,
}

impl PartMeta {
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut out = Vec::with_capacity(50);
        VERSION.encode(&mut out);
        self.map.encode(&mut out);
        self.last_lsn.encode(&mut out);
        self.index.encode(&mut out);
        self.last.encode(&mut out);
        crc32c(&out).encode(&mut out);
        Bytes::from(out)
    }

    /// `None`: nothing that this version wrote.
    #[must_use]
    pub fn decode(bytes: &Bytes) -> Option<Self> {
        let (body, crc) = bytes.split_last_chunk::<4>()?;
        if crc32c(body) != u32::from_le_bytes(*crc) {
            return None;
        }
        let mut from = Reader::new(bytes.slice(..bytes.len() - 4));
        if u8::decode(&mut from).ok()? != VERSION {
            return None;
        }
        let meta = Self {
            map: Decode::decode(&mut from).ok()?,
            last_lsn: Decode::decode(&mut from).ok()?,
            index: Decode::decode(&mut from).ok()?,
            last: Decode::decode(&mut from).ok()?,
        };
        (from.remaining() == 0).then_some(meta)
    }
}

/// An object of the namespace, as listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    pub object: ObjectId,
    pub bytes: u64,
    /// `None`: nobody here can read it.
    pub meta: Option<PartMeta>,
}

/// A complete checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// The TLog whose state it is.
    pub map: ObjectId,
    pub last_lsn: Lsn,
    /// Its first object; the others follow by number.
    pub first: ObjectId,
    /// The length of each object.
    pub lens: Vec<u32>,
}

impl Checkpoint {
    /// The object of this part, with its length.
    #[must_use]
    pub fn object(&self, index: usize) -> Option<(ObjectId, u32)> {
        let number = ScoNumber(self.first.number.0 + model::u64_of(index));
        Some((ObjectId { number, ..self.first }, *self.lens.get(index)?))
    }

    pub fn objects(&self) -> impl Iterator<Item = ObjectId> {
        (0..self.lens.len()).filter_map(|index| Some(self.object(index)?.0))
    }
}

/// All complete checkpoints of a whole listing, newest first.
#[must_use]
pub fn complete(listed: &[Listed]) -> Vec<Checkpoint> {
    let known: BTreeMap<ObjectId, (&PartMeta, u64)> = listed
        .iter()
        .filter_map(|listed| Some((listed.object, (listed.meta.as_ref()?, listed.bytes))))
        .collect();
    known.iter().rev().filter_map(|(end, (meta, _))| ending_with(*end, meta, &known)).collect()
}

fn ending_with(
    end: ObjectId,
    meta: &PartMeta,
    known: &BTreeMap<ObjectId, (&PartMeta, u64)>,
) -> Option<Checkpoint> {
    let first = end.number.0.checked_sub(meta.index.into()).filter(|_| meta.last)?;
    let first = ObjectId { number: ScoNumber(first), ..end };
    let mut lens = Vec::new();
    for index in 0..=meta.index {
        let number = ScoNumber(first.number.0 + u64::from(index));
        let (part, bytes) = known.get(&ObjectId { number, ..end })?;
        if **part != (PartMeta { index, last: index == meta.index, ..*meta }) {
            return None;
        }
        lens.push(u32::try_from(*bytes).ok().filter(|len| *len <= model::u32_of(PART_BYTES))?);
    }
    Some(Checkpoint { map: meta.map, last_lsn: meta.last_lsn, first, lens })
}

/// What may go: all that the newest complete checkpoint doesn't consist of. For who raised the namespace's epoch before
/// it listed, and writes nothing there meanwhile.
#[must_use]
pub fn deletable(listed: &[Listed], newest: Option<&Checkpoint>) -> Vec<ObjectId> {
    let kept: Vec<ObjectId> = newest.iter().flat_map(|newest| newest.objects()).collect();
    let all = listed.iter().map(|listed| listed.object);
    all.filter(|object| kept.binary_search(object).is_err()).collect()
}

/// The object behind the head, by an owner of this epoch.
#[must_use]
pub fn next_object(vdisk: VdiskId, epoch: Epoch, head: Option<ObjectId>) -> ObjectId {
    // Never below the head's epoch, so (epoch, number) only grows: the order of commit.
    let number = head.map_or(ScoNumber(0), |head| head.number);
    ObjectId { vdisk, epoch, number: ScoNumber(number.0 + 1) }
}

/// A page map as it is on disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Written {
    /// The last TLog it holds.
    pub object: Option<ObjectId>,
    pub mapped: u64,
}

/// When the owner of a vDisk looks after its checkpoints, and writes one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Course {
    /// SCOs from one checkpoint to the next.
    every: u64,
    /// `None`: nobody has looked yet.
    newest: Option<Option<Checkpoint>>,
    under_way: bool,
    /// Not before, after a failure.
    not_before: Now,
    pause: Duration,
}

impl Course {
    #[must_use]
    pub const fn new(every: u64) -> Self {
        let not_before = Now(Duration::ZERO);
        Self { every, newest: None, under_way: false, not_before, pause: PAUSE }
    }

    /// The newest complete checkpoint, once somebody looked.
    #[must_use]
    pub fn newest(&self) -> Option<&Checkpoint> {
        self.newest.as_ref().and_then(Option::as_ref)
    }

    /// A checkpoint of the map as it is on disk would be far enough from the newest one.
    #[must_use]
    pub fn is_due(&self, written: Written) -> bool {
        let number = |object: Option<ObjectId>| object.map_or(0, |object| object.number.0);
        let Some(newest) = &self.newest else { return false };
        let newest = number(newest.as_ref().map(|newest| newest.map));
        let every = self.every.max(written.mapped / MAPPED_PER_SCO);
        every <= number(written.object).saturating_sub(newest)
    }

    /// Something is to be done now: to look, or to write.
    #[must_use]
    pub fn wants(&self, written: Written, now: Now) -> bool {
        let wanted = self.newest.is_none() || self.is_due(written);
        wanted && !self.under_way && self.not_before <= now
    }

    pub const fn begin(&mut self) {
        self.under_way = true;
    }

    /// This is what lies there.
    pub fn found(&mut self, newest: Option<Checkpoint>) {
        self.newest = Some(newest);
    }

    pub fn done(&mut self) {
        (self.under_way, self.pause) = (false, PAUSE);
    }

    pub fn failed(&mut self, now: Now) {
        (self.under_way, self.not_before) = (false, now.plus(self.pause));
        self.pause = (self.pause * 2).min(PAUSE_MAX);
    }
}

#[cfg(test)]
mod tests;
