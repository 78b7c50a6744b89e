//! Where a log begins and ends and which term each entry has, in memory: raft asks for terms all the time.
//!
//! Terms come in runs, so a map of run starts is small and exact. Invariant: runs start at or behind `truncated`, which
//! itself is the last entry that the log doesn't hold any more.

use std::collections::BTreeMap;

/// An entry's place in the log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    pub index: u64,
    pub term: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogIndex {
    truncated: Position,
    last: u64,
    /// First index of a run → its term.
    runs: BTreeMap<u64, u64>,
}

impl LogIndex {
    /// An empty log behind `truncated`.
    #[must_use]
    pub const fn new(truncated: Position) -> Self {
        Self { truncated, last: truncated.index, runs: BTreeMap::new() }
    }

    #[must_use]
    pub const fn truncated(&self) -> Position {
        self.truncated
    }

    #[must_use]
    pub const fn first(&self) -> u64 {
        self.truncated.index + 1
    }

    #[must_use]
    pub const fn last(&self) -> u64 {
        self.last
    }

    /// Entries in the log.
    #[must_use]
    pub const fn len(&self) -> u64 {
        self.last - self.truncated.index
    }

    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Term of the entry, for `truncated.index <= index <= last`.
    #[must_use]
    pub fn term(&self, index: u64) -> Option<u64> {
        if index == self.truncated.index {
            return Some(self.truncated.term);
        }
        if index < self.truncated.index || index > self.last {
            return None;
        }
        self.runs.range(..=index).next_back().map(|(_, term)| *term)
    }

    /// Adds the entry at `at`, dropping whatever was there and behind it.
    ///
    /// # Panics
    /// When it would leave a hole, which raft never asks for.
    pub fn append(&mut self, at: Position) {
        assert!(
            at.index > self.truncated.index && at.index <= self.last + 1,
            "entry {} doesn't fit a log of {}..={}",
            at.index,
            self.first(),
            self.last
        );
        self.runs.split_off(&at.index);
        self.last = at.index;
        if self.runs.last_key_value().is_none_or(|(_, term)| *term != at.term) {
            self.runs.insert(at.index, at.term);
        }
    }

    /// Forgets everything up to and with `through`.
    ///
    /// # Panics
    /// When the log doesn't hold it.
    pub fn compact(&mut self, through: u64) {
        let term = self.term(through).expect("compaction stays within the log");
        let later = self.runs.split_off(&(through + 1));
        self.runs = later;
        self.truncated = Position { index: through, term };
        if through < self.last {
            self.runs.entry(through + 1).or_insert(term);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Against a plain list of terms.
        #[test]
        fn terms_are_those_of_a_plain_list(steps in proptest::collection::vec((0u64..12, 0u64..3, any::<bool>()), 0..60)) {
            let mut index = LogIndex::new(Position::default());
            let mut list: Vec<u64> = vec![0];
            let mut start = 0u64;
            let mut term = 1;
            for (back, grow, compact) in steps {
                if compact {
                    let through = start.max(index.last().saturating_sub(back));
                    index.compact(through);
                    start = through;
                } else {
                    term += grow;
                    let at = (start + 1).max((index.last() + 1).saturating_sub(back));
                    index.append(Position { index: at, term });
                    list.truncate(model::usize_of(at));
                    list.push(term);
                }
                prop_assert_eq!(index.last(), model::u64_of(list.len() - 1));
                prop_assert_eq!(index.first(), start + 1);
                for i in 0..=index.last() + 1 {
                    let want = (i >= start).then(|| list.get(model::usize_of(i)).copied()).flatten();
                    prop_assert_eq!(index.term(i), want);
                }
            }
        }
    }
}
