//! Namespaces made and fenced, objects listed, health summed up.

use crate::commit::{epoch_from_bytes, epoch_to_bytes, four};
use crate::error::ProxyError;
use crate::maintain::counter;
use crate::proxy::Proxy;
use alba_proxy_core::Manifest;
use alba_proxy_core::keys::{self, Count};
use alba_proxy_core::namespace::{NamespaceInfo, NamespaceState, WrappedKey};
use arakoon_client::Transaction;
use bytes::Bytes;
use codec::NamespaceKey;
use model::{Epoch, NamespaceId, ObjectId};
use std::sync::Arc;
use tokio::time::Instant;
use wire::arakoon::prefix_end;
use wire::facts::{Record, key};
use wire::proxy::{CreateBeside, Health, ObjectInfo, Objects};

/// Objects in one answer, whatever was asked for.
const LIST_MAX: usize = 1000;
/// Bytes of metas in one answer, well below what a frame holds.
const LIST_BYTES_MAX: usize = 512 << 10;
/// Manifests fetched at once while listing.
const LIST_PAGE: usize = 200;

impl Proxy {
    /// The same again is no error.
    pub async fn create_namespace(
        &self,
        namespace: NamespaceId,
        preset: &str,
        deadline: Instant,
    ) -> Result<(), ProxyError> {
        if self.catalog.preset(preset).is_none() {
            self.catalog.refresh(&self.arakoon, &self.osds).await?;
        }
        if self.catalog.preset(preset).is_none() {
            return Err(ProxyError::NoPreset(preset.to_owned()));
        }
        let info = NamespaceInfo {
            namespace,
            state: NamespaceState::Active,
            preset: preset.to_owned(),
            keys: vec![self.new_key(namespace)],
        };
        let transaction = Transaction::new()
            .assert_absent(key::namespace_info(namespace))
            .set(key::namespace_info(namespace), info.to_record())
            .set(key::namespace_epoch(namespace), epoch_to_bytes(Epoch::ZERO))
            .set(keys::namespace_entry(namespace), vec![1]);
        if self.try_commit(transaction, deadline).await? {
            return Ok(());
        }
        let there = self.fresh_namespace(namespace, deadline).await?;
        if there.info.preset == preset {
            return Ok(());
        }
        Err(ProxyError::OtherPreset { namespace, preset: there.info.preset.clone() })
    }

    /// A namespace that lives and dies with `beside`: made, or raised, only by who holds `beside` at this epoch (L4).
    ///
    /// Who deletes `beside` first, and then what is beside it, leaves nothing: from the first step on nobody makes it anew.
    pub async fn create_beside(
        &self,
        create: &CreateBeside,
        deadline: Instant,
    ) -> Result<(), ProxyError> {
        let CreateBeside { namespace, beside, epoch } = *create;
        loop {
            let wanted = vec![
                key::namespace_info(beside),
                key::namespace_epoch(beside),
                key::namespace_info(namespace),
                key::namespace_epoch(namespace),
            ];
            let [of, held, there, recorded] =
                four(self.metadata(deadline)?.multi_get(wanted).await?)?;
            let (Some(of), Some(held)) = (of, held) else {
                return Err(ProxyError::NoNamespace(beside));
            };
            let holder = epoch_from_bytes(&held)?;
            if holder != epoch {
                return Err(ProxyError::Fenced { namespace, asked: epoch, recorded: holder });
            }
            let fenced = Transaction::new().assert_value(key::namespace_epoch(beside), held);
            let made = match (there, recorded) {
                (None, _) => {
                    let of = NamespaceInfo::from_record(of)
                        .map_err(|error| ProxyError::broken(beside, error))?;
                    let keys = vec![self.new_key(namespace)];
                    let info = NamespaceInfo { namespace, keys, ..of };
                    fenced
                        .assert_absent(key::namespace_info(namespace))
                        .set(key::namespace_info(namespace), info.to_record())
                        .set(key::namespace_epoch(namespace), epoch_to_bytes(epoch))
                        .set(keys::namespace_entry(namespace), vec![1])
                }
                (Some(_), Some(bytes)) => {
                    let recorded = epoch_from_bytes(&bytes)?;
                    if recorded > epoch {
                        return Err(ProxyError::Fenced { namespace, asked: epoch, recorded });
                    }
                    if recorded == epoch {
                        return Ok(());
                    }
                    let raised = key::namespace_epoch(namespace);
                    fenced.assert_value(&raised, bytes).set(&raised, epoch_to_bytes(epoch))
                }
                // It is being dropped.
                (Some(_), None) => return Err(ProxyError::NoNamespace(namespace)),
            };
            if self.try_commit(made, deadline).await? {
                return Ok(());
            }
        }
    }

    /// A namespace always has a key, also when its preset doesn't encrypt yet.
    fn new_key(&self, namespace: NamespaceId) -> WrappedKey {
        let (mut bytes, mut nonce) = ([0; 32], [0; 12]);
        runtime::random::fill(&mut bytes);
        runtime::random::fill(&mut nonce);
        let wrapped = self.namespaces.ring().wrap(namespace, &NamespaceKey::new(bytes), nonce);
        WrappedKey { number: 1, wrapped: Bytes::copy_from_slice(&wrapped) }
    }

    /// Only grows (P18); the recorded one again is no error.
    pub async fn raise_epoch(
        &self,
        namespace: NamespaceId,
        epoch: Epoch,
        deadline: Instant,
    ) -> Result<(), ProxyError> {
        loop {
            let epoch_key = key::namespace_epoch(namespace);
            let recorded = self.metadata(deadline)?.get(&epoch_key).await?;
            let bytes = recorded.ok_or(ProxyError::NoNamespace(namespace))?;
            let recorded = epoch_from_bytes(&bytes)?;
            if recorded > epoch {
                return Err(ProxyError::Fenced { namespace, asked: epoch, recorded });
            }
            if recorded == epoch {
                return Ok(());
            }
            let raise = Transaction::new()
                .assert_value(&epoch_key, bytes)
                .set(&epoch_key, epoch_to_bytes(epoch));
            if self.try_commit(raise, deadline).await? {
                return Ok(());
            }
        }
    }

    pub async fn list_objects(
        &self,
        namespace: NamespaceId,
        after: Option<ObjectId>,
        limit: u32,
        deadline: Instant,
    ) -> Result<Objects, ProxyError> {
        let limit = model::usize_of(limit.into()).clamp(1, LIST_MAX);
        let arakoon = self.metadata(deadline)?;
        self.namespace(namespace, deadline).await?;
        let prefix = key::manifests(namespace);
        let end = prefix_end(&prefix);
        let mut start = match after {
            Some(object) => behind(&key::manifest(namespace, object)),
            None => prefix.to_vec(),
        };
        let (mut objects, mut bytes) = (Vec::new(), 0);
        loop {
            // One more than fits tells whether there are more.
            let page = (limit + 1 - objects.len()).min(LIST_PAGE);
            let entries = arakoon.range(&start, end.as_deref(), page).await?;
            let last_page = entries.len() < page;
            for (entry, record) in entries {
                if objects.len() == limit || bytes >= LIST_BYTES_MAX {
                    return Ok(Objects { objects, more: true });
                }
                let info = object_info(&record)?;
                bytes += info.meta.len() + 64;
                objects.push(info);
                start = behind(&entry);
            }
            if last_page {
                return Ok(Objects { objects, more: false });
            }
        }
    }

    pub async fn health(
        &self,
        namespace: NamespaceId,
        deadline: Instant,
    ) -> Result<Health, ProxyError> {
        // Counters are absent both in an empty namespace and in none.
        self.namespace(namespace, deadline).await?;
        let wanted = Count::ALL.map(|which| keys::count(namespace, which)).to_vec();
        let values = self.metadata(deadline)?.multi_get(wanted).await?;
        let [objects, plain, stored, holes] = four(values)?.map(counter);
        Ok(Health { objects, plain_bytes: plain, stored_bytes: stored, holes })
    }

    /// Fills while that gets anywhere, at most until the deadline.
    pub async fn fill_now(
        self: &Arc<Self>,
        namespace: NamespaceId,
        deadline: Instant,
    ) -> Result<Health, ProxyError> {
        self.namespace(namespace, deadline).await?;
        self.probe_due().await;
        let fill = async {
            while self.fill_namespace(namespace).await? {}
            Ok(())
        };
        if let Ok(filled) = tokio::time::timeout_at(deadline, fill).await {
            let filled: Result<(), ProxyError> = filled;
            filled?;
        }
        self.health(namespace, deadline).await
    }
}

fn object_info(record: &Bytes) -> Result<ObjectInfo, ProxyError> {
    let manifest = Manifest::from_bytes(record)
        .map_err(|error| ProxyError::broken("a listed manifest", error))?;
    Ok(ObjectInfo {
        object: manifest.object,
        plain_len: manifest.plain_len,
        stored_len: manifest.stored_len(),
        holes: manifest.holes(),
        meta: manifest.meta,
    })
}

fn behind(key: &[u8]) -> Vec<u8> {
    [key, &[0]].concat()
}
