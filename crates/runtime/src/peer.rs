//! Who this process is, and who the other end of a connection says (and, over TLS, proves) to be.

use crate::config::TlsSection;
use crate::tls::{TlsError, TlsIdentity};
use model::Incarnation;
use std::sync::Arc;
use wire::common::VERSION;
use wire::{Hello, Role};

/// This process, in every hello it sends.
#[derive(Debug)]
pub struct Identity {
    pub role: Role,
    pub name: String,
    pub cluster: String,
    pub incarnation: Incarnation,
    pub started_unix_ms: u64,
    pub tls: Option<TlsIdentity>,
}

impl Identity {
    /// Draws a new incarnation: make one per process start.
    ///
    /// # Errors
    /// When certificate files are missing, unreadable, or don't fit together or the role.
    pub fn new(
        role: Role,
        name: &str,
        cluster: &str,
        tls: Option<&TlsSection>,
    ) -> Result<Arc<Self>, TlsError> {
        Ok(Arc::new(Self {
            role,
            name: name.to_owned(),
            cluster: cluster.to_owned(),
            incarnation: Incarnation(crate::random::u64()),
            started_unix_ms: crate::clock::unix_ms(),
            tls: tls.map(|section| TlsIdentity::load(section, role)).transpose()?,
        }))
    }

    #[must_use]
    pub(crate) fn hello(&self) -> Hello {
        Hello {
            version_min: VERSION,
            version_max: VERSION,
            role: self.role,
            name: self.name.clone(),
            cluster: self.cluster.clone(),
            incarnation: self.incarnation,
        }
    }
}

/// The other end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    pub role: Role,
    pub name: String,
    pub incarnation: Incarnation,
    /// Its certificate proved the role.
    pub proven: bool,
}
