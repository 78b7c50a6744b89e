//! The DTL's ties to arakoon: an owner's proposals, a target's question whether it is named, who could be a target.
//!
//! Invariant: a proposal is answered only when its outcome is known, and the record's epoch was asserted with it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use model::{Epoch, LogId, Now, RouterId, VdiskId};
use router_core::dtl::target::Refusal;
use runtime::clock::boot_now;
use runtime::endpoint::Endpoint;
use runtime::events::Events;
use runtime::random::jitter;
use wire::common::Severity;
use wire::dtl::{DtlFacts, LogName, TARGETS_MAX};
use wire::facts::{DtlRecord, RouterRecord, RouterState, key};

use super::BoxFuture;
use super::peers::{Candidates, Cluster, Proposed};
use super::server::{Authority, confirm};
use crate::facts::Facts;

/// Between two looks at arakoon for the same thing.
const PAUSE: Duration = Duration::from_millis(300);
/// How old the list of candidates may be: many vDisks ask at once.
const FRESH: Duration = Duration::from_secs(3);

/// (router, its domain) of those that may be targets.
type Online = Vec<(RouterId, String)>;

/// See the module's page.
pub struct Ties {
    me: RouterId,
    /// Where this router itself listens now: it needs no network to reach itself, and its record may still tell of its
    /// former life.
    own: Vec<Endpoint>,
    domain: String,
    log: LogId,
    facts: Facts,
    pub events: Arc<Events>,
    /// And when that was read.
    candidates: Mutex<Option<(Now, Online)>>,
    addresses: Mutex<BTreeMap<RouterId, Vec<Endpoint>>>,
    names: Mutex<BTreeMap<RouterId, String>>,
}

impl Ties {
    #[must_use]
    pub fn new(me: RouterId, own: &[String], domain: String, log: LogId, facts: Facts) -> Self {
        let own = own.iter().filter_map(|address| address.parse().ok()).collect();
        let (candidates, addresses) = (Mutex::default(), Mutex::default());
        let events = Arc::new(Events::default());
        let names = Mutex::default();
        Self { me, own, domain, log, facts, events, candidates, addresses, names }
    }

    /// Routers and their addresses, as just read.
    pub fn know(&self, routers: &[RouterRecord]) {
        let mut known = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        for router in routers {
            known.insert(router.router, endpoints(router));
        }
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        names.extend(routers.iter().map(|router| (router.router, router.name.clone())));
    }

    /// For people: its id while nothing else is known.
    pub fn name_of(&self, router: RouterId) -> String {
        let names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        names.get(&router).cloned().unwrap_or_else(|| router.to_string())
    }

    async fn propose_until_known(
        &self,
        (vdisk, epoch): (VdiskId, Epoch),
        from: DtlFacts,
        to: DtlFacts,
    ) -> Proposed {
        loop {
            match self.facts.dtl(vdisk).await {
                Ok(Some(read)) if read.value.epoch != epoch => return Proposed::Refused,
                Ok(Some(read)) if read.value.facts == to => return Proposed::Committed,
                Ok(Some(read)) if read.value.facts != from => return Proposed::Refused,
                Ok(Some(read)) => {
                    // Recovery put all of it into the own log before anything is proposed.
                    let log_id = self.log.0;
                    let new = DtlRecord { log_id, facts: to.clone(), ..read.value.clone() };
                    match self.facts.change_dtl(vdisk, &read, &new).await {
                        Ok(()) => return Proposed::Committed,
                        Err(error) => {
                            tracing::debug!(%vdisk, %error, "a DTL change isn't known yet");
                        }
                    }
                }
                Ok(None) => return Proposed::Refused,
                Err(error) => tracing::debug!(%vdisk, %error, "a DTL change waits for arakoon"),
            }
            tokio::time::sleep(jitter(PAUSE)).await;
        }
    }

    async fn online(&self) -> Online {
        let cached = self.candidates.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((at, routers)) = cached
            && boot_now().since(at) < FRESH
        {
            return routers;
        }
        let read = async {
            // Asked together they cost arakoon one round of its majority.
            let (sessions, routers) =
                tokio::try_join!(self.facts.sessions(), self.facts.routers())?;
            self.know(&routers);
            let lives = |r: &RouterRecord| {
                let id = key::router_session(r.router);
                r.state == RouterState::Online && sessions.iter().any(|session| session.id == id)
            };
            let online = routers.into_iter().filter(|r| r.router != self.me && lives(r));
            Ok::<Online, crate::facts::FactsError>(online.map(|r| (r.router, r.domain)).collect())
        };
        // Not remembered: arakoon may answer at the next question.
        let Ok(routers) = read.await else { return Online::new() };
        let mut candidates = self.candidates.lock().unwrap_or_else(PoisonError::into_inner);
        *candidates = Some((boot_now(), routers.clone()));
        routers
    }
}

fn endpoints(router: &RouterRecord) -> Vec<Endpoint> {
    router.addresses.iter().filter_map(|address| address.parse().ok()).collect()
}

/// Those of other domains first, one of each, then the others; which of several in a domain differs from vDisk to vDisk.
/// A second target is wanted where it is in a further domain: beside the first it would fall with it.
fn rank(vdisk: VdiskId, own: &str, mut routers: Online) -> Candidates {
    routers.sort_by_key(|(id, domain)| (domain == own, id.0 ^ vdisk.0));
    let mut domains = BTreeSet::from([own.to_owned()]);
    let first_of_domain = |(_, domain): &(RouterId, String)| domains.insert(domain.clone());
    let (first, rest): (Vec<_>, Vec<_>) = routers.into_iter().partition(first_of_domain);
    let copies = first.len().clamp(1, TARGETS_MAX);
    let routers = first.into_iter().chain(rest).map(|(id, _)| id).collect();
    Candidates { routers, copies }
}

impl Cluster for Ties {
    fn propose(
        &self,
        log: (VdiskId, Epoch),
        from: DtlFacts,
        to: DtlFacts,
    ) -> BoxFuture<'_, Proposed> {
        Box::pin(self.propose_until_known(log, from, to))
    }

    fn candidates(&self, vdisk: VdiskId) -> BoxFuture<'_, Candidates> {
        Box::pin(async move { rank(vdisk, &self.domain, self.online().await) })
    }

    fn changed(&self, vdisk: VdiskId, why: &str) {
        let well = why.starts_with("InSync") || why.starts_with("CatchingUp");
        let severity = if well { Severity::Info } else { Severity::Warn };
        self.events.of(severity, "dtl", vdisk, why);
    }

    fn addresses(&self, router: RouterId) -> BoxFuture<'_, Vec<Endpoint>> {
        Box::pin(async move {
            if router == self.me {
                return self.own.clone();
            }
            let found = {
                let known = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
                known.get(&router).cloned()
            };
            match found {
                Some(found) => found,
                None => match self.facts.router(router).await {
                    Ok(Some(read)) => {
                        self.know(std::slice::from_ref(&read.value));
                        endpoints(&read.value)
                    }
                    Ok(None) | Err(_) => Vec::new(),
                },
            }
        })
    }
}

impl Authority for Ties {
    fn confirm(&self, log: LogName) -> BoxFuture<'_, Result<(), Refusal>> {
        Box::pin(async move {
            match self.facts.dtl(log.vdisk).await {
                Ok(Some(read)) => confirm((read.value.epoch, &read.value.facts), &log, self.me),
                Ok(None) => Err(Refusal::NotNamed("the vDisk has no DTL".to_owned())),
                Err(error) => Err(Refusal::UnknownRecord(error.to_string())),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranked(own: &str, online: &[(u128, &str)]) -> (Vec<u128>, usize) {
        let online = online.iter().map(|(id, domain)| (RouterId(*id), (*domain).to_owned()));
        let Candidates { routers, copies } = rank(VdiskId(0), own, online.collect());
        (routers.into_iter().map(|router| router.0).collect(), copies)
    }

    #[test]
    fn targets_lie_in_as_many_other_domains_as_there_are() {
        assert_eq!(ranked("a", &[]), (vec![], 1));
        assert_eq!(ranked("a", &[(1, "a"), (2, "a")]), (vec![1, 2], 1));
        assert_eq!(ranked("a", &[(1, "a"), (2, "b"), (3, "b")]), (vec![2, 3, 1], 1));
        let three = [(1, "a"), (2, "b"), (3, "b"), (4, "c"), (5, "d")];
        assert_eq!(ranked("a", &three), (vec![2, 4, 5, 3, 1], 2));
    }
}
