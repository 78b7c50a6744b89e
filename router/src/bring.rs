//! A page map brought up to the backend's head: its own table, or, where that lacks much, another router's copy or the
//! newest checkpoint; then the TLogs behind it; or all of them (L6). What is tried in which order, `router_core::origin`
//! decides.
//!
//! Invariant: readers see the map only once it holds the head's TLog, each joined to the one before.

use std::time::Duration;

use bytes::Bytes;
use model::{ObjectId, ScoNumber, VdiskId};
use router_core::map_state::MapState;
use router_core::origin;
use router_core::tlog::Meta;
use wire::common::Severity;
use wire::proxy::{ListObjects, ObjectInfo, Objects, method};

use crate::fetch::{Search, Wanted};
use crate::follow::Asker;
use crate::map_store::MapError;
use crate::open::OpenError;
use crate::router::Router;

const PATIENCE: Duration = Duration::from_secs(15);
/// Objects in one page of a listing.
const LIST_LIMIT: u32 = 256;

impl Router {
    /// As [`Self::bring_map`], up to where the backend is now.
    pub(crate) async fn bring_map_now(
        &self,
        vdisk: VdiskId,
        search: &mut Search<'_>,
    ) -> Result<u64, OpenError> {
        let (_, head, _) = self.head(vdisk).await?;
        self.bring_map(vdisk, head, search).await
    }

    /// Does in good time what can be done before it is known where the backend ends: former owners may still add to it.
    pub(crate) async fn bring_map_ahead(&self, vdisk: VdiskId, search: &mut Search<'_>) -> u64 {
        self.bring_map_now(vdisk, search).await.unwrap_or_else(|error| {
            tracing::debug!(%vdisk, %error, "its page map can't be brought up to date yet");
            0
        })
    }

    /// Opens the page map and brings it up to `head`; returns how many TLogs were replayed. Who calls this is the only one
    /// who changes it.
    ///
    /// # Errors
    /// When the backend or the store can't.
    pub(crate) async fn bring_map(
        &self,
        vdisk: VdiskId,
        head: Option<ObjectId>,
        search: &mut Search<'_>,
    ) -> Result<u64, OpenError> {
        let mut state = self.ready_map(vdisk).await?;
        // Damage that comes back to an empty map is of the disk.
        let mut emptied = false;
        if head < state.object {
            let why = "the page map is ahead of the backend".to_owned();
            state = self.throw_away(vdisk, &why).await?;
        }
        loop {
            let worth = origin::worth(self.config.map_checkpoint_every);
            let mut from = None;
            if let Some(want) = origin::wanted(&state, head, worth) {
                let wanted = Wanted { vdisk, want: &want, head, lag: state.lag(head) };
                match self.fetch_map(&wanted, search).await? {
                    Some((fetched, name)) => (state, from) = (fetched, Some(name)),
                    // One that failed at the very end may have left none.
                    None => state = self.ready_map(vdisk).await?,
                }
            }
            let caught_up = if head.is_some() && state.object == head {
                self.maps.complete(vdisk);
                Ok(0)
            } else {
                self.catch_up(vdisk, search.asker()).await
            };
            match caught_up {
                Ok(followed) => {
                    self.tell_brought(vdisk, from.as_deref(), &state, followed);
                    return Ok(followed);
                }
                Err(error)
                    if error.is_of_the_map(&state) && !(emptied && state.object.is_none()) =>
                {
                    emptied |= state.object.is_none();
                    state = self.throw_away(vdisk, &error.to_string()).await?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn ready_map(&self, vdisk: VdiskId) -> Result<MapState, OpenError> {
        let maps = self.maps.clone();
        Ok(tokio::task::spawn_blocking(move || maps.ready_table(vdisk)).await??)
    }

    /// Of another history, or damaged: it is derived (L6).
    async fn throw_away(&self, vdisk: VdiskId, problem: &str) -> Result<MapState, OpenError> {
        tracing::warn!(%vdisk, problem, "the page map doesn't fit the backend; it is thrown away");
        let text = format!("it was thrown away: {problem}");
        self.events.of(Severity::Warn, "map-dropped", vdisk, &text);
        let maps = self.maps.clone();
        let opened = tokio::task::spawn_blocking(move || {
            maps.erase(vdisk)?;
            maps.open_table(vdisk)
        });
        Ok(opened.await??)
    }

    fn tell_brought(&self, vdisk: VdiskId, from: Option<&str>, state: &MapState, followed: u64) {
        if let Some(from) = from {
            let number = state.object.map_or(ScoNumber(0), |object| object.number);
            let text =
                format!("from {from}, as of SCO {number}; {followed} TLogs replayed behind it");
            tracing::info!(%vdisk, text, "page map fetched");
            self.events.of(Severity::Info, "map-fetched", vdisk, &text);
        } else if state.object.is_none()
            && origin::worth(self.config.map_checkpoint_every) <= followed
        {
            let text = format!("it was taken from nowhere: all {followed} TLogs replayed");
            tracing::info!(%vdisk, text, "page map rebuilt");
            self.events.of(Severity::Info, "map-rebuilt", vdisk, &text);
        } else if 0 < followed {
            tracing::info!(%vdisk, followed, "the page map caught up with the backend's TLogs");
        }
    }

    /// Follows the TLogs that the map doesn't hold yet, and returns how many; then readers may look at it.
    ///
    /// # Errors
    /// When the backend can't give them, or they don't join.
    async fn catch_up(&self, vdisk: VdiskId, asker: Asker<'_>) -> Result<u64, OpenError> {
        let mut last = self.maps.state(vdisk).ok_or(MapError::Closed(vdisk))?.object;
        let mut followed = 0_u64;
        loop {
            let ask = ListObjects { namespace: vdisk.into(), after: last, limit: LIST_LIMIT };
            let listed =
                self.backend.call::<_, Objects>(method::LIST_OBJECTS, &ask, Bytes::new(), PATIENCE);
            let (page, _) = asker.unless_wanted(listed).await??;
            for ObjectInfo { object, meta, .. } in page.objects {
                let meta = Meta::decode(meta).map_err(|cause| OpenError::Tlog { object, cause })?;
                if meta.predecessor != last {
                    let problem = format!("it follows {:?}, not {last:?}", meta.predecessor);
                    return Err(OpenError::Chain { object, problem });
                }
                let tlog = asker.unless_wanted(self.read_tlog(object, &meta)).await??;
                let maps = self.maps.clone();
                tokio::task::spawn_blocking(move || maps.apply(&tlog)).await??;
                last = Some(object);
                followed += 1;
            }
            if !page.more {
                break;
            }
        }
        self.maps.complete(vdisk);
        Ok(followed)
    }
}
