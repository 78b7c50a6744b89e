//! One child process: started with its log, watched until it ends, stopped politely and then not.
//!
//! A task owns each child, so a signal is only ever sent to a process that hasn't been reaped: a process id that the
//! kernel gave to somebody else in the meantime is never hit.

use crate::cluster::{Cluster, Member};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, oneshot};

/// A longer log is put aside when its process starts.
const LOG_MAX: u64 = 16 << 20;
/// How much of a log a failure shows.
const TAIL_LINES: usize = 12;
const TAIL_BYTES: u64 = 16 << 10;
/// From SIGTERM to SIGKILL.
pub const STOP_PATIENCE: Duration = Duration::from_secs(20);

/// A child ended.
#[derive(Debug)]
pub struct Exited {
    pub id: String,
    pub pid: u32,
    pub status: io::Result<ExitStatus>,
}

impl Exited {
    /// `was killed by SIGKILL`, `ended with code 1`.
    #[must_use]
    pub fn how(&self) -> String {
        match &self.status {
            Ok(status) => match (status.code(), status.signal()) {
                (Some(0), _) => "ended by itself".to_owned(),
                (Some(code), _) => format!("ended with code {code}"),
                (None, Some(signal)) => format!("was killed by {}", signal_name(signal)),
                (None, None) => "ended".to_owned(),
            },
            Err(error) => format!("can't be watched: {error}"),
        }
    }

    /// It says itself that trying again is useless.
    #[must_use]
    pub fn is_configuration(&self) -> bool {
        matches!(&self.status, Ok(status) if status.code() == Some(2))
    }
}

fn signal_name(number: i32) -> String {
    let known = [
        (1, "SIGHUP"),
        (2, "SIGINT"),
        (3, "SIGQUIT"),
        (4, "SIGILL"),
        (6, "SIGABRT"),
        (7, "SIGBUS"),
        (8, "SIGFPE"),
        (9, "SIGKILL"),
        (11, "SIGSEGV"),
        (13, "SIGPIPE"),
        (15, "SIGTERM"),
    ];
    known
        .iter()
        .find(|(value, _)| *value == number)
        .map_or_else(|| format!("signal {number}"), |(_, name)| (*name).to_owned())
}

/// A running child. Dropping it doesn't stop the child.
#[derive(Debug)]
pub struct Running {
    pub pid: u32,
    stop: Option<oneshot::Sender<()>>,
}

impl Running {
    /// Asks the child to end: SIGTERM now, SIGKILL after [`STOP_PATIENCE`]. Its end is reported as any other.
    pub fn stop(&mut self) {
        if let Some(stop) = self.stop.take() {
            // A task that is gone has reported the end already.
            let _ = stop.send(());
        }
    }
}

/// Starts a member's process. Its end arrives in `exits`.
///
/// # Errors
/// When the log can't be opened or the process can't be made.
pub fn start(
    cluster: &Cluster,
    member: &Member,
    exits: mpsc::Sender<Exited>,
) -> io::Result<Running> {
    let log = open_log(&cluster.log_file(&member.id))?;
    let mut command = program(member)?;
    command
        .arg(member.role.name())
        .arg("--config")
        .arg(cluster.config_file(&member.id))
        .arg(format!("--die-with-parent={}", std::process::id()))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        // Ctrl-C at the terminal is for the supervisor, which stops the processes in order.
        .process_group(0);
    let child = command.spawn()?;
    let pid = child.id().expect("a child that wasn't awaited has an id");
    // For people and scripts; nothing here is decided by it.
    let _ = std::fs::write(cluster.member_dir(&member.id).join("pid"), format!("{pid}\n"));
    let (stop, stopped) = oneshot::channel();
    tokio::spawn(watch(member.id.clone(), pid, child, stopped, exits));
    Ok(Running { pid, stop: Some(stop) })
}

/// `ip netns exec` becomes the program that it starts, so the process id is the same either way.
fn program(member: &Member) -> io::Result<Command> {
    let own = std::env::current_exe()?;
    let Some(netns) = &member.netns else { return Ok(Command::new(own)) };
    let mut command = Command::new("ip");
    command.args(["netns", "exec", netns]).arg(own);
    Ok(command)
}

async fn watch(
    id: String,
    pid: u32,
    mut child: Child,
    stopped: oneshot::Receiver<()>,
    exits: mpsc::Sender<Exited>,
) {
    let status = tokio::select! {
        status = child.wait() => status,
        Ok(()) = stopped => end(&id, pid, &mut child).await,
    };
    // The supervisor is gone only when the whole program ends.
    let _ = exits.send(Exited { id, pid, status }).await;
}

async fn end(id: &str, pid: u32, child: &mut Child) -> io::Result<ExitStatus> {
    signal(child, Signal::TERM);
    if let Ok(status) = tokio::time::timeout(STOP_PATIENCE, child.wait()).await {
        return status;
    }
    eprintln!("{id} (pid {pid}) didn't end within {STOP_PATIENCE:?} of SIGTERM; killing it");
    signal(child, Signal::KILL);
    child.wait().await
}

fn signal(child: &Child, signal: Signal) {
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
    if let Some(pid) = pid {
        // The only possible error is that it ended just now.
        let _ = kill_process(pid, signal);
    }
}

fn open_log(path: &Path) -> io::Result<File> {
    if std::fs::metadata(path).is_ok_and(|log| log.len() > LOG_MAX) {
        std::fs::rename(path, path.with_extension("1"))?;
    }
    OpenOptions::new().create(true).append(true).open(path)
}

/// The end of a process' log, indented, to be shown with a failure.
#[must_use]
pub fn log_tail(path: &Path) -> String {
    let read = || {
        let mut file = File::open(path)?;
        let len = file.seek(SeekFrom::End(0))?;
        file.seek(SeekFrom::Start(len.saturating_sub(TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
        io::Result::Ok(bytes)
    };
    let Ok(bytes) = read() else { return format!("  (there is no log at {})", path.display()) };
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    let tail = &lines[lines.len().saturating_sub(TAIL_LINES)..];
    let mut out = format!("  last lines of {}:", path.display());
    for line in tail {
        out.push_str("\n  | ");
        out.push_str(line);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_log_is_put_aside_and_its_end_shown() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let lines: String = (0..100).map(|n| format!("line {n}\n")).collect();
        std::fs::write(&path, lines).unwrap();
        let tail = log_tail(&path);
        assert!(
            tail.contains("| line 99") && tail.contains("| line 88") && !tail.contains("line 87"),
            "{tail}"
        );
        File::options().write(true).open(&path).unwrap().set_len(LOG_MAX + 1).unwrap();
        open_log(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 0);
        assert_eq!(std::fs::metadata(dir.path().join("log.1")).unwrap().len(), LOG_MAX + 1);
        assert!(log_tail(&dir.path().join("none")).contains("no log"));
    }

    #[test]
    fn ends_are_told_in_words() {
        let exited =
            |raw| Exited { id: "asd-1".into(), pid: 7, status: Ok(ExitStatus::from_raw(raw)) };
        assert_eq!(exited(9).how(), "was killed by SIGKILL");
        assert_eq!(exited(1 << 8).how(), "ended with code 1");
        assert_eq!(exited(0).how(), "ended by itself");
        assert!(exited(2 << 8).is_configuration() && !exited(9).is_configuration());
    }
}
