//! Every decoder against strangers: kept bytes, changed in small ways by the thousand.
//!
//! Good bytes of every format, and inputs that once found something, lie in `tests/tests/fuzz/corpus/` and are tried
//! for ever after. CI's share is counted in inputs, never in seconds.
//!
//! `HOLDFAST_FUZZ=1000000` sets the inputs per target, `HOLDFAST_FUZZ_SEED=7` other mutations; `HOLDFAST_SOAK=1` makes
//! them two million.
//!
//! Invariant: an input that fails is printed, and equal seeds try equal inputs.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod fuzz {
    pub mod asd;
    pub mod config;
    pub mod dtl;
    pub mod entries;
    pub mod mutate;
    pub mod nbd;
    pub mod router;
    pub mod samples;
    pub mod sealed;
}

use std::path::PathBuf;

use fastrand::Rng;
use fuzz::entries::{TARGETS, Target};
use fuzz::mutate::mutate;
use fuzz::samples::{is_frozen, samples};

const INPUTS: u64 = 4_000;
const INPUTS_SOAK: u64 = 2_000_000;
/// These cost much more per input.
const SLOW: [(&str, u64); 6] = [
    ("config", 4),
    ("tls_files", 16),
    ("key_file", 2),
    ("sealed_stream", 8),
    ("log_segment", 4),
    ("asd_segment", 4),
];

fn corpus(target: &str) -> PathBuf {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    root.join("tests/fuzz/corpus").join(target)
}

/// Kept inputs by name, so that the order is the same everywhere.
fn kept(target: &str) -> Vec<Vec<u8>> {
    let Ok(entries) = std::fs::read_dir(corpus(target)) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|path| std::fs::read(path).unwrap()).collect()
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|error| panic!("{variable}={text}: {error}")))
}

fn inputs(target: &str) -> u64 {
    let usual = if holdfast_tests::soak() { INPUTS_SOAK } else { INPUTS };
    let all = number("HOLDFAST_FUZZ").unwrap_or(usual);
    let slow = SLOW.iter().find(|(name, _)| *name == target).map_or(1, |(_, by)| *by);
    all / slow
}

/// Prints the input that was being tried, if this is dropped by a panic.
struct Shown<'a> {
    target: &'a str,
    input: &'a [u8],
}

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let hex: String = self.input.iter().map(|byte| format!("{byte:02x}")).collect();
            eprintln!("target {}, input {hex}", self.target);
        }
    }
}

fn attack(target: &Target) -> u64 {
    let mut bases = kept(target.name);
    bases.extend(samples(target.name));
    assert!(!bases.is_empty(), "{} has nothing to begin with", target.name);
    let mut random = Rng::with_seed(number("HOLDFAST_FUZZ_SEED").unwrap_or(0x5eed));
    let try_one = |input: &[u8]| {
        let _shown = Shown { target: target.name, input };
        (target.run)(input);
    };
    bases.iter().for_each(|base| try_one(base));
    let count = inputs(target.name);
    for _ in 0..count {
        let base = &bases[random.usize(..bases.len())];
        let other = &bases[random.usize(..bases.len())];
        try_one(&mutate(base, other, &mut random));
    }
    count
}

#[test]
fn no_decoder_panics_or_takes_two_forms_of_one_value() {
    let mut total = 0;
    for target in TARGETS {
        let count = attack(target);
        eprintln!("{:<16} {count} inputs", target.name);
        total += count;
    }
    assert!(TARGETS.len() as u64 <= total);
}

/// What the encoders write today is what was kept: a changed format shows. `HOLDFAST_KEEP_CORPUS=1` writes it.
#[test]
fn the_kept_corpus_is_what_the_encoders_write() {
    for target in TARGETS.iter().filter(|target| is_frozen(target.name)) {
        let dir = corpus(target.name);
        for (number, sample) in samples(target.name).iter().enumerate() {
            let path = dir.join(format!("sample-{number:02}"));
            if std::env::var_os("HOLDFAST_KEEP_CORPUS").is_some() {
                std::fs::create_dir_all(&dir).unwrap();
                std::fs::write(&path, sample).unwrap();
            }
            let found = std::fs::read(&path).unwrap_or_default();
            assert!(found == *sample, "{} isn't what the encoders write", path.display());
        }
    }
}

#[test]
fn damage_to_configurations_is_named_or_harmless() {
    let count = if holdfast_tests::soak() { 6_000 } else { 500 };
    assert!(count / 2 < fuzz::config::damage_configurations(count));
}

/// A message that nobody attacks is forgotten easily: each is in the list, or part of one that is.
#[test]
fn every_message_is_attacked() {
    let wire = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../crates/wire/src");
    let entries = include_str!("fuzz/entries.rs");
    let files = ["arakoon", "asd", "dtl", "facts", "proxy", "router"];
    let read = |file| std::fs::read_to_string(wire.join(file).with_extension("rs")).unwrap();
    let text: String = files.into_iter().map(read).collect();
    let lines = || text.lines().map(str::trim);
    let structs = lines().filter_map(|line| line.strip_prefix("pub struct "));
    let names: Vec<&str> = structs.filter_map(|rest| rest.split([' ', '(', '<']).next()).collect();
    assert!(100 < names.len(), "the messages aren't found");
    for name in names {
        let is_word = |text: &str| text.split(|c: char| !c.is_alphanumeric()).any(|w| w == name);
        let mut fields = lines().filter(|line| line.starts_with("pub ") && line.contains(": "));
        let attacked = entries.contains(&format!("::{name}>")) || fields.any(is_word);
        assert!(attacked, "add {name} to MESSAGES or the records in fuzz/entries.rs");
    }
}
