//! `verify`: the verifying load by hand, against any NBD server.
//!
//! ```text
//! cargo run -p holdfast-tests --bin verify -- nbd://127.0.0.1:10809/demo --mib 64 --seconds 30 --crashes
//! ```
//! The vDisk's first bytes are overwritten. With `--crashes`, a lost connection counts as a crash of everything: once
//! the server is back the image is judged, and the load goes on.
//!
//! Invariant: exit code 0 only if every answer and every image was allowed.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Parser;
use holdfast_tests::history::Survival;
use holdfast_tests::nbd::{Connection, Target};
use holdfast_tests::workload::{Counts, Ended, Load, Verifier};

#[derive(Parser)]
#[command(about = "A load that judges every answer; overwrites the beginning of the export")]
struct Cli {
    /// nbd://HOST:PORT/NAME or nbd+unix:///NAME?socket=PATH
    uri: Target,
    /// MiB at the beginning of the export that are used
    #[arg(long, default_value_t = 64)]
    mib: u64,
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    #[arg(long, default_value_t = 3)]
    connections: usize,
    /// Requests in flight per connection
    #[arg(long, default_value_t = 8)]
    depth: usize,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Take a lost connection as a crash, wait for the server, judge the image, go on
    #[arg(long)]
    crashes: bool,
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("verify: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> anyhow::Result<()> {
    zero(&cli.uri, cli.mib << 20).context("zero the place")?;
    let verifier = Verifier::new(cli.uri.clone(), cli.seed, cli.mib << 20);
    let load =
        Load { seed: cli.seed, connections: cli.connections, depth: cli.depth, ..Load::default() };
    let deadline = Instant::now() + Duration::from_secs(cli.seconds);
    while Instant::now() < deadline {
        let going = verifier.start(&load)?;
        while Instant::now() < deadline && !going.has_ended() {
            std::thread::sleep(Duration::from_millis(100));
        }
        let ended = going.stop()?;
        let lost = ended.iter().find(|ended| matches!(ended, Ended::Lost(_)));
        match lost {
            None => verifier.check(Survival::Alive)?,
            Some(lost) if !cli.crashes => bail!("{lost:?}"),
            Some(_) => {
                eprintln!("the connection is lost; waiting for the server");
                drop(Connection::open_within(&cli.uri, Duration::from_secs(600))?);
                verifier.check(Survival::Crash)?;
                eprintln!("the image is as it must be");
            }
        }
    }
    let counts = verifier.counts();
    println!(
        "verified: {} writes, {} reads, {} flushes, {} errors",
        Counts::get(&counts.writes),
        Counts::get(&counts.reads),
        Counts::get(&counts.flushes),
        Counts::get(&counts.errors),
    );
    Ok(())
}

/// The history begins with zeroes.
fn zero(target: &Target, bytes: u64) -> anyhow::Result<()> {
    use holdfast_tests::nbd::Command;
    let mut connection = Connection::open(target)?;
    let step = 16 << 20;
    for offset in (0..bytes).step_by(step) {
        let len = u32::try_from((bytes - offset).min(step as u64))?;
        connection.call(Command::WriteZeroes, offset, len, &[])?;
    }
    connection.flush()
}
