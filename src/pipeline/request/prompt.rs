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
    /// It was given as a tag in the prompt, `<lora:name:strength>`.
    #[serde(skip)]
    pub tag: bool,
}

impl LoraChoice {
    /// A LoRA that is given next to the prompt.
    pub fn new(name: impl Into<String>, strength: f32) -> Self {
        LoraChoice { name: name.into(), strength, tag: false }
    }

    /// The strength as it was typed: 0.8, where its f32 is 0.800000011920929.
    pub fn plain_strength(&self) -> f64 {
        plain_number(self.strength)
    }

    /// How the LoRA was given, for messages.
    pub fn place(&self) -> Message {
        match self.tag {
            true => Message::plain(format!("<lora:{}>", self.name)),
            false => Message::place("lora", Some(self.name.clone())),
        }
    }
}

/// As text: `[["a.safetensors",0.8],["b",1.0]]`.
impl Parameter for Vec<LoraChoice> {
    fn to_text(&self) -> Option<String> {
        let pairs: Vec<_> = self.iter().map(|l| (&l.name, l.plain_strength())).collect();
        (!pairs.is_empty()).then(|| serde_json::json!(pairs).to_string())
    }

    fn from_text(text: &str) -> Option<Self> {
        let pairs: Vec<(String, f32)> = serde_json::from_str(text).ok()?;
        // Image files come from anyone, and merely opening the path of a remote folder would
        // contact that machine.
        let remote = |name: &str| name.starts_with("\\\\") || name.starts_with("//");
        if pairs.iter().any(|(name, _)| remote(name)) {
            return None;
        }
        Some(pairs.into_iter().map(|(name, strength)| LoraChoice::new(name, strength)).collect())
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

/// `prompt` without its `<lora:name:strength>` tags, and the LoRAs that they name. A strength that
/// is left out is 1. Text that only resembles a tag stays part of the prompt.
fn split_tags(prompt: &str) -> Result<(String, Vec<LoraChoice>)> {
    let (mut text, mut loras) = (String::new(), Vec::new());
    let mut rest = prompt;
    while let Some(start) = rest.find("<lora:") {
        let inner = &rest[start + 6..];
        let Some(end) = inner.find('>') else { break };
        let (name, strength) = inner[..end].split_once(':').unwrap_or((&inner[..end], "1"));
        if name.trim().is_empty() {
            text += &rest[..start + 6];
            rest = inner;
            continue;
        }
        let limits = -MAX_LORA_STRENGTH..=MAX_LORA_STRENGTH;
        let parsed = strength.trim().parse().ok().filter(|s| limits.contains(s));
        let strength: f32 = parsed.ok_or_else(|| {
            Error::argument("the strength of a LoRA is not a number in its range")
                .at(format!("<lora:{}>", &inner[..end]))
                .found(strength)
                .expected(format!("a number from -{MAX_LORA_STRENGTH} to {MAX_LORA_STRENGTH}"))
        })?;
        loras.push(LoraChoice { name: name.trim().into(), strength, tag: true });
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
    }

    #[test]
    fn a_malformed_tag_is_an_error_of_the_check() {
        for bad in [
            "<lora:x:y>",
            "<lora:x:>",
            "<lora:x:NaN>",
            "<lora:x:inf>",
            "<lora:x:101>",
            "<lora:x:0.5:0.5>",
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
