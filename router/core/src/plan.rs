//! How a request of any offset and length becomes whole clusters.
//!
//! A write becomes one record of whole clusters; the clusters at its ragged ends are read first and merged. An unmap
//! becomes up to three: a ragged head written as data, the whole clusters as *one* range record, a ragged tail.

use bytes::{Bytes, BytesMut};
use model::{ByteRange, Cluster, ClusterRange};

use crate::{CLUSTER, crc32c};

/// Clusters of a request that it covers only in part: first and last, at most.
#[must_use]
pub fn ragged(range: ByteRange) -> Vec<Cluster> {
    let touched = range.clusters_touched();
    if range.is_empty() {
        return Vec::new();
    }
    let mut out = Vec::new();
    let first = touched.start;
    let last = Cluster(touched.end.0 - 1);
    let whole = range.clusters_within();
    if !whole.contains(first) {
        out.push(first);
    }
    if last != first && !whole.contains(last) {
        out.push(last);
    }
    out
}

/// (start within the cluster, length) of the part of `cluster` that lies in `range`.
#[must_use]
pub fn part(range: ByteRange, cluster: Cluster) -> (usize, usize) {
    let base = cluster.0 * CLUSTER as u64;
    let start = range.start().max(base);
    let end = range.end().min(base + CLUSTER as u64);
    (model::usize_of(start - base), model::usize_of(end - start))
}

/// The parts of `payload` per cluster touched, in order.
pub fn parts(range: ByteRange, payload: &[u8]) -> impl Iterator<Item = &[u8]> {
    range.clusters_touched().iter().map(move |cluster| {
        let (start, len) = part(range, cluster);
        let from = model::usize_of(cluster.0 * CLUSTER as u64 + start as u64 - range.start());
        &payload[from..from + len]
    })
}

/// Do the checksums the edge computed match the payload that arrived?
#[must_use]
pub fn checksums_match(range: ByteRange, payload: &[u8], checksums: &[u32]) -> bool {
    model::u64_of(checksums.len()) == range.clusters_touched().count()
        && parts(range, payload).zip(checksums).all(|(part, sum)| crc32c(part) == *sum)
}

/// Whole clusters with the payload laid over what was there. `old` gives the content of ragged clusters.
#[must_use]
pub fn merge(range: ByteRange, payload: &[u8], old: impl Fn(Cluster) -> Bytes) -> Bytes {
    let touched = range.clusters_touched();
    let mut out = BytesMut::with_capacity(model::usize_of(touched.count()) * CLUSTER);
    let mut rest = payload;
    for cluster in touched.iter() {
        let (start, len) = part(range, cluster);
        let (now, later) = rest.split_at(len);
        rest = later;
        if len == CLUSTER {
            out.extend_from_slice(now);
        } else {
            let base = out.len();
            out.extend_from_slice(&old(cluster));
            out[base + start..base + start + len].copy_from_slice(now);
        }
    }
    out.freeze()
}

/// What an unmap does, in the order in which it is applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UnmapStep {
    /// Write this cluster: old content with a part zeroed.
    Write(Cluster, Bytes),
    Range(ClusterRange),
}

/// `old` gives the content of ragged clusters, `None` for those that are unmapped: zeroing them changes nothing.
#[must_use]
pub fn unmap(range: ByteRange, old: impl Fn(Cluster) -> Option<Bytes>) -> Vec<UnmapStep> {
    let mut steps = Vec::new();
    let zeroed = |cluster: Cluster| {
        old(cluster).map(|content| {
            let (start, len) = part(range, cluster);
            let mut content = BytesMut::from(&content[..]);
            content[start..start + len].fill(0);
            UnmapStep::Write(cluster, content.freeze())
        })
    };
    let whole = range.clusters_within();
    let ragged = ragged(range);
    let (head, tail) = match ragged[..] {
        [] => (None, None),
        [only] if whole.is_empty() || only < whole.start => (Some(only), None),
        [only] => (None, Some(only)),
        [head, tail, ..] => (Some(head), Some(tail)),
    };
    steps.extend(head.and_then(zeroed));
    if !whole.is_empty() {
        steps.push(UnmapStep::Range(whole));
    }
    steps.extend(tail.and_then(zeroed));
    if steps.is_empty() {
        // It changes nothing, but a request without a record is forgotten in a crash: its replay would zero what was
        // written there since, and the number of one of no bytes would be a hole again (P3).
        let start = whole.start;
        let nothing = ClusterRange { start, end: start };
        let unmapped = |at: &Cluster| ClusterRange { start: *at, end: Cluster(at.0 + 1) };
        steps.push(UnmapStep::Range(ragged.first().map_or(nothing, unmapped)));
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn old_disk() -> Vec<u8> {
        (1..=8).flat_map(|fill| [fill; CLUSTER]).collect()
    }

    fn cluster_of(disk: &[u8], cluster: Cluster) -> Bytes {
        let at = model::usize_of(cluster.0) * CLUSTER;
        Bytes::copy_from_slice(&disk[at..at + CLUSTER])
    }

    #[test]
    fn zeroing_what_is_unmapped_leaves_a_record_all_the_same() {
        let range = ByteRange::new(4096 * 3 + 512, 1024).unwrap();
        let three = ClusterRange { start: Cluster(3), end: Cluster(4) };
        assert_eq!(unmap(range, |_| None), [UnmapStep::Range(three)]);
        let nothing = ClusterRange { start: Cluster(0), end: Cluster(0) };
        let steps = unmap(ByteRange::new(0, 0).unwrap(), |_| None);
        assert_eq!(steps, [UnmapStep::Range(nothing)], "a number is used up");
    }

    proptest! {
        #[test]
        fn a_merged_write_changes_exactly_its_bytes(start in 0usize..20000, len in 1usize..12000) {
            let mut disk = old_disk();
            let range = ByteRange::new(start as u64, len as u64).unwrap();
            let payload = vec![0xee; len];
            let merged = merge(range, &payload, |cluster| cluster_of(&disk, cluster));
            let mut expected = disk.clone();
            expected[start..start + len].fill(0xee);
            let at = model::usize_of(range.clusters_touched().start.0) * CLUSTER;
            disk[at..at + merged.len()].copy_from_slice(&merged);
            prop_assert_eq!(disk, expected);
        }

        #[test]
        fn an_unmap_zeroes_exactly_its_bytes(start in 0usize..20000, len in 1usize..12000, hole in 0u64..8) {
            let mut disk = old_disk();
            let hole_at = model::usize_of(hole) * CLUSTER;
            disk[hole_at..hole_at + CLUSTER].fill(0);
            let range = ByteRange::new(start as u64, len as u64).unwrap();
            let mut expected = disk.clone();
            expected[start..start + len].fill(0);
            let steps = unmap(range, |c| (c != Cluster(hole)).then(|| cluster_of(&disk, c)));
            let ranges = steps.iter().filter(|s| matches!(s, UnmapStep::Range(_))).count();
            prop_assert!(ranges <= 1 && steps.len() <= 3);
            for step in steps {
                let (at, content) = match step {
                    UnmapStep::Write(c, content) => (model::usize_of(c.0) * CLUSTER, content),
                    UnmapStep::Range(r) => {
                        (model::usize_of(r.start.0) * CLUSTER, Bytes::from(vec![0; model::usize_of(r.count()) * CLUSTER]))
                    }
                };
                disk[at..at + content.len()].copy_from_slice(&content);
            }
            prop_assert_eq!(disk, expected);
        }

        #[test]
        fn checksums_are_per_cluster_touched(start in 0u64..9000, len in 1u64..9000) {
            let range = ByteRange::new(start, len).unwrap();
            let payload: Vec<u8> = (0..len).map(|at| u8::try_from(at % 251).unwrap()).collect();
            let sums: Vec<u32> = parts(range, &payload).map(crc32c).collect();
            prop_assert_eq!(parts(range, &payload).map(<[u8]>::len).sum::<usize>() as u64, len);
            prop_assert!(checksums_match(range, &payload, &sums));
            let mut bad = payload.clone();
            bad[0] ^= 1;
            prop_assert!(!checksums_match(range, &bad, &sums));
            prop_assert!(!checksums_match(range, &payload, &sums[1..]));
        }
    }
}
