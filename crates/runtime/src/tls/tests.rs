//! Damage to certificates and keys: whoever holds them after it proves what was issued, or nothing.

use super::*;
use rustls::{ClientConnection, ServerConnection};
use sim::Random;
use sim::files::damage;
use sim::seeds::Shown;

/// Flights of a handshake; more would be a loop.
const FLIGHTS: usize = 20;

/// The certificates that client and server saw of each other, if they agree.
fn shake(
    client: &Arc<ClientConfig>,
    server: &Arc<ServerConfig>,
) -> Result<[CertificateDer<'static>; 2], rustls::Error> {
    let mut client = ClientConnection::new(Arc::clone(client), server_name(Role::Router))?;
    let mut server = ServerConnection::new(Arc::clone(server))?;
    for _ in 0..FLIGHTS {
        let mut flight = Vec::new();
        client.write_tls(&mut flight).expect("memory takes all");
        server.read_tls(&mut &flight[..]).expect("memory gives all");
        server.process_new_packets()?;
        flight.clear();
        server.write_tls(&mut flight).expect("memory takes all");
        client.read_tls(&mut &flight[..]).expect("memory gives all");
        client.process_new_packets()?;
    }
    let shown = |certificates: Option<&[CertificateDer<'static>]>| {
        certificates.and_then(<[_]>::first).cloned().ok_or(rustls::Error::HandshakeNotComplete)
    };
    Ok([shown(client.peer_certificates())?, shown(server.peer_certificates())?])
}

#[test]
fn damage_to_certificates_and_keys_proves_nothing_new() {
    let soak = std::env::var_os("HOLDFAST_SOAK").is_some();
    let count = if soak { 4_000 } else { 300 };
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let section = TlsSection { ca: path("ca"), cert: path("cert"), key: path("key") };
    let authority = make_authority("damage").unwrap();
    let own = issue(&authority, Role::Router, "router-1").unwrap();
    let genuine = [&authority.cert_pem, &own.cert_pem, &own.key_pem];
    let write = |which: usize, bytes: &[u8]| {
        std::fs::write([&section.ca, &section.cert, &section.key][which], bytes).unwrap();
    };
    (0..).zip(genuine).for_each(|(which, pem)| write(which, pem.as_bytes()));
    let whole = TlsIdentity::load(&section, Role::Router).unwrap();
    let own_certificate = read_certificates(&section.cert).unwrap().remove(0);
    assert!(shake(&whole.client, &whole.server).is_ok());
    let mut random = Random::new(41);
    let (mut refused, mut distrusted, mut same) = (0, 0, 0);
    for number in 0..count {
        let which = number % 3;
        let mut bytes = genuine[which].as_bytes().to_vec();
        let Some(done) = damage(&mut bytes, &mut random) else { continue };
        let _shown = Shown::new(format!("file {which}, {done:?}"));
        write(which, &bytes);
        let loaded = TlsIdentity::load(&section, Role::Router);
        write(which, genuine[which].as_bytes());
        match loaded {
            Err(error) => {
                let text = error.to_string();
                let paths = [&section.ca, &section.cert, &section.key];
                let named = paths.iter().any(|path| text.contains(&path.display().to_string()));
                assert!(named, "{text}");
                refused += 1;
            }
            Ok(harmed) => {
                for shaken in
                    [shake(&harmed.client, &whole.server), shake(&whole.client, &harmed.server)]
                {
                    let Ok(shown) = shaken else {
                        distrusted += 1;
                        continue;
                    };
                    assert_eq!(shown, [own_certificate.clone(), own_certificate.clone()]);
                    same += 1;
                }
            }
        }
    }
    eprintln!("{count} damages: {refused} refused, {distrusted} distrusted, {same} of no effect");
    assert!(0 < refused && 0 < distrusted && 0 < same, "{refused}, {distrusted}, {same}");
}
