//! Operators change the mode and the number of targets meanwhile, and each change may end at any of its steps.
//!
//! An owner without a DTL has its own log, of which a power cut leaves what was synced and perhaps more; nobody claims from
//! it, and after it died it is opened in place.

use model::{Epoch, Incarnation};
use router_core::dtl::mode::{Change, change, record_after};
use wire::facts::DtlRecord;

use super::*;

const MODES: [DtlMode; 3] = [DtlMode::Sync, DtlMode::Async, DtlMode::NoTarget];

impl World {
    /// An operator wants another mode.
    pub(super) fn change_mode(&mut self) {
        let wanted = *self.random.pick(&MODES).unwrap();
        let (life, copies) = (self.lives.len() - 1, 1 + self.random.index(2));
        let at = &mut self.lives[life];
        if !at.answers() || at.epoch != self.epoch || self.claim.is_some() {
            return;
        }
        match change(self.mode, wanted) {
            Change::Nothing => {}
            Change::InPlace => {
                at.core.set_mode(wanted);
                at.core.want_targets(Some(copies));
                self.mode = wanted;
                self.tally.changes += 1;
                self.progress(life);
            }
            Change::ThroughBackend => {
                at.waits = true;
                // Nothing is taken any more, and the backend has all of it.
                self.head = Lsn(at.view.keys().next_back().copied().unwrap_or(0)).max(self.head);
                at.core.backend_has(self.head);
                if self.random.happens(Chance::percent(80)) {
                    let (from, head) = (self.facts.clone(), self.head);
                    self.post(Mail::Change { life, from, to: wanted, head });
                } else {
                    self.open_anew(life);
                }
            }
        }
    }

    /// Arakoon decides about a change through the backend; who asked may not hear of it, or die.
    pub(super) fn decide_change(&mut self, life: usize, from: &DtlFacts, to: DtlMode, head: Lsn) {
        let committed = self.lives[life].epoch == self.epoch && self.facts == *from;
        if committed {
            let now = DtlRecord {
                epoch: self.epoch,
                mode: self.mode,
                session: Incarnation(1),
                log_id: 1,
                log_from: 0,
                facts: self.facts.clone(),
            };
            self.epoch = self.epoch.next();
            let after = record_after(Some(&now), to, self.epoch, head);
            (self.mode, self.facts) = (after.mode, after.facts);
            self.tally.changes += 1;
        }
        let known = self.random.happens(Chance::percent(80));
        self.post(Mail::Changed { life, refused: known && !committed });
    }

    /// Its process goes on or is started anew; somebody else may have been quicker.
    pub(super) fn open_anew(&mut self, life: usize) {
        self.lives[life].dead = true;
        if life + 1 == self.lives.len() && self.claim.is_none() {
            self.claim();
        }
    }

    /// Without a DTL: what the own log kept is all that there is above the head.
    pub(super) fn open_in_place(&mut self) {
        self.epoch = self.epoch.next();
        let life = self.lives.last().expect("there is always one");
        let (synced, last) = (life.local.max(self.head), self.lineage.keys().next_back());
        let beyond = last.copied().unwrap_or(0).saturating_sub(synced.0);
        let kept = if life.mode == DtlMode::NoTarget {
            Lsn(synced.0 + self.random.below(beyond + 1))
        } else {
            // It comes to be without one, and nothing was needed but the backend.
            self.head
        };
        self.lives.iter_mut().for_each(|life| life.dead = true);
        let flushed = self.lives.iter().map(|life| life.flushed).max().unwrap_or_default();
        assert!(flushed <= kept, "flushed through {flushed}, and the log ends at {kept}");
        self.lineage.retain(|lsn, _| *lsn <= kept.0);
        let lsns = self.head.0 + 1..=kept.0;
        let entries: Vec<Entry> = lsns.map(|lsn| entry(self.lineage[&lsn], lsn)).collect();
        let (facts, epochs, head) = (self.facts.clone(), BTreeMap::<Epoch, Lsn>::new(), self.head);
        let (me, mode, own_last) = (RouterId(100), self.mode, Some(kept));
        let evidence =
            Evidence { me, facts: &facts, mode, head, own_last, epochs: &epochs, sealed: &[] };
        let plan = judge(&evidence).expect("nobody else is needed");
        self.begin(self.epoch, plan.next, &entries);
    }
}
