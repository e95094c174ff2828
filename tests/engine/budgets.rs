//! The budget changes speed, never bits, and is never exceeded.

use std::ops::ControlFlow;

use crate::checkpoint::{checkpoint, small_clip, small_t5, small_vae};
use crate::common::denoiser::Denoiser;
use crate::common::{Input, cpu, files, least_bytes, resolve, run, temp_dir};
use flux_fast::backend::{Backend, Compute, Device};
use flux_fast::dtype::DType;
use flux_fast::error::Kind;
use flux_fast::library::{Files, open};
use flux_fast::model::FluxConfig;
use flux_fast::model::flux1;
use flux_fast::model::flux1::DenoiseShape;
use flux_fast::pipeline::Engine;
use flux_fast::pipeline::request::{Options, Request};
use flux_fast::spec::flux1::TRANSFORMER;
use flux_fast::units::ByteSize;
use flux_fast::weights::synth;
use serde_json::json;

fn config() -> FluxConfig {
    FluxConfig {
        hidden: 256,
        heads: 2,
        mlp_hidden: 1024,
        depth_double: 3,
        depth_single: 5,
        context: 128,
        pooled: 64,
        ..FluxConfig::dev()
    }
}

/// Writes a small complete model in scaled fp8 whose weights are several times larger than its
/// activations.
fn write(dir: &tempfile::TempDir) -> std::path::PathBuf {
    write_model(dir, &config())
}

fn write_model(dir: &tempfile::TempDir, flux: &FluxConfig) -> std::path::PathBuf {
    let more = json!({ "tokenizer_2": { "model_max_length": 16 },
        "generation": { "num_inference_steps": 3, "width": 48, "height": 32 } });
    let spec = checkpoint(flux, &small_t5(3), &small_clip(2), &small_vae(), more);
    let path = dir.path().join("small.safetensors");
    synth::write(&spec, &path).unwrap();
    path
}

#[test]
fn every_budget_gives_the_same_bits() {
    let dir = temp_dir();
    let checkpoint = open(&Files::model(write(&dir))).unwrap();
    let (c, mut backend) = (config(), cpu(Compute::Auto));
    let shape = DenoiseShape { images: 2, cfg: true, text_tokens: 5, height: 2, width: 3 };
    let program = flux1::denoise(&c, &shape, DType::F32);
    let weights = resolve(&program, checkpoint.get(TRANSFORMER).unwrap());
    let values =
        |n: usize| (0..n).map(|i| ((i * 31 + 7) % 101) as f32 / 50.0 - 1.0).collect::<Vec<f32>>();
    let of = |name: &str| {
        let t = program.input(name);
        values(t.rows * t.cols)
    };
    let (latents, text, modulation, rope) =
        (of("latents"), of("text"), of("modulation"), flux1::rope(&c, &shape));
    let inputs = || {
        [
            ("latents", Input::F32(&latents)),
            ("text", Input::F32(&text)),
            ("modulation", Input::F32(&modulation)),
            ("rope", Input::F32(&rope)),
            ("step", Input::F32(&[-0.1, 2.0])),
        ]
    };
    let bits = |v: &[f32]| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    let whole = run(&mut backend, &program, &weights, &inputs(), u64::MAX, 3);
    assert!(whole["latents"].iter().all(|v| v.is_finite()) && whole["latents"] != latents);
    let least = least_bytes(&backend, &program, &weights);
    let all: u64 = weights.iter().map(|w| w.bytes() as u64).sum();
    assert!(all > 4 << 20, "the weights are to dwarf the ring: {all}");
    for budget in
        [least, least + 1000, least + all / 8, least + all / 4, least + all / 2, least + all]
    {
        let got = run(&mut backend, &program, &weights, &inputs(), budget, 3);
        for name in ["latents", "velocity"] {
            assert_eq!(bits(&got[name]), bits(&whole[name]), "{name} under {budget} bytes");
        }
    }
}

#[test]
fn other_networks_give_the_same_bits_with_every_budget() {
    let programs = [
        Denoiser::flux2,
        Denoiser::qwen3,
        Denoiser::fill,
        Denoiser::kontext,
        Denoiser::siglip,
        Denoiser::controlled,
    ];
    for compute in [Compute::F32, Compute::Auto] {
        let mut backend = cpu(compute);
        let act = backend.caps().activation;
        for denoiser in programs.map(|make| make(act)) {
            let mut whole = None;
            for budget in denoiser.budgets(&backend).into_iter().rev() {
                let got = denoiser.run(&mut backend, budget, 3);
                let want = whole.get_or_insert_with(|| got.clone());
                let finite = |v: &Vec<u32>| v.iter().all(|&v| f32::from_bits(v).is_finite());
                assert!(want.values().all(finite), "{}", denoiser.program.name);
                assert!(&got == want, "{} under {budget} bytes", denoiser.program.name);
            }
        }
    }
}

/// A run can leave out each ControlNet, whatever the budget; without all of them it gives the bits
/// of the transformer alone.
#[test]
fn networks_are_left_out_of_single_runs() {
    let mut backend = cpu(Compute::F32);
    let denoiser = Denoiser::controlled(DType::F32);
    let plain = Denoiser::plain_of_controlled(DType::F32).run(&mut backend, u64::MAX, 4);
    type Absent = fn(usize) -> u32;
    let cases: [Absent; 4] = [
        |_| 0b110,
        |run| if run < 2 { 0b110 } else { 0b010 },
        |run| if run % 2 == 0 { 0b010 } else { 0b100 },
        |run| if run == 1 { 0b110 } else { 0 },
    ];
    let mut seen = vec![denoiser.run(&mut backend, u64::MAX, 4)["latents"].clone()];
    for (i, absent) in cases.iter().enumerate() {
        let mut whole = None;
        for budget in denoiser.budgets(&backend).into_iter().rev() {
            let got = denoiser.run_without(&mut backend, budget, 4, absent);
            let want = whole.get_or_insert_with(|| got.clone());
            assert!(&got == want, "case {i} under {budget} bytes");
        }
        let latents = whole.unwrap()["latents"].clone();
        assert_eq!(latents == plain["latents"], i == 0, "case {i}");
        assert!(!seen.contains(&latents), "case {i}");
        seen.push(latents);
    }
}

#[test]
fn an_image_is_the_same_with_every_budget_and_too_small_a_budget_is_refused() {
    let dir = temp_dir();
    // Large compared with T5's table, so that some budgets have space for only one of them.
    let flux = FluxConfig { hidden: 512, heads: 4, mlp_hidden: 2048, ..config() };
    let model = files(&write_model(&dir, &flux));
    let request = Request::new("a lighthouse").seed(5);
    let open = |ram: Option<u64>| {
        let mut options = Options::default().device(Device::Cpu).files(model.clone());
        options.ram = ram.map(ByteSize);
        Engine::open(options).unwrap()
    };
    let mut wide = open(Some(64 << 30));
    assert!(wide.plan(&request).unwrap().keeps_weights);
    let picture = wide.generate(&request).unwrap().images;
    // Once more with the weights still loaded.
    assert_eq!(wide.generate(&request).unwrap().images, picture);

    // One pipeline, so that the memory of the process itself, which counts against the budget and
    // changes with other tests, is one number.
    let mut narrow = open(Some(64 << 30));
    let host = narrow.plan(&request).unwrap().host_bytes;
    let mut streamed = 0;
    for extra in (0..40).map(|i| i << 22) {
        narrow.limit_memory(host + extra).unwrap();
        let Ok(plan) = narrow.plan(&request) else { continue };
        assert_eq!(plan.host_bytes, host);
        assert!(
            plan.peak_bytes <= plan.budget_bytes,
            "{} > {}",
            plan.peak_bytes,
            plan.budget_bytes
        );
        assert_eq!(narrow.generate(&request).unwrap().images, picture);
        if plan.keeps_weights {
            break;
        }
        streamed += usize::from(plan.phases.iter().any(|p| p.streamed_bytes_per_run > 0));
    }
    assert!(streamed >= 2, "only {streamed} of the budgets streamed anything");
    narrow.limit_memory(host / 2).unwrap();
    let refused = narrow.plan(&request).unwrap_err();
    assert_eq!(refused.kind(), Kind::Memory);
    // The budget that the error names is enough.
    let hint = refused.hint().unwrap();
    let named: u64 = hint
        .split(['m', ' ', 'M'])
        .find_map(|w| w.parse().ok())
        .unwrap_or_else(|| panic!("{hint}"));
    narrow.limit_memory(named * 1_000_000).unwrap();
    assert_eq!(narrow.generate(&request).unwrap().images, picture, "{hint}");
}

#[test]
fn f8_weights_that_are_no_numbers_name_the_stage_and_the_layer_and_give_no_picture() {
    let dir = temp_dir();
    let path = write(&dir);
    let sound = std::fs::read(&path).unwrap();
    let header = u64::from_le_bytes(sound[..8].try_into().unwrap()) as usize;
    let json: serde_json::Value = serde_json::from_slice(&sound[8..8 + header]).unwrap();
    for (tensor, place) in [
        (
            "text_encoders.clip_l.transformer.text_model.encoder.layers.1.mlp.fc2.bias",
            "clip: layer.1.",
        ),
        (
            "text_encoders.t5xxl.transformer.encoder.block.1.layer.1.DenseReluDense.wo.weight",
            "t5: block.1.",
        ),
        ("model.diffusion_model.time_in.out_layer.bias", "modulate: "),
        ("model.diffusion_model.double_blocks.1.txt_mlp.0.weight", "denoise: double.1."),
        ("model.diffusion_model.single_blocks.2.linear2.weight", "denoise: single.2.linear2"),
        ("vae.decoder.up.1.block.0.conv1.weight", "decode: up.1.block.0"),
    ] {
        let t = &json[tensor];
        let at = 8
            + header
            + t["data_offsets"][0].as_u64().unwrap_or_else(|| panic!("no {tensor}")) as usize;
        let infinity: &[u8] = match t["dtype"].as_str().unwrap() {
            "F32" => &[0, 0, 0x80, 0x7f],
            "BF16" => &[0x80, 0x7f],
            "F16" => &[0, 0x7c],
            // E4M3 has no infinity.
            _ => &[0x7f],
        };
        // Bytes of all ones are NaN in every type.
        for bad in [infinity, &[0xff; 4]] {
            let mut bytes = sound.clone();
            bytes[at..][..64].iter_mut().zip(bad.iter().cycle()).for_each(|(b, v)| *b = *v);
            std::fs::write(&path, bytes).unwrap();
            let options = Options::default().device(Device::Cpu).no_cache(true);
            let mut pipeline = Engine::open(options.files(files(&path))).unwrap();
            let request = Request::new("x").seed(1);
            let error = pipeline.generate(&request).unwrap_err();
            assert_eq!(error.kind(), Kind::NotFinite, "{tensor}: {error}");
            assert_eq!(error.kind().exit_code(), 8);
            assert!(error.to_string().contains(place), "{tensor}: {error}");
        }
    }
}

#[test]
fn a_break_cancels_at_the_next_operation_and_the_next_request_works() {
    let dir = temp_dir();
    let options = Options::default().device(Device::Cpu);
    let mut pipeline = Engine::open(options.files(files(&write(&dir)))).unwrap();
    let request = Request::new("x").seed(1);
    let want = pipeline.generate(&request).unwrap().images;
    let mut events = 0;
    pipeline
        .generate_with(&request, |_| {
            events += 1;
            ControlFlow::Continue(())
        })
        .unwrap();
    assert!(events > 100);
    for stop in [1, 5, events / 3, events / 2, events - 2] {
        let mut seen = 0;
        let error = pipeline
            .generate_with(&request, |_| {
                seen += 1;
                if seen >= stop { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })
            .unwrap_err();
        assert_eq!((error.kind(), seen), (Kind::Cancelled, stop));
        assert_eq!(pipeline.generate(&request).unwrap().images, want);
    }
}

/// Measures the peak of the process instead of trusting the plan: a model whose weights are larger
/// than the budget.
#[cfg(target_os = "linux")]
#[test]
fn the_process_stays_under_its_budget() {
    let dir = temp_dir();
    let flux = FluxConfig {
        hidden: 1024,
        heads: 8,
        mlp_hidden: 4096,
        depth_double: 4,
        depth_single: 10,
        context: 128,
        pooled: 64,
        ..FluxConfig::dev()
    };
    let path = write_model(&dir, &flux);
    let file = std::fs::metadata(&path).unwrap().len();
    let ram = 300_000_000;
    assert!(file > ram, "{file}");
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_flux-fast"))
        .args([
            "a lighthouse",
            "--steps",
            "2",
            "--size",
            "64x64",
            "--cfg-scale",
            "2",
            "--json",
            "-q",
            "--no-cache",
            "--ram",
        ])
        .args([
            ram.to_string(),
            "--model".into(),
            path.to_string_lossy().into_owned(),
            "-o".into(),
            dir.path().join("x.png").to_string_lossy().into_owned(),
        ])
        .output()
        .unwrap();
    let messages = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let peak = serde_json::from_str::<serde_json::Value>(&messages).unwrap()["peak_memory_bytes"]
        .as_u64()
        .unwrap();
    println!("peak {peak} of {ram}, file {file}");
    assert!(peak <= ram, "peak {peak} of {ram}");
}

#[test]
fn a_file_that_changes_during_a_run_is_an_error() {
    let dir = temp_dir();
    let path = write(&dir);
    let options = Options::default().device(Device::Cpu);
    let mut pipeline = Engine::open(options.files(files(&path))).unwrap();
    let request = Request::new("x").seed(1);
    let mut steps = 0;
    let error = pipeline
        .generate_with(&request, |event| {
            if let flux_fast::event::Event::Step {
                phase: flux_fast::event::Phase::Denoise, ..
            } = event
            {
                steps += 1;
                if steps == 1 {
                    use std::io::Write;
                    std::fs::OpenOptions::new()
                        .append(true)
                        .open(&path)
                        .unwrap()
                        .write_all(b"more")
                        .unwrap();
                }
            }
            ControlFlow::Continue(())
        })
        .unwrap_err();
    assert_eq!((error.kind(), steps), (Kind::Model, 1), "{error}");
    assert!(error.to_string().contains("small.safetensors"), "{error}");
}
