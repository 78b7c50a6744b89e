//! A running `holdfast up` in a directory of its own, and ways to hurt it.
//!
//! The cluster is driven as an operator drives it: options, signals, the command line, files. Nothing is linked in.
//!
//! Invariant: when a [`Cluster`] is dropped, no process works on its directory, and the directory is gone; after a
//! failure the ends of all logs are printed first.

use std::fs;
use std::io::Read;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::binary;
use crate::nbd::Target;
use crate::tool::{Outcome, Running, Tool, tail};
use crate::trouble;

/// Fifteen processes on two busy cores need a while; a start that hangs must still end.
const START_LIMIT: Duration = Duration::from_secs(180);
const STOP_LIMIT: Duration = Duration::from_secs(90);
const POLL: Duration = Duration::from_millis(50);
/// How much of each log a failure shows.
const LOG_TAIL: u64 = 6000;

/// What cluster to start.
#[derive(Debug, Clone)]
pub struct Options {
    pub vdisks: Vec<(&'static str, &'static str)>,
    /// Further arguments of `holdfast up`.
    pub up: Vec<String>,
}

impl Default for Options {
    /// `HOLDFAST_DTL=none` gives every cluster of the tests a DTL of this mode.
    fn default() -> Self {
        let dtl = std::env::var("HOLDFAST_DTL").ok();
        let up = dtl.into_iter().flat_map(|mode| ["--dtl".to_owned(), mode]).collect();
        Self { vdisks: vec![("demo", "4GiB")], up }
    }
}

impl Options {
    #[must_use]
    pub fn with(mut self, args: &[&str]) -> Self {
        self.up.extend(args.iter().map(|arg| (*arg).to_owned()));
        self
    }
}

/// One process of the cluster, as `holdfast status` tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    pub role: String,
    pub id: String,
    pub pid: Option<u32>,
    pub state: String,
}

pub struct Cluster {
    root: tempfile::TempDir,
    options: Options,
    port: u16,
    /// Where the first edge serves NBD, as `--nbd` takes it.
    nbd: String,
    up: Option<Running>,
}

impl Cluster {
    /// Starts a cluster and waits until I/O to every vDisk works.
    pub fn start(options: Options) -> anyhow::Result<Self> {
        let mut cluster = Self::prepare(options)?;
        cluster.up()?;
        Ok(cluster)
    }

    /// A directory and a port, and nothing running yet.
    pub fn prepare(options: Options) -> anyhow::Result<Self> {
        // A short path: sockets of the cluster lie below it, and their addresses are limited to about 100 bytes.
        let root = tempfile::Builder::new().prefix("hf-").tempdir().context("make a directory")?;
        let port = free_port()?;
        Ok(Self { root, options, port, nbd: format!("127.0.0.1:{port}"), up: None })
    }

    /// NBD is served at this socket, and not on loopback.
    pub fn serve_at(&mut self, socket: &Path) {
        self.nbd = format!("unix:{}", socket.display());
    }

    /// Starts `holdfast up` on the directory and waits for its ready lines.
    pub fn up(&mut self) -> anyhow::Result<()> {
        self.up_with(&[])
    }

    /// The same, with more arguments for this time.
    pub fn up_with(&mut self, args: &[&str]) -> anyhow::Result<()> {
        ensure!(self.up.is_none(), "the cluster is up already");
        let first = !self.dir().join("arakoon-1").exists();
        let mut tool = self.command("up").args(&self.options.up).args(args);
        tool = tool.arg("--nbd").arg(&self.nbd);
        for (name, size) in self.options.vdisks.iter().filter(|_| first) {
            tool = tool.arg("--vdisk").arg(format!("{name}:{size}"));
        }
        let up = self.up.insert(tool.spawn()?);
        let names: Vec<_> = self.options.vdisks.iter().map(|(name, _)| *name).collect();
        let deadline = Instant::now() + START_LIMIT;
        loop {
            let printed = up.printed()?;
            let ready = |name: &&str| is_ready(&printed, name);
            if names.iter().all(ready) {
                return Ok(());
            }
            if up.has_ended()? {
                self.up = None;
                bail!("holdfast up ended before it was ready\n{}", tail(&printed));
            }
            ensure!(
                Instant::now() < deadline,
                "holdfast up was not ready within {START_LIMIT:?}\n{}",
                tail(&printed)
            );
            thread::sleep(POLL);
        }
    }

    /// The directory of the cluster.
    #[must_use]
    pub fn dir(&self) -> PathBuf {
        self.root.path().join("c")
    }

    /// A place for files of the test, gone with the cluster.
    #[must_use]
    pub fn scratch(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// What `up` printed so far.
    pub fn printed(&mut self) -> anyhow::Result<String> {
        self.up.as_mut().context("the cluster is not up")?.printed()
    }

    #[must_use]
    pub fn uri(&self, vdisk: &str) -> String {
        match self.nbd.strip_prefix("unix:") {
            Some(socket) => format!("nbd+unix:///{vdisk}?socket={socket}"),
            None => format!("nbd://{}/{vdisk}", self.nbd),
        }
    }

    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    #[must_use]
    pub fn target(&self, vdisk: &str) -> Target {
        self.uri(vdisk).parse().expect("our own form")
    }

    /// `holdfast SUBCOMMAND` for this cluster.
    fn command(&self, subcommand: &str) -> Tool {
        let binary = binary::holdfast().map(Path::to_path_buf);
        let binary = binary.unwrap_or_else(|error| panic!("no holdfast program: {error}"));
        Tool::new(binary).arg(subcommand).env("HOLDFAST_DIR", self.dir()).env("NO_COLOR", "1")
    }

    /// Runs `holdfast ARGS` to its successful end.
    pub fn holdfast(&self, args: &[&str]) -> anyhow::Result<String> {
        let (subcommand, rest) = args.split_first().context("a subcommand")?;
        self.command(subcommand).args(rest).run()
    }

    /// Runs `holdfast ARGS`, however it ends.
    pub fn holdfast_outcome(&self, args: &[&str], limit: Duration) -> anyhow::Result<Outcome> {
        let (subcommand, rest) = args.split_first().context("a subcommand")?;
        self.command(subcommand).args(rest).within(limit).outcome()
    }

    /// `holdfast ARGS --json`, parsed.
    pub fn json(&self, args: &[&str]) -> anyhow::Result<Value> {
        let (subcommand, rest) = args.split_first().context("a subcommand")?;
        let text = self.command(subcommand).args(rest).arg("--json").run()?;
        serde_json::from_str(&text).with_context(|| format!("parse the output of {args:?}: {text}"))
    }

    pub fn status(&self) -> anyhow::Result<Value> {
        self.json(&["status"])
    }

    pub fn processes(&self) -> anyhow::Result<Vec<Process>> {
        let status = self.status()?;
        let processes = status["processes"].as_array().context("status without processes")?;
        processes.iter().map(process).collect()
    }

    pub fn process(&self, id: &str) -> anyhow::Result<Process> {
        let mut processes = self.processes()?.into_iter();
        processes.find(|process| process.id == id).with_context(|| format!("no process {id}"))
    }

    /// The ids of a role's processes, from the directory: also when nothing runs.
    pub fn ids(&self, role: &str) -> anyhow::Result<Vec<String>> {
        let mut ids = Vec::new();
        for entry in fs::read_dir(self.dir())? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            let number = name.strip_prefix(role).and_then(|rest| rest.strip_prefix('-'));
            if number.is_some_and(|number| number.parse::<u32>().is_ok()) {
                ids.push(name);
            }
        }
        ids.sort();
        ensure!(!ids.is_empty(), "no directory of role {role}");
        Ok(ids)
    }

    /// The process id that the supervisor wrote down last.
    pub fn pid(&self, id: &str) -> anyhow::Result<u32> {
        let file = self.dir().join(id).join("pid");
        let text = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
        text.trim().parse().with_context(|| format!("{}: {text}", file.display()))
    }

    /// SIGKILL to one process; returns when it is gone.
    pub fn kill9(&self, id: &str) -> anyhow::Result<()> {
        let pid = self.pid(id)?;
        ensure!(self.is_ours(pid), "process {pid} of {id} is gone already");
        kill(pid);
        wait_until(
            Duration::from_secs(10),
            "a killed process to be gone",
            || Ok(!self.is_ours(pid)),
        )
    }

    /// SIGKILL to the edge, if it runs: every connection ends, whatever its requests wait for.
    pub fn kill_edge(&self) {
        let _gone = self.kill9("edge-1");
    }

    /// SIGKILL to the supervisor and every process at once, as when the power of the host fails.
    pub fn kill_all9(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let pids = self.pids();
            for pid in &pids {
                kill(*pid);
            }
            // Dropping reaps the supervisor.
            self.up = None;
            if pids.is_empty() {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "processes {pids:?} can't be killed");
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// SIGINT to the supervisor, as Ctrl-C does; waits for a clean end.
    pub fn stop(&mut self) -> anyhow::Result<()> {
        let mut up = self.up.take().context("the cluster is not up")?;
        up.interrupt()?;
        let status = up.wait(STOP_LIMIT)?;
        ensure!(status.success(), "holdfast up ended with {status}\n{}", tail(&up.printed()?));
        let left = self.pids();
        ensure!(left.is_empty(), "processes {left:?} outlived a clean stop");
        Ok(())
    }

    /// Every process that works on this directory.
    #[must_use]
    pub fn pids(&self) -> Vec<u32> {
        let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
        let numbers = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        numbers.filter(|pid| self.is_ours(*pid)).collect()
    }

    /// Whether the process is a living `holdfast` whose command line or environment names our directory.
    fn is_ours(&self, pid: u32) -> bool {
        let proc = PathBuf::from(format!("/proc/{pid}"));
        let Ok(program) = fs::read_link(proc.join("exe")) else { return false };
        let Ok(wanted) = binary::holdfast() else { return false };
        if program.file_name() != wanted.file_name() {
            return false;
        }
        let place = self.root.path().to_string_lossy().into_owned();
        let names = |file: &str| {
            let bytes = fs::read(proc.join(file)).unwrap_or_default();
            String::from_utf8_lossy(&bytes).contains(&place)
        };
        names("cmdline") || names("environ")
    }

    /// Waits until a condition on the status holds.
    pub fn wait_for(
        &self,
        limit: Duration,
        what: &str,
        mut holds: impl FnMut(&Value) -> bool,
    ) -> anyhow::Result<Value> {
        let deadline = Instant::now() + limit;
        loop {
            let status = self.status();
            match status {
                Ok(status) if holds(&status) => return Ok(status),
                Ok(_) | Err(_) if Instant::now() < deadline => thread::sleep(POLL * 4),
                late => {
                    trouble::note();
                    let status = late.with_context(|| format!("wait for {what}"))?;
                    bail!("waited {limit:?} for {what}; status: {status:#}");
                }
            }
        }
    }

    fn print_logs(&self) {
        eprintln!("--- logs of the cluster in {}", self.dir().display());
        let Ok(entries) = fs::read_dir(self.dir()) else { return };
        let mut logs: Vec<_> =
            entries.filter_map(|entry| Some(entry.ok()?.path().join("log"))).collect();
        logs.sort();
        for log in logs.iter().filter(|log| log.is_file()) {
            let text = end_of(log).unwrap_or_else(|error| error.to_string());
            eprintln!("--- {}\n{text}", log.display());
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if trouble::seen() || keep() {
            if let Some(Ok(printed)) = self.up.as_mut().map(Running::printed) {
                eprintln!("--- holdfast up printed\n{}", tail(&printed));
            }
            self.print_logs();
        }
        if let Err(error) = self.kill_all9() {
            eprintln!("{error:#}");
        }
        if keep() {
            self.root.disable_cleanup(true);
            eprintln!("kept {}", self.root.path().display());
        }
    }
}

/// `HOLDFAST_KEEP=1` leaves the directory for a look.
fn keep() -> bool {
    std::env::var_os("HOLDFAST_KEEP").is_some()
}

fn is_ready(printed: &str, vdisk: &str) -> bool {
    printed.lines().any(|line| {
        let target = line.trim_end().strip_prefix("ready ").map(str::parse::<Target>);
        matches!(target, Some(Ok(target)) if target.export == vdisk)
    })
}

fn process(value: &Value) -> anyhow::Result<Process> {
    let text = |key: &str| {
        let found = value[key].as_str().map(str::to_owned);
        found.with_context(|| format!("process without {key}: {value}"))
    };
    let pid = value["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok());
    Ok(Process { role: text("role")?, id: text("id")?, pid, state: text("state")? })
}

fn kill(pid: u32) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        // It may be gone already.
        let _gone = kill_process(pid, Signal::KILL);
    }
}

/// Polls until the condition holds.
pub fn wait_until(
    limit: Duration,
    what: &str,
    mut holds: impl FnMut() -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    let deadline = Instant::now() + limit;
    while !holds()? {
        if deadline < Instant::now() {
            trouble::note();
            bail!("waited {limit:?} for {what}");
        }
        thread::sleep(POLL);
    }
    Ok(())
}

/// A port that nobody listens on now.
pub fn free_port() -> anyhow::Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0").context("find a free port")?;
    Ok(listener.local_addr()?.port())
}

/// Runs a program that isn't of a cluster: `holdfast ARGS`.
#[must_use]
pub fn plain_holdfast(args: &[&str]) -> Tool {
    let binary = binary::holdfast().unwrap_or_else(|error| panic!("no holdfast program: {error}"));
    Tool::new(binary).args(args).env("NO_COLOR", "1")
}

/// Whether a program is installed; tests that need it say so when they can't run.
#[must_use]
pub fn is_installed(program: &str) -> bool {
    Command::new("sh")
        .args(["-c", &format!("command -v {program}")])
        .output()
        .is_ok_and(|output| output.status.success())
}

fn end_of(log: &Path) -> std::io::Result<String> {
    use std::io::{Seek, SeekFrom};
    let mut file = fs::File::open(log)?;
    let len = file.metadata()?.len();
    file.seek(SeekFrom::Start(len.saturating_sub(LOG_TAIL)))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_lines_are_found_by_the_vdisks_name() {
        let printed = "making keys\nready nbd://127.0.0.1:10809/demo\n";
        assert!(is_ready(printed, "demo"));
        assert!(!is_ready(printed, "emo"));
        assert!(is_ready("ready nbd+unix:///demo?socket=/tmp/a/sock", "demo"));
        assert!(!is_ready("not ready nbd://127.0.0.1:1/demo", "demo"));
    }

    #[test]
    fn a_process_of_the_status_is_read() {
        let value = serde_json::json!({"role": "asd", "id": "asd-1", "pid": 7, "state": "up"});
        let read = process(&value).unwrap();
        assert_eq!((read.id.as_str(), read.pid), ("asd-1", Some(7)));
        assert!(process(&serde_json::json!({"role": "asd"})).is_err());
    }

    #[test]
    fn waiting_ends_with_an_error_that_says_for_what() {
        let error = wait_until(Duration::ZERO, "godot", || Ok(false)).unwrap_err();
        assert!(error.to_string().contains("godot"));
    }
}
