//! Results on stdout. A reader that has gone, or a full disk behind it, is an error with an exit code and never a panic.

use std::io::{self, Write};

use serde::Serialize;

use crate::error::{Error, Result};

/// Writes `text` as it is.
pub fn text(text: &str) -> Result<()> {
    raw(text.as_bytes())
}

/// Writes `bytes` as they are.
pub fn raw(bytes: &[u8]) -> Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).map_err(broken)
}

/// Writes `value` on one line.
pub fn json(value: &impl Serialize) -> Result<()> {
    let line = serde_json::to_string(value)
        .map_err(|e| Error::output(format!("the result is no JSON: {e}")))?;
    text(&(line + "\n"))
}

/// Why stdout could not be written.
pub fn broken(error: io::Error) -> Error {
    Error::output(format!("the result cannot be written: {error}"))
        .at("stdout")
        .try_("a reader that stays, or a file")
}
