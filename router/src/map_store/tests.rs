//! The stored map against the map in memory, with write-backs, crashes and damage in between.

use super::*;
use model::{Cluster, ClusterRange, Lsn};
use proptest::prelude::*;
use router_core::map::MemoryMap;
use router_core::map_stream::{LOAN, PART_MIN, Part};
use router_core::page::{PAGE_CLUSTERS, place};
use router_core::tlog::Run;

mod files;
mod incoming;
mod lazily;

const VDISK: VdiskId = VdiskId(77);

fn tlog(number: u64, unmaps: &[(u64, u64)], runs: &[(u64, u32)]) -> Tlog {
    Tlog {
        object: ObjectId { vdisk: VDISK, epoch: Epoch(1 + number / 5), number: ScoNumber(number) },
        first_lsn: Lsn(number),
        last_lsn: Lsn(number),
        size_bytes: 0,
        epochs: Vec::new(),
        unmaps: unmaps.iter().map(|(s, n)| ClusterRange::new(Cluster(*s), *n).unwrap()).collect(),
        runs: runs.iter().map(|(s, n)| Run { start: Cluster(*s), count: *n }).collect(),
        applied: Vec::new(),
    }
}

fn compare(store: &MapStore, map: &MemoryMap) {
    for cluster in (0..62_000).step_by(7) {
        let page = store.load(VDISK, cluster / PAGE_CLUSTERS).unwrap();
        let (_, index) = place(Cluster(cluster));
        assert_eq!(page.get(index), map.get(Cluster(cluster)), "cluster {cluster}");
    }
    assert_eq!(store.state(VDISK).unwrap().totals, map.totals);
    assert_eq!(store.recount(VDISK).unwrap(), map.totals);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]
    #[test]
    fn a_stored_map_follows_its_tlogs_through_crashes(
        steps in proptest::collection::vec((proptest::collection::vec((0u64..40_000, 0u64..20_000), 0..3),
                                           proptest::collection::vec((0u64..40_000, 1u32..600), 0..4), 0u8..8), 1..12)
    ) {
        let dir = tempfile::tempdir().unwrap();
        let mut store = MapStore::open(dir.path(), 1 << 20).unwrap();
        store.open_table(VDISK).unwrap();
        store.complete(VDISK);
        let mut map = MemoryMap::default();
        let mut history = Vec::new();
        for (at, (unmaps, runs, then)) in steps.iter().enumerate() {
            let tlog = tlog(at as u64 + 1, unmaps, runs);
            store.apply(&tlog).unwrap();
            map.apply(&tlog);
            history.push(tlog);
            match then {
                0 => store.write_back(VDISK).unwrap(),
                1 => {
                    // A crash: what wasn't written back is gone, and is replayed from the TLogs.
                    drop(store);
                    store = MapStore::open(dir.path(), 1 << 20).unwrap();
                    let state = store.open_table(VDISK).unwrap();
                    for tlog in history.iter().filter(|tlog| state.last_lsn < tlog.last_lsn) {
                        store.apply(tlog).unwrap();
                    }
                    store.complete(VDISK);
                }
                _ => {}
            }
        }
        compare(&store, &map);
        for tlog in &history {
            prop_assert_eq!(store.object(VDISK, tlog.object.number), Some(tlog.object));
        }
    }
}

#[test]
fn unmapping_16_tib_is_one_drop() {
    let dir = tempfile::tempdir().unwrap();
    let store = MapStore::open(dir.path(), 1 << 20).unwrap();
    store.open_table(VDISK).unwrap();
    store.complete(VDISK);
    store.apply(&tlog(1, &[], &[(5, 3), (1 << 31, 2)])).unwrap();
    store.write_back(VDISK).unwrap();
    store.apply(&tlog(2, &[(0, 1 << 32)], &[(9, 1)])).unwrap();
    assert_eq!(store.state(VDISK).unwrap().totals.mapped, 1);
    assert_eq!(store.next_page(VDISK, 0).unwrap(), Some(0));
    assert_eq!(store.next_page(VDISK, 1).unwrap(), None);
    store.write_back(VDISK).unwrap();
    assert_eq!(store.recount(VDISK).unwrap().mapped, 1);
}

#[test]
fn a_damaged_page_is_never_used() {
    let dir = tempfile::tempdir().unwrap();
    let store = MapStore::open(dir.path(), 1 << 20).unwrap();
    store.open_table(VDISK).unwrap();
    store.complete(VDISK);
    store.apply(&tlog(1, &[], &[(5, 3)])).unwrap();
    store.write_back(VDISK).unwrap();
    let key = page_key(VDISK, 0, GENERATION);
    let place = &store.shared.place;
    let mut bytes = place.with(|db| db.get(key)).unwrap().unwrap();
    bytes[3] ^= 1;
    place.with(|db| db.put(key, bytes)).unwrap();
    store.shared.clean.clear();
    assert!(matches!(store.load(VDISK, 0), Err(MapError::BadPage { page: 0, .. })));
    // Opened anew it is found at once, and the map is empty.
    assert_eq!(store.open_table(VDISK).unwrap(), MapState::default());
}

#[test]
fn a_map_that_lost_pages_or_epochs_without_a_trace_is_rebuilt() {
    let dir = tempfile::tempdir().unwrap();
    let store = MapStore::open(dir.path(), 1 << 20).unwrap();
    let page = page_key(VDISK, 0, GENERATION).to_vec();
    for key in [page, epoch_key(VDISK, ScoNumber(1))] {
        store.open_table(VDISK).unwrap();
        for number in 1..9 {
            store.apply(&tlog(number, &[], &[(5, 3), (5_000, 8)])).unwrap();
        }
        store.write_back(VDISK).unwrap();
        assert_ne!(store.open_table(VDISK).unwrap(), MapState::default());
        store.shared.place.with(|db| db.delete(&key)).unwrap();
        assert_eq!(store.open_table(VDISK).unwrap(), MapState::default());
    }
}

/// A map on its way from the TLogs shows nothing: what it lacks would read as zeroes, or as older data (L5).
#[test]
fn a_map_that_is_behind_is_not_read() {
    let dir = tempfile::tempdir().unwrap();
    let store = MapStore::open(dir.path(), 1 << 20).unwrap();
    store.open_table(VDISK).unwrap();
    store.apply(&tlog(1, &[], &[(5, 3)])).unwrap();
    assert!(matches!(store.load(VDISK, 0), Err(MapError::Behind(VDISK))));
    assert!(matches!(store.next_page(VDISK, 0), Err(MapError::Behind(VDISK))));
    assert_eq!(store.peek(VDISK, 0), None);
    store.complete(VDISK);
    assert_eq!(store.next_page(VDISK, 0).unwrap(), Some(0));
    store.erase(VDISK).unwrap();
    store.open_table(VDISK).unwrap();
    assert!(matches!(store.load(VDISK, 0), Err(MapError::Behind(VDISK))));
}

#[test]
fn an_open_map_is_read_again_only_when_its_disk_lacks_something() {
    let dir = tempfile::tempdir().unwrap();
    let store = MapStore::open(dir.path(), 1 << 20).unwrap();
    let apply = |number, at| store.apply(&tlog(number, &[], &[(at, 3)])).unwrap();
    assert_eq!(store.ready_table(VDISK).unwrap(), MapState::default());
    apply(1, 5);
    store.write_back(VDISK).unwrap();
    store.complete(VDISK);
    let written = store.state(VDISK).unwrap();
    assert_eq!(store.ready_table(VDISK).unwrap(), written);
    assert!(matches!(store.load(VDISK, 0), Err(MapError::Behind(VDISK))), "until it is complete");
    // What isn't on disk may be half of a TLog that failed.
    apply(2, 900);
    assert_eq!(store.ready_table(VDISK).unwrap(), written);
    apply(2, 900);
    store.complete(VDISK);
    assert_eq!(store.recount(VDISK).unwrap().mapped, 6);
    assert_eq!(store.stored().unwrap(), [VDISK]);
    store.erase(VDISK).unwrap();
    assert_eq!((store.stored().unwrap(), store.states().len()), (Vec::new(), 0));
}

fn overwrite_tables(dir: &Path) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "sst") {
            let len = std::fs::metadata(&path).unwrap().len();
            std::fs::write(&path, vec![0x5a; model::usize_of(len)]).unwrap();
        }
    }
}

#[test]
fn files_that_rocksdb_cannot_read_are_replaced_under_way() {
    let outer = tempfile::tempdir().unwrap();
    let dir = outer.path().join("map");
    let store = MapStore::open(&dir, 1 << 20).unwrap();
    let other = VdiskId(78);
    store.open_table(VDISK).unwrap();
    store.open_table(other).unwrap();
    store.apply(&tlog(1, &[], &[(5, 3)])).unwrap();
    store.write_back(VDISK).unwrap();
    overwrite_tables(&dir);
    assert_eq!(store.open_table(VDISK).unwrap(), MapState::default());
    store.apply(&tlog(1, &[], &[(5, 3)])).unwrap();
    store.write_back(VDISK).unwrap();
    store.complete(VDISK);
    assert_eq!(store.recount(VDISK).unwrap().mapped, 3);
    // Its pages went with the files: nobody may take an empty database for them.
    assert!(matches!(store.load(other, 0), Err(MapError::Closed(_))));
    assert!(outer.path().join("map.damaged").is_dir());
}

/// Who has the map goes on with the TLog after its last, while somebody else has opened what is on disk.
#[test]
fn a_tlog_that_does_not_join_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = MapStore::open(dir.path(), 1 << 20).unwrap();
    store.open_table(VDISK).unwrap();
    store.apply(&tlog(1, &[], &[(5, 3)])).unwrap();
    store.write_back(VDISK).unwrap();
    store.apply(&tlog(2, &[], &[(9, 3)])).unwrap();
    store.open_table(VDISK).unwrap();
    let error = store.apply(&tlog(3, &[], &[(20, 3)])).unwrap_err();
    assert!(matches!(error, MapError::Mismatch { .. }) && error.is_damage(), "{error}");
    store.apply(&tlog(2, &[], &[(9, 3)])).unwrap();
    store.apply(&tlog(3, &[], &[(20, 3)])).unwrap();
}

async fn all_parts(store: &MapStore, bytes_max: usize) -> Result<Vec<Part>, MapError> {
    let cut = store.cut(VDISK, bytes_max, LOAN);
    let mut parts = Vec::new();
    loop {
        parts.push(cut.next().await?);
        if parts.last().is_some_and(|part| part.last) {
            return Ok(parts);
        }
    }
}

/// Widely scattered, over several epochs.
fn scattered(store: &MapStore, numbers: std::ops::RangeInclusive<u64>) -> MemoryMap {
    let mut map = MemoryMap::default();
    for number in numbers {
        let tlog = tlog(number, &[], &[(number * 997 % 60_000, 40), (number * 31 % 60_000, 3)]);
        store.apply(&tlog).unwrap();
        map.apply(&tlog);
    }
    map
}

#[test]
fn a_map_read_out_while_it_changes_is_that_of_one_moment_and_can_be_put_in_elsewhere() {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let store = MapStore::open(&dirs[0].path().join("map"), 1 << 20).unwrap();
        store.open_table(VDISK).unwrap();
        let map = scattered(&store, 1..=60);
        assert_eq!(store.written(VDISK).object, None, "nothing is on disk yet");
        assert!(matches!(all_parts(&store, PART_MIN).await, Err(MapError::Closed(VDISK))));
        store.write_back(VDISK).unwrap();
        let state = store.state(VDISK).unwrap();
        assert_eq!(store.written(VDISK).object, state.object);
        let cut = store.cut(VDISK, PART_MIN, LOAN);
        let mut parts = vec![cut.next().await.unwrap()];
        // It goes on meanwhile: written over, dropped, written back.
        store.apply(&tlog(61, &[(0, 1 << 32)], &[(9, 1)])).unwrap();
        store.write_back(VDISK).unwrap();
        while !parts.last().unwrap().last {
            parts.push(cut.next().await.unwrap());
        }
        assert!(3 < parts.len() && parts.iter().all(|part| part.state == state));
        assert!(cut.next().await.is_err(), "nothing comes after the last");

        let other = MapStore::open(&dirs[1].path().join("map"), 1 << 20).unwrap();
        other.open_table(VDISK).unwrap();
        other.apply(&tlog(1, &[], &[(5, 3)])).unwrap();
        other.write_back(VDISK).unwrap();
        // Whatever is missing at the end, or in the middle, the old one stays.
        for left_out in [parts.len() - 1, 2] {
            let mut install = other.install(VDISK).unwrap();
            let mut some = parts.clone();
            some.remove(left_out);
            let taken = some.iter().try_for_each(|part| install.take(part));
            assert!(taken.and_then(|()| install.finish()).is_err());
            assert_eq!(other.open_table(VDISK).unwrap().last_lsn, Lsn(1));
        }
        let mut install = other.install(VDISK).unwrap();
        parts.iter().try_for_each(|part| install.take(part)).unwrap();
        assert_eq!(install.finish().unwrap(), state);
        assert!(matches!(other.load(VDISK, 0), Err(MapError::Behind(VDISK))));
        other.complete(VDISK);
        compare(&other, &map);
        assert_eq!(std::fs::read_dir(dirs[1].path().join("map.incoming")).unwrap().count(), 0);
        // It is a map like any other: it follows, and lasts.
        other.apply(&tlog(61, &[(0, 1 << 32)], &[(9, 1)])).unwrap();
        other.write_back(VDISK).unwrap();
        drop(other);
        let other = MapStore::open(&dirs[1].path().join("map"), 1 << 20).unwrap();
        assert_eq!(other.open_table(VDISK).unwrap(), store.state(VDISK).unwrap());
    });
}

#[test]
fn a_damaged_map_is_not_read_out() {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let store = MapStore::open(dir.path(), 1 << 20).unwrap();
        store.open_table(VDISK).unwrap();
        scattered(&store, 1..=20);
        store.write_back(VDISK).unwrap();
        assert!(all_parts(&store, PART_MIN).await.is_ok());
        let (key, _) = store.shared.place.all(b'p', VDISK).unwrap().remove(7);
        store.shared.place.with(|db| db.delete(&key)).unwrap();
        assert!(matches!(all_parts(&store, PART_MIN).await, Err(MapError::Mismatch { .. })));
    });
}

/// All other maps wait for the replacement, so it doesn't wait for who reads one out, however slowly.
#[test]
fn a_map_that_is_read_out_gives_way_when_the_files_are_replaced() {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
        let outer = tempfile::tempdir().unwrap();
        let dir = outer.path().join("map");
        let store = MapStore::open(&dir, 1 << 20).unwrap();
        store.open_table(VDISK).unwrap();
        scattered(&store, 1..=60);
        store.write_back(VDISK).unwrap();
        let cut = store.cut(VDISK, PART_MIN, LOAN);
        assert!(!cut.next().await.unwrap().last);
        overwrite_tables(&dir);
        let (opening, start) = (store.clone(), std::time::Instant::now());
        let opened = tokio::task::spawn_blocking(move || opening.open_table(VDISK)).await.unwrap();
        assert_eq!(opened.unwrap(), MapState::default());
        assert!(start.elapsed() < LOAN.idle, "it waited for who reads");
        assert!(cut.next().await.is_err());
    });
}
