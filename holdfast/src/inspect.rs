//! Looking, without touching: `status`, `backend show`, `asd list`, `kv`.

use crate::client::{Admin, arakoon_failure, call};
use crate::cluster::Cluster;
use crate::failure::Failure;
use crate::output::{Format, print, print_json};
use crate::role::ProcessRole;
use crate::status::report::Health;
use crate::status::{Gatherer, show};
use crate::table::{Cell, Paint, Table, Tone};
use model::ByteSize;
use serde_json::{Value, json};
use std::process::ExitCode;
use std::time::Duration;
use wire::asd;

const LIMIT: Duration = Duration::from_secs(2);
const ARAKOON_LIMIT: Duration = Duration::from_secs(10);

/// `--check` of `status`.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct Check {
    /// Exit with 5 when anything is degraded or down, with 6 when the backend is unavailable
    #[arg(long)]
    pub check: bool,
}

/// # Errors
/// When the operator's own certificate is wrong; a cluster that is down is an answer, not an error.
pub async fn status(cluster: &Cluster, format: Format, check: Check) -> Result<ExitCode, Failure> {
    let report = Gatherer::new(cluster, &Admin::new(cluster)?).gather().await;
    if format.json {
        print_json(&report)?;
    } else {
        let heading = format!("cluster {} in {}\n\n", report.cluster, cluster.dir.display());
        print(&(heading + &show::report(&report, Paint::on(&std::io::stdout()))));
    }
    let all_up = report.processes.iter().all(crate::status::report::ProcessReport::answers);
    Ok(match (check, report.backend.health) {
        (Check { check: false }, _) => ExitCode::SUCCESS,
        (_, Health::Unavailable) => ExitCode::from(6),
        (_, Health::Healthy) if all_up => ExitCode::SUCCESS,
        (_, Health::Healthy | Health::Degraded) => ExitCode::from(5),
    })
}

/// # Errors
/// When the operator's own certificate is wrong.
pub async fn backend_show(cluster: &Cluster, format: Format) -> Result<(), Failure> {
    let report = Gatherer::new(cluster, &Admin::new(cluster)?).gather().await.backend;
    if format.json {
        return print_json(&report);
    }
    print(&show::backend(&report, Paint::on(&std::io::stdout())));
    Ok(())
}

/// # Errors
/// When the operator's own certificate is wrong.
pub async fn asd_list(cluster: &Cluster, format: Format) -> Result<(), Failure> {
    let admin = Admin::new(cluster)?;
    let mut asked = tokio::task::JoinSet::new();
    for (at, member) in cluster.of_role(ProcessRole::Asd).enumerate() {
        let client = admin.member(member);
        asked.spawn(async move {
            let stats = call::<_, asd::Stats>(&client, asd::method::STATS, &(), LIMIT);
            (at, tokio::time::timeout(LIMIT, stats).await.ok().and_then(Result::ok))
        });
    }
    let mut answers = asked.join_all().await;
    answers.sort_by_key(|(at, _)| *at);
    let rows = cluster.of_role(ProcessRole::Asd).zip(answers).map(|(member, (_, stats))| {
        let state = match &stats {
            Some(stats) => disk_state(stats.state),
            None if cluster.is_lost(member) => "lost",
            None => "down",
        };
        let number = |of: fn(&asd::Stats) -> u64| stats.as_ref().map(of);
        json!({
            "id": member.id,
            "osd": member.osd.as_ref().map(|osd| osd.0.to_string()),
            "state": state,
            "address": member.endpoint.0.to_string(),
            "capacity_bytes": number(|s| s.capacity_bytes),
            "used_bytes": number(|s| s.used_bytes),
            "live_bytes": number(|s| s.live_bytes),
            "fragments": number(|s| s.fragments),
            "corruptions": number(|s| s.corruptions),
            "io_errors": number(|s| s.io_errors),
        })
    });
    let rows: Vec<Value> = rows.collect();
    if format.json {
        return print_json(&rows);
    }
    let mut table = Table::new(&[
        "ASD",
        "STATE",
        "USED",
        "CAPACITY",
        "FRAGMENTS",
        "DAMAGED",
        "IO ERRORS",
        "OSD",
    ]);
    for row in &rows {
        let text = |key: &str| Cell::plain(row[key].as_str().unwrap_or("-"));
        let size = |key: &str| {
            Cell::plain(row[key].as_u64().map_or("-".to_owned(), |n| ByteSize(n).to_string()))
        };
        let count =
            |key: &str| Cell::plain(row[key].as_u64().map_or("-".to_owned(), |n| n.to_string()));
        let state = row["state"].as_str().unwrap_or("-");
        let tone = if state == "writable" { Tone::Good } else { Tone::Bad };
        table.row(vec![
            text("id"),
            Cell::toned(state, tone),
            size("used_bytes"),
            size("capacity_bytes"),
            count("fragments"),
            count("corruptions"),
            count("io_errors"),
            text("osd"),
        ]);
    }
    print(&table.render(Paint::on(&std::io::stdout())));
    Ok(())
}

const fn disk_state(state: asd::DiskState) -> &'static str {
    match state {
        asd::DiskState::Writable => "writable",
        asd::DiskState::Full => "full",
        asd::DiskState::ReadOnly => "read-only",
        asd::DiskState::Failed => "failed",
    }
}

#[derive(Debug, clap::Subcommand)]
pub enum KvCommand {
    /// Print the value of one key
    Get {
        key: String,
        #[command(flatten)]
        format: Format,
    },
    /// List keys that begin with a prefix, and the lengths of their values
    Range {
        #[arg(default_value = "")]
        prefix: String,
        /// Most keys to list
        #[arg(long, default_value_t = 1000)]
        limit: usize,
        #[command(flatten)]
        format: Format,
    },
}

/// # Errors
/// When arakoon has no majority, or the key isn't there.
pub async fn kv(command: KvCommand, cluster: &Cluster) -> Result<(), Failure> {
    let arakoon = Admin::new(cluster)?.arakoon(cluster, ARAKOON_LIMIT);
    match command {
        KvCommand::Get { key, format } => {
            let value = arakoon.get(&key).await.map_err(arakoon_failure)?;
            let value =
                value.ok_or_else(|| Failure::not_found(format!("arakoon has no key {key}")))?;
            if format.json {
                return print_json(&json!({"key": key, "value": value.escape_ascii().to_string()}));
            }
            print(&format!("{}\n", value.escape_ascii()));
        }
        KvCommand::Range { prefix, limit, format } => {
            let end = wire::arakoon::prefix_end(prefix.as_bytes());
            let entries =
                arakoon.range(&prefix, end.as_deref(), limit).await.map_err(arakoon_failure)?;
            if format.json {
                let entry = |(key, value): &(bytes::Bytes, bytes::Bytes)| json!({"key": key.escape_ascii().to_string(), "value": value.escape_ascii().to_string()});
                return print_json(&entries.iter().map(entry).collect::<Vec<_>>());
            }
            let mut table = Table::new(&["KEY", "BYTES"]);
            for (key, value) in &entries {
                table.row(vec![
                    Cell::plain(key.escape_ascii().to_string()),
                    Cell::plain(value.len().to_string()),
                ]);
            }
            print(&table.render(Paint::on(&std::io::stdout())));
        }
    }
    Ok(())
}
