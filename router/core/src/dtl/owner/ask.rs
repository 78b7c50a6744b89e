//! What an owner wants done, and what comes back.
//!
//! Invariant: each request is answered at most once; one that never is counts as failed after [`super::Patience::answer`].

use model::{Lsn, Now, RouterId};
use wire::dtl::{DtlFacts, Held};

/// Which request an answer is for.
pub type RequestId = u64;

/// What is sent to a target. Appends leave in the order in which they are wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToTarget {
    Open,
    Create { base: Lsn },
    Append { first: Lsn, last: Lsn },
    Sync { through: Lsn },
    Renew,
    Trim { through: Lsn },
}

/// What a target answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FromTarget {
    Opened(Held),
    Appended(Lsn),
    Synced(Lsn),
    Done,
}

/// Why there is no such answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// The connection broke, or there is none: try again.
    Lost,
    /// The target's log ends here: send from behind it.
    Gap { last: Lsn },
    /// A later owner is there.
    Fenced,
    /// The log is gone, full, failed or not wanted: this target can't serve now.
    Refused(String),
}

/// What became of a proposal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proposed {
    Committed,
    /// The facts or the epoch aren't what was asserted: somebody else has claimed the vDisk.
    Refused,
}

/// What the driver does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    Send {
        target: RouterId,
        request: RequestId,
        what: ToTarget,
    },
    /// The answers of this target's requests so far aren't waited for any more.
    Forget {
        target: RouterId,
    },
    /// Compare-and-set in arakoon, asserting the epoch; retried until the outcome is known.
    Propose {
        from: DtlFacts,
        to: DtlFacts,
    },
    /// These routers hold logs of this vDisk that nothing needs: best effort.
    Drop {
        target: RouterId,
        through: Lsn,
    },
    /// The state changed, for logs and events (L9).
    Changed {
        why: String,
    },
    /// Somebody else owns the vDisk: nothing is acknowledged or read here any more.
    Fenced,
}

/// Up to where requests may be acknowledged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Acks {
    /// Writes that are elsewhere too: whoever comes next has them.
    pub write: Lsn,
    /// Writes that may be acknowledged while this router has the right to serve, and then are the edge's to replay.
    pub early: Lsn,
    pub flush: Lsn,
}

/// How many edges may write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writers {
    One,
    /// None of them replays what it was told is done, so that must be elsewhere too, whatever the state (P5).
    Several,
}

/// What the right to serve rests on: to answer reads, and to acknowledge writes that nobody else has yet (P16, L4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadRight {
    /// There is none.
    Never,
    /// The DTL's lease, which ends then; `None` = it must be renewed first.
    Dtl(Option<Now>),
    /// The session in arakoon.
    Session,
    /// Both: a change into or out of InSync is proposed, and may or may not be committed.
    Both(Option<Now>),
}

/// The router's session in arakoon, as its own clock has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Session {
    Valid,
    Expired,
}

impl ReadRight {
    /// Does it hold at `now`?
    #[must_use]
    pub fn allows(self, now: Now, session: Session) -> bool {
        let session = session == Session::Valid;
        let runs = |until: Option<Now>| until.is_some_and(|until| now < until);
        match self {
            Self::Never => false,
            Self::Dtl(until) => runs(until),
            Self::Session => session,
            Self::Both(until) => session && runs(until),
        }
    }
}
