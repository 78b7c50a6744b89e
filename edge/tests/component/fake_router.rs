//! A router in memory: one owner of some vDisks, with a sync point that a crash goes back to, and faults on demand.

use bytes::Bytes;
use crc_fast::{CrcAlgorithm, checksum};
use model::{
    AttachmentGeneration, CLUSTER_SIZE, EdgeId, Epoch, Incarnation, Lsn, RequestSeq, RouterId,
    VdiskId,
};
use runtime::endpoint::Endpoint;
use runtime::net::Listener;
use runtime::peer::Identity;
use runtime::rpc::{Request, Responder, ServerOptions, Service, serve};
use runtime::shutdown::Shutdown;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::task::JoinHandle;
use wire::router::{
    Applied, AppliedSequences, Attach, AttachMode, Attached, BlockStatus, Detach, Durability,
    Extent, ExtentKind, Extents, Flush, Flushed, Locate, Location, Read, ReadDone, ReplayComplete,
    RouterAddress, Unmap, VdiskNames, Write, code, encode_location, method,
};
use wire::{ErrorClass, Role, WireError};

const CLUSTER: usize = CLUSTER_SIZE as usize;

#[derive(Debug, Clone, Default)]
struct Image(BTreeMap<u64, Box<[u8]>>);

impl Image {
    fn write(&mut self, offset: u64, data: &[u8]) {
        let mut at = offset;
        let mut rest = data;
        while !rest.is_empty() {
            let inside = (at % CLUSTER_SIZE) as usize;
            let (now, later) = rest.split_at(rest.len().min(CLUSTER - inside));
            let cluster =
                self.0.entry(at / CLUSTER_SIZE).or_insert_with(|| vec![0; CLUSTER].into());
            cluster[inside..inside + now.len()].copy_from_slice(now);
            at += now.len() as u64;
            rest = later;
        }
    }

    fn unmap(&mut self, offset: u64, len: u64) {
        let (end, first) = (offset + len, offset.next_multiple_of(CLUSTER_SIZE));
        let last = end / CLUSTER_SIZE * CLUSTER_SIZE;
        if first >= last {
            self.zero(offset, end);
            return;
        }
        self.zero(offset, first);
        self.zero(last, end);
        let range = first / CLUSTER_SIZE..last / CLUSTER_SIZE;
        let gone: Vec<u64> = self.0.range(range).map(|(at, _)| *at).collect();
        for cluster in gone {
            self.0.remove(&cluster);
        }
    }

    fn zero(&mut self, from: u64, to: u64) {
        if from < to
            && self.0.range(from / CLUSTER_SIZE..to.div_ceil(CLUSTER_SIZE)).next().is_some()
        {
            self.write(from, &vec![0; (to - from) as usize]);
        }
    }

    fn read(&self, offset: u64, len: u32) -> Vec<u8> {
        let mut out = vec![0; len as usize];
        let end = offset + u64::from(len);
        for (at, cluster) in self.0.range(offset / CLUSTER_SIZE..end.div_ceil(CLUSTER_SIZE)) {
            let start = at * CLUSTER_SIZE;
            let (from, to) = (start.max(offset), (start + CLUSTER_SIZE).min(end));
            out[(from - offset) as usize..(to - offset) as usize]
                .copy_from_slice(&cluster[(from - start) as usize..(to - start) as usize]);
        }
        out
    }
}

#[derive(Debug, Clone)]
enum Change {
    Write(u64, Bytes),
    Unmap(u64, u64),
}

#[derive(Debug, Clone)]
struct Attachment {
    generation: AttachmentGeneration,
    edge: EdgeId,
    edge_name: String,
    read_only: bool,
}

#[derive(Debug)]
struct Vdisk {
    id: VdiskId,
    size: u64,
    epoch: Epoch,
    live: Image,
    durable: Image,
    unsynced: Vec<(AttachmentGeneration, RequestSeq, Change)>,
    durable_seqs: BTreeSet<(AttachmentGeneration, RequestSeq)>,
    last_lsn: Lsn,
    attachment: Option<Attachment>,
    last_generation: AttachmentGeneration,
    replay_complete: bool,
}

impl Vdisk {
    fn new(id: u128, size: u64) -> Self {
        Self {
            id: VdiskId(id),
            size,
            epoch: Epoch(1),
            live: Image::default(),
            durable: Image::default(),
            unsynced: Vec::new(),
            durable_seqs: BTreeSet::new(),
            last_lsn: Lsn(0),
            attachment: None,
            last_generation: AttachmentGeneration(0),
            replay_complete: false,
        }
    }

    fn sync(&mut self) {
        for (generation, seq, change) in self.unsynced.drain(..) {
            self.durable_seqs.insert((generation, seq));
            match change {
                Change::Write(offset, data) => self.durable.write(offset, &data),
                Change::Unmap(offset, len) => self.durable.unmap(offset, len),
            }
        }
    }

    fn applied(&self) -> BTreeSet<RequestSeq> {
        let unsynced = self.unsynced.iter().map(|(generation, seq, _)| (*generation, *seq));
        let all = self.durable_seqs.iter().copied().chain(unsynced);
        all.filter(|(of, _)| *of == self.last_generation).map(|(_, seq)| seq).collect()
    }

    fn apply(&mut self, generation: AttachmentGeneration, seq: RequestSeq, change: Change) {
        let known = self.durable_seqs.contains(&(generation, seq))
            || self.unsynced.iter().any(|(g, s, _)| (*g, *s) == (generation, seq));
        if known {
            return;
        }
        self.last_lsn = self.last_lsn.next();
        match &change {
            Change::Write(offset, data) => self.live.write(*offset, data),
            Change::Unmap(offset, len) => self.live.unmap(*offset, *len),
        }
        self.unsynced.push((generation, seq, change));
    }

    fn crash(&mut self, keep: usize) -> usize {
        let lost = self.unsynced.len().saturating_sub(keep);
        self.unsynced.truncate(keep);
        self.live = self.durable.clone();
        for (_, _, change) in &self.unsynced {
            match change {
                Change::Write(offset, data) => self.live.write(*offset, data),
                Change::Unmap(offset, len) => self.live.unmap(*offset, *len),
            }
        }
        self.epoch = self.epoch.next();
        self.replay_complete = false;
        lost
    }
}

/// What goes wrong, on demand.
#[derive(Debug, Default)]
pub struct Faults {
    /// So many reads get a flipped byte.
    pub corrupt_reads: usize,
    /// Reads can't be served by the backend.
    pub unreadable: bool,
    /// Requests take effect, but answers don't leave.
    pub mute: bool,
    /// The owner misses something of its vDisks, until it is contested at another router.
    pub gap: bool,
    /// The owner has no room for its vDisks, until it is contested at another router.
    pub no_room: bool,
    /// Another router finds the owner gone, and can't take its vDisks.
    pub gap_elsewhere: bool,
    /// Nobody grants the owner the right to read, until it is contested at another router.
    pub no_right: bool,
}

#[derive(Debug, Default)]
pub struct Counters {
    pub flushes: usize,
    pub replayed: usize,
    pub detached: usize,
    pub contests: usize,
}

#[derive(Debug)]
struct State {
    vdisks: BTreeMap<String, Vdisk>,
    incarnation: Incarnation,
    owner: String,
    faults: Faults,
    counters: Counters,
    /// Answers of a muted router.
    held: Vec<Responder>,
}

/// The cluster: its vDisks, and one process that serves them.
pub struct FakeRouter {
    state: Arc<Mutex<State>>,
    endpoint: Endpoint,
    running: Option<(Shutdown, JoinHandle<()>)>,
}

/// What a process of the cluster is to the vDisks.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Owner,
    Bystander,
}

struct Router {
    state: Arc<Mutex<State>>,
    part: Part,
}

impl FakeRouter {
    /// Serves vDisks of these names and sizes at the endpoint.
    pub async fn start(endpoint: &str, vdisks: &[(&str, u64)]) -> Self {
        let disks = vdisks.iter().enumerate();
        let vdisks = disks
            .map(|(at, (name, size))| ((*name).to_owned(), Vdisk::new(at as u128 + 1, *size)))
            .collect();
        let state = State {
            vdisks,
            incarnation: Incarnation(1),
            owner: endpoint.to_owned(),
            faults: Faults::default(),
            counters: Counters::default(),
            held: Vec::new(),
        };
        let endpoint = endpoint.parse().unwrap();
        let mut this = Self { state: Arc::new(Mutex::new(state)), endpoint, running: None };
        this.come_back().await;
        this
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub fn faults(&self, set: impl FnOnce(&mut Faults)) {
        set(&mut self.state().faults);
    }

    pub fn counters<T>(&self, get: impl FnOnce(&Counters) -> T) -> T {
        get(&self.state().counters)
    }

    pub fn resize(&self, name: &str, size: u64) {
        self.state().vdisks.get_mut(name).unwrap().size = size;
    }

    pub fn create(&self, name: &str, size: u64) {
        let mut state = self.state();
        let id = state.vdisks.len() as u128 + 100;
        state.vdisks.insert(name.to_owned(), Vdisk::new(id, size));
    }

    pub fn delete(&self, name: &str) {
        self.state().vdisks.remove(name);
    }

    pub fn attached_edge(&self, name: &str) -> Option<String> {
        self.state().vdisks[name].attachment.as_ref().map(|holder| holder.edge_name.clone())
    }

    pub fn durable(&self, name: &str, offset: u64, len: u32) -> Vec<u8> {
        self.state().vdisks[name].durable.read(offset, len)
    }

    pub fn live(&self, name: &str, offset: u64, len: u32) -> Vec<u8> {
        self.state().vdisks[name].live.read(offset, len)
    }

    /// The process dies; of what wasn't synced, the first `keep` changes survive. Returns how many were lost.
    pub async fn die(&mut self, keep: usize) -> usize {
        let (shutdown, task) = self.running.take().expect("it runs");
        shutdown.trigger();
        task.await.unwrap();
        let mut state = self.state();
        state.held.clear();
        state.incarnation = state.incarnation.next();
        state.vdisks.values_mut().map(|vdisk| vdisk.crash(keep)).sum()
    }

    /// Only its connections are cut; the process lives on.
    pub async fn cut_connections(&mut self) {
        let (shutdown, task) = self.running.take().expect("it runs");
        shutdown.trigger();
        task.await.unwrap();
        self.state().held.clear();
        self.come_back().await;
    }

    pub async fn come_back(&mut self) {
        let identity = identity("router-1");
        let listener = Listener::bind(&self.endpoint, &identity).await.unwrap();
        self.endpoint = listener.local_endpoint();
        self.state().owner = self.endpoint.to_string();
        self.running = Some(run(&self.state, listener, identity, Part::Owner));
    }

    /// Another router of the cluster, which owns nothing. Ends when the test does.
    pub async fn bystander(&self, endpoint: &str) -> Endpoint {
        let identity = identity("router-2");
        let listener = Listener::bind(&endpoint.parse().unwrap(), &identity).await.unwrap();
        let endpoint = listener.local_endpoint();
        run(&self.state, listener, identity, Part::Bystander);
        endpoint
    }
}

fn identity(name: &str) -> Arc<Identity> {
    Identity::new(Role::Router, name, "test", None).unwrap()
}

fn run(
    state: &Arc<Mutex<State>>,
    listener: Listener,
    identity: Arc<Identity>,
    part: Part,
) -> (Shutdown, JoinHandle<()>) {
    let shutdown = Shutdown::new();
    let service = Arc::new(Router { state: Arc::clone(state), part });
    let options = ServerOptions::allowing(&[Role::Edge]);
    let task = tokio::spawn(serve(listener, identity, service, options, shutdown.clone()));
    (shutdown, task)
}

type Reply<T> = Result<T, WireError>;

impl Service for Router {
    fn call(&self, request: Request, responder: Responder) {
        let mut state = self.state.lock().unwrap();
        let mut payload = Vec::new();
        let body = match (self.part, request.method) {
            (_, method::LIST) => Ok(wire::encode_to_bytes(&state.list())),
            (_, method::LOCATE) => encoded(state.locate(&request)),
            (Part::Bystander, method::CONTEST) => {
                state.counters.contests += 1;
                let Faults { gap, no_room, no_right, .. } = &mut state.faults;
                (*gap, *no_room, *no_right) = (false, false, false);
                Ok(wire::encode_to_bytes(&()))
            }
            (Part::Bystander, method::ATTACH) if state.faults.gap_elsewhere => {
                let error = refuse(code::GAP, "its owner's session is over");
                Err(error.with_detail(state.elsewhere().detail))
            }
            (Part::Bystander, _) => Err(state.elsewhere()),
            (Part::Owner, method::ATTACH) if state.faults.gap => {
                Err(refuse(code::GAP, "something is missing"))
            }
            (Part::Owner, method::ATTACH) if state.faults.no_room => {
                Err(WireError::retry(code::NO_ROOM, "the write log is full"))
            }
            (Part::Owner, method::ATTACH) => encoded(state.attach(&request)),
            (Part::Owner, method::DETACH) => encoded(state.detach(&request)),
            (Part::Owner, method::REPLAY_COMPLETE) => encoded(state.replay_complete(&request)),
            (Part::Owner, method::READ) => encoded(state.read(&request, &mut payload)),
            (Part::Owner, method::WRITE) => encoded(state.write(&request)),
            (Part::Owner, method::UNMAP) => encoded(state.unmap(&request)),
            (Part::Owner, method::FLUSH) => encoded(state.flush(&request)),
            (Part::Owner, method::BLOCK_STATUS) => encoded(state.block_status(&request)),
            (Part::Owner, _) => Err(request.unknown_method()),
        };
        if state.faults.mute {
            state.held.push(responder);
            return;
        }
        match body {
            Ok(body) => responder.reply(&Raw(body), Bytes::from(payload)),
            Err(error) => responder.fail(error),
        }
    }
}

/// A body that is encoded already.
struct Raw(Bytes);

impl wire::Encode for Raw {
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.0);
    }
}

fn encoded<T: wire::Encode>(reply: Reply<T>) -> Reply<Bytes> {
    reply.map(|body| wire::encode_to_bytes(&body))
}

fn refuse(code: u16, text: &str) -> WireError {
    WireError::refuse(code, text)
}

impl State {
    fn list(&self) -> VdiskNames {
        let names = self.vdisks.iter().map(|(name, vdisk)| (name.clone(), vdisk.size)).collect();
        VdiskNames { names }
    }

    fn location(&self, id: VdiskId, size_bytes: u64) -> Location {
        let owner = RouterAddress { router: RouterId(1), addresses: vec![self.owner.clone()] };
        Location {
            vdisk: id,
            size_bytes,
            epoch: Epoch(1),
            owner,
            routers: Vec::new(),
            list_version: 1,
            cluster: "test".to_owned(),
        }
    }

    fn elsewhere(&self) -> WireError {
        WireError::new(ErrorClass::Redirect, code::NOT_OWNER, "not the owner")
            .with_detail(encode_location(&self.location(VdiskId(0), 0)))
    }

    fn locate(&self, request: &Request) -> Reply<Location> {
        let Locate { name } = request.decode()?;
        let vdisk =
            self.vdisks.get(&name).ok_or_else(|| refuse(code::NO_VDISK, "no such vDisk"))?;
        Ok(self.location(vdisk.id, vdisk.size))
    }

    fn attach(&mut self, request: &Request) -> Reply<Attached> {
        let ask: Attach = request.decode()?;
        let incarnation = self.incarnation;
        let vdisk = self
            .vdisks
            .get_mut(&ask.name)
            .ok_or_else(|| refuse(code::NO_VDISK, "no such vDisk"))?;
        match (&vdisk.attachment, ask.reclaim) {
            (Some(held), Some(token)) if held.generation == token && held.edge == ask.edge => {}
            (_, Some(_)) => return Err(refuse(code::ATTACHMENT_FENCED, "another one took over")),
            (Some(held), None) if !ask.take_over => {
                let text = format!("held by edge {}", held.edge_name);
                return Err(refuse(code::ATTACHED_ELSEWHERE, &text));
            }
            (_, None) => {
                vdisk.last_generation = vdisk.last_generation.next();
                vdisk.attachment = Some(Attachment {
                    generation: vdisk.last_generation,
                    edge: ask.edge,
                    edge_name: ask.edge_name,
                    read_only: ask.mode == AttachMode::ReadOnly,
                });
            }
        }
        vdisk.replay_complete = false;
        let seqs = vdisk.applied();
        let mut contiguous = RequestSeq(0);
        while seqs.contains(&contiguous.next()) {
            contiguous = contiguous.next();
        }
        let above = seqs.into_iter().filter(|seq| *seq > contiguous).collect();
        Ok(Attached {
            vdisk: vdisk.id,
            generation: vdisk.last_generation,
            epoch: vdisk.epoch,
            incarnation,
            size_bytes: vdisk.size,
            applied: AppliedSequences { contiguous, above },
            last_lsn: vdisk.last_lsn,
        })
    }

    fn holder(&mut self, id: VdiskId, generation: AttachmentGeneration) -> Reply<&mut Vdisk> {
        let vdisk = self.vdisks.values_mut().find(|vdisk| vdisk.id == id);
        let vdisk = vdisk.ok_or_else(|| refuse(code::NO_VDISK, "no such vDisk"))?;
        match &vdisk.attachment {
            Some(held) if held.generation == generation => Ok(vdisk),
            Some(_) => Err(refuse(code::ATTACHMENT_FENCED, "another one took over")),
            None => Err(refuse(code::NOT_ATTACHED, "not attached")),
        }
    }

    fn served(&mut self, id: VdiskId, generation: AttachmentGeneration) -> Reply<&mut Vdisk> {
        let vdisk = self.holder(id, generation)?;
        assert!(
            vdisk.replay_complete,
            "nothing but changes may come before the end of replay (P6)"
        );
        Ok(vdisk)
    }

    fn detach(&mut self, request: &Request) -> Reply<()> {
        let ask: Detach = request.decode()?;
        self.holder(ask.vdisk, ask.generation)?.attachment = None;
        self.counters.detached += 1;
        Ok(())
    }

    fn replay_complete(&mut self, request: &Request) -> Reply<()> {
        let ask: ReplayComplete = request.decode()?;
        self.holder(ask.vdisk, ask.generation)?.replay_complete = true;
        Ok(())
    }

    fn read(&mut self, request: &Request, payload: &mut Vec<u8>) -> Reply<ReadDone> {
        let ask: Read = request.decode()?;
        if self.faults.unreadable {
            return Err(WireError::retry(code::UNREADABLE, "too many fragments are gone"));
        }
        if self.faults.no_right {
            return Err(WireError::retry(code::RECOVERING, "nobody grants the right to read"));
        }
        let corrupt = self.faults.corrupt_reads > 0;
        self.faults.corrupt_reads -= usize::from(corrupt);
        let vdisk = self.served(ask.vdisk, ask.generation)?;
        if ask.len == 0
            || ask.len > wire::router::IO_MAX
            || ask.offset + u64::from(ask.len) > vdisk.size
        {
            return Err(refuse(code::OUT_OF_RANGE, "out of range"));
        }
        *payload = vdisk.live.read(ask.offset, ask.len);
        let checksums = checksums(ask.offset, payload);
        if corrupt {
            payload[0] ^= 1;
        }
        Ok(ReadDone { checksums })
    }

    fn write(&mut self, request: &Request) -> Reply<Applied> {
        let ask: Write = request.decode()?;
        let data = request.payload.clone();
        if checksums(ask.offset, &data) != ask.checksums {
            return Err(refuse(code::BAD_CHECKSUM, "damaged on the way"));
        }
        let size = data.len() as u64;
        if size == 0 || size > u64::from(wire::router::IO_MAX) {
            return Err(refuse(code::OUT_OF_RANGE, "out of range"));
        }
        self.change(
            (ask.vdisk, ask.generation, ask.seq),
            (ask.offset, size, ask.durability),
            Change::Write(ask.offset, data),
        )
    }

    fn unmap(&mut self, request: &Request) -> Reply<Applied> {
        let ask: Unmap = request.decode()?;
        self.change(
            (ask.vdisk, ask.generation, ask.seq),
            (ask.offset, ask.len, ask.durability),
            Change::Unmap(ask.offset, ask.len),
        )
    }

    fn change(
        &mut self,
        (id, generation, seq): (VdiskId, AttachmentGeneration, RequestSeq),
        (offset, len, durability): (u64, u64, Durability),
        change: Change,
    ) -> Reply<Applied> {
        let vdisk = self.holder(id, generation)?;
        let replaying = !vdisk.replay_complete;
        if vdisk.attachment.as_ref().is_some_and(|held| held.read_only) {
            return Err(refuse(code::READ_ONLY, "attached read-only"));
        }
        if offset + len > vdisk.size {
            return Err(refuse(code::OUT_OF_RANGE, "out of range"));
        }
        vdisk.apply(generation, seq, change);
        if durability == Durability::Durable {
            vdisk.sync();
        }
        let applied = Applied { epoch: vdisk.epoch, lsn: vdisk.last_lsn };
        self.counters.replayed += usize::from(replaying);
        Ok(applied)
    }

    fn flush(&mut self, request: &Request) -> Reply<Flushed> {
        let ask: Flush = request.decode()?;
        self.counters.flushes += 1;
        let vdisk = self.served(ask.vdisk, ask.generation)?;
        vdisk.sync();
        Ok(Flushed { epoch: vdisk.epoch, lsn: vdisk.last_lsn })
    }

    fn block_status(&mut self, request: &Request) -> Reply<Extents> {
        let ask: BlockStatus = request.decode()?;
        let vdisk = self.served(ask.vdisk, ask.generation)?;
        let end = ask.offset + ask.len;
        if ask.len == 0 || end > vdisk.size {
            return Err(refuse(code::OUT_OF_RANGE, "out of range"));
        }
        let mut extents: Vec<Extent> = Vec::new();
        let mut at = ask.offset;
        let mut add = |from: u64, to: u64, kind: ExtentKind| match extents.last_mut() {
            _ if from >= to => {}
            Some(last) if last.kind == kind => last.len += to - from,
            _ => extents.push(Extent { len: to - from, kind }),
        };
        for cluster in vdisk
            .live
            .0
            .range(ask.offset / CLUSTER_SIZE..end.div_ceil(CLUSTER_SIZE))
            .map(|(c, _)| *c)
        {
            let (from, to) = (cluster * CLUSTER_SIZE, (cluster + 1) * CLUSTER_SIZE);
            add(at, from.min(end), ExtentKind::Hole);
            add(from.max(at), to.min(end), ExtentKind::Data);
            at = to.min(end);
        }
        add(at, end, ExtentKind::Hole);
        extents.truncate(ask.extents_max as usize);
        Ok(Extents { extents })
    }
}

fn checksums(offset: u64, data: &[u8]) -> Vec<u32> {
    let first = (CLUSTER_SIZE - offset % CLUSTER_SIZE) as usize;
    let (head, rest) = data.split_at(first.min(data.len()));
    let parts = std::iter::once(head).chain(rest.chunks(CLUSTER)).filter(|part| !part.is_empty());
    parts.map(|part| u32::try_from(checksum(CrcAlgorithm::Crc32Iscsi, part)).unwrap()).collect()
}
