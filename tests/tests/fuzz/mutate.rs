//! Seeded mutations of kept bytes: small, and biased to what breaks decoders (lengths, counts, borders, cuts).
//!
//! Invariant: equal seeds give equal bytes.

use fastrand::Rng;

/// Longest input.
const LEN_MAX: usize = 64 << 10;
const INTERESTING: [u64; 12] = [
    0,
    1,
    2,
    127,
    128,
    255,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x7fff_ffff_ffff_ffff,
    0x8000_0000_0000_0000,
    u64::MAX,
];

/// `base` with a few changes; `other` may lend bytes.
pub fn mutate(base: &[u8], other: &[u8], random: &mut Rng) -> Vec<u8> {
    let mut out = base.to_vec();
    for _ in 0..random.usize(1..=4) {
        change(&mut out, other, random);
    }
    out.truncate(LEN_MAX);
    out
}

fn change(out: &mut Vec<u8>, other: &[u8], random: &mut Rng) {
    if out.is_empty() {
        out.push(random.u8(..));
        return;
    }
    let at = random.usize(..out.len());
    match random.u8(..9) {
        0 | 1 => out[at] ^= 1 << random.u8(..8),
        2 => out[at] = random.u8(..),
        3 => {
            let width = 1 << random.u8(..4);
            let value = INTERESTING[random.usize(..INTERESTING.len())].to_le_bytes();
            for (byte, new) in out[at..].iter_mut().zip(&value[..width]) {
                *byte = *new;
            }
        }
        4 => out.truncate(at),
        5 => {
            let len = random.usize(1..=(out.len() - at).min(64));
            out.drain(at..at + len);
        }
        6 => {
            let len = random.usize(1..=(out.len() - at).min(64));
            let copy = out[at..at + len].to_vec();
            let to = random.usize(..=out.len());
            out.splice(to..to, copy);
        }
        7 => out[at] = out[at].wrapping_add(if random.bool() { 1 } else { 255 }),
        _ => {
            if other.is_empty() {
                return;
            }
            let from = random.usize(..other.len());
            let len = random.usize(1..=(other.len() - from).min(256));
            let end = (at + len).min(out.len());
            out.splice(at..end, other[from..from + len].iter().copied());
        }
    }
}
