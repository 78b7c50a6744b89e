//! The schedule: a user, a session, a network and a router, one random step at a time, and the oracle.

use crate::router::{BLOCK, BLOCKS, Over, Router};
use bytes::Bytes;
use edge_core::session::{
    Answer, CallKey, Effect, Event, Failure, IoError, Op, Outcome, Request, Session, Settings,
};
use model::Now;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;
use wire::router::{Durability, UnmapKind};

const OPS: u32 = 150;

#[derive(Debug, Default, Clone, Copy)]
pub struct Seen {
    pub crashes: u64,
    pub cuts: u64,
    pub replayed: u64,
    pub lost_unflushed: u64,
    pub reads: u64,
    pub refused: u64,
}

impl Seen {
    pub fn add(&mut self, other: Self) {
        self.crashes += other.crashes;
        self.cuts += other.cuts;
        self.replayed += other.replayed;
        self.lost_unflushed += other.lost_unflushed;
        self.reads += other.reads;
        self.refused += other.refused;
    }
}

/// What the user has under way.
#[derive(Debug, Clone)]
enum Asked {
    /// Writes `id` (or zeroes: an unmap) to blocks `first..end`.
    Change { id: u64, first: usize, end: usize, durability: Durability },
    /// What each block must at least show.
    Read { first: usize, floor: Vec<u64> },
    /// What was acknowledged before it was asked.
    Flush { floor: Vec<u64> },
}

/// Whether connections and routers may fail in a step.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Weather {
    Calm,
    Rough,
}

pub struct World {
    random: u64,
    now: Now,
    session: Session<u32>,
    router: Router,
    linked: bool,
    /// Requests on the way, with whether their connection still stands.
    to_router: VecDeque<(CallKey, Request)>,
    /// Of a connection that was cut, still in the router's queue.
    stale: VecDeque<Request>,
    answers: Vec<(CallKey, Result<Answer, Failure>)>,
    asked: BTreeMap<u32, Asked>,
    next_op: u32,
    /// Which change each block shows, by the order in which changes were submitted: of every block, the list of
    /// (order, value). Overlapping changes take effect in the order of submission, so what a block shows only grows.
    orders: Vec<Vec<u64>>,
    /// Order of the youngest change known to have taken effect, by block.
    floor: Vec<u64>,
    /// The same for what must survive the loss of edge and router together.
    durable: Vec<u64>,
    digest: u64,
    seen: Seen,
}

impl World {
    pub fn new(seed: u64) -> Self {
        let settings = Settings {
            log_bytes: 3000 + seed % 5000,
            log_entries: 8 + (seed % 20) as usize,
            flush_after: Duration::from_millis(300),
            io_deadline: None,
            call_timeout: Duration::from_secs(60),
            unreadable_patience: Duration::from_secs(3600),
            shared: false,
        };
        Self {
            random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            now: Now(Duration::from_secs(1)),
            session: Session::new(settings, seed),
            router: Router::new(),
            linked: false,
            to_router: VecDeque::new(),
            stale: VecDeque::new(),
            answers: Vec::new(),
            asked: BTreeMap::new(),
            next_op: 0,
            orders: vec![vec![0]; BLOCKS],
            floor: vec![0; BLOCKS],
            durable: vec![0; BLOCKS],
            digest: 0xcbf2_9ce4_8422_2325,
            seen: Seen::default(),
        }
    }

    pub fn seen(&self) -> Seen {
        self.seen
    }

    /// splitmix64
    fn draw(&mut self, below: u64) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % below
    }

    fn note(&mut self, what: &str) {
        for byte in what.bytes() {
            self.digest = (self.digest ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    pub fn run(&mut self) -> u64 {
        while self.next_op < OPS || !self.asked.is_empty() {
            let calm = self.next_op >= OPS && self.draw(4) > 0;
            self.step(if calm { Weather::Calm } else { Weather::Rough });
            self.settle();
        }
        self.check_all_by_reading();
        self.check_double_death();
        self.digest
    }

    fn step(&mut self, weather: Weather) {
        self.now = self.now.plus(Duration::from_millis(self.draw(20)));
        match self.draw(100) {
            0..30 if self.next_op < OPS && self.asked.len() < 12 => self.submit(),
            30..60 => self.deliver_request(),
            60..90 => self.deliver_answer(),
            90..94 if !self.linked => self.link(),
            94 if weather == Weather::Rough => self.cut(),
            95 if weather == Weather::Rough && self.draw(2) == 0 => self.crash(),
            96 => self.serve_stale(),
            _ => {
                if !self.linked && self.draw(3) == 0 {
                    self.link();
                }
                self.session.tick(self.now);
            }
        }
    }

    fn submit(&mut self) {
        let ticket = self.next_op;
        self.next_op += 1;
        let first = usize::try_from(self.draw(BLOCKS as u64)).unwrap();
        let end = (first + 1 + usize::try_from(self.draw(4)).unwrap()).min(BLOCKS);
        let (offset, len) = (first as u64 * BLOCK, (end - first) as u64 * BLOCK);
        let durability = if self.draw(8) == 0 { Durability::Durable } else { Durability::Normal };
        let op = match self.draw(10) {
            0..6 => {
                let id = u64::from(ticket) + 1;
                for block in first..end {
                    self.orders[block].push(id);
                }
                self.asked.insert(ticket, Asked::Change { id, first, end, durability });
                let data: Vec<u8> = (first..end).flat_map(|_| id.to_le_bytes()).collect();
                Op::Write { offset, data: Bytes::from(data), checksums: vec![7], durability }
            }
            6 => {
                let id = u64::from(ticket) + 1;
                // Zeroes are recognised by being the only change that gives them: see `order_of`.
                for block in first..end {
                    self.orders[block].push(id | ZEROED);
                }
                self.asked.insert(ticket, Asked::Change { id, first, end, durability });
                Op::Unmap { offset, len, kind: UnmapKind::Zero, durability }
            }
            7..9 => {
                let floor = self.floor[first..end].to_vec();
                self.asked.insert(ticket, Asked::Read { first, floor });
                Op::Read { offset, len: u32::try_from(len).unwrap() }
            }
            _ => {
                self.asked.insert(ticket, Asked::Flush { floor: self.floor.clone() });
                Op::Flush
            }
        };
        self.note(&format!("submit {ticket} {op:?}"));
        self.session.submit(self.now, op, ticket);
    }

    /// The youngest change that can explain what a block shows; zeroes may come from any unmap or from the beginning,
    /// so the youngest of those counts, which is the mildest reading.
    fn order_of(&self, block: usize, shown: u64) -> u64 {
        if shown != 0 {
            assert!(
                self.orders[block].contains(&shown),
                "block {block} shows {shown}: never written"
            );
            return shown;
        }
        let zeroes =
            self.orders[block].iter().filter(|order| **order == 0 || **order & ZEROED != 0);
        zeroes.map(|order| order & !ZEROED).max().unwrap()
    }

    /// The oldest change that explains it and isn't older than what is known: what may be concluded from seeing it.
    fn concluded_from(&self, block: usize, shown: u64, known: u64) -> u64 {
        if shown != 0 {
            return shown;
        }
        let zeroes =
            self.orders[block].iter().filter(|order| **order == 0 || **order & ZEROED != 0);
        zeroes.map(|order| order & !ZEROED).filter(|order| *order >= known).min().unwrap_or(known)
    }

    fn deliver_request(&mut self) {
        let Some((key, request)) = self.to_router.pop_front() else { return };
        let answer = match (self.draw(25), &request) {
            // A passing failure: surely not done.
            (0, _) => Err(Failure::Retry),
            (1, Request::Write(..)) => Err(Failure::Damaged),
            (1, Request::Read(_)) => Err(Failure::Unreadable),
            _ => self.router.serve(&request, Over::Present),
        };
        self.seen.refused += u64::from(answer.is_err());
        self.answers.push((key, answer));
    }

    fn deliver_answer(&mut self) {
        if self.answers.is_empty() {
            return;
        }
        let at = usize::try_from(self.draw(self.answers.len() as u64)).unwrap();
        let (key, answer) = self.answers.swap_remove(at);
        self.note(&format!("answer {answer:?}"));
        self.session.answered(self.now, key, answer);
    }

    fn serve_stale(&mut self) {
        if let Some(request) = self.stale.pop_front() {
            // Only changes matter, and a router that keeps a queue per connection ends it at the next attach.
            if matches!(request, Request::Write(..) | Request::Unmap(_)) {
                let _ = self.router.serve(&request, Over::Stale);
            }
        }
    }

    fn cut(&mut self) {
        if !self.linked {
            return;
        }
        self.seen.cuts += 1;
        self.linked = false;
        self.answers.clear();
        // What the router has received already it may yet carry out, until the edge is back.
        let received = usize::try_from(self.draw(self.to_router.len() as u64 + 1)).unwrap();
        let received: Vec<Request> = self.to_router.drain(..received).map(|(_, r)| r).collect();
        self.stale.extend(received);
        self.to_router.clear();
        self.session.unlinked();
        self.note("cut");
    }

    fn crash(&mut self) {
        self.cut();
        self.seen.crashes += 1;
        self.stale.clear();
        let keep = usize::try_from(self.draw(self.router.unsynced() as u64 + 1)).unwrap();
        let lost = self.router.crash(keep);
        self.seen.lost_unflushed += lost as u64;
        self.note("crash");
        self.check_durable();
    }

    fn link(&mut self) {
        self.stale.clear();
        let attached = self.router.attach();
        self.session.attached(self.now, &attached).expect("the only router");
        self.linked = true;
        self.note("link");
    }

    /// Carries out what the session wants.
    fn settle(&mut self) {
        let effects: Vec<Effect<u32>> = self.session.effects(self.now).collect();
        for effect in effects {
            match effect {
                Effect::Call { key, request } => {
                    assert!(self.linked, "a call without a connection");
                    self.to_router.push_back((key, request));
                }
                Effect::Reply { ticket, result } => self.replied(ticket, result),
                Effect::Relink { .. } => self.cut(),
                Effect::Event(Event::Recovered { replayed }) => self.seen.replayed += replayed,
                Effect::Event(event) => panic!("{event:?}"),
            }
        }
        let stats = self.session.stats();
        assert!(
            stats.log_bytes < 10_000 && stats.log_entries <= 28,
            "the log is bounded: {stats:?}"
        );
    }

    fn replied(&mut self, ticket: u32, result: Result<Outcome, IoError>) {
        let asked = self.asked.remove(&ticket).expect("answered once");
        self.note(&format!("reply {ticket} {result:?}"));
        match (asked, result) {
            // Damaged on the way more often than is tried again: not acknowledged, its effect unknown.
            (Asked::Change { .. }, Err(IoError::Io)) => {}
            (Asked::Change { id, first, end, durability }, Ok(Outcome::Done)) => {
                for block in first..end {
                    self.floor[block] = self.floor[block].max(id);
                    if durability == Durability::Durable {
                        self.durable[block] = self.durable[block].max(id);
                    }
                }
            }
            (Asked::Flush { floor }, Ok(Outcome::Done)) => {
                for (durable, floor) in self.durable.iter_mut().zip(floor) {
                    *durable = (*durable).max(floor);
                }
            }
            (Asked::Read { first, floor }, Ok(Outcome::Data(parts))) => {
                self.seen.reads += 1;
                self.check_read(first, &floor, &parts.concat());
            }
            (asked, result) => panic!("{asked:?} was answered {result:?}"),
        }
    }

    fn check_read(&mut self, first: usize, floor: &[u64], data: &[u8]) {
        for (at, (bytes, known)) in data.chunks(8).zip(floor).enumerate() {
            let block = first + at;
            let shown = u64::from_le_bytes(bytes.try_into().unwrap());
            let order = self.order_of(block, shown);
            assert!(order >= *known, "block {block} shows {shown} after {known} was known (L1)");
            let concluded = self.concluded_from(block, shown, *known);
            self.floor[block] = self.floor[block].max(concluded);
        }
    }

    fn check_all_by_reading(&mut self) {
        let ticket = self.next_op;
        self.next_op += 1;
        self.asked.insert(ticket, Asked::Read { first: 0, floor: self.floor.clone() });
        let len = u32::try_from(BLOCKS as u64 * BLOCK).unwrap();
        self.session.submit(self.now, Op::Read { offset: 0, len }, ticket);
        let mut steps = 0;
        while !self.asked.is_empty() {
            self.step(Weather::Calm);
            self.settle();
            steps += 1;
            assert!(steps < 100_000, "the session got stuck");
        }
    }

    /// Edge and router die together: the image is a prefix of what was applied, and holds everything flushed (L2).
    fn check_double_death(&mut self) {
        self.router.crash(0);
        self.check_durable();
    }

    fn check_durable(&self) {
        let image = self.router.image();
        for (block, bytes) in image.chunks(8).enumerate() {
            let shown = u64::from_le_bytes(bytes.try_into().unwrap());
            let order = self.order_of(block, shown);
            let known = self.durable[block];
            assert!(order >= known, "block {block} shows {shown}, but {known} was flushed (L2)");
        }
    }
}

/// Marks the order of a change that gives zeroes.
const ZEROED: u64 = 1 << 63;
