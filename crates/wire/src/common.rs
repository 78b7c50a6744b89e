//! What every protocol has: the hello that opens a connection, and the status that every role answers.

use crate::{message, tag};
use model::{Incarnation, VdiskId};

/// Version of the framing and of all protocols on it. One version back stays readable.
pub const VERSION: u16 = 1;

tag! {
    /// Who speaks. Over TLS the certificate must say the same.
    pub enum Role {
        Arakoon = 1,
        Asd = 2,
        AlbaProxy = 3,
        Router = 4,
        Edge = 5,
        /// An operator's command line or the manager.
        Admin = 6,
    }
}

tag! {
    /// How much an operator should mind.
    pub enum Severity {
        Info = 1,
        Warn = 2,
        Error = 3,
    }
}

impl Role {
    /// The name in configuration, certificates, status and logs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Arakoon => "arakoon",
            Self::Asd => "asd",
            Self::AlbaProxy => "alba-proxy",
            Self::Router => "router",
            Self::Edge => "edge",
            Self::Admin => "admin",
        }
    }

    pub const ALL: [Self; 6] =
        [Self::Arakoon, Self::Asd, Self::AlbaProxy, Self::Router, Self::Edge, Self::Admin];

    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.name() == name)
    }
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

message! {
    /// First frame in both directions.
    pub struct Hello {
        pub version_min: u16,
        pub version_max: u16,
        pub role: Role,
        /// Name of the process, like `asd-3`; for logs.
        pub name: String,
        /// Empty until known; when both sides know theirs they must agree.
        pub cluster: String,
        pub incarnation: Incarnation,
    }
}

/// Methods that every role answers.
pub mod method {
    /// `()` → [`super::Status`].
    pub const STATUS: u16 = 0xff00;
    /// [`super::EventsAsk`] → [`super::EventList`]. Routers answer it, to operators.
    pub const EVENTS: u16 = 0xff01;
}

message! {
    /// How a process is doing.
    pub struct Status {
        pub role: Role,
        pub name: String,
        pub pid: u32,
        /// Unix time in milliseconds at which the process started.
        pub since_unix_ms: u64,
        /// `running`, or a role's own word for a degraded mode (`recovering`, `full`, `read-only` …).
        pub state: String,
        /// Facts of the role as one JSON object.
        pub details_json: String,
    }
}

message! {
    /// What happened in a process; see `runtime::events`.
    pub struct Event {
        /// Grows by one from event to event of one life of the process.
        pub seq: u64,
        /// For people; nothing is decided by it.
        pub at_unix_ms: u64,
        pub severity: Severity,
        /// One word, for scripts: `claimed`, `gap`.
        pub kind: String,
        pub vdisk: Option<VdiskId>,
        pub text: String,
    }

    pub struct EventsAsk {
        /// Those with a higher number.
        pub after: u64,
        pub events_max: u32,
    }

    pub struct EventList {
        /// Of the process: when it changes, numbers begin anew.
        pub incarnation: Incarnation,
        pub events: Vec<Event>,
        /// Dropped before anybody asked for them.
        pub lost: u64,
        pub more: bool,
    }
}
