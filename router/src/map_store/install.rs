//! A page map from elsewhere takes the place of the stored one: at once, and only as a whole.
//!
//! What comes is checked and put into a file beside the database; the table that is there stays until all of it has
//! come and agrees. Then the rows are exchanged, and the table is opened, and with that checked, like any other.
//!
//! A file that RocksDB takes in is its own from then on: a bad block in it would be damage of the whole database, and cost
//! the router every map. So the file is read through in a database of its own first, which is thrown away with it. What
//! goes wrong up to there says nothing about the stored maps.
//!
//! Invariant: a crash at any moment leaves the old map, none, or the new one, each with the state that describes it.

use std::path::PathBuf;
use std::sync::LazyLock;

use model::{MapGeneration, VdiskId};
use rocksdb::{DBCompressionType, Options, SstFileWriter};
use router_core::map_stream::{Assembly, Part, StreamError};
use router_core::page::page_key;

use super::place::{Place, is_full};
use super::state::{epoch_key, state_key};
use super::{GENERATION, MapError, MapState, MapStore, read_table};

const _: () = assert!(matches!(GENERATION, MapGeneration(0)));

static OPTIONS: LazyLock<Options> = LazyLock::new(|| {
    let mut options = Options::default();
    options.set_compression_type(DBCompressionType::Lz4);
    options
});

/// See the module's page. Everything here blocks.
pub struct Install {
    store: MapStore,
    vdisk: VdiskId,
    file: PathBuf,
    /// Where the file is tried.
    trial: PathBuf,
    writer: SstFileWriter<'static>,
    assembly: Assembly,
}

impl Drop for Install {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.file);
        let _ = std::fs::remove_dir_all(&self.trial);
    }
}

impl MapStore {
    /// Who calls this is the only one who changes the vDisk's map.
    ///
    /// # Errors
    /// When the file can't be made.
    pub fn install(&self, vdisk: VdiskId) -> Result<Install, MapError> {
        let file = self.shared.place.incoming(vdisk)?;
        let trial = file.with_extension("trial");
        let writer = SstFileWriter::create(&OPTIONS);
        open(&writer, &file)?;
        let assembly = Assembly::new(vdisk);
        Ok(Install { store: self.clone(), vdisk, file, trial, writer, assembly })
    }
}

/// For no longer than this the writer is borrowed.
fn open(writer: &SstFileWriter<'_>, file: &PathBuf) -> Result<(), MapError> {
    writer.open(file).map_err(|error| failed(&error))
}

/// The file isn't the database's: what goes wrong with it says nothing about that.
fn failed(error: &rocksdb::Error) -> MapError {
    if is_full(error) {
        MapError::Store(error.to_string())
    } else {
        MapError::Incoming(error.to_string())
    }
}

impl Install {
    /// # Errors
    /// [`MapError::Mismatch`] when what came can't be believed.
    pub fn take(&mut self, part: &Part) -> Result<(), MapError> {
        self.assembly.take(part).map_err(|error| self.wrong(&error))?;
        // Ascending by kind and number, as a file of rows must be: `e` before `p` before `s`.
        for (first, epoch) in &part.epochs {
            let key = epoch_key(self.vdisk, *first);
            self.writer.put(key, epoch.0.to_le_bytes()).map_err(|error| failed(&error))?;
        }
        for (number, stored) in &part.pages {
            let key = page_key(self.vdisk, *number, GENERATION);
            self.writer.put(key, stored).map_err(|error| failed(&error))?;
        }
        Ok(())
    }

    fn wrong(&self, error: &StreamError) -> MapError {
        MapError::Mismatch { vdisk: self.vdisk, problem: error.to_string() }
    }

    /// All of it is there: it replaces the stored map, and is opened; readers wait until it is complete.
    ///
    /// # Errors
    /// As [`Self::take`], or when the store fails.
    pub fn finish(mut self) -> Result<MapState, MapError> {
        self.close()?;
        self.exchange()
    }

    /// The file is whole.
    pub(super) fn close(&mut self) -> Result<(), MapError> {
        let state = self.assembly.finish().map_err(|error| self.wrong(&error))?;
        let key = state_key(self.vdisk);
        self.writer.put(key, state.encode()).map_err(|error| failed(&error))?;
        self.writer.finish().map_err(|error| failed(&error))
    }

    pub(super) fn exchange(self) -> Result<MapState, MapError> {
        let state = self.assembly.finish().map_err(|error| self.wrong(&error))?;
        let tried = self.tried(state)?;
        {
            let _changing = self.store.changing(self.vdisk);
            self.store.erase(self.vdisk)?;
            self.store.shared.place.ingest(&tried)?;
        }
        let opened = self.store.open_table(self.vdisk)?;
        if opened == *state {
            return Ok(opened);
        }
        Err(MapError::Incoming("it wasn't there when it was opened".to_owned()))
    }

    /// The file again, every row of which was read back.
    fn tried(&self, state: &MapState) -> Result<PathBuf, MapError> {
        let trial = Place::trial(&self.trial, &self.file).map_err(unfit)?;
        let (found, _) = read_table(&trial, self.vdisk).map_err(unfit)?;
        if found != *state {
            return Err(MapError::Incoming("it isn't what was put into its file".to_owned()));
        }
        trial.only_file().map_err(unfit)
    }
}

fn unfit(error: MapError) -> MapError {
    match error {
        MapError::Store(_) => error,
        MapError::BadPage { .. }
        | MapError::Damaged(_)
        | MapError::Mismatch { .. }
        | MapError::Incoming(_)
        | MapError::Closed(_)
        | MapError::Behind(_) => MapError::Incoming(error.to_string()),
    }
}
