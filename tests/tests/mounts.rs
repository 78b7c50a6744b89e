//! Filesystems on vDisks, mounted by the kernel through nbdfuse and a loop device.
//!
//! Invariant: nothing stays mounted, whatever fails.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use holdfast_tests::cluster::{Cluster, Options, wait_until};
use holdfast_tests::mount::LoopDevice;
use holdfast_tests::owner::{owner, wait_in_sync};
use holdfast_tests::steps::Steps;
use holdfast_tests::tool::Tool;
use serde_json::Value;

const LONG: Duration = Duration::from_secs(600);

/// How to make and check one kind of filesystem.
struct Kind {
    mkfs: &'static [&'static str],
    fsck: &'static [&'static str],
}

const EXT4: Kind = Kind { mkfs: &["mkfs.ext4", "-q", "-F"], fsck: &["fsck.ext4", "-f", "-n"] };
const XFS: Kind = Kind { mkfs: &["mkfs.xfs", "-q", "-f"], fsck: &["xfs_repair", "-n"] };

#[test]
fn filesystems_keep_a_source_tree_and_are_clean() -> anyhow::Result<()> {
    if let Some(missing) = LoopDevice::missing() {
        eprintln!("SKIPPED: {missing}");
        return Ok(());
    }
    let vdisks = vec![("ext4", "2GiB"), ("xfs", "2GiB"), ("huge", "16TiB")];
    let mut cluster = Cluster::start(Options { vdisks, ..Options::default() })?;
    let mut steps = Steps::default();
    steps.step("ext4 keeps a tree", || keeps_a_tree(&cluster, "ext4", &EXT4));
    steps.step("XFS keeps a tree", || keeps_a_tree(&cluster, "xfs", &XFS));
    steps.step("mkfs of 16 TiB takes seconds", || huge(&cluster));
    steps.step("both filesystems are there after a clean restart", || {
        cluster.stop()?;
        cluster.up()?;
        for (name, kind) in [("ext4", &EXT4), ("xfs", &XFS)] {
            let device = LoopDevice::attach(&cluster.uri(name), &cluster.scratch("again"))?;
            is_clean(&device, kind)?;
            let mounted = device.mount(&cluster.scratch("again-fs"))?;
            same(&tree(), &mounted.path().join("tree"))?;
            mounted.unmount()?;
            device.detach()?;
        }
        Ok(())
    });
    steps.done()
}

/// The vDisk's client is the kernel's ext4, which never asks again: one error, and it is read-only.
#[test]
fn a_mounted_filesystem_survives_its_router_and_its_edge() -> anyhow::Result<()> {
    if let Some(missing) = LoopDevice::missing() {
        eprintln!("SKIPPED: {missing}");
        return Ok(());
    }
    let vdisks = vec![("demo", "2GiB"), ("qemu", "64MiB")];
    let cluster = Cluster::start(Options { vdisks, up: Vec::new() })?;
    let dir = cluster.scratch("demo");
    let device = LoopDevice::attach_for_good(&cluster.uri("demo"), &dir)?;
    make(&device, &EXT4)?;
    let mounted = device.mount(&cluster.scratch("fs"))?;
    let mut steps = Steps::default();
    let user = User::default();
    std::thread::scope(|scope| {
        let copying = scope.spawn(|| user.copies(mounted.path()));
        steps.step("its router is killed", || {
            wait_in_sync(&cluster)?;
            let first = owner(&cluster)?;
            cluster.kill9(&first)?;
            user.goes_on()?;
            let second = owner(&cluster)?;
            ensure!(second != first, "{first} still owns it");
            let seen = served(&cluster, "demo")?.context("the vDisk is served")?;
            ensure!(seen["router"] == *second && seen["reconnects"] == 1, "{seen}");
            ensure!(seen["writes"]["bytes"].as_u64() > Some(1 << 20), "{seen}");
            wait_in_sync(&cluster)
        });
        steps.step("its router is drained", || {
            let first = owner(&cluster)?;
            cluster.holdfast(&["router", "drain", &first])?;
            user.goes_on()?;
            ensure!(owner(&cluster)? != first, "{first} still owns it");
            cluster.holdfast(&["router", "resume", &first]).map(drop)
        });
        steps.step("its edge is killed and started again", || {
            cluster.kill9("edge-1")?;
            user.goes_on()
        });
        steps.step("and under qemu", || qemu_goes_on(&cluster));
        steps.step("nothing it read back was wrong", || {
            user.stop.store(true, Ordering::Relaxed);
            copying.join().expect("it ends with a result")
        });
    });
    steps.step("clean, and every file as it was", || {
        mounted.unmount()?;
        device.detach()?;
        // Nothing is read from the page cache of the first device.
        let device = LoopDevice::attach(&cluster.uri("demo"), &dir)?;
        is_clean(&device, &EXT4)?;
        let mounted = device.mount(&cluster.scratch("fs"))?;
        same(&tree(), &mounted.path().join("kept"))?;
        mounted.unmount()?;
        device.detach()
    });
    steps.done()
}

/// qemu connects again, if it is told how long it may take.
fn qemu_goes_on(cluster: &Cluster) -> anyhow::Result<()> {
    let (host, port) = ("server.type=inet,server.host=127.0.0.1", cluster.port());
    let image = format!("driver=nbd,{host},server.port={port},export=qemu,reconnect-delay=60");
    let bench = Tool::new("qemu-img").args(["bench", "-w", "-d", "8", "-c", "30000"]);
    let mut bench = bench.args(["--flush-interval", "32", "--image-opts", &image]).spawn()?;
    // It is attached before the client has its answer, and a client that never was served doesn't come back.
    wait_until(LONG, "qemu's writes", || {
        let seen = served(cluster, "qemu")?;
        Ok(seen.is_some_and(|seen| 0 < seen["writes"]["bytes"].as_u64().unwrap_or(0)))
    })?;
    cluster.kill9("edge-1")?;
    ensure!(!bench.has_ended()?, "qemu ended before the edge did: {}", bench.printed()?);
    let ended = bench.wait(LONG)?;
    ensure!(ended.success(), "{ended}: {}", bench.printed()?);
    Ok(())
}

/// What the edge says of a vDisk, if it has it attached.
fn served(cluster: &Cluster, vdisk: &str) -> anyhow::Result<Option<Value>> {
    let rows = cluster.json(&["edge", "status", "edge-1"])?;
    Ok(rows.as_array().context("a list")?.iter().find(|row| row["name"] == vdisk).cloned())
}

/// Who copies files to a mounted filesystem until told to stop.
#[derive(Default)]
struct User {
    rounds: AtomicU64,
    stop: AtomicBool,
}

impl User {
    fn copies(&self, at: &Path) -> anyhow::Result<()> {
        let copied = self.copies_until_told(at);
        self.stop.store(true, Ordering::Relaxed);
        copied
    }

    fn copies_until_told(&self, at: &Path) -> anyhow::Result<()> {
        let (copy, kept) = (at.join("copy"), at.join("kept"));
        while !self.stop.load(Ordering::Relaxed) {
            Tool::new("cp").arg("-a").arg(tree()).arg(&copy).within(LONG).run()?;
            Tool::new("sync").arg("--file-system").arg(at).within(LONG).run()?;
            Tool::new("rm").arg("-rf").arg(&kept).within(LONG).run()?;
            std::fs::rename(&copy, &kept)?;
            same(&tree(), &kept)?;
            self.rounds.fetch_add(1, Ordering::Relaxed);
        }
        Tool::new("sync").arg("--file-system").arg(at).within(LONG).run().map(drop)
    }

    /// A whole copy that began after this was asked.
    fn goes_on(&self) -> anyhow::Result<()> {
        let before = self.rounds.load(Ordering::Relaxed);
        wait_until(
            LONG,
            "the next copies",
            || Ok(before + 2 <= self.rounds.load(Ordering::Relaxed)),
        )
    }
}

/// A source tree that is always here: this workspace's own documents and code.
fn tree() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates")
}

fn keeps_a_tree(cluster: &Cluster, vdisk: &str, kind: &Kind) -> anyhow::Result<()> {
    let dir = cluster.scratch(vdisk);
    let at = cluster.scratch("fs");
    let device = LoopDevice::attach(&cluster.uri(vdisk), &dir)?;
    make(&device, kind)?;
    let mounted = device.mount(&at)?;
    Tool::new("cp").arg("-a").arg(tree()).arg(at.join("tree")).within(LONG).run()?;
    Tool::new("cp").arg("-a").arg(tree()).arg(at.join("gone")).within(LONG).run()?;
    Tool::new("rm").arg("-r").arg(at.join("gone")).within(LONG).run()?;
    Tool::new("fstrim").arg(&at).within(LONG).outcome()?;
    Tool::new("sync").arg("--file-system").arg(&at).within(LONG).run()?;
    mounted.unmount()?;
    is_clean(&device, kind)?;
    // Another loop device, so nothing is read from the page cache of the first.
    device.detach()?;
    let device = LoopDevice::attach(&cluster.uri(vdisk), &dir)?;
    let mounted = device.mount(&at)?;
    same(&tree(), &at.join("tree"))?;
    ensure!(!at.join("gone").exists(), "what was removed is back");
    mounted.unmount()?;
    is_clean(&device, kind)?;
    device.detach()
}

fn make(device: &LoopDevice, kind: &Kind) -> anyhow::Result<()> {
    Tool::new(kind.mkfs[0]).args(&kind.mkfs[1..]).arg(device.path()).within(LONG).run().map(drop)
}

fn is_clean(device: &LoopDevice, kind: &Kind) -> anyhow::Result<()> {
    Tool::new(kind.fsck[0]).args(&kind.fsck[1..]).arg(device.path()).within(LONG).run().map(drop)
}

fn same(expected: &Path, found: &Path) -> anyhow::Result<()> {
    Tool::new("diff").arg("-r").arg(expected).arg(found).within(LONG).run().map(drop)
}

fn huge(cluster: &Cluster) -> anyhow::Result<()> {
    let device = LoopDevice::attach(&cluster.uri("huge"), &cluster.scratch("huge"))?;
    let began = Instant::now();
    make(&device, &XFS)?;
    let took = began.elapsed();
    eprintln!("mkfs.xfs of 16 TiB took {:.1} s", took.as_secs_f64());
    ensure!(took < Duration::from_secs(90), "mkfs.xfs of 16 TiB took {took:?}");
    let mounted = device.mount(&cluster.scratch("huge-fs"))?;
    std::fs::write(mounted.path().join("file"), "small in a large place")?;
    mounted.unmount()?;
    device.detach()
}
