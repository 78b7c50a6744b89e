//! Opening a vDisk is claiming it (P10), always in the order of P18: claim the next epoch in arakoon, raise the
//! namespace's epoch, *then* read the head, recover, serve. Each step may be repeated.
//!
//! Recovery joins three things: the backend's head (with the applied sequences of its TLog), the page map (behind by some
//! TLogs, or rebuilt from all of them), and this router's own log. What doesn't join is a gap, and the vDisk isn't served
//! (L7).

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use arakoon_client::Transaction;
use bytes::Bytes;
use model::{ByteSize, Epoch, LogId, Lsn, ObjectId, VdiskId};
use router_core::applied::{AppliedMap, AppliedSet};
use router_core::checkpoint::Course;
use router_core::dtl::takeover;
use router_core::log::record::Op;
use router_core::log::{Found, Placement};
use router_core::recover::{self, Gap};
use router_core::tlog::{Meta, Tlog, TlogError};
use router_core::volume::{Change, HeadState, Replayed, Stamp, Volume};
use runtime::panics::{Panicked, contain};
use runtime::random::jitter;
use tokio::time::timeout;
use wire::WireError;
use wire::common::Severity;
use wire::dtl::DtlMode;
use wire::facts::{AttachmentMode, DtlRecord, VdiskRecord};
use wire::proxy::{Head, RaiseEpoch, ReadDone, ReadHead, ReadObject, code as proxy_code, method};
use wire::router::UnmapKind;

use crate::backend::BackendError;
use crate::dtl::peers::ReadError;
use crate::facts::{Change as RecordChange, FactsError, Read};
use crate::fetch::Search;
use crate::follow::Asker;
use crate::log_disk::LogDiskError;
use crate::map_store::{MapError, MapState};
use crate::protect::{Claim, opening_of};
use crate::router::Router;
use crate::state::{Serving, Slot, Stage};

const PATIENCE: Duration = Duration::from_secs(15);
const PAUSE: Duration = Duration::from_secs(1);
/// An opening that takes longer says what it waits for.
const LONG: Duration = Duration::from_secs(10);
/// Between two looks for what is missing.
const MISSING_PAUSE: Duration = Duration::from_secs(5);
/// Default SCO size, if the vPool doesn't say.
const SCO_DEFAULT: u64 = 4 << 20;

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Facts(#[from] FactsError),
    #[error(transparent)]
    Backend(#[from] BackendError),
    #[error(transparent)]
    Map(#[from] MapError),
    #[error(transparent)]
    Log(#[from] LogDiskError),
    #[error("object {object}: {cause}")]
    Tlog { object: ObjectId, cause: TlogError },
    #[error("the chain of TLogs is broken at object {object}: {problem}")]
    Chain { object: ObjectId, problem: String },
    #[error("{0}")]
    Gap(#[from] Gap),
    #[error("{0}")]
    Missing(#[from] takeover::Gap),
    #[error(transparent)]
    Dtl(#[from] ReadError),
    #[error("a record of the DTL is no change of a vDisk")]
    StrangeRecord,
    #[error("{} must be recovered, and {why}", ByteSize(*.needed))]
    NoRoom { epoch: Epoch, needed: u64, why: String },
    #[error("the router has no session in arakoon")]
    NoLease,
    #[error("a later claim sealed its DTL")]
    LaterClaim,
    #[error("the vDisk belongs to another router")]
    NotOwner,
    #[error("the vDisk is being deleted")]
    Deleting,
    #[error("its page map is just being brought up to date")]
    Following,
    #[error("an opening of the vDisk wants its page map")]
    Wanted,
    #[error("the router is stopping")]
    Stopping,
    #[error("a task of recovery failed: {0}")]
    Task(#[from] tokio::task::JoinError),
    /// A mistake of this program, or something that it can't imagine: what is stored stays as it is.
    #[error("recovery doesn't go through: {0}; please report it with the log of this router")]
    Panicked(#[from] Panicked),
}

impl OpenError {
    /// Whether the stored map is to blame, so that an empty one would do better.
    pub(crate) fn is_of_the_map(&self, stored: &MapState) -> bool {
        match self {
            Self::Chain { .. } => stored.object.is_some(),
            Self::Map(error) => error.is_damage(),
            Self::Facts(_)
            | Self::Backend(_)
            | Self::Log(_)
            | Self::Tlog { .. }
            | Self::Gap(_)
            | Self::Missing(_)
            | Self::NotOwner
            | Self::Dtl(_)
            | Self::StrangeRecord
            | Self::NoRoom { .. }
            | Self::NoLease
            | Self::LaterClaim
            | Self::Deleting
            | Self::Following
            | Self::Wanted
            | Self::Stopping
            | Self::Task(_)
            | Self::Panicked(_) => false,
        }
    }
}

/// (last LSN, object, meta) of a namespace's last object.
pub(crate) type BackendHead = (Lsn, Option<ObjectId>, Option<Meta>);

enum Verdict {
    Again(String),
    /// A gap that a DTL target may fill when it comes back (L7).
    Missing(String),
    /// The write log is too full for it. Another router may have room, and takes it then (P19).
    NoRoom {
        epoch: Epoch,
        needed: u64,
        reason: String,
    },
    End(Slot),
}

impl Router {
    /// Opens a vDisk and serves it; tries again while that could help.
    pub async fn open_loop(self: Arc<Self>, vdisk: VdiskId) {
        loop {
            let verdict = match self.open_patiently(vdisk).await {
                Ok(epoch) => {
                    tokio::spawn(Arc::clone(&self).commit_loop(vdisk, epoch));
                    tokio::spawn(Arc::clone(&self).dtl_loop(vdisk, epoch));
                    self.wake_append();
                    return;
                }
                Err(OpenError::Deleting) => {
                    self.state().volumes.insert(vdisk, Slot::Deleting);
                    tokio::spawn(Arc::clone(&self).finish_delete(vdisk));
                    return;
                }
                Err(error) => {
                    if let OpenError::Gap(gap) = &error {
                        self.state().gaps.entry(vdisk).or_default().log = Some(gap.clone());
                    }
                    judge(&error)
                }
            };
            match verdict {
                Verdict::End(slot) => {
                    if matches!(slot, Slot::Elsewhere(_)) {
                        // Its owner needs nothing of this log.
                        self.state().release_unclaimed(vdisk);
                    }
                    self.leave(vdisk, slot);
                    return;
                }
                Verdict::Missing(reason) => {
                    self.leave(vdisk, Slot::Gap(reason));
                    tokio::select! {
                        () = self.stop.wait() => return,
                        () = tokio::time::sleep(jitter(MISSING_PAUSE)) => {}
                    }
                    if !matches!(self.state().volumes.get(&vdisk), Some(Slot::Gap(_))) {
                        return;
                    }
                }
                Verdict::NoRoom { epoch, needed, reason } => {
                    tracing::warn!(%vdisk, %epoch, reason, "the vDisk can't be opened here; another router may take it");
                    let text = format!("{reason}; another router may take it");
                    self.events.of(Severity::Warn, "not-opened", vdisk, &text);
                    let stage = Stage::NoRoom { epoch, needed };
                    self.at(vdisk, stage);
                    self.until_room(vdisk, needed).await;
                    if self.stop.is_triggered() || self.state().opening(vdisk) != Some(stage) {
                        return;
                    }
                }
                Verdict::Again(reason) => {
                    tracing::warn!(%vdisk, reason, "can't open the vDisk yet");
                    self.at(vdisk, Stage::Again);
                    self.events.of(Severity::Warn, "not-opened", vdisk, &reason);
                    tokio::select! {
                        () = self.stop.wait() => return,
                        () = tokio::time::sleep(jitter(PAUSE)) => {}
                    }
                }
            }
        }
    }

    /// Opens it, and says what it waits for where that takes long (L9).
    async fn open_patiently(self: &Arc<Self>, vdisk: VdiskId) -> Result<Epoch, OpenError> {
        // A vDisk that can't be recovered takes no other along.
        let mut opened = pin!(contain(self.open(vdisk)));
        loop {
            let Ok(opened) = timeout(LONG, &mut opened).await else {
                let stage = self.state().opening(vdisk);
                let text = stage.map_or_else(|| "recovery".to_owned(), |at| at.to_string());
                tracing::warn!(%vdisk, waits = text, "opening takes long");
                self.events.of(Severity::Warn, "not-opened", vdisk, &format!("not yet: {text}"));
                continue;
            };
            self.check_shared();
            return opened?;
        }
    }

    pub(crate) fn at(&self, vdisk: VdiskId, stage: Stage) {
        self.state().opens(vdisk, stage);
    }

    async fn open(self: &Arc<Self>, vdisk: VdiskId) -> Result<Epoch, OpenError> {
        self.at(vdisk, Stage::Record);
        let read = self.facts.vdisk(vdisk).await?.ok_or(OpenError::NotOwner)?;
        if read.value.owner != self.id {
            return Err(OpenError::NotOwner);
        }
        if read.value.deleting {
            return Err(OpenError::Deleting);
        }
        self.at(vdisk, Stage::MapFree);
        self.until_map_is_free(vdisk).await?;
        self.at(vdisk, Stage::Claim);
        let record = self.facts.dtl_record(vdisk).await?;
        let dtl = record.as_ref().filter(|read| read.value.mode != DtlMode::NoTarget);
        let promised = LogId(read.value.log_id);
        let own = self.disk.id;
        if promised != LogId::ZERO && promised != own {
            // Checked before the claim, so that the record keeps saying which log is missed (L7).
            let head = self.head(vdisk).await.map_or(Lsn::ZERO, |head| head.0);
            return Err(Gap::LogGone { promised: promised.0, own: own.0, head }.into());
        }
        let mut search = Search::new(Asker::Owner);
        let (claimed, claim, (head_lsn, head, head_meta), ahead) = match dtl {
            None => {
                let claimed = self.claim(&read, record.as_ref()).await?;
                let head = self.raise(vdisk, claimed.value.epoch).await?;
                (claimed, None, head, 0)
            }
            Some(dtl) => {
                let (claimed, mut claim) = self.claim_protected(&read, dtl).await?;
                // The targets wait until the former owner's right to read is over (P16). The map needn't.
                let (head, ahead) = tokio::join!(
                    self.fence(vdisk, claimed.value.epoch, &mut claim),
                    self.bring_map_ahead(vdisk, &mut search)
                );
                (claimed, Some(claim), head?, ahead)
            }
        };
        let epoch = claimed.value.epoch;
        self.at(vdisk, Stage::Map);
        let followed = ahead + self.bring_map(vdisk, head, &mut search).await?;
        self.at(vdisk, Stage::Recovery);
        let objects = head.map_or(0, |head| head.number.0);
        let head_state = self.head_state(head, head_lsn, head_meta.as_ref()).await?;
        let unit_clusters = self.unit_clusters(&claimed.value).await?;
        let (attachments, _) = self.facts.attachments(vdisk).await?;
        let opening = opening_of(&claimed.value, unit_clusters, head_state.clone());
        // From here on nothing but recovery may fail: it takes the vDisk's part of the log's scan.
        let (core, protection) = match claim {
            None => {
                let mut core = Volume::open(opening);
                let log = (promised, log_from(record.as_ref(), promised));
                let kept = self.load(&mut core, &head_state, log).await?;
                self.take_part(vdisk, &kept);
                (core, None)
            }
            Some(claim) => {
                let (core, protection) = self.recover_protected(opening, claim).await?;
                (core, Some(protection))
            }
        };
        let mut serving = Serving::new(core, claimed.value, attachments, objects);
        serving.map_followed = followed;
        serving.checkpoints = Course::new(self.config.map_checkpoint_every, head);
        serving.protection = protection;
        self.begin(serving)?;
        Ok(epoch)
    }

    /// Steps two to four of P18: the targets, the namespace, and only then its head.
    async fn fence(
        &self,
        vdisk: VdiskId,
        epoch: Epoch,
        claim: &mut Claim,
    ) -> Result<BackendHead, OpenError> {
        self.at(vdisk, Stage::Seal);
        self.seal(vdisk, epoch, claim).await?;
        self.raise(vdisk, epoch).await
    }

    /// Fences former owners in the namespace, and says where it ends then.
    async fn raise(&self, vdisk: VdiskId, epoch: Epoch) -> Result<BackendHead, OpenError> {
        self.at(vdisk, Stage::Raise);
        let raise = RaiseEpoch { namespace: vdisk.into(), epoch };
        self.backend.call::<_, ()>(method::RAISE_EPOCH, &raise, Bytes::new(), PATIENCE).await?;
        self.at(vdisk, Stage::Head);
        self.head(vdisk).await
    }

    /// Serves from now on, once the edges have replayed.
    fn begin(&self, mut serving: Serving) -> Result<(), OpenError> {
        let live: BTreeSet<_> = serving.attachments.live.iter().map(|l| l.generation).collect();
        serving.core.applied_mut().retain(|generation| live.contains(&generation));
        // One that shares the vDisk replays nothing that anybody was shown or told (P5).
        let writers =
            serving.attachments.live.iter().filter(|live| live.mode == AttachmentMode::Exclusive);
        serving.awaiting = writers.map(|live| live.generation).collect();
        serving.note_sharing();
        let (vdisk, epoch) = (serving.core.vdisk(), serving.core.epoch());
        let (last, committed) = (serving.core.last_lsn(), serving.core.committed_lsn());
        let mut state = self.state();
        if matches!(state.volumes.get(&vdisk), Some(Slot::Deleting)) {
            return Err(OpenError::Deleting);
        }
        // The session ends with the stop, and with it the right to read.
        if state.stopping {
            return Err(OpenError::Stopping);
        }
        tracing::info!(%vdisk, name = serving.record.name, %epoch, %committed, %last, "serving");
        state.begin_serving(serving);
        drop(state);
        let text = format!("from epoch {epoch} on, LSN {last}; in the backend through {committed}");
        self.events.of(Severity::Info, "serving", vdisk, &text);
        self.checkpoints.notify_one();
        Ok(())
    }

    /// Of a vDisk without a DTL. The record of one that it had says from where on the log counts (P10).
    async fn claim(
        &self,
        read: &Read<VdiskRecord>,
        former: Option<&Read<DtlRecord>>,
    ) -> Result<Read<VdiskRecord>, FactsError> {
        let log_id = self.disk.id.0;
        let epoch = read.value.epoch.next();
        let new = VdiskRecord { epoch, log_id, ..read.value.clone() };
        let dtl = former.map(|former| {
            let log_from = if read.value.log_id == log_id {
                log_from(Some(former), self.disk.id)
            } else {
                self.state().log.written()
            };
            (former, DtlRecord { epoch, log_id, log_from, ..former.value.clone() })
        });
        self.facts.change(RecordChange { vdisk: (read, new), dtl }, Transaction::new()).await
    }

    async fn unit_clusters(&self, record: &VdiskRecord) -> Result<u32, FactsError> {
        let size = match self.config.sco_size {
            Some(size) => size,
            None => {
                self.facts.vpool(&record.vpool).await?.map_or(SCO_DEFAULT, |vpool| vpool.sco_bytes)
            }
        };
        let clusters =
            size.clamp(crate::config::SCO_MIN, crate::config::SCO_MAX) / model::CLUSTER_SIZE;
        Ok(u32::try_from(clusters).expect("clamped to 64 MiB"))
    }

    /// The namespace's head.
    pub(crate) async fn head(&self, vdisk: VdiskId) -> Result<BackendHead, OpenError> {
        let ask = ReadHead { namespace: vdisk.into() };
        let (head, _) =
            self.backend.call::<_, Head>(method::READ_HEAD, &ask, Bytes::new(), PATIENCE).await?;
        let Some(object) = head.head else { return Ok((Lsn::ZERO, None, None)) };
        let meta = Meta::decode(head.meta).map_err(|cause| OpenError::Tlog { object, cause })?;
        Ok((meta.last_lsn, Some(object), Some(meta)))
    }

    pub(crate) async fn head_state(
        &self,
        head: Option<ObjectId>,
        last_lsn: Lsn,
        meta: Option<&Meta>,
    ) -> Result<HeadState, OpenError> {
        let (Some(object), Some(meta)) = (head, meta) else { return Ok(HeadState::default()) };
        let tlog = self.read_tlog(object, meta).await?;
        let mut applied = AppliedMap::default();
        for (generation, sequences) in &tlog.applied {
            applied.set(*generation, AppliedSet::from_wire(sequences));
        }
        let epochs = tlog.epochs.iter().copied().collect();
        Ok(HeadState { object: Some(object), last_lsn, applied, epochs })
    }

    pub(crate) async fn read_tlog(&self, object: ObjectId, meta: &Meta) -> Result<Tlog, OpenError> {
        let ranges = vec![(meta.tlog_offset, meta.tlog_len)];
        let ask = ReadObject { namespace: object.vdisk.into(), object, ranges };
        let (_, payload) = self
            .backend
            .call::<_, ReadDone>(method::READ_OBJECT, &ask, Bytes::new(), PATIENCE)
            .await?;
        Tlog::decode(&payload).map_err(|cause| OpenError::Tlog { object, cause })
    }

    /// Replays what the log, from this position on, has of a vDisk beyond the head; says at which positions it lies. The scan keeps it.
    pub(crate) async fn load(
        &self,
        core: &mut Volume,
        head: &HeadState,
        (promised_log, log_from): (LogId, u64),
    ) -> Result<BTreeMap<u64, ()>, OpenError> {
        let vdisk = core.vdisk();
        let accepted = self.accepted(vdisk).await?;
        let (plan, found) = {
            let state = self.state();
            let facts = recover::Facts {
                vdisk,
                head_lsn: head.last_lsn,
                epochs: &head.epochs,
                promised_log,
                log_from,
                own_log: self.disk.id,
                accepted: &accepted,
            };
            let plan = recover::plan(&facts, &state.scan)?;
            let found: Vec<Found> =
                plan.records.iter().map(|index| state.scan.records[*index].clone()).collect();
            (plan, found)
        };
        let mut kept: BTreeMap<u64, ()> = BTreeMap::new();
        for found in found {
            let disk = Arc::clone(&self.disk);
            let record = found.record;
            let (file, offset, len) = (found.file, found.payload_offset, record.payload_len);
            let data = tokio::task::spawn_blocking(move || disk.read(file, offset, len)).await??;
            if !record.payload_is_intact(&data) {
                let (from, to) = (record.position, record.end());
                return Err(Gap::Damaged { from, to, last: core.last_lsn() }.into());
            }
            kept.insert(record.position, ());
            let placement =
                Placement { lap: record.lap, bytes: record.len() as u64, end: record.end() };
            let stamp = Stamp { generation: record.generation, seq: record.seq, last: record.last };
            let (lsn, epoch) = (record.lsn, record.epoch);
            let range =
                model::ClusterRange::new(record.cluster, record.count).ok_or(Gap::Damaged {
                    from: record.position,
                    to: record.end(),
                    last: core.last_lsn(),
                })?;
            let change = match record.op {
                Op::Write => Change::Write {
                    cluster: record.cluster,
                    data,
                    checksums: record.checksums.clone(),
                },
                Op::Trim => Change::Unmap { range, kind: UnmapKind::Trim },
                Op::Zero => Change::Unmap { range, kind: UnmapKind::Zero },
                Op::Start | Op::List => continue,
            };
            core.replay(Replayed { lsn, epoch, change, stamp, placement });
        }
        tracing::debug!(%vdisk, replayed = plan.records.len(), "log replayed");
        Ok(kept)
    }

    /// The vDisk has taken `kept` of the scan. The rest of its records is in the backend, or never counted: its space is
    /// free.
    pub(crate) fn take_part(&self, vdisk: VdiskId, kept: &BTreeMap<u64, ()>) {
        let mut state = self.state();
        for found in state.unclaimed.remove(&vdisk).unwrap_or_default() {
            if !kept.contains_key(&found.record.position) {
                state.log.release(found.record.lap, found.record.len() as u64);
            }
        }
        if state.unclaimed.is_empty() {
            // Everybody took their part: the scan isn't needed any more, only its damages are.
            state.scan.records = Vec::new();
        }
    }
}

/// From where on this log counts, of a vDisk without a DTL.
fn log_from(former: Option<&Read<DtlRecord>>, log: LogId) -> u64 {
    former.filter(|read| read.value.log_id == log.0).map_or(0, |read| read.value.log_from)
}

fn judge(error: &OpenError) -> Verdict {
    match error {
        OpenError::Gap(gap) => Verdict::End(Slot::Gap(gap.to_string())),
        OpenError::Missing(gap) => Verdict::Missing(gap.to_string()),
        // Not tried again by this process: what the try had placed in the log stays pinned, and each would pin more (L8).
        OpenError::Panicked(_) => Verdict::End(Slot::Gap(error.to_string())),
        OpenError::NoRoom { epoch, needed, .. } => {
            Verdict::NoRoom { epoch: *epoch, needed: *needed, reason: error.to_string() }
        }
        OpenError::NotOwner => Verdict::End(Slot::Elsewhere(error.to_string())),
        OpenError::Backend(BackendError::Refused(WireError { code, .. }))
            if *code == proxy_code::FENCED =>
        {
            // A later claim of ours or another's raised it; the record says whose it is.
            Verdict::Again(error.to_string())
        }
        OpenError::Backend(BackendError::Refused(WireError { code, .. }))
            if *code == proxy_code::NO_NAMESPACE =>
        {
            Verdict::End(Slot::Gap("the vDisk's namespace doesn't exist in the backend".to_owned()))
        }
        OpenError::Facts(_)
        | OpenError::Backend(_)
        | OpenError::Map(_)
        | OpenError::Log(_)
        | OpenError::Tlog { .. }
        | OpenError::Chain { .. }
        | OpenError::Dtl(_)
        | OpenError::StrangeRecord
        | OpenError::NoLease
        | OpenError::LaterClaim
        | OpenError::Deleting
        | OpenError::Following
        | OpenError::Wanted
        | OpenError::Stopping
        | OpenError::Task(_) => Verdict::Again(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn l8_what_fails_an_assertion_isnt_served_and_isnt_tried_again_by_itself() {
        let error = OpenError::from(Panicked("2 isn't 1".to_owned()));
        let verdict = judge(&error);
        assert!(matches!(verdict, Verdict::End(Slot::Gap(why)) if why.contains("2 isn't 1")));
    }
}
