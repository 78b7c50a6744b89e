//! What processes use of the machine: CPU time, bytes given to the device, memory; from `/proc`, summed by role.
//!
//! Invariant: figures of processes that ended in between are left out rather than guessed.

use std::collections::BTreeMap;
use std::fs;
use std::thread;
use std::time::Duration;

use crate::cluster::Cluster;

/// Processes, each with the name that its figures are summed under.
pub struct Group(Vec<(String, u32)>);

/// What a group has used since its processes began.
#[derive(Debug, Clone, Default)]
pub struct Used {
    pub cpu: BTreeMap<String, Duration>,
    pub device_bytes: f64,
}

impl Used {
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let cpu = self.cpu.iter().map(|(role, cpu)| {
            let earlier = before.cpu.get(role).copied().unwrap_or_default();
            (role.clone(), cpu.saturating_sub(earlier))
        });
        Self { cpu: cpu.collect(), device_bytes: self.device_bytes - before.device_bytes }
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
            used.device_bytes += field(*pid, "io", "write_bytes:").unwrap_or(0.0);
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
}
