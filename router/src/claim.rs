//! A vDisk whose owner is gone is claimed by the router that an edge turns to (P16, P18).
//!
//! Evidence that it is gone: its session is over, or the DTL is InSync and its address refuses connections. The second
//! needs no waiting: sealing a target ends what the old owner may read and promise, wherever it is. In every other state
//! the claim asserts that the session is over when it is committed.
//!
//! Before anything changes it is seen whether the claim could succeed: a router that takes a vDisk and can't recover it
//! would stand in the way of the one that can. A vDisk without a DTL is never claimed: its owner's log may hold what is
//! nowhere else (L7).
//!
//! Invariant: a claim changes owner, epoch and session of a vDisk and its DTL in one transaction that asserts all that
//! was read; everything after it is [`Router::open_loop`]'s, and is redone by the next claimant if this one dies.

use std::sync::Arc;
use std::time::Duration;

use arakoon_client::Transaction;
use model::{ByteSize, Incarnation, RouterId, VdiskId};
use router_core::dtl::takeover::{Evidence, judge};
use router_core::volume::HeadState;
use runtime::endpoint::Endpoint;
use runtime::net::{NetError, connect};
use wire::common::Severity;
use wire::dtl::{DtlFacts, DtlState, Held, LogStatus};
use wire::facts::{DtlRecord, RouterRecord, VdiskRecord, key};
use wire::router::code;
use wire::{Role, WireError};

use crate::facts::{Change, Read};
use crate::open::OpenError;
use crate::protect::holders;
use crate::room;
use crate::router::Router;
use crate::state::Slot;

/// How long a probe waits for a connection.
const PROBE: Duration = Duration::from_secs(1);

/// By what right a vDisk is claimed from its owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Right {
    /// InSync the seal ends the owner's, in every other state the end of its session (P16).
    ByState,
    /// The owner said that it serves nothing by the epoch that is asserted, and its next try asserts the same.
    Yielded,
}

impl Router {
    /// Claims the vDisk of this name if its owner is gone, and begins to open it. `None`: it isn't gone, or the vDisk has
    /// no DTL, or somebody else was quicker.
    ///
    /// # Errors
    /// `GAP` with what is missing and whose the vDisk is when it couldn't be recovered here; `NO_ROOM` when the log couldn't
    /// take it; Retry when arakoon or the backend can't say.
    pub(crate) async fn claim_from_gone(
        self: &Arc<Self>,
        name: &str,
    ) -> Result<Option<VdiskId>, WireError> {
        let read = self.record_by_name(name).await?;
        let vdisk = read.value.vdisk;
        if read.value.owner == self.id || read.value.deleting || !self.could_take(vdisk) {
            return Ok(None);
        }
        let dtl = self.facts.dtl(vdisk).await.map_err(|error| error.to_wire())?;
        let owner = self.facts.router(read.value.owner).await.map_err(|error| error.to_wire())?;
        let (Some(dtl), Some(owner)) = (dtl, owner) else { return Ok(None) };
        let Some(why) = self.how_gone(&owner.value, &dtl.value).await? else { return Ok(None) };
        self.claim_from(&read, &dtl, (why, Right::ByState, Transaction::new())).await
    }

    /// Claims the vDisk for this reason, together with what else is to be asserted or set, and begins to open it.
    ///
    /// # Errors
    /// As [`Self::claim_from_gone`].
    pub(crate) async fn claim_from(
        self: &Arc<Self>,
        read: &Read<VdiskRecord>,
        dtl: &Read<DtlRecord>,
        (why, right, also): (&'static str, Right, Transaction),
    ) -> Result<Option<VdiskId>, WireError> {
        let Some(lease) = self.lease.current() else { return Ok(None) };
        let VdiskRecord { vdisk, owner, .. } = read.value;
        self.could_recover(&read.value, &dtl.value, (why, right)).await?;
        let epoch = read.value.epoch.next();
        let taken = VdiskRecord { owner: self.id, epoch, ..read.value.clone() };
        // No log holds what the backend lacks until recovery has put it there (P10).
        let mine =
            DtlRecord { epoch, session: lease.incarnation(), log_id: 0, ..dtl.value.clone() };
        let mut also = also.assert_session_lives(lease.id(), lease.incarnation());
        if right == Right::ByState && dtl.value.facts.state != DtlState::InSync {
            let id = key::router_session(owner);
            also = also.assert_session_gone(id, dtl.value.session);
        }
        let change = Change { vdisk: (read, taken), dtl: Some((dtl, mine)) };
        match self.facts.change(change, also).await {
            Ok(_) => {}
            // Somebody was quicker, or the owner is back: the next attach finds who.
            Err(error) if error.is_conflict() => return Ok(None),
            Err(error) => return Err(error.to_wire()),
        }
        let (name, state) = (&read.value.name, dtl.value.facts.state);
        tracing::warn!(%vdisk, name, from = %owner, why, %epoch, ?state, "claimed from its owner");
        let from = self.ties.name_of(owner);
        let text = format!("from {from} at epoch {epoch}, DTL {state:?}: {why}");
        self.events.of(Severity::Warn, "claimed", vdisk, &text);
        self.ensure_opening(vdisk);
        Ok(Some(vdisk))
    }

    /// Whether this router takes a vDisk of another one now.
    pub(crate) fn could_take(&self, vdisk: VdiskId) -> bool {
        let state = self.state();
        let well =
            !state.stopping && !state.draining && !state.log_failed && state.log_problem.is_none();
        well && matches!(state.volumes.get(&vdisk), None | Some(Slot::Elsewhere(_)))
    }

    /// Evidence that the owner is gone, if there is any.
    async fn how_gone(
        &self,
        owner: &RouterRecord,
        dtl: &DtlRecord,
    ) -> Result<Option<&'static str>, WireError> {
        let id = key::router_session(owner.router);
        let sessions = self.facts.sessions().await.map_err(|error| error.to_wire())?;
        // A vDisk that its owner hasn't opened yet names no session: any of the owner's counts.
        let unopened = dtl.session == Incarnation(0);
        let lives = |session: &arakoon_client::SessionInfo| {
            session.id == id && (unopened || session.incarnation == dtl.session)
        };
        if !sessions.iter().any(lives) {
            return Ok(Some("its session is over"));
        }
        if dtl.facts.state == DtlState::InSync && self.refuses(owner).await {
            return Ok(Some("it refuses connections"));
        }
        Ok(None)
    }

    /// Every address says at once that nobody listens there. Silence is no evidence: it may be a slow network.
    async fn refuses(&self, router: &RouterRecord) -> bool {
        let addresses: Vec<Endpoint> =
            router.addresses.iter().filter_map(|address| address.parse().ok()).collect();
        for address in &addresses {
            let probe = connect(address, Role::Router, &self.identity);
            match tokio::time::timeout(PROBE, probe).await {
                Ok(Err(NetError::Connect { cause, .. })) if nobody_listens(&cause) => {}
                Ok(_) | Err(_) => return false,
            }
        }
        !addresses.is_empty()
    }

    /// What recovery would find, as far as that can be seen without sealing anything.
    async fn could_recover(
        &self,
        record: &VdiskRecord,
        dtl: &DtlRecord,
        (why, right): (&'static str, Right),
    ) -> Result<(), WireError> {
        let vdisk = record.vdisk;
        let logs = self.shown(vdisk, &dtl.facts).await;
        let shown: Vec<_> = logs.iter().map(|(router, logs)| (*router, held(logs))).collect();
        // After the targets: what they trim meanwhile is below it.
        let head_state = self.head_now(vdisk).await?;
        let evidence = Evidence {
            me: self.id,
            facts: &dtl.facts,
            mode: dtl.mode,
            head: head_state.last_lsn,
            own_last: None,
            epochs: &head_state.epochs,
            sealed: &shown,
        };
        let owner = self.ties.name_of(record.owner);
        let of_owner = (&owner[..], why, right);
        let error = match judge(&evidence) {
            Err(gap) => WireError::refuse(code::GAP, not_claimed(&record.name, of_owner, &gap)),
            Ok(plan) => {
                let needed = room::needed(plan.source.as_ref(), &logs);
                let Some(why) = self.state().lacks_room(needed) else { return Ok(()) };
                let short = format!("{} must be recovered, and {why}", ByteSize(needed));
                WireError::retry(code::NO_ROOM, not_claimed(&record.name, of_owner, &short))
            }
        };
        tracing::debug!(%vdisk, %error, "not claimed");
        // Whose gap it is: an edge that hears of it only here has no reason to suspect this router.
        Err(error.with_detail(wire::encode_to_bytes(&self.location(record).await?)))
    }

    /// What the backend has of a vDisk.
    pub(crate) async fn head_now(&self, vdisk: VdiskId) -> Result<HeadState, WireError> {
        let read = async {
            let (head, object, meta) = self.head(vdisk).await?;
            self.head_state(object, head, meta.as_ref()).await
        };
        read.await.map_err(|error: OpenError| {
            WireError::retry(code::RECOVERING, format!("the backend can't say its head: {error}"))
        })
    }

    /// The logs of whoever may hold what was promised, of those that answer.
    pub(crate) async fn shown(
        &self,
        vdisk: VdiskId,
        facts: &DtlFacts,
    ) -> Vec<(RouterId, Vec<LogStatus>)> {
        let mut shown = Vec::new();
        for router in holders(facts) {
            let logs = if router == self.id {
                self.dtl.logs(vdisk)
            } else {
                match self.peers.logs(router, vdisk).await {
                    Ok(logs) => logs,
                    Err(error) => {
                        tracing::info!(%vdisk, %router, %error, "a DTL target can't be asked");
                        continue;
                    }
                }
            };
            shown.push((router, logs));
        }
        shown
    }
}

pub(crate) fn held(logs: &[LogStatus]) -> Vec<Held> {
    logs.iter().map(|log| log.held.clone()).collect()
}

/// Why a vDisk isn't claimed: what is true of its owner, and what is missing here.
fn not_claimed(
    name: &str,
    (owner, why, right): (&str, &str, Right),
    gap: &impl std::fmt::Display,
) -> String {
    let of_owner = match right {
        Right::ByState => why,
        // It lives, and said so itself.
        Right::Yielded => "it can't recover it either",
    };
    format!("vDisk {name} can't be taken from its owner {owner} ({of_owner}): {gap}")
}

fn nobody_listens(cause: &std::io::Error) -> bool {
    matches!(cause.kind(), std::io::ErrorKind::ConnectionRefused | std::io::ErrorKind::NotFound)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_of_an_owner_is_true_of_it() {
        let text =
            |right| not_claimed("demo", ("router-1", "its session is over", right), &"LSN 7");
        let gone = "vDisk demo can't be taken from its owner router-1 (its session is over): LSN 7";
        assert_eq!(text(Right::ByState), gone);
        let yielded =
            "vDisk demo can't be taken from its owner router-1 (it can't recover it either): LSN 7";
        assert_eq!(text(Right::Yielded), yielded);
    }
}
