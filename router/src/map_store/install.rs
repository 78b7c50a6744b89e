//! A page map from elsewhere takes the place of the stored one: at once, and only as a whole.
//!
//! What comes is checked and put into a file beside the database; the table that is there stays until all of it has
//! come and agrees. Then the rows are exchanged, and the table is opened, and with that checked, like any other.
//!
//! Invariant: a crash at any moment leaves the old map, none, or the new one, each with the state that describes it.

use std::path::PathBuf;
use std::sync::LazyLock;

use model::{MapGeneration, VdiskId};
use rocksdb::{DBCompressionType, Options, SstFileWriter};
use router_core::map_stream::{Assembly, Part, StreamError};
use router_core::page::page_key;

use super::state::{epoch_key, state_key};
use super::{GENERATION, MapError, MapState, MapStore};

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
    writer: SstFileWriter<'static>,
    assembly: Assembly,
}

impl Drop for Install {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.file);
    }
}

impl MapStore {
    /// Who calls this is the only one who changes the vDisk's map.
    ///
    /// # Errors
    /// When the file can't be made.
    pub fn install(&self, vdisk: VdiskId) -> Result<Install, MapError> {
        let file = self.shared.place.incoming(vdisk)?;
        let writer = SstFileWriter::create(&OPTIONS);
        open(&writer, &file)?;
        let assembly = Assembly::new(vdisk);
        Ok(Install { store: self.clone(), vdisk, file, writer, assembly })
    }
}

/// For no longer than this the writer is borrowed.
fn open(writer: &SstFileWriter<'_>, file: &PathBuf) -> Result<(), MapError> {
    writer.open(file).map_err(|error| failed(&error))
}

/// The file isn't the database's: what goes wrong with it says nothing about that.
fn failed(error: &rocksdb::Error) -> MapError {
    MapError::Store(error.to_string())
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
        let state = self.assembly.finish().map_err(|error| self.wrong(&error))?.clone();
        let key = state_key(self.vdisk);
        self.writer.put(key, state.encode()).map_err(|error| failed(&error))?;
        self.writer.finish().map_err(|error| failed(&error))?;
        {
            let _changing = self.store.changing(self.vdisk);
            self.store.erase(self.vdisk)?;
            self.store.shared.place.ingest(&self.file)?;
        }
        self.store.open_table(self.vdisk)
    }
}
