//! The serving side: accept, greet, read requests within bounds, let the service answer.

use super::connection::{FrameReader, OutFrame, TooLong, greet, write_frames};
use crate::net::{Accepted, BoxWrite, HANDSHAKE_TIMEOUT, Listener};
use crate::peer::{Identity, Peer};
use crate::shutdown::Shutdown;
use bytes::Bytes;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::Instant;
use wire::error::code;
use wire::frame::Frame;
use wire::{Decode, Encode, ErrorClass, FrameKind, FrameMeta, Role, WireError};

/// Payload bytes are counted in units of this.
const PAYLOAD_UNIT: usize = 4096;
/// How long a connection for which there is no room is told so.
const TURNED_AWAY: Duration = Duration::from_secs(2);
/// A client pings at least every 30 s; one that is silent for longer than this is gone.
const SILENCE_MAX: Duration = Duration::from_secs(120);

/// Who may call, and how much at once.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    pub allowed: Vec<Role>,
    /// Of all peers. Those of one role get three quarters of it at most: a flood of edges must not keep routers and
    /// operators out (L8).
    pub connections_max: usize,
    /// Requests of one connection under way; further ones wait in the socket.
    pub requests_max: usize,
    /// Payload bytes of requests of one connection under way; a single larger one is let in alone.
    pub payload_bytes_max: usize,
}

impl ServerOptions {
    #[must_use]
    pub fn allowing(allowed: &[Role]) -> Self {
        Self {
            allowed: allowed.to_vec(),
            connections_max: 8192,
            requests_max: 2048,
            payload_bytes_max: 96 << 20,
        }
    }
}

/// Answers requests.
pub trait Service: Send + Sync + 'static {
    /// Must not block: answer at once or hand the responder on.
    fn call(&self, request: Request, responder: Responder);

    /// A connection of this peer was opened or lost; for services that keep state per peer.
    fn peer_gone(&self, _peer: &Arc<Peer>) {}
}

/// A request as it arrived.
#[derive(Debug)]
pub struct Request {
    pub method: u16,
    pub body: Bytes,
    pub payload: Bytes,
    /// When the caller stops waiting.
    pub deadline: Option<Instant>,
    pub peer: Arc<Peer>,
}

impl Request {
    /// # Errors
    /// `BAD_MESSAGE` when the body isn't a `T`.
    pub fn decode<T: Decode>(&self) -> Result<T, WireError> {
        wire::decode_all(self.body.clone()).map_err(|error| {
            WireError::refuse(code::BAD_MESSAGE, format!("method {}: {error}", self.method))
        })
    }

    #[must_use]
    pub fn unknown_method(&self) -> WireError {
        WireError::refuse(code::UNKNOWN_METHOD, format!("method {} isn't known here", self.method))
    }
}

/// Answers one request, once. Dropped without an answer, the caller is told to try again.
#[derive(Debug)]
pub struct Responder {
    request: u64,
    queue: mpsc::Sender<OutFrame>,
    answered: bool,
    permits: Option<(OwnedSemaphorePermit, OwnedSemaphorePermit)>,
}

impl Responder {
    pub fn reply<T: Encode + ?Sized>(self, body: &T, payload: Bytes) {
        self.reply_parts(body, vec![payload]);
    }

    /// The payload in pieces, sent one after the other without being joined.
    pub fn reply_parts<T: Encode + ?Sized>(mut self, body: &T, payload: Vec<Bytes>) {
        match OutFrame::new(FrameMeta::plain(FrameKind::Response, self.request), body, payload) {
            Ok(frame) => self.send(frame),
            Err(TooLong(len)) => {
                let message = format!("the answer of {len} bytes is longer than a frame");
                self.send_failure(&WireError::refuse(code::BAD_MESSAGE, message));
            }
        }
    }

    #[expect(clippy::needless_pass_by_value, reason = "callers end with an error in hand")]
    pub fn fail(mut self, error: WireError) {
        self.send_failure(&error);
    }

    /// The connection is lost: nobody hears the answer.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        let closed = |(requests, _): &(OwnedSemaphorePermit, _)| requests.semaphore().is_closed();
        self.queue.is_closed() || self.permits.as_ref().is_some_and(closed)
    }

    /// `reply` without payload, or `fail`.
    pub fn finish<T: Encode>(self, result: Result<T, WireError>) {
        match result {
            Ok(body) => self.reply(&body, Bytes::new()),
            Err(error) => self.fail(error),
        }
    }

    fn send_failure(&mut self, error: &WireError) {
        let meta = FrameMeta::plain(FrameKind::Failure, self.request);
        let frame = OutFrame::new(meta, error, Vec::new()).unwrap_or_else(|_| {
            let short =
                WireError::new(error.class, error.code, "the error text is longer than a frame");
            OutFrame::new(meta, &short, Vec::new()).expect("a short error fits")
        });
        self.send(frame);
    }

    fn send(&mut self, frame: OutFrame) {
        self.answered = true;
        // The queue has room for every request under way; it can only be closed, and then nobody waits.
        let _ = self.queue.try_send(frame);
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        if !self.answered {
            let error =
                WireError::new(ErrorClass::Retry, code::BUSY, "the request was dropped; try again");
            self.send_failure(&error);
        }
    }
}

/// Serves until shutdown. Requests under way may still answer for a moment.
pub async fn serve(
    listener: Listener,
    identity: Arc<Identity>,
    service: Arc<dyn Service>,
    options: ServerOptions,
    shutdown: Shutdown,
) {
    let share = (options.connections_max / 4 * 3).max(1);
    let rooms = Role::ALL.map(|role| (role, Arc::new(Semaphore::new(share))));
    let (options, rooms) = (Arc::new(options), Arc::new(rooms));
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = shutdown.wait() => break,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept(), if connections.len() < options.connections_max => accepted,
        };
        match accepted {
            Ok(accepted) => {
                let context = Context {
                    identity: Arc::clone(&identity),
                    service: Arc::clone(&service),
                    options: Arc::clone(&options),
                    rooms: Arc::clone(&rooms),
                };
                connections.spawn(context.run(accepted));
            }
            Err(error) => {
                tracing::warn!(%error, "can't accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    drop(listener);
    // Answers already queued get a moment to leave.
    let _ = tokio::time::timeout(Duration::from_millis(200), async {
        while connections.join_next().await.is_some() {}
    })
    .await;
}

/// Closed when nothing more is read, which those who answer can see.
struct Closing(Arc<Semaphore>);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// Whether a connection's requests are carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Entry {
    Welcome,
    TurnedAway,
}

struct Context {
    identity: Arc<Identity>,
    service: Arc<dyn Service>,
    options: Arc<ServerOptions>,
    /// For how many more connections of each role there is room.
    rooms: Arc<[(Role, Arc<Semaphore>); Role::ALL.len()]>,
}

impl Context {
    async fn run(self, accepted: Accepted) {
        let stream = match accepted.establish().await {
            Ok(stream) => stream,
            Err(error) => {
                tracing::info!(%error, "a connection failed its TLS handshake");
                return;
            }
        };
        let remote = stream.remote.clone();
        let (reader, write, peer) =
            match tokio::time::timeout(HANDSHAKE_TIMEOUT, greet(stream, &self.identity)).await {
                Ok(Ok(parts)) => parts,
                Ok(Err(error)) => {
                    tracing::info!(%remote, %error, "a connection was refused");
                    return;
                }
                Err(_) => {
                    tracing::info!(%remote, "a connection sent no hello in time");
                    return;
                }
            };
        let peer = Arc::new(peer);
        let Some(room) = self.room(peer.role) else {
            tracing::warn!(%remote, peer = %peer.name, role = %peer.role, "turned away: too many connections of this role");
            let away = self.serve(reader, write, &peer, Entry::TurnedAway);
            let _ = tokio::time::timeout(TURNED_AWAY, away).await;
            return;
        };
        self.serve(reader, write, &peer, Entry::Welcome).await;
        drop(room);
        self.service.peer_gone(&peer);
    }

    fn room(&self, role: Role) -> Option<OwnedSemaphorePermit> {
        let (_, room) = self.rooms.iter().find(|(of, _)| *of == role)?;
        Arc::clone(room).try_acquire_owned().ok()
    }

    async fn serve(&self, reader: FrameReader, write: BoxWrite, peer: &Arc<Peer>, entry: Entry) {
        let (queue, outgoing) = mpsc::channel(self.options.requests_max + 16);
        let mut writer = JoinSet::new(); // Ends its task when this one is ended.
        writer.spawn(write_frames(write, outgoing));
        tokio::select! {
            () = self.read(reader, peer, queue, entry) => {
                // The responders still hold the queue; the writer ends when the last one is gone.
                let _ = tokio::time::timeout(SILENCE_MAX, writer.join_next()).await;
            }
            _ = writer.join_next() => {}
        }
    }

    async fn read(
        &self,
        mut reader: FrameReader,
        peer: &Arc<Peer>,
        queue: mpsc::Sender<OutFrame>,
        entry: Entry,
    ) {
        let requests = Arc::new(Semaphore::new(self.options.requests_max));
        let _lost = Closing(Arc::clone(&requests));
        let units = self.options.payload_bytes_max.div_ceil(PAYLOAD_UNIT);
        let payloads = Arc::new(Semaphore::new(units));
        let mut heard = Instant::now();
        let silence = tokio::time::sleep_until(heard + SILENCE_MAX);
        tokio::pin!(silence);
        loop {
            // One timer for all frames, set anew only when it goes off.
            let frame = tokio::select! {
                biased;
                frame = reader.next() => frame,
                () = &mut silence => {
                    if heard.elapsed() >= SILENCE_MAX {
                        return;
                    }
                    silence.as_mut().reset(heard + SILENCE_MAX);
                    continue;
                }
            };
            let frame = match frame {
                Ok(frame) => frame,
                Err(super::connection::ConnectionError::Closed) => return,
                Err(error) => {
                    tracing::info!(peer = %peer.name, %error, "connection lost");
                    return;
                }
            };
            heard = Instant::now();
            match frame.header.kind {
                FrameKind::Ping => {
                    let _ = queue.try_send(OutFrame::empty(FrameKind::Pong, frame.header.request));
                    continue;
                }
                FrameKind::Request => {}
                FrameKind::Hello
                | FrameKind::Response
                | FrameKind::Failure
                | FrameKind::Pong
                | FrameKind::Notice => {
                    tracing::info!(peer = %peer.name, kind = ?frame.header.kind, "unexpected frame, closing");
                    return;
                }
            }
            let cost = model::u32_of(frame.payload.len().div_ceil(PAYLOAD_UNIT).min(units));
            let Ok(request_permit) = Arc::clone(&requests).acquire_owned().await else { return };
            let Ok(payload_permit) = Arc::clone(&payloads).acquire_many_owned(cost).await else {
                return;
            };
            let responder = Responder {
                request: frame.header.request,
                queue: queue.clone(),
                answered: false,
                permits: Some((request_permit, payload_permit)),
            };
            match entry {
                Entry::Welcome => self.dispatch(frame, peer, responder),
                Entry::TurnedAway => responder.fail(self.too_many(peer.role)),
            }
        }
    }

    fn too_many(&self, role: Role) -> WireError {
        let most = self.options.connections_max / 4 * 3;
        let message = format!("{most} connections of {role}s are open, the most that is allowed");
        WireError::retry(code::BUSY, message)
    }

    fn dispatch(&self, frame: Frame, peer: &Arc<Peer>, responder: Responder) {
        if !self.options.allowed.contains(&peer.role) {
            let message = format!("a {} may not call a {}", peer.role, self.identity.role);
            responder.fail(WireError::refuse(code::FORBIDDEN, message));
            return;
        }
        let deadline = match frame.header.deadline_ms {
            0 => None,
            ms => Some(Instant::now() + Duration::from_millis(ms.into())),
        };
        let Frame { header, body, payload } = frame;
        let request =
            Request { method: header.method, body, payload, deadline, peer: Arc::clone(peer) };
        self.service.call(request, responder);
    }
}
