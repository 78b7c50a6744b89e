//! What a target is asked, answers, and wants done.
//!
//! Invariant: each ticket is answered exactly once.

use bytes::Bytes;
use model::{DtlGeneration, Epoch, Lsn};
use wire::dtl::{Held, LogName};

use super::{ChunkId, Refusal, SyncJob};
use crate::log::pool::Entry;

/// Which request an answer is for; the caller's number.
pub type Ticket = u64;

/// A request, decoded and its records checked.
#[derive(Debug)]
pub enum Ask {
    Open(LogName),
    Create {
        log: LogName,
        base: Lsn,
        /// Drawn at random.
        nonce: u64,
    },
    /// `records` are the bytes of `entries`, whose LSNs are consecutive from `first` on.
    Append {
        log: LogName,
        first: Lsn,
        entries: Vec<Entry>,
        records: Bytes,
    },
    Sync {
        log: LogName,
        through: Lsn,
    },
    Renew(LogName),
    Trim {
        epoch: Epoch,
        through: Lsn,
    },
    Drop {
        epoch: Epoch,
        through: Lsn,
    },
    Seal {
        epoch: Epoch,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    Opened(Held),
    Appended(Lsn),
    Synced(Lsn),
    Renewed,
    Trimmed,
    Sealed(Vec<Held>),
}

/// What the driver does.
#[derive(Debug)]
pub enum Effect {
    Answer {
        ticket: Ticket,
        answer: Result<Answer, Refusal>,
    },
    /// Ask arakoon whether its record names this log, then call `authorized`.
    Authorize {
        ticket: Ticket,
        log: LogName,
    },
    /// Replace the file of promises, then call `promised` or `promise_failed`. One at a time.
    Promise {
        version: u64,
        file: Bytes,
    },
    /// Sync these chunks, then call `synced`. One at a time per generation.
    Sync {
        generation: DtlGeneration,
        job: SyncJob,
    },
    /// Remove these chunks; what is left over is removed at the next start.
    Remove(Vec<ChunkId>),
}
