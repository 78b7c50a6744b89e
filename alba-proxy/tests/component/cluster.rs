//! A proxy or two over fakes, and a router's view of them.

use crate::fakes::{AsdService, FakeArakoon, FakeAsd, Server, identity};
use alba_proxy::{Config, Running};
use bytes::Bytes;
use model::{Epoch, NamespaceId, ObjectId, OsdId, ScoNumber, VdiskId};
use runtime::rpc::{Call, CallError, Client, ClientOptions};
use runtime::shutdown::Shutdown;
use std::sync::Arc;
use std::time::Duration;
use wire::common::Status;
use wire::facts::{Compression, Encryption, OsdRecord, OsdState, PresetRecord, Record, key};
use wire::proxy::{self, Health, PutDone, PutObject, ReadDone, ReadObject, method};
use wire::{Encode, Role};

pub const NAMESPACE: NamespaceId = NamespaceId(7);
/// Nothing here takes nearly this long.
const WITHIN: Duration = Duration::from_secs(20);

#[derive(Clone, Copy)]
pub struct Setup {
    pub asds: u8,
    pub proxies: u8,
    pub policies: &'static str,
    pub compression: Compression,
    pub encryption: Encryption,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            asds: 6,
            proxies: 1,
            policies: "4,2,5,1;2,2,3,1",
            compression: Compression::Adaptive,
            encryption: Encryption::Aes256Gcm,
        }
    }
}

pub struct Cluster {
    pub arakoon: Arc<FakeArakoon>,
    pub asds: Vec<Arc<FakeAsd>>,
    pub servers: Vec<Server>,
    clients: Vec<Client>,
    shutdown: Shutdown,
    _running: Vec<Running>,
    _arakoon: Server,
    _dir: tempfile::TempDir,
}

pub fn object(number: u64) -> ObjectId {
    object_at(1, number)
}

pub fn object_at(epoch: u64, number: u64) -> ObjectId {
    ObjectId { vdisk: VdiskId(NAMESPACE.0), epoch: Epoch(epoch), number: ScoNumber(number) }
}

/// Bytes of which about half compress.
pub fn data(len: usize, seed: u64) -> Bytes {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        if (out.len() / 20_000) % 2 == 0 {
            out.extend_from_slice(&state.to_le_bytes());
        } else {
            out.extend_from_slice(b"holdfast");
        }
    }
    out.truncate(len);
    Bytes::from(out)
}

impl Cluster {
    pub async fn start(setup: Setup) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = |name: &str| format!("unix:{}/{name}.sock", dir.path().display());
        let arakoon = Arc::new(FakeArakoon::default());
        let service = Arc::clone(&arakoon);
        let arakoon_server =
            Server::start(&socket("arakoon"), Role::Arakoon, "arakoon-1", service).await;
        let (mut asds, mut servers) = (Vec::new(), Vec::new());
        for number in 1..=setup.asds {
            let (asd, server) = start_asd(number, &socket(&format!("asd-{number}"))).await;
            let record = osd_record(number, &server);
            arakoon.set(key::osd(asd.osd), record.to_record());
            asds.push(asd);
            servers.push(server);
        }
        let preset = PresetRecord {
            name: "default".into(),
            version: 1,
            backend: "default".into(),
            policies: setup.policies.into(),
            compression: setup.compression,
            compression_level: 1,
            encryption: setup.encryption,
        };
        arakoon.set(key::preset("default"), preset.to_record());
        let shutdown = Shutdown::new();
        let (mut running, mut clients) = (Vec::new(), Vec::new());
        for number in 1..=setup.proxies {
            let config = config(dir.path(), number, &socket);
            let proxy = alba_proxy::start(config, shutdown.clone()).await.unwrap();
            let me = identity(Role::Router, "router-1");
            let options = ClientOptions::default();
            clients.push(Client::new(proxy.endpoint.clone(), Role::AlbaProxy, me, options));
            running.push(proxy);
        }
        let cluster = Self {
            arakoon,
            asds,
            servers,
            clients,
            shutdown,
            _running: running,
            _arakoon: arakoon_server,
            _dir: dir,
        };
        for proxy in 0..cluster.clients.len() {
            cluster.create_namespace(proxy).await.unwrap();
            let asds = cluster.asds.len();
            cluster
                .until("all OSDs are ok", proxy, |status| {
                    status["osds"]
                        .as_array()
                        .unwrap()
                        .iter()
                        .filter(|osd| osd["state"] == "ok")
                        .count()
                        == asds
                })
                .await;
        }
        cluster.raise_epoch(1).await.unwrap();
        cluster
    }

    pub async fn call<Q: Encode, A: wire::Decode>(
        &self,
        proxy: usize,
        method: u16,
        body: &Q,
        payload: Bytes,
    ) -> Result<(A, Bytes), CallError> {
        self.clients[proxy].call(method, body, Call::with_payload(payload, WITHIN)).await
    }

    pub async fn ask<Q: Encode, A: wire::Decode>(
        &self,
        method: u16,
        body: &Q,
    ) -> Result<A, CallError> {
        self.call(0, method, body, Bytes::new()).await.map(|(answer, _)| answer)
    }

    pub async fn create_namespace(&self, proxy: usize) -> Result<(), CallError> {
        let body = proxy::CreateNamespace { namespace: NAMESPACE, preset: "default".into() };
        self.call(proxy, method::CREATE_NAMESPACE, &body, Bytes::new()).await.map(|((), _)| ())
    }

    pub async fn raise_epoch(&self, epoch: u64) -> Result<(), CallError> {
        let body = proxy::RaiseEpoch { namespace: NAMESPACE, epoch: Epoch(epoch) };
        self.ask(method::RAISE_EPOCH, &body).await
    }

    /// Object `number` behind object `number - 1` of epoch 1.
    pub async fn put(&self, number: u64, payload: Bytes) -> Result<PutDone, CallError> {
        self.put_via(0, &put_request(number, &payload), payload).await
    }

    pub async fn put_via(
        &self,
        proxy: usize,
        request: &PutObject,
        payload: Bytes,
    ) -> Result<PutDone, CallError> {
        self.call(proxy, method::PUT_OBJECT, request, payload).await.map(|(done, _)| done)
    }

    /// Gives up early.
    pub async fn put_briefly(
        &self,
        request: &PutObject,
        payload: Bytes,
        patience: Duration,
    ) -> Result<PutDone, CallError> {
        let call = Call::with_payload(payload, patience);
        self.clients[0].call(method::PUT_OBJECT, request, call).await.map(|(done, _)| done)
    }

    pub async fn read(&self, object: ObjectId, ranges: &[(u64, u32)]) -> Result<Bytes, CallError> {
        let body = ReadObject { namespace: NAMESPACE, object, ranges: ranges.to_vec() };
        let (done, payload): (ReadDone, Bytes) =
            self.call(0, method::READ_OBJECT, &body, Bytes::new()).await?;
        let mut rest = payload.clone();
        for ((_, len), sum) in ranges.iter().zip(done.checksums) {
            let piece = rest.split_to(usize::try_from(*len).unwrap());
            assert_eq!(codec::crc32c(&piece), sum);
        }
        assert!(rest.is_empty());
        Ok(payload)
    }

    pub async fn read_all(&self, number: u64, len: usize) -> Result<Bytes, CallError> {
        self.read(object(number), &[(0, u32::try_from(len).unwrap())]).await
    }

    pub async fn health(&self) -> Health {
        let body = proxy::NamespaceHealth { namespace: NAMESPACE };
        self.ask(method::NAMESPACE_HEALTH, &body).await.unwrap()
    }

    pub async fn fill(&self) -> Health {
        self.ask(method::FILL_HOLES, &proxy::FillHoles { namespace: NAMESPACE }).await.unwrap()
    }

    pub async fn status(&self, proxy: usize) -> serde_json::Value {
        let (status, _): (Status, _) =
            self.call(proxy, wire::common::method::STATUS, &(), Bytes::new()).await.unwrap();
        serde_json::from_str(&status.details_json).unwrap()
    }

    /// Looks again until the status is as wanted.
    pub async fn until(
        &self,
        what: &str,
        proxy: usize,
        wanted: impl Fn(&serde_json::Value) -> bool,
    ) {
        let look = async {
            loop {
                let status = self.status(proxy).await;
                if wanted(&status) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        if tokio::time::timeout(WITHIN, look).await.is_err() {
            panic!("never came: {what}; last: {}", self.status(proxy).await);
        }
    }

    /// Looks again until no ASD has more or fewer fragments in all.
    pub async fn until_fragments(&self, wanted: usize) {
        let count = || self.asds.iter().map(|asd| asd.fragments()).sum::<usize>();
        let look = async {
            while count() != wanted {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let met = tokio::time::timeout(WITHIN, look).await;
        assert!(met.is_ok(), "{} fragments instead of {wanted}", count());
    }
}

async fn start_asd(number: u8, endpoint: &str) -> (Arc<FakeAsd>, Server) {
    let asd = FakeAsd::new(OsdId(number.into()));
    let service = Arc::new(AsdService(Arc::clone(&asd)));
    let server = Server::start(endpoint, Role::Asd, &format!("asd-{number}"), service).await;
    (asd, server)
}

fn osd_record(number: u8, server: &Server) -> OsdRecord {
    OsdRecord {
        osd: OsdId(number.into()),
        name: format!("asd-{number}"),
        addresses: vec![server.endpoint().to_string()],
        domain: format!("dc1/rack1/host{number}"),
        backend: "default".into(),
        state: OsdState::Good,
        capacity_bytes: 10 << 30,
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.shutdown.trigger();
    }
}

pub fn put_request(number: u64, payload: &Bytes) -> PutObject {
    PutObject {
        namespace: NAMESPACE,
        object: object(number),
        epoch: Epoch(1),
        expected_head: (number > 1).then(|| object(number - 1)),
        frame_size: 16_448,
        meta: Bytes::from(format!("meta {number}")),
        checksum: codec::crc32c(payload),
    }
}

fn config(dir: &std::path::Path, number: u8, socket: &dyn Fn(&str) -> String) -> Config {
    use std::os::unix::fs::PermissionsExt;
    let keys = dir.join("keys");
    std::fs::write(&keys, format!("v1 1 {}\n", "5a".repeat(32))).unwrap();
    std::fs::set_permissions(&keys, std::fs::Permissions::from_mode(0o600)).unwrap();
    let text = format!(
        "name = \"proxy-{number}\"\ncluster = \"test\"\nbackend = \"default\"\nslack_ms = 100\n\
         data_dir = \"{dir}/proxy-{number}\"\nkey_file = \"{keys}\"\nlisten = \"{listen}\"\n\
         [[arakoon.nodes]]\nid = 1\nname = \"arakoon-1\"\naddress = \"{arakoon}\"\n",
        dir = dir.display(),
        keys = keys.display(),
        listen = socket(&format!("proxy-{number}")),
        arakoon = socket("arakoon"),
    );
    let path = dir.join(format!("proxy-{number}.toml"));
    std::fs::write(&path, text).unwrap();
    Config::load(&path).unwrap()
}
