//! The way of a change: gate, range lock, ragged clusters, log space, answer.
//!
//! Invariant: changes of one vDisk that overlap are applied in the order in which they came; a job that waits for log space
//! keeps its lock, and everything later waits behind the gate.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use model::{AttachmentGeneration, Cluster, Now, VdiskId};
use router_core::plan::{self, UnmapStep};
use router_core::quota::{Usage, Verdict, minimum};
use router_core::range_lock::Ticket;
use router_core::volume::{Change, Stamp};
use router_core::{CLUSTER, crc32c};
use wire::WireError;
use wire::router::UnmapKind;

use super::{Ack, Action, Gated, Job, JobKind, Ragged, Slot, Stalled, State};

/// How often a gate that waits for space looks again.
const RECHECK: Duration = Duration::from_millis(20);

impl State {
    /// A write or unmap that passed its checks.
    pub fn submit(&mut self, job: Job, now: Now, actions: &mut Vec<Action>) {
        let vdisk = job.vdisk;
        let Some(Slot::Serving(serving)) = self.volumes.get_mut(&vdisk) else { return };
        if serving.core.applied().contains(job.generation, job.seq) {
            // P3: applied already; acknowledged with a position at or behind the original's.
            let (epoch, lsn, end) =
                (serving.core.epoch(), serving.core.last_lsn(), serving.last_end);
            let Job { responder, durable, .. } = job;
            let protected = serving.protected();
            self.acks.push(Ack { responder, epoch, lsn, end, durable, protected });
            return;
        }
        let busy = !serving.is_idle();
        let job = if busy {
            match serving.queued_again(job) {
                Some(job) => job,
                None => return,
            }
        } else {
            job
        };
        let waits = !serving.gate.is_empty() || !serving.stalled.is_empty();
        if waits || self.admit(vdisk, job.cost()) != Verdict::Now {
            let Some(Slot::Serving(serving)) = self.volumes.get_mut(&vdisk) else { return };
            serving.gate.push_back(Gated { job, since: now });
            if !serving.gate_runs {
                serving.gate_runs = true;
                actions.push(Action::RunGate(vdisk));
            }
            return;
        }
        self.start(job, actions);
    }

    fn admit(&self, vdisk: VdiskId, bytes: u64) -> Verdict {
        let (log_capacity, log_used) = (self.log.capacity(), self.log.used());
        let pending = self.pending_bytes;
        if log_used + bytes <= log_capacity / 2 && pending + bytes <= self.overlay_limit / 2 {
            return Verdict::Now;
        }
        let mut log = Usage {
            capacity: log_capacity,
            used: log_used,
            own: 0,
            reserved_by_others: 0,
            sharers: 0,
        };
        let mut memory = Usage {
            capacity: self.overlay_limit,
            used: pending,
            own: 0,
            reserved_by_others: 0,
            sharers: 0,
        };
        let serving = || {
            self.volumes.values().filter_map(|slot| match slot {
                Slot::Serving(serving) => Some(serving),
                Slot::Opening(_)
                | Slot::Gap(_)
                | Slot::Fenced(_)
                | Slot::Elsewhere(_)
                | Slot::Deleting => None,
            })
        };
        let sharers = serving().count() as u64;
        for serving in serving() {
            let (own_log, own_memory) = (serving.core.log_bytes(), serving.core.pending_bytes());
            if serving.core.vdisk() == vdisk {
                (log.own, memory.own) = (own_log, own_memory);
            } else {
                log.reserved_by_others += minimum(log.capacity, sharers).saturating_sub(own_log);
                memory.reserved_by_others +=
                    minimum(memory.capacity, sharers).saturating_sub(own_memory);
            }
        }
        (log.sharers, memory.sharers) = (sharers, sharers);
        // An idle router admits anything that fits its log, however small the limits.
        if pending == 0 {
            return Verdict::Now;
        }
        log.admit(bytes).and(memory.admit(bytes))
    }

    /// Lets gated jobs through. Returns how long to wait before the next try; `None` = the gate is empty.
    pub fn drain_gate(
        &mut self,
        vdisk: VdiskId,
        now: Now,
        actions: &mut Vec<Action>,
    ) -> Option<Duration> {
        loop {
            let Some(Slot::Serving(serving)) = self.volumes.get_mut(&vdisk) else { return None };
            if !serving.stalled.is_empty() {
                return Some(RECHECK);
            }
            let Some(front) = serving.gate.front() else {
                serving.gate_runs = false;
                return None;
            };
            let (bytes, waited) = (front.job.cost(), now.since(front.since));
            match self.admit(vdisk, bytes) {
                Verdict::Now => {}
                Verdict::After(delay) if delay <= waited => {}
                Verdict::After(delay) => return Some((delay - waited).min(RECHECK)),
                Verdict::Wait => {
                    self.relieve_waiting();
                    return Some(RECHECK);
                }
            }
            let Some(Slot::Serving(serving)) = self.volumes.get_mut(&vdisk) else { return None };
            let job = serving.gate.pop_front().expect("just seen").job;
            self.start(job, actions);
        }
    }

    /// Past the gate: takes the range lock if anything ragged or overlapping is about.
    fn start(&mut self, mut job: Job, actions: &mut Vec<Action>) {
        let vdisk = job.vdisk;
        let ragged = !job.range.is_aligned();
        let touched = job.range.clusters_touched();
        let Some(Slot::Serving(serving)) = self.volumes.get_mut(&vdisk) else { return };
        if !ragged && (serving.locks.is_idle() || serving.locks.is_free(touched)) {
            let changes = changes_of(&mut job, &Ragged::new());
            self.apply(job, changes, None);
            return;
        }
        self.next_ticket += 1;
        let ticket = self.next_ticket;
        let held = serving.locks.acquire(ticket, touched);
        serving.locked.insert(ticket, job);
        if held {
            self.locked(vdisk, ticket, actions);
        }
    }

    /// A job got its lock: its ragged clusters are read first.
    fn locked(&mut self, vdisk: VdiskId, ticket: Ticket, actions: &mut Vec<Action>) {
        let Some(Slot::Serving(serving)) = self.volumes.get_mut(&vdisk) else { return };
        let Some(job) = serving.locked.get(&ticket) else { return };
        // Also when nothing is ragged: a long queue behind one lock is worked off by the caller's loop, not by recursion.
        actions.push(Action::ReadRagged { vdisk, ticket, clusters: plan::ragged(job.range) });
    }

    /// The ragged clusters of a locked job were read.
    pub fn ragged_read(
        &mut self,
        vdisk: VdiskId,
        ticket: Ticket,
        content: Result<Ragged, WireError>,
        actions: &mut Vec<Action>,
    ) {
        let Some(Slot::Serving(serving)) = self.volumes.get_mut(&vdisk) else { return };
        let Some(mut job) = serving.locked.remove(&ticket) else { return };
        match content {
            Ok(content) => {
                let changes = changes_of(&mut job, &content);
                if self.apply(job, changes, Some(ticket)) {
                    self.unlock(vdisk, ticket, actions);
                }
            }
            Err(error) => {
                job.fail(&error);
                self.unlock(vdisk, ticket, actions);
            }
        }
    }

    /// A fenced attachment changes nothing any more: what it has queued is dropped, also what waits for a lock, for the old
    /// content of a cluster, or for log space (P4).
    pub fn drop_queue_of(
        &mut self,
        (vdisk, generation): (VdiskId, AttachmentGeneration),
        error: &WireError,
        actions: &mut Vec<Action>,
    ) {
        let Some(Slot::Serving(serving)) = self.volumes.get_mut(&vdisk) else { return };
        let fenced = |job: &Job| job.generation == generation;
        let gate = std::mem::take(&mut serving.gate).into_iter();
        let (gone, kept): (VecDeque<_>, _) = gate.partition(|gated| fenced(&gated.job));
        serving.gate = kept;
        let mut jobs: Vec<Job> = gone.into_iter().map(|gated| gated.job).collect();
        let stalled = std::mem::take(&mut serving.stalled).into_iter();
        let (gone, kept): (VecDeque<_>, _) = stalled.partition(|stalled| fenced(&stalled.job));
        serving.stalled = kept;
        let mut tickets = Vec::new();
        for Stalled { job, ticket, .. } in gone {
            jobs.push(job);
            tickets.extend(ticket);
        }
        for (ticket, job) in serving.locked.extract_if(.., |_, job| fenced(job)) {
            jobs.push(job);
            tickets.push(ticket);
        }
        for job in jobs {
            job.fail(error);
        }
        for ticket in tickets {
            self.unlock(vdisk, ticket, actions);
        }
    }

    fn unlock(&mut self, vdisk: VdiskId, ticket: Ticket, actions: &mut Vec<Action>) {
        let Some(Slot::Serving(serving)) = self.volumes.get_mut(&vdisk) else { return };
        for granted in serving.locks.release(ticket) {
            self.locked(vdisk, granted, actions);
        }
    }

    /// True when wholly applied; false when it waits for log space, still holding its lock.
    fn apply(&mut self, job: Job, mut changes: VecDeque<Change>, ticket: Option<Ticket>) -> bool {
        let Some(Slot::Serving(serving)) = self.volumes.get_mut(&job.vdisk) else { return true };
        let (units, before) = (serving.core.units(), serving.core.pending_bytes());
        while let Some(change) = changes.pop_front() {
            let last = changes.is_empty();
            let stamp = Stamp { generation: job.generation, seq: job.seq, last };
            let entry = serving.core.entry(&change, stamp);
            let copy = serving.protection.is_some().then(|| entry.clone());
            match self.log.place(entry, &mut self.batch) {
                Ok(placement) => {
                    serving.last_end = placement.end;
                    if let (Some(protection), Some(copy)) = (&mut serving.protection, copy) {
                        protection.placed(&copy, placement.end);
                    }
                    serving.core.accept(change, stamp, placement);
                }
                Err(_) => {
                    changes.push_front(change);
                    self.pending_bytes += serving.core.pending_bytes() - before;
                    serving.stalled.push_back(Stalled { job, changes, ticket });
                    return false;
                }
            }
        }
        self.pending_bytes += serving.core.pending_bytes() - before;
        if serving.core.units() != units {
            serving.committer.notify_one();
        }
        let (epoch, lsn, end) = (serving.core.epoch(), serving.core.last_lsn(), serving.last_end);
        let protected = serving.protected();
        let Job { responder, again, durable, .. } = job;
        for responder in again {
            self.acks.push(Ack { responder, epoch, lsn, end, durable, protected });
        }
        self.acks.push(Ack { responder, epoch, lsn, end, durable, protected });
        true
    }

    /// Log space came free: goes on with what stalled.
    pub fn unstall(&mut self, actions: &mut Vec<Action>) {
        self.log.reserve(&mut self.batch);
        let vdisks: Vec<VdiskId> = self.volumes.keys().copied().collect();
        for vdisk in vdisks {
            while let Some(Slot::Serving(serving)) = self.volumes.get_mut(&vdisk)
                && let Some(stalled) = serving.stalled.pop_front()
            {
                let Stalled { job, changes, ticket } = stalled;
                if !self.apply(job, changes, ticket) {
                    // It went to the back; it belongs to the front.
                    if let Some(Slot::Serving(serving)) = self.volumes.get_mut(&vdisk)
                        && let Some(stalled) = serving.stalled.pop_back()
                    {
                        serving.stalled.push_front(stalled);
                    }
                    return;
                }
                if let Some(ticket) = ticket {
                    self.unlock(vdisk, ticket, actions);
                }
            }
        }
    }
}

/// What a job changes, given the content of its ragged clusters.
fn changes_of(job: &mut Job, ragged: &Ragged) -> VecDeque<Change> {
    // The payload moves on: from here it lives in the change alone.
    let kind = std::mem::replace(&mut job.kind, JobKind::Unmap(UnmapKind::Trim));
    match kind {
        JobKind::Write(payload, checksums) if job.range.is_aligned() => {
            let cluster = job.range.clusters_touched().start;
            let change = Change::Write { cluster, data: payload, checksums };
            VecDeque::from([change])
        }
        JobKind::Write(payload, checksums) => {
            let old = |cluster: Cluster| {
                ragged
                    .get(&cluster)
                    .cloned()
                    .flatten()
                    .unwrap_or_else(|| Bytes::from_static(&[0; CLUSTER]))
            };
            let data = plan::merge(job.range, &payload, old);
            let clusters = job.range.clusters_touched();
            let whole = job.range.clusters_within();
            let sums = clusters.iter().zip(data.chunks_exact(CLUSTER)).zip(&checksums);
            // A cluster that came whole keeps the checksum that the edge computed.
            let sums =
                sums.map(|((c, data), sum)| if whole.contains(c) { *sum } else { crc32c(data) });
            let checksums = sums.collect();
            VecDeque::from([Change::Write { cluster: clusters.start, data, checksums }])
        }
        JobKind::Unmap(kind) => {
            let old = |cluster: Cluster| ragged.get(&cluster).cloned().flatten();
            let steps = plan::unmap(job.range, old).into_iter();
            steps
                .map(|step| match step {
                    UnmapStep::Write(cluster, data) => {
                        Change::Write { cluster, checksums: vec![crc32c(&data)], data }
                    }
                    UnmapStep::Range(range) => Change::Unmap { range, kind },
                })
                .collect()
        }
    }
}
