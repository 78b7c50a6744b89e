//! The five roles that a process can have, as configuration, status and the command line name them.

use serde::{Deserialize, Serialize};
use std::fmt;
use wire::Role;

/// A role that runs as a process. Order = the order in which a cluster starts.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "kebab-case")]
pub enum ProcessRole {
    Arakoon,
    Asd,
    AlbaProxy,
    Router,
    Edge,
}

impl ProcessRole {
    /// In starting order: nobody starts before what it calls.
    pub const ALL: [Self; 5] =
        [Self::Arakoon, Self::Asd, Self::AlbaProxy, Self::Router, Self::Edge];

    #[must_use]
    pub const fn name(self) -> &'static str {
        self.wire().name()
    }

    #[must_use]
    pub const fn wire(self) -> Role {
        match self {
            Self::Arakoon => Role::Arakoon,
            Self::Asd => Role::Asd,
            Self::AlbaProxy => Role::AlbaProxy,
            Self::Router => Role::Router,
            Self::Edge => Role::Edge,
        }
    }

    /// Its data can't be made anew by an empty start: a process that lost its directory must not come back as if it
    /// were the same (an arakoon node would vote without its log, an ASD would be another OSD under an old name).
    #[must_use]
    pub const fn keeps_data(self) -> bool {
        match self {
            Self::Arakoon | Self::Asd | Self::Router => true,
            Self::AlbaProxy | Self::Edge => false,
        }
    }
}

impl fmt::Display for ProcessRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
