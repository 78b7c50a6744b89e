//! Failure domains: where a disk or a host stands, and at which level losses are counted.

use std::fmt;
use std::str::FromStr;

/// The level at which `x` of a policy counts (P24).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DomainLevel {
    #[default]
    Disk,
    Host,
    Rack,
    Datacenter,
}

impl DomainLevel {
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Disk => "disk",
            Self::Host => "host",
            Self::Rack => "rack",
            Self::Datacenter => "datacenter",
        }
    }
}

impl fmt::Display for DomainLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Text that isn't a domain level or path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseDomainError {
    #[error("`{0}` isn't a domain level: use disk, host, rack or datacenter")]
    Level(String),
    #[error(
        "`{0}` isn't a domain path: write datacenter/rack/host, letters, digits, `-`, `_` and `.`, like dc1/rack2/host3"
    )]
    Path(String),
}

impl FromStr for DomainLevel {
    type Err = ParseDomainError;

    fn from_str(text: &str) -> Result<Self, ParseDomainError> {
        match text {
            "disk" => Ok(Self::Disk),
            "host" => Ok(Self::Host),
            "rack" => Ok(Self::Rack),
            "datacenter" => Ok(Self::Datacenter),
            other => Err(ParseDomainError::Level(other.to_owned())),
        }
    }
}

/// `datacenter/rack/host`: where something stands. The disk itself is below the host.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DomainPath {
    text: String,
}

impl DomainPath {
    /// The domain at `level` as a prefix of the path; at `Disk` the caller's own identity decides, so `None`.
    #[must_use]
    pub fn at(&self, level: DomainLevel) -> Option<&str> {
        let parts = match level {
            DomainLevel::Disk => return None,
            DomainLevel::Host => 3,
            DomainLevel::Rack => 2,
            DomainLevel::Datacenter => 1,
        };
        let end = self.text.match_indices('/').nth(parts - 1).map_or(self.text.len(), |(at, _)| at);
        Some(&self.text[..end])
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl Default for DomainPath {
    fn default() -> Self {
        Self { text: "dc1/rack1/host1".to_owned() }
    }
}

impl fmt::Display for DomainPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}

impl FromStr for DomainPath {
    type Err = ParseDomainError;

    fn from_str(text: &str) -> Result<Self, ParseDomainError> {
        let legal = |part: &str| {
            !part.is_empty()
                && part.len() <= 64
                && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        };
        if text.split('/').count() == 3 && text.split('/').all(legal) {
            Ok(Self { text: text.to_owned() })
        } else {
            Err(ParseDomainError::Path(text.to_owned()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_names_the_domain_at_each_level() {
        let path: DomainPath = "dc1/r2/h3".parse().unwrap();
        assert_eq!(path.at(DomainLevel::Datacenter), Some("dc1"));
        assert_eq!(path.at(DomainLevel::Rack), Some("dc1/r2"));
        assert_eq!(path.at(DomainLevel::Host), Some("dc1/r2/h3"));
        assert_eq!(path.at(DomainLevel::Disk), None);
        assert!("dc1/r2".parse::<DomainPath>().is_err());
        assert!("dc1//h".parse::<DomainPath>().is_err());
    }
}
