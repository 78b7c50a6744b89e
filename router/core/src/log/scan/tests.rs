//! What makes a record one of this log, this lap, this vDisk and this place (P1).

use std::collections::BTreeMap;

use bytes::Bytes;
use model::{AttachmentGeneration, Cluster, Epoch, Lsn, RequestSeq, VdiskId};

use super::*;
use crate::log::pool::{Batch, Entry, Log, OpenLog};
use crate::log::record::Op;
use crate::recover::{self, Facts};
use crate::{CLUSTER, crc32c};

const SEGMENT: u64 = 256 << 10;
const LOG: LogId = LogId(7);

fn entry(vdisk: u128, lsn: u64) -> Entry {
    let payload = Bytes::from(vec![7; CLUSTER]);
    Entry {
        vdisk: VdiskId(vdisk),
        epoch: Epoch(3),
        lsn: Lsn(lsn),
        generation: AttachmentGeneration(2),
        seq: RequestSeq(lsn),
        last: true,
        copied: false,
        op: Op::Write,
        cluster: Cluster(40 + lsn),
        count: 1,
        checksums: vec![crc32c(&payload)],
        payload,
    }
}

/// The first file of a log with these records; all but the last are synced, and the last says so.
fn file(entries: Vec<Entry>) -> Vec<u8> {
    let mut batch = Batch::default();
    let open = OpenLog {
        id: LOG,
        segment_size: SEGMENT,
        files: 4,
        segments: Vec::new(),
        next_lap: Lap(1),
        first: 0,
    };
    let mut log = Log::open(open, &mut batch);
    let last = entries.len() - 1;
    for (number, entry) in entries.into_iter().enumerate() {
        if number == last {
            log.begin_sync().unwrap();
            log.sync_done();
        }
        log.place(entry, &mut batch).unwrap();
    }
    let mut file = vec![0; model::usize_of(SEGMENT)];
    for run in batch.runs {
        assert_eq!(run.file, 0);
        let mut at = model::usize_of(run.offset);
        for piece in run.pieces {
            for part in [&batch.headers[piece.header], &piece.payload[..]] {
                file[at..at + part.len()].copy_from_slice(part);
                at += part.len();
            }
            at += piece.padding;
        }
    }
    file
}

fn scan(log: LogId, file: &[u8]) -> Result<Scan, NoList> {
    let mut scanner = Scanner::new(log, SEGMENT);
    scanner.add_file(0, file);
    scanner.finish()
}

#[test]
fn p1_a_record_comes_back_with_all_that_it_says() {
    let scan = scan(LOG, &file(vec![entry(5, 1), entry(5, 2)])).unwrap();
    let record = &scan.records[1].record;
    assert_eq!((record.log, record.lap, record.vdisk), (LOG, Lap(1), VdiskId(5)));
    assert_eq!((record.epoch, record.lsn, record.cluster), (Epoch(3), Lsn(2), Cluster(42)));
    assert_eq!((record.generation, record.seq), (AttachmentGeneration(2), RequestSeq(2)));
    assert_eq!((record.op, record.count, record.last), (Op::Write, 1, true));
    assert!(scan.records[0].record.end() <= record.synced_through);
}

/// A write that the disk put where it doesn't belong is no record of that place, however whole it is.
#[test]
fn p1_a_record_counts_at_its_own_place_only() {
    let file = file(vec![entry(5, 1), entry(5, 2), entry(5, 3)]);
    let good = scan(LOG, &file).unwrap();
    let at = |index: usize| {
        let found = &good.records[index];
        let end = model::usize_of(found.record.end() - SEGMENT);
        end - found.record.len()..end
    };
    // The second lies over the first as well.
    let mut misplaced = file.clone();
    misplaced.copy_within(at(1), at(0).start);
    let seen = scan(LOG, &misplaced).unwrap();
    let lsns: Vec<u64> = seen.records.iter().map(|found| found.record.lsn.0).collect();
    assert_eq!(lsns, [2, 3]);
    assert_eq!(seen.damages.len(), 1, "what was synced there is missing, and that is said");
    let scanner = Scanner::new(LOG, SEGMENT);
    assert!(scanner.own_record(&misplaced, at(1).start).is_some());
    assert_eq!(scanner.own_record(&misplaced, at(0).start), None);
}

#[test]
fn p1_a_record_of_another_log_is_none_of_this_one() {
    let file = file(vec![entry(5, 1), entry(5, 2)]);
    assert_eq!(scan(LOG, &file).unwrap().records.len(), 2);
    let other = scan(LogId(8), &file).unwrap();
    assert_eq!((other.records.len(), other.synced), (0, 0), "files of a log that was replaced");
}

#[test]
fn p1_a_record_counts_for_its_own_vdisk_only() {
    // The same LSN, written by two.
    let scan = scan(LOG, &file(vec![entry(5, 1), entry(6, 1), entry(5, 2)])).unwrap();
    let epochs = BTreeMap::new();
    for (vdisk, records) in [(5, vec![0, 2]), (6, vec![1]), (7, vec![])] {
        let facts = Facts {
            vdisk: VdiskId(vdisk),
            head_lsn: Lsn(0),
            epochs: &epochs,
            promised_log: LOG,
            log_from: 0,
            own_log: LOG,
            accepted: &[],
        };
        assert_eq!(recover::plan(&facts, &scan).unwrap().records, records, "vDisk {vdisk}");
    }
}

#[test]
fn p1_a_damaged_header_is_no_record_whatever_bit_it_is() {
    let file = file(vec![entry(5, 1), entry(5, 2)]);
    let good = scan(LOG, &file).unwrap();
    let header = model::usize_of(good.records[0].payload_offset) - 128;
    let scanner = Scanner::new(LOG, SEGMENT);
    assert!(scanner.own_record(&file, header).is_some());
    for bit in 0..128 * 8 {
        let mut bad = file.clone();
        bad[header + bit / 8] ^= 1 << (bit % 8);
        assert_eq!(scanner.own_record(&bad, header), None, "bit {bit}");
    }
}
