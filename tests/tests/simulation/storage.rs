//! The backend of the simulated cluster: two proxies made of `alba-proxy-core`, their ASDs, and arakoon's register.
//!
//! The driver's part is done here by hand, in the order of the real one: choose a policy, encode, store fragments, commit
//! what at least `c` of them make, then tidy up, fill holes, repair what reads found bad. Puts, deletes and commits are
//! messages and take time; a read is one step of time, against whatever can be reached at that moment.
//!
//! Invariant: a proxy that dies takes everything it knew with it; fragments and manifests stay.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use alba_proxy_core::health::{Failure, HealthView, Room};
use alba_proxy_core::placement::Candidate;
use alba_proxy_core::upload;
use alba_proxy_core::{Manifest, Upload};
use asd_core::store::{Op, Outcome};
use bytes::Bytes;
use codec::{Decoder, Encoder, Engine, NamespaceKeys};
use model::{
    AttemptId, Epoch, FragmentIndex, FragmentKey, NamespaceId, Now, ObjectId, OsdId, PolicyList,
};
use router_core::tlog::Meta;
use sim::{Chance, FaultCounts, NodeId, Random};
use wire::asd::{DiskState, PutCondition};

use super::accounting::Ledger;
use super::asd::{Asd, put};
use super::message::{ARAKOON, ASDS, Message, PROXIES, Put, Refused};
use super::reading::{Loaded, Unreadable};
use super::register::{Register, Transaction};

pub const NAMESPACE: NamespaceId = NamespaceId(3);
const CALL_TIMEOUT: Duration = Duration::from_millis(700);
const TRANSACT_TIMEOUT: Duration = Duration::from_secs(2);
const REPAIRS_MAX: usize = 32;

/// Names an attempt at an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Attempt {
    pub object: ObjectId,
    pub attempt: AttemptId,
}

impl Attempt {
    pub fn key(self, index: FragmentIndex) -> Bytes {
        let Self { object, attempt } = self;
        let key = FragmentKey { namespace: NAMESPACE, object, attempt, index };
        Bytes::copy_from_slice(&key.to_bytes())
    }
}

/// How far a put is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    Uploading,
    Committing,
    /// Committed with holes; some fragments are still under way.
    Late,
}

pub struct Job {
    pub put: Put,
    pub manifest: Manifest,
    pub fragments: Vec<Bytes>,
    pub upload: Upload,
    pub stage: Stage,
    pub late: Vec<upload::Put>,
    pub deadline: Now,
}

/// Holes of an object that are being filled.
pub struct Fill {
    pub waiting: BTreeSet<upload::Put>,
    pub stored: Vec<upload::Put>,
}

/// Whom an answer concerns.
#[derive(Debug, Clone)]
pub enum What {
    Fragment(Attempt, upload::Put),
    Fill(Attempt, upload::Put),
    Repair(Attempt, upload::Put),
    Delete(Attempt, upload::Put),
    Commit(Attempt),
    Places(Attempt, Vec<upload::Put>),
}

struct Call {
    what: What,
    deadline: Now,
    /// Sent again until it is answered.
    again: Option<Rc<Transaction>>,
}

#[derive(Default)]
pub struct Process {
    pub health: HealthView,
    pub jobs: BTreeMap<Attempt, Job>,
    pub fills: BTreeMap<Attempt, Fill>,
    calls: BTreeMap<u64, Call>,
    pub loaded: BTreeMap<ObjectId, Rc<Loaded>>,
    pub repairs: VecDeque<(ObjectId, u8)>,
}

/// Which ways are open, both directions of each.
#[derive(Debug, Clone)]
pub struct Reach {
    pub router: [bool; 2],
    pub arakoon: [bool; 2],
    pub asds: [Vec<bool>; 2],
}

pub struct Storage {
    pub register: Register,
    pub proxies: [Option<Process>; 2],
    pub asds: Vec<Asd>,
    pub reach: Reach,
    pub policies: PolicyList,
    pub keys: NamespaceKeys,
    pub encrypts: bool,
    /// Compressing costs more than all the rest of a put; some lives do it.
    pub compresses: bool,
    pub encoder: Encoder,
    pub decoder: Decoder,
    pub random: Random,
    pub counts: FaultCounts,
    pub ledger: Ledger,
    /// The proxy the router turns to first.
    pub favourite: usize,
    /// An object of which too little is left, whoever is asked.
    pub lost: Option<ObjectId>,
    /// Messages to be sent: from, to, what.
    pub out: Vec<(NodeId, NodeId, Message)>,
    next_call: u64,
}

impl Storage {
    pub fn new(random: &mut Random) -> Self {
        let count = u32::try_from(random.between(7..=8)).expect("few");
        let tiny = random.below(count.into());
        let asds: Vec<Asd> = (0..count)
            .map(|at| {
                // One of them is soon full.
                let segments = if u64::from(at) == tiny { 16 } else { 400 };
                Asd::new(random, (OsdId(at.into()), NodeId(ASDS + at)), segments)
            })
            .collect();
        let all = vec![true; asds.len()];
        let mut storage = Self {
            register: Register::default(),
            proxies: [None, None],
            asds,
            reach: Reach { router: [true; 2], arakoon: [true; 2], asds: [all.clone(), all] },
            policies: "4,2,5,1;2,2,3,1".parse().expect("two policies"),
            keys: NamespaceKeys::public(Engine::AwsLc),
            encrypts: random.happens(Chance::percent(30)),
            compresses: random.happens(Chance::percent(10)),
            encoder: Encoder::new().expect("zstd starts"),
            decoder: Decoder::new().expect("zstd starts"),
            random: random.fork(),
            counts: FaultCounts::default(),
            ledger: Ledger::default(),
            favourite: 0,
            lost: None,
            out: Vec::new(),
            next_call: 0,
        };
        for asd in &mut storage.asds {
            asd.start(Now::default());
        }
        storage.start_proxy(0);
        storage.start_proxy(1);
        storage
    }

    pub fn start_proxy(&mut self, at: usize) {
        let osds: Vec<OsdId> = self.asds.iter().map(|asd| asd.osd).collect();
        let mut process = Process::default();
        process.health.set_osds(&osds);
        self.proxies[at] = Some(process);
    }

    /// kill -9: nobody knows any more what it had under way.
    pub fn kill_proxy(&mut self, at: usize) {
        let Some(process) = self.proxies[at].take() else { return };
        for call in process.calls.into_values() {
            if let What::Fragment(attempt, put)
            | What::Fill(attempt, put)
            | What::Delete(attempt, put) = call.what
            {
                self.ledger.excuse(attempt.key(put.index), put.osd, "the proxy died");
            } else if let What::Places(attempt, puts) = call.what {
                for put in puts {
                    self.ledger.excuse(attempt.key(put.index), put.osd, "the proxy died");
                }
            }
        }
        for attempt in process.jobs.into_keys().chain(process.fills.into_keys()) {
            self.ledger.excuse_attempt(attempt, "the proxy died");
        }
    }

    /// The router claims an epoch through any proxy.
    pub fn claim(&mut self, epoch: Epoch) -> Result<(), Unreadable> {
        let reached = |at: &usize| {
            self.reach.router[*at] && self.reach.arakoon[*at] && self.proxies[*at].is_some()
        };
        if !(0..2).any(|at| reached(&at)) {
            return Err(Unreadable::Now);
        }
        self.register.raise(epoch);
        Ok(())
    }

    pub fn head(&self) -> Option<(ObjectId, Meta)> {
        let head = self.register.head?;
        Some((head, self.meta_of(head)))
    }

    /// The objects behind `through`, first to last.
    pub fn objects_after(&self, through: Option<ObjectId>) -> Vec<(ObjectId, Meta)> {
        let all = self.register.manifests.keys();
        let behind = all.filter(|object| through.is_none_or(|through| through < **object));
        behind.map(|object| (*object, self.meta_of(*object))).collect()
    }

    fn meta_of(&self, object: ObjectId) -> Meta {
        let meta = self.register.manifests[&object].meta.clone();
        Meta::decode(meta).expect("the router wrote it")
    }

    pub fn candidates(&self, proxy: usize) -> Vec<Candidate> {
        let Some(process) = &self.proxies[proxy] else { return Vec::new() };
        let candidate = |asd: &Asd| Candidate {
            osd: asd.osd,
            domain: "dc1/rack1/host1".parse().expect("a path"),
            free_bytes: 1 << 30,
            writable: process.health.writable(asd.osd),
        };
        self.asds.iter().map(candidate).collect()
    }

    /// Everything runs and nothing is under way, repairs perhaps excepted.
    pub fn is_idle(&self) -> bool {
        let runs = |asd: &Asd| asd.is_up() || asd.has_refused();
        let all_run = self.proxies.iter().all(Option::is_some) && self.asds.iter().all(runs);
        all_run
            && self
                .proxies
                .iter()
                .flatten()
                .all(|process| process.jobs.is_empty() && process.calls.is_empty())
    }

    pub fn is_repaired(&self) -> bool {
        self.proxies.iter().flatten().all(|process| process.repairs.is_empty())
    }

    pub fn index_of(&self, osd: OsdId) -> usize {
        self.asds.iter().position(|asd| asd.osd == osd).expect("a known OSD")
    }

    /// Sends a fragment operation to an OSD.
    fn send_op(&mut self, proxy: usize, what: What, (osd, op): (OsdId, Op), now: Now) {
        let call = self.register_call(proxy, what, now.plus(CALL_TIMEOUT), None);
        let to = self.asds[self.index_of(osd)].node;
        self.out.push((PROXIES[proxy], to, Message::Fragment { call, op: Rc::new(op) }));
    }

    fn register_call(
        &mut self,
        proxy: usize,
        what: What,
        deadline: Now,
        again: Option<Rc<Transaction>>,
    ) -> u64 {
        self.next_call += 1;
        let process = self.proxies[proxy].as_mut().expect("only called while it runs");
        process.calls.insert(self.next_call, Call { what, deadline, again });
        self.next_call
    }

    pub fn send_fragment(
        &mut self,
        proxy: usize,
        what: What,
        (data, condition): (Bytes, PutCondition),
        now: Now,
    ) {
        let (What::Fragment(attempt, to)
        | What::Fill(attempt, to)
        | What::Repair(attempt, to)
        | What::Delete(attempt, to)) = what
        else {
            unreachable!("the others have no fragment")
        };
        let op = put(attempt.key(to.index), data, condition);
        self.send_op(proxy, what, (to.osd, op), now);
    }

    /// Deletes fragments that nobody names.
    pub fn discard(&mut self, proxy: usize, attempt: Attempt, puts: &[upload::Put], now: Now) {
        for put in puts {
            self.counts.count("orphan deleted");
            let op = Op::Delete(attempt.key(put.index));
            self.ledger.delete_sent(attempt.key(put.index), put.osd);
            self.send_op(proxy, What::Delete(attempt, *put), (put.osd, op), now);
        }
    }

    pub fn send_transaction(
        &mut self,
        proxy: usize,
        what: What,
        transaction: Transaction,
        now: Now,
    ) {
        let transaction = Rc::new(transaction);
        let deadline = now.plus(TRANSACT_TIMEOUT);
        let call = self.register_call(proxy, what, deadline, Some(Rc::clone(&transaction)));
        self.out.push((PROXIES[proxy], ARAKOON, Message::Transact { call, transaction }));
    }

    pub fn answer_put(&mut self, proxy: usize, object: ObjectId, result: Result<(), Refused>) {
        let message = Message::PutAnswer { object, result };
        self.out.push((PROXIES[proxy], super::message::ROUTER, message));
    }

    /// An OSD answered, or arakoon did: whom it concerns, if the call is still open.
    pub fn take_call(&mut self, proxy: usize, call: u64) -> Option<What> {
        self.proxies[proxy].as_mut()?.calls.remove(&call).map(|call| call.what)
    }

    pub fn fragment_done(&mut self, proxy: usize, call: u64, outcome: Outcome, now: Now) {
        let Some(what) = self.take_call(proxy, call) else { return };
        let (What::Fragment(attempt, put)
        | What::Fill(attempt, put)
        | What::Repair(attempt, put)
        | What::Delete(attempt, put)) = &what
        else {
            return;
        };
        let (attempt, put) = (*attempt, *put);
        let chance = self.random.u64();
        let process = self.proxies[proxy].as_mut().expect("it had a call");
        process.health.success(put.osd, now);
        match outcome {
            Outcome::Failed => {
                process.health.failure(put.osd, Failure::Disk, now, chance);
                self.ledger.excuse(attempt.key(put.index), put.osd, "it answered that it failed");
            }
            Outcome::Full => {
                process.health.set_room(put.osd, Room::Full);
                if matches!(what, What::Delete(..)) {
                    self.ledger.excuse(attempt.key(put.index), put.osd, "no room to note its end");
                }
            }
            Outcome::Deleted => self.ledger.deleted(attempt.key(put.index), put.osd),
            Outcome::Stored | Outcome::Exists => {}
        }
        self.fragment_answered(proxy, &what, outcome, now);
    }

    /// The clock of a proxy: calls that took too long, uploads that waited long enough, probes, holes, repairs.
    pub fn tick_proxy(&mut self, proxy: usize, now: Now) {
        let Some(process) = &mut self.proxies[proxy] else { return };
        let late: Vec<u64> = process
            .calls
            .iter()
            .filter(|(_, call)| call.deadline <= now)
            .map(|(number, _)| *number)
            .collect();
        let again: Vec<(u64, Rc<Transaction>)> = process
            .calls
            .iter()
            .filter(|(_, call)| now < call.deadline)
            .filter_map(|(number, call)| Some((*number, Rc::clone(call.again.as_ref()?))))
            .collect();
        for (call, transaction) in again {
            // Exactly once, however often it is asked.
            if self.random.happens(Chance::percent(20)) {
                let message = Message::Transact { call, transaction };
                self.out.push((PROXIES[proxy], ARAKOON, message));
            }
        }
        for call in late {
            self.expire(proxy, call, now);
        }
        self.tick_uploads(proxy, now);
        self.probe(proxy, now);
        self.maintain(proxy, now);
    }

    fn expire(&mut self, proxy: usize, call: u64, now: Now) {
        let Some(what) = self.take_call(proxy, call) else { return };
        match &what {
            What::Fragment(attempt, put)
            | What::Fill(attempt, put)
            | What::Repair(attempt, put)
            | What::Delete(attempt, put) => {
                self.counts.count("osd answered too late");
                self.ledger.excuse(attempt.key(put.index), put.osd, "no answer in time");
                let (osd, chance) = (put.osd, self.random.u64());
                let process = self.proxies[proxy].as_mut().expect("it had a call");
                process.health.failure(osd, Failure::Timeout, now, chance);
                self.fragment_answered(proxy, &what, Outcome::Failed, now);
            }
            What::Commit(_) | What::Places(..) => self.outcome_unknown(proxy, &what),
        }
    }

    /// Asks the OSDs that aren't well.
    fn probe(&mut self, proxy: usize, now: Now) {
        let Some(process) = &mut self.proxies[proxy] else { return };
        let mut due: BTreeSet<OsdId> = process.health.due_probes(now).into_iter().collect();
        // Now and then all of them, as the driver does.
        if self.random.happens(Chance::percent(10)) {
            due.extend(self.asds.iter().map(|asd| asd.osd));
        }
        for osd in due {
            let at = osd_index(&self.asds, osd);
            let chance = self.random.u64();
            let reached = self.reach.asds[proxy][at] && self.asds[at].is_up();
            match self.asds[at].disk_state() {
                DiskState::Writable | DiskState::Full if reached => {
                    process.health.success(osd, now);
                    let full = self.asds[at].disk_state() == DiskState::Full;
                    let room = if full { Room::Full } else { Room::Left };
                    process.health.set_room(osd, room);
                }
                DiskState::ReadOnly | DiskState::Failed if reached => {
                    process.health.failure(osd, Failure::Disk, now, chance);
                }
                DiskState::Writable | DiskState::Full | DiskState::ReadOnly | DiskState::Failed => {
                    process.health.failure(osd, Failure::Unreachable, now, chance);
                }
            }
        }
    }

    /// What stands in arakoon, when it can be asked now.
    pub fn look_up(&self, proxy: usize, object: ObjectId) -> Option<Manifest> {
        let asked = self.reach.arakoon[proxy].then(|| self.register.manifests.get(&object));
        asked.flatten().cloned()
    }

    pub fn note_repair(&mut self, proxy: usize, object: ObjectId, fragment: u8) {
        let Some(process) = &mut self.proxies[proxy] else { return };
        let job = (object, fragment);
        // A full queue forgets: the next read notices again (L8).
        if process.repairs.len() < REPAIRS_MAX && !process.repairs.contains(&job) {
            process.repairs.push_back(job);
        }
    }
}

fn osd_index(asds: &[Asd], osd: OsdId) -> usize {
    asds.iter().position(|asd| asd.osd == osd).expect("a known OSD")
}
