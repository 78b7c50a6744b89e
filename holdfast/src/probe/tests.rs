//! The probe against servers that say everything right, and everything wrong.

use super::*;
use tokio::io::DuplexStream;

/// Bytes that a server sends, in one piece: order is what the client checks, and it never answers before reading.
async fn against(server_says: Vec<u8>, export: &str) -> (Result<Probed, ProbeError>, Vec<u8>) {
    let (mut client, mut server): (DuplexStream, DuplexStream) = tokio::io::duplex(64 << 10);
    server.write_all(&server_says).await.unwrap();
    server.shutdown().await.unwrap();
    let result = exchange(&mut client, export).await;
    drop(client);
    let mut heard = Vec::new();
    server.read_to_end(&mut heard).await.unwrap();
    (result, heard)
}

fn greeting() -> Vec<u8> {
    b"NBDMAGICIHAVEOPT\0\x03".to_vec()
}

fn option_reply(kind: u32, data: &[u8]) -> Vec<u8> {
    let mut out = OPTION_REPLY_MAGIC.to_be_bytes().to_vec();
    for word in [OPTION_GO, kind, u32::try_from(data.len()).unwrap()] {
        out.extend_from_slice(&word.to_be_bytes());
    }
    out.extend_from_slice(data);
    out
}

fn info(size: u64) -> Vec<u8> {
    let mut data = vec![0, 0];
    data.extend_from_slice(&size.to_be_bytes());
    data.extend_from_slice(&[0x01, 0x6d]);
    option_reply(REPLY_INFO, &data)
}

fn read_reply(error: u32, data: &[u8]) -> Vec<u8> {
    let mut out = SIMPLE_REPLY_MAGIC.to_be_bytes().to_vec();
    out.extend_from_slice(&error.to_be_bytes());
    out.extend_from_slice(&1_u64.to_be_bytes());
    out.extend_from_slice(data);
    out
}

#[tokio::test]
async fn a_server_that_serves_is_believed() {
    let block_size = option_reply(REPLY_INFO, &[0, 3, 0, 0, 0, 1]);
    let says = [
        greeting(),
        info(1 << 32),
        block_size,
        option_reply(REPLY_ACK, &[]),
        read_reply(0, &[7; 4096]),
    ]
    .concat();
    let (result, heard) = against(says, "demo").await;
    assert_eq!(result.unwrap(), Probed { size_bytes: 1 << 32, flags: 0x016d, read: 4096 });
    // What the protocol demands, byte by byte.
    let want = [
        &b"\0\0\0\x03IHAVEOPT\0\0\0\x07\0\0\0\x0a\0\0\0\x04demo\0\0"[..],
        &b"\x25\x60\x95\x13\0\0\0\0\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\0\0\0\x10\0"[..],
        &b"\x25\x60\x95\x13\0\0\0\x02\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\0\0\0\0\0"[..],
    ]
    .concat();
    assert_eq!(heard, want);
}

#[tokio::test]
async fn a_tiny_export_is_read_to_its_end() {
    let says =
        [greeting(), info(512), option_reply(REPLY_ACK, &[]), read_reply(0, &[0; 512])].concat();
    assert_eq!(against(says, "tiny").await.0.unwrap().read, 512);
}

#[tokio::test]
async fn every_way_to_fail_has_its_own_answer() {
    let ack = || option_reply(REPLY_ACK, &[]);
    let failed = |says: Vec<u8>| async { against(says, "demo").await.0.unwrap_err() };
    assert!(matches!(failed(b"SSH-2.0-OpenSSH_9.2 hello".to_vec()).await, ProbeError::NotNbd(_)));
    assert!(matches!(failed(greeting()).await, ProbeError::Io(_)));
    assert!(matches!(
        failed([greeting(), option_reply(ERROR_UNKNOWN, b"no")].concat()).await,
        ProbeError::NoExport
    ));
    let policy = [greeting(), option_reply(REPLY_IS_ERROR | 2, b"not for you")].concat();
    assert!(matches!(failed(policy).await, ProbeError::Refused(text) if text == "not for you"));
    assert!(matches!(failed([greeting(), ack()].concat()).await, ProbeError::NotNbd(_)));
    let broken = [greeting(), info(1 << 20), ack(), read_reply(5, &[])].concat();
    assert!(matches!(failed(broken).await, ProbeError::Read(5)));
    let endless = [greeting(), option_reply(9, &[]).repeat(REPLIES_MAX + 1)].concat();
    assert!(matches!(failed(endless).await, ProbeError::NotNbd(_)));
}

#[tokio::test]
async fn a_silent_server_ends_the_probe() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = Endpoint::Tcp(listener.local_addr().unwrap());
    let error = probe(&endpoint, "demo", Duration::from_millis(50)).await.unwrap_err();
    assert!(matches!(error, ProbeError::Timeout(_)), "{error}");
}

#[test]
fn addresses_are_printed_as_nbd_tools_take_them() {
    for (endpoint, want) in [
        ("127.0.0.1:10809", "nbd://127.0.0.1:10809/demo"),
        ("tls://10.0.0.1:10809", "nbds://10.0.0.1:10809/demo"),
        ("unix:/run/h.sock", "nbd+unix:///demo?socket=/run/h.sock"),
    ] {
        assert_eq!(nbd_uri(&endpoint.parse().unwrap(), "demo"), want);
    }
}
