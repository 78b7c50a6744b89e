//! Where a page map that lacks much is taken from: its own table, another router's copy, the newest checkpoint, or all
//! TLogs since the vDisk's creation (L6).
//!
//! Whatever it is taken from, the TLogs behind it are replayed, and it is refused where it doesn't join them. So a choice
//! costs time, never truth; one that disappoints is followed by the next.
//!
//! Invariant: what is taken ends at least [`Want::least`] SCOs from the start, and not behind the backend's head.

use std::time::Duration;

use model::{ObjectId, RouterId, ScoNumber};

use crate::checkpoint::Checkpoint;
use crate::follow::{Followed, ranked};
use crate::map_state::MapState;

/// Routers that are asked: a dead one costs the patience for one answer.
const ASKED_MAX: usize = 5;
/// What replaying a TLog costs, in bytes of a map that could be fetched in the same time: a request, and what applying it
/// changes.
const TLOG_COST: u64 = 256 << 10;
/// Bytes of a mapped cluster on the way.
const LOCATION_BYTES: u64 = 8;
/// What looking for a map may take in all where nothing comes; then the TLogs are followed. A map is derived (L6): it
/// doesn't hold up an opening for which an edge waits 15 s.
const SEARCH: Duration = Duration::from_secs(6);
/// For a whole map of no size, and how many of its bytes a second there must be: else the next place may be quicker.
const WHOLE: Duration = Duration::from_secs(30);
const BYTES_PER_S: u64 = 10_000_000;
/// For any map: its size is only what another router says.
const WHOLE_MAX: Duration = Duration::from_secs(1800);
/// What following a TLog takes about.
const TLOG_TIME: Duration = Duration::from_millis(5);
const TURN: Duration = Duration::from_secs(2);
const TURN_MAX: Duration = Duration::from_secs(30);

/// How many TLogs fewer to replay make a fetch worth the trouble.
#[must_use]
pub fn worth(checkpoint_every: u64) -> u64 {
    (checkpoint_every / 8).clamp(2, 512)
}

/// What a map lacks, and what would help.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Want {
    /// A map that ends before this SCO helps too little.
    pub least: ScoNumber,
}

/// `None`: replaying what is missing is as good as anything.
#[must_use]
pub fn wanted(own: &MapState, head: Option<ObjectId>, worth: u64) -> Option<Want> {
    let held = own.object.map_or(0, |object| object.number.0);
    // What it holds is a guess at how much would come.
    let gain = worth.max(own.totals.mapped.saturating_mul(LOCATION_BYTES) / TLOG_COST);
    (gain <= own.lag(head)).then(|| Want { least: ScoNumber(held.saturating_add(gain)) })
}

/// How long a map of so many mapped clusters may take on its way, once it comes.
#[must_use]
pub fn patience(mapped: u64) -> Duration {
    let bytes = mapped.saturating_mul(LOCATION_BYTES);
    WHOLE_MAX.min(WHOLE + Duration::from_secs(bytes / BYTES_PER_S))
}

/// How long who lacks so many TLogs waits for its turn to fetch a map: no longer than following them would take about, so
/// that waiting in vain at most doubles the time.
#[must_use]
pub fn turn_patience(lag: u64) -> Duration {
    let follow = TLOG_TIME.saturating_mul(u32::try_from(lag).unwrap_or(u32::MAX));
    follow.clamp(TURN, TURN_MAX)
}

/// What is left for places that give nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Search {
    left: Duration,
}

impl Default for Search {
    fn default() -> Self {
        Self { left: SEARCH }
    }
}

impl Search {
    /// For the next place, which needs no more than `most`; `None`: enough was spent.
    #[must_use]
    pub fn patience(self, most: Duration) -> Option<Duration> {
        (!self.left.is_zero()).then(|| most.min(self.left))
    }

    /// So long nothing came.
    pub fn wasted(&mut self, time: Duration) {
        self.left = self.left.saturating_sub(time);
    }
}

/// A place to take a map from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Its copy, if it ends at or behind this SCO.
    Router(RouterId, ScoNumber),
    Checkpoint(Checkpoint),
}

/// All that may help, best first.
#[must_use]
pub fn origins(
    want: &Want,
    me: RouterId,
    followed: &Followed<'_>,
    checkpoints: Vec<Checkpoint>,
    head: Option<ObjectId>,
) -> Vec<Origin> {
    let helps = |checkpoint: &Checkpoint| {
        want.least <= checkpoint.map.number && Some(checkpoint.map) <= head
    };
    let checkpoints: Vec<Checkpoint> = checkpoints.into_iter().filter(helps).collect();
    // A copy that ends before the newest checkpoint is of no more use than that.
    let least = checkpoints.first().map_or(want.least, |newest| newest.map.number);
    let routers = ranked(followed).into_iter().filter(|router| *router != me).take(ASKED_MAX);
    let routers = routers.map(|router| Origin::Router(router, least));
    routers.chain(checkpoints.into_iter().map(Origin::Checkpoint)).collect()
}

/// What took the place of a checkpoint that went away while it was read, if anything did. An owner deletes one only once a
/// newer one is complete.
#[must_use]
pub fn successor(
    gone: &Checkpoint,
    listed: Vec<Checkpoint>,
    head: Option<ObjectId>,
) -> Option<Checkpoint> {
    listed.into_iter().find(|one| gone.map < one.map && Some(one.map) <= head)
}

/// Why a map isn't taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// As a stored one would be refused.
    #[error("it is ahead of the backend")]
    Ahead,
    #[error("it is no newer than what is here")]
    Old,
}

/// Whether a map of this state may be taken.
///
/// # Errors
/// Why not.
pub fn fits(state: &MapState, least: ScoNumber, head: Option<ObjectId>) -> Result<(), Unfit> {
    match state.object {
        Some(object) if object.number < least => Err(Unfit::Old),
        None => Err(Unfit::Old),
        object if head < object => Err(Unfit::Ahead),
        Some(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::map::Totals;
    use model::{Epoch, Lsn, VdiskId};
    use proptest::prelude::*;

    const VDISK: VdiskId = VdiskId(1);

    fn object(number: u64) -> Option<ObjectId> {
        let named =
            ObjectId { vdisk: VDISK, epoch: Epoch(1 + number / 7), number: ScoNumber(number) };
        (0 < number).then_some(named)
    }

    fn state(number: u64, mapped: u64) -> MapState {
        let totals = Totals { mapped, digest: 0 };
        MapState { object: object(number), last_lsn: Lsn(number), totals, epochs: 1 }
    }

    fn checkpoint(number: u64) -> Checkpoint {
        let first = ObjectId { vdisk: VDISK, epoch: Epoch(1), number: ScoNumber(1) };
        let map = object(number).unwrap();
        Checkpoint { map, last_lsn: Lsn(number), first, lens: vec![1] }
    }

    #[test]
    fn a_map_that_lacks_little_fetches_nothing() {
        let worth = worth(4096);
        assert_eq!(wanted(&state(0, 0), object(100), worth), None);
        assert_eq!(wanted(&state(10_000, 0), object(10_511), worth), None);
        let want = wanted(&state(10_000, 0), object(10_512), worth).unwrap();
        assert_eq!(want.least, ScoNumber(10_512));
        // One that is large rather replays somewhat more than be sent anew.
        let tib = 1 << 28;
        assert_eq!(wanted(&state(10_000, tib), object(18_000), worth), None);
        assert!(wanted(&state(10_000, tib), object(18_192), worth).is_some());
        assert_eq!(wanted(&state(10_000, 0), None, worth), None);
    }

    #[test]
    fn routers_come_before_checkpoints_and_an_old_copy_before_neither() {
        let online = [RouterId(1), RouterId(2), RouterId(3)];
        let followed =
            Followed { vdisk: VDISK, owner: RouterId(1), targets: &[RouterId(3)], online: &online };
        let want = wanted(&state(0, 0), object(1000), 100).unwrap();
        let checkpoints = || vec![checkpoint(900), checkpoint(400), checkpoint(50)];
        let found = origins(&want, RouterId(2), &followed, checkpoints(), object(1000));
        assert_eq!(
            found,
            [
                Origin::Router(RouterId(3), ScoNumber(900)),
                Origin::Router(RouterId(1), ScoNumber(900)),
                Origin::Checkpoint(checkpoint(900)),
                Origin::Checkpoint(checkpoint(400)),
            ]
        );
        // The owner itself, opening; a checkpoint from beyond the head is of another history.
        let found = origins(&want, RouterId(1), &followed, checkpoints(), object(800));
        assert_eq!(found[0], Origin::Router(RouterId(3), ScoNumber(400)));
        assert_eq!(found[1], Origin::Router(RouterId(2), ScoNumber(400)));
        assert_eq!(found[2..], [Origin::Checkpoint(checkpoint(400))]);
    }

    #[test]
    fn a_checkpoint_that_went_away_is_followed_by_a_newer_one_that_isn_t_ahead() {
        let gone = checkpoint(400);
        let listed = |numbers: &[u64]| numbers.iter().map(|number| checkpoint(*number)).collect();
        let found = |numbers: &[u64]| successor(&gone, listed(numbers), object(800));
        assert_eq!(found(&[700, 400, 50]), Some(checkpoint(700)));
        assert_eq!(found(&[900, 700]), Some(checkpoint(700)));
        // It is still listed, or something older: reading again gives the same.
        assert_eq!(found(&[400, 50]), None);
        assert_eq!(found(&[900]), None);
        assert_eq!(found(&[]), None);
    }

    #[test]
    fn patience_grows_with_the_size_and_ends() {
        let (seconds, tib) = (Duration::from_secs, 1 << 28);
        assert_eq!(patience(0), seconds(30));
        // 2 GiB at 10 MB/s.
        assert_eq!(patience(tib), seconds(30 + 214));
        assert_eq!(patience(u64::MAX), seconds(1800), "whatever somebody says");
    }

    #[test]
    fn a_search_in_vain_is_over_long_before_an_edge_gives_up() {
        let (mut search, mut spent) = (Search::default(), Duration::ZERO);
        let most = Duration::from_secs(3);
        while let Some(patience) = search.patience(most) {
            assert!(!patience.is_zero() && patience <= most);
            search.wasted(patience);
            spent += patience;
            assert!(spent <= Duration::from_secs(15) / 2, "{spent:?}");
        }
    }

    proptest! {
        /// Waiting for a turn never costs more than twice what following the TLogs costs, beyond a little.
        #[test]
        fn who_waits_for_a_turn_in_vain_waits_no_longer_than_following_takes(lag: u64) {
            let waits = turn_patience(lag);
            prop_assert!(waits <= TURN.max(TLOG_TIME.saturating_mul(lag.try_into().unwrap_or(u32::MAX))));
            prop_assert!((TURN..=TURN_MAX).contains(&waits));
        }

        #[test]
        fn what_fits_is_between_the_least_and_the_head(own in 0u64..500, head in 0u64..1000, found in 0u64..1000) {
            let own = state(own, 0);
            let Some(want) = wanted(&own, object(head), 20) else {
                prop_assert!(own.lag(object(head)) < 20);
                return Ok(());
            };
            let fits = fits(&state(found, 0), want.least, object(head)).is_ok();
            prop_assert_eq!(fits, want.least.0 <= found && found <= head && 0 < found);
        }
    }
}
