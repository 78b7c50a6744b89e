//! Other people's programs, with a deadline.
//!
//! Output goes to files, so a program that prints much can't block, and its last lines are in the error.
//!
//! Invariant: no program outlives its [`Tool::run`] or its [`Running`].

use std::ffi::OsStr;
use std::fmt;
use std::fs::File;
use std::io::{Read, Seek};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

/// Generous: machines are busy, and a deadline is there to end what hangs.
const LIMIT: Duration = Duration::from_secs(180);
const POLL: Duration = Duration::from_millis(20);
/// How much of the output an error shows.
const SHOWN_MAX: usize = 4000;

/// A program about to be run.
pub struct Tool {
    command: Command,
    limit: Duration,
    input: Stdio,
}

/// What a program said and how it ended.
#[derive(Debug, Clone)]
pub struct Outcome {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Tool {
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        Self { command: Command::new(program), limit: LIMIT, input: Stdio::null() }
    }

    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    #[must_use]
    pub fn args(mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.command.args(args);
        self
    }

    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    #[must_use]
    pub fn current_dir(mut self, dir: impl AsRef<std::path::Path>) -> Self {
        self.command.current_dir(dir);
        self
    }

    #[must_use]
    pub fn within(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    #[must_use]
    pub fn input(mut self, file: File) -> Self {
        self.input = file.into();
        self
    }

    /// Runs it to its end, however that is.
    pub fn outcome(self) -> anyhow::Result<Outcome> {
        let shown = format!("{:?}", self.command);
        let limit = self.limit;
        let mut running = self.spawn()?;
        let deadline = Instant::now() + limit;
        let status = loop {
            if let Some(status) = running.child.try_wait()? {
                break status;
            }
            if deadline <= Instant::now() {
                running.kill();
                bail!("{shown} did not end within {limit:?}\n{}", running.output()?);
            }
            thread::sleep(POLL);
        };
        let Outputs { stdout, stderr } = running.output()?;
        Ok(Outcome { status, stdout, stderr })
    }

    /// Runs it to its successful end and returns what it printed.
    pub fn run(self) -> anyhow::Result<String> {
        let shown = format!("{:?}", self.command);
        let outcome = self.outcome()?;
        if !outcome.status.success() {
            bail!("{shown} ended with {}\n{}{}", outcome.status, outcome.stdout, outcome.stderr);
        }
        Ok(outcome.stdout)
    }

    /// Starts it in a process group of its own.
    pub fn spawn(mut self) -> anyhow::Result<Running> {
        let stdout = tempfile::tempfile().context("make a file for the output")?;
        let stderr = tempfile::tempfile().context("make a file for the errors")?;
        let shown = format!("{:?}", self.command);
        let child = self
            .command
            .process_group(0)
            .stdin(self.input)
            .stdout(stdout.try_clone()?)
            .stderr(stderr.try_clone()?)
            .spawn()
            .with_context(|| format!("start {shown}"))?;
        Ok(Running { child, stdout, stderr })
    }
}

/// A program that runs until it is dropped.
pub struct Running {
    child: Child,
    stdout: File,
    stderr: File,
}

struct Outputs {
    stdout: String,
    stderr: String,
}

impl fmt::Display for Outputs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", tail(&self.stdout), tail(&self.stderr))
    }
}

impl Running {
    pub fn has_ended(&mut self) -> anyhow::Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    /// SIGINT, as Ctrl-C sends it.
    pub fn interrupt(&mut self) -> anyhow::Result<()> {
        let pid = i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw);
        let pid = pid.context("a process id")?;
        rustix::process::kill_process(pid, rustix::process::Signal::INT).context("send SIGINT")
    }

    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for an end by itself.
    pub fn wait(&mut self, limit: Duration) -> anyhow::Result<ExitStatus> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if deadline <= Instant::now() {
                bail!("process {} did not end within {limit:?}", self.child.id());
            }
            thread::sleep(POLL);
        }
    }

    /// What it printed so far.
    pub fn printed(&mut self) -> anyhow::Result<String> {
        Ok(self.output()?.to_string())
    }

    /// Its whole standard output so far.
    pub fn everything_printed(&mut self) -> anyhow::Result<String> {
        Ok(self.output()?.stdout)
    }

    fn output(&mut self) -> anyhow::Result<Outputs> {
        let read = |file: &mut File| -> anyhow::Result<String> {
            let mut bytes = Vec::new();
            file.rewind()?;
            file.read_to_end(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        Ok(Outputs { stdout: read(&mut self.stdout)?, stderr: read(&mut self.stderr)? })
    }

    fn kill(&mut self) {
        // The whole group: shells have children.
        let group = i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw);
        if let (Some(group), Ok(None)) = (group, self.child.try_wait()) {
            let _gone = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
        let _reaped = self.child.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The last part of a long text.
#[must_use]
pub fn tail(text: &str) -> &str {
    let mut start = text.len().saturating_sub(SHOWN_MAX);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    &text[start..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_and_failure_are_reported() {
        assert_eq!(Tool::new("echo").arg("hello").run().unwrap(), "hello\n");
        let error = Tool::new("sh").args(["-c", "echo why >&2; exit 3"]).run().unwrap_err();
        assert!(error.to_string().contains("why"), "{error}");
        assert!(Tool::new("/nonexistent/program").run().is_err());
    }

    #[test]
    fn what_hangs_is_killed_with_its_children() {
        let hang = Tool::new("sh").args(["-c", "sleep 1000 & echo begun; wait"]);
        let error = hang.within(Duration::from_millis(300)).run().unwrap_err();
        assert!(error.to_string().contains("did not end within"), "{error}");
    }

    #[test]
    fn a_tail_is_cut_between_characters() {
        let long = "é".repeat(SHOWN_MAX);
        assert!(tail(&long).len() <= SHOWN_MAX);
        assert_eq!(tail("short"), "short");
    }
}
