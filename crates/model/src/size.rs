//! Sizes as people write them: `10GiB`, `512`, `1.5TiB`.

use std::fmt;
use std::str::FromStr;

/// Bytes in a cluster, the smallest unit that a vDisk maps.
pub const CLUSTER_SIZE: u64 = 4096;

/// A number of bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(pub u64);

const UNITS: [(&str, u64); 6] = [
    ("PiB", 1 << 50),
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("B", 1),
];

/// Text that isn't a size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{text}` isn't a size: write a number and a unit of B, KiB, MiB, GiB, TiB or PiB, like 10GiB"
)]
pub struct ParseSizeError {
    pub text: String,
}

impl FromStr for ByteSize {
    type Err = ParseSizeError;

    /// Accepts `4096`, `4KiB`, `4 KiB`, `1.5GiB`; case of the unit doesn't matter, `K`/`M`/`G`/`T` mean the same.
    fn from_str(text: &str) -> Result<Self, ParseSizeError> {
        let err = || ParseSizeError { text: text.to_owned() };
        let trimmed = text.trim();
        let split =
            trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
        let (digits, unit) = trimmed.split_at(split);
        let unit = unit.trim().to_ascii_lowercase();
        let factor = match unit.as_str() {
            "" | "b" => 1,
            "k" | "kib" => 1 << 10,
            "m" | "mib" => 1 << 20,
            "g" | "gib" => 1 << 30,
            "t" | "tib" => 1_u64 << 40,
            "p" | "pib" => 1_u64 << 50,
            _ => return Err(err()),
        };
        let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
        if whole.is_empty() || fraction.len() > 9 || (digits.contains('.') && fraction.is_empty()) {
            return Err(err());
        }
        let whole: u64 = whole.parse().map_err(|_| err())?;
        let bytes = whole.checked_mul(factor).ok_or_else(err)?;
        let part = if fraction.is_empty() {
            0
        } else {
            let value: u128 = fraction.parse().map_err(|_| err())?;
            let scale = 10_u128.pow(u32::try_from(fraction.len()).map_err(|_| err())?);
            u64::try_from(value * u128::from(factor) / scale).map_err(|_| err())?
        };
        bytes.checked_add(part).map(Self).ok_or_else(err)
    }
}

impl fmt::Display for ByteSize {
    /// The largest unit that divides it, else two decimals of the largest unit below it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 {
            return f.pad("0 B");
        }
        let (unit, factor) =
            UNITS.iter().find(|(_, factor)| *factor <= self.0).expect("1 divides all");
        let (whole, rest) = (self.0 / factor, self.0 % factor);
        let text = if rest == 0 {
            format!("{whole} {unit}")
        } else {
            let hundredths = u128::from(rest) * 100 / u128::from(*factor);
            format!("{whole}.{hundredths:02} {unit}")
        };
        f.pad(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_parse_as_people_write_them() {
        for (text, bytes) in [
            ("512", 512),
            ("4KiB", 4096),
            ("4 kib", 4096),
            ("1.5GiB", 3 << 29),
            ("16TiB", 1 << 44),
            ("2g", 2 << 30),
        ] {
            assert_eq!(text.parse::<ByteSize>(), Ok(ByteSize(bytes)), "{text}");
        }
        for text in ["", "GiB", "-1", "1.GiB", "1e3", "99999999999TiB", "10 XB", "1.2.3G"] {
            assert!(text.parse::<ByteSize>().is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_print_in_the_largest_fitting_unit() {
        assert_eq!(ByteSize(4096).to_string(), "4 KiB");
        assert_eq!(ByteSize(3 << 29).to_string(), "1.50 GiB");
        assert_eq!(ByteSize(7).to_string(), "7 B");
    }
}
