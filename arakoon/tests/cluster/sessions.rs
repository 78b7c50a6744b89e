//! Sessions with a TTL over real nodes: kept through leader kills, fencing claims, ended by silence, given up by their
//! holder's own clock first (P17).

use crate::harness::{Cluster, WITHIN};
use anyhow::{Result, bail, ensure};
use arakoon_client::{
    ArakoonClient, Session, SessionError, SessionInfo, SessionOptions, SessionState, TransactError,
    Transaction,
};
use runtime::clock::boot_now;
use std::time::Duration;

const ID: &str = "router/1";

fn options(ttl: Duration, margin: Duration) -> SessionOptions {
    SessionOptions { ttl, margin, ..SessionOptions::new(ID) }
}

/// Waits for a renewal beyond that one.
async fn renewed(client: &ArakoonClient, beyond: u64) -> Result<SessionInfo> {
    let look = async {
        loop {
            let found = client.sessions("router/").await?;
            let [found] = &found[..] else { bail!("one session is there, not {found:?}") };
            if found.renewal > beyond {
                return Ok(found.clone());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(WITHIN, look).await?
}

#[tokio::test]
async fn p17_a_session_is_renewed_through_leader_kills_and_fences_claims() -> Result<()> {
    let mut cluster = Cluster::start(3, 1000)?;
    let client = cluster.client();
    let along = Transaction::new().set("router", "here");
    let wanted =
        SessionOptions { along, ..options(Duration::from_secs(6), Duration::from_secs(1)) };
    let session = Session::open(&client, wanted.clone()).await?;
    ensure!(client.get("router").await?.is_some());
    let first = client.sessions("").await?;
    ensure!(first.len() == 1 && first[0].incarnation == session.incarnation(), "{first:?}");
    ensure!(client.sessions("x").await?.is_empty());
    let other = options(Duration::from_secs(6), Duration::from_secs(1));
    match Session::open(&client, other).await {
        Err(SessionError::Held { holder }) => ensure!(holder.incarnation == session.incarnation()),
        Err(error) => bail!("{error}"),
        Ok(_) => bail!("two incarnations live"),
    }
    let lived_until = session.lives_until();
    let leader = cluster.leader().await?;
    cluster.kill(&leader)?;
    let found = renewed(&client, 2).await?;
    ensure!(session.state() == SessionState::Open && found.incarnation == session.incarnation());
    ensure!(session.lives_until() > lived_until);
    let claim = |n: &str| {
        Transaction::new().set("owner", n.to_owned()).assert_session_lives(ID, found.incarnation)
    };
    client.commit(claim("1")).await?;
    let gone = Transaction::new().assert_session_gone(ID, found.incarnation);
    let TransactError::Assertion(failed) = client.commit(gone.clone()).await.unwrap_err() else {
        bail!("it lives")
    };
    ensure!(failed.key == ID && failed.found.is_some());
    session.close().await?;
    ensure!(client.sessions("").await?.is_empty());
    ensure!(matches!(client.commit(claim("2")).await, Err(TransactError::Assertion(_))));
    client.commit(gone).await?;
    Ok(())
}

/// h_15.
#[tokio::test]
async fn p17_a_silent_holders_session_expires_after_it_has_stopped_and_not_before() -> Result<()> {
    let cluster = Cluster::start(3, 1000)?;
    let client = cluster.client();
    let short = || options(Duration::from_secs(2), Duration::from_millis(400));
    let session = Session::open(&client, short()).await?;
    let (lived_until, incarnation) = (session.lives_until(), session.incarnation());
    drop(session);
    let waiting = SessionOptions { wait: WITHIN, ..short() };
    let next = Session::open(&client, waiting).await?;
    ensure!(boot_now() > lived_until, "two holders at one moment");
    ensure!(next.incarnation() != incarnation);
    let late = Transaction::new().set("owner", "old").assert_session_lives(ID, incarnation);
    ensure!(matches!(client.commit(late).await, Err(TransactError::Assertion(_))));
    // A holder that restarts in place names what it was and needs no patience; what it was is lost.
    let replaces = Some(next.incarnation());
    let restarted = Session::open(&client, SessionOptions { replaces, ..short() }).await?;
    tokio::time::timeout(WITHIN, next.ended()).await?;
    ensure!(!next.lives() && restarted.incarnation() != next.incarnation());
    let lost = async {
        while next.state() != SessionState::Lost {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(WITHIN, lost).await?;
    Ok(())
}

#[tokio::test]
async fn p17_a_holder_without_arakoon_stops_by_its_own_clock_and_lives_again_if_nobody_ended_it()
-> Result<()> {
    let mut cluster = Cluster::start(1, 1000)?;
    let client = cluster.client();
    let ttl = Duration::from_secs(8);
    let session = Session::open(&client, options(ttl, Duration::from_millis(6500))).await?;
    cluster.kill("n1")?;
    let lived_until = session.lives_until();
    tokio::time::timeout(WITHIN, session.ended()).await?;
    ensure!(boot_now() >= lived_until && !session.lives());
    ensure!(session.state() == SessionState::Open);
    cluster.restart("n1")?;
    let again = async {
        while !session.lives() {
            ensure!(
                session.state() == SessionState::Open,
                "it was ended though its TTL isn't over"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    };
    tokio::time::timeout(WITHIN, again).await?
}
