//! What a session has done for its users, in figures.

use super::{OpKind, OpState, Session};
use std::time::Duration;

/// Figures of a session, since it began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    pub in_flight: usize,
    pub log_bytes: u64,
    pub log_entries: usize,
    pub reconnects: u64,
    pub replayed: u64,
    pub errors: u64,
    pub damaged: u64,
    pub reads: Usage,
    pub writes: Usage,
    /// Trims and writes of zeroes.
    pub unmaps: Usage,
    pub flushes: Usage,
}

/// Requests of one kind that were answered, with or without an error.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    pub count: u64,
    /// That they were about.
    pub bytes: u64,
    /// From submit to answer, all of them together.
    pub waited: Duration,
    pub longest: Duration,
}

impl Stats {
    pub(super) const NONE: Self = Self {
        in_flight: 0,
        log_bytes: 0,
        log_entries: 0,
        reconnects: 0,
        replayed: 0,
        errors: 0,
        damaged: 0,
        reads: Usage::NONE,
        writes: Usage::NONE,
        unmaps: Usage::NONE,
        flushes: Usage::NONE,
    };
}

impl Usage {
    const NONE: Self = Self { count: 0, bytes: 0, waited: Duration::ZERO, longest: Duration::ZERO };

    fn add(&mut self, bytes: u64, waited: Duration) {
        self.count += 1;
        self.bytes = self.bytes.saturating_add(bytes);
        self.waited = self.waited.saturating_add(waited);
        self.longest = self.longest.max(waited);
    }
}

impl<T> Session<T> {
    /// A request is answered now.
    pub(super) fn count(&mut self, op: &OpState<T>) {
        let usage = match op.kind {
            OpKind::Read => &mut self.stats.reads,
            OpKind::Write => &mut self.stats.writes,
            OpKind::Unmap => &mut self.stats.unmaps,
            OpKind::Flush => &mut self.stats.flushes,
            OpKind::Status => return,
        };
        usage.add(op.bytes, self.now.since(op.since));
    }

    #[must_use]
    pub fn stats(&self) -> Stats {
        Stats {
            in_flight: self.ops.len(),
            log_bytes: self.log.bytes(),
            log_entries: self.log.len(),
            ..self.stats
        }
    }
}
