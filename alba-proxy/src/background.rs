//! What goes on without being asked: lists kept fresh, OSDs probed, holes filled, fragments repaired, deletes drained.
//!
//! Each task waits for its time or for a nudge, works until nothing is left, and ends at the shutdown. Intervals are
//! jittered, so that many proxies don't work in step.
//!
//! Invariant: a failure is logged and tried again at the next turn; no task ends before the shutdown.

use crate::error::ProxyError;
use crate::maintain::RepairJob;
use crate::proxy::Proxy;
use runtime::random::jitter;
use runtime::shutdown::Shutdown;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;

/// Upper ends of the intervals; jitter takes up to half off.
const CATALOG_EVERY: Duration = Duration::from_secs(5);
const CATALOG_RETRY: Duration = Duration::from_millis(300);
const PROBE_EVERY: Duration = Duration::from_millis(400);
const FIGURES_EVERY: Duration = Duration::from_secs(4);
/// While none are known: other proxies' may come. Own ones, and an OSD that is back, wake at once.
const HOLES_EVERY: Duration = Duration::from_secs(30);
/// While some are left, or objects are lost, or nobody could say.
const HOLES_RETRY: Duration = Duration::from_secs(3);
const DELETES_EVERY: Duration = Duration::from_secs(10);

pub fn spawn(
    proxy: &Arc<Proxy>,
    repairs: mpsc::Receiver<RepairJob>,
    shutdown: &Shutdown,
) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    let mut task = |work: std::pin::Pin<Box<dyn Future<Output = ()> + Send>>| {
        let shutdown = shutdown.clone();
        tasks.spawn(async move {
            tokio::select! {
                () = shutdown.wait() => {}
                () = work => {}
            }
        });
    };
    task(Box::pin(keep_catalog(Arc::clone(proxy))));
    task(Box::pin(keep_probing(Arc::clone(proxy))));
    task(Box::pin(keep_filling(Arc::clone(proxy))));
    task(Box::pin(keep_deleting(Arc::clone(proxy))));
    task(Box::pin(keep_repairing(Arc::clone(proxy), repairs)));
    tasks
}

async fn pause(most: Duration, nudge: &Notify) {
    tokio::select! {
        () = tokio::time::sleep(jitter(most)) => {}
        () = nudge.notified() => {}
    }
}

/// Presets and OSDs from arakoon; figures from the OSDs.
async fn keep_catalog(proxy: Arc<Proxy>) {
    let mut was_well = true;
    let mut figures_at = tokio::time::Instant::now();
    loop {
        let outcome = proxy.catalog.refresh(&proxy.arakoon, &proxy.osds).await;
        // Told once per change, not each time (L9).
        match &outcome {
            Ok(()) if !was_well => tracing::info!("arakoon answers again"),
            Err(error) if was_well => tracing::warn!(%error, "presets and OSDs can't be read"),
            Ok(()) | Err(_) => {}
        }
        was_well = outcome.is_ok();
        if was_well && tokio::time::Instant::now() >= figures_at {
            proxy.probe(proxy.osds.all()).await;
            figures_at = tokio::time::Instant::now() + FIGURES_EVERY;
        }
        tokio::time::sleep(jitter(if was_well { CATALOG_EVERY } else { CATALOG_RETRY })).await;
    }
}

async fn keep_probing(proxy: Arc<Proxy>) {
    loop {
        tokio::time::sleep(jitter(PROBE_EVERY)).await;
        let before = proxy.osds.due_probes();
        proxy.probe_due().await;
        if before.iter().any(|osd| proxy.osds.writable(*osd)) {
            // Somebody is back: perhaps holes can be filled now.
            proxy.holes_made.notify_one();
            proxy.deletes_made.notify_one();
        }
    }
}

async fn keep_filling(proxy: Arc<Proxy>) {
    let mut most = HOLES_RETRY;
    loop {
        pause(most, &proxy.holes_made).await;
        let filled = fill_all(&proxy).await;
        if let Err(error) = &filled {
            tracing::info!(%error, "holes can't be looked for now");
        }
        proxy.recheck_lost().await;
        // L1: what has less redundancy than it should isn't left so for want of a look.
        let is_whole = filled.unwrap_or(false) && proxy.counters.lost_now().is_empty();
        most = if is_whole { HOLES_EVERY } else { HOLES_RETRY };
    }
}

/// Whether there were none.
async fn fill_all(proxy: &Arc<Proxy>) -> Result<bool, ProxyError> {
    let before = proxy.namespaces_with_holes().await?;
    proxy.counters.holes.set(before.values().sum());
    let mut progress = false;
    for namespace in before.keys() {
        progress |= proxy.fill_namespace(*namespace).await?;
    }
    if progress {
        let after = proxy.namespaces_with_holes().await?;
        proxy.counters.holes.set(after.values().sum());
        if !after.is_empty() {
            proxy.holes_made.notify_one();
        }
    }
    Ok(before.is_empty())
}

async fn keep_deleting(proxy: Arc<Proxy>) {
    loop {
        pause(DELETES_EVERY, &proxy.deletes_made).await;
        if let Err(error) = delete_all(&proxy).await {
            tracing::info!(%error, "deletes wait");
        }
    }
}

async fn delete_all(proxy: &Arc<Proxy>) -> Result<(), ProxyError> {
    for namespace in proxy.dropping().await? {
        proxy.drop_namespace(namespace).await?;
    }
    let mut cursor = None;
    loop {
        cursor = proxy.drain_deletes(cursor).await?;
        if cursor.is_none() {
            return Ok(());
        }
    }
}

async fn keep_repairing(proxy: Arc<Proxy>, mut repairs: mpsc::Receiver<RepairJob>) {
    let mut last = None;
    while let Some(job) = repairs.recv().await {
        // Many reads notice the same fragment.
        if last == Some(job) && repairs.is_empty() {
            tokio::time::sleep(jitter(PROBE_EVERY)).await;
        }
        last = Some(job);
        if let Err(error) = proxy.repair(job).await {
            tracing::info!(object = %job.object, fragment = job.fragment, %error, "not repaired now");
        }
    }
}

impl Proxy {
    /// Asks these OSDs how they are, all at once.
    pub async fn probe(self: &Arc<Self>, osds: Vec<model::OsdId>) {
        let mut probes = JoinSet::new();
        for osd in osds {
            let proxy = Arc::clone(self);
            probes.spawn(async move { proxy.osds.probe(osd).await });
        }
        while probes.join_next().await.is_some() {}
    }

    /// Asks those that aren't well and may be asked again.
    pub async fn probe_due(self: &Arc<Self>) {
        let due = self.osds.due_probes();
        self.probe(due).await;
    }
}
