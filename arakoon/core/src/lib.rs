//! What arakoon decides, without doing any of it: transactions, exactly-once, linearizable reads, over a Raft log.
//!
//! | module | decides |
//! |---|---|
//! | [`limits`] | which transactions may enter the log |
//! | [`machine`] | what a transaction does to the rows, and that it does so once (`sessions`) |
//! | [`leader_entry`] | what a leader puts into the log by itself: ages and ends of sessions |
//! | [`rows`] | how keys, sessions and results lie in one ordered map |
//! | [`view`] | reading that map through changes that aren't written yet |
//! | [`replica`] | one node: messages, ticks and requests in; messages and answers out |
//! | [`entry`] | the byte form of a log entry and its checksum chain (P27) |
//! | [`store`] | what a node needs of its disk; [`memory`] is the twin that can crash |
//! | [`log_index`] | terms of the log, in memory |
//! | [`convert`] | raft's messages to ours and back |
//!
//! Invariant: with the same inputs in the same order a replica gives the same outputs. Time, chance and identity are
//! arguments; the election timeouts that raft draws from a thread-local generator are overwritten (P27).

pub mod convert;
pub mod entry;
pub mod leader_entry;
pub mod limits;
pub mod log_index;
pub mod machine;
pub mod memory;
pub mod replica;
pub mod rows;
pub mod store;
pub mod view;

pub use limits::LimitError;
pub use machine::{Machine, Outcome};
pub use memory::MemoryStore;
pub use replica::{Answer, Output, REST_TICKS, Replica, ReplicaConfig, ReplicaStatus, Ticket};
pub use store::{LogWrite, Store, StoreError};
pub use view::{Overlay, View};
