//! Cables cut between some hosts and not others.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::ensure;
use holdfast_tests::nbd::Connection;
use holdfast_tests::owner::wait_in_sync;
use holdfast_tests::spread::host_of;

use crate::{FAILOVER_AFTER, LEEWAY, Scene, ensure_in_time, ensure_short};

pub const ARAKOONS: [&str; 3] = ["k1", "k2", "k3"];
/// More than the TTL of a router's session, and what the leader adds to it.
const SESSION_OVER: Duration = Duration::from_secs(13);

/// Less than a read is tried again for.
const BACKEND_AWAY: Duration = Duration::from_secs(3);
/// How long two edges disagree.
const DISPUTE: Duration = Duration::from_secs(60);

/// P19: the owner lives, others reach it, and one edge doesn't.
pub fn edge_from_owner(scene: &Scene) -> anyhow::Result<()> {
    let going = scene.load(31)?;
    let first = scene.owner()?;
    scene.spread.network.cut("e1", &host_of(&first))?;
    let pause = scene.pause(&going)?;
    eprintln!("edge cut from {first}: I/O again after {pause:?}");
    ensure!(scene.owner()? != first, "{first} still owns it");
    scene.spread.network.mend("e1", &host_of(&first))?;
    scene.finish(going)?;
    ensure_in_time(pause)
}

/// P16: with the DTL InSync the right to serve comes from there.
pub fn owner_from_arakoon(scene: &Scene) -> anyhow::Result<()> {
    let going = scene.load(32)?;
    let first = scene.owner()?;
    let host = host_of(&first);
    for arakoon in ARAKOONS {
        scene.spread.network.cut(&host, arakoon)?;
    }
    let pause = scene.pause_within(&going, SESSION_OVER)?;
    eprintln!("{first} cut from arakoon for {SESSION_OVER:?}: longest pause {pause:?}");
    let still = scene.owner()?;
    for arakoon in ARAKOONS {
        scene.spread.network.mend(&host, arakoon)?;
    }
    scene.finish(going)?;
    ensure!(still == first, "{first} was in good health, and {still} has its vDisk");
    ensure_short(pause)
}

/// P13: the owner says in arakoon that it goes on without, and finds another target.
pub fn owner_from_dtl(scene: &Scene) -> anyhow::Result<()> {
    let going = scene.load(33)?;
    let (first, target) = (scene.owner()?, scene.spread.dtl_target()?);
    scene.spread.network.cut(&host_of(&first), &host_of(&target))?;
    let pause = scene.pause(&going)?;
    eprintln!("{first} cut from its DTL at {target}: longest pause {pause:?}");
    wait_in_sync(&scene.spread.cluster)?;
    let (still, next) = (scene.owner()?, scene.spread.dtl_target()?);
    scene.spread.network.mend(&host_of(&first), &host_of(&target))?;
    scene.finish(going)?;
    ensure!(still == first && next != target, "owner {still}, DTL at {next}");
    ensure!(pause < Duration::from_secs(6), "a pause of {pause:?}");
    Ok(())
}

/// L5: what is only in the backend is waited for, and isn't given as zeroes or an error meanwhile.
pub fn owner_from_backend(scene: &Scene) -> anyhow::Result<()> {
    let going = scene.load(34)?;
    let first = scene.owner()?;
    scene.spread.network.cut(&host_of(&first), "b")?;
    thread::sleep(BACKEND_AWAY);
    scene.spread.network.mend(&host_of(&first), "b")?;
    // A request sent into the cut is sent again by TCP some seconds after its end.
    let pause = scene.pause(&going)?;
    eprintln!(
        "{first} cut from the backend for {BACKEND_AWAY:?}: another {pause:?} until I/O went on"
    );
    scene.finish(going)?;
    ensure!(pause < BACKEND_AWAY * 3, "a pause of {pause:?}");
    Ok(())
}

/// What the edge sends doesn't arrive.
pub fn to_the_owner(scene: &Scene) -> anyhow::Result<()> {
    one_way(scene, 35, Way::ToOwner)
}

/// What the owner answers doesn't arrive.
pub fn from_the_owner(scene: &Scene) -> anyhow::Result<()> {
    one_way(scene, 36, Way::FromOwner)
}

#[derive(Clone, Copy)]
enum Way {
    ToOwner,
    FromOwner,
}

fn one_way(scene: &Scene, seed: u64, way: Way) -> anyhow::Result<()> {
    let going = scene.load(seed)?;
    let first = scene.owner()?;
    let host = host_of(&first);
    let (from, to) = match way {
        Way::ToOwner => ("e1", host.as_str()),
        Way::FromOwner => (host.as_str(), "e1"),
    };
    scene.spread.network.cut_one_way(from, to)?;
    let pause = scene.pause(&going)?;
    eprintln!("cut from {from} to {to}: I/O again after {pause:?}");
    let second = scene.owner()?;
    scene.spread.network.mend_one_way(from, to)?;
    scene.finish(going)?;
    ensure!(second != first, "{first} still owns it");
    // An earlier contest may hold it where it was for a while.
    ensure!(pause < FAILOVER_AFTER + LEEWAY + Duration::from_secs(20), "{pause:?}");
    Ok(())
}

/// Cuts too short for fail-over: nothing moves, nothing is lost.
pub fn flapping(scene: &Scene) -> anyhow::Result<()> {
    let going = scene.load(37)?;
    let first = scene.owner()?;
    let start = Instant::now();
    for _ in 0..10 {
        scene.spread.network.cut("e1", &host_of(&first))?;
        thread::sleep(Duration::from_secs(1));
        scene.spread.network.mend("e1", &host_of(&first))?;
        scene.pause(&going)?;
        thread::sleep(Duration::from_secs(4));
    }
    eprintln!("ten cuts in {:?}, owner {first} and then {}", start.elapsed(), scene.owner()?);
    scene.finish(going)
}

/// P16: InSync, the owner serves on while arakoon has no majority; with one, nobody notices.
pub fn arakoon_nodes(scene: &Scene, away: usize) -> anyhow::Result<()> {
    let going = scene.load(38)?;
    let first = scene.owner()?;
    for arakoon in &ARAKOONS[..away] {
        scene.spread.network.unplug(arakoon)?;
    }
    let pause = scene.pause_within(&going, SESSION_OVER)?;
    eprintln!("{away} of 3 arakoon nodes away for {SESSION_OVER:?}: longest pause {pause:?}");
    for arakoon in &ARAKOONS[..away] {
        scene.spread.network.plug(arakoon)?;
    }
    scene.pause(&going)?;
    ensure!(scene.owner()? == first, "a vDisk moved for nothing");
    scene.finish(going)?;
    ensure_short(pause)
}

/// P19: a writer reaches one router only and a reader the other ones: the vDisk moves ever more seldom.
pub fn edges_that_disagree(scene: &Scene) -> anyhow::Result<()> {
    let going = scene.load(39)?;
    let home = host_of(&scene.owner()?);
    let others: Vec<&str> = ["r1", "r2", "r3"].into_iter().filter(|host| *host != home).collect();
    let reader = Connection::open_within(&scene.spread.target(4)?, FAILOVER_AFTER * 5)?;
    let stop = Arc::new(AtomicBool::new(false));
    let reading = thread::spawn({
        let (stop, mut reader) = (Arc::clone(&stop), reader);
        move || -> anyhow::Result<()> {
            while !stop.load(Ordering::Relaxed) {
                reader.read(0, 4096)?;
                thread::sleep(Duration::from_millis(10));
            }
            Ok(())
        }
    });
    for other in &others {
        scene.spread.network.cut("e1", other)?;
    }
    scene.spread.network.cut("e4", &home)?;
    let (start, mut moves, mut owner) = (Instant::now(), 0, scene.owner()?);
    while start.elapsed() < DISPUTE {
        let now = scene.owner()?;
        moves += u32::from(now != owner);
        owner = now;
        thread::sleep(Duration::from_millis(200));
    }
    for other in &others {
        scene.spread.network.mend("e1", other)?;
    }
    scene.spread.network.mend("e4", &home)?;
    stop.store(true, Ordering::Relaxed);
    scene.pause(&going)?;
    let read = reading.join().map_err(|_| anyhow::anyhow!("the reader panicked"))?;
    eprintln!(
        "two edges that disagree for {DISPUTE:?}: {moves} moves; the reader ended with {read:?}"
    );
    scene.finish(going)?;
    ensure!((1..=5).contains(&moves), "{moves} moves");
    read
}
