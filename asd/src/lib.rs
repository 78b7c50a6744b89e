//! The ASD: one daemon per disk (a directory), a store of fragments by key.
//!
//! ```text
//! wire ─▶ server.rs ─ puts, deletes ─▶ queue.rs ─▶ writer.rs: one thread, one sync per batch ─▶ asd-core's Store
//!                   └ gets, lists ───▶ queue.rs ─▶ reader.rs: a few threads, pread ──────────▶ asd-core's read
//! disk.rs   segment files        index.rs   RocksDB            identity.rs   whose disk this is
//! config.rs what may be believed engine.rs  starts and stops   shared.rs     what all of them see
//! ```
//!
//! `asd-core` decides what stands on the disk and what is acknowledged when; here it meets files, threads and sockets.
//!
//! Invariant: only the disk thread writes; an answer to a put or delete leaves after the sync that covers it.

pub mod config;
mod disk;
mod engine;
mod identity;
mod index;
mod queue;
mod reader;
mod server;
mod shared;
mod writer;

pub use config::{Config, EXAMPLE};
pub use engine::{RunError, run};
