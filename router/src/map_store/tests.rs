//! The stored map against the map in memory, with write-backs, crashes and damage in between.

use super::*;
use model::{Cluster, ClusterRange};
use proptest::prelude::*;
use router_core::map::MemoryMap;
use router_core::page::{PAGE_CLUSTERS, place};
use router_core::tlog::Run;

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
    store.apply(&tlog(1, &[], &[(5, 3)])).unwrap();
    store.write_back(VDISK).unwrap();
    let key = page_key(VDISK, 0, GENERATION);
    let mut bytes = store.shared.db.get(key).unwrap().unwrap();
    bytes[3] ^= 1;
    store.shared.db.put(key, bytes).unwrap();
    store.open_table(VDISK).unwrap();
    store.shared.clean.clear();
    assert!(matches!(store.load(VDISK, 0), Err(MapError::BadPage { page: 0, .. })));
    store.erase(VDISK).unwrap();
    assert_eq!(store.open_table(VDISK).unwrap(), MapState::default());
}
