//! What the router reads back: its write log, and objects of the backend.
//!
//! Invariant: nothing is believed whose checksum isn't right, and nothing believed leads outside of what was read.

use bytes::Bytes;
use model::{Cluster, LogId, Lsn, MapGeneration, VdiskId};
use router_core::CLUSTER;
use router_core::checkpoint::PartMeta;
use router_core::log::record::{FIXED, decode_list, encode_list};
use router_core::log::{Record, Scanner};
use router_core::map_state::MapState;
use router_core::map_stream::{Assembly, Part};
use router_core::page::{Location, Page, page_key};
use router_core::recover::{Facts, plan};
use router_core::sco::{Frame, frame_range};
use router_core::tlog::{Meta, Tlog};

use super::entries::{crc32c, sealed_at_the_end};

const LOG: LogId = LogId(0xfeed);

/// A header with its checksum made right.
pub fn sealed_header(data: &[u8]) -> Vec<u8> {
    let mut out = data.to_vec();
    let len = data.get(8..12).map_or(0, |len| u32::from_le_bytes(len.try_into().expect("4 bytes")));
    let len = model::usize_of(len.into());
    if (FIXED..=out.len()).contains(&len) {
        out[FIXED - 4..FIXED].fill(0);
        let crc = crc32c(&out[..len]);
        out[FIXED - 4..FIXED].copy_from_slice(&crc.to_le_bytes());
    }
    out
}

pub fn fuzz_log_record(data: &[u8]) {
    for bytes in [data.to_vec(), sealed_header(data)] {
        let Ok(record) = Record::parse(&bytes) else { continue };
        let again = Record::parse(&record.header());
        assert_eq!(again, Ok(record.clone()), "a record survives its bytes");
        let payload = bytes.get(record.header_len()..).unwrap_or_default();
        if record.payload_is_intact(payload) && record.op.is_list() {
            assert_eq!(encode_list(&decode_list(payload)), payload);
        }
    }
}

/// The bytes as a segment file, every record in it with a right checksum, at any lap.
pub fn fuzz_log_segment(data: &[u8]) {
    const SEGMENT: usize = 32 << 10;
    let mut image = data.to_vec();
    image.resize(SEGMENT, 0);
    for reseal in [false, true] {
        if reseal {
            for at in (0..SEGMENT).step_by(64) {
                let sealed = sealed_header(&image[at..]);
                if sealed.starts_with(b"HFWL") {
                    image[at..].copy_from_slice(&sealed);
                }
            }
        }
        let mut scanner = Scanner::new(LOG, SEGMENT as u64);
        scanner.add_file(0, &image);
        let Ok(scan) = scanner.finish() else { continue };
        for found in &scan.records {
            let at = model::usize_of(found.payload_offset);
            let payload = &image[at..at + model::usize_of(found.record.payload_len.into())];
            assert!(found.record.payload_is_intact(payload), "what is found is whole");
        }
        let vdisk = VdiskId(1);
        let epochs = std::collections::BTreeMap::new();
        let facts = Facts {
            vdisk,
            head_lsn: Lsn(u64::from(data.first().copied().unwrap_or_default())),
            epochs: &epochs,
            promised_log: LOG,
            log_from: 0,
            own_log: LOG,
            accepted: &[],
        };
        if let Ok(replay) = plan(&facts, &scan) {
            for (index, lsn) in replay.records.iter().zip(facts.head_lsn.next().0..) {
                assert_eq!(scan.records[*index].record.lsn, Lsn(lsn), "contiguous above the head");
            }
        }
    }
}

/// Eight bytes of location, eight of cluster, then a frame.
pub fn fuzz_sco(data: &[u8]) {
    let Some((location, rest)) = data.split_first_chunk::<8>() else { return };
    let Some((cluster, frame)) = rest.split_first_chunk::<8>() else { return };
    let Some(location) = Location::from_raw(u64::from_le_bytes(*location)) else { return };
    let cluster = Cluster(u64::from_le_bytes(*cluster));
    let _ = frame_range(location);
    let Ok(frame) = Frame::verify(location, Bytes::copy_from_slice(frame)) else { return };
    if let Ok((bytes, checksum)) = frame.cluster(location, cluster) {
        assert_eq!(bytes.len(), CLUSTER);
        assert_eq!(crc32c(&bytes), checksum, "L5: what is returned was checked");
    }
}

pub fn fuzz_tlog(data: &[u8]) {
    for bytes in [data.to_vec(), sealed_at_the_end(data)] {
        let bytes = Bytes::from(bytes);
        if let Ok(tlog) = Tlog::decode(&bytes) {
            assert_eq!(tlog.encode(), bytes, "one form of each TLog");
            let located = tlog.locations().count();
            assert_eq!(located, model::usize_of(tlog.clusters().into()));
            let mut map = router_core::map::MemoryMap::default();
            map.apply(&tlog);
            for (cluster, _) in tlog.locations() {
                assert!(map.get(cluster).is_some(), "what was written is mapped");
            }
        }
        if let Ok(meta) = Meta::decode(bytes.clone()) {
            assert_eq!(meta.encode(), bytes);
        }
    }
}

pub fn fuzz_page(data: &[u8]) {
    let key = page_key(VdiskId(3), 9, MapGeneration(1));
    let mut sealed = data.to_vec();
    if let Some((body, sum)) = sealed.split_last_chunk_mut::<4>() {
        *sum = (crc32c(&key) ^ crc32c(body)).to_le_bytes();
    }
    for bytes in [data, &sealed] {
        let Some(page) = Page::decode(&key, bytes) else { continue };
        assert_eq!(page.encode(&key), bytes);
        for (index, location) in page.mapped() {
            assert_eq!(page.get(index), Some(location));
            let _ = frame_range(location);
        }
        assert!(Page::decode(&page_key(VdiskId(3), 8, MapGeneration(1)), bytes).is_none());
    }
}

/// A part of a page map, its meta in the backend, and the state in it.
pub fn fuzz_map_part(data: &[u8]) {
    for bytes in [data.to_vec(), sealed_at_the_end(data)] {
        let bytes = Bytes::from(bytes);
        if let Ok(part) = Part::decode(&bytes) {
            assert_eq!(part.encode(), bytes, "one form of each part");
            let mut assembly = Assembly::new(part.vdisk);
            if assembly.take(&part).is_ok() && part.last {
                let whole = assembly.finish().is_ok();
                assert!(!whole || part.state.epochs == part.epochs.len() as u64);
            }
        }
        if let Some(meta) = PartMeta::decode(&bytes) {
            assert_eq!(meta.encode(), bytes);
        }
        if let Some(state) = MapState::decode(&bytes) {
            assert_eq!(state.encode(), bytes);
        }
    }
}
