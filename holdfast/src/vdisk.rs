//! `holdfast vdisk …`: makes, shows, syncs, resizes, sets up and deletes vDisks, at whichever router owns them.
//!
//! Any router is asked first; one that isn't the owner says who is, and that one is asked next. A router that is
//! recovering is asked again until the deadline, so a command right after a restart just takes a moment longer.

mod detach;
pub(crate) mod recover;
mod set;
mod show;

use crate::client::{Admin, arakoon_failure, call};
use crate::cluster::{Cluster, Dtl};
use crate::failure::Failure;
use crate::output::{Format, print, print_json};
use crate::role::ProcessRole;
use crate::table::{Cell, Paint, Table, Tone};
use crate::up::bootstrap::vdisks;
use crate::up::facts::VPOOL;
use crate::up::plan::check_vdisk;
use model::ByteSize;
use recover::Loss;
use runtime::endpoint::Endpoint;
use runtime::rpc::{CallError, Client};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;
use tokio::time::Instant;
use wire::facts::{Record, RouterRecord, RouterState, VdiskRecord, key};
use wire::router::{
    CreateVdisk, EndAttachment, Location, ResizeVdisk, SetVdisk, SyncDone, VdiskInfo, VdiskName,
    code, method,
};
use wire::{Decode, Encode, ErrorClass};

const LIMIT: Duration = Duration::from_secs(30);
/// An edge lets go of a vDisk only some time after its last client (`detach_after`, 30 s unless configured).
const DELETE_LIMIT: Duration = Duration::from_secs(60);
/// Between rounds over the routers.
const LOOK_AGAIN: Duration = Duration::from_millis(200);
/// Redirects followed; more is two routers sending us back and forth.
const REDIRECTS_MAX: usize = 8;

#[derive(Debug, clap::Subcommand)]
pub enum VdiskCommand {
    /// Make a vDisk; it takes no space until it is written
    #[command(after_help = "Example:\n  holdfast vdisk create db --size 10GiB")]
    Create {
        name: String,
        /// Like 512MiB, 10GiB or 16TiB
        #[arg(long)]
        size: ByteSize,
        /// The router that shall own it, like router-2 [default: the one with the fewest]
        #[arg(long, value_name = "ID")]
        router: Option<String>,
        /// The second copy of its log: sync, async or none [default: as the vPool says]
        #[arg(long, value_enum, value_name = "MODE")]
        dtl: Option<Dtl>,
        #[command(flatten)]
        format: Format,
    },
    /// List all vDisks
    List {
        #[command(flatten)]
        format: Format,
    },
    /// Show one vDisk
    Show {
        name: String,
        #[command(flatten)]
        format: Format,
    },
    /// Wait until all data is in the backend and no fragment is missing
    #[command(after_help = "Example:\n  holdfast vdisk sync db --timeout 10min")]
    Sync {
        name: String,
        /// Give up after this: 90, 90s, 5min or 1h
        #[arg(long, default_value = "10min", value_parser = duration)]
        timeout: Duration,
        #[command(flatten)]
        format: Format,
    },
    /// Change the size; clients see it when they connect again
    Resize {
        name: String,
        #[arg(long)]
        size: ByteSize,
        /// Also shrink, losing what lies behind the new end
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        format: Format,
    },
    /// Change the second copy of its log while it is served
    #[command(
        after_help = "To and from `none` all that is pending goes to the backend first, and requests wait a moment; the rest is done in\nplace. If it can't be done now, the mode stays as it is, and the reason is said.\n\nExample:\n  holdfast vdisk set db --dtl sync --dtl-targets 2"
    )]
    #[command(group(clap::ArgGroup::new("what").required(true).multiple(true)))]
    Set {
        name: String,
        /// sync, async or none
        #[arg(long, value_enum, value_name = "MODE", group = "what")]
        dtl: Option<Dtl>,
        /// How many routers keep a copy: 1 or 2 [default: as many as further domains have routers]
        #[arg(long, value_name = "COUNT", group = "what", value_parser = clap::value_parser!(u8).range(1..=2))]
        dtl_targets: Option<u8>,
        #[command(flatten)]
        format: Format,
    },
    /// Say what keeps a vDisk from starting, and start it without that
    #[command(
        after_help = "Example:\n  holdfast vdisk recover db                 # changes nothing\n  holdfast vdisk recover db --accept-loss"
    )]
    Recover {
        name: String,
        /// Start from what is there. What is missing is given up, and the former owner must not run any more
        #[arg(long)]
        accept_loss: bool,
        #[command(flatten)]
        format: Format,
    },
    /// End the attachment of an edge that doesn't come back
    #[command(
        after_help = "Others that are attached wait for a writer's edge after a change of owner, however long it is away; this tells that\nit won't come. It is fenced: if it does come, its users get I/O errors, and what it hadn't flushed is given up.\n\nExample:\n  holdfast vdisk detach db --edge edge-2"
    )]
    Detach {
        name: String,
        /// Its name or id, as `holdfast vdisk show` has it
        #[arg(long)]
        edge: String,
        /// Also if the edge is connected now
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        format: Format,
    },
    /// Delete a vDisk and all its data
    Delete {
        name: String,
        #[command(flatten)]
        format: Format,
    },
}

pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` isn't a length of time: write it like 90, 90s, 5min or 1h");
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let number: u32 = number.parse().map_err(|_| wrong())?;
    let seconds = match unit.trim() {
        "" | "s" => 1,
        "min" | "m" => 60,
        "h" => 3600,
        _ => return Err(wrong()),
    };
    // Deadlines travel as 32 bits of milliseconds.
    number
        .checked_mul(seconds)
        .filter(|seconds| *seconds < u32::MAX / 1000)
        .map(|s| Duration::from_secs(s.into()))
        .ok_or_else(wrong)
}

/// # Errors
/// When the command doesn't succeed; the message names the vDisk and what to do.
pub async fn run(command: VdiskCommand, cluster: &Cluster) -> Result<(), Failure> {
    let admin = Admin::new(cluster)?;
    let routers = Routers { admin: &admin, cluster };
    match command {
        VdiskCommand::Create { name, size, router, dtl, format } => {
            check_vdisk(&name, size).map_err(Failure::Config)?;
            let start = routers.for_new_vdisk(router.as_deref()).await?;
            let (vpool, dtl) = (VPOOL.to_owned(), dtl.map(Dtl::mode));
            let create = CreateVdisk { name: name.clone(), size_bytes: size.0, vpool, dtl };
            let ask = Ask { name: &name, method: method::CREATE_VDISK, limit: LIMIT };
            let info = routers.ask_from(start, ask, &create).await?;
            show_info("created", &info, format)
        }
        VdiskCommand::List { format } => list(&routers, format).await,
        VdiskCommand::Show { name, format } => show::run(&routers, &name, format).await,
        VdiskCommand::Sync { name, timeout, format } => {
            sync(&routers, &name, timeout, format).await
        }
        VdiskCommand::Resize { name, size, force, format } => {
            check_vdisk(&name, size).map_err(Failure::Config)?;
            let resize = ResizeVdisk { name: name.clone(), size_bytes: size.0, force };
            let ask = Ask { name: &name, method: method::RESIZE_VDISK, limit: LIMIT };
            let info = routers.ask(ask, &resize).await?;
            show_info("resized", &info, format)
        }
        VdiskCommand::Set { name, dtl, dtl_targets, format } => {
            set::run(&routers, &SetVdisk { name, dtl: dtl.map(Dtl::mode), dtl_targets }, format)
                .await
        }
        VdiskCommand::Recover { name, accept_loss, format } => {
            let loss = if accept_loss { Loss::Accept } else { Loss::Show };
            recover::run(&routers, &name, loss, format).await
        }
        VdiskCommand::Detach { name, edge, force, format } => {
            detach::run(&routers, &EndAttachment { name, edge, force }, format).await
        }
        VdiskCommand::Delete { name, format } => {
            let ask = Ask { name: &name, method: method::DELETE_VDISK, limit: DELETE_LIMIT };
            let () = routers.ask(ask, &VdiskName { name: name.clone() }).await?;
            match format {
                Format { json: true } => print_json(&json!({"name": name, "deleted": true})),
                Format { json: false } => {
                    print(&format!("deleted {name}\n"));
                    Ok(())
                }
            }
        }
    }
}

/// What is asked, of whom first, and for how long.
#[derive(Clone, Copy)]
pub(crate) struct Ask<'a> {
    /// The vDisk, for messages.
    pub name: &'a str,
    pub method: u16,
    pub limit: Duration,
}

/// What arakoon knows.
pub(crate) struct Known {
    pub vdisks: Vec<VdiskRecord>,
    /// Of routers, by id.
    pub names: BTreeMap<u128, String>,
    /// Names of routers that are given nothing new.
    pub closed: BTreeSet<String>,
}

pub(crate) struct Routers<'a> {
    pub admin: &'a Admin,
    pub cluster: &'a Cluster,
}

impl Routers<'_> {
    fn endpoints(&self) -> VecDeque<Endpoint> {
        self.cluster.of_role(ProcessRole::Router).map(|member| member.endpoint.0.clone()).collect()
    }

    pub async fn ask<Q: Encode, A: Decode>(&self, ask: Ask<'_>, body: &Q) -> Result<A, Failure> {
        self.ask_from(self.endpoints(), ask, body).await
    }

    /// Tries the candidates in turn, follows redirects, and starts again until the limit while it may still succeed.
    async fn ask_from<Q: Encode, A: Decode>(
        &self,
        candidates: VecDeque<Endpoint>,
        ask: Ask<'_>,
        body: &Q,
    ) -> Result<A, Failure> {
        let deadline = Instant::now() + ask.limit;
        let mut clients: BTreeMap<Endpoint, Client> = BTreeMap::new();
        let mut turn = candidates.clone();
        let (mut redirects, mut reached) = (0, false);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Some(endpoint) = turn.pop_front() else {
                // Nobody was reached in a whole turn: the cluster is down, and waiting won't start it.
                if !reached || left.is_zero() {
                    return Err(Failure::unreachable(format!(
                        "no router answers for vDisk {}; `holdfast status` shows which processes run",
                        ask.name
                    )));
                }
                tokio::time::sleep(LOOK_AGAIN).await;
                (turn, redirects, reached) = (candidates.clone(), 0, false);
                continue;
            };
            let client = clients
                .entry(endpoint.clone())
                .or_insert_with(|| self.admin.client(&endpoint, ProcessRole::Router));
            let error = match call(client, ask.method, body, left.max(LOOK_AGAIN)).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            reached |= !matches!(error, CallError::Unreachable { .. });
            match next(&error, redirects) {
                Next::Redirect(addresses) => {
                    redirects += 1;
                    addresses.into_iter().rev().for_each(|address| turn.push_front(address));
                }
                Next::Another if !left.is_zero() => {}
                Next::Another | Next::Stop => return Err(failure(ask.name, &error)),
            }
        }
    }

    /// Candidates for a new vDisk: the one named, or all, those with the fewest vDisks first.
    async fn for_new_vdisk(&self, router: Option<&str>) -> Result<VecDeque<Endpoint>, Failure> {
        if let Some(id) = router {
            let known: Vec<&str> = self
                .cluster
                .of_role(ProcessRole::Router)
                .map(|member| member.id.as_str())
                .collect();
            let member =
                self.cluster.member(id).filter(|member| member.role == ProcessRole::Router);
            let member = member.ok_or_else(|| {
                Failure::not_found(format!(
                    "there is no router {id}; there are {}",
                    known.join(", ")
                ))
            })?;
            let closed = self.records().await?.closed;
            if closed.contains(id) {
                return Err(Failure::failed(format!(
                    "router {id} takes no vDisks: it is draining or offline; `holdfast router resume {id}` changes that"
                )));
            }
            return Ok(VecDeque::from([member.endpoint.0.clone()]));
        }
        let Known { vdisks, names, closed } = self.records().await?;
        let owned = |id: &str| {
            vdisks
                .iter()
                .filter(|vdisk| names.get(&vdisk.owner.0).is_some_and(|name| name == id))
                .count()
        };
        let open = self.cluster.of_role(ProcessRole::Router);
        let mut members: Vec<_> = open.filter(|member| !closed.contains(&member.id)).collect();
        if members.is_empty() {
            return Err(Failure::failed(
                "no router takes vDisks: all are draining or offline; see `holdfast router list`, `holdfast router resume`",
            ));
        }
        members.sort_by_key(|member| owned(&member.id));
        Ok(members.into_iter().map(|member| member.endpoint.0.clone()).collect())
    }

    async fn records(&self) -> Result<Known, Failure> {
        let arakoon = self.admin.arakoon(self.cluster, LIMIT);
        let (vdisks, routers) =
            tokio::join!(vdisks(self.admin, self.cluster), arakoon.prefix(key::ROUTERS));
        let routers = routers.map_err(arakoon_failure)?;
        let (mut names, mut closed) = (BTreeMap::new(), BTreeSet::new());
        let records = routers.into_iter().map(|(_, value)| RouterRecord::from_record(value));
        for record in records.filter_map(Result::ok) {
            // One that stopped may be back before its record says so: it is tried.
            if record.state == RouterState::Draining {
                closed.insert(record.name.clone());
            }
            names.insert(record.router.0, record.name);
        }
        Ok(Known { vdisks: vdisks?, names, closed })
    }
}

enum Next {
    Redirect(Vec<Endpoint>),
    Another,
    Stop,
}

fn next(error: &CallError, redirects: usize) -> Next {
    if let CallError::Refused(refused) = error
        && refused.code == code::NOT_OWNER
    {
        let location = wire::decode_all::<Location>(refused.detail.clone());
        let addresses: Vec<Endpoint> = location
            .map(|location| {
                location.owner.addresses.iter().filter_map(|address| address.parse().ok()).collect()
            })
            .unwrap_or_default();
        return if redirects < REDIRECTS_MAX && !addresses.is_empty() {
            Next::Redirect(addresses)
        } else {
            Next::Another
        };
    }
    match error.class() {
        ErrorClass::Retry | ErrorClass::Redirect | ErrorClass::Reconstruct => Next::Another,
        ErrorClass::Refuse | ErrorClass::Fatal => Next::Stop,
    }
}

/// In words, with the remedy that fits.
fn failure(name: &str, error: &CallError) -> Failure {
    match error.code() {
        Some(code::NO_VDISK) => Failure::not_found(format!(
            "there is no vDisk {name}; `holdfast vdisk list` shows those there are"
        )),
        Some(code::EXISTS) => Failure::failed(format!(
            "vDisk {name} exists already; `holdfast vdisk show {name}` shows it"
        )),
        Some(code::IN_USE) => Failure::failed(format!(
            "vDisk {name} is in use: {error}. Disconnect its NBD clients; the edge lets go soon after the last one"
        )),
        Some(_) => Failure::failed(format!("vDisk {name}: {error}")),
        None => Failure::unreachable(format!(
            "vDisk {name}: {error}; `holdfast status` shows which processes run"
        )),
    }
}

/// Flat, as scripts read it.
fn info_json(info: &VdiskInfo) -> Value {
    let details: Value = serde_json::from_str(&info.details_json).unwrap_or(Value::Null);
    json!({
        "name": info.name,
        "size": info.size_bytes,
        "owner": info.owner_name,
        "epoch": info.epoch.0,
        "vdisk": info.vdisk.to_string(),
        "vpool": info.vpool,
        "state": details["state"].as_str().unwrap_or("serving"),
        "details": details,
    })
}

fn show_info(done: &str, info: &VdiskInfo, format: Format) -> Result<(), Failure> {
    if format.json {
        return print_json(&info_json(info));
    }
    let VdiskInfo { name, owner_name, .. } = info;
    print(&format!("{done} {name}: {}, owned by {owner_name}\n", ByteSize(info.size_bytes)));
    Ok(())
}

async fn list(routers: &Routers<'_>, format: Format) -> Result<(), Failure> {
    let Known { vdisks, names, .. } = routers.records().await?;
    let owner = |vdisk: &VdiskRecord| {
        names.get(&vdisk.owner.0).cloned().unwrap_or_else(|| vdisk.owner.to_string())
    };
    if format.json {
        let entry = |vdisk: &VdiskRecord| {
            json!({"name": vdisk.name, "size": vdisk.size_bytes, "owner": owner(vdisk), "epoch": vdisk.epoch.0,
                   "vdisk": vdisk.vdisk.to_string(), "vpool": vdisk.vpool, "deleting": vdisk.deleting})
        };
        return print_json(&vdisks.iter().map(entry).collect::<Vec<_>>());
    }
    let mut table = Table::new(&["VDISK", "SIZE", "OWNER", "EPOCH", ""]);
    for vdisk in &vdisks {
        table.row(vec![
            Cell::plain(vdisk.name.as_str()),
            Cell::plain(ByteSize(vdisk.size_bytes).to_string()),
            Cell::plain(owner(vdisk)),
            Cell::plain(vdisk.epoch.to_string()),
            Cell::toned(if vdisk.deleting { "being deleted" } else { "" }, Tone::Warn),
        ]);
    }
    print(&table.render(Paint::on(&std::io::stdout())));
    Ok(())
}

async fn sync(
    routers: &Routers<'_>,
    name: &str,
    timeout: Duration,
    format: Format,
) -> Result<(), Failure> {
    // Shown on a terminal only.
    let waiting = indicatif::ProgressBar::new_spinner()
        .with_message(format!("{name}: waiting for the backend"));
    waiting.enable_steady_tick(LOOK_AGAIN);
    let ask = Ask { name, method: method::SYNC_VDISK, limit: timeout };
    let done: Result<SyncDone, Failure> =
        routers.ask(ask, &VdiskName { name: name.to_owned() }).await;
    waiting.finish_and_clear();
    let SyncDone { lsn, objects } = done?;
    if format.json {
        return print_json(&json!({"name": name, "lsn": lsn.0, "objects": objects}));
    }
    print(&format!(
        "{name}: everything up to LSN {lsn} is in the backend, in {objects} objects without holes\n"
    ));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{Epoch, RouterId, VdiskId};
    use wire::WireError;
    use wire::router::RouterAddress;

    fn refused(class: ErrorClass, code: u16) -> CallError {
        CallError::Refused(WireError::new(class, code, "because"))
    }

    #[test]
    fn a_redirect_is_followed_to_the_owner_but_not_for_ever() {
        let location = Location {
            vdisk: VdiskId(1),
            size_bytes: 1,
            epoch: Epoch(1),
            owner: RouterAddress {
                router: RouterId(2),
                addresses: vec!["127.0.0.1:9".into(), "?".into()],
            },
            routers: Vec::new(),
            list_version: 1,
            cluster: "c".into(),
        };
        let error = WireError::new(ErrorClass::Redirect, code::NOT_OWNER, "not mine");
        let error = CallError::Refused(error.with_detail(wire::router::encode_location(&location)));
        assert!(
            matches!(next(&error, 0), Next::Redirect(to) if to.len() == 1 && to[0].to_string() == "127.0.0.1:9")
        );
        assert!(matches!(next(&error, REDIRECTS_MAX), Next::Another));
        assert!(
            matches!(next(&refused(ErrorClass::Redirect, code::NOT_OWNER), 0), Next::Another),
            "no address inside"
        );
    }

    #[test]
    fn only_what_may_succeed_is_tried_again() {
        assert!(matches!(next(&refused(ErrorClass::Retry, code::RECOVERING), 0), Next::Another));
        assert!(matches!(next(&refused(ErrorClass::Refuse, code::NO_VDISK), 0), Next::Stop));
    }

    #[test]
    fn failures_name_the_vdisk_and_the_remedy() {
        let not_found = failure("db", &refused(ErrorClass::Refuse, code::NO_VDISK));
        assert!(
            matches!(&not_found, Failure::NotFound(text) if text.contains("db") && text.contains("vdisk list"))
        );
        let in_use = failure("db", &refused(ErrorClass::Retry, code::IN_USE)).to_string();
        assert!(in_use.contains("db") && in_use.contains("Disconnect"), "{in_use}");
    }

    #[test]
    fn times_are_read_as_people_write_them() {
        for (text, seconds) in [("90", 90), ("90s", 90), ("5min", 300), ("1h", 3600)] {
            assert_eq!(duration(text), Ok(Duration::from_secs(seconds)));
        }
        for text in ["", "soon", "5 weeks", "99999999h", "-1"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}
