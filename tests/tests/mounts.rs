//! Filesystems on vDisks, mounted by the kernel through nbdfuse and a loop device.
//!
//! Invariant: nothing stays mounted, whatever fails.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::ensure;
use holdfast_tests::cluster::{Cluster, Options};
use holdfast_tests::mount::LoopDevice;
use holdfast_tests::steps::Steps;
use holdfast_tests::tool::Tool;

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
