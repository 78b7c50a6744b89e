//! Where a vDisk is served and where else to go, for edges; and this router's place among the others.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use model::{Epoch, VdiskId};
use router_core::load::{Candidate, Near};
use router_core::rebalance::near_edge;
use runtime::random::jitter;
use wire::WireError;
use wire::facts::{RouterRecord, RouterState, VdiskRecord};
use wire::router::{Location, RouterAddress};

use crate::facts::FactsError;
use crate::router::Router;

/// Between two looks at the list of routers.
const ROUTERS_PERIOD: Duration = Duration::from_secs(10);

/// Another router in service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Other {
    pub router: RouterAddress,
    pub domain: String,
    /// It said that it could take no more.
    pub full: bool,
}

impl Router {
    pub(crate) async fn location(&self, record: &VdiskRecord) -> Result<Location, WireError> {
        let owner = if record.owner == self.id {
            self.me()
        } else {
            let found = self.facts.router(record.owner).await.map_err(|error| error.to_wire())?;
            let addresses = found.map(|router| router.value.addresses).unwrap_or_default();
            RouterAddress { router: record.owner, addresses }
        };
        Ok(self.location_with(record, record.epoch, owner))
    }

    fn location_with(&self, record: &VdiskRecord, epoch: Epoch, owner: RouterAddress) -> Location {
        let (list_version, mut others) =
            self.others.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let me = Other { router: self.me(), domain: self.config.domain.to_string(), full: false };
        others.push(me);
        let near = self.known_here(record.vdisk);
        others.sort_by_cached_key(|other| {
            let Other { router, domain, full } = other;
            near.rank(Candidate { router: router.router, domain, full: *full })
        });
        let routers = others.into_iter().map(|other| other.router);
        let routers = routers.filter(|other| other.router != owner.router).collect();
        Location {
            vdisk: record.vdisk,
            size_bytes: record.size_bytes,
            epoch,
            owner,
            routers,
            list_version,
            cluster: self.config.cluster.clone(),
        }
    }

    /// # Errors
    /// When there is no such vDisk, or arakoon can't say.
    pub async fn locate(&self, name: &str) -> Result<Location, WireError> {
        if let Some(vdisk) = self.served_by_name(name) {
            let record = self.state().serving(vdisk)?.record.clone();
            return Ok(self.location_with(&record, record.epoch, self.me()));
        }
        let record = self.record_by_name(name).await?.value;
        self.location(&record).await
    }

    /// Whom a vDisk's edge does best to ask, as far as its owner knows.
    fn known_here(&self, vdisk: VdiskId) -> Near {
        let mut state = self.state();
        let Ok(serving) = state.serving(vdisk) else { return Near::default() };
        let held = serving.protection.as_ref();
        Near {
            targets: held.map(|held| held.owner.facts().targets).unwrap_or_default(),
            domain: near_edge(&serving.attachments).unwrap_or_default(),
        }
    }

    /// This router's own record.
    pub fn record(&self, state: RouterState) -> RouterRecord {
        RouterRecord {
            router: self.id,
            name: self.config.name.clone(),
            addresses: self.addresses.clone(),
            domain: self.config.domain.to_string(),
            state,
            incarnation: self.identity.incarnation,
        }
    }

    /// Keeps the list of routers fresh until stopped.
    pub async fn routers_loop(self: Arc<Self>) {
        let mut told = None;
        loop {
            match self.read_others().await {
                Ok(others) => {
                    let mut list = self.others.lock().unwrap_or_else(PoisonError::into_inner);
                    if list.1 != others {
                        *list = (list.0 + 1, others);
                    }
                }
                Err(error) => tracing::debug!(%error, "can't read the list of routers"),
            }
            self.know_contests().await;
            self.tell_load(&mut told).await;
            tokio::select! {
                () = self.stop.wait() => return,
                () = tokio::time::sleep(jitter(ROUTERS_PERIOD)) => {}
            }
        }
    }

    async fn read_others(&self) -> Result<Vec<Other>, FactsError> {
        let routers = self.facts.routers().await?;
        self.ties.know(&routers);
        // Nobody's right rests on them.
        let loads = self.facts.loads().await.unwrap_or_default();
        let others = routers
            .into_iter()
            .filter(|router| router.router != self.id && router.state == RouterState::Online);
        let others = others.map(|RouterRecord { router, addresses, domain, .. }| Other {
            router: RouterAddress { router, addresses },
            domain,
            full: loads.get(&router).is_some_and(|load| load.room == 0),
        });
        Ok(others.collect())
    }
}
