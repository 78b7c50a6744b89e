//! The write log: one per router, shared by all its vDisks.
//!
//! A log is a pool of segment files of one size. A *lap* is one use of one file: laps count up over the whole life of the
//! log, so `position = lap × segment size + offset` orders every record ever written. One segment is open at a time.
//!
//! Invariant: a file is overwritten only after a list of the segments that still count, without it, is on stable storage.

pub mod pool;
pub mod record;
pub mod scan;

pub use pool::{Log, Placement, Reopened};
pub use record::{ListEntry, Op, Record, RecordError};
pub use scan::{Damage, Found, Scan, Scanner};
