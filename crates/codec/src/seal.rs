//! Frames under seal: authenticated encryption per frame, or a checksum where a preset wants no secrecy.
//!
//! What: [`ObjectSeal`] holds the frame key of one put attempt of one object and seals or opens its frames.
//!
//! Why so: the frame key is derived from (namespace key, object id, attempt id), and the nonce is the frame
//! number. An attempt id is random and used once, so a key never meets a nonce twice, even where a
//! retry through another proxy compresses differently (P21). The additional data bind each frame to its
//! object, attempt, place and lengths, so a frame can't be passed off as another.
//!
//! Invariant: [`ObjectSeal::open`] returns the body that [`ObjectSeal::seal`] was given under the same facts, or
//! an error. The bytes are described in `docs/formats/sealed-stream.md`.

pub mod aead;
pub mod keys;

use thiserror::Error;

use crate::checksum::crc32c_of_two;
use crate::frames::{FrameInfo, FrameSize, FrameTable, Suite};
use aead::{Aead, Message, NONCE_BYTES, TAG_BYTES};
use keys::NamespaceKeys;

/// Longest object id.
pub const MAX_OBJECT_ID_BYTES: usize = 128;
/// Length of the random id of a put attempt (P21).
pub const ATTEMPT_BYTES: usize = 16;

const AAD_MAGIC: [u8; 8] = *b"HFframe1";
const AAD_FIXED: usize = 44;
const AAD_MAX: usize = AAD_FIXED + MAX_OBJECT_ID_BYTES;

/// Whose frames they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ObjectBinding<'a> {
    /// The object's id within its namespace, as bytes.
    pub object: &'a [u8],
    /// The put attempt's random id: fresh for every attempt, never reused (P21).
    pub attempt: [u8; ATTEMPT_BYTES],
}

/// Why a frame can't be sealed (Refuse) or isn't genuine (Reconstruct).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum SealError {
    #[error("an object id of {0} bytes: at most {MAX_OBJECT_ID_BYTES} are possible")]
    ObjectId(usize),
    #[error("frame {frame} has {actual} stored bytes where {expected} belong")]
    Length { frame: u32, expected: u32, actual: usize },
    #[error("frame {frame} does not verify")]
    NotGenuine { frame: u32 },
}

/// Seals and opens the frames of one put attempt. Deriving it costs about a microsecond: keep it per object.
pub struct ObjectSeal {
    protection: Protection,
    frame_size: FrameSize,
    plain_len: u32,
    aad: [u8; AAD_MAX],
    aad_len: usize,
}

enum Protection {
    Crc32c,
    Aes256Gcm(Box<dyn Aead>),
}

impl ObjectSeal {
    /// For an object of `plain_len` bytes. `keys` isn't touched where the suite is [`Suite::Crc32c`].
    pub fn new(
        keys: &NamespaceKeys,
        suite: Suite,
        frame_size: FrameSize,
        plain_len: u32,
        binding: &ObjectBinding<'_>,
    ) -> Result<Self, SealError> {
        if binding.object.len() > MAX_OBJECT_ID_BYTES {
            return Err(SealError::ObjectId(binding.object.len()));
        }
        let mut aad = [0; AAD_MAX];
        let aad_len = AAD_FIXED + binding.object.len();
        aad[..8].copy_from_slice(&AAD_MAGIC);
        aad[8..24].copy_from_slice(&binding.attempt);
        aad[37] = suite.code();
        // 0 for sizes that aren't a power of two: every frame's own length is bound in any case.
        aad[38] = frame_size.class();
        aad[40..44].copy_from_slice(&plain_len.to_le_bytes());
        // Last, so that its length needs no field: all before it is fixed.
        aad[AAD_FIXED..aad_len].copy_from_slice(binding.object);
        let protection = match suite {
            Suite::Crc32c => Protection::Crc32c,
            Suite::Aes256Gcm => Protection::Aes256Gcm(keys.frame_key(binding)),
        };
        Ok(Self { protection, frame_size, plain_len, aad, aad_len })
    }

    /// For the object a table describes: what a reader uses.
    pub fn for_table(
        keys: &NamespaceKeys,
        table: &FrameTable,
        binding: &ObjectBinding<'_>,
    ) -> Result<Self, SealError> {
        Self::new(keys, table.suite(), table.frame_size(), table.plain_len(), binding)
    }

    #[must_use]
    pub fn suite(&self) -> Suite {
        match self.protection {
            Protection::Crc32c => Suite::Crc32c,
            Protection::Aes256Gcm(_) => Suite::Aes256Gcm,
        }
    }

    fn additional_data(&self, frame: &FrameInfo) -> [u8; AAD_MAX] {
        let mut aad = self.aad;
        aad[24..28].copy_from_slice(&frame.index.to_le_bytes());
        aad[28..32].copy_from_slice(&frame.plain_len.to_le_bytes());
        aad[32..36].copy_from_slice(&frame.stored_len.to_le_bytes());
        aad[36] = frame.encoding.code();
        aad
    }

    /// Seals a raw frame from `body` into `stored` (body and trailer): one pass, no copy in between.
    pub fn seal(&self, frame: &FrameInfo, body: &[u8], stored: &mut [u8]) -> Result<(), SealError> {
        let (out, trailer) = self.split_mut(frame, stored)?;
        if body.len() != out.len() {
            return Err(wrong_len(frame, body.len()));
        }
        let aad = self.additional_data(frame);
        let message = Message { nonce: nonce(frame.index), aad: &aad[..self.aad_len] };
        match &self.protection {
            Protection::Crc32c => {
                out.copy_from_slice(body);
                trailer.copy_from_slice(&crc32c_of_two(message.aad, body).to_le_bytes());
            }
            Protection::Aes256Gcm(key) => {
                trailer.copy_from_slice(&key.seal(&message, body, out));
            }
        }
        Ok(())
    }

    /// Seals a frame whose body already lies at the start of `stored` (a compressed one).
    pub fn seal_in_place(&self, frame: &FrameInfo, stored: &mut [u8]) -> Result<(), SealError> {
        let (body, trailer) = self.split_mut(frame, stored)?;
        let aad = self.additional_data(frame);
        let message = Message { nonce: nonce(frame.index), aad: &aad[..self.aad_len] };
        match &self.protection {
            Protection::Crc32c => {
                trailer.copy_from_slice(&crc32c_of_two(message.aad, body).to_le_bytes());
            }
            Protection::Aes256Gcm(key) => {
                trailer.copy_from_slice(&key.seal_in_place(&message, body));
            }
        }
        Ok(())
    }

    /// Verifies a stored frame and writes its body to `body`, which has exactly the body's length.
    ///
    /// After an error the content of `body` is meaningless and may not be used (L5).
    pub fn open(&self, frame: &FrameInfo, stored: &[u8], body: &mut [u8]) -> Result<(), SealError> {
        if stored.len() != frame.stored_len as usize || body.len() != frame.body_len as usize {
            return Err(wrong_len(frame, stored.len()));
        }
        let damaged = SealError::NotGenuine { frame: frame.index };
        let aad = self.additional_data(frame);
        let message = Message { nonce: nonce(frame.index), aad: &aad[..self.aad_len] };
        let (sealed, trailer) =
            stored.split_at_checked(body.len()).ok_or(wrong_len(frame, stored.len()))?;
        match &self.protection {
            Protection::Crc32c => {
                if trailer != crc32c_of_two(message.aad, sealed).to_le_bytes() {
                    return Err(damaged);
                }
                body.copy_from_slice(sealed);
                Ok(())
            }
            Protection::Aes256Gcm(key) => {
                let tag: &[u8; TAG_BYTES] =
                    trailer.try_into().map_err(|_| wrong_len(frame, stored.len()))?;
                key.open(&message, sealed, tag, body).map_err(|_| damaged)
            }
        }
    }

    fn split_mut<'s>(
        &self,
        frame: &FrameInfo,
        stored: &'s mut [u8],
    ) -> Result<(&'s mut [u8], &'s mut [u8]), SealError> {
        let actual = stored.len();
        let trailer_bytes = self.suite().trailer_bytes();
        if actual != frame.stored_len as usize || frame.stored_len != frame.body_len + trailer_bytes
        {
            return Err(wrong_len(frame, actual));
        }
        stored.split_at_mut_checked(frame.body_len as usize).ok_or(wrong_len(frame, actual))
    }

    /// Whether this seal was made for an object of that table's shape.
    #[must_use]
    pub fn fits(&self, table: &FrameTable) -> bool {
        self.suite() == table.suite()
            && self.frame_size == table.frame_size()
            && self.plain_len == table.plain_len()
    }
}

impl std::fmt::Debug for ObjectSeal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ObjectSeal").field("suite", &self.suite()).finish_non_exhaustive()
    }
}

fn wrong_len(frame: &FrameInfo, actual: usize) -> SealError {
    SealError::Length { frame: frame.index, expected: frame.stored_len, actual }
}

/// The frame number, big-endian, in the last bytes: unique under a key because the key is the attempt's own.
fn nonce(frame: u32) -> [u8; NONCE_BYTES] {
    let mut nonce = [0; NONCE_BYTES];
    nonce[8..].copy_from_slice(&frame.to_be_bytes());
    nonce
}

#[cfg(test)]
mod tests;
