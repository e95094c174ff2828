//! Which files of a repository are downloaded.
//!
//! From a repository in the diffusers layout: its models in one variant each, with their
//! configurations and tokenizers. From any other repository: its only model. Pickles are never
//! downloaded.

use std::collections::BTreeMap;

use crate::error::{Error, Result};
use crate::library::file_names::{FileName, is_config, is_pickle, is_safetensors, is_weights};
use crate::library::repo_id::is_inside;

/// A file in the hub's list of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ListedFile {
    /// Its path in the repository.
    pub name: String,
    /// Its size, if the list contains it.
    pub bytes: Option<u64>,
    /// The SHA-256 of a large file, the hash of git of a small one.
    pub etag: Option<String>,
}

/// Which files of a repository to download.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selection {
    /// The files that are needed to make images.
    Needed,
    /// The files with these names in the repository. A name of a shard selects all shards.
    Named(Vec<String>),
}

/// The folders of a diffusers model that are used.
const FOLDERS: [&str; 10] = [
    "transformer",
    "text_encoder",
    "text_encoder_2",
    "vae",
    "image_encoder",
    "image_embedder",
    "feature_extractor",
    "tokenizer",
    "tokenizer_2",
    "scheduler",
];

/// The files of `repo` to download, in the order of the list. Every name in the result is safe to
/// be joined to a folder.
pub(super) fn select(
    repo: &str,
    listed: &[ListedFile],
    selection: &Selection,
) -> Result<Vec<ListedFile>> {
    let names = match selection {
        Selection::Named(names) => named(repo, listed, names)?,
        Selection::Needed if listed.iter().any(|f| f.name == "model_index.json") => {
            diffusers(listed)
        }
        Selection::Needed => only_model(repo, listed)?,
    };
    let chosen: Vec<ListedFile> =
        listed.iter().filter(|f| names.contains(&f.name)).cloned().collect();
    match chosen.iter().find(|f| !is_inside(&f.name)) {
        Some(_) => Err(Error::model("the repository lists a file outside its folder").at(repo)),
        None => Ok(chosen),
    }
}

/// The files with these names, and the other shards and the index of each.
fn named(repo: &str, listed: &[ListedFile], names: &[String]) -> Result<Vec<String>> {
    let mut out = Vec::new();
    for name in names {
        if is_pickle(name) {
            return Err(Error::argument(
                "pickle files (.bin, .ckpt, .pt) can run any code when they are read, so they are \
                 not downloaded",
            )
            .at(format!("{repo}/{name}"))
            .try_(candidates(repo, listed)));
        }
        if !listed.iter().any(|f| f.name == *name) {
            return Err(Error::missing("no such file in this repository")
                .at(format!("{repo}/{name}"))
                .try_(candidates(repo, listed)));
        }
        match FileName::parse(name) {
            parsed if parsed.shards > 0 => out.extend(with_index(listed, &parsed.group())),
            _ => out.push(name.clone()),
        }
    }
    Ok(out)
}

/// All shards of a group and their index, or its only file.
fn with_index(listed: &[ListedFile], group: &FileName) -> Vec<String> {
    let is_member = |name: &str| is_weights(name) && FileName::parse(name).group() == *group;
    let names = listed.iter().map(|f| f.name.as_str());
    let mut out: Vec<String> = names.filter(|n| is_member(n)).map(str::to_string).collect();
    if group.shards > 0 {
        out.extend(group.indexes().into_iter().find(|i| listed.iter().any(|f| f.name == *i)));
    }
    out
}

/// The groups of shards and the single weight files among `files`, with the size of each.
fn groups<'a>(files: impl Iterator<Item = &'a ListedFile>) -> BTreeMap<FileName, u64> {
    let mut groups = BTreeMap::new();
    for file in files.filter(|f| is_weights(&f.name)) {
        let bytes = groups.entry(FileName::parse(&file.name).group()).or_insert(0u64);
        *bytes = bytes.saturating_add(file.bytes.unwrap_or(0));
    }
    groups
}

/// The files in `folder`, without its subfolders.
fn files_in<'a>(listed: &'a [ListedFile], folder: &'a str) -> impl Iterator<Item = &'a ListedFile> {
    listed.iter().filter(move |f| f.name.rsplit_once('/').map_or("", |(at, _)| at) == folder)
}

/// The configuration and tokenizer files in `folder`.
fn configs_in<'a>(listed: &'a [ListedFile], folder: &'a str) -> impl Iterator<Item = String> + 'a {
    files_in(listed, folder).filter(|f| is_config(&f.name)).map(|f| f.name.clone())
}

/// The files of a repository in the diffusers layout.
fn diffusers(listed: &[ListedFile]) -> Vec<String> {
    let mut out = vec!["model_index.json".to_string()];
    for folder in FOLDERS {
        out.extend(configs_in(listed, folder));
        // GGUF files are not part of the diffusers layout.
        let groups = groups(files_in(listed, folder).filter(|f| is_safetensors(&f.name)));
        let best = groups.keys().min_by_key(|g| {
            let is_usual = g.stem == "model" || g.stem == "diffusion_pytorch_model";
            (!is_usual, g.variant_rank(), g.shards > 0, (*g).clone())
        });
        out.extend(best.into_iter().flat_map(|g| with_index(listed, g)));
    }
    out
}

/// The files of the only model of a repository, and the configuration files next to it.
fn only_model(repo: &str, listed: &[ListedFile]) -> Result<Vec<String>> {
    let groups = groups(listed.iter());
    let mut models = groups.keys();
    let (Some(model), None) = (models.next(), models.next()) else {
        let (what, count) = match groups.len() {
            0 => ("the repository has no .safetensors or .gguf file", "none".to_string()),
            n => (
                "the repository has several models and is not in the diffusers layout",
                n.to_string(),
            ),
        };
        return Err(Error::argument(what)
            .at(repo)
            .found(count)
            .expected("one model, or model_index.json")
            .try_(candidates(repo, listed)));
    };
    let mut out = with_index(listed, model);
    out.extend(configs_in(listed, &model.folder));
    Ok(out)
}

/// A hint that lists the weight files of the repository.
fn candidates(repo: &str, listed: &[ListedFile]) -> String {
    const SHOWN: usize = 8;
    let mut names: Vec<&str> =
        listed.iter().map(|f| f.name.as_str()).filter(|n| is_weights(n)).collect();
    names.sort_by_key(|n| (n.matches('/').count(), *n));
    if names.is_empty() {
        return "another repository: this one has no .safetensors or .gguf file".to_string();
    }
    let shown: Vec<String> = names.iter().take(SHOWN).map(|n| format!("{repo}/{n}")).collect();
    let more = match names.len().saturating_sub(SHOWN) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!("one of its files: {}{more}", shown.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(names: &[&str]) -> Vec<ListedFile> {
        names
            .iter()
            .map(|n| ListedFile { name: n.to_string(), bytes: Some(1), etag: None })
            .collect()
    }

    fn chosen(names: &[&str], selection: Selection) -> Result<Vec<String>> {
        select("o/n", &list(names), &selection)
            .map(|files| files.into_iter().map(|f| f.name).collect())
    }

    #[test]
    fn one_variant_of_each_model_of_a_diffusers_repository_is_selected() {
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
        assert_eq!(chosen(&all, Selection::Needed).unwrap(), needed);
    }

    /// FLUX.2 [klein] has one text encoder, and BFL's file next to the folders.
    #[test]
    fn klein_is_selected_once() {
        let needed = [
            "model_index.json",
            "scheduler/scheduler_config.json",
            "text_encoder/config.json",
            "text_encoder/model-00001-of-00002.safetensors",
            "text_encoder/model-00002-of-00002.safetensors",
            "text_encoder/model.safetensors.index.json",
            "tokenizer/merges.txt",
            "tokenizer/vocab.json",
            "transformer/config.json",
            "transformer/diffusion_pytorch_model.safetensors",
            "vae/config.json",
            "vae/diffusion_pytorch_model.safetensors",
        ];
        let others = ["README.md", "flux-2-klein-4b.safetensors", "LICENSE.md"];
        let all: Vec<&str> = needed.iter().chain(&others).copied().collect();
        assert_eq!(chosen(&all, Selection::Needed).unwrap(), needed);
        let named = Selection::Named(vec!["flux-2-klein-4b.safetensors".to_string()]);
        assert_eq!(chosen(&all, named).unwrap(), ["flux-2-klein-4b.safetensors"]);
    }

    #[test]
    fn the_only_model_of_another_repository_is_selected_and_several_are_an_error() {
        let one = [
            "config.json",
            "x-00001-of-00002.safetensors",
            "x-00002-of-00002.safetensors",
            "x.safetensors.index.json",
        ];
        assert_eq!(chosen(&one, Selection::Needed).unwrap(), one);
        let two =
            chosen(&["a.safetensors", "deep/b.gguf", "c.ckpt"], Selection::Needed).unwrap_err();
        assert!(two.hint().unwrap().contains("o/n/a.safetensors, o/n/deep/b.gguf"), "{two:?}");
        let none = chosen(&["a.bin", "README.md"], Selection::Needed).unwrap_err();
        assert!(none.to_string().contains("found none"), "{none}");
    }

    #[test]
    fn a_named_shard_selects_all_shards_and_pickles_are_refused() {
        let all = [
            "a.safetensors",
            "b-00001-of-00002.safetensors",
            "b-00002-of-00002.safetensors",
            "b.safetensors.index.json",
            "c.ckpt",
        ];
        let named = |n: &str| chosen(&all, Selection::Named(vec![n.into()]));
        assert_eq!(named("a.safetensors").unwrap(), ["a.safetensors"]);
        assert_eq!(named("b-00002-of-00002.safetensors").unwrap(), all[1..4]);
        assert!(named("c.ckpt").unwrap_err().to_string().contains("pickle"));
        assert_eq!(named("d.safetensors").unwrap_err().kind().exit_code(), 4);
        let bad = chosen(&["../a.safetensors"], Selection::Named(vec!["../a.safetensors".into()]));
        assert!(bad.unwrap_err().to_string().contains("outside"));
    }

    #[test]
    fn the_short_ending_of_safetensors_is_selected_like_the_long_one() {
        assert_eq!(
            chosen(&["ae.sft", "config.json"], Selection::Needed).unwrap(),
            ["ae.sft", "config.json"]
        );
        let shards = ["b-00001-of-00002.sft", "b-00002-of-00002.sft", "b.sft.index.json"];
        let named = Selection::Named(vec![shards[1].into()]);
        assert_eq!(chosen(&shards, named).unwrap(), shards);
        let folder = ["model_index.json", "vae/diffusion_pytorch_model.sft", "vae/extra.gguf"];
        assert_eq!(chosen(&folder, Selection::Needed).unwrap(), folder[..2]);
    }
}
