//! The owner's side of one vDisk's DTL: to whom its log is copied, what may be acknowledged, what is proposed to arakoon.
//!
//! ```text
//!                 ┌──────────── a target fails: generation + 1, floor ────────────┐
//!                 ▼                                                               │
//!  Degraded ─ a router is found: generation + 1 ─▶ CatchingUp ─ all have all ─▶ InSync
//!     ▲                                                │
//!     └────────────── a target fails, nobody else ─────┘          Standalone: none is wanted
//! ```
//!
//! Only InSync does a flush rest on the targets; in the other states it rests on the backend (P13, P14). From the moment
//! a change is proposed the old targets count for nothing, and `floor` tells recovery what was promised under them.
//!
//! Invariant: whatever [`Owner::acks`] allows to be flushed is on stable storage at every target that arakoon names as
//! InSync, or in the backend (P11).

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use model::{Epoch, Lsn, Now, RouterId, VdiskId};
use wire::dtl::{
    DtlFacts, DtlMode, DtlPromise, DtlState, LEASE_MS, LogName, RECORDS_MAX, TARGETS_MAX,
};

mod ask;
mod avoid;
mod member;

pub use ask::{
    Acks, Effect, Failure, FromTarget, Proposed, ReadRight, RequestId, Session, ToTarget, Writers,
};
use avoid::Avoided;
use member::{Member, Outstanding, Stage};

/// Appends to one target under way; further records wait and leave together.
const APPENDS_MAX: usize = 8;
/// Bytes of one append, unless a single record is longer.
const APPEND_BYTES: u64 = 1 << 20;
const _: () = assert!(APPEND_BYTES < RECORDS_MAX as u64);
/// Records in one append.
const APPEND_RECORDS: usize = 1024;
/// Routers whose old logs are still to be dropped.
const STALE_MAX: usize = 16;

/// How patient an owner is.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// A target that doesn't answer for so long has failed.
    pub answer: Duration,
    /// Between two tries to reach a target, and between two looks for another.
    pub retry: Duration,
    /// So long a router that failed isn't chosen; longer if it failed before.
    pub avoid: Duration,
    /// Read leases are renewed this often while somebody reads.
    pub renew: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            answer: Duration::from_secs(2),
            retry: Duration::from_millis(200),
            avoid: Duration::from_secs(3),
            renew: Duration::from_millis(250),
        }
    }
}

/// Reads keep the lease alive for so long.
const READS_LINGER: Duration = Duration::from_secs(5);

/// How an owner begins, right after its claim.
#[derive(Debug, Clone)]
pub struct Opening {
    pub vdisk: VdiskId,
    pub epoch: Epoch,
    pub me: RouterId,
    pub mode: DtlMode,
    /// Standalone, and the vPool says so: a flush rests on the own log alone.
    pub unprotected: bool,
    /// Shared attachments: when not InSync every acknowledgement is as strict as a flush (P5).
    pub strict: bool,
    pub facts: DtlFacts,
    /// What `takeover::judge` wants them to become.
    pub next: DtlFacts,
    /// In the backend through here.
    pub base: Lsn,
    pub patience: Patience,
}

/// See the module's page.
#[derive(Debug)]
pub struct Owner {
    name: Opening,
    facts: DtlFacts,
    proposing: Option<DtlFacts>,
    /// The first proposal is committed: something may be acknowledged.
    begun: bool,
    fenced: bool,
    members: BTreeMap<RouterId, Member>,
    candidates: Vec<RouterId>,
    /// Targets wanted.
    copies: usize,
    /// As many by an operator's wish, wherever routers stand.
    wish: Option<usize>,
    /// Writes through here were taken when an acknowledgement meant that every target has them.
    sync_through: Lsn,
    avoided: Avoided,
    stale: BTreeMap<RouterId, Lsn>,
    /// Bytes of the records `committed + 1 ..= last`.
    sizes: VecDeque<u32>,
    committed: Lsn,
    last: Lsn,
    local_synced: Lsn,
    flush_wanted: Lsn,
    acked: Acks,
    /// Highest LSN that a flush was allowed for while InSync.
    promised: Lsn,
    look_at: Now,
    read_at: Option<Now>,
    next_request: RequestId,
}

impl Owner {
    #[must_use]
    pub fn open(opening: Opening, now: Now, out: &mut Vec<Effect>) -> Self {
        let mut owner = Self {
            facts: opening.facts.clone(),
            proposing: None,
            begun: false,
            fenced: false,
            members: BTreeMap::new(),
            candidates: Vec::new(),
            copies: 1,
            wish: None,
            sync_through: Lsn::ZERO,
            avoided: Avoided::new(opening.vdisk.0),
            stale: BTreeMap::new(),
            sizes: VecDeque::new(),
            committed: opening.base,
            last: opening.base,
            local_synced: opening.base,
            flush_wanted: Lsn::ZERO,
            acked: Acks { write: opening.base, early: opening.base, flush: opening.base },
            promised: Lsn::ZERO,
            look_at: now,
            read_at: None,
            next_request: 1,
            name: opening,
        };
        let next = owner.name.next.clone();
        owner.propose(next, out);
        owner
    }

    #[must_use]
    pub const fn facts(&self) -> &DtlFacts {
        &self.facts
    }

    /// A change is on its way to arakoon.
    #[must_use]
    pub const fn is_proposing(&self) -> bool {
        self.proposing.is_some()
    }

    #[must_use]
    pub const fn is_fenced(&self) -> bool {
        self.fenced
    }

    /// Records above this are kept by the driver, to be sent.
    #[must_use]
    pub const fn kept_above(&self) -> Lsn {
        self.committed
    }

    #[must_use]
    pub fn log_name(&self) -> LogName {
        let Opening { vdisk, epoch, .. } = self.name;
        LogName { vdisk, epoch, generation: self.facts.generation }
    }

    /// A record was placed in the own log; LSNs are consecutive.
    pub fn appended(&mut self, lsn: Lsn, bytes: u32) {
        assert_eq!(lsn, self.last.next(), "records come in LSN order");
        self.last = lsn;
        self.sizes.push_back(bytes);
    }

    /// The own log is on stable storage through here.
    pub fn local_synced(&mut self, lsn: Lsn) {
        self.local_synced = self.local_synced.max(lsn.min(self.last));
    }

    /// The backend has everything through here.
    pub fn backend_has(&mut self, lsn: Lsn) {
        let lsn = lsn.min(self.last);
        while self.committed < lsn {
            self.committed = self.committed.next();
            self.sizes.pop_front();
        }
    }

    /// Somebody waits until this is flushed.
    pub fn want_flush(&mut self, lsn: Lsn) {
        self.flush_wanted = self.flush_wanted.max(lsn.min(self.last));
    }

    /// Edges came or went. What was acknowledged stays so.
    pub const fn set_writers(&mut self, writers: Writers) {
        self.name.strict = matches!(writers, Writers::Several);
    }

    /// Somebody reads.
    pub const fn reading(&mut self, now: Now) {
        self.read_at = Some(now);
    }

    /// What the acknowledgement of a write means changes. Whatever isn't acknowledged yet keeps the stronger meaning of the
    /// two: by the old mode through here, and by the new one from here on.
    pub fn set_mode(&mut self, mode: DtlMode) {
        if self.name.mode == DtlMode::Sync && mode != DtlMode::Sync {
            self.sync_through = self.last;
        }
        if mode == DtlMode::Sync {
            // Leave to acknowledge that nobody used ends with the mode that gave it.
            self.acked.early = self.acked.write;
        }
        self.name.mode = mode;
    }

    /// So many targets, whatever is said with the candidates; who holds a promise meanwhile goes on doing so (P13).
    pub fn want_targets(&mut self, wish: Option<usize>) {
        self.wish = wish.map(|wish| wish.clamp(1, TARGETS_MAX));
        self.copies = self.wish.unwrap_or(self.copies);
        // Looked for at once.
        self.look_at = Now::default();
    }

    /// How many targets an operator wants.
    #[must_use]
    pub const fn wish(&self) -> Option<usize> {
        self.wish
    }

    /// Routers that may be targets, best first, and how many are wanted.
    pub fn candidates(&mut self, routers: Vec<RouterId>, copies: usize) {
        self.copies = self.wish.unwrap_or(copies).clamp(1, TARGETS_MAX);
        self.candidates = routers;
        self.candidates.retain(|router| *router != self.name.me);
    }

    /// Something is under way that may time out, or a lease is kept alive.
    #[must_use]
    pub fn is_busy(&self, now: Now) -> bool {
        let waits = |m: &Member| !m.is_ready() || !m.outstanding.is_empty() || m.sent < self.last;
        let reads = self.read_at.is_some_and(|at| now.since(at) <= READS_LINGER);
        reads || self.proposing.is_some() || self.members.values().any(waits)
    }

    /// [`Owner::candidates`] should be told anew.
    #[must_use]
    pub fn wants_candidates(&self) -> bool {
        let changes = self.members.len() < TARGETS_MAX || self.has_too_many();
        self.facts.state != DtlState::Standalone && changes
    }

    fn has_too_many(&self) -> bool {
        self.wish.is_some_and(|wish| wish < self.facts.targets.len())
    }

    /// Up to where requests may be acknowledged now. What is returned is promised.
    pub fn acks(&mut self) -> Acks {
        if self.fenced || !self.begun {
            return self.acked;
        }
        let in_sync = self.facts.state == DtlState::InSync && self.proposing.is_none();
        let everyone = |lsn: fn(&Member) -> Lsn| self.members.values().map(lsn).min();
        let flush = match self.facts.state {
            DtlState::InSync if in_sync => {
                let synced = everyone(|member| member.synced).unwrap_or(Lsn::ZERO);
                let flush = synced.min(self.local_synced);
                self.promised = self.promised.max(flush);
                flush
            }
            DtlState::Standalone if self.name.unprotected => self.local_synced,
            DtlState::InSync | DtlState::Standalone | DtlState::CatchingUp | DtlState::Degraded => {
                Lsn::ZERO
            }
        };
        let flush = flush.max(self.committed).max(self.acked.flush);
        let written = if in_sync { everyone(|member| member.written) } else { None };
        let write = written.unwrap_or_default().max(flush).max(self.acked.write);
        let still_sync = write < self.sync_through;
        let early = match if still_sync { DtlMode::Sync } else { self.name.mode } {
            // A target that fails may have been sealed: only arakoon knows whether this is still the owner (L4).
            DtlMode::Sync if self.facts.state == DtlState::InSync => write,
            DtlMode::Sync | DtlMode::Async | DtlMode::NoTarget if !in_sync && self.name.strict => {
                write
            }
            DtlMode::Sync | DtlMode::Async | DtlMode::NoTarget => self.last,
        };
        self.acked = Acks { write, early: early.max(self.acked.early), flush };
        self.acked
    }

    /// What the right to serve rests on now.
    #[must_use]
    pub fn read_right(&self) -> ReadRight {
        if self.fenced || !self.begun {
            return ReadRight::Never;
        }
        let into = self.proposing.as_ref().is_some_and(|to| to.state == DtlState::InSync);
        match self.facts.state {
            // P16: a claimant who reads InSync waits for the DTL's lease alone, one who reads anything else for the session
            // alone; until the outcome of a proposal is known, either may be what arakoon says.
            DtlState::InSync if self.proposing.is_some() => ReadRight::Both(self.lease()),
            DtlState::InSync => ReadRight::Dtl(self.lease()),
            DtlState::CatchingUp if into => ReadRight::Both(self.lease()),
            DtlState::CatchingUp | DtlState::Degraded | DtlState::Standalone => ReadRight::Session,
        }
    }

    /// It needs all targets.
    fn lease(&self) -> Option<Now> {
        let mut until = None;
        for member in self.members.values() {
            let one = member.read_until?;
            until = Some(until.map_or(one, |least: Now| least.min(one)));
        }
        until
    }

    /// A proposal's outcome.
    pub fn decided(&mut self, outcome: Proposed, now: Now, out: &mut Vec<Effect>) {
        let to = self.proposing.take().expect("something was proposed");
        if outcome == Proposed::Refused {
            self.fence(out);
            return;
        }
        let why = format!("{:?} since generation {}", to.state, to.generation);
        let same_set = self.begun && to.generation == self.facts.generation;
        let before = std::mem::replace(&mut self.facts, to);
        self.begun = true;
        out.push(Effect::Changed { why });
        if !same_set {
            for target in std::mem::take(&mut self.members).into_keys() {
                out.push(Effect::Forget { target });
            }
            let base = self.committed;
            let targets = self.facts.targets.iter();
            self.members = targets.map(|router| (*router, Member::new(base, now))).collect();
        }
        if self.facts.state == DtlState::InSync {
            let former = before.previous.into_iter().flat_map(|promise| promise.targets);
            self.stale.extend(former.map(|router| (router, self.last)));
        }
        self.progress(now, out);
    }

    fn fence(&mut self, out: &mut Vec<Effect>) {
        if !self.fenced {
            self.fenced = true;
            out.push(Effect::Fenced);
        }
    }

    /// A request was answered, or can't be.
    pub fn answered(
        &mut self,
        (target, request): (RouterId, RequestId),
        answer: Result<FromTarget, Failure>,
        now: Now,
        out: &mut Vec<Effect>,
    ) {
        let last = self.last;
        let again_at = now.plus(self.name.patience.retry);
        let Some(member) = self.members.get_mut(&target) else { return };
        let Some(asked) = member.outstanding.remove(&request) else { return };
        match answer {
            Ok(answer) => {
                member.troubled = None;
                take_answer(member, &asked, answer, last);
            }
            Err(Failure::Lost) => member.lost(now, again_at),
            Err(Failure::Gap { last }) => {
                member.gap(last, now);
                // Appends that followed the lost one fail as well; they are all sent again.
                member.outstanding.retain(|_, o| !matches!(o.what, ToTarget::Append { .. }));
            }
            Err(Failure::Fenced) => self.fence(out),
            Err(Failure::Refused(why)) => member.fail(why),
        }
        self.progress(now, out);
    }

    /// Time has passed, or something was told: does what is due.
    pub fn progress(&mut self, now: Now, out: &mut Vec<Effect>) {
        if self.fenced {
            return;
        }
        let patience = self.name.patience.answer;
        for member in self.members.values_mut() {
            if member.oldest().is_some_and(|since| patience <= now.since(since)) {
                member.fail("no answer in time");
            }
        }
        if self.proposing.is_none() {
            self.decide(now, out);
        }
        self.send(now, out);
        self.drop_stale(out);
    }

    /// Looks whether the facts should change.
    fn decide(&mut self, now: Now, out: &mut Vec<Effect>) {
        let failed: Vec<RouterId> = self
            .members
            .iter()
            .filter(|(_, member)| member.failed.is_some())
            .map(|(router, _)| *router)
            .collect();
        for router in &failed {
            self.avoided.failed(*router, now, self.name.patience.avoid);
        }
        if !failed.is_empty() {
            let why = failed.iter().filter_map(|router| {
                let why = self.members[router].failed.as_deref()?;
                Some(format!("DTL target {router} failed: {why}"))
            });
            out.extend(why.map(|why| Effect::Changed { why }));
            return self.retarget(now, out);
        }
        if self.has_too_many() && !self.candidates.is_empty() {
            return self.retarget(now, out);
        }
        match self.facts.state {
            DtlState::Standalone => {}
            DtlState::CatchingUp => {
                let caught_up = |m: &Member| m.is_ready() && m.goal <= m.synced;
                if !self.members.is_empty() && self.members.values().all(caught_up) {
                    let synced = self.members.values().map(|member| member.synced).min();
                    let floor = self.facts.floor.max(synced.unwrap_or_default());
                    let state = DtlState::InSync;
                    self.propose(
                        DtlFacts { state, floor, previous: None, ..self.facts.clone() },
                        out,
                    );
                }
            }
            DtlState::Degraded | DtlState::InSync => {
                let short = self.facts.targets.len() < self.copies;
                if short && self.look_at <= now {
                    self.look_at = now.plus(self.name.patience.retry);
                    if self.facts.targets.len() < self.choose(now).len() {
                        self.retarget(now, out);
                    }
                }
            }
        }
    }

    /// Whom to name next: healthy targets first, then candidates that didn't fail just now. Never the own router.
    fn choose(&self, now: Now) -> Vec<RouterId> {
        let healthy = self.members.iter().filter(|(_, member)| member.failed.is_none());
        let mut chosen: Vec<RouterId> = healthy.map(|(router, _)| *router).collect();
        if self.copies < chosen.len() {
            // Who stays is who would be chosen first: of two, the one in another domain.
            let place = |router: &RouterId| {
                let place = self.candidates.iter().position(|candidate| candidate == router);
                place.unwrap_or(usize::MAX)
            };
            chosen.sort_by_key(place);
        }
        let free = |router: &&RouterId| self.avoided.is_free(**router, now);
        for router in self.candidates.iter().filter(free) {
            if !chosen.contains(router) && *router != self.name.me {
                chosen.push(*router);
            }
        }
        chosen.truncate(self.copies);
        chosen
    }

    fn retarget(&mut self, now: Now, out: &mut Vec<Effect>) {
        let targets = self.choose(now);
        let state = if targets.is_empty() { DtlState::Degraded } else { DtlState::CatchingUp };
        let DtlFacts { generation, floor, .. } = self.facts;
        let previous = match self.facts.state {
            DtlState::InSync => {
                let targets = self.facts.targets.clone();
                Some(DtlPromise { generation, targets, through: Lsn(u64::MAX) })
            }
            DtlState::Standalone | DtlState::CatchingUp | DtlState::Degraded => {
                self.facts.previous.clone()
            }
        };
        let floor = floor.max(self.promised);
        let generation = generation.next();
        self.propose(DtlFacts { state, generation, targets, floor, previous }, out);
    }

    fn propose(&mut self, to: DtlFacts, out: &mut Vec<Effect>) {
        out.push(Effect::Propose { from: self.facts.clone(), to: to.clone() });
        self.proposing = Some(to);
    }

    fn send(&mut self, now: Now, out: &mut Vec<Effect>) {
        if !self.begun {
            return;
        }
        let reads = self.read_at.is_some_and(|at| now.since(at) <= READS_LINGER);
        let leased = matches!(self.read_right(), ReadRight::Dtl(_) | ReadRight::Both(_));
        let catching_up = self.facts.state == DtlState::CatchingUp;
        let (base, last) = (self.committed, self.last);
        let mut wanted = Vec::new();
        for (router, member) in &mut self.members {
            if member.failed.is_some() {
                continue;
            }
            let mut asks = Vec::new();
            match member.stage {
                Stage::Creating | Stage::Opening => {
                    if member.outstanding.is_empty() && member.again_at <= now {
                        asks.push(match member.stage {
                            Stage::Creating => ToTarget::Create { base },
                            Stage::Opening | Stage::Ready => ToTarget::Open,
                        });
                    }
                }
                Stage::Ready => {
                    fill(member, &self.sizes, (base, last), &mut asks);
                    let goal = if catching_up { member.goal } else { Lsn::ZERO };
                    let flush = self.flush_wanted.max(goal);
                    if member.synced < flush
                        && flush <= member.sent
                        && !member.has(|what| matches!(what, ToTarget::Sync { .. }))
                    {
                        asks.push(ToTarget::Sync { through: flush });
                    }
                    if member.trimmed < base && !member.has(|w| matches!(w, ToTarget::Trim { .. }))
                    {
                        asks.push(ToTarget::Trim { through: base });
                    }
                    let renew = self.name.patience.renew;
                    let due = member.renewed_at.is_none_or(|at| renew <= now.since(at));
                    if leased && reads && due {
                        member.renewed_at = Some(now);
                        asks.push(ToTarget::Renew);
                    }
                }
            }
            wanted.extend(asks.into_iter().map(|what| (*router, what)));
        }
        for (target, what) in wanted {
            let request = self.next_request;
            self.next_request += 1;
            if let Some(member) = self.members.get_mut(&target) {
                let asked = Outstanding { sent_at: now, what: what.clone() };
                member.outstanding.insert(request, asked);
            }
            out.push(Effect::Send { target, request, what });
        }
    }

    /// Old logs at routers that aren't targets any more, once the backend has what they hold.
    fn drop_stale(&mut self, out: &mut Vec<Effect>) {
        let (through, targets) = (self.committed, &self.facts.targets);
        self.stale.retain(|router, _| !targets.contains(router));
        while STALE_MAX < self.stale.len() {
            self.stale.pop_first();
        }
        let done = self.stale.extract_if(.., |_, needed| *needed <= through);
        out.extend(done.map(|(target, _)| Effect::Drop { target, through }));
    }

    /// What each target holds, for status: (router, in memory through, synced through, problem).
    #[must_use]
    pub fn progress_of_targets(&self) -> Vec<(RouterId, Lsn, Lsn, Option<String>)> {
        let members = self.members.iter();
        members.map(|(r, m)| (*r, m.written, m.synced, m.failed.clone())).collect()
    }
}

fn take_answer(member: &mut Member, asked: &Outstanding, answer: FromTarget, last: Lsn) {
    // P16: the right to read counts from the moment the request was sent, and making a log gives none.
    if !matches!(asked.what, ToTarget::Create { .. } | ToTarget::Trim { .. }) {
        let until = asked.sent_at.plus(Duration::from_millis(LEASE_MS));
        member.read_until = member.read_until.max(Some(until));
    }
    match (answer, &asked.what) {
        (FromTarget::Opened(held), _) => member.opened(&held, last),
        (FromTarget::Appended(through), _) => {
            member.written = member.written.max(through);
            member.sent = member.sent.max(through);
        }
        (FromTarget::Synced(through), _) => {
            member.synced = member.synced.max(through);
            member.written = member.written.max(through);
        }
        (FromTarget::Done, ToTarget::Trim { through }) => {
            for lsn in
                [&mut member.trimmed, &mut member.sent, &mut member.written, &mut member.synced]
            {
                *lsn = (*lsn).max(*through);
            }
        }
        (FromTarget::Done, _) => {}
    }
}

/// Appends of what the target hasn't been sent, while the window is open.
fn fill(
    member: &mut Member,
    sizes: &VecDeque<u32>,
    (base, last): (Lsn, Lsn),
    asks: &mut Vec<ToTarget>,
) {
    let mut under_way = member.appends();
    // Below the base nothing is kept: the target first learns by a trim that it needs none of it.
    while base <= member.sent && member.sent < last && under_way < APPENDS_MAX {
        let first = member.sent.next();
        let skip = model::usize_of(member.sent.0 - base.0);
        let mut bytes = 0;
        let mut count = 0;
        for size in sizes.iter().skip(skip).take(APPEND_RECORDS) {
            bytes += u64::from(*size);
            if APPEND_BYTES < bytes && 0 < count {
                break;
            }
            count += 1;
        }
        let through = Lsn(member.sent.0 + count);
        member.sent = through;
        asks.push(ToTarget::Append { first, last: through });
        under_way += 1;
    }
}
