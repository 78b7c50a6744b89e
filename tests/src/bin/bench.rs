//! `cargo xtask bench`: the same fio jobs against Holdfast and, in the same run, against plain NBD servers.
//!
//! Machines differ and are busy, so what counts is the ratio within one run: rounds are interleaved, and the median is
//! shown. The plain servers are `nbdkit memory` (no disk at all) and `nbdkit file` (one file on this disk, no
//! redundancy): neither does what Holdfast does, they say what the machine can do.
//!
//! Invariant: every figure comes with its ratio, and data is incompressible unless said otherwise.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use holdfast_tests::cluster::{Cluster, Options, wait_until};
use holdfast_tests::tool::{Running, Tool};
use serde_json::{Value, json};

#[derive(Parser)]
#[command(about = "fio against Holdfast and plain NBD servers, as ratios")]
struct Cli {
    /// Rounds; the median of each figure is shown
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Seconds per job and server
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// MiB of the vDisk that the jobs use
    #[arg(long, default_value_t = 512)]
    mib: u64,
    /// Percent of each block that compresses away
    #[arg(long, default_value_t = 0)]
    compressible: u32,
    /// Only jobs whose name contains this
    #[arg(long, default_value = "")]
    only: String,
    /// Write all figures here, as JSON
    #[arg(long)]
    json: Option<PathBuf>,
    /// Further arguments of `holdfast up`
    #[arg(last = true)]
    up: Vec<String>,
}

struct Job {
    name: &'static str,
    args: &'static [&'static str],
}

/// In this order: the reads find what the writes wrote.
const JOBS: [Job; 6] = [
    Job { name: "seq write 1M qd8", args: &["--rw=write", "--bs=1M", "--iodepth=8"] },
    Job { name: "seq read 1M qd8", args: &["--rw=read", "--bs=1M", "--iodepth=8"] },
    Job { name: "rand write 4k qd32", args: &["--rw=randwrite", "--bs=4k", "--iodepth=32"] },
    Job { name: "rand read 4k qd32", args: &["--rw=randread", "--bs=4k", "--iodepth=32"] },
    Job { name: "rand write 4k qd1", args: &["--rw=randwrite", "--bs=4k", "--iodepth=1"] },
    Job {
        name: "write+fsync 4k qd1",
        args: &["--rw=randwrite", "--bs=4k", "--iodepth=1", "--fsync=1"],
    },
];

/// One job on one server, once.
#[derive(Debug, Clone, Copy)]
struct Figures {
    iops: f64,
    mib_per_second: f64,
    p99_us: f64,
    /// CPU of the server's processes per I/O.
    cpu_us: f64,
}

struct Server {
    name: &'static str,
    uri: String,
    pids: Vec<u32>,
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:?}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> anyhow::Result<()> {
    let dir = tempfile::Builder::new().prefix("hf-bench-").tempdir()?;
    let options = Options { up: cli.up.clone(), ..Options::default() };
    let cluster = Cluster::start(options)?;
    let (memory, memory_uri) = nbdkit(dir.path(), "memory", &[&format!("{}M", cli.mib)])?;
    let file = dir.path().join("disk");
    fs::File::create(&file)?.set_len(cli.mib << 20)?;
    let (plain, plain_uri) = nbdkit(dir.path(), "file", &[&file.display().to_string()])?;
    let servers = [
        Server { name: "holdfast", uri: cluster.uri("demo"), pids: cluster.pids() },
        Server { name: "nbdkit memory", uri: memory_uri, pids: vec![memory.pid()] },
        Server { name: "nbdkit file", uri: plain_uri, pids: vec![plain.pid()] },
    ];
    let mut all: BTreeMap<(usize, usize), Vec<Figures>> = BTreeMap::new();
    for round in 0..cli.rounds {
        for (number, job) in JOBS.iter().enumerate().filter(|(_, job)| job.name.contains(&cli.only))
        {
            for (at, server) in servers.iter().enumerate() {
                let figures = measure(cli, job, server)
                    .with_context(|| format!("{} on {}", job.name, server.name))?;
                eprintln!(
                    "round {round}: {:<20} {:<14} {:>9.0} IOPS",
                    job.name, server.name, figures.iops
                );
                all.entry((number, at)).or_default().push(figures);
            }
        }
    }
    let medians: BTreeMap<_, _> =
        all.into_iter().map(|(key, rounds)| (key, median(&rounds))).collect();
    print(&servers, &medians);
    if let Some(path) = &cli.json {
        fs::write(path, format!("{:#}\n", document(cli, &servers, &medians)))?;
    }
    Ok(())
}

fn nbdkit(dir: &Path, plugin: &str, args: &[&str]) -> anyhow::Result<(Running, String)> {
    let socket = dir.join(format!("{plugin}.sock"));
    let tool = Tool::new("nbdkit").args(["--foreground", "--unix"]).arg(&socket);
    let running = tool.arg(plugin).args(args).spawn()?;
    wait_until(Duration::from_secs(20), "nbdkit", || Ok(socket.exists()))?;
    Ok((running, format!("nbd+unix:///?socket={}", socket.display())))
}

fn measure(cli: &Cli, job: &Job, server: &Server) -> anyhow::Result<Figures> {
    let before = cpu_time(&server.pids);
    let text = Tool::new("fio")
        .args(["--name=bench", "--ioengine=nbd", "--output-format=json", "--time_based"])
        .args(["--randrepeat=0", "--refill_buffers=1", "--group_reporting=1"])
        .arg(format!("--buffer_compress_percentage={}", cli.compressible))
        .arg(format!("--uri={}", server.uri))
        .arg(format!("--size={}M", cli.mib))
        .arg(format!("--runtime={}", cli.seconds))
        .args(job.args)
        .within(Duration::from_secs(cli.seconds + 240))
        .run()?;
    let cpu = cpu_time(&server.pids).saturating_sub(before);
    // fio may print a line of its own before the document.
    let start = text.find('{').context("no JSON from fio")?;
    let report: Value = serde_json::from_str(&text[start..])?;
    let direction = if job.args[0].contains("read") { "read" } else { "write" };
    let figures = &report["jobs"][0][direction];
    let number = |value: &Value| value.as_f64().unwrap_or(0.0);
    let total = number(&figures["total_ios"]).max(1.0);
    Ok(Figures {
        iops: number(&figures["iops"]),
        mib_per_second: number(&figures["bw_bytes"]) / f64::from(1 << 20),
        p99_us: number(&figures["clat_ns"]["percentile"]["99.000000"]) / 1000.0,
        cpu_us: cpu.as_secs_f64() * 1e6 / total,
    })
}

/// User and system time of the processes.
fn cpu_time(pids: &[u32]) -> Duration {
    // The kernel counts in hundredths of a second whatever its own tick is.
    const TICKS_PER_SECOND: u64 = 100;
    let ticks = |pid: &u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        Some(fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?)
    };
    let total: u64 = pids.iter().filter_map(ticks).sum();
    Duration::from_millis(total * 1000 / TICKS_PER_SECOND)
}

fn median(rounds: &[Figures]) -> Figures {
    let middle = |of: fn(&Figures) -> f64| {
        let mut values: Vec<f64> = rounds.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    Figures {
        iops: middle(|figures| figures.iops),
        mib_per_second: middle(|figures| figures.mib_per_second),
        p99_us: middle(|figures| figures.p99_us),
        cpu_us: middle(|figures| figures.cpu_us),
    }
}

fn print(servers: &[Server], medians: &BTreeMap<(usize, usize), Figures>) {
    println!(
        "{:<20} {:<14} {:>10} {:>10} {:>10} {:>11} {:>9}",
        "job", "server", "IOPS", "MiB/s", "p99 µs", "CPU µs/IO", "ratio"
    );
    for ((number, at), figures) in medians {
        let Figures { iops, mib_per_second, p99_us, cpu_us } = figures;
        let ours = medians[&(*number, 0)].iops;
        let ratio = if *at == 0 { String::new() } else { format!("{:.3}", ours / iops.max(1.0)) };
        println!(
            "{:<20} {:<14} {iops:>10.0} {mib_per_second:>10.1} {p99_us:>10.0} {cpu_us:>11.1} {ratio:>9}",
            JOBS[*number].name, servers[*at].name,
        );
    }
    println!("ratio: Holdfast's IOPS as a share of that server's, medians of interleaved rounds");
}

fn document(cli: &Cli, servers: &[Server], medians: &BTreeMap<(usize, usize), Figures>) -> Value {
    let rows = medians.iter().map(|((number, at), figures)| {
        json!({
            "job": JOBS[*number].name,
            "server": servers[*at].name,
            "iops": figures.iops,
            "mib_per_second": figures.mib_per_second,
            "p99_us": figures.p99_us,
            "cpu_us_per_io": figures.cpu_us,
            "holdfast_iops_ratio": medians[&(*number, 0)].iops / figures.iops.max(1.0),
        })
    });
    json!({
        "rounds": cli.rounds,
        "seconds": cli.seconds,
        "mib": cli.mib,
        "compressible_percent": cli.compressible,
        "results": rows.collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_taken_figure_by_figure() {
        let figures = |value: f64| Figures {
            iops: value,
            mib_per_second: 10.0 - value,
            p99_us: 1.0,
            cpu_us: value,
        };
        let median = median(&[figures(1.0), figures(9.0), figures(2.0)]);
        assert_eq!((median.iops, median.mib_per_second, median.cpu_us), (2.0, 8.0, 2.0));
    }

    #[test]
    fn our_own_cpu_time_grows() {
        let mut spent = 0_u64;
        let own = [std::process::id()];
        let before = cpu_time(&own);
        while cpu_time(&own) == before {
            spent = spent.wrapping_add(1);
        }
        assert!(before < cpu_time(&own), "{spent}");
    }
}
