//! One tokenizer: built from its file, checked, and used to encode text.

use std::path::{Path, PathBuf};

use tokenizers::Tokenizer;

use super::build::{
    clip_from_json, clip_from_merges, qwen3_from_json, qwen3_from_merges, t5_from_json,
};
use super::guard::guard;
use super::normalizer::check_growth;
use super::{CLIP_END, CLIP_START, Ids, QWEN3_PAD};
use crate::error::{Error, Result};
use crate::host::read_regular;

/// The largest file that is read, in bytes. T5's own `tokenizer.json` has 2.4 MB, Qwen3's 11.4 MB.
const MAX_FILE_BYTES: u64 = 16 << 20;
/// Rows of T5's embedding; a larger id would read past the table.
const T5_ROWS: usize = 32128;

const CLIP_MERGES: &str = include_str!("../../../assets/tokenizers/clip-merges.txt");
const QWEN3_MERGES: &str = include_str!("../../../assets/tokenizers/qwen3-merges.txt");
const T5_JSON: &str = include_str!("../../../assets/tokenizers/t5-tokenizer.json");

/// One tokenizer and where it came from.
pub struct Coder {
    tokenizer: Tokenizer,
    /// For messages; `None` is the built-in one.
    path: Option<PathBuf>,
}

/// What is around the ids of a text.
pub struct Frame<'a> {
    /// How many ids are made, marks and padding included.
    pub length: usize,
    /// Marks before the text.
    pub start: &'a [u32],
    /// Words before the text, which are read together with it.
    pub before: &'a str,
    /// Marks after the text.
    pub end: &'a [u32],
    /// A long text is cut so that the end marks have room; otherwise the marks are cut first.
    pub keeps_end: bool,
    /// After the end marks, up to the length.
    pub pad: u32,
}

/// Builds each tokenizer from the bytes of one `tokenizer.json`, CLIP's first, then T5's and
/// Qwen3's: for tests with malformed files.
#[doc(hidden)]
pub fn try_json(bytes: Vec<u8>) -> (Result<()>, Result<()>, Result<()>) {
    let path = Path::new("tokenizer.json");
    match text_of(bytes, path) {
        Ok(text) => {
            let clip = Coder::checked_clip(clip_from_json(&text), Some(path.into()));
            let t5 = Coder::checked_t5(t5_from_json(&text), Some(path.into()));
            let qwen3 = Coder::checked_qwen3(qwen3_from_json(&text), Some(path.into()));
            (clip.map(drop), t5.map(drop), qwen3.map(drop))
        }
        Err(e) => (Err(e.clone()), Err(e.clone()), Err(e)),
    }
}

impl Coder {
    /// CLIP's tokenizer from a `tokenizer.json` or a `merges.txt`, or the built-in one.
    pub fn clip(path: Option<PathBuf>) -> Result<Self> {
        let Some(path) = path else {
            return Coder::checked_clip(clip_from_merges(CLIP_MERGES), None);
        };
        let text = read(&path)?;
        let merges = path.extension().is_some_and(|e| e == "txt");
        let built = if merges { clip_from_merges(&text) } else { clip_from_json(&text) };
        Coder::checked_clip(built, Some(path))
    }

    /// T5's tokenizer from a `tokenizer.json`, or the built-in one.
    pub fn t5(path: Option<PathBuf>) -> Result<Self> {
        match path {
            None => Coder::checked_t5(t5_from_json(T5_JSON), None),
            Some(path) => Coder::checked_t5(t5_from_json(&read(&path)?), Some(path)),
        }
    }

    /// Qwen3's tokenizer from a `tokenizer.json` or a `merges.txt`, or the built-in one.
    pub fn qwen3(path: Option<PathBuf>) -> Result<Self> {
        let Some(path) = path else {
            return Coder::checked_qwen3(qwen3_from_merges(QWEN3_MERGES), None);
        };
        let text = read(&path)?;
        let merges = path.extension().is_some_and(|e| e == "txt");
        let built = if merges { qwen3_from_merges(&text) } else { qwen3_from_json(&text) };
        Coder::checked_qwen3(built, Some(path))
    }

    fn checked_qwen3(built: Result<Tokenizer, String>, path: Option<PathBuf>) -> Result<Self> {
        let coder = Coder::new(built, path)?;
        // Words of the template, whose other ids are fixed.
        for (piece, id) in [("user", 872), ("assistant", 77091), ("\u{10a}", 198)] {
            coder.has(piece, id, "this is not Qwen3's tokenizer")?;
        }
        coder.probed(QWEN3_PAD as usize)
    }

    fn checked_clip(built: Result<Tokenizer, String>, path: Option<PathBuf>) -> Result<Self> {
        let coder = Coder::new(built, path)?;
        // The tokenizer of another model would give ids of other words, without any other sign.
        for (mark, id) in [("<|startoftext|>", CLIP_START), ("<|endoftext|>", CLIP_END)] {
            coder.has(mark, id, "this is not CLIP's tokenizer")?;
        }
        coder.probed(CLIP_END as usize + 1)
    }

    /// Checks that `piece` has this id.
    fn has(&self, piece: &str, id: u32, otherwise: &str) -> Result<()> {
        let found = self.tokenizer.token_to_id(piece);
        if found == Some(id) {
            return Ok(());
        }
        let found = found.map_or("nothing".to_string(), |id| id.to_string());
        Err(self.unusable(otherwise).found(format!("{piece} as {found}")).expected(id))
    }

    fn checked_t5(built: Result<Tokenizer, String>, path: Option<PathBuf>) -> Result<Self> {
        Coder::new(built, path)?.probed(T5_ROWS)
    }

    fn new(built: Result<Tokenizer, String>, path: Option<PathBuf>) -> Result<Self> {
        match built {
            Ok(tokenizer) => Ok(Coder { tokenizer, path }),
            Err(why) => Err(unusable(path.as_deref(), why)),
        }
    }

    /// Encodes a line of each script that normalizers treat separately, so that a table which would
    /// fail at some prompt more likely fails now, with the file's name; and refuses ids that are
    /// not below `rows`, the rows of the embedding.
    fn probed(self, rows: usize) -> Result<Self> {
        let size = self.tokenizer.get_vocab_size(true);
        if size > rows {
            return Err(self
                .unusable("the tokenizer has more pieces than the text encoder")
                .found(size)
                .expected(rows));
        }
        for text in
            ["a photo of a Cat, 3 \u{ff21}\u{fb01} \u{1f98a}", "\u{72d0} na\u{308}ive\n\u{0}"]
        {
            let pieces = self.pieces(text)?;
            if pieces.is_empty() || pieces.iter().any(|&(id, _)| id as usize >= rows) {
                return Err(self
                    .unusable("the tokenizer's ids do not fit the text encoder")
                    .expected(format!("1 to {rows}")));
            }
        }
        Ok(self)
    }

    fn unusable(&self, why: impl Into<String>) -> Error {
        unusable(self.path.as_deref(), why)
    }

    /// Ids of `text`, each with the byte offset in `text` at which it begins.
    fn pieces(&self, text: &str) -> Result<Vec<(u32, usize)>> {
        let encoding = guard(|| {
            check_growth(self.tokenizer.get_normalizer(), text)?;
            self.tokenizer.encode(text, false).map_err(|e| e.to_string())
        });
        let encoding = encoding
            .map_err(|why| self.unusable(format!("the tokenizer cannot read the prompt: {why}")))?;
        let offsets = encoding.get_offsets().iter().map(|&(begin, _)| begin);
        Ok(encoding.get_ids().iter().copied().zip(offsets).collect())
    }

    /// The ids of `text` within `frame`; text that has no room is cut off.
    pub fn ids(&self, text: &str, frame: &Frame) -> Result<Ids> {
        let end = if frame.keeps_end { frame.end.len() } else { 0 };
        let room = frame.length.saturating_sub(frame.start.len() + end);
        let whole = format!("{}{text}", frame.before);
        let pieces = self.pieces(&whole)?;
        let cut = match pieces.get(room) {
            Some(&(_, begin)) => {
                let begin = boundary(&whole, begin).max(frame.before.len());
                whole[begin..].trim_start().to_string()
            }
            None => String::new(),
        };
        let mut ids = frame.start.to_vec();
        ids.extend(pieces.iter().take(room).map(|&(id, _)| id));
        ids.extend(frame.end);
        if !frame.keeps_end {
            ids.truncate(frame.length);
        }
        let real = ids.len();
        ids.resize(frame.length.max(real), frame.pad);
        Ok(Ids { ids, real, cut })
    }
}

/// The last character boundary of `text` at or before `index`.
fn boundary(text: &str, index: usize) -> usize {
    (0..=index.min(text.len())).rev().find(|&i| text.is_char_boundary(i)).unwrap_or(0)
}

fn read(path: &Path) -> Result<String> {
    let failed = |e: std::io::Error| {
        let kind =
            if e.kind() == std::io::ErrorKind::NotFound { Error::missing } else { Error::model };
        kind(format!("the tokenizer cannot be read: {e}"))
            .at_path(path)
            .try_("give a tokenizer.json, or leave it out")
    };
    // A model file in this place must not be read into memory.
    text_of(read_regular(path, MAX_FILE_BYTES).map_err(failed)?, path)
}

fn text_of(bytes: Vec<u8>, path: &Path) -> Result<String> {
    String::from_utf8(bytes).map_err(|_| unusable(Some(path), "the tokenizer is not text (UTF-8)"))
}

fn unusable(path: Option<&Path>, why: impl Into<String>) -> Error {
    let error = Error::model(why);
    match path {
        Some(path) => {
            let hint = "use the model's own tokenizer, or leave it out: it is built in";
            error.at_path(path).try_(hint)
        }
        None => error.at("built-in tokenizer"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_cut_at_character_boundaries() {
        assert_eq!(
            (0..=5).map(|i| boundary("a\u{72d0}b", i)).collect::<Vec<_>>(),
            [0, 1, 1, 1, 4, 5]
        );
        assert_eq!(boundary("ab", 9), 2);
    }
}
