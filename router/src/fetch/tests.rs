//! A map on its way into the store, from a place that gives its parts as the test wants; and what each failure means.

use std::collections::VecDeque;
use std::future::pending;
use std::path::Path;

use model::{Cluster, ClusterRange, Epoch, Lsn};
use router_core::map_stream::{LOAN, PART_MIN};
use router_core::tlog::{Run, Tlog};
use tokio::sync::Notify;
use wire::WireError;

use super::*;

const VDISK: VdiskId = VdiskId(7);
const LONG: Duration = Duration::from_secs(30);

fn tlog(number: u64, at: u64) -> Tlog {
    Tlog {
        object: ObjectId { vdisk: VDISK, epoch: Epoch(1), number: ScoNumber(number) },
        first_lsn: Lsn(number),
        last_lsn: Lsn(number),
        size_bytes: 0,
        epochs: Vec::new(),
        unmaps: Vec::<ClusterRange>::new(),
        runs: vec![Run { start: Cluster(at), count: 300 }],
        applied: Vec::new(),
    }
}

/// A store whose map has so many TLogs.
fn store(dir: &Path, tlogs: u64) -> MapStore {
    let store = MapStore::open(&dir.join("map"), 1 << 20).unwrap();
    store.open_table(VDISK).unwrap();
    (1..=tlogs).for_each(|number| store.apply(&tlog(number, number * 512)).unwrap());
    store.write_back(VDISK).unwrap();
    store
}

async fn all_parts(store: &MapStore) -> Vec<Part> {
    let cut = store.cut(VDISK, PART_MIN, LOAN);
    let mut parts = Vec::new();
    while parts.last().is_none_or(|part: &Part| !part.last) {
        parts.push(cut.next().await.unwrap());
    }
    parts
}

/// Gives these, and then nothing for ever.
struct Given(VecDeque<Part>);

impl Parts for Given {
    async fn next(&mut self, _: Duration) -> Result<Part, FetchError> {
        match self.0.pop_front() {
            Some(part) => Ok(part),
            None => pending().await,
        }
    }
}

struct Here {
    dir: tempfile::TempDir,
    store: MapStore,
    parts: VecDeque<Part>,
    whole: MapState,
}

impl Here {
    /// A store with an old map, and the parts of a newer one.
    async fn new() -> Self {
        let dirs = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let (old, new) = (store(dirs[0].path(), 1), store(dirs[1].path(), 20));
        let (parts, whole) = (all_parts(&new).await, new.state(VDISK).unwrap());
        assert!(5 < parts.len());
        let [dir, _] = dirs;
        Self { dir, store: old, parts: parts.into(), whole }
    }

    /// So many parts come, until the deadline is over.
    async fn take(
        &self,
        count: usize,
        deadline: Instant,
        asker: Asker<'_>,
    ) -> Result<MapState, FetchError> {
        let mut parts = self.parts.clone();
        parts.truncate(count);
        let first = parts.pop_front().unwrap();
        let taking = Taking { maps: &self.store, vdisk: VDISK, deadline, asker };
        taking.take(first, &mut Given(parts)).await
    }

    fn is_as_before(&self) {
        assert_eq!(self.store.state(VDISK).unwrap().last_lsn, Lsn(1));
        assert_eq!(self.store.ready_table(VDISK).unwrap().last_lsn, Lsn(1));
        let left = std::fs::read_dir(self.dir.path().join("map.incoming")).unwrap().count();
        assert_eq!(left, 0, "nothing is left of it");
    }
}

fn run(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test);
}

#[test]
fn a_fetch_that_comes_to_a_halt_is_given_up_and_changes_nothing() {
    run(async {
        let here = Here::new().await;
        let soon = Instant::now() + Duration::from_millis(50);
        let taken = here.take(3, soon, Asker::Owner).await;
        assert!(
            matches!(&taken, Err(FetchError::There(why)) if why == "it takes too long"),
            "{taken:?}"
        );
        here.is_as_before();
    });
}

/// A step with the store that is given up goes on all the same, beside whatever is tried next.
#[test]
fn a_fetch_whose_time_is_over_still_ends_what_it_has() {
    run(async {
        let here = Here::new().await;
        let over = Instant::now();
        let taken = here.take(usize::MAX, over, Asker::Owner).await;
        assert_eq!(taken.unwrap(), here.whole);
        let left = std::fs::read_dir(here.dir.path().join("map.incoming")).unwrap().count();
        assert_eq!(left, 0);
    });
}

#[test]
fn a_copier_that_waits_for_a_part_gives_way_to_an_opening() {
    run(async {
        let (here, opening) = (Here::new().await, Notify::new());
        let taking = here.take(3, Instant::now() + LONG, Asker::Copier(&opening));
        // Asked before it waits, or while it does: it is no different.
        opening.notify_one();
        let taken = taking.await;
        assert!(matches!(taken, Err(FetchError::Here(OpenError::Wanted))), "{taken:?}");
        here.is_as_before();
        // Who opens the vDisk gives way to nobody.
        opening.notify_one();
        let taken = here.take(usize::MAX, Instant::now() + LONG, Asker::Owner).await;
        assert_eq!(taken.unwrap(), here.whole);
    });
}

/// Derived data keep no vDisk from opening: without them the TLogs are followed (L6).
#[test]
fn l6_no_trouble_with_a_map_elsewhere_fails_an_opening() {
    let refused = |code| BackendError::Refused(WireError::refuse(code, "no"));
    let out = |said| BackendError::Unavailable { reason: "out".to_owned(), said };
    for error in [
        out(None),
        out(Some(proxy_code::UNREADABLE)),
        out(Some(proxy_code::NO_POLICY)),
        refused(proxy_code::NO_NAMESPACE),
        refused(proxy_code::FENCED),
    ] {
        let text = error.to_string();
        assert!(matches!(FetchError::from(error), FetchError::There(_)), "{text}");
    }
    let gone = FetchError::from(refused(proxy_code::NO_OBJECT));
    assert!(matches!(gone, FetchError::Replaced(_)), "listed again");
    let strange = || MapError::Mismatch { vdisk: VDISK, problem: "strange".to_owned() };
    let text = || "problem".to_owned();
    for error in
        [strange(), MapError::BadPage { vdisk: VDISK, page: 3 }, MapError::Incoming(text())]
    {
        assert!(matches!(FetchError::from(error), FetchError::There(_)), "another may be better");
    }
    for error in [MapError::Store(text()), MapError::Damaged(text()), MapError::Closed(VDISK)] {
        assert!(matches!(FetchError::from(error), FetchError::Everywhere(_)), "none is better");
    }
}
