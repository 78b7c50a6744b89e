//! Fetches a snapshot page by page and hands the rows to the driver, one page at a time.

use crate::driver::{Input, Inputs, Staged};
use bytes::Bytes;
use runtime::rpc::{Call, CallError, Client};
use std::time::Duration;
use tokio::sync::oneshot;
use wire::arakoon::{SnapshotAsk, SnapshotRows, method};

const PAGE_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
enum FetchError {
    #[error(transparent)]
    Call(#[from] CallError),
    #[error("a page fails its checksum")]
    Checksum,
    #[error("a page can't be read: {0}")]
    Form(wire::DecodeError),
    #[error("this node has turned to something else")]
    Superseded,
}

/// Fetches snapshot `number` of the node behind `client`. A failure is logged; the leader sends another snapshot then.
pub async fn fetch(client: Client, number: u64, inputs: Inputs) {
    match fetch_pages(&client, number, &inputs).await {
        Ok(pages) => tracing::info!(number, pages, "snapshot fetched"),
        Err(error) => tracing::warn!(number, %error, "snapshot not fetched"),
    }
}

async fn fetch_pages(client: &Client, number: u64, inputs: &Inputs) -> Result<u64, FetchError> {
    let mut after: Option<Bytes> = None;
    let mut pages = 0;
    loop {
        let ask = SnapshotAsk { number, after: after.take() };
        let (page, payload): (SnapshotRows, Bytes) =
            client.call(method::RAFT_SNAPSHOT, &ask, Call::within(PAGE_TIMEOUT)).await?;
        if crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, &payload)
            != u64::from(page.checksum)
        {
            return Err(FetchError::Checksum);
        }
        let rows: Vec<(Bytes, Bytes)> = wire::decode_all(payload).map_err(FetchError::Form)?;
        after = rows.last().map(|(row, _)| row.clone());
        pages += 1;
        let (taken, ack) = oneshot::channel();
        let staged = Staged { number, rows, done: page.done, taken };
        inputs.push(Input::Staged(staged)).map_err(|_| FetchError::Superseded)?;
        ack.await.map_err(|_| FetchError::Superseded)?;
        if page.done {
            return Ok(pages);
        }
        if after.is_none() {
            return Err(FetchError::Superseded);
        }
    }
}
