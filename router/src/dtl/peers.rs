//! One connection to each router that keeps logs for this one, shared by all vDisks; and what a claimant asks of them.
//!
//! Invariant: requests begun on one connection leave in that order; read leases of many vDisks travel in one request.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use model::{Epoch, Lsn, RouterId, VdiskId};
pub use router_core::dtl::owner::Proposed;
use router_core::dtl::records::{self, Expected};
use router_core::dtl::takeover::Source;
use router_core::log::pool::Entry;
use runtime::endpoint::Endpoint;
use runtime::peer::Identity;
use runtime::rpc::{Call, CallError, Client, ClientOptions, Connection};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use wire::dtl::{
    DtlFacts, LEASE_MS, LogList, LogName, LogStatus, LogsOf, RENEW_MAX, ReadRecords, Records,
    Renew, Renewed, Seal, Sealed, Trim, method,
};
use wire::{Role, WireError};

use super::BoxFuture;

/// A seal waits for the target's last lease; what comes on top is its disk and the way.
const SEAL_PATIENCE: Duration = Duration::from_millis(LEASE_MS + 4000);
const CALL_PATIENCE: Duration = Duration::from_secs(2);
/// Candidates that are asked whether they are there.
const ASKED_MAX: usize = 6;
/// Bytes of records in one answer to a claimant.
const READ_BYTES: u32 = 1 << 20;

/// What the DTL needs of arakoon; time-outs and retries are inside.
pub trait Cluster: Send + Sync + 'static {
    /// Changes the DTL's facts of a vDisk from `from` to `to`, asserting the epoch, and asks until the outcome is known.
    fn propose(
        &self,
        log: (VdiskId, Epoch),
        from: DtlFacts,
        to: DtlFacts,
    ) -> BoxFuture<'_, Proposed>;

    /// Routers that may be targets of this vDisk.
    fn candidates(&self, vdisk: VdiskId) -> BoxFuture<'_, Candidates>;

    /// The state of a vDisk's DTL changed (L9).
    fn changed(&self, _vdisk: VdiskId, _why: &str) {}

    /// Where a router listens, tried in turn.
    fn addresses(&self, router: RouterId) -> BoxFuture<'_, Vec<Endpoint>>;
}

/// Who may be targets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Candidates {
    /// Best first.
    pub routers: Vec<RouterId>,
    /// How many of them should be.
    pub copies: usize,
}

/// Why a claimant didn't get the records it asked for.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error(transparent)]
    Call(#[from] CallError),
    #[error("router {router} should hold LSNs {from} to {through}, and what it sent isn't: {why}")]
    Records { router: RouterId, from: Lsn, through: Lsn, why: String },
}

type Renewal = (LogName, oneshot::Sender<Result<(), CallError>>);

#[derive(Default)]
struct Link {
    /// Clients of the router's addresses; the first is the one that worked last.
    clients: Vec<Client>,
    renewals: Vec<Renewal>,
    renewing: bool,
}

/// See the module's page.
pub struct Peers {
    identity: Arc<Identity>,
    pub cluster: Arc<dyn Cluster>,
    links: Mutex<BTreeMap<RouterId, Link>>,
}

impl Peers {
    #[must_use]
    pub fn new(identity: Arc<Identity>, cluster: Arc<dyn Cluster>) -> Arc<Self> {
        Arc::new(Self { identity, cluster, links: Mutex::default() })
    }

    fn links(&self) -> MutexGuard<'_, BTreeMap<RouterId, Link>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The live connection to a router, or a new one to the first of its addresses that answers.
    ///
    /// # Errors
    /// When none does.
    pub async fn connection(&self, router: RouterId) -> Result<Connection, CallError> {
        let addresses = self.cluster.addresses(router).await;
        let clients = {
            let mut links = self.links();
            let link = links.entry(router).or_default();
            link.clients.retain(|client| addresses.contains(client.endpoint()));
            for address in addresses {
                if link.clients.iter().all(|client| *client.endpoint() != address) {
                    link.clients.push(self.client(address));
                }
            }
            link.clients.clone()
        };
        let message = format!("router {router} has no address");
        let mut problem = CallError::Refused(WireError::retry(0, message));
        for client in clients {
            match client.connection().await {
                Ok(connection) => {
                    if let Some(link) = self.links().get_mut(&router) {
                        link.clients.sort_by_key(|c| c.endpoint() != connection.endpoint());
                    }
                    return Ok(connection);
                }
                Err(error) => problem = error,
            }
        }
        Err(problem)
    }

    /// Those of the first routers that can be connected to now, in the same order: one that was killed is no target, though
    /// its session isn't over yet.
    pub async fn answering(self: &Arc<Self>, routers: Vec<RouterId>) -> Vec<RouterId> {
        let mut asked = JoinSet::new();
        for (place, router) in routers.into_iter().take(ASKED_MAX).enumerate() {
            let peers = Arc::clone(self);
            asked.spawn(async move { (place, router, peers.connection(router).await.is_ok()) });
        }
        let mut answered: Vec<_> = asked.join_all().await;
        answered.retain(|(_, _, is_there)| *is_there);
        answered.sort_unstable();
        answered.into_iter().map(|(_, router, _)| router).collect()
    }

    fn client(&self, address: Endpoint) -> Client {
        let second = Duration::from_secs(1);
        let options = ClientOptions {
            connect_timeout: second,
            ping_after: second,
            silence_max: 3 * second,
            ..ClientOptions::default()
        };
        Client::new(address, Role::Router, Arc::clone(&self.identity), options)
    }

    /// A lease for one vDisk's reads, in one request with those of others that are wanted now.
    ///
    /// # Errors
    /// When the target can't be reached or refuses.
    pub async fn renew(self: &Arc<Self>, router: RouterId, log: LogName) -> Result<(), CallError> {
        let (sender, answer) = oneshot::channel();
        let begin = {
            let mut links = self.links();
            let link = links.entry(router).or_default();
            link.renewals.push((log, sender));
            !std::mem::replace(&mut link.renewing, true)
        };
        if begin {
            tokio::spawn(Arc::clone(self).renew_all(router));
        }
        let gone = WireError::retry(0, "the renewal was given up");
        answer.await.unwrap_or(Err(CallError::Refused(gone)))
    }

    async fn renew_all(self: Arc<Self>, router: RouterId) {
        loop {
            // Whoever else wants one in this turn comes along.
            tokio::task::yield_now().await;
            let batch: Vec<Renewal> = {
                let mut links = self.links();
                let Some(link) = links.get_mut(&router) else { return };
                let take = link.renewals.len().min(RENEW_MAX);
                if take == 0 {
                    link.renewing = false;
                    return;
                }
                link.renewals.drain(..take).collect()
            };
            let logs = batch.iter().map(|(log, _)| log.clone()).collect();
            let outcome: Result<Renewed, CallError> =
                self.ask(router, method::RENEW, &Renew { logs }, CALL_PATIENCE).await;
            for (log, waiting) in batch {
                let one = match &outcome {
                    Err(error) => Err(error.clone()),
                    Ok(renewed) if renewed.refused.contains(&log.vdisk) => {
                        let why = "the target refuses a read lease";
                        Err(CallError::Refused(WireError::retry(0, why)))
                    }
                    Ok(_) => Ok(()),
                };
                // The owner may have been stopped meanwhile.
                let _ = waiting.send(one);
            }
        }
    }

    async fn ask<Q: wire::Encode, A: wire::Decode>(
        &self,
        router: RouterId,
        method: u16,
        body: &Q,
        patience: Duration,
    ) -> Result<A, CallError> {
        let connection = self.connection(router).await?;
        let (answer, _) = connection.call(method, body, Call::within(patience)).await?;
        Ok(answer)
    }

    /// Ends what lower epochs may do at a target; answered when the last read lease has run out (P16).
    ///
    /// # Errors
    /// When it can't be reached or a later epoch was there.
    pub async fn seal(
        &self,
        router: RouterId,
        vdisk: VdiskId,
        epoch: Epoch,
    ) -> Result<Sealed, CallError> {
        self.ask(router, method::SEAL, &Seal { vdisk, epoch }, SEAL_PATIENCE).await
    }

    /// The logs that a router holds of a vDisk.
    ///
    /// # Errors
    /// When it can't be reached.
    pub async fn logs(
        &self,
        router: RouterId,
        vdisk: VdiskId,
    ) -> Result<Vec<LogStatus>, CallError> {
        let LogList { logs } =
            self.ask(router, method::LOGS, &LogsOf { vdisk }, CALL_PATIENCE).await?;
        Ok(logs)
    }

    /// The records that a plan names, checked.
    ///
    /// # Errors
    /// When the target can't be reached, or doesn't send what it holds.
    pub async fn read(
        &self,
        source: &Source,
        vdisk: VdiskId,
        epoch: Epoch,
    ) -> Result<Vec<Entry>, ReadError> {
        let Source { router, generation, from, through } = *source;
        let bad = |from, why: String| ReadError::Records { router, from, through, why };
        let mut entries: Vec<Entry> = Vec::new();
        let mut next = from;
        while next <= through {
            let connection = self.connection(router).await?;
            let ask = ReadRecords { vdisk, epoch, generation, from: next, bytes_max: READ_BYTES };
            let (Records { first, count }, payload): (Records, Bytes) =
                connection.call(method::READ, &ask, Call::within(CALL_PATIENCE)).await?;
            if first != next || count == 0 {
                return Err(bad(next, format!("{count} records from LSN {first} on")));
            }
            let expected = Expected { vdisk, epoch_max: epoch, first, count };
            let read = records::parse(&payload, expected);
            entries.extend(read.map_err(|error| bad(next, error.to_string()))?);
            next = Lsn(next.0 + u64::from(count));
        }
        entries.retain(|entry| entry.lsn <= through);
        Ok(entries)
    }

    /// The backend has everything through `through`, and this target isn't one any more.
    ///
    /// # Errors
    /// When it can't be reached or holds more.
    pub async fn drop_log(
        &self,
        router: RouterId,
        vdisk: VdiskId,
        epoch: Epoch,
        through: Lsn,
    ) -> Result<(), CallError> {
        self.ask(router, method::DROP, &Trim { vdisk, epoch, through }, CALL_PATIENCE).await
    }
}
