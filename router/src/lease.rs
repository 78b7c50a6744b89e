//! The router's session in arakoon: what its right to read rests on where no DTL target vouches for it (P16, P17).
//!
//! It is opened together with the router's record and renewed in the background. A lost one is replaced by another
//! incarnation; a vDisk that was opened under the lost one goes on once the record of its DTL names the new one. That is
//! committed only if nobody has claimed the vDisk meanwhile, as a claim changes what is asserted; from then on claims look
//! at the new session. Until then nothing is read by right of a session, and what is pending goes its way.
//!
//! Invariant: a session is replaced only when it is over, or was of a process that is dead (the data directory is locked);
//! a vDisk rests on a session only while the record of its DTL names it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arakoon_client::{Session, SessionState, Transaction};
use model::{Epoch, VdiskId};
use runtime::random::jitter;
use wire::common::Severity;
use wire::facts::{DtlRecord, RouterState, key};

use crate::facts::{Change, FactsError};
use crate::router::Router;

/// How often it is seen whether the session is lost.
const LOOK: Duration = Duration::from_millis(300);

/// What is told when the session gives no right any more, and when it does again.
const UNHEARD: (Severity, &str, &str) = (
    Severity::Warn,
    "session-unheard",
    "arakoon doesn't renew it: what isn't InSync isn't read here until it does, and may be claimed by others once it is over there",
);
const HEARD: (Severity, &str, &str) =
    (Severity::Info, "session", "arakoon renews it again: it was in time");

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
    /// clean stop ends it, unless it was taken out of service.
    async fn register(&self) -> Result<(), FactsError> {
        let before = self.facts.router(self.id).await?;
        let maintenance = self.facts.maintenance(self.id).await?;
        // An operator who speaks meanwhile isn't overruled: it is all read anew.
        let asserted = Transaction::new()
            .assert_is(key::router(self.id), before.as_ref().map(|read| read.bytes.clone()))
            .assert_is(
                key::router_maintenance(self.id),
                maintenance.as_ref().map(|read| read.bytes.clone()),
            );
        let drained = before.is_some_and(|read| read.value.state == RouterState::Draining);
        let draining = maintenance.is_some() || drained;
        self.state().draining = draining;
        let state = if draining { RouterState::Draining } else { RouterState::Online };
        let session = self.facts.open_session(&self.record(state), asserted).await?;
        tracing::info!(incarnation = %session.incarnation(), "session opened");
        self.lease.set(session);
        let text = if draining { "opened; it takes no vDisks" } else { "opened; in service" };
        self.note(Severity::Info, "session", text);
        Ok(())
    }

    /// Holds a session until the router stops.
    pub async fn lease_loop(self: Arc<Self>) {
        let (mut had_one, mut heard) = (false, true);
        loop {
            if let Some(session) = self.lease.current() {
                had_one = true;
                let lives = session.lives();
                if std::mem::replace(&mut heard, lives) != lives {
                    // It gives no right any more, long before arakoon can say that it is over.
                    let (severity, kind, text) = if lives { HEARD } else { UNHEARD };
                    tracing::warn!(kind, text, "the session in arakoon");
                    self.note(severity, kind, text);
                }
            } else if !self.state().stopping {
                heard = true;
                if std::mem::take(&mut had_one) {
                    let text = "it is over: arakoon wasn't reached for too long; what isn't InSync isn't read here";
                    self.note(Severity::Warn, "session-lost", text);
                }
                if let Err(error) = self.register().await {
                    tracing::warn!(%error, "can't register with arakoon yet");
                }
            }
            tokio::select! {
                () = self.stop.wait() => return,
                () = tokio::time::sleep(jitter(LOOK)) => {}
            }
        }
    }

    /// Whether the vDisk was opened under a session that is lost, and there is another one.
    pub(crate) fn rests_on_a_lost_session(&self, vdisk: VdiskId) -> bool {
        let lost = match self.state().serving(vdisk) {
            Ok(serving) => {
                !serving.handing_over
                    && serving
                        .protection
                        .as_ref()
                        .is_some_and(|p| p.lease.state() != SessionState::Open)
            }
            Err(_) => false,
        };
        lost && self.lease.current().is_some()
    }

    /// Tries once to have the vDisk rest on the present session.
    pub(crate) async fn renew_right(self: Arc<Self>, vdisk: VdiskId, epoch: Epoch) {
        match self.try_renew_right(vdisk, epoch).await {
            Ok(true) => tracing::info!(%vdisk, %epoch, "it rests on the new session"),
            Ok(false) => {}
            Err(error) => tracing::info!(%vdisk, %error, "can't name the new session yet"),
        }
    }

    /// Where the outcome was unknown, the next try finds the new session named.
    async fn try_renew_right(&self, vdisk: VdiskId, epoch: Epoch) -> Result<bool, FactsError> {
        let Some(lease) = self.lease.current() else { return Ok(false) };
        let Some(read) = self.facts.vdisk(vdisk).await? else { return Ok(false) };
        let Some(dtl) = self.facts.dtl(vdisk).await? else { return Ok(false) };
        if read.value.owner != self.id || read.value.epoch != epoch || dtl.value.epoch != epoch {
            self.withdraw(&[read]);
            return Ok(false);
        }
        let session = lease.incarnation();
        if dtl.value.session != session {
            let new = DtlRecord { session, ..dtl.value.clone() };
            let same = (&read, read.value.clone());
            let change = Change { vdisk: same, dtl: Some((&dtl, new)) };
            let lives = Transaction::new().assert_session_lives(lease.id(), session);
            self.facts.change(change, lives).await?;
        }
        let mut state = self.state();
        let Ok(serving) = state.serving(vdisk) else { return Ok(false) };
        let held = serving.protection.as_mut().filter(|_| serving.core.epoch() == epoch);
        let Some(protection) = held else { return Ok(false) };
        protection.lease = lease;
        Ok(true)
    }
}
