//! FLUX.2 [klein] at its full sizes through the program, as far as that needs no arithmetic: plans,
//! lists and refusals.

use std::path::{Path, PathBuf};
use std::process::Output;

use flux_fast::model::{Flux2Config, Qwen3Config, VaeConfig, flux2, qwen3, vae};
use flux_fast::spec::Component;
use flux_fast::spec::flux2::{QWEN3, TRANSFORMER, VAE};
use flux_fast::weights::synth::{self, Dialect, Grid, Storage, SynthSpec};
use serde_json::Value;

use super::runs::{command, run, text};

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}", text(output)))
}

/// A sparse file of one component without a configuration: its sizes follow from the shapes.
fn hollow(path: PathBuf, component: Component, tensors: Vec<(String, Vec<usize>)>) -> PathBuf {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let tensors = tensors.into_iter().map(|(n, s)| (component, n, s)).collect();
    let (grid, storage, dialect) = (Grid::F32, Storage::BF16, Dialect::Bfl);
    let spec = SynthSpec { seed: 1, tensors, grid, storage, dialect, configs: Value::Null };
    synth::write_hollow(&spec, &path).unwrap();
    path
}

fn klein_9b() -> (Flux2Config, Qwen3Config) {
    let flux = Flux2Config {
        hidden: 4096,
        heads: 32,
        mlp_hidden: 12288,
        depth_double: 8,
        depth_single: 24,
        context: 12288,
        ..Flux2Config::klein_4b()
    };
    (flux, Qwen3Config { width: 4096, ff: 12288, ..Qwen3Config::qwen3_4b() })
}

/// The folders of ComfyUI with klein 4B or 9B. Returns the transformer's file.
fn comfy(root: &Path, flux: &Flux2Config, text: &Qwen3Config, vae: &VaeConfig) -> PathBuf {
    hollow(root.join("text_encoders/qwen_3.safetensors"), QWEN3, qwen3::tensors(text));
    hollow(root.join("vae/flux2-vae.safetensors"), VAE, vae::tensors(vae));
    let path = root.join("diffusion_models/flux-2-klein.safetensors");
    hollow(path, TRANSFORMER, flux2::tensors(flux))
}

#[test]
fn klein_4b_is_planned_without_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let plan = |more: &[&str]| {
        let fixed = ["plan", "x", "--model", "synthetic:klein", "--device", "cpu", "--json"];
        run(dir.path(), &[&fixed[..], more].concat())
    };
    let plain = json(&plan(&["--ram", "64G"]));
    assert_eq!((&plain["steps"], &plain["width"]), (&4.into(), &1024.into()));
    let phases: Vec<&str> =
        plain["phases"].as_array().unwrap().iter().map(|p| p["phase"].as_str().unwrap()).collect();
    assert_eq!(phases, ["text", "modulate", "denoise", "decode"]);
    // The table of embeddings (0.78 GB) is not loaded: 27 layers in FP8 are 2.7 GB.
    let text_bytes = plain["phases"][0]["weight_bytes"].as_u64().unwrap();
    assert!((2_600_000_000..2_800_000_000).contains(&text_bytes), "{text_bytes}");
    let text = text(&plan(&["--ram", "500M"]));
    assert!(text.contains("budget") || text.contains("at least"), "{text}");
}

#[test]
fn klein_9b_is_planned_and_inspected_from_its_shapes() {
    let dir = tempfile::tempdir().unwrap();
    let (flux, qwen) = klein_9b();
    let model = comfy(dir.path(), &flux, &qwen, &VaeConfig::flux2());
    let model = model.to_str().unwrap();
    let arguments = ["plan", "x", "--model", model, "--device", "cpu", "--ram", "64G", "--json"];
    let plan = json(&run(dir.path(), &arguments));
    assert_eq!(plan["steps"], 4);
    let denoise = plan["phases"].as_array().unwrap().iter().find(|p| p["phase"] == "denoise");
    let bytes = denoise.unwrap()["weight_bytes"].as_u64().unwrap();
    assert!((17_000_000_000..18_200_000_000).contains(&bytes), "{bytes}");
    let inspected = run(dir.path(), &["inspect", model]);
    let text = text(&inspected);
    for word in ["FLUX.2 transformer", "klein", "4096"] {
        assert!(text.contains(word), "{word}: {text}");
    }
    assert!(inspected.status.success(), "{text}");
}

#[test]
fn the_small_decoder_of_bfl_is_planned_with_klein() {
    let dir = tempfile::tempdir().unwrap();
    let small = VaeConfig {
        channels: vec![96, 192, 384, 384],
        encoder_channels: Some(vec![128, 256, 512, 512]),
        ..VaeConfig::flux2()
    };
    let flux = Flux2Config::klein_4b();
    let model = comfy(dir.path(), &flux, &Qwen3Config::qwen3_4b(), &VaeConfig::flux2());
    let path = dir.path().join("other/full_encoder_small_decoder.safetensors");
    let small = hollow(path, VAE, vae::tensors(&small));
    let plan = |more: &[&str]| {
        let model = model.to_str().unwrap();
        let fixed = ["plan", "x", "--model", model, "--device", "cpu", "--ram", "64G", "--json"];
        let plan = json(&run(dir.path(), &[&fixed[..], more].concat()));
        let phases = plan["phases"].as_array().unwrap().clone();
        phases.iter().find(|p| p["phase"] == "decode").unwrap()["teraflop"].as_f64().unwrap()
    };
    let (usual, less) = (plan(&[]), plan(&["--vae", small.to_str().unwrap()]));
    assert!(less < 0.7 * usual, "{less} of {usual}");
}

#[test]
fn flux2_dev_is_refused_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Flux2Config {
        hidden: 6144,
        heads: 48,
        mlp_hidden: 18432,
        depth_double: 8,
        depth_single: 48,
        context: 15360,
        guidance: true,
        ..Flux2Config::klein_4b()
    };
    let path = dir.path().join("flux2-dev.safetensors");
    let path = hollow(path, TRANSFORMER, flux2::tensors(&dev));
    for command in ["plan", "generate"] {
        let arguments = [command, "x", "--model", path.to_str().unwrap(), "--device", "cpu"];
        let output = run(dir.path(), &arguments);
        let text = text(&output);
        assert_eq!(output.status.code(), Some(3), "{text}");
        for word in ["FLUX.2 [dev]", "Mistral Small", "FLUX.2 [klein] 4B or 9B"] {
            assert!(text.contains(word), "{word}: {text}");
        }
    }
}

#[test]
fn doctor_says_how_klein_fits_and_models_names_both_families() {
    let dir = tempfile::tempdir().unwrap();
    let doctor = text(&run(dir.path(), &["doctor"]));
    assert!(doctor.contains("klein"), "{doctor}");
    let mut models = command(dir.path(), &["models"]);
    models.env("HF_HUB_CACHE", dir.path()).env("FLUX_FAST_CONFIG", "");
    let text = text(&models.output().unwrap());
    assert!(text.contains("FLUX.2"), "{text}");
}
