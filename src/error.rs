//! The one error type: what went wrong, where, what was found and what was expected, and what to
//! try.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Serialize, Serializer};

use crate::message::{Message, Neutral, Words};
use crate::text::shortened;

/// The most characters of what happened: it may contain names from files, which have any length.
const MAX_TEXT: usize = 2000;
/// The most characters of one part of a place. Paths are longer than names.
const MAX_PLACE: usize = 1000;
/// The most characters of what was found.
const MAX_VALUE: usize = 200;

/// The kind of a failure. Each kind is one exit code of the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// A bad argument or request (exit 2).
    Argument,
    /// A model, LoRA or tokenizer file that cannot be used (exit 3).
    Model,
    /// A file that is not there (exit 4).
    Missing,
    /// Not enough memory, or a budget that cannot hold the request (exit 5).
    Memory,
    /// A device that is absent, lost or broken (exit 6).
    Device,
    /// An output that could not be written (exit 7).
    Output,
    /// Numbers that are not finite: no image is written (exit 8).
    NotFinite,
    /// Stopped by the user (exit 130).
    Cancelled,
}

impl Kind {
    /// The process exit code of this kind.
    pub fn exit_code(self) -> u8 {
        match self {
            Kind::Argument => 2,
            Kind::Model => 3,
            Kind::Missing => 4,
            Kind::Memory => 5,
            Kind::Device => 6,
            Kind::Output => 7,
            Kind::NotFinite => 8,
            Kind::Cancelled => 130,
        }
    }

    /// A stable lower-case word for machine-readable output.
    pub fn code(self) -> &'static str {
        match self {
            Kind::Argument => "bad_argument",
            Kind::Model => "bad_model",
            Kind::Missing => "missing_file",
            Kind::Memory => "out_of_memory",
            Kind::Device => "device",
            Kind::Output => "output",
            Kind::NotFinite => "not_finite",
            Kind::Cancelled => "cancelled",
        }
    }
}

/// An error with everything its reader needs. Built in a chain:
/// `Error::model("wrong shape").at(path).found("[3, 4]").expected("[3, 5]").try_("download it
/// again")`.
///
/// Places and hints may name parameters and commands ([`Message`]). Its own text is neutral;
/// [`Error::in_words`] is the error in the words of a front end.
#[derive(Debug, Clone)]
pub struct Error {
    inner: Box<Inner>,
}

#[derive(Debug, Clone)]
struct Inner {
    kind: Kind,
    /// Replaces the code of the kind.
    code: Option<&'static str>,
    what: String,
    place: Option<Message>,
    found: Option<Message>,
    expected: Option<String>,
    hint: Option<Message>,
    /// Files that were written before.
    written: Vec<PathBuf>,
}

/// The result of everything fallible in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

macro_rules! constructors {
    ($($(#[$doc:meta])* $name:ident => $kind:ident;)*) => {
        $(
            $(#[$doc])*
            pub fn $name(what: impl Into<String>) -> Self {
                Self::new(Kind::$kind, what)
            }
        )*
    };
}

impl Error {
    /// An error of `kind`; `what` is a phrase without a full stop. Long texts are cut, here and in
    /// the other parts.
    pub fn new(kind: Kind, what: impl Into<String>) -> Self {
        let what = short(what.into(), MAX_TEXT);
        Error {
            inner: Box::new(Inner {
                kind,
                code: None,
                what,
                place: None,
                found: None,
                expected: None,
                hint: None,
                written: Vec::new(),
            }),
        }
    }

    constructors! {
        /// Exit 2.
        argument => Argument;
        /// Exit 3.
        model => Model;
        /// Exit 4.
        missing => Missing;
        /// Exit 5.
        memory => Memory;
        /// Exit 6.
        device => Device;
        /// Exit 7.
        output => Output;
        /// Exit 8.
        not_finite => NotFinite;
        /// Exit 130.
        cancelled => Cancelled;
    }

    /// Where: a tensor, a layer, a path. Outer places come first when several are given.
    pub fn at(self, place: impl fmt::Display) -> Self {
        self.at_message(Message::plain(short(place.to_string(), MAX_PLACE)))
    }

    /// Where, as a file path.
    pub fn at_path(self, path: &Path) -> Self {
        self.at(path.display())
    }

    /// Where, as a parameter of [`Options`](crate::Options) or [`Request`](crate::Request): its
    /// name there.
    pub fn at_parameter(self, name: impl Into<String>) -> Self {
        self.at_message(Message::place(name, None))
    }

    /// Where, as one value of a parameter that may have several.
    pub fn at_parameter_value(self, name: impl Into<String>, value: impl fmt::Display) -> Self {
        self.at_message(Message::place(name, Some(value.to_string())))
    }

    /// Where, as a text that may name parameters.
    pub fn at_message(mut self, place: Message) -> Self {
        self.inner.place =
            Some(Message::join([Some(place), self.inner.place.take()].into_iter().flatten(), ": "));
        self
    }

    /// The value that was found there.
    pub fn found(self, found: impl fmt::Display) -> Self {
        self.found_message(Message::plain(short(found.to_string(), MAX_VALUE)))
    }

    /// What was found there, as a text that may name parameters.
    pub fn found_message(mut self, found: Message) -> Self {
        self.inner.found = Some(found);
        self
    }

    /// The value that was expected there.
    pub fn expected(mut self, expected: impl fmt::Display) -> Self {
        self.inner.expected = Some(short(expected.to_string(), MAX_TEXT));
        self
    }

    /// Gives the error a code of its own, such as `budget_too_small`: a stable word for programs
    /// that react to it. Without one it has the code of its kind.
    pub fn with_code(mut self, code: &'static str) -> Self {
        self.inner.code = Some(code);
        self
    }

    /// What the reader can do about it: a template if it is a literal, such as
    /// `"a smaller {vram}, or {device=cpu}"` (see [`Message`]), and plain text if it is a
    /// [`String`].
    pub fn try_(mut self, hint: impl Into<Message>) -> Self {
        self.inner.hint = Some(hint.into());
        self
    }

    /// The files of a request for `images` images that are complete although it failed.
    pub fn after_writing(mut self, files: &[PathBuf], images: usize) -> Self {
        if !files.is_empty() {
            self.inner.what +=
                &format!(" ({} of {images} images were written before)", files.len());
            self.inner.written.extend_from_slice(files);
        }
        self
    }

    /// The kind, hence the exit code.
    pub fn kind(&self) -> Kind {
        self.inner.kind
    }

    /// A stable lower-case word for programs: that of [`Error::with_code`], else of the kind.
    pub fn code(&self) -> &'static str {
        self.inner.code.unwrap_or(self.inner.kind.code())
    }

    /// Where it happened: a file, a tensor, a parameter; outer places first.
    pub fn place(&self) -> Option<&str> {
        self.inner.place.as_deref()
    }

    /// What was found there, if that was given.
    pub fn found_value(&self) -> Option<&str> {
        self.inner.found.as_deref()
    }

    /// What should have been there, if that was given.
    pub fn expected_value(&self) -> Option<&str> {
        self.inner.expected.as_deref()
    }

    /// The files that are complete although the request failed.
    pub fn written(&self) -> &[PathBuf] {
        &self.inner.written
    }

    /// The hint, if there is one.
    pub fn hint(&self) -> Option<&str> {
        self.inner.hint.as_deref()
    }

    /// The parameter of the request or of the options that is wrong, if the error is about one.
    pub fn parameter(&self) -> Option<&str> {
        self.inner.place.as_ref()?.parameters().last().map(|(name, _)| name)
    }

    /// The whole error without its hint, with the parameters that it names.
    pub fn message(&self) -> Message {
        let Inner { what, place, found, expected, .. } = &*self.inner;
        let mut message = Message::default();
        if let Some(place) = place {
            message.append(Message::with("{}: ", [place.clone()]));
        }
        message.append(Message::plain(what));
        if let Some(found) = found {
            message.append(Message::with(": found {}", [found.clone()]));
        }
        if let Some(expected) = expected {
            let separator = if found.is_some() { ", " } else { ": " };
            message.append(Message::plain(format!("{separator}expected {expected}")));
        }
        message
    }

    /// The error in the words of a front end.
    pub fn in_words<'a>(&'a self, words: &'a dyn Words) -> WordedError<'a> {
        WordedError { error: self, words }
    }
}

/// `text` with at most `most` characters.
fn short(text: String, most: usize) -> String {
    if text.len() <= most { text } else { shortened(&text, most).into_owned() }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.message().as_str())
    }
}

impl std::error::Error for Error {}

/// An error in neutral words; see [`WordedError`].
impl Serialize for Error {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        self.in_words(&Neutral).serialize(serializer)
    }
}

/// An [`Error`] in the words of a front end.
#[derive(Clone, Copy)]
pub struct WordedError<'a> {
    error: &'a Error,
    words: &'a dyn Words,
}

impl WordedError<'_> {
    /// The hint, if there is one.
    pub fn hint(&self) -> Option<String> {
        self.worded(&self.error.inner.hint)
    }

    fn worded(&self, message: &Option<Message>) -> Option<String> {
        message.as_ref().map(|message| message.in_words(self.words))
    }
}

impl fmt::Display for WordedError<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.error.message().in_words(self.words))
    }
}

/// A parameter with the value that a hint proposes for it.
#[derive(Serialize)]
struct Proposal<'a> {
    name: &'a str,
    value: Option<&'a str>,
}

/// `code`, the whole `message`, and its parts `what`, `place`, `found`, `expected` and `hint`; the
/// `parameter` at the place; and `hint_parameters`, each with `name` and the `value` to try. Names
/// of parameters are those of the library in any words. Parts that are not known are null.
/// `written` lists files that are complete all the same.
impl Serialize for WordedError<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        use serde::ser::SerializeStruct;
        let inner = &self.error.inner;
        let hints = inner.hint.iter().flat_map(|hint| hint.parameters());
        let hints: Vec<_> = hints.map(|(name, value)| Proposal { name, value }).collect();
        let mut fields = serializer.serialize_struct("Error", 10)?;
        fields.serialize_field("code", self.error.code())?;
        fields.serialize_field("message", &self.to_string())?;
        fields.serialize_field("what", &inner.what)?;
        fields.serialize_field("place", &self.worded(&inner.place))?;
        fields.serialize_field("found", &self.worded(&inner.found))?;
        fields.serialize_field("expected", &inner.expected)?;
        fields.serialize_field("hint", &self.hint())?;
        fields.serialize_field("parameter", &self.error.parameter())?;
        fields.serialize_field("hint_parameters", &hints)?;
        let written: Vec<_> = self.error.written().iter().map(|p| p.to_string_lossy()).collect();
        fields.serialize_field("written", &written)?;
        fields.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_reads_as_where_what_found_expected() {
        let e = Error::model("wrong shape")
            .at("img_in.weight")
            .at("dev.safetensors")
            .found("[3, 4]")
            .expected("[3, 5]")
            .try_("again");
        assert_eq!(
            e.to_string(),
            "dev.safetensors: img_in.weight: wrong shape: found [3, 4], expected [3, 5]"
        );
        assert_eq!(e.hint(), Some("again"));
        assert_eq!(e.kind().exit_code(), 3);
        assert_eq!((e.code(), e.place()), ("bad_model", Some("dev.safetensors: img_in.weight")));
        let long = "A".repeat(50_000);
        let e2 = Error::model(&long).at(&long).found(&long).expected(&long);
        let e2 = e2.try_(long.clone());
        assert!(e2.to_string().len() < 6000 && e2.hint().unwrap().len() < 13_000);
        assert_eq!(e2.found_value().map(|f| f.chars().count()), Some(201));
        let json = serde_json::to_value(e.with_code("wrong_shape")).unwrap();
        assert_eq!(json["code"], "wrong_shape");
        assert_eq!((&json["found"], &json["hint"]), (&"[3, 4]".into(), &"again".into()));
    }

    #[test]
    fn parameters_are_in_the_words_of_the_front_end() {
        struct Dashes;
        impl Words for Dashes {
            fn parameter(&self, name: &str, value: Option<&str>) -> String {
                format!("--{name} {}", value.unwrap_or_default())
            }
            fn place(&self, name: &str, _: Option<&str>) -> String {
                format!("--{name}")
            }
        }
        let e = Error::memory("too little")
            .at_parameter("ram")
            .found_message("1 MB ({ram})".into())
            .expected("2 MB")
            .try_("{ram=2M}");
        assert_eq!(e.to_string(), "ram: too little: found 1 MB (`ram`), expected 2 MB");
        assert_eq!((e.place(), e.parameter()), (Some("ram"), Some("ram")));
        assert_eq!(e.hint(), Some("`ram` 2M"));
        let worded = e.in_words(&Dashes);
        assert_eq!(worded.to_string(), "--ram: too little: found 1 MB (--ram ), expected 2 MB");
        let json = serde_json::to_value(worded).unwrap();
        assert_eq!((&json["place"], &json["hint"]), (&"--ram".into(), &"--ram 2M".into()));
        assert_eq!(json["parameter"], "ram");
        assert_eq!(json["hint_parameters"], serde_json::json!([{"name": "ram", "value": "2M"}]));
        assert_eq!(serde_json::to_value(e).unwrap()["hint"], "`ram` 2M");
    }
}
