//! What processes use of the machine: CPU time and memory, from `/proc`, summed by role; and what a disk was given.
//!
//! Device bytes are the disk's own count, everybody's: the kernel's count per process has whole page-cache folios, many
//! times what a small synced write gives to the disk.
//!
//! Invariant: figures of processes that ended in between are left out rather than guessed.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::Context;

use crate::cluster::Cluster;

/// Processes, each with the name that its figures are summed under.
pub struct Group(Vec<(String, u32)>);

/// What a group has used since its processes began.
#[derive(Debug, Clone, Default)]
pub struct Used {
    pub cpu: BTreeMap<String, Duration>,
}

impl Used {
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let cpu = self.cpu.iter().map(|(role, cpu)| {
            let earlier = before.cpu.get(role).copied().unwrap_or_default();
            (role.clone(), cpu.saturating_sub(earlier))
        });
        Self { cpu: cpu.collect() }
    }
}

/// The processes of a cluster, by role.
pub fn cluster(cluster: &Cluster) -> anyhow::Result<Group> {
    let processes = cluster.processes()?.into_iter();
    Ok(Group(processes.filter_map(|process| Some((process.role, process.pid?))).collect()))
}

impl Group {
    pub fn of(processes: impl IntoIterator<Item = (String, u32)>) -> Self {
        Self(processes.into_iter().collect())
    }

    #[must_use]
    pub fn used(&self) -> Used {
        let mut used = Used::default();
        for (role, pid) in &self.0 {
            *used.cpu.entry(role.clone()).or_default() += cpu_time(*pid).unwrap_or_default();
        }
        used
    }

    /// Resident bytes by role.
    #[must_use]
    pub fn memory(&self) -> BTreeMap<String, f64> {
        let mut memory = BTreeMap::new();
        for (role, pid) in &self.0 {
            let resident = field(*pid, "status", "VmRSS:").unwrap_or(0.0) * 1024.0;
            *memory.entry(role.clone()).or_default() += resident;
        }
        memory
    }
}

/// The disk below a directory.
pub struct Disk {
    dir: File,
    statistics: PathBuf,
}

impl Disk {
    /// `None` where the kernel keeps no statistics of it (a network filesystem, memory).
    pub fn below(dir: &Path) -> anyhow::Result<Option<Self>> {
        let dir = File::open(dir)?;
        let device = rustix::fs::fstat(&dir)?.st_dev;
        let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
        let statistics = PathBuf::from(format!("/sys/dev/block/{major}:{minor}/stat"));
        Ok(statistics.exists().then_some(Self { dir, statistics }))
    }

    /// Bytes ever written to it, what waits in the page cache included.
    pub fn written(&self) -> anyhow::Result<f64> {
        // The seventh figure counts sectors of 512 bytes.
        rustix::fs::syncfs(&self.dir)?;
        let text = fs::read_to_string(&self.statistics)?;
        let sectors = text.split_whitespace().nth(6).context("too few figures of the disk")?;
        Ok(sectors.parse::<f64>()? * 512.0)
    }
}

/// Cores used over `time`, while nobody asks for anything.
#[must_use]
pub fn idle_share(group: &Group, time: Duration) -> f64 {
    let before = group.used();
    thread::sleep(time);
    let cpu: Duration = group.used().since(&before).cpu.values().sum();
    cpu.as_secs_f64() / time.as_secs_f64()
}

/// User and system time of a process.
fn cpu_time(pid: u32) -> Option<Duration> {
    // The kernel counts in hundredths of a second whatever its own tick is.
    const TICKS_PER_SECOND: u64 = 100;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
    Some(Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND))
}

/// The first number after `name` in a file of `/proc/PID`.
fn field(pid: u32, file: &str, name: &str) -> Option<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/{file}")).ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_use_grows() {
        let group = Group::of([("own".to_owned(), std::process::id())]);
        let (before, mut spent) = (group.used(), 0_u64);
        while group.used().cpu == before.cpu {
            spent = spent.wrapping_add(1);
        }
        assert!(group.used().since(&before).cpu["own"] > Duration::ZERO, "{spent}");
        assert!(group.memory()["own"] > 0.0);
    }

    #[test]
    fn what_is_written_reaches_the_count_of_its_disk() {
        let dir = tempfile::tempdir().unwrap();
        let Some(disk) = Disk::below(dir.path()).unwrap() else {
            println!("SKIPPED: the kernel keeps no statistics of this filesystem's disk");
            return;
        };
        let before = disk.written().unwrap();
        let data: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..)).take(8 << 20).collect();
        fs::write(dir.path().join("file"), data).unwrap();
        assert!(disk.written().unwrap() - before >= f64::from(8 << 20));
    }
}
