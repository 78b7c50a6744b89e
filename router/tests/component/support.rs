//! A world for a router: fake arakoon, fake proxy, directories, and an edge that remembers what it was told.

pub mod arakoon;
pub mod disk;
pub mod gate;
pub mod proxy;
pub mod relay;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arakoon_client::ArakoonClient;
use bytes::Bytes;
use model::{Incarnation, LogId, RouterId, VdiskId};
use router::facts::Facts;
use router_core::log::{Scan, Scanner};
use runtime::endpoint::Endpoint;
use runtime::net::Listener;
use runtime::peer::Identity;
use runtime::rpc::{Call, CallError, Client, ClientOptions, ServerOptions, Service, serve};
use runtime::shutdown::Shutdown;
use wire::common::{EventList, EventsAsk};
use wire::dtl::DtlMode;
use wire::facts::{
    LossRecord, Record, RouterRecord, RouterState, VdiskRecord, VpoolDtl, VpoolRecord, key,
};
use wire::router::{
    CreateVdisk, EndAttachment, EndedAttachment, Locate, Location, MapCopies, MapCopy,
    RecoverVdisk, Recovery, ResizeVdisk, Transfer, Transferred, VdiskInfo, VdiskName, VdiskNames,
    method,
};
use wire::{Decode, Encode, Role, WireError};

pub use disk::Disk;
pub use relay::{Held, Relay};

pub const WITHIN: Duration = Duration::from_secs(60);

pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < WITHIN, "not within a minute: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

pub fn identity(role: Role, name: &str) -> Arc<Identity> {
    Identity::new(role, name, "test", None).unwrap()
}

/// Serves in a thread of its own until dropped.
pub struct Served {
    pub endpoint: Endpoint,
    shutdown: Shutdown,
    thread: Option<JoinHandle<()>>,
}

impl Served {
    pub fn start(role: Role, service: Arc<dyn Service>) -> Self {
        let shutdown = Shutdown::new();
        let (sender, receiver) = sync_channel(1);
        let stop = shutdown.clone();
        let thread = std::thread::spawn(move || {
            runtime().block_on(async {
                let identity = identity(role, "fake");
                let listener =
                    Listener::bind(&"127.0.0.1:0".parse().unwrap(), &identity).await.unwrap();
                sender.send(listener.local_endpoint()).unwrap();
                let options = ServerOptions::allowing(&Role::ALL);
                serve(listener, identity, service, options, stop).await;
            });
        });
        Self { endpoint: receiver.recv().unwrap(), shutdown, thread: Some(thread) }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.shutdown.trigger();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What can be cut.
pub struct Cables {
    /// From every router to the second one, which keeps the DTL of the first.
    pub dtl: Relay,
    /// From the first router to arakoon.
    pub arakoon: Relay,
    /// From the first router to the proxy.
    pub proxy: Relay,
}

pub struct World {
    dir: tempfile::TempDir,
    pub proxy: Arc<proxy::FakeProxy>,
    pub arakoon: Arc<arakoon::FakeArakoon>,
    /// What every message to arakoon and the backend passes.
    pub gate: Arc<gate::Gate>,
    /// What every message to the backend about checkpoints passes.
    pub checkpoint_gate: Arc<gate::Gate>,
    cables: Option<Cables>,
    proxy_server: Served,
    arakoon_server: Served,
}

impl World {
    pub fn new() -> Self {
        let gate = Arc::new(gate::Gate::default());
        let checkpoint_gate = Arc::new(gate::Gate::default());
        let proxy = Arc::new(proxy::FakeProxy::default());
        let arakoon = Arc::new(arakoon::FakeArakoon::default());
        let vpool = VpoolRecord { name: "default".into(), preset: "p".into(), sco_bytes: 1 << 20 };
        arakoon.set(key::vpool("default"), vpool.to_record());
        Self {
            dir: tempfile::tempdir().unwrap(),
            proxy_server: Served::start(
                Role::AlbaProxy,
                Arc::new(proxy::Server(
                    Arc::clone(&proxy),
                    Arc::clone(&gate),
                    Arc::clone(&checkpoint_gate),
                )),
            ),
            arakoon_server: Served::start(
                Role::Arakoon,
                Arc::new(arakoon::Server(Arc::clone(&arakoon), Arc::clone(&gate))),
            ),
            proxy,
            arakoon,
            gate,
            checkpoint_gate,
            cables: None,
        }
    }

    /// Edges reach every router, whatever is cut.
    pub fn with_cables(self) -> Self {
        let [dtl, arakoon, proxy] = std::array::from_fn(|_| Relay::start());
        arakoon.lead_to(&self.arakoon_server.endpoint);
        proxy.lead_to(&self.proxy_server.endpoint);
        let cables = Cables { dtl, arakoon, proxy };
        Self { cables: Some(cables), ..self }
    }

    pub fn cables(&self) -> &Cables {
        self.cables.as_ref().expect("the world was made with cables")
    }

    pub fn start(&self) -> Router {
        self.start_with("log_segments = 6\nlog_segment_size = \"8MiB\"")
    }

    pub fn start_other(&self) -> Router {
        let size = "log_segments = 4\nlog_segment_size = \"8MiB\"";
        let Some(Cables { dtl, .. }) = &self.cables else { return self.launch("router-2", size) };
        let other = self.launch("router-2", &format!("{size}\naddresses = [\"{}\"]", dtl.endpoint));
        dtl.lead_to(other.endpoint());
        other
    }

    /// Two routers, and the first one's vDisk "demo", InSync at the second.
    pub fn in_sync(&self, size_bytes: u64) -> (Router, Router, Disk) {
        let (owner, other) = (self.start(), self.start_other());
        owner.create("demo", size_bytes);
        let disk = Disk::attach(&owner, "demo");
        owner.until_in_sync("demo");
        (owner, other, disk)
    }

    pub fn start_third(&self) -> Router {
        self.launch("router-3", "log_segments = 4\nlog_segment_size = \"8MiB\"")
    }

    pub fn start_third_with(&self, extra: &str) -> Router {
        self.launch("router-3", extra)
    }

    pub fn start_other_with(&self, extra: &str) -> Router {
        self.launch("router-2", extra)
    }

    /// vDisks made from now on have a DTL.
    pub fn with_dtl(self, mode: DtlMode) -> Self {
        self.arakoon.set(key::vpool_dtl("default"), VpoolDtl { mode }.to_record());
        self
    }

    /// The session of the vDisk's owner ends, though the owner doesn't know.
    pub fn expire_owner(&self, name: &str) {
        self.arakoon.expire(&key::router_session(self.vdisk(name).owner));
    }

    /// Of the router with this name.
    pub fn id_of(&self, router: &str) -> RouterId {
        std::fs::read_to_string(self.path(router).join("router-id"))
            .unwrap()
            .trim()
            .parse()
            .unwrap()
    }

    /// Arakoon as the first router reads it, once that was started.
    pub fn facts(&self) -> Facts {
        let config = router::Config::load(&self.dir.path().join("router-1.toml")).unwrap();
        Facts::new(&ArakoonClient::new(&config.arakoon, &identity(Role::Router, "router-1")))
    }

    pub fn session_of(&self, router: RouterId) -> (Bytes, Incarnation) {
        let id = key::router_session(router);
        let incarnation = self.arakoon.session(&id).unwrap();
        (id, incarnation)
    }

    pub fn start_with(&self, extra: &str) -> Router {
        self.launch("router-1", extra)
    }

    fn launch(&self, name: &str, extra: &str) -> Router {
        let dead = "127.0.0.1:1";
        let cable = self.cables.as_ref().filter(|_| name == "router-1");
        let arakoon = cable.map_or(&self.arakoon_server.endpoint, |cable| &cable.arakoon.endpoint);
        let proxy = cable.map_or(&self.proxy_server.endpoint, |cable| &cable.proxy.endpoint);
        let text = format!(
            "name = \"{name}\"\ncluster = \"test\"\ndata_dir = \"{}\"\nlisten = \"127.0.0.1:0\"\n\
             proxies = [\"{dead}\", \"{}\"]\n{extra}\n[arakoon]\n[[arakoon.nodes]]\nid = 1\nname = \"fake\"\naddress = \"{}\"\n",
            self.path(name).display(),
            proxy,
            arakoon
        );
        let path = self.dir.path().join(format!("{name}.toml"));
        std::fs::write(&path, text).unwrap();
        Router::start(router::Config::load(&path).unwrap())
    }

    /// The data of the router with this name.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Overwrites the tables of the first router's page maps.
    pub fn spoil_maps(&self) {
        for entry in std::fs::read_dir(self.path("router-1").join("map")).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "sst") {
                let len = std::fs::metadata(&path).unwrap().len();
                std::fs::write(&path, vec![0x5a; usize::try_from(len).unwrap()]).unwrap();
            }
        }
    }

    /// Removes a part of the first router's data.
    pub fn remove(&self, what: &str) {
        std::fs::remove_dir_all(self.path("router-1").join(what)).unwrap();
    }

    /// Removes a part of the second router's data.
    pub fn remove_other(&self, what: &str) {
        std::fs::remove_dir_all(self.path("router-2").join(what)).unwrap();
    }

    /// What the log of the first router holds, while it doesn't run.
    pub fn scan_log(&self) -> Scan {
        let dir = self.path("router-1").join("log");
        let identity = std::fs::read_to_string(dir.join("id")).unwrap();
        let (id, size) = identity.trim().split_once(' ').unwrap();
        let id = LogId(u64::from_str_radix(id, 16).unwrap());
        let mut scanner = Scanner::new(id, size.parse().unwrap());
        for file in 0.. {
            let Ok(bytes) = std::fs::read(dir.join(format!("seg-{file:04}"))) else { break };
            scanner.add_file(file, &bytes);
        }
        scanner.finish().unwrap()
    }

    /// Until the router of this name has said so in its record.
    pub fn until_standing(&self, router: &str, state: RouterState) {
        let (start, key) = (Instant::now(), key::router(self.id_of(router)));
        let stands = || {
            let record = RouterRecord::from_record(self.arakoon.get(&key).unwrap()).unwrap();
            record.state == state
        };
        while !stands() {
            assert!(start.elapsed() < WITHIN, "{router} isn't {state:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// What an operator gave up of it, with the first LSN of each.
    pub fn losses(&self, name: &str) -> Vec<(String, u64)> {
        let bytes = self.arakoon.get(&key::vdisk_loss(self.vdisk(name).vdisk));
        let record = bytes.map(|bytes| LossRecord::from_record(bytes).unwrap());
        let losses = record.into_iter().flat_map(|record| record.losses);
        losses.map(|loss| (loss.by, loss.from.0)).collect()
    }

    pub fn vdisk(&self, name: &str) -> VdiskRecord {
        let id = self.arakoon.get(&key::vdisk_name(name)).unwrap();
        let id = VdiskId(u128::from_le_bytes(id[..].try_into().unwrap()));
        VdiskRecord::from_record(self.arakoon.get(&key::vdisk(id)).unwrap()).unwrap()
    }
}

enum End {
    Stop,
    Kill,
}

/// A router with a thread of its own. Killing drops everything it has in memory; its page cache stays, as with kill -9.
pub struct Router {
    endpoint: Endpoint,
    end: tokio::sync::mpsc::Sender<End>,
    thread: JoinHandle<()>,
    calls: tokio::runtime::Runtime,
    client: Client,
}

impl Router {
    fn start(config: router::Config) -> Self {
        let (end, mut ends) = tokio::sync::mpsc::channel(1);
        let (sender, receiver) = sync_channel(1);
        let thread = std::thread::spawn(move || {
            let runtime = runtime();
            runtime.block_on(async {
                let shutdown = Shutdown::new();
                let trigger = shutdown.clone();
                let run = router::run_ready(config, shutdown, |endpoint| {
                    sender.send(endpoint.clone()).unwrap();
                });
                tokio::pin!(run);
                tokio::select! {
                    ended = &mut run => panic!("the router ended by itself: {ended:?}"),
                    end = ends.recv() => match end {
                        Some(End::Stop) => {
                            trigger.trigger();
                            run.await.unwrap();
                        }
                        Some(End::Kill) | None => {}
                    },
                }
            });
        });
        let endpoint: Endpoint = receiver.recv_timeout(WITHIN).expect("the router starts");
        let calls = runtime();
        let client = Client::new(
            endpoint.clone(),
            Role::Router,
            identity(Role::Admin, "admin"),
            ClientOptions::default(),
        );
        Self { endpoint, end, thread, calls, client }
    }

    pub fn address(&self) -> String {
        self.endpoint.to_string()
    }

    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    pub fn stop(self) {
        self.finish(End::Stop);
    }

    pub fn kill(self) {
        self.finish(End::Kill);
    }

    fn finish(self, end: End) {
        self.end.blocking_send(end).unwrap();
        self.thread.join().unwrap();
    }

    pub fn call<Q: Encode, A: Decode>(&self, method: u16, body: &Q) -> Result<A, WireError> {
        self.calls.block_on(async {
            match self.client.call(method, body, Call::within(WITHIN)).await {
                Ok((answer, _)) => Ok(answer),
                Err(CallError::Refused(error)) => Err(error),
                Err(error) => panic!("{error}"),
            }
        })
    }

    /// Asks, and gives up when there is no answer within this; `None` then.
    pub fn call_briefly<Q: Encode, A: Decode>(
        &self,
        (method, patience): (u16, Duration),
        body: &Q,
    ) -> Option<Result<A, WireError>> {
        self.calls.block_on(async {
            match self.client.call(method, body, Call::within(patience)).await {
                Ok((answer, _)) => Some(Ok(answer)),
                Err(CallError::Refused(error)) => Some(Err(error)),
                Err(CallError::Timeout { .. }) => None,
                Err(error) => panic!("{error}"),
            }
        })
    }

    /// Until arakoon was read and the vDisk decided: served, or refused for good.
    pub fn until_settled(&self, name: &str) -> WireError {
        let start = Instant::now();
        loop {
            match self.try_show(name) {
                Ok(info) => panic!("served: {info:?}"),
                Err(error) if error.class == wire::ErrorClass::Retry => {}
                Err(error) => return error,
            }
            assert!(start.elapsed() < WITHIN, "never settled");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }

    pub fn create(&self, name: &str, size_bytes: u64) {
        self.try_create(name, size_bytes, "default").unwrap();
    }

    pub fn try_create(
        &self,
        name: &str,
        size_bytes: u64,
        vpool: &str,
    ) -> Result<VdiskInfo, WireError> {
        self.try_create_with(name, size_bytes, vpool, None)
    }

    pub fn try_create_with(
        &self,
        name: &str,
        size_bytes: u64,
        vpool: &str,
        dtl: Option<DtlMode>,
    ) -> Result<VdiskInfo, WireError> {
        let create = CreateVdisk { name: name.into(), size_bytes, vpool: vpool.into(), dtl };
        self.call(method::CREATE_VDISK, &create)
    }

    pub fn try_delete(&self, name: &str) -> Result<(), WireError> {
        self.call(method::DELETE_VDISK, &VdiskName { name: name.into() })
    }

    pub fn try_resize(
        &self,
        name: &str,
        size_bytes: u64,
        force: bool,
    ) -> Result<VdiskInfo, WireError> {
        self.call(method::RESIZE_VDISK, &ResizeVdisk { name: name.into(), size_bytes, force })
    }

    /// Asks for a hand-over once, and goes on; `None`: the router went away meanwhile.
    pub fn begin_transfer(
        &self,
        name: &str,
        to: RouterId,
    ) -> JoinHandle<Option<Result<Transferred, WireError>>> {
        self.begin(method::TRANSFER_VDISK, Transfer { name: name.into(), to })
    }

    /// Asks for a deletion once, as [`Self::begin_transfer`].
    pub fn begin_delete(&self, name: &str) -> JoinHandle<Option<Result<(), WireError>>> {
        self.begin(method::DELETE_VDISK, VdiskName { name: name.into() })
    }

    /// Asks once, and goes on; `None`: the router went away meanwhile.
    pub fn begin<Q, A>(&self, method: u16, body: Q) -> JoinHandle<Option<Result<A, WireError>>>
    where
        Q: Encode + Send + Sync + 'static,
        A: Decode + Send + 'static,
    {
        let endpoint = self.endpoint.clone();
        std::thread::spawn(move || {
            runtime().block_on(async {
                let (identity, options) =
                    (identity(Role::Admin, "admin"), ClientOptions::default());
                let client = Client::new(endpoint, Role::Router, identity, options);
                match client.call(method, &body, Call::within(WITHIN)).await {
                    Ok((done, _)) => Some(Ok(done)),
                    Err(CallError::Refused(error)) => Some(Err(error)),
                    Err(_) => None,
                }
            })
        })
    }

    /// Tried again while the other router isn't ready.
    pub fn transfer(&self, name: &str, to: RouterId) -> Transferred {
        let start = Instant::now();
        loop {
            match self.call(method::TRANSFER_VDISK, &Transfer { name: name.into(), to }) {
                Err(error) if error.class == wire::ErrorClass::Retry => {
                    assert!(start.elapsed() < WITHIN, "{error}");
                }
                transferred => break transferred.unwrap(),
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn try_show(&self, name: &str) -> Result<VdiskInfo, WireError> {
        self.call(method::SHOW_VDISK, &VdiskName { name: name.into() })
    }

    pub fn list(&self) -> Vec<(String, u64)> {
        self.call::<_, VdiskNames>(method::LIST, &()).unwrap().names
    }

    pub fn try_recover(&self, name: &str, accept_loss: bool) -> Result<Recovery, WireError> {
        let ask = RecoverVdisk { name: name.into(), accept_loss, by: "tester".into() };
        self.call(method::RECOVER_VDISK, &ask)
    }

    /// Tried again while the router finds its way.
    pub fn recover(&self, name: &str, accept_loss: bool) -> Recovery {
        let start = Instant::now();
        loop {
            match self.try_recover(name, accept_loss) {
                Err(error) if error.class == wire::ErrorClass::Retry => {
                    assert!(start.elapsed() < WITHIN, "{error}");
                }
                answer => break answer.unwrap(),
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// An operator says that an edge doesn't come back.
    pub fn end_attachment(
        &self,
        name: &str,
        edge: &str,
        force: bool,
    ) -> Result<EndedAttachment, WireError> {
        let ask = EndAttachment { name: name.into(), edge: edge.into(), force };
        self.call(method::END_ATTACHMENT, &ask)
    }

    /// Its page maps, of its own vDisks and of others'.
    pub fn maps(&self) -> Vec<MapCopy> {
        self.call::<_, MapCopies>(method::LIST_MAPS, &()).unwrap().maps
    }

    /// Of this kind, about the only vDisk.
    pub fn events(&self, kind: &str) -> Vec<String> {
        let ask = EventsAsk { after: 0, events_max: 256 };
        let list: EventList = self.call(wire::common::method::EVENTS, &ask).unwrap();
        let all = list.events.into_iter().filter(|event| event.kind == kind);
        all.map(|event| event.text).collect()
    }

    pub fn locate(&self, name: &str) -> Location {
        self.call(method::LOCATE, &Locate { name: name.into() }).unwrap()
    }

    /// Asks until the details fit.
    pub fn until(&self, name: &str, fits: impl Fn(&str) -> bool) {
        let start = Instant::now();
        while !fits(&self.try_show(name).unwrap().details_json) {
            assert!(start.elapsed() < WITHIN, "{}", self.try_show(name).unwrap().details_json);
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }

    /// Every target has what is acknowledged.
    pub fn until_in_sync(&self, name: &str) {
        self.until(name, |details| details.contains(r#""dtl_state":"in-sync""#));
    }

    /// One number or word of the details.
    pub fn detail(&self, name: &str, field: &str) -> String {
        let details = self.try_show(name).unwrap().details_json;
        let (_, rest) = details.split_once(&format!("\"{field}\":")).unwrap();
        rest.split([',', '}']).next().unwrap().trim_matches('"').to_owned()
    }
}

pub fn reply<T: Encode>(responder: runtime::rpc::Responder, result: Result<T, WireError>) {
    match result {
        Ok(body) => responder.reply(&body, Bytes::new()),
        Err(error) => responder.fail(error),
    }
}
