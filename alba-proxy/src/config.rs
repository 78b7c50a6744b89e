//! The configuration file: as written ([`RawConfig`]), and as it may be believed ([`Config`]).

use runtime::config::{ArakoonSection, ConfigError, NodeEntry, Parsed, TlsSection};
use runtime::endpoint::Endpoint;
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a write waits for the last fragments once enough are stored, unless the file says otherwise.
const SLACK_MS_DEFAULT: u64 = 250;
const SLACK_MS_MAX: u64 = 10_000;

/// What the file says.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawConfig {
    name: String,
    cluster: String,
    data_dir: PathBuf,
    listen: Parsed<Endpoint>,
    backend: String,
    key_file: PathBuf,
    arakoon: ArakoonSection,
    tls: Option<TlsSection>,
    slack_ms: Option<u64>,
}

/// What holds.
#[derive(Debug, Clone)]
pub struct Config {
    pub name: String,
    pub cluster: String,
    pub data_dir: PathBuf,
    pub listen: Endpoint,
    /// Whose OSDs and presets are used.
    pub backend: String,
    pub key_file: PathBuf,
    pub arakoon: Vec<NodeEntry>,
    pub tls: Option<TlsSection>,
    pub slack: Duration,
}

/// A configuration with every key, as `holdfast config example alba-proxy` prints it.
pub const EXAMPLE: &str = r#"# An alba-proxy: turns objects into fragments on OSDs and back. It keeps nothing of its own.

# Name of this process, unique in the cluster; shown in logs and status.
name = "proxy-1"
# Id of the cluster; a peer of another one is refused.
cluster = "holdfast"
# Only a lock file lives here.
data_dir = "/var/lib/holdfast/proxy-1"
# Plain on loopback and unix sockets (unix:/run/x.sock); tls://IP:PORT beyond.
listen = "127.0.0.1:7200"
# The backend whose OSDs and presets are used.
backend = "default"
# Keys that wrap the namespaces' keys. One per line: v1 <key id> <64 hexadecimal digits>; the first is current.
# Readable by owner and group only.
key_file = "/etc/holdfast/backend.keys"
# With enough fragments stored, a write waits this long for the rest; what comes later is a hole, filled in the
# background.
slack_ms = 250

[[arakoon.nodes]]
id = 1
name = "arakoon-1"
address = "127.0.0.1:7001"

# [tls]
# ca = "/etc/holdfast/ca.pem"
# cert = "/etc/holdfast/proxy-1.pem"
# key = "/etc/holdfast/proxy-1.key"
"#;

impl Config {
    /// # Errors
    /// When the file can't be read, or something in it can't be; the error names file and key.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let raw: RawConfig = runtime::config::load(path)?;
        Self::check(raw).map_err(|(key, problem)| ConfigError::Invalid {
            path: path.to_owned(),
            key,
            problem,
        })
    }

    fn check(raw: RawConfig) -> Result<Self, (&'static str, String)> {
        for (key, value) in
            [("name", &raw.name), ("cluster", &raw.cluster), ("backend", &raw.backend)]
        {
            if value.is_empty() || value.len() > 64 || value.contains(['/', '\n']) {
                return Err((key, "must be a word of 1 to 64 characters without `/`".to_owned()));
            }
        }
        if raw.arakoon.nodes.is_empty() {
            return Err(("arakoon.nodes", "must name at least one node".to_owned()));
        }
        let slack_ms = raw.slack_ms.unwrap_or(SLACK_MS_DEFAULT);
        if slack_ms > SLACK_MS_MAX {
            return Err(("slack_ms", format!("must be at most {SLACK_MS_MAX}")));
        }
        if matches!(raw.listen.0, Endpoint::Tls(_)) && raw.tls.is_none() {
            return Err(("listen", "is tls://…, but there is no [tls] section".to_owned()));
        }
        Ok(Self {
            name: raw.name,
            cluster: raw.cluster,
            data_dir: raw.data_dir,
            listen: raw.listen.0,
            backend: raw.backend,
            key_file: raw.key_file,
            arakoon: raw.arakoon.nodes,
            tls: raw.tls,
            slack: Duration::from_millis(slack_ms),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Config, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("proxy.toml");
        std::fs::write(&path, text).unwrap();
        Config::load(&path)
    }

    #[test]
    fn the_example_holds_and_mistakes_name_their_key() {
        let config = load(EXAMPLE).unwrap();
        assert_eq!((config.name.as_str(), config.slack), ("proxy-1", Duration::from_millis(250)));
        for (from, to, want) in [
            ("slack_ms = 250", "slack_ms = 99999", "slack_ms"),
            ("name = \"proxy-1\"", "name = \"\"", "name"),
            ("listen = \"127", "listen = \"tls://127", "listen"),
            ("backend = ", "backed = ", "backed"),
            ("127.0.0.1:7200", "10.0.0.1:7200", "tls://"),
        ] {
            let error = load(&EXAMPLE.replacen(from, to, 1)).unwrap_err().to_string();
            assert!(error.contains(want) && error.contains("proxy.toml"), "{error}");
        }
    }
}
