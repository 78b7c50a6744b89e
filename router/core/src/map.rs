//! What a TLog changes in a page map, page by page. The same code follows commits and rebuilds a lost map (L6).
//!
//! Invariant: applying TLogs in order of commit to an empty map gives the map, whatever was cached or stored in between.

use std::collections::BTreeMap;

use model::Cluster;

use crate::page::{Location, PAGE_CLUSTERS, Page, digest_of, place};
use crate::tlog::Tlog;

/// Whole pages up to this many are cleared one by one; more are dropped by range.
const PAGES_ONE_BY_ONE: u64 = 16;

/// Changes of one TLog, in the order in which they apply.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Delta {
    /// Pages that become empty as a whole: `start..end`.
    pub dropped: Vec<(u64, u64)>,
    /// Changes within pages, after the drops.
    pub pages: BTreeMap<u64, PageDelta>,
}

/// Changes within one page.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PageDelta {
    /// `start..end` indexes to clear, before the writes.
    pub cleared: Vec<(usize, usize)>,
    pub written: Vec<(usize, Location)>,
}

/// How much of a vDisk is mapped, and a digest of all of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    pub mapped: u64,
    pub digest: u64,
}

impl Totals {
    pub const fn add(&mut self, digest: u64) {
        self.mapped += 1;
        self.digest = self.digest.wrapping_add(digest);
    }

    pub const fn remove(&mut self, digest: u64) {
        self.mapped = self.mapped.saturating_sub(1);
        self.digest = self.digest.wrapping_sub(digest);
    }

    /// A whole page is there.
    pub fn add_page(&mut self, number: u64, page: &Page) {
        for (index, location) in page.mapped() {
            self.add(digest_of(cluster_at(number, index), location));
        }
    }

    /// A whole page goes.
    pub fn remove_page(&mut self, number: u64, page: &Page) {
        for (index, location) in page.mapped() {
            self.remove(digest_of(cluster_at(number, index), location));
        }
    }
}

#[must_use]
pub const fn cluster_at(page: u64, index: usize) -> Cluster {
    Cluster(page * PAGE_CLUSTERS + index as u64)
}

impl Delta {
    #[must_use]
    pub fn of(tlog: &Tlog) -> Self {
        let mut delta = Self::default();
        for range in &tlog.unmaps {
            delta.unmap(range.start.0, range.end.0);
        }
        for (cluster, location) in tlog.locations() {
            let (page, index) = place(cluster);
            delta.pages.entry(page).or_default().written.push((index, location));
        }
        delta
    }

    fn unmap(&mut self, start: u64, end: u64) {
        let whole_start = start.div_ceil(PAGE_CLUSTERS);
        let whole_end = end / PAGE_CLUSTERS;
        if whole_start + PAGES_ONE_BY_ONE < whole_end {
            self.dropped.push((whole_start, whole_end));
            self.clear(start, whole_start * PAGE_CLUSTERS);
            self.clear(whole_end * PAGE_CLUSTERS, end);
        } else {
            self.clear(start, end);
        }
    }

    fn clear(&mut self, start: u64, end: u64) {
        let mut at = start;
        while at < end {
            let (page, index) = place(Cluster(at));
            let stop = end.min((page + 1) * PAGE_CLUSTERS);
            let len = model::usize_of(stop - at);
            self.pages.entry(page).or_default().cleared.push((index, index + len));
            at = stop;
        }
    }
}

impl PageDelta {
    pub fn apply(&self, number: u64, page: &mut Page, totals: &mut Totals) {
        for (start, end) in &self.cleared {
            for index in *start..*end {
                if let Some(old) = page.set(index, None) {
                    totals.remove(digest_of(cluster_at(number, index), old));
                }
            }
        }
        for (index, location) in &self.written {
            let cluster = cluster_at(number, *index);
            if let Some(old) = page.set(*index, Some(*location)) {
                totals.remove(digest_of(cluster, old));
            }
            totals.add(digest_of(cluster, *location));
        }
    }
}

/// A whole map in memory: the model that stored maps are compared with.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MemoryMap {
    pages: BTreeMap<u64, Page>,
    pub totals: Totals,
}

impl MemoryMap {
    pub fn apply(&mut self, tlog: &Tlog) {
        let delta = Delta::of(tlog);
        for (start, end) in delta.dropped {
            let gone: Vec<u64> = self.pages.range(start..end).map(|(page, _)| *page).collect();
            for number in gone {
                let page = self.pages.remove(&number).expect("just seen");
                self.totals.remove_page(number, &page);
            }
        }
        for (number, changes) in delta.pages {
            let page = self.pages.entry(number).or_default();
            changes.apply(number, page, &mut self.totals);
            if page.is_empty() {
                self.pages.remove(&number);
            }
        }
    }

    #[must_use]
    pub fn get(&self, cluster: Cluster) -> Option<Location> {
        let (page, index) = place(cluster);
        self.pages.get(&page).and_then(|page| page.get(index))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tlog::Run;
    use model::{ClusterRange, Epoch, Lsn, ObjectId, ScoNumber, VdiskId};
    use proptest::prelude::*;

    fn tlog(number: u64, unmaps: &[(u64, u64)], runs: &[(u64, u32)]) -> Tlog {
        Tlog {
            object: ObjectId { vdisk: VdiskId(1), epoch: Epoch(1), number: ScoNumber(number) },
            first_lsn: Lsn(number),
            last_lsn: Lsn(number),
            size_bytes: 0,
            epochs: Vec::new(),
            unmaps: unmaps
                .iter()
                .map(|(start, count)| ClusterRange::new(Cluster(*start), *count).unwrap())
                .collect(),
            runs: runs
                .iter()
                .map(|(start, count)| Run { start: Cluster(*start), count: *count })
                .collect(),
            applied: Vec::new(),
        }
    }

    #[test]
    fn sixteen_tebibytes_are_unmapped_by_one_drop() {
        let delta = Delta::of(&tlog(1, &[(0, 1 << 32)], &[]));
        assert_eq!(delta.dropped, vec![(0, 1 << 23)]);
        assert!(delta.pages.is_empty());
    }

    proptest! {
        #[test]
        fn a_map_follows_its_tlogs(
            steps in proptest::collection::vec((proptest::collection::vec((0u64..40_000, 0u64..20_000), 0..3),
                                               proptest::collection::vec((0u64..40_000, 1u32..600), 0..4)), 1..12)
        ) {
            let mut map = MemoryMap::default();
            let mut expected: BTreeMap<u64, Location> = BTreeMap::new();
            for (at, (unmaps, runs)) in steps.iter().enumerate() {
                let tlog = tlog(at as u64 + 1, unmaps, runs);
                map.apply(&tlog);
                for (start, count) in unmaps {
                    expected.retain(|c, _| *c < *start || start + count <= *c);
                }
                expected.extend(tlog.locations().map(|(c, l)| (c.0, l)));
            }
            for cluster in 0..62_000 {
                prop_assert_eq!(map.get(Cluster(cluster)), expected.get(&cluster).copied());
            }
            let mut totals = Totals::default();
            for (cluster, location) in &expected {
                totals.add(digest_of(Cluster(*cluster), *location));
            }
            prop_assert_eq!(map.totals, totals);
        }
    }
}
