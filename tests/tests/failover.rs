//! A vDisk's owner is killed, or sleeps, under a verifying load; with the DTL that clusters have unless told otherwise,
//! another router goes on.
//!
//! Invariant: the client sees no error, nothing acknowledged is missing (L1), and an owner that slept serves nothing stale
//! and withdraws by itself (L3, P16).

use std::time::Duration;

use anyhow::ensure;
use holdfast_tests::cluster::{Cluster, Options};
use holdfast_tests::owner::{finish, owner, progress, signal, wait_in_sync};
use holdfast_tests::steps::Steps;
use holdfast_tests::workload::{Load, Verifier};

const BYTES: u64 = 48 << 20;
/// `failover_after` of an edge that says nothing else.
const FAILOVER_AFTER: Duration = Duration::from_secs(15);
/// What may come on top of it: noticing, claiming, recovering.
const LEEWAY: Duration = Duration::from_millis(1500);

/// h_19.
#[test]
fn a_killed_or_sleeping_owner_is_replaced_under_load_and_nothing_is_lost() -> anyhow::Result<()> {
    let options = Options { vdisks: vec![("demo", "1GiB")], up: Vec::new() };
    let cluster = Cluster::start(options.with(&["--no-restart"]))?;
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
            let pause = progress(&verifier, &going, 500)?;
            eprintln!("SIGSTOP of {first}: I/O again after {pause:?}");
            let range = FAILOVER_AFTER.saturating_sub(LEEWAY)..FAILOVER_AFTER + LEEWAY;
            ensure!(range.contains(&pause), "{pause:?} isn't within {range:?}");
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
        let pause = progress(&verifier, &going, 500)?;
        eprintln!("kill -9 of {first}: I/O again after {pause:?}");
        ensure!(owner(&cluster)? != first);
        finish(&verifier, going)
    });
    steps.done()
}
