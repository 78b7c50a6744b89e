//! What can go wrong, by what the caller can do; and its form on the wire.

use arakoon_client::{ReadError, TransactError};
use model::{Epoch, NamespaceId, ObjectId};
use runtime::config::ConfigError;
use runtime::dirlock::DirLockError;
use runtime::net::NetError;
use runtime::tls::TlsError;
use wire::error::code as common;
use wire::proxy::{Head, code};
use wire::{ErrorClass, WireError, encode_to_bytes};

/// Why a request has no good answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProxyError {
    #[error("epoch {asked} is fenced: namespace {namespace} is at epoch {recorded}")]
    Fenced { namespace: NamespaceId, asked: Epoch, recorded: Epoch },
    #[error("the head of namespace {namespace} isn't the expected predecessor of {object}")]
    WrongHead { namespace: NamespaceId, object: ObjectId, head: Box<Head> },
    #[error("{object} exists with other contents")]
    Conflict { object: ObjectId },
    #[error("namespace {namespace} exists with another preset, `{preset}`")]
    OtherPreset { namespace: NamespaceId, preset: String },
    #[error("there is no namespace {0}")]
    NoNamespace(NamespaceId),
    #[error("there is no object {0}")]
    NoObject(ObjectId),
    #[error("{object} can't be read: {problem}")]
    Unreadable { object: ObjectId, problem: String },
    #[error("no policy of preset `{preset}` can be met by the OSDs that are writable now ({osds})")]
    NoPolicy { preset: String, osds: String },
    #[error("{object}: only {stored} fragments could be stored, {needed} are needed")]
    TooFewStored { object: ObjectId, stored: usize, needed: u8 },
    #[error("there is no preset `{0}` in this backend")]
    NoPreset(String),
    #[error("{0}")]
    BadRequest(String),
    #[error("the payload was damaged on its way here")]
    DamagedPayload,
    #[error("the deadline passed")]
    TooLate,
    /// Nothing was decided, or the outcome is unknown: the same request again is safe.
    #[error("{0}")]
    Metadata(String),
    #[error("namespace {namespace}: {problem}")]
    Keys { namespace: NamespaceId, problem: String },
    #[error("{0}")]
    Broken(String),
}

impl ProxyError {
    /// Damaged metadata: nothing here can help.
    pub(crate) fn broken(what: impl std::fmt::Display, why: impl std::fmt::Display) -> Self {
        Self::Broken(format!("{what}: {why}"))
    }
}

impl From<ProxyError> for WireError {
    fn from(error: ProxyError) -> Self {
        use ErrorClass::{Fatal, Refuse, Retry};
        let message = error.to_string();
        let (class, code, detail) = match &error {
            ProxyError::Fenced { recorded, .. } => {
                (Refuse, code::FENCED, encode_to_bytes(recorded))
            }
            ProxyError::WrongHead { head, .. } => {
                (Refuse, code::WRONG_HEAD, encode_to_bytes(&**head))
            }
            ProxyError::Conflict { .. } | ProxyError::OtherPreset { .. } => {
                (Refuse, code::CONFLICT, bytes::Bytes::new())
            }
            ProxyError::NoNamespace(_) => (Refuse, code::NO_NAMESPACE, bytes::Bytes::new()),
            ProxyError::NoObject(_) => (Refuse, code::NO_OBJECT, bytes::Bytes::new()),
            ProxyError::Unreadable { .. } => (Retry, code::UNREADABLE, bytes::Bytes::new()),
            ProxyError::NoPolicy { .. } | ProxyError::TooFewStored { .. } => {
                (Retry, code::NO_POLICY, bytes::Bytes::new())
            }
            ProxyError::NoPreset(_) => (Refuse, code::NO_PRESET, bytes::Bytes::new()),
            ProxyError::BadRequest(_) => (Refuse, common::BAD_MESSAGE, bytes::Bytes::new()),
            ProxyError::DamagedPayload | ProxyError::Metadata(_) => {
                (Retry, common::NONE, bytes::Bytes::new())
            }
            ProxyError::TooLate => (Retry, common::TOO_LATE, bytes::Bytes::new()),
            ProxyError::Keys { .. } | ProxyError::Broken(_) => {
                (Fatal, common::NONE, bytes::Bytes::new())
            }
        };
        Self::new(class, code, message).with_detail(detail)
    }
}

impl From<ReadError> for ProxyError {
    fn from(error: ReadError) -> Self {
        Self::Metadata(error.to_string())
    }
}

impl From<TransactError> for ProxyError {
    fn from(error: TransactError) -> Self {
        Self::Metadata(error.to_string())
    }
}

/// Why the process can't run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    KeyFile(#[from] crate::key_file::KeyFileError),
    #[error(transparent)]
    DataDir(#[from] DirLockError),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Listen(#[from] NetError),
}
