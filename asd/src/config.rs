//! The configuration file: as written ([`RawConfig`]), and as it may be believed ([`Config`]).

use asd_core::space::Limits;
use model::ByteSize;
use runtime::config::{ConfigError, Parsed, TlsSection};
use runtime::endpoint::Endpoint;
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// A configuration with every key explained, as `holdfast config example asd` prints it.
pub const EXAMPLE: &str = include_str!("../example.toml");

const MAINTENANCE_RATE_DEFAULT: ByteSize = ByteSize(64 << 20);
const READ_THREADS_DEFAULT: usize = 2;
const READ_THREADS_MAX: usize = 64;
/// Smallest capacity: below it the reserve would be most of the disk.
const CAPACITY_MIN: ByteSize = ByteSize(4 << 20);

/// What the file says.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawConfig {
    name: String,
    cluster: String,
    data_dir: PathBuf,
    listen: Parsed<Endpoint>,
    capacity: Option<Parsed<ByteSize>>,
    segment_size: Option<Parsed<ByteSize>>,
    maintenance_rate: Option<Parsed<ByteSize>>,
    read_threads: Option<usize>,
    tls: Option<TlsSection>,
}

/// What holds.
#[derive(Debug, Clone)]
pub struct Config {
    pub name: String,
    pub cluster: String,
    pub data_dir: PathBuf,
    pub listen: Endpoint,
    /// `None`: what was free at the first start.
    pub capacity: Option<ByteSize>,
    /// `None`: chosen from the capacity.
    pub segment_size: Option<ByteSize>,
    /// Bytes per second that maintenance may read, and write.
    pub maintenance_rate: ByteSize,
    pub read_threads: usize,
    pub tls: Option<TlsSection>,
}

type Problem = (&'static str, String);

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

    fn check(raw: RawConfig) -> Result<Self, Problem> {
        for (key, value) in [("name", &raw.name), ("cluster", &raw.cluster)] {
            if value.is_empty() || value.len() > 255 {
                return Err((key, "must have 1 to 255 bytes".to_owned()));
            }
        }
        let capacity = raw.capacity.map(|capacity| capacity.0);
        let segment_size = raw.segment_size.map(|size| size.0);
        if let Some(capacity) = capacity {
            if capacity < CAPACITY_MIN {
                return Err((
                    "capacity",
                    format!("{capacity} is too small: at least {CAPACITY_MIN}"),
                ));
            }
            limits(capacity, segment_size)?;
        }
        let read_threads = raw.read_threads.unwrap_or(READ_THREADS_DEFAULT);
        if !(1..=READ_THREADS_MAX).contains(&read_threads) {
            return Err(("read_threads", format!("must be 1 to {READ_THREADS_MAX}")));
        }
        let maintenance_rate = raw.maintenance_rate.map_or(MAINTENANCE_RATE_DEFAULT, |rate| rate.0);
        if maintenance_rate.0 == 0 {
            return Err(("maintenance_rate", "must not be 0: repair would never end".to_owned()));
        }
        Ok(Self {
            name: raw.name,
            cluster: raw.cluster,
            data_dir: raw.data_dir,
            listen: raw.listen.0,
            capacity,
            segment_size,
            maintenance_rate,
            read_threads,
            tls: raw.tls,
        })
    }
}

/// The limits of the store for a capacity, which may come from the file or from the disk.
pub(crate) fn limits(
    capacity: ByteSize,
    segment_size: Option<ByteSize>,
) -> Result<Limits, Problem> {
    let segment = segment_size.map_or_else(|| Limits::default_segment(capacity.0), |size| size.0);
    Limits::new(capacity.0, segment).map_err(|error| ("segment_size", error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Config, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("asd.toml");
        std::fs::write(&path, text).unwrap();
        Config::load(&path).map_err(|error| error.to_string())
    }

    #[test]
    fn the_example_is_a_configuration_and_so_are_its_optional_keys() {
        let config = load(EXAMPLE).unwrap();
        assert_eq!(config.name, "asd-1");
        assert_eq!(config.capacity, None);
        let all: String = EXAMPLE
            .lines()
            .map(|line| {
                line.strip_prefix("# ")
                    .filter(|rest| rest.contains(" = ") || rest.starts_with('['))
                    .unwrap_or(line)
            })
            .fold(String::new(), |text, line| text + line + "\n");
        let config = load(&all).unwrap();
        assert_eq!(config.capacity, Some(ByteSize(1 << 40)));
        assert!(config.tls.is_some());
    }

    #[test]
    fn what_cannot_work_is_refused_by_key() {
        for (more, key) in [
            ("capacity = \"1MiB\"", "capacity"),
            ("capacity = \"64MiB\"\nsegment_size = \"64MiB\"", "segment_size"),
            ("capacity = \"1GiB\"\nsegment_size = \"100000\"", "segment_size"),
            ("read_threads = 0", "read_threads"),
            ("maintenance_rate = \"0\"", "maintenance_rate"),
            ("capacitee = \"1GiB\"", "capacitee"),
        ] {
            let text = format!(
                "name = \"a\"\ncluster = \"c\"\ndata_dir = \"/d\"\nlisten = \"127.0.0.1:0\"\n{more}\n"
            );
            let error = load(&text).unwrap_err();
            assert!(error.contains(key), "{error}");
        }
    }
}
