//! Copies of page maps of vDisks that other routers own: their TLogs are followed, so that whoever takes a vDisk over
//! replays a tail only (MDS). Who follows which, and how often, `router_core::follow` decides.
//!
//! Invariant: a map that is followed isn't opened, and one that is open isn't followed ([`MapHold`]).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use model::{RouterId, VdiskId};
use router_core::follow::{Followed, Pace, follows};
use runtime::clock::boot_now;
use runtime::random::jitter;
use tokio::sync::Notify;
use wire::facts::{RouterRecord, RouterState, key};
use wire::router::{MapCopies, MapCopy};

use crate::facts::FactsError;
use crate::fetch::Search;
use crate::open::OpenError;
use crate::router::Router;
use crate::state::Slot;

/// How long an opening or a hand-over waits for a look that is under way.
const HOLD_PATIENCE: Duration = Duration::from_secs(10);
/// Within this most looks end by themselves; then an opening asks for the map, and a fetch is given up.
const LOOK_PATIENCE: Duration = Duration::from_secs(1);
const HOLD_PAUSE: Duration = Duration::from_millis(20);
/// Rounds between two looks for maps of vDisks that are gone.
const SWEEP_EVERY: u32 = 60;

/// The right to bring the map of a vDisk up to date that isn't served here.
pub struct MapHold<'a> {
    router: &'a Router,
    vdisk: VdiskId,
    wanted: Arc<Notify>,
}

impl Drop for MapHold<'_> {
    fn drop(&mut self) {
        self.router.state().following.remove(&self.vdisk);
    }
}

/// For whom a map is brought up to date.
#[derive(Clone, Copy)]
pub(crate) enum Asker<'a> {
    /// Who opens or serves the vDisk.
    Owner,
    /// Who copies it: gives way to an opening, which wakes it.
    Copier(&'a Notify),
}

impl Asker<'_> {
    /// Waits for what comes from elsewhere, and may be given up, unless an opening wants the map meanwhile.
    ///
    /// # Errors
    /// [`OpenError::Wanted`].
    pub(crate) async fn unless_wanted<T>(
        self,
        work: impl Future<Output = T>,
    ) -> Result<T, OpenError> {
        match self {
            Self::Owner => Ok(work.await),
            Self::Copier(wanted) => tokio::select! {
                () = wanted.notified() => Err(OpenError::Wanted),
                done = work => Ok(done),
            },
        }
    }
}

impl Router {
    /// `None`: it is served or opened here, or somebody else holds the map.
    pub(crate) fn hold_map(&self, vdisk: VdiskId) -> Option<MapHold<'_>> {
        let mut state = self.state();
        let elsewhere = matches!(state.volumes.get(&vdisk), None | Some(Slot::Elsewhere(_)));
        if !elsewhere || state.stopping || state.following.contains_key(&vdisk) {
            return None;
        }
        let wanted = Arc::new(Notify::new());
        state.following.insert(vdisk, Arc::clone(&wanted));
        Some(MapHold { router: self, vdisk, wanted })
    }

    /// Returns when nobody follows the map; who calls this has a slot that lets nobody begin to. Who fetches one gives way:
    /// a copy holds up no opening (L6).
    ///
    /// # Errors
    /// When it takes too long.
    pub(crate) async fn until_map_is_free(&self, vdisk: VdiskId) -> Result<(), OpenError> {
        let start = boot_now();
        loop {
            let Some(wanted) = self.state().following.get(&vdisk).cloned() else { return Ok(()) };
            let waited = boot_now().since(start);
            if HOLD_PATIENCE < waited {
                return Err(OpenError::Following);
            }
            if LOOK_PATIENCE < waited {
                wanted.notify_one();
            }
            tokio::time::sleep(HOLD_PAUSE).await;
        }
    }

    /// Waits for a look at the map that is under way.
    pub(crate) async fn hold_map_soon(&self, vdisk: VdiskId) -> Option<MapHold<'_>> {
        let start = boot_now();
        loop {
            let held = self.hold_map(vdisk);
            if held.is_some() || HOLD_PATIENCE < boot_now().since(start) {
                return held;
            }
            tokio::time::sleep(HOLD_PAUSE).await;
        }
    }

    /// Follows until stopped.
    pub(crate) async fn follow_loop(self: Arc<Self>) {
        let mut paces: BTreeMap<VdiskId, Pace> = BTreeMap::new();
        let mut round = 0_u32;
        while !self.stop.is_triggered() {
            if self.lease.current().is_some() {
                // Before the records are read: a map in it is of a vDisk that was there.
                let sweep = round.is_multiple_of(SWEEP_EVERY);
                let stored = if sweep { self.maps.stored() } else { Ok(Vec::new()) };
                let mine = match self.maps_to_follow(&stored.unwrap_or_default()).await {
                    Ok(mine) => mine,
                    Err(error) => {
                        tracing::debug!(%error, "which maps to follow isn't known");
                        paces.keys().copied().collect()
                    }
                };
                paces.retain(|vdisk, _| mine.contains(vdisk));
                for vdisk in mine {
                    let pace = paces.entry(vdisk).or_insert(Pace::new(self.config.map_follow));
                    if pace.is_due(boot_now()) && !self.stop.is_triggered() {
                        *pace = self.look(vdisk, *pace).await;
                    }
                }
                round = round.wrapping_add(1);
            }
            tokio::select! {
                () = self.stop.wait() => return,
                () = tokio::time::sleep(jitter(self.config.map_follow)) => {}
            }
        }
    }

    async fn look(&self, vdisk: VdiskId, pace: Pace) -> Pace {
        let Some(hold) = self.hold_map(vdisk) else { return pace.after(0, boot_now()) };
        match self.follow_map(vdisk, &hold).await {
            Ok(found) => pace.after(found, boot_now()),
            Err(error) => {
                tracing::debug!(%vdisk, %error, "its page map can't be followed now");
                pace.after(0, boot_now())
            }
        }
    }

    /// Brings the map up to date and puts it on disk; returns how many TLogs were new. Who calls this holds it.
    ///
    /// # Errors
    /// When the backend or the store can't.
    pub(crate) async fn follow_map(
        &self,
        vdisk: VdiskId,
        hold: &MapHold<'_>,
    ) -> Result<u64, OpenError> {
        let asker = Asker::Copier(&hold.wanted);
        let (_, head, _) = asker.unless_wanted(self.head(vdisk)).await??;
        let found = self.bring_map(vdisk, head, &mut Search::new(asker)).await?;
        if 0 < found {
            let maps = self.maps.clone();
            tokio::task::spawn_blocking(move || maps.write_back(vdisk)).await??;
        }
        Ok(found)
    }

    /// The vDisks whose maps this router copies. Those of `stored` that are of no vDisk any more are removed.
    async fn maps_to_follow(&self, stored: &[VdiskId]) -> Result<BTreeSet<VdiskId>, FactsError> {
        // Asked together they cost arakoon one round of its majority.
        let (vdisks, targets, online) =
            tokio::try_join!(self.facts.vdisks(), self.facts.dtl_targets(), self.online_routers())?;
        let targets: BTreeMap<VdiskId, Vec<RouterId>> = targets;
        let online: Vec<RouterId> = online.iter().map(|router| router.router).collect();
        let is_gone = |vdisk: &&VdiskId| vdisks.iter().all(|read| read.value.vdisk != **vdisk);
        for gone in stored.iter().filter(is_gone) {
            self.remove_map(*gone).await;
        }
        let mine = vdisks.iter().map(|read| &read.value).filter(|record| {
            let targets = targets.get(&record.vdisk).map_or(&[][..], Vec::as_slice);
            let (vdisk, owner) = (record.vdisk, record.owner);
            !record.deleting
                && owner != self.id
                && follows(self.id, &Followed { vdisk, owner, targets, online: &online })
        });
        Ok(mine.map(|record| record.vdisk).collect())
    }

    /// Routers in service, this one included.
    pub(crate) async fn online_routers(&self) -> Result<Vec<RouterRecord>, FactsError> {
        let (sessions, mut routers) =
            tokio::try_join!(self.facts.sessions(), self.facts.routers())?;
        let lives = |id: RouterId| {
            let session = key::router_session(id);
            sessions.iter().any(|known| known.id == session)
        };
        routers.retain(|router| router.state == RouterState::Online && lives(router.router));
        Ok(routers)
    }

    async fn remove_map(&self, gone: VdiskId) {
        let Some(_held) = self.hold_map(gone) else { return };
        tracing::info!(vdisk = %gone, "the page map of a deleted vDisk is removed");
        let maps = self.maps.clone();
        let erased = tokio::task::spawn_blocking(move || maps.erase(gone)).await;
        if !matches!(erased, Ok(Ok(()))) {
            tracing::warn!(vdisk = %gone, "its page map couldn't be removed");
        }
    }

    /// The page maps that this router has open: of its own vDisks, and copies.
    #[must_use]
    pub fn map_copies(&self) -> MapCopies {
        let open = self.maps.states();
        let mut state = self.state();
        let copies = open.into_iter().map(|(vdisk, map)| {
            let serving = state.serving(vdisk).ok();
            let newest = serving.as_ref().and_then(|serving| serving.checkpoints.newest());
            MapCopy {
                vdisk,
                object: map.object,
                last_lsn: map.last_lsn,
                checkpoint: newest.map(|newest| newest.last_lsn),
                serving: serving.is_some(),
            }
        });
        MapCopies { maps: copies.collect() }
    }
}
