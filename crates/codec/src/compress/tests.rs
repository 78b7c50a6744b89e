//! Tests of [`super`]: known answers, properties, and damage that must be noticed.

use proptest::prelude::*;

use super::*;

fn noise(len: usize, mut seed: u64) -> Vec<u8> {
    (0..len)
        .map(|_| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963);
            (seed >> 56) as u8
        })
        .collect()
}

fn text(len: usize) -> Vec<u8> {
    b"All that is gold does not glitter, not all those who wander are lost; "
        .iter()
        .copied()
        .cycle()
        .take(len)
        .collect()
}

#[test]
fn the_probe_tells_noise_from_text_zeroes_base64_and_half_noise() {
    let sizes = [4096usize, 16384, 65536];
    for (size, seed) in sizes.iter().flat_map(|s| (1..100u64).map(move |seed| (*s, seed))) {
        assert!(looks_like_noise(&noise(size, seed)), "size {size}, seed {seed}");
    }
    for size in sizes {
        assert!(!looks_like_noise(&text(size)));
        assert!(!looks_like_noise(&vec![0; size]));
        let six_bits: Vec<u8> = noise(size, 7).iter().map(|b| b & 63).collect();
        assert!(!looks_like_noise(&six_bits));
        let mut half = noise(size, 9);
        half[size / 2..].fill(0);
        assert!(!looks_like_noise(&half));
    }
    assert!(!looks_like_noise(&noise(100, 1)), "too small to judge: zstd decides");
}

#[test]
fn what_saves_less_than_an_eighth_stays_raw_in_both_modes() {
    let mut compressor = Compressor::new(Level::DEFAULT).unwrap();
    let mut out = vec![0; 16384];
    let mut mostly_noise = noise(16384, 3);
    mostly_noise[..1000].fill(0);
    for mode in [Compression::Adaptive(Level::DEFAULT), Compression::Always(Level::DEFAULT)] {
        assert_eq!(compressor.try_compress(mode, &noise(16384, 4), &mut out), None);
        assert_eq!(compressor.try_compress(mode, &mostly_noise, &mut out), None);
        assert!(compressor.try_compress(mode, &text(16384), &mut out).is_some());
        assert_eq!(compressor.try_compress(mode, &[], &mut out), None);
        assert_eq!(compressor.try_compress(mode, &[1], &mut out), None);
    }
    assert_eq!(compressor.try_compress(Compression::Off, &text(16384), &mut out), None);
}

#[test]
fn levels_are_checked_and_can_change_between_frames() {
    assert!(Level::new(0).is_none() && Level::new(20).is_none() && Level::new(-8).is_none());
    let mut compressor = Compressor::new(Level::DEFAULT).unwrap();
    let mut decompressor = Decompressor::new().unwrap();
    let plain = text(16384);
    for level in [-7i8, -1, 1, 3, 19] {
        let mode = Compression::Always(Level::new(level).unwrap());
        let mut out = vec![0; 16384];
        let n = compressor.try_compress(mode, &plain, &mut out).unwrap();
        let mut back = vec![0; plain.len()];
        decompressor.decompress(&out[..n], &mut back).unwrap();
        let mut behind = b"before".to_vec();
        decompressor.append(&out[..n], &mut behind, back.len()).unwrap();
        assert_eq!((&behind[..6], &behind[6..]), (&b"before"[..], &back[..]));
        assert_eq!(back, plain, "level {level}");
    }
}

#[test]
fn a_wrong_plain_length_is_damage() {
    let mut compressor = Compressor::new(Level::DEFAULT).unwrap();
    let mut decompressor = Decompressor::new().unwrap();
    let mut out = vec![0; 16384];
    let n = compressor
        .try_compress(Compression::Always(Level::DEFAULT), &text(16384), &mut out)
        .unwrap();
    for wrong in [0usize, 1, 16383, 16385] {
        assert_eq!(
            decompressor.decompress(&out[..n], &mut vec![0; wrong]),
            Err(CompressError::Damaged { expected: wrong })
        );
        let mut behind = Vec::with_capacity(1 << 16);
        behind.push(7);
        let appended = decompressor.append(&out[..n], &mut behind, wrong);
        assert_eq!(appended, Err(CompressError::Damaged { expected: wrong }));
        assert_eq!(behind, [7], "nothing of a frame that isn't what it says is left");
    }
}

proptest! {
    #[test]
    fn garbage_never_panics_the_decompressor(packed in prop::collection::vec(any::<u8>(), 0..2000)) {
        let mut decompressor = Decompressor::new().unwrap();
        let mut plain = vec![0u8; 16384];
        let _ = decompressor.decompress(&packed, &mut plain);
        // A context that met garbage still works.
        let mut compressor = Compressor::new(Level::DEFAULT).unwrap();
        let mut out = vec![0; 16384];
        let good = text(16384);
        let n = compressor
            .try_compress(Compression::Always(Level::DEFAULT), &good, &mut out)
            .unwrap();
        decompressor.decompress(&out[..n], &mut plain).unwrap();
        prop_assert_eq!(plain, good);
    }
}

#[test]
fn only_adaptive_mode_hurries_under_load() {
    let level = |level| Level::new(level).unwrap();
    assert_eq!(Compression::Adaptive(level(3)).under_load(), Compression::Adaptive(Level::HURRIED));
    assert_eq!(Compression::Adaptive(level(-7)).under_load(), Compression::Adaptive(level(-7)));
    assert_eq!(Compression::Always(level(3)).under_load(), Compression::Always(level(3)));
    assert_eq!(Compression::Off.under_load(), Compression::Off);
}
