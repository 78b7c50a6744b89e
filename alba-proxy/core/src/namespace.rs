//! Records of a namespace: its information, its head, and the entries of the delete queue.
//!
//! * `ns/<id>/info`: [`NamespaceInfo`]. Changed only by transactions that assert its old bytes.
//! * `ns/<id>/head`: [`head_to_bytes`]: the object committed last, and nothing else, so that whoever knows the
//!   predecessor knows the exact bytes to assert (P18).
//! * `proxy/delete/…`: [`DeleteEntry`]: fragments that must go (metadata first, fragments after).
//!
//! All begin with a version byte; `docs/formats/manifest.md` describes them.

use bytes::Bytes;
use model::{AttemptId, FragmentIndex, NamespaceId, ObjectId, OsdId};
use wire::facts::Record;
use wire::message;

wire::tag! {
    pub enum NamespaceState {
        Active = 1,
        /// Its objects are being dropped; it exists for nobody.
        Dropping = 2,
    }
}

message! {
    /// A key of the namespace, sealed by the key-encryption key that `wrapped` names.
    pub struct WrappedKey {
        /// What manifests call it; the last of the list is used for new objects.
        pub number: u32,
        pub wrapped: Bytes,
    }

    pub struct NamespaceInfo {
        pub namespace: NamespaceId,
        pub state: NamespaceState,
        pub preset: String,
        pub keys: Vec<WrappedKey>,
    }

    /// What remains of a deleted head: the chain must still be readable.
    pub struct HeadMeta {
        pub object: ObjectId,
        pub meta: Bytes,
    }

    /// Fragments of one attempt that are to be deleted, and where they are.
    pub struct DeleteEntry {
        pub namespace: NamespaceId,
        pub object: ObjectId,
        pub attempt: AttemptId,
        pub fragments: Vec<(FragmentIndex, OsdId)>,
    }
}

impl Record for NamespaceInfo {}
impl Record for HeadMeta {}
impl Record for DeleteEntry {}

const HEAD_VERSION: u8 = 1;

/// The value of the head key: a version byte and the object's id.
#[must_use]
pub fn head_to_bytes(object: ObjectId) -> Bytes {
    let mut out = vec![HEAD_VERSION];
    out.extend_from_slice(&object.to_bytes());
    Bytes::from(out)
}

/// `None` when the bytes aren't a head of this version.
#[must_use]
pub fn head_from_bytes(bytes: &[u8]) -> Option<ObjectId> {
    match bytes.split_first() {
        Some((&HEAD_VERSION, id)) => Some(ObjectId::from_bytes(id.try_into().ok()?)),
        Some(_) | None => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{Epoch, ScoNumber, VdiskId};

    #[test]
    fn golden_bytes_of_the_small_records() {
        let object = ObjectId { vdisk: VdiskId(1), epoch: Epoch(2), number: ScoNumber(3) };
        let head = head_to_bytes(object);
        assert_eq!(head.len(), 33);
        assert_eq!((head[0], head[16], head[24], head[32]), (1, 1, 2, 3));
        assert_eq!(head_from_bytes(&head), Some(object));
        assert_eq!(head_from_bytes(&head[1..]), None);

        let info = NamespaceInfo {
            namespace: NamespaceId(9),
            state: NamespaceState::Active,
            preset: "p".into(),
            keys: vec![WrappedKey { number: 1, wrapped: Bytes::from_static(&[7, 8]) }],
        };
        let bytes = info.to_record();
        let mut golden = vec![1, 9];
        golden.extend_from_slice(&[0; 15]);
        golden.extend_from_slice(&[1, 1, 0, 0, 0, b'p', 1, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 7, 8]);
        assert_eq!(&bytes[..], &golden[..]);
        assert_eq!(NamespaceInfo::from_record(bytes), Ok(info));

        let entry = DeleteEntry {
            namespace: NamespaceId(9),
            object,
            attempt: AttemptId(4),
            fragments: vec![(FragmentIndex::new(5).unwrap(), OsdId(6))],
        };
        let bytes = entry.to_record();
        assert_eq!(bytes.len(), 1 + 16 + 32 + 16 + 4 + 17);
        assert_eq!(DeleteEntry::from_record(bytes), Ok(entry));
    }
}
