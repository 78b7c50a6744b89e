//! The configuration of a node: `RawConfig` is what someone wrote, [`Config`] is what may be believed.

use runtime::config::{ArakoonSection, ConfigError, NodeEntry, Parsed, TlsSection, load};
use runtime::endpoint::Endpoint;
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// Applied entries after which the log is compacted, unless the configuration says otherwise.
pub const SNAPSHOT_AFTER_ENTRIES: u64 = 20_000;
const SNAPSHOT_AFTER_MIN: u64 = 10;

/// A configuration that parses, with every key explained.
pub const EXAMPLE: &str = r#"# One node of an arakoon cluster.

# This node's name; one of the nodes below.
name = "arakoon-1"
# The cluster's id: nodes and clients of other clusters are refused.
cluster = "holdfast"
# Raft's log and the data; nothing else may lie there.
data_dir = "/var/lib/holdfast/arakoon-1"
# Where it listens: IP:PORT on loopback, tls://IP:PORT, or unix:/PATH.
listen = "127.0.0.1:7101"
# Log entries after which the log is compacted.
# snapshot_after_entries = 20000

# All nodes, this one included: 1, 3 or 5, the same list on each. A new cluster begins when all of them are there.
[[arakoon.nodes]]
id = 1
name = "arakoon-1"
address = "127.0.0.1:7101"

[[arakoon.nodes]]
id = 2
name = "arakoon-2"
address = "127.0.0.1:7102"

[[arakoon.nodes]]
id = 3
name = "arakoon-3"
address = "127.0.0.1:7103"

# Needed for tls:// addresses.
# [tls]
# ca = "/etc/holdfast/ca.pem"
# cert = "/etc/holdfast/arakoon-1.pem"
# key = "/etc/holdfast/arakoon-1.key"
"#;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawConfig {
    name: String,
    cluster: String,
    data_dir: PathBuf,
    listen: Parsed<Endpoint>,
    snapshot_after_entries: Option<u64>,
    arakoon: ArakoonSection,
    tls: Option<TlsSection>,
}

/// A checked configuration.
#[derive(Debug, Clone)]
pub struct Config {
    pub name: String,
    pub cluster: String,
    pub data_dir: PathBuf,
    pub listen: Endpoint,
    pub snapshot_after_entries: u64,
    /// This node's Raft id.
    pub id: u64,
    pub nodes: Vec<NodeEntry>,
    pub tls: Option<TlsSection>,
}

impl Config {
    /// # Errors
    /// When the file can't be read, isn't such a configuration, or contradicts itself.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let raw: RawConfig = load(path)?;
        Self::check(raw).map_err(|(key, problem)| ConfigError::Invalid {
            path: path.to_owned(),
            key,
            problem,
        })
    }

    fn check(raw: RawConfig) -> Result<Self, (&'static str, String)> {
        const NODES: &str = "arakoon.nodes";
        let nodes = raw.arakoon.nodes;
        for (at, node) in nodes.iter().enumerate() {
            if node.id == 0 {
                return Err((NODES, format!("node `{}` has id 0; ids begin at 1", node.name)));
            }
            let earlier = &nodes[..at];
            if earlier.iter().any(|other| other.id == node.id || other.name == node.name) {
                return Err((NODES, format!("node {} `{}` is listed twice", node.id, node.name)));
            }
        }
        if nodes.len().is_multiple_of(2) || nodes.len() > 7 {
            return Err((
                NODES,
                format!("{} nodes are listed; 1, 3, 5 or 7 are needed", nodes.len()),
            ));
        }
        let Some(me) = nodes.iter().find(|node| node.name == raw.name) else {
            return Err((NODES, format!("this node, `{}`, isn't listed", raw.name)));
        };
        if raw.cluster.is_empty() {
            return Err(("cluster", "is empty".into()));
        }
        let snapshot_after_entries = raw.snapshot_after_entries.unwrap_or(SNAPSHOT_AFTER_ENTRIES);
        if snapshot_after_entries < SNAPSHOT_AFTER_MIN {
            return Err(("snapshot_after_entries", format!("is below {SNAPSHOT_AFTER_MIN}")));
        }
        Ok(Self {
            id: me.id,
            name: raw.name,
            cluster: raw.cluster,
            data_dir: raw.data_dir,
            listen: raw.listen.0,
            snapshot_after_entries,
            nodes,
            tls: raw.tls,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load_text(text: &str) -> Result<Config, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("arakoon.toml");
        std::fs::write(&path, text).unwrap();
        Config::load(&path).map_err(|error| error.to_string())
    }

    #[test]
    fn the_example_is_a_configuration() {
        let config = load_text(EXAMPLE).unwrap();
        assert_eq!((config.id, config.nodes.len()), (1, 3));
        assert_eq!(config.snapshot_after_entries, SNAPSHOT_AFTER_ENTRIES);
    }

    #[test]
    fn contradictions_are_named() {
        let cases = [
            ("name = \"arakoon-1\"\n", "name = \"other\"\n", "`other`, isn't listed"),
            ("id = 2", "id = 1", "listed twice"),
            ("id = 3", "id = 0", "id 0"),
            (
                "# snapshot_after_entries = 20000",
                "snapshot_after_entries = 1",
                "snapshot_after_entries",
            ),
            ("listen =", "lissten =", "lissten"),
            ("cluster = \"holdfast\"", "cluster = \"\"", "cluster"),
        ];
        for (from, to, want) in cases {
            let error = load_text(&EXAMPLE.replacen(from, to, 1)).unwrap_err();
            assert!(error.contains(want) && error.contains("arakoon.toml"), "{error}");
        }
        let two = EXAMPLE.replace(
            "[[arakoon.nodes]]\nid = 3\nname = \"arakoon-3\"\naddress = \"127.0.0.1:7103\"",
            "",
        );
        assert!(load_text(&two).unwrap_err().contains("2 nodes"));
    }
}
