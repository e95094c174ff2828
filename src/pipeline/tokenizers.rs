//! Prompt to token ids, as CLIP and T5 read them. Both tokenizers are part of the binary; a model folder's own files win.
//!
//! Only what turns text into pieces is taken from a `tokenizer.json`: the normalizer, the pre-tokenizer and the model. Added
//! tokens, templates, padding and truncation are ours, so a prompt that holds `</s>` or `<|endoftext|>` is read as text.

mod normalizer;

use std::cell::Cell;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;

use serde::Deserialize;
use serde_json::Value;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::models::unigram::Unigram;
use tokenizers::{ModelWrapper, NormalizerWrapper, PreTokenizerWrapper, Tokenizer};

use crate::error::{Error, Result};

/// How many ids CLIP takes.
pub const CLIP_LENGTH: usize = 77;
/// CLIP's mark before the text.
pub const CLIP_START: u32 = 49406;
/// CLIP's mark after the text, and its padding.
pub const CLIP_END: u32 = 49407;
/// T5's padding.
pub const T5_PAD: u32 = 0;
/// T5's mark after the text.
pub const T5_END: u32 = 1;
/// T5's piece for what it has no piece for.
const T5_UNKNOWN: usize = 2;
/// T5's own `tokenizer.json` has 2.4 MB.
const MOST_BYTES: u64 = 64 << 20;
/// Rows of T5's embedding; an id beyond them would read past the table.
const T5_ROWS: usize = 32128;

const CLIP_MERGES: &str = include_str!("../../assets/tokenizers/clip-merges.txt");
const CLIP_STEPS: &str = r#"{"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"},
    {"type": "Replace", "pattern": {"Regex": "\\s+"}, "content": " "}, {"type": "Lowercase"}]},
  "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Split", "behavior": "Removed", "invert": true, "pattern":
    {"Regex": "'s|'t|'re|'ve|'m|'ll|'d|[\\p{L}]+|[\\p{N}]|[^\\s\\p{L}\\p{N}]+"}},
    {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}]}}"#;
const T5_JSON: &str = include_str!("../../assets/tokenizers/t5-tokenizer.json");

/// Token ids of one prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ids {
    /// As many as were asked for, padding included.
    pub ids: Vec<u32>,
    /// How many of them are not padding; the marks count.
    pub real: usize,
    /// The end of the prompt that had no room, as the user wrote it; empty if all was read.
    pub cut: String,
}

/// The two tokenizers.
pub struct Tokenizers {
    clip: Building,
    t5: Building,
}

impl Tokenizers {
    /// Begins to build both, at the same time and beside the caller, who meanwhile opens the model; the first use waits.
    /// Each path is a `tokenizer.json`, or a folder that may hold one (for CLIP also a `merges.txt`); such a file is waited
    /// for, and refused here. Where a folder holds neither, or there is no path, the built-in tokenizer is used: all FLUX.1
    /// models share it.
    pub fn load(clip: Option<&Path>, t5: Option<&Path>) -> Result<Self> {
        let clip_path = clip.and_then(|path| file_in(path, &["tokenizer.json", "merges.txt"]));
        let t5_path = t5.and_then(|path| file_in(path, &["tokenizer.json"]));
        let given = (clip_path.is_some(), t5_path.is_some());
        let tokenizers = Tokenizers {
            clip: Building::start(move || Coder::clip(clip_path)),
            t5: Building::start(move || Coder::t5(t5_path)),
        };
        if given.0 {
            tokenizers.clip.get()?;
        }
        if given.1 {
            tokenizers.t5.get()?;
        }
        Ok(tokenizers)
    }

    /// `text` as CLIP reads it: 77 ids, the start mark, the text's pieces, the end mark, and more end marks as padding.
    pub fn clip_ids(&self, text: &str) -> Result<Ids> {
        self.clip.get()?.ids(text, CLIP_LENGTH, Some(CLIP_START), CLIP_END, CLIP_END)
    }

    /// `text` as T5 reads it: `length` ids (at least 1), the text's pieces, the end mark, and zeros as padding.
    pub fn t5_ids(&self, text: &str, length: usize) -> Result<Ids> {
        self.t5.get()?.ids(text, length, None, T5_END, T5_PAD)
    }
}

/// A tokenizer that a thread builds.
struct Building {
    thread: Mutex<Option<JoinHandle<Result<Coder>>>>,
    built: OnceLock<Result<Coder>>,
}

impl Building {
    fn start(build: impl FnOnce() -> Result<Coder> + Send + 'static) -> Self {
        Building { thread: Mutex::new(Some(std::thread::spawn(build))), built: OnceLock::new() }
    }

    fn get(&self) -> Result<&Coder> {
        let join = || {
            let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
            let failed = || Error::model("the tokenizer could not be built");
            thread.and_then(|thread| thread.join().ok()).unwrap_or_else(|| Err(failed()))
        };
        self.built.get_or_init(join).as_ref().map_err(Error::clone)
    }
}

/// What is read of a `tokenizer.json`.
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

/// Both notations that are in use.
#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Pair(String, String),
    Line(String),
}

/// One tokenizer and where it came from.
struct Coder {
    tokenizer: Tokenizer,
    /// For messages; `None` is the built-in one.
    path: Option<PathBuf>,
}

/// Builds either tokenizer from the bytes of one `tokenizer.json`, as `load` does with a file, CLIP's first: for tests with files that nobody should have.
#[doc(hidden)]
pub fn try_json(bytes: Vec<u8>) -> (Result<()>, Result<()>) {
    let path = Path::new("tokenizer.json");
    match text_of(bytes, path) {
        Ok(text) => {
            let clip = Coder::clip_of(clip_from_json(&text), Some(path.into()));
            let t5 = Coder::t5_of(t5_from_json(&text), Some(path.into()));
            (clip.map(drop), t5.map(drop))
        }
        Err(e) => (Err(e.clone()), Err(e)),
    }
}

impl Coder {
    fn clip(path: Option<PathBuf>) -> Result<Self> {
        let Some(path) = path else { return Coder::clip_of(clip_from_merges(CLIP_MERGES), None) };
        let text = read(&path)?;
        let merges = path.extension().is_some_and(|e| e == "txt");
        let built = if merges { clip_from_merges(&text) } else { clip_from_json(&text) };
        Coder::clip_of(built, Some(path))
    }

    fn clip_of(
        built: std::result::Result<Tokenizer, String>,
        path: Option<PathBuf>,
    ) -> Result<Self> {
        let coder = Coder::new(built, path)?;
        // A tokenizer of another model would give ids that mean other words, without any other sign.
        for (mark, id) in [("<|startoftext|>", CLIP_START), ("<|endoftext|>", CLIP_END)] {
            let found = coder.tokenizer.token_to_id(mark);
            if found != Some(id) {
                return Err(coder
                    .bad("this is not CLIP's tokenizer")
                    .found(format!(
                        "{mark} as {}",
                        found.map_or("nothing".to_string(), |id| id.to_string())
                    ))
                    .expected(id));
            }
        }
        coder.probed(CLIP_END as usize + 1)
    }

    fn t5(path: Option<PathBuf>) -> Result<Self> {
        match path {
            None => Coder::t5_of(t5_from_json(T5_JSON), None),
            Some(path) => Coder::t5_of(t5_from_json(&read(&path)?), Some(path)),
        }
    }

    fn t5_of(built: std::result::Result<Tokenizer, String>, path: Option<PathBuf>) -> Result<Self> {
        Coder::new(built, path)?.probed(T5_ROWS)
    }

    fn new(built: std::result::Result<Tokenizer, String>, path: Option<PathBuf>) -> Result<Self> {
        match built {
            Ok(tokenizer) => Ok(Coder { tokenizer, path }),
            Err(why) => Err(bad(path.as_deref(), why)),
        }
    }

    /// Encodes a line of each script that normalizers treat apart, so that a table which would fail at some prompt more
    /// likely fails now, with the file's name; and refuses ids beyond the embedding's `rows`.
    fn probed(self, rows: usize) -> Result<Self> {
        let size = self.tokenizer.get_vocab_size(true);
        if size > rows {
            return Err(self
                .bad("the tokenizer has more pieces than the text encoder")
                .found(size)
                .expected(rows));
        }
        for text in
            ["a photo of a Cat, 3 \u{ff21}\u{fb01} \u{1f98a}", "\u{72d0} na\u{308}ive\n\u{0}"]
        {
            let pieces = self.pieces(text)?;
            if pieces.is_empty() || pieces.iter().any(|&(id, _)| id as usize >= rows) {
                return Err(self
                    .bad("the tokenizer's ids do not fit the text encoder")
                    .expected(format!("1 to {rows}")));
            }
        }
        Ok(self)
    }

    fn bad(&self, why: impl Into<String>) -> Error {
        bad(self.path.as_deref(), why)
    }

    /// Ids of `text`, each with the byte offset in `text` at which it begins.
    fn pieces(&self, text: &str) -> Result<Vec<(u32, usize)>> {
        let encoding = guard(|| self.tokenizer.encode(text, false).map_err(|e| e.to_string()));
        let encoding = encoding
            .map_err(|why| self.bad(format!("the tokenizer cannot read the prompt: {why}")))?;
        Ok(encoding
            .get_ids()
            .iter()
            .zip(encoding.get_offsets())
            .map(|(&id, &(begin, _))| (id, begin))
            .collect())
    }

    fn ids(
        &self,
        text: &str,
        length: usize,
        start: Option<u32>,
        end: u32,
        pad: u32,
    ) -> Result<Ids> {
        let room = length.saturating_sub(1 + usize::from(start.is_some()));
        let pieces = self.pieces(text)?;
        let cut = match pieces.get(room) {
            Some(&(_, begin)) => text[boundary(text, begin)..].trim_start().to_string(),
            None => String::new(),
        };
        let mut ids: Vec<u32> = start.into_iter().collect();
        ids.extend(pieces.iter().take(room).map(|&(id, _)| id));
        ids.push(end);
        let real = ids.len();
        ids.resize(length.max(real), pad);
        Ok(Ids { ids, real, cut })
    }
}

/// The last character boundary of `text` at or before `index`.
fn boundary(text: &str, index: usize) -> usize {
    (0..=index.min(text.len())).rev().find(|&i| text.is_char_boundary(i)).unwrap_or(0)
}

/// `path` itself, or the first of `names` that lies in it if it is a folder.
fn file_in(path: &Path, names: &[&str]) -> Option<PathBuf> {
    if path.is_dir() {
        names.iter().map(|n| path.join(n)).find(|p| p.is_file())
    } else {
        Some(path.to_path_buf())
    }
}

fn read(path: &Path) -> Result<String> {
    let failed = |e: std::io::Error| {
        let kind =
            if e.kind() == std::io::ErrorKind::NotFound { Error::missing } else { Error::model };
        kind(format!("the tokenizer cannot be read: {e}"))
            .at_path(path)
            .try_("give a tokenizer.json, or leave it out")
    };
    // A model in its place is not read into memory.
    let size = std::fs::metadata(path).map_err(failed)?.len();
    if size > MOST_BYTES {
        let e =
            bad(Some(path), "the file is too large for a tokenizer").found(format!("{size} bytes"));
        return Err(e.expected(format!("at most {MOST_BYTES}")));
    }
    let bytes = std::fs::read(path).map_err(failed)?;
    text_of(bytes, path)
}

fn text_of(bytes: Vec<u8>, path: &Path) -> Result<String> {
    String::from_utf8(bytes).map_err(|_| bad(Some(path), "the tokenizer is not text (UTF-8)"))
}

fn bad(path: Option<&Path>, why: impl Into<String>) -> Error {
    let error = Error::model(why);
    match path {
        Some(path) => {
            error.at_path(path).try_("use the tokenizer of FLUX.1, or leave it out: it is built in")
        }
        None => error.at("built-in tokenizer"),
    }
}

fn clip_from_json(text: &str) -> std::result::Result<Tokenizer, String> {
    guard(|| {
        let file: File<BpeFile> = parse(text, "BPE")?;
        let merges = file.model.merges.into_iter().map(|merge| match merge {
            Merge::Pair(a, b) => Ok((a, b)),
            Merge::Line(line) => pair(&line),
        });
        let merges = merges.collect::<std::result::Result<Vec<_>, String>>()?;
        clip(
            file.model.vocab.into_iter().collect(),
            merges,
            normalizer::read(file.normalizer)?,
            file.pre_tokenizer,
        )
    })
}

/// `merges` is the text of a `merges.txt`: a line that begins with `#version`, then one pair a line, best first.
fn clip_from_merges(merges: &str) -> std::result::Result<Tokenizer, String> {
    guard(|| {
        let lines = merges.lines().filter(|line| !line.is_empty() && !line.starts_with("#version"));
        let merges = lines.map(pair).collect::<std::result::Result<Vec<_>, String>>()?;
        let bytes = byte_characters();
        let mut pieces: Vec<String> = bytes.iter().map(|c| c.to_string()).collect();
        pieces.extend(bytes.iter().map(|c| format!("{c}</w>")));
        pieces.extend(merges.iter().map(|(a, b)| format!("{a}{b}")));
        pieces.extend(["<|startoftext|>".to_string(), "<|endoftext|>".to_string()]);
        let vocab = pieces.into_iter().zip(0..).collect();
        let steps: Steps = serde_json::from_str(CLIP_STEPS).map_err(|e| e.to_string())?;
        clip(vocab, merges, steps.normalizer, steps.pre_tokenizer)
    })
}

fn pair(line: &str) -> std::result::Result<(String, String), String> {
    let (a, b) = line.split_once(' ').ok_or_else(|| format!("a merge is not a pair: {line:?}"))?;
    Ok((a.to_string(), b.to_string()))
}

/// The character that stands for each byte in a byte-level vocabulary, in the vocabulary's order: first the bytes that are
/// visible Latin-1 characters and stand for themselves, then the others, as the characters from U+0100 on.
fn byte_characters() -> Vec<char> {
    let visible = (b'!'..=b'~').chain(0xa1..=0xac).chain(0xae..=0xff);
    visible.map(char::from).chain((0x100..0x144).filter_map(char::from_u32)).collect()
}

fn clip(
    vocab: Vocab,
    merges: Vec<(String, String)>,
    normalizer: Option<NormalizerWrapper>,
    pre_tokenizer: Option<PreTokenizerWrapper>,
) -> std::result::Result<Tokenizer, String> {
    let model = BPE::builder()
        .vocab_and_merges(vocab, merges)
        .end_of_word_suffix("</w>".to_string())
        .continuing_subword_prefix(String::new())
        .unk_token("<|endoftext|>".to_string())
        .build()
        .map_err(|e| e.to_string())?;
    assemble(model.into(), normalizer, pre_tokenizer)
}

fn t5_from_json(text: &str) -> std::result::Result<Tokenizer, String> {
    guard(|| {
        let file: File<UnigramFile> = parse(text, "Unigram")?;
        let UnigramFile { mut vocab, unk_id, byte_fallback } = file.model;
        if unk_id != Some(T5_UNKNOWN) || vocab.len() <= T5_UNKNOWN {
            return Err(format!(
                "this is not T5's tokenizer: unk_id is {unk_id:?}, expected {T5_UNKNOWN}"
            ));
        }
        for (piece, _) in &mut vocab {
            // Marks must never match what a user typed. No piece can match once it holds a space, since every space of
            // the text is replaced before the pieces are looked up; and the ids of the others stay as they are.
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
) -> std::result::Result<Tokenizer, String> {
    let mut tokenizer = Tokenizer::new(model);
    tokenizer.with_normalizer(normalizer).map_err(|e| e.to_string())?;
    tokenizer.with_pre_tokenizer(pre_tokenizer);
    Ok(tokenizer)
}

fn parse<'a, T: Deserialize<'a>>(text: &'a str, model: &str) -> std::result::Result<T, String> {
    serde_json::from_str(text)
        .map_err(|e| format!("not a tokenizer.json with a {model} model: {e}"))
}

thread_local! {
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread runs foreign code whose panic will be caught and told as an error: a panic hook should stay quiet.
pub fn panic_is_caught() -> bool {
    GUARDED.get()
}

/// Runs `work`, and makes an error of a panic: `tokenizers` panics on some malformed files.
fn guard<T>(
    work: impl FnOnce() -> std::result::Result<T, String>,
) -> std::result::Result<T, String> {
    let before = GUARDED.replace(true);
    // Nothing that `work` could leave half done is used after a panic: the tokenizer under construction is dropped, and
    // an encoding touches only caches that the crate guards itself.
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
    GUARDED.set(before);
    outcome.unwrap_or_else(|_| {
        Err("the file is malformed (its tables contradict each other)".to_string())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_of_foreign_code_becomes_an_error() {
        assert_eq!(guard(|| Ok(1)), Ok(1));
        assert!(!panic_is_caught());
        let outcome: std::result::Result<(), String> = guard(|| {
            assert!(panic_is_caught());
            std::panic::resume_unwind(Box::new("malformed"))
        });
        assert!(outcome.unwrap_err().contains("malformed"));
        assert!(!panic_is_caught());
    }

    #[test]
    fn cuts_fall_on_characters() {
        assert_eq!(
            (0..=5).map(|i| boundary("a\u{72d0}b", i)).collect::<Vec<_>>(),
            [0, 1, 1, 1, 4, 5]
        );
        assert_eq!(boundary("ab", 9), 2);
    }

    #[test]
    fn the_byte_alphabet_has_every_byte_once() {
        let mut characters = byte_characters();
        assert_eq!((characters.len(), characters[0], characters[255]), (256, '!', '\u{143}'));
        characters.sort();
        characters.dedup();
        assert_eq!(characters.len(), 256);
    }
}
