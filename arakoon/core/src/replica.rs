//! One node: ticks, messages and requests in; messages and answers out; the disk behind [`Store`].
//!
//! [`Replica::advance`] does what inputs made due, in the one order that is safe: a leader's messages may go out before
//! its own disk write (its vote for itself counts only after), everybody else's only after it; entries are applied when
//! they are committed and on disk; requests are answered when applied.
//!
//! Invariant: every accepted ticket is answered exactly once, at the latest at its deadline (L8). An answer `Unknown`
//! promises nothing: the transaction may still happen, once, and may be asked for again under its request id (P28).

mod ages;
mod proposals;
mod reads;
mod timeouts;
mod watches;

use crate::convert;
use crate::leader_entry::{self, SessionAt};
use crate::limits::{self, LimitError};
use crate::machine::{Machine, Outcome};
use crate::store::{LogWrite, Store, StoreError};
use crate::view::Overlay;
use ages::SessionClock;
use bytes::Bytes;
use model::{Now, Revision};
use proposals::{Proposal, Proposals};
use raft::eraftpb::{Entry, Message, MessageType};
use raft::{Config, RawNode, SnapshotStatus, StateRole};
use reads::Reads;
use std::collections::BTreeMap;
use timeouts::ElectionTimeouts;
use watches::Watches;
use wire::arakoon::{Consistency, RaftMessage, Transaction};

/// What the driver calls a request by; never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// Ticks between heartbeats of a leader.
pub const HEARTBEAT_TICKS: usize = 3;
/// Shortest silence after which a follower campaigns; the longest is half as much again, see `timeouts`.
pub const ELECTION_TICKS: usize = 10;
/// A resting follower counts so many ticks together at most: a heartbeat comes before.
pub const REST_TICKS: usize = HEARTBEAT_TICKS + 1;
/// Ticks without a sign of a snapshot before its sending counts as failed and starts again.
pub const SNAPSHOT_PATIENCE_TICKS: u32 = 150;
/// Entries of one message together, unless one alone is larger.
const MESSAGE_BYTES_MAX: u64 = 256 << 10;
/// Proposed and not yet committed; beyond that clients are told to wait (L8).
const UNCOMMITTED_BYTES_MAX: u64 = 16 << 20;
const COMMITTED_BYTES_PER_READY: u64 = 4 << 20;
const INFLIGHT_MESSAGES_MAX: usize = 64;
/// The log is also compacted when its entries exceed this.
const LOG_BYTES_MAX: u64 = 256 << 20;
/// A lagging peer holds back compaction until the log is this many times its usual length.
const LAG_FACTOR: u64 = 4;
/// Ticks before a node without a past may vote: longer than any campaign in which its earlier life may have voted.
const JOIN_TICKS: u32 = 5 * 10;

#[derive(Debug, Clone)]
pub struct ReplicaConfig {
    pub id: u64,
    /// Seeds the election timeouts (P27).
    pub seed: u64,
    /// Applied entries after which the log is compacted.
    pub compact_after: u64,
    /// `false` for a node that began with an empty disk and may have acknowledged things in an earlier life (P27): it
    /// neither votes nor campaigns before [`Output::CaughtUp`] and [`Replica::begin_voting`].
    pub voting: bool,
}

/// How a request ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    Transacted(Outcome),
    /// The store may be read now; it is as new as was asked for.
    ReadNow,
    /// Ask the leader; this is who it is, as far as we know.
    NotLeader {
        leader: Option<u64>,
        term: u64,
    },
    /// No majority, or leadership moved: a transaction may or may not happen.
    Unknown,
    /// Nothing was done; too much is under way.
    Busy,
    TooLarge(LimitError),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    Send(RaftMessage),
    Answer(Ticket, Answer),
    /// For logs and events (L9).
    Leader {
        leader: Option<u64>,
        term: u64,
    },
    /// The log was replaced by a snapshot of the leader.
    Restored {
        index: u64,
    },
    /// This node has all that the cluster committed, and may vote once that is written down.
    CaughtUp,
    /// As this leader asked for, a session with a TTL is gone (L9).
    SessionExpired(SessionAt),
    /// A peer counts on log entries that this node doesn't have: its disk was replaced behind our back.
    LostLog {
        peer: u64,
        expected: u64,
        last: u64,
    },
}

/// Facts for `status`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplicaStatus {
    pub leader: Option<u64>,
    pub is_leader: bool,
    pub term: u64,
    pub applied: u64,
    pub committed: u64,
    pub voters: Vec<u64>,
    pub log_entries: u64,
    /// Request sessions of clients.
    pub sessions: usize,
    /// Living sessions with a TTL.
    pub ttl_sessions: usize,
    /// Index of the last entry in the log.
    pub last: u64,
    pub voting: bool,
    /// It has voted, or has a log.
    pub has_history: bool,
}

/// See the module.
pub struct Replica<S: Store> {
    raw: RawNode<S>,
    machine: Machine,
    timeouts: ElectionTimeouts,
    proposals: Proposals,
    reads: Reads,
    sessions: SessionClock,
    watches: Watches,
    /// Ticks since a peer's snapshot gave a sign of life.
    snapshots: BTreeMap<u64, u32>,
    led: (Option<u64>, u64),
    was_leader: bool,
    now: Now,
    compact_after: u64,
    joining: Option<Joining>,
    outputs: Vec<Output>,
}

/// On the way to voting.
#[derive(Debug, Default)]
struct Joining {
    ticks: u32,
    /// What a leader had committed when we last took entries from it.
    committed: Option<u64>,
}

impl<S: Store> Replica<S> {
    /// Goes on from what the store holds.
    ///
    /// # Errors
    /// When the store can't be read or holds what raft refuses.
    pub fn open(
        config: &ReplicaConfig,
        store: S,
        logger: &slog::Logger,
    ) -> Result<Self, StoreError> {
        let machine = Machine::load(&store)?;
        let raft_config = Config {
            id: config.id,
            election_tick: ELECTION_TICKS,
            heartbeat_tick: HEARTBEAT_TICKS,
            applied: store.applied(),
            max_size_per_msg: MESSAGE_BYTES_MAX,
            max_inflight_msgs: INFLIGHT_MESSAGES_MAX,
            check_quorum: true,
            pre_vote: true,
            max_uncommitted_size: UNCOMMITTED_BYTES_MAX,
            max_committed_size_per_ready: COMMITTED_BYTES_PER_READY,
            ..Config::default()
        };
        let raw = RawNode::new(&raft_config, store, logger).map_err(raft_failed)?;
        let peers = raw.raft.prs().iter().map(|(id, _)| *id);
        let others: Vec<u64> = peers.filter(|id| *id != config.id).collect();
        let watches = Watches::new(raw.store().applied());
        let mut replica = Self {
            raw,
            machine,
            timeouts: ElectionTimeouts::new(config.seed, config.id, &others),
            watches,
            proposals: Proposals::default(),
            reads: Reads::default(),
            sessions: SessionClock::default(),
            snapshots: BTreeMap::new(),
            led: (None, 0),
            was_leader: false,
            now: Now::default(),
            compact_after: config.compact_after.max(2),
            joining: (!config.voting).then(Joining::default),
            outputs: Vec::new(),
        };
        replica.timeouts.hold(&mut replica.raw);
        // Alone there is nobody to wait for.
        if config.voting && replica.raw.raft.prs().is_singleton() {
            replica.raw.campaign().map_err(raft_failed)?;
            replica.timeouts.hold(&mut replica.raw);
        }
        Ok(replica)
    }

    /// One tick of the election clock, and what time it is.
    pub fn tick(&mut self, now: Now) {
        self.now = now;
        match &mut self.joining {
            // A follower's clock only leads to campaigns.
            Some(joining) => joining.ticks += 1,
            None => {
                self.raw.tick();
                self.timeouts.ticked(&mut self.raw);
            }
        }
        for ticket in self.proposals.expire(now).into_iter().chain(self.reads.expire(now)) {
            self.outputs.push(Output::Answer(ticket, Answer::Unknown));
        }
        for ticket in self.watches.expire(now) {
            self.outputs.push(Output::Answer(ticket, Answer::ReadNow));
        }
        self.watch_snapshots();
        self.tend_sessions();
    }

    /// Whether the next [`REST_TICKS`] ticks, the last of them at `until`, may be counted together, at the latest then and
    /// before any message: this follower heard its leader so lately that none of them begins a campaign, and nobody's
    /// deadline falls due before. An idle node needn't wake up for each.
    #[must_use]
    pub fn rests(&self, until: Now) -> bool {
        let raft = &self.raw.raft;
        raft.state == StateRole::Follower
            && raft.leader_id != raft::INVALID_ID
            && raft.election_elapsed + REST_TICKS < ELECTION_TICKS
            && self.joining.is_none()
            && self.reads.is_empty()
            && !self.watches.is_due(until)
    }

    /// Raft waits for ever for the outcome of a snapshot it sent; when nothing is heard it is told to try again.
    fn watch_snapshots(&mut self) {
        let sending: Vec<u64> = self
            .raw
            .raft
            .prs()
            .iter()
            .filter(|(_, progress)| progress.state == raft::ProgressState::Snapshot)
            .map(|(id, _)| *id)
            .collect();
        self.snapshots.retain(|id, _| sending.contains(id));
        for id in sending {
            let silent = self.snapshots.entry(id).or_insert(0);
            *silent += 1;
            if *silent >= SNAPSHOT_PATIENCE_TICKS {
                self.snapshot_failed(id);
            }
        }
    }

    /// The peer is still fetching its snapshot.
    pub fn snapshot_progress(&mut self, peer: u64) {
        if let Some(silent) = self.snapshots.get_mut(&peer) {
            *silent = 0;
        }
    }

    /// The snapshot for this peer got lost.
    pub fn snapshot_failed(&mut self, peer: u64) {
        self.snapshots.remove(&peer);
        self.raw.report_snapshot(peer, SnapshotStatus::Failure);
        self.timeouts.hold(&mut self.raw);
    }

    /// A message to this peer got lost.
    pub fn peer_unreachable(&mut self, peer: u64) {
        self.raw.report_unreachable(peer);
        self.timeouts.hold(&mut self.raw);
    }

    /// A message from a peer.
    ///
    /// # Errors
    /// When it isn't one that peers send.
    pub fn receive(&mut self, message: RaftMessage) -> Result<(), wire::DecodeError> {
        let message = convert::from_wire(message)?;
        if self.lost_log(&message) || self.asks_a_vote_in_vain(&message) {
            return Ok(());
        }
        if let Some(joining) = &mut self.joining
            && message.get_msg_type() == MessageType::MsgAppend
            && message.term >= self.raw.raft.term
        {
            joining.committed = Some(message.commit);
        }
        // Raft refuses messages of strangers and of other terms; there is nobody to tell.
        let _ = self.raw.step(message);
        self.timeouts.hold(&mut self.raw);
        Ok(())
    }

    /// Raft would panic at a leader that counts on entries we acknowledged in an earlier life and lost since (P27).
    fn lost_log(&mut self, message: &Message) -> bool {
        let last = self.raw.raft.raft_log.last_index();
        let lost = message.get_msg_type() == MessageType::MsgHeartbeat
            && message.term >= self.raw.raft.term
            && message.commit > last;
        // A joining node has told its leader; the next heartbeats won't count on it.
        if lost && self.joining.is_none() {
            let (peer, expected) = (message.from, message.commit);
            self.outputs.push(Output::LostLog { peer, expected, last });
        }
        lost
    }

    /// Before it has caught up, a node without a past gives no vote and takes no leadership.
    fn asks_a_vote_in_vain(&self, message: &Message) -> bool {
        let kind = message.get_msg_type();
        let vote = kind == MessageType::MsgRequestVote
            || kind == MessageType::MsgRequestPreVote
            || kind == MessageType::MsgTimeoutNow;
        vote && self.joining.is_some()
    }

    /// The peer began anew with `last` as its last entry: what it acknowledged beyond counts no more.
    pub fn peer_began_anew(&mut self, peer: u64, last: u64) {
        if self.raw.raft.state != StateRole::Leader || peer == self.raw.raft.id {
            return;
        }
        let Some(progress) = self.raw.raft.mut_prs().get_mut(peer) else { return };
        if progress.matched > last {
            *progress = raft::Progress::new(1, INFLIGHT_MESSAGES_MAX);
            // It has just been heard; raft sends snapshots only to who was.
            progress.recent_active = true;
            self.raw.raft.send_append(peer);
        }
    }

    /// From now on this node votes; the caller has written that down.
    pub fn begin_voting(&mut self) {
        self.joining = None;
        self.timeouts.hold(&mut self.raw);
    }

    /// Everything that was committed with the help of an earlier life of this node was committed before its leader took
    /// note of the new one, and so lies below the commit index that came along with the entries we took since.
    fn follow_joining(&mut self) {
        let committed = self.raw.raft.raft_log.committed;
        if let Some(joining) = &mut self.joining
            && joining.ticks >= JOIN_TICKS
            && joining.committed.is_some_and(|needed| needed > 0 && needed <= committed)
        {
            // Said once; asked again with the next entries if nobody acts on it.
            joining.committed = None;
            self.outputs.push(Output::CaughtUp);
        }
    }

    /// A client's transaction.
    pub fn transact(&mut self, ticket: Ticket, transaction: &Transaction, deadline: Now) {
        if let Err(limit) = limits::check(transaction) {
            return self.answer(ticket, Answer::TooLarge(limit));
        }
        // Raft would forward it to the leader, where nobody knows the ticket.
        if self.raw.raft.state != StateRole::Leader {
            return self.answer(ticket, self.not_leader());
        }
        if self.proposals.is_full() {
            return self.answer(ticket, Answer::Busy);
        }
        let data = wire::encode_to_bytes(transaction);
        if self.raw.propose(Vec::new(), data.to_vec()).is_err() {
            return self.answer(ticket, Answer::Busy);
        }
        let index = self.raw.raft.raft_log.last_index();
        let term = self.raw.raft.term;
        self.proposals.insert(index, Proposal { term, ticket, deadline });
    }

    /// A client wants to read: [`Answer::ReadNow`] says when.
    pub fn read(&mut self, ticket: Ticket, consistency: Consistency, deadline: Now) {
        if self.reads.is_full() {
            return self.answer(ticket, Answer::Busy);
        }
        match consistency {
            Consistency::Any => self.answer(ticket, Answer::ReadNow),
            Consistency::AtLeast(Revision(index)) if index <= self.applied() => {
                self.answer(ticket, Answer::ReadNow);
            }
            Consistency::AtLeast(Revision(index)) => self.reads.wait_for(index, ticket, deadline),
            Consistency::Linearizable if self.raw.raft.state == StateRole::Leader => {
                self.reads.ask(ticket, deadline);
            }
            Consistency::Linearizable => self.answer(ticket, self.not_leader()),
        }
    }

    /// Does everything that is due: sends, writes, applies, answers.
    ///
    /// # Errors
    /// When the disk fails. The node must stop then.
    pub fn advance(&mut self) -> Result<(), StoreError> {
        loop {
            self.start_read_round();
            if !self.raw.has_ready() {
                break;
            }
            self.handle_ready()?;
            self.timeouts.hold(&mut self.raw);
            self.follow_leadership();
            self.answer_reads();
        }
        self.follow_joining();
        self.compact()
    }

    /// What happened since the last call, in order.
    pub fn take_outputs(&mut self) -> Vec<Output> {
        std::mem::take(&mut self.outputs)
    }

    #[must_use]
    pub fn store(&self) -> &S {
        self.raw.store()
    }

    /// For what isn't Raft's: staging a snapshot, syncing a witness.
    #[must_use]
    pub fn store_mut(&mut self) -> &mut S {
        self.raw.mut_store()
    }

    /// A leader that is about to stop gives its place to the peer that has most of its log; `false` when there is none.
    pub fn hand_over(&mut self) -> bool {
        if self.raw.raft.state != StateRole::Leader {
            return false;
        }
        let me = self.raw.raft.id;
        let peers =
            self.raw.raft.prs().iter().filter(|(id, peer)| **id != me && peer.recent_active);
        let best = peers.max_by_key(|(id, peer)| (peer.matched, **id)).map(|(id, _)| *id);
        if let Some(best) = best {
            self.raw.transfer_leader(best);
            self.timeouts.hold(&mut self.raw);
        }
        best.is_some()
    }

    /// The disk alone, as a crash leaves it.
    #[must_use]
    pub fn into_store(self) -> S {
        self.raw.raft.r.raft_log.store
    }

    #[must_use]
    pub fn status(&self) -> ReplicaStatus {
        let log = &self.raw.raft.raft_log;
        let mut voters: Vec<u64> = self.raw.raft.prs().iter().map(|(id, _)| *id).collect();
        voters.sort_unstable();
        ReplicaStatus {
            leader: self.leader(),
            is_leader: self.raw.raft.state == StateRole::Leader,
            term: self.raw.raft.term,
            applied: self.applied(),
            committed: log.committed,
            voters,
            log_entries: (log.last_index() + 1).saturating_sub(log.first_index()),
            sessions: self.machine.session_count(),
            ttl_sessions: self.machine.ttl_sessions().len(),
            last: log.last_index(),
            voting: self.joining.is_none(),
            has_history: self.raw.raft.term > 0 || log.last_index() > 0,
        }
    }

    fn leader(&self) -> Option<u64> {
        Some(self.raw.raft.leader_id).filter(|id| *id != raft::INVALID_ID)
    }

    fn not_leader(&self) -> Answer {
        Answer::NotLeader { leader: self.leader(), term: self.raw.raft.term }
    }

    fn applied(&self) -> u64 {
        self.raw.store().applied()
    }

    fn answer(&mut self, ticket: Ticket, answer: Answer) {
        self.outputs.push(Output::Answer(ticket, answer));
    }

    fn send(&mut self, messages: Vec<Message>) {
        let travelling = messages.into_iter().filter_map(convert::to_wire);
        self.outputs.extend(travelling.map(Output::Send));
    }

    fn handle_ready(&mut self) -> Result<(), StoreError> {
        let mut ready = self.raw.ready();
        self.send(ready.take_messages());
        let snapshot = Some(ready.snapshot()).filter(|snapshot| !snapshot.is_empty()).cloned();
        let restored = snapshot.as_ref().map(|snapshot| snapshot.get_metadata().index);
        let write = LogWrite {
            snapshot,
            entries: ready.take_entries(),
            hard_state: ready.hs().cloned(),
            sync: ready.must_sync(),
        };
        if write.snapshot.is_some() || !write.entries.is_empty() || write.hard_state.is_some() {
            self.raw.mut_store().persist(write)?;
        }
        if let Some(index) = restored {
            self.machine = Machine::load(self.raw.store())?;
            self.watches.forget(index);
            self.outputs.push(Output::Restored { index });
        }
        self.send(ready.take_persisted_messages());
        for state in ready.take_read_states() {
            self.reads.confirmed(&state.request_ctx, state.index);
        }
        self.apply(ready.take_committed_entries())?;
        let mut light = self.raw.advance_append(ready);
        self.send(light.take_messages());
        self.apply(light.take_committed_entries())?;
        self.raw.advance_apply();
        Ok(())
    }

    /// Applies committed entries with one write, then answers those who wait for them.
    fn apply(&mut self, entries: Vec<Entry>) -> Result<(), StoreError> {
        let Some(last) = entries.last().map(|entry| entry.index) else { return Ok(()) };
        let mut answers = Vec::new();
        let leads = self.raw.raft.state == StateRole::Leader;
        let mut rows = Overlay::new(self.raw.store());
        for entry in entries {
            let (index, term) = (entry.index, entry.term);
            let outcome = match apply_entry(&mut self.machine, &mut rows, entry)? {
                Applied::Nothing => None,
                Applied::Transaction(outcome) => Some(outcome),
                Applied::Leaders { expired } => {
                    let told = expired.into_iter().filter(|_| leads);
                    answers.extend(told.map(Output::SessionExpired));
                    None
                }
            };
            self.watches.record(index, rows.take_noted());
            if let Some(proposal) = self.proposals.remove(index) {
                // Another term's entry took this place: ours was lost, but may live on under another index.
                let answer = match outcome {
                    Some(outcome) if proposal.term == term => Answer::Transacted(outcome),
                    Some(_) | None => Answer::Unknown,
                };
                answers.push(Output::Answer(proposal.ticket, answer));
            }
        }
        let changes = rows.into_changes();
        self.raw.mut_store().apply(changes, last)?;
        let told = self.watches.due(last).into_iter();
        answers.extend(told.map(|ticket| Output::Answer(ticket, Answer::ReadNow)));
        self.outputs.append(&mut answers);
        Ok(())
    }

    /// Nobody but a leader can say what becomes of what it proposed.
    fn follow_leadership(&mut self) {
        let is_leader = self.raw.raft.state == StateRole::Leader;
        let led = (self.leader(), self.raw.raft.term);
        if self.was_leader && (!is_leader || led.1 != self.led.1) {
            for ticket in self.proposals.drain().into_iter().chain(self.reads.drain_leader()) {
                self.answer(ticket, Answer::Unknown);
            }
        }
        if led != self.led {
            self.outputs.push(Output::Leader { leader: led.0, term: led.1 });
        }
        self.led = led;
        self.was_leader = is_leader;
    }

    /// One round asks a majority for all reads that wait, and only one is under way at a time.
    fn start_read_round(&mut self) {
        // Before its first commit a leader doesn't know what is committed, and raft drops the question silently.
        let able =
            self.raw.raft.state == StateRole::Leader && self.raw.raft.commit_to_current_term();
        if able && let Some(context) = self.reads.start_round() {
            self.raw.read_index(context);
            self.timeouts.hold(&mut self.raw);
        }
    }

    fn answer_reads(&mut self) {
        for ticket in self.reads.due(self.applied()) {
            self.answer(ticket, Answer::ReadNow);
        }
    }

    /// Forgets log that no live peer needs, so that followers a little behind need no snapshot.
    fn compact(&mut self) -> Result<(), StoreError> {
        let applied = self.applied();
        let first = self.raw.raft.raft_log.first_index();
        let held = (applied + 1).saturating_sub(first);
        let too_large = self.raw.store().log_bytes() > LOG_BYTES_MAX && held > 1;
        if held < self.compact_after && !too_large {
            return Ok(());
        }
        let mut through = applied - held / 2;
        if self.raw.raft.state == StateRole::Leader
            && held < LAG_FACTOR * self.compact_after
            && !too_large
        {
            for (_, progress) in self.raw.raft.prs().iter().filter(|(_, peer)| peer.recent_active) {
                let needed = match progress.state {
                    raft::ProgressState::Snapshot => progress.pending_snapshot,
                    raft::ProgressState::Probe | raft::ProgressState::Replicate => progress.matched,
                };
                through = through.min(needed);
            }
        }
        if through >= first { self.raw.mut_store().compact(through) } else { Ok(()) }
    }
}

/// What a log entry was.
enum Applied {
    /// A new leader's empty entry.
    Nothing,
    Transaction(Outcome),
    /// A leader's own.
    Leaders {
        expired: Vec<SessionAt>,
    },
}

fn apply_entry<S: Store>(
    machine: &mut Machine,
    rows: &mut Overlay<'_, S>,
    entry: Entry,
) -> Result<Applied, StoreError> {
    let (index, data): (u64, Bytes) = (entry.index, entry.data);
    let corrupt = |cause| StoreError::corrupt(format!("log entry {index}: {cause}"));
    if data.is_empty() {
        return Ok(Applied::Nothing);
    }
    if entry.context == leader_entry::CONTEXT {
        let entry = wire::decode_all(data).map_err(corrupt)?;
        return Ok(Applied::Leaders { expired: machine.follow(rows, &entry) });
    }
    let transaction: Transaction = wire::decode_all(data).map_err(corrupt)?;
    machine.apply(rows, Revision(index), &transaction).map(Applied::Transaction)
}

#[expect(clippy::needless_pass_by_value, reason = "used as a map_err function")]
fn raft_failed(error: raft::Error) -> StoreError {
    StoreError::Corrupt(format!("raft can't start from it: {error}"))
}
