//! The one binary: every role as a subcommand, the supervisor of a whole cluster, and the operator's command line.
//!
//! | module | does |
//! | --- | --- |
//! | [`cli`] | what can be said, and where it goes |
//! | [`process`] | one role as a process |
//! | [`up`] | a cluster on this machine |
//! | [`cluster`] | `cluster.toml`: which processes there are, and where |
//! | [`client`] | talks to them as role `admin` |
//! | [`status`] | asks all, and judges the backend's health |
//! | [`vdisk`], [`inspect`] | the commands |
//! | [`probe`] | a small NBD client that shows that I/O works |
//! | [`failure`], [`output`], [`table`], [`role`] | one small thing each |

mod cli;
mod client;
mod cluster;
mod dtl;
mod edge;
mod events;
mod failure;
mod inspect;
mod mds;
mod output;
mod probe;
mod process;
mod role;
mod router;
mod status;
mod table;
mod up;
mod vdisk;

use clap::Parser;
use std::process::ExitCode;

/// Builds for development count allocations, for the tests that keep them from growing; releases pay nothing for it.
#[cfg(debug_assertions)]
#[global_allocator]
static ALLOCATOR: &stats_alloc::StatsAlloc<std::alloc::System> = &stats_alloc::INSTRUMENTED_SYSTEM;

#[cfg(debug_assertions)]
fn allocations() -> runtime::status::Allocations {
    let stats = ALLOCATOR.stats();
    runtime::status::Allocations {
        count: model::u64_of(stats.allocations + stats.reallocations),
        bytes: model::u64_of(stats.bytes_allocated),
    }
}

fn main() -> ExitCode {
    #[cfg(debug_assertions)]
    runtime::status::tell_allocations(allocations);
    match cli::run(cli::Cli::parse()) {
        Ok(code) => code,
        Err(failure) => {
            eprintln!("holdfast: {failure}");
            failure.exit_code()
        }
    }
}
