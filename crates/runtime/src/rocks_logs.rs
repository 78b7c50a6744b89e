//! A look at RocksDB's own logs (its manifest and its write-ahead logs) before it opens them.
//!
//! RocksDB has two forms of log record, and a file has one of them. Where it meets a record of the other form it reports
//! a bad record **without going past it**, and reads it again, for ever (`log::Reader::ReadPhysicalRecord`, seen in
//! 11.8.1). The forms differ in one bit of a record's type, so one rotten bit makes a process hang at its start instead
//! of rebuilding what it could. We never ask for recycled logs, so any record of that form is damage.
//!
//! The format, from RocksDB's `db/log_format.h`: blocks of 32 KiB; in them records of checksum (4 bytes), length (2 bytes,
//! little endian), type (1 byte) and data; a block's last 6 bytes or fewer hold nothing. Lengths are followed as RocksDB
//! does; checksums are left to it.
//!
//! Invariant: what passes here ends in RocksDB, well or with an error.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

const BLOCK: usize = 32 << 10;
const HEADER: usize = 7;

#[derive(Debug, thiserror::Error)]
pub enum RocksLogError {
    #[error("{path}: {cause}")]
    Io { path: PathBuf, cause: io::Error },
    #[error(
        "{path} is damaged: the record at byte {offset} has a type, {kind}, that is never written there"
    )]
    Damaged { path: PathBuf, offset: u64, kind: u8 },
}

/// Whether RocksDB can be let loose on `dir`, which may be missing or empty.
///
/// # Errors
/// [`RocksLogError::Damaged`] names the first record that would make it hang.
pub fn check(dir: &Path) -> Result<(), RocksLogError> {
    let failed = |path: &Path, cause| RocksLogError::Io { path: path.to_owned(), cause };
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(dir, error)),
    };
    for entry in entries {
        let path = entry.map_err(|error| failed(dir, error))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let is_wal = path.extension().is_some_and(|extension| extension == "log");
        if !is_wal && !name.starts_with("MANIFEST-") {
            continue;
        }
        let file = File::open(&path).map_err(|error| failed(&path, error))?;
        let found = first_recycled(file).map_err(|error| failed(&path, error))?;
        if let Some((offset, kind)) = found {
            return Err(RocksLogError::Damaged { path, offset, kind });
        }
    }
    Ok(())
}

/// `kRecyclable…` of `log_format.h`.
const fn is_recycled(kind: u8) -> bool {
    matches!(kind, 5..=8 | 11 | 131)
}

fn first_recycled(mut from: impl Read) -> io::Result<Option<(u64, u8)>> {
    let mut block = Vec::with_capacity(BLOCK);
    let mut start = 0;
    loop {
        block.clear();
        from.by_ref().take(BLOCK as u64).read_to_end(&mut block)?;
        let mut at = 0;
        while let Some([_, _, _, _, low, high, kind]) = block.get(at..at + HEADER) {
            if is_recycled(*kind) {
                return Ok(Some((start + at as u64, *kind)));
            }
            let len = usize::from(u16::from_le_bytes([*low, *high]));
            // Never written: RocksDB goes on in the next block.
            if (*kind, len) == (0, 0) {
                break;
            }
            at += HEADER + len;
        }
        if block.len() < BLOCK {
            return Ok(None);
        }
        start += BLOCK as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(kind: u8, len: u16) -> Vec<u8> {
        let mut bytes = vec![0xab; 4];
        bytes.extend_from_slice(&len.to_le_bytes());
        bytes.push(kind);
        bytes.resize(HEADER + usize::from(len), 6);
        bytes
    }

    fn found(bytes: &[u8]) -> Option<(u64, u8)> {
        first_recycled(bytes).unwrap()
    }

    #[test]
    fn ordinary_records_pass_and_data_is_not_taken_for_headers() {
        assert_eq!(found(&[]), None);
        assert_eq!(found(&[record(1, 100), record(4, 0), record(2, 7)].concat()), None);
        // A torn end, and zeroes that a file system left.
        assert_eq!(found(&[record(1, 100), vec![5; 6]].concat()), None);
        assert_eq!(found(&[record(1, 100), vec![0; 3 * BLOCK]].concat()), None);
    }

    #[test]
    fn a_record_of_the_other_form_is_found_in_any_block() {
        assert_eq!(found(&[record(1, 100), record(5, 9)].concat()), Some((107, 5)));
        let first_block = record(2, u16::try_from(BLOCK - HEADER).unwrap());
        assert_eq!(found(&[first_block.clone(), record(8, 3)].concat()), Some((BLOCK as u64, 8)));
        let all = [first_block, vec![0; BLOCK], record(1, 20), record(131, 3)].concat();
        assert_eq!(found(&all), Some((2 * BLOCK as u64 + 27, 131)));
    }

    #[test]
    fn only_logs_are_looked_at_and_a_missing_directory_is_fine() {
        let dir = tempfile::tempdir().unwrap();
        check(&dir.path().join("none")).unwrap();
        let bad = record(6, 3);
        for name in ["LOG", "LOG.old.1", "000004.sst", "CURRENT"] {
            fs::write(dir.path().join(name), &bad).unwrap();
        }
        check(dir.path()).unwrap();
        for name in ["MANIFEST-000005", "000007.log"] {
            let path = dir.path().join(name);
            fs::write(&path, &bad).unwrap();
            let refused = check(dir.path()).unwrap_err();
            assert!(
                matches!(&refused, RocksLogError::Damaged { path: named, offset: 0, kind: 6 } if *named == path),
                "{refused}"
            );
            fs::remove_file(&path).unwrap();
        }
    }
}
