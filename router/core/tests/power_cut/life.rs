//! The life of a write log between two crashes: two vDisks write, sync, commit and copy forward on few small segments.
//!
//! After every single step the power is cut in every way that [`CUTS`] knows, and what recovery makes of it is judged.
//!
//! Invariant: `promised` is what the users and the backend were told up to now, never more.

use std::collections::BTreeMap;

use bytes::Bytes;
use model::{AttachmentGeneration, Cluster, Epoch, Lap, LogId, Lsn, RequestSeq, VdiskId};
use router_core::log::pool::{Batch, Entry, OpenLog, SyncJob};
use router_core::log::record::Op;
use router_core::log::{Log, Placement, Scan, Scanner};
use router_core::recover::{self, Facts};
use router_core::{CLUSTER, crc32c};
use sim::{Chance, Random};

use crate::disk::{CUTS, Files, Image, Syncing};

const SEGMENT: u64 = 48 << 10;
const FILES: u32 = 4;
const LOG: LogId = LogId(0xfeed);
pub const VDISKS: [VdiskId; 2] = [VdiskId(1), VdiskId(2)];

/// What was tried.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Tally {
    pub moments: u64,
    pub images: u64,
    pub laps: u64,
    pub moved: u64,
    /// LSNs above the flushed ones that a recovery found all the same.
    pub spared: u64,
    /// LSNs that a recovery didn't find, none of them flushed.
    pub dropped: u64,
}

/// What recoveries of damaged files came to, by vDisk.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Judged {
    pub right: u64,
    pub refused: u64,
    /// Lost what nothing on the disk said was synced.
    pub torn: u64,
}

/// One vDisk, as the outside knows it.
#[derive(Default, Clone)]
struct Vdisk {
    /// LSN n is at n - 1.
    history: Vec<Entry>,
    /// Where each record first ended.
    ends: Vec<u64>,
    /// Everything up to here was acknowledged as durable.
    flushed: Lsn,
    /// Everything up to here is in the backend.
    head: Lsn,
    placements: BTreeMap<Lsn, Placement>,
}

impl Vdisk {
    fn last(&self) -> Lsn {
        Lsn(self.history.len() as u64)
    }

    /// First LSN of each epoch, as the backend's TLogs say.
    fn epochs(&self) -> BTreeMap<Epoch, Lsn> {
        let mut epochs = BTreeMap::new();
        for entry in self.history.iter().filter(|entry| entry.lsn <= self.head) {
            epochs.entry(entry.epoch).or_insert(entry.lsn);
        }
        epochs
    }
}

pub struct Life {
    files: Files,
    log: Log,
    batch: Batch,
    syncing: Option<(SyncJob, Syncing)>,
    vdisks: [Vdisk; 2],
    epoch: Epoch,
    next_seq: u64,
    random: Random,
    pub tally: Tally,
}

fn scanner(image: &Image) -> Scanner {
    let mut scanner = Scanner::new(LOG, SEGMENT);
    for (file, bytes) in image {
        scanner.add_file(*file, bytes);
    }
    scanner
}

fn scan(image: &Image) -> Scan {
    scanner(image).finish().expect("a power cut never takes the last list")
}

/// The LSNs above the head that recovery takes, each with its entry's place in the scan.
fn recovered(vdisk: &Vdisk, id: VdiskId, scan: &Scan) -> Vec<usize> {
    let facts = Facts {
        vdisk: id,
        head_lsn: vdisk.head,
        epochs: &vdisk.epochs(),
        promised_log: LOG,
        log_from: 0,
        own_log: LOG,
        accepted: &[],
    };
    recover::plan(&facts, scan).expect("a power cut leaves no gap").records
}

impl Life {
    /// The first life, on a new log.
    pub fn new(seed: u64) -> Self {
        let vdisks = [Vdisk::default(), Vdisk::default()];
        Self::start(Files::default(), vdisks, Epoch(1), Random::new(seed), Tally::default())
    }

    /// Opens what is there, as the driver does: scan, sync what was found, write a list, sync that.
    fn start(
        mut files: Files,
        mut vdisks: [Vdisk; 2],
        epoch: Epoch,
        random: Random,
        tally: Tally,
    ) -> Self {
        let seen = files.seen();
        let scan = scan(&seen);
        assert_eq!(scan.damages, [], "nothing rotted");
        let names = files.names();
        let sync = files.begin_sync(&names);
        files.end_sync(&sync);
        let used = |file: &u32| scan.segments.iter().any(|segment| segment.file == *file);
        let first = (0..).find(|file| !used(file)).expect("the range has no end");
        files.create(first, model::usize_of(SEGMENT));
        let mut batch = Batch::default();
        let open = OpenLog {
            id: LOG,
            segment_size: SEGMENT,
            files: FILES.max(first + 1).max(names.iter().max().map_or(0, |last| last + 1)),
            segments: scan.segments.clone(),
            next_lap: scan.next_lap,
            first,
        };
        let mut log = Log::open(open, &mut batch);
        for file in names {
            log.file_ready(file);
        }
        for (vdisk, id) in vdisks.iter_mut().zip(VDISKS) {
            adopt(vdisk, id, &scan, &seen, &mut log);
        }
        let mut life =
            Self { files, log, batch, syncing: None, vdisks, epoch, next_seq: 1, random, tally };
        // The opening itself is attacked too: its list may be torn away.
        life.append();
        life.attack();
        life.begin_sync();
        life.end_sync();
        life
    }

    /// One step, and then every kind of power cut.
    pub fn step(&mut self) {
        self.step_in_peace();
        self.attack();
    }

    pub fn step_in_peace(&mut self) {
        match self.random.below(100) {
            0..=49 => self.change(),
            50..=66 => self.append(),
            67..=76 => self.begin_sync(),
            77..=86 => self.end_sync(),
            87..=95 => self.commit(),
            _ => self.copy_forward(),
        }
    }

    fn change(&mut self) {
        let index = self.random.index(2);
        let (vdisk, lsn) = (VDISKS[index], self.vdisks[index].last().next());
        let count = self.random.between(1..=2);
        let trims = self.random.happens(Chance::percent(15));
        let mut data = vec![0; if trims { 0 } else { model::usize_of(count) * CLUSTER }];
        for (at, part) in data.chunks_exact_mut(CLUSTER).enumerate() {
            part[..16].copy_from_slice(&self.random.u128().to_le_bytes());
            part[CLUSTER - 1] = u8::try_from(at + 1).expect("small");
        }
        let entry = Entry {
            vdisk,
            epoch: self.epoch,
            lsn,
            generation: AttachmentGeneration(1),
            seq: RequestSeq(self.next_seq),
            last: true,
            copied: false,
            op: if trims { Op::Trim } else { Op::Write },
            cluster: Cluster(self.random.below(16)),
            count,
            checksums: data.chunks_exact(CLUSTER).map(crc32c).collect(),
            payload: Bytes::from(data),
        };
        let Ok(placement) = self.log.place(entry.clone(), &mut self.batch) else {
            // Full: what a router does then is wait for syncs and commits.
            self.append();
            self.begin_sync();
            self.end_sync();
            self.commit();
            return;
        };
        self.next_seq += 1;
        let vdisk = &mut self.vdisks[index];
        vdisk.history.push(entry);
        vdisk.ends.push(placement.end);
        vdisk.placements.insert(lsn, placement);
    }

    fn append(&mut self) {
        for run in &self.batch.runs {
            let mut bytes = Vec::with_capacity(model::usize_of(run.len()));
            for piece in &run.pieces {
                bytes.extend_from_slice(&self.batch.headers[piece.header.clone()]);
                bytes.extend_from_slice(&piece.payload);
                bytes.resize(bytes.len() + piece.padding, 0);
            }
            self.files.write(run.file, model::usize_of(run.offset), bytes);
        }
        self.batch.clear();
        if let Some(file) = self.log.file_wanted() {
            self.files.create(file, model::usize_of(SEGMENT));
            self.log.file_ready(file);
        }
    }

    fn begin_sync(&mut self) {
        self.append();
        if self.syncing.is_none()
            && let Some(job) = self.log.begin_sync()
        {
            let syncing = self.files.begin_sync(&job.files);
            self.syncing = Some((job, syncing));
        }
    }

    fn end_sync(&mut self) {
        let Some((_, syncing)) = self.syncing.take() else { return };
        self.files.end_sync(&syncing);
        self.log.sync_done();
        let synced = self.log.synced();
        for vdisk in &mut self.vdisks {
            // Who waited for a flush is answered now (L2).
            while vdisk.flushed < vdisk.last()
                && vdisk.ends[model::usize_of(vdisk.flushed.0)] <= synced
            {
                vdisk.flushed = vdisk.flushed.next();
            }
        }
        self.log.reserve(&mut self.batch);
    }

    /// The backend stores some more of a vDisk; its records are free then.
    fn commit(&mut self) {
        let index = self.random.index(2);
        let vdisk = &mut self.vdisks[index];
        let left = vdisk.last().0 - vdisk.head.0;
        let more = self.random.between(0..=left);
        for _ in 0..more {
            vdisk.head = vdisk.head.next();
            if let Some(placement) = vdisk.placements.remove(&vdisk.head) {
                self.log.release(placement.lap, placement.bytes);
            }
        }
        self.log.reserve(&mut self.batch);
    }

    fn copy_forward(&mut self) {
        let nearly_dead = self.log.sparse(8).first().copied();
        let Some(lap) = nearly_dead.or_else(|| self.log.oldest()) else { return };
        for vdisk in &mut self.vdisks {
            let there: Vec<Lsn> = vdisk
                .placements
                .iter()
                .filter(|(_, placement)| placement.lap == lap)
                .map(|(lsn, _)| *lsn)
                .collect();
            for lsn in there {
                let entry = vdisk.history[model::usize_of(lsn.0) - 1].clone();
                let entry = Entry { copied: true, ..entry };
                let Ok(placement) = self.log.place(entry, &mut self.batch) else { return };
                let old = vdisk.placements.insert(lsn, placement).expect("it was listed");
                self.log.release(old.lap, old.bytes);
                self.tally.moved += 1;
            }
        }
        self.log.reserve(&mut self.batch);
    }

    /// Every kind of power cut at this moment: nothing flushed is lost, and what is found is a prefix.
    fn attack(&mut self) {
        self.tally.moments += 1;
        for cut in CUTS {
            let image = self.files.image(cut, &mut self.random);
            self.tally.images += 1;
            let scan = scan(&image);
            assert_eq!(scan.damages, [], "{cut:?}: a power cut isn't damage");
            for (vdisk, id) in self.vdisks.iter().zip(VDISKS) {
                let found = recovered(vdisk, id, &scan);
                let last = Lsn(vdisk.head.0 + found.len() as u64);
                assert!(vdisk.flushed <= last, "{cut:?}: {id} lost {last}..={}", vdisk.flushed);
                for (index, lsn) in found.iter().zip(vdisk.head.next().0..) {
                    same(vdisk, Lsn(lsn), &scan, *index, &image);
                }
                self.tally.spared += last.0.saturating_sub(vdisk.flushed.0.max(vdisk.head.0));
                self.tally.dropped += vdisk.last().0 - last.0;
            }
        }
    }

    /// Dies, by power cut or by kill, and lives again.
    pub fn crash(mut self) -> Self {
        let files = if self.random.happens(Chance::percent(70)) {
            let cut = *self.random.pick(&CUTS).expect("there are some");
            Files::from_image(self.files.image(cut, &mut self.random))
        } else {
            self.files
        };
        Self::start(files, self.vdisks, self.epoch.next(), self.random, self.tally)
    }

    /// Everything is synced and told; then the files as they are.
    pub fn rest(&mut self) -> Image {
        self.begin_sync();
        self.end_sync();
        self.begin_sync();
        self.end_sync();
        self.files.seen()
    }

    /// What a recovery makes of files in which something at `position` was damaged.
    pub fn judge(&self, image: &Image, position: u64) -> Judged {
        let mut judged = Judged::default();
        let Ok(scan) = scanner(image).finish() else {
            return Judged { refused: VDISKS.len() as u64, ..judged };
        };
        for (vdisk, id) in self.vdisks.iter().zip(VDISKS) {
            let epochs = vdisk.epochs();
            let facts = Facts {
                vdisk: id,
                head_lsn: vdisk.head,
                epochs: &epochs,
                promised_log: LOG,
                log_from: 0,
                own_log: LOG,
                accepted: &[],
            };
            let Ok(plan) = recover::plan(&facts, &scan) else {
                judged.refused += 1;
                continue;
            };
            let last = Lsn(vdisk.head.0 + plan.records.len() as u64);
            assert!(last <= vdisk.last(), "{id} never had {last}");
            for (index, lsn) in plan.records.iter().zip(vdisk.head.next().0..) {
                same(vdisk, Lsn(lsn), &scan, *index, image);
            }
            if vdisk.flushed <= last {
                judged.right += 1;
                continue;
            }
            // P8: only above everything that any record says was synced is it a torn end.
            assert!(
                scan.synced <= position,
                "{id} lost {last}..={} silently: position {position}, synced {}",
                vdisk.flushed,
                scan.synced
            );
            judged.torn += 1;
        }
        judged
    }

    /// Where in the log the bytes of a file at `offset` are.
    pub fn position(image: &Image, file: u32, offset: usize) -> u64 {
        let scan = scan(image);
        let lap = scan.segments.iter().find(|segment| segment.file == file);
        lap.map_or(u64::MAX, |segment| segment.lap.0 * SEGMENT + offset as u64)
    }

    pub fn laps(&self) -> u64 {
        self.log.written() / SEGMENT
    }
}

/// Takes what a recovery found: what wasn't found never happened.
fn adopt(vdisk: &mut Vdisk, id: VdiskId, scan: &Scan, seen: &Image, log: &mut Log) {
    let found = recovered(vdisk, id, scan);
    let last = Lsn(vdisk.head.0 + found.len() as u64);
    assert!(vdisk.flushed <= last, "{id} lost {last}..={}", vdisk.flushed);
    vdisk.placements.clear();
    for (index, lsn) in found.iter().zip(vdisk.head.next().0..) {
        same(vdisk, Lsn(lsn), scan, *index, seen);
        let record = &scan.records[*index].record;
        let (lap, bytes): (Lap, u64) = (record.lap, record.len() as u64);
        log.pin(lap, bytes);
        vdisk.placements.insert(Lsn(lsn), Placement { lap, bytes, end: record.end() });
    }
    vdisk.history.truncate(model::usize_of(last.0));
    vdisk.ends.truncate(model::usize_of(last.0));
    // All of it was synced when it was found.
    vdisk.flushed = last;
}

fn same(vdisk: &Vdisk, lsn: Lsn, scan: &Scan, index: usize, image: &Image) {
    let found = &scan.records[index];
    let (record, told) = (&found.record, &vdisk.history[model::usize_of(lsn.0) - 1]);
    let at = model::usize_of(found.payload_offset);
    let payload = &image[&found.file][at..at + record.payload_len as usize];
    assert!(record.payload_is_intact(payload));
    let is =
        (record.lsn, record.epoch, record.seq, record.op, record.cluster, record.count, payload);
    let was =
        (told.lsn, told.epoch, told.seq, told.op, told.cluster, told.count, &told.payload[..]);
    assert_eq!(is, was, "LSN {lsn} isn't what was acknowledged under it");
}
