//! Attachments are facts in arakoon with a generation, fenced like owners (P4).
//!
//! An exclusive attachment refuses a second edge by name, unless that one takes over; then the first one's generation is
//! dead: its queue is dropped before the new edge gets its answer, and whatever it still sends is refused. Shared
//! attachments stand beside each other, where a synchronous DTL holds what each was told is done (P5).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use model::{AttachmentGeneration, DomainPath, VdiskId};
use runtime::clock::boot_now;
use runtime::peer::Peer;
use runtime::rpc::Responder;
use tokio::time::Instant;
use wire::WireError;
use wire::dtl::DtlMode;
use wire::facts::{AttachmentMode, AttachmentRecord, AttachmentsRecord, VdiskRecord};
use wire::router::{Attach, AttachMode, Attached, Detach, code};

use crate::router::Router;
use crate::state::{Serving, Session};

/// Tries against concurrent changes of the same record.
pub(crate) const TRIES: usize = 8;
/// How long an edge waits here for a vDisk that is being opened; its own patience is longer.
pub(crate) const OPENING_PATIENCE: Duration = Duration::from_secs(8);

const fn stored(mode: AttachMode) -> AttachmentMode {
    match mode {
        AttachMode::Exclusive => AttachmentMode::Exclusive,
        AttachMode::Shared => AttachmentMode::Shared,
        AttachMode::ReadOnly => AttachmentMode::ReadOnly,
    }
}

pub(crate) const fn spoken(mode: AttachmentMode) -> AttachMode {
    match mode {
        AttachmentMode::Exclusive => AttachMode::Exclusive,
        AttachmentMode::Shared => AttachMode::Shared,
        AttachmentMode::ReadOnly => AttachMode::ReadOnly,
    }
}

/// What an attach changes: the new record, and which generation is the caller's.
///
/// # Errors
/// Why it is refused.
fn decide(
    attach: &Attach,
    old: &AttachmentsRecord,
    dtl: DtlMode,
) -> Result<(AttachmentsRecord, AttachmentRecord), WireError> {
    if let Some(generation) = attach.reclaim {
        let mut new = old.clone();
        let mine =
            new.live.iter_mut().find(|l| l.generation == generation && l.edge == attach.edge);
        return match mine {
            Some(mine) => {
                if !attach.domain.is_empty() {
                    mine.domain.clone_from(&attach.domain);
                }
                let mine = mine.clone();
                Ok((new, mine))
            }
            None => Err(WireError::refuse(
                code::ATTACHMENT_FENCED,
                format!("attachment {generation} was ended or taken over; attach anew"),
            )),
        };
    }
    if attach.mode == AttachMode::Shared && dtl != DtlMode::Sync {
        let message = format!(
            "shared attachments need a synchronous DTL, which vDisk {} doesn't have; give it one with `vdisk set --dtl sync`",
            attach.name
        );
        return Err(WireError::refuse(code::INVALID, message));
    }
    // An edge that comes without its token is a new life of it: its old attachments are over.
    let mut live: Vec<AttachmentRecord> =
        old.live.iter().filter(|l| l.edge != attach.edge).cloned().collect();
    let beside = |l: &AttachmentRecord| match attach.mode {
        AttachMode::ReadOnly => true,
        AttachMode::Shared => l.mode != AttachmentMode::Exclusive,
        AttachMode::Exclusive => l.mode == AttachmentMode::ReadOnly,
    };
    if let Some(writer) = live.iter().find(|l| !beside(l)) {
        if !attach.take_over {
            let how =
                if writer.mode == AttachmentMode::Shared { "to share it" } else { "exclusively" };
            return Err(WireError::refuse(
                code::ATTACHED_ELSEWHERE,
                format!(
                    "edge {} ({}) is attached {how}; detach it, or take over explicitly",
                    writer.edge_name, writer.edge
                ),
            ));
        }
        live.retain(beside);
    }
    let mine = AttachmentRecord {
        edge: attach.edge,
        edge_name: attach.edge_name.clone(),
        generation: old.last_generation.next(),
        mode: stored(attach.mode),
        domain: attach.domain.clone(),
    };
    live.push(mine.clone());
    Ok((AttachmentsRecord { last_generation: mine.generation, live }, mine))
}

/// Whether somebody still waits for the answer.
type Awaited<'a> = &'a (dyn Fn() -> bool + Sync);

pub(crate) enum Outcome {
    Changed,
    /// Somebody else was quicker: look again.
    Conflict,
}

impl Router {
    pub async fn attach(
        self: Arc<Self>,
        attach: Attach,
        (peer, deadline): (Arc<Peer>, Option<Instant>),
        responder: Responder,
    ) {
        let in_time = || deadline.is_none_or(|deadline| Instant::now() < deadline);
        let is_awaited = || !responder.is_gone() && in_time();
        let attached = self.attach_by_name(&attach, &peer, &is_awaited).await;
        responder.finish(attached);
    }

    async fn attach_by_name(
        self: &Arc<Self>,
        attach: &Attach,
        peer: &Arc<Peer>,
        is_awaited: Awaited<'_>,
    ) -> Result<Attached, WireError> {
        if let Err(error) = attach.domain.parse::<DomainPath>()
            && !attach.domain.is_empty()
        {
            let message = format!("the domain of edge {}: {error}", attach.edge_name);
            return Err(WireError::refuse(code::INVALID, message));
        }
        let vdisk = match self.owned_by_name(&attach.name).await {
            Err(error) if error.code == code::NOT_OWNER => {
                // The owner may have left it behind, or be gone.
                match self.take_left_behind(&attach.name).await? {
                    Some(vdisk) => vdisk,
                    None => self.claim_from_gone(&attach.name).await?.ok_or(error)?,
                }
            }
            owned => owned?,
        };
        // Not for ever: the edge wants to hear what it waits for.
        let _ = tokio::time::timeout(OPENING_PATIENCE, self.wait_served(vdisk)).await;
        self.attach_to(vdisk, attach, peer, is_awaited).await
    }

    async fn attach_to(
        self: &Arc<Self>,
        vdisk: VdiskId,
        attach: &Attach,
        peer: &Arc<Peer>,
        is_awaited: Awaited<'_>,
    ) -> Result<Attached, WireError> {
        if let Some(attached) = self.attach_again(vdisk, attach, peer)? {
            return Ok(attached);
        }
        for _ in 0..TRIES {
            let (owner, dtl) = {
                let mut state = self.state();
                let serving = state.serving(vdisk)?;
                let dtl = serving.protection.as_ref().map_or(DtlMode::NoTarget, |p| p.mode);
                (serving.record.clone(), dtl)
            };
            let (old, bytes) =
                self.facts.attachments(vdisk).await.map_err(|error| error.to_wire())?;
            let (new, mine) = decide(attach, &old, dtl)?;
            // The same edge may have asked anew since, and what nobody hears would fence what it was given then (P4).
            if !is_awaited() {
                return Err(WireError::retry(code::RECOVERING, "nobody waits for this attach"));
            }
            if new == old {
                let mut state = self.state();
                return Ok(self.admit_session(state.serving(vdisk)?, attach, &mine, peer));
            }
            match self.change(&owner, bytes, new).await? {
                Outcome::Changed => {}
                Outcome::Conflict => continue,
            }
            let mut state = self.state();
            return Ok(self.admit_session(state.serving(vdisk)?, attach, &mine, peer));
        }
        Err(WireError::retry(code::RECOVERING, "others keep changing the attachments; try again"))
    }

    /// The same edge with the same token while its session is in memory: no need to ask arakoon.
    fn attach_again(
        &self,
        vdisk: VdiskId,
        attach: &Attach,
        peer: &Arc<Peer>,
    ) -> Result<Option<Attached>, WireError> {
        let mut state = self.state();
        let serving = state.serving(vdisk)?;
        let Some(generation) = attach.reclaim else { return Ok(None) };
        let mine = serving
            .attachments
            .live
            .iter()
            .find(|l| l.generation == generation && l.edge == attach.edge)
            // Where it runs is told to arakoon when it has changed.
            .filter(|l| attach.domain.is_empty() || l.domain == attach.domain);
        let Some(mine) = mine.cloned() else { return Ok(None) };
        Ok(Some(self.admit_session(serving, attach, &mine, peer)))
    }

    fn admit_session(
        &self,
        serving: &mut Serving,
        attach: &Attach,
        mine: &AttachmentRecord,
        peer: &Arc<Peer>,
    ) -> Attached {
        let session = Session {
            edge_name: attach.edge_name.clone(),
            mode: spoken(mine.mode),
            peer: Arc::downgrade(peer),
            attached: boot_now(),
        };
        tracing::info!(
            vdisk = %serving.record.name, edge = %session.edge_name, generation = %mine.generation, "edge attached"
        );
        serving.sessions.insert(mine.generation, session);
        Attached {
            vdisk: serving.core.vdisk(),
            generation: mine.generation,
            epoch: serving.core.epoch(),
            incarnation: self.identity.incarnation,
            size_bytes: serving.core.size_bytes,
            applied: serving.core.applied().get(mine.generation).to_wire(),
            last_lsn: serving.core.last_lsn(),
        }
    }

    /// Changes the record, and fences whoever isn't in it any more before anyone is answered.
    pub(crate) async fn change(
        self: &Arc<Self>,
        owner: &VdiskRecord,
        old: Option<Bytes>,
        new: AttachmentsRecord,
    ) -> Result<Outcome, WireError> {
        let revision = match self.facts.change_attachments(owner, old, &new).await {
            Ok(revision) => revision,
            Err(error) if error.is_conflict() => {
                self.read_record_again(owner).await?;
                return Ok(Outcome::Conflict);
            }
            Err(error) => return Err(error.to_wire()),
        };
        let live: BTreeSet<AttachmentGeneration> =
            new.live.iter().map(|live| live.generation).collect();
        let error = WireError::refuse(code::ATTACHMENT_FENCED, "another edge took this vDisk over");
        let mut actions = Vec::new();
        {
            let mut state = self.state();
            let serving = state.serving(owner.vdisk)?;
            // An answer may come late, when others have changed it further (P4).
            if serving.core.epoch() != owner.epoch || revision <= serving.attachments_at {
                let message = "the attachments have changed further; try again";
                return Err(WireError::retry(code::RECOVERING, message));
            }
            let before = std::mem::replace(&mut serving.attachments, new);
            serving.attachments_at = revision;
            let generations = before.live.iter().map(|live| live.generation);
            let fenced: Vec<_> = generations.filter(|one| !live.contains(one)).collect();
            for generation in &fenced {
                serving.sessions.remove(generation);
                serving.awaiting.remove(generation);
            }
            serving.core.applied_mut().retain(|generation| live.contains(&generation));
            serving.note_sharing();
            for generation in fenced {
                state.drop_queue_of((owner.vdisk, generation), &error, &mut actions);
            }
        }
        self.run_actions(actions);
        Ok(Outcome::Changed)
    }

    /// The vDisk's record may have changed without this router hearing of it, when an answer was lost.
    pub(crate) async fn read_record_again(&self, known: &VdiskRecord) -> Result<(), WireError> {
        let read = self.facts.vdisk(known.vdisk).await.map_err(|error| error.to_wire())?;
        let mut state = self.state();
        let serving = state.serving(known.vdisk)?;
        if let Some(read) = read
            && (read.value.owner, read.value.epoch) == (known.owner, known.epoch)
            && serving.core.epoch() == known.epoch
            && serving.record == *known
        {
            serving.core.size_bytes = read.value.size_bytes;
            serving.record = read.value;
        }
        Ok(())
    }

    pub async fn detach(self: Arc<Self>, detach: Detach, responder: Responder) {
        responder.finish(self.end_attachment(&detach).await);
    }

    async fn end_attachment(self: &Arc<Self>, detach: &Detach) -> Result<(), WireError> {
        for _ in 0..TRIES {
            let owner: VdiskRecord = {
                let mut state = self.state();
                let serving = state.serving(detach.vdisk)?;
                serving.session(detach.generation)?;
                serving.record.clone()
            };
            let (old, bytes): (AttachmentsRecord, Option<Bytes>) =
                self.facts.attachments(detach.vdisk).await.map_err(|error| error.to_wire())?;
            let mut new = old.clone();
            new.live.retain(|live| live.generation != detach.generation);
            match self.change(&owner, bytes, new).await? {
                Outcome::Changed => {}
                Outcome::Conflict => continue,
            }
            let mut state = self.state();
            let serving = state.serving(detach.vdisk)?;
            // The last writer is gone: what is pending goes to the backend rather than wait for more.
            serving.core.seal();
            serving.committer.notify_one();
            return Ok(());
        }
        Err(WireError::retry(code::RECOVERING, "others keep changing the attachments; try again"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::EdgeId;

    fn attach(edge: u128, mode: AttachMode) -> Attach {
        Attach {
            name: "demo".into(),
            edge: EdgeId(edge),
            edge_name: format!("edge-{edge}"),
            mode,
            reclaim: None,
            take_over: false,
            domain: "dc1/rack1/host1".into(),
        }
    }

    fn empty() -> AttachmentsRecord {
        AttachmentsRecord { last_generation: AttachmentGeneration(0), live: Vec::new() }
    }

    #[test]
    fn a_second_exclusive_edge_is_refused_by_name_or_takes_over() {
        let (one, mine) =
            decide(&attach(1, AttachMode::Exclusive), &empty(), DtlMode::Sync).unwrap();
        assert_eq!(mine.generation, AttachmentGeneration(1));
        let error = decide(&attach(2, AttachMode::Exclusive), &one, DtlMode::Sync).unwrap_err();
        assert_eq!(error.code, code::ATTACHED_ELSEWHERE);
        assert!(error.message.contains("edge-1"));
        let over = Attach { take_over: true, ..attach(2, AttachMode::Exclusive) };
        let (two, mine) = decide(&over, &one, DtlMode::Sync).unwrap();
        assert_eq!((mine.generation, two.live.len()), (AttachmentGeneration(2), 1));
        let back =
            Attach { reclaim: Some(AttachmentGeneration(1)), ..attach(1, AttachMode::Exclusive) };
        assert_eq!(decide(&back, &two, DtlMode::Sync).unwrap_err().code, code::ATTACHMENT_FENCED);
        assert_eq!(decide(&back, &one, DtlMode::Sync).unwrap().0, one);
        let moved = Attach { domain: "dc2/rack1/host1".into(), ..back.clone() };
        let (there, mine) = decide(&moved, &one, DtlMode::Sync).unwrap();
        assert_eq!((&there.live[0], &*mine.domain), (&mine, "dc2/rack1/host1"));
        let silent = Attach { domain: String::new(), ..back };
        assert_eq!(decide(&silent, &there, DtlMode::Sync).unwrap().0, there);
    }

    #[test]
    fn readers_may_stand_beside_a_writer_and_generations_only_grow() {
        let (one, _) = decide(&attach(1, AttachMode::Exclusive), &empty(), DtlMode::Sync).unwrap();
        let (two, reader) = decide(&attach(2, AttachMode::ReadOnly), &one, DtlMode::Sync).unwrap();
        assert_eq!((two.live.len(), reader.generation.0), (2, 2));
        let (three, again) =
            decide(&attach(1, AttachMode::Exclusive), &two, DtlMode::Sync).unwrap();
        assert_eq!((three.live.len(), again.generation.0), (2, 3));
    }

    #[test]
    fn p5_sharers_stand_beside_each_other_and_beside_no_exclusive_writer() {
        let shared = attach(1, AttachMode::Shared);
        let refused = decide(&shared, &empty(), DtlMode::Async).unwrap_err();
        assert!(refused.message.contains("--dtl sync"), "{refused}");
        let (one, _) = decide(&shared, &empty(), DtlMode::Sync).unwrap();
        let (two, _) = decide(&attach(2, AttachMode::Shared), &one, DtlMode::Sync).unwrap();
        assert_eq!(two.live.len(), 2);
        let alone = attach(3, AttachMode::Exclusive);
        let refused = decide(&alone, &two, DtlMode::Sync).unwrap_err();
        assert!(refused.message.contains("edge-1") && refused.message.contains("share"));
        let over = Attach { take_over: true, ..alone };
        let (three, mine) = decide(&over, &two, DtlMode::Sync).unwrap();
        assert_eq!(three.live, [mine]);
        let refused = decide(&attach(1, AttachMode::Shared), &three, DtlMode::Sync).unwrap_err();
        assert!(refused.message.contains("edge-3") && refused.message.contains("exclusively"));
    }
}
