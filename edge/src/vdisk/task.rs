//! The loop of one vDisk: requests, answers, connections and time in; calls and replies out.

use super::{Phase, QUEUE, Shared, Submission, Ticket, Vdisk};
use crate::attach::{Found, Seeker};
use crate::calls::Calls;
use crate::checksum;
use crate::nbd::{VDISK_UNITS, errno_of};
use crate::tokens::Tokens;
use bytes::Bytes;
use edge_core::nbd::Errno;
use edge_core::session::{
    Answer, AttachError, CallKey, Effect, Event, Failure, Op, Request, Session, Settings, classify,
};
use model::{AttachmentGeneration, Now};
use runtime::clock::boot_now;
use runtime::rpc::{Call, CallError, Connection};
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use wire::router::{Applied, Attached, Detach, Extents, Flushed, Location, ReadDone, code, method};
use wire::{Decode, Encode, WireError};

/// The last flush and the detach at the end; the router finds out by itself what it missed.
const CLOSING_PATIENCE: Duration = Duration::from_secs(4);
/// How often it is seen whether anybody still uses the vDisk.
const LOOK_AROUND: Duration = Duration::from_secs(1);
/// This much later than it wanted to the task runs only when the whole process slept.
const SLEPT: Duration = Duration::from_secs(2);
/// Requests taken in one go.
const BATCH: usize = 256;

/// What a vDisk's task begins with.
pub struct Spawn {
    pub seeker: Seeker,
    pub settings: Settings,
    pub tokens: Arc<Tokens>,
    pub detach_after: Duration,
    /// An earlier task of the same vDisk that must have ended first.
    pub after: Option<tokio::task::JoinHandle<()>>,
}

/// Starts the task.
pub fn spawn(begin: Spawn) -> (Vdisk, tokio::task::JoinHandle<()>) {
    let (requests, incoming) = mpsc::channel(QUEUE);
    let (stop, stopping) = mpsc::channel(4);
    let (phase, phase_seen) = watch::channel(Phase::Seeking);
    let shared = Arc::new(Shared {
        name: begin.seeker.request.name.clone(),
        trouble: Arc::clone(&begin.seeker.trouble),
        connections: std::sync::atomic::AtomicUsize::new(0),
        figures: std::sync::Mutex::default(),
        memory: tokio::sync::Semaphore::new(VDISK_UNITS),
    });
    let vdisk = Vdisk { shared: Arc::clone(&shared), requests, phase: phase_seen, stop };
    let task = Task {
        shared,
        session: Session::new(begin.settings.clone(), runtime::random::u64()),
        call_timeout: begin.settings.call_timeout,
        tokens: begin.tokens,
        detach_after: begin.detach_after,
        link: Link::Down,
        perform,
        calls: Calls::new(),
        phase,
        idle_since: boot_now(),
        awake_since: boot_now(),
        next_look: boot_now(),
        router: String::new(),
        closing: None,
        over: false,
    };
    let handle = tokio::spawn(async move {
        if let Some(before) = begin.after {
            // Its detach must be through before our attach, or we would end our own attachment.
            let _ = before.await;
        }
        task.run(begin.seeker, incoming, stopping).await;
    });
    (vdisk, handle)
}

type Seeking = Pin<Box<dyn Future<Output = (Seeker, Result<Found, WireError>)> + Send>>;
type Closed = Pin<Box<dyn Future<Output = ()> + Send>>;
type CallDone = (CallKey, Result<Answer, Failure>);
/// Makes a call; a field, as its future's type has no name.
type Perform<F> = fn(Connection, Duration, CallKey, Request) -> F;

enum Link {
    /// Only for a moment, or when it is over.
    Down,
    Seeking(Seeking),
    Up {
        connection: Connection,
        closed: Closed,
        seeker: Box<Seeker>,
    },
}

/// The last steps: who waits for them, and until when they may take.
struct Closing {
    waiting: Vec<oneshot::Sender<()>>,
    until: Now,
    flushed: bool,
}

struct Task<F> {
    shared: Arc<Shared>,
    session: Session<Ticket>,
    call_timeout: Duration,
    tokens: Arc<Tokens>,
    detach_after: Duration,
    link: Link,
    perform: Perform<F>,
    calls: Calls<F>,
    phase: watch::Sender<Phase>,
    idle_since: Now,
    /// What wasn't served before this isn't the router's fault.
    awake_since: Now,
    next_look: Now,
    router: String,
    closing: Option<Closing>,
    over: bool,
}

impl<F: Future<Output = CallDone>> Task<F> {
    async fn run(
        mut self,
        seeker: Seeker,
        mut incoming: mpsc::Receiver<Submission>,
        mut stopping: mpsc::Receiver<oneshot::Sender<()>>,
    ) {
        self.link = Link::Seeking(self.first_seek(seeker));
        let mut batch = Vec::with_capacity(BATCH);
        let mut done = Vec::with_capacity(BATCH);
        let timer = tokio::time::sleep(Duration::ZERO);
        tokio::pin!(timer);
        let mut armed = None;
        while !self.over {
            self.act();
            if self.over {
                break;
            }
            if self.closing.is_some() {
                // Who comes from now on finds it over and begins anew.
                incoming.close();
            }
            let wake = self.next_wake();
            if armed != Some(wake) {
                armed = Some(wake);
                timer.as_mut().reset(Instant::now() + wake.since(boot_now()));
            }
            tokio::select! {
                biased;
                () = self.calls.some(&mut done) => {
                    let now = boot_now();
                    for (key, result) in done.drain(..) {
                        self.session.answered(now, key, result);
                    }
                }
                linked = self.link.changed() => self.link_changed(linked),
                Some(asks) = stopping.recv() => self.begin_closing(Some(asks)),
                count = incoming.recv_many(&mut batch, BATCH), if self.closing.is_none() => {
                    let now = boot_now();
                    for Submission { op, ticket } in batch.drain(..) {
                        self.session.submit(now, op, ticket);
                    }
                    if count == 0 {
                        self.begin_closing(None);
                    }
                }
                () = &mut timer => {
                    armed = None;
                    self.tick();
                }
            }
            if wake.plus(SLEPT) < boot_now() {
                self.awake_since = boot_now();
            }
        }
        self.end(incoming).await;
    }

    fn first_seek(&self, seeker: Seeker) -> Seeking {
        let former = self.tokens.get(&self.shared.name);
        Box::pin(async move {
            let Some(former) = former else { return seeker.seek(None).await };
            match seeker.end_former_life(former).await {
                (seeker, Ok(())) => seeker.seek(None).await,
                (seeker, Err(error)) => (seeker, Err(error)),
            }
        })
    }

    /// Carries out what the session wants.
    fn act(&mut self) {
        let now = boot_now();
        let mut relink = None;
        for effect in self.session.effects(now) {
            match effect {
                Effect::Call { key, request } => {
                    let Link::Up { connection, .. } = &self.link else { continue };
                    let connection = connection.clone();
                    self.calls.push((self.perform)(connection, self.call_timeout, key, request));
                }
                Effect::Reply { ticket: Ticket::Nbd { to, mut request }, result } => {
                    request.result = result.map_err(errno_of);
                    // Full can't be: the channel has room for all that its connection may ask. Closed: nobody waits.
                    let _ = to.try_send(request);
                }
                Effect::Reply { ticket: Ticket::Closing, result } => {
                    if let Some(closing) = &mut self.closing {
                        closing.flushed = result.is_ok();
                        closing.until = now;
                    }
                }
                Effect::Relink { to, why } => relink = Some((to, why)),
                Effect::Event(event) => tell(&self.shared.name, &event),
            }
        }
        if let Some((to, why)) = relink {
            self.relink(to, why);
        }
        self.publish();
        if self.session.is_failed() {
            self.over = true;
        }
        if self.closing.as_ref().is_some_and(|closing| closing.until <= now) {
            self.over = true;
        }
    }

    fn relink(&mut self, to: Option<Box<Location>>, why: &'static str) {
        if let Link::Up { mut seeker, .. } = std::mem::replace(&mut self.link, Link::Down) {
            tracing::info!(vdisk = %self.shared.name, router = %self.router, why, "looking for the owner");
            // The calls hold the connection: with them it is closed.
            self.calls.clear();
            seeker.request.reclaim = self.session.reclaim();
            seeker.request.take_over = false;
            let waiting = self.session.waiting_since().unwrap_or_else(boot_now);
            seeker.missed_since = waiting.max(self.awake_since);
            seeker.lost = if to.is_none() { self.session.epoch() } else { None };
            if to.is_none() {
                seeker.route.failed(&self.router);
            }
            self.link = Link::Seeking(Box::pin(seeker.seek(to)));
        }
    }

    fn link_changed(&mut self, change: LinkChange) {
        match change {
            LinkChange::Closed => {
                self.session.unlinked();
                self.relink(None, "the connection was closed");
            }
            LinkChange::Found(found) => {
                let (seeker, result) = *found;
                match result {
                    Ok(found) => self.found(seeker, found),
                    Err(error) => self.refused(seeker, error),
                }
            }
        }
    }

    fn found(&mut self, seeker: Seeker, found: Found) {
        let Found { connection, attached, address } = found;
        let first = self.session.reclaim().is_none();
        match self.session.attached(boot_now(), &attached) {
            Ok(()) => {}
            Err(error @ AttachError::StaleEpoch) => {
                tracing::warn!(vdisk = %self.shared.name, %address, %error, "passing it by");
                self.link = Link::Seeking(Box::pin(seeker.seek(None)));
                return;
            }
            Err(AttachError::AnotherVdisk | AttachError::Fenced) => return,
        }
        if first && let Err(error) = self.tokens.keep(&self.shared.name, attached.generation) {
            // Going on would make a restarted edge a stranger to its own vDisk; that is better than no service.
            tracing::error!(vdisk = %self.shared.name, %error, "can't keep the attachment's token");
        }
        let (name, epoch) = (&self.shared.name, attached.epoch);
        tracing::info!(vdisk = %name, router = %address, %epoch, generation = %attached.generation, "attached");
        self.router = address;
        let watched = connection.clone();
        let closed = Box::pin(async move { watched.closed().await });
        self.link = Link::Up { connection, closed, seeker: Box::new(seeker) };
        let Attached { vdisk, size_bytes: size, .. } = attached;
        self.phase.send_replace(Phase::Attached { vdisk, size });
    }

    fn refused(&mut self, seeker: Seeker, error: WireError) {
        if self.session.reclaim().is_none() {
            self.phase.send_replace(Phase::Refused(error));
            self.over = true;
            return;
        }
        match error.code {
            code::NO_VDISK => self.session.fail("the vDisk was deleted"),
            code::ATTACHMENT_FENCED | code::ATTACHED_ELSEWHERE => {
                self.session.fail("another attachment took over");
            }
            _ => {
                tracing::warn!(vdisk = %self.shared.name, %error, "refused; trying again");
                self.link = Link::Seeking(Box::pin(seeker.seek(None)));
            }
        }
    }

    fn next_wake(&self) -> Now {
        let closing = self.closing.as_ref().map(|closing| closing.until);
        let session = self.session.next_wake();
        session.into_iter().chain(closing).fold(self.next_look, std::cmp::min)
    }

    fn tick(&mut self) {
        let now = boot_now();
        self.session.tick(now);
        if now < self.next_look {
            return;
        }
        self.next_look = now.plus(LOOK_AROUND);
        let waiting = self.session.waiting_since().map_or(Duration::ZERO, |since| now.since(since));
        self.shared.figures.lock().unwrap_or_else(PoisonError::into_inner).waiting = waiting;
        let used = self.shared.connections.load(Ordering::Relaxed) > 0;
        // Letting go of what is unflushed would lose what was acknowledged (L1); without a router, the attachment would
        // stay behind, and its owner wait for our replay (P6).
        let can_let_go = self.session.is_live() || self.session.reclaim().is_none();
        if used || !self.session.is_quiet() || !can_let_go {
            self.idle_since = now;
        } else if now.since(self.idle_since) >= self.detach_after {
            self.begin_closing(None);
        }
    }

    fn begin_closing(&mut self, asks: Option<oneshot::Sender<()>>) {
        let closing = self.closing.get_or_insert_with(|| {
            let now = boot_now();
            // Without a router and with nothing to lose there is nothing to wait for.
            let wait = self.session.is_live() || !self.session.is_quiet();
            let patience = if wait { CLOSING_PATIENCE } else { Duration::ZERO };
            self.session.submit(now, Op::Flush, Ticket::Closing);
            Closing { waiting: Vec::new(), until: now.plus(patience), flushed: false }
        });
        closing.waiting.extend(asks);
    }

    fn publish(&self) {
        let mut figures = self.shared.figures.lock().unwrap_or_else(PoisonError::into_inner);
        let router = if matches!(self.link, Link::Up { .. }) { self.router.as_str() } else { "" };
        // Only on a change: this runs once per wake.
        if figures.router != router {
            router.clone_into(&mut figures.router);
        }
        figures.stats = self.session.stats();
        figures.epoch = self.session.epoch();
    }

    /// Refuses what still comes, and ends the attachment where that can be done.
    async fn end(mut self, mut incoming: mpsc::Receiver<Submission>) {
        incoming.close();
        let flushed = self.closing.as_ref().is_some_and(|closing| closing.flushed);
        let why =
            if self.session.is_failed() { "its attachment is over" } else { "it was detached" };
        self.session.fail("the edge lets go of the vDisk");
        self.act();
        while let Ok(Submission { ticket, .. }) = incoming.try_recv() {
            if let Ticket::Nbd { to, mut request } = ticket {
                request.result = Err(Errno::Shutdown);
                let _ = to.try_send(request);
            }
        }
        let phase = self.phase.borrow().clone();
        if let Phase::Attached { vdisk, .. } = phase
            && let Link::Up { connection, .. } = std::mem::replace(&mut self.link, Link::Down)
            && let Some(generation) = self.session.reclaim()
            && flushed
        {
            let detach = Detach { vdisk, generation };
            let call = Call::within(CLOSING_PATIENCE);
            match connection.call::<_, ()>(method::DETACH, &detach, call).await {
                Ok(_) => self.let_go(generation),
                Err(error) => {
                    tracing::warn!(vdisk = %self.shared.name, %error, "not detached: the token is kept");
                }
            }
        }
        if !matches!(&*self.phase.borrow(), Phase::Refused(_)) {
            self.phase.send_replace(Phase::Over(why.to_owned()));
        }
        for waiting in self.closing.into_iter().flat_map(|closing| closing.waiting) {
            let _ = waiting.send(());
        }
    }

    fn let_go(&self, generation: AttachmentGeneration) {
        tracing::info!(vdisk = %self.shared.name, %generation, "detached");
        if let Err(error) = self.tokens.forget(&self.shared.name) {
            tracing::warn!(vdisk = %self.shared.name, %error, "can't forget the attachment's token");
        }
    }
}

enum LinkChange {
    Closed,
    Found(Box<(Seeker, Result<Found, WireError>)>),
}

impl Link {
    /// Waits until something happens to it.
    async fn changed(&mut self) -> LinkChange {
        match self {
            Self::Down => std::future::pending().await,
            Self::Seeking(seeking) => LinkChange::Found(Box::new(seeking.await)),
            Self::Up { closed, .. } => {
                closed.await;
                LinkChange::Closed
            }
        }
    }
}

fn tell(vdisk: &str, event: &Event) {
    match event {
        Event::Recovered { replayed } => {
            tracing::info!(vdisk, replayed, "served again");
        }
        Event::ReplayRefused { seq, range, why } => {
            tracing::error!(vdisk, %seq, ?range, %why, "an acknowledged write can't be replayed: its data are lost");
        }
        Event::Failed { why } => tracing::error!(vdisk, why, "every request fails from now on"),
    }
}

/// One call to the router, as the session's terms.
async fn perform(
    connection: Connection,
    timeout: Duration,
    key: CallKey,
    request: Request,
) -> CallDone {
    let call = Caller { connection: &connection, timeout };
    let result = match &request {
        Request::Read(read) => match call.ask(method::READ, read, None).await {
            Ok((ReadDone { checksums }, data)) => {
                if checksum::matches(read.offset, &data, &checksums) {
                    Ok(Answer::Data(data))
                } else {
                    let offset = read.offset;
                    tracing::error!(offset, len = read.len, "data of a read fail their checksum");
                    Err(Failure::Damaged)
                }
            }
            Err(failure) => Err(failure),
        },
        Request::Write(write, data) => {
            call.ask(method::WRITE, write, Some(data)).await.map(|(applied, _)| position(&applied))
        }
        Request::Unmap(unmap) => {
            call.ask(method::UNMAP, unmap, None).await.map(|(applied, _)| position(&applied))
        }
        Request::Flush(flush) => {
            let answer = call.ask(method::FLUSH, flush, None).await;
            answer.map(|(Flushed { epoch, lsn }, _)| Answer::Flushed { epoch, lsn })
        }
        Request::BlockStatus(status) => {
            let answer = call.ask(method::BLOCK_STATUS, status, None).await;
            answer.map(|(Extents { extents }, _)| Answer::Extents(extents))
        }
        Request::ReplayComplete(complete) => {
            let answer = call.ask(method::REPLAY_COMPLETE, complete, None).await;
            answer.map(|((), _)| Answer::Done)
        }
    };
    (key, result)
}

const fn position(applied: &Applied) -> Answer {
    Answer::Applied { epoch: applied.epoch, lsn: applied.lsn }
}

struct Caller<'a> {
    connection: &'a Connection,
    timeout: Duration,
}

impl Caller<'_> {
    async fn ask<Q: Encode, A: Decode>(
        &self,
        method: u16,
        question: &Q,
        payload: Option<&Bytes>,
    ) -> Result<(A, Bytes), Failure> {
        let payload = payload.into_iter().cloned().collect();
        let call = Call { payload, timeout: self.timeout };
        match self.connection.call(method, question, call).await {
            Ok(answer) => Ok(answer),
            Err(CallError::Refused(error)) => {
                let failure = classify(&error);
                tracing::debug!(method, %error, ?failure, "the router refuses");
                Err(failure)
            }
            Err(error) => {
                tracing::debug!(method, %error, "a call was lost");
                Err(Failure::Lost)
            }
        }
    }
}
