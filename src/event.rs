//! What a running generation tells: one enum for the progress bar, a server's stream and the tests.

/// The phases of one generation, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Phase {
    /// Prompt to embeddings (CLIP and T5).
    TextEncode,
    /// Picture to latents (image-to-image only).
    ImageEncode,
    /// Every step's shift, scale and gate, in one pass.
    Modulate,
    /// The transformer, once a step.
    Denoise,
    /// Latents to pixels, in tiles.
    Decode,
}

impl Phase {
    /// The word shown to people.
    pub fn name(self) -> &'static str {
        match self {
            Phase::TextEncode => "text",
            Phase::ImageEncode => "image",
            Phase::Modulate => "modulate",
            Phase::Denoise => "denoise",
            Phase::Decode => "decode",
        }
    }
}

/// Something happened. The receiver answers `ControlFlow::Break` to cancel at the next operation.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A line for the user that is no error: a default taken, a file found, a prompt cut.
    Note(String),
    /// Like `Note`, but worth a second look.
    Warning(String),
    /// A phase begins; `steps` is how many `Step` events it will have at most.
    PhaseStart { phase: Phase, steps: usize },
    /// `done` of the phase's `steps` are finished; `seconds` is how long this one took.
    Step { phase: Phase, done: usize, steps: usize, seconds: f64 },
    /// Within a step: nothing to show, but a moment at which `Break` is heeded.
    Tick,
    /// A phase is over; `peak_bytes` is what its plan holds at most (arena and weights together).
    PhaseEnd { phase: Phase, seconds: f64, peak_bytes: u64 },
}
