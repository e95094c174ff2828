//! What a user asks for, and what comes out. Plain data: front ends fill it in, `Pipeline::generate` checks it against the model.

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
    /// `auto`, `cpu`, `cuda`, `cuda:1`, `wgpu` ...; empty means `auto`.
    pub device: String,
    /// Bound on device memory, in bytes; `None` is chosen from what is free.
    pub vram_bytes: Option<u64>,
    /// Bound on host memory, in bytes; `None` is chosen from what is free.
    pub ram_bytes: Option<u64>,
    /// `auto`, `f32` or `bf16`; empty means `auto`.
    pub compute: String,
    /// Forced kernel variants, `linear=linear_f32_avx2`.
    pub kernels: Vec<String>,
    /// Worker threads; `None` is one per core.
    pub threads: Option<usize>,
}

/// Which weights to use.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ModelFiles {
    /// A file, a folder, `embedded`, or `synthetic:...`; `None` means the embedded model.
    pub model: Option<String>,
    /// Component files, where the model file does not hold them and they do not lie beside it.
    pub clip: Option<std::path::PathBuf>,
    pub t5: Option<std::path::PathBuf>,
    pub vae: Option<std::path::PathBuf>,
}
