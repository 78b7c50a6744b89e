//! Rounds by load: what is asked of vDisks, rather than how many there are, shall be alike.
//!
//! ```text
//!  ask the routers in service what they carry ─▶ a move of one's own worth while? ─ no ─▶ next round
//!                                                       │ in this round and the one before
//!                                                       ▼
//!        hand it over ◀─ still? ─ ask them again ◀─ take the turn (one router at a time, a record in arakoon)
//! ```
//! Each router looks at its own vDisks only, and of the others at what they carry together: that is enough to know whether a
//! move is worth while, and nothing that changes all the time is written anywhere. Arakoon hears of a move, not of the load.
//!
//! A vDisk that was opened lately isn't moved, and who has such a one isn't given any: its load isn't known yet, and
//! everybody would send what it could spare to the one that looks idle.
//!
//! Invariant: no two vDisks move for the sake of load at once, unless who moves one has lost its session meanwhile; and
//! each move was worth while by what all said after the move before it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use model::{RouterId, VdiskId};
use router_core::rebalance::{self, Home, Limits, Measure, Move, Placed, near_edge};
use runtime::clock::boot_now;
use runtime::endpoint::Endpoint;
use runtime::rpc::{Call, Client, ClientOptions};
use tokio::task::JoinSet;
use wire::Role;
use wire::facts::{RebalanceTurn, key};
use wire::router::{Carried, method};

use super::{Balancing, Failed};
use crate::facts::FactsError;
use crate::router::Router;
use crate::state::Slot;

/// How long a router may take to say what it carries; one that doesn't isn't given any.
const ASK_PATIENCE: Duration = Duration::from_secs(2);

/// What is known in one round.
struct Sight {
    homes: Vec<Home>,
    /// This router's own.
    placed: Vec<Placed>,
}

impl Router {
    /// Returns what should be moved if it is worth while in the next round too.
    pub(super) async fn round_by_load(
        self: &Arc<Self>,
        balancing: Balancing,
        former: &[Move],
        (failed, turn): (&mut Failed, &mut Option<RebalanceTurn>),
    ) -> Result<Vec<Move>, FactsError> {
        let limits = Limits { moves_max: 1, alike: Measure::Load, ..balancing.limits };
        let sight = self.sight(balancing, failed).await?;
        let stands = |sight: &Sight, step: &Move| {
            rebalance::stands(&sight.homes, &sight.placed, limits, step)
        };
        // Not the best one of this round again: of two that are alike now one is better, now the other.
        let Some(step) = former.first().copied().filter(|step| stands(&sight, step)) else {
            return Ok(rebalance::plan(&sight.homes, &sight.placed, limits));
        };
        if !self.take_turn(step.vdisk, turn).await? {
            return Ok(vec![step]);
        }
        // What was moved in another's turn shows by now.
        if stands(&self.sight(balancing, failed).await?, &step) {
            self.balance_one(step, failed).await;
        }
        Ok(Vec::new())
    }

    /// False: another router hands one over now, or this one has no session. What is in `turn` then is to be ended.
    async fn take_turn(
        &self,
        vdisk: VdiskId,
        turn: &mut Option<RebalanceTurn>,
    ) -> Result<bool, FactsError> {
        let Some(lease) = self.lease.current() else { return Ok(false) };
        let old = self.facts.rebalance_turn().await?;
        let sessions = self.facts.sessions().await?;
        let lives = |router, incarnation| {
            let id = key::router_session(router);
            sessions.iter().any(|live| live.id == id && live.incarnation == incarnation)
        };
        if !rebalance::is_free(old.as_ref().map(|read| &read.value), self.id, lives) {
            return Ok(false);
        }
        let taken = RebalanceTurn { router: self.id, incarnation: lease.incarnation(), vdisk };
        match self.facts.take_turn(old, &taken).await {
            Ok(()) => {
                *turn = Some(taken);
                Ok(true)
            }
            Err(error) if error.is_conflict() => Ok(false),
            Err(error) => {
                // It may have come about.
                *turn = Some(taken);
                Err(error)
            }
        }
    }

    /// Others may move vDisks again. Tried in each round until arakoon says that it is so.
    pub(super) async fn end_turn(&self, turn: &mut Option<RebalanceTurn>) {
        let Some(taken) = turn.take() else { return };
        if let Err(error) = self.facts.end_turn(&taken).await
            && !error.is_conflict()
        {
            tracing::debug!(%error, "can't say that a turn of balancing is over");
            *turn = Some(taken);
        }
    }

    async fn sight(
        self: &Arc<Self>,
        balancing: Balancing,
        failed: &Failed,
    ) -> Result<Sight, FactsError> {
        let mut homes = self.homes(failed).await?;
        let vdisks = self.facts.vdisks().await?;
        let mut carried = self.carried_by(&homes).await;
        homes.retain_mut(|home| {
            if home.router == self.id {
                return true;
            }
            let Some(carried) = carried.remove(&home.router) else { return false };
            let owns = |router: RouterId| {
                let its = vdisks.iter().filter(|read| read.value.owner == router);
                model::u64_of(its.filter(|read| !read.value.deleting).count())
            };
            home.carries = carried.load;
            // One that it hasn't begun to open may be a busy one.
            home.is_known = carried.is_known && owns(home.router) <= carried.vdisks;
            let room = model::usize_of(carried.room);
            // It would hand on what it is given, for another reason.
            let room = if carried.by_number { 0 } else { room };
            home.room = Some(home.room.map_or(room, |told| told.min(room)));
            true
        });
        Ok(Sight { homes, placed: self.own_vdisks(balancing.rest, failed) })
    }

    fn own_vdisks(&self, rest: Duration, failed: &Failed) -> Vec<Placed> {
        let now = boot_now();
        let state = self.state();
        let served = state.volumes.iter().filter_map(|(vdisk, slot)| match slot {
            Slot::Serving(serving) => Some((*vdisk, serving)),
            Slot::Opening(_)
            | Slot::Gap(_)
            | Slot::Fenced(_)
            | Slot::Elsewhere(_)
            | Slot::Deleting => None,
        });
        let placed = served.map(|(vdisk, serving)| {
            let rests = now.since(serving.since) < rest;
            let is_known = serving.demand.is_known(self.config.damping);
            let held = serving.protection.as_ref();
            Placed {
                vdisk,
                owner: self.id,
                load: serving.demand.rate().load(),
                targets: held.map(|held| held.owner.facts().targets).unwrap_or_default(),
                edge: near_edge(&serving.attachments),
                stays: rests || !is_known || failed.vdisks.contains_key(&vdisk),
            }
        });
        placed.collect()
    }

    /// What the others in service carry, of those that answer.
    async fn carried_by(self: &Arc<Self>, homes: &[Home]) -> BTreeMap<RouterId, Carried> {
        let mut asked = JoinSet::new();
        for home in homes.iter().filter(|home| home.router != self.id) {
            let (router, this) = (home.router, Arc::clone(self));
            asked.spawn(async move {
                let asking = tokio::time::timeout(ASK_PATIENCE, this.ask_carried(router));
                Some((router, asking.await.ok()??))
            });
        }
        asked.join_all().await.into_iter().flatten().collect()
    }

    /// By a connection of its own: rounds are seldom, and one that is kept costs more than it saves.
    async fn ask_carried(&self, router: RouterId) -> Option<Carried> {
        for address in self.peers.cluster.addresses(router).await {
            let client = self.brief_client(address);
            let call = Call::within(ASK_PATIENCE);
            match client.call::<_, Carried>(method::CARRIED, &(), call).await {
                Ok((carried, _)) => return Some(carried),
                Err(error) => {
                    tracing::debug!(%router, %error, "a router doesn't say what it carries");
                }
            }
        }
        None
    }

    fn brief_client(&self, address: Endpoint) -> Client {
        let identity = Arc::clone(&self.identity);
        Client::new(address, Role::Router, identity, ClientOptions::default())
    }
}
