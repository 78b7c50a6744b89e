//! A target's files in memory, which remember what no sync covers and can say what a power cut would leave.
//!
//! Invariant: after a cut a file holds its synced bytes and, of what was written since, any sectors; a file whose name was
//! never synced may be gone. The file of promises is replaced whole or not at all.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use bytes::Bytes;
use router_core::dtl::store::{ChunkId, Disk, DiskError};
use sim::{Chance, Random};

const SECTOR: usize = 512;

#[derive(Debug, Clone, Default)]
struct Chunk {
    synced: Option<Vec<u8>>,
    cached: Vec<u8>,
    pending: Vec<(usize, Vec<u8>)>,
}

#[derive(Debug, Clone, Default)]
pub struct Contents {
    chunks: BTreeMap<ChunkId, Chunk>,
    promises: Option<Bytes>,
    /// The ones whose name is on stable storage.
    synced_promises: Option<Bytes>,
    /// Further bytes that fit.
    pub room: Option<usize>,
    pub sync_fails: bool,
    pub promising: Promising,
}

/// What becomes of a new file of promises.
#[derive(Debug, Clone, Copy, Default)]
pub enum Promising {
    #[default]
    Works,
    Fails,
    /// There is no room for it.
    Full,
    /// It has its name, and the sync of that fails.
    FailsWithItsName,
}

/// Clones share the contents; [`MemDisk::image`] doesn't.
#[derive(Debug, Clone, Default)]
pub struct MemDisk(pub Rc<RefCell<Contents>>);

impl MemDisk {
    /// What is left when the power fails now.
    pub fn image(&self, keep: Chance, random: &mut Random) -> Self {
        let promises = self.0.borrow().synced_promises.clone();
        let synced_promises = promises.clone();
        let mut left = Contents { promises, synced_promises, ..Contents::default() };
        for (id, chunk) in &self.0.borrow().chunks {
            if chunk.synced.is_none() && !random.happens(keep) {
                continue;
            }
            let mut bytes = chunk.synced.clone().unwrap_or_default();
            for (offset, written) in &chunk.pending {
                for (at, byte_range) in sectors(*offset, written.len()) {
                    if random.happens(keep) {
                        put(&mut bytes, at, &written[byte_range]);
                    }
                }
            }
            let chunk = Chunk { synced: Some(bytes.clone()), cached: bytes, pending: Vec::new() };
            left.chunks.insert(*id, chunk);
        }
        Self(Rc::new(RefCell::new(left)))
    }

    /// The process dies and the page cache stays.
    pub fn survivor(&self) -> Self {
        let contents = self.0.borrow().clone();
        Self(Rc::new(RefCell::new(contents)))
    }

    /// Flips a bit of a byte of a chunk.
    pub fn flip(&self, chunk: ChunkId, at: usize) {
        let mut contents = self.0.borrow_mut();
        let chunk = contents.chunks.get_mut(&chunk).unwrap();
        chunk.cached[at] ^= 1;
        if let Some(synced) = &mut chunk.synced {
            synced[at] ^= 1;
        }
    }
}

/// The parts of a write that lie in one sector each: (offset in the file, range of the written bytes).
fn sectors(offset: usize, len: usize) -> Vec<(usize, std::ops::Range<usize>)> {
    let mut parts = Vec::new();
    let mut at = 0;
    while at < len {
        let end = ((offset + at + 1).next_multiple_of(SECTOR) - offset).min(len);
        parts.push((offset + at, at..end));
        at = end;
    }
    parts
}

fn put(file: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    let end = offset + bytes.len();
    file.resize(file.len().max(end), 0);
    file[offset..end].copy_from_slice(bytes);
}

impl Disk for MemDisk {
    fn chunks(&self) -> Result<Vec<ChunkId>, DiskError> {
        Ok(self.0.borrow().chunks.keys().copied().collect())
    }

    fn write(&self, chunk: ChunkId, offset: u64, parts: &[Bytes]) -> Result<(), DiskError> {
        let mut contents = self.0.borrow_mut();
        let mut bytes: Vec<u8> = parts.concat();
        let room = contents.room;
        let fits = room.is_none_or(|room| bytes.len() <= room);
        if let Some(room) = room.filter(|_| !fits) {
            bytes.truncate(room);
        }
        contents.room = room.map(|room| room - bytes.len());
        let file = contents.chunks.entry(chunk).or_default();
        let offset = usize::try_from(offset).unwrap();
        put(&mut file.cached, offset, &bytes);
        file.pending.push((offset, bytes));
        if fits { Ok(()) } else { Err(DiskError::Full) }
    }

    fn sync(&self, chunks: &[ChunkId]) -> Result<(), DiskError> {
        let mut contents = self.0.borrow_mut();
        let fails = contents.sync_fails;
        for chunk in chunks {
            if let Some(file) = contents.chunks.get_mut(chunk) {
                let pending = std::mem::take(&mut file.pending);
                // Like the page cache: what a failed sync covered isn't written later either, and readers see it.
                if !fails {
                    let synced = file.synced.get_or_insert_default();
                    pending.iter().for_each(|(offset, bytes)| put(synced, *offset, bytes));
                }
            }
        }
        if fails { Err(DiskError::Failed("no sync".to_owned())) } else { Ok(()) }
    }

    fn refresh(&self, chunks: &[ChunkId]) -> Result<(), DiskError> {
        self.sync(chunks)?;
        let mut contents = self.0.borrow_mut();
        for chunk in chunks {
            if let Some(file) = contents.chunks.get_mut(chunk) {
                file.cached = file.synced.clone().unwrap_or_default();
            }
        }
        Ok(())
    }

    fn read(&self, chunk: ChunkId, offset: u64, len: u64) -> Result<Bytes, DiskError> {
        let contents = self.0.borrow();
        let file = contents.chunks.get(&chunk);
        let file = file.ok_or_else(|| DiskError::Failed("no such chunk".to_owned()))?;
        let from = usize::try_from(offset).unwrap().min(file.cached.len());
        let len = usize::try_from(len).unwrap().min(file.cached.len() - from);
        Ok(Bytes::copy_from_slice(&file.cached[from..from + len]))
    }

    fn remove(&self, chunk: ChunkId) -> Result<(), DiskError> {
        self.0.borrow_mut().chunks.remove(&chunk);
        Ok(())
    }

    fn promises(&self) -> Result<Option<Bytes>, DiskError> {
        Ok(self.0.borrow().promises.clone())
    }

    fn promise(&self, bytes: &Bytes) -> Result<(), DiskError> {
        let mut contents = self.0.borrow_mut();
        let failed = Err(DiskError::Failed("no promise".to_owned()));
        match contents.promising {
            Promising::Fails => return failed,
            Promising::Full => return Err(DiskError::Full),
            Promising::FailsWithItsName => {
                contents.promises = Some(bytes.clone());
                return failed;
            }
            Promising::Works => {}
        }
        contents.promises = Some(bytes.clone());
        contents.synced_promises = Some(bytes.clone());
        Ok(())
    }
}
