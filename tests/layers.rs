//! The layers of the architecture, read from the sources: each module uses only modules of its own
//! layer and of the layers before it (ARCHITECTURE.md), and `unsafe` is used in few places.

use std::path::{Path, PathBuf};

const LAYERS: &[&[&str]] = &[
    &["error", "event", "dtype", "tensor", "units", "host"],
    &["op"],
    &["spec", "backend", "weights", "model"],
    &["library", "plan"],
    &["stream"],
    &["pipeline"],
    &["cli"],
];

/// Modules of one layer that may not use each other.
const SIBLINGS: &[&str] = &["backend", "weights", "model"];

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
            let sibling =
                SIBLINGS.contains(&module) && SIBLINGS.contains(&used.as_str()) && module != used;
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
        let allowed = name.starts_with("backend/") || name == "weights/container/map.rs";
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

/// The name and the number of lines of each function in `text`, which rustfmt has formatted: a function
/// ends at the first line that is a closing brace with the indentation of its `fn` line.
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

/// The words that may precede `fn`.
const QUALIFIERS: [&str; 8] =
    ["pub", "pub(crate)", "pub(super)", "const", "unsafe", "extern", "\"C\"", "async"];

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
