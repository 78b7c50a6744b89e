//! Sessions with a TTL (P17): who is alive, as a fact that transactions can assert.
//!
//! A session is a row of the state machine: an id like `router/<id>`, the incarnation of its holder, a TTL, and the number
//! of its last renewal. Opening, renewing and closing are [`super::Update`]s of transactions, so they can stand beside
//! others; only the leader of the nodes expires one, by a log entry that asserts the renewal it saw.
//!
//! Not to be confused with a client's request session ([`super::session_id`]), which makes transactions run once.

use crate::message;
use bytes::Bytes;
use model::{Incarnation, Revision};

use super::Consistency;

pub const SESSION_ID_MAX: usize = 128;
/// So many live at once; opening one more is refused (L8). A list of all fits one frame.
pub const TTL_SESSIONS_MAX: usize = 4096;
pub const TTL_MS_MIN: u64 = 1_000;
pub const TTL_MS_MAX: u64 = 3_600_000;

message! {
    /// A living session without its id.
    pub struct SessionRecord {
        pub incarnation: Incarnation,
        pub ttl_ms: u64,
        /// From 1, one more with every heartbeat.
        pub renewal: u64,
        /// Where this incarnation was opened.
        pub opened: Revision,
        /// At least so long ago the last renewal was sent; replicated coarsely, so that the next leader grants the
        /// remainder and not a full TTL.
        pub age_ms: u64,
    }

    /// Why a session wasn't opened or renewed; detail of `SESSION_REFUSED`.
    pub struct SessionRefused {
        pub id: Bytes,
        /// Who lives under that id; `None` = nobody.
        pub found: Option<SessionRecord>,
    }

    pub struct SessionsAsk {
        pub prefix: Bytes,
        pub consistency: Consistency,
    }

    pub struct SessionFact {
        pub id: Bytes,
        /// Its age is that of the answering node's own clock.
        pub record: SessionRecord,
    }

    pub struct SessionList {
        pub sessions: Vec<SessionFact>,
        pub revision: Revision,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arakoon::{Assertion, Update};

    #[test]
    fn sessions_v1_are_frozen() {
        let id = Bytes::from_static(b"r/1");
        let incarnation = Incarnation(7);
        let open = Update::OpenSession {
            id: id.clone(),
            incarnation,
            ttl_ms: 9000,
            replaces: Some(Incarnation(6)),
        };
        let record = SessionRecord {
            incarnation,
            ttl_ms: 9000,
            renewal: 2,
            opened: Revision(5),
            age_ms: 1000,
        };
        let cases: [(Bytes, &[u8]); 6] = [
            (
                crate::encode_to_bytes(&open),
                b"\x05\x03\0\0\0r/1\x07\0\0\0\0\0\0\0\x28\x23\0\0\0\0\0\0\x01\x06\0\0\0\0\0\0\0",
            ),
            (
                crate::encode_to_bytes(&Update::RenewSession { id: id.clone(), incarnation }),
                b"\x06\x03\0\0\0r/1\x07\0\0\0\0\0\0\0",
            ),
            (
                crate::encode_to_bytes(&Update::CloseSession { id: id.clone(), incarnation }),
                b"\x07\x03\0\0\0r/1\x07\0\0\0\0\0\0\0",
            ),
            (
                crate::encode_to_bytes(&Assertion::SessionLives { id: id.clone(), incarnation }),
                b"\x03\x03\0\0\0r/1\x07\0\0\0\0\0\0\0",
            ),
            (
                crate::encode_to_bytes(&Assertion::SessionGone { id, incarnation }),
                b"\x04\x03\0\0\0r/1\x07\0\0\0\0\0\0\0",
            ),
            (
                crate::encode_to_bytes(&record),
                b"\x07\0\0\0\0\0\0\0\x28\x23\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\x05\0\0\0\0\0\0\0\xe8\x03\0\0\0\0\0\0",
            ),
        ];
        for (found, want) in cases {
            assert_eq!(found[..], *want);
        }
    }
}
