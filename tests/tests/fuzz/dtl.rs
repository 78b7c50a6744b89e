//! What a DTL target takes from an owner, and what it reads back from its own files.
//!
//! Invariant: what is taken has consecutive LSNs of the vDisk that was asked for, and goes out again as the same bytes.

use bytes::Bytes;
use model::{Epoch, Lsn, VdiskId};
use router_core::dtl::block::{HEADER, Header, Promises, Whose, next, testimony};
use router_core::dtl::records::{Expected, outgoing, parse};

use super::entries::{crc32c, sealed_at_the_end};
use super::router::sealed_header;

pub const VDISK: VdiskId = VdiskId(7);
const CHUNK: usize = 32 << 10;

/// The first byte says how many records are announced.
pub fn fuzz_run(data: &[u8]) {
    let Some((count, run)) = data.split_first() else { return };
    let expected =
        Expected { vdisk: VDISK, epoch_max: Epoch(9), first: Lsn(5), count: u32::from(*count) };
    for bytes in [run.to_vec(), sealed_header(run)] {
        let Ok(entries) = parse(&Bytes::from(bytes.clone()), expected) else { continue };
        let sent: Vec<u8> = entries
            .iter()
            .map(outgoing)
            .flat_map(|record| [record.header, record.payload].concat())
            .collect();
        assert_eq!(entries.len(), usize::from(*count));
        assert_eq!(sent.len(), bytes.len(), "as long as what came");
    }
}

/// A header of a block, and behind it a record, with their checksums made right.
fn sealed_block(data: &mut [u8]) {
    if let Some(header) = data.first_chunk_mut::<HEADER>() {
        let crc = crc32c(&header[..60]);
        header[60..].copy_from_slice(&crc.to_le_bytes());
    }
    if let Some(record) = data.get_mut(HEADER..) {
        let sealed = sealed_header(record);
        record.copy_from_slice(&sealed);
    }
}

/// The bytes as a chunk, each block sealed, read from its start to where nothing sound follows.
pub fn fuzz_chunk(data: &[u8]) {
    let whose = Whose { vdisk: VDISK, epoch: Epoch(9), nonce: 0xfeed, chunk: 3 };
    let mut image = data.to_vec();
    image.resize(CHUNK, 0);
    for reseal in [false, true] {
        if reseal {
            for at in (0..CHUNK).step_by(HEADER) {
                if image[at..].starts_with(b"HFDT") {
                    sealed_block(&mut image[at..]);
                }
            }
        }
        let bytes = Bytes::from(image.clone());
        let mut end = 0;
        while let Some(block) = next(&bytes, 0, end, &whose) {
            assert!(end < block.end && block.end <= CHUNK as u64, "it never goes back nor beyond");
            assert_eq!(Header::parse(&block.header.bytes()), Some(block.header));
            end = block.end;
        }
        let _ = testimony(&bytes, &whose);
    }
}

pub fn fuzz_promises(data: &[u8]) {
    for bytes in [data.to_vec(), sealed_at_the_end(data)] {
        let bytes = Bytes::from(bytes);
        if let Some(promises) = Promises::from_file(&bytes) {
            assert_eq!(promises.to_file(), bytes, "one form of each file");
        }
    }
}
