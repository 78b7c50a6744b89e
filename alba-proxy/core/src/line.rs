//! The line before an OSD: small reads that go together.
//!
//! What a request to an OSD costs is mostly making, sending and answering it, whatever it asks for. So reads that come in the
//! same turn of the proxy's loop go in one, up to [`FULL`]. Nothing waits for an answer to what went before: holding
//! reads back until then (Nagle's rule) gave smaller batches, not larger ones, as an OSD that is waiting for a processor
//! collects them in its socket meanwhile.
//!
//! A call is *begun* when the first read comes, and takes what waits when it is *sent*: at the end of the turn.
//!
//! Invariant: while something waits, enough calls are begun to take it all.

use std::collections::VecDeque;

/// Reads that one call takes along.
pub const FULL: usize = 16;

#[derive(Debug)]
pub struct Line<T> {
    waiting: VecDeque<T>,
    /// Calls begun that have taken nothing yet.
    begun: usize,
}

impl<T> Default for Line<T> {
    fn default() -> Self {
        Self { waiting: VecDeque::new(), begun: 0 }
    }
}

/// Whether a call is to be begun now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Next {
    Begin,
    Nothing,
}

impl<T> Line<T> {
    /// A read comes.
    pub fn push(&mut self, read: T) -> Next {
        self.waiting.push_back(read);
        if self.waiting.len() <= self.begun * FULL {
            return Next::Nothing;
        }
        self.begun += 1;
        Next::Begin
    }

    /// A call that was begun is sent now: what it takes along, in order of arrival.
    pub fn take(&mut self) -> Vec<T> {
        self.begun = self.begun.checked_sub(1).expect("a call takes once");
        let count = self.waiting.len().min(FULL);
        self.waiting.drain(..count).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_of_one_turn_go_together_and_later_ones_wait_for_no_answer() {
        let mut line = Line::default();
        assert_eq!(line.push(1), Next::Begin);
        assert_eq!(line.push(2), Next::Nothing, "it goes along: the call isn't sent yet");
        assert_eq!(line.take(), [1, 2]);
        assert_eq!(line.push(3), Next::Begin);
        assert_eq!(line.take(), [3]);
    }

    proptest! {
        /// Whatever the order of arrivals and sends: all that came is taken once, in order, in calls of bounded size.
        #[test]
        fn nothing_waits_for_ever(pushes in proptest::collection::vec(0..40_usize, 0..20)) {
            let mut line = Line::default();
            let (mut came, mut taken, mut begun) = (0, Vec::new(), 0);
            for count in pushes {
                for _ in 0..count {
                    begun += usize::from(line.push(came) == Next::Begin);
                    came += 1;
                }
                // Some calls are sent later than the next reads come.
                if count % 3 > 0 && begun > 0 {
                    begun -= 1;
                    taken.extend(line.take());
                }
            }
            for _ in 0..begun {
                let some = line.take();
                prop_assert!(some.len() <= FULL);
                taken.extend(some);
            }
            prop_assert_eq!(taken, (0..came).collect::<Vec<_>>());
        }
    }
}
