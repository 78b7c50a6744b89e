//! Attachments: who may have a vDisk, and what becomes of it when edges come, go and die.

use crate::rig::{MIB, Rig, nbdsh, tool};
use std::time::Duration;

const HELLO: &str = "h.connect_uri(uri)\nh.pwrite(b'hello', 0)\n";

#[tokio::test]
async fn a_second_edge_is_refused_by_name_or_takes_over() {
    let rig = Rig::start(16 * MIB, "").await;
    nbdsh(&rig.edge().uri("demo"), HELLO).await;
    let polite = rig.another_edge("edge-2", "").await;
    let said = tool("nbdsh", &["-c", &format!("h.connect_uri('{}')", polite.uri("demo"))]).await;
    assert!(!said.ok);
    polite.stop().await;
    assert_eq!(rig.router.attached_edge("demo").as_deref(), Some("edge-1"));

    // The text that names the first edge reaches whoever asks.
    let polite = rig.another_edge("edge-3", "").await;
    let said = tool("qemu-img", &["info", &polite.uri("demo")]).await;
    assert!(
        !said.ok && said.err.contains("edge-1") && said.err.contains("take_over"),
        "{}",
        said.err
    );
    polite.stop().await;

    // One connection of the first edge stands while another edge takes over.
    let rude = rig.another_edge("edge-4", "take_over = true").await;
    let script = format!(
        "
h.connect_uri(uri)
h.pwrite(b'mine', 0)
other = nbd.NBD()
other.connect_uri('{}')
other.pwrite(b'ours', 0)
for attempt in range(2):
    try:
        h.pwrite(b'late', 0)
        raise AssertionError('a fenced edge still writes')
    except nbd.Error as error:
        assert error.errnum in (errno.EIO, errno.ESHUTDOWN), error
assert other.pread(4, 0) == b'ours'
",
        rude.uri("demo")
    );
    nbdsh(&rig.edge().uri("demo"), &script).await;
    rude.stop().await;
    rig.stop().await;
}

#[tokio::test]
async fn a_restarted_edge_reclaims_its_vdisk() {
    let mut rig = Rig::start(16 * MIB, "").await;
    nbdsh(&rig.edge().uri("demo"), HELLO).await;
    rig.edge.take().unwrap().kill();
    // The killed one's tasks share this process; what they do must not matter.
    let held = rig.router.attached_edge("demo");
    assert_eq!(held.as_deref(), Some("edge-1"), "nothing was detached");
    let again = loop {
        // The directory is free as soon as the killed edge is really gone.
        let config =
            crate::rig::configuration(rig.dir.path(), "edge-1", &rig.router_endpoint(), "");
        let lock = runtime::dirlock::DirLock::acquire(&config.data_dir);
        if lock.is_ok() {
            drop(lock);
            break rig.another_edge("edge-1", "").await;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    let script = "
h.connect_uri(uri)
h.pwrite(b'again', 5)
assert h.pread(10, 0) == b'helloagain'
";
    nbdsh(&again.uri("demo"), script).await;
    again.stop().await;
    assert_eq!(rig.router.attached_edge("demo"), None);
}

#[tokio::test]
async fn stopping_flushes_and_detaches() {
    let rig = Rig::start(16 * MIB, "").await;
    nbdsh(&rig.edge().uri("demo"), HELLO).await;
    let Rig { router, edge, dir: _dir } = rig;
    edge.unwrap().stop().await;
    assert_eq!(router.durable("demo", 0, 5), b"hello");
    assert_eq!(router.attached_edge("demo"), None);
    assert_eq!(router.counters(|counters| counters.detached), 1);
}

#[tokio::test]
async fn an_idle_vdisk_is_flushed_and_let_go_and_taken_again() {
    let rig = Rig::start(16 * MIB, "detach_after = '1s'").await;
    nbdsh(&rig.edge().uri("demo"), HELLO).await;
    while rig.router.attached_edge("demo").is_some() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(rig.router.durable("demo", 0, 5), b"hello");
    nbdsh(&rig.edge().uri("demo"), "h.connect_uri(uri)\nassert h.pread(5, 0) == b'hello'\n").await;
    assert_eq!(rig.router.attached_edge("demo").as_deref(), Some("edge-1"));
    rig.stop().await;
}

#[tokio::test]
async fn unflushed_writes_are_flushed_in_the_background() {
    let rig = Rig::start(16 * MIB, "").await;
    nbdsh(&rig.edge().uri("demo"), HELLO).await;
    while rig.edge().figure("unflushed_bytes").await > 0 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(rig.router.durable("demo", 0, 5), b"hello");
    rig.stop().await;
}

#[tokio::test]
async fn read_only_default_and_grown_exports() {
    let rig = Rig::start(16 * MIB, "read_only = ['golden']\ndefault_export = 'demo'").await;
    rig.router.create("golden", MIB);
    let script = "
h.connect_uri(uri + 'golden')
assert h.is_read_only()
h.set_strict_mode(0)
for change in (lambda: h.pwrite(b'x', 0), lambda: h.trim(1, 0), lambda: h.zero(1, 0)):
    try:
        change()
        raise AssertionError('read-only')
    except nbd.Error as error:
        assert error.errnum == errno.EPERM, error
assert h.pread(1, 0) == bytes(1)
default = nbd.NBD()
default.connect_uri(uri)
assert default.get_size() == 16 << 20
";
    nbdsh(&rig.edge().uri(""), script).await;
    let grow = "h.connect_uri(uri)\nassert h.get_size() == 16 << 20\n";
    nbdsh(&rig.edge().uri("demo"), grow).await;
    rig.router.resize("demo", 20 * MIB);
    let grown =
        "h.connect_uri(uri)\nassert h.get_size() == 20 << 20\nh.pwrite(b'x', (20 << 20) - 1)\n";
    nbdsh(&rig.edge().uri("demo"), grown).await;
    rig.stop().await;
}

#[tokio::test]
async fn a_deleted_vdisk_fails_its_users_and_no_one_else() {
    let rig = Rig::start(16 * MIB, "").await;
    rig.router.create("other", MIB);
    let (demo, other) = (rig.edge().uri("demo"), rig.edge().uri("other"));
    nbdsh(&demo, HELLO).await;
    nbdsh(&other, HELLO).await;
    rig.router.delete("demo");
    let said = tool("nbdinfo", &["--size", &demo]).await;
    assert!(!said.ok);
    nbdsh(&other, "h.connect_uri(uri)\nassert h.pread(5, 0) == b'hello'\n").await;
    let status = rig.edge().status().await;
    assert_eq!((status.role, status.state.as_str()), (wire::Role::Edge, "running"));
    assert!(status.details_json.contains("\"name\":\"other\""), "{}", status.details_json);
    assert!(status.details_json.contains(&rig.edge().tcp.to_string()), "{}", status.details_json);
    rig.stop().await;
}
