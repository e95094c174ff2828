//! The CUDA backend over a driver without a GPU: memory, streams, graphs, errors, and the whole engine through the command line. The kernels themselves
//! are in `tests/ops`. Tests that want a driver of their own kind run the program, with `FLUX_FAKE_CUDA` in its environment.

mod common;
#[path = "common/driver.rs"]
mod driver;

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::process::{Command, Output};

use common::{Input, files, least_bytes, psnr, resolve, run, temp_dir};
use flux_fast::backend::Backend;
use flux_fast::backend::cuda::{CudaBackend, CudaOptions};
use flux_fast::dtype::DType;
use flux_fast::error::Kind;
use flux_fast::model::flux::{self, DenoiseShape};
use flux_fast::model::{ClipConfig, FluxConfig, T5Config, VaeConfig, clip, t5, vae};
use flux_fast::op::Program;
use flux_fast::plan;
use flux_fast::stream::{Holdings, Session, Tenancy};
use flux_fast::tensor::HostWeight;
use flux_fast::weights::synth::{self, Dialect, Grid, Storage, SynthSpec};
use flux_fast::weights::{Component, Files, open};
use serde_json::{Value, json};

fn gpu(pinned_bytes: u64) -> CudaBackend {
    CudaBackend::new(CudaOptions { ordinal: driver::RTX_3060, pinned_bytes, ..CudaOptions::default() }).unwrap()
}

fn config() -> FluxConfig {
    FluxConfig {
        hidden: 256,
        heads: 2,
        mlp_hidden: 1024,
        depth_double: 2,
        depth_single: 3,
        context: 64,
        pooled: 32,
        ..FluxConfig::dev()
    }
}

/// A denoiser with its weights and inputs.
struct Denoiser {
    program: Program,
    weights: Vec<HostWeight>,
    inputs: Vec<(&'static str, Vec<f32>)>,
    _folder: tempfile::TempDir,
}

impl Denoiser {
    fn new() -> Self {
        let (c, folder) = (config(), temp_dir());
        let tensors = flux::tensors(&c).into_iter().map(|(n, s)| (Component::Flux, n, s)).collect();
        let spec = SynthSpec {
            seed: 3,
            tensors,
            grid: Grid::F32,
            storage: Storage::F8ScaledNew,
            dialect: Dialect::Comfy,
            configs: json!({ "transformer": c.to_json() }),
        };
        let path = folder.path().join("denoiser.safetensors");
        synth::write(&spec, &path).unwrap();
        let shape = DenoiseShape { images: 1, cfg: true, text_tokens: 5, height: 2, width: 3 };
        let program = flux::denoise(&c, &shape, DType::BF16);
        let weights = resolve(&program, open(&Files::model(path)).unwrap().flux.as_ref().unwrap());
        let values = |name: &str| {
            let t = program.input(name);
            (0..t.rows * t.cols).map(|i| ((i * 31 + 7) % 101) as f32 / 50.0 - 1.0).collect::<Vec<f32>>()
        };
        let inputs = vec![
            ("latents", values("latents")),
            ("text", values("text")),
            ("modulation", values("modulation")),
            ("rope", flux::rope(&c, &shape)),
            ("step", vec![-0.1, 2.0]),
        ];
        Denoiser { program, weights, inputs, _folder: folder }
    }

    fn run(&self, backend: &mut dyn Backend, budget: u64, runs: usize) -> HashMap<&'static str, Vec<u32>> {
        let inputs: Vec<_> = self.inputs.iter().map(|(name, v)| (*name, Input::F32(v))).collect();
        let out = run(backend, &self.program, &self.weights, &inputs, budget, runs);
        out.into_iter().map(|(name, v)| (name, v.into_iter().map(f32::to_bits).collect())).collect()
    }

    fn budgets(&self, backend: &dyn Backend) -> Vec<u64> {
        let least = least_bytes(backend, &self.program, &self.weights);
        let all: u64 = self.weights.iter().map(|w| w.bytes() as u64).sum();
        assert!(all > 4 << 20, "the weights are to dwarf the ring: {all}");
        vec![least, least + all / 4, least + all / 2, least + 2 * all]
    }
}

/// Resident, streamed through the ring of chunks, and streamed from pinned copies: the same bits. The driver runs copies as late as it may, then as early,
/// then as it likes, so a wait that is missing anywhere shows. Four runs: the first loads, the second is recorded as a graph if all is resident, the others replay it.
#[test]
fn every_budget_gives_the_same_bits() {
    let Some(driver) = driver::get() else { return };
    let denoiser = Denoiser::new();
    let mut whole = None;
    for (pinned, order) in [(0, "late"), (0, "early"), (1 << 30, "late"), (1 << 30, "random:5"), (0, "random:6")] {
        driver.configure(&format!("order={order}"));
        let mut backend = gpu(pinned);
        for budget in denoiser.budgets(&backend).into_iter().rev() {
            let got = denoiser.run(&mut backend, budget, 4);
            let want = whole.get_or_insert_with(|| got.clone());
            assert!(want["latents"].iter().all(|&v| f32::from_bits(v).is_finite()));
            assert_eq!(&got, want, "under {budget} bytes, {pinned} pinned, {order}");
        }
    }
    driver.configure("order=late");
    driver.check_findings("a denoiser");
}

/// Whatever ends a run, the next one on the same device is right.
#[test]
fn cancelled_runs_leave_nothing_that_harms_the_next() {
    if driver::get().is_none() {
        return;
    }
    let denoiser = Denoiser::new();
    let mut backend = gpu(0);
    let want = denoiser.run(&mut backend, u64::MAX, 2);
    for budget in denoiser.budgets(&backend) {
        for stop in [1, 9, 40] {
            let (bytes, scratch): (Vec<usize>, Vec<usize>) = {
                let weight = |w: flux_fast::tensor::Weight| &denoiser.weights[w.id as usize];
                (
                    denoiser
                        .weights
                        .iter()
                        .zip(denoiser.program.uses())
                        .map(|(w, u)| backend.weight_bytes(w, u))
                        .collect(),
                    denoiser.program.steps.iter().map(|s| backend.scratch_bytes(&s.op, &weight)).collect(),
                )
            };
            let plan = plan::phase(&denoiser.program, 2, &bytes, &scratch, backend.caps().alignment, budget).unwrap();
            let mut holdings = Holdings::default();
            holdings.reserve(&mut backend, plan.layout(), false).unwrap();
            let weights = denoiser.weights.clone();
            let mut session =
                Session::new(&mut backend, &mut holdings, &denoiser.program, &plan, weights, Tenancy::default());
            let mut steps = 0;
            let e = (0..3).try_for_each(|_| {
                session.run(true, &mut |_, _| {
                    steps += 1;
                    // Also in the second run, which is being recorded where all is resident.
                    let last = stop + if budget > 1 << 24 { denoiser.program.steps.len() } else { 0 };
                    if steps == last { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
                })
            });
            assert_eq!(e.unwrap_err().kind(), Kind::Cancelled);
            drop(session);
            assert_eq!(denoiser.run(&mut backend, budget, 2), want, "after {stop} steps under {budget} bytes");
        }
    }
}

#[test]
fn what_is_set_aside_is_one_allocation_and_more_than_there_is_is_refused() {
    let Some(driver) = driver::get() else { return };
    let mut backend = gpu(0);
    let total = backend.caps().memory_bytes;
    let layout =
        |arena_bytes: u64| flux_fast::backend::Layout { arena_bytes: arena_bytes as usize, ..Default::default() };
    let e = backend.reserve(layout(2 * total)).unwrap_err();
    assert_eq!((e.kind(), e.kind().exit_code()), (Kind::Memory, 5));
    assert!(e.hint().unwrap().contains("--vram"), "{e}");
    // Refused memory is no reason to give up: less is still to be had.
    backend.reserve(layout(1 << 20)).unwrap();
    backend.write(0, &[1, 2, 3]).unwrap();
    let mut back = [0; 3];
    backend.read(0, &mut back).unwrap();
    assert_eq!(back, [1, 2, 3]);
    assert!(backend.write((1 << 20) - 2, &[0; 3]).is_err(), "a write beyond the arena");
    drop(backend);
    let _ = driver;
}

/// Runs the program against the driver without a GPU, set up as `settings` says.
fn program(settings: &str, arguments: &[&str]) -> Option<Output> {
    let folder = match fake_cuda::folder() {
        Ok(folder) => folder,
        Err(e) => {
            eprintln!("SKIPPED the program on a GPU: {e}");
            return None;
        }
    };
    let mut command = Command::new(env!("CARGO_BIN_EXE_flux-fast"));
    command.env("LD_LIBRARY_PATH", folder).env("FLUX_FAKE_CUDA", settings).args(arguments);
    Some(command.output().unwrap())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn pixels(path: &Path) -> Vec<f32> {
    image::open(path).unwrap().to_rgb8().into_raw().into_iter().map(f32::from).collect()
}

/// The whole engine, from the prompt to the file, in BF16 on the PTX machine against the CPU.
#[test]
fn the_embedded_models_picture_is_that_of_the_cpu() {
    let folder = temp_dir();
    let draw = |settings: &str, device: &str, name: &str, more: &[&str]| {
        let out = folder.path().join(name);
        let mut arguments = vec!["a fox, 3D style, on a blue background", "-s", "7", "--device", device, "-q", "-o"];
        let path = out.to_str().unwrap().to_string();
        arguments.push(&path);
        arguments.extend(more);
        let output = program(settings, &arguments)?;
        assert!(output.status.success(), "{device}: {}", text(&output.stderr));
        Some(pixels(&out))
    };
    let Some(cpu) = draw("", "cpu", "cpu.png", &[]) else { return };
    let gpu = draw("", "cuda:0", "gpu.png", &[]).unwrap();
    let psnr_of = |a: &[f32]| psnr(a, &cpu, 255.0);
    assert!(psnr_of(&gpu) >= 40.0, "{:.1} dB", psnr_of(&gpu));
    // The least memory that the plan allows gives the same pixels: context, arena, and a ring of one weight or two.
    let plan = program("", &["plan", "--device", "cuda:0", "--vram", "1M"]).unwrap();
    assert_eq!(plan.status.code(), Some(5), "{}", text(&plan.stderr));
    let told = text(&plan.stderr);
    let least = told.split("--vram ").nth(1).and_then(|t| t.split('M').next()).unwrap_or_else(|| panic!("{told}"));
    let streamed =
        draw("order=late", "cuda:0", "streamed.png", &["--vram", &format!("{least}M"), "--steps", "3"]).unwrap();
    let resident = draw("order=early", "cuda:0", "resident.png", &["--steps", "3"]).unwrap();
    assert!(streamed == resident, "streamed and resident differ");
    // Hopper's kernels, with TMA and wgmma.
    let hopper = draw("", "cuda:2", "hopper.png", &["--steps", "3"]).unwrap();
    let short = draw("", "cpu", "short.png", &["--steps", "3"]).unwrap();
    let hopper = psnr(&hopper, &short, 255.0);
    assert!(hopper >= 40.0, "H100: {hopper:.1} dB");
    // FP8 products: less exact, and still the picture.
    let fp8 = draw("", "cuda:1", "fp8.png", &["--compute", "fp8"]).unwrap();
    assert!(psnr_of(&fp8) >= 25.0, "fp8: {:.1} dB", psnr_of(&fp8));
}

#[test]
fn errors_have_their_exit_codes_and_say_what_to_do() {
    let draw = ["a fox", "--device", "cuda", "--steps", "1", "-o", "/dev/null"];
    let cases: &[(&str, i32, &[&str])] = &[
        ("fail=alloc:1", 5, &["out of memory", "--vram"]),
        ("fail=launch:3", 6, &["lost"]),
        ("fail=copy:2", 6, &[]),
        ("visible=3", 6, &["RTX 2060", "7.5", "8.0"]),
        ("driver=11040", 6, &["too old", "11.4", "11.8"]),
    ];
    for (settings, code, says) in cases {
        let Some(output) = program(settings, &draw) else { return };
        let told = text(&output.stderr);
        assert_eq!(output.status.code(), Some(*code), "{settings}: {told}");
        assert!(says.iter().all(|s| told.contains(s)), "{settings}: {told}");
        assert!(!told.contains("panicked"), "{settings}: {told}");
    }
    // A GPU that is not there, one that does not exist, and none at all.
    let output = program("", &["a fox", "--device", "cuda:9"]).unwrap();
    assert_eq!(output.status.code(), Some(6), "{}", text(&output.stderr));
    let bare = Command::new(env!("CARGO_BIN_EXE_flux-fast"))
        .env("LD_LIBRARY_PATH", "")
        .args(["a fox", "--device", "cuda"])
        .output()
        .unwrap();
    if flux_fast::backend::cuda::gpus().is_err() || driver::get().is_some() {
        let told = text(&bare.stderr);
        assert!(!told.contains("panicked"), "{told}");
        assert!(bare.status.success() || bare.status.code() == Some(6), "{told}");
    }
    // FP8 products on a GPU without them.
    let output = program("", &["a fox", "--device", "cuda:0", "--compute", "fp8"]).unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", text(&output.stderr));
    // `auto` takes the CPU where the GPU cannot be used, and says so.
    let folder = temp_dir();
    let out = folder.path().join("auto.png");
    let arguments = ["a fox", "--device", "auto", "--steps", "1", "-o", out.to_str().unwrap()];
    let output = program("visible=3", &arguments).unwrap();
    assert!(output.status.success() && text(&output.stderr).contains("CPU"), "{}", text(&output.stderr));
}

/// A checkpoint of full size whose values are all zero, so that it takes no room.
fn full_size(path: &Path, flux: &FluxConfig) {
    let (t5, clip, vae) = (T5Config::xxl(), ClipConfig::large(), VaeConfig::flux());
    let named = |component, list: Vec<(String, Vec<usize>)>| list.into_iter().map(move |(n, s)| (component, n, s));
    let tensors = named(Component::T5, t5::tensors(&t5))
        .chain(named(Component::Clip, clip::tensors(&clip)))
        .chain(named(Component::Flux, flux::tensors(flux)))
        .chain(named(Component::Vae, vae::tensors(&vae)))
        .collect();
    let configs = json!({ "transformer": flux.to_json(), "text_encoder": clip.to_json(), "text_encoder_2": t5.to_json(), "vae": vae.to_json() });
    let storage = Storage::F8ScaledNew;
    let spec = SynthSpec { seed: 0, tensors, grid: Grid::F32, storage, dialect: Dialect::Comfy, configs };
    synth::write_hollow(&spec, path).unwrap();
}

/// The promise: dev in 12 GB and schnell in 8 GB at 1024x1024, text encoders and autoencoder included, on cards that have no more. Sequence and sizes of
/// allocations and copies are real; the kernels are counted, not run (a step would take a day).
#[test]
fn dev_fits_in_12_gb_and_schnell_in_8() {
    for (name, flux, card, gigabytes) in
        [("dev", FluxConfig::dev(), "visible=0", 12.0e9), ("schnell", FluxConfig::schnell(), "visible=1", 8.0e9)]
    {
        let folder = temp_dir();
        let path = folder.path().join(format!("{name}.safetensors"));
        full_size(&path, &flux);
        let report = folder.path().join("report");
        let settings = format!("{card},kernels=skip,copies=skip,checks=0,poison=0,report={}", report.display());
        let vram = format!("{}G", gigabytes / 1e9);
        let out = folder.path().join("out.png");
        let arguments = [
            "a lighthouse",
            "--device",
            "cuda",
            "--model",
            path.to_str().unwrap(),
            "--vram",
            &vram,
            "--size",
            "1024x1024",
            "--steps",
            "2",
            "--no-cache",
            "-q",
            "-o",
            out.to_str().unwrap(),
        ];
        let Some(output) = program(&settings, &arguments) else { return };
        assert!(output.status.success(), "{name}: {}", text(&output.stderr));
        let lines = std::fs::read_to_string(&report).unwrap_or_else(|e| panic!("{}: {e}", report.display()));
        let device: Value = lines
            .lines()
            .map(|l| serde_json::from_str::<Value>(l).unwrap())
            .find(|v| v["device"] == 0)
            .unwrap_or_else(|| panic!("no device in {lines}"));
        let peak = device["peak"].as_u64().unwrap() as f64;
        assert!(peak <= gigabytes, "{name}: {peak} bytes of {gigabytes}");
        assert!(peak > 0.7 * gigabytes, "{name}: only {peak} bytes of {gigabytes} used");
        let attention = lines.lines().find(|l| l.contains("attention_d128")).unwrap_or_else(|| panic!("{lines}"));
        eprintln!("{name}: peak {peak}, {attention}");
    }
}

/// Files of models are found by the other tests' helper, too.
#[test]
fn a_whole_model_is_planned_for_a_gpu() {
    let folder = temp_dir();
    let path = folder.path().join("dev.safetensors");
    full_size(&path, &FluxConfig::dev());
    let _ = files(&path);
    let Some(output) =
        program("", &["plan", "--device", "cuda", "--model", path.to_str().unwrap(), "--vram", "12G", "--json"])
    else {
        return;
    };
    assert!(output.status.success(), "{}", text(&output.stderr));
    let plan: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(plan["own_memory"], true);
    let (peak, overhead) = (plan["peak_bytes"].as_u64().unwrap(), plan["overhead_bytes"].as_u64().unwrap());
    assert!(peak <= 12_000_000_000 && overhead > 0, "{plan}");
    // All of dev's blocks stay: nothing is streamed while denoising.
    let denoise = plan["phases"].as_array().unwrap().iter().find(|p| p["phase"] == "denoise").unwrap();
    assert_eq!(denoise["streamed_bytes_per_run"], 0, "{denoise}");
}
