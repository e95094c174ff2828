//! [`Request`] and [`Settings`], written from one list of parameters.
//!
//! The list at the end of this file says everything about a parameter: its name, which is also the
//! key in JSON and the place in error messages; its type and default; its label in image files; its
//! range. Flags, JSON, image files, `again` and `inspect` all read the list. A new parameter is a
//! new line there, a flag in `cli/args/request.rs`, and the code that uses it.

use serde::{Deserialize, Serialize};

use super::limits::{
    MAX_COUNT, MAX_MASK_BLUR, MAX_SCALE, MAX_SHIFT, MAX_SIDE, MAX_STEPS, MIN_SHIFT, MIN_SIDE,
    check_range,
};
use super::parameter::Parameter;
use super::{ControlImage, ControlNetChoice, Image, LoraChoice, Margins, Mask, Prompt};
use crate::error::{Error, Result};
use crate::pipeline::schedule::ScheduleConfig;

/// The most reference images of a request.
pub const MAX_REFERENCES: usize = 10;

/// The most style images of a request.
pub const MAX_STYLES: usize = 10;

/// The strength of image-to-image where none is given.
pub const DEFAULT_STRENGTH: f32 = 0.75;

/// What each kind of parameter looks like. `filled`: a request may leave it out, settings have it.
/// `optional` and `text`: both may be without. `list`: may be empty in both.
macro_rules! kind {
    (request filled $type:ty) => { Option<$type> };
    (request optional $type:ty) => { Option<$type> };
    (request text $type:ty) => { Option<$type> };
    (request list $type:ty) => { Vec<$type> };
    (settings filled $type:ty) => { $type };
    (settings optional $type:ty) => { Option<$type> };
    (settings text $type:ty) => { Option<$type> };
    (settings list $type:ty) => { Vec<$type> };
    (fill filled $given:expr, $default:expr) => { $given.unwrap_or($default) };
    (fill list $given:expr, $default:expr) => { $given };
    (fill $kind:ident $given:expr, $default:expr) => { $given.or($default) };
    (to_request filled $value:expr) => { Some($value) };
    (to_request $kind:ident $value:expr) => { $value };
    (replace list $old:expr, $new:expr) => { if !$new.is_empty() { $old = $new } };
    (replace $kind:ident $old:expr, $new:expr) => { if $new.is_some() { $old = $new } };
    (setter text $(#[doc = $doc:literal])+ $name:ident $type:ty) => {
        $(#[doc = $doc])+
        pub fn $name(mut self, $name: impl Into<$type>) -> Self {
            self.$name = Some($name.into());
            self
        }
    };
    (setter list $(#[doc = $doc:literal])+ $name:ident $type:ty) => {
        $(#[doc = $doc])+
        pub fn $name(mut self, $name: Vec<$type>) -> Self {
            self.$name = $name;
            self
        }
    };
    (setter $kind:ident $(#[doc = $doc:literal])+ $name:ident $type:ty) => {
        $(#[doc = $doc])+
        pub fn $name(mut self, $name: $type) -> Self {
            self.$name = Some($name);
            self
        }
    };
}

macro_rules! parameters {
    ($(
        $(#[doc = $doc:literal])+
        $name:ident: $kind:ident $type:ty $(= $default:expr)?, $label:literal $(, $range:expr)?;
    )+) => {
        /// One generation. `None` means the model's own default.
        ///
        /// ```
        /// use flux_fast::pipeline::request::Request;
        /// let request = Request::new("a fox").size(1024, 768).seed(7);
        /// assert!(request.check().is_ok());
        /// ```
        #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        #[non_exhaustive]
        pub struct Request {
            /// What to draw. `<lora:NAME:STRENGTH>` tags name LoRAs.
            pub prompt: Prompt,
            $(
                $(#[doc = $doc])+
                #[serde(serialize_with = "super::parameter::write")]
                pub $name: kind!(request $kind $type),
            )+
            /// The image that image-to-image starts from; it is resized to the request's size. With
            /// a [`mask`](Request::mask) or margins, the result has its size, and is equal to it
            /// outside of the mask.
            #[serde(skip)]
            pub init: Option<Image>,
            /// The part of [`init`](Request::init) that is repainted, in its size. Without one, all
            /// of it is.
            #[serde(skip)]
            pub mask: Option<Mask>,
            /// The image whose edges or depths the result has: for FLUX.1 Canny and Depth only.
            #[serde(skip)]
            pub control: Option<Image>,
            /// The images of [`controlnets`](Request::controlnets), one for each, in their order.
            #[serde(skip)]
            pub control_images: Vec<ControlImage>,
            /// Images that the model looks at, at most [`MAX_REFERENCES`]: FLUX.2 and FLUX.1
            /// Kontext edit and combine them. Without a size, the image gets that of the first one.
            #[serde(skip)]
            pub references: Vec<Image>,
            /// Images whose content and style the result has, at most [`MAX_STYLES`], by FLUX.1
            /// Redux; see [`style_strengths`](Request::style_strengths).
            #[serde(skip)]
            pub styles: Vec<Image>,
        }

        /// A request with every default filled in: what determines an image. Image files carry it,
        /// and `again` draws it again.
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        #[non_exhaustive]
        pub struct Settings {
            /// What to draw, as it was written. Its tags are parsed: see [`Prompt`].
            pub prompt: Prompt,
            $(
                $(#[doc = $doc])+
                #[serde(serialize_with = "super::parameter::write")]
                pub $name: kind!(settings $kind $type),
            )+
            /// The model's name as shown, such as `flux-tiny` or `flux1-dev`.
            pub model: String,
            /// First ten hexadecimal digits of a hash of the weights' header, to recognise the
            /// file; empty if unknown.
            pub model_hash: String,
            /// Such hashes of the LoRA files, in the order of [`all_loras`](Settings::all_loras);
            /// empty texts where unknown.
            pub lora_hashes: Vec<String>,
            /// Such hashes of the files of [`controlnets`](Settings::controlnets), in their order.
            pub controlnet_hashes: Vec<String>,
        }

        impl Default for Settings {
            fn default() -> Self {
                Settings {
                    prompt: Prompt::default(),
                    $($name: parameters!(@default $($default)?),)+
                    model: String::new(),
                    model_hash: String::new(),
                    lora_hashes: Vec::new(),
                    controlnet_hashes: Vec::new(),
                }
            }
        }

        impl Request {
            $(kind!(setter $kind $(#[doc = $doc])+ $name $type);)+

            /// Every parameter that `other` sets replaces this one's, except the prompt. A
            /// scheduler replaces a shift, too, which would take precedence over it.
            pub fn replace_with(&mut self, other: Request) {
                if other.scheduler.is_some() {
                    self.shift = None;
                }
                $(kind!(replace $kind self.$name, other.$name);)+
                if other.init.is_some() {
                    self.init = other.init;
                    self.mask = other.mask;
                }
                if other.control.is_some() {
                    self.control = other.control;
                }
                if !other.control_images.is_empty() {
                    self.control_images = other.control_images;
                }
                if !other.references.is_empty() {
                    self.references = other.references;
                }
                if !other.styles.is_empty() {
                    self.styles = other.styles;
                }
            }

            /// The settings of this request where it sets them, else those of `defaults`.
            pub(crate) fn fill(&self, defaults: Settings) -> Settings {
                // Without the images, which may be large.
                $(let $name = self.$name.clone();)+
                Settings {
                    prompt: self.prompt.clone(),
                    $($name: kind!(fill $kind $name, defaults.$name),)+
                    model: defaults.model,
                    model_hash: defaults.model_hash,
                    lora_hashes: defaults.lora_hashes,
                    controlnet_hashes: defaults.controlnet_hashes,
                }
            }

            pub(super) fn check_ranges(&self) -> Result<()> {
                $($(check_range(stringify!($name), self.$name, $range)?;)?)+
                Ok(())
            }
        }

        /// The request that gives these settings again. The image that image-to-image started from
        /// its mask, control, reference and style images are not among them.
        impl From<Settings> for Request {
            fn from(settings: Settings) -> Request {
                Request {
                    prompt: settings.prompt,
                    $($name: kind!(to_request $kind settings.$name),)+
                    init: None,
                    mask: None,
                    control: None,
                    control_images: Vec::new(),
                    references: Vec::new(),
                    styles: Vec::new(),
                }
            }
        }

        impl Settings {
            /// The labels of all parameters.
            pub(crate) const LABELS: &[&str] = &[$($label),+];

            /// Label and text of every parameter that has a value, in the order of the list. Prompt
            /// and model are not among them.
            pub(crate) fn labelled(&self) -> Vec<(&'static str, String)> {
                let all = [$(($label, self.$name.to_text())),+];
                all.into_iter().filter_map(|(label, text)| Some((label, text?))).collect()
            }

            /// The settings that `find` gives as text by their labels.
            pub(crate) fn from_labelled(find: impl Fn(&str) -> Option<String>) -> Result<Settings> {
                Ok(Settings {
                    $($name: match find($label) {
                        Some(text) => <kind!(settings $kind $type)>::from_text(&text)
                            .ok_or_else(|| bad($label, &text))?,
                        None => parameters!(@absent $kind $type, $label $(, $default)?),
                    },)+
                    ..Settings::default()
                })
            }
        }
    };
    (@default) => { Default::default() };
    (@default $default:expr) => { $default };
    (@absent filled $type:ty, $label:literal) => { return Err(missing($label)) };
    (@absent filled $type:ty, $label:literal, $default:expr) => { $default };
    (@absent $kind:ident $type:ty, $label:literal) => { Default::default() };
}

parameters! {
    /// What not to draw. Used only with a `cfg_scale` other than 1.
    negative: text String, "Negative";
    /// Denoising steps, 1 to 1000.
    steps: filled usize, "Steps", 1..=MAX_STEPS;
    /// True classifier-free guidance, 0 to 100; 1 is off, anything else takes twice the time.
    cfg_scale: filled f32 = 1.0, "CFG scale", 0.0..=MAX_SCALE;
    /// Distilled guidance, 0 to 100. Models without a guidance embedding ignore it, with a warning.
    guidance: optional f32, "Distilled CFG Scale", 0.0..=MAX_SCALE;
    /// A fixed shift of the noise levels, 0.01 to 100, at every size, in place of the model's own:
    /// 1 is none, 3 is usual for a de-distilled FLUX.1 dev, 3.158 is ComfyUI's for dev.
    shift: optional f32, "Shift", MIN_SHIFT..=MAX_SHIFT;
    /// The noise levels that a `scheduler_config.json` describes, in place of the model's own; a
    /// `shift` takes precedence over it.
    scheduler: optional ScheduleConfig, "Scheduler config";
    /// The seed of the noise. A request without one gets a random seed.
    seed: filled u64, "Seed";
    /// Pixels, a multiple of 16 from 16 to 4096.
    width: filled usize, "Width", MIN_SIDE..=MAX_SIDE;
    /// Pixels, a multiple of 16 from 16 to 4096.
    height: filled usize, "Height", MIN_SIDE..=MAX_SIDE;
    /// How far image-to-image may leave its image: 0 keeps it, 1 ignores it.
    strength: optional f32, "Denoising strength", 0.0..=1.0;
    /// How far the mask is blurred, in pixels, 0 to 256. A request that says so must have a mask.
    mask_blur: optional f32, "Mask blur", 0.0..=MAX_MASK_BLUR;
    /// Only the surroundings of the mask are drawn, with this many pixels around it, 0 to 4096, and
    /// scaled to the size of the request: small parts get all the detail that the model can draw.
    mask_padding: optional usize, "Masked area padding", 0..=MAX_SIDE;
    /// Pixels that are added on each side of the image to start from.
    outpaint: optional Margins, "Outpaint";
    /// How many reference images it was drawn from. A request that says so must have them.
    reference_count: optional usize, "References", 1..=MAX_REFERENCES;
    /// How much the result is like each of the style images, 0 to 10: the factor of its tokens, as
    /// in ComfyUI (`StyleModelApply`, "multiply"). Empty, or one for each image; without them, all
    /// are 1.
    style_strengths: list f32, "Style strengths";
    /// LoRAs in addition to those that the prompt's tags name. Several LoRAs of one weight add up.
    loras: list LoraChoice, "Loras";
    /// ControlNets for FLUX.1, at most 4. Each sees an image of
    /// [`control_images`](Request::control_images), and changes what the transformer computes.
    controlnets: list ControlNetChoice, "ControlNets";
    /// How many images, 1 to 64; all from one noise stream, as ComfyUI draws a batch.
    count: filled usize = 1, "Batch size", 1..=MAX_COUNT;
    /// Draws only this image of the batch, from 0, with the noise that it has there.
    only: optional usize, "Batch pos", 0..=MAX_COUNT - 1;
}

fn missing(label: &str) -> Error {
    Error::argument(format!("the image's metadata has no {label}"))
        .try_("use an image that flux-fast or AUTOMATIC1111 wrote")
}

pub(crate) fn bad(label: &str, text: &str) -> Error {
    Error::argument(format!("the image's metadata has a bad {label}")).found(text)
}

impl Request {
    /// A request for `prompt` in which everything else is the model's default.
    pub fn new(prompt: impl Into<Prompt>) -> Self {
        Request { prompt: prompt.into(), ..Request::default() }
    }

    /// Width and height, in pixels.
    pub fn size(self, width: usize, height: usize) -> Self {
        self.width(width).height(height)
    }

    /// Adds a LoRA: a path, or a name that is looked up in the LoRA folders.
    pub fn lora(mut self, name: impl Into<String>, strength: f32) -> Self {
        self.loras.push(LoraChoice::new(name, strength));
        self
    }

    /// The image that image-to-image starts from; it is resized to the request's size.
    pub fn init(mut self, image: Image) -> Self {
        self.init = Some(image);
        self
    }

    /// The part of the image to start from that is repainted.
    pub fn mask(mut self, mask: Mask) -> Self {
        self.mask = Some(mask);
        self
    }

    /// Whether it has LoRAs, in its prompt or elsewhere.
    pub fn has_loras(&self) -> bool {
        !self.loras.is_empty() || !self.prompt.loras().is_empty()
    }

    /// Whether a part of the image to start from is kept.
    pub fn is_masked(&self) -> bool {
        self.mask.is_some() || self.outpaint.is_some()
    }

    /// The image whose edges or depths the result has.
    pub fn control(mut self, image: Image) -> Self {
        self.control = Some(image);
        self
    }

    /// Adds a ControlNet with the image that it sees.
    pub fn controlnet(mut self, choice: ControlNetChoice, image: impl Into<ControlImage>) -> Self {
        self.controlnets.push(choice);
        self.control_images.push(image.into());
        self
    }

    /// Adds an image that the model looks at.
    pub fn reference(mut self, image: Image) -> Self {
        self.references.push(image);
        self
    }

    /// Adds an image whose content and style the result has; see
    /// [`style_strengths`](Request::style_strengths).
    pub fn style(mut self, image: Image, strength: f32) -> Self {
        self.style_strengths.resize(self.styles.len(), 1.0);
        self.style_strengths.push(strength);
        self.styles.push(image);
        self
    }
}

impl Settings {
    /// How many images are drawn: all of the batch, or the only one.
    pub fn images(&self) -> usize {
        if self.only.is_some() { 1 } else { self.count }
    }

    /// All LoRAs: those of the prompt's tags, then the others.
    pub fn all_loras(&self) -> impl Iterator<Item = &LoraChoice> {
        self.prompt.loras().iter().chain(&self.loras)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        Settings {
            prompt: "a fox <lora:x:0.5>".into(),
            steps: 4,
            seed: u64::MAX,
            width: 64,
            height: 32,
            guidance: Some(0.1),
            strength: Some(0.7),
            loras: vec![LoraChoice::new("y", 0.8)],
            model: "flux1-dev".into(),
            ..Settings::default()
        }
    }

    #[test]
    fn json_carries_settings_exactly_and_refuses_unknown_names() {
        let json = serde_json::to_value(settings()).unwrap();
        assert_eq!(json["guidance"], 0.1);
        assert_eq!(json["loras"], serde_json::json!([{"name": "y", "strength": 0.8}]));
        assert_eq!(serde_json::from_value::<Settings>(json).unwrap(), settings());
        let request = |text| serde_json::from_str::<Request>(text);
        let read = request(r#"{"prompt": "a fox", "loras": [{"name": "y", "weight": 0.5}]}"#);
        assert_eq!(read.unwrap(), Request::new("a fox").lora("y", 0.5));
        assert!(
            request(r#"{"prompt": "a fox", "step": 4}"#).unwrap_err().to_string().contains("step")
        );
    }

    #[test]
    fn a_request_of_settings_gives_the_settings_again() {
        let mut defaults = Settings { steps: 28, seed: 9, ..Settings::default() };
        defaults.model = "flux1-dev".into();
        assert_eq!(Request::from(settings()).fill(defaults), settings());
    }

    #[test]
    fn given_parameters_replace_and_others_stay() {
        let mut request = Request::new("a fox").steps(4).lora("x", 1.0);
        request.replace_with(Request::new("").steps(8).seed(3));
        assert_eq!(request, Request::new("a fox").steps(8).seed(3).lora("x", 1.0));
    }

    #[test]
    fn all_loras_are_those_of_the_prompt_and_the_others() {
        let settings = settings();
        let names: Vec<_> = settings.all_loras().map(|l| l.name.as_str()).collect();
        assert_eq!(names, ["x", "y"]);
    }
}
