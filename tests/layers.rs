//! The layers of the architecture, read from the sources: each module uses only modules of its own
//! layer and of the layers before it (ARCHITECTURE.md), `unsafe` is used in few places, and only
//! the command line names its options.

use std::path::{Path, PathBuf};

const LAYERS: &[&[&str]] = &[
    &["error", "event", "message", "dtype", "tensor", "text", "units", "host"],
    &["op"],
    &["spec", "backend", "weights", "model"],
    &["library", "plan"],
    &["stream"],
    &["pipeline"],
    &["server"],
    &["cli"],
];

/// Modules of one layer that may not use each other, except as in [`MAY_READ`].
const SIBLINGS: &[&str] = &["backend", "weights", "model", "spec"];

/// Which siblings may use which others.
const MAY_READ: &[(&str, &str)] = &[("weights", "spec"), ("model", "spec")];

fn sources(dir: &Path, out: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, out);
        } else if path.extension().is_some_and(|e| e == "rs") {
            out.push(path);
        }
    }
}

fn all_sources() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut paths = Vec::new();
    sources(&root, &mut paths);
    assert!(paths.len() > 30, "only {} sources found", paths.len());
    let name = |p: &Path| p.strip_prefix(&root).unwrap().to_string_lossy().replace('\\', "/");
    paths.iter().map(|p| (name(p), std::fs::read_to_string(p).unwrap())).collect()
}

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|l| l.contains(&module))
}

#[test]
fn modules_use_only_their_layer_and_those_before_it() {
    let mut edges = 0;
    for (name, text) in all_sources() {
        let module = name.split(['/', '.']).next().unwrap();
        let Some(own) = layer(module) else {
            assert!(matches!(module, "lib" | "main"), "{name} is in no layer");
            continue;
        };
        // Unit tests may use any module.
        let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
        assert!(
            !text.contains("use crate::{"),
            "{name}: one `use crate::module` a line, so that this test can read them"
        );
        for (at, _) in text.match_indices("crate::") {
            let used: String =
                text[at + 7..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            let Some(other) = layer(&used) else { continue };
            edges += 1;
            let (from, to) = (module, used.as_str());
            let sibling = SIBLINGS.contains(&from)
                && SIBLINGS.contains(&to)
                && from != to
                && !MAY_READ.contains(&(from, to));
            assert!(other <= own && !sibling, "{name} uses crate::{used}");
        }
    }
    assert!(edges > 50, "only {edges} uses found: does this test still read them?");
}

#[test]
fn unsafe_code_is_in_the_backends_and_the_file_map_only() {
    for (name, text) in all_sources() {
        let code: String =
            text.lines().map(|l| l.split("//").next().unwrap()).collect::<Vec<_>>().join("\n");
        let allowed = name.starts_with("backend/")
            || name == "weights/container/map.rs"
            || name == "cli/environment.rs";
        assert!(allowed || !code.contains("unsafe "), "{name} holds unsafe code");
    }
}

#[test]
fn lines_are_at_most_100_columns_wide() {
    let mut long = Vec::new();
    for (name, text) in all_sources() {
        let wide = |(_, line): &(usize, &str)| line.chars().count() > 100;
        long.extend(
            text.lines().enumerate().filter(wide).map(|(i, _)| format!("{name}:{}", i + 1)),
        );
    }
    assert!(long.is_empty(), "{} lines over 100 columns: {long:#?}", long.len());
}

/// The string literals of `text`, which is Rust that compiles. Escapes stay as they are written.
fn literals(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find(['"', '\'', '/', 'r']) {
        let word_before = rest[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
        let (from, hashes) =
            (&rest[at..], rest[at + 1..].chars().take_while(|c| *c == '#').count());
        let raw = from.starts_with('r') && from[1 + hashes..].starts_with('"');
        rest = if from.starts_with("//") {
            from.split_once('\n').map_or("", |(_, after)| after)
        } else if from.starts_with("/*") {
            from.split_once("*/").map_or("", |(_, after)| after)
        } else if from.starts_with("'\\") {
            // A character that is escaped: its second quote may be the escaped one.
            from[3..].split_once('\'').map_or("", |(_, after)| after)
        } else if let Some(after) = from.strip_prefix("'\"'") {
            after
        } else if raw && (!word_before || rest[..at].ends_with('b')) {
            let (begin, end) = (hashes + 2, format!("\"{}", "#".repeat(hashes)));
            let length = from[begin..].find(&end).unwrap();
            found.push(&from[begin..begin + length]);
            &from[begin + length + end.len()..]
        } else if let Some(literal) = from.strip_prefix('"') {
            let mut escaped = false;
            let end = literal.find(|c: char| {
                let ends = c == '"' && !escaped;
                escaped = c == '\\' && !escaped;
                ends
            });
            let end = end.unwrap();
            found.push(&literal[..end]);
            &literal[end + 1..]
        } else {
            &from[1..]
        };
    }
    found
}

/// Whether `text` names an option (`--ram`) or a command (`flux-fast doctor`) as it is typed.
fn is_typed(text: &str) -> bool {
    let option = text.match_indices("--").any(|(at, _)| {
        let before = text[..at].chars().next_back();
        let after = text[at + 2..].chars().next();
        after.is_some_and(|c| c.is_ascii_lowercase())
            && before.is_none_or(|c| !c.is_alphanumeric() && c != '-' && c != '<')
    });
    let command = text.match_indices("flux-fast ").any(|(at, name)| {
        let word: String =
            text[at + name.len()..].chars().take_while(char::is_ascii_lowercase).collect();
        COMMANDS.contains(&word.as_str())
    });
    // `mkdir -p FOLDER` is a command of the shell, which helps any user.
    // Options of other programs.
    let text = &text.replace("ulimit -", "ulimit ");
    let short = text.split([' ', '(', ')', '`']).any(|word| {
        let word = word.as_bytes();
        word.len() == 2 && word[0] == b'-' && word[1].is_ascii_alphabetic()
    });
    option || command || short && !text.starts_with("mkdir ")
}

const COMMANDS: &[&str] = &[
    "generate",
    "plan",
    "again",
    "bench",
    "serve",
    "worker",
    "cluster",
    "draw-jobs",
    "pull",
    "models",
    "convert",
    "doctor",
    "inspect",
    "completions",
    "man",
    "help",
];

#[test]
fn only_the_command_line_says_what_is_typed_there() {
    assert_eq!(
        literals(r##"f("a\"b", '"', '\'', b"c", r"d\", r#"e"f"#, x_r, 'l) // "g" "##),
        [r#"a\"b"#, "c", "d\\", "e\"f"]
    );
    assert!(is_typed("a smaller --ram") && is_typed("see `flux-fast doctor`"));
    assert!(is_typed("at a time (-n)") && is_typed("another -o") && !is_typed("a - b"));
    assert!(!is_typed("raise it (ulimit -v)"));
    assert!(!is_typed("a--b") && !is_typed("flux-fast wrote it") && !is_typed("a {ram}"));
    let (mut count, mut typed) = (0, Vec::new());
    for (name, text) in all_sources() {
        if name.starts_with("cli/") || name.ends_with("tests.rs") {
            continue;
        }
        let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
        for literal in literals(text) {
            count += 1;
            if is_typed(literal) {
                typed.push(format!("{name}: {literal:?}"));
            }
        }
    }
    assert!(count > 1000, "only {count} literals found: does this test still read them?");
    assert!(
        typed.is_empty(),
        "write {{ram}} or {{:doctor}} (src/message.rs) in place of --ram or `flux-fast doctor`: \
         {typed:#?}"
    );
}

/// The name and the number of lines of each function in `text`, which rustfmt has formatted: a
/// function ends at the first line that is a closing brace with the indentation of its `fn` line.
fn functions(text: &str) -> Vec<(String, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (i, line) in lines.iter().enumerate() {
        let code = line.trim_start();
        let indent = line.len() - code.len();
        let words: Vec<&str> = code.split([' ', '(', '<']).collect();
        let Some(at) = words.iter().position(|w| *w == "fn") else { continue };
        if code.starts_with("//") || words[..at].iter().any(|w| !QUALIFIERS.contains(w)) {
            continue;
        }
        let end = format!("{}}}", &line[..indent]);
        // A function on one line, or without a body, ends before the next function begins.
        let body = lines[i..].iter().position(|l| l.ends_with(['{', ';', '}'])).unwrap_or(0);
        if !lines[i + body].ends_with('{') {
            continue;
        }
        let length = lines[i..].iter().position(|l| **l == end).map_or(1, |n| n + 1);
        found.push((words[at + 1].to_string(), length));
    }
    found
}

/// The words that may precede `fn`, of which `pub(crate)` is two.
const QUALIFIERS: [&str; 9] =
    ["pub", "crate)", "super)", "self)", "const", "unsafe", "extern", "\"C\"", "async"];

#[test]
fn functions_have_at_most_100_lines() {
    let (mut count, mut long) = (0, Vec::new());
    for (file, text) in all_sources() {
        for (name, lines) in functions(&text) {
            count += 1;
            if lines > 100 {
                long.push(format!("{file}: {name} has {lines} lines"));
            }
        }
    }
    assert!(count > 1000, "only {count} functions found: does this test still read them?");
    assert!(long.is_empty(), "{long:#?}");
}
