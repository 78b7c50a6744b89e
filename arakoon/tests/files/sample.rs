//! A consistent copy of a store's files, and what a power cut leaves of it.
//!
//! RocksDB syncs its SST files and its manifest before it counts on them; what isn't synced is the end of the newest
//! write-ahead log, and the witness, which is synced lazily.
//!
//! Invariant: a sample is of one moment: the files' names and the manifest didn't change while it was taken.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use fastrand::Rng;

/// Tries before a sample is given up: background work ends soon.
const TRIES: u32 = 1_000;

/// What becomes of the bytes that no sync covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tail {
    Lost,
    Kept,
    /// Cut anywhere.
    Torn,
    /// Each sector by itself is there, or zeroes.
    Sectors,
    /// No power cut: the files as they are, the witness too.
    Whole,
}

pub struct Sample {
    files: BTreeMap<String, Vec<u8>>,
    synced: BTreeMap<String, u64>,
    witness: Vec<u8>,
    witness_before: Vec<u8>,
}

fn is_log(name: &str) -> bool {
    name.ends_with(".log")
}

/// Lengths of the write-ahead logs, by name.
pub fn write_ahead_logs(dir: &Path) -> BTreeMap<String, u64> {
    let files = fs::read_dir(dir.join("db")).unwrap().map(|file| file.unwrap());
    files
        .map(|file| (file.file_name().into_string().unwrap(), file.path()))
        .filter(|(name, _)| is_log(name))
        .filter_map(|(name, path)| Some((name, fs::metadata(path).ok()?.len())))
        .collect()
}

/// What must not change while files are copied: their names, and the manifest's length.
fn stamp(dir: &Path) -> Vec<(String, u64)> {
    let mut all: Vec<(String, u64)> = fs::read_dir(dir)
        .unwrap()
        .filter_map(|file| {
            let file = file.unwrap();
            let name = file.file_name().into_string().unwrap();
            let counts = !name.starts_with("LOG") && name != "LOCK";
            let len = file.metadata().ok()?.len();
            counts.then_some((name, len))
        })
        .collect();
    all.sort();
    all
}

impl Sample {
    pub fn take(dir: &Path, synced: &BTreeMap<String, u64>, witness_before: &[u8]) -> Self {
        let db = dir.join("db");
        for _ in 0..TRIES {
            let before = stamp(&db);
            let files: BTreeMap<String, Vec<u8>> = before
                .iter()
                .filter_map(|(name, _)| Some((name.clone(), fs::read(db.join(name)).ok()?)))
                .collect();
            if files.len() == before.len() && stamp(&db) == before {
                let witness = fs::read(dir.join("witness")).unwrap();
                let witness_before = witness_before.to_vec();
                return Self { files, synced: synced.clone(), witness, witness_before };
            }
            std::thread::yield_now();
        }
        panic!("the files never stood still");
    }

    /// What the power cut leaves, in a directory of its own.
    pub fn image(&self, tail: Tail, random: &mut Rng) -> tempfile::TempDir {
        let image = tempfile::tempdir().unwrap();
        let db = image.path().join("db");
        fs::create_dir(&db).unwrap();
        for (name, bytes) in &self.files {
            let mut bytes = bytes.clone();
            if is_log(name) {
                // A log that is younger than the last sync has nothing synced in it.
                let synced = self.synced.get(name).copied().unwrap_or(0);
                cut(&mut bytes, usize::try_from(synced).unwrap(), tail, random);
            }
            fs::write(db.join(name), bytes).unwrap();
        }
        let late = match tail {
            Tail::Lost => true,
            Tail::Whole => false,
            Tail::Kept | Tail::Torn | Tail::Sectors => random.bool(),
        };
        let witness = if late { &self.witness_before } else { &self.witness };
        fs::write(image.path().join("witness"), witness).unwrap();
        image
    }
}

fn cut(bytes: &mut Vec<u8>, synced: usize, tail: Tail, random: &mut Rng) {
    let synced = synced.min(bytes.len());
    match tail {
        Tail::Lost => bytes.truncate(synced),
        Tail::Kept | Tail::Whole => {}
        Tail::Torn => bytes.truncate(random.usize(synced..=bytes.len())),
        Tail::Sectors => {
            let mut at = synced;
            while at < bytes.len() {
                let end = (at + 1).next_multiple_of(512).min(bytes.len());
                if random.bool() {
                    bytes[at..end].fill(0);
                }
                at = end;
            }
        }
    }
}

/// Flips one bit of one file; each file is as likely as another. Says what kind of file it was.
pub fn flip(dir: &Path, random: &mut Rng) -> String {
    let mut paths: Vec<PathBuf> =
        fs::read_dir(dir.join("db")).unwrap().map(|file| file.unwrap().path()).collect();
    paths.push(dir.join("witness"));
    paths.retain(|path| 0 < fs::metadata(path).unwrap().len());
    paths.sort();
    let path = &paths[random.usize(..paths.len())];
    let mut bytes = fs::read(path).unwrap();
    let at = random.usize(..bytes.len());
    bytes[at] ^= 1 << random.u8(..8);
    fs::write(path, bytes).unwrap();
    let name = path.file_name().unwrap().to_str().unwrap();
    name.trim_matches(|c: char| c.is_ascii_digit() || c == '-').to_owned()
}
