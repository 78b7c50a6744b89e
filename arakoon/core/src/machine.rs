//! What one transaction does: assertions, updates, and that it happens once however often it is in the log.
//!
//! A client works in a *session*, opened by request 0, which gives it an id that contains the log index of the opening
//! ([`wire::arakoon::session_id`]). A session id is therefore never born twice: once a session is forgotten, whatever is
//! left of it is refused for ever and never runs again (P28).
//!
//! Invariant: the outcome and the changed rows depend on nothing but the rows before and the entry; [`Sessions`] in
//! memory equals the session rows.

mod sessions;

use crate::limits::DELETE_PREFIX_MAX;
use crate::rows;
use crate::store::StoreError;
use crate::view::{Overlay, View};
use bytes::Bytes;
use model::Revision;
use sessions::{Admission, Sessions};
use wire::arakoon::{Assertion, AssertionFailed, Transaction, Update, session_id};
use wire::{Decode, DecodeError, Encode, Reader};

pub use sessions::{SESSION_REQUESTS_MAX, SESSIONS_MAX};

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
            value => Err(DecodeError::Illegal { what: "outcome", value: value.into() }),
        }
    }
}

/// The state machine: its rows lie in the store, what is needed for every transaction in memory.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Machine {
    sessions: Sessions,
}

impl Machine {
    /// # Errors
    /// When the disk fails, or session rows aren't what this version writes.
    pub fn load(view: &impl View) -> Result<Self, StoreError> {
        Ok(Self { sessions: Sessions::load(view)? })
    }

    #[must_use]
    pub fn session_count(&self) -> usize {
        self.sessions.len()
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
        let outcome = match run(rows, transaction)? {
            None => Outcome::Committed(revision),
            Some(refusal) => {
                rows.discard();
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
    transaction: &Transaction,
) -> Result<Option<Outcome>, StoreError> {
    for (index, assertion) in transaction.assertions.iter().enumerate() {
        let (Assertion::Value { key, .. } | Assertion::Exists { key }) = assertion;
        let found = rows.get(&rows::user(key))?;
        let holds = match assertion {
            Assertion::Value { expected, .. } => found == *expected,
            Assertion::Exists { .. } => found.is_some(),
        };
        if !holds {
            let failed = AssertionFailed { index: model::u32_of(index), key: key.clone(), found };
            return Ok(Some(Outcome::AssertionFailed(failed)));
        }
    }
    for update in &transaction.updates {
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
        }
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
