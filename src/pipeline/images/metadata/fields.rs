//! The line of fields at the end of the text that AUTOMATIC1111 and others write, such as
//! `Steps: 4, Sampler: Euler, Seed: 1`.

use std::borrow::Cow;

/// How many fields are read. The longest lines of real programs have about a hundred.
const MAX_FIELDS: usize = 1000;

/// The fields of `line`, one after another. Each matches
/// `\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)`, and the value may also be a list or an
/// object in brackets, with commas inside. The time grows linearly with the length of the line.
pub fn fields(line: &str) -> Vec<(&str, Cow<'_, str>)> {
    fields_and_rest(line).0
}

/// The fields of `line`, and the pieces between them that belong to none: of `CFG scale: 3,5` the
/// `5`.
pub fn fields_and_rest(line: &str) -> (Vec<(&str, Cow<'_, str>)>, Vec<&str>) {
    let (mut found, mut pieces) = (Vec::new(), Vec::new());
    let mut rest = line;
    while found.len() < MAX_FIELDS
        && let Some((before, after)) = rest.split_once(':')
    {
        rest = after;
        let key = key_at_end(before);
        pieces.push(&before[..before.len() - key.map_or(0, str::len)]);
        if let Some(key) = key {
            let (value, next) = value(after.trim_start());
            found.push((key, value));
            rest = next;
        }
    }
    pieces.push(rest);
    let between = |c: char| c == ',' || c.is_whitespace();
    let pieces = pieces.into_iter().map(|piece| piece.trim_matches(between));
    (found, pieces.filter(|piece| !piece.is_empty()).collect())
}

/// The longest key that `text` ends in: at least two letters, digits, spaces or dashes, the first
/// of which is a letter or a digit.
fn key_at_end(text: &str) -> Option<&str> {
    let word = |c: char| c.is_alphanumeric() || c == '_';
    let outside = |c: char| !(word(c) || matches!(c, ' ' | '-' | '/'));
    let start =
        text.char_indices().rfind(|&(_, c)| outside(c)).map_or(0, |(i, c)| i + c.len_utf8());
    let key = text[start..].trim_start_matches(|c| !word(c));
    key.chars().nth(1).is_some().then_some(key)
}

/// The value at the start of `text`, and what follows its comma.
fn value(text: &str) -> (Cow<'_, str>, &str) {
    if let Some(length) = string_length(text)
        && let Some(after) = after_value(&text[length..])
    {
        let literal = &text[..length];
        let value = serde_json::from_str(literal).map_or(Cow::Borrowed(literal), Cow::Owned);
        return (value, after);
    }
    if let Some(length) = brackets_length(text)
        && let Some(after) = after_value(text[length..].trim_start())
    {
        return (Cow::Borrowed(&text[..length]), after);
    }
    let (value, after) = text.split_once(',').unwrap_or((text, ""));
    (Cow::Borrowed(value.trim_end()), after)
}

/// Length in bytes of the quoted string at the start of `text`, quotes included.
fn string_length(text: &str) -> Option<usize> {
    let mut escaped = false;
    for (i, c) in text.strip_prefix('"')?.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return Some(i + 2),
            _ => {}
        }
    }
    None
}

/// Length in bytes of the list or object at the start of `text`, brackets included.
fn brackets_length(text: &str) -> Option<usize> {
    if !text.starts_with(['[', '{']) {
        return None;
    }
    let (mut depth, mut quoted, mut escaped) = (0usize, false, false);
    for (i, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            '[' | '{' if !quoted => depth += 1,
            ']' | '}' if !quoted => {
                depth -= 1;
                if depth == 0 {
                    return Some(i + 1);
                }
            }
            _ => {}
        }
    }
    None
}

fn after_value(text: &str) -> Option<&str> {
    if text.is_empty() { Some("") } else { text.strip_prefix(',') }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(line: &str) -> Vec<(String, String)> {
        fields(line).into_iter().map(|(k, v)| (k.to_string(), v.into_owned())).collect()
    }

    #[test]
    fn values_may_be_quoted_bracketed_or_empty() {
        let line = "Steps: 20, Model: , Civitai resources: [{\"a\":1,\"b\":\"x, y]\"}], \
                    Skip layers: [7, 8, ], Lora hashes: \"toy: 1, b: 2\", Odd: [x, Version: v1";
        let expected = [
            ("Steps", "20"),
            ("Model", ""),
            ("Civitai resources", "[{\"a\":1,\"b\":\"x, y]\"}]"),
            ("Skip layers", "[7, 8, ]"),
            ("Lora hashes", "toy: 1, b: 2"),
            ("Odd", "[x"),
            ("Version", "v1"),
        ];
        assert_eq!(pairs(line), expected.map(|(k, v)| (k.to_string(), v.to_string())));
        assert_eq!(pairs("x: 1, (a b: 2"), [("a b".to_string(), "2".to_string())]);
        assert_eq!(pairs("no fields"), []);
        let rest = |line| fields_and_rest(line).1;
        assert_eq!(rest(line), [""; 0]);
        assert_eq!(rest("CFG scale: 3,5, Seed: 1, and more"), ["5", "and more"]);
        assert_eq!(rest("no fields"), ["no fields"]);
    }

    #[test]
    fn hostile_lines_are_read_in_linear_time() {
        let kinds = ["a", "a:", "a b: \"", "ab: [", "ab: \"\\", ": ", "\u{e9}\u{e9}: [\"", "ab:,"];
        for kind in kinds {
            let line = kind.repeat((64 << 10) / kind.len());
            assert!(fields(&line).len() <= MAX_FIELDS, "{kind}");
        }
    }
}
