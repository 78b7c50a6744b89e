//! Which node to ask, what its refusal means, and when to give up.
//!
//! The last known leader is asked first. A node that names another leader is believed a few times in a row without a
//! pause; after that, and after every failure, comes the next node, with a growing jittered pause per round (L8).

use runtime::config::NodeEntry;
use runtime::peer::Identity;
use runtime::rpc::{Call, CallError, Client, ClientOptions};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::time::Instant;
use wire::arakoon::{Leader, code};
use wire::error::code as common;
use wire::{Decode, Encode, ErrorClass, Role, WireError};

/// One node may keep a call for this long; then the next is asked.
const ATTEMPT_MAX: Duration = Duration::from_millis(2500);
const PAUSE_MIN: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_millis(400);
/// Times a named leader is followed at once.
const HOPS_MAX: u32 = 3;

pub struct Cluster {
    nodes: Vec<Node>,
    leader: AtomicUsize,
}

struct Node {
    name: String,
    client: Client,
}

/// Why no node gave an answer.
#[derive(Debug)]
pub enum Failed {
    /// The deadline passed. `maybe_done`: some attempt may have taken effect.
    GaveUp { maybe_done: bool, reason: String },
    /// A node said no for good. `maybe_done`: an earlier attempt may have taken effect all the same.
    Refused { error: WireError, maybe_done: bool },
}

impl Cluster {
    pub fn new(nodes: &[NodeEntry], identity: &Arc<Identity>) -> Self {
        let options = ClientOptions {
            connect_timeout: Duration::from_secs(1),
            ping_after: Duration::from_secs(1),
            silence_max: Duration::from_secs(3),
            backoff_min: PAUSE_MIN,
            backoff_max: PAUSE_MAX,
            ..ClientOptions::default()
        };
        let node = |entry: &NodeEntry| Node {
            name: entry.name.clone(),
            client: Client::new(
                entry.address.0.clone(),
                Role::Arakoon,
                Arc::clone(identity),
                options.clone(),
            ),
        };
        Self { nodes: nodes.iter().map(node).collect(), leader: AtomicUsize::new(0) }
    }

    pub fn nodes(&self) -> impl Iterator<Item = (&str, &Client)> {
        self.nodes.iter().map(|node| (node.name.as_str(), &node.client))
    }

    /// Asks until a node answers, or says no for good, or the deadline comes.
    pub async fn ask<Q: Encode, A: Decode>(
        &self,
        method: u16,
        body: &Q,
        deadline: Instant,
    ) -> Result<A, Failed> {
        let mut at = self.leader.load(Ordering::Relaxed);
        let mut attempts = Attempts::new(self.nodes.len());
        if self.nodes.is_empty() {
            attempts.reason = "the configuration names no arakoon nodes".into();
        }
        while let Some(node) = self.nodes.get(at % self.nodes.len().max(1)) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let call = Call::within(left.min(ATTEMPT_MAX));
            let error = match node.client.call::<Q, A>(method, body, call).await {
                Ok((answer, _)) => {
                    self.leader.store(at % self.nodes.len(), Ordering::Relaxed);
                    return Ok(answer);
                }
                Err(error) => error,
            };
            attempts.note(&node.name, &error);
            let named = match error {
                CallError::Refused(refusal) if refusal.code == code::NOT_LEADER => {
                    self.named_leader(refusal)
                }
                CallError::Refused(refusal) if refusal.class != ErrorClass::Retry => {
                    return Err(Failed::Refused {
                        error: refusal,
                        maybe_done: attempts.maybe_done,
                    });
                }
                CallError::Refused(_)
                | CallError::Unreachable { .. }
                | CallError::Closed { .. }
                | CallError::Timeout { .. }
                | CallError::Protocol { .. } => None,
            };
            if let Some(leader) = named.filter(|leader| *leader != at && attempts.may_hop()) {
                at = leader;
                continue;
            }
            at = named.unwrap_or(at + 1);
            tokio::time::sleep_until(deadline.min(Instant::now() + attempts.pause())).await;
        }
        Err(Failed::GaveUp { maybe_done: attempts.maybe_done, reason: attempts.reason })
    }

    fn named_leader(&self, refusal: WireError) -> Option<usize> {
        let leader: Leader = wire::decode_all(refusal.detail).ok()?;
        let (name, _) = leader.leader?;
        self.nodes.iter().position(|node| node.name == name)
    }
}

/// What was tried so far.
struct Attempts {
    nodes: usize,
    failed: u32,
    hops: u32,
    maybe_done: bool,
    reason: String,
}

impl Attempts {
    const fn new(nodes: usize) -> Self {
        Self { nodes, failed: 0, hops: 0, maybe_done: false, reason: String::new() }
    }

    fn note(&mut self, name: &str, error: &CallError) {
        self.maybe_done |= maybe_done(error);
        self.reason = format!("{name}: {error}");
    }

    const fn may_hop(&mut self) -> bool {
        self.hops += 1;
        self.hops <= HOPS_MAX
    }

    /// Short within a round over the nodes, longer with every round.
    fn pause(&mut self) -> Duration {
        self.hops = 0;
        let round = self.failed / u32::try_from(self.nodes).unwrap_or(u32::MAX).max(1);
        self.failed += 1;
        runtime::random::jitter((PAUSE_MIN * 2u32.saturating_pow(round.min(10))).min(PAUSE_MAX))
    }
}

/// Whether the node may have done it although it didn't say so.
const fn maybe_done(error: &CallError) -> bool {
    match error {
        CallError::Unreachable { .. } => false,
        CallError::Closed { .. } | CallError::Timeout { .. } | CallError::Protocol { .. } => true,
        CallError::Refused(refusal) => match refusal.class {
            // BUSY is also what a node says that dropped a request when it died.
            ErrorClass::Retry => !matches!(refusal.code, common::STOPPING | common::TOO_LATE),
            ErrorClass::Redirect
            | ErrorClass::Reconstruct
            | ErrorClass::Refuse
            | ErrorClass::Fatal => false,
        },
    }
}
