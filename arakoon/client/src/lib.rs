//! Talks to an arakoon cluster: finds the leader, retries until a deadline, and runs each transaction once.
//!
//! | module | does |
//! |---|---|
//! | [`transaction`] | builds a transaction |
//! | [`error`] | what a caller can be told |
//! | `client` | the operations |
//! | `cluster` | which node to ask next, and what its refusal means |
//! | [`ttl_session`] | a session with a TTL that is kept alive |
//! | `request_session` | request numbers, so that a repeated transaction runs once |
//!
//! Invariant: a transaction that was answered with an error other than `Unavailable { outcome_unknown: true }` did not
//! happen and never will; one that was answered with a revision happened once, however often it was sent.

mod client;
mod cluster;
mod error;
mod request_session;
mod transaction;
mod ttl_session;

pub use client::{ArakoonClient, Changed, DEADLINE_DEFAULT, PREFIX_ENTRIES_MAX, Watched};
pub use error::{ReadError, TransactError};
pub use transaction::Transaction;
pub use ttl_session::{
    MARGIN_DEFAULT, Session, SessionError, SessionInfo, SessionOptions, SessionState, TTL_DEFAULT,
};
pub use wire::arakoon::{Assertion, AssertionFailed, SessionRecord, SessionRefused, Update};
