//! The thread that owns the replica: takes inputs in batches, does what they make due, hands out messages and answers.
//!
//! Its own thread because a sync of the disk blocks. What came in during a sync is proposed together and shares the next
//! one: that is the group commit. Invariant: only this thread touches replica and store; every responder it takes is
//! answered, at the latest when it stops.

use crate::catchup;
use crate::links::{Dropped, Links};
use crate::server;
use crate::store::RocksStore;
use arakoon_core::convert::SNAPSHOT_KIND;
use arakoon_core::{Answer, Output, REST_TICKS, Replica, StoreError, Ticket};
use bytes::Bytes;
use model::Now;
use runtime::clock::boot_now;
use runtime::config::NodeEntry;
use runtime::peer::Identity;
use runtime::rpc::{Client, Responder};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;
use tokio::task::AbortHandle;
use wire::WireError;
use wire::arakoon::{
    ChangesAsk, Get, JoinAnswer, JoinAsk, RaftBatch, RaftMessage, Range, SessionsAsk, Transaction,
    code,
};

/// The unit of Raft's clock.
pub const TICK: Duration = Duration::from_millis(100);
/// Inputs waiting for the thread; more are told to come back (L8).
const INPUTS_MAX: usize = 4096;
/// Inputs taken together, so that ticks and disk get their turn.
const BATCH_MAX: usize = 512;
/// Messages that go with the answer to a peer's call.
const ANSWER_MAX: usize = 64;
/// A snapshot that is being fetched and gave no sign for this long is given up for another.
const CATCHUP_PATIENCE: Duration = Duration::from_secs(15);
/// A stopping leader waits this long for another to take over.
const HANDOVER: Duration = Duration::from_millis(1500);

pub enum Query {
    Transact(Transaction),
    Get(Get),
    Range(Range),
    Sessions(SessionsAsk),
    Changes(ChangesAsk),
}

pub enum Input {
    Ask {
        query: Query,
        deadline: Now,
        responder: Responder,
    },
    WhoMaster(Responder),
    Status(Responder),
    Raft(Heard),
    Unreachable(u64),
    SnapshotFailed(u64),
    /// A peer fetches the snapshot that was made for it.
    SnapshotProgress(u64),
    Staged(Staged),
    /// A peer that began with an empty directory.
    Join(JoinAsk, Responder),
    /// No node of the cluster has a past: it begins now.
    Bootstrap,
    /// The last entry of this node, for who asks peers to take it back; `None` when it votes already.
    Joining(oneshot::Sender<Option<u64>>),
    Stop,
}

/// What came from one peer.
pub struct Heard {
    pub messages: Vec<RaftMessage>,
    /// The call that it came in; `None`: it was itself an answer.
    pub call: Option<Responder>,
}

/// A page of the snapshot that this node fetches.
pub struct Staged {
    pub number: u64,
    pub rows: Vec<(Bytes, Bytes)>,
    pub done: bool,
    /// Told when the rows are written; dropped when they aren't wanted.
    pub taken: oneshot::Sender<()>,
}

/// Why an input wasn't taken.
pub enum Refused {
    Full,
    /// The thread has ended.
    Closed,
}

/// The way in.
#[derive(Clone)]
pub struct Inputs {
    queue: SyncSender<Input>,
}

impl Inputs {
    /// Never blocks. A refused input is dropped, and the responder in it tells its caller to try again.
    pub fn push(&self, input: Input) -> Result<(), Refused> {
        self.queue.try_send(input).map_err(|error| match error {
            TrySendError::Full(_) => Refused::Full,
            TrySendError::Disconnected(_) => Refused::Closed,
        })
    }
}

pub fn channel() -> (Inputs, Receiver<Input>) {
    let (queue, inputs) = sync_channel(INPUTS_MAX);
    (Inputs { queue }, inputs)
}

/// What waits for a ticket.
enum Waiting {
    Transact(Responder),
    Get(Get, Responder),
    Range(Range, Responder),
    Sessions(SessionsAsk, Responder),
    Changes(ChangesAsk, Responder),
}

struct Catchup {
    number: u64,
    message: RaftMessage,
    touched: Now,
    task: AbortHandle,
}

/// What a driver is made of.
pub struct Parts {
    pub replica: Replica<RocksStore>,
    pub links: Links,
    pub identity: Arc<Identity>,
    pub nodes: Vec<NodeEntry>,
    /// Clients of the other nodes, to fetch snapshots from.
    pub peers: BTreeMap<u64, Client>,
    pub inputs: Inputs,
    pub tasks: tokio::runtime::Handle,
}

/// A peer's call that is being answered, and what Raft wants to tell that peer.
struct Answering {
    call: Responder,
    messages: Vec<RaftMessage>,
}

impl Answering {
    /// Answers are short: what carries entries or a snapshot goes its own way, which is bounded by bytes.
    fn takes(&self, message: &RaftMessage) -> bool {
        let is_short = message.entries.is_empty() && message.snapshot.is_none();
        is_short && self.messages.len() < ANSWER_MAX && !self.call.is_gone()
    }

    fn finish(self) {
        self.call.reply(&RaftBatch { messages: self.messages }, Bytes::new());
    }
}

/// When Raft's clock ticks.
struct Clock {
    last: Instant,
    /// So many ticks may be counted late and at once.
    together: u32,
}

impl Clock {
    fn until_tick(&self, now: Instant) -> Duration {
        (self.last + TICK * self.together).saturating_duration_since(now)
    }

    /// Ticks to be counted now. After a pause of the whole process they are no more than without it: peers' clocks went
    /// on, ours didn't.
    fn passed(&mut self, now: Instant) -> u32 {
        let passed = now.duration_since(self.last).as_millis() / TICK.as_millis();
        match u32::try_from(passed) {
            Ok(passed) if passed <= self.together => {
                self.last += TICK * passed;
                passed
            }
            Ok(_) | Err(_) => {
                self.last = now;
                self.together
            }
        }
    }
}

/// Everything the thread owns.
pub struct Driver {
    replica: Replica<RocksStore>,
    links: Links,
    identity: Arc<Identity>,
    nodes: Vec<NodeEntry>,
    peers: BTreeMap<u64, Client>,
    inputs: Inputs,
    tasks: tokio::runtime::Handle,
    waiting: BTreeMap<Ticket, Waiting>,
    tickets: u64,
    /// By peer; only between the taking of an input and the flush behind it.
    answering: BTreeMap<u64, Answering>,
    catchup: Option<Catchup>,
    stopping: Option<Now>,
}

impl Driver {
    pub fn new(parts: Parts) -> Self {
        let Parts { replica, links, identity, nodes, peers, inputs, tasks } = parts;
        Self {
            replica,
            links,
            identity,
            nodes,
            peers,
            inputs,
            tasks,
            waiting: BTreeMap::new(),
            tickets: 0,
            answering: BTreeMap::new(),
            catchup: None,
            stopping: None,
        }
    }

    /// Runs until stopped or the disk fails.
    pub fn run(mut self, inputs: &Receiver<Input>) -> Result<(), StoreError> {
        let result = self.serve(inputs);
        let reason = if result.is_ok() { "the node is stopping" } else { "the node's disk failed" };
        for waiting in std::mem::take(&mut self.waiting).into_values() {
            let (Waiting::Transact(responder)
            | Waiting::Get(_, responder)
            | Waiting::Range(_, responder)
            | Waiting::Sessions(_, responder)
            | Waiting::Changes(_, responder)) = waiting;
            responder.fail(WireError::retry(code::NO_MAJORITY, reason));
        }
        if let Some(catchup) = self.catchup.take() {
            catchup.task.abort();
        }
        result
    }

    fn serve(&mut self, inputs: &Receiver<Input>) -> Result<(), StoreError> {
        let mut clock = Clock { last: Instant::now(), together: 1 };
        self.flush()?;
        loop {
            let input = inputs.recv_timeout(clock.until_tick(Instant::now()));
            let ticks = clock.passed(Instant::now());
            for _ in 0..ticks {
                self.replica.tick(boot_now());
            }
            if 0 < ticks {
                self.replica.store_mut().settle();
            }
            match input {
                Ok(input) => {
                    self.take(input)?;
                    for _ in 1..BATCH_MAX {
                        let Ok(input) = inputs.try_recv() else { break };
                        self.take(input)?;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
            self.flush()?;
            let rest = model::u32_of(REST_TICKS);
            let rests = self.replica.rests(boot_now().plus(TICK * rest));
            clock.together = if rests { rest } else { 1 };
            if self.may_stop() {
                return Ok(());
            }
        }
    }

    fn may_stop(&self) -> bool {
        self.stopping.is_some_and(|until| !self.replica.status().is_leader || boot_now() >= until)
    }

    fn take(&mut self, input: Input) -> Result<(), StoreError> {
        match input {
            Input::Ask { query, deadline, responder } => self.ask(query, deadline, responder),
            Input::WhoMaster(responder) => {
                let status = self.replica.status();
                responder
                    .reply(&server::leader(&self.nodes, status.leader, status.term), Bytes::new());
            }
            Input::Status(responder) => self.status(responder),
            Input::Raft(heard) => self.hear(heard)?,
            Input::Unreachable(peer) => self.replica.peer_unreachable(peer),
            Input::SnapshotFailed(peer) => self.replica.snapshot_failed(peer),
            Input::SnapshotProgress(peer) => self.replica.snapshot_progress(peer),
            Input::Staged(staged) => self.stage(staged)?,
            Input::Join(ask, responder) => {
                self.replica.peer_began_anew(ask.node, ask.last);
                let has_history = self.replica.status().has_history;
                responder.reply(&JoinAnswer { has_history }, Bytes::new());
            }
            Input::Bootstrap => {
                // What was heard from a leader meanwhile goes first.
                if !self.replica.status().has_history {
                    self.begin_voting("the cluster begins")?;
                }
            }
            Input::Joining(answer) => {
                let status = self.replica.status();
                // Its asker ends with the node.
                let _ = answer.send((!status.voting).then_some(status.last));
            }
            Input::Stop => {
                let patience = if self.replica.hand_over() { HANDOVER } else { Duration::ZERO };
                self.stopping = Some(boot_now().plus(patience));
            }
        }
        Ok(())
    }

    fn begin_voting(&mut self, why: &'static str) -> Result<(), StoreError> {
        if !self.replica.status().voting {
            self.replica.store_mut().end_joining()?;
            self.replica.begin_voting();
            tracing::info!(why, "this node votes from now on");
        }
        Ok(())
    }

    fn ask(&mut self, query: Query, deadline: Now, responder: Responder) {
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        let waiting = match query {
            Query::Transact(transaction) => {
                self.replica.transact(ticket, &transaction, deadline);
                Waiting::Transact(responder)
            }
            Query::Get(get) => {
                self.replica.read(ticket, get.consistency, deadline);
                Waiting::Get(get, responder)
            }
            Query::Range(range) => {
                self.replica.read(ticket, range.consistency, deadline);
                Waiting::Range(range, responder)
            }
            Query::Sessions(sessions) => {
                self.replica.read(ticket, sessions.consistency, deadline);
                Waiting::Sessions(sessions, responder)
            }
            Query::Changes(changes) => {
                self.replica.watch(ticket, &changes, server::patience(&changes, deadline));
                Waiting::Changes(changes, responder)
            }
        };
        self.waiting.insert(ticket, waiting);
    }

    fn status(&self, responder: Responder) {
        let status = self.replica.status();
        let name = |id| self.nodes.iter().find(|node| node.id == id).map(|node| node.name.as_str());
        let details = serde_json::json!({
            "leader": status.leader.and_then(name),
            "term": status.term,
            "applied": status.applied,
            "committed": status.committed,
            "voters": status.voters.iter().filter_map(|id| name(*id)).collect::<Vec<_>>(),
            "log_entries": status.log_entries,
            "sessions": status.sessions,
            "ttl_sessions": status.ttl_sessions,
            "db_bytes": self.replica.store().db_bytes(),
        });
        let state = match (status.leader, &self.catchup) {
            (_, Some(_)) => "catching up",
            (Some(_), None) if !status.voting => "joining",
            (Some(_), None) => "running",
            (None, None) => "no leader",
        };
        let answer = runtime::status::status(&self.identity, state, details.to_string());
        responder.reply(&answer, Bytes::new());
    }

    fn hear(&mut self, Heard { messages, call }: Heard) -> Result<(), StoreError> {
        if let (Some(call), Some(first)) = (call, messages.first()) {
            let answering = Answering { call, messages: Vec::new() };
            // One whose caller has given up meanwhile, and asks again.
            if let Some(former) = self.answering.insert(first.from, answering) {
                former.finish();
            }
        }
        messages.into_iter().try_for_each(|message| self.receive(message))
    }

    /// A snapshot is handed to raft only when its rows lie ready.
    fn receive(&mut self, message: RaftMessage) -> Result<(), StoreError> {
        let behind = |index: u64| index > self.replica.status().committed;
        match &message.snapshot {
            Some(snapshot) if message.kind == SNAPSHOT_KIND && behind(snapshot.index) => {
                self.catch_up(message)
            }
            _ => {
                let from = message.from;
                if let Err(error) = self.replica.receive(message) {
                    tracing::warn!(from, %error, "a Raft message can't be read");
                }
                Ok(())
            }
        }
    }

    fn catch_up(&mut self, message: RaftMessage) -> Result<(), StoreError> {
        let data =
            message.snapshot.as_ref().map(|snapshot| snapshot.data.clone()).unwrap_or_default();
        let (Ok(number), Some(client)) =
            (wire::decode_all::<u64>(data), self.peers.get(&message.from))
        else {
            tracing::warn!(from = message.from, "a snapshot can't be fetched");
            return Ok(());
        };
        let now = boot_now();
        if let Some(running) = self.catchup.take() {
            if running.number == number && now.since(running.touched) < CATCHUP_PATIENCE {
                self.catchup = Some(running);
                return Ok(());
            }
            running.task.abort();
        }
        tracing::info!(
            from = message.from,
            number,
            "this node is far behind and fetches a snapshot"
        );
        self.replica.store_mut().begin_staging()?;
        let fetch = catchup::fetch(client.clone(), number, self.inputs.clone());
        let task = self.tasks.spawn(fetch).abort_handle();
        self.catchup = Some(Catchup { number, message, touched: now, task });
        Ok(())
    }

    fn stage(&mut self, staged: Staged) -> Result<(), StoreError> {
        let Some(catchup) = self.catchup.as_mut().filter(|catchup| catchup.number == staged.number)
        else {
            return Ok(());
        };
        catchup.touched = boot_now();
        self.replica.store_mut().stage(staged.rows)?;
        if staged.done
            && let Some(Catchup { message, .. }) = self.catchup.take()
        {
            let data = message.snapshot.as_ref().map(|snapshot| snapshot.data.clone());
            self.replica.store_mut().finish_staging(data.unwrap_or_default());
            if let Err(error) = self.replica.receive(message) {
                tracing::warn!(%error, "a snapshot can't be read");
            }
        }
        // The fetching task may have ended meanwhile.
        let _ = staged.taken.send(());
        Ok(())
    }

    /// Does what is due and hands out what comes of it.
    fn flush(&mut self) -> Result<(), StoreError> {
        self.replica.advance()?;
        for output in self.replica.take_outputs() {
            match output {
                Output::Send(message) => self.send(message),
                Output::Answer(ticket, answer) => self.answer(ticket, answer)?,
                Output::Leader { leader, term } => {
                    let leader = server::leader(&self.nodes, leader, term).leader;
                    let leader = leader.map_or_else(|| "nobody".to_owned(), |(name, _)| name);
                    tracing::info!(leader, term, "leadership changed");
                }
                Output::CaughtUp => self.begin_voting("it has caught up")?,
                Output::Restored { index } => tracing::info!(index, "restored from a snapshot"),
                Output::SessionExpired(session) => tracing::warn!(
                    id = %session.id.escape_ascii(),
                    incarnation = session.incarnation.0,
                    "a session expired: nothing was heard of its holder for its TTL"
                ),
                Output::LostLog { peer, expected, last } => {
                    tracing::error!(
                        peer,
                        expected,
                        last,
                        "a leader counts on log entries that this node doesn't have: its data directory was exchanged. \
                         Stop it, remove the directory and start it again"
                    );
                }
            }
        }
        std::mem::take(&mut self.answering).into_values().for_each(Answering::finish);
        Ok(())
    }

    /// What is said to a peer whose call waits goes with its answer: a message of its own would cost a call.
    fn send(&mut self, message: RaftMessage) {
        if let Some(answering) = self.answering.get_mut(&message.to)
            && answering.takes(&message)
        {
            return answering.messages.push(message);
        }
        if let Err(Dropped { to, was_snapshot: true }) = self.links.send(message) {
            self.replica.snapshot_failed(to);
        }
    }

    fn answer(&mut self, ticket: Ticket, answer: Answer) -> Result<(), StoreError> {
        let Some(waiting) = self.waiting.remove(&ticket) else { return Ok(()) };
        match (waiting, answer) {
            (Waiting::Get(get, responder), Answer::ReadNow) => {
                responder.finish(server::get(&self.replica, &get)?);
            }
            (Waiting::Range(range, responder), Answer::ReadNow) => {
                responder.reply(&server::range(&self.replica, &range)?, Bytes::new());
            }
            (Waiting::Sessions(ask, responder), Answer::ReadNow) => {
                responder.reply(&server::sessions(&self.replica, &ask), Bytes::new());
            }
            (Waiting::Changes(ask, responder), Answer::ReadNow) => {
                responder.reply(&self.replica.changes(&ask), Bytes::new());
            }
            (
                Waiting::Transact(responder)
                | Waiting::Get(_, responder)
                | Waiting::Range(_, responder)
                | Waiting::Sessions(_, responder)
                | Waiting::Changes(_, responder),
                answer,
            ) => {
                responder.finish(server::answer(&self.nodes, answer));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_counted_once_each_and_a_pause_adds_none() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut clock = Clock { last: start, together: 1 };
        assert_eq!((clock.passed(at(99)), clock.passed(at(103))), (0, 1));
        assert_eq!(clock.until_tick(at(103)), Duration::from_millis(97), "lateness adds up");
        clock.together = 4;
        assert_eq!(clock.until_tick(at(103)), Duration::from_millis(397));
        // A message came.
        assert_eq!((clock.passed(at(350)), clock.passed(at(399))), (2, 0));
        clock.together = 1;
        assert_eq!(clock.passed(at(405)), 1);
        for (together, ticks) in [(1, 1), (4, 4)] {
            clock.together = together;
            let paused = clock.last + Duration::from_secs(60);
            assert_eq!((clock.passed(paused), clock.passed(paused)), (ticks, 0));
        }
    }
}
