//! Words to values. What cannot be meant is refused with the range, and nothing is rounded.

use std::fmt::Display;
use std::str::FromStr;

use clap::builder::{PossibleValuesParser, TypedValueParser};

use crate::backend::{Compute, Device, KernelChoice};
use crate::error::Error;
use crate::pipeline::images::Format;
use crate::pipeline::request::{
    LoraChoice, MAX_COUNT, MAX_LORA_WEIGHT, MAX_SCALE, MAX_SIDE, MAX_STEPS,
};
use crate::units::ByteSize;

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

/// `PATH` or `PATH:WEIGHT`; a path may hold colons, so only a number behind the last one is a
/// weight.
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

/// `auto`, or a size: see [`ByteSize`].
pub fn budget(text: &str) -> Parsed<Budget> {
    if text.eq_ignore_ascii_case("auto") {
        return Ok(Budget::Auto);
    }
    let size =
        typed::<ByteSize>(text).map_err(|why| why.replacen("expected ", "expected auto, or ", 1));
    size.map(|size| Budget::Bytes(size.0))
}

/// A value of a type that reads itself.
fn typed<T: FromStr<Err = Error>>(text: &str) -> Parsed<T> {
    text.parse().map_err(|e: Error| match e.expected_value() {
        Some(expected) => format!("expected {expected}"),
        None => e.to_string(),
    })
}

/// A device: see [`Device`].
pub fn device(text: &str) -> Parsed<Device> {
    typed(text)
}

/// The words for [`Compute`], which `--help` and completions list.
pub fn compute() -> impl TypedValueParser<Value = Compute> {
    PossibleValuesParser::new(Compute::ALL.map(Compute::name)).try_map(|word| word.parse())
}

/// A forced kernel variant: see [`KernelChoice`].
pub fn kernel(text: &str) -> Parsed<KernelChoice> {
    typed(text)
}

pub fn format(text: &str) -> Parsed<Format> {
    Format::parse(text).ok_or_else(|| "expected png, jpeg, webp, bmp or tiff".to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets_are_sizes_or_auto() {
        assert_eq!((budget("auto"), budget("AUTO")), (Ok(Budget::Auto), Ok(Budget::Auto)));
        assert_eq!(budget("12G"), Ok(Budget::Bytes(12_000_000_000)));
        assert!(budget("8X").unwrap_err().starts_with("expected auto, or a size"));
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
        assert_eq!(device("gpu").unwrap_err(), "expected auto, cpu, cuda, cuda:N, wgpu or wgpu:N");
        assert!(kernel("linear").unwrap_err().starts_with("expected OPERATION=NAME"));
    }
}
