//! The house's own tools: `cargo xtask ci|tidy|mutate|soak|bench`.
//!
//! CI and a person run the same commands, so that nothing is green in one place only. Written in Rust rather than
//! shell, because the rules it holds (who may import whom, what a source file must look like) deserve tests of their own.
//!
//! Invariant: xtask imports nothing of ours. It judges the workspace and must not fail to build when that is broken.

mod ci;
mod long_runs;
mod mutate;
mod tidy;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "The house's own tools")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Everything CI runs: format, tidy, clippy, build, doc tests, tests
    Ci {
        /// Run only this stage
        #[arg(long, value_enum)]
        stage: Option<ci::Stage>,
    },
    /// Check the import arrows and the shape of manifests and source files
    Tidy,
    /// Put named faults back into a copy of the sources, one by one: each must be caught (not part of CI)
    Mutate {
        /// Only this one; may be repeated
        #[arg(long, value_name = "NAME")]
        only: Vec<String>,
        /// Only those of one part, as in 2/4: so that a drill of hours can be split
        #[arg(long, value_name = "I/N")]
        part: Option<mutate::Part>,
        /// Say which there are, and whether they still apply
        #[arg(long)]
        list: bool,
    },
    /// Long crash and loss tests (HOLDFAST_SOAK=1), one at a time; arguments go to nextest
    Soak {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Benchmarks, as ratios against plain servers in the same run; arguments go to the harness
    Bench {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
}

fn main() -> ExitCode {
    let root = workspace_root();
    let outcome = match Cli::parse().command {
        Command::Ci { stage } => ci::run(&root, stage),
        Command::Tidy => tidy::run(&root),
        Command::Mutate { only, part, list } => {
            mutate::run(&root, &mutate::Options { only, part, list })
        }
        Command::Soak { args } => long_runs::soak(&root, &args),
        Command::Bench { args } => long_runs::bench(&root, &args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Two directories above our manifest. Asked from cargo at run time: checkouts that share a target directory share this
/// program too, and what it was compiled in may be the other one.
fn workspace_root() -> PathBuf {
    let manifest = std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    manifest.ancestors().nth(2).expect("crates/xtask lies two levels deep").to_path_buf()
}
