//! `cluster.toml`: which processes make up a cluster, where they listen, and what was chosen when it was made.
//!
//! `holdfast up` writes it, every other command reads it, so a command line needs no other knowledge of the cluster.
//! Invariant: a [`Cluster`] in memory was validated wholly; the file is replaced by one rename, never edited in place.

use crate::failure::{Failure, io_failure};
use crate::role::ProcessRole;
use model::{OsdId, PolicyList};
use runtime::config::{NodeEntry, Parsed, TlsSection};
use runtime::endpoint::Endpoint;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use wire::dtl::DtlMode;

pub const FILE: &str = "cluster.toml";
/// Version of the file that is written; the only one so far.
const VERSION: u32 = 1;

/// How the processes talk to each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// Sockets in the data directory.
    Unix,
    /// Plain TCP on loopback.
    Tcp,
    /// Mutual TLS on loopback, as between hosts.
    Tls,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// Try a few frames of each object, compress the rest only if that pays.
    Adaptive,
    /// Try every frame.
    Always,
    Off,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Encryption {
    #[value(name = "aes-256-gcm")]
    #[serde(rename = "aes-256-gcm")]
    Aes256Gcm,
    Off,
}

/// A second copy of what a router has logged and the backend doesn't have yet, at another router.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Dtl {
    /// A write is acknowledged when both routers have it.
    Sync,
    /// A write is acknowledged at once, a flush when both have it on stable storage.
    Async,
    /// No copy: a killed router is waited for.
    #[default]
    None,
}

impl Dtl {
    #[must_use]
    pub const fn mode(self) -> DtlMode {
        match self {
            Self::Sync => DtlMode::Sync,
            Self::Async => DtlMode::Async,
            Self::None => DtlMode::NoTarget,
        }
    }
}

/// What was chosen when the cluster was made and can't be changed by a later `up`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Choices {
    pub transport: Transport,
    pub policy: Parsed<PolicyList>,
    pub compression: Compression,
    pub encryption: Encryption,
    /// Of vDisks; clusters of earlier versions have none.
    #[serde(default)]
    pub dtl: Dtl,
    // Sizes as numbers: how a size prints may round it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asd_capacity_bytes: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_segments: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_segment_size_bytes: Option<u64>,
}

/// One process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    pub role: ProcessRole,
    /// `asd-3`: its name, its directory, its name in certificates and logs.
    pub id: String,
    pub endpoint: Parsed<Endpoint>,
    /// The network namespace (of `ip netns`) that it runs in, as on a host of its own; nothing = that of `holdfast up`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netns: Option<String>,
    /// arakoon only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub raft_id: Option<u64>,
    /// ASD only: the id found on its disk at the first start. Another id later is another disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub osd: Option<Parsed<OsdId>>,
    /// It has run and so has data; if that is gone, it is lost, not new.
    #[serde(default)]
    pub initialized: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawCluster {
    version: u32,
    cluster: String,
    dir: PathBuf,
    nbd: Parsed<Endpoint>,
    choices: Choices,
    members: Vec<Member>,
}

/// A cluster as it may be believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cluster {
    pub id: String,
    pub dir: PathBuf,
    pub nbd: Endpoint,
    pub choices: Choices,
    pub members: Vec<Member>,
}

impl Cluster {
    /// # Errors
    /// When the file is missing, isn't TOML of this form, or contradicts itself.
    pub fn load(file: &Path) -> Result<Self, Failure> {
        if !file.exists() {
            let hint = "; start a cluster with `holdfast up`, or name one with --dir, HOLDFAST_DIR or --cluster";
            return Err(Failure::config(format!(
                "there is no cluster at {}{hint}",
                file.display()
            )));
        }
        let raw: RawCluster = runtime::config::load(file).map_err(Failure::config)?;
        Self::validate(raw)
            .map_err(|problem| Failure::config(format!("{}: {problem}", file.display())))
    }

    fn validate(raw: RawCluster) -> Result<Self, String> {
        if raw.version != VERSION {
            return Err(format!(
                "version: {} isn't known, this program writes {VERSION}",
                raw.version
            ));
        }
        let mut ids = BTreeSet::new();
        let mut raft_ids = BTreeSet::new();
        for member in &raw.members {
            let Member { id, role, raft_id, .. } = member;
            if id.is_empty() || !id.chars().all(|c| c.is_ascii_alphanumeric() || c == '-') {
                return Err(format!("members: `{id}` isn't a name of letters, digits and `-`"));
            }
            if !ids.insert(id) {
                return Err(format!("members: `{id}` is there twice"));
            }
            match (role, raft_id) {
                (ProcessRole::Arakoon, Some(raft)) if *raft > 0 && raft_ids.insert(raft) => {}
                (ProcessRole::Arakoon, _) => {
                    return Err(format!("members: {id}: raft_id must be there, above 0, unique"));
                }
                (_, None) => {}
                (_, Some(_)) => {
                    return Err(format!("members: {id}: only an arakoon has a raft_id"));
                }
            }
        }
        for role in ProcessRole::ALL {
            if !raw.members.iter().any(|member| member.role == role) {
                return Err(format!("members: there is no {role}"));
            }
        }
        let RawCluster { cluster: id, dir, nbd, choices, members, .. } = raw;
        Ok(Self { id, dir, nbd: nbd.0, choices, members })
    }

    /// Writes `dir/cluster.toml` by one rename, so a reader never sees half of it.
    ///
    /// # Errors
    /// When the directory can't be written.
    pub fn save(&self) -> Result<(), Failure> {
        let Self { id, dir, nbd, choices, members } = self.clone();
        let raw =
            RawCluster { version: VERSION, cluster: id, dir, nbd: Parsed(nbd), choices, members };
        let body = toml::to_string_pretty(&raw).expect("strings, numbers and tables are TOML");
        let text = format!(
            "# Written by `holdfast up`, read by every other command. Which processes there are, and where.\n{body}"
        );
        replace_file(&self.file(), text.as_bytes(), 0o644)
    }

    #[must_use]
    pub fn file(&self) -> PathBuf {
        self.dir.join(FILE)
    }

    pub fn of_role(&self, role: ProcessRole) -> impl Iterator<Item = &Member> {
        self.members.iter().filter(move |member| member.role == role)
    }

    #[must_use]
    pub fn member(&self, id: &str) -> Option<&Member> {
        self.members.iter().find(|member| member.id == id)
    }

    #[must_use]
    pub fn arakoon_nodes(&self) -> Vec<NodeEntry> {
        self.of_role(ProcessRole::Arakoon)
            .map(|member| NodeEntry {
                id: member.raft_id.expect("validated: every arakoon has one"),
                name: member.id.clone(),
                address: member.endpoint.clone(),
            })
            .collect()
    }

    /// Where a process keeps everything.
    #[must_use]
    pub fn member_dir(&self, id: &str) -> PathBuf {
        self.dir.join(id)
    }

    /// Where the role itself writes.
    #[must_use]
    pub fn data_dir(&self, id: &str) -> PathBuf {
        self.member_dir(id).join("data")
    }

    #[must_use]
    pub fn config_file(&self, id: &str) -> PathBuf {
        self.member_dir(id).join("config.toml")
    }

    #[must_use]
    pub fn log_file(&self, id: &str) -> PathBuf {
        self.member_dir(id).join("log")
    }

    /// Certificates of a process (or of `admin`), when the cluster talks TLS.
    #[must_use]
    pub fn tls(&self, id: &str) -> Option<TlsSection> {
        (self.choices.transport == Transport::Tls).then(|| tls_files(&self.dir, id))
    }

    /// It had data, and that is gone.
    #[must_use]
    pub fn is_lost(&self, member: &Member) -> bool {
        member.initialized && member.role.keeps_data() && !self.data_dir(&member.id).is_dir()
    }
}

/// Where `up` puts a process' certificate.
#[must_use]
pub fn tls_files(dir: &Path, id: &str) -> TlsSection {
    let own = dir.join(id);
    TlsSection {
        ca: dir.join("ca").join("cert.pem"),
        cert: own.join("cert.pem"),
        key: own.join("key.pem"),
    }
}

/// Whole or not at all: a temporary file beside it, synced, then renamed.
///
/// # Errors
/// When the directory can't be written.
pub fn replace_file(path: &Path, contents: &[u8], mode: u32) -> Result<(), Failure> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut staged = path.as_os_str().to_owned();
    staged.push(".new");
    let staged = PathBuf::from(staged);
    let write = || {
        let mut file = std::fs::OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(mode)
            .open(&staged)?;
        file.write_all(contents)?;
        file.sync_all()?;
        std::fs::rename(&staged, path)?;
        // The rename itself must outlive a power cut, or a second `up` would draw new identities.
        path.parent().map_or(Ok(()), |parent| std::fs::File::open(parent)?.sync_all())
    };
    write().map_err(|cause| io_failure("write", path, &cause))
}

/// Where the command line looks for the cluster.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Where {
    /// The cluster's directory, as given to `holdfast up` [default: ./holdfast-data]
    #[arg(long, global = true, env = "HOLDFAST_DIR", value_name = "DIR", help_heading = "Cluster")]
    pub dir: Option<PathBuf>,

    /// The cluster's description, where it isn't DIR/cluster.toml; goes before --dir
    #[arg(long, global = true, value_name = "FILE", help_heading = "Cluster")]
    pub cluster: Option<PathBuf>,
}

impl Where {
    #[must_use]
    pub fn directory(&self) -> PathBuf {
        self.dir.clone().unwrap_or_else(|| PathBuf::from("holdfast-data"))
    }

    /// # Errors
    /// When there is no cluster, or its description is wrong.
    pub fn load(&self) -> Result<Cluster, Failure> {
        match &self.cluster {
            Some(file) => Cluster::load(file),
            None => Cluster::load(&self.directory().join(FILE)),
        }
    }
}

#[cfg(test)]
mod tests;
