//! What a user asks for, and what comes out. Plain data: front ends fill it in, `Pipeline::generate` checks it against the model.

use super::loras::split_tags;
use crate::backend::{Compute, Device, KernelChoice};
use crate::error::{Error, Result};

/// RGB pixels, 8 bit, row-major, top row first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    pub width: usize,
    pub height: usize,
    /// `height * width * 3` bytes.
    pub rgb: Vec<u8>,
}

/// The picture that image-to-image starts from, already in memory; it is resized to the request's size.
#[derive(Debug, Clone, PartialEq)]
pub struct InitImage {
    pub picture: Picture,
    /// 0 keeps the picture, 1 ignores it.
    pub strength: f32,
}

/// A LoRA and how much of it.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraChoice {
    /// A path, or a name that is looked up where LoRAs lie; of a tag, only such a name.
    pub name: String,
    /// 0 leaves the picture as it is without, 1 is what it was trained for, negative turns it around.
    pub weight: f32,
    /// It stood in the prompt: `<lora:name:weight>`.
    pub tag: bool,
}

impl LoraChoice {
    /// The weight as it was typed: 0.8, where its f32 is 0.800000011920929.
    pub fn plain_weight(&self) -> f64 {
        self.weight.to_string().parse().unwrap_or(f64::from(self.weight))
    }

    /// What was typed, for messages.
    pub fn place(&self) -> String {
        if self.tag { format!("<lora:{}>", self.name) } else { format!("--lora {}", self.name) }
    }
}

/// One generation. `None` means the model's own default.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Request {
    pub prompt: String,
    /// Used only with true CFG (`cfg_scale` other than 1).
    pub negative: Option<String>,
    /// How many pictures; all from one noise stream, as ComfyUI draws a batch.
    pub count: Option<usize>,
    pub steps: Option<usize>,
    /// Drawn at random when absent, and reported.
    pub seed: Option<u64>,
    /// Pixels, a multiple of 16.
    pub width: Option<usize>,
    pub height: Option<usize>,
    /// Distilled guidance; ignored (and said so) by models without a guidance embedding.
    pub guidance: Option<f32>,
    /// True classifier-free guidance; 1 is off.
    pub cfg_scale: Option<f32>,
    pub init: Option<InitImage>,
    /// LoRAs beside those that the prompt names as `<lora:name:weight>`; several beside one weight add up.
    pub loras: Vec<LoraChoice>,
}

/// A request with every default filled in: what is written into the image's metadata and what `again` reruns.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    pub prompt: String,
    pub negative: Option<String>,
    pub count: usize,
    pub steps: usize,
    pub seed: u64,
    pub width: usize,
    pub height: usize,
    pub guidance: Option<f32>,
    pub cfg_scale: f32,
    pub strength: Option<f32>,
    /// The model's name as shown, such as `flux-tiny` or `flux1-dev`.
    pub model: String,
    /// LoRAs that were asked for beside the prompt.
    pub loras: Vec<LoraChoice>,
    /// First ten hex digits of a hash over the weights' header, to recognise the file; empty if unknown.
    pub model_hash: String,
}

/// What a generation gives.
#[derive(Debug, Clone)]
pub struct Generated {
    pub pictures: Vec<Picture>,
    /// What was decoded: the final latents as packed tokens, picture after picture.
    pub latents: Vec<f32>,
    pub settings: Settings,
}

/// How the engine runs, apart from what it draws.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RunOptions {
    pub device: Device,
    /// Bound on device memory, in bytes; `None` is chosen from what is free.
    pub vram_bytes: Option<u64>,
    /// Bound on host memory, in bytes; `None` is chosen from what is free.
    pub ram_bytes: Option<u64>,
    pub compute: Compute,
    /// Forced kernel variants.
    pub kernels: Vec<KernelChoice>,
    /// Worker threads; `None` is one per core.
    pub threads: Option<usize>,
    /// Neither read nor write text embeddings in the cache folder.
    pub no_cache: bool,
}

/// The most pictures of one request.
pub const MAX_COUNT: usize = 64;
/// The most steps.
pub const MAX_STEPS: usize = 1000;
/// The shortest side, in pixels. Sides are also multiples of the model's token (16 pixels with FLUX.1), which the pipeline checks.
pub const MIN_SIDE: usize = 16;
/// The longest side, in pixels.
pub const MAX_SIDE: usize = 4096;
/// The most pixels: 2048 x 2048, as many as FLUX.1 was made for.
pub const MAX_PIXELS: usize = 2048 * 2048;
/// The most LoRAs of one request.
pub const MAX_LORAS: usize = 64;
/// The largest weight of a LoRA either way; far beyond 1 pictures are noise.
pub const MAX_LORA_WEIGHT: f32 = 100.0;
/// The most bytes of a prompt. T5 reads 512 pieces, some 2,500 bytes; what is longer is cut anyway, and this much still fits
/// into a JPEG's metadata, twice over.
pub const MAX_PROMPT_BYTES: usize = 10_000;
/// The largest guidance and CFG scale.
pub const MAX_SCALE: f32 = 100.0;

impl Request {
    /// Checks everything that can be checked without a model: every front end calls it, so that all refuse the same.
    /// `Kind::Argument`, with the parameter's name as its place. Nothing is rounded or clamped.
    pub fn check(&self) -> Result<()> {
        check_prompt("prompt", &self.prompt)?;
        check_prompt("negative", self.negative.as_deref().unwrap_or_default())?;
        check_whole("n", self.count, MAX_COUNT)?;
        check_whole("steps", self.steps, MAX_STEPS)?;
        check_side("width", self.width)?;
        check_side("height", self.height)?;
        if let (Some(width), Some(height)) = (self.width, self.height)
            && width * height > MAX_PIXELS
        {
            return Err(Error::argument("too many pixels")
                .at("size")
                .found(format!("{width}x{height}"))
                .expected(format!("at most {MAX_PIXELS} pixels (2048x2048)"))
                .try_("a smaller width or height"));
        }
        check_number("guidance", self.guidance, MAX_SCALE)?;
        check_number("cfg_scale", self.cfg_scale, MAX_SCALE)?;
        if let Some(init) = &self.init {
            check_number("strength", Some(init.strength), 1.0)?;
        }
        if !split_tags(self.negative.as_deref().unwrap_or_default())?.1.is_empty() {
            return Err(Error::argument(
                "the negative prompt names a LoRA, which has no effect there",
            )
            .at("negative")
            .try_("the tag in the prompt, with a negative weight if it is to be turned around"));
        }
        let tags = split_tags(&self.prompt)?.1;
        if self.loras.len() + tags.len() > MAX_LORAS {
            return Err(Error::argument("too many LoRAs")
                .at("lora")
                .found(self.loras.len() + tags.len())
                .expected(format!("at most {MAX_LORAS}")));
        }
        match self.loras.iter().find(|l| !(-MAX_LORA_WEIGHT..=MAX_LORA_WEIGHT).contains(&l.weight))
        {
            Some(lora) => Err(Error::argument("the weight of a LoRA is out of range")
                .at(lora.place())
                .found(lora.weight)
                .expected(format!("-{MAX_LORA_WEIGHT} to {MAX_LORA_WEIGHT}"))),
            None => Ok(()),
        }
    }
}

fn check_prompt(name: &str, prompt: &str) -> Result<()> {
    if prompt.len() > MAX_PROMPT_BYTES {
        return Err(Error::argument("the prompt is too long")
            .at(name)
            .found(format!("{} bytes", prompt.len()))
            .expected(format!("at most {MAX_PROMPT_BYTES}"))
            .try_("a shorter one: the model reads some 2,500 bytes at most"));
    }
    // Line breaks and tabs are space; other control characters mean nothing in a prompt, and the files that the settings are
    // written to cannot hold them.
    match prompt
        .char_indices()
        .find(|&(_, c)| c.is_ascii_control() && !matches!(c, '\n' | '\r' | '\t'))
    {
        None => Ok(()),
        Some((at, c)) => Err(Error::argument("the prompt holds a control character")
            .at(name)
            .found(format!("U+{:04X} at byte {at}", c as u32))
            .try_("the prompt without it")),
    }
}

fn check_whole(name: &str, value: Option<usize>, max: usize) -> Result<()> {
    match value {
        Some(v) if v == 0 || v > max => Err(Error::argument("out of range")
            .at(name)
            .found(v)
            .expected(format!("1 to {max}"))
            .try_("a number in that range")),
        _ => Ok(()),
    }
}

fn check_side(name: &str, value: Option<usize>) -> Result<()> {
    let Some(v) = value else { return Ok(()) };
    if (MIN_SIDE..=MAX_SIDE).contains(&v) {
        return Ok(());
    }
    Err(Error::argument("this size is not possible")
        .at(name)
        .found(v)
        .expected(format!("{MIN_SIDE} to {MAX_SIDE} pixels"))
        .try_("a size in that range"))
}

fn check_number(name: &str, value: Option<f32>, max: f32) -> Result<()> {
    match value {
        // NaN is in no range.
        Some(v) if !(0.0..=max).contains(&v) => Err(Error::argument("out of range")
            .at(name)
            .found(v)
            .expected(format!("0 to {max}"))
            .try_("a number in that range")),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(change: impl Fn(&mut Request)) -> String {
        let mut request = Request::default();
        change(&mut request);
        let error = request.check().expect_err("accepted");
        assert_eq!(error.kind(), crate::error::Kind::Argument);
        error.to_string()
    }

    #[test]
    fn defaults_and_limits_are_accepted() {
        Request::default().check().unwrap();
        let init =
            InitImage { picture: Picture { width: 1, height: 1, rgb: vec![0; 3] }, strength: 1.0 };
        let mut request = Request {
            prompt: "a".repeat(MAX_PROMPT_BYTES),
            negative: Some("tab\tand\r\nbreak".to_string()),
            count: Some(MAX_COUNT),
            steps: Some(MAX_STEPS),
            seed: Some(u64::MAX),
            width: Some(1024),
            height: Some(MAX_SIDE),
            guidance: Some(0.0),
            cfg_scale: Some(MAX_SCALE),
            init: Some(init),
            loras: vec![],
        };
        request.check().unwrap();
        (request.width, request.height) = (Some(2048), Some(2048));
        request.check().unwrap();
    }

    #[test]
    fn what_is_out_of_range_is_refused_by_name() {
        for v in [0, 1, 15, 4112, usize::MAX] {
            assert!(refused(|r| r.width = Some(v)).starts_with("width: "));
            assert!(refused(|r| r.height = Some(v)).starts_with("height: "));
        }
        assert!(refused(|r| (r.width, r.height) = (Some(2048), Some(2064))).contains("2048x2064"));
        for v in [0, 1001, usize::MAX] {
            assert!(refused(|r| r.steps = Some(v)).contains("1 to 1000"));
            assert!(refused(|r| r.count = Some(v)).contains("1 to 64"));
        }
        for v in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.1, 100.1] {
            assert!(refused(|r| r.guidance = Some(v)).starts_with("guidance: "));
            assert!(refused(|r| r.cfg_scale = Some(v)).starts_with("cfg_scale: "));
            let picture = Picture { width: 1, height: 1, rgb: vec![0; 3] };
            assert!(
                refused(|r| r.init = Some(InitImage { picture: picture.clone(), strength: v }))
                    .contains("0 to 1")
            );
        }
        assert!(refused(|r| r.prompt = "a".repeat(1 << 20)).contains("1048576 bytes"));
        assert!(refused(|r| r.prompt = "a\0b".to_string()).contains("U+0000 at byte 1"));
        assert!(refused(|r| r.negative = Some("\u{1b}[2J".to_string())).starts_with("negative: "));
    }
}
