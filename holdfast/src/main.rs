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
mod failure;
mod inspect;
mod output;
mod probe;
mod process;
mod role;
mod status;
mod table;
mod up;
mod vdisk;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    match cli::run(cli::Cli::parse()) {
        Ok(code) => code,
        Err(failure) => {
            eprintln!("holdfast: {failure}");
            failure.exit_code()
        }
    }
}
