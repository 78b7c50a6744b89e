//! Runs of records: the write log's own encoding (P1), without a place in a log, one record behind the other.
//!
//! The header's checksum binds vDisk, epoch, LSN, cluster and the checksums of the data; a target checks all of it before
//! it takes anything, and a claimant checks again what it reads back (L5).
//!
//! Invariant: a run that [`parse`] accepts has consecutive LSNs of one vDisk, and every payload fits its checksums.

use bytes::Bytes;
use model::{Cluster, Epoch, Lap, LogId, Lsn, VdiskId};

use crate::log::pool::Entry;
use crate::log::record::{Record, header_len};

/// One record, ready to be sent: the header, padded, and the payload, which needs no padding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outgoing {
    pub lsn: Lsn,
    pub header: Bytes,
    pub payload: Bytes,
}

impl Outgoing {
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        (self.header.len() + self.payload.len()) as u64
    }
}

/// A record as a target gets it.
#[must_use]
pub fn outgoing(entry: &Entry) -> Outgoing {
    let record = Record {
        log: LogId::ZERO,
        lap: Lap::ZERO,
        position: 0,
        previous_end: 0,
        synced_through: 0,
        vdisk: entry.vdisk,
        epoch: entry.epoch,
        lsn: entry.lsn,
        generation: entry.generation,
        seq: entry.seq,
        last: entry.last,
        // Copying forward is the owner's log's own affair.
        copied: false,
        op: entry.op,
        cluster: entry.cluster,
        count: entry.count,
        payload_len: model::u32_of(entry.payload.len()),
        checksums: entry.checksums.clone(),
    };
    Outgoing { lsn: entry.lsn, header: record.header().into(), payload: entry.payload.clone() }
}

/// What a run must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expected {
    pub vdisk: VdiskId,
    /// Records of later epochs are nobody's: a log holds what its owner wrote or recovered.
    pub epoch_max: Epoch,
    pub first: Lsn,
    pub count: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("record {index} of the run isn't what was announced: {problem}")]
pub struct BadRun {
    pub index: u32,
    pub problem: &'static str,
}

/// Checks a run to the last byte.
///
/// # Errors
/// At the first record that isn't what was announced.
pub fn parse(run: &Bytes, expected: Expected) -> Result<Vec<Entry>, BadRun> {
    let mut entries = Vec::new();
    let mut rest = run.clone();
    for index in 0..expected.count {
        let bad = |problem| BadRun { index, problem };
        let (entry, len) = parse_one(&rest).map_err(bad)?;
        if entry.vdisk != expected.vdisk || expected.epoch_max < entry.epoch {
            return Err(bad("another vDisk or a later epoch"));
        }
        if entry.lsn.0 != expected.first.0.saturating_add(index.into()) {
            return Err(bad("LSN out of turn"));
        }
        rest = rest.slice(len..);
        entries.push(entry);
    }
    if !rest.is_empty() {
        return Err(BadRun { index: expected.count, problem: "bytes left over" });
    }
    Ok(entries)
}

/// The record at the start of `bytes`, checked, and its length.
///
/// # Errors
/// When there is no whole, undamaged record of a vDisk.
pub fn parse_one(bytes: &Bytes) -> Result<(Entry, usize), &'static str> {
    let record = Record::parse(bytes).map_err(|_| "no record")?;
    if record.op.is_list() {
        return Err("a list of segments");
    }
    let (start, len) = (record.header_len(), record.len());
    if bytes.len() < len {
        return Err("payload cut short");
    }
    let payload = bytes.slice(start..start + record.payload_len as usize);
    if !record.payload_is_intact(&payload) {
        return Err("payload doesn't match its checksums");
    }
    let entry = Entry {
        vdisk: record.vdisk,
        epoch: record.epoch,
        lsn: record.lsn,
        generation: record.generation,
        seq: record.seq,
        last: record.last,
        copied: false,
        op: record.op,
        cluster: Cluster(record.cluster.0),
        count: record.count,
        checksums: record.checksums,
        payload,
    };
    Ok((entry, len))
}

/// Bytes of the first `count` records of a run that was parsed.
#[must_use]
pub fn prefix_len(entries: &[Entry], count: usize) -> usize {
    entries.iter().take(count).map(|e| header_len(e.checksums.len()) + e.payload.len()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::record::Op;
    use crate::{CLUSTER, crc32c};
    use model::{AttachmentGeneration, RequestSeq};
    use proptest::prelude::*;

    fn entry(lsn: u64, op: Op) -> Entry {
        let trim = op == Op::Trim;
        let byte = u8::try_from(lsn % 251).unwrap();
        let payload = if trim { Bytes::new() } else { vec![byte; CLUSTER].into() };
        Entry {
            copied: false,
            vdisk: VdiskId(7),
            epoch: Epoch(2),
            lsn: Lsn(lsn),
            generation: AttachmentGeneration(1),
            seq: RequestSeq(lsn),
            last: true,
            op,
            cluster: Cluster(lsn),
            count: 1,
            checksums: if trim { Vec::new() } else { vec![crc32c(&payload)] },
            payload,
        }
    }

    fn run(entries: &[Entry]) -> Bytes {
        let mut bytes = Vec::new();
        for entry in entries {
            let record = outgoing(entry);
            bytes.extend_from_slice(&record.header);
            bytes.extend_from_slice(&record.payload);
        }
        bytes.into()
    }

    const EXPECTED: Expected =
        Expected { vdisk: VdiskId(7), epoch_max: Epoch(2), first: Lsn(5), count: 3 };

    #[test]
    fn a_run_survives_its_bytes() {
        let entries = [entry(5, Op::Write), entry(6, Op::Trim), entry(7, Op::Write)];
        let bytes = run(&entries);
        let parsed = parse(&bytes, EXPECTED).unwrap();
        assert_eq!(format!("{parsed:?}"), format!("{entries:?}"));
        assert_eq!(prefix_len(&parsed, 3), bytes.len());
        assert_eq!(prefix_len(&parsed, 2), bytes.len() - 128 - CLUSTER);
    }

    #[test]
    fn a_run_that_is_not_what_was_announced_is_refused() {
        let good = [entry(5, Op::Write), entry(6, Op::Trim), entry(7, Op::Write)];
        for wrong in [
            Expected { first: Lsn(6), ..EXPECTED },
            Expected { vdisk: VdiskId(8), ..EXPECTED },
            Expected { epoch_max: Epoch(1), ..EXPECTED },
            Expected { count: 2, ..EXPECTED },
            Expected { count: 4, ..EXPECTED },
        ] {
            assert!(parse(&run(&good), wrong).is_err(), "{wrong:?}");
        }
        let holed = [entry(5, Op::Write), entry(7, Op::Write), entry(8, Op::Write)];
        assert!(parse(&run(&holed), EXPECTED).is_err());
    }

    proptest! {
        #[test]
        fn any_flipped_bit_is_seen(at in 0usize..128 + 4096, bit in 0u8..8) {
            let mut bytes = run(&[entry(5, Op::Write)]).to_vec();
            bytes[at] ^= 1 << bit;
            let expected = Expected { count: 1, ..EXPECTED };
            prop_assert!(parse(&bytes.into(), expected).is_err());
        }

        #[test]
        fn garbage_never_panics(bytes: Vec<u8>) {
            let _ = parse(&bytes.into(), EXPECTED);
        }
    }
}
