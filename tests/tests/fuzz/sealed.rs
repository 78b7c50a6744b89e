//! Sealed streams: the frame table from a manifest, fragments from disks, wrapped keys.
//!
//! Invariant: what the decoder returns is exactly what was put, or an error, whatever happened to the fragments (L5).

use std::sync::OnceLock;

use bytes::Bytes;
use codec::{
    Compression, Decoder, EncodeParams, EncodedObject, Encoder, Engine, FrameSize, FrameTable,
    KeyEncryptionKey, Layout, Level, NamespaceKey, NamespaceKeys, ObjectBinding, ObjectSeal, Shape,
    StoredObject, Suite, Vandermonde,
};

use super::entries::sealed_at_the_end;

const OBJECT: &[u8] = b"vdisk-7/epoch-2/sco-19";
const K: u8 = 4;
const M: u8 = 2;

pub fn fuzz_frame_table(data: &[u8]) {
    for bytes in [data.to_vec(), sealed_at_the_end(data)] {
        let Ok(table) = FrameTable::decode(&bytes) else { continue };
        assert_eq!(table.encode(), bytes, "one form of each table");
        // A table may announce as many frames as its own bytes pay for, or equal ones for nothing.
        if table.frames() > 1 << 16 {
            continue;
        }
        let Ok(layout) = Layout::new(&table, K) else { continue };
        let end = table.plain_len();
        for range in [0..end, end / 3..end / 2, end.saturating_sub(1)..end] {
            let reads = layout.plan_read(&table, range.clone()).expect("a range within the object");
            let planned: usize = reads.iter().map(|read| read.slice.len()).sum();
            assert_eq!(planned, range.len(), "every byte is read once");
            for read in reads {
                assert!(read.stored_range().end <= layout.fragment_len(read.place.fragment));
            }
        }
    }
}

/// One object, encoded once per suite.
struct Sample {
    plain: Vec<u8>,
    keys: NamespaceKeys,
    objects: [EncodedObject; 2],
}

fn sample() -> &'static Sample {
    static SAMPLE: OnceLock<Sample> = OnceLock::new();
    SAMPLE.get_or_init(|| {
        let mut plain: Vec<u8> = (0..90_000_u32).map(|at| (at / 700).to_le_bytes()[0]).collect();
        for (at, byte) in plain[40_000..60_000].iter_mut().enumerate() {
            *byte = at.wrapping_mul(2_654_435_761).to_le_bytes()[1];
        }
        let keys = NamespaceKeys::new(&NamespaceKey::new([42; 32]), Engine::AwsLc);
        let code = code();
        let objects = [Suite::Aes256Gcm, Suite::Crc32c].map(|suite| {
            let params = EncodeParams {
                suite,
                frame_size: FrameSize::DEFAULT,
                compression: Compression::Adaptive(Level::DEFAULT),
                keys: &keys,
                binding: binding(),
                code: &code,
            };
            let mut encoder = Encoder::new().expect("memory for a compressor");
            encoder.encode(&params, &[&plain]).expect("a small object")
        });
        Sample { plain, keys, objects }
    })
}

fn code() -> Vandermonde {
    Vandermonde::new(Shape::new(K, M).expect("a small shape"))
}

fn binding() -> ObjectBinding<'static> {
    ObjectBinding { object: OBJECT, attempt: [9; 16] }
}

/// Bytes: suite, then of each damage fragment, offset (2), what to do to it. Checksums of fragments lie on request.
pub fn fuzz_sealed_stream(data: &[u8]) {
    let Some(([suite, lies], damages)) = data.split_first_chunk::<2>() else { return };
    let sample = sample();
    let object = &sample.objects[usize::from(suite & 1)];
    let mut fragments: Vec<Vec<u8>> = object.fragments.iter().map(|f| f.to_vec()).collect();
    let mut present = vec![true; fragments.len()];
    for damage in damages.chunks_exact(4) {
        let which = usize::from(damage[0]) % fragments.len();
        let fragment = &mut fragments[which];
        let at = usize::from(u16::from_le_bytes([damage[1], damage[2]]));
        match damage[3] % 4 {
            0 => present[which] = false,
            1 => fragment.truncate(at),
            _ if fragment.is_empty() => {}
            _ => {
                let at = at % fragment.len();
                fragment[at] ^= damage[3] | 1;
            }
        }
    }
    let mut crcs = object.fragment_crcs.clone();
    for (number, fragment) in fragments.iter().enumerate() {
        // A disk that lies: only the frames' own seals are left to tell.
        if lies & 1 << number != 0 {
            crcs[number] = codec::crc32c(fragment);
        }
    }
    let found: Vec<Option<Bytes>> = fragments
        .into_iter()
        .zip(present)
        .map(|(fragment, there)| there.then(|| Bytes::from(fragment)))
        .collect();
    let stored = StoredObject {
        table: &object.table,
        layout: &object.layout,
        fragments: &found,
        fragment_crcs: &crcs,
    };
    let seal =
        ObjectSeal::for_table(&sample.keys, &object.table, &binding()).expect("its own table");
    let mut decoder = Decoder::new().expect("memory for a decompressor");
    for range in [0..90_000, 39_000..41_000] {
        if let Ok(plain) = decoder.decode(&seal, &stored, &code(), range.clone()) {
            let wanted = range.start as usize..range.end as usize;
            // A CRC-32C per frame is no authentication: bytes made to lie may pass it, but not by a few flips.
            assert!(plain == sample.plain[wanted], "other bytes than were put");
        }
    }
}

pub fn fuzz_wrapped_key(data: &[u8]) {
    let kek = KeyEncryptionKey::new(1, [7; 32], Engine::AwsLc);
    let right = kek.wrap(b"owner", &NamespaceKey::new([42; 32]), [3; 12]);
    if kek.unwrap(b"owner", data).is_ok() {
        assert_eq!(data, right, "nobody but us wraps keys");
    }
    assert!(kek.unwrap(b"another", data).is_err());
}
