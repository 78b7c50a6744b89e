//! Breadth first through everything that can happen, each state once.
//!
//! States are told apart by 128 bits of their fields: two of ten million fall together once in 10^24 runs. The shortest way
//! to a state is kept as one step per state, from which a counterexample is told again.
//!
//! Invariant: a state is expanded once, in the order of its distance from the first.

use std::hash::{Hash, Hasher};

use crate::laws;
use crate::rules::Rules;
use crate::state::State;
use crate::step::{Step, steps, take};

/// Two lanes of multiply and rotate over eight bytes at a time: tells states apart, and is the same in every run.
struct Fingerprint {
    lanes: (u64, u64),
    bytes: u64,
    held: u32,
}

impl Fingerprint {
    const fn mix(&mut self) {
        self.lanes.0 =
            (self.lanes.0.rotate_left(5) ^ self.bytes).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.lanes.1 =
            (self.lanes.1.rotate_left(29) ^ self.bytes).wrapping_mul(0xd6e8_feb8_6659_fd93);
        (self.bytes, self.held) = (0, 0);
    }
}

impl Hasher for Fingerprint {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u8(*byte));
    }
    fn write_u8(&mut self, byte: u8) {
        self.bytes = self.bytes << 8 | u64::from(byte);
        self.held += 1;
        if self.held == 8 {
            self.mix();
        }
    }
    /// Lengths of arrays, which are the same in every state.
    fn write_usize(&mut self, _: usize) {}
    /// Which variant of an enum.
    fn write_isize(&mut self, variant: isize) {
        self.write_u8(variant.to_le_bytes()[0]);
    }
    fn finish(&self) -> u64 {
        self.lanes.0
    }
}

fn fingerprint(state: &State) -> u128 {
    let mut hasher = Fingerprint { lanes: (1, 2), bytes: 0, held: 0 };
    state.hash(&mut hasher);
    hasher.mix();
    hasher.mix();
    u128::from(hasher.lanes.0) << 64 | u128::from(hasher.lanes.1)
}

/// Open addressing; 0 is free.
struct Seen {
    places: Vec<(u128, u32)>,
    len: usize,
}

impl Seen {
    fn new() -> Self {
        Self { places: vec![(0, 0); 1 << 16], len: 0 }
    }

    /// The number of this state; `next` when it is new.
    fn number(&mut self, key: u128, next: u32) -> u32 {
        if self.places.len() < 2 * self.len {
            let old = std::mem::take(&mut self.places);
            self.places = vec![(0, 0); 2 * old.len()];
            for (key, number) in old.into_iter().filter(|(key, _)| *key != 0) {
                let place = self.place(key);
                self.places[place] = (key, number);
            }
        }
        let place = self.place(key);
        if self.places[place].0 == 0 {
            self.places[place] = (key, next);
            self.len += 1;
        }
        self.places[place].1
    }

    fn place(&self, key: u128) -> usize {
        let mask = self.places.len() - 1;
        let mut place = model::usize_of((key >> 64) as u64) & mask;
        while self.places[place].0 != 0 && self.places[place].0 != key {
            place = (place + 1) & mask;
        }
        place
    }
}

/// What a search found.
pub struct Found {
    pub states: usize,
    pub steps: u64,
    pub depth: usize,
    /// States from which service comes back, and those from which it must.
    pub stuck: Option<Vec<String>>,
    pub in_service: usize,
    pub broken: Option<(String, Vec<String>)>,
}

struct Search<'a> {
    rules: &'a Rules,
    mirrors: bool,
    seen: Seen,
    /// Of each state: where it was reached from, and by which step.
    from: Vec<(u32, Step)>,
    /// Ways that lead on without an accident: (from, to).
    ways: Vec<(u32, u32)>,
    served: Vec<u32>,
    must: Vec<u32>,
}

pub fn search(rules: &Rules, mirrors: bool) -> Found {
    let mut first = State::new(rules.bounds.edges());
    for step in rules.bounds.before {
        take(&mut first, *step, rules).expect("what has happened before broke nothing");
    }
    let mut search = Search {
        rules,
        mirrors,
        seen: Seen::new(),
        from: vec![(0, Step::Raise { life: 0 })],
        ways: Vec::new(),
        served: Vec::new(),
        must: Vec::new(),
    };
    search.seen.number(search.key(&first), 0);
    let mut found =
        Found { states: 0, steps: 0, depth: 0, stuck: None, in_service: 0, broken: None };
    let (mut layer, mut possible) = (vec![(0, first)], Vec::new());
    while !layer.is_empty() {
        let mut next = Vec::new();
        for (number, state) in layer {
            search.note(number, &state);
            steps(&state, rules, &mut possible);
            for step in &possible {
                found.steps += 1;
                let mut after = state;
                if let Err(law) = take(&mut after, *step, rules) {
                    found.broken = Some((law, search.tell(number, Some(*step))));
                    found.states = search.from.len();
                    return found;
                }
                let fresh = u32::try_from(search.from.len()).expect("memory ends before");
                let to = search.seen.number(search.key(&after), fresh);
                if to == fresh {
                    search.from.push((number, *step));
                    next.push((to, after));
                }
                if !step.is_accident() {
                    search.ways.push((number, to));
                }
            }
        }
        found.depth += usize::from(!next.is_empty());
        layer = next;
    }
    found.states = search.from.len();
    found.in_service = search.served.len();
    found.stuck = search.stuck();
    found
}

impl Search<'_> {
    fn key(&self, state: &State) -> u128 {
        let one = fingerprint(state);
        if self.mirrors { one.min(fingerprint(&state.mirrored())) } else { one }
    }

    fn note(&mut self, number: u32, state: &State) {
        if laws::is_in_service(state, self.rules) {
            self.served.push(number);
        }
        if laws::must_come_back(state, self.rules) {
            self.must.push(number);
        }
    }

    /// A state from which no way leads to service though one must.
    fn stuck(&mut self) -> Option<Vec<String>> {
        self.ways.sort_unstable_by_key(|(_, to)| *to);
        let mut comes_back = vec![false; self.from.len()];
        let mut open = std::mem::take(&mut self.served);
        open.iter().for_each(|state| comes_back[*state as usize] = true);
        while let Some(state) = open.pop() {
            let first = self.ways.partition_point(|(_, to)| *to < state);
            for (from, _) in self.ways[first..].iter().take_while(|(_, to)| *to == state) {
                if !std::mem::replace(&mut comes_back[*from as usize], true) {
                    open.push(*from);
                }
            }
        }
        let stuck = self.must.iter().find(|state| !comes_back[**state as usize])?;
        Some(self.tell(*stuck, None))
    }

    /// The way to a state, in words.
    fn tell(&self, mut state: u32, last: Option<Step>) -> Vec<String> {
        let mut told: Vec<String> = last.iter().map(ToString::to_string).collect();
        while state != 0 {
            let (from, step) = self.from[state as usize];
            told.push(step.to_string());
            state = from;
        }
        told.extend(self.rules.bounds.before.iter().rev().map(ToString::to_string));
        told.reverse();
        told
    }
}
