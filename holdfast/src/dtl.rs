//! `holdfast dtl …`: where the second copies of the write logs are, as arakoon has it.
//!
//! Nothing is asked of routers, so it also answers when owners and targets are gone: that is when one wants to know.

use crate::client::{Admin, arakoon_failure};
use crate::cluster::Cluster;
use crate::failure::Failure;
use crate::output::{Format, print, print_json};
use crate::table::{Cell, Paint, Table, Tone};
use crate::up::bootstrap::vdisks;
use model::RouterId;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;
use wire::dtl::{DtlMode, DtlState};
use wire::facts::{DtlRecord, Record, RouterRecord, VdiskRecord, key};

const LIMIT: Duration = Duration::from_secs(10);

#[derive(Debug, clap::Subcommand)]
pub enum DtlCommand {
    /// Every vDisk: mode, state and targets of the second copy of its log
    #[command(after_help = "Example:\n  holdfast dtl list --json")]
    List {
        #[command(flatten)]
        format: Format,
    },
}

/// # Errors
/// When arakoon can't be reached or holds something that can't be read.
pub async fn run(command: DtlCommand, cluster: &Cluster) -> Result<(), Failure> {
    let DtlCommand::List { format } = command;
    let admin = Admin::new(cluster)?;
    let arakoon = admin.arakoon(cluster, LIMIT);
    let rows = arakoon.prefix(key::ROUTERS).await.map_err(arakoon_failure)?;
    let routers = rows.into_iter().filter_map(|(_, row)| RouterRecord::from_record(row).ok());
    let names: Names = routers.map(|router| (router.router, router.name)).collect();
    let mut logs = Vec::new();
    for vdisk in vdisks(&admin, cluster).await? {
        let key = key::vdisk_dtl(vdisk.vdisk);
        let dtl = match arakoon.get(&key).await.map_err(arakoon_failure)? {
            Some(bytes) => Some(DtlRecord::from_record(bytes).map_err(|error| {
                Failure::failed(format!("the record {}: {error}", key.escape_ascii()))
            })?),
            None => None,
        };
        logs.push((vdisk, dtl));
    }
    if format.json {
        let rows = logs.iter().map(|(vdisk, dtl)| log_json(&names, vdisk, dtl.as_ref()));
        return print_json(&rows.collect::<Vec<_>>());
    }
    print(&table(&names, &logs).render(Paint::on(&std::io::stdout())));
    Ok(())
}

pub type Names = BTreeMap<RouterId, String>;

fn name_of(names: &Names, router: RouterId) -> String {
    names.get(&router).cloned().unwrap_or_else(|| router.to_string())
}

const fn mode(dtl: &DtlRecord) -> &'static str {
    match dtl.mode {
        DtlMode::Sync => "sync",
        DtlMode::Async => "async",
        DtlMode::NoTarget => "none",
    }
}

const fn state(dtl: &DtlRecord) -> (&'static str, Tone) {
    match dtl.facts.state {
        DtlState::InSync => ("in-sync", Tone::Good),
        DtlState::CatchingUp => ("catching-up", Tone::Warn),
        DtlState::Degraded => ("degraded", Tone::Bad),
        DtlState::Standalone => ("standalone", Tone::Warn),
    }
}

fn table(names: &Names, logs: &[(VdiskRecord, Option<DtlRecord>)]) -> Table {
    let header = ["VDISK", "OWNER", "EPOCH", "MODE", "STATE", "GENERATION", "FLOOR", "TARGETS"];
    let mut table = Table::new(&header);
    for (vdisk, dtl) in logs {
        let mut row = vec![
            Cell::plain(vdisk.name.as_str()),
            Cell::plain(name_of(names, vdisk.owner)),
            Cell::plain(vdisk.epoch.to_string()),
        ];
        match dtl.as_ref().filter(|dtl| dtl.mode != DtlMode::NoTarget) {
            None => row.extend(["none", "", "", "", ""].map(Cell::plain)),
            Some(dtl) => {
                let (word, tone) = state(dtl);
                let targets = dtl.facts.targets.iter().map(|target| name_of(names, *target));
                row.extend([
                    Cell::plain(mode(dtl)),
                    Cell::toned(word, tone),
                    Cell::plain(dtl.facts.generation.to_string()),
                    Cell::plain(dtl.facts.floor.to_string()),
                    Cell::plain(targets.collect::<Vec<_>>().join(" ")),
                ]);
            }
        }
        table.row(row);
    }
    table
}

/// `None`: the vDisk has no DTL and never had one.
pub fn log_json(names: &Names, vdisk: &VdiskRecord, dtl: Option<&DtlRecord>) -> Value {
    let (name, owner) = (&vdisk.name, name_of(names, vdisk.owner));
    let Some(dtl) = dtl.filter(|dtl| dtl.mode != DtlMode::NoTarget) else {
        return json!({"name": name, "owner": owner, "epoch": vdisk.epoch.0, "mode": "none"});
    };
    let named = |routers: &[RouterId]| -> Vec<String> {
        routers.iter().map(|router| name_of(names, *router)).collect()
    };
    let previous = dtl.facts.previous.as_ref().map(
        |promise| json!({"generation": promise.generation.0, "targets": named(&promise.targets)}),
    );
    json!({
        "name": name,
        "owner": owner,
        "epoch": vdisk.epoch.0,
        "mode": mode(dtl),
        "state": state(dtl).0,
        "generation": dtl.facts.generation.0,
        "floor_lsn": dtl.facts.floor.0,
        "targets": named(&dtl.facts.targets),
        "previous": previous,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{Epoch, VdiskId};

    #[test]
    fn a_row_names_the_targets_and_what_they_are_worth() {
        let vdisk = VdiskRecord {
            vdisk: VdiskId(1),
            name: "db".into(),
            size_bytes: 4096,
            vpool: "default".into(),
            owner: RouterId(1),
            epoch: Epoch(3),
            log_id: 0,
            deleting: false,
        };
        let names =
            Names::from([(RouterId(1), "router-1".into()), (RouterId(2), "router-2".into())]);
        let mut dtl = DtlRecord::new(DtlMode::Sync);
        dtl.facts.state = DtlState::InSync;
        dtl.facts.targets = vec![RouterId(2)];
        let shown = log_json(&names, &vdisk, Some(&dtl));
        assert_eq!(
            (&shown["state"], &shown["targets"][0]),
            (&json!("in-sync"), &json!("router-2"))
        );
        assert_eq!(log_json(&names, &vdisk, None)["mode"], json!("none"));
        let logs = [(vdisk.clone(), Some(dtl)), (vdisk, None)];
        let text = table(&names, &logs).render(Paint::Plain);
        assert!(text.contains("in-sync") && text.contains("router-2"), "{text}");
    }
}
