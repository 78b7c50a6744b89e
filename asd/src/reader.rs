//! The read threads: gets, lists and verifications, side by side with the disk thread and without a lock.
//!
//! A small get is tried on the thread that took it: what is in memory is read there and then, and only the rest is put in
//! line, item by item, so that all threads work at it; the last one answers ([`Together`]).
//!
//! Every byte that leaves was checked against the checksum stored with it (L5); what fails is counted, logged once here, and
//! answered as corrupt, for the caller to rebuild from the other fragments.

use crate::disk::Cached;
use crate::index::{InMemory, RocksIndex};
use crate::queue::{Portion, Taken};
use crate::shared::Shared;
use asd_core::crc::crc32c;
use asd_core::disk::ReadAt;
use asd_core::index::{IndexError, Lookup};
use asd_core::read::{Reading, Want, read};
use asd_core::record::Kind;
use bytes::Bytes;
use model::FragmentKey;
use runtime::clock::boot_now;
use runtime::rpc::Responder;
use std::cell::Cell;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::time::Instant;
use wire::asd::{
    GetItem, GetResult, GetResults, GetStatus, List, Listing, MultiGet, Verify, VerifyResults,
    code as asd_code,
};
use wire::error::code;
use wire::{ErrorClass, WireError};

/// Entries of one listing; with the longest keys they still fit the body of a frame.
const LIST_MAX: usize = 4096;
/// Most bytes of a get that is tried without putting it in line: sixteen raw frames of a SCO.
const FROM_MEMORY_MAX: u64 = 320 << 10;
/// Most items of such a get: looking each up takes the thread that others wait for.
const ITEMS_MAX: usize = 64;
/// Entries looked at between two.
const PAGE: usize = 256;

pub(crate) enum ReadRequest {
    Get(MultiGet),
    List(List),
    Verify(Verify),
}

pub(crate) struct Whole {
    pub request: ReadRequest,
    pub deadline: Option<Instant>,
    pub responder: Responder,
}

pub(crate) enum ReadJob {
    Whole(Whole),
    /// One item, by its number.
    Item(Arc<Together>, usize),
}

impl ReadJob {
    pub(crate) fn fail(self, error: WireError) {
        match self {
            Self::Whole(whole) => whole.responder.fail(error),
            Self::Item(together, _) => together.fail(error),
        }
    }
}

/// Runs until the queue is closed and empty.
pub(crate) fn run(shared: &Shared) {
    let one = Portion { jobs: 1, bytes: u64::MAX };
    while let Taken::Jobs(jobs) = shared.reads.take(one, None, boot_now) {
        for job in jobs {
            serve(shared, job);
        }
    }
}

/// A request whose caller has stopped waiting isn't begun.
pub(crate) fn is_too_late(deadline: Option<Instant>) -> bool {
    deadline.is_some_and(|deadline| deadline <= Instant::now())
}

pub(crate) fn too_late() -> WireError {
    WireError::retry(code::TOO_LATE, "the request waited for longer than its deadline")
}

pub(crate) fn index_failed(error: &IndexError) -> WireError {
    WireError::new(ErrorClass::Reconstruct, asd_code::DISK, error.to_string())
}

fn serve(shared: &Shared, job: ReadJob) {
    let deadline = match &job {
        ReadJob::Whole(whole) => whole.deadline,
        // Nobody waits for what is left of a get that has failed.
        ReadJob::Item(together, _) if together.is_answered() => return,
        ReadJob::Item(together, _) => together.deadline,
    };
    if is_too_late(deadline) {
        return job.fail(too_late());
    }
    let Some(index) = shared.index() else {
        let message = "the disk is being read; try again or use another";
        return job.fail(WireError::retry(asd_code::RECOVERING, message));
    };
    let reader = Reader { shared, index: &index, files: &*shared.files };
    let Whole { request, responder, .. } = match job {
        ReadJob::Whole(whole) => whole,
        ReadJob::Item(together, number) => return reader.read_along(&together, number),
    };
    match request {
        ReadRequest::Get(get) => match reader.get(&get) {
            Ok((results, payload)) => responder.reply_parts(&results, payload),
            Err(error) => responder.fail(error),
        },
        ReadRequest::List(list) => {
            let listing = list_of(&index, &list).map_err(|error| index_failed(&error));
            responder.finish(listing);
        }
        ReadRequest::Verify(verify) => responder.finish(reader.verify(&verify)),
    }
}

/// What a get brings, item by item; `None` where somebody still has to read.
type Readings = Vec<Option<Reading>>;

/// A get of which something isn't in memory, until its last item is read.
pub(crate) struct Together {
    get: MultiGet,
    deadline: Option<Instant>,
    inner: Mutex<Inner>,
}

struct Inner {
    readings: Readings,
    /// Until it is answered.
    responder: Option<Responder>,
}

impl Together {
    fn fail(&self, error: WireError) {
        let responder = self.lock().responder.take();
        if let Some(responder) = responder {
            responder.fail(error);
        }
    }

    fn is_answered(&self) -> bool {
        self.lock().responder.is_none()
    }

    /// The last one to come gets all.
    fn put(&self, number: usize, reading: Reading) -> Option<(Vec<Reading>, Responder)> {
        let mut inner = self.lock();
        inner.readings[number] = Some(reading);
        if inner.readings.iter().any(Option::is_none) {
            return None;
        }
        let readings = std::mem::take(&mut inner.readings).into_iter().flatten().collect();
        inner.responder.take().map(|responder| (readings, responder))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        // Changes are single steps, so a panic elsewhere leaves a usable state.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A get that was tried on the thread that took it.
pub(crate) enum Tried {
    Answered(Result<(GetResults, Vec<Bytes>), WireError>),
    /// Something isn't in memory.
    Partly(Readings),
    /// It isn't for this thread.
    No,
}

/// Answers a small get at once if all of it is in memory. Handing a read from thread to thread costs more than such a
/// read.
pub(crate) fn try_from_memory(shared: &Shared, get: &MultiGet) -> Tried {
    let bytes: u64 = get.items.iter().map(|item| u64::from(item.len)).sum();
    if FROM_MEMORY_MAX < bytes || ITEMS_MAX < get.items.len() {
        return Tried::No;
    }
    let Some(index) = shared.index() else { return Tried::No };
    let blocked = Cell::new(false);
    let index = InMemory::new(&index, &blocked);
    let files = Cached { files: &shared.files, blocked: &blocked };
    let reader = Reader { shared, index: &index, files: &files };
    let mut readings = Vec::with_capacity(get.items.len());
    for item in &get.items {
        let reading = reader.read(item);
        // Nothing that it came upon without the disk counts then.
        readings.push(match (blocked.replace(false), reading) {
            (true, _) => None,
            (false, Ok(reading)) => Some(reading),
            (false, Err(error)) => return Tried::Answered(Err(error)),
        });
    }
    if readings.iter().any(Option::is_none) {
        return Tried::Partly(readings);
    }
    Tried::Answered(reader.answer(get, readings.into_iter().flatten()))
}

/// The jobs for what is missing, each with the bytes that it costs: what was read already waits with the first.
pub(crate) fn the_rest(
    get: MultiGet,
    readings: Readings,
    deadline: Option<Instant>,
    responder: Responder,
) -> Vec<(ReadJob, u64)> {
    let len = |number: usize| u64::from(get.items[number].len);
    let mut held: u64 =
        (0..readings.len()).filter(|number| readings[*number].is_some()).map(len).sum();
    let missing = (0..).zip(&readings).filter(|(_, reading)| reading.is_none());
    let missing: Vec<(usize, u64)> =
        missing.map(|(number, _)| (number, len(number) + std::mem::take(&mut held))).collect();
    let inner = Mutex::new(Inner { readings, responder: Some(responder) });
    let together = Arc::new(Together { get, deadline, inner });
    let job = |(number, bytes)| (ReadJob::Item(Arc::clone(&together), number), bytes);
    missing.into_iter().map(job).collect()
}

struct Reader<'a, I, F> {
    shared: &'a Shared,
    index: &'a I,
    files: &'a F,
}

impl<I: Lookup, F: ReadAt> Reader<'_, I, F> {
    fn get(&self, get: &MultiGet) -> Result<(GetResults, Vec<Bytes>), WireError> {
        let readings: Vec<Reading> =
            get.items.iter().map(|item| self.read(item)).collect::<Result<_, _>>()?;
        self.answer(get, readings)
    }

    fn read(&self, item: &GetItem) -> Result<Reading, WireError> {
        let want = Want { offset: item.offset, len: item.len };
        read(self.index, self.files, self.shared.osd, &item.key, want)
            .map_err(|error| index_failed(&error))
    }

    /// One item of a get; answers when it is the last.
    fn read_along(&self, together: &Together, number: usize) {
        let last = match self.read(&together.get.items[number]) {
            Ok(reading) => together.put(number, reading),
            Err(error) => return together.fail(error),
        };
        if let Some((readings, responder)) = last {
            match self.answer(&together.get, readings) {
                Ok((results, payload)) => responder.reply_parts(&results, payload),
                Err(error) => responder.fail(error),
            }
        }
    }

    fn answer(
        &self,
        get: &MultiGet,
        readings: impl IntoIterator<Item = Reading>,
    ) -> Result<(GetResults, Vec<Bytes>), WireError> {
        let count = get.items.len();
        self.shared.read_counters.gets.fetch_add(model::u64_of(count), Ordering::Relaxed);
        let (mut results, mut payload) = (Vec::with_capacity(count), Vec::with_capacity(count));
        let mut room = model::usize_of(wire::frame::PAYLOAD_MAX.into());
        for (reading, item) in readings.into_iter().zip(&get.items) {
            self.note(&item.key, &reading);
            let (result, bytes) = result_of(reading);
            if let Some(bytes) = bytes {
                room = room.checked_sub(bytes.len()).ok_or_else(|| {
                    WireError::refuse(code::BAD_MESSAGE, "asks for more than a frame holds")
                })?;
                payload.push(bytes);
            }
            results.push(result);
        }
        Ok((GetResults { results }, payload))
    }

    fn note(&self, key: &[u8], reading: &Reading) {
        if let Reading::Corrupt { why, .. } = reading {
            self.shared.read_counters.corruptions.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(fragment = %name_of(key), %why, "a fragment is corrupt");
        }
    }

    fn verify(&self, verify: &Verify) -> Result<VerifyResults, WireError> {
        let statuses = verify.keys.iter().map(|key| {
            let reading = read(self.index, self.files, self.shared.osd, key, Want::ALL)
                .map_err(|error| index_failed(&error))?;
            self.note(key, &reading);
            Ok(reading.status())
        });
        Ok(VerifyResults { results: statuses.collect::<Result<_, WireError>>()? })
    }
}

fn list_of(index: &RocksIndex, list: &List) -> Result<Listing, IndexError> {
    let limit = model::usize_of(list.limit.into()).clamp(1, LIST_MAX);
    let mut entries = Vec::new();
    let mut start = list.start.clone();
    loop {
        let page = index.entries_from(&start, PAGE)?;
        let is_last = page.len() < PAGE;
        if let Some((last, _)) = page.last() {
            start = [&last[..], &[0]].concat().into();
        }
        for (key, entry) in page {
            if list.end.as_ref().is_some_and(|end| key >= *end) {
                return Ok(Listing { entries, more: false });
            }
            if entry.kind != Kind::Put {
                continue;
            }
            if entries.len() == limit {
                return Ok(Listing { entries, more: true });
            }
            entries.push((key, entry.data_len));
        }
        if is_last {
            return Ok(Listing { entries, more: false });
        }
    }
}

fn result_of(reading: Reading) -> (GetResult, Option<Bytes>) {
    let bare = |status, total_len| GetResult { status, len: 0, total_len, checksum: 0 };
    match reading {
        Reading::Found { bytes, total_len } => {
            let (len, checksum) = (model::u32_of(bytes.len()), crc32c(&bytes));
            (GetResult { status: GetStatus::Found, len, total_len, checksum }, Some(bytes))
        }
        Reading::Absent => (bare(GetStatus::Absent, 0), None),
        Reading::OutOfRange { total_len } => (bare(GetStatus::OutOfRange, total_len), None),
        Reading::Corrupt { total_len, .. } => (bare(GetStatus::Corrupt, total_len), None),
        Reading::Elsewhere => (bare(GetStatus::Corrupt, 0), None),
    }
}

/// A key as people read it.
fn name_of(key: &[u8]) -> String {
    FragmentKey::from_bytes(key).map_or_else(
        || key.iter().map(|byte| format!("{byte:02x}")).collect(),
        |key| key.to_string(),
    )
}
