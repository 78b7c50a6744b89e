//! A vDisk changes hands while its owner is well: by an operator's wish, or because its owner left cleanly.
//!
//! ```text
//!  owner R1                                        R2
//!  PREPARE_ADOPTION ─────────────────────────────▶ could it start? follows the page map
//!  sends what is pending to the backend, serving on
//!  takes nothing new, sends the rest               ── requests wait from here …
//!  record: owner R2, epoch + 1, no log needed
//!  ADOPT ────────────────────────────────────────▶ claims, opens, serves   … to here
//!  tells edges where to go
//! ```
//! Everything is in the backend before the record changes, so R2 needs nothing that only R1 has. A step that fails before
//! that leaves R1 serving as if nothing had been. When it isn't known whether the record changed, R1 opens the vDisk anew
//! like after a restart: its claim either finds the other owner, or makes the change impossible (L3).
//!
//! Invariant: a record that names another owner says that no log is needed (`log_id` 0): nothing acknowledged was left
//! behind (L1).

use std::sync::Arc;
use std::time::Duration;

use arakoon_client::Transaction;
use model::{Lsn, RouterId, VdiskId};
use runtime::clock::{boot_now, unix_ms};
use runtime::endpoint::Endpoint;
use runtime::rpc::{Call, CallError, Client, ClientOptions};
use wire::common::Severity;
use wire::facts::{
    DtlRecord, MaintenanceRecord, Record, RouterRecord, RouterState, VdiskRecord, key,
};
use wire::router::{Adoption, SetStanding, Transferred, code, method};
use wire::{ErrorClass, Role, WireError};

use crate::facts::{Change, FactsError, Read};
use crate::open::OpenError;
use crate::protect::holders;
use crate::router::Router;
use crate::state::{Records, Slot, Stage};

/// How long the next owner may take to bring a page map up to date.
const PREPARE_PATIENCE: Duration = Duration::from_secs(600);
/// How long one round of sending what is pending may take, while the vDisk is served.
const DRAIN_PATIENCE: Duration = Duration::from_secs(60);
/// How long requests wait at most before the hand-over is given up.
const FROZEN_MAX: Duration = Duration::from_secs(10);
/// How long the next owner may take to say that it begins.
const ADOPT_PATIENCE: Duration = Duration::from_secs(2);
/// Left to be sent before requests wait: a fraction of a second.
const LITTLE: u64 = 8 << 20;
/// Rounds of sending while new writes come in.
const ROUNDS_MAX: usize = 8;
pub(crate) const PAUSE: Duration = Duration::from_millis(5);

fn aborted(why: impl std::fmt::Display) -> WireError {
    WireError::retry(code::HANDOVER_ABORTED, format!("not handed over: {why}"))
}

/// One that left cleanly, and needs neither its log nor a DTL.
fn is_left_behind(record: &VdiskRecord, dtl: Option<&DtlRecord>, owner: &RouterRecord) -> bool {
    record.log_id == 0
        && dtl.is_none_or(|dtl| holders(&dtl.facts).is_empty())
        && matches!(owner.state, RouterState::Offline)
        && !record.deleting
}

impl Router {
    /// Whether this router takes further vDisks. Under maintenance its record says Draining: Offline is the word of a
    /// router that stopped, and what that left behind may be taken.
    ///
    /// # Errors
    /// When it shall be offline and owns vDisks, or arakoon can't be reached.
    pub async fn set_standing(&self, standing: &SetStanding) -> Result<(), WireError> {
        let SetStanding { state, by } = standing;
        let maintenance = *state == RouterState::Offline;
        let draining = *state != RouterState::Online;
        // First, so that none comes in between.
        let before = std::mem::replace(&mut self.state().draining, draining);
        let stood = async {
            if maintenance {
                self.owns_nothing().await?;
            }
            let key = key::router_maintenance(self.id);
            let record = MaintenanceRecord { at_unix_ms: unix_ms(), by: by.clone() };
            let mark = match state {
                RouterState::Online => Transaction::new().delete(key),
                // One that is offline already stays so.
                RouterState::Draining => Transaction::new(),
                RouterState::Offline => Transaction::new().set(key, record.to_record()),
            };
            let state = if draining { RouterState::Draining } else { RouterState::Online };
            let stood = self.facts.stand(&self.record(state), mark).await;
            stood.map_err(|error| error.to_wire())
        };
        if let Err(error) = stood.await {
            // When it isn't known whether arakoon has it, the stricter of the two holds.
            let refused = error.class == ErrorClass::Refuse;
            self.state().draining = before || (draining && !refused);
            return Err(error);
        }
        // A registration may have read the former word meanwhile.
        self.state().draining = draining;
        tracing::info!(?state, by, "standing changed by an operator");
        let means = match state {
            RouterState::Online => "in service: it takes vDisks",
            RouterState::Draining => "draining: it takes no vDisks",
            RouterState::Offline => {
                "offline: it takes no vDisks until it is resumed, restarts or not"
            }
        };
        self.note(Severity::Info, "standing", &format!("{means}; by {by}"));
        Ok(())
    }

    async fn owns_nothing(&self) -> Result<(), WireError> {
        let vdisks = self.facts.vdisks().await.map_err(|error| error.to_wire())?;
        // A deletion goes on wherever the router stands.
        let mine = |vdisk: &&VdiskRecord| vdisk.owner == self.id && !vdisk.deleting;
        let owned = vdisks.iter().map(|read| &read.value).filter(mine);
        let names: Vec<&str> = owned.map(|vdisk| vdisk.name.as_str()).collect();
        if let Some(first) = names.first() {
            let message =
                format!("it owns vDisks ({}, the first is {first}): drain it first", names.len());
            return Err(WireError::refuse(code::INVALID, message));
        }
        Ok(())
    }

    /// Could this router start the vDisk? Its page map follows the backend meanwhile, so that only the tail is left later.
    ///
    /// # Errors
    /// Why not.
    pub async fn prepare_adoption(&self, vdisk: VdiskId) -> Result<(), WireError> {
        {
            let state = self.state();
            if state.stopping || state.draining || state.log_failed {
                return Err(aborted("the router is stopping or takes no vDisks"));
            }
            if let Some(problem) = &state.log_problem {
                return Err(aborted(format!("its write log has a problem: {problem}")));
            }
            match state.volumes.get(&vdisk) {
                None | Some(Slot::Elsewhere(_)) => {}
                Some(slot) => return Err(aborted(format!("the vDisk is {} there", slot.name()))),
            }
        }
        if self.lease.current().is_none() {
            return Err(aborted("it has no session in arakoon"));
        }
        let Some(hold) = self.hold_map_soon(vdisk).await else {
            return Err(aborted("its page map is being prepared already"));
        };
        match self.follow_map(vdisk, &hold).await {
            Ok(_) => Ok(()),
            // It couldn't serve: nobody else may take a vDisk from a router that lives and has it.
            Err(error @ (OpenError::Map(_) | OpenError::Backend(_) | OpenError::Facts(_))) => {
                Err(aborted(error))
            }
            // It is sorted out when the vDisk is opened.
            Err(error) => {
                tracing::info!(%vdisk, %error, "the page map can't be followed beforehand");
                Ok(())
            }
        }
    }

    /// The record names this router: opens the vDisk now rather than at the next look.
    ///
    /// # Errors
    /// When the record doesn't.
    pub async fn adopt(self: &Arc<Self>, vdisk: VdiskId) -> Result<(), WireError> {
        let read = self.facts.vdisk(vdisk).await.map_err(|error| error.to_wire())?;
        if read.is_none_or(|read| read.value.owner != self.id) {
            return Err(WireError::refuse(code::INVALID, "the vDisk isn't this router's"));
        }
        self.ensure_opening(vdisk);
        Ok(())
    }

    /// Takes a vDisk whose owner stopped cleanly and is off, if there is such a one of this name.
    ///
    /// # Errors
    /// When arakoon can't say.
    pub(crate) async fn take_left_behind(
        self: &Arc<Self>,
        name: &str,
    ) -> Result<Option<VdiskId>, WireError> {
        let read = self.record_by_name(name).await?;
        let owner = self.facts.router(read.value.owner).await.map_err(|error| error.to_wire())?;
        let vdisk = read.value.vdisk;
        let dtl = self.facts.dtl(vdisk).await.map_err(|error| error.to_wire())?;
        let left = |owner: &Read<RouterRecord>| {
            is_left_behind(&read.value, dtl.as_ref().map(|read| &read.value), &owner.value)
        };
        let Some(owner) = owner.filter(left).filter(|_| self.could_take(vdisk)) else {
            return Ok(None);
        };
        let epoch = read.value.epoch.next();
        let taken = VdiskRecord { owner: self.id, epoch, ..read.value.clone() };
        let dtl = dtl.as_ref().map(|dtl| (dtl, DtlRecord { epoch, ..dtl.value.clone() }));
        // The router that it belonged to is as it was read: off, and not back.
        let off = key::router(owner.value.router);
        let off = Transaction::new().assert_value(off, owner.bytes.clone());
        match self.facts.change(Change { vdisk: (&read, taken), dtl }, off).await {
            Ok(_) => {}
            // Somebody was quicker, or the owner is back: the next attach finds who.
            Err(error) if error.is_conflict() => return Ok(None),
            Err(error) => return Err(error.to_wire()),
        }
        tracing::info!(%vdisk, name, from = %owner.value.name, "taken over from a router that stopped cleanly");
        let text = format!("{} left it behind when it stopped", owner.value.name);
        self.events.of(Severity::Info, "taken-over", vdisk, &text);
        self.ensure_opening(vdisk);
        Ok(Some(vdisk))
    }

    /// Hands a vDisk that is served here to another router.
    ///
    /// # Errors
    /// When it didn't come about; it is served here then, unless somebody else took it meanwhile.
    pub async fn transfer(
        self: &Arc<Self>,
        vdisk: VdiskId,
        to: RouterId,
    ) -> Result<Transferred, WireError> {
        self.transfer_within(vdisk, to, FROZEN_MAX).await
    }

    /// As [`Self::transfer`]; requests wait no longer than this for what is pending.
    pub(crate) async fn transfer_within(
        self: &Arc<Self>,
        vdisk: VdiskId,
        to: RouterId,
        frozen_max: Duration,
    ) -> Result<Transferred, WireError> {
        let epoch = self.state().serving(vdisk)?.core.epoch();
        if to == self.id {
            return Ok(Transferred { owner: to, epoch, pause_ms: 0 });
        }
        let target = self.facts.router(to).await.map_err(|error| error.to_wire())?;
        let read = target
            .ok_or_else(|| WireError::refuse(code::INVALID, format!("there is no router {to}")))?;
        let target = &read.value;
        if target.state != RouterState::Online {
            let message =
                format!("router {} is {:?}: it takes no vDisks", target.name, target.state);
            return Err(WireError::refuse(code::INVALID, message));
        }
        self.ask_next(target, method::PREPARE_ADOPTION, vdisk, PREPARE_PATIENCE).await?;
        self.send_most(vdisk, aborted).await?;
        {
            let mut state = self.state();
            let serving = state.serving(vdisk)?;
            if std::mem::replace(&mut serving.handing_over, true) {
                return Err(aborted("another hand-over of this vDisk is under way"));
            }
        }
        let start = boot_now();
        let new = match self.hand_over(vdisk, &read, frozen_max).await {
            Ok(new) => new,
            Err(Halt::Before(error)) => {
                if let Ok(serving) = self.state().serving(vdisk) {
                    serving.handing_over = false;
                    serving.frozen_in_vain = Some(boot_now());
                }
                tracing::warn!(%vdisk, to = %target.name, %error, "a hand-over didn't come about; serving on");
                let text = format!("to {}, served on here: {error}", target.name);
                self.events.of(Severity::Warn, "not-handed-over", vdisk, &text);
                return Err(error);
            }
            Err(Halt::Unknown(error)) => {
                tracing::warn!(%vdisk, to = %target.name, %error, "it isn't known whether the vDisk changed hands; opening it anew");
                let error = aborted(error);
                self.state().stop_serving(
                    vdisk,
                    Slot::Opening(Stage::Record),
                    &error,
                    Records::Release,
                );
                tokio::spawn(Arc::clone(self).open_loop(vdisk));
                return Err(error);
            }
        };
        let reason = format!("handed over to router {}", target.name);
        let location = self.location(&new).await.map(|location| wire::encode_to_bytes(&location));
        let error = WireError::new(ErrorClass::Redirect, code::NOT_OWNER, reason.clone())
            .with_detail(location.unwrap_or_default());
        self.state().stop_serving(vdisk, Slot::Elsewhere(reason), &error, Records::Release);
        // It looks for what is its own by itself every few seconds.
        if let Err(error) = self.ask_next(target, method::ADOPT, vdisk, ADOPT_PATIENCE).await {
            tracing::warn!(%vdisk, to = %target.name, %error, "the next owner doesn't answer; it will find its vDisk");
        }
        let pause = boot_now().since(start);
        tracing::info!(%vdisk, name = new.name, to = %target.name, ?pause, "handed over");
        let pause_ms = u32::try_from(pause.as_millis()).unwrap_or(u32::MAX);
        let text =
            format!("to {} at epoch {}; requests waited {pause_ms} ms", target.name, new.epoch);
        self.events.of(Severity::Info, "handed-over", vdisk, &text);
        Ok(Transferred { owner: to, epoch: new.epoch, pause_ms })
    }

    async fn ask_next(
        &self,
        target: &RouterRecord,
        method: u16,
        vdisk: VdiskId,
        patience: Duration,
    ) -> Result<(), WireError> {
        let mut trouble = "it has no address".to_owned();
        for address in &target.addresses {
            let Ok(endpoint) = address.parse::<Endpoint>() else { continue };
            let identity = Arc::clone(&self.identity);
            let client = Client::new(endpoint, Role::Router, identity, ClientOptions::default());
            match client.call::<_, ()>(method, &Adoption { vdisk }, Call::within(patience)).await {
                Ok(_) => return Ok(()),
                Err(CallError::Refused(error)) => return Err(error),
                Err(error) => trouble = error.to_string(),
            }
        }
        Err(aborted(format!("router {} can't be asked: {trouble}", target.name)))
    }

    /// Sends what is pending to the backend until little is left, while the vDisk is served.
    ///
    /// # Errors
    /// Why it stays with it, in the caller's words.
    pub(crate) async fn send_most(
        &self,
        vdisk: VdiskId,
        aborted: fn(&'static str) -> WireError,
    ) -> Result<(), WireError> {
        for _ in 0..ROUNDS_MAX {
            let (target, mut committed) = {
                let mut state = self.state();
                let serving = state.serving(vdisk)?;
                if serving.core.pending_bytes() <= LITTLE {
                    return Ok(());
                }
                serving.core.seal();
                serving.committer.notify_one();
                (serving.core.last_lsn(), serving.committed.subscribe())
            };
            let sent = committed.wait_for(|lsn| target <= *lsn);
            match tokio::time::timeout(DRAIN_PATIENCE, sent).await {
                Ok(Ok(_)) => {}
                Ok(Err(_)) => return Err(aborted("the vDisk is no longer served here")),
                Err(_) => return Err(aborted("the backend doesn't take what is pending")),
            }
        }
        // A writer as fast as the backend: the rest is sent while it waits.
        Ok(())
    }

    /// Requests wait. Sends the rest, until nothing of the vDisk lies anywhere but in the backend.
    ///
    /// # Errors
    /// When that takes too long, or the record isn't this owner's any more.
    pub(crate) async fn drained(
        &self,
        vdisk: VdiskId,
        frozen_max: Duration,
        aborted: fn(&'static str) -> WireError,
    ) -> Result<Drained, WireError> {
        let start = boot_now();
        let epoch = loop {
            {
                let mut state = self.state();
                let serving = state.serving(vdisk)?;
                if serving.is_idle() && serving.core.is_drained() {
                    break serving.core.epoch();
                }
                serving.core.seal();
                serving.committer.notify_one();
            }
            if frozen_max < boot_now().since(start) {
                return Err(aborted("what was pending didn't reach the backend in time"));
            }
            tokio::time::sleep(PAUSE).await;
        };
        let read = self.facts.vdisk(vdisk).await.map_err(|error| error.to_wire())?;
        let read = read.ok_or_else(|| WireError::refuse(code::NO_VDISK, "the vDisk is gone"))?;
        if read.value.owner != self.id || read.value.epoch != epoch || read.value.deleting {
            return Err(aborted("its record changed"));
        }
        let head = self.state().serving(vdisk)?.core.committed_lsn();
        Ok(Drained { read, head })
    }

    /// Requests wait. Sends the rest, and changes the record.
    async fn hand_over(
        &self,
        vdisk: VdiskId,
        target: &Read<RouterRecord>,
        frozen_max: Duration,
    ) -> Result<VdiskRecord, Halt> {
        let Drained { read, head } = self.drained(vdisk, frozen_max, aborted).await?;
        let epoch = read.value.epoch;
        let dtl = self.facts.dtl(vdisk).await.map_err(|error| error.to_wire())?;
        let next = epoch.next();
        let to = target.value.router;
        let new = VdiskRecord { owner: to, epoch: next, log_id: 0, ..read.value.clone() };
        let dtl = dtl.as_ref().map(|dtl| (dtl, dtl.value.drained(next, head)));
        let change = Change { vdisk: (&read, new.clone()), dtl };
        // Who took vDisks when it was asked may have been drained or taken out of service since.
        let takes = Transaction::new().assert_value(key::router(to), target.bytes.clone());
        match self.facts.change(change, takes).await {
            Ok(_) => Ok(new),
            Err(error) if error.is_conflict() => {
                Err(aborted("its record, or that of the next owner, changed").into())
            }
            Err(error) => Err(Halt::Unknown(error)),
        }
    }
}

/// A vDisk of which everything is in the backend, while nothing new is taken.
pub(crate) struct Drained {
    pub read: Read<VdiskRecord>,
    pub head: Lsn,
}

/// Why a hand-over stopped.
pub(crate) enum Halt {
    /// Nothing changed.
    Before(WireError),
    /// The record may have changed, or may still.
    Unknown(FactsError),
}

impl Halt {
    pub(crate) fn into_error(self) -> WireError {
        match self {
            Self::Before(error) => error,
            Self::Unknown(error) => error.to_wire(),
        }
    }
}

impl From<WireError> for Halt {
    fn from(error: WireError) -> Self {
        Self::Before(error)
    }
}
