//! Tests of [`super`]: known answers, properties, and damage that must be noticed.

#![expect(clippy::cast_possible_truncation, reason = "made-up bytes")]

use aws_lc_rs::hmac;
use proptest::prelude::*;

use super::aead::{Engine, KEY_BYTES, Message, TagMismatch};
use super::keys::*;
use super::*;
use crate::checksum::crc32c;

const ENGINES: [Engine; 2] = [Engine::AwsLc, Engine::Reference];

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> =
        text.chars().filter_map(|c| c.to_digit(16)).map(|d| u8::try_from(d).unwrap()).collect();
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

fn keys(engine: Engine) -> NamespaceKeys {
    NamespaceKeys::new(&NamespaceKey::new([7; KEY_BYTES]), engine)
}

fn mac(key: &[u8], data: &[u8]) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), data).as_ref().to_vec()
}

const BINDING: ObjectBinding<'static> =
    ObjectBinding { object: b"vdisk-1/3/42", attempt: *b"0123456789abcdef" };

fn seal_of(engine: Engine, suite: Suite, plain_len: u32) -> ObjectSeal {
    ObjectSeal::new(&keys(engine), suite, FrameSize::DEFAULT, plain_len, &BINDING).unwrap()
}

/// Test cases 14 and 16 of McGrew and Viega's GCM submission to NIST.
#[test]
fn both_engines_give_the_known_answers() {
    let cases = [
        (
            "00".repeat(32),
            "00".repeat(12),
            String::new(),
            "00".repeat(16),
            "cea7403d4d606b6e074ec5d3baf39d18",
            "d0d1c8a799996bf0265b98b5d48ab919",
        ),
        (
            "feffe9928665731c6d6a8f9467308308".repeat(2),
            "cafebabefacedbaddecaf888".into(),
            "feedfacedeadbeeffeedfacedeadbeefabaddad2".into(),
            "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72\
             1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39"
                .into(),
            "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa\
             8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662",
            "76fc6ece0f4e1768cddf8853bb2d551b",
        ),
    ];
    for (key, nonce, aad, plain, sealed, tag) in cases {
        let key: [u8; 32] = hex(&key).try_into().unwrap();
        let nonce: [u8; 12] = hex(&nonce).try_into().unwrap();
        let (aad, plain, sealed) = (hex(&aad), hex(&plain), hex(sealed));
        let tag: [u8; 16] = hex(tag).try_into().unwrap();
        for engine in ENGINES {
            let aead = engine.key(&key);
            let mut out = vec![0; plain.len()];
            assert_eq!(
                aead.seal(&Message { nonce, aad: &aad }, &plain, &mut out),
                tag,
                "{engine:?}"
            );
            assert_eq!(out, sealed, "{engine:?}");
            let mut text = plain.clone();
            assert_eq!(aead.seal_in_place(&Message { nonce, aad: &aad }, &mut text), tag);
            assert_eq!(text, sealed);
            aead.open(&Message { nonce, aad: &aad }, &sealed, &tag, &mut out).unwrap();
            assert_eq!(out, plain);
        }
    }
}

/// The format by hand, from its description, against the code: key, nonce, additional data, tag place.
#[test]
fn a_sealed_frame_is_what_the_format_page_says() {
    let prk = mac(&[0; 32], &[7; 32]);
    let info = [b"holdfast frame v1".as_slice(), BINDING.object, &BINDING.attempt, &[1]].concat();
    let frame_key: [u8; 32] = mac(&prk, &info).try_into().unwrap();

    let plain = b"holdfast";
    let frame = FrameInfo::new(Suite::Aes256Gcm, 2, 8, 8);
    let aad = [
        b"HFframe1".as_slice(),
        &BINDING.attempt,
        &[2, 0, 0, 0, 8, 0, 0, 0, 24, 0, 0, 0, 0, 1, 14, 0],
        &32776u32.to_le_bytes(),
        BINDING.object,
    ]
    .concat();
    let mut expected = vec![0; 8];
    let nonce = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];
    let tag =
        Engine::Reference.key(&frame_key).seal(&Message { nonce, aad: &aad }, plain, &mut expected);
    expected.extend_from_slice(&tag);

    for engine in ENGINES {
        let mut stored = vec![0; 24];
        seal_of(engine, Suite::Aes256Gcm, 32776).seal(&frame, plain, &mut stored).unwrap();
        assert_eq!(stored, expected);
        assert_eq!(stored, hex(GOLDEN_FRAME), "frozen: objects on disks depend on it");
    }

    let mut stored = vec![0; 12];
    let frame = FrameInfo::new(Suite::Crc32c, 2, 8, 8);
    seal_of(Engine::AwsLc, Suite::Crc32c, 32776).seal(&frame, plain, &mut stored).unwrap();
    let mut aad = aad;
    aad[32] = 12;
    aad[37] = 0;
    let sum = crc32c(&[&aad, plain.as_slice()].concat());
    assert_eq!(stored, [plain.as_slice(), &sum.to_le_bytes()].concat());
}

const GOLDEN_FRAME: &str = "712d067261b1f2e3f5f2cc6f7eecfd2e035e8b90bbe8085c";

/// RFC 5869, test case 3: no salt, no info.
#[test]
fn key_derivation_gives_the_known_answer() {
    assert_eq!(
        hkdf_for_test(&[0x0b; 22]).to_vec(),
        hex("8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d")
    );
}

#[test]
fn each_object_and_attempt_has_its_own_key_and_place() {
    let frame = FrameInfo::new(Suite::Aes256Gcm, 1, 100, 100);
    let plain = [9u8; 100];
    for suite in [Suite::Aes256Gcm, Suite::Crc32c] {
        let frame = FrameInfo::new(suite, 1, 100, 100);
        let mut stored = vec![0; frame.stored_len as usize];
        let seal = seal_of(Engine::AwsLc, suite, 20_000);
        seal.seal(&frame, &plain, &mut stored).unwrap();
        let mut body = vec![0; 100];
        assert_eq!(seal.open(&frame, &stored, &mut body), Ok(()));
        assert_eq!(body, plain);
        let refused = |seal: &ObjectSeal, frame: &FrameInfo| {
            let result = seal.open(frame, &stored, &mut [0; 100]);
            assert_eq!(result, Err(SealError::NotGenuine { frame: frame.index }), "{suite:?}");
        };
        refused(&seal, &FrameInfo { index: 0, ..frame });
        refused(&seal, &FrameInfo { plain_len: 101, ..frame });
        refused(&seal, &FrameInfo { encoding: crate::frames::Encoding::Zstd, ..frame });
        refused(&seal_of(Engine::AwsLc, suite, 20_001), &frame);
        let others = [
            ObjectBinding { object: b"vdisk-1/3/43", ..BINDING },
            ObjectBinding { attempt: *b"0123456789abcdeF", ..BINDING },
            // Bytes moved between object id and attempt id.
            ObjectBinding { object: b"vdisk-1/3/420", attempt: *b"123456789abcdef\0" },
        ];
        for binding in others {
            let keys = keys(Engine::AwsLc);
            refused(
                &ObjectSeal::new(&keys, suite, FrameSize::DEFAULT, 20_000, &binding).unwrap(),
                &frame,
            );
        }
        let other_size =
            ObjectSeal::new(&keys(Engine::AwsLc), suite, FrameSize::MIN, 20_000, &BINDING);
        refused(&other_size.unwrap(), &frame);
    }
    let mut stored = vec![0; 116];
    seal_of(Engine::AwsLc, Suite::Aes256Gcm, 20_000).seal(&frame, &plain, &mut stored).unwrap();
    let stranger = NamespaceKeys::new(&NamespaceKey::new([8; 32]), Engine::AwsLc);
    let stranger =
        ObjectSeal::new(&stranger, Suite::Aes256Gcm, FrameSize::DEFAULT, 20_000, &BINDING).unwrap();
    assert!(stranger.open(&frame, &stored, &mut [0; 100]).is_err());
}

#[test]
fn wrong_lengths_are_errors_not_panics() {
    let seal = seal_of(Engine::AwsLc, Suite::Aes256Gcm, 100);
    let frame = FrameInfo::new(Suite::Aes256Gcm, 0, 100, 100);
    assert!(seal.open(&frame, &[0; 115], &mut [0; 100]).is_err());
    assert!(seal.open(&frame, &[0; 116], &mut [0; 99]).is_err());
    assert!(seal.seal(&frame, &[0; 99], &mut [0; 116]).is_err());
    assert!(seal.seal(&frame, &[0; 100], &mut [0; 115]).is_err());
    assert!(seal.seal_in_place(&frame, &mut []).is_err());
    let other_suite = FrameInfo::new(Suite::Crc32c, 0, 100, 100);
    assert!(seal.open(&other_suite, &[0; 104], &mut [0; 100]).is_err());
    assert!(seal.seal(&other_suite, &[0; 100], &mut [0; 104]).is_err());
    let long = [b'x'; MAX_OBJECT_ID_BYTES + 1];
    let binding = ObjectBinding { object: &long, ..BINDING };
    let refused = ObjectSeal::new(&keys(Engine::AwsLc), Suite::Crc32c, FrameSize::MIN, 1, &binding);
    assert_eq!(refused.unwrap_err(), SealError::ObjectId(long.len()));
}

#[test]
fn wrapped_keys_come_back_only_to_their_owner_under_their_key() {
    for engine in ENGINES {
        let kek = KeyEncryptionKey::new(5, [1; 32], engine);
        let blob = kek.wrap(b"namespace-9", &NamespaceKey::new([7; 32]), [3; 12]);
        assert_eq!(blob.to_vec(), hex(GOLDEN_WRAPPED), "frozen: key blobs are stored");
        assert_eq!(wrapped_key_id(&blob), Ok(5));
        let back = NamespaceKeys::new(&kek.unwrap(b"namespace-9", &blob).unwrap(), engine);
        let digest = |keys: &NamespaceKeys| keys.digest(&[b"x"], &mut Vec::new());
        assert_eq!(digest(&back), digest(&keys(engine)));

        let refused = |kek: &KeyEncryptionKey, owner: &[u8], blob: &[u8]| {
            kek.unwrap(owner, blob).map(|_| ()).unwrap_err()
        };
        assert_eq!(refused(&kek, b"namespace-8", &blob), KeyError::NotGenuine);
        let wrong = KeyEncryptionKey::new(5, [2; 32], engine);
        assert_eq!(refused(&wrong, b"namespace-9", &blob), KeyError::NotGenuine);
        let next = KeyEncryptionKey::new(6, [1; 32], engine);
        assert_eq!(
            refused(&next, b"namespace-9", &blob),
            KeyError::OtherKey { wanted: 5, given: 6 }
        );
        for bit in 0..blob.len() * 8 {
            let mut bad = blob;
            bad[bit / 8] ^= 1 << (bit % 8);
            refused(&kek, b"namespace-9", &bad);
        }
        assert_eq!(refused(&kek, b"namespace-9", &blob[1..]), KeyError::Length(64));
        assert_eq!(refused(&kek, b"namespace-9", &[]), KeyError::Length(0));
        let mut later = blob;
        later[0] = 2;
        assert_eq!(refused(&kek, b"namespace-9", &later), KeyError::Version(2));
    }
}

const GOLDEN_WRAPPED: &str = "0105000000030303030303030303030303\
     ff66139df883306eaafbe160cb1e23afbf34a64a80c8c5b5ab17ba41ad4d8174\
     b71e99d8b42a002dd2abfa48e69a4774";

#[test]
fn secrets_are_not_printed() {
    let key = NamespaceKey::new([0xAB; 32]);
    let kek = KeyEncryptionKey::new(1, [0xAB; 32], Engine::AwsLc);
    let seal = seal_of(Engine::AwsLc, Suite::Aes256Gcm, 1);
    let text = format!("{key:?} {kek:?} {:?} {seal:?}", keys(Engine::AwsLc));
    assert!(!text.contains("171") && !text.to_lowercase().contains("abab"), "{text}");
}

#[test]
fn golden_digest() {
    let digest = keys(Engine::AwsLc).digest(&[b"holdfast"], &mut Vec::new());
    assert_eq!(digest.0.to_vec(), hex(GOLDEN_DIGEST), "frozen: manifests hold it");
    // By hand, from the format page.
    let prk = mac(&[0; 32], &[7; 32]);
    let hash: [u8; 32] = mac(&prk, b"holdfast digest hash v1\x01").try_into().unwrap();
    let leaf = Engine::Reference.key(&hash).seal(
        &Message { nonce: [0; 12], aad: b"holdfast" },
        &[],
        &mut [],
    );
    let prf = mac(&prk, b"holdfast digest prf v1\x01");
    assert_eq!(mac(&prf, &[leaf.as_slice(), &8u64.to_le_bytes()].concat())[..16], digest.0);
}

const GOLDEN_DIGEST: &str = "27e7ec00bd326335d9a0ebc6ce3b5a4c";

#[test]
fn digests_differ_by_content_length_and_key() {
    let digest = |bytes: &[u8]| keys(Engine::AwsLc).digest(&[bytes], &mut Vec::new());
    let zeroes = vec![0; DIGEST_LEAF_BYTES * 2 + 1];
    let lens = [0, 1, 2, DIGEST_LEAF_BYTES - 1, DIGEST_LEAF_BYTES, DIGEST_LEAF_BYTES + 1];
    let all: std::collections::BTreeSet<PlainDigest> =
        lens.iter().chain(&[zeroes.len()]).map(|n| digest(&zeroes[..*n])).collect();
    assert_eq!(all.len(), lens.len() + 1);
    assert_ne!(NamespaceKeys::public(Engine::AwsLc).digest(&[b"x"], &mut Vec::new()), digest(b"x"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn engines_agree_byte_for_byte(
        key in any::<[u8; 32]>(), nonce in any::<[u8; 12]>(),
        aad in prop::collection::vec(any::<u8>(), 0..100),
        plain in prop::collection::vec(any::<u8>(), 0..5000),
    ) {
        let [fast, reference] = ENGINES.map(|engine| engine.key(&key));
        let (mut a, mut b) = (vec![0; plain.len()], vec![0; plain.len()]);
        let tag = fast.seal(&Message { nonce, aad: &aad }, &plain, &mut a);
        prop_assert_eq!(tag, reference.seal(&Message { nonce, aad: &aad }, &plain, &mut b));
        prop_assert_eq!(&a, &b);
        let mut c = plain.clone();
        prop_assert_eq!(tag, fast.seal_in_place(&Message { nonce, aad: &aad }, &mut c));
        prop_assert_eq!(&a, &c);
        prop_assert_eq!(reference.open(&Message { nonce, aad: &aad }, &a, &tag, &mut b), Ok(()));
        prop_assert_eq!(&b, &plain);
        prop_assert_eq!(fast.open(&Message { nonce, aad: &aad }, &a, &tag, &mut c), Ok(()));
        prop_assert_eq!(&c, &plain);
        let mut bad = tag;
        bad[15] ^= 1;
        for engine in [&fast, &reference] {
            let opened = engine.open(&Message { nonce, aad: &aad }, &a, &bad, &mut b);
            prop_assert_eq!(opened, Err(TagMismatch));
        }
    }

    #[test]
    fn any_flipped_bit_of_a_stored_frame_is_found(
        sealed in any::<bool>(), plain in prop::collection::vec(any::<u8>(), 1..3000),
        at in any::<prop::sample::Index>(),
    ) {
        let suite = if sealed { Suite::Aes256Gcm } else { Suite::Crc32c };
        let len = u32::try_from(plain.len()).unwrap();
        let frame = FrameInfo::new(suite, 0, len, len);
        let seal = seal_of(Engine::AwsLc, suite, len);
        let mut stored = vec![0; frame.stored_len as usize];
        seal.seal(&frame, &plain, &mut stored).unwrap();
        let bit = at.index(stored.len() * 8);
        stored[bit / 8] ^= 1 << (bit % 8);
        let opened = seal.open(&frame, &stored, &mut vec![0; plain.len()]);
        prop_assert_eq!(opened, Err(SealError::NotGenuine { frame: 0 }));
    }

    #[test]
    fn digests_do_not_depend_on_pieces_or_engine(
        len in 0usize..300_000, cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
    ) {
        let plain: Vec<u8> = (0..len).map(|i| (i * i / 7) as u8).collect();
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(len + 1)).collect();
        cuts.extend([0, len]);
        cuts.sort_unstable();
        let pieces: Vec<&[u8]> = cuts.windows(2).map(|w| &plain[w[0]..w[1]]).collect();
        let whole = keys(Engine::AwsLc).digest(&[&plain], &mut Vec::new());
        prop_assert_eq!(keys(Engine::AwsLc).digest(&pieces, &mut vec![1; 5]), whole);
        prop_assert_eq!(keys(Engine::Reference).digest(&pieces, &mut Vec::new()), whole);
    }
}
