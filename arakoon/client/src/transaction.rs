//! Builds a transaction: what must hold, and what then happens, all of it or nothing.

use bytes::Bytes;
use model::Incarnation;
use std::time::Duration;
use wire::arakoon::{Assertion, Update};

/// `Transaction::new().assert_absent("a").set("a", "1")`
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[must_use]
pub struct Transaction {
    pub assertions: Vec<Assertion>,
    pub updates: Vec<Update>,
}

impl Transaction {
    pub fn new() -> Self {
        Self::default()
    }

    /// The key has exactly this value.
    pub fn assert_value(self, key: impl AsRef<[u8]>, value: impl Into<Bytes>) -> Self {
        self.assert_is(key, Some(value.into()))
    }

    pub fn assert_absent(self, key: impl AsRef<[u8]>) -> Self {
        self.assert_is(key, None)
    }

    /// The key has exactly what was read.
    pub fn assert_is(mut self, key: impl AsRef<[u8]>, expected: Option<Bytes>) -> Self {
        self.assertions.push(Assertion::Value { key: copy(key), expected });
        self
    }

    pub fn assert_exists(mut self, key: impl AsRef<[u8]>) -> Self {
        self.assertions.push(Assertion::Exists { key: copy(key) });
        self
    }

    /// This incarnation's session lives: nobody may take what it holds (P17).
    pub fn assert_session_lives(mut self, id: impl AsRef<[u8]>, incarnation: Incarnation) -> Self {
        self.assertions.push(Assertion::SessionLives { id: copy(id), incarnation });
        self
    }

    /// This incarnation's session doesn't live: what it held may be taken (P17).
    pub fn assert_session_gone(mut self, id: impl AsRef<[u8]>, incarnation: Incarnation) -> Self {
        self.assertions.push(Assertion::SessionGone { id: copy(id), incarnation });
        self
    }

    pub fn set(mut self, key: impl AsRef<[u8]>, value: impl Into<Bytes>) -> Self {
        self.updates.push(Update::Set { key: copy(key), value: value.into() });
        self
    }

    pub fn delete(mut self, key: impl AsRef<[u8]>) -> Self {
        self.updates.push(Update::Delete { key: copy(key) });
        self
    }

    pub fn delete_prefix(mut self, prefix: impl AsRef<[u8]>) -> Self {
        self.updates.push(Update::DeletePrefix { prefix: copy(prefix) });
        self
    }

    /// Adds to a counter of 8 little-endian bytes; an absent one is 0.
    pub fn add(mut self, key: impl AsRef<[u8]>, delta: i64) -> Self {
        self.updates.push(Update::Add { key: copy(key), delta });
        self
    }

    /// Opens a session, or renews it if this incarnation has it already; `replaces` is an older incarnation that the
    /// caller knows to be dead. [`crate::Session`] does this and keeps it alive.
    pub fn open_session(
        mut self,
        id: impl AsRef<[u8]>,
        incarnation: Incarnation,
        ttl: Duration,
        replaces: Option<Incarnation>,
    ) -> Self {
        let ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
        self.updates.push(Update::OpenSession { id: copy(id), incarnation, ttl_ms, replaces });
        self
    }

    pub fn renew_session(mut self, id: impl AsRef<[u8]>, incarnation: Incarnation) -> Self {
        self.updates.push(Update::RenewSession { id: copy(id), incarnation });
        self
    }

    /// No error when that incarnation doesn't live.
    pub fn close_session(mut self, id: impl AsRef<[u8]>, incarnation: Incarnation) -> Self {
        self.updates.push(Update::CloseSession { id: copy(id), incarnation });
        self
    }
}

fn copy(key: impl AsRef<[u8]>) -> Bytes {
    Bytes::copy_from_slice(key.as_ref())
}
