//! What a node needs of its disk.
//!
//! Invariant a store must keep: writes survive in the order they were made. After a crash the disk holds all synced
//! writes and some beginning of the unsynced ones after them, never a later one without an earlier one. So a log that
//! was synced together with its hard state is consistent, and the rows may lag: the log is replayed onto them.

use crate::view::{Changes, View};
use raft::Storage;
use raft::eraftpb::{Entry, HardState, Snapshot};

/// The disk failed or lies. The node must stop: it can't keep what it promises.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    #[error("disk: {0}")]
    Io(String),
    /// Bytes aren't what was written.
    #[error("damaged data: {0}")]
    Corrupt(String),
}

impl StoreError {
    #[must_use]
    pub fn corrupt(what: impl Into<String>) -> Self {
        Self::Corrupt(what.into())
    }
}

impl From<StoreError> for raft::Error {
    fn from(error: StoreError) -> Self {
        Self::Store(raft::StorageError::Other(Box::new(error)))
    }
}

/// One write of Raft's own state, atomic.
#[derive(Debug)]
pub struct LogWrite {
    /// Replaces rows and log; its data was made by [`raft::Storage::snapshot`] of a peer.
    pub snapshot: Option<Snapshot>,
    /// Go on from the log's end, or overwrite from their first index on.
    pub entries: Vec<Entry>,
    pub hard_state: Option<HardState>,
    /// Must be on stable storage before this returns (L1); else only ordered before later writes.
    pub sync: bool,
}

/// Log, hard state and rows of one node.
pub trait Store: Storage + View {
    /// # Errors
    /// When the disk fails.
    fn persist(&mut self, write: LogWrite) -> Result<(), StoreError>;

    /// Changes rows by what the log says up to `applied`, atomically with that index and with the commit index, so that
    /// neither runs ahead of the other. Needs no sync: the log is replayed after a crash.
    ///
    /// # Errors
    /// When the disk fails.
    fn apply(&mut self, changes: Changes, applied: u64) -> Result<(), StoreError>;

    /// Index of the last entry whose changes are in the rows.
    fn applied(&self) -> u64;

    /// Forgets log entries up to and with `through`, which is applied.
    ///
    /// # Errors
    /// When the disk fails.
    fn compact(&mut self, through: u64) -> Result<(), StoreError>;

    /// Bytes of the entries in the log, about.
    fn log_bytes(&self) -> u64;
}
