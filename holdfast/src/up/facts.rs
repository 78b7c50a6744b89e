//! The facts that a new cluster needs in arakoon before anything can be stored: its backend, preset, vPool and OSDs.
//!
//! Written once and then left alone, except that each start refreshes where the OSDs are and how large. Every change
//! asserts what was read, so two writers can't undo each other. [`changes`] decides, [`write()`] acts.

use crate::client::arakoon_failure;
use crate::cluster::{Cluster, Compression, Encryption};
use crate::failure::Failure;
use crate::up::files::BACKEND;
use arakoon_client::{ArakoonClient, TransactError, Transaction};
use bytes::Bytes;
use model::OsdId;
use wire::facts::{
    self, BackendRecord, OsdRecord, OsdState, PresetRecord, Record, VpoolDtl, VpoolRecord, key,
};

pub const PRESET: &str = "default";
pub const VPOOL: &str = "default";
/// One machine is one host, whatever runs on it.
const DOMAIN: &str = "local/rack1/host1";
const SCO_BYTES: u64 = 4 << 20;
const COMPRESSION_LEVEL: u8 = 1;
/// Lost races before giving up; there is normally one writer.
const ATTEMPTS: usize = 5;

/// An ASD as it introduced itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundOsd {
    pub osd: OsdId,
    /// Of its process.
    pub id: String,
    pub address: String,
    pub capacity_bytes: u64,
}

/// Key, what arakoon has, what it shall have.
#[derive(Debug, PartialEq, Eq)]
struct Change {
    key: Bytes,
    old: Option<Bytes>,
    new: Bytes,
}

/// Records that must be there and never change: only made when absent.
fn constants(cluster: &Cluster) -> [(Bytes, Bytes); 4] {
    let preset = PresetRecord {
        name: PRESET.to_owned(),
        version: 1,
        backend: BACKEND.to_owned(),
        policies: cluster.choices.policy.0.to_string(),
        compression: match cluster.choices.compression {
            Compression::Adaptive => facts::Compression::Adaptive,
            Compression::Always => facts::Compression::Always,
            Compression::Off => facts::Compression::Off,
        },
        compression_level: COMPRESSION_LEVEL,
        encryption: match cluster.choices.encryption {
            Encryption::Aes256Gcm => facts::Encryption::Aes256Gcm,
            Encryption::Off => facts::Encryption::Off,
        },
    };
    let vpool =
        VpoolRecord { name: VPOOL.to_owned(), preset: PRESET.to_owned(), sco_bytes: SCO_BYTES };
    let mode = cluster.choices.dtl.mode();
    [
        (key::vpool_dtl(VPOOL), VpoolDtl { mode }.to_record()),
        (key::backend(BACKEND), BackendRecord { name: BACKEND.to_owned() }.to_record()),
        (key::preset(PRESET), preset.to_record()),
        (key::vpool(VPOOL), vpool.to_record()),
    ]
}

/// What must change. `read` gives what arakoon has under a key.
fn changes(
    cluster: &Cluster,
    found: &[FoundOsd],
    read: impl Fn(&Bytes) -> Option<Bytes>,
) -> Result<Vec<Change>, Failure> {
    let mut out = Vec::new();
    for (key, new) in constants(cluster) {
        if read(&key).is_none() {
            out.push(Change { key, old: None, new });
        }
    }
    for osd in found {
        let key = key::osd(osd.osd);
        let old = read(&key);
        // Its state is others' to change; only where it is and how large are facts of this start.
        let state = match old.clone().map(OsdRecord::from_record).transpose() {
            Ok(record) => record.map_or(OsdState::Good, |record| record.state),
            Err(error) => {
                return Err(Failure::failed(format!(
                    "the record of {} in arakoon: {error}",
                    osd.id
                )));
            }
        };
        let record = OsdRecord {
            osd: osd.osd,
            name: osd.id.clone(),
            addresses: vec![osd.address.clone()],
            domain: DOMAIN.to_owned(),
            backend: BACKEND.to_owned(),
            state,
            capacity_bytes: osd.capacity_bytes,
        };
        let new = record.to_record();
        if old.as_ref() != Some(&new) {
            out.push(Change { key, old, new });
        }
    }
    Ok(out)
}

/// Makes the facts true in arakoon.
///
/// # Errors
/// When arakoon can't be reached or keeps being changed by somebody else.
pub async fn write(
    arakoon: &ArakoonClient,
    cluster: &Cluster,
    found: &[FoundOsd],
) -> Result<(), Failure> {
    let mut keys: Vec<Bytes> = constants(cluster).into_iter().map(|(key, _)| key).collect();
    keys.extend(found.iter().map(|osd| key::osd(osd.osd)));
    for _ in 0..ATTEMPTS {
        let values = arakoon.multi_get(keys.clone()).await.map_err(arakoon_failure)?;
        let read = |key: &Bytes| {
            keys.iter()
                .position(|candidate| candidate == key)
                .and_then(|at| values.get(at).cloned().flatten())
        };
        let changes = changes(cluster, found, read)?;
        if changes.is_empty() {
            return Ok(());
        }
        let transaction = changes
            .into_iter()
            .fold(Transaction::new(), |transaction, Change { key, old, new }| {
                transaction.assert_is(&key, old).set(&key, new)
            });
        match arakoon.commit(transaction).await {
            Ok(_) => return Ok(()),
            // Somebody was faster, or our own commit was answered by nobody: read again.
            Err(
                TransactError::Assertion(_)
                | TransactError::Unavailable { outcome_unknown: true, .. },
            ) => {}
            Err(error) => return Err(Failure::unreachable(error)),
        }
    }
    Err(Failure::failed("the cluster's facts in arakoon keep being changed by somebody else"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::up::plan::{Wanted, new_cluster};
    use std::collections::BTreeMap;
    use std::path::Path;

    fn sample() -> (Cluster, FoundOsd) {
        let cluster =
            new_cluster(&Wanted::default(), Path::new("/d"), "c1", &mut || Ok(1)).unwrap();
        let osd = FoundOsd {
            osd: OsdId(7),
            id: "asd-1".into(),
            address: "unix:/d/s".into(),
            capacity_bytes: 9,
        };
        (cluster, osd)
    }

    #[test]
    fn a_new_cluster_writes_everything_and_a_second_start_nothing() {
        let (cluster, osd) = sample();
        let found = [osd];
        let mut store = BTreeMap::new();
        for Change { key, old, new } in changes(&cluster, &found, |_| None).unwrap() {
            assert_eq!(old, None);
            store.insert(key, new);
        }
        let keys: Vec<String> =
            store.keys().map(|key| String::from_utf8_lossy(key).into_owned()).collect();
        let osd_key = format!("osd/{}", OsdId(7));
        let expected = [
            "backend/default",
            osd_key.as_str(),
            "preset/default",
            "vpool-dtl/default",
            "vpool/default",
        ];
        assert_eq!(keys, expected);
        assert_eq!(changes(&cluster, &found, |key| store.get(key).cloned()).unwrap(), []);
    }

    #[test]
    fn a_moved_osd_is_refreshed_and_keeps_its_state() {
        let (cluster, osd) = sample();
        let mut store: BTreeMap<Bytes, Bytes> =
            changes(&cluster, std::slice::from_ref(&osd), |_| None)
                .unwrap()
                .into_iter()
                .map(|change| (change.key, change.new))
                .collect();
        let key = key::osd(osd.osd);
        let mut record = OsdRecord::from_record(store[&key].clone()).unwrap();
        record.state = OsdState::Draining;
        store.insert(key.clone(), record.to_record());
        let moved = FoundOsd { address: "127.0.0.1:9".into(), ..osd };
        let changed = changes(&cluster, &[moved], |key| store.get(key).cloned()).unwrap();
        assert_eq!(changed.len(), 1);
        assert_eq!(changed[0].old, store.get(&key).cloned());
        let now = OsdRecord::from_record(changed[0].new.clone()).unwrap();
        assert_eq!(
            (now.state, now.addresses),
            (OsdState::Draining, vec!["127.0.0.1:9".to_owned()])
        );
    }
}
