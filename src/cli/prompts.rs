//! Prompts: from an argument, from stdin, or from a file with one prompt per line.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::error::{Error, Result};
use crate::pipeline::request::MAX_PROMPT_BYTES;

/// Maximum size of a prompt file in bytes: a thousand of the longest prompts.
const MAX_FILE_BYTES: u64 = 1000 * MAX_PROMPT_BYTES as u64;

/// A prompt and where it comes from, for messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    pub text: String,
    /// `prompts.txt, line 3` for a prompt from a file.
    pub source: Option<String>,
}

/// The prompts of a command: the given one, what stdin holds for `-`, or every line of `file` that
/// is not blank. Empty if neither is given.
pub fn read(given: Option<&str>, file: Option<&Path>) -> Result<Vec<Prompt>> {
    match (given, file) {
        (_, Some(file)) => read_file(file),
        (Some("-"), None) => {
            let text = read_text(std::io::stdin().lock(), MAX_PROMPT_BYTES as u64 + 2, "stdin")?;
            // `flux-fast ""` means no words; a program that wrote nothing has probably failed.
            if text.trim().is_empty() {
                return Err(Error::argument("there is no prompt on stdin")
                    .expected("the text of a prompt")
                    .try_("flux-fast \"\" to draw without words"));
            }
            let line = text.strip_suffix("\r\n").or(text.strip_suffix('\n')).unwrap_or(&text);
            Ok(vec![Prompt { text: line.to_string(), source: None }])
        }
        (Some(text), None) => Ok(vec![Prompt { text: without_mark(text).into(), source: None }]),
        (None, None) => Ok(vec![]),
    }
}

/// One prompt per line; blank lines are skipped. `-` is stdin.
fn read_file(path: &Path) -> Result<Vec<Prompt>> {
    let name = if path == Path::new("-") { "stdin".into() } else { path.display().to_string() };
    let text = if path == Path::new("-") {
        read_text(std::io::stdin().lock(), MAX_FILE_BYTES, &name)?
    } else {
        let file = File::open(path).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => {
                Error::missing("there is no such prompt file").at(&name)
            }
            _ => Error::argument(format!("the prompt file cannot be opened: {e}")).at(&name),
        })?;
        read_text(file, MAX_FILE_BYTES, &name)?
    };
    // Files that were joined have marks in the middle.
    let lines = text.lines().map(without_mark).enumerate();
    let lines = lines.filter(|(_, line)| !line.trim().is_empty());
    let prompts: Vec<Prompt> = lines
        .map(|(i, line)| Prompt {
            text: line.to_string(),
            source: Some(format!("{name}, line {}", i + 1)),
        })
        .collect();
    if prompts.is_empty() {
        return Err(Error::argument("the prompt file has no prompt")
            .at(name)
            .expected("one prompt per line"));
    }
    Ok(prompts)
}

/// All of `reader` as text, at most `limit` bytes.
fn read_text(reader: impl Read, limit: u64, name: &str) -> Result<String> {
    let mut bytes = Vec::new();
    // One byte more than the limit, to see whether there is more.
    reader
        .take(limit + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| Error::argument(format!("the prompt cannot be read: {e}")).at(name))?;
    if bytes.len() as u64 > limit {
        return Err(Error::argument("the prompt is too long")
            .at(name)
            .expected(format!("at most {} bytes", limit / 1000 * 1000)));
    }
    let is_utf16 = bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff");
    let text = String::from_utf8(bytes).map_err(|_| {
        let e = Error::argument("the prompt is not UTF-8").at(name);
        match is_utf16 {
            // What PowerShell's `>` writes.
            true => e.found("UTF-16").try_("save the text as UTF-8"),
            false => e.try_("save the text as UTF-8"),
        }
    })?;
    Ok(without_mark(&text).to_string())
}

/// `text` without the byte-order mark that editors on Windows put at its start: it is not a part of
/// the prompt.
fn without_mark(text: &str) -> &str {
    text.trim_start_matches('\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_gives_one_prompt_per_line_with_its_line_number() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("prompts.txt");
        std::fs::write(&path, "\u{feff}a fox\r\n\n  \n a cat, red \n").unwrap();
        let prompts = read(None, Some(&path)).unwrap();
        let texts: Vec<_> = prompts.iter().map(|p| p.text.as_str()).collect();
        assert_eq!(texts, ["a fox", " a cat, red "]);
        assert!(prompts[1].source.as_ref().unwrap().ends_with("prompts.txt, line 4"));
        std::fs::write(&path, "\n \n").unwrap();
        assert!(read(None, Some(&path)).unwrap_err().to_string().contains("has no prompt"));
        std::fs::write(&path, vec![b'a'; MAX_FILE_BYTES as usize + 1]).unwrap();
        assert!(read(None, Some(&path)).unwrap_err().to_string().contains("10000000 bytes"));
        std::fs::write(&path, "\u{feff}a fox\n\u{feff}a cat\n\u{feff}\n").unwrap();
        let texts: Vec<_> =
            read(None, Some(&path)).unwrap().into_iter().map(|prompt| prompt.text).collect();
        assert_eq!(texts, ["a fox", "a cat"]);
        assert_eq!(read(Some("\u{feff}a fox"), None).unwrap()[0].text, "a fox");
        std::fs::write(&path, b"\xff\xfea\0").unwrap();
        assert!(read(None, Some(&path)).unwrap_err().to_string().contains("UTF-16"));
        std::fs::write(&path, [0xff]).unwrap();
        assert!(read(None, Some(&path)).unwrap_err().to_string().contains("UTF-8"));
    }
}
