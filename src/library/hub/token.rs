//! Who we are to the hub: the token, and where it came from. The token itself is never shown.

use std::fmt;
use std::path::PathBuf;

use super::cache::{Env, expand, hf_home, set, truth};
use crate::error::{Error, Result};

/// A token and its source, or where one was looked for.
#[derive(Clone)]
pub struct Credentials {
    token: Option<String>,
    source: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("there", &self.token.is_some())
            .field("source", &self.source)
            .finish()
    }
}

impl Credentials {
    /// The token that Hugging Face's own tools would use: of `HF_TOKEN`, `HUGGING_FACE_HUB_TOKEN`, and the file that `hf auth login` writes
    /// (`HF_TOKEN_PATH`, else `token` in `HF_HOME`), the first that is there. `HF_HUB_DISABLE_IMPLICIT_TOKEN` goes without.
    pub fn find(env: Env) -> Self {
        if truth(env, "HF_HUB_DISABLE_IMPLICIT_TOKEN") {
            return Self::none("HF_HUB_DISABLE_IMPLICIT_TOKEN is set");
        }
        for name in ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"] {
            if let Some(token) = set(env, name)
                .map(|t| t.to_string_lossy().trim().to_string())
                .filter(|t| !t.is_empty())
            {
                return Self::given(token, format!("the environment variable {name}"));
            }
        }
        let path = match set(env, "HF_TOKEN_PATH") {
            Some(path) => expand(env, &path.to_string_lossy()),
            None => hf_home(env).join("token"),
        };
        Self::in_file(path)
    }

    fn in_file(path: PathBuf) -> Self {
        let unset = "HF_TOKEN and HUGGING_FACE_HUB_TOKEN are not set";
        match std::fs::read_to_string(&path) {
            Ok(text) if !text.trim().is_empty() => {
                Self::given(text.trim().to_string(), format!("{}", path.display()))
            }
            Ok(_) => Self::none(format!("{unset}, and {} is empty", path.display())),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                Self::none(format!("{unset}, and {} is not there", path.display()))
            }
            Err(e) => Self::none(format!("{unset}, and {} cannot be read: {e}", path.display())),
        }
    }

    /// A token from elsewhere; `source` is told in errors.
    pub fn given(token: impl Into<String>, source: impl Into<String>) -> Self {
        Credentials { token: Some(token.into()), source: source.into() }
    }

    /// No token; `why` is told in errors.
    pub fn none(why: impl Into<String>) -> Self {
        Credentials { token: None, source: why.into() }
    }

    /// Whether there is a token.
    pub fn there(&self) -> bool {
        self.token.is_some()
    }

    /// `the token of the environment variable HF_TOKEN`, or `no token (HF_TOKEN and … are not set, …)`.
    pub fn words(&self) -> String {
        match self.token {
            Some(_) => format!("the token of {}", self.source),
            None => format!("no token ({})", self.source),
        }
    }

    /// The value of the `Authorization` header.
    pub(super) fn header(&self) -> Result<Option<String>> {
        let Some(token) = &self.token else { return Ok(None) };
        if token.is_empty() || !token.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(Error::argument(format!("{} is not a token", self.words()))
                .expected("one word of ASCII letters and digits, such as hf_...")
                .try_("copy it again from https://huggingface.co/settings/tokens"));
        }
        Ok(Some(format!("Bearer {token}")))
    }
}
