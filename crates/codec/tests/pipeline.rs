//! The whole pipeline as the proxy uses it: round trips, losses, damage, partial and degraded reads.
#![expect(
    clippy::cast_possible_truncation,
    clippy::unwrap_used,
    reason = "a test: made-up bytes, and a panic is a failure"
)]

use bytes::Bytes;
use codec::{
    Compression, Decoder, EncodeParams, EncodedObject, Encoder, Engine, ErasureCode, FrameSize,
    FrameTable, Layout, Level, NamespaceKey, NamespaceKeys, ObjectBinding, ObjectSeal, Shape,
    StoredObject, Suite, Vandermonde, coalesce,
};
use proptest::prelude::*;

const OBJECT: &[u8] = b"vdisk-7/epoch-2/sco-19";

#[derive(Debug)]
struct Setup {
    keys: NamespaceKeys,
    code: Vandermonde,
    suite: Suite,
    frame_size: FrameSize,
    compression: Compression,
    attempt: [u8; 16],
}

impl Setup {
    fn new(k: u8, m: u8) -> Self {
        Self {
            keys: NamespaceKeys::new(&NamespaceKey::new([42; 32]), Engine::AwsLc),
            code: Vandermonde::new(Shape::new(k, m).unwrap()),
            suite: Suite::Aes256Gcm,
            frame_size: FrameSize::DEFAULT,
            compression: Compression::Adaptive(Level::DEFAULT),
            attempt: [9; 16],
        }
    }

    fn binding(&self) -> ObjectBinding<'static> {
        ObjectBinding { object: OBJECT, attempt: self.attempt }
    }

    fn encode(&self, pieces: &[&[u8]]) -> EncodedObject {
        let params = EncodeParams {
            suite: self.suite,
            frame_size: self.frame_size,
            compression: self.compression,
            keys: &self.keys,
            binding: self.binding(),
            code: &self.code,
        };
        Encoder::new().unwrap().encode(&params, pieces).unwrap()
    }

    fn seal(&self, table: &FrameTable) -> ObjectSeal {
        ObjectSeal::for_table(&self.keys, table, &self.binding()).unwrap()
    }

    fn decode(
        &self,
        object: &EncodedObject,
        fragments: &[Option<Bytes>],
        range: std::ops::Range<u32>,
    ) -> Result<Vec<u8>, codec::DecodeError> {
        let stored = StoredObject {
            table: &object.table,
            layout: &object.layout,
            fragments,
            fragment_crcs: &object.fragment_crcs,
        };
        Decoder::new().unwrap().decode(&self.seal(&object.table), &stored, &self.code, range)
    }
}

fn noise(len: usize, mut seed: u64) -> Vec<u8> {
    (0..len)
        .map(|_| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963);
            (seed >> 56) as u8
        })
        .collect()
}

/// Half noise, half text, in runs of a few KiB: frames of all kinds.
fn mixed(len: usize, seed: u64) -> Vec<u8> {
    let mut plain = noise(len, seed);
    for (i, run) in plain.chunks_mut(9000).enumerate() {
        match (i as u64).wrapping_add(seed) % 3 {
            0 => run.fill(b'z'),
            1 => run.iter_mut().for_each(|byte| *byte &= 15),
            _ => {}
        }
    }
    plain
}

fn present(object: &EncodedObject) -> Vec<Option<Bytes>> {
    object.fragments.iter().cloned().map(Some).collect()
}

fn whole(object: &EncodedObject) -> std::ops::Range<u32> {
    0..object.table.plain_len()
}

#[test]
fn awkward_sizes_round_trip_in_every_mode() {
    let sizes = [0usize, 1, 2, 4095, 4096, 4097, 16384, 16385, 50_000, 262_144, 3_000_001];
    let modes = [
        Compression::Off,
        Compression::Adaptive(Level::DEFAULT),
        Compression::Always(Level::new(3).unwrap()),
    ];
    for (k, m) in [(1u8, 0u8), (1, 2), (4, 2), (7, 1)] {
        for suite in [Suite::Aes256Gcm, Suite::Crc32c] {
            for (size, mode) in sizes.iter().zip(modes.iter().cycle()) {
                let setup = Setup { suite, compression: *mode, ..Setup::new(k, m) };
                let plain = mixed(*size, *size as u64);
                let object = setup.encode(&[&plain]);
                assert_eq!(object.fragments.len(), usize::from(k + m));
                let lens: Vec<u32> =
                    object.fragments.iter().map(|f| u32::try_from(f.len()).unwrap()).collect();
                let expected: Vec<u32> =
                    (0..k + m).map(|i| object.layout.fragment_len(i)).collect();
                assert_eq!(lens, expected);
                let back = setup.decode(&object, &present(&object), whole(&object)).unwrap();
                assert!(back == plain, "{size} bytes, {k}+{m}, {suite:?}, {mode:?}");
                // What a reader rebuilds from the manifest's bytes is what the writer had.
                let table = FrameTable::decode(&object.table.encode()).unwrap();
                assert_eq!(Layout::new(&table, k).unwrap(), object.layout);
            }
        }
    }
}

#[test]
fn only_frames_that_save_an_eighth_are_compressed() {
    let setup = Setup::new(4, 2);
    let raw = setup.encode(&[&noise(1 << 20, 1)]);
    assert_eq!(raw.table.encode().len(), 12, "an all-raw table costs nothing per frame");
    assert_eq!(raw.table.stored_len(), (1 << 20) + 64 * 16);
    let packed = setup.encode(&[&vec![b'a'; 1 << 20]]);
    assert!(packed.table.stored_len() < 64 * 100);
    for frame in setup.encode(&[&mixed(1 << 20, 3)]).table.iter() {
        assert!(frame.body_len == frame.plain_len || frame.body_len <= frame.plain_len / 8 * 7);
    }
}

#[test]
fn no_plaintext_is_found_in_any_fragment_when_sealed() {
    let needle = b"the quick brown fox jumps over the lazy dog, twice over";
    for compression in [Compression::Off, Compression::Always(Level::DEFAULT)] {
        let setup = Setup { compression, ..Setup::new(2, 2) };
        let object = setup.encode(&[&needle.repeat(3000)]);
        for fragment in &object.fragments {
            assert!(!fragment.windows(12).any(|window| window == &needle[..12]));
        }
    }
}

#[test]
fn attempts_share_a_digest_but_never_fragments() {
    let plain = mixed(200_000, 4);
    let first = Setup::new(4, 2);
    let second = Setup { attempt: [10; 16], compression: Compression::Off, ..Setup::new(4, 2) };
    let (a, b) = (first.encode(&[&plain]), second.encode(&[&plain]));
    assert_eq!(a.digest, b.digest);
    assert_ne!(a.digest, first.encode(&[&plain[1..]]).digest);
    // The other attempt's seal opens nothing, even where lengths agree.
    let raw = Setup { compression: Compression::Off, ..Setup::new(4, 2) };
    let c = raw.encode(&[&plain]);
    assert_eq!(b.table, c.table);
    let refused = second.decode(&c, &present(&c), whole(&c)).unwrap_err();
    assert!(refused.is_damage());
}

#[test]
fn pieces_make_no_difference() {
    let setup = Setup::new(3, 2);
    let plain = mixed(150_000, 8);
    let one = setup.encode(&[&plain]);
    let small: Vec<&[u8]> = plain.chunks(4096).collect();
    let odd: Vec<&[u8]> =
        [&[][..]].into_iter().chain(plain.chunks(12_345)).chain([&[][..]]).collect();
    for pieces in [small, odd] {
        let many = setup.encode(&pieces);
        assert_eq!(many.fragments, one.fragments);
        assert_eq!((many.table, many.digest), (one.table.clone(), one.digest));
    }
}

#[test]
fn too_long_objects_are_refused() {
    let setup = Setup::new(2, 1);
    let params = EncodeParams {
        suite: setup.suite,
        frame_size: setup.frame_size,
        compression: setup.compression,
        keys: &setup.keys,
        binding: setup.binding(),
        code: &setup.code,
    };
    let half = vec![0u8; (codec::MAX_OBJECT_BYTES / 2) as usize];
    let refused = Encoder::new().unwrap().encode(&params, &[&half, &half, &[0]]).unwrap_err();
    let bytes = u64::from(codec::MAX_OBJECT_BYTES) + 1;
    assert_eq!(refused, codec::EncodeError::TooLong(bytes));
}

#[test]
fn facts_of_different_objects_do_not_mix() {
    let setup = Setup::new(2, 1);
    let (a, b) = (setup.encode(&[&noise(50_000, 1)]), setup.encode(&[&noise(60_000, 1)]));
    let stored = StoredObject {
        table: &a.table,
        layout: &a.layout,
        fragments: &present(&a),
        fragment_crcs: &a.fragment_crcs,
    };
    let mut decoder = Decoder::new().unwrap();
    let wrong_seal = setup.seal(&b.table);
    let result = decoder.decode(&wrong_seal, &stored, &setup.code, 0..1);
    assert_eq!(result, Err(codec::DecodeError::Mismatch));
    let wrong_code = Vandermonde::new(Shape::new(3, 0).unwrap());
    let result = decoder.decode(&setup.seal(&a.table), &stored, &wrong_code, 0..1);
    assert_eq!(result, Err(codec::DecodeError::Mismatch));
}

/// The sealed stream of a fixed object, frozen whole: data fragments, parity, checksums, digest.
#[test]
fn golden_object() {
    let setup =
        Setup { compression: Compression::Off, frame_size: FrameSize::MIN, ..Setup::new(2, 2) };
    let plain: Vec<u8> = (0..20_000u32).map(|i| (i * 31 / 7) as u8).collect();
    let object = setup.encode(&[&plain]);
    assert_eq!(object.layout.fragment_lens(), GOLDEN_LENS);
    assert_eq!(object.fragment_crcs, GOLDEN_CRCS);
    assert_eq!(object.fragments[0][..8], GOLDEN_START);
}

const GOLDEN_LENS: [u32; 2] = [8224, 11856];
const GOLDEN_CRCS: [u32; 4] = [3_553_324_844, 3_348_756_008, 1_247_510_507, 770_554_287];
const GOLDEN_START: [u8; 8] = [60, 133, 178, 40, 134, 241, 21, 154];

fn any_setup() -> impl Strategy<Value = Setup> {
    (1u8..=10, 0u8..=5, any::<bool>(), 4096u32..=65_792, 0u8..3).prop_map(
        |(k, m, sealed, size, mode)| Setup {
            suite: if sealed { Suite::Aes256Gcm } else { Suite::Crc32c },
            frame_size: FrameSize::new(size).unwrap(),
            compression: match mode {
                0 => Compression::Off,
                1 => Compression::Adaptive(Level::DEFAULT),
                _ => Compression::Always(Level::new(-3).unwrap()),
            },
            ..Setup::new(k, m)
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn any_m_losses_or_damages_are_survived_and_one_more_is_an_error(
        setup in any_setup(), len in 0usize..400_000, seed in any::<u32>(),
        order in Just((0usize..15).collect::<Vec<_>>()).prop_shuffle(),
        hits in prop::collection::vec((any::<bool>(), any::<prop::sample::Index>()), 16),
        a in any::<u32>(), b in any::<u32>(),
    ) {
        let plain = mixed(len, u64::from(seed));
        let object = setup.encode(&[&plain]);
        let shape = setup.code.shape();
        let mut fragments = present(&object);
        let hit = |fragments: &mut Vec<Option<Bytes>>, i: usize| {
            let (lose, at) = hits[i];
            let bytes = object.fragments[i].to_vec();
            fragments[i] = (!lose && !bytes.is_empty()).then(|| {
                let mut bytes = bytes;
                let bit = at.index(bytes.len() * 8);
                bytes[bit / 8] ^= 1 << (bit % 8);
                Bytes::from(bytes)
            });
        };
        let order: Vec<usize> =
            order.into_iter().filter(|i| *i < usize::from(shape.fragments())).collect();
        for i in &order[..usize::from(shape.m())] {
            hit(&mut fragments, *i);
        }
        let range = a % (object.table.plain_len() + 1)..b % (object.table.plain_len() + 1);
        let range = range.start.min(range.end)..range.start.max(range.end);
        let back = setup.decode(&object, &fragments, range.clone()).unwrap();
        prop_assert!(back == plain[range.start as usize..range.end as usize]);
        // Beyond m: right bytes (an empty fragment, or parity, may have been hit) or an error.
        for i in &order[usize::from(shape.m())..] {
            hit(&mut fragments, *i);
            match setup.decode(&object, &fragments, whole(&object)) {
                Ok(back) => prop_assert!(back == plain),
                Err(error) => prop_assert!(error.is_damage(), "{}", error),
            }
        }
        if len > 0 {
            let nothing = vec![None; fragments.len()];
            prop_assert!(setup.decode(&object, &nothing, whole(&object)).unwrap_err().is_damage());
        }
    }

    #[test]
    fn planned_reads_fetch_little_verify_it_and_find_every_flip(
        setup in any_setup(), len in 1usize..400_000, seed in any::<u32>(),
        a in any::<prop::sample::Index>(), want in 1u32..20_000, flip in any::<prop::sample::Index>(),
    ) {
        let plain = mixed(len, u64::from(seed));
        let object = setup.encode(&[&plain]);
        let start = u32::try_from(a.index(len)).unwrap();
        let end = (start + want).min(object.table.plain_len());
        let reads = object.layout.plan_read(&object.table, start..end).unwrap();
        prop_assert!(reads.len() as u32 <= (end - start).div_ceil(setup.frame_size.bytes()) + 1);
        prop_assert!(coalesce(&reads).len() <= usize::from(setup.code.shape().k()));
        let seal = setup.seal(&object.table);
        let mut decoder = Decoder::new().unwrap();
        let mut answer = vec![0; (end - start) as usize];
        let stored = |read: &codec::FrameRead| {
            let range = read.stored_range();
            let fragment = &object.fragments[usize::from(read.place.fragment)];
            fragment[range.start as usize..range.end as usize].to_vec()
        };
        for read in &reads {
            decoder.decode_read(&seal, read, &stored(read), &mut answer).unwrap();
        }
        prop_assert!(answer == plain[start as usize..end as usize]);
        for read in &reads {
            let mut bad = stored(read);
            let bit = flip.index(bad.len() * 8);
            bad[bit / 8] ^= 1 << (bit % 8);
            let error = decoder.decode_read(&seal, read, &bad, &mut answer).unwrap_err();
            prop_assert!(error.is_damage());
            let cut = &stored(read)[1..];
            prop_assert!(decoder.decode_read(&seal, read, cut, &mut answer).unwrap_err().is_damage());
        }
    }

    #[test]
    fn a_lost_frame_is_rebuilt_from_the_same_range_of_others(
        k in 1u8..=8, m in 1u8..=4, len in 1usize..300_000, seed in any::<u32>(),
        at in any::<prop::sample::Index>(),
    ) {
        let setup = Setup::new(k, m);
        let plain = mixed(len, u64::from(seed));
        let object = setup.encode(&[&plain]);
        let start = u32::try_from(at.index(len)).unwrap();
        let read = object.layout.plan_read(&object.table, start..start + 1).unwrap().remove(0);
        let range = read.stored_range();
        let have: Vec<(u8, &[u8])> = (0..k + m)
            .filter(|i| *i != read.place.fragment)
            .map(|i| {
                let part = object.layout.clip(i, &range);
                (i, &object.fragments[usize::from(i)][part.start as usize..part.end as usize])
            })
            .collect();
        let mut frame = vec![0; range.len()];
        setup.code
            .reconstruct(range.len(), &have, &mut [(read.place.fragment, &mut frame)])
            .unwrap();
        let mut answer = [0];
        Decoder::new()
            .unwrap()
            .decode_read(&setup.seal(&object.table), &read, &frame, &mut answer)
            .unwrap();
        prop_assert_eq!(answer[0], plain[start as usize]);
    }
}
