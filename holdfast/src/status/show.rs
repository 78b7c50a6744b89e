//! A report for people: aligned tables, colour only on a terminal, the same layout for `status` and the live view of `up`.

use super::report::{BackendReport, Health, ProcessReport, Report};
use crate::role::ProcessRole;
use crate::table::{Cell, Paint, Table, Tone};
use model::ByteSize;

/// The whole report.
#[must_use]
pub fn report(report: &Report, paint: Paint) -> String {
    let mut out = backend(&report.backend, paint);
    out.push('\n');
    out.push_str(&processes(&report.processes, paint));
    if !report.vdisks.is_empty() {
        out.push('\n');
        out.push_str(&vdisks(report, paint));
    }
    out
}

#[must_use]
pub fn backend(backend: &BackendReport, paint: Paint) -> String {
    let BackendReport { name, health, policy, active_policy, osds_up, osds_total, .. } = backend;
    let tone = match health {
        Health::Healthy => Tone::Good,
        Health::Degraded => Tone::Warn,
        Health::Unavailable => Tone::Bad,
    };
    let mut out = format!("backend {name} is {}", paint.apply(tone, health.name()));
    out.push_str(&format!(
        ": {osds_up} of {osds_total} OSDs up, {} of {} used\n",
        ByteSize(backend.used_bytes),
        ByteSize(backend.capacity_bytes)
    ));
    let active = active_policy.as_deref().unwrap_or("none can be met");
    out.push_str(&format!("policy {policy}, writes use {active}\n"));
    let BackendReport { holes, corrupt_fragments, degraded_reads, lost_objects, .. } = backend;
    out.push_str(&format!(
        "holes {holes}, corrupt fragments {corrupt_fragments}, degraded reads {degraded_reads}, lost objects {lost_objects}\n"
    ));
    for alarm in &backend.alarms {
        out.push_str(&format!("  {} {alarm}\n", paint.apply(tone, "!")));
    }
    out
}

fn processes(processes: &[ProcessReport], paint: Paint) -> String {
    let mut table = Table::new(&["PROCESS", "STATE", "PID", "SINCE", "ADDRESS", ""]);
    for process in processes {
        let pid = process.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string());
        table.row(vec![
            Cell::plain(process.id.as_str()),
            Cell::toned(process.state.as_str(), state_tone(process)),
            Cell::plain(pid),
            Cell::plain(process.since.as_deref().unwrap_or("-")),
            Cell::plain(process.address.as_str()),
            Cell::toned(note(process), Tone::Quiet),
        ]);
    }
    table.render(paint)
}

fn state_tone(process: &ProcessReport) -> Tone {
    match process.state.as_str() {
        _ if !process.answers() => Tone::Bad,
        "running" => Tone::Good,
        _ => Tone::Warn,
    }
}

/// The one fact of a process that a person looks for.
fn note(process: &ProcessReport) -> String {
    let details = &process.details;
    let bytes = |key: &str| details[key].as_u64().map(ByteSize);
    match process.role {
        ProcessRole::Arakoon if details["leader"].as_str() == Some(process.id.as_str()) => {
            "leader".to_owned()
        }
        ProcessRole::Arakoon | ProcessRole::AlbaProxy => String::new(),
        ProcessRole::Asd => match (bytes("used_bytes"), bytes("capacity_bytes")) {
            (Some(used), Some(capacity)) => format!("{used} of {capacity}"),
            _ => String::new(),
        },
        ProcessRole::Router => match bytes("pending_bytes") {
            Some(ByteSize(0)) | None => String::new(),
            Some(pending) => format!("{pending} not in the backend yet"),
        },
        ProcessRole::Edge => {
            let exports = details["exports"].as_array().into_iter().flatten();
            match exports.filter_map(|export| export["connections"].as_u64()).sum::<u64>() {
                0 => String::new(),
                1 => "1 connection".to_owned(),
                count => format!("{count} connections"),
            }
        }
    }
}

fn vdisks(report: &Report, paint: Paint) -> String {
    let mut table = Table::new(&["VDISK", "STATE", "DTL", "SIZE", "OWNER", "EPOCH"]);
    for vdisk in &report.vdisks {
        let tone = if vdisk.state == "serving" { Tone::Good } else { Tone::Warn };
        table.row(vec![
            Cell::plain(vdisk.name.as_str()),
            Cell::toned(vdisk.state.as_str(), tone),
            Cell::toned(vdisk.dtl.as_deref().unwrap_or("-"), dtl_tone(vdisk.dtl.as_deref())),
            Cell::plain(ByteSize(vdisk.size).to_string()),
            Cell::plain(vdisk.owner.as_str()),
            Cell::plain(vdisk.epoch.to_string()),
        ]);
    }
    table.render(paint)
}

/// A flush that is at one place only, or waits for the backend, is something to know.
fn dtl_tone(dtl: Option<&str>) -> Tone {
    match dtl {
        Some("in-sync") => Tone::Good,
        Some("degraded") => Tone::Bad,
        Some(_) | None => Tone::Warn,
    }
}
