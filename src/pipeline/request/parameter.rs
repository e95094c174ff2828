//! How one parameter's value is written to and read from text and JSON.

use serde::{Serialize, Serializer};

use super::Margins;

/// A value that JSON and the text in image files carry.
pub trait Parameter: Sized {
    /// The value as text; `None` if there is nothing to write.
    fn to_text(&self) -> Option<String>;

    /// The value of `text`; `None` if it cannot be read.
    fn from_text(text: &str) -> Option<Self>;

    /// The value as JSON.
    fn to_json<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error>;
}

/// For `#[serde(serialize_with)]`.
pub fn write<P: Parameter, S: Serializer>(value: &P, serializer: S) -> Result<S::Ok, S::Error> {
    value.to_json(serializer)
}

/// [`write`] for a number that may be absent.
pub fn write_optional<S: Serializer>(value: &Option<f32>, s: S) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => write(value, s),
        None => s.serialize_none(),
    }
}

/// A number as it was typed: 0.8, where its f32 widens to 0.800000011920929.
pub fn plain_number(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}

macro_rules! plain {
    ($($type:ty),+) => {$(
        impl Parameter for $type {
            fn to_text(&self) -> Option<String> {
                Some(self.to_string())
            }

            fn from_text(text: &str) -> Option<Self> {
                text.parse().ok()
            }

            fn to_json<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                self.serialize(serializer)
            }
        }
    )+};
}

plain!(usize, u64, String, Margins);

impl Parameter for f32 {
    fn to_text(&self) -> Option<String> {
        Some(self.to_string())
    }

    fn from_text(text: &str) -> Option<Self> {
        text.parse().ok()
    }

    fn to_json<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(plain_number(*self))
    }
}

/// Numbers with spaces between them.
impl Parameter for Vec<f32> {
    fn to_text(&self) -> Option<String> {
        let all: Vec<String> = self.iter().map(f32::to_string).collect();
        (!all.is_empty()).then(|| all.join(" "))
    }

    fn from_text(text: &str) -> Option<Self> {
        text.split_whitespace().map(|number| number.parse().ok()).collect()
    }

    fn to_json<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter().map(|&value| plain_number(value)))
    }
}

impl<P: Parameter> Parameter for Option<P> {
    fn to_text(&self) -> Option<String> {
        self.as_ref()?.to_text()
    }

    fn from_text(text: &str) -> Option<Self> {
        P::from_text(text).map(Some)
    }

    fn to_json<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Some(value) => value.to_json(serializer),
            None => serializer.serialize_none(),
        }
    }
}
