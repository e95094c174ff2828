//! How the engine runs: the model, the device, and the bounds on memory.

use std::path::PathBuf;

use crate::backend::{Compute, Device, KernelChoice};
use crate::library::ModelFiles;
use crate::library::places::ModelPlaces;
use crate::units::ByteSize;

/// What [`Engine::open`](crate::Engine::open) needs to know. The default is the embedded model on
/// the best device, with bounds that follow from the memory that is free.
///
/// ```
/// use flux_fast::{Device, Options};
/// # fn main() -> flux_fast::Result<()> {
/// let options = Options::default().model("flux1-dev").device(Device::Auto).vram("8G".parse()?);
/// # let _ = options;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Options {
    /// The model, and components that are in other files.
    pub files: ModelFiles,
    /// The folders in which names of models and LoRAs are looked up, and components that are
    /// neither in the model nor next to it. `None` means the folders of this process: the current
    /// one, the Hugging Face cache, and those of ComfyUI and A1111 if the environment names them or
    /// they are in their usual places.
    pub places: Option<ModelPlaces>,
    /// The device.
    pub device: Device,
    /// Bound on device memory; `None` follows from what is free. It has no effect on the CPU.
    pub vram: Option<ByteSize>,
    /// Bound on host memory; `None` follows from what is free.
    pub ram: Option<ByteSize>,
    /// The arithmetic.
    pub compute: Compute,
    /// Forced kernel variants.
    pub kernels: Vec<KernelChoice>,
    /// Worker threads of the CPU, at most one per core; `None` is one per core.
    pub threads: Option<usize>,
    /// Neither read nor write text embeddings and measured speeds in the cache folder.
    pub no_cache: bool,
}

impl Options {
    /// The model: a file, a folder, a name that is looked up, or `embedded`.
    pub fn model(mut self, model: impl Into<String>) -> Self {
        self.files.model = Some(model.into());
        self
    }

    /// A component that the model's file does not contain, such as `vae`, `clip` or `t5`: a file or
    /// a name that is looked up.
    pub fn component(mut self, component: impl Into<String>, file: impl Into<PathBuf>) -> Self {
        self.files.components.insert(component.into(), file.into());
        self
    }

    /// The model and its components.
    pub fn files(mut self, files: ModelFiles) -> Self {
        self.files = files;
        self
    }

    /// The folders in which names are looked up, instead of those of this process.
    pub fn places(mut self, places: ModelPlaces) -> Self {
        self.places = Some(places);
        self
    }

    /// The device.
    pub fn device(mut self, device: Device) -> Self {
        self.device = device;
        self
    }

    /// Bound on device memory.
    pub fn vram(mut self, size: ByteSize) -> Self {
        self.vram = Some(size);
        self
    }

    /// Bound on host memory.
    pub fn ram(mut self, size: ByteSize) -> Self {
        self.ram = Some(size);
        self
    }

    /// The arithmetic.
    pub fn compute(mut self, compute: Compute) -> Self {
        self.compute = compute;
        self
    }

    /// Adds a forced kernel variant.
    pub fn kernel(mut self, kernel: KernelChoice) -> Self {
        self.kernels.push(kernel);
        self
    }

    /// Worker threads of the CPU.
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = Some(threads);
        self
    }

    /// Whether text embeddings and measured speeds are neither read from the cache folder nor
    /// written to it.
    pub fn no_cache(mut self, no_cache: bool) -> Self {
        self.no_cache = no_cache;
        self
    }
}
