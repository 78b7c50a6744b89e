//! Transactions in the log whose outcome somebody waits for.

use super::Ticket;
use model::Now;
use std::collections::BTreeMap;

/// Waiting transactions; more are told to come back (L8).
pub const PROPOSALS_MAX: usize = 4096;

pub struct Proposal {
    /// With the index it names the entry: another term's entry at that index isn't ours.
    pub term: u64,
    pub ticket: Ticket,
    pub deadline: Now,
}

#[derive(Default)]
pub struct Proposals {
    by_index: BTreeMap<u64, Proposal>,
}

impl Proposals {
    pub fn is_full(&self) -> bool {
        self.by_index.len() >= PROPOSALS_MAX
    }

    /// # Panics
    /// When somebody waits at that index: a leader appends behind its log, and losing leadership drains all.
    pub fn insert(&mut self, index: u64, proposal: Proposal) {
        assert!(self.by_index.insert(index, proposal).is_none(), "two proposals at index {index}");
    }

    pub fn remove(&mut self, index: u64) -> Option<Proposal> {
        self.by_index.remove(&index)
    }

    pub fn expire(&mut self, now: Now) -> Vec<Ticket> {
        let late = |proposal: &Proposal| proposal.deadline <= now;
        let tickets = self
            .by_index
            .values()
            .filter(|proposal| late(proposal))
            .map(|proposal| proposal.ticket)
            .collect();
        self.by_index.retain(|_, proposal| !late(proposal));
        tickets
    }

    pub fn drain(&mut self) -> Vec<Ticket> {
        std::mem::take(&mut self.by_index).into_values().map(|proposal| proposal.ticket).collect()
    }
}
