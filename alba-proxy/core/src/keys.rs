//! Keys of arakoon that the proxies alone use; those that others read too are in `wire::facts::key`.
//!
//! Invariant: all that belongs to one namespace and dies with it begins with `ns/<id>/`; what must outlive the
//! namespace (its deletion, its fragments' deletion) doesn't.

use bytes::Bytes;
use model::{AttemptId, NamespaceId, ObjectId};
use wire::facts::key;

/// One key per namespace, so that the background finds them; empty record.
pub const NAMESPACES: &str = "proxy/namespace/";
/// Namespaces whose objects are being dropped.
pub const DROPPING: &str = "proxy/dropping/";
/// Fragments that must go, by object: the durable delete queue.
pub const DELETES: &str = "proxy/delete/";

/// Counters of a namespace, kept by every transaction that changes a manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Count {
    Objects,
    PlainBytes,
    StoredBytes,
    Holes,
}

impl Count {
    pub const ALL: [Self; 4] = [Self::Objects, Self::PlainBytes, Self::StoredBytes, Self::Holes];

    const fn name(self) -> &'static str {
        match self {
            Self::Objects => "objects",
            Self::PlainBytes => "plain-bytes",
            Self::StoredBytes => "stored-bytes",
            Self::Holes => "holes",
        }
    }
}

#[must_use]
pub fn namespace_entry(namespace: NamespaceId) -> Bytes {
    Bytes::from(format!("{NAMESPACES}{namespace}"))
}

#[must_use]
pub fn dropping_entry(namespace: NamespaceId) -> Bytes {
    Bytes::from(format!("{DROPPING}{namespace}"))
}

/// The namespace that a [`namespace_entry`] or [`dropping_entry`] names.
#[must_use]
pub fn namespace_of_entry(prefix: &str, entry: &[u8]) -> Option<NamespaceId> {
    std::str::from_utf8(entry).ok()?.strip_prefix(prefix)?.parse().ok()
}

#[must_use]
pub fn count(namespace: NamespaceId, count: Count) -> Bytes {
    Bytes::from(format!("ns/{namespace}/count/{}", count.name()))
}

/// `meta` of the head, once the head's own manifest is deleted.
#[must_use]
pub fn head_meta(namespace: NamespaceId) -> Bytes {
    Bytes::from(format!("ns/{namespace}/head-meta"))
}

#[must_use]
pub fn delete_entry(namespace: NamespaceId, object: ObjectId, attempt: AttemptId) -> Bytes {
    Bytes::from(format!(
        "{DELETES}{namespace}/{:032x}-{:016x}-{:016x}/{attempt}",
        object.vdisk.0, object.epoch.0, object.number.0
    ))
}

/// The object that a key of `wire::facts::key::{manifest, hole}` names.
#[must_use]
pub fn object_of(prefix: &[u8], entry: &[u8]) -> Option<ObjectId> {
    let text = std::str::from_utf8(entry.strip_prefix(prefix)?).ok()?;
    let mut parts = text.split('-');
    let vdisk = parts.next()?.parse().ok()?;
    let epoch = u64::from_str_radix(parts.next()?, 16).ok()?;
    let number = u64::from_str_radix(parts.next()?, 16).ok()?;
    let object = ObjectId { vdisk, epoch: model::Epoch(epoch), number: model::ScoNumber(number) };
    parts.next().is_none().then_some(object)
}

/// The object of a key under [`key::holes`].
#[must_use]
pub fn object_of_hole(namespace: NamespaceId, entry: &[u8]) -> Option<ObjectId> {
    object_of(&key::holes(namespace), entry)
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{Epoch, ScoNumber, VdiskId};

    #[test]
    fn keys_give_back_what_they_name() {
        let namespace = NamespaceId(77);
        let object = ObjectId { vdisk: VdiskId(5), epoch: Epoch(6), number: ScoNumber(7) };
        assert_eq!(object_of_hole(namespace, &key::hole(namespace, object)), Some(object));
        let entry = key::manifest(namespace, object);
        assert_eq!(object_of(&key::manifests(namespace), &entry), Some(object));
        assert_eq!(namespace_of_entry(NAMESPACES, &namespace_entry(namespace)), Some(namespace));
        assert_eq!(object_of(b"x", &entry), None);
        assert_eq!(object_of_hole(namespace, b"ns/nonsense"), None);
    }

    #[test]
    fn what_dies_with_a_namespace_lies_under_it() {
        let namespace = NamespaceId(1);
        let under = key::namespace(namespace);
        for count_of in Count::ALL {
            assert!(count(namespace, count_of).starts_with(&under));
        }
        assert!(head_meta(namespace).starts_with(&under));
        assert!(!dropping_entry(namespace).starts_with(&under));
        let entry = delete_entry(namespace, ObjectId::default(), AttemptId(1));
        assert!(!entry.starts_with(&under));
    }
}
