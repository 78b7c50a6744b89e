//! kill -9 under a verifying load: of everything at once, and of each role alone while the load goes on.
//!
//! Invariant: the seed of every random moment is printed.

use std::collections::BTreeSet;
use std::thread;
use std::time::Duration;

use anyhow::{Context, ensure};
use holdfast_tests::cluster::{Cluster, Options, wait_until};
use holdfast_tests::history::Survival;
use holdfast_tests::soak;
use holdfast_tests::steps::Steps;
use holdfast_tests::workload::{Counts, Ended, Load, Verifier};
use sim::Random;

const BYTES: u64 = 48 << 20;
const RESTART_LIMIT: Duration = Duration::from_secs(60);

fn seed() -> u64 {
    let seed = std::env::var("HOLDFAST_SEED").ok().and_then(|text| text.parse().ok());
    let seed = seed.unwrap_or_else(|| u64::from(std::process::id()));
    eprintln!("random moments of seed {seed}; again with HOLDFAST_SEED={seed}");
    seed
}

#[test]
fn every_flushed_block_and_the_order_survive_a_kill_of_all_processes() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(Options::default())?;
    let mut random = Random::new(seed());
    let verifier = Verifier::new(cluster.target("demo"), random.u64(), BYTES);
    for round in 0..if soak() { 20 } else { 3 } {
        let load = Load { seed: random.u64(), ..Load::default() };
        let going = verifier.start(&load)?;
        let moment = random.duration(&(Duration::from_millis(200)..=Duration::from_secs(4)));
        thread::sleep(moment);
        cluster.kill_all9()?;
        let ended = going.wait()?;
        ensure!(ended.iter().all(|ended| matches!(ended, Ended::Lost(_))), "{ended:?}");
        let operations = verifier.operations();
        ensure!(0 < operations, "the kill came before the load");
        cluster.up()?;
        let judged = verifier.check(Survival::Crash);
        judged.with_context(|| format!("round {round}, killed after {moment:?}"))?;
        eprintln!(
            "round {round}: killed after {moment:?} and {operations} operations: as it must be"
        );
    }
    // What was judged stays: a clean stop and start changes nothing.
    verifier.flush()?;
    cluster.stop()?;
    cluster.up()?;
    verifier.check(Survival::Alive)
}

#[test]
fn a_kill_of_each_role_alone_loses_nothing_and_the_load_goes_on() -> anyhow::Result<()> {
    let cluster = Cluster::start(Options::default())?;
    let mut random = Random::new(seed());
    let verifier = Verifier::new(cluster.target("demo"), random.u64(), BYTES);
    let mut steps = Steps::default();
    for role in ["asd", "alba-proxy", "arakoon", "router"] {
        for id in victims(&cluster, role)? {
            let load = Load { seed: random.u64(), ..Load::default() };
            let name = format!("the load goes on through a kill of {id}");
            steps.step(&name, || goes_on(&cluster, &verifier, &id, &load));
        }
    }
    let load = Load { seed: random.u64(), ..Load::default() };
    steps
        .step("a kill of the edge loses nothing acknowledged", || edge(&cluster, &verifier, &load));
    steps.done()
}

/// The first of a role, or all where it matters which: a leader, an owner.
fn victims(cluster: &Cluster, role: &str) -> anyhow::Result<Vec<String>> {
    let mut ids = cluster.ids(role)?;
    if role == "asd" || role == "alba-proxy" {
        ids.truncate(1);
    }
    Ok(ids)
}

fn goes_on(cluster: &Cluster, verifier: &Verifier, id: &str, load: &Load) -> anyhow::Result<()> {
    let going = verifier.start(load)?;
    thread::sleep(Duration::from_millis(700));
    let old = cluster.pid(id)?;
    let before = Counts::get(&verifier.counts().writes);
    cluster.kill9(id)?;
    wait_until(RESTART_LIMIT, "a new process", || Ok(cluster.pid(id)? != old))?;
    // The load must make progress again, not only survive.
    wait_until(RESTART_LIMIT, "progress of the load", || {
        Ok(going.has_ended() || before + 1500 < Counts::get(&verifier.counts().writes))
    })?;
    let ended: BTreeSet<String> = going.stop()?.iter().map(|ended| format!("{ended:?}")).collect();
    ensure!(ended == BTreeSet::from(["Stopped".to_owned()]), "{ended:?}");
    let errors = Counts::get(&verifier.counts().errors);
    ensure!(errors == 0, "{errors} requests failed");
    verifier.check(Survival::Alive)
}

/// With the edge the connections go. What it had acknowledged is in the routers' logs.
fn edge(cluster: &Cluster, verifier: &Verifier, load: &Load) -> anyhow::Result<()> {
    let going = verifier.start(load)?;
    thread::sleep(Duration::from_millis(1500));
    let old = cluster.pid("edge-1")?;
    cluster.kill9("edge-1")?;
    let ended = going.wait()?;
    ensure!(ended.iter().all(|ended| matches!(ended, Ended::Lost(_))), "{ended:?}");
    wait_until(RESTART_LIMIT, "a new edge", || Ok(cluster.pid("edge-1")? != old))?;
    verifier.check(Survival::Alive)
}
