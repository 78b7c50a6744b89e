//! What a map says about itself, and the keys under which it lies.
//!
//! Invariant: a state that fails its checksum is none.

use model::{Lsn, ObjectId, ScoNumber, VdiskId};
use router_core::crc32c;
use router_core::map::Totals;
use wire::{Decode, Encode, Reader};

const VERSION: u8 = 2;

/// What a map says about itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MapState {
    /// The last TLog it holds.
    pub object: Option<ObjectId>,
    pub last_lsn: Lsn,
    pub totals: Totals,
    /// How many epochs it knows.
    pub epochs: u64,
}

impl MapState {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        self.object.encode(&mut out);
        self.last_lsn.encode(&mut out);
        self.totals.mapped.encode(&mut out);
        self.totals.digest.encode(&mut out);
        self.epochs.encode(&mut out);
        crc32c(&out).encode(&mut out);
        out
    }

    /// `None` = can't be believed: rebuild.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (body, crc) = bytes.split_last_chunk::<4>()?;
        if crc32c(body) != u32::from_le_bytes(*crc) {
            return None;
        }
        let mut from = Reader::new(bytes::Bytes::copy_from_slice(body));
        if u8::decode(&mut from).ok()? != VERSION {
            return None;
        }
        Some(Self {
            object: Decode::decode(&mut from).ok()?,
            last_lsn: Decode::decode(&mut from).ok()?,
            totals: Totals {
                mapped: Decode::decode(&mut from).ok()?,
                digest: Decode::decode(&mut from).ok()?,
            },
            epochs: Decode::decode(&mut from).ok()?,
        })
    }
}

pub(super) fn state_key(vdisk: VdiskId) -> Vec<u8> {
    let mut key = vec![b's'];
    key.extend_from_slice(&vdisk.0.to_be_bytes());
    key
}

pub(super) fn epoch_key(vdisk: VdiskId, first: ScoNumber) -> Vec<u8> {
    let mut key = vec![b'e'];
    key.extend_from_slice(&vdisk.0.to_be_bytes());
    key.extend_from_slice(&first.0.to_be_bytes());
    key
}

/// All keys of one kind of one vDisk: `start..end`.
pub(super) fn kind_range(kind: u8, vdisk: VdiskId) -> (Vec<u8>, Vec<u8>) {
    let mut start = vec![kind];
    start.extend_from_slice(&vdisk.0.to_be_bytes());
    let end = wire::arakoon::prefix_end(&start).map_or_else(|| vec![kind + 1], |end| end.to_vec());
    (start, end)
}

/// Which vDisk a key of kind `s` names.
pub(super) fn vdisk_of(key: &[u8]) -> Option<VdiskId> {
    Some(VdiskId(u128::from_be_bytes(key.get(1..)?.try_into().ok()?)))
}

/// Which page a key of kind `p` names.
pub(super) fn page_of(key: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(key.get(17..25)?.try_into().ok()?))
}
