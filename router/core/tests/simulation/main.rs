//! The cores of the router joined in one seeded world: two vDisks on one write log, a backend with delays, failures and
//! errors that took effect all the same, process kills, power cuts that tear and reorder what wasn't synced, and rot.
//!
//! Invariant: whatever happens, a recovered vDisk is a prefix of its accepted order that holds everything flushed (L2), its
//! page map is what the TLogs alone say (L6), and its applied sequences are those of the prefix (P3) — or it says that
//! something is missing (L7), and only after rot.
#![expect(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::fn_params_excessive_bools,
    clippy::too_many_arguments,
    reason = "a test that is wrong about its own small numbers fails, as it should"
)]

mod backend;
mod router;

use router::{Crash, Router};
use sim::{Chance, Random, Trace};

/// Steps in one life.
const STEPS: u64 = 400;

/// One life of the world.
fn live(seed: u64, rot: Chance) -> u64 {
    let mut random = Random::new(seed);
    let mut trace = Trace::default();
    let mut router = Router::new(random.fork());
    for step in 0..STEPS {
        let now = std::time::Duration::from_millis(step);
        match random.below(100) {
            0..=41 => router.write(&mut random),
            42..=49 => router.unmap(&mut random),
            50..=63 => router.append(),
            64..=69 => router.begin_sync(&mut random),
            70..=75 => router.end_sync(),
            76..=79 => router.flush(&mut random),
            80..=82 => router.seal(&mut random),
            83..=91 => router.backend_step(&mut random),
            92 => router.copy_forward(&mut random),
            93 => router.again(&mut random),
            94..=95 => router.check(),
            96 => router.detach(&mut random),
            _ => {
                let crash =
                    if random.happens(Chance::percent(50)) { Crash::Kill } else { Crash::Power };
                let rotten = random.happens(rot);
                trace.note(now, format_args!("{crash:?}, rot {rotten}, {:?}", router.positions()));
                if !router.crash(crash, rotten, &mut random) {
                    trace.note(now, format_args!("a gap, said so"));
                    return trace.digest();
                }
            }
        }
        trace.note(now, format_args!("{:?}", router.positions()));
    }
    router.drain(&mut random);
    trace.note(std::time::Duration::from_secs(1), format_args!("{:?}", router.positions()));
    trace.digest()
}

#[test]
fn recovered_is_a_prefix_that_holds_all_flushed() {
    sim::seeds::check(120, |seed| live(seed, Chance::NEVER));
}

#[test]
fn rot_is_said_and_never_served() {
    sim::seeds::check(60, |seed| live(seed + 1_000_000, Chance::percent(60)));
}
