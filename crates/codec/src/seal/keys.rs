//! Keys: the namespace key, what is derived from it, and how it is kept wrapped.
//!
//! What: each namespace has one random 256-bit key. From it HKDF-SHA256 (RFC 5869) derives the frame key of
//! each put attempt and the keys of the plaintext digest. At rest it exists only wrapped by a
//! key-encryption key (AES-256-GCM), in a blob that names that key, so the outer key can be rotated without
//! touching an object.
//!
//! Why the digest is built so: a put that meets an existing object must tell "same bytes, sealed by
//! another attempt" from "other bytes" (P21), at the speed of the other stages. So each 64 KiB of plaintext is
//! hashed by GCM's own universal hash under a secret key, and only HMAC-SHA256 of those short hashes is ever
//! shown: hash-then-PRF, ten times faster than HMAC over the data, and a stranger learns nothing from it.
//!
//! Invariant: no key's bytes are ever printed; those held here are wiped on drop.

use aws_lc_rs::{hkdf, hmac};
use thiserror::Error;

use super::aead::{Aead, Engine, KEY_BYTES, Message, NONCE_BYTES, TAG_BYTES};
use super::{ATTEMPT_BYTES, MAX_OBJECT_ID_BYTES, ObjectBinding};

const FRAME_INFO: &[u8] = b"holdfast frame v1";
const DIGEST_HASH_INFO: &[u8] = b"holdfast digest hash v1";
const DIGEST_PRF_INFO: &[u8] = b"holdfast digest prf v1";
const DIGEST_BYTES: usize = 16;
/// Plaintext under one universal hash.
pub const DIGEST_LEAF_BYTES: usize = 64 << 10;

const WRAP_VERSION: u8 = 1;
/// Version, key id, nonce, sealed key, tag.
pub const WRAPPED_KEY_BYTES: usize = 1 + 4 + NONCE_BYTES + KEY_BYTES + TAG_BYTES;

/// Why a wrapped key can't be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum KeyError {
    #[error("a wrapped key has {WRAPPED_KEY_BYTES} bytes, not {0}")]
    Length(usize),
    #[error("wrapped key version {0} is unknown here")]
    Version(u8),
    #[error("the key is wrapped by key-encryption key {wanted}, not {given}")]
    OtherKey { wanted: u32, given: u32 },
    #[error("the wrapped key does not verify: wrong key-encryption key, other owner, or damaged")]
    NotGenuine,
}

/// 32 secret bytes, wiped on drop and never printed.
#[derive(Clone)]
struct Secret([u8; KEY_BYTES]);

impl Drop for Secret {
    fn drop(&mut self) {
        self.0.fill(0);
        // Keeps the compiler from seeing that nobody reads the zeroes.
        std::hint::black_box(&self.0);
    }
}

/// The key of a namespace. The caller draws its bytes from a secure random source.
#[derive(Clone)]
pub struct NamespaceKey(Secret);

impl NamespaceKey {
    #[must_use]
    pub fn new(bytes: [u8; KEY_BYTES]) -> Self {
        Self(Secret(bytes))
    }
}

impl std::fmt::Debug for NamespaceKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("NamespaceKey(secret)")
    }
}

/// A key that wraps namespace keys, with the id by which blobs name it.
pub struct KeyEncryptionKey {
    id: u32,
    key: Secret,
    engine: Engine,
}

impl KeyEncryptionKey {
    #[must_use]
    pub fn new(id: u32, bytes: [u8; KEY_BYTES], engine: Engine) -> Self {
        Self { id, key: Secret(bytes), engine }
    }

    #[must_use]
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Wraps a namespace's key. `nonce` must be fresh and random; `owner` (the namespace's id) is bound in, so
    /// a blob can't be given to another namespace.
    #[must_use]
    pub fn wrap(
        &self,
        owner: &[u8],
        key: &NamespaceKey,
        nonce: [u8; NONCE_BYTES],
    ) -> [u8; WRAPPED_KEY_BYTES] {
        let mut blob = [0; WRAPPED_KEY_BYTES];
        blob[0] = WRAP_VERSION;
        blob[1..5].copy_from_slice(&self.id.to_le_bytes());
        blob[5..17].copy_from_slice(&nonce);
        let aad = wrap_aad(self.id, owner);
        let aead = self.engine.key(&self.key.0);
        let (body, tag) = blob[17..].split_at_mut(KEY_BYTES);
        tag.copy_from_slice(&aead.seal(&Message { nonce, aad: &aad }, &key.0.0, body));
        blob
    }

    /// Opens what [`wrap`](Self::wrap) made for the same owner.
    pub fn unwrap(&self, owner: &[u8], blob: &[u8]) -> Result<NamespaceKey, KeyError> {
        let wanted = wrapped_key_id(blob)?;
        if wanted != self.id {
            return Err(KeyError::OtherKey { wanted, given: self.id });
        }
        let wrong_len = KeyError::Length(blob.len());
        let (_, rest) = blob.split_at_checked(5).ok_or(wrong_len)?;
        let (nonce, rest) = rest.split_first_chunk::<NONCE_BYTES>().ok_or(wrong_len)?;
        let (body, tag) = rest.split_last_chunk::<TAG_BYTES>().ok_or(wrong_len)?;
        let message = Message { nonce: *nonce, aad: &wrap_aad(self.id, owner) };
        let mut key = Secret([0; KEY_BYTES]);
        let aead = self.engine.key(&self.key.0);
        aead.open(&message, body, tag, &mut key.0).map_err(|_| KeyError::NotGenuine)?;
        Ok(NamespaceKey(key))
    }
}

impl std::fmt::Debug for KeyEncryptionKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "KeyEncryptionKey({}, secret)", self.id)
    }
}

fn wrap_aad(id: u32, owner: &[u8]) -> Vec<u8> {
    let mut aad = Vec::with_capacity(13 + owner.len());
    aad.extend_from_slice(b"HFwrap01");
    aad.push(WRAP_VERSION);
    aad.extend_from_slice(&id.to_le_bytes());
    aad.extend_from_slice(owner);
    aad
}

/// Which key-encryption key opens a blob.
pub fn wrapped_key_id(blob: &[u8]) -> Result<u32, KeyError> {
    let blob: &[u8; WRAPPED_KEY_BYTES] =
        blob.try_into().map_err(|_| KeyError::Length(blob.len()))?;
    let [version, a, b, c, d, ..] = *blob;
    if version != WRAP_VERSION {
        return Err(KeyError::Version(version));
    }
    Ok(u32::from_le_bytes([a, b, c, d]))
}

/// Keyed digest of an object's plaintext: equal digests mean equal bytes, whoever sealed them (P21).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PlainDigest(pub [u8; DIGEST_BYTES]);

/// A namespace key with what is derived from it once: keep it as long as the namespace is in use.
pub struct NamespaceKeys {
    engine: Engine,
    frames: hkdf::Prk,
    digest_hash: Box<dyn Aead>,
    digest_prf: hmac::Key,
}

impl NamespaceKeys {
    #[must_use]
    pub fn new(key: &NamespaceKey, engine: Engine) -> Self {
        let prk = hkdf::Salt::new(hkdf::HKDF_SHA256, &[]).extract(&key.0.0);
        let hash = expand(&prk, &[DIGEST_HASH_INFO]);
        let prf = expand(&prk, &[DIGEST_PRF_INFO]);
        Self {
            engine,
            digest_hash: engine.key(&hash.0),
            digest_prf: hmac::Key::new(hmac::HMAC_SHA256, &prf.0),
            frames: prk,
        }
    }

    /// For namespaces that have no key because no preset of theirs encrypts. The digest then is unkeyed in
    /// effect: it tells retries from mistakes, not from malice.
    #[must_use]
    pub fn public(engine: Engine) -> Self {
        Self::new(&NamespaceKey::new([0; KEY_BYTES]), engine)
    }

    pub(super) fn frame_key(&self, binding: &ObjectBinding<'_>) -> Box<dyn Aead> {
        debug_assert!(binding.object.len() <= MAX_OBJECT_ID_BYTES && ATTEMPT_BYTES == 16);
        let key = expand(&self.frames, &[FRAME_INFO, binding.object, &binding.attempt]);
        self.engine.key(&key.0)
    }

    /// Digest of a plaintext given in pieces; where they are cut doesn't matter. `scratch` is reused
    /// for leaves that span pieces.
    #[must_use]
    pub fn digest(&self, pieces: &[&[u8]], scratch: &mut Vec<u8>) -> PlainDigest {
        let mut prf = hmac::Context::with_key(&self.digest_prf);
        let mut total = 0u64;
        scratch.clear();
        for piece in pieces {
            total += piece.len() as u64;
            let mut rest = *piece;
            while !rest.is_empty() {
                let n = rest.len().min(DIGEST_LEAF_BYTES - scratch.len());
                let (head, tail) = rest.split_at(n);
                rest = tail;
                if n == DIGEST_LEAF_BYTES {
                    prf.update(&self.leaf(head));
                    continue;
                }
                scratch.extend_from_slice(head);
                if scratch.len() == DIGEST_LEAF_BYTES {
                    prf.update(&self.leaf(scratch));
                    scratch.clear();
                }
            }
        }
        if !scratch.is_empty() {
            prf.update(&self.leaf(scratch));
        }
        prf.update(&total.to_le_bytes());
        let tag = prf.sign();
        PlainDigest(*tag.as_ref().first_chunk::<DIGEST_BYTES>().expect("HMAC-SHA256 has 32 bytes"))
    }

    /// GHASH of the leaf under a secret key, masked by a constant: never shown, only fed to the PRF.
    fn leaf(&self, bytes: &[u8]) -> [u8; TAG_BYTES] {
        self.digest_hash.seal_in_place(&Message { nonce: [0; NONCE_BYTES], aad: bytes }, &mut [])
    }
}

impl std::fmt::Debug for NamespaceKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NamespaceKeys").field("engine", &self.engine).finish_non_exhaustive()
    }
}

struct Length(usize);

impl hkdf::KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

fn expand(prk: &hkdf::Prk, info: &[&[u8]]) -> Secret {
    let mut key = Secret([0; KEY_BYTES]);
    prk.expand(info, Length(KEY_BYTES))
        .and_then(|okm| okm.fill(&mut key.0))
        .expect("HKDF-SHA256 gives up to 8160 bytes");
    key
}

#[cfg(test)]
pub(super) fn hkdf_for_test(secret: &[u8]) -> [u8; KEY_BYTES] {
    expand(&hkdf::Salt::new(hkdf::HKDF_SHA256, &[]).extract(secret), &[]).0
}
