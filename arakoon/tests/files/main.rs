//! A node's files against power cuts and rot: Raft's log, hard state and rows in RocksDB, and the witness beside it.
//!
//! RocksDB decides by itself when it writes which file, so its writes can't be replayed one by one. Instead a real run
//! is sampled: at hundreds of moments its files are copied, and each copy loses what no sync had covered, in several
//! ways. Every state that the store ever was in is known, so what a copy opens as must be one of those since the last
//! synced write.
//!
//! Invariant: a store opens as a state that it was in, not older than its last synced write, or it refuses (P27).
#![expect(
    clippy::unwrap_used,
    reason = "a test that is wrong about its own files fails, as it should"
)]

mod run;
mod sample;

use fastrand::Rng;
use run::{Run, judge};
use sample::Tail;
use sim::Random;
use sim::files::{Files, TAILS};
use sim::seeds::Shown;

/// Opens a copy in a directory of its own.
fn judge_copy(files: &Files, run: &Run) -> Result<u64, String> {
    let dir = tempfile::tempdir().unwrap();
    files.write(dir.path()).unwrap();
    judge(dir.path(), run)
}

fn soak() -> bool {
    std::env::var("HOLDFAST_SOAK").is_ok_and(|value| value == "1")
}

#[test]
fn a_power_cut_at_any_sampled_moment_keeps_every_synced_write() {
    let samples = if soak() { 2_000 } else { 200 };
    let mut random = Rng::with_seed(11);
    let mut run = Run::new(random.fork());
    let (mut opened, mut older) = (0, 0);
    let mut luck = Random::new(13);
    for number in 0..samples {
        for _ in 0..random.u32(1..12) {
            run.step();
        }
        let sample = run.sample();
        let image = sample.image(Tail::Cut(TAILS[number % TAILS.len()]), &mut luck);
        let state = judge_copy(&image, &run).expect("a power cut is never damage");
        opened += 1;
        older += u64::from(state + 1 < run.states_since_sync());
    }
    assert_eq!(opened, samples);
    // Unless some cuts really took unsynced writes away, nothing was tried.
    assert!(samples as u64 / 20 < older, "{older} of {samples} copies had lost something");
    assert!(run.flushed_files() > 0, "no SST was ever written");
}

#[test]
fn damage_to_any_file_of_a_node_is_never_served() {
    let count = if soak() { 4_000 } else { 250 };
    let mut random = Random::new(12);
    let mut run = Run::new(Rng::with_seed(12));
    while run.flushed_files() < 2 {
        run.step();
    }
    for _ in 0..100 {
        run.step();
    }
    run.sync();
    let sample = run.sample();
    let (mut flips, mut refused, mut unharmed) = (0, 0, 0);
    let mut kinds = std::collections::BTreeSet::new();
    for number in 0..count {
        let mut image = sample.image(Tail::Whole, &mut random);
        let Some((kind, harm)) = sample::harm(&mut image, &mut random) else { continue };
        let _shown = Shown::new(format!("damage {number}, {harm}"));
        flips += u64::from(harm.damage.is_flip());
        // Right, or an error: `judge` itself fails on anything else.
        match judge_copy(&image, &run) {
            Ok(_) => unharmed += 1,
            Err(_) => refused += 1,
        }
        kinds.insert(kind);
    }
    eprintln!(
        "{count} damages, {flips} flips in {kinds:?}: {refused} refused, {unharmed} unharmed"
    );
    assert!(0 < refused && 5 <= kinds.len() && count / 2 < flips, "{refused}, {flips}, {kinds:?}");
}
