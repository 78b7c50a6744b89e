//! The session against a model router, under a seeded schedule of everything that can go wrong between them.
//!
//! The router of the model loses, when it crashes, everything behind a random point after its last sync; connections
//! are cut with requests and answers under way; answers overtake each other; calls fail for passing reasons. What the
//! user sees is checked against the laws: acknowledged is kept while the edge lives (L1), flushed is kept when edge and
//! router die together (L2), nothing is applied twice or out of order (P3), nothing is served before replay (P6).
//!
//! Same seed, same digest. A failure names its seed; `HOLDFAST_SEED=n` runs it alone.

#![expect(clippy::unwrap_used, reason = "a test says by panicking what went wrong")]

#[path = "simulation/router.rs"]
mod router;
#[path = "simulation/world.rs"]
mod world;

use world::World;

const SEEDS: u64 = 1000;

#[test]
fn the_laws_hold_under_every_schedule() {
    let soak = std::env::var_os("HOLDFAST_SOAK").is_some();
    let mut seen = world::Seen::default();
    let mut ran = 0;
    sim::seeds::check(if soak { 20 * SEEDS } else { SEEDS }, |seed| {
        let mut world = World::new(seed);
        let digest = world.run();
        seen.add(world.seen());
        ran += 1;
        digest
    });
    eprintln!("{ran} runs: {seen:?}");
    if SEEDS <= ran {
        // A simulation that doesn't reach what it is for proves nothing.
        assert!(seen.crashes > 300 && seen.cuts > 300 && seen.replayed > 3000, "{seen:?}");
        assert!(
            seen.lost_unflushed > 1500 && seen.reads > 15_000 && seen.refused > 300,
            "{seen:?}"
        );
    }
}

#[test]
fn different_seeds_are_different_lives() {
    assert_ne!(World::new(1).run(), World::new(2).run());
}
