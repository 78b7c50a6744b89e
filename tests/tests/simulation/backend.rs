//! The backend as the router sees it: objects, and a namespace that asserts the owner's epoch and the head.
//!
//! Fragments and disks have simulations of their own; here a put is one atomic, durable transaction (P18, P20).
//!
//! Invariant: objects form one chain, and an object is never replaced.

use std::collections::BTreeMap;

use bytes::Bytes;
use model::{Epoch, ObjectId};
use router_core::tlog::{Meta, Tlog};

/// What the router asks to be stored.
#[derive(Debug, Clone)]
pub struct Put {
    pub object: ObjectId,
    pub expected_head: Option<ObjectId>,
    pub meta: Meta,
    pub payload: Bytes,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// A later epoch is recorded (L4).
    Fenced,
    /// Its predecessor isn't the head.
    WrongHead,
}

#[derive(Debug, Default)]
pub struct Backend {
    epoch: Epoch,
    head: Option<ObjectId>,
    objects: BTreeMap<ObjectId, Put>,
}

impl Backend {
    /// Epochs only grow.
    pub fn raise(&mut self, epoch: Epoch) {
        assert!(self.epoch < epoch, "every open claims a new epoch (P10)");
        self.epoch = epoch;
    }

    pub fn put(&mut self, put: &Put) -> Result<(), Refused> {
        if let Some(stored) = self.objects.get(&put.object) {
            assert_eq!(stored.payload, put.payload, "an object is sealed once (P21)");
            return Ok(());
        }
        if put.object.epoch < self.epoch {
            return Err(Refused::Fenced);
        }
        if put.expected_head != self.head {
            return Err(Refused::WrongHead);
        }
        self.head = Some(put.object);
        self.objects.insert(put.object, put.clone());
        Ok(())
    }

    pub fn head(&self) -> Option<&Put> {
        self.head.map(|object| &self.objects[&object])
    }

    /// The TLogs of all objects, first to last; each must follow the one before.
    pub fn tlogs(&self) -> Vec<Tlog> {
        let mut last = None;
        let chain = self.objects.values().map(|put| {
            assert_eq!(put.meta.predecessor, last, "the chain of TLogs is broken");
            last = Some(put.object);
            tlog(put)
        });
        chain.collect()
    }

    /// Bytes of an object, by its number: numbers are unique within a vDisk.
    pub fn read(&self, number: model::ScoNumber, offset: u64, len: u32) -> Bytes {
        let mut found = self.objects.values().filter(|put| put.object.number == number);
        let put = found.next().expect("the page map points to what is stored");
        assert!(found.next().is_none(), "two objects have number {number}");
        let start = model::usize_of(offset);
        put.payload.slice(start..start + len as usize)
    }
}

pub fn tlog(put: &Put) -> Tlog {
    let start = model::usize_of(put.meta.tlog_offset);
    let part = put.payload.slice(start..start + put.meta.tlog_len as usize);
    Tlog::decode(&part).expect("we stored it ourselves")
}
