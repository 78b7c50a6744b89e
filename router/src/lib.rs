//! The storage router: owns vDisks, gives their writes an order, keeps them in a write log until they are in the backend.
//!
//! | module | does |
//! | --- | --- |
//! | [`config`] | what someone wrote → what may be believed |
//! | `server` | wire ⇄ everything below |
//! | `state` | one vDisk's requests: gate, range lock, apply, answer |
//! | `router` | the loop around it: append, sync, read ragged clusters |
//! | `reader` | overlay → page map → frames → bytes |
//! | `committer` | units → SCOs in the backend → page map → freed log |
//! | `open` | claim, raise, read head, recover, serve (P10, P18) |
//! | `bring`, `fetch` | a page map up to the head: own, another router's, a checkpoint, the TLogs behind it (L6) |
//! | `checkpoint`, `lend` | page maps to the backend, and to other routers |
//! | `balance`, `load` | vDisks spread over the routers by themselves, where that is asked for; what each carries, told to all |
//! | `handoff` | a vDisk to another router: by an operator's wish, or after a clean stop |
//! | `mode` | a served vDisk gets another DTL, or none |
//! | `protect` | vDisks with a DTL: claimed, recovered, watched |
//! | `lease`, `claim` | the router's session; a vDisk whose owner is gone, claimed (P16–P18) |
//! | `contest` | a vDisk whose owner an edge has no service from (P19) |
//! | `room` | a log that is too full for what recovery takes over: not claimed, or yielded (P19) |
//! | `loss` | a vDisk with a gap: what is missing, and how it starts without that (L7) |
//! | `directory` | where a vDisk is served and where else to go |
//! | `attach`, `admin`, `delete` | attachments; create, resize, show, sync; delete |
//! | [`dtl`] | logs of other routers' vDisks kept here (P11, P12, P16) |
//! | `log_disk`, `map_store`, `frames`, `backend`, `facts` | adapters: log files, RocksDB, frame cache, proxies, arakoon |

mod admin;
mod attach;
mod backend;
mod balance;
mod bring;
mod checkpoint;
mod claim;
mod committer;
pub mod config;
mod contest;
mod delete;
mod detach;
mod directory;
pub mod dtl;
pub mod facts;
mod fetch;
mod follow;
mod frames;
mod handoff;
mod lease;
mod lend;
mod load;
mod log_disk;
mod loss;
mod map_store;
mod mode;
mod open;
mod protect;
mod reader;
mod room;
mod router;
mod server;
mod start;
mod state;

pub use config::{Config, EXAMPLE};
pub use start::{RunError, run, run_ready};
