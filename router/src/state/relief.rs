//! Room in the log and in memory: what is stored early, and which records move together, so that a vDisk that can't be
//! stored stops nobody but itself (P9).
//!
//! What each vDisk is guaranteed is half of the log in all (`router_core::quota`), counted by its records; what a record
//! pins is a segment. So where the log is nearly full, records that can't leave it are brought together until they fill
//! half of each segment that they pin: then what is guaranteed has room.
//!
//! Invariant: nothing is forgotten here; a record pins its old place until its copy is placed.

use model::{Lap, VdiskId};
use router_core::log::Log;
use router_core::log::pool::Batch;

use super::{Serving, Slot, State};

/// Bytes of records that are moved at a time: writers wait behind them.
const MOVED_MAX: u64 = 8 << 20;
/// Of a segment is still needed at most, when the log is half full: moving the rest costs little.
const NEARLY_DEAD: u64 = 8;
/// The same, of what can't be stored, when a quarter of the log is left.
const SPARSE: u64 = 2;

impl State {
    /// When space runs short: seals units that hold the oldest segment or much memory, so that they are stored and
    /// freed; copies the last records of nearly dead segments forward (P9).
    pub fn relieve(&mut self) {
        let log_short = self.log.capacity() / 2 < self.log.used();
        let memory_short = self.overlay_limit / 2 < self.pending_bytes;
        if !log_short && !memory_short {
            return;
        }
        let oldest = self.log.oldest();
        let share = self.overlay_limit / 4;
        for slot in self.volumes.values_mut() {
            let Slot::Serving(serving) = slot else { continue };
            let pins_oldest = oldest.is_some_and(|lap| serving.core.oldest_lap() == Some(lap));
            let hoards = memory_short && share < serving.core.pending_bytes();
            if pins_oldest || hoards {
                store_early(serving);
            }
        }
        if log_short {
            self.copy_forward();
        }
    }

    /// Somebody waits for room. It may be taken by many units of which none is large, or by one that can't be stored and
    /// pins the oldest segment: the open unit with the most data and the one with the oldest records are stored as well.
    pub fn relieve_waiting(&mut self) {
        self.relieve();
        let open = || {
            let serving = self.volumes.iter().filter_map(|(vdisk, slot)| match slot {
                Slot::Serving(serving) => Some((*vdisk, &serving.core)),
                Slot::Opening(_)
                | Slot::Gap(_)
                | Slot::Fenced(_)
                | Slot::Elsewhere(_)
                | Slot::Deleting => None,
            });
            serving.filter(|(_, core)| core.oldest_open_lap().is_some())
        };
        let largest = open().max_by_key(|(_, core)| core.pending_bytes());
        let oldest = open().min_by_key(|(_, core)| core.oldest_open_lap());
        let chosen: Vec<VdiskId> = largest.into_iter().chain(oldest).map(|(v, _)| v).collect();
        for vdisk in chosen {
            if let Some(Slot::Serving(serving)) = self.volumes.get_mut(&vdisk) {
                store_early(serving);
            }
        }
    }

    /// Segments whose records nobody can move, because their vDisk isn't served, are passed over.
    fn copy_forward(&mut self) {
        let mut left = MOVED_MAX;
        for lap in self.log.sparse(NEARLY_DEAD) {
            left = left.saturating_sub(self.move_on(lap, |_| true));
            if left == 0 {
                return;
            }
        }
        if self.log.used() <= self.log.capacity() / 4 * 3 {
            return;
        }
        // What the backend takes leaves the log by itself.
        for lap in self.log.sparse(SPARSE) {
            left = left.saturating_sub(self.move_on(lap, |serving| serving.degraded.is_some()));
            if left == 0 {
                return;
            }
        }
    }

    /// Says how many bytes of the segment's records went.
    fn move_on(&mut self, lap: Lap, goes: impl Fn(&Serving) -> bool) -> u64 {
        let mut moved = 0;
        for slot in self.volumes.values_mut() {
            if let Slot::Serving(serving) = slot
                && goes(serving)
            {
                moved += copy_from(serving, lap, &mut self.log, &mut self.batch);
            }
        }
        moved
    }
}

fn store_early(serving: &mut Serving) {
    serving.core.seal();
    serving.committer.notify_one();
}

fn copy_from(serving: &mut Serving, lap: Lap, log: &mut Log, batch: &mut Batch) -> u64 {
    let mut moved = 0;
    for (lsn, entry) in serving.core.records_in(lap) {
        let Ok(placement) = log.place(entry, batch) else { break };
        serving.last_end = placement.end;
        if let Some(old) = serving.core.moved(lsn, placement) {
            log.release(old.lap, old.bytes);
            moved += old.bytes;
        }
    }
    moved
}

#[cfg(test)]
mod tests;
