//! One NBD connection: negotiation, then requests in and replies out at the same time.
//!
//! One task serves a connection. Its reader and its writer run side by side inside it, so that a client that is slow to
//! take replies can still send; what is finished while a write was under way goes out in the next one, vectored,
//! without copying data.
//!
//! **Bounds (L8).** Requests under way per connection, bytes under way per connection and in all; a client that stalls
//! in the middle of something is dropped after a while. Negotiation has a deadline per step.

mod read;
mod write;

use crate::exports::Exports;
use crate::vdisk::ConnectionGuard;
use bytes::BytesMut;
use edge_core::nbd::Errno;
use edge_core::nbd::handshake::{Handshake, HandshakeError, Purpose, Query, Step};
use edge_core::nbd::reply::Form;
use edge_core::nbd::request::{StreamError, Terms};
use edge_core::session::{IoError, Outcome};
use runtime::shutdown::Shutdown;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Semaphore, mpsc};

/// Requests of one connection under way; further ones wait in the socket.
const REQUESTS_MAX: usize = 128;
/// Bytes are counted in units of this.
const UNIT: u32 = 4096;
/// Bytes of one connection under way; a single larger request is let in alone.
const CONNECTION_UNITS: u32 = (16 << 20) / UNIT;
/// Bytes of all connections of a vDisk under way: so many that it takes 64 clients who take no replies to hold up the
/// others, and those only until they are dropped.
pub const VDISK_UNITS: usize = 64 * CONNECTION_UNITS as usize;
/// A client that takes longer between two steps of the negotiation is dropped.
const NEGOTIATION_PATIENCE: Duration = Duration::from_secs(60);
/// A client that neither sends the rest of a request nor takes a reply for this long is dropped.
const STALL_MAX: Duration = Duration::from_secs(30);
/// Replies owed when the connection ends get this long.
const GOODBYE_PATIENCE: Duration = Duration::from_secs(3);

/// A request on its way through the edge, and back with its result.
#[derive(Debug)]
pub struct Finished {
    pub cookie: u64,
    pub form: Form,
    pub what: What,
    pub units: u32,
    pub result: Result<Outcome, Errno>,
}

/// What of a request its reply needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    Read { offset: u64 },
    Status { asked: u32, extents_max: usize },
    Plain,
}

/// What all connections share.
pub struct Context {
    pub exports: Arc<Exports>,
    pub shutdown: Shutdown,
}

/// Why a connection ended other than by the client's wish.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    #[error(transparent)]
    Stream(#[from] StreamError),
    #[error("the client went away in the middle of something")]
    CutShort,
    #[error("the client stalled")]
    Stalled,
}

#[must_use]
pub const fn errno_of(error: IoError) -> Errno {
    match error {
        IoError::Io => Errno::Io,
        IoError::OutOfRange => Errno::NoSpace,
        IoError::ReadOnly => Errno::Perm,
        IoError::Invalid => Errno::Invalid,
    }
}

/// Serves a client until it leaves.
///
/// # Errors
/// When it ended otherwise.
pub async fn serve<R, W>(
    mut read: R,
    mut write: W,
    context: &Context,
) -> Result<(), ConnectionError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut input = BytesMut::with_capacity(4096);
    let negotiated = tokio::select! {
        negotiated = negotiate(&mut read, &mut write, &mut input, &context.exports) => negotiated?,
        () = context.shutdown.wait() => return Ok(()),
    };
    let Some((terms, vdisk)) = negotiated else { return Ok(()) };
    let budget = Budget {
        requests: Semaphore::new(REQUESTS_MAX),
        units: Semaphore::new(CONNECTION_UNITS as usize),
        memory: vdisk.memory(),
        held: AtomicUsize::new(0),
    };
    // Room for every request that may be under way: a reply never waits for room.
    let (replies, finished) = mpsc::channel(REQUESTS_MAX);
    let reader = read::Reader { read, input, terms, vdisk: &vdisk, budget: &budget, replies };
    let writer = write::run(write, finished, &budget);
    tokio::pin!(writer);
    tokio::select! {
        // Only with an error: it ends by itself when the reader did.
        wrote = &mut writer => wrote,
        ended = reader.run(&context.shutdown) => {
            let goodbye = tokio::time::timeout(GOODBYE_PATIENCE, &mut writer).await;
            // What is still owed to a client that left is nobody's loss; the first error tells more.
            ended.and(goodbye.unwrap_or(Ok(())))
        }
    }
}

/// What a connection may have under way.
struct Budget<'a> {
    requests: Semaphore,
    units: Semaphore,
    memory: &'a Semaphore,
    /// Units taken of `memory`.
    held: AtomicUsize,
}

impl Budget<'_> {
    /// Waits for room for one request with so many bytes.
    async fn take(&self, bytes: u32) -> u32 {
        let units = bytes.div_ceil(UNIT).min(CONNECTION_UNITS);
        for (semaphore, count) in [(&self.requests, 1), (&self.units, units), (self.memory, units)]
        {
            semaphore.acquire_many(count).await.expect("never closed").forget();
        }
        self.held.fetch_add(units as usize, Ordering::Relaxed);
        units
    }

    fn give_back(&self, units: u32) {
        self.requests.add_permits(1);
        self.units.add_permits(units as usize);
        self.memory.add_permits(units as usize);
        self.held.fetch_sub(units as usize, Ordering::Relaxed);
    }
}

impl Drop for Budget<'_> {
    /// What the connection still had under way when it was dropped.
    fn drop(&mut self) {
        self.memory.add_permits(self.held.load(Ordering::Relaxed));
    }
}

type Negotiated = Option<(Terms, ConnectionGuard)>;

async fn negotiate<R, W>(
    read: &mut R,
    write: &mut W,
    input: &mut BytesMut,
    exports: &Exports,
) -> Result<Negotiated, ConnectionError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut out = BytesMut::new();
    let mut handshake = Handshake::begin(&mut out);
    let mut opened = None;
    loop {
        let mut step = handshake.advance(input, &mut out)?;
        if let Step::Ask(query) = step {
            step = answer(&mut handshake, query, &mut out, (exports, &mut opened)).await?;
            if step == Step::Wait {
                continue;
            }
        }
        in_time(NEGOTIATION_PATIENCE, write.write_all_buf(&mut out)).await?;
        match step {
            Step::Wait | Step::Ask(_) => {}
            Step::Begin(terms) => return Ok(opened.map(|vdisk| (terms, vdisk))),
            Step::Close => return Ok(None),
        }
        if in_time(NEGOTIATION_PATIENCE, read.read_buf(input)).await? == 0 {
            // Port checks and the like connect and leave; that is no error.
            return Ok(None);
        }
    }
}

async fn answer(
    handshake: &mut Handshake,
    query: Query,
    out: &mut BytesMut,
    (exports, opened): (&Exports, &mut Option<ConnectionGuard>),
) -> Result<Step, HandshakeError> {
    match query {
        Query::List => {
            handshake.answer_list(exports.names().await, out);
            Ok(Step::Wait)
        }
        Query::Export { name, purpose: Purpose::Look } => {
            handshake.answer_export(exports.look(&name).await, out)
        }
        Query::Export { name, purpose: Purpose::Open } => {
            let result = exports.open(&name).await.map(|(export, guard)| {
                *opened = Some(guard);
                export
            });
            handshake.answer_export(result, out)
        }
    }
}

async fn in_time<T>(
    patience: Duration,
    work: impl Future<Output = io::Result<T>>,
) -> Result<T, ConnectionError> {
    match tokio::time::timeout(patience, work).await {
        Ok(result) => Ok(result?),
        Err(_) => Err(ConnectionError::Stalled),
    }
}
