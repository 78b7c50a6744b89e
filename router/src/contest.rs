//! An edge gets no service from an owner that isn't gone: its cable is cut, its log disk hangs (P19).
//!
//! ```text
//!  edge                          R2                                  owner R1
//!  CONTEST(epoch, attachment) ─▶ may it move already? (back-off)
//!                                CONTESTED ────────────────────────▶ did that edge attach just now, or
//!                                                                    is room all that is missing, or what others
//!                                                                    owe? then REFUTED;
//!                                                                    else: not InSync: hands the vDisk over by itself;
//!                                                                    it has a gap, or no room: YIELDED
//!                                no answer, or not refuted, InSync:
//!                                claims like from a dead owner (P16, P18)
//!  ATTACH ─────────────────────▶
//! ```
//! The claim asserts the records that were read, so of two contests one wins, and one that lingered on its way takes
//! nothing from a later owner. In a state other than InSync nothing is taken from an owner whose session lives: there only
//! the session ends its right to read.
//!
//! What then stands against a claim is said to the edge that contests, whose log has it.
//!
//! Unless it serves nothing: an owner whose recovery ended at a gap, or found no room in its write log, has let go of the
//! epoch of that try for good, and the next one begins with a claim that asserts the same records (P10). So it yields that
//! epoch, in any state; who contests must reach all that was promised, as for every claim (L7), and either claim makes the
//! other impossible (L3).

use std::sync::Arc;
use std::time::Duration;

use arakoon_client::Transaction;
use model::{Epoch, VdiskId};
use router_core::contest::{self, Service, Verdict};
use runtime::clock::boot_now;
use runtime::rpc::{Call, CallError};
use wire::WireError;
use wire::common::Severity;
use wire::dtl::DtlState;
use wire::facts::{
    AttachmentMode, AttachmentsRecord, ContestRecord, DtlRecord, Record, VdiskRecord, key,
};
use wire::router::{Contest, Contested, code, method};

use crate::claim::Right;
use crate::facts::Read;
use crate::router::Router;
use crate::state::{Serving, Slot, Stage, State};

/// How long the owner has to refute. One that can't answer in this time serves nobody.
const REFUTE_PATIENCE: Duration = Duration::from_millis(500);

/// How long others wait for what may come of a contest.
const FROZEN_MAX: Duration = Duration::from_secs(1);

/// What an owner says that doesn't refute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Said {
    /// It can't be asked, or can't say.
    Nothing,
    /// It has heard it, and hands the vDisk over by itself where nothing may be taken from it.
    Heard,
    /// It serves nothing by this epoch, and never will.
    Yielded,
}

fn refuted(why: impl Into<String>) -> WireError {
    WireError::retry(code::REFUTED, why.into())
}

/// Whether this edge has a say: its attachment lives, or no other edge writes.
fn has_a_say(contest: &Contest, attachments: &AttachmentsRecord) -> bool {
    let mut live = attachments.live.iter();
    match contest.generation {
        Some(mine) => live.any(|l| l.generation == mine && l.edge == contest.edge),
        None => live.all(|l| l.edge == contest.edge || l.mode == AttachmentMode::ReadOnly),
    }
}

impl Router {
    /// An edge has no service from the owner. Returns when the vDisk was claimed here, or when there is nothing to contest.
    ///
    /// # Errors
    /// `REFUTED` when the vDisk stays where it is for now; what else a claim says.
    pub(crate) async fn contest(self: &Arc<Self>, contest: &Contest) -> Result<(), WireError> {
        let read = self.record_by_name(&contest.name).await?;
        let VdiskRecord { vdisk, owner, epoch, deleting, .. } = read.value;
        if owner == self.id || epoch != contest.epoch || deleting || !self.could_take(vdisk) {
            return Ok(());
        }
        if !self.has_room() {
            return Err(refuted("the log here is too full to recover it"));
        }
        let (attachments, _) =
            self.facts.attachments(vdisk).await.map_err(|error| error.to_wire())?;
        if !has_a_say(contest, &attachments) {
            return Err(refuted("another edge is attached, or took over"));
        }
        let past = self.facts.contest(vdisk).await.map_err(|error| error.to_wire())?;
        let (rounds, ruled) = past.as_ref().map_or((0, Duration::ZERO), |past| {
            (past.value.rounds, self.state().ruled.by(vdisk, past.value.epoch, boot_now()))
        });
        let old = past.map(|past| past.bytes);
        let rounds = match contest::judge(rounds, ruled) {
            Verdict::Move { rounds } => rounds,
            Verdict::Wait(left) => {
                let why =
                    format!("it moved {rounds} times in a row, and stays for another {left:?}");
                return Err(refuted(why));
            }
        };
        let contested = Contested { vdisk, epoch, generation: contest.generation, by: self.id };
        let said = self.ask_owner(owner, &contested).await?;
        let dtl = self.facts.dtl(vdisk).await.map_err(|error| error.to_wire())?;
        let claimable = |dtl: &Read<DtlRecord>| {
            said == Said::Yielded || dtl.value.facts.state == DtlState::InSync
        };
        let Some(dtl) = dtl.filter(claimable) else {
            // An owner that is asked hands it over. From one that can't be asked nothing may be taken while its session
            // lives; after that it is claimed as from any that is gone.
            let claimed = self.claim_from_gone(&contest.name).await?.is_some();
            if !claimed && said == Said::Nothing {
                return self.why_not_claimed(&read.value).await;
            }
            return Ok(());
        };
        let key = key::vdisk_contest(vdisk);
        let new = ContestRecord { rounds, by: self.id, epoch: epoch.next() };
        let also = Transaction::new().assert_is(&key, old).set(&key, new.to_record());
        let (why, right) = match said {
            Said::Yielded => ("it can't recover it, and this router can", Right::Yielded),
            Said::Nothing | Said::Heard => ("an edge has no service from it", Right::ByState),
        };
        self.claim_from(&read, &dtl, (why, right, also)).await?;
        Ok(())
    }

    /// An owner that can't be asked keeps its vDisk, unless somebody else took it meanwhile.
    async fn why_not_claimed(&self, asked: &VdiskRecord) -> Result<(), WireError> {
        let VdiskRecord { vdisk, owner, epoch, .. } = *asked;
        let read = self.facts.vdisk(vdisk).await.map_err(|error| error.to_wire())?;
        if read.is_none_or(|read| (read.value.owner, read.value.epoch) != (owner, epoch)) {
            return Ok(());
        }
        let dtl = self.facts.dtl(vdisk).await.map_err(|error| error.to_wire())?;
        let why = match dtl.map(|read| read.value.facts.state) {
            None => "without a DTL only its log holds what isn't in the backend yet".to_owned(),
            Some(state) => format!(
                "its DTL is {state:?}, so that only the end of its session in arakoon lets another claim it"
            ),
        };
        let owner = self.ties.name_of(owner);
        tracing::info!(%vdisk, name = asked.name, owner, why, "a contested vDisk isn't claimed");
        Err(refuted(format!("its owner {owner} can't be asked; {why}")))
    }

    fn has_room(&self) -> bool {
        let state = self.state();
        contest::has_room(state.log.used(), state.log.capacity())
    }

    /// Gives the owner the chance to refute. Not being answered is no refutation.
    async fn ask_owner(
        &self,
        owner: model::RouterId,
        contested: &Contested,
    ) -> Result<Said, WireError> {
        let asking = async {
            let connection = self.peers.connection(owner).await?;
            let call = Call::within(REFUTE_PATIENCE);
            connection.call::<_, ()>(method::CONTESTED, contested, call).await.map(drop)
        };
        match tokio::time::timeout(REFUTE_PATIENCE, asking).await {
            Ok(Err(CallError::Refused(error))) if error.code == code::REFUTED => Err(error),
            Ok(Err(CallError::Refused(error))) if error.code == code::YIELDED => {
                let missing = &error.message;
                tracing::warn!(%owner, vdisk = %contested.vdisk, missing, "a contested owner can't recover it");
                Ok(Said::Yielded)
            }
            Ok(Err(error)) => {
                tracing::info!(%owner, vdisk = %contested.vdisk, %error, "a contested owner doesn't refute");
                Ok(Said::Nothing)
            }
            Ok(Ok(())) => Ok(Said::Heard),
            Err(_) => Ok(Said::Nothing),
        }
    }

    /// Learns which vDisks moved by a contest, so that the time until the next one runs from now.
    pub(crate) async fn know_contests(&self) {
        match self.facts.contests().await {
            Ok(moved) => {
                let now = boot_now();
                let mut state = self.state();
                for (vdisk, record) in moved {
                    state.ruled.by(vdisk, record.epoch, now);
                }
            }
            Err(error) => tracing::debug!(%error, "can't read which vDisks were contested"),
        }
    }

    /// This router owns a vDisk, and another one says that an edge has no service from it.
    ///
    /// # Errors
    /// `REFUTED` when that edge has service.
    pub(crate) fn contested(self: &Arc<Self>, contested: &Contested) -> Result<(), WireError> {
        let Contested { vdisk, epoch, generation, by } = *contested;
        let mut state = self.state();
        let disk_owes = state.sync_since.into_iter().chain(state.preparing).min();
        let disk_full = state.log_problem.is_some();
        if let Some(yielded) = state.yielded(vdisk, epoch) {
            return Err(yielded);
        }
        let serving = state.serving(vdisk)?;
        if serving.core.epoch() != epoch {
            return Err(refuted("the epoch isn't the one that was contested"));
        }
        let session = generation.and_then(|generation| serving.sessions.get(&generation));
        let waits = generation.is_some_and(|generation| serving.waits_for_room(generation))
            && session.is_some_and(crate::state::Session::is_connected)
            && 0 < serving.core.pending_bytes();
        // One that is awaited may contest for itself: perhaps it can't reach this router.
        let owed = serving.awaiting.iter().any(|awaited| Some(*awaited) != generation);
        let service = Service {
            waits_for_others: owed || serving.handing_over,
            attached: session.map(|session| session.attached),
            waits_for_room: waits && !disk_full,
            moved: serving.moved,
            full_since: serving.full_since,
            disk_owes,
        };
        let now = boot_now();
        if contest::is_refuted(now, &service) {
            let why = if service.waits_for_others {
                "its requests wait for another edge to replay, or for a hand-over to end"
            } else {
                "the edge has just attached here, or waits for the backend to take what is pending"
            };
            return Err(refuted(why));
        }
        if contest::is_told(now, serving.told_contested) {
            serving.told_contested = Some(now);
            tracing::warn!(%vdisk, name = %serving.record.name, %by, "contested: an edge has no service from here");
            let text = format!("by {}: an edge has no service from here", self.ties.name_of(by));
            self.events.of(Severity::Warn, "contested", vdisk, &text);
        }
        if !serving.is_claimable() && !serving.handing_over {
            // Others may have service here: they don't wait again and again for what can't be (L8).
            if serving.degraded.is_some() {
                return Err(refuted("the backend doesn't take what is pending"));
            }
            if contest::is_spared(boot_now(), serving.frozen_in_vain) {
                return Err(refuted("a hand-over was tried in vain just now"));
            }
            let router = Arc::clone(self);
            // Says by itself why it didn't come about; then the vDisk is served on here.
            tokio::spawn(
                async move { router.transfer_within(vdisk, by, FROZEN_MAX).await.map(drop) },
            );
        }
        Ok(())
    }
}

impl State {
    /// What an owner says that tried to open the vDisk at this epoch and found a gap, or no room.
    fn yielded(&self, vdisk: VdiskId, epoch: Epoch) -> Option<WireError> {
        // By a later epoch than that of the try it may be served in a moment.
        let missing = match self.volumes.get(&vdisk)? {
            Slot::Gap(missing) => {
                let known = self.gaps.get(&vdisk).filter(|known| known.epoch == epoch)?;
                known.dtl.as_ref()?;
                missing.clone()
            }
            Slot::Opening(stage @ Stage::NoRoom { epoch: tried, .. }) if *tried == epoch => {
                stage.to_string()
            }
            Slot::Opening(_)
            | Slot::Serving(_)
            | Slot::Fenced(_)
            | Slot::Elsewhere(_)
            | Slot::Deleting => return None,
        };
        Some(WireError::refuse(code::YIELDED, missing))
    }
}

impl Serving {
    /// Another router may claim it although this one lives (P16).
    fn is_claimable(&self) -> bool {
        self.protection.as_ref().is_some_and(|held| held.owner.state() == DtlState::InSync)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{AttachmentGeneration, EdgeId};
    use wire::facts::AttachmentRecord;

    #[test]
    fn only_an_edge_that_is_attached_or_stands_in_nobodys_way_may_contest() {
        let live = |edge, generation, mode| AttachmentRecord {
            edge: EdgeId(edge),
            edge_name: String::new(),
            generation: AttachmentGeneration(generation),
            mode,
            domain: String::new(),
        };
        let contest = |edge, generation: Option<u64>| Contest {
            name: "demo".into(),
            edge: EdgeId(edge),
            generation: generation.map(AttachmentGeneration),
            epoch: Epoch(1),
        };
        let attachments = AttachmentsRecord {
            last_generation: AttachmentGeneration(2),
            live: vec![live(1, 1, AttachmentMode::Exclusive), live(2, 2, AttachmentMode::ReadOnly)],
        };
        assert!(has_a_say(&contest(1, Some(1)), &attachments));
        assert!(has_a_say(&contest(2, Some(2)), &attachments));
        assert!(!has_a_say(&contest(1, Some(2)), &attachments), "another edge's generation");
        assert!(!has_a_say(&contest(3, Some(3)), &attachments), "taken over");
        assert!(!has_a_say(&contest(3, None), &attachments), "a stranger against a writer");
        assert!(has_a_say(&contest(1, None), &attachments), "a new life of the writer");
        let nobody = AttachmentsRecord { live: Vec::new(), ..attachments };
        assert!(has_a_say(&contest(3, None), &nobody));
    }
}
