//! Tests of [`super`]: known answers, properties, and damage that must be noticed.

#![expect(clippy::cast_possible_truncation, reason = "made-up bytes")]

use proptest::prelude::*;
use reed_solomon_erasure::galois_8::ReedSolomon;

use super::*;

fn shape(k: u8, m: u8) -> Shape {
    Shape::new(k, m).unwrap()
}

fn all_shapes() -> impl Iterator<Item = Shape> {
    (1..=MAX_FRAGMENTS).flat_map(|k| (0..=MAX_FRAGMENTS - k).map(move |m| shape(k, m)))
}

fn noise(len: usize, mut seed: u64) -> Vec<u8> {
    (0..len)
        .map(|_| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963);
            (seed >> 56) as u8
        })
        .collect()
}

/// k data fragments of unequal lengths, the longest being `stripe_len`.
fn uneven(k: u8, stripe_len: usize, seed: u64) -> Vec<Vec<u8>> {
    (0..usize::from(k))
        .map(|i| {
            let short =
                if i == seed as usize % usize::from(k) { 0 } else { (seed as usize >> i) % 97 };
            noise(stripe_len.saturating_sub(short), seed + i as u64)
        })
        .collect()
}

fn slices(fragments: &[Vec<u8>]) -> Vec<&[u8]> {
    fragments.iter().map(Vec::as_slice).collect()
}

fn encode(code: &Vandermonde, data: &[Vec<u8>], stripe_len: usize) -> Vec<Vec<u8>> {
    // Dirty buffers: encode must not rely on zeroes.
    let mut parity = vec![vec![0xEE; stripe_len]; usize::from(code.shape().m())];
    let mut out: Vec<&mut [u8]> = parity.iter_mut().map(Vec::as_mut_slice).collect();
    code.encode(&slices(data), &mut out).unwrap();
    parity
}

/// Rebuilds `lost` from `have` and compares.
fn rebuilds(code: &Vandermonde, all: &[Vec<u8>], stripe_len: usize, lost: &[u8]) {
    let have: Vec<(u8, &[u8])> = (0u8..)
        .zip(all)
        .filter(|(i, _)| !lost.contains(i))
        .map(|(i, bytes)| (i, bytes.as_slice()))
        .collect();
    let mut rebuilt: Vec<Vec<u8>> =
        lost.iter().map(|i| vec![0xEE; all[usize::from(*i)].len()]).collect();
    let mut want: Vec<(u8, &mut [u8])> =
        lost.iter().copied().zip(rebuilt.iter_mut().map(Vec::as_mut_slice)).collect();
    code.reconstruct(stripe_len, &have, &mut want).unwrap();
    for (i, bytes) in lost.iter().zip(&rebuilt) {
        assert_eq!(
            bytes,
            &all[usize::from(*i)],
            "{:?} fragment {i} of lost {lost:?}",
            code.shape()
        );
    }
}

#[test]
fn shapes_are_bounded() {
    assert!(Shape::new(0, 2).is_none());
    assert!(Shape::new(33, 0).is_none());
    assert!(Shape::new(16, 17).is_none());
    assert!(Shape::new(255, 255).is_none());
    assert_eq!(Shape::new(16, 16).unwrap().fragments(), 32);
}

/// The rows every library of this convention has for 4+2: frozen, since fragments on disks depend on them.
#[test]
fn golden_generator_rows() {
    let code = Vandermonde::new(shape(4, 2));
    assert_eq!(code.row(0), [1, 0, 0, 0]);
    assert_eq!(code.row(3), [0, 0, 0, 1]);
    assert_eq!(code.row(4), [27, 28, 18, 20]);
    assert_eq!(code.row(5), [28, 27, 20, 18]);
    let code = Vandermonde::new(shape(2, 2));
    assert_eq!(code.row(2), [3, 2]);
    assert_eq!(code.row(3), [2, 3]);
}

/// DESIGN's promise of growing parity online: (k, m) → (k, m + 1) adds a row and changes none.
#[test]
fn generator_is_prefix_stable_for_every_k() {
    for k in 1..=MAX_FRAGMENTS {
        let widest = Vandermonde::new(shape(k, MAX_FRAGMENTS - k));
        for m in 0..MAX_FRAGMENTS - k {
            let code = Vandermonde::new(shape(k, m));
            for row in 0..code.shape().fragments() {
                assert_eq!(code.row(row), widest.row(row), "k {k} m {m} row {row}");
            }
        }
    }
}

#[test]
fn one_more_parity_fragment_leaves_the_others_as_they_were() {
    let data = uneven(4, 20_000, 5);
    let two = encode(&Vandermonde::new(shape(4, 2)), &data, 20_000);
    let three = encode(&Vandermonde::new(shape(4, 3)), &data, 20_000);
    assert_eq!(two, three[..2]);
}

#[test]
fn parity_equals_the_reference_library_for_every_shape() {
    for shape in all_shapes().filter(|shape| shape.m() > 0) {
        let (k, m) = (usize::from(shape.k()), usize::from(shape.m()));
        let stripe_len = 131;
        let data = uneven(shape.k(), stripe_len, k as u64 * 37 + m as u64);
        let reference = ReedSolomon::new(k, m).unwrap();
        let mut padded = data.clone();
        padded.iter_mut().for_each(|fragment| fragment.resize(stripe_len, 0));
        let mut expected = vec![vec![0; stripe_len]; m];
        reference.encode_sep(&padded, &mut expected).unwrap();
        assert_eq!(encode(&Vandermonde::new(shape), &data, stripe_len), expected, "{shape:?}");
    }
}

#[test]
fn one_data_fragment_means_replication() {
    let data = vec![noise(9000, 1)];
    for copy in encode(&Vandermonde::new(shape(1, 3)), &data, 9000) {
        assert_eq!(copy, data[0]);
    }
}

#[test]
fn every_loss_up_to_m_is_rebuilt_in_small_shapes() {
    for (k, m) in [(1u8, 2u8), (2, 1), (2, 2), (4, 2), (3, 3), (5, 4)] {
        let code = Vandermonde::new(shape(k, m));
        let stripe_len = 300;
        let mut all = uneven(k, stripe_len, 11);
        all.extend(encode(&code, &all, stripe_len));
        for set in 0u32..1 << (k + m) {
            let lost: Vec<u8> = (0..k + m).filter(|i| set >> i & 1 == 1).collect();
            if lost.len() <= usize::from(m) {
                rebuilds(&code, &all, stripe_len, &lost);
            }
        }
    }
}

#[test]
fn lengths_around_the_block_size_and_empty_fragments_work() {
    let code = Vandermonde::new(shape(3, 2));
    for stripe_len in [0, 1, 15, 16, 17, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 7] {
        for lens in [
            [stripe_len, stripe_len, stripe_len],
            [stripe_len, 0, stripe_len / 2],
            [0, stripe_len, stripe_len.min(BLOCK)],
        ] {
            let mut all: Vec<Vec<u8>> = lens.iter().map(|n| noise(*n, 3)).collect();
            let parity = encode(&code, &all, stripe_len);
            assert_eq!(code.verify(&slices(&all), &slices(&parity)), Ok(true));
            all.extend(parity);
            for lost in [[0u8, 1], [1, 2], [0, 4], [3, 4]] {
                rebuilds(&code, &all, stripe_len, &lost);
            }
        }
    }
}

#[test]
fn no_parity_is_a_shape_like_any_other() {
    let code = Vandermonde::new(shape(4, 0));
    let data = uneven(4, 100, 2);
    code.encode(&slices(&data), &mut []).unwrap();
    assert_eq!(code.verify(&slices(&data), &[]), Ok(true));
    let have: Vec<(u8, &[u8])> = (0u8..3).zip(slices(&data)).collect();
    let mut out = vec![0; 100];
    assert_eq!(
        code.reconstruct(100, &have, &mut [(3, &mut out)]),
        Err(ErasureError::NotEnough { have: 3, need: 4 })
    );
}

#[test]
fn mistakes_are_refused_not_computed() {
    let code = Vandermonde::new(shape(2, 2));
    let (a, b) = (vec![1u8; 10], vec![2u8; 10]);
    let (mut p, mut q, mut short) = (vec![0u8; 10], vec![0u8; 10], vec![0u8; 9]);
    assert!(matches!(code.encode(&[&a], &mut [&mut p, &mut q]), Err(ErasureError::Count { .. })));
    assert!(matches!(code.encode(&[&a, &b], &mut [&mut p]), Err(ErasureError::Count { .. })));
    assert!(matches!(
        code.encode(&[&a, &b], &mut [&mut p, &mut short]),
        Err(ErasureError::Length { fragment: 3, .. })
    ));
    let long = vec![0u8; 11];
    assert!(matches!(
        code.encode(&[&a, &long], &mut [&mut p, &mut q]),
        Err(ErasureError::Length { fragment: 1, .. })
    ));
    let want = |have: &[(u8, &[u8])], i: u8, n: usize| {
        let mut out = vec![0; n];
        code.reconstruct(10, have, &mut [(i, &mut out)])
    };
    assert_eq!(want(&[(0, &a), (0, &a)], 1, 10), Err(ErasureError::Index { fragment: 0 }));
    assert_eq!(want(&[(0, &a), (4, &b)], 1, 10), Err(ErasureError::Index { fragment: 4 }));
    assert_eq!(want(&[(0, &a), (1, &b)], 0, 10), Err(ErasureError::Index { fragment: 0 }));
    assert!(matches!(want(&[(0, &a), (1, &b)], 2, 9), Err(ErasureError::Length { .. })));
    assert!(matches!(want(&[(0, &a), (2, &short)], 1, 9), Err(ErasureError::Length { .. })));
    assert_eq!(want(&[(0, &a)], 1, 10), Err(ErasureError::NotEnough { have: 1, need: 2 }));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn random_losses_are_rebuilt_whole_and_by_range(
        k in 1u8..=16, m in 1u8..=16, len in 1usize..5000, seed in any::<u32>(),
        order in Just((0u8..32).collect::<Vec<_>>()).prop_shuffle(),
        a in any::<usize>(), b in any::<usize>(),
    ) {
        let code = Vandermonde::new(shape(k, m));
        let mut all = uneven(k, len, u64::from(seed));
        all.extend(encode(&code, &all, len));
        let lost: Vec<u8> =
            order.into_iter().filter(|i| *i < k + m).take(usize::from(m)).collect();
        rebuilds(&code, &all, len, &lost);
        // A byte range of the stripe is rebuilt from the same range of the others.
        let (a, b) = (a % len, b % (len + 1));
        let (from, to) = (a.min(b), a.max(b));
        let ranged: Vec<Vec<u8>> =
            all.iter().map(|f| f[from.min(f.len())..to.min(f.len())].to_vec()).collect();
        rebuilds(&code, &ranged, to - from, &lost);
    }

    #[test]
    fn verify_finds_any_flipped_bit(
        k in 1u8..=8, m in 1u8..=4, len in 1usize..20_000, seed in any::<u32>(), at in any::<prop::sample::Index>(),
    ) {
        let code = Vandermonde::new(shape(k, m));
        let mut all = uneven(k, len, u64::from(seed));
        all.extend(encode(&code, &all, len));
        let (data, parity) = all.split_at(usize::from(k));
        prop_assert_eq!(code.verify(&slices(data), &slices(parity)), Ok(true));
        let bits: usize = all.iter().map(|f| f.len() * 8).sum();
        let mut bit = at.index(bits);
        for fragment in &mut all {
            if bit < fragment.len() * 8 {
                fragment[bit / 8] ^= 1 << (bit % 8);
                break;
            }
            bit -= fragment.len() * 8;
        }
        let (data, parity) = all.split_at(usize::from(k));
        prop_assert_eq!(code.verify(&slices(data), &slices(parity)), Ok(false));
    }
}
