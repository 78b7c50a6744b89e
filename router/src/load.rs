//! Tells the other routers, through arakoon, what this one carries and could still take.

use router_core::load::{self, Carries};
use wire::facts::RouterLoad;

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
