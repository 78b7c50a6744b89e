//! Watching from a revision: a question that waits for its answer.
//!
//! It names what changed, not how: who is told reads again, and sees at least that change. A node that doesn't remember so
//! far back says so, and then everything is to be read again.

use crate::message;
use bytes::Bytes;
use model::Revision;

/// Prefixes in one question, of keys and sessions together.
pub const WATCH_PREFIXES_MAX: usize = 64;
/// A node waits no longer for a change.
pub const WATCH_MS_MAX: u64 = 60_000;

message! {
    pub struct ChangesAsk {
        /// Changes after this one are asked for.
        pub since: Revision,
        /// Prefixes of keys.
        pub keys: Vec<Bytes>,
        /// Prefixes of ids of sessions with a TTL.
        pub sessions: Vec<Bytes>,
        /// How long to wait when there is nothing yet.
        pub wait_ms: u64,
    }

    pub struct Changes {
        /// Keys that were set or deleted, each once.
        pub keys: Vec<Bytes>,
        /// Sessions that were opened, changed hands or ended, each once.
        pub sessions: Vec<Bytes>,
        /// Ask from here next.
        pub through: Revision,
        /// The node doesn't remember so far back: read again, and ask from the revision of that.
        pub compacted: bool,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_v1_are_frozen() {
        let ask = ChangesAsk {
            since: Revision(5),
            keys: vec![Bytes::from_static(b"k")],
            sessions: vec![],
            wait_ms: 9,
        };
        let want = b"\x05\0\0\0\0\0\0\0\x01\0\0\0\x01\0\0\0k\0\0\0\0\x09\0\0\0\0\0\0\0";
        assert_eq!(crate::encode_to_bytes(&ask)[..], want[..]);
        let changes = Changes {
            keys: vec![],
            sessions: vec![Bytes::from_static(b"s")],
            through: Revision(6),
            compacted: true,
        };
        let want = b"\0\0\0\0\x01\0\0\0\x01\0\0\0s\x06\0\0\0\0\0\0\0\x01";
        assert_eq!(crate::encode_to_bytes(&changes)[..], want[..]);
    }
}
