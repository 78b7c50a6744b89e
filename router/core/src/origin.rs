//! Where a page map that lacks much is taken from: its own table, another router's copy, the newest checkpoint, or all
//! TLogs since the vDisk's creation (L6).
//!
//! Whatever it is taken from, the TLogs behind it are replayed, and it is refused where it doesn't join them. So a choice
//! costs time, never truth; one that disappoints is followed by the next.
//!
//! Invariant: what is taken ends at least [`Want::least`] SCOs from the start, and not behind the backend's head.

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

    proptest! {
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
