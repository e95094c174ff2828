//! Synthetic checkpoints of FLUX.1.

use flux_fast::model::{ClipConfig, FluxConfig, T5Config, VaeConfig, clip, flux1, t5, vae};
use flux_fast::spec::flux1::{CLIP, T5, TRANSFORMER, VAE};
use flux_fast::weights::synth::{Dialect, Grid, Storage, SynthSpec};
use serde_json::Value;

/// A checkpoint of FLUX.1 with all of its parts in scaled FP8, as ComfyUI stores it.
/// `configs`: its configuration without those of the parts, which are added.
pub fn checkpoint(
    flux: &FluxConfig,
    t5: &T5Config,
    clip: &ClipConfig,
    vae: &VaeConfig,
    mut configs: Value,
) -> SynthSpec {
    let named = |component, list: Vec<(String, Vec<usize>)>| {
        list.into_iter().map(move |(n, s)| (component, n, s))
    };
    let tensors = named(T5, t5::tensors(t5))
        .chain(named(CLIP, clip::tensors(clip)))
        .chain(named(TRANSFORMER, flux1::tensors(flux)))
        .chain(named(VAE, vae::tensors(vae)))
        .collect();
    configs["transformer"] = flux.to_json();
    configs["text_encoder"] = clip.to_json();
    configs["text_encoder_2"] = t5.to_json();
    configs["vae"] = vae.to_json();
    let (storage, dialect) = (Storage::F8ScaledNew, Dialect::Comfy);
    SynthSpec { seed: 7, tensors, grid: Grid::F32, storage, dialect, configs }
}

/// A small transformer whose weights are several times larger than those of the small parts here,
/// so that with little memory they are streamed.
pub fn small_flux() -> FluxConfig {
    FluxConfig {
        hidden: 512,
        heads: 4,
        mlp_hidden: 2048,
        depth_double: 2,
        depth_single: 6,
        context: 128,
        pooled: 64,
        ..FluxConfig::dev()
    }
}

/// A small T5 with the whole vocabulary.
pub fn small_t5(layers: usize) -> T5Config {
    T5Config { width: 128, heads: 2, head_dim: 64, ff: 256, layers, ..T5Config::xxl() }
}

/// A small CLIP with the whole vocabulary.
pub fn small_clip(layers: usize) -> ClipConfig {
    ClipConfig { width: 64, heads: 1, ff: 256, layers, ..ClipConfig::large() }
}

/// A small autoencoder that halves images once.
pub fn small_vae() -> VaeConfig {
    VaeConfig { channels: vec![32, 64], blocks: 1, ..VaeConfig::flux() }
}
