//! Starts and stops an edge: directory, listeners, status.

use crate::config::{Config, NbdAddress};
use crate::exports::Exports;
use crate::nbd::{self, Context};
use crate::tokens::{Tokens, TokensError};
use model::EdgeId;
use runtime::dirlock::{DirLock, DirLockError};
use runtime::endpoint::Endpoint;
use runtime::net::{Listener, NetError};
use runtime::peer::Identity;
use runtime::rpc::{Request, Responder, ServerOptions, Service, serve};
use runtime::shutdown::Shutdown;
use runtime::tls::TlsError;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use wire::Role;
use wire::common::method::STATUS;

/// NBD connections get this long to finish when the edge stops.
const STOP_PATIENCE: Duration = Duration::from_secs(4);
/// A listener that fails (too many open files) is tried again after this.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    Dir(#[from] DirLockError),
    #[error(transparent)]
    Tokens(#[from] TokensError),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Status(#[from] NetError),
    #[error("nbd: can't listen on {address}: {cause}{}", hint(.cause))]
    Nbd { address: NbdAddress, cause: io::Error },
}

fn hint(cause: &io::Error) -> &'static str {
    let hints = [
        (io::ErrorKind::AddrInUse, "; another process has it: stop that or choose another address"),
        (io::ErrorKind::PermissionDenied, "; the address needs more rights than this process has"),
        (io::ErrorKind::NotFound, "; the directory of the socket must exist"),
    ];
    hints.iter().find(|(kind, _)| *kind == cause.kind()).map_or("", |(_, hint)| hint)
}

/// Runs an edge until shutdown.
///
/// # Errors
/// When it can't start.
pub async fn run(config: Config, shutdown: Shutdown) -> Result<(), RunError> {
    Edge::start(config, shutdown).await?.run().await;
    Ok(())
}

/// An edge whose listeners stand.
pub struct Edge {
    _lock: DirLock,
    exports: Arc<Exports>,
    nbd: Vec<(NbdListener, NbdAddress)>,
    status: Listener,
    identity: Arc<Identity>,
    connections_max: usize,
    shutdown: Shutdown,
}

impl Edge {
    /// # Errors
    /// When the directory, an address or a certificate can't be used.
    pub async fn start(config: Config, shutdown: Shutdown) -> Result<Self, RunError> {
        let lock = DirLock::acquire(&config.data_dir)?;
        let tokens = Tokens::load(&config.data_dir, EdgeId(runtime::random::u128()))?;
        let tls = config.tls.as_ref();
        let identity = Identity::new(Role::Edge, &config.name, &config.cluster, tls)?;
        let status = Listener::bind(&config.listen, &identity).await?;
        let mut nbd = Vec::with_capacity(config.nbd.len());
        for address in &config.nbd {
            let bound = NbdListener::bind(address).await;
            let bound = bound.map_err(|cause| RunError::Nbd { address: address.clone(), cause })?;
            let address = bound.address(address);
            tracing::info!(%address, "serving NBD");
            nbd.push((bound, address));
        }
        let connections_max = config.connections_max;
        let exports = Exports::new(config, Arc::clone(&identity), Arc::new(tokens));
        let exports = Arc::new(exports);
        Ok(Self { _lock: lock, exports, nbd, status, identity, connections_max, shutdown })
    }

    /// Where NBD is served, with the real ports where 0 was asked for.
    #[must_use]
    pub fn nbd_addresses(&self) -> Vec<NbdAddress> {
        self.nbd.iter().map(|(_, address)| address.clone()).collect()
    }

    /// Where status is answered.
    #[must_use]
    pub fn status_endpoint(&self) -> Endpoint {
        self.status.local_endpoint()
    }

    /// Serves until shutdown; then finishes what is under way, flushes and detaches.
    pub async fn run(self) {
        let addresses = self.nbd_addresses();
        let service = Arc::new(StatusService {
            identity: Arc::clone(&self.identity),
            exports: Arc::clone(&self.exports),
            nbd: addresses,
        });
        let options = ServerOptions::allowing(&[Role::Admin]);
        let status = tokio::spawn(serve(
            self.status,
            self.identity,
            service,
            options,
            self.shutdown.clone(),
        ));
        let context = Arc::new(Context {
            exports: Arc::clone(&self.exports),
            shutdown: self.shutdown.clone(),
        });
        let room = Arc::new(Semaphore::new(self.connections_max));
        let mut listeners = JoinSet::new();
        for (listener, _) in self.nbd {
            listeners.spawn(accept(listener, Arc::clone(&context), Arc::clone(&room)));
        }
        while listeners.join_next().await.is_some() {}
        self.exports.close().await;
        // It ends by the same shutdown; a task that failed was logged by its panic.
        let _ = status.await;
        tracing::info!("stopped");
    }
}

/// Takes connections of one listener until shutdown, then waits for them.
async fn accept(listener: NbdListener, context: Arc<Context>, room: Arc<Semaphore>) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = context.shutdown.wait() => break,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Err(error) => {
                tracing::warn!(%error, "can't accept an NBD connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
            Ok((read, write)) => {
                let Ok(permit) = Arc::clone(&room).try_acquire_owned() else {
                    // NBD has no way to say it this early; the log does.
                    tracing::warn!("refused an NBD connection: `connections_max` are open");
                    continue;
                };
                let context = Arc::clone(&context);
                connections.spawn(async move {
                    let _permit = permit;
                    if let Err(error) = nbd::serve(read, write, &context).await {
                        tracing::info!(%error, "an NBD connection ended");
                    }
                });
            }
        }
    }
    drop(listener);
    let _ = tokio::time::timeout(STOP_PATIENCE, async {
        while connections.join_next().await.is_some() {}
    })
    .await;
}

type ReadHalf = Box<dyn AsyncRead + Send + Unpin>;
type WriteHalf = Box<dyn AsyncWrite + Send + Unpin>;

enum NbdListener {
    Tcp(TcpListener),
    Unix(UnixListener, PathBuf),
}

impl NbdListener {
    async fn bind(address: &NbdAddress) -> io::Result<Self> {
        match address {
            NbdAddress::Tcp(socket) => TcpListener::bind(socket).await.map(Self::Tcp),
            NbdAddress::Unix(path) => {
                // A socket file left by a killed process would block us; a live one answers.
                if UnixStream::connect(path).await.is_ok() {
                    return Err(io::ErrorKind::AddrInUse.into());
                }
                match std::fs::remove_file(path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    Ok(()) | Err(_) => {}
                }
                UnixListener::bind(path).map(|listener| Self::Unix(listener, path.clone()))
            }
        }
    }

    fn address(&self, asked: &NbdAddress) -> NbdAddress {
        match self {
            Self::Tcp(listener) => {
                listener.local_addr().map_or_else(|_| asked.clone(), NbdAddress::Tcp)
            }
            Self::Unix(..) => asked.clone(),
        }
    }

    async fn accept(&self) -> io::Result<(ReadHalf, WriteHalf)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                // Latency only; a socket that refuses works all the same.
                let _ = stream.set_nodelay(true);
                let _ = rustix::net::sockopt::set_socket_keepalive(&stream, true);
                let (read, write) = stream.into_split();
                Ok((Box::new(read), Box::new(write)))
            }
            Self::Unix(listener, _) => {
                let (stream, _) = listener.accept().await?;
                let (read, write) = runtime::net::unix::halves(stream)?;
                Ok((Box::new(read), Box::new(write)))
            }
        }
    }
}

impl Drop for NbdListener {
    fn drop(&mut self) {
        if let Self::Unix(_, path) = self {
            let _ = std::fs::remove_file(path);
        }
    }
}

struct StatusService {
    identity: Arc<Identity>,
    exports: Arc<Exports>,
    nbd: Vec<NbdAddress>,
}

impl Service for StatusService {
    fn call(&self, request: Request, responder: Responder) {
        if request.method != STATUS {
            responder.fail(request.unknown_method());
            return;
        }
        let nbd: Vec<String> = self
            .nbd
            .iter()
            .map(|address| format!("\"{}\"", address.to_string().replace(['"', '\\'], "?")))
            .collect();
        let details =
            format!("{{\"exports\":{},\"nbd\":[{}]}}", self.exports.to_json(), nbd.join(","));
        let status = runtime::status::status(&self.identity, "running", details);
        responder.reply(&status, bytes::Bytes::new());
    }
}
