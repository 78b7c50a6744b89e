//! The replay log: every change from its first sending until it is known to be safe.
//!
//! Invariant: `unapplied` lists exactly the entries that aren't `Applied`, in order of their numbers; two entries that
//! overlap are never both sent and unapplied.

use super::Tries;
use crate::slab::Key;
use bytes::Bytes;
use model::{ByteRange, Lsn, RequestSeq};
use std::collections::BTreeMap;
use wire::router::{Durability, INFLIGHT_MAX, UnmapKind};

/// What an entry costs besides its data.
const ENTRY_COST: u64 = 256;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Change {
    Write {
        offset: u64,
        data: Bytes,
        checksums: Vec<u32>,
    },
    Unmap {
        offset: u64,
        len: u64,
        kind: UnmapKind,
    },
    /// What was refused for good. Its number is used all the same, or the router would wait for it for ever.
    Void,
}

impl Change {
    pub(super) fn range(&self) -> Option<ByteRange> {
        match self {
            Self::Write { offset, data, .. } => ByteRange::new(*offset, model::u64_of(data.len())),
            Self::Unmap { offset, len, .. } => ByteRange::new(*offset, *len),
            Self::Void => None,
        }
    }

    pub(super) fn cost(&self) -> u64 {
        match self {
            Self::Write { data, .. } => ENTRY_COST + model::u64_of(data.len()),
            Self::Unmap { .. } | Self::Void => ENTRY_COST,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// To be sent to the present owner.
    Due,
    Sent,
    /// Surely not applied; to be sent again later.
    Resting,
    /// Applied by the present owner at this position; [`Lsn::ZERO`] = before the present connection, so that every
    /// flush sent on it covers the entry.
    Applied(Lsn),
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) change: Change,
    pub(super) durability: Durability,
    /// Who waits for it.
    pub(super) op: Option<Key>,
    pub(super) state: State,
    /// The user was told that it is done.
    pub(super) acknowledged: bool,
    pub(super) tries: Tries,
}

#[derive(Debug)]
pub(super) struct ReplayLog {
    entries: BTreeMap<RequestSeq, Entry>,
    unapplied: Vec<(RequestSeq, Option<ByteRange>)>,
    bytes: u64,
    due: usize,
}

impl ReplayLog {
    pub(super) const fn new() -> Self {
        Self { entries: BTreeMap::new(), unapplied: Vec::new(), bytes: 0, due: 0 }
    }

    pub(super) const fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(super) const fn unapplied(&self) -> usize {
        self.unapplied.len()
    }

    /// True when something acknowledged waits for a flush.
    pub(super) fn has_unflushed(&self) -> bool {
        self.entries.len() > self.unapplied.len()
    }

    pub(super) fn get(&self, seq: RequestSeq) -> Option<&Entry> {
        self.entries.get(&seq)
    }

    pub(super) fn get_mut(&mut self, seq: RequestSeq) -> Option<&mut Entry> {
        self.entries.get_mut(&seq)
    }

    /// Whether a change with this number may be sent now: nothing earlier that it overlaps is unapplied (P3), and the
    /// router can remember it as an exception to its contiguous sequence.
    pub(super) fn may_send(&self, seq: RequestSeq, range: Option<ByteRange>) -> bool {
        let Some((lowest, _)) = self.unapplied.first() else { return true };
        if seq.0 - lowest.0.min(seq.0) >= model::u64_of(INFLIGHT_MAX) {
            return false;
        }
        let Some(range) = range else { return true };
        let earlier = self.unapplied.iter().take_while(|(other, _)| *other < seq);
        !earlier.filter_map(|(_, other)| *other).any(|other| other.overlaps(range))
    }

    /// Whether replay has come to this number: every earlier change is applied or on its way, and none on its way covers
    /// a cluster in part, since the router may refuse such a one for now while it takes the next.
    pub(super) fn may_replay(&self, seq: RequestSeq) -> bool {
        let mut earlier = self.unapplied.iter().take_while(|(other, _)| *other < seq);
        earlier.all(|(other, range)| {
            self.entries[other].state == State::Sent && range.is_none_or(ByteRange::is_aligned)
        })
    }

    /// A new entry, being sent.
    pub(super) fn push(&mut self, seq: RequestSeq, entry: Entry) {
        assert_eq!(entry.state, State::Sent, "an entry begins by being sent");
        self.bytes += entry.change.cost();
        self.unapplied.push((seq, entry.change.range()));
        let before = self.entries.insert(seq, entry);
        assert!(before.is_none(), "sequence numbers are used once");
    }

    /// The next entries to send, in order.
    pub(super) fn due_entries(&self) -> Vec<RequestSeq> {
        if self.due == 0 {
            return Vec::new();
        }
        let list = self.unapplied.iter().map(|(seq, _)| *seq);
        list.filter(|seq| self.entries[seq].state == State::Due).take(INFLIGHT_MAX).collect()
    }

    pub(super) fn set_state(&mut self, seq: RequestSeq, state: State) {
        let Some(entry) = self.entries.get_mut(&seq) else { return };
        self.due -= usize::from(entry.state == State::Due);
        self.due += usize::from(state == State::Due);
        let was_applied = matches!(entry.state, State::Applied(_));
        let is_applied = matches!(state, State::Applied(_));
        entry.state = state;
        if was_applied != is_applied {
            let range = entry.change.range();
            match self.unapplied.binary_search_by_key(&seq, |(other, _)| *other) {
                Ok(at) if is_applied => drop(self.unapplied.remove(at)),
                Err(at) if was_applied => self.unapplied.insert(at, (seq, range)),
                Ok(_) | Err(_) => unreachable!("`unapplied` lists what isn't applied"),
            }
        }
    }

    /// Gives up the content of an entry but not its number.
    pub(super) fn make_void(&mut self, seq: RequestSeq) {
        let Some(entry) = self.entries.get_mut(&seq) else { return };
        self.bytes -= entry.change.cost();
        entry.change = Change::Void;
        entry.durability = Durability::Normal;
        self.bytes += entry.change.cost();
        if let Ok(at) = self.unapplied.binary_search_by_key(&seq, |(other, _)| *other) {
            self.unapplied[at].1 = None;
        }
    }

    /// Drops an applied entry that is safe.
    pub(super) fn forget(&mut self, seq: RequestSeq) {
        if let Some(entry) = self.entries.remove(&seq) {
            assert!(matches!(entry.state, State::Applied(_)), "only what is applied can be safe");
            self.bytes -= entry.change.cost();
        }
    }

    /// Drops what a flush of everything up to `lsn` covers (P2).
    pub(super) fn covered(&mut self, lsn: Lsn) {
        let bytes = &mut self.bytes;
        self.entries.retain(|_, entry| {
            let safe = matches!(entry.state, State::Applied(at) if at <= lsn);
            if safe {
                *bytes -= entry.change.cost();
            }
            !safe
        });
    }

    pub(super) fn numbers(&self) -> Vec<RequestSeq> {
        self.entries.keys().copied().collect()
    }

    pub(super) fn clear(&mut self) {
        *self = Self::new();
    }
}
