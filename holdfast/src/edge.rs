//! `holdfast edge status`: what each edge serves, from whom, and how its clients fare.
//!
//! Rates are differences of two answers of the edge, so that nothing is counted for a reader who isn't there.

use crate::client::{Admin, NoStatus, status_of};
use crate::cluster::{Cluster, Member};
use crate::failure::Failure;
use crate::output::{Format, print, print_json};
use crate::role::ProcessRole;
use crate::table::{Cell, Paint, Table, Tone};
use model::ByteSize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::Write;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(5);
/// Between two looks.
const WATCH: Duration = Duration::from_secs(1);
/// A client that waits longer than this is worth a colour.
const LONG_WAIT_MS: u64 = 1000;
const KINDS: [&str; 4] = ["reads", "writes", "unmaps", "flushes"];

#[derive(Debug, clap::Subcommand)]
pub enum EdgeCommand {
    /// What each edge serves: router, clients, requests, waits, fail-overs
    #[command(
        after_help = "READS, WRITES, FLUSHES are requests that were answered since the edge attached the vDisk, MEAN and WORST how long
they took, WAITING how long the oldest unanswered one waits. UNFLUSHED is kept at the edge, to be sent again should the
router be lost. RECONNECTS are changes of router or connection.

Examples:
  holdfast edge status
  holdfast edge status edge-1 --watch      per second, until Ctrl-C
  holdfast edge status --json"
    )]
    Status {
        /// This one only
        edge: Option<String>,
        /// Again every second, with what happened in it
        #[arg(long)]
        watch: bool,
        #[command(flatten)]
        format: Format,
    },
}

/// # Errors
/// When there is no such edge, or none answers.
pub async fn run(command: EdgeCommand, cluster: &Cluster) -> Result<(), Failure> {
    let EdgeCommand::Status { edge, watch, format } = command;
    let admin = Admin::new(cluster)?;
    let members = chosen(cluster, edge.as_deref())?;
    if !watch {
        let seen = look(&admin, cluster, &members).await?;
        if format.json {
            return print_json(&seen);
        }
        print(&totals(&seen).render(Paint::on(&std::io::stdout())));
        return Ok(());
    }
    let (mut before, mut at) = (look(&admin, cluster, &members).await?, Instant::now());
    loop {
        tokio::time::sleep(WATCH).await;
        let now = match look(&admin, cluster, &members).await {
            Ok(now) => now,
            Err(error) => {
                // It may be back in a second.
                eprintln!("{error}");
                continue;
            }
        };
        let between = at.elapsed();
        at = Instant::now();
        let rates = rates(&before, &now, between);
        let shown = if format.json {
            // One line each, for programs that read as it goes.
            format!("{}\n", Value::from(rates))
        } else {
            watched(&rates).render(Paint::on(&std::io::stdout()))
        };
        let mut out = std::io::stdout().lock();
        if out.write_all(shown.as_bytes()).and_then(|()| out.flush()).is_err() {
            // Who read it went away (`| head`).
            return Ok(());
        }
        before = now;
    }
}

fn chosen<'a>(cluster: &'a Cluster, name: Option<&str>) -> Result<Vec<&'a Member>, Failure> {
    let all: Vec<&Member> = cluster.of_role(ProcessRole::Edge).collect();
    let Some(name) = name else { return Ok(all) };
    let found: Vec<&Member> = all.iter().copied().filter(|member| member.id == name).collect();
    if found.is_empty() {
        let names: Vec<&str> = all.iter().map(|member| member.id.as_str()).collect();
        return Err(Failure::config(format!(
            "there is no edge `{name}`; there is {}",
            names.join(", ")
        )));
    }
    Ok(found)
}

/// One object per vDisk that an edge has attached.
async fn look(
    admin: &Admin,
    cluster: &Cluster,
    members: &[&Member],
) -> Result<Vec<Value>, Failure> {
    let routers: BTreeMap<String, &str> = cluster
        .of_role(ProcessRole::Router)
        .map(|member| (member.endpoint.0.to_string(), member.id.as_str()))
        .collect();
    let (mut rows, mut silent) = (Vec::new(), Vec::new());
    for member in members {
        let status = match status_of(&admin.member(member), LIMIT).await {
            Ok(status) => status,
            Err(NoStatus::Down(why)) => {
                silent.push(format!("{} is down: {why}", member.id));
                continue;
            }
            Err(NoStatus::Unresponsive) => {
                silent.push(format!("{} doesn't answer", member.id));
                continue;
            }
        };
        let details: Value = serde_json::from_str(&status.details_json).unwrap_or(Value::Null);
        for export in details["exports"].as_array().into_iter().flatten() {
            let mut row = json!({"edge": member.id});
            let fields = row.as_object_mut().expect("it was just made");
            fields.extend(export.as_object().cloned().into_iter().flatten());
            let address = export["router"].as_str().unwrap_or_default();
            if let Some(name) = routers.get(address) {
                fields.insert("router".to_owned(), json!(name));
            }
            rows.push(row);
        }
    }
    if silent.len() == members.len() && !silent.is_empty() {
        return Err(Failure::unreachable(silent.join("; ")));
    }
    for line in silent {
        eprintln!("{line}");
    }
    Ok(rows)
}

fn text(row: &Value, key: &str) -> String {
    row[key].as_str().unwrap_or_default().to_owned()
}

fn number(row: &Value, key: &str) -> u64 {
    row[key].as_u64().unwrap_or(0)
}

fn router(row: &Value) -> Cell {
    match row["router"].as_str() {
        Some("") | None => Cell::toned("looking for it", Tone::Warn),
        Some(name) => Cell::plain(name),
    }
}

fn waiting(row: &Value) -> Cell {
    let ms = number(row, "waiting_ms");
    let tone = if LONG_WAIT_MS < ms { Tone::Bad } else { Tone::Plain };
    Cell::toned(duration(ms * 1000), tone)
}

/// In the unit that keeps it short.
fn duration(us: u64) -> String {
    match us {
        0 => "-".to_owned(),
        1..1000 => format!("{us} us"),
        1000..1_000_000 => format!("{:.1} ms", us as f64 / 1e3),
        _ => format!("{:.1} s", us as f64 / 1e6),
    }
}

fn totals(rows: &[Value]) -> Table {
    let mut table = Table::new(&[
        "EDGE",
        "VDISK",
        "MODE",
        "ROUTER",
        "EPOCH",
        "CLIENTS",
        "WAITING",
        "UNFLUSHED",
        "READS",
        "WRITES",
        "FLUSHES",
        "MEAN",
        "WORST",
        "RECONNECTS",
        "ERRORS",
    ]);
    for row in rows {
        let sum = |key: &str| KINDS.iter().map(|kind| number(&row[kind], key)).sum::<u64>();
        let mean = sum("waited_us").checked_div(sum("count")).unwrap_or(0);
        let longest = KINDS.iter().map(|kind| number(&row[kind], "longest_us")).max().unwrap_or(0);
        let errors = number(row, "errors");
        table.row(vec![
            Cell::plain(text(row, "edge")),
            Cell::plain(text(row, "name")),
            Cell::plain(text(row, "mode")),
            router(row),
            Cell::plain(number(row, "epoch").to_string()),
            Cell::plain(number(row, "connections").to_string()),
            waiting(row),
            Cell::plain(ByteSize(number(row, "unflushed_bytes")).to_string()),
            Cell::plain(number(&row["reads"], "count").to_string()),
            Cell::plain(number(&row["writes"], "count").to_string()),
            Cell::plain(number(&row["flushes"], "count").to_string()),
            Cell::plain(duration(mean)),
            Cell::plain(duration(longest)),
            Cell::plain(number(row, "reconnects").to_string()),
            Cell::toned(errors.to_string(), if errors == 0 { Tone::Plain } else { Tone::Bad }),
        ]);
    }
    table
}

/// What happened between two looks, per second; a vDisk that was attached anew meanwhile counts from nothing.
fn rates(before: &[Value], now: &[Value], between: Duration) -> Vec<Value> {
    let micros = between.as_micros().max(1);
    let per_second =
        |count: u64| u64::try_from(u128::from(count) * 1_000_000 / micros).unwrap_or(u64::MAX);
    let key = |row: &Value| (text(row, "edge"), text(row, "name"));
    let former: BTreeMap<(String, String), &Value> =
        before.iter().map(|row| (key(row), row)).collect();
    let rate = |row: &Value| {
        let old = former.get(&key(row)).copied().unwrap_or(&Value::Null);
        let began_anew =
            KINDS.iter().any(|kind| number(&row[kind], "count") < number(&old[kind], "count"));
        let old = if began_anew { &Value::Null } else { old };
        let mut out = json!({
            "edge": row["edge"], "name": row["name"], "router": row["router"], "in_flight": row["in_flight"],
            "waiting_ms": row["waiting_ms"], "unflushed_bytes": row["unflushed_bytes"],
            "errors": number(row, "errors").saturating_sub(number(old, "errors")),
        });
        for kind in KINDS {
            let more = |key: &str| number(&row[kind], key).saturating_sub(number(&old[kind], key));
            let count = more("count");
            out[kind] = json!({
                "per_second": per_second(count),
                "bytes_per_second": per_second(more("bytes")),
                "mean_us": more("waited_us").checked_div(count).unwrap_or(0),
            });
        }
        out
    };
    now.iter().map(rate).collect()
}

fn watched(rows: &[Value]) -> Table {
    let mut table = Table::new(&[
        "EDGE",
        "VDISK",
        "ROUTER",
        "IN FLIGHT",
        "WAITING",
        "READS/S",
        "READ/S",
        "MEAN",
        "WRITES/S",
        "WRITTEN/S",
        "MEAN",
        "FLUSHES/S",
        "MEAN",
        "ERRORS",
    ]);
    for row in rows {
        let count = |kind: &str| Cell::plain(number(&row[kind], "per_second").to_string());
        let bytes =
            |kind: &str| Cell::plain(ByteSize(number(&row[kind], "bytes_per_second")).to_string());
        let mean = |kind: &str| Cell::plain(duration(number(&row[kind], "mean_us")));
        table.row(vec![
            Cell::plain(text(row, "edge")),
            Cell::plain(text(row, "name")),
            router(row),
            Cell::plain(number(row, "in_flight").to_string()),
            waiting(row),
            count("reads"),
            bytes("reads"),
            mean("reads"),
            count("writes"),
            bytes("writes"),
            mean("writes"),
            count("flushes"),
            mean("flushes"),
            Cell::plain(number(row, "errors").to_string()),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(writes: u64, waited_us: u64) -> Value {
        let usage = json!({"count": writes, "bytes": writes * 4096, "waited_us": waited_us, "longest_us": 900});
        json!({"edge": "edge-1", "name": "db", "router": "router-1", "mode": "exclusive", "epoch": 3,
               "connections": 1, "waiting_ms": 1500, "unflushed_bytes": 4096, "reconnects": 2, "errors": 0,
               "writes": usage})
    }

    #[test]
    fn totals_have_the_mean_and_the_worst_of_all_kinds() {
        let shown = totals(&[row(10, 2000)]).render(Paint::Plain);
        let line = shown.lines().nth(1).unwrap();
        for part in ["edge-1", "router-1", "1.5 s", "4 KiB", "200 us", "900 us"] {
            assert!(line.contains(part), "{part} isn't in {line}");
        }
    }

    #[test]
    fn rates_are_differences_and_begin_anew_with_the_attachment() {
        let more = &rates(&[row(10, 2000)], &[row(30, 8000)], Duration::from_secs(2))[0];
        assert_eq!(more["writes"]["per_second"], 10);
        assert_eq!(more["writes"]["bytes_per_second"], 40960);
        assert_eq!(more["writes"]["mean_us"], 300);
        let anew = &rates(&[row(30, 8000)], &[row(4, 400)], Duration::from_secs(1))[0];
        assert_eq!(
            (&anew["writes"]["per_second"], &anew["writes"]["mean_us"]),
            (&json!(4), &json!(100))
        );
    }
}
