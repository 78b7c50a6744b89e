//! What goes in comes out, whole and in parts; and what lies on disks says nothing.

use crate::cluster::{Cluster, NAMESPACE, Setup, data, object, put_request};
use bytes::Bytes;
use model::Epoch;
use std::sync::atomic::Ordering;
use wire::facts::{Compression, Encryption};
use wire::proxy::{self, code, method};

#[tokio::test]
async fn objects_of_any_size_come_back_whole_and_in_parts() {
    let cluster = Cluster::start(Setup::default()).await;
    let sizes = [0, 1, 100, 4096, 16_448, 16_449, 70_000, 1 << 20, (4 << 20) + 333];
    let (mut number, mut plain_bytes) = (0, 0);
    for size in sizes {
        number += 1;
        let payload = data(size, number);
        let done = cluster.put(number, payload.clone()).await.unwrap();
        assert_eq!((done.holes, done.policy.as_str()), (0, "4,2,5,1"));
        assert_eq!(cluster.read_all(number, size).await.unwrap(), payload, "{size} bytes");
        plain_bytes += u64::try_from(size).unwrap();
    }
    let health = cluster.health().await;
    assert_eq!((health.objects, health.plain_bytes, health.holes), (number, plain_bytes, 0));

    // Parts of the largest: over frames and fragments, overlapping, in any order, and empty.
    let size = *sizes.last().unwrap();
    let whole = data(size, number);
    let end = u64::try_from(size).unwrap();
    let ranges = [
        (0, 1),
        (end - 5, 5),
        (16_000, 1000),
        (1 << 20, 2 << 20),
        (16_448, 16_448),
        (5, 0),
        (1 << 20, 4096),
    ];
    let parts = cluster.read(object(number), &ranges).await.unwrap();
    let expected: Vec<u8> = ranges
        .iter()
        .flat_map(|(at, len)| {
            whole[usize::try_from(*at).unwrap()..][..usize::try_from(*len).unwrap()].to_vec()
        })
        .collect();
    assert_eq!(parts, expected);
    let beyond = cluster.read(object(number), &[(end - 1, 2)]).await.unwrap_err();
    assert_eq!(beyond.code(), Some(wire::error::code::BAD_MESSAGE));
}

#[tokio::test]
async fn a_small_read_costs_one_frame_of_one_disk() {
    let setup = Setup { compression: Compression::Off, ..Setup::default() };
    let cluster = Cluster::start(setup).await;
    cluster.put(1, data(4 << 20, 1)).await.unwrap();
    let read = || cluster.asds.iter().map(|asd| asd.bytes_read.load(Ordering::SeqCst)).sum::<u64>();
    let before = read();
    cluster.read(object(1), &[(2_000_000, 4096)]).await.unwrap();
    // P25: 4096 bytes at 2,000,000 lie in one frame of 16,448 and its tag.
    assert_eq!(read() - before, 16_448 + 16);
}

#[tokio::test]
async fn plaintext_is_on_no_disk_at_any_compression() {
    let marker = b"the secret that must not be found on any disk";
    for compression in [Compression::Off, Compression::Adaptive, Compression::Always] {
        let cluster = Cluster::start(Setup { compression, ..Setup::default() }).await;
        // Among noise too, where frames are stored raw.
        let mut payload = data(300_000, 3).to_vec();
        for at in [0, 25_000, 70_000, 299_000] {
            payload[at..at + marker.len()].copy_from_slice(marker);
        }
        let payload = Bytes::from(payload);
        cluster.put(1, payload.clone()).await.unwrap();
        assert!(!cluster.asds.iter().any(|asd| asd.contains(&marker[..16])), "{compression:?}");
        assert_eq!(cluster.read_all(1, payload.len()).await.unwrap(), payload);
    }
    // The same search finds it where nothing is encrypted: it does look.
    let open = Setup { encryption: Encryption::Off, ..Setup::default() };
    let cluster = Cluster::start(open).await;
    let payload = Bytes::from([&data(20_000, 3)[..], marker].concat());
    cluster.put(1, payload).await.unwrap();
    assert!(cluster.asds.iter().any(|asd| asd.contains(&marker[..16])));
}

/// h_18.
#[tokio::test]
async fn objects_are_listed_in_order_and_deleted_with_their_fragments() {
    let cluster = Cluster::start(Setup::default()).await;
    for number in 1..=5 {
        cluster.put(number, data(200_000, number)).await.unwrap();
    }
    let list = |after, limit| proxy::ListObjects { namespace: NAMESPACE, after, limit };
    let page: proxy::Objects = cluster.ask(method::LIST_OBJECTS, &list(None, 3)).await.unwrap();
    let ids: Vec<_> = page.objects.iter().map(|info| info.object).collect();
    assert_eq!((ids, page.more), (vec![object(1), object(2), object(3)], true));
    let page: proxy::Objects =
        cluster.ask(method::LIST_OBJECTS, &list(Some(object(3)), 3)).await.unwrap();
    assert_eq!((page.objects.len(), page.more), (2, false));
    assert_eq!(page.objects[1].meta, "meta 5");
    assert_eq!(page.objects[1].plain_len, 200_000);

    // The head goes too: the chain stays readable.
    let delete = |epoch, objects: &[u64]| proxy::DeleteObjects {
        namespace: NAMESPACE,
        epoch: Epoch(epoch),
        objects: objects.iter().map(|number| object(*number)).collect(),
    };
    let fenced = cluster.ask::<_, ()>(method::DELETE_OBJECTS, &delete(0, &[5])).await.unwrap_err();
    assert_eq!(fenced.code(), Some(code::FENCED));
    cluster.ask::<_, ()>(method::DELETE_OBJECTS, &delete(1, &[2, 5, 99])).await.unwrap();
    let gone = cluster.read_all(5, 10).await.unwrap_err();
    assert_eq!(gone.code(), Some(code::NO_OBJECT));
    let head: proxy::Head =
        cluster.ask(method::READ_HEAD, &proxy::ReadHead { namespace: NAMESPACE }).await.unwrap();
    assert_eq!((head.head, head.meta.as_ref()), (Some(object(5)), b"meta 5".as_slice()));
    cluster.until_fragments(3 * 6).await;
    assert_eq!(cluster.health().await.objects, 3);

    let delete = proxy::DeleteNamespace { namespace: NAMESPACE, epoch: Epoch(1) };
    cluster.ask::<_, ()>(method::DELETE_NAMESPACE, &delete).await.unwrap();
    cluster.ask::<_, ()>(method::DELETE_NAMESPACE, &delete).await.unwrap();
    let none = cluster.read_all(1, 10).await.unwrap_err();
    assert_eq!(none.code(), Some(code::NO_NAMESPACE));
    cluster.until_fragments(0).await;
    let put = cluster.put(6, data(10, 6)).await.unwrap_err();
    assert_eq!(put.code(), Some(code::NO_NAMESPACE));
}

#[tokio::test]
async fn nonsense_is_refused_by_name() {
    let cluster = Cluster::start(Setup::default()).await;
    let payload = data(1000, 1);
    let good = put_request(1, &payload);
    let with = |change: &dyn Fn(&mut proxy::PutObject)| {
        let mut request = good.clone();
        change(&mut request);
        request
    };
    for (request, want) in [
        (with(&|r| r.frame_size = 100), wire::error::code::BAD_MESSAGE),
        (with(&|r| r.frame_size = 65_793), wire::error::code::BAD_MESSAGE),
        (with(&|r| r.meta = Bytes::from(vec![0; 5000])), wire::error::code::BAD_MESSAGE),
        (with(&|r| r.checksum ^= 1), wire::error::code::NONE),
        (with(&|r| r.namespace = model::NamespaceId(8)), code::NO_NAMESPACE),
    ] {
        let error = cluster.put_via(0, &request, payload.clone()).await.unwrap_err();
        assert_eq!(error.code(), Some(want), "{error}");
    }
    let missing = proxy::CreateNamespace { namespace: model::NamespaceId(9), preset: "x".into() };
    let error = cluster.ask::<_, ()>(method::CREATE_NAMESPACE, &missing).await.unwrap_err();
    assert_eq!(error.code(), Some(code::NO_PRESET));
    assert_eq!(cluster.health().await.objects, 0);
    cluster.until_fragments(0).await;
}
