//! A page map from elsewhere: another router's copy, or a checkpoint. Where it may be taken from, and how long that is
//! waited for, `router_core::origin` decides.
//!
//! Few are fetched at once, first come first served: each costs memory here, and work where it comes from (L8). Who waits in
//! vain follows the TLogs instead.
//!
//! Invariant: what fails changes nothing; what was begun with the store is brought to its end.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use model::{ObjectId, RouterId, ScoNumber, VdiskId};
use router_core::checkpoint::{self, Checkpoint};
use router_core::follow::Followed;
use router_core::map_state::MapState;
use router_core::map_stream::{Part, StreamError};
use router_core::origin::{self, Origin, Unfit, Want};
use runtime::rpc::{Call, CallError, Client, ClientOptions};
use tokio::time::{Instant, timeout, timeout_at};
use wire::Role;
use wire::proxy::{ReadDone, ReadObject, code as proxy_code, method};
use wire::router::{MapPart, ReadMap, method as router_method};

use crate::backend::{Backend, BackendError};
use crate::facts::FactsError;
use crate::follow::Asker;
use crate::map_store::{Install, MapError, MapStore};
use crate::open::OpenError;
use crate::router::Router;

/// Maps that are fetched by this router at the same time.
pub const FETCHED_MAX: usize = 4;
/// For the list of checkpoints, and for who else may have the map.
const LIST_PATIENCE: Duration = Duration::from_secs(3);
/// For the first part of another router's map: it may be dead, and there are more.
const ROUTER_PATIENCE: Duration = Duration::from_millis(1500);
/// For the first part of a checkpoint.
const CHECKPOINT_PATIENCE: Duration = Duration::from_secs(3);
/// For each further one.
const PART_PATIENCE: Duration = Duration::from_secs(10);

/// Why a map isn't taken from somewhere.
#[derive(Debug, thiserror::Error)]
enum FetchError {
    /// It will be the same there: the next place is tried.
    #[error("{0}")]
    There(String),
    /// A part of a checkpoint isn't there any more: a newer one may have taken its place.
    #[error("{0}")]
    Replaced(String),
    /// It would be the same with every place: the TLogs are followed.
    #[error("{0}")]
    Everywhere(String),
    /// It is no fault of the place, and TLogs can't be followed either.
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
            MapError::Mismatch { .. } | MapError::BadPage { .. } | MapError::Incoming(_) => {
                Self::There(error.to_string())
            }
            // No room for a whole map, say: following TLogs may need less. What is damaged is met, and replaced, then.
            MapError::Store(_)
            | MapError::Damaged(_)
            | MapError::Closed(_)
            | MapError::Behind(_) => Self::Everywhere(error.to_string()),
        }
    }
}

impl From<BackendError> for FetchError {
    fn from(error: BackendError) -> Self {
        match &error {
            BackendError::Refused(refusal) if refusal.code == proxy_code::NO_OBJECT => {
                Self::Replaced(error.to_string())
            }
            // Perhaps of this object alone: whether the backend is out, following the TLogs will say.
            BackendError::Refused(_) | BackendError::Unavailable { .. } => {
                Self::There(error.to_string())
            }
        }
    }
}

/// What gives a map part by part.
trait Parts {
    fn next(&mut self, patience: Duration)
    -> impl Future<Output = Result<Part, FetchError>> + Send;
}

/// A map in another router or in the backend.
enum Source<'a> {
    Router { client: Client, ask: ReadMap },
    Checkpoint { backend: &'a Backend, checkpoint: Checkpoint, next: usize },
}

impl Parts for Source<'_> {
    async fn next(&mut self, patience: Duration) -> Result<Part, FetchError> {
        match self {
            Source::Router { client, ask } => {
                let call = Call::within(patience);
                let (named, bytes) =
                    client.call::<_, MapPart>(router_method::READ_MAP, ask, call).await?;
                (ask.cut, ask.part) = (named.cut, ask.part + 1);
                Ok(Part::decode(&bytes)?)
            }
            Source::Checkpoint { backend, checkpoint, next } => {
                let Some((object, len)) = checkpoint.object(*next) else {
                    return Err(FetchError::There("it doesn't end".to_owned()));
                };
                let namespace = checkpoint::namespace_of(object.vdisk);
                let ask = ReadObject { namespace, object, ranges: vec![(0, len)] };
                let read =
                    backend.call::<_, ReadDone>(method::READ_OBJECT, &ask, Bytes::new(), patience);
                let (_, bytes) = read.await?;
                *next += 1;
                Ok(Part::decode(&bytes)?)
            }
        }
    }
}

/// A place that may have the map, with what to call it.
type Named = (Origin, String);

/// The search for a map that lacks much.
pub(crate) struct Search<'a> {
    asker: Asker<'a>,
    /// Where it may still be; `None`: nobody has asked yet.
    places: Option<VecDeque<Named>>,
    left: origin::Search,
    listed_again: bool,
}

impl<'a> Search<'a> {
    pub(crate) fn new(asker: Asker<'a>) -> Self {
        Self { asker, places: None, left: origin::Search::default(), listed_again: false }
    }

    pub(crate) const fn asker(&self) -> Asker<'a> {
        self.asker
    }

    /// Waits for what may not come, which leaves less time for the rest. `None`: it didn't.
    async fn within<T>(
        &mut self,
        most: Duration,
        work: impl Future<Output = T>,
    ) -> Result<Option<T>, OpenError> {
        let Some(patience) = self.left.patience(most) else { return Ok(None) };
        let start = Instant::now();
        let done = self.asker.unless_wanted(timeout(patience, work)).await?;
        self.left.wasted(start.elapsed());
        Ok(done.ok())
    }
}

/// What is looked for.
pub(crate) struct Wanted<'a> {
    pub vdisk: VdiskId,
    pub want: &'a Want,
    pub head: Option<ObjectId>,
    /// TLogs that are followed without it.
    pub lag: u64,
}

impl Router {
    /// Takes a map from the first place that has a fitting one, instead of the stored one, and says which place that is.
    /// `None`: there is none.
    ///
    /// # Errors
    /// When this router can't go on, or must give way.
    pub(crate) async fn fetch_map(
        &self,
        wanted: &Wanted<'_>,
        search: &mut Search<'_>,
    ) -> Result<Option<(MapState, String)>, OpenError> {
        let vdisk = wanted.vdisk;
        if search.places.as_ref().is_some_and(VecDeque::is_empty) {
            return Ok(None);
        }
        let turn = timeout(origin::turn_patience(wanted.lag), self.fetching.acquire());
        let Ok(Ok(_turn)) = search.asker.unless_wanted(turn).await? else {
            tracing::info!(%vdisk, "too many page maps are being fetched; its TLogs are followed");
            return Ok(None);
        };
        let mut places = match search.places.take() {
            Some(places) => places,
            None => self.origins(wanted, search).await?,
        };
        let mut found = None;
        while let Some((place, name)) = places.pop_front() {
            match self.fetch_from(wanted, &place, search).await {
                Ok(state) => {
                    found = Some((state, name));
                    break;
                }
                Err(FetchError::Here(error)) => return Err(error),
                Err(FetchError::Everywhere(problem)) => {
                    tracing::warn!(%vdisk, from = name, problem, "a page map can't be taken now");
                    places.clear();
                }
                Err(FetchError::There(problem)) => {
                    tracing::warn!(%vdisk, from = name, problem, "the page map can't be taken from there");
                }
                Err(FetchError::Replaced(problem)) => {
                    tracing::info!(%vdisk, from = name, problem, "the page map is gone from there");
                    // Once: who looks longer than two checkpoints last finds no end.
                    if let Origin::Checkpoint(gone) = &place
                        && !std::mem::replace(&mut search.listed_again, true)
                    {
                        let listed = self.checkpoints_of(vdisk, search).await?;
                        if let Some(newer) = origin::successor(gone, listed, wanted.head) {
                            places.push_front((Origin::Checkpoint(newer), name));
                        }
                    }
                }
            }
        }
        search.places = Some(places);
        Ok(found)
    }

    /// Where a map may be taken from, best first.
    async fn origins(
        &self,
        wanted: &Wanted<'_>,
        search: &mut Search<'_>,
    ) -> Result<VecDeque<Named>, OpenError> {
        let Wanted { vdisk, want, head, .. } = *wanted;
        let checkpoints = self.checkpoints_of(vdisk, search).await?;
        let known = search.within(LIST_PATIENCE, self.who_may_have_it(vdisk)).await?;
        let (owner, targets, routers) = match known {
            Some(Ok(known)) => known,
            Some(Err(error)) => {
                tracing::debug!(%vdisk, %error, "which routers have its page map isn't known");
                (self.id, Vec::new(), Vec::new())
            }
            None => (self.id, Vec::new(), Vec::new()),
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

    /// The complete ones, newest first; none where they can't be listed soon: they are derived data, without them it takes
    /// longer (L6).
    async fn checkpoints_of(
        &self,
        vdisk: VdiskId,
        search: &mut Search<'_>,
    ) -> Result<Vec<Checkpoint>, OpenError> {
        let listed = search.within(LIST_PATIENCE, self.list_checkpoints(vdisk)).await?;
        Ok(match listed {
            Some(Ok(listed)) => checkpoint::complete(&listed),
            Some(Err(error)) => {
                tracing::warn!(%vdisk, %error, "checkpoints of its page map can't be listed");
                Vec::new()
            }
            None => {
                tracing::warn!(%vdisk, "checkpoints of its page map can't be listed in time");
                Vec::new()
            }
        })
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

    /// Takes a map from one place, if it fits.
    async fn fetch_from(
        &self,
        wanted: &Wanted<'_>,
        place: &Origin,
        search: &mut Search<'_>,
    ) -> Result<MapState, FetchError> {
        let (sources, least) = match place {
            Origin::Router(router, least) => {
                let (vdisk, least) = (wanted.vdisk, *least);
                let addresses = self.peers.cluster.addresses(*router);
                let addresses = search.within(LIST_PATIENCE, addresses).await?.unwrap_or_default();
                let source = |endpoint| {
                    let (identity, options) =
                        (Arc::clone(&self.identity), ClientOptions::default());
                    let client = Client::new(endpoint, Role::Router, identity, options);
                    Source::Router { client, ask: ReadMap { vdisk, cut: 0, part: 0, least } }
                };
                (addresses.into_iter().map(source).collect(), least)
            }
            Origin::Checkpoint(checkpoint) => {
                let (backend, checkpoint) = (&self.backend, checkpoint.clone());
                let source = Source::Checkpoint { backend, checkpoint, next: 0 };
                (vec![source], wanted.want.least)
            }
        };
        let mut trouble = FetchError::There("it has no address".to_owned());
        for source in sources {
            match self.take_from(wanted, source, least, search).await {
                Err(error @ FetchError::There(_)) => trouble = error,
                done => return done,
            }
        }
        Err(trouble)
    }

    async fn take_from(
        &self,
        wanted: &Wanted<'_>,
        mut source: Source<'_>,
        least: ScoNumber,
        search: &mut Search<'_>,
    ) -> Result<MapState, FetchError> {
        let (vdisk, asker) = (wanted.vdisk, search.asker);
        let patience = match &source {
            Source::Router { .. } => ROUTER_PATIENCE,
            Source::Checkpoint { .. } => CHECKPOINT_PATIENCE,
        };
        let first = search.within(patience, source.next(patience)).await?;
        let first = first.unwrap_or_else(|| Err(too_slow()))?;
        self.check_fits(wanted, &first.state, least, asker).await?;
        let deadline = Instant::now() + origin::patience(first.state.totals.mapped);
        let taking = Taking { maps: &self.maps, vdisk, deadline, asker };
        taking.take(first, &mut source).await
    }

    /// A map that seems to be ahead may be of a TLog that was committed since the head was read.
    async fn check_fits(
        &self,
        wanted: &Wanted<'_>,
        state: &MapState,
        least: ScoNumber,
        asker: Asker<'_>,
    ) -> Result<(), FetchError> {
        match origin::fits(state, least, wanted.head) {
            Err(Unfit::Ahead) => {
                let (_, head, _) = asker.unless_wanted(self.head(wanted.vdisk)).await??;
                Ok(origin::fits(state, least, head)?)
            }
            fits => Ok(fits?),
        }
    }
}

/// A map on its way into the store.
struct Taking<'a> {
    maps: &'a MapStore,
    vdisk: VdiskId,
    deadline: Instant,
    asker: Asker<'a>,
}

impl Taking<'_> {
    /// Only what comes from elsewhere is given up: a step with the store goes on by itself, and would beside whatever
    /// comes next.
    async fn take(&self, first: Part, source: &mut impl Parts) -> Result<MapState, FetchError> {
        let (maps, vdisk, mut part) = (self.maps.clone(), self.vdisk, first);
        let mut install: Install = blocking(move || maps.install(vdisk)).await?;
        loop {
            let last = part.last;
            install = blocking(move || install.take(&part).map(|()| install)).await?;
            if last {
                return blocking(move || install.finish()).await;
            }
            let next = timeout_at(self.deadline, source.next(PART_PATIENCE));
            let next = self.asker.unless_wanted(next).await?;
            part = next.unwrap_or_else(|_| Err(too_slow()))?;
        }
    }
}

fn too_slow() -> FetchError {
    FetchError::There("it takes too long".to_owned())
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, MapError> + Send + 'static,
) -> Result<T, FetchError> {
    let done = tokio::task::spawn_blocking(work).await;
    Ok(done.map_err(OpenError::from)??)
}

#[cfg(test)]
mod tests;
