//! Watching from a revision over real nodes: nothing is missed, through the death of a leader, and who asks from too long
//! ago is told so.

use crate::harness::{Cluster, WITHIN};
use anyhow::{Context, Result, ensure};
use arakoon_client::{ArakoonClient, Changed, Session, SessionOptions, Watched};
use bytes::Bytes;
use model::Revision;
use std::collections::BTreeSet;
use std::time::Duration;

fn watched() -> Watched {
    let prefix = |text: &'static str| vec![Bytes::from_static(text.as_bytes())];
    Watched { keys: prefix("w/"), sessions: prefix("router/") }
}

/// Asks on until that key or session was told of; returns all that were, and where to go on.
async fn until(
    client: &ArakoonClient,
    mut since: Revision,
    wanted: &str,
) -> Result<(BTreeSet<Bytes>, Revision)> {
    let mut told = BTreeSet::new();
    let look = async {
        while !told.contains(wanted.as_bytes()) {
            let changed = client.changes(&watched(), since, Duration::from_secs(2)).await?;
            let Changed { keys, sessions, through } = changed.context("read again")?;
            told.extend(keys.into_iter().chain(sessions));
            ensure!(through >= since);
            since = through;
        }
        Ok(())
    };
    tokio::time::timeout(WITHIN, look).await??;
    Ok((told, since))
}

#[tokio::test]
async fn a_watch_tells_of_every_change_through_the_death_of_a_leader() -> Result<()> {
    let mut cluster = Cluster::start(3, 1000)?;
    let client = cluster.client();
    client.set("w/0", "before").await?;
    let (entries, since) = client.prefix_at("w/").await?;
    ensure!(entries.len() == 1);
    let nothing = client.changes(&watched(), since, Duration::from_millis(50)).await?;
    ensure!(nothing.is_some_and(|changed| changed.keys.is_empty() && changed.through >= since));
    let waiting = tokio::spawn({
        let client = client.clone();
        async move { until(&client, since, "w/1").await }
    });
    client.set("elsewhere", "x").await?;
    client.set("w/1", "x").await?;
    let (told, since) = waiting.await??;
    ensure!(told.iter().all(|key| key == "w/1"), "{told:?}");
    let session = Session::open(&client, SessionOptions::new("router/1")).await?;
    let (told, opened) = until(&client, since, "router/1").await?;
    ensure!(told.len() == 1, "{told:?}");
    let leader = cluster.leader().await?;
    cluster.kill(&leader)?;
    client.delete("w/0").await?;
    session.close().await?;
    let (told, _) = until(&client, opened, "router/1").await?;
    ensure!(told.contains(&Bytes::from_static(b"w/0")), "{told:?}");
    Ok(())
}

#[tokio::test]
async fn a_node_that_began_anew_says_that_it_doesnt_remember() -> Result<()> {
    let mut cluster = Cluster::start(1, 1000)?;
    let client = cluster.client();
    let before = client.set("w/1", "x").await?;
    client.set("w/2", "x").await?;
    cluster.kill("n1")?;
    cluster.restart("n1")?;
    client.set("w/3", "x").await?;
    ensure!(client.changes(&watched(), before, Duration::ZERO).await?.is_none());
    let (entries, since) = client.prefix_at("w/").await?;
    ensure!(entries.len() == 3);
    client.set("w/4", "x").await?;
    let (told, _) = until(&client, since, "w/4").await?;
    ensure!(told.len() == 1, "{told:?}");
    Ok(())
}
