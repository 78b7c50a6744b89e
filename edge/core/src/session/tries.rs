//! How often a request was tried, and what its router says of it.
//!
//! A router that says "later" lives, and may never do better: it is cut from arakoon and may not read, or alone can't reach
//! the backend. So "later" again and again counts like no answer at all (P19).

use super::{Again, CallKind, Failure, Session};
use model::{Now, RequestSeq};
use std::time::Duration;

/// How often something was tried, since when its data can't be read, and since when it is put off.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Tries {
    pub count: u32,
    unreadable: Option<Now>,
    put_off: Option<Now>,
}

impl Tries {
    /// One more failure, of a call sent at `sent`. Patience counts from the first of those in a row that say "unreadable":
    /// what was waited for otherwise, an owner say, is no reason to give up. That something is put off counts from when it
    /// was sent.
    pub fn note(&mut self, (sent, now): (Now, Now), failure: &Failure) {
        self.count = self.count.saturating_add(1);
        let (unreadable, put_off) = (self.unreadable.take(), self.put_off.take());
        match failure {
            Failure::Unreadable => self.unreadable = unreadable.or(Some(now)),
            Failure::Retry => self.put_off = put_off.or(Some(sent)),
            Failure::Damaged
            | Failure::Refused(_)
            | Failure::Lost
            | Failure::Elsewhere(_)
            | Failure::Fenced => {}
        }
    }

    /// The next connection's answers count for themselves.
    pub const fn elsewhere(self) -> Self {
        Self { unreadable: None, put_off: None, ..self }
    }

    pub fn unreadable_for(&self, now: Now) -> Duration {
        self.unreadable.map_or(Duration::ZERO, |since| now.since(since))
    }
}

impl<T> Session<T> {
    /// Since when the router at this connection puts off what it was asked first of all that it doesn't do.
    pub(super) fn put_off_since(&self) -> Option<Now> {
        let change = |seq: RequestSeq| self.log.get(seq).and_then(|entry| entry.tries.put_off);
        let calls = self.calls.iter().filter_map(|(_, call)| match &call.what {
            CallKind::Ask { tries, .. } => tries.put_off,
            CallKind::Change(seq) => change(*seq),
            CallKind::Flush { .. } | CallKind::ReplayComplete => None,
        });
        let rests = self.again.iter().filter_map(|(_, again)| match again {
            Again::Ask { tries, .. } => tries.put_off,
            Again::Change(seq) => change(*seq),
            Again::Flush(_) | Again::ReplayComplete => None,
        });
        calls.chain(rests).chain(self.put_off).min()
    }
}
