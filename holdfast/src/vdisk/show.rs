//! `holdfast vdisk show`: everything about one vDisk. Its owner tells what it serves and how far it is; arakoon what
//! was decided (owner, DTL, attachments, losses); each router which page map it has.
//!
//! Invariant: what can't be asked is shown as unknown, never left out silently; with `--json` all of it is there.

use super::{Ask, Known, LIMIT, Routers, info_json};
use crate::client::arakoon_failure;
use crate::dtl;
use crate::failure::Failure;
use crate::mds;
use crate::output::{Format, print, print_json};
use crate::status::report::rfc3339;
use model::ByteSize;
use serde_json::{Value, json};
use wire::facts::{
    AttachmentMode, AttachmentsRecord, DtlRecord, Loss, LossRecord, Record, VdiskRecord, key,
};
use wire::router::{VdiskInfo, VdiskName, method};

/// # Errors
/// When there is no such vDisk, or neither its owner nor arakoon can tell.
pub async fn run(routers: &Routers<'_>, name: &str, format: Format) -> Result<(), Failure> {
    let ask = Ask { name, method: method::SHOW_VDISK, limit: LIMIT };
    let shown: Result<VdiskInfo, Failure> =
        routers.ask(ask, &VdiskName { name: name.to_owned() }).await;
    let mut value = match shown {
        Ok(info) => info_json(&info),
        // Its owner can't tell, but arakoon knows what there is to know.
        Err(Failure::Unreachable(problem)) => known(routers, name, "owner down", &problem).await?,
        // Refused: also what can't start wants to be seen.
        Err(Failure::Failed(problem)) => known(routers, name, "not served", &problem).await?,
        Err(failure @ (Failure::Config(_) | Failure::NotFound(_))) => return Err(failure),
    };
    add_facts(routers, name, &mut value).await?;
    if format.json {
        return print_json(&value);
    }
    print(&text(&value));
    Ok(())
}

async fn known(
    routers: &Routers<'_>,
    name: &str,
    state: &str,
    problem: &str,
) -> Result<Value, Failure> {
    let Known { vdisks, names, .. } = routers.records().await?;
    let vdisk = vdisks.iter().find(|vdisk| vdisk.name == name);
    let vdisk = vdisk.ok_or_else(|| Failure::not_found(format!("there is no vDisk {name}")))?;
    let owner = names.get(&vdisk.owner.0).cloned().unwrap_or_else(|| vdisk.owner.to_string());
    Ok(json!({"name": name, "size": vdisk.size_bytes, "owner": owner, "epoch": vdisk.epoch.0,
              "vdisk": vdisk.vdisk.to_string(), "vpool": vdisk.vpool, "state": state,
              "details": {"problem": problem}}))
}

/// What the owner doesn't tell.
async fn add_facts(routers: &Routers<'_>, name: &str, value: &mut Value) -> Result<(), Failure> {
    let Known { vdisks, names, .. } = routers.records().await?;
    let Some(record) = vdisks.iter().find(|vdisk| vdisk.name == name) else { return Ok(()) };
    let arakoon = routers.admin.arakoon(routers.cluster, LIMIT);
    let keys = [
        key::vdisk_dtl(record.vdisk),
        key::attachments(record.vdisk),
        key::vdisk_loss(record.vdisk),
    ];
    let mut rows = Vec::new();
    for key in &keys {
        rows.push(arakoon.get(key).await.map_err(arakoon_failure)?);
    }
    let wrong = |error| Failure::failed(format!("a record of vDisk {name} can't be read: {error}"));
    let mut rows = rows.into_iter();
    let mut next = || rows.next().flatten();
    let log = next().map(DtlRecord::from_record).transpose().map_err(wrong)?;
    let attachments = next().map(AttachmentsRecord::from_record).transpose().map_err(wrong)?;
    let losses = next().map(LossRecord::from_record).transpose().map_err(wrong)?;
    let router = |id: model::RouterId| names.get(&id.0).cloned().unwrap_or_else(|| id.to_string());
    let by_id = names.iter().map(|(id, name)| (model::RouterId(*id), name.clone())).collect();
    value["dtl"] = dtl::log_json(&by_id, record, log.as_ref());
    lag(value, |id| id.parse().map_or_else(|_| id.to_owned(), &router));
    value["attachments"] = attachments_json(attachments.as_ref(), &value["details"]["attachments"]);
    value["losses"] = losses
        .map_or_else(Vec::new, |record| record.losses)
        .iter()
        .map(|loss| loss_json(loss, router))
        .collect();
    value["page_maps"] = maps(routers, record).await?;
    Ok(())
}

/// How far each target is behind what the owner has: the owner's word.
fn lag(value: &mut Value, name_of: impl Fn(&str) -> String) {
    let last = value["details"]["last_lsn"].as_u64().unwrap_or(0);
    let told = value["details"]["dtl"]["targets"].as_array().cloned().unwrap_or_default();
    let lags = told.iter().map(|target| {
        let behind = |field: &str| target[field].as_u64().map(|lsn| last.saturating_sub(lsn));
        json!({"router": name_of(target["router"].as_str().unwrap_or_default()),
               "behind": behind("written_lsn"), "unsynced": behind("synced_lsn"),
               "problem": target["problem"]})
    });
    let lags: Vec<Value> = lags.collect();
    value["dtl"]["lag"] = lags.into();
}

fn attachments_json(record: Option<&AttachmentsRecord>, served: &Value) -> Value {
    let connected = |generation: u64| {
        let mut all = served.as_array().into_iter().flatten();
        all.find(|one| one["generation"] == generation).map(|one| one["connected"].clone())
    };
    let live = record.into_iter().flat_map(|record| &record.live).map(|live| {
        let mode = match live.mode {
            AttachmentMode::Exclusive => "exclusive",
            AttachmentMode::Shared => "shared",
            AttachmentMode::ReadOnly => "read-only",
        };
        json!({"name": live.edge_name, "edge": live.edge.to_string(), "mode": mode,
               "generation": live.generation.0, "connected": connected(live.generation.0)})
    });
    live.collect()
}

fn loss_json(loss: &Loss, name_of: impl Fn(model::RouterId) -> String) -> Value {
    json!({"at": rfc3339(loss.at_unix_ms), "by": loss.by, "router": name_of(loss.router),
           "owner": name_of(loss.owner), "epoch": loss.epoch.0, "head_lsn": loss.head.0,
           "from_lsn": loss.from.0, "through_lsn": loss.through.map(|lsn| lsn.0),
           "missing": loss.missing})
}

async fn maps(routers: &Routers<'_>, record: &VdiskRecord) -> Result<Value, Failure> {
    let rows = mds::copies_of(routers.admin, routers.cluster, std::slice::from_ref(record)).await?;
    Ok(rows.iter().map(mds::Copy::json).collect())
}

/// For people.
fn word(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "unknown".to_owned(),
        Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => value.to_string(),
    }
}

fn dtl_lines(dtl: &Value, line: &mut impl FnMut(&str, String)) {
    line(
        "dtl",
        match dtl["state"].as_str() {
            Some(state) if dtl["mode"] != "none" => format!(
                "{}, {state}, generation {}, promised at least through LSN {}",
                word(&dtl["mode"]),
                dtl["generation"],
                dtl["floor_lsn"]
            ),
            Some(_) | None => "none: what isn't in the backend lies at its owner alone".to_owned(),
        },
    );
    for target in dtl["targets"].as_array().into_iter().flatten() {
        let told = dtl["lag"].as_array().into_iter().flatten().find(|lag| lag["router"] == *target);
        let lag = told.map_or_else(
            || "progress unknown".to_owned(),
            |lag| {
                let problem = lag["problem"].as_str().filter(|text| !text.is_empty());
                let problem = problem.map_or_else(String::new, |text| format!(", {text}"));
                format!("{} behind, {} not synced{problem}", lag["behind"], lag["unsynced"])
            },
        );
        line("  target", format!("{}: {lag}", word(target)));
    }
}

fn text(value: &Value) -> String {
    let mut out = String::new();
    let mut line = |key: &str, shown: String| out.push_str(&format!("{key:<20}{shown}\n"));
    for key in ["name", "vdisk", "vpool", "size", "state", "owner", "epoch"] {
        line(key, shown(key, &value[key]));
    }
    dtl_lines(&value["dtl"], &mut line);
    for map in value["page_maps"].as_array().into_iter().flatten() {
        let behind = word(&map["behind"]);
        line(
            "page map",
            format!("{} ({}), {behind} behind", word(&map["router"]), word(&map["role"])),
        );
    }
    let checkpoint = &value["details"]["checkpoint"];
    if checkpoint.is_object() {
        let (lsn, sco, objects) = (&checkpoint["lsn"], &checkpoint["sco"], &checkpoint["objects"]);
        line("checkpoint", format!("LSN {lsn}, SCO {sco}, in {objects} objects"));
    }
    let demand = &value["details"]["demand"];
    if let Some(bytes) = demand["bytes_per_s"].as_u64() {
        let so_far = if demand["load_known"] == true { "" } else { " (opened a short time ago)" };
        let requests = demand["requests_per_s"].as_f64().unwrap_or_default();
        line("asked", format!("{requests:.1} requests, {} per second{so_far}", ByteSize(bytes)));
    }
    let attachments = value["attachments"].as_array().map_or(&[][..], Vec::as_slice);
    if attachments.is_empty() {
        line("attached", "nobody".to_owned());
    }
    for one in attachments {
        let connected = match one["connected"].as_bool() {
            Some(true) => "connected",
            Some(false) => "not connected",
            None => "connection unknown",
        };
        let (name, mode) = (word(&one["name"]), word(&one["mode"]));
        line("attached", format!("{name}, {mode}, generation {}, {connected}", one["generation"]));
    }
    for loss in value["losses"].as_array().into_iter().flatten() {
        let through = match loss["through_lsn"].as_u64() {
            Some(through) => format!("LSNs {} to {through}", loss["from_lsn"]),
            None => format!("from LSN {} on", loss["from_lsn"]),
        };
        line(
            "loss accepted",
            format!(
                "{through}, of epoch {} at {}, by {} at {}",
                loss["epoch"],
                word(&loss["owner"]),
                word(&loss["by"]),
                word(&loss["at"])
            ),
        );
    }
    let told = ["state", "attachments", "dtl", "checkpoint", "demand"];
    for (key, value) in value["details"].as_object().into_iter().flatten() {
        if !told.contains(&key.as_str()) {
            line(&key.replace('_', " "), shown(key, value));
        }
    }
    out
}

/// Sizes as people write them.
fn shown(key: &str, value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Number(number) if key == "size" || key.ends_with("_bytes") => {
            number.as_u64().map_or_else(|| number.to_string(), |bytes| ByteSize(bytes).to_string())
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
            value.to_string()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{AttachmentGeneration, EdgeId, Epoch, Lsn, RouterId};
    use wire::facts::AttachmentRecord;

    #[test]
    fn everything_about_a_vdisk_lines_up() {
        let live = AttachmentRecord {
            edge: EdgeId(5),
            edge_name: "edge-1".into(),
            generation: AttachmentGeneration(3),
            mode: AttachmentMode::Exclusive,
            domain: String::new(),
        };
        let record =
            AttachmentsRecord { last_generation: AttachmentGeneration(3), live: vec![live] };
        let loss = Loss {
            at_unix_ms: 0,
            by: "ann@host".into(),
            router: RouterId(2),
            owner: RouterId(1),
            epoch: Epoch(6),
            head: Lsn(10),
            from: Lsn(15),
            through: Some(Lsn(20)),
            log_id: 0,
            log_end: 0,
            missing: "a target".into(),
        };
        let mut value = json!({
            "name": "db", "vdisk": "7", "vpool": "default", "size": 4 << 20, "state": "serving",
            "owner": "router-2", "epoch": 7,
            "dtl": {"mode": "sync", "state": "in-sync", "generation": 4, "floor_lsn": 9, "targets": ["router-1"]},
            "details": {"state": "serving", "last_lsn": 30, "pending_bytes": 8192,
                "checkpoint": {"lsn": 20, "sco": 12, "objects": 2},
                "demand": {"requests_per_s": 12.345, "bytes_per_s": 4096, "load": 12, "load_known": true},
                "dtl": {"targets": [{"router": "1", "written_lsn": 30, "synced_lsn": 28, "problem": ""}]},
                "attachments": [{"generation": 3, "connected": true}]},
            "page_maps": [{"router": "router-1", "role": "copy", "behind": 2}],
            "losses": [loss_json(&loss, |id| format!("router-{}", id.0))],
        });
        lag(&mut value, |id| format!("router-{id}"));
        value["attachments"] = attachments_json(Some(&record), &value["details"]["attachments"]);
        let text = text(&value);
        for part in [
            "size                4 MiB",
            "dtl                 sync, in-sync, generation 4, promised at least through LSN 9",
            "  target            router-1: 0 behind, 2 not synced",
            "page map            router-1 (copy), 2 behind",
            "checkpoint          LSN 20, SCO 12, in 2 objects",
            "asked               12.3 requests, 4 KiB per second",
            "attached            edge-1, exclusive, generation 3, connected",
            "loss accepted       LSNs 15 to 20, of epoch 6 at router-1, by ann@host at 1970-01-01T00:00:00Z",
            "pending bytes       8 KiB",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn what_nobody_can_tell_is_unknown() {
        let record = AttachmentsRecord { last_generation: AttachmentGeneration(1), live: vec![] };
        assert_eq!(attachments_json(Some(&record), &Value::Null), json!([]));
        let mut value = json!({"name": "db", "dtl": {"mode": "sync", "state": "in-sync", "targets": ["router-1"]}});
        lag(&mut value, str::to_owned);
        assert!(text(&value).contains("router-1: progress unknown"));
    }
}
