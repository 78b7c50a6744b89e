//! Wire requests become inputs, answers become wire answers.

use crate::driver::{Heard, Input, Inputs, Query};
use crate::store::{RocksStore, SnapshotPages};
use arakoon_core::view::Span;
use arakoon_core::{Answer, Outcome, Replica, StoreError, View, rows};
use bytes::Bytes;
use model::{Now, Revision};
use runtime::clock::boot_now;
use runtime::config::NodeEntry;
use runtime::rpc::{Request, Responder, Service};
use std::ops::ControlFlow;
use std::time::Duration;
use wire::arakoon::{
    ChangesAsk, Committed, Entries, Get, KEY_MAX, Leader, OPERATIONS_MAX, RANGE_BYTES_MAX,
    RANGE_ENTRIES_MAX, RaftBatch, Range, SessionList, SessionsAsk, SnapshotAsk, SnapshotRows,
    TTL_SESSIONS_MAX, Values, WATCH_MS_MAX, WATCH_PREFIXES_MAX, code, method,
};
use wire::error::code as common;
use wire::{ErrorClass, Role, WireError};

/// For callers that name no deadline.
const DEADLINE_DEFAULT: Duration = Duration::from_secs(10);
/// Time for an answer to reach its caller.
const ANSWER_WITHIN: Duration = Duration::from_millis(300);
/// Values of one `Get` together; they must fit a frame.
const GET_BYTES_MAX: usize = 1_000_000;

/// Serves clients and peers.
pub struct Server {
    pub inputs: Inputs,
    pub pages: SnapshotPages,
    /// Raft ids of the other nodes.
    pub peers: Vec<u64>,
    pub id: u64,
}

impl Service for Server {
    fn call(&self, request: Request, responder: Responder) {
        let from_peer = request.peer.role == Role::Arakoon;
        match request.method {
            method::TRANSACT => {
                self.ask(&request, request.decode().map(Query::Transact), responder);
            }
            method::GET => self.ask(&request, request.decode().and_then(check_get), responder),
            method::RANGE => self.ask(&request, request.decode().map(Query::Range), responder),
            method::SESSIONS => {
                self.ask(&request, request.decode().map(Query::Sessions), responder);
            }
            method::CHANGES => {
                self.ask(&request, request.decode().and_then(check_changes), responder);
            }
            method::WHO_MASTER => self.push(Input::WhoMaster(responder)),
            wire::common::method::STATUS => self.push(Input::Status(responder)),
            method::RAFT | method::RAFT_SNAPSHOT | method::JOIN if !from_peer => {
                responder
                    .fail(WireError::refuse(common::FORBIDDEN, "only arakoon nodes may call this"));
            }
            method::RAFT => self.raft(&request, responder),
            method::RAFT_SNAPSHOT => self.snapshot(&request, responder),
            method::JOIN => match request.decode() {
                Ok(ask) => self.push(Input::Join(ask, responder)),
                Err(error) => responder.fail(error),
            },
            _ => responder.fail(request.unknown_method()),
        }
    }
}

impl Server {
    fn ask(&self, request: &Request, query: Result<Query, WireError>, responder: Responder) {
        match query {
            Ok(query) => self.push(Input::Ask { query, deadline: deadline(request), responder }),
            Err(error) => responder.fail(error),
        }
    }

    /// A full queue drops the input, and with it the responder, which tells the caller to try again.
    fn push(&self, input: Input) {
        drop(self.inputs.push(input));
    }

    fn raft(&self, request: &Request, responder: Responder) {
        let batch: RaftBatch = match request.decode() {
            Ok(batch) => batch,
            Err(error) => return responder.fail(error),
        };
        let Some(from) = batch.messages.first().map(|message| message.from) else {
            return responder.reply(&batch, Bytes::new());
        };
        if !self.peers.contains(&from) || !is_between(&batch, from, self.id) {
            let message =
                "a Raft message isn't between the configured nodes; compare their configurations";
            return responder.fail(WireError::refuse(common::FORBIDDEN, message));
        }
        self.push(Input::Raft(Heard { messages: batch.messages, call: Some(responder) }));
    }

    fn snapshot(&self, request: &Request, responder: Responder) {
        let ask: SnapshotAsk = match request.decode() {
            Ok(ask) => ask,
            Err(error) => return responder.fail(error),
        };
        if let Some(peer) = self.pages.made_for(ask.number) {
            drop(self.inputs.push(Input::SnapshotProgress(peer)));
        }
        // When the snapshot is gone the responder goes with the answer, and the caller is told to try again; it won't.
        self.pages.page(
            ask.number,
            ask.after,
            Box::new(move |page| match page {
                Ok(page) => {
                    let payload = wire::encode_to_bytes(&page.rows);
                    let checksum = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, &payload);
                    let checksum = u32::try_from(checksum).expect("a CRC-32C has 32 bits");
                    responder.reply(&SnapshotRows { done: page.done, checksum }, payload);
                }
                Err(error) => responder.fail(WireError::fatal(common::NONE, error.to_string())),
            }),
        );
    }
}

/// Whether all of it is from this node to that one.
pub fn is_between(batch: &RaftBatch, from: u64, to: u64) -> bool {
    batch.messages.iter().all(|message| (message.from, message.to) == (from, to))
}

fn check_get(get: Get) -> Result<Query, WireError> {
    if get.keys.len() > OPERATIONS_MAX {
        let message = format!("{} keys; at most {OPERATIONS_MAX} are allowed", get.keys.len());
        return Err(WireError::refuse(code::TOO_LARGE, message));
    }
    Ok(Query::Get(get))
}

fn check_changes(ask: ChangesAsk) -> Result<Query, WireError> {
    let prefixes = || ask.keys.iter().chain(&ask.sessions);
    let fits = |prefix: &Bytes| prefix.len() <= KEY_MAX;
    if prefixes().count() > WATCH_PREFIXES_MAX || !prefixes().all(fits) {
        let message =
            format!("at most {WATCH_PREFIXES_MAX} prefixes of {KEY_MAX} bytes can be watched");
        return Err(WireError::refuse(code::TOO_LARGE, message));
    }
    Ok(Query::Changes(ask))
}

/// Until when a change is waited for: the caller must still get the answer that there was none.
pub fn patience(ask: &ChangesAsk, deadline: Now) -> Now {
    let wait = Duration::from_millis(ask.wait_ms.min(WATCH_MS_MAX));
    boot_now().plus(wait).min(Now(deadline.0.saturating_sub(ANSWER_WITHIN)))
}

fn deadline(request: &Request) -> Now {
    let left = request.deadline.map_or(DEADLINE_DEFAULT, |deadline| {
        deadline.saturating_duration_since(tokio::time::Instant::now())
    });
    boot_now().plus(left)
}

/// Who leads, by name and address.
pub fn leader(nodes: &[NodeEntry], leader: Option<u64>, term: u64) -> Leader {
    let node = nodes.iter().find(|node| Some(node.id) == leader);
    Leader { leader: node.map(|node| (node.name.clone(), node.address.0.to_string())), term }
}

/// The wire form of an answer that isn't a read.
pub fn answer(nodes: &[NodeEntry], answer: Answer) -> Result<Committed, WireError> {
    match answer {
        Answer::Transacted(outcome) => outcome_answer(outcome),
        Answer::NotLeader { leader: known, term } => {
            let leader = leader(nodes, known, term);
            let message = leader.leader.as_ref().map_or_else(
                || "no leader is known at the moment".to_owned(),
                |(name, address)| format!("the leader is {name} at {address}"),
            );
            let error = WireError::new(ErrorClass::Redirect, code::NOT_LEADER, message);
            Err(error.with_detail(wire::encode_to_bytes(&leader)))
        }
        Answer::Unknown => {
            Err(WireError::retry(code::NO_MAJORITY, "no majority of nodes answered"))
        }
        Answer::Busy => Err(WireError::retry(common::BUSY, "too many requests are under way")),
        Answer::TooLarge(limit) => Err(WireError::refuse(code::TOO_LARGE, limit.to_string())),
        // Reads are answered where they are read.
        Answer::ReadNow => {
            Err(WireError::fatal(common::NONE, "a transaction was answered as a read"))
        }
    }
}

fn outcome_answer(outcome: Outcome) -> Result<Committed, WireError> {
    match outcome {
        Outcome::Committed(revision) => Ok(Committed { revision }),
        Outcome::AssertionFailed(failed) => {
            let message =
                format!("assertion {} on key `{}` failed", failed.index, failed.key.escape_ascii());
            let error = WireError::refuse(code::ASSERTION_FAILED, message);
            Err(error.with_detail(wire::encode_to_bytes(&failed)))
        }
        Outcome::BadCounter { key } => {
            let message =
                format!("key `{}` isn't a counter, or would overflow", key.escape_ascii());
            Err(WireError::refuse(code::BAD_COUNTER, message))
        }
        Outcome::PrefixTooLarge { prefix } => {
            let message = format!(
                "too many keys begin with `{}`; delete them in parts",
                prefix.escape_ascii()
            );
            Err(WireError::refuse(code::TOO_LARGE, message))
        }
        Outcome::Expired => {
            let message = "this request is forgotten; it can't be told whether it ran";
            Err(WireError::refuse(code::EXPIRED_REQUEST, message))
        }
        Outcome::SessionRefused(refused) => {
            let id = refused.id.escape_ascii();
            let message = match &refused.found {
                Some(found) => {
                    format!("session `{id}` is held by incarnation {}", found.incarnation)
                }
                None => format!("session `{id}` has expired or was closed"),
            };
            let error = WireError::refuse(code::SESSION_REFUSED, message);
            Err(error.with_detail(wire::encode_to_bytes(&refused)))
        }
        Outcome::SessionsFull => {
            let message = format!("{TTL_SESSIONS_MAX} sessions live already");
            Err(WireError::refuse(code::SESSIONS_FULL, message))
        }
    }
}

/// Reads keys; the inner error is the caller's.
pub fn get(
    replica: &Replica<RocksStore>,
    get: &Get,
) -> Result<Result<Values, WireError>, StoreError> {
    let revision = Revision(replica.status().applied);
    let mut values = Vec::with_capacity(get.keys.len());
    let mut bytes = 0;
    for key in &get.keys {
        let value = replica.store().get(&rows::user(key))?;
        bytes += 8 + value.as_ref().map_or(0, Bytes::len);
        if bytes > GET_BYTES_MAX {
            let message =
                format!("the values exceed {GET_BYTES_MAX} bytes together; ask for fewer keys");
            return Ok(Err(WireError::refuse(code::TOO_LARGE, message)));
        }
        values.push(value);
    }
    Ok(Ok(Values { values, revision }))
}

/// Living sessions with a TTL; all of them fit an answer.
pub fn sessions(replica: &Replica<RocksStore>, ask: &SessionsAsk) -> SessionList {
    let revision = Revision(replica.status().applied);
    SessionList { sessions: replica.ttl_sessions(&ask.prefix), revision }
}

/// Reads a range, up to its limit and ours.
pub fn range(replica: &Replica<RocksStore>, range: &Range) -> Result<Entries, StoreError> {
    let limit = model::usize_of(range.limit.min(RANGE_ENTRIES_MAX).into());
    let revision = Revision(replica.status().applied);
    let start = rows::user(&range.start);
    let end = range.end.as_ref().map_or_else(rows::user_end, |end| rows::user(end));
    let mut found = Entries { entries: Vec::new(), more: false, revision };
    let mut bytes = 0;
    let span = Span { start: &start, end: Some(&end) };
    replica.store().scan(span, range.direction, &mut |row, value| {
        let Some(key) = rows::user_key(row) else { return ControlFlow::Continue(()) };
        bytes += key.len() + value.len() + 8;
        let full =
            found.entries.len() >= limit || (bytes > RANGE_BYTES_MAX && !found.entries.is_empty());
        if full {
            found.more = true;
            return ControlFlow::Break(());
        }
        found.entries.push((Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)));
        ControlFlow::Continue(())
    })?;
    Ok(found)
}
