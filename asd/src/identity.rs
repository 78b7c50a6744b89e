//! `asd.id`: whose disk this is.
//!
//! | offset | length | field |
//! |---:|---:|---|
//! | 0 | 8 | magic `HFASDIDF` |
//! | 8 | 4 | CRC-32C of all that follows |
//! | 12 | 4 | version, 1 |
//! | 16 | 16 | OSD id, drawn at the first start |
//! | 32 | 8 | capacity that was chosen at the first start; the configuration may say otherwise |
//! | 40 | 2 | length of the cluster's id |
//! | 42 | … | cluster's id |
//!
//! Written once, to a temporary file that is synced and renamed. A directory with segments and without this file is
//! refused: a new id would make every fragment on it somebody else's.
//!
//! Invariant: the id of a disk never changes.

use asd_core::crc::crc32c;
use model::OsdId;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

pub(crate) const FILE_NAME: &str = "asd.id";
const MAGIC: [u8; 8] = *b"HFASDIDF";
const VERSION: u32 = 1;
const FIXED_LEN: usize = 42;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DiskIdentity {
    pub osd: OsdId,
    pub capacity: u64,
    pub cluster: String,
}

/// Why the directory can't be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error(
        "{path} is damaged; restore it from a copy, or use an empty directory and let the cluster repair onto it"
    )]
    Damaged { path: PathBuf },
    #[error("{path} has format version {found}, this program reads {VERSION}: upgrade it")]
    Version { path: PathBuf, found: u32 },
    #[error(
        "the disk in {dir} belongs to cluster `{found}`, this process to `{expected}`; check data_dir and cluster in the configuration"
    )]
    OtherCluster { dir: PathBuf, found: String, expected: String },
    #[error(
        "{dir} holds segments but no {FILE_NAME}; restore that file, or use an empty directory"
    )]
    Missing { dir: PathBuf },
    #[error("can't use {path}: {cause}")]
    Io { path: PathBuf, cause: io::Error },
}

impl DiskIdentity {
    fn encode(&self) -> Vec<u8> {
        let cluster_len = u16::try_from(self.cluster.len()).expect("checked in the configuration");
        let mut out = Vec::with_capacity(FIXED_LEN + self.cluster.len());
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&self.osd.0.to_le_bytes());
        out.extend_from_slice(&self.capacity.to_le_bytes());
        out.extend_from_slice(&cluster_len.to_le_bytes());
        out.extend_from_slice(self.cluster.as_bytes());
        let crc = crc32c(&out[12..]);
        out[8..12].copy_from_slice(&crc.to_le_bytes());
        out
    }

    fn decode(bytes: &[u8], path: &Path) -> Result<Self, IdentityError> {
        let damaged = || IdentityError::Damaged { path: path.to_owned() };
        let (fixed, cluster) = bytes.split_first_chunk::<FIXED_LEN>().ok_or_else(damaged)?;
        let crc = u32::from_le_bytes(part(fixed, 8));
        if fixed[..8] != MAGIC || crc != crc32c(&bytes[12..]) {
            return Err(damaged());
        }
        let found = u32::from_le_bytes(part(fixed, 12));
        if found != VERSION {
            return Err(IdentityError::Version { path: path.to_owned(), found });
        }
        if usize::from(u16::from_le_bytes(part(fixed, 40))) != cluster.len() {
            return Err(damaged());
        }
        Ok(Self {
            osd: OsdId(u128::from_le_bytes(part(fixed, 16))),
            capacity: u64::from_le_bytes(part(fixed, 32)),
            cluster: String::from_utf8(cluster.to_vec()).map_err(|_| damaged())?,
        })
    }
}

fn part<const N: usize>(fixed: &[u8; FIXED_LEN], at: usize) -> [u8; N] {
    fixed[at..at + N].try_into().expect("constants within the fixed part")
}

/// What else was found in the directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Contents {
    Empty,
    Segments,
}

/// The identity in `dir`, made by `fresh` at the first start.
pub(crate) fn load_or_create(
    dir: &Path,
    cluster: &str,
    contents: Contents,
    fresh: impl FnOnce() -> DiskIdentity,
) -> Result<DiskIdentity, IdentityError> {
    let path = dir.join(FILE_NAME);
    let io_error = |cause| IdentityError::Io { path: path.clone(), cause };
    match std::fs::read(&path) {
        Ok(bytes) => {
            let identity = DiskIdentity::decode(&bytes, &path)?;
            if identity.cluster == cluster {
                return Ok(identity);
            }
            Err(IdentityError::OtherCluster {
                dir: dir.to_owned(),
                found: identity.cluster,
                expected: cluster.to_owned(),
            })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound && contents == Contents::Segments => {
            Err(IdentityError::Missing { dir: dir.to_owned() })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let identity = fresh();
            write(dir, &path, &identity.encode()).map_err(io_error)?;
            Ok(identity)
        }
        Err(error) => Err(io_error(error)),
    }
}

fn write(dir: &Path, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = dir.join("asd.id.new");
    let mut file = File::create(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> DiskIdentity {
        DiskIdentity { osd: OsdId(0xfeed), capacity: 1 << 30, cluster: "holdfast".to_owned() }
    }

    #[test]
    fn golden_bytes() {
        let hex: String = sample().encode().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(
            hex,
            "48464153444944466124e2c401000000edfe00000000000000000000000000000000004000000000\
             0800686f6c6466617374"
        );
    }

    #[test]
    fn any_flipped_bit_is_seen() {
        let good = sample().encode();
        let path = Path::new("asd.id");
        assert_eq!(DiskIdentity::decode(&good, path).unwrap(), sample());
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(DiskIdentity::decode(&bad, path).is_err(), "bit {bit}");
        }
        assert!(DiskIdentity::decode(&good[..good.len() - 1], path).is_err());
    }

    #[test]
    fn a_disk_keeps_its_id_and_its_cluster() {
        let dir = tempfile::tempdir().unwrap();
        let load = |cluster, contents| {
            load_or_create(dir.path(), cluster, contents, sample).map_err(|e| e.to_string())
        };
        assert!(load("holdfast", Contents::Segments).unwrap_err().contains("no asd.id"));
        assert_eq!(load("holdfast", Contents::Empty), Ok(sample()));
        assert_eq!(load("holdfast", Contents::Segments), Ok(sample()));
        let error = load("other", Contents::Segments).unwrap_err();
        assert!(error.contains("holdfast") && error.contains("other"), "{error}");
        std::fs::write(dir.path().join(FILE_NAME), b"junk").unwrap();
        assert!(load("holdfast", Contents::Segments).unwrap_err().contains("damaged"));
    }
}
