//! Which files of a repository are needed: of a diffusers folder the four models, their configs and tokenizers, in one variant each; of any other
//! repository its only model. Pickles are never taken.

use std::collections::BTreeMap;

use super::cache::is_inside;
use crate::error::{Error, Result};

/// A file as the hub lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    pub name: String,
    pub bytes: Option<u64>,
    /// SHA-256 of a large file, git's hash of a small one.
    pub etag: Option<String>,
}

/// What of a repository is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Files {
    /// What drawing needs.
    Needed,
    /// These, by their names in the repository.
    Named(Vec<String>),
}

/// The folders of a diffusers model that are used here.
const FOLDERS: [&str; 7] = [
    "transformer",
    "text_encoder",
    "text_encoder_2",
    "vae",
    "tokenizer",
    "tokenizer_2",
    "scheduler",
];

/// Endings of files that can run code when they are read.
const PICKLES: [&str; 6] = ["bin", "ckpt", "pt", "pth", "pkl", "pickle"];

fn ending(name: &str) -> String {
    name.rsplit('/')
        .next()
        .and_then(|n| n.rsplit_once('.'))
        .map_or(String::new(), |(_, e)| e.to_lowercase())
}

/// Whether `name` is called like a pickle.
pub fn is_pickle(name: &str) -> bool {
    PICKLES.contains(&ending(name).as_str())
}

/// Whether `name` is called like a file of weights that can be read here.
pub fn is_weights(name: &str) -> bool {
    matches!(ending(name).as_str(), "safetensors" | "sft" | "gguf")
}

fn is_text(name: &str) -> bool {
    matches!(ending(name).as_str(), "json" | "txt" | "model")
}

/// The parts of a name such as `text_encoder_2/model.fp16-00001-of-00002.safetensors`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stem {
    /// `text_encoder_2`, or nothing.
    pub folder: String,
    /// `model`.
    pub stem: String,
    /// `fp16`, or nothing. Diffusers writes it behind the number of the shard, transformers in front.
    pub variant: String,
    /// How many shards there are; 0 for a single file.
    pub shards: u32,
    /// Which shard this is, from 1; 0 for a single file.
    pub shard: u32,
    /// `safetensors`, in lower case.
    pub ending: String,
}

impl Stem {
    pub fn of(name: &str) -> Stem {
        let (folder, file) = name.rsplit_once('/').unwrap_or(("", name));
        let stem = file.rsplit_once('.').map_or(file, |(s, _)| s);
        let (whole, behind) = match stem.rsplit_once('.') {
            Some((s, v)) if is_variant(v) && shard(s).is_some() => (s, v),
            _ => (stem, ""),
        };
        let (whole, shard, shards) = shard(whole).unwrap_or((whole, 0, 0));
        let (stem, before) = match whole.rsplit_once('.') {
            Some((s, v)) if is_variant(v) => (s, v),
            _ => (whole, ""),
        };
        let variant = if behind.is_empty() { before } else { behind };
        let ending = ending(file);
        Stem {
            folder: folder.into(),
            stem: stem.into(),
            variant: variant.into(),
            shards,
            shard,
            ending,
        }
    }

    /// The same for every shard of one model.
    pub fn group(&self) -> Stem {
        Stem { shard: 0, ..self.clone() }
    }

    /// The names that an index of these shards may have.
    fn indices(&self) -> [String; 2] {
        let Stem { stem, variant, .. } = self;
        let folder =
            if self.folder.is_empty() { String::new() } else { format!("{}/", self.folder) };
        let dot = if variant.is_empty() { "" } else { "." };
        [
            format!("{folder}{stem}.safetensors.index{dot}{variant}.json"),
            format!("{folder}{stem}{dot}{variant}.safetensors.index.json"),
        ]
    }
}

/// Precisions that diffusers and transformers put into names.
fn is_variant(word: &str) -> bool {
    let known = ["fp", "bf", "int", "nf", "q"].iter().any(|p| {
        word.strip_prefix(p).is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
    });
    known || matches!(word, "ema" | "non_ema")
}

/// `x-00001-of-00003` as (`x`, 1, 3).
fn shard(stem: &str) -> Option<(&str, u32, u32)> {
    let (front, total) = stem.rsplit_once("-of-")?;
    let (front, number) = front.rsplit_once('-')?;
    let digits = |s: &str| s.len() >= 4 && s.bytes().all(|b| b.is_ascii_digit());
    if !digits(number) || !digits(total) {
        return None;
    }
    let (number, total) = (number.parse().ok()?, total.parse().ok()?);
    (1 <= number && number <= total).then_some((front, number, total))
}

/// The files of `repo` to fetch, in the order of the list. Every name in the answer is safe to be joined to a folder.
pub fn select(repo: &str, listed: &[Listed], wanted: &Files) -> Result<Vec<Listed>> {
    let names = match wanted {
        Files::Named(names) => named(repo, listed, names)?,
        Files::Needed if listed.iter().any(|f| f.name == "model_index.json") => diffusers(listed),
        Files::Needed => only_model(repo, listed)?,
    };
    let chosen: Vec<Listed> = listed.iter().filter(|f| names.contains(&f.name)).cloned().collect();
    match chosen.iter().find(|f| !is_inside(&f.name)) {
        Some(_) => Err(Error::model("the repository lists a file outside its folder").at(repo)),
        None => Ok(chosen),
    }
}

fn named(repo: &str, listed: &[Listed], names: &[String]) -> Result<Vec<String>> {
    let mut out = Vec::new();
    for name in names {
        if is_pickle(name) {
            return Err(Error::argument(
                "pickle files (.bin, .ckpt, .pt) can run any code when they are read; they are not fetched",
            )
            .at(format!("{repo}/{name}"))
            .try_(candidates(repo, listed)));
        }
        if !listed.iter().any(|f| f.name == *name) {
            return Err(Error::missing("no such file in this repository")
                .at(format!("{repo}/{name}"))
                .try_(candidates(repo, listed)));
        }
        match Stem::of(name) {
            stem if stem.shards > 0 => out.extend(with_index(listed, &stem.group())),
            _ => out.push(name.clone()),
        }
    }
    Ok(out)
}

/// All shards of a group and their index, or its one file.
fn with_index(listed: &[Listed], group: &Stem) -> Vec<String> {
    let files =
        listed.iter().filter(|f| is_weights(&f.name) && Stem::of(&f.name).group() == *group);
    let mut out: Vec<String> = files.map(|f| f.name.clone()).collect();
    if group.shards > 0 {
        out.extend(group.indices().into_iter().find(|i| listed.iter().any(|f| f.name == *i)));
    }
    out
}

/// The models among the files: each group with its bytes.
fn groups<'a>(files: impl Iterator<Item = &'a Listed>) -> BTreeMap<Stem, u64> {
    let mut groups = BTreeMap::new();
    for file in files.filter(|f| is_weights(&f.name)) {
        let bytes = groups.entry(Stem::of(&file.name).group()).or_insert(0u64);
        *bytes = bytes.saturating_add(file.bytes.unwrap_or(0));
    }
    groups
}

fn diffusers(listed: &[Listed]) -> Vec<String> {
    let mut out = vec!["model_index.json".to_string()];
    for folder in FOLDERS {
        let inside = || {
            listed.iter().filter(|f| f.name.rsplit_once('/').is_some_and(|(at, _)| at == folder))
        };
        out.extend(
            inside()
                .filter(|f| is_text(&f.name) && !f.name.contains(".index."))
                .map(|f| f.name.clone()),
        );
        // GGUF is no part of diffusers' layout.
        let groups = groups(inside().filter(|f| ending(&f.name) == "safetensors"));
        let best = groups.keys().min_by_key(|g| {
            let usual = g.stem == "model" || g.stem == "diffusion_pytorch_model";
            let variant =
                ["", "bf16", "fp16", "fp8"].iter().position(|v| *v == g.variant).unwrap_or(4);
            (!usual, variant, g.shards > 0, (*g).clone())
        });
        out.extend(best.into_iter().flat_map(|g| with_index(listed, g)));
    }
    out
}

fn only_model(repo: &str, listed: &[Listed]) -> Result<Vec<String>> {
    let groups = groups(listed.iter());
    let mut models = groups.keys();
    let (Some(model), None) = (models.next(), models.next()) else {
        let (what, count) = match groups.len() {
            0 => ("the repository has no .safetensors or .gguf file", "none".to_string()),
            n => (
                "the repository has several models, and none of them is a diffusers folder",
                n.to_string(),
            ),
        };
        return Err(Error::argument(what)
            .at(repo)
            .found(count)
            .expected("one, or model_index.json")
            .try_(candidates(repo, listed)));
    };
    let mut out = with_index(listed, model);
    let beside =
        listed.iter().filter(|f| f.name.rsplit_once('/').map_or("", |(at, _)| at) == model.folder);
    out.extend(
        beside.filter(|f| is_text(&f.name) && !f.name.contains(".index.")).map(|f| f.name.clone()),
    );
    Ok(out)
}

/// What could be asked for, as a hint.
fn candidates(repo: &str, listed: &[Listed]) -> String {
    let mut names: Vec<&str> =
        listed.iter().map(|f| f.name.as_str()).filter(|n| is_weights(n)).collect();
    names.sort_by_key(|n| (n.matches('/').count(), *n));
    match names.as_slice() {
        [] => "another repository: this one has no .safetensors or .gguf file".to_string(),
        some => {
            let shown: Vec<String> = some.iter().take(8).map(|n| format!("{repo}/{n}")).collect();
            let more = if some.len() > 8 {
                format!(" and {} more", some.len() - 8)
            } else {
                String::new()
            };
            format!("one of its files: {}{more}", shown.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(names: &[&str]) -> Vec<Listed> {
        names.iter().map(|n| Listed { name: n.to_string(), bytes: Some(1), etag: None }).collect()
    }

    fn chosen(names: &[&str], wanted: Files) -> Result<Vec<String>> {
        select("o/n", &list(names), &wanted)
            .map(|files| files.into_iter().map(|f| f.name).collect())
    }

    #[test]
    fn of_a_diffusers_folder_one_variant_of_each_model_is_taken_and_no_single_file() {
        let needed = [
            "model_index.json",
            "scheduler/scheduler_config.json",
            "text_encoder/config.json",
            "text_encoder/model.safetensors",
            "text_encoder_2/config.json",
            "text_encoder_2/model-00001-of-00002.safetensors",
            "text_encoder_2/model-00002-of-00002.safetensors",
            "text_encoder_2/model.safetensors.index.json",
            "tokenizer/merges.txt",
            "tokenizer/vocab.json",
            "tokenizer_2/spiece.model",
            "transformer/config.json",
            "transformer/diffusion_pytorch_model.bf16-00001-of-00002.safetensors",
            "transformer/diffusion_pytorch_model.bf16-00002-of-00002.safetensors",
            "transformer/diffusion_pytorch_model.safetensors.index.bf16.json",
            "vae/config.json",
            "vae/diffusion_pytorch_model.safetensors",
        ];
        let others = [
            ".gitattributes",
            "README.md",
            "ae.safetensors",
            "flux1-dev.safetensors",
            "safety_checker/model.safetensors",
            "text_encoder/model.fp16.safetensors",
            "text_encoder/pytorch_model.bin",
            "text_encoder_2/model.safetensors.index.fp16.json",
            "transformer/diffusion_pytorch_model-00001-of-00002.fp16.safetensors",
            "transformer/diffusion_pytorch_model-00002-of-00002.fp16.safetensors",
            "vae/diffusion_pytorch_model.fp16.safetensors",
        ];
        let all: Vec<&str> = needed.iter().chain(&others).copied().collect();
        assert_eq!(chosen(&all, Files::Needed).unwrap(), needed);
    }

    #[test]
    fn other_repositories_give_their_only_model_or_ask_which() {
        let one = [
            "config.json",
            "x-00001-of-00002.safetensors",
            "x-00002-of-00002.safetensors",
            "x.safetensors.index.json",
        ];
        assert_eq!(chosen(&one, Files::Needed).unwrap(), one);
        let two = chosen(&["a.safetensors", "deep/b.gguf", "c.ckpt"], Files::Needed).unwrap_err();
        assert!(two.hint().unwrap().contains("o/n/a.safetensors, o/n/deep/b.gguf"), "{two:?}");
        let none = chosen(&["a.bin", "README.md"], Files::Needed).unwrap_err();
        assert!(none.to_string().contains("found none"), "{none}");
    }

    #[test]
    fn named_files_bring_their_shards_and_pickles_are_refused() {
        let all = [
            "a.safetensors",
            "b-00001-of-00002.safetensors",
            "b-00002-of-00002.safetensors",
            "b.safetensors.index.json",
            "c.ckpt",
        ];
        let named = |n: &str| chosen(&all, Files::Named(vec![n.into()]));
        assert_eq!(named("a.safetensors").unwrap(), ["a.safetensors"]);
        assert_eq!(named("b-00002-of-00002.safetensors").unwrap(), all[1..4]);
        assert!(named("c.ckpt").unwrap_err().to_string().contains("pickle"));
        assert_eq!(named("d.safetensors").unwrap_err().kind().exit_code(), 4);
        let bad = chosen(&["../a.safetensors"], Files::Named(vec!["../a.safetensors".into()]));
        assert!(bad.unwrap_err().to_string().contains("outside"));
    }
}
