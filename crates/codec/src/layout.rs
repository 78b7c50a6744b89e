//! Where each frame lies: which fragment, which offset; and what a read of plain bytes must fetch.
//!
//! What: the sealed stream (all stored frames, one behind the other) is cut into k data fragments at
//! frame borders: **a frame belongs to the fragment in whose k-th of the stream its middle lies**.
//!
//! Why so: whole frames only, so a cold 4 KiB read touches one frame of one fragment (P25); fragments stay
//! slices of the stream, so making them copies nothing and reading on stays on one disk; the rule needs
//! no search and depends on (table, k) alone, so nothing of it is stored. No fragment is longer than
//! a k-th of the stream plus one frame.
//!
//! Invariant: the frames of fragments 0..k in order are the sealed stream. A fragment without frames is
//! empty: it needs no storing and is never lost. Towards the erasure code every data fragment counts as
//! zero-padded to [`Layout::stripe_len`], the longest; parity fragments have exactly that length.

use std::ops::Range;

use thiserror::Error;

use crate::erasure::MAX_FRAGMENTS;
use crate::frames::{FrameInfo, FrameTable};

/// A request the table can't answer: the caller's mistake, never damage.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PlanError {
    #[error("{0} data fragments: 1 to {MAX_FRAGMENTS} are possible")]
    DataFragments(u8),
    #[error("bytes {start}..{end} of an object of {plain_len}", start = range.start, end = range.end)]
    Range { range: Range<u32>, plain_len: u32 },
}

/// Place of one stored frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FramePlace {
    /// Data fragment, 0..k.
    pub fragment: u8,
    /// First byte in the fragment.
    pub offset: u32,
    /// Bytes there, trailer included.
    pub stored_len: u32,
}

/// Places of all frames, for one table and k.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    places: Vec<FramePlace>,
    fragment_lens: Vec<u32>,
    stripe_len: u32,
}

impl Layout {
    pub fn new(table: &FrameTable, k: u8) -> Result<Self, PlanError> {
        if k == 0 || k > MAX_FRAGMENTS {
            return Err(PlanError::DataFragments(k));
        }
        let twice_total = 2 * u64::from(table.stored_len());
        let mut places = Vec::with_capacity(table.frames() as usize);
        let mut fragment_lens = vec![0u32; usize::from(k)];
        let mut start = 0u64;
        for frame in table.iter() {
            let stored = u64::from(frame.stored_len);
            let fragment = u8::try_from((2 * start + stored) * u64::from(k) / twice_total)
                .expect("a frame's middle lies inside the stream, so the quotient is below k");
            let len = &mut fragment_lens[usize::from(fragment)];
            places.push(FramePlace { fragment, offset: *len, stored_len: frame.stored_len });
            *len += frame.stored_len;
            start += stored;
        }
        let stripe_len = fragment_lens.iter().copied().max().unwrap_or(0);
        Ok(Self { places, fragment_lens, stripe_len })
    }

    /// Number of data fragments.
    #[must_use]
    pub fn k(&self) -> u8 {
        u8::try_from(self.fragment_lens.len()).expect("k was a u8")
    }

    /// Length of each data fragment as stored, without padding.
    #[must_use]
    pub fn fragment_lens(&self) -> &[u32] {
        &self.fragment_lens
    }

    /// Stored length of any fragment, data or parity.
    #[must_use]
    pub fn fragment_len(&self, fragment: u8) -> u32 {
        self.fragment_lens.get(usize::from(fragment)).copied().unwrap_or(self.stripe_len)
    }

    /// Length of the parity fragments, and of the data fragments in the erasure code's eyes.
    #[must_use]
    pub fn stripe_len(&self) -> u32 {
        self.stripe_len
    }

    /// Place of a frame; `None` beyond the last.
    #[must_use]
    pub fn place(&self, frame: u32) -> Option<FramePlace> {
        self.places.get(frame as usize).copied()
    }

    /// The part of `range` (offsets in the stripe) that a fragment really stores. Parity is linear per
    /// byte position, so a lost frame is rebuilt from just these ranges of k other fragments.
    #[must_use]
    pub fn clip(&self, fragment: u8, range: &Range<u32>) -> Range<u32> {
        let len = self.fragment_len(fragment);
        range.start.min(len)..range.end.min(len)
    }

    /// What a read of plain bytes `range` must fetch, frame by frame, in order.
    pub fn plan_read(
        &self,
        table: &FrameTable,
        range: Range<u32>,
    ) -> Result<Vec<FrameRead>, PlanError> {
        assert_eq!(self.places.len(), table.frames() as usize, "a layout of another table");
        if range.start > range.end || range.end > table.plain_len() {
            return Err(PlanError::Range { range, plain_len: table.plain_len() });
        }
        if range.is_empty() {
            return Ok(Vec::new());
        }
        let size = table.frame_size().bytes();
        let frames = range.start / size..range.end.div_ceil(size);
        let mut reads = Vec::with_capacity(frames.len());
        for (info, place) in frames.filter_map(|i| Some((table.frame(i)?, self.place(i)?))) {
            let start = info.index * size;
            let from = range.start.max(start) - start;
            let to = (range.end - start).min(info.plain_len);
            let out_offset = start + from - range.start;
            reads.push(FrameRead { info, place, slice: from..to, out_offset });
        }
        Ok(reads)
    }
}

/// One frame of a read: where it lies and which of its plain bytes are wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrameRead {
    pub info: FrameInfo,
    pub place: FramePlace,
    /// Wanted plain bytes within the frame.
    pub slice: Range<u32>,
    /// Where they go in the read's answer.
    pub out_offset: u32,
}

impl FrameRead {
    /// The frame's bytes in its fragment.
    #[must_use]
    pub fn stored_range(&self) -> Range<u32> {
        self.place.offset..self.place.offset + self.place.stored_len
    }
}

/// Bytes of one fragment to fetch in one go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FragmentRange {
    pub fragment: u8,
    pub range: Range<u32>,
}

/// Joins the neighbouring frames of a plan into one range per fragment.
#[must_use]
pub fn coalesce(reads: &[FrameRead]) -> Vec<FragmentRange> {
    let mut ranges: Vec<FragmentRange> = Vec::new();
    for read in reads {
        let next = read.stored_range();
        match ranges.last_mut() {
            Some(last) if last.fragment == read.place.fragment && last.range.end == next.start => {
                last.range.end = next.end;
            }
            Some(_) | None => {
                ranges.push(FragmentRange { fragment: read.place.fragment, range: next });
            }
        }
    }
    ranges
}

#[cfg(test)]
mod tests;
