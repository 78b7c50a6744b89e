//! vDisks spread over the routers by themselves, where the configuration asks for it; off by default.
//!
//! By number every router makes the same plan from what arakoon says, and hands over what is its own in it. A plan has few
//! moves, and a move is made only when two plans in a row have it: a router that is restarted isn't flooded, and what was
//! claimed from it isn't sent around before things are quiet. By load: see [`load`]. When to stop is [`rebalance`]'s: it
//! never plays ping-pong.
//!
//! Invariant: vDisks leave by hand-over only (L1, L3), one after the other, and only to routers that are in service.

mod load;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use model::{RouterId, VdiskId};
use router_core::contest;
use router_core::rebalance::{self, Home, Limits, Measure, Move, Placed};
use runtime::clock::boot_now;
use runtime::random::jitter;
use wire::common::Severity;
use wire::facts::{RouterRecord, RouterState, key};

use crate::facts::FactsError;
use crate::router::Router;

/// Rounds for which a vDisk isn't tried that couldn't be moved, so that it doesn't hold up the others (L8).
const SPARED: u32 = 8;
/// The same for who couldn't take it: that may have been the vDisk's fault.
const BARRED: u32 = 2;

/// What didn't come about lately, and for how many more rounds it isn't tried.
#[derive(Debug, Default)]
struct Failed {
    vdisks: BTreeMap<VdiskId, u32>,
    routers: BTreeMap<RouterId, u32>,
}

impl Failed {
    fn round(&mut self) {
        let left = |rounds: &mut u32| {
            *rounds -= 1;
            0 < *rounds
        };
        self.vdisks.retain(|_, rounds| left(rounds));
        self.routers.retain(|_, rounds| left(rounds));
    }
}

/// What the configuration says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Balancing {
    /// Between two rounds.
    pub every: Duration,
    pub limits: Limits,
    /// By load: what was moved or opened stays for so long.
    pub rest: Duration,
}

impl Router {
    /// Rounds until the router stops.
    pub(crate) async fn balance_loop(self: Arc<Self>) {
        let Some(balancing) = self.config.balancing else { return };
        let (mut former, mut failed) = (Vec::new(), Failed::default());
        let mut turn = None;
        loop {
            tokio::select! {
                () = self.stop.wait() => return,
                () = tokio::time::sleep(jitter(balancing.every)) => {}
            }
            failed.round();
            let planned = match balancing.limits.alike {
                Measure::Number => {
                    self.round_by_number(balancing.limits, &former, &mut failed).await
                }
                Measure::Load => {
                    self.end_turn(&mut turn).await;
                    let planned =
                        self.round_by_load(balancing, &former, (&mut failed, &mut turn)).await;
                    self.end_turn(&mut turn).await;
                    planned
                }
            };
            former = planned.unwrap_or_else(|error| {
                tracing::debug!(%error, "no plan for balance");
                Vec::new()
            });
        }
    }

    /// Returns what should be moved if the next round says so too.
    async fn round_by_number(
        self: &Arc<Self>,
        limits: Limits,
        former: &[Move],
        failed: &mut Failed,
    ) -> Result<Vec<Move>, FactsError> {
        let plan = self.plan_by_number(limits, failed).await?;
        for step in plan.iter().filter(|step| former.contains(*step)) {
            self.balance_one(*step, failed).await;
        }
        Ok(plan)
    }

    async fn balance_one(self: &Arc<Self>, step: Move, failed: &mut Failed) {
        let Move { vdisk, from, to, why } = step;
        if from != self.id {
            return;
        }
        if !self.moves_without_harm(vdisk) {
            failed.vdisks.insert(vdisk, SPARED);
            return;
        }
        let to_name = self.ties.name_of(to);
        let text = format!("to {to_name}: {}", why.name());
        tracing::info!(%vdisk, to = to_name, why = why.name(), "moving it for balance");
        match self.transfer(vdisk, to).await {
            Ok(_) => self.events.of(Severity::Info, "rebalance", vdisk, &text),
            Err(error) => {
                tracing::warn!(%vdisk, to = to_name, %error, "it can't be moved for balance now");
                let text = format!("{text}: not now: {error}");
                self.events.of(Severity::Warn, "rebalance", vdisk, &text);
                failed.vdisks.insert(vdisk, SPARED);
                failed.routers.insert(to, BARRED);
            }
        }
    }

    /// Served here, and its clients needn't wait in vain: what is pending goes to the backend.
    fn moves_without_harm(&self, vdisk: VdiskId) -> bool {
        let mut state = self.state();
        state.serving(vdisk).is_ok_and(|serving| {
            serving.degraded.is_none() && !contest::is_spared(boot_now(), serving.frozen_in_vain)
        })
    }

    /// Routers that may be given vDisks, but for those that couldn't take one lately.
    async fn homes(&self, failed: &Failed) -> Result<Vec<Home>, FactsError> {
        let sessions = self.facts.sessions().await?;
        let routers = self.facts.routers().await?;
        let loads = self.facts.loads().await.unwrap_or_default();
        let lives = |router: RouterId| {
            let id = key::router_session(router);
            sessions.iter().any(|session| session.id == id)
        };
        let in_service =
            |router: &RouterRecord| router.state == RouterState::Online && lives(router.router);
        let home = |RouterRecord { router, domain, .. }| {
            let barred = failed.routers.contains_key(&router).then_some(0);
            let room = barred.or_else(|| loads.get(&router).map(|load| model::usize_of(load.room)));
            Home { router, domain, room, carries: 0, is_known: true }
        };
        Ok(routers.into_iter().filter(in_service).map(home).collect())
    }

    /// The same at every router that reads the same, but for what failed here.
    async fn plan_by_number(
        &self,
        limits: Limits,
        failed: &Failed,
    ) -> Result<Vec<Move>, FactsError> {
        let homes = self.homes(failed).await?;
        let mut targets = self.facts.dtl_targets().await?;
        let mut edges = self.facts.edge_domains().await?;
        let vdisks = self.facts.vdisks().await?;
        let placed = vdisks.into_iter().map(|read| read.value).filter(|vdisk| !vdisk.deleting);
        let placed: Vec<Placed> = placed
            .map(|vdisk| Placed {
                vdisk: vdisk.vdisk,
                owner: vdisk.owner,
                load: 0,
                targets: targets.remove(&vdisk.vdisk).unwrap_or_default(),
                edge: edges.remove(&vdisk.vdisk),
                stays: failed.vdisks.contains_key(&vdisk.vdisk),
            })
            .collect();
        Ok(rebalance::plan(&homes, &placed, limits))
    }
}
