//! First come, first served locks on cluster ranges: a read-modify-write holds its clusters while it reads, and later
//! requests that overlap wait, in order of arrival (P3: overlapping requests of one attachment apply in order).
//!
//! Invariant: a waiter overlaps a holder or an earlier waiter; so nobody waits without a cause, and nobody is overtaken.

use model::ClusterRange;

/// Whoever asks for a lock; unique among those inside.
pub type Ticket = u64;

#[derive(Debug, Clone, Copy)]
struct Entry {
    ticket: Ticket,
    range: ClusterRange,
    held: bool,
}

/// All locks of one vDisk, in order of arrival. Few at a time: only ragged requests and those behind them enter.
#[derive(Debug, Default)]
pub struct RangeLock {
    entries: Vec<Entry>,
}

const fn overlap(a: ClusterRange, b: ClusterRange) -> bool {
    a.start.0 < b.end.0 && b.start.0 < a.end.0
}

impl RangeLock {
    #[must_use]
    pub const fn is_idle(&self) -> bool {
        self.entries.is_empty()
    }

    /// Would `range` have to wait?
    #[must_use]
    pub fn is_free(&self, range: ClusterRange) -> bool {
        !self.entries.iter().any(|entry| overlap(entry.range, range))
    }

    /// True = held now; false = queued, a later [`Self::release`] names the ticket.
    pub fn acquire(&mut self, ticket: Ticket, range: ClusterRange) -> bool {
        assert!(
            self.entries.iter().all(|e| e.ticket != ticket),
            "ticket {ticket} is inside already"
        );
        let held = self.is_free(range);
        self.entries.push(Entry { ticket, range, held });
        held
    }

    /// Gives up a lock (held or waited for) and returns who holds theirs because of it, in order of arrival.
    pub fn release(&mut self, ticket: Ticket) -> Vec<Ticket> {
        self.entries.retain(|entry| entry.ticket != ticket);
        let mut granted = Vec::new();
        for at in 0..self.entries.len() {
            let entry = self.entries[at];
            let blocked =
                self.entries[..at].iter().any(|earlier| overlap(earlier.range, entry.range));
            if !entry.held && !blocked {
                self.entries[at].held = true;
                granted.push(entry.ticket);
            }
        }
        granted
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::Cluster;
    use proptest::prelude::*;

    fn range(start: u64, count: u64) -> ClusterRange {
        ClusterRange::new(Cluster(start), count).unwrap()
    }

    #[test]
    fn waiters_are_served_in_order_of_arrival() {
        let mut lock = RangeLock::default();
        assert!(lock.acquire(1, range(0, 10)));
        assert!(!lock.acquire(2, range(5, 10)));
        assert!(!lock.acquire(3, range(14, 2)), "overlaps the waiter 2, must not overtake it");
        assert!(lock.acquire(4, range(20, 1)));
        assert_eq!(lock.release(1), vec![2]);
        assert_eq!(lock.release(2), vec![3]);
        assert!(lock.release(3).is_empty());
        assert!(lock.release(4).is_empty());
        assert!(lock.is_idle());
    }

    proptest! {
        #[test]
        fn holders_never_overlap_and_all_get_their_turn(ranges in proptest::collection::vec((0u64..20, 1u64..6), 1..30)) {
            let mut lock = RangeLock::default();
            let mut held = Vec::new();
            for (ticket, (start, count)) in ranges.iter().enumerate() {
                if lock.acquire(ticket as u64, range(*start, *count)) {
                    held.push(ticket);
                }
            }
            let mut served = 0;
            while let Some(ticket) = held.pop() {
                for other in &held {
                    let (a, b) = (ranges[ticket], ranges[*other]);
                    prop_assert!(!overlap(range(a.0, a.1), range(b.0, b.1)));
                }
                served += 1;
                held.extend(lock.release(ticket as u64).iter().map(|t| usize::try_from(*t).unwrap()));
            }
            prop_assert_eq!(served, ranges.len());
        }
    }
}
