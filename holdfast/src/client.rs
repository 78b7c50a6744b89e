//! How the command line talks to the processes of a cluster: as role `admin`, with its own certificate when the cluster
//! talks TLS.

use crate::cluster::{Cluster, Member};
use crate::failure::Failure;
use crate::role::ProcessRole;
use crate::up::files::ADMIN;
use arakoon_client::ArakoonClient;
use runtime::endpoint::Endpoint;
use runtime::peer::Identity;
use runtime::rpc::{Call, CallError, Client, ClientOptions};
use std::sync::Arc;
use std::time::Duration;
use wire::common::{Status, method};
use wire::{Decode, Encode, Role};

/// Who we are, and whom we can call.
#[derive(Clone)]
pub struct Admin {
    identity: Arc<Identity>,
}

impl Admin {
    /// # Errors
    /// When the cluster talks TLS and the operator's certificate isn't there or doesn't fit.
    pub fn new(cluster: &Cluster) -> Result<Self, Failure> {
        let tls = cluster.tls(ADMIN);
        let identity = Identity::new(Role::Admin, ADMIN, &cluster.id, tls.as_ref())
            .map_err(Failure::config)?;
        Ok(Self { identity })
    }

    #[must_use]
    pub fn client(&self, endpoint: &Endpoint, role: ProcessRole) -> Client {
        let options = ClientOptions {
            // People and start-up wait for a process that is just coming up: look again soon.
            backoff_max: Duration::from_millis(250),
            ..ClientOptions::default()
        };
        Client::new(endpoint.clone(), role.wire(), Arc::clone(&self.identity), options)
    }

    #[must_use]
    pub fn member(&self, member: &Member) -> Client {
        self.client(&member.endpoint.0, member.role)
    }

    #[must_use]
    pub fn arakoon(&self, cluster: &Cluster, deadline: Duration) -> ArakoonClient {
        ArakoonClient::new(&cluster.arakoon_nodes(), &self.identity).with_deadline(deadline)
    }
}

/// arakoon doesn't answer: says so with the remedy.
pub fn arakoon_failure(error: impl std::fmt::Display) -> Failure {
    Failure::unreachable(format!(
        "{error}; `holdfast status` shows which processes run, `holdfast up` starts them"
    ))
}

/// Why a process has no status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoStatus {
    /// Nobody listens, or not whom we look for.
    Down(String),
    /// Somebody listens and doesn't answer.
    Unresponsive,
}

/// Asks one process how it is, the time to connect included.
///
/// # Errors
/// See [`NoStatus`].
pub async fn status_of(client: &Client, limit: Duration) -> Result<Status, NoStatus> {
    match tokio::time::timeout(limit, call(client, method::STATUS, &(), limit)).await {
        Ok(Ok(status)) => Ok(status),
        Ok(Err(CallError::Timeout { .. })) | Err(_) => Err(NoStatus::Unresponsive),
        Ok(Err(error)) => Err(NoStatus::Down(error.to_string())),
    }
}

/// A call without payload.
///
/// # Errors
/// See [`CallError`].
pub async fn call<Q: Encode + ?Sized, A: Decode>(
    client: &Client,
    method: u16,
    body: &Q,
    limit: Duration,
) -> Result<A, CallError> {
    client.call(method, body, Call::within(limit)).await.map(|(answer, _payload)| answer)
}
