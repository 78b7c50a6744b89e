//! Owners, three targets and claimants over a network that loses, doubles and delays, with targets that crash, lose power
//! and are wiped, and old owners that don't know that they are over. Meanwhile the mode is changed, in place and through the
//! backend.
//!
//! Invariant: what any owner was allowed to acknowledge as flushed is in the history that every later owner recovers; once
//! there is a later owner no older one has the right to read, by whatever clock; a gap is only ever found where something was wiped or
//! not everybody was sealed (L1–L4, L7, P11–P13, P16).

use std::collections::BTreeMap;
use std::time::Duration;

use model::{Epoch, Lsn, Now, RouterId};
use router_core::dtl::owner::{
    Effect, Failure, FromTarget, Opening, Owner, Patience, Proposed, RequestId, Session, ToTarget,
};
use router_core::dtl::takeover::{Evidence, Plan, judge};
use router_core::dtl::target::{Answer, Ask, Effect as Wanted, Refusal, Ticket, confirm};
use router_core::log::pool::Entry;
use sim::{Chance, Random};
use wire::dtl::{DtlFacts, DtlMode, DtlState, Held, LogName};

use crate::cuts::Cuts;
use crate::disk::MemDisk;
use crate::support::{Driven, VDISK, at, entry, run};

mod regime;

const STEPS: u64 = 1500;
const SEEDS: u64 = 1000;
const TARGETS: [RouterId; 3] = [RouterId(1), RouterId(2), RouterId(3)];

enum Mail {
    ToTarget {
        life: usize,
        target: RouterId,
        request: RequestId,
        ask: Ask,
    },
    Answer {
        life: usize,
        target: RouterId,
        request: RequestId,
        answer: Result<FromTarget, Failure>,
    },
    Propose {
        life: usize,
        from: DtlFacts,
        to: DtlFacts,
    },
    Decided {
        life: usize,
        outcome: Proposed,
    },
    Change {
        life: usize,
        from: DtlFacts,
        to: DtlMode,
        head: Lsn,
    },
    Changed {
        life: usize,
        refused: bool,
    },
}

struct Life {
    epoch: Epoch,
    core: Owner,
    /// By its own clock its session in arakoon lives. Never longer than arakoon thinks so (P17).
    session: Session,
    /// Who wrote each LSN, as this owner has it.
    view: BTreeMap<u64, u64>,
    flushed: Lsn,
    /// When it began.
    mode: DtlMode,
    /// Synced in its own log, where that is all there is.
    local: Lsn,
    /// Requests wait for a change of the mode.
    waits: bool,
    dead: bool,
}

impl Life {
    fn answers(&self) -> bool {
        !self.waits && !self.dead
    }
}

struct Claim {
    epoch: Epoch,
    facts: DtlFacts,
    started: Now,
    asked: BTreeMap<(RouterId, Ticket), bool>,
    sealed: Vec<(RouterId, Vec<Held>)>,
}

#[derive(Debug, Default)]
struct Tally {
    takeovers: u64,
    flushed: u64,
    gaps: u64,
    in_sync: u64,
    wipes: u64,
    zombies: u64,
    changes: u64,
}

struct World {
    random: Random,
    now: Now,
    epoch: Epoch,
    mode: DtlMode,
    facts: DtlFacts,
    targets: BTreeMap<RouterId, Driven>,
    /// How many of a target's milliseconds go by in a second.
    speeds: BTreeMap<RouterId, u64>,
    waiting: BTreeMap<(RouterId, Ticket), (usize, RequestId)>,
    lives: Vec<Life>,
    cuts: Cuts,
    claim: Option<Claim>,
    mail: Vec<(Now, Mail)>,
    /// Who wrote each LSN of the history that counts.
    lineage: BTreeMap<u64, u64>,
    head: Lsn,
    lost_something: bool,
    tally: Tally,
}

impl World {
    fn new(seed: u64) -> Self {
        let now = at(100_000);
        let mut random = Random::new(seed);
        let mut world = Self {
            speeds: TARGETS.map(|t| (t, 960 + random.below(80))).into(),
            random,
            now,
            epoch: Epoch(1),
            mode: DtlMode::Sync,
            facts: DtlFacts::standalone(),
            targets: TARGETS.map(|t| (t, Driven::open(MemDisk::default(), now))).into(),
            waiting: BTreeMap::new(),
            lives: Vec::new(),
            cuts: Cuts::default(),
            claim: None,
            mail: Vec::new(),
            lineage: BTreeMap::new(),
            head: Lsn(0),
            lost_something: false,
            tally: Tally::default(),
        };
        let next = DtlFacts {
            state: DtlState::Degraded,
            generation: world.facts.generation.next(),
            ..world.facts.clone()
        };
        world.begin(Epoch(1), next, &[]);
        world
    }

    fn begin(&mut self, epoch: Epoch, next: DtlFacts, replayed: &[Entry]) {
        let copies = 1 + self.random.index(2);
        let opening = Opening {
            vdisk: VDISK,
            epoch,
            me: RouterId(100),
            mode: self.mode,
            unprotected: self.mode == DtlMode::NoTarget,
            strict: false,
            facts: self.facts.clone(),
            next,
            base: self.head,
            patience: Patience::default(),
        };
        let mut out = Vec::new();
        let mut core = Owner::open(opening, self.now, &mut out);
        core.candidates(TARGETS.to_vec(), copies);
        for entry in replayed {
            core.appended(entry.lsn, 4224);
        }
        core.local_synced(Lsn(u64::MAX));
        let view = self.lineage.clone();
        let local = Lsn(view.keys().next_back().copied().unwrap_or(0));
        self.lives.push(Life {
            epoch,
            core,
            session: Session::Valid,
            view,
            flushed: Lsn(0),
            mode: self.mode,
            local,
            waits: false,
            dead: false,
        });
        self.carry_out(self.lives.len() - 1, out);
    }

    fn post(&mut self, mail: Mail) {
        // Arakoon may take long, and longer to say what became of it.
        let arakoon = !matches!(mail, Mail::ToTarget { .. } | Mail::Answer { .. });
        let slow = arakoon && self.random.happens(Chance::percent(8));
        let delay = Duration::from_millis(1 + self.random.below(if slow { 4000 } else { 30 }));
        self.mail.push((self.now.plus(delay), mail));
    }

    fn carry_out(&mut self, life: usize, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Send { target, request, what } => self.send(life, target, request, &what),
                Effect::Propose { from, to } => self.post(Mail::Propose { life, from, to }),
                Effect::Forget { .. } | Effect::Drop { .. } | Effect::Changed { .. } => {}
                Effect::Fenced => self.tally.zombies += 1,
            }
        }
    }

    fn send(&mut self, life: usize, target: RouterId, request: RequestId, what: &ToTarget) {
        if self.random.happens(Chance::percent(2)) {
            let answer = Err(Failure::Lost);
            return self.post(Mail::Answer { life, target, request, answer });
        }
        let copies = 1 + usize::from(self.random.happens(Chance::percent(2)));
        for _ in 0..copies {
            let ask = self.ask(life, what);
            self.post(Mail::ToTarget { life, target, request, ask });
        }
    }

    fn ask(&mut self, life: usize, what: &ToTarget) -> Ask {
        let Life { epoch, core, view, .. } = &self.lives[life];
        let log: LogName = core.log_name();
        match *what {
            ToTarget::Open => Ask::Open(log),
            ToTarget::Create { base } => Ask::Create { log, base, nonce: self.random.u64() },
            ToTarget::Append { first, last } => {
                let entries: Vec<Entry> =
                    (first.0..=last.0).map(|lsn| entry(view[&lsn], lsn)).collect();
                let records = run(&entries);
                Ask::Append { log, first, entries, records }
            }
            ToTarget::Sync { through } => Ask::Sync { log, through },
            ToTarget::Renew => Ask::Renew(log),
            ToTarget::Trim { through } => Ask::Trim { epoch: *epoch, through },
        }
    }

    fn deliver(&mut self) {
        let due: Vec<usize> =
            (0..self.mail.len()).filter(|index| self.mail[*index].0 <= self.now).take(4).collect();
        let late = self.random.happens(Chance::percent(10));
        let Some(index) = (if late { due.last() } else { due.first() }) else { return };
        let mut out = Vec::new();
        match self.mail.remove(*index).1 {
            Mail::ToTarget { life, target, .. } if self.cuts.swallows_request(life, target) => {}
            Mail::Answer { life, target, .. } if self.cuts.swallows_answer(life, target) => {}
            Mail::ToTarget { life, target, request, ask } => {
                let ticket = self.targets.get_mut(&target).unwrap().ask(ask);
                self.waiting.insert((target, ticket), (life, request));
                self.collect(target);
            }
            Mail::Answer { life, target, request, answer } => {
                let core = &mut self.lives[life].core;
                core.answered((target, request), answer, self.now, &mut out);
                self.carry_out(life, out);
            }
            Mail::Propose { life, from, to } => {
                let epoch = self.lives[life].epoch;
                let outcome = if self.epoch == epoch && self.facts == from {
                    self.tally.in_sync += u64::from(to.state == DtlState::InSync);
                    self.facts = to;
                    Proposed::Committed
                } else {
                    Proposed::Refused
                };
                self.post(Mail::Decided { life, outcome });
            }
            Mail::Decided { life, outcome } => {
                self.lives[life].core.decided(outcome, self.now, &mut out);
                self.carry_out(life, out);
            }
            Mail::Change { life, from, to, head } => self.decide_change(life, &from, to, head),
            Mail::Changed { life, refused: true } => self.lives[life].waits = false,
            Mail::Changed { life, refused: false } => self.open_anew(life),
        }
    }

    /// A target does one of the things that it wants done.
    fn work(&mut self) {
        let target = *self.random.pick(&TARGETS).unwrap();
        let driven = self.targets.get_mut(&target).unwrap();
        if driven.wanted.is_empty() {
            return;
        }
        let index = self.random.index(driven.wanted.len());
        if let Wanted::Authorize { log, .. } = &driven.wanted[index] {
            driven.authorizes = confirm((self.epoch, &self.facts), log, target).is_ok();
        }
        driven.do_one(index);
        self.collect(target);
    }

    fn collect(&mut self, target: RouterId) {
        let answers = std::mem::take(&mut self.targets.get_mut(&target).unwrap().answers);
        for (ticket, answer) in answers {
            if let Some(claim) = &mut self.claim
                && claim.asked.remove(&(target, ticket)).is_some()
            {
                if let Ok(Answer::Sealed(held)) = answer {
                    claim.sealed.push((target, held));
                }
                continue;
            }
            let Some((life, request)) = self.waiting.remove(&(target, ticket)) else { continue };
            let lost = self.random.happens(Chance::percent(2));
            let answer = if lost { Err(Failure::Lost) } else { understood(answer) };
            self.post(Mail::Answer { life, target, request, answer });
        }
    }

    /// L3, P16: as soon as there is a later owner, no earlier one may answer reads.
    fn nobody_older_serves(&self) {
        let Some((_, older)) = self.lives.split_last() else { return };
        for life in older.iter().filter(|life| life.answers()) {
            let (epoch, right) = (life.epoch, life.core.read_right());
            let may_serve = right.allows(self.now, life.session);
            assert!(!may_serve, "epoch {epoch} serves on by {right:?}: {:?}", life.core.facts());
        }
    }

    fn write(&mut self) {
        let Some(life) = self.lives.last_mut().filter(|life| life.answers()) else { return };
        let next = life.view.keys().next_back().map_or(1, |lsn| lsn + 1);
        let count = 1 + self.random.below(4);
        for lsn in next..next + count {
            life.view.insert(lsn, life.epoch.0);
            self.lineage.insert(lsn, life.epoch.0);
            life.core.appended(Lsn(lsn), 4224);
        }
        let last = Lsn(next + count - 1);
        life.local = match life.mode {
            DtlMode::Sync | DtlMode::Async => last,
            DtlMode::NoTarget => life.local.max(Lsn(next - 1 + self.random.below(count + 1))),
        };
        life.core.local_synced(life.local);
        life.core.want_flush(last);
        life.core.reading(self.now);
        self.progress(self.lives.len() - 1);
    }

    fn progress(&mut self, life: usize) {
        let mut out = Vec::new();
        self.lives[life].core.progress(self.now, &mut out);
        self.carry_out(life, out);
    }

    /// The backend takes a prefix, if the epoch is still the newest (L4).
    fn store(&mut self) {
        let Some(life) = self.lives.last_mut() else { return };
        if life.epoch != self.epoch || self.claim.is_some() {
            return;
        }
        let last = life.view.keys().next_back().copied().unwrap_or(0);
        let upto = self.head.0 + self.random.below(last - self.head.0 + 1);
        self.head = Lsn(upto);
        life.core.backend_has(self.head);
    }

    fn crash_target(&mut self) {
        let target = *self.random.pick(&TARGETS).unwrap();
        let disk = self.targets[&target].disk.clone();
        let disk = match self.random.below(12) {
            0 => {
                self.lost_something = true;
                self.tally.wipes += 1;
                MemDisk::default()
            }
            1..=6 => disk.image(Chance::percent(50), &mut self.random),
            _ => disk.survivor(),
        };
        let now = self.clock_of(target);
        self.targets.insert(target, Driven::open(disk, now));
        let gone: Vec<_> = self.waiting.extract_if(.., |(t, _), _| *t == target).collect();
        for (_, (life, request)) in gone {
            self.post(Mail::Answer { life, target, request, answer: Err(Failure::Lost) });
        }
        if let Some(claim) = &mut self.claim {
            claim.asked.retain(|(t, _), _| *t != target);
        }
    }

    /// Boot-time clocks run at different speeds.
    fn clock_of(&self, target: RouterId) -> Now {
        let passed = u64::try_from(self.now.since(at(100_000)).as_micros()).unwrap();
        at(100_000).plus(Duration::from_micros(passed * self.speeds[&target] / 1000))
    }

    /// Somebody claims; whoever claimed before him and isn't done is over.
    fn claim(&mut self) {
        if self.mode == DtlMode::NoTarget {
            return self.open_in_place();
        }
        self.epoch = self.epoch.next();
        let facts = self.facts.clone();
        let former = facts.previous.iter().flat_map(|promise| promise.targets.clone());
        let mut named: Vec<RouterId> = facts.targets.iter().copied().chain(former).collect();
        named.sort_unstable();
        named.dedup();
        if !named.is_empty() && self.random.happens(Chance::percent(40)) {
            named.remove(self.random.index(named.len()));
        }
        if self.random.happens(Chance::percent(50)) && !self.lives.is_empty() {
            self.cuts.isolate(self.lives.len() - 1, &mut self.random);
        }
        if facts.state != DtlState::InSync {
            // The claim asserts that the session of the last owner is over.
            self.lives.iter_mut().for_each(|life| life.session = Session::Expired);
        }
        let (epoch, started) = (self.epoch, self.now);
        let mut claim = Claim { epoch, facts, started, asked: BTreeMap::new(), sealed: Vec::new() };
        for target in named {
            let ticket = self.targets.get_mut(&target).unwrap().ask(Ask::Seal { epoch });
            claim.asked.insert((target, ticket), true);
        }
        self.claim = Some(claim);
    }

    fn settle_claim(&mut self) {
        let Some(claim) = &self.claim else { return };
        let waited = self.now.since(claim.started);
        if !claim.asked.is_empty() && waited < Duration::from_secs(4) {
            return;
        }
        let claim = self.claim.take().expect("just seen");
        let evidence = Evidence {
            me: RouterId(100),
            facts: &claim.facts,
            mode: self.mode,
            head: self.head,
            own_last: None,
            epochs: &BTreeMap::new(),
            sealed: &claim.sealed,
        };
        match judge(&evidence) {
            Ok(plan) => self.take_over(&claim, &plan),
            Err(gap) => {
                let former = claim.facts.previous.iter().flat_map(|p| p.targets.iter());
                let mut named = claim.facts.targets.iter().chain(former);
                let all = named.all(|target| claim.sealed.iter().any(|(s, _)| s == target));
                assert!(self.lost_something || !all, "{gap}: {:?} {:?}", claim.facts, claim.sealed);
                self.tally.gaps += 1;
            }
        }
    }

    fn take_over(&mut self, claim: &Claim, plan: &Plan) {
        let mut entries: Vec<Entry> = Vec::new();
        if let Some(source) = &plan.source {
            let target = &self.targets[&source.router].target;
            let mut from = source.from;
            while from <= source.through {
                let read = target.read((claim.epoch, source.generation), from, 20_000);
                // Another claimant was faster, or the target has crashed and is wiped since.
                let Ok(read) = read else { return };
                if read.is_empty() {
                    return;
                }
                from = Lsn(from.0 + read.len() as u64);
                entries.extend(read);
            }
        }
        assert!(entries.iter().zip(self.head.0 + 1..).all(|(e, lsn)| e.lsn.0 == lsn));
        let flushed = self.lives.iter().map(|life| life.flushed).max().unwrap_or_default();
        assert!(flushed <= plan.last, "flushed through {flushed}, recovered through {}", plan.last);
        self.lineage.retain(|lsn, _| *lsn <= plan.last.0);
        for found in &entries {
            let before = self.lineage.insert(found.lsn.0, found.epoch.0);
            let known = before.is_none_or(|writer| writer == found.epoch.0);
            assert!(known || flushed < found.lsn, "LSN {} was another's", found.lsn);
        }
        self.tally.takeovers += 1;
        self.begin(claim.epoch, plan.next.clone(), &entries);
    }

    /// Whatever is acknowledged now stays in the history.
    fn observe(&mut self) {
        for life in self.lives.iter_mut().filter(|life| !life.dead) {
            let acks = life.core.acks();
            for lsn in life.flushed.0 + 1..=acks.flush.0 {
                let (mine, theirs) = (life.view.get(&lsn), self.lineage.get(&lsn));
                assert_eq!(mine, theirs, "epoch {} acknowledges LSN {lsn}", life.epoch);
                self.tally.flushed += 1;
            }
            life.flushed = life.flushed.max(acks.flush);
        }
    }

    /// Without a DTL there is less to go wrong.
    fn eagerness(&self) -> Chance {
        Chance::percent(if self.mode == DtlMode::NoTarget { 60 } else { 20 })
    }

    fn step(&mut self) {
        self.now = self.now.plus(Duration::from_millis(self.random.below(12)));
        for target in TARGETS {
            let now = self.clock_of(target);
            let driven = self.targets.get_mut(&target).unwrap();
            driven.now = now;
            driven.advance(0);
            self.collect(target);
        }
        match self.random.below(100) {
            0..=44 => self.deliver(),
            45..=74 => self.work(),
            75..=85 => self.write(),
            86 if self.random.happens(self.eagerness()) => self.change_mode(),
            87..=88 => self.store(),
            89..=97 => (0..self.lives.len()).for_each(|life| self.progress(life)),
            98 if self.random.happens(Chance::percent(30)) => self.crash_target(),
            98 => self.cuts.happen(&TARGETS, &mut self.random),
            99 if self.random.happens(Chance::percent(25)) => self.claim(),
            _ => {}
        }
        self.settle_claim();
        self.observe();
        self.nobody_older_serves();
    }
}

fn understood(answer: Result<Answer, Refusal>) -> Result<FromTarget, Failure> {
    match answer {
        Ok(Answer::Opened(held)) => Ok(FromTarget::Opened(held)),
        Ok(Answer::Appended(last)) => Ok(FromTarget::Appended(last)),
        Ok(Answer::Synced(through)) => Ok(FromTarget::Synced(through)),
        Ok(Answer::Renewed | Answer::Trimmed | Answer::Sealed(_)) => Ok(FromTarget::Done),
        Err(Refusal::Gap { last }) => Err(Failure::Gap { last }),
        Err(Refusal::Fenced { .. }) => Err(Failure::Fenced),
        Err(Refusal::UnknownRecord(_)) => Err(Failure::Lost),
        Err(other) => Err(Failure::Refused(other.to_string())),
    }
}

#[test]
fn what_was_flushed_is_recovered_whoever_dies_and_whoever_claims() {
    let soak = std::env::var_os("HOLDFAST_SOAK").is_some();
    let mut all = Tally::default();
    sim::seeds::check(if soak { 20 * SEEDS } else { SEEDS }, |seed| {
        let mut world = World::new(seed);
        for _ in 0..STEPS {
            world.step();
        }
        let Tally { takeovers, flushed, gaps, in_sync, wipes, zombies, changes } = world.tally;
        all.takeovers += takeovers;
        all.flushed += flushed;
        all.gaps += gaps;
        all.in_sync += in_sync;
        all.wipes += wipes;
        all.zombies += zombies;
        all.changes += changes;
        takeovers ^ (flushed << 8) ^ (in_sync << 40) ^ (zombies << 50)
    });
    eprintln!("{all:?}");
    let Tally { takeovers, flushed, in_sync, wipes, zombies, changes, .. } = all;
    assert!(SEEDS < takeovers && SEEDS < in_sync && 100 * SEEDS < flushed, "little happened");
    assert!(0 < wipes && 0 < zombies, "no fault struck");
    assert!(SEEDS < changes, "the mode hardly changed");
}
