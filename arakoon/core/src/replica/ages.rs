//! How old each session's last renewal is, by this node's own clock, and what a leader does about it (P17).
//!
//! Every node counts from the tick at which it first sees a renewal in its rows, on top of the age that is replicated with
//! it. A holder counts from when it *sent* the renewal, which is earlier. So an age never exceeds the true one, by more
//! than the clock's drift: a leader that expires at TTL and a little is never early, whichever nodes led meanwhile and
//! however long one was paused. Since followers count too and ages are replicated, a successor, even one that has just
//! started, grants the remainder and not a full TTL.
//!
//! Invariant: only a leader that has committed in its term asks for anything, at most one entry per kind and second;
//! without sessions nothing happens at all.

use super::Replica;
use crate::leader_entry::{CONTEXT, LeaderEntry, SESSIONS_PER_ENTRY, SessionAge, SessionAt};
use crate::machine::TtlTable;
use crate::store::Store;
use bytes::Bytes;
use model::{Incarnation, Now};
use raft::StateRole;
use std::collections::BTreeMap;
use std::time::Duration;
use wire::arakoon::{SessionFact, SessionRecord};

/// Ages are replicated when they have grown by this much, so often at most.
const AGE_STEP: Duration = Duration::from_secs(1);
/// An expiry that wasn't committed is asked for again after this.
const EXPIRE_AGAIN: Duration = Duration::from_secs(1);
/// A new leader, and one that was deaf, first lets holders be heard that had nobody to talk to.
const GRACE: Duration = Duration::from_millis(1500);
/// A leader that wasn't told the time for so long was deaf. While it listens, a pause counts for this much at most.
const DEAF: Duration = Duration::from_millis(500);
/// A TTL is lengthened by 1/32: two clocks that are 1 % wrong each, one fast and one slow, disagree by less.
const DRIFT_SHARE: u32 = 32;

struct Heard {
    incarnation: Incarnation,
    renewal: u64,
    /// Age that was replicated, at `since` on our clock.
    base: Duration,
    since: Now,
}

impl Heard {
    const fn new(record: &SessionRecord, now: Now) -> Self {
        let SessionRecord { incarnation, renewal, age_ms, .. } = *record;
        Self { incarnation, renewal, base: Duration::from_millis(age_ms), since: now }
    }

    fn age(&self, now: Now) -> Duration {
        self.base.saturating_add(now.since(self.since))
    }

    fn is_of(&self, record: &SessionRecord) -> bool {
        self.incarnation == record.incarnation && self.renewal == record.renewal
    }
}

/// Ages of sessions on this node's clock.
#[derive(Default)]
pub struct SessionClock {
    heard: BTreeMap<Bytes, Heard>,
    told: Option<Now>,
    /// How much longer a leader listens before anything expires; `None` when not leading.
    grace: Option<Duration>,
    aged: Option<Now>,
    expired: Option<Now>,
}

impl SessionClock {
    /// A tick of a node that doesn't lead.
    pub fn tick_following(&mut self, now: Now, table: &TtlTable) {
        self.follow(now, table);
        self.told = Some(now);
        (self.grace, self.aged, self.expired) = (None, None, None);
    }

    /// A tick of a leader: what it should put into the log now.
    pub fn tick_leading(&mut self, now: Now, table: &TtlTable) -> Vec<LeaderEntry> {
        self.follow(now, table);
        let gap = self.told.replace(now).map_or(DEAF, |told| now.since(told));
        let grace = self.listen(gap);
        let mut entries = Vec::new();
        if grace.is_zero() && is_due(self.expired, now, EXPIRE_AGAIN) {
            let expired = self.expired(now, table);
            if !expired.is_empty() {
                self.expired = Some(now);
                entries.push(LeaderEntry::Expire(expired));
            }
        }
        if is_due(self.aged, now, AGE_STEP) {
            let ages = self.grown(now, table);
            if !ages.is_empty() {
                self.aged = Some(now);
                entries.push(LeaderEntry::Ages(ages));
            }
        }
        entries
    }

    /// How much of the grace is left `gap` after the last tick.
    ///
    /// A gap begins a grace but never lengthens one that runs: a leader whose every sync takes longer than [`DEAF`] would
    /// listen for ever, and the vDisks of dead owners would never be claimed. Giving up listening can't end a living
    /// session: the entry asserts the renewal that was seen, what was renewed meanwhile is in the log before it, and a
    /// holder stops at its TTL by its own clock, heard or not. What listening saves is a claim by a holder that lives.
    fn listen(&mut self, gap: Duration) -> Duration {
        let left = match self.grace {
            None => GRACE,
            Some(Duration::ZERO) if DEAF <= gap => GRACE,
            Some(left) => left.saturating_sub(gap.min(DEAF)),
        };
        *self.grace.insert(left)
    }

    /// Counts anew where a renewal came in, and goes on from a replicated age that is larger than ours.
    fn follow(&mut self, now: Now, table: &TtlTable) {
        self.heard.retain(|id, _| table.contains_key(id));
        for (id, record) in table {
            let known = self.heard.get(id).filter(|heard| heard.is_of(record));
            let replicated = Duration::from_millis(record.age_ms);
            if known.is_none_or(|heard| heard.age(now) < replicated) {
                self.heard.insert(id.clone(), Heard::new(record, now));
            }
        }
    }

    pub fn age(&self, id: &[u8], record: &SessionRecord, now: Now) -> Duration {
        let heard = self.heard.get(id).filter(|heard| heard.is_of(record));
        heard.map_or(Duration::from_millis(record.age_ms), |heard| heard.age(now))
    }

    fn expired(&self, now: Now, table: &TtlTable) -> Vec<SessionAt> {
        let expired = table.iter().filter(|(id, record)| {
            let ttl = Duration::from_millis(record.ttl_ms);
            self.age(id, record, now) >= ttl + ttl / DRIFT_SHARE
        });
        expired.map(|(id, record)| at(id, record)).take(SESSIONS_PER_ENTRY).collect()
    }

    fn grown(&self, now: Now, table: &TtlTable) -> Vec<SessionAge> {
        let grown = table.iter().filter_map(|(id, record)| {
            let age = self.age(id, record, now);
            let step = age.saturating_sub(Duration::from_millis(record.age_ms));
            (step >= AGE_STEP).then(|| SessionAge { at: at(id, record), age_ms: millis(age) })
        });
        grown.take(SESSIONS_PER_ENTRY).collect()
    }
}

fn is_due(last: Option<Now>, now: Now, pause: Duration) -> bool {
    last.is_none_or(|last| now.since(last) >= pause)
}

fn at(id: &Bytes, record: &SessionRecord) -> SessionAt {
    SessionAt { id: id.clone(), incarnation: record.incarnation, renewal: record.renewal }
}

fn millis(age: Duration) -> u64 {
    u64::try_from(age.as_millis()).unwrap_or(u64::MAX)
}

impl<S: Store> Replica<S> {
    /// Follows the ages of sessions, and as leader replicates them and asks for expiries.
    pub(super) fn tend_sessions(&mut self) {
        let raft = &self.raw.raft;
        let table = self.machine.ttl_sessions();
        if raft.state != StateRole::Leader || !raft.commit_to_current_term() {
            return self.sessions.tick_following(self.now, table);
        }
        for entry in self.sessions.tick_leading(self.now, table) {
            let data = wire::encode_to_bytes(&entry).to_vec();
            // When too much is under way it is asked for again a second later.
            let _ = self.raw.propose(CONTEXT.to_vec(), data);
        }
    }

    /// Living sessions whose ids begin with `prefix`, with their ages as this node knows them.
    #[must_use]
    pub fn ttl_sessions(&self, prefix: &[u8]) -> Vec<SessionFact> {
        let table = self.machine.ttl_sessions();
        let under = table.iter().filter(|(id, _)| id.starts_with(prefix));
        let facts = under.map(|(id, record)| {
            let age_ms = millis(self.sessions.age(id, record, self.now));
            SessionFact { id: id.clone(), record: SessionRecord { age_ms, ..record.clone() } }
        });
        facts.collect()
    }
}

#[cfg(test)]
mod tests;
