//! The block front door: NBD towards the user, a patient client towards the routers.
//!
//! | module | what it does |
//! | --- | --- |
//! | [`config`] | the configuration file, checked wholly before anything starts |
//! | [`driver`] | starts and stops: directory, listeners, status |
//! | [`nbd`] | one NBD connection: negotiation, requests in, replies out |
//! | [`exports`] | vDisks by name: which exist, which are attached |
//! | [`vdisk`] | one attached vDisk: carries out what `edge_core::session` decides |
//! | [`attach`] | finds the owner of a vDisk and attaches there |
//! | [`directory`] | questions that any router answers |
//! | [`calls`] | many calls under way in one task |
//! | [`tokens`] | which attachments are ours, kept over a restart (P4) |
//! | [`checksum`] | CRC-32C per cluster, made on entry and checked on exit (L5) |
//!
//! Invariant: only a vDisk's own task touches its session; everyone else sends it messages over a bounded channel.

mod attach;
mod calls;
mod checksum;
pub mod config;
mod directory;
mod driver;
mod exports;
mod nbd;
mod tokens;
mod vdisk;

pub use config::Config;
pub use driver::{Edge, RunError, run};
