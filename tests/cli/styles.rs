//! `--style` through the program: small networks for the embedded model, and the published sizes as
//! far as they need no arithmetic.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use flux_fast::library::{Files, open};
use flux_fast::model::{
    ClipConfig, FluxConfig, ReduxConfig, SiglipConfig, T5Config, TensorSpec, VaeConfig, clip,
    flux1, redux, siglip, t5, vae,
};
use flux_fast::spec::Component;
use flux_fast::spec::flux1::{CLIP, REDUX, SIGLIP, T5, TRANSFORMER, VAE};
use flux_fast::weights::synth::{self, Dialect, Grid, Storage, SynthSpec};
use serde_json::{Value, json};

use super::runs::{command, done, photo, pixels, text};

/// Runs without the user's own cache of models.
fn run(folder: &Path, arguments: &[&str], exit: i32) -> Output {
    let mut command = command(folder, arguments);
    let output = command.env("HF_HUB_CACHE", folder.join("no-cache")).output().unwrap();
    assert_eq!(output.status.code(), Some(exit), "{arguments:?}: {}", text(&output));
    assert!(!text(&output).contains("panicked"), "{}", text(&output));
    output
}

fn small_tower() -> SiglipConfig {
    SiglipConfig { image: 64, patch: 14, width: 72, heads: 1, ff: 96, layers: 1, eps: 1e-6 }
}

fn spec(parts: Vec<(Component, Vec<TensorSpec>)>, configs: Value) -> SynthSpec {
    let named = |(c, list): (Component, Vec<TensorSpec>)| {
        list.into_iter().map(move |(name, shape)| (c, name, shape))
    };
    SynthSpec {
        seed: 5,
        tensors: parts.into_iter().flat_map(named).collect(),
        grid: Grid::F32,
        storage: Storage::BF16,
        dialect: Dialect::Bfl,
        configs,
    }
}

/// The embedded model as `models/checkpoints/tiny.safetensors`, with small networks for styles in
/// the folders of ComfyUI.
pub fn tiny(folder: &Path) -> PathBuf {
    let model = folder.join("models/checkpoints/tiny.safetensors");
    run(folder, &["convert", "embedded", "-o", model.to_str().unwrap()], 0);
    let checkpoint = open(&Files::model(&model)).unwrap();
    let weights = checkpoint.get(TRANSFORMER).unwrap();
    let context = FluxConfig::read(weights, weights.config()).unwrap().context;
    let (tower, adapter) = (small_tower(), ReduxConfig { inputs: 72, inner: 96, outputs: context });
    let files = folder.join("files");
    let parts = vec![(SIGLIP, siglip::tensors(&tower)), (REDUX, redux::tensors(&adapter))];
    let configs = json!({"image_encoder": tower.to_json(), "image_embedder": adapter.to_json()});
    synth::write(&spec(parts, configs), &files).unwrap();
    for (name, place) in [
        ("sigclip_vision_patch14_384.safetensors", "clip_vision"),
        ("flux1-redux-dev.safetensors", "style_models"),
    ] {
        let place = folder.join("models").join(place);
        fs::create_dir(&place).unwrap();
        fs::rename(files.join(name), place.join(name)).unwrap();
    }
    model
}

#[test]
fn styles_change_the_image_and_are_recorded() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    let model = tiny(folder);
    photo(folder, "a.png", 90, 60);
    photo(folder, "b:0.7.png", 33, 70);
    let fixed = ["--model", model.to_str().unwrap(), "--device", "cpu", "--steps", "2"];
    let draw = |more: &[&str], exit| {
        let base = ["a fox", "--seed", "3"];
        text(&run(folder, &[&base[..], &fixed, more].concat(), exit))
    };
    let said = draw(&["-o", "plain.png"], 0);
    assert!(!said.contains("siglip"), "{said}");
    let said = draw(&["-o", "one.png", "--style", "a.png"], 0);
    assert!(said.contains("redux: ") && said.contains("siglip: "), "{said}");
    let two = ["-o", "two.png", "--style", "a.png:0.25", "--style", "b:0.7.png"];
    draw(&two, 0);
    let image = |name: &str| pixels(&folder.join(name));
    assert!(image("plain.png") != image("one.png") && image("one.png") != image("two.png"));
    let shown = text(&run(folder, &["inspect", "two.png"], 0));
    assert!(shown.contains("style strengths: 0.25, 1\n"), "{shown}");
    // Again: with the same images, whose strengths are in the file; and not without them.
    let again = |more: &[&str], exit| {
        let base = ["again", "two.png", "--device", "cpu", "-o", "again.png"];
        text(&run(folder, &[&base[..], more].concat(), exit))
    };
    let e = again(&[], 2);
    assert!(e.contains("--style") && e.contains("found 0 style images, expected 2"), "{e}");
    again(&["--style", "a.png"], 2);
    again(&["--style", "a.png", "--style", "b:0.7.png"], 0);
    assert!(image("again.png") == image("two.png"));
    // Both networks given by name.
    let given = ["--redux", "flux1-redux-dev", "--siglip", "models/clip_vision"];
    draw(&[&given[..], &["-o", "given.png", "--style", "a.png"]].concat(), 0);
    assert!(image("given.png") == image("one.png"));
    for (style, words) in [
        ("a.png:11", "from 0 to 10"),
        ("a.png:-1", "from 0 to 10"),
        ("a.png:nan", "from 0 to 10"),
        ("a.png:x", "is not a strength"),
        (":1", "expected an image"),
    ] {
        let said = draw(&["-o", "x.png", "--style", style], 2);
        assert!(said.contains("--style") && said.contains(words), "{style}: {said}");
    }
    fs::write(folder.join("broken.png"), &fs::read(folder.join("a.png")).unwrap()[..90]).unwrap();
    for (style, exit) in [("broken.png", 2), ("none.png", 4), ("files", 2)] {
        let said = draw(&["-o", "x.png", "--style", style], exit);
        assert!(said.contains(style) && said.contains("--style"), "{said}");
    }
    assert!(!folder.join("x.png").exists());
}

/// A sparse file of one component in its published size.
fn hollow(path: PathBuf, component: Component, tensors: Vec<TensorSpec>) -> PathBuf {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    synth::write_hollow(&spec(vec![(component, tensors)], Value::Null), &path).unwrap();
    path
}

#[test]
fn published_sizes_are_planned_listed_and_converted() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("models");
    let dev = FluxConfig::dev();
    let path = root.join("diffusion_models/flux1-dev.safetensors");
    let model = hollow(path, TRANSFORMER, flux1::tensors(&dev));
    let text_encoders = root.join("text_encoders");
    hollow(text_encoders.join("t5xxl.safetensors"), T5, t5::tensors(&T5Config::xxl()));
    hollow(text_encoders.join("clip_l.safetensors"), CLIP, clip::tensors(&ClipConfig::large()));
    hollow(root.join("vae/ae.safetensors"), VAE, vae::tensors(&VaeConfig::flux()));
    let tower = siglip::tensors(&SiglipConfig::so400m());
    let tower = hollow(root.join("clip_vision/sigclip.safetensors"), SIGLIP, tower);
    let adapter = redux::tensors(&ReduxConfig::dev());
    let adapter = hollow(root.join("style_models/redux.safetensors"), REDUX, adapter);
    photo(dir.path(), "a.png", 640, 480);
    let plan = |more: &[&str]| -> Value {
        let base = ["plan", "x", "--model", model.to_str().unwrap(), "--device", "cpu"];
        let output = run(dir.path(), &[&base[..], &["--ram", "64G", "--json"], more].concat(), 0);
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let (plain, one) = (plan(&[]), plan(&["--style", "a.png"]));
    let three = plan(&["--style", "a.png", "--style", "a.png:0.5", "--style", "a.png"]);
    let phases = |plan: &Value, name: &str| -> Vec<Value> {
        let all = plan["phases"].as_array().unwrap().iter();
        all.filter(|p| p["phase"] == name).cloned().collect()
    };
    assert!(phases(&plain, "style").is_empty());
    let style = phases(&one, "style");
    let bytes: Vec<u64> = style.iter().map(|p| p["weight_bytes"].as_u64().unwrap()).collect();
    // SigLIP so400m without its head has 413 million values, the adapter 64.5 million.
    assert_eq!(bytes.len(), 2);
    assert!((820_000_000..840_000_000).contains(&bytes[0]), "{bytes:?}");
    assert!((128_000_000..131_000_000).contains(&bytes[1]), "{bytes:?}");
    assert_eq!(phases(&three, "style")[0]["runs"], 3);
    let arena = |plan: &Value| phases(plan, "denoise")[0]["arena_bytes"].as_u64().unwrap();
    let each = (arena(&three) - arena(&plain)) / 3;
    assert!(arena(&one) - arena(&plain) > 729 * 3072 * 2 && each > 729 * 3072 * 2);
    // What is in the files, and how to use them.
    let inspect = |path: &Path| text(&run(dir.path(), &["inspect", path.to_str().unwrap()], 0));
    let said = inspect(&tower);
    assert!(said.contains("SigLIP vision tower") && said.contains("layers 27"), "{said}");
    assert!(said.contains("tokens 729") && said.contains("width 1152"), "{said}");
    let said = inspect(&adapter);
    assert!(said.contains("FLUX Redux adapter") && said.contains("outputs 4096"), "{said}");
    let mut list = command(dir.path(), &["models", "--json"]);
    let list = list.env("COMFYUI_PATH", dir.path()).env("HF_HUB_CACHE", dir.path().join("none"));
    let list: Value = serde_json::from_slice(&list.output().unwrap().stdout).unwrap();
    let kinds: Vec<&str> =
        list["models"].as_array().unwrap().iter().filter_map(|m| m["kind"].as_str()).collect();
    assert!(kinds.contains(&"siglip") && kinds.contains(&"redux"), "{list}");
    // A LoRA it is not, and the error says what it is for.
    let base = ["plan", "x", "--model", model.to_str().unwrap(), "--device", "cpu", "--lora"];
    let said = text(&run(dir.path(), &[&base[..], &[adapter.to_str().unwrap()]].concat(), 3));
    assert!(said.contains("Redux adapter, not a LoRA") && said.contains("--style"), "{said}");
}

#[test]
fn both_networks_are_converted() {
    let dir = tempfile::tempdir().unwrap();
    let model = tiny(dir.path());
    photo(dir.path(), "a.png", 90, 60);
    let convert = |from: &str, to: &str| {
        let from = dir.path().join("models").join(from);
        done(dir.path(), &["convert", from.to_str().unwrap(), "--to", "int8", "-o", to, "--json"])
    };
    let report = convert("style_models/flux1-redux-dev.safetensors", "redux.safetensors");
    assert_eq!(report["quantised"], 2, "{report}");
    let report =
        convert("clip_vision/sigclip_vision_patch14_384.safetensors", "siglip.safetensors");
    assert_eq!(report["quantised"], 6, "{report}");
    let model = model.to_str().unwrap();
    let base = ["a fox", "--model", model, "--device", "cpu", "--steps", "1", "--seed", "1"];
    let given = ["--redux", "redux.safetensors", "--siglip", "siglip.safetensors"];
    let draw =
        |more: &[&str]| run(dir.path(), &[&base[..], &["--style", "a.png"], more].concat(), 0);
    draw(&["-o", "a0.png"]);
    draw(&[&given[..], &["-o", "a1.png"]].concat());
    let (a, b) = (pixels(&dir.path().join("a0.png")), pixels(&dir.path().join("a1.png")));
    let far = a.as_raw().iter().zip(b.as_raw()).map(|(a, b)| u64::from(a.abs_diff(*b)));
    let mean = far.sum::<u64>() as f64 / a.as_raw().len() as f64;
    assert!(a != b && mean < 8.0, "{mean}");
}
