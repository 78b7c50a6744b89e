//! The protocol of the alba-proxy: objects of namespaces.

use crate::message;
use bytes::Bytes;
use model::{Epoch, NamespaceId, ObjectId};

pub mod method {
    /// [`super::CreateNamespace`] → `()`; the same again is no error.
    pub const CREATE_NAMESPACE: u16 = 1;
    /// [`super::DeleteNamespace`] → `()`; objects are dropped from the metadata at once, fragments in the background.
    pub const DELETE_NAMESPACE: u16 = 2;
    /// [`super::RaiseEpoch`] → `()`; only grows (P18).
    pub const RAISE_EPOCH: u16 = 3;
    /// [`super::ReadHead`] → [`super::Head`].
    pub const READ_HEAD: u16 = 4;
    /// [`super::PutObject`] + payload (the plain object) → [`super::PutDone`].
    pub const PUT_OBJECT: u16 = 5;
    /// [`super::ReadObject`] → [`super::ReadDone`] + payload (the ranges, one after the other).
    pub const READ_OBJECT: u16 = 6;
    /// [`super::ListObjects`] → [`super::Objects`].
    pub const LIST_OBJECTS: u16 = 7;
    /// [`super::DeleteObjects`] → `()`.
    pub const DELETE_OBJECTS: u16 = 8;
    /// [`super::NamespaceHealth`] → [`super::Health`].
    pub const NAMESPACE_HEALTH: u16 = 9;
    /// [`super::FillHoles`] → [`super::Health`]: tries now to store what is missing, as the background does.
    pub const FILL_HOLES: u16 = 10;
    /// [`super::CreateBeside`] → `()`: a namespace that lives and dies with another one; the same again is no error.
    pub const CREATE_BESIDE: u16 = 11;
}

pub mod code {
    use crate::error::code::PROTOCOL_BASE;
    /// Class Refuse: a higher epoch is recorded; the caller is fenced (L4). Detail: the recorded `Epoch`.
    pub const FENCED: u16 = PROTOCOL_BASE;
    /// Class Refuse: the head isn't the expected predecessor. Detail: [`super::Head`].
    pub const WRONG_HEAD: u16 = PROTOCOL_BASE + 1;
    /// Class Refuse: the object exists with other contents (P21).
    pub const CONFLICT: u16 = PROTOCOL_BASE + 2;
    /// Class Refuse: no such namespace.
    pub const NO_NAMESPACE: u16 = PROTOCOL_BASE + 3;
    /// Class Refuse: no such object; refresh and retry (P22).
    pub const NO_OBJECT: u16 = PROTOCOL_BASE + 4;
    /// Class Retry: fewer fragments than needed can be read now; the object is lost unless OSDs come back (L5).
    pub const UNREADABLE: u16 = PROTOCOL_BASE + 5;
    /// Class Retry: no policy can be met by the OSDs that are writable now.
    pub const NO_POLICY: u16 = PROTOCOL_BASE + 6;
    /// Class Refuse: no such preset.
    pub const NO_PRESET: u16 = PROTOCOL_BASE + 7;
}

/// Largest `meta` of an object.
pub const META_MAX: usize = 4096;
/// Ranges in one read.
pub const RANGES_MAX: usize = 256;

message! {
    pub struct CreateNamespace {
        pub namespace: NamespaceId,
        pub preset: String,
    }

    /// Made with the preset of `beside`, in one transaction that asserts that `beside` is there and has this very epoch
    /// (L4): whoever is fenced there, or deletes it, makes nothing here. The new one begins at that epoch; one that is
    /// there already is raised to it.
    pub struct CreateBeside {
        pub namespace: NamespaceId,
        pub beside: NamespaceId,
        pub epoch: Epoch,
    }

    pub struct DeleteNamespace {
        pub namespace: NamespaceId,
        pub epoch: Epoch,
    }

    pub struct RaiseEpoch {
        pub namespace: NamespaceId,
        pub epoch: Epoch,
    }

    pub struct ReadHead {
        pub namespace: NamespaceId,
    }

    pub struct Head {
        pub epoch: Epoch,
        /// The object committed last; `None` before the first.
        pub head: Option<ObjectId>,
        /// Its `meta`.
        pub meta: Bytes,
    }

    /// Stored and committed when answered: manifest and head in one transaction (P20) that asserts
    /// {epoch, head = expected} (P18). The same object with the same contents again is success (P21).
    pub struct PutObject {
        pub namespace: NamespaceId,
        pub object: ObjectId,
        pub epoch: Epoch,
        pub expected_head: Option<ObjectId>,
        /// Plain bytes per frame: what one small read costs. 4096 to 65,792; the last frame may be shorter.
        pub frame_size: u32,
        /// Kept in the manifest and listed; the router's.
        pub meta: Bytes,
        /// CRC-32C of the payload.
        pub checksum: u32,
    }

    pub struct PutDone {
        /// Fragments that weren't stored yet.
        pub holes: u8,
        /// The policy used, as `k,m,c,x`.
        pub policy: String,
    }

    pub struct ReadObject {
        pub namespace: NamespaceId,
        pub object: ObjectId,
        /// (offset, length) in plain bytes.
        pub ranges: Vec<(u64, u32)>,
    }

    pub struct ReadDone {
        /// CRC-32C of each range, computed after its frames were verified.
        pub checksums: Vec<u32>,
    }

    pub struct ListObjects {
        pub namespace: NamespaceId,
        /// Go on behind this one.
        pub after: Option<ObjectId>,
        pub limit: u32,
    }

    pub struct ObjectInfo {
        pub object: ObjectId,
        pub plain_len: u64,
        pub stored_len: u64,
        pub holes: u8,
        pub meta: Bytes,
    }

    pub struct Objects {
        /// In order of (epoch, number), which is the order of commit.
        pub objects: Vec<ObjectInfo>,
        pub more: bool,
    }

    pub struct DeleteObjects {
        pub namespace: NamespaceId,
        pub epoch: Epoch,
        pub objects: Vec<ObjectId>,
    }

    pub struct NamespaceHealth {
        pub namespace: NamespaceId,
    }

    pub struct FillHoles {
        pub namespace: NamespaceId,
    }

    pub struct Health {
        pub objects: u64,
        /// Plain bytes of all objects.
        pub plain_bytes: u64,
        /// Bytes on OSDs.
        pub stored_bytes: u64,
        /// Fragments recorded as not stored, over all objects.
        pub holes: u64,
    }
}
