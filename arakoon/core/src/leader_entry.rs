//! What a leader puts into the log by itself, beside clients' transactions: which sessions have expired, and how old they
//! are (P17).
//!
//! The log entry's context tells it from a transaction, whose context is empty. Clients can't make one: only data of
//! theirs enters the log.
//!
//! Invariant: every fact in it stays true however late it is applied, by whatever leader it is committed: an age is a lower
//! bound, and both kinds name the renewal they speak of.

use bytes::Bytes;
use model::Incarnation;
use wire::{Decode, DecodeError, Encode, Reader, message};

/// Context of such a log entry: its version.
pub const CONTEXT: &[u8] = &[1];
/// Sessions in one entry; the rest follows with the next (L8).
pub const SESSIONS_PER_ENTRY: usize = 1024;

message! {
    /// One renewal of one session.
    pub struct SessionAt {
        pub id: Bytes,
        pub incarnation: Incarnation,
        pub renewal: u64,
    }

    pub struct SessionAge {
        pub at: SessionAt,
        pub age_ms: u64,
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LeaderEntry {
    /// Nothing was heard of these for their TTL since that renewal.
    Expire(Vec<SessionAt>),
    /// These renewals were sent at least so long before this was proposed.
    Ages(Vec<SessionAge>),
}

impl Encode for LeaderEntry {
    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Expire(sessions) => {
                out.push(1);
                sessions.encode(out);
            }
            Self::Ages(ages) => {
                out.push(2);
                ages.encode(out);
            }
        }
    }
}

impl Decode for LeaderEntry {
    fn decode(from: &mut Reader) -> Result<Self, DecodeError> {
        match u8::decode(from)? {
            1 => Decode::decode(from).map(Self::Expire),
            2 => Decode::decode(from).map(Self::Ages),
            value => Err(DecodeError::Illegal { what: "leader entry", value: value.into() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_v1_are_frozen() {
        let at =
            SessionAt { id: Bytes::from_static(b"r/1"), incarnation: Incarnation(7), renewal: 2 };
        let one = b"\x01\0\0\0\x03\0\0\0r/1\x07\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0";
        let expire = LeaderEntry::Expire(vec![at.clone()]);
        let ages = LeaderEntry::Ages(vec![SessionAge { at, age_ms: 1000 }]);
        let cases = [
            (expire, [&b"\x01"[..], one].concat()),
            (ages, [&b"\x02"[..], one, b"\xe8\x03\0\0\0\0\0\0"].concat()),
        ];
        for (entry, want) in cases {
            let bytes = wire::encode_to_bytes(&entry);
            assert_eq!(bytes[..], want[..]);
            assert_eq!(wire::decode_all::<LeaderEntry>(bytes), Ok(entry));
        }
        assert!(wire::decode_all::<LeaderEntry>(Bytes::from_static(b"\x03")).is_err());
    }
}
