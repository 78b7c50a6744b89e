//! What the world of the model looks like at one moment: small, comparable, and nothing in it that time alone decides.
//!
//! A *life* is one opening of the vDisk by one router, from its claim on (P10). Routers are slow or asleep by not taking
//! steps, so a pause needs no step of its own. A write is a number; the writes of one block are issued in rising order.
//!
//! Invariant: two worlds that behave alike are equal: what is over and can have no effect any more is forgotten
//! ([`State::forget`]).

pub use crate::values::{History, Record, Set};

use crate::rules::{Fault, Rules};
use model::{DtlGeneration, Epoch, Lsn, RouterId};
use wire::dtl::{DtlFacts, DtlPromise, DtlState, Held};

pub const WRITES: usize = 3;
pub const EDGES: usize = 2;
pub const ROUTERS: usize = 2;
pub const TARGETS: usize = 2;
pub const LIVES: usize = 4;
const LOGS: usize = 3;
const DISK: usize = 6;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mode {
    #[default]
    Standalone,
    CatchingUp,
    InSync,
    Degraded,
}

/// A promise whose logs count to their ends.
pub const ALL: u8 = u8::MAX;

/// [`DtlFacts`], small.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Facts {
    pub state: Mode,
    pub generation: u8,
    pub targets: Set,
    pub floor: u8,
    /// Generation, targets, and through where their logs count.
    pub previous: Option<(u8, Set, u8)>,
}

fn ids(targets: Set) -> Vec<RouterId> {
    targets.iter().map(target_id).collect()
}

pub fn target_id(target: usize) -> RouterId {
    RouterId(1 + target as u128)
}

fn set_of(ids: &[RouterId]) -> Set {
    let named = (0..TARGETS).filter(|target| ids.contains(&target_id(*target)));
    named.fold(Set::default(), Set::with)
}

pub fn small(number: u64) -> u8 {
    u8::try_from(number).expect("the model's numbers are small")
}

impl Facts {
    pub fn real(&self) -> DtlFacts {
        let promise = |(generation, targets, through)| DtlPromise {
            generation: DtlGeneration(u8::into(generation)),
            targets: ids(targets),
            through: if through == ALL { Lsn(u64::MAX) } else { Lsn(u8::into(through)) },
        };
        DtlFacts {
            state: match self.state {
                Mode::Standalone => DtlState::Standalone,
                Mode::CatchingUp => DtlState::CatchingUp,
                Mode::InSync => DtlState::InSync,
                Mode::Degraded => DtlState::Degraded,
            },
            generation: DtlGeneration(self.generation.into()),
            targets: ids(self.targets),
            floor: Lsn(self.floor.into()),
            previous: self.previous.map(promise),
        }
    }

    pub fn of(real: &DtlFacts) -> Self {
        Self {
            state: match real.state {
                DtlState::Standalone => Mode::Standalone,
                DtlState::CatchingUp => Mode::CatchingUp,
                DtlState::InSync => Mode::InSync,
                DtlState::Degraded => Mode::Degraded,
            },
            generation: small(real.generation.0),
            targets: set_of(&real.targets),
            floor: small(real.floor.0),
            previous: real.previous.as_ref().map(|p| {
                let through = if p.through == Lsn(u64::MAX) { ALL } else { small(p.through.0) };
                (small(p.generation.0), set_of(&p.targets), through)
            }),
        }
    }

    pub fn holders(&self) -> Set {
        Set(self.targets.0 | self.previous.map_or(0, |(_, targets, _)| targets.0))
    }

    fn each_generation(&mut self, see: &mut impl FnMut(&mut u8)) {
        see(&mut self.generation);
        if let Some((generation, ..)) = &mut self.previous {
            see(generation);
        }
    }

    pub fn swapped(mut self) -> Self {
        self.targets = swap(self.targets);
        let swapped = |(generation, targets, through)| (generation, swap(targets), through);
        self.previous = self.previous.map(swapped);
        self
    }
}

fn swap(set: Set) -> Set {
    Set((set.0 & 1) << 1 | (set.0 >> 1) & 1)
}

/// A change of the facts, on its way to arakoon and back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Proposal {
    #[default]
    None,
    Sent(Facts),
    Committed(Facts),
    Refused,
}

/// A unit on its way to the backend: LSNs `from + 1 ..= to`, behind the head that `after` left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Commit {
    pub from: u8,
    pub to: u8,
    pub after: u8,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// Never was, or is over: fenced, crashed, or it couldn't start.
    #[default]
    Over,
    Claimed,
    Raised,
    Serving,
}

/// The holder's session in arakoon (P17).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Session {
    /// And its holder, if it lives, has stopped by its own clock before.
    #[default]
    Gone,
    /// Its holder doesn't know: only with a fault.
    Outlived,
    Valid,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Life {
    pub phase: Phase,
    pub router: u8,
    pub epoch: u8,
    pub session: Session,
    /// The record names this router's log.
    pub trusts_log: bool,
    pub sealed: Set,
    /// As arakoon had them at the claim; then as this owner knows them.
    pub facts: Facts,
    pub proposal: Proposal,
    pub begun: bool,
    pub history: History,
    pub committed: u8,
    /// Whose commit is the head, as this owner knows it.
    pub after: u8,
    pub commit: Option<Commit>,
    pub log_synced: u8,
    pub created: Set,
    pub leases: Set,
    pub goal: [u8; TARGETS],
    pub synced: [u8; TARGETS],
    pub flushed: u8,
    pub promised: u8,
    pub awaiting: Set,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct DiskRecord {
    pub lsn: u8,
    pub record: Record,
}

/// A router: its process, and its write log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Router {
    pub up: bool,
    /// This process has served the vDisk: the scan of its start is out of date.
    pub served: bool,
    len: u8,
    synced: u8,
    disk: [DiskRecord; DISK],
}

impl Router {
    pub fn records(&self) -> &[DiskRecord] {
        &self.disk[..usize::from(self.len)]
    }
    #[must_use]
    pub fn place(&mut self, lsn: u8, record: Record) -> bool {
        let free = usize::from(self.len) < DISK;
        if free {
            self.disk[usize::from(self.len)] = DiskRecord { lsn, record };
            self.len += 1;
        }
        free
    }
    pub fn sync(&mut self) {
        self.synced = self.len;
    }
    pub fn lose_unsynced(&mut self) {
        for lost in &mut self.disk[usize::from(self.synced)..] {
            *lost = DiskRecord::default();
        }
        self.len = self.synced;
    }
    /// Records that say nothing which the backend's head doesn't say too.
    fn forget(&mut self, head: &History) {
        let mut kept = Self { len: 0, synced: 0, disk: Default::default(), ..*self };
        for (index, found) in self.records().iter().enumerate() {
            if head.len < found.lsn || head.at(found.lsn) != found.record {
                kept.disk[usize::from(kept.len)] = *found;
                kept.len += 1;
                kept.synced += u8::from(index < usize::from(self.synced));
            }
        }
        *self = kept;
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Log {
    pub generation: u8,
    pub epoch: u8,
    pub base: u8,
    pub synced: u8,
    /// From LSN 1 on; what lies at or below the base isn't there.
    pub history: History,
}

/// A DTL target. Generation 0 is no log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Target {
    pub fence: u8,
    /// It may have granted a lease that still runs.
    pub granted: bool,
    /// Oldest first.
    pub logs: [Log; LOGS],
}

impl Target {
    pub fn newest(&self) -> Option<&Log> {
        self.logs.iter().rev().find(|log| log.generation != 0)
    }
    pub fn newest_mut(&mut self) -> Option<&mut Log> {
        self.logs.iter_mut().rev().find(|log| log.generation != 0)
    }
    #[must_use]
    pub fn add(&mut self, log: Log, head: u8) -> bool {
        // The owner has trimmed what is in the backend.
        let needed: Vec<Log> = self.sound().filter(|old| head < old.history.len).copied().collect();
        self.logs = [Log::default(); LOGS];
        let fits = needed.len() < LOGS;
        for (place, log) in self.logs.iter_mut().zip(needed.into_iter().chain([log])) {
            *place = log;
        }
        fits
    }
    pub fn sound(&self) -> impl Iterator<Item = &Log> {
        self.logs.iter().filter(|log| log.generation != 0)
    }
    pub fn held(&self) -> Vec<Held> {
        let held = |log: &Log| Held {
            generation: DtlGeneration(log.generation.into()),
            epoch: Epoch(log.epoch.into()),
            base: Lsn(log.base.into()),
            last: Lsn(log.history.len.into()),
            synced: Lsn(log.history.len.into()),
            damaged: false,
        };
        self.sound().map(held).collect()
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Write {
    #[default]
    New,
    Issued,
    /// The client knows; the edge keeps it, to replay it.
    Acked,
    /// Covered by a flush: the edge has forgotten it (P2).
    Flushed,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Edge {
    pub up: bool,
    pub at: u8,
}

/// Arakoon's record of the vDisk and its DTL.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Arakoon {
    pub owner: u8,
    pub epoch: u8,
    /// Whose claim it is; its session is the one that is named.
    pub life: u8,
    /// The router whose log is named.
    pub log: Option<u8>,
    pub facts: Facts,
}

/// The namespace in the backend.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Namespace {
    pub fence: u8,
    pub head: History,
    /// Whose commit the head is.
    pub by: u8,
}

/// What of the bounds is used up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Used {
    pub lives: u8,
    pub crashes: u8,
    pub wipes: u8,
    pub target_restarts: u8,
    pub changes: u8,
    pub ends: u8,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct State {
    pub arakoon: Arakoon,
    pub namespace: Namespace,
    pub routers: [Router; ROUTERS],
    pub targets: [Target; TARGETS],
    pub lives: [Life; LIVES],
    pub edges: [Edge; EDGES],
    pub writes: [Write; WRITES],
    /// What flushes were acknowledged for: in every later owner's history, in this order (L2, L7).
    pub promised: History,
    pub used: Used,
}

impl State {
    /// Router 0 owns the vDisk and is InSync with target 0; the edges are attached, nothing is written.
    pub fn new(edges: usize) -> Self {
        let facts =
            Facts { state: Mode::InSync, generation: 1, targets: Set::one(0), ..Facts::default() };
        let arakoon = Arakoon { owner: 0, epoch: 1, life: 0, log: Some(0), facts };
        let mut state = Self { arakoon, ..Self::default() };
        state.namespace.fence = 1;
        state.routers.iter_mut().for_each(|router| router.up = true);
        state.routers[0].served = true;
        let created = Set::one(0);
        let session = Session::Valid;
        state.lives[0] = Life {
            phase: Phase::Serving,
            epoch: 1,
            session,
            facts,
            begun: true,
            created,
            ..Life::default()
        };
        state.targets[0].fence = 1;
        state.targets[0].logs[0] = Log { generation: 1, epoch: 1, ..Log::default() };
        state.edges.iter_mut().take(edges).for_each(|edge| edge.up = true);
        state.used.lives = 1;
        state
    }

    /// What is over, and has no effect any more, looks alike.
    pub fn forget(&mut self, rules: &Rules) {
        let (epoch, fence) = (self.arakoon.epoch, self.namespace.fence);
        for life in &mut self.lives {
            if life.epoch < epoch && matches!(life.proposal, Proposal::Sent(_)) {
                life.proposal = Proposal::Refused;
            }
            if life.epoch < fence && !rules.broken(Fault::CommitWithoutEpoch) {
                life.commit = None;
            }
            // A claimant that another one has overtaken finds it out at its next step.
            if life.epoch < epoch && matches!(life.phase, Phase::Claimed | Phase::Raised) {
                life.phase = Phase::Over;
            }
        }
        for router in &mut self.routers {
            router.forget(&self.namespace.head);
        }
        let named = usize::from(self.arakoon.life);
        let over = self.lives.iter_mut().enumerate().filter(|(_, life)| life.phase == Phase::Over);
        for (index, life) in over {
            let sent = matches!(life.proposal, Proposal::Sent(_));
            *life = Life {
                router: if index == named { life.router } else { 0 },
                epoch: if sent || life.commit.is_some() { life.epoch } else { 0 },
                session: if index == named { life.session } else { Session::Gone },
                facts: if sent { life.facts } else { Facts::default() },
                proposal: if sent { life.proposal } else { Proposal::None },
                history: life.commit.map_or(History::default(), |c| life.history.prefix(c.to)),
                commit: life.commit,
                ..Life::default()
            };
        }
        self.renumber();
    }

    /// Only the order of generations counts: they get the lowest numbers that keep it.
    fn renumber(&mut self) {
        let mut used = 0_u32;
        self.each_generation(&mut |generation| used |= 1 << *generation);
        let below = |generation: u8| (used & ((1 << generation) - 1) & !1).count_ones();
        self.each_generation(&mut |generation| {
            if *generation != 0 {
                *generation = 1 + small(below(*generation).into());
            }
        });
    }

    fn each_generation(&mut self, see: &mut impl FnMut(&mut u8)) {
        self.arakoon.facts.each_generation(see);
        for life in &mut self.lives {
            life.facts.each_generation(see);
            match &mut life.proposal {
                Proposal::Sent(facts) | Proposal::Committed(facts) => facts.each_generation(see),
                Proposal::None | Proposal::Refused => {}
            }
        }
        for target in &mut self.targets {
            target.logs.iter_mut().for_each(|log| see(&mut log.generation));
        }
    }

    /// The same world with the names of the two targets exchanged.
    pub fn mirrored(&self) -> Self {
        let mut other = *self;
        other.targets.swap(0, 1);
        other.arakoon.facts = other.arakoon.facts.swapped();
        for life in &mut other.lives {
            life.facts = life.facts.swapped();
            life.proposal = match life.proposal {
                Proposal::Sent(facts) => Proposal::Sent(facts.swapped()),
                Proposal::Committed(facts) => Proposal::Committed(facts.swapped()),
                same @ (Proposal::None | Proposal::Refused) => same,
            };
            for set in [&mut life.sealed, &mut life.created, &mut life.leases] {
                *set = swap(*set);
            }
            life.goal.swap(0, 1);
            life.synced.swap(0, 1);
        }
        other
    }
}
