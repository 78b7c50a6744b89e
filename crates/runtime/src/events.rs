//! What an operator should know of a process, in the order in which it happened: the newest are kept in memory, and
//! `holdfast events` reads them over all processes. The log has more; it lies on one host, and is for whoever looks for
//! a fault.
//!
//! Invariant: numbers only grow, and a reader that comes back with the last number it saw misses nothing unknowingly:
//! what was dropped before it came is counted.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use model::{Incarnation, VdiskId};
use wire::common::{Event, EventList, EventsAsk, Severity};

use crate::clock::unix_ms;

/// Events that are kept.
const KEPT_MAX: usize = 1024;
/// In one answer.
const ANSWER_MAX: usize = 256;
/// What was said already and is said again this much later is news.
const AGAIN_MS: u64 = 60 * 60 * 1000;
/// Bytes of one text.
const TEXT_MAX: usize = 600;

#[derive(Debug, Default)]
struct Ring {
    events: VecDeque<Event>,
    /// Number of the newest.
    newest: u64,
}

impl Ring {
    fn add(&mut self, at_unix_ms: u64, severity: Severity, about: About, text: &str) {
        let About { kind, vdisk } = about;
        let text = &text[..text.floor_char_boundary(TEXT_MAX)];
        // Said again and again by a loop that tries again and again: once an hour is enough.
        let last = self.events.iter().rev().find(|event| event.vdisk == vdisk);
        let said = |last: &Event| {
            last.kind == kind && last.text == text && at_unix_ms < last.at_unix_ms + AGAIN_MS
        };
        if last.is_some_and(said) {
            return;
        }
        self.newest += 1;
        let (seq, kind, text) = (self.newest, kind.to_owned(), text.to_owned());
        self.events.push_back(Event { seq, at_unix_ms, severity, kind, vdisk, text });
        if KEPT_MAX < self.events.len() {
            self.events.pop_front();
        }
    }

    fn list(&self, ask: &EventsAsk, incarnation: Incarnation) -> EventList {
        let oldest = self.events.front().map_or(self.newest + 1, |event| event.seq);
        let after = ask.after.min(self.newest);
        let max = model::usize_of(u64::from(ask.events_max)).clamp(1, ANSWER_MAX);
        let newer = || self.events.iter().filter(|event| after < event.seq);
        EventList {
            incarnation,
            lost: (oldest - 1).saturating_sub(after),
            more: max < newer().count(),
            events: newer().take(max).cloned().collect(),
        }
    }
}

/// What an event is about.
#[derive(Debug, Clone, Copy)]
struct About {
    /// One word, for scripts: `claimed`, `gap`.
    kind: &'static str,
    vdisk: Option<VdiskId>,
}

/// See the module's page.
#[derive(Debug, Default)]
pub struct Events {
    ring: Mutex<Ring>,
}

impl Events {
    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, severity: Severity, about: About, text: &str) {
        self.ring().add(unix_ms(), severity, about, text);
    }

    /// About no vDisk in particular.
    pub fn note(&self, severity: Severity, kind: &'static str, text: &str) {
        self.add(severity, About { kind, vdisk: None }, text);
    }

    /// About a vDisk.
    pub fn of(&self, severity: Severity, kind: &'static str, vdisk: VdiskId, text: &str) {
        self.add(severity, About { kind, vdisk: Some(vdisk) }, text);
    }

    #[must_use]
    pub fn list(&self, ask: &EventsAsk, incarnation: Incarnation) -> EventList {
        self.ring().list(ask, incarnation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(ring: &Ring, after: u64, events_max: u32) -> (Vec<u64>, u64, bool) {
        let ask = EventsAsk { after, events_max };
        let EventList { events, lost, more, .. } = ring.list(&ask, Incarnation(1));
        (events.iter().map(|event| event.seq).collect(), lost, more)
    }

    #[test]
    fn a_cursor_misses_nothing_unknowingly_and_memory_is_bounded() {
        let mut ring = Ring::default();
        assert_eq!(ask(&ring, 0, 10), (vec![], 0, false));
        for number in 0..5 {
            let about = About { kind: "gap", vdisk: Some(VdiskId(number)) };
            ring.add(1, Severity::Error, about, "why");
        }
        assert_eq!(ask(&ring, 0, 3), (vec![1, 2, 3], 0, true));
        assert_eq!(ask(&ring, 3, 3), (vec![4, 5], 0, false));
        assert_eq!(ask(&ring, 99, 3), (vec![], 0, false), "a cursor of another life");
        for number in 0..2000 {
            let about = About { kind: "claimed", vdisk: None };
            ring.add(1, Severity::Info, about, &number.to_string());
        }
        assert_eq!(ring.events.len(), KEPT_MAX);
        let (seen, lost, more) = ask(&ring, 5, 9999);
        assert_eq!((seen.len(), seen[0], lost, more), (ANSWER_MAX, 982, 976, true));
    }

    #[test]
    fn what_is_said_again_and_again_is_kept_once_and_long_texts_are_cut() {
        let mut ring = Ring::default();
        let gap = About { kind: "gap", vdisk: Some(VdiskId(1)) };
        for _ in 0..3 {
            ring.add(1, Severity::Error, gap, "why");
            ring.add(1, Severity::Info, About { kind: "standing", vdisk: None }, "online");
        }
        assert_eq!(ring.events.len(), 2);
        ring.add(1, Severity::Info, About { kind: "serving", ..gap }, "again");
        ring.add(1, Severity::Error, gap, "why");
        assert_eq!(ring.events.len(), 4, "it went well in between");
        ring.add(AGAIN_MS, Severity::Error, gap, "why");
        assert_eq!(ring.events.len(), 4);
        ring.add(1 + AGAIN_MS, Severity::Error, gap, "why");
        assert_eq!(ring.events.len(), 5, "still so after an hour");
        ring.add(1, Severity::Error, gap, &"ü".repeat(1000));
        assert_eq!(ring.events.back().unwrap().text.len(), TEXT_MAX);
    }
}
