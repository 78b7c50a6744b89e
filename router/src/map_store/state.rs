//! The keys under which a page map lies.

use model::{ScoNumber, VdiskId};

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
