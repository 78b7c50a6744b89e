//! Uploads, reads and hole filling together, over OSDs that fail, hang, rot and return, under seeded chance.
//!
//! Oracles, checked all the time:
//! - a commit names only fragments that OSDs really stored, at least `c`, at most `x` per domain (P24);
//! - a read succeeds exactly when `k` sound fragments can be reached, and from sound ones only (L5);
//! - nothing waits for ever: every upload and read is settled when time has passed (L8);
//! - with all OSDs back, every hole is filled.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use alba_proxy_core::health::{Failure, HealthView};
use alba_proxy_core::manifest::{FragmentRecord, Manifest, Place, Protection};
use alba_proxy_core::placement::{Candidate, Spread};
use alba_proxy_core::read::{Answer, ColumnState, Fetch, Rank, ReadPlan};
use alba_proxy_core::upload::{Next, Put, UploadPlan};
use alba_proxy_core::{PutAnswer, Upload, Verdict, fill, policy};
use model::{
    AttemptId, DomainLevel, Epoch, NamespaceId, Now, ObjectId, OsdId, Policy, PolicyList,
    ScoNumber, VdiskId,
};
use sim::random::{Chance, Random};
use sim::{Queue, Trace};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

const SLACK: Duration = Duration::from_millis(100);
const PUT_TIMEOUT: u64 = 5000;
const LEN: u32 = 1000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mood {
    Up,
    Down,
    /// Answers late, perhaps too late.
    Slow,
    /// Takes requests and fails them, perhaps after doing them.
    Broken,
}

struct Disk {
    mood: Mood,
    domain: String,
    /// (object, fragment) → sound.
    fragments: BTreeMap<(u64, u8), bool>,
}

enum Event {
    Stored { object: u64, put: Put, answer: PutAnswer, failure: Failure },
    Slack { object: u64 },
}

struct Sim {
    random: Random,
    trace: Trace,
    queue: Queue<Event>,
    disks: BTreeMap<OsdId, Disk>,
    health: HealthView,
    level: DomainLevel,
    policies: PolicyList,
    uploads: BTreeMap<u64, (Upload, Policy)>,
    manifests: BTreeMap<u64, Manifest>,
}

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

impl Sim {
    fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let (text, per_host) = match random.below(3) {
            0 => ("4,2,5,1;2,2,3,1", 1),
            1 => ("4,2,5,2@host;2,1,2,2@host", 2),
            _ => ("1,2,2,1@host;1,1,1,1@host", 1),
        };
        let policies: PolicyList = text.parse().unwrap();
        let count = random.between(6..=9);
        let disks: BTreeMap<OsdId, Disk> = (0..count)
            .map(|i| {
                let domain = format!("dc1/rack1/host{}", i / per_host);
                (OsdId(i.into()), Disk { mood: Mood::Up, domain, fragments: BTreeMap::new() })
            })
            .collect();
        let mut health = HealthView::default();
        health.set_osds(&disks.keys().copied().collect::<Vec<_>>());
        let mut sim = Self {
            random,
            trace: Trace::default(),
            queue: Queue::new(),
            disks,
            health,
            level: policies.level(),
            policies,
            uploads: BTreeMap::new(),
            manifests: BTreeMap::new(),
        };
        sim.probe();
        sim
    }

    fn now(&self) -> Now {
        Now(self.queue.now())
    }

    /// What the driver's probes would find.
    fn probe(&mut self) {
        let now = self.now();
        let osds: Vec<OsdId> = self.disks.keys().copied().collect();
        for osd in osds {
            match self.disks[&osd].mood {
                Mood::Up | Mood::Slow => {
                    self.health.success(osd, now);
                }
                Mood::Down | Mood::Broken => {
                    let chance = self.random.u64();
                    self.health.failure(osd, Failure::Unreachable, now, chance);
                }
            }
        }
    }

    fn candidates(&self) -> Vec<Candidate> {
        let candidate = |(osd, disk): (&OsdId, &Disk)| Candidate {
            osd: *osd,
            domain: disk.domain.parse().unwrap(),
            free_bytes: (1 << 30) + u64::try_from(osd.0).unwrap(),
            writable: self.health.writable(*osd),
        };
        self.disks.iter().map(candidate).collect()
    }

    fn change_moods(&mut self) {
        let osds: Vec<OsdId> = self.disks.keys().copied().collect();
        for osd in osds {
            if !self.random.happens(Chance::percent(15)) {
                continue;
            }
            let mood = match self.random.below(6) {
                0 => Mood::Down,
                1 => Mood::Slow,
                2 => Mood::Broken,
                _ => Mood::Up,
            };
            self.trace.note(self.queue.now(), format_args!("{osd} is {mood:?}"));
            let disk = self.disks.get_mut(&osd).unwrap();
            disk.mood = mood;
            if self.random.happens(Chance::percent(10)) {
                for sound in disk.fragments.values_mut() {
                    *sound = false;
                }
            } else if self.random.happens(Chance::percent(5)) {
                disk.fragments.clear();
            }
        }
    }

    fn begin_upload(&mut self, object: u64) {
        if self.random.happens(Chance::percent(50)) {
            self.probe();
        }
        let candidates = self.candidates();
        let Some(policy) = policy::choose(&self.policies, &candidates) else { return };
        let plan = UploadPlan {
            policy,
            spread: Spread::of(policy, self.level),
            fragments: policy.indexes().collect(),
            candidates,
            slack: SLACK,
            deadline: self.now().plus(ms(8000)),
            seed: self.random.u64(),
        };
        let (upload, puts) = Upload::start(plan, self.now());
        self.uploads.insert(object, (upload, policy));
        for put in puts {
            self.send(object, put);
        }
        self.wake(object);
    }

    fn wake(&mut self, object: u64) {
        let (upload, _) = &self.uploads[&object];
        if upload.verdict().is_none() {
            self.queue.at(upload.wake_at().0, Event::Slack { object });
        }
    }

    fn send(&mut self, object: u64, put: Put) {
        let mood = self.disks[&put.osd].mood;
        let takes_effect = self.random.happens(Chance::percent(50));
        let (delay, answer, failure) = match mood {
            Mood::Up => (self.random.between(1..=20), PutAnswer::Stored, Failure::Disk),
            Mood::Down => (1, PutAnswer::Failed, Failure::Unreachable),
            Mood::Broken => (self.random.between(1..=50), PutAnswer::Failed, Failure::Disk),
            Mood::Slow => match self.random.between(50..=9000) {
                delay if delay < PUT_TIMEOUT => (delay, PutAnswer::Stored, Failure::Disk),
                _ => (PUT_TIMEOUT, PutAnswer::Failed, Failure::Timeout),
            },
        };
        // What took effect although the answer says otherwise is a stray; it must never be counted.
        if answer == PutAnswer::Stored || (takes_effect && mood != Mood::Down) {
            let disk = self.disks.get_mut(&put.osd).unwrap();
            disk.fragments.insert((object, put.index.get()), true);
        }
        self.queue.after(ms(delay), Event::Stored { object, put, answer, failure });
    }

    fn run_events(&mut self) {
        while let Some(event) = self.queue.pop() {
            match event {
                Event::Slack { object } => {
                    let now = self.now();
                    self.uploads.get_mut(&object).unwrap().0.tick(now);
                    self.settle(object);
                }
                Event::Stored { object, put, answer, failure } => {
                    self.stored(object, put, answer, failure);
                }
            }
        }
    }

    fn stored(&mut self, object: u64, put: Put, answer: PutAnswer, failure: Failure) {
        let (now, chance) = (self.now(), self.random.u64());
        match answer {
            PutAnswer::Stored => self.health.success(put.osd, now),
            PutAnswer::Failed => self.health.failure(put.osd, failure, now, chance),
        };
        self.trace.note(now.0, format_args!("{object}: {put:?} {answer:?}"));
        let before = self.uploads[&object].0.verdict().is_some();
        match self.uploads.get_mut(&object).unwrap().0.answered(put, answer, now) {
            Next::Put(instead) => self.send(object, instead),
            Next::Late(late) => {
                assert!(before);
                let manifest = self.manifests.get_mut(&object).unwrap();
                let (filled, _) = fill::with_places(manifest, &[late]);
                *manifest = filled;
            }
            Next::Orphan(_) | Next::Nothing => {}
        }
        if !before {
            self.settle(object);
        }
    }

    /// A decision is taken over once; otherwise the next wake-up is set.
    fn settle(&mut self, object: u64) {
        let (upload, policy) = &self.uploads[&object];
        match upload.verdict() {
            None => self.wake(object),
            Some(Verdict::Commit(places)) if !self.manifests.contains_key(&object) => {
                assert!(places.len() >= usize::from(policy.c()), "acknowledged below c");
                let manifest = manifest(object, *policy, self.level, places);
                self.check_spread(&manifest);
                self.trace.note(self.queue.now(), format_args!("{object} commits {places:?}"));
                self.manifests.insert(object, manifest);
            }
            Some(Verdict::Commit(_) | Verdict::Failed { .. }) => {}
        }
    }

    fn check_spread(&self, manifest: &Manifest) {
        let mut used: BTreeMap<String, u8> = BTreeMap::new();
        for (index, osd) in manifest.stored() {
            let disk = &self.disks[&osd];
            let key = (manifest.object.number.0, index.get());
            assert!(disk.fragments.contains_key(&key), "a manifest names what was never stored");
            let domain = match self.level {
                DomainLevel::Disk => osd.to_string(),
                DomainLevel::Host | DomainLevel::Rack | DomainLevel::Datacenter => {
                    disk.domain.clone()
                }
            };
            *used.entry(domain).or_default() += 1;
        }
        let x = manifest.policy.x();
        assert!(used.values().all(|count| *count <= x), "more than {x} in one domain: {used:?}");
    }

    fn is_sound(&self, object: u64, fragment: u8, osd: OsdId) -> bool {
        let disk = &self.disks[&osd];
        let here = disk.fragments.get(&(object, fragment)) == Some(&true);
        here && matches!(disk.mood, Mood::Up | Mood::Slow)
    }

    /// Reads a range of a data fragment, answers in random order, hedges now and then.
    fn read(&mut self, object: u64) {
        let manifest = self.manifests[&object].clone();
        let wanted = u8::try_from(self.random.below(manifest.policy.k().into())).unwrap();
        let rank = |osd| if self.health.readable(osd) { Rank::Good } else { Rank::Down };
        let mut plan = ReadPlan::new(&manifest, &[(wanted, 10..90)], rank);
        let mut open: Vec<Fetch> = plan.start();
        let mut asked = BTreeSet::new();
        while !plan.is_settled() {
            if self.random.happens(Chance::percent(20)) {
                open.extend(plan.hedge());
            }
            let fetch = open.swap_remove(self.random.index(open.len()));
            assert!(asked.insert(fetch.fragment), "asked twice");
            let good = self.is_sound(object, fetch.fragment, fetch.osd);
            let answer = if good { Answer::Good } else { Answer::Bad };
            open.extend(plan.answered(0, fetch.fragment, answer));
        }
        let sound: BTreeSet<u8> = manifest
            .stored()
            .filter(|(index, osd)| self.is_sound(object, index.get(), *osd))
            .map(|(index, _)| index.get())
            .collect();
        let state = plan.state(0);
        self.trace.note(self.queue.now(), format_args!("read {object}/{wanted}: {state:?}"));
        let others = sound.iter().filter(|fragment| **fragment != wanted).count();
        match state {
            ColumnState::Direct => assert!(sound.contains(&wanted)),
            ColumnState::Rebuild(sources) => {
                assert_eq!(sources.len(), usize::from(manifest.policy.k()));
                assert!(sources.iter().all(|source| sound.contains(source)));
            }
            ColumnState::Lost => assert!(
                !sound.contains(&wanted) && others < usize::from(manifest.policy.k()),
                "given up too early"
            ),
            ColumnState::Pending => panic!("stuck"),
        }
    }

    fn fill(&mut self, object: u64) {
        let manifest = self.manifests[&object].clone();
        let seed = self.random.u64();
        let puts = fill::plan(&manifest, &self.candidates(), seed);
        let stored: Vec<Put> = puts
            .into_iter()
            .filter(|put| matches!(self.disks[&put.osd].mood, Mood::Up | Mood::Slow))
            .collect();
        for put in &stored {
            let disk = self.disks.get_mut(&put.osd).unwrap();
            disk.fragments.insert((object, put.index.get()), true);
        }
        let (filled, unused) = fill::with_places(&manifest, &stored);
        assert!(unused.is_empty());
        self.check_spread_of_places(&filled);
        self.manifests.insert(object, filled);
    }

    /// As [`check_spread`](Self::check_spread), for disks that may have lost things since.
    fn check_spread_of_places(&self, manifest: &Manifest) {
        let osds: Vec<OsdId> = manifest.stored().map(|(_, osd)| osd).collect();
        for osd in &osds {
            let here = osds.iter().filter(|other| {
                self.level == DomainLevel::Disk && *other == osd
                    || self.level != DomainLevel::Disk
                        && self.disks[other].domain == self.disks[osd].domain
            });
            assert!(here.count() <= usize::from(manifest.policy.x()));
        }
    }
}

fn manifest(number: u64, policy: Policy, level: DomainLevel, places: &[Put]) -> Manifest {
    let record = FragmentRecord { place: Place::Hole, len: LEN, crc: 0 };
    let mut fragments = vec![record; usize::from(policy.total())];
    for put in places {
        fragments[put.index.as_usize()].place = Place::Stored(put.osd);
    }
    let object = ObjectId { vdisk: VdiskId(1), epoch: Epoch(1), number: ScoNumber(number) };
    Manifest {
        object,
        attempt: AttemptId(number.into()),
        epoch: Epoch(1),
        preset: "p".into(),
        preset_version: 1,
        policy,
        level,
        codec_id: 1,
        protection: Protection::Crc32c,
        frame_size: 4096,
        plain_len: 1000,
        digest: [0; 16],
        stripe_len: LEN,
        fragments,
        frame_table: bytes::Bytes::new(),
        meta: bytes::Bytes::new(),
    }
}

fn life(seed: u64) -> u64 {
    let mut sim = Sim::new(seed);
    for round in 0..12 {
        sim.change_moods();
        for number in 0..3 {
            sim.begin_upload(round * 3 + number);
        }
        sim.run_events();
        for (upload, _) in sim.uploads.values() {
            assert!(upload.verdict().is_some(), "undecided for ever");
        }
        let objects: Vec<u64> = sim.manifests.keys().copied().collect();
        for object in &objects {
            sim.read(*object);
            if sim.random.happens(Chance::percent(30)) {
                sim.fill(*object);
            }
        }
    }
    for disk in sim.disks.values_mut() {
        disk.mood = Mood::Up;
    }
    sim.probe();
    let objects: Vec<u64> = sim.manifests.keys().copied().collect();
    for object in objects {
        sim.fill(object);
        let manifest = &sim.manifests[&object];
        assert_eq!(manifest.holes(), 0, "a hole that can't be filled with all OSDs back");
        let bytes = manifest.to_bytes();
        assert_eq!(Manifest::from_bytes(&bytes).as_ref(), Ok(manifest));
        sim.trace.bytes(&bytes);
    }
    let key = sim.manifests.values().next().map(|manifest| {
        manifest.key_of(NamespaceId(1), model::FragmentIndex::new(0).unwrap()).to_bytes()
    });
    sim.trace.bytes(&key.unwrap_or([0; model::FragmentKey::LEN]));
    sim.trace.digest()
}

#[test]
fn many_lives_hold_the_laws() {
    sim::seeds::check(200, life);
}
