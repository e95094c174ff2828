//! The nodes that are understood: their inputs and outputs, for `/object_info` and for refusing the
//! others by name.

use serde_json::{Map, Value, json};

use crate::pipeline::request::MAX_CONTROL_STRENGTH;

/// A node.
pub struct Node {
    /// Its class.
    pub class: &'static str,
    /// Its inputs, `NAME:TYPE`, separated by spaces. A type of `@NAME` is a list to choose from,
    /// and one that ends in `?` may be left out.
    inputs: &'static str,
    /// The types of its outputs.
    outputs: &'static str,
}

/// The entries of lists in nodes: model names differ from server to server.
pub struct Lists {
    pub models: Vec<String>,
    pub loras: Vec<String>,
    pub controlnets: Vec<String>,
    pub images: Vec<String>,
    /// There are networks for style images.
    pub styles: bool,
}

macro_rules! nodes {
    ($($class:literal: $inputs:literal -> $outputs:literal;)+) => {
        &[$(Node { class: $class, inputs: $inputs, outputs: $outputs }),+]
    };
}

const NODES: &[Node] = nodes! {
    "CheckpointLoaderSimple": "ckpt_name:@models" -> "MODEL CLIP VAE";
    "UNETLoader": "unet_name:@models weight_dtype:@dtypes?" -> "MODEL";
    "UnetLoaderGGUF": "unet_name:@models" -> "MODEL";
    "CLIPLoaderGGUF": "clip_name:@clips type:@cliptypes?" -> "CLIP";
    "CLIPLoader": "clip_name:@clips type:@cliptypes? device:@devices?" -> "CLIP";
    "DualCLIPLoader":
        "clip_name1:@clips clip_name2:@clips type:@cliptypes? device:@devices?" -> "CLIP";
    "DualCLIPLoaderGGUF": "clip_name1:@clips clip_name2:@clips type:@cliptypes?" -> "CLIP";
    "VAELoader": "vae_name:@vaes" -> "VAE";
    "LoraLoader":
        "model:MODEL clip:CLIP lora_name:@loras strength_model:FLOAT strength_clip:FLOAT"
        -> "MODEL CLIP";
    "LoraLoaderModelOnly": "model:MODEL lora_name:@loras strength_model:FLOAT" -> "MODEL";
    "ModelSamplingFlux":
        "model:MODEL max_shift:FLOAT base_shift:FLOAT width:INT height:INT" -> "MODEL";
    "ModelSamplingSD3": "model:MODEL shift:FLOAT" -> "MODEL";
    "CLIPTextEncode": "text:STRING clip:CLIP" -> "CONDITIONING";
    "CLIPTextEncodeFlux":
        "clip:CLIP clip_l:STRING t5xxl:STRING guidance:FLOAT" -> "CONDITIONING";
    "FluxGuidance": "conditioning:CONDITIONING guidance:FLOAT" -> "CONDITIONING";
    "ConditioningZeroOut": "conditioning:CONDITIONING" -> "CONDITIONING";
    "ReferenceLatent": "conditioning:CONDITIONING latent:LATENT?" -> "CONDITIONING";
    "EmptyLatentImage": "width:INT height:INT batch_size:INT?" -> "LATENT";
    "EmptySD3LatentImage": "width:INT height:INT batch_size:INT?" -> "LATENT";
    "EmptyFlux2LatentImage": "width:INT height:INT batch_size:INT?" -> "LATENT";
    "RepeatLatentBatch": "samples:LATENT amount:INT" -> "LATENT";
    "LoadImage": "image:@images" -> "IMAGE MASK";
    "LoadImageOutput": "image:@images" -> "IMAGE MASK";
    "ETN_LoadImageBase64": "image:STRING" -> "IMAGE MASK";
    "ETN_LoadImageCache": "id:STRING" -> "IMAGE MASK";
    "ImageScale":
        "image:IMAGE upscale_method:@resizers? width:INT height:INT crop:@crops?" -> "IMAGE";
    "ImageScaleToTotalPixels":
        "image:IMAGE upscale_method:@resizers? megapixels:FLOAT resolution_steps:INT?" -> "IMAGE";
    "FluxKontextImageScale": "image:IMAGE" -> "IMAGE";
    "HintImageEnchance":
        "hint_image:IMAGE image_gen_width:INT image_gen_height:INT resize_mode:@resizemodes"
        -> "IMAGE";
    "ImageCrop": "image:IMAGE width:INT height:INT x:INT y:INT" -> "IMAGE";
    "ImageInvert": "image:IMAGE" -> "IMAGE";
    "EmptyImage": "width:INT height:INT batch_size:INT? color:INT" -> "IMAGE";
    "UpscaleModelLoader": "model_name:@upscalers" -> "UPSCALE_MODEL";
    "ImageUpscaleWithModel": "upscale_model:UPSCALE_MODEL image:IMAGE" -> "IMAGE";
    "LoadImageMask": "image:@images channel:@channels" -> "MASK";
    "ETN_LoadMaskBase64": "mask:STRING" -> "MASK";
    "ImageToMask": "image:IMAGE channel:@channels" -> "MASK";
    "InvertMask": "mask:MASK" -> "MASK";
    "GrowMask": "mask:MASK expand:INT tapered_corners:BOOLEAN?" -> "MASK";
    "ThresholdMask": "mask:MASK value:FLOAT" -> "MASK";
    "CropMask": "mask:MASK x:INT y:INT width:INT height:INT" -> "MASK";
    "SolidMask": "value:FLOAT width:INT height:INT" -> "MASK";
    "MaskToImage": "mask:MASK" -> "IMAGE";
    "INPAINT_ExpandMask": "mask:MASK grow:INT blur:INT blur_type:@kernels?" -> "MASK";
    "INPAINT_ShrinkMask": "mask:MASK shrink:INT blur:INT blur_type:@kernels?" -> "MASK";
    "INPAINT_StabilizeMask": "mask:MASK epsilon:FLOAT" -> "MASK";
    "INPAINT_MaskedFill": "image:IMAGE mask:MASK fill:@fills? falloff:INT?" -> "IMAGE";
    "INPAINT_MaskedBlur": "image:IMAGE mask:MASK blur:INT? falloff:INT?" -> "IMAGE";
    "INPAINT_LoadInpaintModel": "model_name:@inpaintmodels" -> "INPAINT_MODEL";
    "INPAINT_InpaintWithModel":
        "inpaint_model:INPAINT_MODEL image:IMAGE mask:MASK seed:INT?" -> "IMAGE";
    "INPAINT_ColorMatch":
        "target:IMAGE reference:IMAGE exclude_mask:MASK? strength:FLOAT?" -> "IMAGE";
    "INPAINT_VAEEncodeInpaintConditioning":
        "positive:CONDITIONING negative:CONDITIONING vae:VAE pixels:IMAGE mask:MASK"
        -> "CONDITIONING CONDITIONING LATENT LATENT";
    "SetLatentNoiseMask": "samples:LATENT mask:MASK" -> "LATENT";
    "VAEEncodeForInpaint":
        "pixels:IMAGE vae:VAE mask:MASK grow_mask_by:INT?" -> "LATENT";
    "InpaintModelConditioning":
        "positive:CONDITIONING negative:CONDITIONING vae:VAE pixels:IMAGE mask:MASK \
         noise_mask:BOOLEAN?" -> "CONDITIONING CONDITIONING LATENT";
    "InstructPixToPixConditioning":
        "positive:CONDITIONING negative:CONDITIONING vae:VAE pixels:IMAGE"
        -> "CONDITIONING CONDITIONING LATENT";
    "ImagePadForOutpaint":
        "image:IMAGE left:INT top:INT right:INT bottom:INT feathering:INT?" -> "IMAGE MASK";
    "CLIPVisionLoader": "clip_name:@clipvisions" -> "CLIP_VISION";
    "StyleModelLoader": "style_model_name:@stylemodels" -> "STYLE_MODEL";
    "CLIPVisionEncode":
        "clip_vision:CLIP_VISION image:IMAGE crop:@crops?" -> "CLIP_VISION_OUTPUT";
    "StyleModelApply":
        "conditioning:CONDITIONING style_model:STYLE_MODEL clip_vision_output:CLIP_VISION_OUTPUT \
         strength:FLOAT? strength_type:@styletypes?" -> "CONDITIONING";
    "ETN_ReferenceImage":
        "image:IMAGE weight:FLOAT range_start:FLOAT range_end:FLOAT \
         reference_images:ReferenceImage?" -> "ReferenceImage";
    "ETN_ApplyReferenceImages":
        "conditioning:CONDITIONING clip_vision:CLIP_VISION style_model:STYLE_MODEL \
         references:ReferenceImage" -> "CONDITIONING";
    "ControlNetLoader": "control_net_name:@controlnets" -> "CONTROL_NET";
    "SetUnionControlNetType": "control_net:CONTROL_NET type:@uniontypes" -> "CONTROL_NET";
    "ControlNetApply":
        "conditioning:CONDITIONING control_net:CONTROL_NET image:IMAGE strength:FLOAT"
        -> "CONDITIONING";
    "ControlNetApplyAdvanced":
        "positive:CONDITIONING negative:CONDITIONING control_net:CONTROL_NET image:IMAGE \
         strength:FLOAT start_percent:FLOAT end_percent:FLOAT vae:VAE?"
        -> "CONDITIONING CONDITIONING";
    "ControlNetApplySD3":
        "positive:CONDITIONING negative:CONDITIONING control_net:CONTROL_NET vae:VAE? image:IMAGE \
         strength:FLOAT start_percent:FLOAT end_percent:FLOAT" -> "CONDITIONING CONDITIONING";
    "ControlNetInpaintingAliMamaApply":
        "positive:CONDITIONING negative:CONDITIONING control_net:CONTROL_NET vae:VAE image:IMAGE \
         mask:MASK strength:FLOAT start_percent:FLOAT end_percent:FLOAT"
        -> "CONDITIONING CONDITIONING";
    "Canny": "image:IMAGE low_threshold:FLOAT? high_threshold:FLOAT?" -> "IMAGE";
    "EasyCache":
        "model:MODEL reuse_threshold:FLOAT? start_percent:FLOAT? end_percent:FLOAT? \
         verbose:BOOLEAN?" -> "MODEL";
    "DifferentialDiffusion": "model:MODEL strength:FLOAT?" -> "MODEL";
    "ImageCompositeMasked":
        "destination:IMAGE source:IMAGE x:INT y:INT resize_source:BOOLEAN? mask:MASK?" -> "IMAGE";
    "ETN_ApplyMaskToImage": "image:IMAGE mask:MASK" -> "IMAGE";
    "GetImageSize": "image:IMAGE" -> "INT INT INT";
    "VAEEncode": "pixels:IMAGE vae:VAE" -> "LATENT";
    "VAEEncodeTiled":
        "pixels:IMAGE vae:VAE tile_size:INT? overlap:INT? temporal_size:INT? \
         temporal_overlap:INT?" -> "LATENT";
    "KSampler":
        "model:MODEL seed:INT steps:INT cfg:FLOAT sampler_name:@samplers scheduler:@schedulers \
         positive:CONDITIONING negative:CONDITIONING latent_image:LATENT denoise:FLOAT"
        -> "LATENT";
    "KSamplerAdvanced":
        "model:MODEL add_noise:@switch noise_seed:INT steps:INT cfg:FLOAT sampler_name:@samplers \
         scheduler:@schedulers positive:CONDITIONING negative:CONDITIONING latent_image:LATENT \
         start_at_step:INT end_at_step:INT return_with_leftover_noise:@switch"
        -> "LATENT";
    "KSamplerSelect": "sampler_name:@samplers" -> "SAMPLER";
    "BasicScheduler": "model:MODEL scheduler:@schedulers steps:INT denoise:FLOAT" -> "SIGMAS";
    "Flux2Scheduler": "steps:INT width:INT height:INT" -> "SIGMAS";
    "SplitSigmas": "sigmas:SIGMAS step:INT" -> "SIGMAS SIGMAS";
    "RandomNoise": "noise_seed:INT" -> "NOISE";
    "BasicGuider": "model:MODEL conditioning:CONDITIONING" -> "GUIDER";
    "CFGGuider":
        "model:MODEL positive:CONDITIONING negative:CONDITIONING cfg:FLOAT" -> "GUIDER";
    "SamplerCustomAdvanced":
        "noise:NOISE guider:GUIDER sampler:SAMPLER sigmas:SIGMAS latent_image:LATENT"
        -> "LATENT LATENT";
    "VAEDecode": "samples:LATENT vae:VAE" -> "IMAGE";
    "VAEDecodeTiled":
        "samples:LATENT vae:VAE tile_size:INT? overlap:INT? temporal_size:INT? \
         temporal_overlap:INT?" -> "IMAGE";
    "ETN_Translate": "text:STRING" -> "STRING";
    "PrimitiveInt": "value:INT" -> "INT";
    "PrimitiveFloat": "value:FLOAT" -> "FLOAT";
    "PrimitiveString": "value:STRING" -> "STRING";
    "PrimitiveStringMultiline": "value:STRING" -> "STRING";
    "SaveImage": "images:IMAGE filename_prefix:STRING?" -> "";
    "SaveImageAdvanced": "images:IMAGE filename_prefix:STRING? format:@formats?" -> "";
    "SaveImageWebsocket": "images:IMAGE" -> "";
    "PreviewImage": "images:IMAGE" -> "";
    "ETN_SaveImageCache": "images:IMAGE format:@formats?" -> "";
    "ETN_SendImageWebSocket": "images:IMAGE format:@formats?" -> "";
};

/// The node of this class.
pub fn find(class: &str) -> Option<&'static Node> {
    NODES.iter().find(|node| node.class == class)
}

/// Why nodes of this class are not understood, where there is more to say than that.
pub fn why_not(class: &str) -> Option<&'static str> {
    let has = |part: &str| class.contains(part);
    match () {
        () if class.starts_with("INPAINT_") => Some(
            "masked parts are repainted and put back by the server itself: use SetLatentNoiseMask \
             or InpaintModelConditioning",
        ),
        () if class == "ETN_NSFWFilter" => {
            Some("there is no filter here: set the plugin's NSFW filter to off")
        }
        () if ["Region", "AttentionMask", "SetProperties"].iter().any(|part| has(part)) => {
            Some("the whole image has one prompt here: remove the other regions")
        }
        () if has("Tile") => Some("images are not drawn in tiles here"),
        () if has("ControlNet") => Some(
            "ControlNets are applied by ControlNetLoader, SetUnionControlNetType and \
             ControlNetApplyAdvanced",
        ),
        () if has("Preprocessor") => Some(
            "send a prepared image for the ControlNet: of the preprocessors only Canny is here",
        ),
        () if has("IPAdapter") => Some("images for the style are read by StyleModelApply"),
        () if has("Upscale") => Some("images are not made larger by another model here"),
        () => None,
    }
}

impl Node {
    /// Whether its result leaves the graph.
    pub fn is_output(&self) -> bool {
        self.outputs.is_empty()
    }

    fn inputs(&self) -> impl Iterator<Item = (&'static str, &'static str, bool)> {
        self.inputs.split_whitespace().filter_map(|input| {
            let (name, kind) = input.split_once(':')?;
            let optional = kind.ends_with('?');
            Some((name, kind.trim_end_matches('?'), optional))
        })
    }

    /// The inputs that it must have.
    pub fn required(&self) -> impl Iterator<Item = &'static str> {
        self.inputs().filter(|(.., optional)| !optional).map(|(name, ..)| name)
    }

    /// Its entry of `/object_info`.
    pub fn info(&self, lists: &Lists) -> Value {
        let (mut required, mut optional) = (Map::new(), Map::new());
        for (name, kind, is_optional) in self.inputs() {
            let entry = if is_optional { &mut optional } else { &mut required };
            entry.insert(name.into(), input_info(name, kind, lists));
        }
        let names = |map: &Map<String, Value>| map.keys().cloned().collect::<Vec<_>>();
        let order = json!({"required": names(&required), "optional": names(&optional)});
        let outputs: Vec<&str> = self.outputs.split_whitespace().collect();
        json!({
            "input": {"required": required, "optional": optional},
            "input_order": order,
            "output": outputs,
            "output_is_list": vec![false; outputs.len()],
            "output_name": outputs,
            "name": self.class,
            "display_name": self.class,
            "description": "",
            "python_module": "nodes",
            "category": "flux-fast",
            "output_node": self.is_output(),
        })
    }
}

/// Default, smallest and largest value, and step of a number.
fn real_range(name: &str) -> (f32, f32, f32, f32) {
    match name {
        "guidance" => (3.5, 0.0, 100.0, 0.1),
        "max_shift" => (1.15, 0.0, 100.0, 0.01),
        "base_shift" => (0.5, 0.0, 100.0, 0.01),
        "start_percent" => (0.0, 0.0, 1.0, 0.001),
        "end_percent" => (1.0, 0.0, 1.0, 0.001),
        "strength" => (1.0, 0.0, MAX_CONTROL_STRENGTH, 0.01),
        "low_threshold" => (0.4, 0.01, 0.99, 0.01),
        "high_threshold" => (0.8, 0.01, 0.99, 0.01),
        "denoise" => (1.0, 0.0, 1.0, 0.01),
        "megapixels" => (1.0, 0.01, 16.0, 0.01),
        _ => (1.0, -100.0, 100.0, 0.01),
    }
}

/// An input of `/object_info`. Lists are lists themselves: some clients read no other form.
fn input_info(name: &str, kind: &str, lists: &Lists) -> Value {
    let fixed: &[&str] = match kind {
        "@models" => return json!([lists.models]),
        "@loras" => return json!([lists.loras]),
        "@controlnets" => return json!([lists.controlnets]),
        "@images" => return json!([lists.images, {"image_upload": true}]),
        "@dtypes" => &["default"],
        "@clips" => &CLIPS,
        "@cliptypes" => &["flux", "flux2"],
        "@devices" => &["default", "cpu"],
        "@vaes" => &VAES,
        "@samplers" => &["euler"],
        "@schedulers" => &["simple"],
        "@switch" => &["enable", "disable"],
        "@resizers" => &["lanczos", "bicubic", "bilinear"],
        "@resizemodes" => &["Just Resize"],
        "@kernels" => &["gaussian", "linear", "box"],
        "@fills" => &["neutral", "telea", "navier-stokes"],
        "@inpaintmodels" => &INPAINT_MODELS,
        "@upscalers" => return json!([UPSCALERS.map(|(name, _)| name)]),
        "@crops" => &["disabled", "center"],
        "@clipvisions" => &["sigclip_vision_patch14_384.safetensors"],
        "@stylemodels" if !lists.styles => &[],
        "@stylemodels" => &["flux1-redux-dev.safetensors"],
        "@styletypes" => &["multiply"],
        "@uniontypes" => &["auto", "openpose", "depth", "canny/lineart/anime_lineart/mlsd", "tile"],
        "@channels" => &["alpha", "red", "green", "blue"],
        "@formats" => &["PNG", "JPEG"],
        "INT" => {
            let default = match name {
                "width" | "height" => 1024,
                "steps" | "end_at_step" => 4,
                "seed" | "noise_seed" | "start_at_step" => 0,
                _ => 1,
            };
            return json!(["INT", {"default": default, "min": 0, "max": u64::MAX}]);
        }
        "FLOAT" => {
            let (default, least, most, step) = real_range(name);
            let range = json!({"default": default, "min": least, "max": most, "step": step});
            return json!(["FLOAT", range]);
        }
        "STRING" => return json!(["STRING", {"multiline": name == "text", "default": ""}]),
        kind => return json!([kind]),
    };
    json!([fixed])
}

/// Names of components. The server finds them itself, so these stand for whatever there is.
pub const CLIPS: [&str; 5] = [
    "clip_l.safetensors",
    "t5xxl_fp16.safetensors",
    "t5xxl_fp8_e4m3fn.safetensors",
    "qwen_3_4b.safetensors",
    "qwen_3_8b.safetensors",
];
pub const VAES: [&str; 2] = ["ae.safetensors", "flux2-vae.safetensors"];

/// Models that enlarge images, and by how much. Nothing but Lanczos is here. The plugin Krita AI
/// Diffusion insists on models of these names, and shows the whole name.
pub const UPSCALERS: [(&str, u32); 4] = [
    ("lanczos, without 4x_NMKD-Superscale-SP_178000_G.pth", 4),
    ("lanczos, without OmniSR_X2_DIV2K.safetensors", 2),
    ("lanczos, without OmniSR_X3_DIV2K.safetensors", 3),
    ("lanczos, without OmniSR_X4_DIV2K.safetensors", 4),
];
/// Models that fill a part of an image before it is repainted. It is repainted without one.
const INPAINT_MODELS: [&str; 1] = ["none, without MAT_Places512_G_fp16.safetensors"];

/// `/object_info`.
pub fn object_info(lists: &Lists) -> Value {
    NODES
        .iter()
        .map(|node| (node.class.to_string(), node.info(lists)))
        .collect::<Map<_, _>>()
        .into()
}
