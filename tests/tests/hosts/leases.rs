//! An owner that nobody vouches for stops by itself (P16, P17).

use std::fs;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, SystemTime};

use anyhow::{Context, ensure};
use holdfast_tests::cluster::wait_until;
use holdfast_tests::nbd::Connection;
use holdfast_tests::spread::host_of;

use crate::cables::ARAKOONS;
use crate::{FAILOVER_AFTER, Scene};

const LIMIT: Duration = Duration::from_secs(60);
const DAY: f64 = 86_400.0;

/// While not InSync the session alone gives the right to serve: cut from arakoon the owner answers nobody any more before
/// another one claims. A reader that reaches the old owner alone says when that answered last; the log of the next one
/// when it claimed. All of it runs on one machine, by one clock.
pub fn stops_before_another_starts(scene: &Scene) -> anyhow::Result<()> {
    let going = scene.load(61)?;
    let first = scene.owner()?;
    let (home, network) = (host_of(&first), &scene.spread.network);
    let others: Vec<&str> = ["r1", "r2", "r3"].into_iter().filter(|host| *host != home).collect();
    let reader = Connection::open_within(&scene.spread.target(4)?, FAILOVER_AFTER * 5)?;
    for other in &others {
        network.cut("e4", other)?;
        network.cut(&home, other)?;
    }
    wait_until(LIMIT, "an owner without a DTL", || {
        let shown = scene.spread.cluster.json(&["dtl", "list"])?;
        Ok(shown.to_string().contains("degraded"))
    })?;
    ensure!(scene.owner()? == first, "{first} was in good health");
    let (answered, reading) = read_on(reader)?;
    let cut = second_of_day(SystemTime::now())?;
    for arakoon in ARAKOONS {
        network.cut(&home, arakoon)?;
    }
    let moved = wait_until(LIMIT, "another owner", || Ok(scene.owner()? != first));
    let pause = moved.and_then(|()| scene.pause(&going));
    let last = *answered.lock().expect("no reader panics");
    let second = scene.owner();
    for other in &others {
        network.mend("e4", other)?;
        network.mend(&home, other)?;
    }
    for arakoon in ARAKOONS {
        network.mend(&home, arakoon)?;
    }
    let (pause, second) = (pause?, second?);
    let log = fs::read_to_string(scene.spread.cluster.dir().join(&second).join("log"))?;
    let claimed = claimed_at(&log).with_context(|| format!("no claim in the log of {second}"))?;
    let last = second_of_day(last.context("the reader was never answered")?)?;
    let (last, claimed) = (since(cut, last), since(cut, claimed));
    eprintln!(
        "{first} cut from arakoon while degraded: it answered last after {last:.3} s, {second} claimed after \
         {claimed:.3} s; then I/O went on within {pause:?}"
    );
    scene.finish(going)?;
    drop(answered);
    ensure!(reading.join().is_ok(), "the reader panicked");
    ensure!(1.0 < last, "the old owner stopped though its session lived: {last:.3} s");
    ensure!(last < claimed, "the old owner answered when it had been claimed from");
    Ok(())
}

/// The moment of the last answer.
type Answered = Arc<Mutex<Option<SystemTime>>>;

/// Reads on and on, until nobody wants to know or a read fails; a read of an owner that stopped waits.
fn read_on(mut reader: Connection) -> anyhow::Result<(Answered, thread::JoinHandle<()>)> {
    let answered = Answered::default();
    let shared = Arc::downgrade(&answered);
    reader.read(0, 4096).context("the reader reaches the owner")?;
    let reading = thread::spawn(move || {
        while reader.read(0, 4096).is_ok() {
            let Some(shared) = shared.upgrade() else { return };
            *shared.lock().expect("nobody panics") = Some(SystemTime::now());
            thread::sleep(Duration::from_millis(5));
        }
    });
    Ok((answered, reading))
}

fn second_of_day(at: SystemTime) -> anyhow::Result<f64> {
    Ok(at.duration_since(SystemTime::UNIX_EPOCH)?.as_secs_f64() % DAY)
}

/// From one second of a day to a later one, over midnight too.
fn since(before: f64, after: f64) -> f64 {
    let passed = after - before;
    if passed < -DAY / 2.0 { passed + DAY } else { passed }
}

/// The second of the day of the last claim in a log: `2026-11-22T05:41:28.123456Z  WARN …`.
fn claimed_at(log: &str) -> Option<f64> {
    let line = log.lines().rfind(|line| line.contains("claimed from its owner"))?;
    let (_, time) = line.split_whitespace().next()?.split_once('T')?;
    let mut parts = time.trim_end_matches('Z').split(':').map(str::parse::<f64>);
    let mut next = || parts.next()?.ok();
    Some(next()? * 3600.0 + next()? * 60.0 + next()?)
}
