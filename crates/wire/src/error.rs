//! What a peer answers when it can't do as asked: classed by what the caller can do about it.

use crate::{message, tag};
use bytes::Bytes;
use std::fmt;

tag! {
    /// What the caller can do.
    pub enum ErrorClass {
        /// Try again, here or at a peer; it may well work.
        Retry = 1,
        /// Somebody else does this; `detail` names them.
        Redirect = 2,
        /// This copy is bad or gone; use the others.
        Reconstruct = 3,
        /// The request is wrong or forbidden; trying again gives the same answer.
        Refuse = 4,
        /// The peer is broken and needs an operator.
        Fatal = 5,
    }
}

message! {
    /// A failed request.
    pub struct WireError {
        pub class: ErrorClass,
        /// Protocol-specific number, so that callers never match on text. 0 = none.
        pub code: u16,
        pub message: String,
        /// Protocol-specific facts, encoded like any message; empty when there are none.
        pub detail: Bytes,
    }
}

/// Codes that any protocol may answer.
pub mod code {
    pub const NONE: u16 = 0;
    /// The method isn't known here (a newer peer?).
    pub const UNKNOWN_METHOD: u16 = 1;
    /// The body isn't what the method takes.
    pub const BAD_MESSAGE: u16 = 2;
    /// The deadline passed before the work began.
    pub const TOO_LATE: u16 = 3;
    /// Limits are reached; come back later.
    pub const BUSY: u16 = 4;
    /// The peer's role may not call this.
    pub const FORBIDDEN: u16 = 5;
    /// The service is stopping.
    pub const STOPPING: u16 = 6;
    /// Protocols number their own codes from here.
    pub const PROTOCOL_BASE: u16 = 100;
}

impl WireError {
    #[must_use]
    pub fn new(class: ErrorClass, code: u16, message: impl Into<String>) -> Self {
        Self { class, code, message: message.into(), detail: Bytes::new() }
    }

    #[must_use]
    pub fn with_detail(mut self, detail: Bytes) -> Self {
        self.detail = detail;
        self
    }

    #[must_use]
    pub fn retry(code: u16, message: impl Into<String>) -> Self {
        Self::new(ErrorClass::Retry, code, message)
    }

    #[must_use]
    pub fn refuse(code: u16, message: impl Into<String>) -> Self {
        Self::new(ErrorClass::Refuse, code, message)
    }

    #[must_use]
    pub fn fatal(code: u16, message: impl Into<String>) -> Self {
        Self::new(ErrorClass::Fatal, code, message)
    }
}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for WireError {}
