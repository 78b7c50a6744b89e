//! Requests in: parsed, checked, handed to the vDisk.

use super::{Budget, ConnectionError, Finished, STALL_MAX, What, in_time};
use crate::checksum;
use crate::vdisk::{ConnectionGuard, Submission, Ticket};
use bytes::{Buf, Bytes, BytesMut};
use edge_core::nbd::reply::Form;
use edge_core::nbd::request::{Command, ExtentsWanted, HEADER_LEN, Request, Terms};
use edge_core::nbd::{Errno, PAYLOAD_MAX};
use edge_core::session::{Op, Outcome};
use runtime::shutdown::Shutdown;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::mpsc;
use wire::router::EXTENTS_MAX;

/// What is asked of the kernel at once.
const READ_CHUNK: usize = 64 << 10;

pub struct Reader<'a, R> {
    pub(super) read: R,
    pub(super) input: BytesMut,
    pub(super) terms: Terms,
    pub(super) vdisk: &'a ConnectionGuard,
    pub(super) budget: &'a Budget<'a>,
    pub(super) replies: mpsc::Sender<Finished>,
}

impl<R: AsyncRead + Unpin> Reader<'_, R> {
    /// Ends when the client says goodbye, goes away, or the edge stops.
    pub async fn run(mut self, shutdown: &Shutdown) -> Result<(), ConnectionError> {
        loop {
            while self.input.len() < HEADER_LEN {
                self.input.reserve(READ_CHUNK);
                let count = tokio::select! {
                    count = self.read.read_buf(&mut self.input) => count?,
                    () = shutdown.wait() => return Ok(()),
                };
                match count {
                    0 if self.input.is_empty() => return Ok(()),
                    0 => return Err(ConnectionError::CutShort),
                    _ => {}
                }
            }
            let header = self.input.first_chunk().expect("a whole header is there");
            let request = Request::parse(header)?;
            self.input.advance(HEADER_LEN);
            if !self.take(&request).await? {
                return Ok(());
            }
        }
    }

    /// False after a goodbye.
    async fn take(&mut self, request: &Request) -> Result<bool, ConnectionError> {
        let structured = self.terms.structured && request.wants_structured();
        let form = if structured { Form::Structured } else { Form::Simple };
        let mut finished = Finished {
            cookie: request.cookie,
            form,
            what: What::Plain,
            units: 0,
            result: Ok(Outcome::Done),
        };
        let command = match self.terms.check(request) {
            Ok(Command::Disconnect) => return Ok(false),
            Ok(command) => command,
            Err(errno) => {
                self.skip(request.payload_len()).await?;
                return self.answer_now(finished, Err(errno)).await;
            }
        };
        let op = match command {
            Command::Nothing => return self.answer_now(finished, Ok(Outcome::Done)).await,
            Command::Disconnect => unreachable!("handled above"),
            Command::Read { offset, len } => {
                finished.units = self.budget.take(len).await;
                finished.what = What::Read { offset };
                Op::Read { offset, len }
            }
            Command::Write { offset, len, durability } => {
                finished.units = self.budget.take(len).await;
                let data = self.payload(len).await?;
                let checksums = checksum::of_clusters(offset, &data);
                Op::Write { offset, data, checksums, durability }
            }
            Command::Unmap { offset, len, kind, durability } => {
                finished.units = self.budget.take(0).await;
                Op::Unmap { offset, len: len.into(), kind, durability }
            }
            Command::BlockStatus { offset, len, extents } => {
                finished.units = self.budget.take(0).await;
                let extents_max = if extents == ExtentsWanted::One { 1 } else { EXTENTS_MAX };
                finished.what = What::Status { asked: len, extents_max: extents_max as usize };
                // Neighbours of one kind are joined afterwards, so also for one extent several are asked for.
                Op::BlockStatus { offset, len: len.into(), extents_max: extents_max.max(16) }
            }
            Command::Flush => {
                finished.units = self.budget.take(0).await;
                Op::Flush
            }
        };
        let ticket = Ticket::Nbd { to: self.replies.clone(), request: finished };
        if let Err(back) = self.vdisk.submit(Submission { op, ticket }).await
            && let Ticket::Nbd { request: mut finished, .. } = back.ticket
        {
            finished.result = Err(Errno::Shutdown);
            self.reply(finished).await;
        }
        Ok(true)
    }

    async fn answer_now(
        &mut self,
        mut finished: Finished,
        result: Result<Outcome, Errno>,
    ) -> Result<bool, ConnectionError> {
        finished.units = self.budget.take(0).await;
        finished.result = result;
        self.reply(finished).await;
        Ok(true)
    }

    async fn reply(&mut self, finished: Finished) {
        // Closed means that the writer ended, and with it the connection.
        let _ = self.replies.send(finished).await;
    }

    /// The data of a write, in a buffer of their own: what is kept for replay must not hold on to more.
    async fn payload(&mut self, len: u32) -> Result<Bytes, ConnectionError> {
        assert!(len <= PAYLOAD_MAX, "checked at the door");
        let len = len as usize;
        let mut data = BytesMut::with_capacity(len);
        let here = self.input.len().min(len);
        data.extend_from_slice(&self.input[..here]);
        self.input.advance(here);
        while data.len() < len {
            let missing = len - data.len();
            let mut rest = (&mut self.read).take(model::u64_of(missing));
            if in_time(STALL_MAX, rest.read_buf(&mut data)).await? == 0 {
                return Err(ConnectionError::CutShort);
            }
        }
        Ok(data.freeze())
    }

    /// Reads away the data of a write that is refused, so that the stream stays in step.
    async fn skip(&mut self, len: u32) -> Result<(), ConnectionError> {
        let mut left = len as usize;
        loop {
            let here = self.input.len().min(left);
            self.input.advance(here);
            left -= here;
            if left == 0 {
                return Ok(());
            }
            self.input.reserve(READ_CHUNK);
            if in_time(STALL_MAX, self.read.read_buf(&mut self.input)).await? == 0 {
                return Err(ConnectionError::CutShort);
            }
        }
    }
}
