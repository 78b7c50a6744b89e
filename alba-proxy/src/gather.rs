//! Fetches ranges of fragments as a [`ReadPlan`] wishes, until every column is there, can be rebuilt, or is lost.
//!
//! Invariant: bytes that come out were verified against the OSD's checksum of them, and whole fragments against the
//! manifest's too. What was damaged or missing is noted and queued for repair.

use crate::maintain::RepairJob;
use crate::object::Loaded;
use crate::osds::{Got, PutError, Wanted};
use crate::proxy::Proxy;
use crate::read::Patience;
use alba_proxy_core::Place;
use alba_proxy_core::read::{Answer, ColumnState, Fetch, ReadPlan};
use bytes::Bytes;
use model::OsdId;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::Instant;
use wire::asd::Priority;

/// An OSD that is silent for longer is asked round.
pub const HEDGE_AFTER: Duration = Duration::from_millis(300);

/// A range of a fragment that is wanted.
#[derive(Debug, Clone)]
pub struct Want {
    pub fragment: u8,
    pub range: Range<u32>,
    pub trust: Trust,
}

/// Whether a fragment's own bytes may answer for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    Own,
    /// They are known to be bad: rebuild.
    OthersOnly,
}

/// What came of a want.
#[derive(Debug, Clone)]
pub enum Column {
    Direct(Bytes),
    /// The same range of k other fragments, cut to what they store.
    Rebuild(Vec<(u8, Bytes)>),
    Lost,
}

type Answered = (OsdId, Vec<Fetch>, Result<Vec<Got>, PutError>);

struct Gathering<'a> {
    proxy: &'a Arc<Proxy>,
    loaded: &'a Arc<Loaded>,
    priority: Priority,
    plan: ReadPlan,
    found: BTreeMap<(usize, u8), Bytes>,
    under_way: JoinSet<Answered>,
}

impl Proxy {
    /// One result per want, in order.
    pub async fn gather(
        self: &Arc<Self>,
        loaded: &Arc<Loaded>,
        wants: &[Want],
        priority: Priority,
        patience: Patience,
    ) -> Vec<Column> {
        let columns: Vec<(u8, Range<u32>)> =
            wants.iter().map(|want| (want.fragment, want.range.clone())).collect();
        let plan = ReadPlan::new(&loaded.manifest, &columns, |osd| self.osds.rank(osd));
        let under_way = JoinSet::new();
        let found = BTreeMap::new();
        let mut gathering = Gathering { proxy: self, loaded, priority, plan, found, under_way };
        let mut fetches = Vec::new();
        for (column, want) in wants.iter().enumerate() {
            if want.trust == Trust::OthersOnly {
                fetches.extend(gathering.plan.answered(column, want.fragment, Answer::Bad));
            }
        }
        fetches.extend(gathering.plan.start());
        gathering.send(fetches);
        gathering.run(patience).await;
        (0..wants.len()).map(|column| gathering.column(column, wants[column].fragment)).collect()
    }

    /// A fragment isn't what it should be: counted, told, and queued for repair.
    pub fn note_damage(&self, loaded: &Loaded, fragment: u8, what: Damage, priority: Priority) {
        let place = loaded.manifest.fragments[usize::from(fragment)].place;
        match what {
            Damage::Corrupt => self.counters.corrupt_fragments.add(1),
            Damage::Missing => self.counters.missing_fragments.add(1),
        }
        let object = loaded.manifest.object;
        tracing::warn!(%object, fragment, ?place, ?what, "a fragment is bad; it is rebuilt from others");
        // Repairs don't beget repairs, or two that can't succeed would call each other for ever (L8).
        if priority == Priority::Maintenance {
            return;
        }
        let job = RepairJob { namespace: loaded.namespace, object, fragment };
        // A full queue forgets: the next read notices again (L8).
        let _ = self.repairs.try_send(job);
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Damage {
    Corrupt,
    Missing,
}

impl Gathering<'_> {
    /// One request per OSD for all that is wanted from it now.
    fn send(&mut self, fetches: Vec<Fetch>) {
        let mut by_osd: BTreeMap<OsdId, Vec<Fetch>> = BTreeMap::new();
        for fetch in fetches {
            by_osd.entry(fetch.osd).or_default().push(fetch);
        }
        for (osd, fetches) in by_osd {
            let wanted: Vec<Wanted> = fetches
                .iter()
                .map(|fetch| Wanted {
                    key: self.loaded.key(fetch.fragment),
                    range: fetch.range.clone(),
                })
                .collect();
            let (proxy, priority) = (Arc::clone(self.proxy), self.priority);
            self.under_way.spawn(async move {
                let got = proxy.osds.get(osd, &wanted, priority).await;
                (osd, fetches, got)
            });
        }
    }

    async fn run(&mut self, (deadline, hedge_after): Patience) {
        let mut hedge_at = Instant::now() + hedge_after;
        while !self.plan.is_settled() {
            tokio::select! {
                Some(answer) = self.under_way.join_next() => {
                    if let Ok(answer) = answer {
                        self.take(answer);
                    }
                }
                () = tokio::time::sleep_until(hedge_at) => {
                    hedge_at = Instant::now() + HEDGE_AFTER;
                    let round = self.plan.hedge();
                    self.send(round);
                }
                () = tokio::time::sleep_until(deadline) => return,
            }
        }
    }

    fn take(&mut self, (osd, fetches, got): Answered) {
        let answers = match got {
            Ok(answers) => answers.into_iter().map(Some).collect(),
            Err(error) => {
                tracing::debug!(%osd, %error, "fragments can't be read from an OSD");
                vec![None; fetches.len()]
            }
        };
        for (fetch, answer) in fetches.into_iter().zip(answers) {
            let good = match answer {
                None => Answer::Bad,
                Some(Got::Found(bytes, crc)) => self.keep(&fetch, bytes, crc),
                Some(Got::Absent) => {
                    self.note_damage(fetch.fragment, Damage::Missing);
                    Answer::Bad
                }
                Some(Got::Corrupt) => {
                    self.note_damage(fetch.fragment, Damage::Corrupt);
                    Answer::Bad
                }
            };
            let next = self.plan.answered(fetch.column, fetch.fragment, good);
            self.send(next);
        }
    }

    fn note_damage(&self, fragment: u8, what: Damage) {
        self.proxy.note_damage(self.loaded, fragment, what, self.priority);
    }

    /// A whole fragment must also be the one that the manifest means.
    fn keep(&mut self, fetch: &Fetch, bytes: Bytes, crc: u32) -> Answer {
        let record = self.loaded.manifest.fragments[usize::from(fetch.fragment)];
        if fetch.range == (0..record.len) && crc != record.crc {
            self.note_damage(fetch.fragment, Damage::Corrupt);
            return Answer::Bad;
        }
        self.found.insert((fetch.column, fetch.fragment), bytes);
        Answer::Good
    }

    fn column(&self, column: usize, fragment: u8) -> Column {
        let found = |fragment: u8| self.found.get(&(column, fragment)).cloned();
        match self.plan.state(column) {
            ColumnState::Direct => found(fragment).map_or(Column::Lost, Column::Direct),
            ColumnState::Rebuild(sources) => Column::Rebuild(
                // What wasn't fetched stores nothing in the range: zeroes, as the code sees it.
                sources.into_iter().map(|at| (at, found(at).unwrap_or_default())).collect(),
            ),
            ColumnState::Pending | ColumnState::Lost => Column::Lost,
        }
    }
}

/// Whether the fragment's OSD is known here at all.
pub fn osd_of(loaded: &Loaded, fragment: u8) -> Option<OsdId> {
    match loaded.manifest.fragments.get(usize::from(fragment))?.place {
        Place::Stored(osd) => Some(osd),
        Place::Hole | Place::Empty => None,
    }
}
