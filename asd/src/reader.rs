//! The read threads: gets, lists and verifications, side by side with the disk thread and without a lock.
//!
//! Every byte that leaves was checked against the checksum stored with it (L5); what fails is counted, logged once here, and
//! answered as corrupt, for the caller to rebuild from the other fragments.

use crate::index::RocksIndex;
use crate::queue::{Portion, Taken};
use crate::shared::Shared;
use asd_core::crc::crc32c;
use asd_core::index::{IndexError, Lookup};
use asd_core::read::{Reading, Want, read};
use asd_core::record::Kind;
use bytes::Bytes;
use model::FragmentKey;
use runtime::clock::boot_now;
use runtime::rpc::Responder;
use std::sync::atomic::Ordering;
use tokio::time::Instant;
use wire::asd::{
    GetItem, GetResult, GetResults, GetStatus, List, Listing, MultiGet, Verify, VerifyResults,
    code as asd_code,
};
use wire::error::code;
use wire::{ErrorClass, WireError};

/// Entries of one listing; with the longest keys they still fit the body of a frame.
const LIST_MAX: usize = 4096;
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
    let reader = Reader { shared, index };
    match job.request {
        ReadRequest::Get(get) => match reader.get(&get) {
            Ok((results, payload)) => job.responder.reply_parts(&results, payload),
            Err(error) => job.responder.fail(error),
        },
        ReadRequest::List(list) => {
            let listing = reader.list(&list).map_err(|error| index_failed(&error));
            job.responder.finish(listing);
        }
        ReadRequest::Verify(verify) => job.responder.finish(reader.verify(&verify)),
    }
}

struct Reader<'a> {
    shared: &'a Shared,
    index: RocksIndex,
}

impl Reader<'_> {
    fn get(&self, get: &MultiGet) -> Result<(GetResults, Vec<Bytes>), WireError> {
        let (mut results, mut payload) = (Vec::with_capacity(get.items.len()), Vec::new());
        let mut room = model::usize_of(wire::frame::PAYLOAD_MAX.into());
        for item in &get.items {
            let reading = self.read(item)?;
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

    fn read(&self, item: &GetItem) -> Result<Reading, WireError> {
        self.shared.read_counters.gets.fetch_add(1, Ordering::Relaxed);
        self.read_checked(&item.key, Want { offset: item.offset, len: item.len })
    }

    fn read_checked(&self, key: &[u8], want: Want) -> Result<Reading, WireError> {
        let reading = read(&self.index, &*self.shared.files, self.shared.osd, key, want)
            .map_err(|error| index_failed(&error))?;
        if let Reading::Corrupt { why, .. } = &reading {
            self.shared.read_counters.corruptions.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(fragment = %name_of(key), %why, "a fragment is corrupt");
        }
        Ok(reading)
    }

    fn list(&self, list: &List) -> Result<Listing, IndexError> {
        let limit = model::usize_of(list.limit.into()).clamp(1, LIST_MAX);
        let mut entries = Vec::new();
        let mut start = list.start.clone();
        loop {
            let page = self.index.entries_from(&start, PAGE)?;
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

    fn verify(&self, verify: &Verify) -> Result<VerifyResults, WireError> {
        let statuses = verify
            .keys
            .iter()
            .map(|key| self.read_checked(key, Want::ALL).map(|reading| reading.status()));
        Ok(VerifyResults { results: statuses.collect::<Result<_, _>>()? })
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
