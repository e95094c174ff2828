//! Plans of requests with images: masks, Fill, Depth, Kontext, Redux and ControlNets. A plan must
//! predict the memory that a run takes, and a bound must be kept, with resident weights and in the
//! least memory that the first refusal names.

use std::path::Path;
use std::process::Command;

use flux_fast::model::flux1::control::{Condition, ControlConfig, control_tensors};
use flux_fast::model::{FluxConfig, ReduxConfig, SiglipConfig, VaeConfig, redux, siglip};
use flux_fast::spec::Component;
use flux_fast::spec::flux1::{CONTROLNET, REDUX, SIGLIP};
use flux_fast::weights::synth::{self, Dialect, Grid, Storage, SynthSpec};
use image::{GrayImage, Luma, Rgb, RgbImage};
use serde_json::{Value, json};

use crate::checkpoint::{checkpoint, small_clip, small_flux, small_t5};
use crate::common::temp_dir;
use crate::cuda::program::{named, program};

/// Bytes of a context of the fake driver.
const CONTEXT: u64 = 300 << 20;

/// A name for messages, the name of the model, and the arguments besides the prompt. Files are
/// those of [`write_files`].
const CASES: [(&str, &str, &[&str]); 8] = [
    ("start", "flux1-dev", &["-i", "photo.png", "--size", "256x192"]),
    ("mask", "flux1-dev", &["-i", "photo.png", "--mask", "mask.png", "--mask-blur", "4"]),
    ("margins", "flux1-dev", &["-i", "photo.png", "--outpaint", "40,0,40,0"]),
    ("fill", "flux1-fill-dev", &["-i", "photo.png", "--mask", "mask.png"]),
    ("control", "flux1-depth-dev", &["--control", "photo.png", "--size", "256x256"]),
    ("reference", "flux1-kontext-dev", &["--reference", "photo.png", "--size", "256x256"]),
    (
        "styles",
        "flux1-dev",
        &[
            "--style",
            "photo.png",
            "--style",
            "mask.png:0.5",
            "--redux",
            "redux.safetensors",
            "--siglip",
            "siglip.safetensors",
            "--size",
            "256x256",
        ],
    ),
    (
        "controlnets",
        "flux1-dev",
        &[
            "--controlnet",
            "net.safetensors:photo.png:0.7",
            "--controlnet",
            "inpaint.safetensors:photo.png",
            "-i",
            "photo.png",
            "--mask",
            "mask.png",
        ],
    ),
];

fn small(in_channels: usize) -> FluxConfig {
    FluxConfig { in_channels, ..small_flux() }
}

/// Writes a transformer with its text encoders and autoencoder as a sparse file of zeros.
fn write_model(path: &Path, in_channels: usize) {
    let (flux, t5, clip) = (small(in_channels), small_t5(1), small_clip(1));
    let vae = VaeConfig { channels: vec![32, 32, 64, 64], blocks: 1, ..VaeConfig::flux() };
    let more = json!({ "tokenizer_2": { "model_max_length": 8 } });
    synth::write_hollow(&checkpoint(&flux, &t5, &clip, &vae, more), path).unwrap();
}

fn write_network(
    path: &Path,
    component: Component,
    tensors: Vec<(String, Vec<usize>)>,
    configs: Value,
    dialect: Dialect,
) {
    let tensors = tensors.into_iter().map(|(name, shape)| (component, name, shape)).collect();
    let (grid, storage) = (Grid::F32, Storage::BF16);
    let spec = SynthSpec { seed: 5, tensors, grid, storage, dialect, configs };
    match dialect {
        // Hollow files exist in this dialect only.
        Dialect::Comfy => synth::write_hollow(&spec, path).unwrap(),
        _ => drop(synth::write(&spec, path).unwrap()),
    }
}

/// Writes all models, networks and images that the cases name.
fn write_files(folder: &Path) {
    let file = |name: &str| folder.join(format!("{name}.safetensors"));
    let inputs = [("dev", 64), ("fill-dev", 384), ("depth-dev", 128), ("kontext-dev", 64)];
    inputs.iter().for_each(|(name, n)| write_model(&file(&format!("flux1-{name}")), *n));
    let tower =
        SiglipConfig { image: 64, patch: 14, width: 72, heads: 1, ff: 96, layers: 1, eps: 1e-6 };
    let adapter = ReduxConfig { inputs: 72, inner: 96, outputs: 128 };
    let config = json!({ "image_encoder": tower.to_json() });
    write_network(&file("siglip"), SIGLIP, siglip::tensors(&tower), config, Dialect::Comfy);
    let config = json!({ "image_embedder": adapter.to_json() });
    write_network(&file("redux"), REDUX, redux::tensors(&adapter), config, Dialect::Comfy);
    for (name, condition, condition_cols) in
        [("net", Condition::Latents, 64), ("inpaint", Condition::MaskedLatents, 68)]
    {
        let flux = FluxConfig { depth_double: 2, depth_single: 1, ..small(64) };
        let config = ControlConfig { flux, condition, condition_cols, modes: None };
        let tensors = control_tensors(&config);
        write_network(&file(name), CONTROLNET, tensors, json!({}), Dialect::Bfl);
    }
    let (width, height) = (320, 256);
    let photo = RgbImage::from_fn(width, height, |x, y| Rgb([x as u8, y as u8, (x * y) as u8]));
    photo.save(folder.join("photo.png")).unwrap();
    let mask = GrayImage::from_fn(width, height, |x, y| Luma([255 * u8::from(x > 90 && y > 60)]));
    mask.save(folder.join("mask.png")).unwrap();
}

/// The arguments of a case, with the paths of its files in `folder`.
fn arguments(folder: &Path, model: &str, more: &[&str]) -> Vec<String> {
    let path = |name: &str| folder.join(name).display().to_string();
    // An argument may join files and a strength: `net.safetensors:photo.png:0.7`.
    let part = |part: &str| match part.ends_with(".png") || part.ends_with(".safetensors") {
        true => path(part),
        false => part.to_string(),
    };
    let more = more.iter().map(|a| a.split(':').map(part).collect::<Vec<_>>().join(":"));
    let model = path(&format!("{model}.safetensors"));
    let base =
        ["a lighthouse", "--steps", "2", "--seed", "1", "--no-cache", "-q", "--model", &model];
    base.map(String::from).into_iter().chain(more).collect()
}

/// On a GPU: a run allocates the bytes of its plan, which keeps the bound: with 4 GB, where all
/// weights are resident, and with the least memory, where they are streamed or images are processed
/// in bands.
#[test]
fn plans_of_requests_with_images_predict_device_memory() {
    let folder = temp_dir();
    write_files(folder.path());
    let settings =
        format!("visible=0,context={CONTEXT},kernels=skip,copies=skip,checks=0,poison=0");
    let out = folder.path().join("out.png").display().to_string();
    for (name, model, more) in CASES {
        let request = arguments(folder.path(), model, more);
        let run = |more: &[&str]| {
            let request = request.iter().map(String::as_str).chain(["--device", "cuda"]);
            program(&settings, &more.iter().copied().chain(request).collect::<Vec<_>>())
        };
        let Some(refused) = run(&["plan", "--vram", "1M"]) else { return };
        let least = named(&refused, "--vram");
        let mut peaks = vec![];
        for vram in ["4G", &least] {
            let plan = run(&["plan", "--json", "--vram", vram]).unwrap().succeeded().json();
            let ran = run(&["--vram", vram, "-o", &out]).unwrap().succeeded();
            let peak = ran.line("device")["peak"].as_u64().unwrap();
            let spared = plan["overhead_bytes"].as_u64().unwrap() - CONTEXT;
            assert_eq!(plan["peak_bytes"], peak + spared, "{name} in {vram}: not as planned");
            assert!(plan["peak_bytes"].as_u64() <= plan["budget_bytes"].as_u64(), "{name}: {plan}");
            let phases = plan["phases"].as_array().unwrap().iter();
            let small = phases.filter(|p| p["streamed_bytes_per_run"] != 0 || p["bands"] != 0);
            assert_eq!(small.count() > 0, vram != "4G", "{name} in {vram}: {plan}");
            peaks.push(peak);
        }
        assert!(peaks[1] < peaks[0], "{name}: {peaks:?}");
        println!("{name}: {peaks:?} bytes");
    }
}

/// On the CPU: with the least memory that the refusals of a plan name, the process keeps to it.
#[cfg(target_os = "linux")]
#[test]
fn requests_with_images_stay_within_the_least_memory() {
    let folder = temp_dir();
    write_files(folder.path());
    let run = |arguments: &[String]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_flux-fast"));
        command.current_dir(folder.path()).env("FLUX_FAST_CONFIG", "").env("MALLOC_ARENA_MAX", "1");
        let output = command.args(arguments).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    for (name, model, more) in CASES {
        let request = arguments(folder.path(), model, more);
        let with = |more: &[&str]| {
            let more = more.iter().map(|s| s.to_string());
            run(&more.chain(request.iter().cloned()).collect::<Vec<_>>())
        };
        // The refusal may be about an image, and names what is enough for all of it.
        let (code, _, said) = with(&["plan", "--device", "cpu", "--ram", "1M"]);
        assert_eq!(code, Some(5), "{name}: {said}");
        let hint = said.split("--ram ").nth(1).and_then(|text| text.split('M').next());
        let least: u64 = hint.unwrap().parse().unwrap_or_else(|_| panic!("{name}: {said}"));
        let ram = format!("{least}M");
        let base = ["--device", "cpu", "--threads", "2", "--json", "-o", "out.png", "--ram", &ram];
        let (code, out, said) = with(&base);
        assert_eq!(code, Some(0), "{name} in {ram}: {said}");
        let report: Value = serde_json::from_str(&out).unwrap();
        let peak = report["peak_memory_bytes"].as_u64().unwrap();
        println!("{name}: peak {peak} of {least} MB");
        assert!(peak <= least * 1_000_000, "{name}: peak {peak} of {least} MB");
        std::fs::remove_file(folder.path().join("out.png")).unwrap();
    }
}
