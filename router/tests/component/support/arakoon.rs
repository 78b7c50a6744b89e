//! Arakoon as one map: always the leader, transactions at once, repeated ones answered as before.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use model::{Incarnation, Revision};
use runtime::rpc::{Request, Responder, Service};
use wire::WireError;
use wire::arakoon::{
    Assertion, AssertionFailed, Committed, Direction, Entries, Get, Range, SessionFact,
    SessionList, SessionRecord, SessionRefused, SessionsAsk, Transaction, Update, Values, code,
    method,
};

use super::gate::Gate;
use super::reply;

#[derive(Default)]
pub struct Store {
    pub map: BTreeMap<Bytes, Bytes>,
    pub sessions: BTreeMap<Bytes, Incarnation>,
    revision: u64,
    /// Transactions that did more than renew sessions.
    changes: u64,
    answered: BTreeMap<(u128, u64), Result<Committed, WireError>>,
}

#[derive(Default)]
pub struct FakeArakoon {
    store: Mutex<Store>,
    /// What happens right before the next transaction that sets this key.
    before: Mutex<Option<(Bytes, Interference)>>,
    /// The same of the next one that asserts this key's value.
    before_asserting: Mutex<Option<(Bytes, Interference)>>,
    late: Mutex<Late>,
}

/// The answer of one transaction, later than those of others.
#[derive(Default)]
struct Late {
    /// Of the next transaction that sets this key.
    wanted: Option<Bytes>,
    held: Option<(Responder, Result<Committed, WireError>)>,
}

type Interference = Box<dyn FnOnce(&mut Store) + Send>;

pub struct Server(pub Arc<FakeArakoon>, pub Arc<Gate>);

impl FakeArakoon {
    pub fn set(&self, key: Bytes, value: Bytes) {
        self.store.lock().unwrap().map.insert(key, value);
    }

    /// As when its holder wasn't heard of for the TTL.
    pub fn expire(&self, session: &Bytes) {
        self.store.lock().unwrap().sessions.remove(session);
    }

    /// Somebody is quicker than the next transaction that sets `key`.
    pub fn before(&self, key: Bytes, interference: impl FnOnce(&mut Store) + Send + 'static) {
        *self.before.lock().unwrap() = Some((key, Box::new(interference)));
    }

    /// Somebody is quicker than the next transaction that asserts what `key` is.
    pub fn before_asserting(
        &self,
        key: Bytes,
        interference: impl FnOnce(&mut Store) + Send + 'static,
    ) {
        *self.before_asserting.lock().unwrap() = Some((key, Box::new(interference)));
    }

    /// The next transaction that sets `key` is carried out, and its answer comes when it is let go.
    pub fn hold_answer(&self, key: Bytes) {
        self.late.lock().unwrap().wanted = Some(key);
    }

    pub fn holds_answer(&self) -> bool {
        self.late.lock().unwrap().held.is_some()
    }

    pub fn let_answer_go(&self) {
        if let Some((responder, answer)) = self.late.lock().unwrap().held.take() {
            reply(responder, answer);
        }
    }

    /// It never comes: whoever asked hears that the outcome isn't known.
    pub fn lose_answer(&self) {
        if let Some((responder, _)) = self.late.lock().unwrap().held.take() {
            responder.fail(WireError::fatal(wire::error::code::STOPPING, "the answer is lost"));
        }
    }

    fn interfere(&self, store: &mut Store, transaction: &Transaction) {
        let mut before = self.before.lock().unwrap();
        if let Some((_, interference)) = before.take_if(|(key, _)| sets(transaction, key)) {
            interference(store);
        }
        let mut before = self.before_asserting.lock().unwrap();
        if let Some((_, interference)) = before.take_if(|(key, _)| asserts(transaction, key)) {
            interference(store);
        }
    }

    pub fn session(&self, id: &Bytes) -> Option<Incarnation> {
        self.store.lock().unwrap().sessions.get(id).copied()
    }

    /// What is written in some key, or is some key's whole value.
    pub fn mentions(&self, text: &str, value: &[u8]) -> Vec<String> {
        let store = self.store.lock().unwrap();
        let of = |(key, found): &(&Bytes, &Bytes)| {
            String::from_utf8_lossy(key).contains(text) || found[..] == *value
        };
        store.map.iter().filter(of).map(|(key, _)| key.escape_ascii().to_string()).collect()
    }

    /// How often anything was changed: heartbeats don't count.
    pub fn changes(&self) -> u64 {
        self.store.lock().unwrap().changes
    }

    pub fn get(&self, key: &Bytes) -> Option<Bytes> {
        self.store.lock().unwrap().map.get(key).cloned()
    }
}

fn sets(transaction: &Transaction, wanted: &Bytes) -> bool {
    let of = |update: &Update| matches!(update, Update::Set { key, .. } if key == wanted);
    transaction.updates.iter().any(of)
}

fn asserts(transaction: &Transaction, wanted: &Bytes) -> bool {
    let of =
        |assertion: &Assertion| matches!(assertion, Assertion::Value { key, .. } if key == wanted);
    transaction.assertions.iter().any(of)
}

impl Store {
    fn transact(&mut self, transaction: Transaction) -> Result<Committed, WireError> {
        let id = (transaction.client.0, transaction.request);
        if let Some(answer) = self.answered.get(&id) {
            return answer.clone();
        }
        let answer = self.run(transaction);
        self.answered.insert(id, answer.clone());
        answer
    }

    fn run(&mut self, transaction: Transaction) -> Result<Committed, WireError> {
        for (index, assertion) in transaction.assertions.iter().enumerate() {
            let (key, holds) = match assertion {
                Assertion::Value { key, expected } => (key, self.map.get(key) == expected.as_ref()),
                Assertion::Exists { key } => (key, self.map.contains_key(key)),
                Assertion::SessionLives { id, incarnation } => {
                    (id, self.sessions.get(id) == Some(incarnation))
                }
                Assertion::SessionGone { id, incarnation } => {
                    (id, self.sessions.get(id) != Some(incarnation))
                }
            };
            if !holds {
                let failed = AssertionFailed {
                    index: u32::try_from(index).unwrap(),
                    key: key.clone(),
                    found: self.map.get(key).cloned(),
                };
                return Err(WireError::refuse(code::ASSERTION_FAILED, "assertion failed")
                    .with_detail(wire::encode_to_bytes(&failed)));
            }
        }
        for update in &transaction.updates {
            if let Update::RenewSession { id, incarnation } = update
                && self.sessions.get(id) != Some(incarnation)
            {
                let refused = SessionRefused { id: id.clone(), found: None };
                return Err(WireError::refuse(code::SESSION_REFUSED, "it is over")
                    .with_detail(wire::encode_to_bytes(&refused)));
            }
        }
        let renews = |update: &Update| matches!(update, Update::RenewSession { .. });
        self.changes += u64::from(!transaction.updates.iter().all(renews));
        for update in transaction.updates {
            match update {
                Update::Set { key, value } => drop(self.map.insert(key, value)),
                Update::Delete { key } => drop(self.map.remove(&key)),
                Update::DeletePrefix { prefix } => {
                    self.map.retain(|key, _| !key.starts_with(&prefix));
                }
                // Sessions never expire here; who opens one has the lock on its data.
                Update::OpenSession { id, incarnation, .. } => {
                    self.sessions.insert(id, incarnation);
                }
                Update::RenewSession { .. } => {}
                Update::CloseSession { id, .. } => drop(self.sessions.remove(&id)),
                Update::Add { .. } => panic!("not used here"),
            }
        }
        self.revision += 1;
        Ok(Committed { revision: Revision(self.revision) })
    }

    fn range(&self, range: &Range) -> Entries {
        assert_eq!(range.direction, Direction::Forward);
        let end = range.end.clone();
        let all = self.map.range(range.start.clone()..);
        let entries: Vec<(Bytes, Bytes)> = all
            .take_while(|(key, _)| end.as_ref().is_none_or(|end| *key < end))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        assert!(entries.len() <= range.limit as usize, "tests are small");
        Entries { entries, more: false, revision: Revision(self.revision) }
    }
}

impl Service for Server {
    fn call(&self, request: Request, responder: Responder) {
        self.1.pass(|| self.answer(&request, responder));
    }
}

impl Server {
    fn answer(&self, request: &Request, responder: Responder) {
        let mut store = self.0.store.lock().unwrap();
        match request.method {
            method::TRANSACT => {
                let transaction: Transaction = request.decode().unwrap();
                self.0.interfere(&mut store, &transaction);
                let mut late = self.0.late.lock().unwrap();
                let is_late = late.wanted.take_if(|key| sets(&transaction, key)).is_some();
                let answer = store.transact(transaction);
                if is_late {
                    late.held = Some((responder, answer));
                } else {
                    reply(responder, answer);
                }
            }
            method::GET => {
                let get: Get = request.decode().unwrap();
                let values = get.keys.iter().map(|key| store.map.get(key).cloned()).collect();
                reply(responder, Ok(Values { values, revision: Revision(store.revision) }));
            }
            method::SESSIONS => {
                let ask: SessionsAsk = request.decode().unwrap();
                let known = store.sessions.iter().filter(|(id, _)| id.starts_with(&ask.prefix));
                let sessions = known.map(|(id, incarnation)| {
                    let record = SessionRecord {
                        incarnation: *incarnation,
                        ttl_ms: 9000,
                        renewal: 1,
                        opened: Revision(1),
                        age_ms: 0,
                    };
                    SessionFact { id: id.clone(), record }
                });
                let sessions = sessions.collect();
                let revision = Revision(store.revision);
                reply(responder, Ok(SessionList { sessions, revision }));
            }
            method::RANGE => reply(responder, Ok(store.range(&request.decode().unwrap()))),
            _ => responder.fail(request.unknown_method()),
        }
    }
}
