//! Damaged, spied on, and half deleted: bytes on the disks below.
//!
//! Invariant: a byte that was changed behind our back is never returned to a user.

use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use holdfast_tests::cluster::{Cluster, Options, wait_until};
use holdfast_tests::nbd::Connection;
use holdfast_tests::pattern::Pattern;
use holdfast_tests::steps::Steps;

const LIMIT: Duration = Duration::from_secs(60);
const DATA: Pattern = Pattern { seed: 5, offset: 0, mib: 48 };
const MARKER: &[u8] = b"a-known-plaintext-that-must-not-be-found";
/// What is looked at at once in a file.
const WINDOW: usize = 1 << 20;

#[test]
fn damage_is_found_and_a_page_map_comes_back_from_the_backend() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(Options::default())?;
    let mut steps = Steps::default();
    DATA.write(&cluster.target("demo"))?;
    cluster.holdfast(&["vdisk", "sync", "demo"])?;
    steps.step("damaged fragments are found, served from parity, counted", || damage(&mut cluster));
    steps.step("a deleted page map is rebuilt from TLogs alone", || rebuild(&mut cluster));
    steps.step("and from a checkpoint, where there is one", || checkpoint(&mut cluster));
    steps.done()
}

fn damage(cluster: &mut Cluster) -> anyhow::Result<()> {
    let target = cluster.target("demo");
    // Everything stops, so nothing that was read before hides the damage in a cache.
    cluster.stop()?;
    let flipped = flip_bytes(&cluster.dir().join("asd-1"))?;
    ensure!(0 < flipped, "asd-1 holds no fragments");
    eprintln!("flipped {flipped} bytes of asd-1");
    cluster.up()?;
    DATA.check(&target).context("read over damaged fragments")?;
    let status = cluster.wait_for(LIMIT, "damage to be counted", |status| {
        0 < status["backend"]["corrupt_fragments"].as_u64().unwrap_or(0)
    })?;
    ensure!(status["backend"]["lost_objects"] == 0, "{status:#}");
    DATA.check(&target)
}

/// A byte in the middle of every 256 KiB of fragments; how many.
fn flip_bytes(dir: &Path) -> anyhow::Result<u64> {
    const STEP: u64 = 256 << 10;
    let mut flipped = 0;
    for path in files(&dir.join("data").join("segments"))? {
        let file = OpenOptions::new().read(true).write(true).open(&path)?;
        let len = file.metadata()?.len();
        for offset in (STEP / 2..len).step_by(usize::try_from(STEP)?) {
            let mut around = [0; 64];
            file.read_at(&mut around, offset)?;
            // Preallocated and never written: nobody would read it.
            if around.iter().all(|byte| *byte == 0) {
                continue;
            }
            file.write_all_at(&[around[0] ^ 0x40], offset)?;
            flipped += 1;
        }
    }
    Ok(flipped)
}

fn rebuild(cluster: &mut Cluster) -> anyhow::Result<()> {
    let target = cluster.target("demo");
    // Changes on top, so the map is made of more than one generation of writes.
    let over = Pattern { seed: 6, offset: 8 << 20, mib: 8 };
    over.write(&target)?;
    let mut connection = Connection::open(&target)?;
    connection.call(holdfast_tests::nbd::Command::Trim, 20 << 20, 1 << 20, &[])?;
    drop(connection);
    cluster.holdfast(&["vdisk", "sync", "demo"])?;
    cluster.stop()?;
    delete_maps(cluster)?;
    cluster.up().context("start without page maps")?;
    over.check(&target)?;
    DATA.check_except(&target, &[8..16, 20..21])?;
    let mut connection = Connection::open(&target)?;
    let trimmed = connection.read(20 << 20, 1 << 20)?;
    ensure!(trimmed.iter().all(|byte| *byte == 0), "a trim was undone");
    Ok(())
}

fn delete_maps(cluster: &Cluster) -> anyhow::Result<()> {
    let mut deleted = 0;
    for id in cluster.ids("router")? {
        let map = cluster.dir().join(id).join("data").join("map");
        if map.exists() {
            fs::remove_dir_all(&map)?;
            deleted += 1;
        }
    }
    ensure!(0 < deleted, "no router has a page map");
    Ok(())
}

fn checkpoint(cluster: &mut Cluster) -> anyhow::Result<()> {
    let target = cluster.target("demo");
    cluster.stop()?;
    for id in cluster.ids("router")? {
        let file = cluster.dir().join(id).join("config.toml");
        let before = fs::read_to_string(&file)?;
        fs::write(&file, format!("map_checkpoint_every = 4\n{before}"))?;
    }
    cluster.up()?;
    DATA.write(&target)?;
    cluster.holdfast(&["vdisk", "sync", "demo"])?;
    let shown = || cluster.json(&["vdisk", "show", "demo"]);
    wait_until(LIMIT, "a checkpoint", || Ok(shown()?["details"]["checkpoint"]["sco"].is_u64()))?;
    let listed = cluster.json(&["mds", "list"])?;
    let mut rows = listed.as_array().into_iter().flatten();
    ensure!(rows.any(|row| row["checkpoint_lsn"].is_u64()), "{listed:#}");
    cluster.stop()?;
    delete_maps(cluster)?;
    cluster.up().context("start without page maps, but with a checkpoint")?;
    DATA.check(&target)?;
    let events = cluster.holdfast(&["events", "--json"])?;
    ensure!(events.contains("map-fetched"), "it was rebuilt: {events}");
    Ok(())
}

#[test]
fn a_known_plaintext_is_on_no_disk() -> anyhow::Result<()> {
    let mut steps = Steps::default();
    for compression in ["adaptive", "always", "off"] {
        steps.step(&format!("compression {compression}"), || secrecy(compression));
    }
    steps.done()
}

fn secrecy(compression: &str) -> anyhow::Result<()> {
    let small = ["--arakoons", "1", "--asds", "3", "--proxies", "1", "--routers", "1"];
    let options = Options::default().with(&small).with(&["--policy", "2,1,3,1"]);
    let mut cluster = Cluster::start(options.with(&["--compression", compression]))?;
    let mut connection = Connection::open(&cluster.target("demo"))?;
    let text: Vec<u8> = MARKER.iter().copied().cycle().take(1 << 20).collect();
    for mib in 0..12_u64 {
        connection.write(mib << 20, &text)?;
    }
    connection.flush()?;
    drop(connection);
    cluster.holdfast(&["vdisk", "sync", "demo"])?;
    cluster.stop()?;
    let mut searched = 0;
    for id in cluster.ids("asd")? {
        for file in files(&cluster.dir().join(id))? {
            searched += fs::metadata(&file)?.len();
            ensure!(!contains(&file, MARKER)?, "the plaintext is in {}", file.display());
        }
    }
    ensure!(1 << 20 < searched, "only {searched} bytes were searched");
    Ok(())
}

/// All files below a directory.
fn files(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("read {}", dir.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.extend(files(&entry.path())?);
        } else if entry.file_type()?.is_file() {
            found.push(entry.path());
        }
    }
    Ok(found)
}

fn contains(path: &Path, wanted: &[u8]) -> anyhow::Result<bool> {
    let mut file = File::open(path)?;
    let mut window = Vec::new();
    loop {
        // The end of the last window stays, so nothing hides across a border.
        let keep = window.len().min(wanted.len() - 1);
        window.drain(..window.len() - keep);
        let read = file.by_ref().take(WINDOW as u64).read_to_end(&mut window)?;
        if window.windows(wanted.len()).any(|part| part == wanted) {
            return Ok(true);
        }
        if read == 0 {
            return Ok(false);
        }
    }
}

#[test]
fn a_marker_across_a_window_is_found() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("file");
    for at in [0, WINDOW - 5, WINDOW, 3 * WINDOW - 1] {
        let mut bytes = vec![7; 3 * WINDOW + 100];
        bytes[at..at + MARKER.len()].copy_from_slice(MARKER);
        fs::write(&path, &bytes)?;
        ensure!(contains(&path, MARKER)?, "not found at {at}");
    }
    fs::write(&path, vec![7; 2 * WINDOW])?;
    ensure!(!contains(&path, MARKER)?);
    Ok(())
}
