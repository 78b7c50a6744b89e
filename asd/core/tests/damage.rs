//! Damage to segment files: flipped bits, zeroed blocks, cuts, blocks in each other's place.
//!
//! Histories run on the twins; then, again and again, one place of one file of a copy is harmed, and the copy is opened with
//! its index, with one that is behind, and with none. All that was ever acknowledged is known.
//!
//! Invariant: a fragment reads as it was last acknowledged, or as corrupt. Without an index a lost header may hide the
//! newest version of a key; then opening says that records are lost (L5, P8). What is written afterwards is right.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use asd_core::crc;
use asd_core::disk::Disk;
use asd_core::index::{IndexError, Lookup};
use asd_core::read::{Reading, Want, read};
use asd_core::space::Limits;
use asd_core::store::{Op, OpenError, Options, Outcome, Put, Recovery, Store};
use asd_core::twin::{Dice, MemoryDisk, MemoryIndex, Power};
use bytes::Bytes;
use model::{Now, OsdId};
use sim::files::{Damage, damage};
use sim::seeds::Shown;
use sim::{Chance, Random};
use std::collections::{BTreeMap, BTreeSet};
use wire::asd::PutCondition;

const OSD: OsdId = OsdId(0xa5d);
const SEGMENT: u64 = 64 << 10;
const BATCHES: u64 = 40;
const HARMS: u64 = 60;

type TwinStore = Store<MemoryDisk, MemoryIndex>;

/// Every value that each key ever had, the newest last; `None` = deleted.
type Past = BTreeMap<Bytes, Vec<Option<Bytes>>>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum IndexIs {
    Whole,
    Behind,
    Gone,
}

#[derive(Debug, Default)]
struct Tally {
    harms: u64,
    flips: u64,
    right: u64,
    corrupt: u64,
    /// Reads of what an alarm had been raised for.
    reported: u64,
    /// Reads of what a torn write might have taken as well.
    torn: u64,
}

fn options() -> Options {
    Options { osd: OSD, limits: Limits::new(20 * SEGMENT, SEGMENT).unwrap() }
}

fn random_ops(random: &mut Random) -> Vec<Op> {
    let count = random.between(1..=5);
    (0..count)
        .map(|_| {
            let key = Bytes::from(format!("key-{}", random.below(14)));
            if random.happens(Chance::percent(25)) {
                return Op::Delete(key);
            }
            let len = *random.pick(&[0, 1, 500, 4096, 5000, 12_000, 30_000]).unwrap();
            let mut data = vec![0; len];
            random.fill(&mut data);
            let checksums = crc::blocks(&data);
            Op::Put(Put { key, data: data.into(), checksums, condition: PutCondition::Always })
        })
        .collect()
}

/// Keys that the last sync may have covered: deletes of what isn't there write nothing.
fn live(
    store: &mut TwinStore,
    past: &mut Past,
    batches: u64,
    random: &mut Random,
) -> BTreeSet<Bytes> {
    let mut last = BTreeSet::new();
    for second in 0..batches {
        let now = Now(std::time::Duration::from_secs(second));
        let ops = random_ops(random);
        let syncs = store.counters().syncs;
        let outcomes = store.commit(&ops, now);
        let written = syncs < store.counters().syncs;
        let mut touched = BTreeSet::new();
        for (op, outcome) in ops.iter().zip(outcomes) {
            let value = match (op, outcome) {
                (Op::Put(put), Outcome::Stored) => Some(put.data.clone()),
                (Op::Delete(_), Outcome::Deleted) => None,
                (_, Outcome::Full | Outcome::Failed | Outcome::Exists) => continue,
                (op, outcome) => panic!("{:?}: {outcome:?}", op.key()),
            };
            past.entry(op.key().clone()).or_default().push(value);
            touched.insert(op.key().clone());
        }
        if written {
            last = touched;
        }
        let syncs = store.counters().syncs;
        for _ in 0..random.below(4) {
            store.compact(20_000, now);
        }
        if syncs < store.counters().syncs {
            // What it copied is the last that was written then, and the place it came from may be gone.
            last = past.keys().cloned().collect();
        }
    }
    last
}

/// What a history left, and how.
struct Left {
    disk: MemoryDisk,
    index: MemoryIndex,
    past: Past,
    last_batch: BTreeSet<Bytes>,
    closed: bool,
}

fn history(random: &mut Random) -> Left {
    let (disk, index) = (MemoryDisk::default(), MemoryIndex::default());
    let (mut store, _) = Store::open(disk, index, options(), Now::default()).unwrap();
    let mut past = Past::new();
    let last_batch = live(&mut store, &mut past, BATCHES, random);
    let closed = random.happens(Chance::percent(50));
    if closed {
        store.close(Now::default());
    }
    let (disk, index) = store.into_parts();
    Left { disk, index, past, last_batch, closed }
}

fn get(store: &TwinStore, key: &Bytes) -> Reading {
    read(store.index(), store.disk(), OSD, key, Want::ALL).unwrap()
}

/// Judges each key's reading after `done`.
fn judge(
    store: &TwinStore,
    left: &Left,
    (index, done): (IndexIs, Damage),
    recovery: Recovery,
    tally: &mut Tally,
) {
    let reported = 0 < recovery.lost + recovery.missing_segments;
    let one_place = matches!(done, Damage::Flip { .. } | Damage::Zeroed { .. });
    for (key, values) in &left.past {
        let newest = values.last().unwrap();
        let seen = match get(store, key) {
            Reading::Found { bytes, .. } => Some(bytes),
            Reading::Absent => None,
            Reading::Corrupt { .. } | Reading::Elsewhere | Reading::OutOfRange { .. } => {
                tally.corrupt += 1;
                continue;
            }
        };
        if seen == *newest {
            tally.right += 1;
            continue;
        }
        let len = |value: &Option<Bytes>| value.as_ref().map(Bytes::len);
        let what = format!(
            "{key:?} with the index {index:?}: {:?} bytes, not {:?}; {recovery:?}",
            len(&seen),
            len(newest)
        );
        assert_ne!(index, IndexIs::Whole, "{what}");
        assert!(seen.is_none() || values.contains(&seen), "never stored: {what}");
        if reported {
            tally.reported += 1;
        } else {
            // Without an index nothing but later records vouches for the last batch, and those a cut or a swap may take too.
            let torn = !left.closed && left.last_batch.contains(key);
            assert!(torn || !one_place, "silent: {what}");
            tally.torn += 1;
        }
    }
}

fn attack(left: &Left, random: &mut Random, tally: &mut Tally) {
    let index_is = *random.pick(&[IndexIs::Whole, IndexIs::Behind, IndexIs::Gone]).unwrap();
    let mut dice = Dice::new(random.u64());
    let index = match index_is {
        IndexIs::Whole => left.index.clone(),
        IndexIs::Behind => left.index.clone().after_power_cut(&mut dice, Power::stays()),
        IndexIs::Gone => MemoryIndex::default(),
    };
    let mut disk = left.disk.clone().after_kill(Power::stays());
    let files: Vec<_> = disk.list().unwrap().into_iter().map(|(file, _)| file).collect();
    let file = *random.pick(&files).unwrap();
    let Some(done) = disk.alter(file, |bytes| damage(bytes, random)) else { return };
    let _shown = Shown::new(format!("segment {file}: {done:?}, index {index_is:?}"));
    tally.harms += 1;
    tally.flips += u64::from(done.is_flip());
    let (mut store, recovery) = Store::open(disk, index, options(), Now::default())
        .expect("damage to one segment doesn't keep the others from being served");
    judge(&store, left, (index_is, done), recovery, tally);
    // Life goes on among the ruins.
    let mut past = Past::new();
    live(&mut store, &mut past, 4, random);
    for (key, values) in &past {
        let newest = values.last().unwrap();
        match get(&store, key) {
            Reading::Found { bytes, .. } => assert_eq!(Some(&bytes), newest.as_ref()),
            Reading::Absent => assert_eq!(newest, &None),
            other @ (Reading::Corrupt { .. } | Reading::Elsewhere | Reading::OutOfRange { .. }) => {
                panic!("{key:?} was written after the damage and reads as {other:?}")
            }
        }
    }
}

#[test]
fn damage_to_segments_is_never_served() {
    let soak = std::env::var_os("HOLDFAST_SOAK").is_some();
    let mut tally = Tally::default();
    let mut life = |seed| {
        let mut random = Random::new(seed);
        let left = history(&mut random);
        for _ in 0..HARMS {
            attack(&left, &mut random, &mut tally);
        }
        random.u64()
    };
    // The last record of a full segment was damaged, and nothing said that it had been: with the next segment there, and
    // at a clean end that found no room for its mark.
    for seed in [46, 193] {
        let _shown = Shown::new(format!("seed {seed}"));
        life(seed);
    }
    sim::seeds::check(if soak { 400 } else { 16 }, life);
    eprintln!("{tally:?}");
    assert!(tally.harms / 2 < tally.flips && 0 < tally.corrupt && 0 < tally.reported, "{tally:?}");
}

#[test]
fn l6_an_index_that_lost_an_entry_is_not_believed() {
    let left = history(&mut Random::new(5));
    let open = |index| Store::open(left.disk.clone(), index, options(), Now::default()).map(drop);
    assert_eq!(open(left.index.clone()), Ok(()));
    let entries = left.index.entries_from(&[], 1000).unwrap();
    assert!(entries.len() > 5, "{entries:?}");
    for (key, _) in entries {
        let mut index = left.index.clone();
        index.lose(&key);
        let opened = open(index);
        assert!(
            matches!(opened, Err(OpenError::Index(IndexError::Damaged(_)))),
            "{key:?}: {opened:?}"
        );
    }
}
