//! The router's configuration: what someone wrote (`RawConfig`), and what may be believed (`Config`).

use std::path::{Path, PathBuf};
use std::time::Duration;

use model::{ByteSize, DomainPath};
use router_core::rebalance::{Limits, Measure};
use runtime::config::{ArakoonSection, ConfigError, NodeEntry, Parsed, TlsSection, load};
use runtime::endpoint::Endpoint;
use serde::Deserialize;

use crate::balance::Balancing;

/// A commented configuration that works.
pub const EXAMPLE: &str = r#"# A storage router: owns vDisks and log-structures their writes.
name = "router-1"
# The cluster's id; processes of another cluster are refused.
cluster = "demo"
# Identity, write log (unless log_dir says otherwise) and page map.
data_dir = "/var/lib/holdfast/router-1"
# Where edges, routers and operators connect.
listen = "127.0.0.1:7300"
# What others are told to connect to; default: listen.
# addresses = ["tls://10.0.0.1:7300"]
# Where this router stands: datacenter/rack/host.
domain = "dc1/rack1/host1"
# The proxies of this router's host, tried in turn.
proxies = ["127.0.0.1:7200", "127.0.0.1:7201"]

# The write log: a pool of segments on a fast disk. Default directory: data_dir/log.
# log_dir = "/fast/holdfast/router-1"
# log_segments = 16
# log_segment_size = "64MiB"
# Data accepted but not in the backend yet, in memory. Default: half of the log.
# overlay_limit = "512MiB"
# Clusters read from the backend, in memory.
# read_cache = "256MiB"
# Pages of the page map, in memory.
# map_cache = "64MiB"
# How often page maps of vDisks are looked after that other routers own.
# map_follow_ms = 5000
# SCOs of a vDisk, at least, after which its page map is written to the backend: who has no copy replays about as many.
# map_checkpoint_every = 4096
# Largest object of a page map in the backend.
# map_part_size = "4MiB"
# SCO size; default: what the vPool says.
# sco_size = "4MiB"
# SCOs of one vDisk on their way at once.
# scos_in_flight = 3
# How long a stop waits for the backend to take what is pending.
# drain_timeout_ms = 15000
# Hand vDisks to routers that carry less, looking this often; default: never by itself. Say the same at every router.
# rebalance_every_ms = 60000
# What a router carries: the "number" of its vDisks, or its "load": what is asked of them, requests and bytes.
# rebalance_by = "number"
# By number: leave differences up to this many vDisks, and move at most so many in one round.
# rebalance_slack = 2
# rebalance_moves = 1
# By load: leave a vDisk where it is for so long after it was moved or opened.
# rebalance_rest_ms = 600000
# Over about this time what is asked of a vDisk is averaged.
# rebalance_damping_ms = 120000

[arakoon]
[[arakoon.nodes]]
id = 1
name = "arakoon-1"
address = "127.0.0.1:7000"
"#;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawConfig {
    name: String,
    cluster: String,
    data_dir: PathBuf,
    listen: Parsed<Endpoint>,
    addresses: Option<Vec<Parsed<Endpoint>>>,
    domain: Option<Parsed<DomainPath>>,
    proxies: Vec<Parsed<Endpoint>>,
    log_dir: Option<PathBuf>,
    log_segments: Option<u32>,
    log_segment_size: Option<Parsed<ByteSize>>,
    overlay_limit: Option<Parsed<ByteSize>>,
    read_cache: Option<Parsed<ByteSize>>,
    map_cache: Option<Parsed<ByteSize>>,
    map_follow_ms: Option<u64>,
    map_checkpoint_every: Option<u64>,
    map_part_size: Option<Parsed<ByteSize>>,
    sco_size: Option<Parsed<ByteSize>>,
    scos_in_flight: Option<usize>,
    drain_timeout_ms: Option<u64>,
    rebalance_every_ms: Option<u64>,
    rebalance_by: Option<RawMeasure>,
    rebalance_slack: Option<u64>,
    rebalance_moves: Option<usize>,
    rebalance_rest_ms: Option<u64>,
    rebalance_damping_ms: Option<u64>,
    arakoon: ArakoonSection,
    tls: Option<TlsSection>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum RawMeasure {
    Number,
    Load,
}

/// A configuration whose every value is legal.
#[derive(Debug, Clone)]
pub struct Config {
    pub name: String,
    pub cluster: String,
    pub data_dir: PathBuf,
    pub listen: Endpoint,
    /// Told to others; empty = where it really listens.
    pub addresses: Vec<Endpoint>,
    pub domain: DomainPath,
    pub proxies: Vec<Endpoint>,
    pub log_dir: PathBuf,
    pub log_segments: u32,
    pub log_segment_size: u64,
    pub overlay_limit: u64,
    pub read_cache: u64,
    pub map_cache: u64,
    /// Between two looks at the TLogs of a vDisk whose page map is copied here.
    pub map_follow: Duration,
    /// SCOs between two checkpoints of a page map.
    pub map_checkpoint_every: u64,
    /// Bytes of one part of a page map on its way, at most.
    pub map_part_size: u64,
    /// Overrides the vPool's.
    pub sco_size: Option<u64>,
    pub scos_in_flight: usize,
    pub drain_timeout: Duration,
    /// `None`: never by itself.
    pub balancing: Option<Balancing>,
    /// What is asked of vDisks is averaged over about so long.
    pub damping: Duration,
    pub arakoon: Vec<NodeEntry>,
    pub tls: Option<TlsSection>,
}

/// Smallest segment: the largest record, a list and some room.
const SEGMENT_MIN: u64 = 8 << 20;
/// Largest SCO: its slots fit in a location of the page map.
pub const SCO_MAX: u64 = 64 << 20;
pub const SCO_MIN: u64 = 64 << 10;
const MAP_PART_MAX: u64 = router_core::checkpoint::PART_BYTES as u64;

impl Config {
    /// # Errors
    /// When the file can't be read or a value may not stand; the error names the key.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let raw: RawConfig = load(path)?;
        raw.check().map_err(|(key, problem)| ConfigError::Invalid {
            path: path.to_owned(),
            key,
            problem,
        })
    }
}

/// What is said of page maps.
struct Maps {
    follow: Duration,
    checkpoint_every: u64,
    part_size: u64,
}

impl RawConfig {
    fn balancing(&self) -> Result<Option<Balancing>, (&'static str, String)> {
        let moves_max = self.rebalance_moves.unwrap_or(1);
        if !(1..=64).contains(&moves_max) {
            return Err(("rebalance_moves", format!("{moves_max} isn't between 1 and 64")));
        }
        let rest_ms = self.rebalance_rest_ms.unwrap_or(600_000);
        if 86_400_000 < rest_ms {
            return Err(("rebalance_rest_ms", format!("{rest_ms} isn't between 0 and 86400000")));
        }
        let alike = match self.rebalance_by {
            None | Some(RawMeasure::Number) => Measure::Number,
            Some(RawMeasure::Load) => Measure::Load,
        };
        // One vDisk moves at a time, and what is worth a move doesn't depend on who runs the cluster.
        let meant = [
            ("rebalance_slack", self.rebalance_slack.is_some(), Measure::Number),
            ("rebalance_moves", self.rebalance_moves.is_some(), Measure::Number),
            ("rebalance_rest_ms", self.rebalance_rest_ms.is_some(), Measure::Load),
        ];
        if let Some((key, ..)) = meant.iter().find(|(_, said, by)| *said && *by != alike) {
            return Err((*key, "it isn't heeded with what `rebalance_by` says".to_owned()));
        }
        let Some(every_ms) = self.rebalance_every_ms else { return Ok(None) };
        if !(100..=86_400_000).contains(&every_ms) {
            return Err((
                "rebalance_every_ms",
                format!("{every_ms} isn't between 100 and 86400000"),
            ));
        }
        let slack = match alike {
            Measure::Number => self.rebalance_slack.unwrap_or(2),
            Measure::Load => 0,
        };
        let limits = Limits { moves_max, slack, alike };
        let (every, rest) = (Duration::from_millis(every_ms), Duration::from_millis(rest_ms));
        Ok(Some(Balancing { every, limits, rest }))
    }

    fn damping(&self) -> Result<Duration, (&'static str, String)> {
        let damping_ms = self.rebalance_damping_ms.unwrap_or(120_000);
        if !(500..=3_600_000).contains(&damping_ms) {
            let problem = format!("{damping_ms} isn't between 500 and 3600000");
            return Err(("rebalance_damping_ms", problem));
        }
        Ok(Duration::from_millis(damping_ms))
    }

    fn maps(&self) -> Result<Maps, (&'static str, String)> {
        let follow_ms = self.map_follow_ms.unwrap_or(5000);
        if !(100..=600_000).contains(&follow_ms) {
            return Err(("map_follow_ms", format!("{follow_ms} isn't between 100 and 600000")));
        }
        let checkpoint_every = self.map_checkpoint_every.unwrap_or(4096);
        if !(4..=1_048_576).contains(&checkpoint_every) {
            let problem = format!("{checkpoint_every} isn't between 4 and 1048576");
            return Err(("map_checkpoint_every", problem));
        }
        let part_size = self.map_part_size.as_ref().map_or(MAP_PART_MAX, |size| size.0.0);
        if !(8 << 10..=MAP_PART_MAX).contains(&part_size) {
            return Err(("map_part_size", format!("{part_size} isn't between 8KiB and 4MiB")));
        }
        Ok(Maps { follow: Duration::from_millis(follow_ms), checkpoint_every, part_size })
    }

    fn check(self) -> Result<Config, (&'static str, String)> {
        let (balancing, damping) = (self.balancing()?, self.damping()?);
        let Maps { follow, checkpoint_every, part_size } = self.maps()?;
        let bytes =
            |value: Option<Parsed<ByteSize>>, default: u64| value.map_or(default, |v| v.0.0);
        let log_segments = self.log_segments.unwrap_or(16);
        let log_segment_size = bytes(self.log_segment_size, 64 << 20);
        if !(4..=4096).contains(&log_segments) {
            return Err(("log_segments", format!("{log_segments} isn't between 4 and 4096")));
        }
        if !(SEGMENT_MIN..=1 << 30).contains(&log_segment_size)
            || !log_segment_size.is_multiple_of(4096)
        {
            let problem =
                format!("{log_segment_size} isn't a multiple of 4096 between 8MiB and 1GiB");
            return Err(("log_segment_size", problem));
        }
        let sco_size = self.sco_size.map(|size| size.0.0);
        if let Some(size) = sco_size
            && !(SCO_MIN..=SCO_MAX).contains(&size)
        {
            return Err(("sco_size", format!("{size} isn't between 64KiB and 64MiB")));
        }
        if self.proxies.is_empty() {
            return Err(("proxies", "at least one proxy is needed".to_owned()));
        }
        if self.arakoon.nodes.is_empty() {
            return Err(("arakoon.nodes", "at least one node is needed".to_owned()));
        }
        if self.name.is_empty() {
            return Err(("name", "must not be empty".to_owned()));
        }
        let scos_in_flight = self.scos_in_flight.unwrap_or(3);
        if !(1..=64).contains(&scos_in_flight) {
            return Err(("scos_in_flight", format!("{scos_in_flight} isn't between 1 and 64")));
        }
        let log_bytes = u64::from(log_segments) * log_segment_size;
        Ok(Config {
            log_dir: self.log_dir.unwrap_or_else(|| self.data_dir.join("log")),
            name: self.name,
            cluster: self.cluster,
            data_dir: self.data_dir,
            listen: self.listen.0,
            addresses: self
                .addresses
                .unwrap_or_default()
                .into_iter()
                .map(|address| address.0)
                .collect(),
            domain: self.domain.map(|domain| domain.0).unwrap_or_default(),
            proxies: self.proxies.into_iter().map(|proxy| proxy.0).collect(),
            log_segments,
            log_segment_size,
            overlay_limit: bytes(self.overlay_limit, log_bytes / 2).max(16 << 20),
            read_cache: bytes(self.read_cache, 256 << 20).max(1 << 20),
            map_cache: bytes(self.map_cache, 64 << 20).max(1 << 20),
            map_follow: follow,
            map_checkpoint_every: checkpoint_every,
            map_part_size: part_size,
            sco_size,
            scos_in_flight,
            balancing,
            damping,
            drain_timeout: Duration::from_millis(self.drain_timeout_ms.unwrap_or(15_000)),
            arakoon: self.arakoon.nodes,
            tls: self.tls,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load_text(text: &str) -> Result<Config, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("router.toml");
        std::fs::write(&path, text).unwrap();
        Config::load(&path)
    }

    #[test]
    fn the_example_works() {
        let config = load_text(EXAMPLE).unwrap();
        assert_eq!(config.proxies.len(), 2);
        assert_eq!(config.overlay_limit, 512 << 20);
        assert_eq!(config.log_dir, Path::new("/var/lib/holdfast/router-1/log"));
    }

    #[test]
    fn a_bad_value_is_named_with_its_key() {
        for (line, key) in [
            ("log_segments = 1", "log_segments"),
            ("log_segment_size = \"1MiB\"", "log_segment_size"),
            ("sco_size = \"1GiB\"", "sco_size"),
            ("scos_in_flight = 0", "scos_in_flight"),
            ("map_follow_ms = 5", "map_follow_ms"),
            ("map_checkpoint_every = 0", "map_checkpoint_every"),
            ("map_part_size = \"4KiB\"", "map_part_size"),
            ("rebalance_every_ms = 5", "rebalance_every_ms"),
            ("rebalance_moves = 0", "rebalance_moves"),
            ("rebalance_by = \"luck\"", "rebalance_by"),
            ("rebalance_by = \"load\"\nrebalance_moves = 2", "rebalance_moves"),
            ("rebalance_by = \"load\"\nrebalance_slack = 2", "rebalance_slack"),
            ("rebalance_rest_ms = 60000", "rebalance_rest_ms"),
            ("rebalance_damping_ms = 1", "rebalance_damping_ms"),
            ("sko_size = \"1MiB\"", "sko_size"),
            ("read_cache = \"lots\"", "read_cache"),
        ] {
            let text = EXAMPLE.replacen("[arakoon]", &format!("{line}\n[arakoon]"), 1);
            let error = load_text(&text).unwrap_err().to_string();
            assert!(error.contains(key), "{line}: {error}");
        }
    }
}
