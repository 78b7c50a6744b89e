//! The protocol of arakoon: clients' transactions and reads, and the Raft messages between nodes.

mod changes;
mod sessions;

use crate::{Decode, DecodeError, Encode, Reader, message, tag};
use bytes::Bytes;
use model::{ClientId, Incarnation, Revision};

pub use changes::{Changes, ChangesAsk, WATCH_MS_MAX, WATCH_PREFIXES_MAX};
pub use sessions::{
    SESSION_ID_MAX, SessionFact, SessionList, SessionRecord, SessionRefused, SessionsAsk,
    TTL_MS_MAX, TTL_MS_MIN, TTL_SESSIONS_MAX,
};

pub mod method {
    /// [`super::Transaction`] → [`super::Committed`].
    pub const TRANSACT: u16 = 1;
    /// [`super::Get`] → [`super::Values`].
    pub const GET: u16 = 2;
    /// [`super::Range`] → [`super::Entries`].
    pub const RANGE: u16 = 3;
    /// `()` → [`super::Leader`].
    pub const WHO_MASTER: u16 = 4;
    /// [`super::SessionsAsk`] → [`super::SessionList`].
    pub const SESSIONS: u16 = 5;
    /// [`super::ChangesAsk`] → [`super::Changes`]; any node answers.
    pub const CHANGES: u16 = 6;
    /// [`super::RaftBatch`] → [`super::RaftBatch`]: what the answering node's Raft says to the other one in that moment; node to
    /// node only.
    pub const RAFT: u16 = 16;
    /// [`super::SnapshotAsk`] → [`super::SnapshotRows`], payload: the rows as `Vec<(Bytes, Bytes)>`; node to node only.
    pub const RAFT_SNAPSHOT: u16 = 17;
    /// [`super::JoinAsk`] → [`super::JoinAnswer`]; node to node only.
    pub const JOIN: u16 = 18;
}

pub mod code {
    use crate::error::code::PROTOCOL_BASE;
    /// Class Redirect; detail: [`super::Leader`].
    pub const NOT_LEADER: u16 = PROTOCOL_BASE;
    /// Class Refuse; detail: [`super::AssertionFailed`].
    pub const ASSERTION_FAILED: u16 = PROTOCOL_BASE + 1;
    /// Class Refuse: the dedup entry of this request is gone, so it can't be told whether it ran (P28).
    pub const EXPIRED_REQUEST: u16 = PROTOCOL_BASE + 2;
    /// Class Refuse: a key, value or transaction over its limit.
    pub const TOO_LARGE: u16 = PROTOCOL_BASE + 3;
    /// Class Retry: no majority, or leadership was lost; the outcome is unknown, ask again with the same request id.
    pub const NO_MAJORITY: u16 = PROTOCOL_BASE + 4;
    /// Class Refuse: `Add` to a value that isn't a counter, or past its range.
    pub const BAD_COUNTER: u16 = PROTOCOL_BASE + 5;
    /// Class Refuse; detail: [`super::SessionRefused`]. Another incarnation lives, or the one to renew doesn't.
    pub const SESSION_REFUSED: u16 = PROTOCOL_BASE + 6;
    /// Class Refuse: more than [`super::TTL_SESSIONS_MAX`] sessions.
    pub const SESSIONS_FULL: u16 = PROTOCOL_BASE + 7;
}

pub const KEY_MAX: usize = 1024;
pub const VALUE_MAX: usize = 512 << 10;
/// Keys and values of one transaction together.
pub const TRANSACTION_MAX: usize = 768 << 10;
/// Operations in one transaction.
pub const OPERATIONS_MAX: usize = 1024;
/// Entries in one answer to a range read; bytes are limited too, see [`RANGE_BYTES_MAX`].
pub const RANGE_ENTRIES_MAX: u32 = 1000;
pub const RANGE_BYTES_MAX: usize = 768 << 10;

/// What must hold for a transaction to happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Assertion {
    /// The key has exactly this value; `None` = it is absent.
    Value { key: Bytes, expected: Option<Bytes> },
    /// The key exists, whatever its value.
    Exists { key: Bytes },
    /// This incarnation's session lives (P17). A failure tells the id as its key, and the [`SessionRecord`] found.
    SessionLives { id: Bytes, incarnation: Incarnation },
    /// This incarnation's session doesn't live: there is none, or another incarnation's.
    SessionGone { id: Bytes, incarnation: Incarnation },
}

/// One change. All of a transaction's happen, in order, or none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Update {
    Set {
        key: Bytes,
        value: Bytes,
    },
    /// No error when absent.
    Delete {
        key: Bytes,
    },
    DeletePrefix {
        prefix: Bytes,
    },
    /// Adds to a counter stored as 8 little-endian bytes (absent = 0); refused on overflow or another length.
    Add {
        key: Bytes,
        delta: i64,
    },
    /// Opens a session, or renews it if this incarnation has it already. Refused while another incarnation lives, unless
    /// that is `replaces`: one that the holder knows to be dead.
    OpenSession {
        id: Bytes,
        incarnation: Incarnation,
        ttl_ms: u64,
        replaces: Option<Incarnation>,
    },
    /// Refused when this incarnation doesn't live.
    RenewSession {
        id: Bytes,
        incarnation: Incarnation,
    },
    /// No error when this incarnation doesn't live.
    CloseSession {
        id: Bytes,
        incarnation: Incarnation,
    },
}

impl Encode for Assertion {
    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Value { key, expected } => {
                out.push(1);
                key.encode(out);
                expected.encode(out);
            }
            Self::Exists { key } => {
                out.push(2);
                key.encode(out);
            }
            Self::SessionLives { id, incarnation } => {
                out.push(3);
                id.encode(out);
                incarnation.encode(out);
            }
            Self::SessionGone { id, incarnation } => {
                out.push(4);
                id.encode(out);
                incarnation.encode(out);
            }
        }
    }
}

impl Decode for Assertion {
    fn decode(from: &mut Reader) -> Result<Self, DecodeError> {
        match u8::decode(from)? {
            1 => Ok(Self::Value { key: Decode::decode(from)?, expected: Decode::decode(from)? }),
            2 => Ok(Self::Exists { key: Decode::decode(from)? }),
            3 => Ok(Self::SessionLives {
                id: Decode::decode(from)?,
                incarnation: Decode::decode(from)?,
            }),
            4 => Ok(Self::SessionGone {
                id: Decode::decode(from)?,
                incarnation: Decode::decode(from)?,
            }),
            value => Err(DecodeError::Illegal { what: "assertion", value: value.into() }),
        }
    }
}

impl Encode for Update {
    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Set { key, value } => {
                out.push(1);
                key.encode(out);
                value.encode(out);
            }
            Self::Delete { key } => {
                out.push(2);
                key.encode(out);
            }
            Self::DeletePrefix { prefix } => {
                out.push(3);
                prefix.encode(out);
            }
            Self::Add { key, delta } => {
                out.push(4);
                key.encode(out);
                delta.encode(out);
            }
            Self::OpenSession { id, incarnation, ttl_ms, replaces } => {
                out.push(5);
                id.encode(out);
                incarnation.encode(out);
                ttl_ms.encode(out);
                replaces.encode(out);
            }
            Self::RenewSession { id, incarnation } => {
                out.push(6);
                id.encode(out);
                incarnation.encode(out);
            }
            Self::CloseSession { id, incarnation } => {
                out.push(7);
                id.encode(out);
                incarnation.encode(out);
            }
        }
    }
}

impl Decode for Update {
    fn decode(from: &mut Reader) -> Result<Self, DecodeError> {
        match u8::decode(from)? {
            1 => Ok(Self::Set { key: Decode::decode(from)?, value: Decode::decode(from)? }),
            2 => Ok(Self::Delete { key: Decode::decode(from)? }),
            3 => Ok(Self::DeletePrefix { prefix: Decode::decode(from)? }),
            4 => Ok(Self::Add { key: Decode::decode(from)?, delta: Decode::decode(from)? }),
            5 => Ok(Self::OpenSession {
                id: Decode::decode(from)?,
                incarnation: Decode::decode(from)?,
                ttl_ms: Decode::decode(from)?,
                replaces: Decode::decode(from)?,
            }),
            6 => Ok(Self::RenewSession {
                id: Decode::decode(from)?,
                incarnation: Decode::decode(from)?,
            }),
            7 => Ok(Self::CloseSession {
                id: Decode::decode(from)?,
                incarnation: Decode::decode(from)?,
            }),
            value => Err(DecodeError::Illegal { what: "update", value: value.into() }),
        }
    }
}

/// How fresh a read must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Consistency {
    /// Sees every write acknowledged before the read began. Only the leader answers, after asking a majority.
    Linearizable,
    /// May be old, but at least as new as this revision.
    AtLeast(Revision),
    /// Whatever the node has.
    Any,
}

impl Encode for Consistency {
    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Linearizable => out.push(1),
            Self::AtLeast(revision) => {
                out.push(2);
                revision.encode(out);
            }
            Self::Any => out.push(3),
        }
    }
}

impl Decode for Consistency {
    fn decode(from: &mut Reader) -> Result<Self, DecodeError> {
        match u8::decode(from)? {
            1 => Ok(Self::Linearizable),
            2 => Ok(Self::AtLeast(Decode::decode(from)?)),
            3 => Ok(Self::Any),
            value => Err(DecodeError::Illegal { what: "consistency", value: value.into() }),
        }
    }
}

tag! {
    pub enum Direction {
        Forward = 1,
        Backward = 2,
    }
}

message! {
    /// Atomic: either every assertion holds and every update happens, or nothing does.
    /// (client, request) makes a repeated transaction run once.
    pub struct Transaction {
        pub client: ClientId,
        /// From 1, growing by one per transaction of this client. 0 opens a session, see [`session_id`].
        pub request: u64,
        /// The client has the answers to all requests below this; they may be forgotten.
        pub answered_below: u64,
        pub assertions: Vec<Assertion>,
        pub updates: Vec<Update>,
    }

    pub struct Committed {
        pub revision: Revision,
    }

    pub struct AssertionFailed {
        /// Which assertion, from 0.
        pub index: u32,
        pub key: Bytes,
        pub found: Option<Bytes>,
    }

    pub struct Get {
        pub keys: Vec<Bytes>,
        pub consistency: Consistency,
    }

    pub struct Values {
        pub values: Vec<Option<Bytes>>,
        pub revision: Revision,
    }

    /// `start <= key < end`, or to the very end.
    pub struct Range {
        pub start: Bytes,
        pub end: Option<Bytes>,
        pub direction: Direction,
        pub limit: u32,
        pub consistency: Consistency,
    }

    pub struct Entries {
        pub entries: Vec<(Bytes, Bytes)>,
        /// The answer was cut at a limit; go on behind the last key.
        pub more: bool,
        pub revision: Revision,
    }

    pub struct Leader {
        /// Name and address of the leader, as far as this node knows.
        pub leader: Option<(String, String)>,
        pub term: u64,
    }

    /// Our own form of raft's messages, so that no protobuf parser sees network bytes.
    pub struct RaftEntry {
        pub kind: u8,
        pub term: u64,
        pub index: u64,
        pub data: Bytes,
        pub context: Bytes,
    }

    pub struct RaftSnapshot {
        pub index: u64,
        pub term: u64,
        pub voters: Vec<u64>,
        pub learners: Vec<u64>,
        /// What the state machine needs, or a handle to fetch it by.
        pub data: Bytes,
    }

    pub struct RaftMessage {
        pub kind: u8,
        pub to: u64,
        pub from: u64,
        pub term: u64,
        pub log_term: u64,
        pub index: u64,
        pub entries: Vec<RaftEntry>,
        pub commit: u64,
        pub commit_term: u64,
        pub snapshot: Option<RaftSnapshot>,
        pub request_snapshot: u64,
        pub reject: bool,
        pub reject_hint: u64,
        pub context: Bytes,
        pub priority: i64,
    }

    pub struct RaftBatch {
        pub messages: Vec<RaftMessage>,
    }

    /// Asks for a page of the snapshot that a `RaftSnapshot` announced.
    pub struct SnapshotAsk {
        /// The number in that message's data.
        pub number: u64,
        /// The last row of the page before; `None` for the first page.
        pub after: Option<Bytes>,
    }

    /// A node that began with an empty directory asks whether there is a cluster already. Who leads it forgets what an
    /// earlier life of that node acknowledged.
    pub struct JoinAsk {
        pub node: u64,
        /// The last entry that it has now.
        pub last: u64,
    }

    pub struct JoinAnswer {
        /// This node has voted or has a log: the asker must catch up before it votes.
        pub has_history: bool,
    }

    pub struct SnapshotRows {
        /// This was the last page.
        pub done: bool,
        /// CRC-32C of the payload.
        pub checksum: u32,
    }
}

/// The session that a transaction with request 0 opens: `opener` is the id it was sent with, `revision` where it was
/// committed. The log index makes it unique for ever, so a forgotten session can't be born again and rerun (P28).
#[must_use]
pub const fn session_id(opener: ClientId, revision: Revision) -> ClientId {
    ClientId(((revision.0 as u128) << 64) | (opener.0 & u64::MAX as u128))
}

/// First key that doesn't start with `prefix`; `None` when there is none.
#[must_use]
pub fn prefix_end(prefix: &[u8]) -> Option<Bytes> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            return Some(Bytes::from(end));
        }
    }
    None
}
