//! A witness outside RocksDB of how much was synced (P27; `docs/decisions/2026-11-22-raft-log-witness.md`).
//!
//! RocksDB's own recovery stops without a word at the first bad record of its write-ahead log, so a node could come back
//! without entries and votes that it acknowledged. Each synced write carries a sequence number inside the database; the
//! same number is put here after the sync. A database whose number is lower than the witness's has lost what it promised.
//!
//! Two slots take turns, so a torn write spoils at most the newer one. The write is made at once, which makes the witness
//! exact when a process dies; it is synced a moment later by a thread of its own, which keeps it off the path of requests.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;

pub const FILE_NAME: &str = "witness";
const MAGIC: [u8; 4] = *b"HFWI";
const VERSION: u32 = 1;
const SLOT_LEN: usize = 24;
/// Slots lie in different sectors and pages.
const SLOT_SPACING: u64 = 4096;

/// The slot: magic, version, sequence, CRC-32C of these, zero.
fn encode(sequence: u64) -> [u8; SLOT_LEN] {
    let mut slot = [0; SLOT_LEN];
    slot[..4].copy_from_slice(&MAGIC);
    slot[4..8].copy_from_slice(&VERSION.to_le_bytes());
    slot[8..16].copy_from_slice(&sequence.to_le_bytes());
    let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, &slot[..16]);
    slot[16..].copy_from_slice(&crc.to_le_bytes());
    slot
}

fn decode(slot: &[u8; SLOT_LEN]) -> Option<u64> {
    let sequence = u64::from_le_bytes(slot[8..16].try_into().ok()?);
    (encode(sequence) == *slot).then_some(sequence)
}

/// What the file says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    Missing,
    /// No slot is whole.
    Unreadable,
    Synced(u64),
}

pub fn read(dir: &Path) -> io::Result<Found> {
    let file = match File::open(dir.join(FILE_NAME)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Missing),
        Err(error) => return Err(error),
    };
    let slot = |number: u64| {
        let mut slot = [0; SLOT_LEN];
        file.read_exact_at(&mut slot, number * SLOT_SPACING).ok()?;
        decode(&slot)
    };
    Ok(slot(0).max(slot(1)).map_or(Found::Unreadable, Found::Synced))
}

/// Writes the witness.
#[derive(Debug)]
pub struct Witness {
    file: Arc<File>,
    dirty: bool,
    wake: Option<SyncSender<()>>,
    syncer: Option<JoinHandle<()>>,
}

impl Witness {
    /// Opens the file, or makes it durably with nothing witnessed.
    pub fn open(dir: &Path, found: Found) -> io::Result<Self> {
        let path = dir.join(FILE_NAME);
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        if found == Found::Missing {
            file.write_all_at(&encode(0), 0)?;
            file.write_all_at(&encode(0), SLOT_SPACING)?;
            file.sync_all()?;
            File::open(dir)?.sync_all()?;
        }
        let file = Arc::new(file);
        let (wake, woken) = sync_channel(1);
        let synced = Arc::clone(&file);
        let syncer = std::thread::Builder::new().name("witness".into()).spawn(move || {
            while woken.recv().is_ok() {
                if let Err(error) = synced.sync_data() {
                    tracing::error!(%error, "can't sync the witness of the Raft log");
                }
            }
        })?;
        Ok(Self { file, dirty: false, wake: Some(wake), syncer: Some(syncer) })
    }

    /// The database has synced its write number `sequence`.
    pub fn note(&mut self, sequence: u64) -> io::Result<()> {
        self.file.write_all_at(&encode(sequence), (sequence % 2) * SLOT_SPACING)?;
        self.dirty = true;
        Ok(())
    }

    /// Lets what was noted become durable soon; called every tick.
    pub fn settle(&mut self) {
        if !self.dirty {
            return;
        }
        // Full means that a sync is already ordered which begins after our write.
        match self.wake.as_ref().map(|wake| wake.try_send(())) {
            Some(Ok(()) | Err(TrySendError::Full(()))) => self.dirty = false,
            Some(Err(TrySendError::Disconnected(()))) | None => {}
        }
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.settle();
        self.wake = None;
        if let Some(syncer) = self.syncer.take() {
            // Its only way to fail is a panic, which was reported.
            let _ = syncer.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slot_v1_is_frozen() {
        let slot = encode(0x0102);
        assert_eq!(&slot[..16], b"HFWI\x01\0\0\0\x02\x01\0\0\0\0\0\0");
        assert_eq!(decode(&slot), Some(0x0102));
        for bit in 0..SLOT_LEN * 8 {
            let mut bad = slot;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode(&bad), None, "bit {bit}");
        }
    }

    #[test]
    fn a_torn_slot_leaves_the_one_before() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read(dir.path()).unwrap(), Found::Missing);
        let mut witness = Witness::open(dir.path(), Found::Missing).unwrap();
        assert_eq!(read(dir.path()).unwrap(), Found::Synced(0));
        for sequence in 1..=7 {
            witness.note(sequence).unwrap();
            assert_eq!(read(dir.path()).unwrap(), Found::Synced(sequence));
        }
        witness.file.write_all_at(&[0; 8], SLOT_SPACING).unwrap();
        assert_eq!(read(dir.path()).unwrap(), Found::Synced(6));
        witness.file.write_all_at(&[0; 8], 0).unwrap();
        assert_eq!(read(dir.path()).unwrap(), Found::Unreadable);
    }
}
