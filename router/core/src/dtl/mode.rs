//! Changing the mode of a vDisk's DTL while the vDisk is served.
//!
//! | change | how |
//! | --- | --- |
//! | sync ↔ async, number of targets | in place: [`Owner::set_mode`], [`Owner::want_targets`] |
//! | to or from none | through the backend: requests wait until everything is there, then one transaction changes owner's epoch, mode and facts, and the vDisk is opened anew under them |
//!
//! With a DTL what is flushed lies at its targets too, without one in the owner's log alone. Where nothing lies above the
//! backend's head neither side of the change has to know what the other promised: the new record promises the head and
//! names nobody, whoever claims by the old one asserts bytes that are gone, and no lease or log of the old regime counts.
//!
//! Generations go on through a time without a DTL, so that a log left at a former target never counts for a new one.
//!
//! Invariant: a record that is made here can be opened by whoever reads the backend's head (L7).
//!
//! [`Owner::set_mode`]: super::owner::Owner::set_mode
//! [`Owner::want_targets`]: super::owner::Owner::want_targets

use model::{Epoch, Lsn};
use wire::dtl::{DtlFacts, DtlMode, DtlState};
use wire::facts::DtlRecord;

/// How a mode becomes another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// There is no DTL, and none is wanted.
    Nothing,
    /// By the owner's core; also where it is that mode already, as arakoon may say another one still.
    InPlace,
    ThroughBackend,
}

#[must_use]
pub const fn change(now: DtlMode, wanted: DtlMode) -> Change {
    match (now, wanted) {
        (DtlMode::NoTarget, DtlMode::NoTarget) => Change::Nothing,
        (DtlMode::Sync | DtlMode::Async, DtlMode::Sync | DtlMode::Async) => Change::InPlace,
        (DtlMode::NoTarget, DtlMode::Sync | DtlMode::Async)
        | (DtlMode::Sync | DtlMode::Async, DtlMode::NoTarget) => Change::ThroughBackend,
    }
}

/// The record of a vDisk that changes through the backend, which has everything through `head`. `now`: `None` where it
/// never had a DTL.
#[must_use]
pub fn record_after(now: Option<&DtlRecord>, mode: DtlMode, epoch: Epoch, head: Lsn) -> DtlRecord {
    let drained = now.cloned().unwrap_or_else(|| DtlRecord::new(mode)).drained(epoch, head);
    let state = match mode {
        DtlMode::NoTarget => DtlState::Standalone,
        // P13: one that has no target yet. Flushes go to the backend until somebody holds a copy.
        DtlMode::Sync | DtlMode::Async => DtlState::Degraded,
    };
    DtlRecord { mode, facts: DtlFacts { state, ..drained.facts.clone() }, ..drained }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtl::takeover::{Evidence, judge};
    use model::{DtlGeneration, Incarnation, RouterId};
    use std::collections::BTreeMap;
    use wire::dtl::{DtlPromise, Held};

    const MODES: [DtlMode; 3] = [DtlMode::Sync, DtlMode::Async, DtlMode::NoTarget];

    fn in_sync() -> DtlRecord {
        let facts = DtlFacts {
            state: DtlState::InSync,
            generation: DtlGeneration(5),
            targets: vec![RouterId(1)],
            floor: Lsn(12),
            previous: Some(DtlPromise {
                generation: DtlGeneration(4),
                targets: vec![RouterId(2)],
                through: Lsn(9),
            }),
        };
        let session = Incarnation(7);
        let (epoch, log_id, log_from) = (Epoch(3), 8, 9);
        DtlRecord { epoch, session, log_id, log_from, facts, ..DtlRecord::new(DtlMode::Sync) }
    }

    #[test]
    fn only_a_change_to_or_from_none_goes_through_the_backend() {
        for now in MODES {
            for wanted in MODES {
                let none = [now, wanted].map(|mode| mode == DtlMode::NoTarget);
                let expected = match none {
                    [true, true] => Change::Nothing,
                    [false, false] => Change::InPlace,
                    [true, false] | [false, true] => Change::ThroughBackend,
                };
                assert_eq!(change(now, wanted), expected);
            }
        }
    }

    #[test]
    fn l7_after_a_change_nobody_but_the_backend_is_needed() {
        for now in [None, Some(in_sync())] {
            for mode in MODES {
                let after = record_after(now.as_ref(), mode, Epoch(4), Lsn(30));
                assert_eq!((after.mode, after.epoch, after.session.0), (mode, Epoch(4), 0));
                assert_eq!((after.log_id, after.facts.floor), (0, Lsn(30)));
                let (epochs, me) = (BTreeMap::new(), RouterId(9));
                let evidence = Evidence {
                    me,
                    facts: &after.facts,
                    mode,
                    head: Lsn(30),
                    own_last: None,
                    epochs: &epochs,
                    sealed: &[],
                };
                assert_eq!(judge(&evidence).unwrap().last, Lsn(30));
            }
        }
    }

    /// P10: what a target of former times still has is of a generation that doesn't come back.
    #[test]
    fn p10_a_log_from_before_the_time_without_a_dtl_never_counts() {
        let none = record_after(Some(&in_sync()), DtlMode::NoTarget, Epoch(4), Lsn(30));
        let back = record_after(Some(&none), DtlMode::Sync, Epoch(6), Lsn(40));
        assert!(in_sync().facts.generation < none.facts.generation);
        assert!(none.facts.generation < back.facts.generation);
        let held = Held {
            generation: DtlGeneration(5),
            epoch: Epoch(3),
            base: Lsn(10),
            last: Lsn(50),
            synced: Lsn(50),
            damaged: false,
        };
        let (epochs, sealed) = (BTreeMap::new(), [(RouterId(1), vec![held])]);
        let evidence = Evidence {
            me: RouterId(9),
            facts: &back.facts,
            mode: back.mode,
            head: Lsn(40),
            own_last: None,
            epochs: &epochs,
            sealed: &sealed,
        };
        assert_eq!(judge(&evidence).unwrap().last, Lsn(40));
    }
}
