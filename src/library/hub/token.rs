//! The access token for a hub, and where it was found. The token itself is never shown.

use std::fmt;
use std::path::PathBuf;

use crate::error::{Error, Result};
use crate::host::{Environment, expand, flag, read_regular_text, variable};
use crate::library::hf_cache::hf_home;

/// The largest file that contains a token, in bytes.
const MAX_TOKEN_FILE: u64 = 64 << 10;

/// An access token and where it comes from, or the reason why there is none.
#[derive(Clone)]
pub struct Credentials {
    token: Option<String>,
    source: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("has_token", &self.token.is_some())
            .field("source", &self.source)
            .finish()
    }
}

impl Credentials {
    /// The token that Hugging Face's own tools would use: the first of `HF_TOKEN`,
    /// `HUGGING_FACE_HUB_TOKEN`, and the file that `hf auth login` writes (`HF_TOKEN_PATH`, else
    /// `token` in [`hf_home`]). There is none if `HF_HUB_DISABLE_IMPLICIT_TOKEN` is set.
    pub fn from_env(env: Environment) -> Self {
        if flag(env, "HF_HUB_DISABLE_IMPLICIT_TOKEN") {
            return Self::none("HF_HUB_DISABLE_IMPLICIT_TOKEN is set");
        }
        for name in ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"] {
            let token = variable(env, name).map(|t| t.to_string_lossy().trim().to_string());
            if let Some(token) = token.filter(|t| !t.is_empty()) {
                return Self::given(token, format!("the environment variable {name}"));
            }
        }
        let path = match variable(env, "HF_TOKEN_PATH") {
            Some(path) => expand(env, &path.to_string_lossy()),
            None => hf_home(env).join("token"),
        };
        Self::from_file(path)
    }

    fn from_file(path: PathBuf) -> Self {
        let unset = "HF_TOKEN and HUGGING_FACE_HUB_TOKEN are not set";
        match read_regular_text(&path, MAX_TOKEN_FILE) {
            Ok(text) if !text.trim().is_empty() => {
                Self::given(text.trim().to_string(), format!("{}", path.display()))
            }
            Ok(_) => Self::none(format!("{unset}, and {} is empty", path.display())),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                Self::none(format!("{unset}, and {} does not exist", path.display()))
            }
            Err(e) => Self::none(format!("{unset}, and {} cannot be read: {e}", path.display())),
        }
    }

    /// A token from elsewhere. Error messages contain `source`, not the token.
    pub fn given(token: impl Into<String>, source: impl Into<String>) -> Self {
        Credentials { token: Some(token.into()), source: source.into() }
    }

    /// No token. Error messages contain the `reason`.
    pub fn none(reason: impl Into<String>) -> Self {
        Credentials { token: None, source: reason.into() }
    }

    /// Words for error messages: `the token of the environment variable HF_TOKEN`, or
    /// `no token (HF_TOKEN and … are not set, …)`.
    pub fn describe(&self) -> String {
        match self.token {
            Some(_) => format!("the token of {}", self.source),
            None => format!("no token ({})", self.source),
        }
    }

    /// The value of the `Authorization` header; an error if the token cannot be part of a header.
    pub(super) fn header(&self) -> Result<Option<String>> {
        let Some(token) = &self.token else { return Ok(None) };
        if token.is_empty() || !token.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(Error::argument(format!("{} is not a token", self.describe()))
                .expected("one word of ASCII letters and digits, such as hf_...")
                .try_("copy it again from https://huggingface.co/settings/tokens"));
        }
        Ok(Some(format!("Bearer {token}")))
    }
}
