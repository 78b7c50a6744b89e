//! The model of a router: a log of applied changes, a sync point, and what a crash leaves of it.

use bytes::Bytes;
use edge_core::session::{Answer, Failure, Request};
use model::{AttachmentGeneration, Epoch, Incarnation, Lsn, RequestSeq, VdiskId};
use std::collections::BTreeSet;
use wire::router::{AppliedSequences, Attached, Durability};

/// The vDisk in blocks of eight bytes, each holding the number of the write that it was last written by.
pub const BLOCKS: usize = 12;
pub const BLOCK: u64 = 8;

#[derive(Debug, Clone)]
struct Record {
    seq: RequestSeq,
    at: u64,
    data: Vec<u8>,
}

/// Which connection a request came over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Over {
    Present,
    /// One that was cut since.
    Stale,
}

#[derive(Debug)]
pub struct Router {
    pub epoch: Epoch,
    incarnation: Incarnation,
    log: Vec<Record>,
    synced: usize,
    replay_complete: bool,
    /// Told at the last attach: none of these may arrive again on that connection.
    told: BTreeSet<RequestSeq>,
}

impl Router {
    pub fn new() -> Self {
        Self {
            epoch: Epoch(1),
            incarnation: Incarnation(1),
            log: Vec::new(),
            synced: 0,
            replay_complete: false,
            told: BTreeSet::new(),
        }
    }

    /// Dies and comes back: everything behind `keep` records after the sync point is lost. Returns how many.
    pub fn crash(&mut self, keep: usize) -> usize {
        let left = (self.synced + keep).min(self.log.len());
        let lost = self.log.len() - left;
        self.log.truncate(left);
        self.epoch = self.epoch.next();
        self.incarnation = self.incarnation.next();
        self.replay_complete = false;
        lost
    }

    pub fn unsynced(&self) -> usize {
        self.log.len() - self.synced
    }

    pub fn attach(&mut self) -> Attached {
        let seqs: BTreeSet<RequestSeq> = self.log.iter().map(|record| record.seq).collect();
        let mut contiguous = RequestSeq(0);
        while seqs.contains(&contiguous.next()) {
            contiguous = contiguous.next();
        }
        let above: Vec<RequestSeq> = seqs.iter().copied().filter(|seq| *seq > contiguous).collect();
        assert!(above.len() < wire::router::INFLIGHT_MAX, "more exceptions than a router keeps");
        self.told = seqs;
        Attached {
            vdisk: VdiskId(5),
            generation: AttachmentGeneration(1),
            epoch: self.epoch,
            incarnation: self.incarnation,
            size_bytes: BLOCKS as u64 * BLOCK,
            applied: AppliedSequences { contiguous, above },
            last_lsn: self.last_lsn(),
        }
    }

    fn last_lsn(&self) -> Lsn {
        Lsn(self.log.len() as u64)
    }

    pub fn image(&self) -> Vec<u8> {
        let mut image = vec![0; BLOCKS * 8];
        for record in &self.log {
            let at = usize::try_from(record.at).unwrap();
            image[at..at + record.data.len()].copy_from_slice(&record.data);
        }
        image
    }

    pub fn serve(&mut self, request: &Request, over: Over) -> Result<Answer, Failure> {
        match request {
            Request::Write(write, data) => {
                self.apply(write.seq, write.offset, data.to_vec(), over);
                self.position(write.seq, write.durability)
            }
            Request::Unmap(unmap) => {
                let zeroes = vec![0; usize::try_from(unmap.len).unwrap()];
                self.apply(unmap.seq, unmap.offset, zeroes, over);
                self.position(unmap.seq, unmap.durability)
            }
            Request::Flush(_) => {
                assert!(self.replay_complete, "a flush before the end of replay");
                self.synced = self.log.len();
                Ok(Answer::Flushed { epoch: self.epoch, lsn: self.last_lsn() })
            }
            Request::Read(read) => {
                assert!(self.replay_complete, "a read before the end of replay (P6)");
                let at = usize::try_from(read.offset).unwrap();
                let image = self.image();
                Ok(Answer::Data(Bytes::copy_from_slice(&image[at..at + read.len as usize])))
            }
            Request::BlockStatus(_) => unreachable!("the schedule has none"),
            Request::ReplayComplete(_) => {
                self.replay_complete = true;
                Ok(Answer::Done)
            }
        }
    }

    fn apply(&mut self, seq: RequestSeq, at: u64, data: Vec<u8>, over: Over) {
        assert!(
            over == Over::Stale || !self.told.contains(&seq),
            "{seq} was told as applied and comes again"
        );
        if !self.log.iter().any(|record| record.seq == seq) {
            self.log.push(Record { seq, at, data });
        }
    }

    fn position(&mut self, seq: RequestSeq, durability: Durability) -> Result<Answer, Failure> {
        if durability == Durability::Durable {
            self.synced = self.log.len();
        }
        let at = self.log.iter().position(|record| record.seq == seq).expect("just applied");
        Ok(Answer::Applied { epoch: self.epoch, lsn: Lsn(at as u64 + 1) })
    }
}
