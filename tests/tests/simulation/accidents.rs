//! What goes wrong, when, and how it is undone.
//!
//! Invariant: every accident has a switch in the schedule, and strikes only while the life is busy.

use std::time::Duration;

use asd_core::store::{Op, Outcome};
use holdfast_tests::history::Survival;
use model::FragmentKey;
use sim::{Chance, Link, NodeId, Order};

use super::asd::Treachery;
use super::message::{ARAKOON, EDGE, Message, PROXIES, ROUTER, USER};
use super::router::Router;
use super::user::{IN_FLIGHT_MAX, settings};
use super::world::{Life, Mode, Phase, Timer};

/// Faces of the dice that chooses the kind of accident.
const ACCIDENT_FACES: u64 = 79;

/// As [`Link::bad`], with its order kept: one connection that stutters.
fn slow_link() -> Link {
    Link {
        delay: Duration::from_millis(1)..=Duration::from_millis(60),
        order: Order::Kept,
        ..Link::good()
    }
}

impl Life {
    /// Links and disks as they are from the beginning.
    pub fn set_the_stage(&mut self) {
        if self.schedule.faults.contains("bad links") {
            for proxy in PROXIES {
                self.set_links(ROUTER, proxy, &Link::bad());
                self.set_links(proxy, ARAKOON, &Link::bad());
            }
        }
        self.set_log_faults();
    }

    fn set_links(&mut self, one: NodeId, other: NodeId, link: &Link) {
        self.world.network.set_link(one, other, link.clone());
        self.world.network.set_link(other, one, link.clone());
    }

    pub fn set_log_faults(&mut self) {
        if self.phase != Phase::Busy {
            return;
        }
        let has = |kind| self.schedule.faults.contains(kind);
        let errors = if has("log disk errors") { Chance::parts(400) } else { Chance::NEVER };
        let slow = if has("slow disk") { Chance::percent(2) } else { Chance::NEVER };
        let betrays = self.mode == Mode::LogBetrayed;
        let betrayal = if betrays { Chance::per_mille(3) } else { Chance::NEVER };
        let lies = if betrays { Chance::percent(20) } else { Chance::NEVER };
        self.router.set_disk_faults(|faults| {
            (faults.write_error, faults.sync_error, faults.slow) = (errors, errors, slow);
            (faults.lost_write, faults.misdirected_write) = (betrayal, betrayal);
            faults.lying_sync = lies;
        });
    }

    /// The user's next request, or an accident.
    pub fn act(&mut self) {
        if self.phase != Phase::Busy {
            return;
        }
        if self.requests == self.schedule.operations {
            return self.calm_down();
        }
        // What a special life is about needs several accidents to come together.
        let accidents = if self.mode == Mode::Usual { 28 } else { 70 };
        let dice = self.random.below(1000);
        if dice < accidents {
            let kind = self.random.below(ACCIDENT_FACES);
            self.accident(kind);
        } else if dice < accidents + 16 {
            self.note(format_args!("heal"));
            self.world.network.heal();
            self.refresh_reach();
        } else if dice < accidents + 22 {
            self.router.seal();
        } else if self.asked.len() < IN_FLIGHT_MAX && self.takeover.is_none() {
            self.ask();
        }
        let pause = self.random.duration(&(Duration::ZERO..=Duration::from_millis(2)));
        self.world.wake(USER, pause, Timer::Act);
    }

    /// `dice` is below [`ACCIDENT_FACES`].
    fn accident(&mut self, dice: u64) {
        let kind = match dice {
            0..6 => "connection cut",
            6..8 => "edge died",
            8..11 => "router killed",
            11..14 => "router power cut",
            14 => "power cut of everything",
            15..19 => "proxy killed",
            19..22 => "arakoon away",
            22..27 => "partition",
            27..33 => "one-way cut",
            33..37 => "asd killed",
            37..42 => "asd power cut",
            42..46 => "asd errors",
            46..49 => "asd slow",
            49..53 => "asd treachery",
            53 => "asd replaced",
            54..59 => "asd rot",
            59..65 => "pause",
            65..68 => "clock jump",
            68..70 => "clock drift",
            70 => "page map lost",
            71..74 => "backend cut off",
            74..78 => "bad links",
            78 => "log disk full",
            _ => unreachable!("below ACCIDENT_FACES"),
        };
        if !self.schedule.faults.contains(kind) {
            return;
        }
        self.strike(kind);
    }

    fn strike(&mut self, kind: &'static str) {
        self.note(format_args!("accident: {kind}"));
        match kind {
            "connection cut" => {
                self.counts.count(kind);
                self.cut();
            }
            "edge died" => self.edge_dies(),
            "router killed" | "router power cut" if self.router.is_up() => {
                self.counts.count(kind);
                let cut = kind == "router power cut";
                self.crash_router(if cut { Router::power_cut } else { Router::kill });
            }
            "power cut of everything" => self.power_cut_of_everything(),
            "proxy killed" => {
                self.counts.count(kind);
                let at = self.random.index(2);
                self.storage.get_mut().kill_proxy(at);
                self.restart_later(PROXIES[at], Timer::StartProxy(at), 100);
            }
            "arakoon away" if self.world.is_up(ARAKOON) => {
                self.counts.count(kind);
                self.world.crash(ARAKOON);
                let pause = self.random.duration(&(ms(5)..=ms(300)));
                self.world.wake(USER, pause, Timer::StartArakoon);
                self.refresh_reach();
            }
            "partition" | "one-way cut" | "backend cut off" => self.cut_ways(kind),
            "bad links" => {
                let proxy = PROXIES[self.random.index(2)];
                let asd = Self::asd_node(self.random.index(self.storage.borrow().asds.len()));
                let link = match self.random.below(3) {
                    0 => Link::good(),
                    1 => Link::bad(),
                    _ => {
                        self.counts.count("delay");
                        slow_link()
                    }
                };
                self.set_links(proxy, asd, &link);
            }
            "pause" => {
                let count = self.storage.borrow().asds.len();
                let asds = (0..count).map(Self::asd_node);
                let nodes: Vec<NodeId> =
                    [EDGE, ROUTER].into_iter().chain(PROXIES).chain(asds).collect();
                let node = nodes[self.random.index(nodes.len())];
                let length = self.random.duration(&(ms(1)..=ms(800)));
                self.world.pause(node, length);
            }
            "clock jump" | "clock drift" => self.disturb_clock(kind),
            "page map lost" => {
                self.counts.count(kind);
                self.router.lose_map();
            }
            "log disk full" => self.router.fill_disks(),
            _ => self.strike_asd(kind),
        }
    }

    fn strike_asd(&mut self, kind: &'static str) {
        let count = self.storage.borrow().asds.len();
        let at = self.random.index(count);
        let unlucky: Vec<usize> =
            (0..count).filter(|at| self.storage.borrow().asds[*at].unlucky).collect();
        let bad = unlucky[self.random.index(unlucky.len())];
        let dice = self.random.below(4);
        let fuse = 1 + self.random.below(12);
        self.note(format_args!("… of asd {at} (bad: {bad}), dice {dice}, fuse {fuse}"));
        let storage = self.storage.get_mut();
        match kind {
            "asd killed" if storage.asds[at].is_up() => {
                self.counts.count(kind);
                storage.asds[at].kill();
                self.restart_asd(at);
            }
            "asd power cut" if storage.asds[at].is_up() => {
                if dice < 2 {
                    // In the middle of something it does soon.
                    storage.asds[at].light_fuse(fuse);
                } else {
                    self.asd_loses_power(at);
                }
            }
            "asd errors" => {
                let write_error = Chance::percent(if dice == 0 { 0 } else { 20 });
                storage.asds[at].betray(Treachery { write_error, ..Treachery::NONE });
            }
            "asd slow" => {
                storage.asds[at].slow = dice < 2;
                if dice < 2 {
                    self.counts.count(kind);
                }
            }
            "asd treachery" => {
                let mut treachery = Treachery::NONE;
                match dice {
                    0 => treachery.lost_write = Chance::percent(15),
                    1 => treachery.misdirected_write = Chance::percent(15),
                    2 => treachery.lying_sync = Chance::percent(60),
                    _ => {}
                }
                storage.asds[bad].betray(treachery);
            }
            "asd replaced" => {
                self.counts.count(kind);
                storage.asds[bad].empty();
                self.restart_asd(bad);
            }
            "asd rot" => storage.asds[bad].rot(),
            _ => {}
        }
    }

    fn asd_loses_power(&mut self, at: usize) {
        self.counts.count("asd power cut");
        self.storage.get_mut().asds[at].power_cut();
        self.restart_asd(at);
    }

    fn restart_asd(&mut self, at: usize) {
        self.restart_later(Self::asd_node(at), Timer::StartAsd(at), 400);
    }

    fn restart_later(&mut self, node: NodeId, timer: Timer, most: u64) {
        self.world.crash(node);
        self.world.restart(node);
        let pause = self.random.duration(&(ms(1)..=ms(most)));
        self.world.wake(node, pause, timer);
    }

    pub fn start_asd(&mut self, at: usize) {
        let now = self.now(Self::asd_node(at));
        self.storage.get_mut().asds[at].start(now);
    }

    /// As its driver does from time to time, an ASD that couldn't write tries again.
    pub fn tend_asds(&mut self) {
        let count = self.storage.borrow().asds.len();
        for at in 0..count {
            let now = self.now(Self::asd_node(at));
            let asd = &mut self.storage.get_mut().asds[at];
            asd.try_again(now);
            if asd.is_off() {
                self.asd_loses_power(at);
            }
        }
    }

    /// An ASD carries an operation out and answers when its disk is done.
    pub fn serve_fragment(&mut self, from: NodeId, to: NodeId, (call, op): (u64, &Op)) {
        let now = self.now(to);
        let storage = self.storage.get_mut();
        let at = storage.asds.iter().position(|asd| asd.node == to).expect("a known ASD");
        if !storage.asds[at].is_up() {
            return;
        }
        let mut outcome = storage.asds[at].carry_out(op, now);
        if let Op::Put(put) = op {
            let osd = storage.asds[at].osd;
            storage.ledger.put_at_osd(&put.key, osd, call, outcome);
        }
        let slow = storage.asds[at].slow;
        let named = FragmentKey::from_bytes(op.key()).expect("only fragments are stored");
        let (object, index, attempt) = (named.object, named.index, named.attempt.0 >> 112);
        let what = if matches!(op, Op::Put(_)) { "put" } else { "delete" };
        let off = storage.asds[at].is_off();
        self.note(format_args!(
            "asd {at}: {what} {}/{}.{index} of {attempt:x}, call {call}: {outcome:?}{}",
            object.epoch,
            object.number,
            if off { ", and its power fails" } else { "" }
        ));
        let storage = self.storage.get_mut();
        if storage.asds[at].is_off() {
            return self.asd_loses_power(at);
        }
        if outcome == Outcome::Stored && self.strikes("answer lies", Chance::per_mille(5)) {
            self.counts.count("asd did it and said failed");
            outcome = Outcome::Failed;
        }
        let most = if slow { ms(1500) } else { ms(3) };
        let latency = self.random.duration(&(Duration::from_micros(50)..=most));
        let answer = Box::new(Message::FragmentDone { call, outcome });
        self.world.wake(to, latency, Timer::Reply(from, answer));
    }

    fn cut_ways(&mut self, kind: &'static str) {
        let count = self.storage.borrow().asds.len();
        let proxy = PROXIES[self.random.index(2)];
        let asd = Self::asd_node(self.random.index(count));
        let pairs = [(ROUTER, proxy), (proxy, ARAKOON), (proxy, asd), (proxy, asd), (EDGE, ROUTER)];
        let (one, other) = pairs[self.random.index(pairs.len())];
        let network = &mut self.world.network;
        match kind {
            "backend cut off" => network.partition(&[ROUTER], &PROXIES),
            "partition" => network.partition(&[one], &[other]),
            _ if self.random.happens(Chance::percent(50)) => network.cut_one_way(one, other),
            _ => network.cut_one_way(other, one),
        }
        if (one, other) == (EDGE, ROUTER) && kind != "backend cut off" {
            // A connection that carries nothing is noticed at the latest by its calls' timeout; here sooner.
            self.counts.count("connection cut");
            self.cut();
        }
        self.refresh_reach();
    }

    /// Which ways are open both ways, for reads and lookups, which take no time here.
    pub fn refresh_reach(&mut self) {
        let arakoon = self.world.is_up(ARAKOON);
        let network = &self.world.network;
        let open = |one, other| network.is_open(one, other) && network.is_open(other, one);
        let storage = self.storage.get_mut();
        for (at, proxy) in PROXIES.into_iter().enumerate() {
            storage.reach.router[at] = open(ROUTER, proxy);
            storage.reach.arakoon[at] = arakoon && open(proxy, ARAKOON);
            for (asd, way) in storage.reach.asds[at].iter_mut().enumerate() {
                *way = open(proxy, Self::asd_node(asd));
            }
        }
    }

    fn disturb_clock(&mut self, kind: &'static str) {
        self.counts.count(kind);
        let count = self.storage.borrow().asds.len();
        let nodes: Vec<NodeId> =
            [EDGE].into_iter().chain(PROXIES).chain((0..count).map(Self::asd_node)).collect();
        let node = nodes[self.random.index(nodes.len())];
        let now = self.world.now();
        let ahead = self.random.duration(&(ms(1)..=ms(90_000)));
        let rate = self.random.between(900_000..=1_100_000);
        let clock = self.clocks.entry(node).or_default();
        if kind == "clock jump" {
            clock.jump(now, ahead);
        } else {
            clock.drift(now, rate);
        }
    }

    pub fn crash_router(&mut self, crash: fn(&mut Router)) {
        if self.mode == Mode::LogBetrayed {
            // What the log lost would be seen as a hole under what the edge replays: nobody promises anything then.
            return self.power_cut_of_everything();
        }
        crash(&mut self.router);
        // What only the dead edge could have replayed is lost with it.
        self.takeover = self.takeover.map(|_| Survival::Crash);
        self.maybe_rot();
        self.world.crash(ROUTER);
        self.world.restart(ROUTER);
        self.cut();
        let pause = self.random.duration(&(ms(1)..=ms(30)));
        self.world.wake(ROUTER, pause, Timer::StartRouter);
    }

    pub fn maybe_rot(&mut self) {
        if self.mode == Mode::LogRot && self.random.happens(Chance::percent(25)) {
            self.router.rot(&mut self.random);
        }
    }

    /// The user's host is gone; another one takes the attachment over.
    fn edge_dies(&mut self) {
        // A log that loses what it confirmed may lose what the next edge finds, and nobody could say which.
        if self.takeover.is_some() || self.mode == Mode::LogBetrayed {
            return;
        }
        self.counts.count("edge died");
        // What a dead router had acknowledged and lost, only the dead edge knew.
        let all = self.session.is_live() && self.router.is_up();
        self.takeover = Some(if all { Survival::Alive } else { Survival::Crash });
        self.world.crash(EDGE);
        self.world.restart(EDGE);
        (self.link, self.attaching) = (None, None);
        self.asked.clear();
        self.session = edge_core::session::Session::new(settings(), self.random.u64());
        for timer in [Timer::Attach, Timer::Tick] {
            self.world.wake(EDGE, ms(1), timer);
        }
    }

    /// A new edge attaches: what it finds is judged, and is what everything begins with from now on. False: not now.
    pub fn take_over(&mut self) -> bool {
        let Some(survival) = self.takeover else { return self.router.is_up() };
        if !self.router.is_up() || !self.router.sync_now(&self.storage) {
            return false;
        }
        let Ok(bytes) = self.router.image(&self.storage) else { return false };
        self.takeover = None;
        let image = self.judge_image(&bytes, survival);
        self.history.rebase(&image);
        true
    }

    /// Everything that is broken works again, and stays so.
    pub fn make_peace(&mut self) {
        self.world.network.heal();
        let count = self.storage.borrow().asds.len();
        let asds: Vec<NodeId> = (0..count).map(Self::asd_node).collect();
        for proxy in PROXIES {
            for node in asds.iter().copied().chain([ROUTER, ARAKOON]) {
                self.set_links(proxy, node, &Link::good());
            }
        }
        self.router.set_disk_faults(|faults| *faults = sim::DiskFaults::none());
        self.world.restart(ARAKOON);
        for asd in &mut self.storage.get_mut().asds {
            asd.betray(Treachery::NONE);
            asd.slow = false;
        }
        self.refresh_reach();
    }

    /// All ASDs and proxies lose power and are back at once.
    pub fn power_cut_of_the_backend(&mut self) {
        let count = self.storage.borrow().asds.len();
        for at in 0..count {
            let node = Self::asd_node(at);
            self.storage.get_mut().asds[at].power_cut();
            self.world.crash(node);
            self.world.restart(node);
            self.start_asd(at);
        }
        for at in 0..2 {
            self.storage.get_mut().kill_proxy(at);
            self.storage.get_mut().start_proxy(at);
        }
        self.world.network.heal();
        self.world.restart(ARAKOON);
        self.refresh_reach();
    }
}

const fn ms(count: u64) -> Duration {
    Duration::from_millis(count)
}
