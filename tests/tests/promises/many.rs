//! Many vDisks on one router: drained away, and lost with it.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use holdfast_tests::cluster::{Cluster, Options, wait_until};
use holdfast_tests::measure::Group;
use holdfast_tests::nbd::{Command, Connection, Request};
use holdfast_tests::owner::{finish, progress};
use holdfast_tests::tool::Tool;
use holdfast_tests::workload::{Counts, Going, Load, Verifier};

use crate::{Figures, configure, timed};

const BUSY: usize = 50;
const IDLE: usize = 1000;
const BYTES: u64 = 1 << 20;
const LIMIT: Duration = Duration::from_secs(120);
const IDLE_BYTES_MAX: f64 = 1_048_576.0;
const FAIL_OVER_MAX: Duration = Duration::from_secs(30);
/// All of these are made at this one.
const FIRST: &str = "router-1";

fn start() -> anyhow::Result<Cluster> {
    let cluster = Cluster::start(Options::default())?;
    configure(&cluster, "edge-1", "connections_max = 2000")?;
    Ok(cluster)
}

fn make(cluster: &Cluster, names: &[String]) -> anyhow::Result<()> {
    for name in names {
        cluster.holdfast(&["vdisk", "create", name, "--size", "64MiB", "--router", FIRST])?;
    }
    Ok(())
}

fn names(of: &str, count: usize) -> Vec<String> {
    (0..count).map(|number| format!("{of}-{number}")).collect()
}

/// A load on each: fifty of them are one machine's work.
fn busy(cluster: &Cluster, names: &[String]) -> anyhow::Result<Vec<(Verifier, Going)>> {
    let mut loads = Vec::new();
    for (seed, name) in (1..).zip(names) {
        let verifier = Verifier::new(cluster.target(name), seed, BYTES);
        let pace = Duration::from_millis(50);
        let load = Load { seed, connections: 1, depth: 2, pace, clusters: true };
        let going = verifier.start(&load)?;
        loads.push((verifier, going));
    }
    Ok(loads)
}

/// vDisks of this router; those of a second one are another's.
fn owned(cluster: &Cluster, router: &str) -> anyhow::Result<usize> {
    let shown = cluster.json(&["vdisk", "list"])?;
    let all = shown.as_array().context("a list")?;
    Ok(all.iter().filter(|vdisk| vdisk["owner"] == router).count())
}

fn all_in_sync(cluster: &Cluster) -> anyhow::Result<()> {
    wait_until(LIMIT, "every DTL to be in sync", || {
        let shown = cluster.json(&["dtl", "list"])?;
        let all = shown.as_array().context("a list")?;
        Ok(all.iter().all(|log| log["state"] == "in-sync"))
    })
}

pub fn drain() -> anyhow::Result<()> {
    let cluster = start()?;
    let names = names("busy", BUSY);
    make(&cluster, &names)?;
    let loads = busy(&cluster, &names)?;
    for (verifier, going) in &loads {
        progress(verifier, going, 3)?;
    }
    let (drained, took) = timed(|| cluster.json(&["router", "drain", FIRST]))?;
    let mut figures = Figures::default();
    for moved in drained["moved"].as_array().context("what moved")? {
        figures.add(Duration::from_millis(moved["pause_ms"].as_u64().context("its pause")?));
    }
    figures.say(&format!("drain of {FIRST} with {BUSY} busy vDisks in {took:?}: pauses"))?;
    ensure!(owned(&cluster, FIRST)? == 0, "{drained}");
    for (verifier, going) in loads {
        progress(&verifier, &going, 3)?;
        finish(&verifier, going)?;
    }
    Ok(())
}

pub fn fail_over() -> anyhow::Result<()> {
    let cluster = start()?;
    let resident = || -> anyhow::Result<f64> {
        let group = Group::of([("router".to_owned(), cluster.pid(FIRST)?)]);
        group.memory().get("router").copied().context("its memory")
    };
    let (busy_names, idle_names) = (names("busy", BUSY), names("idle", IDLE));
    make(&cluster, &busy_names)?;
    let before = resident()?;
    let ((), took) = timed(|| make(&cluster, &idle_names))?;
    eprintln!("{IDLE} vDisks made in {took:?}");
    let mut idle = Vec::new();
    for name in &idle_names {
        idle.push(Connection::open_within(&cluster.target(name), LIMIT)?);
    }
    all_in_sync(&cluster)?;
    let each = (resident()? - before) / IDLE as f64;
    eprintln!("memory per idle vDisk at its owner: {:.0} KiB", each / 1024.0);
    let loads = busy(&cluster, &busy_names)?;
    for (verifier, going) in &loads {
        progress(verifier, going, 3)?;
    }
    all_in_sync(&cluster)?;
    let began = Instant::now();
    lose(&cluster)?;
    let mut busy_again = Figures::default();
    for (verifier, going) in &loads {
        wait_until(LIMIT, "a busy vDisk to go on", || Ok(gone_on(verifier, going)))?;
        busy_again.add(began.elapsed());
    }
    for connection in &mut idle {
        let read = Request { cookie: 1, command: Command::Read, offset: 0, len: 4096, data: &[] };
        connection.submit(&read)?;
    }
    let mut idle_again = Figures::default();
    for (connection, name) in idle.iter_mut().zip(&idle_names) {
        let answer = connection.next(LIMIT).map_err(|silence| anyhow::anyhow!("{silence:?}"))?;
        let data = answer.result.map_err(|code| anyhow::anyhow!("{name}: error {code}"))?;
        ensure!(data.iter().all(|byte| *byte == 0), "{name} isn't empty");
        idle_again.add(began.elapsed());
    }
    let worst = busy_again.say("busy vDisks go on")?.max(idle_again.say("idle vDisks answer")?);
    for (verifier, going) in loads {
        finish(&verifier, going)?;
    }
    ensure!(each < IDLE_BYTES_MAX, "{each:.0} B per idle vDisk");
    ensure!(worst <= FAIL_OVER_MAX, "{worst:?} is longer than {FAIL_OVER_MAX:?}");
    Ok(())
}

/// Kills the router for good: one whose directory is gone isn't started again.
fn lose(cluster: &Cluster) -> anyhow::Result<()> {
    let pid = cluster.pid(FIRST)?.to_string();
    std::fs::rename(cluster.dir().join(FIRST), cluster.scratch("lost"))?;
    Tool::new("kill").args(["-9", &pid]).run().map(drop)
}

/// Whether more was written since this was asked first: what was under way at the kill comes before.
fn gone_on(verifier: &Verifier, going: &Going) -> bool {
    let writes = || Counts::get(&verifier.counts().writes);
    let before = writes();
    let patience = Instant::now() + Duration::from_millis(500);
    while Instant::now() < patience && !going.has_ended() {
        if before + 3 < writes() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    false
}
