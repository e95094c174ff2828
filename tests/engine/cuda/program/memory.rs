//! Models in the memory of GPUs: resident, streamed, and of full size on small cards.

use std::path::{Path, PathBuf};

use flux_fast::model::{
    ClipConfig, Flux2Config, FluxConfig, Qwen3Config, T5Config, VaeConfig, flux2, qwen3, vae,
};
use flux_fast::weights::synth::{self, Dialect, Grid, Storage, SynthSpec};
use serde_json::{Value, json};

use super::{Ran, pixels, program, program_with};
use crate::checkpoint::{checkpoint, small_clip, small_flux, small_t5, small_vae};
use crate::common::temp_dir;

fn small(folder: &Path) -> PathBuf {
    let more = json!({ "tokenizer_2": { "model_max_length": 8 },
        "generation": { "num_inference_steps": 2, "width": 32, "height": 32 } });
    let spec = checkpoint(&small_flux(), &small_t5(1), &small_clip(1), &small_vae(), more);
    let path = folder.join("small.safetensors");
    synth::write(&spec, &path).unwrap();
    path
}

/// The megabytes that a refusal suggests for `flag`.
#[track_caller]
pub fn named(ran: &Ran, flag: &str) -> String {
    let messages = ran.messages();
    assert_eq!(ran.output.status.code(), Some(5), "{messages}");
    let number = messages.split(&format!("{flag} ")).nth(1).and_then(|t| t.split('M').next());
    format!("{}M", number.unwrap_or_else(|| panic!("{messages}")))
}

/// Weights that are resident, streamed through the ring of chunks, and streamed from pinned copies:
/// the same image file, and no more pinned memory than `--ram` allows.
#[test]
fn streamed_equals_resident_and_pinned_memory_is_bounded() {
    const RING: u64 = 32 << 20;
    let folder = temp_dir();
    let model = small(folder.path());
    let out = folder.path().join("out.png");
    let request = [
        "a lighthouse",
        "-s",
        "5",
        "--device",
        "cuda:0",
        "--no-cache",
        "-q",
        "--model",
        model.to_str().unwrap(),
    ];
    let plan = |more: &[&str]| program("", &[&["plan"], &request[..], more].concat());
    let Some(refused) = plan(&["--vram", "1M"]) else { return };
    let vram = named(&refused, "--vram");
    let ram = named(&plan(&["--ram", "1M"]).unwrap(), "--ram");
    let streamed = |more: &[&str]| {
        let plan = plan(&[&["--json"], more].concat()).unwrap().succeeded().json();
        (streamed_bytes(&plan), plan["pinned_bytes"].as_u64().unwrap())
    };
    assert_eq!(streamed(&[]).0, 0, "all of it stays where there is room");
    let (bytes, may_pin) = streamed(&["--vram", &vram, "--ram", &ram]);
    assert!(
        bytes > 12_000_000 && may_pin < bytes / 2,
        "{bytes} bytes are streamed, {may_pin} may be pinned"
    );

    let draw = |settings: &str, more: &[&str]| {
        let ran = program(settings, &[&request[..], &["-o", out.to_str().unwrap()], more].concat())
            .unwrap()
            .succeeded();
        ran.kernels();
        let allocations = ran.line("pinned")["allocations"].as_array().unwrap().len();
        (pixels(&out), ran.pinned(), allocations)
    };
    let (resident, pinned, ring) = draw("order=early,checks=0", &[]);
    assert_eq!(pinned, RING, "nothing passes twice");
    for (settings, ram, least) in [
        ("order=late,checks=0", ram.as_str(), 0),
        ("order=early,checks=0", "20G", bytes * 9 / 10),
        ("order=random:1", "20G", bytes * 9 / 10),
    ] {
        let (picture, pinned, allocations) = draw(settings, &["--vram", &vram, "--ram", ram]);
        // In one slab that was pinned before, and not matrix by matrix.
        let slabs = allocations - ring;
        assert!(slabs <= 4, "{settings}: {slabs} allocations of pinned memory");
        assert!(picture == resident, "{settings}: streamed and resident differ");
        // The memory of the process itself, and so the rest of `--ram`, varies a little.
        let most = if least == 0 { bytes * 3 / 4 } else { bytes + bytes / 2 };
        assert!(
            (RING + least..=RING + most).contains(&pinned),
            "{settings}: {pinned} bytes pinned, {bytes} streamed"
        );
    }
}

/// A checkpoint of full size as a sparse file of zeros.
fn full_size(path: &Path, flux: &FluxConfig) {
    let (t5, clip, vae) = (T5Config::xxl(), ClipConfig::large(), VaeConfig::flux());
    let spec = checkpoint(flux, &t5, &clip, &vae, json!({}));
    synth::write_hollow(&spec, path).unwrap();
}

/// The files of FLUX.2 [klein] 4B in FP8 as sparse files of zeros.
fn klein(path: &Path) {
    use flux_fast::spec::flux2::{QWEN3, TRANSFORMER, VAE};
    let (flux, text, vae) = (Flux2Config::klein_4b(), Qwen3Config::qwen3_4b(), VaeConfig::flux2());
    let named = |component, list: Vec<(String, Vec<usize>)>| {
        list.into_iter().map(move |(n, s)| (component, n, s))
    };
    let tensors = named(QWEN3, qwen3::tensors(&text))
        .chain(named(TRANSFORMER, flux2::tensors(&flux)))
        .chain(named(VAE, vae::tensors(&vae)))
        .collect();
    let configs = json!({ "transformer": flux.to_json(), "text_encoder": text.to_json(),
        "vae": vae.to_json() });
    let (storage, dialect) = (Storage::F8ScaledNew, Dialect::Comfy);
    let spec = SynthSpec { seed: 7, tensors, grid: Grid::F32, storage, dialect, configs };
    synth::write_hollow(&spec, path).unwrap();
}

/// Memory of a context, in bytes.
const CONTEXT: u64 = 300 << 20;

/// An image of 1024x1024 as it was planned, and as it was drawn.
struct Drawn {
    plan: Value,
    ran: Ran,
    /// Peak device memory, in bytes.
    peak: u64,
}

/// Plans and draws an image of 1024x1024 with `model` on the card of `settings`, which has
/// `gigabytes` GB. Checks that this is enough and that the peak is the planned one. Allocations and
/// copies are the real ones; kernels are counted, not run (a step would take a day).
#[track_caller]
fn draw_on_card(settings: &str, gigabytes: u64, model: &Path, more: &[&str]) -> Option<Drawn> {
    let out = model.with_extension("png");
    let (path, vram) = (model.to_str().unwrap(), format!("{gigabytes}G"));
    let settings =
        format!("{settings},context={CONTEXT},kernels=skip,copies=skip,checks=0,poison=0");
    let request = ["a lighthouse", "--device", "cuda", "--model", path, "--vram", &vram];
    let request = [&request[..], &["--size", "1024x1024", "--no-cache", "-q"], more].concat();
    let plan = program(&settings, &[&["plan", "--json"], &request[..]].concat())?;
    let plan = plan.succeeded().json();
    let ran = program(&settings, &[&request[..], &["-o", out.to_str().unwrap()]].concat());
    let ran = ran.unwrap().succeeded();
    let peak = ran.line("device")["peak"].as_u64().unwrap();
    assert!(peak <= gigabytes * 1_000_000_000, "{path}: {peak} bytes of {vram}");
    let spared = plan["overhead_bytes"].as_u64().unwrap() - CONTEXT;
    assert_eq!(plan["peak_bytes"], peak + spared, "{path} in {vram}: not as planned");
    Some(Drawn { plan, ran, peak })
}

/// Bytes that are streamed in each step of denoising.
#[track_caller]
fn streamed_bytes(plan: &Value) -> u64 {
    let phases = plan["phases"].as_array().unwrap();
    let denoise = phases.iter().find(|p| p["phase"] == "denoise").unwrap();
    denoise["streamed_bytes_per_run"].as_u64().unwrap()
}

/// FLUX.2 [klein] 4B in FP8 on cards of 8, 6 and 4 GB, with the text encoder and the autoencoder:
/// at 8 GB and at 6 GB nothing is streamed while denoising; at 4 GB a part of the blocks is.
#[test]
fn klein_fits_in_8_gb_in_6_gb_and_streamed_in_4_gb() {
    let folder = temp_dir();
    let path = folder.path().join("klein.safetensors");
    klein(&path);
    for (gigabytes, streams) in [(8, false), (6, false), (4, true)] {
        let settings = format!("visible=0,memory.0={}M", gigabytes * 1_000_000_000 / (1 << 20));
        let Some(Drawn { plan, ran, peak }) = draw_on_card(&settings, gigabytes, &path, &[]) else {
            return;
        };
        assert_eq!(plan["steps"], 4);
        let streamed = streamed_bytes(&plan);
        assert_eq!(streamed > 0, streams, "{gigabytes} GB: {plan}");
        let kernels: Vec<&str> = ran.report.iter().filter_map(|v| v["kernel"].as_str()).collect();
        for kernel in ["attention_d128", "attention_d128_masked"] {
            assert!(kernels.contains(&kernel), "{gigabytes} GB: no {kernel} of {kernels:?}");
        }
        assert!(!kernels.contains(&"attention_any"), "{gigabytes} GB: {kernels:?}");
        println!("klein in {gigabytes} GB: peak {peak}, {streamed} bytes streamed in a step");
    }
}

/// The second image of a prompt does not load the text encoder.
#[test]
fn the_embeddings_of_klein_are_cached_on_disk() {
    let folder = temp_dir();
    let (path, cache) = (folder.path().join("klein.safetensors"), folder.path().join("cache"));
    klein(&path);
    let draw = |prompt: &str, seed: &str| {
        let out = folder.path().join(format!("{seed}.png"));
        let arguments = ["--device", "cuda", "--size", "64x64", "--steps", "1", "--vram", "8G"];
        let more = ["--model", path.to_str().unwrap(), "--seed", seed, "-o", out.to_str().unwrap()];
        let settings = "visible=0,kernels=skip,copies=skip,checks=0,poison=0";
        let all = [&[prompt][..], &arguments, &more].concat();
        let ran = program_with(&[("FLUX_FAST_CACHE", &cache)], settings, &all)?.succeeded();
        let ran_encoder = ran.report.iter().any(|v| v["kernel"] == "attention_d128_masked");
        Some((ran.messages().contains("found in the cache"), ran_encoder))
    };
    let Some(first) = draw("a lighthouse", "1") else { return };
    assert_eq!(first, (false, true));
    assert_eq!(draw("a lighthouse", "2"), Some((true, false)));
    assert_eq!(draw("a lighthouse at dusk", "3"), Some((false, true)));
}

/// FLUX.1 dev in 12 GB and schnell in 8 GB, with text encoders and autoencoder, on cards that have
/// no more memory.
#[test]
fn dev_fits_in_12_gb_and_schnell_in_8() {
    for (name, flux, card, gigabytes) in [
        ("dev", FluxConfig::dev(), "visible=0", 12),
        ("schnell", FluxConfig::schnell(), "visible=1", 8),
    ] {
        let folder = temp_dir();
        let path = folder.path().join(format!("{name}.safetensors"));
        full_size(&path, &flux);
        let Some(Drawn { plan, ran, peak }) =
            draw_on_card(card, gigabytes, &path, &["--steps", "2"])
        else {
            return;
        };
        if name == "dev" {
            // All blocks of dev are resident: nothing is streamed while denoising.
            assert_eq!((&plan["own_memory"], streamed_bytes(&plan)), (&json!(true), 0), "{plan}");
        }
        assert!(peak > gigabytes * 700_000_000, "{name}: only {peak} bytes of {gigabytes} GB used");
        // Besides the context there is one allocation at a time, and the phases share it.
        let pieces = ran.line("device")["allocations"].as_array().unwrap();
        let pieces: Vec<u64> = pieces.iter().map(|n| n.as_u64().unwrap()).collect();
        assert_eq!(pieces.iter().max(), Some(&(peak - CONTEXT)), "{name}: {pieces:?}");
        assert!(pieces.iter().all(|&n| n > 64 << 20) && pieces.len() <= 5, "{name}: {pieces:?}");
        let kernels = ran.report.iter().filter_map(|v| v["kernel"].as_str());
        assert!(kernels.into_iter().any(|k| k == "attention_d128"), "{name}: {:?}", ran.report);
        println!("{name}: peak {peak}, in pieces of {pieces:?}, {} pinned", ran.pinned());
    }
}
