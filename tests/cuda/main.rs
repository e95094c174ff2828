//! The CUDA backend over a driver without a GPU: memory, streams, graphs, errors, and the whole engine through the command line (`program`). The kernels
//! themselves are in `tests/ops`.

#[path = "../common/mod.rs"]
mod common;
#[path = "../common/driver.rs"]
mod driver;
mod program;

use std::collections::HashMap;
use std::ops::ControlFlow;

use common::{Input, least_bytes, resolve, run, temp_dir};
use flux_fast::backend::Backend;
use flux_fast::backend::cuda::{CudaBackend, CudaOptions};
use flux_fast::dtype::DType;
use flux_fast::error::Kind;
use flux_fast::model::FluxConfig;
use flux_fast::model::flux::{self, DenoiseShape};
use flux_fast::op::Program;
use flux_fast::plan;
use flux_fast::stream::{Holdings, Session, Tenancy};
use flux_fast::tensor::HostWeight;
use flux_fast::weights::synth::{self, Dialect, Grid, Storage, SynthSpec};
use flux_fast::weights::{Component, Files, open};
use serde_json::json;

/// Records every run that may be recorded, however long it takes here, where kernels are interpreted.
fn gpu(pinned_bytes: u64) -> CudaBackend {
    let record_below_seconds = Some(f64::INFINITY);
    CudaBackend::new(CudaOptions {
        ordinal: driver::RTX_3060,
        pinned_bytes,
        record_below_seconds,
        ..CudaOptions::default()
    })
    .unwrap()
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
    let (mut streamed, mut recorded) = (0, 0);
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
            let plan = plan::phase(&denoiser.program, 2, &bytes, &scratch, backend.caps().grain, budget).unwrap();
            let resident = plan.residency.ring_bytes == 0;
            *(if resident { &mut recorded } else { &mut streamed }) += 1;
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
                    let last = stop + if resident { denoiser.program.steps.len() } else { 0 };
                    if steps == last { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
                })
            });
            assert_eq!(e.unwrap_err().kind(), Kind::Cancelled);
            drop(session);
            assert_eq!(denoiser.run(&mut backend, budget, 2), want, "after {stop} steps under {budget} bytes");
        }
    }
    assert!(streamed > 0 && recorded > 0, "both kinds of run are to be cancelled: {streamed}, {recorded}");
}

#[test]
fn what_is_set_aside_is_one_allocation_and_more_than_there_is_is_refused() {
    if driver::get().is_none() {
        return;
    }
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
}
