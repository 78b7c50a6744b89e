//! The router's session in arakoon: what its right to read rests on where no DTL target vouches for it (P16, P17).
//!
//! It is opened together with the router's record and renewed in the background. A lost one is replaced by another
//! incarnation; a vDisk that was opened under the lost one is opened anew, because the record of its DTL names the
//! incarnation, and others may have claimed it meanwhile.
//!
//! Invariant: a session is replaced only when it is over, or was of a process that is dead (the data directory is locked).

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arakoon_client::{Session, SessionState};
use runtime::random::jitter;
use wire::facts::RouterState;

use crate::facts::FactsError;
use crate::router::Router;

/// How often it is seen whether the session is lost.
const LOOK: Duration = Duration::from_millis(300);

/// The session of this process, once there is one.
#[derive(Default)]
pub struct Lease {
    current: Mutex<Option<Arc<Session>>>,
}

impl Lease {
    /// The session, unless it is lost for ever.
    pub fn current(&self) -> Option<Arc<Session>> {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner).clone();
        current.filter(|session| session.state() == SessionState::Open)
    }

    fn set(&self, session: Session) {
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(session));
    }
}

impl Router {
    /// Enters this router's record and opens its session. An operator's wish that it takes nothing outlives a crash; a
    /// clean stop ends it.
    async fn register(&self) -> Result<(), FactsError> {
        let before = self.facts.router(self.id).await?;
        let draining = before.is_some_and(|read| read.value.state == RouterState::Draining);
        self.state().draining = draining;
        let state = if draining { RouterState::Draining } else { RouterState::Online };
        let session = self.facts.open_session(&self.record(state)).await?;
        tracing::info!(incarnation = %session.incarnation(), "session opened");
        self.lease.set(session);
        Ok(())
    }

    /// Holds a session until the router stops.
    pub async fn lease_loop(self: Arc<Self>) {
        loop {
            if self.lease.current().is_none()
                && !self.state().stopping
                && let Err(error) = self.register().await
            {
                tracing::warn!(%error, "can't register with arakoon yet");
            }
            tokio::select! {
                () = self.stop.wait() => return,
                () = tokio::time::sleep(jitter(LOOK)) => {}
            }
        }
    }
}
