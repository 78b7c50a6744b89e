//! Decides for the router: which LSN a write gets, where its record lies in the log, what a flush covers, what goes into
//! which SCO, when a log segment is free, and what a restart may believe.
//!
//! | module | decides |
//! | --- | --- |
//! | [`log`] | the write log: record bytes, the pool of segments, the scan after a crash |
//! | [`applied`] | which requests of an attachment are applied (P3) |
//! | [`range_lock`] | who may touch which clusters now, first come first served |
//! | [`plan`] | how an unaligned request becomes whole clusters |
//! | [`overlay`] | what is accepted but not in the page map yet |
//! | [`volume`] | one vDisk: LSNs, units, commits |
//! | [`sco`], [`tlog`] | bytes of an object: clusters with their checksums, and the list of what changed |
//! | [`page`], [`map`] | the page map: packed locations, and what a TLog changes |
//! | [`map_state`], [`map_stream`] | what a map says about itself; a whole map on its way, believed only as a whole |
//! | [`checkpoint`] | maps as objects of the backend: when, which are complete, which may go (P18) |
//! | [`origin`] | where a map that lacks much is taken from (L6) |
//! | [`recover`] | log ∪ backend → the writes that count (P10, L7) |
//! | [`dtl`] | the second place of the log: what a target promises (P11, P12, P16) |
//! | [`contest`] | when a vDisk may be taken from an owner that an edge has no service from (P19) |
//! | [`follow`] | who keeps copies of a page map, and how near to the backend (MDS) |
//! | [`rebalance`] | which vDisks go to another router so that all carry alike |
//! | [`load`] | what a router carries and could still take |
//! | [`demand`] | what is asked of a vDisk, damped |
//! | [`quota`] | who must wait, and how long, when log or memory run short (P9) |
//!
//! Nothing here knows a clock, a socket, a file or chance.

pub mod applied;
pub mod checkpoint;
pub mod contest;
pub mod demand;
pub mod dtl;
pub mod follow;
pub mod load;
pub mod log;
pub mod map;
pub mod map_state;
pub mod map_stream;
pub mod origin;
pub mod overlay;
pub mod page;
pub mod plan;
pub mod quota;
pub mod range_lock;
pub mod rebalance;
pub mod recover;
pub mod sco;
pub mod tlog;
pub mod volume;

/// CRC-32C, the checksum of every format here.
#[must_use]
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::crc32_iscsi(bytes)
}

/// Bytes of a cluster as a length.
pub const CLUSTER: usize = 4096;
const _: () = assert!(CLUSTER as u64 == model::CLUSTER_SIZE);
