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
/// Bytes committed for each byte of a checkpoint: however small the SCOs are, checkpoints write no more than an eighth of
/// what users write (P26).
const COMMITTED_PER_BYTE: u64 = 8;
/// Of a mapped cluster in a full page.
const LOCATION_BYTES: u64 = 8;
/// Of [`Urgency::Due`]: a checkpoint is due now.
const DUE: u64 = 1 << 10;
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

    fn bytes(&self) -> u64 {
        self.lens.iter().map(|len| u64::from(*len)).sum()
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

/// What a SCO with so many clusters counts as. One that only unmaps costs the backend something, too.
#[must_use]
pub const fn committed_bytes(clusters: u64) -> u64 {
    let clusters = if clusters == 0 { 1 } else { clusters };
    clusters.saturating_mul(model::CLUSTER_SIZE)
}

/// What is to be done for a vDisk, the most urgent last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Urgency {
    /// A checkpoint: how often what one takes has come since the newest, in parts of [`DUE`].
    Due(u64),
    /// Nobody knows yet what lies there. It is cheap, and says how urgent the rest is.
    Look,
}

/// When the owner of a vDisk looks after its checkpoints, and writes one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Course {
    /// SCOs from one checkpoint to the next, at least.
    every: u64,
    /// The head when the vDisk was opened: what came behind it is counted.
    opened: Option<ObjectId>,
    /// `None`: nobody has looked yet.
    newest: Option<Option<Checkpoint>>,
    /// Committed since the newest one.
    bytes: u64,
    /// Of those, what the one that is being written covers.
    covered: u64,
    under_way: bool,
    /// Not before, after a failure.
    not_before: Now,
    pause: Duration,
}

impl Course {
    #[must_use]
    pub const fn new(every: u64, opened: Option<ObjectId>) -> Self {
        Self {
            every,
            opened,
            newest: None,
            bytes: 0,
            covered: 0,
            under_way: false,
            not_before: Now(Duration::ZERO),
            pause: PAUSE,
        }
    }

    /// The newest complete checkpoint, once somebody looked.
    #[must_use]
    pub fn newest(&self) -> Option<&Checkpoint> {
        self.newest.as_ref().and_then(Option::as_ref)
    }

    /// The head when the vDisk was opened, if nobody has looked yet.
    #[must_use]
    pub const fn unseen(&self) -> Option<Option<ObjectId>> {
        if self.newest.is_none() { Some(self.opened) } else { None }
    }

    /// A checkpoint of the map as it is on disk would be far enough from the newest one.
    #[must_use]
    pub fn is_due(&self, written: Written) -> bool {
        self.overdue(written).is_some_and(|overdue| DUE <= overdue)
    }

    fn overdue(&self, written: Written) -> Option<u64> {
        let newest = self.newest.as_ref()?.as_ref();
        let number = |object: Option<ObjectId>| object.map_or(0, |object| object.number.0);
        let scos = number(written.object).saturating_sub(number(newest.map(|newest| newest.map)));
        // Before the first one all that is mapped was committed: hundreds of times what it takes.
        let by_bytes =
            newest.map_or(u64::MAX, |newest| times(self.bytes, demanded(newest, written)));
        Some(times(scos, self.every).min(by_bytes))
    }

    /// What is to be done now, if anything.
    #[must_use]
    pub fn urgency(&self, written: Written, now: Now) -> Option<Urgency> {
        if self.under_way || now < self.not_before {
            return None;
        }
        match self.overdue(written) {
            None => Some(Urgency::Look),
            Some(overdue) => (DUE <= overdue).then_some(Urgency::Due(overdue)),
        }
    }

    #[must_use]
    pub fn wants(&self, written: Written, now: Now) -> bool {
        self.urgency(written, now).is_some()
    }

    pub const fn begin(&mut self) {
        self.under_way = true;
    }

    /// The first look: what lies there, and what was committed from it up to where the vDisk was opened.
    pub fn looked(&mut self, newest: Option<Checkpoint>, bytes: u64) {
        self.newest = Some(newest);
        self.bytes = self.bytes.saturating_add(bytes);
    }

    /// This is what lies there.
    pub fn found(&mut self, newest: Option<Checkpoint>) {
        self.newest = Some(newest);
    }

    /// A SCO with so many clusters was committed.
    pub const fn committed(&mut self, clusters: u64) {
        self.bytes = self.bytes.saturating_add(committed_bytes(clusters));
    }

    /// The map on disk is read from now on. It lacks a few SCOs that count as covered: the next one comes a little later.
    pub const fn cut(&mut self) {
        self.covered = self.bytes;
    }

    /// One was written, of the map that was cut last.
    pub fn wrote(&mut self, checkpoint: Checkpoint) {
        self.newest = Some(Some(checkpoint));
        self.bytes = self.bytes.saturating_sub(std::mem::take(&mut self.covered));
    }

    pub fn done(&mut self) {
        (self.under_way, self.pause) = (false, PAUSE);
    }

    pub fn failed(&mut self, now: Now) {
        (self.under_way, self.not_before) = (false, now.plus(self.pause));
        self.pause = (self.pause * 2).min(PAUSE_MAX);
    }
}

/// Bytes that must be committed from this checkpoint to the next.
#[must_use]
pub fn demanded(newest: &Checkpoint, written: Written) -> u64 {
    // The next one is about as large as this one: what widely scattered pages take is known only from that.
    let bytes = newest.bytes().max(written.mapped.saturating_mul(LOCATION_BYTES));
    bytes.saturating_mul(COMMITTED_PER_BYTE)
}

/// `have / need` in parts of [`DUE`].
fn times(have: u64, need: u64) -> u64 {
    let parts = u128::from(have) * u128::from(DUE) / u128::from(need.max(1));
    u64::try_from(parts).unwrap_or(u64::MAX)
}

/// Whose turn it is: the most urgent, not the lowest id, else some would never be served where there is more to do than a
/// router can (L8).
pub fn most_urgent<'a>(
    courses: impl Iterator<Item = (VdiskId, &'a Course, Written)>,
    now: Now,
) -> Option<VdiskId> {
    let mut best: Option<(VdiskId, Urgency)> = None;
    for (vdisk, course, written) in courses {
        let Some(urgency) = course.urgency(written, now) else { continue };
        if best.is_none_or(|(_, best)| best < urgency) {
            best = Some((vdisk, urgency));
        }
    }
    best.map(|(vdisk, _)| vdisk)
}

#[cfg(test)]
mod tests;
