//! Cables between owners and targets that swallow what is sent over them, one way or both, and tell nobody.
//!
//! Without them every owner that is over is told so by the first target that it asks, and never needs its own clock.

use std::collections::BTreeMap;

use model::RouterId;
use sim::{Chance, Random};

#[derive(Debug, Clone, Copy, Default)]
pub struct Cut {
    pub requests: bool,
    pub answers: bool,
}

impl Cut {
    fn any(random: &mut Random) -> Self {
        let requests = random.happens(Chance::percent(60));
        Self { requests, answers: !requests || random.happens(Chance::percent(50)) }
    }
}

/// What is cut now.
#[derive(Debug, Default)]
pub struct Cuts {
    targets: BTreeMap<RouterId, Cut>,
    /// By life: an owner that hears from no target any more.
    lives: BTreeMap<usize, Cut>,
}

impl Cuts {
    /// A cable may be cut, or mended.
    pub fn happen(&mut self, targets: &[RouterId], random: &mut Random) {
        let target = *random.pick(targets).unwrap();
        match self.targets.remove(&target) {
            // Cut for longer than it lies.
            Some(cut) if random.happens(Chance::percent(60)) => {
                self.targets.insert(target, cut);
            }
            None if random.happens(Chance::percent(12)) => {
                self.targets.insert(target, Cut::any(random));
            }
            Some(_) | None => {}
        }
    }

    /// An owner is cut from everybody, for ever.
    pub fn isolate(&mut self, life: usize, random: &mut Random) {
        self.lives.insert(life, Cut::any(random));
    }

    fn any(&self, life: usize, target: RouterId, cut: impl Fn(&Cut) -> bool) -> bool {
        self.targets.get(&target).is_some_and(&cut) || self.lives.get(&life).is_some_and(&cut)
    }

    pub fn swallows_request(&self, life: usize, target: RouterId) -> bool {
        self.any(life, target, |cut| cut.requests)
    }

    pub fn swallows_answer(&self, life: usize, target: RouterId) -> bool {
        self.any(life, target, |cut| cut.answers)
    }
}
