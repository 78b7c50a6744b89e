//! Listeners and connections: plain TCP on loopback, unix sockets, TLS beyond; the same byte streams afterwards.

use crate::endpoint::Endpoint;
use crate::peer::Identity;
use crate::tls::{roles_of, server_name};
use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use wire::Role;

pub mod unix;

pub type BoxRead = Box<dyn AsyncRead + Send + Unpin>;
pub type BoxWrite = Box<dyn AsyncWrite + Send + Unpin>;

/// A TLS handshake that takes longer is given up, or a silent stranger would hold a slot for ever (L8).
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
pub enum NetError {
    #[error("can't listen on {endpoint}: {cause}{}", in_use_hint(.cause))]
    Listen { endpoint: Endpoint, cause: io::Error },
    #[error("{0} wants TLS, but this process has no [tls] section in its configuration")]
    NoTls(Endpoint),
    /// The caller names the endpoint.
    #[error("{cause}")]
    Connect { endpoint: Endpoint, cause: io::Error },
    #[error("TLS failed: {cause}")]
    Tls { endpoint: Endpoint, cause: io::Error },
}

fn in_use_hint(cause: &io::Error) -> &'static str {
    if cause.kind() == io::ErrorKind::AddrInUse {
        "; another process has it: stop that or choose another address"
    } else {
        ""
    }
}

/// A byte stream in two halves, and the roles that its certificate proved (TLS only).
pub struct Stream {
    pub read: BoxRead,
    pub write: BoxWrite,
    pub proven: Option<Vec<Role>>,
    pub remote: String,
}

enum Socket {
    Tcp(TcpListener),
    Tls(TcpListener, TlsAcceptor),
    Unix(UnixListener, std::path::PathBuf),
}

/// Accepts connections; a unix socket's file is removed on drop.
pub struct Listener {
    socket: Socket,
}

/// An accepted connection whose TLS handshake is still to be done, away from the accept loop.
pub enum Accepted {
    Ready(Stream),
    Tls(Box<TcpStream>, TlsAcceptor, SocketAddr),
}

impl Listener {
    /// # Errors
    /// When the address is taken or TLS isn't configured.
    pub async fn bind(endpoint: &Endpoint, identity: &Identity) -> Result<Self, NetError> {
        let error = |cause| NetError::Listen { endpoint: endpoint.clone(), cause };
        let socket = match endpoint {
            Endpoint::Tcp(address) => Socket::Tcp(TcpListener::bind(address).await.map_err(error)?),
            Endpoint::Tls(address) => {
                let tls = identity.tls.as_ref().ok_or_else(|| NetError::NoTls(endpoint.clone()))?;
                let acceptor = TlsAcceptor::from(std::sync::Arc::clone(&tls.server));
                Socket::Tls(TcpListener::bind(address).await.map_err(error)?, acceptor)
            }
            Endpoint::Unix(path) => {
                // A socket file left by a killed process would block us; a live one answers.
                if UnixStream::connect(path).await.is_ok() {
                    return Err(error(io::ErrorKind::AddrInUse.into()));
                }
                let _ = std::fs::remove_file(path);
                Socket::Unix(UnixListener::bind(path).map_err(error)?, path.clone())
            }
        };
        Ok(Self { socket })
    }

    /// Where it listens, with the real port when 0 was asked for.
    ///
    /// # Panics
    /// Never in practice: a bound socket has an address.
    #[must_use]
    pub fn local_endpoint(&self) -> Endpoint {
        match &self.socket {
            Socket::Tcp(listener) => {
                Endpoint::Tcp(listener.local_addr().expect("a bound socket has an address"))
            }
            Socket::Tls(listener, _) => {
                Endpoint::Tls(listener.local_addr().expect("a bound socket has an address"))
            }
            Socket::Unix(_, path) => Endpoint::Unix(path.clone()),
        }
    }

    /// # Errors
    /// When the system refuses; the caller waits a little and goes on (too many open files pass).
    pub async fn accept(&self) -> io::Result<Accepted> {
        match &self.socket {
            Socket::Tcp(listener) => {
                let (stream, remote) = listener.accept().await?;
                Ok(Accepted::Ready(tcp_stream(stream, remote.to_string())))
            }
            Socket::Tls(listener, acceptor) => {
                let (stream, remote) = listener.accept().await?;
                Ok(Accepted::Tls(Box::new(stream), acceptor.clone(), remote))
            }
            Socket::Unix(listener, path) => {
                let (stream, _) = listener.accept().await?;
                Ok(Accepted::Ready(unix_stream(stream, path.display().to_string())?))
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Socket::Unix(_, path) = &self.socket {
            let _ = std::fs::remove_file(path);
        }
    }
}

impl Accepted {
    /// Does the handshake, if there is one.
    ///
    /// # Errors
    /// When the peer has no certificate of our authority or is too slow.
    pub async fn establish(self) -> io::Result<Stream> {
        match self {
            Self::Ready(stream) => Ok(stream),
            Self::Tls(stream, acceptor, remote) => {
                nodelay(&stream);
                let tls = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(*stream))
                    .await
                    .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
                let proven = tls
                    .get_ref()
                    .1
                    .peer_certificates()
                    .and_then(|chain| chain.first())
                    .map(|c| roles_of(c));
                let (read, write) = tokio::io::split(tls);
                Ok(Stream {
                    read: Box::new(read),
                    write: Box::new(write),
                    proven: Some(proven.unwrap_or_default()),
                    remote: remote.to_string(),
                })
            }
        }
    }
}

/// Connects to a peer that must prove `expected` where TLS is spoken.
///
/// # Errors
/// When it can't be reached or isn't who it should be.
pub async fn connect(
    endpoint: &Endpoint,
    expected: Role,
    identity: &Identity,
) -> Result<Stream, NetError> {
    let error = |cause| NetError::Connect { endpoint: endpoint.clone(), cause };
    match endpoint {
        Endpoint::Tcp(address) => {
            let stream = TcpStream::connect(address).await.map_err(error)?;
            Ok(tcp_stream(stream, endpoint.to_string()))
        }
        Endpoint::Unix(path) => {
            let stream = UnixStream::connect(path).await.map_err(error)?;
            unix_stream(stream, endpoint.to_string()).map_err(error)
        }
        Endpoint::Tls(address) => {
            let tls = identity.tls.as_ref().ok_or_else(|| NetError::NoTls(endpoint.clone()))?;
            let stream = TcpStream::connect(address).await.map_err(error)?;
            nodelay(&stream);
            let connector = TlsConnector::from(std::sync::Arc::clone(&tls.client));
            let tls = connector
                .connect(server_name(expected), stream)
                .await
                .map_err(|cause| NetError::Tls { endpoint: endpoint.clone(), cause })?;
            let proven = tls
                .get_ref()
                .1
                .peer_certificates()
                .and_then(|chain| chain.first())
                .map(|c| roles_of(c));
            let (read, write) = tokio::io::split(tls);
            Ok(Stream {
                read: Box::new(read),
                write: Box::new(write),
                proven: Some(proven.unwrap_or_default()),
                remote: endpoint.to_string(),
            })
        }
    }
}

fn nodelay(stream: &TcpStream) {
    // Latency only; a socket that refuses works all the same.
    let _ = stream.set_nodelay(true);
    let _ = rustix::net::sockopt::set_socket_keepalive(stream, true);
}

fn tcp_stream(stream: TcpStream, remote: String) -> Stream {
    nodelay(&stream);
    let (read, write) = stream.into_split();
    Stream { read: Box::new(read), write: Box::new(write), proven: None, remote }
}

fn unix_stream(stream: UnixStream, remote: String) -> io::Result<Stream> {
    let (read, write) = unix::halves(stream)?;
    Ok(Stream { read: Box::new(read), write: Box::new(write), proven: None, remote })
}
