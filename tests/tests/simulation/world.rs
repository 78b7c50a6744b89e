//! One life: a user, an edge, a router, a backend, a network between them, and a seed that decides what goes wrong.
//!
//! Invariant: every choice comes from the seed's stream, in the order of simulated events.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use edge_core::session::{
    Answer, CallKey, Effect, Event, Failure, Op, Outcome, Request, Session, Settings,
};
use holdfast_tests::history::{Effect as Mark, History, Survival};
use holdfast_tests::stamp::{Observed, Stamp, UNIT};
use model::{AttachmentGeneration, Now, ObjectId};
use router_core::crc32c;
use sim::{Chance, FaultCounts, Happening, Link, NodeId, Random, Trace, World};
use wire::router::{Attached, Durability, UnmapKind};

use super::backend::{Backend, Put, Refused};
use super::router::{Router, Wish};

const USER: NodeId = NodeId(0);
const EDGE: NodeId = NodeId(1);
const ROUTER: NodeId = NodeId(2);
const BACKEND: NodeId = NodeId(3);

const CLUSTERS: u64 = 80;
const UNITS: u64 = CLUSTERS * 8;
const REQUESTS: u64 = 260;
const IN_FLIGHT_MAX: usize = 12;
/// Simulated time after which a life that should be quiet is stuck.
const PATIENCE: Duration = Duration::from_secs(600);

#[derive(Debug, Clone)]
enum Message {
    Attach { link: u64, reclaim: Option<AttachmentGeneration> },
    Attached { link: u64, answer: Option<Attached> },
    Request { link: u64, key: CallKey, request: Request },
    Answer { link: u64, key: CallKey, result: Result<Answer, Failure> },
    Put(Put),
    PutAnswer { object: ObjectId, result: Result<(), Refused> },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Timer {
    /// The user's next request, or the next accident.
    Act,
    /// The edge's clock.
    Tick,
    /// The edge tries to attach.
    Attach,
    /// The router's sync is done.
    Synced,
    /// The router's own clock.
    Relieve,
    /// The router's process starts again.
    Restart,
}

/// What the user waits for.
#[derive(Debug, Clone)]
enum Asked {
    Change { operation: u64, durability: Durability },
    Read { began: u64, unit: u64 },
    Flush { began: u64 },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Busy,
    /// No more accidents; everything must come to rest.
    Calm,
    /// The log is damaged and says so: the vDisk waits for an operator (L7).
    Gap,
}

pub struct Life {
    seed: u64,
    random: Random,
    world: World<Message, Timer>,
    session: Session<u64>,
    /// The connection's number, while there is one.
    link: Option<u64>,
    links: u64,
    router: Router,
    backend: Backend,
    history: History,
    asked: BTreeMap<u64, Asked>,
    requests: u64,
    phase: Phase,
    rots: bool,
    trace: Trace,
    counts: FaultCounts,
}

impl Life {
    pub fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let mut world = World::new(random.fork(), Link::good());
        for (from, to) in [(ROUTER, BACKEND), (BACKEND, ROUTER)] {
            world.network.set_link(from, to, Link::bad());
        }
        let router = Router::new(&mut random, CLUSTERS * 4096);
        let session = Session::new(settings(), random.u64());
        let rots = random.happens(Chance::percent(12));
        Self {
            seed,
            random,
            world,
            session,
            link: None,
            links: 0,
            router,
            backend: Backend::default(),
            history: History::new(usize::try_from(UNITS).expect("small")),
            asked: BTreeMap::new(),
            requests: 0,
            phase: Phase::Busy,
            rots,
            trace: Trace::default(),
            counts: FaultCounts::default(),
        }
    }

    pub fn faults(&self) -> FaultCounts {
        let mut all = self.counts.clone();
        all.add(&self.world.faults());
        all.add(&self.router.disk_faults());
        all
    }

    /// Lives to the end; the digest of all that happened.
    pub fn run(&mut self) -> u64 {
        self.start_router();
        for (node, timer) in [(USER, Timer::Act), (EDGE, Timer::Attach), (EDGE, Timer::Tick)] {
            self.world.wake(node, Duration::from_millis(1), timer);
        }
        while self.phase != Phase::Gap && !self.is_at_rest() {
            let Some(happening) = self.world.step() else { self.fail("nothing happens any more") };
            self.happen(happening);
            if PATIENCE < self.world.now() {
                self.fail(&format!("stuck with {:?}", self.asked));
            }
        }
        if self.phase != Phase::Gap {
            self.judge(Survival::Alive);
            self.power_cut_of_everything();
        }
        self.trace.digest()
    }

    fn is_at_rest(&self) -> bool {
        // Live: what a dead router had acknowledged and lost was replayed.
        let quiet = self.asked.is_empty() && self.session.is_live() && self.router.is_drained();
        self.phase == Phase::Calm && quiet
    }

    fn happen(&mut self, happening: Happening<Message, Timer>) {
        match happening {
            Happening::Timer { timer, .. } => self.fire(timer),
            Happening::Message { message, .. } => self.receive(message),
        }
        self.settle();
    }

    fn fire(&mut self, timer: Timer) {
        match timer {
            Timer::Act => self.act(),
            Timer::Tick => {
                self.session.tick(now(&self.world));
                self.world.wake(EDGE, Duration::from_millis(40), Timer::Tick);
            }
            Timer::Attach => self.attach(),
            Timer::Synced => self.router.synced(&self.backend),
            Timer::Relieve => {
                self.router.relieve();
                self.router.put_again();
                if self.phase == Phase::Calm {
                    self.router.seal();
                }
                self.world.wake(ROUTER, Duration::from_millis(30), Timer::Relieve);
            }
            Timer::Restart => self.start_router(),
        }
    }

    fn receive(&mut self, message: Message) {
        match message {
            Message::Attach { link, reclaim } => {
                let answer = self.router.attach(link, reclaim);
                self.world.send(ROUTER, EDGE, Message::Attached { link, answer });
            }
            Message::Attached { link, answer } if self.link == Some(link) => match answer {
                Some(attached) => {
                    self.note(format_args!("attached {attached:?}"));
                    let outcome = self.session.attached(now(&self.world), &attached);
                    if let Err(error) = outcome {
                        self.fail(&format!("the only router's answer was refused: {error}"));
                    }
                }
                None => self.cut(),
            },
            Message::Request { link, key, request } => {
                self.router.serve(link, key, request, &self.backend);
            }
            Message::Answer { link, key, result } if self.link == Some(link) => {
                self.session.answered(now(&self.world), key, result);
            }
            Message::Put(put) => {
                let result = self.backend.put(&put);
                self.note(format_args!("put {} {result:?}", put.object));
                let object = put.object;
                self.world.send(BACKEND, ROUTER, Message::PutAnswer { object, result });
            }
            Message::PutAnswer { object, result } => {
                self.router.put_answered(object, result, &self.backend);
            }
            // Of a connection that was given up.
            Message::Attached { .. } | Message::Answer { .. } => {}
        }
    }

    /// Carries out what session and router want.
    fn settle(&mut self) {
        loop {
            let effects: Vec<Effect<u64>> = self.session.effects(now(&self.world)).collect();
            let wishes = self.router.wishes();
            if effects.is_empty() && wishes.is_empty() {
                return;
            }
            for effect in effects {
                self.carry_out(effect);
            }
            for wish in wishes {
                match wish {
                    Wish::Answer { link, key, result } => {
                        self.world.send(ROUTER, EDGE, Message::Answer { link, key, result });
                    }
                    Wish::Put(put) => self.world.send(ROUTER, BACKEND, Message::Put(put)),
                    Wish::Sync(time) => {
                        self.world.wake(ROUTER, time, Timer::Synced);
                    }
                    Wish::Died => self.fail("the log can't be written on an honest disk"),
                }
            }
        }
    }

    fn carry_out(&mut self, effect: Effect<u64>) {
        match effect {
            Effect::Call { key, request } => {
                let Some(link) = self.link else { self.fail("a call without a connection") };
                self.world.send(EDGE, ROUTER, Message::Request { link, key, request });
            }
            Effect::Reply { ticket, result } => self.replied(ticket, result),
            Effect::Relink { why, .. } => {
                self.note(format_args!("relink: {why}"));
                self.cut();
            }
            Effect::Event(Event::Recovered { .. }) => {}
            Effect::Event(event) => self.fail(&format!("{event:?}")),
        }
    }

    fn replied(&mut self, ticket: u64, result: Result<Outcome, edge_core::session::IoError>) {
        let Some(asked) = self.asked.remove(&ticket) else { self.fail("answered twice") };
        self.note(format_args!("reply {ticket} to {asked:?}"));
        let violations = match (asked, result) {
            (Asked::Change { operation, durability: Durability::Normal }, Ok(Outcome::Done)) => {
                self.history.acknowledged(operation);
                vec![]
            }
            (Asked::Change { operation, durability: Durability::Durable }, Ok(Outcome::Done)) => {
                self.history.acknowledged_durably(operation);
                vec![]
            }
            (Asked::Flush { began }, Ok(Outcome::Done)) => {
                self.history.flushed(began);
                vec![]
            }
            (Asked::Read { began, unit }, Ok(Outcome::Data(parts))) => {
                let observed = self.observe(unit, &parts.concat());
                self.history.check_read(began, unit, &observed)
            }
            (asked, result) => self.fail(&format!("{asked:?} was answered {result:?}")),
        };
        if let Some(violation) = violations.first() {
            self.fail(&violation.to_string());
        }
    }

    fn observe(&self, first: u64, bytes: &[u8]) -> Vec<Observed> {
        let units = (first..).zip(bytes.chunks_exact(UNIT));
        units.map(|(unit, bytes)| Stamp::observe(self.seed, unit, bytes)).collect()
    }

    /// The user's next request, or an accident.
    fn act(&mut self) {
        if self.requests == REQUESTS {
            self.calm_down();
            return;
        }
        match self.random.below(1000) {
            0..6 => {
                self.counts.count("connection cut");
                self.cut();
            }
            6..10 => self.crash_router("router killed", Router::kill),
            10..14 => self.crash_router("router power cut", Router::power_cut),
            14..16 => self.power_cut_of_everything(),
            16..24 if self.world.network.is_open(ROUTER, BACKEND) => {
                self.counts.count("backend cut off");
                self.world.network.partition(&[ROUTER], &[BACKEND]);
            }
            16..40 => self.world.network.heal(),
            40..50 => self.router.seal(),
            _ if self.asked.len() < IN_FLIGHT_MAX => self.ask(),
            _ => {}
        }
        let pause = self.random.duration(&(Duration::ZERO..=Duration::from_millis(2)));
        self.world.wake(USER, pause, Timer::Act);
    }

    fn calm_down(&mut self) {
        self.phase = Phase::Calm;
        self.world.network.heal();
        self.world.network.set_link(ROUTER, BACKEND, Link::good());
        self.world.network.set_link(BACKEND, ROUTER, Link::good());
        self.note(format_args!("calm"));
    }

    fn ask(&mut self) {
        let ticket = self.requests;
        self.requests += 1;
        let (unit, count) = self.place();
        let (offset, len) = (unit * UNIT as u64, count * UNIT as u64);
        let durable = self.random.happens(Chance::percent(8));
        let durability = if durable { Durability::Durable } else { Durability::Normal };
        let (asked, op) = match self.random.below(100) {
            0..55 => {
                let operation = self.history.begin(Mark::Write, unit..unit + count);
                let data = self.data(unit, count, operation);
                let checksums = checksums(offset, &data);
                (
                    Asked::Change { operation, durability },
                    Op::Write { offset, data, checksums, durability },
                )
            }
            55..65 => {
                let operation = self.history.begin(Mark::Zero, unit..unit + count);
                let kind = UnmapKind::Zero;
                (
                    Asked::Change { operation, durability },
                    Op::Unmap { offset, len, kind, durability },
                )
            }
            65..92 => {
                let len = u32::try_from(len).expect("small");
                (Asked::Read { began: self.history.now(), unit }, Op::Read { offset, len })
            }
            _ => (Asked::Flush { began: self.history.now() }, Op::Flush),
        };
        self.note(format_args!("ask {ticket}: {asked:?} at unit {unit}, {count} units"));
        self.asked.insert(ticket, asked);
        self.session.submit(now(&self.world), op, ticket);
    }

    /// Up to eight clusters, half of the time in a hot corner, a third of the time ragged.
    fn place(&mut self) -> (u64, u64) {
        let span = if self.random.happens(Chance::percent(50)) { UNITS / 8 } else { UNITS };
        let mut unit = self.random.below(span);
        let mut count = 1 + self.random.below(64);
        if self.random.happens(Chance::percent(66)) {
            unit -= unit % 8;
            count = count.next_multiple_of(8);
        }
        (unit, count.min(UNITS - unit))
    }

    fn data(&self, unit: u64, count: u64, operation: u64) -> Bytes {
        let mut data = vec![0; usize::try_from(count).expect("small") * UNIT];
        for (unit, bytes) in (unit..).zip(data.chunks_exact_mut(UNIT)) {
            Stamp { run: self.seed, unit, operation }.write_to(bytes);
        }
        Bytes::from(data)
    }

    fn attach(&mut self) {
        if self.link.is_some() {
            return;
        }
        if self.router.is_up() {
            self.links += 1;
            self.link = Some(self.links);
            let reclaim = self.session.reclaim();
            self.world.send(EDGE, ROUTER, Message::Attach { link: self.links, reclaim });
        } else {
            self.world.wake(EDGE, Duration::from_millis(5), Timer::Attach);
        }
    }

    /// The connection is gone. What it carried to the router may still arrive there.
    fn cut(&mut self) {
        if self.link.take().is_some() {
            self.note(format_args!("cut"));
            self.session.unlinked();
            self.world.wake(EDGE, Duration::from_millis(1), Timer::Attach);
        }
    }

    fn crash_router(&mut self, kind: &'static str, crash: fn(&mut Router)) {
        if !self.router.is_up() {
            return;
        }
        self.note(format_args!("{kind}"));
        self.counts.count(kind);
        crash(&mut self.router);
        if self.rots && self.random.happens(Chance::percent(50)) {
            self.router.rot(&mut self.random);
        }
        self.world.crash(ROUTER);
        self.world.restart(ROUTER);
        self.cut();
        let pause = self.random.duration(&(Duration::from_millis(1)..=Duration::from_millis(30)));
        self.world.wake(ROUTER, pause, Timer::Restart);
    }

    fn start_router(&mut self) {
        if let Err(gap) = self.router.open(&mut self.backend) {
            self.note(format_args!("gap: {gap}"));
            if !self.rots {
                self.fail(&format!("a gap on honest disks: {gap}"));
            }
            self.counts.count("rot reported as a gap");
            self.phase = Phase::Gap;
            return;
        }
        self.note(format_args!("router is up: {}", self.router.describe()));
        self.world.wake(ROUTER, Duration::from_millis(30), Timer::Relieve);
    }

    /// The user, the edge and the router lose power at once; what is there afterwards is judged.
    fn power_cut_of_everything(&mut self) {
        self.note(format_args!("power cut of everything"));
        self.counts.count("power cut of everything");
        self.router.power_cut();
        for node in [EDGE, ROUTER] {
            self.world.crash(node);
            self.world.restart(node);
        }
        self.link = None;
        self.asked.clear();
        self.session = Session::new(settings(), self.random.u64());
        self.start_router();
        if self.phase == Phase::Gap {
            return;
        }
        self.judge(Survival::Crash);
        for timer in [Timer::Attach, Timer::Tick] {
            self.world.wake(EDGE, Duration::from_millis(1), timer);
        }
    }

    fn judge(&mut self, survival: Survival) {
        let bytes = self.router.image(&self.backend);
        self.trace.bytes(&bytes);
        let image = self.observe(0, &bytes);
        let violations = self.history.check_image(&image, survival);
        if let Some(violation) = violations.first() {
            self.fail(&format!("{survival:?}: {} units are wrong: {violation}", violations.len()));
        }
        if survival == Survival::Crash {
            self.history.rebase(&image);
        }
    }

    fn note(&mut self, what: std::fmt::Arguments<'_>) {
        self.trace.note(self.world.now(), what);
    }

    fn fail(&self, why: &str) -> ! {
        panic!("{}\nseed {}: {why}", self.trace, self.seed);
    }
}

fn settings() -> Settings {
    Settings {
        log_bytes: 400 << 10,
        log_entries: 24,
        flush_after: Duration::from_millis(300),
        io_deadline: None,
        call_timeout: Duration::from_secs(60),
        unreadable_patience: Duration::from_secs(3600),
    }
}

fn now(world: &World<Message, Timer>) -> Now {
    Now(world.now())
}

/// CRC-32C of the part of the data in each cluster.
fn checksums(offset: u64, data: &[u8]) -> Vec<u32> {
    let range = model::ByteRange::new(offset, model::u64_of(data.len())).expect("within the vDisk");
    router_core::plan::parts(range, data).map(crc32c).collect()
}
