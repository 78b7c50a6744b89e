//! The power cutter for the write log: a run is recorded, and the power fails after *every* step of it.
//!
//! The simulation next door meets a power cut now and then; here none is left out. At each moment what recovery would
//! find is judged for writes since the last sync that are all lost, all kept, taken out of turn, torn, or gone sector by
//! sector; then the log lives on from one of them.
//!
//! Invariant: whatever was flushed is found, what is found is a prefix of what was accepted, and no cut looks like
//! damage or like a gap (L2, P8, L7).

mod damage;
mod disk;
mod life;

use disk::CUTS;
use life::{Life, Tally};

/// Steps between two crashes.
const STEPS: u64 = 120;
const LIVES: u64 = 4;
const SEEDS: u64 = 12;

fn lives(seed: u64) -> Tally {
    let mut life = Life::new(seed);
    for number in 0..LIVES {
        for _ in 0..STEPS {
            life.step();
        }
        if number + 1 < LIVES {
            life = life.crash();
        }
    }
    life.tally.laps = life.laps();
    life.tally
}

#[test]
fn no_power_cut_after_any_step_loses_what_was_flushed() {
    let soak = std::env::var_os("HOLDFAST_SOAK").is_some();
    let mut all = Tally::default();
    sim::seeds::check(if soak { 100 * SEEDS } else { SEEDS }, |seed| {
        let tally = lives(seed);
        all.moments += tally.moments;
        all.images += tally.images;
        all.laps += tally.laps;
        all.moved += tally.moved;
        all.spared += tally.spared;
        all.dropped += tally.dropped;
        tally.images ^ (tally.spared << 20) ^ (tally.dropped << 40)
    });
    eprintln!("{all:?}");
    assert_eq!(all.images, all.moments * CUTS.len() as u64);
    // A run that never reuses a segment, moves a record or loses an unflushed one proves little.
    assert!(0 < all.moved && 0 < all.spared && 0 < all.dropped && SEEDS * 4 < all.laps, "{all:?}");
}
