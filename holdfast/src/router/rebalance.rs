//! vDisks spread over the routers in service, at an operator's word.
//!
//! What is decided is [`router_core::rebalance`]'s; here it is gathered what that needs, and done. Before each hand-over
//! all of it is read anew, as others may move vDisks too.
//!
//! Invariant: one hand-over at a time, and never more than were asked for; one that fails ends the command.

use super::{Desk, Known, LIMIT, moved_json};
use crate::client::{arakoon_failure, status_of};
use crate::failure::Failure;
use crate::output::{Format, print, print_json};
use crate::table::{Cell, Paint, Table};
use crate::vdisk::{Ask, Routers};
use indicatif::{ProgressBar, ProgressStyle};
use model::{DomainPath, RouterId, VdiskId};
use router_core::rebalance::{Home, Limits, Measure, Move, Placed, near_edge, plan};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};
use wire::facts::{AttachmentsRecord, DtlRecord, Record, RouterRecord, key};
use wire::router::{VdiskInfo, VdiskName, method};

/// How long writes are counted.
const WATCHED: Duration = Duration::from_secs(2);
/// vDisks of more routers than this aren't asked how busy they are: by number is good enough there.
const ASKED_MAX: usize = 512;

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum By {
    /// Each vDisk counts the same
    Number,
    /// What was asked of each lately, requests and bytes; idle ones stay
    Load,
    /// The writes of each, which are watched for two seconds; idle ones stay
    Writes,
}

impl By {
    const fn measure(self) -> Measure {
        match self {
            Self::Number => Measure::Number,
            Self::Load | Self::Writes => Measure::Load,
        }
    }
}

#[derive(Debug, clap::Args)]
pub struct RebalanceArgs {
    /// Only say what would be moved, and why
    #[arg(long)]
    pub plan: bool,
    /// What shall be alike
    #[arg(long, value_enum, default_value = "number")]
    pub by: By,
    /// Where an edge runs, as datacenter/rack/host, other than its configuration says; may be said again
    #[arg(long = "edge", value_name = "EDGE=DOMAIN", value_parser = edge)]
    pub edges: Vec<(String, String)>,
    /// Leave differences up to this: vDisks, requests, or writes per second
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    pub slack: u64,
    /// Hand over at most so many
    #[arg(long, value_name = "NUMBER", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_moves: u32,
    /// Give up on a vDisk after this: 90, 90s, 5min or 1h
    #[arg(long, default_value = "10min", value_parser = crate::vdisk::duration)]
    pub timeout: Duration,
    #[command(flatten)]
    pub format: Format,
}

fn edge(text: &str) -> Result<(String, String), String> {
    let wrong = || {
        format!("`{text}` isn't an edge and where it runs: write it like edge-1=dc1/rack1/host1")
    };
    let (name, domain) =
        text.split_once('=').filter(|(name, _)| !name.is_empty()).ok_or_else(wrong)?;
    let domain: DomainPath = domain.parse().map_err(|error| format!("{}: {error}", wrong()))?;
    Ok((name.to_owned(), domain.to_string()))
}

/// What is known beside arakoon's records, once for all rounds.
struct Seen {
    alike: Measure,
    /// Of those that answered; by number of none.
    loads: BTreeMap<VdiskId, u64>,
    edges: BTreeMap<VdiskId, String>,
    /// Couldn't be handed over.
    failed: BTreeSet<VdiskId>,
}

impl Desk<'_> {
    pub(super) async fn rebalance(&self, args: RebalanceArgs) -> Result<(), Failure> {
        let mut known = self.known().await?;
        let loads = match args.by {
            By::Number => BTreeMap::new(),
            By::Load => self.loads(&known).await?,
            By::Writes => self.writes(&known).await?,
        };
        let (alike, slack) = (args.by.measure(), args.slack);
        let edges = self.edges(&args.edges).await?;
        let mut seen = Seen { alike, loads, edges, failed: BTreeSet::new() };
        let moves_max = model::usize_of(args.max_moves.into());
        let moves = self.moves(&known, &seen, Limits { moves_max, slack, alike }).await?;
        if args.plan {
            return show_plan(&known, &moves, (alike, args.format));
        }
        // Shown on a terminal only.
        let style = ProgressStyle::with_template("[{bar:30}] {pos}/{len} vDisks, {msg}")
            .expect("the template is a constant");
        let bar = ProgressBar::new(model::u64_of(moves.len())).with_style(style);
        let mut done = Vec::new();
        for _ in 0..moves_max {
            let limits = Limits { moves_max: 1, slack, alike };
            let Some(step) = self.moves(&known, &seen, limits).await?.pop() else { break };
            let (vdisk, from, to) = names(&known, &step);
            bar.set_message(format!("{vdisk} from {from} to {to}"));
            let moved = match self.transfer(&vdisk, step.to, args.timeout).await {
                Ok(moved) => moved,
                Err(error) => {
                    bar.suspend(|| eprintln!("{vdisk}: not handed over to {to}: {error}"));
                    seen.failed.insert(step.vdisk);
                    continue;
                }
            };
            if !args.format.json && bar.is_hidden() {
                print(&format!("{vdisk}: {from} to {to}, {}\n", step.why.name()));
            }
            done.push(moved_json(&vdisk, &to, &moved));
            bar.inc(1);
            known = self.known().await?;
        }
        bar.finish_and_clear();
        let moved = done.len();
        if args.format.json {
            print_json(&json!({"moved": done}))?;
        } else if 0 < moved {
            print(&format!("{moved} handed over; `holdfast router list` shows what is where\n"));
        } else if seen.failed.is_empty() {
            print(nothing(alike));
        }
        match seen.failed.len() {
            0 => Ok(()),
            count => Err(Failure::failed(format!(
                "{count} not handed over, for the reasons above; {moved} were"
            ))),
        }
    }

    async fn moves(
        &self,
        known: &Known,
        seen: &Seen,
        limits: Limits,
    ) -> Result<Vec<Move>, Failure> {
        let mut targets = self.targets().await?;
        let mut homes = Vec::new();
        for router in known.routers.iter().filter(|router| known.in_service(router)) {
            homes.extend(self.home(known, router).await);
        }
        let placed = known.vdisks.iter().filter(|vdisk| !vdisk.deleting).map(|vdisk| {
            let load = seen.loads.get(&vdisk.vdisk).copied();
            let is_unknown = seen.alike == Measure::Load && load.is_none();
            Placed {
                vdisk: vdisk.vdisk,
                owner: vdisk.owner,
                load: load.unwrap_or(0),
                targets: targets.remove(&vdisk.vdisk).unwrap_or_default(),
                edge: seen.edges.get(&vdisk.vdisk).cloned(),
                stays: is_unknown || seen.failed.contains(&vdisk.vdisk),
            }
        });
        Ok(plan(&homes, &placed.collect::<Vec<_>>(), limits))
    }

    /// A router that could be given more: it answers, and its log has space.
    async fn home(&self, known: &Known, router: &RouterRecord) -> Option<Home> {
        let client = self.admin.member(self.member(&router.name).ok()?);
        let status = status_of(&client, LIMIT).await.ok()?;
        let is_full = (status.state == "log-full").then_some(0);
        let room = is_full.or_else(|| known.room(router.router).map(model::usize_of));
        let (router, domain) = (router.router, router.domain.clone());
        Some(Home { router, domain, room, carries: 0, is_known: true })
    }

    /// Where the second copies of the logs are.
    async fn targets(&self) -> Result<BTreeMap<VdiskId, Vec<RouterId>>, Failure> {
        let arakoon = self.admin.arakoon(self.cluster, LIMIT);
        let rows = arakoon.prefix(key::VDISK_DTLS).await.map_err(arakoon_failure)?;
        let targets = rows.into_iter().filter_map(|(key, row)| {
            Some((key::vdisk_of_dtl(&key)?, DtlRecord::from_record(row).ok()?.facts.targets))
        });
        Ok(targets.collect())
    }

    /// The domains of edges, for each vDisk that one of them is attached to.
    async fn edges(
        &self,
        named: &[(String, String)],
    ) -> Result<BTreeMap<VdiskId, String>, Failure> {
        let arakoon = self.admin.arakoon(self.cluster, LIMIT);
        let rows = arakoon.prefix(key::ATTACHMENTS).await.map_err(arakoon_failure)?;
        let mut edges = BTreeMap::new();
        let mut attached: Vec<String> = Vec::new();
        for (row_key, row) in rows {
            let Some(vdisk) = key::vdisk_of_attachments(&row_key) else { continue };
            let Ok(record) = AttachmentsRecord::from_record(row) else { continue };
            attached.extend(record.live.iter().map(|live| live.edge_name.clone()));
            let where_of = |name: &str| named.iter().find(|(edge, _)| edge == name);
            let said = record.live.iter().find_map(|live| where_of(&live.edge_name));
            let domain = said.map(|(_, domain)| domain.clone());
            edges.extend(domain.or_else(|| near_edge(&record)).map(|domain| (vdisk, domain)));
        }
        if let Some((name, _)) = named.iter().find(|(name, _)| !attached.contains(name)) {
            eprintln!(
                "edge {name} is attached to no vDisk: `holdfast vdisk show` names those that are"
            );
        }
        Ok(edges)
    }

    /// What each vDisk was asked lately, as its owner says.
    async fn loads(&self, known: &Known) -> Result<BTreeMap<VdiskId, u64>, Failure> {
        let shown = self.details(known).await?.into_iter();
        let load = |(vdisk, (_, details)): (VdiskId, (Instant, Value))| {
            Some((vdisk, details["demand"]["load"].as_u64()?))
        };
        Ok(shown.filter_map(load).collect())
    }

    /// The writes of each vDisk per second.
    async fn writes(&self, known: &Known) -> Result<BTreeMap<VdiskId, u64>, Failure> {
        let last = |(at, details): &(Instant, Value)| Some((*at, details["last_lsn"].as_u64()?));
        let before = self.details(known).await?;
        tokio::time::sleep(WATCHED).await;
        let after = self.details(known).await?;
        let writes = after.iter().filter_map(|(vdisk, after)| {
            Some((*vdisk, per_second(last(before.get(vdisk)?)?, last(after)?)))
        });
        Ok(writes.collect())
    }

    /// What the owner of each vDisk says of it, and when it did; of those that are served.
    async fn details(&self, known: &Known) -> Result<BTreeMap<VdiskId, (Instant, Value)>, Failure> {
        if ASKED_MAX < known.vdisks.len() {
            return Err(Failure::failed(format!(
                "{} vDisks are too many to watch; say --by number",
                known.vdisks.len()
            )));
        }
        let mut shown = BTreeMap::new();
        for vdisk in known.vdisks.iter().filter(|vdisk| !vdisk.deleting) {
            let routers = Routers { admin: self.admin, cluster: self.cluster };
            let ask = Ask {
                name: &vdisk.name,
                method: method::SHOW_VDISK,
                limit: Duration::from_secs(1),
            };
            let name = VdiskName { name: vdisk.name.clone() };
            let Ok(info) = routers.ask::<_, VdiskInfo>(ask, &name).await else { continue };
            let details = serde_json::from_str(&info.details_json).unwrap_or_default();
            shown.insert(vdisk.vdisk, (Instant::now(), details));
        }
        Ok(shown)
    }
}

/// Asking takes time, and the longer the more vDisks there are: what counts is when this one was asked.
fn per_second((before, first): (Instant, u64), (after, last): (Instant, u64)) -> u64 {
    let millis = after.duration_since(before).as_millis().max(1);
    let writes = u128::from(last.saturating_sub(first)) * 1000 / millis;
    u64::try_from(writes).unwrap_or(u64::MAX)
}

const fn nothing(alike: Measure) -> &'static str {
    match alike {
        Measure::Number => "nothing to move: the routers in service carry alike\n",
        Measure::Load => {
            "nothing to move: no hand-over would make what is asked of the routers clearly more alike\n"
        }
    }
}

/// Of the vDisk, and of both routers.
fn names(known: &Known, step: &Move) -> (String, String, String) {
    let vdisk = known.vdisks.iter().find(|vdisk| vdisk.vdisk == step.vdisk);
    let router = |id: RouterId| {
        let router = known.routers.iter().find(|router| router.router == id);
        router.map_or_else(|| id.to_string(), |router| router.name.clone())
    };
    let vdisk = vdisk.map_or_else(|| step.vdisk.to_string(), |vdisk| vdisk.name.clone());
    (vdisk, router(step.from), router(step.to))
}

fn show_plan(
    known: &Known,
    moves: &[Move],
    (alike, format): (Measure, Format),
) -> Result<(), Failure> {
    let named = moves.iter().map(|step| (names(known, step), step.why.name()));
    if format.json {
        let row = |((vdisk, from, to), why): ((String, String, String), &str)| json!({"vdisk": vdisk, "from": from, "to": to, "why": why});
        return print_json(&json!({"plan": named.map(row).collect::<Vec<_>>()}));
    }
    if moves.is_empty() {
        print(nothing(alike));
        return Ok(());
    }
    let mut table = Table::new(&["VDISK", "FROM", "TO", "WHY"]);
    for ((vdisk, from, to), why) in named {
        table.row(vec![Cell::plain(vdisk), Cell::plain(from), Cell::plain(to), Cell::plain(why)]);
    }
    print(&table.render(Paint::on(&std::io::stdout())));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_are_counted_per_second_however_long_the_asking_takes() {
        let start = Instant::now();
        let after = |millis| start + Duration::from_millis(millis);
        assert_eq!(per_second((start, 100), (after(2000), 2100)), 1000);
        assert_eq!(per_second((start, 100), (after(14_000), 14_100)), 1000, "hundreds were asked");
        assert_eq!(per_second((start, 100), (start, 100)), 0);
        assert_eq!(per_second((start, 100), (after(2000), 7)), 0, "it was opened anew");
    }

    #[test]
    fn an_edge_is_given_with_its_domain() {
        assert_eq!(edge("edge-1=dc/r/h"), Ok(("edge-1".to_owned(), "dc/r/h".to_owned())));
        for wrong in ["edge-1", "=dc", "edge-1=a//b"] {
            assert!(edge(wrong).unwrap_err().contains("dc1/rack1/host1"), "{wrong}");
        }
    }
}
