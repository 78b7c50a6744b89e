//! Real sockets on loopback: plain, unix and TLS.

use super::*;
use crate::config::TlsSection;
use crate::endpoint::Endpoint;
use crate::net::Listener;
use crate::peer::Identity;
use crate::shutdown::Shutdown;
use crate::tls::{issue, make_authority};
use bytes::Bytes;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use wire::Role;

const ECHO: u16 = 1;
const DROP: u16 = 2;
const NEVER: u16 = 3;
const WITHIN: Duration = Duration::from_secs(5);

/// Echoes; drops on `DROP`; keeps the responder of `NEVER` for ever.
#[derive(Default)]
struct Echo {
    kept: std::sync::Mutex<Vec<Responder>>,
}

impl Service for Echo {
    fn call(&self, request: Request, responder: Responder) {
        match request.method {
            ECHO => match request.decode::<u64>() {
                Ok(number) => responder.reply(&number, request.payload),
                Err(error) => responder.fail(error),
            },
            DROP => drop(responder),
            NEVER => self.kept.lock().unwrap().push(responder),
            _ => responder.fail(request.unknown_method()),
        }
    }
}

fn identity(role: Role, cluster: &str, tls: Option<&TlsSection>) -> Arc<Identity> {
    Identity::new(role, &format!("{role}-test"), cluster, tls).unwrap()
}

async fn start(endpoint: &str, tls: Option<&TlsSection>) -> (Endpoint, Shutdown) {
    let me = identity(Role::Asd, "c1", tls);
    let listener = Listener::bind(&endpoint.parse().unwrap(), &me).await.unwrap();
    let endpoint = listener.local_endpoint();
    let shutdown = Shutdown::new();
    let options = ServerOptions::allowing(&[Role::AlbaProxy]);
    tokio::spawn(serve(listener, me, Arc::new(Echo::default()), options, shutdown.clone()));
    (endpoint, shutdown)
}

/// Room for so many connections in all.
async fn start_with_room(connections_max: usize, allowed: &[Role]) -> (Endpoint, Shutdown) {
    let me = identity(Role::Asd, "c1", None);
    let listener = Listener::bind(&"127.0.0.1:0".parse().unwrap(), &me).await.unwrap();
    let (endpoint, shutdown) = (listener.local_endpoint(), Shutdown::new());
    let options = ServerOptions { connections_max, ..ServerOptions::allowing(allowed) };
    tokio::spawn(serve(listener, me, Arc::new(Echo::default()), options, shutdown.clone()));
    (endpoint, shutdown)
}

/// L8: when a thousand vDisks were attached at one router, nobody else reached it any more, and it was contested.
#[tokio::test]
async fn l8_a_flood_of_one_role_is_told_so_and_keeps_no_other_out() {
    let (endpoint, _shutdown) = start_with_room(8, &[Role::AlbaProxy, Role::Admin]).await;
    let of = |role| client(&endpoint, &identity(role, "c1", None));
    let mut crowd: Vec<Client> = (0..6).map(|_| of(Role::AlbaProxy)).collect();
    for one in &crowd {
        echo(one, 1).await.unwrap();
    }
    let refused = echo(&of(Role::AlbaProxy), 1).await.unwrap_err();
    assert_eq!(refused.code(), Some(wire::error::code::BUSY), "{refused}");
    assert!(refused.to_string().contains("6 connections of"), "{refused}");
    echo(&of(Role::Admin), 1).await.unwrap();
    // Who leaves makes room.
    drop(crowd.pop());
    let next = of(Role::AlbaProxy);
    let welcome = async {
        while echo(&next, 1).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(WITHIN, welcome).await.expect("room after one left");
}

async fn echo(client: &Client, number: u64) -> Result<(u64, Bytes), CallError> {
    client.call(ECHO, &number, Call::with_payload(Bytes::from(vec![7; 5000]), WITHIN)).await
}

fn client(endpoint: &Endpoint, me: &Arc<Identity>) -> Client {
    Client::new(endpoint.clone(), Role::Asd, Arc::clone(me), ClientOptions::default())
}

#[tokio::test]
async fn many_calls_share_a_connection_over_tcp_and_unix() {
    let dir = tempfile::tempdir().unwrap();
    for endpoint in ["127.0.0.1:0".to_owned(), format!("unix:{}/s", dir.path().display())] {
        let (endpoint, _shutdown) = start(&endpoint, None).await;
        let client = client(&endpoint, &identity(Role::AlbaProxy, "c1", None));
        let mut calls = tokio::task::JoinSet::new();
        for number in 0..200 {
            let client = client.clone();
            calls.spawn(async move {
                let (answer, payload) = echo(&client, number).await.unwrap();
                assert_eq!((answer, payload), (number, Bytes::from(vec![7; 5000])));
            });
        }
        assert_eq!(calls.join_all().await.len(), 200);
    }
}

#[tokio::test]
async fn failures_say_what_the_caller_can_do() {
    let (endpoint, shutdown) = start("127.0.0.1:0", None).await;
    let client = client(&endpoint, &identity(Role::AlbaProxy, "c1", None));
    let dropped = client.call::<_, ()>(DROP, &(), Call::within(WITHIN)).await.unwrap_err();
    assert_eq!(dropped.class(), wire::ErrorClass::Retry);
    let unknown = client.call::<_, ()>(99, &(), Call::within(WITHIN)).await.unwrap_err();
    assert_eq!(unknown.code(), Some(wire::error::code::UNKNOWN_METHOD));
    let bad = client.call::<_, ()>(ECHO, &(), Call::within(WITHIN)).await.unwrap_err();
    assert_eq!(bad.code(), Some(wire::error::code::BAD_MESSAGE));
    let late = client
        .call::<_, ()>(NEVER, &(), Call::within(Duration::from_millis(50)))
        .await
        .unwrap_err();
    assert!(matches!(late, CallError::Timeout { .. }) && late.outcome_unknown());
    shutdown.trigger();
}

/// One timer serves all calls of a connection.
#[tokio::test]
async fn every_call_keeps_its_own_deadline_whatever_others_wait_for() {
    let (endpoint, _shutdown) = start("127.0.0.1:0", None).await;
    let client = client(&endpoint, &identity(Role::AlbaProxy, "c1", None));
    let connection = client.connection().await.unwrap();
    let never = |timeout| connection.begin::<_, ()>(NEVER, &(), Call::within(timeout)).unwrap();
    let mut patient = std::pin::pin!(never(Duration::from_secs(3600)));
    // Twice: the timer is set anew after it went off, with a patient call under way.
    for _ in 0..2 {
        let begin = tokio::time::Instant::now();
        let hasty = Duration::from_millis(50);
        let both = async { tokio::join!(never(hasty), never(hasty * 2)) };
        let (first, second) = tokio::time::timeout(WITHIN, both).await.expect("their deadlines");
        for error in [first.unwrap_err(), second.unwrap_err()] {
            assert!(matches!(error, CallError::Timeout { .. }), "{error}");
        }
        assert!(hasty * 2 <= begin.elapsed());
    }
    echo(&client, 1).await.unwrap();
    let waits = tokio::time::timeout(Duration::ZERO, patient.as_mut()).await;
    assert!(waits.is_err(), "nothing ended the patient one");
}

/// Read buffers are used again, but never while somebody holds what was read into them.
#[tokio::test]
async fn answers_that_are_kept_stay_what_they_were() {
    let (endpoint, _shutdown) = start("127.0.0.1:0", None).await;
    let client = client(&endpoint, &identity(Role::AlbaProxy, "c1", None));
    let mut kept = Vec::new();
    for number in 0..400_u64 {
        let len = usize::try_from(1000 + number * 7919 % 60_000).unwrap();
        let payload = Bytes::from(vec![u8::try_from(number % 251).unwrap(); len]);
        let call = Call::with_payload(payload.clone(), WITHIN);
        let (_, answer): (u64, Bytes) = client.call(ECHO, &number, call).await.unwrap();
        if number % 5 == 0 {
            kept.push((answer, payload));
        }
    }
    assert!(kept.iter().all(|(answer, payload)| answer == payload));
}

#[tokio::test]
async fn a_call_under_way_ends_when_the_server_goes() {
    let (endpoint, shutdown) = start("127.0.0.1:0", None).await;
    let client = client(&endpoint, &identity(Role::AlbaProxy, "c1", None));
    let connection = client.connection().await.unwrap();
    let call = connection.call::<_, ()>(NEVER, &(), Call::within(WITHIN));
    let stop = async {
        echo(&client, 1).await.unwrap();
        shutdown.trigger();
    };
    let (error, ()) = tokio::join!(call, stop);
    assert!(matches!(error.unwrap_err(), CallError::Closed { .. }));
    connection.closed().await;
    assert!(matches!(echo(&client, 1).await.unwrap_err(), CallError::Unreachable { .. }));
}

#[tokio::test]
async fn strangers_are_refused() {
    let (endpoint, _shutdown) = start("127.0.0.1:0", None).await;
    let edge = client(&endpoint, &identity(Role::Edge, "c1", None));
    assert_eq!(echo(&edge, 1).await.unwrap_err().code(), Some(wire::error::code::FORBIDDEN));
    let other = client(&endpoint, &identity(Role::AlbaProxy, "c2", None));
    let error = echo(&other, 1).await.unwrap_err().to_string();
    assert!(error.contains("cluster"), "{error}");
}

fn section(dir: &Path, authority: &crate::tls::CertAndKey, role: Role) -> TlsSection {
    let issued = issue(authority, role, "x").unwrap();
    let path = |what: &str| dir.join(format!("{role}-{what}.pem"));
    std::fs::write(path("ca"), &authority.cert_pem).unwrap();
    std::fs::write(path("cert"), issued.cert_pem).unwrap();
    std::fs::write(path("key"), issued.key_pem).unwrap();
    TlsSection { ca: path("ca"), cert: path("cert"), key: path("key") }
}

#[tokio::test]
async fn over_tls_the_certificate_proves_the_role() {
    let dir = tempfile::tempdir().unwrap();
    let authority = make_authority("c1").unwrap();
    let (endpoint, _shutdown) =
        start("tls://127.0.0.1:0", Some(&section(dir.path(), &authority, Role::Asd))).await;

    let proxy = section(dir.path(), &authority, Role::AlbaProxy);
    let good = client(&endpoint, &identity(Role::AlbaProxy, "c1", Some(&proxy)));
    assert_eq!(echo(&good, 5).await.unwrap().0, 5);

    // A certificate for another role can't be loaded as ours, and a stranger's authority isn't ours.
    let error = Identity::new(
        Role::AlbaProxy,
        "x",
        "c1",
        Some(&section(dir.path(), &authority, Role::Edge)),
    );
    assert!(error.unwrap_err().to_string().contains("role edge"));
    let foreign = make_authority("c1").unwrap();
    let stranger_dir = tempfile::tempdir().unwrap();
    let mut stranger = section(stranger_dir.path(), &foreign, Role::AlbaProxy);
    stranger.ca = proxy.ca;
    let stranger = client(&endpoint, &identity(Role::AlbaProxy, "c1", Some(&stranger)));
    assert!(echo(&stranger, 5).await.is_err());
    // Without any certificate there is no way in either.
    let bare = client(&endpoint, &identity(Role::AlbaProxy, "c1", None));
    assert!(echo(&bare, 5).await.is_err());
}

#[tokio::test]
async fn garbage_on_the_socket_harms_nobody() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let (endpoint, _shutdown) = start("127.0.0.1:0", None).await;
    let Endpoint::Tcp(address) = endpoint.clone() else { panic!("tcp was asked for") };
    let mut stranger = tokio::net::TcpStream::connect(address).await.unwrap();
    stranger.write_all(b"GET / HTTP/1.1\r\nHost: example\r\n\r\n\r\n\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    // The server says its hello and closes.
    let _ = stranger.read_to_end(&mut answer).await;
    assert!(answer.starts_with(b"HFW1"));
    let client = client(&endpoint, &identity(Role::AlbaProxy, "c1", None));
    assert_eq!(echo(&client, 3).await.unwrap().0, 3);
}
