//! One target, as its owner sees it.
//!
//! Invariant: `synced <= written`, both are what the target said in this generation, and no more than it can still have.

use std::collections::BTreeMap;

use model::{Lsn, Now};
use wire::dtl::Held;

use super::{RequestId, ToTarget};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// Its log is being made.
    Creating,
    /// The connection is new: what it has must be asked.
    Opening,
    Ready,
}

#[derive(Debug, Clone)]
pub(super) struct Outstanding {
    pub sent_at: Now,
    pub what: ToTarget,
}

#[derive(Debug)]
pub(super) struct Member {
    pub stage: Stage,
    /// Appended through here, answered or not.
    pub sent: Lsn,
    /// In its memory through here.
    pub written: Lsn,
    pub synced: Lsn,
    /// Synced through here is what a catch-up must reach.
    pub goal: Lsn,
    pub read_until: Option<Now>,
    pub outstanding: BTreeMap<RequestId, Outstanding>,
    /// Unanswered or unreachable since then.
    pub troubled: Option<Now>,
    /// Not before this is it asked again.
    pub again_at: Now,
    pub renewed_at: Option<Now>,
    pub trimmed: Lsn,
    /// It can't serve: why.
    pub failed: Option<String>,
}

impl Member {
    pub fn new(base: Lsn, now: Now) -> Self {
        Self {
            stage: Stage::Creating,
            sent: base,
            written: base,
            synced: base,
            goal: Lsn::ZERO,
            read_until: None,
            outstanding: BTreeMap::new(),
            troubled: None,
            again_at: now,
            renewed_at: None,
            trimmed: base,
            failed: None,
        }
    }

    pub fn is_ready(&self) -> bool {
        self.stage == Stage::Ready && self.failed.is_none()
    }

    pub fn fail(&mut self, why: impl Into<String>) {
        self.failed.get_or_insert(why.into());
    }

    pub fn trouble(&mut self, now: Now) {
        self.troubled.get_or_insert(now);
    }

    /// The connection is gone; what is under way may or may not have arrived.
    pub fn lost(&mut self, now: Now, again_at: Now) {
        self.trouble(now);
        self.outstanding.clear();
        if self.stage == Stage::Ready {
            self.stage = Stage::Opening;
        }
        self.again_at = again_at;
    }

    /// What the target says it has. Less in memory than before is a restart: that is sent again. Less on stable storage
    /// than it promised is a loss (P12).
    pub fn opened(&mut self, held: &Held, last: Lsn) {
        if held.damaged || held.last < self.synced {
            self.fail("it has lost what it had promised");
            return;
        }
        if self.stage == Stage::Creating {
            self.goal = last;
        }
        self.stage = Stage::Ready;
        self.troubled = None;
        self.sent = held.last;
        self.written = held.last;
        self.synced = self.synced.max(held.synced);
    }

    /// Its log ends at `last`: some append was lost on the way.
    pub fn gap(&mut self, last: Lsn, now: Now) {
        if last < self.synced {
            self.fail("it has lost what it had promised");
        } else {
            self.trouble(now);
            self.sent = last;
            self.written = self.written.min(last);
        }
    }

    pub fn has(&self, wanted: impl Fn(&ToTarget) -> bool) -> bool {
        self.outstanding.values().any(|out| wanted(&out.what))
    }

    pub fn appends(&self) -> usize {
        let is_append = |out: &&Outstanding| matches!(out.what, ToTarget::Append { .. });
        self.outstanding.values().filter(is_append).count()
    }

    pub fn oldest(&self) -> Option<Now> {
        self.outstanding.values().map(|out| out.sent_at).chain(self.troubled).min()
    }
}
