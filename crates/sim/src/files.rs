//! The files of a directory as bytes, what a power cut leaves of them, and harm done to them.
//!
//! For formats whose writer can't be stepped (RocksDB decides by itself when it writes what): a real run is sampled, and
//! each copy is attacked by itself. Formats of our own are attacked the same way, so that all files meet the same harm.
//!
//! Invariant: equal bytes and an equal random stream give equal harm.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;
use std::path::Path;

use crate::random::{Chance, Random};

/// Smallest unit that a disk writes whole.
const SECTOR: usize = 512;
/// What is zeroed or swapped as a whole: a sector, and a page of the operating system.
const BLOCKS: [usize; 2] = [SECTOR, 4096];
/// Tries before a directory is given up: background work ends soon.
const TRIES: u32 = 1_000;

/// Contents by path below the directory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Files(pub BTreeMap<String, Vec<u8>>);

impl Files {
    /// Everything in `dir` and below, as of one moment: names and lengths didn't change while it was read, but for the
    /// files that don't `matter`.
    ///
    /// # Errors
    /// When something can't be read, or the directory never stands still.
    pub fn sample(dir: &Path, matters: impl Fn(&str) -> bool) -> io::Result<Self> {
        for _ in 0..TRIES {
            let before = lengths(dir)?;
            let read = Self::read(dir, &before);
            let after = lengths(dir)?;
            let stood_still = before
                .iter()
                .filter(|(name, _)| matters(name))
                .eq(after.iter().filter(|(name, _)| matters(name)));
            if stood_still && let Ok(files) = read {
                return Ok(files);
            }
            std::thread::yield_now();
        }
        Err(io::Error::other("the files never stood still"))
    }

    fn read(dir: &Path, names: &BTreeMap<String, u64>) -> io::Result<Self> {
        let mut files = BTreeMap::new();
        for name in names.keys() {
            files.insert(name.clone(), fs::read(dir.join(name))?);
        }
        Ok(Self(files))
    }

    /// # Errors
    /// When something can't be written.
    pub fn write(&self, dir: &Path) -> io::Result<()> {
        for (name, bytes) in &self.0 {
            let path = dir.join(name);
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent)?;
            }
            fs::write(path, bytes)?;
        }
        Ok(())
    }

    /// Does harm to one of the files that `may` be harmed, each as likely as another; `None` when none has any bytes.
    pub fn harm(&mut self, random: &mut Random, may: impl Fn(&str) -> bool) -> Option<Harm> {
        let names: Vec<String> = self
            .0
            .iter()
            .filter(|(name, bytes)| !bytes.is_empty() && may(name))
            .map(|(name, _)| name.clone())
            .collect();
        let file = random.pick(&names)?.clone();
        let bytes = self.0.get_mut(&file)?;
        Some(Harm { file, damage: damage(bytes, random)? })
    }
}

/// Paths of the files in `dir` and below, with their lengths.
///
/// # Errors
/// When it can't be read.
pub fn lengths(dir: &Path) -> io::Result<BTreeMap<String, u64>> {
    let mut all = BTreeMap::new();
    let mut left = vec![String::new()];
    while let Some(below) = left.pop() {
        for entry in fs::read_dir(dir.join(&below))? {
            let entry = entry?;
            let name = format!("{below}{}", entry.file_name().to_string_lossy());
            match entry.metadata() {
                Ok(meta) if meta.is_dir() => left.push(format!("{name}/")),
                Ok(meta) => {
                    all.insert(name, meta.len());
                }
                // Removed in between.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(all)
}

/// What a power cut does to bytes that no sync covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tail {
    Lost,
    Kept,
    /// Cut anywhere.
    Torn,
    /// Each sector by itself is there, or zeroes.
    Sectors,
}

/// How every whole RocksDB table ends (`kBlockBasedTableMagicNumber`).
const TABLE_MAGIC: u64 = 0x88e2_41b7_85f4_cff7;

/// Whether a RocksDB table was written to its end. It is synced before the manifest names it, which may be before the
/// database itself counts on it; a power cut may take bytes only of one that isn't whole.
#[must_use]
pub fn is_whole_table(bytes: &[u8]) -> bool {
    bytes.ends_with(&TABLE_MAGIC.to_le_bytes())
}

pub const TAILS: [Tail; 4] = [Tail::Lost, Tail::Kept, Tail::Torn, Tail::Sectors];

/// What the power cut leaves of a file of which the first `synced` bytes were synced.
pub fn cut(bytes: &mut Vec<u8>, synced: usize, tail: Tail, random: &mut Random) {
    let synced = synced.min(bytes.len());
    match tail {
        Tail::Lost => bytes.truncate(synced),
        Tail::Kept => {}
        Tail::Torn => bytes.truncate(synced + random.index(bytes.len() - synced + 1)),
        Tail::Sectors => {
            let mut at = synced;
            while at < bytes.len() {
                let end = (at + 1).next_multiple_of(SECTOR).min(bytes.len());
                if random.happens(Chance::percent(50)) {
                    bytes[at..end].fill(0);
                }
                at = end;
            }
        }
    }
}

/// What was done to the bytes of one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Damage {
    Flip { at: usize, bit: u8 },
    Zeroed { at: usize, len: usize },
    Cut { at: usize },
    Swapped { one: usize, other: usize, len: usize },
}

impl Damage {
    #[must_use]
    pub const fn is_flip(&self) -> bool {
        matches!(self, Self::Flip { .. })
    }

    #[must_use]
    pub const fn is_cut(&self) -> bool {
        matches!(self, Self::Cut { .. })
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Harm {
    pub file: String,
    pub damage: Damage,
}

impl fmt::Display for Harm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {:?}", self.file, self.damage)
    }
}

/// Harms `bytes`: mostly one flipped bit; else a block of zeroes, a cut, or two blocks in each other's place. Most of it
/// meets bytes that aren't zero: files that are written ahead hold little else.
///
/// `None`: there is nothing to harm, or the harm would have changed nothing.
pub fn damage(bytes: &mut Vec<u8>, random: &mut Random) -> Option<Damage> {
    if bytes.is_empty() {
        return None;
    }
    let at = place(bytes, random);
    let damage = match random.below(20) {
        0..=14 => {
            let bit = u8::try_from(random.below(8)).ok()?;
            bytes[at] ^= 1 << bit;
            Damage::Flip { at, bit }
        }
        15 | 16 => {
            let block = *random.pick(&BLOCKS)?;
            let start = at / block * block;
            let end = (start + block).min(bytes.len());
            if bytes[start..end].iter().all(|byte| *byte == 0) {
                return None;
            }
            bytes[start..end].fill(0);
            Damage::Zeroed { at: start, len: end - start }
        }
        17 => {
            bytes.truncate(at);
            Damage::Cut { at }
        }
        _ => return swap(bytes, at, random),
    };
    Some(damage)
}

fn swap(bytes: &mut [u8], at: usize, random: &mut Random) -> Option<Damage> {
    let len = *random.pick(&BLOCKS)?;
    let whole = bytes.len() / len;
    if whole < 2 {
        return None;
    }
    let one = (at / len).min(whole - 1) * len;
    let other = place(bytes, random) / len * len;
    let (low, high) = (one.min(other), one.max(other));
    if bytes.len() < high + len || bytes[low..low + len] == bytes[high..high + len] {
        return None;
    }
    let (left, right) = bytes.split_at_mut(high);
    left[low..low + len].swap_with_slice(&mut right[..len]);
    Some(Damage::Swapped { one: low, other: high, len })
}

fn place(bytes: &[u8], random: &mut Random) -> usize {
    let at = random.index(bytes.len());
    if random.happens(Chance::percent(10)) {
        return at;
    }
    // The first sector from there on, round the end, that holds something.
    let sectors = bytes.len().div_ceil(SECTOR);
    for step in 0..sectors {
        let start = (at / SECTOR + step) % sectors * SECTOR;
        let sector = &bytes[start..(start + SECTOR).min(bytes.len())];
        if sector.iter().any(|byte| *byte != 0) {
            return start + random.index(sector.len());
        }
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_harm_changes_something_and_each_kind_is_done() {
        let mut random = Random::new(5);
        let mut whole: Vec<u8> = (0..20_000_u32).map(|at| (at % 251) as u8).collect();
        whole.resize(100_000, 0);
        let (mut kinds, mut in_data) = ([0; 4], 0);
        for _ in 0..2_000 {
            let mut bytes = whole.clone();
            let Some(done) = damage(&mut bytes, &mut random) else { continue };
            assert_ne!(bytes, whole, "{done:?}");
            let (kind, at) = match done {
                Damage::Flip { at, .. } => (0, at),
                Damage::Zeroed { at, .. } => (1, at),
                Damage::Cut { at } => (2, at),
                Damage::Swapped { one, .. } => (3, one),
            };
            kinds[kind] += 1;
            in_data += u32::from(at < 20_480);
        }
        assert!(kinds.iter().all(|count| 20 < *count), "{kinds:?}");
        assert!(1_500 < in_data, "{in_data}");
    }

    #[test]
    fn a_cut_keeps_what_was_synced() {
        let mut random = Random::new(6);
        for _ in 0..100 {
            for tail in TAILS {
                let mut bytes = vec![7; 3_000];
                cut(&mut bytes, 1_111, tail, &mut random);
                assert!(1_111 <= bytes.len() && bytes[..1_111].iter().all(|byte| *byte == 7));
            }
        }
    }

    #[test]
    fn a_directory_survives_its_copy() {
        let (one, other) = (std::env::temp_dir(), std::process::id());
        let (one, other) =
            (one.join(format!("files-{other}-a")), one.join(format!("files-{other}-b")));
        let files = Files([("a".into(), vec![1]), ("b/c".into(), vec![2; 9])].into());
        files.write(&one).unwrap();
        let seen = Files::sample(&one, |_| true).unwrap();
        seen.write(&other).unwrap();
        let again = Files::sample(&other, |_| true).unwrap();
        fs::remove_dir_all(&one).unwrap();
        fs::remove_dir_all(&other).unwrap();
        assert_eq!(again, files);
    }
}
