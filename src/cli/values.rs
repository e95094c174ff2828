//! Words to values. What cannot be meant is refused with the range, and nothing is rounded.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;

use clap::builder::{PossibleValuesParser, TypedValueParser};

use crate::backend::{Compute, Device, KernelChoice};
use crate::error::Error;
use crate::pipeline::images::Format;
use crate::pipeline::request::{
    AspectRatio, ControlMode, ControlNetChoice, LoraChoice, MAX_LORA_STRENGTH, MAX_SIDE,
    MAX_STYLE_STRENGTH, Margins,
};
use crate::units::ByteSize;

type Parsed<T> = Result<T, String>;

/// A seed as it was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seed {
    /// A new one for each run.
    Random,
    /// This one.
    Fixed(u64),
}

impl Seed {
    /// The number, unless it is random.
    pub fn number(self) -> Option<u64> {
        match self {
            Seed::Random => None,
            Seed::Fixed(seed) => Some(seed),
        }
    }
}

/// A bound on memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Budget {
    Auto,
    Bytes(ByteSize),
}

impl Budget {
    pub fn size(self) -> Option<ByteSize> {
        match self {
            Budget::Auto => None,
            Budget::Bytes(size) => Some(size),
        }
    }
}

/// A parser of whole numbers in `range`.
pub fn whole<T>(range: RangeInclusive<T>) -> impl Fn(&str) -> Parsed<T> + Clone
where
    T: FromStr + PartialOrd + Display + Clone,
{
    move |text| number(text, "a whole number from", &range)
}

/// A parser of numbers in `range`. NaN is in no range.
pub fn real(range: RangeInclusive<f32>) -> impl Fn(&str) -> Parsed<f32> + Clone {
    move |text| number(text, "a number from", &range)
}

/// The value of `--controlnet`.
#[derive(Debug, Clone, PartialEq)]
pub struct ControlNetArg {
    /// The ControlNet; its name is empty where that of a recorded image is meant.
    pub choice: ControlNetChoice,
    /// The file of the image that it sees.
    pub image: PathBuf,
}

/// `FILE:IMAGE[:STRENGTH[:START-END]]`, and `,mode=NAME` or `,edges` behind it.
pub fn controlnet(text: &str) -> Parsed<ControlNetArg> {
    const EXPECTED: &str = "expected FILE:IMAGE, such as union.safetensors:pose.png:0.7:0-0.8";
    let (mut rest, mut mode, mut edges, mut thresholds) = (text, None, false, None);
    while let Some((before, option)) = rest.rsplit_once(',') {
        match option.split_once('=') {
            Some(("mode", name)) => mode = Some(typed::<ControlMode>(name)?),
            Some(("edges", range)) => (edges, thresholds) = (true, Some(edge_range(range)?)),
            None if option == "edges" => edges = true,
            _ => break,
        }
        rest = before;
    }
    let part = |text: &str| {
        let (start, end) = text.split_once('-')?;
        Some((start.parse::<f32>().ok()?, end.parse::<f32>().ok()?))
    };
    let (mut strength, mut steps) = (1.0, (0.0, 1.0));
    if let Some((before, last)) = rest.rsplit_once(':') {
        match (part(last), last.parse()) {
            (Some(part), _) => {
                let (before, number) = before.rsplit_once(':').ok_or(EXPECTED)?;
                let wrong =
                    "expected a strength before the part of the steps: FILE:IMAGE:0.7:0-0.8";
                (rest, strength, steps) = (before, number.parse().map_err(|_| wrong)?, part);
            }
            (None, Ok(number)) => (rest, strength) = (before, number),
            (None, Err(_)) => {}
        }
    }
    // The colon behind the letter of a drive is a part of the path.
    let is_drive = |at: usize| {
        at == 1
            && rest.as_bytes()[0].is_ascii_alphabetic()
            && rest[at + 1..].starts_with(['\\', '/'])
    };
    let colon = rest.match_indices(':').map(|(at, _)| at).find(|at| !is_drive(*at));
    let colon = colon.filter(|at| at + 1 < rest.len()).ok_or(EXPECTED)?;
    let (name, image) = (&rest[..colon], PathBuf::from(&rest[colon + 1..]));
    let choice = ControlNetChoice::new(name, strength).steps(steps.0, steps.1);
    Ok(ControlNetArg { choice: ControlNetChoice { mode, edges, thresholds, ..choice }, image })
}

/// The thresholds of edges, `LOW-HIGH`; the request checks their range.
fn edge_range(text: &str) -> Parsed<[u16; 2]> {
    let read = || {
        let (low, high) = text.split_once('-')?;
        Some([low.parse().ok()?, high.parse().ok()?])
    };
    read().ok_or_else(|| "expected two thresholds after edges=, such as edges=100-200".to_string())
}

fn number<T: FromStr + PartialOrd + Display>(
    text: &str,
    what: &str,
    range: &RangeInclusive<T>,
) -> Parsed<T> {
    let refused = || format!("expected {what} {} to {}", range.start(), range.end());
    text.parse().ok().filter(|v| range.contains(v)).ok_or_else(refused)
}

/// `PATH`, `PATH:STRENGTH` or `PATH:STRENGTH:TEXT_STRENGTH`. A path may contain colons, so only
/// numbers after the last ones are strengths.
pub fn lora(text: &str) -> Parsed<LoraChoice> {
    let (name, strength) = match text.rsplit_once(':').map(|(name, s)| (name, s.parse::<f32>())) {
        Some((name, Ok(strength))) => (name, strength),
        Some((name, Err(_))) if std::path::Path::new(name).is_file() => {
            return Err(format!(
                "{} is not a strength: expected a number after the colon",
                &text[name.len() + 1..]
            ));
        }
        _ => (text, 1.0),
    };
    // `NAME:0.8:0.6`: with another number before it, the last number is that of the text encoders.
    let two = name.rsplit_once(':').filter(|_| !std::path::Path::new(name).is_file());
    let two = two.and_then(|(name, first)| Some((name, first.parse::<f32>().ok()?)));
    let (name, strength, text_strength) = match two {
        Some((name, first)) if name.len() < text.len() => (name, first, Some(strength)),
        _ => (name, strength, None),
    };
    if name.is_empty() {
        return Err(
            "expected a path or a name, such as style.safetensors or style.safetensors:0.8".into(),
        );
    }
    let limits = -MAX_LORA_STRENGTH..=MAX_LORA_STRENGTH;
    if ![Some(strength), text_strength].iter().flatten().all(|s| limits.contains(s)) {
        return Err(format!(
            "expected a strength from -{MAX_LORA_STRENGTH} to {MAX_LORA_STRENGTH}"
        ));
    }
    let choice = LoraChoice::new(name, strength);
    Ok(text_strength.map_or(choice.clone(), |text| choice.text_strength(text)))
}

/// A style image as it was asked for.
#[derive(Debug, Clone, PartialEq)]
pub struct StyleArg {
    pub path: PathBuf,
    pub strength: Option<f32>,
}

/// `IMAGE` or `IMAGE:STRENGTH`. A path may contain colons, so only a number after the last one is a
/// strength.
pub fn style(text: &str) -> Parsed<StyleArg> {
    let (path, strength) = match text.rsplit_once(':').map(|(path, s)| (path, s.parse::<f32>())) {
        Some((path, Ok(strength))) => (path, Some(strength)),
        Some((path, Err(_))) if std::path::Path::new(path).is_file() => {
            return Err(format!(
                "{} is not a strength: expected a number after the colon",
                &text[path.len() + 1..]
            ));
        }
        _ => (text, None),
    };
    if path.is_empty() {
        return Err("expected an image, such as photo.png or photo.png:0.8".into());
    }
    if strength.is_some_and(|s| !(0.0..=MAX_STYLE_STRENGTH).contains(&s)) {
        return Err(format!("expected a strength from 0 to {MAX_STYLE_STRENGTH}"));
    }
    Ok(StyleArg { path: path.into(), strength })
}

/// `NAME=MODEL`.
#[cfg(feature = "server")]
pub fn alias(text: &str) -> Parsed<(String, String)> {
    crate::server::parse_alias(text).map_err(|e| e.to_string())
}

/// How long a model stays in memory after its last job; `None` for as long as the program runs.
#[cfg(feature = "server")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeepAlive(pub Option<std::time::Duration>);

/// `5m`, `90s`, `2h`, `0` or `forever`.
#[cfg(feature = "server")]
pub fn keep_alive(text: &str) -> Parsed<KeepAlive> {
    let read = || {
        if text == "forever" {
            return Some(None);
        }
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let number: u64 = text[..digits].parse().ok()?;
        let unit = match &text[digits..] {
            "" if number == 0 => 1,
            "s" => 1,
            "m" | "min" => 60,
            "h" => 3600,
            _ => return None,
        };
        Some(Some(std::time::Duration::from_secs(number.checked_mul(unit)?)))
    };
    read()
        .map(KeepAlive)
        .ok_or_else(|| format!("`{text}`: expected a time such as 5m, 90s or 2h, or 0, or forever"))
}

/// Every FLUX.1 has tokens of 16 x 16 pixels; the pipeline checks again against the model at hand.
const UNIT: usize = 16;

/// One side in pixels.
pub fn side(text: &str) -> Parsed<usize> {
    let expected = format!("expected a multiple of {UNIT} from {UNIT} to {MAX_SIDE}");
    let sides = sides_near(text).ok_or(expected.clone())?;
    if text.parse() == Ok(sides[0]) {
        return Ok(sides[0]);
    }
    let sides: Vec<String> = sides.iter().map(usize::to_string).collect();
    Err(format!("{expected}; try {}", sides.join(" or ")))
}

/// The side in `text` if it is valid, else the valid sides next to it. `None` if `text` is not a
/// number.
fn sides_near(text: &str) -> Option<Vec<usize>> {
    let side: usize = text.parse().ok()?;
    let near = side.clamp(UNIT, MAX_SIDE);
    let below = near / UNIT * UNIT;
    Some(if below == near { vec![near] } else { vec![below, below + UNIT] })
}

/// Width and height, both possible; the error has whole sizes to try.
fn sides(width: &str, height: &str) -> Parsed<(usize, usize)> {
    let Some((widths, heights)) = sides_near(width).zip(sides_near(height)) else {
        return Err(EXPECTED_SIZE.into());
    };
    if (width.parse(), height.parse()) == (Ok(widths[0]), Ok(heights[0])) {
        return Ok((widths[0], heights[0]));
    }
    let sizes = widths.iter().flat_map(|w| heights.iter().map(move |h| format!("{w}x{h}")));
    Err(format!(
        "expected multiples of {UNIT} from {UNIT} to {MAX_SIDE}; try {}",
        sizes.collect::<Vec<_>>().join(" or ")
    ))
}

/// The forms of a size.
const EXPECTED_SIZE: &str = "expected WIDTHxHEIGHT such as 1024x768 (multiples of 16 from 16 to \
                             4096), one number for a square, or an aspect ratio such as 16:9";

/// The value of `--size`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Size {
    /// Width and height.
    Pixels(usize, usize),
    /// The shape; the number of pixels is the model's own.
    Ratio(AspectRatio),
}

/// `1024x768` (also with `*`), `512` for a square, or `16:9`.
pub fn size(text: &str) -> Parsed<Size> {
    if text.contains(':') {
        return typed(text).map(Size::Ratio);
    }
    if let Some((width, height)) = text.split_once(['x', 'X', '\u{d7}', '*']) {
        return sides(width.trim(), height.trim())
            .map(|(width, height)| Size::Pixels(width, height));
    }
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(EXPECTED_SIZE.into());
    }
    side(text).map(|side| Size::Pixels(side, side))
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
    size.map(Budget::Bytes)
}

/// Parses a value by the `FromStr` of its type.
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

/// Pixels on each side: see [`Margins`].
pub fn margins(text: &str) -> Parsed<Margins> {
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
        assert_eq!(budget("12G"), Ok(Budget::Bytes(ByteSize(12_000_000_000))));
        assert!(budget("8X").unwrap_err().starts_with("expected auto, or a size"));
    }

    #[test]
    fn controlnets_have_an_image_and_may_have_more() {
        let read = |text: &str| controlnet(text).map(|arg| (arg.choice, arg.image));
        let choice = |name: &str| ControlNetChoice::new(name, 1.0);
        assert_eq!(read("a:b.png"), Ok((choice("a"), "b.png".into())));
        let full = ControlNetChoice::new("a", 0.7).steps(0.1, 0.8).mode(ControlMode(4)).edges();
        assert_eq!(read("a:b.png:0.7:0.1-0.8,mode=pose,edges"), Ok((full, "b.png".into())));
        let edges = choice("a").edges().thresholds(100, 300);
        assert_eq!(read("a:b.png,edges=100-300"), Ok((edges, "b.png".into())));
        assert!(controlnet("a:b.png,edges=1").unwrap_err().contains("thresholds"));
        assert_eq!(read(":b,c.png"), Ok((choice(""), "b,c.png".into())));
        let strong = ControlNetChoice::new("C:\\a.safetensors", 0.5);
        assert_eq!(read("C:\\a.safetensors:D:\\b.png:0.5"), Ok((strong, "D:\\b.png".into())));
        for text in ["a", "a:", "", "C:\\a", "a:0-1", "a:b:x:0-1"] {
            assert!(controlnet(text).unwrap_err().starts_with("expected"), "{text}");
        }
        assert!(controlnet("a:b,mode=sketch").unwrap_err().contains("canny, tile"));
    }

    #[test]
    fn numbers_out_of_range_are_refused_with_the_range() {
        for text in ["0", "-1", "1001", "1e3", "", "x", "99999999999999999999"] {
            assert_eq!(
                whole(1..=1000)(text).unwrap_err(),
                "expected a whole number from 1 to 1000"
            );
        }
        for text in ["nan", "inf", "1e400", "1e39", "-1", "", "x"] {
            assert_eq!(real(0.0..=100.0)(text).unwrap_err(), "expected a number from 0 to 100");
        }
        assert_eq!(seed("18446744073709551615"), Ok(Seed::Fixed(u64::MAX)));
        assert_eq!((seed("-1"), seed("random")), (Ok(Seed::Random), Ok(Seed::Random)));
        for text in ["-2", "18446744073709551616", "1.5", "0x10", ""] {
            assert!(seed(text).is_err(), "{text}");
        }
        assert_eq!(size("1024x768"), Ok(Size::Pixels(1024, 768)));
        assert_eq!(size("512"), Ok(Size::Pixels(512, 512)));
        assert_eq!(size("64*32"), Ok(Size::Pixels(64, 32)));
        assert_eq!(size("64 x 32"), Ok(Size::Pixels(64, 32)));
        assert_eq!(size("16:9"), Ok(Size::Ratio("16:9".parse().unwrap())));
        for text in ["500", "x", "1024x", "1024x768x3", "-16x16", "", "-512", "16:", "99:1"] {
            assert!(size(text).is_err(), "{text}");
        }
        assert_eq!(device("gpu").unwrap_err(), "expected auto, cpu, cuda, cuda:N, wgpu or wgpu:N");
        assert!(kernel("linear").unwrap_err().starts_with("expected OPERATION=NAME"));
    }
}
