//! Small reads of disks that are well: together where they meet, each with its own answer.

use crate::cluster::{Cluster, Setup, data, object};
use crate::fakes::FakeAsd;
use runtime::rpc::{Request, Responder};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::Instant;
use wire::asd::{MultiGet, Priority};
use wire::facts::Compression;
use wire::proxy::code;

const FRAME: u64 = 16_448;
const FRAMES: u64 = 40;

/// All on one disk, frame by frame.
async fn start(policies: &'static str, asds: u8) -> (Arc<Cluster>, Arc<FakeAsd>) {
    let setup = Setup { policies, asds, compression: Compression::Off, ..Setup::default() };
    let cluster = Cluster::start(setup).await;
    cluster.put(1, content()).await.unwrap();
    let read = |asd: &&Arc<FakeAsd>| asd.bytes_read.load(Ordering::SeqCst) > 0;
    cluster.read(object(1), &[(0, 1)]).await.unwrap();
    let disk = cluster.asds.iter().find(read).map(Arc::clone).unwrap();
    (Arc::new(cluster), disk)
}

fn content() -> bytes::Bytes {
    data(usize::try_from(FRAME * FRAMES).unwrap(), 1)
}

type Reading = tokio::task::JoinHandle<Result<bool, Option<u16>>>;

/// Whether a few bytes of a frame come back as they were put, or the error's code.
fn read(cluster: &Arc<Cluster>, frame: u64) -> Reading {
    let cluster = Arc::clone(cluster);
    tokio::spawn(async move {
        let at = frame * FRAME + 4096;
        let read = cluster.read(object(1), &[(at, 4096)]).await.map_err(|error| error.code())?;
        let at = usize::try_from(at).unwrap();
        Ok(read == content()[at..at + 4096])
    })
}

async fn until(what: &str, done: impl Fn() -> bool) {
    let look = async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), look).await.expect(what);
}

#[tokio::test]
async fn reads_that_come_together_go_together_and_each_gets_its_own() {
    let (cluster, disk) = start("1,2,3,1", 3).await;
    let before = disk.gets.load(Ordering::SeqCst);
    // Queued before the connection's task has a turn, so the proxy reads them in one go.
    let readings: Vec<Reading> = (0..FRAMES).map(|frame| read(&cluster, frame)).collect();
    for reading in readings {
        assert_eq!(reading.await.unwrap(), Ok(true));
    }
    let gets = disk.gets.load(Ordering::SeqCst) - before;
    assert!(gets < FRAMES / 4, "{gets} gets for {FRAMES} reads");
}

#[tokio::test]
async fn a_silent_call_holds_up_no_later_read() {
    let (cluster, disk) = start("1,2,3,1", 3).await;
    disk.hold();
    let first = read(&cluster, 0);
    let before = disk.gets.load(Ordering::SeqCst);
    until("it is asked", || disk.gets.load(Ordering::SeqCst) > before).await;
    let held = disk.take_held();
    assert_eq!(read(&cluster, 1).await.unwrap(), Ok(true));
    disk.answer(held);
    assert_eq!(first.await.unwrap(), Ok(true));
}

#[tokio::test]
async fn a_bad_frame_fails_only_its_own_reader() {
    for (policies, asds) in [("1,2,3,1", 3), ("1,0,1,1", 1)] {
        let (cluster, disk) = start(policies, asds).await;
        disk.rot();
        disk.hold();
        let readings: Vec<Reading> = (0..FRAMES).map(|frame| read(&cluster, frame)).collect();
        cluster.status(0).await;
        disk.let_go();
        let mut bad = Vec::new();
        for (frame, reading) in (0..FRAMES).zip(readings) {
            match reading.await.unwrap() {
                Ok(same) => assert!(same, "frame {frame}"),
                Err(error) => bad.push((frame, error)),
            }
        }
        let damaged = cluster.status(0).await["corrupt_fragments"].as_u64().unwrap();
        assert!(0 < damaged, "it was noticed");
        // With copies it is read from one; without, it is an error, and never zeroes (L5).
        match asds {
            3 => assert_eq!(bad, []),
            // The rotten block of 4 KiB lies in two frames.
            _ => assert_eq!(bad, [19, 20].map(|frame| (frame, Some(code::UNREADABLE)))),
        }
    }
}

#[tokio::test]
async fn damage_that_a_disk_found_is_read_round_and_counted_once() {
    let (cluster, disk) = start("1,2,3,1", 3).await;
    disk.rot();
    disk.hold();
    let before = disk.gets.load(Ordering::SeqCst);
    // The rotten block lies in this frame.
    let reading = read(&cluster, 19);
    until("it is asked", || disk.gets.load(Ordering::SeqCst) > before).await;
    let held = disk.take_held();
    disk.hold();
    disk.answer(held);
    assert_eq!(reading.await.unwrap(), Ok(true));
    assert_eq!(disk.corruptions(), 1);
    assert_eq!(cluster.status(0).await["corrupt_fragments"], 1);
    // Nobody but the repair asks it for the same again.
    let again = disk.take_held();
    let by = |(request, _): &(Request, Responder)| request.decode::<MultiGet>().unwrap().priority;
    assert!(again.iter().all(|get| by(get) == Priority::Maintenance));
    disk.answer(again);
    cluster.until("it is repaired", 0, |status| status["repaired_fragments"] == 1).await;
}

#[tokio::test]
async fn a_silent_disk_is_asked_round_also_for_those_who_wait_in_line() {
    let (cluster, disk) = start("1,2,3,1", 3).await;
    disk.stall();
    let begin = Instant::now();
    let readings: Vec<Reading> = (0..FRAMES).map(|frame| read(&cluster, frame)).collect();
    for reading in readings {
        assert_eq!(reading.await.unwrap(), Ok(true));
    }
    // It is given up only after 2 s.
    assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
}

#[tokio::test]
async fn a_disk_that_refuses_or_has_lost_everything_fails_no_read() {
    let (cluster, disk) = start("1,2,3,1", 3).await;
    let lost = disk.erase();
    for frame in 0..3 {
        assert_eq!(read(&cluster, frame).await.unwrap(), Ok(true));
    }
    disk.restore(lost);
    disk.stall();
    // Dropped requests: the disk says that it is busy.
    let readings: Vec<Reading> = (0..FRAMES).map(|frame| read(&cluster, frame)).collect();
    cluster.status(0).await;
    disk.resume();
    for reading in readings {
        assert_eq!(reading.await.unwrap(), Ok(true));
    }
}
