//! Text that a file, a folder or a server supplied, made safe to show.
//!
//! Names of files and tensors, metadata and answers of servers may contain control characters. A
//! terminal obeys them: they move the cursor, change its title, or reverse the order of a line.
//! Everything that is printed passes this module; JSON has its own escapes.

use std::borrow::Cow;

/// The longest line that is printed, in characters; the longest prompt fits.
const MAX_LINE: usize = 12_000;

/// Whether a terminal acts on `c` instead of showing it: control characters (C0, DEL and C1),
/// separators of lines, and characters that change the direction of text.
fn is_active(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
        )
}

/// `text` as one line: every character that a terminal acts on, line breaks too, is written as an
/// escape such as `\u{1b}` or `\n`.
pub fn one_line(text: &str) -> Cow<'_, str> {
    escaped(text, |_| false)
}

/// `text` with its line breaks; other characters that a terminal acts on are written as escapes.
/// Long lines are cut.
pub fn lines(text: &str) -> Cow<'_, str> {
    let is_long = |line: &str| line.len() > MAX_LINE && line.chars().count() > MAX_LINE;
    if !text.split('\n').any(is_long) {
        return escaped(text, |c| c == '\n');
    }
    let cut: Vec<Cow<str>> = text.split('\n').map(|line| shortened(line, MAX_LINE)).collect();
    Cow::Owned(escaped(&cut.join("\n"), |c| c == '\n').into_owned())
}

/// `text` if it has at most `most` characters, else its start and an ellipsis.
pub fn shortened(text: &str, most: usize) -> Cow<'_, str> {
    match text.char_indices().nth(most) {
        None => Cow::Borrowed(text),
        Some((end, _)) => Cow::Owned(format!("{}…", &text[..end])),
    }
}

fn escaped(text: &str, stays: impl Fn(char) -> bool) -> Cow<'_, str> {
    let is_replaced = |c: char| is_active(c) && !stays(c);
    if !text.contains(is_replaced) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            '\n' | '\r' | '\t' if is_replaced(c) => out.extend(c.escape_default()),
            c if is_replaced(c) => out.extend(c.escape_unicode()),
            c => out.push(c),
        }
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_that_a_terminal_acts_on_is_escaped() {
        for (text, shown) in [
            ("a fox 🦊, 狐 na\u{308}ive", "a fox 🦊, 狐 na\u{308}ive"),
            ("\u{1b}]0;title\u{7}x", r"\u{1b}]0;title\u{7}x"),
            ("\u{9b}31m \u{7f}", r"\u{9b}31m \u{7f}"),
            ("a\u{202e}cod.exe", r"a\u{202e}cod.exe"),
            ("\u{2066}\u{200f}\u{61c}\u{2028}", r"\u{2066}\u{200f}\u{61c}\u{2028}"),
            ("a\nb\tc\r", r"a\nb\tc\r"),
            // A joiner is part of many emoji.
            ("👩\u{200d}🚀", "👩\u{200d}🚀"),
        ] {
            assert_eq!(one_line(text), shown);
        }
        assert_eq!(lines("a\nb\u{1b}\r\n"), "a\nb\\u{1b}\\r\n");
        let long = format!("a\n{}\nb", "x".repeat(MAX_LINE + 1));
        assert_eq!(lines(&long), format!("a\n{}…\nb", "x".repeat(MAX_LINE)));
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        assert_eq!(shortened("狐狐狐", 3), "狐狐狐");
        assert_eq!(shortened("狐狐狐", 2), "狐狐…");
    }
}
