//! Presets and OSDs as arakoon lists them, read again every few seconds.
//!
//! Invariant: what is used is some version that arakoon had; an unreadable record is skipped and reported, it never
//! hides the others.

use crate::error::ProxyError;
use crate::osds::Osds;
use arakoon_client::ArakoonClient;
use codec::{Compression, Level};
use model::PolicyList;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use wire::facts::{self, OsdRecord, PresetRecord, Record, key};

/// A preset that was understood.
#[derive(Debug, Clone)]
pub struct Preset {
    pub name: String,
    pub version: u64,
    pub policies: PolicyList,
    pub compression: Compression,
    pub encrypts: bool,
}

impl Preset {
    fn new(record: &PresetRecord) -> Result<Self, String> {
        let policies = record.policies.parse().map_err(|error| format!("{error}"))?;
        let level = match record.compression_level {
            0 => Level::DEFAULT,
            raw => i8::try_from(raw)
                .ok()
                .and_then(Level::new)
                .ok_or_else(|| format!("compression level {raw} isn't one of 1 to 19"))?,
        };
        let compression = match record.compression {
            facts::Compression::Off => Compression::Off,
            facts::Compression::Adaptive => Compression::Adaptive(level),
            facts::Compression::Always => Compression::Always(level),
        };
        let encrypts = match record.encryption {
            facts::Encryption::Off => false,
            facts::Encryption::Aes256Gcm => true,
        };
        let (name, version) = (record.name.clone(), record.version);
        Ok(Self { name, version, policies, compression, encrypts })
    }
}

pub struct Catalog {
    backend: String,
    presets: Mutex<BTreeMap<String, Arc<Preset>>>,
}

impl Catalog {
    pub const fn new(backend: String) -> Self {
        Self { backend, presets: Mutex::new(BTreeMap::new()) }
    }

    pub fn backend(&self) -> &str {
        &self.backend
    }

    fn presets(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Arc<Preset>>> {
        self.presets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn preset(&self, name: &str) -> Option<Arc<Preset>> {
        self.presets().get(name).cloned()
    }

    /// The one that status speaks of: `default`, else the first.
    pub fn shown_preset(&self) -> Option<Arc<Preset>> {
        let presets = self.presets();
        presets.get("default").or_else(|| presets.values().next()).cloned()
    }

    /// Reads presets and OSDs again.
    pub async fn refresh(&self, arakoon: &ArakoonClient, osds: &Osds) -> Result<(), ProxyError> {
        // Asked together they cost arakoon one round of its majority.
        let (presets, records) =
            tokio::try_join!(arakoon.prefix(key::PRESETS), arakoon.prefix(key::OSDS))?;
        let presets = presets.into_iter().filter_map(|(key, value)| {
            let preset = PresetRecord::from_record(value)
                .map_err(|error| error.to_string())
                .and_then(|record| {
                    let ours = record.backend == self.backend;
                    if ours { Preset::new(&record).map(Some) } else { Ok(None) }
                });
            skip_bad(&key, preset)
        });
        let presets = presets.map(|preset| (preset.name.clone(), Arc::new(preset))).collect();
        *self.presets() = presets;
        let records = records.into_iter().filter_map(|(key, value)| {
            let record = OsdRecord::from_record(value).map_err(|error| error.to_string());
            skip_bad(&key, record.map(|record| (record.backend == self.backend).then_some(record)))
        });
        osds.set_records(records.collect());
        Ok(())
    }
}

fn skip_bad<T>(key: &[u8], result: Result<Option<T>, String>) -> Option<T> {
    result.unwrap_or_else(|error| {
        tracing::warn!(key = %key.escape_ascii(), error, "a record in arakoon is skipped");
        None
    })
}
