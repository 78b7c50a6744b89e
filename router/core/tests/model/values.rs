//! Sets of small numbers, and histories: who wrote each LSN.
//!
//! Invariant: what lies beyond a history's end is zero, so equal histories are equal.

use std::collections::BTreeMap;

use model::{Epoch, Lsn};

use crate::state::WRITES;

/// A set of small numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Set(pub u8);

impl Set {
    pub fn one(member: usize) -> Self {
        Self(1 << member)
    }
    pub fn has(self, member: usize) -> bool {
        self.0 & (1 << member) != 0
    }
    pub fn with(self, member: usize) -> Self {
        Self(self.0 | (1 << member))
    }
    pub fn without(self, member: usize) -> Self {
        Self(self.0 & !(1 << member))
    }
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
    pub fn len(self) -> u32 {
        self.0.count_ones()
    }
    pub fn covers(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
    pub fn iter(self) -> impl Iterator<Item = usize> {
        (0..8).filter(move |member| self.has(*member))
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Record {
    pub epoch: u8,
    /// From 1 on.
    pub write: u8,
}

/// Records of LSN 1 to `len`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct History {
    pub len: u8,
    records: [Record; WRITES],
}

impl History {
    pub fn at(&self, lsn: u8) -> Record {
        self.records[usize::from(lsn) - 1]
    }
    pub fn push(&mut self, record: Record) {
        self.records[usize::from(self.len)] = record;
        self.len += 1;
    }
    pub fn prefix(&self, len: u8) -> Self {
        let mut cut = *self;
        for record in &mut cut.records[usize::from(len.min(self.len))..] {
            *record = Record::default();
        }
        cut.len = len.min(self.len);
        cut
    }
    pub fn records(&self) -> &[Record] {
        &self.records[..usize::from(self.len)]
    }
    pub fn position(&self, write: u8) -> Option<u8> {
        (1..=self.len).find(|lsn| self.at(*lsn).write == write)
    }
    pub fn begins_with(&self, other: &Self) -> bool {
        self.records().starts_with(other.records())
    }
    /// (epoch → first LSN), as TLogs say.
    pub fn epochs(&self) -> BTreeMap<Epoch, Lsn> {
        let mut first = BTreeMap::new();
        for lsn in 1..=self.len {
            first.entry(Epoch(self.at(lsn).epoch.into())).or_insert(Lsn(lsn.into()));
        }
        first
    }
}
