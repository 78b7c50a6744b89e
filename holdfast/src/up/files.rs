//! The files of a cluster: one configuration per process, certificates, the key that encrypts namespace keys.
//!
//! Only what is absent is made: a second `up` must find the keys and identities of the first, and an operator's edits to a
//! `config.toml` stay. The one exception is the edge's NBD address, which `--nbd` may change.
//! Invariant: private keys and the key-encryption key are never readable by others, not even for a moment.

use crate::cluster::{Choices, Cluster, Member, Transport, replace_file, tls_files};
use crate::failure::{Failure, io_failure};
use crate::role::ProcessRole;
use model::ByteSize;
use runtime::config::TlsSection;
use runtime::tls::{CertAndKey, issue, make_authority};
use std::path::{Path, PathBuf};
use toml::{Table, Value};
use wire::Role;

const PRIVATE: u32 = 0o600;
const PUBLIC: u32 = 0o644;
/// The one backend that `up` makes.
pub const BACKEND: &str = "default";
/// Name of the operator's identity in certificates and hellos.
pub const ADMIN: &str = "admin";

/// The key-encryption key of the proxies.
#[must_use]
pub fn kek_file(dir: &Path) -> PathBuf {
    dir.join("keys").join("kek")
}

/// The configuration of one process, as the role itself reads it.
#[must_use]
pub fn config_text(cluster: &Cluster, member: &Member) -> String {
    let mut table = common(cluster, member);
    match member.role {
        ProcessRole::Arakoon => arakoon(&mut table, cluster),
        ProcessRole::Asd => asd(&mut table, &cluster.choices),
        ProcessRole::AlbaProxy => alba_proxy(&mut table, cluster),
        ProcessRole::Router => router(&mut table, cluster, &cluster.choices),
        ProcessRole::Edge => edge(&mut table, cluster),
    }
    let Member { role, id, .. } = member;
    format!(
        "# {id}, made by `holdfast up`; `holdfast config example {role}` explains every key.\n\
         # Edits are kept, and read when the process starts again.\n{}",
        toml::to_string_pretty(&table).expect("strings, numbers and tables are TOML")
    )
}

fn common(cluster: &Cluster, member: &Member) -> Table {
    let mut table = Table::new();
    table.insert("name".into(), text(&member.id));
    table.insert("cluster".into(), text(&cluster.id));
    table.insert("data_dir".into(), text(cluster.data_dir(&member.id).display()));
    table.insert("listen".into(), text(&member.endpoint.0));
    if let Some(TlsSection { ca, cert, key }) = cluster.tls(&member.id) {
        let mut tls = Table::new();
        for (name, path) in [("ca", ca), ("cert", cert), ("key", key)] {
            tls.insert(name.into(), text(path.display()));
        }
        table.insert("tls".into(), Value::Table(tls));
    }
    table
}

fn text(value: impl std::fmt::Display) -> Value {
    Value::String(value.to_string())
}

/// In the unit that a person would choose, unless that would round it.
fn exact_size(bytes: u64) -> Value {
    let size = ByteSize(bytes);
    if size.to_string().parse() == Ok(size) {
        text(size.to_string().replace(' ', ""))
    } else {
        text(bytes)
    }
}

fn endpoints(cluster: &Cluster, role: ProcessRole) -> Value {
    Value::Array(cluster.of_role(role).map(|member| text(&member.endpoint.0)).collect())
}

/// `[arakoon]`, where the role is a client of arakoon.
fn arakoon_section(cluster: &Cluster) -> Value {
    let node = |node: runtime::config::NodeEntry| {
        let mut table = Table::new();
        table.insert("id".into(), Value::Integer(i64::try_from(node.id).unwrap_or(i64::MAX)));
        table.insert("name".into(), text(node.name));
        table.insert("address".into(), text(node.address.0));
        Value::Table(table)
    };
    let nodes = cluster.arakoon_nodes().into_iter().map(node).collect();
    Value::Table(Table::from_iter([("nodes".to_owned(), Value::Array(nodes))]))
}

fn arakoon(table: &mut Table, cluster: &Cluster) {
    table.insert("arakoon".into(), arakoon_section(cluster));
}

fn asd(table: &mut Table, choices: &Choices) {
    if let Some(capacity) = choices.asd_capacity_bytes {
        table.insert("capacity".into(), exact_size(capacity));
    }
}

fn alba_proxy(table: &mut Table, cluster: &Cluster) {
    table.insert("backend".into(), text(BACKEND));
    table.insert("key_file".into(), text(kek_file(&cluster.dir).display()));
    table.insert("arakoon".into(), arakoon_section(cluster));
}

fn router(table: &mut Table, cluster: &Cluster, choices: &Choices) {
    table.insert("proxies".into(), endpoints(cluster, ProcessRole::AlbaProxy));
    table.insert("arakoon".into(), arakoon_section(cluster));
    if let Some(count) = choices.log_segments {
        table.insert("log_segments".into(), Value::Integer(count.into()));
    }
    if let Some(size) = choices.log_segment_size_bytes {
        table.insert("log_segment_size".into(), exact_size(size));
    }
}

fn edge(table: &mut Table, cluster: &Cluster) {
    table.insert("routers".into(), endpoints(cluster, ProcessRole::Router));
    // On one machine attaching again costs nothing, and who deletes a vDisk waits for the edge to let go.
    table.insert("detach_after".into(), text("3s"));
    table.insert("nbd".into(), Value::Array(vec![text(&cluster.nbd)]));
}

/// Makes every file that is absent. Directories of members that lost their data are left as they are found.
///
/// # Errors
/// When a file can't be read or written.
pub fn make_absent(cluster: &Cluster) -> Result<(), Failure> {
    let authority = authority(cluster)?;
    make_key(&kek_file(&cluster.dir))?;
    make_dir(&cluster.dir.join(ADMIN))?;
    make_certificate(cluster, &authority, Role::Admin, ADMIN)?;
    for member in &cluster.members {
        if cluster.is_lost(member) {
            continue;
        }
        make_dir(&cluster.member_dir(&member.id))?;
        let config = cluster.config_file(&member.id);
        if !config.exists() {
            replace_file(&config, config_text(cluster, member).as_bytes(), PUBLIC)?;
        }
        if cluster.choices.transport == Transport::Tls {
            make_certificate(cluster, &authority, member.role.wire(), &member.id)?;
        }
    }
    Ok(())
}

/// Rewrites the edges' configuration for another NBD address.
///
/// # Errors
/// When a file can't be written.
pub fn rewrite_edges(cluster: &Cluster) -> Result<(), Failure> {
    for member in cluster.of_role(ProcessRole::Edge) {
        make_dir(&cluster.member_dir(&member.id))?;
        replace_file(
            &cluster.config_file(&member.id),
            config_text(cluster, member).as_bytes(),
            PUBLIC,
        )?;
    }
    Ok(())
}

fn authority(cluster: &Cluster) -> Result<CertAndKey, Failure> {
    let dir = cluster.dir.join("ca");
    let (cert, key) = (dir.join("cert.pem"), dir.join("key.pem"));
    if !cert.exists() && !key.exists() {
        make_dir(&dir)?;
        let made = make_authority(&cluster.id).map_err(Failure::failed)?;
        // The key first: a certificate without its key could never be completed.
        replace_file(&key, made.key_pem.as_bytes(), PRIVATE)?;
        replace_file(&cert, made.cert_pem.as_bytes(), PUBLIC)?;
        return Ok(made);
    }
    let read = |path: &Path| {
        std::fs::read_to_string(path).map_err(|cause| io_failure("read", path, &cause))
    };
    Ok(CertAndKey { cert_pem: read(&cert)?, key_pem: read(&key)? })
}

fn make_certificate(
    cluster: &Cluster,
    authority: &CertAndKey,
    role: Role,
    id: &str,
) -> Result<(), Failure> {
    let TlsSection { cert, key, .. } = tls_files(&cluster.dir, id);
    if cert.exists() && key.exists() {
        return Ok(());
    }
    let made = issue(authority, role, id).map_err(Failure::failed)?;
    replace_file(&key, made.key_pem.as_bytes(), PRIVATE)?;
    replace_file(&cert, made.cert_pem.as_bytes(), PUBLIC)
}

/// One random key. Losing it loses every namespace's key, so it is never replaced.
fn make_key(path: &Path) -> Result<(), Failure> {
    if path.exists() {
        return Ok(());
    }
    make_dir(path.parent().unwrap_or(Path::new("/")))?;
    let mut key = [0; 32];
    runtime::random::fill(&mut key);
    let digits: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
    let text = format!(
        "# Key-encryption keys of the backend: whoever has them reads everything, who loses them reads nothing.\n\
         v1 1 {digits}\n"
    );
    replace_file(path, text.as_bytes(), PRIVATE)
}

fn make_dir(path: &Path) -> Result<(), Failure> {
    use std::os::unix::fs::DirBuilderExt;
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|cause| io_failure("make the directory", path, &cause))
}

#[cfg(test)]
mod tests;
