//! Questions that any router answers: which vDisks there are, where one is. Addresses are tried in turn.

use runtime::endpoint::Endpoint;
use runtime::peer::Identity;
use runtime::rpc::{Call, CallError, Client, ClientOptions};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use wire::router::{Locate, Location, VdiskNames, code, method};
use wire::{ErrorClass, Role, WireError};

/// How long one router may think.
const PATIENCE: Duration = Duration::from_secs(3);
/// Routers remembered.
const CLIENTS_MAX: usize = 64;

/// Why there is no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum DirectoryError {
    #[error("{0}")]
    Refused(WireError),
    #[error("no router answers: {0}")]
    Unreachable(String),
}

pub struct Directory {
    identity: Arc<Identity>,
    seeds: Vec<Endpoint>,
    clients: Mutex<BTreeMap<Endpoint, Client>>,
    /// The one that answered last is asked first.
    favourite: Mutex<Option<Endpoint>>,
}

impl Directory {
    pub fn new(identity: Arc<Identity>, seeds: Vec<Endpoint>) -> Self {
        Self { identity, seeds, clients: Mutex::default(), favourite: Mutex::default() }
    }

    pub async fn list(&self) -> Result<VdiskNames, DirectoryError> {
        self.ask(method::LIST, &()).await
    }

    pub async fn locate(&self, name: &str) -> Result<Location, DirectoryError> {
        let location: Location =
            self.ask(method::LOCATE, &Locate { name: name.to_owned() }).await?;
        self.learn(&location);
        Ok(location)
    }

    /// Remembers further routers, so that the cluster is found when those of the configuration are gone.
    fn learn(&self, location: &Location) {
        let routers = std::iter::once(&location.owner).chain(&location.routers);
        for endpoint in routers.flat_map(|r| &r.addresses).filter_map(|text| text.parse().ok()) {
            let _ = self.client(&endpoint);
        }
    }

    fn client(&self, endpoint: &Endpoint) -> Option<Client> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = clients.get(endpoint) {
            return Some(client.clone());
        }
        if clients.len() >= CLIENTS_MAX {
            return None;
        }
        let identity = Arc::clone(&self.identity);
        let client =
            Client::new(endpoint.clone(), Role::Router, identity, ClientOptions::default());
        clients.insert(endpoint.clone(), client.clone());
        Some(client)
    }

    fn candidates(&self) -> Vec<Endpoint> {
        let favourite = self.favourite.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let known: Vec<Endpoint> = {
            let clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
            clients.keys().cloned().collect()
        };
        let mut list: Vec<Endpoint> = Vec::new();
        for endpoint in favourite.into_iter().chain(self.seeds.iter().cloned()).chain(known) {
            if !list.contains(&endpoint) {
                list.push(endpoint);
            }
        }
        list
    }

    async fn ask<Q: wire::Encode, A: wire::Decode>(
        &self,
        method: u16,
        question: &Q,
    ) -> Result<A, DirectoryError> {
        let mut trouble = String::from("none is known");
        for endpoint in self.candidates() {
            let Some(client) = self.client(&endpoint) else { continue };
            match client.call::<Q, A>(method, question, Call::within(PATIENCE)).await {
                Ok((answer, _)) => {
                    let mut favourite =
                        self.favourite.lock().unwrap_or_else(PoisonError::into_inner);
                    *favourite = Some(endpoint);
                    return Ok(answer);
                }
                Err(CallError::Refused(error))
                    if error.class == ErrorClass::Refuse && error.code >= code::NOT_OWNER =>
                {
                    return Err(DirectoryError::Refused(error));
                }
                Err(error) => trouble = error.to_string(),
            }
        }
        Err(DirectoryError::Unreachable(trouble))
    }
}
