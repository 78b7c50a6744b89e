//! A consistent copy of a store's files, and what a power cut leaves of it.
//!
//! RocksDB syncs its SST files and its manifest before it counts on them; what isn't synced is the end of the newest
//! write-ahead log, and the witness, which is synced lazily.
//!
//! Invariant: a sample is of one moment: the files' names and the manifest didn't change while it was taken.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use sim::files::{self, Files, Harm};
use sim::{Chance, Random};

/// Tries before a sample is given up: background work ends soon.
const TRIES: u32 = 1_000;

/// What becomes of the bytes that no sync covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tail {
    Cut(files::Tail),
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

    /// What the power cut leaves.
    pub fn image(&self, tail: Tail, random: &mut Random) -> Files {
        let mut image = Files::default();
        for (name, bytes) in &self.files {
            let mut bytes = bytes.clone();
            if let (true, Tail::Cut(tail)) = (is_log(name), tail) {
                // A log that is younger than the last sync has nothing synced in it.
                let synced = self.synced.get(name).copied().unwrap_or(0);
                files::cut(&mut bytes, usize::try_from(synced).unwrap(), tail, random);
            }
            image.0.insert(format!("db/{name}"), bytes);
        }
        let late = match tail {
            Tail::Cut(files::Tail::Lost) => true,
            Tail::Whole => false,
            Tail::Cut(_) => random.happens(Chance::percent(50)),
        };
        let witness = if late { &self.witness_before } else { &self.witness };
        image.0.insert("witness".to_owned(), witness.clone());
        image
    }
}

/// Harms one place of one file; each file is as likely as another. Says what kind of file it was, too.
pub fn harm(image: &mut Files, random: &mut Random) -> Option<(String, Harm)> {
    let harm = image.harm(random, |_| true)?;
    let name = harm.file.rsplit('/').next().unwrap_or_default();
    let kind = name.trim_matches(|c: char| c.is_ascii_digit() || c == '-').to_owned();
    Some((kind, harm))
}
