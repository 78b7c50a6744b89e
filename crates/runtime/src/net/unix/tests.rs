//! Both halves against the kernel: much at once, gone peers, and what each descriptor is registered for.
//!
//! Invariant tested: a descriptor is registered for what somebody waits for.

use super::{ReadHalf, WriteHalf, halves};
use std::os::fd::AsRawFd;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

const LONG: Duration = Duration::from_secs(60);
/// Many times what a socket takes.
const MUCH: usize = 16 << 20;

fn pair() -> [(ReadHalf, WriteHalf); 2] {
    let (one, other) = UnixStream::pair().unwrap();
    [halves(one).unwrap(), halves(other).unwrap()]
}

fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|at| u8::try_from(at % 251).unwrap()).collect()
}

#[tokio::test]
async fn much_goes_both_ways_at_once_past_full_sockets() {
    let sides = pair().map(|(mut read, mut write)| {
        let sending = tokio::spawn(async move {
            let sent = bytes(MUCH);
            let mut slices =
                [std::io::IoSlice::new(&sent[..1000]), std::io::IoSlice::new(&sent[1000..])];
            let first = write.write_vectored(&slices).await.unwrap();
            assert!(1000 < first && first < MUCH, "{first}");
            slices[0] = std::io::IoSlice::new(&sent[first..]);
            write.write_all(&slices[0]).await.unwrap();
            assert!(write.full.is_none(), "who doesn't wait is still registered");
        });
        let reading = tokio::spawn(async move {
            let mut read_here = Vec::new();
            read.read_to_end(&mut read_here).await.unwrap();
            assert!(read_here == bytes(MUCH), "{} bytes", read_here.len());
        });
        (sending, reading)
    });
    for (sending, reading) in sides {
        tokio::time::timeout(LONG, sending).await.unwrap().unwrap();
        // The writing half is gone: the other side read the end.
        tokio::time::timeout(LONG, reading).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_write_to_a_peer_that_is_gone_fails_and_one_that_waits_for_room_hears_of_it() {
    let [(_read, mut write), other] = pair();
    let waiting = tokio::spawn(async move {
        write.write_all(&bytes(MUCH)).await.unwrap_err();
        write.write_all(&[1]).await.unwrap_err();
    });
    tokio::task::yield_now().await;
    drop(other);
    tokio::time::timeout(LONG, waiting).await.unwrap().unwrap();
}

/// What the runtime's epoll waits for, by the kernel's word. `None`: it doesn't know the descriptor.
fn waits_for(descriptor: &impl AsRawFd) -> Option<u32> {
    let known = std::fs::read_dir("/proc/self/fdinfo").unwrap().filter_map(|entry| {
        // Those of other threads come and go.
        let info = std::fs::read_to_string(entry.unwrap().path()).unwrap_or_default();
        info.lines().find_map(|line| {
            let mut words = line.strip_prefix("tfd:")?.split_whitespace();
            (words.next()? == descriptor.as_raw_fd().to_string())
                .then(|| u32::from_str_radix(words.nth(1).unwrap(), 16).unwrap())
        })
    });
    known.reduce(|one, other| one | other)
}

/// Else each message costs its sender a wake-up more, when it is read.
#[tokio::test]
async fn writability_is_waited_for_by_who_waits_to_write_alone() {
    let (readable, writable) = (1, 4);
    let [(here, mut write), (mut there, _kept)] = pair();
    let is_quiet = |read: &ReadHalf, write: &WriteHalf| {
        assert_eq!(waits_for(read).map(|what| what & (readable | writable)), Some(readable));
        assert_eq!(waits_for(&write.socket), None);
    };
    is_quiet(&here, &write);
    write.write_all(&[7; 100]).await.unwrap();
    there.read_exact(&mut [0; 100]).await.unwrap();
    is_quiet(&here, &write);
    let full = tokio::time::timeout(Duration::from_millis(50), write.write_all(&bytes(MUCH))).await;
    full.unwrap_err();
    assert_eq!(
        waits_for(write.full.as_ref().unwrap()).map(|what| what & (readable | writable)),
        Some(writable)
    );
    let drain = async {
        let mut some = vec![0; 64 << 10];
        // Until nothing more comes.
        while let Ok(Ok(1..)) =
            tokio::time::timeout(Duration::from_millis(200), there.read(&mut some)).await
        {}
    };
    let (written, ()) = tokio::join!(write.write_all(&[7]), drain);
    written.unwrap();
    is_quiet(&here, &write);
}
