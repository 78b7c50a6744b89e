//! Requests from the wire, checked and put in line for the thread that does them; nothing here waits for a disk.
//!
//! Puts are checked against the checksums they came with before they are let in (L5): what was damaged on the way is
//! answered at once and never written.

use crate::queue::Refused;
use crate::reader::{self, ReadJob, ReadRequest, Tried, Whole};
use crate::shared::Shared;
use crate::writer::{WriteJob, WriteRequest};
use asd_core::crc;
use asd_core::store::{Op, Put};
use bytes::Bytes;
use runtime::rpc::{Request, Responder, Service};
use runtime::status::status;
use std::sync::Arc;
use wire::asd::{
    BLOCK, Delete, FRAGMENT_MAX, ITEMS_MAX, Identity, KEY_MAX, List, MultiGet, MultiPut, Priority,
    PutResult, Verify, method,
};
use wire::error::code;
use wire::{WireError, common};

/// A read's cost while it waits; the bytes themselves are only known later.
const READ_COST: u64 = 4096;

/// A read with its priority and its cost in bytes.
type CheckedRead = (ReadRequest, Priority, u64);

pub(crate) struct Server {
    pub shared: Arc<Shared>,
}

impl Service for Server {
    fn call(&self, request: Request, responder: Responder) {
        match request.method {
            method::MULTI_PUT => self.put(&request, responder),
            method::MULTI_GET => self.get(&request, responder),
            method::DELETE => self.delete(&request, responder),
            method::LIST => self.read(&request, responder, |request| {
                Ok((ReadRequest::List(request.decode::<List>()?), Priority::Client, READ_COST))
            }),
            method::VERIFY => self.read(&request, responder, read_verify),
            method::IDENTIFY => responder.finish(Ok(self.identify())),
            method::STATS => responder.finish(Ok(self.shared.stats())),
            common::method::STATUS => {
                let (state, details) = (self.shared.state_name(), self.shared.details_json());
                responder.finish(Ok(status(&self.shared.identity, state, details)));
            }
            _ => responder.fail(request.unknown_method()),
        }
    }
}

impl Server {
    fn identify(&self) -> Identity {
        let stats = self.shared.stats();
        Identity {
            osd: self.shared.osd,
            incarnation: self.shared.identity.incarnation,
            state: stats.state,
            capacity_bytes: stats.capacity_bytes,
            used_bytes: stats.used_bytes,
        }
    }

    fn put(&self, request: &Request, responder: Responder) {
        let checked = request.decode::<MultiPut>().and_then(|put| {
            let items = check_put(&put, &request.payload)?;
            Ok((put.priority, items))
        });
        match checked {
            Ok((priority, items)) => {
                let bytes = items.iter().flatten().map(Op::record_len).sum();
                let work = WriteRequest::Put(items);
                let job = WriteJob { request: work, deadline: request.deadline, responder };
                self.write(job, priority, bytes);
            }
            Err(error) => responder.fail(error),
        }
    }

    fn delete(&self, request: &Request, responder: Responder) {
        let checked = request.decode::<Delete>().and_then(|delete| {
            check_keys(&delete.keys)?;
            Ok(delete)
        });
        match checked {
            Ok(delete) => {
                let ops: Vec<Op> = delete.keys.into_iter().map(Op::Delete).collect();
                let bytes = ops.iter().map(Op::record_len).sum();
                let work = WriteRequest::Delete(ops);
                let job = WriteJob { request: work, deadline: request.deadline, responder };
                self.write(job, delete.priority, bytes);
            }
            Err(error) => responder.fail(error),
        }
    }

    fn write(&self, job: WriteJob, priority: Priority, bytes: u64) {
        if let Err(Refused(job)) = self.shared.writes.push(job, priority, bytes) {
            job.responder.fail(busy());
        }
    }

    fn get(&self, request: &Request, responder: Responder) {
        let (get, bytes) = match read_get(request) {
            Ok(checked) => checked,
            Err(error) => return responder.fail(error),
        };
        let (priority, deadline) = (get.priority, request.deadline);
        // Maintenance keeps to its share, which the line sees to.
        let tried = match priority {
            Priority::Client => reader::try_from_memory(&self.shared, &get),
            Priority::Maintenance => Tried::No,
        };
        match tried {
            Tried::Answered(Ok((results, payload))) => responder.reply_parts(&results, payload),
            Tried::Answered(Err(error)) => responder.fail(error),
            Tried::Partly(readings) => {
                for (job, bytes) in reader::the_rest(get, readings, deadline, responder) {
                    // One refused item has answered for all of them.
                    if !self.push(job, priority, bytes.max(READ_COST)) {
                        break;
                    }
                }
            }
            Tried::No => {
                let request = ReadRequest::Get(get);
                self.push(ReadJob::Whole(Whole { request, deadline, responder }), priority, bytes);
            }
        }
    }

    fn read(
        &self,
        request: &Request,
        responder: Responder,
        check: fn(&Request) -> Result<CheckedRead, WireError>,
    ) {
        match check(request) {
            Ok((work, priority, bytes)) => {
                let job = Whole { request: work, deadline: request.deadline, responder };
                self.push(ReadJob::Whole(job), priority, bytes);
            }
            Err(error) => responder.fail(error),
        }
    }

    /// Whether it was taken; else it was told so.
    fn push(&self, job: ReadJob, priority: Priority, bytes: u64) -> bool {
        let pushed = self.shared.reads.push(job, priority, bytes);
        let taken = pushed.is_ok();
        if let Err(Refused(job)) = pushed {
            job.fail(busy());
        }
        taken
    }
}

fn busy() -> WireError {
    WireError::retry(
        code::BUSY,
        "the disk has more waiting than it takes; try again or use another",
    )
}

fn bad(problem: impl Into<String>) -> WireError {
    WireError::refuse(code::BAD_MESSAGE, problem)
}

/// A get, and its cost in bytes.
fn read_get(request: &Request) -> Result<(MultiGet, u64), WireError> {
    let get = request.decode::<MultiGet>()?;
    check_count(get.items.len())?;
    // What is read to its end costs a guess.
    let cost = |len: u32| if len == u32::MAX { 1 << 20 } else { u64::from(len).max(READ_COST) };
    let bytes = get.items.iter().map(|item| cost(item.len)).sum();
    Ok((get, bytes))
}

fn read_verify(request: &Request) -> Result<CheckedRead, WireError> {
    let verify = request.decode::<Verify>()?;
    check_count(verify.keys.len())?;
    let bytes = model::u64_of(verify.keys.len()) << 20;
    Ok((ReadRequest::Verify(verify), Priority::Maintenance, bytes))
}

fn check_count(count: usize) -> Result<(), WireError> {
    if count <= ITEMS_MAX {
        return Ok(());
    }
    Err(bad(format!("{count} items in one request, at most {ITEMS_MAX} are allowed")))
}

fn check_keys(keys: &[Bytes]) -> Result<(), WireError> {
    check_count(keys.len())?;
    keys.iter().try_for_each(check_key)
}

fn check_key(key: &Bytes) -> Result<(), WireError> {
    if (1..=KEY_MAX).contains(&key.len()) {
        return Ok(());
    }
    Err(bad(format!("a key has 1 to {KEY_MAX} bytes, this one has {}", key.len())))
}

/// The items with their data, each checked against its checksums.
fn check_put(put: &MultiPut, payload: &Bytes) -> Result<Vec<Result<Op, PutResult>>, WireError> {
    check_count(put.items.len())?;
    let mut rest = payload.clone();
    let mut items = Vec::with_capacity(put.items.len());
    for item in &put.items {
        check_key(&item.key)?;
        let len = model::usize_of(item.len.into());
        if len > FRAGMENT_MAX {
            return Err(bad(format!(
                "a fragment of {len} bytes, at most {FRAGMENT_MAX} are allowed"
            )));
        }
        if len > rest.len() {
            return Err(bad("the payload is shorter than its items"));
        }
        if item.checksums.len() != len.div_ceil(BLOCK) {
            return Err(bad("a fragment has one checksum per 4096 bytes"));
        }
        let data = rest.split_to(len);
        if !crc::matches(&data, &item.checksums) {
            tracing::warn!("a fragment arrived damaged and was refused");
            items.push(Err(PutResult::BadChecksum));
            continue;
        }
        items.push(Ok(Op::Put(Put {
            key: item.key.clone(),
            data,
            checksums: item.checksums.clone(),
            condition: item.condition,
        })));
    }
    if rest.is_empty() { Ok(items) } else { Err(bad("the payload is longer than its items")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::asd::{PutCondition, PutItem};

    fn item(len: u32, checksums: Vec<u32>) -> PutItem {
        let key = Bytes::from_static(b"k");
        PutItem { key, len, checksums, condition: PutCondition::Always }
    }

    fn check(items: Vec<PutItem>, payload: &'static [u8]) -> Result<Vec<bool>, WireError> {
        let put = MultiPut { priority: Priority::Client, items };
        let checked = check_put(&put, &Bytes::from_static(payload))?;
        Ok(checked.iter().map(Result::is_ok).collect())
    }

    #[test]
    fn lengths_must_agree_and_damage_is_answered_per_item() {
        let good = || item(3, crc::blocks(b"abc"));
        assert_eq!(check(vec![good(), good()], b"abcabd").unwrap(), [true, false]);
        assert!(check(vec![good()], b"ab").is_err());
        assert!(check(vec![good()], b"abcd").is_err());
        assert!(check(vec![item(3, vec![])], b"abc").is_err());
        assert!(check(vec![item(u32::MAX, vec![])], b"").is_err());
        let mut keyless = good();
        keyless.key = Bytes::new();
        assert!(check(vec![keyless], b"abc").is_err());
        let mut long = good();
        long.key = Bytes::from(vec![0; KEY_MAX + 1]);
        assert!(check(vec![long], b"abc").is_err());
        let many = vec![item(0, vec![]); ITEMS_MAX + 1];
        assert!(check(many, b"").is_err());
    }
}
