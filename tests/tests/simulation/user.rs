//! The user: what it asks, and what it may be answered.
//!
//! Every 512 bytes are a register that says who wrote it; [`holdfast_tests::history`] judges what is read.
//!
//! Invariant: an operation counts as acknowledged only when its answer came.

use std::time::Duration;

use bytes::Bytes;
use edge_core::session::{IoError, Op, Outcome, Settings};
use holdfast_tests::history::{Effect as Mark, Violation};
use holdfast_tests::stamp::{Observed, Stamp, UNIT};
use router_core::crc32c;
use sim::Chance;
use wire::router::{Durability, UnmapKind};

use super::message::EDGE;
use super::world::Life;

pub const CLUSTERS: u64 = 80;
pub const UNITS: u64 = CLUSTERS * 8;
pub const IN_FLIGHT_MAX: usize = 12;

/// What the user waits for.
#[derive(Debug, Clone)]
pub enum Asked {
    Change { operation: u64, durability: Durability },
    Read { began: u64, unit: u64 },
    Flush { began: u64 },
}

impl Life {
    pub fn ask(&mut self) {
        let ticket = self.requests;
        self.requests += 1;
        let (unit, count) = self.place();
        let (offset, len) = (unit * UNIT as u64, count * UNIT as u64);
        let durable = self.random.happens(Chance::percent(8));
        let durability = if durable { Durability::Durable } else { Durability::Normal };
        let (asked, op) = match self.random.below(100) {
            0..52 => {
                let operation = self.history.begin(Mark::Write, unit..unit + count);
                let data = self.data(unit, count, operation);
                let checksums = checksums(offset, &data);
                (
                    Asked::Change { operation, durability },
                    Op::Write { offset, data, checksums, durability },
                )
            }
            52..62 => {
                let operation = self.history.begin(Mark::Zero, unit..unit + count);
                let kind = UnmapKind::Zero;
                (
                    Asked::Change { operation, durability },
                    Op::Unmap { offset, len, kind, durability },
                )
            }
            62..93 => {
                let len = u32::try_from(len).expect("small");
                (Asked::Read { began: self.history.now(), unit }, Op::Read { offset, len })
            }
            _ => (Asked::Flush { began: self.history.now() }, Op::Flush),
        };
        self.note(format_args!("ask {ticket}: {asked:?} at unit {unit}, {count} units"));
        self.asked.insert(ticket, asked);
        self.session.submit(self.now(EDGE), op, ticket);
    }

    /// Mostly a cluster or two, at times eight; half of the time in a hot corner, a third of the time ragged.
    fn place(&mut self) -> (u64, u64) {
        let span = if self.random.happens(Chance::percent(50)) { UNITS / 8 } else { UNITS };
        let mut unit = self.random.below(span);
        let longest = if self.random.happens(Chance::percent(12)) { 64 } else { 16 };
        let mut count = 1 + self.random.below(longest);
        if self.random.happens(Chance::percent(66)) {
            unit -= unit % 8;
            count = count.next_multiple_of(8);
        }
        (unit, count.min(UNITS - unit))
    }

    fn data(&self, unit: u64, count: u64, operation: u64) -> Bytes {
        let mut data = vec![0; usize::try_from(count).expect("small") * UNIT];
        for (unit, bytes) in (unit..).zip(data.chunks_exact_mut(UNIT)) {
            Stamp { run: self.seed, unit, operation }.write_to(bytes);
        }
        Bytes::from(data)
    }

    pub fn take_reply(&mut self, asked: Asked, result: Result<Outcome, IoError>) -> Vec<Violation> {
        match (asked, result) {
            (Asked::Change { operation, durability: Durability::Normal }, Ok(Outcome::Done)) => {
                self.history.acknowledged(operation);
                vec![]
            }
            (Asked::Change { operation, durability: Durability::Durable }, Ok(Outcome::Done)) => {
                self.history.acknowledged_durably(operation);
                vec![]
            }
            // What it overwrites in part couldn't be read for long: an I/O error, outcome unknown.
            (Asked::Change { .. }, Err(IoError::Io)) => {
                self.counts.count("edge: a change given up");
                vec![]
            }
            (Asked::Flush { began }, Ok(Outcome::Done)) => {
                self.history.flushed(began);
                vec![]
            }
            (Asked::Read { began, unit }, Ok(Outcome::Data(parts))) => {
                let observed = self.observe(unit, &parts.concat());
                self.history.check_read(began, unit, &observed)
            }
            (asked, result) => self.fail(&format!("{asked:?} was answered {result:?}")),
        }
    }

    pub fn observe(&self, first: u64, bytes: &[u8]) -> Vec<Observed> {
        let units = (first..).zip(bytes.chunks_exact(UNIT));
        units.map(|(unit, bytes)| Stamp::observe(self.seed, unit, bytes)).collect()
    }
}

pub fn settings() -> Settings {
    Settings {
        log_bytes: 400 << 10,
        log_entries: 24,
        flush_after: Duration::from_millis(300),
        io_deadline: None,
        call_timeout: Duration::from_secs(60),
        unreadable_patience: Duration::from_secs(24 * 3600),
        shared: false,
    }
}

/// CRC-32C of the part of the data in each cluster.
fn checksums(offset: u64, data: &[u8]) -> Vec<u32> {
    let range = model::ByteRange::new(offset, model::u64_of(data.len())).expect("within the vDisk");
    router_core::plan::parts(range, data).map(crc32c).collect()
}
