//! The one error type: what went wrong, where, what was found and what was expected, and what to
//! try.

use std::fmt;
use std::path::Path;

use serde::{Serialize, Serializer};

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
    place: Option<String>,
    found: Option<String>,
    expected: Option<String>,
    hint: Option<String>,
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
    /// An error of `kind`; `what` is a phrase without a full stop.
    pub fn new(kind: Kind, what: impl Into<String>) -> Self {
        Error {
            inner: Box::new(Inner {
                kind,
                code: None,
                what: what.into(),
                place: None,
                found: None,
                expected: None,
                hint: None,
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

    /// Where: a tensor, a flag, a layer, a path.
    pub fn at(mut self, place: impl fmt::Display) -> Self {
        let place = place.to_string();
        self.inner.place = Some(match self.inner.place.take() {
            Some(inner) => format!("{place}: {inner}"),
            None => place,
        });
        self
    }

    /// Where, as a file path. Outer places come first when several are given.
    pub fn at_path(self, path: &Path) -> Self {
        self.at(path.display())
    }

    /// What was found there.
    pub fn found(mut self, found: impl fmt::Display) -> Self {
        self.inner.found = Some(found.to_string());
        self
    }

    /// What should have been there.
    pub fn expected(mut self, expected: impl fmt::Display) -> Self {
        self.inner.expected = Some(expected.to_string());
        self
    }

    /// Gives the error a code of its own, such as `budget_too_small`: a stable word for programs
    /// that react to it. Without one it has the code of its kind.
    pub fn with_code(mut self, code: &'static str) -> Self {
        self.inner.code = Some(code);
        self
    }

    /// What the reader can do about it.
    pub fn try_(mut self, hint: impl fmt::Display) -> Self {
        self.inner.hint = Some(hint.to_string());
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

    /// What to try, if there is anything.
    pub fn hint(&self) -> Option<&str> {
        self.inner.hint.as_deref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { what, place, found, expected, .. } = &*self.inner;
        if let Some(place) = place {
            write!(f, "{place}: ")?;
        }
        f.write_str(what)?;
        match (found, expected) {
            (Some(found), Some(expected)) => write!(f, ": found {found}, expected {expected}"),
            (Some(found), None) => write!(f, ": found {found}"),
            (None, Some(expected)) => write!(f, ": expected {expected}"),
            (None, None) => Ok(()),
        }
    }
}

impl std::error::Error for Error {}

/// `code`, the whole `message`, and its parts `what`, `place`, `found`, `expected` and `hint`;
/// parts that are not known are null.
impl Serialize for Error {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        use serde::ser::SerializeStruct;
        let mut fields = serializer.serialize_struct("Error", 7)?;
        fields.serialize_field("code", self.code())?;
        fields.serialize_field("message", &self.to_string())?;
        fields.serialize_field("what", &self.inner.what)?;
        fields.serialize_field("place", &self.inner.place)?;
        fields.serialize_field("found", &self.inner.found)?;
        fields.serialize_field("expected", &self.inner.expected)?;
        fields.serialize_field("hint", &self.inner.hint)?;
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
        let json = serde_json::to_value(e.with_code("wrong_shape")).unwrap();
        assert_eq!(json["code"], "wrong_shape");
        assert_eq!((&json["found"], &json["hint"]), (&"[3, 4]".into(), &"again".into()));
    }
}
