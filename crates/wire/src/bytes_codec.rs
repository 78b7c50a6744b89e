//! How a value becomes bytes: fixed-width little-endian integers, `u32` lengths, one tag byte for options and enums.

use bytes::Bytes;
use model::{
    AttachmentGeneration, AttemptId, ClientId, Cluster, DtlGeneration, EdgeId, Epoch,
    FragmentIndex, Incarnation, Lsn, NamespaceId, ObjectId, OsdId, RequestSeq, Revision, RouterId,
    ScoNumber, VdiskId,
};

/// Why bytes aren't the message they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("message ends {missing} bytes early")]
    Short { missing: usize },
    #[error("message has {extra} bytes too many")]
    Trailing { extra: usize },
    #[error("{what} has the illegal value {value}")]
    Illegal { what: &'static str, value: u64 },
    #[error("text isn't UTF-8")]
    Utf8,
}

/// A value with one byte form.
pub trait Encode {
    fn encode(&self, out: &mut Vec<u8>);
}

/// The other way round. Must consume exactly what `encode` wrote.
pub trait Decode: Sized {
    /// # Errors
    /// When the bytes aren't what `encode` writes.
    fn decode(from: &mut Reader) -> Result<Self, DecodeError>;
}

/// A cursor over received bytes; slices taken from it share the buffer.
#[derive(Debug)]
pub struct Reader {
    rest: Bytes,
}

impl Reader {
    #[must_use]
    pub const fn new(bytes: Bytes) -> Self {
        Self { rest: bytes }
    }

    /// # Errors
    /// When fewer than `len` bytes are left.
    pub fn take(&mut self, len: usize) -> Result<Bytes, DecodeError> {
        if self.rest.len() < len {
            return Err(DecodeError::Short { missing: len - self.rest.len() });
        }
        Ok(self.rest.split_to(len))
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let bytes = self.take(N)?;
        Ok(bytes[..].try_into().expect("took N bytes"))
    }

    #[must_use]
    pub fn remaining(&self) -> usize {
        self.rest.len()
    }
}

/// Decodes a whole message; left-over bytes are an error.
///
/// # Errors
/// When the bytes are no such message.
pub fn decode_all<T: Decode>(bytes: Bytes) -> Result<T, DecodeError> {
    let mut reader = Reader::new(bytes);
    let value = T::decode(&mut reader)?;
    match reader.remaining() {
        0 => Ok(value),
        extra => Err(DecodeError::Trailing { extra }),
    }
}

#[must_use]
pub fn encode_to_bytes<T: Encode + ?Sized>(value: &T) -> Bytes {
    let mut out = Vec::with_capacity(64);
    value.encode(&mut out);
    Bytes::from(out)
}

macro_rules! integers {
    ($($int:ty),*) => {$(
        impl Encode for $int {
            fn encode(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }
        }
        impl Decode for $int {
            fn decode(from: &mut Reader) -> Result<Self, DecodeError> {
                from.array().map(Self::from_le_bytes)
            }
        }
    )*};
}
integers!(u8, u16, u32, u64, u128, i64);

macro_rules! newtypes {
    ($($name:ident),*) => {$(
        impl Encode for $name {
            fn encode(&self, out: &mut Vec<u8>) {
                self.0.encode(out);
            }
        }
        impl Decode for $name {
            fn decode(from: &mut Reader) -> Result<Self, DecodeError> {
                Decode::decode(from).map(Self)
            }
        }
    )*};
}
newtypes!(
    AttachmentGeneration,
    AttemptId,
    ClientId,
    Cluster,
    DtlGeneration,
    EdgeId,
    Epoch,
    Incarnation,
    Lsn,
    NamespaceId,
    OsdId,
    RequestSeq,
    Revision,
    RouterId,
    ScoNumber,
    VdiskId
);

impl Encode for bool {
    fn encode(&self, out: &mut Vec<u8>) {
        out.push(u8::from(*self));
    }
}

impl Decode for bool {
    fn decode(from: &mut Reader) -> Result<Self, DecodeError> {
        match u8::decode(from)? {
            0 => Ok(false),
            1 => Ok(true),
            value => Err(DecodeError::Illegal { what: "flag", value: value.into() }),
        }
    }
}

impl Encode for FragmentIndex {
    fn encode(&self, out: &mut Vec<u8>) {
        out.push(self.get());
    }
}

impl Decode for FragmentIndex {
    fn decode(from: &mut Reader) -> Result<Self, DecodeError> {
        let raw = u8::decode(from)?;
        Self::new(raw).ok_or(DecodeError::Illegal { what: "fragment index", value: raw.into() })
    }
}

impl Encode for ObjectId {
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.to_bytes());
    }
}

impl Decode for ObjectId {
    fn decode(from: &mut Reader) -> Result<Self, DecodeError> {
        from.array().map(|bytes| Self::from_bytes(&bytes))
    }
}

impl Encode for Bytes {
    fn encode(&self, out: &mut Vec<u8>) {
        model::u32_of(self.len()).encode(out);
        out.extend_from_slice(self);
    }
}

impl Decode for Bytes {
    fn decode(from: &mut Reader) -> Result<Self, DecodeError> {
        let len = model::usize_of(u32::decode(from)?.into());
        from.take(len)
    }
}

impl Encode for String {
    fn encode(&self, out: &mut Vec<u8>) {
        model::u32_of(self.len()).encode(out);
        out.extend_from_slice(self.as_bytes());
    }
}

impl Decode for String {
    fn decode(from: &mut Reader) -> Result<Self, DecodeError> {
        let bytes = Bytes::decode(from)?;
        Self::from_utf8(bytes.to_vec()).map_err(|_| DecodeError::Utf8)
    }
}

impl<T: Encode> Encode for Option<T> {
    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            None => out.push(0),
            Some(value) => {
                out.push(1);
                value.encode(out);
            }
        }
    }
}

impl<T: Decode> Decode for Option<T> {
    fn decode(from: &mut Reader) -> Result<Self, DecodeError> {
        if bool::decode(from)? { T::decode(from).map(Some) } else { Ok(None) }
    }
}

impl<T: Encode> Encode for Vec<T> {
    fn encode(&self, out: &mut Vec<u8>) {
        model::u32_of(self.len()).encode(out);
        for value in self {
            value.encode(out);
        }
    }
}

impl<T: Decode> Decode for Vec<T> {
    /// Allocates as elements arrive, never by the announced count, so a lying count costs nothing.
    fn decode(from: &mut Reader) -> Result<Self, DecodeError> {
        let count = model::usize_of(u32::decode(from)?.into());
        if count > from.remaining() {
            return Err(DecodeError::Short { missing: count - from.remaining() });
        }
        let mut out = Self::new();
        for _ in 0..count {
            out.push(T::decode(from)?);
        }
        Ok(out)
    }
}

impl<A: Encode, B: Encode> Encode for (A, B) {
    fn encode(&self, out: &mut Vec<u8>) {
        self.0.encode(out);
        self.1.encode(out);
    }
}

impl<A: Decode, B: Decode> Decode for (A, B) {
    fn decode(from: &mut Reader) -> Result<Self, DecodeError> {
        Ok((A::decode(from)?, B::decode(from)?))
    }
}

impl Encode for () {
    fn encode(&self, _out: &mut Vec<u8>) {}
}

impl Decode for () {
    fn decode(_from: &mut Reader) -> Result<Self, DecodeError> {
        Ok(())
    }
}

/// Declares a message: a struct whose byte form is its fields in the order written.
#[macro_export]
macro_rules! message {
    ($($(#[$meta:meta])* pub struct $name:ident { $($(#[$field_meta:meta])* pub $field:ident: $type:ty,)* })*) => {$(
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct $name { $($(#[$field_meta])* pub $field: $type,)* }

        impl $crate::Encode for $name {
            fn encode(&self, out: &mut Vec<u8>) {
                $($crate::Encode::encode(&self.$field, out);)*
                let _ = out;
            }
        }

        impl $crate::Decode for $name {
            fn decode(from: &mut $crate::Reader) -> Result<Self, $crate::DecodeError> {
                let _ = &from;
                Ok(Self { $($field: $crate::Decode::decode(from)?,)* })
            }
        }
    )*};
}

/// Declares an enum without data whose byte form is one byte, as numbered.
#[macro_export]
macro_rules! tag {
    ($($(#[$meta:meta])* pub enum $name:ident { $($(#[$variant_meta:meta])* $variant:ident = $number:literal,)* })*) => {$(
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name { $($(#[$variant_meta])* $variant,)* }

        impl $crate::Encode for $name {
            fn encode(&self, out: &mut Vec<u8>) {
                out.push(match self { $(Self::$variant => $number,)* });
            }
        }

        impl $crate::Decode for $name {
            fn decode(from: &mut $crate::Reader) -> Result<Self, $crate::DecodeError> {
                match <u8 as $crate::Decode>::decode(from)? {
                    $($number => Ok(Self::$variant),)*
                    value => Err($crate::DecodeError::Illegal { what: stringify!($name), value: value.into() }),
                }
            }
        }
    )*};
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_lying_count_is_refused_without_allocating() {
        let bytes = Bytes::from_static(&[255, 255, 255, 255, 1, 2]);
        assert!(matches!(decode_all::<Vec<u64>>(bytes), Err(DecodeError::Short { .. })));
    }

    #[test]
    fn left_over_bytes_are_refused() {
        assert_eq!(
            decode_all::<u8>(Bytes::from_static(&[1, 2])),
            Err(DecodeError::Trailing { extra: 1 })
        );
    }

    proptest! {
        #[test]
        fn values_survive_their_bytes(a: Option<u64>, b: Vec<u8>, c in ".*", d: Vec<(u32, bool)>) {
            let value = (a, (Bytes::from(b), (c, d)));
            let bytes = encode_to_bytes(&value);
            prop_assert_eq!(decode_all(bytes), Ok(value));
        }

        #[test]
        fn garbage_never_panics(bytes: Vec<u8>) {
            let _ = decode_all::<(Option<String>, Vec<(Bytes, ObjectId)>)>(Bytes::from(bytes));
        }
    }
}
