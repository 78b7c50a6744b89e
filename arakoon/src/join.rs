//! How a node that began with an empty directory comes to vote.
//!
//! An empty directory may mean a new cluster, or a node that lost its disk: then it may have acknowledged entries and
//! given votes that it doesn't remember, and must not vote before it has caught up (P27). It asks all others: when none
//! has a past the cluster begins, all together; when one has, it takes the log from the leader first, which is told to
//! forget what this node acknowledged before.

use crate::driver::{Input, Inputs};
use bytes::Bytes;
use runtime::rpc::{Call, CallError, Client};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use wire::arakoon::{JoinAnswer, JoinAsk, method};

const ASK_TIMEOUT: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(200);

/// Asks until this node votes.
pub async fn join(node: u64, peers: BTreeMap<u64, Client>, inputs: Inputs) {
    let mut waiting_for = usize::MAX;
    loop {
        let (tell, told) = oneshot::channel();
        // A full queue is tried again with the next round.
        let _ = inputs.push(Input::Joining(tell));
        if let Ok(state) = told.await {
            let Some(last) = state else { return };
            let answers = ask_all(&peers, JoinAsk { node, last }).await;
            let known: Vec<bool> =
                answers.into_iter().flatten().map(|answer| answer.has_history).collect();
            if known.len() == peers.len() && !known.contains(&true) {
                let _ = inputs.push(Input::Bootstrap);
            }
            let silent = peers.len() - known.len();
            if silent != waiting_for && silent > 0 && !known.contains(&true) {
                tracing::info!(silent, "a new cluster begins when all its nodes are there");
            }
            waiting_for = silent;
        }
        tokio::time::sleep(runtime::random::jitter(PAUSE)).await;
    }
}

async fn ask_all(
    peers: &BTreeMap<u64, Client>,
    ask: JoinAsk,
) -> Vec<Result<JoinAnswer, CallError>> {
    let mut asked = JoinSet::new();
    for client in peers.values() {
        let (client, ask) = (client.clone(), ask.clone());
        asked.spawn(async move {
            let answer: (JoinAnswer, Bytes) =
                client.call(method::JOIN, &ask, Call::within(ASK_TIMEOUT)).await?;
            Ok(answer.0)
        });
    }
    asked.join_all().await
}
