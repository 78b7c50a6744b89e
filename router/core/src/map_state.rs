//! What a page map says about itself: which TLog it holds, and what all of it adds up to.
//!
//! Invariant: a state that fails its checksum is none.

use model::{Lsn, ObjectId};
use wire::{Decode, Encode, Reader};

use crate::crc32c;
use crate::map::Totals;

const VERSION: u8 = 2;

/// What a map says about itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MapState {
    /// The last TLog it holds.
    pub object: Option<ObjectId>,
    pub last_lsn: Lsn,
    pub totals: Totals,
    /// How many epochs it knows.
    pub epochs: u64,
}

impl MapState {
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        self.object.encode(&mut out);
        self.last_lsn.encode(&mut out);
        self.totals.mapped.encode(&mut out);
        self.totals.digest.encode(&mut out);
        self.epochs.encode(&mut out);
        crc32c(&out).encode(&mut out);
        out
    }

    /// `None` = can't be believed: rebuild.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (body, crc) = bytes.split_last_chunk::<4>()?;
        if crc32c(body) != u32::from_le_bytes(*crc) {
            return None;
        }
        let mut from = Reader::new(bytes::Bytes::copy_from_slice(body));
        if u8::decode(&mut from).ok()? != VERSION {
            return None;
        }
        let state = Self {
            object: Decode::decode(&mut from).ok()?,
            last_lsn: Decode::decode(&mut from).ok()?,
            totals: Totals {
                mapped: Decode::decode(&mut from).ok()?,
                digest: Decode::decode(&mut from).ok()?,
            },
            epochs: Decode::decode(&mut from).ok()?,
        };
        (from.remaining() == 0).then_some(state)
    }

    /// How many TLogs of the chain up to `head` it lacks: SCOs are numbered without gaps.
    #[must_use]
    pub fn lag(&self, head: Option<ObjectId>) -> u64 {
        let number = |object: Option<ObjectId>| object.map_or(0, |object| object.number.0);
        number(head).saturating_sub(number(self.object))
    }
}
