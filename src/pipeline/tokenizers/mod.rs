//! Prompts to token ids for CLIP, T5 and Qwen3. All tokenizers are part of the binary; files in the
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

/// Qwen3's padding, which is also the first id that is not a piece of text.
pub const QWEN3_PAD: u32 = 151_643;
/// The chat template of FLUX.2 \[klein\] before the words `user`, a line feed and the prompt:
/// `<|im_start|>`.
const QWEN3_START: [u32; 1] = [151_644];
/// The template behind the prompt, with an empty thought: `<|im_end|>`, `<|im_start|>assistant`,
/// `<think>`, `</think>` and line feeds.
const QWEN3_END: [u32; 9] = [151_645, 198, 151_644, 77_091, 198, 151_667, 271, 151_668, 271];

/// Token ids of one prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ids {
    /// All ids, padding included.
    pub ids: Vec<u32>,
    /// How many of them are not padding. Those that mark the begin and the end of a prompt are
    /// counted.
    pub real: usize,
    /// The end of the prompt that was cut off because the prompt is too long, as the user wrote it;
    /// empty if nothing was cut.
    pub cut: String,
}

/// The tokenizers of FLUX.1: CLIP's and T5's.
///
/// Each path is a `tokenizer.json`, or a folder that may contain one (for CLIP and Qwen3 also a
/// `merges.txt`). Where a folder contains neither, or there is no path, the built-in tokenizer is
/// used: all models of a family share it.
pub struct Tokenizers {
    clip: Building,
    t5: Building,
}

impl Tokenizers {
    /// Begins to build both, each in a thread of its own, while the caller opens the model; the
    /// first use waits for them.
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
        let frame = Frame {
            length: CLIP_LENGTH,
            start: &[CLIP_START],
            before: "",
            end: &[CLIP_END],
            keeps_end: true,
            pad: CLIP_END,
        };
        self.clip.get()?.ids(text, &frame)
    }

    /// `text` for T5: `length` ids (at least 1), which are the pieces of the text, the end mark,
    /// and zeros as padding.
    pub fn t5_ids(&self, text: &str, length: usize) -> Result<Ids> {
        let (end, pad) = (&[T5_END], T5_PAD);
        let frame = Frame { length, start: &[], before: "", end, keeps_end: true, pad };
        self.t5.get()?.ids(text, &frame)
    }
}

/// Qwen3's tokenizer with the template of FLUX.2 \[klein\]; see [`Tokenizers`] for paths.
pub struct Qwen3Tokenizer(Building);

impl Qwen3Tokenizer {
    /// Begins to build it in a thread of its own; the first use waits for it.
    ///
    /// # Errors
    /// [`Kind::Model`](crate::error::Kind::Model) if a file is not Qwen3's tokenizer.
    pub fn load(path: Option<&Path>) -> Result<Self> {
        let path = path.and_then(|path| file_in(path, &["tokenizer.json", "merges.txt"]));
        let given = path.is_some();
        let tokenizer = Building::start(move || Coder::qwen3(path));
        if given {
            tokenizer.get()?;
        }
        Ok(Qwen3Tokenizer(tokenizer))
    }

    /// `text` in the chat template: `length` ids, which are a mark, `user`, a line feed, the pieces
    /// of the text, the marks that begin an answer, and padding. A text that is too long is cut
    /// with the marks behind it, as the reference does. Marks in the text are read as text.
    pub fn ids(&self, text: &str, length: usize) -> Result<Ids> {
        let frame = Frame {
            length,
            start: &QWEN3_START,
            before: "user\n",
            end: &QWEN3_END,
            keeps_end: false,
            pad: QWEN3_PAD,
        };
        self.0.get()?.ids(text, &frame)
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
