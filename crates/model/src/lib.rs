//! The vocabulary of Holdfast: the nouns every part uses, each with one meaning and checked constructors.
//!
//! Nothing here does I/O, knows the time or draws random numbers. Numbers that would lose data when
//! mixed up (an LSN for an epoch, a cluster for a byte) are types of their own.

pub mod domain;
pub mod id;
pub mod number;
pub mod policy;
pub mod range;
pub mod size;
pub mod time;

pub use domain::{DomainLevel, DomainPath};
pub use id::{
    AttemptId, ClientId, EdgeId, FragmentKey, NamespaceId, ObjectId, OsdId, RouterId, VdiskId,
};
pub use number::{
    AttachmentGeneration, Cluster, DtlGeneration, Epoch, FragmentIndex, Incarnation, Lap, LogId,
    Lsn, MapGeneration, RequestSeq, Revision, ScoNumber,
};
pub use policy::{Policy, PolicyError, PolicyList};
pub use range::{ByteRange, ClusterRange};
pub use size::{ByteSize, CLUSTER_SIZE, ParseSizeError};
pub use time::Now;

/// `u64` to `usize`; Holdfast is built for 64-bit machines only.
#[must_use]
pub const fn usize_of(value: u64) -> usize {
    const _: () = assert!(size_of::<usize>() == 8, "64-bit machines only");
    #[expect(clippy::cast_possible_truncation, reason = "usize is 64 bits, asserted above")]
    {
        value as usize
    }
}

/// `usize` to `u64`, lossless on the machines we build for.
#[must_use]
pub const fn u64_of(value: usize) -> u64 {
    value as u64
}

/// Length of something that a format limits to 32 bits; longer is a bug of the caller.
///
/// # Panics
/// When `value` exceeds `u32::MAX`; every caller has checked a far smaller limit.
#[must_use]
pub const fn u32_of(value: usize) -> u32 {
    assert!(value <= 0xffff_ffff, "length exceeds 32 bits");
    #[expect(clippy::cast_possible_truncation, reason = "asserted above")]
    {
        value as u32
    }
}
