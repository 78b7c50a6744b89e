//! `holdfast mds …`: at which routers the page maps of the vDisks lie, and how far the copies are behind.

use crate::client::{Admin, arakoon_failure, call};
use crate::cluster::{Cluster, Member};
use crate::failure::Failure;
use crate::output::{Format, print, print_json};
use crate::role::ProcessRole;
use crate::table::{Cell, Paint, Table, Tone};
use crate::up::bootstrap::vdisks;
use model::VdiskId;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;
use wire::facts::{Record, RouterRecord, VdiskRecord, key};
use wire::router::{MapCopies, MapCopy, method};

const LIMIT: Duration = Duration::from_secs(5);

#[derive(Debug, clap::Subcommand)]
pub enum MdsCommand {
    /// Every page map and its copies at other routers, which make a takeover short
    #[command(
        after_help = "LAST LSN is the last write that the copy knows of in the backend; BEHIND, how many more its owner knows of. CHECKPOINT is the last write in the newest page map that lies in the backend."
    )]
    List {
        #[command(flatten)]
        format: Format,
    },
}

/// # Errors
/// When arakoon doesn't answer. A router that doesn't is shown as such.
pub async fn run(command: MdsCommand, cluster: &Cluster) -> Result<(), Failure> {
    let MdsCommand::List { format } = command;
    let admin = Admin::new(cluster)?;
    let vdisks = vdisks(&admin, cluster).await?;
    let places = places(&admin, cluster).await;
    let copies = copies(&vdisks, &routers(&admin, cluster).await?, &places);
    if format.json {
        return print_json(&copies.iter().map(Copy::json).collect::<Vec<_>>());
    }
    let mut table = Table::new(&["VDISK", "ROUTER", "ROLE", "LAST LSN", "BEHIND", "CHECKPOINT"]);
    for copy in &copies {
        table.row(copy.cells());
    }
    print(&table.render(Paint::on(&std::io::stdout())));
    for (name, _) in places.iter().filter(|(_, maps)| maps.is_none()) {
        eprintln!("{name} doesn't answer: its copies aren't shown");
    }
    Ok(())
}

type Places = Vec<(String, Option<Vec<MapCopy>>)>;

/// What each router says that it has.
async fn places(admin: &Admin, cluster: &Cluster) -> Places {
    let mut places = Vec::new();
    for member in cluster.of_role(ProcessRole::Router) {
        places.push((member.id.clone(), maps_of(admin, member).await));
    }
    places
}

async fn routers(admin: &Admin, cluster: &Cluster) -> Result<Vec<RouterRecord>, Failure> {
    let rows = admin.arakoon(cluster, LIMIT).prefix(key::ROUTERS).await.map_err(arakoon_failure)?;
    Ok(rows.into_iter().filter_map(|(_, value)| RouterRecord::from_record(value).ok()).collect())
}

/// The page maps of these vDisks, at whichever routers answer.
///
/// # Errors
/// When arakoon doesn't answer.
pub async fn copies_of(
    admin: &Admin,
    cluster: &Cluster,
    vdisks: &[VdiskRecord],
) -> Result<Vec<Copy>, Failure> {
    Ok(copies(vdisks, &routers(admin, cluster).await?, &places(admin, cluster).await))
}

async fn maps_of(admin: &Admin, member: &Member) -> Option<Vec<MapCopy>> {
    let client = admin.member(member);
    let asked = call::<_, MapCopies>(&client, method::LIST_MAPS, &(), LIMIT);
    let answer = tokio::time::timeout(LIMIT, asked).await.ok()?;
    Some(answer.ok()?.maps)
}

/// One row.
#[derive(Debug, PartialEq, Eq)]
pub struct Copy {
    vdisk: String,
    router: String,
    is_owner: bool,
    last_lsn: u64,
    /// `None`: the owner didn't say how far it is.
    behind: Option<u64>,
    /// Of the vDisk: its owner knows.
    checkpoint_lsn: Option<u64>,
}

/// By vDisk, its owner first.
fn copies(
    vdisks: &[VdiskRecord],
    routers: &[RouterRecord],
    places: &[(String, Option<Vec<MapCopy>>)],
) -> Vec<Copy> {
    let names: BTreeMap<VdiskId, &VdiskRecord> =
        vdisks.iter().map(|record| (record.vdisk, record)).collect();
    let owner_of = |record: &VdiskRecord| {
        routers.iter().find(|router| router.router == record.owner).map(|router| &router.name)
    };
    let known = places
        .iter()
        .flat_map(|(router, maps)| maps.iter().flatten().map(move |map| (router, map)));
    let owned: BTreeMap<VdiskId, u64> = known
        .clone()
        .filter(|(_, map)| map.serving)
        .map(|(_, map)| (map.vdisk, map.last_lsn.0))
        .collect();
    let mut rows: Vec<Copy> = known
        .filter_map(|(router, map)| {
            let record = names.get(&map.vdisk)?;
            let last_lsn = map.last_lsn.0;
            let newest = owned.get(&map.vdisk);
            Some(Copy {
                vdisk: record.name.clone(),
                router: router.clone(),
                is_owner: owner_of(record) == Some(router),
                last_lsn,
                behind: newest.map(|newest| newest.saturating_sub(last_lsn)),
                checkpoint_lsn: map.checkpoint.map(|lsn| lsn.0),
            })
        })
        .collect();
    rows.sort_by(|one, other| {
        (&one.vdisk, !one.is_owner, &one.router).cmp(&(
            &other.vdisk,
            !other.is_owner,
            &other.router,
        ))
    });
    rows
}

impl Copy {
    const fn role(&self) -> &'static str {
        if self.is_owner { "owner" } else { "copy" }
    }

    pub fn json(&self) -> Value {
        json!({
            "vdisk": self.vdisk,
            "router": self.router,
            "role": self.role(),
            "last_lsn": self.last_lsn,
            "behind": self.behind,
            "checkpoint_lsn": self.checkpoint_lsn,
        })
    }

    fn cells(&self) -> Vec<Cell> {
        vec![
            Cell::plain(self.vdisk.as_str()),
            Cell::plain(self.router.as_str()),
            Cell::plain(self.role()),
            Cell::plain(self.last_lsn.to_string()),
            match self.behind {
                Some(behind) => Cell::plain(behind.to_string()),
                None => Cell::toned("unknown", Tone::Warn),
            },
            Cell::plain(self.checkpoint_lsn.map_or_else(|| "-".to_owned(), |lsn| lsn.to_string())),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{Epoch, Incarnation, Lsn, RouterId};
    use wire::facts::RouterState;

    #[test]
    fn owners_come_first_and_copies_say_how_far_they_are_behind() {
        let router = |id: u128| RouterRecord {
            router: RouterId(id),
            name: format!("router-{id}"),
            addresses: Vec::new(),
            domain: String::new(),
            state: RouterState::Online,
            incarnation: Incarnation(1),
        };
        let vdisk = VdiskRecord {
            vdisk: VdiskId(7),
            name: "db".into(),
            size_bytes: 4096,
            vpool: "default".into(),
            owner: RouterId(2),
            epoch: Epoch(1),
            log_id: 0,
            deleting: false,
        };
        let map = |lsn, serving: bool| {
            let checkpoint = serving.then_some(Lsn(80));
            let (vdisk, last_lsn) = (VdiskId(7), Lsn(lsn));
            Some(vec![MapCopy { vdisk, object: None, last_lsn, serving, checkpoint }])
        };
        let places =
            [("router-1".to_owned(), map(90, false)), ("router-2".to_owned(), map(100, true))];
        let rows = copies(&[vdisk], &[router(1), router(2)], &places);
        let seen: Vec<_> =
            rows.iter().map(|row| (row.router.as_str(), row.role(), row.behind)).collect();
        assert_eq!(seen, [("router-2", "owner", Some(0)), ("router-1", "copy", Some(10))]);
        assert_eq!(rows[0].json()["checkpoint_lsn"], 80);
        assert_eq!(rows[1].json()["checkpoint_lsn"], Value::Null);
        let unasked = [places[0].clone(), ("router-2".to_owned(), None)];
        assert_eq!(copies(&[], &[], &unasked), []);
    }
}
