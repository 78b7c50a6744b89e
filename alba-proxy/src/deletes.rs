//! Deleting: metadata first, asserting the epoch; fragments after, from a durable queue.
//!
//! The transaction that removes a manifest puts its fragments on the queue, so nothing is ever forgotten: an OSD that
//! is away when an object dies is told when it is back. Deleting a namespace first makes it nobody's (no epoch, no
//! head), then moves its manifests to the queue page by page; whoever finds it half done goes on.
//!
//! Invariant: a fragment is deleted only after the manifest that named it is gone.

use crate::commit::{count, delta, epoch_from_bytes, epoch_to_bytes, four};
use crate::error::ProxyError;
use crate::proxy::Proxy;
use alba_proxy_core::Manifest;
use alba_proxy_core::keys::{self, Count};
use alba_proxy_core::namespace::{
    DeleteEntry, HeadMeta, NamespaceInfo, NamespaceState, head_to_bytes,
};
use arakoon_client::Transaction;
use bytes::Bytes;
use model::{Epoch, NamespaceId, ObjectId, OsdId};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::Instant;
use wire::arakoon::prefix_end;
use wire::facts::{Record, key};

/// Objects in one transaction; their manifests must fit in it.
const BATCH_OBJECTS: usize = 64;
const BATCH_BYTES: usize = 256 << 10;
/// Entries of the queue taken at once.
const QUEUE_PAGE: usize = 256;
const PATIENCE: Duration = Duration::from_secs(20);

/// Manifests that leave in one transaction.
#[derive(Default)]
struct Batch {
    manifests: Vec<(Bytes, Manifest)>,
    bytes: usize,
}

impl Batch {
    fn is_full(&self) -> bool {
        self.manifests.len() >= BATCH_OBJECTS || self.bytes >= BATCH_BYTES
    }

    fn push(&mut self, record: Bytes) -> Result<(), ProxyError> {
        let manifest = Manifest::from_bytes(&record)
            .map_err(|error| ProxyError::broken("a manifest to delete", error))?;
        self.bytes += record.len();
        self.manifests.push((record, manifest));
        Ok(())
    }

    /// Every manifest as it was read, and where its fragments are.
    fn remove(&self, namespace: NamespaceId, mut transaction: Transaction) -> Transaction {
        let (mut plain, mut stored, mut holes) = (0, 0, 0);
        for (record, manifest) in &self.manifests {
            let object = manifest.object;
            let entry = DeleteEntry {
                namespace,
                object,
                attempt: manifest.attempt,
                fragments: manifest.stored().collect(),
            };
            transaction = transaction
                .assert_value(key::manifest(namespace, object), record.clone())
                .delete(key::manifest(namespace, object))
                .delete(key::hole(namespace, object))
                .set(keys::delete_entry(namespace, object, manifest.attempt), entry.to_record());
            plain += delta(manifest.plain_len);
            stored += delta(manifest.stored_len());
            holes += i64::from(manifest.holes());
        }
        let objects = delta(model::u64_of(self.manifests.len()));
        let changes = [
            (Count::Objects, -objects),
            (Count::PlainBytes, -plain),
            (Count::StoredBytes, -stored),
            (Count::Holes, -holes),
        ];
        count(transaction, namespace, changes)
    }
}

impl Proxy {
    pub async fn delete_objects(
        &self,
        namespace: NamespaceId,
        epoch: Epoch,
        objects: &[ObjectId],
        deadline: Instant,
    ) -> Result<(), ProxyError> {
        let mut open = objects;
        // Also with nothing to delete the caller learns that it is fenced.
        loop {
            let (taken, batch, head) = self.read_batch(namespace, epoch, open, deadline).await?;
            if batch.manifests.is_empty() {
                if taken == open.len() {
                    return Ok(());
                }
                open = &open[taken..];
                continue;
            }
            let mut transaction = Transaction::new()
                .assert_value(key::namespace_epoch(namespace), epoch_to_bytes(epoch));
            let of_head =
                batch.manifests.iter().find(|(_, manifest)| Some(manifest.object) == head);
            if let Some((_, manifest)) = of_head {
                // The chain stays readable when its last object goes.
                let kept = HeadMeta { object: manifest.object, meta: manifest.meta.clone() };
                transaction = transaction
                    .assert_value(key::namespace_head(namespace), head_to_bytes(manifest.object))
                    .set(keys::head_meta(namespace), kept.to_record());
            }
            // Overtaken (a hole was filled, the epoch was raised): read again.
            if self.try_commit(batch.remove(namespace, transaction), deadline).await? {
                for (_, manifest) in &batch.manifests {
                    self.manifests.remove(&(namespace, manifest.object));
                    self.counters.found((namespace, manifest.object));
                }
                self.deletes_made.notify_one();
                open = &open[taken..];
            }
        }
    }

    /// As many of the objects as fit in one transaction: how many were looked at, and those that exist.
    async fn read_batch(
        &self,
        namespace: NamespaceId,
        epoch: Epoch,
        objects: &[ObjectId],
        deadline: Instant,
    ) -> Result<(usize, Batch, Option<ObjectId>), ProxyError> {
        let page = &objects[..objects.len().min(BATCH_OBJECTS)];
        let mut wanted = vec![key::namespace_epoch(namespace), key::namespace_head(namespace)];
        wanted.extend(page.iter().map(|object| key::manifest(namespace, *object)));
        let mut values = self.metadata(deadline)?.multi_get(wanted).await?.into_iter();
        let recorded = values.next().flatten().ok_or(ProxyError::NoNamespace(namespace))?;
        let recorded = epoch_from_bytes(&recorded)?;
        if recorded != epoch {
            return Err(ProxyError::Fenced { namespace, asked: epoch, recorded });
        }
        let head = crate::commit::read_head_key(values.next().flatten())?;
        let mut batch = Batch::default();
        let mut taken = 0;
        for record in values {
            if batch.is_full() {
                break;
            }
            taken += 1;
            if let Some(record) = record {
                batch.push(record)?;
            }
        }
        Ok((taken, batch, head))
    }

    /// From now on it exists for nobody; the rest is done in the background.
    pub async fn delete_namespace(
        &self,
        namespace: NamespaceId,
        epoch: Epoch,
        deadline: Instant,
    ) -> Result<(), ProxyError> {
        loop {
            let wanted = vec![
                key::namespace_info(namespace),
                key::namespace_epoch(namespace),
                keys::dropping_entry(namespace),
                key::namespace_head(namespace),
            ];
            let [info, recorded, dropping, _] =
                four(self.metadata(deadline)?.multi_get(wanted).await?)?;
            let (info, recorded) = match (info, recorded) {
                (Some(info), Some(recorded)) => (info, recorded),
                // Asked before: the same again is no error.
                (_, None) if dropping.is_some() => return Ok(()),
                (None, None) => return Ok(()),
                (_, _) => return Err(ProxyError::NoNamespace(namespace)),
            };
            let found = epoch_from_bytes(&recorded)?;
            if found > epoch {
                return Err(ProxyError::Fenced { namespace, asked: epoch, recorded: found });
            }
            let mut dropped = NamespaceInfo::from_record(info.clone())
                .map_err(|error| ProxyError::broken(namespace, error))?;
            dropped.state = NamespaceState::Dropping;
            let transaction = Transaction::new()
                .assert_value(key::namespace_info(namespace), info)
                .assert_value(key::namespace_epoch(namespace), recorded)
                .set(key::namespace_info(namespace), dropped.to_record())
                .delete(key::namespace_epoch(namespace))
                .delete(key::namespace_head(namespace))
                .delete(keys::namespace_entry(namespace))
                .set(keys::dropping_entry(namespace), vec![1]);
            if self.try_commit(transaction, deadline).await? {
                self.namespaces.forget(namespace);
                self.deletes_made.notify_one();
                return Ok(());
            }
        }
    }

    /// Moves all manifests of a dropped namespace to the queue, then removes what is left of it.
    pub async fn drop_namespace(&self, namespace: NamespaceId) -> Result<(), ProxyError> {
        let prefix = key::manifests(namespace);
        let end = prefix_end(&prefix);
        loop {
            let entries = self.arakoon.range(&prefix, end.as_deref(), BATCH_OBJECTS).await?;
            let mut batch = Batch::default();
            for (_, record) in entries {
                if !batch.is_full() {
                    batch.push(record)?;
                }
            }
            let deadline = Instant::now() + PATIENCE;
            if batch.manifests.is_empty() {
                let last = Transaction::new()
                    .assert_exists(keys::dropping_entry(namespace))
                    .assert_absent(key::namespace_epoch(namespace))
                    .delete_prefix(key::namespace(namespace))
                    .delete(keys::dropping_entry(namespace));
                self.try_commit(last, deadline).await?;
                return Ok(());
            }
            let transaction = Transaction::new().assert_exists(keys::dropping_entry(namespace));
            if !self.try_commit(batch.remove(namespace, transaction), deadline).await? {
                // Another proxy does the same; let it.
                return Ok(());
            }
            for (_, manifest) in &batch.manifests {
                self.manifests.remove(&(namespace, manifest.object));
                self.counters.found((namespace, manifest.object));
            }
        }
    }

    /// Namespaces that are being dropped.
    pub async fn dropping(&self) -> Result<Vec<NamespaceId>, ProxyError> {
        let entries = self.arakoon.prefix(keys::DROPPING).await?;
        let of_entry =
            |(entry, _): &(Bytes, Bytes)| keys::namespace_of_entry(keys::DROPPING, entry);
        Ok(entries.iter().filter_map(of_entry).collect())
    }

    /// Works through one page of the queue behind `cursor`. The next cursor; `None` at the end.
    pub async fn drain_deletes(&self, cursor: Option<Bytes>) -> Result<Option<Bytes>, ProxyError> {
        let start = match cursor {
            Some(last) => [&last[..], &[0]].concat(),
            None => keys::DELETES.as_bytes().to_vec(),
        };
        let end = prefix_end(keys::DELETES.as_bytes());
        let entries = self.arakoon.range(&start, end.as_deref(), QUEUE_PAGE).await?;
        let Some((last, _)) = entries.last() else { return Ok(None) };
        let next = (entries.len() == QUEUE_PAGE).then(|| last.clone());
        let mut open: BTreeMap<OsdId, Vec<Bytes>> = BTreeMap::new();
        let mut waiting: Vec<(Bytes, Vec<OsdId>)> = Vec::new();
        for (entry_key, record) in entries {
            let Ok(entry) = DeleteEntry::from_record(record) else {
                tracing::error!(key = %entry_key.escape_ascii(), "an entry of the delete queue is broken");
                continue;
            };
            // An OSD that left the backend took its fragments with it.
            let here: Vec<_> =
                entry.fragments.iter().filter(|(_, osd)| self.osds.knows(*osd)).collect();
            let attempt = crate::put::Attempt {
                namespace: entry.namespace,
                object: entry.object,
                attempt: entry.attempt,
            };
            for (index, osd) in &here {
                let fragment = attempt.key(*index).to_bytes();
                open.entry(*osd).or_default().push(Bytes::copy_from_slice(&fragment));
            }
            waiting.push((entry_key, here.into_iter().map(|(_, osd)| *osd).collect()));
        }
        let mut failed = Vec::new();
        for (osd, fragments) in open {
            if let Err(error) = self.osds.delete(osd, fragments).await {
                tracing::debug!(%osd, %error, "fragments wait to be deleted");
                failed.push(osd);
            }
        }
        let mut done = Transaction::new();
        for (entry, osds) in waiting {
            if !osds.iter().any(|osd| failed.contains(osd)) {
                done = done.delete(entry);
            }
        }
        if !done.updates.is_empty() {
            self.try_commit(done, Instant::now() + PATIENCE).await?;
        }
        Ok(next)
    }
}
