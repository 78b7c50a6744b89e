//! What a router's process holds in memory, and what it does to one request.
//!
//! Invariant: nothing here outlives the process.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use edge_core::session::{CallKey, Request};
use model::{AttachmentGeneration, ByteRange, Cluster, Lsn, ObjectId};
use router_core::log::Log;
use router_core::log::pool::{Batch, SyncJob};
use router_core::map::MemoryMap;
use router_core::overlay::Lookup;
use router_core::plan::{self, UnmapStep};
use router_core::sco::{self, Frame};
use router_core::tlog::Tlog;
use router_core::volume::{Change, Stamp, Volume};
use router_core::{CLUSTER, crc32c};
use wire::router::Durability;

use super::message::Put;
use super::reading::Unreadable;
use super::storage::Storage;

/// Who waits for what.
#[derive(Debug)]
pub struct Waiter {
    pub link: u64,
    pub key: CallKey,
    pub lsn: Lsn,
    pub end: u64,
    pub kind: WaiterKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WaiterKind {
    Change,
    Durable,
    Flush,
}

/// A change that found no room in the log.
#[derive(Debug)]
pub struct Stalled {
    pub link: u64,
    pub key: CallKey,
    pub request: Request,
    /// How often what it needs to read first couldn't be read.
    pub tries: u32,
}

/// What a process holds in memory.
pub struct Process {
    pub log: Log,
    pub batch: Batch,
    pub volume: Volume,
    pub map: MemoryMap,
    pub live: BTreeSet<AttachmentGeneration>,
    pub attached: Option<u64>,
    pub replay_complete: bool,
    pub acks: Vec<Waiter>,
    pub syncs: Vec<Waiter>,
    pub job: Option<SyncJob>,
    pub stalled: VecDeque<Stalled>,
    pub in_flight: BTreeMap<ObjectId, (Put, Tlog)>,
    pub last_end: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applied {
    Now,
    /// In an earlier life of the connection or the router (P3).
    Before,
    /// Another attachment took over (P4).
    Fenced,
}

impl Process {
    /// For the largest request, its list and a ragged end.
    pub fn has_room(&self) -> bool {
        self.log.has_room(10, 10 * CLUSTER)
    }

    pub fn apply(
        &mut self,
        asked: &Stalled,
        storage: &RefCell<Storage>,
    ) -> Result<Applied, Unreadable> {
        let Stalled { link, key, request, .. } = asked;
        let (generation, seq, durability) = match request {
            Request::Write(write, _) => (write.generation, write.seq, write.durability),
            Request::Unmap(unmap) => (unmap.generation, unmap.seq, unmap.durability),
            Request::Read(_)
            | Request::Flush(_)
            | Request::BlockStatus(_)
            | Request::ReplayComplete(_) => unreachable!("these change nothing"),
        };
        // P4: a fenced attachment changes nothing, and nobody waits for its answer.
        if !self.live.contains(&generation) {
            return Ok(Applied::Fenced);
        }
        let applied = if self.volume.applied().contains(generation, seq) {
            Applied::Before
        } else {
            let changes = self.changes(request, storage)?;
            if changes.is_empty() {
                self.volume.applied_mut().insert(generation, seq);
            }
            let count = changes.len();
            for (number, change) in (1..).zip(changes) {
                let stamp = Stamp { generation, seq, last: number == count };
                let entry = self.volume.entry(&change, stamp);
                let placed = self.log.place(entry, &mut self.batch);
                let placement = placed.expect("room was asked for before");
                self.last_end = placement.end;
                self.volume.accept(change, stamp, placement);
            }
            Applied::Now
        };
        let kind = match durability {
            Durability::Normal => WaiterKind::Change,
            Durability::Durable => WaiterKind::Durable,
        };
        let (lsn, end) = (self.volume.last_lsn(), self.last_end);
        self.acks.push(Waiter { link: *link, key: *key, lsn, end, kind });
        Ok(applied)
    }

    fn changes(
        &self,
        request: &Request,
        storage: &RefCell<Storage>,
    ) -> Result<Vec<Change>, Unreadable> {
        let failed = Cell::new(None);
        let old = |cluster| {
            self.cluster(cluster, storage).unwrap_or_else(|error| {
                failed.set(Some(error));
                None
            })
        };
        let changes = match request {
            Request::Write(write, payload) => {
                let len = model::u64_of(payload.len());
                let range = ByteRange::new(write.offset, len).expect("within the vDisk");
                assert!(
                    plan::checksums_match(range, payload, &write.checksums),
                    "damaged on the way"
                );
                let zeroes = || Bytes::from_static(&[0; CLUSTER]);
                let data = plan::merge(range, payload, |at| old(at).unwrap_or_else(zeroes));
                let checksums = data.chunks_exact(CLUSTER).map(crc32c).collect();
                let cluster = range.clusters_touched().start;
                vec![Change::Write { cluster, data, checksums }]
            }
            Request::Unmap(unmap) => {
                let range = ByteRange::new(unmap.offset, unmap.len).expect("within the vDisk");
                let steps = plan::unmap(range, old);
                let change = |step| match step {
                    UnmapStep::Write(cluster, data) => {
                        Change::Write { cluster, checksums: vec![crc32c(&data)], data }
                    }
                    UnmapStep::Range(range) => Change::Unmap { range, kind: unmap.kind },
                };
                steps.into_iter().map(change).collect()
            }
            Request::Read(_)
            | Request::Flush(_)
            | Request::BlockStatus(_)
            | Request::ReplayComplete(_) => unreachable!("these change nothing"),
        };
        failed.get().map_or(Ok(changes), Err)
    }

    pub fn read(&self, range: ByteRange, storage: &RefCell<Storage>) -> Result<Bytes, Unreadable> {
        let mut out = Vec::with_capacity(model::usize_of(range.len()));
        for cluster in range.clusters_touched().iter() {
            let (start, len) = plan::part(range, cluster);
            match self.cluster(cluster, storage)? {
                Some(data) => out.extend_from_slice(&data[start..start + len]),
                None => out.resize(out.len() + len, 0),
            }
        }
        Ok(Bytes::from(out))
    }

    /// Overlay, then page map, then backend; `None` is zeroes.
    fn cluster(
        &self,
        cluster: Cluster,
        storage: &RefCell<Storage>,
    ) -> Result<Option<Bytes>, Unreadable> {
        let mut storage = storage.borrow_mut();
        match self.volume.overlay.lookup(cluster) {
            Lookup::Data(data, checksum) => {
                assert_eq!(crc32c(&data), checksum, "the overlay's data isn't what came in");
                storage.counts.count("read: overlay");
                Ok(Some(data))
            }
            Lookup::Unmapped => {
                storage.counts.count("read: unmapped in the overlay");
                Ok(None)
            }
            Lookup::Below => {
                let Some(location) = self.map.get(cluster) else {
                    storage.counts.count("read: nowhere");
                    return Ok(None);
                };
                let (offset, len) = sco::frame_range(location);
                let bytes = storage.read(location.number(), offset, len)?;
                let frame = Frame::verify(location, bytes).expect("the proxy verified it");
                let found = frame.cluster(location, cluster);
                Ok(Some(found.expect("the page map points to its cluster").0))
            }
        }
    }
}
