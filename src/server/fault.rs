//! Errors as clients see them: a code, words without paths of this machine, and an HTTP status.

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind};

/// The error of a job or of a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// The HTTP status of the answer that carries it.
    pub status: u16,
    /// A stable lower-case word.
    pub code: String,
    /// The message, with the value that was found and the expected one.
    pub message: String,
    /// The parameter at which the request is wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parameter: Option<String>,
    /// The hint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// After how many seconds the request may be sent again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after: Option<u32>,
    /// The same in milliseconds, exactly, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u32>,
}

impl Fault {
    /// A fault with nothing but a message.
    pub fn new(status: u16, code: &str, message: impl Into<String>) -> Self {
        Fault {
            status,
            code: code.into(),
            message: message.into(),
            parameter: None,
            hint: None,
            retry_after: None,
            retry_after_ms: None,
        }
    }

    /// With the parameter at which the request is wrong.
    pub fn parameter(mut self, name: impl Into<String>) -> Self {
        self.parameter = Some(name.into());
        self
    }

    /// With what to try.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// With the seconds to wait.
    pub fn retry_after(mut self, seconds: u64) -> Self {
        self.retry_after = Some(u32::try_from(seconds).unwrap_or(u32::MAX));
        self
    }

    /// A value that is not allowed: status 422.
    pub fn invalid(parameter: &str, message: impl Into<String>) -> Self {
        Fault::new(422, Kind::Argument.code(), message).parameter(parameter)
    }

    /// Nothing of this name: status 404.
    pub fn not_found(message: impl Into<String>) -> Self {
        Fault::new(404, "not_found", message)
    }

    /// Something that is not the client's fault: status 500.
    pub fn internal(message: impl Into<String>) -> Self {
        Fault::new(500, "internal", message)
    }
}

/// The error as a client may see it. Files appear without their folders, and the place only if it
/// is a parameter.
impl From<&Error> for Fault {
    fn from(error: &Error) -> Fault {
        let status = match error.kind() {
            Kind::Argument => 422,
            Kind::Missing => 404,
            Kind::Memory => 507,
            Kind::Device => 503,
            Kind::Cancelled => 409,
            Kind::Model | Kind::Output | Kind::NotFinite => 500,
        };
        let json = serde_json::json!(error);
        let part = |name: &str| json[name].as_str().map(without_folders);
        let mut message = part("what").unwrap_or_default();
        if let Some(parameter) = error.parameter() {
            message = format!("{parameter}: {message}");
        }
        if let Some(found) = part("found") {
            message += &format!(": found {found}");
        }
        if let Some(expected) = part("expected") {
            message += &format!(", expected {expected}");
        }
        let mut fault = Fault::new(status, error.code(), message);
        fault.parameter = error.parameter().map(str::to_string);
        fault.hint = part("hint");
        fault
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Fault {
        Fault::from(&error)
    }
}

/// A fault as the answer. The form of its body depends on the dialect of the path: the middleware
/// writes it.
impl IntoResponse for Fault {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

/// `text` in which absolute paths are shortened to their last part.
pub fn without_folders(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    let ends = |c: char| c.is_whitespace() || "\"'`(),;<>:".contains(c);
    while let Some(at) = rest.find(['/', '\\']) {
        let before = &rest[..at];
        let word = before
            .rfind(ends)
            .map_or(0, |i| i + before[i..].chars().next().map_or(1, char::len_utf8));
        // `C:\` and `\\server` are paths of Windows.
        let is_path = word == at;
        let length = rest[at..].find(ends).unwrap_or(rest.len() - at);
        let path = &rest[at..at + length];
        out.push_str(before);
        match path.rsplit(['/', '\\']).next() {
            Some(name) if is_path && path.len() > 1 => out.push_str(name),
            _ => out.push_str(path),
        }
        rest = &rest[at + length..];
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_cut_to_file_names_and_other_text_stays() {
        for (text, want) in [
            ("/home/anna/m.safetensors: wrong", "m.safetensors: wrong"),
            ("one of /a/b.gguf, /c/d.gguf", "one of b.gguf, d.gguf"),
            ("C:\\models\\x.safetensors", "C:x.safetensors"),
            ("black-forest-labs/FLUX.1-dev", "black-forest-labs/FLUX.1-dev"),
            ("0.5 / 2 and 1/2", "0.5 / 2 and 1/2"),
        ] {
            assert_eq!(without_folders(text), want);
        }
    }

    #[test]
    fn an_error_of_a_file_does_not_name_its_folder() {
        let error = Error::model("wrong shape")
            .at("/home/anna/models/x.safetensors")
            .found("/home/anna/y")
            .try_("/home/anna/z".to_string());
        let fault = Fault::from(&error);
        assert_eq!((fault.status, fault.code.as_str()), (500, "bad_model"));
        assert!(!serde_json::to_string(&fault).unwrap().contains("anna"), "{fault:?}");
        let fault = Fault::from(Error::argument("out of range").at_parameter("steps").found(0));
        assert_eq!(fault.message, "steps: out of range: found 0");
        assert_eq!((fault.status, fault.parameter.as_deref()), (422, Some("steps")));
    }
}
