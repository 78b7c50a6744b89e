//! Lost disks: two of six cost nothing, a third costs only what it holds, and only while it is away.
//!
//! Invariant: what can't be read is an error and an alarm, never zeroes.

use std::fs;
use std::time::Duration;

use anyhow::{Context, ensure};
use holdfast_tests::cluster::{Cluster, Options, plain_holdfast, wait_until};
use holdfast_tests::pattern::Pattern;
use holdfast_tests::tool::Running;
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(60);
const FIRST: Pattern = Pattern { seed: 1, offset: 0, mib: 24 };
const SECOND: Pattern = Pattern { seed: 2, offset: 128 << 20, mib: 12 };
const THIRD: Pattern = Pattern { seed: 3, offset: 256 << 20, mib: 8 };

#[test]
fn two_lost_disks_cost_nothing_and_a_third_only_while_it_is_away() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(Options::default().with(&["--no-restart"]))?;
    let target = cluster.target("demo");
    FIRST.write(&target)?;
    cluster.holdfast(&["vdisk", "sync", "demo"])?;
    let backend = backend(&cluster)?;
    ensure!(backend["holes"] == 0, "holes after sync: {backend:#}");
    ensure!(is_policy(&backend, "4,2,5,1"), "{backend:#}");

    for id in ["asd-1", "asd-2"] {
        cluster.kill9(id)?;
        fs::remove_dir_all(cluster.dir().join(id)).context("delete a disk")?;
    }
    FIRST.check(&target).context("read with two disks lost")?;
    SECOND.write(&target).context("write with two disks lost")?;
    cluster.holdfast(&["vdisk", "sync", "demo"])?;
    cluster
        .wait_for(LIMIT, "the second policy", |status| is_policy(&status["backend"], "2,2,3,1"))?;
    SECOND.check(&target)?;

    // All processes anew, so nothing is answered from memory.
    cluster.stop()?;
    cluster.up().context("start with two disks lost")?;
    FIRST.check(&target).context("read after a restart with two disks lost")?;
    SECOND.check(&target)?;
    THIRD.write(&target).context("write after a restart with two disks lost")?;
    cluster.holdfast(&["vdisk", "sync", "demo"])?;

    cluster.stop()?;
    cluster.up()?;
    cluster.kill9("asd-3")?;
    // A piece of each object: the edge tries for some seconds before it gives up on a read.
    let (good, failed) = FIRST.readable(&target, 4)?;
    eprintln!("with three disks lost {good} pieces are read, {failed} are errors");
    ensure!(0 < failed, "three of six disks are lost, and everything is read");
    cluster.wait_for(LIMIT, "an alarm that names what is lost", |status| {
        let backend = &status["backend"];
        0 < backend["lost_objects"].as_u64().unwrap_or(0)
            && backend["alarms"].as_array().is_some_and(|alarms| !alarms.is_empty())
            && backend["health"] == "unavailable"
    })?;
    SECOND.check(&target).context("objects of the second policy need only two disks")?;

    let _third = start_again(&cluster, "asd-3")?;
    wait_until(LIMIT, "everything to be read again", || Ok(FIRST.readable(&target, 4)?.1 == 0))?;
    FIRST.check(&target)?;
    SECOND.check(&target)?;
    THIRD.check(&target)?;
    cluster.wait_for(LIMIT, "the alarm to end", |status| status["backend"]["lost_objects"] == 0)?;
    Ok(())
}

/// As an operator starts one role.
fn start_again(cluster: &Cluster, id: &str) -> anyhow::Result<Running> {
    let config = cluster.dir().join(id).join("config.toml");
    plain_holdfast(&["asd", "--config"]).arg(config).spawn()
}

fn backend(cluster: &Cluster) -> anyhow::Result<Value> {
    Ok(cluster.status()?["backend"].clone())
}

/// `(2,2,3,1)`, `2,2,3,1@disk` and `2,2,3,1` are one policy.
fn is_policy(backend: &Value, wanted: &str) -> bool {
    let active = backend["active_policy"].as_str().unwrap_or("");
    let bare = active.split('@').next().unwrap_or("").replace([' ', '(', ')'], "");
    bare == wanted
}
