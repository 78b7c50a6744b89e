//! The two halves of a unix socket.
//!
//! Whenever its peer reads from a unix socket the kernel wakes up who waits until it can be written (`unix_write_space`),
//! room or no room before. tokio's own stream waits for both always, so that each message woke its sender up once more,
//! for nothing. Here each half has a descriptor of its own: the reading one waits until it can read, the writing one for
//! nothing, but while a write found no room. tokio's pipes are what waits for one of both.
//!
//! Invariant: a descriptor is registered for what somebody waits for.

use std::io::{self, IoSlice, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::AsyncWrite;
use tokio::net::unix::pipe::{Receiver, Sender};

/// What reads from the descriptor of a pipe reads from that of a socket; and it waits for nothing else.
pub type ReadHalf = Receiver;

/// When it is dropped, the peer reads the end of the stream.
pub struct WriteHalf {
    socket: UnixStream,
    /// While a write finds no room.
    full: Option<Sender>,
}

/// # Errors
/// When the system has no further descriptor.
pub fn halves(stream: tokio::net::UnixStream) -> io::Result<(ReadHalf, WriteHalf)> {
    let socket = stream.into_std()?;
    let read = ReadHalf::from_owned_fd_unchecked(OwnedFd::from(socket.try_clone()?))?;
    Ok((read, WriteHalf { socket, full: None }))
}

impl AsyncWrite for WriteHalf {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        loop {
            if let Some(full) = &mut self.full {
                let done = ready!(Pin::new(full).poll_write_vectored(cx, bufs));
                self.full = None;
                return Poll::Ready(done);
            }
            match self.socket.write_vectored(bufs) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let descriptor = OwnedFd::from(self.socket.try_clone()?);
                    self.full = Some(Sender::from_owned_fd_unchecked(descriptor)?);
                }
                done => return Poll::Ready(done),
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Nothing is kept back.
    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.socket.shutdown(Shutdown::Write))
    }
}

impl Drop for WriteHalf {
    fn drop(&mut self) {
        // A peer that is gone needs no end.
        let _ = self.socket.shutdown(Shutdown::Write);
    }
}

#[cfg(test)]
mod tests;
