//! Frames in and out of a byte stream, and the hello that opens it.

use crate::net::{BoxRead, BoxWrite, Stream};
use crate::peer::{Identity, Peer};
use bytes::{Buf, Bytes, BytesMut};
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use wire::common::VERSION;
use wire::frame::{Frame, HEADER_LEN};
use wire::{Decode, Encode, FrameError, FrameHeader, FrameKind, FrameMeta, Hello, Role};

/// A read buffer; many small frames share one, and it lives as long as any payload in it.
const READ_CHUNK: usize = 128 << 10;
/// A buffer with less room than this left is replaced, as frames taken out still hold on to it.
const READ_ROOM: usize = 8 << 10;
/// A buffer made for more serves frames that need one.
const USUAL_MAX: usize = 2 * READ_CHUNK;
/// Replaced buffers that are kept until their frames are gone, to be used again: memory fresh from the system costs more
/// than what is read into it.
const USED_MAX: usize = 2;
/// Frames that one vectored write takes along.
const WRITE_BATCH: usize = 64;
/// Pieces of one vectored write: a read of 1 MiB is answered in 256.
const SLICES: usize = 320;
/// A peer that takes nothing for this long is gone (L8).
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectionError {
    #[error("closed by the peer")]
    Closed,
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("{0}")]
    Hello(String),
}

/// A frame on its way out: header and body in one piece, then the payload's pieces.
#[derive(Debug)]
pub(crate) struct OutFrame {
    head: Bytes,
    payload: Vec<Bytes>,
}

/// A message longer than a frame may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TooLong(pub usize);

impl OutFrame {
    pub(crate) fn new<T: Encode + ?Sized>(
        meta: FrameMeta,
        body: &T,
        payload: Vec<Bytes>,
    ) -> Result<Self, TooLong> {
        let mut head = Vec::with_capacity(HEADER_LEN + 96);
        head.resize(HEADER_LEN, 0);
        body.encode(&mut head);
        let body_len = head.len() - HEADER_LEN;
        let payload_len = payload.iter().map(Bytes::len).sum::<usize>();
        let fits = |len: usize, max: u32| len <= model::usize_of(max.into());
        if !fits(body_len, wire::frame::BODY_MAX) || !fits(payload_len, wire::frame::PAYLOAD_MAX) {
            return Err(TooLong(body_len.max(payload_len)));
        }
        let header = FrameHeader::new(meta, &head[HEADER_LEN..], payload_len);
        head[..HEADER_LEN].copy_from_slice(&header.encode());
        Ok(Self { head: head.into(), payload })
    }

    pub(crate) fn empty(kind: FrameKind, request: u64) -> Self {
        Self::new(FrameMeta::plain(kind, request), &(), Vec::new()).expect("an empty body fits")
    }
}

/// Takes frames out of a stream; payloads share the read buffer.
pub(crate) struct FrameReader {
    io: BoxRead,
    buffer: BytesMut,
    /// What the buffer was made for.
    size: usize,
    used: VecDeque<BytesMut>,
}

impl FrameReader {
    pub(crate) fn new(io: BoxRead) -> Self {
        Self { io, buffer: BytesMut::new(), size: 0, used: VecDeque::new() }
    }

    /// The next frame, verified. Cancel-safe: bytes read so far stay in the buffer.
    pub(crate) async fn next(&mut self) -> Result<Frame, ConnectionError> {
        self.fill(HEADER_LEN).await?;
        let header = FrameHeader::decode(self.buffer[..HEADER_LEN].try_into().expect("filled"))?;
        self.fill(HEADER_LEN + header.rest_len()).await?;
        self.buffer.advance(HEADER_LEN);
        let mut rest = self.buffer.split_to(header.rest_len()).freeze();
        let body = rest.split_to(model::usize_of(header.body_len.into()));
        header.verify(&body)?;
        if header.rest_len() <= READ_CHUNK {
            self.give_back();
        }
        Ok(Frame { header, body, payload: rest })
    }

    /// A buffer made for a large frame serves large ones, and goes with the next small one: a connection that has nothing
    /// more to say is pinged, and may be so for ever (L8).
    fn give_back(&mut self) {
        // Much that is read already is worked off first, not copied.
        if self.size <= USUAL_MAX || READ_CHUNK < self.buffer.len() {
            return;
        }
        let left = std::mem::take(&mut self.buffer);
        self.size = left.len() + READ_CHUNK;
        self.buffer = BytesMut::with_capacity(self.size);
        self.buffer.extend_from_slice(&left);
    }

    /// Makes room for so many bytes: in this buffer if no frame holds on to it, in one used before, or in a new one.
    fn renew(&mut self, room: usize) {
        if self.buffer.try_reclaim(room) {
            return;
        }
        let wanted = self.buffer.len() + room;
        let free = self.used.iter_mut().position(|used| used.try_reclaim(wanted));
        let free = free.and_then(|at| self.used.remove(at));
        let mut next = free.unwrap_or_else(|| BytesMut::with_capacity(wanted));
        next.extend_from_slice(&self.buffer);
        let mut last = std::mem::replace(&mut self.buffer, next);
        last.clear();
        // One made for a large frame isn't kept (L8), nor one that never was.
        let is_usual = (1..=USUAL_MAX).contains(&self.size);
        self.size = wanted;
        if is_usual {
            // The oldest goes: what holds on to it for so long may do so for ever.
            if self.used.len() == USED_MAX {
                self.used.pop_front();
            }
            self.used.push_back(last);
        }
    }

    async fn fill(&mut self, want: usize) -> Result<(), ConnectionError> {
        while self.buffer.len() < want {
            let missing = want - self.buffer.len();
            if self.buffer.capacity() - self.buffer.len() < missing.max(READ_ROOM) {
                self.renew(missing.max(READ_CHUNK));
            }
            match self.io.read_buf(&mut self.buffer).await {
                Ok(0) => return Err(ConnectionError::Closed),
                Ok(_) => {}
                // A TLS peer that just went away. Frames are self-delimiting, so a cut can't be mistaken for an end.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    return Err(ConnectionError::Closed);
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

/// Sends what comes through the queue until it is closed and empty, or the stream breaks.
pub(crate) async fn write_frames(
    mut io: BoxWrite,
    mut queue: mpsc::Receiver<OutFrame>,
) -> io::Result<()> {
    let mut batch = Vec::with_capacity(WRITE_BATCH);
    let mut pieces: VecDeque<Bytes> = VecDeque::new();
    while queue.recv_many(&mut batch, WRITE_BATCH).await > 0 {
        for frame in batch.drain(..) {
            pieces.push_back(frame.head);
            pieces.extend(frame.payload.into_iter().filter(|piece| !piece.is_empty()));
        }
        tokio::time::timeout(WRITE_TIMEOUT, write_pieces(&mut io, &mut pieces))
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    }
    io.shutdown().await
}

async fn write_pieces(io: &mut BoxWrite, pieces: &mut VecDeque<Bytes>) -> io::Result<()> {
    while !pieces.is_empty() {
        let slices: Vec<IoSlice<'_>> =
            pieces.iter().take(SLICES).map(|piece| IoSlice::new(piece)).collect();
        let mut written = io.write_vectored(&slices).await?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        while let Some(front) = pieces.front_mut() {
            if written < front.len() {
                front.advance(written);
                break;
            }
            written -= front.len();
            pieces.pop_front();
        }
    }
    io.flush().await
}

/// Exchanges hellos. Both sides send first and read then, so neither waits for the other.
pub(crate) async fn greet(
    stream: Stream,
    me: &Identity,
) -> Result<(FrameReader, BoxWrite, Peer), ConnectionError> {
    let Stream { read, mut write, proven, .. } = stream;
    let mut reader = FrameReader::new(read);
    let hello = OutFrame::new(FrameMeta::plain(FrameKind::Hello, 0), &me.hello(), Vec::new())
        .map_err(|_| ConnectionError::Hello("our own hello is too long".into()))?;
    write_pieces(&mut write, &mut VecDeque::from([hello.head])).await?;
    let frame = reader.next().await?;
    if frame.header.kind != FrameKind::Hello {
        return Err(ConnectionError::Hello("the peer didn't begin with a hello".into()));
    }
    let mut body = wire::Reader::new(frame.body);
    let theirs = Hello::decode(&mut body).map_err(|error| {
        ConnectionError::Hello(format!("the peer's hello can't be read: {error}"))
    })?;
    check_hello(&theirs, me, proven.as_deref())?;
    let peer = Peer {
        role: theirs.role,
        name: theirs.name,
        incarnation: theirs.incarnation,
        proven: proven.is_some(),
    };
    Ok((reader, write, peer))
}

fn check_hello(
    theirs: &Hello,
    me: &Identity,
    proven: Option<&[Role]>,
) -> Result<(), ConnectionError> {
    let Hello { version_min, version_max, role, name, cluster, .. } = theirs;
    if *version_min > VERSION || *version_max < VERSION {
        return Err(ConnectionError::Hello(format!(
            "{name} speaks protocol versions {version_min} to {version_max}, we speak {VERSION}: upgrade the older one"
        )));
    }
    if !cluster.is_empty() && !me.cluster.is_empty() && *cluster != me.cluster {
        return Err(ConnectionError::Hello(format!(
            "{name} belongs to cluster {cluster}, we to {}",
            me.cluster
        )));
    }
    if let Some(proven) = proven
        && !proven.contains(role)
    {
        return Err(ConnectionError::Hello(format!(
            "{name} says it is a {role}, its certificate doesn't"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::duplex;

    fn frame(payload: usize) -> OutFrame {
        let meta = FrameMeta::plain(FrameKind::Request, 1);
        OutFrame::new(meta, &(), vec![Bytes::from(vec![7; payload])]).unwrap()
    }

    async fn send(io: &mut BoxWrite, lens: &[usize]) {
        for len in lens {
            let OutFrame { head, payload } = frame(*len);
            let mut pieces = VecDeque::from([head]);
            pieces.extend(payload.into_iter().filter(|piece| !piece.is_empty()));
            write_pieces(io, &mut pieces).await.unwrap();
        }
    }

    #[tokio::test]
    async fn l8_a_connection_that_is_idle_keeps_no_large_buffer() {
        const LARGE: usize = 8 << 20;
        let (near, far) = duplex(64 << 10);
        let mut reader = FrameReader::new(Box::new(far));
        let mut writer: BoxWrite = Box::new(near);
        // The last one is what an idle connection has: a ping.
        let lens = [100, LARGE, LARGE, LARGE + 1, 3000, 0];
        let sent = tokio::spawn(async move {
            send(&mut writer, &lens).await;
            writer
        });
        for len in lens {
            let frame = reader.next().await.unwrap();
            assert_eq!(frame.payload, vec![7; len]);
        }
        let _writer = sent.await.unwrap();
        let kept =
            reader.buffer.capacity() + reader.used.iter().map(BytesMut::capacity).sum::<usize>();
        assert!(kept <= 3 * USUAL_MAX, "{kept} bytes");
        // As far as the buffer is shared, it can be had again.
        assert!(!reader.buffer.try_reclaim(LARGE) && reader.size <= USUAL_MAX);
    }
}
