//! Whole daemons on real directories, spoken to over their own protocol: what goes in comes out, damage is found, an index
//! is derived, a kill loses nothing that was acknowledged, and odd directories get clear errors.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use asd::{Config, RunError, run};
use asd_core::crc::{blocks, crc32c};
use bytes::Bytes;
use model::{ByteSize, OsdId};
use runtime::endpoint::Endpoint;
use runtime::peer::Identity;
use runtime::rpc::{Call, CallError, Client, ClientOptions};
use runtime::shutdown::Shutdown;
use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;
use tokio::task::JoinHandle;
use wire::asd::{
    Delete, DiskState, GetItem, GetResult, GetResults, GetStatus, List, Listing, MultiGet,
    MultiPut, Priority, PutCondition, PutItem, PutResult, PutResults, Stats, Verify, VerifyResults,
    method,
};
use wire::common::Status;
use wire::{Decode, Encode, ErrorClass, Role};

const CLUSTER: &str = "test";
const PATIENCE: Duration = Duration::from_secs(60);
/// Tells a copy of this test program to be the daemon, see [`daemon_process`].
const CHILD_DIR: &str = "HOLDFAST_ASD_TEST_DIR";

fn config(dir: &Path) -> Config {
    Config {
        name: "asd-1".to_owned(),
        cluster: CLUSTER.to_owned(),
        data_dir: dir.join("disk"),
        listen: Endpoint::Unix(dir.join("socket")),
        capacity: Some(ByteSize(256 << 20)),
        segment_size: Some(ByteSize(4 << 20)),
        maintenance_rate: ByteSize(256 << 20),
        read_threads: 2,
        tls: None,
    }
}

fn client_as(role: Role, dir: &Path) -> Client {
    let identity = Identity::new(role, "test", CLUSTER, None).unwrap();
    let options =
        ClientOptions { backoff_max: Duration::from_millis(50), ..ClientOptions::default() };
    Client::new(Endpoint::Unix(dir.join("socket")), Role::Asd, identity, options)
}

struct Asd {
    client: Client,
}

impl Asd {
    /// A client of the daemon in `dir`, once that serves.
    async fn connect(dir: &Path) -> Self {
        let asd = Self { client: client_as(Role::AlbaProxy, dir) };
        asd.until(|status| status.state != "recovering").await;
        asd
    }

    async fn until(&self, done: impl Fn(&Status) -> bool) -> Status {
        let wait = async {
            loop {
                let call = Call::within(PATIENCE);
                let answer = self.client.call(wire::common::method::STATUS, &(), call).await;
                match answer {
                    Ok((status, _)) if done(&status) => return status,
                    Ok(_) | Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
                }
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.expect("the daemon gets there in time")
    }

    async fn call<Q: Encode, A: Decode>(&self, method: u16, body: &Q) -> A {
        self.client.call(method, body, Call::within(PATIENCE)).await.unwrap().0
    }

    async fn try_put(
        &self,
        items: &[(&str, &[u8])],
        condition: PutCondition,
    ) -> Result<Vec<PutResult>, CallError> {
        let put = MultiPut {
            priority: Priority::Client,
            items: items
                .iter()
                .map(|(key, data)| PutItem {
                    key: Bytes::copy_from_slice(key.as_bytes()),
                    len: model::u32_of(data.len()),
                    checksums: blocks(data),
                    condition,
                })
                .collect(),
        };
        let payload = items.iter().map(|(_, data)| Bytes::copy_from_slice(data)).collect();
        let call = Call { payload, timeout: PATIENCE };
        let (answer, _) = self.client.call::<_, PutResults>(method::MULTI_PUT, &put, call).await?;
        Ok(answer.results)
    }

    async fn put(&self, key: &str, data: &[u8]) -> PutResult {
        self.try_put(&[(key, data)], PutCondition::Always).await.unwrap()[0]
    }

    async fn get_range(&self, key: &str, offset: u32, len: u32) -> (GetResult, Bytes) {
        let item = GetItem { key: Bytes::copy_from_slice(key.as_bytes()), offset, len };
        let get = MultiGet { priority: Priority::Client, items: vec![item] };
        let call = Call::within(PATIENCE);
        let (mut answer, payload): (GetResults, Bytes) =
            self.client.call(method::MULTI_GET, &get, call).await.unwrap();
        assert_eq!(answer.results.len(), 1);
        let result = answer.results.remove(0);
        assert_eq!(model::usize_of(result.len.into()), payload.len());
        if result.status == GetStatus::Found {
            assert_eq!(result.checksum, crc32c(&payload));
        }
        (result, payload)
    }

    async fn get(&self, key: &str) -> Result<Bytes, GetStatus> {
        let (result, bytes) = self.get_range(key, 0, u32::MAX).await;
        if result.status == GetStatus::Found { Ok(bytes) } else { Err(result.status) }
    }

    async fn delete(&self, keys: &[&str]) {
        let keys = keys.iter().map(|key| Bytes::copy_from_slice(key.as_bytes())).collect();
        let delete = Delete { priority: Priority::Client, keys };
        self.call::<_, ()>(method::DELETE, &delete).await;
    }

    async fn list(&self) -> Vec<(Bytes, u32)> {
        let (mut all, mut start) = (Vec::new(), Bytes::new());
        loop {
            let list = List { start, end: None, limit: 7 };
            let page: Listing = self.call(method::LIST, &list).await;
            all.extend(page.entries);
            if !page.more {
                return all;
            }
            start = [&all.last().unwrap().0[..], &[0]].concat().into();
        }
    }

    async fn stats(&self) -> Stats {
        self.call(method::STATS, &()).await
    }
}

struct Daemon {
    asd: Asd,
    shutdown: Shutdown,
    task: JoinHandle<Result<(), RunError>>,
}

impl Daemon {
    async fn start(config: Config, dir: &Path) -> Self {
        let shutdown = Shutdown::new();
        let task = tokio::spawn(run(config, shutdown.clone()));
        Self { asd: Asd::connect(dir).await, shutdown, task }
    }

    async fn stop(self) {
        drop(self.asd);
        self.shutdown.trigger();
        tokio::time::timeout(PATIENCE, self.task).await.unwrap().unwrap().unwrap();
    }
}

fn data(seed: u32, len: usize) -> Vec<u8> {
    let mut dice = asd_core::twin::Dice::new(seed.into());
    (0..len.div_ceil(8)).flat_map(|_| dice.roll().to_le_bytes()).take(len).collect()
}

fn segments(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir.join("disk/segments")).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

/// Flips one byte of the stored data that contains `needle`.
fn flip(dir: &Path, needle: &[u8]) {
    for path in segments(dir) {
        let bytes = std::fs::read(&path).unwrap();
        if let Some(at) = bytes.windows(needle.len()).position(|window| window == needle) {
            let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
            file.write_all_at(&[bytes[at] ^ 1], model::u64_of(at)).unwrap();
            return;
        }
    }
    panic!("what was stored is in no segment");
}

#[tokio::test]
async fn what_is_put_is_read_listed_verified_and_deleted() {
    let dir = TempDir::new().unwrap();
    let daemon = Daemon::start(config(dir.path()), dir.path()).await;
    let asd = &daemon.asd;
    let large = data(1, 5 << 20);
    assert_eq!(asd.put("large", &large).await, PutResult::Stored);
    assert_eq!(asd.get("large").await.unwrap(), large);
    for (offset, len) in [(0, 1), (4095, 2), (3_000_000, 100_000), (5 << 20, 0)] {
        let (result, bytes) = asd.get_range("large", offset, len).await;
        assert_eq!((result.status, result.total_len), (GetStatus::Found, 5 << 20));
        let start = model::usize_of(offset.into());
        assert_eq!(bytes, large[start..start + model::usize_of(len.into())]);
    }
    let (result, _) = asd.get_range("large", 5 << 20, 1).await;
    assert_eq!((result.status, result.total_len), (GetStatus::OutOfRange, 5 << 20));
    assert_eq!(asd.get("none").await, Err(GetStatus::Absent));

    let items: Vec<(String, Vec<u8>)> =
        (0..50_u32).map(|i| (format!("key-{i:02}"), data(i, 1000))).collect();
    let refs: Vec<(&str, &[u8])> =
        items.iter().map(|(key, data)| (key.as_str(), &data[..])).collect();
    let before = asd.stats().await.syncs;
    assert_eq!(asd.try_put(&refs, PutCondition::Absent).await.unwrap(), [PutResult::Stored; 50]);
    assert_eq!(asd.stats().await.syncs - before, 1, "one sync serves a whole request");
    assert_eq!(asd.try_put(&refs, PutCondition::Absent).await.unwrap(), [PutResult::Stored; 50]);
    let taken = [("key-00", &b"another"[..])];
    assert_eq!(asd.try_put(&taken, PutCondition::Absent).await.unwrap(), [PutResult::Exists]);
    assert_eq!(asd.list().await.len(), 51);

    asd.delete(&["key-00", "key-49", "never there"]).await;
    assert_eq!(asd.get("key-00").await, Err(GetStatus::Absent));
    let keys = ["key-00", "key-01", "large"];
    let keys = keys.iter().map(|key| Bytes::copy_from_slice(key.as_bytes())).collect();
    let verified: VerifyResults = asd.call(method::VERIFY, &Verify { keys }).await;
    assert_eq!(verified.results, [GetStatus::Absent, GetStatus::Found, GetStatus::Found]);
    let stats = asd.stats().await;
    assert_eq!((stats.fragments, stats.state), (49, DiskState::Writable));
    assert_eq!(stats.live_bytes, (5 << 20) + 48_000);
    daemon.stop().await;
}

#[tokio::test]
async fn one_sync_serves_many_callers() {
    let dir = TempDir::new().unwrap();
    let daemon = Daemon::start(config(dir.path()), dir.path()).await;
    let mut puts = Vec::new();
    for number in 0..200_u32 {
        let client = daemon.asd.client.clone();
        puts.push(tokio::spawn(async move {
            Asd { client }.put(&format!("key-{number}"), &data(number, 4096)).await
        }));
    }
    for put in puts {
        assert_eq!(put.await.unwrap(), PutResult::Stored);
    }
    let stats = daemon.asd.stats().await;
    assert_eq!(stats.puts, 200);
    assert!(stats.syncs < 200, "{} syncs", stats.syncs);
    daemon.stop().await;
}

#[tokio::test]
async fn data_that_was_damaged_on_the_way_is_refused_and_so_is_nonsense() {
    let dir = TempDir::new().unwrap();
    let daemon = Daemon::start(config(dir.path()), dir.path()).await;
    let client = &daemon.asd.client;
    let item = PutItem {
        key: Bytes::from_static(b"k"),
        len: 3,
        checksums: blocks(b"abc"),
        condition: PutCondition::Always,
    };
    let put = MultiPut { priority: Priority::Maintenance, items: vec![item] };
    let call = |payload: &'static [u8]| Call::with_payload(Bytes::from_static(payload), PATIENCE);
    let (answer, _): (PutResults, _) =
        client.call(method::MULTI_PUT, &put, call(b"abd")).await.unwrap();
    assert_eq!(answer.results, [PutResult::BadChecksum]);
    let refused = client.call::<_, PutResults>(method::MULTI_PUT, &put, call(b"ab")).await;
    assert_eq!(refused.unwrap_err().class(), ErrorClass::Refuse);
    let refused = client.call::<_, ()>(999, &(), Call::within(PATIENCE)).await;
    assert_eq!(refused.unwrap_err().code(), Some(wire::error::code::UNKNOWN_METHOD));
    let stranger = client_as(Role::Edge, dir.path());
    let refused = stranger.call::<_, Stats>(method::STATS, &(), Call::within(PATIENCE)).await;
    assert_eq!(refused.unwrap_err().code(), Some(wire::error::code::FORBIDDEN));
    daemon.stop().await;
}

#[tokio::test]
async fn a_flipped_byte_is_found_counted_and_shown() {
    let dir = TempDir::new().unwrap();
    let daemon = Daemon::start(config(dir.path()), dir.path()).await;
    let asd = &daemon.asd;
    let (good, bad) = (data(1, 100_000), data(2, 100_000));
    asd.put("good", &good).await;
    asd.put("bad", &bad).await;
    flip(dir.path(), &bad[50_000..50_032]);
    assert_eq!(asd.get("bad").await, Err(GetStatus::Corrupt));
    assert_eq!(asd.get("good").await.unwrap(), good);
    let (result, _) = asd.get_range("bad", 0, 40_000).await;
    assert_eq!(result.status, GetStatus::Found, "the blocks it touches are whole");
    assert_eq!(asd.stats().await.corruptions, 1);
    let status = asd.until(|_| true).await;
    assert!(status.details_json.contains(r#""corruptions":1,"#), "{}", status.details_json);
    // Written again, it is whole again.
    asd.put("bad", &bad).await;
    assert_eq!(asd.get("bad").await.unwrap(), bad);
    daemon.stop().await;
}

#[tokio::test]
async fn a_damaged_header_is_found_by_a_verification_though_reads_remember_it() {
    let dir = TempDir::new().unwrap();
    let daemon = Daemon::start(config(dir.path()), dir.path()).await;
    let asd = &daemon.asd;
    let data = data(1, 100_000);
    let key = "a key that is in no data";
    asd.put(key, &data).await;
    let verify = async || {
        let verify = wire::asd::Verify { keys: vec![Bytes::from_static(key.as_bytes())] };
        asd.call::<_, wire::asd::VerifyResults>(method::VERIFY, &verify).await.results
    };
    for _ in 0..2 {
        let (result, bytes) = asd.get_range(key, 40_000, 5000).await;
        assert_eq!((result.status, &bytes[..]), (GetStatus::Found, &data[40_000..45_000]));
    }
    assert_eq!(verify().await, [GetStatus::Found]);
    flip(dir.path(), key.as_bytes());
    assert_eq!(verify().await, [GetStatus::Corrupt]);
    daemon.stop().await;
}

#[tokio::test]
async fn a_get_of_many_fragments_answers_each_in_its_place() {
    let dir = TempDir::new().unwrap();
    let daemon = Daemon::start(config(dir.path()), dir.path()).await;
    let asd = &daemon.asd;
    for number in 0..10 {
        asd.put(&format!("key {number}"), &data(number, 50_000)).await;
    }
    let item = |number: u32| GetItem {
        key: Bytes::from(format!("key {number}")),
        offset: number * 1000,
        len: 10_000,
    };
    let get = MultiGet { priority: Priority::Client, items: (0..12).map(item).collect() };
    let call = Call::within(PATIENCE);
    let (answer, mut rest): (GetResults, Bytes) =
        asd.client.call(method::MULTI_GET, &get, call).await.unwrap();
    for (number, result) in (0..).zip(&answer.results) {
        if number >= 10 {
            assert_eq!(result.status, GetStatus::Absent);
            continue;
        }
        let start = model::usize_of(u64::from(number) * 1000);
        let bytes = rest.split_to(model::usize_of(result.len.into()));
        assert_eq!(bytes, data(number, 50_000)[start..start + 10_000], "fragment {number}");
        assert_eq!(result.checksum, crc32c(&bytes));
    }
    assert!(rest.is_empty());
    assert_eq!(asd.stats().await.gets, 12);
    daemon.stop().await;
}

async fn all(asd: &Asd) -> BTreeMap<Bytes, Bytes> {
    let mut all = BTreeMap::new();
    for (key, _) in asd.list().await {
        let bytes = asd.get(std::str::from_utf8(&key).unwrap()).await.unwrap();
        all.insert(key, bytes);
    }
    all
}

#[tokio::test]
async fn a_restart_keeps_everything_and_an_index_comes_back() {
    let dir = TempDir::new().unwrap();
    let daemon = Daemon::start(config(dir.path()), dir.path()).await;
    for number in 0..40_u32 {
        daemon.asd.put(&format!("key-{number:02}"), &data(number, 300_000)).await;
    }
    daemon.asd.delete(&["key-03", "key-33"]).await;
    daemon.asd.put("key-04", b"short").await;
    let before = all(&daemon.asd).await;
    assert_eq!(before.len(), 38);
    let osd: wire::asd::Identity = daemon.asd.call(method::IDENTIFY, &()).await;
    daemon.stop().await;

    let index = dir.path().join("disk/index");
    for damage in ["none", "deleted", "nonsense"] {
        match damage {
            "deleted" => std::fs::remove_dir_all(&index).unwrap(),
            "nonsense" => std::fs::write(index.join("CURRENT"), b"nonsense").unwrap(),
            _ => {}
        }
        let daemon = Daemon::start(config(dir.path()), dir.path()).await;
        assert_eq!(all(&daemon.asd).await, before);
        let again: wire::asd::Identity = daemon.asd.call(method::IDENTIFY, &()).await;
        assert_eq!(again.osd, osd.osd);
        assert_ne!(again.incarnation, osd.incarnation);
        let stats = daemon.asd.stats().await;
        assert_eq!((stats.fragments, stats.corruptions), (38, 0));
        daemon.stop().await;
    }
}

#[tokio::test]
async fn a_full_disk_says_so_reads_deletes_and_takes_more_once_there_is_room() {
    let dir = TempDir::new().unwrap();
    let small = Config {
        capacity: Some(ByteSize(8 << 20)),
        segment_size: Some(ByteSize(256 << 10)),
        ..config(dir.path())
    };
    let daemon = Daemon::start(small, dir.path()).await;
    let asd = &daemon.asd;
    let value = data(1, 50_000);
    let mut stored = 0_u32;
    loop {
        match asd.put(&format!("key-{stored:04}"), &value).await {
            PutResult::Stored => stored += 1,
            PutResult::Full => break,
            other @ (PutResult::Exists | PutResult::BadChecksum | PutResult::Failed) => {
                panic!("{other:?}")
            }
        }
    }
    assert!(stored > 100, "{stored} fitted");
    assert_eq!(asd.until(|_| true).await.state, "full");
    assert_eq!(asd.stats().await.state, DiskState::Full);
    assert_eq!(asd.get("key-0000").await.unwrap(), value);
    for number in 0..stored {
        asd.delete(&[&format!("key-{number:04}")]).await;
    }
    asd.until(|status| status.state == "running").await;
    assert_eq!(asd.put("again", &value).await, PutResult::Stored);
    assert!(asd.stats().await.used_bytes <= 8 << 20);
    daemon.stop().await;
}

#[tokio::test]
async fn a_directory_that_vanishes_is_a_failed_disk_and_not_a_crash() {
    let dir = TempDir::new().unwrap();
    let daemon = Daemon::start(config(dir.path()), dir.path()).await;
    let asd = &daemon.asd;
    assert_eq!(asd.put("key", b"value").await, PutResult::Stored);
    std::fs::remove_dir_all(dir.path().join("disk")).unwrap();
    assert_eq!(asd.put("key", b"other").await, PutResult::Failed);
    assert_eq!(asd.stats().await.state, DiskState::Failed);
    assert_eq!(asd.until(|_| true).await.state, "failed");
    let keys = vec![Bytes::from_static(b"key")];
    let delete = Delete { priority: Priority::Client, keys };
    let refused = asd.client.call::<_, ()>(method::DELETE, &delete, Call::within(PATIENCE)).await;
    assert_eq!(refused.unwrap_err().class(), ErrorClass::Fatal);
    daemon.stop().await;
}

async fn refusal(config: Config) -> String {
    let refused = tokio::time::timeout(PATIENCE, run(config, Shutdown::new())).await;
    refused.expect("it ends at once").unwrap_err().to_string()
}

#[tokio::test]
async fn directories_that_cannot_be_used_get_clear_errors() {
    let dir = TempDir::new().unwrap();
    let daemon = Daemon::start(config(dir.path()), dir.path()).await;
    daemon.asd.put("key", b"value").await;
    let second = Config { listen: Endpoint::Unix(dir.path().join("other")), ..config(dir.path()) };
    let error = refusal(second).await;
    assert!(error.contains("in use by another process"), "{error}");
    daemon.stop().await;

    let foreign = Config { cluster: "other".to_owned(), ..config(dir.path()) };
    let error = refusal(foreign).await;
    assert!(error.contains("belongs to cluster `test`"), "{error}");

    // Nobody, root included, can write below these.
    for unwritable in ["/proc/holdfast-asd", "/dev/null/disk"] {
        let config = Config { data_dir: PathBuf::from(unwritable), ..config(dir.path()) };
        let error = refusal(config).await;
        assert!(error.contains(unwritable) && error.contains("writable"), "{error}");
    }

    std::fs::remove_file(dir.path().join("disk/asd.id")).unwrap();
    let error = refusal(config(dir.path())).await;
    assert!(error.contains("no asd.id"), "{error}");
}

#[tokio::test]
async fn a_segment_of_another_disk_is_refused() {
    let dirs = [TempDir::new().unwrap(), TempDir::new().unwrap()];
    let mut ids: Vec<OsdId> = Vec::new();
    for dir in &dirs {
        let daemon = Daemon::start(config(dir.path()), dir.path()).await;
        daemon.asd.put("key", b"value").await;
        let identity: wire::asd::Identity = daemon.asd.call(method::IDENTIFY, &()).await;
        ids.push(identity.osd);
        daemon.stop().await;
    }
    assert_ne!(ids[0], ids[1]);
    let source = segments(dirs[1].path()).remove(0);
    std::fs::copy(source, dirs[0].path().join("disk/segments/000000ff.seg")).unwrap();
    let error = refusal(config(dirs[0].path())).await;
    assert!(error.contains("belongs to OSD"), "{error}");
}

/// Not a test of its own: what [`a_kill_at_any_moment_loses_nothing_that_was_acknowledged`] starts and kills.
#[test]
fn daemon_process() {
    let Some(dir) = std::env::var_os(CHILD_DIR) else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(run(config(Path::new(&dir)), Shutdown::new())).unwrap();
}

/// Killed at the latest when the test ends.
struct Process(Child);

impl Process {
    fn start(dir: &Path) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "daemon_process", "--nocapture"]).env(CHILD_DIR, dir);
        Self(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }

    fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Puts and deletes until the daemon is gone; returns what was acknowledged, and the key that was under way.
async fn load(asd: &Asd, life: u32, stop_after: u32) -> (BTreeMap<String, Option<u32>>, String) {
    let mut acknowledged = BTreeMap::new();
    for number in 0.. {
        let key = format!("key-{:03}", (number * 7 + life) % 150);
        if number == stop_after {
            return (acknowledged, key);
        }
        if number % 5 == 4 {
            asd.delete(&[&key]).await;
            acknowledged.insert(key, None);
        } else {
            let seed = life * 100_000 + number;
            let result = asd.put(&key, &data(seed, 20_000)).await;
            assert_eq!(result, PutResult::Stored);
            acknowledged.insert(key, Some(seed));
        }
    }
    unreachable!("the numbers don't end")
}

#[tokio::test]
async fn a_kill_at_any_moment_loses_nothing_that_was_acknowledged() {
    let dir = TempDir::new().unwrap();
    let mut expected: BTreeMap<String, Option<u32>> = BTreeMap::new();
    for life in 0..4_u32 {
        let mut process = Process::start(dir.path());
        let asd = Asd::connect(dir.path()).await;
        for (key, value) in &expected {
            let wanted = value.map(|seed| data(seed, 20_000));
            match (asd.get(key).await, wanted) {
                (Ok(bytes), Some(wanted)) => assert_eq!(bytes, wanted, "{key}"),
                (Err(GetStatus::Absent), None) => {}
                (seen, wanted) => {
                    panic!("{key}: {seen:?}, wanted {:?} bytes", wanted.map(|w| w.len()))
                }
            }
        }
        let (acknowledged, next) = load(&asd, life, 60 + 37 * life).await;
        expected.extend(acknowledged);
        // Killed with a put under way: whether that counts is open, so its key is not looked at again.
        let last = [(next.as_str(), &b"under way"[..])];
        let put = asd.try_put(&last, PutCondition::Always);
        let kill = async {
            tokio::task::yield_now().await;
            process.kill();
        };
        let (_, ()) = tokio::join!(put, kill);
        expected.remove(&next);
    }
}
