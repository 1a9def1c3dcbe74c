//! Sizes (`10MiB`) and durations (`240s`, `5m`) in configuration files and on
//! command lines: reading and printing.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};

/// A text that is not a size or duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("found {found:?}, expected {expected}")]
pub struct UnitError {
    /// The text that was found.
    pub found: String,
    /// The form that was expected.
    pub expected: &'static str,
}

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct ByteSize(pub u64);

const SIZES: [(&str, u64); 10] = [
    ("B", 1),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("kB", 1_000),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
];
const SIZE: &str = "a size like \"10MiB\", \"2GB\" or \"0\"";

impl FromStr for ByteSize {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let error = || UnitError { found: text.to_owned(), expected: SIZE };
        let (number, unit) = split(text).ok_or_else(error)?;
        let factor = match unit {
            "" => 1,
            _ => SIZES.iter().find(|(name, _)| *name == unit).ok_or_else(error)?.1,
        };
        number.checked_mul(factor).map(Self).ok_or_else(error)
    }
}

impl fmt::Display for ByteSize {
    /// Writes the largest binary unit of which the size is a multiple. The text reads
    /// back as the same size.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let exact =
            SIZES[1..5].iter().rev().find(|(_, factor)| self.0 != 0 && self.0.is_multiple_of(*factor));
        match exact {
            Some((unit, factor)) => write!(f, "{}{unit}", self.0 / factor),
            None => write!(f, "{}", self.0),
        }
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl Visitor<'_> for Reader {
            type Value = ByteSize;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(SIZE)
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<ByteSize, E> {
                text.parse().map_err(E::custom)
            }

            // A plain number of bytes is clear. A plain number of time units is not, so
            // `Period` does not read one.
            fn visit_i64<E: de::Error>(self, number: i64) -> Result<ByteSize, E> {
                u64::try_from(number)
                    .map(ByteSize)
                    .map_err(|_| E::invalid_value(de::Unexpected::Signed(number), &self))
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<ByteSize, E> {
                Ok(ByteSize(number))
            }
        }
        deserializer.deserialize_any(Reader)
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A duration, in whole milliseconds; at most a hundred years.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Period(pub Duration);

// A unit's first name is the one that is printed.
const PERIODS: [(&str, u64); 6] =
    [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000), ("min", 60_000)];
const PERIOD: &str = "a duration like \"240s\", \"5m\" or \"1h30m\"";
/// A hundred years, in milliseconds: can be added to any clock without overflow.
const LONGEST: u64 = 100 * 365 * 86_400_000;

impl FromStr for Period {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let error = || UnitError { found: text.to_owned(), expected: PERIOD };
        let (mut rest, mut total, mut smaller_than) = (text.trim(), 0_u64, u64::MAX);
        if rest.is_empty() {
            return Err(error());
        }
        if rest == "0" {
            return Ok(Self(Duration::ZERO));
        }
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(error)?;
            let unit_end =
                rest[digits..].find(|c: char| c.is_ascii_digit()).map_or(rest.len(), |i| digits + i);
            let number: u64 = rest[..digits].parse().map_err(|_| error())?;
            let unit = &rest[digits..unit_end];
            let factor = PERIODS.iter().find(|(name, _)| *name == unit).ok_or_else(error)?.1;
            // "30m1h" or "5m5m" is most likely a typing error.
            if factor >= smaller_than {
                return Err(error());
            }
            smaller_than = factor;
            total = number.checked_mul(factor).and_then(|n| total.checked_add(n)).ok_or_else(error)?;
            rest = &rest[unit_end..];
        }
        if total > LONGEST { Err(error()) } else { Ok(Self(Duration::from_millis(total))) }
    }
}

impl Period {
    /// Reads a duration as on a command line, where a plain number counts seconds.
    pub fn parse_or_seconds(text: &str) -> Result<Self, UnitError> {
        let plain = text.trim();
        if !plain.is_empty() && plain.bytes().all(|b| b.is_ascii_digit()) {
            return format!("{plain}s")
                .parse()
                .map_err(|e: UnitError| UnitError { found: text.to_owned(), ..e });
        }
        text.parse()
    }
}

impl fmt::Display for Period {
    /// Writes the largest units first and leaves out zeros. The text reads back as the
    /// same duration.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX);
        if rest == 0 {
            return f.write_str("0s");
        }
        for (unit, factor) in PERIODS[..5].iter().rev() {
            if rest >= *factor {
                write!(f, "{}{unit}", rest / factor)?;
                rest %= factor;
            }
        }
        Ok(())
    }
}

impl<'de> Deserialize<'de> for Period {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl Visitor<'_> for Reader {
            type Value = Period;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(PERIOD)
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Period, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Reader)
    }
}

impl Serialize for Period {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Splits a text into a whole number and the unit behind it. Blanks between them are
/// allowed.
fn split(text: &str) -> Option<(u64, &str)> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    Some((text[..digits].parse().ok()?, text[digits..].trim_start()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes, printed) in [
            ("0", 0, "0"),
            ("17", 17, "17"),
            ("17B", 17, "17"),
            ("10MiB", 10 << 20, "10MiB"),
            ("10 MiB", 10 << 20, "10MiB"),
            ("1024KiB", 1 << 20, "1MiB"),
            ("2GB", 2_000_000_000, "1953125KiB"),
            ("1kB", 1000, "1000"),
            ("3TiB", 3 << 40, "3TiB"),
        ] {
            let size: ByteSize = text.parse().unwrap();
            assert_eq!(size.0, bytes, "{text}");
            assert_eq!(size.to_string(), printed);
            assert_eq!(printed.parse(), Ok(size), "{printed} reads back");
        }
        for bad in ["", "MiB", "-1", "1.5GiB", "10mib", "10M", "10MiB/s", "99999999999TiB", "٣B"] {
            assert!(bad.parse::<ByteSize>().is_err(), "{bad}");
        }
        let error = "ten".parse::<ByteSize>().unwrap_err().to_string();
        assert_eq!(error, "found \"ten\", expected a size like \"10MiB\", \"2GB\" or \"0\"");
    }

    #[test]
    fn periods() {
        for (text, ms, printed) in [
            ("0", 0, "0s"),
            ("0s", 0, "0s"),
            ("240s", 240_000, "4m"),
            ("5m", 300_000, "5m"),
            (" 5min ", 300_000, "5m"),
            ("1h30m", 5_400_000, "1h30m"),
            ("90s", 90_000, "1m30s"),
            ("30d", 2_592_000_000, "30d"),
            ("1500ms", 1_500, "1s500ms"),
        ] {
            let period: Period = text.parse().unwrap();
            assert_eq!(period.0.as_millis(), ms, "{text}");
            assert_eq!(period.to_string(), printed);
            assert_eq!(printed.parse(), Ok(period), "{printed} reads back");
        }
        for bad in
            ["", "5", "s", "-5s", "5 m", "1.5h", "5m5m", "30m1h", "5y", "999999999d", "18446744073709551615d"]
        {
            assert!(bad.parse::<Period>().is_err(), "{bad}");
        }
    }

    #[test]
    fn on_a_command_line_a_plain_number_counts_seconds() {
        for (text, ms) in [("90", 90_000), (" 5 ", 5_000), ("0", 0), ("1h30m", 5_400_000), ("250ms", 250)] {
            assert_eq!(Period::parse_or_seconds(text).unwrap().0.as_millis(), ms, "{text}");
        }
        for bad in ["", "1h30", "-1", "1.5", "99999999999999999999", "٣"] {
            let error = Period::parse_or_seconds(bad).unwrap_err();
            assert_eq!(error.found, bad);
        }
    }
}
