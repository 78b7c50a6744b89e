//! Clusters, simulated and real; workloads; oracles.
//!
//! The tests under `tests/` start the real `holdfast` binary as anyone would and look at it from outside, through NBD
//! and the command line. What they share is here.
//!
//! | module | is |
//! | --- | --- |
//! | [`binary`] | where the `holdfast` program is |
//! | [`cluster`] | a running `holdfast up` in a directory of its own, and ways to hurt it |
//! | [`tool`] | other people's programs, with a deadline |
//! | [`nbd`] | a small pipelining NBD client of our own |
//! | [`stamp`] | units of 512 bytes that say who wrote them |
//! | [`history`] | what was asked and answered, and the checker that judges what is read |
//! | [`workload`] | a verifying load: random requests, each answer judged |
//! | [`mount`] | a filesystem on a vDisk through nbdfuse and a loop device |
//! | [`steps`] | several named checks on one cluster, all reported |
//!
//! Invariant: what a test starts ends with it: processes, mounts, loop devices, directories.

pub mod binary;
pub mod cluster;
pub mod history;
pub mod mount;
pub mod nbd;
pub mod stamp;
pub mod steps;
pub mod tool;
pub mod workload;

/// Whether to run long: hours rather than minutes.
#[must_use]
pub fn soak() -> bool {
    std::env::var("HOLDFAST_SOAK").is_ok_and(|value| value == "1")
}
