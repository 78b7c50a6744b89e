//! The real world: sockets, TLS, clock, configuration, logging, shutdown. Cores know none of this.
//!
//! Module map: [`endpoint`] where to connect · [`peer`] who we are · [`tls`] certificates and the cluster's CA ·
//! [`net`] listeners and connections · [`rpc`] requests and answers over frames · [`config`] files to values ·
//! [`events`] what an operator should know · [`panics`] what a failed assertion ends · [`page_cache`] what memory shows and the disk hasn't · [`rocks_logs`] what RocksDB would hang on · [`clock`], [`random`], [`shutdown`], [`logging`], [`dirlock`], [`status`] one small thing each.

pub mod clock;
pub mod config;
pub mod dirlock;
pub mod endpoint;
pub mod events;
pub mod logging;
pub mod net;
pub mod page_cache;
pub mod panics;
pub mod peer;
pub mod random;
pub mod rocks_logs;
pub mod rpc;
pub mod shutdown;
pub mod status;
pub mod tls;
