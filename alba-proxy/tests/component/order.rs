//! Whose turn it is: heads, epochs, repeated puts.

use crate::cluster::{Cluster, NAMESPACE, Setup, data, object, object_at, put_request};
use bytes::Bytes;
use model::{Epoch, NamespaceId};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio::task::JoinSet;
use wire::facts::key;
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

#[tokio::test]
async fn p20_an_object_costs_one_transaction_with_its_head_and_each_fragment_once() {
    let cluster = Cluster::start(Setup::default()).await;
    let head = key::namespace_head(NAMESPACE);
    for number in 1..=3 {
        cluster.put(number, data(4 << 20, number)).await.unwrap();
        let manifest = key::manifest(NAMESPACE, object(number));
        let made = cluster.arakoon.transactions_on(std::slice::from_ref(&manifest));
        assert_eq!(made.len(), 1, "object {number}");
        assert!(made[0].contains(&head), "object {number} was there before its head");
    }
    assert_eq!(cluster.arakoon.transactions_on(&[head]).len(), 3, "the head moves with an object");
    let puts = cluster.asds.iter().map(|asd| asd.puts.load(Ordering::SeqCst));
    assert_eq!(puts.sum::<u64>(), 3 * 6);
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

/// L4: a namespace beside another is its holder's to make, and nobody's once that one is being deleted.
#[tokio::test]
async fn a_namespace_beside_another_is_made_by_its_holder_alone() {
    let cluster = Cluster::start(Setup { proxies: 2, ..Setup::default() }).await;
    cluster.put(1, data(1000, 1)).await.unwrap();
    let other = NamespaceId(NAMESPACE.0 ^ 5);
    let beside = |epoch, via| {
        let create =
            proxy::CreateBeside { namespace: other, beside: NAMESPACE, epoch: Epoch(epoch) };
        let cluster = &cluster;
        async move {
            let made = cluster.call::<_, ()>(via, method::CREATE_BESIDE, &create, Bytes::new());
            made.await.map(|_| ()).map_err(|error| error.code())
        }
    };
    cluster.raise_epoch(3).await.unwrap();
    assert_eq!(beside(2, 0).await, Err(Some(code::FENCED)));
    assert_eq!(beside(4, 0).await, Err(Some(code::FENCED)), "it never got there");
    for via in [0, 1, 0] {
        beside(3, via).await.unwrap();
    }
    let head = || async {
        let ask = proxy::ReadHead { namespace: other };
        cluster.ask::<_, Head>(method::READ_HEAD, &ask).await.map_err(|error| error.code())
    };
    assert_eq!(head().await.unwrap().epoch, Epoch(3));
    // Objects in it are objects like any other, of the same preset.
    let payload = data(1000, 9);
    let mut request = put_request(1, &payload);
    (request.namespace, request.epoch, request.object) = (other, Epoch(3), object_at(3, 1));
    cluster.put_via(0, &request, payload).await.unwrap();
    cluster.raise_epoch(5).await.unwrap();
    assert_eq!(beside(3, 1).await, Err(Some(code::FENCED)));
    beside(5, 1).await.unwrap();
    assert_eq!(head().await.unwrap().epoch, Epoch(5), "raised");
    // The first goes; then nobody makes the second anew.
    for namespace in [NAMESPACE, other] {
        let delete = proxy::DeleteNamespace { namespace, epoch: Epoch(5) };
        cluster.ask::<_, ()>(method::DELETE_NAMESPACE, &delete).await.unwrap();
        assert_eq!(beside(5, 0).await, Err(Some(code::NO_NAMESPACE)));
    }
    assert_eq!(head().await, Err(Some(code::NO_NAMESPACE)));
    cluster.until_fragments(0).await;
}

/// L4: who holds the one namespace is asserted by the very transaction that makes the other.
#[tokio::test]
async fn a_namespace_beside_another_is_not_made_once_that_changed_hands() {
    let cluster = Cluster::start(Setup::default()).await;
    cluster.raise_epoch(3).await.unwrap();
    let namespace = NamespaceId(NAMESPACE.0 ^ 5);
    // Claimed between the look and the transaction.
    let epoch = key::namespace_epoch(NAMESPACE);
    cluster.arakoon.change_before_next(epoch, Bytes::from(4_u64.to_le_bytes().to_vec()));
    let create = proxy::CreateBeside { namespace, beside: NAMESPACE, epoch: Epoch(3) };
    let made: Result<(), _> = cluster.ask(method::CREATE_BESIDE, &create).await;
    assert_eq!(made.unwrap_err().code(), Some(code::FENCED));
    assert_eq!(cluster.arakoon.keys("proxy/namespace/").len(), 1);
}
