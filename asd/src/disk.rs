//! Segment files in a directory: `segments/0000001f.seg` is segment file 31.
//!
//! [`Files`] is shared by all threads and reads; [`SegmentDisk`], owned by the disk thread, writes. Open files are kept in a
//! bounded cache, since a large disk has more segments than a process may open.
//!
//! A directory that is deleted under a running process keeps working for files that are open: everything "stored" then
//! would be gone at the next start. So a sync also asks whether its file still has a name.
//!
//! After a failed sync the page cache shows what no later sync writes: [`SegmentDisk::refresh`] drops it.
//!
//! Buffered I/O and fdatasync; direct I/O would go behind [`SegmentDisk::write`] and [`Files::read_at`].

use asd_core::disk::{Disk, DiskError, FileId, ReadAt};
use asd_core::index::Entry;
use asd_core::record::Header;
use bytes::Bytes;
use quick_cache::Weighter;
use rustix::fs::FallocateFlags;
use rustix::io::{Errno, ReadWriteFlags};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, IoSliceMut};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Files that are kept open.
const OPEN_MAX: usize = 128;
/// Bytes of record headers that are remembered: those of some GiB of fragments of 1 MiB.
const HEADERS_BYTES: u64 = 8 << 20;
const HEADERS_EXPECTED: usize = 4096;
/// Pieces of one vectored write; the kernel takes 1024.
const PIECES_MAX: usize = 512;

#[derive(Debug, Default)]
struct Cache {
    open: BTreeMap<FileId, (Arc<File>, u64)>,
    uses: u64,
}

/// Which record: lap, offset, sequence.
type RecordId = (u64, u64, u64);

#[derive(Debug, Clone)]
struct ByBytes;

impl Weighter<RecordId, Arc<Header>> for ByBytes {
    fn weight(&self, _: &RecordId, header: &Arc<Header>) -> u64 {
        200 + model::u64_of(header.header_len())
    }
}

/// The directory of segment files.
#[derive(Debug)]
pub(crate) struct Files {
    dir: PathBuf,
    cache: Mutex<Cache>,
    /// Headers of records read lately.
    headers: quick_cache::sync::Cache<RecordId, Arc<Header>, ByBytes>,
}

pub(crate) fn disk_error(error: &io::Error) -> DiskError {
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::NOSPC | Errno::DQUOT) => DiskError::NoSpace,
        Some(Errno::ROFS) => DiskError::ReadOnly(error.to_string()),
        Some(Errno::NOENT) => DiskError::Gone(error.to_string()),
        Some(_) | None => DiskError::Io(error.to_string()),
    }
}

fn parse_name(name: &str) -> Option<FileId> {
    let digits = name.strip_suffix(".seg")?;
    let number = u32::from_str_radix(digits, 16).ok()?;
    (format!("{}", FileId(number)) == digits).then_some(FileId(number))
}

impl Files {
    /// Creates `dir` when absent.
    pub(crate) fn open(dir: &Path) -> io::Result<Arc<Self>> {
        if !dir.is_dir() {
            std::fs::create_dir(dir)?;
            if let Some(parent) = dir.parent() {
                File::open(parent)?.sync_all()?;
            }
        }
        let headers =
            quick_cache::sync::Cache::with_weighter(HEADERS_EXPECTED, HEADERS_BYTES, ByBytes);
        Ok(Arc::new(Self { dir: dir.to_owned(), cache: Mutex::default(), headers }))
    }

    pub(crate) fn list(&self) -> io::Result<Vec<(FileId, u64)>> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&self.dir)? {
            let entry = entry?;
            if let Some(file) = entry.file_name().to_str().and_then(parse_name) {
                found.push((file, entry.metadata()?.len()));
            }
        }
        Ok(found)
    }

    pub(crate) fn is_there(&self) -> bool {
        self.dir.is_dir()
    }

    fn path(&self, file: FileId) -> PathBuf {
        self.dir.join(format!("{file}.seg"))
    }

    fn get(&self, file: FileId) -> Result<Arc<File>, DiskError> {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        cache.uses += 1;
        let uses = cache.uses;
        if let Some((open, used)) = cache.open.get_mut(&file) {
            *used = uses;
            return Ok(Arc::clone(open));
        }
        let open = OpenOptions::new().read(true).write(true).open(self.path(file));
        let open = Arc::new(open.map_err(|error| disk_error(&error))?);
        if cache.open.len() >= OPEN_MAX {
            let oldest =
                cache.open.iter().min_by_key(|(_, (_, used))| *used).map(|(file, _)| *file);
            if let Some(oldest) = oldest {
                cache.open.remove(&oldest);
            }
        }
        cache.open.insert(file, (Arc::clone(&open), uses));
        Ok(open)
    }

    fn forget(&self, file: FileId) {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner).open.remove(&file);
    }
}

impl ReadAt for Files {
    fn read_at(&self, file: FileId, offset: u64, len: usize) -> Result<Vec<u8>, DiskError> {
        let open = self.get(file)?;
        let mut bytes = vec![0; len];
        open.read_exact_at(&mut bytes, offset).map_err(|error| disk_error(&error))?;
        Ok(bytes)
    }
}

/// Files as far as they are in the page cache: what would take a read from the disk sets `blocked` instead.
pub(crate) struct Cached<'a> {
    pub files: &'a Files,
    pub blocked: &'a Cell<bool>,
}

impl ReadAt for Cached<'_> {
    fn read_at(&self, file: FileId, offset: u64, len: usize) -> Result<Vec<u8>, DiskError> {
        let open = self.files.get(file)?;
        let mut bytes = vec![0; len];
        let read = rustix::io::preadv2(
            &*open,
            &mut [IoSliceMut::new(&mut bytes)],
            offset,
            ReadWriteFlags::NOWAIT,
        );
        if read == Ok(len) {
            return Ok(bytes);
        }
        // Whatever the reason, a thread that may wait finds it out.
        self.blocked.set(true);
        Err(DiskError::Io("not in memory".to_owned()))
    }

    // Only here: what goes to the disk anyway, verification above all, looks at the header that is there.
    fn remembered(&self, entry: &Entry) -> Option<Arc<Header>> {
        self.files.headers.get(&record_id(entry))
    }

    fn remember(&self, entry: &Entry, header: &Arc<Header>) {
        self.files.headers.insert(record_id(entry), Arc::clone(header));
    }
}

const fn record_id(entry: &Entry) -> RecordId {
    (entry.at.lap.0, entry.at.offset, entry.seq)
}

/// The writing side.
#[derive(Debug)]
pub(crate) struct SegmentDisk {
    files: Arc<Files>,
    /// Bytes of the file system that segments leave to the index and to others.
    reserve: u64,
}

impl SegmentDisk {
    pub(crate) const fn new(files: Arc<Files>, reserve: u64) -> Self {
        Self { files, reserve }
    }

    fn preallocate(&self, path: &Path, len: u64) -> io::Result<()> {
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)?;
        match rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, len) {
            Ok(()) => {}
            // Some file systems can't; then the blocks come as they are written.
            Err(Errno::OPNOTSUPP) => file.set_len(len)?,
            Err(errno) => return Err(errno.into()),
        }
        file.sync_all()?;
        File::open(&self.files.dir)?.sync_all()
    }
}

impl ReadAt for SegmentDisk {
    fn read_at(&self, file: FileId, offset: u64, len: usize) -> Result<Vec<u8>, DiskError> {
        self.files.read_at(file, offset, len)
    }
}

impl Disk for SegmentDisk {
    fn list(&self) -> Result<Vec<(FileId, u64)>, DiskError> {
        self.files.list().map_err(|error| disk_error(&error))
    }

    fn create(&mut self, file: FileId, len: u64) -> Result<(), DiskError> {
        let free = free_bytes(&self.files.dir).map_err(|error| disk_error(&error))?;
        if free < len.saturating_add(self.reserve) {
            return Err(DiskError::NoSpace);
        }
        let path = self.files.path(file);
        self.files.forget(file);
        self.preallocate(&path, len).map_err(|error| {
            // A half-made file would only take room; one that can't be removed is removed at the next start.
            let _ = std::fs::remove_file(&path);
            disk_error(&error)
        })
    }

    fn write(&mut self, file: FileId, offset: u64, parts: &[Bytes]) -> Result<(), DiskError> {
        let open = self.files.get(file)?;
        write_all(&open, offset, parts).map_err(|error| disk_error(&error))
    }

    fn sync(&mut self, file: FileId) -> Result<(), DiskError> {
        let open = self.files.get(file)?;
        open.sync_data().map_err(|error| disk_error(&error))?;
        let names = open.metadata().map_err(|error| disk_error(&error))?.nlink();
        if names == 0 {
            return Err(DiskError::Gone(format!(
                "{} was deleted",
                self.files.path(file).display()
            )));
        }
        Ok(())
    }

    fn refresh(&mut self, file: FileId) -> Result<(), DiskError> {
        let open = self.files.get(file)?;
        runtime::page_cache::refresh(&open).map_err(|error| disk_error(&error))?;
        // It still has a name.
        self.sync(file)
    }

    fn remove(&mut self, file: FileId) -> Result<(), DiskError> {
        self.files.forget(file);
        std::fs::remove_file(self.files.path(file)).map_err(|error| disk_error(&error))
    }
}

fn write_all(file: &File, mut offset: u64, parts: &[Bytes]) -> io::Result<()> {
    for parts in parts.chunks(PIECES_MAX) {
        let mut slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
        let mut rest = &mut slices[..];
        IoSlice::advance_slices(&mut rest, 0);
        while !rest.is_empty() {
            let written = match rustix::io::pwritev(file, rest, offset) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => written,
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(errno.into()),
            };
            offset += model::u64_of(written);
            IoSlice::advance_slices(&mut rest, written);
        }
    }
    Ok(())
}

/// Bytes that the file system of `dir` has left for us.
pub(crate) fn free_bytes(dir: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(dir)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(dir: &Path) -> SegmentDisk {
        SegmentDisk::new(Files::open(&dir.join("segments")).unwrap(), 0)
    }

    #[test]
    fn what_is_written_is_read_back_after_any_number_of_pieces() {
        let dir = tempfile::tempdir().unwrap();
        let mut disk = disk(dir.path());
        disk.create(FileId(1), 1 << 20).unwrap();
        let parts: Vec<Bytes> = (0..2000_u32)
            .map(|i| Bytes::from(i.to_le_bytes()[..1 + (i % 4) as usize].to_vec()))
            .collect();
        disk.write(FileId(1), 4096, &parts).unwrap();
        disk.sync(FileId(1)).unwrap();
        let all = parts.concat();
        assert_eq!(disk.read_at(FileId(1), 4096, all.len()).unwrap(), all);
        assert_eq!(disk.list().unwrap(), [(FileId(1), 1 << 20)]);
        assert!(matches!(disk.read_at(FileId(1), 1 << 20, 1), Err(DiskError::Io(_))));
        assert!(matches!(disk.read_at(FileId(2), 0, 1), Err(DiskError::Gone(_))));
    }

    #[test]
    fn a_sync_notices_that_the_directory_was_deleted() {
        let dir = tempfile::tempdir().unwrap();
        let mut disk = disk(dir.path());
        disk.create(FileId(1), 1 << 16).unwrap();
        disk.write(FileId(1), 0, &[Bytes::from_static(b"x")]).unwrap();
        disk.sync(FileId(1)).unwrap();
        std::fs::remove_dir_all(dir.path().join("segments")).unwrap();
        disk.write(FileId(1), 0, &[Bytes::from_static(b"y")]).unwrap();
        assert!(matches!(disk.sync(FileId(1)), Err(DiskError::Gone(_))));
        assert!(matches!(disk.create(FileId(2), 1 << 16), Err(DiskError::Gone(_))));
    }

    #[test]
    fn room_is_left_to_the_index() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::open(&dir.path().join("segments")).unwrap();
        let free = free_bytes(dir.path()).unwrap();
        let mut disk = SegmentDisk::new(files, free);
        assert_eq!(disk.create(FileId(1), 1 << 16), Err(DiskError::NoSpace));
        assert_eq!(disk.list().unwrap(), []);
    }

    #[test]
    fn only_our_names_are_segments() {
        assert_eq!(parse_name("0000001f.seg"), Some(FileId(31)));
        for name in ["1f.seg", "0000001F.seg", "0000001f.seg.bak", "+000001f.seg", "lost+found"] {
            assert_eq!(parse_name(name), None, "{name}");
        }
    }

    #[test]
    fn more_segments_than_open_files() {
        let dir = tempfile::tempdir().unwrap();
        let mut disk = disk(dir.path());
        let count = u32::try_from(OPEN_MAX).unwrap() + 10;
        for number in 0..count {
            disk.create(FileId(number), 4096).unwrap();
            disk.write(FileId(number), 0, &[Bytes::from(number.to_le_bytes().to_vec())]).unwrap();
        }
        for number in 0..count {
            assert_eq!(disk.read_at(FileId(number), 0, 4).unwrap(), number.to_le_bytes());
        }
        assert!(disk.files.cache.lock().unwrap().open.len() <= OPEN_MAX);
    }
}
