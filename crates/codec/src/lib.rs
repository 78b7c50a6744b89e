//! Compress, seal and erasure-code objects: pure functions over slices.
//!
//! What: an object's plain bytes become k data and m parity fragments, and come back.
//!
//! ```text
//! plain ─▶ frames ─▶ zstd where it pays ─▶ AES-256-GCM (or CRC-32C) ─▶ k data fragments ─▶ + m parity
//!          frames    compress              seal                        layout              erasure
//! ```
//!
//! Why so: parity is made from sealed bytes, so disks and repair need no keys; the code is systematic
//! and a frame never straddles two fragments (P25), so a small read asks one disk for one frame; each
//! frame carries its own tag, so a partial read is verified like a full one (L5).
//!
//! Nothing here does I/O, knows the time or draws a random number: ids, nonces and keys are passed in.
//! [`object`] is the whole pipeline in one call; the other modules are its stages.
//!
//! Invariant: what [`Decoder`] returns is exactly what [`Encoder`] was given, or an error, never other
//! bytes. The byte formats are described in `docs/formats/sealed-stream.md` and frozen by golden tests.

pub mod checksum;
pub mod compress;
pub mod erasure;
pub mod frames;
pub mod layout;
pub mod object;
pub mod seal;

pub use checksum::{BlockChecksums, ChecksumError, crc32c};
pub use compress::{Compression, Compressor, Decompressor, Level};
pub use erasure::{CODEC_ID, CODEC_NAME, ErasureCode, ErasureError, Shape, Vandermonde};
pub use frames::{Encoding, FrameInfo, FrameSize, FrameTable, MAX_OBJECT_BYTES, Suite, TableError};
pub use layout::{FragmentRange, FramePlace, FrameRead, Layout, PlanError, coalesce};
pub use object::{
    DecodeError, Decoder, EncodeError, EncodeParams, EncodedObject, Encoder, StoredObject,
};
pub use seal::aead::{Aead, Engine};
pub use seal::keys::{
    KeyEncryptionKey, KeyError, NamespaceKey, NamespaceKeys, PlainDigest, WRAPPED_KEY_BYTES,
    wrapped_key_id,
};
pub use seal::{MAX_OBJECT_ID_BYTES, ObjectBinding, ObjectSeal, SealError};
