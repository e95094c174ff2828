//! What prompts for other programs contain and this one does not interpret.

/// How many characters of a part of a prompt are shown.
const MAX_SHOWN: usize = 40;

/// Lines for the user about parts of `text` that other programs interpret. Here they are text like
/// any other.
pub fn foreign_syntax(text: &str) -> Vec<String> {
    let mut notes = Vec::new();
    if let Some(part) = brackets(text, '(', ')').find(|part| ends_in_number(part)) {
        notes.push(format!(
            "weights such as ({}) are not applied: the text is used as it is, where Forge and \
             ComfyUI weigh its tokens",
            short(part)
        ));
    }
    let schedule = |part: &&str| part.contains('|') || part.contains(':') && ends_in_number(part);
    if let Some(part) = brackets(text, '[', ']').find(schedule) {
        notes.push(format!(
            "changes of the prompt such as [{}] are not made: the text is used as it is",
            short(part)
        ));
    }
    if let Some(part) = brackets(text, '<', '>').find(|part| is_tag(part)) {
        notes.push(format!("the tag <{}> is not known and is used as text", short(part)));
    }
    if text.split_whitespace().any(|word| word.trim_matches(',') == "BREAK") {
        notes.push("BREAK is used as text: the prompt is not divided".to_string());
    }
    notes
}

/// The parts of `text` in brackets that contain no others.
fn brackets(text: &str, open: char, close: char) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        loop {
            let end = rest.find(close)?;
            let start = rest[..end].rfind(open);
            let part = start.map(|start| &rest[start + 1..end]);
            rest = &rest[end + 1..];
            if part.is_some() {
                return part;
            }
        }
    })
}

/// Whether `part` ends in a colon and a number: `fox:1.2`.
fn ends_in_number(part: &str) -> bool {
    let number = |text: &str| {
        let text = text.trim();
        text.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '.' | '-' | '+'))
            && text.parse::<f32>().is_ok()
    };
    part.rsplit_once(':').is_some_and(|(before, last)| !before.trim().is_empty() && number(last))
}

/// Whether `part` is like `hypernet:name:1`.
fn is_tag(part: &str) -> bool {
    part.split_once(':').is_some_and(|(kind, name)| {
        !kind.is_empty() && kind.chars().all(|c| c.is_ascii_alphabetic()) && !name.is_empty()
    })
}

fn short(text: &str) -> String {
    match text.char_indices().nth(MAX_SHOWN) {
        None => text.to_string(),
        Some((cut, _)) => format!("{}...", &text[..cut]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn syntax_of_other_programs_is_named_and_plain_text_is_not() {
        for (text, expected) in [
            ("a (red:1.2) fox", "(red:1.2)"),
            ("a ((red fox:1.3), snow:0.8)", "(red fox:1.3)"),
            ("a [fox:cat:0.5]", "[fox:cat:0.5]"),
            ("a [fox|cat]", "[fox|cat]"),
            ("a fox <hypernet:x:1>", "<hypernet:x:1>"),
            ("a fox BREAK snow", "BREAK"),
        ] {
            let notes = foreign_syntax(text);
            assert_eq!(notes.len(), 1, "{text}: {notes:?}");
            assert!(notes[0].contains(expected), "{text}: {notes:?}");
        }
        for text in [
            "a fox",
            "a fox (red)",
            "((best))",
            "time 10:30 (at 10)",
            "[a fox]",
            "x < y > z",
            "ratio (16:9 wide)",
            ":)",
            "(:1)",
            "a )( b",
            "(fox:inf)",
        ] {
            assert_eq!(foreign_syntax(text), [""; 0], "{text}");
        }
    }
}
