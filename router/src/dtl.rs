//! The distributed transaction log's outside: sockets, files and clocks around `router_core::dtl`.
//!
//! | module | does |
//! | --- | --- |
//! | [`server`] | other routers' logs kept here: wire ⇄ targets, syncs, timers |
//! | [`owner`] | the own vDisks' logs copied to others: runs the core, queues requests, shows what may be acknowledged |
//! | [`peers`] | connections to targets; what a claimant asks of them |
//! | [`ties`] | what arakoon says: facts proposed and confirmed, who could be a target, where routers are |
//! | `files` | a target's files |
//! | `sweep` | forgets logs that no record names any more |
//!
//! Invariant: nothing here decides what may be promised; that is the core's.

mod files;
pub mod owner;
pub mod peers;
pub mod server;
mod sweep;
pub mod ties;

use std::pin::Pin;

/// A future that a trait object gives back.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;
