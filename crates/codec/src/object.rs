//! The whole pipeline in one call: an object's plain bytes to fragments, and back.
//!
//! What: [`Encoder`] runs compress → seal → lay out → erasure-code; [`Decoder`] verifies, rebuilds what is lost and
//! gives plain bytes. Both own reusable contexts and scratch buffers: one of each per worker.
//!
//! Why so: sealed frames are written one behind the other into a single buffer, in their final place (zstd
//! writes there and is sealed where it lies; a raw frame is encrypted from the caller's bytes to there), and
//! the data fragments are slices of that buffer. So a byte is written once on its way to a data fragment.
//!
//! Invariant: `decode(encode(x)) = x` with any m fragments missing or damaged, and never other bytes (L5).

use std::ops::Range;

use bytes::Bytes;
use thiserror::Error;

use crate::checksum::crc32c;
use crate::compress::{CompressError, Compression, Compressor, Decompressor, Level};
use crate::erasure::{ErasureCode, ErasureError};
use crate::frames::{
    Encoding, FrameInfo, FrameSize, FrameTable, MAX_OBJECT_BYTES, Suite, TableError,
};
use crate::layout::{FrameRead, Layout, PlanError};
use crate::seal::keys::{NamespaceKeys, PlainDigest};
use crate::seal::{ObjectBinding, ObjectSeal, SealError};

/// What a preset and a put attempt say about one object.
#[derive(Debug, Clone, Copy)]
pub struct EncodeParams<'a> {
    pub suite: Suite,
    pub frame_size: FrameSize,
    pub compression: Compression,
    pub keys: &'a NamespaceKeys,
    pub binding: ObjectBinding<'a>,
    /// Also says k and m.
    pub code: &'a dyn ErasureCode,
}

/// An object ready to be put.
#[derive(Debug, Clone)]
pub struct EncodedObject {
    /// For the manifest.
    pub table: FrameTable,
    /// Follows from table and k; kept so that nobody computes it twice.
    pub layout: Layout,
    /// k data fragments, then m parity fragments. Data fragments are slices of one buffer and may be empty.
    pub fragments: Vec<Bytes>,
    /// CRC-32C of each fragment, for the manifest.
    pub fragment_crcs: Vec<u32>,
    /// For the manifest: recognises a repeated put of the same bytes (P21).
    pub digest: PlainDigest,
}

/// An object that can't be encoded: always the caller's mistake (Refuse).
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum EncodeError {
    #[error("an object of {0} bytes: at most {MAX_OBJECT_BYTES} are possible")]
    TooLong(u64),
    #[error(transparent)]
    Seal(#[from] SealError),
    #[error(transparent)]
    Table(#[from] TableError),
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error(transparent)]
    Erasure(#[from] ErasureError),
    #[error(transparent)]
    Compress(#[from] CompressError),
}

/// Why an object or frame can't be decoded. [`DecodeError::is_damage`] classes it.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum DecodeError {
    #[error(transparent)]
    Seal(#[from] SealError),
    #[error("frame {frame}: {source}")]
    Frame { frame: u32, source: CompressError },
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error(transparent)]
    Erasure(#[from] ErasureError),
    #[error("seal, table, layout, code and fragments are not of one object")]
    Mismatch,
    #[error(transparent)]
    Start(CompressError),
}

impl DecodeError {
    /// The stored bytes are at fault: fetch other fragments and rebuild. Else the request is.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Seal(SealError::NotGenuine { .. } | SealError::Length { .. })
            | Self::Frame { .. }
            | Self::Erasure(ErasureError::NotEnough { .. }) => true,
            Self::Seal(SealError::ObjectId(_))
            | Self::Plan(_)
            | Self::Erasure(
                ErasureError::Count { .. }
                | ErasureError::Length { .. }
                | ErasureError::Index { .. },
            )
            | Self::Mismatch
            | Self::Start(_) => false,
        }
    }
}

/// Makes fragments of objects; one per worker.
#[derive(Debug)]
pub struct Encoder {
    compressor: Compressor,
    scratch: Vec<u8>,
}

impl Encoder {
    pub fn new() -> Result<Self, EncodeError> {
        Ok(Self { compressor: Compressor::new(Level::DEFAULT)?, scratch: Vec::new() })
    }

    /// Encodes an object given in pieces; where they are cut makes no difference to the result.
    pub fn encode(
        &mut self,
        params: &EncodeParams<'_>,
        pieces: &[&[u8]],
    ) -> Result<EncodedObject, EncodeError> {
        let total: u64 = pieces.iter().map(|piece| piece.len() as u64).sum();
        let plain_len = u32::try_from(total)
            .ok()
            .filter(|n| *n <= MAX_OBJECT_BYTES)
            .ok_or(EncodeError::TooLong(total))?;
        let (table, stream) = self.sealed_stream(params, plain_len, pieces)?;
        let layout = Layout::new(&table, params.code.shape().k())?;
        let fragments = fragments(params.code, &layout, &Bytes::from(stream))?;
        let fragment_crcs = fragments.iter().map(|fragment| crc32c(fragment)).collect();
        let digest = params.keys.digest(pieces, &mut self.scratch);
        Ok(EncodedObject { table, layout, fragments, fragment_crcs, digest })
    }

    fn sealed_stream(
        &mut self,
        params: &EncodeParams<'_>,
        plain_len: u32,
        pieces: &[&[u8]],
    ) -> Result<(FrameTable, Vec<u8>), EncodeError> {
        let (suite, frame_size) = (params.suite, params.frame_size);
        let seal = ObjectSeal::new(params.keys, suite, frame_size, plain_len, &params.binding)?;
        let frames = frame_size.frames_in(plain_len);
        // Zeroed by the allocator: for objects of usual size that is the kernel's fresh pages, not a pass.
        let mut stream = vec![0u8; (plain_len + frames * suite.trailer_bytes()) as usize];
        let mut body_lens = Vec::with_capacity(frames as usize);
        let mut cursor = Pieces { pieces, offset: 0 };
        let mut end = 0;
        for index in 0..frames {
            let plain_len = (plain_len - index * frame_size.bytes()).min(frame_size.bytes());
            let plain = cursor.take(plain_len as usize, &mut self.scratch);
            let slot = &mut stream[end..];
            let room = &mut slot[..plain.len()];
            let packed = self.compressor.try_compress(params.compression, plain, room);
            let body_len = packed.map_or(plain_len, |n| {
                u32::try_from(n).expect("a compressed frame is shorter than the frame")
            });
            let frame = FrameInfo::new(suite, index, plain_len, body_len);
            let stored = &mut slot[..frame.stored_len as usize];
            match packed {
                Some(_) => seal.seal_in_place(&frame, stored)?,
                None => seal.seal(&frame, plain, stored)?,
            }
            body_lens.push(body_len);
            end += stored.len();
        }
        stream.truncate(end);
        // Fragments may live long in a cache: give back what compression saved.
        stream.shrink_to_fit();
        Ok((FrameTable::new(suite, frame_size, plain_len, &body_lens)?, stream))
    }
}

/// Cuts the stream into data fragments and adds parity.
fn fragments(
    code: &dyn ErasureCode,
    layout: &Layout,
    stream: &Bytes,
) -> Result<Vec<Bytes>, EncodeError> {
    let mut start = 0;
    let mut fragments: Vec<Bytes> = Vec::with_capacity(usize::from(code.shape().fragments()));
    for len in layout.fragment_lens() {
        let end = start + *len as usize;
        fragments.push(stream.slice(start..end));
        start = end;
    }
    let stripe_len = layout.stripe_len() as usize;
    let mut parity: Vec<Vec<u8>> = (0..code.shape().m()).map(|_| vec![0; stripe_len]).collect();
    let data: Vec<&[u8]> = fragments.iter().map(Bytes::as_ref).collect();
    let mut out: Vec<&mut [u8]> = parity.iter_mut().map(Vec::as_mut_slice).collect();
    code.encode(&data, &mut out)?;
    fragments.extend(parity.into_iter().map(Bytes::from));
    Ok(fragments)
}

/// Reads plain bytes from pieces in order.
struct Pieces<'a> {
    pieces: &'a [&'a [u8]],
    offset: usize,
}

impl<'a> Pieces<'a> {
    /// The next `len` bytes, which exist: straight from a piece, or gathered where they span several.
    fn take<'s>(&mut self, len: usize, scratch: &'s mut Vec<u8>) -> &'s [u8]
    where
        'a: 's,
    {
        self.skip_finished();
        if let Some(piece) = self.pieces.first()
            && piece.len() - self.offset >= len
        {
            let taken = &piece[self.offset..self.offset + len];
            self.offset += len;
            return taken;
        }
        scratch.clear();
        while scratch.len() < len {
            let piece = self.pieces.first().expect("the lengths were summed from these pieces");
            let rest = &piece[self.offset..];
            let n = rest.len().min(len - scratch.len());
            scratch.extend_from_slice(&rest[..n]);
            self.offset += n;
            self.skip_finished();
        }
        scratch
    }

    fn skip_finished(&mut self) {
        while let Some((piece, rest)) = self.pieces.split_first()
            && self.offset == piece.len()
        {
            self.pieces = rest;
            self.offset = 0;
        }
    }
}

/// Fragments as they were fetched, with the manifest's facts of them.
#[derive(Debug, Clone, Copy)]
pub struct StoredObject<'a> {
    pub table: &'a FrameTable,
    pub layout: &'a Layout,
    /// One place per fragment, data then parity; `None` is lost or not fetched.
    pub fragments: &'a [Option<Bytes>],
    /// CRC-32C of each fragment from the manifest.
    pub fragment_crcs: &'a [u32],
}

/// Gives plain bytes back; one per worker.
#[derive(Debug)]
pub struct Decoder {
    decompressor: Decompressor,
    body: Vec<u8>,
    plain: Vec<u8>,
}

impl Decoder {
    pub fn new() -> Result<Self, DecodeError> {
        let decompressor = Decompressor::new().map_err(DecodeError::Start)?;
        Ok(Self { decompressor, body: Vec::new(), plain: Vec::new() })
    }

    /// Verifies one stored frame and writes its plain bytes to `out`, which has the frame's plain length.
    ///
    /// After an error the content of `out` means nothing.
    pub fn decode_frame(
        &mut self,
        seal: &ObjectSeal,
        frame: &FrameInfo,
        stored: &[u8],
        out: &mut [u8],
    ) -> Result<(), DecodeError> {
        if out.len() != frame.plain_len as usize {
            return Err(DecodeError::Mismatch);
        }
        match frame.encoding {
            Encoding::Raw => Ok(seal.open(frame, stored, out)?),
            Encoding::Zstd => {
                self.body.resize(frame.body_len as usize, 0);
                seal.open(frame, stored, &mut self.body)?;
                self.decompressor
                    .decompress(&self.body, out)
                    .map_err(|source| DecodeError::Frame { frame: frame.index, source })
            }
        }
    }

    /// As [`Self::decode_frame`], behind what `out` holds already; its room isn't filled with zeroes first.
    pub fn append_frame(
        &mut self,
        seal: &ObjectSeal,
        frame: &FrameInfo,
        stored: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), DecodeError> {
        let (start, len) = (out.len(), frame.plain_len as usize);
        match frame.encoding {
            Encoding::Raw => {
                out.resize(start + len, 0);
                Ok(seal.open(frame, stored, &mut out[start..])?)
            }
            Encoding::Zstd => {
                self.body.resize(frame.body_len as usize, 0);
                seal.open(frame, stored, &mut self.body)?;
                self.decompressor
                    .append(&self.body, out, len)
                    .map_err(|source| DecodeError::Frame { frame: frame.index, source })
            }
        }
    }

    /// Decodes one frame of a read plan into its place in the read's answer.
    pub fn decode_read(
        &mut self,
        seal: &ObjectSeal,
        read: &FrameRead,
        stored: &[u8],
        answer: &mut [u8],
    ) -> Result<(), DecodeError> {
        let start = read.out_offset as usize;
        let wanted = read.slice.start as usize..read.slice.end as usize;
        let out = answer.get_mut(start..start + wanted.len()).ok_or(DecodeError::Mismatch)?;
        if wanted.len() == read.info.plain_len as usize {
            return self.decode_frame(seal, &read.info, stored, out);
        }
        let mut plain = std::mem::take(&mut self.plain);
        plain.resize(read.info.plain_len as usize, 0);
        let decoded = self.decode_frame(seal, &read.info, stored, &mut plain);
        if decoded.is_ok() {
            out.copy_from_slice(&plain[wanted]);
        }
        self.plain = plain;
        decoded
    }

    /// Decodes the plain bytes `range`. Fragments that are missing, or don't match their checksum, are rebuilt.
    pub fn decode(
        &mut self,
        seal: &ObjectSeal,
        object: &StoredObject<'_>,
        code: &dyn ErasureCode,
        range: Range<u32>,
    ) -> Result<Vec<u8>, DecodeError> {
        let n = usize::from(code.shape().fragments());
        if object.fragments.len() != n
            || object.fragment_crcs.len() != n
            || object.layout.k() != code.shape().k()
            || !seal.fits(object.table)
        {
            return Err(DecodeError::Mismatch);
        }
        let reads = object.layout.plan_read(object.table, range.clone())?;
        let data = object.whole_data(code, &reads)?;
        let mut answer = vec![0; range.len()];
        for read in &reads {
            let place = read.stored_range();
            let fragment = &data[usize::from(read.place.fragment)];
            let stored = fragment
                .get(place.start as usize..place.end as usize)
                .ok_or(DecodeError::Mismatch)?;
            self.decode_read(seal, read, stored, &mut answer)?;
        }
        Ok(answer)
    }
}

impl StoredObject<'_> {
    /// A fragment that is there and is what was put. An empty data fragment always is.
    fn sound(&self, fragment: u8) -> Option<Bytes> {
        let len = self.layout.fragment_len(fragment) as usize;
        if len == 0 {
            return Some(Bytes::new());
        }
        let at = usize::from(fragment);
        let sound = |bytes: &&Bytes| bytes.len() == len && crc32c(bytes) == self.fragment_crcs[at];
        self.fragments[at].as_ref().filter(sound).cloned()
    }

    /// The data fragments the reads need, rebuilt where they must be; others stay as found, or empty.
    fn whole_data(
        &self,
        code: &dyn ErasureCode,
        reads: &[FrameRead],
    ) -> Result<Vec<Bytes>, DecodeError> {
        let shape = code.shape();
        let mut data: Vec<Option<Bytes>> = (0..shape.k()).map(|i| self.sound(i)).collect();
        let missing: Vec<u8> = (0..shape.k())
            .filter(|i| data[usize::from(*i)].is_none())
            .filter(|i| reads.iter().any(|read| read.place.fragment == *i))
            .collect();
        if !missing.is_empty() {
            let have: Vec<(u8, Bytes)> = (0..shape.k())
                .filter_map(|i| Some((i, data[usize::from(i)].clone()?)))
                .chain((shape.k()..shape.fragments()).filter_map(|i| Some((i, self.sound(i)?))))
                .collect();
            let have: Vec<(u8, &[u8])> = have.iter().map(|(i, b)| (*i, b.as_ref())).collect();
            let mut rebuilt: Vec<Vec<u8>> =
                missing.iter().map(|i| vec![0; self.layout.fragment_len(*i) as usize]).collect();
            let mut want: Vec<(u8, &mut [u8])> =
                missing.iter().copied().zip(rebuilt.iter_mut().map(Vec::as_mut_slice)).collect();
            code.reconstruct(self.layout.stripe_len() as usize, &have, &mut want)?;
            for (i, bytes) in missing.iter().zip(rebuilt) {
                data[usize::from(*i)] = Some(Bytes::from(bytes));
            }
        }
        Ok(data.into_iter().map(Option::unwrap_or_default).collect())
    }
}
