//! The configuration of an edge: what someone wrote, and what may be believed.

use model::{ByteSize, DomainPath};
use runtime::config::{ConfigError, Parsed, TlsSection, load};
use runtime::endpoint::Endpoint;
use serde::Deserialize;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

/// A configuration with every key explained.
pub const EXAMPLE: &str = include_str!("../example.toml");

/// Smallest replay log: one request of the largest size, and room to go on while it is flushed.
const REPLAY_LOG_MIN: u64 = 8 << 20;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawConfig {
    name: String,
    cluster: String,
    data_dir: PathBuf,
    domain: Option<Parsed<DomainPath>>,
    listen: Parsed<Endpoint>,
    nbd: Vec<Parsed<NbdAddress>>,
    routers: Vec<Parsed<Endpoint>>,
    #[serde(default)]
    allow_plain_nbd: bool,
    default_export: Option<String>,
    #[serde(default)]
    read_only: Vec<String>,
    #[serde(default)]
    shared: Vec<String>,
    #[serde(default)]
    take_over: bool,
    replay_log: Option<Parsed<ByteSize>>,
    io_deadline: Option<Parsed<Span>>,
    failover_after: Option<Parsed<Span>>,
    detach_after: Option<Parsed<Span>>,
    connections_max: Option<usize>,
    tls: Option<TlsSection>,
}

/// Where NBD is spoken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NbdAddress {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// Text that isn't an NBD address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseNbdAddressError {
    #[error("`{0}` isn't an NBD address: write IP:PORT, like 127.0.0.1:10809, or unix:/PATH")]
    Form(String),
    #[error("`{0}`: NBD over TLS isn't served by this version")]
    Tls(String),
}

impl FromStr for NbdAddress {
    type Err = ParseNbdAddressError;

    fn from_str(text: &str) -> Result<Self, ParseNbdAddressError> {
        let form = || ParseNbdAddressError::Form(text.to_owned());
        if text.starts_with("tls://") {
            return Err(ParseNbdAddressError::Tls(text.to_owned()));
        }
        match text.strip_prefix("unix:") {
            Some(path) if path.starts_with('/') => Ok(Self::Unix(PathBuf::from(path))),
            Some(_) => Err(form()),
            None => text.parse().map(Self::Tcp).map_err(|_| form()),
        }
    }
}

impl fmt::Display for NbdAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A length of time, written `500ms`, `15s` or `2min`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Span(Duration);

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` isn't a length of time: write it like 500ms, 15s or 2min");
        let split = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let (number, unit) = text.split_at(split);
        let number: u32 = number.parse().map_err(|_| wrong())?;
        let unit = match unit.trim() {
            "ms" => Duration::from_millis(1),
            "s" => Duration::from_secs(1),
            "min" => Duration::from_secs(60),
            _ => return Err(wrong()),
        };
        Ok(Self(unit * number))
    }
}

/// A configuration that may be believed.
#[derive(Debug, Clone)]
pub struct Config {
    pub name: String,
    pub cluster: String,
    pub data_dir: PathBuf,
    /// Where it runs, if somebody said.
    pub domain: Option<DomainPath>,
    /// For status.
    pub listen: Endpoint,
    /// At least one; loopback or unix sockets unless plain NBD beyond was allowed in so many words.
    pub nbd: Vec<NbdAddress>,
    /// At least one; further ones are learnt.
    pub routers: Vec<Endpoint>,
    pub default_export: Option<String>,
    pub read_only: Vec<String>,
    /// Other edges may write these too; whoever mounts them must be made for that, like a cluster filesystem.
    pub shared: Vec<String>,
    /// Push out another edge that holds a vDisk exclusively.
    pub take_over: bool,
    pub replay_log_bytes: u64,
    /// After this a request gets an I/O error; `None`: never.
    pub io_deadline: Option<Duration>,
    /// A router that is silent this long while something is owed is given up.
    pub failover_after: Duration,
    /// A vDisk without NBD connections is detached after this.
    pub detach_after: Duration,
    pub connections_max: usize,
    pub tls: Option<TlsSection>,
}

impl Config {
    /// # Errors
    /// When the file can't be read, doesn't parse, or says something that may not stand.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let raw: RawConfig = load(path)?;
        raw.check().map_err(|(key, problem)| ConfigError::Invalid {
            path: path.to_owned(),
            key,
            problem,
        })
    }
}

type Wrong = (&'static str, String);

impl RawConfig {
    fn check(self) -> Result<Config, Wrong> {
        let legal = wire::router::is_legal_name;
        if self.name.is_empty() {
            return Err(("name", "an edge needs a name, like edge-1".to_owned()));
        }
        if self.routers.is_empty() {
            return Err(("routers", "give the address of at least one router".to_owned()));
        }
        for name in self.default_export.iter().chain(&self.read_only).chain(&self.shared) {
            if !legal(name) {
                return Err((
                    "default_export / read_only / shared",
                    format!("`{name}` can't be a vDisk's name"),
                ));
            }
        }
        if let Some(name) = self.shared.iter().find(|name| self.read_only.contains(name)) {
            return Err((
                "shared",
                format!("`{name}` is in read_only as well; take it out of one"),
            ));
        }
        let nbd = check_nbd(self.nbd, Plain { allowed: self.allow_plain_nbd })?;
        let replay_log_bytes = self.replay_log.map_or(64 << 20, |size| size.0.0);
        if replay_log_bytes < REPLAY_LOG_MIN {
            return Err(("replay_log", format!("must be at least {}", ByteSize(REPLAY_LOG_MIN))));
        }
        let connections_max = self.connections_max.unwrap_or(256);
        if connections_max == 0 {
            return Err(("connections_max", "must be at least 1".to_owned()));
        }
        let span = |value: Option<Parsed<Span>>, default: u64| {
            value.map_or(Duration::from_secs(default), |span| span.0.0)
        };
        Ok(Config {
            name: self.name,
            cluster: self.cluster,
            data_dir: self.data_dir,
            domain: self.domain.map(|domain| domain.0),
            listen: self.listen.0,
            nbd,
            routers: self.routers.into_iter().map(|router| router.0).collect(),
            default_export: self.default_export,
            read_only: self.read_only,
            shared: self.shared,
            take_over: self.take_over,
            replay_log_bytes,
            io_deadline: self.io_deadline.map(|span| span.0.0),
            failover_after: span(self.failover_after, 15).max(Duration::from_secs(1)),
            detach_after: span(self.detach_after, 30),
            connections_max,
            tls: self.tls,
        })
    }
}

/// Whether NBD may be served where anyone can listen in.
#[derive(Clone, Copy)]
struct Plain {
    allowed: bool,
}

fn check_nbd(nbd: Vec<Parsed<NbdAddress>>, plain: Plain) -> Result<Vec<NbdAddress>, Wrong> {
    let nbd: Vec<NbdAddress> = nbd.into_iter().map(|address| address.0).collect();
    if nbd.is_empty() {
        return Err(("nbd", "give at least one address to serve NBD at".to_owned()));
    }
    for address in &nbd {
        if let NbdAddress::Tcp(socket) = address
            && !socket.ip().is_loopback()
            && !plain.allowed
        {
            let problem = format!(
                "{address} isn't loopback, and NBD there would be readable and writable by anyone who can reach it; \
                 if the network is trusted, say `allow_plain_nbd = true`"
            );
            return Err(("nbd", problem));
        }
    }
    Ok(nbd)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("edge.toml");
        std::fs::write(&path, text).unwrap();
        Config::load(&path).map_err(|error| error.to_string())
    }

    const MINIMAL: &str = "name='e'\ncluster='c'\ndata_dir='/d'\nlisten='127.0.0.1:7301'\n";

    #[test]
    fn the_example_is_a_configuration() {
        let config = parse(EXAMPLE).unwrap();
        assert_eq!(config.replay_log_bytes, 64 << 20);
        assert_eq!((config.io_deadline, config.domain), (None, None));
    }

    #[test]
    fn where_an_edge_runs_is_a_whole_path_or_not_said() {
        let rest = "nbd=['unix:/n']\nrouters=['127.0.0.1:7201']";
        let with = |domain: &str| parse(&format!("{MINIMAL}domain='{domain}'\n{rest}"));
        assert_eq!(with("dc1/r/h").unwrap().domain.unwrap().to_string(), "dc1/r/h");
        assert!(with("dc1").unwrap_err().contains("dc1"));
    }

    #[test]
    fn defaults_are_careful() {
        let text =
            format!("{MINIMAL}nbd=['127.0.0.1:10809','unix:/n']\nrouters=['127.0.0.1:7201']");
        let config = parse(&text).unwrap();
        assert!(!config.take_over && config.io_deadline.is_none());
        assert_eq!(config.nbd[1], NbdAddress::Unix("/n".into()));
    }

    #[test]
    fn wrong_configurations_name_the_key_and_the_remedy() {
        let nbd = "nbd=['127.0.0.1:10809']\n";
        let routers = "routers=['127.0.0.1:7201']\n";
        let table = [
            (format!("{routers}nbd=['0.0.0.0:10809']"), "allow_plain_nbd = true"),
            (format!("{routers}nbd=[]"), "nbd"),
            (format!("{routers}nbd=['tls://1.2.3.4:5']"), "TLS"),
            (format!("{routers}nbd=['somewhere']"), "127.0.0.1:10809"),
            (format!("{nbd}routers=[]"), "routers"),
            (format!("{nbd}{routers}replay_log='1MiB'"), "replay_log"),
            (format!("{nbd}{routers}io_deadline='soon'"), "15s"),
            (format!("{nbd}{routers}colour='red'"), "colour"),
            (format!("{nbd}{routers}read_only=['a b']"), "a b"),
            (format!("{nbd}{routers}connections_max=0"), "connections_max"),
            (format!("{nbd}{routers}shared=['a']\nread_only=['a']"), "take it out of one"),
        ];
        for (text, want) in table {
            let error = parse(&format!("{MINIMAL}{text}")).unwrap_err();
            assert!(error.contains(want), "{text}\n{error}");
        }
        let open = format!("{MINIMAL}{routers}nbd=['0.0.0.0:10809']\nallow_plain_nbd=true");
        assert!(parse(&open).is_ok());
    }
}
