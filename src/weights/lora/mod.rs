//! LoRA files, whichever trainer wrote them: read, checked completely, and returned as pairs of
//! matrices for canonical weights.
//!
//! A layer with a LoRA computes `y += s * B (A x)`; the weight itself does not change. [`open`]
//! finds every pair of a file, or says why the file cannot be used before any of it is used.
//! [`combine`] merges the pairs that several files have for one weight into one pair. The names of
//! trainers are in [`crate::spec::lora`].

mod adapter;
mod collect;
mod group;
mod keys;
mod pairs;
mod refuse;
mod summary;

pub use adapter::{Adapter, Combined, Pair, combine};
pub use group::Unmatched;
pub use pairs::Base;
pub use summary::{Summary, Targets};

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use keys::LoraKeys;

use super::container::file::WeightFile;
use crate::error::{Error, Result};
use crate::spec::{Families, Family};
use crate::tensor::ByteSource;

/// Reads the LoRA at `path` for a model of `family` with these weights. All or nothing: an error
/// means that none of it can be used.
pub fn open(path: &Path, family: &'static Family, base: Base) -> Result<Adapter> {
    of(&WeightFile::open(path)?, family, base)
}

/// The same over any bytes; `path` is then only a name.
pub fn read(
    source: Arc<dyn ByteSource>,
    path: &Path,
    family: &'static Family,
    base: Base,
) -> Result<Adapter> {
    of(&WeightFile::of(source, path, None)?, family, base)
}

fn of(file: &WeightFile, family: &'static Family, base: Base) -> Result<Adapter> {
    let read = || {
        let keys = LoraKeys::of(family);
        let mut found = collect::collect(file, &keys);
        refuse::check(file, &keys, &mut found)?;
        let pairs = pairs::bind(file, family, &mut found, base)?;
        file.source.check()?;
        Ok((summary::of(file, &found), pairs))
    };
    let (summary, pairs) = read().map_err(|e: Error| e.at_path(&file.path))?;
    Ok(Adapter { path: file.path.clone(), summary, pairs })
}

/// The family whose layers most of `keys` name, with the trainer of most of them; `None` if no key
/// names a layer of any of `families`.
pub(crate) fn dialect(
    keys: &[&str],
    families: Families,
) -> Option<(&'static Family, &'static str)> {
    let mut best: Option<(usize, &'static Family, &'static str)> = None;
    for &family in families.0 {
        let names = LoraKeys::of(family);
        let (mut known, mut counts) = (0, BTreeMap::new());
        for key in keys.iter().filter_map(|key| names.parse(key)) {
            known += 1;
            *counts.entry(key.dialect.unwrap_or("text encoders only")).or_insert(0) +=
                usize::from(key.dialect.is_some());
        }
        let most = counts.into_iter().max_by_key(|(_, n)| *n);
        if let Some((dialect, _)) = most.filter(|_| best.is_none_or(|(n, ..)| known > n)) {
            best = Some((known, family, dialect));
        }
    }
    best.map(|(_, family, dialect)| (family, dialect))
}

/// What a file says about itself, for people: without a model, hence without its shapes checked.
pub struct Survey {
    /// The family whose layers it names.
    pub family: &'static Family,
    /// Its contents.
    pub summary: Summary,
    /// Why it cannot be used with any model.
    pub problem: Option<Error>,
}

/// Looks into the file at `path`, which may be a LoRA that cannot be used.
///
/// # Errors
/// If the file cannot be read at all.
pub fn survey(path: &Path, families: Families) -> Result<Survey> {
    Ok(survey_file(&WeightFile::open(path)?, families))
}

/// The same for a file that is open.
pub(crate) fn survey_file(file: &WeightFile, families: Families) -> Survey {
    let names: Vec<&str> = file.header.tensors.iter().map(|t| t.name.as_str()).collect();
    let family = dialect(&names, families).map_or(families.0[0], |(family, _)| family);
    let keys = LoraKeys::of(family);
    let mut found = collect::collect(file, &keys);
    let problem = refuse::check(file, &keys, &mut found).err().map(|e| e.at_path(&file.path));
    Survey { family, summary: summary::of(file, &found), problem }
}
