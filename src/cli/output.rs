//! Results on stdout. If the reader has gone away or the disk is full, the program ends with an
//! error and an exit code, not with a panic.

use std::io::{self, Write};

use serde::Serialize;

use crate::error::{Error, Result};
use crate::text::lines;

/// Writes `text`, with escapes for characters that a terminal acts on.
pub fn text(text: &str) -> Result<()> {
    raw(lines(text).as_bytes())
}

/// Writes `bytes` as they are.
pub fn raw(bytes: &[u8]) -> Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).map_err(broken)
}

/// Writes `value` on one line.
pub fn json(value: &impl Serialize) -> Result<()> {
    let line = serde_json::to_string(value)
        .map_err(|e| Error::output(format!("the result cannot be written as JSON: {e}")))?;
    raw((line + "\n").as_bytes())
}

/// The error for a failed write to stdout.
pub fn broken(error: io::Error) -> Error {
    Error::output(format!("the result cannot be written: {error}"))
        .at("stdout")
        .try_("redirect stdout to a file, or keep its reader open")
}
