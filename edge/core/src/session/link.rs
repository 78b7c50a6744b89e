//! Cuts, new connections, and the end.

use super::log::State;
use super::{
    AttachError, Attachment, CallKind, Effect, Event, Home, IoError, Link, Outcome, Session,
};
use model::{Lsn, Now, RequestSeq};
use std::collections::BTreeSet;
use wire::router::{Attached, Location};

impl<T> Session<T> {
    /// The connection is gone. Everything unanswered waits for the next one.
    pub fn unlinked(&mut self) {
        if matches!(self.link, Link::Down | Link::Failed(_)) {
            return;
        }
        self.link = Link::Down;
        self.flushes = 0;
        self.replay_complete_sent = false;
        self.put_off = None;
        // What was decided for the old connection must not go out on the next one.
        self.effects.retain(|effect| !matches!(effect, Effect::Call { .. }));
        let calls = self.calls.drain();
        let again = std::mem::take(&mut self.again);
        for (_, again) in again {
            match again {
                super::Again::Ask { ask, tries } => self.asks.push_back((ask, tries)),
                super::Again::Flush(waiters) => self.flush_waiters.extend(waiters),
                // Their log entries are looked at when a connection stands again.
                super::Again::Change(_) | super::Again::ReplayComplete => {}
            }
        }
        for call in calls {
            match call.what {
                CallKind::Ask { ask, tries } => self.asks.push_back((ask, tries)),
                CallKind::Flush { waiters, .. } => self.flush_waiters.extend(waiters),
                CallKind::Change(_) | CallKind::ReplayComplete => {}
            }
        }
        for (_, tries) in &mut self.asks {
            *tries = tries.elsewhere();
        }
    }

    /// Gives up the connection by own decision.
    pub(super) fn relink(&mut self, to: Option<Box<Location>>, why: &'static str) {
        if matches!(self.link, Link::Down | Link::Failed(_)) {
            return;
        }
        self.unlinked();
        self.effects.push_back(Effect::Relink { to, why });
    }

    /// A router accepted the attachment: replay begins.
    ///
    /// # Errors
    /// When this isn't the router or the attachment that it should be. After [`AttachError::StaleEpoch`] another
    /// router is to be tried; the others have ended the session.
    pub fn attached(&mut self, now: Now, answer: &Attached) -> Result<(), AttachError> {
        self.unlinked();
        let attachment = Attachment { vdisk: answer.vdisk, generation: answer.generation };
        let home = Home { epoch: answer.epoch, incarnation: answer.incarnation };
        if let Some(mine) = self.attachment {
            if mine.vdisk != attachment.vdisk {
                self.fail("the vDisk was deleted and another one made under its name");
                return Err(AttachError::AnotherVdisk);
            }
            if mine.generation != attachment.generation {
                self.fail("another attachment took over");
                return Err(AttachError::Fenced);
            }
            // A router that was overtaken may not know it yet (L4).
            if self.home.is_some_and(|known| home.epoch < known.epoch) {
                return Err(AttachError::StaleEpoch);
            }
            self.stats.reconnects += 1;
        }
        let applied: BTreeSet<RequestSeq> = answer.applied.above.iter().copied().collect();
        let highest = applied.last().copied().max(Some(answer.applied.contiguous));
        self.next_seq = self.next_seq.max(highest.unwrap_or_default().next());
        self.attachment = Some(attachment);
        let same_home = self.home == Some(home);
        self.home = Some(home);
        if !same_home {
            // Positions mean something else from now on; entries that count are moved to ZERO or sent again.
            self.acknowledged = Lsn::ZERO;
        }
        self.link = Link::Replaying;
        self.replayed_now = 0;
        for seq in self.log.numbers() {
            let known = seq <= answer.applied.contiguous || applied.contains(&seq);
            self.rehome(now, seq, (known, same_home));
        }
        Ok(())
    }

    /// One log entry at a new connection: is it applied there, or to be sent again?
    fn rehome(&mut self, now: Now, seq: RequestSeq, (known, same_home): (bool, bool)) {
        let entry = self.log.get_mut(seq).expect("listed by the caller");
        match (entry.state, known) {
            (State::Applied(_), _) if same_home => {}
            (State::Applied(_), true) => self.log.set_state(seq, State::Applied(Lsn::ZERO)),
            (State::Applied(_) | State::Due | State::Sent | State::Resting, false) => {
                entry.tries = super::Tries::default();
                self.log.set_state(seq, State::Due);
            }
            (State::Due | State::Sent | State::Resting, true) => {
                let op = entry.op.take();
                let alone = !Self::is_safe_by_itself(entry.durability) && !self.settings.shared;
                entry.acknowledged = true;
                self.log.set_state(seq, State::Applied(Lsn::ZERO));
                self.note_unflushed(now);
                match op {
                    Some(op) if alone => self.piece_done(op, Ok(())),
                    // It is applied, but whether durably, or at one place only, isn't known: a flush makes sure (L2, P5).
                    Some(op) => self.flush_waiters.push(op),
                    None => {}
                }
            }
        }
    }

    pub(super) fn went_live(&mut self) {
        self.link = Link::Live;
        self.put_off = None;
        self.stats.replayed += self.replayed_now;
        if self.stats.reconnects > 0 {
            let replayed = self.replayed_now;
            self.effects.push_back(Effect::Event(Event::Recovered { replayed }));
        }
    }

    /// Ends the session: every request, present and future, gets an I/O error.
    pub fn fail(&mut self, why: &'static str) {
        if self.is_failed() {
            return;
        }
        self.unlinked();
        self.link = Link::Failed(IoError::Io);
        for op in self.ops.drain() {
            self.reply(op, Err::<Outcome, IoError>(IoError::Io));
        }
        self.log.clear();
        self.asks.clear();
        self.new_changes.clear();
        self.flush_waiters.clear();
        self.unflushed_since = None;
        self.effects.push_back(Effect::Event(Event::Failed { why }));
    }
}
