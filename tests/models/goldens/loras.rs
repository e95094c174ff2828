//! LoRAs of every trainer against diffusers with the same file, or against merged weights if
//! diffusers cannot read it (golden/lora/README.md); and with weights of every stored type.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;

use flux_fast::backend::{Backend, Int8Use};
use flux_fast::dtype::DType;
use flux_fast::library::convert::{Target, convert};
use flux_fast::library::{Checkpoint, open_only};
use flux_fast::model::flux1::DenoiseShape;
use flux_fast::model::{clip, flux1, t5};
use flux_fast::op::{Linear, Op, Program};
use flux_fast::pipeline::loras::{LoraSet, Strengths, open};
use flux_fast::pipeline::request::LoraChoice;
use flux_fast::spec::Component;
use flux_fast::spec::flux1::{CLIP, FLUX1, T5, TRANSFORMER};
use flux_fast::tensor::{HostWeight, Scale};
use flux_fast::weights::synth::{Dialect, Grid, Storage};

use super::{Geometry, Written, devices, plain};
use crate::common::{Golden, Input, least_bytes, relative_error, run, temp_dir};

/// The output of diffusers differs from that of merged weights by at most 2.5e-6.
const TOLERANCE: f64 = 1e-5;

fn file(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join(format!("tests/golden/lora/{name}.lora.safetensors"))
}

/// LoRAs with their strengths, as in a pipeline.
fn set(checkpoint: &Checkpoint, loras: &[(&str, f32)]) -> LoraSet {
    let adapters = loras.iter().map(|(name, weight)| {
        let adapter = open(&file(name), &FLUX1, &|c| checkpoint.get(c))
            .unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(adapter.summary.unmatched, 0, "{name}");
        (Arc::new(adapter), *weight)
    });
    LoraSet::of(adapters.collect())
}

/// A program with side branches, and its weights.
fn with(
    checkpoint: &Checkpoint,
    c: Component,
    loras: &LoraSet,
    program: Program,
) -> (Program, Vec<HostWeight>) {
    loras.apply(checkpoint.get(c).unwrap(), program, Int8Use::Never).unwrap()
}

fn sides(program: &Program) -> usize {
    program
        .steps
        .iter()
        .filter(|s| matches!(s.op, Op::Linear(Linear { side: Some(_), .. })))
        .count()
}

/// The velocity of both sequences, and the number of layers with a side branch. `apply` returns
/// the program that is run, and its weights.
pub fn velocity(
    backend: &mut dyn Backend,
    golden: &Golden,
    g: &Geometry,
    apply: &dyn Fn(Program) -> (Program, Vec<HostWeight>),
    act: DType,
) -> (Vec<f32>, usize) {
    let (t, pooled, guidance) =
        (golden.f32("flux.timestep"), golden.f32("flux.pooled"), golden.f32("flux.guidance"));
    let (program, weights) = apply(flux1::modulate(&g.flux, 2, act));
    let mut count = sides(&program);
    let inputs = [
        ("timestep", Input::F32(&t)),
        ("pooled", Input::F32(&pooled)),
        ("guidance", Input::F32(&guidance)),
    ];
    let modulation =
        run(backend, &program, &weights, &inputs, u64::MAX, 1).remove("modulation").unwrap();
    let shape = shape(golden);
    let (program, weights) = apply(flux1::denoise(&g.flux, &shape, act));
    count += sides(&program);
    let rope = flux1::rope(&g.flux, &shape);
    let (img, txt) = (golden.f32("flux.img"), golden.f32("flux.txt"));
    let half = |v: &[f32], i: usize| v[i * v.len() / 2..(i + 1) * v.len() / 2].to_vec();
    let mut out = Vec::new();
    for i in 0..2 {
        let (latents, text, modulation) = (half(&img, i), half(&txt, i), half(&modulation, i));
        let inputs = [
            ("latents", Input::F32(&latents)),
            ("text", Input::F32(&text)),
            ("modulation", Input::F32(&modulation)),
            ("rope", Input::F32(&rope)),
            ("step", Input::F32(&[-0.25, 1.0])),
        ];
        out.extend_from_slice(&run(backend, &program, &weights, &inputs, u64::MAX, 1)["velocity"]);
    }
    (out, count)
}

const DIALECTS: [&str; 12] = [
    "kohya",
    "kohya_te1",
    "kohya_t5",
    "aitoolkit",
    "diffusers",
    "diffusers_no_proj_mlp",
    "diffusers_uneven",
    "diffusers_ends",
    "diffusers_config",
    "base_model",
    "xlabs",
    "onetrainer",
];

#[test]
fn every_dialect_changes_the_transformer_as_in_diffusers() {
    let (golden, expected) = (Golden::read("b_dev"), expected());
    let written = plain(&golden);
    let checkpoint = written.open();
    let mut cases: Vec<(String, Vec<(&str, f32)>)> =
        DIALECTS.iter().map(|d| (d.to_string(), vec![(*d, 1.0)])).collect();
    cases.push(("diffusers_at_0.6".into(), vec![("diffusers", 0.6)]));
    cases.push(("kohya_0.8_diffusers_-0.5".into(), vec![("kohya", 0.8), ("diffusers", -0.5)]));
    cases.push(("base".into(), vec![("kohya", 0.0)]));
    for backend in devices().iter_mut().map(Box::as_mut) {
        let device = backend.caps().name.clone();
        let mut layers = Vec::new();
        for (name, loras) in &cases {
            let loras = set(&checkpoint, loras);
            let (got, count) = velocity(
                backend,
                &golden,
                &written.geometry,
                &|program| with(&checkpoint, TRANSFORMER, &loras, program),
                DType::F32,
            );
            let error = relative_error(&got, &expected.f32(&format!("{name}.velocity")));
            println!("{device} {name}: relative error {error:.2e}, {count} layers");
            assert!(error <= TOLERANCE, "{device} {name}: relative error {error:.2e}");
            assert_eq!(count == 0, name == "base", "{name}");
            layers.push(count);
        }
        // All layers of the blocks; linear1 counts as two.
        assert_eq!(layers[0], 2 * 10 + 4, "{device}");
    }
}

fn expected() -> Golden {
    Golden::of("lora/expected")
}

#[test]
fn text_encoders_have_loras_too() {
    let (golden, expected) = (Golden::read("b_dev"), expected());
    let written = plain(&golden);
    let (checkpoint, g) = (written.open(), &written.geometry);
    let (t5_ids, clip_ids) = (golden.ids("t5.ids"), golden.ids("clip.ids"));
    let row = clip_ids.iter().position(|&id| id == 49407).unwrap() * g.clip.width;
    for backend in devices().iter_mut().map(Box::as_mut) {
        let (mut clips, mut t5s) = (0, 0);
        for name in DIALECTS {
            let loras = set(&checkpoint, &[(name, 1.0)]);
            let (clip, t5) = (format!("{name}.clip.pooled"), format!("{name}.t5.out"));
            assert_eq!(
                (loras.touches(CLIP), loras.touches(T5)),
                (expected.has(&clip), expected.has(&t5)),
                "{name}"
            );
            if expected.has(&clip) {
                let (program, weights) =
                    with(&checkpoint, CLIP, &loras, clip::encode(&g.clip, 1, DType::F32));
                let out = run(
                    backend,
                    &program,
                    &weights,
                    &[("ids", Input::I32(&clip_ids))],
                    u64::MAX,
                    1,
                );
                let error =
                    relative_error(&out["hidden"][row..row + g.clip.width], &expected.f32(&clip));
                assert!(error <= TOLERANCE, "{clip}: relative error {error:.2e}");
                clips += 1;
            }
            if expected.has(&t5) {
                let program = t5::encode(&g.t5, 1, t5_ids.len(), DType::F32);
                let (program, weights) = with(&checkpoint, T5, &loras, program);
                let buckets = t5::relative_buckets(&g.t5, t5_ids.len());
                let inputs = [("ids", Input::I32(&t5_ids)), ("buckets", Input::I32(&buckets))];
                let out = run(backend, &program, &weights, &inputs, u64::MAX, 1);
                let error = relative_error(&out["text"], &expected.f32(&t5));
                assert!(error <= TOLERANCE, "{t5}: relative error {error:.2e}");
                t5s += 1;
            }
        }
        assert!(clips >= 3 && t5s >= 2, "{clips}, {t5s}");
    }
}

#[test]
fn text_encoders_have_a_strength_of_their_own() {
    let written = plain(&Golden::read("b_dev"));
    let checkpoint = written.open();
    let adapter = open(&file("kohya_te1"), &FLUX1, &|c| checkpoint.get(c)).unwrap();
    let adapter = Arc::new(adapter);
    for (transformer, text) in [(0.8, 0.0), (0.0, 0.6), (0.8, 0.6)] {
        let set = LoraSet::of(vec![(adapter.clone(), Strengths { transformer, text })]);
        assert_eq!(set.touches(TRANSFORMER), transformer != 0.0);
        assert_eq!(set.touches(CLIP), text != 0.0);
    }
    let choice = LoraChoice::new("a", 0.8);
    assert_eq!(Strengths::of(&choice), Strengths::from(0.8));
    let two = Strengths::of(&choice.text_strength(0.6));
    assert_eq!(two.to_string(), "0.8, text encoders 0.6");
}

/// A LoRA changes 8-bit weights as much as wide ones: the only error is that of the weights.
#[test]
fn a_lora_changes_eight_bit_weights_as_much() {
    let (golden, expected) = (Golden::read("b_dev"), expected());
    let base = expected.f32("base.velocity");
    let change: Vec<f32> =
        expected.f32("kohya.velocity").iter().zip(&base).map(|(a, b)| a - b).collect();
    for storage in [Storage::F8, Storage::F8ScaledNew, Storage::BF16] {
        let written = Written::new(&golden, Dialect::Comfy, storage, Grid::F32);
        let checkpoint = written.open();
        for backend in devices().iter_mut().map(Box::as_mut) {
            let mut at = |loras: &[(&str, f32)]| {
                let loras = set(&checkpoint, loras);
                let apply = |program| with(&checkpoint, TRANSFORMER, &loras, program);
                velocity(backend, &golden, &written.geometry, &apply, DType::F32).0
            };
            let (without, with) = (at(&[]), at(&[("kohya", 1.0)]));
            let got: Vec<f32> = with.iter().zip(&without).map(|(a, b)| a - b).collect();
            let error = relative_error(&got, &change);
            println!("{storage:?}: {error:.3}");
            assert!(error <= 0.1, "{storage:?}: {error:.3}");
        }
    }
}

/// The budget changes speed, never bits, with a LoRA too: its matrices are resident while the
/// model's weights are streamed.
#[test]
fn with_streamed_weights_a_lora_gives_the_same_bits() {
    let golden = Golden::read("b_dev");
    let written = Written::new(&golden, Dialect::Comfy, Storage::F8ScaledNew, Grid::F8);
    let checkpoint = written.open();
    let loras = set(&checkpoint, &[("kohya", 0.8), ("xlabs", 0.5)]);
    for backend in devices().iter_mut().map(Box::as_mut) {
        let (program, weights) = denoiser(&golden, &checkpoint, &written.geometry, &loras);
        assert_eq!(sides(&program), 2 * 8 + 3);
        let least = least_bytes(backend, &program, &weights);
        let mut under =
            |budget| drawn(backend, &golden, &written.geometry, &program, &weights, (budget, 3));
        let (resident, streamed) = (under(u64::MAX), under(least));
        assert_eq!(resident["velocity"], streamed["velocity"], "{}", backend.caps().name);
        assert_eq!(resident["latents"], streamed["latents"], "{}", backend.caps().name);
    }
}

/// A LoRA with weights in blocks or integers gives the result of the LoRA with their f32 values.
#[test]
fn a_lora_with_blocks_equals_a_lora_with_their_values() {
    let golden = Golden::read("b_dev");
    let written = Written::new(&golden, Dialect::Comfy, Storage::F32, Grid::F32);
    let dir = temp_dir();
    for target in [
        Target::Int8,
        Target::Blocks(DType::Nf4),
        Target::Blocks(DType::Nvfp4),
        Target::Gguf(DType::Q4_0),
    ] {
        let path = dir.path().join(format!("model.{}", target.extension()));
        convert(&open_only(&written.path).unwrap(), target, &path, &mut |_, _| {
            ControlFlow::Continue(())
        })
        .unwrap();
        let checkpoint = open_only(&path).unwrap();
        let loras = set(&checkpoint, &[("kohya", 1.0)]);
        for backend in devices().iter_mut().map(Box::as_mut) {
            let name = backend.caps().name.clone();
            let (program, weights) = denoiser(&golden, &checkpoint, &written.geometry, &loras);
            let stored =
                weights.iter().filter(|w| w.parts.iter().any(|p| !p.dtype.is_wide())).count();
            assert!(stored >= 15, "{target:?}: {stored}");
            let values = weights.iter().map(|w| match w.parts.iter().all(|p| p.dtype.is_wide()) {
                true => w.clone(),
                false => {
                    let bytes: Vec<u8> = w.to_f32().iter().flat_map(|v| v.to_le_bytes()).collect();
                    let (rows, cols) = (w.rows, w.cols);
                    HostWeight::whole(Arc::new(bytes), (rows, cols), DType::F32, Scale::One)
                }
            });
            let values: Vec<HostWeight> = values.collect();
            let [got, want] = [&weights, &values].map(|w| {
                drawn(backend, &golden, &written.geometry, &program, w, (u64::MAX, 1))
                    .remove("velocity")
                    .unwrap()
            });
            let error = relative_error(&got, &want);
            println!("{name} {target:?}: {error:.2e}");
            assert!(error <= TOLERANCE, "{name} {target:?}: {error:.2e}");
        }
        std::fs::remove_file(&path).unwrap();
    }
}

pub fn denoiser(
    golden: &Golden,
    checkpoint: &Checkpoint,
    g: &Geometry,
    loras: &LoraSet,
) -> (Program, Vec<HostWeight>) {
    let program = flux1::denoise(&g.flux, &shape(golden), DType::F32);
    with(checkpoint, TRANSFORMER, loras, program)
}

fn shape(golden: &Golden) -> DenoiseShape {
    let (grid, text_tokens) = (golden.ids("flux.grid"), golden.shape("flux.txt")[1]);
    DenoiseShape {
        images: 1,
        cfg: false,
        text_tokens,
        height: grid[0] as usize,
        width: grid[1] as usize,
    }
}

/// The output of the first sequence with some modulation, within `budget` bytes, after `runs` runs.
pub fn drawn(
    backend: &mut dyn Backend,
    golden: &Golden,
    g: &Geometry,
    program: &Program,
    weights: &[HostWeight],
    (budget, runs): (u64, usize),
) -> HashMap<&'static str, Vec<f32>> {
    let rope = flux1::rope(&g.flux, &shape(golden));
    let (img, txt) = (golden.f32("flux.img"), golden.f32("flux.txt"));
    let modulation: Vec<f32> =
        (0..g.flux.modulation_cols()).map(|i| (i % 17) as f32 / 40.0 - 0.2).collect();
    let inputs = [
        ("latents", Input::F32(&img[..img.len() / 2])),
        ("text", Input::F32(&txt[..txt.len() / 2])),
        ("modulation", Input::F32(&modulation)),
        ("rope", Input::F32(&rope)),
        ("step", Input::F32(&[-0.25, 1.0])),
    ];
    run(backend, program, weights, &inputs, budget, runs)
}
