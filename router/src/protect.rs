//! vDisks with a DTL: claimed, recovered from own log ∪ DTL ∪ backend, and watched while they are served.
//!
//! The order is P18's: claim (epoch + 1) → seal the targets → raise the namespace's epoch → read the head → recover. What
//! may be believed then is `router_core::dtl::takeover`'s to say; a gap isn't served (L7), and is looked at again, since a
//! target that couldn't be reached may come back.
//!
//! The record of the DTL names this router's log (`log_id`) only from the first proposal on, when recovery has put into
//! it all that the backend lacks; a claim of another router takes the name out, and when the log is named again it counts
//! only from the position on where it ended at the claim. So a restart never believes records of an ownership that was
//! over in between (P10).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use arakoon_client::{Session, Transaction};
use model::{Epoch, LogId, Lsn, RouterId, VdiskId};
use router_core::dtl::owner::{Opening as OwnerOpening, Patience};
use router_core::dtl::takeover::{Evidence, judge};
use router_core::dtl::target::LOG_BYTES;
use router_core::log::Op;
use router_core::log::pool::Entry;
use router_core::volume::{Change, HeadState, Opening, Replayed, Stamp, Volume};
use tokio::task::{JoinHandle, JoinSet};
use wire::dtl::{DtlFacts, Held, code as dtl_code};
use wire::facts::{DtlRecord, VdiskRecord};
use wire::router::UnmapKind;

use crate::dtl::owner::DtlOwner;
use crate::facts::{Change as RecordChange, Read};
use crate::open::OpenError;
use crate::router::Router;
use crate::state::protection::Protection;
use crate::state::{KnownGap, Slot, Stage};

/// How often it is seen whether the session under which a vDisk was opened is lost.
const LOOK: Duration = Duration::from_secs(1);

/// A target's log holds several units, so that one can be on its way to the backend while the next one grows.
const UNIT_COPY_MAX: u64 = LOG_BYTES / 4;

/// A claim that is committed, and then who was sealed.
pub struct Claim {
    /// As it was when the claim was committed.
    dtl: DtlRecord,
    /// How many targets an operator wants.
    wish: Option<usize>,
    lease: Arc<Session>,
    sealed: Vec<(RouterId, Vec<Held>)>,
}

/// Whoever may hold what was promised.
pub fn holders(facts: &DtlFacts) -> BTreeSet<RouterId> {
    let previous = facts.previous.iter().flat_map(|promise| &promise.targets);
    facts.targets.iter().chain(previous).copied().collect()
}

impl Router {
    /// Step one of P18.
    pub(crate) async fn claim_protected(
        &self,
        read: &Read<VdiskRecord>,
        dtl: &Read<DtlRecord>,
    ) -> Result<(Read<VdiskRecord>, Claim), OpenError> {
        let lease = self.lease.current().filter(|lease| lease.lives()).ok_or(OpenError::NoLease)?;
        let vdisk = read.value.vdisk;
        let epoch = read.value.epoch.next();
        let trusted = self.trusts_own_log(vdisk, &dtl.value);
        let log_id = if trusted { dtl.value.log_id } else { 0 };
        // P10: what recovery doesn't place behind here is of an ownership that is over.
        let log_from = if trusted { dtl.value.log_from } else { self.state().log.written() };
        let session = lease.incarnation();
        let new_dtl = DtlRecord { epoch, session, log_id, log_from, ..dtl.value.clone() };
        let change = RecordChange {
            vdisk: (read, VdiskRecord { epoch, ..read.value.clone() }),
            dtl: Some((dtl, new_dtl)),
        };
        let lives = Transaction::new().assert_session_lives(lease.id(), lease.incarnation());
        let claimed = self.facts.change(change, lives).await?;
        // Once claimed, nobody else changes it.
        let wish = self.facts.dtl_wish(vdisk).await?;
        Ok((claimed, Claim { dtl: dtl.value.clone(), wish, lease, sealed: Vec::new() }))
    }

    /// The scan at the start is all that this process knows of its log's past.
    fn trusts_own_log(&self, vdisk: VdiskId, dtl: &DtlRecord) -> bool {
        dtl.log_id == self.disk.id.0 && !self.state().served.contains(&vdisk)
    }

    /// Seals every target that can be reached; one that can't is left out (P11).
    pub(crate) async fn seal(
        &self,
        vdisk: VdiskId,
        epoch: Epoch,
        claim: &mut Claim,
    ) -> Result<(), OpenError> {
        let mut seals = JoinSet::new();
        for router in holders(&claim.dtl.facts) {
            let peers = Arc::clone(&self.peers);
            seals.spawn(async move { (router, peers.seal(router, vdisk, epoch).await) });
        }
        let mut sealed = Vec::new();
        while let Some(done) = seals.join_next().await {
            match done? {
                (router, Ok(answer)) => sealed.push((router, answer.logs)),
                (_, Err(error)) if error.code() == Some(dtl_code::FENCED) => {
                    return Err(OpenError::LaterClaim);
                }
                (router, Err(error)) => {
                    tracing::warn!(%vdisk, %router, %error, "a DTL target isn't sealed");
                }
            }
        }
        sealed.sort_by_key(|(router, _)| *router);
        claim.sealed = sealed;
        Ok(())
    }

    /// The last step of P18: everything that was promised, from wherever it is.
    pub(crate) async fn recover_protected(
        &self,
        opening: Opening,
        claim: Claim,
    ) -> Result<(Volume, Protection), OpenError> {
        let Claim { dtl, wish, lease, sealed } = claim;
        let (vdisk, epoch, head) = (opening.vdisk, opening.epoch, opening.head.last_lsn);
        let open = |opening| {
            let mut core = Volume::open(opening);
            core.bound_units(UNIT_COPY_MAX);
            core
        };
        let mut core = open(opening.clone());
        let (mut kept, mut own_last, mut own_gap) = (BTreeMap::new(), None, None);
        if self.trusts_own_log(vdisk, &dtl) {
            let log = (LogId(dtl.log_id), dtl.log_from);
            match self.load(&mut core, &opening.head, log).await {
                Ok(found) => (kept, own_last) = (found, Some(core.last_lsn())),
                Err(OpenError::Gap(gap)) => {
                    tracing::warn!(%vdisk, %gap, "the own log isn't whole; the DTL is asked");
                    core = open(opening);
                    own_gap = Some(gap);
                }
                Err(error) => return Err(error),
            }
        }
        let (facts, mode) = (&dtl.facts, dtl.mode);
        let (me, epochs, sealed) = (self.id, core.epochs(), sealed.as_slice());
        let judged = judge(&Evidence { me, facts, mode, head, own_last, epochs, sealed });
        if judged.is_err() {
            let dtl = Some((own_last, epochs.clone()));
            let known = KnownGap { log: own_gap, dtl, epoch };
            self.state().gaps.insert(vdisk, known);
        }
        let plan = judged?;
        let entries = match &plan.source {
            Some(source) => self.peers.read(source, vdisk, epoch).await?,
            None => Vec::new(),
        };
        let (replayed, floor) = (entries.len(), plan.next.floor);
        let unsynced = self.place_read(&mut core, &entries).await?;
        self.take_part(vdisk, &kept);
        tracing::info!(%vdisk, %epoch, %head, ?own_last, replayed, last = %plan.last, "recovered with the DTL");
        let opening = OwnerOpening {
            vdisk,
            epoch,
            me: self.id,
            mode,
            unprotected: false,
            strict: false,
            facts: dtl.facts,
            next: plan.next,
            base: head,
            patience: Patience::default(),
        };
        if head < floor {
            // What may be promised, and was seen nowhere else, doesn't stay at one place for long.
            core.seal();
        }
        let entries = core.pending_entries();
        let owner = Arc::new(DtlOwner::start(opening, &entries, Arc::clone(&self.peers)));
        owner.want_targets(wish);
        if let Some(last) = own_last {
            owner.local_synced(last);
        }
        self.at(vdisk, Stage::Promise);
        // P10: nothing of this epoch enters the log before arakoon says through where earlier ones count. It can't fail any
        // more: who is fenced finds out while it serves, and promises nothing until then.
        tokio::select! {
            () = owner.wait_begun() => {}
            () = self.stop.wait() => {}
        }
        Ok((core, Protection::new(owner, lease, dtl.mode, unsynced)))
    }

    /// Records of a target get their place in the own log and in the overlay.
    async fn place_read(
        &self,
        core: &mut Volume,
        entries: &[Entry],
    ) -> Result<Vec<(Lsn, u64)>, OpenError> {
        let changes: Option<Vec<Change>> = entries.iter().map(change_of).collect();
        let changes = changes.ok_or(OpenError::StrangeRecord)?;
        let placed = self.place_all(core.epoch(), entries).await?;
        let mut unsynced = Vec::with_capacity(entries.len());
        for ((entry, change), placement) in entries.iter().zip(changes).zip(placed) {
            let (lsn, epoch) = (entry.lsn, entry.epoch);
            let stamp = Stamp { generation: entry.generation, seq: entry.seq, last: entry.last };
            unsynced.push((lsn, placement.end));
            core.replay(Replayed { lsn, epoch, change, stamp, placement });
        }
        Ok(unsynced)
    }

    /// The vDisk is deleted: its targets forget it. Best effort; a target that is away keeps files that nobody asks for.
    pub(crate) async fn forget_dtl(&self, vdisk: VdiskId, dtl: &DtlRecord) {
        let mut drops = JoinSet::new();
        for router in holders(&dtl.facts) {
            let (peers, epoch) = (Arc::clone(&self.peers), dtl.epoch);
            drops.spawn(async move {
                (router, peers.drop_log(router, vdisk, epoch, Lsn(u64::MAX)).await)
            });
        }
        while let Some(done) = drops.join_next().await {
            if let Ok((router, Err(error))) = done {
                tracing::info!(%vdisk, %router, %error, "a DTL target keeps the log of a deleted vDisk");
            }
        }
    }

    /// Answers whom the DTL covers, until the vDisk isn't served under this epoch any more.
    pub(crate) async fn dtl_loop(self: Arc<Self>, vdisk: VdiskId, epoch: Epoch) {
        let owner = match self.state().serving(vdisk) {
            Ok(serving) if serving.core.epoch() == epoch => match &serving.protection {
                Some(protection) => Arc::clone(&protection.owner),
                None => return,
            },
            Ok(_) | Err(_) => return,
        };
        let mut view = owner.watch();
        // Beside this loop, as arakoon may take long and others wait to be answered. One at a time.
        let mut renewal: Option<JoinHandle<()>> = None;
        loop {
            let fenced = view.borrow_and_update().fenced;
            if !self.state().tend(vdisk, epoch) {
                return;
            }
            if fenced {
                let reason = "a later claim sealed its DTL".to_owned();
                self.leave_at((vdisk, epoch), Slot::Fenced(reason));
                return;
            }
            if renewal.as_ref().is_none_or(JoinHandle::is_finished)
                && self.rests_on_a_lost_session(vdisk)
            {
                renewal = Some(tokio::spawn(Arc::clone(&self).renew_right(vdisk, epoch)));
            }
            tokio::select! {
                changed = view.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(LOOK) => {}
                () = self.stop.wait() => return,
            }
        }
    }
}

/// `None`: no change that this version makes.
fn change_of(entry: &Entry) -> Option<Change> {
    let range = model::ClusterRange::new(entry.cluster, entry.count)?;
    match entry.op {
        Op::Write => Some(Change::Write {
            cluster: entry.cluster,
            data: entry.payload.clone(),
            checksums: entry.checksums.clone(),
        }),
        Op::Trim => Some(Change::Unmap { range, kind: UnmapKind::Trim }),
        Op::Zero => Some(Change::Unmap { range, kind: UnmapKind::Zero }),
        Op::Start | Op::List => None,
    }
}

/// What recovery begins with.
#[must_use]
pub fn opening_of(record: &VdiskRecord, unit_clusters: u32, head: HeadState) -> Opening {
    let VdiskRecord { vdisk, epoch, size_bytes, .. } = *record;
    Opening { vdisk, epoch, size_bytes, unit_clusters, head }
}
