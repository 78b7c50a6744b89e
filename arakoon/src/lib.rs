//! Arakoon: the always-consistent key-value store, home of every fact that must have one value.
//!
//! | module | does |
//! |---|---|
//! | [`config`] | what an operator wrote, checked |
//! | [`node`] | puts a node together and runs it until shutdown |
//! | `driver` | the thread that owns the replica: inputs in, disk, answers out |
//! | `server` | wire requests ⇄ inputs and answers |
//! | `links` | messages to the other nodes |
//! | `catchup` | fetches a snapshot from the leader |
//! | `join` | how a node with an empty directory comes to vote |
//! | [`store`] | Raft's log and the rows in one RocksDB, and the witness of what was synced |
//! | `raft_log` | raft's own log lines into ours |
//!
//! What is decided lies in `arakoon-core`; nothing here changes what a transaction does.

mod catchup;
pub mod config;
mod driver;
mod join;
mod links;
pub mod node;
mod raft_log;
mod server;
pub mod store;

pub use config::Config;
pub use node::{RunError, run};
