//! `holdfast events`: what happened to vDisks, routers and disks, over all processes, in the order of time.
//!
//! Routers and proxies keep their newest events in memory. They are merged by the processes' wall clocks, which is for
//! people: within one process the order is certain, between two of them it is as good as their clocks.
//!
//! Invariant: with `--follow` no event is shown twice, and one that a process dropped before it was asked is counted.

use crate::client::{Admin, arakoon_failure, call};
use crate::cluster::Cluster;
use crate::failure::Failure;
use crate::output::print;
use crate::role::ProcessRole;
use crate::status::report::rfc3339;
use crate::table::{Paint, Tone};
use crate::vdisk::duration;
use model::{Incarnation, VdiskId};
use runtime::rpc::Client;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::task::JoinSet;
use wire::common::{Event, EventList, EventsAsk, Severity, method};
use wire::facts::{Record, VdiskRecord, key};

/// Who keeps events.
const ROLES: [ProcessRole; 2] = [ProcessRole::Router, ProcessRole::AlbaProxy];
const LIMIT: Duration = Duration::from_secs(3);
/// Between two looks with `--follow`.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
const EVENTS_MAX: u32 = 256;
/// Answers of one process in one look; more are a process that makes events as fast as they are read.
const PAGES_MAX: usize = 16;

#[derive(Debug, clap::Args)]
pub struct EventsArgs {
    /// Go on with what happens from now on, until interrupted
    #[arg(short, long)]
    pub follow: bool,
    /// Only those about this vDisk
    #[arg(long, value_name = "NAME")]
    pub vdisk: Option<String>,
    /// Only those of the last 90, 90s, 5min or 1h
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub since: Option<Duration>,
    /// One JSON object per line
    #[arg(long)]
    pub json: bool,
}

type Names = BTreeMap<VdiskId, String>;

/// How far a process was read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Cursor {
    incarnation: Option<Incarnation>,
    after: u64,
}

struct Source {
    name: String,
    role: ProcessRole,
    client: Client,
    cursor: Cursor,
    /// It didn't answer the last time.
    away: bool,
}

impl Source {
    fn named(&self, events: Vec<Event>) -> impl Iterator<Item = Seen> {
        let (process, role) = (self.name.clone(), self.role);
        events.into_iter().map(move |event| Seen { process: process.clone(), role, event })
    }
}

/// One event, and where it happened.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    process: String,
    role: ProcessRole,
    event: Event,
}

/// # Errors
/// When no process answers at all, or there is no vDisk of the wanted name.
pub async fn run(args: EventsArgs, cluster: &Cluster) -> Result<(), Failure> {
    let admin = Admin::new(cluster)?;
    let mut sources: Vec<Source> = ROLES
        .into_iter()
        .flat_map(|role| cluster.of_role(role))
        .map(|member| Source {
            name: member.id.clone(),
            role: member.role,
            client: admin.member(member),
            cursor: Cursor::default(),
            away: false,
        })
        .collect();
    let mut names = Names::new();
    let wanted = Wanted::new(&args, &admin, cluster, &mut names).await?;
    let paint = Paint::on(&std::io::stdout());
    let process = sources.iter().map(|source| source.name.chars().count()).max().unwrap_or(0);
    let mut widths = Widths { process: process.max("PROCESS".len()), vdisk: 10 };
    let mut first = true;
    loop {
        let mut seen = look(&mut sources).await;
        if first && sources.iter().all(|source| source.away) {
            return Err(Failure::unreachable(
                "no router and no proxy answers; `holdfast status` shows which processes run",
            ));
        }
        seen.retain(|one| wanted.takes(&one.event));
        if seen.iter().any(|one| one.event.vdisk.is_some_and(|id| !names.contains_key(&id))) {
            // Names are a help: without arakoon ids are shown.
            names.extend(names_of_vdisks(&admin, cluster).await.unwrap_or_default());
        }
        sort(&mut seen);
        if args.json {
            let line = |one: &Seen| format!("{}\n", event_json(one, &names));
            print(&seen.iter().map(line).collect::<String>());
        } else {
            widths = widths.fit(&seen, &names);
            if first && !seen.is_empty() {
                let header = ["TIME", "PROCESS", "EVENT", "VDISK", ""];
                print(&widths.row(header.map(|name| (name, Tone::Quiet)), paint));
            }
            print(&rows(&seen, &names, widths, paint));
        }
        if !args.follow {
            if seen.is_empty() && !args.json {
                eprintln!("nothing happened, as far as the running processes remember");
            }
            return Ok(());
        }
        first = false;
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// Which events are asked for.
#[derive(Debug, Default)]
struct Wanted {
    vdisk: Option<VdiskId>,
    not_before_unix_ms: u64,
}

impl Wanted {
    async fn new(
        args: &EventsArgs,
        admin: &Admin,
        cluster: &Cluster,
        names: &mut Names,
    ) -> Result<Self, Failure> {
        let ago =
            args.since.map_or(u64::MAX, |ago| u64::try_from(ago.as_millis()).unwrap_or(u64::MAX));
        let not_before_unix_ms = runtime::clock::unix_ms().saturating_sub(ago);
        let Some(name) = &args.vdisk else { return Ok(Self { vdisk: None, not_before_unix_ms }) };
        *names = names_of_vdisks(admin, cluster).await?;
        let id = names.iter().find(|(_, known)| *known == name).map(|(id, _)| *id);
        // One that was deleted has no name any more, but events.
        let vdisk = id.or_else(|| name.parse().ok());
        let vdisk = vdisk.ok_or_else(|| {
            Failure::not_found(format!(
                "there is no vDisk {name}; `holdfast vdisk list` shows them, and a deleted one goes by its id"
            ))
        })?;
        Ok(Self { vdisk: Some(vdisk), not_before_unix_ms })
    }

    fn takes(&self, event: &Event) -> bool {
        self.not_before_unix_ms <= event.at_unix_ms
            && self.vdisk.is_none_or(|vdisk| event.vdisk == Some(vdisk))
    }
}

async fn names_of_vdisks(admin: &Admin, cluster: &Cluster) -> Result<Names, Failure> {
    let rows = admin.arakoon(cluster, LIMIT).prefix(key::VDISKS).await.map_err(arakoon_failure)?;
    let records = rows.into_iter().filter_map(|(_, row)| VdiskRecord::from_record(row).ok());
    Ok(records.map(|record| (record.vdisk, record.name)).collect())
}

/// What is new, asked of all at once.
async fn look(sources: &mut Vec<Source>) -> Vec<Seen> {
    let mut asked = JoinSet::new();
    for mut source in sources.drain(..) {
        asked.spawn(async move {
            let seen = read(&mut source).await;
            (source, seen)
        });
    }
    let mut all = Vec::new();
    for (source, seen) in asked.join_all().await {
        sources.push(source);
        all.extend(seen);
    }
    all
}

/// What is new at one process.
async fn read(source: &mut Source) -> Vec<Seen> {
    let mut seen = Vec::new();
    for _ in 0..PAGES_MAX {
        let ask = EventsAsk { after: source.cursor.after, events_max: EVENTS_MAX };
        let asked = call::<_, EventList>(&source.client, method::EVENTS, &ask, LIMIT);
        let Ok(Ok(answer)) = tokio::time::timeout(LIMIT, asked).await else {
            if !std::mem::replace(&mut source.away, true) {
                eprintln!("{} doesn't answer: its events aren't shown", source.name);
            }
            break;
        };
        if std::mem::take(&mut source.away) {
            eprintln!("{} answers again", source.name);
        }
        let before = source.cursor;
        source.cursor = advance(before, &answer);
        let Some(incarnation) = before.incarnation else {
            if 0 < answer.lost {
                eprintln!("{}: {} older events aren't kept any more", source.name, answer.lost);
            }
            seen.extend(source.named(answer.events));
            if answer.more { continue } else { break }
        };
        if incarnation != answer.incarnation {
            // A new life of the process: its first events were not asked for.
            continue;
        }
        if 0 < answer.lost {
            eprintln!("{}: {} events were dropped before they were read", source.name, answer.lost);
        }
        seen.extend(source.named(answer.events));
        if !answer.more {
            break;
        }
    }
    seen
}

/// Where to go on; a process that was restarted counts from its beginning.
fn advance(before: Cursor, answer: &EventList) -> Cursor {
    let incarnation = Some(answer.incarnation);
    if before.incarnation.is_some() && before.incarnation != incarnation {
        return Cursor { incarnation, after: 0 };
    }
    let last = answer.events.last().map(|event| event.seq);
    Cursor { incarnation, after: last.unwrap_or(before.after) }
}

/// By time; events of one process stay in their order whatever its clock did.
fn sort(seen: &mut [Seen]) {
    let mut latest: BTreeMap<String, u64> = BTreeMap::new();
    let times: Vec<u64> = seen
        .iter()
        .map(|one| {
            let latest = latest.entry(one.process.clone()).or_default();
            *latest = one.event.at_unix_ms.max(*latest);
            *latest
        })
        .collect();
    let mut order: Vec<usize> = (0..seen.len()).collect();
    order.sort_by_key(|at| times[*at]);
    let sorted: Vec<Seen> = order.into_iter().map(|at| seen[at].clone()).collect();
    seen.clone_from_slice(&sorted);
}

/// How wide the columns are: `--follow` prints rows before it knows the later ones.
#[derive(Debug, Clone, Copy)]
struct Widths {
    process: usize,
    vdisk: usize,
}

impl Widths {
    const KIND: usize = 15;

    /// Only grows, so that what is printed later isn't narrower.
    fn fit(self, seen: &[Seen], names: &Names) -> Self {
        let vdisk = seen.iter().map(|one| vdisk_name(one, names).chars().count()).max();
        Self { vdisk: self.vdisk.max(vdisk.unwrap_or(0)), ..self }
    }

    fn row(self, cells: [(&str, Tone); 5], paint: Paint) -> String {
        let widths = [24, self.process, Self::KIND, self.vdisk, 0];
        let mut line = String::new();
        for ((text, tone), width) in cells.into_iter().zip(widths) {
            let fill = width.saturating_sub(text.chars().count());
            line.push_str(&paint.apply(tone, text));
            line.push_str(&" ".repeat(fill + 2));
        }
        format!("{}\n", line.trim_end())
    }
}

fn rows(seen: &[Seen], names: &Names, widths: Widths, paint: Paint) -> String {
    let row = |one: &Seen| {
        let Event { severity, ref kind, at_unix_ms, ref text, .. } = one.event;
        let cells = [
            (&time(at_unix_ms)[..], Tone::Quiet),
            (&one.process[..], Tone::Plain),
            (&kind[..], tone(severity)),
            (&vdisk_name(one, names)[..], Tone::Plain),
            (&text[..], Tone::Plain),
        ];
        widths.row(cells, paint)
    };
    seen.iter().map(row).collect()
}

const fn tone(severity: Severity) -> Tone {
    match severity {
        Severity::Info => Tone::Plain,
        Severity::Warn => Tone::Warn,
        Severity::Error => Tone::Bad,
    }
}

/// `2026-11-22T05:41:28.042Z`.
fn time(unix_ms: u64) -> String {
    let whole = rfc3339(unix_ms);
    format!("{}.{:03}Z", whole.trim_end_matches('Z'), unix_ms % 1000)
}

fn vdisk_name(one: &Seen, names: &Names) -> String {
    let name = |id: VdiskId| names.get(&id).cloned().unwrap_or_else(|| id.to_string());
    one.event.vdisk.map_or_else(String::new, name)
}

fn event_json(one: &Seen, names: &Names) -> Value {
    let severity = match one.event.severity {
        Severity::Info => "info",
        Severity::Warn => "warn",
        Severity::Error => "error",
    };
    json!({
        "at": time(one.event.at_unix_ms),
        "process": one.process,
        "role": one.role.to_string(),
        "seq": one.event.seq,
        "severity": severity,
        "event": one.event.kind,
        "vdisk": one.event.vdisk.map(|_| vdisk_name(one, names)),
        "vdisk_id": one.event.vdisk.map(|id| id.to_string()),
        "text": one.event.text,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(process: &str, seq: u64, at_unix_ms: u64) -> Seen {
        let (severity, kind, text) = (Severity::Warn, "claimed".to_owned(), "why".to_owned());
        let event = Event { seq, at_unix_ms, severity, kind, vdisk: Some(VdiskId(7)), text };
        Seen { process: process.into(), role: ProcessRole::Router, event }
    }

    #[test]
    fn events_are_merged_by_time_and_one_routers_stay_in_order() {
        let mut all = vec![seen("a", 1, 10), seen("a", 2, 5), seen("a", 3, 30), seen("b", 1, 20)];
        sort(&mut all);
        let order: Vec<_> = all.iter().map(|one| (&one.process[..], one.event.seq)).collect();
        assert_eq!(order, [("a", 1), ("a", 2), ("b", 1), ("a", 3)]);
    }

    #[test]
    fn a_cursor_goes_on_and_begins_anew_with_a_new_life() {
        let list = |incarnation, seqs: &[u64]| EventList {
            incarnation: Incarnation(incarnation),
            events: seqs.iter().map(|seq| seen("a", *seq, 1).event).collect(),
            lost: 0,
            more: false,
        };
        let one = advance(Cursor::default(), &list(1, &[1, 2]));
        assert_eq!((one.after, advance(one, &list(1, &[])).after), (2, 2));
        let anew = advance(one, &list(2, &[3]));
        assert_eq!(anew, Cursor { incarnation: Some(Incarnation(2)), after: 0 });
    }

    #[test]
    fn a_line_of_json_says_all_and_names_the_vdisk() {
        let names = BTreeMap::from([(VdiskId(7), "db".to_owned())]);
        let json = event_json(&seen("router-1", 4, 1042), &names);
        assert_eq!(json["at"], "1970-01-01T00:00:01.042Z");
        assert_eq!((&json["vdisk"], &json["severity"]), (&json!("db"), &json!("warn")));
        assert!(!json.to_string().contains('\n'));
    }

    #[test]
    fn rows_line_up_and_are_chosen_by_vdisk_and_time() {
        let names = BTreeMap::from([(VdiskId(7), "db".to_owned())]);
        let widths = Widths { process: 8, vdisk: 10 }.fit(&[seen("a", 1, 0)], &names);
        let shown = rows(&[seen("router-1", 4, 1042)], &names, widths, Paint::Plain);
        assert_eq!(shown, "1970-01-01T00:00:01.042Z  router-1  claimed          db          why\n");
        let event = seen("a", 1, 500).event;
        let takes = |vdisk, not_before_unix_ms| Wanted { vdisk, not_before_unix_ms }.takes(&event);
        assert!(takes(None, 0) && takes(Some(VdiskId(7)), 500));
        assert!(!takes(Some(VdiskId(8)), 0) && !takes(None, 501));
    }
}
