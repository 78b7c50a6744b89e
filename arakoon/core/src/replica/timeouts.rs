//! Election timeouts from our own seed (P27): raft draws them from a thread-local generator whenever it changes its state.
//!
//! After every input the value is set to ours. Ours changes exactly when raft's election clock was reset or its term or
//! role changed, and is a function of the seed and of how often that happened.
//!
//! Each voter has ticks of its own, so that two never campaign at the same tick and split the vote; and all of them
//! lie within a second and a half, so that a killed leader is replaced within two.

use super::ELECTION_TICKS;
use raft::{RawNode, StateRole, Storage};

/// Ticks over which the voters' timeouts are spread, at least one for each.
const SPREAD: usize = 6;

pub struct ElectionTimeouts {
    state: u64,
    /// Place among the voters, and how many there are.
    place: usize,
    voters: usize,
    seen: (u64, StateRole),
    elapsed: usize,
    value: usize,
}

impl ElectionTimeouts {
    /// `others`: the voters without this node.
    pub fn new(seed: u64, id: u64, others: &[u64]) -> Self {
        let mut timeouts = Self {
            state: seed ^ id.wrapping_mul(0x9e37_79b9_7f4a_7c15),
            place: others.iter().filter(|other| **other < id).count(),
            voters: others.len() + 1,
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
        let turns = (SPREAD / self.voters).max(1);
        let turn = model::usize_of(z % model::u64_of(turns));
        self.value = ELECTION_TICKS + (self.place + turn * self.voters).min(ELECTION_TICKS - 1);
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn voters_never_draw_the_same_and_none_draws_much() {
        for voters in [1u64, 3, 5] {
            let ids: Vec<u64> = (1..=voters).map(|id| id * 7).collect();
            let mut all: Vec<BTreeSet<usize>> = Vec::new();
            for id in &ids {
                let others: Vec<u64> = ids.iter().copied().filter(|other| other != id).collect();
                let mut timeouts = ElectionTimeouts::new(9, *id, &others);
                let drawn = (0..100).map(|_| {
                    timeouts.draw();
                    timeouts.value
                });
                let drawn: BTreeSet<usize> = drawn.collect();
                assert!(drawn.iter().all(|ticks| (ELECTION_TICKS..=15).contains(ticks)));
                assert!(all.iter().all(|seen| seen.is_disjoint(&drawn)), "{all:?} {drawn:?}");
                all.push(drawn);
            }
        }
    }
}
