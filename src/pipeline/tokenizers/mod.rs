//! Prompts to token ids for CLIP and T5. Both tokenizers are part of the binary; files in the
//! model's folder replace them.
//!
//! Only the parts of a `tokenizer.json` that split text into pieces are used: the normalizer, the
//! pre-tokenizer and the model. Added tokens, templates, padding and truncation are done here, so a
//! prompt that contains `</s>` or `<|endoftext|>` is read as text.

mod build;
mod coder;
mod guard;
mod normalizer;

pub use coder::try_json;
pub use guard::panic_is_caught;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;

use self::coder::{Coder, Frame};
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

/// Token ids of one prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ids {
    /// All ids, padding included.
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
    /// Begins to build both, each in a thread of its own, while the caller opens the model; the
    /// first use waits for them. Each path is a `tokenizer.json`, or a folder that may contain one
    /// (for CLIP also a `merges.txt`). Where a folder contains neither, or there is no path, the
    /// built-in tokenizer is used: all FLUX.1 models share it.
    ///
    /// # Errors
    /// [`Kind::Model`](crate::error::Kind::Model) if a file is not the tokenizer that it should be.
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

    /// `text` for CLIP: [`CLIP_LENGTH`] ids, which are the start mark, the pieces of the text, the
    /// end mark, and more end marks as padding.
    pub fn clip_ids(&self, text: &str) -> Result<Ids> {
        let frame =
            Frame { length: CLIP_LENGTH, start: Some(CLIP_START), end: CLIP_END, pad: CLIP_END };
        self.clip.get()?.ids(text, &frame)
    }

    /// `text` for T5: `length` ids (at least 1), which are the pieces of the text, the end mark,
    /// and zeros as padding.
    pub fn t5_ids(&self, text: &str, length: usize) -> Result<Ids> {
        let frame = Frame { length, start: None, end: T5_END, pad: T5_PAD };
        self.t5.get()?.ids(text, &frame)
    }
}

/// A tokenizer that a thread builds.
struct Building {
    thread: Mutex<Option<JoinHandle<Result<Coder>>>>,
    built: OnceLock<Result<Coder>>,
}

impl Building {
    fn start(build: impl FnOnce() -> Result<Coder> + Send + 'static) -> Self {
        // If the system starts no more threads, nothing is built: `get` reports that.
        let thread = std::thread::Builder::new().name("tokenizer".into()).spawn(build);
        let built = OnceLock::new();
        if let Err(e) = &thread {
            let e = Error::device(format!("a thread cannot be started: {e}"));
            let hint = "raise the limits of the process (ulimit -u, ulimit -v)";
            built.set(Err(e.try_(hint))).ok();
        }
        Building { thread: Mutex::new(thread.ok()), built }
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

/// `path` itself, or if it is a folder the first of `names` that is a file in it.
fn file_in(path: &Path, names: &[&str]) -> Option<PathBuf> {
    if path.is_dir() {
        names.iter().map(|n| path.join(n)).find(|p| p.is_file())
    } else {
        Some(path.to_path_buf())
    }
}
