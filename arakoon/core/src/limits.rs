//! Which transactions may enter the log: checked where they arrive, so that everything behind may rely on it (L8).

use wire::arakoon::{
    Assertion, KEY_MAX, OPERATIONS_MAX, SESSION_ID_MAX, TRANSACTION_MAX, TTL_MS_MAX, TTL_MS_MIN,
    Transaction, Update, VALUE_MAX,
};

/// Most keys that one `DeletePrefix` removes; a larger prefix is removed in parts. Bounds the work of one log entry.
pub const DELETE_PREFIX_MAX: usize = 100_000;

/// Over which limit a transaction is; told to the client as `TOO_LARGE`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LimitError {
    #[error("key of {len} bytes; 1 to {KEY_MAX} are allowed")]
    Key { len: usize },
    #[error("value of {len} bytes; at most {VALUE_MAX} are allowed")]
    Value { len: usize },
    #[error("transaction of {len} bytes in keys and values; at most {TRANSACTION_MAX} are allowed")]
    Transaction { len: usize },
    #[error("transaction of {count} operations; at most {OPERATIONS_MAX} are allowed")]
    Operations { count: usize },
    #[error("session id of {len} bytes; 1 to {SESSION_ID_MAX} are allowed")]
    SessionId { len: usize },
    #[error("TTL of {ms} ms; {TTL_MS_MIN} to {TTL_MS_MAX} are allowed")]
    Ttl { ms: u64 },
}

/// # Errors
/// When a key, a value or the whole is over its limit.
pub fn check(transaction: &Transaction) -> Result<(), LimitError> {
    let count = transaction.assertions.len() + transaction.updates.len();
    if count > OPERATIONS_MAX {
        return Err(LimitError::Operations { count });
    }
    let mut total = 0;
    for assertion in &transaction.assertions {
        total += match assertion {
            Assertion::Value { key, expected } => {
                check_key(key)? + check_value(expected.as_deref().unwrap_or_default())?
            }
            Assertion::Exists { key } => check_key(key)?,
            Assertion::SessionLives { id, .. } | Assertion::SessionGone { id, .. } => {
                check_session_id(id)?
            }
        };
    }
    for update in &transaction.updates {
        total += match update {
            Update::Set { key, value } => check_key(key)? + check_value(value)?,
            Update::Delete { key } | Update::Add { key, .. } => check_key(key)?,
            Update::DeletePrefix { prefix } => check_prefix(prefix)?,
            Update::OpenSession { id, ttl_ms, .. } => {
                check_ttl(*ttl_ms).and(check_session_id(id))?
            }
            Update::RenewSession { id, .. } | Update::CloseSession { id, .. } => {
                check_session_id(id)?
            }
        };
    }
    if total > TRANSACTION_MAX {
        return Err(LimitError::Transaction { len: total });
    }
    Ok(())
}

/// An empty key would be indistinguishable from "from the start" in ranges.
pub fn check_key(key: &[u8]) -> Result<usize, LimitError> {
    if key.is_empty() || key.len() > KEY_MAX {
        return Err(LimitError::Key { len: key.len() });
    }
    Ok(key.len())
}

/// An empty prefix means every key.
fn check_prefix(prefix: &[u8]) -> Result<usize, LimitError> {
    if prefix.len() > KEY_MAX {
        Err(LimitError::Key { len: prefix.len() })
    } else {
        Ok(prefix.len())
    }
}

fn check_session_id(id: &[u8]) -> Result<usize, LimitError> {
    if id.is_empty() || id.len() > SESSION_ID_MAX {
        return Err(LimitError::SessionId { len: id.len() });
    }
    Ok(id.len())
}

/// Shorter ones would expire by one missed heartbeat; longer ones would outlive all patience.
fn check_ttl(ms: u64) -> Result<(), LimitError> {
    if (TTL_MS_MIN..=TTL_MS_MAX).contains(&ms) { Ok(()) } else { Err(LimitError::Ttl { ms }) }
}

fn check_value(value: &[u8]) -> Result<usize, LimitError> {
    if value.len() > VALUE_MAX {
        Err(LimitError::Value { len: value.len() })
    } else {
        Ok(value.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use model::ClientId;

    fn with(updates: Vec<Update>) -> Transaction {
        Transaction {
            client: ClientId(1),
            request: 1,
            answered_below: 1,
            assertions: vec![],
            updates,
        }
    }

    fn set(key: usize, value: usize) -> Update {
        Update::Set { key: Bytes::from(vec![b'k'; key]), value: Bytes::from(vec![0; value]) }
    }

    fn open(id: usize, ttl_ms: u64) -> Update {
        Update::OpenSession {
            id: Bytes::from(vec![b'i'; id]),
            incarnation: model::Incarnation(1),
            ttl_ms,
            replaces: None,
        }
    }

    #[test]
    fn limits_hold_at_the_edge_and_refuse_beyond() {
        let cases = [
            (vec![set(1, 0)], Ok(())),
            (vec![set(KEY_MAX, VALUE_MAX)], Ok(())),
            (vec![set(0, 1)], Err(LimitError::Key { len: 0 })),
            (vec![set(KEY_MAX + 1, 1)], Err(LimitError::Key { len: KEY_MAX + 1 })),
            (vec![set(1, VALUE_MAX + 1)], Err(LimitError::Value { len: VALUE_MAX + 1 })),
            (
                vec![set(1, VALUE_MAX), set(1, VALUE_MAX)],
                Err(LimitError::Transaction { len: 2 * VALUE_MAX + 2 }),
            ),
            (vec![open(1, TTL_MS_MIN), open(SESSION_ID_MAX, TTL_MS_MAX)], Ok(())),
            (vec![open(0, TTL_MS_MIN)], Err(LimitError::SessionId { len: 0 })),
            (
                vec![open(SESSION_ID_MAX + 1, TTL_MS_MIN)],
                Err(LimitError::SessionId { len: SESSION_ID_MAX + 1 }),
            ),
            (vec![open(1, TTL_MS_MIN - 1)], Err(LimitError::Ttl { ms: TTL_MS_MIN - 1 })),
            (vec![open(1, TTL_MS_MAX + 1)], Err(LimitError::Ttl { ms: TTL_MS_MAX + 1 })),
            (vec![set(1, 1); OPERATIONS_MAX], Ok(())),
            (
                vec![set(1, 1); OPERATIONS_MAX + 1],
                Err(LimitError::Operations { count: OPERATIONS_MAX + 1 }),
            ),
        ];
        for (updates, want) in cases {
            assert_eq!(check(&with(updates)), want);
        }
    }
}
