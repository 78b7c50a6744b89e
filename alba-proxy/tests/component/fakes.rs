//! An arakoon and ASDs in memory that speak the real protocols over real sockets, and can be hurt on purpose.

use bytes::Bytes;
use model::{Incarnation, OsdId, Revision};
use runtime::endpoint::Endpoint;
use runtime::net::Listener;
use runtime::peer::Identity;
use runtime::rpc::{Request, Responder, ServerOptions, Service, serve};
use runtime::shutdown::Shutdown;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use wire::arakoon::{
    self, Assertion, AssertionFailed, Committed, Direction, Entries, Get, Range, Transaction,
    Update, Values,
};
use wire::asd::{
    self, BLOCK, DiskState, GetResult, GetResults, GetStatus, MultiGet, MultiPut, PutCondition,
    PutResult, PutResults,
};
use wire::error::code;
use wire::{Decode, Encode, Role, WireError, encode_to_bytes};

pub fn identity(role: Role, name: &str) -> Arc<Identity> {
    Identity::new(role, name, "test", None).unwrap()
}

/// Serves until stopped; the endpoint stays the same over stops and starts.
pub struct Server {
    endpoint: Endpoint,
    identity: Arc<Identity>,
    service: Arc<dyn Service>,
    running: Option<(Shutdown, tokio::task::JoinHandle<()>)>,
}

impl Server {
    pub async fn start(endpoint: &str, role: Role, name: &str, service: Arc<dyn Service>) -> Self {
        let identity = identity(role, name);
        let endpoint = endpoint.parse().unwrap();
        let mut server = Self { endpoint, identity, service, running: None };
        server.up().await;
        server
    }

    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    pub async fn up(&mut self) {
        if self.running.is_some() {
            return;
        }
        let listener = Listener::bind(&self.endpoint, &self.identity).await.unwrap();
        let shutdown = Shutdown::new();
        let options = ServerOptions::allowing(&[Role::AlbaProxy, Role::Arakoon]);
        let serving = serve(
            listener,
            Arc::clone(&self.identity),
            Arc::clone(&self.service),
            options,
            shutdown.clone(),
        );
        self.running = Some((shutdown, tokio::spawn(serving)));
    }

    pub async fn down(&mut self) {
        if let Some((shutdown, task)) = self.running.take() {
            shutdown.trigger();
            task.await.unwrap();
        }
    }
}

/// One node that always leads.
#[derive(Default)]
pub struct FakeArakoon {
    state: Mutex<ArakoonState>,
    /// Answers to transactions, while none is given.
    silenced: Mutex<Option<Vec<Responder>>>,
}

#[derive(Default)]
struct ArakoonState {
    revision: u64,
    entries: BTreeMap<Bytes, Bytes>,
    answered: BTreeMap<(u128, u64), Result<Revision, WireError>>,
    /// Set just before the next transaction.
    sneaking: Option<(Bytes, Bytes)>,
    /// Keys that were set, by transaction.
    set: Vec<Vec<Bytes>>,
}

impl ArakoonState {
    fn transact(&mut self, transaction: &Transaction) -> Result<Revision, WireError> {
        let id = (transaction.client.0, transaction.request);
        if let Some(answer) = self.answered.get(&id) {
            return answer.clone();
        }
        if let Some((key, value)) = self.sneaking.take() {
            self.entries.insert(key, value);
        }
        let answer = self.apply(transaction);
        if transaction.request > 0 {
            self.answered.insert(id, answer.clone());
        }
        answer
    }

    fn apply(&mut self, transaction: &Transaction) -> Result<Revision, WireError> {
        for (index, assertion) in (0..).zip(&transaction.assertions) {
            let (key, holds) = match assertion {
                Assertion::Value { key, expected } => {
                    (key, self.entries.get(key) == expected.as_ref())
                }
                Assertion::Exists { key } => (key, self.entries.contains_key(key)),
                Assertion::SessionLives { .. } | Assertion::SessionGone { .. } => {
                    panic!("not used here")
                }
            };
            if !holds {
                let found = self.entries.get(key).cloned();
                let detail = AssertionFailed { index, key: key.clone(), found };
                let error = WireError::refuse(arakoon::code::ASSERTION_FAILED, "assertion failed");
                return Err(error.with_detail(encode_to_bytes(&detail)));
            }
        }
        let mut set = Vec::new();
        for update in &transaction.updates {
            match update {
                Update::Set { key, value } => {
                    self.entries.insert(key.clone(), value.clone());
                    set.push(key.clone());
                }
                Update::Delete { key } => {
                    self.entries.remove(key);
                }
                Update::DeletePrefix { prefix } => {
                    self.entries.retain(|key, _| !key.starts_with(prefix));
                }
                Update::OpenSession { .. }
                | Update::RenewSession { .. }
                | Update::CloseSession { .. } => panic!("not used here"),
                Update::Add { key, delta } => {
                    let old = self
                        .entries
                        .get(key)
                        .map_or(0, |value| i64::from_le_bytes(value.as_ref().try_into().unwrap()));
                    let new = Bytes::copy_from_slice(&(old + delta).to_le_bytes());
                    self.entries.insert(key.clone(), new);
                }
            }
        }
        self.set.push(set);
        self.revision += 1;
        Ok(Revision(self.revision))
    }
}

impl FakeArakoon {
    /// Somebody else is quicker than the next transaction.
    pub fn change_before_next(&self, key: Bytes, value: Bytes) {
        self.state.lock().unwrap().sneaking = Some((key, value));
    }

    pub fn set(&self, key: Bytes, value: Bytes) {
        self.state.lock().unwrap().entries.insert(key, value);
    }

    pub fn get(&self, key: &Bytes) -> Option<Bytes> {
        self.state.lock().unwrap().entries.get(key).cloned()
    }

    /// The keys that each transaction has set, of those that set one of these.
    pub fn transactions_on(&self, keys: &[Bytes]) -> Vec<Vec<Bytes>> {
        let state = self.state.lock().unwrap();
        let all = state.set.iter().filter(|set| keys.iter().any(|key| set.contains(key)));
        all.cloned().collect()
    }

    /// From now on transactions are carried out and not answered.
    pub fn silence(&self) {
        *self.silenced.lock().unwrap() = Some(Vec::new());
    }

    pub fn speak_again(&self) {
        *self.silenced.lock().unwrap() = None;
    }

    pub fn keys(&self, prefix: &str) -> Vec<String> {
        let state = self.state.lock().unwrap();
        let text = |key: &Bytes| String::from_utf8(key.to_vec()).unwrap();
        state.entries.keys().map(text).filter(|key| key.starts_with(prefix)).collect()
    }

    fn answer(&self, request: &Request, responder: Responder) -> Result<(), WireError> {
        let mut state = self.state.lock().unwrap();
        match request.method {
            arakoon::method::TRANSACT => {
                let revision = state.transact(&request.decode()?)?;
                responder.reply(&Committed { revision }, Bytes::new());
            }
            arakoon::method::GET => {
                let get: Get = request.decode()?;
                let values = get.keys.iter().map(|key| state.entries.get(key).cloned()).collect();
                let revision = Revision(state.revision);
                responder.reply(&Values { values, revision }, Bytes::new());
            }
            arakoon::method::RANGE => {
                let range: Range = request.decode()?;
                assert_eq!(range.direction, Direction::Forward);
                let limit = usize::try_from(range.limit).unwrap();
                let mut entries: Vec<(Bytes, Bytes)> = state
                    .entries
                    .range(range.start..)
                    .take_while(|(key, _)| range.end.as_ref().is_none_or(|end| *key < end))
                    .take(limit + 1)
                    .map(|(key, value)| (key.clone(), value.clone()))
                    .collect();
                let more = entries.len() > limit;
                entries.truncate(limit);
                let revision = Revision(state.revision);
                responder.reply(&Entries { entries, more, revision }, Bytes::new());
            }
            _ => return Err(request.unknown_method()),
        }
        Ok(())
    }
}

/// Answers with the error when there is one: the responder is gone only on success.
fn reply_or_fail<T: Encode>(responder: Responder, result: Result<T, WireError>, payload: Bytes) {
    match result {
        Ok(body) => responder.reply(&body, payload),
        Err(error) => responder.fail(error),
    }
}

impl Service for FakeArakoon {
    fn call(&self, request: Request, responder: Responder) {
        match request.method {
            arakoon::method::TRANSACT => {
                let result = request
                    .decode::<Transaction>()
                    .and_then(|transaction| self.state.lock().unwrap().transact(&transaction));
                let body = result.map(|revision| Committed { revision });
                match &mut *self.silenced.lock().unwrap() {
                    Some(silenced) => silenced.push(responder),
                    None => reply_or_fail(responder, body, Bytes::new()),
                }
            }
            _ => {
                if let Err(error) = self.answer(&request, responder) {
                    panic!("a proxy asked arakoon something strange: {error}");
                }
            }
        }
    }
}

/// Bytes and block checksums by key.
pub type Fragments = BTreeMap<Bytes, (Vec<u8>, Vec<u32>)>;

/// A disk in memory.
pub struct FakeAsd {
    pub osd: OsdId,
    fragments: Mutex<Fragments>,
    full: AtomicBool,
    /// Requests are taken and never answered.
    stalled: AtomicBool,
    kept: Mutex<Vec<Responder>>,
    corruptions: AtomicU64,
    /// Gets are kept here until they are let go.
    held: Mutex<Option<Vec<(Request, Responder)>>>,
    /// Fragments that arrived, stored or not.
    pub puts: AtomicU64,
    pub gets: AtomicU64,
    pub bytes_read: AtomicU64,
}

impl FakeAsd {
    pub fn new(osd: OsdId) -> Arc<Self> {
        Arc::new(Self {
            osd,
            fragments: Mutex::default(),
            full: AtomicBool::new(false),
            stalled: AtomicBool::new(false),
            kept: Mutex::default(),
            corruptions: AtomicU64::new(0),
            held: Mutex::default(),
            puts: AtomicU64::new(0),
            gets: AtomicU64::new(0),
            bytes_read: AtomicU64::new(0),
        })
    }

    pub fn fill_up(&self) {
        self.full.store(true, Ordering::SeqCst);
    }

    pub fn make_room(&self) {
        self.full.store(false, Ordering::SeqCst);
    }

    pub fn stall(&self) {
        self.stalled.store(true, Ordering::SeqCst);
    }

    pub fn resume(&self) {
        self.stalled.store(false, Ordering::SeqCst);
        self.kept.lock().unwrap().clear();
    }

    /// Gets wait from now on.
    pub fn hold(&self) {
        *self.held.lock().unwrap() = Some(Vec::new());
    }

    /// Answers those that wait, and all that come.
    pub fn let_go(&self) {
        self.answer(self.take_held());
    }

    /// Those that wait; what comes is answered again.
    pub fn take_held(&self) -> Vec<(Request, Responder)> {
        self.held.lock().unwrap().take().unwrap_or_default()
    }

    pub fn answer(&self, held: Vec<(Request, Responder)>) {
        for (request, responder) in held {
            self.answer_get(&request, responder);
        }
    }

    fn take_get(&self, request: Request, responder: Responder) {
        self.gets.fetch_add(1, Ordering::SeqCst);
        match &mut *self.held.lock().unwrap() {
            Some(held) => held.push((request, responder)),
            None => self.answer_get(&request, responder),
        }
    }

    fn answer_get(&self, request: &Request, responder: Responder) {
        let (results, payload) = self.get(&body(request));
        responder.reply(&results, payload);
    }

    pub fn corruptions(&self) -> u64 {
        self.corruptions.load(Ordering::SeqCst)
    }

    pub fn fragments(&self) -> usize {
        self.fragments.lock().unwrap().len()
    }

    /// Loses everything; what it was can be given back.
    pub fn erase(&self) -> Fragments {
        std::mem::take(&mut self.fragments.lock().unwrap())
    }

    pub fn restore(&self, fragments: Fragments) {
        *self.fragments.lock().unwrap() = fragments;
    }

    /// Flips one bit of every fragment, as rot does: its checksums stay.
    pub fn rot(&self) -> usize {
        let mut fragments = self.fragments.lock().unwrap();
        for (bytes, _) in fragments.values_mut() {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 0x10;
        }
        fragments.len()
    }

    /// Flips one bit of every fragment and lies about it: only the frames' own protection can tell.
    pub fn rot_and_lie(&self) -> usize {
        let mut fragments = self.fragments.lock().unwrap();
        for (bytes, sums) in fragments.values_mut() {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 0x10;
            *sums = checksums(bytes);
        }
        fragments.len()
    }

    pub fn contains(&self, needle: &[u8]) -> bool {
        let fragments = self.fragments.lock().unwrap();
        fragments.iter().any(|(key, (bytes, _))| has(key, needle) || has(bytes, needle))
    }

    fn put(&self, body: &MultiPut, payload: &Bytes) -> PutResults {
        self.puts.fetch_add(u64::try_from(body.items.len()).unwrap(), Ordering::SeqCst);
        let mut fragments = self.fragments.lock().unwrap();
        let mut at = 0;
        let results = body
            .items
            .iter()
            .map(|item| {
                let end = at + usize::try_from(item.len).unwrap();
                let bytes = &payload[at..end];
                at = end;
                if checksums(bytes) != item.checksums {
                    return PutResult::BadChecksum;
                }
                if self.full.load(Ordering::SeqCst) {
                    return PutResult::Full;
                }
                let there = fragments.get(&item.key);
                if item.condition == PutCondition::Absent
                    && there.is_some_and(|(_, sums)| *sums != item.checksums)
                {
                    return PutResult::Exists;
                }
                fragments.insert(item.key.clone(), (bytes.to_vec(), item.checksums.clone()));
                PutResult::Stored
            })
            .collect();
        PutResults { results }
    }

    fn get(&self, body: &MultiGet) -> (GetResults, Bytes) {
        let fragments = self.fragments.lock().unwrap();
        let mut payload = Vec::new();
        let nothing = |status| GetResult { status, len: 0, total_len: 0, checksum: 0 };
        let results = body
            .items
            .iter()
            .map(|item| {
                let Some((bytes, sums)) = fragments.get(&item.key) else {
                    return nothing(GetStatus::Absent);
                };
                let start = usize::try_from(item.offset).unwrap();
                let end = match item.len {
                    u32::MAX => bytes.len(),
                    len => start + usize::try_from(len).unwrap(),
                };
                if end > bytes.len() {
                    return nothing(GetStatus::OutOfRange);
                }
                let now = checksums(bytes);
                let touched = start / BLOCK..end.div_ceil(BLOCK);
                if now[touched.clone()] != sums[touched] {
                    self.corruptions.fetch_add(1, Ordering::SeqCst);
                    return nothing(GetStatus::Corrupt);
                }
                let piece = &bytes[start..end];
                payload.extend_from_slice(piece);
                GetResult {
                    status: GetStatus::Found,
                    len: u32::try_from(piece.len()).unwrap(),
                    total_len: u32::try_from(bytes.len()).unwrap(),
                    checksum: codec::crc32c(piece),
                }
            })
            .collect();
        self.bytes_read.fetch_add(u64::try_from(payload.len()).unwrap(), Ordering::SeqCst);
        (GetResults { results }, Bytes::from(payload))
    }

    fn verify(&self, body: &asd::Verify) -> asd::VerifyResults {
        let fragments = self.fragments.lock().unwrap();
        let status = |key: &Bytes| match fragments.get(key) {
            None => GetStatus::Absent,
            Some((bytes, sums)) if checksums(bytes) == *sums => GetStatus::Found,
            Some(_) => GetStatus::Corrupt,
        };
        asd::VerifyResults { results: body.keys.iter().map(status).collect() }
    }

    fn state(&self) -> DiskState {
        if self.full.load(Ordering::SeqCst) { DiskState::Full } else { DiskState::Writable }
    }

    fn stats(&self) -> asd::Stats {
        asd::Stats {
            state: self.state(),
            capacity_bytes: 10 << 30,
            used_bytes: 1 << 30,
            live_bytes: 1 << 30,
            fragments: u64::try_from(self.fragments()).unwrap(),
            segments: 1,
            puts: 0,
            gets: 0,
            deletes: 0,
            syncs: 0,
            corruptions: self.corruptions.load(Ordering::SeqCst),
            io_errors: 0,
        }
    }
}

fn has(bytes: &[u8], needle: &[u8]) -> bool {
    bytes.windows(needle.len()).any(|window| window == needle)
}

fn checksums(bytes: &[u8]) -> Vec<u32> {
    bytes.chunks(BLOCK).map(codec::crc32c).collect()
}

/// What arrives at a disk is well formed: the proxy made it.
fn body<T: Decode>(request: &Request) -> T {
    request.decode().unwrap()
}

pub struct AsdService(pub Arc<FakeAsd>);

impl Service for AsdService {
    fn call(&self, request: Request, responder: Responder) {
        let disk = &self.0;
        if disk.stalled.load(Ordering::SeqCst) {
            disk.kept.lock().unwrap().push(responder);
            return;
        }
        match request.method {
            asd::method::IDENTIFY => {
                let identity = asd::Identity {
                    osd: disk.osd,
                    incarnation: Incarnation(1),
                    state: disk.state(),
                    capacity_bytes: 10 << 30,
                    used_bytes: 1 << 30,
                };
                responder.reply(&identity, Bytes::new());
            }
            asd::method::MULTI_PUT => {
                responder.reply(&disk.put(&body(&request), &request.payload), Bytes::new());
            }
            asd::method::MULTI_GET => disk.take_get(request, responder),
            asd::method::DELETE => {
                let delete: asd::Delete = body(&request);
                let mut fragments = disk.fragments.lock().unwrap();
                for key in &delete.keys {
                    fragments.remove(key);
                }
                responder.reply(&(), Bytes::new());
            }
            asd::method::VERIFY => responder.reply(&disk.verify(&body(&request)), Bytes::new()),
            asd::method::STATS => responder.reply(&disk.stats(), Bytes::new()),
            _ => responder.fail(WireError::refuse(code::UNKNOWN_METHOD, "unknown")),
        }
    }
}
