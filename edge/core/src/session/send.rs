//! What goes out, and when: replay first, then changes in order, questions, flushes.

use super::log::{Change, Entry, State};
use super::{Again, Ask, Attachment, Call, CallKind, Effect, Link, Request, Session, Tries};
use super::{FLUSHES_MAX, NewChange};
use model::{Now, RequestSeq};
use wire::router::{
    BlockStatus, Durability, Flush, INFLIGHT_MAX, Read, ReplayComplete, Unmap, UnmapKind, Write,
};

impl<T> Session<T> {
    pub(super) fn pump(&mut self, now: Now) {
        match self.link {
            Link::Down | Link::Failed(_) => return,
            Link::Replaying | Link::Live => {}
        }
        self.wake_resting(now);
        self.send_due(now);
        if self.link == Link::Replaying {
            if self.log.unapplied() == 0 && !self.replay_complete_sent {
                self.replay_complete_sent = true;
                let Attachment { vdisk, generation } = self.attached_as();
                let request = Request::ReplayComplete(ReplayComplete { vdisk, generation });
                self.call(now, CallKind::ReplayComplete, request);
            }
            return;
        }
        self.send_new_changes(now);
        self.send_asks(now);
        self.send_flushes(now);
    }

    pub(super) fn attached_as(&self) -> Attachment {
        self.attachment.expect("a link is only made by an attachment")
    }

    fn call(&mut self, now: Now, what: CallKind, request: Request) {
        let key = self.calls.insert(Call { sent: now, what });
        self.effects.push_back(Effect::Call { key, request });
    }

    fn has_room(&self) -> bool {
        self.calls.len() < INFLIGHT_MAX
    }

    /// Retries whose pause is over.
    fn wake_resting(&mut self, now: Now) {
        if self.again.is_empty() {
            return;
        }
        let (ready, later): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.again).into_iter().partition(|(due, _)| *due <= now);
        self.again = later;
        for (_, again) in ready {
            match again {
                Again::Change(seq) => self.log.set_state(seq, State::Due),
                Again::Ask { ask, tries } => self.asks.push_front((ask, tries)),
                Again::Flush(waiters) => self.flush_waiters.extend(waiters),
                Again::ReplayComplete => self.replay_complete_sent = false,
            }
        }
    }

    /// While replaying none overtakes another: if router and edge died in the middle of it, a change would be there
    /// without one that was acknowledged before it began (P3).
    fn send_due(&mut self, now: Now) {
        let replaying = self.link == Link::Replaying;
        for seq in self.log.due_entries() {
            if !self.has_room() || replaying && !self.log.may_replay(seq) {
                return;
            }
            let entry = self.log.get(seq).expect("just listed");
            if self.log.may_send(seq, entry.change.range()) {
                self.replayed_now += u64::from(self.link == Link::Replaying);
                self.send_change(now, seq);
            }
        }
    }

    fn send_change(&mut self, now: Now, seq: RequestSeq) {
        self.log.set_state(seq, State::Sent);
        let Attachment { vdisk, generation } = self.attached_as();
        let entry = self.log.get(seq).expect("an entry that is sent exists");
        let durability = entry.durability;
        let unmap = |offset, len, kind| {
            Request::Unmap(Unmap { vdisk, generation, seq, offset, len, kind, durability })
        };
        let request = match &entry.change {
            Change::Write { offset, data, checksums } => {
                let (offset, checksums) = (*offset, checksums.clone());
                let write = Write { vdisk, generation, seq, offset, durability, checksums };
                Request::Write(write, data.clone())
            }
            Change::Unmap { offset, len, kind } => unmap(*offset, *len, *kind),
            Change::Void => unmap(0, 0, UnmapKind::Trim),
        };
        self.call(now, CallKind::Change(seq), request);
    }

    fn send_new_changes(&mut self, now: Now) {
        while let Some(next) = self.new_changes.front() {
            // Its user was answered with an error already, and it was never sent: nothing happened.
            if self.ops.get_mut(next.op).is_none() {
                self.new_changes.pop_front();
                continue;
            }
            let full = self.log.bytes() + next.change.cost() > self.settings.log_bytes
                || self.log.len() >= self.settings.log_entries;
            let fits = self.log.is_empty() || !full;
            let seq = self.next_seq;
            if !fits || !self.has_room() || !self.log.may_send(seq, next.change.range()) {
                return;
            }
            let NewChange { op, change, durability } = self.new_changes.pop_front().expect("seen");
            self.next_seq = seq.next();
            let entry = Entry {
                change,
                durability,
                op: Some(op),
                state: State::Sent,
                acknowledged: false,
                tries: Tries::default(),
            };
            self.log.push(seq, entry);
            self.send_change(now, seq);
        }
    }

    fn send_asks(&mut self, now: Now) {
        while self.has_room() {
            let Some((ask, tries)) = self.asks.pop_front() else { return };
            let (Ask::Read { op, .. } | Ask::Status { op, .. }) = ask;
            if self.ops.get_mut(op).is_some() {
                self.send_ask(now, ask, tries);
            }
        }
    }

    fn send_ask(&mut self, now: Now, ask: Ask, tries: Tries) {
        let Attachment { vdisk, generation } = self.attached_as();
        let request = match ask {
            Ask::Read { offset, len, .. } => Request::Read(Read { vdisk, generation, offset, len }),
            Ask::Status { offset, len, extents_max, .. } => {
                Request::BlockStatus(BlockStatus { vdisk, generation, offset, len, extents_max })
            }
        };
        self.call(now, CallKind::Ask { ask, tries }, request);
    }

    /// A flush covers every change acknowledged before it is sent, so all who wait now share one.
    fn send_flushes(&mut self, now: Now) {
        if self.flushes >= FLUSHES_MAX {
            return;
        }
        let old = self.unflushed_since.is_some_and(|s| now.since(s) >= self.settings.flush_after);
        let big = self.log.bytes() > self.settings.log_bytes / 2
            || self.log.len() > self.settings.log_entries / 2;
        let own_need = self.flushes == 0 && self.log.has_unflushed() && (old || big);
        if self.flush_waiters.is_empty() && !own_need {
            return;
        }
        let waiters = std::mem::take(&mut self.flush_waiters);
        let Attachment { vdisk, generation } = self.attached_as();
        self.flushes += 1;
        let kind = CallKind::Flush { waiters, floor: self.acknowledged };
        self.call(now, kind, Request::Flush(Flush { vdisk, generation }));
        // What is acknowledged from now on is younger than this flush.
        self.unflushed_since = self.unflushed_since.map(|_| now);
    }

    /// A change was acknowledged that only a later flush covers.
    pub(super) fn note_unflushed(&mut self, now: Now) {
        self.unflushed_since.get_or_insert(now);
    }

    /// A durable change is safe by its own acknowledgement.
    pub(super) const fn is_safe_by_itself(durability: Durability) -> bool {
        matches!(durability, Durability::Durable)
    }
}
