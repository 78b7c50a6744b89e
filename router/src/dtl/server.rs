//! Keeps the logs of vDisks that other routers own: wire ⇄ `router_core::dtl::target`.
//!
//! Appends are written in the reader's own turn, into the page cache; syncs, the file of promises and questions to
//! arakoon run elsewhere and report back. One lock, never held across an `.await`.
//!
//! Invariant: every request is answered once, and a vDisk whose files can't be read is refused, never begun anew.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use model::{DtlGeneration, Incarnation, VdiskId};
use router_core::dtl::records::{self, Expected};
use router_core::dtl::store::Disk;
pub use router_core::dtl::target::confirm;
use router_core::dtl::target::{Answer, Ask, Effect, LOG_BYTES, Limits, Refusal, Target, Ticket};
use runtime::clock::boot_now;
use runtime::rpc::{Request, Responder};
use tokio::sync::Semaphore;
use wire::WireError;
use wire::dtl::{
    APPEND_RECORDS_MAX, Append, Appended, Create, LogList, LogName, LogStatus, LogsOf, Open,
    Opened, RECORDS_MAX, RENEW_MAX, ReadRecords, Records, Renew, Renewed, Seal, Sealed, Sync,
    Synced, Trim, code, method,
};

use super::BoxFuture;
use super::files::{Files, Handle};

/// Syncs under way at once: each takes a thread and the disk's time.
const SYNCS_MAX: usize = 4;
/// Bytes of records read in one turn: the lock is held meanwhile.
const READ_MAX: u32 = 1 << 20;
/// vDisks that one router keeps logs of.
const VDISKS_MAX: usize = 16_384;

/// What a target server may use.
#[derive(Debug, Clone)]
pub struct TargetOptions {
    pub dir: PathBuf,
    /// Bytes of one log.
    pub log_bytes: u64,
    /// Bytes of all logs together.
    pub total_bytes: u64,
    pub chunk_bytes: u64,
}

impl TargetOptions {
    /// 256 MiB for each log, 4 GiB for all.
    #[must_use]
    pub fn in_dir(dir: PathBuf) -> Self {
        Self { dir, log_bytes: LOG_BYTES, total_bytes: 4 << 30, chunk_bytes: 16 << 20 }
    }
}

/// Who knows what arakoon says (P12).
pub trait Authority: Send + std::marker::Sync + 'static {
    /// Reads the vDisk's record linearizably, and says whether it names this log here; see [`confirm`].
    fn confirm(&self, log: LogName) -> BoxFuture<'_, Result<(), Refusal>>;
}

enum Vdisk {
    Open(Box<OpenVdisk>),
    /// Its files can't be read.
    Broken(String),
}

struct OpenVdisk {
    target: Target<Handle>,
    waiting: BTreeMap<Ticket, Responder>,
    /// A timer is set.
    timed: bool,
    bytes: u64,
}

#[derive(Default)]
struct State {
    vdisks: BTreeMap<VdiskId, Vdisk>,
    next_ticket: Ticket,
    bytes: u64,
}

struct Shared {
    options: TargetOptions,
    incarnation: Incarnation,
    authority: Arc<dyn Authority>,
    state: Mutex<State>,
    syncs: Semaphore,
}

/// The server; clones share it.
#[derive(Clone)]
pub struct TargetServer {
    shared: Arc<Shared>,
}

impl TargetServer {
    /// Reads what the directory holds. Slow: for a blocking thread, before anything is served.
    ///
    /// # Errors
    /// When the directory can't be used.
    pub fn open(
        options: TargetOptions,
        incarnation: Incarnation,
        authority: Arc<dyn Authority>,
    ) -> std::io::Result<Self> {
        std::fs::create_dir_all(&options.dir)?;
        let shared = Arc::new(Shared {
            options,
            incarnation,
            authority,
            state: Mutex::default(),
            syncs: Semaphore::new(SYNCS_MAX),
        });
        let server = Self { shared };
        for entry in std::fs::read_dir(&server.shared.options.dir)? {
            let name = entry?.file_name();
            let Some(vdisk) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
            let mut state = server.state();
            server.load(&mut state, vdisk);
        }
        Ok(server)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn load(&self, state: &mut State, vdisk: VdiskId) {
        let TargetOptions { dir, log_bytes, chunk_bytes, .. } = &self.shared.options;
        let limits = Limits { log_bytes: *log_bytes, chunk_bytes: *chunk_bytes };
        let disk = Handle(Files::new(dir.join(vdisk.to_string())));
        let loaded = match Target::open(vdisk, limits, disk, boot_now()) {
            Ok(target) => {
                let bytes = target.bytes();
                state.bytes += bytes;
                let waiting = BTreeMap::new();
                Vdisk::Open(Box::new(OpenVdisk { target, waiting, timed: false, bytes }))
            }
            Err(error) => {
                tracing::error!(%vdisk, %error, "the DTL's files of a vDisk can't be read");
                Vdisk::Broken(error.to_string())
            }
        };
        state.vdisks.insert(vdisk, loaded);
    }

    /// Answers one request of the DTL's protocol.
    pub fn call(&self, request: &Request, responder: Responder) {
        let handled = match request.method {
            method::APPEND => self.append(request),
            method::SYNC => request
                .decode()
                .map(|Sync { log, through }| (log.vdisk, Ask::Sync { log, through })),
            method::OPEN => request.decode().map(|Open { log }| (log.vdisk, Ask::Open(log))),
            method::CREATE => request.decode().map(|Create { log, base }| {
                (log.vdisk, Ask::Create { log, base, nonce: runtime::random::u64() })
            }),
            method::TRIM => request
                .decode()
                .map(|Trim { vdisk, epoch, through }| (vdisk, Ask::Trim { epoch, through })),
            method::DROP => request
                .decode()
                .map(|Trim { vdisk, epoch, through }| (vdisk, Ask::Drop { epoch, through })),
            method::SEAL => {
                request.decode().map(|Seal { vdisk, epoch }| (vdisk, Ask::Seal { epoch }))
            }
            method::RENEW => return responder.finish(self.renew(request)),
            method::READ => return self.read(request, responder),
            method::LOGS => return responder.finish(self.list(request)),
            _ => Err(request.unknown_method()),
        };
        match handled {
            Ok((vdisk, ask)) => self.ask(vdisk, ask, responder),
            Err(error) => responder.fail(error),
        }
    }

    fn list(&self, request: &Request) -> Result<LogList, WireError> {
        let LogsOf { vdisk } = request.decode()?;
        Ok(LogList { logs: self.logs(vdisk) })
    }

    /// The logs held here of a vDisk.
    #[must_use]
    pub fn logs(&self, vdisk: VdiskId) -> Vec<LogStatus> {
        let state = self.state();
        let Some(Vdisk::Open(open)) = state.vdisks.get(&vdisk) else { return Vec::new() };
        let (fence, needed) = (open.target.fence(), open.target.needed().into_iter());
        needed.map(|(held, bytes)| LogStatus { vdisk, fence, held, bytes }).collect()
    }

    /// Which generations are held of each vDisk; `None`: its files can't be read.
    #[must_use]
    pub fn held(&self) -> Vec<(VdiskId, Option<Vec<DtlGeneration>>)> {
        let state = self.state();
        let held = state.vdisks.iter().map(|(vdisk, slot)| {
            let generations = match slot {
                Vdisk::Open(open) => {
                    Some(open.target.held().iter().map(|held| held.generation).collect())
                }
                Vdisk::Broken(_) => None,
            };
            (*vdisk, generations)
        });
        held.collect()
    }

    /// These count for nothing any more.
    pub fn forget(&self, vdisk: VdiskId, gone: &[DtlGeneration]) {
        self.report(vdisk, |target, out| target.forget(gone, boot_now(), out));
    }

    /// The vDisk is gone, and what lies here of it can't be read.
    pub fn forget_unreadable(&self, vdisk: VdiskId) {
        let mut state = self.state();
        if matches!(state.vdisks.get(&vdisk), Some(Vdisk::Broken(_))) {
            Files::new(self.shared.options.dir.join(vdisk.to_string())).forget();
            state.vdisks.remove(&vdisk);
        }
    }

    fn append(&self, request: &Request) -> Result<(VdiskId, Ask), WireError> {
        let Append { log, first, count } = request.decode()?;
        let bad = |why: String| WireError::refuse(code::BAD_RECORDS, why);
        let records = request.payload.clone();
        if APPEND_RECORDS_MAX < count || (RECORDS_MAX as usize) < records.len() {
            return Err(bad(format!("{count} records in {} bytes are too many", records.len())));
        }
        let expected = Expected { vdisk: log.vdisk, epoch_max: log.epoch, first, count };
        let entries = records::parse(&records, expected).map_err(|error| bad(error.to_string()))?;
        let (total, len) = (self.state().bytes, records.len() as u64);
        if self.shared.options.total_bytes < total + len {
            return Err(Refusal::Full.into());
        }
        Ok((log.vdisk, Ask::Append { log, first, entries, records }))
    }

    fn ask(&self, vdisk: VdiskId, ask: Ask, responder: Responder) {
        let mut out = Vec::new();
        let mut state = self.state();
        state.next_ticket += 1;
        let ticket = state.next_ticket;
        match self.open_vdisk(&mut state, vdisk) {
            Ok(open) => {
                open.waiting.insert(ticket, responder);
                open.target.request(ticket, ask, boot_now(), &mut out);
                self.carry_out(&mut state, vdisk, out);
            }
            Err(error) => responder.fail(error),
        }
    }

    fn open_vdisk<'a>(
        &self,
        state: &'a mut State,
        vdisk: VdiskId,
    ) -> Result<&'a mut OpenVdisk, WireError> {
        if !state.vdisks.contains_key(&vdisk) {
            if VDISKS_MAX <= state.vdisks.len() {
                return Err(Refusal::Full.into());
            }
            self.load(state, vdisk);
        }
        match state.vdisks.get_mut(&vdisk).expect("just loaded") {
            Vdisk::Open(open) => Ok(open),
            Vdisk::Broken(why) => Err(Refusal::Failed(why.clone()).into()),
        }
    }

    fn renew(&self, request: &Request) -> Result<Renewed, WireError> {
        let Renew { logs } = request.decode()?;
        if RENEW_MAX < logs.len() {
            return Err(WireError::refuse(code::BAD_RECORDS, "too many leases in one request"));
        }
        let mut state = self.state();
        let mut refused = Vec::new();
        for log in logs {
            let vdisk = log.vdisk;
            let Some(Vdisk::Open(open)) = state.vdisks.get_mut(&vdisk) else {
                refused.push(vdisk);
                continue;
            };
            let mut out = Vec::new();
            // No responder waits for ticket 0: a renewal is answered here and now.
            open.target.request(0, Ask::Renew(log), boot_now(), &mut out);
            let granted = out.iter().any(|effect| {
                matches!(effect, Effect::Answer { ticket: 0, answer: Ok(Answer::Renewed) })
            });
            if !granted {
                refused.push(vdisk);
            }
            self.carry_out(&mut state, vdisk, out);
        }
        Ok(Renewed { refused })
    }

    /// For claimants: reads the disk, so not in the reader's turn.
    fn read(&self, request: &Request, responder: Responder) {
        let ask: ReadRecords = match request.decode() {
            Ok(ask) => ask,
            Err(error) => return responder.fail(error),
        };
        let server = self.clone();
        tokio::task::spawn_blocking(move || {
            let read = {
                let mut state = server.state();
                server.open_vdisk(&mut state, ask.vdisk).and_then(|open| {
                    let bytes_max = u64::from(ask.bytes_max.min(READ_MAX));
                    let name = (ask.epoch, ask.generation);
                    open.target.read(name, ask.from, bytes_max).map_err(WireError::from)
                })
            };
            match read {
                Err(error) => responder.fail(error),
                Ok(entries) => {
                    let count = model::u32_of(entries.len());
                    let mut parts = Vec::with_capacity(2 * entries.len());
                    for record in entries.iter().map(records::outgoing) {
                        parts.extend([record.header, record.payload]);
                    }
                    responder.reply_parts(&Records { first: ask.from, count }, parts);
                }
            }
        });
    }

    /// Calls the target of a vDisk and carries out what it wants.
    fn report(&self, vdisk: VdiskId, call: impl FnOnce(&mut Target<Handle>, &mut Vec<Effect>)) {
        let mut state = self.state();
        let mut out = Vec::new();
        if let Some(Vdisk::Open(open)) = state.vdisks.get_mut(&vdisk) {
            call(&mut open.target, &mut out);
            self.carry_out(&mut state, vdisk, out);
        }
    }

    fn carry_out(&self, state: &mut State, vdisk: VdiskId, effects: Vec<Effect>) {
        let Some(Vdisk::Open(open)) = state.vdisks.get_mut(&vdisk) else { return };
        for effect in effects {
            match effect {
                Effect::Answer { ticket, answer } => {
                    if let Some(responder) = open.waiting.remove(&ticket) {
                        reply(responder, self.shared.incarnation, answer);
                    }
                }
                Effect::Authorize { ticket, log } => self.authorize(ticket, log),
                Effect::Promise { version, file } => {
                    let disk = open.target.disk.clone();
                    self.blocking(
                        vdisk,
                        move || disk.promise(&file),
                        move |target, done, out| match done {
                            Ok(()) => target.promised(version, boot_now(), out),
                            Err(error) => target.promise_failed(&error.to_string(), out),
                        },
                    );
                }
                Effect::Sync { generation, job } => {
                    let disk = open.target.disk.clone();
                    self.blocking(
                        vdisk,
                        move || disk.sync(&job.chunks),
                        move |target, done, out| target.synced(generation, done, boot_now(), out),
                    );
                }
                Effect::Remove(chunks) => {
                    for chunk in chunks {
                        if let Err(error) = open.target.disk.remove(chunk) {
                            tracing::warn!(%vdisk, %error, "a trimmed chunk of the DTL stays");
                        }
                    }
                }
            }
        }
        let bytes = open.target.bytes();
        state.bytes = state.bytes + bytes - open.bytes;
        open.bytes = bytes;
        self.set_timer(open, vdisk);
        if open.target.is_idle() && open.waiting.is_empty() {
            // Nothing is promised: a log made later asks arakoon first (P12).
            open.target.disk.0.forget();
            state.vdisks.remove(&vdisk);
        }
    }

    fn set_timer(&self, open: &mut OpenVdisk, vdisk: VdiskId) {
        let Some(at) = open.target.wake_at().filter(|_| !open.timed) else { return };
        open.timed = true;
        let server = self.clone();
        let wait = at.since(boot_now()).max(Duration::from_millis(1));
        tokio::spawn(async move {
            tokio::time::sleep(wait).await;
            let mut state = server.state();
            let mut out = Vec::new();
            if let Some(Vdisk::Open(open)) = state.vdisks.get_mut(&vdisk) {
                open.timed = false;
                open.target.tick(boot_now(), &mut out);
                server.carry_out(&mut state, vdisk, out);
            }
        });
    }

    fn authorize(&self, ticket: Ticket, log: LogName) {
        let server = self.clone();
        tokio::spawn(async move {
            let vdisk = log.vdisk;
            let verdict = server.shared.authority.confirm(log).await;
            server.report(vdisk, |target, out| {
                target.authorized(ticket, verdict, boot_now(), out);
            });
        });
    }

    /// Runs slow work on a thread of its own, then tells the target.
    fn blocking<W, T, R>(&self, vdisk: VdiskId, work: W, report: R)
    where
        W: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
        R: FnOnce(&mut Target<Handle>, T, &mut Vec<Effect>) + Send + 'static,
    {
        let server = self.clone();
        tokio::spawn(async move {
            let Ok(_turn) = server.shared.syncs.acquire().await else { return };
            match tokio::task::spawn_blocking(work).await {
                Ok(done) => server.report(vdisk, |target, out| report(target, done, out)),
                Err(error) => server.report(vdisk, |target, out| {
                    target.promise_failed(&error.to_string(), out);
                }),
            }
        });
    }
}

fn reply(responder: Responder, incarnation: Incarnation, answer: Result<Answer, Refusal>) {
    let none = Bytes::new();
    match answer {
        Err(refusal) => responder.fail(refusal.into()),
        Ok(Answer::Opened(held)) => responder.reply(&Opened { incarnation, held }, none),
        Ok(Answer::Appended(last)) => responder.reply(&Appended { last }, none),
        Ok(Answer::Synced(through)) => responder.reply(&Synced { through }, none),
        Ok(Answer::Renewed | Answer::Trimmed) => responder.reply(&(), none),
        Ok(Answer::Sealed(logs)) => responder.reply(&Sealed { incarnation, logs }, none),
    }
}
