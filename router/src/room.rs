//! Room in the write log for what recovery takes over from a DTL target.
//!
//! A router without it isn't given a vDisk: it claims none from an owner that is gone. One that finds out only when the
//! vDisk is its own already, because others filled the log meanwhile or its disk is full, has let go of the epoch of that
//! try, as an owner with a gap has: it says so, yields the epoch to a router that is asked for the vDisk and has room
//! (P19), and tries again itself only once there may be room here.
//!
//! Invariant: what has its place in the log by a try that found no room is released, and nothing was served or proposed by
//! the epoch of that try.

use std::time::Duration;

use model::{Epoch, RouterId, VdiskId};
use router_core::dtl::takeover::Source;
use router_core::log::Placement;
use router_core::log::pool::Entry;
use router_core::log::record::record_len;
use runtime::clock::boot_now;
use runtime::random::jitter;
use wire::dtl::LogStatus;
use wire::facts::VdiskRecord;

use crate::facts::Read;
use crate::open::OpenError;
use crate::router::Router;
use crate::state::protection::Placing;

/// Between two looks for room.
const LOOK: Duration = Duration::from_secs(5);
/// How long recovery waits for the write log's next segment; a disk that gives none within this is no place for a vDisk.
const SEGMENT_PATIENCE: Duration = Duration::from_secs(10);
const SEGMENT_PAUSE: Duration = Duration::from_millis(10);

/// About how much the log would have to take, as targets say.
pub(crate) fn needed(source: Option<&Source>, shown: &[(RouterId, Vec<LogStatus>)]) -> u64 {
    let Some(source) = source else { return 0 };
    let logs = shown.iter().filter(|(router, _)| *router == source.router);
    let mut logs = logs.flat_map(|(_, logs)| logs);
    logs.find(|log| log.held.generation == source.generation).map_or(0, |log| log.bytes)
}

impl Router {
    /// A target's log is longer than a segment: each further one is waited for, as it must be zero-written and listed.
    pub(crate) async fn place_all(
        &self,
        epoch: Epoch,
        entries: &[Entry],
    ) -> Result<Vec<Placement>, OpenError> {
        let (mut placed, mut moved) = (Vec::with_capacity(entries.len()), boot_now());
        loop {
            let before = placed.len();
            let placing = self.state().place_recovered(entries, &mut placed);
            self.wake_append();
            if before < placed.len() {
                moved = boot_now();
            }
            let stuck = SEGMENT_PATIENCE < boot_now().since(moved) || self.stop.is_triggered();
            match placing {
                Placing::Done => return Ok(placed),
                Placing::Later if !stuck => tokio::time::sleep(SEGMENT_PAUSE).await,
                Placing::Later | Placing::NoRoom => {
                    let len =
                        |entry: &Entry| record_len(entry.checksums.len(), entry.payload.len());
                    let needed = entries.iter().map(|entry| model::u64_of(len(entry))).sum();
                    let mut state = self.state();
                    for placement in placed {
                        state.log.release(placement.lap, placement.bytes);
                    }
                    let why = state.lacks_room(needed);
                    let why = why.unwrap_or_else(|| "its next segment doesn't come".to_owned());
                    return Err(OpenError::NoRoom { epoch, needed, why });
                }
            }
        }
    }

    /// Returns when there may be room for so much, or when another router has taken the vDisk, as the next try finds out.
    pub(crate) async fn until_room(&self, vdisk: VdiskId, needed: u64) {
        loop {
            tokio::select! {
                () = self.stop.wait() => return,
                () = tokio::time::sleep(jitter(LOOK)) => {}
            }
            if self.state().lacks_room(needed).is_none() {
                return;
            }
            let read = self.facts.vdisk(vdisk).await;
            let mine =
                |read: &Read<VdiskRecord>| read.value.owner == self.id && !read.value.deleting;
            if read.is_ok_and(|read| !read.as_ref().is_some_and(mine)) {
                return;
            }
        }
    }
}
