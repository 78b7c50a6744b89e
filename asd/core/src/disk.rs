//! The disk as the store sees it: numbered files of fixed length.
//!
//! Narrow, so that a twin in memory can stand for it and cut the power anywhere. The contract on failure is the
//! weakest that real disks give: a write that was not synced may be lost, torn at sectors, or land after a later one;
//! a failed sync leaves what it covered unknown, and no later one vouches for those bytes, though readers see them: also
//! not one of the next process, which hears nothing of the failure. So what may stem from before a failed sync is only
//! relied on after [`Disk::refresh`]. Writing it again instead would put at risk what may be all there is of a record
//! that was acknowledged.

use crate::index::Entry;
use crate::record::Header;
use bytes::Bytes;
use std::fmt;
use std::sync::Arc;

/// Smallest unit that a disk writes whole.
pub const SECTOR: usize = 512;

/// A segment file by its number; the number is its name and never changes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileId(pub u32);

impl fmt::Display for FileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

/// What the disk couldn't do, classed by what the store does about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DiskError {
    /// No space: an answer, not a failure.
    #[error("no space left on the file system")]
    NoSpace,
    /// The file system refuses writes.
    #[error("file system is read-only: {0}")]
    ReadOnly(String),
    /// The file, or the whole directory, isn't there.
    #[error("not there: {0}")]
    Gone(String),
    /// Anything else the operating system reports.
    #[error("disk error: {0}")]
    Io(String),
}

/// Reading, which any number of threads do side by side with the one writer.
pub trait ReadAt {
    /// Exactly `len` bytes.
    ///
    /// # Errors
    /// When they can't be read, also when the file is shorter.
    fn read_at(&self, file: FileId, offset: u64, len: usize) -> Result<Vec<u8>, DiskError>;

    /// The header of this entry's record, if it was read and found good before and is still remembered. A place of a lap is
    /// written once, so what was true of the record stays true.
    fn remembered(&self, _entry: &Entry) -> Option<Arc<Header>> {
        None
    }

    /// Such a header was read: to be remembered, or not.
    fn remember(&self, _entry: &Entry, _header: &Arc<Header>) {}
}

/// Everything the store does to a disk.
pub trait Disk: ReadAt {
    /// All segment files with their lengths, in any order.
    ///
    /// # Errors
    /// When the directory can't be read.
    fn list(&self) -> Result<Vec<(FileId, u64)>, DiskError>;

    /// Makes a file of `len` bytes that read as zeroes, its blocks reserved, its name durable. Leaves nothing
    /// behind when it fails.
    ///
    /// # Errors
    /// `NoSpace` when the blocks can't be reserved.
    fn create(&mut self, file: FileId, len: u64) -> Result<(), DiskError>;

    /// Writes `parts` one after the other from `offset`; not durable before [`Disk::sync`].
    ///
    /// # Errors
    /// After an error any part of it may have been written.
    fn write(&mut self, file: FileId, offset: u64, parts: &[Bytes]) -> Result<(), DiskError>;

    /// Everything written to `file` since its last sync is on stable storage when this returns.
    ///
    /// # Errors
    /// What was written since the last sync is then in an unknown state.
    fn sync(&mut self, file: FileId) -> Result<(), DiskError>;

    /// Syncs, and from now on readers see what is on stable storage, instead of what a failed sync left in memory.
    ///
    /// # Errors
    /// As [`Disk::sync`]; readers may then see either.
    fn refresh(&mut self, file: FileId) -> Result<(), DiskError>;

    /// Removes the file; it may come back after a power cut.
    ///
    /// # Errors
    /// When it can't be removed.
    fn remove(&mut self, file: FileId) -> Result<(), DiskError>;
}

impl<T: ReadAt> ReadAt for &mut T {
    fn read_at(&self, file: FileId, offset: u64, len: usize) -> Result<Vec<u8>, DiskError> {
        (**self).read_at(file, offset, len)
    }
}

impl<T: Disk> Disk for &mut T {
    fn list(&self) -> Result<Vec<(FileId, u64)>, DiskError> {
        (**self).list()
    }

    fn create(&mut self, file: FileId, len: u64) -> Result<(), DiskError> {
        (**self).create(file, len)
    }

    fn write(&mut self, file: FileId, offset: u64, parts: &[Bytes]) -> Result<(), DiskError> {
        (**self).write(file, offset, parts)
    }

    fn sync(&mut self, file: FileId) -> Result<(), DiskError> {
        (**self).sync(file)
    }

    fn refresh(&mut self, file: FileId) -> Result<(), DiskError> {
        (**self).refresh(file)
    }

    fn remove(&mut self, file: FileId) -> Result<(), DiskError> {
        (**self).remove(file)
    }
}
