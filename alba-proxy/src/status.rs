//! Counters and the `status` answer: an operator never learns of danger from data loss (L9).

use crate::osds::OsdView;
use model::{NamespaceId, ObjectId};
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// Lost objects that are remembered by name; further ones are only counted.
const LOST_MAX: usize = 100;

/// A number that only grows, or a gauge.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    pub fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What happened since the process started.
#[derive(Debug, Default)]
pub struct Counters {
    pub puts: Counter,
    pub reads: Counter,
    pub degraded_reads: Counter,
    pub corrupt_fragments: Counter,
    pub missing_fragments: Counter,
    pub repaired_fragments: Counter,
    pub filled_holes: Counter,
    pub unreadable_reads: Counter,
    /// As of the last look at all namespaces.
    pub holes: Counter,
    lost: Mutex<BTreeMap<(NamespaceId, ObjectId), String>>,
}

impl Counters {
    /// An object can't be read now. True when that is news.
    pub fn lost(&self, object: (NamespaceId, ObjectId), problem: &str) -> bool {
        self.unreadable_reads.add(1);
        let mut lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        let news = !lost.contains_key(&object);
        if news && lost.len() < LOST_MAX {
            lost.insert(object, problem.to_owned());
        }
        news
    }

    /// It could be read again, or is gone. True when that is news.
    pub fn found(&self, object: (NamespaceId, ObjectId)) -> bool {
        let mut lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        !lost.is_empty() && lost.remove(&object).is_some()
    }

    /// Those that are remembered.
    pub fn lost_now(&self) -> Vec<(NamespaceId, ObjectId)> {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner).keys().copied().collect()
    }

    fn lost_objects(&self) -> Vec<LostObject> {
        let lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = |((_, object), problem): (&(NamespaceId, ObjectId), &String)| LostObject {
            object: object.to_string(),
            problem: problem.clone(),
        };
        lost.iter().map(entry).collect()
    }
}

#[derive(Debug, Serialize)]
struct LostObject {
    object: String,
    problem: String,
}

#[derive(Debug, Serialize)]
struct OsdStatus {
    name: String,
    osd: String,
    state: &'static str,
    capacity_bytes: u64,
    used_bytes: u64,
    free_bytes: u64,
    corruptions: u64,
}

/// `details_json` of the status.
#[derive(Debug, Serialize)]
struct Details<'a> {
    backend: &'a str,
    osds: Vec<OsdStatus>,
    policies: Option<String>,
    active_policy: Option<String>,
    holes: u64,
    degraded_reads: u64,
    corrupt_fragments: u64,
    missing_fragments: u64,
    repaired_fragments: u64,
    filled_holes: u64,
    unreadable_reads: u64,
    lost_objects: Vec<LostObject>,
    puts: u64,
    reads: u64,
}

/// What a status says besides the counters.
pub struct Surroundings<'a> {
    pub backend: &'a str,
    pub osds: Vec<OsdView>,
    pub policies: Option<String>,
    /// What a write would use now.
    pub active_policy: Option<String>,
}

pub fn details_json(counters: &Counters, surroundings: Surroundings<'_>) -> String {
    let osd = |view: OsdView| OsdStatus {
        name: view.name,
        osd: view.osd.to_string(),
        state: view.condition.name(),
        capacity_bytes: view.capacity_bytes,
        used_bytes: view.used_bytes,
        free_bytes: view.capacity_bytes.saturating_sub(view.used_bytes),
        corruptions: view.corruptions,
    };
    let details = Details {
        backend: surroundings.backend,
        osds: surroundings.osds.into_iter().map(osd).collect(),
        policies: surroundings.policies,
        active_policy: surroundings.active_policy,
        holes: counters.holes.get(),
        degraded_reads: counters.degraded_reads.get(),
        corrupt_fragments: counters.corrupt_fragments.get(),
        missing_fragments: counters.missing_fragments.get(),
        repaired_fragments: counters.repaired_fragments.get(),
        filled_holes: counters.filled_holes.get(),
        unreadable_reads: counters.unreadable_reads.get(),
        lost_objects: counters.lost_objects(),
        puts: counters.puts.get(),
        reads: counters.reads.get(),
    };
    serde_json::to_string(&details).expect("numbers and text always become JSON")
}
