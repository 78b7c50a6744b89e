//! Reads on their way: waiting for a round, in it, or for the rows to be new enough.
//!
//! A linearizable read may be answered from rows at least as new as what was committed when a majority still followed
//! this leader, asked *after* the read came in. One round serves all reads that wait when it starts.

use super::Ticket;
use model::Now;
use std::collections::BTreeMap;

/// Reads under way; more are told to come back (L8).
pub const READS_MAX: usize = 8192;

#[derive(Clone, Copy)]
struct Waiter {
    ticket: Ticket,
    deadline: Now,
    /// Waits for what this leader had committed: void when it stops leading before the round ends.
    linearizable: bool,
}

#[derive(Default)]
pub struct Reads {
    /// Came in since the round under way began.
    waiting: Vec<Waiter>,
    round: Option<(u64, Vec<Waiter>)>,
    rounds: u64,
    /// Applied index → who waits for it.
    by_index: BTreeMap<u64, Vec<Waiter>>,
    count: usize,
}

impl Reads {
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub fn is_full(&self) -> bool {
        self.count >= READS_MAX
    }

    pub fn ask(&mut self, ticket: Ticket, deadline: Now) {
        self.count += 1;
        self.waiting.push(Waiter { ticket, deadline, linearizable: true });
    }

    pub fn wait_for(&mut self, index: u64, ticket: Ticket, deadline: Now) {
        self.count += 1;
        let waiter = Waiter { ticket, deadline, linearizable: false };
        self.by_index.entry(index).or_default().push(waiter);
    }

    /// The context to ask a majority with, when there is something to ask and no round is under way.
    pub fn start_round(&mut self) -> Option<Vec<u8>> {
        if self.round.is_some() || self.waiting.is_empty() {
            return None;
        }
        self.rounds += 1;
        self.round = Some((self.rounds, std::mem::take(&mut self.waiting)));
        Some(self.rounds.to_le_bytes().to_vec())
    }

    /// A majority answered: rows at `index` are new enough for the round.
    pub fn confirmed(&mut self, context: &[u8], index: u64) {
        if let Some((_, waiters)) = self.round.take_if(|(round, _)| round.to_le_bytes() == context)
        {
            self.by_index.entry(index).or_default().extend(waiters);
        }
    }

    /// Who may read now.
    pub fn due(&mut self, applied: u64) -> Vec<Ticket> {
        let later = self.by_index.split_off(&(applied + 1));
        let due = std::mem::replace(&mut self.by_index, later);
        let tickets: Vec<Ticket> =
            due.into_values().flatten().map(|waiter| waiter.ticket).collect();
        self.count -= tickets.len();
        tickets
    }

    pub fn expire(&mut self, now: Now) -> Vec<Ticket> {
        self.remove(|waiter| waiter.deadline <= now)
    }

    /// Leadership is gone. Confirmed reads stay: they hold wherever the rows are.
    pub fn drain_leader(&mut self) -> Vec<Ticket> {
        let mut gone = std::mem::take(&mut self.waiting);
        gone.extend(self.round.take().into_iter().flat_map(|(_, waiters)| waiters));
        assert!(gone.iter().all(|waiter| waiter.linearizable), "only leaders ask a majority");
        self.count -= gone.len();
        gone.into_iter().map(|waiter| waiter.ticket).collect()
    }

    fn remove(&mut self, gone: impl Fn(&Waiter) -> bool) -> Vec<Ticket> {
        let mut tickets = Vec::new();
        let mut sift = |waiters: &mut Vec<Waiter>| {
            tickets
                .extend(waiters.iter().filter(|waiter| gone(waiter)).map(|waiter| waiter.ticket));
            waiters.retain(|waiter| !gone(waiter));
        };
        sift(&mut self.waiting);
        if let Some((_, waiters)) = &mut self.round {
            sift(waiters);
        }
        self.by_index.values_mut().for_each(&mut sift);
        self.by_index.retain(|_, waiters| !waiters.is_empty());
        self.count -= tickets.len();
        tickets
    }
}
