//! Who owns a vDisk, and how its users fare while that changes.

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use crate::cluster::{Cluster, wait_until};
use crate::history::Survival;
use crate::workload::{Counts, Going, Verifier};

/// Longer than this nothing takes on a busy machine.
const LIMIT: Duration = Duration::from_secs(90);

/// The router that owns the first vDisk, by its record.
pub fn owner(cluster: &Cluster) -> anyhow::Result<String> {
    let shown = cluster.json(&["vdisk", "list"])?;
    let record = shown.as_array().and_then(|list| list.first()).context("a vDisk")?;
    Ok(record["owner"].as_str().context("its owner")?.to_owned())
}

/// Waits until what its owner acknowledges is at two places.
pub fn wait_in_sync(cluster: &Cluster) -> anyhow::Result<()> {
    wait_until(LIMIT, "a DTL that is in sync", || {
        let shown = cluster.json(&["vdisk", "show", "demo"])?;
        Ok(shown.to_string().contains("in-sync"))
    })
}

/// Sends a process a signal: `-STOP`, `-CONT`.
pub fn signal(cluster: &Cluster, router: &str, signal: &str) -> anyhow::Result<()> {
    let pid = cluster.pid(router)?.to_string();
    let sent = Command::new("kill").args([signal, &pid]).status()?;
    ensure!(sent.success(), "{signal} to {router}");
    Ok(())
}

/// Waits for more writes; says what their longest pause was. Those under way when something breaks come before it.
pub fn progress(verifier: &Verifier, going: &Going, more: u64) -> anyhow::Result<Duration> {
    let writes = || Counts::get(&verifier.counts().writes);
    let (start, before) = (Instant::now(), writes());
    let (mut known, mut since, mut longest) = (before, start, Duration::ZERO);
    while known < before + more {
        ensure!(!going.has_ended(), "the load ended");
        ensure!(start.elapsed() < LIMIT, "no progress for {LIMIT:?}");
        thread::sleep(Duration::from_millis(2));
        let now = writes();
        longest = longest.max(since.elapsed());
        if known < now {
            (known, since) = (now, Instant::now());
        }
    }
    Ok(longest)
}

/// Does something while writes go on; says what their longest pause was, from before it until so many writes behind it.
pub fn pause_around(
    verifier: &Verifier,
    going: &Going,
    more: u64,
    act: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<Duration> {
    let acted = AtomicBool::new(false);
    thread::scope(|scope| {
        let watching = scope.spawn(|| -> anyhow::Result<Duration> {
            let mut longest = Duration::ZERO;
            while !acted.load(Ordering::Acquire) {
                longest = longest.max(progress(verifier, going, 1)?);
            }
            Ok(longest.max(progress(verifier, going, more)?))
        });
        let outcome = act();
        acted.store(true, Ordering::Release);
        let watched = watching.join().map_err(|_| anyhow::anyhow!("the watch panicked"))?;
        outcome.and(watched)
    })
}

/// Ends the load; demands that nobody saw an error and nothing is missing.
pub fn finish(verifier: &Verifier, going: Going) -> anyhow::Result<()> {
    let ended = going.stop()?;
    ensure!(ended.iter().all(|ended| format!("{ended:?}") == "Stopped"), "{ended:?}");
    let errors = Counts::get(&verifier.counts().errors);
    ensure!(errors == 0, "{errors} requests failed");
    verifier.check(Survival::Alive)
}
