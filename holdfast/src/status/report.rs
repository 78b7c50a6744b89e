//! What `holdfast status --json` prints, and how the answers of single processes become the health of the backend. Pure:
//! answers in, report out. The JSON's field names are a contract with scripts.

use crate::client::NoStatus;
use crate::role::ProcessRole;
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;
use wire::asd::DiskState;
use wire::common::Status;

/// Alarms that are listed; further ones are only counted.
const ALARMS_MAX: usize = 32;

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    pub cluster: String,
    pub processes: Vec<ProcessReport>,
    pub backend: BackendReport,
    pub vdisks: Vec<VdiskReport>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ProcessReport {
    pub role: ProcessRole,
    pub id: String,
    /// `None` when it doesn't run.
    pub pid: Option<u32>,
    pub address: String,
    /// `running`, a role's own word for a degraded mode, or `down`, `lost`, `unresponsive`.
    pub state: String,
    /// RFC 3339, UTC.
    pub since: Option<String>,
    pub details: Value,
}

impl ProcessReport {
    #[must_use]
    pub fn answers(&self) -> bool {
        self.since.is_some()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    Healthy,
    /// All data can be read and written, with less protection than wanted.
    Degraded,
    /// Something can't be read, or nothing can be written.
    Unavailable,
}

impl Health {
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Degraded => "degraded",
            Self::Unavailable => "unavailable",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BackendReport {
    pub name: String,
    pub health: Health,
    /// All policies, best first.
    pub policy: String,
    /// The one that writes use now.
    pub active_policy: Option<String>,
    pub osds_up: usize,
    pub osds_total: usize,
    pub capacity_bytes: u64,
    pub used_bytes: u64,
    /// Fragments that aren't stored yet.
    pub holes: u64,
    pub corrupt_fragments: u64,
    pub degraded_reads: u64,
    pub lost_objects: u64,
    pub alarms: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct VdiskReport {
    pub name: String,
    pub size: u64,
    /// Name of the router.
    pub owner: String,
    pub epoch: u64,
    pub state: String,
    /// Of the second copy of its log, as the owner says it; `standalone`: there shall be none; `None`: nobody says.
    pub dtl: Option<String>,
}

/// How a process is, from its answer or the lack of one.
#[must_use]
pub fn process(
    role: ProcessRole,
    id: &str,
    address: String,
    answer: Result<Status, NoStatus>,
    absent: Absent,
) -> ProcessReport {
    let report = |pid, state: String, since, details| ProcessReport {
        role,
        id: id.to_owned(),
        pid,
        address,
        state,
        since,
        details,
    };
    match answer {
        Ok(status) => {
            let details = serde_json::from_str(&status.details_json).unwrap_or(Value::Null);
            report(Some(status.pid), status.state, Some(rfc3339(status.since_unix_ms)), details)
        }
        Err(NoStatus::Unresponsive) => {
            report(absent.pid, "unresponsive".to_owned(), None, Value::Null)
        }
        Err(NoStatus::Down(_)) if absent.lost => report(None, "lost".to_owned(), None, Value::Null),
        Err(NoStatus::Down(_)) => report(None, "down".to_owned(), None, Value::Null),
    }
}

/// What is known of a process that doesn't answer.
#[derive(Debug, Clone, Copy, Default)]
pub struct Absent {
    /// From its pid file.
    pub pid: Option<u32>,
    /// Its data is gone.
    pub lost: bool,
}

/// What an ASD says of its disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskFacts {
    pub state: DiskState,
    pub capacity_bytes: u64,
    pub used_bytes: u64,
    pub corruptions: u64,
}

/// Everything that the health of a backend is judged by.
pub struct BackendInputs<'a> {
    pub name: &'a str,
    /// As the cluster was made.
    pub policy: String,
    pub processes: &'a [ProcessReport],
    /// By ASD; those that answered.
    pub disks: &'a BTreeMap<String, DiskFacts>,
    /// Over all namespaces, counted now; `None` when it couldn't be.
    pub holes: Option<u64>,
    /// Why arakoon can't be used, if so.
    pub arakoon: Result<(), String>,
}

#[must_use]
pub fn backend(inputs: &BackendInputs<'_>) -> BackendReport {
    let BackendInputs { name, policy, processes, disks, .. } = inputs;
    let proxies: Vec<&Value> = processes
        .iter()
        .filter(|process| process.role == ProcessRole::AlbaProxy && process.answers())
        .map(|process| &process.details)
        .collect();
    let sum = |key: &str| proxies.iter().map(|details| number(details, key)).sum::<u64>();
    let most = |key: &str| proxies.iter().map(|details| number(details, key)).max().unwrap_or(0);
    let lost = lost_objects(&proxies);
    let active_policy = active_policy(&proxies, policy);
    let holes = inputs.holes.unwrap_or_else(|| most("holes"));
    let mut judged = Judged::default();
    judge_processes(&mut judged, inputs);
    if proxies.is_empty() {
        judged.say(Health::Unavailable, "no alba-proxy answers".to_owned());
    } else {
        judge_policy(&mut judged, policy, active_policy.as_deref());
    }
    if holes > 0 {
        judged.say(Health::Degraded, format!("{holes} fragments aren't stored yet"));
    }
    for (object, problem) in &lost {
        judged.say(Health::Unavailable, format!("object {object} can't be read: {problem}"));
    }
    let lost_objects = u64::try_from(lost.len()).unwrap_or(u64::MAX);
    let corruptions: u64 = disks.values().map(|disk| disk.corruptions).sum();
    BackendReport {
        name: (*name).to_owned(),
        health: judged.health,
        policy: policy.clone(),
        active_policy,
        osds_up: disks.len(),
        osds_total: processes.iter().filter(|process| process.role == ProcessRole::Asd).count(),
        capacity_bytes: disks.values().map(|disk| disk.capacity_bytes).sum(),
        used_bytes: disks.values().map(|disk| disk.used_bytes).sum(),
        holes,
        // Both ends count what they see, each since its own start.
        corrupt_fragments: corruptions.max(sum("corrupt_fragments")),
        degraded_reads: sum("degraded_reads"),
        lost_objects,
        alarms: judged.alarms(),
    }
}

struct Judged {
    health: Health,
    said: Vec<String>,
    more: usize,
}

impl Default for Judged {
    fn default() -> Self {
        Self { health: Health::Healthy, said: Vec::new(), more: 0 }
    }
}

impl Judged {
    fn say(&mut self, health: Health, alarm: String) {
        self.health = self.health.max(health);
        if self.said.len() < ALARMS_MAX { self.said.push(alarm) } else { self.more += 1 }
    }

    fn alarms(mut self) -> Vec<String> {
        if self.more > 0 {
            self.said.push(format!("and {} more", self.more));
        }
        self.said
    }
}

fn judge_processes(judged: &mut Judged, inputs: &BackendInputs<'_>) {
    if let Err(problem) = &inputs.arakoon {
        judged.say(Health::Unavailable, format!("arakoon can't be used: {problem}"));
    }
    for process in inputs.processes {
        let ProcessReport { id, role, state, .. } = process;
        match role {
            ProcessRole::Arakoon | ProcessRole::AlbaProxy if !process.answers() => {
                judged.say(Health::Degraded, format!("{id} is {state}"));
            }
            ProcessRole::Asd => match inputs.disks.get(id).map(|disk| disk.state) {
                None => judged.say(Health::Degraded, format!("{id} is {state}")),
                Some(DiskState::Writable) => {}
                Some(DiskState::Full) => judged.say(Health::Degraded, format!("{id} is full")),
                Some(DiskState::ReadOnly) => {
                    judged.say(Health::Degraded, format!("{id} can't be written"));
                }
                Some(DiskState::Failed) => {
                    judged.say(Health::Degraded, format!("the disk of {id} failed"));
                }
            },
            // They don't belong to the backend.
            ProcessRole::Arakoon
            | ProcessRole::AlbaProxy
            | ProcessRole::Router
            | ProcessRole::Edge => {}
        }
    }
}

fn judge_policy(judged: &mut Judged, policies: &str, active: Option<&str>) {
    match active {
        Some(active) if rank(policies, active) == 0 => {}
        Some(active) => judged.say(
            Health::Degraded,
            format!("writes use policy {active}, not the first of {policies}"),
        ),
        None => judged.say(
            Health::Unavailable,
            format!("too few OSDs are writable for any policy of {policies}"),
        ),
    }
}

/// Place in the list; past its end when it isn't there.
fn rank(policies: &str, active: &str) -> usize {
    let bare =
        |policy: &str| policy.split('@').next().unwrap_or_default().replace([' ', '(', ')'], "");
    let active = bare(active);
    policies.split(';').position(|policy| bare(policy) == active).unwrap_or(usize::MAX)
}

/// Proxies see OSDs with their own eyes; the worst view counts.
fn active_policy(proxies: &[&Value], policies: &str) -> Option<String> {
    let views: Vec<Option<&str>> =
        proxies.iter().map(|details| details["active_policy"].as_str()).collect();
    let known: Option<Vec<&str>> = views.into_iter().collect();
    known?.into_iter().max_by_key(|active| rank(policies, active)).map(str::to_owned)
}

/// Objects that some proxy couldn't read.
fn lost_objects(proxies: &[&Value]) -> BTreeMap<String, String> {
    let text = |value: &Value| value.as_str().unwrap_or("?").to_owned();
    proxies
        .iter()
        .filter_map(|details| details["lost_objects"].as_array())
        .flatten()
        .map(|lost| (text(&lost["object"]), text(&lost["problem"])))
        .collect()
}

fn number(details: &Value, key: &str) -> u64 {
    details[key].as_u64().unwrap_or(0)
}

/// `2026-11-22T05:41:28Z`.
#[must_use]
pub fn rfc3339(unix_ms: u64) -> String {
    let seconds = unix_ms / 1000;
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Civil date from a day count (Howard Hinnant, "chrono-compatible low-level date algorithms"), days after 1970 only.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests;
