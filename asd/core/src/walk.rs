//! Walks a segment from header to header and finds every record that begins in it.
//!
//! Sans-io: it says which bytes it needs and is fed them. Data is skipped, so a walk reads little where the chain is
//! whole. Where it isn't, every possible beginning of a record is tried: that is the resync after damage, and the search
//! of the unused end for what a crash left there.
//!
//! It judges nothing but place and checksum: what of the found counts is for [`crate::settle`] to say.
//!
//! Invariant: records come in order of offset, don't overlap, and none has a lap that was freed.

use crate::record::{ALIGN, FIXED_LEN, Header, Kind, RecordError};
use crate::segment::HEADER_ROOM;
use bytes::Bytes;
use model::{Lap, OsdId};

/// Bytes asked for while the chain is whole: a header and a little more.
const PEEK: usize = 4096;
/// Bytes asked for while searching.
const SEARCH: usize = 256 << 10;

/// What the index needs to know of a record. The data stays where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    pub kind: Kind,
    pub key: Bytes,
    pub data_len: u32,
    pub number: u32,
    pub lap: Lap,
    pub offset: u64,
    pub seq: u64,
    pub synced: u64,
    pub prev_end: u64,
}

impl Placed {
    #[must_use]
    pub fn of(header: &Header) -> Self {
        Self {
            kind: header.kind,
            key: header.key.clone(),
            data_len: header.data_len,
            number: header.number,
            lap: header.lap,
            offset: header.offset,
            seq: header.seq,
            synced: header.synced,
            prev_end: header.prev_end,
        }
    }

    #[must_use]
    pub fn record_len(&self) -> u64 {
        crate::record::record_len(self.key.len(), model::usize_of(self.data_len.into()))
    }

    #[must_use]
    pub fn end(&self) -> u64 {
        self.offset + self.record_len()
    }
}

/// What the walk wants next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Read these bytes and [`Walk::feed`] them.
    Need {
        offset: u64,
        len: usize,
    },
    Found(Placed),
    End,
}

#[derive(Debug)]
pub struct Walk {
    osd: OsdId,
    /// Records of this lap and earlier ones are dead.
    freed: Lap,
    at: u64,
    end: u64,
    searching: bool,
    window: Vec<u8>,
    window_at: u64,
}

impl Walk {
    /// A walk over a file of `file_len` bytes, from `from` on.
    #[must_use]
    pub fn new(osd: OsdId, freed: Lap, file_len: u64, from: u64) -> Self {
        Self {
            osd,
            freed,
            at: from.max(HEADER_ROOM),
            end: file_len.saturating_sub(HEADER_ROOM),
            searching: false,
            window: Vec::new(),
            window_at: 0,
        }
    }

    /// The bytes that [`Step::Need`] asked for.
    pub fn feed(&mut self, offset: u64, bytes: Vec<u8>) {
        self.window_at = offset;
        self.window = bytes;
    }

    pub fn step(&mut self) -> Step {
        while self.at + model::u64_of(FIXED_LEN) <= self.end {
            let here = self.window_here();
            let found = if here.len() < FIXED_LEN {
                Err(RecordError::Short(FIXED_LEN))
            } else {
                Header::decode(here, self.osd, self.at)
            };
            match found {
                Err(RecordError::Short(len)) if self.at + model::u64_of(len) <= self.end => {
                    return self.need(len);
                }
                Ok(header) if header.lap > self.freed && header.end() <= self.end => {
                    self.at = header.end();
                    self.searching = false;
                    return Step::Found(Placed::of(&header));
                }
                Ok(_) | Err(_) => {
                    self.at += ALIGN;
                    self.searching = true;
                }
            }
        }
        Step::End
    }

    fn window_here(&self) -> &[u8] {
        self.at
            .checked_sub(self.window_at)
            .and_then(|skip| self.window.get(model::usize_of(skip)..))
            .unwrap_or(&[])
    }

    fn need(&self, at_least: usize) -> Step {
        let wish = if self.searching { SEARCH } else { PEEK }.max(at_least);
        let rest = model::usize_of(self.end - self.at);
        Step::Need { offset: self.at, len: wish.min(rest) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OSD: OsdId = OsdId(1);

    fn put(image: &mut [u8], lap: u64, offset: u64, number: u32, data: &[u8]) -> u64 {
        let header = Header {
            kind: Kind::Put,
            key: Bytes::from_static(b"key"),
            data_len: model::u32_of(data.len()),
            number,
            osd: OSD,
            lap: Lap(lap),
            offset,
            seq: 1,
            synced: 0,
            prev_end: 0,
            checksums: crate::crc::blocks(data),
        };
        let start = model::usize_of(offset);
        let encoded = header.encode();
        image[start..start + encoded.len()].copy_from_slice(&encoded);
        image[start + encoded.len()..start + encoded.len() + data.len()].copy_from_slice(data);
        header.end()
    }

    fn walk(image: &[u8], freed: u64) -> Vec<(u64, u64)> {
        let mut walk = Walk::new(OSD, Lap(freed), model::u64_of(image.len()), 0);
        let mut found = Vec::new();
        loop {
            match walk.step() {
                Step::Need { offset, len } => {
                    let start = model::usize_of(offset);
                    walk.feed(offset, image[start..start + len].to_vec());
                }
                Step::Found(placed) => found.push((placed.lap.0, placed.offset)),
                Step::End => return found,
            }
        }
    }

    #[test]
    fn a_chain_is_followed_and_searched_for_after_damage() {
        let mut image = vec![0; 1 << 20];
        let second = put(&mut image, 2, 4096, 0, &[1; 10_000]);
        let third = put(&mut image, 2, second, 1, &[2; 300_000]);
        let end = put(&mut image, 2, third, 2, &[]);
        assert_eq!(walk(&image, 1), [(2, 4096), (2, second), (2, third)]);
        image[model::usize_of(second) + 20] ^= 1;
        assert_eq!(walk(&image, 1), [(2, 4096), (2, third)]);
        assert!(end < 1 << 20);
    }

    #[test]
    fn freed_laps_and_records_stored_as_data_are_not_records() {
        let mut image = vec![0; 1 << 16];
        put(&mut image, 1, 8192, 0, b"old");
        let stored = image[8192..12_288].to_vec();
        assert_eq!(walk(&image, 0), [(1, 8192)]);
        assert_eq!(walk(&image, 1), []);
        let mut image = vec![0; 1 << 16];
        put(&mut image, 2, 4096, 0, &stored);
        // The header of the outer record is lost; the inner one lies at the wrong place.
        image[4096] ^= 1;
        assert_eq!(walk(&image, 0), []);
    }

    #[test]
    fn a_record_that_runs_over_the_end_is_none() {
        let mut image = vec![0; 1 << 16];
        put(&mut image, 1, 4096, 0, &[3; 50_000]);
        assert_eq!(walk(&image, 0).len(), 1);
        assert_eq!(walk(&image[..40_000], 0), []);
    }
}
