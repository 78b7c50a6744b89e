//! What one target promises about one vDisk, and when it may answer.
//!
//! ```text
//!  CREATE ─ask arakoon─▶ promise on disk ─▶ Opened        a log per generation; only the newest takes records
//!  APPEND ─▶ page cache ─▶ Appended                       no gap, no lower epoch, no other generation
//!  SYNC ─▶ one sync for all that wait ─▶ Synced
//!  SEAL ─▶ lower epochs refused at once ─▶ everything synced, fence on disk, last lease run out ─▶ Sealed
//! ```
//!
//! Everything that takes time is an effect with a later report: asking arakoon, the file of promises, syncs. Time is an
//! argument. Appends are written at once: into the page cache they cost microseconds.
//!
//! Invariant: once a seal of epoch e is answered, no request of a lower epoch is ever granted, over any number of
//! restarts, and no read lease of one is running (L3, L4, P12, P16).

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use model::{DtlGeneration, Epoch, Lsn, Now, VdiskId};
use wire::dtl::{Held, LEASE_MS, LOGS_MAX, LogName};

use super::block::{LogPromise, Promises};
use super::store::{ChunkId, Disk, DiskError, Log, SyncJob};
use crate::log::pool::Entry;

mod ask;
mod orphan;
mod refusal;

pub use ask::{Answer, Ask, Effect, Ticket};
pub use orphan::may_count;
pub use refusal::{Refusal, confirm};

/// A lease counted from the moment the request *arrived*, which is after it was sent; the twentieth on top covers two
/// boot-time clocks that run at different speeds (P16).
pub const LEASE_HOLD: Duration = Duration::from_millis(LEASE_MS + LEASE_MS / 20);

/// Bytes of one log, as every router takes them.
pub const LOG_BYTES: u64 = 256 << 20;

/// How much a target takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one log.
    pub log_bytes: u64,
    /// A chunk is full at this.
    pub chunk_bytes: u64,
}

#[derive(Debug)]
struct Slot {
    log: Log,
    /// Its promise isn't on disk yet: it takes nothing.
    is_new: bool,
    /// Trimmed through here in the file of promises that is written next.
    base: Lsn,
    /// And in the one that is being written, if that names this log.
    filed: Option<Lsn>,
}

#[derive(Debug)]
struct SyncWaiter {
    ticket: Ticket,
    generation: DtlGeneration,
    epoch: Epoch,
    through: Lsn,
}

/// Answered once the promises of `version` are on disk, and what else the kind asks for.
#[derive(Debug)]
struct PromiseWaiter {
    ticket: Ticket,
    version: u64,
    epoch: Epoch,
    kind: Waiting,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Waiting {
    Create(DtlGeneration),
    Trim,
    Seal,
}

#[derive(Debug)]
struct Creating {
    log: LogName,
    base: Lsn,
    nonce: u64,
}

/// See the module's page.
#[derive(Debug)]
pub struct Target<D> {
    vdisk: VdiskId,
    limits: Limits,
    pub disk: D,
    fence: Epoch,
    logs: BTreeMap<DtlGeneration, Slot>,
    creating: BTreeMap<Ticket, Creating>,
    syncs: Vec<SyncWaiter>,
    promises: Vec<PromiseWaiter>,
    /// Of the promises in memory, those on disk, and those being written.
    version: u64,
    durable: u64,
    writing: Option<u64>,
    granted_until: Option<Now>,
    /// The file of promises couldn't be written: nothing is promised any more.
    broken: Option<String>,
}

impl<D: Disk> Target<D> {
    /// A vDisk this target knows nothing of, or what the disk remembers of it.
    ///
    /// # Errors
    /// When the disk fails or the file of promises is damaged: then nothing may be promised about this vDisk.
    pub fn open(vdisk: VdiskId, limits: Limits, disk: D, now: Now) -> Result<Self, DiskError> {
        let file = disk.promises()?;
        let promises = match &file {
            None => Promises { fence: Epoch::ZERO, logs: Vec::new() },
            Some(bytes) => Promises::from_file(bytes)
                .ok_or_else(|| DiskError::Failed("the file of promises is damaged".to_owned()))?,
        };
        // The life before may have failed to sync its name, and no later sync makes up for that (L2).
        match file.as_ref().map_or(Ok(()), |file| disk.promise(file)) {
            // A full disk is no failing one, and what it holds may be needed right now.
            Ok(()) | Err(DiskError::Full) => {}
            Err(error) => return Err(error),
        }
        for chunk in disk.chunks()? {
            if promises.logs.iter().all(|log| log.generation != chunk.generation) {
                disk.remove(chunk)?;
            }
        }
        let mut logs = BTreeMap::new();
        for promise in promises.logs {
            let log = Log::recover(vdisk, promise, limits.chunk_bytes, &disk)?;
            let (generation, base) = (log.promise.generation, log.promise.base);
            logs.insert(generation, Slot { log, is_new: false, base, filed: None });
        }
        // A life before this one may have granted a lease just now.
        let granted_until = (!logs.is_empty()).then(|| now.plus(LEASE_HOLD));
        Ok(Self {
            vdisk,
            limits,
            disk,
            fence: promises.fence,
            logs,
            creating: BTreeMap::new(),
            syncs: Vec::new(),
            promises: Vec::new(),
            version: 0,
            durable: 0,
            writing: None,
            granted_until,
            broken: None,
        })
    }

    /// Nothing below this is taken.
    #[must_use]
    pub const fn fence(&self) -> Epoch {
        self.fence
    }

    #[must_use]
    pub fn held(&self) -> Vec<Held> {
        self.logs.values().filter(|slot| !slot.is_new).map(|slot| slot.log.held()).collect()
    }

    /// As [`Self::held`], with how much a claimant would have to take over of each.
    #[must_use]
    pub fn needed(&self) -> Vec<(Held, u64)> {
        let slots = self.logs.values().filter(|slot| !slot.is_new);
        slots.map(|slot| (slot.log.held(), slot.log.needed_bytes())).collect()
    }

    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.logs.values().map(|slot| slot.log.bytes()).sum()
    }

    /// Nothing is held, promised or under way: the vDisk can be forgotten.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.logs.is_empty()
            && self.creating.is_empty()
            && self.promises.is_empty()
            && self.writing.is_none()
    }

    /// When [`Target::tick`] has something to do, if ever.
    #[must_use]
    pub fn wake_at(&self) -> Option<Now> {
        let waits = self.promises.iter().any(|waiter| waiter.kind == Waiting::Seal);
        self.granted_until.filter(|_| waits)
    }

    /// A request. It is answered by an effect, now or later, exactly once.
    pub fn request(&mut self, ticket: Ticket, ask: Ask, now: Now, out: &mut Vec<Effect>) {
        let refused = match (&self.broken, ask) {
            (Some(why), _) => Err(Refusal::Failed(why.clone())),
            (None, Ask::Open(log)) => self.on_open((ticket, now), &log, out),
            (None, Ask::Create { log, base, nonce }) => {
                self.on_create(ticket, Creating { log, base, nonce }, out)
            }
            (None, Ask::Append { log, first, entries, records }) => {
                self.on_append((ticket, now), &log, (first, &entries, records), out)
            }
            (None, Ask::Sync { log, through }) => self.on_sync((ticket, now), &log, through, out),
            (None, Ask::Renew(log)) => self.on_renew((ticket, now), &log, out),
            (None, Ask::Trim { epoch, through }) => self.on_trim(ticket, epoch, through, out),
            (None, Ask::Drop { epoch, through }) => self.on_drop(ticket, epoch, through, out),
            (None, Ask::Seal { epoch }) => self.on_seal(ticket, epoch, out),
        };
        if let Err(refusal) = refused {
            out.push(Effect::Answer { ticket, answer: Err(refusal) });
        }
        self.progress(now, out);
    }

    /// The log that a request speaks of, if it may.
    fn check(&mut self, name: &LogName) -> Result<&mut Slot, Refusal> {
        self.check_epoch(name.epoch)?;
        let newest = self.logs.last_key_value().map(|(generation, _)| *generation);
        let Some(slot) = self.logs.get_mut(&name.generation).filter(|slot| !slot.is_new) else {
            return Err(match newest {
                Some(newest) if name.generation < newest => Refusal::WrongGeneration { newest },
                Some(_) | None => Refusal::NoLog,
            });
        };
        if newest != Some(name.generation) || slot.log.promise.epoch != name.epoch {
            return Err(Refusal::WrongGeneration { newest: newest.unwrap_or_default() });
        }
        if !slot.log.is_sound() {
            return Err(Refusal::Failed("the log is damaged or its disk failed".to_owned()));
        }
        Ok(slot)
    }

    /// L4.
    const fn check_epoch(&self, epoch: Epoch) -> Result<(), Refusal> {
        if epoch.0 < self.fence.0 { Err(Refusal::Fenced { by: self.fence }) } else { Ok(()) }
    }

    fn grant(&mut self, now: Now) {
        self.granted_until = self.granted_until.max(Some(now.plus(LEASE_HOLD)));
    }

    fn on_open(
        &mut self,
        (ticket, now): (Ticket, Now),
        name: &LogName,
        out: &mut Vec<Effect>,
    ) -> Result<(), Refusal> {
        let held = self.check(name)?.log.held();
        self.grant(now);
        answer(ticket, Answer::Opened(held), out);
        Ok(())
    }

    fn on_renew(
        &mut self,
        (ticket, now): (Ticket, Now),
        name: &LogName,
        out: &mut Vec<Effect>,
    ) -> Result<(), Refusal> {
        self.check(name)?;
        self.grant(now);
        answer(ticket, Answer::Renewed, out);
        Ok(())
    }

    fn on_create(
        &mut self,
        ticket: Ticket,
        wanted: Creating,
        out: &mut Vec<Effect>,
    ) -> Result<(), Refusal> {
        self.check_create(&wanted.log)?;
        // P12: only arakoon knows whether this log is still wanted; a wiped target remembers no fence.
        out.push(Effect::Authorize { ticket, log: wanted.log.clone() });
        self.creating.insert(ticket, wanted);
        Ok(())
    }

    fn check_create(&self, name: &LogName) -> Result<(), Refusal> {
        self.check_epoch(name.epoch)?;
        let newest = self.logs.last_key_value().map(|(generation, slot)| (*generation, slot));
        match newest {
            Some((newest, slot)) if name.generation == newest => {
                // The same request again, its answer lost.
                let same = slot.log.promise.epoch == name.epoch && slot.log.is_sound();
                if same { Ok(()) } else { Err(Refusal::WrongGeneration { newest }) }
            }
            Some((newest, _)) if name.generation < newest => {
                Err(Refusal::WrongGeneration { newest })
            }
            Some(_) if LOGS_MAX <= self.logs.len() => Err(Refusal::Full),
            Some(_) | None => Ok(()),
        }
    }

    /// What arakoon's record says about a log to be made.
    pub fn authorized(
        &mut self,
        ticket: Ticket,
        verdict: Result<(), Refusal>,
        now: Now,
        out: &mut Vec<Effect>,
    ) {
        let Some(wanted) = self.creating.remove(&ticket) else { return };
        let broken = self.broken.clone();
        let verdict = verdict.and(broken.map_or(Ok(()), |why| Err(Refusal::Failed(why))));
        // A seal or another create may have come meanwhile.
        let verdict = verdict.and_then(|()| self.check_create(&wanted.log));
        match verdict {
            Err(refusal) => out.push(Effect::Answer { ticket, answer: Err(refusal) }),
            Ok(()) => self.create(ticket, &wanted),
        }
        self.progress(now, out);
    }

    fn create(&mut self, ticket: Ticket, wanted: &Creating) {
        let Creating { log: LogName { epoch, generation, .. }, base, nonce } = *wanted;
        // Arakoon has just confirmed the epoch, so lower ones are over.
        self.fence = self.fence.max(epoch);
        self.logs.entry(generation).or_insert_with(|| {
            let promise = LogPromise { generation, epoch, nonce, base, failed: false };
            let log = Log::new(self.vdisk, promise, self.limits.chunk_bytes);
            Slot { log, is_new: true, base, filed: None }
        });
        self.wait_for_promise(ticket, epoch, Waiting::Create(generation));
    }

    fn on_append(
        &mut self,
        (ticket, now): (Ticket, Now),
        name: &LogName,
        (first, entries, records): (Lsn, &[Entry], Bytes),
        out: &mut Vec<Effect>,
    ) -> Result<(), Refusal> {
        let log_bytes = self.limits.log_bytes;
        self.check(name)?;
        let (slot, disk) = (self.logs.get_mut(&name.generation).expect("checked"), &self.disk);
        let log = &mut slot.log;
        let end = first.0.saturating_add(entries.len() as u64);
        if log.last().next() < first || entries.is_empty() {
            return Err(Refusal::Gap { last: log.last() });
        }
        // Records that are here already were sent again; of one epoch they can't differ.
        let skip = model::usize_of(log.last().next().0 - first.0);
        if log.last().0 < end - 1 {
            if log_bytes < log.bytes() + records.len() as u64 {
                return Err(Refusal::Full);
            }
            let cut = super::records::prefix_len(entries, skip);
            let (from, count) = (Lsn(first.0 + skip as u64), entries.len() - skip);
            log.append(from, count, records.slice(cut..), disk).map_err(|error| match error {
                DiskError::Full => Refusal::Full,
                DiskError::Failed(why) => Refusal::Failed(why),
            })?;
        }
        let last = log.last();
        self.grant(now);
        answer(ticket, Answer::Appended(last), out);
        Ok(())
    }

    fn on_sync(
        &mut self,
        (ticket, now): (Ticket, Now),
        name: &LogName,
        through: Lsn,
        out: &mut Vec<Effect>,
    ) -> Result<(), Refusal> {
        let log = &self.check(name)?.log;
        let (last, synced) = (log.last(), log.synced());
        if last < through {
            return Err(Refusal::Gap { last });
        }
        self.grant(now);
        if through <= synced {
            answer(ticket, Answer::Synced(synced), out);
        } else {
            let (generation, epoch) = (name.generation, name.epoch);
            self.syncs.push(SyncWaiter { ticket, generation, epoch, through });
        }
        Ok(())
    }

    fn on_trim(
        &mut self,
        ticket: Ticket,
        epoch: Epoch,
        through: Lsn,
        out: &mut Vec<Effect>,
    ) -> Result<(), Refusal> {
        self.check_epoch(epoch)?;
        // Only the newest log's owner or a later one knows what is in the backend.
        if self.logs.values().any(|slot| epoch < slot.log.promise.epoch) {
            return Err(Refusal::Fenced { by: self.fence });
        }
        let mut changed = false;
        for slot in self.logs.values_mut().filter(|slot| slot.base < through) {
            slot.base = through;
            changed = true;
        }
        if changed {
            self.wait_for_promise(ticket, epoch, Waiting::Trim);
        } else if self.durable < self.version {
            // The same trim again, while the first is on its way to the disk (P12).
            let version = self.version;
            self.promises.push(PromiseWaiter { ticket, version, epoch, kind: Waiting::Trim });
        } else {
            answer(ticket, Answer::Trimmed, out);
        }
        Ok(())
    }

    fn on_drop(
        &mut self,
        ticket: Ticket,
        epoch: Epoch,
        through: Lsn,
        out: &mut Vec<Effect>,
    ) -> Result<(), Refusal> {
        self.check_epoch(epoch)?;
        if self.logs.values().any(|slot| epoch < slot.log.promise.epoch) {
            return Err(Refusal::Fenced { by: self.fence });
        }
        // P12: what isn't in the backend is kept, whoever asks.
        if self.logs.values().any(|slot| through.max(slot.base) < slot.log.last()) {
            return Err(Refusal::NotEmpty);
        }
        let gone: Vec<Slot> = std::mem::take(&mut self.logs).into_values().collect();
        for waiter in std::mem::take(&mut self.syncs) {
            out.push(Effect::Answer { ticket: waiter.ticket, answer: Err(Refusal::NoLog) });
        }
        out.extend(gone.iter().map(|slot| Effect::Remove(slot.log.chunks())));
        self.wait_for_promise(ticket, epoch, Waiting::Trim);
        Ok(())
    }

    fn on_seal(
        &mut self,
        ticket: Ticket,
        epoch: Epoch,
        out: &mut Vec<Effect>,
    ) -> Result<(), Refusal> {
        self.check_epoch(epoch)?;
        if self.fence < epoch {
            self.fence = epoch;
            // A log that isn't promised yet is another owner's: it holds nothing and never will.
            self.logs.retain(|_, slot| !slot.is_new || slot.log.promise.epoch == epoch);
            self.refuse_fenced(out);
        }
        self.wait_for_promise(ticket, epoch, Waiting::Seal);
        Ok(())
    }

    /// Who waited under an epoch that is over now hears so at once.
    fn refuse_fenced(&mut self, out: &mut Vec<Effect>) {
        let by = self.fence;
        let refuse = |ticket| Effect::Answer { ticket, answer: Err(Refusal::Fenced { by }) };
        let syncs = self.syncs.extract_if(.., |waiter| waiter.epoch < by);
        out.extend(syncs.map(|waiter| refuse(waiter.ticket)));
        let promises = self.promises.extract_if(.., |waiter| waiter.epoch < by);
        out.extend(promises.map(|waiter| refuse(waiter.ticket)));
    }

    fn wait_for_promise(&mut self, ticket: Ticket, epoch: Epoch, kind: Waiting) {
        self.version += 1;
        self.promises.push(PromiseWaiter { ticket, version: self.version, epoch, kind });
    }

    /// The file of promises of `version` is on disk.
    pub fn promised(&mut self, version: u64, now: Now, out: &mut Vec<Effect>) {
        self.writing = None;
        self.durable = version;
        self.take_effect(out);
        self.progress(now, out);
    }

    /// It couldn't be written: which one is there is unknown, so nothing is promised until a restart reads it.
    pub fn promise_failed(&mut self, why: &str, out: &mut Vec<Effect>) {
        self.writing = None;
        self.broken = Some(why.to_owned());
        let promises = std::mem::take(&mut self.promises).into_iter().map(|waiter| waiter.ticket);
        let syncs = std::mem::take(&mut self.syncs).into_iter().map(|waiter| waiter.ticket);
        for ticket in promises.chain(syncs) {
            out.push(Effect::Answer { ticket, answer: Err(Refusal::Failed(why.to_owned())) });
        }
    }

    /// A sync of `generation` ended.
    pub fn synced(
        &mut self,
        generation: DtlGeneration,
        outcome: Result<(), DiskError>,
        now: Now,
        out: &mut Vec<Effect>,
    ) {
        if let Some(slot) = self.logs.get_mut(&generation) {
            match outcome {
                Ok(()) => slot.log.sync_done(),
                Err(error) => {
                    slot.log.sync_failed();
                    // Remembered, as a later read may show what the disk hasn't got.
                    self.version += 1;
                    let ours = self.syncs.extract_if(.., |waiter| waiter.generation == generation);
                    let why = error.to_string();
                    out.extend(ours.map(|waiter| Effect::Answer {
                        ticket: waiter.ticket,
                        answer: Err(Refusal::Failed(why.clone())),
                    }));
                }
            }
        }
        self.progress(now, out);
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Now, out: &mut Vec<Effect>) {
        self.progress(now, out);
    }

    /// Answers whoever may be answered now, and starts what they wait for.
    fn progress(&mut self, now: Now, out: &mut Vec<Effect>) {
        if self.broken.is_some() {
            return;
        }
        self.answer_syncs(out);
        let sealing = self.promises.iter().any(|waiter| waiter.kind == Waiting::Seal);
        for (generation, slot) in &mut self.logs {
            let waited_for = self.syncs.iter().any(|waiter| waiter.generation == *generation);
            if (sealing || waited_for)
                && let Some(job) = slot.log.begin_sync()
            {
                out.push(Effect::Sync { generation: *generation, job });
            }
        }
        self.answer_promises(now, out);
        if self.writing.is_none() && self.durable < self.version {
            self.writing = Some(self.version);
            for slot in self.logs.values_mut() {
                slot.filed = Some(slot.base);
            }
            out.push(Effect::Promise { version: self.version, file: self.promises().to_file() });
        }
    }

    fn promises(&self) -> Promises {
        let promise = |slot: &Slot| LogPromise { base: slot.base, ..slot.log.promise.clone() };
        Promises { fence: self.fence, logs: self.logs.values().map(promise).collect() }
    }

    /// What is on disk now takes effect: new logs take records, trimmed space is given back.
    fn take_effect(&mut self, out: &mut Vec<Effect>) {
        for slot in self.logs.values_mut() {
            let Some(base) = slot.filed.take() else { continue };
            slot.is_new = false;
            slot.log.trim(base);
            let dead = slot.log.release();
            if !dead.is_empty() {
                out.push(Effect::Remove(dead));
            }
        }
        let newest = self.logs.last_key_value().map(|(generation, _)| *generation);
        let before = self.logs.len();
        self.logs.retain(|generation, slot| {
            Some(*generation) == newest || !slot.log.is_empty() || 0 < slot.log.bytes()
        });
        if self.logs.len() < before {
            // The next file of promises doesn't name them; nobody waits for it.
            self.version += 1;
        }
    }

    fn answer_syncs(&mut self, out: &mut Vec<Effect>) {
        let logs = &self.logs;
        let synced = |waiter: &SyncWaiter| {
            let log = logs.get(&waiter.generation).map(|slot| slot.log.synced());
            log.filter(|synced| waiter.through <= *synced)
        };
        let done = self.syncs.extract_if(.., |waiter| synced(waiter).is_some());
        for waiter in done {
            let through = synced(&waiter).unwrap_or(waiter.through);
            answer(waiter.ticket, Answer::Synced(through), out);
        }
    }

    fn answer_promises(&mut self, now: Now, out: &mut Vec<Effect>) {
        let lease_over = self.granted_until.is_none_or(|until| until <= now);
        let all_synced = self
            .logs
            .values()
            .all(|slot| slot.log.last() <= slot.log.synced() || !slot.log.is_sound());
        let durable = self.durable;
        let ready = self.promises.extract_if(.., |waiter| {
            // P12, P16: the fence is on disk, all that is held is, and nobody reads under an older right.
            waiter.version <= durable
                && (waiter.kind != Waiting::Seal || (lease_over && all_synced))
        });
        let ready: Vec<PromiseWaiter> = ready.collect();
        for waiter in ready {
            let answered = match waiter.kind {
                Waiting::Create(generation) => match self.logs.get(&generation) {
                    Some(slot) => Ok(Answer::Opened(slot.log.held())),
                    None => Err(Refusal::NoLog),
                },
                Waiting::Trim => Ok(Answer::Trimmed),
                Waiting::Seal => Ok(Answer::Sealed(self.held())),
            };
            out.push(Effect::Answer { ticket: waiter.ticket, answer: answered });
        }
    }

    /// Records of a log, for a claimant, or for an owner whose own log is damaged.
    ///
    /// # Errors
    /// When the epoch is over, there is no such log, or the disk fails.
    pub fn read(
        &self,
        (epoch, generation): (Epoch, DtlGeneration),
        from: Lsn,
        bytes_max: u64,
    ) -> Result<Vec<Entry>, Refusal> {
        self.check_epoch(epoch)?;
        let slot = self.logs.get(&generation).filter(|slot| !slot.is_new).ok_or(Refusal::NoLog)?;
        if epoch < slot.log.promise.epoch {
            return Err(Refusal::Fenced { by: slot.log.promise.epoch });
        }
        slot.log
            .read(from, bytes_max, &self.disk)
            .map_err(|error| Refusal::Failed(error.to_string()))
    }
}

fn answer(ticket: Ticket, answer: Answer, out: &mut Vec<Effect>) {
    out.push(Effect::Answer { ticket, answer: Ok(answer) });
}
