//! Namespaces as this process knows them: their information, their keys, and the order of their puts.
//!
//! Several puts of a namespace are under way at once, but they commit in the order of their heads (P18). A put whose
//! predecessor is under way in this process waits here, instead of being refused by arakoon over and over.
//!
//! Invariant: a key that was unwrapped leaves this process only as sealed frames. What is kept here may be old: every
//! commit asserts the information it was made with.

use crate::error::ProxyError;
use crate::key_file::KeyRing;
use alba_proxy_core::manifest::Protection;
use alba_proxy_core::namespace::{NamespaceInfo, NamespaceState};
use bytes::Bytes;
use codec::{Engine, NamespaceKeys};
use model::{NamespaceId, ObjectId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::watch;
use tokio::time::Instant;
use wire::facts::Record;

/// Namespaces kept; those in use are never dropped.
const KEPT_MAX: usize = 4096;

#[derive(Debug, Clone, Default)]
struct Puts {
    /// The newest head that this process has seen.
    head: Option<ObjectId>,
    under_way: BTreeSet<ObjectId>,
}

/// One namespace.
pub struct Namespace {
    pub info: NamespaceInfo,
    /// As arakoon has it: what a commit asserts.
    pub record: Bytes,
    keys: BTreeMap<u32, Arc<NamespaceKeys>>,
    public: Arc<NamespaceKeys>,
    puts: watch::Sender<Puts>,
}

impl Namespace {
    fn new(record: Bytes, ring: &KeyRing) -> Result<Self, ProxyError> {
        let info = NamespaceInfo::from_record(record.clone())
            .map_err(|error| ProxyError::broken("a namespace's record", error))?;
        if info.state != NamespaceState::Active {
            return Err(ProxyError::NoNamespace(info.namespace));
        }
        let mut keys = BTreeMap::new();
        for key in &info.keys {
            let unwrapped = ring
                .unwrap(info.namespace, &key.wrapped)
                .map_err(|problem| ProxyError::Keys { namespace: info.namespace, problem })?;
            keys.insert(key.number, Arc::new(NamespaceKeys::new(&unwrapped, Engine::AwsLc)));
        }
        let public = Arc::new(NamespaceKeys::public(Engine::AwsLc));
        Ok(Self { info, record, keys, public, puts: watch::Sender::new(Puts::default()) })
    }

    pub const fn id(&self) -> NamespaceId {
        self.info.namespace
    }

    /// The keys that an object was sealed with.
    pub fn keys_for(&self, protection: Protection) -> Result<Arc<NamespaceKeys>, ProxyError> {
        match protection {
            Protection::Crc32c => Ok(Arc::clone(&self.public)),
            Protection::Aes256Gcm { namespace_key } => {
                self.keys.get(&namespace_key).cloned().ok_or_else(|| ProxyError::Keys {
                    namespace: self.id(),
                    problem: format!("an object needs its key {namespace_key}, which it hasn't"),
                })
            }
        }
    }

    /// How new objects are protected when the preset encrypts.
    pub fn current_protection(&self) -> Result<Protection, ProxyError> {
        match self.info.keys.last() {
            Some(key) => Ok(Protection::Aes256Gcm { namespace_key: key.number }),
            None => Err(ProxyError::Keys {
                namespace: self.id(),
                problem: "it has no key, but its preset encrypts".to_owned(),
            }),
        }
    }

    /// Registers a put as under way until the guard is dropped.
    pub fn begin_put(self: &Arc<Self>, object: ObjectId) -> PutGuard {
        self.puts.send_modify(|puts| {
            puts.under_way.insert(object);
        });
        PutGuard { namespace: Arc::clone(self), object }
    }

    /// An object was committed.
    pub fn committed(&self, object: ObjectId) {
        self.puts.send_modify(|puts| puts.head = puts.head.max(Some(object)));
    }

    /// Waits while the predecessor is under way here, at most until `until`.
    pub async fn wait_turn(&self, predecessor: Option<ObjectId>, until: Instant) {
        let Some(predecessor) = predecessor else { return };
        let mut puts = self.puts.subscribe();
        let turn =
            |puts: &Puts| puts.head >= Some(predecessor) || !puts.under_way.contains(&predecessor);
        // The sender lives in `self`; whether time ran out or not, the caller looks for itself.
        let _ = tokio::time::timeout_at(until, puts.wait_for(turn)).await;
    }

    /// Waits for any news of puts in this process, at most until `until`.
    pub async fn wait_news(&self, until: Instant) {
        let mut puts = self.puts.subscribe();
        let _ = tokio::time::timeout_at(until, puts.changed()).await;
    }
}

/// A put that is under way.
pub struct PutGuard {
    namespace: Arc<Namespace>,
    object: ObjectId,
}

impl Drop for PutGuard {
    fn drop(&mut self) {
        self.namespace.puts.send_modify(|puts| {
            puts.under_way.remove(&self.object);
        });
    }
}

/// All namespaces this process knows.
pub struct Namespaces {
    ring: KeyRing,
    known: Mutex<BTreeMap<NamespaceId, Arc<Namespace>>>,
}

impl Namespaces {
    pub const fn new(ring: KeyRing) -> Self {
        Self { ring, known: Mutex::new(BTreeMap::new()) }
    }

    pub const fn ring(&self) -> &KeyRing {
        &self.ring
    }

    fn known(&self) -> std::sync::MutexGuard<'_, BTreeMap<NamespaceId, Arc<Namespace>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn get(&self, namespace: NamespaceId) -> Option<Arc<Namespace>> {
        self.known().get(&namespace).cloned()
    }

    /// Takes over what arakoon has; what is under way stays registered when nothing changed.
    pub fn learn(
        &self,
        namespace: NamespaceId,
        record: Option<Bytes>,
    ) -> Result<Arc<Namespace>, ProxyError> {
        let Some(record) = record else {
            self.forget(namespace);
            return Err(ProxyError::NoNamespace(namespace));
        };
        if let Some(known) = self.get(namespace)
            && known.record == record
        {
            return Ok(known);
        }
        self.forget(namespace);
        let fresh = Arc::new(Namespace::new(record, &self.ring)?);
        let mut known = self.known();
        if known.len() >= KEPT_MAX {
            known.retain(|_, namespace| Arc::strong_count(namespace) > 1);
        }
        // Two requests may learn it at once: the first one's is kept, so that puts wait for each other.
        Ok(Arc::clone(known.entry(namespace).or_insert(fresh)))
    }

    pub fn forget(&self, namespace: NamespaceId) {
        self.known().remove(&namespace);
    }
}
