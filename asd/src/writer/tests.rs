//! A disk's real files, segments and RocksDB index, against power cuts and damage, copied at many moments of a run.
//!
//! Everything acknowledged is known. What a copy opens as must be just that: where the segments are whole, whatever became
//! of the index; where a segment is damaged, but for fragments that read as corrupt.
//!
//! Invariant: a power cut is never damage, and damage is never served (L5, L6).

use super::*;
use asd_core::crc;
use asd_core::index::{Batch, Durability, Entry, Index, Lookup, Meta, SegmentRow};
use asd_core::read::{Reading, Want, read};
use asd_core::store::Put;
use bytes::Bytes;
use model::Lap;
use sim::files::{self, TAILS, Tail, cut};
use sim::seeds::Shown;
use sim::{Chance, Random};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::rc::Rc;
use wire::asd::PutCondition;

const OSD: OsdId = OsdId(0xa5d);
const SEGMENT: u64 = 64 << 10;

/// Lengths of the index's logs when it was last synced.
type Synced = Rc<RefCell<BTreeMap<String, u64>>>;
type Truth = BTreeMap<Bytes, Option<Bytes>>;

/// The index, and what of its log a sync covers.
struct Traced {
    inner: RocksIndex,
    dir: PathBuf,
    synced: Synced,
}

impl Traced {
    fn note(&self) {
        let mut lengths = files::lengths(&self.dir).unwrap();
        lengths.retain(|name, _| name.ends_with(".log"));
        *self.synced.borrow_mut() =
            lengths.into_iter().map(|(name, len)| (format!("index/{name}"), len)).collect();
    }
}

impl Lookup for Traced {
    fn get(&self, key: &[u8]) -> Result<Option<Entry>, IndexError> {
        self.inner.get(key)
    }

    fn entries_from(&self, start: &[u8], limit: usize) -> Result<Vec<(Bytes, Entry)>, IndexError> {
        self.inner.entries_from(start, limit)
    }
}

impl Index for Traced {
    fn meta(&self) -> Result<Option<Meta>, IndexError> {
        self.inner.meta()
    }

    fn segments(&self) -> Result<Vec<(Lap, SegmentRow)>, IndexError> {
        self.inner.segments()
    }

    fn apply(&mut self, batch: &Batch, durability: Durability) -> Result<(), IndexError> {
        self.inner.apply(batch, durability)?;
        if durability == Durability::Synced {
            self.note();
        }
        Ok(())
    }

    fn clear(&mut self) -> Result<(), IndexError> {
        self.inner.clear()?;
        self.note();
        Ok(())
    }
}

fn place(dir: &Path) -> Place {
    let limits = Limits::new(24 * SEGMENT, SEGMENT).unwrap();
    Place { index_dir: dir.join("index"), limits, reserve: 0 }
}

struct Life {
    dir: tempfile::TempDir,
    store: Option<Store<SegmentDisk, Traced>>,
    synced: Synced,
    truth: Truth,
    random: Random,
}

impl Life {
    fn new(mut random: Random) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (synced, truth) = (Synced::default(), Truth::new());
        let mut life = Self { dir, store: None, synced, truth, random: random.fork() };
        life.open();
        life
    }

    fn open(&mut self) {
        let place = place(self.dir.path());
        let files = Files::open(&self.dir.path().join("segments")).unwrap();
        let inner = RocksIndex::open(&place.index_dir).unwrap();
        let index = Traced { inner, dir: place.index_dir, synced: Rc::clone(&self.synced) };
        let options = Options { osd: OSD, limits: place.limits };
        let opened = Store::open(SegmentDisk::new(files, 0), index, options, Now::default());
        self.store = Some(opened.unwrap().0);
    }

    fn step(&mut self) {
        if self.random.happens(Chance::percent(3)) {
            // A kill: RocksDB makes a table of what its log holds.
            self.store = None;
            self.open();
        }
        let ops: Vec<Op> = (0..self.random.between(1..=4)).map(|_| self.op()).collect();
        let store = self.store.as_mut().unwrap();
        let outcomes = store.commit(&ops, Now::default());
        for (op, outcome) in ops.iter().zip(outcomes) {
            let value = match (op, outcome) {
                (Op::Put(put), Outcome::Stored) => Some(put.data.clone()),
                (Op::Delete(_), Outcome::Deleted) => None,
                (_, Outcome::Full) => continue,
                (op, outcome) => panic!("{:?}: {outcome:?}", op.key()),
            };
            self.truth.insert(op.key().clone(), value);
        }
        for _ in 0..self.random.below(3) {
            store.compact(20_000, Now::default());
        }
    }

    fn op(&mut self) -> Op {
        let key = Bytes::from(format!("key-{}", self.random.below(40)));
        if self.random.happens(Chance::percent(20)) {
            return Op::Delete(key);
        }
        let mut data = vec![0; self.random.index(16_000)];
        self.random.fill(&mut data);
        let checksums = crc::blocks(&data);
        Op::Put(Put { key, data: data.into(), checksums, condition: PutCondition::Always })
    }

    /// The files as they are, and those of the index that it counts on.
    fn sample(&self) -> (files::Files, BTreeSet<String>) {
        let matters = |name: &str| !name.contains("/LOG") && !name.ends_with("LOCK");
        let index = &self.store.as_ref().unwrap().index().inner;
        let live = || -> BTreeSet<String> {
            let files = index.live_files().unwrap();
            files.into_iter().map(|name| format!("index{name}")).collect()
        };
        for _ in 0..1_000 {
            let before = live();
            let files = files::Files::sample(self.dir.path(), matters).unwrap();
            if before == live() && before.iter().all(|name| files.0.contains_key(name)) {
                return (files, before);
            }
        }
        panic!("compaction never paused");
    }
}

/// What a copy came to.
#[derive(Debug, Default, Clone, Copy)]
struct Judged {
    refused: u64,
    rebuilt: u64,
    right: u64,
    corrupt: u64,
}

/// Opens a copy as the daemon does and reads everything.
fn judge(files: &files::Files, truth: &Truth) -> (Judged, Recovery) {
    let dir = tempfile::tempdir().unwrap();
    files.write(dir.path()).unwrap();
    let segments = Files::open(&dir.path().join("segments")).unwrap();
    let mut judged = Judged::default();
    let Ok((store, recovery)) = open_disk(&segments, &place(dir.path()), OSD) else {
        judged.refused += 1;
        return (judged, Recovery::default());
    };
    judged.rebuilt += u64::from(recovery.rebuilt);
    for (key, value) in truth {
        let found = read(store.index(), store.disk(), OSD, key, Want::ALL);
        let seen = match found {
            Ok(Reading::Found { bytes, .. }) => Some(bytes),
            Ok(Reading::Absent) => None,
            Ok(Reading::Corrupt { .. } | Reading::Elsewhere | Reading::OutOfRange { .. })
            | Err(_) => {
                judged.corrupt += 1;
                continue;
            }
        };
        let len = |value: &Option<Bytes>| value.as_ref().map(Bytes::len);
        assert!(seen == *value, "{key:?} has {:?} bytes, not {:?}", len(&seen), len(value));
        judged.right += 1;
    }
    (judged, recovery)
}

fn soak() -> bool {
    std::env::var("HOLDFAST_SOAK").is_ok_and(|value| value == "1")
}

#[test]
fn power_cuts_at_sampled_moments_keep_everything_and_the_index() {
    let samples = if soak() { 1_000 } else { 200 };
    let mut random = Random::new(31);
    let mut life = Life::new(random.fork());
    let (mut replayed, mut lost_bytes) = (0, 0);
    for number in 0..samples {
        for _ in 0..=random.below(4) {
            life.step();
        }
        let (mut files, live) = life.sample();
        let tail = TAILS[number % TAILS.len()];
        let synced = life.synced.borrow();
        for (name, bytes) in files.0.iter_mut().filter(|(name, _)| name.starts_with("index/")) {
            let unfinished = !live.contains(name) && !files::is_whole_table(bytes);
            let table = name.ends_with(".sst") && unfinished;
            if table || name.ends_with(".log") {
                let safe = model::usize_of(synced.get(name).copied().unwrap_or(0));
                let before = bytes.len();
                cut(bytes, safe, tail, &mut random);
                lost_bytes += before - bytes.len();
            }
        }
        let _shown = Shown::new(format!("sample {number}, {tail:?}"));
        let (judged, recovery) = judge(&files, &life.truth);
        assert_eq!((judged.refused, judged.corrupt, judged.rebuilt), (0, 0, 0), "{recovery:?}");
        assert_eq!((recovery.lost, recovery.missing_segments), (0, 0));
        replayed += u64::from(tail == Tail::Lost && 0 < recovery.replayed);
    }
    eprintln!("{samples} cuts, {lost_bytes} bytes of log lost, {replayed} replays");
    assert!(0 < lost_bytes && samples as u64 / 20 < replayed, "{lost_bytes}, {replayed}");
}

#[test]
fn damage_to_any_file_of_a_disk_is_never_served() {
    let count = if soak() { 3_000 } else { 200 };
    let mut random = Random::new(32);
    let mut life = Life::new(random.fork());
    for _ in 0..260 {
        life.step();
    }
    let (files, live) = life.sample();
    let of_index = |name: &str| {
        let kinds = ["CURRENT", "IDENTITY", "MANIFEST", ".log"];
        live.contains(name) || kinds.iter().any(|kind| name.contains(kind))
    };
    assert!(live.len() > 1, "{live:?}");
    let (mut all, mut flips) = (Judged::default(), 0);
    for number in 0..count {
        let mut files = files.clone();
        let segment = random.happens(Chance::percent(30));
        let may = |name: &str| if segment { name.starts_with("segments/") } else { of_index(name) };
        let Some(harm) = files.harm(&mut random, may) else { continue };
        let _shown = Shown::new(format!("damage {number}, {harm}"));
        flips += u64::from(harm.damage.is_flip());
        let (judged, recovery) = judge(&files, &life.truth);
        if !segment {
            let seen = (judged.corrupt, recovery.lost, recovery.missing_segments);
            assert_eq!(seen, (0, 0, 0), "the segments are whole");
        }
        all.refused += judged.refused;
        all.rebuilt += judged.rebuilt;
        all.right += judged.right;
        all.corrupt += judged.corrupt;
    }
    eprintln!("{count} damages, {flips} flips: {all:?}");
    assert!(0 < all.rebuilt && 0 < all.corrupt && count / 2 < flips, "{all:?}, {flips} flips");
}
