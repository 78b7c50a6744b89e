//! The byte form of a log entry on disk, and the checksum chain through the log (P27).
//!
//! Each record carries `chain`, a CRC-32C over the chain before it and its own fields. So a record that was changed, left
//! out, or put in from elsewhere is found when the log is opened, whatever the store below says.

use bytes::Bytes;
use raft::eraftpb::{Entry, EntryType};
use wire::{DecodeError, message};

const RECORD_V1: u8 = 1;
/// Chain before the first entry of a log.
pub const CHAIN_START: u32 = 0;

message! {
    /// Value of a log row; its key is the index.
    pub struct EntryRecord {
        pub version: u8,
        pub kind: u8,
        pub chain: u32,
        pub term: u64,
        pub data: Bytes,
        pub context: Bytes,
    }
}

/// Why a stored entry can't be believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    #[error("log entry {index}: {cause}")]
    Form { index: u64, cause: DecodeError },
    #[error("log entry {index} has the chain checksum {found:08x}, {expected:08x} was expected")]
    Chain { index: u64, found: u32, expected: u32 },
}

/// Only kinds we write: configuration changes come with a later version of this format.
#[must_use]
pub const fn kind_number(kind: EntryType) -> u8 {
    match kind {
        EntryType::EntryNormal => 0,
        EntryType::EntryConfChange => 1,
        EntryType::EntryConfChangeV2 => 2,
    }
}

/// # Errors
/// When no kind has this number.
pub const fn kind_from(number: u8) -> Result<EntryType, DecodeError> {
    match number {
        0 => Ok(EntryType::EntryNormal),
        1 => Ok(EntryType::EntryConfChange),
        2 => Ok(EntryType::EntryConfChangeV2),
        value => Err(DecodeError::Illegal { what: "entry kind", value: value as u64 }),
    }
}

/// The chain after `entry`, when it was `before` ahead of it.
#[must_use]
pub fn chain(before: u32, entry: &Entry) -> u32 {
    let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
    digest.update(&before.to_le_bytes());
    digest.update(&entry.index.to_le_bytes());
    digest.update(&entry.term.to_le_bytes());
    digest.update(&[kind_number(entry.get_entry_type())]);
    digest.update(&model::u64_of(entry.data.len()).to_le_bytes());
    digest.update(&entry.data);
    digest.update(&entry.context);
    u32::try_from(digest.finalize()).expect("a CRC-32C has 32 bits")
}

/// The stored form of `entry` and the chain after it.
#[must_use]
pub fn encode(before: u32, entry: &Entry) -> (Bytes, u32) {
    let chain = chain(before, entry);
    let record = EntryRecord {
        version: RECORD_V1,
        kind: kind_number(entry.get_entry_type()),
        chain,
        term: entry.term,
        data: entry.data.clone(),
        context: entry.context.clone(),
    };
    (wire::encode_to_bytes(&record), chain)
}

/// The entry in a log row, and the chain that the row carries; [`verify`] checks it.
///
/// # Errors
/// When the bytes are no record of a version we know.
pub fn decode(index: u64, row: Bytes) -> Result<(Entry, u32), EntryError> {
    let form = |cause| EntryError::Form { index, cause };
    let record: EntryRecord = wire::decode_all(row).map_err(form)?;
    if record.version != RECORD_V1 {
        let value = record.version.into();
        return Err(form(DecodeError::Illegal { what: "entry version", value }));
    }
    let mut entry = Entry::default();
    entry.set_entry_type(kind_from(record.kind).map_err(form)?);
    entry.term = record.term;
    entry.index = index;
    entry.data = record.data;
    entry.context = record.context;
    Ok((entry, record.chain))
}

/// # Errors
/// When the entry doesn't follow what came before it.
pub fn verify(before: u32, entry: &Entry, found: u32) -> Result<u32, EntryError> {
    let expected = chain(before, entry);
    if expected == found {
        Ok(found)
    } else {
        Err(EntryError::Chain { index: entry.index, found, expected })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> Entry {
        Entry { term: 2, index: 3, data: Bytes::from_static(b"data"), ..Entry::default() }
    }

    #[test]
    fn record_v1_is_frozen() {
        let (row, chain) = encode(CHAIN_START, &sample());
        let mut want = vec![1, 0];
        want.extend(chain.to_le_bytes());
        want.extend(b"\x02\0\0\0\0\0\0\0\x04\0\0\0data\0\0\0\0");
        assert_eq!(row[..], want[..]);
        assert_eq!(chain, 0xbfb2_e96b);
        assert_eq!(decode(3, row), Ok((sample(), chain)));
        assert!(decode(3, Bytes::from_static(b"\x02")).is_err());
    }

    proptest! {
        #[test]
        fn a_changed_or_misplaced_entry_breaks_the_chain(bit in 0usize..(30 * 8), index in 1u64..5) {
            let (row, _) = encode(7, &sample());
            let mut bytes = row.to_vec();
            prop_assume!(bit / 8 < bytes.len());
            bytes[bit / 8] ^= 1 << (bit % 8);
            let seen = decode(3, Bytes::from(bytes)).and_then(|(entry, found)| verify(7, &entry, found));
            prop_assert!(seen.is_err());
            let moved = decode(index, row).and_then(|(entry, found)| verify(7, &entry, found));
            prop_assert_eq!(moved.is_ok(), index == 3);
        }

        #[test]
        fn garbage_never_panics(bytes: Vec<u8>) {
            let _ = decode(1, Bytes::from(bytes));
        }
    }
}
