//! A prompt, read once: the text for the text encoders, and the LoRAs that its tags name.

use std::fmt;

use serde::{Deserialize, Serialize, Serializer};

use super::limits::MAX_LORA_STRENGTH;
use super::parameter::{Parameter, plain_number};
use crate::error::{Error, Result};
use crate::message::Message;

/// A LoRA and its strength.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoraChoice {
    /// A path, or a name that is looked up in the LoRA folders. A tag in a prompt can only give a
    /// name.
    pub name: String,
    /// 0 has no effect, 1 is what the LoRA was trained for, negative values reverse it.
    #[serde(alias = "weight", serialize_with = "super::parameter::write")]
    pub strength: f32,
    /// The strength for the text encoders, if it is another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[serde(serialize_with = "super::parameter::write_optional")]
    pub text_strength: Option<f32>,
    /// It was given as a tag in the prompt, `<lora:name:strength>`.
    #[serde(skip)]
    pub tag: bool,
}

impl LoraChoice {
    /// A LoRA that is given next to the prompt.
    pub fn new(name: impl Into<String>, strength: f32) -> Self {
        LoraChoice { name: name.into(), strength, text_strength: None, tag: false }
    }

    /// The same with another strength for the text encoders.
    pub fn text_strength(self, strength: f32) -> Self {
        LoraChoice { text_strength: Some(strength), ..self }
    }

    /// The strength as it was typed: 0.8, where its f32 is 0.800000011920929.
    pub fn plain_strength(&self) -> f64 {
        plain_number(self.strength)
    }

    /// Its strengths, for messages: `0.8`, or `0.8, text encoders 0.6`.
    pub fn plain_strengths(&self) -> String {
        match self.text_strength {
            Some(text) => format!("{}, text encoders {text}", self.strength),
            None => self.strength.to_string(),
        }
    }

    /// How the LoRA was given, for messages.
    pub fn place(&self) -> Message {
        match self.tag {
            true => Message::plain(format!("<lora:{}>", self.name)),
            false => Message::place("lora", Some(self.name.clone())),
        }
    }
}

/// As text: `[["a.safetensors",0.8],["b",1.0,0.5]]`; the third is the strength for the text
/// encoders, if it is another one.
impl Parameter for Vec<LoraChoice> {
    fn to_text(&self) -> Option<String> {
        let text = |l: &LoraChoice| match l.text_strength {
            Some(text) => serde_json::json!((&l.name, l.plain_strength(), plain_number(text))),
            None => serde_json::json!((&l.name, l.plain_strength())),
        };
        let all: Vec<_> = self.iter().map(text).collect();
        (!all.is_empty()).then(|| serde_json::json!(all).to_string())
    }

    fn from_text(text: &str) -> Option<Self> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Stored {
            One(String, f32),
            Two(String, f32, f32),
        }
        let stored: Vec<Stored> = serde_json::from_str(text).ok()?;
        let choices: Vec<LoraChoice> = stored
            .into_iter()
            .map(|stored| match stored {
                Stored::One(name, strength) => LoraChoice::new(name, strength),
                Stored::Two(name, strength, text) => {
                    LoraChoice::new(name, strength).text_strength(text)
                }
            })
            .collect();
        // Image files come from anyone, and merely opening the path of a remote folder would
        // contact that machine.
        let remote = |name: &str| name.starts_with("\\\\") || name.starts_with("//");
        if choices.iter().any(|choice| remote(&choice.name)) {
            return None;
        }
        Some(choices)
    }

    fn to_json<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        self.serialize(serializer)
    }
}

/// The text of a request, with `<lora:NAME:STRENGTH>` tags taken out.
///
/// It is parsed once, when it is made. A malformed tag is kept as an error that
/// [`Request::check`](super::Request::check) returns, so that making a prompt cannot fail.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub struct Prompt {
    written: String,
    text: String,
    loras: Vec<LoraChoice>,
    error: Option<Error>,
}

impl Prompt {
    /// The prompt as it was written, tags included. This is what image files and JSON carry.
    pub fn as_str(&self) -> &str {
        &self.written
    }

    /// The prompt without its tags: what the text encoders read.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The LoRAs of the tags, in their order.
    pub fn loras(&self) -> &[LoraChoice] {
        &self.loras
    }

    /// Refuses a prompt with a malformed tag.
    pub(super) fn check(&self) -> Result<()> {
        self.error.clone().map_or(Ok(()), Err)
    }
}

impl From<String> for Prompt {
    fn from(written: String) -> Self {
        match split_tags(&written) {
            Ok((text, loras)) => Prompt { written, text, loras, error: None },
            Err(error) => {
                Prompt { text: written.clone(), written, loras: vec![], error: Some(error) }
            }
        }
    }
}

impl From<&str> for Prompt {
    fn from(written: &str) -> Self {
        written.to_string().into()
    }
}

impl From<Prompt> for String {
    fn from(prompt: Prompt) -> String {
        prompt.written
    }
}

impl PartialEq for Prompt {
    fn eq(&self, other: &Self) -> bool {
        self.written == other.written
    }
}

impl fmt::Display for Prompt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.written)
    }
}

/// The words with which a tag may begin, in any case. Other programs write `lyco` for LoHa and
/// LoKr.
const TAGS: [&str; 3] = ["<lora:", "<lyco:", "<lycoris:"];

/// The byte at which the first tag of `text` begins, and the length of its first word.
fn tag_start(text: &str) -> Option<(usize, usize)> {
    text.match_indices('<').find_map(|(at, _)| {
        let begins = |tag: &&&str| {
            text.as_bytes()[at..]
                .get(..tag.len())
                .is_some_and(|b| b.eq_ignore_ascii_case(tag.as_bytes()))
        };
        Some((at, TAGS.iter().find(begins)?.len()))
    })
}

/// The strength `text` of the tag `inner`.
fn tag_strength(text: &str, inner: &str) -> Result<f32> {
    let limits = -MAX_LORA_STRENGTH..=MAX_LORA_STRENGTH;
    text.trim().parse().ok().filter(|s| limits.contains(s)).ok_or_else(|| {
        Error::argument("the strength of a LoRA is not a number in its range")
            .at(format!("<lora:{inner}>"))
            .found(text)
            .expected(format!(
                "a number from -{MAX_LORA_STRENGTH} to {MAX_LORA_STRENGTH}, or two of them: \
                 transformer, then text encoders"
            ))
    })
}

/// The strengths `text` of the tag `inner`: `0.8`, `0.8:0.6`, or with AUTOMATIC1111's names
/// `unet=0.8:te=0.6`. If only `te` is given, it is the strength of the transformer too.
fn tag_strengths(text: &str, inner: &str) -> Result<(f32, Option<f32>)> {
    let named = |piece: &str, name: &str| {
        let (key, value) = piece.split_once('=')?;
        key.trim().eq_ignore_ascii_case(name).then(|| tag_strength(value, inner))
    };
    let (mut first, mut second) = (None, None);
    for piece in text.split(':') {
        let (place, value) = match (named(piece, "unet"), named(piece, "te")) {
            (Some(value), _) => (&mut first, value?),
            (None, Some(value)) => (&mut second, value?),
            (None, None) if first.is_none() => (&mut first, tag_strength(piece, inner)?),
            (None, None) => (&mut second, tag_strength(piece, inner)?),
        };
        if place.replace(value).is_some() {
            // One number too many.
            tag_strength(text, inner)?;
        }
    }
    Ok((first.or(second).unwrap_or(1.0), second.filter(|_| first.is_some())))
}

/// `prompt` without its `<lora:name:strength>` tags, and the LoRAs that they name. A strength that
/// is left out is 1; a second one is for the text encoders. Text that only resembles a tag stays
/// part of the prompt.
fn split_tags(prompt: &str) -> Result<(String, Vec<LoraChoice>)> {
    let (mut text, mut loras) = (String::new(), Vec::new());
    let mut rest = prompt;
    while let Some((start, length)) = tag_start(rest) {
        let inner = &rest[start + length..];
        let Some(end) = inner.find('>') else { break };
        let (name, strength) = inner[..end].split_once(':').unwrap_or((&inner[..end], "1"));
        if name.trim().is_empty() {
            text += &rest[..start + length];
            rest = inner;
            continue;
        }
        let (strength, text_strength) = tag_strengths(strength, &inner[..end])?;
        loras.push(LoraChoice { name: name.trim().into(), strength, text_strength, tag: true });
        text += &rest[..start];
        rest = &inner[end + 1..];
    }
    text += rest;
    if !loras.is_empty() {
        // Removing a tag must not leave two spaces in a row.
        text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    }
    Ok((text, loras))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_taken_out_and_all_other_text_stays() {
        let prompt =
            Prompt::from("a fox <lora:pixel art:0.8> in snow<lora:b/c.safetensors>, night");
        assert_eq!(prompt.text(), "a fox in snow, night");
        let found: Vec<_> =
            prompt.loras().iter().map(|l| (l.name.as_str(), l.strength, l.tag)).collect();
        assert_eq!(found, [("pixel art", 0.8, true), ("b/c.safetensors", 1.0, true)]);
        for plain in ["a fox", "<lora:", "a <lora:x", "<lora:>", "x < y > z", "two  spaces"] {
            let prompt = Prompt::from(plain);
            assert_eq!((prompt.text(), prompt.loras()), (plain, &[][..]), "{plain}");
        }
        assert_eq!(Prompt::from("<lora:x:-1>").loras()[0].strength, -1.0);
        for (tag, strength, text) in [
            ("<LoRA:x:0.5>", 0.5, None),
            ("<LYCO:x:0.5:0>", 0.5, Some(0.0)),
            ("<lycoris:x>", 1.0, None),
            ("<lora:x: 0.8 : 0.6 >", 0.8, Some(0.6)),
            ("<lora:x:te=0.5:unet=0.75>", 0.75, Some(0.5)),
            ("<lora:x:0.8:te=0>", 0.8, Some(0.0)),
            ("<lora:x:TE=0.5>", 0.5, None),
            ("<lora:x:unet=0.5>", 0.5, None),
        ] {
            let prompt = Prompt::from(format!("a fox {tag}"));
            let lora = &prompt.loras()[0];
            assert_eq!((lora.strength, lora.text_strength), (strength, text), "{tag}");
            assert_eq!(prompt.text(), "a fox", "{tag}");
        }
    }

    #[test]
    fn a_malformed_tag_is_an_error_of_the_check() {
        for bad in [
            "<lora:x:y>",
            "<lora:x:>",
            "<lora:x:NaN>",
            "<lora:x:inf>",
            "<lora:x:101>",
            "<lora:x:0.5:0.5:0.5>",
            "<lora:x:0.5:>",
            "<lora:x:0.5:te=1:te=1>",
            "<lora:x:0.5:lbw=1,0>",
            "<LORA:x:y>",
        ] {
            let prompt = Prompt::from(bad);
            let e = prompt.check().unwrap_err();
            assert!(e.to_string().contains("strength of a LoRA"), "{bad}: {e}");
            assert_eq!(prompt.as_str(), bad);
        }
    }

    #[test]
    fn json_carries_the_prompt_as_it_was_written() {
        let prompt = Prompt::from("a fox <lora:x:0.5>");
        let json = serde_json::to_string(&prompt).unwrap();
        assert_eq!(json, "\"a fox <lora:x:0.5>\"");
        assert_eq!(serde_json::from_str::<Prompt>(&json).unwrap().loras(), prompt.loras());
    }
}
