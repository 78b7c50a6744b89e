//! Page maps to the backend, in the background: few at a time, one part in memory each, at a pace that leaves room for
//! everything else. What lies there and what may go, `router_core::checkpoint` says.
//!
//! ```text
//!  raise the namespace's epoch ▸ list ▸ delete what is nobody's ▸ (due) make it ▸ head ▸ put, put, … last ▸ delete the old
//! ```
//! The first look in an owner's life ends before that: how overdue each vDisk is, is known once all were looked at.
//!
//! Every message may be the last one of this life: what it leaves, the next owner finds and deletes at its first look,
//! which comes soon after it opened the vDisk.
//!
//! Invariant: no request and no commit waits for any of this; whoever is fenced changes nothing (L4, P18).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use model::{Epoch, ObjectId, VdiskId};
use router_core::checkpoint::{self, Checkpoint, Course, Listed, PartMeta};
use router_core::map_stream::{CHECKPOINT, Part};
use router_core::tlog::Meta;
use runtime::clock::boot_now;
use runtime::random::jitter;
use tokio::task::JoinSet;
use wire::proxy::{
    CreateBeside, DeleteObjects, Head, ListObjects, Objects, PutDone, PutObject, RaiseEpoch,
    ReadHead, code as proxy_code, method,
};
use wire::{Decode, Encode};

use crate::backend::BackendError;
use crate::map_store::MapError;
use crate::router::Router;
use crate::state::Slot;

/// Checkpoints written by this router at the same time.
const AT_ONCE: usize = 2;
/// Between two looks which are due, when nobody says that one is.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// Behind each part: at most 40 MB/s for each of the two.
const PART_PAUSE: Duration = Duration::from_millis(100);
const PATIENCE: Duration = Duration::from_secs(60);
// However long a part takes to put, the map that is read out waits for it.
const _: () = assert!(PATIENCE.as_secs() + PART_PAUSE.as_secs() + 10 < CHECKPOINT.idle.as_secs());
const LIST_LIMIT: u32 = 256;
/// Objects deleted by one message.
const DELETED_AT_ONCE: usize = 64;
/// Read as a whole or not at all.
const FRAME: u32 = 64 << 10;

#[derive(Debug, thiserror::Error)]
enum CheckpointError {
    #[error(transparent)]
    Backend(#[from] BackendError),
    #[error(transparent)]
    Map(#[from] MapError),
    #[error("the vDisk is no longer served here")]
    NotServed,
    #[error("a task failed: {0}")]
    Task(#[from] tokio::task::JoinError),
}

impl Router {
    /// Writes checkpoints until stopped.
    pub(crate) async fn checkpoint_loop(self: Arc<Self>) {
        let mut running: JoinSet<()> = JoinSet::new();
        loop {
            while running.len() < AT_ONCE
                && let Some(which) = self.begin_checkpoint()
            {
                running.spawn(Arc::clone(&self).look_after_checkpoints(which));
            }
            tokio::select! {
                () = self.stop.wait() => return,
                Some(_) = running.join_next() => {}
                () = self.checkpoints.notified() => {}
                () = tokio::time::sleep(jitter(LOOK_EVERY)) => {}
            }
        }
    }

    /// The one that wants most to be looked after.
    fn begin_checkpoint(&self) -> Option<(VdiskId, Epoch)> {
        let mut state = self.state();
        if state.stopping {
            return None;
        }
        let served = state.volumes.iter().filter_map(|(vdisk, slot)| match slot {
            Slot::Serving(serving) => Some((*vdisk, serving)),
            Slot::Opening(_)
            | Slot::Gap(_)
            | Slot::Fenced(_)
            | Slot::Elsewhere(_)
            | Slot::Deleting => None,
        });
        let rest =
            served.filter(|(_, serving)| serving.degraded.is_none() && !serving.handing_over);
        let courses =
            rest.map(|(vdisk, serving)| (vdisk, &serving.checkpoints, self.maps.written(vdisk)));
        let vdisk = checkpoint::most_urgent(courses, boot_now())?;
        let serving = state.serving(vdisk).ok()?;
        serving.checkpoints.begin();
        Some((vdisk, serving.core.epoch()))
    }

    async fn look_after_checkpoints(self: Arc<Self>, (vdisk, epoch): (VdiskId, Epoch)) {
        let outcome = self.try_checkpoint(vdisk, epoch).await;
        let mut state = self.state();
        let Ok(serving) = state.serving(vdisk) else { return };
        if serving.core.epoch() != epoch {
            return;
        }
        match outcome {
            Ok(()) => serving.checkpoints.done(),
            Err(error) => {
                tracing::warn!(%vdisk, %error, "no checkpoint of the page map now; it is tried again");
                serving.checkpoints.failed(boot_now());
            }
        }
    }

    async fn try_checkpoint(&self, vdisk: VdiskId, epoch: Epoch) -> Result<(), CheckpointError> {
        let namespace = checkpoint::namespace_of(vdisk);
        // First: from here on nobody else changes anything there (P18).
        let raised = self.ask::<_, ()>(method::RAISE_EPOCH, &RaiseEpoch { namespace, epoch }).await;
        let exists = match raised {
            Ok(()) => true,
            Err(BackendError::Refused(error)) if error.code == proxy_code::NO_NAMESPACE => false,
            Err(error) => return Err(error.into()),
        };
        let listed = if exists { self.list_checkpoints(vdisk).await? } else { Vec::new() };
        let newest = checkpoint::complete(&listed).into_iter().next();
        self.delete_parts(vdisk, epoch, checkpoint::deletable(&listed, newest.as_ref())).await?;
        if let Some(opened) = self.with_checkpoints(vdisk, epoch, |course| course.unseen())? {
            let bytes = self.committed_since(vdisk, newest.as_ref(), opened).await?;
            // How urgent the next one is can be said now: those that are more so come first.
            return self.with_checkpoints(vdisk, epoch, |course| course.looked(newest, bytes));
        }
        let is_due = self.with_checkpoints(vdisk, epoch, |course| {
            course.found(newest.clone());
            course.is_due(self.maps.written(vdisk))
        })?;
        if !is_due {
            return Ok(());
        }
        if !exists {
            let create = CreateBeside { namespace, beside: vdisk.into(), epoch };
            self.ask::<_, ()>(method::CREATE_BESIDE, &create).await?;
        }
        let Some(written) = self.write_checkpoint(vdisk, epoch, newest.as_ref()).await? else {
            return Ok(());
        };
        let (number, parts) = (written.map.number, written.lens.len());
        tracing::info!(%vdisk, sco = %number, parts, "checkpoint of the page map written");
        self.with_checkpoints(vdisk, epoch, |course| course.wrote(written))?;
        // Only now, that a newer one is complete.
        let old = newest.iter().flat_map(Checkpoint::objects).collect();
        self.delete_parts(vdisk, epoch, old).await
    }

    /// `None`: the map isn't newer than `newest`.
    async fn write_checkpoint(
        &self,
        vdisk: VdiskId,
        epoch: Epoch,
        newest: Option<&Checkpoint>,
    ) -> Result<Option<Checkpoint>, CheckpointError> {
        let ask = ReadHead { namespace: checkpoint::namespace_of(vdisk) };
        let mut head = self.ask::<_, Head>(method::READ_HEAD, &ask).await?.head;
        self.with_checkpoints(vdisk, epoch, Course::cut)?;
        let cut = self.maps.cut(vdisk, model::usize_of(self.config.map_part_size), CHECKPOINT);
        let mut written: Option<Checkpoint> = None;
        loop {
            let part = cut.next().await?;
            let map = part.state.object.ok_or(MapError::Closed(vdisk))?;
            if newest.is_some_and(|newest| map <= newest.map) {
                return Ok(None);
            }
            // A transfer or a deletion needn't wait for the fence.
            self.with_checkpoints(vdisk, epoch, |_| ())?;
            let object = checkpoint::next_object(vdisk, epoch, head);
            let (last, last_lsn) = (part.last, part.state.last_lsn);
            let meta = PartMeta { map, last_lsn, index: part.index, last };
            let len = self.put_part((object, head), meta, part).await?;
            head = Some(object);
            let done = written.get_or_insert_with(|| Checkpoint {
                map,
                last_lsn,
                first: object,
                lens: Vec::new(),
            });
            done.lens.push(len);
            if last {
                return Ok(written);
            }
            tokio::time::sleep(jitter(PART_PAUSE)).await;
        }
    }

    async fn put_part(
        &self,
        (object, expected_head): (ObjectId, Option<ObjectId>),
        meta: PartMeta,
        part: Part,
    ) -> Result<u32, CheckpointError> {
        let encode = move || {
            let payload = Bytes::from(part.encode());
            let checksum = router_core::crc32c(&payload);
            (payload, checksum)
        };
        let (payload, checksum) = tokio::task::spawn_blocking(encode).await?;
        let len = model::u32_of(payload.len());
        let put = PutObject {
            namespace: checkpoint::namespace_of(object.vdisk),
            object,
            epoch: object.epoch,
            expected_head,
            frame_size: FRAME,
            meta: meta.encode(),
            checksum,
        };
        // The same object with the same bytes again is no error (P21).
        self.backend.call::<_, PutDone>(method::PUT_OBJECT, &put, payload, PATIENCE).await?;
        Ok(len)
    }

    async fn delete_parts(
        &self,
        vdisk: VdiskId,
        epoch: Epoch,
        objects: Vec<ObjectId>,
    ) -> Result<(), CheckpointError> {
        let namespace = checkpoint::namespace_of(vdisk);
        for some in objects.chunks(DELETED_AT_ONCE) {
            let delete = DeleteObjects { namespace, epoch, objects: some.to_vec() };
            self.ask::<_, ()>(method::DELETE_OBJECTS, &delete).await?;
        }
        Ok(())
    }

    /// Bytes committed behind a checkpoint up to the object with which the vDisk was opened, or enough of them that the
    /// next one is due.
    async fn committed_since(
        &self,
        vdisk: VdiskId,
        newest: Option<&Checkpoint>,
        opened: Option<ObjectId>,
    ) -> Result<u64, CheckpointError> {
        let Some(newest) = newest else { return Ok(0) };
        let (mut after, mut bytes) = (newest.map, 0_u64);
        while Some(after) < opened && bytes < checkpoint::demanded(newest, self.maps.written(vdisk))
        {
            let ask =
                ListObjects { namespace: vdisk.into(), after: Some(after), limit: LIST_LIMIT };
            let page: Objects = self.ask(method::LIST_OBJECTS, &ask).await?;
            for info in page.objects.iter().filter(|info| Some(info.object) <= opened) {
                let clusters = Meta::decode(info.meta.clone()).map_or(0, |meta| meta.clusters);
                bytes = bytes.saturating_add(checkpoint::committed_bytes(clusters.into()));
            }
            match page.objects.last() {
                Some(last) if page.more => after = last.object,
                Some(_) | None => break,
            }
        }
        Ok(bytes)
    }

    /// All objects beside the vDisk's namespace; none if there is no such namespace.
    pub(crate) async fn list_checkpoints(
        &self,
        vdisk: VdiskId,
    ) -> Result<Vec<Listed>, BackendError> {
        let namespace = checkpoint::namespace_of(vdisk);
        let mut listed: Vec<Listed> = Vec::new();
        loop {
            let after = listed.last().map(|last| last.object);
            let ask = ListObjects { namespace, after, limit: LIST_LIMIT };
            let page: Objects = match self.ask(method::LIST_OBJECTS, &ask).await {
                Err(BackendError::Refused(error)) if error.code == proxy_code::NO_NAMESPACE => {
                    return Ok(Vec::new());
                }
                page => page?,
            };
            listed.extend(page.objects.iter().map(|info| Listed {
                object: info.object,
                bytes: info.plain_len,
                meta: PartMeta::decode(&info.meta),
            }));
            if !page.more || page.objects.is_empty() {
                return Ok(listed);
            }
        }
    }

    fn with_checkpoints<T>(
        &self,
        vdisk: VdiskId,
        epoch: Epoch,
        act: impl FnOnce(&mut Course) -> T,
    ) -> Result<T, CheckpointError> {
        let mut state = self.state();
        match state.serving(vdisk) {
            Ok(serving) if serving.core.epoch() == epoch => Ok(act(&mut serving.checkpoints)),
            Ok(_) | Err(_) => Err(CheckpointError::NotServed),
        }
    }

    async fn ask<Q: Encode, A: Decode>(&self, method: u16, body: &Q) -> Result<A, BackendError> {
        let answer = self.backend.call(method, body, Bytes::new(), PATIENCE).await;
        answer.map(|(answer, _)| answer)
    }
}
