//! Text for people that names parameters and commands without saying how a front end writes them.
//!
//! The library does not know whether its user types `--ram 8G` or sends `{"ram": "8G"}`. A
//! [`Message`] is therefore built from a template in which a parameter is `{ram}` or `{ram=8G}` and
//! a command is `{:doctor}` or `{:inspect FILE}`; a front end supplies its own [`Words`] for them.
//! As plain text ([`Message::as_str`], `Display`) a message is neutral.
//!
//! Only text that is part of the program is a template. Values that come from elsewhere, such as
//! file names, are inserted for `{}` and are never parsed:
//!
//! ```
//! use flux_fast::message::Message;
//! let file = String::from("a {ram} b.safetensors");
//! let message = Message::with("give {} with {vae}, or {ram={}}", [file.into(), "8G".into()]);
//! assert_eq!(message.as_str(), "give a {ram} b.safetensors with `vae`, or `ram` 8G");
//! ```

use std::fmt;
use std::ops::Deref;

use serde::{Serialize, Serializer};

use crate::text::shortened;

/// The most characters of a text from elsewhere; the longest prompt fits.
const MAX_TEXT: usize = 12_000;

/// The parameters that templates may name: those of [`Options`](crate::Options) and of
/// [`Request`](crate::Request), the components of models, what only a program reads or writes, and
/// how a server reaches its cluster.
pub const PARAMETERS: &[&str] = &[
    "model",
    "clip",
    "t5",
    "qwen3",
    "vae",
    "redux",
    "siglip",
    "device",
    "vram",
    "ram",
    "compute",
    "kernel",
    "threads",
    "prompt",
    "negative",
    "steps",
    "cfg_scale",
    "guidance",
    "shift",
    "scheduler",
    "seed",
    "width",
    "height",
    "size",
    "strength",
    "init",
    "mask",
    "mask_blur",
    "mask_padding",
    "outpaint",
    "control",
    "controlnet",
    "reference",
    "style",
    "lora",
    "count",
    "output",
    "broker",
    "nats_creds",
    "nats_nkey",
    "nats_ca",
    "nats_cert",
    "nats_key",
    "nats_replicas",
];

/// The commands that templates may name.
pub const COMMANDS: &[&str] = &["doctor", "inspect", "models", "pull"];

/// How a front end writes what a [`Message`] names. The defaults are neutral.
pub trait Words {
    /// A parameter in a sentence, with a value that is proposed for it.
    fn parameter(&self, name: &str, value: Option<&str>) -> String {
        match value {
            Some(value) => format!("`{name}` {value}"),
            None => format!("`{name}`"),
        }
    }

    /// A parameter as the place of an error, with its value if it has several.
    fn place(&self, name: &str, value: Option<&str>) -> String {
        match value {
            Some(value) => format!("{name} {value}"),
            None => name.to_string(),
        }
    }

    /// A command, with its arguments.
    fn command(&self, name: &str, arguments: Option<&str>) -> String {
        match arguments {
            Some(arguments) => format!("the command `{name} {arguments}`"),
            None => format!("the command `{name}`"),
        }
    }
}

/// The words of [`Message::as_str`].
#[derive(Debug, Clone, Copy)]
pub struct Neutral;

impl Words for Neutral {}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(String),
    Parameter { name: String, value: Option<String> },
    Place { name: String, value: Option<String> },
    Command { name: String, arguments: Option<String> },
}

/// A text that may name parameters and commands. See the [module](self) for templates.
///
/// A literal becomes a message by `into()` as a template without values. A [`String`] becomes one
/// as it is: braces in it mean nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Message {
    pieces: Vec<Piece>,
    /// All pieces in neutral words.
    neutral: String,
}

impl Message {
    /// `template` with `values` in place of each `{}`. Braces that mean themselves are doubled.
    pub fn with<const N: usize>(template: &'static str, values: [Message; N]) -> Message {
        let mut values = values.into_iter();
        let mut message = Message::default();
        fill(template, &mut values, &mut message);
        debug_assert!(values.next().is_none(), "too many values for {template:?}");
        message
    }

    /// A text that names nothing. It may come from a file: what no reader wants in full is cut.
    pub fn plain(text: impl fmt::Display) -> Message {
        let mut message = Message::default();
        message.push(Piece::Text(shortened(&text.to_string(), MAX_TEXT).into_owned()));
        message
    }

    /// The parameter `name`, for names that are data, such as those of components.
    pub fn parameter(name: impl Into<String>) -> Message {
        Piece::Parameter { name: name.into(), value: None }.into()
    }

    /// The parameter `name` with a value that is proposed for it.
    pub fn parameter_with(name: impl Into<String>, value: impl fmt::Display) -> Message {
        Piece::Parameter { name: name.into(), value: Some(value.to_string()) }.into()
    }

    /// The parameter `name` as a place, with its value if it has several.
    pub(crate) fn place(name: impl Into<String>, value: Option<String>) -> Message {
        Piece::Place { name: name.into(), value }.into()
    }

    /// Adds `other` at the end.
    pub fn append(&mut self, other: Message) {
        other.pieces.into_iter().for_each(|piece| self.push(piece));
    }

    /// `messages` with `separator` between them.
    pub fn join(messages: impl IntoIterator<Item = Message>, separator: &str) -> Message {
        let mut joined = Message::default();
        for (i, message) in messages.into_iter().enumerate() {
            if i > 0 {
                joined.push(Piece::Text(separator.to_string()));
            }
            joined.append(message);
        }
        joined
    }

    /// The text in the words of a front end.
    pub fn in_words(&self, words: &dyn Words) -> String {
        self.pieces.iter().map(|piece| piece.in_words(words)).collect()
    }

    /// The text in neutral words.
    pub fn as_str(&self) -> &str {
        &self.neutral
    }

    /// The parameters that the text names, in its order, each with the value that is proposed.
    pub fn parameters(&self) -> impl Iterator<Item = (&str, Option<&str>)> {
        self.pieces.iter().filter_map(|piece| match piece {
            Piece::Parameter { name, value } | Piece::Place { name, value } => {
                Some((name.as_str(), value.as_deref()))
            }
            Piece::Text(_) | Piece::Command { .. } => None,
        })
    }

    fn push(&mut self, piece: Piece) {
        self.neutral += &piece.in_words(&Neutral);
        match (self.pieces.last_mut(), piece) {
            (Some(Piece::Text(text)), Piece::Text(more)) => *text += &more,
            (_, piece) => self.pieces.push(piece),
        }
    }
}

impl Piece {
    fn in_words(&self, words: &dyn Words) -> String {
        match self {
            Piece::Text(text) => text.clone(),
            Piece::Parameter { name, value } => words.parameter(name, value.as_deref()),
            Piece::Place { name, value } => words.place(name, value.as_deref()),
            Piece::Command { name, arguments } => words.command(name, arguments.as_deref()),
        }
    }
}

/// Appends `template` to `message`. A reference is between braces; within it, only `{}` is special.
fn fill(template: &'static str, values: &mut dyn Iterator<Item = Message>, message: &mut Message) {
    let mut rest = template;
    while let Some(at) = rest.find(['{', '}']) {
        let (text, from) = rest.split_at(at);
        message.push(Piece::Text(text.to_string()));
        if from.starts_with("{{") || from.starts_with("}}") {
            message.push(Piece::Text(from[..1].to_string()));
            rest = &from[2..];
            continue;
        }
        let Some(end) = closing_brace(from) else {
            debug_assert!(false, "unpaired brace in {template:?}");
            message.push(Piece::Text(from.to_string()));
            return;
        };
        let mut next = || {
            let value = values.next();
            debug_assert!(value.is_some(), "too few values for {template:?}");
            value.unwrap_or_default()
        };
        match &from[1..end] {
            "" => message.append(next()),
            inner => message.push(reference(inner, &mut next)),
        }
        rest = &from[end + 1..];
    }
    message.push(Piece::Text(rest.to_string()));
}

/// The place of the brace that closes the one at the start of `text`.
fn closing_brace(text: &str) -> Option<usize> {
    let mut depth = 0usize;
    for (i, c) in text.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth = depth.checked_sub(1)?,
            _ => continue,
        }
        if depth == 0 {
            return Some(i);
        }
    }
    None
}

/// The reference that `inner`, the text between the braces, means.
fn reference(inner: &'static str, next: &mut dyn FnMut() -> Message) -> Piece {
    let mut filled = |text: &'static str| {
        let mut parts = text.split("{}");
        let first = parts.next().unwrap_or_default().to_string();
        parts.fold(first, |text, part| text + next().as_str() + part)
    };
    if let Some(command) = inner.strip_prefix(':') {
        let (name, arguments) = match command.split_once(' ') {
            Some((name, arguments)) => (name, Some(filled(arguments))),
            None => (command, None),
        };
        debug_assert!(COMMANDS.contains(&name), "{name} is not in COMMANDS");
        return Piece::Command { name: name.to_string(), arguments };
    }
    let (name, value) = match inner.split_once('=') {
        Some((name, value)) => (name, Some(filled(value))),
        None => (inner, None),
    };
    debug_assert!(PARAMETERS.contains(&name), "{name} is not in PARAMETERS");
    Piece::Parameter { name: name.to_string(), value }
}

impl From<Piece> for Message {
    fn from(piece: Piece) -> Message {
        let mut message = Message::default();
        message.push(piece);
        message
    }
}

/// A template without values.
impl From<&'static str> for Message {
    fn from(template: &'static str) -> Message {
        Message::with(template, [])
    }
}

/// A text as it is.
impl From<String> for Message {
    fn from(text: String) -> Message {
        Message::plain(text)
    }
}

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.neutral)
    }
}

impl Deref for Message {
    type Target = str;

    fn deref(&self) -> &str {
        &self.neutral
    }
}

/// The neutral text.
impl Serialize for Message {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.neutral)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Typed;

    impl Words for Typed {
        fn parameter(&self, name: &str, value: Option<&str>) -> String {
            format!("<{name}|{}>", value.unwrap_or("-"))
        }
        fn command(&self, name: &str, arguments: Option<&str>) -> String {
            format!("[{name}|{}]", arguments.unwrap_or("-"))
        }
    }

    #[test]
    fn a_template_is_neutral_as_text_and_typed_for_a_front_end() {
        let message = Message::from("a smaller {vram}, {device=cpu}, or see {:inspect FILE}");
        let neutral = "a smaller `vram`, `device` cpu, or see the command `inspect FILE`";
        assert_eq!(message.as_str(), neutral);
        assert_eq!(message.to_string(), neutral);
        let typed = "a smaller <vram|->, <device|cpu>, or see [inspect|FILE]";
        assert_eq!(message.in_words(&Typed), typed);
        let parameters: Vec<_> = message.parameters().collect();
        assert_eq!(parameters, [("vram", None), ("device", Some("cpu"))]);
    }

    #[test]
    fn values_are_never_parsed_and_may_name_parameters() {
        let name = || Message::from("x{ram}{}}{:y".to_string());
        assert_eq!(name().as_str(), "x{ram}{}}{:y");
        assert_eq!(name().parameters().count(), 0);
        let message = Message::with(
            "{{{}}} with {} or {ram={}M} or {:pull {}}",
            [name(), Message::parameter("controlnet"), Message::plain(7), name()],
        );
        assert_eq!(
            message.as_str(),
            "{x{ram}{}}{:y} with `controlnet` or `ram` 7M or the command `pull x{ram}{}}{:y`"
        );
        assert_eq!(
            message.in_words(&Typed),
            "{x{ram}{}}{:y} with <controlnet|-> or <ram|7M> or [pull|x{ram}{}}{:y]"
        );
    }

    #[test]
    fn messages_are_joined_with_their_references() {
        let joined = Message::join(["no {ram}".into(), Message::plain("none")], "; ");
        assert_eq!(joined.as_str(), "no `ram`; none");
        assert_eq!(joined.in_words(&Typed), "no <ram|->; none");
        assert_eq!(joined, Message::from("no {ram}; none"));
    }
}
