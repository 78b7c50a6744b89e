//! Messages to the other nodes: one task and one bounded queue per peer.
//!
//! Raft tolerates loss, so a full queue drops and nothing is sent twice. What queued while a batch was under way goes out
//! with the next one. The peer's answer brings what its Raft has to say to it, so an append or a heartbeat is one call and
//! not two.

use crate::driver::{Heard, Input, Inputs};
use crate::server::is_between;
use arakoon_core::convert::SNAPSHOT_KIND;
use runtime::rpc::{Call, Client};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::sync::mpsc;
use wire::arakoon::{RaftBatch, RaftMessage, method};

/// Messages waiting for a peer.
const QUEUE_MAX: usize = 512;
/// A batch is closed when it has this many bytes; a single message may be larger and still fits a frame with it.
const BATCH_BYTES: usize = 128 << 10;
const BATCH_TIMEOUT: Duration = Duration::from_secs(2);

/// The sending ends; owned by the driver.
pub struct Links {
    queues: BTreeMap<u64, mpsc::Sender<RaftMessage>>,
}

/// A message that couldn't be queued.
pub struct Dropped {
    pub to: u64,
    pub was_snapshot: bool,
}

impl Links {
    /// Starts a task per peer on the current runtime.
    pub fn start(
        id: u64,
        peers: &BTreeMap<u64, Client>,
        inputs: &Inputs,
        tasks: &mut tokio::task::JoinSet<()>,
    ) -> Self {
        let mut queues = BTreeMap::new();
        for (peer, client) in peers {
            let (queue, queued) = mpsc::channel(QUEUE_MAX);
            tasks.spawn(send_batches((id, *peer), client.clone(), queued, inputs.clone()));
            queues.insert(*peer, queue);
        }
        Self { queues }
    }

    pub fn send(&self, message: RaftMessage) -> Result<(), Dropped> {
        let dropped = Dropped { to: message.to, was_snapshot: message.kind == SNAPSHOT_KIND };
        let Some(queue) = self.queues.get(&message.to) else { return Err(dropped) };
        queue.try_send(message).map_err(|_| dropped)
    }
}

async fn send_batches(
    (id, peer): (u64, u64),
    client: Client,
    mut queued: mpsc::Receiver<RaftMessage>,
    inputs: Inputs,
) {
    let mut reachable = true;
    while let Some(first) = queued.recv().await {
        let mut bytes = size(&first);
        let mut messages = vec![first];
        while bytes < BATCH_BYTES
            && let Ok(next) = queued.try_recv()
        {
            bytes += size(&next);
            messages.push(next);
        }
        let snapshot = messages.iter().any(|message| message.kind == SNAPSHOT_KIND);
        let batch = RaftBatch { messages };
        let sent = client.call::<_, RaftBatch>(method::RAFT, &batch, Call::within(BATCH_TIMEOUT));
        match sent.await {
            Ok((answer, _)) => {
                if !is_between(&answer, peer, id) {
                    tracing::warn!(peer, "answers for another node; compare their configurations");
                } else if !answer.messages.is_empty() {
                    // Lost when the queue is full, as anything between nodes may be.
                    let _ =
                        inputs.push(Input::Raft(Heard { messages: answer.messages, call: None }));
                }
                if !reachable {
                    tracing::info!(peer, "reached again");
                }
                reachable = true;
            }
            Err(error) => {
                if reachable {
                    tracing::warn!(peer, %error, "can't be reached");
                }
                reachable = false;
                // Lost as well when the queue is full: raft finds out by itself, later.
                let _ = inputs.push(Input::Unreachable(peer));
                if snapshot {
                    let _ = inputs.push(Input::SnapshotFailed(peer));
                }
            }
        }
    }
}

/// Bytes of a message on the wire, about.
fn size(message: &RaftMessage) -> usize {
    let entries = message.entries.iter().map(|entry| 32 + entry.data.len() + entry.context.len());
    let snapshot = message.snapshot.as_ref().map_or(0, |snapshot| snapshot.data.len() + 128);
    160 + message.context.len() + snapshot + entries.sum::<usize>()
}
