//! vDisks spread over the routers by themselves, where the configuration asks for it; off by default.
//!
//! Every router makes the same plan from what arakoon says, and hands over what is its own in it. A plan has few moves, and
//! a move is made only when two plans in a row have it: a router that is restarted isn't flooded, and what was claimed from
//! it isn't sent around before things are quiet. When to stop is [`rebalance`]'s: it never plays ping-pong.
//!
//! Invariant: vDisks leave by hand-over only (L1, L3), one after the other, and only to routers that are in service.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use model::{RouterId, VdiskId};
use router_core::contest;
use router_core::rebalance::{self, Home, Limits, Move, Placed};
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
}

impl Router {
    /// Rounds until the router stops.
    pub(crate) async fn balance_loop(self: Arc<Self>) {
        let Some(Balancing { every, limits }) = self.config.balancing else { return };
        let (mut former, mut failed) = (Vec::new(), Failed::default());
        loop {
            tokio::select! {
                () = self.stop.wait() => return,
                () = tokio::time::sleep(jitter(every)) => {}
            }
            failed.round();
            let plan = match self.balance_plan(limits, &failed).await {
                Ok(plan) => plan,
                Err(error) => {
                    tracing::debug!(%error, "no plan for balance");
                    former.clear();
                    continue;
                }
            };
            for step in plan.iter().filter(|step| former.contains(*step)) {
                self.balance_one(*step, &mut failed).await;
            }
            former = plan;
        }
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

    /// The same at every router that reads the same, but for what failed here.
    async fn balance_plan(&self, limits: Limits, failed: &Failed) -> Result<Vec<Move>, FactsError> {
        let sessions = self.facts.sessions().await?;
        let routers = self.facts.routers().await?;
        let mut targets = self.facts.dtl_targets().await?;
        let loads = self.facts.loads().await.unwrap_or_default();
        let mut edges = self.facts.edge_domains().await?;
        let vdisks = self.facts.vdisks().await?;
        let lives = |router: RouterId| {
            let id = key::router_session(router);
            sessions.iter().any(|session| session.id == id)
        };
        let homes: Vec<Home> = routers
            .into_iter()
            .filter(|router| router.state == RouterState::Online && lives(router.router))
            .map(|RouterRecord { router, domain, .. }| {
                let barred = failed.routers.contains_key(&router).then_some(0);
                let room =
                    barred.or_else(|| loads.get(&router).map(|load| model::usize_of(load.room)));
                Home { router, domain, room }
            })
            .collect();
        let placed = vdisks.into_iter().map(|read| read.value).filter(|vdisk| !vdisk.deleting);
        let placed: Vec<Placed> = placed
            .map(|vdisk| Placed {
                vdisk: vdisk.vdisk,
                owner: vdisk.owner,
                weight: 1,
                targets: targets.remove(&vdisk.vdisk).unwrap_or_default(),
                edge: edges.remove(&vdisk.vdisk),
                stays: failed.vdisks.contains_key(&vdisk.vdisk),
            })
            .collect();
        Ok(rebalance::plan(&homes, &placed, limits))
    }
}
