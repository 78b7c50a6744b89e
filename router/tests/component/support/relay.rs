//! A cable between two of the world: what one says reaches the other late, or never.
//!
//! Each direction can be held by itself; held bytes arrive once it is let go, in order, as on a network that lost and
//! repeated them. Connections stay: neither end is told anything.
//!
//! Invariant: bytes are forwarded unchanged and in order, or not at all.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use runtime::endpoint::Endpoint;
use runtime::shutdown::Shutdown;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::runtime;

/// What of a cable is held.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Held {
    /// From whoever connects to whoever listens.
    pub requests: bool,
    pub answers: bool,
}

/// Bytes of answers that still arrive; then it breaks, for all connections and for good.
#[derive(Clone)]
struct Breaks {
    left: Arc<AtomicUsize>,
    broken: watch::Sender<bool>,
}

/// See the module's page. It ends when dropped.
pub struct Relay {
    pub endpoint: Endpoint,
    to: Arc<Mutex<Option<Endpoint>>>,
    held: watch::Sender<Held>,
    breaks: Breaks,
    shutdown: Shutdown,
    thread: Option<JoinHandle<()>>,
}

impl Relay {
    /// Listens; [`Relay::lead_to`] says where to.
    pub fn start() -> Self {
        let (sender, receiver) = sync_channel(1);
        let to: Arc<Mutex<Option<Endpoint>>> = Arc::default();
        let (held, watched) = watch::channel(Held::default());
        let (shutdown, leads) = (Shutdown::new(), Arc::clone(&to));
        let left = Arc::new(AtomicUsize::new(usize::MAX));
        let breaks = Breaks { left, broken: watch::Sender::new(false) };
        let given = breaks.clone();
        let stop = shutdown.clone();
        let thread = std::thread::spawn(move || {
            runtime().block_on(async {
                let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                sender.send(listener.local_addr().unwrap()).unwrap();
                loop {
                    tokio::select! {
                        accepted = listener.accept() => {
                            let to = leads.lock().unwrap().clone();
                            let (near, _) = accepted.unwrap();
                            if let Some(to) = to {
                                tokio::spawn(forward(near, to, watched.clone(), given.clone()));
                            }
                        }
                        () = stop.wait() => return,
                    }
                }
            });
        });
        let endpoint = receiver.recv().unwrap().to_string().parse().unwrap();
        Self { endpoint, to, held, breaks, shutdown, thread: Some(thread) }
    }

    pub fn lead_to(&self, endpoint: &Endpoint) {
        *self.to.lock().unwrap() = Some(endpoint.clone());
    }

    /// Whoever listens dies, as it seems, after so many more bytes of answers.
    pub fn break_after(&self, bytes: usize) {
        self.breaks.left.store(bytes, Ordering::SeqCst);
    }

    pub fn is_broken(&self) -> bool {
        *self.breaks.broken.borrow()
    }

    /// For whoever cuts it from elsewhere.
    pub fn switch(&self) -> watch::Sender<Held> {
        self.held.clone()
    }

    pub fn hold(&self, held: Held) {
        self.held.send_replace(held);
    }

    /// Both directions.
    pub fn cut(&self) {
        self.hold(Held { requests: true, answers: true });
    }

    pub fn mend(&self) {
        self.hold(Held::default());
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shutdown.trigger();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn forward(near: TcpStream, to: Endpoint, held: watch::Receiver<Held>, breaks: Breaks) {
    let Ok(far) = TcpStream::connect(to.to_string()).await else { return };
    let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
    let mut broken = breaks.broken.subscribe();
    let both = async {
        tokio::join!(
            pump(near_in, far_out, (held.clone(), |held| held.requests), None),
            pump(far_in, near_out, (held, |held| held.answers), Some(&breaks)),
        )
    };
    tokio::select! {
        _ = both => {}
        _ = broken.wait_for(|broken| *broken) => {}
    }
}

async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    (mut held, holds): (watch::Receiver<Held>, fn(&Held) -> bool),
    breaks: Option<&Breaks>,
) {
    let mut bytes = vec![0; 64 << 10];
    loop {
        let count = from.read(&mut bytes).await.unwrap_or(0);
        if held.wait_for(|held| !holds(held)).await.is_err() {
            return;
        }
        if let Some(Breaks { left, broken }) = breaks {
            let may = left.load(Ordering::SeqCst);
            if may < count {
                broken.send_replace(true);
                return;
            }
            if may != usize::MAX {
                left.store(may - count, Ordering::SeqCst);
            }
        }
        if count == 0 || to.write_all(&bytes[..count]).await.is_err() {
            return;
        }
    }
}
