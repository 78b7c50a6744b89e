//! vDisks spread over the routers by themselves, where the configuration asks for it; off by default.
//!
//! Every router makes the same plan from what arakoon says, and hands over what is its own in it. A plan has few moves, and
//! a move is made only when two plans in a row have it: a router that is restarted isn't flooded, and what was claimed from
//! it isn't sent around before things are quiet. When to stop is [`rebalance`]'s: it never plays ping-pong.
//!
//! Invariant: vDisks leave by hand-over only (L1, L3), one after the other, and only to routers that are in service.

use std::sync::Arc;
use std::time::Duration;

use model::RouterId;
use router_core::rebalance::{self, Home, Limits, Move, Placed};
use runtime::random::jitter;
use wire::common::Severity;
use wire::facts::{RouterState, key};

use crate::facts::FactsError;
use crate::router::Router;

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
        let mut former = Vec::new();
        loop {
            tokio::select! {
                () = self.stop.wait() => return,
                () = tokio::time::sleep(jitter(every)) => {}
            }
            let plan = match self.balance_plan(limits).await {
                Ok(plan) => plan,
                Err(error) => {
                    tracing::debug!(%error, "no plan for balance");
                    former.clear();
                    continue;
                }
            };
            for step in plan.iter().filter(|step| former.contains(*step)) {
                self.balance_one(*step).await;
            }
            former = plan;
        }
    }

    async fn balance_one(self: &Arc<Self>, step: Move) {
        let Move { vdisk, from, to, why } = step;
        if from != self.id || self.state().serving(vdisk).is_err() {
            return;
        }
        let to_name = self.ties.name_of(to);
        tracing::info!(%vdisk, to = to_name, why = why.name(), "moving it for balance");
        let text = format!("to {to_name}: {}", why.name());
        self.events.of(Severity::Info, "rebalance", vdisk, &text);
        // What goes wrong is told there; the next rounds see what became of it.
        let _told = self.transfer(vdisk, to).await;
    }

    /// The same at every router that reads the same.
    async fn balance_plan(&self, limits: Limits) -> Result<Vec<Move>, FactsError> {
        let sessions = self.facts.sessions().await?;
        let routers = self.facts.routers().await?;
        let mut targets = self.facts.dtl_targets().await?;
        let vdisks = self.facts.vdisks().await?;
        let lives = |router: RouterId| {
            let id = key::router_session(router);
            sessions.iter().any(|session| session.id == id)
        };
        let homes: Vec<Home> = routers
            .into_iter()
            .filter(|router| router.state == RouterState::Online && lives(router.router))
            .map(|router| Home { router: router.router, domain: router.domain, room: None })
            .collect();
        let placed = vdisks.into_iter().map(|read| read.value).filter(|vdisk| !vdisk.deleting);
        let placed: Vec<Placed> = placed
            .map(|vdisk| Placed {
                vdisk: vdisk.vdisk,
                owner: vdisk.owner,
                weight: 1,
                targets: targets.remove(&vdisk.vdisk).unwrap_or_default(),
                edge: None,
            })
            .collect();
        Ok(rebalance::plan(&homes, &placed, limits))
    }
}
