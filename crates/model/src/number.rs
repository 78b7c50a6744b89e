//! Counted things, one type each. All are plain `u64`s underneath (smaller where said) and order naturally.

use std::fmt;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u64);

        impl $name {
            pub const ZERO: Self = Self(0);

            /// The one after this.
            ///
            /// # Panics
            /// On overflow, which no counter of ours reaches in the life of a cluster.
            #[must_use]
            pub const fn next(self) -> Self {
                match self.0.checked_add(1) {
                    Some(value) => Self(value),
                    None => panic!("counter overflow"),
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number! {
    /// Log sequence number: the order of accepted writes of one vDisk. The first write has LSN 1; 0 means "none yet".
    Lsn
}
number! {
    /// Ownership epoch of a vDisk. Only grows; every open claims the next one (P10). 0 means "never opened".
    Epoch
}
number! {
    /// Which attachment of an edge to a vDisk; a take-over is the next one (P4).
    AttachmentGeneration
}
number! {
    /// Number of a request within one attachment, from 1 (P3).
    RequestSeq
}
number! {
    /// Index of a 4 KiB cluster within a vDisk.
    Cluster
}
number! {
    /// Number of a SCO within (vDisk, epoch).
    ScoNumber
}
number! {
    /// Generation of a page map: a snapshot starts the next one.
    MapGeneration
}
number! {
    /// Which pass over a reused log segment wrote a record (P8).
    Lap
}
number! {
    /// Identity of one write-log directory; drawn at random when it is created (P1).
    LogId
}
number! {
    /// Generation of a vDisk's set of DTL targets: every change of the set, and every claim, is the next one (P11, P13).
    DtlGeneration
}
number! {
    /// Which life of a process; drawn at random at start, so a restart is seen.
    Incarnation
}
number! {
    /// Raft log index at which a key-value change was applied.
    Revision
}

/// Position of a fragment within its stripe: data fragments first, then parity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FragmentIndex(u8);

impl FragmentIndex {
    /// Most fragments (k + m) an object may have.
    pub const COUNT_MAX: u8 = 32;

    #[must_use]
    pub const fn new(raw: u8) -> Option<Self> {
        if raw < Self::COUNT_MAX { Some(Self(raw)) } else { None }
    }

    #[must_use]
    pub const fn get(self) -> u8 {
        self.0
    }

    #[must_use]
    pub const fn as_usize(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for FragmentIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
