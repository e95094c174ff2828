//! LoRAs of FLUX.2 in the names of every trainer against diffusers with the same file, and kinds
//! of adapters that diffusers cannot read against merged weights
//! (golden/lora/make_flux2_lora_goldens.py).

use std::path::PathBuf;
use std::sync::Arc;

use flux_fast::backend::{Backend, Compute, Int8Use};
use flux_fast::dtype::DType;
use flux_fast::library::Checkpoint;
use flux_fast::model::SequenceShape;
use flux_fast::model::flux1::DenoiseShape;
use flux_fast::model::flux2;
use flux_fast::op::{Program, WeightSpec};
use flux_fast::pipeline::loras::{LoraSet, open};
use flux_fast::pipeline::request::LoraChoice;
use flux_fast::spec::flux2::{FLUX2, TRANSFORMER};
use flux_fast::tensor::{HostWeight, Scale};
use flux_fast::weights::synth::{Dialect, Grid, Storage};

use super::adapters::made::{Numbers, product, write};
use super::klein::{Written, plain, request};
use super::{close, devices, f32_options};
use crate::common::{Golden, Input, cpu, least_bytes, relative_error, run, temp_dir};

/// The goldens of diffusers differ from merged weights by less than 1e-6.
const TOLERANCE: f64 = 1e-5;
/// For kinds whose goldens were merged in f64 with other formulas.
const MERGED_TOLERANCE: f64 = 1e-4;

fn file(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join(format!("tests/golden/lora/{name}.lora.safetensors"))
}

fn set(checkpoint: &Checkpoint, name: &str, strength: f32) -> LoraSet {
    let adapter = open(&file(name), &FLUX2, &|c| checkpoint.get(c));
    let adapter = adapter.unwrap_or_else(|e| panic!("{name}: {e}"));
    assert_eq!(adapter.summary.unmatched, 0, "{name}");
    LoraSet::of(vec![(Arc::new(adapter), strength)])
}

/// The velocity after `runs` steps from the golden's inputs.
fn velocity(
    backend: &mut dyn Backend,
    golden: &Golden,
    written: &Written,
    apply: &dyn Fn(Program) -> (Program, Vec<HostWeight>),
    (streamed, runs): (bool, usize),
) -> Vec<f32> {
    let config = &written.geometry.flux;
    let t = golden.f32("flux2.timestep");
    let (program, weights) = apply(flux2::modulate(config, 1, DType::F32));
    let inputs = [("timestep", Input::F32(&t))];
    let modulation = run(backend, &program, &weights, &inputs, u64::MAX, 1);
    let grid = golden.ids("flux2.grid");
    let image = DenoiseShape {
        images: 1,
        cfg: false,
        text_tokens: golden.shape("flux2.txt")[0],
        height: grid[0] as usize,
        width: grid[1] as usize,
    };
    let shape = SequenceShape { image, references: vec![], added_inputs: 0 };
    let (program, weights) = apply(flux2::denoise(config, &shape, DType::F32));
    let rope = flux2::rope(config, &shape);
    let (img, txt) = (golden.f32("flux2.img"), golden.f32("flux2.txt"));
    let inputs = [
        ("latents", Input::F32(&img)),
        ("text", Input::F32(&txt)),
        ("modulation", Input::F32(&modulation["modulation"])),
        ("rope", Input::F32(&rope)),
        ("step", Input::F32(&[-0.25, 1.0])),
    ];
    let budget = match streamed {
        true => least_bytes(backend, &program, &weights),
        false => u64::MAX,
    };
    run(backend, &program, &weights, &inputs, budget, runs).remove("velocity").unwrap()
}

#[test]
fn every_dialect_changes_flux2_as_in_diffusers() {
    let (golden, expected) = (Golden::read("klein_base"), Golden::of("lora/klein_expected"));
    let written = plain(&golden);
    let checkpoint = written.open();
    for backend in devices().iter_mut().map(Box::as_mut) {
        let device = backend.caps().name.clone();
        for (name, strength, tolerance) in [
            ("klein_kohya", 1.0, TOLERANCE),
            ("klein_aitoolkit", 1.0, TOLERANCE),
            ("klein_diffusers", 1.0, TOLERANCE),
            ("klein_diffusers", 0.6, TOLERANCE),
            ("klein_uneven", 1.0, TOLERANCE),
            ("klein_base_model", 1.0, TOLERANCE),
            ("klein_config", 1.0, TOLERANCE),
            ("klein_lokr", 1.0, TOLERANCE),
            ("klein_lokr_lycoris", 1.0, TOLERANCE),
            ("klein_loha", 1.0, MERGED_TOLERANCE),
            ("klein_dora", 1.0, MERGED_TOLERANCE),
            ("klein_dora", 0.6, MERGED_TOLERANCE),
        ] {
            let loras = set(&checkpoint, name, strength);
            let weights = checkpoint.get(TRANSFORMER).unwrap();
            let apply = |program| loras.apply(weights, program, Int8Use::Never).unwrap();
            let got = velocity(backend, &golden, &written, &apply, (false, 1));
            let key = match strength {
                1.0 => name.to_string(),
                _ => format!("{name}_at_{strength}"),
            };
            let error = relative_error(&got, &expected.f32(&key));
            println!("{device} {key}: relative error {error:.2e}");
            assert!(error <= tolerance, "{device} {key}: relative error {error:.2e}");
        }
    }
}

/// The budget changes speed, never bits, with a LoRA too.
#[test]
fn with_streamed_weights_a_lora_of_flux2_gives_the_same_bits() {
    let golden = Golden::read("klein_base");
    let written = Written::new(&golden, Dialect::Comfy, Storage::F8ScaledNew, Grid::F8);
    let checkpoint = written.open();
    let loras = set(&checkpoint, "klein_diffusers", 0.8);
    let weights = checkpoint.get(TRANSFORMER).unwrap();
    let apply = |program| loras.apply(weights, program, Int8Use::Never).unwrap();
    for backend in devices().iter_mut().map(Box::as_mut) {
        let resident = velocity(backend, &golden, &written, &apply, (false, 2));
        let streamed = velocity(backend, &golden, &written, &apply, (true, 2));
        assert_eq!(resident, streamed, "{}", backend.caps().name);
    }
}

/// A whole image through the engine, whose program of a step has a batch for true CFG.
#[test]
fn an_image_of_flux2_with_a_lora_differs_and_strength_0_changes_no_bit() {
    let golden = Golden::read("klein_base");
    let mut engine = plain(&golden).engine(&f32_options());
    let base = request(&golden);
    let path = file("klein_kohya").display().to_string();
    let mut with = |strength: Option<f32>| {
        let loras = strength.map(|s| LoraChoice::new(&path, s)).into_iter().collect();
        engine.generate(&base.clone().loras(loras)).unwrap().latents
    };
    let (none, zero, half) = (with(None), with(Some(0.0)), with(Some(0.5)));
    close("latents", &golden, &none, &golden.f32("pipe.latents"));
    assert_eq!(none, zero);
    assert!(relative_error(&half, &none) > 1e-2);
}

/// A LoRA of the last modulation, in BFL's names and in those of diffusers, which have the halves
/// in the other order, against the merged weight. diffusers reads the first without the swap, so it
/// is no reference here.
#[test]
fn the_last_modulation_of_flux2_is_changed_as_its_names_say() {
    const WEIGHT: &str = "final_layer.adaLN_modulation.1.weight";
    let golden = Golden::read("klein_base");
    let written = plain(&golden);
    let checkpoint = written.open();
    let weights = checkpoint.get(TRANSFORMER).unwrap();
    let (rows, cols) = weights.shape(WEIGHT).unwrap();
    let rank = 3;
    let mut numbers = Numbers(12);
    let (a, b) = (numbers.many(rank * cols, 0.3), numbers.many(rows * rank, 0.1));
    let mut swapped = b.clone();
    swapped.rotate_left(b.len() / 2);
    let dir = temp_dir();
    let pair = |file: &str, name: &str, b: &[f32]| {
        let tensors = vec![
            (format!("{name}.lora_A.weight"), vec![rank, cols], a.clone()),
            (format!("{name}.lora_B.weight"), vec![rows, rank], b.to_vec()),
        ];
        let path = write(dir.path(), file, &tensors);
        let adapter = open(&path, &FLUX2, &|c| checkpoint.get(c)).unwrap();
        LoraSet::of(vec![(Arc::new(adapter), 1.0)])
    };
    let bfl = pair("bfl.safetensors", "diffusion_model.final_layer.adaLN_modulation.1", &b);
    let diffusers = pair("diffusers.safetensors", "transformer.norm_out.linear", &swapped);
    let difference = product(&b, &a, rank);
    let merged = |program: Program| {
        let of = |w: &WeightSpec| {
            let base = weights.get(&w.name, w.first, w.rows, w.cols).unwrap();
            if w.name != WEIGHT {
                return base;
            }
            assert_eq!((w.first, w.rows), (0, rows));
            let sums = base.to_f32().into_iter().zip(&difference);
            let bytes = sums.flat_map(|(w, d)| ((f64::from(w) + d) as f32).to_le_bytes());
            let source = Arc::new(bytes.collect::<Vec<u8>>());
            let (dtype, scale) = (DType::F32, Scale::One);
            HostWeight::whole(source, (rows, cols), dtype, scale)
        };
        let changed = program.weights.iter().map(of).collect();
        (program, changed)
    };
    let mut backend = cpu(Compute::F32);
    let mut drawn = |apply: &dyn Fn(Program) -> (Program, Vec<HostWeight>)| {
        velocity(&mut backend, &golden, &written, apply, (false, 1))
    };
    let want = drawn(&merged);
    let none = LoraSet::of::<f32>(vec![]);
    let base = drawn(&|program| none.apply(weights, program, Int8Use::Never).unwrap());
    assert!(relative_error(&base, &want) > 1e-2);
    for loras in [bfl, diffusers] {
        let got = drawn(&|program| loras.apply(weights, program, Int8Use::Never).unwrap());
        let error = relative_error(&got, &want);
        assert!(error <= TOLERANCE, "relative error {error:.2e}");
    }
}
