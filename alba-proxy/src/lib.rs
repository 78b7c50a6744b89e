//! Objects to frames to fragments, and back: the process between routers and OSDs.
//!
//! It keeps nothing of its own: manifests are in arakoon, fragments on OSDs, so any number of proxies serve the
//! same namespaces and any may die at any moment. What they decide is in `alba-proxy-core`; this crate acts.
//!
//! | module | does |
//! |---|---|
//! | [`config`], [`key_file`] | what an operator wrote, checked |
//! | `proxy` | what a process shares; starting and stopping |
//! | `server` | wire ⇄ the operations below |
//! | `put`, `commit` | one object in: encode, upload, one transaction (P18, P20, P21) |
//! | `read`, `gather`, `object` | ranges of an object out: fetch, verify, rebuild (L5) |
//! | `plain` | small reads of OSDs that are well: together, in one call per OSD |
//! | `maintain`, `background` | holes filled, fragments repaired, deletes drained |
//! | `namespaces`, `catalog` | namespaces and their keys; presets and OSDs as arakoon lists them |
//! | `osds` | calls to OSDs, and what they teach about their health |
//! | `workers` | the few threads that compress, seal and erasure-code |
//! | `status` | counters and the `status` answer (L9) |
//!
//! Invariant: an object is acknowledged only after its manifest is committed, and no byte leaves unverified.

mod background;
mod catalog;
mod commit;
pub mod config;
mod deletes;
mod error;
mod gather;
pub mod key_file;
mod listing;
mod maintain;
mod namespaces;
mod object;
mod osds;
mod plain;
mod proxy;
mod put;
mod read;
mod server;
mod status;
mod workers;

pub use config::Config;
pub use error::{ProxyError, RunError};
pub use proxy::{Running, run, start};
