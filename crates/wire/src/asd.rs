//! The protocol of an ASD: fragments by key.

use crate::{message, tag};
use bytes::Bytes;
use model::{Incarnation, OsdId};

pub mod method {
    /// `()` → [`super::Identity`].
    pub const IDENTIFY: u16 = 1;
    /// [`super::MultiPut`] + payload (the items' data, one after the other) → [`super::PutResults`].
    pub const MULTI_PUT: u16 = 2;
    /// [`super::MultiGet`] → [`super::GetResults`] + payload (what was found, one after the other).
    pub const MULTI_GET: u16 = 3;
    /// [`super::Delete`] → `()`; durable when answered; absent keys are no error.
    pub const DELETE: u16 = 4;
    /// [`super::List`] → [`super::Listing`].
    pub const LIST: u16 = 5;
    /// [`super::Verify`] → [`super::VerifyResults`]: reads and checks all bytes, sends none.
    pub const VERIFY: u16 = 6;
    /// `()` → [`super::Stats`].
    pub const STATS: u16 = 7;
}

/// Why a whole request failed.
pub mod code {
    use crate::error::code::PROTOCOL_BASE;

    /// The disk is being read after a start; soon it serves.
    pub const RECOVERING: u16 = PROTOCOL_BASE + 1;
    /// No room even for a delete; compaction is making some.
    pub const FULL: u16 = PROTOCOL_BASE + 2;
    /// The disk or its index fails; class `Fatal` when for good.
    pub const DISK: u16 = PROTOCOL_BASE + 3;
}

pub const KEY_MAX: usize = 128;
/// Checksums cover blocks of this many bytes; the last may be shorter.
pub const BLOCK: usize = 4096;
/// Largest fragment.
pub const FRAGMENT_MAX: usize = 64 << 20;
/// Items in one multi-request.
pub const ITEMS_MAX: usize = 1024;

tag! {
    /// Client traffic goes first; maintenance gets a share.
    pub enum Priority {
        Client = 1,
        Maintenance = 2,
    }

    pub enum PutCondition {
        Always = 1,
        /// Only if the key is absent; present with equal checksums counts as done.
        Absent = 2,
    }

    pub enum PutResult {
        /// Durable.
        Stored = 1,
        /// [`PutCondition::Absent`] was asked and another value is there.
        Exists = 2,
        /// The data doesn't match its checksums: damaged on the way.
        BadChecksum = 3,
        /// No room; reserved space is kept for deletes.
        Full = 4,
        /// The disk failed.
        Failed = 5,
    }

    pub enum GetStatus {
        Found = 1,
        Absent = 2,
        /// It is there, but fails its checksum or can't be read (counted; repair it from the others).
        Corrupt = 3,
        /// The range lies outside the fragment.
        OutOfRange = 4,
    }

    /// What the disk can do now.
    pub enum DiskState {
        Writable = 1,
        /// Reads and deletes only. Full is not failed.
        Full = 2,
        /// Writes failed; reads and deletes are tried.
        ReadOnly = 3,
        Failed = 4,
    }
}

message! {
    pub struct Identity {
        pub osd: OsdId,
        pub incarnation: Incarnation,
        pub state: DiskState,
        pub capacity_bytes: u64,
        pub used_bytes: u64,
    }

    pub struct PutItem {
        pub key: Bytes,
        pub len: u32,
        /// CRC-32C of each [`BLOCK`].
        pub checksums: Vec<u32>,
        pub condition: PutCondition,
    }

    pub struct MultiPut {
        pub priority: Priority,
        pub items: Vec<PutItem>,
    }

    pub struct PutResults {
        pub results: Vec<PutResult>,
    }

    pub struct GetItem {
        pub key: Bytes,
        pub offset: u32,
        /// `u32::MAX` = to the end.
        pub len: u32,
    }

    pub struct MultiGet {
        pub priority: Priority,
        pub items: Vec<GetItem>,
    }

    pub struct GetResult {
        pub status: GetStatus,
        /// Bytes of it in the payload.
        pub len: u32,
        /// Length of the whole fragment.
        pub total_len: u32,
        /// CRC-32C of those bytes, computed after the blocks were verified (L5).
        pub checksum: u32,
    }

    pub struct GetResults {
        pub results: Vec<GetResult>,
    }

    pub struct Delete {
        pub priority: Priority,
        pub keys: Vec<Bytes>,
    }

    pub struct List {
        pub start: Bytes,
        pub end: Option<Bytes>,
        pub limit: u32,
    }

    pub struct Listing {
        /// (key, length of the fragment).
        pub entries: Vec<(Bytes, u32)>,
        pub more: bool,
    }

    pub struct Verify {
        pub keys: Vec<Bytes>,
    }

    pub struct VerifyResults {
        pub results: Vec<GetStatus>,
    }

    pub struct Stats {
        pub state: DiskState,
        pub capacity_bytes: u64,
        pub used_bytes: u64,
        pub live_bytes: u64,
        pub fragments: u64,
        pub segments: u64,
        pub puts: u64,
        pub gets: u64,
        pub deletes: u64,
        pub syncs: u64,
        /// Fragments or blocks that failed their checksum since the daemon started.
        pub corruptions: u64,
        pub io_errors: u64,
    }
}
