//! The manifest: all that must be known to read one object back, and to judge how safe it is.
//!
//! One per object, in arakoon, written in the transaction that commits the object (P20). It never changes but
//! for the places of its fragments (holes filled, fragments moved), always by a transaction that asserts its
//! old bytes. Presets may change online: the manifest says what *this* object was made with.
//!
//! The bytes are described in `docs/formats/manifest.md` and frozen by golden tests. Fields are little-endian, written by
//! hand; a CRC-32C over everything before it stands at the end (L5).
//!
//! Invariant: a `Manifest` that was decoded has k + m fragments, and a stored fragment is never empty.

use bytes::Bytes;
use model::{
    AttemptId, DomainLevel, Epoch, FragmentIndex, FragmentKey, NamespaceId, ObjectId, OsdId, Policy,
};
use wire::{Decode, DecodeError, Encode, Reader};

/// Version that is written; the only one so far.
const VERSION: u8 = 1;
const CRC_LEN: usize = 4;
/// Longest frame table accepted: two bytes for each 4 KiB frame of the largest object, and some.
const FRAME_TABLE_MAX: usize = 128 << 10;
const PRESET_NAME_MAX: usize = 256;

/// Where a fragment is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Has no bytes (data fragments of small objects): needs no storing and can't be lost.
    Empty,
    /// Not stored: counts as lost until it is filled.
    Hole,
    Stored(OsdId),
}

/// One fragment: its facts are known even while it is a hole, so whoever rebuilds it can check the result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FragmentRecord {
    pub place: Place,
    pub len: u32,
    /// CRC-32C of the whole fragment.
    pub crc: u32,
}

/// How the frames are protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protection {
    /// Not encrypted; a CRC-32C per frame.
    Crc32c,
    /// AES-256-GCM under a key derived from the namespace key of this number (P21).
    Aes256Gcm { namespace_key: u32 },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    pub object: ObjectId,
    /// Part of every fragment's key (P21).
    pub attempt: AttemptId,
    /// The epoch that the commit asserted (L4).
    pub epoch: Epoch,
    pub preset: String,
    pub preset_version: u64,
    pub policy: Policy,
    /// Where `x` of the policy counts.
    pub level: DomainLevel,
    /// Which erasure code made the parity.
    pub codec_id: u8,
    pub protection: Protection,
    /// Plain bytes per frame.
    pub frame_size: u32,
    pub plain_len: u64,
    /// Keyed digest of the plaintext: tells a repeated put from a conflicting one (P21).
    pub digest: [u8; 16],
    /// Length of the longest fragment, which parity has and to which data counts as zero-padded.
    pub stripe_len: u32,
    /// k data fragments, then m parity.
    pub fragments: Vec<FragmentRecord>,
    /// The codec's frame table, opaque here; carries its own checksum.
    pub frame_table: Bytes,
    /// The router's.
    pub meta: Bytes,
}

/// Why bytes are no manifest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    #[error("manifest version {0} is unknown here")]
    Version(u8),
    #[error("the manifest's checksum is wrong")]
    Checksum,
    #[error("manifest: {0}")]
    Decode(#[from] DecodeError),
    #[error("manifest: {0} is impossible")]
    Field(&'static str),
}

impl Manifest {
    #[must_use]
    pub fn key_of(&self, namespace: NamespaceId, index: FragmentIndex) -> FragmentKey {
        FragmentKey { namespace, object: self.object, attempt: self.attempt, index }
    }

    /// Fragments with their position.
    pub fn indexed(&self) -> impl Iterator<Item = (FragmentIndex, &FragmentRecord)> {
        self.policy.indexes().zip(&self.fragments)
    }

    #[must_use]
    pub fn holes(&self) -> u8 {
        self.count(|place| place == Place::Hole)
    }

    /// Fragments that can be read or need no reading.
    #[must_use]
    pub fn present(&self) -> u8 {
        self.count(|place| place != Place::Hole)
    }

    fn count(&self, counts: impl Fn(Place) -> bool) -> u8 {
        let n = self.fragments.iter().filter(|fragment| counts(fragment.place)).count();
        u8::try_from(n).expect("at most 32 fragments")
    }

    /// Bytes on OSDs.
    #[must_use]
    pub fn stored_len(&self) -> u64 {
        let stored = |fragment: &&FragmentRecord| matches!(fragment.place, Place::Stored(_));
        self.fragments.iter().filter(stored).map(|fragment| u64::from(fragment.len)).sum()
    }

    /// (fragment, OSD) of all that is stored.
    pub fn stored(&self) -> impl Iterator<Item = (FragmentIndex, OsdId)> + '_ {
        self.indexed().filter_map(|(index, fragment)| match fragment.place {
            Place::Stored(osd) => Some((index, osd)),
            Place::Hole | Place::Empty => None,
        })
    }

    #[must_use]
    pub fn to_bytes(&self) -> Bytes {
        assert_eq!(self.fragments.len(), usize::from(self.policy.total()), "k + m fragments");
        let mut out = Vec::with_capacity(256 + self.frame_table.len() + self.meta.len());
        out.push(VERSION);
        self.object.encode(&mut out);
        self.attempt.encode(&mut out);
        self.epoch.encode(&mut out);
        self.preset.encode(&mut out);
        self.preset_version.encode(&mut out);
        let policy = self.policy;
        out.extend_from_slice(&[policy.k(), policy.m(), policy.c(), policy.x()]);
        out.push(level_code(self.level));
        out.push(self.codec_id);
        let (kind, key) = match self.protection {
            Protection::Crc32c => (0, 0),
            Protection::Aes256Gcm { namespace_key } => (1, namespace_key),
        };
        out.push(kind);
        key.encode(&mut out);
        self.frame_size.encode(&mut out);
        self.plain_len.encode(&mut out);
        out.extend_from_slice(&self.digest);
        self.stripe_len.encode(&mut out);
        for fragment in &self.fragments {
            fragment.encode(&mut out);
        }
        self.frame_table.encode(&mut out);
        self.meta.encode(&mut out);
        let crc = crc_fast::crc32_iscsi(&out);
        crc.encode(&mut out);
        Bytes::from(out)
    }

    /// # Errors
    /// When the bytes aren't what [`to_bytes`](Self::to_bytes) writes.
    pub fn from_bytes(bytes: &Bytes) -> Result<Self, ManifestError> {
        match bytes.first() {
            // Before the checksum: a later version may keep it elsewhere.
            Some(&version) if version != VERSION => return Err(ManifestError::Version(version)),
            Some(_) if bytes.len() > CRC_LEN => {}
            Some(_) | None => return Err(DecodeError::Short { missing: CRC_LEN }.into()),
        }
        let (covered, crc) = bytes.split_at(bytes.len() - CRC_LEN);
        if crc != crc_fast::crc32_iscsi(covered).to_le_bytes() {
            return Err(ManifestError::Checksum);
        }
        let mut from = Reader::new(bytes.slice(1..bytes.len() - CRC_LEN));
        let manifest = Self::decode_fields(&mut from)?;
        match from.remaining() {
            0 => Ok(manifest),
            extra => Err(DecodeError::Trailing { extra }.into()),
        }
    }

    fn decode_fields(from: &mut Reader) -> Result<Self, ManifestError> {
        let object = Decode::decode(from)?;
        let attempt = Decode::decode(from)?;
        let epoch = Decode::decode(from)?;
        let preset = String::decode(from)?;
        if preset.len() > PRESET_NAME_MAX {
            return Err(ManifestError::Field("the preset's name"));
        }
        let preset_version = Decode::decode(from)?;
        let policy = decode_policy(from)?;
        let level = level_from_code(u8::decode(from)?)?;
        let codec_id = Decode::decode(from)?;
        let protection = match (u8::decode(from)?, u32::decode(from)?) {
            (0, 0) => Protection::Crc32c,
            (1, namespace_key) => Protection::Aes256Gcm { namespace_key },
            (_, _) => return Err(ManifestError::Field("the protection")),
        };
        let frame_size = Decode::decode(from)?;
        let plain_len = Decode::decode(from)?;
        let digest =
            from.take(16)?.as_ref().try_into().map_err(|_| ManifestError::Field("the digest"))?;
        let stripe_len = Decode::decode(from)?;
        let fragments: Vec<FragmentRecord> =
            (0..policy.total()).map(|_| FragmentRecord::decode(from)).collect::<Result<_, _>>()?;
        if fragments.iter().any(|f| f.len > stripe_len || !f.is_possible()) {
            return Err(ManifestError::Field("a fragment"));
        }
        let frame_table = Bytes::decode(from)?;
        if frame_table.len() > FRAME_TABLE_MAX {
            return Err(ManifestError::Field("the frame table"));
        }
        let meta = Bytes::decode(from)?;
        Ok(Self {
            object,
            attempt,
            epoch,
            preset,
            preset_version,
            policy,
            level,
            codec_id,
            protection,
            frame_size,
            plain_len,
            digest,
            stripe_len,
            fragments,
            frame_table,
            meta,
        })
    }
}

impl FragmentRecord {
    const fn is_possible(&self) -> bool {
        (self.len == 0) == matches!(self.place, Place::Empty)
    }
}

impl Encode for FragmentRecord {
    fn encode(&self, out: &mut Vec<u8>) {
        self.len.encode(out);
        self.crc.encode(out);
        match self.place {
            Place::Empty => out.push(0),
            Place::Hole => out.push(1),
            Place::Stored(osd) => {
                out.push(2);
                osd.encode(out);
            }
        }
    }
}

impl Decode for FragmentRecord {
    fn decode(from: &mut Reader) -> Result<Self, DecodeError> {
        let len = Decode::decode(from)?;
        let crc = Decode::decode(from)?;
        let place = match u8::decode(from)? {
            0 => Place::Empty,
            1 => Place::Hole,
            2 => Place::Stored(Decode::decode(from)?),
            value => return Err(DecodeError::Illegal { what: "place", value: value.into() }),
        };
        Ok(Self { place, len, crc })
    }
}

fn decode_policy(from: &mut Reader) -> Result<Policy, ManifestError> {
    let [k, m, c, x] = [u8::decode(from)?, u8::decode(from)?, u8::decode(from)?, u8::decode(from)?];
    Policy::new(k, m, c, x).map_err(|_| ManifestError::Field("the policy"))
}

const fn level_code(level: DomainLevel) -> u8 {
    match level {
        DomainLevel::Disk => 0,
        DomainLevel::Host => 1,
        DomainLevel::Rack => 2,
        DomainLevel::Datacenter => 3,
    }
}

const fn level_from_code(code: u8) -> Result<DomainLevel, ManifestError> {
    match code {
        0 => Ok(DomainLevel::Disk),
        1 => Ok(DomainLevel::Host),
        2 => Ok(DomainLevel::Rack),
        3 => Ok(DomainLevel::Datacenter),
        _ => Err(ManifestError::Field("the policy's level")),
    }
}

#[cfg(test)]
pub(crate) mod tests;
