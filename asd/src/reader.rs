//! The read threads: gets, lists and verifications, side by side with the disk thread and without a lock.
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
use tokio::time::Instant;
use wire::asd::{
    GetResult, GetResults, GetStatus, List, Listing, MultiGet, Verify, VerifyResults,
    code as asd_code,
};
use wire::error::code;
use wire::{ErrorClass, WireError};

/// Entries of one listing; with the longest keys they still fit the body of a frame.
const LIST_MAX: usize = 4096;
/// Most bytes of a get that is tried without putting it in line.
const FROM_MEMORY_MAX: u64 = 64 << 10;
/// Entries looked at between two.
const PAGE: usize = 256;

pub(crate) enum ReadRequest {
    Get(MultiGet),
    List(List),
    Verify(Verify),
}

pub(crate) struct ReadJob {
    pub request: ReadRequest,
    pub deadline: Option<Instant>,
    pub responder: Responder,
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
    if is_too_late(job.deadline) {
        return job.responder.fail(too_late());
    }
    let Some(index) = shared.index() else {
        let message = "the disk is being read; try again or use another";
        return job.responder.fail(WireError::retry(asd_code::RECOVERING, message));
    };
    let reader = Reader { shared, index: &index, files: &*shared.files };
    match job.request {
        ReadRequest::Get(get) => match reader.get(&get) {
            Ok((results, payload)) => job.responder.reply_parts(&results, payload),
            Err(error) => job.responder.fail(error),
        },
        ReadRequest::List(list) => {
            let listing = list_of(&index, &list).map_err(|error| index_failed(&error));
            job.responder.finish(listing);
        }
        ReadRequest::Verify(verify) => job.responder.finish(reader.verify(&verify)),
    }
}

/// Answers a small get at once if all of it is in memory; else gives it back, to be put in line. Handing a read from
/// thread to thread costs more than such a read.
pub(crate) fn serve_from_memory(
    shared: &Shared,
    get: &MultiGet,
) -> Option<Result<(GetResults, Vec<Bytes>), WireError>> {
    let bytes: u64 = get.items.iter().map(|item| u64::from(item.len)).sum();
    if bytes > FROM_MEMORY_MAX {
        return None;
    }
    let index = shared.index()?;
    let blocked = Cell::new(false);
    let index = InMemory { index: &index, blocked: &blocked };
    let files = Cached { files: &shared.files, blocked: &blocked };
    let blocked = || blocked.get();
    Reader { shared, index: &index, files: &files }.get_unless(get, blocked)
}

struct Reader<'a, I, F> {
    shared: &'a Shared,
    index: &'a I,
    files: &'a F,
}

impl<I: Lookup, F: ReadAt> Reader<'_, I, F> {
    fn get(&self, get: &MultiGet) -> Result<(GetResults, Vec<Bytes>), WireError> {
        self.get_unless(get, || false).expect("nothing stops it")
    }

    /// `None` as soon as `stop` says so; nothing it came upon is counted or told then.
    fn get_unless(
        &self,
        get: &MultiGet,
        stop: impl Fn() -> bool,
    ) -> Option<Result<(GetResults, Vec<Bytes>), WireError>> {
        let mut readings = Vec::with_capacity(get.items.len());
        for item in &get.items {
            let want = Want { offset: item.offset, len: item.len };
            let reading = read(self.index, self.files, self.shared.osd, &item.key, want);
            if stop() {
                return None;
            }
            match reading {
                Ok(reading) => readings.push((reading, &item.key)),
                Err(error) => return Some(Err(index_failed(&error))),
            }
        }
        Some(self.answer(readings))
    }

    fn answer(
        &self,
        readings: Vec<(Reading, &Bytes)>,
    ) -> Result<(GetResults, Vec<Bytes>), WireError> {
        let gets = model::u64_of(readings.len());
        self.shared.read_counters.gets.fetch_add(gets, Ordering::Relaxed);
        let (mut results, mut payload) = (Vec::with_capacity(readings.len()), Vec::new());
        let mut room = model::usize_of(wire::frame::PAYLOAD_MAX.into());
        for (reading, key) in readings {
            self.note(key, &reading);
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
