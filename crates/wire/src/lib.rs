//! What crosses a socket: one framing for all internal protocols, and one module of messages per protocol.
//!
//! Everything is little-endian and written by hand (`docs/formats/wire.md`); decoders take bytes from strangers, so they
//! return errors, check every length before they allocate, and never panic.

pub mod arakoon;
pub mod asd;
pub mod bytes_codec;
pub mod common;
pub mod dtl;
pub mod error;
pub mod facts;
pub mod frame;
pub mod proxy;
pub mod router;

pub use bytes_codec::{Decode, DecodeError, Encode, Reader, decode_all, encode_to_bytes};
pub use common::{Hello, Role};
pub use error::{ErrorClass, WireError};
pub use frame::{FrameError, FrameHeader, FrameKind, FrameMeta};
