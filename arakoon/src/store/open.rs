//! Opening the database, and refusing one that lost what it promised (P27).

use super::meta::{self, Family, Hard, Truncated};
use super::witness::{self, Found, Witness};
use super::{Db, RocksStore, SnapshotPages, io};
use arakoon_core::StoreError;
use arakoon_core::entry;
use arakoon_core::log_index::{LogIndex, Position};
use bytes::Bytes;
use raft::eraftpb::{ConfState, HardState};
use rocksdb::{
    ColumnFamilyDescriptor, DBRecoveryMode, IteratorMode, Options, WriteBatch, WriteOptions,
};
use runtime::rocks_logs::{self, RocksLogError};
use std::path::{Path, PathBuf};
use std::sync::Arc;

const FAMILIES: [&str; 4] = ["log", "meta", "state_a", "state_b"];
const WRITE_BUFFER_BYTES: usize = 16 << 20;
const WAL_BYTES_MAX: u64 = 128 << 20;

/// Whose store it must be.
#[derive(Debug, Clone)]
pub struct OpenOptions {
    pub cluster: String,
    pub node: u64,
    pub voters: Vec<u64>,
}

/// Why a store can't be used. Only the operator can do something about any of these.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("{path}: {cause}")]
    Io { path: PathBuf, cause: std::io::Error },
    #[error("{path}: {cause}")]
    Store { path: PathBuf, cause: StoreError },
    #[error(
        "{path} lost writes that were acknowledged: it ends at synced write {found}, but {promised} was witnessed. \
         While the other nodes are well, remove this node's data directory and start it again: it catches up before \
         it votes"
    )]
    LostWrites { path: PathBuf, found: u64, promised: u64 },
    #[error(
        "{path} has no readable witness of what was synced, so lost writes can't be ruled out. While the other nodes \
         are well, remove this node's data directory and start it again: it catches up before it votes"
    )]
    NoWitness { path: PathBuf },
    #[error(
        "{0}. While the other nodes are well, remove this node's data directory and start it again: it catches up before \
         it votes"
    )]
    Log(#[from] RocksLogError),
    #[error("{path} belongs to node {node} of cluster `{cluster}`")]
    Foreign { path: PathBuf, cluster: String, node: u64 },
    #[error("{path} is of a cluster of nodes {stored:?}, the configuration says {configured:?}")]
    OtherNodes { path: PathBuf, stored: Vec<u64>, configured: Vec<u64> },
}

pub fn family_options() -> Options {
    let mut options = Options::default();
    options.set_write_buffer_size(WRITE_BUFFER_BYTES);
    options.set_compression_type(rocksdb::DBCompressionType::Lz4);
    options
}

fn open_db(path: &Path) -> Result<Db, rocksdb::Error> {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    // A torn end is no error, and a bad record in the middle ends recovery there: the witness tells them apart.
    options.set_wal_recovery_mode(DBRecoveryMode::PointInTime);
    options.set_max_total_wal_size(WAL_BYTES_MAX);
    options.set_keep_log_file_num(4);
    options.set_max_open_files(128);
    let families = FAMILIES.map(|name| ColumnFamilyDescriptor::new(name, family_options()));
    Db::open_cf_descriptors(&options, path, families)
}

impl RocksStore {
    /// Opens the store in `dir`, or makes an empty one there.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(dir: &Path, options: &OpenOptions) -> Result<Self, OpenError> {
        let path = || dir.to_owned();
        let disk = |cause| OpenError::Io { path: path(), cause };
        let store = |cause| OpenError::Store { path: path(), cause };
        std::fs::create_dir_all(dir).map_err(disk)?;
        let found = witness::read(dir).map_err(disk)?;
        let db_dir = dir.join("db");
        rocks_logs::check(&db_dir)?;
        let db = Arc::new(open_db(&db_dir).map_err(|error| store(io(error)))?);
        check_identity(dir, &db, options)?;
        let sequence = meta::get::<meta::Sequence>(&db, meta::SEQUENCE).map_err(store)?;
        let sequence = sequence.map_or(0, |record| record.number);
        match found {
            // Made and killed before its first synced write.
            Found::Missing if sequence == 0 => {}
            Found::Missing | Found::Unreadable => {
                return Err(OpenError::NoWitness { path: path() });
            }
            Found::Synced(promised) if promised > sequence => {
                return Err(OpenError::LostWrites { path: path(), found: sequence, promised });
            }
            Found::Synced(_) => {}
        }
        let witness = Witness::open(dir, found).map_err(disk)?;
        load(db, witness, sequence).map_err(store)
    }
}

/// Checks whose store this is; writes it down in a new one.
fn check_identity(dir: &Path, db: &Db, options: &OpenOptions) -> Result<(), OpenError> {
    let path = || dir.to_owned();
    let store = |cause| OpenError::Store { path: path(), cause };
    let mut configured = options.voters.clone();
    configured.sort_unstable();
    if let Some(identity) = meta::get::<meta::Identity>(db, meta::IDENTITY).map_err(store)? {
        if identity.cluster != options.cluster || identity.node != options.node {
            let meta::Identity { cluster, node, .. } = identity;
            return Err(OpenError::Foreign { path: path(), cluster, node });
        }
        let stored: Option<meta::Voters> = meta::get(db, meta::VOTERS).map_err(store)?;
        let stored = stored.map(|record| record.ids).unwrap_or_default();
        if stored != configured {
            return Err(OpenError::OtherNodes { path: path(), stored, configured });
        }
        return Ok(());
    }
    let family = db.cf_handle("meta").expect("all families are made when the store is opened");
    let identity =
        meta::Identity { version: meta::V1, cluster: options.cluster.clone(), node: options.node };
    let mut batch = WriteBatch::default();
    meta::put(&mut batch, &family, meta::IDENTITY, &identity);
    if configured.len() > 1 {
        meta::put(&mut batch, &family, meta::JOINING, &meta::Joining { version: meta::V1 });
    }
    meta::put(&mut batch, &family, meta::VOTERS, &meta::Voters::new(configured));
    let mut synced = WriteOptions::default();
    synced.set_sync(true);
    db.write_opt(batch, &synced).map_err(|error| store(io(error)))
}

/// Reads everything that is kept in memory, and the whole log along its chain.
fn load(db: Arc<Db>, witness: Witness, sequence: u64) -> Result<RocksStore, StoreError> {
    let active =
        meta::get::<meta::Active>(&db, meta::ACTIVE)?.map_or(Ok(Family::A), Family::try_from)?;
    let hard =
        meta::get::<Hard>(&db, meta::HARD)?.map_or_else(HardState::default, |hard| hard.state());
    let applied = meta::get::<meta::Applied>(&db, meta::APPLIED)?.map_or(0, |record| record.index);
    let truncated = meta::get::<Truncated>(&db, meta::TRUNCATED)?
        .unwrap_or_else(|| Truncated::new(Position::default(), entry::CHAIN_START));
    let voters = meta::get::<meta::Voters>(&db, meta::VOTERS)?.map(|record| record.ids);
    let conf = ConfState { voters: voters.unwrap_or_default(), ..ConfState::default() };
    let log = read_log(&db, &truncated)?;
    let last = log.index.last();
    if !(truncated.index <= applied && applied <= hard.commit && hard.commit <= last) {
        return Err(StoreError::corrupt(format!(
            "truncated {} ≤ applied {applied} ≤ committed {} ≤ last {last} doesn't hold",
            truncated.index, hard.commit
        )));
    }
    let mut store = RocksStore {
        db,
        witness,
        sequence,
        active,
        conf,
        hard,
        index: log.index,
        chain: log.chain,
        applied,
        log_bytes: log.bytes,
        pages: SnapshotPages::default(),
        staged: None,
    };
    // What a crash left of a snapshot that was being fetched, or of the rows before one.
    store.drop_inactive()?;
    Ok(store)
}

impl RocksStore {
    fn drop_inactive(&mut self) -> Result<(), StoreError> {
        let family = self.family(self.active.other().name());
        let empty = self.db.iterator_cf(&family, IteratorMode::Start).next().is_none();
        drop(family);
        if empty { Ok(()) } else { self.begin_staging() }
    }
}

struct Log {
    index: LogIndex,
    chain: u32,
    bytes: u64,
}

fn read_log(db: &Db, truncated: &Truncated) -> Result<Log, StoreError> {
    let corrupt = |what: String| StoreError::corrupt(what);
    let family = db.cf_handle("log").expect("all families are made when the store is opened");
    let mut log =
        Log { index: LogIndex::new(truncated.position()), chain: truncated.chain, bytes: 0 };
    for row in db.iterator_cf(&family, IteratorMode::Start) {
        let (key, value) = row.map_err(io)?;
        let key: [u8; 8] =
            key[..].try_into().map_err(|_| corrupt("a log key isn't an index".into()))?;
        let at = u64::from_be_bytes(key);
        if at != log.index.last() + 1 {
            return Err(corrupt(format!("log entry {} is missing", log.index.last() + 1)));
        }
        log.bytes += model::u64_of(value.len());
        let decoded = entry::decode(at, Bytes::from(value));
        let checked = decoded.and_then(|(entry, found)| {
            let chain = entry::verify(log.chain, &entry, found)?;
            Ok((entry.term, chain))
        });
        let (term, chain) = checked.map_err(|cause| corrupt(cause.to_string()))?;
        log.index.append(Position { index: at, term });
        log.chain = chain;
    }
    Ok(log)
}
