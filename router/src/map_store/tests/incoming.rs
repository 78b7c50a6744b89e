//! Maps on their way in and out: what goes wrong with one says nothing about the others.

use std::path::PathBuf;
use std::time::Duration;

use router_core::map_stream::Limits;

use super::*;

const OTHER: VdiskId = VdiskId(78);

/// The parts of a map of 60 TLogs.
fn parts() -> (Vec<Part>, MapState, MemoryMap) {
    let dir = tempfile::tempdir().unwrap();
    let store = MapStore::open(dir.path(), 1 << 20).unwrap();
    store.open_table(VDISK).unwrap();
    let map = scattered(&store, 1..=60);
    store.write_back(VDISK).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let parts = runtime.block_on(all_parts(&store, PART_MIN)).unwrap();
    (parts, store.state(VDISK).unwrap(), map)
}

/// A store with an old map, and another vDisk's.
struct Here {
    dir: tempfile::TempDir,
    store: MapStore,
}

impl Here {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = MapStore::open(&dir.path().join("map"), 1 << 20).unwrap();
        for vdisk in [VDISK, OTHER] {
            store.open_table(vdisk).unwrap();
            let one = tlog(1, &[], &[(5, 3)]);
            let object = ObjectId { vdisk, ..one.object };
            store.apply(&Tlog { object, ..one }).unwrap();
            store.write_back(vdisk).unwrap();
            store.complete(vdisk);
        }
        Self { dir, store }
    }

    fn incoming(&self) -> PathBuf {
        self.dir.path().join("map.incoming")
    }

    fn file(&self) -> PathBuf {
        self.incoming().join(format!("{VDISK}.sst"))
    }

    /// All parts are taken, and `spoil` comes before they are put in.
    fn put_in(&self, parts: &[Part], spoil: impl FnOnce(&Path)) -> Result<MapState, MapError> {
        let mut install = self.store.install(VDISK)?;
        parts.iter().try_for_each(|part| install.take(part))?;
        install.close()?;
        spoil(&self.file());
        install.exchange()
    }

    /// Nothing happened but that a fetch failed.
    fn is_as_before(&self) {
        assert!(!self.store.shared.place.is_suspect(), "the database is well");
        for vdisk in [VDISK, OTHER] {
            assert_eq!(self.store.state(vdisk).unwrap().last_lsn, Lsn(1));
            self.store.shared.clean.clear();
            assert_eq!(self.store.load(vdisk, 0).unwrap().mapped().count(), 3);
        }
        assert_eq!(std::fs::read_dir(self.incoming()).unwrap().count(), 0, "nothing is left of it");
    }
}

#[test]
fn l6_a_file_that_is_spoilt_on_its_way_costs_this_fetch_and_no_map() {
    let (parts, state, map) = parts();
    let here = Here::new();
    let gone = here.put_in(&parts, |file| std::fs::remove_file(file).unwrap());
    assert!(matches!(gone, Err(MapError::Incoming(_))), "{gone:?}");
    here.is_as_before();
    let empty = here.put_in(&parts, |file| std::fs::write(file, []).unwrap());
    assert!(matches!(empty, Err(MapError::Incoming(_))), "{empty:?}");
    here.is_as_before();
    for tenth in 0..10 {
        let spoilt = here.put_in(&parts, |file| {
            let mut bytes = std::fs::read(file).unwrap();
            let at = bytes.len() * tenth / 10;
            bytes[at] ^= 1;
            std::fs::write(file, bytes).unwrap();
        });
        assert!(matches!(spoilt, Err(MapError::Incoming(_))), "{tenth}: {spoilt:?}");
        here.is_as_before();
        let short = here.put_in(&parts, |file| {
            let bytes = std::fs::read(file).unwrap();
            std::fs::write(file, &bytes[..bytes.len() * tenth / 10]).unwrap();
        });
        assert!(matches!(short, Err(MapError::Incoming(_))), "{tenth}: {short:?}");
        here.is_as_before();
    }
    // A good file of another map: every checksum is right.
    let other = Here::new();
    let stranger = tempfile::NamedTempFile::new().unwrap();
    let mut smaller = other.store.install(VDISK).unwrap();
    let few = one_page(&parts);
    smaller.take(&few).unwrap();
    smaller.close().unwrap();
    std::fs::copy(other.file(), stranger.path()).unwrap();
    let strange = here.put_in(&parts, |file| {
        std::fs::copy(stranger.path(), file).unwrap();
    });
    assert!(matches!(strange, Err(MapError::Incoming(_))), "{strange:?}");
    here.is_as_before();
    // And at last a good one.
    assert_eq!(here.put_in(&parts, |_| ()).unwrap(), state);
    here.store.complete(VDISK);
    compare(&here.store, &map);
    assert!(!here.store.shared.place.is_suspect());
}

/// A map of one page, with the state of that.
fn one_page(parts: &[Part]) -> Part {
    let dir = tempfile::tempdir().unwrap();
    let store = MapStore::open(dir.path(), 1 << 20).unwrap();
    store.open_table(VDISK).unwrap();
    store.apply(&tlog(1, &[], &[(5, 3)])).unwrap();
    store.write_back(VDISK).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let mut small = runtime.block_on(all_parts(&store, 1 << 20)).unwrap();
    assert_ne!(small[0].state, parts[0].state);
    small.remove(0)
}

#[test]
fn l6_a_disk_without_room_for_an_incoming_map_costs_this_fetch_and_no_map() {
    let (parts, _, _) = parts();
    let here = Here::new();
    std::fs::create_dir_all(here.incoming()).unwrap();
    // Every write to it fails for want of room.
    std::os::unix::fs::symlink("/dev/full", here.file()).unwrap();
    let full = here.put_in(&parts, |_| ());
    assert!(matches!(full, Err(MapError::Store(_))), "{full:?}");
    here.is_as_before();
}

#[test]
fn a_database_that_cannot_take_a_map_in_is_replaced() {
    let (parts, state, map) = parts();
    let here = Here::new();
    // It writes nothing more, wherever.
    let away = here.dir.path().join("away");
    let broken =
        here.put_in(&parts, |_| std::fs::rename(here.dir.path().join("map"), &away).unwrap());
    assert!(matches!(broken, Err(MapError::Damaged(_))), "{broken:?}");
    assert!(here.store.shared.place.is_suspect());
    std::fs::rename(&away, here.dir.path().join("map")).unwrap();
    assert_eq!(here.put_in(&parts, |_| ()).unwrap(), state);
    here.store.complete(VDISK);
    compare(&here.store, &map);
    assert!(
        matches!(here.store.load(OTHER, 0), Err(MapError::Closed(_))),
        "rebuilt by who uses it"
    );
}

/// However eagerly it is asked for: meanwhile files that nobody else needs stay on disk (L8).
#[test]
fn l8_a_map_is_not_read_out_for_ever() {
    let here = Here::new();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let limits = |whole, idle| Limits { whole, idle, bytes_per_s: u64::MAX, whole_max: whole };
    let (none, long) = (Duration::ZERO, Duration::from_secs(3600));
    runtime.block_on(async {
        let first = |limits| here.store.cut(VDISK, PART_MIN, limits);
        assert!(first(limits(long, long)).next().await.is_ok());
        assert!(matches!(first(limits(none, long)).next().await, Err(MapError::Closed(_))));
    });
}
