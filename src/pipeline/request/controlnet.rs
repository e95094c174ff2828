//! The ControlNets of a request.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize, Serializer};

use super::parameter::{Parameter, plain_number};
use super::{Image, Mask};
use crate::error::{Error, Result};
use crate::message::Message;

/// A ControlNet, how strongly it acts, and in which steps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ControlNetChoice {
    /// A path, or a name that is looked up in the ControlNet folders.
    pub name: String,
    /// What its outputs are multiplied with: 0 has no effect, 1 is what it was trained for.
    #[serde(serialize_with = "super::parameter::write")]
    pub strength: f32,
    /// The part of the steps after which it begins to act, 0 to 1.
    #[serde(default, serialize_with = "super::parameter::write")]
    pub start: f32,
    /// The part of the steps after which it acts no more, 0 to 1.
    #[serde(default = "one", serialize_with = "super::parameter::write")]
    pub end: f32,
    /// What its image is, for a ControlNet that is for several kinds of images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<ControlMode>,
    /// Its image is a photo whose edges are found first (Canny).
    #[serde(default, skip_serializing_if = "is_false")]
    pub edges: bool,
    /// The thresholds with which they are found, the lower one first, as OpenCV has them; those of
    /// FLUX.1 Canny (50 and 200) without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thresholds: Option<[u16; 2]>,
    /// The name was given by a client: it is looked up, and is never a path.
    #[serde(skip)]
    pub named: bool,
}

fn one() -> f32 {
    1.0
}

fn is_false(value: &bool) -> bool {
    !value
}

impl ControlNetChoice {
    /// A ControlNet that acts in all steps.
    pub fn new(name: impl Into<String>, strength: f32) -> Self {
        ControlNetChoice {
            name: name.into(),
            strength,
            start: 0.0,
            end: 1.0,
            mode: None,
            edges: false,
            thresholds: None,
            named: false,
        }
    }

    /// The same from the part `start` of the steps to the part `end`.
    pub fn steps(self, start: f32, end: f32) -> Self {
        ControlNetChoice { start, end, ..self }
    }

    /// The same with a mode.
    pub fn mode(self, mode: ControlMode) -> Self {
        ControlNetChoice { mode: Some(mode), ..self }
    }

    /// The same for a photo whose edges are found first.
    pub fn edges(self) -> Self {
        ControlNetChoice { edges: true, ..self }
    }

    /// The same with other thresholds for these edges.
    pub fn thresholds(self, low: u16, high: u16) -> Self {
        ControlNetChoice { thresholds: Some([low, high]), ..self }
    }

    /// Whether it acts in step `step` of `steps`, counted from 0: if the whole step is in its part
    /// (as in diffusers).
    pub fn acts_in(&self, step: usize, steps: usize) -> bool {
        let part = |step: usize| step as f64 / steps as f64;
        self.strength != 0.0
            && part(step) >= plain_number(self.start)
            && part(step + 1) <= plain_number(self.end)
    }

    /// Its strength, steps and mode, for messages: `0.7, steps 0-0.8, mode canny`.
    pub fn plain_strength(&self) -> String {
        let mode = self.mode.map_or(String::new(), |mode| format!(", mode {mode}"));
        let steps = match (self.start, self.end) {
            (0.0, 1.0) => String::new(),
            (start, end) => format!(", steps {start}-{end}"),
        };
        format!("{}{steps}{mode}", self.strength)
    }

    /// How it was given, for messages.
    pub fn place(&self) -> Message {
        Message::place("controlnet", Some(self.name.clone()))
    }

    pub(super) fn check(&self) -> Result<()> {
        let refused = |what: &str, found: String, expected: String| {
            let e = Error::argument(what).at_message(self.place());
            Err(e.found(found).expected(expected))
        };
        if !(0.0..=MAX_CONTROL_STRENGTH).contains(&self.strength) {
            return refused(
                "the strength of a ControlNet is out of range",
                self.strength.to_string(),
                format!("0 to {MAX_CONTROL_STRENGTH}"),
            );
        }
        if let Some([low, high]) = self.thresholds {
            if !self.edges {
                return refused(
                    "thresholds are for edges that are found in a photo",
                    format!("{low}-{high}"),
                    "no thresholds, or a photo whose edges are found".into(),
                );
            }
            if low > high || high > MAX_THRESHOLD {
                return refused(
                    "the thresholds of edges are out of range",
                    format!("{low}-{high}"),
                    format!("two numbers from 0 to {MAX_THRESHOLD}, the smaller one first"),
                );
            }
        }
        let ordered = self.start >= 0.0 && self.start < self.end && self.end <= 1.0;
        if !ordered {
            return refused(
                "the steps of a ControlNet are out of range",
                format!("{}-{}", self.start, self.end),
                "two parts of the steps from 0 to 1, the smaller one first, such as 0-0.8".into(),
            );
        }
        Ok(())
    }
}

/// The largest threshold of edges: no gradient of 8-bit values is larger.
pub const MAX_THRESHOLD: u16 = 2040;
/// The largest strength of a ControlNet.
pub const MAX_CONTROL_STRENGTH: f32 = 10.0;

/// What the image of a ControlNet is, for one that is for several kinds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ControlMode(pub usize);

impl ControlMode {
    /// The names of InstantX's and Shakker-Labs' first union models, by number.
    pub const NAMES: [&str; 7] = ["canny", "tile", "depth", "blur", "pose", "gray", "lq"];
}

impl fmt::Display for ControlMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Self::NAMES.get(self.0) {
            Some(name) => f.write_str(name),
            None => write!(f, "{}", self.0),
        }
    }
}

impl FromStr for ControlMode {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let named = Self::NAMES.iter().position(|name| name.eq_ignore_ascii_case(text));
        let number = || text.parse().ok().filter(|n| *n < 1000);
        named.or_else(number).map(ControlMode).ok_or_else(|| {
            Error::argument("a ControlNet has no mode of this name")
                .at_parameter("controlnet")
                .found(text)
                .expected(format!("{}, or a number", Self::NAMES.join(", ")))
        })
    }
}

impl Serialize for ControlMode {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ControlMode {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// As text: JSON, as [`ControlNetChoice`] is serialised.
impl Parameter for Vec<ControlNetChoice> {
    fn to_text(&self) -> Option<String> {
        (!self.is_empty()).then(|| serde_json::json!(self).to_string())
    }

    fn from_text(text: &str) -> Option<Self> {
        let choices: Vec<ControlNetChoice> = serde_json::from_str(text).ok()?;
        // Merely opening the path of a remote folder would contact that machine.
        let remote = |name: &str| name.starts_with("\\\\") || name.starts_with("//");
        (!choices.iter().any(|choice| remote(&choice.name))).then_some(choices)
    }

    fn to_json<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        self.serialize(serializer)
    }
}

/// What a ControlNet sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlImage {
    /// The image; it is cropped around the centre to the shape of the request, and resized.
    pub image: Image,
    /// The part that is repainted, in its size, for a ControlNet that reads one. The mask of the
    /// request takes precedence over it.
    pub mask: Option<Mask>,
}

impl From<Image> for ControlImage {
    fn from(image: Image) -> Self {
        ControlImage { image, mask: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_those_of_diffusers() {
        let acting = |start, end, steps| -> String {
            let choice = ControlNetChoice::new("x", 1.0).steps(start, end);
            (0..steps).map(|i| if choice.acts_in(i, steps) { '#' } else { '.' }).collect()
        };
        assert_eq!(acting(0.0, 1.0, 4), "####");
        assert_eq!(acting(0.2, 0.8, 10), "..######..");
        assert_eq!(acting(0.0, 0.65, 4), "##..");
        assert_eq!(acting(0.3, 1.0, 3), ".##");
        assert!(!ControlNetChoice::new("x", 0.0).acts_in(0, 1));
    }

    #[test]
    fn choices_pass_through_text() {
        let choices = vec![
            ControlNetChoice::new("a:b.safetensors", 0.7).steps(0.1, 0.8).mode(ControlMode(4)),
            ControlNetChoice::new("x", 1.0).mode(ControlMode(9)).edges(),
            ControlNetChoice::new("y", 1.0).edges().thresholds(100, 300),
        ];
        assert!(choices.iter().all(|choice| choice.check().is_ok()));
        let wrong = ControlNetChoice::new("y", 1.0).edges().thresholds(300, 100);
        assert!(wrong.check().is_err() && choices[1].clone().thresholds(1, 2041).check().is_err());
        assert!(ControlNetChoice::new("y", 1.0).thresholds(1, 2).check().is_err());
        let text = choices.to_text().unwrap();
        assert!(text.contains("\"strength\":0.7,") && text.contains("\"pose\""), "{text}");
        assert_eq!(Vec::from_text(&text), Some(choices));
        assert_eq!(Vec::<ControlNetChoice>::new().to_text(), None);
        let remote = "[{\"name\":\"//host/x\",\"strength\":1}]";
        assert_eq!(Vec::<ControlNetChoice>::from_text(remote), None);
        assert_eq!("GRAY".parse::<ControlMode>().unwrap(), ControlMode(5));
        assert!("sketch".parse::<ControlMode>().unwrap_err().to_string().contains("canny, tile"));
    }
}
