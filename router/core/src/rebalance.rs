//! Which vDisks go to another router so that all that are in service carry alike.
//!
//! Two reasons to move one: the router it goes to is nearer to its edge (follow the edge), or carries less. The first counts
//! more: what is moved for balance never gets farther from its edge. What shall be alike is how many vDisks each owns, or
//! what is asked of them ([`Measure`]).
//!
//! Hysteresis by number is the slack: a move for balance must leave the giver with more than the taker by more than that.
//! So a difference that comes from noise moves nothing, and undoing a move takes a change of twice as much. By load there is
//! more noise, and vDisks weigh from nothing to as much as all others together. So a move must lower the difference of giver
//! and taker by a fifth of what a router carries on average, and by [`LEAST`]; a vDisk that is nearly idle never does, and
//! when one busy vDisk alone is more than a router's share, the idle ones beside it don't all have to leave for its sake. The
//! giver carries more than the average, and the taker is one of which it is known what it carries.
//!
//! Invariant: each move brings a vDisk nearer to its edge, or keeps it as near and makes the sum of the squares of what
//! routers carry smaller. No state comes twice, so rounds end, whatever their size.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use model::{Incarnation, RouterId, VdiskId};
use wire::facts::{AttachmentMode, AttachmentsRecord, RebalanceTurn};

/// What shall be alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Measure {
    /// Each vDisk weighs the same.
    Number,
    /// Each weighs as much as is asked of it.
    Load,
}

/// By load no move is worth while that lowers the difference of two routers by less: the requests per second that a
/// router answers without any effort.
const LEAST: u128 = 20;
/// Nor one that lowers it by less than so much of what a router carries on average, in hundredths.
const LEAST_PART: u128 = 20;

/// A router in service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Home {
    pub router: RouterId,
    /// `datacenter/rack/host`; empty: not known.
    pub domain: String,
    /// How many more vDisks it could take; `None`: no limit known.
    pub room: Option<usize>,
    /// What it carries beside the vDisks that are told of.
    pub carries: u64,
    /// It carries no more than is known: none of its vDisks was opened too lately to say.
    pub is_known: bool,
}

/// A vDisk and where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    pub vdisk: VdiskId,
    pub owner: RouterId,
    /// What is asked of it; by number it doesn't matter.
    pub load: u64,
    /// Routers that keep the second copy of its log.
    pub targets: Vec<RouterId>,
    /// The domain of the edge that is attached to it, if known.
    pub edge: Option<String>,
    /// It counts, and isn't moved: it isn't served, was opened too lately, or its last hand-over didn't come about.
    pub stays: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// In one round.
    pub moves_max: usize,
    pub slack: u64,
    pub alike: Measure,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// It is nearer to its edge there.
    Edge,
    /// Less is carried there.
    Balance,
}

impl Why {
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Edge => "nearer to its edge",
            Self::Balance => "less is carried there",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Move {
    pub vdisk: VdiskId,
    pub from: RouterId,
    pub to: RouterId,
    pub why: Why,
}

/// The domain of the edge that a vDisk should be near to: of one that writes, if there is any.
#[must_use]
pub fn near_edge(attachments: &AttachmentsRecord) -> Option<String> {
    let known = || attachments.live.iter().filter(|live| !live.domain.is_empty());
    let writer = known().find(|live| live.mode != AttachmentMode::ReadOnly);
    writer.or_else(|| known().next()).map(|live| live.domain.clone())
}

/// Whether a router may begin to hand a vDisk over for the sake of load: one router at a time does, so that each sees what
/// the one before it changed. Who lost its session isn't waited for, and nobody has a turn of its own twice.
pub fn is_free(
    turn: Option<&RebalanceTurn>,
    me: RouterId,
    lives: impl Fn(RouterId, Incarnation) -> bool,
) -> bool {
    turn.is_none_or(|turn| turn.router == me || !lives(turn.router, turn.incarnation))
}

/// How much two domains have in common: levels from the top that are equal.
#[must_use]
pub fn nearness(one: &str, other: &str) -> usize {
    if one.is_empty() || other.is_empty() {
        return 0;
    }
    one.split('/').zip(other.split('/')).take_while(|(one, other)| one == other).count()
}

/// One home and what it carries now.
struct Side<'a> {
    home: &'a Home,
    carried: u64,
    room: Option<usize>,
}

/// All homes, and what it takes to be worth a move.
struct Scene<'a> {
    sides: BTreeMap<RouterId, Side<'a>>,
    limits: Limits,
    /// What all carry together: moves don't change it.
    total: u128,
}

/// One round. vDisks of routers that aren't in service stay: draining is how they are emptied.
#[must_use]
pub fn plan(homes: &[Home], placed: &[Placed], limits: Limits) -> Vec<Move> {
    let mut scene = Scene::new(homes, placed, limits);
    let mut moved = BTreeSet::new();
    let mut moves = Vec::new();
    while moves.len() < limits.moves_max {
        let may_go = |vdisk: &&Placed| !moved.contains(&vdisk.vdisk);
        let pairs = placed.iter().filter(may_go).flat_map(|vdisk| {
            let scene = &scene;
            scene.sides.keys().filter_map(move |to| Some((scene.worth_of(vdisk, *to)?, vdisk, *to)))
        });
        let best = pairs.max_by_key(|(worth, vdisk, to)| (*worth, Reverse((vdisk.vdisk, *to))));
        let Some((worth, vdisk, to)) = best else { break };
        moves.push(Move { vdisk: vdisk.vdisk, from: vdisk.owner, to, why: worth.why() });
        moved.insert(vdisk.vdisk);
        scene.move_to(vdisk, to);
    }
    moves
}

/// Whether a move that was planned before still is worth while, for the same reason.
#[must_use]
pub fn stands(homes: &[Home], placed: &[Placed], limits: Limits, step: &Move) -> bool {
    let scene = Scene::new(homes, placed, limits);
    let its = |vdisk: &&Placed| vdisk.vdisk == step.vdisk && vdisk.owner == step.from;
    let worth = placed.iter().find(its).and_then(|vdisk| scene.worth_of(vdisk, step.to));
    worth.is_some_and(|worth| worth.why() == step.why)
}

impl<'a> Scene<'a> {
    fn new(homes: &'a [Home], placed: &[Placed], limits: Limits) -> Self {
        let side = |home: &'a Home| Side { home, carried: home.carries, room: home.room };
        let mut sides: BTreeMap<RouterId, Side<'_>> =
            homes.iter().map(|home| (home.router, side(home))).collect();
        for vdisk in placed {
            if let Some(side) = sides.get_mut(&vdisk.owner) {
                side.carried = side.carried.saturating_add(limits.alike.weight(vdisk));
            }
        }
        let total = sides.values().map(|side| u128::from(side.carried)).sum();
        Self { sides, limits, total }
    }

    fn move_to(&mut self, vdisk: &Placed, to: RouterId) {
        let weight = self.limits.alike.weight(vdisk);
        if let Some(side) = self.sides.get_mut(&vdisk.owner) {
            side.carried = side.carried.saturating_sub(weight);
            side.room = side.room.map(|room| room + 1);
        }
        if let Some(side) = self.sides.get_mut(&to) {
            side.carried = side.carried.saturating_add(weight);
            side.room = side.room.map(|room| room.saturating_sub(1));
        }
    }

    /// `None`: it may not be moved there, or that is worth nothing.
    fn worth_of(&self, vdisk: &Placed, to: RouterId) -> Option<Worth> {
        let (from, to) = (self.sides.get(&vdisk.owner)?, self.sides.get(&to)?);
        if vdisk.stays || to.home.router == vdisk.owner || to.room == Some(0) {
            return None;
        }
        let edge = vdisk.edge.as_deref().unwrap_or_default();
        let (here, there) = (nearness(edge, &from.home.domain), nearness(edge, &to.home.domain));
        let nearer = there.checked_sub(here)?;
        let weight = u128::from(self.limits.alike.weight(vdisk));
        let more = u128::from(from.carried).saturating_sub(u128::from(to.carried));
        let left = more.saturating_sub(weight);
        if nearer == 0 && !self.balances(from, to, (weight, left)) {
            return None;
        }
        Some(Worth {
            nearer,
            // Half of what the sum of squares loses.
            gain: weight * left,
            same_domain: from.home.domain == to.home.domain,
            keeps_target: !vdisk.targets.contains(&to.home.router),
        })
    }

    /// Whether a vDisk of this weight makes the two carry alike so much more that it is worth a move; `left`: by how much
    /// the giver carries more than the taker before, without it.
    fn balances(&self, from: &Side<'_>, to: &Side<'_>, (weight, left): (u128, u128)) -> bool {
        if left <= u128::from(self.limits.slack) {
            return false;
        }
        match self.limits.alike {
            Measure::Number => true,
            Measure::Load => {
                let routers = u128::from(model::u64_of(self.sides.len()));
                // By so much their difference shrinks.
                let lowers = 2 * weight.min(left);
                to.home.is_known
                    && self.total < u128::from(from.carried) * routers
                    && LEAST <= lowers
                    && self.total * LEAST_PART <= lowers * routers * 100
            }
        }
    }
}

impl Measure {
    const fn weight(self, vdisk: &Placed) -> u64 {
        match self {
            Self::Number => 1,
            Self::Load => vdisk.load,
        }
    }
}

/// What speaks for a move, the strongest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Worth {
    /// Levels by which it comes nearer to its edge.
    nearer: usize,
    /// By how much the giver carries more than the taker afterwards would.
    gain: u128,
    /// Its clients and its DTL stay as near and as far as they are.
    same_domain: bool,
    /// Where the log's copy lies, a hand-over leaves the vDisk without one for a moment.
    keeps_target: bool,
}

impl Worth {
    const fn why(&self) -> Why {
        if 0 < self.nearer { Why::Edge } else { Why::Balance }
    }
}

#[cfg(test)]
mod tests;
