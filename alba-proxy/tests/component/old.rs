//! What a proxy remembers may be old, and what it was told may be only half of the story (P22).

use crate::cluster::{Cluster, NAMESPACE, Setup, data, object, put_request};
use crate::fakes::FakeAsd;
use alba_proxy_core::Manifest;
use alba_proxy_core::manifest::Place;
use bytes::Bytes;
use model::Epoch;
use std::sync::Arc;
use std::time::Duration;
use wire::facts::key;
use wire::proxy::{self, code, method};

const LEN: usize = 200_000;

/// Somebody else moves as many fragments as make the old places too few.
fn move_three(cluster: &Cluster) {
    let record = key::manifest(NAMESPACE, object(1));
    let mut manifest = Manifest::from_bytes(&cluster.arakoon.get(&record).unwrap()).unwrap();
    let free: Vec<&Arc<FakeAsd>> = cluster.asds.iter().filter(|asd| asd.fragments() == 0).collect();
    assert_eq!(free.len(), 3);
    for (fragment, to) in manifest.fragments.iter_mut().zip(free) {
        let Place::Stored(osd) = fragment.place else { panic!("{fragment:?}") };
        let from = cluster.asds.iter().find(|asd| asd.osd == osd).unwrap();
        to.restore(from.erase());
        fragment.place = Place::Stored(to.osd);
    }
    cluster.arakoon.set(record, manifest.to_bytes());
}

#[tokio::test]
async fn p22_a_reader_who_finds_too_few_fragments_looks_anew_where_they_are() {
    let cluster = Cluster::start(Setup { asds: 9, proxies: 2, ..Setup::default() }).await;
    let payload = data(LEN, 1);
    cluster.put(1, payload.clone()).await.unwrap();
    assert_eq!(cluster.read_all(1, LEN).await.unwrap(), payload);
    move_three(&cluster);
    assert_eq!(cluster.read_all(1, LEN).await.unwrap(), payload, "moved is not lost");
    let delete =
        proxy::DeleteObjects { namespace: NAMESPACE, epoch: Epoch(1), objects: vec![object(1)] };
    let deleted = cluster.call::<_, ()>(1, method::DELETE_OBJECTS, &delete, Bytes::new()).await;
    deleted.unwrap();
    cluster.until_fragments(0).await;
    let gone = cluster.read_all(1, LEN).await.unwrap_err();
    assert_eq!(gone.code(), Some(code::NO_OBJECT), "deleted is not lost: {gone}");
}

#[tokio::test]
async fn p22_fragments_stay_while_it_isnt_known_whether_they_are_an_objects() {
    let cluster = Cluster::start(Setup::default()).await;
    let payload = data(LEN, 1);
    cluster.arakoon.silence();
    let put = put_request(1, &payload);
    let brief = Duration::from_secs(2);
    let unknown = cluster.put_briefly(&put, payload.clone(), brief).await.unwrap_err();
    let committed = cluster.arakoon.get(&key::manifest(NAMESPACE, object(1)));
    assert!(committed.is_some(), "{unknown}");
    cluster.arakoon.speak_again();
    // Whoever asks again hears that it is done; nothing of it may have been swept.
    cluster.put(1, payload.clone()).await.unwrap();
    cluster.until_fragments(6).await;
    assert_eq!(cluster.read_all(1, LEN).await.unwrap(), payload);
}
