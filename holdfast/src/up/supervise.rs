//! Keeps the processes of a cluster running: starts them when told, starts them again when they die, stops them in
//! order. One task owns all of it; others send [`Command`]s and watch [`Fleet::states`].
//!
//! ```text
//! Idle ─▶ Running ─▶ Waiting (back-off) ─▶ Running …        with --no-restart: Running ─▶ Dead
//!            └─────▶ Lost (its data is gone) ─▶ Running once the directory is back
//! ```
//! Idle it costs nothing: it sleeps until a child ends (SIGCHLD), a back-off is over, or somebody asks.

use crate::cluster::{Cluster, Member};
use crate::role::ProcessRole;
use crate::up::spawn::{self, Exited, Running};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

const BACKOFF_MIN: Duration = Duration::from_millis(200);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// A process that ran this long has earned a quick restart.
const HEALTHY_AFTER: Duration = Duration::from_secs(60);
/// How often a lost directory is looked for.
const LOST_RECHECK: Duration = Duration::from_secs(5);
const QUEUE: usize = 256;

/// What a process of the cluster is doing, as far as its supervisor knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProcessState {
    Idle,
    Running {
        pid: u32,
    },
    /// It ended, and will be started again at `until`.
    Waiting {
        until: Instant,
        failures: u32,
        why: Why,
    },
    /// It ended, and stays so.
    Dead {
        why: Why,
    },
    /// Its data is gone; an empty start would be somebody else under its name.
    Lost,
    Stopped,
}

/// How it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Why {
    pub text: String,
    pub configuration: bool,
}

/// Whether a dead process is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restart {
    Always,
    Never,
}

#[derive(Debug)]
pub enum Command {
    /// Starts these members, those of them that aren't lost.
    Start(Vec<String>),
    /// The facts about the members have grown.
    Adopt(Arc<Cluster>),
    /// Stops all, edges first, arakoon last; the supervisor ends afterwards.
    StopAll,
}

pub type States = BTreeMap<String, ProcessState>;

/// The handle to the supervising task.
#[derive(Debug)]
pub struct Fleet {
    commands: mpsc::Sender<Command>,
    pub states: watch::Receiver<States>,
    task: tokio::task::JoinHandle<()>,
}

impl Fleet {
    /// Starts the supervisor, but no process yet. What happens is told in `events`, one line each.
    #[must_use]
    pub fn new(cluster: Arc<Cluster>, restart: Restart, events: mpsc::Sender<String>) -> Self {
        let (commands, orders) = mpsc::channel(QUEUE);
        let (exits, exited) = mpsc::channel(QUEUE);
        let slots =
            cluster.members.iter().map(|member| (member.id.clone(), Slot::default())).collect();
        let supervisor =
            Supervisor { cluster, restart, slots, exits, events, states: watch::Sender::default() };
        supervisor.publish();
        let states = supervisor.states.subscribe();
        let task = tokio::spawn(supervisor.run(orders, exited));
        Self { commands, states, task }
    }

    pub async fn send(&self, command: Command) {
        // The supervisor ends only after StopAll; whatever comes later has nothing left to do.
        let _ = self.commands.send(command).await;
    }

    /// Stops everything and waits for it; bounded, as each process is killed when it doesn't end by itself.
    pub async fn stop_all(self) {
        self.send(Command::StopAll).await;
        if let Err(error) = self.task.await {
            eprintln!("the supervisor failed: {error}");
        }
    }
}

#[derive(Debug)]
struct Slot {
    state: ProcessState,
    running: Option<Running>,
    started: Instant,
    failures: u32,
}

impl Default for Slot {
    fn default() -> Self {
        Self { state: ProcessState::Idle, running: None, started: Instant::now(), failures: 0 }
    }
}

struct Supervisor {
    cluster: Arc<Cluster>,
    restart: Restart,
    slots: BTreeMap<String, Slot>,
    exits: mpsc::Sender<Exited>,
    events: mpsc::Sender<String>,
    states: watch::Sender<States>,
}

impl Supervisor {
    async fn run(
        mut self,
        mut orders: mpsc::Receiver<Command>,
        mut exited: mpsc::Receiver<Exited>,
    ) {
        loop {
            let wake = self.next_wake();
            tokio::select! {
                Some(exit) = exited.recv() => self.on_exit(&exit),
                order = orders.recv() => match order {
                    Some(Command::Start(ids)) => ids.iter().for_each(|id| self.start(id)),
                    Some(Command::Adopt(cluster)) => self.cluster = cluster,
                    Some(Command::StopAll) | None => break,
                },
                () = sleep_until(wake), if wake.is_some() => self.start_what_is_due(),
            }
            self.publish();
        }
        self.stop_all(&mut exited).await;
    }

    fn next_wake(&self) -> Option<Instant> {
        self.slots
            .values()
            .filter_map(|slot| match slot.state {
                ProcessState::Waiting { until, .. } => Some(until),
                ProcessState::Lost => Some(Instant::now() + LOST_RECHECK),
                ProcessState::Idle
                | ProcessState::Running { .. }
                | ProcessState::Dead { .. }
                | ProcessState::Stopped => None,
            })
            .min()
    }

    fn start_what_is_due(&mut self) {
        let now = Instant::now();
        let mut due = Vec::new();
        for (id, slot) in &self.slots {
            match slot.state {
                ProcessState::Waiting { until, .. } if until <= now => due.push((id.clone(), None)),
                ProcessState::Lost
                    if !self.member(id).is_some_and(|member| self.cluster.is_lost(member)) =>
                {
                    due.push((
                        id.clone(),
                        Some(format!("{id}: its directory is back; starting it")),
                    ));
                }
                ProcessState::Idle
                | ProcessState::Running { .. }
                | ProcessState::Waiting { .. }
                | ProcessState::Dead { .. }
                | ProcessState::Lost
                | ProcessState::Stopped => {}
            }
        }
        for (id, said) in due {
            said.into_iter().for_each(|line| self.say(line));
            self.start(&id);
        }
    }

    fn member(&self, id: &str) -> Option<&Member> {
        self.cluster.member(id)
    }

    fn start(&mut self, id: &str) {
        let Some(member) = self.cluster.member(id) else { return };
        if self.cluster.is_lost(member) {
            return self.mark_lost(id);
        }
        let outcome = spawn::start(&self.cluster, member, self.exits.clone());
        let Some(slot) = self.slots.get_mut(id) else { return };
        slot.started = Instant::now();
        match outcome {
            Ok(running) => {
                let again = matches!(slot.state, ProcessState::Waiting { .. });
                let pid = running.pid;
                slot.state = ProcessState::Running { pid };
                slot.running = Some(running);
                if again && is_news(slot.failures) {
                    self.say(format!("{id} is started again (pid {pid})"));
                }
            }
            Err(error) => self.on_end(
                id,
                None,
                Why { text: format!("can't be started: {error}"), configuration: false },
            ),
        }
    }

    fn on_exit(&mut self, exit: &Exited) {
        let why = Why { text: exit.how(), configuration: exit.is_configuration() };
        self.on_end(&exit.id, Some(exit.pid), why);
    }

    /// A process ended, or couldn't be started.
    fn on_end(&mut self, id: &str, pid: Option<u32>, why: Why) {
        let lost = self.member(id).is_some_and(|member| self.cluster.is_lost(member));
        let restart = self.restart;
        let Some(slot) = self.slots.get_mut(id) else { return };
        slot.running = None;
        slot.failures = if slot.started.elapsed() > HEALTHY_AFTER {
            1
        } else {
            slot.failures.saturating_add(1)
        };
        let who = pid.map_or_else(|| id.to_owned(), |pid| format!("{id} (pid {pid})"));
        let text = why.text.clone();
        if lost {
            self.say(format!("{who} {text}"));
            return self.mark_lost(id);
        }
        match restart {
            Restart::Never => {
                slot.state = ProcessState::Dead { why };
                self.say(format!("{who} {text}; it stays down because of --no-restart"));
            }
            Restart::Always => {
                let delay = runtime::random::jitter(backoff(slot.failures));
                let until = Instant::now() + delay;
                let failures = slot.failures;
                slot.state = ProcessState::Waiting { until, failures, why };
                if !is_news(failures) {
                    return;
                }
                self.say(format!(
                    "{who} {text}; starting it again in {:.1} s",
                    delay.as_secs_f64()
                ));
            }
        }
    }

    fn mark_lost(&mut self, id: &str) {
        let Some(slot) = self.slots.get_mut(id) else { return };
        if slot.state == ProcessState::Lost {
            return;
        }
        slot.state = ProcessState::Lost;
        let dir = self.cluster.data_dir(id);
        self.say(format!(
            "{id} is lost: {} is gone, and an empty one would be another process under its name, so it isn't started; \
             put the directory back and it is started within {} s",
            dir.display(),
            LOST_RECHECK.as_secs()
        ));
    }

    async fn stop_all(mut self, exited: &mut mpsc::Receiver<Exited>) {
        for role in ProcessRole::ALL.into_iter().rev() {
            let ids: Vec<String> =
                self.cluster.of_role(role).map(|member| member.id.clone()).collect();
            for id in &ids {
                let Some(slot) = self.slots.get_mut(id) else { continue };
                match &mut slot.running {
                    Some(running) => running.stop(),
                    None => slot.state = ProcessState::Stopped,
                }
            }
            while ids.iter().any(|id| self.slots.get(id).is_some_and(|slot| slot.running.is_some()))
            {
                self.publish();
                let Some(exit) = exited.recv().await else { return };
                let _ = std::fs::remove_file(self.cluster.member_dir(&exit.id).join("pid"));
                if let Some(slot) = self.slots.get_mut(&exit.id) {
                    slot.running = None;
                    slot.state = ProcessState::Stopped;
                }
            }
        }
        self.publish();
    }

    fn publish(&self) {
        let states = self.slots.iter().map(|(id, slot)| (id.clone(), slot.state.clone())).collect();
        self.states.send_if_modified(|old| {
            let changed = *old != states;
            *old = states;
            changed
        });
    }

    fn say(&self, line: String) {
        // A reader so slow that hundreds of lines wait loses one; the state itself is never lost.
        let _ = self.events.try_send(line);
    }
}

async fn sleep_until(wake: Option<Instant>) {
    match wake {
        Some(wake) => tokio::time::sleep_until(wake).await,
        None => std::future::pending().await,
    }
}

/// A process that keeps ending is told of ever more seldom; its state shows it all the time.
const fn is_news(failures: u32) -> bool {
    failures <= 4 || failures.is_power_of_two()
}

/// Before the restart that follows so many ends in a row.
fn backoff(failures: u32) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    BACKOFF_MIN.saturating_mul(1 << doublings).min(BACKOFF_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn back_off_doubles_up_to_its_bound() {
        let millis: Vec<u128> =
            [1, 2, 3, 5, 6, 7, u32::MAX].map(|failures| backoff(failures).as_millis()).into();
        assert!(is_news(1) && is_news(8) && !is_news(9));
        assert_eq!(millis, [200, 400, 800, 3200, 5000, 5000, 5000]);
    }
}
