//! The options that describe the image.

use std::path::PathBuf;

use clap::Args;

use super::super::values::{self, ControlNetArg, Seed, Size, StyleArg};
use super::IMAGE_HEADING;
use crate::pipeline::request::{
    LoraChoice, MAX_COUNT, MAX_MASK_BLUR, MAX_SCALE, MAX_SHIFT, MAX_SIDE, MAX_STEPS, MIN_SHIFT,
    Margins, Request,
};

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = IMAGE_HEADING)]
pub struct RequestArgs {
    /// What the image shows; `-` reads it from stdin
    #[arg(short, long, value_name = "PROMPT", allow_hyphen_values = true)]
    pub prompt: Option<String>,
    /// What the image does not show; has an effect only with a --cfg-scale other than 1
    #[arg(long, value_name = "PROMPT", allow_hyphen_values = true)]
    pub negative: Option<String>,
    /// Number of images, 1 to 64, from one noise stream
    #[arg(
        short = 'n',
        long = "count",
        value_name = "N",
        value_parser = values::whole(1..=MAX_COUNT),
        allow_hyphen_values = true,
    )]
    pub count: Option<usize>,
    /// Denoising steps, 1 to 1000 [default: the model's own]
    #[arg(
        long,
        value_name = "N",
        value_parser = values::whole(1..=MAX_STEPS),
        allow_hyphen_values = true,
    )]
    pub steps: Option<usize>,
    /// A whole number up to 2^64 - 1, or `random` (or -1) [default: random]
    #[arg(short, long, value_parser = values::seed, allow_hyphen_values = true)]
    pub seed: Option<Seed>,
    /// Pixels, a multiple of 16 from 16 to 4096 (FLUX.1 was trained up to 2048x2048) [default: the
    /// model's own]
    #[arg(
        short = 'W',
        long,
        value_name = "PIXELS",
        value_parser = values::side,
        allow_hyphen_values = true,
    )]
    pub width: Option<usize>,
    /// Pixels, like --width
    #[arg(
        short = 'H',
        long,
        value_name = "PIXELS",
        value_parser = values::side,
        allow_hyphen_values = true,
    )]
    pub height: Option<usize>,
    /// Width and height together: 1024x768; 512 for a square; or an aspect ratio from 1:16 to 16:1,
    /// such as 16:9, at the model's own number of pixels. Sides are multiples of 16 from 16 to
    /// 4096; a later --width or --height wins
    #[arg(
        long,
        value_name = "WxH|N|W:H",
        value_parser = values::size,
        allow_hyphen_values = true,
    )]
    pub size: Option<Size>,
    /// How closely to follow the prompt, 0 to 100; models without guidance print that they ignore
    /// it [default: the model's own]
    #[arg(
        long,
        value_name = "X",
        value_parser = values::real(0.0..=MAX_SCALE),
        allow_hyphen_values = true,
    )]
    pub guidance: Option<f32>,
    /// True classifier-free guidance, 0 to 100; 1 is off, other values double the time [default: 1,
    /// and 4 for FLUX.2 [klein] base]
    #[arg(
        long,
        value_name = "X",
        value_parser = values::real(0.0..=MAX_SCALE),
        allow_hyphen_values = true,
    )]
    pub cfg_scale: Option<f32>,
    /// A fixed shift of the noise levels, 0.01 to 100, in place of the model's own: 1 is none, 3 is
    /// usual for a de-distilled FLUX.1 [dev]
    #[arg(
        long,
        value_name = "X",
        value_parser = values::real(MIN_SHIFT..=MAX_SHIFT),
        conflicts_with = "scheduler_config",
        allow_hyphen_values = true,
    )]
    pub shift: Option<f32>,
    /// A scheduler_config.json of diffusers (FlowMatchEulerDiscreteScheduler), or a model folder
    /// with one: its noise levels in place of the model's own
    #[arg(long, value_name = "FILE")]
    pub scheduler_config: Option<PathBuf>,
    /// A LoRA (.safetensors, or a folder of PEFT) or its name, and its strength, -100 to 100
    /// [default: 1]; may be given several times. A second strength is for the text encoders.
    /// `<lora:NAME:STRENGTH>` in the prompt does the same
    #[arg(long = "lora", value_name = "PATH[:STRENGTH[:TEXT]]", value_parser = values::lora)]
    pub loras: Vec<LoraChoice>,
    /// An image to start from (PNG, JPEG, WebP, BMP, TIFF), `-` reads it from stdin; it is cropped
    /// around the centre to the aspect ratio and resized
    #[arg(short, long, value_name = "IMAGE")]
    pub init_img: Option<PathBuf>,
    /// The image whose edges (FLUX.1 Canny) or depths (FLUX.1 Depth) the result has; Canny finds
    /// the edges of a photo itself
    #[arg(long, value_name = "IMAGE")]
    pub control: Option<PathBuf>,
    /// A ControlNet for FLUX.1 (a file, a folder or its name) and the image that it sees, how
    /// strongly it acts, 0 to 10 [default: 1], and in which part of the steps [default: 0-1]; may
    /// be given several times. `,mode=canny` (tile, depth, blur, pose, gray, lq) says what the
    /// image is where a ControlNet needs to know it; `,edges` finds the edges of a photo, or
    /// `,edges=100-200` with two thresholds of OpenCV. In `again`, `:IMAGE` is the image for the
    /// recorded ControlNet
    #[arg(
        long = "controlnet",
        value_name = "FILE:IMAGE[:STRENGTH[:START-END]]",
        value_parser = values::controlnet,
    )]
    pub controlnets: Vec<ControlNetArg>,
    /// An image that the model looks at (FLUX.2, FLUX.1 Kontext): it is edited as the prompt says,
    /// or combined with the others; may be given several times. Without --size, the first one sets
    /// the size
    #[arg(long = "reference", value_name = "IMAGE")]
    pub references: Vec<PathBuf>,
    /// An image whose content and style the result has (FLUX.1 Redux, for which an adapter and a
    /// vision tower are needed: `flux-fast pull black-forest-labs/FLUX.1-Redux-dev`), and its
    /// strength, 0 to 10 [default: 1]; may be given several times
    #[arg(long = "style", value_name = "IMAGE[:STRENGTH]", value_parser = values::style)]
    pub styles: Vec<StyleArg>,
    /// An image of the size of --init-img: only what is white in it is repainted, gray in the later
    /// steps only. If it has transparent pixels, these are. Without --mask, the transparent pixels
    /// of --init-img are repainted. The result has the size of --init-img
    #[arg(long, value_name = "IMAGE", requires = "init_img")]
    pub mask: Option<PathBuf>,
    /// Blurs the edges of the mask, 0 to 256 pixels [default: 0]
    #[arg(
        long,
        value_name = "PIXELS",
        value_parser = values::real(0.0..=MAX_MASK_BLUR),
        requires = "init_img",
        allow_hyphen_values = true,
    )]
    pub mask_blur: Option<f32>,
    /// Draws only the surroundings of the mask, with this many pixels around it, 0 to 4096, in the
    /// size that suits the model, and scales the result back: good for small masks
    #[arg(
        long,
        value_name = "PIXELS",
        value_parser = values::whole(0..=MAX_SIDE),
        requires = "init_img",
        allow_hyphen_values = true,
    )]
    pub mask_padding: Option<usize>,
    /// Adds pixels on the sides of --init-img and paints them
    #[arg(
        long,
        value_name = "LEFT,TOP,RIGHT,BOTTOM",
        value_parser = values::margins,
        requires = "init_img",
        allow_hyphen_values = true,
    )]
    pub outpaint: Option<Margins>,
    /// How much --init-img is changed: 0 keeps it, 1 ignores it [default: 0.75, and 1 where
    /// nothing of it is seen: with --outpaint, and for transparent pixels]
    #[arg(
        long,
        value_name = "X",
        value_parser = values::real(0.0..=1.0),
        requires = "init_img",
        allow_hyphen_values = true,
    )]
    pub strength: Option<f32>,
}

impl RequestArgs {
    /// What was typed, as a request; the prompt and the files that are named are read elsewhere
    /// (`generate::fill`).
    pub fn request(&self) -> Request {
        // Every field is named, so that the compiler finds one that is forgotten here.
        let RequestArgs {
            prompt: _,
            negative,
            count,
            steps,
            seed,
            width,
            height,
            size,
            guidance,
            cfg_scale,
            shift,
            scheduler_config: _,
            loras,
            init_img: _,
            control: _,
            controlnets: _,
            references: _,
            styles,
            mask: _,
            mask_blur,
            mask_padding,
            outpaint,
            strength,
        } = self.clone();
        let mut request = Request::default().loras(loras);
        request.negative = negative;
        request.count = count;
        request.steps = steps;
        request.seed = seed.and_then(Seed::number);
        // The size of an aspect ratio is known only when the model is open. If there are both
        // --size and --width, clap has kept the width only if it came later.
        let of_size = match size {
            Some(Size::Pixels(width, height)) => (Some(width), Some(height)),
            Some(Size::Ratio(_)) | None => (None, None),
        };
        (request.width, request.height) = (width.or(of_size.0), height.or(of_size.1));
        request.guidance = guidance;
        request.cfg_scale = cfg_scale;
        request.shift = shift;
        request.strength = strength;
        request.mask_blur = mask_blur;
        request.mask_padding = mask_padding;
        request.outpaint = outpaint;
        if styles.iter().any(|style| style.strength.is_some()) {
            request.style_strengths = styles.iter().map(|s| s.strength.unwrap_or(1.0)).collect();
        }
        request
    }
}
