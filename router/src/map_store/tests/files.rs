//! The files of a page map against power cuts and damage, copied at many moments of a run.
//!
//! All TLogs of the run are known, as the backend knows them. Whatever a copy opens as, once it followed the TLogs that it
//! lacks it must be the map of all of them: a map that lost something and doesn't know would keep the hole.
//!
//! Invariant: a map is right, behind, rebuilt, or refused; never wrong (L5, L6).

use std::collections::BTreeSet;

use router_core::map::MemoryMap;
use sim::files::{self, Files, TAILS, Tail, cut};
use sim::{Chance, Random};

use super::*;

const PAGES: u64 = 80;
/// Between two looks at the manifest.
const STEPS: usize = 60;
const CLUSTERS: u64 = PAGES * PAGE_CLUSTERS;

/// What a copy opened as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Opened {
    /// At some TLog of the run.
    Behind(u64),
    Rebuilt,
    Refused,
}

fn soak() -> bool {
    std::env::var("HOLDFAST_SOAK").is_ok_and(|value| value == "1")
}

fn open(dir: &Path) -> MapStore {
    let store = MapStore::open(dir, 1 << 20).unwrap();
    store.open_table(VDISK).unwrap();
    store
}

struct Life {
    dir: tempfile::TempDir,
    store: Option<MapStore>,
    tlogs: Vec<Tlog>,
    /// All of them, applied.
    map: MemoryMap,
    /// The last TLog that was written back.
    stored: u64,
    may_die: bool,
    random: Random,
}

impl Life {
    fn new(mut random: Random) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Some(open(&dir.path().join("map")));
        Self {
            dir,
            store,
            tlogs: Vec::new(),
            map: MemoryMap::default(),
            stored: 0,
            may_die: true,
            random: random.fork(),
        }
    }

    fn store(&self) -> &MapStore {
        self.store.as_ref().unwrap()
    }

    fn step(&mut self) {
        let number = self.tlogs.len() as u64 + 1;
        let random = &mut self.random;
        let mut ranges = |count: u64, len: u64| -> Vec<(u64, u64)> {
            let count = random.below(count + 1);
            (0..count).map(|_| (random.below(CLUSTERS - len), 1 + random.below(len))).collect()
        };
        let unmaps = if number.is_multiple_of(7) { ranges(2, 12_000) } else { Vec::new() };
        let mut runs: Vec<(u64, u32)> =
            ranges(4, 400).into_iter().map(|(at, len)| (at, u32::try_from(len).unwrap())).collect();
        runs.sort_unstable();
        runs.dedup_by(|next, one| next.0 < one.0 + u64::from(one.1));
        let tlog = tlog(number, &unmaps, &runs);
        self.store().apply(&tlog).unwrap();
        self.map.apply(&tlog);
        self.tlogs.push(tlog);
        match self.random.below(10) {
            0..=4 => self.write_back(),
            5 if number.is_multiple_of(4) && self.may_die => {
                // A kill: what wasn't written back comes from the TLogs.
                self.store = None;
                let store = open(&self.dir.path().join("map"));
                let last = store.state(VDISK).unwrap().last_lsn;
                self.tlogs.iter().filter(|tlog| last < tlog.last_lsn).for_each(|tlog| {
                    store.apply(tlog).unwrap();
                });
                self.store = Some(store);
            }
            _ => {}
        }
    }

    fn write_back(&mut self) {
        self.store().write_back(VDISK).unwrap();
        self.stored = self.tlogs.len() as u64;
    }

    /// The files as they are, and which of them the database counts on.
    fn sample(&self) -> (Files, BTreeSet<String>) {
        let matters = |name: &str| !name.contains("/LOG") && !name.ends_with("LOCK");
        let live = || -> BTreeSet<String> {
            let files = self.store().shared.place.with(rocksdb::DB::live_files).unwrap();
            files.into_iter().map(|file| format!("map{}", file.name)).collect()
        };
        for _ in 0..1_000 {
            let before = live();
            let files = Files::sample(self.dir.path(), matters).unwrap();
            if before == live() && before.iter().all(|name| files.0.contains_key(name)) {
                return (files, before);
            }
        }
        panic!("compaction never paused");
    }

    /// The whole map, by page.
    fn expected(&self) -> Vec<Vec<Option<router_core::page::Location>>> {
        let map = &self.map;
        let page = |number| (0..PAGE_CLUSTERS).map(move |at| Cluster(number * PAGE_CLUSTERS + at));
        (0..PAGES).map(|number| page(number).map(|cluster| map.get(cluster)).collect()).collect()
    }
}

type Expected = [Vec<Option<router_core::page::Location>>];

/// Opens a copy, follows the TLogs that it lacks as a router does, and compares everything.
fn judge(files: &Files, tlogs: &[Tlog], expected: &Expected) -> Opened {
    let dir = tempfile::tempdir().unwrap();
    files.write(dir.path()).unwrap();
    let Ok(store) = MapStore::open(&dir.path().join("map"), 1 << 20) else {
        return Opened::Refused;
    };
    let Ok(state) = store.open_table(VDISK) else { return Opened::Refused };
    let at = state.object.map_or(0, |object| object.number.0);
    assert!(at <= tlogs.len() as u64 && state.last_lsn == Lsn(at), "{state:?} never was");
    let mut opened = if at == 0 { Opened::Rebuilt } else { Opened::Behind(at) };
    let caught_up = catch_up(&store, tlogs).and_then(|()| same(&store, tlogs, expected));
    if let Err(error) = caught_up {
        assert!(error.is_damage(), "{error}");
        store.erase(VDISK).unwrap();
        store.open_table(VDISK).unwrap();
        catch_up(&store, tlogs).and_then(|()| same(&store, tlogs, expected)).unwrap();
        opened = Opened::Rebuilt;
    }
    opened
}

fn catch_up(store: &MapStore, tlogs: &[Tlog]) -> Result<(), MapError> {
    let last = store.state(VDISK).ok_or(MapError::Closed(VDISK))?.last_lsn;
    tlogs.iter().filter(|tlog| last < tlog.last_lsn).try_for_each(|tlog| store.apply(tlog))?;
    store.complete(VDISK);
    Ok(())
}

/// Every location and every name of an object, or an error: anything else fails here.
fn same(store: &MapStore, tlogs: &[Tlog], expected: &Expected) -> Result<(), MapError> {
    for (number, locations) in (0..).zip(expected) {
        let page = store.load(VDISK, number)?;
        for (index, location) in locations.iter().enumerate() {
            assert_eq!(page.get(index), *location, "page {number}, cluster {index}");
        }
    }
    for tlog in tlogs {
        assert_eq!(store.object(VDISK, tlog.object.number), Some(tlog.object));
    }
    Ok(())
}

#[test]
fn power_cuts_at_sampled_moments_leave_a_map_that_was_written_back() {
    let samples = if soak() { 1_000 } else { 200 };
    let mut random = Random::new(21);
    let mut life = Life::new(random.fork());
    let (mut cuts, mut fresh) = (0, 0);
    for number in 0..samples {
        for _ in 0..=random.below(3) {
            life.step();
        }
        let (mut files, live) = life.sample();
        let tail = TAILS[number % TAILS.len()];
        for (name, bytes) in &mut files.0 {
            // RocksDB syncs a table before it names it in the manifest, and the manifest before it counts on it.
            let unfinished = !live.contains(name) && !files::is_whole_table(bytes);
            let table = name.ends_with(".sst") && unfinished;
            if table || name.contains("/LOG") || name.contains("/OPTIONS") {
                cuts += u64::from(tail != Tail::Kept);
                cut(bytes, 0, tail, &mut random);
            }
        }
        let opened = judge(&files, &life.tlogs, &life.expected());
        let stored = if life.stored == 0 { Opened::Rebuilt } else { Opened::Behind(life.stored) };
        // A write-back may have come by itself since, when there was much to write.
        assert!(stored <= opened && opened != Opened::Refused, "{number}: {opened:?}, {stored:?}");
        fresh += u64::from(stored == opened);
    }
    assert!(0 < cuts && samples as u64 / 2 < fresh, "{cuts} cuts, {fresh} of {samples}");
}

#[test]
fn damage_to_any_file_of_the_map_is_never_served() {
    let count = if soak() { 3_000 } else { 160 };
    let mut random = Random::new(22);
    let mut life = Life::new(random.fork());
    let manifest = |name: &str| name.contains("MANIFEST");
    // So many write-backs of one process that the manifest is longer than the 32 KiB in which RocksDB reads it: a hole in
    // the midst of it is skipped silently.
    let (files, live) = loop {
        for _ in 0..STEPS {
            life.step();
            life.write_back();
        }
        let (files, live) = life.sample();
        if files.0.iter().any(|(name, bytes)| manifest(name) && 40 << 10 < bytes.len()) {
            break (files, live);
        }
        life.may_die = false;
        assert!(life.tlogs.len() < 1_000, "the manifest doesn't grow");
    };
    let expected = life.expected();
    let (mut flips, mut behind, mut rebuilt, mut refused) = (0, 0, 0, 0);
    for number in 0..count {
        let _shown = sim::seeds::Shown::new(format!("damage {number}"));
        let mut files = files.clone();
        let may = |name: &str| {
            live.contains(name)
                || manifest(name)
                || name.ends_with("CURRENT")
                || name.ends_with("IDENTITY")
        };
        let only_manifest = random.happens(Chance::percent(30));
        let chosen = |name: &str| if only_manifest { manifest(name) } else { may(name) };
        let Some(harm) = files.harm(&mut random, chosen) else { continue };
        let _shown = sim::seeds::Shown::new(harm.to_string());
        flips += u64::from(harm.damage.is_flip());
        match judge(&files, &life.tlogs, &expected) {
            Opened::Behind(_) => behind += 1,
            Opened::Rebuilt => rebuilt += 1,
            Opened::Refused => refused += 1,
        }
    }
    eprintln!(
        "{count} damages, {flips} flips: {behind} right or behind, {rebuilt} rebuilt, {refused} refused"
    );
    assert!(0 < behind && 0 < rebuilt && count / 2 < flips, "{behind}, {rebuilt}, {flips}");
}

/// One bit, and RocksDB by itself would read the record for ever.
#[test]
fn a_manifest_whose_second_record_is_of_the_recycled_form_is_rebuilt() {
    let mut life = Life::new(Random::new(23));
    for _ in 0..STEPS {
        life.step();
        life.write_back();
    }
    let (mut files, _) = life.sample();
    let mut manifests = files.0.iter_mut().filter(|(name, _)| name.contains("MANIFEST"));
    let (_, bytes) = manifests.next().expect("every database has one");
    assert!(manifests.next().is_none());
    let second = 7 + usize::from(u16::from_le_bytes([bytes[4], bytes[5]]));
    bytes[second + 6] ^= 0x04;
    assert!((5..=8).contains(&bytes[second + 6]), "type {}", bytes[second + 6]);
    assert_eq!(judge(&files, &life.tlogs, &life.expected()), Opened::Rebuilt);
}
