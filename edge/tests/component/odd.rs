//! Odd, broken and hostile clients: proper errors, and the next client is served as if nothing had been.

use crate::rig::{MIB, Rig, RunningEdge, configuration, nbdsh, tool};
use edge::Edge;
use runtime::shutdown::Shutdown;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const HEALTHY: &str = "
h.connect_uri(uri)
h.pwrite(b'healthy' * 100, 12345)
assert h.pread(700, 12345) == b'healthy' * 100
h.shutdown()
";

async fn is_healthy(edge: &RunningEdge) {
    nbdsh(&edge.uri("demo"), HEALTHY).await;
}

#[tokio::test]
async fn odd_requests_get_the_errors_of_the_protocol() {
    let rig = Rig::start(16 * MIB, "").await;
    let script = r"
size = 16 << 20
h.connect_uri(uri)
h.set_strict_mode(0)
def fails(want, call):
    try:
        call()
    except nbd.Error as error:
        assert error.errnum == want, (errno.errorcode.get(error.errnum), errno.errorcode[want])
        return
    raise AssertionError('should have failed with ' + errno.errorcode[want])
fails(errno.EINVAL, lambda: h.pread(512, size))
fails(errno.EINVAL, lambda: h.pread(512, size - 1))
fails(errno.EINVAL, lambda: h.pread(512, (1 << 63) - 1))
fails(errno.ENOSPC, lambda: h.pwrite(b'x' * 512, size))
fails(errno.ENOSPC, lambda: h.pwrite(b'x' * 512, size - 511))
fails(errno.ENOSPC, lambda: h.zero(4096, size))
fails(errno.EINVAL, lambda: h.trim(4096, size))
fails(errno.EINVAL, lambda: h.cache(4096, size))
# Too long for one request: refused, and the stream stays in step.
fails(errno.EINVAL, lambda: h.pread((32 << 20) + 1, 0))
fails(errno.EINVAL, lambda: h.pwrite(bytes((32 << 20) + 1), 0))
# Flags where they don't belong, or that nobody knows.
fails(errno.EINVAL, lambda: h.pwrite(b'x', 0, nbd.CMD_FLAG_DF))
fails(errno.EINVAL, lambda: h.trim(512, 0, nbd.CMD_FLAG_REQ_ONE))
fails(errno.EINVAL, lambda: h.flush(1 << 9))
# Nothing asked for.
h.pwrite(b'', 0)
h.pread(0, 0)
h.trim(0, 0)
h.zero(0, size)
h.cache(0, 0)
# Any alignment, any length up to the largest.
h.pwrite(b'abc', 4095)
assert h.pread(5, 4094) == b'\0abc\0'
whole = bytes(range(256)) * (size // 256)
h.pwrite(whole, 0, nbd.CMD_FLAG_FUA)
assert h.pread(size, 0) == whole
assert h.pread_structured(size, 0, lambda *a: None, nbd.CMD_FLAG_DF) == whole
h.zero(1000, 500, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FUA | nbd.CMD_FLAG_FAST_ZERO)
assert h.pread(1002, 499) == whole[499:500] + bytes(1000) + whole[1500:1501]
h.cache(size, 0)
h.trim(size, 0, nbd.CMD_FLAG_FUA)
assert h.pread(size, 0) == bytes(size)
h.shutdown()
";
    nbdsh(&rig.edge().uri("demo"), script).await;
    rig.stop().await;
}

#[tokio::test]
async fn odd_options_are_answered() {
    let rig = Rig::start(16 * MIB, "").await;
    rig.router.create("other", MIB);
    let script = r"
h.set_opt_mode(True)
h.connect_uri(uri)
def refused(call):
    try:
        call()
    except nbd.Error:
        return
    raise AssertionError('should have been refused')
names = []
h.opt_list(lambda name, description: names.append(name))
assert names == ['demo', 'other'], names
h.set_export_name('nothing')
refused(h.opt_info)
h.set_export_name('demo@monday')
refused(h.opt_info)
h.set_export_name('')
refused(h.opt_go)
h.set_export_name('bad name')
refused(h.opt_go)
h.set_export_name('demo')
h.opt_info()
assert h.get_size() == 16 << 20
contexts = []
h.opt_list_meta_context(lambda name: contexts.append(name))
assert contexts == ['base:allocation'], contexts
h.set_full_info(True)
h.opt_info()
assert h.get_canonical_export_name() == 'demo'
assert 'demo' in h.get_export_description()
h.opt_go()
assert h.pread(4, 0) == bytes(4)
h.shutdown()
# Without structured replies there is no block status, but all the rest.
plain = nbd.NBD()
plain.set_request_structured_replies(False)
plain.connect_uri(uri)
assert not plain.get_structured_replies_negotiated()
plain.pwrite(b'plain', 1)
assert plain.pread(7, 0) == b'\0plain\0'
try:
    plain.set_strict_mode(0)
    plain.pread(5, 16 << 20)
    raise AssertionError('beyond the end')
except nbd.Error as error:
    assert error.errnum == errno.EINVAL
# The oldest way to open.
old = nbd.NBD()
old.set_handshake_flags(nbd.HANDSHAKE_FLAG_FIXED_NEWSTYLE)
old.connect_uri(uri)
assert old.get_size() == 16 << 20
# TLS is refused in words, and plain goes on.
tls = nbd.NBD()
tls.set_tls(nbd.TLS_ALLOW)
tls.connect_uri(uri)
assert not tls.get_tls_negotiated()
";
    nbdsh(&rig.edge().uri("demo"), script).await;
    rig.stop().await;
}

#[tokio::test]
async fn refusals_tell_users_why() {
    let rig = Rig::start(16 * MIB, "").await;
    rig.router.create("other", MIB);
    let table =
        [("nothing", "no vDisk `nothing`"), ("demo@monday", "snapshots"), ("", "name the export")];
    for (export, why) in table {
        let said = tool("qemu-img", &["info", &rig.edge().uri(export)]).await;
        assert!(!said.ok && said.err.contains(why), "{}", said.err);
    }
    rig.stop().await;
}

/// Negotiates by hand up to transmission.
async fn raw_client(edge: &RunningEdge) -> TcpStream {
    let mut stream = TcpStream::connect(edge.tcp).await.unwrap();
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting).await.unwrap();
    stream.write_all(b"\0\0\0\x03IHAVEOPT\0\0\0\x01\0\0\0\x04demo").await.unwrap();
    let mut export = [0; 10];
    stream.read_exact(&mut export).await.unwrap();
    stream
}

fn header(kind: u16, offset: u64, len: u32) -> Vec<u8> {
    let mut out = 0x2560_9513_u32.to_be_bytes().to_vec();
    out.extend_from_slice(&[0, 0]);
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(b"a cookie");
    out.extend_from_slice(&offset.to_be_bytes());
    out.extend_from_slice(&len.to_be_bytes());
    out
}

async fn ends(mut stream: TcpStream) {
    let mut rest = Vec::new();
    // A reset is as good an end as an orderly one.
    let _ = stream.read_to_end(&mut rest).await;
}

#[tokio::test]
async fn clients_that_break_off_anywhere_harm_nobody() {
    let rig = Rig::start(16 * MIB, "").await;
    let edge = rig.edge();
    // In the middle of the negotiation.
    let negotiation = b"\0\0\0\x03IHAVEOPT\0\0\0\x07\0\0\0\x0a\0\0\0\x04demo\0\0";
    for cut in 0..negotiation.len() {
        let mut stream = TcpStream::connect(edge.tcp).await.unwrap();
        stream.write_all(&negotiation[..cut]).await.unwrap();
    }
    // In the middle of a request, and of its data.
    let mut request = header(1, 4096, 9000);
    request.extend_from_slice(&[7; 9000]);
    for cut in [0, 1, 4, 14, 27, 28, 29, 5000, 9027] {
        let mut stream = raw_client(edge).await;
        stream.write_all(&request[..cut]).await.unwrap();
    }
    is_healthy(edge).await;
    assert_eq!(rig.router.live("demo", 4096, 4096), vec![0; 4096], "half a write is no write");
    rig.stop().await;
}

#[tokio::test]
async fn hopeless_streams_are_closed() {
    let rig = Rig::start(16 * MIB, "").await;
    let edge = rig.edge();
    let mut http = TcpStream::connect(edge.tcp).await.unwrap();
    http.write_all(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n").await.unwrap();
    ends(http).await;
    // Out of step; a write of 4 GiB; an option of 4 GiB.
    let mut stream = raw_client(edge).await;
    stream.write_all(&[0x5a; 28]).await.unwrap();
    ends(stream).await;
    let mut stream = raw_client(edge).await;
    stream.write_all(&header(1, 0, u32::MAX)).await.unwrap();
    ends(stream).await;
    let mut stream = TcpStream::connect(edge.tcp).await.unwrap();
    stream.write_all(b"\0\0\0\x03IHAVEOPT\0\0\0\x07\xff\xff\xff\xff").await.unwrap();
    ends(stream).await;
    // An unknown command is an error, not an end.
    let mut stream = raw_client(edge).await;
    stream.write_all(&header(99, 0, 0)).await.unwrap();
    let mut reply = [0; 16];
    stream.read_exact(&mut reply).await.unwrap();
    assert_eq!(&reply, b"\x67\x44\x66\x98\0\0\0\x16a cookie");
    stream.write_all(&header(3, 0, 0)).await.unwrap();
    stream.read_exact(&mut reply).await.unwrap();
    assert_eq!(&reply, b"\x67\x44\x66\x98\0\0\0\0a cookie");
    is_healthy(edge).await;
    rig.stop().await;
}

#[tokio::test]
async fn sixty_four_connections_and_those_who_never_read() {
    let rig = Rig::start(16 * MIB, "").await;
    let edge = rig.edge();
    // These ask for far more than they take.
    let mut deaf = Vec::new();
    for _ in 0..4 {
        let stream = raw_client(edge).await;
        for _ in 0..200 {
            let _ = stream.try_write(&header(0, 0, 1 << 20));
        }
        deaf.push(stream);
    }
    let script = r"
handles = []
for at in range(64):
    one = nbd.NBD()
    one.connect_uri(uri)
    handles.append(one)
for at, one in enumerate(handles):
    one.pwrite(bytes([at]) * 4096, at * 4096)
handles[0].flush()
for at, one in enumerate(handles):
    assert one.pread(4096, (63 - at) * 4096) == bytes([63 - at]) * 4096
";
    nbdsh(&edge.uri("demo"), script).await;
    drop(deaf);
    is_healthy(edge).await;
    rig.stop().await;
}

#[tokio::test]
async fn connections_beyond_the_limit_are_refused_and_the_others_go_on() {
    let rig = Rig::start(16 * MIB, "connections_max = 2").await;
    let (first, second) = (raw_client(rig.edge()).await, raw_client(rig.edge()).await);
    let third = tool("nbdinfo", &["--size", &rig.edge().uri("demo")]).await;
    assert!(!third.ok);
    drop((first, second));
    loop {
        // The edge notices in its own time that the two are gone.
        if tool("nbdinfo", &["--size", &rig.edge().uri("demo")]).await.ok {
            break;
        }
    }
    rig.stop().await;
}

#[tokio::test]
async fn what_cannot_start_says_why() {
    let rig = Rig::start(16 * MIB, "").await;
    let start = |config| async move {
        match Edge::start(config, Shutdown::new()).await {
            Ok(_) => panic!("it started"),
            Err(error) => error.to_string(),
        }
    };
    let router = rig.router_endpoint();
    let twice = configuration(rig.dir.path(), "edge-1", &router, "");
    let error = start(twice).await;
    assert!(error.contains("in use by another process"), "{error}");
    let mut taken = configuration(rig.dir.path(), "edge-9", &router, "");
    taken.nbd = vec![edge::config::NbdAddress::Tcp(rig.edge().tcp)];
    let error = start(taken).await;
    assert!(error.contains("another process has it"), "{error}");
    let mut unix = configuration(rig.dir.path(), "edge-9", &router, "");
    unix.nbd = vec![edge::config::NbdAddress::Unix(rig.edge().unix.clone())];
    let error = start(unix).await;
    assert!(error.contains("another process has it"), "{error}");
    is_healthy(rig.edge()).await;
    rig.stop().await;
}
