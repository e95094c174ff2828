//! What a FLUX.1 model reads besides the prompt, from its tensors and its name.

use crate::library::networks;
use crate::message::Message;
use crate::model::FluxConfig;

/// What a FLUX.1 transformer was trained to read besides the prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flux1Kind {
    /// Nothing: \[dev\], \[schnell\], Krea and their fine-tunes.
    TextToImage,
    /// Reference images: Kontext.
    Kontext,
    /// An image, and the mask of what is to be repainted: Fill.
    Fill,
    /// The edges of an image: Canny.
    Canny,
    /// How far away each pixel is: Depth.
    Depth,
    /// A control image of another kind, by the name of the model.
    Control,
}

impl Flux1Kind {
    /// From the inputs and outputs of the transformer, and from what the model is called: tensors
    /// do not tell Canny from Depth, nor Kontext from \[dev\].
    pub fn of(config: &FluxConfig, called: &[String]) -> Flux1Kind {
        let (inputs, outputs) = (config.in_channels, config.out_channels);
        if inputs == outputs {
            return match called.iter().any(|name| name.contains("kontext")) {
                true => Flux1Kind::Kontext,
                false => Flux1Kind::TextToImage,
            };
        }
        if networks::mask_factor(inputs, outputs).is_some() {
            return Flux1Kind::Fill;
        }
        Flux1Kind::control(|word| called.iter().any(|name| names(name, word)))
    }

    /// That of control LoRAs with these file names, in lower case.
    pub fn of_loras(called: &[String]) -> Flux1Kind {
        Flux1Kind::control(|word| called.iter().any(|name| name.contains(word)))
    }

    fn control(is: impl Fn(&str) -> bool) -> Flux1Kind {
        match () {
            () if is("canny") => Flux1Kind::Canny,
            () if is("depth") => Flux1Kind::Depth,
            () => Flux1Kind::Control,
        }
    }

    /// Whether it needs a control image.
    pub fn is_control(self) -> bool {
        matches!(self, Flux1Kind::Canny | Flux1Kind::Depth | Flux1Kind::Control)
    }

    /// Guidance and steps, from the reference code.
    pub fn defaults(self) -> (f32, usize) {
        match self {
            Flux1Kind::TextToImage => (3.5, 28),
            Flux1Kind::Kontext => (2.5, 30),
            Flux1Kind::Fill | Flux1Kind::Canny | Flux1Kind::Control => (30.0, 50),
            Flux1Kind::Depth => (10.0, 50),
        }
    }

    /// The most tokens of a T5 prompt of a model with guidance.
    pub fn text_tokens(self) -> usize {
        if self == Flux1Kind::Fill { 128 } else { 512 }
    }

    /// What the user should know about the choice.
    pub fn note(self, called: &[String], name: &str) -> Option<Message> {
        let by_name = |what: &str| {
            let parts = [Message::plain(name), Message::plain(what)];
            Some(Message::with("{} is FLUX.1 {} by its name", parts))
        };
        match self {
            Flux1Kind::TextToImage => editing_note(called, name),
            Flux1Kind::Kontext => by_name("Kontext"),
            Flux1Kind::Canny => by_name("Canny"),
            Flux1Kind::Depth => by_name("Depth"),
            Flux1Kind::Control => Some(Message::with(
                "{} has the inputs of FLUX.1 Canny and Depth, and its name says neither: the image \
                 of {control} is used as it is",
                [Message::plain(name)],
            )),
            Flux1Kind::Fill => None,
        }
    }
}

/// Says that a model that is called like one with an image as input is used as text to image.
fn editing_note(called: &[String], name: &str) -> Option<Message> {
    // The transformers of these have more inputs; this one has not.
    let others = [("fill", "Fill"), ("canny", "Canny"), ("depth", "Depth")];
    let (_, other) = others.into_iter().find(|(word, _)| called.iter().any(|c| names(c, word)))?;
    Some(Message::with(
        "{} is FLUX.1 {} by its name, but its transformer has the inputs of a text-to-image model: \
         it draws from the prompt, without a mask or a control image",
        [Message::plain(name), Message::plain(other)],
    ))
}

/// Whether `called` names the FLUX model `word`: `flux1-fill-dev`, `FluxFillPipeline`.
fn names(called: &str, word: &str) -> bool {
    let mut words = called.split(|c: char| !c.is_ascii_alphanumeric());
    let is_pipeline = || called.starts_with(&format!("flux{word}"));
    called.contains("flux") && (words.any(|w| w == word) || is_pipeline())
}
