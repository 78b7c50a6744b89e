//! A backend that keeps objects in memory and holds the promises of the proxy protocol: epochs, heads, idempotent puts.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use model::{Epoch, NamespaceId, ObjectId, VdiskId};
use runtime::rpc::{Request, Responder, Service};
use wire::WireError;
use wire::proxy::{
    CreateBeside, CreateNamespace, DeleteNamespace, DeleteObjects, FillHoles, Head, Health,
    ListObjects, ObjectInfo, Objects, PutDone, PutObject, RaiseEpoch, ReadDone, ReadHead,
    ReadObject, code, method,
};

use super::gate::Gate;
use super::reply;

#[derive(Clone)]
struct Object {
    payload: Bytes,
    meta: Bytes,
}

#[derive(Default)]
struct Namespace {
    epoch: Epoch,
    head: Option<ObjectId>,
    /// Of the head, which may be deleted since.
    head_meta: Bytes,
    /// It lives and dies with another one.
    beside: bool,
    objects: BTreeMap<ObjectId, Object>,
    /// Puts whose predecessor is on its way.
    waiting: Vec<(PutObject, Bytes, Responder)>,
}

#[derive(Default)]
pub struct FakeProxy {
    namespaces: Mutex<BTreeMap<NamespaceId, Namespace>>,
    out: AtomicBool,
    /// Nothing is stored in these namespaces.
    stuck: Mutex<BTreeSet<NamespaceId>>,
    delay_ms: AtomicU64,
    puts: AtomicU64,
    reads: AtomicU64,
    /// Objects can't be rebuilt.
    unreadable: AtomicBool,
    /// What befalls messages of these methods about a namespace beside a vDisk's, or about a vDisk's own.
    troubles: Mutex<BTreeMap<(u16, Beside), Trouble>>,
    /// Messages that wait for an answer.
    silenced: Mutex<Vec<(Request, Responder)>>,
    /// Before the read of this number, from 0, of an object beside a vDisk's namespace.
    at_part: Mutex<Option<(usize, AtPart)>>,
    /// Parts that are being read, and how many at most were at a time.
    parts_read: Mutex<(usize, usize)>,
}

type AtPart = Box<dyn FnOnce(&FakeProxy) + Send>;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Beside {
    Yes,
    No,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// No answer comes until all is well again.
    Silent,
    /// It can't be done now.
    Out,
    /// It can never be done.
    Refused,
}

/// What lies in a namespace.
#[derive(Default)]
pub struct Contents(BTreeMap<ObjectId, Object>);

/// With what every message passes, and what those pass that are about a namespace beside a vDisk's.
pub struct Server(pub Arc<FakeProxy>, pub Arc<Gate>, pub Arc<Gate>);

impl FakeProxy {
    pub fn set_out(&self, out: bool) {
        self.out.store(out, Ordering::SeqCst);
    }

    pub fn set_stuck(&self, vdisk: VdiskId) {
        self.stuck.lock().unwrap().insert(vdisk.into());
    }

    pub fn none_is_stuck(&self) {
        self.stuck.lock().unwrap().clear();
    }

    pub fn set_delay_ms(&self, delay: u64) {
        self.delay_ms.store(delay, Ordering::SeqCst);
    }

    /// Says of every object that it can't be rebuilt.
    pub fn set_unreadable(&self, unreadable: bool) {
        self.unreadable.store(unreadable, Ordering::SeqCst);
    }

    pub fn trouble(&self, method: u16, beside: Beside, trouble: Trouble) {
        self.troubles.lock().unwrap().insert((method, beside), trouble);
    }

    /// All is well again; what was silent is answered now.
    pub fn no_trouble(&self) {
        self.troubles.lock().unwrap().clear();
        for (request, responder) in std::mem::take(&mut *self.silenced.lock().unwrap()) {
            self.answer(&request, responder);
        }
    }

    /// Messages without an answer.
    pub fn silenced(&self) -> usize {
        self.silenced.lock().unwrap().len()
    }

    /// Does something just before a part is read.
    pub fn at_part(&self, number: usize, act: impl FnOnce(&Self) + Send + 'static) {
        *self.at_part.lock().unwrap() = Some((number, Box::new(act)));
    }

    /// How many parts at most were being read at a time.
    pub fn parts_at_once(&self) -> usize {
        self.parts_read.lock().unwrap().1
    }

    pub fn contents(&self, namespace: impl Into<NamespaceId>) -> Contents {
        Contents(self.namespaces.lock().unwrap()[&namespace.into()].objects.clone())
    }

    pub fn bytes(&self, namespace: impl Into<NamespaceId>) -> u64 {
        let contents = self.contents(namespace);
        contents.0.values().map(|object| object.payload.len() as u64).sum()
    }

    pub fn set_contents(&self, namespace: impl Into<NamespaceId>, contents: Contents) {
        let mut namespaces = self.namespaces.lock().unwrap();
        namespaces.get_mut(&namespace.into()).unwrap().objects = contents.0;
    }

    fn before_part(&self) {
        let act = {
            let mut at_part = self.at_part.lock().unwrap();
            match &mut *at_part {
                Some((left, _)) if 0 < *left => {
                    *left -= 1;
                    None
                }
                Some(_) | None => at_part.take().map(|(_, act)| act),
            }
        };
        if let Some(act) = act {
            act(self);
        }
    }

    /// Objects committed so far.
    pub fn puts(&self) -> u64 {
        self.puts.load(Ordering::SeqCst)
    }

    /// Reads that arrived so far, answered or not.
    pub fn reads(&self) -> u64 {
        self.reads.load(Ordering::SeqCst)
    }

    pub fn namespaces(&self) -> usize {
        self.namespaces.lock().unwrap().len()
    }

    pub fn raise_epoch(&self, namespace: impl Into<NamespaceId>, epoch: u64) {
        self.namespaces.lock().unwrap().get_mut(&namespace.into()).unwrap().epoch = Epoch(epoch);
    }

    /// What lies in a namespace, with its meta.
    pub fn objects(&self, namespace: impl Into<NamespaceId>) -> Vec<(ObjectId, Bytes)> {
        let namespaces = self.namespaces.lock().unwrap();
        let objects = namespaces.get(&namespace.into()).into_iter().flat_map(|n| &n.objects);
        objects.map(|(object, stored)| (*object, stored.meta.clone())).collect()
    }

    /// Damages the object of this place in a namespace; its own checksums are made right.
    pub fn damage(&self, namespace: impl Into<NamespaceId>, place: usize) {
        let mut namespaces = self.namespaces.lock().unwrap();
        let object = namespaces.get_mut(&namespace.into()).unwrap().objects.values_mut().nth(place);
        let object = object.unwrap();
        let mut bytes = object.payload.to_vec();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        object.payload = Bytes::from(bytes);
    }

    /// Whether a message is about a namespace that is, or would be, beside a vDisk's: all begin with the namespace.
    fn is_beside(&self, request: &Request) -> bool {
        let mut body = wire::Reader::new(request.body.clone());
        let Ok(namespace) = <NamespaceId as wire::Decode>::decode(&mut body) else { return false };
        let is_creation = request.method == method::CREATE_NAMESPACE;
        let namespaces = self.namespaces.lock().unwrap();
        !is_creation && namespaces.get(&namespace).is_none_or(|found| found.beside)
    }

    /// Damages (or mends) the first object of the only namespace.
    pub fn flip_byte(&self, at: usize) {
        let mut namespaces = self.namespaces.lock().unwrap();
        let object = namespaces.values_mut().next().unwrap().objects.values_mut().next().unwrap();
        let mut bytes = object.payload.to_vec();
        bytes[at] ^= 1;
        object.payload = Bytes::from(bytes);
    }

    fn with<T>(
        &self,
        namespace: NamespaceId,
        act: impl FnOnce(&mut Namespace) -> Result<T, WireError>,
    ) -> Result<T, WireError> {
        match self.namespaces.lock().unwrap().get_mut(&namespace) {
            Some(found) => act(found),
            None => Err(WireError::refuse(code::NO_NAMESPACE, "no such namespace")),
        }
    }

    fn put(&self, put: PutObject, payload: Bytes, responder: Responder) {
        assert_eq!(crc_fast::crc32_iscsi(&payload), put.checksum, "the payload has its checksum");
        assert!((4096..=65_792).contains(&put.frame_size));
        assert!(put.meta.len() <= wire::proxy::META_MAX);
        if self.stuck.lock().unwrap().contains(&put.namespace) {
            return responder.fail(WireError::retry(code::NO_POLICY, "nothing is stored there"));
        }
        let mut namespaces = self.namespaces.lock().unwrap();
        let Some(namespace) = namespaces.get_mut(&put.namespace) else {
            return responder.fail(WireError::refuse(code::NO_NAMESPACE, "no such namespace"));
        };
        namespace.waiting.push((put, payload, responder));
        loop {
            let Namespace { epoch, head, head_meta, objects, waiting, .. } = namespace;
            let ready = waiting.iter().position(|(put, _, _)| {
                put.epoch != *epoch
                    || put.expected_head == *head
                    || objects.contains_key(&put.object)
            });
            let Some(ready) = ready else { return };
            let (put, payload, responder) = waiting.remove(ready);
            if put.epoch != *epoch {
                responder
                    .fail(WireError::refuse(code::FENCED, format!("epoch {epoch} is recorded")));
                continue;
            }
            match objects.get(&put.object) {
                Some(known) if known.payload != payload => {
                    responder.fail(WireError::refuse(code::CONFLICT, "exists with other contents"));
                    continue;
                }
                Some(_) => {}
                None => {
                    *head = Some(put.object);
                    *head_meta = put.meta.clone();
                    objects.insert(put.object, Object { payload, meta: put.meta });
                    self.puts.fetch_add(1, Ordering::SeqCst);
                }
            }
            responder.reply(&PutDone { holes: 0, policy: "1,0,1,1".into() }, Bytes::new());
        }
    }

    fn read(&self, read: &ReadObject, responder: Responder) {
        let parts = self.with(read.namespace, |namespace| {
            let object = namespace.objects.get(&read.object);
            let object =
                object.ok_or_else(|| WireError::refuse(code::NO_OBJECT, "no such object"))?;
            assert!(read.ranges.len() <= wire::proxy::RANGES_MAX);
            let part = |(offset, len): &(u64, u32)| {
                object.payload.slice(*offset as usize..*offset as usize + *len as usize)
            };
            Ok(read.ranges.iter().map(part).collect::<Vec<Bytes>>())
        });
        match parts {
            Ok(parts) => {
                let checksums = parts.iter().map(|part| crc_fast::crc32_iscsi(part)).collect();
                responder.reply_parts(&ReadDone { checksums }, parts);
            }
            Err(error) => responder.fail(error),
        }
    }

    fn list(&self, list: &ListObjects) -> Result<Objects, WireError> {
        self.with(list.namespace, |namespace| {
            let after = namespace
                .objects
                .iter()
                .filter(|(object, _)| list.after.is_none_or(|a| a < **object));
            let mut objects: Vec<ObjectInfo> = after
                .take(list.limit as usize + 1)
                .map(|(object, stored)| ObjectInfo {
                    object: *object,
                    plain_len: stored.payload.len() as u64,
                    stored_len: stored.payload.len() as u64,
                    holes: 0,
                    meta: stored.meta.clone(),
                })
                .collect();
            let more = list.limit as usize <= objects.len() && objects.len() > list.limit as usize;
            objects.truncate(list.limit as usize);
            Ok(Objects { objects, more })
        })
    }

    fn health(&self, namespace: NamespaceId) -> Result<Health, WireError> {
        self.with(namespace, |namespace| {
            let bytes = namespace.objects.values().map(|object| object.payload.len() as u64).sum();
            let objects = namespace.objects.len() as u64;
            Ok(Health { objects, plain_bytes: bytes, stored_bytes: bytes, holes: 0 })
        })
    }

    fn create_beside(&self, create: &CreateBeside) -> Result<(), WireError> {
        let mut namespaces = self.namespaces.lock().unwrap();
        let Some(beside) = namespaces.get(&create.beside) else {
            return Err(WireError::refuse(code::NO_NAMESPACE, "no such namespace"));
        };
        let made = namespaces.get(&create.namespace).map_or(Epoch::ZERO, |made| made.epoch);
        if beside.epoch != create.epoch || create.epoch < made {
            return Err(WireError::refuse(code::FENCED, "another epoch is recorded"));
        }
        let made = namespaces.entry(create.namespace).or_default();
        (made.beside, made.epoch) = (true, create.epoch);
        Ok(())
    }

    fn answer(&self, request: &Request, responder: Responder) {
        match request.method {
            method::CREATE_NAMESPACE => {
                let create: CreateNamespace = request.decode().unwrap();
                self.namespaces.lock().unwrap().entry(create.namespace).or_default();
                reply(responder, Ok(()));
            }
            method::CREATE_BESIDE => {
                let create: CreateBeside = request.decode().unwrap();
                reply(responder, self.create_beside(&create));
            }
            method::DELETE_OBJECTS => {
                let delete: DeleteObjects = request.decode().unwrap();
                let deleted = self.with(delete.namespace, |namespace| {
                    if delete.epoch != namespace.epoch {
                        return Err(WireError::refuse(code::FENCED, "another epoch is recorded"));
                    }
                    namespace.objects.retain(|object, _| !delete.objects.contains(object));
                    Ok(())
                });
                reply(responder, deleted);
            }
            method::DELETE_NAMESPACE => {
                let delete: DeleteNamespace = request.decode().unwrap();
                self.namespaces.lock().unwrap().remove(&delete.namespace);
                reply(responder, Ok(()));
            }
            method::RAISE_EPOCH => {
                let raise: RaiseEpoch = request.decode().unwrap();
                reply(
                    responder,
                    self.with(raise.namespace, |namespace| {
                        if raise.epoch < namespace.epoch {
                            return Err(WireError::refuse(
                                code::FENCED,
                                "a higher epoch is recorded",
                            ));
                        }
                        namespace.epoch = raise.epoch;
                        Ok(())
                    }),
                );
            }
            method::READ_HEAD => {
                let ask: ReadHead = request.decode().unwrap();
                reply(
                    responder,
                    self.with(ask.namespace, |namespace| {
                        let meta = namespace.head_meta.clone();
                        Ok(Head { epoch: namespace.epoch, head: namespace.head, meta })
                    }),
                );
            }
            method::PUT_OBJECT => {
                self.put(request.decode().unwrap(), request.payload.clone(), responder);
            }
            method::READ_OBJECT => self.read(&request.decode().unwrap(), responder),
            method::LIST_OBJECTS => reply(responder, self.list(&request.decode().unwrap())),
            method::FILL_HOLES => {
                let ask: FillHoles = request.decode().unwrap();
                reply(responder, self.health(ask.namespace));
            }
            _ => responder.fail(request.unknown_method()),
        }
    }
}

impl Service for Server {
    fn call(&self, request: Request, responder: Responder) {
        let is_beside = self.0.is_beside(&request);
        let beside = if is_beside { Beside::Yes } else { Beside::No };
        let trouble = self.0.troubles.lock().unwrap().get(&(request.method, beside)).copied();
        match trouble {
            Some(Trouble::Silent) => {
                return self.0.silenced.lock().unwrap().push((request, responder));
            }
            Some(Trouble::Out) => {
                return responder.fail(WireError::retry(code::NO_POLICY, "this can't be done now"));
            }
            Some(Trouble::Refused) => {
                return responder.fail(WireError::fatal(code::NO_POLICY, "this can't be done"));
            }
            None => {}
        }
        if self.0.out.load(Ordering::SeqCst) {
            return responder.fail(WireError::retry(code::NO_POLICY, "the backend is out"));
        }
        if request.method == method::READ_OBJECT {
            self.0.reads.fetch_add(1, Ordering::SeqCst);
            if self.0.unreadable.load(Ordering::SeqCst) {
                let error = WireError::retry(code::UNREADABLE, "too few fragments");
                return responder.fail(error);
            }
        }
        let is_part = is_beside && request.method == method::READ_OBJECT;
        if is_part {
            self.0.before_part();
        }
        let delay = self.0.delay_ms.load(Ordering::SeqCst);
        if delay == 0 {
            return self.1.pass(|| {
                let answer = || self.0.answer(&request, responder);
                if is_beside { self.2.pass(answer) } else { answer() }
            });
        }
        if is_part {
            let mut parts = self.0.parts_read.lock().unwrap();
            parts.0 += 1;
            parts.1 = parts.1.max(parts.0);
        }
        let proxy = Arc::clone(&self.0);
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(delay)).await;
            if is_part {
                proxy.parts_read.lock().unwrap().0 -= 1;
            }
            proxy.answer(&request, responder);
        });
    }
}
