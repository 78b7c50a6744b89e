//! The frame table: what a manifest must know to find and check every frame of an object.
//!
//! What: an object's plain bytes are cut in frames of a fixed plain size (the last may be short); each is
//! stored as `body ‖ trailer`, the body raw or compressed, the trailer a tag or a checksum. The table
//! holds the body lengths, and from them everything else follows: count, kinds, offsets, [`Layout`].
//!
//! Why so: it is part of every manifest, so it is small: two bytes per frame, none at all where every
//! frame is raw (the usual case under load). "Compressed" is not a stored flag: a compressed body is
//! always shorter than its plain frame and a raw one never is.
//!
//! Invariant: a `FrameTable` that exists is valid: each body has 1 to plain-length bytes. Equal tables have
//! equal bytes (one canonical encoding).
//!
//! [`Layout`]: crate::layout::Layout

use thiserror::Error;

use crate::checksum::crc32c;

/// Largest object. A SCO has at most 64 MiB; a backend that stores another one's fragments as objects
/// needs room for their trailers too.
pub const MAX_OBJECT_BYTES: u32 = 128 << 20;

/// Version of the encoded table.
const TABLE_VERSION: u8 = 1;
/// Version, suite, frame size class, body kind, plain length.
const HEADER_BYTES: usize = 8;
/// The frame size itself, behind the header, where its class is [`SIZE_OTHER`].
const SIZE_BYTES: usize = 4;
/// Class of the frame sizes that aren't a power of two; those that are have their exponent.
const SIZE_OTHER: u8 = 0;
/// CRC-32C over all before it.
const TRAILER_BYTES: usize = 4;
const BODY_ALL_RAW: u8 = 0;
const BODY_LENGTHS: u8 = 1;

/// Plain bytes per frame: 4 KiB to 64 KiB and a little, for writers that put a trailer behind each 64 KiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct FrameSize {
    bytes: u32,
}

impl FrameSize {
    pub const MIN: Self = Self { bytes: 4096 };
    pub const MAX: Self = Self { bytes: 65_792 };
    pub const DEFAULT: Self = Self { bytes: 16_384 };

    /// `None` unless `bytes` is 4096 to 65,792.
    #[must_use]
    pub fn new(bytes: u32) -> Option<Self> {
        (Self::MIN.bytes..=Self::MAX.bytes).contains(&bytes).then_some(Self { bytes })
    }

    #[must_use]
    pub fn bytes(self) -> u32 {
        self.bytes
    }

    /// As it stands in formats: the exponent of a power of two, 0 for other sizes.
    #[must_use]
    pub fn class(self) -> u8 {
        if self.bytes.is_power_of_two() {
            u8::try_from(self.bytes.ilog2()).expect("an exponent below 32")
        } else {
            SIZE_OTHER
        }
    }

    /// Frames of an object of that many plain bytes.
    #[must_use]
    pub fn frames_in(self, plain_len: u32) -> u32 {
        plain_len.div_ceil(self.bytes())
    }
}

/// How frames are protected. Chosen by the preset, stored in each table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Suite {
    /// Not encrypted: a CRC-32C in place of the tag, so that reads are verified all the same (L5).
    Crc32c,
    /// AES-256-GCM with a 16-byte tag.
    Aes256Gcm,
}

impl Suite {
    /// Bytes behind each frame's body.
    #[must_use]
    pub fn trailer_bytes(self) -> u32 {
        match self {
            Self::Crc32c => 4,
            Self::Aes256Gcm => 16,
        }
    }

    /// The number that stands for it in formats.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Crc32c => 0,
            Self::Aes256Gcm => 1,
        }
    }

    fn from_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::Crc32c),
            1 => Some(Self::Aes256Gcm),
            _ => None,
        }
    }
}

/// How a frame's body holds its plain bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    Raw,
    Zstd,
}

impl Encoding {
    /// The number that stands for it in the additional data of a seal.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Raw => 0,
            Self::Zstd => 1,
        }
    }
}

/// All there is to know of one frame without its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameInfo {
    pub index: u32,
    /// Plain bytes; less than the frame size only in an object's last frame.
    pub plain_len: u32,
    /// Bytes of the body, raw or compressed.
    pub body_len: u32,
    /// Body and trailer: what lies in the fragment.
    pub stored_len: u32,
    pub encoding: Encoding,
}

impl FrameInfo {
    /// A frame whose body has 1 to `plain_len` bytes; a shorter body is a compressed one.
    #[must_use]
    pub fn new(suite: Suite, index: u32, plain_len: u32, body_len: u32) -> Self {
        let encoding = if body_len < plain_len { Encoding::Zstd } else { Encoding::Raw };
        let stored_len = body_len + suite.trailer_bytes();
        Self { index, plain_len, body_len, stored_len, encoding }
    }
}

/// Why bytes are no frame table, or facts make none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum TableError {
    #[error("the frame table has {actual} bytes where {expected} belong")]
    Length { expected: usize, actual: usize },
    #[error("the frame table's checksum is wrong")]
    Checksum,
    #[error("frame table version {0} is unknown here")]
    Version(u8),
    #[error("the frame table's field `{field}` can't be {value}")]
    Field { field: &'static str, value: u32 },
    #[error("frame {frame} can't have a body of {body_len} bytes for {plain_len} plain ones")]
    Body { frame: u32, body_len: u32, plain_len: u32 },
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Bodies {
    AllRaw,
    /// Of each frame: 0 = raw, else the length of its compressed body.
    Lengths(Vec<u16>),
}

/// The frames of one object. See the module's page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrameTable {
    suite: Suite,
    frame_size: FrameSize,
    plain_len: u32,
    bodies: Bodies,
}

impl FrameTable {
    /// Makes a table from the body length of each frame, in order.
    pub fn new(
        suite: Suite,
        frame_size: FrameSize,
        plain_len: u32,
        body_lens: &[u32],
    ) -> Result<Self, TableError> {
        check_plain_len(plain_len)?;
        let frames = frame_size.frames_in(plain_len);
        if frames as usize != body_lens.len() {
            return Err(TableError::Length { expected: frames as usize, actual: body_lens.len() });
        }
        let mut lengths = Vec::with_capacity(body_lens.len());
        for (frame, body_len) in (0..frames).zip(body_lens) {
            let plain = plain_of(frame_size, plain_len, frame);
            match u16::try_from(*body_len) {
                // Any raw frame, also one that is too long for two bytes.
                _ if *body_len == plain => lengths.push(0),
                Ok(n) if n > 0 && *body_len < plain => lengths.push(n),
                Ok(_) | Err(_) => {
                    return Err(TableError::Body { frame, body_len: *body_len, plain_len: plain });
                }
            }
        }
        let table = Self { suite, frame_size, plain_len, bodies: Bodies::Lengths(lengths) };
        Ok(table.canonical())
    }

    /// The table of an object whose frames are all raw.
    pub fn all_raw(
        suite: Suite,
        frame_size: FrameSize,
        plain_len: u32,
    ) -> Result<Self, TableError> {
        check_plain_len(plain_len)?;
        Ok(Self { suite, frame_size, plain_len, bodies: Bodies::AllRaw })
    }

    fn canonical(mut self) -> Self {
        if self.iter().all(|frame| frame.encoding == Encoding::Raw) {
            self.bodies = Bodies::AllRaw;
        }
        self
    }

    #[must_use]
    pub fn suite(&self) -> Suite {
        self.suite
    }

    #[must_use]
    pub fn frame_size(&self) -> FrameSize {
        self.frame_size
    }

    /// Plain bytes of the object.
    #[must_use]
    pub fn plain_len(&self) -> u32 {
        self.plain_len
    }

    /// Number of frames.
    #[must_use]
    pub fn frames(&self) -> u32 {
        self.frame_size.frames_in(self.plain_len)
    }

    /// One frame; `None` beyond the last.
    #[must_use]
    pub fn frame(&self, index: u32) -> Option<FrameInfo> {
        if index >= self.frames() {
            return None;
        }
        let plain_len = plain_of(self.frame_size, self.plain_len, index);
        let body_len = match &self.bodies {
            Bodies::AllRaw => plain_len,
            Bodies::Lengths(lengths) => match lengths[index as usize] {
                0 => plain_len,
                body_len => u32::from(body_len),
            },
        };
        Some(FrameInfo::new(self.suite, index, plain_len, body_len))
    }

    /// All frames in order.
    pub fn iter(&self) -> impl Iterator<Item = FrameInfo> + '_ {
        (0..self.frames()).filter_map(|index| self.frame(index))
    }

    /// Bytes of the sealed stream: all frames as stored.
    #[must_use]
    pub fn stored_len(&self) -> u32 {
        self.iter().map(|frame| frame.stored_len).sum()
    }

    /// The bytes for the manifest.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let (kind, lengths) = match &self.bodies {
            Bodies::AllRaw => (BODY_ALL_RAW, [].as_slice()),
            Bodies::Lengths(lengths) => (BODY_LENGTHS, lengths.as_slice()),
        };
        let mut out =
            Vec::with_capacity(HEADER_BYTES + SIZE_BYTES + 2 * lengths.len() + TRAILER_BYTES);
        let class = self.frame_size.class();
        out.extend_from_slice(&[TABLE_VERSION, self.suite.code(), class, kind]);
        out.extend_from_slice(&self.plain_len.to_le_bytes());
        if class == SIZE_OTHER {
            out.extend_from_slice(&self.frame_size.bytes.to_le_bytes());
        }
        for length in lengths {
            out.extend_from_slice(&length.to_le_bytes());
        }
        out.extend_from_slice(&crc32c(&out).to_le_bytes());
        out
    }

    /// Reads [`encode`](Self::encode)'s bytes; anything else, also trailing bytes, is an error.
    pub fn decode(bytes: &[u8]) -> Result<Self, TableError> {
        let short =
            TableError::Length { expected: HEADER_BYTES + TRAILER_BYTES, actual: bytes.len() };
        let (covered, sum) = bytes.split_last_chunk::<TRAILER_BYTES>().ok_or(short)?;
        let (header, rest) = covered.split_first_chunk::<HEADER_BYTES>().ok_or(short)?;
        let [version, suite, class, kind, plain_len @ ..] = *header;
        // Before the checksum: a later version may keep it elsewhere.
        if version != TABLE_VERSION {
            return Err(TableError::Version(version));
        }
        if crc32c(covered) != u32::from_le_bytes(*sum) {
            return Err(TableError::Checksum);
        }
        let suite = Suite::from_code(suite)
            .ok_or(TableError::Field { field: "suite", value: u32::from(suite) })?;
        let (frame_size, lengths) = decode_frame_size(class, rest)?;
        let plain_len = u32::from_le_bytes(plain_len);
        check_plain_len(plain_len)?;
        let wrong_kind = TableError::Field { field: "body kind", value: u32::from(kind) };
        let in_table = match kind {
            BODY_ALL_RAW => 0,
            BODY_LENGTHS => frame_size.frames_in(plain_len) as usize,
            _ => return Err(wrong_kind),
        };
        if lengths.len() != 2 * in_table {
            return Err(TableError::Length {
                expected: bytes.len() - lengths.len() + 2 * in_table,
                actual: bytes.len(),
            });
        }
        if kind == BODY_ALL_RAW {
            return Self::all_raw(suite, frame_size, plain_len);
        }
        let mut body_lens = Vec::with_capacity(in_table);
        for (frame, pair) in (0u32..).zip(lengths.chunks_exact(2)) {
            let stored = u32::from(u16::from_le_bytes([pair[0], pair[1]]));
            let plain = plain_of(frame_size, plain_len, frame);
            // A raw frame has one spelling: 0.
            if stored == plain {
                return Err(TableError::Body { frame, body_len: stored, plain_len: plain });
            }
            body_lens.push(if stored == 0 { plain } else { stored });
        }
        let table = Self::new(suite, frame_size, plain_len, &body_lens)?;
        // All raw spelled out in lengths would be a second encoding of the same table.
        if table.bodies == Bodies::AllRaw { Err(wrong_kind) } else { Ok(table) }
    }
}

/// The frame size, and what lies behind it. A power of two is never spelled out.
fn decode_frame_size(class: u8, rest: &[u8]) -> Result<(FrameSize, &[u8]), TableError> {
    let wrong = |value| TableError::Field { field: "frame size", value };
    if class != SIZE_OTHER {
        let bytes = 1u32.checked_shl(u32::from(class)).ok_or(wrong(u32::from(class)))?;
        return Ok((FrameSize::new(bytes).ok_or(wrong(u32::from(class)))?, rest));
    }
    let (size, rest) = rest
        .split_first_chunk::<SIZE_BYTES>()
        .ok_or(TableError::Length { expected: SIZE_BYTES, actual: rest.len() })?;
    let bytes = u32::from_le_bytes(*size);
    match FrameSize::new(bytes) {
        Some(size) if size.class() == SIZE_OTHER => Ok((size, rest)),
        Some(_) | None => Err(wrong(bytes)),
    }
}

fn check_plain_len(plain_len: u32) -> Result<(), TableError> {
    if plain_len > MAX_OBJECT_BYTES {
        return Err(TableError::Field { field: "plain length", value: plain_len });
    }
    Ok(())
}

/// Plain bytes of a frame that exists.
fn plain_of(frame_size: FrameSize, plain_len: u32, index: u32) -> u32 {
    (plain_len - index * frame_size.bytes()).min(frame_size.bytes())
}

#[cfg(test)]
pub(crate) mod tests;
