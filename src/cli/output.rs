//! Results on stdout. If the disk is full, the program ends with an error and an exit code, not
//! with a panic; if the reader has gone away, it ends.

use std::io::{self, Write};
use std::path::PathBuf;

use serde::Serialize;

use super::environment::stdout_was_closed;
use crate::error::{Error, Kind, Result};
use crate::text::lines;

/// The code of the error when nobody reads stdout any more.
const READER_GONE: &str = "reader_gone";
/// The code of the error when there was no stdout from the start.
const CLOSED: &str = "stdout_closed";

/// Writes `text`, with escapes for characters that a terminal acts on.
pub fn text(text: &str) -> Result<()> {
    raw(lines(text).as_bytes())
}

/// Writes `bytes` as they are.
pub fn raw(bytes: &[u8]) -> Result<()> {
    check_open()?;
    let mut out = io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).map_err(broken)
}

/// Fails if the process was started without a stdout.
pub fn check_open() -> Result<()> {
    if !stdout_was_closed() {
        return Ok(());
    }
    Err(Error::output("the result cannot be written: stdout is closed")
        .at("stdout")
        .try_("redirect stdout to a file, or keep it open")
        .with_code(CLOSED))
}

/// Writes paths, one per line, byte by byte as they are.
pub fn paths(paths: &[PathBuf]) -> Result<()> {
    let mut lines = Vec::new();
    for path in paths {
        #[cfg(unix)]
        lines.extend(std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str()));
        #[cfg(not(unix))]
        lines.extend(path.display().to_string().into_bytes());
        lines.push(b'\n');
    }
    raw(&lines)
}

/// Writes the bytes of an image as they are. If its reader goes away, the image is lost.
pub fn image(bytes: &[u8]) -> Result<()> {
    raw(bytes).map_err(|e| match reader_is_gone(&e) {
        true => e.with_code(Kind::Output.code()),
        false => e,
    })
}

/// Whether `error` says that nobody reads stdout any more. A reader may stop when it has what it
/// wanted, so that this is not a failure of a command that only prints.
pub fn reader_is_gone(error: &Error) -> bool {
    error.code() == READER_GONE
}

/// `outcome`, except that a missing reader is not an error: what the text is about is done.
pub fn told(outcome: Result<()>) -> Result<()> {
    match outcome {
        Err(e) if [READER_GONE, CLOSED].contains(&e.code()) => Ok(()),
        outcome => outcome,
    }
}

/// Writes `value` on one line.
pub fn json(value: &impl Serialize) -> Result<()> {
    let line = serde_json::to_string(value)
        .map_err(|e| Error::output(format!("the result cannot be written as JSON: {e}")))?;
    raw((line + "\n").as_bytes())
}

/// The error for a failed write to stdout.
pub fn broken(error: io::Error) -> Error {
    let e = Error::output(format!("the result cannot be written: {error}"))
        .at("stdout")
        .try_("redirect stdout to a file, or keep its reader open");
    if error.kind() == io::ErrorKind::BrokenPipe { e.with_code(READER_GONE) } else { e }
}
