//! Replies out: whatever is finished, in one vectored write, data uncopied.

use super::{Budget, ConnectionError, Finished, STALL_MAX, What, in_time};
use bytes::{Bytes, BytesMut};
use edge_core::nbd::{Errno, reply};
use edge_core::session::Outcome;
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

/// Replies taken along at once.
const BATCH: usize = 64;
/// Pieces of one vectored write.
const SLICES: usize = 320;

/// Ends when nobody can send replies any more.
pub async fn run<W: AsyncWrite + Unpin>(
    mut write: W,
    mut finished: mpsc::Receiver<Finished>,
    budget: &Budget<'_>,
) -> Result<(), ConnectionError> {
    let mut batch = Vec::with_capacity(BATCH);
    let mut out = Out::default();
    while finished.recv_many(&mut batch, BATCH).await > 0 {
        let mut units = Vec::with_capacity(batch.len());
        for one in batch.drain(..) {
            units.push(one.units);
            out.reply(one);
        }
        out.end_head();
        while !out.pieces.is_empty() {
            let written = in_time(STALL_MAX, out.write_some(&mut write)).await?;
            out.advance(written);
        }
        for units in units {
            budget.give_back(units);
        }
    }
    in_time(STALL_MAX, write.shutdown()).await
}

/// Bytes to send: headers gathered in `head`, and pieces in order.
#[derive(Default)]
struct Out {
    head: BytesMut,
    pieces: VecDeque<Bytes>,
}

impl Out {
    fn reply(&mut self, finished: Finished) {
        let Finished { cookie, form, what, result, .. } = finished;
        match (result, what) {
            (Err(errno), _) => reply::error(&mut self.head, cookie, form, errno),
            (Ok(Outcome::Data(parts)), What::Read { offset }) => {
                let len = parts.iter().map(Bytes::len).sum();
                reply::data_header(&mut self.head, cookie, form, offset, len);
                self.end_head();
                self.pieces.extend(parts);
            }
            (Ok(Outcome::Extents(extents)), What::Status { asked, extents_max }) => {
                reply::block_status(&mut self.head, cookie, asked, &extents, extents_max);
            }
            (Ok(Outcome::Done), What::Plain) => reply::done(&mut self.head, cookie, form),
            (Ok(_), _) => {
                tracing::error!(cookie, ?what, "a request was given another's answer");
                reply::error(&mut self.head, cookie, form, Errno::Io);
            }
        }
    }

    fn end_head(&mut self) {
        if !self.head.is_empty() {
            self.pieces.push_back(self.head.split().freeze());
        }
    }

    async fn write_some<W: AsyncWrite + Unpin>(&self, write: &mut W) -> io::Result<usize> {
        let mut slices = [IoSlice::new(&[]); SLICES];
        let mut count = 0;
        for (slice, piece) in slices.iter_mut().zip(&self.pieces) {
            *slice = IoSlice::new(piece);
            count += 1;
        }
        match write.write_vectored(&slices[..count]).await? {
            0 => Err(io::ErrorKind::WriteZero.into()),
            written => Ok(written),
        }
    }

    fn advance(&mut self, mut written: usize) {
        while let Some(first) = self.pieces.front_mut() {
            if written < first.len() {
                let _ = first.split_to(written);
                return;
            }
            written -= first.len();
            self.pieces.pop_front();
        }
        assert_eq!(written, 0, "no more was written than there was");
    }
}
