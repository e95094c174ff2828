//! What was read from the text of any program, before it is checked.

use serde_json::Value;

use super::Provenance;
use crate::error::{Error, Result};
use crate::pipeline::request::{LoraChoice, MAX_SIDE, MIN_SIDE, Settings};

/// How many values that are not used are listed by name.
const MAX_LISTED: usize = 24;
/// How many characters of such a value are shown.
const MAX_SHOWN: usize = 60;

/// The program that wrote a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writer {
    /// This one.
    Own,
    /// AUTOMATIC1111's Web UI.
    Automatic1111,
    /// Its successor Forge.
    Forge,
    /// stable-diffusion.cpp.
    StableDiffusionCpp,
    /// ComfyUI.
    ComfyUi,
    /// SD.Next.
    SdNext,
    /// The generator of civitai.com.
    Civitai,
    /// InvokeAI.
    InvokeAi,
    /// SwarmUI.
    SwarmUi,
    /// Draw Things.
    DrawThings,
    /// mflux.
    Mflux,
    /// Not known.
    Unknown,
}

impl Writer {
    /// Its name for messages.
    pub fn name(self) -> &'static str {
        match self {
            Writer::Own => "flux-fast",
            Writer::Automatic1111 => "AUTOMATIC1111",
            Writer::Forge => "Forge",
            Writer::StableDiffusionCpp => "stable-diffusion.cpp",
            Writer::ComfyUi => "ComfyUI",
            Writer::SdNext => "SD.Next",
            Writer::Civitai => "Civitai",
            Writer::InvokeAi => "InvokeAI",
            Writer::SwarmUi => "SwarmUI",
            Writer::DrawThings => "Draw Things",
            Writer::Mflux => "mflux",
            Writer::Unknown => "another program",
        }
    }

    /// Whether what it calls CFG scale is the distilled guidance where FLUX.1 is concerned. They
    /// pass it to diffusers' pipeline, whose `guidance_scale` is that.
    pub fn cfg_is_distilled(self) -> bool {
        matches!(self, Writer::SdNext | Writer::Civitai)
    }

    /// Whether its noise comes from a generator on the GPU unless it says otherwise.
    pub fn noise_is_from_the_gpu(self) -> bool {
        matches!(
            self,
            Writer::Automatic1111
                | Writer::Forge
                | Writer::StableDiffusionCpp
                | Writer::SdNext
                | Writer::Civitai
                | Writer::DrawThings
                | Writer::Mflux
                | Writer::Unknown
        )
    }
}

/// What a text says, in the labels of [`Settings`].
#[derive(Debug)]
pub struct Reading {
    pub writer: Writer,
    pub prompt: Option<String>,
    pub negative: Option<String>,
    pub model: String,
    pub model_hash: String,
    /// The LoRAs of other programs; this program's own are among the values.
    pub loras: Vec<LoraChoice>,
    pub lora_hashes: Vec<String>,
    pub controlnet_hashes: Vec<String>,
    /// The number of the image in its batch, from 0.
    pub index: Option<usize>,
    /// Names and values that have no meaning here.
    pub unused: Vec<(String, String)>,
    values: Vec<(&'static str, String)>,
    notes: Vec<String>,
}

impl Reading {
    pub fn new(writer: Writer) -> Self {
        Reading {
            writer,
            prompt: None,
            negative: None,
            model: String::new(),
            model_hash: String::new(),
            loras: vec![],
            lora_hashes: vec![],
            controlnet_hashes: vec![],
            index: None,
            unused: vec![],
            values: vec![],
            notes: vec![],
        }
    }

    /// Sets the parameter with this label, unless it is set already.
    pub fn set(&mut self, label: &'static str, value: impl Into<String>) {
        if self.get(label).is_none() {
            self.values.push((label, value.into()));
        }
    }

    /// The value of the parameter with this label.
    pub fn get(&self, label: &str) -> Option<&str> {
        self.values.iter().find(|(l, _)| *l == label).map(|(_, value)| value.as_str())
    }

    /// Adds a line for the user.
    pub fn note(&mut self, text: String) {
        if !self.notes.contains(&text) {
            self.notes.push(text);
        }
    }

    /// Notes that the noise is another program's.
    pub fn other_noise(&mut self, what: &str) {
        self.note(format!(
            "{} drew from other noise ({}): the image will differ",
            self.writer.name(),
            short(what)
        ));
    }

    /// Notes that the sampler or its schedule is one that this program does not have.
    pub fn other_sampler(&mut self, what: &str) {
        self.note(format!(
            "the sampler {} is not available, Euler with the model's own schedule is used: the \
             image will differ",
            short(what.trim())
        ));
    }

    /// Adds a LoRA by the name that another program knows it by: a name that is looked up, never a
    /// path. `text` is its strength for the text encoders, if it is another one.
    pub fn lora(&mut self, name: &str, strength: f32, text: Option<f32>) {
        let text_strength = text.filter(|text| *text != strength);
        let plain = LoraChoice::new(name.trim().replace('\\', "/"), strength);
        self.loras.push(LoraChoice { tag: true, text_strength, ..plain });
    }

    /// Checks the values. `size` is that of the image, for a text that does not say it.
    ///
    /// # Errors
    /// [`Kind::Argument`](crate::error::Kind::Argument) if a required value is missing or one is
    /// bad.
    pub fn finish(mut self, size: Option<(usize, usize)>) -> Result<Provenance> {
        if self.writer != Writer::Own {
            if let Some((width, height)) = size {
                self.set("Width", width.to_string());
                self.set("Height", height.to_string());
            }
            self.whole_numbers();
            self.possible_size();
        }
        if self.prompt.is_none() {
            return Err(Error::argument("the image's metadata has no prompt")
                .try_("{prompt} with the prompt"));
        }
        let settings = Settings::from_labelled(|label| match label {
            "Negative" => self.negative.clone(),
            _ => self.get(label).map(str::to_string),
        })?;
        let mut settings = Settings {
            prompt: self.prompt.take().unwrap_or_default().into(),
            model: std::mem::take(&mut self.model),
            model_hash: std::mem::take(&mut self.model_hash),
            lora_hashes: std::mem::take(&mut self.lora_hashes),
            controlnet_hashes: std::mem::take(&mut self.controlnet_hashes),
            ..settings
        };
        settings.loras.append(&mut self.loras);
        if !self.unused.is_empty() {
            let text = listed(&self.unused);
            self.note(format!("not used: {text}"));
        }
        Ok(Provenance { settings, writer: self.writer, index: self.index, notes: self.notes })
    }
}

impl Reading {
    /// Other programs write whole numbers as `20.0`, too.
    fn whole_numbers(&mut self) {
        /// Above this, not every whole number is an f64.
        const MOST: f64 = (1u64 << 53) as f64;
        for (label, value) in &mut self.values {
            let is_whole = ["Steps", "Seed", "Width", "Height", "Batch size"].contains(label);
            let number = value.trim().parse::<f64>().ok();
            let number = number.filter(|n| n.fract() == 0.0 && (0.0..=MOST).contains(n));
            if let (true, true, Some(number)) = (is_whole, value.contains(['.', 'e', 'E']), number)
            {
                *value = (number as u64).to_string();
            }
        }
    }

    /// Other programs draw in sizes that are not multiples of 16, or enlarge and cut the image.
    fn possible_size(&mut self) {
        const UNIT: usize = 16;
        let side = |label| self.get(label)?.trim().parse::<usize>().ok();
        let (Some(width), Some(height)) = (side("Width"), side("Height")) else { return };
        let near = |side: usize| match side {
            1..=MAX_SIDE => (side + UNIT / 2) / UNIT * UNIT,
            // Refused as any other number.
            side => side,
        };
        let (w, h) = (near(width).max(MIN_SIDE), near(height).max(MIN_SIDE));
        if (w, h) == (width, height) || width == 0 || height == 0 {
            return;
        }
        self.note(format!(
            "the size {width}x{height} is not a multiple of {UNIT}: {w}x{h} is used, so the image \
             will differ"
        ));
        for (label, value) in &mut self.values {
            match *label {
                "Width" => *value = w.to_string(),
                "Height" => *value = h.to_string(),
                _ => {}
            }
        }
    }
}

/// Names and values, as far as they fit in a message.
fn listed(values: &[(String, String)]) -> String {
    let some = values.iter().take(MAX_LISTED);
    let mut text: Vec<String> =
        some.map(|(name, value)| format!("{} {}", short(name), short(value))).collect();
    if values.len() > MAX_LISTED {
        text.push(format!("and {} more", values.len() - MAX_LISTED));
    }
    text.join(", ")
}

/// The start of `text` if it is long.
fn short(text: &str) -> String {
    match text.char_indices().nth(MAX_SHOWN) {
        None => text.to_string(),
        Some((cut, _)) => format!("{}...", &text[..cut]),
    }
}

/// A number, or a text that may be one.
pub fn scalar(value: &Value) -> Option<String> {
    match value {
        // Floats of whole numbers must be read as whole numbers, too: 20.0 steps.
        Value::Number(number) => match number.as_f64() {
            Some(x) if number.is_f64() && x.fract() == 0.0 && x.abs() < 1e15 => {
                Some(format!("{x:.0}"))
            }
            _ => Some(number.to_string()),
        },
        Value::String(text) => Some(text.trim().to_string()),
        _ => None,
    }
}
