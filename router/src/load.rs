//! Tells the other routers what this one carries and could still take: through arakoon what changes seldom, and to those
//! that ask what is asked of its vDisks.

use router_core::load::{self, Carries};
use router_core::rebalance::Measure;
use wire::facts::RouterLoad;
use wire::router::Carried;

use crate::router::Router;
use crate::state::Slot;

impl Router {
    /// Tells the others what this router carries, when that is news.
    pub(crate) async fn tell_load(&self, told: &mut Option<RouterLoad>) {
        if self.lease.current().is_none() {
            return;
        }
        let now = load::load(self.carries());
        if !load::is_news(told.as_ref(), &now) {
            return;
        }
        match self.facts.tell_load(self.id, &now).await {
            Ok(()) => *told = Some(now),
            Err(error) => tracing::debug!(%error, "can't tell what is carried here"),
        }
    }

    /// What is asked of the vDisks here.
    pub(crate) fn carried(&self) -> Carried {
        let room = load::load(self.carries()).room;
        let by_number =
            self.config.balancing.is_some_and(|how| how.limits.alike == Measure::Number);
        let mut carried = Carried { vdisks: 0, room, load: 0, is_known: true, by_number };
        for slot in self.state().volumes.values() {
            match slot {
                Slot::Serving(serving) => {
                    carried.vdisks += 1;
                    carried.load = carried.load.saturating_add(serving.demand.rate().load());
                    carried.is_known &= serving.demand.is_known(self.config.damping);
                }
                Slot::Opening(_) => {
                    carried.vdisks += 1;
                    carried.is_known = false;
                }
                // Nothing can be asked of it.
                Slot::Gap(_) => carried.vdisks += 1,
                Slot::Fenced(_) | Slot::Elsewhere(_) | Slot::Deleting => {}
            }
        }
        carried
    }

    fn carries(&self) -> Carries {
        let state = self.state();
        let problem = state.log_failed || state.log_problem.is_some();
        let elsewhere = |slot: &&Slot| !matches!(slot, Slot::Elsewhere(_));
        Carries {
            takes: !(state.stopping || state.draining || problem),
            vdisks: model::u64_of(state.volumes.values().filter(elsewhere).count()),
            log_bytes: state.log.capacity(),
            log_used: state.log.used(),
        }
    }
}
