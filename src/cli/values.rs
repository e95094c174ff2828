//! Words to values. What cannot be meant is refused with the range, and nothing is rounded.

use std::fmt::Display;
use std::str::FromStr;

use crate::pipeline::images::Format;
use crate::pipeline::request::{
    LoraChoice, MAX_COUNT, MAX_LORA_WEIGHT, MAX_SCALE, MAX_SIDE, MAX_STEPS,
};

type Parsed<T> = Result<T, String>;

/// A seed as it was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seed {
    Random,
    Fixed(u64),
}

/// A bound on memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Budget {
    Auto,
    Bytes(u64),
}

impl Budget {
    pub fn bytes(self) -> Option<u64> {
        match self {
            Budget::Auto => None,
            Budget::Bytes(bytes) => Some(bytes),
        }
    }
}

fn whole<T: FromStr + PartialOrd + Display>(text: &str, min: T, max: T) -> Parsed<T> {
    let refused = || format!("expected a whole number from {min} to {max}");
    text.parse().ok().filter(|v| (&min..=&max).contains(&v)).ok_or_else(refused)
}

fn real(text: &str, max: f32) -> Parsed<f32> {
    let refused = || format!("expected a number from 0 to {max}");
    text.parse().ok().filter(|v| (0.0..=max).contains(v)).ok_or_else(refused)
}

pub fn count(text: &str) -> Parsed<usize> {
    whole(text, 1, MAX_COUNT)
}

pub fn steps(text: &str) -> Parsed<usize> {
    whole(text, 1, MAX_STEPS)
}

pub fn threads(text: &str) -> Parsed<usize> {
    whole(text, 1, 1024)
}

pub fn runs(text: &str) -> Parsed<usize> {
    whole(text, 1, 1000)
}

pub fn quality(text: &str) -> Parsed<u8> {
    whole(text, 1, 100)
}

pub fn scale(text: &str) -> Parsed<f32> {
    real(text, MAX_SCALE)
}

/// `PATH` or `PATH:WEIGHT`; a path may hold colons, so only a number behind the last one is a weight.
pub fn lora(text: &str) -> Parsed<LoraChoice> {
    let (name, weight) =
        match text.rsplit_once(':').map(|(name, weight)| (name, weight.parse::<f32>())) {
            Some((name, Ok(weight))) => (name, weight),
            Some((name, Err(_))) if std::path::Path::new(name).is_file() => {
                return Err(format!(
                    "{} is no weight: expected a number behind the colon",
                    &text[name.len() + 1..]
                ));
            }
            _ => (text, 1.0),
        };
    if name.is_empty() {
        return Err(
            "expected a path or a name, such as style.safetensors or style.safetensors:0.8".into(),
        );
    }
    if !(-MAX_LORA_WEIGHT..=MAX_LORA_WEIGHT).contains(&weight) {
        return Err(format!("expected a weight from -{MAX_LORA_WEIGHT} to {MAX_LORA_WEIGHT}"));
    }
    Ok(LoraChoice { name: name.into(), weight, tag: false })
}

pub fn strength(text: &str) -> Parsed<f32> {
    real(text, 1.0)
}

/// Every FLUX.1 has tokens of 16 x 16 pixels; the pipeline checks again against the model at hand.
pub fn side(text: &str) -> Parsed<usize> {
    const UNIT: usize = 16;
    let expected = format!("expected a multiple of {UNIT} from {UNIT} to {MAX_SIDE}");
    let side: usize = text.parse().map_err(|_| expected.clone())?;
    if (UNIT..=MAX_SIDE).contains(&side) && side.is_multiple_of(UNIT) {
        return Ok(side);
    }
    let (below, above) =
        (side / UNIT * UNIT, (side / UNIT).saturating_mul(UNIT).saturating_add(UNIT));
    let near: Vec<String> = [below, above]
        .iter()
        .filter(|s| (UNIT..=MAX_SIDE).contains(*s))
        .map(usize::to_string)
        .collect();
    Err(if near.is_empty() { expected } else { format!("{expected}; try {}", near.join(" or ")) })
}

pub fn size(text: &str) -> Parsed<(usize, usize)> {
    let Some((width, height)) = text.split_once(['x', 'X', '\u{d7}']) else {
        return Err(format!(
            "expected WIDTHxHEIGHT such as 1024x768, multiples of 16 from 16 to {MAX_SIDE}"
        ));
    };
    Ok((side(width)?, side(height)?))
}

pub fn seed(text: &str) -> Parsed<Seed> {
    if text == "random" || text == "-1" {
        return Ok(Seed::Random);
    }
    let refused = || format!("expected a whole number from 0 to {}, or `random` (or -1)", u64::MAX);
    text.parse().map(Seed::Fixed).map_err(|_| refused())
}

/// `8G` and `8GB` are 8 * 10^9 bytes, `8Gi` and `8GiB` are 8 * 2^30; so for K, M and T. A number alone is bytes.
pub fn budget(text: &str) -> Parsed<Budget> {
    if text.eq_ignore_ascii_case("auto") {
        return Ok(Budget::Auto);
    }
    let refused = || {
        "expected auto, or a size such as 8G (10^9 bytes each), 8GiB (2^30 each) or 500M"
            .to_string()
    };
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
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
        _ => return Err(refused()),
    };
    // In whole numbers, so that what was typed is what is meant, to the byte.
    let unit = u128::from(base.pow(power));
    let (before, after) = number.split_once('.').unwrap_or((number, ""));
    let digits = |text: &str| if text.is_empty() { Some(0) } else { text.parse::<u128>().ok() };
    if number.is_empty() || number == "." || after.len() > 12 {
        return Err(refused());
    }
    let whole = digits(before).and_then(|b| b.checked_mul(unit)).ok_or_else(refused)?;
    let part = digits(after).ok_or_else(refused)? * unit / 10u128.pow(after.len() as u32);
    u64::try_from(whole + part).ok().filter(|&b| b > 0).map(Budget::Bytes).ok_or_else(refused)
}

pub fn device(text: &str) -> Parsed<String> {
    let (kind, index) =
        text.split_once(':').map_or((text, None), |(kind, index)| (kind, Some(index)));
    let known = match (kind, index) {
        ("auto" | "cpu" | "cuda" | "wgpu", None) => true,
        ("cuda" | "wgpu", Some(index)) => index.parse::<u16>().is_ok(),
        _ => false,
    };
    if known {
        Ok(text.to_string())
    } else {
        Err("expected auto, cpu, cuda, cuda:N, wgpu or wgpu:N".to_string())
    }
}

pub fn kernel(text: &str) -> Parsed<String> {
    match text.split_once('=') {
        Some((op, name)) if !op.is_empty() && !name.is_empty() => Ok(text.to_string()),
        _ => Err("expected OPERATION=NAME such as linear=linear_f32_avx2".to_string()),
    }
}

pub fn format(text: &str) -> Parsed<Format> {
    Format::parse(text).ok_or_else(|| "expected png, jpeg, webp, bmp or tiff".to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets_are_exact() {
        let ok = [
            ("auto", Budget::Auto),
            ("AUTO", Budget::Auto),
            ("1", Budget::Bytes(1)),
            ("12G", Budget::Bytes(12_000_000_000)),
            ("12GB", Budget::Bytes(12_000_000_000)),
            ("12 gb", Budget::Bytes(12_000_000_000)),
            ("12GiB", Budget::Bytes(12 << 30)),
            ("12gi", Budget::Bytes(12 << 30)),
            ("7.5G", Budget::Bytes(7_500_000_000)),
            (".5Mi", Budget::Bytes(1 << 19)),
            ("500M", Budget::Bytes(500_000_000)),
            ("0.1GiB", Budget::Bytes(107_374_182)),
            ("18446744073709551615", Budget::Bytes(u64::MAX)),
        ];
        for (text, expected) in ok {
            assert_eq!(budget(text), Ok(expected), "{text}");
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
            assert!(budget(text).is_err(), "{text}");
        }
    }

    #[test]
    fn numbers_out_of_range_are_refused_with_the_range() {
        for text in ["0", "-1", "1001", "1e3", "", "x", "99999999999999999999"] {
            assert_eq!(steps(text).unwrap_err(), "expected a whole number from 1 to 1000");
        }
        for text in ["nan", "inf", "1e400", "1e39", "-1", "", "x"] {
            assert_eq!(scale(text).unwrap_err(), "expected a number from 0 to 100");
        }
        assert_eq!(seed("18446744073709551615"), Ok(Seed::Fixed(u64::MAX)));
        assert_eq!((seed("-1"), seed("random")), (Ok(Seed::Random), Ok(Seed::Random)));
        for text in ["-2", "18446744073709551616", "1.5", "0x10", ""] {
            assert!(seed(text).is_err(), "{text}");
        }
        assert_eq!(size("1024x768"), Ok((1024, 768)));
        for text in ["1024", "x", "1024x", "1024x768x3", "-16x16"] {
            assert!(size(text).is_err(), "{text}");
        }
        for text in ["gpu", "cuda:", "cuda:x", "cpu:0", "cuda:-1", "cuda:99999", ""] {
            assert!(device(text).is_err(), "{text}");
        }
    }
}
