//! Files that belong to no family here, by parts of their tensor names: other models, and ways of
//! storing weights that this program cannot read. A family that is added leaves this list.

/// Other image models: (a part of a tensor name, what it is).
pub const MODELS: &[(&str, &str)] = &[
    ("double_stream_modulation_img.", "a FLUX.2 model"),
    ("distilled_guidance_layer.", "a Chroma model"),
    ("joint_blocks.0.", "a Stable Diffusion 3 model"),
    ("input_blocks.0.0.", "a Stable Diffusion model (1.x, 2.x or XL)"),
    ("down_blocks.0.attentions.", "a Stable Diffusion model (1.x, 2.x or XL) in diffusers' names"),
    ("controlnet_blocks.", "a ControlNet"),
    ("redux_up.", "a FLUX Redux adapter"),
];

/// Ways of storing weights that cannot be read: (an ending of a tensor name, what it is).
pub const STORAGE: &[(&str, &str)] = &[
    (".SCB", "bitsandbytes int8"),
    (".wscales", "SVDQuant (nunchaku)"),
    (".qweight", "SVDQuant, GPTQ or AWQ"),
    (".weight_zero_point", "integer quantisation with zero points"),
    (".weight_qtype", "optimum-quanto"),
];

/// Stable Diffusion before its version is known.
pub const STABLE_DIFFUSION: &str = "Stable Diffusion (1.x, 2.x or XL)";
