//! A vDisk that can't start by itself (L7): what exactly is missing, who could still bring it, and how an operator has it
//! started from what is there.
//!
//! | who says so | what is given up |
//! | --- | --- |
//! | the owner, stopped at its own log | what lies behind the hole or damage; all above the head if the log is gone |
//! | the owner, stopped at its DTL | what neither its log nor a target shows |
//! | any router, the owner being gone | what no target shows; of a vDisk without a DTL, all that only the owner's log has |
//!
//! The decision is one transaction: loss, records, and where another router goes on, owner and epoch. It asserts all
//! that was read, and that the owner's session is over. From then on the usual way leads into service: recovery finds
//! facts that promise what is there, and log records that an accepted loss takes out (`recover::Accepted`).
//!
//! Invariant: nothing changes unless something is missing now, and nothing is served before the loss is recorded.

use std::sync::Arc;
use std::time::Duration;

use arakoon_client::Transaction;
use model::{Lsn, RouterId, VdiskId};
use router_core::dtl::loss::weigh;
use router_core::dtl::takeover::Evidence;
use router_core::recover::{Accepted, Gap};
use runtime::clock::unix_ms;
use wire::common::Severity;
use wire::dtl::{DtlFacts, LogStatus};
use wire::facts::{DtlRecord, Loss, LossRecord, Record, VdiskRecord, key};
use wire::router::{RecoverVdisk, Recovery, RecoveryPlace, RecoveryVerdict, code};
use wire::{ErrorClass, WireError};

use crate::claim::held;
use crate::facts::{Change, FactsError, Read};
use crate::router::Router;
use crate::state::{KnownGap, Slot};

/// How long an operator waits for the vDisk to be served.
const OPENING_PATIENCE: Duration = Duration::from_secs(8);

/// What was read, and what it means.
struct Case {
    read: Read<VdiskRecord>,
    dtl: Option<Read<DtlRecord>>,
    head: Lsn,
    /// `None`: nothing is missing.
    lost: Option<Lost>,
    places: Vec<RecoveryPlace>,
}

struct Lost {
    from: Lsn,
    through: Option<Lsn>,
    missing: String,
    /// What the DTL's record says then.
    facts: Option<DtlFacts>,
    /// The own log, and up to where its damage is given up with it.
    log: (u64, u64),
}

fn wire_error(error: &FactsError) -> WireError {
    error.to_wire()
}

impl Router {
    /// See the module's page.
    ///
    /// # Errors
    /// `NOT_OWNER` while the owner lives: it knows best. Retry while that can't be said.
    pub(crate) async fn recover_vdisk(
        self: &Arc<Self>,
        ask: &RecoverVdisk,
    ) -> Result<Recovery, WireError> {
        let read = self.record_by_name(&ask.name).await?;
        if read.value.deleting {
            return Err(WireError::refuse(code::NO_VDISK, "the vDisk is being deleted"));
        }
        let case = if read.value.owner == self.id {
            self.own_case(read).await?
        } else {
            self.gone_case(read).await?
        };
        let Some(lost) = &case.lost else {
            return self.report(&case, RecoveryVerdict::Whole).await;
        };
        if !ask.accept_loss {
            return self.report(&case, RecoveryVerdict::Gap).await;
        }
        let report = self.report(&case, RecoveryVerdict::Accepted).await?;
        self.accept(&case, lost, &ask.by).await?;
        let vdisk = case.read.value.vdisk;
        let _ = tokio::time::timeout(OPENING_PATIENCE, self.wait_served(vdisk)).await;
        Ok(report)
    }

    /// This router owns it, and may have stopped at a gap.
    async fn own_case(self: &Arc<Self>, read: Read<VdiskRecord>) -> Result<Case, WireError> {
        let vdisk = read.value.vdisk;
        self.ensure_opening(vdisk);
        let known = {
            let mut state = self.state();
            match state.serving(vdisk) {
                Ok(_) => None,
                Err(error) if error.code == code::GAP => {
                    let known = state.gaps.get(&vdisk).cloned();
                    Some(known.ok_or_else(|| {
                        WireError::refuse(code::INVALID, format!("no loss to accept: {error}"))
                    })?)
                }
                Err(error) => return Err(error),
            }
        };
        let dtl = self.facts.dtl(vdisk).await.map_err(|error| wire_error(&error))?;
        match known {
            None => Ok(Case { read, dtl, head: Lsn::ZERO, lost: None, places: Vec::new() }),
            Some(known) => self.assess(read, dtl, &known).await,
        }
    }

    /// Its owner is another router, and gone.
    async fn gone_case(self: &Arc<Self>, read: Read<VdiskRecord>) -> Result<Case, WireError> {
        let VdiskRecord { vdisk, owner, .. } = read.value;
        let sessions = self.facts.sessions().await.map_err(|error| wire_error(&error))?;
        let id = key::router_session(owner);
        if sessions.iter().any(|session| session.id == id) {
            let location = self.location(&read.value).await?;
            let message = format!("router {owner} owns it, and lives by arakoon's word");
            return Err(WireError::new(ErrorClass::Redirect, code::NOT_OWNER, message)
                .with_detail(wire::encode_to_bytes(&location)));
        }
        if !self.could_take(vdisk) {
            return Err(WireError::retry(code::RECOVERING, "this router takes no vDisks now"));
        }
        let dtl = self.facts.dtl(vdisk).await.map_err(|error| wire_error(&error))?;
        self.assess(read, dtl, &KnownGap::default()).await
    }

    async fn assess(
        &self,
        read: Read<VdiskRecord>,
        dtl: Option<Read<DtlRecord>>,
        known: &KnownGap,
    ) -> Result<Case, WireError> {
        let VdiskRecord { vdisk, owner, log_id, .. } = read.value;
        let head_state = self.head_now(vdisk).await?;
        let head = head_state.last_lsn;
        let mut places = Vec::new();
        let own_end = (self.disk.id.0, self.state().log.written());
        let lost = if let Some(dtl) = &dtl {
            let DtlRecord { facts, mode, log_id, .. } = &dtl.value;
            let shown = self.shown(vdisk, facts).await;
            places.extend(target_places(facts, &shown));
            let (mut own_last, epochs) = known.dtl.clone().unwrap_or((None, head_state.epochs));
            if let Some(gap) = &known.log {
                // What of the own log joins counts once its end is given up.
                own_last = Lsn(gap.lost().0.0.saturating_sub(1)).max(head).into();
            }
            if owner != self.id || *log_id != 0 {
                places.push(log_place(owner, *log_id, own_last));
            }
            let sealed: Vec<_> = shown.iter().map(|(r, logs)| (*r, held(logs))).collect();
            let (me, mode, sealed, epochs) = (self.id, *mode, &sealed[..], &epochs);
            // Whether something is missing is judged without the log that isn't whole.
            let sound = own_last.filter(|_| known.log.is_none());
            let evidence = Evidence { me, facts, mode, head, own_last: sound, epochs, sealed };
            weigh(&evidence).map(|loss| {
                let kept = loss.kept.max(own_last.unwrap_or(head));
                Lost {
                    from: kept.next(),
                    through: loss.through.filter(|through| kept < *through),
                    missing: loss.gap.to_string(),
                    facts: Some(DtlFacts { floor: kept, ..loss.facts }),
                    log: if known.log.is_some() { own_end } else { (0, 0) },
                }
            })
        } else if let Some(gap) = &known.log {
            let (from, through) = gap.lost();
            let gone = matches!(gap, Gap::LogGone { .. });
            places.push(log_place(owner, log_id, (!gone).then(|| Lsn(from.0 - 1))));
            let log = if gone { (0, 0) } else { own_end };
            Some(Lost { from, through, missing: gap.to_string(), facts: None, log })
        } else if log_id == 0 {
            None
        } else {
            places.push(log_place(owner, log_id, None));
            let missing = format!(
                "the vDisk has no DTL: its owner's write log {log_id:016x} may hold writes above LSN {head} that are nowhere else"
            );
            Some(Lost { from: head.next(), through: None, missing, facts: None, log: (0, 0) })
        };
        Ok(Case { read, dtl, head, lost, places })
    }

    /// One transaction, then the usual way.
    async fn accept(self: &Arc<Self>, case: &Case, lost: &Lost, by: &str) -> Result<(), WireError> {
        let lease = self.lease.current().ok_or_else(|| {
            WireError::retry(code::RECOVERING, "this router has no session in arakoon")
        })?;
        let VdiskRecord { vdisk, owner, epoch, log_id, .. } = case.read.value;
        let known = self.facts.losses(vdisk).await.map_err(|error| wire_error(&error))?;
        let old = known.as_ref().map(|read| read.bytes.clone());
        let mut losses = known.map_or(LossRecord { losses: Vec::new() }, |read| read.value);
        losses.add(Loss {
            at_unix_ms: unix_ms(),
            by: by.to_owned(),
            router: self.id,
            owner,
            epoch,
            head: case.head,
            from: lost.from,
            through: lost.through,
            log_id: lost.log.0,
            log_end: lost.log.1,
            missing: lost.missing.clone(),
        });
        let loss_key = key::vdisk_loss(vdisk);
        let mut also = Transaction::new()
            .assert_session_lives(lease.id(), lease.incarnation())
            .assert_is(&loss_key, old)
            .set(&loss_key, losses.to_record());
        let taken = owner != self.id;
        let mut record = case.read.value.clone();
        // A log that isn't asked for any more; the own one is, for what of it joins.
        if taken || log_id != self.disk.id.0 {
            record.log_id = 0;
        }
        if taken {
            (record.owner, record.epoch) = (self.id, epoch.next());
        }
        let dtl = case.dtl.as_ref().map(|read| {
            let mut dtl = read.value.clone();
            if let Some(facts) = &lost.facts {
                dtl.facts = facts.clone();
            }
            if taken {
                (dtl.epoch, dtl.session, dtl.log_id) = (record.epoch, lease.incarnation(), 0);
            }
            (read, dtl)
        });
        if let Some(dtl) = case.dtl.as_ref().filter(|_| taken) {
            also = also.assert_session_gone(key::router_session(owner), dtl.value.session);
        }
        let change = Change { vdisk: (&case.read, record), dtl };
        self.facts.change(change, also).await.map_err(|error| {
            if error.is_conflict() {
                let message = "something changed meanwhile; nothing was given up: look again";
                return WireError::refuse(code::INVALID, message);
            }
            error.to_wire()
        })?;
        let (name, from, missing) = (&case.read.value.name, lost.from, &lost.missing);
        tracing::error!(%vdisk, name, by, %owner, %epoch, %from, through = ?lost.through, missing, "an operator accepted the loss of writes");
        let text = format!("by {by}: writes from LSN {from} on given up; {missing}");
        self.events.of(Severity::Error, "loss-accepted", vdisk, &text);
        self.open_after_loss(vdisk);
        Ok(())
    }

    /// A gap in the DTL is looked at again by its own task; the others have ended.
    fn open_after_loss(self: &Arc<Self>, vdisk: VdiskId) {
        let mut state = self.state();
        let waits = state.gaps.get(&vdisk).is_some_and(|known| known.dtl.is_some());
        if !waits && matches!(state.volumes.get(&vdisk), Some(Slot::Gap(_))) {
            state.volumes.remove(&vdisk);
        }
        drop(state);
        self.ensure_opening(vdisk);
    }

    /// Losses that take records out of this router's log.
    pub(crate) async fn accepted(&self, vdisk: VdiskId) -> Result<Vec<Accepted>, FactsError> {
        let losses = self.facts.losses(vdisk).await?.map(|read| read.value.losses);
        let accepted = losses.unwrap_or_default().into_iter().map(|loss| Accepted {
            epoch: loss.epoch,
            from: loss.from,
            log_end: if loss.log_id == self.disk.id.0 { loss.log_end } else { 0 },
        });
        Ok(accepted.collect())
    }

    async fn report(&self, case: &Case, verdict: RecoveryVerdict) -> Result<Recovery, WireError> {
        let VdiskRecord { vdisk, ref name, owner, epoch, .. } = case.read.value;
        let routers = self.facts.routers().await.map_err(|error| wire_error(&error))?;
        let name_of = |id: RouterId| {
            let known = routers.iter().find(|router| router.router == id);
            known.map_or_else(|| id.to_string(), |router| router.name.clone())
        };
        let mut places = case.places.clone();
        for place in &mut places {
            place.name = name_of(place.router);
            place.reached |= place.router == self.id;
        }
        let lost = case.lost.as_ref();
        Ok(Recovery {
            vdisk,
            name: name.clone(),
            verdict,
            owner,
            owner_name: name_of(owner),
            epoch,
            router_name: self.config.name.clone(),
            head: case.head,
            from: lost.map_or(Lsn::ZERO, |lost| lost.from),
            through: lost.and_then(|lost| lost.through),
            missing: lost.map_or_else(String::new, |lost| lost.missing.clone()),
            places,
        })
    }
}

fn log_place(router: RouterId, log_id: u64, last: Option<Lsn>) -> RecoveryPlace {
    let what = format!("write log {log_id:016x}");
    let (name, reached, bytes, damaged) = (String::new(), false, 0, false);
    RecoveryPlace { router, name, what, reached, last, bytes, damaged }
}

/// Each target that is named, with what it shows.
fn target_places(facts: &DtlFacts, shown: &[(RouterId, Vec<LogStatus>)]) -> Vec<RecoveryPlace> {
    let current = facts.targets.iter().map(|router| (*router, facts.generation));
    let previous = facts
        .previous
        .iter()
        .flat_map(|promise| promise.targets.iter().map(|router| (*router, promise.generation)));
    let place = |(router, generation)| {
        let answer = shown.iter().find(|(other, _)| *other == router).map(|(_, logs)| logs);
        let log = answer.and_then(|logs| logs.iter().find(|l| l.held.generation == generation));
        RecoveryPlace {
            router,
            name: String::new(),
            what: format!("DTL log of generation {generation}"),
            reached: answer.is_some(),
            last: log.map(|log| log.held.last),
            bytes: log.map_or(0, |log| log.bytes),
            damaged: log.is_some_and(|log| log.held.damaged),
        }
    };
    current.chain(previous).map(place).collect()
}
