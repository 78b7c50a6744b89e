//! One vDisk attachment: what is sent to its router, when, and what is kept until it is safe.
//!
//! Requests come in by [`Session::submit`], answers of the router by [`Session::answered`], cuts and new connections by
//! [`Session::unlinked`] and [`Session::attached`]; what to do comes out of [`Session::effects`].
//!
//! ```text
//!            attached            all replayed, REPLAY_COMPLETE answered
//!   Down ───────────────▶ Replaying ───────────────────▶ Live
//!    ▲                        │                           │
//!    └──── unlinked ──────────┴───────────────────────────┘      any ──▶ Failed (fenced, deleted)
//! ```
//!
//! **Order.** A write or unmap gets the attachment's next sequence number when it is first sent, and is sent only when
//! no earlier one that it overlaps is still unapplied. So overlapping changes are applied in the order of their
//! numbers whatever fails in between, and replaying in the order of numbers is replaying overlapping changes in the
//! order in which they were applied (P3; LSN order among acknowledged ones, then the unacknowledged). Replay keeps the
//! order of numbers among all changes, so that what a crash in the middle of it leaves is a prefix of what was written.
//!
//! **Safety.** Every change stays in the [`log`] until a flush acknowledgement covers its position (P2), or it was
//! itself acknowledged as durable, or acknowledged to one of several edges that share the vDisk (P5: two routers have it). At a new owner or incarnation what isn't in the answered set of applied sequences is
//! sent again before anything else, then the end of replay is declared, and only then reads and new requests go (P6).
//! Nothing in that set is ever sent again, so nothing is applied twice (P3).
//!
//! **Bounds (L8).** The log is bounded in bytes and entries: at half of it a flush is issued, at the whole of it new
//! changes wait. Calls in flight and the spread of unapplied numbers stay below what a router must remember.

mod answers;
mod link;
mod log;
mod send;
#[cfg(test)]
mod tests;
mod tries;
mod usage;

use crate::slab::{Key, Slab};
use bytes::Bytes;
use log::ReplayLog;
use model::{AttachmentGeneration, ByteRange, Epoch, Incarnation, Lsn, Now, RequestSeq, VdiskId};
use std::collections::VecDeque;
use std::time::Duration;
use tries::Tries;
use wire::router::{
    BlockStatus, Durability, Extent, Flush, IO_MAX, Location, Read, ReplayComplete, Unmap,
    UnmapKind, Write,
};

pub use usage::{Stats, Usage};

/// Names a call towards the router until it is answered.
pub type CallKey = Key;
type OpKey = Key;

/// Flushes under way at once; later ones share the next.
const FLUSHES_MAX: usize = 4;
/// How often deadlines are looked at.
const TICK: Duration = Duration::from_secs(1);

/// The bounds of a session.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Bytes of changes kept until flushed.
    pub log_bytes: u64,
    /// Changes kept until flushed.
    pub log_entries: usize,
    /// A flush is issued when changes were acknowledged this long ago and not flushed since.
    pub flush_after: Duration,
    /// After this a request is answered with an I/O error; `None` = never: a disk that hangs is better than one that lies.
    pub io_deadline: Option<Duration>,
    /// A call unanswered this long condemns its connection; so does a request that is answered with "later" for this long.
    pub call_timeout: Duration,
    /// How long a request is tried again that the backend can't serve now, from the first time that it says so.
    pub unreadable_patience: Duration,
    /// Other edges write too: what is acknowledged may be overwritten by them and is never sent again (P5).
    pub shared: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            log_bytes: 64 << 20,
            log_entries: 64 << 10,
            flush_after: Duration::from_secs(3),
            io_deadline: None,
            call_timeout: Duration::from_secs(60),
            unreadable_patience: Duration::from_secs(5),
            shared: false,
        }
    }
}

/// What a user asks. Ranges were checked against the size of the vDisk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    Read {
        offset: u64,
        len: u32,
    },
    /// `checksums`: CRC-32C of the part of `data` in each cluster touched.
    Write {
        offset: u64,
        data: Bytes,
        checksums: Vec<u32>,
        durability: Durability,
    },
    Unmap {
        offset: u64,
        len: u64,
        kind: UnmapKind,
        durability: Durability,
    },
    Flush,
    BlockStatus {
        offset: u64,
        len: u64,
        extents_max: u32,
    },
}

/// What a user gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Done,
    /// In order, without gaps.
    Data(Vec<Bytes>),
    Extents(Vec<Extent>),
}

/// Why a user gets an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IoError {
    #[error("I/O error")]
    Io,
    #[error("beyond the end of the vDisk")]
    OutOfRange,
    #[error("the vDisk is attached read-only")]
    ReadOnly,
    #[error("the request isn't possible")]
    Invalid,
}

/// A message to the router.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    Read(Read),
    Write(Write, Bytes),
    Unmap(Unmap),
    Flush(Flush),
    BlockStatus(BlockStatus),
    ReplayComplete(ReplayComplete),
}

/// What a router answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    Applied { epoch: Epoch, lsn: Lsn },
    Flushed { epoch: Epoch, lsn: Lsn },
    Data(Bytes),
    Extents(Vec<Extent>),
    Done,
}

/// Why a call brought no answer, by what can be done about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// The connection is gone or going; what became of the call isn't known.
    Lost,
    /// Surely not done; may work later.
    Retry,
    /// Surely not done; another router serves the vDisk (`None`: it has to be found).
    Elsewhere(Option<Box<Location>>),
    /// Another attachment took over: this one is over for good (P4).
    Fenced,
    /// The backend can't give the data now (L5).
    Unreadable,
    /// The data were damaged on the way.
    Damaged,
    /// Asking again gives the same answer.
    Refused(IoError),
}

/// Something for the driver to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect<T> {
    /// Send on the present connection, in the order of effects.
    Call {
        key: CallKey,
        request: Request,
    },
    Reply {
        ticket: T,
        result: Result<Outcome, IoError>,
    },
    /// Drop the connection and find the owner, there if it is known. [`Session::unlinked`] isn't needed.
    Relink {
        to: Option<Box<Location>>,
        why: &'static str,
    },
    /// For the operator (L9).
    Event(Event),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The vDisk is served again: this many changes were replayed.
    Recovered { replayed: u64 },
    /// An acknowledged change can't be replayed: its data are lost.
    ReplayRefused { seq: RequestSeq, range: Option<ByteRange>, why: IoError },
    /// Every request from now on fails.
    Failed { why: &'static str },
}

/// Why an answer to ATTACH isn't accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AttachError {
    #[error("the router is at an epoch that is over")]
    StaleEpoch,
    #[error("the vDisk of this name isn't the one that was attached: it was deleted and made anew")]
    AnotherVdisk,
    #[error("the attachment was taken over by another one")]
    Fenced,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Link {
    Down,
    Replaying,
    Live,
    Failed(IoError),
}

/// Who serves, and in which life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Home {
    epoch: Epoch,
    incarnation: Incarnation,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Attachment {
    vdisk: VdiskId,
    generation: AttachmentGeneration,
}

/// A user's request, until it is answered.
#[derive(Debug)]
struct OpState<T> {
    ticket: T,
    since: Now,
    bytes: u64,
    pieces_left: usize,
    error: Option<IoError>,
    /// Of a read, by piece.
    parts: Vec<Bytes>,
    extents: Vec<Extent>,
    kind: OpKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OpKind {
    Read,
    Write,
    Unmap,
    Flush,
    Status,
}

/// A change that has no number yet.
#[derive(Debug)]
struct NewChange {
    op: OpKey,
    change: log::Change,
    durability: Durability,
}

/// A question that changes nothing and may be asked again any time.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Ask {
    Read { op: OpKey, piece: usize, offset: u64, len: u32 },
    Status { op: OpKey, offset: u64, len: u64, extents_max: u32 },
}

/// A call that is under way.
#[derive(Debug)]
struct Call {
    sent: Now,
    what: CallKind,
}

#[derive(Debug)]
enum CallKind {
    Change(RequestSeq),
    Ask {
        ask: Ask,
        tries: Tries,
    },
    /// `floor`: highest position acknowledged before it was sent, which it must cover.
    Flush {
        waiters: Vec<OpKey>,
        floor: Lsn,
    },
    ReplayComplete,
}

#[derive(Debug)]
enum Again {
    Change(RequestSeq),
    Ask { ask: Ask, tries: Tries },
    Flush(Vec<OpKey>),
    ReplayComplete,
}

#[derive(Debug)]
pub struct Session<T> {
    settings: Settings,
    chance: u64,
    link: Link,
    attachment: Option<Attachment>,
    home: Option<Home>,
    next_seq: RequestSeq,
    log: ReplayLog,
    ops: Slab<OpState<T>>,
    calls: Slab<Call>,
    new_changes: VecDeque<NewChange>,
    asks: VecDeque<(Ask, Tries)>,
    again: Vec<(Now, Again)>,
    flush_waiters: Vec<OpKey>,
    flushes: usize,
    /// Highest position acknowledged at this home.
    acknowledged: Lsn,
    /// When the oldest change that no flush covers was acknowledged.
    unflushed_since: Option<Now>,
    replay_complete_sent: bool,
    /// Since when this router puts off flushes, or the end of replay.
    put_off: Option<Now>,
    next_tick: Now,
    /// When something happened last.
    now: Now,
    replayed_now: u64,
    stats: Stats,
    effects: VecDeque<Effect<T>>,
}

impl<T> Session<T> {
    /// `chance`: any random number, for jitter.
    #[must_use]
    pub const fn new(settings: Settings, chance: u64) -> Self {
        Self {
            settings,
            chance: chance | 1,
            link: Link::Down,
            attachment: None,
            home: None,
            next_seq: RequestSeq(1),
            log: ReplayLog::new(),
            ops: Slab::new(),
            calls: Slab::new(),
            new_changes: VecDeque::new(),
            asks: VecDeque::new(),
            again: Vec::new(),
            flush_waiters: Vec::new(),
            flushes: 0,
            acknowledged: Lsn::ZERO,
            unflushed_since: None,
            replay_complete_sent: false,
            put_off: None,
            next_tick: Now(Duration::ZERO),
            now: Now(Duration::ZERO),
            replayed_now: 0,
            stats: Stats::NONE,
            effects: VecDeque::new(),
        }
    }

    /// A request of the user; answered once by [`Effect::Reply`] with this ticket.
    ///
    /// # Panics
    /// When the checksums of a write aren't one per cluster touched.
    pub fn submit(&mut self, now: Now, op: Op, ticket: T) {
        self.now = now;
        if let Link::Failed(error) = self.link {
            self.effects.push_back(Effect::Reply { ticket, result: Err(error) });
            return;
        }
        match op {
            Op::Flush => {
                let key = self.open(ticket, (OpKind::Flush, 1), 0);
                self.flush_waiters.push(key);
            }
            Op::Read { offset, len } => {
                let pieces: Vec<(u64, u64)> = pieces(offset, len.into()).collect();
                let key = self.open(ticket, (OpKind::Read, pieces.len()), len.into());
                for (piece, (offset, len)) in pieces.into_iter().enumerate() {
                    let len = model::u32_of(model::usize_of(len));
                    let tries = Tries::default();
                    self.asks.push_back((Ask::Read { op: key, piece, offset, len }, tries));
                }
            }
            Op::BlockStatus { offset, len, extents_max } => {
                let key = self.open(ticket, (OpKind::Status, 1), 0);
                let tries = Tries::default();
                self.asks.push_back((Ask::Status { op: key, offset, len, extents_max }, tries));
            }
            Op::Unmap { offset, len, kind, durability } => {
                let op = self.open(ticket, (OpKind::Unmap, 1), len);
                let change = log::Change::Unmap { offset, len, kind };
                self.new_changes.push_back(NewChange { op, change, durability });
            }
            Op::Write { offset, data, checksums, durability } => {
                self.submit_write(ticket, (offset, data, checksums), durability);
            }
        }
    }

    fn submit_write(
        &mut self,
        ticket: T,
        (offset, mut data, checksums): (u64, Bytes, Vec<u32>),
        durability: Durability,
    ) {
        let range = ByteRange::new(offset, model::u64_of(data.len())).expect("checked at the door");
        let clusters = model::usize_of(range.clusters_touched().count());
        assert_eq!(clusters, checksums.len(), "one checksum per cluster touched");
        if range.len() <= u64::from(IO_MAX) {
            let op = self.open(ticket, (OpKind::Write, 1), range.len());
            let change = log::Change::Write { offset, data, checksums };
            self.new_changes.push_back(NewChange { op, change, durability });
            return;
        }
        let count = pieces(offset, range.len()).count();
        let op = self.open(ticket, (OpKind::Write, count), range.len());
        let mut rest = &checksums[..];
        for (offset, len) in pieces(offset, range.len()) {
            let part = ByteRange::new(offset, len).expect("inside the whole");
            let (now, later) = rest.split_at(model::usize_of(part.clusters_touched().count()));
            rest = later;
            let data = data.split_to(model::usize_of(len));
            let change = log::Change::Write { offset, data, checksums: now.to_vec() };
            self.new_changes.push_back(NewChange { op, change, durability });
        }
    }

    fn open(&mut self, ticket: T, (kind, pieces): (OpKind, usize), bytes: u64) -> OpKey {
        let parts = if kind == OpKind::Read { vec![Bytes::new(); pieces] } else { Vec::new() };
        self.ops.insert(OpState {
            ticket,
            since: self.now,
            bytes,
            pieces_left: pieces,
            error: None,
            parts,
            extents: Vec::new(),
            kind,
        })
    }

    /// One piece of a request is finished; the last one answers it. Nothing happens when it was answered already.
    fn piece_done(&mut self, op: OpKey, result: Result<(), IoError>) {
        let Some(state) = self.ops.get_mut(op) else { return };
        if let Err(error) = result {
            state.error.get_or_insert(error);
        }
        state.pieces_left -= 1;
        if state.pieces_left == 0 {
            let mut state = self.ops.remove(op).expect("just found");
            let result = match (state.error, state.kind) {
                (Some(error), _) => Err(error),
                (None, OpKind::Read) => Ok(Outcome::Data(std::mem::take(&mut state.parts))),
                (None, OpKind::Status) => Ok(Outcome::Extents(std::mem::take(&mut state.extents))),
                (None, OpKind::Write | OpKind::Unmap | OpKind::Flush) => Ok(Outcome::Done),
            };
            self.reply(state, result);
        }
    }

    fn reply(&mut self, op: OpState<T>, result: Result<Outcome, IoError>) {
        self.count(&op);
        self.stats.errors += u64::from(result.is_err());
        self.effects.push_back(Effect::Reply { ticket: op.ticket, result });
    }

    /// Does what the present state allows, then hands out everything to do, in order.
    pub fn effects(&mut self, now: Now) -> impl Iterator<Item = Effect<T>> {
        self.pump(now);
        self.effects.drain(..)
    }

    /// When [`Self::tick`] is wanted at the latest; `None` when nothing is under way.
    #[must_use]
    pub fn next_wake(&self) -> Option<Now> {
        let busy = self.ops.len() > 0 || self.calls.len() > 0 || self.unflushed_since.is_some();
        let tick = busy.then_some(self.next_tick);
        self.again.iter().map(|(due, _)| *due).chain(tick).min()
    }

    /// Time passes: deadlines, retries, background flushes.
    pub fn tick(&mut self, now: Now) {
        self.now = now;
        if now < self.next_tick {
            return;
        }
        self.next_tick = now.plus(TICK);
        let late = |since: Now| now.since(since) >= self.settings.call_timeout;
        if self.calls.iter().any(|(_, call)| late(call.sent)) {
            self.relink(None, "a call stayed unanswered too long");
        } else if self.put_off_since().is_some_and(late) {
            // As useless as one that is silent: whether another does better is asked there (P19).
            self.relink(None, "the router has put requests off for too long");
        }
        if let Some(deadline) = self.settings.io_deadline {
            let late = |op: &OpState<T>| now.since(op.since) >= deadline;
            let expired: Vec<OpKey> =
                self.ops.iter().filter(|(_, op)| late(op)).map(|(key, _)| key).collect();
            for key in expired {
                // What was sent may still take effect: its log entry stays, in its place in the order.
                let state = self.ops.remove(key).expect("just found");
                self.reply(state, Err(IoError::Io));
            }
        }
    }

    /// Of the owner that it was attached to last.
    #[must_use]
    pub fn epoch(&self) -> Option<Epoch> {
        self.home.map(|home| home.epoch)
    }

    /// Since when the oldest of the user's requests waits.
    #[must_use]
    pub fn waiting_since(&self) -> Option<Now> {
        self.ops.iter().map(|(_, op)| op.since).min()
    }

    /// The generation to reclaim at the next ATTACH (P4).
    #[must_use]
    pub fn reclaim(&self) -> Option<AttachmentGeneration> {
        self.attachment.map(|attachment| attachment.generation)
    }

    /// True when nothing is owed: no request unanswered, no change unflushed.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.ops.len() == 0 && self.log.is_empty()
    }

    #[must_use]
    pub const fn is_failed(&self) -> bool {
        matches!(self.link, Link::Failed(_))
    }

    #[must_use]
    pub const fn is_live(&self) -> bool {
        matches!(self.link, Link::Live)
    }

    /// A random number for jitter (xorshift; its quality doesn't matter).
    const fn random(&mut self) -> u64 {
        self.chance ^= self.chance << 13;
        self.chance ^= self.chance >> 7;
        self.chance ^= self.chance << 17;
        self.chance
    }

    /// Pause before a repeated try: 10 ms doubling to about a second, jittered.
    fn pause(&mut self, tries: u32) -> Duration {
        let full = 10_000_u64 << tries.min(6);
        Duration::from_micros(full / 2 + self.random() % (full / 2 + 1))
    }
}

/// Cuts a range into requests of at most [`IO_MAX`], at cluster borders.
fn pieces(offset: u64, len: u64) -> impl Iterator<Item = (u64, u64)> {
    let end = offset + len;
    let mut at = offset;
    std::iter::from_fn(move || {
        if at >= end {
            return None;
        }
        let border = (at + u64::from(IO_MAX)) / model::CLUSTER_SIZE * model::CLUSTER_SIZE;
        let piece = (at, border.min(end) - at);
        at += piece.1;
        Some(piece)
    })
}

/// What a router's refusal means for a session.
#[must_use]
pub fn classify(error: &wire::WireError) -> Failure {
    use wire::ErrorClass;
    use wire::router::code;
    match error.code {
        code::NOT_OWNER => {
            let location = wire::decode_all::<Location>(error.detail.clone()).ok();
            return Failure::Elsewhere(location.map(Box::new));
        }
        code::NOT_ATTACHED => return Failure::Elsewhere(None),
        code::ATTACHMENT_FENCED | code::ATTACHED_ELSEWHERE => return Failure::Fenced,
        code::BAD_CHECKSUM => return Failure::Damaged,
        code::UNREADABLE => return Failure::Unreadable,
        code::OUT_OF_RANGE => return Failure::Refused(IoError::OutOfRange),
        code::READ_ONLY => return Failure::Refused(IoError::ReadOnly),
        code::INVALID => return Failure::Refused(IoError::Invalid),
        // The vDisk waits for an operator; its edge waits with it (L7).
        code::GAP => return Failure::Retry,
        _ => {}
    }
    match error.class {
        // A fatal router may be replaced; hanging is better than lying.
        ErrorClass::Retry | ErrorClass::Reconstruct | ErrorClass::Fatal => Failure::Retry,
        ErrorClass::Redirect => Failure::Elsewhere(None),
        ErrorClass::Refuse => Failure::Refused(IoError::Io),
    }
}
