//! Whose turn it is: heads, epochs, repeated puts.

use crate::cluster::{Cluster, NAMESPACE, Setup, data, object, object_at, put_request};
use bytes::Bytes;
use model::Epoch;
use std::sync::Arc;
use tokio::task::JoinSet;
use wire::proxy::{self, Head, code, method};

#[tokio::test]
async fn puts_under_way_together_commit_in_the_order_of_their_heads() {
    let cluster = Arc::new(Cluster::start(Setup { proxies: 2, ..Setup::default() }).await);
    let mut puts = JoinSet::new();
    // Sent last first, over both proxies.
    for number in (1..=12).rev() {
        let cluster = Arc::clone(&cluster);
        puts.spawn(async move {
            let payload = data(30_000, number);
            let request = put_request(number, &payload);
            let proxy = usize::try_from(number % 2).unwrap();
            cluster.put_via(proxy, &request, payload).await.unwrap();
        });
    }
    while let Some(done) = puts.join_next().await {
        done.unwrap();
    }
    let head: Head =
        cluster.ask(method::READ_HEAD, &proxy::ReadHead { namespace: NAMESPACE }).await.unwrap();
    assert_eq!((head.head, head.epoch), (Some(object(12)), Epoch(1)));
    assert_eq!(head.meta, "meta 12");
    for number in 1..=12 {
        assert_eq!(cluster.read_all(number, 30_000).await.unwrap(), data(30_000, number));
    }
}

#[tokio::test]
async fn a_head_that_is_another_one_is_told() {
    let cluster = Cluster::start(Setup::default()).await;
    for number in 1..=2 {
        cluster.put(number, data(10, number)).await.unwrap();
    }
    let payload = data(10, 3);
    let mut request = put_request(3, &payload);
    request.expected_head = Some(object(1));
    let error = cluster.put_via(0, &request, payload).await.unwrap_err();
    assert_eq!(error.code(), Some(code::WRONG_HEAD));
    let runtime::rpc::CallError::Refused(error) = error else { panic!("{error}") };
    let head: Head = wire::decode_all(error.detail).unwrap();
    assert_eq!(head.head, Some(object(2)));
    // Its fragments are nobody's.
    cluster.until_fragments(2 * 3).await;
}

/// h_07.
#[tokio::test]
async fn a_lower_epoch_is_fenced_everywhere() {
    let cluster = Cluster::start(Setup::default()).await;
    cluster.put(1, data(100_000, 1)).await.unwrap();
    cluster.raise_epoch(5).await.unwrap();
    cluster.raise_epoch(5).await.unwrap();
    let error = cluster.raise_epoch(4).await.unwrap_err();
    assert_eq!(error.code(), Some(code::FENCED));
    let error = cluster.put(2, data(100_000, 2)).await.unwrap_err();
    assert_eq!(error.code(), Some(code::FENCED));
    let runtime::rpc::CallError::Refused(error) = error else { panic!("{error}") };
    assert_eq!(wire::decode_all(error.detail), Ok(Epoch(5)));
    cluster.until_fragments(6).await;

    // The new owner goes on from the head it reads.
    let payload = data(100_000, 2);
    let mut request = put_request(2, &payload);
    request.object = object_at(5, 1);
    request.epoch = Epoch(5);
    cluster.put_via(0, &request, payload.clone()).await.unwrap();
    let read = cluster.read(object_at(5, 1), &[(0, 100_000)]).await.unwrap();
    assert_eq!(read, payload);
}

#[tokio::test]
async fn a_put_asked_again_elsewhere_happens_once() {
    let cluster = Cluster::start(Setup { proxies: 2, ..Setup::default() }).await;
    let payload = data(200_000, 1);
    let request = put_request(1, &payload);
    cluster.put_via(0, &request, payload.clone()).await.unwrap();
    // The answer was lost; another proxy is asked, after others have committed too, and even after a fence.
    cluster.put(2, data(10, 2)).await.unwrap();
    let again = cluster.put_via(1, &request, payload.clone()).await.unwrap();
    assert_eq!((again.holes, again.policy.as_str()), (0, "4,2,5,1"));
    assert_eq!(cluster.health().await.objects, 2);
    // Six of the first, three of the second (one frame, two copies), none of the second attempt.
    cluster.until_fragments(6 + 3).await;
    assert_eq!(cluster.read_all(1, 200_000).await.unwrap(), payload);

    // Other bytes under the same name never replace it.
    let other = data(200_000, 99);
    let mut conflicting = put_request(1, &other);
    conflicting.checksum = codec::crc32c(&other);
    let error = cluster.put_via(1, &conflicting, other).await.unwrap_err();
    assert_eq!(error.code(), Some(code::CONFLICT));
    cluster.until_fragments(6 + 3).await;
    assert_eq!(cluster.read_all(1, 200_000).await.unwrap(), payload);
}

#[tokio::test]
async fn creating_twice_is_once() {
    let cluster = Cluster::start(Setup { proxies: 2, ..Setup::default() }).await;
    cluster.put(1, data(1000, 1)).await.unwrap();
    cluster.create_namespace(1).await.unwrap();
    assert_eq!(cluster.read_all(1, 1000).await.unwrap(), data(1000, 1));
    assert_eq!(cluster.arakoon.keys("proxy/namespace/").len(), 1);
    let done: Result<((), Bytes), _> = cluster.call(1, 999, &(), Bytes::new()).await;
    assert_eq!(done.unwrap_err().code(), Some(wire::error::code::UNKNOWN_METHOD));
}
