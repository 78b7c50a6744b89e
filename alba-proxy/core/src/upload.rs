//! One put attempt, from the first fragment to the decision.
//!
//! ```text
//!  all puts in flight ──▶ fewer than c stored ──────────────▶ nothing left to try: Failed
//!        │                      │ c stored                    deadline:             Failed
//!        │                      ▼
//!        │                 slack: a short wait for the rest
//!        └── all stored ──▶ Committable ◀── slack over, or nothing left in flight
//! ```
//!
//! A put that fails is tried on another OSD where the placement rules leave one. What isn't stored at the decision
//! becomes a hole, recorded with the object, so that being slow never means being forgotten. Fragments without
//! bytes need no storing and count as stored: they can't be lost.
//!
//! Invariant: decided at most once; a commit has at least `c` fragments, placed by the rules (P24).

use crate::placement::{Candidate, Spread, place};
use model::{FragmentIndex, Now, OsdId, Policy};
use std::collections::BTreeMap;
use std::time::Duration;

/// A fragment on its way to an OSD.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Put {
    pub index: FragmentIndex,
    pub osd: OsdId,
}

/// What an OSD said, or its silence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PutAnswer {
    Stored,
    /// Not stored, or not known to be.
    Failed,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// To be committed with these places; the other fragments with bytes are holes.
    Commit(Vec<Put>),
    /// Too few could be stored. What is listed may lie on OSDs and is nobody's.
    Failed { orphans: Vec<Put> },
}

/// What an answer calls for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    Nothing,
    /// Try this one instead.
    Put(Put),
    /// It was stored after the decision to commit: it can fill its hole.
    Late(Put),
    /// It was stored after the decision to fail: delete it.
    Orphan(Put),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Pending(OsdId),
    Stored(OsdId),
    GivenUp,
}

/// What an upload begins with.
#[derive(Debug, Clone)]
pub struct UploadPlan {
    pub policy: Policy,
    pub spread: Spread,
    /// Fragments that have bytes.
    pub fragments: Vec<FragmentIndex>,
    pub candidates: Vec<Candidate>,
    /// How long to wait for the rest once `c` are stored.
    pub slack: Duration,
    pub deadline: Now,
    pub seed: u64,
}

#[derive(Debug)]
pub struct Upload {
    plan: UploadPlan,
    fragments: BTreeMap<FragmentIndex, State>,
    /// Fragments with bytes that must be stored.
    needed: usize,
    /// Where a put failed or its outcome is unknown: a copy may lie there.
    strays: Vec<Put>,
    slack_until: Option<Now>,
    verdict: Option<Verdict>,
}

impl Upload {
    /// The upload and the puts to start with.
    #[must_use]
    pub fn start(plan: UploadPlan, now: Now) -> (Self, Vec<Put>) {
        let with_bytes = plan.fragments.len();
        let empty = usize::from(plan.policy.total()).saturating_sub(with_bytes);
        let needed = usize::from(plan.policy.c()).saturating_sub(empty).min(with_bytes);
        let wanted = u8::try_from(with_bytes).expect("at most 32 fragments");
        let osds = place(&plan.candidates, plan.spread, &[], wanted, plan.seed);
        // Data comes first, so what finds no place is parity, and reads stay direct.
        let puts: Vec<Put> = plan
            .fragments
            .iter()
            .zip(&osds)
            .map(|(index, osd)| Put { index: *index, osd: *osd })
            .collect();
        let mut fragments: BTreeMap<FragmentIndex, State> =
            plan.fragments.iter().map(|index| (*index, State::GivenUp)).collect();
        for put in &puts {
            fragments.insert(put.index, State::Pending(put.osd));
        }
        let mut upload =
            Self { plan, fragments, needed, strays: Vec::new(), slack_until: None, verdict: None };
        upload.decide(now);
        (upload, puts)
    }

    #[must_use]
    pub const fn verdict(&self) -> Option<&Verdict> {
        self.verdict.as_ref()
    }

    /// When [`tick`](Self::tick) should be called, if no answer comes before.
    #[must_use]
    pub fn wake_at(&self) -> Now {
        self.slack_until.unwrap_or(self.plan.deadline).min(self.plan.deadline)
    }

    /// Puts that haven't been answered.
    pub fn pending(&self) -> impl Iterator<Item = Put> + '_ {
        self.fragments.iter().filter_map(|(index, state)| match state {
            State::Pending(osd) => Some(Put { index: *index, osd: *osd }),
            State::Stored(_) | State::GivenUp => None,
        })
    }

    fn stored(&self) -> impl Iterator<Item = Put> + '_ {
        self.fragments.iter().filter_map(|(index, state)| match state {
            State::Stored(osd) => Some(Put { index: *index, osd: *osd }),
            State::Pending(_) | State::GivenUp => None,
        })
    }

    pub fn answered(&mut self, put: Put, answer: PutAnswer, now: Now) -> Next {
        if self.fragments.get(&put.index) != Some(&State::Pending(put.osd)) {
            return Next::Nothing;
        }
        match (answer, &self.verdict) {
            (PutAnswer::Stored, None) => {
                self.fragments.insert(put.index, State::Stored(put.osd));
                self.decide(now);
                Next::Nothing
            }
            (PutAnswer::Stored, Some(verdict)) => {
                self.fragments.insert(put.index, State::Stored(put.osd));
                match verdict {
                    Verdict::Commit(_) => Next::Late(put),
                    Verdict::Failed { .. } => Next::Orphan(put),
                }
            }
            (PutAnswer::Failed, None) => {
                let next = self.instead(put);
                self.decide(now);
                next
            }
            (PutAnswer::Failed, Some(_)) => {
                self.fragments.insert(put.index, State::GivenUp);
                self.strays.push(put);
                Next::Nothing
            }
        }
    }

    /// Another OSD for a fragment whose put failed. Each failure takes an OSD out, so this ends.
    fn instead(&mut self, failed: Put) -> Next {
        self.strays.push(failed);
        self.fragments.insert(failed.index, State::GivenUp);
        for candidate in &mut self.plan.candidates {
            candidate.writable &= candidate.osd != failed.osd;
        }
        let occupied: Vec<OsdId> = self.stored().chain(self.pending()).map(|put| put.osd).collect();
        let seed = self.plan.seed ^ model::u64_of(self.strays.len());
        match place(&self.plan.candidates, self.plan.spread, &occupied, 1, seed).first() {
            Some(osd) => {
                let put = Put { index: failed.index, osd: *osd };
                self.fragments.insert(put.index, State::Pending(put.osd));
                Next::Put(put)
            }
            None => Next::Nothing,
        }
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Now) {
        self.decide(now);
    }

    fn decide(&mut self, now: Now) {
        if self.verdict.is_some() {
            return;
        }
        let stored: Vec<Put> = self.stored().collect();
        let in_flight = self.pending().count();
        if stored.len() < self.needed {
            let out_of_reach = stored.len() + in_flight < self.needed;
            if out_of_reach || now >= self.plan.deadline {
                let orphans =
                    stored.into_iter().chain(self.pending()).chain(self.strays.clone()).collect();
                self.verdict = Some(Verdict::Failed { orphans });
            }
            return;
        }
        let slack_until = *self.slack_until.get_or_insert(now.plus(self.plan.slack));
        if in_flight == 0 || now >= slack_until || now >= self.plan.deadline {
            self.verdict = Some(Verdict::Commit(stored));
        }
    }

    /// Where a copy may lie that no commit of this upload names, once it is decided.
    #[must_use]
    pub fn strays(&self) -> &[Put] {
        &self.strays
    }
}

#[cfg(test)]
mod tests;
