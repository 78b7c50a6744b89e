//! What happened, as a digest and the last lines.
//!
//! Two runs of one seed must have equal digests: that catches every hidden clock, hash order and address. The last
//! lines are what a person reads when a seed fails.
//!
//! Invariant: equal notes in equal order give equal digests, on every machine.

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

/// How many lines a failure shows.
const RECENT_MAX: usize = 200;

/// FNV-1a by words, turned so that high bits count: not for enemies, only to tell two lives apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Digest(u64);

impl Default for Digest {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Digest {
    pub fn bytes(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks();
        for word in words {
            self.number(u64::from_le_bytes(*word));
        }
        for byte in rest {
            self.number(u64::from(*byte));
        }
    }

    pub const fn number(&mut self, number: u64) {
        self.0 = (self.0 ^ number).wrapping_mul(0x0100_0000_01b3).rotate_left(29);
    }

    #[must_use]
    pub fn value(self) -> u64 {
        self.0
    }
}

#[derive(Debug, Clone, Default)]
pub struct Trace {
    digest: Digest,
    notes: u64,
    recent: VecDeque<(Duration, String)>,
}

impl Trace {
    /// Takes a line into the digest: `trace.note(now, format_args!("crash of {node}"))`.
    pub fn note(&mut self, now: Duration, what: fmt::Arguments<'_>) {
        let line = what.to_string();
        self.digest.number(u64::try_from(now.as_nanos()).unwrap_or(u64::MAX));
        self.digest.bytes(line.as_bytes());
        self.digest.bytes(b"\n");
        self.notes += 1;
        if self.recent.len() == RECENT_MAX {
            self.recent.pop_front();
        }
        self.recent.push_back((now, line));
    }

    /// Takes bytes in that nobody wants to read.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.digest.bytes(bytes);
    }

    #[must_use]
    pub fn digest(&self) -> u64 {
        self.digest.value()
    }

    #[must_use]
    pub fn notes(&self) -> u64 {
        self.notes
    }
}

/// The last lines.
impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let left_out = self.notes - u64::try_from(self.recent.len()).unwrap_or(0);
        if 0 < left_out {
            writeln!(f, "… {left_out} lines before")?;
        }
        for (at, line) in &self.recent {
            writeln!(f, "{:>12.6} {line}", at.as_secs_f64())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(lines: &[&str]) -> u64 {
        let mut trace = Trace::default();
        for line in lines {
            trace.note(Duration::ZERO, format_args!("{line}"));
        }
        trace.digest()
    }

    #[test]
    fn the_digest_is_the_known_one() {
        let mut digest = Digest::default();
        digest.bytes(b"foobarbaz");
        assert_eq!(digest.value(), 0xd029_7543_d25c_67bf);
    }

    #[test]
    fn order_time_and_boundaries_matter() {
        assert_eq!(digest(&["a", "b"]), digest(&["a", "b"]));
        assert_ne!(digest(&["a", "b"]), digest(&["b", "a"]));
        assert_ne!(digest(&["ab"]), digest(&["a", "b"]));
        let mut later = Trace::default();
        later.note(Duration::from_secs(1), format_args!("a"));
        assert_ne!(later.digest(), digest(&["a"]));
    }

    #[test]
    fn only_the_last_lines_are_shown_but_all_are_counted() {
        let mut trace = Trace::default();
        for number in 0..RECENT_MAX + 5 {
            trace.note(Duration::ZERO, format_args!("line {number}"));
        }
        let text = trace.to_string();
        assert!(text.starts_with("… 5 lines before\n"), "{text}");
        assert!(text.contains("line 204") && !text.contains("line 4\n"));
    }
}
