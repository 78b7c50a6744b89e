//! Election timeouts from our own seed (P27): raft draws them from a thread-local generator whenever it changes its state.
//!
//! After every input the value is set to ours. Ours changes exactly when raft's election clock was reset or its term or
//! role changed, and is a function of the seed and of how often that happened.

use super::ELECTION_TICKS;
use raft::{RawNode, StateRole, Storage};

pub struct ElectionTimeouts {
    state: u64,
    seen: (u64, StateRole),
    elapsed: usize,
    value: usize,
}

impl ElectionTimeouts {
    pub fn new(seed: u64, id: u64) -> Self {
        let mut timeouts = Self {
            state: seed ^ id.wrapping_mul(0x9e37_79b9_7f4a_7c15),
            seen: (0, StateRole::Follower),
            elapsed: 0,
            value: ELECTION_TICKS,
        };
        timeouts.draw();
        timeouts
    }

    /// SplitMix64: each draw is independent of how many raft made.
    fn draw(&mut self) {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        self.value = ELECTION_TICKS + model::usize_of(z % model::u64_of(ELECTION_TICKS));
    }

    /// After anything but a tick.
    pub fn hold<T: Storage>(&mut self, raw: &mut RawNode<T>) {
        let seen = (raw.raft.term, raw.raft.state);
        if seen != self.seen {
            self.seen = seen;
            self.draw();
        }
        self.elapsed = raw.raft.election_elapsed;
        raw.raft.set_randomized_election_timeout(self.value);
    }

    /// After a tick: a clock that went back means that the timeout was used up.
    pub fn ticked<T: Storage>(&mut self, raw: &mut RawNode<T>) {
        if raw.raft.election_elapsed <= self.elapsed {
            self.draw();
        }
        self.hold(raw);
    }
}
