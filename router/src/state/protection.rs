//! A served vDisk whose log is copied to a DTL: who waits for which acknowledgement, and the right to read.
//!
//! A vDisk without a DTL has none of this, and pays nothing for it.
//!
//! Invariant: a write or flush is answered only when [`DtlOwner::acks`] covers it and its records are in the own log
//! (P11, P13); what nobody else has is answered only while this router has the right to serve (L4); data of a read leave
//! only under that right, seen after they were gathered (P16).

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use arakoon_client::Session as Lease;
use bytes::Bytes;
use model::{ByteSize, Epoch, Lsn, VdiskId};
use router_core::log::Placement;
use router_core::log::pool::Entry;
use runtime::clock::boot_now;
use runtime::rpc::Responder;
use wire::WireError;
use wire::dtl::{DtlMode, DtlState};
use wire::facts::AttachmentMode;
use wire::router::{Applied, Flushed, code};

use super::{Serving, Slot, State};
use crate::dtl::owner::{DtlOwner, Session, Writers};

/// How long a read waits for its right.
const READ_PATIENCE: Duration = Duration::from_secs(2);

/// What a request waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    Written,
    WrittenDurably,
    Flushed,
}

#[derive(Debug)]
pub struct Waiter {
    pub responder: Responder,
    pub epoch: Epoch,
    pub lsn: Lsn,
    pub need: Need,
}

impl Waiter {
    fn answer(self) {
        let Self { responder, epoch, lsn, need } = self;
        match need {
            Need::Flushed => responder.reply(&Flushed { epoch, lsn }, Bytes::new()),
            Need::Written | Need::WrittenDurably => {
                responder.reply(&Applied { epoch, lsn }, Bytes::new());
            }
        }
    }
}

/// See the module's page.
pub struct Protection {
    pub owner: Arc<DtlOwner>,
    /// The session that the record of its DTL names; another one gives no right (P17).
    pub lease: Arc<Lease>,
    /// Whether it may be shared (P5) is decided by this.
    pub mode: DtlMode,
    /// With several, each may see what another has written.
    writers: Writers,
    /// Records placed and not synced yet: (LSN, log position behind it).
    unsynced: VecDeque<(Lsn, u64)>,
    waiting: Vec<Waiter>,
}

impl std::fmt::Debug for Protection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Protection").field("waiting", &self.waiting).finish_non_exhaustive()
    }
}

impl Protection {
    /// `unsynced`: what recovery placed in the own log anew.
    #[must_use]
    pub fn new(
        owner: Arc<DtlOwner>,
        lease: Arc<Lease>,
        mode: DtlMode,
        unsynced: Vec<(Lsn, u64)>,
    ) -> Self {
        let (writers, unsynced, waiting) = (Writers::One, unsynced.into(), Vec::new());
        Self { owner, lease, mode, writers, unsynced, waiting }
    }

    pub fn set_writers(&mut self, writers: Writers) {
        self.writers = writers;
        self.owner.set_writers(writers);
    }

    /// What the acknowledgement of a write means from now on.
    pub fn set_mode(&mut self, mode: DtlMode) {
        self.mode = mode;
        self.owner.set_mode(mode);
    }

    /// A record has its place in the own log.
    pub fn placed(&mut self, entry: &Entry, end: u64) {
        self.unsynced.push_back((entry.lsn, end));
        self.owner.append(entry);
    }

    /// The own log is synced through this position.
    pub(super) fn synced(&mut self, position: u64) {
        let mut through = None;
        while let Some((lsn, _)) = self.unsynced.pop_front_if(|(_, end)| *end <= position) {
            through = Some(lsn);
        }
        if let Some(lsn) = through {
            self.owner.local_synced(lsn);
        }
    }

    fn wait(&mut self, waiter: Waiter) {
        if waiter.need != Need::Written {
            self.owner.want_flush(waiter.lsn);
        }
        self.waiting.push(waiter);
    }

    fn answer(&mut self) {
        if self.waiting.is_empty() {
            return;
        }
        let acks = self.owner.acks();
        let is_early =
            |w: &Waiter| w.need == Need::Written && acks.write < w.lsn && w.lsn <= acks.early;
        let early = self.waiting.iter().any(is_early) && self.right().holds();
        let written = if early { acks.early } else { acks.write };
        let covered = |waiter: &mut Waiter| match waiter.need {
            Need::Written => waiter.lsn <= written,
            Need::WrittenDurably | Need::Flushed => waiter.lsn <= acks.flush,
        };
        for waiter in self.waiting.extract_if(.., covered) {
            waiter.answer();
        }
    }

    /// Only the backend can give what is waited for (P13, P14).
    fn wants_backend(&self) -> bool {
        self.waiting.iter().any(|w| self.writers == Writers::Several || w.need != Need::Written)
            && self.owner.state() != DtlState::InSync
    }

    pub fn fail(&mut self, error: &WireError) {
        for waiter in self.waiting.drain(..) {
            waiter.responder.fail(error.clone());
        }
    }

    #[must_use]
    pub fn right(&self) -> Right {
        Right { owner: Arc::clone(&self.owner), lease: Arc::clone(&self.lease) }
    }

    /// Whether what was read when `seen` was the last LSN may be answered: nobody may see what could still be lost (P5).
    #[must_use]
    pub fn may_show(&self, seen: Lsn) -> bool {
        (self.writers == Writers::One || seen <= self.owner.acks().write) && self.right().holds()
    }
}

/// How far [`State::place_recovered`] came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placing {
    Done,
    /// The next segment isn't ready yet.
    Later,
    /// There is no further one.
    NoRoom,
}

/// The right to serve one vDisk.
pub struct Right {
    owner: Arc<DtlOwner>,
    lease: Arc<Lease>,
}

impl Right {
    fn session(&self) -> Session {
        if self.lease.lives() { Session::Valid } else { Session::Expired }
    }

    /// Does it hold now? Asked after the data were gathered.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.owner.may_read(boot_now(), self.session())
    }

    /// Waits for it, and first until everything through `seen` is elsewhere too.
    ///
    /// # Errors
    /// When it doesn't come in time: the reader asks again, here or elsewhere.
    pub async fn wait(&self, seen: Option<Lsn>) -> Result<(), WireError> {
        if let Some(seen) = seen
            && !self.owner.wait_written(seen, READ_PATIENCE).await
        {
            let message = "what was read isn't safe from the loss of this router yet";
            return Err(WireError::retry(code::RECOVERING, message));
        }
        if self.owner.wait_to_read(|| self.session(), READ_PATIENCE).await {
            return Ok(());
        }
        let message = "neither the DTL nor arakoon grants this router the right to read";
        Err(WireError::retry(code::RECOVERING, message))
    }
}

impl Serving {
    /// What a read that was gathered now waits for: the right to serve, and through which LSN all must be elsewhere too.
    #[must_use]
    pub fn wait_to_show(&mut self) -> Option<(Right, Option<Lsn>)> {
        let protection = self.protection.as_ref()?;
        let seen = (protection.writers == Writers::Several).then(|| self.core.last_lsn());
        let right = protection.right();
        if seen.is_some() && protection.owner.state() != DtlState::InSync {
            self.core.seal();
            self.committer.notify_one();
        }
        Some((right, seen))
    }

    /// The attachments changed.
    pub fn note_sharing(&mut self) {
        let shared = self.attachments.live.iter().any(|live| live.mode == AttachmentMode::Shared);
        let writers = if shared { Writers::Several } else { Writers::One };
        if let Some(protection) = &mut self.protection {
            protection.set_writers(writers);
        }
    }

    /// Answers whom the DTL covers now; what only the backend can cover goes there.
    pub fn tend(&mut self) {
        let Some(protection) = &mut self.protection else { return };
        protection.answer();
        if protection.wants_backend() {
            self.core.seal();
            self.committer.notify_one();
        }
    }
}

impl State {
    /// A request of a vDisk with a DTL waits.
    pub(super) fn wait_protected(&mut self, vdisk: VdiskId, waiter: Waiter, end: u64) {
        let Some(Slot::Serving(serving)) = self.volumes.get_mut(&vdisk) else {
            let error = WireError::retry(code::RECOVERING, "the vDisk is not served here now");
            return waiter.responder.fail(error);
        };
        let Some(protection) = &mut serving.protection else { return };
        if waiter.need != Need::Written {
            self.sync_wanted = self.sync_wanted.max(end);
        }
        protection.wait(waiter);
        serving.tend();
    }

    /// The DTL of a vDisk has something new; false when it isn't served under this epoch any more.
    pub fn tend(&mut self, vdisk: VdiskId, epoch: Epoch) -> bool {
        match self.volumes.get_mut(&vdisk) {
            Some(Slot::Serving(serving)) if serving.core.epoch() == epoch => {
                serving.tend();
                true
            }
            Some(_) | None => false,
        }
    }

    /// The own log is synced further.
    pub(super) fn synced_protected(&mut self) {
        let synced = self.log.synced();
        for vdisk in &self.protected {
            if let Some(Slot::Serving(serving)) = self.volumes.get_mut(vdisk)
                && let Some(protection) = &mut serving.protection
            {
                protection.synced(synced);
                serving.tend();
            }
        }
    }

    /// What recovery read from a DTL target gets its place in the own log, in order, as far as there is room now. `placed`:
    /// the places of those that have one.
    pub fn place_recovered(&mut self, entries: &[Entry], placed: &mut Vec<Placement>) -> Placing {
        for entry in &entries[placed.len()..] {
            match self.log.place(entry.clone(), &mut self.batch) {
                Ok(placement) => placed.push(placement),
                Err(_) if self.log.room_is_coming() && self.log_problem.is_none() => {
                    return Placing::Later;
                }
                Err(_) => return Placing::NoRoom,
            }
        }
        Placing::Done
    }

    /// Why recovery can't find room for so much; `None`: it may.
    #[must_use]
    pub fn lacks_room(&self, needed: u64) -> Option<String> {
        let room = self.log.room();
        match &self.log_problem {
            Some(problem) => Some(format!("the write log here can't grow: {problem}")),
            None if room < needed => {
                Some(format!("the write log here has room for {}", ByteSize(room)))
            }
            None => None,
        }
    }
}
