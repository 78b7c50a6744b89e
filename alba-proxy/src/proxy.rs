//! What a proxy process shares, and how it starts and stops.
//!
//! Invariant: the process holds nothing that isn't in arakoon or on OSDs: dropping it loses caches only.

use crate::catalog::Catalog;
use crate::error::{ProxyError, RunError};
use crate::key_file::KeyRing;
use crate::maintain::{RepairJob, repair_queue};
use crate::namespaces::{Namespace, Namespaces};
use crate::object::Loaded;
use crate::osds::Osds;
use crate::plain::Lines;
use crate::server::ProxyService;
use crate::status::Counters;
use crate::workers::Workers;
use crate::{Config, background};
use arakoon_client::ArakoonClient;
use model::{NamespaceId, ObjectId};
use quick_cache::Weighter;
use quick_cache::sync::Cache;
use runtime::dirlock::DirLock;
use runtime::endpoint::Endpoint;
use runtime::net::Listener;
use runtime::peer::Identity;
use runtime::rpc::{ServerOptions, serve};
use runtime::shutdown::Shutdown;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use wire::Role;
use wire::facts::key;

/// Bytes of manifests kept.
const MANIFESTS_BYTES_MAX: u64 = 64 << 20;
const MANIFESTS_EXPECTED: usize = 16 << 10;
/// Arakoon isn't waited for longer than this by one operation, whatever the caller's deadline.
const METADATA_PATIENCE: Duration = Duration::from_secs(10);

#[derive(Clone)]
pub struct ByBytes;

impl Weighter<(NamespaceId, ObjectId), Arc<Loaded>> for ByBytes {
    fn weight(&self, _key: &(NamespaceId, ObjectId), loaded: &Arc<Loaded>) -> u64 {
        loaded.weight()
    }
}

/// Shared by all requests and background tasks.
pub struct Proxy {
    pub identity: Arc<Identity>,
    pub arakoon: ArakoonClient,
    pub osds: Osds,
    /// Small reads that wait for each.
    pub lines: Lines,
    pub catalog: Catalog,
    pub namespaces: Namespaces,
    pub workers: Workers,
    pub counters: Counters,
    pub slack: Duration,
    /// Manifests change only in their places: an old one is noticed when a fragment isn't where it says.
    pub manifests: Cache<(NamespaceId, ObjectId), Arc<Loaded>, ByBytes>,
    pub repairs: mpsc::Sender<RepairJob>,
    /// Something waits for the background: holes, deletes.
    pub holes_made: Notify,
    pub deletes_made: Notify,
}

impl Proxy {
    /// Arakoon, within what is left until the deadline.
    pub fn metadata(&self, deadline: Instant) -> Result<ArakoonClient, ProxyError> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ProxyError::TooLate);
        }
        Ok(self.arakoon.with_deadline(left.min(METADATA_PATIENCE)))
    }

    /// As known here, else from arakoon.
    pub async fn namespace(
        &self,
        id: NamespaceId,
        deadline: Instant,
    ) -> Result<Arc<Namespace>, ProxyError> {
        match self.namespaces.get(id) {
            Some(known) => Ok(known),
            None => self.fresh_namespace(id, deadline).await,
        }
    }

    /// From arakoon.
    pub async fn fresh_namespace(
        &self,
        id: NamespaceId,
        deadline: Instant,
    ) -> Result<Arc<Namespace>, ProxyError> {
        let record = self.metadata(deadline)?.get(key::namespace_info(id)).await?;
        self.namespaces.learn(id, record)
    }

    /// The object's manifest from arakoon, now.
    pub async fn fresh_object(
        &self,
        namespace: &Namespace,
        object: ObjectId,
        deadline: Instant,
    ) -> Result<Arc<Loaded>, ProxyError> {
        let cached = (namespace.id(), object);
        let record = self.metadata(deadline)?.get(key::manifest(namespace.id(), object)).await?;
        let Some(record) = record else {
            self.manifests.remove(&cached);
            return Err(ProxyError::NoObject(object));
        };
        let loaded = Arc::new(Loaded::new(namespace, record)?);
        self.manifests.insert(cached, Arc::clone(&loaded));
        Ok(loaded)
    }
}

/// A proxy that serves.
pub struct Running {
    pub endpoint: Endpoint,
    tasks: tokio::task::JoinSet<()>,
    _lock: DirLock,
}

impl Running {
    /// Returns once everything has ended after a shutdown.
    pub async fn ended(mut self) {
        while self.tasks.join_next().await.is_some() {}
    }
}

/// Starts serving. Arakoon and OSDs may come later: until then requests are answered with Retry.
///
/// # Errors
/// When the key file, the data directory, the certificates or the address can't be used.
pub async fn start(config: Config, shutdown: Shutdown) -> Result<Running, RunError> {
    let lock = DirLock::acquire(&config.data_dir)?;
    let ring = KeyRing::load(&config.key_file)?;
    let tls = config.tls.as_ref();
    let identity = Identity::new(Role::AlbaProxy, &config.name, &config.cluster, tls)?;
    let listener = Listener::bind(&config.listen, &identity).await?;
    let endpoint = listener.local_endpoint();
    let (repairs, repair_jobs) = repair_queue();
    let proxy = Arc::new(Proxy {
        arakoon: ArakoonClient::new(&config.arakoon, &identity),
        osds: Osds::new(Arc::clone(&identity)),
        lines: Lines::default(),
        catalog: Catalog::new(config.backend),
        namespaces: Namespaces::new(ring),
        workers: Workers::new(),
        counters: Counters::default(),
        slack: config.slack,
        manifests: Cache::with_weighter(MANIFESTS_EXPECTED, MANIFESTS_BYTES_MAX, ByBytes),
        repairs,
        holes_made: Notify::new(),
        deletes_made: Notify::new(),
        identity: Arc::clone(&identity),
    });
    tracing::info!(name = %config.name, %endpoint, "alba-proxy serves");
    let mut tasks = background::spawn(&proxy, repair_jobs, &shutdown);
    let service = Arc::new(ProxyService::new(proxy));
    let options = ServerOptions::allowing(&[Role::Router, Role::Admin, Role::AlbaProxy]);
    tasks.spawn(serve(listener, identity, service, options, shutdown));
    Ok(Running { endpoint, tasks, _lock: lock })
}

/// Serves until the shutdown.
///
/// # Errors
/// See [`start`].
pub async fn run(config: Config, shutdown: Shutdown) -> Result<(), RunError> {
    start(config, shutdown).await?.ended().await;
    Ok(())
}
