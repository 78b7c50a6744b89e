//! Storage accounting over all ASDs: what lies there, and who answers for it.
//!
//! At the end of a life, when everything came to rest: every fragment that a manifest places is there and is the one
//! meant, on every lucky disk; so each object has at least `k` good fragments, and once the holes are filled `k + m`.
//! And what lies on a disk is named by a manifest, or somebody was hindered from deleting it.
//!
//! Nothing collects garbage yet: fragments that a dead proxy, an unknown outcome or an unanswered call left behind stay.
//! Those are *excused*, one by one and with a reason; and objects whose data was all overwritten stay referenced. What a
//! proxy in good health stored, knew about and didn't commit must be gone.
//!
//! Invariant: an excuse names a fragment on an OSD, or an attempt.

use std::collections::BTreeMap;

use asd_core::read::{Reading, Want};
use asd_core::store::Outcome;
use bytes::Bytes;
use model::{FragmentKey, OsdId};
use sim::FaultCounts;

use super::storage::{Attempt, Storage};

#[derive(Debug, Default)]
pub struct Ledger {
    excused: BTreeMap<(Bytes, OsdId), &'static str>,
    attempts: BTreeMap<Attempt, &'static str>,
    /// Deletes sent, and whether they were answered.
    deletes: BTreeMap<(Bytes, OsdId), bool>,
    /// What came of the first copy of each put.
    puts: BTreeMap<u64, Outcome>,
}

impl Ledger {
    /// Nobody can be sure that this is gone.
    pub fn excuse(&mut self, key: Bytes, osd: OsdId, why: &'static str) {
        self.excused.insert((key, osd), why);
    }

    pub fn excuse_attempt(&mut self, attempt: Attempt, why: &'static str) {
        self.attempts.insert(attempt, why);
    }

    pub fn delete_sent(&mut self, key: Bytes, osd: OsdId) {
        self.deletes.insert((key, osd), false);
    }

    pub fn deleted(&mut self, key: Bytes, osd: OsdId) {
        self.deletes.insert((key, osd), true);
    }

    /// What an ASD did with a put. Messages overtake each other, and come twice.
    pub fn put_at_osd(&mut self, key: &Bytes, osd: OsdId, call: u64, outcome: Outcome) {
        if self.deletes.contains_key(&(key.clone(), osd)) {
            self.excuse(key.clone(), osd, "it was stored after its delete");
        }
        if *self.puts.entry(call).or_insert(outcome) != outcome {
            self.excuse(key.clone(), osd, "two copies of its call met different fates");
        }
    }

    fn why(&self, key: &Bytes, osd: OsdId) -> Option<&'static str> {
        let named = FragmentKey::from_bytes(key)?;
        let attempt = Attempt { object: named.object, attempt: named.attempt };
        let fragment = self.excused.get(&(key.clone(), osd));
        fragment.or_else(|| self.attempts.get(&attempt)).copied()
    }
}

/// What is wrong, if anything; `counts` takes what was looked at.
pub fn audit(storage: &Storage, counts: &mut FaultCounts) -> Result<(), String> {
    referenced_is_there(storage, counts)?;
    nothing_else_is_there(storage, counts)
}

fn referenced_is_there(storage: &Storage, counts: &mut FaultCounts) -> Result<(), String> {
    for manifest in storage.register.manifests.values() {
        let object = manifest.object;
        let mut good = manifest.fragments.iter().filter(|fragment| fragment.len == 0).count();
        let mut domains: BTreeMap<OsdId, u8> = BTreeMap::new();
        for (index, osd) in manifest.stored() {
            *domains.entry(osd).or_default() += 1;
            let record = manifest.fragments[index.as_usize()];
            let key = manifest.key_of(super::storage::NAMESPACE, index).to_bytes();
            let asd = &storage.asds[storage.index_of(osd)];
            let sound = match asd.read(&key, Want::ALL) {
                Some(Reading::Found { bytes, .. }) => codec::crc32c(&bytes) == record.crc,
                Some(_) | None => false,
            };
            good += usize::from(sound);
            if !sound && !asd.unlucky {
                return Err(format!("{object}: fragment {index} is bad on {osd}, an honest disk"));
            }
        }
        let policy = manifest.policy;
        if let Some((osd, _)) = domains.iter().find(|(_, count)| policy.x() < **count) {
            return Err(format!("{object}: more than {} fragments on {osd}", policy.x()));
        }
        if good < usize::from(policy.k()) {
            return Err(format!("{object}: {good} good fragments, {} are needed", policy.k()));
        }
        counts.count(match manifest.holes() {
            0 if good == usize::from(policy.total()) => "account: object whole",
            0 => "account: object without holes, on a bad disk",
            _ => "account: object with holes",
        });
    }
    Ok(())
}

fn nothing_else_is_there(storage: &Storage, counts: &mut FaultCounts) -> Result<(), String> {
    for asd in &storage.asds {
        for key in asd.keys() {
            let named = FragmentKey::from_bytes(&key).expect("only fragments are stored");
            let manifest = storage.register.manifests.get(&named.object);
            let referenced = manifest.is_some_and(|manifest| {
                let places = || manifest.stored().any(|place| place == (named.index, asd.osd));
                manifest.attempt == named.attempt && places()
            });
            if referenced {
                continue;
            }
            match storage.ledger.why(&key, asd.osd) {
                Some(_) => counts.count("account: excused orphan"),
                // Its deletes may be undone, and its index may be old.
                None if asd.unlucky => counts.count("account: orphan on a bad disk"),
                None => {
                    let (object, attempt) = (named.object, named.attempt);
                    let (index, osd) = (named.index, asd.osd);
                    let deleted = storage.ledger.deletes.get(&(key.clone(), osd));
                    return Err(format!(
                        "{object}: fragment {index} of attempt {attempt} lies on {osd}, no manifest names it, and \
                         nobody was hindered from deleting it (delete answered: {deleted:?})"
                    ));
                }
            }
        }
    }
    Ok(())
}
