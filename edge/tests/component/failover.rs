//! Routers that die, restart, lose what wasn't flushed, redirect, fall silent, or answer damaged data.

use crate::fake_router::FakeRouter;
use crate::rig::{MIB, Rig, RunningEdge, good, nbdsh, noise, tool};
use std::time::Duration;

/// h_02.
#[tokio::test]
async fn acknowledged_writes_outlive_a_router_that_lost_them() {
    let mut rig = Rig::start(16 * MIB, "").await;
    let uri = rig.edge().uri("demo");
    let data = noise(4, 3 << 20);
    std::fs::write(rig.path("data"), &data).unwrap();
    let file = rig.path("data");
    let write = format!(
        "data = open('{}', 'rb').read()\nh.connect_uri(uri)\n\
         for at in range(0, len(data), 9000):\n    h.pwrite(data[at:at + 9000], at)\n",
        file.display()
    );
    nbdsh(&uri, &write).await;
    let lost = rig.router.die(3).await;
    assert!(lost > 10, "only {lost} writes were lost: the test proves nothing");
    assert!(rig.router.live("demo", 0, 3 << 20) != data, "they are gone at the router");
    rig.router.come_back().await;
    let read = format!(
        "data = open('{}', 'rb').read()\nh.connect_uri(uri)\nassert h.pread(len(data), 0) == data\nh.flush()\n",
        file.display()
    );
    nbdsh(&uri, &read).await;
    assert!(rig.router.durable("demo", 0, 3 << 20) == data);
    assert_eq!(rig.edge().figure("reconnects").await, 1);
    assert_eq!(rig.edge().figure("replayed").await as usize, lost);
    assert_eq!(rig.edge().figure("errors").await, 0);
    assert_eq!(rig.edge().figure("unflushed_bytes").await, 0, "flushed is forgotten");
    rig.stop().await;
}

#[tokio::test]
async fn a_verifying_load_survives_deaths_and_cuts() {
    const DEATHS: usize = 24;
    let mut rig = Rig::start(32 * MIB, "replay_log = '8MiB'").await;
    let uri = format!("--uri={}", rig.edge().unix_uri("demo"));
    let args = [
        "--name=load",
        "--ioengine=nbd",
        &uri,
        "--rw=randwrite",
        "--bsrange=512-128k",
        "--blockalign=512",
        "--iodepth=16",
        "--size=32M",
        "--io_size=64M",
        "--fsync=97",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--do_verify=1",
        "--randseed=11",
    ];
    let load = good("fio", &args);
    tokio::pin!(load);
    let mut deaths = 0_usize;
    let said = loop {
        tokio::select! {
            said = &mut load => break said,
            // With deaths for ever, a slow machine might never get its replay done between two of them.
            () = tokio::time::sleep(Duration::from_millis(150)), if deaths < DEATHS => {
                if deaths % 3 == 2 {
                    rig.router.cut_connections().await;
                } else {
                    rig.router.die(deaths % 5).await;
                    rig.router.come_back().await;
                }
                deaths += 1;
            }
        }
    };
    assert!(said.contains("err= 0"), "{said}");
    assert!(deaths > 0, "the load was over before anything happened");
    rig.stop().await;
}

/// h_01.
#[tokio::test]
async fn requests_wait_for_a_router_that_is_away() {
    let mut rig = Rig::start(16 * MIB, "").await;
    let uri = rig.edge().uri("demo");
    nbdsh(&uri, "h.connect_uri(uri)\nh.pwrite(b'before', 0)\n").await;
    rig.router.die(usize::MAX).await;
    let script =
        "h.connect_uri(uri)\nh.pwrite(b'during', 6)\nassert h.pread(12, 0) == b'beforeduring'\n";
    // A connection that stands, and one that only comes now, both wait; nothing fails.
    let during = nbdsh(&uri, script);
    let back = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        rig.router.come_back().await;
    };
    tokio::join!(during, back);
    rig.stop().await;
}

/// h_04.
#[tokio::test]
async fn with_a_deadline_a_hanging_request_becomes_an_error() {
    let rig = Rig::start(16 * MIB, "io_deadline = '1s'").await;
    let uri = rig.edge().uri("demo");
    nbdsh(&uri, "h.connect_uri(uri)\nh.pwrite(b'x', 0)\n").await;
    rig.router.faults(|faults| faults.mute = true);
    let script = "
h.connect_uri(uri)
try:
    h.pwrite(b'y', 0)
    raise AssertionError('should fail')
except nbd.Error as error:
    assert error.errnum == errno.EIO
";
    // The handshake asks for the size too; the silent router must not stop it.
    nbdsh(&uri, script).await;
    rig.router.faults(|faults| faults.mute = false);
    rig.stop().await;
}

#[tokio::test]
async fn lost_answers_are_not_applied_twice() {
    let mut rig = Rig::start(16 * MIB, "").await;
    let uri = rig.edge().uri("demo");
    nbdsh(&uri, "h.connect_uri(uri)\nh.pwrite(b'A', 0)\n").await;
    rig.router.faults(|faults| faults.mute = true);
    let script = "
h.connect_uri(uri)
first = h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(b'B' * 8192)), 0)
second = h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(b'C' * 100)), 50, flags=nbd.CMD_FLAG_FUA)
while h.aio_in_flight() > 0:
    h.poll(-1)
assert h.aio_command_completed(first) and h.aio_command_completed(second)
assert h.pread(200, 0) == b'B' * 50 + b'C' * 100 + b'B' * 50
";
    let load = nbdsh(&uri, script);
    let cut = async {
        while rig.router.live("demo", 0, 1) != b"B" {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        rig.router.faults(|faults| faults.mute = false);
        rig.router.cut_connections().await;
    };
    tokio::join!(load, cut);
    rig.stop().await;
}

#[tokio::test]
async fn redirects_are_followed() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| format!("unix:{}/{name}", dir.path().display());
    let owner = FakeRouter::start(&at("owner"), &[("demo", 16 * MIB)]).await;
    let other = owner.bystander(&at("other")).await;
    // The edge knows only the router that doesn't own the vDisk.
    let edge = RunningEdge::start(dir.path(), "edge-1", &other, "").await;
    nbdsh(
        &edge.uri("demo"),
        "h.connect_uri(uri)\nh.pwrite(b'x', 5)\nassert h.pread(1, 5) == b'x'\n",
    )
    .await;
    let status = edge.status().await;
    assert!(status.details_json.contains("owner"), "{}", status.details_json);
    edge.stop().await;
}

/// It answers, so nothing else would make the edge suspect it.
#[tokio::test]
async fn p19_an_owner_with_a_gap_is_contested_at_another_router() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| format!("unix:{}/{name}", dir.path().display());
    let owner = FakeRouter::start(&at("owner"), &[("demo", 16 * MIB)]).await;
    let other = owner.bystander(&at("other")).await;
    owner.faults(|faults| faults.gap = true);
    let edge = RunningEdge::start(dir.path(), "edge-1", &other, "failover_after = '1s'").await;
    nbdsh(&edge.uri("demo"), "h.connect_uri(uri)\nh.pwrite(b'x', 5)\n").await;
    assert_eq!(owner.counters(|counters| counters.contests), 1);
    edge.stop().await;
}

/// h_14. Asked again it says the same; it hasn't got what it lacks.
#[tokio::test]
async fn p19_an_owner_without_room_is_contested_at_another_router() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| format!("unix:{}/{name}", dir.path().display());
    let owner = FakeRouter::start(&at("owner"), &[("demo", 16 * MIB)]).await;
    let other = owner.bystander(&at("other")).await;
    owner.faults(|faults| faults.no_room = true);
    let edge = RunningEdge::start(dir.path(), "edge-1", &other, "failover_after = '1s'").await;
    nbdsh(&edge.uri("demo"), "h.connect_uri(uri)\nh.pwrite(b'x', 5)\n").await;
    assert_eq!(owner.counters(|counters| counters.contests), 1);
    edge.stop().await;
}

/// It answers whatever it is asked, if only with "later": where all that users wait for are reads, no call is ever late.
#[tokio::test]
async fn p19_an_owner_that_may_not_read_is_contested_though_nothing_but_reads_wait() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| format!("unix:{}/{name}", dir.path().display());
    let owner = FakeRouter::start(&at("owner"), &[("demo", 16 * MIB)]).await;
    let other = owner.bystander(&at("other")).await;
    let edge = RunningEdge::start(dir.path(), "edge-1", &other, "failover_after = '1s'").await;
    nbdsh(&edge.uri("demo"), "h.connect_uri(uri)\nh.pwrite(b'x', 5)\nh.flush()\n").await;
    owner.faults(|faults| faults.no_right = true);
    nbdsh(&edge.uri("demo"), "h.connect_uri(uri)\nassert h.pread(1, 5) == b'x'\n").await;
    assert_eq!(owner.counters(|counters| counters.contests), 1);
    edge.stop().await;
}

/// It found the owner gone, which is back since.
#[tokio::test]
async fn p19_a_gap_elsewhere_leads_to_the_owner() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| format!("unix:{}/{name}", dir.path().display());
    let owner = FakeRouter::start(&at("owner"), &[("demo", 16 * MIB)]).await;
    let other = owner.bystander(&at("other")).await;
    owner.faults(|faults| faults.gap_elsewhere = true);
    let edge = RunningEdge::start(dir.path(), "edge-1", &other, "failover_after = '1s'").await;
    nbdsh(&edge.uri("demo"), "h.connect_uri(uri)\nh.pwrite(b'x', 5)\n").await;
    assert_eq!(owner.counters(|counters| counters.contests), 0);
    edge.stop().await;
}

/// h_20.
#[tokio::test]
async fn damaged_reads_are_asked_again_and_never_passed_on() {
    let rig = Rig::start(16 * MIB, "").await;
    let uri = rig.edge().uri("demo");
    nbdsh(&uri, "h.connect_uri(uri)\nh.pwrite(b'intact', 0)\n").await;
    rig.router.faults(|faults| faults.corrupt_reads = 1);
    nbdsh(&uri, "h.connect_uri(uri)\nassert h.pread(6, 0) == b'intact'\n").await;
    assert_eq!(rig.edge().figure("damaged").await, 1);
    rig.router.faults(|faults| faults.corrupt_reads = 100);
    let script = "
h.connect_uri(uri)
try:
    h.pread(6, 0)
    raise AssertionError('damaged data were passed on')
except nbd.Error as error:
    assert error.errnum == errno.EIO
";
    nbdsh(&uri, script).await;
    assert!(rig.edge().figure("errors").await >= 1);
    rig.router.faults(|faults| faults.corrupt_reads = 0);
    nbdsh(&uri, "h.connect_uri(uri)\nassert h.pread(6, 0) == b'intact'\n").await;
    rig.stop().await;
}

#[tokio::test]
async fn what_the_backend_lost_is_an_error_and_comes_back() {
    let rig = Rig::start(16 * MIB, "").await;
    let uri = rig.edge().uri("demo");
    rig.router.faults(|faults| faults.unreadable = true);
    let script = "
h.connect_uri(uri)
h.pwrite(b'x', 9)
try:
    h.pread(6, 0)
    raise AssertionError('zeroes instead of an error')
except nbd.Error as error:
    assert error.errnum == errno.EIO
";
    nbdsh(&uri, script).await;
    rig.router.faults(|faults| faults.unreadable = false);
    nbdsh(&uri, "h.connect_uri(uri)\nassert h.pread(1, 9) == b'x'\n").await;
    rig.stop().await;
}

#[tokio::test]
async fn an_edge_without_any_router_says_so() {
    let mut rig = Rig::start(16 * MIB, "").await;
    rig.router.die(0).await;
    let said = tool("nbdinfo", &["--size", &rig.edge().uri("demo")]).await;
    assert!(!said.ok);
    assert!(said.err.contains("no router answers") || said.err.contains("shut"), "{}", said.err);
    rig.router.come_back().await;
    rig.stop().await;
}
