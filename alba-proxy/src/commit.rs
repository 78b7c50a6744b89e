//! The one transaction that makes an object exist: manifest and head together, asserting whose turn it is (P18, P20).
//!
//! What a refusal means is the core's to say (`order::judge`); this file looks, waits where a predecessor is still on
//! its way, and tries again until the caller's deadline.
//!
//! Invariant: `Committed::Now` exactly when this attempt's manifest is the object's; a failure says whether that may
//! be so all the same.

use crate::error::ProxyError;
use crate::namespaces::Namespace;
use crate::proxy::Proxy;
use alba_proxy_core::Manifest;
use alba_proxy_core::keys::{self, Count};
use alba_proxy_core::namespace::{head_from_bytes, head_to_bytes};
use alba_proxy_core::order::{Asked, Found, Refusal, judge};
use arakoon_client::{TransactError, Transaction};
use bytes::Bytes;
use model::{Epoch, NamespaceId, ObjectId, Policy};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use wire::arakoon::VALUE_MAX;
use wire::facts::key;
use wire::proxy::{Head, PutObject};

/// How often the head is looked at while a predecessor is under way through another proxy.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

pub struct Commit<'a> {
    pub namespace: &'a Arc<Namespace>,
    pub request: &'a PutObject,
    pub manifest: &'a Manifest,
}

pub enum Committed {
    Now,
    /// An earlier attempt with the same contents was committed (P21).
    Before {
        holes: u8,
        policy: Policy,
    },
}

pub struct CommitFailed {
    pub error: ProxyError,
    /// The attempt may be committed all the same: its fragments must stay.
    pub outcome_unknown: bool,
}

impl From<ProxyError> for CommitFailed {
    fn from(error: ProxyError) -> Self {
        Self { error, outcome_unknown: false }
    }
}

/// What stood in arakoon at one moment.
struct Looked {
    found: Found,
    existing: Option<Manifest>,
    info: Option<Bytes>,
}

pub fn epoch_to_bytes(epoch: Epoch) -> Bytes {
    Bytes::copy_from_slice(&epoch.0.to_le_bytes())
}

pub fn epoch_from_bytes(bytes: &[u8]) -> Result<Epoch, ProxyError> {
    let raw = bytes.try_into().map_err(|_| ProxyError::broken("an epoch", "it has no 8 bytes"))?;
    Ok(Epoch(u64::from_le_bytes(raw)))
}

/// Counters move with the manifest.
pub fn count(
    transaction: Transaction,
    namespace: NamespaceId,
    changes: [(Count, i64); 4],
) -> Transaction {
    changes
        .into_iter()
        .filter(|(_, delta)| *delta != 0)
        .fold(transaction, |transaction, (which, delta)| {
            transaction.add(keys::count(namespace, which), delta)
        })
}

/// A size as a change of a counter; sizes of objects are far below the limit.
pub fn delta(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

impl Commit<'_> {
    fn transaction(&self) -> Result<Transaction, ProxyError> {
        let (request, manifest) = (self.request, self.manifest);
        let (namespace, object) = (request.namespace, request.object);
        let record = manifest.to_bytes();
        if record.len() > VALUE_MAX {
            let len = record.len();
            return Err(ProxyError::BadRequest(format!("a manifest of {len} bytes is too long")));
        }
        let expected_head = request.expected_head.map(head_to_bytes);
        let mut transaction = Transaction::new()
            .assert_value(key::namespace_info(namespace), self.namespace.record.clone())
            .assert_value(key::namespace_epoch(namespace), epoch_to_bytes(request.epoch))
            .assert_absent(key::manifest(namespace, object))
            .assert_is(key::namespace_head(namespace), expected_head)
            .set(key::manifest(namespace, object), record)
            .set(key::namespace_head(namespace), head_to_bytes(object));
        if manifest.holes() > 0 {
            transaction = transaction.set(key::hole(namespace, object), vec![1]);
        }
        let changes = [
            (Count::Objects, 1),
            (Count::PlainBytes, delta(manifest.plain_len)),
            (Count::StoredBytes, delta(manifest.stored_len())),
            (Count::Holes, i64::from(manifest.holes())),
        ];
        Ok(count(transaction, namespace, changes))
    }
}

impl Proxy {
    pub async fn commit(
        &self,
        commit: &Commit<'_>,
        deadline: Instant,
    ) -> Result<Committed, CommitFailed> {
        let request = commit.request;
        let transaction = commit.transaction()?;
        commit.namespace.wait_turn(request.expected_head, deadline).await;
        loop {
            match self.metadata(deadline)?.commit(transaction.clone()).await {
                Ok(_) => {
                    commit.namespace.committed(request.object);
                    return Ok(Committed::Now);
                }
                Err(TransactError::Assertion(_)) => {}
                Err(error @ TransactError::Unavailable { outcome_unknown, .. }) => {
                    return Err(CommitFailed { error: error.into(), outcome_unknown });
                }
                Err(error @ (TransactError::Refused(_) | TransactError::Session(_))) => {
                    return Err(ProxyError::broken("arakoon refused a commit", error).into());
                }
            }
            if let Some(committed) = self.settle_refusal(commit, deadline).await? {
                return Ok(committed);
            }
        }
    }

    /// Looks why the commit was refused, and waits while it is too early. `None`: try again.
    async fn settle_refusal(
        &self,
        commit: &Commit<'_>,
        deadline: Instant,
    ) -> Result<Option<Committed>, ProxyError> {
        let request = commit.request;
        let asked = Asked {
            epoch: request.epoch,
            expected_head: request.expected_head,
            digest: commit.manifest.digest,
            attempt: commit.manifest.attempt,
        };
        let namespace = request.namespace;
        loop {
            let looked = self.look(request, deadline).await?;
            if looked.info.is_some_and(|info| info != commit.namespace.record) {
                self.namespaces.forget(namespace);
                return Err(ProxyError::Metadata(format!("namespace {namespace} has changed")));
            }
            if let Some(head) = looked.found.head {
                commit.namespace.committed(head);
            }
            match judge(&asked, &looked.found) {
                Refusal::Again => return Ok(None),
                Refusal::Mine => {
                    commit.namespace.committed(request.object);
                    return Ok(Some(Committed::Now));
                }
                Refusal::AlreadyDone => {
                    return Ok(looked.existing.map(|manifest| Committed::Before {
                        holes: manifest.holes(),
                        policy: manifest.policy,
                    }));
                }
                Refusal::NoNamespace => {
                    self.namespaces.forget(namespace);
                    return Err(ProxyError::NoNamespace(namespace));
                }
                Refusal::Fenced(recorded) => {
                    return Err(ProxyError::Fenced { namespace, asked: asked.epoch, recorded });
                }
                Refusal::Conflict => return Err(ProxyError::Conflict { object: request.object }),
                Refusal::WrongHead => return Err(self.wrong_head(request, deadline).await),
                Refusal::NotYet => {
                    let pause = Instant::now() + runtime::random::jitter(LOOK_AGAIN);
                    if pause >= deadline {
                        return Err(self.wrong_head(request, deadline).await);
                    }
                    commit.namespace.wait_news(pause).await;
                }
            }
        }
    }

    async fn look(&self, request: &PutObject, deadline: Instant) -> Result<Looked, ProxyError> {
        let namespace = request.namespace;
        let wanted = vec![
            key::namespace_info(namespace),
            key::namespace_epoch(namespace),
            key::namespace_head(namespace),
            key::manifest(namespace, request.object),
        ];
        let values = self.metadata(deadline)?.multi_get(wanted).await?;
        let [info, epoch, head, manifest] = four(values)?;
        let existing = manifest
            .map(|record| Manifest::from_bytes(&record))
            .transpose()
            .map_err(|error| ProxyError::broken(request.object, error))?;
        let found = Found {
            epoch: epoch.map(|bytes| epoch_from_bytes(&bytes)).transpose()?,
            head: read_head_key(head)?,
            existing: existing.as_ref().map(|manifest| (manifest.digest, manifest.attempt)),
        };
        Ok(Looked { found, existing, info })
    }

    async fn wrong_head(&self, request: &PutObject, deadline: Instant) -> ProxyError {
        // A moment more, so that the answer can say what the head is.
        let until = deadline.max(Instant::now() + LOOK_AGAIN);
        match self.read_head(request.namespace, until).await {
            Ok(head) => ProxyError::WrongHead {
                namespace: request.namespace,
                object: request.object,
                head: Box::new(head),
            },
            Err(error) => error,
        }
    }

    /// Epoch, head and the head's `meta`, which outlives the head's own manifest.
    pub async fn read_head(
        &self,
        namespace: NamespaceId,
        deadline: Instant,
    ) -> Result<Head, ProxyError> {
        let arakoon = self.metadata(deadline)?;
        let wanted = vec![
            key::namespace_epoch(namespace),
            key::namespace_head(namespace),
            keys::head_meta(namespace),
            key::namespace_info(namespace),
        ];
        loop {
            let [epoch, head, kept, _] = four(arakoon.multi_get(wanted.clone()).await?)?;
            let epoch = epoch.ok_or(ProxyError::NoNamespace(namespace))?;
            let epoch = epoch_from_bytes(&epoch)?;
            let Some(head) = read_head_key(head)? else {
                return Ok(Head { epoch, head: None, meta: Bytes::new() });
            };
            if let Some(meta) = kept_meta(head, kept)? {
                return Ok(Head { epoch, head: Some(head), meta });
            }
            if let Some(record) = arakoon.get(key::manifest(namespace, head)).await? {
                let manifest = Manifest::from_bytes(&record)
                    .map_err(|error| ProxyError::broken(head, error))?;
                return Ok(Head { epoch, head: Some(head), meta: manifest.meta });
            }
            // Deleted between the two reads: its meta is kept now, or the head moved.
            if Instant::now() >= deadline {
                return Err(ProxyError::TooLate);
            }
        }
    }
}

fn kept_meta(head: ObjectId, kept: Option<Bytes>) -> Result<Option<Bytes>, ProxyError> {
    use alba_proxy_core::namespace::HeadMeta;
    use wire::facts::Record;
    let Some(kept) = kept else { return Ok(None) };
    let kept = HeadMeta::from_record(kept)
        .map_err(|error| ProxyError::broken("the meta of a head", error))?;
    Ok((kept.object == head).then_some(kept.meta))
}

pub fn read_head_key(head: Option<Bytes>) -> Result<Option<ObjectId>, ProxyError> {
    let read = |bytes: Bytes| {
        head_from_bytes(&bytes).ok_or_else(|| ProxyError::broken("a head", "it isn't one"))
    };
    head.map(read).transpose()
}

/// Arakoon answers with one value per key.
pub fn four(values: Vec<Option<Bytes>>) -> Result<[Option<Bytes>; 4], ProxyError> {
    values.try_into().map_err(|values: Vec<_>| {
        ProxyError::broken("arakoon", format!("{} values for 4 keys", values.len()))
    })
}
