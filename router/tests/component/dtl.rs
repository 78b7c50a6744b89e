//! The DTL over loopback sockets and real files: owner and targets as they run, an arakoon that is a map.
//!
//! Invariant: what an owner may acknowledge as flushed is what a claimant finds by sealing one target.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use bytes::Bytes;
use model::{
    AttachmentGeneration, Cluster as ClusterNumber, DtlGeneration, Epoch, Lsn, RequestSeq,
    RouterId, VdiskId,
};
use router::dtl::BoxFuture;
use router::dtl::owner::{DtlOwner, Session};
use router::dtl::peers::{Candidates, Cluster, Peers, Proposed};
use router::dtl::server::{Authority, TargetOptions, TargetServer, confirm};
use router_core::crc32c;
use router_core::dtl::owner::{Opening, Patience};
use router_core::dtl::takeover::{Evidence, Plan, judge};
use router_core::dtl::target::Refusal;
use router_core::log::Op;
use router_core::log::pool::Entry;
use runtime::clock::boot_now;
use runtime::endpoint::Endpoint;
use runtime::rpc::{Request, Responder, Service};
use wire::Role;
use wire::dtl::{DtlFacts, DtlMode, DtlState, Held, LogName, code};

use crate::support::{Served, WITHIN, identity, runtime};

const VDISK: VdiskId = VdiskId(5);
const ME: RouterId = RouterId(100);
const A: RouterId = RouterId(1);
const B: RouterId = RouterId(2);

/// Facts of one vDisk, and where routers are.
struct Arakoon {
    epoch: Epoch,
    history: Vec<DtlFacts>,
    candidates: Vec<RouterId>,
    copies: usize,
    addresses: BTreeMap<RouterId, Endpoint>,
}

#[derive(Clone)]
struct Fake(Arc<Mutex<Arakoon>>);

impl Fake {
    fn new(candidates: &[RouterId]) -> Self {
        Self(Arc::new(Mutex::new(Arakoon {
            epoch: Epoch(1),
            history: vec![DtlFacts::standalone()],
            candidates: candidates.to_vec(),
            copies: 1,
            addresses: BTreeMap::new(),
        })))
    }

    fn facts(&self) -> DtlFacts {
        self.0.lock().unwrap().history.last().unwrap().clone()
    }

    fn claim(&self) -> Epoch {
        let mut arakoon = self.0.lock().unwrap();
        arakoon.epoch = arakoon.epoch.next();
        arakoon.epoch
    }
}

impl Cluster for Fake {
    fn propose(
        &self,
        (_, epoch): (VdiskId, Epoch),
        from: DtlFacts,
        to: DtlFacts,
    ) -> BoxFuture<'_, Proposed> {
        Box::pin(async move {
            let mut arakoon = self.0.lock().unwrap();
            if arakoon.epoch != epoch || arakoon.history.last() != Some(&from) {
                return Proposed::Refused;
            }
            arakoon.history.push(to);
            Proposed::Committed
        })
    }

    fn candidates(&self, _: VdiskId) -> BoxFuture<'_, Candidates> {
        Box::pin(async {
            let arakoon = self.0.lock().unwrap();
            Candidates { routers: arakoon.candidates.clone(), copies: arakoon.copies }
        })
    }

    fn addresses(&self, router: RouterId) -> BoxFuture<'_, Vec<Endpoint>> {
        Box::pin(async move {
            self.0.lock().unwrap().addresses.get(&router).cloned().into_iter().collect()
        })
    }
}

struct Asked(Fake, RouterId);

impl Authority for Asked {
    fn confirm(&self, log: LogName) -> BoxFuture<'_, Result<(), Refusal>> {
        Box::pin(async move {
            let epoch = self.0.0.lock().unwrap().epoch;
            let facts = self.0.facts();
            confirm((epoch, &facts), &log, self.1)
        })
    }
}

struct Serving(TargetServer);

impl Service for Serving {
    fn call(&self, request: Request, responder: Responder) {
        self.0.call(&request, responder);
    }
}

/// A target in a thread of its own, until dropped.
fn target(fake: &Fake, me: RouterId, dir: &Path) -> Served {
    let options = TargetOptions::in_dir(dir.join(me.to_string()));
    let authority = Arc::new(Asked(fake.clone(), me));
    let incarnation = identity(Role::Router, "target").incarnation;
    let server = TargetServer::open(options, incarnation, authority).unwrap();
    let served = Served::start(Role::Router, Arc::new(Serving(server)));
    fake.0.lock().unwrap().addresses.insert(me, served.endpoint.clone());
    served
}

fn entry(epoch: Epoch, lsn: u64) -> Entry {
    let payload = Bytes::from(vec![(lsn % 251) as u8; 4096]);
    Entry {
        vdisk: VDISK,
        epoch,
        lsn: Lsn(lsn),
        generation: AttachmentGeneration(1),
        seq: RequestSeq(lsn),
        last: true,
        copied: false,
        op: Op::Write,
        cluster: ClusterNumber(lsn % 64),
        count: 1,
        checksums: vec![crc32c(&payload)],
        payload,
    }
}

fn peers(fake: &Fake) -> Arc<Peers> {
    Peers::new(identity(Role::Router, "owner"), Arc::new(fake.clone()))
}

/// The first life of a vDisk: it wants `copies` targets and has none yet.
fn open(fake: &Fake, copies: usize) -> DtlOwner {
    fake.0.lock().unwrap().copies = copies;
    let facts = fake.facts();
    let generation = DtlGeneration(1);
    let next = DtlFacts { state: DtlState::Degraded, generation, ..facts.clone() };
    let epoch = fake.0.lock().unwrap().epoch;
    let opening = Opening {
        vdisk: VDISK,
        epoch,
        me: ME,
        mode: DtlMode::Sync,
        unprotected: false,
        strict: false,
        facts,
        next,
        base: Lsn(0),
        patience: Patience::default(),
    };
    DtlOwner::start(opening, &[], peers(fake))
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < WITHIN, "never: {what}");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

fn write(owner: &DtlOwner, lsns: std::ops::RangeInclusive<u64>) {
    let last = Lsn(*lsns.end());
    for lsn in lsns {
        owner.append(&entry(Epoch(1), lsn));
    }
    owner.local_synced(last);
    owner.want_flush(last);
}

/// Claims, seals one target, and reads what the plan says.
async fn take_over(fake: &Fake, head: u64, from: RouterId) -> (Plan, Vec<Entry>) {
    let epoch = fake.claim();
    let peers = peers(fake);
    let sealed: Vec<(RouterId, Vec<Held>)> =
        vec![(from, peers.seal(from, VDISK, epoch).await.unwrap().logs)];
    let facts = fake.facts();
    let evidence = Evidence {
        me: ME,
        facts: &facts,
        mode: DtlMode::Sync,
        head: Lsn(head),
        own_last: None,
        epochs: &BTreeMap::new(),
        sealed: &sealed,
    };
    let plan = judge(&evidence).unwrap();
    let entries = match &plan.source {
        Some(source) => peers.read(source, VDISK, epoch).await.unwrap(),
        None => Vec::new(),
    };
    (plan, entries)
}

#[test]
fn p11_what_may_be_acknowledged_is_what_one_sealed_target_shows() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Fake::new(&[A, ME, B]);
    let _targets = [target(&fake, A, dir.path()), target(&fake, B, dir.path())];
    runtime().block_on(async {
        let owner = open(&fake, 2);
        until("InSync", || owner.facts().state == DtlState::InSync).await;
        assert_eq!(fake.facts().targets, [A, B], "never the own router");
        write(&owner, 1..=300);
        until("flushed", || owner.acks().flush == Lsn(300)).await;
        owner.backend_has(Lsn(100));
        write(&owner, 301..=400);
        until("flushed", || owner.acks().flush == Lsn(400)).await;
        assert!(
            owner.wait_to_read(|| Session::Expired, WITHIN).await,
            "the targets' lease suffices"
        );
        let (plan, entries) = take_over(&fake, 100, B).await;
        assert_eq!((plan.last, entries.len()), (Lsn(400), 300));
        for (found, lsn) in entries.iter().zip(101..) {
            assert_eq!(format!("{found:?}"), format!("{:?}", entry(Epoch(1), lsn)));
        }
        // L3: by the time the seal is answered no old read right is left.
        assert!(!owner.may_read(boot_now(), Session::Valid));
        write(&owner, 401..=401);
        until("fenced", || owner.watch().borrow().fenced).await;
        assert_eq!(owner.acks().flush, Lsn(400));
    });
}

/// h_12.
#[test]
fn p13_a_dead_target_is_replaced_and_counts_for_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Fake::new(&[A, B]);
    let first = target(&fake, A, dir.path());
    let _second = target(&fake, B, dir.path());
    runtime().block_on(async {
        let owner = open(&fake, 1);
        until("InSync", || owner.facts().state == DtlState::InSync).await;
        write(&owner, 1..=50);
        until("flushed", || owner.acks().flush == Lsn(50)).await;
        drop(first);
        write(&owner, 51..=60);
        until("another target", || {
            let facts = owner.facts();
            facts.state == DtlState::InSync && facts.targets == [B]
        })
        .await;
        until("flushed", || owner.acks().flush == Lsn(60)).await;
        let history = fake.0.lock().unwrap().history.clone();
        let change = history.iter().find(|facts| facts.targets == [B]).unwrap();
        assert_eq!(change.state, DtlState::CatchingUp);
        assert_eq!(change.previous.as_ref().map(|p| p.targets.clone()), Some(vec![A]));
        assert!(Lsn(50) <= change.floor && change.floor < Lsn(60), "{change:?}");
        let (plan, entries) = take_over(&fake, 0, B).await;
        assert_eq!((plan.last, entries.len()), (Lsn(60), 60));
    });
}

/// h_09.
#[test]
fn who_doesnt_answer_is_never_named_though_arakoon_takes_him_to_be_well() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Fake::new(&[A, B]);
    drop(target(&fake, A, dir.path()));
    let _second = target(&fake, B, dir.path());
    runtime().block_on(async {
        let owner = open(&fake, 1);
        until("InSync", || owner.facts().state == DtlState::InSync).await;
        let history = fake.0.lock().unwrap().history.clone();
        assert!(history.iter().all(|facts| !facts.targets.contains(&A)), "{history:?}");
        assert_eq!(owner.facts().generation, DtlGeneration(2), "{history:?}");
    });
}

#[test]
fn p12_a_restarted_target_keeps_log_and_seal_and_a_wiped_one_is_a_gap() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Fake::new(&[A]);
    let first = target(&fake, A, dir.path());
    let owner_runtime = runtime();
    let owner = owner_runtime.block_on(async {
        let owner = open(&fake, 1);
        until("InSync", || owner.facts().state == DtlState::InSync).await;
        write(&owner, 1..=20);
        until("flushed", || owner.acks().flush == Lsn(20)).await;
        owner
    });
    drop(first);
    let again = target(&fake, A, dir.path());
    owner_runtime.block_on(async {
        write(&owner, 21..=30);
        until("flushed", || owner.acks().flush == Lsn(30)).await;
        assert_eq!(fake.facts().generation, DtlGeneration(2), "a restart isn't a failure");
        let (plan, entries) = take_over(&fake, 0, A).await;
        assert_eq!((plan.last, entries.len()), (Lsn(30), 30));
    });
    drop(again);
    let sealed = target(&fake, A, dir.path());
    runtime().block_on(async {
        let refused = peers(&fake).seal(A, VDISK, Epoch(1)).await.unwrap_err();
        assert_eq!(refused.code(), Some(code::FENCED), "{refused}");
    });
    drop(sealed);
    std::fs::remove_dir_all(dir.path().join(A.to_string())).unwrap();
    let _wiped = target(&fake, A, dir.path());
    runtime().block_on(async {
        let epoch = fake.claim();
        let logs = peers(&fake).seal(A, VDISK, epoch).await.unwrap().logs;
        let facts = fake.facts();
        let evidence = Evidence {
            me: ME,
            facts: &facts,
            mode: DtlMode::Sync,
            head: Lsn(0),
            own_last: None,
            epochs: &BTreeMap::new(),
            sealed: &[(A, logs)],
        };
        let gap = judge(&evidence).unwrap_err().to_string();
        assert!(gap.contains("InSync"), "{gap}");
    });
}
