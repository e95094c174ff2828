//! Modules and entry points: directives, scopes, labels.

use crate::program::{Action, Entry, Error, Module, Param};
use crate::read::builder::{Builder, Symbol};
use crate::read::text::{Item, integer, items};
use crate::read::types::Type;
use std::collections::HashMap;
use std::sync::Arc;

/// The generic addresses of state spaces other than global memory, by the top four bits.
pub(crate) mod spaces {
    pub const SHARED: u64 = 1 << 60;
    pub const LOCAL: u64 = 2 << 60;
    pub const PARAM: u64 = 3 << 60;
    /// Variables of the module.
    pub const MODULE: u64 = 4 << 60;
    /// Shared memory begins here, as on Hopper, so that a null pointer is outside of it.
    pub const SHARED_START: u32 = 1024;
}

/// A variable declared in the text.
struct Variable {
    name: String,
    align: usize,
    /// 0 for `name[]`.
    bytes: usize,
    data: Vec<u8>,
}

pub(crate) fn module(text: &str) -> Result<Module, Error> {
    let items = items(text);
    let (mut version, mut target) = (String::new(), String::new());
    let mut shared: Vec<Variable> = vec![];
    let mut symbols: HashMap<String, Symbol> = HashMap::new();
    let mut data: Vec<u8> = vec![];
    let mut bodies = vec![];
    let mut at = 0;
    while at < items.len() {
        let (line, item) = &items[at];
        at += 1;
        let Item::Statement(s) = item else { continue };
        let fail = |e: Error| Error { line: *line, message: format!("{} in `{s}`", e.message) };
        let words: Vec<&str> = s.split_whitespace().collect();
        if let Some(v) = s.strip_prefix(".version") {
            version = v.trim().to_string();
        } else if let Some(t) = s.strip_prefix(".target") {
            target = t.trim().to_string();
        } else if s.contains(".entry") || s.contains(".func") {
            let end = closing(&items, at);
            if s.contains(".entry") && items.get(at).is_some_and(|i| i.1 == Item::Open) {
                bodies.push((*line, s, &items[at + 1..end]));
            }
            if items.get(at).is_some_and(|i| i.1 == Item::Open) {
                at = end + 1;
            }
        } else if words.contains(&".shared") {
            shared.push(variable(s).map_err(fail)?);
        } else if words.contains(&".const") || words.contains(&".global") {
            let v = variable(s).map_err(fail)?;
            data.resize(data.len().next_multiple_of(v.align), 0);
            symbols.insert(v.name, Symbol::Module(data.len() as u64));
            data.extend(&v.data);
            data.resize(data.len() + v.bytes - v.data.len(), 0);
        }
    }
    let data = Arc::new(data);
    let mut entries = vec![];
    for (line, head, body) in bodies {
        entries.push(entry(line, head, body, &shared, &symbols, &data)?);
    }
    let by_name = entries.iter().enumerate().map(|(i, e)| (e.name.clone(), i)).collect();
    Ok(Module { version, target, entries, by_name })
}

/// Index of the brace that closes the one at `open`.
fn closing(items: &[(u32, Item)], open: usize) -> usize {
    let mut depth = 0;
    for (i, (_, item)) in items.iter().enumerate().skip(open) {
        match item {
            Item::Open => depth += 1,
            Item::Close => {
                depth -= 1;
                if depth == 0 {
                    return i;
                }
            }
            _ => {}
        }
    }
    items.len()
}

/// `.space .align 4 .b8 name[24] = {1, 2, ...}`
fn variable(s: &str) -> Result<Variable, Error> {
    let (declaration, values) = match s.split_once('=') {
        Some((d, v)) => (d.trim(), Some(v.trim())),
        None => (s, None),
    };
    let mut align = None;
    let mut ty = None;
    let mut name = String::new();
    let mut words = declaration.split_whitespace();
    while let Some(w) = words.next() {
        if w == ".align" {
            align = words.next().and_then(|a| a.parse().ok());
        } else if let Some(t) = w.strip_prefix('.') {
            ty = Type::from_name(t).or(ty);
        } else {
            name.push_str(w);
        }
    }
    let ty = ty.ok_or_else(|| Error::new("no type"))?;
    let mut count = 1;
    let stem = match name.split_once('[') {
        Some((stem, dims)) => {
            for d in dims.split(['[', ']']).map(str::trim).filter(|d| !d.is_empty()) {
                count *= d.parse::<usize>().map_err(|_| Error::new("array size"))?;
            }
            if dims.trim_end_matches(']').is_empty() {
                count = 0;
            }
            stem.to_string()
        }
        None => name.clone(),
    };
    let mut data = vec![];
    for v in values.unwrap_or("").split(['{', '}', ',']).map(str::trim).filter(|v| !v.is_empty()) {
        let bits =
            crate::read::builder::literal(v, ty).ok_or_else(|| Error::new(format!("value {v}")))?;
        data.extend(&bits.to_le_bytes()[..ty.bytes()]);
    }
    let align = align.unwrap_or(ty.bytes());
    Ok(Variable { name: stem, align, bytes: count * ty.bytes(), data })
}

fn params(list: &str) -> Result<Vec<(String, Param)>, Error> {
    let mut out = vec![];
    let mut offset: usize = 0;
    for p in list.split(',').map(str::trim).filter(|p| !p.is_empty()) {
        // Attributes of pointers, such as `.ptr .global .align 16`, do not affect the layout.
        let v = match p.split_once(".ptr") {
            Some((before, after)) => {
                format!("{before} {}", after.split_whitespace().last().unwrap_or(""))
            }
            None => p.to_string(),
        };
        let v = variable(&v)?;
        offset = offset.next_multiple_of(v.align);
        out.push((v.name, Param { offset, bytes: v.bytes, align: v.align }));
        offset += v.bytes;
    }
    Ok(out)
}

/// Whether the body mentions a name.
fn mentions(body: &[(u32, Item)], name: &str) -> bool {
    body.iter().any(|(_, i)| match i {
        Item::Statement(s) => {
            s.split(|c: char| !(c.is_alphanumeric() || "_$".contains(c))).any(|w| w == name)
        }
        _ => false,
    })
}

fn entry(
    line: u32,
    head: &str,
    body: &[(u32, Item)],
    shared: &[Variable],
    symbols: &HashMap<String, Symbol>,
    data: &Arc<Vec<u8>>,
) -> Result<Entry, Error> {
    let fail =
        |line: u32, s: &str, e: Error| Error { line, message: format!("{} in `{s}`", e.message) };
    let rest = head.split_once(".entry").map_or("", |x| x.1).trim();
    let (name, rest) =
        rest.split_at(rest.find(|c: char| c == '(' || c.is_whitespace()).unwrap_or(rest.len()));
    let (list, directives) = match rest.split_once('(') {
        Some((_, r)) => r.split_once(')').unwrap_or((r, "")),
        None => ("", rest),
    };
    let named = params(list).map_err(|e| fail(line, head, e))?;
    let max_threads = ["maxntid", "reqntid"].iter().find_map(|d| {
        let d = directives.split_once(&format!(".{d}"))?.1;
        let d = d.split('.').next()?;
        d.split(',')
            .map(|n| n.trim().parse::<u32>().ok())
            .collect::<Option<Vec<u32>>>()
            .map(|v| v.iter().product())
    });
    let mut b = Builder::new(symbols.clone());
    for (name, p) in &named {
        b.symbols.insert(name.clone(), Symbol::Param(p.offset as u64));
    }
    // Shared and local variables first: dynamic shared memory begins after all others.
    let mut dynamic = vec![];
    let mut dynamic_align = 1;
    let mut place = |b: &mut Builder, v: &Variable| {
        if v.bytes == 0 {
            dynamic.push(v.name.clone());
            dynamic_align = dynamic_align.max(v.align);
        } else {
            b.shared = b.shared.next_multiple_of(v.align);
            b.symbols.insert(
                v.name.clone(),
                Symbol::Shared(b.shared as u64 + spaces::SHARED_START as u64),
            );
            b.shared += v.bytes;
        }
    };
    for v in shared.iter().filter(|v| mentions(body, &v.name)) {
        place(&mut b, v);
    }
    for (line, item) in body {
        let Item::Statement(s) = item else { continue };
        if s.starts_with(".shared") {
            place(&mut b, &variable(s).map_err(|e| fail(*line, s, e))?);
        } else if s.starts_with(".local") {
            let v = variable(s).map_err(|e| fail(*line, s, e))?;
            b.local = b.local.next_multiple_of(v.align);
            b.symbols.insert(v.name, Symbol::Local(b.local as u64));
            b.local += v.bytes;
        }
    }
    if !dynamic.is_empty() {
        b.shared = b.shared.next_multiple_of(dynamic_align);
    }
    for name in dynamic {
        b.symbols.insert(name, Symbol::Shared(b.shared as u64 + spaces::SHARED_START as u64));
    }
    for (line, item) in body {
        match item {
            Item::Open => b.open(),
            Item::Close => b.close(),
            Item::Label(name) => b.label(name),
            Item::Statement(s) => b.statement(*line, s).map_err(|e| fail(*line, s, e))?,
        }
    }
    b.resolve()?;
    let ordered = b.code.iter().any(
        |i| matches!(&i.action, Action::Atomic(a) if a.space != crate::program::Space::Shared),
    );
    let watched = b.code.iter().any(|i| matches!(i.action, Action::Wgmma(_)));
    if !watched {
        b.code.iter_mut().for_each(|i| (i.reads, i.writes) = (vec![], vec![]));
    }
    Ok(Entry {
        name: name.to_string(),
        params: named.into_iter().map(|n| n.1).collect(),
        max_threads,
        static_shared: b.shared,
        local: b.local.next_multiple_of(16),
        code: b.code,
        words: b.words as usize,
        doubles: b.doubles as usize,
        preds: b.preds as usize,
        constants: b.constants.into_iter().map(|((_, bits), slot)| (slot, bits)).collect(),
        specials: b.specials.into_iter().map(|((special, _), slot)| (slot, special)).collect(),
        data: data.clone(),
        ordered,
        watched,
    })
}

/// `.branchtargets a, b, c`
pub(crate) fn names(list: &str) -> Vec<String> {
    list.split(',').map(|n| n.trim().to_string()).collect()
}

/// `<833>` after a register's stem.
pub(crate) fn register_range(name: &str) -> Option<(&str, u32)> {
    let (stem, count) = name.split_once('<')?;
    Some((stem, integer(count.trim_end_matches('>'))? as u32))
}
