//! Why a target says no, and what the caller reads from it.
//!
//! Invariant: each refusal has one code of the wire protocol.

use model::{DtlGeneration, Epoch, Lsn, RouterId};
use wire::dtl::{DtlFacts, DtlState, LogName, code};
use wire::{ErrorClass, WireError};

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("epoch {by} has taken over")]
    Fenced { by: Epoch },
    #[error("the newest log here is of generation {newest}")]
    WrongGeneration { newest: DtlGeneration },
    #[error("there is no such log here")]
    NoLog,
    #[error("the log here ends at LSN {last}")]
    Gap { last: Lsn },
    #[error("no room for this log")]
    Full,
    #[error("{0}")]
    Failed(String),
    #[error("arakoon's record doesn't name this log here: {0}")]
    NotNamed(String),
    #[error("arakoon couldn't be asked: {0}")]
    UnknownRecord(String),
    #[error("the log holds records that aren't in the backend")]
    NotEmpty,
}

impl From<Refusal> for WireError {
    fn from(refusal: Refusal) -> Self {
        let (class, code, detail) = match &refusal {
            Refusal::Fenced { by } => (ErrorClass::Refuse, code::FENCED, Some(by.0)),
            Refusal::WrongGeneration { newest } => {
                (ErrorClass::Refuse, code::WRONG_GENERATION, Some(newest.0))
            }
            Refusal::NoLog => (ErrorClass::Refuse, code::NO_LOG, None),
            Refusal::Gap { last } => (ErrorClass::Retry, code::GAP, Some(last.0)),
            Refusal::Full => (ErrorClass::Refuse, code::FULL, None),
            Refusal::Failed(_) => (ErrorClass::Refuse, code::FAILED, None),
            Refusal::NotNamed(_) => (ErrorClass::Refuse, code::NOT_NAMED, None),
            Refusal::UnknownRecord(_) => (ErrorClass::Retry, code::UNKNOWN_RECORD, None),
            Refusal::NotEmpty => (ErrorClass::Refuse, code::NOT_EMPTY, None),
        };
        let error = Self::new(class, code, refusal.to_string());
        match detail {
            Some(number) => error.with_detail(wire::encode_to_bytes(&number)),
            None => error,
        }
    }
}

/// Does the record name this log at this router? Only while it catches up: a log that was InSync and is gone must not be
/// begun anew, or what it held would be missed by nobody (L7).
///
/// # Errors
/// `NotNamed`, with what differs.
pub fn confirm(
    (epoch, facts): (Epoch, &DtlFacts),
    log: &LogName,
    me: RouterId,
) -> Result<(), Refusal> {
    let problem = if epoch != log.epoch {
        format!("the vDisk's epoch is {epoch}, not {}", log.epoch)
    } else if facts.generation != log.generation {
        format!("the generation is {}, not {}", facts.generation, log.generation)
    } else if !facts.targets.contains(&me) {
        "this router isn't a target".to_owned()
    } else if facts.state != DtlState::CatchingUp {
        format!("the state is {:?}, and logs are made while catching up", facts.state)
    } else {
        return Ok(());
    };
    Err(Refusal::NotNamed(problem))
}
