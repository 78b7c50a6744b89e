//! Holes filled, bad fragments repaired: the same rebuild of whole fragments, and one transaction that says so.
//!
//! Several proxies may work on the same object: every change of a manifest asserts its old bytes, so one wins and the
//! others look again. A fragment that nobody's manifest names in the end is deleted.
//!
//! Invariant: a fragment is recorded only after an OSD has stored it durably, and only with the checksum that the
//! manifest had from the beginning.

use crate::commit::{count, delta};
use crate::error::ProxyError;
use crate::gather::{Column, HEDGE_AFTER, Trust, Want, osd_of};
use crate::object::Loaded;
use crate::osds::{Fragment, Got, PutManner, Wanted};
use crate::proxy::Proxy;
use crate::put::Attempt;
use alba_proxy_core::fill;
use alba_proxy_core::keys::{self, Count};
use alba_proxy_core::read::Rank;
use alba_proxy_core::upload::Put;
use arakoon_client::{TransactError, Transaction};
use bytes::Bytes;
use codec::ErasureCode;
use model::{NamespaceId, ObjectId};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use wire::asd::Priority;
use wire::facts::key;

/// Repairs that wait; more are noticed again by the next read.
const REPAIRS_MAX: usize = 256;
/// One object's maintenance takes no longer.
const PATIENCE: Duration = Duration::from_secs(20);
/// Attempts at a transaction that others overtake.
const TRIES: usize = 8;
/// Objects filled at once.
const FILLS_AT_ONCE: usize = 4;
/// Holes looked at in one go.
const HOLES_PAGE: usize = 500;

/// A fragment that a read found bad.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RepairJob {
    pub namespace: NamespaceId,
    pub object: ObjectId,
    pub fragment: u8,
}

pub fn repair_queue() -> (mpsc::Sender<RepairJob>, mpsc::Receiver<RepairJob>) {
    mpsc::channel(REPAIRS_MAX)
}

/// What came of an object's holes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filled {
    /// So many are stored now.
    Some(usize),
    /// No OSD may take them now.
    NoPlace,
    /// There are none.
    Whole,
}

impl Proxy {
    /// Rebuilds whole fragments from k others and checks them against the manifest.
    async fn rebuild_whole(
        self: &Arc<Self>,
        loaded: &Arc<Loaded>,
        missing: Vec<u8>,
        deadline: Instant,
    ) -> Result<Vec<(u8, Fragment)>, ProxyError> {
        let Some(first) = missing.first() else { return Ok(Vec::new()) };
        let object = loaded.manifest.object;
        let range = 0..loaded.manifest.stripe_len;
        let want = Want { fragment: *first, range, trust: Trust::OthersOnly };
        let patience = (deadline, HEDGE_AFTER);
        let columns = self.gather(loaded, &[want], Priority::Maintenance, patience).await;
        let Some(Column::Rebuild(sources)) = columns.into_iter().next() else {
            let problem = "too few other fragments can be read".to_owned();
            return Err(ProxyError::Unreadable { object, problem });
        };
        let here = Arc::clone(loaded);
        let rebuilt = self.workers.run(move || rebuild_all(&here, &missing, &sources)).await;
        rebuilt.map_err(|problem| ProxyError::Unreadable { object, problem })
    }

    /// Stores what the object lacks, where the rules allow.
    pub async fn fill_object(
        self: &Arc<Self>,
        namespace: NamespaceId,
        object: ObjectId,
    ) -> Result<Filled, ProxyError> {
        let deadline = Instant::now() + PATIENCE;
        let known = self.namespace(namespace, deadline).await?;
        let loaded = match self.fresh_object(&known, object, deadline).await {
            Ok(loaded) => loaded,
            Err(ProxyError::NoObject(_)) => {
                // Deleted meanwhile; its entry goes unless it comes back.
                let gone = Transaction::new()
                    .assert_absent(key::manifest(namespace, object))
                    .delete(key::hole(namespace, object));
                self.try_commit(gone, deadline).await?;
                return Ok(Filled::Whole);
            }
            Err(error) => return Err(error),
        };
        if loaded.manifest.holes() == 0 {
            let whole = Transaction::new()
                .assert_value(key::manifest(namespace, object), loaded.record.clone())
                .delete(key::hole(namespace, object));
            self.try_commit(whole, deadline).await?;
            return Ok(Filled::Whole);
        }
        let candidates = self.osds.candidates();
        let puts = fill::plan(&loaded.manifest, &candidates, runtime::random::u64());
        if puts.is_empty() {
            return Ok(Filled::NoPlace);
        }
        let missing = puts.iter().map(|put| put.index.get()).collect();
        let fragments = self.rebuild_whole(&loaded, missing, deadline).await?;
        let attempt = Attempt { namespace, object, attempt: loaded.manifest.attempt };
        let stored = self.store(attempt, &puts, fragments).await;
        if stored.is_empty() {
            return Ok(Filled::NoPlace);
        }
        self.record_places(attempt, &stored).await?;
        self.counters.filled_holes.add(model::u64_of(stored.len()));
        tracing::info!(%object, fragments = stored.len(), "holes filled");
        Ok(Filled::Some(stored.len()))
    }

    /// Puts that worked.
    async fn store(
        self: &Arc<Self>,
        attempt: Attempt,
        puts: &[Put],
        fragments: Vec<(u8, Fragment)>,
    ) -> Vec<Put> {
        let mut under_way = JoinSet::new();
        for (index, fragment) in fragments {
            let Some(put) = puts.iter().find(|put| put.index.get() == index).copied() else {
                continue;
            };
            let proxy = Arc::clone(self);
            under_way.spawn(async move {
                let key = attempt.key(put.index);
                (put, proxy.osds.put(put.osd, key, &fragment, PutManner::Repair).await)
            });
        }
        let mut stored = Vec::new();
        while let Some(done) = under_way.join_next().await {
            match done {
                Ok((put, Ok(()))) => stored.push(put),
                Ok((put, Err(error))) => {
                    tracing::info!(object = %attempt.object, osd = %put.osd, %error, "hole not filled");
                }
                Err(_) => {}
            }
        }
        stored
    }

    /// Writes into the manifest where fragments are now. What fills no hole any more is deleted again.
    pub async fn record_places(
        self: &Arc<Self>,
        attempt: Attempt,
        puts: &[Put],
    ) -> Result<(), ProxyError> {
        let deadline = Instant::now() + PATIENCE;
        let Attempt { namespace, object, .. } = attempt;
        let known = self.namespace(namespace, deadline).await?;
        for _ in 0..TRIES {
            let loaded = match self.fresh_object(&known, object, deadline).await {
                Ok(loaded) if loaded.manifest.attempt == attempt.attempt => loaded,
                Ok(_) | Err(ProxyError::NoObject(_)) => {
                    self.discard(attempt, puts.to_vec());
                    return Ok(());
                }
                Err(error) => return Err(error),
            };
            let (filled, unused) = fill::with_places(&loaded.manifest, puts);
            if filled == loaded.manifest {
                self.discard(attempt, unused);
                return Ok(());
            }
            let mut transaction = Transaction::new()
                .assert_value(key::manifest(namespace, object), loaded.record.clone())
                .set(key::manifest(namespace, object), filled.to_bytes());
            if filled.holes() == 0 {
                transaction = transaction.delete(key::hole(namespace, object));
            }
            let fewer = i64::from(loaded.manifest.holes()) - i64::from(filled.holes());
            let more = delta(filled.stored_len()) - delta(loaded.manifest.stored_len());
            let changes = [
                (Count::Holes, -fewer),
                (Count::StoredBytes, more),
                (Count::Objects, 0),
                (Count::PlainBytes, 0),
            ];
            transaction = count(transaction, namespace, changes);
            if self.try_commit(transaction, deadline).await? {
                // The cached manifest still says "hole": drop it, so that reads are direct again.
                self.manifests.remove(&(namespace, object));
                self.discard(attempt, unused);
                return Ok(());
            }
        }
        Err(ProxyError::Metadata(format!("{object} changes too fast")))
    }

    /// False when an assertion failed.
    pub async fn try_commit(
        &self,
        transaction: Transaction,
        deadline: Instant,
    ) -> Result<bool, ProxyError> {
        match self.metadata(deadline)?.commit(transaction).await {
            Ok(_) => Ok(true),
            Err(TransactError::Assertion(_)) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Rewrites a fragment that turned out bad, on the OSD that has it, and reads it back.
    pub async fn repair(self: &Arc<Self>, job: RepairJob) -> Result<(), ProxyError> {
        let deadline = Instant::now() + PATIENCE;
        let RepairJob { namespace, object, fragment } = job;
        let known = self.namespace(namespace, deadline).await?;
        let loaded = self.fresh_object(&known, object, deadline).await?;
        let Some(osd) = osd_of(&loaded, fragment) else { return Ok(()) };
        if !self.osds.writable(osd) {
            // It can't take it now; the next read notices again.
            return Ok(());
        }
        let record = loaded.manifest.fragments[usize::from(fragment)];
        let whole = Wanted { key: loaded.key(fragment), range: 0..record.len };
        match self.osds.get(osd, &[whole], Priority::Maintenance).await.as_deref() {
            // Somebody was faster.
            Ok([Got::Found(_, crc)]) if *crc == record.crc => return Ok(()),
            Ok(_) => {}
            Err(_) => return Ok(()),
        }
        let rebuilt = self.rebuild_whole(&loaded, vec![fragment], deadline).await?;
        for (index, bytes) in rebuilt {
            let key = loaded.key(index);
            let put = self.osds.put(osd, key, &bytes, PutManner::Repair).await;
            let sound = put.is_ok() && self.osds.verify(osd, key).await.unwrap_or(false);
            if sound {
                self.counters.repaired_fragments.add(1);
                tracing::info!(%object, fragment, %osd, "a bad fragment is repaired");
            } else {
                tracing::warn!(%object, fragment, %osd, "a bad fragment could not be repaired");
            }
        }
        Ok(())
    }

    /// Looks whether objects that couldn't be read can be read again: an alarm that is over must end by itself (L9).
    pub async fn recheck_lost(&self) {
        for (namespace, object) in self.counters.lost_now() {
            match self.is_readable(namespace, object).await {
                Ok(true) => {
                    if self.counters.found((namespace, object)) {
                        tracing::info!(%object, "a lost object can be read again");
                    }
                }
                Ok(false) => {}
                Err(ProxyError::NoObject(_) | ProxyError::NoNamespace(_)) => {
                    self.counters.found((namespace, object));
                }
                Err(error) => tracing::debug!(%object, %error, "a lost object can't be checked"),
            }
        }
    }

    /// Whether k fragments are sound, as the OSDs that hold them say.
    async fn is_readable(
        &self,
        namespace: NamespaceId,
        object: ObjectId,
    ) -> Result<bool, ProxyError> {
        let deadline = Instant::now() + PATIENCE;
        let known = self.namespace(namespace, deadline).await?;
        let loaded = self.fresh_object(&known, object, deadline).await?;
        let manifest = &loaded.manifest;
        let empty = manifest.fragments.iter().filter(|fragment| fragment.len == 0).count();
        let mut sound = empty;
        for (index, osd) in manifest.stored() {
            if sound >= usize::from(manifest.policy.k()) {
                break;
            }
            let answers = self.osds.rank(osd) != Rank::Down;
            let key = manifest.key_of(namespace, index);
            if answers && self.osds.verify(osd, key).await.unwrap_or(false) {
                sound += 1;
            }
        }
        Ok(sound >= usize::from(manifest.policy.k()))
    }

    /// Fills what can be filled in a namespace now. True when something was.
    pub async fn fill_namespace(
        self: &Arc<Self>,
        namespace: NamespaceId,
    ) -> Result<bool, ProxyError> {
        let prefix = key::holes(namespace);
        let end = wire::arakoon::prefix_end(&prefix);
        let entries = self.arakoon.range(&prefix, end.as_deref(), HOLES_PAGE).await?;
        let mut objects: Vec<ObjectId> = entries
            .iter()
            .filter_map(|(entry, _)| keys::object_of_hole(namespace, entry))
            .collect();
        let mut progress = false;
        let mut under_way = JoinSet::new();
        while !objects.is_empty() || !under_way.is_empty() {
            while under_way.len() < FILLS_AT_ONCE && !objects.is_empty() {
                // Proxies that start at different places seldom do the same work.
                let at = runtime::random::u64() % model::u64_of(objects.len());
                let object = objects.swap_remove(model::usize_of(at));
                let proxy = Arc::clone(self);
                under_way
                    .spawn(async move { (object, proxy.fill_object(namespace, object).await) });
            }
            match under_way.join_next().await {
                Some(Ok((_, Ok(Filled::Some(_))))) => progress = true,
                Some(Ok((object, Err(error)))) => {
                    tracing::info!(%object, %error, "holes can't be filled now");
                }
                Some(Ok((_, Ok(Filled::NoPlace | Filled::Whole))) | Err(_)) | None => {}
            }
        }
        Ok(progress)
    }

    /// Holes of each namespace that has any.
    pub async fn namespaces_with_holes(&self) -> Result<BTreeMap<NamespaceId, u64>, ProxyError> {
        let entries = self.arakoon.prefix(keys::NAMESPACES).await?;
        let namespaces: Vec<NamespaceId> = entries
            .iter()
            .filter_map(|(entry, _)| keys::namespace_of_entry(keys::NAMESPACES, entry))
            .collect();
        let mut holes = BTreeMap::new();
        for page in namespaces.chunks(HOLES_PAGE) {
            let wanted = page.iter().map(|id| keys::count(*id, Count::Holes)).collect();
            let counts = self.arakoon.multi_get(wanted).await?;
            for (namespace, value) in page.iter().zip(counts) {
                match counter(value) {
                    0 => {}
                    count => {
                        holes.insert(*namespace, count);
                    }
                }
            }
        }
        Ok(holes)
    }
}

/// A counter of arakoon; absent is 0, and so is one that was overdrawn.
pub fn counter(value: Option<Bytes>) -> u64 {
    let raw = value.and_then(|bytes| bytes.as_ref().try_into().ok()).map_or(0, i64::from_le_bytes);
    u64::try_from(raw).unwrap_or(0)
}

fn rebuild_all(
    loaded: &Loaded,
    missing: &[u8],
    sources: &[(u8, Bytes)],
) -> Result<Vec<(u8, Fragment)>, String> {
    let have: Vec<(u8, &[u8])> =
        sources.iter().map(|(fragment, bytes)| (*fragment, bytes.as_ref())).collect();
    let records = &loaded.manifest.fragments;
    let mut rebuilt: Vec<Vec<u8>> = missing
        .iter()
        .map(|fragment| vec![0; model::usize_of(records[usize::from(*fragment)].len.into())])
        .collect();
    let mut want: Vec<(u8, &mut [u8])> =
        missing.iter().copied().zip(rebuilt.iter_mut().map(Vec::as_mut_slice)).collect();
    let stripe_len = model::usize_of(loaded.manifest.stripe_len.into());
    loaded.code.reconstruct(stripe_len, &have, &mut want).map_err(|error| error.to_string())?;
    let mut fragments = Vec::with_capacity(missing.len());
    for (fragment, bytes) in missing.iter().zip(rebuilt) {
        if codec::crc32c(&bytes) != records[usize::from(*fragment)].crc {
            return Err(format!("fragment {fragment} comes out wrong: a source is bad"));
        }
        fragments.push((*fragment, Fragment::new(Bytes::from(bytes))));
    }
    Ok(fragments)
}
