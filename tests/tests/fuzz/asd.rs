//! What an ASD reads back: record headers, whole segments, rows of its index.
//!
//! Invariant: a walk over any bytes ends, and what it finds lies inside the file at the place that it names.

use asd_core::index::{Entry, Meta, SegmentRow};
use asd_core::record::Header;
use asd_core::segment::{HEADER_ROOM, SegmentHeader};
use asd_core::walk::{Step, Walk};
use model::{Lap, OsdId};

use super::entries::crc32c;

const OSD: OsdId = OsdId(9);
const OFFSET: u64 = 8192;

/// A record header with its checksum made right.
fn sealed(data: &[u8]) -> Vec<u8> {
    let mut out = data.to_vec();
    if let Ok(len) = Header::peek_len(data)
        && len <= out.len()
    {
        let crc = crc32c(&out[12..len]);
        out[8..12].copy_from_slice(&crc.to_le_bytes());
    }
    out
}

pub fn fuzz_record(data: &[u8]) {
    for bytes in [data.to_vec(), sealed(data)] {
        if let Ok(header) = Header::decode(&bytes, OSD, OFFSET) {
            let again = header.encode();
            assert_eq!(again[..], bytes[..again.len()], "one form of each header");
            assert!(OFFSET < header.end());
        }
    }
    let mut header = data.to_vec();
    if 64 <= header.len() {
        let crc = crc32c(&header[12..64]);
        header[8..12].copy_from_slice(&crc.to_le_bytes());
    }
    for bytes in [data, &header] {
        if let Ok(segment) = SegmentHeader::decode(bytes, OSD, 1 << 20) {
            // Bytes 48..64 are reserved: under the checksum, and without a meaning yet.
            assert_eq!(segment.encode()[12..48], bytes[12..48]);
        }
    }
}

/// The bytes as a segment, walked from any place; the first byte says which laps are freed.
pub fn fuzz_segment(data: &[u8]) {
    let Some(([freed, from], body)) = data.split_first_chunk::<2>() else { return };
    let room = model::usize_of(HEADER_ROOM);
    let mut image = vec![0; room];
    image.extend_from_slice(body);
    image.resize((image.len() + room).next_multiple_of(4096), 0);
    for at in (room..image.len() - room).step_by(64) {
        let resealed = sealed(&image[at..]);
        image[at..].copy_from_slice(&resealed);
    }
    let len = model::u64_of(image.len());
    let mut walk = Walk::new(OSD, Lap((*freed).into()), len, u64::from(*from) * 64);
    let (mut last, mut steps) = (0, 0);
    loop {
        steps += 1;
        assert!(steps <= image.len(), "a walk ends");
        match walk.step() {
            Step::Need { offset, len } => {
                let start = model::usize_of(offset);
                walk.feed(offset, image[start..start + len].to_vec());
            }
            Step::Found(placed) => {
                assert!(last <= placed.offset && placed.end() <= len - HEADER_ROOM);
                assert!(Lap((*freed).into()) < placed.lap);
                last = placed.end();
            }
            Step::End => return,
        }
    }
}

pub fn fuzz_index(data: &[u8]) {
    if let Ok(entry) = Entry::decode(data) {
        assert_eq!(entry.encode(), data);
    }
    if let Ok(row) = SegmentRow::decode(data) {
        assert_eq!(row.encode(), data);
    }
    if let Ok(meta) = Meta::decode(data) {
        assert_eq!(meta.encode(), data);
    }
}
