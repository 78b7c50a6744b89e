//! Many vDisks on one router: drained away, and idle.

use std::time::Duration;

use anyhow::{Context, ensure};
use holdfast_tests::cluster::{Cluster, Options, wait_until};
use holdfast_tests::measure::Group;
use holdfast_tests::nbd::Connection;
use holdfast_tests::owner::{finish, progress};
use holdfast_tests::workload::{Going, Load, Verifier};

use crate::{Figures, configure, timed};

const BUSY: usize = 50;
const IDLE: usize = 1000;
const BYTES: u64 = 1 << 20;
const LIMIT: Duration = Duration::from_secs(120);
const IDLE_BYTES_MAX: f64 = 1_048_576.0;
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

pub fn idle() -> anyhow::Result<()> {
    let cluster = start()?;
    let resident = || -> anyhow::Result<f64> {
        let group = Group::of([("router".to_owned(), cluster.pid(FIRST)?)]);
        group.memory().get("router").copied().context("its memory")
    };
    let idle_names = names("idle", IDLE);
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
    ensure!(each < IDLE_BYTES_MAX, "{each:.0} B per idle vDisk");
    Ok(())
}
