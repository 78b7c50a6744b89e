//! A backend that commits objects in the order of their heads, late, twice, or while saying that it failed.

use std::collections::BTreeMap;

use bytes::Bytes;
use model::{Epoch, ObjectId, VdiskId};
use router_core::map::MemoryMap;
use router_core::tlog::{Meta, Tlog};
use sim::{Chance, Random};

/// A put on its way.
#[derive(Debug, Clone)]
pub struct Put {
    pub object: ObjectId,
    pub predecessor: Option<ObjectId>,
    pub payload: Bytes,
    pub meta: Bytes,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    Stored(ObjectId),
    /// Try again; it may have been stored all the same.
    Failed(ObjectId),
    Fenced(ObjectId),
}

#[derive(Debug, Default)]
struct Namespace {
    epoch: Epoch,
    head: Option<ObjectId>,
    objects: BTreeMap<ObjectId, (Bytes, Bytes)>,
}

#[derive(Debug, Default)]
pub struct Backend {
    namespaces: BTreeMap<VdiskId, Namespace>,
    under_way: Vec<Put>,
}

impl Backend {
    pub fn send(&mut self, put: Put) {
        self.under_way.push(put);
    }

    /// One of the puts under way arrives, in any order.
    pub fn step(&mut self, random: &mut Random) -> Option<Answer> {
        if self.under_way.is_empty() {
            return None;
        }
        let at = random.index(self.under_way.len());
        let put = self.under_way[at].clone();
        let namespace = self.namespaces.entry(put.object.vdisk).or_default();
        if put.object.epoch < namespace.epoch {
            self.under_way.swap_remove(at);
            return Some(Answer::Fenced(put.object));
        }
        if let Some((known, _)) = namespace.objects.get(&put.object) {
            assert_eq!(*known, put.payload, "P21: the same object has the same contents");
            self.under_way.swap_remove(at);
            return Some(Answer::Stored(put.object));
        }
        if put.predecessor != namespace.head {
            // It waits for its predecessor; another one may go first.
            return None;
        }
        self.under_way.swap_remove(at);
        let fails = random.happens(Chance::percent(20));
        if !fails || random.happens(Chance::percent(50)) {
            namespace.head = Some(put.object);
            namespace.objects.insert(put.object, (put.payload, put.meta));
        }
        Some(if fails { Answer::Failed(put.object) } else { Answer::Stored(put.object) })
    }

    /// A claim: lower epochs are refused from now on (L4).
    pub fn raise(&mut self, vdisk: VdiskId, epoch: Epoch) {
        let namespace = self.namespaces.entry(vdisk).or_default();
        assert!(namespace.epoch < epoch, "epochs only grow");
        namespace.epoch = epoch;
    }

    pub fn head(&self, vdisk: VdiskId) -> Option<(ObjectId, Tlog)> {
        let namespace = self.namespaces.get(&vdisk)?;
        let head = namespace.head?;
        Some((head, tlog(&namespace.objects[&head])))
    }

    /// TLogs behind an object, in order of commit; checks that they form one chain.
    pub fn tlogs(&self, vdisk: VdiskId, after: Option<ObjectId>) -> Vec<Tlog> {
        let Some(namespace) = self.namespaces.get(&vdisk) else { return Vec::new() };
        let mut previous = None;
        let mut out = Vec::new();
        for (object, stored) in &namespace.objects {
            let meta = Meta::decode(stored.1.clone()).unwrap();
            assert_eq!(meta.predecessor, previous, "one chain");
            previous = Some(*object);
            if after.is_none_or(|after| after < *object) {
                out.push(tlog(stored));
            }
        }
        out
    }

    /// The map that the TLogs alone give (L6).
    pub fn rebuilt_map(&self, vdisk: VdiskId) -> MemoryMap {
        let mut map = MemoryMap::default();
        for tlog in self.tlogs(vdisk, None) {
            map.apply(&tlog);
        }
        map
    }

    pub fn payload(&self, vdisk: VdiskId, number: model::ScoNumber) -> Bytes {
        let objects = &self.namespaces[&vdisk].objects;
        let found = objects.iter().find(|(object, _)| object.number == number);
        found
            .expect("a mapped SCO exists, and its number is unique among committed ones")
            .1
            .0
            .clone()
    }
}

fn tlog((payload, meta): &(Bytes, Bytes)) -> Tlog {
    let meta = Meta::decode(meta.clone()).unwrap();
    let start = meta.tlog_offset as usize;
    Tlog::decode(&payload.slice(start..start + meta.tlog_len as usize)).unwrap()
}
