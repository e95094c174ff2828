//! The options of the model and the device, and those of the output.

use std::path::PathBuf;

use clap::Args;

use super::super::components::ComponentArgs;
use super::super::values::{self, Budget};
use crate::backend::{Compute, Device, KernelChoice};
use crate::pipeline::images::{DEFAULT_QUALITY, Format};
use crate::pipeline::request::Options;

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Model and device")]
pub struct EngineArgs {
    /// A .safetensors or .gguf file, a folder, a name that `flux-fast models` lists,
    /// `synthetic:dev`, `synthetic:schnell` or `synthetic:klein` (seeded noise of full size), or
    /// `embedded` [default: embedded, a small model that draws emoji]
    #[arg(long, value_name = "PATH|NAME")]
    pub model: Option<String>,
    #[command(flatten)]
    pub components: ComponentArgs,
    /// auto (the best GPU that works, else the CPU), cpu, cuda[:N], or wgpu[:N] (Vulkan, Metal,
    /// DirectX 12)
    #[arg(long, value_parser = values::device, default_value = "auto")]
    pub device: Device,
    /// Limit of device memory: auto, 8G (8 * 10^9 bytes) or 8GiB (8 * 2^30); has no effect on the
    /// CPU
    #[arg(
        long,
        value_name = "SIZE",
        value_parser = values::budget,
        default_value = "auto",
        allow_hyphen_values = true,
    )]
    pub vram: Budget,
    /// Limit of host memory, in the same form; a low limit costs time, not quality: see `plan`
    #[arg(
        long,
        value_name = "SIZE",
        value_parser = values::budget,
        default_value = "auto",
        allow_hyphen_values = true,
    )]
    pub ram: Budget,
    /// Arithmetic: auto; f32 (CPU, wgpu); bf16; f16 (wgpu), fp8 (CUDA from RTX 40 on, for FP8
    /// weights) and int8 (CPU, CUDA, wgpu, for any weights): faster products, less exact
    #[arg(long, value_parser = values::compute(), default_value = "auto")]
    pub compute: Compute,
    /// Use this kernel variant, such as linear=linear_f32_avx2; may be given several times, on a
    /// GPU also for one operation: the last that can run the operands is used
    #[arg(long = "kernel", value_name = "OP=NAME", value_parser = values::kernel)]
    pub kernels: Vec<KernelChoice>,
    /// Do not keep text embeddings and measured speeds in the cache folder
    #[arg(long)]
    pub no_cache: bool,
    /// Number of worker threads, 1 to 1024, at most one per core [default: one per core]
    #[arg(
        long,
        value_name = "N",
        value_parser = values::whole(1..=1024usize),
        allow_hyphen_values = true,
    )]
    pub threads: Option<usize>,
}

impl EngineArgs {
    /// What was typed, as the options of an engine.
    pub fn options(&self) -> Options {
        let mut options = Options::default().device(self.device).compute(self.compute);
        options.files.model = self.model.clone();
        for (component, path) in &self.components.0 {
            options = options.component(*component, path);
        }
        options.vram = self.vram.size();
        options.ram = self.ram.size();
        options.kernels = self.kernels.clone();
        options.threads = self.threads;
        options.no_cache(self.no_cache)
    }
}

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Output")]
pub struct OutputArgs {
    /// A file (replaced if it exists), a folder, or `-` for stdout; {seed} and {i} are filled in
    /// [default: flux-{seed}.png, never replaced]
    #[arg(short, long, value_name = "PATH")]
    pub output: Option<PathBuf>,
    /// png, jpeg, webp (lossless), bmp or tiff [default: the output's extension, else png]
    #[arg(long, value_parser = values::format)]
    pub format: Option<Format>,
    /// JPEG quality, 1 to 100
    #[arg(
        long,
        value_parser = values::whole(1..=100u8),
        default_value_t = DEFAULT_QUALITY,
        allow_hyphen_values = true,
    )]
    pub quality: u8,
    /// Also show the image in the terminal
    #[arg(long)]
    pub preview: bool,
}
