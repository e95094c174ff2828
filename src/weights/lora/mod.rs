//! LoRA files, whoever trained them: read, checked whole, and given as pairs of matrices beside canonical weights.
//!
//! A layer with a LoRA computes `y += s * B (A x)`; no weight is touched. `open` finds every pair of a file or says why the file cannot be used, before any of it is
//! used; `combine` makes one pair of all that several files have for one weight. See `names` for the trainers' ways of naming.

mod adapter;
mod collect;
mod names;
mod pairs;
mod refuse;
mod summary;

pub use adapter::{Adapter, Combined, Pair, Span, combine};
pub use names::Block;
pub use summary::{Summary, Targets, Unmatched};

use std::path::Path;
use std::sync::Arc;

use super::Component;
use super::container::file::WeightFile;
use crate::error::{Error, Result};
use crate::tensor::ByteSource;

/// The base model's matrices: rows and columns of a canonical weight; `None` where the model has none of this name.
pub type Base<'a> = &'a dyn Fn(Component, &str) -> Option<(usize, usize)>;

/// Reads the LoRA at `path` for a model with these weights. All or nothing: an error means that none of it can be used.
pub fn open(path: &Path, base: Base) -> Result<Adapter> {
    of(&WeightFile::open(path)?, base)
}

/// The same over any bytes; `path` is then only a name.
pub fn read(source: Arc<dyn ByteSource>, path: &Path, base: Base) -> Result<Adapter> {
    of(&WeightFile::of(source, path, None)?, base)
}

fn of(file: &WeightFile, base: Base) -> Result<Adapter> {
    let read = || {
        let mut found = collect::collect(file);
        refuse::check(file, &mut found)?;
        let pairs = pairs::bind(file, &mut found, base)?;
        file.source.check()?;
        Ok((summary::of(file, &found), pairs))
    };
    let (summary, pairs) = read().map_err(|e: Error| e.at_path(&file.path))?;
    Ok(Adapter { path: file.path.clone(), summary, pairs })
}

/// Whose names most keys of a LoRA have, from its tensors' names alone; `None` if none of them names a layer of FLUX.1.
pub(crate) fn dialect(keys: &[&str]) -> Option<&'static str> {
    let mut counts = std::collections::BTreeMap::new();
    for key in keys.iter().filter_map(|key| names::parse(key)) {
        *counts.entry(key.dialect.unwrap_or("text encoders only")).or_insert(0) +=
            usize::from(key.dialect.is_some());
    }
    counts.into_iter().max_by_key(|(_, n)| *n).map(|(dialect, _)| dialect)
}

/// What a file says about itself, for people: without a model, hence without its shapes checked.
pub struct Survey {
    pub summary: Summary,
    /// Why it cannot be used with any model.
    pub problem: Option<Error>,
}

/// Looks into the file at `path`, which may be a LoRA that cannot be used; `Err` only where it cannot be read at all.
pub fn survey(path: &Path) -> Result<Survey> {
    Ok(survey_file(&WeightFile::open(path)?))
}

/// The same for a file that is open.
pub(crate) fn survey_file(file: &WeightFile) -> Survey {
    let mut found = collect::collect(file);
    let problem = refuse::check(file, &mut found).err().map(|e| e.at_path(&file.path));
    Survey { summary: summary::of(file, &found), problem }
}
