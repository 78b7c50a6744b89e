//! A target's files of one vDisk.
//!
//! ```text
//! dtl/<vdisk>/promises                            fence, generations, trims: replaced by rename, synced before answered
//! dtl/<vdisk>/g<generation>-<number>              a chunk, append-only; both 16 hexadecimal digits
//! ```
//!
//! Invariant: when [`Disk::sync`] or [`Disk::promise`] has returned, data and names are on stable storage.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use model::DtlGeneration;
use router_core::dtl::store::{ChunkId, Disk, DiskError};
use runtime::page_cache;

const PROMISES: &str = "promises";
/// Handles kept open besides those of chunks that aren't synced yet.
const HANDLES: usize = 1;

/// See the module's page.
#[derive(Debug)]
pub struct Files {
    dir: PathBuf,
    open: Mutex<BTreeMap<ChunkId, Arc<File>>>,
}

impl Files {
    #[must_use]
    pub fn new(dir: PathBuf) -> Arc<Self> {
        Arc::new(Self { dir, open: Mutex::default() })
    }

    /// Removes the directory, once nothing in it is promised any more.
    pub fn forget(&self) {
        self.open().clear();
        if let Err(error) = std::fs::remove_dir_all(&self.dir)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(dir = %self.dir.display(), %error, "a forgotten log's directory stays");
        }
    }

    fn open(&self) -> MutexGuard<'_, BTreeMap<ChunkId, Arc<File>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, chunk: ChunkId) -> PathBuf {
        self.dir.join(format!("g{:016x}-{:016x}", chunk.generation.0, chunk.number))
    }

    fn failed(&self, cause: &io::Error) -> DiskError {
        let kind = cause.kind();
        if kind == io::ErrorKind::StorageFull || kind == io::ErrorKind::QuotaExceeded {
            DiskError::Full
        } else {
            DiskError::Failed(format!("{}: {cause}", self.dir.display()))
        }
    }

    /// The handle of a chunk, made when it isn't there.
    fn handle(&self, chunk: ChunkId) -> io::Result<Arc<File>> {
        if let Some(file) = self.open().get(&chunk) {
            return Ok(Arc::clone(file));
        }
        let make = || {
            let mut options = OpenOptions::new();
            options.create(true).truncate(false).read(true).write(true).open(self.path(chunk))
        };
        let file = match make() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                make_dir(&self.dir)?;
                make()?
            }
            other => other?,
        };
        let file = Arc::new(file);
        self.open().insert(chunk, Arc::clone(&file));
        Ok(file)
    }

    fn sync_all(&self, chunks: &[ChunkId]) -> io::Result<()> {
        for chunk in chunks {
            self.handle(*chunk)?.sync_data()?;
        }
        File::open(&self.dir)?.sync_all()?;
        let mut open = self.open();
        let newest = open.keys().next_back().copied();
        // A write error is told to handles that were open when it happened, so these stay until a sync has passed.
        if HANDLES < open.len() {
            open.retain(|chunk, _| !chunks.contains(chunk) || Some(*chunk) == newest);
        }
        Ok(())
    }

    fn refresh_all(&self, chunks: &[ChunkId]) -> io::Result<()> {
        for chunk in chunks {
            page_cache::refresh(self.handle(*chunk)?.as_ref())?;
        }
        self.sync_all(chunks)
    }

    fn read_at_most(&self, chunk: ChunkId, offset: u64, len: u64) -> io::Result<Vec<u8>> {
        let held = self.open().get(&chunk).cloned();
        let file = match held {
            Some(file) => file,
            None => Arc::new(File::open(self.path(chunk))?),
        };
        let len = len.min(file.metadata()?.len().saturating_sub(offset));
        let mut bytes = vec![0; model::usize_of(len)];
        file.read_exact_at(&mut bytes, offset)?;
        Ok(bytes)
    }

    fn replace_promises(&self, bytes: &[u8]) -> io::Result<()> {
        make_dir(&self.dir)?;
        let new = self.dir.join("promises.new");
        let mut file = File::create(&new)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&new, self.dir.join(PROMISES))?;
        File::open(&self.dir)?.sync_all()
    }

    fn list(&self) -> io::Result<Vec<ChunkId>> {
        let entries = match std::fs::read_dir(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other?,
        };
        let mut chunks = Vec::new();
        for entry in entries {
            chunks.extend(entry?.file_name().to_str().and_then(parse_name));
        }
        Ok(chunks)
    }
}

fn parse_name(name: &str) -> Option<ChunkId> {
    let (generation, number) = name.strip_prefix('g')?.split_once('-')?;
    let number_of = |text: &str| u64::from_str_radix(text, 16).ok();
    Some(ChunkId { generation: DtlGeneration(number_of(generation)?), number: number_of(number)? })
}

/// Makes the directory and its name durable.
fn make_dir(dir: &Path) -> io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    std::fs::create_dir_all(dir)?;
    match dir.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

/// A handle on the files; clones share them.
#[derive(Debug, Clone)]
pub struct Handle(pub Arc<Files>);

impl Disk for Handle {
    fn chunks(&self) -> Result<Vec<ChunkId>, DiskError> {
        self.0.list().map_err(|error| self.0.failed(&error))
    }

    fn write(&self, chunk: ChunkId, offset: u64, parts: &[Bytes]) -> Result<(), DiskError> {
        let write = || {
            let file = self.0.handle(chunk)?;
            let mut at = offset;
            for part in parts {
                file.write_all_at(part, at)?;
                at += part.len() as u64;
            }
            Ok(())
        };
        write().map_err(|error: io::Error| self.0.failed(&error))
    }

    fn sync(&self, chunks: &[ChunkId]) -> Result<(), DiskError> {
        if chunks.is_empty() {
            return Ok(());
        }
        self.0.sync_all(chunks).map_err(|error| self.0.failed(&error))
    }

    fn refresh(&self, chunks: &[ChunkId]) -> Result<(), DiskError> {
        if chunks.is_empty() {
            return Ok(());
        }
        self.0.refresh_all(chunks).map_err(|error| self.0.failed(&error))
    }

    fn read(&self, chunk: ChunkId, offset: u64, len: u64) -> Result<Bytes, DiskError> {
        let read = self.0.read_at_most(chunk, offset, len);
        read.map(Bytes::from).map_err(|error| self.0.failed(&error))
    }

    fn remove(&self, chunk: ChunkId) -> Result<(), DiskError> {
        self.0.open().remove(&chunk);
        match std::fs::remove_file(self.0.path(chunk)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(self.0.failed(&error)),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    fn promises(&self) -> Result<Option<Bytes>, DiskError> {
        match std::fs::read(self.0.dir.join(PROMISES)) {
            Ok(bytes) => Ok(Some(bytes.into())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.0.failed(&error)),
        }
    }

    fn promise(&self, bytes: &Bytes) -> Result<(), DiskError> {
        self.0.replace_promises(bytes).map_err(|error| self.0.failed(&error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_keep_what_they_are_given() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::new(dir.path().join("v"));
        let disk = Handle(Arc::clone(&files));
        let chunk = ChunkId { generation: DtlGeneration(3), number: 0x1f };
        assert_eq!(disk.chunks(), Ok(Vec::new()));
        assert_eq!(disk.promises(), Ok(None));
        disk.write(chunk, 2, &[Bytes::from_static(b"ab"), Bytes::from_static(b"cd")]).unwrap();
        disk.refresh(&[chunk]).unwrap();
        disk.promise(&Bytes::from_static(b"promise")).unwrap();
        let again = Handle(Files::new(dir.path().join("v")));
        assert_eq!(again.chunks(), Ok(vec![chunk]));
        assert_eq!(again.read(chunk, 1, 4), Ok(Bytes::from_static(b"\0abc")));
        assert_eq!(again.read(chunk, 4, u64::MAX), Ok(Bytes::from_static(b"cd")));
        assert_eq!(again.promises(), Ok(Some(Bytes::from_static(b"promise"))));
        again.remove(chunk).unwrap();
        assert_eq!(again.chunks(), Ok(Vec::new()));
        files.forget();
        assert!(!dir.path().join("v").exists());
    }
}
