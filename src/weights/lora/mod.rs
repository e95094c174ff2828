//! LoRA files, whichever trainer wrote them: read, checked completely, and returned as changes of
//! canonical weights.
//!
//! A layer with a LoRA computes `y += s * B (A x)`; the weight itself does not change. [`open`]
//! finds every change of a file, or says why the file cannot be used before any of it is used.
//! [`merge`](fn@merge) puts the changes that several files have for one weight into the form in
//! which programs compute them; [`combine`](fn@combine) does the part of it that has a low rank.
//! The names of trainers are in [`crate::spec::lora`].

mod adapter;
mod bind;
mod collect;
mod combine;
mod config;
mod delta;
mod dora;
mod group;
mod keys;
mod merge;
mod refuse;
mod summary;
mod values;

pub use adapter::{Adapter, Axis, BaseRows, Change, Magnitude};
pub use bind::Base;
pub use combine::{Combined, combine};
pub use delta::{Delta, Factor, owned};
pub use group::Unmatched;
pub use merge::{Merged, Target, Term, TermMatrix, merge, merge_vector, times};
pub use summary::{Summary, Targets};

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use config::Config;
use group::Grouped;
use keys::LoraKeys;

use super::container::file::WeightFile;
use crate::error::{Error, Result};
use crate::spec::{Families, Family};
use crate::tensor::ByteSource;

/// The names that tools give to the weights in a folder with an adapter: PEFT, diffusers.
const IN_FOLDER: [&str; 2] = [config::PEFT_WEIGHTS, "pytorch_lora_weights.safetensors"];

/// The names of the files that a folder called `name` may contain.
pub(crate) fn names_in_folder(name: &str) -> impl Iterator<Item = String> {
    let name = name.trim_end_matches('/').to_string();
    IN_FOLDER.iter().map(move |file| format!("{name}/{file}"))
}

/// The file of the adapter at `path`, which may be a folder that PEFT or diffusers wrote.
///
/// # Errors
/// [`Kind::Missing`](crate::error::Kind::Missing) for a folder without such a file.
pub fn file_of(path: &Path) -> Result<PathBuf> {
    if !path.is_dir() {
        return Ok(path.to_path_buf());
    }
    let found = IN_FOLDER.iter().map(|name| path.join(name)).find(|file| file.is_file());
    found.ok_or_else(|| {
        let old = path.join("adapter_model.bin").is_file();
        let e = Error::missing("there is no adapter in this folder")
            .at_path(path)
            .expected(IN_FOLDER.join(" or "));
        match old {
            true => e.found("adapter_model.bin, a pickle").try_(
                "save the adapter as safetensors: save_pretrained(..., safe_serialization=True)",
            ),
            false => e.try_("give the .safetensors file of the LoRA itself"),
        }
    })
}

/// Reads the LoRA at `path`, a file or a folder, for a model of `family` with these weights. All or
/// nothing: an error means that none of it can be used.
pub fn open(path: &Path, family: &'static Family, base: Base) -> Result<Adapter> {
    of(&WeightFile::open(&file_of(path)?)?, family, base)
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
        let mut found = sorted(file, &keys)?;
        let changes = bind::bind(file, family, &mut found, base)?;
        file.source.check()?;
        Ok((summary::of(file, &found), changes))
    };
    let (summary, changes) = read().map_err(|e: Error| e.at_path(&file.path))?;
    Ok(Adapter { path: file.path.clone(), summary, changes })
}

/// The keys of a file by layer. An error if no model of the family can use the file.
fn sorted(file: &WeightFile, keys: &LoraKeys) -> Result<Grouped> {
    let mut found = collect::collect(file, keys)?;
    refuse::check(file, keys, &mut found)?;
    Config::of(file)?.apply(&mut found.groups, &file.header.tensors)?;
    Ok(found)
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
            let dialect = key.layer.dialect;
            *counts.entry(dialect.unwrap_or("text encoders only")).or_insert(0) +=
                usize::from(dialect.is_some());
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

/// Looks into the file or folder at `path`, which may be a LoRA that cannot be used.
///
/// # Errors
/// If the file cannot be read at all.
pub fn survey(path: &Path, families: Families) -> Result<Survey> {
    Ok(survey_file(&WeightFile::open(&file_of(path)?)?, families))
}

/// The same for a file that is open.
pub(crate) fn survey_file(file: &WeightFile, families: Families) -> Survey {
    let tensors = &file.header.tensors;
    let names: Vec<&str> = tensors.iter().map(|t| t.name.as_str()).collect();
    let family = dialect(&names, families).map_or(families.0[0], |(family, _)| family);
    let keys = LoraKeys::of(family);
    let collected = collect::collect(file, &keys).map(|mut found| {
        let checked = refuse::check(file, &keys, &mut found);
        let config = Config::of(file).and_then(|c| c.apply(&mut found.groups, tensors));
        (found, checked.and(config).err())
    });
    let (found, problem) = collected.unwrap_or_else(|e| (Grouped::default(), Some(e)));
    let problem = problem.map(|e| e.at_path(&file.path));
    Survey { family, summary: summary::of(file, &found), problem }
}
