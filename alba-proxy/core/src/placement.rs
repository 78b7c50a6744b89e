//! Which OSD gets which fragment.
//!
//! A two-level choice, as even as can be: first the domain that holds the fewest fragments of the object, among
//! equals drawn by free space; inside it the OSD that holds the fewest, drawn likewise. Even use over domains makes
//! `x` hold wherever it can hold; it is checked all the same. At level disk the disk is its own domain and may take
//! up to `x` fragments; at wider levels an OSD takes one fragment of an object at most, since two on one disk
//! would fall together without any domain being lost.
//!
//! Why drawn and not "the emptiest": a new empty disk would otherwise get every write of the cluster.
//!
//! Invariant: the result depends on its arguments alone; no domain gets more than `x`, counting what it already holds;
//! no unusable OSD is chosen.

use crate::rng::Rng;
use model::{DomainLevel, DomainPath, OsdId};
use std::collections::{BTreeMap, BTreeSet};

/// An OSD as placement sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    pub osd: OsdId,
    pub domain: DomainPath,
    pub free_bytes: u64,
    /// Takes writes as far as we know: not full, not failed, not avoided.
    pub writable: bool,
}

/// The rules that an object's fragments obey together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spread {
    pub level: DomainLevel,
    /// `x` of the policy.
    pub per_domain: u8,
}

/// OSDs that hold, or are being asked to hold, fragments of the object: one entry per fragment.
pub type Occupied = [OsdId];

/// What counts against `x`: a domain by name, or the disk itself.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Domain {
    Disk(OsdId),
    Named(String),
}

fn domain_of(candidate: &Candidate, level: DomainLevel) -> Domain {
    match candidate.domain.at(level) {
        Some(name) => Domain::Named(name.to_owned()),
        None => Domain::Disk(candidate.osd),
    }
}

struct Slot<'a> {
    candidate: &'a Candidate,
    used: u8,
    /// Most fragments of the object it may hold.
    limit: u8,
}

struct Bag<'a> {
    used: u8,
    slots: Vec<Slot<'a>>,
}

impl Bag<'_> {
    fn open_slots(&self) -> impl Iterator<Item = &Slot<'_>> + Clone {
        self.slots.iter().filter(|slot| slot.is_open())
    }

    fn free_bytes(&self) -> u64 {
        self.open_slots().map(|slot| slot.candidate.free_bytes).fold(0, u64::saturating_add)
    }
}

impl Slot<'_> {
    const fn is_open(&self) -> bool {
        self.candidate.writable && self.used < self.limit
    }
}

fn bags<'a>(
    candidates: &'a [Candidate],
    spread: Spread,
    occupied: &Occupied,
) -> BTreeMap<Domain, Bag<'a>> {
    let mut bags: BTreeMap<Domain, Bag<'a>> = BTreeMap::new();
    let limit = match spread.level {
        DomainLevel::Disk => spread.per_domain,
        DomainLevel::Host | DomainLevel::Rack | DomainLevel::Datacenter => 1,
    };
    let mut seen = BTreeSet::new();
    for candidate in candidates {
        if !seen.insert(candidate.osd) {
            continue;
        }
        let holds = occupied.iter().filter(|osd| **osd == candidate.osd).count();
        let used = u8::try_from(holds).unwrap_or(u8::MAX);
        let bag = bags
            .entry(domain_of(candidate, spread.level))
            .or_insert_with(|| Bag { used: 0, slots: Vec::new() });
        bag.used = bag.used.saturating_add(used);
        bag.slots.push(Slot { candidate, used, limit });
    }
    bags
}

/// How many fragments the writable OSDs could take under these rules, at most `wanted`.
#[must_use]
pub fn room(candidates: &[Candidate], spread: Spread, occupied: &Occupied, wanted: u8) -> u8 {
    let mut room = 0_u8;
    for bag in bags(candidates, spread, occupied).values() {
        let slots = bag.open_slots().map(|slot| slot.limit - slot.used).fold(0, u8::saturating_add);
        room = room.saturating_add(slots.min(spread.per_domain.saturating_sub(bag.used)));
    }
    room.min(wanted)
}

/// OSDs for up to `wanted` more fragments, in random order; fewer when the rules leave no more.
#[must_use]
pub fn place(
    candidates: &[Candidate],
    spread: Spread,
    occupied: &Occupied,
    wanted: u8,
    seed: u64,
) -> Vec<OsdId> {
    let mut rng = Rng::new(seed);
    let mut bags: Vec<Bag<'_>> = bags(candidates, spread, occupied).into_values().collect();
    let mut chosen = Vec::with_capacity(usize::from(wanted));
    while chosen.len() < usize::from(wanted) {
        let Some(osd) = place_one(&mut bags, spread, &mut rng) else { break };
        chosen.push(osd);
    }
    // Roomy disks are drawn first: without this they would get all the data and the others all the parity.
    rng.shuffle(&mut chosen);
    chosen
}

fn place_one(bags: &mut [Bag<'_>], spread: Spread, rng: &mut Rng) -> Option<OsdId> {
    let open = |bag: &Bag<'_>| bag.used < spread.per_domain && bag.open_slots().next().is_some();
    let least = bags.iter().filter(|bag| open(bag)).map(|bag| bag.used).min()?;
    let mut even: Vec<&mut Bag<'_>> =
        bags.iter_mut().filter(|bag| open(bag) && bag.used == least).collect();
    let drawn = rng.weighted(even.iter().map(|bag| bag.free_bytes()))?;
    let bag = &mut even[drawn];
    let least = bag.open_slots().map(|slot| slot.used).min()?;
    let mut slots: Vec<&mut Slot<'_>> =
        bag.slots.iter_mut().filter(|slot| slot.is_open() && slot.used == least).collect();
    let drawn = rng.weighted(slots.iter().map(|slot| slot.candidate.free_bytes))?;
    let slot = &mut slots[drawn];
    slot.used += 1;
    let osd = slot.candidate.osd;
    bag.used += 1;
    Some(osd)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    #[expect(clippy::fn_params_excessive_bools, reason = "a table's column in tests")]
    pub fn candidate(osd: u128, host: u8, free_gib: u64, writable: bool) -> Candidate {
        let domain = format!("dc1/r{}/h{host}", host / 3).parse().unwrap();
        Candidate { osd: OsdId(osd), domain, free_bytes: free_gib << 30, writable }
    }

    fn candidates() -> impl Strategy<Value = Vec<Candidate>> {
        proptest::collection::vec((0..8_u8, 0..1000_u64, proptest::bool::weighted(0.8)), 0..20)
            .prop_map(|raw| {
                raw.into_iter()
                    .zip(1..)
                    .map(|((host, free, writable), osd)| candidate(osd, host, free, writable))
                    .collect()
            })
    }

    fn level() -> impl Strategy<Value = DomainLevel> {
        prop_oneof![
            Just(DomainLevel::Disk),
            Just(DomainLevel::Host),
            Just(DomainLevel::Rack),
            Just(DomainLevel::Datacenter)
        ]
    }

    fn counts(candidates: &[Candidate], level: DomainLevel, used: &[OsdId]) -> Vec<(Domain, u8)> {
        let mut counts: BTreeMap<Domain, u8> = BTreeMap::new();
        for osd in used {
            let candidate = candidates.iter().find(|c| c.osd == *osd).unwrap();
            *counts.entry(domain_of(candidate, level)).or_default() += 1;
        }
        counts.into_iter().collect()
    }

    proptest! {
        #[test]
        fn the_rules_hold_and_all_room_is_used(
            candidates in candidates(), level in level(), x in 1..5_u8, wanted in 0..32_u8, seed: u64,
        ) {
            let spread = Spread { level, per_domain: x };
            let chosen = place(&candidates, spread, &[], wanted, seed);
            prop_assert_eq!(&chosen, &place(&candidates, spread, &[], wanted, seed));
            prop_assert_eq!(chosen.len(), usize::from(room(&candidates, spread, &[], wanted)));
            for osd in &chosen {
                prop_assert!(candidates.iter().any(|c| c.osd == *osd && c.writable));
                if level != DomainLevel::Disk {
                    prop_assert_eq!(chosen.iter().filter(|other| *other == osd).count(), 1);
                }
            }
            for (domain, count) in counts(&candidates, level, &chosen) {
                prop_assert!(count <= x, "{:?} got {}", domain, count);
            }
        }

        /// What is added later (a retry, a hole) obeys the same rules as what is placed at once.
        #[test]
        fn placing_in_two_steps_obeys_the_same_rules(
            candidates in candidates(), level in level(), x in 1..4_u8,
            first in 0..8_u8, then in 0..8_u8, seed: u64,
        ) {
            let spread = Spread { level, per_domain: x };
            let mut all = place(&candidates, spread, &[], first, seed);
            let more = place(&candidates, spread, &all, then, seed.wrapping_add(1));
            prop_assert_eq!(more.len(), usize::from(room(&candidates, spread, &all, then)));
            all.extend(more);
            for (_, count) in counts(&candidates, level, &all) {
                prop_assert!(count <= x);
            }
        }
    }

    #[test]
    fn fragments_are_spread_over_domains_before_any_gets_a_second() {
        // Two big hosts, two small ones: with x = 2 and 4 fragments each host gets one.
        let candidates: Vec<Candidate> = (0..8)
            .map(|i| {
                let host = u8::try_from(i / 2).unwrap();
                candidate(i, host, if host < 2 { 10_000 } else { 1 }, true)
            })
            .collect();
        let spread = Spread { level: DomainLevel::Host, per_domain: 2 };
        for seed in 0..50 {
            let chosen = place(&candidates, spread, &[], 4, seed);
            assert!(counts(&candidates, DomainLevel::Host, &chosen).iter().all(|(_, n)| *n == 1));
        }
    }

    #[test]
    fn roomy_osds_get_more_and_full_grown_ones_still_some() {
        let candidates: Vec<Candidate> =
            (0..4).map(|i| candidate(i, 0, if i == 0 { 900 } else { 100 }, true)).collect();
        let spread = Spread { level: DomainLevel::Disk, per_domain: 1 };
        let mut hits = [0_u32; 4];
        for seed in 0..2000 {
            for osd in place(&candidates, spread, &[], 1, seed) {
                hits[model::usize_of(u64::try_from(osd.0).unwrap())] += 1;
            }
        }
        assert!((1400..1600).contains(&hits[0]), "{hits:?}");
        assert!(hits[1..].iter().all(|n| (100..250).contains(n)), "{hits:?}");
    }
}
