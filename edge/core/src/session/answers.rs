//! What an answer or a failure of the router does.

use super::log::State;
use super::{
    Again, Answer, Ask, CallKey, CallKind, Effect, Event, Failure, IoError, Session, Tries,
};
use crate::slab::Key;
use model::{Epoch, Lsn, Now, RequestSeq};

/// How often data that arrive damaged are asked for or sent again.
const DAMAGED_MAX: u32 = 2;

impl<T> Session<T> {
    /// The router answered, or didn't. Answers of calls that are over, as their connection is, change nothing.
    pub fn answered(&mut self, now: Now, key: CallKey, result: Result<Answer, Failure>) {
        self.now = now;
        let Some(call) = self.calls.remove(key) else { return };
        let at = (call.sent, now);
        match (call.what, result) {
            (CallKind::Change(seq), Ok(Answer::Applied { epoch, lsn })) => {
                self.change_applied(now, seq, (epoch, lsn));
            }
            (CallKind::Change(seq), Err(failure)) => self.change_failed(at, seq, failure),
            (CallKind::Ask { ask, tries }, Ok(answer)) => {
                self.ask_answered(at, (ask, tries), answer);
            }
            (CallKind::Ask { ask, tries }, Err(failure)) => {
                self.ask_failed(at, (ask, tries), failure);
            }
            (CallKind::Flush { waiters, floor }, Ok(Answer::Flushed { epoch, lsn })) => {
                self.flushes -= 1;
                self.flushed(waiters, floor, (epoch, lsn));
            }
            (CallKind::Flush { waiters, .. }, Err(failure)) => {
                self.flushes -= 1;
                self.flush_failed(at, waiters, failure);
            }
            (CallKind::ReplayComplete, Ok(Answer::Done)) => self.went_live(),
            (CallKind::ReplayComplete, Err(failure)) => match self.common(failure) {
                None => {}
                Some(_) => {
                    self.put_off.get_or_insert(call.sent);
                    let due = now.plus(self.pause(3));
                    self.again.push((due, Again::ReplayComplete));
                }
            },
            (what, Ok(_)) => {
                // Put back what is to be asked again at the next connection.
                self.calls.insert(super::Call { sent: now, what });
                self.relink(None, "the router answered something else than was asked");
            }
        }
    }

    fn change_applied(&mut self, now: Now, seq: RequestSeq, (epoch, lsn): (Epoch, Lsn)) {
        if !self.is_home(epoch) || lsn == Lsn::ZERO {
            self.relink(None, "a write was acknowledged under another epoch");
            return;
        }
        self.log.set_state(seq, State::Applied(lsn));
        let Some(entry) = self.log.get_mut(seq) else { return };
        let (op, durability) = (entry.op.take(), entry.durability);
        entry.acknowledged = true;
        if Self::is_safe_by_itself(durability) {
            self.log.forget(seq);
        } else {
            self.acknowledged = self.acknowledged.max(lsn);
            if self.settings.shared {
                self.log.forget(seq);
            } else {
                self.note_unflushed(now);
            }
        }
        if let Some(op) = op {
            self.piece_done(op, Ok(()));
        }
    }

    fn change_failed(&mut self, (sent, now): (Now, Now), seq: RequestSeq, failure: Failure) {
        let Some(entry) = self.log.get_mut(seq) else { return };
        let (acknowledged, tries) = (entry.acknowledged, entry.tries.count);
        entry.tries.note((sent, now), &failure);
        let patient = entry.tries.unreadable_for(now) < self.settings.unreadable_patience;
        let Some(failure) = self.common(failure) else { return };
        self.stats.damaged += u64::from(failure == Failure::Damaged);
        match failure {
            // An acknowledged change is never given up for a passing reason (L1).
            Failure::Unreadable | Failure::Damaged if acknowledged => self.rest(now, seq, tries),
            Failure::Unreadable if patient => self.rest(now, seq, tries),
            Failure::Damaged if tries < DAMAGED_MAX => self.rest(now, seq, tries),
            Failure::Unreadable | Failure::Damaged => self.give_up(seq, IoError::Io),
            Failure::Refused(why) => self.give_up(seq, why),
            Failure::Retry => self.rest(now, seq, tries),
            Failure::Lost | Failure::Elsewhere(_) | Failure::Fenced => {
                unreachable!("handled in common")
            }
        }
    }

    fn rest(&mut self, now: Now, seq: RequestSeq, tries: u32) {
        self.log.set_state(seq, State::Resting);
        let due = now.plus(self.pause(tries));
        self.again.push((due, Again::Change(seq)));
    }

    /// The router will never take this change. Its number still has to be used up.
    fn give_up(&mut self, seq: RequestSeq, why: IoError) {
        let Some(entry) = self.log.get_mut(seq) else { return };
        let (op, range) = (entry.op.take(), entry.change.range());
        if range.is_none() {
            // Even the void was refused: nothing more can be done for this number.
            self.log.set_state(seq, State::Applied(Lsn::ZERO));
            self.log.forget(seq);
            return;
        }
        if entry.acknowledged {
            self.effects.push_back(Effect::Event(Event::ReplayRefused { seq, range, why }));
            self.stats.errors += 1;
        }
        self.log.make_void(seq);
        self.log.set_state(seq, State::Due);
        if let Some(op) = op {
            self.piece_done(op, Err(why));
        }
    }

    fn ask_answered(&mut self, at: (Now, Now), (ask, tries): (Ask, Tries), answer: Answer) {
        match (&ask, answer) {
            (Ask::Read { op, piece, len, .. }, Answer::Data(data))
                if data.len() == *len as usize =>
            {
                if let Some(state) = self.ops.get_mut(*op) {
                    state.parts[*piece] = data;
                }
                self.piece_done(*op, Ok(()));
            }
            (Ask::Read { .. }, Answer::Data(_)) => {
                self.ask_failed(at, (ask, tries), Failure::Damaged);
            }
            (Ask::Status { op, .. }, Answer::Extents(extents)) => {
                if let Some(state) = self.ops.get_mut(*op) {
                    state.extents = extents;
                }
                self.piece_done(*op, Ok(()));
            }
            _ => {
                self.asks.push_front((ask, tries));
                self.relink(None, "the router answered something else than was asked");
            }
        }
    }

    fn ask_failed(
        &mut self,
        (sent, now): (Now, Now),
        (ask, mut tries): (Ask, Tries),
        failure: Failure,
    ) {
        let (Ask::Read { op, .. } | Ask::Status { op, .. }) = ask;
        let count = tries.count;
        tries.note((sent, now), &failure);
        if matches!(failure, Failure::Lost | Failure::Elsewhere(_) | Failure::Fenced) {
            self.asks.push_front((ask, tries));
            self.common(failure);
            return;
        }
        self.stats.damaged += u64::from(failure == Failure::Damaged);
        let patient = tries.unreadable_for(now) < self.settings.unreadable_patience;
        let again = match failure {
            Failure::Retry => true,
            Failure::Unreadable => patient,
            Failure::Damaged => count < DAMAGED_MAX,
            Failure::Refused(_) | Failure::Lost | Failure::Elsewhere(_) | Failure::Fenced => false,
        };
        if again {
            let due = now.plus(self.pause(count));
            self.again.push((due, Again::Ask { ask, tries }));
            return;
        }
        let why = if let Failure::Refused(why) = failure { why } else { IoError::Io };
        self.piece_done(op, Err(why));
    }

    fn flushed(&mut self, waiters: Vec<Key>, floor: Lsn, (epoch, lsn): (Epoch, Lsn)) {
        if !self.is_home(epoch) || lsn < floor {
            // It doesn't cover what was acknowledged before it: believing it would be lying to the user (L2).
            self.flush_waiters.splice(0..0, waiters);
            self.relink(None, "a flush was acknowledged short of acknowledged writes");
            return;
        }
        self.put_off = None;
        self.log.covered(lsn);
        if !self.log.has_unflushed() {
            self.unflushed_since = None;
        }
        for waiter in waiters {
            self.piece_done(waiter, Ok(()));
        }
    }

    fn flush_failed(&mut self, (sent, now): (Now, Now), waiters: Vec<Key>, failure: Failure) {
        if matches!(failure, Failure::Lost | Failure::Elsewhere(_)) {
            self.flush_waiters.splice(0..0, waiters);
            self.common(failure);
            return;
        }
        match self.common(failure) {
            None => {}
            Some(Failure::Refused(why)) => {
                for waiter in waiters {
                    self.piece_done(waiter, Err(why));
                }
            }
            Some(_) => {
                self.put_off.get_or_insert(sent);
                let due = now.plus(self.pause(3));
                self.again.push((due, Again::Flush(waiters)));
            }
        }
    }

    /// Failures that mean the same whatever was asked; the others are handed back.
    fn common(&mut self, failure: Failure) -> Option<Failure> {
        match failure {
            Failure::Lost => self.relink(None, "the connection was lost"),
            Failure::Elsewhere(to) => self.relink(to, "another router serves the vDisk"),
            Failure::Fenced => self.fail("another attachment took over"),
            Failure::Retry | Failure::Unreadable | Failure::Damaged | Failure::Refused(_) => {
                return Some(failure);
            }
        }
        None
    }

    fn is_home(&self, epoch: Epoch) -> bool {
        self.home.is_some_and(|home| home.epoch == epoch)
    }
}
