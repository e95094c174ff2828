//! Splits PTX text into statements, and a statement into its arguments.

use crate::Error;

/// Something between two semicolons, a label, a brace, or a directive, with the line it begins on.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Item {
    /// Without its semicolon.
    Statement(String),
    Label(String),
    Open,
    Close,
}

/// Splits the body of a module. Comments are removed; a directive without a semicolon (`.version`,
/// `.target`, `.entry` heads) becomes a statement that ends at the end of the line or before the
/// brace.
pub(crate) fn items(text: &str) -> Vec<(u32, Item)> {
    let mut out = vec![];
    let mut current = String::new();
    let mut start = 1;
    let mut parens = 0;
    // Braces inside a statement (vectors, initialisers) belong to it.
    let mut braces = 0;
    let mut line = 1;
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c == '/' && chars.peek() == Some(&'/') {
            while chars.peek().is_some_and(|&c| c != '\n') {
                chars.next();
            }
            continue;
        }
        if c == '/' && chars.peek() == Some(&'*') {
            let mut last = ' ';
            for c in chars.by_ref() {
                line += (c == '\n') as u32;
                if last == '*' && c == '/' {
                    break;
                }
                last = c;
            }
            continue;
        }
        let blank = current.trim().is_empty();
        if blank {
            start = line;
        }
        match c {
            '\n' => {
                line += 1;
                let head = current.trim_start();
                let whole_line = [".version", ".target", ".address_size", ".file", ".loc"]
                    .iter()
                    .any(|d| head.starts_with(d));
                if whole_line && parens == 0 {
                    out.push((
                        start,
                        Item::Statement(std::mem::take(&mut current).trim().to_string()),
                    ));
                } else {
                    current.push(' ');
                }
            }
            '(' => {
                parens += 1;
                current.push(c);
            }
            ')' => {
                parens -= 1;
                current.push(c);
            }
            '{' if braces == 0 && (blank || is_head(&current)) => {
                if !blank {
                    out.push((
                        start,
                        Item::Statement(std::mem::take(&mut current).trim().to_string()),
                    ));
                }
                current.clear();
                out.push((line, Item::Open));
            }
            '{' => {
                braces += 1;
                current.push(c);
            }
            '}' if braces > 0 => {
                braces -= 1;
                current.push(c);
            }
            '}' => {
                current.clear();
                out.push((line, Item::Close));
            }
            ';' => {
                let s = current.trim();
                if !s.is_empty() {
                    out.push((start, Item::Statement(s.to_string())));
                }
                current.clear();
            }
            ':' if chars.peek() != Some(&':')
                && !current.ends_with(':')
                && is_label(current.trim()) =>
            {
                out.push((start, Item::Label(current.trim().to_string())));
                current.clear();
            }
            _ => current.push(c),
        }
    }
    out
}

fn is_head(s: &str) -> bool {
    s.contains(".entry") || s.contains(".func")
}

fn is_label(s: &str) -> bool {
    !s.is_empty()
        && s.chars().all(|c| c.is_alphanumeric() || "_$%".contains(c))
        && !s.starts_with(|c: char| c.is_numeric())
}

/// An argument as written.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Arg {
    /// A register, a number, a symbol or a label.
    Name(String),
    /// `!name`
    Not(String),
    /// `a|b`
    Pair(String, String),
    /// `{a, b, ...}`
    List(Vec<String>),
    /// `[base + offset]`, or `[base, {coordinates}]`
    Address { base: String, offset: i64, coordinates: Vec<String> },
}

/// The arguments after the opcode.
pub(crate) fn args(text: &str) -> Result<Vec<Arg>, Error> {
    split(text).into_iter().map(|a| arg(&a)).collect()
}

/// Splits at commas outside of brackets and braces.
fn split(text: &str) -> Vec<String> {
    let mut out = vec![];
    let mut depth = 0;
    let mut current = String::new();
    for c in text.chars() {
        match c {
            '{' | '[' | '(' => depth += 1,
            '}' | ']' | ')' => depth -= 1,
            _ => {}
        }
        if c == ',' && depth == 0 {
            out.push(std::mem::take(&mut current).trim().to_string());
        } else {
            current.push(c);
        }
    }
    if !current.trim().is_empty() {
        out.push(current.trim().to_string());
    }
    out
}

fn arg(text: &str) -> Result<Arg, Error> {
    if let Some(inner) = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')) {
        let mut parts = split(inner).into_iter();
        let first = parts.next().unwrap_or_default();
        let (base, offset) = match first.find(['+', '-']).filter(|&at| at > 0) {
            Some(at) => {
                let offset = first[at..].replace([' ', '+'], "");
                (
                    first[..at].trim().to_string(),
                    integer(&offset).ok_or_else(|| Error::new(format!("offset in {text}")))?,
                )
            }
            None => (first, 0),
        };
        let mut coordinates = vec![];
        for p in parts {
            match p.strip_prefix('{').and_then(|t| t.strip_suffix('}')) {
                Some(list) => coordinates.extend(split(list)),
                None => return Err(Error::new(format!("argument {text}"))),
            }
        }
        return Ok(Arg::Address { base, offset, coordinates });
    }
    if let Some(inner) = text.strip_prefix('{').and_then(|t| t.strip_suffix('}')) {
        return Ok(Arg::List(split(inner)));
    }
    if let Some(name) = text.strip_prefix('!') {
        return Ok(Arg::Not(name.trim().to_string()));
    }
    if let Some((a, b)) = text.split_once('|') {
        return Ok(Arg::Pair(a.trim().to_string(), b.trim().to_string()));
    }
    Ok(Arg::Name(text.to_string()))
}

/// An integer in the notation of PTX.
pub(crate) fn integer(text: &str) -> Option<i64> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(d) => (true, d.trim()),
        None => (false, text),
    };
    let hex = digits.starts_with("0x") || digits.starts_with("0X");
    let digits =
        if hex { digits.trim_end_matches('U') } else { digits.trim_end_matches(['U', 'u']) };
    let value = if hex {
        u64::from_str_radix(&digits[2..], 16).ok()?
    } else if let Some(b) = digits.strip_prefix("0b") {
        u64::from_str_radix(b, 2).ok()?
    } else {
        digits.parse::<u64>().ok()?
    };
    Some(if negative { (value as i64).wrapping_neg() } else { value as i64 })
}
