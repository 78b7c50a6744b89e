//! What the page map costs: when it is written back, how much that is, how much memory it takes (P26).

use super::*;

fn opened(tail_max: u32, cache_bytes: u64) -> (tempfile::TempDir, MapStore) {
    let dir = tempfile::tempdir().unwrap();
    let store = MapStore::open_with_tail(dir.path(), cache_bytes, tail_max).unwrap();
    store.open_table(VDISK).unwrap();
    store.complete(VDISK);
    (dir, store)
}

/// What a restart would have to replay.
fn written(store: &MapStore) -> Option<u64> {
    store.written(VDISK).object.map(|object| object.number.0)
}

#[test]
fn p26_a_map_is_written_back_after_as_many_tlogs_as_a_restart_may_replay() {
    let (dir, store) = opened(8, 1 << 20);
    for number in 1..=20 {
        store.apply(&tlog(number, &[], &[(number * 5_000, 3)])).unwrap();
        assert_eq!(written(&store), Some(number / 8 * 8).filter(|at| 0 < *at), "after {number}");
    }
    drop(store);
    let again = MapStore::open_with_tail(dir.path(), 1 << 20, 8).unwrap();
    assert_eq!(again.open_table(VDISK).unwrap().last_lsn, Lsn(16), "the rest is in the TLogs");
}

/// RocksDB counts on a table as a whole or not at all, so the last TLog is never ahead of its pages.
#[test]
fn p26_pages_and_the_last_tlog_reach_the_disk_in_one_table() {
    let (_dir, store) = opened(TAIL_MAX, 1 << 20);
    for number in 1..=3 {
        store.apply(&tlog(number, &[(0, 20_000)], &[(number * 5_000, 3)])).unwrap();
        store.write_back(VDISK).unwrap();
        let tables = store.shared.place.with(rocksdb::DB::live_files).unwrap();
        assert_eq!(tables.len() as u64, number, "{tables:?}");
    }
}

#[test]
fn p26_dirty_pages_are_bounded_however_few_tlogs_made_them() {
    let (_dir, store) = opened(1_000_000, 1 << 20);
    let pages = DIRTY_MAX as u64 / 4;
    let runs = |number: u64| -> Vec<(u64, u32)> {
        (0..pages).map(|page| ((number * pages + page) * PAGE_CLUSTERS, 1)).collect()
    };
    for number in 1..=9 {
        store.apply(&tlog(number, &[], &runs(number))).unwrap();
        assert_eq!(written(&store), Some(number / 4 * 4).filter(|at| 0 < *at), "after {number}");
    }
}

#[test]
fn p26_the_cache_is_bounded() {
    let cache_bytes = 1 << 20;
    let (_dir, store) = opened(1, cache_bytes);
    let pages = 4 * cache_bytes / 4096;
    let runs: Vec<(u64, u32)> = (0..pages).map(|page| (page * PAGE_CLUSTERS, 1)).collect();
    store.apply(&tlog(1, &[], &runs)).unwrap();
    for page in 0..pages {
        assert!(!store.load(VDISK, page).unwrap().is_empty());
    }
    let held = store.shared.clean.len() as u64 * 4096;
    assert!(0 < held && held <= cache_bytes, "{held} bytes are cached");
}

/// 4 KiB writes all over a thin vDisk of 1 TiB, 1024 to a SCO.
#[test]
fn p26_on_random_writes_over_a_thin_tebibyte_the_map_writes_less_than_half_of_what_users_do() {
    let (_dir, store) = opened(TAIL_MAX, 1 << 20);
    let mut random = sim::Random::new(26);
    let (mut user, mut mine) = (0, 0);
    let bytes_of = |page: u64| {
        let key = page_key(VDISK, page, GENERATION);
        store
            .shared
            .place
            .with(|db| db.get(key))
            .unwrap()
            .map_or(0, |b| (b.len() + key.len()) as u64)
    };
    let mut dirty = std::collections::BTreeSet::new();
    for number in 1..=64 {
        let runs: Vec<(u64, u32)> = {
            let mut all: Vec<u64> = (0..1024).map(|_| random.below(1 << 28)).collect();
            all.sort_unstable();
            all.dedup();
            all.into_iter().map(|cluster| (cluster, 1)).collect()
        };
        dirty.extend(runs.iter().map(|(cluster, _)| cluster / PAGE_CLUSTERS));
        user += runs.len() as u64 * 4096;
        let before = written(&store);
        store.apply(&tlog(number, &[], &runs)).unwrap();
        if written(&store) != before {
            mine += std::mem::take(&mut dirty).into_iter().map(bytes_of).sum::<u64>();
        }
    }
    assert!(0 < mine, "nothing was written back");
    assert!(2 * mine <= user, "{mine} bytes of map for {user} of users");
}
