//! Configurations that the roles accept, secrets that stay secret, nothing made twice.

use super::*;
use crate::up::plan::{Wanted, new_cluster};
use std::os::unix::fs::PermissionsExt;

fn cluster(dir: &Path, transport: Transport) -> Cluster {
    let mut port = 7000;
    let wanted = Wanted {
        transport: Some(transport),
        asd_capacity: Some("64GiB".parse().unwrap()),
        log_segments: Some(8),
        log_segment_size: Some("16MiB".parse().unwrap()),
        ..Wanted::default()
    };
    new_cluster(&wanted, dir, "c1", &mut || {
        port += 1;
        Ok(port)
    })
    .unwrap()
}

#[test]
fn every_role_accepts_what_is_made_for_it() {
    for transport in [Transport::Unix, Transport::Tcp, Transport::Tls] {
        let dir = tempfile::tempdir().unwrap();
        let cluster = cluster(dir.path(), transport);
        make_absent(&cluster).unwrap();
        for member in &cluster.members {
            crate::process::check_config(member.role, &cluster.config_file(&member.id)).unwrap();
        }
    }
}

#[test]
fn secrets_are_private_and_made_once() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = cluster(dir.path(), Transport::Tls);
    make_absent(&cluster).unwrap();
    let secrets = [
        kek_file(dir.path()),
        dir.path().join("ca/key.pem"),
        dir.path().join("admin/key.pem"),
        dir.path().join("asd-1/key.pem"),
    ];
    let read = |path: &PathBuf| std::fs::read(path).unwrap();
    let first: Vec<Vec<u8>> = secrets.iter().map(read).collect();
    for path in &secrets {
        let mode = std::fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, PRIVATE, "{}", path.display());
    }
    make_absent(&cluster).unwrap();
    assert_eq!(secrets.iter().map(read).collect::<Vec<_>>(), first);
}

#[test]
fn certificates_fit_the_role_that_uses_them() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = cluster(dir.path(), Transport::Tls);
    make_absent(&cluster).unwrap();
    for member in &cluster.members {
        let tls = cluster.tls(&member.id).unwrap();
        runtime::tls::TlsIdentity::load(&tls, member.role.wire()).unwrap();
    }
    runtime::tls::TlsIdentity::load(&cluster.tls(ADMIN).unwrap(), Role::Admin).unwrap();
}

#[test]
fn edits_survive_and_only_the_edges_follow_a_new_nbd_address() {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = cluster(dir.path(), Transport::Unix);
    make_absent(&cluster).unwrap();
    let edited = cluster.config_file("router-1");
    std::fs::write(&edited, "# mine").unwrap();
    make_absent(&cluster).unwrap();
    cluster.nbd = "127.0.0.1:4242".parse().unwrap();
    rewrite_edges(&cluster).unwrap();
    assert_eq!(std::fs::read_to_string(&edited).unwrap(), "# mine");
    assert!(
        std::fs::read_to_string(cluster.config_file("edge-1")).unwrap().contains("127.0.0.1:4242")
    );
}

#[test]
fn a_lost_disk_gets_no_new_directory() {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = cluster(dir.path(), Transport::Unix);
    for member in &mut cluster.members {
        member.initialized = true;
    }
    make_absent(&cluster).unwrap();
    assert!(!cluster.member_dir("asd-3").exists());
    assert!(cluster.config_file("alba-proxy-1").exists(), "a proxy has nothing to lose");
}

#[test]
fn sizes_are_never_rounded() {
    assert_eq!(exact_size(16 << 20), text("16MiB"));
    assert_eq!(exact_size((9 << 30) + 4096), text((9_u64 << 30) + 4096));
}
