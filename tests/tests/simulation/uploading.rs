//! Objects in: policy, encoding, the upload's wishes carried out, the commit, and what comes after it.
//!
//! Invariant: fragments of an attempt that wasn't committed are deleted, unless it isn't known whether it was.

use std::time::Duration;

use alba_proxy_core::manifest::{FragmentRecord, Manifest, Place, Protection};
use alba_proxy_core::order::{Asked, Found, Refusal, judge};
use alba_proxy_core::placement::Spread;
use alba_proxy_core::upload::{self, Next, UploadPlan};
use alba_proxy_core::{PutAnswer, Upload, Verdict, fill, policy};
use asd_core::store::Outcome;
use bytes::Bytes;
use codec::{
    Compression, EncodeParams, FrameSize, Level, ObjectBinding, Shape, Suite, Vandermonde,
};
use model::{AttemptId, Now, Policy};
use router_core::sco;
use wire::asd::PutCondition;

use super::message::{Put, Refused};
use super::register::{Answer, Transaction};
use super::storage::{Attempt, Job, Stage, Storage, What};

const SLACK: Duration = Duration::from_millis(15);
const UPLOAD_MAX: Duration = Duration::from_secs(3);
/// How long a commit waits for its predecessor.
const ORDER_PATIENCE: Duration = Duration::from_secs(2);

impl Storage {
    /// The router wants an object stored.
    pub fn put(&mut self, proxy: usize, put: Put, now: Now) {
        let Some(process) = &self.proxies[proxy] else { return };
        let under_way = |job: &Job| job.put.object == put.object && job.stage != Stage::Late;
        if process.jobs.values().any(under_way) {
            return;
        }
        let candidates = self.candidates(proxy);
        let Some(policy) = policy::choose(&self.policies, &candidates) else {
            self.counts.count("put: no policy can be met");
            self.answer_put(proxy, put.object, Err(Refused::Unavailable));
            return;
        };
        if policy != self.policies.policies()[0] {
            self.counts.count("put: under the fall-back policy");
        }
        let attempt = Attempt { object: put.object, attempt: AttemptId(self.random.u128()) };
        let (manifest, fragments) = self.encode(&put, attempt, policy);
        let with_bytes = |index: &model::FragmentIndex| !fragments[index.as_usize()].is_empty();
        let plan = UploadPlan {
            policy,
            spread: Spread::of(policy, self.policies.level()),
            fragments: policy.indexes().filter(with_bytes).collect(),
            candidates,
            slack: SLACK,
            deadline: now.plus(UPLOAD_MAX),
            seed: self.random.u64(),
        };
        let (upload, puts) = Upload::start(plan, now);
        let (late, deadline) = (Vec::new(), now.plus(UPLOAD_MAX).plus(ORDER_PATIENCE));
        let stage = Stage::Uploading;
        let job = Job { put, manifest, fragments, upload, stage, late, deadline };
        self.proxies[proxy].as_mut().expect("it runs").jobs.insert(attempt, job);
        for put in puts {
            self.send_new(proxy, attempt, put, now);
        }
        self.settle_upload(proxy, attempt, now);
    }

    fn send_new(&mut self, proxy: usize, attempt: Attempt, put: upload::Put, now: Now) {
        let Some(job) = self.job(proxy, attempt) else { return };
        let data = job.fragments[put.index.as_usize()].clone();
        let what = What::Fragment(attempt, put);
        self.send_fragment(proxy, what, (data, PutCondition::Absent), now);
    }

    fn job(&mut self, proxy: usize, attempt: Attempt) -> Option<&mut Job> {
        self.proxies[proxy].as_mut()?.jobs.get_mut(&attempt)
    }

    fn remove_job(&mut self, proxy: usize, attempt: Attempt) {
        if let Some(process) = &mut self.proxies[proxy] {
            process.jobs.remove(&attempt);
        }
    }

    fn encode(&mut self, put: &Put, attempt: Attempt, policy: Policy) -> (Manifest, Vec<Bytes>) {
        let shape = Shape::new(policy.k(), policy.m()).expect("a policy is a shape");
        let object = put.object.to_bytes();
        let (suite, protection) = if self.encrypts {
            (Suite::Aes256Gcm, Protection::Aes256Gcm { namespace_key: 1 })
        } else {
            (Suite::Crc32c, Protection::Crc32c)
        };
        let frame_size = FrameSize::new(sco::FRAME).expect("a frame of the router's");
        let params = EncodeParams {
            suite,
            frame_size,
            compression: if self.compresses {
                Compression::Adaptive(Level::DEFAULT)
            } else {
                Compression::Off
            },
            keys: &self.keys,
            binding: ObjectBinding { object: &object, attempt: attempt.attempt.0.to_be_bytes() },
            code: &Vandermonde::new(shape),
        };
        let encoded = self.encoder.encode(&params, &[&put.payload]).expect("a SCO is encodable");
        let record = |(fragment, crc): (&Bytes, u32)| FragmentRecord {
            place: if fragment.is_empty() { Place::Empty } else { Place::Hole },
            len: model::u32_of(fragment.len()),
            crc,
        };
        let crcs = encoded.fragment_crcs.iter().copied();
        let manifest = Manifest {
            object: put.object,
            attempt: attempt.attempt,
            epoch: put.object.epoch,
            preset: "default".into(),
            preset_version: 1,
            policy,
            level: self.policies.level(),
            codec_id: codec::CODEC_ID,
            protection,
            frame_size: frame_size.bytes(),
            plain_len: u64::from(encoded.table.plain_len()),
            digest: encoded.digest.0,
            stripe_len: encoded.layout.stripe_len(),
            fragments: encoded.fragments.iter().zip(crcs).map(record).collect(),
            frame_table: encoded.table.encode().into(),
            meta: put.meta.encode(),
        };
        (manifest, encoded.fragments)
    }

    pub fn tick_uploads(&mut self, proxy: usize, now: Now) {
        let Some(process) = &mut self.proxies[proxy] else { return };
        let mut due = Vec::new();
        for (attempt, job) in &mut process.jobs {
            if job.stage == Stage::Uploading && job.upload.wake_at() <= now {
                job.upload.tick(now);
                due.push(*attempt);
            }
        }
        for attempt in due {
            self.settle_upload(proxy, attempt, now);
        }
    }

    /// What came of a fragment operation.
    pub fn fragment_answered(&mut self, proxy: usize, what: &What, outcome: Outcome, now: Now) {
        let stored = outcome == Outcome::Stored;
        match *what {
            What::Fragment(attempt, put) => {
                let answer = if stored { PutAnswer::Stored } else { PutAnswer::Failed };
                let Some(job) = self.job(proxy, attempt) else { return };
                match job.upload.answered(put, answer, now) {
                    Next::Put(instead) => {
                        self.counts.count("upload: fragment tried elsewhere");
                        self.send_new(proxy, attempt, instead, now);
                    }
                    Next::Late(put) => job.late.push(put),
                    Next::Orphan(put) => self.discard(proxy, attempt, &[put], now),
                    Next::Nothing => {}
                }
                self.settle_upload(proxy, attempt, now);
            }
            What::Fill(attempt, put) => self.filled(proxy, attempt, (put, stored), now),
            What::Repair(..) if stored => self.counts.count("repair: fragment written again"),
            What::Repair(..) | What::Delete(..) | What::Commit(_) | What::Places(..) => {}
        }
    }

    /// Takes a decision over, once.
    fn settle_upload(&mut self, proxy: usize, attempt: Attempt, now: Now) {
        let Some(job) = self.job(proxy, attempt) else { return };
        match (job.stage, job.upload.verdict().cloned()) {
            (Stage::Uploading, Some(Verdict::Commit(places))) => {
                job.stage = Stage::Committing;
                for put in &places {
                    job.manifest.fragments[put.index.as_usize()].place = Place::Stored(put.osd);
                }
                let present = job.manifest.present();
                assert!(job.manifest.policy.c() <= present, "a commit below c (P24)");
                let slow: Vec<_> = job.upload.pending().map(|put| put.osd).collect();
                for osd in slow {
                    let process = self.proxies[proxy].as_mut().expect("it runs");
                    process.health.slow(osd, now);
                }
                self.commit(proxy, attempt, now);
            }
            (Stage::Uploading, Some(Verdict::Failed { orphans })) => {
                let object = job.put.object;
                self.counts.count("upload: fewer than c stored");
                self.remove_job(proxy, attempt);
                self.discard(proxy, attempt, &orphans, now);
                self.answer_put(proxy, object, Err(Refused::Unavailable));
            }
            (Stage::Late, _) if job.upload.pending().next().is_none() => {
                let late = std::mem::take(&mut job.late);
                self.remove_job(proxy, attempt);
                if !late.is_empty() {
                    self.record_places(proxy, attempt, late, now);
                }
            }
            (Stage::Uploading | Stage::Committing | Stage::Late, _) => {}
        }
    }

    fn commit(&mut self, proxy: usize, attempt: Attempt, now: Now) {
        let Some(job) = self.job(proxy, attempt) else { return };
        let transaction = Transaction::Commit {
            epoch: job.put.object.epoch,
            expected_head: job.put.expected_head,
            manifest: job.manifest.clone(),
        };
        self.send_transaction(proxy, What::Commit(attempt), transaction, now);
    }

    pub fn transacted(&mut self, proxy: usize, call: u64, answer: &Answer, now: Now) {
        if matches!(answer, Answer::Unknown) && self.random.happens(sim::Chance::percent(50)) {
            // It asks again, by the same request.
            return;
        }
        let Some(what) = self.take_call(proxy, call) else { return };
        match (&what, answer) {
            (What::Commit(attempt), Answer::Done) => self.committed(proxy, *attempt, now),
            (What::Commit(attempt), Answer::Refused(found)) => {
                self.refused(proxy, *attempt, found, now);
            }
            (What::Places(attempt, puts), Answer::Done) => {
                let process = self.proxies[proxy].as_mut().expect("it had a call");
                process.loaded.remove(&attempt.object);
                for _ in puts {
                    self.counts.count("places: hole closed");
                }
            }
            (What::Places(attempt, puts), Answer::Refused(_)) => {
                self.counts.count("places: somebody was faster");
                self.record_places(proxy, *attempt, puts.clone(), now);
            }
            (_, Answer::Unknown) => self.outcome_unknown(proxy, &what),
            (What::Fragment(..) | What::Fill(..) | What::Repair(..) | What::Delete(..), _) => {}
        }
    }

    fn committed(&mut self, proxy: usize, attempt: Attempt, now: Now) {
        let Some(job) = self.job(proxy, attempt) else { return };
        let manifest = job.manifest.clone();
        let strays = job.upload.strays().to_vec();
        let still_pending = job.upload.pending().next().is_some() || !job.late.is_empty();
        if manifest.holes() == 0 {
            self.counts.count("commit: whole");
            self.remove_job(proxy, attempt);
        } else {
            job.stage = Stage::Late;
            self.counts.count("commit: at least c, with holes");
            if !still_pending {
                self.remove_job(proxy, attempt);
            }
        }
        // Copies that may lie where a put failed, of fragments that are stored elsewhere.
        let elsewhere = |put: &&upload::Put| match manifest.fragments[put.index.as_usize()].place {
            Place::Stored(osd) => osd != put.osd,
            Place::Hole | Place::Empty => false,
        };
        let superseded: Vec<upload::Put> = strays.iter().filter(elsewhere).copied().collect();
        for put in &strays {
            let why = "a put that failed may have left it in a hole's stead";
            self.ledger.excuse(attempt.key(put.index), put.osd, why);
        }
        self.discard(proxy, attempt, &superseded, now);
        self.answer_put(proxy, attempt.object, Ok(()));
        self.settle_upload(proxy, attempt, now);
    }

    fn refused(&mut self, proxy: usize, attempt: Attempt, found: &Found, now: Now) {
        let Some(job) = self.job(proxy, attempt) else { return };
        let asked = Asked {
            epoch: job.put.object.epoch,
            expected_head: job.put.expected_head,
            digest: job.manifest.digest,
            attempt: job.manifest.attempt,
        };
        let in_time = now < job.deadline;
        let (count, result) = match judge(&asked, found) {
            Refusal::Again => return self.commit(proxy, attempt, now),
            Refusal::NotYet if in_time => {
                self.counts.count("commit: too early, waits for its predecessor");
                return self.commit(proxy, attempt, now);
            }
            Refusal::AlreadyDone => ("commit: done before", Ok(())),
            Refusal::Fenced(_) => ("commit: refused, fenced", Err(Refused::Fenced)),
            Refusal::NotYet | Refusal::WrongHead => {
                ("commit: refused, wrong head", Err(Refused::WrongHead))
            }
            Refusal::NoNamespace | Refusal::Conflict | Refusal::Mine => {
                panic!("{}: an object is sealed once (P21), found {found:?}", attempt.object)
            }
        };
        self.counts.count(count);
        self.abandon(proxy, attempt, now);
        self.answer_put(proxy, attempt.object, result);
    }

    /// Deletes everything an attempt may have stored.
    fn abandon(&mut self, proxy: usize, attempt: Attempt, now: Now) {
        let Some(job) = self.job(proxy, attempt) else { return };
        let Some(Verdict::Commit(places)) = job.upload.verdict().cloned() else { return };
        let mut all = places;
        all.extend(job.upload.pending());
        all.extend(job.upload.strays());
        all.extend(&job.late);
        self.remove_job(proxy, attempt);
        self.discard(proxy, attempt, &all, now);
    }

    /// It may be committed all the same: its fragments must stay.
    pub fn outcome_unknown(&mut self, proxy: usize, what: &What) {
        let (What::Commit(attempt) | What::Places(attempt, _)) = what else { return };
        self.counts.count("transaction: outcome unknown");
        self.ledger.excuse_attempt(*attempt, "the outcome of a transaction is unknown");
        if let What::Commit(attempt) = what {
            self.remove_job(proxy, *attempt);
            self.answer_put(proxy, attempt.object, Err(Refused::Unavailable));
        }
    }

    /// Writes into the manifest where fragments are now. What fills no hole any more is deleted again.
    pub fn record_places(
        &mut self,
        proxy: usize,
        attempt: Attempt,
        puts: Vec<upload::Put>,
        now: Now,
    ) {
        let Some(was) = self.look_up(proxy, attempt.object) else {
            self.ledger.excuse_attempt(attempt, "arakoon was away when its places were known");
            return;
        };
        if was.attempt != attempt.attempt {
            return self.discard(proxy, attempt, &puts, now);
        }
        let (becomes, unused) = fill::with_places(&was, &puts);
        self.discard(proxy, attempt, &unused, now);
        if becomes != was {
            let transaction = Transaction::Places { was, becomes };
            self.send_transaction(proxy, What::Places(attempt, puts), transaction, now);
        }
    }
}
