//! Arakoon as its clients see it: a linearizable store of one namespace's epoch, head and manifests, exactly once per
//! request. The Raft cluster behind it has a simulation of its own.
//!
//! Its answers may be lost, and it may answer "unavailable, outcome unknown" to what it did all the same.
//!
//! Invariant: a commit asserts {epoch, head = predecessor, manifest absent}; manifests form one chain; epochs only grow.

use std::collections::BTreeMap;

use alba_proxy_core::Manifest;
use alba_proxy_core::order::Found;
use model::{Epoch, ObjectId, ScoNumber};

#[derive(Debug, Clone)]
pub enum Transaction {
    Commit {
        epoch: Epoch,
        expected_head: Option<ObjectId>,
        manifest: Manifest,
    },
    /// The places of fragments; asserts what the manifest was.
    Places {
        was: Manifest,
        becomes: Manifest,
    },
}

#[derive(Debug, Clone)]
pub enum Answer {
    Done,
    /// What stood against it.
    Refused(Found),
    /// Whether it was done isn't known; the same request may be asked again.
    Unknown,
}

#[derive(Debug, Default)]
pub struct Register {
    pub epoch: Epoch,
    pub head: Option<ObjectId>,
    pub manifests: BTreeMap<ObjectId, Manifest>,
    pub by_number: BTreeMap<ScoNumber, ObjectId>,
    answered: BTreeMap<u64, Answer>,
}

impl Register {
    pub fn raise(&mut self, epoch: Epoch) {
        assert!(self.epoch < epoch, "every open claims a new epoch (P10)");
        self.epoch = epoch;
    }

    /// Once per request id, whatever is repeated (P28).
    pub fn transact(&mut self, request: u64, transaction: &Transaction) -> Answer {
        if let Some(answer) = self.answered.get(&request) {
            return answer.clone();
        }
        let answer = match transaction {
            Transaction::Commit { epoch, expected_head, manifest } => {
                self.commit(*epoch, *expected_head, manifest)
            }
            Transaction::Places { was, becomes } => match self.manifests.get_mut(&was.object) {
                Some(stands) if stands == was => {
                    *stands = becomes.clone();
                    Answer::Done
                }
                Some(_) | None => Answer::Refused(self.found(was.object)),
            },
        };
        self.answered.insert(request, answer.clone());
        answer
    }

    fn commit(&mut self, epoch: Epoch, head: Option<ObjectId>, manifest: &Manifest) -> Answer {
        let object = manifest.object;
        let free = !self.manifests.contains_key(&object);
        if !free || epoch != self.epoch || head != self.head {
            return Answer::Refused(self.found(object));
        }
        self.head = Some(object);
        let other = self.by_number.insert(object.number, object);
        assert_eq!(other, None, "two objects have number {}", object.number);
        self.manifests.insert(object, manifest.clone());
        Answer::Done
    }

    fn found(&self, object: ObjectId) -> Found {
        Found {
            epoch: Some(self.epoch),
            head: self.head,
            existing: self
                .manifests
                .get(&object)
                .map(|manifest| (manifest.digest, manifest.attempt)),
        }
    }
}
