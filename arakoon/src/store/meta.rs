//! The records of the `meta` family: little-endian, each with a version byte (`docs/formats/arakoon.md`).

use super::{Db, io};
use arakoon_core::StoreError;
use arakoon_core::log_index::Position;
use bytes::Bytes;
use raft::eraftpb::HardState;
use rocksdb::{AsColumnFamilyRef, WriteBatch};
use wire::{Decode, DecodeError, Encode, Reader, message};

/// Whose database this is; the first record ever written.
pub const IDENTITY: &str = "identity";
/// Raft's term, vote and commit index.
pub const HARD: &str = "hard";
/// The last entry that the log doesn't hold.
pub const TRUNCATED: &str = "truncated";
/// Which state family holds the rows.
pub const ACTIVE: &str = "active";
/// The last entry whose changes are in the rows.
pub const APPLIED: &str = "applied";
/// Number of the last synced write.
pub const SEQUENCE: &str = "sequence";
/// Raft ids of the cluster's nodes.
pub const VOTERS: &str = "voters";

/// Present while a node that began with an empty directory doesn't vote yet.
pub const JOINING: &str = "joining";

/// Version byte that must be 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct V1;

impl Encode for V1 {
    fn encode(&self, out: &mut Vec<u8>) {
        out.push(1);
    }
}

impl Decode for V1 {
    fn decode(from: &mut Reader) -> Result<Self, DecodeError> {
        match u8::decode(from)? {
            1 => Ok(Self),
            value => Err(DecodeError::Illegal { what: "record version", value: value.into() }),
        }
    }
}

message! {
    pub struct Identity {
        pub version: V1,
        pub cluster: String,
        pub node: u64,
    }

    pub struct Hard {
        pub version: V1,
        pub term: u64,
        pub vote: u64,
        pub commit: u64,
    }

    pub struct Truncated {
        pub version: V1,
        pub index: u64,
        pub term: u64,
        pub chain: u32,
    }

    pub struct Active {
        pub version: V1,
        /// 0 = `state_a`, 1 = `state_b`.
        pub family: u8,
    }

    pub struct Applied {
        pub version: V1,
        pub index: u64,
    }

    pub struct Sequence {
        pub version: V1,
        pub number: u64,
    }

    pub struct Joining {
        pub version: V1,
    }

    pub struct Voters {
        pub version: V1,
        pub ids: Vec<u64>,
    }
}

impl Hard {
    pub fn new(state: &HardState) -> Self {
        Self { version: V1, term: state.term, vote: state.vote, commit: state.commit }
    }

    pub fn state(&self) -> HardState {
        HardState { term: self.term, vote: self.vote, commit: self.commit, ..HardState::default() }
    }
}

impl Truncated {
    pub const fn new(at: Position, chain: u32) -> Self {
        Self { version: V1, index: at.index, term: at.term, chain }
    }

    pub const fn position(&self) -> Position {
        Position { index: self.index, term: self.term }
    }
}

impl Applied {
    pub const fn new(index: u64) -> Self {
        Self { version: V1, index }
    }
}

impl Sequence {
    pub const fn new(number: u64) -> Self {
        Self { version: V1, number }
    }
}

impl Voters {
    pub const fn new(ids: Vec<u64>) -> Self {
        Self { version: V1, ids }
    }
}

/// One of the two families that take turns holding the rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    A,
    B,
}

impl Family {
    pub const fn name(self) -> &'static str {
        match self {
            Self::A => "state_a",
            Self::B => "state_b",
        }
    }

    pub const fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }

    pub const fn record(self) -> Active {
        Active {
            version: V1,
            family: match self {
                Self::A => 0,
                Self::B => 1,
            },
        }
    }
}

impl TryFrom<Active> for Family {
    type Error = StoreError;

    fn try_from(record: Active) -> Result<Self, StoreError> {
        match record.family {
            0 => Ok(Self::A),
            1 => Ok(Self::B),
            other => Err(StoreError::corrupt(format!("state family {other} is unknown"))),
        }
    }
}

pub fn put(
    batch: &mut WriteBatch,
    family: &impl AsColumnFamilyRef,
    name: &str,
    record: &impl Encode,
) {
    batch.put_cf(family, name, wire::encode_to_bytes(record));
}

pub fn get<T: Decode>(db: &Db, name: &str) -> Result<Option<T>, StoreError> {
    let family = db.cf_handle("meta").expect("all families are made when the store is opened");
    let Some(found) = db.get_cf(&family, name).map_err(io)? else { return Ok(None) };
    let bad = |cause| StoreError::corrupt(format!("meta record `{name}`: {cause}"));
    wire::decode_all(Bytes::from(found)).map(Some).map_err(bad)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meta_v1_is_frozen() {
        let bytes = |record: &dyn Fn(&mut Vec<u8>)| {
            let mut out = Vec::new();
            record(&mut out);
            out
        };
        let mut hard = HardState::default();
        (hard.term, hard.vote, hard.commit) = (1, 2, 3);
        let hard = Hard::new(&hard);
        assert_eq!(
            bytes(&|out| hard.encode(out)),
            b"\x01\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0"
        );
        let truncated = Truncated::new(Position { index: 5, term: 6 }, 7);
        assert_eq!(
            bytes(&|out| truncated.encode(out)),
            b"\x01\x05\0\0\0\0\0\0\0\x06\0\0\0\0\0\0\0\x07\0\0\0"
        );
        assert_eq!(bytes(&|out| Family::B.record().encode(out)), b"\x01\x01");
        assert_eq!(bytes(&|out| Applied::new(9).encode(out)), b"\x01\x09\0\0\0\0\0\0\0");
        let voters = Voters::new(vec![4]);
        assert_eq!(bytes(&|out| voters.encode(out)), b"\x01\x01\0\0\0\x04\0\0\0\0\0\0\0");
        let identity = Identity { version: V1, cluster: "c".into(), node: 2 };
        assert_eq!(bytes(&|out| identity.encode(out)), b"\x01\x01\0\0\0c\x02\0\0\0\0\0\0\0");
        assert!(wire::decode_all::<Applied>(Bytes::from_static(&[2; 9])).is_err());
    }
}
