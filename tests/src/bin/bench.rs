//! `cargo xtask bench`: the same fio jobs against Holdfast and, in the same run, against plain NBD servers.
//!
//! Machines differ and are busy, so what counts is the ratio within one run: rounds are interleaved, and medians are
//! shown with the least and the most. The plain servers say what the machine can do: `nbdkit memory` (no disk at all),
//! `nbdkit file` and `qemu-nbd` with `O_DIRECT` (one raw file on this disk, no redundancy).
//!
//! After each job that writes, Holdfast is told to bring everything to the backend, and that counts towards its CPU time
//! and device bytes: nothing is left to pay later.
//!
//! Invariant: every figure comes with its ratio.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use holdfast_tests::cluster::{Cluster, Options, wait_until};
use holdfast_tests::measure::{self, Disk, Group};
use holdfast_tests::tool::{Running, Tool};
use serde_json::{Value, json};

/// Size of the vDisk and of the plain servers' disks.
const DISK: &str = "8G";

#[derive(Parser)]
#[command(about = "fio against Holdfast and plain NBD servers, as ratios")]
struct Cli {
    /// Rounds; the median of each figure is shown
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds per job and server, for jobs that aren't a fixed amount of data
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// MiB that sustained jobs write: twice what a router keeps before it makes writers wait
    #[arg(long, default_value_t = 1024)]
    mib: u64,
    /// Percent of each block that compresses away
    #[arg(long, default_value_t = 50)]
    compressible: u32,
    /// Only jobs whose name contains this; what they read is written first all the same
    #[arg(long, default_value = "")]
    only: String,
    /// Write all figures here, as JSON
    #[arg(long)]
    json: Option<PathBuf>,
    /// Further arguments of `holdfast up`
    #[arg(last = true)]
    up: Vec<String>,
}

/// What a job reads or overwrites, and how long it goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Extent {
    /// `--mib` of data over `--mib` of disk.
    Sustained,
    /// `--mib` of data scattered over a thin 1 TiB: each write meets another page of the map, more than its cache holds.
    Wide,
    /// `--seconds` over `--mib`.
    Timed,
    /// `--seconds` over a quarter of the router's read cache, read once before.
    Warm,
    /// `--seconds` over eight times the router's read cache.
    Cold,
}

const WARM_MIB: u64 = 64;
const COLD_MIB: u64 = 2048;

struct Job {
    name: &'static str,
    extent: Extent,
    args: &'static [&'static str],
    /// The plain server that the job is held against, and the least ratio that is promised.
    promise: Option<(Than, f64)>,
}

/// What a job is promised to be a share of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Than {
    Server(Plain),
    /// The job of this name on Holdfast itself.
    Job(&'static str),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Plain {
    Memory,
    File,
    Qemu,
}

const PLAIN: [(Plain, &str); 3] =
    [(Plain::Memory, "nbdkit memory"), (Plain::File, "nbdkit file"), (Plain::Qemu, "qemu-nbd")];

/// In this order: the reads find what the writes wrote.
const JOBS: [Job; 13] = [
    job("seq write 1M qd8", Extent::Sustained, &["--rw=write", "--bs=1M", "--iodepth=8"])
        .at_least(Plain::Qemu, 0.3),
    job("seq read 1M qd8", Extent::Timed, &["--rw=read", "--bs=1M", "--iodepth=8"])
        .at_least(Plain::Qemu, 0.4),
    job("rand read 4k qd32 warm", Extent::Warm, &["--rw=randread", "--bs=4k", "--iodepth=32"])
        .at_least(Plain::Memory, 0.5),
    job("rand read 4k qd32 cold", Extent::Cold, &["--rw=randread", "--bs=4k", "--iodepth=32"])
        .at_least(Plain::Memory, 0.3),
    job("rand read 4k qd1 warm", Extent::Warm, &["--rw=randread", "--bs=4k", "--iodepth=1"]),
    job("rand write 4k qd32", Extent::Sustained, &["--rw=randwrite", "--bs=4k", "--iodepth=32"])
        .at_least(Plain::File, 0.3),
    Job {
        name: "rand write 4k qd32, 1 TiB",
        extent: Extent::Wide,
        args: &["--rw=randwrite", "--bs=4k", "--iodepth=32"],
        promise: Some((Than::Job("rand write 4k qd32"), 0.7)),
    },
    job(
        "rand write 4k qd32 flush/32",
        Extent::Timed,
        &["--rw=randwrite", "--bs=4k", "--iodepth=32", "--fsync=32"],
    ),
    job(
        "rand write 4k qd32 flush/1",
        Extent::Timed,
        &["--rw=randwrite", "--bs=4k", "--iodepth=32", "--fsync=1"],
    ),
    job("rand write 4k qd1", Extent::Timed, &["--rw=randwrite", "--bs=4k", "--iodepth=1"]),
    job(
        "write+flush 4k qd1",
        Extent::Timed,
        &["--rw=randwrite", "--bs=4k", "--iodepth=1", "--fsync=1"],
    )
    .at_least(Plain::Qemu, 0.4),
    job(
        "70/30 mix 4k qd32",
        Extent::Timed,
        &["--rw=randrw", "--rwmixread=70", "--bs=4k", "--iodepth=32"],
    ),
    job("seq read after random", Extent::Timed, &["--rw=read", "--bs=1M", "--iodepth=8"]),
];

const fn job(name: &'static str, extent: Extent, args: &'static [&'static str]) -> Job {
    Job { name, extent, args, promise: None }
}

impl Job {
    const fn at_least(self, than: Plain, ratio: f64) -> Self {
        Self { promise: Some((Than::Server(than), ratio)), ..self }
    }

    fn writes(&self) -> bool {
        !self.args[0].ends_with("read")
    }

    fn mib(&self, cli: &Cli) -> u64 {
        match self.extent {
            Extent::Sustained | Extent::Timed | Extent::Wide => cli.mib,
            Extent::Warm => WARM_MIB,
            Extent::Cold => COLD_MIB,
        }
    }
}

/// One job on one server, once.
#[derive(Debug, Clone, Default)]
struct Figures {
    iops: f64,
    mib_per_second: f64,
    p99_us: f64,
    /// CPU of the server's processes per I/O, by role.
    cpu_us: BTreeMap<String, f64>,
    /// Bytes given to the device per byte written by the client.
    device_bytes: Option<f64>,
}

struct Server {
    name: &'static str,
    plain: Option<Plain>,
    uri: String,
    group: Group,
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
    let mut up = cli.up.clone();
    if !up.iter().any(|arg| arg.starts_with("--dtl")) {
        // What it is compared with copies its log to nobody either.
        up.extend(["--dtl".to_owned(), "none".to_owned()]);
    }
    let options = Options { vdisks: vec![("demo", "8GiB"), ("wide", "1TiB")], up };
    // All servers are reached as a virtual machine on the same host reaches them.
    let mut cluster = Cluster::prepare(options)?;
    cluster.serve_at(&dir.path().join("holdfast.sock"));
    cluster.up()?;
    let disk = Disk::below(&cluster.dir())?;
    let (plain, _running) = plain_servers(dir.path())?;
    let own = Server {
        name: "holdfast",
        plain: None,
        uri: cluster.uri("demo"),
        group: measure::cluster(&cluster)?,
    };
    let servers: Vec<Server> = std::iter::once(own).chain(plain).collect();
    let chosen = || JOBS.iter().enumerate().filter(|(_, job)| job.name.contains(&cli.only));
    let filled = chosen().map(|(_, job)| job.mib(cli)).max().context("no job has such a name")?;
    for server in &servers {
        eprintln!("filling {filled} MiB of {}", server.name);
        fill(cli, server, filled)?;
    }
    cluster.holdfast(&["vdisk", "sync", "demo"])?;
    let mut all: BTreeMap<(usize, usize), Vec<Figures>> = BTreeMap::new();
    for round in 1..=cli.rounds {
        for (number, job) in chosen() {
            for (at, server) in servers.iter().enumerate() {
                // The plain servers have no thin disk of this size.
                if job.extent == Extent::Wide && server.plain.is_some() {
                    continue;
                }
                let figures = one(cli, job, server, (&cluster, disk.as_ref()))
                    .with_context(|| format!("{} on {}", job.name, server.name))?;
                let Figures { iops, .. } = figures;
                eprintln!("round {round}: {:<28} {:<14} {iops:>9.0} IOPS", job.name, server.name);
                all.entry((number, at)).or_default().push(figures);
            }
        }
    }
    // What the last job left (deletions, checkpoints) is no idleness.
    std::thread::sleep(Duration::from_secs(10));
    let idle = measure::idle_share(&servers[0].group, Duration::from_secs(20));
    let memory = servers[0].group.memory();
    report(&servers, &all);
    println!("memory by role, MiB: {}", listed(&memory, 1.0 / f64::from(1 << 20), 0));
    println!("CPU of the idle cluster: {:.1} % of one core", idle * 100.0);
    if let Some(path) = &cli.json {
        let mut document = document(cli, &servers, &all);
        document["memory_bytes"] = json!(memory);
        document["idle_cores"] = json!(idle);
        fs::write(path, format!("{document:#}\n"))?;
    }
    Ok(())
}

fn plain_servers(dir: &Path) -> anyhow::Result<(Vec<Server>, Vec<Running>)> {
    let (mut servers, mut all_running) = (Vec::new(), Vec::new());
    for (plain, name) in PLAIN {
        let socket = dir.join(format!("{plain:?}.sock"));
        let disk = dir.join(format!("{plain:?}.disk"));
        let nbdkit = Tool::new("nbdkit").args(["--foreground", "--unix"]).arg(&socket);
        let file = || -> anyhow::Result<()> { Ok(fs::File::create(&disk)?.set_len(8 << 30)?) };
        let tool = match plain {
            Plain::Memory => nbdkit.args(["memory", DISK]),
            Plain::File => {
                file()?;
                nbdkit.arg("file").arg(&disk)
            }
            Plain::Qemu => {
                file()?;
                Tool::new("qemu-nbd")
                    .args(["--format=raw", "--cache=none", "--aio=threads", "--persistent"])
                    .args(["--shared=4", "--socket"])
                    .arg(&socket)
                    .arg(&disk)
            }
        };
        let running = tool.spawn()?;
        wait_until(Duration::from_secs(20), name, || Ok(socket.exists()))?;
        let group = Group::of([(name.to_owned(), running.pid())]);
        let uri = format!("nbd+unix:///?socket={}", socket.display());
        servers.push(Server { name, plain: Some(plain), uri, group });
        all_running.push(running);
    }
    Ok((servers, all_running))
}

fn fio(cli: &Cli, uri: &str) -> Tool {
    Tool::new("fio")
        .args(["--name=bench", "--ioengine=nbd", "--output-format=json", "--randrepeat=0"])
        .args(["--refill_buffers=1", "--group_reporting=1"])
        .arg(format!("--buffer_compress_percentage={}", cli.compressible))
        .arg(format!("--uri={uri}"))
        .within(Duration::from_secs(cli.seconds + 900))
}

fn fill(cli: &Cli, server: &Server, mib: u64) -> anyhow::Result<()> {
    let job = fio(cli, &server.uri).args(["--rw=write", "--bs=1M", "--iodepth=8"]);
    job.arg(format!("--size={mib}M")).run().map(|_| ())
}

fn one(
    cli: &Cli,
    job: &Job,
    server: &Server,
    (cluster, disk): (&Cluster, Option<&Disk>),
) -> anyhow::Result<Figures> {
    let mib = job.mib(cli);
    let vdisk = if job.extent == Extent::Wide { "wide" } else { "demo" };
    let uri = if server.plain.is_none() { cluster.uri(vdisk) } else { server.uri.clone() };
    let tool = fio(cli, &uri).args(job.args);
    let tool = match job.extent {
        Extent::Wide => tool
            .args(["--size=1T", "--norandommap", "--random_generator=lfsr"])
            .arg(format!("--io_size={mib}M")),
        Extent::Sustained | Extent::Timed | Extent::Warm | Extent::Cold => {
            tool.arg(format!("--size={mib}M"))
        }
    };
    let tool = match job.extent {
        Extent::Sustained | Extent::Wide => tool,
        Extent::Timed | Extent::Warm | Extent::Cold => {
            tool.arg("--time_based").arg(format!("--runtime={}", cli.seconds))
        }
    };
    if job.extent == Extent::Warm {
        let read = fio(cli, &uri).args(["--rw=read", "--bs=1M", "--iodepth=4"]);
        read.arg(format!("--size={mib}M")).run()?;
    }
    let own_disk = disk.filter(|_| server.plain.is_none() && job.writes());
    let on_disk = own_disk.map(Disk::written).transpose()?;
    let before = server.group.used();
    let text = tool.run()?;
    if server.plain.is_none() && job.writes() {
        cluster.holdfast(&["vdisk", "sync", vdisk])?;
    }
    let on_disk = match (own_disk, on_disk) {
        (Some(disk), Some(before)) => Some(disk.written()? - before),
        _ => None,
    };
    let used = server.group.used().since(&before);
    // fio may print a line of its own before the document.
    let start = text.find('{').context("no JSON from fio")?;
    let report: Value = serde_json::from_str(&text[start..])?;
    let number = |value: &Value| value.as_f64().unwrap_or(0.0);
    let sum = |name: &str| {
        number(&report["jobs"][0]["read"][name]) + number(&report["jobs"][0]["write"][name])
    };
    let direction = if job.writes() { "write" } else { "read" };
    let p99 = &report["jobs"][0][direction]["clat_ns"]["percentile"]["99.000000"];
    let total = sum("total_ios").max(1.0);
    let written = number(&report["jobs"][0]["write"]["io_bytes"]);
    let per_io = |cpu: Duration| cpu.as_secs_f64() * 1e6 / total;
    Ok(Figures {
        iops: sum("iops"),
        mib_per_second: sum("bw_bytes") / f64::from(1 << 20),
        p99_us: number(p99) / 1000.0,
        cpu_us: used.cpu.into_iter().map(|(role, cpu)| (role, per_io(cpu))).collect(),
        device_bytes: on_disk.filter(|_| written > 0.0).map(|bytes| bytes / written),
    })
}

/// Median, least and most.
fn spread(rounds: &[Figures], of: impl Fn(&Figures) -> f64) -> (f64, f64, f64) {
    let mut values: Vec<f64> = rounds.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    (values[values.len() / 2], values[0], values[values.len() - 1])
}

fn report(servers: &[Server], all: &BTreeMap<(usize, usize), Vec<Figures>>) {
    println!(
        "{:<28} {:<14} {:>8} {:>17} {:>8} {:>9} {:>7} {:>7} {:>10}",
        "job", "server", "IOPS", "least … most", "MiB/s", "p99 µs", "CPU µs", "ratio", "promised"
    );
    for ((number, at), rounds) in all {
        let (job, server) = (&JOBS[*number], &servers[*at]);
        let (iops, least, most) = spread(rounds, |figures| figures.iops);
        let (mib, ..) = spread(rounds, |figures| figures.mib_per_second);
        let (p99, ..) = spread(rounds, |figures| figures.p99_us);
        let (cpu, ..) = spread(rounds, |figures| figures.cpu_us.values().sum());
        let ratio = match server.plain {
            None => String::new(),
            Some(_) => format!("{:.2}", ratio(all, *number, *at)),
        };
        let reached = match (job.promise, server.plain) {
            (Some((Than::Server(than), _)), Some(plain)) if than == plain => {
                Some(self::ratio(all, *number, *at))
            }
            (Some((Than::Job(name), _)), None) => JOBS
                .iter()
                .position(|job| job.name == name)
                .and_then(|than| all.get(&(than, 0)))
                .map(|than| iops / spread(than, |figures| figures.iops).0.max(1.0)),
            _ => None,
        };
        let promise = match (job.promise, reached) {
            (Some((than, least)), Some(reached)) => {
                let kept = if least <= reached { "kept" } else { "MISSED" };
                match than {
                    Than::Server(_) => format!("{least:.2} {kept}"),
                    Than::Job(name) => format!("{least:.2} of `{name}`: {reached:.2} {kept}"),
                }
            }
            _ => String::new(),
        };
        let range = format!("{least:.0} … {most:.0}");
        println!(
            "{:<28} {:<14} {iops:>8.0} {range:>17} {mib:>8.1} {p99:>9.0} {cpu:>7.1} {ratio:>7} {promise:>10}",
            job.name, server.name,
        );
    }
    println!(
        "\nHoldfast by role: CPU µs per I/O (moving it to the backend included), device bytes"
    );
    for ((number, _), rounds) in all.iter().filter(|((_, at), _)| *at == 0) {
        let roles: Vec<&String> = rounds[0].cpu_us.keys().collect();
        let by_role: BTreeMap<String, f64> = roles
            .into_iter()
            .map(|role| (role.clone(), spread(rounds, |figures| figures.cpu_us[role]).0))
            .collect();
        let device = spread(rounds, |figures| figures.device_bytes.unwrap_or(0.0)).0;
        let device = rounds[0]
            .device_bytes
            .map_or(String::new(), |_| format!("   device bytes per byte written: {device:.2}"));
        println!("{:<28} {}{device}", JOBS[*number].name, listed(&by_role, 1.0, 1));
    }
    println!("ratio: Holdfast's IOPS as a share of that server's; medians of interleaved rounds");
}

fn ratio(all: &BTreeMap<(usize, usize), Vec<Figures>>, job: usize, at: usize) -> f64 {
    let iops = |at: usize| spread(&all[&(job, at)], |figures| figures.iops).0;
    iops(0) / iops(at).max(1.0)
}

fn listed(values: &BTreeMap<String, f64>, scale: f64, digits: usize) -> String {
    let each = values.iter().map(|(name, value)| format!("{name} {:.digits$}", value * scale));
    each.collect::<Vec<_>>().join("  ")
}

fn document(cli: &Cli, servers: &[Server], all: &BTreeMap<(usize, usize), Vec<Figures>>) -> Value {
    let rows = all.iter().map(|((number, at), rounds)| {
        let (iops, least, most) = spread(rounds, |figures| figures.iops);
        json!({
            "job": JOBS[*number].name,
            "server": servers[*at].name,
            "iops": iops,
            "iops_least": least,
            "iops_most": most,
            "mib_per_second": spread(rounds, |figures| figures.mib_per_second).0,
            "p99_us": spread(rounds, |figures| figures.p99_us).0,
            "cpu_us_per_io": spread(rounds, |figures| figures.cpu_us.values().sum()).0,
            "device_bytes_per_byte": rounds[0].device_bytes,
            "holdfast_iops_ratio": ratio(all, *number, *at),
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
    fn the_median_is_taken_figure_by_figure_and_comes_with_its_spread() {
        let figures =
            |value: f64| Figures { iops: value, p99_us: 10.0 - value, ..Figures::default() };
        let rounds = [figures(1.0), figures(9.0), figures(2.0)];
        assert_eq!(spread(&rounds, |figures| figures.iops), (2.0, 1.0, 9.0));
        assert_eq!(spread(&rounds, |figures| figures.p99_us), (8.0, 1.0, 9.0));
    }
}
