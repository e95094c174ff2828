//! Byte sizes and durations as text. Every message, report and table prints them through
//! this module, so that the same quantity always looks the same.
//!
//! Printed units are decimal: a GB is 10^9 bytes, in messages as in flags. [`ByteSize`] also reads
//! the binary units (`8GiB` is 8 * 2^30 bytes).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::Error;

/// A number of bytes. It prints as `8.70 GB`, parses `8G`, `512M` or `12GiB`, and serialises as the
/// plain number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ByteSize(pub u64);

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let n = self.0 as f64;
        let text = match self.0 {
            0..1_000 => format!("{} B", self.0),
            1_000..1_000_000 => format!("{:.1} kB", n / 1e3),
            1_000_000..1_000_000_000 => format!("{:.1} MB", n / 1e6),
            _ => format!("{:.2} GB", n / 1e9),
        };
        f.pad(&text)
    }
}

impl FromStr for ByteSize {
    type Err = Error;

    /// `8G` and `8GB` are 8 * 10^9 bytes, `8Gi` and `8GiB` are 8 * 2^30; the same for K, M and T. A
    /// number without a unit is bytes. Zero is refused, because every size that is parsed is a
    /// limit.
    fn from_str(text: &str) -> Result<Self, Error> {
        exact_bytes(text).filter(|&bytes| bytes > 0).map(ByteSize).ok_or_else(|| {
            Error::argument("not a size in bytes")
                .found(text)
                .expected("a size such as 8G (10^9 bytes each), 8GiB (2^30 each) or 500M")
        })
    }
}

/// Computed in whole numbers, so that the result is exact to the byte.
fn exact_bytes(text: &str) -> Option<u64> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let (power, base) = match unit.trim_start().to_ascii_lowercase().as_str() {
        "" | "b" => (0, 1000u64),
        "k" | "kb" => (1, 1000),
        "m" | "mb" => (2, 1000),
        "g" | "gb" => (3, 1000),
        "t" | "tb" => (4, 1000),
        "ki" | "kib" => (1, 1024),
        "mi" | "mib" => (2, 1024),
        "gi" | "gib" => (3, 1024),
        "ti" | "tib" => (4, 1024),
        _ => return None,
    };
    let unit = u128::from(base.pow(power));
    let (before, after) = number.split_once('.').unwrap_or((number, ""));
    if number.is_empty() || number == "." || after.len() > 12 {
        return None;
    }
    let digits = |text: &str| if text.is_empty() { Some(0) } else { text.parse::<u128>().ok() };
    let whole = digits(before)?.checked_mul(unit)?;
    let fraction = digits(after)? * unit / 10u128.pow(after.len() as u32);
    u64::try_from(whole.checked_add(fraction)?).ok()
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.0)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    /// A whole number of bytes, or text such as `8G`.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "expected a size such as 8G, 8GiB or a number of bytes")]
        enum Spelling {
            Number(u64),
            Text(String),
        }
        match Spelling::deserialize(deserializer)? {
            Spelling::Number(bytes) => Ok(ByteSize(bytes)),
            Spelling::Text(text) => text.parse().map_err(serde::de::Error::custom),
        }
    }
}

/// `bytes` as text: the short way to print a [`ByteSize`].
pub fn bytes(bytes: u64) -> String {
    ByteSize(bytes).to_string()
}

/// A duration as text: `0.52 s`, `12.3 s`, `140 s`.
pub fn seconds(seconds: f64) -> String {
    match seconds {
        s if s < 10.0 => format!("{s:.2} s"),
        s if s < 100.0 => format!("{s:.1} s"),
        s => format!("{s:.0} s"),
    }
}

/// A duration without fractions, for times to wait: `45 s`, `3 min 20 s`, `1 h 12 min`.
pub fn duration(seconds: f64) -> String {
    match seconds.ceil() as u64 {
        s if s < 60 => format!("{s} s"),
        s if s < 3600 => format!("{} min {} s", s / 60, s % 60),
        s => format!("{} h {} min", s / 3600, s % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_in_two_units() {
        for (seconds, text) in
            [(0.2, "1 s"), (59.0, "59 s"), (200.0, "3 min 20 s"), (4321.0, "1 h 12 min")]
        {
            assert_eq!(duration(seconds), text);
        }
    }

    #[test]
    fn sizes_are_parsed_exactly() {
        let ok = [
            ("1", 1),
            ("12G", 12_000_000_000),
            ("12GB", 12_000_000_000),
            ("12 gb", 12_000_000_000),
            ("12GiB", 12 << 30),
            ("12gi", 12 << 30),
            ("7.5G", 7_500_000_000),
            (".5Mi", 1 << 19),
            ("500M", 500_000_000),
            ("0.1GiB", 107_374_182),
            ("18446744073709551615", u64::MAX),
        ];
        for (text, expected) in ok {
            assert_eq!(text.parse::<ByteSize>().unwrap(), ByteSize(expected), "{text}");
        }
        for text in [
            "",
            "0",
            "0G",
            "G",
            ".",
            ".G",
            "8X",
            "-8G",
            "8 G B",
            "1e9",
            "nan",
            "inf",
            "8..5G",
            "99999999999999T",
            "٣G",
        ] {
            assert!(text.parse::<ByteSize>().is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_and_durations_print_in_decimal_units() {
        let printed = [
            (0, "0 B"),
            (999, "999 B"),
            (1_000, "1.0 kB"),
            (812_345_678, "812.3 MB"),
            (8_700_000_000, "8.70 GB"),
            (8 << 30, "8.59 GB"),
        ];
        for (n, text) in printed {
            assert_eq!(bytes(n), text);
        }
        assert_eq!(format!("{:>10}", ByteSize(1_500_000)), "    1.5 MB");
        assert_eq!(
            (seconds(0.5), seconds(12.34), seconds(140.4)),
            ("0.50 s".into(), "12.3 s".into(), "140 s".into())
        );
    }

    #[test]
    fn json_carries_numbers_and_accepts_text() {
        assert_eq!(serde_json::to_string(&ByteSize(8)).unwrap(), "8");
        let read = |json: &str| serde_json::from_str::<ByteSize>(json);
        assert_eq!(read("8000000000").unwrap(), read("\"8G\"").unwrap());
        assert!(read("\"lots\"").is_err() && read("-1").is_err());
    }
}
