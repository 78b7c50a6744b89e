//! An operator ends an attachment whose edge doesn't come back (P4, P6).
//!
//! An edge that dies together with its vDisk's owner leaves an attachment that nobody ends: the next owner waits for its
//! replay, and so does everyone else who is attached. Whether it comes back is not for a router to guess. An edge that is
//! ended and comes back all the same is fenced: its users get I/O errors, and what it hadn't flushed is given up.
//!
//! Invariant: an attachment is ended in arakoon before anybody is let in front of what it owed.

use std::sync::Arc;
use std::time::Duration;

use runtime::clock::boot_now;
use wire::WireError;
use wire::common::Severity;
use wire::facts::{AttachmentRecord, AttachmentsRecord};
use wire::router::{EndAttachment, EndedAttachment, code};

use crate::attach::{OPENING_PATIENCE, Outcome, TRIES, spoken};
use crate::router::Router;

/// An edge that lives is back by then: it looks for the owner at once when its connection closes, and after its
/// `failover_after` (15 s) when nothing is heard.
const COMING_BACK: Duration = Duration::from_secs(30);

/// What the record names, and what is served here all the same: when arakoon's answer to the end of an attachment was
/// lost, that attachment is in memory alone, and is ended by saying it again.
fn known(record: &AttachmentsRecord, here: &AttachmentsRecord) -> AttachmentsRecord {
    let mut all = record.clone();
    // One that attached anew is known by the record alone.
    let is_new = |one: &&AttachmentRecord| record.live.iter().all(|live| live.edge != one.edge);
    all.live.extend(here.live.iter().filter(is_new).cloned());
    all
}

/// The attachment of the edge with this name or id.
///
/// # Errors
/// When there is none, or more than one; with what there is.
fn choose<'a>(
    edge: &str,
    attachments: &'a AttachmentsRecord,
) -> Result<&'a AttachmentRecord, WireError> {
    let invalid = |message: String| WireError::refuse(code::INVALID, message);
    let list = |live: &[&AttachmentRecord]| {
        let shown = live.iter().map(|one| {
            let mode = format!("{:?}", one.mode).to_lowercase();
            format!("{} ({}, {mode}, generation {})", one.edge_name, one.edge, one.generation)
        });
        shown.collect::<Vec<_>>().join(", ")
    };
    let fits = |one: &&AttachmentRecord| one.edge_name == edge || one.edge.to_string() == edge;
    let found: Vec<_> = attachments.live.iter().filter(fits).collect();
    match found[..] {
        [one] => Ok(one),
        [] if attachments.live.is_empty() => Err(invalid("no edge is attached to it".to_owned())),
        [] => {
            let all: Vec<_> = attachments.live.iter().collect();
            Err(invalid(format!("edge {edge} isn't attached to it; attached are {}", list(&all))))
        }
        _ => {
            let several = format!("several edges are called {edge}, name one by its id: ");
            Err(invalid(several + &list(&found)))
        }
    }
}

impl Router {
    /// # Errors
    /// `INVALID` when there is no such attachment, or its edge is connected or may be about to be, and nobody insists.
    pub(crate) async fn end_attachment_of(
        self: &Arc<Self>,
        ask: &EndAttachment,
    ) -> Result<EndedAttachment, WireError> {
        let vdisk = self.owned_by_name(&ask.name).await?;
        let _ = tokio::time::timeout(OPENING_PATIENCE, self.wait_served(vdisk)).await;
        let mut meant = None;
        for _ in 0..TRIES {
            let (owner, here) = {
                let mut state = self.state();
                let serving = state.serving(vdisk)?;
                (serving.record.clone(), serving.attachments.clone())
            };
            let (old, bytes) =
                self.facts.attachments(vdisk).await.map_err(|error| error.to_wire())?;
            let AttachmentRecord { edge, edge_name, generation, mode, .. } =
                choose(&ask.edge, &known(&old, &here))?.clone();
            // Never that of an edge which has come back meanwhile.
            if *meant.get_or_insert(generation) != generation {
                let message = format!("edge {edge_name} has just attached anew: look again");
                return Err(WireError::refuse(code::INVALID, message));
            }
            let (connected, owes_replay, served_for) = {
                let mut state = self.state();
                let serving = state.serving(vdisk)?;
                let session = serving.sessions.get(&generation);
                let connected = session.is_some_and(crate::state::Session::is_connected);
                let served_for = boot_now().since(serving.since);
                (connected, serving.awaiting.contains(&generation), served_for)
            };
            if connected && !ask.force {
                let message = format!(
                    "edge {edge_name} is connected: its users would get I/O errors; --force ends its attachment all the same"
                );
                return Err(WireError::refuse(code::INVALID, message));
            }
            if !connected && served_for < COMING_BACK && !ask.force {
                let message = format!(
                    "the vDisk is served here for {} s only: edge {edge_name} may be on its way back; wait until {} s have passed, or --force",
                    served_for.as_secs(),
                    COMING_BACK.as_secs()
                );
                return Err(WireError::refuse(code::INVALID, message));
            }
            let mut new = old;
            new.live.retain(|live| live.generation != generation);
            match self.change(&owner, bytes, new).await? {
                Outcome::Changed => {}
                Outcome::Conflict => continue,
            }
            tracing::warn!(
                %vdisk, name = ask.name, edge = edge_name, %generation, connected, owes_replay,
                "an operator ended an attachment"
            );
            let text =
                format!("of edge {edge_name}, generation {generation}, by an operator's word");
            self.events.of(Severity::Warn, "attachment-ended", vdisk, &text);
            if let Ok(serving) = self.state().serving(vdisk) {
                // Perhaps the last writer: what is pending goes to the backend rather than wait for more.
                serving.core.seal();
                serving.committer.notify_one();
            }
            let mode = spoken(mode);
            return Ok(EndedAttachment {
                edge,
                edge_name,
                generation,
                mode,
                connected,
                owes_replay,
            });
        }
        Err(WireError::retry(code::RECOVERING, "others keep changing the attachments; try again"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{AttachmentGeneration, EdgeId};
    use wire::facts::AttachmentMode;

    #[test]
    fn one_that_is_ended_in_the_record_alone_is_known_and_hides_no_other_of_its_name() {
        let live = |edge| AttachmentRecord {
            edge: EdgeId(edge),
            edge_name: "west".into(),
            generation: AttachmentGeneration(u64::try_from(edge).unwrap()),
            mode: AttachmentMode::ReadOnly,
            domain: String::new(),
        };
        let of = |live| AttachmentsRecord { last_generation: AttachmentGeneration(2), live };
        let known = known(&of(vec![live(2)]), &of(vec![live(1), live(2)]));
        assert_eq!(known.live, [live(2), live(1)]);
        assert!(choose("west", &known).is_err(), "which of the two?");
        assert_eq!(choose(&EdgeId(1).to_string(), &known), Ok(&live(1)));
    }

    #[test]
    fn an_edge_is_meant_by_name_or_id_and_never_by_guess() {
        let live = |edge, name: &str| AttachmentRecord {
            edge: EdgeId(edge),
            edge_name: name.into(),
            generation: AttachmentGeneration(u64::try_from(edge).unwrap()),
            mode: AttachmentMode::ReadOnly,
            domain: String::new(),
        };
        let attachments = AttachmentsRecord {
            last_generation: AttachmentGeneration(3),
            live: vec![live(1, "east"), live(2, "west"), live(3, "west")],
        };
        let generation = |edge: &str| choose(edge, &attachments).map(|one| one.generation.0);
        assert_eq!(generation("east"), Ok(1));
        assert_eq!(generation(&EdgeId(3).to_string()), Ok(3));
        let unknown = generation("north").unwrap_err().message;
        assert!(unknown.contains("east (") && unknown.contains("generation 3"), "{unknown}");
        let several = generation("west").unwrap_err().message;
        assert!(several.contains(&EdgeId(2).to_string()) && !several.contains("east"), "{several}");
        let none = AttachmentsRecord { live: Vec::new(), ..attachments };
        assert!(choose("east", &none).unwrap_err().message.contains("no edge"));
    }
}
