//! A vDisk's owner is killed, or sleeps, under a verifying load; with a DTL another router goes on.
//!
//! Invariant: the client sees no error, nothing acknowledged is missing (L1), and an owner that slept serves nothing stale
//! and withdraws by itself (L3, P16).

use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use holdfast_tests::cluster::{Cluster, Options, wait_until};
use holdfast_tests::history::Survival;
use holdfast_tests::steps::Steps;
use holdfast_tests::workload::{Counts, Going, Load, Verifier};

const BYTES: u64 = 48 << 20;
const LIMIT: Duration = Duration::from_secs(90);

fn owner(cluster: &Cluster) -> anyhow::Result<String> {
    let shown = cluster.json(&["vdisk", "list"])?;
    let record = shown.as_array().and_then(|list| list.first()).context("a vDisk")?;
    Ok(record["owner"].as_str().context("its owner")?.to_owned())
}

fn wait_in_sync(cluster: &Cluster) -> anyhow::Result<()> {
    wait_until(LIMIT, "a DTL that is in sync", || {
        let shown = cluster.json(&["vdisk", "show", "demo"])?;
        Ok(shown.to_string().contains("in-sync"))
    })
}

fn signal(cluster: &Cluster, router: &str, signal: &str) -> anyhow::Result<()> {
    let pid = cluster.pid(router)?.to_string();
    let sent = Command::new("kill").args([signal, &pid]).status()?;
    ensure!(sent.success(), "{signal} to {router}");
    Ok(())
}

/// Waits for more writes; says how long the first of them took.
fn progress(verifier: &Verifier, going: &Going, more: u64) -> anyhow::Result<Duration> {
    let writes = || Counts::get(&verifier.counts().writes);
    let (start, before) = (Instant::now(), writes());
    let mut first = None;
    while writes() < before + more {
        ensure!(!going.has_ended(), "the load ended");
        ensure!(start.elapsed() < LIMIT, "no progress for {LIMIT:?}");
        if first.is_none() && before < writes() {
            first = Some(start.elapsed());
        }
        thread::sleep(Duration::from_millis(2));
    }
    Ok(first.unwrap_or_else(|| start.elapsed()))
}

fn finish(verifier: &Verifier, going: Going) -> anyhow::Result<()> {
    let ended = going.stop()?;
    ensure!(ended.iter().all(|ended| format!("{ended:?}") == "Stopped"), "{ended:?}");
    let errors = Counts::get(&verifier.counts().errors);
    ensure!(errors == 0, "{errors} requests failed");
    verifier.check(Survival::Alive)
}

/// h_19.
#[test]
fn a_killed_or_sleeping_owner_is_replaced_under_load_and_nothing_is_lost() -> anyhow::Result<()> {
    let options = Options { vdisks: vec![("demo", "1GiB")], up: Vec::new() };
    let cluster = Cluster::start(options.with(&["--no-restart", "--dtl", "sync"]))?;
    let verifier = Verifier::new(cluster.target("demo"), 7, BYTES);
    let mut steps = Steps::default();
    steps.step(
        "an owner that sleeps loses the vDisk, and says nothing stale when it wakes",
        || {
            wait_in_sync(&cluster)?;
            let first = owner(&cluster)?;
            let going = verifier.start(&Load { seed: 1, ..Load::default() })?;
            progress(&verifier, &going, 500)?;
            signal(&cluster, &first, "-STOP")?;
            let pause = progress(&verifier, &going, 1)?;
            eprintln!("SIGSTOP of {first}: I/O again after {pause:?}");
            progress(&verifier, &going, 500)?;
            let second = owner(&cluster)?;
            ensure!(first != second, "{first} still owns it");
            signal(&cluster, &first, "-CONT")?;
            progress(&verifier, &going, 500)?;
            // It is the target now, so it knows that it isn't the owner any more.
            wait_in_sync(&cluster)?;
            ensure!(owner(&cluster)? == second);
            let status = cluster.json(&["router", "list"])?.to_string();
            ensure!(status.matches(r#""session":"alive""#).count() == 2, "{status}");
            finish(&verifier, going)
        },
    );
    steps.step("a killed owner is replaced at once", || {
        let first = owner(&cluster)?;
        let going = verifier.start(&Load { seed: 2, ..Load::default() })?;
        progress(&verifier, &going, 500)?;
        cluster.kill9(&first)?;
        let pause = progress(&verifier, &going, 1)?;
        eprintln!("kill -9 of {first}: I/O again after {pause:?}");
        progress(&verifier, &going, 500)?;
        ensure!(owner(&cluster)? != first);
        finish(&verifier, going)
    });
    steps.done()
}
