//! A router made of its cores, its log on simulated disks, and a model of what it was told.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use model::{
    AttachmentGeneration, Cluster, ClusterRange, Epoch, Lap, LogId, Lsn, ObjectId, RequestSeq,
    VdiskId,
};
use router_core::applied::{AppliedMap, AppliedSet};
use router_core::log::pool::{Batch, OpenLog, SyncJob};
use router_core::log::record::Op;
use router_core::log::{Log, Placement, Scan, Scanner};
use router_core::map::MemoryMap;
use router_core::overlay::Lookup;
use router_core::recover::{self, Gap};
use router_core::sco::{self, Frame, frame_range};
use router_core::tlog::Tlog;
use router_core::volume::{Change, HeadState, Opening, Replayed, Stamp, Volume};
use router_core::{CLUSTER, crc32c};
use sim::{Chance, Disk, Random};
use wire::router::UnmapKind;

use crate::backend::{Answer, Backend, Put};

const FILES: u32 = 6;
const SEGMENT: u64 = 256 << 10;
const CLUSTERS: u64 = 40;
const LOG: LogId = LogId(0xfeed);
const VDISKS: [VdiskId; 2] = [VdiskId(1), VdiskId(2)];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Crash {
    Kill,
    Power,
}

/// What was accepted, in order: the model that everything is compared with.
#[derive(Debug, Default)]
struct History {
    /// LSN n is at n - 1.
    changes: Vec<(Change, Stamp)>,
    /// In the page cache and acknowledged.
    appended: Lsn,
    /// A flush that covers this was acknowledged.
    flushed: Lsn,
    generation: AttachmentGeneration,
    next_seq: u64,
}

impl History {
    fn image(&self, upto: Lsn) -> BTreeMap<u64, Bytes> {
        let mut image = BTreeMap::new();
        for (change, _) in &self.changes[..model::usize_of(upto.0)] {
            match change {
                Change::Write { cluster, data, checksums } => {
                    for at in 0..checksums.len() {
                        image.insert(
                            cluster.0 + at as u64,
                            data.slice(at * CLUSTER..(at + 1) * CLUSTER),
                        );
                    }
                }
                Change::Unmap { range, .. } => {
                    image.retain(|cluster, _| !range.contains(Cluster(*cluster)));
                }
            }
        }
        image
    }

    fn applied(&self, upto: Lsn) -> BTreeSet<(AttachmentGeneration, RequestSeq)> {
        let changes = &self.changes[..model::usize_of(upto.0)];
        changes.iter().filter(|(_, stamp)| stamp.last).map(|(_, s)| (s.generation, s.seq)).collect()
    }
}

struct Vdisk {
    core: Volume,
    map: MemoryMap,
    /// What of the map is on disk: the map, and the last object it holds.
    stored_map: (MemoryMap, Option<ObjectId>),
    tlogs: BTreeMap<ObjectId, Tlog>,
    puts: BTreeMap<ObjectId, Put>,
    epoch: Epoch,
    last_end: u64,
    history: History,
}

pub struct Router {
    disks: Vec<Disk>,
    log: Log,
    batch: Batch,
    sync: Option<(SyncJob, bool, [Lsn; 2])>,
    backend: Backend,
    vdisks: Vec<Vdisk>,
}

fn write_batch(disks: &mut [Disk], batch: &Batch) {
    for run in &batch.runs {
        let disk = &mut disks[run.file as usize];
        let mut offset = run.offset;
        for piece in &run.pieces {
            let header = &batch.headers[piece.header.clone()];
            disk.write(offset, header).unwrap();
            disk.write(offset + header.len() as u64, &piece.payload).unwrap();
            offset += (header.len() + piece.payload.len() + piece.padding) as u64;
        }
    }
}

impl Router {
    pub fn new(mut random: Random) -> Self {
        let mut disks: Vec<Disk> = (0..FILES).map(|_| Disk::new(random.fork(), SEGMENT)).collect();
        let mut backend = Backend::default();
        let mut batch = Batch::default();
        let mut log = Log::open(
            OpenLog {
                id: LOG,
                segment_size: SEGMENT,
                files: FILES,
                segments: Vec::new(),
                next_lap: Lap(1),
                first: 0,
            },
            &mut batch,
        );
        write_batch(&mut disks, &batch);
        batch.clear();
        disks[0].sync().unwrap();
        log.begin_sync().unwrap();
        log.sync_done();
        (0..FILES).for_each(|file| log.file_ready(file));
        let vdisks = VDISKS.map(|vdisk| {
            backend.raise(vdisk, Epoch(1));
            Vdisk {
                core: Volume::open(opening(vdisk, Epoch(1), HeadState::default())),
                map: MemoryMap::default(),
                stored_map: Default::default(),
                tlogs: BTreeMap::new(),
                puts: BTreeMap::new(),
                epoch: Epoch(1),
                last_end: 0,
                history: History { generation: AttachmentGeneration(1), ..History::default() },
            }
        });
        Self { disks, log, batch, sync: None, backend, vdisks: vdisks.into() }
    }

    pub fn positions(&self) -> Vec<(u64, u64, u64)> {
        let all = self.vdisks.iter();
        all.map(|v| (v.core.committed_lsn().0, v.history.flushed.0, v.core.last_lsn().0)).collect()
    }

    fn accept(&mut self, index: usize, changes: Vec<Change>) {
        let vdisk = &mut self.vdisks[index];
        let needed: usize = changes.iter().map(|c| c.data_len() as usize + 512).sum();
        // A request that doesn't fit waits in the real router; here it isn't made.
        if !self.log.has_room(0, needed + 8192) {
            if self.log.wants_sync() {
                self.append();
                self.begin_sync_now();
                self.end_sync();
            }
            return;
        }
        vdisk.history.next_seq += 1;
        let seq = RequestSeq(vdisk.history.next_seq);
        let count = changes.len();
        for (at, change) in changes.into_iter().enumerate() {
            let stamp = Stamp { generation: vdisk.history.generation, seq, last: at + 1 == count };
            let entry = vdisk.core.entry(&change, stamp);
            let Ok(placement) = self.log.place(entry, &mut self.batch) else {
                // Only its first records are there: the sequence isn't applied.
                return;
            };
            vdisk.last_end = placement.end;
            let lsn = vdisk.core.accept(change.clone(), stamp, placement);
            vdisk.history.changes.push((change, stamp));
            assert_eq!(lsn.0, vdisk.history.changes.len() as u64);
        }
    }

    fn some_write(random: &mut Random) -> Change {
        let count = random.between(1..=3);
        let cluster = Cluster(random.below(CLUSTERS - count));
        let mut data = vec![0; model::usize_of(count) * CLUSTER];
        for part in data.chunks_exact_mut(CLUSTER) {
            part.fill(u8::try_from(random.between(1..=255)).unwrap());
            part[..8].copy_from_slice(&random.u64().to_le_bytes());
        }
        let checksums = data.chunks_exact(CLUSTER).map(crc32c).collect();
        Change::Write { cluster, data: Bytes::from(data), checksums }
    }

    pub fn write(&mut self, random: &mut Random) {
        let index = random.index(self.vdisks.len());
        self.accept(index, vec![Self::some_write(random)]);
    }

    /// Ragged: a written head, a range, a written tail: three LSNs, one sequence.
    pub fn unmap(&mut self, random: &mut Random) {
        let index = random.index(self.vdisks.len());
        let start = random.below(CLUSTERS);
        let count =
            if random.happens(Chance::percent(20)) { 1 << 32 } else { random.between(1..=12) };
        let range = ClusterRange::new(Cluster(start), count).unwrap();
        let kind =
            if random.happens(Chance::percent(50)) { UnmapKind::Trim } else { UnmapKind::Zero };
        let mut changes = vec![Change::Unmap { range, kind }];
        if random.happens(Chance::percent(50)) {
            changes.insert(0, Self::some_write(random));
            changes.push(Self::some_write(random));
        }
        self.accept(index, changes);
    }

    /// A request whose sequence is applied comes again: nothing changes (P3).
    pub fn again(&mut self, random: &mut Random) {
        let vdisk = &self.vdisks[random.index(self.vdisks.len())];
        let Some((_, stamp)) = random.pick(&vdisk.history.changes) else { return };
        if stamp.generation == vdisk.history.generation {
            assert!(vdisk.core.applied().contains(stamp.generation, stamp.seq) || !stamp.last);
        }
    }

    /// The attachment ends and another begins: the next generation.
    pub fn detach(&mut self, random: &mut Random) {
        let index = random.index(self.vdisks.len());
        let vdisk = &mut self.vdisks[index];
        vdisk.history.generation = vdisk.history.generation.next();
        vdisk.history.next_seq = 0;
        let live = vdisk.history.generation;
        vdisk.core.applied_mut().retain(|generation| generation == live);
    }

    pub fn append(&mut self) {
        write_batch(&mut self.disks, &self.batch);
        self.batch.clear();
        for vdisk in &mut self.vdisks {
            vdisk.history.appended = vdisk.core.last_lsn();
        }
    }

    fn begin_sync_now(&mut self) {
        if let Some(job) = self.log.begin_sync() {
            let covered = [0, 1].map(|at: usize| self.vdisks[at].core.last_lsn());
            self.sync = Some((job, false, covered));
        }
    }

    /// The disk may do its work now or only at the end: both count as one sync.
    pub fn begin_sync(&mut self, random: &mut Random) {
        self.append();
        if self.sync.is_some() {
            return;
        }
        self.begin_sync_now();
        if let Some((job, done, _)) = &mut self.sync
            && random.happens(Chance::percent(50))
        {
            *done = true;
            for file in &job.files {
                self.disks[*file as usize].sync().unwrap();
            }
        }
    }

    pub fn end_sync(&mut self) {
        let Some((job, done, covered)) = self.sync.take() else { return };
        if !done {
            for file in &job.files {
                self.disks[*file as usize].sync().unwrap();
            }
        }
        self.log.sync_done();
        for (vdisk, lsn) in self.vdisks.iter_mut().zip(covered) {
            // P2: what came after the sync began isn't covered, however early the answer arrives.
            vdisk.history.flushed = vdisk.history.flushed.max(lsn);
        }
        self.log.reserve(&mut self.batch);
    }

    pub fn flush(&mut self, random: &mut Random) {
        self.end_sync();
        self.begin_sync(random);
        self.end_sync();
        for vdisk in &self.vdisks {
            assert!(vdisk.last_end <= self.log.synced());
        }
    }

    pub fn seal(&mut self, random: &mut Random) {
        let index = random.index(self.vdisks.len());
        self.vdisks[index].core.seal();
    }

    pub fn copy_forward(&mut self, random: &mut Random) {
        let nearly_dead = self.log.sparse(8).first().copied();
        let Some(lap) = nearly_dead.or_else(|| self.log.oldest()) else { return };
        for vdisk in &mut self.vdisks {
            for (lsn, entry) in vdisk.core.records_in(lap) {
                if random.happens(Chance::percent(10)) || !self.log.has_room(0, 64 << 10) {
                    continue;
                }
                let Ok(placement) = self.log.place(entry, &mut self.batch) else { return };
                if let Some(old) = vdisk.core.moved(lsn, placement) {
                    self.log.release(old.lap, old.bytes);
                }
            }
        }
        self.log.reserve(&mut self.batch);
    }

    pub fn backend_step(&mut self, random: &mut Random) {
        for vdisk in &mut self.vdisks {
            while let Some(unit) = vdisk.core.next_unit(3) {
                let built = sco::build(&unit);
                let put = Put {
                    object: unit.object,
                    predecessor: unit.predecessor,
                    payload: built.payload,
                    meta: built.meta.encode(),
                };
                vdisk.tlogs.insert(unit.object, built.tlog);
                vdisk.puts.insert(unit.object, put.clone());
                self.backend.send(put);
            }
        }
        for _ in 0..random.between(1..=4) {
            match self.backend.step(random) {
                Some(Answer::Stored(object)) => self.stored(object, random),
                Some(Answer::Failed(object)) => {
                    // The same object again, until it is stored. A dead epoch's put is nobody's.
                    let vdisk = &self.vdisks[index_of(object.vdisk)];
                    if let Some(put) = vdisk.puts.get(&object) {
                        self.backend.send(put.clone());
                    }
                }
                Some(Answer::Fenced(object)) => {
                    assert!(
                        object.epoch < self.vdisks[index_of(object.vdisk)].epoch,
                        "only the dead are fenced"
                    );
                }
                None => {}
            }
        }
    }

    fn stored(&mut self, object: ObjectId, random: &mut Random) {
        let vdisk = &mut self.vdisks[index_of(object.vdisk)];
        if object.epoch != vdisk.epoch || vdisk.puts.remove(&object).is_none() {
            return;
        }
        for committed in vdisk.core.unit_done(object) {
            let tlog = vdisk.tlogs.remove(&committed.object).unwrap();
            vdisk.map.apply(&tlog);
            if random.happens(Chance::percent(30)) {
                vdisk.stored_map = (vdisk.map.clone(), Some(committed.object));
            }
            for (lap, bytes) in vdisk.core.drop_through(committed.last_lsn) {
                self.log.release(lap, bytes);
            }
            // P7: what the backend shows is the state at the end of a unit, nothing in between.
            let rebuilt = self.backend.rebuilt_map(object.vdisk);
            let (_, head) = self.backend.head(object.vdisk).unwrap();
            if head.last_lsn == committed.last_lsn {
                assert_eq!(rebuilt, vdisk.map, "L6: the followed map is what the TLogs say");
            }
        }
        self.log.reserve(&mut self.batch);
    }

    /// Every cluster of every vDisk, read as the router reads it.
    pub fn check(&self) {
        for vdisk in &self.vdisks {
            let expected = vdisk.history.image(vdisk.core.last_lsn());
            for cluster in (0..CLUSTERS).map(Cluster) {
                let seen = match vdisk.core.overlay.lookup(cluster) {
                    Lookup::Data(data, checksum) => {
                        assert_eq!(crc32c(&data), checksum);
                        Some(data)
                    }
                    Lookup::Unmapped => None,
                    Lookup::Below => vdisk.map.get(cluster).map(|location| {
                        let payload = self.backend.payload(vdisk.core.vdisk(), location.number());
                        let (offset, len) = frame_range(location);
                        let bytes = payload.slice(offset as usize..offset as usize + len as usize);
                        Frame::verify(location, bytes)
                            .unwrap()
                            .cluster(location, cluster)
                            .unwrap()
                            .0
                    }),
                };
                assert_eq!(
                    seen.as_ref(),
                    expected.get(&cluster.0),
                    "{cluster:?} of {}",
                    vdisk.core.vdisk()
                );
            }
            let applied = vdisk.history.applied(vdisk.core.last_lsn());
            for seq in 1..=vdisk.history.next_seq + 1 {
                let key = (vdisk.history.generation, RequestSeq(seq));
                assert_eq!(
                    vdisk.core.applied().contains(key.0, key.1),
                    applied.contains(&key),
                    "P3: {key:?}"
                );
            }
        }
    }

    fn scan(&mut self) -> Option<Scan> {
        let mut scanner = Scanner::new(LOG, SEGMENT);
        for (file, disk) in (0..).zip(&mut self.disks) {
            scanner.add_file(file, &disk.read(0, SEGMENT as usize).unwrap());
        }
        scanner.finish().ok()
    }

    /// Dies and comes back. False = a vDisk says that something is missing.
    pub fn crash(&mut self, crash: Crash, rotten: bool, random: &mut Random) -> bool {
        self.sync = None;
        self.batch.clear();
        self.fail(crash);
        if rotten && random.happens(Chance::percent(80)) {
            let file = random.index(self.disks.len());
            self.disks[file].rot();
        }
        // Some of the dead one's puts still arrive before the claim.
        for _ in 0..random.below(4) {
            let _ = self.backend.step(random);
        }
        loop {
            let Some(scan) = self.scan() else {
                assert!(rotten, "lists get lost by rot only");
                return false;
            };
            if !self.reopen(&scan, crash, random) {
                continue;
            }
            for index in 0..self.vdisks.len() {
                if let Err(gap) = self.recover(index, &scan, crash, rotten, random) {
                    assert!(rotten, "{gap}");
                    return false;
                }
            }
            self.check();
            return true;
        }
    }

    fn fail(&mut self, crash: Crash) {
        for disk in &mut self.disks {
            match crash {
                Crash::Kill => disk.process_crash(),
                Crash::Power => disk.power_cut(),
            }
        }
    }

    /// Opens the log behind what the scan found; false = it died again before that was durable.
    fn reopen(&mut self, scan: &Scan, crash: Crash, random: &mut Random) -> bool {
        self.disks.iter_mut().for_each(|disk| disk.sync().unwrap());
        let used = |file: &u32| scan.segments.iter().any(|segment| segment.file == *file);
        let first = (0..).find(|file| !used(file)).unwrap();
        if self.disks.len() == first as usize {
            // Killed while full: one file more.
            self.disks.push(Disk::new(random.fork(), SEGMENT));
        }
        let files = u32::try_from(self.disks.len()).unwrap();
        let mut batch = Batch::default();
        self.log = Log::open(
            OpenLog {
                id: LOG,
                segment_size: SEGMENT,
                files,
                segments: scan.segments.clone(),
                next_lap: scan.next_lap,
                first,
            },
            &mut batch,
        );
        write_batch(&mut self.disks, &batch);
        if random.happens(Chance::percent(15)) {
            self.fail(crash);
            return false;
        }
        self.disks[first as usize].sync().unwrap();
        self.log.begin_sync().unwrap();
        self.log.sync_done();
        (0..files).for_each(|file| self.log.file_ready(file));
        for found in &scan.records {
            self.log.pin(found.record.lap, found.record.len() as u64);
        }
        true
    }

    fn recover(
        &mut self,
        index: usize,
        scan: &Scan,
        crash: Crash,
        rotten: bool,
        random: &mut Random,
    ) -> Result<(), Gap> {
        let vdisk = VDISKS[index];
        let old = &self.vdisks[index];
        let epoch = old.epoch.next();
        // P18: claim, raise, and only then read the head.
        self.backend.raise(vdisk, epoch);
        let head = match self.backend.head(vdisk) {
            None => HeadState::default(),
            Some((object, tlog)) => {
                let mut applied = AppliedMap::default();
                for (generation, set) in &tlog.applied {
                    applied.set(*generation, AppliedSet::from_wire(set));
                }
                let epochs = tlog.epochs.iter().copied().collect();
                HeadState { object: Some(object), last_lsn: tlog.last_lsn, applied, epochs }
            }
        };
        let plan = recover::plan(&facts_of(vdisk, &head), scan)?;
        let mut core = Volume::open(opening(vdisk, epoch, head));
        let kept: BTreeSet<usize> = plan.records.iter().copied().collect();
        for at in plan.records {
            let found = &scan.records[at];
            core.replay(self.replayed(found));
        }
        for (at, found) in scan.records.iter().enumerate() {
            if found.record.vdisk == vdisk && !kept.contains(&at) {
                self.log.release(found.record.lap, found.record.len() as u64);
            }
        }
        let (map, stored_map) = self.recovered_map(vdisk, &self.vdisks[index].stored_map, random);
        let old = &mut self.vdisks[index];
        let last = core.last_lsn();
        let promised = match (rotten, crash) {
            // P8: what no valid record says was synced can't be told from a torn end.
            (true, _) => Lsn::ZERO,
            (false, Crash::Kill) => old.history.appended,
            (false, Crash::Power) => old.history.flushed,
        };
        assert!(promised <= last, "{crash:?}: {promised} was promised, {last} is there");
        let mut history = std::mem::take(&mut old.history);
        assert!(last.0 <= history.changes.len() as u64, "nothing is made up");
        let synced_lsn = scan
            .records
            .iter()
            .filter(|f| f.record.vdisk == vdisk && f.record.end() <= scan.synced);
        let synced_lsn = synced_lsn.map(|found| found.record.lsn).max().unwrap_or_default();
        assert!(synced_lsn <= last, "what is known to be synced is there, rot or not");
        history.changes.truncate(model::usize_of(last.0));
        (history.appended, history.flushed) = (last, last);
        let applied = history.applied(last);
        let seqs = applied.iter().filter(|(g, _)| *g == history.generation).map(|(_, seq)| seq.0);
        history.next_seq = seqs.max().unwrap_or(0).max(history.next_seq);
        let live = history.generation;
        core.applied_mut().retain(|generation| generation == live);
        *old = Vdisk {
            core,
            map,
            stored_map,
            tlogs: BTreeMap::new(),
            puts: BTreeMap::new(),
            epoch,
            last_end: 0,
            history,
        };
        Ok(())
    }

    fn replayed(&mut self, found: &router_core::log::Found) -> Replayed {
        let record = &found.record;
        let disk = &mut self.disks[found.file as usize];
        let data =
            Bytes::from(disk.read(found.payload_offset, record.payload_len as usize).unwrap());
        assert!(record.payload_is_intact(&data));
        let range = ClusterRange::new(record.cluster, record.count).unwrap();
        let change = match record.op {
            Op::Write => {
                Change::Write { cluster: record.cluster, data, checksums: record.checksums.clone() }
            }
            Op::Trim => Change::Unmap { range, kind: UnmapKind::Trim },
            Op::Zero => Change::Unmap { range, kind: UnmapKind::Zero },
            Op::Start | Op::List => panic!("lists aren't replayed"),
        };
        Replayed {
            lsn: record.lsn,
            epoch: record.epoch,
            change,
            stamp: Stamp { generation: record.generation, seq: record.seq, last: record.last },
            placement: Placement { lap: record.lap, bytes: record.len() as u64, end: record.end() },
        }
    }

    /// The stored map with the TLogs behind it, or all TLogs when it is gone: equal either way (L6).
    fn recovered_map(
        &self,
        vdisk: VdiskId,
        stored: &(MemoryMap, Option<ObjectId>),
        random: &mut Random,
    ) -> (MemoryMap, (MemoryMap, Option<ObjectId>)) {
        let rebuilt = self.backend.rebuilt_map(vdisk);
        let (mut map, after) = stored.clone();
        for tlog in self.backend.tlogs(vdisk, after) {
            map.apply(&tlog);
        }
        assert_eq!(map, rebuilt);
        let stored =
            if random.happens(Chance::percent(20)) { Default::default() } else { stored.clone() };
        (map, stored)
    }

    /// A calm end: everything reaches the backend.
    pub fn drain(&mut self, random: &mut Random) {
        self.append();
        self.vdisks.iter_mut().for_each(|vdisk| vdisk.core.seal());
        for _ in 0..100_000 {
            if self.vdisks.iter().all(|vdisk| vdisk.core.is_drained()) {
                break;
            }
            self.backend_step(random);
        }
        for vdisk in &self.vdisks {
            assert!(vdisk.core.is_drained());
            assert!(vdisk.core.overlay.is_empty());
            assert_eq!((vdisk.core.pending_bytes(), vdisk.core.log_bytes()), (0, 0));
            assert_eq!(self.backend.rebuilt_map(vdisk.core.vdisk()), vdisk.map);
        }
        assert_eq!(self.log.live(), 0, "a drained log pins nothing");
        self.check();
    }
}

fn index_of(vdisk: VdiskId) -> usize {
    VDISKS.iter().position(|known| *known == vdisk).unwrap()
}

fn opening(vdisk: VdiskId, epoch: Epoch, head: HeadState) -> Opening {
    Opening { vdisk, epoch, size_bytes: CLUSTERS * CLUSTER as u64, unit_clusters: 12, head }
}

fn facts_of(vdisk: VdiskId, head: &HeadState) -> recover::Facts<'_> {
    recover::Facts {
        vdisk,
        head_lsn: head.last_lsn,
        epochs: &head.epochs,
        promised_log: LOG,
        log_from: 0,
        own_log: LOG,
        accepted: &[],
    }
}
