//! The directory of the page maps, with the RocksDB in it; both can be thrown away while the router runs (L6).
//!
//! RocksDB checks its blocks and says so when one is bad, but it can't mend itself: a later compaction would meet the bad
//! block again and stop all writing. So what it calls damage makes the whole directory suspect, and the next rebuild of
//! any map begins with an empty one.
//!
//! Invariant: at most one database is open here; while it is replaced nobody uses it.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{PoisonError, RwLock};

use model::VdiskId;
use rocksdb::{
    BlockBasedOptions, DB, DBCompressionType, Direction, ErrorKind, IngestExternalFileOptions,
    IteratorMode, Options, ReadOptions, WriteOptions,
};
use runtime::rocks_logs;

use super::MapError;
use super::state::{self, kind_range};

/// A key of no kind.
const PROBE: &[u8] = b"?";
/// Read ahead of a walk over a whole map.
const AHEAD_BYTES: usize = 1 << 20;

type Row = (Box<[u8]>, Box<[u8]>);

pub(super) struct Place {
    dir: PathBuf,
    /// `None` only after a replacement failed.
    db: RwLock<Option<DB>>,
    suspect: AtomicBool,
}

fn options() -> Options {
    let mut options = Options::default();
    options.create_if_missing(true);
    // Every write-back makes a small file of pages from all over; packing and merging them at once would be most of what
    // a widely scattered load costs.
    options.set_compression_type(DBCompressionType::None);
    options.set_bottommost_compression_type(DBCompressionType::Lz4);
    options.set_level_zero_file_num_compaction_trigger(8);
    options.set_write_buffer_size(16 << 20);
    options.set_max_write_buffer_number(3);
    options.set_max_background_jobs(2);
    options.set_max_open_files(128);
    options.set_keep_log_file_num(4);
    options.set_max_log_file_size(1 << 20);
    // Most first writes to a thin vDisk ask for a page that isn't there.
    let mut blocks = BlockBasedOptions::default();
    blocks.set_bloom_filter(10.0, false);
    options.set_block_based_table_factory(&blocks);
    options
}

fn open_db(dir: &Path) -> Result<DB, MapError> {
    rocks_logs::check(dir).map_err(|error| MapError::Damaged(error.to_string()))?;
    DB::open(&options(), dir).map_err(|error| MapError::Store(error.to_string()))
}

/// Puts `dir` aside, for somebody to look at, and begins an empty one.
fn begin_anew(dir: &Path) -> Result<DB, MapError> {
    let store = |error: &dyn std::fmt::Display| MapError::Store(error.to_string());
    let aside = dir.with_extension("damaged");
    let _ = std::fs::remove_dir_all(&aside);
    std::fs::rename(dir, &aside).map_err(|error| store(&error))?;
    open_db(dir)
}

/// Bad files, as opposed to a disk that is full or an operation that may work later.
fn is_damage(error: &rocksdb::Error) -> bool {
    let kind = error.kind();
    kind == ErrorKind::Corruption || kind == ErrorKind::IOError && !is_full(error)
}

/// No room on the disk, or more than this user may have.
pub(super) fn is_full(error: &rocksdb::Error) -> bool {
    let text: &str = error.as_ref();
    text.contains("No space") || text.contains("quota exceeded")
}

/// Links the file where that is possible, else copies it.
fn ingest(db: &DB, file: &Path) -> Result<(), rocksdb::Error> {
    let mut options = IngestExternalFileOptions::default();
    options.set_move_files(true);
    db.ingest_external_file_opts(&options, vec![file])
}

/// As all writes here: what is lost is derived (L6).
pub(super) fn without_log() -> WriteOptions {
    let mut options = WriteOptions::default();
    options.disable_wal(true);
    options
}

impl Place {
    pub(super) fn open(dir: &Path) -> Result<Self, MapError> {
        // Left by a life that ended while a map was on its way here.
        let _ = std::fs::remove_dir_all(dir.with_extension("incoming"));
        let db = match open_db(dir) {
            Ok(db) => db,
            Err(error) => {
                tracing::error!(%error, dir = %dir.display(), "the page map doesn't open; it is rebuilt from the backend");
                begin_anew(dir)?
            }
        };
        let db = RwLock::new(Some(db));
        Ok(Self { dir: dir.to_owned(), db, suspect: AtomicBool::new(false) })
    }

    /// Whether RocksDB ever called its files damaged.
    pub(super) fn is_suspect(&self) -> bool {
        self.suspect.load(Ordering::Relaxed)
    }

    /// An empty database in place of this one; blocking.
    pub(super) fn replace(&self) -> Result<(), MapError> {
        tracing::error!(dir = %self.dir.display(), "the page map's files are damaged; all maps are rebuilt from the backend");
        let mut db = self.db.write().unwrap_or_else(PoisonError::into_inner);
        // Closed first: it holds the directory's lock.
        *db = None;
        *db = Some(begin_anew(&self.dir)?);
        self.suspect.store(false, Ordering::Relaxed);
        Ok(())
    }

    /// # Errors
    /// When RocksDB fails; [`MapError::Damaged`] when its files are to blame.
    pub(super) fn with<T>(
        &self,
        act: impl FnOnce(&DB) -> Result<T, rocksdb::Error>,
    ) -> Result<T, MapError> {
        let db = self.db.read().unwrap_or_else(PoisonError::into_inner);
        let Some(db) = db.as_ref() else {
            self.suspect.store(true, Ordering::Relaxed);
            return Err(MapError::Damaged("there is no database".to_owned()));
        };
        act(db).map_err(|error| self.failed(&error))
    }

    fn failed(&self, error: &rocksdb::Error) -> MapError {
        if is_damage(error) {
            self.suspect.store(true, Ordering::Relaxed);
            MapError::Damaged(error.to_string())
        } else {
            MapError::Store(error.to_string())
        }
    }

    /// Calls `visit` with every row of a kind of a vDisk, past the block cache; the first error ends it.
    pub(super) fn each(
        &self,
        kind: u8,
        vdisk: VdiskId,
        mut visit: impl FnMut(&[u8], &[u8]) -> Result<(), MapError>,
    ) -> Result<(), MapError> {
        let (start, end) = kind_range(kind, vdisk);
        let mut read = ReadOptions::default();
        read.fill_cache(false);
        read.set_readahead_size(AHEAD_BYTES);
        read.set_iterate_upper_bound(end);
        let mut visited = Ok(());
        self.with(|db| {
            let rows = db.iterator_opt(IteratorMode::From(&start, Direction::Forward), read);
            for row in rows {
                let (key, value) = row?;
                visited = visit(&key, &value);
                if visited.is_err() {
                    break;
                }
            }
            Ok(())
        })?;
        visited
    }

    /// As [`Self::each`], with the rows of several kinds, one kind after the other, of one moment: writes that come in
    /// between aren't seen.
    pub(super) fn each_at_once(
        &self,
        kinds: &[u8],
        vdisk: VdiskId,
        mut visit: impl FnMut(&[u8], &[u8]) -> Result<(), MapError>,
    ) -> Result<(), MapError> {
        let mut read = ReadOptions::default();
        read.fill_cache(false);
        read.set_readahead_size(AHEAD_BYTES);
        let mut visited = Ok(());
        self.with(|db| {
            // One iterator sees the database as it was when it was made.
            let mut rows = db.raw_iterator_opt(read);
            for kind in kinds {
                let (start, end) = kind_range(*kind, vdisk);
                rows.seek(&start);
                while let Some((key, value)) = rows.item().filter(|(key, _)| *key < &end[..]) {
                    visited = visit(key, value);
                    if visited.is_err() {
                        return Ok(());
                    }
                    rows.next();
                }
                rows.status()?;
            }
            Ok(())
        })?;
        visited
    }

    /// Where a file is put together that [`Self::ingest`] takes; blocking.
    pub(super) fn incoming(&self, vdisk: VdiskId) -> Result<PathBuf, MapError> {
        let dir = self.dir.with_extension("incoming");
        let made = std::fs::create_dir_all(&dir);
        made.map_err(|error| MapError::Store(format!("{}: {error}", dir.display())))?;
        Ok(dir.join(format!("{vdisk}.sst")))
    }

    /// Takes in all rows of a file at once, which was tried before ([`Self::trial`]).
    ///
    /// # Errors
    /// [`MapError::Incoming`] when that can't be done and the database is as good as before.
    pub(super) fn ingest(&self, file: &Path) -> Result<(), MapError> {
        let mut failed = None;
        self.with(|db| match ingest(db, file) {
            // A block that can't be believed isn't of the file, which was read through.
            Err(error) if error.kind() == ErrorKind::Corruption => Err(error),
            Err(error) => {
                failed = Some(error);
                // The file couldn't be linked or synced, or the database couldn't write what belongs to it: then it
                // writes nothing more, and says so when it is asked to.
                db.delete_opt(PROBE, &without_log())?;
                db.flush()
            }
            Ok(()) => Ok(()),
        })?;
        match failed {
            None => Ok(()),
            Some(error) if is_full(&error) => Err(MapError::Store(error.to_string())),
            Some(error) => Err(MapError::Incoming(error.to_string())),
        }
    }

    /// A database of its own for one file, so that it can be read through: what is wrong with it is damage of that one.
    ///
    /// # Errors
    /// When the file can't be taken in.
    pub(super) fn trial(dir: &Path, file: &Path) -> Result<Self, MapError> {
        let _ = std::fs::remove_dir_all(dir);
        let mut options = options();
        // The file must stay what it is.
        options.set_disable_auto_compactions(true);
        let db = DB::open(&options, dir);
        let db = db.map_err(|error| MapError::Store(error.to_string()))?;
        let (db, suspect) = (RwLock::new(Some(db)), AtomicBool::new(false));
        let trial = Self { dir: dir.to_owned(), db, suspect };
        trial.with(|db| ingest(db, file))?;
        Ok(trial)
    }

    /// Where the file of a [`Self::trial`] lies now.
    ///
    /// # Errors
    /// When it isn't there.
    pub(super) fn only_file(&self) -> Result<PathBuf, MapError> {
        let files = self.with(DB::live_files)?;
        match &files[..] {
            [file] => Ok(self.dir.join(file.name.trim_start_matches('/'))),
            _ => Err(MapError::Incoming(format!("it is in {} files", files.len()))),
        }
    }

    /// Every vDisk that has a state.
    pub(super) fn vdisks(&self) -> Result<Vec<VdiskId>, MapError> {
        let (start, _) = kind_range(b's', VdiskId(0));
        let mut read = ReadOptions::default();
        read.set_iterate_upper_bound(vec![b's' + 1]);
        let mut vdisks = Vec::new();
        self.with(|db| {
            for row in db.iterator_opt(IteratorMode::From(&start, Direction::Forward), read) {
                vdisks.extend(state::vdisk_of(&row?.0));
            }
            Ok(())
        })?;
        Ok(vdisks)
    }

    /// Every row of a kind of a vDisk, where there are few.
    pub(super) fn all(&self, kind: u8, vdisk: VdiskId) -> Result<Vec<Row>, MapError> {
        let mut rows = Vec::new();
        self.each(kind, vdisk, |key, value| {
            rows.push((key.into(), value.into()));
            Ok(())
        })?;
        Ok(rows)
    }
}
