//! A router made of `router-core` on simulated disks: the driver's part, done by hand and one step at a time.
//!
//! Its order is that of the real driver: append, then answer; sync, then answer what must be durable; map first, then
//! forget, then free the log. A disk error ends the process, as it does there.
//!
//! Invariant: nothing outlives a crash but the disks, the log's id and the epoch.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use edge_core::session::{Answer, CallKey, Failure, Request};
use model::{
    AttachmentGeneration, ByteRange, Cluster, ClusterRange, Epoch, Incarnation, LogId, Lsn,
    ObjectId, VdiskId,
};
use router_core::log::pool::{Batch, OpenLog, SyncJob};
use router_core::log::record::Op;
use router_core::log::{Log, Placement, Scanner};
use router_core::map::MemoryMap;
use router_core::overlay::Lookup;
use router_core::plan::{self, UnmapStep};
use router_core::recover::{self, Facts, Gap};
use router_core::sco::{self, Frame};
use router_core::tlog::Tlog;
use router_core::volume::{Change, HeadState, Opening, Replayed, Stamp, Volume};
use router_core::{CLUSTER, applied, crc32c};
use sim::{Chance, Disk, FaultCounts, Random};
use wire::router::{Attached, Durability, UnmapKind};

use super::backend::{Backend, Put, Refused, tlog};

pub const VDISK: VdiskId = VdiskId(7);
const SEGMENT: u64 = 192 << 10;
const FILES: u32 = 5;
/// Each start over a full log may add a file.
const FILES_MAX: u32 = 64;
const UNIT_CLUSTERS: u32 = 24;
const IN_FLIGHT: usize = 3;

/// What the world shall do for the router.
#[derive(Debug)]
pub enum Wish {
    Answer {
        link: u64,
        key: CallKey,
        result: Result<Answer, Failure>,
    },
    Put(Put),
    /// Call [`Router::synced`] after this time.
    Sync(Duration),
    /// The log can't be written: the process ends.
    Died,
}

/// Who waits for what.
#[derive(Debug)]
struct Waiter {
    link: u64,
    key: CallKey,
    lsn: Lsn,
    end: u64,
    kind: WaiterKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WaiterKind {
    Change,
    Durable,
    Flush,
}

/// A change that found no room in the log.
#[derive(Debug)]
struct Stalled {
    link: u64,
    key: CallKey,
    request: Request,
}

/// What a process holds in memory.
struct Process {
    log: Log,
    batch: Batch,
    volume: Volume,
    map: MemoryMap,
    live: BTreeSet<AttachmentGeneration>,
    attached: Option<u64>,
    replay_complete: bool,
    acks: Vec<Waiter>,
    syncs: Vec<Waiter>,
    job: Option<SyncJob>,
    stalled: VecDeque<Stalled>,
    in_flight: BTreeMap<ObjectId, (Put, Tlog)>,
    last_end: u64,
}

pub struct Router {
    disks: Vec<Disk>,
    written: BTreeSet<u32>,
    id: LogId,
    epoch: Epoch,
    generation: AttachmentGeneration,
    size: u64,
    process: Option<Process>,
    wishes: Vec<Wish>,
    pub counts: FaultCounts,
}

impl Router {
    pub fn new(random: &mut Random, size: u64) -> Self {
        let disk = |_| {
            let mut disk = Disk::new(random.fork(), SEGMENT);
            disk.faults.slow = Chance::percent(2);
            disk
        };
        Self {
            disks: (0..FILES_MAX).map(disk).collect(),
            written: BTreeSet::new(),
            id: LogId(1),
            epoch: Epoch(0),
            generation: AttachmentGeneration(0),
            size,
            process: None,
            wishes: Vec::new(),
            counts: FaultCounts::default(),
        }
    }

    /// What recovery found, for the trace.
    pub fn describe(&self) -> String {
        let Some(process) = &self.process else { return "down".to_owned() };
        let volume = &process.volume;
        let (epoch, committed, last) = (self.epoch, volume.committed_lsn(), volume.last_lsn());
        format!("epoch {epoch}, LSN {committed} in the backend, {last} recovered")
    }

    pub fn is_up(&self) -> bool {
        self.process.is_some()
    }

    pub fn wishes(&mut self) -> Vec<Wish> {
        std::mem::take(&mut self.wishes)
    }

    pub fn disk_faults(&self) -> FaultCounts {
        let mut all = self.counts.clone();
        for disk in &self.disks {
            all.add(disk.fault_counts());
        }
        all
    }

    /// kill -9: the page cache stays.
    pub fn kill(&mut self) {
        self.process = None;
        self.wishes.clear();
    }

    /// The host's power fails.
    pub fn power_cut(&mut self) {
        self.kill();
        for disk in &mut self.disks {
            disk.power_cut();
        }
    }

    /// A bit of a record flips that the log itself knows to be synced. Rot behind that looks like a torn end, and only a
    /// second copy could tell the difference (P8).
    pub fn rot(&mut self, random: &mut Random) {
        let mut scanner = Scanner::new(self.id, SEGMENT);
        for file in self.written.clone() {
            let bytes = self.disk(file).read(0, model::usize_of(SEGMENT)).expect("no read errors");
            scanner.add_file(file, &bytes);
        }
        let Ok(scan) = scanner.finish() else { return };
        let records: Vec<(u32, u64, u64)> = scan
            .records
            .iter()
            .filter(|found| found.record.end() <= scan.synced)
            .map(|found| {
                let record = &found.record;
                (found.file, record.position - record.lap.0 * SEGMENT, record.len() as u64)
            })
            .collect();
        if let Some((file, offset, len)) = random.pick(&records).copied() {
            let within = random.below(len);
            self.disk(file).flip(offset + within);
        }
    }

    /// Claims the next epoch and recovers, in the order of P18.
    #[expect(clippy::too_many_lines, reason = "the steps of a claim, one after the other")]
    pub fn open(&mut self, backend: &mut Backend) -> Result<(), Gap> {
        self.epoch = self.epoch.next();
        backend.raise(self.epoch);
        let mut scanner = Scanner::new(self.id, SEGMENT);
        for file in self.written.clone() {
            let bytes = self.disk(file).read(0, model::usize_of(SEGMENT)).expect("no read errors");
            scanner.add_file(file, &bytes);
            self.disk(file).sync().expect("no sync errors");
        }
        let no_list = |_| Gap::LogGone { promised: 1, own: 0, head: Lsn::ZERO };
        let scan = scanner.finish().map_err(no_list)?;
        let used: BTreeSet<u32> = scan.segments.iter().map(|segment| segment.file).collect();
        let first = (0..).find(|file| !used.contains(file)).expect("the range has no end");
        self.prepare(first);
        let mut batch = Batch::default();
        let (id, segments, next_lap) = (self.id, scan.segments.clone(), scan.next_lap);
        let files = FILES.max(first + 1);
        let open = OpenLog { id, segment_size: SEGMENT, files, segments, next_lap, first };
        let mut log = Log::open(open, &mut batch);
        for file in &self.written {
            log.file_ready(*file);
        }
        self.append(&batch).expect("no write errors while opening");
        batch.clear();
        if let Some(job) = log.begin_sync() {
            for file in job.files {
                self.disk(file).sync().expect("no sync errors while opening");
            }
            log.sync_done();
        }
        let head = head_state(backend);
        let facts = Facts {
            vdisk: VDISK,
            head_lsn: head.last_lsn,
            epochs: &head.epochs,
            promised_log: self.id,
            own_log: self.id,
        };
        let plan = recover::plan(&facts, &scan)?;
        let mut map = MemoryMap::default();
        for tlog in backend.tlogs() {
            map.apply(&tlog);
        }
        let (epoch, size_bytes) = (self.epoch, self.size);
        let opening =
            Opening { vdisk: VDISK, epoch, size_bytes, unit_clusters: UNIT_CLUSTERS, head };
        let mut volume = Volume::open(opening);
        for (index, found) in scan.records.iter().enumerate() {
            if plan.records.contains(&index) {
                log.pin(found.record.lap, found.record.len() as u64);
            }
        }
        for index in &plan.records {
            self.replay(&mut volume, &scan.records[*index])?;
        }
        // The only attachment is the present one; an edge that died comes back with a new one.
        let live = BTreeSet::from([self.generation]);
        volume.applied_mut().retain(|generation| live.contains(&generation));
        self.process = Some(Process {
            log,
            batch,
            volume,
            map,
            live,
            attached: None,
            replay_complete: false,
            acks: Vec::new(),
            syncs: Vec::new(),
            job: None,
            stalled: VecDeque::new(),
            in_flight: BTreeMap::new(),
            last_end: 0,
        });
        self.settle();
        Ok(())
    }

    fn replay(&mut self, volume: &mut Volume, found: &router_core::log::Found) -> Result<(), Gap> {
        let record = &found.record;
        let len = record.payload_len as usize;
        let data = self.disk(found.file).read(found.payload_offset, len).expect("no read errors");
        let data = Bytes::from(data);
        if !record.payload_is_intact(&data) {
            let (from, to) = (record.position, record.end());
            return Err(Gap::Damaged { from, to, last: volume.last_lsn() });
        }
        let bytes = record.len() as u64;
        let placement = Placement { lap: record.lap, bytes, end: record.end() };
        let stamp = Stamp { generation: record.generation, seq: record.seq, last: record.last };
        let range = ClusterRange::new(record.cluster, record.count).expect("its checksum is right");
        let change = match record.op {
            Op::Write => {
                let checksums = record.checksums.clone();
                Change::Write { cluster: record.cluster, data, checksums }
            }
            Op::Trim => Change::Unmap { range, kind: UnmapKind::Trim },
            Op::Zero => Change::Unmap { range, kind: UnmapKind::Zero },
            Op::Start | Op::List => unreachable!("these belong to no vDisk"),
        };
        let (lsn, epoch) = (record.lsn, record.epoch);
        volume.replay(Replayed { lsn, epoch, change, stamp, placement });
        Ok(())
    }

    /// An edge attaches: `reclaim` is the generation it holds already.
    pub fn attach(&mut self, link: u64, reclaim: Option<AttachmentGeneration>) -> Option<Attached> {
        let (epoch, size_bytes) = (self.epoch, self.size);
        let process = self.process.as_mut()?;
        if reclaim.is_none() {
            self.generation = self.generation.next();
            process.live = BTreeSet::from([self.generation]);
            let live = process.live.clone();
            process.volume.applied_mut().retain(|generation| live.contains(&generation));
        } else if reclaim != Some(self.generation) {
            return None;
        }
        process.attached = Some(link);
        Some(Attached {
            vdisk: VDISK,
            generation: self.generation,
            epoch,
            incarnation: Incarnation(epoch.0),
            size_bytes,
            applied: process.volume.applied().get(self.generation).to_wire(),
            last_lsn: process.volume.last_lsn(),
        })
    }

    /// A request arrived, perhaps on a connection that its edge has given up meanwhile.
    pub fn serve(&mut self, link: u64, key: CallKey, request: Request, backend: &Backend) {
        let Some(process) = &mut self.process else { return };
        if process.attached.is_none() {
            let result = Err(Failure::Elsewhere(None));
            self.wishes.push(Wish::Answer { link, key, result });
            return;
        }
        let answer = match &request {
            Request::Write(..) | Request::Unmap(_) => {
                self.change(Stalled { link, key, request }, backend);
                None
            }
            Request::Flush(_) => {
                let (lsn, end) = (process.volume.last_lsn(), process.last_end);
                process.syncs.push(Waiter { link, key, lsn, end, kind: WaiterKind::Flush });
                None
            }
            // P6: reads wait for the end of replay.
            Request::Read(_) if !process.replay_complete => Some(Err(Failure::Retry)),
            Request::Read(read) => {
                let range = ByteRange::new(read.offset, read.len.into()).expect("within the vDisk");
                Some(Ok(Answer::Data(process.read(range, backend))))
            }
            Request::ReplayComplete(_) => {
                process.replay_complete = true;
                Some(Ok(Answer::Done))
            }
            Request::BlockStatus(_) => unreachable!("the user asks for none"),
        };
        if let Some(result) = answer {
            self.wishes.push(Wish::Answer { link, key, result });
        }
        self.settle();
    }

    /// Applies a change, or lets it wait for room in the log.
    fn change(&mut self, asked: Stalled, backend: &Backend) {
        let process = self.process.as_mut().expect("only called while it runs");
        if !process.stalled.is_empty() || !process.has_room() {
            self.counts.count("log full");
            process.stalled.push_back(asked);
            return;
        }
        let Stalled { link, key, request } = asked;
        if process.apply(link, key, &request, backend) == Applied::Before {
            self.counts.count("write answered from the applied set");
        }
    }

    /// What waits for room in the log tries again.
    pub fn unstall(&mut self, backend: &Backend) {
        while let Some(process) = &mut self.process {
            process.log.reserve(&mut process.batch);
            if !process.has_room() {
                break;
            }
            let Some(asked) = process.stalled.pop_front() else { break };
            let Stalled { link, key, request } = asked;
            process.apply(link, key, &request, backend);
        }
        self.settle();
    }

    /// Seals the open unit: log pressure, a sync by hand.
    pub fn seal(&mut self) {
        if let Some(process) = &mut self.process {
            process.volume.seal();
        }
        self.settle();
    }

    /// As the driver does when the log runs short (P9).
    pub fn relieve(&mut self) {
        let Some(process) = &mut self.process else { return };
        if process.log.capacity() / 2 < process.log.used() {
            process.volume.seal();
            if let Some(lap) = process.log.nearly_dead() {
                for (lsn, entry) in process.volume.records_in(lap) {
                    let Ok(placement) = process.log.place(entry, &mut process.batch) else {
                        break;
                    };
                    process.last_end = placement.end;
                    self.counts.count("record copied forward");
                    if let Some(old) = process.volume.moved(lsn, placement) {
                        process.log.release(old.lap, old.bytes);
                    }
                }
            }
        }
        self.settle();
    }

    /// The sync that was wished for is done by now.
    pub fn synced(&mut self, backend: &Backend) {
        let Some(job) = self.process.as_mut().and_then(|process| process.job.take()) else {
            return;
        };
        for file in job.files {
            self.disk(file).sync().expect("no sync errors");
        }
        self.process.as_mut().expect("it runs").log.sync_done();
        self.unstall(backend);
    }

    /// Puts that were not answered are sent again.
    pub fn put_again(&mut self) {
        if let Some(process) = &self.process {
            self.wishes.extend(process.in_flight.values().map(|(put, _)| Wish::Put(put.clone())));
        }
    }

    pub fn put_answered(
        &mut self,
        object: ObjectId,
        result: Result<(), Refused>,
        backend: &Backend,
    ) {
        let Some(process) = &mut self.process else { return };
        match result {
            Err(Refused::Fenced) => {
                assert_ne!(object.epoch, self.epoch, "nobody else claims this vDisk");
                self.counts.count("put refused: fenced");
                return;
            }
            Err(Refused::WrongHead) => {
                self.counts.count("put refused: wrong head");
                return;
            }
            Ok(()) if !process.in_flight.contains_key(&object) => return,
            Ok(()) => {}
        }
        for committed in process.volume.unit_done(object) {
            let (_, tlog) = &process.in_flight[&committed.object];
            process.map.apply(tlog);
            process.in_flight.remove(&committed.object);
            for (lap, bytes) in process.volume.drop_through(committed.last_lsn) {
                process.log.release(lap, bytes);
            }
        }
        self.unstall(backend);
    }

    /// Everything acknowledged is in the backend, and nobody waits.
    pub fn is_drained(&self) -> bool {
        self.process.as_ref().is_some_and(|process| {
            process.volume.is_drained() && process.syncs.is_empty() && process.stalled.is_empty()
        })
    }

    /// The whole vDisk, as a user would read it.
    pub fn image(&self, backend: &Backend) -> Bytes {
        let range = ByteRange::new(0, self.size).expect("starts at 0");
        self.process.as_ref().expect("it runs").read(range, backend)
    }

    /// Appends what was placed, answers, starts the sync and the puts that are wanted.
    fn settle(&mut self) {
        let Some(process) = &mut self.process else { return };
        let batch = std::mem::take(&mut process.batch);
        if self.append(&batch).is_err() {
            self.wishes.push(Wish::Died);
            return;
        }
        let wanted = self.process.as_ref().expect("it runs").log.file_wanted();
        if let Some(file) = wanted {
            self.prepare(file);
        }
        let process = self.process.as_mut().expect("it runs");
        if let Some(file) = wanted {
            process.log.file_ready(file);
        }
        let epoch = self.epoch;
        let synced = process.log.synced();
        for waiter in std::mem::take(&mut process.acks) {
            process.syncs.push(waiter);
        }
        let (done, waiting): (Vec<_>, Vec<_>) = std::mem::take(&mut process.syncs)
            .into_iter()
            .partition(|waiter| waiter.kind == WaiterKind::Change || waiter.end <= synced);
        process.syncs = waiting;
        for Waiter { link, key, lsn, kind, .. } in done {
            let answer = match kind {
                WaiterKind::Flush => Answer::Flushed { epoch, lsn },
                WaiterKind::Change | WaiterKind::Durable => Answer::Applied { epoch, lsn },
            };
            self.wishes.push(Wish::Answer { link, key, result: Ok(answer) });
        }
        if (!process.syncs.is_empty() || process.log.wants_sync())
            && process.job.is_none()
            && let Some(job) = process.log.begin_sync()
        {
            process.job = Some(job);
            self.wishes.push(Wish::Sync(self.disks[0].latency()));
        }
        while let Some(unit) = process.volume.next_unit(IN_FLIGHT) {
            let sco::Built { payload, meta, tlog, .. } = sco::build(&unit);
            let (object, expected_head) = (unit.object, unit.predecessor);
            let put = Put { object, expected_head, meta, payload };
            process.in_flight.insert(object, (put.clone(), tlog));
            self.wishes.push(Wish::Put(put));
        }
    }

    fn append(&mut self, batch: &Batch) -> Result<(), sim::DiskError> {
        for run in &batch.runs {
            let mut bytes = Vec::with_capacity(model::usize_of(run.len()));
            for piece in &run.pieces {
                bytes.extend_from_slice(&batch.headers[piece.header.clone()]);
                bytes.extend_from_slice(&piece.payload);
                bytes.resize(bytes.len() + piece.padding, 0);
            }
            self.disk(run.file).write(run.offset, &bytes)?;
        }
        Ok(())
    }

    /// Zero-writes a segment before its first use (P8).
    fn prepare(&mut self, file: u32) {
        if self.written.insert(file) {
            let zeroes = vec![0; model::usize_of(SEGMENT)];
            self.disk(file).write(0, &zeroes).expect("no write errors");
            self.disk(file).sync().expect("no sync errors");
        }
    }

    fn disk(&mut self, file: u32) -> &mut Disk {
        &mut self.disks[file as usize]
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Applied {
    Now,
    /// In an earlier life of the connection or the router (P3).
    Before,
}

impl Process {
    /// For the largest request, its list and a ragged end.
    fn has_room(&self) -> bool {
        self.log.has_room(10, 10 * CLUSTER)
    }

    fn apply(&mut self, link: u64, key: CallKey, request: &Request, backend: &Backend) -> Applied {
        let (generation, seq, durability) = match request {
            Request::Write(write, _) => (write.generation, write.seq, write.durability),
            Request::Unmap(unmap) => (unmap.generation, unmap.seq, unmap.durability),
            Request::Read(_)
            | Request::Flush(_)
            | Request::BlockStatus(_)
            | Request::ReplayComplete(_) => unreachable!("these change nothing"),
        };
        // P4: a fenced attachment changes nothing, and nobody waits for its answer.
        if !self.live.contains(&generation) {
            return Applied::Now;
        }
        let applied = if self.volume.applied().contains(generation, seq) {
            Applied::Before
        } else {
            let changes = self.changes(request, backend);
            if changes.is_empty() {
                self.volume.applied_mut().insert(generation, seq);
            }
            let count = changes.len();
            for (number, change) in (1..).zip(changes) {
                let stamp = Stamp { generation, seq, last: number == count };
                let entry = self.volume.entry(&change, stamp);
                let placed = self.log.place(entry, &mut self.batch);
                let placement = placed.expect("room was asked for before");
                self.last_end = placement.end;
                self.volume.accept(change, stamp, placement);
            }
            Applied::Now
        };
        let kind = match durability {
            Durability::Normal => WaiterKind::Change,
            Durability::Durable => WaiterKind::Durable,
        };
        let (lsn, end) = (self.volume.last_lsn(), self.last_end);
        self.acks.push(Waiter { link, key, lsn, end, kind });
        applied
    }

    fn changes(&self, request: &Request, backend: &Backend) -> Vec<Change> {
        match request {
            Request::Write(write, payload) => {
                let len = model::u64_of(payload.len());
                let range = ByteRange::new(write.offset, len).expect("within the vDisk");
                assert!(
                    plan::checksums_match(range, payload, &write.checksums),
                    "damaged on the way"
                );
                let old = |cluster| {
                    let zeroes = || Bytes::from_static(&[0; CLUSTER]);
                    self.cluster(cluster, backend).unwrap_or_else(zeroes)
                };
                let data = plan::merge(range, payload, old);
                let checksums = data.chunks_exact(CLUSTER).map(crc32c).collect();
                let cluster = range.clusters_touched().start;
                vec![Change::Write { cluster, data, checksums }]
            }
            Request::Unmap(unmap) => {
                let range = ByteRange::new(unmap.offset, unmap.len).expect("within the vDisk");
                let steps = plan::unmap(range, |cluster| self.cluster(cluster, backend));
                let change = |step| match step {
                    UnmapStep::Write(cluster, data) => {
                        Change::Write { cluster, checksums: vec![crc32c(&data)], data }
                    }
                    UnmapStep::Range(range) => Change::Unmap { range, kind: unmap.kind },
                };
                steps.into_iter().map(change).collect()
            }
            Request::Read(_)
            | Request::Flush(_)
            | Request::BlockStatus(_)
            | Request::ReplayComplete(_) => unreachable!("these change nothing"),
        }
    }

    fn read(&self, range: ByteRange, backend: &Backend) -> Bytes {
        let mut out = Vec::with_capacity(model::usize_of(range.len()));
        for cluster in range.clusters_touched().iter() {
            let (start, len) = plan::part(range, cluster);
            match self.cluster(cluster, backend) {
                Some(data) => out.extend_from_slice(&data[start..start + len]),
                None => out.resize(out.len() + len, 0),
            }
        }
        Bytes::from(out)
    }

    /// Overlay, then page map, then backend; `None` is zeroes.
    fn cluster(&self, cluster: Cluster, backend: &Backend) -> Option<Bytes> {
        match self.volume.overlay.lookup(cluster) {
            Lookup::Data(data, checksum) => {
                assert_eq!(crc32c(&data), checksum, "the overlay's data isn't what came in");
                Some(data)
            }
            Lookup::Unmapped => None,
            Lookup::Below => {
                let location = self.map.get(cluster)?;
                let (offset, len) = sco::frame_range(location);
                let bytes = backend.read(location.number(), offset, len);
                let frame = Frame::verify(location, bytes).expect("the backend is honest");
                let found = frame.cluster(location, cluster);
                Some(found.expect("the page map points to its cluster").0)
            }
        }
    }
}

fn head_state(backend: &Backend) -> HeadState {
    let Some(put) = backend.head() else { return HeadState::default() };
    let tlog = tlog(put);
    let mut applied = applied::AppliedMap::default();
    for (generation, sequences) in &tlog.applied {
        applied.set(*generation, applied::AppliedSet::from_wire(sequences));
    }
    let epochs = tlog.epochs.iter().copied().collect();
    HeadState { object: Some(put.object), last_lsn: put.meta.last_lsn, applied, epochs }
}
