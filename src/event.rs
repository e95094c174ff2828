//! Events of a running generation: progress bars, servers and tests receive the same ones.

use crate::message::Message;

/// The phases of one generation, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Phase {
    /// Prompt to embeddings (CLIP and T5).
    TextEncode,
    /// Style images to tokens like those of a prompt (FLUX.1 Redux).
    StyleEncode,
    /// Image to latents (image-to-image only).
    ImageEncode,
    /// Shifts, scales and gates of all steps, in one pass.
    Modulate,
    /// Keys and values of reference images, for all steps (FLUX.2 \[klein\] 9B-kv only).
    References,
    /// The transformer, once per step.
    Denoise,
    /// Latents to pixels.
    Decode,
}

impl Phase {
    /// All phases, in order.
    pub const ALL: [Phase; 7] = [
        Phase::TextEncode,
        Phase::StyleEncode,
        Phase::ImageEncode,
        Phase::Modulate,
        Phase::References,
        Phase::Denoise,
        Phase::Decode,
    ];

    /// The name that is shown to users.
    pub fn name(self) -> &'static str {
        match self {
            Phase::TextEncode => "text",
            Phase::StyleEncode => "style",
            Phase::ImageEncode => "image",
            Phase::Modulate => "modulate",
            Phase::References => "references",
            Phase::Denoise => "denoise",
            Phase::Decode => "decode",
        }
    }
}

/// Something happened. The receiver returns [`ControlFlow::Break`](std::ops::ControlFlow::Break) to
/// cancel at the next operation.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Event {
    /// A message for the user that is not an error: a default that was used, a file that was found.
    Note(Message),
    /// A message about something that the user probably did not intend.
    Warning(Message),
    /// A phase begins.
    PhaseStart {
        /// Which one.
        phase: Phase,
        /// The most [`Event::Step`]s that it will send.
        steps: usize,
    },
    /// One step of a phase is finished.
    Step {
        /// The phase.
        phase: Phase,
        /// The steps that are finished.
        done: usize,
        /// All steps of the phase.
        steps: usize,
        /// The time that this step took.
        seconds: f64,
    },
    /// After a denoising step except the last: about what the first image will be, one pixel per
    /// latent pixel (an eighth of the image's size with FLUX.1).
    Preview {
        /// Columns.
        width: usize,
        /// Rows.
        height: usize,
        /// `height * width * 3` bytes, row-major, top row first.
        rgb: Vec<u8>,
    },
    /// Within a step: there is nothing to show, but the generation can be cancelled here.
    Tick,
    /// A phase is finished.
    PhaseEnd {
        /// Which one.
        phase: Phase,
        /// The time that it took.
        seconds: f64,
        /// The most bytes that its plan uses at a time, activations and weights together.
        peak_bytes: u64,
    },
}

impl Event {
    /// [`Event::Note`] of a template or a text: see [`Message`].
    pub fn note(text: impl Into<Message>) -> Event {
        Event::Note(text.into())
    }

    /// [`Event::Warning`] of a template or a text: see [`Message`].
    pub fn warning(text: impl Into<Message>) -> Event {
        Event::Warning(text.into())
    }
}
