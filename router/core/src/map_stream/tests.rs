//! Maps cut into parts and put together again; every way to lose something on the way.

use super::*;
use crate::map::cluster_at;
use crate::page::{Location, PAGE_CLUSTERS, digest_of};
use model::{Lsn, ObjectId};
use proptest::prelude::*;

const VDISK: VdiskId = VdiskId(7);

fn page_of(number: u64, mapped: &[u16]) -> (u64, Bytes, Totals) {
    let (mut page, mut totals) = (Page::default(), Totals::default());
    for index in mapped {
        let index = usize::from(*index) % 512;
        let location = Location::new(ScoNumber(1 + number), 3, 1);
        if page.set(index, Some(location)).is_none() {
            totals.add(digest_of(cluster_at(number, index), location));
        }
    }
    (number, Bytes::from(page.encode(&page_key(VDISK, number, GENERATION))), totals)
}

/// A map with these clusters, cut into parts.
fn parts_of(clusters: &[u64], epochs: u64, bytes_max: usize) -> Vec<Part> {
    let mut by_page: std::collections::BTreeMap<u64, Vec<u16>> = std::collections::BTreeMap::new();
    for cluster in clusters {
        let index = u16::try_from(cluster % PAGE_CLUSTERS).unwrap();
        by_page.entry(cluster / PAGE_CLUSTERS).or_default().push(index);
    }
    let pages: Vec<_> = by_page.iter().map(|(number, mapped)| page_of(*number, mapped)).collect();
    let mut totals = Totals::default();
    for (_, _, page) in &pages {
        totals.mapped += page.mapped;
        totals.digest = totals.digest.wrapping_add(page.digest);
    }
    let object = ObjectId { vdisk: VDISK, epoch: Epoch(3), number: ScoNumber(900) };
    let state = MapState { object: Some(object), last_lsn: Lsn(5), totals, epochs };
    let mut cutter = Cutter::new(VDISK, state, bytes_max);
    let mut parts = Vec::new();
    for epoch in 1..=epochs {
        parts.extend(cutter.epoch(ScoNumber(epoch * 10), Epoch(epoch)));
    }
    for (number, stored, _) in pages {
        parts.extend(cutter.page(number, stored));
    }
    parts.push(cutter.finish());
    parts
}

fn assemble(parts: &[Part]) -> Result<MapState, StreamError> {
    let mut assembly = Assembly::new(VDISK);
    for part in parts {
        assembly.take(part)?;
    }
    assembly.finish().cloned()
}

proptest! {
    #[test]
    fn a_map_survives_its_parts_whole_or_not_at_all(
        clusters in proptest::collection::vec(0u64..20_000, 0..300),
        epochs in 0u64..600,
        bytes_max in PART_MIN..20_000,
        which: prop::sample::Index,
        other: prop::sample::Index,
    ) {
        let parts = parts_of(&clusters, epochs, bytes_max);
        for part in &parts {
            let bytes = Bytes::from(part.encode());
            prop_assert!(bytes.len() <= bytes_max, "{} of {bytes_max} bytes", bytes.len());
            prop_assert_eq!(Part::decode(&bytes), Ok(part.clone()));
        }
        prop_assert_eq!(assemble(&parts), Ok(parts[0].state.clone()));
        // Missing, doubled, swapped: refused.
        let at = which.index(parts.len());
        let mut bad = parts.clone();
        bad.remove(at);
        prop_assert!(assemble(&bad).is_err());
        let mut bad = parts.clone();
        bad.insert(at, parts[at].clone());
        prop_assert!(assemble(&bad).is_err());
        let also = other.index(parts.len());
        if at != also {
            let mut bad = parts.clone();
            bad.swap(at, also);
            prop_assert!(assemble(&bad).is_err());
        }
    }

    #[test]
    fn garbage_is_no_part(bytes: Vec<u8>) {
        let mut sealed = [&b"HFPM\x01"[..], &bytes].concat();
        let sum = crc32c(&sealed);
        sealed.extend_from_slice(&sum.to_le_bytes());
        let _ = Part::decode(&Bytes::from(sealed));
        let _ = Part::decode(&Bytes::from(bytes.clone()));
        let _ = MapState::decode(&bytes);
    }
}

#[test]
fn a_page_or_an_epoch_that_got_lost_within_a_part_is_missed() {
    let whole = parts_of(&[1, 600, 1200], 3, 1 << 20);
    assert!(assemble(&whole).is_ok());
    let with = |change: &dyn Fn(&mut Part)| {
        let mut parts = whole.clone();
        change(&mut parts[0]);
        assemble(&parts).is_err()
    };
    assert!(with(&|part| drop(part.pages.remove(1))));
    assert!(with(&|part| part.epochs.truncate(2)));
    assert!(with(&|part| part.pages.swap(0, 1)));
    assert!(with(&|part| part.pages.push(part.pages[2].clone())));
    assert!(with(&|part| part.vdisk = VdiskId(8)));
    assert!(with(&|part| part.last = false));
    assert!(with(&|part| part.state.object = None));
    // A page of the same number and count, but of another state of the map.
    assert!(with(&|part| part.pages[0] = {
        let (number, stored, _) = page_of(0, &[2]);
        (number, stored)
    }));
    assert!(with(&|part| {
        let mut stored = part.pages[0].1.to_vec();
        stored[3] ^= 1;
        part.pages[0].1 = Bytes::from(stored);
    }));
}

/// Each of them is a good part with a good checksum: who sends such ones could go on for ever (L8).
#[test]
fn what_brings_the_end_no_nearer_is_refused_at_once() {
    let whole = parts_of(&(0..6000).collect::<Vec<u64>>(), 3, 6000);
    assert!(3 < whole.len());
    let taken = |change: &dyn Fn(&mut Part)| {
        let mut assembly = Assembly::new(VDISK);
        assembly.take(&whole[0]).unwrap();
        let mut next = whole[1].clone();
        change(&mut next);
        assembly.take(&next)
    };
    assert_eq!(taken(&|_| ()), Ok(()));
    assert!(taken(&|part| part.pages.clear()).is_err(), "an empty part");
    let nothing = |number| {
        (number, Bytes::from(Page::default().encode(&page_key(VDISK, number, GENERATION))))
    };
    assert!(taken(&|part| part.pages = vec![nothing(9)]).is_err(), "an empty page");
    // More than there is, by its own state.
    let mut assembly = Assembly::new(VDISK);
    let more = |part: &Part, change: &dyn Fn(&mut MapState)| {
        let mut part = part.clone();
        change(&mut part.state);
        part
    };
    assert!(assembly.take(&more(&whole[0], &|state| state.totals.mapped = 5)).is_err());
    let mut assembly = Assembly::new(VDISK);
    assert!(assembly.take(&more(&whole[0], &|state| state.epochs = 2)).is_err());
}

#[test]
fn who_reads_a_map_out_has_time_for_all_of_it_and_not_for_ever() {
    for mapped in [0, 1, 1 << 20, 1 << 28, 1 << 32, u64::MAX] {
        // Who lends one is more patient than who borrows.
        assert!(crate::origin::patience(mapped) < LOAN.life(mapped), "{mapped}");
        assert!(LOAN.life(mapped) <= CHECKPOINT.life(mapped), "{mapped}");
        // At the pace at which checkpoints are written at most, with as much again to spare.
        let paced = Duration::from_secs(mapped.saturating_mul(8) / 20_000_000);
        assert!(paced < CHECKPOINT.life(mapped) || 1 << 32 < mapped, "{mapped}");
        assert!(CHECKPOINT.life(mapped) <= Duration::from_secs(4 * 3600));
    }
}

#[test]
fn parts_of_two_maps_don_t_mix() {
    let clusters: Vec<u64> = (0..3000).collect();
    let (one, mut other) = (parts_of(&clusters, 1, 6000), parts_of(&clusters, 1, 6000));
    for part in &mut other {
        part.state.last_lsn = Lsn(6);
    }
    assert!(assemble(&[&one[..2], &other[2..]].concat()).is_err());
}

#[test]
fn a_part_has_these_bytes() {
    let parts = parts_of(&[5], 1, 1 << 20);
    let [part] = &parts[..] else { panic!("one part") };
    let bytes = part.encode();
    assert_eq!(&bytes[..5], b"HFPM\x01");
    assert_eq!((bytes[5], bytes[21]), (7, 70), "the vDisk, the length of the state");
    assert_eq!((bytes[25], bytes[26]), (2, 1), "a state of version 2 with a TLog");
    assert_eq!(&bytes[95..100], [0, 0, 0, 0, 1], "part 0, the last");
    assert_eq!(&bytes[100..104], [1, 0, 0, 0], "one epoch");
    assert_eq!(&bytes[120..124], [1, 0, 0, 0], "one page");
    assert_eq!(bytes.len(), FRAME_BYTES + EPOCH_BYTES + 12 + 14);
    let sum = u32::from_le_bytes(bytes[bytes.len() - 4..].try_into().unwrap());
    assert_eq!(sum, 0x9fc6c22b);
}
