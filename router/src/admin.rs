//! Creating, resizing, showing and syncing vDisks.
//!
//! Each operation is ordered so that a crash in the middle leaves nothing usable half made: a vDisk exists once its name and
//! record do (after its namespace).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use model::{ByteRange, CLUSTER_SIZE, Epoch, Lsn, VdiskId};
use router_core::checkpoint::Checkpoint;
use router_core::demand::Demand;
use runtime::clock::boot_now;
use runtime::random::jitter;
use wire::dtl::{DtlFacts, DtlMode, DtlState};
use wire::facts::VdiskRecord;
use wire::proxy::{CreateNamespace, DeleteNamespace, FillHoles, Health, method};
use wire::router::{
    CreateVdisk, ExtentKind, ResizeVdisk, SyncDone, VdiskInfo, VdiskNames, code, is_legal_name,
};
use wire::{ErrorClass, WireError};

use crate::backend::BackendError;
use crate::facts::Read;
use crate::router::Router;
use crate::state::protection::Protection;
use crate::state::{Slot, Stage};

pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(300);
/// Largest vDisk.
const SIZE_MAX: u64 = 1 << 50;
/// How long a sync waits when the caller set no deadline.
const SYNC_PATIENCE: Duration = Duration::from_secs(120);

fn invalid(message: impl Into<String>) -> WireError {
    WireError::refuse(code::INVALID, message)
}

pub(crate) fn from_backend(error: &BackendError) -> WireError {
    match error {
        BackendError::Refused(inner) => invalid(error_text(inner)),
        BackendError::Unavailable { .. } => WireError::retry(code::RECOVERING, error.to_string()),
    }
}

fn error_text(error: &WireError) -> String {
    format!("the backend refused: {error}")
}

fn check_size(size_bytes: u64) -> Result<(), WireError> {
    if size_bytes == 0 || !size_bytes.is_multiple_of(CLUSTER_SIZE) || SIZE_MAX < size_bytes {
        let message =
            format!("{size_bytes} bytes: a vDisk's size is a multiple of 4 KiB, at most 1 PiB");
        return Err(invalid(message));
    }
    Ok(())
}

impl Router {
    /// The vDisk of that name, if this router owns it.
    ///
    /// # Errors
    /// `NO_VDISK`, or `NOT_OWNER` with where to go.
    pub async fn owned_by_name(self: &Arc<Self>, name: &str) -> Result<VdiskId, WireError> {
        if let Some(vdisk) = self.served_by_name(name) {
            return Ok(vdisk);
        }
        let record = self.record_by_name(name).await?.value;
        if record.owner != self.id {
            let location = self.location(&record).await?;
            let message = format!("vDisk {name} is owned by router {}", location.owner.router);
            return Err(WireError::new(ErrorClass::Redirect, code::NOT_OWNER, message)
                .with_detail(wire::encode_to_bytes(&location)));
        }
        self.ensure_opening(record.vdisk);
        Ok(record.vdisk)
    }

    pub(crate) fn served_by_name(&self, name: &str) -> Option<VdiskId> {
        let state = self.state();
        state.volumes.iter().find_map(|(vdisk, slot)| match slot {
            Slot::Serving(serving) if serving.record.name == name => Some(*vdisk),
            Slot::Serving(_)
            | Slot::Opening(_)
            | Slot::Gap(_)
            | Slot::Fenced(_)
            | Slot::Elsewhere(_)
            | Slot::Deleting => None,
        })
    }

    pub(crate) async fn record_by_name(&self, name: &str) -> Result<Read<VdiskRecord>, WireError> {
        let found = self.facts.vdisk_by_name(name).await.map_err(|error| error.to_wire())?;
        found
            .ok_or_else(|| WireError::refuse(code::NO_VDISK, format!("there is no vDisk `{name}`")))
    }

    /// Begins to open a vDisk that isn't being opened or served yet.
    pub fn ensure_opening(self: &Arc<Self>, vdisk: VdiskId) {
        let mut state = self.state();
        let may_open = matches!(state.volumes.get(&vdisk), None | Some(Slot::Elsewhere(_)));
        if state.stopping || !may_open {
            return;
        }
        state.volumes.insert(vdisk, Slot::Opening(Stage::Record));
        drop(state);
        tokio::spawn(Arc::clone(self).open_loop(vdisk));
    }

    /// # Errors
    /// When arakoon can't say.
    pub async fn list(&self) -> Result<VdiskNames, WireError> {
        let records = self.facts.vdisks().await.map_err(|error| error.to_wire())?;
        let names = records.into_iter().map(|read| read.value).filter(|record| !record.deleting);
        let mut names: Vec<(String, u64)> =
            names.map(|record| (record.name, record.size_bytes)).collect();
        names.sort();
        Ok(VdiskNames { names })
    }

    /// # Errors
    /// When the name is taken or illegal, the vPool unknown, or a part can't be reached.
    pub async fn create(self: &Arc<Self>, create: &CreateVdisk) -> Result<VdiskInfo, WireError> {
        if !is_legal_name(&create.name) {
            let message = "a vDisk's name is 1 to 255 printable characters without spaces, quotes, / and @, and begins with neither - nor .";
            return Err(invalid(message));
        }
        check_size(create.size_bytes)?;
        self.takes_new()?;
        let exists = || {
            WireError::refuse(code::EXISTS, format!("there is a vDisk `{}` already", create.name))
        };
        let taken = self.facts.vdisk_id(&create.name).await.map_err(|error| error.to_wire())?;
        if taken.is_some() {
            return Err(exists());
        }
        let vpool = self.facts.vpool(&create.vpool).await.map_err(|error| error.to_wire())?;
        let vpool =
            vpool.ok_or_else(|| invalid(format!("there is no vPool `{}`", create.vpool)))?;
        let vdisk = VdiskId(runtime::random::u128());
        let namespace = CreateNamespace { namespace: vdisk.into(), preset: vpool.preset };
        self.backend
            .call::<_, ()>(method::CREATE_NAMESPACE, &namespace, Bytes::new(), PATIENCE)
            .await
            .map_err(|error| from_backend(&error))?;
        let record = VdiskRecord {
            vdisk,
            name: create.name.clone(),
            size_bytes: create.size_bytes,
            vpool: create.vpool.clone(),
            owner: self.id,
            epoch: Epoch::ZERO,
            log_id: 0,
            deleting: false,
        };
        let dtl = match create.dtl {
            Some(mode) => mode,
            None => self.facts.vpool_dtl(&create.vpool).await.map_err(|error| error.to_wire())?,
        };
        self.takes_new()?;
        if let Err(error) = self.facts.create_vdisk(&record, dtl).await {
            // The outcome may be unknown: what the name says now decides.
            let found = self.facts.vdisk_id(&create.name).await.map_err(|error| error.to_wire())?;
            if found != Some(vdisk) {
                let delete = DeleteNamespace { namespace: vdisk.into(), epoch: Epoch::ZERO };
                let _ = self
                    .backend
                    .call::<_, ()>(method::DELETE_NAMESPACE, &delete, Bytes::new(), PATIENCE)
                    .await;
                return Err(if found.is_some() { exists() } else { error.to_wire() });
            }
        }
        tracing::info!(name = record.name, %vdisk, size = record.size_bytes, "vDisk created");
        self.ensure_opening(vdisk);
        self.wait_served(vdisk).await?;
        self.show(vdisk)
    }

    /// A router that is being emptied gets nothing new; others may take it.
    fn takes_new(&self) -> Result<(), WireError> {
        if self.state().draining {
            let message =
                "the router takes no vDisks: it is draining or offline; see `router resume`";
            return Err(WireError::retry(code::RECOVERING, message));
        }
        Ok(())
    }

    /// Waits while a vDisk is being opened.
    pub(crate) async fn wait_served(&self, vdisk: VdiskId) -> Result<(), WireError> {
        let start = boot_now();
        loop {
            let error = match self.state().serving(vdisk) {
                Ok(_) => return Ok(()),
                Err(error) => error,
            };
            let may_pass = error.class == ErrorClass::Retry && error.code != code::NO_ROOM;
            if !may_pass || PATIENCE < boot_now().since(start) {
                return Err(error);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// # Errors
    /// When the size is illegal, smaller than what is mapped, or smaller without `force`.
    pub async fn resize(
        self: &Arc<Self>,
        vdisk: VdiskId,
        resize: &ResizeVdisk,
    ) -> Result<VdiskInfo, WireError> {
        check_size(resize.size_bytes)?;
        self.all_replayed(vdisk)?;
        let old = self.state().serving(vdisk)?.core.size_bytes;
        if resize.size_bytes < old {
            if !resize.force {
                return Err(invalid(format!(
                    "shrinking from {old} to {} bytes needs --force",
                    resize.size_bytes
                )));
            }
            self.check_unmapped(vdisk, resize.size_bytes, old).await?;
        }
        let read = self.facts.vdisk(vdisk).await.map_err(|error| error.to_wire())?;
        let read =
            read.ok_or_else(|| WireError::refuse(code::NO_VDISK, "the vDisk was deleted"))?;
        let epoch = self.state().serving(vdisk)?.core.epoch();
        if read.value.epoch != epoch {
            return Err(WireError::retry(code::RECOVERING, "the owner changed; try again"));
        }
        let new = VdiskRecord { size_bytes: resize.size_bytes, ..read.value.clone() };
        let changed =
            self.facts.change_vdisk(&read, &new).await.map_err(|error| error.to_wire())?;
        {
            let mut state = self.state();
            let serving = state.serving(vdisk)?;
            serving.core.seal();
            serving.committer.notify_one();
            serving.core.size_bytes = resize.size_bytes;
            serving.record = changed.value;
        }
        self.show(vdisk)
    }

    /// P6: what an edge hasn't replayed yet was acknowledged all the same.
    fn all_replayed(&self, vdisk: VdiskId) -> Result<(), WireError> {
        if self.state().serving(vdisk)?.awaiting.is_empty() {
            return Ok(());
        }
        Err(WireError::retry(code::RECOVERING, "waiting for attached edges to replay"))
    }

    async fn check_unmapped(&self, vdisk: VdiskId, from: u64, to: u64) -> Result<(), WireError> {
        let mut at = from;
        while at < to {
            let range = ByteRange::new(at, to - at).ok_or_else(|| invalid("sizes overflow"))?;
            let status = self.block_status(vdisk, range, 64).await?;
            for extent in status.extents {
                if extent.kind == ExtentKind::Data {
                    return Err(invalid(format!(
                        "there is data at byte {at}, beyond the new size; trim it first"
                    )));
                }
                at += extent.len;
            }
        }
        Ok(())
    }

    /// # Errors
    /// When the vDisk isn't served here.
    pub fn show(&self, vdisk: VdiskId) -> Result<VdiskInfo, WireError> {
        let map = self.maps.state(vdisk).unwrap_or_default();
        let mut state = self.state();
        let synced = state.log.synced();
        let serving = state.serving(vdisk)?;
        let core = &serving.core;
        let flushed =
            if serving.last_end <= synced { core.last_lsn() } else { core.committed_lsn() };
        let attachments: Vec<String> = serving
            .attachments
            .live
            .iter()
            .map(|live| {
                let connected = serving.sessions.get(&live.generation).is_some_and(|s| s.is_connected());
                let mode = format!("{:?}", live.mode).to_lowercase();
                format!(
                    r#"{{"edge":"{}","name":"{}","generation":{},"mode":"{mode}","connected":{connected}}}"#,
                    live.edge,
                    json_text(&live.edge_name),
                    live.generation
                )
            })
            .collect();
        let state_name = match (&serving.degraded, serving.awaiting.is_empty()) {
            (_, false) => "awaiting-replay",
            (Some(_), true) => "degraded",
            (None, true) => "serving",
        };
        let backend = serving.degraded.as_ref().map_or_else(
            || r#""ok""#.to_owned(),
            |reason| format!(r#""degraded","backend_problem":"{}""#, json_text(reason)),
        );
        let details_json = format!(
            concat!(
                r#"{{"state":"{}","head_lsn":{},"last_lsn":{},"flushed_lsn":{},"committed_lsn":{},"#,
                r#""pending_bytes":{},"log_pinned_bytes":{},"attachments":[{}],"objects":{},"backend":{},"#,
                r#""dtl":{},"map_followed":{},"demand":{},"#,
                r#""mapped_bytes":{},"map_digest":"{:016x}","units":{},"checkpoint":{}}}"#
            ),
            state_name,
            map.last_lsn,
            core.last_lsn(),
            flushed,
            core.committed_lsn(),
            core.pending_bytes(),
            core.log_bytes(),
            attachments.join(","),
            serving.objects,
            backend,
            serving.protection.as_ref().map_or_else(|| r#"{"mode":"none"}"#.to_owned(), dtl_json),
            serving.map_followed,
            demand_json(&serving.demand, self.config.damping),
            map.totals.mapped * CLUSTER_SIZE,
            map.totals.digest,
            core.units(),
            checkpoint_json(serving.checkpoints.newest()),
        );
        Ok(VdiskInfo {
            vdisk,
            name: serving.record.name.clone(),
            size_bytes: core.size_bytes,
            vpool: serving.record.vpool.clone(),
            owner: self.id,
            owner_name: self.config.name.clone(),
            epoch: core.epoch(),
            details_json,
        })
    }

    /// Returns when everything accepted so far is in the backend and no holes are left.
    ///
    /// # Errors
    /// When that doesn't happen within `patience`; the message says what is missing.
    pub async fn sync(
        &self,
        vdisk: VdiskId,
        patience: Option<Duration>,
    ) -> Result<SyncDone, WireError> {
        self.all_replayed(vdisk)?;
        let patience = patience.unwrap_or(SYNC_PATIENCE);
        let start = boot_now();
        let left = || patience.saturating_sub(boot_now().since(start));
        let (target, mut committed) = {
            let mut state = self.state();
            let serving = state.serving(vdisk)?;
            serving.core.seal();
            serving.committer.notify_one();
            (serving.core.last_lsn(), serving.committed.subscribe())
        };
        let wait = async { committed.wait_for(|lsn: &Lsn| target <= *lsn).await.is_ok() };
        match tokio::time::timeout(left(), wait).await {
            Ok(true) => {}
            Ok(false) => {
                return Err(WireError::retry(
                    code::RECOVERING,
                    "the vDisk is no longer served here",
                ));
            }
            Err(_) => {
                let mut state = self.state();
                let serving = state.serving(vdisk)?;
                let reason = serving.degraded.clone().unwrap_or_else(|| "no time left".to_owned());
                let message = format!(
                    "LSNs {} to {target} aren't in the backend yet: {reason}",
                    serving.core.committed_lsn().next()
                );
                return Err(WireError::retry(code::RECOVERING, message));
            }
        }
        loop {
            let ask = FillHoles { namespace: vdisk.into() };
            let round = left().max(Duration::from_millis(500));
            let health =
                self.backend.call::<_, Health>(method::FILL_HOLES, &ask, Bytes::new(), round).await;
            let (health, _) = health.map_err(|error| from_backend(&error))?;
            if health.holes == 0 {
                return Ok(SyncDone { lsn: target, objects: health.objects });
            }
            if left().is_zero() {
                let message = format!(
                    "all is in the backend, but {} fragments are still to be stored",
                    health.holes
                );
                return Err(WireError::retry(code::RECOVERING, message));
            }
            tokio::time::sleep(jitter(PAUSE).min(left())).await;
        }
    }
}

/// The second copy of a vDisk's log, as arakoon has it and as its targets answered last.
fn dtl_json(protection: &Protection) -> String {
    let facts = protection.owner.facts();
    let targets: Vec<String> = protection
        .owner
        .targets()
        .into_iter()
        .map(|(router, written, synced, problem)| {
            let problem = json_text(&problem.unwrap_or_default());
            format!(
                r#"{{"router":"{router}","written_lsn":{written},"synced_lsn":{synced},"problem":"{problem}"}}"#
            )
        })
        .collect();
    let state = match facts.state {
        DtlState::Standalone => "standalone",
        DtlState::CatchingUp => "catching-up",
        DtlState::InSync => "in-sync",
        DtlState::Degraded => "degraded",
    };
    let mode = match protection.mode {
        DtlMode::Sync => "sync",
        DtlMode::Async => "async",
        DtlMode::NoTarget => "none",
    };
    let DtlFacts { generation, floor, .. } = facts;
    let wish = protection.owner.wish().map_or_else(|| "null".to_owned(), |wish| wish.to_string());
    format!(
        r#"{{"mode":"{mode}","dtl_state":"{state}","generation":{generation},"floor_lsn":{floor},"wanted_targets":{wish},"targets":[{}]}}"#,
        targets.join(",")
    )
}

/// What is asked of it, damped.
fn demand_json(demand: &Demand, damping: Duration) -> String {
    let rate = demand.rate();
    let (whole, part) = (rate.millirequests / 1000, rate.millirequests % 1000);
    let (bytes, load, known) = (rate.bytes, rate.load(), demand.is_known(damping));
    format!(
        r#"{{"requests_per_s":{whole}.{part:03},"bytes_per_s":{bytes},"load":{load},"load_known":{known}}}"#
    )
}

fn checkpoint_json(newest: Option<&Checkpoint>) -> String {
    let Some(newest) = newest else { return "null".to_owned() };
    let (number, lsn, objects) = (newest.map.number, newest.last_lsn, newest.lens.len());
    format!(r#"{{"sco":{number},"lsn":{lsn},"objects":{objects}}}"#)
}

/// Text inside a JSON string.
#[must_use]
pub fn json_text(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            c if u32::from(c) < 0x20 => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out
}
