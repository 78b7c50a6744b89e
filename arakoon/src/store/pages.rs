//! Snapshots that peers fetch in pages: the rows frozen at one moment, held by a thread per snapshot.
//!
//! A RocksDB snapshot lives as long as a borrow of the database, so it lies on the stack of a thread that answers for its
//! pages and ends when nobody asks for a while. There are few of them (L8).

use super::{Db, io};
use arakoon_core::StoreError;
use bytes::Bytes;
use rocksdb::{IteratorMode, ReadOptions};
use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// Snapshots at the same time.
const SNAPSHOTS_MAX: usize = 4;
/// A peer that doesn't ask for this long has given up.
const IDLE_MAX: Duration = Duration::from_secs(20);
/// Rows of one page together, unless one alone is larger.
const PAGE_BYTES: usize = 1 << 20;

/// Rows of a snapshot behind a given row.
pub struct Page {
    pub rows: Vec<(Bytes, Bytes)>,
    pub done: bool,
}

type Answer = Box<dyn FnOnce(Result<Page, StoreError>) + Send>;

struct Ask {
    after: Option<Bytes>,
    answer: Answer,
}

struct Frozen {
    to: u64,
    asks: SyncSender<Ask>,
    thread: JoinHandle<()>,
}

/// Handle to all frozen snapshots of a store.
#[derive(Clone, Default)]
pub struct SnapshotPages {
    frozen: Arc<Mutex<BTreeMap<u64, Frozen>>>,
}

impl SnapshotPages {
    fn frozen(&self) -> MutexGuard<'_, BTreeMap<u64, Frozen>> {
        // Every change of the map is one insert or remove.
        self.frozen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Freezes the rows as they are now; `None` when too many snapshots are frozen.
    pub fn freeze(&self, db: &Arc<Db>, family: &'static str, to: u64) -> Option<u64> {
        let mut frozen = self.frozen();
        frozen.retain(|_, snapshot| snapshot.to != to);
        if frozen.len() >= SNAPSHOTS_MAX {
            return None;
        }
        let number = runtime::random::u64();
        let (asks, asked) = sync_channel(16);
        let (ready, taken) = sync_channel::<()>(1);
        let (db, pages) = (Arc::clone(db), self.clone());
        let thread = std::thread::Builder::new()
            .name("snapshot".into())
            .spawn(move || {
                answer_pages(&db, family, &ready, &asked);
                pages.frozen().remove(&number);
            })
            .ok()?;
        // The rows don't change before the snapshot is taken: their only writer waits here.
        taken.recv().ok()?;
        frozen.insert(number, Frozen { to, asks, thread });
        Some(number)
    }

    /// Has `answer` called with the rows behind `after`; `false` when the snapshot isn't there any more.
    pub fn page(&self, number: u64, after: Option<Bytes>, answer: Answer) -> bool {
        let frozen = self.frozen();
        frozen
            .get(&number)
            .is_some_and(|snapshot| snapshot.asks.try_send(Ask { after, answer }).is_ok())
    }

    /// Ends all snapshots, so that the database can be closed.
    pub fn close(&self) {
        let all = std::mem::take(&mut *self.frozen());
        for Frozen { asks, thread, .. } in all.into_values() {
            drop(asks);
            // Its only way to fail is a panic, which was reported.
            let _ = thread.join();
        }
    }

    /// For whom a snapshot was made.
    pub fn made_for(&self, number: u64) -> Option<u64> {
        self.frozen().get(&number).map(|snapshot| snapshot.to)
    }
}

fn answer_pages(db: &Db, family: &str, ready: &SyncSender<()>, asked: &Receiver<Ask>) {
    let snapshot = db.snapshot();
    if ready.send(()).is_err() {
        return;
    }
    while let Ok(ask) = asked.recv_timeout(IDLE_MAX) {
        let page = read_page(db, &snapshot, family, ask.after.as_deref());
        (ask.answer)(page);
    }
}

fn read_page(
    db: &Db,
    snapshot: &rocksdb::SnapshotWithThreadMode<'_, Db>,
    family: &str,
    after: Option<&[u8]>,
) -> Result<Page, StoreError> {
    let family = db.cf_handle(family).ok_or_else(|| StoreError::corrupt("the rows are gone"))?;
    let mut options = ReadOptions::default();
    if let Some(after) = after {
        let mut from = after.to_vec();
        from.push(0);
        options.set_iterate_lower_bound(from);
    }
    let mut page = Page { rows: Vec::new(), done: true };
    let mut bytes = 0;
    for row in snapshot.iterator_cf_opt(&family, options, IteratorMode::Start) {
        let (row, value) = row.map_err(io)?;
        if bytes >= PAGE_BYTES {
            page.done = false;
            break;
        }
        bytes += row.len() + value.len();
        page.rows.push((Bytes::from(row), Bytes::from(value)));
    }
    Ok(page)
}
