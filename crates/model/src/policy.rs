//! Protection policies `(k, m, c, x)`: how many data and parity fragments, how many must be stored before a write is
//! acknowledged, and how many may share a failure domain.

use crate::{DomainLevel, FragmentIndex};
use std::fmt;
use std::str::FromStr;

/// One policy. Invariant: `1 <= k <= c <= k + m <= 32` and `1 <= x`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Policy {
    data: u8,
    parity: u8,
    needed: u8,
    per_domain: u8,
}

/// Why four numbers aren't a policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    #[error(
        "policy `{0}` isn't of the form k,m,c,x with an optional @level, like 4,2,5,1 or 4,2,5,3@host"
    )]
    Form(String),
    #[error("policy ({0}): k must be at least 1")]
    NoData(String),
    #[error("policy ({0}): k + m must be at most 32")]
    TooMany(String),
    #[error(
        "policy ({0}): c must lie between k and k + m, or an acknowledged object could be unreadable"
    )]
    Needed(String),
    #[error("policy ({0}): x must be at least 1")]
    PerDomain(String),
    #[error("the policies of a preset must count at one level, not at {0} and {1}")]
    Levels(DomainLevel, DomainLevel),
    #[error("a preset needs 1 to 8 policies")]
    Count,
}

impl Policy {
    /// # Errors
    /// When the numbers break the invariant.
    pub fn new(data: u8, parity: u8, needed: u8, per_domain: u8) -> Result<Self, PolicyError> {
        let text = || format!("{data},{parity},{needed},{per_domain}");
        let total = u16::from(data) + u16::from(parity);
        if data == 0 {
            return Err(PolicyError::NoData(text()));
        }
        if total > u16::from(FragmentIndex::COUNT_MAX) {
            return Err(PolicyError::TooMany(text()));
        }
        if needed < data || u16::from(needed) > total {
            return Err(PolicyError::Needed(text()));
        }
        if per_domain == 0 {
            return Err(PolicyError::PerDomain(text()));
        }
        Ok(Self { data, parity, needed, per_domain })
    }

    /// k: data fragments.
    #[must_use]
    pub const fn k(self) -> u8 {
        self.data
    }

    /// m: parity fragments.
    #[must_use]
    pub const fn m(self) -> u8 {
        self.parity
    }

    /// c: fragments stored before a write is acknowledged.
    #[must_use]
    pub const fn c(self) -> u8 {
        self.needed
    }

    /// x: fragments of one object that may share a domain.
    #[must_use]
    pub const fn x(self) -> u8 {
        self.per_domain
    }

    /// k + m.
    #[must_use]
    pub const fn total(self) -> u8 {
        self.data + self.parity
    }

    /// Every fragment position of an object under this policy.
    pub fn indexes(self) -> impl Iterator<Item = FragmentIndex> {
        (0..self.total()).map(|raw| FragmentIndex::new(raw).expect("k + m <= 32"))
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{},{},{},{}", self.data, self.parity, self.needed, self.per_domain)
    }
}

/// Policies in order of preference, and the level at which their `x` counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyList {
    policies: Vec<Policy>,
    level: DomainLevel,
}

impl PolicyList {
    pub const MAX: usize = 8;

    /// # Errors
    /// When there are none or too many.
    pub fn new(policies: Vec<Policy>, level: DomainLevel) -> Result<Self, PolicyError> {
        if policies.is_empty() || policies.len() > Self::MAX {
            return Err(PolicyError::Count);
        }
        Ok(Self { policies, level })
    }

    #[must_use]
    pub fn policies(&self) -> &[Policy] {
        &self.policies
    }

    #[must_use]
    pub const fn level(&self) -> DomainLevel {
        self.level
    }
}

impl FromStr for PolicyList {
    type Err = PolicyError;

    /// `k,m,c,x[@level]` separated by `;`, like `4,2,5,1;2,2,3,1`. Level: disk (default), host, rack, datacenter.
    fn from_str(text: &str) -> Result<Self, PolicyError> {
        let mut policies = Vec::new();
        let mut level = None;
        for part in text.split(';').map(str::trim).filter(|part| !part.is_empty()) {
            let form = || PolicyError::Form(part.to_owned());
            let (numbers, at) = part.split_once('@').unwrap_or((part, "disk"));
            let at: DomainLevel = at.trim().parse().map_err(|_| form())?;
            if let Some(first) = level.replace(at)
                && first != at
            {
                return Err(PolicyError::Levels(first, at));
            }
            let numbers: Vec<u8> = numbers
                .split(',')
                .map(|n| n.trim().parse())
                .collect::<Result<_, _>>()
                .map_err(|_| form())?;
            let [k, m, c, x] = numbers[..] else { return Err(form()) };
            policies.push(Policy::new(k, m, c, x)?);
        }
        Self::new(policies, level.unwrap_or_default())
    }
}

impl fmt::Display for PolicyList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, policy) in self.policies.iter().enumerate() {
            if at > 0 {
                f.write_str(";")?;
            }
            write!(f, "{policy}")?;
            if self.level != DomainLevel::Disk {
                write!(f, "@{}", self.level)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_prints_what_it_parsed() {
        for text in ["4,2,5,1;2,2,3,1", "1,2,2,1@datacenter", "8,4,10,3@host;4,2,5,3@host"] {
            assert_eq!(text.parse::<PolicyList>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn impossible_policies_are_refused_with_their_reason() {
        use PolicyError as E;
        let parse = |text: &str| text.parse::<PolicyList>().unwrap_err();
        assert!(matches!(parse("4,2,3,1"), E::Needed(_)));
        assert!(matches!(parse("4,2,7,1"), E::Needed(_)));
        assert!(matches!(parse("0,2,1,1"), E::NoData(_)));
        assert!(matches!(parse("30,3,30,1"), E::TooMany(_)));
        assert!(matches!(parse("4,2,5,0"), E::PerDomain(_)));
        assert!(matches!(parse("4,2,5"), E::Form(_)));
        assert!(matches!(parse("4,2,5,1@moon"), E::Form(_)));
        assert!(matches!(parse("4,2,5,1;2,2,3,1@host"), E::Levels(..)));
        assert!(matches!(parse(""), E::Count));
    }
}
