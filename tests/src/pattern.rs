//! Plain data that can be told apart: a stretch of a vDisk as a function of a seed.
//!
//! For tests that ask "is it all still there", where the history of a random load would say no more.
//!
//! Invariant: what is checked is compared byte for byte with what was written, never with a checksum of it.

use std::ops::Range;

use anyhow::{Context, ensure};
use sim::Random;

use crate::nbd::{Connection, Target};

const PIECE: u32 = 1 << 20;

/// A stretch of whole MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pattern {
    pub seed: u64,
    pub offset: u64,
    pub mib: u64,
}

impl Pattern {
    fn piece(self, number: u64) -> Vec<u8> {
        let mut bytes = vec![0; PIECE as usize];
        Random::new(self.seed ^ (number << 32)).fill(&mut bytes);
        bytes
    }

    fn at(self, number: u64) -> u64 {
        self.offset + number * u64::from(PIECE)
    }

    /// Writes it all and flushes.
    pub fn write(self, target: &Target) -> anyhow::Result<()> {
        let mut connection = Connection::open(target)?;
        for number in 0..self.mib {
            connection.write(self.at(number), &self.piece(number))?;
        }
        connection.flush()
    }

    /// Reads it all and compares.
    pub fn check(self, target: &Target) -> anyhow::Result<()> {
        self.check_except(target, &[])
    }

    /// Reads and compares all but some MiB of it.
    pub fn check_except(self, target: &Target, except: &[Range<u64>]) -> anyhow::Result<()> {
        let mut connection = Connection::open(target)?;
        let checked = |number: &u64| !except.iter().any(|left_out| left_out.contains(number));
        for number in (0..self.mib).filter(checked) {
            let read = connection.read(self.at(number), PIECE)?;
            self.compare(number, &read)?;
        }
        Ok(())
    }

    /// Reads every `step`th MiB: how many compare equal, and how many are errors. Other bytes are an error of the test.
    pub fn readable(self, target: &Target, step: usize) -> anyhow::Result<(u64, u64)> {
        let mut connection = Connection::open(target)?;
        let (mut good, mut failed) = (0, 0);
        for number in (0..self.mib).step_by(step) {
            match connection.read(self.at(number), PIECE) {
                Ok(read) => {
                    self.compare(number, &read)?;
                    good += 1;
                }
                Err(error) => {
                    let text = format!("{error:#}");
                    ensure!(text.contains("error 5"), "not EIO, but {text}");
                    failed += 1;
                }
            }
        }
        Ok((good, failed))
    }

    fn compare(self, number: u64, read: &[u8]) -> anyhow::Result<()> {
        let expected = self.piece(number);
        if read == expected {
            return Ok(());
        }
        let at = read.iter().zip(&expected).position(|(a, b)| a != b).context("equal in part")?;
        let zeroes = read.iter().filter(|byte| **byte == 0).count();
        anyhow::bail!(
            "wrong bytes from offset {} on; {zeroes} of {PIECE} bytes of this piece are zero",
            self.at(number) + at as u64
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_differ_and_a_wrong_byte_is_named() {
        let pattern = Pattern { seed: 1, offset: 0, mib: 2 };
        assert_ne!(pattern.piece(0), pattern.piece(1));
        assert!(pattern.compare(1, &pattern.piece(1)).is_ok());
        let mut wrong = pattern.piece(1);
        wrong[7] ^= 1;
        let error = pattern.compare(1, &wrong).unwrap_err().to_string();
        assert!(error.contains(&((1 << 20) + 7).to_string()), "{error}");
    }
}
