//! Watching from a revision: what changed lately, and who waits for the next change.
//!
//! Each node remembers in memory which rows its last entries changed, in a bounded list. Who asks from before it is told to
//! read again, as after a restart; so a watch is never silently incomplete, and never keeps anything alive.
//!
//! A session counts as changed when it is opened, changes hands, or ends; renewals don't.
//!
//! Invariant: every watched change above `floor` and up to what was recorded is in the list.

use super::{Answer, Replica, Ticket};
use crate::rows;
use crate::store::Store;
use bytes::Bytes;
use model::{Now, Revision};
use std::collections::{BTreeSet, VecDeque};
use wire::arakoon::{Changes, ChangesAsk};

/// Watches under way; more are told to come back (L8).
pub const WATCHES_MAX: usize = 4096;
/// Changed rows that are remembered, and bytes of their keys: all of them fit one answer.
const RECENT_MAX: usize = 16_384;
const RECENT_BYTES_MAX: usize = 512 << 10;

struct Waiter {
    ticket: Ticket,
    ask: ChangesAsk,
    deadline: Now,
}

pub struct Watches {
    recent: VecDeque<(u64, Bytes)>,
    bytes: usize,
    /// What changed here or before isn't known.
    floor: u64,
    /// Entries up to here were looked at for waiters.
    told: u64,
    waiting: Vec<Waiter>,
}

impl Watches {
    pub const fn new(applied: u64) -> Self {
        Self {
            recent: VecDeque::new(),
            bytes: 0,
            floor: applied,
            told: applied,
            waiting: Vec::new(),
        }
    }

    /// The rows were replaced by a snapshot up to that index.
    pub fn forget(&mut self, index: u64) {
        self.recent.clear();
        self.bytes = 0;
        self.floor = index;
    }

    pub fn record(&mut self, index: u64, rows: Vec<Bytes>) {
        for row in rows {
            self.bytes += row.len();
            self.recent.push_back((index, row));
        }
        while self.recent.len() > RECENT_MAX || self.bytes > RECENT_BYTES_MAX {
            // Whole entries go: half of one would be a change that nobody is told of.
            let Some((oldest, row)) = self.recent.pop_front() else { break };
            self.bytes -= row.len();
            self.floor = self.floor.max(oldest);
        }
        while self.recent.front().is_some_and(|(at, _)| *at <= self.floor) {
            let Some((_, row)) = self.recent.pop_front() else { break };
            self.bytes -= row.len();
        }
    }

    /// Whose answer is ready, now that entries up to `applied` are in the rows.
    pub fn due(&mut self, applied: u64) -> Vec<Ticket> {
        let new = self.recent.partition_point(|(at, _)| *at <= self.told);
        let new: Vec<&Bytes> = self.recent.range(new..).map(|(_, row)| row).collect();
        let (told, floor) = (std::mem::replace(&mut self.told, applied), self.floor);
        let mut due = Vec::new();
        self.waiting.retain(|waiter| {
            let lost = told < floor && waiter.ask.since.0 < floor;
            // A revision ahead of this node's: what lies below isn't news.
            let news = waiter.ask.since.0 < applied && new.iter().any(|row| asks(&waiter.ask, row));
            if lost || news {
                due.push(waiter.ticket);
            }
            !(lost || news)
        });
        due
    }

    /// Somebody must be answered by then.
    pub fn is_due(&self, by: Now) -> bool {
        self.waiting.iter().any(|waiter| waiter.deadline <= by)
    }

    pub fn expire(&mut self, now: Now) -> Vec<Ticket> {
        let late = self.waiting.extract_if(.., |waiter| waiter.deadline <= now);
        late.map(|waiter| waiter.ticket).collect()
    }

    fn changes(&self, ask: &ChangesAsk, applied: u64) -> Changes {
        let through = Revision(applied.max(ask.since.0));
        if ask.since.0 < self.floor {
            return Changes { keys: vec![], sessions: vec![], through, compacted: true };
        }
        let new = self.recent.partition_point(|(at, _)| *at <= ask.since.0);
        let asked = self.recent.range(new..).filter(|(_, row)| asks(ask, row));
        let rows: BTreeSet<&Bytes> = asked.map(|(_, row)| row).collect();
        let keys = rows.iter().filter_map(|row| rows::user_key(row).map(Bytes::copy_from_slice));
        let sessions =
            rows.iter().filter_map(|row| rows::ttl_session_id(row).map(Bytes::copy_from_slice));
        let (keys, sessions) = (keys.collect(), sessions.collect());
        Changes { keys, sessions, through, compacted: false }
    }
}

fn asks(ask: &ChangesAsk, row: &[u8]) -> bool {
    let under = |prefixes: &[Bytes], key: &[u8]| prefixes.iter().any(|p| key.starts_with(p));
    rows::user_key(row).is_some_and(|key| under(&ask.keys, key))
        || rows::ttl_session_id(row).is_some_and(|id| under(&ask.sessions, id))
}

impl<S: Store> Replica<S> {
    /// A client waits for a change: [`Answer::ReadNow`] says that [`Self::changes`] has the answer, at the latest at the
    /// deadline.
    pub fn watch(&mut self, ticket: Ticket, ask: &ChangesAsk, deadline: Now) {
        let applied = self.applied();
        let found = self.watches.changes(ask, applied);
        if found.compacted || !found.keys.is_empty() || !found.sessions.is_empty() {
            self.answer(ticket, Answer::ReadNow);
        } else if self.watches.waiting.len() >= WATCHES_MAX {
            self.answer(ticket, Answer::Busy);
        } else {
            self.watches.waiting.push(Waiter { ticket, ask: ask.clone(), deadline });
        }
    }

    /// What changed since the revision asked from, as far as this node has come.
    #[must_use]
    pub fn changes(&self, ask: &ChangesAsk) -> Changes {
        self.watches.changes(ask, self.applied())
    }
}

#[cfg(test)]
mod tests;
