//! The pure cores together, in a simulated world: a user's requests go through the edge's session and the router's log,
//! overlay, units and recovery to a backend, while connections are cut, processes killed and power fails.
//!
//! The oracle is the history of [`holdfast_tests::history`], the same that judges the real cluster: every 512 bytes a
//! register, flushed is kept, order is respected, nothing acknowledged is lost while the user lives.
//!
//! `HOLDFAST_SEED=17` runs one seed and prints its trace on failure; `HOLDFAST_SEEDS=100000` runs many.

mod simulation {
    pub mod backend;
    pub mod router;
    pub mod world;
}

use sim::FaultCounts;
use simulation::world::Life;

const SEEDS: u64 = 150;

#[test]
fn edge_router_and_backend_keep_their_promises_whatever_fails() {
    let seeds = if holdfast_tests::soak() { 200 * SEEDS } else { SEEDS };
    let mut faults = FaultCounts::default();
    let mut ran = 0;
    sim::seeds::check(seeds, |seed| {
        let mut life = Life::new(seed);
        let digest = life.run();
        faults.add(&life.faults());
        ran += 1;
        digest
    });
    eprintln!("{ran} lives: {faults}");
    if SEEDS <= ran {
        // A simulation that never meets a fault proves nothing.
        for kind in [
            "connection cut",
            "router killed",
            "router power cut",
            "power cut of everything",
            "backend cut off",
            "loss",
            "duplication",
            "reordering",
            "put refused: fenced",
            "put refused: wrong head",
            "log full",
            "record copied forward",
            "write answered from the applied set",
            "slow disk",
            "rot reported as a gap",
        ] {
            assert!(0 < faults.of(kind), "in {ran} lives there was no {kind}");
        }
    }
}
