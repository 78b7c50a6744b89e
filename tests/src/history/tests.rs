//! The checker finds each kind of broken promise, and lets a correct disk pass whatever its luck.

use proptest::prelude::*;

use super::*;

const ZERO: Observed = Observed::Zero;

fn write(history: &mut History, units: Range<u64>) -> u64 {
    let operation = history.begin(Effect::Write, units);
    history.acknowledged(operation);
    operation
}

fn zero(history: &mut History, units: Range<u64>) -> u64 {
    let operation = history.begin(Effect::Zero, units);
    history.acknowledged(operation);
    operation
}

fn flush(history: &mut History) {
    let began = history.now();
    history.flushed(began);
}

fn verdict(history: &History, image: &[Observed], survival: Survival) -> usize {
    history.check_image(image, survival).len()
}

fn w(operation: u64) -> Observed {
    Observed::Write(operation)
}

#[test]
fn a_lost_flushed_write_is_reported() {
    let mut history = History::new(1);
    let first = write(&mut history, 0..1);
    flush(&mut history);
    assert_eq!(verdict(&history, &[ZERO], Survival::Crash), 1);
    assert_eq!(verdict(&history, &[w(first)], Survival::Crash), 0);
}

#[test]
fn an_unflushed_write_may_be_lost_in_a_crash_but_not_while_the_client_lives() {
    let mut history = History::new(1);
    let first = write(&mut history, 0..1);
    assert_eq!(verdict(&history, &[ZERO], Survival::Crash), 0);
    assert_eq!(verdict(&history, &[ZERO], Survival::Alive), 1);
    assert_eq!(verdict(&history, &[w(first)], Survival::Alive), 0);
}

#[test]
fn a_flush_covers_only_what_was_acknowledged_before_it_began() {
    let mut history = History::new(1);
    let began = history.now();
    write(&mut history, 0..1);
    history.flushed(began);
    assert_eq!(verdict(&history, &[ZERO], Survival::Crash), 0);
}

#[test]
fn an_older_write_that_came_back_over_a_flushed_one_is_reported() {
    let mut history = History::new(1);
    let old = write(&mut history, 0..1);
    let new = write(&mut history, 0..1);
    flush(&mut history);
    assert_eq!(verdict(&history, &[w(old)], Survival::Crash), 1);
    assert_eq!(verdict(&history, &[w(new)], Survival::Crash), 0);
}

#[test]
fn a_later_write_without_its_predecessor_on_another_unit_is_reported() {
    let mut history = History::new(2);
    let first = write(&mut history, 0..1);
    let second = write(&mut history, 1..2);
    assert_eq!(verdict(&history, &[ZERO, w(second)], Survival::Crash), 1);
    for image in [[ZERO, ZERO], [w(first), ZERO], [w(first), w(second)]] {
        assert_eq!(verdict(&history, &image, Survival::Crash), 0, "{image:?}");
    }
}

#[test]
fn concurrent_writes_may_survive_in_any_combination() {
    let mut history = History::new(2);
    let first = history.begin(Effect::Write, 0..1);
    let second = history.begin(Effect::Write, 1..2);
    history.acknowledged(first);
    history.acknowledged(second);
    for image in [[ZERO, ZERO], [w(first), ZERO], [ZERO, w(second)], [w(first), w(second)]] {
        assert_eq!(verdict(&history, &image, Survival::Crash), 0, "{image:?}");
    }
}

#[test]
fn a_write_in_flight_may_be_there_in_part_and_requires_its_predecessors() {
    let mut history = History::new(3);
    let before = write(&mut history, 0..1);
    let flying = history.begin(Effect::Write, 1..3);
    assert_eq!(verdict(&history, &[w(before), w(flying), ZERO], Survival::Crash), 0);
    assert_eq!(verdict(&history, &[ZERO, w(flying), ZERO], Survival::Crash), 1);
    assert_eq!(verdict(&history, &[w(before), ZERO, ZERO], Survival::Alive), 0);
}

#[test]
fn an_acknowledged_fua_write_requires_itself_and_its_predecessors_only() {
    let mut history = History::new(3);
    let before = write(&mut history, 0..1);
    let fua = history.begin(Effect::Write, 1..2);
    write(&mut history, 2..3);
    history.acknowledged_durably(fua);
    assert_eq!(verdict(&history, &[w(before), w(fua), ZERO], Survival::Crash), 0);
    assert_eq!(verdict(&history, &[w(before), ZERO, ZERO], Survival::Crash), 1);
    assert_eq!(verdict(&history, &[ZERO, w(fua), ZERO], Survival::Crash), 1);
}

#[test]
fn zeroes_are_explained_by_the_operation_that_requires_least() {
    let mut history = History::new(2);
    let first = write(&mut history, 0..1);
    zero(&mut history, 0..1);
    let last = write(&mut history, 1..2);
    // Zeroes at 0 may be from before the first write, unless what came later is there.
    assert_eq!(verdict(&history, &[ZERO, ZERO], Survival::Crash), 0);
    assert_eq!(verdict(&history, &[w(first), ZERO], Survival::Crash), 0);
    assert_eq!(verdict(&history, &[w(first), w(last)], Survival::Crash), 1);
    assert_eq!(verdict(&history, &[ZERO, w(last)], Survival::Crash), 0);
}

#[test]
fn zeroes_over_a_flushed_write_require_what_preceded_the_zeroing() {
    let mut history = History::new(2);
    write(&mut history, 0..1);
    flush(&mut history);
    let other = write(&mut history, 1..2);
    zero(&mut history, 0..1);
    // Only the zeroing explains unit 0, and the write to unit 1 was acknowledged before it began.
    assert_eq!(verdict(&history, &[ZERO, ZERO], Survival::Crash), 1);
    assert_eq!(verdict(&history, &[ZERO, w(other)], Survival::Crash), 0);
}

#[test]
fn foreign_units_and_operations_that_never_touched_a_unit_are_reported() {
    let mut history = History::new(2);
    let first = write(&mut history, 0..1);
    let zeroing = zero(&mut history, 0..1);
    assert_eq!(verdict(&history, &[Observed::Foreign, ZERO], Survival::Crash), 1);
    assert_eq!(verdict(&history, &[ZERO, w(first)], Survival::Crash), 1);
    assert_eq!(verdict(&history, &[w(zeroing), ZERO], Survival::Crash), 1);
}

#[test]
fn reads_may_return_what_is_in_flight_but_not_what_was_replaced_before() {
    let mut history = History::new(1);
    let first = write(&mut history, 0..1);
    let flying = history.begin(Effect::Write, 0..1);
    let began = history.now();
    assert_eq!(history.check_read(began, 0, &[w(first)]), []);
    assert_eq!(history.check_read(began, 0, &[w(flying)]), []);
    assert_eq!(history.check_read(began, 0, &[ZERO]).len(), 1);
    history.acknowledged(flying);
    let began = history.now();
    assert_eq!(history.check_read(began, 0, &[w(first)]).len(), 1);
}

#[test]
fn what_a_read_returned_is_not_unseen_by_a_later_read() {
    let mut history = History::new(1);
    let first = write(&mut history, 0..1);
    let flying = history.begin(Effect::Write, 0..1);
    let began = history.now();
    assert_eq!(history.check_read(began, 0, &[w(flying)]), []);
    let began = history.now();
    assert_eq!(history.check_read(began, 0, &[w(first)]).len(), 1);
    assert_eq!(history.check_read(began, 0, &[w(flying)]), []);
}

#[test]
fn a_write_in_flight_at_a_crash_does_not_come_back_later() {
    let mut history = History::new(1);
    let flying = history.begin(Effect::Write, 0..1);
    history.rebase(&[ZERO]);
    assert_eq!(verdict(&history, &[w(flying)], Survival::Crash), 1);
    let next = write(&mut history, 0..1);
    assert!(flying < next, "numbers are never used twice");
    history.rebase(&[w(next)]);
    assert_eq!(verdict(&history, &[w(next)], Survival::Alive), 0);
    assert_eq!(verdict(&history, &[ZERO], Survival::Crash), 1);
}

const UNITS: u64 = 6;

/// A correct disk that applies operations one after the other at a moment between beginning and acknowledgement, and
/// after a crash shows the state after some operation no earlier than the last flush.
#[derive(Debug, Clone, Copy)]
enum Step {
    Begin { effect: Effect, start: u64, len: u64 },
    Apply { nth: usize },
    Acknowledge { nth: usize, fua: bool },
    Flush,
    Read,
}

fn step() -> impl Strategy<Value = Step> {
    let effect = prop_oneof![3 => Just(Effect::Write), 1 => Just(Effect::Zero)];
    prop_oneof![
        4 => (effect, 0..UNITS, 1..4_u64).prop_map(|(effect, start, len)| Step::Begin { effect, start, len }),
        4 => (0..8_usize).prop_map(|nth| Step::Apply { nth }),
        4 => (0..8_usize, prop::bool::weighted(0.2)).prop_map(|(nth, fua)| Step::Acknowledge { nth, fua }),
        1 => Just(Step::Flush),
        2 => Just(Step::Read),
    ]
}

#[derive(Default)]
struct CorrectDisk {
    begun: Vec<(u64, Effect, Range<u64>)>,
    applied: Vec<(u64, Effect, Range<u64>)>,
    /// States after each applied operation.
    states: Vec<Vec<Observed>>,
    durable: usize,
}

impl CorrectDisk {
    fn new() -> Self {
        Self { states: vec![vec![ZERO; index(UNITS)]], ..Self::default() }
    }

    fn step(&mut self, history: &mut History, step: Step) {
        match step {
            Step::Begin { effect, start, len } => {
                let units = start..(start + len).min(UNITS);
                let operation = history.begin(effect, units.clone());
                self.begun.push((operation, effect, units));
            }
            Step::Apply { nth } if nth < self.begun.len() => {
                let (operation, effect, units) = self.begun.remove(nth);
                let mut state = self.now().to_vec();
                for unit in units.clone() {
                    state[index(unit)] = match effect {
                        Effect::Write => w(operation),
                        Effect::Zero => ZERO,
                    };
                }
                self.states.push(state);
                self.applied.push((operation, effect, units));
            }
            Step::Acknowledge { nth, fua } if nth < self.applied.len() => {
                let (operation, ..) = self.applied[nth];
                if history.operation(operation).ended == NEVER {
                    if fua {
                        self.durable = self.states.len() - 1;
                        history.acknowledged_durably(operation);
                    } else {
                        history.acknowledged(operation);
                    }
                }
            }
            Step::Flush => {
                let began = history.now();
                self.durable = self.states.len() - 1;
                history.flushed(began);
            }
            Step::Read => {
                let began = history.now();
                let state = self.now().to_vec();
                assert_eq!(history.check_read(began, 0, &state), []);
            }
            Step::Apply { .. } | Step::Acknowledge { .. } => {}
        }
    }

    fn now(&self) -> &[Observed] {
        self.states.last().unwrap()
    }
}

proptest! {
    #[test]
    fn a_correct_disk_is_never_accused(steps in prop::collection::vec(step(), 0..80), moment in any::<prop::sample::Index>()) {
        let (mut disk, mut history) = (CorrectDisk::new(), History::new(index(UNITS)));
        for step in steps {
            disk.step(&mut history, step);
        }
        prop_assert_eq!(history.check_image(disk.now(), Survival::Alive), []);
        let survivors = &disk.states[disk.durable..];
        let image = moment.get(survivors);
        prop_assert_eq!(history.check_image(image, Survival::Crash), []);
    }

    /// Operations one after the other, no zeroes: then the checker is exact. Any state before the last flush that
    /// differs from all states after it is reported.
    #[test]
    fn a_disk_that_forgets_a_flush_is_always_accused(ranges in prop::collection::vec((0..UNITS, 1..4_u64), 2..30), cut in any::<prop::sample::Index>()) {
        let (mut disk, mut history) = (CorrectDisk::new(), History::new(index(UNITS)));
        for (start, len) in ranges {
            disk.step(&mut history, Step::Begin { effect: Effect::Write, start, len });
            disk.step(&mut history, Step::Apply { nth: 0 });
            let nth = disk.applied.len() - 1;
            disk.step(&mut history, Step::Acknowledge { nth, fua: false });
        }
        disk.step(&mut history, Step::Flush);
        let lost = &disk.states[..disk.states.len() - 1];
        let image = cut.get(lost);
        prop_assert_ne!(history.check_image(image, Survival::Crash), []);
    }
}
