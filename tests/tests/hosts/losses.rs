//! Owners that sleep, hang or are lost, alone or together with others.

use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, ensure};
use holdfast_tests::cluster::is_installed;
use holdfast_tests::history::Survival;
use holdfast_tests::owner::{signal, wait_in_sync};
use holdfast_tests::spread::host_of;

use crate::{Scene, ensure_in_time};

pub fn sleeping_owner(scene: &Scene) -> anyhow::Result<()> {
    let going = scene.load(41)?;
    let first = scene.owner()?;
    signal(&scene.spread.cluster, &first, "-STOP")?;
    let pause = scene.pause(&going);
    let second = scene.owner();
    signal(&scene.spread.cluster, &first, "-CONT")?;
    let (pause, second) = (pause?, second?);
    eprintln!("SIGSTOP of {first}: I/O again after {pause:?}");
    ensure!(second != first, "{first} still owns it");
    scene.pause(&going)?;
    wait_in_sync(&scene.spread.cluster)?;
    scene.finish(going)?;
    ensure_in_time(pause)
}

/// P19: every sync of the owner's log hangs; its heartbeats, pings and the DTL go on.
pub fn hanging_log(scene: &Scene) -> anyhow::Result<()> {
    if !is_installed("strace") {
        eprintln!("SKIPPED: strace is not installed");
        return Ok(());
    }
    let going = scene.load(42)?;
    let first = scene.owner()?;
    let pid = scene.spread.cluster.pid(&first)?.to_string();
    let hang = "inject=fdatasync,fsync:delay_enter=60000000";
    let mut strace = Command::new("strace")
        .args([
            "-f",
            "-q",
            "-o",
            "/dev/null",
            "-e",
            "trace=fdatasync,fsync",
            "-e",
            hang,
            "-p",
            &pid,
        ])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("start strace")?;
    let pause = scene.pause_within(&going, Duration::from_secs(20));
    let second = scene.owner();
    strace.kill()?;
    strace.wait()?;
    let second = second?;
    eprintln!(
        "{first}'s log disk hangs: {second} owns the vDisk, longest pause of writes {:?}",
        pause?
    );
    ensure!(second != first, "{first} still owns it");
    scene.finish(going)
}

/// L7: nobody has what was promised, so nobody serves; once one of them is back, all is there.
pub fn owner_and_dtl(scene: &Scene) -> anyhow::Result<()> {
    let going = scene.load(43)?;
    let (first, target) = (scene.owner()?, scene.spread.dtl_target()?);
    for router in [&first, &target] {
        scene.spread.network.unplug(&host_of(router))?;
    }
    thread::sleep(Duration::from_secs(20));
    let stays = scene.owner()?;
    scene.spread.network.plug(&host_of(&target))?;
    let pause = scene.pause(&going)?;
    eprintln!("{first} and its DTL at {target} away: {stays} kept it; I/O again after {pause:?}");
    scene.spread.network.plug(&host_of(&first))?;
    ensure!(stays == first, "{stays} took a vDisk that it couldn't recover");
    scene.finish(going)
}

/// L2: what was flushed is there, for whoever comes next.
pub fn owner_and_edge(scene: &Scene) -> anyhow::Result<()> {
    wait_in_sync(&scene.spread.cluster)?;
    let going = scene.load(44)?;
    let first = scene.owner()?;
    scene.spread.cluster.kill9(&first)?;
    scene.spread.cluster.kill_edge();
    // Its connections end with the edge.
    drop(going.stop());
    let later = scene.verifier.moved(scene.spread.target(3)?);
    later.check(Survival::Crash)?;
    ensure!(scene.owner()? != first, "{first} still owns it");
    Ok(())
}
