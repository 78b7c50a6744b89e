//! The calling side. A [`Connection`] is one socket with many calls under way; a [`Client`] makes one when needed and
//! a new one after it broke, never hiding that a call failed: whether to try again is the caller's to know.
//!
//! **Deadlines.** Calls have no timer each: the connection's task has one, set to the first of their deadlines or
//! earlier. Calls of one kind have the same timeout, so a new one seldom sets it anew.

use super::connection::{ConnectionError, FrameReader, OutFrame, greet, write_frames};
use crate::endpoint::Endpoint;
use crate::net::connect;
use crate::peer::{Identity, Peer};
use bytes::Bytes;
use std::collections::HashMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::{Instant, Sleep};
use wire::frame::Frame;
use wire::{Decode, Encode, ErrorClass, FrameKind, FrameMeta, Role, WireError};

/// How patient a client is.
#[derive(Debug, Clone)]
pub struct ClientOptions {
    pub connect_timeout: Duration,
    /// With calls under way and nothing heard for this long, a ping is sent.
    pub ping_after: Duration,
    /// With calls under way and nothing heard for this long, the connection is given up.
    pub silence_max: Duration,
    /// Calls under way; further ones wait.
    pub calls_max: usize,
    /// After a failed connect, calls fail at once for this long, doubling up to `backoff_max`.
    pub backoff_min: Duration,
    pub backoff_max: Duration,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(3),
            ping_after: Duration::from_secs(3),
            silence_max: Duration::from_secs(15),
            calls_max: 1024,
            backoff_min: Duration::from_millis(50),
            backoff_max: Duration::from_secs(2),
        }
    }
}

/// No call waits for longer, whatever it says.
const LONGEST: Duration = Duration::from_secs(30 * 24 * 3600);
/// An idle connection is pinged this often, so that the server knows us alive and we it.
const IDLE_PING: Duration = Duration::from_secs(30);

/// What goes along with a call.
#[derive(Debug, Clone)]
pub struct Call {
    /// In pieces, sent one after the other without being joined.
    pub payload: Vec<Bytes>,
    pub timeout: Duration,
}

impl Call {
    #[must_use]
    pub const fn within(timeout: Duration) -> Self {
        Self { payload: Vec::new(), timeout }
    }

    #[must_use]
    pub fn with_payload(payload: Bytes, timeout: Duration) -> Self {
        Self { payload: vec![payload], timeout }
    }
}

/// Why a call has no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CallError {
    /// It never left: no connection.
    #[error("can't reach {endpoint}: {problem}")]
    Unreachable { endpoint: Endpoint, problem: String },
    /// The connection broke while it was under way.
    #[error("the connection to {endpoint} was lost")]
    Closed { endpoint: Endpoint },
    #[error("{endpoint} didn't answer in time")]
    Timeout { endpoint: Endpoint },
    /// The peer answered no.
    #[error("{0}")]
    Refused(WireError),
    /// The answer isn't what the method gives, or the question is too long.
    #[error("{endpoint}: {problem}")]
    Protocol { endpoint: Endpoint, problem: String },
}

impl CallError {
    /// What the caller can do.
    #[must_use]
    pub const fn class(&self) -> ErrorClass {
        match self {
            Self::Unreachable { .. } | Self::Closed { .. } | Self::Timeout { .. } => {
                ErrorClass::Retry
            }
            Self::Refused(error) => error.class,
            Self::Protocol { .. } => ErrorClass::Fatal,
        }
    }

    /// It may have taken effect although no answer came.
    #[must_use]
    pub const fn outcome_unknown(&self) -> bool {
        match self {
            Self::Closed { .. } | Self::Timeout { .. } | Self::Protocol { .. } => true,
            Self::Unreachable { .. } | Self::Refused(_) => false,
        }
    }

    /// The peer's code, if it answered.
    #[must_use]
    pub const fn code(&self) -> Option<u16> {
        match self {
            Self::Refused(error) => Some(error.code),
            Self::Unreachable { .. }
            | Self::Closed { .. }
            | Self::Timeout { .. }
            | Self::Protocol { .. } => None,
        }
    }
}

/// Why a call that was sent brought no frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct TimedOut;

struct Waiting {
    answer: oneshot::Sender<Result<Frame, TimedOut>>,
    deadline: Instant,
}

#[derive(Default)]
struct Pending {
    calls: HashMap<u64, Waiting>,
    /// When deadlines are looked at next: no call's is earlier.
    look_at: Option<Instant>,
    closed: bool,
}

impl Pending {
    /// Tells those whose time is over.
    fn look(&mut self, now: Instant) {
        for (_, late) in self.calls.extract_if(|_, call| call.deadline <= now) {
            // The caller may have given up in this very moment.
            let _ = late.answer.send(Err(TimedOut));
        }
        self.look_at = self.calls.values().map(|call| call.deadline).min();
    }
}

struct Shared {
    endpoint: Endpoint,
    pending: Mutex<Pending>,
    /// Deadlines are to be looked at earlier than was thought.
    sooner: Notify,
    next_request: AtomicU64,
    closed: watch::Sender<bool>,
}

impl Shared {
    fn pending(&self) -> MutexGuard<'_, Pending> {
        // A panic while the lock is held leaves a map that is still a map.
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self) {
        let mut pending = self.pending();
        pending.closed = true;
        pending.calls.clear();
        drop(pending);
        self.closed.send_replace(true);
    }
}

/// Forgets a call whose future was dropped.
struct Forget(Arc<Shared>, u64);

impl Drop for Forget {
    fn drop(&mut self) {
        self.0.pending().calls.remove(&self.1);
    }
}

/// One live connection; clones share it, and it ends when the last is dropped.
#[derive(Clone)]
pub struct Connection {
    shared: Arc<Shared>,
    queue: mpsc::Sender<OutFrame>,
    peer: Arc<Peer>,
}

impl Connection {
    /// # Errors
    /// When the peer can't be reached, greets wrongly, or isn't of the expected role.
    pub async fn open(
        endpoint: &Endpoint,
        expected: Role,
        identity: &Identity,
        options: &ClientOptions,
    ) -> Result<Self, CallError> {
        let unreachable =
            |problem: String| CallError::Unreachable { endpoint: endpoint.clone(), problem };
        let attempt = async {
            let stream = connect(endpoint, expected, identity)
                .await
                .map_err(|error| unreachable(error.to_string()))?;
            greet(stream, identity).await.map_err(|error| unreachable(error.to_string()))
        };
        let (reader, write, peer) = tokio::time::timeout(options.connect_timeout, attempt)
            .await
            .map_err(|_| unreachable("no answer in time".into()))??;
        if peer.role != expected {
            return Err(unreachable(format!(
                "it is {} ({}), not a {expected}",
                peer.name, peer.role
            )));
        }
        let (queue, outgoing) = mpsc::channel(options.calls_max);
        let shared = Arc::new(Shared {
            endpoint: endpoint.clone(),
            pending: Mutex::default(),
            sooner: Notify::new(),
            next_request: AtomicU64::new(1),
            closed: watch::Sender::new(false),
        });
        let writer = tokio::spawn(write_frames(write, outgoing));
        tokio::spawn(run(Arc::clone(&shared), reader, writer, queue.downgrade(), options.clone()));
        Ok(Self { shared, queue, peer: Arc::new(peer) })
    }

    #[must_use]
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    #[must_use]
    pub fn endpoint(&self) -> &Endpoint {
        &self.shared.endpoint
    }

    #[must_use]
    pub fn is_closed(&self) -> bool {
        *self.shared.closed.borrow()
    }

    /// Returns when the connection is lost.
    pub async fn closed(&self) {
        let mut closed = self.shared.closed.subscribe();
        let _ = closed.wait_for(|closed| *closed).await;
    }

    /// # Errors
    /// See [`CallError`].
    pub async fn call<Q: Encode + ?Sized, A: Decode>(
        &self,
        method: u16,
        body: &Q,
        call: Call,
    ) -> Result<(A, Bytes), CallError> {
        self.begin(method, body, call)?.await
    }

    /// Queues the request before it returns, so that requests begun one after the other leave in that order; the future
    /// gives the answer.
    ///
    /// # Errors
    /// When it can't be queued; see [`CallError`].
    pub fn begin<Q: Encode + ?Sized, A: Decode>(
        &self,
        method: u16,
        body: &Q,
        call: Call,
    ) -> Result<impl Future<Output = Result<(A, Bytes), CallError>> + use<Q, A>, CallError> {
        let (request, answer) = self.send(method, body, call)?;
        let forget = Forget(Arc::clone(&self.shared), request);
        let connection = self.clone();
        Ok(async move {
            let _forget = forget;
            let endpoint = || connection.shared.endpoint.clone();
            let frame = match answer.await {
                Ok(Ok(frame)) => frame,
                Ok(Err(TimedOut)) => return Err(CallError::Timeout { endpoint: endpoint() }),
                Err(_) => return Err(CallError::Closed { endpoint: endpoint() }),
            };
            let protocol = |error: wire::DecodeError| CallError::Protocol {
                endpoint: endpoint(),
                problem: format!("the answer to method {method} can't be read: {error}"),
            };
            if frame.header.kind == FrameKind::Failure {
                return Err(CallError::Refused(wire::decode_all(frame.body).map_err(protocol)?));
            }
            Ok((wire::decode_all(frame.body).map_err(protocol)?, frame.payload))
        })
    }

    /// Queues the request now, so that calls leave in the order in which `send` ran.
    fn send<Q: Encode + ?Sized>(
        &self,
        method: u16,
        body: &Q,
        Call { payload, timeout }: Call,
    ) -> Result<(u64, oneshot::Receiver<Result<Frame, TimedOut>>), CallError> {
        let request = self.shared.next_request.fetch_add(1, Ordering::Relaxed);
        let deadline_ms = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX).max(1);
        let meta = FrameMeta { kind: FrameKind::Request, method, request, deadline_ms };
        let endpoint = || self.shared.endpoint.clone();
        let frame = OutFrame::new(meta, body, payload).map_err(|long| CallError::Protocol {
            endpoint: endpoint(),
            problem: format!("a request of {} bytes is longer than a frame", long.0),
        })?;
        let (answer, answered) = oneshot::channel();
        let mut pending = self.shared.pending();
        if pending.closed {
            return Err(CallError::Closed { endpoint: endpoint() });
        }
        match self.queue.try_send(frame) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(_)) => {
                let error = WireError::retry(
                    wire::error::code::BUSY,
                    "too many calls are waiting to be sent",
                );
                return Err(CallError::Refused(error));
            }
            Err(mpsc::error::TrySendError::Closed(_)) => {
                // Nothing more is sent here, whatever still comes: the next call needs another connection.
                self.shared.closed.send_replace(true);
                return Err(CallError::Closed { endpoint: endpoint() });
            }
        }
        let deadline = Instant::now() + timeout.min(LONGEST);
        pending.calls.insert(request, Waiting { answer, deadline });
        if pending.look_at.is_none_or(|at| deadline < at) {
            pending.look_at = Some(deadline);
            self.shared.sooner.notify_one();
        }
        Ok((request, answered))
    }
}

/// Closes, however its task ends: those who wait have no timers of their own.
struct Closing(Arc<Shared>);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// Reads answers, pings, and ends when the stream breaks or the last handle is dropped.
async fn run(
    shared: Arc<Shared>,
    mut reader: FrameReader,
    mut writer: tokio::task::JoinHandle<std::io::Result<()>>,
    queue: mpsc::WeakSender<OutFrame>,
    options: ClientOptions,
) {
    let _closing = Closing(Arc::clone(&shared));
    let mut heard = Instant::now();
    let mut pinged = heard;
    let mut tick = tokio::time::interval(options.ping_after);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let look = tokio::time::sleep(Duration::ZERO);
    tokio::pin!(look);
    let mut look_at = None;
    loop {
        tokio::select! {
            biased;
            // First, so that with many frames nothing else is asked for each; the runtime sees to it that others get a turn.
            frame = reader.next() => {
                let Ok(frame) = frame.inspect_err(|error| log_loss(&shared, error)) else { break };
                heard = Instant::now();
                let waiting = {
                    let mut pending = shared.pending();
                    let waiting = pending.calls.remove(&frame.header.request);
                    // Not only by the timer: a peer that never stops sending would keep it from its turn (L8).
                    if pending.look_at.is_some_and(|at| at <= heard) {
                        pending.look(heard);
                    }
                    waiting
                };
                if let Some(waiting) = waiting
                    && matches!(frame.header.kind, FrameKind::Response | FrameKind::Failure)
                {
                    // The caller may have given up in this very moment.
                    let _ = waiting.answer.send(Ok(frame));
                }
            }
            _ = &mut writer => break,
            () = shared.sooner.notified() => set(look.as_mut(), &mut look_at, shared.pending().look_at),
            () = &mut look, if look_at.is_some() => {
                let next = {
                    let mut pending = shared.pending();
                    pending.look(Instant::now());
                    pending.look_at
                };
                set(look.as_mut(), &mut look_at, next);
            }
            _ = tick.tick() => {
                let idle = shared.pending().calls.is_empty();
                let silence = heard.elapsed();
                if !idle && silence > options.silence_max && pinged > heard {
                    tracing::info!(endpoint = %shared.endpoint, "no answer to a ping, giving the connection up");
                    break;
                }
                if silence > (if idle { IDLE_PING } else { options.ping_after }) {
                    let Some(queue) = queue.upgrade() else { break };
                    if pinged <= heard {
                        pinged = Instant::now();
                    }
                    let _ = queue.try_send(OutFrame::empty(FrameKind::Ping, 0));
                }
            }
        }
    }
    writer.abort();
}

/// Sets the timer by which deadlines are looked at.
fn set(look: Pin<&mut Sleep>, set_to: &mut Option<Instant>, at: Option<Instant>) {
    if let Some(at) = at {
        look.reset(at);
    }
    *set_to = at;
}

fn log_loss(shared: &Shared, error: &ConnectionError) {
    tracing::debug!(endpoint = %shared.endpoint, %error, "connection lost");
}

enum Link {
    Down { retry_at: Instant, backoff: Duration, problem: String },
    Up(Connection),
}

struct ClientShared {
    endpoint: Endpoint,
    expected: Role,
    identity: Arc<Identity>,
    options: ClientOptions,
    link: tokio::sync::Mutex<Link>,
}

/// Calls one peer, over a connection that is made when needed. Clones share it.
#[derive(Clone)]
pub struct Client {
    shared: Arc<ClientShared>,
}

impl Client {
    #[must_use]
    pub fn new(
        endpoint: Endpoint,
        expected: Role,
        identity: Arc<Identity>,
        options: ClientOptions,
    ) -> Self {
        let link = Link::Down {
            retry_at: Instant::now(),
            backoff: Duration::ZERO,
            problem: String::new(),
        };
        let link = tokio::sync::Mutex::new(link);
        Self { shared: Arc::new(ClientShared { endpoint, expected, identity, options, link }) }
    }

    #[must_use]
    pub fn endpoint(&self) -> &Endpoint {
        &self.shared.endpoint
    }

    /// The live connection, or a new one.
    ///
    /// # Errors
    /// `Unreachable`, at once while backing off after a failure.
    pub async fn connection(&self) -> Result<Connection, CallError> {
        let ClientShared { endpoint, expected, identity, options, .. } = &*self.shared;
        // Held while connecting: who comes meanwhile shares the outcome instead of connecting too.
        let mut link = self.shared.link.lock().await;
        let backoff = match &*link {
            Link::Up(connection) if !connection.is_closed() => return Ok(connection.clone()),
            Link::Up(_) => Duration::ZERO,
            Link::Down { retry_at, problem, .. } if Instant::now() < *retry_at => {
                return Err(CallError::Unreachable {
                    endpoint: endpoint.clone(),
                    problem: problem.clone(),
                });
            }
            Link::Down { backoff, .. } => *backoff,
        };
        // Boxed: it is large, seldom run, and would lie in the future of every call.
        match Box::pin(Connection::open(endpoint, *expected, identity, options)).await {
            Ok(connection) => {
                *link = Link::Up(connection.clone());
                Ok(connection)
            }
            Err(error) => {
                let backoff = (backoff * 2).clamp(options.backoff_min, options.backoff_max);
                let retry_at = Instant::now() + crate::random::jitter(backoff);
                let problem = match &error {
                    CallError::Unreachable { problem, .. } => problem.clone(),
                    CallError::Closed { .. }
                    | CallError::Timeout { .. }
                    | CallError::Refused(_)
                    | CallError::Protocol { .. } => error.to_string(),
                };
                *link = Link::Down { retry_at, backoff, problem };
                Err(error)
            }
        }
    }

    /// # Errors
    /// See [`CallError`]. Nothing is retried here.
    pub async fn call<Q: Encode + ?Sized, A: Decode>(
        &self,
        method: u16,
        body: &Q,
        call: Call,
    ) -> Result<(A, Bytes), CallError> {
        self.connection().await?.call(method, body, call).await
    }
}
