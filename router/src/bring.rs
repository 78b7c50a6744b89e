//! A page map brought up to the backend's head: its own table, or, where that lacks much, another router's copy or the
//! newest checkpoint; then the TLogs behind it; or all of them (L6). What is tried in which order, `router_core::origin`
//! decides.
//!
//! Invariant: readers see the map only once it holds the head's TLog, each joined to the one before.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use model::{ObjectId, RouterId, ScoNumber, VdiskId};
use router_core::checkpoint::{self, Checkpoint};
use router_core::follow::Followed;
use router_core::map_state::MapState;
use router_core::map_stream::{Part, StreamError};
use router_core::origin::{self, Origin, Unfit};
use router_core::tlog::Meta;
use runtime::rpc::{Call, CallError, Client, ClientOptions};
use tokio::time::Instant;
use wire::Role;
use wire::common::Severity;
use wire::proxy::{ListObjects, ObjectInfo, Objects, ReadDone, ReadObject, method};
use wire::router::{MapPart, ReadMap, method as router_method};

use crate::backend::BackendError;
use crate::facts::FactsError;
use crate::map_store::{Install, MapError};
use crate::open::OpenError;
use crate::router::Router;

const PATIENCE: Duration = Duration::from_secs(15);
/// Objects in one page of a listing.
const LIST_LIMIT: u32 = 256;
/// For the first part of another router's map: it may be dead.
const FIRST_PATIENCE: Duration = Duration::from_secs(3);
/// For each further one.
const PART_PATIENCE: Duration = Duration::from_secs(10);
/// For a whole map of no size, and how many of its bytes a second there must be: else the next place may be quicker.
const WHOLE_PATIENCE: Duration = Duration::from_secs(30);
const BYTES_PER_S: u64 = 10_000_000;
/// Of a mapped cluster in a page.
const LOCATION_LEN: u64 = 8;

/// Why a map isn't taken from somewhere.
#[derive(Debug, thiserror::Error)]
enum FetchError {
    /// It will be the same there: the next place is tried.
    #[error("{0}")]
    There(String),
    /// It is no fault of the place.
    #[error(transparent)]
    Here(#[from] OpenError),
}

impl From<CallError> for FetchError {
    fn from(error: CallError) -> Self {
        Self::There(error.to_string())
    }
}

impl From<StreamError> for FetchError {
    fn from(error: StreamError) -> Self {
        Self::There(error.to_string())
    }
}

impl From<Unfit> for FetchError {
    fn from(error: Unfit) -> Self {
        Self::There(error.to_string())
    }
}

impl From<MapError> for FetchError {
    fn from(error: MapError) -> Self {
        match error {
            // No room for a whole map: following TLogs may need less.
            MapError::Mismatch { .. } | MapError::BadPage { .. } | MapError::Store(_) => {
                Self::There(error.to_string())
            }
            MapError::Damaged(_) | MapError::Closed(_) | MapError::Behind(_) => {
                Self::Here(error.into())
            }
        }
    }
}

impl From<BackendError> for FetchError {
    fn from(error: BackendError) -> Self {
        // Perhaps of this object alone: whether the backend is out, following the TLogs will say.
        Self::There(error.to_string())
    }
}

/// A map that comes part by part.
enum Source {
    Router { client: Client, ask: ReadMap },
    Checkpoint { checkpoint: Checkpoint, next: usize },
}

impl Router {
    /// As [`Self::bring_map`], up to where the backend is now.
    pub(crate) async fn bring_map_now(&self, vdisk: VdiskId) -> Result<u64, OpenError> {
        let (_, head, _) = self.head(vdisk).await?;
        self.bring_map(vdisk, head).await
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
    ) -> Result<u64, OpenError> {
        let maps = self.maps.clone();
        let mut state = tokio::task::spawn_blocking(move || maps.ready_table(vdisk)).await??;
        let mut origins: Option<VecDeque<(Origin, String)>> = None;
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
                let places = match &mut origins {
                    Some(places) => places,
                    None => origins.insert(self.origins(vdisk, &want, head).await?),
                };
                while let Some((place, name)) = places.pop_front() {
                    match self.fetch(vdisk, place, want.least, head).await {
                        Ok(fetched) => {
                            state = fetched;
                            from = Some(name);
                            break;
                        }
                        Err(FetchError::There(problem)) => {
                            tracing::warn!(%vdisk, from = name, problem, "the page map can't be taken from there");
                        }
                        Err(FetchError::Here(error)) => return Err(error),
                    }
                }
            }
            let caught_up = if head.is_some() && state.object == head {
                self.maps.complete(vdisk);
                Ok(0)
            } else {
                self.catch_up(vdisk).await
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
            let text = format!("nobody had one: all {followed} TLogs replayed");
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
    async fn catch_up(&self, vdisk: VdiskId) -> Result<u64, OpenError> {
        let mut last = self.maps.state(vdisk).ok_or(MapError::Closed(vdisk))?.object;
        let mut followed = 0_u64;
        loop {
            let ask = ListObjects { namespace: vdisk.into(), after: last, limit: LIST_LIMIT };
            let (page, _) = self
                .backend
                .call::<_, Objects>(method::LIST_OBJECTS, &ask, Bytes::new(), PATIENCE)
                .await?;
            for ObjectInfo { object, meta, .. } in page.objects {
                let meta = Meta::decode(meta).map_err(|cause| OpenError::Tlog { object, cause })?;
                if meta.predecessor != last {
                    let problem = format!("it follows {:?}, not {last:?}", meta.predecessor);
                    return Err(OpenError::Chain { object, problem });
                }
                let tlog = self.read_tlog(object, &meta).await?;
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

    /// Where a map may be taken from, best first, with what to call it.
    async fn origins(
        &self,
        vdisk: VdiskId,
        want: &origin::Want,
        head: Option<ObjectId>,
    ) -> Result<VecDeque<(Origin, String)>, OpenError> {
        // Derived data: without them it takes longer (L6).
        let listed = self.list_checkpoints(vdisk).await.unwrap_or_else(|error| {
            tracing::warn!(%vdisk, %error, "checkpoints of its page map can't be listed");
            Vec::new()
        });
        let checkpoints = checkpoint::complete(&listed);
        let (owner, targets, routers) = match self.who_may_have_it(vdisk).await {
            Ok(known) => known,
            Err(error) => {
                tracing::debug!(%vdisk, %error, "which routers have its page map isn't known");
                (self.id, Vec::new(), Vec::new())
            }
        };
        let online: Vec<RouterId> = routers.iter().map(|(id, _)| *id).collect();
        let followed = Followed { vdisk, owner, targets: &targets, online: &online };
        let places = origin::origins(want, self.id, &followed, checkpoints, head);
        let name = |place: Origin| {
            let name = match &place {
                Origin::Router(id, _) => {
                    let known = routers.iter().find(|(known, _)| known == id);
                    known.map_or_else(|| id.to_string(), |(_, name)| name.clone())
                }
                Origin::Checkpoint(_) => "a checkpoint in the backend".to_owned(),
            };
            (place, name)
        };
        Ok(places.into_iter().map(name).collect())
    }

    async fn who_may_have_it(
        &self,
        vdisk: VdiskId,
    ) -> Result<(RouterId, Vec<RouterId>, Vec<(RouterId, String)>), FactsError> {
        let record = self.facts.vdisk(vdisk).await?;
        let dtl = self.facts.dtl(vdisk).await?;
        let routers = self.online_routers().await?;
        let owner = record.map_or(self.id, |record| record.value.owner);
        let targets = dtl.map_or_else(Vec::new, |dtl| dtl.value.facts.targets);
        let named = routers.into_iter().map(|router| (router.router, router.name));
        Ok((owner, targets, named.collect()))
    }

    /// Takes a map from one place, if it fits, instead of the stored one; what doesn't changes nothing.
    async fn fetch(
        &self,
        vdisk: VdiskId,
        place: Origin,
        least: ScoNumber,
        head: Option<ObjectId>,
    ) -> Result<MapState, FetchError> {
        let (sources, least) = match place {
            Origin::Router(router, least) => {
                let addresses = self.peers.cluster.addresses(router).await;
                let source = |endpoint| {
                    let (identity, options) =
                        (Arc::clone(&self.identity), ClientOptions::default());
                    let client = Client::new(endpoint, Role::Router, identity, options);
                    Source::Router { client, ask: ReadMap { vdisk, cut: 0, part: 0, least } }
                };
                (addresses.into_iter().map(source).collect(), least)
            }
            Origin::Checkpoint(checkpoint) => {
                (vec![Source::Checkpoint { checkpoint, next: 0 }], least)
            }
        };
        let mut trouble = FetchError::There("it has no address".to_owned());
        for source in sources {
            match self.take_from(vdisk, source, least, head).await {
                Err(error @ FetchError::There(_)) => trouble = error,
                done => return done,
            }
        }
        Err(trouble)
    }

    async fn take_from(
        &self,
        vdisk: VdiskId,
        mut source: Source,
        least: ScoNumber,
        head: Option<ObjectId>,
    ) -> Result<MapState, FetchError> {
        let mut part = self.next_part(vdisk, &mut source).await?;
        self.check_fits(vdisk, &part.state, least, head).await?;
        let bytes = part.state.totals.mapped * LOCATION_LEN;
        let patience = WHOLE_PATIENCE + Duration::from_secs(bytes / BYTES_PER_S);
        let deadline = Instant::now() + patience;
        let maps = self.maps.clone();
        let mut install: Install = blocking(move || maps.install(vdisk)).await?;
        loop {
            let last = part.last;
            install = blocking(move || install.take(&part).map(|()| install)).await?;
            if last {
                return blocking(move || install.finish()).await;
            }
            // Only what comes from elsewhere is given up: what was begun with the store is brought to its end.
            let next = tokio::time::timeout_at(deadline, self.next_part(vdisk, &mut source)).await;
            part = next.map_err(|_| FetchError::There("it takes too long".to_owned()))??;
        }
    }

    async fn next_part(&self, vdisk: VdiskId, source: &mut Source) -> Result<Part, FetchError> {
        match source {
            Source::Router { client, ask } => {
                let patience = if ask.part == 0 { FIRST_PATIENCE } else { PART_PATIENCE };
                let call = Call::within(patience);
                let (named, bytes) =
                    client.call::<_, MapPart>(router_method::READ_MAP, ask, call).await?;
                (ask.cut, ask.part) = (named.cut, ask.part + 1);
                Ok(Part::decode(&bytes)?)
            }
            Source::Checkpoint { checkpoint, next } => {
                let Some((object, len)) = checkpoint.object(*next) else {
                    return Err(FetchError::There("it doesn't end".to_owned()));
                };
                let (namespace, ranges) = (checkpoint::namespace_of(vdisk), vec![(0, len)]);
                let ask = ReadObject { namespace, object, ranges };
                let read = self.backend.call::<_, ReadDone>(
                    method::READ_OBJECT,
                    &ask,
                    Bytes::new(),
                    PATIENCE,
                );
                let (_, bytes) = read.await?;
                *next += 1;
                Ok(Part::decode(&bytes)?)
            }
        }
    }

    /// A map that seems to be ahead may be of a TLog that was committed since the head was read.
    async fn check_fits(
        &self,
        vdisk: VdiskId,
        state: &MapState,
        least: ScoNumber,
        head: Option<ObjectId>,
    ) -> Result<(), FetchError> {
        match origin::fits(state, least, head) {
            Err(Unfit::Ahead) => {
                let (_, head, _) = self.head(vdisk).await?;
                Ok(origin::fits(state, least, head)?)
            }
            fits => Ok(fits?),
        }
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, MapError> + Send + 'static,
) -> Result<T, FetchError> {
    let done = tokio::task::spawn_blocking(work).await;
    Ok(done.map_err(OpenError::from)??)
}
