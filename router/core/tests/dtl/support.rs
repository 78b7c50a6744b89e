//! A target with a driver that carries out its effects when told to, and entries whose content says who wrote them.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use model::{AttachmentGeneration, Cluster, DtlGeneration, Epoch, Lsn, Now, RequestSeq, VdiskId};
use router_core::crc32c;
use router_core::dtl::records::{Outgoing, outgoing};
use router_core::dtl::store::Disk;
use router_core::dtl::target::{Answer, Ask, Effect, Limits, Refusal, Target, Ticket};
use router_core::log::Op;
use router_core::log::pool::Entry;
use wire::dtl::{Held, LogName};

use crate::disk::MemDisk;

pub const VDISK: VdiskId = VdiskId(7);
pub const LIMITS: Limits = Limits { log_bytes: 4 << 20, chunk_bytes: 24 << 10 };

pub fn at(ms: u64) -> Now {
    Now(Duration::from_millis(ms))
}

pub fn name(epoch: u64, generation: u64) -> LogName {
    LogName { vdisk: VDISK, epoch: Epoch(epoch), generation: DtlGeneration(generation) }
}

/// The record that epoch `epoch` writes as `lsn`; every fourth is a trim.
pub fn entry(epoch: u64, lsn: u64) -> Entry {
    let trim = lsn.is_multiple_of(4);
    let byte = u8::try_from((epoch * 31 + lsn) % 251).unwrap();
    let payload = if trim { Bytes::new() } else { Bytes::from(vec![byte; 4096]) };
    Entry {
        copied: false,
        vdisk: VDISK,
        epoch: Epoch(epoch),
        lsn: Lsn(lsn),
        generation: AttachmentGeneration(1),
        seq: RequestSeq(lsn),
        last: true,
        op: if trim { Op::Trim } else { Op::Write },
        cluster: Cluster(lsn % 16),
        count: 1,
        checksums: if trim { Vec::new() } else { vec![crc32c(&payload)] },
        payload,
    }
}

pub fn run(entries: &[Entry]) -> Bytes {
    let mut bytes = Vec::new();
    for Outgoing { header, payload, .. } in entries.iter().map(outgoing) {
        bytes.extend_from_slice(&header);
        bytes.extend_from_slice(&payload);
    }
    bytes.into()
}

pub fn append(log: LogName, lsns: std::ops::RangeInclusive<u64>) -> Ask {
    let first = Lsn(*lsns.start());
    let entries: Vec<Entry> = lsns.map(|lsn| entry(log.epoch.0, lsn)).collect();
    let records = run(&entries);
    Ask::Append { log, first, entries, records }
}

/// A target and what it wants done.
pub struct Driven {
    pub target: Target<MemDisk>,
    pub disk: MemDisk,
    pub now: Now,
    /// Arakoon says yes.
    pub authorizes: bool,
    next_ticket: Ticket,
    pub wanted: Vec<Effect>,
    pub answers: BTreeMap<Ticket, Result<Answer, Refusal>>,
}

impl Driven {
    pub fn open(disk: MemDisk, now: Now) -> Self {
        let target = Target::open(VDISK, LIMITS, disk.clone(), now).unwrap();
        Self {
            target,
            disk,
            now,
            authorizes: true,
            next_ticket: 1,
            wanted: Vec::new(),
            answers: BTreeMap::new(),
        }
    }

    /// Asks; what the target wants done is left to be done.
    pub fn ask(&mut self, ask: Ask) -> Ticket {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        let mut out = Vec::new();
        self.target.request(ticket, ask, self.now, &mut out);
        self.take(out);
        ticket
    }

    fn take(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Answer { ticket, answer } => {
                    let before = self.answers.insert(ticket, answer);
                    assert!(before.is_none(), "ticket {ticket} is answered twice");
                }
                Effect::Remove(chunks) => {
                    chunks.iter().for_each(|chunk| self.disk.remove(*chunk).unwrap());
                }
                wanted @ (Effect::Authorize { .. }
                | Effect::Promise { .. }
                | Effect::Sync { .. }) => {
                    self.wanted.push(wanted);
                }
            }
        }
    }

    /// Carries out one thing that is wanted.
    pub fn do_one(&mut self, index: usize) {
        let mut out = Vec::new();
        match self.wanted.remove(index) {
            Effect::Authorize { ticket, .. } => {
                let no = Err(Refusal::NotNamed("no".to_owned()));
                let verdict = if self.authorizes { Ok(()) } else { no };
                self.target.authorized(ticket, verdict, self.now, &mut out);
            }
            Effect::Promise { version, file } => match self.disk.promise(&file) {
                Ok(()) => self.target.promised(version, self.now, &mut out),
                Err(error) => self.target.promise_failed(&error.to_string(), &mut out),
            },
            Effect::Sync { generation, job } => {
                let done = self.disk.sync(&job.chunks);
                self.target.synced(generation, done, self.now, &mut out);
            }
            Effect::Answer { .. } | Effect::Remove(_) => unreachable!("carried out at once"),
        }
        self.take(out);
    }

    pub fn do_all(&mut self) {
        while !self.wanted.is_empty() {
            self.do_one(0);
        }
    }

    pub fn advance(&mut self, ms: u64) {
        self.now = self.now.plus(Duration::from_millis(ms));
        let mut out = Vec::new();
        self.target.tick(self.now, &mut out);
        self.take(out);
    }

    /// Asks, does all that is wanted, and gives the answer.
    pub fn answer(&mut self, ask: Ask) -> Result<Answer, Refusal> {
        let ticket = self.ask(ask);
        self.do_all();
        self.answers.get(&ticket).cloned().expect("answered")
    }

    pub fn create(&mut self, log: &LogName, base: u64) -> Result<Answer, Refusal> {
        let nonce = 1000 + log.generation.0;
        self.answer(Ask::Create { log: log.clone(), base: Lsn(base), nonce })
    }

    /// Arakoon's record was seen to need these no more.
    pub fn forget(&mut self, generations: &[u64]) {
        let gone: Vec<_> = generations.iter().copied().map(DtlGeneration).collect();
        let mut out = Vec::new();
        self.target.forget(&gone, self.now, &mut out);
        self.take(out);
        self.do_all();
    }

    pub fn held(&self, generation: u64) -> Option<Held> {
        self.target.held().into_iter().find(|held| held.generation.0 == generation)
    }

    /// All records of a log, checked against what was written.
    pub fn check_records(&self, held: &Held, writer: impl Fn(u64) -> u64) {
        let reader = (Epoch(u64::MAX), held.generation);
        let mut from = held.base.next();
        while from <= held.last {
            let entries = self.target.read(reader, from, 10_000).unwrap();
            assert!(!entries.is_empty(), "nothing at LSN {from} of {held:?}");
            for found in entries {
                let wanted = entry(writer(from.0), from.0);
                assert_eq!(format!("{found:?}"), format!("{wanted:?}"));
                from = from.next();
            }
        }
    }
}
