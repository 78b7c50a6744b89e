//! Takes sealed units to the backend: several puts in flight per vDisk, commits followed in order.
//!
//! A put is repeated, the same object each time, until it is stored or the vDisk is fenced: the log holds the data, so
//! giving up would gain nothing. While the backend is out the vDisk is flagged degraded and writes go on until the log
//! runs short (L8).
//!
//! Invariant: the page map follows before the overlay forgets, and log space is freed last.

use std::sync::Arc;
use std::time::Duration;

use model::{Epoch, ObjectId, VdiskId};
use router_core::sco::{self, Built};
use router_core::volume::{Committed, Unit};
use runtime::clock::boot_now;
use runtime::random::jitter;
use tokio::task::JoinSet;
use wire::common::Severity;
use wire::proxy::{Head, PutDone, PutObject, code as proxy_code, method};
use wire::router::code;
use wire::{ErrorClass, WireError};

use crate::backend::BackendError;
use crate::fetch::Search;
use crate::follow::Asker;
use crate::router::Router;
use crate::state::{Records, Slot};

/// Pause after a round in which no proxy took a SCO; doubles up to the longest.
const PAUSE: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(2);

enum Stored {
    Done(ObjectId),
    /// A higher epoch is recorded: this router doesn't own the vDisk any more (L4).
    Fenced(String),
    /// The backend contradicts what this router knows; nothing more can be stored.
    Broken(String),
}

impl Router {
    /// Stores units of one vDisk until it isn't served here any more.
    pub async fn commit_loop(self: Arc<Self>, vdisk: VdiskId, epoch: Epoch) {
        let mut puts: JoinSet<Stored> = JoinSet::new();
        loop {
            let (units, wake, damaged) = {
                let mut state = self.state();
                let in_flight = self.config.scos_in_flight;
                let Ok(serving) = state.serving(vdisk) else { return };
                if serving.core.epoch() != epoch {
                    return;
                }
                let mut units = Vec::new();
                while let Some(unit) = serving.core.next_unit(in_flight) {
                    units.push(unit);
                }
                let damaged = std::mem::take(&mut serving.map_damaged);
                (units, Arc::clone(&serving.committer), damaged)
            };
            if damaged {
                self.rebuild_map(vdisk, epoch).await;
            }
            for unit in units {
                let router = Arc::clone(&self);
                puts.spawn(async move { router.store(unit).await });
            }
            tokio::select! {
                () = wake.notified() => {}
                () = self.stop.wait() => return,
                Some(stored) = puts.join_next() => match stored {
                    Ok(Stored::Done(object)) => self.committed((vdisk, epoch), object).await,
                    Ok(Stored::Fenced(reason)) => {
                        self.leave_at((vdisk, epoch), Slot::Fenced(reason));
                        return;
                    }
                    Ok(Stored::Broken(reason)) => {
                        self.leave_at((vdisk, epoch), Slot::Gap(reason));
                        return;
                    }
                    Err(error) => {
                        let reason = format!("storing a SCO failed: {error}");
                        self.leave_at((vdisk, epoch), Slot::Gap(reason));
                        return;
                    }
                },
            }
        }
    }

    async fn store(self: Arc<Self>, unit: Unit) -> Stored {
        let (object, predecessor) = (unit.object, unit.predecessor);
        let vdisk = object.vdisk;
        // Copies up to a whole SCO: off the request thread.
        let built = match tokio::task::spawn_blocking(move || sco::build(&unit)).await {
            Ok(built) => built,
            Err(error) => {
                return Stored::Broken(format!("SCO {object} couldn't be built: {error}"));
            }
        };
        let Built { payload, checksum, meta, tlog } = built;
        let put = PutObject {
            namespace: vdisk.into(),
            object,
            epoch: object.epoch,
            expected_head: predecessor,
            frame_size: sco::FRAME,
            meta: meta.encode(),
            checksum,
        };
        let mut pause = PAUSE;
        loop {
            let answer = self
                .backend
                .call_once::<_, PutDone>(method::PUT_OBJECT, &put, payload.clone())
                .await;
            let full = matches!(
                &answer,
                Err(BackendError::Unavailable { said: Some(proxy_code::NO_POLICY), .. })
            );
            let reason = match answer {
                Ok((done, _)) => {
                    tracing::debug!(%object, bytes = payload.len(), holes = done.holes, policy = done.policy, "stored");
                    let mut state = self.state();
                    if let Ok(serving) = state.serving(vdisk) {
                        serving.full_since = None;
                        if serving.degraded.take().is_some() {
                            let text = "it takes objects again";
                            self.events.of(Severity::Info, "backend-back", vdisk, text);
                        }
                        serving.tlogs.insert(object, Arc::new(tlog));
                    }
                    return Stored::Done(object);
                }
                Err(BackendError::Refused(error)) => match refused(object, &error) {
                    Some(end) => return end,
                    None => error.to_string(),
                },
                Err(error @ BackendError::Unavailable { .. }) => error.to_string(),
            };
            {
                let mut state = self.state();
                let Ok(serving) = state.serving(vdisk) else {
                    return Stored::Broken("no longer served".to_owned());
                };
                if serving.degraded.is_none() {
                    tracing::warn!(%vdisk, %object, reason, "the backend doesn't take SCOs; writes stay in the log");
                    let text = format!("it takes no objects, writes stay in the log: {reason}");
                    self.events.of(Severity::Warn, "backend-out", vdisk, &text);
                }
                serving.degraded = Some(reason);
                if full {
                    serving.full_since.get_or_insert_with(boot_now);
                } else {
                    (serving.full_since, serving.moved) = (None, None);
                }
            }
            tokio::time::sleep(jitter(pause)).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// A put succeeded: follow with the map, then forget and free what is committed now.
    async fn committed(self: &Arc<Self>, (vdisk, epoch): (VdiskId, Epoch), object: ObjectId) {
        let done: Vec<Committed> = match self.state().serving(vdisk) {
            Ok(serving) => serving.core.unit_done(object),
            Err(_) => return,
        };
        for committed in done {
            let tlog = match self.state().serving(vdisk) {
                Ok(serving) => {
                    let tlog = serving.tlogs.remove(&committed.object);
                    let tlog = tlog.expect("kept since its put succeeded");
                    // Before the map holds it: whatever is cut from the map is counted as covered.
                    let clusters = tlog.runs.iter().map(|run| u64::from(run.count)).sum();
                    serving.checkpoints.committed(clusters);
                    tlog
                }
                Err(_) => return,
            };
            let maps = self.maps.clone();
            let applied = tokio::task::spawn_blocking(move || maps.apply(&tlog)).await;
            let problem = match applied {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(error.to_string()),
                Err(error) => Some(error.to_string()),
            };
            if let Some(problem) = problem {
                tracing::error!(%vdisk, problem, "the page map can't follow; it is rebuilt");
                self.rebuild_map(vdisk, epoch).await;
            }
            {
                let mut state = self.state();
                state.drop_through(vdisk, committed.last_lsn);
                if let Ok(serving) = state.serving(vdisk) {
                    serving.objects += 1;
                    serving.moved = Some(boot_now());
                    if serving.checkpoints.wants(self.maps.written(vdisk), boot_now()) {
                        self.checkpoints.notify_one();
                    }
                }
            }
            self.space_freed();
        }
    }

    /// Throws the map away and makes it anew (L6); tries until it works, or the vDisk isn't served
    /// under this epoch any more: then the map is somebody else's to open.
    async fn rebuild_map(&self, vdisk: VdiskId, epoch: Epoch) {
        while self.state().serving(vdisk).is_ok_and(|serving| serving.core.epoch() == epoch) {
            let maps = self.maps.clone();
            let erased = tokio::task::spawn_blocking(move || {
                maps.erase(vdisk)?;
                // Empty, and not absent: who reads meanwhile is told that it is behind.
                maps.open_table(vdisk).map(drop)
            })
            .await;
            let problem = match erased {
                Ok(Ok(())) => match self.bring_map_now(vdisk, &mut Search::new(Asker::Owner)).await
                {
                    Ok(_) => {
                        // Asked for by who read meanwhile; real damage is met again (L8).
                        if let Ok(serving) = self.state().serving(vdisk) {
                            serving.map_damaged = false;
                        }
                        return;
                    }
                    Err(error) => error.to_string(),
                },
                Ok(Err(error)) => error.to_string(),
                Err(error) => error.to_string(),
            };
            tracing::warn!(%vdisk, problem, "the page map can't be rebuilt yet");
            tokio::select! {
                () = self.stop.wait() => return,
                () = tokio::time::sleep(jitter(PAUSE_MAX)) => {}
            }
        }
    }

    /// As [`Self::leave`], unless the vDisk isn't served under this epoch any more.
    pub fn leave_at(&self, (vdisk, epoch): (VdiskId, Epoch), slot: Slot) {
        if self.state().serving(vdisk).is_ok_and(|serving| serving.core.epoch() == epoch) {
            self.leave(vdisk, slot);
        }
    }

    /// Stops serving a vDisk and says so to everyone who waits; its log records stay (a restart decides about them),
    /// unless a DTL has them.
    pub fn leave(&self, vdisk: VdiskId, slot: Slot) {
        let protected = self.state().protected.contains(&vdisk);
        let (mut slot, mut records) = (slot, Records::Keep);
        if protected && let Slot::Fenced(reason) = slot {
            // Its next owner has all of it: it may come back.
            (slot, records) = (Slot::Elsewhere(reason), Records::Release);
        }
        let error = match &slot {
            Slot::Fenced(reason) | Slot::Elsewhere(reason) => {
                tracing::warn!(%vdisk, reason, "fenced: another router owns this vDisk now");
                self.events.of(Severity::Warn, "fenced", vdisk, reason);
                WireError::new(ErrorClass::Redirect, code::NOT_OWNER, reason.clone())
            }
            Slot::Gap(reason) => {
                tracing::error!(%vdisk, reason, "the vDisk can't be served");
                self.events.of(Severity::Error, "gap", vdisk, reason);
                WireError::refuse(code::GAP, reason.clone())
            }
            Slot::Opening(_) | Slot::Serving(_) | Slot::Deleting => {
                WireError::retry(code::RECOVERING, "the vDisk is not served here now")
            }
        };
        self.state().stop_serving(vdisk, slot, &error, records);
    }
}

/// What a refusal means; `None` = try again.
fn refused(object: ObjectId, error: &WireError) -> Option<Stored> {
    match error.code {
        proxy_code::FENCED => {
            Some(Stored::Fenced(format!("the backend has a higher epoch: {error}")))
        }
        proxy_code::WRONG_HEAD => {
            let head: Option<Head> = wire::decode_all(error.detail.clone()).ok();
            match head {
                Some(head) if object.epoch < head.epoch => {
                    Some(Stored::Fenced(format!("epoch {} took over", head.epoch)))
                }
                // The predecessor is on its way through another proxy.
                Some(_) | None => None,
            }
        }
        proxy_code::CONFLICT => {
            Some(Stored::Broken(format!("object {object} exists with other contents: {error}")))
        }
        proxy_code::NO_NAMESPACE => Some(Stored::Broken(format!("the namespace is gone: {error}"))),
        _ => None,
    }
}
