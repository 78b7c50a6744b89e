//! What a caller can be told, by what it can do about it.

use wire::WireError;
use wire::arakoon::AssertionFailed;

/// Why a transaction has no revision.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TransactError {
    /// Read again and decide anew. Nothing happened.
    #[error("assertion {} failed: key `{}` isn't as expected", .0.index, .0.key.escape_ascii())]
    Assertion(AssertionFailed),
    /// No node answered within the deadline. Unless the outcome is unknown, nothing happened.
    #[error("arakoon is unavailable{}: {reason}", if *.outcome_unknown { " (the outcome is unknown)" } else { "" })]
    Unavailable { outcome_unknown: bool, reason: String },
    /// Trying again gives the same answer. Nothing happened.
    #[error("arakoon refused: {0}")]
    Refused(WireError),
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
