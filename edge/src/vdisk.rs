//! One attached vDisk: a task that owns its session and carries out what the session decides.
//!
//! All NBD connections of the vDisk send it requests over one bounded channel; what queued while it worked is taken
//! along in one wake, and so are the answers of the router. The task lives from the first connection until the vDisk
//! was idle for a while, was fenced, or the edge stops; it then flushes and detaches.

mod task;

use crate::nbd::Finished;
use edge_core::session::{Op, Stats};
use model::{Epoch, VdiskId};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use wire::WireError;

pub use task::{Spawn, spawn};

/// Requests waiting for the task; connections wait beyond.
const QUEUE: usize = 1024;

/// Whom an answer goes to.
#[derive(Debug)]
pub enum Ticket {
    /// An NBD connection; its channel has room for every request that it may have under way.
    Nbd { to: mpsc::Sender<Finished>, request: Finished },
    /// The task itself: the last flush before detaching.
    Closing,
}

#[derive(Debug)]
pub struct Submission {
    pub op: Op,
    pub ticket: Ticket,
}

/// How far the attachment is.
#[derive(Debug, Clone)]
pub enum Phase {
    /// Looking for the owner.
    Seeking,
    Attached {
        vdisk: VdiskId,
        size: u64,
    },
    /// It can't be attached.
    Refused(WireError),
    /// It was attached and is over: fenced, deleted, or detached.
    Over(String),
}

/// What status tells.
#[derive(Debug, Clone, Default)]
pub struct Figures {
    pub stats: Stats,
    /// Where it is attached; empty while it looks for the owner.
    pub router: String,
    pub epoch: Option<Epoch>,
    /// How long the oldest request had waited when that was looked at last: once a second.
    pub waiting: Duration,
}

#[derive(Debug)]
struct Shared {
    name: String,
    connections: AtomicUsize,
    figures: Mutex<Figures>,
    trouble: Arc<Mutex<String>>,
    /// Units of bytes that its connections may have under way; its own, so that a vDisk that hangs starves no other.
    memory: Semaphore,
}

/// A handle on the task; it ends by itself, not with the handles.
#[derive(Debug, Clone)]
pub struct Vdisk {
    shared: Arc<Shared>,
    requests: mpsc::Sender<Submission>,
    phase: watch::Receiver<Phase>,
    stop: mpsc::Sender<oneshot::Sender<()>>,
}

impl Vdisk {
    pub fn figures(&self) -> Figures {
        self.shared.figures.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::Relaxed)
    }

    /// What stood in the way of attaching last.
    pub fn trouble(&self) -> String {
        self.shared.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn phase(&self) -> Phase {
        self.phase.borrow().clone()
    }

    /// Waits until it is attached, refused or over.
    pub async fn settled(&self) -> Phase {
        let mut phase = self.phase.clone();
        let settled = phase.wait_for(|phase| !matches!(phase, Phase::Seeking)).await;
        settled
            .map_or_else(|_| Phase::Over("the edge is stopping".to_owned()), |phase| phase.clone())
    }

    /// True when new requests can't be taken any more.
    pub fn is_over(&self) -> bool {
        self.requests.is_closed()
    }

    /// Counts as a connection as long as the guard lives.
    pub fn connect(&self) -> ConnectionGuard {
        self.shared.connections.fetch_add(1, Ordering::Relaxed);
        ConnectionGuard { vdisk: self.clone() }
    }

    /// Flushes, detaches and ends the task.
    pub async fn close(&self) {
        let (done, wait) = oneshot::channel();
        if self.stop.send(done).await.is_ok() {
            let _ = wait.await;
        }
    }
}

/// An NBD connection's hold on its vDisk.
#[derive(Debug)]
pub struct ConnectionGuard {
    vdisk: Vdisk,
}

impl ConnectionGuard {
    pub fn vdisk(&self) -> &Vdisk {
        &self.vdisk
    }

    pub fn memory(&self) -> &Semaphore {
        &self.vdisk.shared.memory
    }

    /// Hands a request over; waits while the vDisk has too many. Gives the ticket back when the vDisk is over.
    pub async fn submit(&self, submission: Submission) -> Result<(), Submission> {
        self.vdisk.requests.send(submission).await.map_err(|error| error.0)
    }
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        self.vdisk.shared.connections.fetch_sub(1, Ordering::Relaxed);
    }
}
