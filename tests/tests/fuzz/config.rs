//! Files that an operator writes or copies: configuration of each role, certificates and keys.
//!
//! The loaders take paths, so the bytes go through a file in a directory of this process.
//!
//! Invariant: a file is taken as a whole or refused with a sentence that names it; never a panic, never half of it.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use runtime::config::TlsSection;
use runtime::tls::{CertAndKey, TlsIdentity, issue, make_authority};
use wire::Role;

fn file(name: &str, data: &[u8]) -> PathBuf {
    static DIR: OnceLock<tempfile::TempDir> = OnceLock::new();
    let dir = DIR.get_or_init(|| tempfile::tempdir().expect("a temporary directory"));
    // Threads of one process must not write into each other's files.
    let path = dir.path().join(format!("{name}-{:?}", std::thread::current().id()));
    std::fs::write(&path, data).expect("the temporary directory can be written");
    path
}

/// Whether it was taken.
fn named<T, E: std::fmt::Display>(loaded: Result<T, E>, path: &Path) -> bool {
    let Err(error) = loaded else { return true };
    let text = error.to_string();
    assert!(text.contains(&path.display().to_string()), "the error names the file: {text}");
    false
}

/// The first byte says whose configuration the rest is.
pub fn fuzz_config(data: &[u8]) {
    let Some((role, text)) = data.split_first() else { return };
    load_named(*role, text);
}

fn load_named(role: u8, text: &[u8]) -> bool {
    let path = file("config", text);
    match role % 5 {
        0 => named(asd::Config::load(&path), &path),
        1 => named(router::Config::load(&path), &path),
        2 => named(edge::Config::load(&path), &path),
        3 => named(alba_proxy::Config::load(&path), &path),
        _ => named(arakoon::Config::load(&path), &path),
    }
}

/// A genuine set of files: authority, and certificate and key of a router.
pub fn genuine() -> &'static (CertAndKey, CertAndKey) {
    static FILES: OnceLock<(CertAndKey, CertAndKey)> = OnceLock::new();
    FILES.get_or_init(|| {
        let authority = make_authority("fuzz").expect("keys can be made");
        let router = issue(&authority, Role::Router, "router-1").expect("a certificate");
        (authority, router)
    })
}

/// The first byte says which of the three files the rest is; the others are genuine.
pub fn fuzz_tls_files(data: &[u8]) {
    let Some((which, text)) = data.split_first() else { return };
    let (authority, router) = genuine();
    let genuine = [&authority.cert_pem, &router.cert_pem, &router.key_pem];
    let paths: Vec<PathBuf> = genuine
        .iter()
        .enumerate()
        .map(|(number, pem)| {
            let bytes = if usize::from(which % 3) == number { text } else { pem.as_bytes() };
            file(&format!("tls-{number}"), bytes)
        })
        .collect();
    let section =
        TlsSection { ca: paths[0].clone(), cert: paths[1].clone(), key: paths[2].clone() };
    if let Err(error) = TlsIdentity::load(&section, Role::Router) {
        let text = error.to_string();
        let names = paths.iter().any(|path| text.contains(&path.display().to_string()));
        assert!(names, "the error names the file: {text}");
    }
}

pub fn fuzz_key_file(data: &[u8]) {
    let path = file("keys", data);
    std::fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("our own file");
    named(alba_proxy::key_file::KeyRing::load(&path), &path);
}

/// Damage to each role's configuration: a sentence that names the file, or a value that passed every check. Returns how
/// many bits were flipped.
pub fn damage_configurations(count: u64) -> u64 {
    let mut random = sim::Random::new(51);
    let bases = super::samples::samples("config");
    let (mut flips, mut refused) = (0, 0);
    for number in 0..count {
        let base = &bases[model::usize_of(number) % bases.len()];
        let (role, text) = base.split_first().expect("a sample says whose it is");
        let mut text = text.to_vec();
        let Some(done) = sim::files::damage(&mut text, &mut random) else { continue };
        let _shown = sim::seeds::Shown::new(format!("role {role}: {done:?}"));
        flips += u64::from(done.is_flip());
        refused += u64::from(!load_named(*role, &text));
    }
    eprintln!("{count} damages, {flips} flips: {refused} refused");
    assert!(0 < refused && refused < count, "{refused} of {count} refused");
    flips
}
