//! Which vDisks go to another router so that all that are in service carry alike.
//!
//! Two reasons to move one: the router it goes to is nearer to its edge (follow the edge), or carries less. The first counts
//! more: what is moved for balance never gets farther from its edge. What is carried is a sum of weights: 1 for each
//! vDisk, or more for busy ones.
//!
//! Slack is the hysteresis: a move for balance must leave the giver with more than the taker by more than that. So a
//! difference that comes from noise moves nothing, and undoing a move takes a change of twice as much.
//!
//! Invariant: each move brings a vDisk nearer to its edge, or keeps it as near and makes the sum of the squares of what
//! routers carry smaller. No state comes twice, so rounds end, whatever their size.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use model::{RouterId, VdiskId};
use wire::facts::{AttachmentMode, AttachmentsRecord};

/// A router in service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Home {
    pub router: RouterId,
    /// `datacenter/rack/host`; empty: not known.
    pub domain: String,
    /// How many more vDisks it could take; `None`: no limit known.
    pub room: Option<usize>,
}

/// A vDisk and where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    pub vdisk: VdiskId,
    pub owner: RouterId,
    /// What it makes its owner carry; at least 1 is counted.
    pub weight: u64,
    /// Routers that keep the second copy of its log.
    pub targets: Vec<RouterId>,
    /// The domain of the edge that is attached to it, if known.
    pub edge: Option<String>,
    /// It counts, and isn't moved: it isn't served, or its last hand-over didn't come about.
    pub stays: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// In one round.
    pub moves_max: usize,
    pub slack: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// It is nearer to its edge there.
    Edge,
    /// Less is carried there.
    Load,
}

impl Why {
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Edge => "nearer to its edge",
            Self::Load => "less is carried there",
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
    load: u64,
    room: Option<usize>,
}

/// One round. vDisks of routers that aren't in service stay: draining is how they are emptied.
#[must_use]
pub fn plan(homes: &[Home], placed: &[Placed], limits: Limits) -> Vec<Move> {
    let side = |home| Side { home, load: 0, room: home.room };
    let mut sides: BTreeMap<RouterId, Side<'_>> =
        homes.iter().map(|home| (home.router, side(home))).collect();
    for vdisk in placed {
        if let Some(side) = sides.get_mut(&vdisk.owner) {
            side.load = side.load.saturating_add(weight(vdisk));
        }
    }
    let mut moved = BTreeSet::new();
    let mut moves = Vec::new();
    while moves.len() < limits.moves_max {
        let may_go = |vdisk: &&Placed| {
            sides.contains_key(&vdisk.owner) && !vdisk.stays && !moved.contains(&vdisk.vdisk)
        };
        let pairs = placed.iter().filter(may_go).flat_map(|vdisk| {
            let from = &sides[&vdisk.owner];
            let to = sides.values().filter(|to| to.home.router != vdisk.owner);
            to.filter_map(move |to| {
                Some((worth(vdisk, from, to, limits.slack)?, vdisk, to.home.router))
            })
        });
        let best = pairs.max_by_key(|(worth, vdisk, to)| (*worth, Reverse((vdisk.vdisk, *to))));
        let Some((worth, vdisk, to)) = best else { break };
        let (from, weight) = (vdisk.owner, weight(vdisk));
        moves.push(Move { vdisk: vdisk.vdisk, from, to, why: worth.why() });
        moved.insert(vdisk.vdisk);
        if let Some(side) = sides.get_mut(&from) {
            side.load -= weight;
            side.room = side.room.map(|room| room + 1);
        }
        if let Some(side) = sides.get_mut(&to) {
            side.load = side.load.saturating_add(weight);
            side.room = side.room.map(|room| room.saturating_sub(1));
        }
    }
    moves
}

fn weight(vdisk: &Placed) -> u64 {
    vdisk.weight.max(1)
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
        if 0 < self.nearer { Why::Edge } else { Why::Load }
    }
}

/// `None`: that may not be moved there.
fn worth(vdisk: &Placed, from: &Side<'_>, to: &Side<'_>, slack: u64) -> Option<Worth> {
    if to.room == Some(0) {
        return None;
    }
    let edge = vdisk.edge.as_deref().unwrap_or_default();
    let (here, there) = (nearness(edge, &from.home.domain), nearness(edge, &to.home.domain));
    let nearer = there.checked_sub(here)?;
    let weight = u128::from(weight(vdisk));
    let more = u128::from(from.load).saturating_sub(u128::from(to.load));
    let left = more.saturating_sub(weight);
    if nearer == 0 && left <= u128::from(slack) {
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

#[cfg(test)]
mod tests;
