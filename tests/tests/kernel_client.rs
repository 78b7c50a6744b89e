//! The kernel's own NBD client: an ext4 on it, in an emulated machine (`scripts/kernel-client`), doesn't notice who serves
//! it. It never asks again: one error, and it is read-only.
//!
//! Long runs only: the first fetches Debian's kernel and an emulator.

use std::path::Path;
use std::time::Duration;

use anyhow::ensure;
use holdfast_tests::cluster::{Cluster, Options, free_port, wait_until};
use holdfast_tests::owner::{owner, wait_in_sync};
use holdfast_tests::soak;
use holdfast_tests::tool::{Running, Tool};

const LONG: Duration = Duration::from_secs(600);
/// Files written and synced between two events.
const ROUNDS: usize = 20;

struct Machine {
    running: Running,
    stop: std::path::PathBuf,
}

impl Machine {
    fn boot(cluster: &Cluster, port: u16) -> anyhow::Result<Self> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/kernel-client");
        let stop = cluster.scratch("machine").join("stop");
        let running = Tool::new(script)
            .args(["--until".as_ref(), stop.as_os_str()])
            .args([&port.to_string(), "demo"])
            .spawn()?;
        Ok(Self { running, stop })
    }

    fn rounds(&mut self) -> anyhow::Result<usize> {
        let ended = self.running.has_ended()?;
        let printed = self.running.everything_printed()?;
        ensure!(!ended, "the machine ended: {printed}");
        Ok(printed.lines().filter(|line| line.starts_with("round ")).count())
    }

    /// Files written and synced after this was asked.
    fn goes_on(&mut self) -> anyhow::Result<()> {
        let before = self.rounds()?;
        wait_until(LONG, "the machine to write on", || Ok(before + ROUNDS <= self.rounds()?))
    }

    /// It compares what it wrote, through a new mount.
    fn stop(mut self) -> anyhow::Result<()> {
        std::fs::create_dir_all(self.stop.parent().expect("a directory of the cluster's"))?;
        std::fs::write(&self.stop, "")?;
        let ended = self.running.wait(LONG)?;
        ensure!(ended.success(), "{ended}: {}", self.running.printed()?);
        Ok(())
    }
}

#[test]
fn an_ext4_of_the_kernels_client_survives_a_router_kill_and_a_drain() -> anyhow::Result<()> {
    if !soak() {
        eprintln!("SKIPPED: only in long runs (HOLDFAST_SOAK=1)");
        return Ok(());
    }
    let cluster = Cluster::start(Options { vdisks: vec![("demo", "512MiB")], up: Vec::new() })?;
    let mut machine = Machine::boot(&cluster, cluster.port())?;
    machine.goes_on()?;
    wait_in_sync(&cluster)?;
    let first = owner(&cluster)?;
    cluster.kill9(&first)?;
    machine.goes_on()?;
    let second = owner(&cluster)?;
    ensure!(second != first, "{first} still owns it");
    wait_in_sync(&cluster)?;
    cluster.holdfast(&["router", "drain", &second])?;
    machine.goes_on()?;
    ensure!(owner(&cluster)? != second, "{second} still owns it");
    machine.stop()
}

/// nbd-client has no way to let requests wait for the next connection; nbdkit's retry filter does (docs/operations/clients.md).
#[test]
fn an_ext4_of_the_kernels_client_behind_nbdkit_survives_an_edge_restart() -> anyhow::Result<()> {
    if !soak() {
        eprintln!("SKIPPED: only in long runs (HOLDFAST_SOAK=1)");
        return Ok(());
    }
    let cluster = Cluster::start(Options { vdisks: vec![("demo", "512MiB")], up: Vec::new() })?;
    let (port, uri) = (free_port()?, format!("uri={}", cluster.uri("demo")));
    let at = port.to_string();
    let listen = ["--foreground", "-i", "127.0.0.1", "-p", &at, "--filter=retry", "nbd", &uri];
    let retry = ["retry=60", "retries=60", "retry-delay=1", "retry-exponential=no"];
    let mut nbdkit = Tool::new("nbdkit").args(listen).args(retry).spawn()?;
    let mut machine = Machine::boot(&cluster, port)?;
    machine.goes_on()?;
    cluster.kill9("edge-1")?;
    machine.goes_on()?;
    wait_in_sync(&cluster)?;
    cluster.kill9(&owner(&cluster)?)?;
    machine.goes_on()?;
    machine.stop()?;
    ensure!(!nbdkit.has_ended()?, "nbdkit ended: {}", nbdkit.printed()?);
    Ok(())
}
