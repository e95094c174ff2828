//! What prompts for other programs contain and this one does not interpret.
//!
//! Text of people has brackets, capitals and dashes, too: a sign counts only where it stands as it
//! does in prompts for other programs. A photo \[close up\] is not one, `fox, [blurry], snow` is.

/// How many characters of a part of a prompt are shown.
const MAX_SHOWN: usize = 40;

/// The words with which Forge, ComfyUI and their extensions divide a prompt.
const DIVIDERS: [&str; 8] =
    ["BREAK", "AND", "AND_PERP", "AND_SALT", "ADDCOMM", "ADDBASE", "ADDROW", "ADDCOL"];

/// A line for the user about parts of `text` that other programs interpret; `None` if there are
/// none. Here they are text like any other. `what` is what the text is: `the prompt`.
pub fn foreign_syntax(text: &str, what: &str) -> Option<String> {
    let found = [
        weight(text),
        change(text),
        choice(text),
        tag(text),
        word(text, |word| wildcard(word).or(embedding(word))),
        divider(text),
        word(text, option),
        escape(text),
    ];
    let found: Vec<String> = found.into_iter().flatten().collect();
    (!found.is_empty()).then(|| {
        format!(
            "{what} contains what other programs interpret and this one uses as text: {}",
            found.join("; ")
        )
    })
}

/// `(red:1.2)`, `((red))`, `fox, [blurry], snow`, `red++`.
fn weight(text: &str) -> Option<String> {
    let number = || brackets(text, '(', ')').find(|part| ends_in_number(part.text));
    let twice = |open: char, close: char| {
        brackets(text, open, close).find(|part| {
            let outer = part.before.ends_with(open) && part.after.starts_with(close);
            outer && is_words(part.text)
        })
    };
    let item = |open, close| brackets(text, open, close).find(is_item);
    let part = None
        .or_else(|| number().map(|part| (part, "()")))
        .or_else(|| twice('(', ')').map(|part| (part, "(())")))
        .or_else(|| twice('[', ']').map(|part| (part, "[[]]")))
        .or_else(|| twice('{', '}').map(|part| (part, "{{}}")))
        .or_else(|| item('(', ')').filter(|part| !part.is_whole()).map(|part| (part, "()")))
        .or_else(|| item('[', ']').map(|part| (part, "[]")))
        .or_else(|| item('{', '}').map(|part| (part, "{}")))
        .map(|(part, marks)| {
            let (open, close) = marks.split_at(marks.len() / 2);
            format!("{open}{}{close}", short(part.text))
        })
        .or_else(|| word(text, signs))?;
    Some(format!("weights such as {part}"))
}

/// `[fox:cat:0.5]`, `[fox|cat]`.
fn change(text: &str) -> Option<String> {
    let schedule = |part: &Part| {
        part.text.contains('|') || part.text.contains(':') && ends_in_number(part.text)
    };
    let part = brackets(text, '[', ']').find(schedule)?;
    Some(format!("changes during the steps such as [{}]", short(part.text)))
}

/// `{red|blue}`.
fn choice(text: &str) -> Option<String> {
    let part = brackets(text, '{', '}').find(|part| part.text.contains('|'))?;
    Some(format!("choices such as {{{}}}", short(part.text)))
}

/// `<hypernet:name:1>`. Tags of LoRAs were taken out before.
fn tag(text: &str) -> Option<String> {
    let is_tag = |part: &Part| {
        part.text.split_once(':').is_some_and(|(kind, name)| {
            !kind.is_empty() && kind.chars().all(|c| c.is_ascii_alphabetic()) && !name.is_empty()
        })
    };
    let part = brackets(text, '<', '>').find(is_tag)?;
    Some(format!("the tag <{}>", short(part.text)))
}

/// The value of `kind` for the first word of `text` for which it has one. Words end at spaces and
/// commas.
fn word(text: &str, kind: impl Fn(&str) -> Option<String>) -> Option<String> {
    text.split(|c: char| c.is_whitespace() || c == ',').find_map(kind)
}

/// `red++`, `(red fox)-` (compel, InvokeAI). C++ and a dash after a word are text.
fn signs(word: &str) -> Option<String> {
    let bare = word.trim_end_matches('+');
    let (bare, count) = match bare.len() < word.len() {
        true => (bare, word.len() - bare.len()),
        false => {
            let bare = word.trim_end_matches('-');
            (bare, word.len() - bare.len())
        }
    };
    let is_text = |c: char| c.is_alphanumeric() || matches!(c, '"' | '\'');
    let is_sign = match bare.chars().last()? {
        ')' => count > 0,
        c if is_text(c) => count > 2 || count == 2 && word.ends_with('+') && bare.len() > 1,
        _ => false,
    };
    is_sign.then(|| short(word))
}

/// `__animal__` (wildcards).
fn wildcard(word: &str) -> Option<String> {
    let inner = word.split("__").nth(1)?;
    let is_name = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '/' | '*' | '.' | ':');
    let is_closed = word.matches("__").count() >= 2;
    (is_closed && !inner.is_empty() && inner.chars().all(is_name))
        .then(|| format!("the wildcard __{}__", short(inner)))
}

/// `embedding:name`.
fn embedding(word: &str) -> Option<String> {
    const START: &str = "embedding:";
    let at = word.to_ascii_lowercase().find(START)?;
    let name = &word[at + START.len()..];
    let is_word = word[..at].chars().all(|c| matches!(c, '(' | '['));
    (is_word && name.starts_with(|c: char| c.is_alphanumeric()))
        .then(|| format!("the embedding {}", short(name)))
}

/// `--ar 16:9` (Midjourney).
fn option(word: &str) -> Option<String> {
    let name = word.strip_prefix("--")?;
    let is_name = !name.is_empty() && name.chars().all(|c| c.is_ascii_lowercase());
    is_name.then(|| format!("the option --{}", short(name)))
}

/// BREAK or AND between words that are not all in capitals.
fn divider(text: &str) -> Option<String> {
    let words: Vec<&str> = text
        .split_whitespace()
        .map(|word| word.trim_matches(|c: char| c.is_ascii_punctuation() && c != '_'))
        .collect();
    let is_capital = |word: &&str| {
        word.chars().filter(|c| c.is_alphabetic()).count() > 1
            && !word.chars().any(char::is_lowercase)
            && !DIVIDERS.contains(word)
    };
    let found = words.iter().enumerate().find(|(i, word)| {
        let before = i.checked_sub(1).and_then(|i| words.get(i));
        let near = [before, words.get(i + 1)];
        // AND joins two things; the others may begin or end a prompt.
        let is_inside = **word != "AND" || near.iter().all(Option::is_some);
        DIVIDERS.contains(word) && is_inside && !near.into_iter().flatten().any(is_capital)
    });
    found.map(|(_, word)| format!("{word}, which does not divide it"))
}

/// `\(`.
fn escape(text: &str) -> Option<String> {
    let found = ["\\(", "\\)", "\\[", "\\]"].into_iter().find(|e| text.contains(e))?;
    Some(format!("the backslash in {found}"))
}

/// A part of a text in brackets, with what is before and after them.
struct Part<'a> {
    before: &'a str,
    text: &'a str,
    after: &'a str,
}

impl Part<'_> {
    /// Whether there is nothing but the brackets.
    fn is_whole(&self) -> bool {
        self.before.trim().is_empty() && self.after.trim().is_empty()
    }
}

/// The parts of `text` in brackets that contain no others.
fn brackets(text: &str, open: char, close: char) -> impl Iterator<Item = Part<'_>> {
    let mut done = 0;
    std::iter::from_fn(move || {
        loop {
            let end = done + text[done..].find(close)?;
            let start = text[done..end].rfind(open).map(|start| done + start);
            done = end + 1;
            let Some(start) = start else { continue };
            // Escaped brackets are text for other programs as well.
            if text[..start].ends_with('\\') {
                continue;
            }
            let (before, after) = (&text[..start], &text[end + 1..]);
            return Some(Part { before, text: &text[start + 1..end], after });
        }
    })
}

/// Whether the brackets are an item of a list between commas, as weights are.
fn is_item(part: &Part) -> bool {
    let before = part.before.trim_end();
    let after = part.after.trim_start();
    is_words(part.text)
        && (before.is_empty() || before.ends_with(','))
        && (after.is_empty() || after.starts_with(','))
}

/// Whether `text` may be a part of a prompt: a smiley and JSON are not.
fn is_words(text: &str) -> bool {
    text.starts_with(|c: char| c.is_alphanumeric()) && !text.contains([':', '"'])
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
    fn syntax_of_other_programs_is_named() {
        for (text, expected) in [
            ("a (red:1.2) fox", "(red:1.2)"),
            ("a ((red fox:1.3), snow:0.8)", "(red fox:1.3)"),
            ("((best quality))", "((best quality))"),
            ("a (((red))) fox", "((red))"),
            ("a [[blurry]] fox", "[[blurry]]"),
            ("a {{red}} fox", "{{red}}"),
            ("a fox, [blurry], snow", "[blurry]"),
            ("[a]", "[a]"),
            ("a fox, (red)", "(red)"),
            ("{red}, fox", "{red}"),
            ("a+++ fox", "a+++"),
            ("a red++ fox", "red++"),
            ("a (red fox)+, snow", "fox)+"),
            ("a (red fox)--", "fox)--"),
            ("a [fox:cat:0.5]", "[fox:cat:0.5]"),
            ("a [fox::0.5]", "[fox::0.5]"),
            ("a [fox|cat]", "[fox|cat]"),
            ("a {fox|cat}", "{fox|cat}"),
            ("a {2$$fox|cat|dog}", "{2$$fox|cat|dog}"),
            ("a fox <hypernet:x:1>", "<hypernet:x:1>"),
            ("a __animal__ in snow", "__animal__"),
            ("a __animals/wild-*__", "__animals/wild-*__"),
            ("a fox embedding:easynegative", "easynegative"),
            ("a fox, Embedding:x.pt, snow", "x.pt"),
            ("a fox BREAK snow", "BREAK"),
            ("a fox,\nBREAK,\nsnow", "BREAK"),
            ("a fox AND a dog", "AND"),
            ("a fox ADDCOMM snow", "ADDCOMM"),
            ("a fox --ar 16:9", "--ar"),
            ("saber \\(series\\)", "\\("),
        ] {
            let note = foreign_syntax(text, "the prompt").unwrap_or_else(|| panic!("{text}"));
            assert!(note.contains(expected), "{text}: {note}");
            assert!(!note.contains("; "), "{text}: {note}");
        }
        // All of it in one line.
        let note = foreign_syntax("(a:1.2) {b|c} BREAK __d__", "the negative prompt").unwrap();
        for part in ["the negative prompt", "(a:1.2)", "{b|c}", "BREAK", "__d__"] {
            assert!(note.contains(part), "{note}");
        }
        let long = format!("({}:1.2)", "a".repeat(1000));
        assert!(foreign_syntax(&long, "the prompt").unwrap().len() < 200);
    }

    #[test]
    fn text_of_people_is_not_taken_for_it() {
        for text in [
            "",
            "a fox",
            "a fox (red)",
            "(a fox)",
            "a photo [close up]",
            "[close up] a photo of a fox",
            "time 10:30 (at 10)",
            "x < y > z",
            "ratio (16:9 wide)",
            ":)",
            ";-) (:1)",
            "a )( b",
            "a ]] [[ b",
            "(fox:inf)",
            "a book about C++ and g++, on a desk",
            "a fox -- red, with a tail -",
            "a red-orange fox- like animal",
            "a plus sign + a minus sign -",
            "a sign that says 'ROCK AND ROLL'",
            "TAKE A BREAK NOW",
            "A FOX AND A DOG",
            "AND then a fox",
            "snake_case and __ lines",
            "the embedding: a ring of gold",
            "{\"scene\": \"a fox\", \"colors\": [\"red\", \"blue\"]}",
            "smile ((:",
            "1girl, red hair",
        ] {
            assert_eq!(foreign_syntax(text, "the prompt"), None, "{text}");
        }
    }
}
