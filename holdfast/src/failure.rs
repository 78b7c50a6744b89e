//! How a command ends when it doesn't succeed: a message that names the thing and the remedy, and an exit code that a
//! script can branch on. The codes are part of the command line's contract and stand in `--help`.

use std::fmt::Display;
use std::process::ExitCode;

/// What every `--help` says about exit codes.
pub const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failed
  2  wrong usage or configuration
  3  no such thing (vDisk, key, process)
  4  the cluster, or the part of it that is needed, can't be reached
  5  status --check only: something is degraded or down
  6  status --check only: the backend is unavailable";

/// Why a command didn't succeed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("{0}")]
    Failed(String),
    #[error("{0}")]
    Config(String),
    #[error("{0}")]
    NotFound(String),
    #[error("{0}")]
    Unreachable(String),
}

impl Failure {
    pub fn failed(what: impl Display) -> Self {
        Self::Failed(what.to_string())
    }

    pub fn config(what: impl Display) -> Self {
        Self::Config(what.to_string())
    }

    pub fn not_found(what: impl Display) -> Self {
        Self::NotFound(what.to_string())
    }

    pub fn unreachable(what: impl Display) -> Self {
        Self::Unreachable(what.to_string())
    }

    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::Failed(_) => 1,
            Self::Config(_) => 2,
            Self::NotFound(_) => 3,
            Self::Unreachable(_) => 4,
        })
    }
}

/// A file operation that failed, with the file's name.
pub fn io_failure(doing: &str, path: &std::path::Path, cause: &std::io::Error) -> Failure {
    use std::io::ErrorKind;
    let kind = cause.kind();
    let remedy = if matches!(kind, ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem) {
        "; choose a directory that you may write, with --dir"
    } else if kind == ErrorKind::StorageFull {
        "; free some space or choose another directory with --dir"
    } else {
        ""
    };
    Failure::Failed(format!("can't {doing} {}: {cause}{remedy}", path.display()))
}
