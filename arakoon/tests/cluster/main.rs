//! Clusters of real processes over unix sockets: leaders killed with -9, nodes left behind, everybody killed at once.

mod harness;
mod sessions;
mod watch;

use anyhow::{Result, ensure};
use arakoon_client::{ArakoonClient, TransactError, Transaction};
use bytes::Bytes;
use harness::{Cluster, WITHIN, counter};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use wire::arakoon::RaftMessage;

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

#[tokio::test]
async fn a_cluster_serves_every_operation() -> Result<()> {
    for size in [1, 3] {
        let cluster = Cluster::start(size, 1000)?;
        let client = cluster.client();
        let first = client.set("a/1", "one").await?;
        client
            .commit(Transaction::new().assert_absent("a/2").set("a/2", "two").add("n", 3))
            .await?;
        ensure!(client.get("a/1").await? == Some(bytes("one")));
        ensure!(client.get("none").await?.is_none());
        let got = client.multi_get(vec![bytes("a/2"), bytes("none"), bytes("a/1")]).await?;
        ensure!(got == [Some(bytes("two")), None, Some(bytes("one"))]);
        let all = client.prefix("a/").await?;
        ensure!(all == [(bytes("a/1"), bytes("one")), (bytes("a/2"), bytes("two"))]);
        ensure!(client.range("a/1", Some(b"a/2"), 10).await?.len() == 1);
        let failed = client.compare_and_set("a/1", Some(bytes("wrong")), None).await.unwrap_err();
        let TransactError::Assertion(failed) = failed else { anyhow::bail!("{failed:?}") };
        ensure!((failed.index, failed.found) == (0, Some(bytes("one"))));
        let last = client.compare_and_set("a/1", Some(bytes("one")), None).await?;
        ensure!(last > first && client.get("a/1").await?.is_none());
        client.commit(Transaction::new().delete_prefix("a/")).await?;
        ensure!(client.prefix("a/").await?.is_empty());
        let refused = client.commit(Transaction::new().set("", "x")).await.unwrap_err();
        ensure!(matches!(refused, TransactError::Refused(_)), "{refused:?}");
        let status = client.status().await;
        ensure!(
            status.len() == size && status.iter().all(|(_, answer)| answer.is_ok()),
            "{status:?}"
        );
        cluster.stop_all()?;
    }
    Ok(())
}

#[tokio::test]
async fn long_ranges_come_in_pages() -> Result<()> {
    let cluster = Cluster::start(1, 1000)?;
    let client = cluster.client();
    for part in 0..5 {
        let mut transaction = Transaction::new();
        for number in 0..500 {
            transaction = transaction.set(format!("k/{part}{number:03}"), "v");
        }
        client.commit(transaction).await?;
    }
    let large = Bytes::from(vec![7; 400 << 10]);
    for number in 0..5 {
        client.set(format!("l/{number}"), large.clone()).await?;
    }
    let found = client.prefix("k/").await?;
    ensure!(found.len() == 2500 && found.is_sorted());
    ensure!(client.range("k/", None, 1700).await?.len() == 1700);
    let found = client.prefix("l/").await?;
    ensure!(found.len() == 5 && found.iter().all(|(_, value)| *value == large));
    Ok(())
}

/// A heartbeat is one call and not two.
#[tokio::test]
async fn a_peers_call_is_answered_with_what_raft_says_to_it() -> Result<()> {
    const HEARTBEAT: u8 = 8;
    const HEARTBEAT_RESPONSE: u8 = 9;
    let mut cluster = Cluster::start(3, 1000)?;
    cluster.client().set("k", "v").await?;
    cluster.all_caught_up().await?;
    cluster.kill("n2")?;
    cluster.kill("n3")?;
    let heartbeat = |from, to| RaftMessage {
        kind: HEARTBEAT,
        to,
        from,
        term: 1_000_000,
        log_term: 0,
        index: 0,
        entries: Vec::new(),
        commit: 0,
        commit_term: 0,
        snapshot: None,
        request_snapshot: 0,
        reject: false,
        reject_hint: 0,
        context: bytes("asked"),
        priority: 0,
    };
    let answer = cluster.raft("n1", vec![heartbeat(2, 1), heartbeat(2, 1)]).await?;
    let said = |message: &RaftMessage| {
        (message.kind, message.from, message.to, message.context == bytes("asked"))
    };
    let said: Vec<_> = answer.iter().map(said).collect();
    ensure!(said == [(HEARTBEAT_RESPONSE, 1, 2, true); 2], "{answer:?}");
    for foreign in
        [vec![heartbeat(2, 3)], vec![heartbeat(9, 1)], vec![heartbeat(2, 1), heartbeat(3, 1)]]
    {
        ensure!(cluster.raft("n1", foreign).await.is_err());
    }
    Ok(())
}

#[tokio::test]
async fn a_killed_leader_is_replaced_within_seconds_and_comes_back() -> Result<()> {
    let mut cluster = Cluster::start(3, 1000)?;
    let client = cluster.client();
    client.set("before", "1").await?;
    let leader = cluster.leader().await?;
    cluster.kill(&leader)?;
    let killed = std::time::Instant::now();
    client.set("after", "2").await?;
    let pause = killed.elapsed();
    ensure!(pause < Duration::from_secs(8), "took {pause:?}");
    ensure!(client.get("before").await? == Some(bytes("1")));
    cluster.restart(&leader)?;
    cluster.all_caught_up().await?;
    // With the returned node and only one other there is a majority.
    let other = cluster.leader().await?;
    cluster.kill(&other)?;
    ensure!(client.get("after").await? == Some(bytes("2")));
    Ok(())
}

#[tokio::test]
async fn without_a_majority_nothing_is_promised() -> Result<()> {
    let mut cluster = Cluster::start(3, 1000)?;
    let client = cluster.client();
    client.set("k", "1").await?;
    cluster.kill("n1")?;
    cluster.kill("n2")?;
    let hasty = client.with_deadline(Duration::from_secs(3));
    ensure!(hasty.get("k").await.is_err());
    let error = hasty.set("k", "2").await.unwrap_err();
    ensure!(matches!(error, TransactError::Unavailable { .. }), "{error:?}");
    cluster.restart("n1")?;
    ensure!(client.get("k").await?.is_some());
    Ok(())
}

/// Adds to a counter until told to stop; returns how often it was acknowledged. Nothing may stay unknown.
async fn add_until(client: ArakoonClient, stop: Arc<AtomicBool>) -> Result<i64> {
    let mut acknowledged = 0;
    while !stop.load(Ordering::Relaxed) {
        client.commit(Transaction::new().add("n", 1)).await?;
        acknowledged += 1;
    }
    Ok(acknowledged)
}

#[tokio::test]
async fn transactions_retried_through_leader_kills_count_once() -> Result<()> {
    let mut cluster = Cluster::start(3, 1000)?;
    let client = cluster.client().with_deadline(WITHIN);
    let stop = Arc::new(AtomicBool::new(false));
    let mut adders = tokio::task::JoinSet::new();
    for _ in 0..8 {
        adders.spawn(add_until(client.clone(), Arc::clone(&stop)));
    }
    for _ in 0..3 {
        cluster.more_applied(200).await?;
        let leader = cluster.leader().await?;
        cluster.kill(&leader)?;
        cluster.more_applied(200).await?;
        cluster.restart(&leader)?;
    }
    stop.store(true, Ordering::Relaxed);
    let mut acknowledged = 0;
    while let Some(added) = adders.join_next().await {
        acknowledged += added??;
    }
    let found = counter(client.get("n").await?);
    ensure!(found == acknowledged && found >= 600, "{found} counted, {acknowledged} acknowledged");
    Ok(())
}

#[tokio::test]
async fn a_follower_left_far_behind_gets_a_snapshot() -> Result<()> {
    let mut cluster = Cluster::start(3, 50)?;
    let client = cluster.client();
    client.set("deleted later", "x").await?;
    let leader = cluster.leader().await?;
    let follower = cluster.names().into_iter().find(|name| *name != leader).unwrap_or_default();
    cluster.all_caught_up().await?;
    cluster.kill(&follower)?;
    client.delete("deleted later").await?;
    // Several pages of snapshot.
    for number in 0..12u8 {
        client.set(format!("large/{number:02}"), vec![number; 300 << 10]).await?;
    }
    for number in 0..300 {
        client.set(format!("small/{number}"), "v").await?;
    }
    cluster.restart(&follower)?;
    cluster.all_caught_up().await?;
    ensure!(cluster.log(&follower)?.contains("restored from a snapshot"), "no snapshot was needed");
    let local = cluster.read_locally(&follower, "").await?;
    let mut wanted = client.prefix("").await?;
    wanted.truncate(local.len());
    ensure!(!local.is_empty() && local == wanted);
    // It serves from what it restored, also after another life.
    cluster.kill(&follower)?;
    cluster.restart(&follower)?;
    cluster.all_caught_up().await?;
    cluster.kill(&leader)?;
    ensure!(client.prefix("small/").await?.len() == 300);
    ensure!(client.get("large/07").await? == Some(Bytes::from(vec![7; 300 << 10])));
    ensure!(client.get("deleted later").await?.is_none());
    Ok(())
}

#[tokio::test]
async fn a_node_that_lost_its_disk_catches_up_and_then_votes() -> Result<()> {
    let mut cluster = Cluster::start(3, 1000)?;
    let client = cluster.client();
    client.set("k", "1").await?;
    for _ in 0..2 {
        // Once a follower or the leader, whoever comes first; once whoever leads then.
        let lost = cluster.leader().await?;
        cluster.kill(&lost)?;
        cluster.remove_data(&lost)?;
        cluster.restart(&lost)?;
        client.commit(Transaction::new().add("n", 1)).await?;
        cluster.voting(&lost).await?;
        cluster.all_caught_up().await?;
    }
    // Only the node that lost its disk last and one other are left: its vote is needed.
    let leader = cluster.leader().await?;
    cluster.kill(&leader)?;
    client.commit(Transaction::new().add("n", 1)).await?;
    ensure!(counter(client.get("n").await?) == 3 && client.get("k").await? == Some(bytes("1")));
    Ok(())
}

#[tokio::test]
async fn everything_acknowledged_survives_kills_of_all_nodes_at_random_moments() -> Result<()> {
    let seed = std::env::var("HOLDFAST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(7);
    println!("seed {seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    for size in [1, 3] {
        let mut cluster = Cluster::start(size, 60)?;
        let client = cluster.client().with_deadline(WITHIN);
        let stop = Arc::new(AtomicBool::new(false));
        let mut adders = tokio::task::JoinSet::new();
        for _ in 0..4 {
            adders.spawn(add_until(client.clone(), Arc::clone(&stop)));
        }
        for _ in 0..4 {
            cluster.more_applied(rng.u64(20..150)).await?;
            for name in cluster.names() {
                cluster.kill(&name)?;
            }
            for name in cluster.names() {
                cluster.restart(&name)?;
            }
        }
        stop.store(true, Ordering::Relaxed);
        let mut acknowledged = 0;
        while let Some(added) = adders.join_next().await {
            acknowledged += added??;
        }
        let found = counter(client.get("n").await?);
        ensure!(
            found == acknowledged,
            "{found} counted, {acknowledged} acknowledged, {size} nodes"
        );
    }
    Ok(())
}

#[tokio::test]
async fn a_node_refuses_a_directory_that_is_not_its_own() -> Result<()> {
    let mut cluster = Cluster::start(1, 1000)?;
    cluster.client().set("k", "v").await?;
    let taken = cluster.start_another("n1")?;
    ensure!(taken.contains("in use by another process"), "{taken}");
    cluster.kill("n1")?;
    cluster.change_config("n1", "cluster = \"c\"", "cluster = \"d\"")?;
    let foreign = cluster.start_another("n1")?;
    ensure!(foreign.contains("belongs to node 1 of cluster `c`"), "{foreign}");
    Ok(())
}
