//! A router made of `router-core` on simulated disks: the driver's part, done by hand and one step at a time.
//!
//! Its order is that of the real driver: append, then answer; sync, then answer what must be durable; map first, then
//! forget, then free the log. A disk error ends the process, as it does there.
//!
//! Invariant: nothing outlives a crash but the disks, the log's id and the epoch.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use edge_core::session::{Answer, CallKey, Failure, Request};
use model::{
    AttachmentGeneration, ByteRange, ClusterRange, Epoch, Incarnation, LogId, Lsn, ObjectId,
    VdiskId,
};
use router_core::applied;
use router_core::log::pool::{Batch, OpenLog};
use router_core::log::record::Op;
use router_core::log::{Found, Log, Placement, Scanner};
use router_core::map::MemoryMap;
use router_core::recover::{self, Facts, Gap};
use router_core::sco;
use router_core::tlog::{Meta, Tlog};
use router_core::volume::{Change, HeadState, Opening, Replayed, Stamp, Volume};
use sim::{Chance, Disk, DiskError, FaultCounts, Random};
use wire::router::{Attached, UnmapKind};

use super::message::{Put, Refused};
use super::process::{Applied, Process, Stalled, Waiter, WaiterKind};
use super::reading::Unreadable;
use super::storage::Storage;

pub const VDISK: VdiskId = VdiskId(7);
const SEGMENT: u64 = 192 << 10;
const FILES: u32 = 5;
/// Each start over a full log may add a file.
const FILES_MAX: u32 = 64;
const UNIT_CLUSTERS: u32 = 24;
const IN_FLIGHT: usize = 3;
/// How often a change that can't read what it overwrites in part is tried before its user hears of it.
const UNREADABLE_TRIES: u32 = 6;

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

/// Why a vDisk isn't served.
#[derive(Debug)]
pub enum OpenError {
    Gap(Gap),
    /// The backend can't be asked or read now.
    Away,
    Disk,
}

impl From<DiskError> for OpenError {
    fn from(_: DiskError) -> Self {
        Self::Disk
    }
}

impl From<Gap> for OpenError {
    fn from(gap: Gap) -> Self {
        Self::Gap(gap)
    }
}

impl From<Unreadable> for OpenError {
    fn from(_: Unreadable) -> Self {
        Self::Away
    }
}

/// The page map as it is on the disk: some commits behind, or gone (L6).
#[derive(Debug, Clone, Default)]
struct StoredMap {
    map: MemoryMap,
    through: Option<ObjectId>,
}

pub struct Router {
    disks: Vec<Disk>,
    written: BTreeSet<u32>,
    id: LogId,
    epoch: Epoch,
    generation: AttachmentGeneration,
    size: u64,
    random: Random,
    stored_map: StoredMap,
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
            random: random.fork(),
            stored_map: StoredMap::default(),
            process: None,
            wishes: Vec::new(),
            counts: FaultCounts::default(),
        }
    }

    /// What the log's disks may do from now on.
    pub fn set_disk_faults(&mut self, set: impl Fn(&mut sim::DiskFaults)) {
        for disk in &mut self.disks {
            set(&mut disk.faults);
        }
    }

    /// No file that was never written has room from now on, until the next start.
    pub fn fill_disks(&mut self) {
        for (file, disk) in (0_u32..).zip(&mut self.disks) {
            if !self.written.contains(&file) {
                disk.limit_space(0);
            }
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

    /// The page map's files are lost (L6).
    pub fn lose_map(&mut self) {
        self.stored_map = StoredMap::default();
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
    pub fn open(&mut self, storage: &RefCell<Storage>) -> Result<(), OpenError> {
        for disk in &mut self.disks {
            disk.limit_space(SEGMENT);
        }
        self.epoch = self.epoch.next();
        storage.borrow_mut().claim(self.epoch)?;
        let head = head_state(storage)?;
        let map = self.catch_up(storage)?;
        let mut scanner = Scanner::new(self.id, SEGMENT);
        let mut bytes = vec![0; model::usize_of(SEGMENT)];
        for file in self.written.clone() {
            self.disk(file).read_into(0, &mut bytes)?;
            scanner.add_file(file, &bytes);
            self.disk(file).sync()?;
        }
        let no_list = |_| Gap::LogGone { promised: 1, own: 0, head: Lsn::ZERO };
        let scan = scanner.finish().map_err(no_list)?;
        let (mut log, batch) = self.open_log(&scan)?;
        let facts = Facts {
            vdisk: VDISK,
            head_lsn: head.last_lsn,
            epochs: &head.epochs,
            promised_log: self.id,
            log_from: 0,
            own_log: self.id,
            accepted: &[],
        };
        let plan = recover::plan(&facts, &scan)?;
        self.counts.count(match (plan.records.len(), scan.records.len()) {
            (0, _) => "recovery: nothing to replay",
            (some, all) if some == all => "recovery: all records replayed",
            _ => "recovery: some records replayed, some in the backend",
        });
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

    /// The page map as stored, and what the backend committed since.
    fn catch_up(&mut self, storage: &RefCell<Storage>) -> Result<MemoryMap, OpenError> {
        let StoredMap { mut map, mut through } = self.stored_map.clone();
        let behind = storage.borrow().objects_after(through);
        self.counts.count(match (through, behind.len()) {
            (None, 1..) => "recovery: page map rebuilt from all TLogs",
            (_, 0) => "recovery: page map up to date",
            (Some(_), _) => "recovery: page map caught up",
        });
        for (object, meta) in behind {
            assert_eq!(meta.predecessor, through, "the chain of TLogs is broken");
            map.apply(&read_tlog(storage, object, &meta)?);
            through = Some(object);
        }
        Ok(map)
    }

    /// The log goes on behind what the scan found, in a file of its own; synced before anything else happens.
    fn open_log(&mut self, scan: &router_core::log::Scan) -> Result<(Log, Batch), DiskError> {
        let used: BTreeSet<u32> = scan.segments.iter().map(|segment| segment.file).collect();
        let first = (0..).find(|file| !used.contains(file)).expect("the range has no end");
        self.prepare(first)?;
        let mut batch = Batch::default();
        let (id, segments, next_lap) = (self.id, scan.segments.clone(), scan.next_lap);
        let files = FILES.max(first + 1);
        let open = OpenLog { id, segment_size: SEGMENT, files, segments, next_lap, first };
        let mut log = Log::open(open, &mut batch);
        for file in &self.written {
            log.file_ready(*file);
        }
        self.append(&batch)?;
        batch.clear();
        if let Some(job) = log.begin_sync() {
            for file in job.files {
                self.disk(file).sync()?;
            }
            log.sync_done();
        }
        Ok((log, batch))
    }

    fn replay(&mut self, volume: &mut Volume, found: &Found) -> Result<(), OpenError> {
        let record = &found.record;
        let len = record.payload_len as usize;
        let data = Bytes::from(self.disk(found.file).read(found.payload_offset, len)?);
        if !record.payload_is_intact(&data) {
            let (from, to) = (record.position, record.end());
            return Err(Gap::Damaged { from, to, last: volume.last_lsn() }.into());
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
    pub fn serve(&mut self, link: u64, key: CallKey, request: Request, storage: &RefCell<Storage>) {
        let Some(process) = &mut self.process else { return };
        if process.attached.is_none() {
            let result = Err(Failure::Elsewhere(None));
            self.wishes.push(Wish::Answer { link, key, result });
            return;
        }
        let answer = match &request {
            Request::Write(..) | Request::Unmap(_) => {
                self.change(Stalled { link, key, request, tries: 0 }, storage);
                None
            }
            Request::Flush(_) => {
                let (lsn, end) = (process.volume.last_lsn(), process.last_end);
                process.syncs.push(Waiter { link, key, lsn, end, kind: WaiterKind::Flush });
                None
            }
            // P6: reads wait for the end of replay.
            Request::Read(_) if !process.replay_complete => {
                self.counts.count("read: refused until the replay is complete");
                Some(Err(Failure::Retry))
            }
            Request::Read(read) => {
                let range = ByteRange::new(read.offset, read.len.into()).expect("within the vDisk");
                let data = process.read(range, storage);
                Some(data.map(Answer::Data).map_err(|_| Failure::Unreadable))
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

    /// Applies a change, or lets it wait: for room in the log, or for what it overwrites in part.
    fn change(&mut self, asked: Stalled, storage: &RefCell<Storage>) {
        let process = self.process.as_mut().expect("only called while it runs");
        let room = process.has_room();
        if !process.stalled.is_empty() || !room {
            self.counts.count(if room { "change waits its turn" } else { "log full" });
            process.stalled.push_back(asked);
            return;
        }
        self.apply(asked, storage);
    }

    /// False when it must wait again.
    fn apply(&mut self, mut asked: Stalled, storage: &RefCell<Storage>) -> bool {
        let process = self.process.as_mut().expect("only called while it runs");
        match process.apply(&asked, storage) {
            Ok(Applied::Now) => {}
            Ok(Applied::Before) => self.counts.count("write answered from the applied set"),
            Ok(Applied::Fenced) => self.counts.count("change of a fenced attachment refused"),
            Err(_) if asked.tries < UNREADABLE_TRIES => {
                self.counts.count("change waits for the backend");
                asked.tries += 1;
                process.stalled.push_front(asked);
                return false;
            }
            Err(_) => {
                self.counts.count("change refused: what it overwrites in part is unreadable");
                let Stalled { link, key, .. } = asked;
                self.wishes.push(Wish::Answer { link, key, result: Err(Failure::Unreadable) });
            }
        }
        true
    }

    /// What waits tries again.
    pub fn unstall(&mut self, storage: &RefCell<Storage>) {
        while let Some(process) = &mut self.process {
            process.log.reserve(&mut process.batch);
            if !process.has_room() {
                break;
            }
            let Some(asked) = process.stalled.pop_front() else { break };
            if !self.apply(asked, storage) {
                break;
            }
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
            if let Some(lap) = process.log.sparse(8).first().copied() {
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
    pub fn synced(&mut self, storage: &RefCell<Storage>) {
        let Some(job) = self.process.as_mut().and_then(|process| process.job.take()) else {
            return;
        };
        for file in job.files {
            if self.disk(file).sync().is_err() {
                self.wishes.push(Wish::Died);
                return;
            }
        }
        self.process.as_mut().expect("it runs").log.sync_done();
        self.unstall(storage);
    }

    /// Everything placed so far is on stable storage when this returns; false when the disk failed.
    pub fn sync_now(&mut self, storage: &RefCell<Storage>) -> bool {
        // What waited for a sync is placed behind it, and wants another one.
        while self.process.as_ref().is_some_and(|process| process.job.is_some()) {
            self.synced(storage);
        }
        // A sync that failed stays unfinished, so no other one begins.
        if self.wishes.iter().any(|wish| matches!(wish, Wish::Died)) {
            return false;
        }
        let Some(job) = self.process.as_mut().and_then(|process| process.log.begin_sync()) else {
            return self.process.is_some();
        };
        for file in job.files {
            if self.disk(file).sync().is_err() {
                self.wishes.push(Wish::Died);
                return false;
            }
        }
        self.process.as_mut().expect("it runs").log.sync_done();
        self.settle();
        true
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
        storage: &RefCell<Storage>,
    ) {
        let Some(process) = &mut self.process else { return };
        match result {
            Err(Refused::Fenced) => {
                assert_ne!(object.epoch, self.epoch, "nobody else claims this vDisk");
                return;
            }
            Err(Refused::WrongHead | Refused::Unavailable) => return,
            Ok(()) if !process.in_flight.contains_key(&object) => return,
            Ok(()) => {}
        }
        for committed in process.volume.unit_done(object) {
            let (_, tlog) = &process.in_flight[&committed.object];
            process.map.apply(tlog);
            process.in_flight.remove(&committed.object);
            if self.random.happens(Chance::percent(30)) {
                let (map, through) = (process.map.clone(), Some(committed.object));
                self.stored_map = StoredMap { map, through };
            }
            for (lap, bytes) in process.volume.drop_through(committed.last_lsn) {
                process.log.release(lap, bytes);
            }
        }
        self.unstall(storage);
    }

    /// Everything acknowledged is in the backend, and nobody waits.
    pub fn is_drained(&self) -> bool {
        self.process.as_ref().is_some_and(|process| {
            process.volume.is_drained() && process.syncs.is_empty() && process.stalled.is_empty()
        })
    }

    /// The whole vDisk, as a user would read it.
    pub fn image(&self, storage: &RefCell<Storage>) -> Result<Bytes, Unreadable> {
        let range = ByteRange::new(0, self.size).expect("starts at 0");
        self.process.as_ref().expect("it runs").read(range, storage)
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
        if let Some(file) = wanted
            && self.prepare(file).is_err()
        {
            self.wishes.push(Wish::Died);
            return;
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

    fn append(&mut self, batch: &Batch) -> Result<(), DiskError> {
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
    fn prepare(&mut self, file: u32) -> Result<(), DiskError> {
        if self.written.insert(file) {
            let zeroes = vec![0; model::usize_of(SEGMENT)];
            let disk = self.disk(file);
            let written = disk.write(0, &zeroes).and_then(|()| disk.sync());
            if written.is_err() {
                self.written.remove(&file);
            }
            return written;
        }
        Ok(())
    }

    fn disk(&mut self, file: u32) -> &mut Disk {
        &mut self.disks[file as usize]
    }
}

fn head_state(storage: &RefCell<Storage>) -> Result<HeadState, OpenError> {
    let head = storage.borrow().head();
    let Some((object, meta)) = head else { return Ok(HeadState::default()) };
    let tlog = read_tlog(storage, object, &meta)?;
    let mut applied = applied::AppliedMap::default();
    for (generation, sequences) in &tlog.applied {
        applied.set(*generation, applied::AppliedSet::from_wire(sequences));
    }
    let epochs = tlog.epochs.iter().copied().collect();
    Ok(HeadState { object: Some(object), last_lsn: meta.last_lsn, applied, epochs })
}

fn read_tlog(
    storage: &RefCell<Storage>,
    object: ObjectId,
    meta: &Meta,
) -> Result<Tlog, Unreadable> {
    let part = storage.borrow_mut().read(object.number, meta.tlog_offset, meta.tlog_len)?;
    Ok(Tlog::decode(&part).expect("what was read verified"))
}
