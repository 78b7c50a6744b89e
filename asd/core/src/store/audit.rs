//! Whether an index still is all that was written to it, before anything is believed of it.
//!
//! A database that checks each of its blocks can still lose one of its files as a whole: with part of its own list of
//! files gone it opens without the rest, older entries come to light, and newer batches hide that something is missing.
//! Every batch carries totals of all entries ([`Meta`]); here they are counted anew.
//!
//! It reads the whole index, a hundred bytes per fragment, at every start: what follows from a missing entry is a
//! fragment that reads as absent, or a segment freed while it is needed.
//!
//! Invariant: an index that passes has exactly the entries that its meta row was written with.

use super::recover::PAGE;
use crate::index::{IndexError, Lookup, Meta, SegmentRow};
use crate::ledger::entry_len;
use crate::record::Kind;
use model::Lap;
use std::collections::BTreeMap;

/// # Errors
/// [`IndexError::Damaged`] when entries, totals and segments don't agree.
pub(super) fn audit(
    index: &impl Lookup,
    meta: &Meta,
    rows: &BTreeMap<Lap, SegmentRow>,
) -> Result<(), IndexError> {
    let mut found = Meta::default();
    let mut live: BTreeMap<Lap, u64> = BTreeMap::new();
    let mut start: Vec<u8> = Vec::new();
    loop {
        let page = index.entries_from(&start, PAGE)?;
        let Some((last, _)) = page.last() else { break };
        start = [&last[..], &[0]].concat();
        for (key, entry) in &page {
            found.digest = found.digest.wrapping_add(entry.digest(key));
            *live.entry(entry.at.lap).or_default() += entry_len(key, *entry);
            if entry.kind == Kind::Put {
                found.fragments += 1;
                found.live_bytes += u64::from(entry.data_len);
            }
        }
    }
    let is = (found.digest, found.fragments, found.live_bytes);
    if is != (meta.digest, meta.fragments, meta.live_bytes) {
        return Err(IndexError::Damaged("entries are missing, or not the newest".to_owned()));
    }
    for (lap, row) in rows {
        if live.remove(lap).unwrap_or(0) != row.live {
            return Err(IndexError::Damaged(format!("the row of lap {lap} isn't the newest")));
        }
    }
    match live.keys().next() {
        Some(lap) => Err(IndexError::Damaged(format!("the row of lap {lap} is missing"))),
        None => Ok(()),
    }
}
