//! Identities: 128 random bits each, drawn by whoever creates the thing and handed in here.

use crate::{Epoch, FragmentIndex, ScoNumber};
use std::fmt;
use std::str::FromStr;

/// Text that isn't 32 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` isn't an id: 32 hexadecimal digits are expected")]
pub struct ParseIdError {
    pub text: String,
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u128);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:032x}", self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:032x})"), self.0)
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                let err = || ParseIdError { text: text.to_owned() };
                if text.len() != 32 {
                    return Err(err());
                }
                u128::from_str_radix(text, 16).map(Self).map_err(|_| err())
            }
        }
    };
}

id! {
    /// A vDisk, for its whole life; its name may change.
    VdiskId
}
id! {
    /// A namespace of objects. A vDisk's namespace has the vDisk's id.
    NamespaceId
}
id! {
    /// Anything that stores fragments. An ASD's id is written on its disk.
    OsdId
}
id! {
    /// A storage router.
    RouterId
}
id! {
    /// An edge.
    EdgeId
}
id! {
    /// One try to store an object; part of every fragment key (P21).
    AttemptId
}
id! {
    /// A client of arakoon, the scope of its request numbers.
    ClientId
}

impl From<VdiskId> for NamespaceId {
    fn from(vdisk: VdiskId) -> Self {
        Self(vdisk.0)
    }
}

/// Which object: sealed once under this name, never overwritten (P21).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectId {
    pub vdisk: VdiskId,
    pub epoch: Epoch,
    pub number: ScoNumber,
}

impl ObjectId {
    pub const LEN: usize = 32;

    /// Big-endian, so that byte order is the order of (vDisk, epoch, number).
    #[must_use]
    pub fn to_bytes(self) -> [u8; Self::LEN] {
        let mut out = [0; Self::LEN];
        out[..16].copy_from_slice(&self.vdisk.0.to_be_bytes());
        out[16..24].copy_from_slice(&self.epoch.0.to_be_bytes());
        out[24..].copy_from_slice(&self.number.0.to_be_bytes());
        out
    }

    #[must_use]
    pub fn from_bytes(bytes: &[u8; Self::LEN]) -> Self {
        let (vdisk, rest) = bytes.split_first_chunk::<16>().expect("32 bytes");
        let (epoch, rest) = rest.split_first_chunk::<8>().expect("16 bytes");
        let (number, _) = rest.split_first_chunk::<8>().expect("8 bytes");
        Self {
            vdisk: VdiskId(u128::from_be_bytes(*vdisk)),
            epoch: Epoch(u64::from_be_bytes(*epoch)),
            number: ScoNumber(u64::from_be_bytes(*number)),
        }
    }
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.vdisk, self.epoch, self.number)
    }
}

/// Which fragment: of which attempt at which object in which namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FragmentKey {
    pub namespace: NamespaceId,
    pub object: ObjectId,
    pub attempt: AttemptId,
    pub index: FragmentIndex,
}

impl FragmentKey {
    pub const LEN: usize = 16 + ObjectId::LEN + 16 + 1;

    /// Big-endian, ordered by namespace, object, attempt, index: range lists are per namespace or object.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; Self::LEN] {
        let mut out = [0; Self::LEN];
        out[..16].copy_from_slice(&self.namespace.0.to_be_bytes());
        out[16..48].copy_from_slice(&self.object.to_bytes());
        out[48..64].copy_from_slice(&self.attempt.0.to_be_bytes());
        out[64] = self.index.get();
        out
    }

    /// `None` when the length or the fragment index is out of range.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; Self::LEN] = bytes.try_into().ok()?;
        let (namespace, rest) = bytes.split_first_chunk::<16>()?;
        let (object, rest) = rest.split_first_chunk::<{ ObjectId::LEN }>()?;
        let (attempt, rest) = rest.split_first_chunk::<16>()?;
        Some(Self {
            namespace: NamespaceId(u128::from_be_bytes(*namespace)),
            object: ObjectId::from_bytes(object),
            attempt: AttemptId(u128::from_be_bytes(*attempt)),
            index: FragmentIndex::new(*rest.first()?)?,
        })
    }
}

impl fmt::Display for FragmentKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.object, self.attempt, self.index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fragment_keys_survive_their_bytes_and_sort_by_object() {
        let key = |number, index| FragmentKey {
            namespace: NamespaceId(7),
            object: ObjectId { vdisk: VdiskId(7), epoch: Epoch(2), number: ScoNumber(number) },
            attempt: AttemptId(9),
            index: FragmentIndex::new(index).unwrap(),
        };
        assert_eq!(FragmentKey::from_bytes(&key(3, 5).to_bytes()), Some(key(3, 5)));
        assert!(key(3, 5).to_bytes() < key(4, 0).to_bytes());
        let mut bad = key(3, 5).to_bytes();
        bad[64] = 200;
        assert_eq!(FragmentKey::from_bytes(&bad), None);
        assert_eq!(FragmentKey::from_bytes(&bad[1..]), None);
    }

    #[test]
    fn ids_parse_what_they_print() {
        let id = VdiskId(0xfeed);
        assert_eq!(id.to_string().parse::<VdiskId>(), Ok(id));
        assert!("xyz".parse::<VdiskId>().is_err());
    }
}
