//! Sessions with a TTL as rows (P17): opened, renewed and closed by transactions, aged and expired by leaders' entries.
//!
//! Time is not decided here: an age is a number that a leader put into the log. So every node, and every replay of the
//! log, comes to the same rows.
//!
//! Invariant: between transactions nothing is staged, and the table equals the rows.

use super::Outcome;
use super::sessions::each;
use crate::leader_entry::{LeaderEntry, SessionAge, SessionAt};
use crate::rows;
use crate::store::StoreError;
use crate::view::{Overlay, Span, View};
use bytes::Bytes;
use model::{Incarnation, Revision};
use std::collections::BTreeMap;
use wire::arakoon::{SessionRecord, SessionRefused, TTL_SESSIONS_MAX};

/// Living sessions by id.
pub type TtlTable = BTreeMap<Bytes, SessionRecord>;

#[derive(Debug, Default, PartialEq, Eq)]
pub struct TtlSessions {
    table: TtlTable,
    /// Changes of the transaction at hand; `None` deletes.
    staged: BTreeMap<Bytes, Option<SessionRecord>>,
}

/// What somebody opens.
pub struct Opening<'a> {
    pub id: &'a Bytes,
    pub incarnation: Incarnation,
    pub ttl_ms: u64,
    pub replaces: Option<Incarnation>,
    pub revision: Revision,
}

impl TtlSessions {
    pub fn load(view: &impl View) -> Result<Self, StoreError> {
        let mut all = Self::default();
        let (start, end) = rows::ttl_sessions_range();
        each(view, Span { start: &start, end: Some(&end) }, |row, value| {
            let id = rows::ttl_session_id(row)?;
            let record = rows::ttl_session_from_row(Bytes::copy_from_slice(value)).ok()?;
            all.table.insert(Bytes::copy_from_slice(id), record);
            Some(())
        })?;
        Ok(all)
    }

    pub const fn table(&self) -> &TtlTable {
        &self.table
    }

    /// Who lives under that id, as the transaction at hand sees it.
    pub fn get(&self, id: &[u8]) -> Option<&SessionRecord> {
        self.staged.get(id).map_or_else(|| self.table.get(id), Option::as_ref)
    }

    pub fn lives(&self, id: &[u8], incarnation: Incarnation) -> bool {
        self.get(id).is_some_and(|found| found.incarnation == incarnation)
    }

    /// Stages it; `Some` = it must not happen.
    pub fn open(&mut self, opening: &Opening<'_>) -> Option<Outcome> {
        let Opening { id, incarnation, ttl_ms, replaces, revision } = *opening;
        let fresh = SessionRecord { incarnation, ttl_ms, renewal: 1, opened: revision, age_ms: 0 };
        let record = match self.get(id) {
            None if self.len() >= TTL_SESSIONS_MAX => return Some(Outcome::SessionsFull),
            None => fresh,
            // The first answer was lost. Its holder may rely on the longer TTL already.
            Some(found) if found.incarnation == incarnation => {
                SessionRecord { ttl_ms: found.ttl_ms.max(ttl_ms), ..renewed(found) }
            }
            Some(found) if Some(found.incarnation) == replaces => fresh,
            Some(_) => return Some(self.refusal(id)),
        };
        self.staged.insert(id.clone(), Some(record));
        None
    }

    /// Stages it; `Some` = it must not happen.
    pub fn renew(&mut self, id: &Bytes, incarnation: Incarnation) -> Option<Outcome> {
        match self.get(id) {
            Some(found) if found.incarnation == incarnation => {
                let record = renewed(found);
                self.staged.insert(id.clone(), Some(record));
                None
            }
            Some(_) | None => Some(self.refusal(id)),
        }
    }

    pub fn close(&mut self, id: &Bytes, incarnation: Incarnation) {
        if self.lives(id, incarnation) {
            self.staged.insert(id.clone(), None);
        }
    }

    /// Stages what a leader found; returns what expires. What it says of other renewals than the last is void (P17).
    pub fn follow(&mut self, entry: &LeaderEntry) -> Vec<SessionAt> {
        let mut expired = Vec::new();
        match entry {
            LeaderEntry::Expire(sessions) => {
                for at in sessions.iter().filter(|at| self.is_last(at).is_some()) {
                    expired.push(at.clone());
                }
                self.staged.extend(expired.iter().map(|at| (at.id.clone(), None)));
            }
            LeaderEntry::Ages(ages) => {
                for SessionAge { at, age_ms } in ages {
                    let older = self.is_last(at).filter(|found| found.age_ms < *age_ms);
                    if let Some(found) = older.cloned() {
                        let record = SessionRecord { age_ms: *age_ms, ..found };
                        self.staged.insert(at.id.clone(), Some(record));
                    }
                }
            }
        }
        expired
    }

    /// The session, if that renewal is its last.
    fn is_last(&self, at: &SessionAt) -> Option<&SessionRecord> {
        self.table
            .get(&at.id)
            .filter(|found| found.incarnation == at.incarnation && found.renewal == at.renewal)
    }

    /// What was staged happens.
    pub fn keep<V: View>(&mut self, rows: &mut Overlay<'_, V>) {
        for (id, record) in std::mem::take(&mut self.staged) {
            let row = rows::ttl_session(&id);
            let holder = self.table.get(&id).map(|found| found.incarnation);
            if holder != record.as_ref().map(|record| record.incarnation) {
                rows.note(row.clone());
            }
            match record {
                Some(record) => {
                    rows.put(row, rows::ttl_session_row(&record));
                    self.table.insert(id, record);
                }
                None => {
                    rows.delete(row);
                    self.table.remove(&id);
                }
            }
        }
    }

    /// What was staged does not happen.
    pub fn discard(&mut self) {
        self.staged.clear();
    }

    fn len(&self) -> usize {
        let new = self
            .staged
            .iter()
            .filter(|(id, record)| record.is_some() && !self.table.contains_key(*id));
        self.table.len() + new.count()
    }

    fn refusal(&self, id: &Bytes) -> Outcome {
        Outcome::SessionRefused(SessionRefused { id: id.clone(), found: self.get(id).cloned() })
    }
}

fn renewed(found: &SessionRecord) -> SessionRecord {
    SessionRecord { renewal: found.renewal.saturating_add(1), age_ms: 0, ..found.clone() }
}

#[cfg(test)]
mod tests;
