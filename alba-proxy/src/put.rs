//! One object in: check, choose a policy, encode, store the fragments, commit, tidy up.
//!
//! The upload's decisions are the core's ([`Upload`]); this file carries its puts out and tells it what came of them.
//!
//! Invariant: fragments of an attempt that wasn't committed are deleted, unless it isn't known whether it was.

use crate::catalog::Preset;
use crate::commit::{Commit, Committed};
use crate::error::ProxyError;
use crate::namespaces::Namespace;
use crate::osds::{Fragment, PutError, PutManner};
use crate::proxy::Proxy;
use alba_proxy_core::manifest::{FragmentRecord, Manifest, Place, Protection};
use alba_proxy_core::placement::Spread;
use alba_proxy_core::upload::{Next, Put, UploadPlan};
use alba_proxy_core::{PutAnswer, Upload, Verdict, policy};
use bytes::Bytes;
use codec::{EncodeParams, FrameSize, MAX_OBJECT_BYTES, ObjectBinding, Shape, Suite, Vandermonde};
use model::{AttemptId, FragmentIndex, FragmentKey, NamespaceId, ObjectId, OsdId, Policy};
use runtime::clock::boot_now;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::Instant;
use wire::proxy::{META_MAX, PutDone, PutObject};

/// Kept of the caller's time for the commit.
const COMMIT_RESERVE: Duration = Duration::from_millis(500);
/// Attempts at one request, each with what was learned from the one before.
const ATTEMPTS_MAX: usize = 3;
/// An upload takes no longer, whatever the caller's deadline: each put has its own timeout.
const UPLOAD_MAX: Duration = Duration::from_secs(12);

/// An object encoded and ready to go out.
struct Encoded {
    attempt: AttemptId,
    fragments: Vec<Fragment>,
    records: Vec<FragmentRecord>,
    plain_len: u32,
    stripe_len: u32,
    frame_table: Bytes,
    digest: [u8; 16],
}

/// What the put was decided to be.
struct Decided {
    preset: Arc<Preset>,
    policy: Policy,
    protection: Protection,
    frame_size: FrameSize,
}

/// One attempt's circumstances.
struct Job<'a> {
    namespace: &'a Arc<Namespace>,
    request: &'a PutObject,
    decided: &'a Decided,
}

type Puts = JoinSet<(Put, Result<(), PutError>)>;

impl Proxy {
    pub async fn put_object(
        self: &Arc<Self>,
        request: PutObject,
        payload: Bytes,
        deadline: Instant,
    ) -> Result<PutDone, ProxyError> {
        let frame_size = check_request(&request, &payload)?;
        let namespace = self.namespace(request.namespace, deadline).await?;
        let _under_way = namespace.begin_put(request.object);
        let mut tries = 0;
        loop {
            tries += 1;
            let decided = self.decide(&namespace, frame_size).await?;
            let job = Job { namespace: &namespace, request: &request, decided: &decided };
            match self.attempt(&job, payload.clone(), deadline).await {
                // OSDs turned out to be gone: now that this is known, another policy may do.
                Err(ProxyError::TooFewStored { .. })
                    if tries < ATTEMPTS_MAX && Instant::now() + COMMIT_RESERVE < deadline => {}
                done => return done,
            }
        }
    }

    async fn attempt(
        self: &Arc<Self>,
        job: &Job<'_>,
        payload: Bytes,
        deadline: Instant,
    ) -> Result<PutDone, ProxyError> {
        let Job { namespace, request, decided } = *job;
        let encoded = self.encode(namespace, request, decided, payload).await?;
        let (upload, puts) = self.start_upload(request, decided, &encoded, deadline);
        let attempt = Attempt {
            namespace: request.namespace,
            object: request.object,
            attempt: encoded.attempt,
        };
        let (upload, puts) = self.upload(attempt, &encoded, upload, puts).await;
        let places = match upload.verdict() {
            Some(Verdict::Commit(places)) => places.clone(),
            Some(Verdict::Failed { .. }) | None => {
                return Err(self.give_up(attempt, decided, &upload));
            }
        };
        for put in upload.pending() {
            self.osds.note_slow(put.osd);
        }
        let manifest = manifest_of(request, decided, &encoded, &places);
        let holes = manifest.holes();
        let commit = Commit { namespace, request, manifest: &manifest };
        match self.commit(&commit, deadline).await {
            Ok(Committed::Now) => {
                self.counters.puts.add(1);
                self.discard(attempt, superseded(&manifest, upload.strays()));
                if holes > 0 {
                    self.finish_late(attempt, upload, puts);
                }
                Ok(PutDone { holes, policy: decided.policy.to_string() })
            }
            Ok(Committed::Before { holes, policy }) => {
                // The other attempt stands; this one's fragments are nobody's.
                self.discard(attempt, all_puts(&upload, &places));
                Ok(PutDone { holes, policy: policy.to_string() })
            }
            Err(failed) => {
                if !failed.outcome_unknown {
                    self.discard(attempt, all_puts(&upload, &places));
                }
                Err(failed.error)
            }
        }
    }

    /// Which preset, which policy.
    async fn decide(
        self: &Arc<Self>,
        namespace: &Namespace,
        frame_size: FrameSize,
    ) -> Result<Decided, ProxyError> {
        let name = &namespace.info.preset;
        let find = || {
            let preset = self.catalog.preset(name)?;
            let policy = policy::choose(&preset.policies, &self.osds.candidates());
            Some((preset, policy))
        };
        let (preset, policy) = match find() {
            Some((preset, Some(policy))) => (preset, Some(policy)),
            // The list may be old: look once before saying no.
            Some((_, None)) | None => {
                self.catalog.refresh(&self.arakoon, &self.osds).await?;
                self.probe_due().await;
                find().ok_or_else(|| ProxyError::NoPreset(name.clone()))?
            }
        };
        let policy = policy.ok_or_else(|| ProxyError::NoPolicy {
            preset: name.clone(),
            osds: self.describe_osds(),
        })?;
        let protection =
            if preset.encrypts { namespace.current_protection()? } else { Protection::Crc32c };
        Ok(Decided { preset, policy, protection, frame_size })
    }

    fn describe_osds(&self) -> String {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for view in self.osds.views() {
            *counts.entry(view.condition.name()).or_default() += 1;
        }
        if counts.is_empty() {
            return "none is known".to_owned();
        }
        let parts: Vec<String> =
            counts.iter().map(|(condition, count)| format!("{count} {condition}")).collect();
        parts.join(", ")
    }

    async fn encode(
        &self,
        namespace: &Namespace,
        request: &PutObject,
        decided: &Decided,
        payload: Bytes,
    ) -> Result<Encoded, ProxyError> {
        let keys = namespace.keys_for(decided.protection)?;
        // Drawn anew for every attempt, never used twice (P21).
        let attempt = AttemptId(runtime::random::u128());
        let (object, checksum) = (request.object.to_bytes(), request.checksum);
        let (policy, mut compression) = (decided.policy, decided.preset.compression);
        if self.workers.are_busy() {
            compression = compression.under_load();
        }
        let (protection, frame_size) = (decided.protection, decided.frame_size);
        let job = move |encoder: &mut codec::Encoder| {
            if codec::crc32c(&payload) != checksum {
                return Ok(None);
            }
            let shape = Shape::new(policy.k(), policy.m()).expect("a policy is a shape");
            let code = Vandermonde::new(shape);
            let params = EncodeParams {
                suite: match protection {
                    Protection::Crc32c => Suite::Crc32c,
                    Protection::Aes256Gcm { .. } => Suite::Aes256Gcm,
                },
                frame_size,
                compression,
                keys: &keys,
                binding: ObjectBinding { object: &object, attempt: attempt.0.to_be_bytes() },
                code: &code,
            };
            let encoded = encoder.encode(&params, &[&payload])?;
            let fragments = encoded.fragments.into_iter().map(Fragment::new).collect();
            Ok(Some((
                encoded.table,
                encoded.layout,
                fragments,
                encoded.fragment_crcs,
                encoded.digest,
            )))
        };
        let encoded = self
            .workers
            .encode(job)
            .await
            .map_err(|error| ProxyError::BadRequest(error.to_string()))?;
        let (table, layout, fragments, crcs, digest): (_, _, Vec<Fragment>, _, _) =
            encoded.ok_or(ProxyError::DamagedPayload)?;
        let record = |(fragment, crc): (&Fragment, u32)| FragmentRecord {
            place: if fragment.bytes.is_empty() { Place::Empty } else { Place::Hole },
            len: model::u32_of(fragment.bytes.len()),
            crc,
        };
        let records = fragments.iter().zip(crcs).map(record).collect();
        Ok(Encoded {
            attempt,
            records,
            fragments,
            plain_len: table.plain_len(),
            stripe_len: layout.stripe_len(),
            frame_table: table.encode().into(),
            digest: digest.0,
        })
    }

    fn start_upload(
        &self,
        request: &PutObject,
        decided: &Decided,
        encoded: &Encoded,
        deadline: Instant,
    ) -> (Upload, Vec<Put>) {
        let now = boot_now();
        let left = deadline.saturating_duration_since(Instant::now());
        let left = left.saturating_sub(COMMIT_RESERVE).min(UPLOAD_MAX);
        let with_bytes =
            |index: &FragmentIndex| !encoded.fragments[index.as_usize()].bytes.is_empty();
        let plan = UploadPlan {
            policy: decided.policy,
            spread: Spread::of(decided.policy, decided.preset.policies.level()),
            fragments: decided.policy.indexes().filter(with_bytes).collect(),
            candidates: self.osds.candidates(),
            slack: self.slack,
            deadline: now.plus(left),
            seed: runtime::random::u64(),
        };
        tracing::trace!(object = %request.object, policy = %decided.policy, "upload starts");
        Upload::start(plan, now)
    }

    fn spawn_put(
        self: &Arc<Self>,
        puts: &mut Puts,
        put: Put,
        key: FragmentKey,
        fragment: Fragment,
    ) {
        let proxy = Arc::clone(self);
        puts.spawn(async move {
            let stored = proxy.osds.put(put.osd, key, &fragment, PutManner::New).await;
            (put, stored)
        });
    }

    /// Carries out the upload's wishes until it is decided. Puts still under way come back with it.
    async fn upload(
        self: &Arc<Self>,
        attempt: Attempt,
        encoded: &Encoded,
        mut upload: Upload,
        start: Vec<Put>,
    ) -> (Upload, Puts) {
        let mut puts = Puts::new();
        let send = |puts: &mut Puts, put: Put| {
            self.spawn_put(
                puts,
                put,
                attempt.key(put.index),
                encoded.fragments[put.index.as_usize()].clone(),
            );
        };
        for put in start {
            send(&mut puts, put);
        }
        while upload.verdict().is_none() {
            let wait = upload.wake_at().since(boot_now());
            tokio::select! {
                Some(done) = puts.join_next() => {
                    let Ok((put, stored)) = done else { continue };
                    match upload.answered(put, answer_of(attempt.object, put, &stored), boot_now()) {
                        Next::Put(instead) => send(&mut puts, instead),
                        Next::Nothing | Next::Late(_) | Next::Orphan(_) => {}
                    }
                }
                () = tokio::time::sleep(wait) => upload.tick(boot_now()),
            }
        }
        (upload, puts)
    }

    fn give_up(
        self: &Arc<Self>,
        attempt: Attempt,
        decided: &Decided,
        upload: &Upload,
    ) -> ProxyError {
        let Some(Verdict::Failed { orphans }) = upload.verdict() else {
            return ProxyError::TooLate;
        };
        self.discard(attempt, orphans.clone());
        let doubtful = upload.pending().count() + upload.strays().len();
        let stored = orphans.len().saturating_sub(doubtful);
        ProxyError::TooFewStored { object: attempt.object, stored, needed: decided.policy.c() }
    }

    /// Fragments that arrive after the commit fill their holes; what doesn't arrive is left to the background.
    fn finish_late(self: &Arc<Self>, attempt: Attempt, mut upload: Upload, mut puts: Puts) {
        let proxy = Arc::clone(self);
        // Bounded: each put under way ends with its own timeout.
        tokio::spawn(async move {
            let mut late = Vec::new();
            while let Some(done) = puts.join_next().await {
                let Ok((put, stored)) = done else { continue };
                let answer = answer_of(attempt.object, put, &stored);
                if let Next::Late(put) = upload.answered(put, answer, boot_now()) {
                    late.push(put);
                }
            }
            if !late.is_empty()
                && let Err(error) = proxy.record_places(attempt, &late).await
            {
                tracing::info!(object = %attempt.object, %error, "late fragments stay holes for now");
            }
            proxy.holes_made.notify_one();
        });
    }

    /// Deletes fragments that nobody names; what fails here is left to garbage collection.
    pub fn discard(self: &Arc<Self>, attempt: Attempt, puts: Vec<Put>) {
        let mut keys: BTreeMap<OsdId, Vec<Bytes>> = BTreeMap::new();
        for put in puts {
            let key = attempt.key(put.index).to_bytes();
            keys.entry(put.osd).or_default().push(Bytes::copy_from_slice(&key));
        }
        for (osd, keys) in keys {
            let proxy = Arc::clone(self);
            tokio::spawn(async move {
                if let Err(error) = proxy.osds.delete(osd, keys).await {
                    tracing::debug!(%osd, %error, "orphans are left behind");
                }
            });
        }
    }
}

/// What names the fragments of one attempt.
#[derive(Debug, Clone, Copy)]
pub struct Attempt {
    pub namespace: NamespaceId,
    pub object: ObjectId,
    pub attempt: AttemptId,
}

impl Attempt {
    pub const fn key(self, index: FragmentIndex) -> FragmentKey {
        let Self { namespace, object, attempt } = self;
        FragmentKey { namespace, object, attempt, index }
    }
}

fn check_request(request: &PutObject, payload: &Bytes) -> Result<FrameSize, ProxyError> {
    if request.meta.len() > META_MAX {
        let len = request.meta.len();
        return Err(ProxyError::BadRequest(format!("meta of {len} bytes: at most {META_MAX}")));
    }
    if payload.len() > model::usize_of(MAX_OBJECT_BYTES.into()) {
        let len = payload.len();
        return Err(ProxyError::BadRequest(format!("an object of {len} bytes is too long")));
    }
    FrameSize::new(request.frame_size).ok_or_else(|| {
        ProxyError::BadRequest(format!("frames of {} bytes are impossible", request.frame_size))
    })
}

fn answer_of(object: ObjectId, put: Put, stored: &Result<(), PutError>) -> PutAnswer {
    match stored {
        Ok(()) => PutAnswer::Stored,
        Err(error) => {
            tracing::debug!(%object, fragment = %put.index, osd = %put.osd, %error, "not stored");
            PutAnswer::Failed
        }
    }
}

/// Everywhere a fragment of the attempt may be.
fn all_puts(upload: &Upload, places: &[Put]) -> Vec<Put> {
    places.iter().copied().chain(upload.pending()).chain(upload.strays().to_vec()).collect()
}

/// Copies that may lie where a put failed, of fragments that are stored elsewhere. One whose fragment is a hole is
/// left: whoever fills the hole may put it on that very OSD, and a late delete would take it away again.
fn superseded(manifest: &Manifest, strays: &[Put]) -> Vec<Put> {
    let elsewhere = |put: &&Put| match manifest.fragments[put.index.as_usize()].place {
        Place::Stored(osd) => osd != put.osd,
        Place::Hole | Place::Empty => false,
    };
    strays.iter().filter(elsewhere).copied().collect()
}

fn manifest_of(
    request: &PutObject,
    decided: &Decided,
    encoded: &Encoded,
    places: &[Put],
) -> Manifest {
    let mut fragments = encoded.records.clone();
    for put in places {
        fragments[put.index.as_usize()].place = Place::Stored(put.osd);
    }
    Manifest {
        object: request.object,
        attempt: encoded.attempt,
        epoch: request.epoch,
        preset: decided.preset.name.clone(),
        preset_version: decided.preset.version,
        policy: decided.policy,
        level: decided.preset.policies.level(),
        codec_id: codec::CODEC_ID,
        protection: decided.protection,
        frame_size: decided.frame_size.bytes(),
        plain_len: u64::from(encoded.plain_len),
        digest: encoded.digest,
        stripe_len: encoded.stripe_len,
        fragments,
        frame_table: encoded.frame_table.clone(),
        meta: request.meta.clone(),
    }
}
