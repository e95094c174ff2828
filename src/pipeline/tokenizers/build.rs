//! Tokenizers of the `tokenizers` crate from files: `tokenizer.json` for CLIP, T5 and Qwen3,
//! `merges.txt` for CLIP and Qwen3.

use std::collections::HashMap;

use serde::Deserialize;
use serde_json::Value;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::models::unigram::Unigram;
use tokenizers::{ModelWrapper, NormalizerWrapper, PreTokenizerWrapper, Tokenizer};

use super::guard::guard;
use super::normalizer;
use super::normalizer::check_pre_tokenizers;

/// The id of T5's piece for text that no other piece covers.
const T5_UNKNOWN: usize = 2;

/// The longest piece, in bytes. The pieces are kept in a tree that is dropped by recursion, so a
/// long one would overflow the stack; a piece of CLIP or T5 has at most some tens.
const MAX_PIECE: usize = 512;

/// CLIP's normalizer and pre-tokenizer, which a `merges.txt` does not contain.
const CLIP_STEPS: &str = r#"{
  "normalizer": {"type": "Sequence", "normalizers": [
    {"type": "NFC"},
    {"type": "Replace", "pattern": {"Regex": "\\s+"}, "content": " "},
    {"type": "Lowercase"}]},
  "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
    {"type": "Split", "behavior": "Removed", "invert": true, "pattern": {"Regex":
      "'s|'t|'re|'ve|'m|'ll|'d|[\\p{L}]+|[\\p{N}]|[^\\s\\p{L}\\p{N}]+"}},
    {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}]}
}"#;

/// Qwen3's normalizer and pre-tokenizer, which a `merges.txt` does not contain.
const QWEN3_STEPS: &str = concat!(
    r#"{
  "normalizer": {"type": "NFC"},
  "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
    {"type": "Split", "behavior": "Isolated", "invert": false, "pattern": {"Regex": ""#,
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}|",
    r" ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
    r#""}},
    {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false}]}
}"#
);

/// The parts of a `tokenizer.json` that are used.
#[derive(Deserialize)]
struct File<M> {
    normalizer: Option<Value>,
    pre_tokenizer: Option<PreTokenizerWrapper>,
    model: M,
}

#[derive(Deserialize)]
struct Steps {
    normalizer: Option<NormalizerWrapper>,
    pre_tokenizer: Option<PreTokenizerWrapper>,
}

#[derive(Deserialize)]
struct UnigramFile {
    vocab: Vec<(String, f64)>,
    unk_id: Option<usize>,
    #[serde(default)]
    byte_fallback: bool,
}

#[derive(Deserialize)]
struct BpeFile {
    vocab: HashMap<String, u32>,
    merges: Vec<Merge>,
}

/// One line of merges, in both notations that occur.
#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Pair(String, String),
    Line(String),
}

/// CLIP's tokenizer from a `tokenizer.json`.
pub fn clip_from_json(text: &str) -> Result<Tokenizer, String> {
    guard(|| {
        let (parts, normalizer, pre_tokenizer) = bpe_parts(text)?;
        build_clip(parts, normalizer, pre_tokenizer)
    })
}

/// Qwen3's tokenizer from a `tokenizer.json`.
pub fn qwen3_from_json(text: &str) -> Result<Tokenizer, String> {
    guard(|| {
        let (parts, normalizer, pre_tokenizer) = bpe_parts(text)?;
        build_qwen3(parts, normalizer, pre_tokenizer)
    })
}

/// Pieces with their ids, and merges, best first.
type BpeParts = (Vocab, Vec<(String, String)>);

/// The parts of a `tokenizer.json` with a BPE model.
#[allow(clippy::type_complexity, reason = "the parts of a tokenizer")]
fn bpe_parts(
    text: &str,
) -> Result<(BpeParts, Option<NormalizerWrapper>, Option<PreTokenizerWrapper>), String> {
    let file: File<BpeFile> = parse(text, "BPE")?;
    let merges = file.model.merges.into_iter().map(|merge| match merge {
        Merge::Pair(a, b) => Ok((a, b)),
        Merge::Line(line) => pair(&line),
    });
    let merges = merges.collect::<Result<Vec<_>, String>>()?;
    let vocab = file.model.vocab.into_iter().collect();
    Ok(((vocab, merges), normalizer::read(file.normalizer)?, file.pre_tokenizer))
}

/// CLIP's tokenizer from the text of a `merges.txt`: a line that begins with `#version`, then one
/// pair a line, best first.
pub fn clip_from_merges(merges: &str) -> Result<Tokenizer, String> {
    guard(|| {
        let merges = merge_lines(merges)?;
        let bytes = byte_characters();
        let mut pieces: Vec<String> = bytes.iter().map(|c| c.to_string()).collect();
        pieces.extend(bytes.iter().map(|c| format!("{c}</w>")));
        pieces.extend(merges.iter().map(|(a, b)| format!("{a}{b}")));
        pieces.extend(["<|startoftext|>".to_string(), "<|endoftext|>".to_string()]);
        let vocab = pieces.into_iter().zip(0..).collect();
        let steps: Steps = serde_json::from_str(CLIP_STEPS).map_err(|e| e.to_string())?;
        build_clip((vocab, merges), steps.normalizer, steps.pre_tokenizer)
    })
}

/// Qwen3's tokenizer from the text of a `merges.txt`, as [`clip_from_merges`]: the vocabulary is
/// the 256 bytes and one piece for each merge.
pub fn qwen3_from_merges(merges: &str) -> Result<Tokenizer, String> {
    guard(|| {
        let merges = merge_lines(merges)?;
        let mut pieces: Vec<String> = byte_characters().iter().map(|c| c.to_string()).collect();
        pieces.extend(merges.iter().map(|(a, b)| format!("{a}{b}")));
        let vocab = pieces.into_iter().zip(0..).collect();
        let steps: Steps = serde_json::from_str(QWEN3_STEPS).map_err(|e| e.to_string())?;
        build_qwen3((vocab, merges), steps.normalizer, steps.pre_tokenizer)
    })
}

/// The pairs of a `merges.txt`.
fn merge_lines(text: &str) -> Result<Vec<(String, String)>, String> {
    let is_merge = |line: &&str| !line.is_empty() && !line.starts_with("#version");
    text.lines().filter(is_merge).map(pair).collect()
}

fn pair(line: &str) -> Result<(String, String), String> {
    let (a, b) = line.split_once(' ').ok_or_else(|| format!("a merge is not a pair: {line:?}"))?;
    Ok((a.to_string(), b.to_string()))
}

/// The character that stands for each byte in a byte-level vocabulary, in the vocabulary's order:
/// first the bytes that are visible Latin-1 characters and stand for themselves, then the others,
/// as the characters from U+0100 on.
fn byte_characters() -> Vec<char> {
    let visible = (b'!'..=b'~').chain(0xa1..=0xac).chain(0xae..=0xff);
    visible.map(char::from).chain((0x100..0x144).filter_map(char::from_u32)).collect()
}

fn build_clip(
    (vocab, merges): BpeParts,
    normalizer: Option<NormalizerWrapper>,
    pre_tokenizer: Option<PreTokenizerWrapper>,
) -> Result<Tokenizer, String> {
    check_pieces(vocab.keys())?;
    check_pieces(merges.iter().flat_map(|(a, b)| [a, b]))?;
    let model = BPE::builder()
        .vocab_and_merges(vocab, merges)
        .end_of_word_suffix("</w>".to_string())
        .continuing_subword_prefix(String::new())
        .unk_token("<|endoftext|>".to_string())
        .build()
        .map_err(|e| e.to_string())?;
    assemble(model.into(), normalizer, pre_tokenizer)
}

fn build_qwen3(
    (vocab, merges): BpeParts,
    normalizer: Option<NormalizerWrapper>,
    pre_tokenizer: Option<PreTokenizerWrapper>,
) -> Result<Tokenizer, String> {
    check_pieces(vocab.keys())?;
    check_pieces(merges.iter().flat_map(|(a, b)| [a, b]))?;
    let model =
        BPE::builder().vocab_and_merges(vocab, merges).build().map_err(|e| e.to_string())?;
    assemble(model.into(), normalizer, pre_tokenizer)
}

/// T5's tokenizer from a `tokenizer.json`.
pub fn t5_from_json(text: &str) -> Result<Tokenizer, String> {
    guard(|| {
        let file: File<UnigramFile> = parse(text, "Unigram")?;
        let UnigramFile { mut vocab, unk_id, byte_fallback } = file.model;
        if unk_id != Some(T5_UNKNOWN) || vocab.len() <= T5_UNKNOWN {
            return Err(format!(
                "this is not T5's tokenizer: unk_id is {unk_id:?}, expected {T5_UNKNOWN}"
            ));
        }
        check_pieces(vocab.iter().map(|(piece, _)| piece))?;
        for (piece, _) in &mut vocab {
            // Marks must never match text that a user typed. A piece that contains a space cannot
            // match, since every space of the text is replaced before the pieces are looked up; and
            // the ids of the other pieces stay the same.
            if matches!(piece.as_str(), "<pad>" | "</s>" | "<unk>" | "<s>")
                || piece.starts_with("<extra_id_")
            {
                piece.insert(0, ' ');
            }
        }
        let model = Unigram::from(vocab, unk_id, byte_fallback).map_err(|e| e.to_string())?;
        assemble(model.into(), normalizer::read(file.normalizer)?, file.pre_tokenizer)
    })
}

fn assemble(
    model: ModelWrapper,
    normalizer: Option<NormalizerWrapper>,
    pre_tokenizer: Option<PreTokenizerWrapper>,
) -> Result<Tokenizer, String> {
    check_pre_tokenizers(pre_tokenizer.as_ref())?;
    let mut tokenizer = Tokenizer::new(model);
    tokenizer.with_normalizer(normalizer).map_err(|e| e.to_string())?;
    tokenizer.with_pre_tokenizer(pre_tokenizer);
    Ok(tokenizer)
}

/// Refuses pieces that are longer than any real one.
fn check_pieces<'a>(mut pieces: impl Iterator<Item = &'a String>) -> Result<(), String> {
    match pieces.find(|piece| piece.len() > MAX_PIECE) {
        None => Ok(()),
        Some(piece) => {
            Err(format!("it has a piece of {} bytes, expected at most {MAX_PIECE}", piece.len()))
        }
    }
}

fn parse<'a, T: Deserialize<'a>>(text: &'a str, model: &str) -> Result<T, String> {
    serde_json::from_str(text)
        .map_err(|e| format!("not a tokenizer.json with a {model} model: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_byte_alphabet_has_every_byte_once() {
        let mut characters = byte_characters();
        assert_eq!((characters.len(), characters[0], characters[255]), (256, '!', '\u{143}'));
        characters.sort();
        characters.dedup();
        assert_eq!(characters.len(), 256);
    }
}
