//! Sessions with a TTL under drifting clocks, changes of leader, pauses, crashes and lost messages (P17).
//!
//! Each node and each holder has a clock of its own, up to 1 % fast or slow. In every run
//!
//! - no session is gone before its TTL has passed since its holder sent the last renewal that was acknowledged, on every
//!   clock there is; so a holder that stops by its own clock has stopped;
//! - a dead holder's session is gone within TTL + 3 s of a healthy majority, a living holder's lives on;
//! - a cluster without sessions writes nothing.
//!
//! Time is counted in steps of 100 ms; no clock of the machine is read.

#![expect(clippy::unwrap_used, reason = "a failed simulation ends the test")]

use arakoon_core::{Answer, MemoryStore, Outcome, Output, Replica, ReplicaConfig, Ticket};
use bytes::Bytes;
use model::{ClientId, Incarnation, Now};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use wire::arakoon::{RaftMessage, Transaction, Update, session_id};

const NODES: u64 = 3;
const HOLDERS: u64 = 3;
const STEP: Duration = Duration::from_millis(100);
const TTL: Duration = Duration::from_secs(9);
const MARGIN: Duration = Duration::from_secs(2);
const STORM: u64 = 900;
/// TTL + 3 s, and an election before that.
const GONE_WITHIN: u64 = 120;
const ELECTION: u64 = 40;

/// A clock that may be 1 % wrong, and began at some time of its own.
#[derive(Clone, Copy)]
struct Clock {
    per_mille: u64,
    began: Duration,
}

impl Clock {
    fn any(rng: &mut fastrand::Rng) -> Self {
        Self { per_mille: rng.u64(990..=1010), began: Duration::from_secs(rng.u64(0..100_000)) }
    }

    fn at(self, step: u64) -> Now {
        Now(self.began + Duration::from_micros(step * 100 * self.per_mille))
    }
}

struct Holder {
    clock: Clock,
    request_session: Option<ClientId>,
    request: u64,
    incarnation: u64,
    opened: bool,
    /// Ticket, node and step of sending of what is under way.
    under_way: Option<(Ticket, u64, u64)>,
    next: u64,
    /// Step at which the last acknowledged renewal was sent.
    acknowledged: Option<u64>,
    dead: bool,
}

impl Holder {
    fn new(clock: Clock) -> Self {
        Self {
            clock,
            request_session: None,
            request: 0,
            incarnation: 1,
            opened: false,
            under_way: None,
            next: 0,
            acknowledged: None,
            dead: false,
        }
    }

    fn lives(&self, step: u64) -> bool {
        let until = self.acknowledged.map(|sent| self.clock.at(sent).plus(TTL - MARGIN));
        self.opened && until.is_some_and(|until| self.clock.at(step) < until)
    }
}

struct Node {
    replica: Replica<MemoryStore>,
    clock: Clock,
    /// Neither ticks nor hears until then, like a stopped process.
    paused_until: u64,
}

#[derive(Default)]
struct Seen {
    expired: u64,
    restored: u64,
    leaders: BTreeSet<(u64, u64)>,
}

struct Sim {
    seed: u64,
    rng: fastrand::Rng,
    step: u64,
    up: BTreeMap<u64, Node>,
    down: BTreeMap<u64, MemoryStore>,
    clocks: BTreeMap<u64, Clock>,
    lives: u64,
    network: Vec<(u64, RaftMessage)>,
    cut: BTreeSet<u64>,
    holders: Vec<Holder>,
    tickets: u64,
    calm: bool,
    seen: Seen,
}

impl Sim {
    fn new(seed: u64, holders: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let voters: Vec<u64> = (1..=NODES).collect();
        let clocks = voters.iter().map(|id| (*id, Clock::any(&mut rng))).collect();
        let holders = (0..holders).map(|_| Holder::new(Clock::any(&mut rng))).collect();
        let stores = voters.iter().map(|id| (*id, MemoryStore::new(voters.clone())));
        let mut sim = Self {
            seed,
            step: 0,
            up: BTreeMap::new(),
            down: stores.collect(),
            clocks,
            lives: 0,
            network: Vec::new(),
            cut: BTreeSet::new(),
            holders,
            tickets: 0,
            calm: false,
            seen: Seen::default(),
            rng,
        };
        voters.iter().for_each(|id| sim.start(*id));
        sim
    }

    fn start(&mut self, id: u64) {
        let Some(store) = self.down.remove(&id) else { return };
        self.lives += 1;
        let seed = self.seed ^ (self.lives << 32);
        let config = ReplicaConfig { id, seed, compact_after: 40, voting: true };
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let replica = Replica::open(&config, store, &logger).unwrap();
        self.up.insert(id, Node { replica, clock: self.clocks[&id], paused_until: 0 });
    }

    fn crash(&mut self, id: u64) {
        let Some(node) = self.up.remove(&id) else { return };
        let store = node.replica.into_store();
        let kept = self.rng.usize(..=store.unsynced());
        self.down.insert(id, store.crash(kept).unwrap());
        // The whole machine may have gone: its clock begins anew then.
        if self.rng.bool() {
            let clock = Clock::any(&mut self.rng);
            self.clocks.insert(id, clock);
        }
    }

    fn storm(&mut self) {
        let id = self.rng.u64(1..=NODES);
        match self.rng.u32(..240) {
            0 => self.crash(id),
            1 => self.pause(id),
            2 => drop(self.cut.insert(id)),
            3 | 4 => self.cut.clear(),
            5 => self.kill_leader(),
            _ => {}
        }
        for id in self.down.keys().copied().collect::<Vec<_>>() {
            if self.rng.u32(..60) == 0 {
                self.start(id);
            }
        }
    }

    fn pause(&mut self, id: u64) {
        let until = self.step + self.rng.u64(3..150);
        if let Some(node) = self.up.get_mut(&id) {
            node.paused_until = until;
        }
    }

    fn leader(&self) -> Option<u64> {
        let leading = self.up.iter().filter(|(_, node)| node.replica.status().is_leader);
        leading.max_by_key(|(_, node)| node.replica.status().term).map(|(id, _)| *id)
    }

    fn kill_leader(&mut self) {
        if let Some(leader) = self.leader() {
            self.crash(leader);
        }
    }

    /// Holders renew, or open what they don't have; a request without an answer is sent again, as another renewal.
    fn hold(&mut self, at: usize) {
        let step = self.step;
        let node = self.leader().unwrap_or(1);
        let sleeps = (!self.calm && self.rng.u32(..250) == 0).then(|| self.rng.u64(40..140));
        let holder = &mut self.holders[at];
        if let Some(sleeps) = sleeps {
            // It is cut off or suspended, about as long as its TTL, and no answer reaches it.
            holder.under_way = None;
            holder.next = step + sleeps;
        }
        let waiting = holder.under_way.is_some_and(|(_, _, since)| step < since + 30);
        if holder.dead || waiting || step < holder.next {
            return;
        }
        let Some(node_up) = self.up.get_mut(&node) else { return };
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        let incarnation = Incarnation(holder.incarnation);
        let updates = match holder.request_session {
            None => vec![],
            Some(_) if holder.opened => vec![Update::RenewSession { id: name(at), incarnation }],
            Some(_) => vec![Update::OpenSession {
                id: name(at),
                incarnation,
                ttl_ms: 9000,
                replaces: None,
            }],
        };
        let (client, request) = match holder.request_session {
            None => (ClientId(at as u128), 0),
            Some(session) => {
                holder.request += 1;
                (session, holder.request)
            }
        };
        let assertions = vec![];
        let transaction =
            Transaction { client, request, answered_below: request, assertions, updates };
        let deadline = node_up.clock.at(step).plus(STEP * 30);
        node_up.replica.transact(ticket, &transaction, deadline);
        holder.under_way = Some((ticket, node, step));
        holder.next = step + 1;
    }

    fn answered(&mut self, ticket: Ticket, answer: &Answer) {
        let step = self.step;
        let mine = |holder: &Holder| holder.under_way.is_some_and(|(asked, _, _)| asked == ticket);
        let Some(at) = self.holders.iter().position(mine) else { return };
        let holder = &mut self.holders[at];
        let Some((_, _, sent)) = holder.under_way.take() else { return };
        match answer {
            Answer::Transacted(Outcome::Committed(revision)) => {
                if holder.request_session.is_none() {
                    holder.request_session = Some(session_id(ClientId(at as u128), *revision));
                    return;
                }
                holder.opened = true;
                holder.acknowledged = Some(sent);
                holder.next = sent + self.rng.u64(20..30);
            }
            Answer::Transacted(Outcome::SessionRefused(refused)) => {
                assert!(
                    holder.opened || refused.found.is_none() || holder.incarnation > 1,
                    "seed {}: nobody else opened {refused:?}",
                    self.seed
                );
                assert!(
                    !holder.lives(step),
                    "seed {}: lost before its time: {refused:?}",
                    self.seed
                );
                holder.opened = false;
                holder.acknowledged = None;
                holder.incarnation += 1;
            }
            Answer::Transacted(Outcome::Expired) => holder.request_session = None,
            Answer::NotLeader { .. } | Answer::Unknown | Answer::Busy => {}
            Answer::Transacted(_) | Answer::ReadNow | Answer::TooLarge(_) => {
                panic!("seed {}: {answer:?}", self.seed)
            }
        }
    }

    fn deliver(&mut self) {
        let mut messages = std::mem::take(&mut self.network);
        self.rng.shuffle(&mut messages);
        for (due, message) in messages {
            let lost = self.cut.contains(&message.from) || self.cut.contains(&message.to);
            let Some(node) = self.up.get_mut(&message.to).filter(|_| !lost) else { continue };
            // What waits for a paused process is there when it wakes.
            if self.step < due || self.step < node.paused_until {
                self.network.push((due, message));
            } else if self.calm || self.rng.u32(..20) != 0 {
                node.replica.receive(message).unwrap();
            }
        }
        // A socket's buffer is finite.
        self.network.truncate(2000);
    }

    fn round(&mut self) {
        self.step += 1;
        if !self.calm {
            self.storm();
        }
        for at in 0..self.holders.len() {
            self.hold(at);
        }
        self.deliver();
        let before = self.rows();
        for id in self.up.keys().copied().collect::<Vec<_>>() {
            let step = self.step;
            let node = self.up.get_mut(&id).unwrap();
            if step < node.paused_until {
                continue;
            }
            // A driver that wakes applies what came in before it ticks, or after; both happen.
            if self.rng.bool() {
                node.replica.advance().unwrap();
            }
            node.replica.tick(node.clock.at(step));
            node.replica.advance().unwrap();
            for output in node.replica.take_outputs() {
                match output {
                    Output::Send(message) => {
                        let late = if self.calm { 0 } else { self.rng.u64(0..4) };
                        self.network.push((step + late, message));
                    }
                    Output::Answer(ticket, answer) => self.answered(ticket, &answer),
                    Output::Leader { leader, term } if leader == Some(id) => {
                        self.seen.leaders.insert((id, term));
                    }
                    Output::Leader { .. } | Output::CaughtUp => {}
                    Output::SessionExpired(_) => self.seen.expired += 1,
                    Output::Restored { .. } => self.seen.restored += 1,
                    Output::LostLog { .. } => panic!("seed {}: a synced log was lost", self.seed),
                }
            }
        }
        self.check(&before);
    }

    /// What each node holds: incarnation and renewal by session.
    fn rows(&self) -> BTreeMap<(u64, usize), u64> {
        let mut rows = BTreeMap::new();
        for (id, node) in &self.up {
            for fact in node.replica.ttl_sessions(b"") {
                let at = std::str::from_utf8(&fact.id[2..]).unwrap().parse().unwrap();
                rows.insert((*id, at), fact.record.incarnation.0);
            }
        }
        rows
    }

    /// A session that went away, on the node that has applied most, was over by every clock.
    fn check(&self, before: &BTreeMap<(u64, usize), u64>) {
        let now = self.rows();
        let newest = self.up.iter().max_by_key(|(_, node)| node.replica.status().applied);
        let Some((newest, _)) = newest else { return };
        for ((node, at), incarnation) in before.iter().filter(|((node, _), _)| node == newest) {
            let holder = &self.holders[*at];
            let gone = now.get(&(*node, *at)) != Some(incarnation);
            if !gone || holder.incarnation != *incarnation {
                continue;
            }
            let Some(sent) = holder.acknowledged else { continue };
            let passed = STEP * u32::try_from(self.step - sent).unwrap();
            let by_holder = holder.clock.at(self.step).since(holder.clock.at(sent));
            assert!(
                passed >= TTL && by_holder >= TTL && !holder.lives(self.step),
                "seed {}: session {at} gone {passed:?} after its last acknowledged renewal",
                self.seed
            );
        }
    }

    fn heal(&mut self) {
        self.calm = true;
        self.cut.clear();
        (1..=NODES).for_each(|id| self.start(id));
        self.up.values_mut().for_each(|node| node.paused_until = 0);
    }

    fn living(&self) -> Vec<usize> {
        let leader = self.leader().unwrap();
        self.rows().into_keys().filter(|(id, _)| *id == leader).map(|(_, at)| at).collect()
    }
}

fn name(at: usize) -> Bytes {
    Bytes::from(format!("r/{at}"))
}

fn seeds(from: u64, count: u64) -> std::ops::Range<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    match number("HOLDFAST_SEED") {
        Some(seed) => seed..seed + 1,
        None => from..from + number("HOLDFAST_SEEDS").unwrap_or(count),
    }
}

#[test]
fn p17_no_session_ends_before_its_holder_has_stopped_and_none_outlives_it_long() {
    let (mut expired, mut changes, mut restored) = (0, 0, 0);
    for seed in seeds(0, 25) {
        let mut sim = Sim::new(seed, HOLDERS);
        for _ in 0..STORM {
            sim.round();
        }
        sim.heal();
        for _ in 0..ELECTION {
            sim.round();
        }
        // One dies, at any moment of its cycle.
        let dead = sim.rng.usize(..sim.holders.len());
        sim.holders[dead].dead = true;
        for _ in 0..GONE_WITHIN {
            sim.round();
        }
        assert!(!sim.living().contains(&dead), "seed {seed}: a dead holder's session lives on");
        for (at, holder) in sim.holders.iter().enumerate().filter(|(_, holder)| !holder.dead) {
            assert!(holder.lives(sim.step), "seed {seed}: healed, but holder {at} has no session");
            assert!(sim.living().contains(&at), "seed {seed}");
        }
        expired += sim.seen.expired;
        changes += sim.seen.leaders.len();
        restored += sim.seen.restored;
    }
    // A storm that does nothing tests nothing.
    if std::env::var("HOLDFAST_SEED").is_err() {
        assert!(expired > 75 && changes > 75 && restored > 0, "{expired} {changes} {restored}");
    }
    println!("{expired} expired, {changes} leaders, {restored} snapshots");
}

#[test]
fn p17_a_successor_grants_the_remainder_also_when_every_node_began_anew() {
    for seed in seeds(10_000, 10) {
        let mut sim = Sim::new(seed, 1);
        sim.calm = true;
        while sim.holders[0].acknowledged.is_none() {
            sim.round();
            assert!(sim.step < 100, "seed {seed}");
        }
        sim.holders[0].dead = true;
        let died = sim.step;
        // Half of the TTL, then all nodes are killed at once and none remembers when it heard of whom.
        for _ in 0..45 {
            sim.round();
        }
        for id in 1..=NODES {
            sim.crash(id);
        }
        (1..=NODES).for_each(|id| sim.start(id));
        while sim.leader().is_none() {
            sim.round();
            assert!(sim.step < died + 45 + ELECTION, "seed {seed}: no leader");
        }
        let election = sim.step - died - 45;
        while !sim.living().is_empty() {
            sim.round();
            assert!(
                sim.step <= died + GONE_WITHIN + election,
                "seed {seed}: a full TTL was granted"
            );
        }
    }
}

#[test]
fn p17_leaders_that_change_all_the_time_dont_keep_the_dead_alive() {
    for seed in seeds(20_000, 10) {
        let mut sim = Sim::new(seed, 1);
        sim.calm = true;
        while sim.holders[0].acknowledged.is_none() {
            sim.round();
            assert!(sim.step < 100, "seed {seed}");
        }
        sim.holders[0].dead = true;
        // Every leader is killed 2.5 s after it was elected and comes back at once.
        let (mut healthy, mut led) = (0, 0);
        while healthy == 0 || !sim.up.values().all(|node| node.replica.ttl_sessions(b"").is_empty())
        {
            sim.round();
            let leader = sim.leader();
            healthy += u64::from(leader.is_some());
            led = if leader.is_some() { led + 1 } else { 0 };
            if let Some(leader) = leader.filter(|_| led >= 25) {
                sim.crash(leader);
                sim.start(leader);
                led = 0;
            }
            assert!(healthy <= GONE_WITHIN, "seed {seed}: {healthy} steps of leadership");
        }
    }
}

/// h_15.
#[test]
fn an_idle_cluster_writes_nothing_and_living_sessions_write_once_a_second_at_most() {
    for holders in [0, 3] {
        let mut sim = Sim::new(7, holders);
        sim.calm = true;
        for _ in 0..100 {
            sim.round();
        }
        let leader = sim.leader().unwrap();
        let last = sim.up[&leader].replica.status().last;
        let requests: u64 = sim.holders.iter().map(|holder| holder.request).sum();
        for _ in 0..300 {
            sim.round();
        }
        let written = sim.up[&leader].replica.status().last - last;
        let renewals: u64 = sim.holders.iter().map(|holder| holder.request).sum::<u64>() - requests;
        assert_eq!(sim.leader(), Some(leader));
        let most = if holders == 0 { 0 } else { renewals + 30 };
        assert!(written <= most, "{written} entries in 30 s, {renewals} renewals");
        assert!(renewals <= holders * 16);
    }
}
