//! The write log's files: created, zero-written once, then only ever overwritten in place (P8), so that a sync touches no
//! filesystem metadata.
//!
//! ```text
//! log/id            the log's identity, 16 hexadecimal digits, and the segment size
//! log/seg-0003      a segment, zero-written and synced
//! log/seg-0004.new  being zero-written; its space is reserved, it holds nothing yet
//! ```
//!
//! Invariant: a `seg-` file without `.new` was wholly written and synced once.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use model::LogId;
use router_core::log::pool::{Batch, FileIndex, Run};
use runtime::page_cache;

/// Slices in one vectored write; the kernel takes 1024.
const SLICES_MAX: usize = 1020;
static ZEROES: [u8; 64] = [0; 64];

#[derive(Debug, thiserror::Error)]
pub enum LogDiskError {
    #[error("write log {path}: {cause}{}", full_hint(.cause))]
    Io { path: PathBuf, cause: io::Error },
    #[error("write log {path}: `{found}` isn't a log identity")]
    Identity { path: PathBuf, found: String },
    #[error(
        "write log {path} has segments of {found} bytes, the configuration says {wanted}; set log_segment_size back"
    )]
    SegmentSize { path: PathBuf, found: u64, wanted: u64 },
}

fn full_hint(cause: &io::Error) -> &'static str {
    let kind = cause.kind();
    if kind == io::ErrorKind::StorageFull {
        "; free space on this disk, or use fewer or smaller log segments"
    } else if kind == io::ErrorKind::PermissionDenied || kind == io::ErrorKind::ReadOnlyFilesystem {
        "; the directory must be writable"
    } else {
        ""
    }
}

/// The files of one write log.
#[derive(Debug)]
pub struct LogDisk {
    dir: PathBuf,
    pub id: LogId,
    segment_size: u64,
    files: Mutex<BTreeMap<FileIndex, Arc<File>>>,
}

impl LogDisk {
    /// Opens the log in `dir`, or makes one with identity `fresh`.
    ///
    /// # Errors
    /// When the directory can't be used, or was made with another segment size.
    pub fn open(dir: &Path, segment_size: u64, fresh: LogId) -> Result<Self, LogDiskError> {
        let at = |path: &Path| {
            let path = path.to_owned();
            move |cause| LogDiskError::Io { path, cause }
        };
        std::fs::create_dir_all(dir).map_err(at(dir))?;
        let path = dir.join("id");
        let id = match std::fs::read_to_string(&path) {
            Ok(text) => parse_identity(&path, &text, segment_size)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                write_identity(dir, fresh, segment_size).map_err(at(&path))?;
                fresh
            }
            Err(error) => return Err(at(&path)(error)),
        };
        let disk = Self { dir: dir.to_owned(), id, segment_size, files: Mutex::default() };
        let mut found = Vec::new();
        for entry in std::fs::read_dir(dir).map_err(at(dir))? {
            let name = entry.map_err(at(dir))?.file_name();
            if let Some(index) =
                name.to_str().and_then(|n| n.strip_prefix("seg-")).and_then(|n| n.parse().ok())
            {
                found.push(index);
            }
        }
        for index in found {
            let path = disk.path(index);
            let file = OpenOptions::new().read(true).write(true).open(&path).map_err(at(&path))?;
            disk.files().insert(index, Arc::new(file));
        }
        Ok(disk)
    }

    fn files(&self) -> std::sync::MutexGuard<'_, BTreeMap<FileIndex, Arc<File>>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, index: FileIndex) -> PathBuf {
        self.dir.join(format!("seg-{index:04}"))
    }

    fn file(&self, index: FileIndex) -> io::Result<Arc<File>> {
        self.files().get(&index).cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn error(&self, index: FileIndex, cause: io::Error) -> LogDiskError {
        LogDiskError::Io { path: self.path(index), cause }
    }

    /// Segments that are zero-written.
    #[must_use]
    pub fn ready(&self) -> Vec<FileIndex> {
        self.files().keys().copied().collect()
    }

    /// Zero-writes a segment that doesn't exist yet. Slow: for a blocking thread.
    ///
    /// # Errors
    /// When the disk is full or fails.
    pub fn prepare(&self, index: FileIndex) -> Result<(), LogDiskError> {
        if self.files().contains_key(&index) {
            return Ok(());
        }
        let file = self.write_zeroes(index).map_err(|cause| self.error(index, cause))?;
        self.files().insert(index, Arc::new(file));
        Ok(())
    }

    fn write_zeroes(&self, index: FileIndex) -> io::Result<File> {
        let new = self.dir.join(format!("seg-{index:04}.new"));
        let mut file =
            OpenOptions::new().create(true).truncate(true).read(true).write(true).open(&new)?;
        // Reserve first: a full disk is told before anything is written.
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, self.segment_size)?;
        let zeroes = vec![0; 1 << 20];
        let mut left = self.segment_size;
        while 0 < left {
            let len = left.min(zeroes.len() as u64);
            file.write_all(&zeroes[..model::usize_of(len)])?;
            left -= len;
        }
        file.sync_all()?;
        std::fs::rename(&new, self.path(index))?;
        File::open(&self.dir)?.sync_all()?;
        Ok(file)
    }

    /// Writes a batch into the page cache.
    ///
    /// # Errors
    /// When the disk fails; nothing can be said about the log's end then.
    pub fn append(&self, batch: &Batch) -> Result<(), LogDiskError> {
        for run in &batch.runs {
            self.append_run(run, &batch.headers).map_err(|cause| self.error(run.file, cause))?;
        }
        Ok(())
    }

    fn append_run(&self, run: &Run, headers: &[u8]) -> io::Result<()> {
        let file = self.file(run.file)?;
        let mut slices = Vec::with_capacity((run.pieces.len() * 2 + 1).min(SLICES_MAX));
        let mut offset = run.offset;
        for piece in &run.pieces {
            slices.push(IoSlice::new(&headers[piece.header.clone()]));
            if !piece.payload.is_empty() {
                slices.push(IoSlice::new(&piece.payload));
            }
            if 0 < piece.padding {
                slices.push(IoSlice::new(&ZEROES[..piece.padding]));
            }
            if SLICES_MAX - 3 <= slices.len() {
                offset = write_slices(&file, &mut slices, offset)?;
            }
        }
        write_slices(&file, &mut slices, offset)?;
        Ok(())
    }

    /// Makes what was appended to these files durable. Slow: for a blocking thread.
    ///
    /// # Errors
    /// When the disk fails; what was written since the last sync may be gone, whatever a later sync says.
    pub fn sync(&self, files: &[FileIndex]) -> Result<(), LogDiskError> {
        for index in files {
            let file = self.file(*index).map_err(|cause| self.error(*index, cause))?;
            file.sync_data().map_err(|cause| self.error(*index, cause))?;
        }
        Ok(())
    }

    /// Before a scan believes anything: what was appended to these files is synced, and what a sync of a process before this
    /// one failed to write isn't seen any more. Slow: for a blocking thread.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn refresh(&self, files: &[FileIndex]) -> Result<(), LogDiskError> {
        for index in files {
            let refreshed = self.file(*index).and_then(|file| page_cache::refresh(&file));
            refreshed.map_err(|cause| self.error(*index, cause))?;
        }
        Ok(())
    }

    /// A whole segment, for the scan.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn read_segment(&self, index: FileIndex) -> Result<Vec<u8>, LogDiskError> {
        let mut bytes = vec![0; model::usize_of(self.segment_size)];
        let read = self.file(index).and_then(|file| file.read_exact_at(&mut bytes, 0));
        read.map_err(|cause| self.error(index, cause))?;
        Ok(bytes)
    }

    /// The payload of a record, for replay.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn read(&self, index: FileIndex, offset: u64, len: u32) -> Result<Bytes, LogDiskError> {
        let mut bytes = vec![0; len as usize];
        let read = self.file(index).and_then(|file| file.read_exact_at(&mut bytes, offset));
        read.map_err(|cause| self.error(index, cause))?;
        Ok(Bytes::from(bytes))
    }
}

fn write_slices(file: &File, slices: &mut Vec<IoSlice<'_>>, mut offset: u64) -> io::Result<u64> {
    let mut rest = &mut slices[..];
    while !rest.is_empty() {
        let written = rustix::io::pwritev(file, rest, offset)?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        offset += written as u64;
        IoSlice::advance_slices(&mut rest, written);
    }
    slices.clear();
    Ok(offset)
}

fn parse_identity(path: &Path, text: &str, wanted: u64) -> Result<LogId, LogDiskError> {
    let bad = || LogDiskError::Identity { path: path.to_owned(), found: text.trim().to_owned() };
    let mut words = text.split_whitespace();
    let (Some(id), Some(size), None) = (words.next(), words.next(), words.next()) else {
        return Err(bad());
    };
    let id = u64::from_str_radix(id, 16).map_err(|_| bad())?;
    let found: u64 = size.parse().map_err(|_| bad())?;
    if found != wanted {
        return Err(LogDiskError::SegmentSize { path: path.to_owned(), found, wanted });
    }
    Ok(LogId(id))
}

fn write_identity(dir: &Path, id: LogId, segment_size: u64) -> io::Result<()> {
    let new = dir.join("id.new");
    let mut file = File::create(&new)?;
    writeln!(file, "{:016x} {segment_size}", id.0)?;
    file.sync_all()?;
    std::fs::rename(&new, dir.join("id"))?;
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_keeps_its_identity_and_refuses_another_segment_size() {
        let dir = tempfile::tempdir().unwrap();
        let first = LogDisk::open(dir.path(), 8 << 20, LogId(7)).unwrap();
        first.prepare(2).unwrap();
        let again = LogDisk::open(dir.path(), 8 << 20, LogId(8)).unwrap();
        assert_eq!((again.id, again.ready()), (LogId(7), vec![2]));
        let error = LogDisk::open(dir.path(), 16 << 20, LogId(8)).unwrap_err().to_string();
        assert!(error.contains("log_segment_size"), "{error}");
        std::fs::write(dir.path().join("id"), "what").unwrap();
        assert!(LogDisk::open(dir.path(), 8 << 20, LogId(8)).is_err());
    }
}
