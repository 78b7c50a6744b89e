//! An edge on one vDisk, with a model of what must be on it.

use bytes::Bytes;
use model::{AttachmentGeneration, ByteRange, EdgeId, Epoch, RequestSeq, VdiskId};
use router_core::plan;
use runtime::rpc::{Call, CallError, Client, ClientOptions};
use wire::router::{
    Applied, Attach, AttachMode, Attached, BlockStatus, Contest, Detach, Durability, ExtentKind,
    Extents, Flush, Flushed, IO_MAX, Read, ReadDone, ReplayComplete, SyncDone, Unmap, UnmapKind,
    VdiskName, Write, code, method,
};
use wire::{Decode, Encode, ErrorClass, Role, WireError};

use super::{Router, WITHIN, identity, runtime};

pub struct Disk {
    runtime: tokio::runtime::Runtime,
    client: Client,
    /// An operator's: edges may not administer.
    admin: Client,
    name: String,
    edge: u128,
    /// Where the edge runs.
    pub domain: String,
    vdisk: VdiskId,
    generation: AttachmentGeneration,
    seq: u64,
    model: Vec<u8>,
}

impl std::fmt::Debug for Disk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "edge-{} on {}", self.edge, self.name)
    }
}

fn client(router: &Router, edge: u128) -> Client {
    client_as(router, Role::Edge, &format!("edge-{edge}"))
}

fn client_as(router: &Router, role: Role, name: &str) -> Client {
    let identity = identity(role, name);
    Client::new(router.endpoint().clone(), Role::Router, identity, ClientOptions::default())
}

impl Disk {
    pub fn attach(router: &Router, name: &str) -> Self {
        Self::try_attach(router, name, 1, AttachMode::Exclusive, false).unwrap()
    }

    pub fn try_attach(
        router: &Router,
        name: &str,
        edge: u128,
        mode: AttachMode,
        take_over: bool,
    ) -> Result<Self, WireError> {
        let mut disk = Self {
            runtime: runtime(),
            client: client(router, edge),
            admin: client_as(router, Role::Admin, "admin"),
            name: name.to_owned(),
            edge,
            domain: String::new(),
            vdisk: VdiskId(0),
            generation: AttachmentGeneration(0),
            seq: 0,
            model: Vec::new(),
        };
        let attached = disk.attach_as(None, mode, take_over)?;
        if attached.size_bytes <= 1 << 30 {
            disk.model = vec![0; usize::try_from(attached.size_bytes).unwrap()];
        }
        Ok(disk)
    }

    /// Asks to attach and hangs up when there is no answer soon.
    pub fn attach_and_hang_up(router: &Router, name: &str, edge: u128) {
        let (asker, runtime) = (client(router, edge), runtime());
        let (edge, edge_name) = (EdgeId(edge), format!("edge-{edge}"));
        let attach = Attach {
            name: name.to_owned(),
            edge,
            edge_name,
            mode: AttachMode::Exclusive,
            reclaim: None,
            take_over: false,
            domain: String::new(),
        };
        runtime.block_on(async {
            let call = Call::within(WITHIN);
            let asked = asker.call::<_, Attached>(method::ATTACH, &attach, call);
            let soon = std::time::Duration::from_millis(200);
            tokio::time::timeout(soon, asked).await.expect_err("it was answered");
        });
    }

    fn attach_as(
        &mut self,
        reclaim: Option<AttachmentGeneration>,
        mode: AttachMode,
        take_over: bool,
    ) -> Result<Attached, WireError> {
        let attach = self.attaching(reclaim, mode, take_over);
        let start = std::time::Instant::now();
        let attached: Attached = loop {
            match self.call(method::ATTACH, &attach, Bytes::new()) {
                Ok((attached, _)) => break attached,
                Err(error) if error.class == ErrorClass::Retry && start.elapsed() < WITHIN => {
                    std::thread::sleep(std::time::Duration::from_millis(5));
                }
                Err(error) => return Err(error),
            }
        };
        (self.vdisk, self.generation) = (attached.vdisk, attached.generation);
        Ok(attached)
    }

    fn attaching(
        &self,
        reclaim: Option<AttachmentGeneration>,
        mode: AttachMode,
        take_over: bool,
    ) -> Attach {
        Attach {
            name: self.name.clone(),
            edge: EdgeId(self.edge),
            edge_name: format!("edge-{}", self.edge),
            mode,
            reclaim,
            take_over,
            domain: self.domain.clone(),
        }
    }

    /// What it asks with its token.
    pub fn reattaching(&self) -> Attach {
        self.attaching(Some(self.generation), AttachMode::Exclusive, false)
    }

    fn call<Q: Encode, A: Decode>(
        &self,
        method: u16,
        body: &Q,
        payload: Bytes,
    ) -> Result<(A, Bytes), WireError> {
        self.call_on(&self.client, method, body, payload)
    }

    fn call_on<Q: Encode, A: Decode>(
        &self,
        client: &Client,
        method: u16,
        body: &Q,
        payload: Bytes,
    ) -> Result<(A, Bytes), WireError> {
        self.runtime.block_on(async {
            match client.call(method, body, Call::with_payload(payload, WITHIN)).await {
                Ok(answer) => Ok(answer),
                Err(CallError::Refused(error)) => Err(error),
                Err(error) => panic!("{error}"),
            }
        })
    }

    /// To a router that was restarted: with the token, and nothing to replay.
    pub fn reattach(&mut self, router: &Router) {
        self.try_reattach(router).unwrap();
        self.replay_complete();
    }

    pub fn try_reattach(&mut self, router: &Router) -> Result<Attached, WireError> {
        self.client = client(router, self.edge);
        self.admin = client_as(router, Role::Admin, "admin");
        self.attach_as(Some(self.generation), AttachMode::Exclusive, false)
    }

    /// Says to this router that the owner of this epoch gives no service.
    pub fn contest(&self, at: &Router, epoch: Epoch) -> Result<(), WireError> {
        at.call(method::CONTEST, &self.contesting(epoch))
    }

    /// What it says then.
    pub fn contesting(&self, epoch: Epoch) -> Contest {
        let (name, generation) = (self.name.clone(), Some(self.generation));
        Contest { name, edge: EdgeId(self.edge), generation, epoch }
    }

    pub fn replay_complete(&self) {
        self.try_replay_complete().unwrap();
    }

    pub fn try_replay_complete(&self) -> Result<(), WireError> {
        let done = ReplayComplete { vdisk: self.vdisk, generation: self.generation };
        self.call::<_, ()>(method::REPLAY_COMPLETE, &done, Bytes::new()).map(|_| ())
    }

    pub fn detach(&self) {
        let detach = Detach { vdisk: self.vdisk, generation: self.generation };
        self.call::<_, ()>(method::DETACH, &detach, Bytes::new()).unwrap();
    }

    fn send(
        &self,
        seq: u64,
        offset: u64,
        data: &[u8],
        durability: Durability,
    ) -> Result<Applied, WireError> {
        let range = ByteRange::new(offset, data.len() as u64).unwrap();
        let write = Write {
            vdisk: self.vdisk,
            generation: self.generation,
            seq: RequestSeq(seq),
            offset,
            durability,
            checksums: plan::parts(range, data).map(router_core::crc32c).collect(),
        };
        Ok(self.call(method::WRITE, &write, Bytes::copy_from_slice(data))?.0)
    }

    pub fn write_with_bad_checksum(&mut self) -> Result<Applied, WireError> {
        let write = Write {
            vdisk: self.vdisk,
            generation: self.generation,
            seq: RequestSeq(self.seq + 1),
            offset: 0,
            durability: Durability::Normal,
            checksums: vec![1],
        };
        Ok(self.call(method::WRITE, &write, Bytes::from_static(&[9; 4096]))?.0)
    }

    /// A request of an earlier sequence, again.
    pub fn resend(&self, seq: u64, offset: u64, data: &[u8]) -> u64 {
        self.send(seq, offset, data, Durability::Normal).unwrap().lsn.0
    }

    pub fn try_write(&mut self, offset: u64, data: &[u8]) -> Result<Applied, WireError> {
        self.seq += 1;
        self.send(self.seq, offset, data, Durability::Normal)
    }

    pub fn try_write_as(
        &mut self,
        offset: u64,
        data: &[u8],
        durability: Durability,
    ) -> Result<Applied, WireError> {
        self.seq += 1;
        self.send(self.seq, offset, data, durability)
    }

    pub fn write(&mut self, offset: u64, data: &[u8], durability: Durability) {
        self.seq += 1;
        self.send(self.seq, offset, data, durability).unwrap();
        let at = usize::try_from(offset).unwrap();
        self.model[at..at + data.len()].copy_from_slice(data);
    }

    pub fn try_unmap(
        &mut self,
        offset: u64,
        len: u64,
        kind: UnmapKind,
    ) -> Result<Applied, WireError> {
        self.seq += 1;
        let unmap = Unmap {
            vdisk: self.vdisk,
            generation: self.generation,
            seq: RequestSeq(self.seq),
            offset,
            len,
            kind,
            durability: Durability::Normal,
        };
        Ok(self.call(method::UNMAP, &unmap, Bytes::new())?.0)
    }

    /// Uses up the number of a request that was refused.
    pub fn void(&self, seq: u64) -> Applied {
        let unmap = Unmap {
            vdisk: self.vdisk,
            generation: self.generation,
            seq: RequestSeq(seq),
            offset: 0,
            len: 0,
            kind: UnmapKind::Trim,
            durability: Durability::Normal,
        };
        self.call(method::UNMAP, &unmap, Bytes::new()).unwrap().0
    }

    pub fn flush(&self) -> Flushed {
        let flush = Flush { vdisk: self.vdisk, generation: self.generation };
        self.call(method::FLUSH, &flush, Bytes::new()).unwrap().0
    }

    pub fn try_read(&self, offset: u64, len: u32) -> Result<Vec<u8>, WireError> {
        let read = Read { vdisk: self.vdisk, generation: self.generation, offset, len };
        let (done, payload): (ReadDone, Bytes) = self.call(method::READ, &read, Bytes::new())?;
        let range = ByteRange::new(offset, len.into()).unwrap();
        assert!(plan::checksums_match(range, &payload, &done.checksums), "end to end");
        Ok(payload.to_vec())
    }

    /// Asks again while the owner can't be sure that it is one.
    pub fn read_patiently(&self, offset: u64, len: u32) -> Vec<u8> {
        let start = std::time::Instant::now();
        loop {
            match self.try_read(offset, len) {
                Err(error) if error.code == code::RECOVERING && start.elapsed() < WITHIN => {
                    std::thread::sleep(std::time::Duration::from_millis(5));
                }
                read => return read.unwrap(),
            }
        }
    }

    pub fn try_status(&self, offset: u64, len: u64) -> Result<Vec<(u64, ExtentKind)>, WireError> {
        let (vdisk, generation) = (self.vdisk, self.generation);
        let ask = BlockStatus { vdisk, generation, offset, len, extents_max: 64 };
        let (extents, _): (Extents, Bytes) = self.call(method::BLOCK_STATUS, &ask, Bytes::new())?;
        Ok(extents.extents.into_iter().map(|extent| (extent.len, extent.kind)).collect())
    }

    pub fn try_sync(&self) -> Result<SyncDone, WireError> {
        let name = VdiskName { name: self.name.clone() };
        Ok(self.call_on(&self.admin, method::SYNC_VDISK, &name, Bytes::new())?.0)
    }

    /// What an edge is told that tries to administer.
    pub fn try_sync_as_edge(&self) -> Result<SyncDone, WireError> {
        let name = VdiskName { name: self.name.clone() };
        Ok(self.call(method::SYNC_VDISK, &name, Bytes::new())?.0)
    }

    pub fn sync(&self) {
        self.try_sync().unwrap();
    }

    /// Everything, in reads of odd sizes.
    pub fn check_all(&self) {
        let mut at = 0;
        let mut len = 700_001_usize;
        while at < self.model.len() {
            let end = (at + len).min(self.model.len());
            let read = self.read_patiently(at as u64, u32::try_from(end - at).unwrap());
            if read != self.model[at..end] {
                let bad = read.iter().zip(&self.model[at..end]).position(|(a, b)| a != b).unwrap();
                panic!("byte {} is {}, must be {}", at + bad, read[bad], self.model[at + bad]);
            }
            at = end;
            len = (len * 7 / 5) % IO_MAX as usize + 1;
        }
    }

    /// A write, an unmap, a read or a flush somewhere.
    pub fn random_step(&mut self, random: &mut fastrand::Rng) {
        let size = self.model.len();
        let align = [1, 512, 4096][random.usize(0..3)];
        let longest = [600, 9000, 300_000][random.usize(0..3)];
        let len = (random.usize(1..longest).div_ceil(align) * align).min(size);
        let offset = random.usize(0..=(size - len) / align) * align;
        match random.u8(0..10) {
            0..=5 => {
                let seed = random.u8(1..=255);
                let data: Vec<u8> = (0..len).map(|at| seed.wrapping_add((at / 64) as u8)).collect();
                let durability =
                    if random.u8(0..8) == 0 { Durability::Durable } else { Durability::Normal };
                self.write(offset as u64, &data, durability);
            }
            6 | 7 => {
                let kind = if random.bool() { UnmapKind::Trim } else { UnmapKind::Zero };
                let len = if random.u8(0..4) == 0 { (len * 40).min(size - offset) } else { len };
                self.try_unmap(offset as u64, len as u64, kind).unwrap();
                self.model[offset..offset + len].fill(0);
            }
            8 => {
                let read = self.try_read(offset as u64, u32::try_from(len).unwrap()).unwrap();
                assert!(read == self.model[offset..offset + len], "read at {offset}");
            }
            _ => {
                self.flush();
            }
        }
    }
}
