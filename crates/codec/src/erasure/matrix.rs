//! Small dense matrices over GF(2^8), just enough to make a generator and invert k rows of it.
//!
//! Invariant: dimensions are at most 32, so everything here is microseconds; no size comes from outside unchecked.

use reed_solomon_erasure::galois_8::{add, div, exp, mul};

use super::Shape;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Matrix {
    columns: usize,
    cells: Vec<u8>,
}

impl Matrix {
    fn zero(rows: usize, columns: usize) -> Self {
        Self { columns, cells: vec![0; rows * columns] }
    }

    pub(super) fn from_rows(rows: &[&[u8]]) -> Self {
        let columns = rows.first().map_or(1, |row| row.len());
        Self { columns, cells: rows.concat() }
    }

    pub(super) fn row(&self, row: usize) -> &[u8] {
        &self.cells[row * self.columns..(row + 1) * self.columns]
    }

    fn rows(&self) -> usize {
        self.cells.len() / self.columns
    }

    pub(super) fn times(&self, right: &Self) -> Self {
        let mut product = Self::zero(self.rows(), right.columns);
        for (row, out) in
            self.cells.chunks(self.columns).zip(product.cells.chunks_mut(right.columns))
        {
            for (factor, right_row) in row.iter().zip(right.cells.chunks(right.columns)) {
                add_multiple(out, *factor, right_row);
            }
        }
        product
    }

    /// Gauss–Jordan; `None` if the matrix is singular.
    pub(super) fn inverse(&self) -> Option<Self> {
        let n = self.columns;
        assert_eq!(self.rows(), n, "only square matrices have an inverse");
        let mut left: Vec<Vec<u8>> = self.cells.chunks(n).map(<[u8]>::to_vec).collect();
        let mut right: Vec<Vec<u8>> = (0..n).map(|i| unit(n, i)).collect();
        for column in 0..n {
            let pivot = (column..n).find(|row| left[*row][column] != 0)?;
            left.swap(column, pivot);
            right.swap(column, pivot);
            let scale = div(1, left[column][column]);
            for cell in left[column].iter_mut().chain(&mut right[column]) {
                *cell = mul(scale, *cell);
            }
            for row in (0..n).filter(|row| *row != column) {
                let factor = left[row][column];
                let (from_left, from_right) = (left[column].clone(), right[column].clone());
                add_multiple(&mut left[row], factor, &from_left);
                add_multiple(&mut right[row], factor, &from_right);
            }
        }
        Some(Self { columns: n, cells: right.concat() })
    }
}

fn unit(n: usize, at: usize) -> Vec<u8> {
    let mut row = vec![0; n];
    row[at] = 1;
    row
}

fn add_multiple(out: &mut [u8], factor: u8, row: &[u8]) {
    for (cell, value) in out.iter_mut().zip(row) {
        *cell = add(*cell, mul(factor, *value));
    }
}

/// Rows of a Vandermonde matrix, made systematic by the inverse of the top square.
pub(super) fn generator(shape: Shape) -> Matrix {
    let k = usize::from(shape.k());
    let rows: Vec<Vec<u8>> =
        (0..shape.fragments()).map(|r| (0..k).map(|c| exp(r, c)).collect()).collect();
    let rows: Vec<&[u8]> = rows.iter().map(Vec::as_slice).collect();
    let top = Matrix::from_rows(&rows[..k]);
    let inverse = top.inverse().expect("a Vandermonde square with distinct points is regular");
    Matrix::from_rows(&rows).times(&inverse)
}
