//! What one transaction does: assertions, updates, and that it happens once however often it is in the log.
//!
//! A client works in a *request session*, opened by request 0, which gives it an id that contains the log index of the opening
//! ([`wire::arakoon::session_id`]). A session id is therefore never born twice: once a session is forgotten, whatever is
//! left of it is refused for ever and never runs again (P28).
//!
//! Sessions with a TTL (P17) are something else: who is alive, see [`TtlTable`].
//!
//! Invariant: the outcome and the changed rows depend on nothing but the rows before and the entry; [`Sessions`] and the
//! TTL table in memory equal their rows.

mod sessions;
mod ttl;

use crate::leader_entry::{LeaderEntry, SessionAt};
use crate::limits::DELETE_PREFIX_MAX;
use crate::rows;
use crate::store::StoreError;
use crate::view::{Overlay, View};
use bytes::Bytes;
use model::Revision;
use sessions::{Admission, Sessions};
use ttl::{Opening, TtlSessions};
use wire::arakoon::{Assertion, AssertionFailed, SessionRefused, Transaction, Update, session_id};
use wire::{Decode, DecodeError, Encode, Reader};

pub use sessions::{SESSION_REQUESTS_MAX, SESSIONS_MAX};
pub use ttl::TtlTable;

/// How a transaction ended. Kept in its session until the client says that it has the answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Committed(Revision),
    AssertionFailed(AssertionFailed),
    /// `Add` met a value that isn't a counter, or would overflow.
    BadCounter {
        key: Bytes,
    },
    /// `DeletePrefix` of more keys than one log entry may remove.
    PrefixTooLarge {
        prefix: Bytes,
    },
    /// The session or this request's place in it is forgotten: it can't be told whether it ran (P28). Never kept.
    Expired,
    /// Another incarnation lives, or the one to renew doesn't.
    SessionRefused(SessionRefused),
    /// Too many sessions with a TTL.
    SessionsFull,
}

impl Encode for Outcome {
    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Committed(revision) => {
                out.push(1);
                revision.encode(out);
            }
            Self::AssertionFailed(failed) => {
                out.push(2);
                failed.encode(out);
            }
            Self::BadCounter { key } => {
                out.push(3);
                key.encode(out);
            }
            Self::PrefixTooLarge { prefix } => {
                out.push(4);
                prefix.encode(out);
            }
            Self::Expired => out.push(5),
            Self::SessionRefused(refused) => {
                out.push(6);
                refused.encode(out);
            }
            Self::SessionsFull => out.push(7),
        }
    }
}

impl Decode for Outcome {
    fn decode(from: &mut Reader) -> Result<Self, DecodeError> {
        match u8::decode(from)? {
            1 => Decode::decode(from).map(Self::Committed),
            2 => Decode::decode(from).map(Self::AssertionFailed),
            3 => Ok(Self::BadCounter { key: Decode::decode(from)? }),
            4 => Ok(Self::PrefixTooLarge { prefix: Decode::decode(from)? }),
            5 => Ok(Self::Expired),
            6 => Decode::decode(from).map(Self::SessionRefused),
            7 => Ok(Self::SessionsFull),
            value => Err(DecodeError::Illegal { what: "outcome", value: value.into() }),
        }
    }
}

/// The state machine: its rows lie in the store, what is needed for every transaction in memory.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Machine {
    sessions: Sessions,
    ttl: TtlSessions,
}

impl Machine {
    /// # Errors
    /// When the disk fails, or session rows aren't what this version writes.
    pub fn load(view: &impl View) -> Result<Self, StoreError> {
        Ok(Self { sessions: Sessions::load(view)?, ttl: TtlSessions::load(view)? })
    }

    #[must_use]
    pub fn session_count(&self) -> usize {
        self.sessions.len()
    }

    /// Living sessions with a TTL.
    #[must_use]
    pub const fn ttl_sessions(&self) -> &TtlTable {
        self.ttl.table()
    }

    /// Applies what a leader put into the log by itself; returns the sessions that expired.
    pub fn follow<V: View>(
        &mut self,
        rows: &mut Overlay<'_, V>,
        entry: &LeaderEntry,
    ) -> Vec<SessionAt> {
        let expired = self.ttl.follow(entry);
        self.ttl.keep(rows);
        rows.keep();
        expired
    }

    /// Applies the transaction that lies in the log at `revision`.
    ///
    /// # Errors
    /// When the disk fails; the node must stop then, as its peers went on.
    pub fn apply<V: View>(
        &mut self,
        rows: &mut Overlay<'_, V>,
        revision: Revision,
        transaction: &Transaction,
    ) -> Result<Outcome, StoreError> {
        if transaction.request == 0 {
            self.sessions.open(rows, session_id(transaction.client, revision), revision)?;
            rows.keep();
            return Ok(Outcome::Committed(revision));
        }
        match self.sessions.admit(transaction) {
            Admission::Run => {}
            Admission::Repeated => return kept_outcome(rows, transaction),
            Admission::Expired => return Ok(Outcome::Expired),
        }
        let outcome = match run(rows, &mut self.ttl, revision, transaction)? {
            None => {
                self.ttl.keep(rows);
                Outcome::Committed(revision)
            }
            Some(refusal) => {
                rows.discard();
                self.ttl.discard();
                refusal
            }
        };
        self.sessions.remember(rows, transaction, revision, &outcome);
        rows.keep();
        Ok(outcome)
    }
}

fn kept_outcome<V: View>(
    rows: &Overlay<'_, V>,
    transaction: &Transaction,
) -> Result<Outcome, StoreError> {
    let row = rows::result(transaction.client, transaction.request);
    let value = rows
        .get(&row)?
        .ok_or_else(|| StoreError::corrupt("a session names a result that has no row"))?;
    wire::decode_all(value).map_err(|cause| StoreError::corrupt(format!("result row: {cause}")))
}

/// Stages the updates; `Some` = it must not happen.
fn run<V: View>(
    rows: &mut Overlay<'_, V>,
    ttl: &mut TtlSessions,
    revision: Revision,
    transaction: &Transaction,
) -> Result<Option<Outcome>, StoreError> {
    for (index, assertion) in transaction.assertions.iter().enumerate() {
        if let Some((key, found)) = failure(rows, ttl, assertion)? {
            let failed = AssertionFailed { index: model::u32_of(index), key, found };
            return Ok(Some(Outcome::AssertionFailed(failed)));
        }
    }
    for update in &transaction.updates {
        let refusal = match update {
            Update::OpenSession { id, incarnation, ttl_ms, replaces } => ttl.open(&Opening {
                id,
                incarnation: *incarnation,
                ttl_ms: *ttl_ms,
                replaces: *replaces,
                revision,
            }),
            Update::RenewSession { id, incarnation } => ttl.renew(id, *incarnation),
            Update::CloseSession { id, incarnation } => {
                ttl.close(id, *incarnation);
                None
            }
            Update::Set { .. }
            | Update::Delete { .. }
            | Update::DeletePrefix { .. }
            | Update::Add { .. } => change(rows, update)?,
        };
        if refusal.is_some() {
            return Ok(refusal);
        }
    }
    Ok(None)
}

/// What an assertion that doesn't hold found, and under which key.
fn failure<V: View>(
    rows: &Overlay<'_, V>,
    ttl: &TtlSessions,
    assertion: &Assertion,
) -> Result<Option<(Bytes, Option<Bytes>)>, StoreError> {
    let (holds, key, found) = match assertion {
        Assertion::Value { key, expected } => {
            let found = rows.get(&rows::user(key))?;
            (found == *expected, key, found)
        }
        Assertion::Exists { key } => {
            let found = rows.get(&rows::user(key))?;
            (found.is_some(), key, found)
        }
        Assertion::SessionLives { id, incarnation } => {
            (ttl.lives(id, *incarnation), id, ttl.get(id).map(wire::encode_to_bytes))
        }
        Assertion::SessionGone { id, incarnation } => {
            (!ttl.lives(id, *incarnation), id, ttl.get(id).map(wire::encode_to_bytes))
        }
    };
    Ok((!holds).then(|| (key.clone(), found)))
}

/// Stages a change of user's keys; `Some` = it must not happen.
fn change<V: View>(
    rows: &mut Overlay<'_, V>,
    update: &Update,
) -> Result<Option<Outcome>, StoreError> {
    match update {
        Update::Set { key, value } => rows.put(rows::user(key), value.clone()),
        Update::Delete { key } => rows.delete(rows::user(key)),
        Update::DeletePrefix { prefix } => {
            let doomed = rows.rows_with(&rows::user(prefix), DELETE_PREFIX_MAX)?;
            if doomed.len() > DELETE_PREFIX_MAX {
                return Ok(Some(Outcome::PrefixTooLarge { prefix: prefix.clone() }));
            }
            for row in doomed {
                rows.delete(row);
            }
        }
        Update::Add { key, delta } => {
            let row = rows::user(key);
            match added(rows.get(&row)?, *delta) {
                Some(value) => rows.put(row, value),
                None => return Ok(Some(Outcome::BadCounter { key: key.clone() })),
            }
        }
        Update::OpenSession { .. } | Update::RenewSession { .. } | Update::CloseSession { .. } => {}
    }
    Ok(None)
}

/// The counter after adding; `None` when it is no counter or would overflow.
fn added(found: Option<Bytes>, delta: i64) -> Option<Bytes> {
    let before = match found {
        None => 0,
        Some(value) => i64::from_le_bytes(value[..].try_into().ok()?),
    };
    let after = before.checked_add(delta)?;
    Some(Bytes::copy_from_slice(&after.to_le_bytes()))
}

#[cfg(test)]
mod tests;
