//! A small repository of FLUX.1 Redux, for the embedded model.

use std::path::Path;

use flux_fast::library::open_bytes;
use flux_fast::model::{FluxConfig, ReduxConfig, SiglipConfig, redux, siglip};
use flux_fast::pipeline::embedded_model;
use flux_fast::spec::flux1::{REDUX, SIGLIP, TRANSFORMER};
use flux_fast::weights::synth::{self, Dialect, Grid, Storage, SynthSpec};
use serde_json::json;

/// Writes its files into `folder`, and returns their names.
pub fn write(folder: &Path) -> Vec<&'static str> {
    let checkpoint = open_bytes(embedded_model().unwrap(), "embedded").unwrap();
    let weights = checkpoint.get(TRANSFORMER).unwrap();
    let outputs = FluxConfig::read(weights, weights.config()).unwrap().context;
    let tower =
        SiglipConfig { image: 30, patch: 14, width: 72, heads: 1, ff: 96, layers: 1, eps: 1e-6 };
    let adapter = ReduxConfig { inputs: 72, inner: 96, outputs };
    let of_tower = siglip::tensors(&tower).into_iter().map(|(name, shape)| (SIGLIP, name, shape));
    let of_adapter = redux::tensors(&adapter).into_iter().map(|(name, shape)| (REDUX, name, shape));
    let spec = SynthSpec {
        seed: 3,
        tensors: of_tower.chain(of_adapter).collect(),
        grid: Grid::F32,
        storage: Storage::BF16,
        dialect: Dialect::Diffusers { shard_bytes: None },
        configs: json!({"image_encoder": tower.to_json(), "image_embedder": adapter.to_json()}),
    };
    synth::write(&spec, folder).unwrap();
    vec![
        "image_embedder/config.json",
        "image_embedder/diffusion_pytorch_model.safetensors",
        "image_encoder/config.json",
        "image_encoder/model.safetensors",
        "model_index.json",
    ]
}
