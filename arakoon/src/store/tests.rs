//! The store against damage of its files: what was synced is there, or the store refuses.

use super::*;
use raft::eraftpb::EntryType;
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

fn options() -> OpenOptions {
    OpenOptions { cluster: "c".into(), node: 1, voters: vec![1, 2, 3] }
}

fn open(dir: &Path) -> Result<RocksStore, OpenError> {
    RocksStore::open(dir, &options())
}

fn entry(index: u64, term: u64) -> Entry {
    let mut entry = Entry::default();
    entry.set_entry_type(EntryType::EntryNormal);
    (entry.index, entry.term) = (index, term);
    entry.data = Bytes::from(format!("entry {index} of term {term}").repeat(9));
    entry
}

fn log_write(entries: Vec<Entry>, term: u64, commit: u64) -> LogWrite {
    let mut hard = HardState::default();
    (hard.term, hard.vote, hard.commit) = (term, 1, commit);
    LogWrite { snapshot: None, entries, hard_state: Some(hard), sync: true }
}

fn all(store: &RocksStore) -> Vec<Entry> {
    let context = GetEntriesContext::empty(false);
    store.entries(store.index.first(), store.index.last() + 1, None, context).unwrap()
}

/// A store of ten entries in ten synced writes, closed.
fn ten_entries() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path()).unwrap();
    for index in 1..=10 {
        store.persist(log_write(vec![entry(index, 1)], 1, index - 1)).unwrap();
    }
    dir
}

fn wal(dir: &Path) -> PathBuf {
    let files = fs::read_dir(dir.join("db")).unwrap().map(|file| file.unwrap().path());
    let mut logs: Vec<PathBuf> =
        files.filter(|path| path.extension().is_some_and(|end| end == "log")).collect();
    logs.sort();
    logs.pop().unwrap()
}

/// Opens a copy, so that one damaged store is tried once.
fn copy_of(dir: &Path) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    fs::create_dir(copy.path().join("db")).unwrap();
    for sub in ["", "db"] {
        for file in fs::read_dir(dir.join(sub)).unwrap() {
            let path = file.unwrap().path();
            if path.is_file() {
                fs::copy(&path, copy.path().join(sub).join(path.file_name().unwrap())).unwrap();
            }
        }
    }
    copy
}

#[test]
fn everything_is_there_after_opening_again() {
    let dir = ten_entries();
    let mut store = open(dir.path()).unwrap();
    assert_eq!(all(&store), (1..=10).map(|index| entry(index, 1)).collect::<Vec<_>>());
    let rows: Changes = [(Bytes::from_static(b"ua"), Some(Bytes::from_static(b"1")))].into();
    store.apply(rows, 5).unwrap();
    store.compact(4).unwrap();
    store.persist(log_write(vec![entry(8, 2), entry(9, 2)], 2, 5)).unwrap();
    drop(store);
    let store = open(dir.path()).unwrap();
    let wanted: Vec<Entry> =
        (5..=7).map(|index| entry(index, 1)).chain((8..=9).map(|index| entry(index, 2))).collect();
    assert_eq!(all(&store), wanted);
    assert_eq!((store.term(4).unwrap(), store.term(9).unwrap(), store.applied()), (1, 2, 5));
    assert!(store.term(3).is_err() && store.term(10).is_err());
    assert_eq!(store.get(b"ua").unwrap(), Some(Bytes::from_static(b"1")));
    assert_eq!(store.initial_state().unwrap().hard_state.term, 2);
}

/// A sync that failed in the life before leaves a log that readers see and no later sync writes: RocksDB puts what it
/// replays into tables of its own, and syncs those, before anything is served.
#[test]
fn l2_what_an_opening_replays_needs_the_old_log_no_more() {
    let dir = ten_entries();
    let old = wal(dir.path());
    drop(open(dir.path()).unwrap());
    if old.exists() {
        fs::write(&old, b"").unwrap();
    }
    fs::write(wal(dir.path()), b"").unwrap();
    let store = open(dir.path()).unwrap();
    assert_eq!(all(&store), (1..=10).map(|index| entry(index, 1)).collect::<Vec<_>>());
}

#[test]
fn a_shortened_write_ahead_log_is_refused_when_synced_writes_are_gone() {
    let dir = ten_entries();
    let whole = fs::metadata(wal(dir.path())).unwrap().len();
    for cut in [1, 50, 400, whole / 2, whole] {
        let copy = copy_of(dir.path());
        let file = fs::OpenOptions::new().write(true).open(wal(copy.path())).unwrap();
        file.set_len(whole - cut).unwrap();
        let error = open(copy.path()).err().unwrap();
        assert!(matches!(error, OpenError::LostWrites { .. }), "{cut}: {error}");
        let again = open(copy.path()).err().unwrap();
        assert!(
            matches!(again, OpenError::LostWrites { .. }),
            "a second start must not be let in: {again}"
        );
    }
}

#[test]
fn a_torn_end_that_was_never_synced_is_no_loss() {
    let dir = ten_entries();
    let mut store = open(dir.path()).unwrap();
    store.persist(log_write(vec![entry(11, 1)], 1, 10)).unwrap();
    let synced = fs::metadata(wal(dir.path())).unwrap().len();
    store.apply([(Bytes::from_static(b"ux"), Some(Bytes::from(vec![1; 500])))].into(), 10).unwrap();
    drop(store);
    let whole = fs::metadata(wal(dir.path())).unwrap().len();
    assert!(whole > synced);
    for length in [synced, synced + 3, synced + 100, whole - 1] {
        let copy = copy_of(dir.path());
        fs::OpenOptions::new().write(true).open(wal(copy.path())).unwrap().set_len(length).unwrap();
        let store = open(copy.path()).unwrap();
        assert_eq!(
            (store.index.last(), store.applied()),
            (11, 0),
            "the rows lag and the log is replayed"
        );
    }
}

#[test]
fn a_flipped_bit_anywhere_in_the_write_ahead_log_is_refused() {
    let dir = ten_entries();
    let bytes = fs::read(wal(dir.path())).unwrap();
    let mut rng = fastrand::Rng::with_seed(5);
    for _ in 0..60 {
        let copy = copy_of(dir.path());
        let mut bad = bytes.clone();
        let bit = rng.usize(..bad.len() * 8);
        bad[bit / 8] ^= 1 << (bit % 8);
        fs::write(wal(copy.path()), bad).unwrap();
        let error = open(copy.path()).err();
        assert!(error.is_some(), "bit {bit} of {} went unseen", bytes.len() * 8);
    }
}

#[test]
fn a_changed_or_missing_entry_breaks_the_chain() {
    for damage in ["change", "remove"] {
        let dir = ten_entries();
        let store = open(dir.path()).unwrap();
        let family = store.family("log");
        let key = 4u64.to_be_bytes();
        if damage == "change" {
            let mut row = store.db.get_cf(&family, key).unwrap().unwrap();
            row[30] ^= 1;
            store.db.put_cf(&family, key, row).unwrap();
        } else {
            store.db.delete_cf(&family, key).unwrap();
        }
        drop(family);
        drop(store);
        let error = open(dir.path()).err().unwrap();
        assert!(matches!(error, OpenError::Store { cause: StoreError::Corrupt(_), .. }), "{error}");
    }
}

#[test]
fn a_store_without_its_witness_is_refused() {
    let dir = ten_entries();
    fs::write(dir.path().join(witness::FILE_NAME), [0; 5000]).unwrap();
    assert!(matches!(open(dir.path()).err().unwrap(), OpenError::NoWitness { .. }));
    fs::remove_file(dir.path().join(witness::FILE_NAME)).unwrap();
    assert!(matches!(open(dir.path()).err().unwrap(), OpenError::NoWitness { .. }));
}

#[test]
fn a_witness_without_its_database_is_refused() {
    let dir = ten_entries();
    fs::remove_dir_all(dir.path().join("db")).unwrap();
    assert!(matches!(open(dir.path()).err().unwrap(), OpenError::LostWrites { found: 0, .. }));
}

#[test]
fn another_clusters_store_and_other_nodes_are_refused() {
    let dir = ten_entries();
    let with = |change: fn(&mut OpenOptions)| {
        let mut options = options();
        change(&mut options);
        RocksStore::open(dir.path(), &options).err().unwrap()
    };
    assert!(matches!(with(|options| options.cluster = "d".into()), OpenError::Foreign { .. }));
    assert!(matches!(with(|options| options.node = 2), OpenError::Foreign { .. }));
    assert!(matches!(with(|options| options.voters = vec![1]), OpenError::OtherNodes { .. }));
    assert!(open(dir.path()).is_ok());
}

#[test]
fn a_staged_snapshot_replaces_everything_at_once_or_not_at_all() {
    let dir = ten_entries();
    let mut store = open(dir.path()).unwrap();
    store.apply([(Bytes::from_static(b"uold"), Some(Bytes::from_static(b"1")))].into(), 9).unwrap();
    let mut snapshot = Snapshot { data: Bytes::from_static(b"number"), ..Snapshot::default() };
    snapshot.mut_metadata().index = 50;
    snapshot.mut_metadata().term = 3;
    snapshot.mut_metadata().mut_conf_state().voters = vec![1, 2, 3];
    let write = || LogWrite {
        snapshot: Some(snapshot.clone()),
        entries: vec![],
        hard_state: None,
        sync: true,
    };
    store.begin_staging().unwrap();
    store.stage(vec![(Bytes::from_static(b"unew"), Bytes::from_static(b"2"))]).unwrap();
    assert!(store.persist(write()).is_err(), "half a snapshot must not be installed");
    drop(store);
    let mut store = open(dir.path()).unwrap();
    assert_eq!((store.applied(), store.index.last()), (9, 10));
    assert!(store.get(b"uold").unwrap().is_some() && store.get(b"unew").unwrap().is_none());
    store.begin_staging().unwrap();
    store.stage(vec![(Bytes::from_static(b"unew"), Bytes::from_static(b"2"))]).unwrap();
    store.finish_staging(snapshot.data.clone());
    store.persist(write()).unwrap();
    for _ in 0..2 {
        assert_eq!((store.applied(), store.index.last(), store.term(50).unwrap()), (50, 50, 3));
        assert!(store.get(b"uold").unwrap().is_none() && store.get(b"unew").unwrap().is_some());
        drop(store);
        store = open(dir.path()).unwrap();
    }
    store.persist(log_write(vec![entry(51, 4)], 4, 50)).unwrap();
    drop(store);
    assert_eq!(all(&open(dir.path()).unwrap()), [entry(51, 4)]);
}

#[test]
fn frozen_rows_come_in_pages_and_do_not_change() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path()).unwrap();
    store.persist(log_write(vec![entry(1, 1)], 1, 1)).unwrap();
    let large =
        |number: u8| (Bytes::from(vec![b'u', number]), Some(Bytes::from(vec![number; 400 << 10])));
    store.apply((0..8).map(large).collect(), 1).unwrap();
    let snapshot = store.snapshot(0, 2).unwrap();
    store.apply((0..8).map(|number| (Bytes::from(vec![b'u', number]), None)).collect(), 1).unwrap();
    let number: u64 = wire::decode_all(snapshot.data).unwrap();
    let pages = store.pages();
    assert_eq!(pages.made_for(number), Some(2));
    let (mut after, mut rows, mut count) = (None, Vec::new(), 0);
    loop {
        let (tell, told) = std::sync::mpsc::sync_channel(1);
        let answer = Box::new(move |page: Result<Page, StoreError>| drop(tell.send(page.unwrap())));
        assert!(pages.page(number, after.take(), answer));
        let page = told.recv().unwrap();
        count += 1;
        after = page.rows.last().map(|(row, _)| row.clone());
        rows.extend(page.rows);
        if page.done {
            break;
        }
    }
    let wanted: Vec<(Bytes, Bytes)> =
        (0..8).map(large).map(|(row, value)| (row, value.unwrap())).collect();
    assert!(rows == wanted && count > 1, "{count} pages");
    assert!(!pages.page(number + 1, None, Box::new(|_| ())));
}
