//! What a process asks of the kernel while it serves: calls and bytes, on sockets and on files, counted by `strace`.
//!
//! Only calls that move or sync data count. How often a runtime sleeps and is woken depends on the machine's mood; how
//! often it reads, writes and syncs, and how many bytes, is the program's doing.
//!
//! Invariant: every completed call between [`Counter::attach`] and [`Counter::finish`] is counted once.

use std::fs;
use std::ops::{AddAssign, Sub};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;

use crate::cluster::wait_until;
use crate::tool::{Running, Tool};

const CALLS: &str = "trace=read,readv,pread64,preadv,preadv2,recvfrom,recvmsg,write,writev,pwrite64,pwritev,\
                     pwritev2,sendto,sendmsg,fsync,fdatasync,sync_file_range,io_uring_enter";

/// Calls and bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub socket_calls: u64,
    pub socket_bytes: u64,
    pub file_calls: u64,
    pub file_bytes: u64,
    pub syncs: u64,
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.socket_calls += other.socket_calls;
        self.socket_bytes += other.socket_bytes;
        self.file_calls += other.file_calls;
        self.file_bytes += other.file_bytes;
        self.syncs += other.syncs;
    }
}

impl Sub for Counts {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self {
            socket_calls: self.socket_calls.saturating_sub(other.socket_calls),
            socket_bytes: self.socket_bytes.saturating_sub(other.socket_bytes),
            file_calls: self.file_calls.saturating_sub(other.file_calls),
            file_bytes: self.file_bytes.saturating_sub(other.file_bytes),
            syncs: self.syncs.saturating_sub(other.syncs),
        }
    }
}

/// An `strace` on one process and all its threads.
pub struct Counter {
    strace: Running,
    log: PathBuf,
}

impl Counter {
    /// Returns when every thread is watched.
    pub fn attach(pid: u32, log: PathBuf) -> anyhow::Result<Self> {
        let tool = Tool::new("strace").args(["-f", "-q", "-y", "-s", "0", "-e", CALLS, "-o"]);
        let strace = tool.arg(&log).arg("-p").arg(pid.to_string()).spawn()?;
        let tracer = strace.pid();
        wait_until(Duration::from_secs(20), "strace to attach", || {
            let tasks = fs::read_dir(format!("/proc/{pid}/task"))?;
            let mut watched = true;
            for task in tasks {
                let status = fs::read_to_string(task?.path().join("status")).unwrap_or_default();
                watched &= status.contains(&format!("TracerPid:\t{tracer}\n"));
            }
            Ok(watched)
        })?;
        Ok(Self { strace, log })
    }

    pub fn finish(mut self) -> anyhow::Result<Counts> {
        self.strace.interrupt()?;
        self.strace.wait(Duration::from_secs(20))?;
        let text = fs::read_to_string(&self.log)
            .with_context(|| format!("read {}", self.log.display()))?;
        Ok(count(&text))
    }
}

fn count(log: &str) -> Counts {
    // A call that another thread's interrupts is written in two lines; the first names the file.
    let mut begun = std::collections::HashMap::new();
    let mut counts = Counts::default();
    for line in log.lines() {
        let Some((thread, rest)) = line.split_once(' ') else { continue };
        let rest = rest.trim_start();
        if rest.ends_with("<unfinished ...>") {
            begun.insert(thread, rest);
            continue;
        }
        let call = if rest.starts_with("<...") { begun.remove(thread) } else { Some(rest) };
        let result = rest.rsplit_once(" = ").map(|(_, result)| result);
        if let (Some(call), Some(result)) = (call, result) {
            counts += one(call, result);
        }
    }
    counts
}

fn one(call: &str, result: &str) -> Counts {
    let Some((name, arguments)) = call.split_once('(') else { return Counts::default() };
    let bytes = result.split(' ').next().and_then(|word| word.parse().ok()).unwrap_or(0);
    // `5<socket:[123]>`, `6</path/to/file>`, `7<anon_inode:[eventfd]>`
    let file = arguments.split_once('<').map_or("", |(_, file)| file);
    match name {
        "fsync" | "fdatasync" | "sync_file_range" => Counts { syncs: 1, ..Counts::default() },
        _ if ["socket:", "UNIX", "TCP"].iter().any(|kind| file.starts_with(kind)) => {
            Counts { socket_calls: 1, socket_bytes: bytes, ..Counts::default() }
        }
        _ if file.starts_with('/') => {
            Counts { file_calls: 1, file_bytes: bytes, ..Counts::default() }
        }
        _ => Counts::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_strace_are_understood() {
        let log = "\
11 recvfrom(9<socket:[77]>, \"\"..., 100, 0, NULL, NULL) = 28
11 recvfrom(9<socket:[77]>, 0x55, 100, 0, NULL, NULL) = -1 EAGAIN (Resource temporarily unavailable)
12 pwritev(5</d/log>,  <unfinished ...>
11 write(4<anon_inode:[eventfd]>, \"\"..., 8) = 8
12 <... pwritev resumed>[{iov_base=\"\"..., iov_len=4096}], 1, 0) = 4096
12 fdatasync(5</d/log>) = 0
";
        let expected =
            Counts { socket_calls: 2, socket_bytes: 28, file_calls: 1, file_bytes: 4096, syncs: 1 };
        assert_eq!(count(log), expected);
    }
}
