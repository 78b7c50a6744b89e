//! Configuration files: TOML, validated wholly at start, errors that name file, line and key.

use crate::endpoint::Endpoint;
use serde::de::{DeserializeOwned, Deserializer, Error as _};
use serde::{Deserialize, Serialize, Serializer};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("can't read configuration {path}: {cause}")]
    Read { path: PathBuf, cause: io::Error },
    #[error("configuration {path}:\n{cause}")]
    Parse { path: PathBuf, cause: Box<toml::de::Error> },
    /// A value that parses but may not stand; the role's own check found it.
    #[error("configuration {path}: {key}: {problem}")]
    Invalid { path: PathBuf, key: &'static str, problem: String },
}

/// # Errors
/// When the file can't be read or isn't what `T` says.
pub fn load<T: DeserializeOwned>(path: &Path) -> Result<T, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|cause| ConfigError::Read { path: path.to_owned(), cause })?;
    toml::from_str(&text)
        .map_err(|cause| ConfigError::Parse { path: path.to_owned(), cause: Box::new(cause) })
}

/// A value written as a string and read by its own `FromStr`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parsed<T>(pub T);

impl<'de, T> Deserialize<'de> for Parsed<T>
where
    T: FromStr,
    T::Err: fmt::Display,
{
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map(Parsed).map_err(D::Error::custom)
    }
}

impl<T: fmt::Display> Serialize for Parsed<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

/// `[tls]`: who we are, and whose signature we accept.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct TlsSection {
    /// The cluster's certificate authority, PEM.
    pub ca: PathBuf,
    /// Our certificate, PEM; carries our role.
    pub cert: PathBuf,
    /// Our private key, PEM.
    pub key: PathBuf,
}

/// `[arakoon]`: the cluster of arakoon nodes.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ArakoonSection {
    pub nodes: Vec<NodeEntry>,
}

/// One `[[arakoon.nodes]]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct NodeEntry {
    /// Raft id: never 0, never reused for a node that lost its disk.
    pub id: u64,
    pub name: String,
    pub address: Parsed<Endpoint>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::ByteSize;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Sample {
        #[expect(dead_code, reason = "only its errors matter here")]
        size: Parsed<ByteSize>,
    }

    #[test]
    fn errors_name_file_line_and_key() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.toml");
        for (text, want) in [
            ("size = \"10 apples\"", "apples"),
            ("syze = \"1GiB\"", "syze"),
            ("size = 1 2", "line 1"),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = load::<Sample>(&path).unwrap_err().to_string();
            assert!(error.contains("x.toml") && error.contains(want), "{error}");
        }
        let error = load::<Sample>(&dir.path().join("none")).unwrap_err().to_string();
        assert!(error.contains("none"), "{error}");
    }
}
