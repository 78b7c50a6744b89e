//! What a restart may believe of its log, joined to what the backend holds.
//!
//! A record counts only if its epoch owned its LSN: no later epoch began at or below it (P10); nor does it count when
//! another router owned the vDisk since, whatever that one wrote. What counts must join the
//! backend's head without a hole; else the vDisk doesn't start by itself, and the answer says exactly what is missing (L7).
//!
//! Invariant: the LSNs of a replay are `head + 1 ..= n` without gaps.

use std::collections::BTreeMap;

use model::{Epoch, LogId, Lsn, VdiskId};

use crate::log::{Damage, Found, Scan};

/// The facts that decide about one vDisk.
#[derive(Debug, Clone)]
pub struct Facts<'a> {
    pub vdisk: VdiskId,
    /// The backend's head.
    pub head_lsn: Lsn,
    /// (epoch → first LSN) as the backend's TLogs say.
    pub epochs: &'a BTreeMap<Epoch, Lsn>,
    /// The log that may hold what isn't in the backend, as the vDisk's record says; 0 = drained cleanly.
    pub promised_log: LogId,
    /// What the log holds before this position is of an ownership that is over.
    pub log_from: u64,
    pub own_log: LogId,
    /// Losses that an operator accepted.
    pub accepted: &'a [Accepted],
}

/// A loss that an operator accepted: what it took never counts again, whatever log shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accepted {
    /// The last epoch of the history that lost its end.
    pub epoch: Epoch,
    /// The first LSN that was lost.
    pub from: Lsn,
    /// Damage in this log below here is what was accepted; 0 = it was another log that lost something.
    pub log_end: u64,
}

impl Accepted {
    fn took(&self, record: &crate::log::record::Record) -> bool {
        record.epoch <= self.epoch && self.from <= record.lsn
    }
}

/// Which records of a scan are replayed, in LSN order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Replay {
    /// Indexes into [`Scan::records`].
    pub records: Vec<usize>,
}

/// Why a vDisk can't start by itself (L7).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Gap {
    #[error(
        "the write log {promised:016x} may hold writes above LSN {head} that aren't in the backend, and this router's log is {own:016x}"
    )]
    LogGone { promised: u64, own: u64, head: Lsn },
    #[error("LSNs {from} to {to} are neither in the backend (head {head}) nor in the write log")]
    Hole { from: Lsn, to: Lsn, head: Lsn },
    #[error(
        "the write log is damaged at positions {from} to {to}, below what was synced; writes above LSN {last} may be missing"
    )]
    Damaged { from: u64, to: u64, last: Lsn },
}

impl Gap {
    /// The first LSN that may be missing, and the last if that is known.
    #[must_use]
    pub const fn lost(&self) -> (Lsn, Option<Lsn>) {
        match self {
            Self::LogGone { head, .. } => (head.next(), None),
            // What lies behind a hole can't be believed either: who wrote it had read what is missing.
            Self::Hole { from, .. } => (*from, None),
            Self::Damaged { last, .. } => (last.next(), None),
        }
    }
}

/// # Errors
/// When what is found isn't contiguous with what was promised.
pub fn plan(facts: &Facts<'_>, scan: &Scan) -> Result<Replay, Gap> {
    if facts.promised_log != facts.own_log {
        if facts.promised_log == LogId::ZERO {
            return Ok(Replay::default());
        }
        let (promised, own) = (facts.promised_log.0, facts.own_log.0);
        return Err(Gap::LogGone { promised, own, head: facts.head_lsn });
    }
    let mine: Vec<(usize, &Found)> = scan
        .records
        .iter()
        .enumerate()
        .filter(|(_, found)| found.record.vdisk == facts.vdisk)
        .filter(|(_, found)| facts.log_from <= found.record.position)
        .filter(|(_, found)| !facts.accepted.iter().any(|loss| loss.took(&found.record)))
        .collect();
    let first_of = first_lsns(facts, &mine);
    let mut chosen: BTreeMap<Lsn, (Epoch, usize)> = BTreeMap::new();
    for (index, found) in &mine {
        let (epoch, lsn) = (found.record.epoch, found.record.lsn);
        if lsn <= facts.head_lsn || !owned(&first_of, epoch, lsn) {
            continue;
        }
        let better = chosen.get(&lsn).is_none_or(|(other, _)| *other <= epoch);
        if better {
            chosen.insert(lsn, (epoch, *index));
        }
    }
    let mut next = facts.head_lsn.next();
    for lsn in chosen.keys() {
        if *lsn != next {
            return Err(Gap::Hole { from: next, to: Lsn(lsn.0 - 1), head: facts.head_lsn });
        }
        next = next.next();
    }
    let last = Lsn(next.0 - 1);
    for damage in &scan.damages {
        if !excused(damage, facts, &mine, last) {
            return Err(Gap::Damaged { from: damage.from, to: damage.to, last });
        }
    }
    Ok(Replay { records: chosen.values().map(|(_, index)| *index).collect() })
}

/// First LSN of each epoch: from the TLogs, and from the records themselves.
fn first_lsns(facts: &Facts<'_>, mine: &[(usize, &Found)]) -> BTreeMap<Epoch, Lsn> {
    let mut first_of = facts.epochs.clone();
    for (_, found) in mine {
        let first = first_of.entry(found.record.epoch).or_insert(found.record.lsn);
        *first = (*first).min(found.record.lsn);
    }
    first_of
}

fn owned(first_of: &BTreeMap<Epoch, Lsn>, epoch: Epoch, lsn: Lsn) -> bool {
    first_of.range(epoch.next()..).all(|(_, first)| lsn < *first)
}

/// Damage takes nothing from this vDisk when it lies before what counts, when the record is another's, is in the backend or
/// lies elsewhere too, or when a later record of this vDisk is there: then all before it were found or are in the backend, or a hole was seen. Not so a
/// copy: it lies behind records that are younger.
fn excused(damage: &Damage, facts: &Facts<'_>, mine: &[(usize, &Found)], last: Lsn) -> bool {
    let accepted = facts.accepted.iter().map(|loss| loss.log_end).max().unwrap_or(0);
    if damage.to <= facts.log_from.max(accepted) {
        return true;
    }
    if let Some(record) = &damage.record {
        return record.vdisk != facts.vdisk || record.lsn <= last;
    }
    let proves = |found: &Found| {
        !found.record.copied && damage.to <= found.record.position && last <= found.record.lsn
    };
    mine.iter().any(|(_, found)| proves(found))
}
