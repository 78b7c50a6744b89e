//! Decides for the ASD: what stands on the disk, what of it counts, and what is written next.
//!
//! A disk is a pool of segment files of fixed size. Fragments and deletes are appended as self-describing
//! [`record`]s; an [`index`] says where the newest version of each key lies and can always be rebuilt by
//! walking the segments ([`walk`], [`settle`]). [`store::Store`] is the one writer: it appends a batch, syncs once,
//! updates the index, and only then answers. Segments full of garbage are copied empty and reused.
//!
//! Storage and index are small traits ([`disk`], [`index`]); [`twin`] holds their in-memory twins, which remember
//! every write and sync and can lose, tear and reorder what was not synced. So power cuts are tested at every point.
//!
//! Invariant: an operation is acknowledged only after its record, and all records before it in its lap, are on stable
//! storage; what a restart shows is every acknowledged operation plus whole, valid ones that were not yet answered.

pub mod crc;
pub mod disk;
pub mod index;
pub mod ledger;
pub mod read;
pub mod record;
pub mod segment;
pub mod settle;
pub mod share;
pub mod space;
pub mod store;
pub mod twin;
pub mod walk;
