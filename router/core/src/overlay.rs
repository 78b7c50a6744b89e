//! What is accepted but not in the page map yet: the newest pending content of each cluster. Reads look here first.
//!
//! Invariant: intervals of unmaps don't overlap, and a cluster that has pending data has no newer pending unmap.

use std::collections::BTreeMap;

use bytes::Bytes;
use model::{Cluster, ClusterRange, Lsn};

/// What the overlay says about a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lookup {
    /// Pending data and its checksum.
    Data(Bytes, u32),
    /// Pending unmap: reads as zeroes.
    Unmapped,
    /// Nothing pending: ask the page map.
    Below,
}

/// A run of clusters of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunKind {
    Data,
    Hole,
    Below,
}

#[derive(Debug)]
struct Latest {
    lsn: Lsn,
    data: Bytes,
    checksum: u32,
}

#[derive(Debug, Clone, Copy)]
struct Unmap {
    end: u64,
    lsn: Lsn,
}

/// Pending state of one vDisk.
#[derive(Debug, Default)]
pub struct Overlay {
    latest: BTreeMap<u64, Latest>,
    /// By start.
    unmaps: BTreeMap<u64, Unmap>,
}

impl Overlay {
    #[must_use]
    pub fn lookup(&self, cluster: Cluster) -> Lookup {
        if let Some(latest) = self.latest.get(&cluster.0) {
            return Lookup::Data(latest.data.clone(), latest.checksum);
        }
        match self.unmap_at(cluster.0) {
            Some(_) => Lookup::Unmapped,
            None => Lookup::Below,
        }
    }

    /// Returns the LSN of the pending data that was replaced.
    pub fn write(&mut self, lsn: Lsn, cluster: Cluster, data: Bytes, checksum: u32) -> Option<Lsn> {
        self.latest.insert(cluster.0, Latest { lsn, data, checksum }).map(|old| old.lsn)
    }

    pub fn unmap(&mut self, lsn: Lsn, range: ClusterRange) {
        if range.is_empty() {
            return;
        }
        let (start, end) = (range.start.0, range.end.0);
        let dead: Vec<u64> = self.latest.range(start..end).map(|(cluster, _)| *cluster).collect();
        for cluster in dead {
            self.latest.remove(&cluster);
        }
        self.carve(start, end);
        self.unmaps.insert(start, Unmap { end, lsn });
    }

    /// The write `lsn` of `cluster` is in the page map now.
    pub fn drop_write(&mut self, lsn: Lsn, cluster: Cluster) {
        if self.latest.get(&cluster.0).is_some_and(|latest| latest.lsn == lsn) {
            self.latest.remove(&cluster.0);
        }
    }

    /// The unmap `lsn` is in the page map now.
    pub fn drop_unmap(&mut self, lsn: Lsn, range: ClusterRange) {
        let mine: Vec<u64> = self
            .unmaps
            .range(range.start.0..range.end.0)
            .filter(|(_, unmap)| unmap.lsn == lsn)
            .map(|(start, _)| *start)
            .collect();
        for start in mine {
            self.unmaps.remove(&start);
        }
    }

    /// The kind of `cluster` and how many clusters of that kind follow, up to `end`.
    #[must_use]
    pub fn run(&self, cluster: Cluster, end: Cluster) -> (RunKind, u64) {
        let at = cluster.0;
        let mut written = at;
        for (next, _) in self.latest.range(at..end.0) {
            if *next != written {
                break;
            }
            written += 1;
        }
        if written != at {
            return (RunKind::Data, written - at);
        }
        let next_write = self.latest.range(at..end.0).next().map_or(end.0, |(next, _)| *next);
        if let Some(unmap) = self.unmap_at(at) {
            return (RunKind::Hole, unmap.end.min(next_write) - at);
        }
        let next_unmap = self.unmaps.range(at..end.0).next().map_or(end.0, |(next, _)| *next);
        (RunKind::Below, next_unmap.min(next_write) - at)
    }

    /// Clusters at or above `cluster` with pending data?
    #[must_use]
    pub fn has_data_from(&self, cluster: Cluster) -> bool {
        self.latest.range(cluster.0..).next().is_some()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.latest.is_empty() && self.unmaps.is_empty()
    }

    fn unmap_at(&self, at: u64) -> Option<Unmap> {
        self.unmaps.range(..=at).next_back().map(|(_, unmap)| *unmap).filter(|u| at < u.end)
    }

    /// Cuts `start..end` out of all intervals.
    fn carve(&mut self, start: u64, end: u64) {
        if let Some((&left, &unmap)) = self.unmaps.range(..start).next_back()
            && start < unmap.end
        {
            self.unmaps.insert(left, Unmap { end: start, ..unmap });
            if end < unmap.end {
                self.unmaps.insert(end, unmap);
            }
        }
        let inside: Vec<(u64, Unmap)> =
            self.unmaps.range(start..end).map(|(s, u)| (*s, *u)).collect();
        for (left, unmap) in inside {
            self.unmaps.remove(&left);
            if end < unmap.end {
                self.unmaps.insert(end, unmap);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CLUSTERS: u64 = 24;

    #[derive(Debug, Clone)]
    enum Step {
        Write(u64),
        Unmap(u64, u64),
        /// Everything up to a share of the LSNs so far went into the map.
        Commit(u8),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..CLUSTERS).prop_map(Step::Write),
            (0..CLUSTERS, 1u64..12).prop_map(|(s, n)| Step::Unmap(s, n)),
            any::<u8>().prop_map(Step::Commit),
        ]
    }

    fn kind_of(lookup: &Lookup) -> RunKind {
        match lookup {
            Lookup::Data(..) => RunKind::Data,
            Lookup::Unmapped => RunKind::Hole,
            Lookup::Below => RunKind::Below,
        }
    }

    proptest! {
        /// Overlay over map = a plain array, whatever is committed when.
        #[test]
        fn the_newest_pending_change_is_seen(steps in proptest::collection::vec(step(), 0..80)) {
            let mut overlay = Overlay::default();
            let mut log: Vec<(Lsn, Step)> = Vec::new();
            let (mut map, mut expected) = (vec![0u64; 24], vec![0u64; 24]);
            let mut committed = 0usize;
            for step in steps {
                let lsn = Lsn(log.len() as u64 + 1);
                match step {
                    Step::Write(c) => {
                        overlay.write(lsn, Cluster(c), Bytes::from(lsn.0.to_le_bytes().to_vec()), 0);
                        expected[model::usize_of(c)] = lsn.0;
                        log.push((lsn, step));
                    }
                    Step::Unmap(s, n) => {
                        overlay.unmap(lsn, ClusterRange::new(Cluster(s), n).unwrap());
                        for c in s..(s + n).min(CLUSTERS) {
                            expected[model::usize_of(c)] = 0;
                        }
                        log.push((lsn, step));
                    }
                    Step::Commit(share) => {
                        let upto = committed + (log.len() - committed) * usize::from(share) / 255;
                        for (lsn, step) in &log[committed..upto] {
                            match step {
                                Step::Write(c) => {
                                    map[model::usize_of(*c)] = lsn.0;
                                    overlay.drop_write(*lsn, Cluster(*c));
                                }
                                Step::Unmap(s, n) => {
                                    for c in *s..(s + n).min(CLUSTERS) {
                                        map[model::usize_of(c)] = 0;
                                    }
                                    overlay.drop_unmap(*lsn, ClusterRange::new(Cluster(*s), *n).unwrap());
                                }
                                Step::Commit(_) => {}
                            }
                        }
                        committed = upto;
                    }
                }
                let mut at = 0;
                while at < CLUSTERS {
                    let (kind, len) = overlay.run(Cluster(at), Cluster(CLUSTERS));
                    prop_assert!(len > 0);
                    for c in at..(at + len).min(CLUSTERS) {
                        let lookup = overlay.lookup(Cluster(c));
                        prop_assert_eq!(kind_of(&lookup), kind);
                        let seen = match lookup {
                            Lookup::Data(data, _) => u64::from_le_bytes(data[..].try_into().unwrap()),
                            Lookup::Unmapped => 0,
                            Lookup::Below => map[model::usize_of(c)],
                        };
                        prop_assert_eq!(seen, expected[model::usize_of(c)]);
                    }
                    at += len;
                }
            }
        }
    }
}
