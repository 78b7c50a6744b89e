//! One life: a user, an edge, a router, two proxies, arakoon, seven or eight ASDs, a network between them, and a seed that
//! decides what goes wrong.
//!
//! Invariant: every choice comes from the seed's stream, in the order of simulated events.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::Duration;

use edge_core::session::{Effect, Event, IoError, Outcome, Session};
use holdfast_tests::history::{History, Survival};
use holdfast_tests::stamp::Observed;
use model::Now;
use sim::{Chance, Clock, FaultCounts, Happening, Link, NodeId, Random, Schedule, Trace, World};

use super::accounting::audit;
use super::message::{ARAKOON, ASDS, EDGE, Message, PROXIES, ROUTER, USER};
use super::reading::Unreadable;
use super::register::Answer;
use super::router::{OpenError, Router, Wish};
use super::storage::Storage;
use super::user::{Asked, CLUSTERS, UNITS, settings};

/// Simulated time after which a life that should be quiet is stuck.
const PATIENCE: Duration = Duration::from_secs(900);
/// After so long holes that still stand have no place to go.
const FILL_PATIENCE: Duration = Duration::from_secs(15);
/// An ATTACH that isn't answered by then is given up with its connection.
const ATTACH_PATIENCE: Duration = Duration::from_millis(250);
/// An edge that was told to come back later.
const NOT_NOW: Duration = Duration::from_millis(12);
const PROXY_TICK: Duration = Duration::from_millis(10);

#[derive(Debug, Clone)]
pub enum Timer {
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
    StartRouter,
    ProxyTick(usize),
    StartProxy(usize),
    StartArakoon,
    StartAsd(usize),
    /// An ASD's disk is done.
    Reply(NodeId, Box<Message>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    Busy,
    /// No more accidents; everything must come to rest.
    Calm,
    /// What is missing was reported: the vDisk waits for an operator (L5, L7).
    Reported,
}

/// What this life is about; most are about everything that must be survived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Usual,
    /// The log's disk rots below what was synced: it must be noticed.
    LogRot,
    /// The log's disk loses and misplaces what it confirmed: order must be kept all the same, or a gap reported.
    LogBetrayed,
    /// More bad disks than any policy survives: never wrong bytes.
    ManyBadAsds,
}

/// What a connection is: what arrives is what was sent, in order and without gaps, up to where it broke. So behind a
/// message that a cut swallowed nothing arrives any more, even when the way is open again.
#[derive(Debug, Default)]
struct Carried {
    requests: u64,
    answers: u64,
    answers_heard: u64,
    /// By connection: an old one's requests may still be under way.
    requests_heard: BTreeMap<u64, u64>,
}

impl Carried {
    /// Whether this request is the next one of its connection.
    fn hears_request(&mut self, link: u64, number: u64) -> bool {
        let heard = self.requests_heard.entry(link).or_default();
        let is_next = number == *heard;
        *heard += u64::from(is_next);
        is_next
    }

    fn hears_answer(&mut self, number: u64) -> bool {
        let is_next = number == self.answers_heard;
        self.answers_heard += u64::from(is_next);
        is_next
    }
}

pub struct Life {
    pub seed: u64,
    pub schedule: Schedule,
    pub random: Random,
    pub world: World<Message, Timer>,
    pub clocks: BTreeMap<NodeId, Clock>,
    pub session: Session<u64>,
    /// The connection's number, while there is one.
    pub link: Option<u64>,
    links: u64,
    carried: Carried,
    was_live: bool,
    /// Since when an answer to ATTACH is awaited.
    pub attaching: Option<Duration>,
    pub router: Router,
    pub storage: RefCell<Storage>,
    pub history: History,
    pub asked: BTreeMap<u64, Asked>,
    pub requests: u64,
    pub phase: Phase,
    pub mode: Mode,
    /// A new edge takes over; what it must find when it attaches.
    pub takeover: Option<Survival>,
    calm_since: Duration,
    pub trace: Trace,
    /// Print the whole trace, not only its end.
    loud: bool,
    pub counts: FaultCounts,
}

impl Life {
    pub fn new(seed: u64, schedule: Schedule) -> Self {
        let mut random = Random::new(seed);
        let mode = match random.below(100) {
            0..7 => Mode::LogRot,
            7..16 => Mode::LogBetrayed,
            16..25 => Mode::ManyBadAsds,
            _ => Mode::Usual,
        };
        let allowed = match mode {
            Mode::Usual => true,
            Mode::LogRot => schedule.faults.contains("log rot"),
            Mode::LogBetrayed => schedule.faults.contains("log betrayed"),
            Mode::ManyBadAsds => schedule.faults.contains("many bad asds"),
        };
        let mode = if allowed { mode } else { Mode::Usual };
        let world = World::new(random.fork(), Link::good());
        let mut storage = Storage::new(&mut random);
        // Each object loses at most one fragment to them, which every policy survives at c.
        let bad = if mode == Mode::ManyBadAsds { 4 } else { 1 };
        let mut order: Vec<usize> = (0..storage.asds.len()).collect();
        random.shuffle(&mut order);
        for at in order.into_iter().take(bad) {
            storage.asds[at].unlucky = true;
        }
        let router = Router::new(&mut random, CLUSTERS * 4096);
        let session = Session::new(settings(), random.u64());
        let mut life = Self {
            seed,
            schedule,
            random,
            world,
            clocks: BTreeMap::new(),
            session,
            link: None,
            links: 0,
            carried: Carried::default(),
            was_live: false,
            attaching: None,
            router,
            storage: RefCell::new(storage),
            history: History::new(usize::try_from(UNITS).expect("small")),
            asked: BTreeMap::new(),
            requests: 0,
            phase: Phase::Busy,
            mode,
            takeover: None,
            calm_since: Duration::ZERO,
            trace: Trace::default(),
            loud: std::env::var("HOLDFAST_TRACE").is_ok_and(|value| value == "1"),
            counts: FaultCounts::default(),
        };
        life.set_the_stage();
        life
    }

    pub fn faults(&self) -> FaultCounts {
        let mut all = self.counts.clone();
        all.add(&self.world.faults());
        all.add(&self.router.disk_faults());
        let storage = self.storage.borrow();
        all.add(&storage.counts);
        for asd in &storage.asds {
            all.add(&asd.all_counts());
        }
        all
    }

    pub fn now(&self, node: NodeId) -> Now {
        let clock = self.clocks.get(&node).copied().unwrap_or_default();
        Now(clock.read(self.world.now()))
    }

    /// Lives to the end; the digest of all that happened.
    pub fn run(&mut self) -> u64 {
        self.start_router();
        self.wake_nodes();
        self.world.wake(USER, Duration::from_millis(1), Timer::Act);
        while self.phase != Phase::Reported && !self.is_at_rest() {
            let Some(happening) = self.world.step() else { self.fail("nothing happens any more") };
            self.happen(happening);
            self.notice_loss();
            if PATIENCE < self.world.now() {
                let (live, drained) = (self.session.is_live(), self.router.is_drained());
                let idle = self.storage.borrow().is_idle();
                let state = format!("live: {live}, drained: {drained}, backend idle: {idle}");
                self.fail(&format!("stuck with {:?}; {state}", self.asked));
            }
        }
        if self.phase != Phase::Reported {
            self.judge(Survival::Alive);
            self.audit();
            self.power_cut_of_everything();
        }
        self.trace.digest()
    }

    fn wake_nodes(&mut self) {
        for timer in [Timer::Attach, Timer::Tick] {
            self.world.wake(EDGE, Duration::from_millis(1), timer);
        }
        for (at, node) in PROXIES.into_iter().enumerate() {
            self.world.wake(node, PROXY_TICK, Timer::ProxyTick(at));
        }
    }

    fn is_at_rest(&self) -> bool {
        // Live: what a dead router had acknowledged and lost was replayed.
        let quiet = self.asked.is_empty() && self.session.is_live() && self.router.is_drained();
        if self.phase != Phase::Calm || !quiet {
            return false;
        }
        let storage = self.storage.borrow();
        let holes = storage.register.manifests.values().any(|manifest| 0 < manifest.holes());
        let patient = self.world.now() - self.calm_since < FILL_PATIENCE;
        storage.is_idle() && (!patient || storage.is_repaired() && !holes)
    }

    fn happen(&mut self, happening: Happening<Message, Timer>) {
        match happening {
            Happening::Timer { timer, node } => self.fire(node, timer),
            Happening::Message { from, to, message } => self.receive(from, to, message),
        }
        self.settle();
    }

    fn fire(&mut self, node: NodeId, timer: Timer) {
        let now = self.now(node);
        match timer {
            Timer::Act => self.act(),
            Timer::Tick => {
                self.session.tick(now);
                let patience = self.world.now().saturating_sub(ATTACH_PATIENCE);
                if self.attaching.is_some_and(|since| since <= patience) {
                    self.cut();
                }
                self.world.wake(EDGE, Duration::from_millis(40), Timer::Tick);
            }
            Timer::Attach => self.attach(),
            Timer::Synced => self.router.synced(&self.storage),
            Timer::Relieve => {
                self.router.relieve();
                self.router.unstall(&self.storage);
                if self.random.happens(Chance::percent(8)) {
                    let storage = self.storage.get_mut();
                    storage.favourite = 1 - storage.favourite;
                }
                self.router.put_again();
                if self.phase == Phase::Calm {
                    self.router.seal();
                }
                self.world.wake(ROUTER, Duration::from_millis(30), Timer::Relieve);
            }
            Timer::StartRouter => self.start_router(),
            Timer::ProxyTick(at) => {
                self.tend_asds();
                self.storage.get_mut().tick_proxy(at, now);
                self.world.wake(node, PROXY_TICK, Timer::ProxyTick(at));
            }
            Timer::StartProxy(at) => {
                self.storage.get_mut().start_proxy(at);
                self.world.wake(node, PROXY_TICK, Timer::ProxyTick(at));
            }
            Timer::StartArakoon => {
                self.world.restart(ARAKOON);
                self.refresh_reach();
            }
            Timer::StartAsd(at) => self.start_asd(at),
            Timer::Reply(to, message) => self.world.send(node, to, *message),
        }
    }

    fn receive(&mut self, from: NodeId, to: NodeId, message: Message) {
        let now = self.now(to);
        let proxy = PROXIES.iter().position(|node| *node == to).unwrap_or(0);
        match message {
            Message::Attach { link, reclaim } => {
                if reclaim.is_none() && !self.take_over() {
                    self.world.send(ROUTER, EDGE, Message::Attached { link, answer: None });
                    return;
                }
                let answer = self.router.attach(link, reclaim);
                self.world.send(ROUTER, EDGE, Message::Attached { link, answer });
            }
            Message::Attached { link, answer } if self.link == Some(link) => match answer {
                Some(attached) => {
                    self.note(format_args!("attached {attached:?}"));
                    self.counts.count("edge: down to replaying");
                    self.attaching = None;
                    if let Err(error) = self.session.attached(now, &attached) {
                        self.fail(&format!("the only router's answer was refused: {error}"));
                    }
                }
                None => self.cut_for(NOT_NOW),
            },
            Message::Request { link, number, key, request } => {
                if self.carried.hears_request(link, number) {
                    self.router.serve(link, key, request, &self.storage);
                } else if self.link == Some(link) {
                    self.cut();
                }
            }
            Message::Answer { link, number, key, result } if self.link == Some(link) => {
                if self.carried.hears_answer(number) {
                    self.session.answered(now, key, result);
                } else {
                    self.cut();
                }
            }
            Message::Put(put) => self.storage.get_mut().put(proxy, put, now),
            Message::PutAnswer { object, result } => {
                self.note(format_args!("put of {object}: {result:?}"));
                self.router.put_answered(object, result, &self.storage);
            }
            Message::Fragment { call, op } => self.serve_fragment(from, to, (call, &op)),
            Message::FragmentDone { call, outcome } => {
                self.storage.get_mut().fragment_done(proxy, call, outcome, now);
            }
            Message::Transact { call, transaction } => {
                let mut answer = self.storage.get_mut().register.transact(call, &transaction);
                if self.strikes("answer lies", Chance::percent(2)) {
                    self.counts.count("arakoon did it and said unknown");
                    answer = Answer::Unknown;
                }
                self.world.send(ARAKOON, from, Message::Transacted { call, answer });
            }
            Message::Transacted { call, answer } => {
                self.storage.get_mut().transacted(proxy, call, &answer, now);
            }
            // Of a connection that was given up.
            Message::Attached { .. } | Message::Answer { .. } => {}
        }
    }

    /// Carries out what session, router and proxies want.
    fn settle(&mut self) {
        loop {
            let now = self.now(EDGE);
            let effects: Vec<Effect<u64>> = self.session.effects(now).collect();
            let was_live = std::mem::replace(&mut self.was_live, self.session.is_live());
            if !was_live && self.was_live {
                self.counts.count("edge: replaying to live");
            }
            let wishes = self.router.wishes();
            let out = std::mem::take(&mut self.storage.get_mut().out);
            if effects.is_empty() && wishes.is_empty() && out.is_empty() {
                return;
            }
            for effect in effects {
                self.carry_out(effect);
            }
            for wish in wishes {
                self.grant(wish);
            }
            for (from, to, message) in out {
                self.world.send(from, to, message);
            }
        }
    }

    fn grant(&mut self, wish: Wish) {
        match wish {
            Wish::Answer { link, key, result } => {
                // What an earlier connection asked is answered there, and nobody listens.
                if self.link == Some(link) {
                    let number = self.carried.answers;
                    self.carried.answers += 1;
                    self.world.send(ROUTER, EDGE, Message::Answer { link, number, key, result });
                }
            }
            Wish::Put(put) => {
                let favourite = PROXIES[self.storage.borrow().favourite];
                self.world.send(ROUTER, favourite, Message::Put(put));
            }
            Wish::Sync(time) => {
                self.world.wake(ROUTER, time, Timer::Synced);
            }
            Wish::Died => {
                if self.router.is_up() {
                    self.counts.count("router died of its disk");
                    self.crash_router(Router::kill);
                }
            }
        }
    }

    fn carry_out(&mut self, effect: Effect<u64>) {
        match effect {
            Effect::Call { key, request } => {
                let Some(link) = self.link else { self.fail("a call without a connection") };
                let number = self.carried.requests;
                self.carried.requests += 1;
                self.world.send(EDGE, ROUTER, Message::Request { link, number, key, request });
            }
            Effect::Reply { ticket, result } => self.replied(ticket, result),
            Effect::Relink { why, .. } => {
                self.note(format_args!("relink: {why}"));
                self.cut();
            }
            Effect::Event(Event::Recovered { replayed }) => self.counts.count(match replayed {
                0 => "edge: nothing to replay",
                _ => "edge: changes replayed",
            }),
            Effect::Event(event) => self.fail(&format!("{event:?}")),
        }
    }

    fn replied(&mut self, ticket: u64, result: Result<Outcome, IoError>) {
        let Some(asked) = self.asked.remove(&ticket) else { self.fail("answered twice") };
        self.note(format_args!("reply {ticket} to {asked:?}"));
        let violations = self.take_reply(asked, result);
        if let Some(violation) = violations.first() {
            self.fail(&violation.to_string());
        }
    }

    fn attach(&mut self) {
        if self.link.is_some() {
            return;
        }
        if self.router.is_up() {
            self.links += 1;
            self.link = Some(self.links);
            let mut requests_heard = std::mem::take(&mut self.carried.requests_heard);
            let kept = requests_heard.split_off(&self.links.saturating_sub(8));
            self.carried = Carried { requests_heard: kept, ..Carried::default() };
            self.attaching = Some(self.world.now());
            let reclaim = self.session.reclaim();
            self.world.send(EDGE, ROUTER, Message::Attach { link: self.links, reclaim });
        } else {
            self.world.wake(EDGE, Duration::from_millis(5), Timer::Attach);
        }
    }

    /// The connection is gone. What it carried to the router may still arrive there.
    pub fn cut(&mut self) {
        self.cut_for(Duration::from_millis(1));
    }

    fn cut_for(&mut self, pause: Duration) {
        self.attaching = None;
        if self.link.take().is_some() {
            self.note(format_args!("cut"));
            let live = self.session.is_live();
            self.counts.count(if live { "edge: live to down" } else { "edge: replaying to down" });
            self.session.unlinked();
            self.world.wake(EDGE, pause, Timer::Attach);
        }
    }

    pub fn start_router(&mut self) {
        match self.router.open(&self.storage) {
            Ok(()) => {
                self.note(format_args!("router is up: {}", self.router.describe()));
                self.world.wake(ROUTER, Duration::from_millis(30), Timer::Relieve);
            }
            Err(OpenError::Gap(gap)) => {
                let kind = match self.mode {
                    Mode::LogRot => "recovery: gap reported",
                    Mode::LogBetrayed => "recovery: a betrayed log reported a gap",
                    Mode::Usual | Mode::ManyBadAsds => {
                        self.fail(&format!("a gap on honest disks: {gap}"))
                    }
                };
                self.note(format_args!("gap: {gap}"));
                self.counts.count(kind);
                self.phase = Phase::Reported;
            }
            Err(OpenError::Away) => self.start_router_later("recovery: backend away, later"),
            Err(OpenError::Disk) => {
                self.start_router_later("recovery: the disk failed, later");
            }
        }
    }

    fn start_router_later(&mut self, why: &'static str) {
        self.note(format_args!("{why}"));
        self.counts.count(why);
        self.world.wake(ROUTER, Duration::from_millis(40), Timer::StartRouter);
    }

    pub fn calm_down(&mut self) {
        self.phase = Phase::Calm;
        self.calm_since = self.world.now();
        self.note(format_args!("calm"));
        self.make_peace();
    }

    /// The user, the edge, the router and the whole backend lose power at once; what is there afterwards is judged.
    pub fn power_cut_of_everything(&mut self) {
        self.note(format_args!("power cut of everything"));
        self.counts.count("power cut of everything");
        self.router.power_cut();
        self.maybe_rot();
        self.power_cut_of_the_backend();
        let nodes = [EDGE, ROUTER].into_iter().chain(PROXIES);
        for node in nodes {
            self.world.crash(node);
            self.world.restart(node);
        }
        (self.link, self.attaching) = (None, None);
        self.asked.clear();
        self.takeover = None;
        self.session = Session::new(settings(), self.random.u64());
        self.router.set_disk_faults(|faults| *faults = sim::DiskFaults::none());
        self.start_router();
        self.notice_loss();
        if self.phase == Phase::Reported {
            return;
        }
        let betrayed = self.mode == Mode::LogBetrayed;
        self.judge(if betrayed { Survival::Betrayed } else { Survival::Crash });
        self.wake_nodes();
        self.set_log_faults();
    }

    /// Reads the whole vDisk and judges it.
    pub fn judge(&mut self, survival: Survival) {
        let bytes = match self.router.image(&self.storage) {
            Ok(bytes) => bytes,
            Err(Unreadable::Lost(object)) => {
                return self.note_loss(&format!("{object} is lost"));
            }
            Err(Unreadable::Now) => self.fail("unreadable though nothing is away"),
        };
        let image = self.judge_image(&bytes, survival);
        if survival != Survival::Alive {
            self.history.rebase(&image);
        }
    }

    /// What the bytes of the whole vDisk say, if that may be.
    pub fn judge_image(&mut self, bytes: &[u8], survival: Survival) -> Vec<Observed> {
        self.trace.bytes(bytes);
        let image = self.observe(0, bytes);
        let violations = self.history.check_image(&image, survival);
        if let Some(violation) = violations.first() {
            self.fail(&format!("{survival:?}: {} units are wrong: {violation}", violations.len()));
        }
        if survival == Survival::Betrayed
            && !self.history.check_image(&image, Survival::Crash).is_empty()
        {
            self.counts.count("recovery: a betrayed log lost its end");
        }
        image
    }

    fn audit(&mut self) {
        if self.mode == Mode::ManyBadAsds || self.phase == Phase::Reported {
            return;
        }
        let mut counts = FaultCounts::default();
        let audited = audit(&self.storage.borrow(), &mut counts);
        self.counts.add(&counts);
        if let Err(why) = audited {
            self.fail(&why);
        }
    }

    /// An object can't be read whoever is asked: right only when more disks are bad than any policy survives.
    fn note_loss(&mut self, what: &str) {
        if self.mode != Mode::ManyBadAsds {
            self.fail(what);
        }
        self.note(format_args!("{what}"));
        self.counts.count("read: data loss reported");
        self.phase = Phase::Reported;
    }

    fn notice_loss(&mut self) {
        let lost = self.storage.borrow().lost;
        if let Some(object) = lost {
            self.note_loss(&format!("{object} is lost"));
        }
    }

    pub fn asd_node(at: usize) -> NodeId {
        NodeId(ASDS + u32::try_from(at).expect("few"))
    }

    /// Whether this kind of accident may happen, and happens now.
    pub fn strikes(&mut self, kind: &str, chance: Chance) -> bool {
        let strikes = self.random.happens(chance);
        strikes && self.phase == Phase::Busy && self.schedule.faults.contains(kind)
    }

    pub fn note(&mut self, what: std::fmt::Arguments<'_>) {
        if self.loud {
            eprintln!("{:>12.6} {what}", self.world.now().as_secs_f64());
        }
        self.trace.note(self.world.now(), what);
    }

    pub fn fail(&self, why: &str) -> ! {
        panic!("{}\nseed {} ({}): {why}", self.trace, self.seed, self.schedule);
    }
}
