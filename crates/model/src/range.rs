//! Half-open ranges of bytes and of clusters of a vDisk.

use crate::{CLUSTER_SIZE, Cluster};

/// `start..end` in bytes. Invariant: `start <= end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ByteRange {
    start: u64,
    end: u64,
}

impl ByteRange {
    /// `None` when `start + len` overflows.
    #[must_use]
    pub const fn new(start: u64, len: u64) -> Option<Self> {
        match start.checked_add(len) {
            Some(end) => Some(Self { start, end }),
            None => None,
        }
    }

    #[must_use]
    pub const fn start(self) -> u64 {
        self.start
    }

    #[must_use]
    pub const fn end(self) -> u64 {
        self.end
    }

    #[must_use]
    pub const fn len(self) -> u64 {
        self.end - self.start
    }

    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.start == self.end
    }

    /// True when both ends lie on cluster borders.
    #[must_use]
    pub const fn is_aligned(self) -> bool {
        self.start.is_multiple_of(CLUSTER_SIZE) && self.end.is_multiple_of(CLUSTER_SIZE)
    }

    /// Every cluster that the range touches, whole or in part.
    #[must_use]
    pub const fn clusters_touched(self) -> ClusterRange {
        ClusterRange {
            start: Cluster(self.start / CLUSTER_SIZE),
            end: Cluster(self.end.div_ceil(CLUSTER_SIZE)),
        }
    }

    /// The clusters that lie wholly inside; empty when there is none.
    #[must_use]
    pub const fn clusters_within(self) -> ClusterRange {
        let start = self.start.div_ceil(CLUSTER_SIZE);
        let end = self.end / CLUSTER_SIZE;
        ClusterRange { start: Cluster(start), end: Cluster(if end < start { start } else { end }) }
    }

    #[must_use]
    pub const fn overlaps(self, other: Self) -> bool {
        self.start < other.end && other.start < self.end
    }
}

/// `start..end` in clusters. Invariant: `start <= end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ClusterRange {
    pub start: Cluster,
    pub end: Cluster,
}

impl ClusterRange {
    #[must_use]
    pub const fn new(start: Cluster, count: u64) -> Option<Self> {
        match start.0.checked_add(count) {
            Some(end) => Some(Self { start, end: Cluster(end) }),
            None => None,
        }
    }

    #[must_use]
    pub const fn count(self) -> u64 {
        self.end.0 - self.start.0
    }

    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.start.0 == self.end.0
    }

    #[must_use]
    pub fn contains(self, cluster: Cluster) -> bool {
        self.start <= cluster && cluster < self.end
    }

    pub fn iter(self) -> impl Iterator<Item = Cluster> {
        (self.start.0..self.end.0).map(Cluster)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn touched_and_within_differ_by_the_ragged_ends() {
        let range = ByteRange::new(4095, 4098).unwrap();
        assert_eq!((range.clusters_touched().start.0, range.clusters_touched().end.0), (0, 3));
        assert_eq!((range.clusters_within().start.0, range.clusters_within().end.0), (1, 2));
        let tiny = ByteRange::new(10, 5).unwrap();
        assert!(tiny.clusters_within().is_empty());
        assert_eq!(tiny.clusters_touched().count(), 1);
        assert!(ByteRange::new(u64::MAX, 1).is_none());
    }
}
