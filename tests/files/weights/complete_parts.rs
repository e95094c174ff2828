//! FLUX.2, Qwen3, ControlNets and the networks for styles are complete or refused, as FLUX.1 is: a
//! tensor that is missing is named, and never drawn around.

use std::path::Path;

use flux_fast::error::{Kind, Result};
use flux_fast::library::{networks, open_component};
use flux_fast::model::flux1::control::{Condition, ControlConfig, control_tensors};
use flux_fast::model::{
    Flux2Config, FluxConfig, Qwen3Config, ReduxConfig, SiglipConfig, TensorSpec, VaeConfig, flux2,
    qwen3, redux, siglip, vae,
};
use flux_fast::spec::flux1::{CONTROLNET, REDUX, SIGLIP};
use flux_fast::spec::flux2::{QWEN3, TRANSFORMER, VAE};
use flux_fast::spec::{Component, FAMILIES};
use flux_fast::weights::ComponentWeights;
use flux_fast::weights::synth::{Dialect, Grid, Storage, SynthSpec, write};
use serde_json::{Value, json};

use super::complete::Parsed;

/// Reads the sizes of a network and checks its tensors, as opening an engine does.
fn judge(w: &ComponentWeights) -> Result<Vec<String>> {
    match w.component() {
        c if c == TRANSFORMER => networks::flux2(w).map(|(_, notes)| notes),
        c if c == CONTROLNET => networks::controlnet(w).map(|(_, notes)| notes),
        c if c == QWEN3 => {
            networks::network(w, Qwen3Config::read, qwen3::tensors).map(|(_, notes)| notes)
        }
        c if c == VAE => networks::network(w, VaeConfig::read, vae::tensors).map(|(_, n)| n),
        c if c == REDUX => networks::network(w, ReduxConfig::read, redux::tensors).map(|(_, n)| n),
        _ => networks::network(w, SiglipConfig::read, siglip::tensors).map(|(_, n)| n),
    }
}

/// Removes each tensor of a network in turn: the error must be `Model` and have its name. Without
/// one of the tensors whose names end with `signs`, the network is not recognised: the error says
/// that the file does not contain it.
fn assert_each_is_missed(
    what: &str,
    component: Component,
    tensors: Vec<TensorSpec>,
    configs: Value,
    signs: &[&str],
) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("part.safetensors");
    let tensors = tensors.into_iter().map(|(name, shape)| (component, name, shape)).collect();
    let (grid, storage, dialect) = (Grid::F8, Storage::BF16, Dialect::Comfy);
    let spec = SynthSpec { seed: 3, tensors, grid, storage, dialect, configs };
    write(&spec, &path).unwrap();
    let whole = Parsed::read(&std::fs::read(&path).unwrap());
    let judged = |path: &Path| open_component(path, component, FAMILIES).and_then(|w| judge(&w));
    assert_eq!(judged(&path).unwrap_or_else(|e| panic!("{what}: {e}")), [""; 0], "{what}");
    for name in whole.tensors.keys() {
        std::fs::write(&path, whole.bytes(name)).unwrap();
        let e = judged(&path).err().unwrap_or_else(|| panic!("{what}: accepted without {name}"));
        assert_eq!(e.kind(), Kind::Model, "{what}, {name}: {e}");
        let words = match signs.iter().any(|sign| name.ends_with(sign)) {
            true => &format!("holds no {}", component.title),
            false => name,
        };
        assert!(e.to_string().contains(words), "{what}, {name}: {e}");
    }
}

fn flux1() -> FluxConfig {
    FluxConfig {
        hidden: 128,
        heads: 1,
        mlp_hidden: 512,
        depth_double: 2,
        depth_single: 2,
        context: 48,
        pooled: 32,
        ..FluxConfig::dev()
    }
}

#[test]
fn each_tensor_of_flux2_and_its_parts_is_missed() {
    let flux = Flux2Config {
        hidden: 128,
        heads: 1,
        mlp_hidden: 384,
        depth_double: 2,
        depth_single: 3,
        context: 96,
        ..Flux2Config::klein_4b()
    };
    assert_each_is_missed("FLUX.2", TRANSFORMER, flux2::tensors(&flux), json!({}), &[]);
    let text = Qwen3Config {
        vocab: 64,
        width: 32,
        heads: 2,
        kv_heads: 1,
        head_dim: 16,
        ff: 64,
        layers: 27,
        norm: false,
        ..Qwen3Config::qwen3_4b()
    };
    let configs = json!({ "text_encoder": text.to_json() });
    assert_each_is_missed("Qwen3", QWEN3, qwen3::tensors(&text), configs, &[]);
    let vae = VaeConfig { channels: vec![32, 64], blocks: 1, ..VaeConfig::flux2() };
    let configs = json!({ "vae": vae.to_json() });
    assert_each_is_missed("the autoencoder", VAE, vae::tensors(&vae), configs, &[]);
}

#[test]
fn each_tensor_of_a_controlnet_is_missed() {
    let pixels = Condition::Pixels { channels: 16 };
    for (what, condition, more, modes) in [
        ("latents", Condition::Latents, 0, None),
        ("a mask", Condition::MaskedLatents, 4, None),
        ("pixels", pixels, 0, None),
        ("modes", Condition::Latents, 0, Some(7)),
    ] {
        let flux = flux1();
        let condition_cols = flux.in_channels + more;
        let mut configs = json!({ "num_layers": 2, "num_single_layers": 2 });
        if let Some(modes) = modes {
            configs["num_mode"] = modes.into();
        }
        let config = ControlConfig { flux, condition, condition_cols, modes };
        let configs = json!({ "controlnet": configs });
        assert_each_is_missed(what, CONTROLNET, control_tensors(&config), configs, &[]);
    }
}

#[test]
fn each_tensor_of_the_networks_for_styles_is_missed() {
    let tower =
        SiglipConfig { image: 64, patch: 14, width: 72, heads: 1, ff: 96, layers: 2, eps: 1e-6 };
    let configs = json!({ "image_encoder": tower.to_json() });
    // CLIP's vision tower does not have this bias.
    let signs = ["patch_embedding.bias"];
    assert_each_is_missed("SigLIP", SIGLIP, siglip::tensors(&tower), configs, &signs);
    let adapter = ReduxConfig { inputs: 72, inner: 96, outputs: 48 };
    let configs = json!({ "image_embedder": adapter.to_json() });
    assert_each_is_missed("Redux", REDUX, redux::tensors(&adapter), configs, &[]);
}
