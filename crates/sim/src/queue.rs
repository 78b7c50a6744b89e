//! Virtual time, and what will happen when.
//!
//! Time stands still while something happens and then jumps to the next event, so a simulated hour costs what its
//! events cost. Events of one moment happen in the order they were scheduled.
//!
//! Invariant: time never goes back, and the order of events is a function of the calls made.

use std::collections::BTreeMap;
use std::time::Duration;

/// Names a scheduled event, to cancel it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket {
    at: Duration,
    order: u64,
}

#[derive(Debug, Clone)]
pub struct Queue<E> {
    now: Duration,
    scheduled: u64,
    events: BTreeMap<Ticket, E>,
}

impl<E> Default for Queue<E> {
    fn default() -> Self {
        Self { now: Duration::ZERO, scheduled: 0, events: BTreeMap::new() }
    }
}

impl<E> Queue<E> {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Time since the world began.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.now
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.events.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// When the next event happens.
    #[must_use]
    pub fn next_at(&self) -> Option<Duration> {
        self.events.first_key_value().map(|(ticket, _)| ticket.at)
    }

    pub fn after(&mut self, delay: Duration, event: E) -> Ticket {
        self.at(self.now + delay, event)
    }

    /// Schedules for a moment; what has passed already means now.
    pub fn at(&mut self, moment: Duration, event: E) -> Ticket {
        let ticket = Ticket { at: moment.max(self.now), order: self.scheduled };
        self.scheduled += 1;
        let previous = self.events.insert(ticket, event);
        assert!(previous.is_none(), "tickets are unique");
        ticket
    }

    /// The event, if it had not happened yet.
    pub fn cancel(&mut self, ticket: Ticket) -> Option<E> {
        self.events.remove(&ticket)
    }

    /// Jumps to the next event.
    pub fn pop(&mut self) -> Option<E> {
        let (ticket, event) = self.events.pop_first()?;
        assert!(self.now <= ticket.at, "time never goes back");
        self.now = ticket.at;
        Some(event)
    }

    /// Forgets events for which `keep` says no.
    pub fn retain(&mut self, mut keep: impl FnMut(&E) -> bool) {
        self.events.retain(|_, event| keep(event));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn events_of_one_moment_happen_in_the_order_they_were_scheduled() {
        let mut queue = Queue::new();
        for event in 0..10 {
            queue.after(Duration::from_secs(1), event);
        }
        let order: Vec<i32> = std::iter::from_fn(|| queue.pop()).collect();
        assert_eq!(order, (0..10).collect::<Vec<_>>());
    }

    #[test]
    fn a_cancelled_event_does_not_happen() {
        let mut queue = Queue::new();
        let first = queue.after(Duration::from_secs(1), "first");
        queue.after(Duration::from_secs(2), "second");
        assert_eq!(queue.cancel(first), Some("first"));
        assert_eq!(queue.cancel(first), None);
        assert_eq!(queue.pop(), Some("second"));
        assert_eq!(queue.now(), Duration::from_secs(2));
    }

    #[test]
    fn what_is_scheduled_for_the_past_happens_now() {
        let mut queue = Queue::new();
        queue.after(Duration::from_secs(5), 1);
        queue.pop();
        queue.at(Duration::from_secs(1), 2);
        assert_eq!(queue.pop(), Some(2));
        assert_eq!(queue.now(), Duration::from_secs(5));
    }

    proptest! {
        #[test]
        fn events_come_in_the_order_of_their_moments(delays in prop::collection::vec(0_u64..50, 0..60)) {
            let mut queue = Queue::new();
            for (number, delay) in delays.iter().enumerate() {
                queue.after(Duration::from_millis(*delay), (*delay, number));
            }
            let mut expected: Vec<_> = delays.iter().copied().zip(0..).collect();
            expected.sort_unstable();
            let mut order = Vec::new();
            while let Some(event) = queue.pop() {
                prop_assert_eq!(queue.now(), Duration::from_millis(event.0));
                order.push(event);
            }
            prop_assert_eq!(order, expected);
        }
    }
}
