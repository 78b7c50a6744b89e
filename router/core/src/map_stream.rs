//! A whole page map on its way: to the backend as a checkpoint, or to another router. Parts of bounded size, each with
//! the state whose map it is of: first the epochs, then the pages, as they are stored.
//!
//! Who takes it checks what opening a stored map checks: each page's checksum, and that number and digest of all that
//! came are what the state says. What is short, doubled, mixed from two maps, or damaged is refused as a whole (L5, L6).
//!
//! Invariant: an [`Assembly`] that finished has taken exactly the map that its state describes.

use std::time::Duration;

use bytes::Bytes;
use model::{Epoch, MapGeneration, ScoNumber, VdiskId};
use wire::{Decode, DecodeError, Encode, Reader};

use crate::crc32c;
use crate::map::Totals;
use crate::map_state::MapState;
use crate::page::{PAGE_BYTES, Page, page_key};

const MAGIC: u32 = u32::from_le_bytes(*b"HFPM");
const VERSION: u8 = 1;
/// Magic, version, vDisk, state, part, last, two counts, checksum; the state is 70 bytes.
const FRAME_BYTES: usize = 4 + 1 + 16 + (4 + 70) + 4 + 1 + 4 + 4 + 4;
const EPOCH_BYTES: usize = 8 + 8;
/// The only generation so far.
const GENERATION: MapGeneration = MapGeneration(0);
/// The smallest part that holds a page.
pub const PART_MIN: usize = FRAME_BYTES + 8 + 4 + PAGE_BYTES;

/// For how long a map may be read out: meanwhile files that nobody else needs stay on disk (L8).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// From one part to the asking for the next.
    pub idle: Duration,
    /// In all, for a map of no size, and how many of its bytes a second more.
    pub whole: Duration,
    pub bytes_per_s: u64,
    /// In all, for any.
    pub whole_max: Duration,
}

/// For another router: twice as long as that one waits itself ([`crate::origin::patience`]).
pub const LOAN: Limits = Limits {
    idle: Duration::from_secs(30),
    whole: Duration::from_secs(60),
    bytes_per_s: 5_000_000,
    whole_max: Duration::from_secs(3600),
};
/// For a checkpoint: a slow backend may take long for each part.
pub const CHECKPOINT: Limits = Limits {
    idle: Duration::from_secs(90),
    whole: Duration::from_secs(1200),
    bytes_per_s: 1_000_000,
    whole_max: Duration::from_secs(4 * 3600),
};
/// Of a mapped cluster in a full page.
const LOCATION_BYTES: u64 = 8;

impl Limits {
    /// How long reading out a map of so many mapped clusters may take in all.
    #[must_use]
    pub fn life(&self, mapped: u64) -> Duration {
        let bytes = mapped.saturating_mul(LOCATION_BYTES);
        let sized = Duration::from_secs(bytes / self.bytes_per_s);
        self.whole.saturating_add(sized).min(self.whole_max)
    }
}

/// One part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    pub vdisk: VdiskId,
    /// Of the whole map; the same in all parts.
    pub state: MapState,
    /// From 0.
    pub index: u32,
    pub last: bool,
    /// (first SCO number, epoch of the SCOs from it on), ascending.
    pub epochs: Vec<(ScoNumber, Epoch)>,
    /// (number, bytes as stored under the page's key), ascending.
    pub pages: Vec<(u64, Bytes)>,
}

/// Why a map on its way can't be believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    #[error("a part of a page map fails its checksum")]
    Checksum,
    #[error("not a part of a page map of a known version")]
    Version,
    #[error(transparent)]
    Decode(#[from] DecodeError),
    #[error("a part of a page map doesn't belong here: {0}")]
    Strange(&'static str),
    #[error("page {0} fails its checksum")]
    Page(u64),
    #[error("some of the page map is missing: {0}")]
    Short(&'static str),
}

impl Part {
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let pages: usize = self.pages.iter().map(|(_, page)| 12 + page.len()).sum();
        let mut out = Vec::with_capacity(FRAME_BYTES + self.epochs.len() * EPOCH_BYTES + pages);
        MAGIC.encode(&mut out);
        VERSION.encode(&mut out);
        self.vdisk.encode(&mut out);
        Bytes::from(self.state.encode()).encode(&mut out);
        self.index.encode(&mut out);
        self.last.encode(&mut out);
        self.epochs.encode(&mut out);
        self.pages.encode(&mut out);
        crc32c(&out).encode(&mut out);
        out
    }

    /// # Errors
    /// When the bytes aren't a whole part.
    pub fn decode(bytes: &Bytes) -> Result<Self, StreamError> {
        let Some((body, crc)) = bytes.split_last_chunk::<4>() else {
            return Err(StreamError::Checksum);
        };
        if crc32c(body) != u32::from_le_bytes(*crc) {
            return Err(StreamError::Checksum);
        }
        let mut from = Reader::new(bytes.slice(..bytes.len() - 4));
        if u32::decode(&mut from)? != MAGIC || u8::decode(&mut from)? != VERSION {
            return Err(StreamError::Version);
        }
        let vdisk = Decode::decode(&mut from)?;
        let state = MapState::decode(&Bytes::decode(&mut from)?).ok_or(StreamError::Version)?;
        let part = Self {
            vdisk,
            state,
            index: Decode::decode(&mut from)?,
            last: Decode::decode(&mut from)?,
            epochs: Decode::decode(&mut from)?,
            pages: Decode::decode(&mut from)?,
        };
        match from.remaining() {
            0 => Ok(part),
            extra => Err(DecodeError::Trailing { extra }.into()),
        }
    }
}

/// Cuts a map into parts.
#[derive(Debug)]
pub struct Cutter {
    next: Part,
    bytes: usize,
    bytes_max: usize,
}

impl Cutter {
    /// Parts of at most so many bytes.
    ///
    /// # Panics
    /// When not even one page fits: a bug.
    #[must_use]
    pub fn new(vdisk: VdiskId, state: MapState, bytes_max: usize) -> Self {
        assert!(PART_MIN <= bytes_max, "{bytes_max} bytes hold no page");
        let (epochs, pages) = (Vec::new(), Vec::new());
        let next = Part { vdisk, state, index: 0, last: false, epochs, pages };
        Self { next, bytes: FRAME_BYTES, bytes_max }
    }

    /// The part that is full without this one, if it is.
    pub fn epoch(&mut self, first: ScoNumber, epoch: Epoch) -> Option<Part> {
        let full = self.room_for(EPOCH_BYTES);
        self.next.epochs.push((first, epoch));
        full
    }

    /// As [`Self::epoch`]; after all epochs.
    pub fn page(&mut self, number: u64, stored: Bytes) -> Option<Part> {
        let full = self.room_for(8 + 4 + stored.len());
        self.next.pages.push((number, stored));
        full
    }

    fn room_for(&mut self, bytes: usize) -> Option<Part> {
        if self.bytes + bytes <= self.bytes_max {
            self.bytes += bytes;
            return None;
        }
        self.bytes = FRAME_BYTES + bytes;
        let Part { vdisk, ref state, index, .. } = self.next;
        let (epochs, pages) = (Vec::new(), Vec::new());
        let (state, index) = (state.clone(), index + 1);
        let next = Part { vdisk, state, index, last: false, epochs, pages };
        Some(std::mem::replace(&mut self.next, next))
    }

    #[must_use]
    pub fn finish(self) -> Part {
        Part { last: true, ..self.next }
    }
}

/// Takes the parts of one map, and believes them only as a whole.
#[derive(Debug)]
pub struct Assembly {
    vdisk: VdiskId,
    state: Option<MapState>,
    parts: u32,
    ended: bool,
    next_epoch: u64,
    epochs: u64,
    next_page: u64,
    totals: Totals,
}

impl Assembly {
    #[must_use]
    pub fn new(vdisk: VdiskId) -> Self {
        Self {
            vdisk,
            state: None,
            parts: 0,
            ended: false,
            next_epoch: 0,
            epochs: 0,
            next_page: 0,
            totals: Totals::default(),
        }
    }

    /// The next part.
    ///
    /// # Errors
    /// When it isn't the next part of this map, or a page in it is damaged; nothing of the map may be used then.
    pub fn take(&mut self, part: &Part) -> Result<(), StreamError> {
        if part.vdisk != self.vdisk || self.ended || part.index != self.parts {
            return Err(StreamError::Strange("another vDisk's, or out of order"));
        }
        if part.state.object.is_none_or(|object| object.vdisk != self.vdisk) {
            return Err(StreamError::Strange("its state names no TLog of the vDisk"));
        }
        if *self.state.get_or_insert_with(|| part.state.clone()) != part.state {
            return Err(StreamError::Strange("of another state than the part before"));
        }
        // Only what brings the end nearer is taken: else a map could be sent without end (L8).
        if part.epochs.is_empty() && part.pages.is_empty() && !(part.index == 0 && part.last) {
            return Err(StreamError::Strange("it is empty"));
        }
        for (first, _) in &part.epochs {
            if first.0 < self.next_epoch || 0 < self.next_page {
                return Err(StreamError::Strange("epochs aren't in order"));
            }
            self.next_epoch = first.0.saturating_add(1);
            self.epochs += 1;
        }
        for (number, stored) in &part.pages {
            if *number < self.next_page || *number == u64::MAX {
                return Err(StreamError::Strange("pages aren't in order"));
            }
            let key = page_key(self.vdisk, *number, GENERATION);
            let page = Page::decode(&key, stored).ok_or(StreamError::Page(*number))?;
            if page.is_empty() {
                return Err(StreamError::Strange("a page in which nothing is mapped"));
            }
            self.totals.add_page(*number, &page);
            self.next_page = number + 1;
        }
        if part.state.epochs < self.epochs || part.state.totals.mapped < self.totals.mapped {
            return Err(StreamError::Strange("more than its state says"));
        }
        self.parts += 1;
        self.ended = part.last;
        Ok(())
    }

    /// The state of what was taken, which is all of it.
    ///
    /// # Errors
    /// When parts, pages or epochs are missing.
    pub fn finish(&self) -> Result<&MapState, StreamError> {
        let state = self.state.as_ref().filter(|_| self.ended);
        let state = state.ok_or(StreamError::Short("its last part"))?;
        if self.epochs != state.epochs {
            return Err(StreamError::Short("epochs"));
        }
        if self.totals != state.totals {
            return Err(StreamError::Short("pages, or they aren't of this state"));
        }
        Ok(state)
    }
}

#[cfg(test)]
mod tests;
