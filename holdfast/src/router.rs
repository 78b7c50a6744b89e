//! `holdfast router …`: which routers there are and what they own; vDisks from one to another; a router emptied for
//! maintenance and taken back.

mod maintenance;
mod rebalance;

use crate::client::{Admin, arakoon_failure, call};
use crate::cluster::{Cluster, Member};
use crate::failure::Failure;
use crate::output::{Format, print, print_json};
use crate::role::ProcessRole;
use crate::table::{Cell, Paint, Table, Tone};
use crate::up::bootstrap::vdisks;
use crate::vdisk::recover::operator;
use crate::vdisk::{Ask, Routers, duration};
use arakoon_client::SessionInfo;
use bytes::Bytes;
use indicatif::{ProgressBar, ProgressStyle};
use model::RouterId;
use rebalance::RebalanceArgs;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use wire::facts::{Record, RouterLoad, RouterRecord, RouterState, VdiskRecord, key};
use wire::router::{SetStanding, Transfer, Transferred, method};

const LIMIT: Duration = Duration::from_secs(10);

const REBALANCE_HELP: &str = "\
vDisks go from routers that carry much to those that carry little, within a domain where that
goes, and rather not to the router that keeps the second copy of their log. Draining and offline
routers are left alone, full ones are given none. A vDisk never gets farther from an edge that is
named. Requests to a vDisk wait for a moment while it is handed over.

By writes or load a vDisk is handed over only where that makes routers clearly more alike: idle ones
stay. Load is what was asked lately, requests and bytes, as `vdisk show` has it.

Routers do this by themselves, one step at a time, if their configuration says `rebalance_every_ms`.

Examples:
  holdfast router rebalance --plan                              moves nothing
  holdfast router rebalance --by writes --max-moves 5
  holdfast router rebalance --edge edge-1=dc1/rack1/host1       vDisks go where their edge is
";

const OFFLINE_HELP: &str = "\
A router that runs must own no vDisks: drain it first. One that is gone is marked; what it owned,
other routers claim when an edge asks for it, and `holdfast vdisk recover` explains what can't be
claimed.

Example:
  holdfast router drain router-1 && holdfast router offline router-1
  # stop it, service it, start it
  holdfast router resume router-1
";

#[derive(Debug, clap::Subcommand)]
pub enum RouterCommand {
    /// Every router: state, vDisks, address
    List {
        #[command(flatten)]
        format: Format,
    },
    /// Show one router and the vDisks it owns
    Show {
        router: String,
        #[command(flatten)]
        format: Format,
    },
    /// Hand a vDisk to another router, under its clients; their requests wait for a moment
    #[command(after_help = "Example:\n  holdfast router transfer db --to router-2")]
    Transfer {
        vdisk: String,
        /// The router that shall own it
        #[arg(long, value_name = "ROUTER")]
        to: String,
        /// Give up after this: 90, 90s, 5min or 1h
        #[arg(long, default_value = "10min", value_parser = duration)]
        timeout: Duration,
        #[command(flatten)]
        format: Format,
    },
    /// Hand all vDisks of a router to others, and give it no new ones; run again to go on after an interruption
    #[command(
        after_help = "Example:\n  holdfast router drain router-1   # then stop it, service it, start it\n  holdfast router resume router-1"
    )]
    Drain {
        router: String,
        /// Only to this one [default: each to the router with the fewest]
        #[arg(long, value_name = "ROUTER")]
        to: Option<String>,
        /// Give up on a vDisk after this: 90, 90s, 5min or 1h
        #[arg(long, default_value = "10min", value_parser = duration)]
        timeout: Duration,
        #[command(flatten)]
        format: Format,
    },
    /// Take a router out of service: it is chosen for no vDisk, no second copy of a log, no page map until resumed,
    /// restarts or not
    #[command(after_help = OFFLINE_HELP)]
    Offline {
        router: String,
        #[command(flatten)]
        format: Format,
    },
    /// Hand vDisks over, one after the other, until the routers in service carry alike
    #[command(after_help = REBALANCE_HELP)]
    Rebalance(RebalanceArgs),
    /// Let a router that was drained or offline take vDisks again
    Resume {
        router: String,
        #[command(flatten)]
        format: Format,
    },
}

/// # Errors
/// When the command doesn't succeed; the message names the router or vDisk and what to do.
pub async fn run(command: RouterCommand, cluster: &Cluster) -> Result<(), Failure> {
    let admin = Admin::new(cluster)?;
    let desk = Desk { admin: &admin, cluster };
    match command {
        RouterCommand::List { format } => desk.list(format).await,
        RouterCommand::Show { router, format } => desk.show(&router, format).await,
        RouterCommand::Transfer { vdisk, to, timeout, format } => {
            let to = desk.known().await?.router(&to)?.clone();
            let done = desk.transfer(&vdisk, to.router, timeout).await?;
            if format.json {
                return print_json(&moved_json(&vdisk, &to.name, &done));
            }
            print(&format!(
                "{vdisk}: owned by {} at epoch {}; requests waited {} ms\n",
                to.name, done.epoch, done.pause_ms
            ));
            Ok(())
        }
        RouterCommand::Drain { router, to, timeout, format } => {
            desk.drain(&router, to.as_deref(), timeout, format).await
        }
        RouterCommand::Offline { router, format } => desk.offline(&router, format).await,
        RouterCommand::Rebalance(args) => desk.rebalance(args).await,
        RouterCommand::Resume { router, format } => {
            let known = desk.known().await?;
            let router = known.router(&router)?.clone();
            let runs = known.heard(router.router).is_some();
            if runs {
                desk.set_standing(&router, RouterState::Online).await?;
            } else {
                desk.mark(&router, RouterState::Online).await?;
            }
            if format.json {
                return print_json(&json!({"id": router.name, "state": "online"}));
            }
            let when = if runs { "again" } else { "once it runs" };
            print(&format!("{} takes vDisks {when}\n", router.name));
            Ok(())
        }
    }
}

fn moved_json(vdisk: &str, to: &str, done: &Transferred) -> Value {
    json!({"vdisk": vdisk, "owner": to, "epoch": done.epoch.0, "pause_ms": done.pause_ms})
}

const fn word(state: RouterState) -> &'static str {
    match state {
        RouterState::Online => "online",
        RouterState::Draining => "draining",
        RouterState::Offline => "offline",
    }
}

/// What arakoon knows about routers and who owns what.
struct Known {
    routers: Vec<RouterRecord>,
    vdisks: Vec<VdiskRecord>,
    /// Sessions that live.
    sessions: Vec<SessionInfo>,
    /// Taken out of service.
    marked: BTreeSet<RouterId>,
    /// What routers said last of what they carry.
    loads: BTreeMap<RouterId, RouterLoad>,
}

impl Known {
    fn router(&self, name: &str) -> Result<&RouterRecord, Failure> {
        self.routers.iter().find(|router| router.name == name).ok_or_else(|| {
            let names: Vec<&str> = self.routers.iter().map(|router| router.name.as_str()).collect();
            Failure::not_found(format!("there is no router {name}; there are {}", names.join(", ")))
        })
    }

    /// How long ago arakoon heard of a router; `None`: its session is over.
    fn heard(&self, router: RouterId) -> Option<Duration> {
        let id = key::router_session(router);
        self.sessions.iter().find(|session| session.id == id).map(|session| session.age)
    }

    /// In one word; taken out of service it is offline, whether it runs or not.
    fn standing(&self, router: &RouterRecord) -> &'static str {
        if self.marked.contains(&router.router) { "offline" } else { word(router.state) }
    }

    /// Whether it may be given vDisks: it runs, and no operator said otherwise.
    fn in_service(&self, router: &RouterRecord) -> bool {
        router.state == RouterState::Online
            && !self.marked.contains(&router.router)
            && self.heard(router.router).is_some()
    }

    fn owned(&self, router: RouterId) -> impl Iterator<Item = &VdiskRecord> {
        self.vdisks.iter().filter(move |vdisk| vdisk.owner == router && !vdisk.deleting)
    }

    /// How many more vDisks it could take, if it said so.
    fn room(&self, router: RouterId) -> Option<u64> {
        self.loads.get(&router).map(|load| load.room)
    }

    /// Who takes the next vDisk of `from`: of those in service that have room, the one with the fewest. One without is
    /// better than none: it may have got some since.
    fn next_home(&self, from: RouterId) -> Option<&RouterRecord> {
        let fit = |router: &&RouterRecord| router.router != from && self.in_service(router);
        let fewest = |router: &&RouterRecord| {
            let full = self.room(router.router) == Some(0);
            (full, self.owned(router.router).count())
        };
        self.routers.iter().filter(fit).min_by_key(fewest)
    }
}

struct Desk<'a> {
    admin: &'a Admin,
    cluster: &'a Cluster,
}

impl Desk<'_> {
    async fn known(&self) -> Result<Known, Failure> {
        let arakoon = self.admin.arakoon(self.cluster, LIMIT);
        let rows = arakoon.prefix(key::ROUTERS).await.map_err(arakoon_failure)?;
        let read = |(_, value)| RouterRecord::from_record(value).ok();
        let mut routers: Vec<RouterRecord> = rows.into_iter().filter_map(read).collect();
        routers.sort_by(|one, other| one.name.cmp(&other.name));
        let sessions = arakoon.sessions(key::ROUTERS).await.map_err(arakoon_failure)?;
        let marks = arakoon.prefix(key::MAINTENANCE).await.map_err(arakoon_failure)?;
        let marked = marks.iter().filter_map(|(key, _)| key::router_of_maintenance(key)).collect();
        let rows = arakoon.prefix(key::LOADS).await.map_err(arakoon_failure)?;
        let load = |(key, value): (Bytes, Bytes)| {
            Some((key::router_of_load(&key)?, RouterLoad::from_record(value).ok()?))
        };
        let loads = rows.into_iter().filter_map(load).collect();
        let vdisks = vdisks(self.admin, self.cluster).await?;
        Ok(Known { routers, vdisks, sessions, marked, loads })
    }

    async fn list(&self, format: Format) -> Result<(), Failure> {
        let known = self.known().await?;
        if format.json {
            let rows = known.routers.iter().map(|router| router_json(&known, router));
            return print_json(&rows.collect::<Vec<_>>());
        }
        let mut table =
            Table::new(&["ROUTER", "STATE", "HEARD", "VDISKS", "ROOM", "LOG", "DOMAIN", "ADDRESS"]);
        for router in &known.routers {
            let load = known.loads.get(&router.router);
            let tone = match router.state {
                _ if known.marked.contains(&router.router) => Tone::Warn,
                RouterState::Online => Tone::Good,
                RouterState::Draining => Tone::Warn,
                RouterState::Offline => Tone::Bad,
            };
            table.row(vec![
                Cell::plain(router.name.as_str()),
                Cell::toned(known.standing(router), tone),
                match known.heard(router.router) {
                    Some(age) => Cell::plain(format!("{:.1} s ago", age.as_secs_f64())),
                    None => Cell::toned("not at all", Tone::Bad),
                },
                Cell::plain(known.owned(router.router).count().to_string()),
                load_cell(load.map(|load| load.room.to_string())),
                load_cell(load.map(filled)),
                Cell::plain(router.domain.as_str()),
                Cell::plain(router.addresses.join(" ")),
            ]);
        }
        print(&table.render(Paint::on(&std::io::stdout())));
        Ok(())
    }

    async fn show(&self, name: &str, format: Format) -> Result<(), Failure> {
        let known = self.known().await?;
        let router = known.router(name)?;
        let value = router_json(&known, router);
        if format.json {
            return print_json(&value);
        }
        let mut out = String::new();
        for (key, value) in value.as_object().into_iter().flatten() {
            let shown = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            out.push_str(&format!("{key:<12}{shown}\n"));
        }
        print(&out);
        Ok(())
    }

    async fn transfer(
        &self,
        vdisk: &str,
        to: RouterId,
        limit: Duration,
    ) -> Result<Transferred, Failure> {
        let routers = Routers { admin: self.admin, cluster: self.cluster };
        let ask = Ask { name: vdisk, method: method::TRANSFER_VDISK, limit };
        routers.ask(ask, &Transfer { name: vdisk.to_owned(), to }).await
    }

    fn member(&self, name: &str) -> Result<&Member, Failure> {
        self.cluster
            .member(name)
            .filter(|member| member.role == ProcessRole::Router)
            .ok_or_else(|| Failure::not_found(format!("the cluster's file has no router {name}")))
    }

    async fn set_standing(&self, router: &RouterRecord, state: RouterState) -> Result<(), Failure> {
        let client = self.admin.member(self.member(&router.name)?);
        let standing = SetStanding { state, by: operator() };
        call::<_, ()>(&client, method::SET_STANDING, &standing, LIMIT).await.map_err(|error| {
            Failure::unreachable(format!(
                "router {}: {error}; `holdfast status` shows which processes run",
                router.name
            ))
        })
    }

    async fn drain(
        &self,
        name: &str,
        to: Option<&str>,
        limit: Duration,
        format: Format,
    ) -> Result<(), Failure> {
        let known = self.known().await?;
        let from = known.router(name)?.clone();
        let to = to.map(|to| known.router(to).cloned()).transpose()?;
        if to.as_ref().map_or(known.next_home(from.router), Some).is_none() {
            return Err(Failure::failed(format!(
                "no other router is online to take the vDisks of {name}; `holdfast router list` shows them"
            )));
        }
        self.set_standing(&from, RouterState::Draining).await?;
        let count = known.owned(from.router).count();
        // Shown on a terminal only.
        let style = ProgressStyle::with_template("{prefix} [{bar:30}] {pos}/{len} vDisks, {msg}")
            .expect("the template is a constant");
        let bar =
            ProgressBar::new(model::u64_of(count)).with_style(style).with_prefix(name.to_owned());
        let mut moved = Vec::new();
        // Looked at anew each time: others may move vDisks too.
        loop {
            let known = self.known().await?;
            let Some(vdisk) = known.owned(from.router).next() else { break };
            let next = to.as_ref().or_else(|| known.next_home(from.router));
            let next = next.ok_or_else(|| {
                Failure::failed(format!("no router is online to take {}", vdisk.name))
            })?;
            bar.set_message(format!("{} to {}", vdisk.name, next.name));
            let done = self.transfer(&vdisk.name, next.router, limit).await?;
            moved.push(moved_json(&vdisk.name, &next.name, &done));
            bar.inc(1);
        }
        bar.finish_and_clear();
        if format.json {
            return print_json(&json!({"id": name, "state": "draining", "moved": moved}));
        }
        print(&format!(
            "{name} owns no vDisk any more ({} handed over) and takes none until `holdfast router resume {name}` or its restart\n",
            moved.len()
        ));
        Ok(())
    }
}

fn load_cell(text: Option<String>) -> Cell {
    Cell::plain(text.unwrap_or_else(|| "-".to_owned()))
}

/// How much of the write log is pinned.
fn filled(load: &RouterLoad) -> String {
    let percent = u128::from(load.log_used) * 100 / u128::from(load.log_bytes.max(1));
    format!("{percent} %")
}

fn router_json(known: &Known, router: &RouterRecord) -> Value {
    let names: Vec<&str> = known.owned(router.router).map(|vdisk| vdisk.name.as_str()).collect();
    let load = known.loads.get(&router.router);
    json!({
        "id": router.name,
        "state": known.standing(router),
        "maintenance": known.marked.contains(&router.router),
        "session": if known.heard(router.router).is_some() { "alive" } else { "none" },
        "domain": router.domain,
        "addresses": router.addresses,
        "router": router.router.to_string(),
        "vdisks": names,
        "room": known.room(router.router),
        "log_bytes": load.map(|load| load.log_bytes),
        "log_used": load.map(|load| load.log_used),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{Epoch, Incarnation, VdiskId};

    fn router(id: u128, state: RouterState) -> RouterRecord {
        RouterRecord {
            router: RouterId(id),
            name: format!("router-{id}"),
            addresses: Vec::new(),
            domain: String::new(),
            state,
            incarnation: Incarnation(1),
        }
    }

    fn session(router: u128) -> SessionInfo {
        SessionInfo {
            id: key::router_session(RouterId(router)),
            incarnation: Incarnation(1),
            ttl: LIMIT,
            renewal: 1,
            opened: model::Revision(1),
            age: Duration::ZERO,
        }
    }

    fn vdisk(id: u128, owner: u128) -> VdiskRecord {
        VdiskRecord {
            vdisk: VdiskId(id),
            name: format!("vdisk-{id}"),
            size_bytes: 4096,
            vpool: "default".into(),
            owner: RouterId(owner),
            epoch: Epoch(1),
            log_id: 0,
            deleting: false,
        }
    }

    #[test]
    fn the_next_home_is_in_service_and_owns_the_fewest() {
        let mut known = Known {
            routers: vec![
                router(1, RouterState::Online),
                router(2, RouterState::Online),
                router(3, RouterState::Draining),
                router(4, RouterState::Online),
                router(5, RouterState::Online),
            ],
            vdisks: vec![vdisk(1, 1), vdisk(2, 2), vdisk(3, 2), vdisk(4, 4)],
            sessions: (1..=4).map(session).collect(),
            marked: BTreeSet::new(),
            loads: BTreeMap::new(),
        };
        let next = |known: &Known, from| known.next_home(RouterId(from)).map(|home| home.router.0);
        assert_eq!((next(&known, 1), next(&known, 4)), (Some(4), Some(1)), "5 isn't heard");
        assert!(known.router("router-9").unwrap_err().to_string().contains("router-1, router-2"));
        known.marked.insert(RouterId(4));
        assert_eq!(next(&known, 1), Some(2));
        known.marked.clear();
        let full = RouterLoad { vdisks: 1, room: 0, log_bytes: 1, log_used: 1 };
        known.loads.insert(RouterId(4), full);
        assert_eq!(next(&known, 1), Some(2), "4 has no room");
        known.loads.clear();
        known.marked.insert(RouterId(4));
        assert_eq!(known.standing(&known.routers[3]), "offline");
    }
}
