//! Which bytes of which fragments answer a read, and what instead when some are lost, damaged or slow.
//!
//! A read wants *columns*: ranges of data fragments. Each is fetched directly where that can be; else it is rebuilt
//! from the same range of any k others: the erasure code works byte position by byte position, so a degraded
//! read costs k ranges, never whole fragments. Ranges are clipped to what a fragment really stores; a source
//! whose clipped range is empty is known to be zeroes and costs nothing.
//!
//! ```text
//!  direct ──good──▶ Direct            rebuild ──k good──▶ Rebuild(sources)
//!    │ bad, hole, down, or too slow ──────▶ │ fewer than k can still answer ──▶ Lost
//! ```
//!
//! OSDs thought to be down are asked last, but they are asked before anything is called lost.
//!
//! Invariant: `Lost` only when every fragment that could help was asked or is a hole; never more than one fetch of
//! the same range of the same fragment.

use crate::manifest::{Manifest, Place};
use model::OsdId;
use std::ops::Range;

/// How likely a source answers: lower is asked first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rank {
    Good,
    Doubtful,
    Down,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Source {
    place: Place,
    len: u32,
    rank: Rank,
}

/// Bytes to fetch: for column `column`, from fragment `fragment`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetch {
    pub column: usize,
    pub fragment: u8,
    pub osd: OsdId,
    pub range: Range<u32>,
}

/// What came of a fetch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Verified bytes.
    Good,
    /// Damaged, missing, or no answer.
    Bad,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    No,
    Pending,
    Good,
    Bad,
}

#[derive(Debug, Clone)]
struct Column {
    fragment: u8,
    range: Range<u32>,
    asked: Vec<Asked>,
    rebuild: bool,
    /// Sources asked for beyond k, for hedging.
    extra: u8,
}

/// How far a column is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ColumnState {
    Pending,
    /// The fragment's own bytes are there.
    Direct,
    /// These fragments' bytes rebuild it: exactly k, those without bytes in the range included.
    Rebuild(Vec<u8>),
    Lost,
}

#[derive(Debug, Clone)]
pub struct ReadPlan {
    k: usize,
    sources: Vec<Source>,
    columns: Vec<Column>,
}

impl ReadPlan {
    /// A plan for ranges of fragments. `rank` says what is known of an OSD.
    #[must_use]
    pub fn new(
        manifest: &Manifest,
        columns: &[(u8, Range<u32>)],
        rank: impl Fn(OsdId) -> Rank,
    ) -> Self {
        let sources: Vec<Source> = manifest
            .fragments
            .iter()
            .map(|fragment| Source {
                place: fragment.place,
                len: fragment.len,
                rank: match fragment.place {
                    Place::Stored(osd) => rank(osd),
                    Place::Empty | Place::Hole => Rank::Good,
                },
            })
            .collect();
        let columns = columns
            .iter()
            .map(|(fragment, range)| Column {
                fragment: *fragment,
                range: range.clone(),
                asked: vec![Asked::No; sources.len()],
                rebuild: false,
                extra: 0,
            })
            .collect();
        Self { k: usize::from(manifest.policy.k()), sources, columns }
    }

    /// The fetches to begin with.
    pub fn start(&mut self) -> Vec<Fetch> {
        let mut fetches = Vec::with_capacity(self.columns.len());
        for column in 0..self.columns.len() {
            self.advance(column, &mut fetches);
        }
        fetches
    }

    /// An answer came (verified), or didn't. What is to be fetched because of it.
    pub fn answered(&mut self, column: usize, fragment: u8, answer: Answer) -> Vec<Fetch> {
        let mut fetches = Vec::new();
        let state = self
            .columns
            .get_mut(column)
            .and_then(|column| column.asked.get_mut(usize::from(fragment)));
        if let Some(state) = state {
            *state = match answer {
                Answer::Good => Asked::Good,
                Answer::Bad => Asked::Bad,
            };
            self.advance(column, &mut fetches);
        }
        fetches
    }

    /// The answers take too long: ask round those that are pending.
    pub fn hedge(&mut self) -> Vec<Fetch> {
        let mut fetches = Vec::new();
        for index in 0..self.columns.len() {
            if self.state(index) != ColumnState::Pending {
                continue;
            }
            let column = &mut self.columns[index];
            if column.rebuild {
                column.extra = column.extra.saturating_add(1);
            }
            column.rebuild = true;
            self.advance(index, &mut fetches);
        }
        fetches
    }

    fn advance(&mut self, index: usize, fetches: &mut Vec<Fetch>) {
        let column = &mut self.columns[index];
        let direct = usize::from(column.fragment);
        if column.asked[direct] == Asked::Good {
            return;
        }
        let own = self.sources[direct];
        if column.asked[direct] == Asked::No {
            match own.place {
                Place::Stored(osd) if own.rank < Rank::Down => {
                    column.asked[direct] = Asked::Pending;
                    fetches.push(column.fetch(index, direct, osd, own.len));
                }
                Place::Stored(_) | Place::Hole | Place::Empty => column.rebuild = true,
            }
        }
        if column.asked[direct] == Asked::Bad {
            column.rebuild = true;
        }
        if !column.rebuild {
            return;
        }
        let wanted = self.k + usize::from(column.extra);
        for rank in [Rank::Good, Rank::Doubtful, Rank::Down] {
            for at in 0..self.sources.len() {
                if column.helping(&self.sources) >= wanted {
                    return;
                }
                let source = self.sources[at];
                let Place::Stored(osd) = source.place else { continue };
                if source.rank != rank
                    || at == direct
                    || column.asked[at] != Asked::No
                    || column.is_known_zero(source)
                {
                    continue;
                }
                column.asked[at] = Asked::Pending;
                fetches.push(column.fetch(index, at, osd, source.len));
            }
        }
        // Too few without it: ask the down one itself, its host may be back.
        if let Place::Stored(osd) = own.place
            && column.asked[direct] == Asked::No
        {
            column.asked[direct] = Asked::Pending;
            fetches.push(column.fetch(index, direct, osd, own.len));
        }
    }

    #[must_use]
    pub fn state(&self, column: usize) -> ColumnState {
        let column = &self.columns[column];
        let direct = column.asked[usize::from(column.fragment)];
        if direct == Asked::Good {
            return ColumnState::Direct;
        }
        let sources = column.good_sources(&self.sources, self.k);
        if sources.len() == self.k && column.rebuild {
            return ColumnState::Rebuild(sources);
        }
        let pending = column.asked.contains(&Asked::Pending);
        if pending { ColumnState::Pending } else { ColumnState::Lost }
    }

    /// True when no column waits for anything.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        (0..self.columns.len()).all(|column| self.state(column) != ColumnState::Pending)
    }
}

impl Column {
    fn fetch(&self, column: usize, fragment: usize, osd: OsdId, len: u32) -> Fetch {
        let range = self.range.start.min(len)..self.range.end.min(len);
        let fragment = u8::try_from(fragment).expect("at most 32 fragments");
        Fetch { column, fragment, osd, range }
    }

    /// A source that stores nothing in the range: zeroes, as the code sees it.
    fn is_known_zero(&self, source: Source) -> bool {
        source.place == Place::Empty || source.len <= self.range.start
    }

    /// Sources that have answered, will perhaps answer, or need no asking.
    fn helping(&self, sources: &[Source]) -> usize {
        (0..sources.len())
            .filter(|at| *at != usize::from(self.fragment))
            .filter(|at| {
                self.is_known_zero(sources[*at])
                    || matches!(self.asked[*at], Asked::Good | Asked::Pending)
            })
            .count()
    }

    fn good_sources(&self, sources: &[Source], k: usize) -> Vec<u8> {
        (0_u8..)
            .zip(sources)
            .filter(|(at, _)| *at != self.fragment)
            .filter(|(at, source)| {
                self.is_known_zero(**source) || self.asked[usize::from(*at)] == Asked::Good
            })
            .map(|(at, _)| at)
            .take(k)
            .collect()
    }
}

#[cfg(test)]
mod tests;
