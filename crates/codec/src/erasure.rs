//! Reed–Solomon over GF(2^8): m parity fragments from k data fragments, any k of all rebuild the rest.
//!
//! What: the code that Backblaze's and klauspost's libraries made common: field polynomial 0x11d,
//! generator = Vandermonde matrix times the inverse of its top square, so the first k rows are the identity.
//! The multiply kernels are `reed-solomon-erasure`'s; matrix and loops are ours, and tests hold them equal to
//! that crate's own encoder. Ours because data fragments have unequal lengths (virtually padded with zeroes,
//! never really), and because a loop over small blocks stays in the cache where the crate walks whole shards.
//!
//! Why this matrix: it is **prefix-stable**. Row r of the generator depends on k and r, never on m; so (k, m) →
//! (k, m + 1) adds one fragment and changes none, and parity can grow online. (Proof: the row is
//! `(r^0 … r^(k-1)) · T⁻¹`, T being rows 0..k of the Vandermonde matrix.) With k = 1 each row is `(1)`:
//! plain replication.
//!
//! Invariant: for the same shape, every engine gives the same parity bytes; manifests name the code
//! by [`CODEC_ID`] because codes that differ in matrix or polynomial can't read each other.

mod matrix;

use reed_solomon_erasure::galois_8::{mul_slice, mul_slice_xor};
use thiserror::Error;

use matrix::Matrix;

/// Most fragments of an object, data and parity together.
pub const MAX_FRAGMENTS: u8 = 32;
/// Stands in manifests for [`CODEC_NAME`].
pub const CODEC_ID: u8 = 1;
/// The code's full name.
pub const CODEC_NAME: &str = "klauspost vandermonde gf256 0x11d";

/// Bytes of each fragment per round: k + m such blocks stay in the first two cache levels.
const BLOCK: usize = 8 << 10;

/// How many data and parity fragments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Shape {
    k: u8,
    m: u8,
}

impl Shape {
    /// `None` unless k ≥ 1 and k + m ≤ [`MAX_FRAGMENTS`].
    #[must_use]
    pub fn new(k: u8, m: u8) -> Option<Self> {
        (k >= 1 && k.checked_add(m)? <= MAX_FRAGMENTS).then_some(Self { k, m })
    }

    #[must_use]
    pub fn k(self) -> u8 {
        self.k
    }

    #[must_use]
    pub fn m(self) -> u8 {
        self.m
    }

    /// k + m.
    #[must_use]
    pub fn fragments(self) -> u8 {
        self.k + self.m
    }
}

/// What is wrong with a request. `NotEnough` is the data's fault (wait for fragments, or lost); the rest
/// is the caller's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ErasureError {
    #[error("{have} fragments of {need} that are needed")]
    NotEnough { have: usize, need: usize },
    #[error("{actual} {kind} fragments where {expected} belong")]
    Count { kind: &'static str, expected: usize, actual: usize },
    #[error("fragment {fragment} has {actual} bytes where {expected} belong")]
    Length { fragment: u8, expected: usize, actual: usize },
    #[error("fragment {fragment} is unknown or named twice")]
    Index { fragment: u8 },
}

/// An erasure code of one shape. All lengths may be of whole fragments or of the same byte range of each: the
/// code works position by position.
pub trait ErasureCode: Send + Sync + std::fmt::Debug {
    fn shape(&self) -> Shape;

    /// Fills all parity fragments, of one common length. Data fragments may be shorter: they count as zero-padded.
    fn encode(&self, data: &[&[u8]], parity: &mut [&mut [u8]]) -> Result<(), ErasureError>;

    /// Rebuilds the fragments in `want` from any k in `have` (more are ignored).
    ///
    /// Numbers 0..k are data, k..k+m parity. Data, given or wanted, may be shorter than `stripe_len`; parity
    /// has that length. A data fragment that is empty in the layout is given as `(i, &[])`.
    fn reconstruct(
        &self,
        stripe_len: usize,
        have: &[(u8, &[u8])],
        want: &mut [(u8, &mut [u8])],
    ) -> Result<(), ErasureError>;

    /// Whether the parity fits the data.
    fn verify(&self, data: &[&[u8]], parity: &[&[u8]]) -> Result<bool, ErasureError>;
}

/// The default engine. See the module's page.
#[derive(Debug, Clone)]
pub struct Vandermonde {
    shape: Shape,
    generator: Matrix,
}

impl Vandermonde {
    /// Computes the generator: a few microseconds, so keep it per shape.
    #[must_use]
    pub fn new(shape: Shape) -> Self {
        Self { shape, generator: matrix::generator(shape) }
    }

    /// The coefficients of fragment `row` over the k data fragments.
    #[must_use]
    pub fn row(&self, row: u8) -> &[u8] {
        self.generator.row(usize::from(row))
    }

    fn parity_rows(&self) -> impl Iterator<Item = &[u8]> {
        (self.shape.k()..self.shape.fragments()).map(|row| self.row(row))
    }

    fn check_data(&self, data: &[&[u8]], stripe_len: usize) -> Result<(), ErasureError> {
        check_count("data", self.shape.k(), data.len())?;
        for (fragment, bytes) in (0u8..).zip(data) {
            if bytes.len() > stripe_len {
                let actual = bytes.len();
                return Err(ErasureError::Length { fragment, expected: stripe_len, actual });
            }
        }
        Ok(())
    }

    /// The k sources to decode from, data first because identity rows make most coefficients zero.
    fn pick_sources<'a>(
        &self,
        stripe_len: usize,
        have: &[(u8, &'a [u8])],
    ) -> Result<Vec<(u8, &'a [u8])>, ErasureError> {
        let mut sources = have.to_vec();
        sources.sort_by_key(|(fragment, _)| *fragment);
        for (i, (fragment, bytes)) in sources.iter().enumerate() {
            if i > 0 && sources[i - 1].0 == *fragment {
                return Err(ErasureError::Index { fragment: *fragment });
            }
            self.check_fragment(stripe_len, *fragment, bytes.len())?;
        }
        let need = usize::from(self.shape.k());
        if sources.len() < need {
            return Err(ErasureError::NotEnough { have: sources.len(), need });
        }
        sources.truncate(need);
        Ok(sources)
    }

    fn check_fragment(
        &self,
        stripe_len: usize,
        fragment: u8,
        actual: usize,
    ) -> Result<(), ErasureError> {
        if fragment >= self.shape.fragments() {
            return Err(ErasureError::Index { fragment });
        }
        let is_parity = fragment >= self.shape.k();
        if actual > stripe_len || (is_parity && actual != stripe_len) {
            return Err(ErasureError::Length { fragment, expected: stripe_len, actual });
        }
        Ok(())
    }
}

impl ErasureCode for Vandermonde {
    fn shape(&self) -> Shape {
        self.shape
    }

    fn encode(&self, data: &[&[u8]], parity: &mut [&mut [u8]]) -> Result<(), ErasureError> {
        check_count("parity", self.shape.m(), parity.len())?;
        let Some(stripe_len) = parity.first().map(|p| p.len()) else {
            return check_count("data", self.shape.k(), data.len());
        };
        for (fragment, bytes) in (self.shape.k()..).zip(parity.iter()) {
            self.check_fragment(stripe_len, fragment, bytes.len())?;
        }
        self.check_data(data, stripe_len)?;
        for start in (0..stripe_len).step_by(BLOCK) {
            for (row, out) in self.parity_rows().zip(parity.iter_mut()) {
                let end = stripe_len.min(start + BLOCK);
                combine(row, data, start, &mut out[start..end]);
            }
        }
        Ok(())
    }

    fn reconstruct(
        &self,
        stripe_len: usize,
        have: &[(u8, &[u8])],
        want: &mut [(u8, &mut [u8])],
    ) -> Result<(), ErasureError> {
        let sources = self.pick_sources(stripe_len, have)?;
        for i in 0..want.len() {
            let fragment = want[i].0;
            self.check_fragment(stripe_len, fragment, want[i].1.len())?;
            let twice = want[..i].iter().any(|(other, _)| *other == fragment);
            if twice || have.iter().any(|(other, _)| *other == fragment) {
                return Err(ErasureError::Index { fragment });
            }
        }
        let rows: Vec<&[u8]> = sources.iter().map(|(fragment, _)| self.row(*fragment)).collect();
        let decode = Matrix::from_rows(&rows)
            .inverse()
            .expect("any k rows of a Vandermonde generator are independent");
        let wanted_rows = Matrix::from_rows(
            &want.iter().map(|(fragment, _)| self.row(*fragment)).collect::<Vec<_>>(),
        );
        let coefficients = wanted_rows.times(&decode);
        let bytes: Vec<&[u8]> = sources.iter().map(|(_, bytes)| *bytes).collect();
        for start in (0..stripe_len).step_by(BLOCK) {
            for (i, (_, out)) in want.iter_mut().enumerate() {
                let end = out.len().min(start + BLOCK);
                if start < end {
                    combine(coefficients.row(i), &bytes, start, &mut out[start..end]);
                }
            }
        }
        Ok(())
    }

    fn verify(&self, data: &[&[u8]], parity: &[&[u8]]) -> Result<bool, ErasureError> {
        check_count("parity", self.shape.m(), parity.len())?;
        let stripe_len = parity.first().map_or(usize::MAX, |p| p.len());
        for (fragment, bytes) in (self.shape.k()..).zip(parity) {
            self.check_fragment(stripe_len, fragment, bytes.len())?;
        }
        self.check_data(data, stripe_len)?;
        let mut computed = [0u8; BLOCK];
        for (row, stored) in self.parity_rows().zip(parity) {
            for (i, stored) in stored.chunks(BLOCK).enumerate() {
                let computed = &mut computed[..stored.len()];
                combine(row, data, i * BLOCK, computed);
                if computed != stored {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }
}

/// One block of one fragment: `out = Σ coefficient · source[start..]`, sources counting as zero-padded.
fn combine(coefficients: &[u8], sources: &[&[u8]], start: usize, out: &mut [u8]) {
    let mut begun = false;
    for (coefficient, source) in coefficients.iter().zip(sources) {
        let from = start.min(source.len());
        let piece = &source[from..source.len().min(start + out.len())];
        if *coefficient == 0 || piece.is_empty() {
            continue;
        }
        if begun {
            mul_slice_xor(*coefficient, piece, &mut out[..piece.len()]);
            continue;
        }
        begun = true;
        let (covered, padding) = out.split_at_mut(piece.len());
        padding.fill(0);
        if *coefficient == 1 {
            covered.copy_from_slice(piece);
        } else {
            mul_slice(*coefficient, piece, covered);
        }
    }
    if !begun {
        out.fill(0);
    }
}

fn check_count(kind: &'static str, expected: u8, actual: usize) -> Result<(), ErasureError> {
    let expected = usize::from(expected);
    if expected == actual { Ok(()) } else { Err(ErasureError::Count { kind, expected, actual }) }
}

#[cfg(test)]
mod tests;
