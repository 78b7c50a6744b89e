//! OSDs that are gone, full, silent, or rotten.

use crate::cluster::{Cluster, Setup, data, object};
use wire::facts::Encryption;
use wire::proxy::code;

const LEN: usize = 1 << 20;

fn count(status: &serde_json::Value, name: &str) -> u64 {
    status[name].as_u64().unwrap()
}

#[tokio::test]
async fn two_lost_disks_stop_nothing_and_a_third_loses_nothing_silently() {
    let mut cluster = Cluster::start(Setup::default()).await;
    cluster.put(1, data(LEN, 1)).await.unwrap();
    for lost in [0, 1] {
        cluster.servers[lost].down().await;
        cluster.asds[lost].erase();
    }
    assert_eq!(cluster.read_all(1, LEN).await.unwrap(), data(LEN, 1));
    // Writes go on, under whichever policy four OSDs can meet.
    for number in 2..=4 {
        let done = cluster.put(number, data(LEN, number)).await.unwrap();
        assert_eq!(done.policy, "2,2,3,1");
        assert_eq!(cluster.read_all(number, LEN).await.unwrap(), data(LEN, number));
    }
    cluster.until("the fallback is shown", 0, |s| s["active_policy"] == "2,2,3,1").await;

    cluster.servers[2].down().await;
    let error = cluster.read_all(1, LEN).await.unwrap_err();
    assert_eq!((error.code(), error.class()), (Some(code::UNREADABLE), wire::ErrorClass::Retry));
    let status = cluster.status(0).await;
    assert_eq!(status["lost_objects"].as_array().unwrap().len(), 1);
    assert_eq!(status["lost_objects"][0]["object"], object(1).to_string());
    // Under 2,2,3,1 on the four others one more may go.
    assert_eq!(cluster.read_all(2, LEN).await.unwrap(), data(LEN, 2));

    cluster.servers[2].up().await;
    cluster.until("the OSD is seen again", 0, |s| s["osds"][2]["state"] == "ok").await;
    // The alarm ends by itself, whether anybody reads or not.
    cluster.until("nothing is lost", 0, |s| s["lost_objects"].as_array().unwrap().is_empty()).await;
    assert_eq!(cluster.read_all(1, LEN).await.unwrap(), data(LEN, 1));
}

#[tokio::test]
async fn with_no_policy_left_writes_wait_and_go_on_when_osds_return() {
    let mut cluster = Cluster::start(Setup::default()).await;
    for lost in 0..4 {
        cluster.servers[lost].down().await;
    }
    let error = cluster.put(1, data(LEN, 1)).await.unwrap_err();
    assert_eq!((error.code(), error.class()), (Some(code::NO_POLICY), wire::ErrorClass::Retry));
    cluster.until("no policy is shown", 0, |s| s["active_policy"].is_null()).await;
    for lost in 0..4 {
        cluster.servers[lost].up().await;
    }
    cluster.until("the policy is back", 0, |s| s["active_policy"] == "4,2,5,1").await;
    cluster.put(1, data(LEN, 1)).await.unwrap();
    assert_eq!(cluster.read_all(1, LEN).await.unwrap(), data(LEN, 1));
}

#[tokio::test]
async fn holes_are_counted_and_filled_when_the_osd_returns() {
    let mut cluster = Cluster::start(Setup::default()).await;
    cluster.servers[5].down().await;
    for number in 1..=3 {
        let done = cluster.put(number, data(LEN, number)).await.unwrap();
        assert_eq!((done.holes, done.policy.as_str()), (1, "4,2,5,1"));
    }
    assert_eq!(cluster.health().await.holes, 3);
    assert_eq!(cluster.fill().await.holes, 3, "no OSD may take a second fragment");
    cluster.until("holes are shown", 0, |s| count(s, "holes") == 3).await;

    cluster.servers[5].up().await;
    cluster
        .until("holes are filled", 0, |s| count(s, "holes") == 0 && count(s, "filled_holes") == 3)
        .await;
    let health = cluster.health().await;
    assert_eq!(health.holes, 0);
    assert_eq!(cluster.asds[5].fragments(), 3);
    assert!(cluster.arakoon.keys("ns/").iter().all(|key| !key.contains("/hole/")));
    // What was filled is as good as what was written: any two others may go now.
    for lost in [0, 1] {
        cluster.servers[lost].down().await;
    }
    for number in 1..=3 {
        assert_eq!(cluster.read_all(number, LEN).await.unwrap(), data(LEN, number));
    }
}

#[tokio::test]
async fn two_proxies_may_fill_the_same_holes() {
    let mut cluster = Cluster::start(Setup { proxies: 2, ..Setup::default() }).await;
    cluster.servers[5].down().await;
    for number in 1..=6 {
        cluster.put(number, data(100_000, number)).await.unwrap();
    }
    cluster.servers[5].up().await;
    for proxy in 0..2 {
        cluster.until("it sees the OSD", proxy, |s| s["osds"][5]["state"] == "ok").await;
    }
    let namespace = crate::cluster::NAMESPACE;
    let body = wire::proxy::FillHoles { namespace };
    let fill = |proxy| {
        cluster.call::<_, wire::proxy::Health>(
            proxy,
            wire::proxy::method::FILL_HOLES,
            &body,
            bytes::Bytes::new(),
        )
    };
    let (a, b) = tokio::join!(fill(0), fill(1));
    a.unwrap();
    b.unwrap();
    cluster.until("none is left", 1, |s| count(s, "holes") == 0).await;
    let health = cluster.health().await;
    assert_eq!((health.objects, health.holes), (6, 0));
    cluster.until_fragments(6 * 6).await;
}

#[tokio::test]
async fn rot_is_served_from_parity_counted_and_repaired() {
    let cluster = Cluster::start(Setup::default()).await;
    cluster.put(1, data(LEN, 1)).await.unwrap();
    let mut noticed = 0;
    for asd in &cluster.asds {
        asd.rot();
        assert_eq!(cluster.read_all(1, LEN).await.unwrap(), data(LEN, 1));
        let corrupt = count(&cluster.status(0).await, "corrupt_fragments");
        if corrupt > noticed {
            noticed = corrupt;
            cluster.until("it is repaired", 0, |s| count(s, "repaired_fragments") == noticed).await;
        } else {
            // Parity, which nobody asked for: the same flip again makes it sound.
            asd.rot();
        }
    }
    assert_eq!(noticed, 4, "each data fragment once");
    let degraded = count(&cluster.status(0).await, "degraded_reads");
    assert_eq!(degraded, 4);
    // What was repaired is read directly again.
    assert_eq!(cluster.read_all(1, LEN).await.unwrap(), data(LEN, 1));
    assert_eq!(count(&cluster.status(0).await, "degraded_reads"), degraded);
}

#[tokio::test]
async fn a_disk_that_lies_is_caught_by_the_frames_themselves() {
    for encryption in [Encryption::Aes256Gcm, Encryption::Off] {
        for liars in 1..=3 {
            let cluster = Cluster::start(Setup { encryption, ..Setup::default() }).await;
            cluster.put(1, data(LEN, 1)).await.unwrap();
            for asd in &cluster.asds[..liars] {
                asd.rot_and_lie();
            }
            match cluster.read_all(1, LEN).await {
                Ok(bytes) => {
                    assert!(liars <= 2);
                    assert_eq!(bytes, data(LEN, 1), "{encryption:?}");
                }
                // More lies than parity can outvote: an error, never other bytes.
                Err(error) => {
                    assert_eq!((liars, error.code()), (3, Some(code::UNREADABLE)), "{error}");
                }
            }
        }
    }
}

#[tokio::test]
async fn full_disks_get_nothing_and_are_no_failure() {
    let cluster = Cluster::start(Setup { asds: 7, ..Setup::default() }).await;
    cluster.asds[0].fill_up();
    for number in 1..=4 {
        let done = cluster.put(number, data(50_000, number)).await.unwrap();
        assert_eq!(done.holes, 0, "the seventh takes what the full one doesn't");
    }
    assert_eq!(cluster.asds[0].fragments(), 0);
    cluster.until("full is shown", 0, |s| s["osds"][0]["state"] == "full").await;
    cluster.asds[0].make_room();
    cluster.until("room again", 0, |s| s["osds"][0]["state"] == "ok").await;
}

#[tokio::test]
async fn a_silent_disk_delays_neither_reads_nor_writes_for_long() {
    let cluster = Cluster::start(Setup::default()).await;
    cluster.put(1, data(LEN, 1)).await.unwrap();
    cluster.asds[3].stall();
    let begin = tokio::time::Instant::now();
    assert_eq!(cluster.read_all(1, LEN).await.unwrap(), data(LEN, 1));
    let done = cluster.put(2, data(LEN, 2)).await.unwrap();
    assert!(done.holes <= 1);
    // A get would wait 2 s, a put 5 s for it.
    assert!(begin.elapsed() < std::time::Duration::from_secs(4), "{:?}", begin.elapsed());
    cluster.asds[3].resume();
    cluster.until("holes are filled", 0, |s| count(s, "holes") == 0).await;
    assert_eq!(cluster.read_all(2, LEN).await.unwrap(), data(LEN, 2));
}

#[tokio::test]
async fn a_disk_that_comes_back_empty_is_written_again_as_it_is_read() {
    let cluster = Cluster::start(Setup { policies: "1,2,3,1", asds: 3, ..Setup::default() }).await;
    cluster.put(1, data(10_000, 1)).await.unwrap();
    let mut missed = 0;
    for asd in &cluster.asds {
        let kept = asd.erase();
        assert_eq!(cluster.read_all(1, 10_000).await.unwrap(), data(10_000, 1));
        let missing = count(&cluster.status(0).await, "missing_fragments");
        if missing > missed {
            missed = missing;
            cluster.until("it is rewritten", 0, |s| count(s, "repaired_fragments") == missed).await;
            assert_eq!(asd.fragments(), 1);
        } else {
            asd.restore(kept);
        }
    }
    assert_eq!(missed, 1, "one copy is the one that is read");
}
