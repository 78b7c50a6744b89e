//! What a caller can be told, by what it can do about it.

use wire::WireError;
use wire::arakoon::{AssertionFailed, SessionRefused};

/// Why a transaction has no revision.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TransactError {
    /// Read again and decide anew. Nothing happened.
    #[error("assertion {} failed: key `{}` isn't as expected", .0.index, .0.key.escape_ascii())]
    Assertion(AssertionFailed),
    /// Another incarnation lives under that id, or the one to renew doesn't live any more. Nothing happened.
    #[error("session `{}` {}", .0.id.escape_ascii(), held(.0))]
    Session(SessionRefused),
    /// No node answered within the deadline. Unless the outcome is unknown, nothing happened.
    #[error("arakoon is unavailable{}: {reason}", if *.outcome_unknown { " (the outcome is unknown)" } else { "" })]
    Unavailable { outcome_unknown: bool, reason: String },
    /// Trying again gives the same answer. Nothing happened.
    #[error("arakoon refused: {0}")]
    Refused(WireError),
}

fn held(refused: &SessionRefused) -> String {
    match &refused.found {
        Some(found) => format!("is held by incarnation {}", found.incarnation),
        None => "has expired or was closed".into(),
    }
}

/// Why a read has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    #[error("arakoon is unavailable: {reason}")]
    Unavailable { reason: String },
    #[error("arakoon refused: {0}")]
    Refused(WireError),
    /// More entries than the caller is ready to hold; read in parts.
    #[error("more than {limit} entries")]
    TooMany { limit: usize },
}
