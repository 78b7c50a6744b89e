//! Random lives of a target; after every step the power fails in several ways, and what a restart finds is judged.
//!
//! Invariant: what was answered as synced, sealed, trimmed or created is there; what is there is what was written; and a
//! power cut never looks like damage.

use std::collections::BTreeMap;

use model::{Epoch, Lsn};
use router_core::dtl::target::{Answer, Ask, Ticket};
use sim::{Chance, Random};
use wire::dtl::{Held, LogName};

use crate::disk::MemDisk;
use crate::support::{Driven, append, at, name};

const STEPS: u64 = 80;
const SEEDS: u64 = 5;
const CUTS: [Chance; 5] =
    [Chance::NEVER, Chance::percent(10), Chance::percent(50), Chance::percent(90), Chance::ALWAYS];

/// What was answered about one log.
#[derive(Debug, Clone, Copy)]
struct Told {
    epoch: u64,
    synced: Lsn,
    sent: Lsn,
    trimmed: Lsn,
}

#[derive(Debug, Clone, Copy)]
enum Asked {
    Create(u64, u64, Lsn),
    Append,
    Sync(u64),
    Trim(u64, Lsn),
    Seal(u64),
}

struct Life {
    random: Random,
    driven: Driven,
    owner: LogName,
    asked: BTreeMap<Ticket, Asked>,
    told: BTreeMap<u64, Told>,
    trim_sent: Lsn,
    sealed: u64,
    sealed_last: BTreeMap<u64, Lsn>,
    cuts: u64,
    lost: u64,
    digest: u64,
}

impl Life {
    fn new(seed: u64) -> Self {
        let mut life = Self {
            random: Random::new(seed),
            driven: Driven::open(MemDisk::default(), at(0)),
            owner: name(1, 1),
            asked: BTreeMap::new(),
            told: BTreeMap::new(),
            trim_sent: Lsn(0),
            sealed: 0,
            sealed_last: BTreeMap::new(),
            cuts: 0,
            lost: 0,
            digest: seed,
        };
        life.create(Lsn(0));
        life
    }

    fn ask(&mut self, ask: Ask, asked: Asked) {
        let ticket = self.driven.ask(ask);
        self.asked.insert(ticket, asked);
    }

    fn create(&mut self, base: Lsn) {
        let log = self.owner.clone();
        let (epoch, generation) = (log.epoch.0, log.generation.0);
        let nonce = self.random.u64();
        self.ask(Ask::Create { log, base, nonce }, Asked::Create(generation, epoch, base));
    }

    fn step(&mut self) {
        let generation = self.owner.generation.0;
        let sent = self.told.get(&generation).map(|told| told.sent);
        match (self.random.below(20), sent) {
            (0..=6, Some(sent)) => {
                // Sometimes a repetition, sometimes a gap; mostly the next ones.
                let first = match self.random.below(8) {
                    0 => sent.0 + 2,
                    1 => sent.0.saturating_sub(2).max(1),
                    _ => sent.0 + 1,
                };
                let last = first + self.random.below(6);
                self.ask(append(self.owner.clone(), first..=last), Asked::Append);
                let held = self.driven.held(generation).map_or(sent, |held| held.last);
                self.told.get_mut(&generation).unwrap().sent = held.max(sent);
            }
            (7..=9, Some(_)) => {
                let through = self.driven.held(generation).map_or(Lsn(0), |held| held.last);
                let log = self.owner.clone();
                self.ask(Ask::Sync { log, through }, Asked::Sync(generation));
            }
            (10, Some(sent)) => {
                let through = Lsn(self.random.below(sent.0 + 1)).max(self.trim_sent);
                self.trim_sent = through;
                self.ask(
                    Ask::Trim { epoch: self.owner.epoch, through },
                    Asked::Trim(generation, through),
                );
            }
            (11, Some(_)) if self.random.happens(Chance::percent(30)) => {
                self.owner.generation = self.owner.generation.next();
                self.create(self.trim_sent);
            }
            (12, _) if self.random.happens(Chance::percent(40)) => {
                // Another owner: claims, seals, and makes a log of its own later.
                self.owner.epoch = self.owner.epoch.next();
                self.owner.generation = self.owner.generation.next();
                let epoch = self.owner.epoch;
                self.ask(Ask::Seal { epoch }, Asked::Seal(epoch.0));
            }
            (13, None) => self.create(self.trim_sent),
            (14, _) => self.driven.advance(800),
            _ => {
                let wanted = self.driven.wanted.len();
                if 0 < wanted {
                    let index = self.random.index(wanted);
                    self.driven.do_one(index);
                }
            }
        }
        self.learn();
    }

    fn learn(&mut self) {
        let answers = std::mem::take(&mut self.driven.answers);
        for (ticket, answer) in answers {
            let Some(asked) = self.asked.remove(&ticket) else { continue };
            match (asked, answer) {
                (Asked::Create(generation, epoch, base), Ok(Answer::Opened(held))) => {
                    let told = Told { epoch, synced: base, sent: held.last, trimmed: base };
                    self.told.entry(generation).or_insert(told);
                }
                (Asked::Sync(generation), Ok(Answer::Synced(lsn))) => {
                    let told = self.told.get_mut(&generation).unwrap();
                    told.synced = told.synced.max(lsn);
                }
                (Asked::Trim(generation, through), Ok(_)) => {
                    let told = self.told.get_mut(&generation).unwrap();
                    told.trimmed = told.trimmed.max(through);
                }
                (Asked::Seal(epoch), Ok(Answer::Sealed(held))) => {
                    self.sealed = self.sealed.max(epoch);
                    for held in held {
                        self.sealed_last.insert(held.generation.0, held.last);
                    }
                }
                (_, _) => {}
            }
        }
    }

    fn cut_everywhere(&mut self) {
        // Two kinds of cut each time: over the lives every kind meets every kind of step.
        for _ in 0..2 {
            let keep = *self.random.pick(&CUTS).unwrap();
            let image = self.driven.disk.image(keep, &mut self.random);
            self.cuts += 1;
            let found = Driven::open(image, self.driven.now);
            self.judge(&found);
        }
    }

    fn judge(&mut self, found: &Driven) {
        assert!(Epoch(self.sealed) <= found.target.fence(), "a seal was answered and is forgotten");
        for (generation, told) in &self.told {
            let Some(held) = found.held(*generation) else {
                let needed = self.driven.held(*generation);
                let last = needed.map_or(Lsn(0), |held| held.last);
                assert!(last <= self.trim_sent, "generation {generation} is gone");
                continue;
            };
            let Held { base, last, damaged, .. } = held;
            assert!(!damaged, "a power cut looks like damage: {held:?}");
            assert!(told.synced <= last, "synced through {} and gone: {held:?}", told.synced);
            assert!(base <= self.trim_sent);
            let sealed = self.sealed_last.get(generation).copied().unwrap_or_default();
            assert!(sealed <= last, "sealed through {sealed} and gone: {held:?}");
            self.lost += u64::from(last < told.sent);
            self.digest = self.digest.wrapping_mul(31).wrapping_add(last.0);
            found.check_records(&held, |_| told.epoch);
            assert!(told.trimmed <= base, "trimmed through {} and {held:?}", told.trimmed);
        }
    }

    /// Lives on after a cut; who was asked and didn't answer never will.
    fn restart(&mut self) {
        let power = self.random.happens(Chance::percent(70));
        let disk = if power {
            let keep = *self.random.pick(&CUTS).unwrap();
            self.driven.disk.image(keep, &mut self.random)
        } else {
            self.driven.disk.survivor()
        };
        self.asked.clear();
        self.driven = Driven::open(disk, self.driven.now);
        for (generation, told) in &mut self.told {
            if let Some(held) = self.driven.held(*generation) {
                told.sent = held.last;
            }
        }
    }
}

/// h_13.
#[test]
fn no_power_cut_loses_what_a_target_has_answered() {
    let soak = std::env::var_os("HOLDFAST_SOAK").is_some();
    let (mut cuts, mut lost, mut seals) = (0, 0, 0);
    sim::seeds::check(if soak { 100 * SEEDS } else { SEEDS }, |seed| {
        let mut life = Life::new(seed);
        for _ in 0..STEPS {
            life.step();
            life.cut_everywhere();
            if life.random.happens(Chance::percent(3)) {
                life.restart();
            }
        }
        cuts += life.cuts;
        lost += life.lost;
        seals += life.sealed;
        life.digest
    });
    eprintln!("{cuts} cuts, {lost} of them lost what wasn't synced, {seals} epochs sealed");
    assert!(SEEDS * STEPS <= cuts && 0 < lost && 0 < seals);
}
