//! Patterns of tensor names, and how the dialects of a component spell them. One table serves both
//! directions: readers map stored names to canonical ones, writers map canonical names to stored
//! ones.
//!
//! A pattern is a name whose dotted segments may be placeholders: `{}` stands for a number,
//! `{-}` for a number that counts down from the other side (`up_blocks.0` is `up.3` of four
//! levels), and `{weight|bias}` for one of the listed words. The placeholders of a canonical name
//! and of a stored name correspond in order.

/// How one program names the tensors of a component, apart from a prefix.
#[derive(Debug)]
pub struct Dialect {
    /// The program or the authors whose names these are, for people: `BFL`, `diffusers`.
    pub name: &'static str,
    /// Tensor names whose presence shows this dialect; any of them does. List several, so that a
    /// file that lacks one tensor is still recognised and the error names that tensor.
    pub markers: &'static [&'static str],
    /// Each entry lists beginnings of tensor names, one of which must be present, behind the same
    /// prefix. A family that differs from another one by extra tensors lists them here, and is then
    /// preferred.
    pub requires: &'static [&'static [&'static str]],
    /// The spelling of the names.
    pub naming: Naming,
    /// Whether GGUF files use these names. LoRAs never do.
    pub gguf: bool,
}

/// The spelling of a dialect's names.
#[derive(Debug)]
pub enum Naming {
    /// The canonical names.
    Canonical,
    /// The canonical names without this beginning.
    Without(&'static str),
    /// Other names, layer by layer.
    Renamed(&'static [Rename]),
}

/// One canonical tensor (or a layer's weight and bias) and its stored names.
#[derive(Debug)]
pub struct Rename {
    /// Pattern of the canonical name.
    pub canonical: &'static str,
    /// Patterns of the stored parts, in the order of the canonical rows.
    pub stored: &'static [&'static str],
    /// How the rows are divided among several parts.
    pub split: Split,
    /// The two halves of the rows are stored in reverse order.
    pub swapped: bool,
    /// A 1x1 convolution that is stored as a matrix.
    pub flat: bool,
}

/// How the rows of a canonical tensor are divided among its stored parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    /// Parts of equal height.
    Equal,
    /// Every part but the last has as many rows as the weight has columns; the last has the rest.
    Square,
}

impl Rename {
    /// One tensor under another name.
    pub const fn one(canonical: &'static str, stored: &'static [&'static str; 1]) -> Self {
        Rename { canonical, stored, split: Split::Equal, swapped: false, flat: false }
    }

    /// A tensor that is stored in several parts.
    pub const fn fused(
        canonical: &'static str,
        stored: &'static [&'static str],
        split: Split,
    ) -> Self {
        Rename { canonical, stored, split, swapped: false, flat: false }
    }

    /// The same with the halves of the rows in reverse order.
    pub const fn swapped(self) -> Self {
        Rename { swapped: true, ..self }
    }

    /// The same, stored as a matrix.
    pub const fn flat(self) -> Self {
        Rename { flat: true, ..self }
    }
}

/// What a stored tensor is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Meaning {
    /// Part `part` of the `parts` that make up the canonical tensor, stacked by rows; with
    /// `swapped` the two halves of its rows are stored in reverse order.
    Part {
        /// The name of the canonical tensor.
        canonical: String,
        /// Which part, from 0.
        part: usize,
        /// How many parts there are.
        parts: usize,
        /// The halves of its rows are in reverse order.
        swapped: bool,
    },
    /// A second name of the canonical tensor, used where that one is absent.
    Alias {
        /// The name of the canonical tensor.
        canonical: String,
    },
    /// Known, but not used by this program.
    Unused,
    /// Not known.
    Unknown,
}

/// The stored names of one canonical tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredNames {
    /// In the order of the canonical rows.
    pub names: Vec<String>,
    /// See [`Rename::split`].
    pub split: Split,
    /// See [`Rename::swapped`].
    pub swapped: bool,
    /// See [`Rename::flat`].
    pub flat: bool,
}

impl StoredNames {
    /// One stored tensor of the canonical name.
    pub fn same(name: &str) -> Self {
        let names = vec![name.to_string()];
        StoredNames { names, split: Split::Equal, swapped: false, flat: false }
    }
}

/// The part of a name that a placeholder stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bound<'a> {
    Number(usize),
    Word(&'a str),
}

fn words(segment: &str) -> Option<&str> {
    segment.strip_prefix('{')?.strip_suffix('}').filter(|words| words.len() > 1)
}

/// The number that `digits` spell: canonical, without leading zeros, and small.
pub fn block_number(digits: &str) -> Option<usize> {
    digits.parse::<usize>().ok().filter(|n| *n < 10_000 && n.to_string() == digits)
}

/// Matches a name against a pattern; `None` if it does not match.
fn bind<'a>(pattern: &str, name: &'a str) -> Option<Vec<Bound<'a>>> {
    let mut bound = Vec::new();
    let (mut segments, mut parts) = (pattern.split('.'), name.split('.'));
    loop {
        match (segments.next(), parts.next()) {
            (None, None) => return Some(bound),
            (Some("{}" | "{-}"), Some(digits)) => bound.push(Bound::Number(block_number(digits)?)),
            (Some(segment), Some(part)) => match words(segment) {
                Some(words) => {
                    words.split('|').find(|word| *word == part)?;
                    bound.push(Bound::Word(part));
                }
                None if segment == part => {}
                None => return None,
            },
            _ => return None,
        }
    }
}

/// Fills the placeholders of `pattern`; `{-}` counts down from `levels - 1`.
fn fill(pattern: &str, bound: &[Bound], levels: usize) -> Option<String> {
    let mut bound = bound.iter();
    let segments = pattern.split('.').map(|segment| {
        Some(match (segment, segment.starts_with('{').then(|| bound.next()).flatten()) {
            ("{-}", Some(Bound::Number(i))) => levels.checked_sub(1)?.checked_sub(*i)?.to_string(),
            (_, Some(Bound::Number(i))) => i.to_string(),
            (_, Some(Bound::Word(word))) => word.to_string(),
            (plain, None) => plain.to_string(),
        })
    });
    Some(segments.collect::<Option<Vec<_>>>()?.join("."))
}

/// `name`, which matches the pattern `from`, in the pattern `to`; `None` if it does not match.
pub fn rename(from: &str, to: &str, name: &str) -> Option<String> {
    fill(to, &bind(from, name)?, 0)
}

/// Whether `name` matches one of `patterns`.
pub fn matches(patterns: &[&str], name: &str) -> bool {
    patterns.iter().any(|pattern| bind(pattern, name).is_some())
}

/// Whether `text` matches one of `globs`, in which `*` stands for any characters, dots and slashes
/// included.
pub fn matches_glob(globs: &[&str], text: &str) -> bool {
    globs.iter().any(|glob| {
        let Some((first, rest)) = glob.split_once('*') else { return *glob == text };
        let Some(mut text) = text.strip_prefix(first) else { return false };
        let mut pieces: Vec<&str> = rest.split('*').collect();
        let last = pieces.pop().unwrap_or_default();
        for piece in pieces {
            let Some(at) = text.find(piece) else { return false };
            text = &text[at + piece.len()..];
        }
        text.ends_with(last)
    })
}

impl Naming {
    /// The canonical tensor that `name` is stored for, if this spelling has that name. `levels` is
    /// what [`Naming::levels`] returned for the file; `canonical` are the component's patterns.
    pub fn read(&self, canonical: &[&str], levels: usize, name: &str) -> Option<Meaning> {
        let whole = |name: String| {
            let known = matches(canonical, &name);
            known.then_some(Meaning::Part { canonical: name, part: 0, parts: 1, swapped: false })
        };
        match self {
            Naming::Canonical => whole(name.into()),
            Naming::Without(start) => whole(format!("{start}{name}")),
            Naming::Renamed(table) => table.iter().find_map(|rename| {
                rename.stored.iter().enumerate().find_map(|(part, pattern)| {
                    Some(Meaning::Part {
                        canonical: fill(rename.canonical, &bind(pattern, name)?, levels)?,
                        part,
                        parts: rename.stored.len(),
                        swapped: rename.swapped,
                    })
                })
            }),
        }
    }

    /// How this spelling writes the canonical tensor `name`; `None` if it has no name for it.
    pub fn write(&self, levels: usize, name: &str) -> Option<StoredNames> {
        match self {
            Naming::Canonical => Some(StoredNames::same(name)),
            Naming::Without(start) => name.strip_prefix(start).map(StoredNames::same),
            Naming::Renamed(table) => table.iter().find_map(|rename| {
                let bound = bind(rename.canonical, name)?;
                let names = rename.stored.iter().map(|pattern| fill(pattern, &bound, levels));
                Some(StoredNames {
                    names: names.collect::<Option<_>>()?,
                    split: rename.split,
                    swapped: rename.swapped,
                    flat: rename.flat,
                })
            }),
        }
    }

    /// How many levels the numbers of `{-}` count, for a component that has these tensors under
    /// stored or canonical names; 0 where this spelling has no such placeholder.
    pub fn levels<'a>(&self, names: impl Iterator<Item = &'a str>) -> usize {
        let Naming::Renamed(table) = self else { return 0 };
        let counted: Vec<&str> = table
            .iter()
            .flat_map(|rename| rename.stored.iter().copied().chain([rename.canonical]))
            .filter(|pattern| pattern.contains("{-}"))
            .collect();
        let level = |name: &str| {
            counted.iter().find_map(|pattern| {
                let at = pattern.split('.').position(|segment| segment == "{-}")?;
                bind(pattern, name)?;
                block_number(name.split('.').nth(at)?)
            })
        };
        names.filter_map(level).max().map_or(0, |n| n + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_bind_numbers_and_words_and_fill_them_in_order() {
        let bound = bind("a.{}.{x|yy}.c", "a.12.yy.c").unwrap();
        assert_eq!(bound, [Bound::Number(12), Bound::Word("yy")]);
        assert_eq!(fill("{}.z.{x|yy}", &bound, 0).unwrap(), "12.z.yy");
        for other in ["a.012.yy.c", "a.12.z.c", "a.12.yy", "a.12.yy.c.d", "a.10000.x.c", "a.-1.x.c"]
        {
            assert_eq!(bind("a.{}.{x|yy}.c", other), None, "{other}");
        }
        assert_eq!(fill("u.{-}", &[Bound::Number(1)], 4).unwrap(), "u.2");
        assert_eq!(fill("u.{-}", &[Bound::Number(4)], 4), None);
    }

    #[test]
    fn levels_are_counted_where_a_placeholder_counts_down() {
        static TABLE: [Rename; 2] =
            [Rename::one("up.{-}.c.w", &["blocks.{-}.c.w"]), Rename::one("in.{}.w", &["i.{}.w"])];
        let naming = Naming::Renamed(&TABLE);
        assert_eq!(naming.levels(["blocks.2.c.w", "i.7.w", "up.1.c.w"].into_iter()), 3);
        assert_eq!(naming.levels(["i.7.w"].into_iter()), 0);
        let read = naming.read(&[], 3, "blocks.0.c.w");
        let part = |canonical: &str| Meaning::Part {
            canonical: canonical.into(),
            part: 0,
            parts: 1,
            swapped: false,
        };
        assert_eq!(read, Some(part("up.2.c.w")));
        assert_eq!(naming.write(3, "up.2.c.w").unwrap().names, ["blocks.0.c.w"]);
    }

    #[test]
    fn globs_match_whole_texts() {
        let yes = [("ae", "ae"), ("*t5*xxl*", "a/t5_xxl.x"), ("model*", "model"), ("*", "")];
        for (glob, text) in yes {
            assert!(matches_glob(&[glob], text), "{glob} {text}");
        }
        let no = [("ae", "sae"), ("*t5*xxl*", "xxl_t5"), ("model*", "a_model"), ("a*a", "a")];
        for (glob, text) in no {
            assert!(!matches_glob(&[glob], text), "{glob} {text}");
        }
    }
}
