//! Finds the owner of a vDisk and attaches there: walks the known routers, follows redirects, never gives up by itself.

use edge_core::route::Route;
use model::{AttachmentGeneration, Epoch, Now};
use runtime::clock::boot_now;
use runtime::endpoint::Endpoint;
use runtime::peer::Identity;
use runtime::rpc::{Call, CallError, ClientOptions, Connection};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use wire::router::{Attach, Attached, Contest, Detach, Location, code, method};
use wire::{ErrorClass, Role, WireError};

/// Recovering a vDisk may take its new owner a while; it answers `RECOVERING` rather than let us wait longer.
const ATTACH_PATIENCE: Duration = Duration::from_secs(15);
/// What a contest takes: the owner is given half a second, then a claim is committed.
const CONTEST_PATIENCE: Duration = Duration::from_secs(5);
/// Between two contests of one edge.
const CONTEST_PAUSE: Duration = Duration::from_secs(2);

/// Looks for the owner.
pub struct Seeker {
    pub route: Route,
    pub identity: Arc<Identity>,
    pub options: ClientOptions,
    pub request: Attach,
    /// What stood in the way last, for those who wait.
    pub trouble: Arc<Mutex<String>>,
    /// Service that is missed for this long is contested (P19).
    pub failover_after: Duration,
    /// Since when it is missed.
    pub missed_since: Now,
    /// The epoch of the owner that was lost.
    pub lost: Option<Epoch>,
    /// Not before this is it contested again.
    pub next_contest: Now,
}

pub struct Found {
    pub connection: Connection,
    pub attached: Attached,
    pub address: String,
}

enum Trouble {
    Elsewhere(Box<Location>),
    Later(String),
    /// It misses something of the vDisk, or has no room for it. With where that is, if it isn't the owner.
    Gap(String, Option<Box<Location>>),
    Refused(WireError),
}

impl Seeker {
    /// Returns attached, or with a refusal that time won't change.
    pub async fn seek(mut self, told: Option<Box<Location>>) -> (Self, Result<Found, WireError>) {
        if let Some(location) = told {
            self.route.told(&location);
        }
        loop {
            tokio::time::sleep(self.route.pause(runtime::random::u64())).await;
            let address = self.route.next_address();
            match self.attach_at(&address).await {
                Ok(found) => {
                    self.route.arrived(&address);
                    return (self, Ok(found));
                }
                Err(Trouble::Elsewhere(location)) => {
                    self.note(format!("{address} says that another router owns it"));
                    self.route.told(&location);
                }
                Err(Trouble::Later(why) | Trouble::Gap(why, _)) => {
                    tracing::debug!(vdisk = %self.request.name, %address, %why, "not attached yet");
                    self.note(format!("{address}: {why}"));
                }
                Err(Trouble::Refused(error)) => return (self, Err(error)),
            }
        }
    }

    fn note(&self, trouble: String) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
    }

    async fn attach_at(&mut self, address: &str) -> Result<Found, Trouble> {
        let endpoint: Endpoint =
            address.parse().map_err(|error| Trouble::Later(format!("{error}")))?;
        let opened = Connection::open(&endpoint, Role::Router, &self.identity, &self.options).await;
        let connection = opened.map_err(|error| {
            self.route.failed(address);
            Trouble::Later(error.to_string())
        })?;
        self.route.answered(address);
        if let Some(epoch) = self.lost.filter(|_| self.may_contest()) {
            // At once: whoever is attached to first looks for evidence that the owner is dead, which takes longer.
            self.contest(&connection, epoch).await;
        }
        let attached = match attach(&connection, &self.request).await {
            Err(Trouble::Elsewhere(location))
                if self.may_contest() && self.route.suspects(&location) =>
            {
                self.contest(&connection, location.epoch).await;
                attach(&connection, &self.request).await?
            }
            Err(Trouble::Gap(why, elsewhere)) => {
                self.route.has_gap(address, elsewhere.as_deref());
                return Err(Trouble::Gap(why, elsewhere));
            }
            attached => attached?,
        };
        Ok(Found { connection, attached, address: address.to_owned() })
    }

    /// Service has been missed for too long.
    fn may_contest(&self) -> bool {
        let now = boot_now();
        self.next_contest <= now && self.missed_since.plus(self.failover_after) <= now
    }

    /// Tells a router, which may claim the vDisk then (P19); one that is the owner takes no notice.
    async fn contest(&mut self, connection: &Connection, epoch: Epoch) {
        self.next_contest = boot_now().plus(CONTEST_PAUSE);
        let Attach { name, edge, reclaim, .. } = self.request.clone();
        tracing::warn!(vdisk = %name, %epoch, "no service from the owner: contesting it");
        let contest = Contest { name, edge, generation: reclaim, epoch };
        let call = Call::within(CONTEST_PATIENCE);
        if let Err(error) = connection.call::<_, ()>(method::CONTEST, &contest, call).await {
            tracing::info!(vdisk = %self.request.name, %error, "the contest didn't help");
        }
    }

    /// Begins anew what an earlier life of this edge held: takes the old attachment back, ends it, and takes another.
    ///
    /// The new generation has its own sequence numbers. Going on with the old ones wouldn't do: requests of the earlier
    /// life may still be on their way, and a number that they use would make a new write look like a repeated one.
    pub async fn end_former_life(
        mut self,
        former: AttachmentGeneration,
    ) -> (Self, Result<(), WireError>) {
        self.request.reclaim = Some(former);
        let (mut this, found) = self.seek(None).await;
        this.request.reclaim = None;
        let found = match found {
            Ok(found) => found,
            // It is over already: another edge took it, or an operator ended it.
            Err(error)
                if matches!(
                    error.code,
                    code::ATTACHMENT_FENCED | code::NOT_ATTACHED | code::ATTACHED_ELSEWHERE
                ) =>
            {
                return (this, Ok(()));
            }
            Err(error) => return (this, Err(error)),
        };
        let Attached { vdisk, generation, .. } = found.attached;
        let detach = Detach { vdisk, generation };
        let call = Call::within(ATTACH_PATIENCE);
        if let Err(error) = found.connection.call::<_, ()>(method::DETACH, &detach, call).await {
            // Whether it is ended shows at the next attach, which then says who holds it.
            tracing::info!(vdisk = %this.request.name, %error, "ending the former attachment failed");
        }
        (this, Ok(()))
    }
}

async fn attach(connection: &Connection, request: &Attach) -> Result<Attached, Trouble> {
    let call = Call::within(ATTACH_PATIENCE);
    match connection.call::<_, Attached>(method::ATTACH, request, call).await {
        Ok((attached, _)) => Ok(attached),
        Err(CallError::Refused(error)) if error.code == code::NOT_OWNER => {
            match wire::decode_all::<Location>(error.detail.clone()) {
                Ok(location) => Err(Trouble::Elsewhere(Box::new(location))),
                Err(_) => Err(Trouble::Later("redirects without saying where to".to_owned())),
            }
        }
        // A gap waits for an operator, or for a router that reaches more, and the edge waits with it (L7). Want of room is
        // no better: both are its owner's, and not to be waited for there.
        Err(CallError::Refused(error)) if matches!(error.code, code::GAP | code::NO_ROOM) => {
            let elsewhere = wire::decode_all::<Location>(error.detail.clone()).ok();
            Err(Trouble::Gap(error.to_string(), elsewhere.map(Box::new)))
        }
        Err(CallError::Refused(error)) if error.class == ErrorClass::Refuse => {
            Err(Trouble::Refused(error))
        }
        Err(error) => Err(Trouble::Later(error.to_string())),
    }
}
