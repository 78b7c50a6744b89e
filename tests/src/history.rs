//! What was asked and answered, and the checker that judges what is read.
//!
//! Every unit of a vDisk is a register. The history keeps for each the operations that touched it, with the tick at
//! which each began and was acknowledged. An operation *precedes* another if it was acknowledged before that began;
//! otherwise they are concurrent and either may have won.
//!
//! * A read must not return what an operation acknowledged before the read began had already replaced.
//! * The image after a crash must contain every operation acknowledged before a successful flush began (L2), and must
//!   respect the order across units: if w2 is in the image, everything acknowledged before w2 began is in it too.
//!   "Contained" means: for each of its units, what is read is not a predecessor of it.
//! * While the client lives nothing acknowledged may be missing, whichever server died (L1).
//!
//! Precedence is an order of intervals, so the order across units needs no search: all that is known to be in the image
//! has a latest beginning, and exactly the operations acknowledged before that moment are required.
//!
//! Invariant: a verdict of "allowed" is never wrong about a required operation; zeroes, which name no writer, are given
//! the benefit of the earliest operation that explains them.

use std::fmt;
use std::ops::Range;

use crate::stamp::Observed;

/// Position in the order of all beginnings and ends.
type Tick = u64;
const NEVER: Tick = Tick::MAX;

/// What an operation does to the units it covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Each unit holds its stamp.
    Write,
    /// Each unit holds zeroes: write-zeroes, and trims of whole clusters.
    Zero,
}

/// How much of what was acknowledged must be in an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Survival {
    /// All of it: the client lived (L1).
    Alive,
    /// What was flushed, and what precedes anything that is there (L2).
    Crash,
    /// Only what precedes anything that is there: the disk confirmed syncs that it never did.
    Betrayed,
}

#[derive(Debug, Clone)]
struct Operation {
    effect: Effect,
    units: Range<u64>,
    began: Tick,
    /// [`NEVER`] while in flight, and for good when the outcome is unknown.
    ended: Tick,
    /// Its acknowledgement promised that it survives a crash (FUA).
    durable: bool,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { effect, units, began, ended, durable } = self;
        write!(f, "{effect:?} of units {units:?}, began at {began}, ")?;
        match *ended {
            NEVER => write!(f, "not acknowledged"),
            ended => write!(f, "acknowledged{} at {ended}", if *durable { " durably" } else { "" }),
        }
    }
}

/// An operation, as one unit knows it.
#[derive(Debug, Clone, Copy)]
struct Touch {
    operation: u64,
    /// When a read had returned it: then it had happened, acknowledged or not.
    seen: Tick,
}

#[derive(Debug, Clone)]
struct Unit {
    /// What it held when this history began.
    base: Observed,
    touches: Vec<Touch>,
}

/// What was read and should not have been.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    pub unit: u64,
    pub observed: Observed,
    pub why: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unit {} holds {:?}: {}", self.unit, self.observed, self.why)
    }
}

#[derive(Debug, Clone)]
pub struct History {
    tick: Tick,
    /// Operations before this number belong to earlier histories of the same run.
    first: u64,
    operations: Vec<Operation>,
    units: Vec<Unit>,
    /// Operations acknowledged before this were flushed.
    flushed: Tick,
}

impl History {
    /// Of a vDisk of zeroes.
    #[must_use]
    pub fn new(units: usize) -> Self {
        let unit = Unit { base: Observed::Zero, touches: Vec::new() };
        Self { tick: 0, first: 1, operations: Vec::new(), units: vec![unit; units], flushed: 0 }
    }

    #[must_use]
    pub fn units(&self) -> u64 {
        self.units.len() as u64
    }

    /// Operations since the last [`History::rebase`].
    #[must_use]
    pub fn len(&self) -> usize {
        self.operations.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.operations.is_empty()
    }

    /// Call before the request is sent. The number goes into the stamps.
    pub fn begin(&mut self, effect: Effect, units: Range<u64>) -> u64 {
        let began = self.now();
        let operation = self.first + self.operations.len() as u64;
        for unit in &mut self.units[index(units.start)..index(units.end)] {
            unit.touches.push(Touch { operation, seen: NEVER });
        }
        self.operations.push(Operation { effect, units, began, ended: NEVER, durable: false });
        operation
    }

    /// Call after the acknowledgement came. What failed or got no answer has an unknown outcome: don't call.
    pub fn acknowledged(&mut self, operation: u64) {
        let ended = self.now();
        let place = index(operation - self.first);
        assert_eq!(self.operations[place].ended, NEVER, "acknowledged once");
        self.operations[place].ended = ended;
    }

    /// The tick of a request that changes nothing: a flush or a read.
    pub fn now(&mut self) -> Tick {
        self.tick += 1;
        self.tick
    }

    /// A flush that began at `began` was acknowledged.
    pub fn flushed(&mut self, began: Tick) {
        self.flushed = self.flushed.max(began);
    }

    /// An acknowledged FUA write: it is durable itself, and so is what preceded it.
    pub fn acknowledged_durably(&mut self, operation: u64) {
        self.acknowledged(operation);
        let operation = &mut self.operations[index(operation - self.first)];
        operation.durable = true;
        self.flushed = self.flushed.max(operation.began);
    }

    /// Judges what a read that began at `began` returned, unit by unit from `first`.
    pub fn check_read(&mut self, began: Tick, first: u64, observed: &[Observed]) -> Vec<Violation> {
        let ended = self.now();
        let demand = Demand { ended_before: began, seen_before: began, durable: false };
        let mut violations = Vec::new();
        for (unit, observed) in (first..).zip(observed) {
            match self.judge(unit, *observed, demand) {
                Ok(_) => self.note_seen(unit, *observed, ended),
                Err(violation) => violations.push(violation),
            }
        }
        violations
    }

    /// Judges a whole image, read while nothing is in flight.
    #[must_use]
    pub fn check_image(&self, image: &[Observed], survival: Survival) -> Vec<Violation> {
        assert_eq!(image.len(), self.units.len(), "an image of the whole");
        let mut demand = match survival {
            Survival::Alive => Demand { ended_before: NEVER, seen_before: NEVER, durable: true },
            Survival::Crash => Demand { ended_before: self.flushed, seen_before: 0, durable: true },
            Survival::Betrayed => Demand { ended_before: 0, seen_before: 0, durable: false },
        };
        loop {
            let mut violations = Vec::new();
            let mut latest = demand.ended_before;
            for (unit, observed) in (0..).zip(image) {
                match self.judge(unit, *observed, demand) {
                    Ok(began) => latest = latest.max(began),
                    Err(violation) => violations.push(violation),
                }
            }
            // What is in the image requires what preceded it, which leaves fewer explanations for zeroes, which may
            // require more: repeat until nothing changes. Each round the bound grows, so this ends.
            if latest == demand.ended_before || !violations.is_empty() {
                return violations;
            }
            demand.ended_before = latest;
        }
    }

    /// Forgets the past: from now on the image is what everything begins with. What was in flight is dead.
    pub fn rebase(&mut self, image: &[Observed]) {
        assert_eq!(image.len(), self.units.len(), "an image of the whole");
        self.first += self.operations.len() as u64;
        self.operations.clear();
        for (unit, observed) in self.units.iter_mut().zip(image) {
            *unit = Unit { base: *observed, touches: Vec::new() };
        }
        self.flushed = 0;
    }

    /// When the operation that explains what was observed began, if one does.
    fn judge(&self, unit: u64, observed: Observed, demand: Demand) -> Result<Tick, Violation> {
        let violation = |why: String| Err(Violation { unit, observed, why });
        let Unit { base, touches } = &self.units[index(unit)];
        let newest = touches.iter().filter(|touch| self.is_demanded(touch, demand));
        let newest = newest.max_by_key(|touch| self.operation(touch.operation).began);
        let bound = newest.map_or(0, |touch| self.operation(touch.operation).began);
        let explained = match observed {
            Observed::Foreign => return violation("nothing of this run wrote that there".into()),
            Observed::Zero => self.explain_zero(unit, bound),
            Observed::Write(number) if number < self.first => {
                if *base != observed {
                    return violation(format!("an old write came back; the base is {base:?}"));
                }
                (bound == 0).then_some(0)
            }
            Observed::Write(number) => {
                let Ok(place) = touches.binary_search_by_key(&number, |touch| touch.operation)
                else {
                    return violation("that operation did not touch this unit".into());
                };
                let Operation { effect, began, .. } = self.operation(number);
                if *effect != Effect::Write {
                    return violation("that operation wrote zeroes".into());
                }
                (bound <= self.settled(&touches[place])).then_some(*began)
            }
        };
        explained.ok_or_else(|| {
            let missing = newest.map_or_else(
                || format!("what it began with is missing: {base:?}"),
                |touch| {
                    let operation = self.operation(touch.operation);
                    format!("operation {} is missing: {operation}", touch.operation)
                },
            );
            let why = format!("{missing}; {demand:?}; read: {}", self.describe(observed));
            Violation { unit, observed, why }
        })
    }

    /// The earliest beginning among what may have left zeroes that nothing demanded has replaced.
    fn explain_zero(&self, unit: u64, bound: Tick) -> Option<Tick> {
        let Unit { base, touches } = &self.units[index(unit)];
        if *base == Observed::Zero && bound == 0 {
            return Some(0);
        }
        let zeroing = touches.iter().filter(|touch| {
            self.operation(touch.operation).effect == Effect::Zero && bound <= self.settled(touch)
        });
        zeroing.map(|touch| self.operation(touch.operation).began).min()
    }

    fn is_demanded(&self, touch: &Touch, demand: Demand) -> bool {
        let Operation { ended, durable, .. } = *self.operation(touch.operation);
        ended < demand.ended_before
            || touch.seen < demand.seen_before
            || (durable && demand.durable)
    }

    /// When the operation had surely happened to this unit.
    fn settled(&self, touch: &Touch) -> Tick {
        self.operation(touch.operation).ended.min(touch.seen)
    }

    fn note_seen(&mut self, unit: u64, observed: Observed, ended: Tick) {
        let Observed::Write(number) = observed else { return };
        let touches = &mut self.units[index(unit)].touches;
        if let Ok(place) = touches.binary_search_by_key(&number, |touch| touch.operation) {
            touches[place].seen = touches[place].seen.min(ended);
        }
    }

    fn operation(&self, number: u64) -> &Operation {
        &self.operations[index(number - self.first)]
    }

    fn describe(&self, observed: Observed) -> String {
        match observed {
            Observed::Write(number) if self.first <= number => self.operation(number).to_string(),
            Observed::Write(_) | Observed::Zero | Observed::Foreign => format!("{observed:?}"),
        }
    }
}

/// Which operations must be contained in what is read.
#[derive(Debug, Clone, Copy)]
struct Demand {
    /// Those acknowledged before this.
    ended_before: Tick,
    /// Those returned by a read that ended before this.
    seen_before: Tick,
    /// Those whose acknowledgement promised durability.
    durable: bool,
}

fn index(number: u64) -> usize {
    usize::try_from(number).expect("histories fit in memory")
}

#[cfg(test)]
mod tests;
