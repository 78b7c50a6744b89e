//! AES-256-GCM (NIST SP 800-38D) behind one small trait, with two engines.
//!
//! Why two: `aws-lc-rs` is several times faster and in the program anyway (TLS brings it); `aes-gcm` is pure
//! Rust, independently written, and keeps the other honest: tests demand equal bytes of both.
//!
//! Invariant: callers never use a (key, nonce) pair for two messages. The keys of this crate live for one
//! put attempt with counted nonces, or take nonces from the caller (key wrapping).

use aes_gcm::aead::inout::InOutBuf;
use aes_gcm::aead::{AeadInOut, KeyInit};
use aws_lc_rs::aead as aws;

pub const KEY_BYTES: usize = 32;
pub const NONCE_BYTES: usize = 12;
pub const TAG_BYTES: usize = 16;

/// What surrounds a sealed text: never two texts under one (key, nonce).
#[derive(Debug, Clone, Copy)]
pub struct Message<'a> {
    pub nonce: [u8; NONCE_BYTES],
    /// Additional data: verified, not stored.
    pub aad: &'a [u8],
}

/// The tag doesn't match: wrong key, nonce or additional data, or damaged bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TagMismatch;

/// An AES-256-GCM key ready for use.
pub trait Aead: Send + Sync {
    /// Encrypts `plain` into `out` of equal length and returns the tag.
    fn seal(&self, message: &Message<'_>, plain: &[u8], out: &mut [u8]) -> [u8; TAG_BYTES];

    /// Encrypts `text` where it lies and returns the tag.
    fn seal_in_place(&self, message: &Message<'_>, text: &mut [u8]) -> [u8; TAG_BYTES];

    /// Verifies and decrypts `sealed` into `plain` of equal length, whose content means nothing after an error.
    fn open(
        &self,
        message: &Message<'_>,
        sealed: &[u8],
        tag: &[u8; TAG_BYTES],
        plain: &mut [u8],
    ) -> Result<(), TagMismatch>;
}

/// Which library does the work. The bytes are the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Engine {
    /// `aws-lc-rs`: the data path's.
    #[default]
    AwsLc,
    /// `aes-gcm`: the reference.
    Reference,
}

impl Engine {
    /// Expands a key.
    #[must_use]
    pub fn key(self, key: &[u8; KEY_BYTES]) -> Box<dyn Aead> {
        match self {
            Self::AwsLc => Box::new(AwsLc(aws::LessSafeKey::new(
                aws::UnboundKey::new(&aws::AES_256_GCM, key).expect("the key has 32 bytes"),
            ))),
            Self::Reference => Box::new(Reference(aes_gcm::Aes256Gcm::new(key.into()))),
        }
    }
}

/// GCM's own limit is 64 GiB per message; ours are frames and 64 KiB leaves.
const FITS: &str = "a message of at most 64 KiB is within AES-GCM's limits";

struct AwsLc(aws::LessSafeKey);

impl Aead for AwsLc {
    fn seal(&self, message: &Message<'_>, plain: &[u8], out: &mut [u8]) -> [u8; TAG_BYTES] {
        let nonce = aws::Nonce::assume_unique_for_key(message.nonce);
        let mut tag = [0; TAG_BYTES];
        self.0
            .seal_out_of_place_scatter(
                nonce,
                aws::Aad::from(message.aad),
                plain,
                out,
                &[],
                &mut tag,
            )
            .expect(FITS);
        tag
    }

    fn seal_in_place(&self, message: &Message<'_>, text: &mut [u8]) -> [u8; TAG_BYTES] {
        let nonce = aws::Nonce::assume_unique_for_key(message.nonce);
        let tag = self
            .0
            .seal_in_place_separate_tag(nonce, aws::Aad::from(message.aad), text)
            .expect(FITS);
        tag.as_ref().try_into().expect("a GCM tag has 16 bytes")
    }

    fn open(
        &self,
        message: &Message<'_>,
        sealed: &[u8],
        tag: &[u8; TAG_BYTES],
        plain: &mut [u8],
    ) -> Result<(), TagMismatch> {
        let nonce = aws::Nonce::assume_unique_for_key(message.nonce);
        self.0
            .open_separate_gather(nonce, aws::Aad::from(message.aad), sealed, tag, plain)
            .map_err(|_| TagMismatch)
    }
}

struct Reference(aes_gcm::Aes256Gcm);

impl Aead for Reference {
    fn seal(&self, message: &Message<'_>, plain: &[u8], out: &mut [u8]) -> [u8; TAG_BYTES] {
        let buffer = InOutBuf::new(plain, out).expect("both sides have the frame's length");
        self.0
            .encrypt_inout_detached((&message.nonce).into(), message.aad, buffer)
            .expect(FITS)
            .into()
    }

    fn seal_in_place(&self, message: &Message<'_>, text: &mut [u8]) -> [u8; TAG_BYTES] {
        self.0
            .encrypt_inout_detached((&message.nonce).into(), message.aad, text.into())
            .expect(FITS)
            .into()
    }

    fn open(
        &self,
        message: &Message<'_>,
        sealed: &[u8],
        tag: &[u8; TAG_BYTES],
        plain: &mut [u8],
    ) -> Result<(), TagMismatch> {
        let buffer = InOutBuf::new(sealed, plain).map_err(|_| TagMismatch)?;
        self.0
            .decrypt_inout_detached((&message.nonce).into(), message.aad, buffer, tag.into())
            .map_err(|_| TagMismatch)
    }
}
