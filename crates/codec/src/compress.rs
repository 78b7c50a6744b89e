//! zstd per frame, kept only where it pays.
//!
//! What: reusable contexts (a zstd context is hundreds of KiB, so one per worker) that compress a frame
//! straight into its place in the sealed stream, and decompress it into a buffer of the known size.
//!
//! Why so: compression costs more than all other stages together. Adaptive mode therefore first looks at
//! 1 KiB of the frame, and leaves alone what looks like noise; under load it takes a faster level. A frame that saves less than an eighth is
//! stored raw, so that reading it costs nothing.
//!
//! Invariant: a compressed frame is strictly shorter than its plain bytes. Decompression never allocates beyond
//! the plain length the frame table states.

use std::io::Cursor;

use thiserror::Error;

/// A zstd level that was checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Level(i8);

impl Level {
    /// What a preset uses that says nothing: a third of the CPU of zstd's own default.
    pub const DEFAULT: Self = Self(1);

    /// What adaptive mode uses under load: a quarter of the CPU of level 1 on half-compressible data, for 2 % more bytes.
    pub const HURRIED: Self = Self(-7);

    /// Levels -7 (fastest) to 19 (smallest) except 0, which zstd reads as "your default".
    #[must_use]
    pub fn new(level: i8) -> Option<Self> {
        ((-7..=19).contains(&level) && level != 0).then_some(Self(level))
    }

    #[must_use]
    pub fn get(self) -> i8 {
        self.0
    }
}

/// What a preset says about compression.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Every frame is stored raw.
    Off,
    /// Frames that look like noise are stored raw unseen, the others are tried.
    Adaptive(Level),
    /// Every frame is tried.
    Always(Level),
}

impl Compression {
    /// What to do while other objects wait for the processor: adaptive mode then takes the speed of the fast levels, which
    /// leave literals as they are, over their size. Who asked for "always" gets what they asked for.
    #[must_use]
    pub fn under_load(self) -> Self {
        match self {
            Self::Adaptive(level) => Self::Adaptive(level.min(Level::HURRIED)),
            Self::Off | Self::Always(_) => self,
        }
    }
}

/// zstd itself failed or the data is not what the frame table says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum CompressError {
    #[error("zstd refused to start a context")]
    Context,
    #[error("the compressed frame does not hold {expected} plain bytes")]
    Damaged { expected: usize },
}

/// Bytes of a frame that the entropy probe looks at.
const SAMPLE_BYTES: usize = 1024;
/// The sample is taken in this many equal pieces spread over the frame.
const SAMPLE_PIECES: usize = 8;
/// Sum of squared byte counts of a sample below which it counts as noise. 1024 random bytes give
/// 5116 ± 90; bytes drawn evenly from 180 values (which order-0 coding shrinks by 6 %) give about 6800.
const NOISE_BELOW: u32 = 6500;

/// Whether a frame's bytes look incompressible. Deterministic, integer arithmetic only.
#[must_use]
pub fn looks_like_noise(frame: &[u8]) -> bool {
    if frame.len() < 2 * SAMPLE_BYTES {
        return false;
    }
    let mut counts = [0u32; 256];
    let piece = SAMPLE_BYTES / SAMPLE_PIECES;
    let stride = (frame.len() - piece) / (SAMPLE_PIECES - 1);
    for i in 0..SAMPLE_PIECES {
        for byte in &frame[i * stride..i * stride + piece] {
            counts[usize::from(*byte)] += 1;
        }
    }
    counts.iter().map(|n| n * n).sum::<u32>() < NOISE_BELOW
}

/// Longest compressed form of a frame worth keeping: an eighth must be saved.
#[must_use]
pub fn worth_at_most(plain: usize) -> usize {
    plain - plain.div_ceil(8)
}

/// Compresses frames; keep one per worker.
pub struct Compressor {
    context: zstd::bulk::Compressor<'static>,
    level: Level,
}

impl Compressor {
    pub fn new(level: Level) -> Result<Self, CompressError> {
        let context = zstd::bulk::Compressor::new(i32::from(level.get()))
            .map_err(|_| CompressError::Context)?;
        Ok(Self { context, level })
    }

    /// Compresses `plain` to the start of `out` if the mode allows and it pays. `None`: store it raw.
    ///
    /// `out` should hold [`worth_at_most`] bytes; less only makes raw more likely.
    pub fn try_compress(
        &mut self,
        mode: Compression,
        plain: &[u8],
        out: &mut [u8],
    ) -> Option<usize> {
        let level = match mode {
            Compression::Off => return None,
            Compression::Adaptive(_) if looks_like_noise(plain) => return None,
            Compression::Adaptive(level) | Compression::Always(level) => level,
        };
        let limit = worth_at_most(plain.len()).min(out.len());
        if limit == 0 {
            return None;
        }
        if level != self.level {
            self.context.set_compression_level(i32::from(level.get())).ok()?;
            self.level = level;
        }
        // zstd gives up by itself, with an error, once the result can't fit: that is the verdict "raw".
        self.context.compress_to_buffer(plain, &mut out[..limit]).ok().filter(|n| *n > 0)
    }
}

impl std::fmt::Debug for Compressor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Compressor").field("level", &self.level).finish_non_exhaustive()
    }
}

/// Decompresses frames; keep one per worker.
pub struct Decompressor(zstd::bulk::Decompressor<'static>);

impl Decompressor {
    pub fn new() -> Result<Self, CompressError> {
        zstd::bulk::Decompressor::new().map(Self).map_err(|_| CompressError::Context)
    }

    /// Decompresses into `plain`, which has exactly the frame's plain length: less or more is damage.
    pub fn decompress(&mut self, packed: &[u8], plain: &mut [u8]) -> Result<(), CompressError> {
        let expected = plain.len();
        match self.0.decompress_to_buffer(packed, plain) {
            Ok(n) if n == expected => Ok(()),
            Ok(_) | Err(_) => Err(CompressError::Damaged { expected }),
        }
    }

    /// Decompresses exactly `expected` bytes behind what `out` holds.
    pub fn append(
        &mut self,
        packed: &[u8],
        out: &mut Vec<u8>,
        expected: usize,
    ) -> Result<(), CompressError> {
        let start = out.len();
        // A frame that holds more than it says may fill the spare room, and is then refused and cut off.
        out.reserve(expected);
        let mut end = Cursor::new(std::mem::take(out));
        end.set_position(start as u64);
        let done = self.0.decompress_to_buffer(packed, &mut end);
        *out = end.into_inner();
        match done {
            Ok(n) if n == expected && out.len() == start + expected => Ok(()),
            Ok(_) | Err(_) => {
                out.truncate(start);
                Err(CompressError::Damaged { expected })
            }
        }
    }
}

impl std::fmt::Debug for Decompressor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Decompressor")
    }
}

#[cfg(test)]
mod tests;
