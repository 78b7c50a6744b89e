//! Another mode of the DTL, or another number of targets, for a vDisk that is served (`router_core::dtl::mode`).
//!
//! ```text
//!  sync → async        no shared attachment from here on (P5) ─▶ arakoon says async ─▶ acknowledged early
//!  async → sync        acknowledged by the targets alone ─▶ arakoon says sync ─▶ may be shared
//!  to and from none    requests wait ─▶ all is in the backend ─▶ one transaction: epoch + 1, mode, facts ─▶ opened anew
//! ```
//! In place the stronger meaning comes first and goes last, so nothing is known by arakoon's record that isn't so. Through
//! the backend it goes as with a hand-over, to oneself: what fails before the transaction leaves the vDisk served as it was;
//! when it isn't known whether the record changed, the vDisk is opened anew, and that claim finds it changed or makes the
//! change impossible. From the first waiting request on nothing is read by the old right (P16).
//!
//! Nothing is proposed after the deadline of whoever asked: who was told that it may not have come about looks, and finds
//! what stays so.
//!
//! Invariant: a record of another regime is committed only while nothing of the vDisk lies outside the backend, and nobody
//! shares it who may not (P5).

use std::sync::Arc;
use std::time::Duration;

use arakoon_client::Transaction;
use model::{Epoch, VdiskId};
use router_core::contest::is_spared;
use router_core::dtl::mode::{Change as Way, change, record_after};
use runtime::clock::boot_now;
use tokio::time::Instant;
use wire::common::Severity;
use wire::dtl::{DtlMode, TARGETS_MAX};
use wire::facts::{AttachmentMode, AttachmentsRecord, DtlRecord, VdiskRecord, key};
use wire::router::{SetVdisk, VdiskInfo, code};
use wire::{ErrorClass, WireError};

use crate::attach::Outcome;
use crate::facts::{Change, FactsError};
use crate::handoff::{Drained, Halt};
use crate::router::Router;
use crate::state::{Records, Slot, Stage};

/// Changes of the same records by others that are yielded to.
const TRIES: usize = 8;
/// How long requests wait at most before the change is given up.
const FROZEN_MAX: Duration = Duration::from_secs(10);

const fn name(mode: DtlMode) -> &'static str {
    match mode {
        DtlMode::Sync => "sync",
        DtlMode::Async => "async",
        DtlMode::NoTarget => "none",
    }
}

fn invalid(why: impl Into<String>) -> WireError {
    WireError::refuse(code::INVALID, why)
}

fn unchanged(why: &str) -> WireError {
    WireError::retry(code::UNCHANGED, format!("not changed: {why}"))
}

/// When the caller gives up; `None`: never.
type Until = Option<Instant>;

/// # Errors
/// When nobody waits for it any more: it is too late to begin.
fn in_time(until: Until) -> Result<(), WireError> {
    if until.is_some_and(|until| until <= Instant::now()) {
        return Err(unchanged("whoever asked for it has given up"));
    }
    Ok(())
}

fn wire_error(error: &FactsError) -> WireError {
    error.to_wire()
}

/// P5: none of those who share it sends again what was acknowledged.
fn unshared(attachments: &AttachmentsRecord, mode: DtlMode) -> Result<(), WireError> {
    let mut live = attachments.live.iter();
    let Some(one) = live.find(|live| live.mode == AttachmentMode::Shared) else { return Ok(()) };
    let edge = &one.edge_name;
    Err(invalid(format!(
        "edge {edge} is attached to share it, which needs a synchronous DTL: detach it before the mode becomes {}",
        name(mode)
    )))
}

impl Router {
    /// See the module's page. May be repeated, and says the same then.
    ///
    /// # Errors
    /// `INVALID` for what doesn't go together; `UNCHANGED` while something stands against it, and it is served as before.
    pub(crate) async fn set_vdisk(
        self: &Arc<Self>,
        vdisk: VdiskId,
        set: &SetVdisk,
        until: Until,
    ) -> Result<VdiskInfo, WireError> {
        if set.dtl.is_none() && set.dtl_targets.is_none() {
            return Err(invalid("nothing is to be set"));
        }
        self.wait_served(vdisk).await?;
        let (epoch, now) = self.begin_change(vdisk)?;
        let changed = self.change_to((vdisk, now), set, until).await;
        if let Ok(serving) = self.state().serving(vdisk)
            && serving.core.epoch() == epoch
        {
            serving.changing_dtl = false;
        }
        changed?;
        self.wait_served(vdisk).await?;
        self.show(vdisk)
    }

    async fn change_to(
        self: &Arc<Self>,
        (vdisk, now): (VdiskId, DtlMode),
        set: &SetVdisk,
        until: Until,
    ) -> Result<(), WireError> {
        let mode = set.dtl.unwrap_or(now);
        if let Some(count) = set.dtl_targets {
            if count == 0 || TARGETS_MAX < usize::from(count) {
                return Err(invalid(format!(
                    "{count} DTL targets: there may be 1 or {TARGETS_MAX}"
                )));
            }
            if mode == DtlMode::NoTarget {
                return Err(invalid("without a DTL there are no targets of it"));
            }
            self.set_targets(vdisk, count, until).await?;
        }
        match change(now, mode) {
            Way::Nothing if set.dtl.is_some() && mode != DtlMode::NoTarget => {
                // An earlier try may have ended without knowing what arakoon's record says now.
                let owner = self.state().serving(vdisk)?.record.clone();
                self.record_mode(&owner, mode, until).await.map_err(Halt::into_error)?;
                self.mode_is_recorded(&owner, mode)?;
            }
            Way::Nothing => {}
            Way::InPlace => self.set_in_place(vdisk, mode, until).await?,
            Way::ThroughBackend => self.set_through_backend(vdisk, mode, until).await?,
        }
        if now != mode {
            let text = format!("from {} to {}", name(now), name(mode));
            tracing::info!(%vdisk, text, "another mode of the DTL");
            self.events.of(Severity::Info, "dtl-mode", vdisk, &text);
        }
        Ok(())
    }

    /// The mode as it is, if it may be changed now; one change at a time.
    fn begin_change(&self, vdisk: VdiskId) -> Result<(Epoch, DtlMode), WireError> {
        let mut state = self.state();
        if state.stopping {
            return Err(WireError::retry(wire::error::code::STOPPING, "the router is stopping"));
        }
        let serving = state.serving(vdisk)?;
        if serving.handing_over {
            return Err(unchanged("the vDisk is being handed over"));
        }
        if std::mem::replace(&mut serving.changing_dtl, true) {
            return Err(unchanged("its DTL is being changed already"));
        }
        let mode = serving.protection.as_ref().map_or(DtlMode::NoTarget, |held| held.mode);
        Ok((serving.core.epoch(), mode))
    }

    async fn set_targets(&self, vdisk: VdiskId, count: u8, until: Until) -> Result<(), WireError> {
        let owner = self.state().serving(vdisk)?.record.clone();
        in_time(until)?;
        match self.facts.until(until).change_dtl_wish(&owner, count).await {
            Ok(()) => {}
            Err(error) if error.is_conflict() => {
                self.read_record_again(&owner).await?;
                return Err(unchanged("its record was changed meanwhile"));
            }
            Err(error) => return Err(wire_error(&error)),
        }
        let mut state = self.state();
        let serving = state.serving(vdisk)?;
        if let Some(protection) = &serving.protection
            && serving.core.epoch() == owner.epoch
        {
            protection.owner.want_targets(Some(count.into()));
        }
        Ok(())
    }

    async fn set_in_place(
        self: &Arc<Self>,
        vdisk: VdiskId,
        mode: DtlMode,
        until: Until,
    ) -> Result<(), WireError> {
        in_time(until)?;
        let (owner, before) = {
            let mut state = self.state();
            let serving = state.serving(vdisk)?;
            let protection = serving.protection.as_mut();
            let protection =
                protection.ok_or_else(|| unchanged("its DTL was changed meanwhile"))?;
            let before = protection.mode;
            match mode {
                DtlMode::Sync => protection.owner.set_mode(mode),
                DtlMode::Async | DtlMode::NoTarget => protection.mode = mode,
            }
            (serving.record.clone(), before)
        };
        let recorded = async {
            if mode != DtlMode::Sync {
                self.shut_out_sharers(&owner, mode, until).await?;
            }
            self.record_mode(&owner, mode, until).await
        };
        match recorded.await {
            Ok(()) => self.mode_is_recorded(&owner, mode),
            Err(Halt::Before(error)) => {
                let mut state = self.state();
                let serving = state.serving(vdisk)?;
                if let Some(protection) = &mut serving.protection
                    && serving.core.epoch() == owner.epoch
                {
                    // Arakoon's record says the same as before.
                    protection.mode = before;
                }
                Err(error)
            }
            Err(Halt::Unknown(error)) => Err(wire_error(&error)),
        }
    }

    /// It is acknowledged accordingly from now on.
    fn mode_is_recorded(&self, owner: &VdiskRecord, mode: DtlMode) -> Result<(), WireError> {
        let mut state = self.state();
        let serving = state.serving(owner.vdisk)?;
        match &mut serving.protection {
            Some(protection) if serving.core.epoch() == owner.epoch => protection.set_mode(mode),
            Some(_) | None => return Err(unchanged("the vDisk was opened anew meanwhile")),
        }
        Ok(())
    }

    /// Whoever was let in to share it and isn't recorded yet finds other attachments than it saw, and asks again.
    async fn shut_out_sharers(
        self: &Arc<Self>,
        owner: &VdiskRecord,
        mode: DtlMode,
        until: Until,
    ) -> Result<(), WireError> {
        for _ in 0..TRIES {
            let read = self.facts.attachments(owner.vdisk).await;
            let (old, bytes) = read.map_err(|error| wire_error(&error))?;
            unshared(&old, mode)?;
            in_time(until)?;
            let last_generation = old.last_generation.next();
            let new = AttachmentsRecord { last_generation, ..old };
            match self.change(owner, bytes, new).await? {
                Outcome::Changed => return Ok(()),
                Outcome::Conflict => {}
            }
        }
        Err(unchanged("others keep changing the attachments"))
    }

    /// Arakoon's record says so, and said so under this owner's epoch: also where it says so already, a transaction
    /// asserts that. What was only read may be an earlier owner's word, or be replaced by a claim before it is acted on (P10).
    async fn record_mode(
        &self,
        owner: &VdiskRecord,
        mode: DtlMode,
        until: Until,
    ) -> Result<(), Halt> {
        for _ in 0..TRIES {
            let read = self.facts.vdisk(owner.vdisk).await.map_err(|error| wire_error(&error))?;
            let same = |now: &VdiskRecord| (now.owner, now.epoch) == (owner.owner, owner.epoch);
            let claimed = || unchanged("another owner has claimed it");
            let vdisk = read.filter(|read| same(&read.value)).ok_or_else(claimed)?;
            let read = self.facts.dtl(owner.vdisk).await.map_err(|error| wire_error(&error))?;
            let read = read.filter(|read| read.value.epoch == owner.epoch).ok_or_else(claimed)?;
            in_time(until)?;
            let facts = self.facts.until(until);
            let recorded = if read.value.mode == mode {
                facts.confirm_dtl(&vdisk, &read).await
            } else {
                // The owner's own proposals change the same record.
                let new = DtlRecord { mode, ..read.value.clone() };
                facts.change_dtl(owner.vdisk, &read, &new).await
            };
            match recorded {
                Ok(()) => return Ok(()),
                Err(error) if error.is_conflict() => {}
                Err(error) => return Err(Halt::Unknown(error)),
            }
        }
        Err(unchanged("its record keeps changing").into())
    }

    async fn set_through_backend(
        self: &Arc<Self>,
        vdisk: VdiskId,
        mode: DtlMode,
        until: Until,
    ) -> Result<(), WireError> {
        if mode != DtlMode::NoTarget && self.lease.current().is_none() {
            return Err(unchanged("this router has no session in arakoon"));
        }
        self.send_most(vdisk, unchanged).await?;
        in_time(until)?;
        let epoch = {
            let mut state = self.state();
            let serving = state.serving(vdisk)?;
            unshared(&serving.attachments, mode)?;
            // L8: others wait meanwhile, and an operator's tool asks again.
            if let Some(why) = &serving.degraded {
                return Err(unchanged(&format!("the backend doesn't take what is pending: {why}")));
            }
            if is_spared(boot_now(), serving.frozen_in_vain) {
                return Err(unchanged("requests waited in vain for this just now"));
            }
            if std::mem::replace(&mut serving.handing_over, true) {
                return Err(unchanged("the vDisk is being handed over"));
            }
            serving.core.epoch()
        };
        let (outcome, why) = match self.change_regime(vdisk, mode, until).await {
            Ok(()) => (Ok(()), "its DTL has changed, and it is opened anew".to_owned()),
            Err(Halt::Before(error)) => {
                if let Ok(serving) = self.state().serving(vdisk)
                    && serving.core.epoch() == epoch
                {
                    serving.handing_over = false;
                }
                return Err(error);
            }
            Err(Halt::Unknown(error)) => {
                tracing::warn!(%vdisk, %error, "it isn't known whether the DTL's mode changed; opening the vDisk anew");
                let error = unchanged(&format!("arakoon's answer is missing: {error}"));
                (Err(error), "it isn't known whether its DTL has changed; it is opened anew".into())
            }
        };
        let error = WireError::new(ErrorClass::Retry, code::RECOVERING, why);
        let opens = {
            let mut state = self.state();
            // The answer may come after the vDisk was left and opened anew for another reason: what is served then was
            // acknowledged under a later epoch, and stays (L1).
            let same = state.serving(vdisk).is_ok_and(|serving| serving.core.epoch() == epoch);
            if same {
                state.stop_serving(vdisk, Slot::Opening(Stage::Record), &error, Records::Release);
            }
            same
        };
        if opens {
            tokio::spawn(Arc::clone(self).open_loop(vdisk));
        } else {
            self.ensure_opening(vdisk);
        }
        outcome
    }

    /// Requests wait.
    async fn change_regime(&self, vdisk: VdiskId, mode: DtlMode, until: Until) -> Result<(), Halt> {
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        let frozen_max = left.unwrap_or(FROZEN_MAX).min(FROZEN_MAX);
        let drained = self.drained(vdisk, frozen_max, unchanged).await;
        if drained.is_err()
            && let Ok(serving) = self.state().serving(vdisk)
        {
            serving.frozen_in_vain = Some(boot_now());
        }
        let Drained { read, head } = drained?;
        let attachments = self.facts.attachments(vdisk).await;
        let (attachments, attached) = attachments.map_err(|error| wire_error(&error))?;
        unshared(&attachments, mode)?;
        let former = self.facts.dtl_record(vdisk).await.map_err(|error| wire_error(&error))?;
        let epoch = read.value.epoch.next();
        let dtl = record_after(former.as_ref().map(|read| &read.value), mode, epoch, head);
        // No log is needed: what it holds is in the backend. The next claim names the one that is.
        let new = VdiskRecord { epoch, log_id: 0, ..read.value.clone() };
        // Nobody has been let in to share it since.
        let also = Transaction::new().assert_is(key::attachments(vdisk), attached);
        in_time(until)?;
        let facts = self.facts.until(until);
        let changed = match &former {
            Some(former) => {
                let change = Change { vdisk: (&read, new), dtl: Some((former, dtl)) };
                facts.change(change, also).await
            }
            None => facts.first_dtl((&read, new), &dtl, also).await,
        };
        match changed {
            Ok(_) => Ok(()),
            Err(error) if error.is_conflict() => {
                Err(unchanged("its record, or who is attached, changed meanwhile").into())
            }
            Err(error) => Err(Halt::Unknown(error)),
        }
    }
}
