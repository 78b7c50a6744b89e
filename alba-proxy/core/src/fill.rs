//! Filling holes: which OSD gets a fragment that is missing, and what the manifest says afterwards.
//!
//! The fragments that are stored, also those on OSDs that are away now, count against the policy's `x`: an OSD
//! that comes back must not break the spread. So with too few OSDs a hole stays a hole; it is never filled wrongly.
//!
//! Invariant: [`with_places`] changes nothing of a manifest but holes into stored fragments.

use crate::manifest::{Manifest, Place};
use crate::placement::{Candidate, Spread, place};
use crate::upload::Put;
use model::{FragmentIndex, OsdId};

/// Where the missing fragments can go now; empty when the rules leave no place.
#[must_use]
pub fn plan(manifest: &Manifest, candidates: &[Candidate], seed: u64) -> Vec<Put> {
    let holes: Vec<FragmentIndex> = manifest
        .indexed()
        .filter(|(_, fragment)| fragment.place == Place::Hole)
        .map(|(index, _)| index)
        .collect();
    let occupied: Vec<OsdId> = manifest.stored().map(|(_, osd)| osd).collect();
    let spread = Spread::of(manifest.policy, manifest.level);
    let osds = place(candidates, spread, &occupied, manifest.holes(), seed);
    holes.into_iter().zip(osds).map(|(index, osd)| Put { index, osd }).collect()
}

/// The manifest once these fragments are stored. Puts that fill no hole (somebody was faster) are left out;
/// they are the second value.
#[must_use]
pub fn with_places(manifest: &Manifest, puts: &[Put]) -> (Manifest, Vec<Put>) {
    let mut filled = manifest.clone();
    let mut unused = Vec::new();
    for put in puts {
        match filled.fragments.get_mut(put.index.as_usize()) {
            Some(fragment) if fragment.place == Place::Hole => {
                fragment.place = Place::Stored(put.osd);
            }
            Some(fragment) if fragment.place == Place::Stored(put.osd) => {}
            Some(_) | None => unused.push(*put),
        }
    }
    (filled, unused)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::tests::manifest_with;
    use crate::placement::tests::candidate;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn holes_are_filled_only_within_the_rules(
            places in proptest::collection::vec(proptest::option::of(0..8_u128), 6),
            writable in proptest::collection::vec(any::<bool>(), 8),
            seed: u64,
        ) {
            // Stored fragments on distinct OSDs, as placement made them.
            let mut seen = std::collections::BTreeSet::new();
            let places: Vec<Place> = places
                .into_iter()
                .map(|osd| match osd {
                    Some(osd) if seen.insert(osd) => Place::Stored(OsdId(osd)),
                    Some(_) | None => Place::Hole,
                })
                .collect();
            let manifest = manifest_with("4,2,5,1", &places);
            let candidates: Vec<Candidate> = (0..8)
                .map(|i| candidate(i, 0, 10, writable[model::usize_of(u64::try_from(i).unwrap())]))
                .collect();
            let puts = plan(&manifest, &candidates, seed);
            let (filled, unused) = with_places(&manifest, &puts);
            prop_assert!(unused.is_empty());
            prop_assert_eq!(usize::from(filled.holes()), usize::from(manifest.holes()) - puts.len());
            let mut osds: Vec<OsdId> = filled.stored().map(|(_, osd)| osd).collect();
            let stored = osds.len();
            osds.sort_unstable();
            osds.dedup();
            prop_assert_eq!(osds.len(), stored, "two fragments on one OSD");
            for put in &puts {
                prop_assert!(candidates.iter().any(|c| c.osd == put.osd && c.writable));
            }
            // Again, and by somebody who was slower: nothing changes.
            prop_assert_eq!(&with_places(&filled, &puts).0, &filled);
            let late: Vec<Put> =
                puts.iter().map(|put| Put { osd: OsdId(99), ..*put }).collect();
            let (same, unused) = with_places(&filled, &late);
            prop_assert_eq!(same, filled);
            prop_assert_eq!(unused, late);
        }
    }
}
