//! Deleting vDisks, so that nothing is left whoever dies when.
//!
//! ```text
//!  record: deleting ──▶ objects, then checkpoints ──▶ record, name and all that belongs to it ──▶ DTL logs, page map
//! ```
//! From the first step on nobody serves or claims the vDisk, and every further one may be repeated, by anybody: its owner
//! does it, again after a restart, and any other router where the owner is gone. What is left behind the last but one is
//! swept by those who keep it, as no record says any more that it is needed.
//!
//! Invariant: a vDisk is in the lists, or nothing of it is left but what is on its way out.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use model::VdiskId;
use router_core::checkpoint;
use runtime::random::jitter;
use wire::WireError;
use wire::facts::{VdiskRecord, key};
use wire::proxy::{DeleteNamespace, code as proxy_code, method};
use wire::router::code;

use crate::admin::{PATIENCE, from_backend};
use crate::backend::BackendError;
use crate::facts::Read;
use crate::router::Router;
use crate::state::{Records, Slot};

/// Between two tries.
const PAUSE: Duration = Duration::from_millis(1500);

fn gone() -> WireError {
    WireError::refuse(code::NO_VDISK, "the vDisk was deleted")
}

impl Router {
    /// # Errors
    /// `IN_USE` while an edge is connected; Retry when a part can't be reached (it is resumed).
    pub async fn delete(self: &Arc<Self>, vdisk: VdiskId) -> Result<(), WireError> {
        let attached = {
            let mut state = self.state();
            match state.serving(vdisk) {
                Ok(serving) => serving
                    .sessions
                    .values()
                    .find(|s| s.is_connected())
                    .map(|s| s.edge_name.clone()),
                // A vDisk that can't be served may be deleted all the same.
                Err(error) if error.code == code::GAP => None,
                Err(error) => return Err(error),
            }
        };
        if let Some(edge) = attached {
            let message = format!("edge {edge} is attached; detach it first");
            return Err(WireError::retry(code::IN_USE, message));
        }
        let read = self.facts.vdisk(vdisk).await.map_err(|error| error.to_wire())?;
        let Some(read) = read else { return Ok(()) };
        if read.value.owner != self.id {
            return Err(WireError::retry(code::RECOVERING, "the owner changed; try again"));
        }
        if !read.value.deleting {
            let deleting = VdiskRecord { deleting: true, ..read.value.clone() };
            self.facts.change_vdisk(&read, &deleting).await.map_err(|error| error.to_wire())?;
        }
        self.state().stop_serving(vdisk, Slot::Deleting, &gone(), Records::Release);
        self.wake_append();
        let rest = self.delete_rest(vdisk).await;
        if rest.is_err() {
            tokio::spawn(Arc::clone(self).finish_delete(vdisk));
        }
        rest
    }

    /// The rest of a deletion, from the flag in the record on. May be repeated.
    async fn delete_rest(&self, vdisk: VdiskId) -> Result<(), WireError> {
        let read = self.facts.vdisk(vdisk).await.map_err(|error| error.to_wire())?;
        if let Some(read) = read {
            // In this order: once the first is gone nobody makes the second one anew.
            for namespace in [vdisk.into(), checkpoint::namespace_of(vdisk)] {
                let delete = DeleteNamespace { namespace, epoch: read.value.epoch };
                let deleted = self
                    .backend
                    .call::<_, ()>(method::DELETE_NAMESPACE, &delete, Bytes::new(), PATIENCE)
                    .await;
                match deleted {
                    Ok(_) => {}
                    Err(BackendError::Refused(error)) if error.code == proxy_code::NO_NAMESPACE => {
                    }
                    Err(error) => return Err(from_backend(&error)),
                }
            }
            let dtl = self.facts.dtl(vdisk).await.map_err(|error| error.to_wire())?;
            if let Err(error) = self.facts.remove_vdisk(&read).await {
                // Whoever else does it may have been quicker.
                let left = self.facts.vdisk(vdisk).await.map_err(|error| error.to_wire())?;
                if left.is_some() {
                    return Err(error.to_wire());
                }
            }
            if let Some(dtl) = dtl {
                self.forget_dtl(vdisk, &dtl.value).await;
            }
            tracing::info!(name = read.value.name, %vdisk, "vDisk deleted");
        }
        // Who isn't the owner may be copying it.
        if self.until_map_is_free(vdisk).await.is_ok() {
            let maps = self.maps.clone();
            let erased = tokio::task::spawn_blocking(move || maps.erase(vdisk)).await;
            if let Ok(Err(error)) = erased {
                tracing::warn!(%vdisk, %error, "the page map of a deleted vDisk stays on disk");
            }
        }
        let mut state = self.state();
        state.volumes.remove(&vdisk);
        for found in state.unclaimed.remove(&vdisk).unwrap_or_default() {
            state.log.release(found.record.lap, found.record.len() as u64);
        }
        Ok(())
    }

    /// Finishes a deletion that was begun.
    pub async fn finish_delete(self: Arc<Self>, vdisk: VdiskId) {
        while let Err(error) = self.delete_rest(vdisk).await {
            tracing::warn!(%vdisk, %error, "can't finish deleting the vDisk yet");
            tokio::select! {
                () = self.stop.wait() => return,
                () = tokio::time::sleep(jitter(PAUSE)) => {}
            }
        }
    }

    /// Ends deletions that nobody else would: begun by a router that is gone, or here, by a change of the record whose answer
    /// was lost.
    pub(crate) async fn resume_deletions(self: &Arc<Self>, records: &[Read<VdiskRecord>]) {
        let records = records.iter().map(|read| &read.value);
        let deleting: Vec<&VdiskRecord> = records.filter(|record| record.deleting).collect();
        if deleting.is_empty() {
            return;
        }
        let Ok(sessions) = self.facts.sessions().await else { return };
        for record in deleting {
            let id = key::router_session(record.owner);
            if record.owner == self.id || !sessions.iter().any(|session| session.id == id) {
                self.resume_deletion(record);
            }
        }
    }

    fn resume_deletion(self: &Arc<Self>, record: &VdiskRecord) {
        let (vdisk, mine) = (record.vdisk, record.owner == self.id);
        let mut state = self.state();
        let waits = match state.volumes.get(&vdisk) {
            Some(Slot::Serving(_) | Slot::Gap(_)) => mine,
            // Of its own it opens, and finds out so.
            None | Some(Slot::Elsewhere(_)) => !mine,
            Some(Slot::Opening(_) | Slot::Fenced(_) | Slot::Deleting) => false,
        };
        if state.stopping || !waits {
            return;
        }
        tracing::info!(%vdisk, mine, "going on with the deletion of a vDisk");
        state.stop_serving(vdisk, Slot::Deleting, &gone(), Records::Release);
        drop(state);
        self.wake_append();
        tokio::spawn(Arc::clone(self).finish_delete(vdisk));
    }
}
