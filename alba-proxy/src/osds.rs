//! Calls to OSDs, and what their answers teach about their health.
//!
//! An OSD has several addresses; the one that worked last is tried first. One that refuses connections is skipped for
//! new fragments at once and asked again at back-off ([`Osds::probe`]).
//!
//! Invariant: every call has a timeout, every answer's bytes are checked against their checksum (L5), and every
//! outcome is told to the [`HealthView`].

use alba_proxy_core::health::{Failure, Room};
use alba_proxy_core::read::Rank;
use alba_proxy_core::{Candidate, HealthView, OsdCondition};
use bytes::Bytes;
use model::{FragmentKey, OsdId};
use runtime::clock::boot_now;
use runtime::endpoint::Endpoint;
use runtime::events::Events;
use runtime::peer::Identity;
use runtime::rpc::{Call, CallError, Client, ClientOptions};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use wire::asd::{self, DiskState, GetStatus, Priority, PutCondition, PutResult, method};
use wire::common::Severity;
use wire::facts::{OsdRecord, OsdState};
use wire::{Decode, Encode, Role};

pub const PUT_TIMEOUT: Duration = Duration::from_secs(5);
pub const GET_TIMEOUT: Duration = Duration::from_secs(2);
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);
const DELETE_TIMEOUT: Duration = Duration::from_secs(5);

/// One OSD: its record in arakoon, its clients, its last figures.
struct Osd {
    record: OsdRecord,
    domain: model::DomainPath,
    clients: Vec<Client>,
    /// Which address worked last.
    preferred: AtomicUsize,
    figures: Mutex<Figures>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Figures {
    capacity_bytes: u64,
    used_bytes: u64,
    corruptions: u64,
}

/// What status shows of an OSD.
#[derive(Debug, Clone)]
pub struct OsdView {
    pub osd: OsdId,
    pub name: String,
    pub condition: OsdCondition,
    pub capacity_bytes: u64,
    pub used_bytes: u64,
    pub corruptions: u64,
}

/// Bytes wanted from a fragment.
#[derive(Debug, Clone)]
pub struct Wanted {
    pub key: FragmentKey,
    pub range: Range<u32>,
}

/// What an OSD had to say about wanted bytes. `Found` bytes were verified.
#[derive(Debug, Clone)]
pub enum Got {
    /// The bytes and their CRC-32C.
    Found(Bytes, u32),
    Absent,
    Corrupt,
}

/// A fragment with the checksums that go along with it.
#[derive(Debug, Clone)]
pub struct Fragment {
    pub bytes: Bytes,
    pub checksums: Vec<u32>,
}

impl Fragment {
    pub fn new(bytes: Bytes) -> Self {
        let checksums = codec::BlockChecksums::of(&bytes).sums().to_vec();
        Self { bytes, checksums }
    }
}

/// What a fragment is stored for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PutManner {
    /// It was never there.
    New,
    /// Whatever is there is replaced.
    Repair,
}

/// Why a fragment isn't stored.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PutError {
    #[error("unknown OSD")]
    Unknown,
    #[error(transparent)]
    Call(#[from] CallError),
    #[error("the OSD answered {0:?}")]
    Answer(PutResult),
}

#[derive(Default)]
struct State {
    /// Those that an event told of as not ok.
    troubled: BTreeSet<OsdId>,
    health: HealthView,
    osds: BTreeMap<OsdId, Arc<Osd>>,
}

pub struct Osds {
    identity: Arc<Identity>,
    /// What an operator should know of this proxy.
    pub events: Events,
    state: Mutex<State>,
}

impl Osds {
    pub fn new(identity: Arc<Identity>) -> Self {
        Self { identity, events: Events::default(), state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Changes are single steps, so a panic elsewhere leaves a usable state.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn osd(&self, osd: OsdId) -> Option<Arc<Osd>> {
        self.state().osds.get(&osd).cloned()
    }

    /// Takes over the list that arakoon has. Connections of OSDs that stay as they are stay too.
    pub fn set_records(&self, records: Vec<OsdRecord>) {
        let mut state = self.state();
        let mut osds = BTreeMap::new();
        for record in records {
            let id = record.osd;
            let osd = match state.osds.remove(&id) {
                Some(known) if known.record == record => known,
                Some(_) | None => match self.connect(record) {
                    Some(osd) => Arc::new(osd),
                    None => continue,
                },
            };
            osds.insert(id, osd);
        }
        let ids: Vec<OsdId> = osds.keys().copied().collect();
        state.osds = osds;
        state.health.set_osds(&ids);
    }

    fn connect(&self, record: OsdRecord) -> Option<Osd> {
        let options = ClientOptions {
            connect_timeout: Duration::from_secs(1),
            backoff_max: Duration::from_secs(1),
            ..ClientOptions::default()
        };
        let mut clients = Vec::new();
        for address in &record.addresses {
            match address.parse::<Endpoint>() {
                Ok(endpoint) => {
                    let identity = Arc::clone(&self.identity);
                    clients.push(Client::new(endpoint, Role::Asd, identity, options.clone()));
                }
                Err(error) => tracing::warn!(osd = %record.name, %error, "an address is skipped"),
            }
        }
        let Ok(domain) = record.domain.parse() else {
            tracing::warn!(osd = %record.name, domain = %record.domain, "an OSD is skipped: bad domain");
            return None;
        };
        let figures = Figures { capacity_bytes: record.capacity_bytes, ..Figures::default() };
        Some(Osd {
            record,
            domain,
            clients,
            preferred: AtomicUsize::new(0),
            figures: Mutex::new(figures),
        })
    }

    /// All OSDs as placement sees them.
    pub fn candidates(&self) -> Vec<Candidate> {
        let state = self.state();
        let candidate = |(id, osd): (&OsdId, &Arc<Osd>)| {
            let figures = osd.figures();
            Candidate {
                osd: *id,
                domain: osd.domain.clone(),
                free_bytes: figures.capacity_bytes.saturating_sub(figures.used_bytes),
                writable: state.health.writable(*id) && takes_fragments(osd.record.state),
            }
        };
        state.osds.iter().map(candidate).collect()
    }

    pub fn views(&self) -> Vec<OsdView> {
        let state = self.state();
        let view = |(id, osd): (&OsdId, &Arc<Osd>)| {
            let figures = osd.figures();
            OsdView {
                osd: *id,
                name: osd.record.name.clone(),
                condition: state.health.condition(*id),
                capacity_bytes: figures.capacity_bytes,
                used_bytes: figures.used_bytes,
                corruptions: figures.corruptions,
            }
        };
        state.osds.iter().map(view).collect()
    }

    pub fn knows(&self, osd: OsdId) -> bool {
        self.state().osds.contains_key(&osd)
    }

    pub fn rank(&self, osd: OsdId) -> Rank {
        match self.state().health.condition(osd) {
            OsdCondition::Ok | OsdCondition::Full => Rank::Good,
            OsdCondition::Suspect => Rank::Doubtful,
            OsdCondition::Down => Rank::Down,
        }
    }

    pub fn writable(&self, osd: OsdId) -> bool {
        self.state().health.writable(osd)
    }

    /// It was still silent when enough others had answered.
    pub fn note_slow(&self, osd: OsdId) {
        if self.state().health.slow(osd, boot_now()) {
            self.report(osd, "slow several times running");
        }
    }

    fn note_room(&self, osd: OsdId, room: Room) {
        if self.state().health.set_room(osd, room) {
            self.report(osd, if room == Room::Full { "no room" } else { "room again" });
        }
    }

    fn note<T>(&self, osd: OsdId, outcome: &Result<T, CallError>) {
        match outcome {
            Ok(_) => {
                if self.state().health.success(osd, boot_now()) {
                    self.report(osd, "it answers");
                }
            }
            Err(error) => {
                let failure = match error {
                    CallError::Unreachable { .. } | CallError::Closed { .. } => {
                        Failure::Unreachable
                    }
                    CallError::Timeout { .. } | CallError::Protocol { .. } => Failure::Timeout,
                    CallError::Refused(error) => match error.code {
                        wire::error::code::STOPPING => Failure::Unreachable,
                        wire::error::code::BUSY | wire::error::code::TOO_LATE => Failure::Timeout,
                        _ => Failure::Disk,
                    },
                };
                self.note_failure(osd, failure, &error.to_string());
            }
        }
    }

    fn note_failure(&self, osd: OsdId, failure: Failure, why: &str) {
        let chance = runtime::random::u64();
        if self.state().health.failure(osd, failure, boot_now(), chance) {
            self.report(osd, why);
        }
    }

    fn report(&self, osd: OsdId, why: &str) {
        let mut state = self.state();
        let name = state.osds.get(&osd).map_or("?", |osd| osd.record.name.as_str()).to_owned();
        let condition = state.health.condition(osd);
        match condition {
            OsdCondition::Ok => {
                tracing::info!(osd = %name, why, "an OSD is ok");
                if state.troubled.remove(&osd) {
                    let text = format!("{name} is used again: {why}");
                    self.events.note(Severity::Info, "osd-ok", &text);
                }
            }
            OsdCondition::Full | OsdCondition::Suspect | OsdCondition::Down => {
                tracing::warn!(osd = %name, condition = condition.name(), why, "an OSD isn't ok");
                let text = format!("{name} is {}: {why}", condition.name());
                state.troubled.insert(osd);
                self.events.note(Severity::Warn, "osd", &text);
            }
        }
    }

    async fn call<Q: Encode + ?Sized, A: Decode>(
        &self,
        osd: &Osd,
        method: u16,
        body: &Q,
        call: Call,
    ) -> Result<(A, Bytes), CallError> {
        let result = osd.call(method, body, call).await;
        self.note(osd.record.osd, &result);
        result
    }

    pub async fn put(
        &self,
        osd: OsdId,
        key: FragmentKey,
        fragment: &Fragment,
        manner: PutManner,
    ) -> Result<(), PutError> {
        let (condition, priority) = match manner {
            PutManner::New => (PutCondition::Absent, Priority::Client),
            PutManner::Repair => (PutCondition::Always, Priority::Maintenance),
        };
        let target = self.osd(osd).ok_or(PutError::Unknown)?;
        let item = asd::PutItem {
            key: Bytes::copy_from_slice(&key.to_bytes()),
            len: model::u32_of(fragment.bytes.len()),
            checksums: fragment.checksums.clone(),
            condition,
        };
        let body = asd::MultiPut { priority, items: vec![item] };
        let call = Call::with_payload(fragment.bytes.clone(), PUT_TIMEOUT);
        let (answer, _): (asd::PutResults, _) =
            self.call(&target, method::MULTI_PUT, &body, call).await?;
        let result = answer.results.first().copied().unwrap_or(PutResult::Failed);
        match result {
            PutResult::Stored => return Ok(()),
            PutResult::Full => self.note_room(osd, Room::Full),
            PutResult::Failed => {
                self.note_failure(osd, Failure::Disk, "its disk fails");
            }
            PutResult::Exists | PutResult::BadChecksum => {}
        }
        Err(PutError::Answer(result))
    }

    /// One answer per wanted range, in order.
    pub async fn get(
        &self,
        osd: OsdId,
        wanted: &[Wanted],
        priority: Priority,
    ) -> Result<Vec<Got>, PutError> {
        let target = self.osd(osd).ok_or(PutError::Unknown)?;
        let items = wanted
            .iter()
            .map(|wanted| asd::GetItem {
                key: Bytes::copy_from_slice(&wanted.key.to_bytes()),
                offset: wanted.range.start,
                len: wanted.range.end - wanted.range.start,
            })
            .collect();
        let body = asd::MultiGet { priority, items };
        let call = Call::within(GET_TIMEOUT);
        let (answer, payload): (asd::GetResults, _) =
            self.call(&target, method::MULTI_GET, &body, call).await?;
        Ok(split_answer(wanted, &answer.results, &payload))
    }

    /// Absent keys are no error.
    pub async fn delete(&self, osd: OsdId, keys: Vec<Bytes>) -> Result<(), PutError> {
        let target = self.osd(osd).ok_or(PutError::Unknown)?;
        let body = asd::Delete { priority: Priority::Maintenance, keys };
        let call = Call::within(DELETE_TIMEOUT);
        let ((), _) = self.call(&target, method::DELETE, &body, call).await?;
        Ok(())
    }

    /// Whether the whole fragment on the disk is sound.
    pub async fn verify(&self, osd: OsdId, key: FragmentKey) -> Result<bool, PutError> {
        let target = self.osd(osd).ok_or(PutError::Unknown)?;
        let body = asd::Verify { keys: vec![Bytes::copy_from_slice(&key.to_bytes())] };
        let (answer, _): (asd::VerifyResults, _) =
            self.call(&target, method::VERIFY, &body, Call::within(PUT_TIMEOUT)).await?;
        Ok(answer.results.first() == Some(&GetStatus::Found))
    }

    /// Those that aren't well and may be asked again.
    pub fn due_probes(&self) -> Vec<OsdId> {
        self.state().health.due_probes(boot_now())
    }

    pub fn all(&self) -> Vec<OsdId> {
        self.state().osds.keys().copied().collect()
    }

    /// Asks an OSD who it is and how it is.
    pub async fn probe(&self, osd: OsdId) {
        let Some(target) = self.osd(osd) else { return };
        let identity: Result<(asd::Identity, Bytes), CallError> =
            target.call(method::IDENTIFY, &(), Call::within(PROBE_TIMEOUT)).await;
        match identity {
            Ok((identity, _)) if identity.osd == osd => {
                self.note_state(osd, identity.state);
                let mut figures = target.figures();
                figures.capacity_bytes = identity.capacity_bytes;
                figures.used_bytes = identity.used_bytes;
                target.set_figures(figures);
            }
            Ok((identity, _)) => {
                // Another disk answers at this address: nothing of ours is there.
                let why = format!("OSD {} answers in its place", identity.osd);
                self.note_failure(osd, Failure::Unreachable, &why);
                return;
            }
            Err(error) => {
                self.note::<()>(osd, &Err(error));
                return;
            }
        }
        let stats: Result<(asd::Stats, Bytes), CallError> =
            target.call(method::STATS, &(), Call::within(PROBE_TIMEOUT)).await;
        if let Ok((stats, _)) = stats {
            let mut figures = target.figures();
            figures.corruptions = stats.corruptions;
            target.set_figures(figures);
        }
    }

    fn note_state(&self, osd: OsdId, disk: DiskState) {
        match disk {
            DiskState::Writable | DiskState::Full => {
                self.note(osd, &Ok(()));
                let room = if disk == DiskState::Full { Room::Full } else { Room::Left };
                self.note_room(osd, room);
            }
            DiskState::ReadOnly | DiskState::Failed => {
                // It answers, so it is asked for reads; but it gets nothing new.
                self.note(osd, &Ok(()));
                self.note_failure(osd, Failure::Disk, "its disk takes no writes");
            }
        }
    }
}

impl Osd {
    fn figures(&self) -> Figures {
        *self.figures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_figures(&self, figures: Figures) {
        *self.figures.lock().unwrap_or_else(PoisonError::into_inner) = figures;
    }

    /// Over the address that worked last, then the others; only what never left is sent again.
    async fn call<Q: Encode + ?Sized, A: Decode>(
        &self,
        method: u16,
        body: &Q,
        call: Call,
    ) -> Result<(A, Bytes), CallError> {
        let first = self.preferred.load(Ordering::Relaxed);
        let mut last = None;
        for at in 0..self.clients.len() {
            let at = (first + at) % self.clients.len();
            match self.clients[at].call(method, body, call.clone()).await {
                Ok(answer) => {
                    self.preferred.store(at, Ordering::Relaxed);
                    return Ok(answer);
                }
                Err(error @ CallError::Unreachable { .. }) => last = Some(error),
                Err(error) => return Err(error),
            }
        }
        Err(last.unwrap_or_else(|| {
            CallError::Refused(wire::WireError::fatal(0, "the OSD has no usable address"))
        }))
    }
}

const fn takes_fragments(state: OsdState) -> bool {
    match state {
        OsdState::Claimed | OsdState::Good | OsdState::UnderReview => true,
        OsdState::Suspended | OsdState::Disqualified | OsdState::Draining | OsdState::Retired => {
            false
        }
    }
}

/// Cuts the payload along the results; what doesn't add up or verify counts as corrupt.
fn split_answer(wanted: &[Wanted], results: &[asd::GetResult], payload: &Bytes) -> Vec<Got> {
    let mut at = 0_usize;
    let mut answers = Vec::with_capacity(wanted.len());
    for (index, wanted) in wanted.iter().enumerate() {
        let Some(result) = results.get(index) else {
            answers.push(Got::Corrupt);
            continue;
        };
        let end = at.saturating_add(model::usize_of(result.len.into()));
        let piece = payload.get(at..end).map(|_| payload.slice(at..end));
        at = end;
        let asked = wanted.range.end - wanted.range.start;
        answers.push(match (result.status, piece) {
            (GetStatus::Found, Some(bytes))
                if result.len == asked && codec::crc32c(&bytes) == result.checksum =>
            {
                Got::Found(bytes, result.checksum)
            }
            (GetStatus::Absent, _) => Got::Absent,
            (GetStatus::Found | GetStatus::Corrupt | GetStatus::OutOfRange, _) => Got::Corrupt,
        });
    }
    answers
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{AttemptId, FragmentIndex, NamespaceId, ObjectId};

    #[test]
    fn answers_are_cut_and_verified() {
        let key = FragmentKey {
            namespace: NamespaceId(1),
            object: ObjectId::default(),
            attempt: AttemptId(1),
            index: FragmentIndex::new(0).unwrap(),
        };
        let wanted: Vec<Wanted> =
            [0..3, 4..6, 7..9, 0..1].into_iter().map(|range| Wanted { key, range }).collect();
        let found = |len, bytes: &[u8]| asd::GetResult {
            status: GetStatus::Found,
            len,
            total_len: 10,
            checksum: codec::crc32c(bytes),
        };
        let absent =
            asd::GetResult { status: GetStatus::Absent, len: 0, total_len: 0, checksum: 0 };
        let results = [found(3, b"abc"), absent, found(2, b"xx")];
        let got = split_answer(&wanted, &results, &Bytes::from_static(b"abcde"));
        assert!(matches!(&got[0], Got::Found(bytes, _) if &bytes[..] == b"abc"));
        assert!(matches!(got[1], Got::Absent));
        assert!(matches!(got[2], Got::Corrupt), "its checksum is of other bytes");
        assert!(matches!(got[3], Got::Corrupt), "no result at all");
    }
}
