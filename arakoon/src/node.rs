//! Puts a node together and runs it until shutdown.

use crate::config::Config;
use crate::driver::{self, Driver, Input, Inputs, Parts, Refused};
use crate::join::join;
use crate::links::Links;
use crate::raft_log;
use crate::server::Server;
use crate::store::{OpenError, OpenOptions, RocksStore};
use arakoon_core::{Replica, ReplicaConfig, StoreError};
use runtime::dirlock::{DirLock, DirLockError};
use runtime::net::{Listener, NetError};
use runtime::peer::Identity;
use runtime::rpc::{Client, ClientOptions, ServerOptions, serve};
use runtime::shutdown::Shutdown;
use runtime::tls::TlsError;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use wire::Role;

/// Why a node doesn't run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    Dir(#[from] DirLockError),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Net(#[from] NetError),
    /// The node stopped rather than go on with a disk it can't trust.
    #[error("the node stopped: {0}")]
    Store(#[from] StoreError),
    #[error("the thread that owns the Raft log is gone; its last log lines say why")]
    Thread,
    #[error("can't start a thread: {0}")]
    Spawn(std::io::Error),
}

/// Runs a node until shutdown, on a current-thread runtime.
///
/// # Errors
/// See [`RunError`].
pub async fn run(config: Config, shutdown: Shutdown) -> Result<(), RunError> {
    let _lock = DirLock::acquire(&config.data_dir)?;
    let identity =
        Identity::new(Role::Arakoon, &config.name, &config.cluster, config.tls.as_ref())?;
    let listener = Listener::bind(&config.listen, &identity).await?;
    let store = open_store(&config).await?;
    let pages = store.pages();
    let joining = store.is_joining()?;
    let replica_config = ReplicaConfig {
        id: config.id,
        seed: runtime::random::u64(),
        compact_after: config.snapshot_after_entries,
        voting: !joining,
    };
    let replica = Replica::open(&replica_config, store, &raft_log::logger())?;
    let (inputs, taken) = driver::channel();
    let clients = clients(&config, &identity);
    let mut tasks = JoinSet::new();
    let driver = Driver::new(Parts {
        replica,
        links: Links::start(config.id, &clients, &inputs, &mut tasks),
        identity: Arc::clone(&identity),
        nodes: config.nodes.clone(),
        peers: clients.clone(),
        inputs: inputs.clone(),
        tasks: tokio::runtime::Handle::current(),
    });
    let (ended, mut end) = oneshot::channel();
    let thread = std::thread::Builder::new()
        .name("raft".into())
        .spawn(move || {
            // Nobody listens any more only when `run` was dropped.
            let _ = ended.send(driver.run(&taken));
        })
        .map_err(RunError::Spawn)?;
    tracing::info!(name = config.name, listen = %listener.local_endpoint(), "arakoon node started");
    let peers = clients.keys().copied().collect();
    if joining {
        tasks.spawn(join(config.id, clients, inputs.clone()));
    }
    let service = Arc::new(Server { inputs: inputs.clone(), pages, peers, id: config.id });
    let options =
        ServerOptions::allowing(&[Role::Arakoon, Role::AlbaProxy, Role::Router, Role::Admin]);
    let closing = Shutdown::new();
    tasks.spawn(serve(listener, identity, service, options, closing.clone()));
    let result = tokio::select! {
        result = &mut end => result,
        () = shutdown.wait() => {
            // Peers still reach us while a leader hands over.
            stop(&inputs).await;
            end.await
        }
    };
    closing.trigger();
    // It has said its last word; what is left is closing the database.
    let joined = tokio::task::spawn_blocking(move || thread.join()).await;
    tasks.shutdown().await;
    match (result, joined) {
        (Ok(result), Ok(Ok(()))) => Ok(result?),
        _ => Err(RunError::Thread),
    }
}

async fn stop(inputs: &Inputs) {
    // The queue is taken from all the time; it is full only for moments.
    while let Err(Refused::Full) = inputs.push(Input::Stop) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn open_store(config: &Config) -> Result<RocksStore, RunError> {
    let dir = config.data_dir.clone();
    let options = OpenOptions {
        cluster: config.cluster.clone(),
        node: config.id,
        voters: config.nodes.iter().map(|node| node.id).collect(),
    };
    let opened = tokio::task::spawn_blocking(move || RocksStore::open(&dir, &options)).await;
    Ok(opened.map_err(|_| RunError::Thread)??)
}

fn clients(config: &Config, identity: &Arc<Identity>) -> BTreeMap<u64, Client> {
    // Nodes find each other again at once: elections depend on it.
    let options = ClientOptions {
        connect_timeout: Duration::from_secs(1),
        backoff_min: Duration::from_millis(50),
        backoff_max: Duration::from_millis(300),
        ..ClientOptions::default()
    };
    let others = config.nodes.iter().filter(|node| node.id != config.id);
    others
        .map(|node| {
            let endpoint = node.address.0.clone();
            (node.id, Client::new(endpoint, Role::Arakoon, Arc::clone(identity), options.clone()))
        })
        .collect()
}
