//! Which requests of an attachment are applied (P3): all up to `contiguous`, and a bounded set above it.
//!
//! Invariant: everything in `above` is greater than `contiguous + 1`, and there are at most [`INFLIGHT_MAX`] of them.

use std::collections::{BTreeMap, BTreeSet};

use model::{AttachmentGeneration, RequestSeq};
use wire::router::{AppliedSequences, INFLIGHT_MAX};

/// Applied sequences of one attachment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AppliedSet {
    contiguous: u64,
    above: BTreeSet<u64>,
}

impl AppliedSet {
    #[must_use]
    pub fn contains(&self, seq: RequestSeq) -> bool {
        seq.0 <= self.contiguous || self.above.contains(&seq.0)
    }

    pub fn insert(&mut self, seq: RequestSeq) {
        if seq.0 == self.contiguous + 1 {
            self.contiguous = seq.0;
        } else if self.contiguous < seq.0 {
            self.above.insert(seq.0);
        }
        self.absorb();
        // An edge has at most INFLIGHT_MAX requests outstanding, so a hole below more than that many applied ones is a
        // request that was given up (refused, say) and never comes again. Bounded (L8).
        while INFLIGHT_MAX < self.above.len() {
            self.contiguous = self.above.pop_first().expect("longer than the limit");
            self.absorb();
        }
    }

    fn absorb(&mut self) {
        while let Some(first) = self.above.first()
            && *first <= self.contiguous + 1
        {
            self.contiguous = self.contiguous.max(*first);
            self.above.pop_first();
        }
    }

    #[must_use]
    pub fn to_wire(&self) -> AppliedSequences {
        AppliedSequences {
            contiguous: RequestSeq(self.contiguous),
            above: self.above.iter().map(|seq| RequestSeq(*seq)).collect(),
        }
    }

    /// Takes what was stored; restores the invariant whatever the bytes said.
    #[must_use]
    pub fn from_wire(stored: &AppliedSequences) -> Self {
        let mut set = Self { contiguous: stored.contiguous.0, above: BTreeSet::new() };
        for seq in &stored.above {
            set.insert(*seq);
        }
        set
    }
}

/// Applied sequences of every attachment that still counts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AppliedMap {
    sets: BTreeMap<AttachmentGeneration, AppliedSet>,
}

/// Attachments whose sequences are remembered: the live ones of `shared` mode, or the last ones.
pub const GENERATIONS_MAX: usize = 64;

impl AppliedMap {
    #[must_use]
    pub fn contains(&self, generation: AttachmentGeneration, seq: RequestSeq) -> bool {
        self.sets.get(&generation).is_some_and(|set| set.contains(seq))
    }

    pub fn insert(&mut self, generation: AttachmentGeneration, seq: RequestSeq) {
        self.sets.entry(generation).or_default().insert(seq);
        while GENERATIONS_MAX < self.sets.len() {
            self.sets.pop_first();
        }
    }

    #[must_use]
    pub fn get(&self, generation: AttachmentGeneration) -> AppliedSet {
        self.sets.get(&generation).cloned().unwrap_or_default()
    }

    /// Forgets attachments that are fenced or ended: nothing of theirs is accepted any more.
    pub fn retain(&mut self, live: impl Fn(AttachmentGeneration) -> bool) {
        self.sets.retain(|generation, _| live(*generation));
    }

    pub fn iter(&self) -> impl Iterator<Item = (AttachmentGeneration, &AppliedSet)> {
        self.sets.iter().map(|(generation, set)| (*generation, set))
    }

    pub fn set(&mut self, generation: AttachmentGeneration, set: AppliedSet) {
        self.sets.insert(generation, set);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_hole_left_behind_by_a_thousand_later_requests_is_closed() {
        let mut set = AppliedSet::default();
        for seq in 2..=u64::try_from(INFLIGHT_MAX).unwrap() + 1 {
            set.insert(RequestSeq(seq));
        }
        assert!(!set.contains(RequestSeq(1)));
        set.insert(RequestSeq(u64::try_from(INFLIGHT_MAX).unwrap() + 2));
        assert!(set.contains(RequestSeq(1)));
        assert!(set.to_wire().above.is_empty());
    }

    proptest! {
        /// P3: whatever the order of arrival, exactly what was inserted is contained (holes are younger than the bound).
        #[test]
        fn contains_what_was_inserted_and_survives_its_bytes(seqs in proptest::collection::vec(1u64..200, 0..150)) {
            let mut set = AppliedSet::default();
            for seq in &seqs {
                set.insert(RequestSeq(*seq));
            }
            for seq in 1..200 {
                prop_assert_eq!(set.contains(RequestSeq(seq)), seqs.contains(&seq));
            }
            prop_assert_eq!(AppliedSet::from_wire(&set.to_wire()), set);
        }
    }
}
