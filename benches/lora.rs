//! The cost of adapters: one double and one single block of FLUX.1's real width at 1024 image and
//! text tokens, every layer with none, one, or four LoRAs of rank 16, a LoHa, a LoKr, or a DoRA.
//!
//! A LoHa of two products of rank 8 is computed as a LoRA of rank 64, one of rank 16 as one of 256.
//! A LoKr of factor 16 (w1 of 16 x 16) adds 1 / 16 of the products and two passes over the outputs.
//! A DoRA of rows adds factors to the LoRA's products, a DoRA of columns one pass over the inputs.
//!
//! Four LoRAs are one pair of matrices of rank 64. The lower bound is rank (K + N) multiply-adds
//! per row, compared with K N: for one LoRA of rank 16 that is 0.8 % of the block's work. Above
//! that, x is packed a second time for the first half. `swap` is the time for another strength
//! between two images of the embedded model: its matrices are combined again, and programs and
//! plans are made again.

use std::ops::ControlFlow;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use flux_fast::backend::Backend;
use flux_fast::backend::Compute;
use flux_fast::backend::cpu::{CpuBackend, CpuOptions};
use flux_fast::dtype::DType;
use flux_fast::model::FluxConfig;
use flux_fast::model::flux1::{DenoiseShape, denoise};
use flux_fast::op::{LinearChange, LinearTerm, TermKind, WeightSpec};
use flux_fast::pipeline::Engine;
use flux_fast::pipeline::request::{LoraChoice, Options, Request};
use flux_fast::stream::{Holdings, Session, Tenancy};

#[path = "cpu/weights.rs"]
mod weights;

/// What an adapter changes in a weight.
type Adapter = fn(&WeightSpec) -> Option<LinearChange>;

/// The adapters, with their names.
fn adapters() -> [(&'static str, Adapter); 7] {
    fn side(w: &WeightSpec, rank: usize) -> LinearChange {
        LinearChange { rows: w.rows, rank: Some(rank), ..LinearChange::default() }
    }
    [
        ("0 of rank 16", |_| None),
        ("1 of rank 16", |w| Some(side(w, 16))),
        ("4 of rank 16", |w| Some(side(w, 64))),
        ("LoHa of rank 16", |w| Some(side(w, 16 * 16))),
        ("LoKr of factor 16", |w| {
            let (rows, cols) = (w.rows.div_ceil(16), w.cols / 16);
            let kind = TermKind::Kronecker { outer: (16, 16), inner: (rows, cols), skip: 0 };
            let term = LinearTerm {
                first: 0,
                rows: w.rows,
                kind,
                row_factors: false,
                column_factors: false,
            };
            let change = LinearChange { rows: w.rows, terms: vec![term], ..Default::default() };
            w.cols.is_multiple_of(16).then_some(change)
        }),
        ("DoRA of rows, rank 16", |w| Some(LinearChange { row_factors: true, ..side(w, 16) })),
        ("DoRA of columns, rank 16", |w| {
            Some(LinearChange { column_factors: true, ..side(w, 16) })
        }),
    ]
}

fn block(c: &mut Criterion) {
    let config = FluxConfig { depth_double: 1, depth_single: 1, ..FluxConfig::dev() };
    let shape = DenoiseShape { images: 1, cfg: false, text_tokens: 256, height: 32, width: 32 };
    for dtype in [DType::BF16, DType::F8E4M3] {
        let mut group = c.benchmark_group(format!("lora/block/{}", dtype.name()));
        group
            .sample_size(20)
            .measurement_time(Duration::from_secs(12))
            .warm_up_time(Duration::from_secs(2));
        for (name, change) in adapters() {
            let options =
                CpuOptions { threads: None, compute: Compute::Auto, kernels: vec![], isa: None };
            let mut backend = CpuBackend::new(options).unwrap();
            let program = denoise(&config, &shape, backend.caps().activation);
            let program = program.with_changes(&|w| change(w).into_iter().collect(), &|_| false);
            let weights = weights::random(&program, dtype);
            let plan = weights::planned(&backend, &program, &weights);
            let mut holdings = Holdings::default();
            holdings.reserve(&mut backend, plan.layout(), false).unwrap();
            let mut session = Session::new(
                &mut backend,
                &mut holdings,
                &program,
                &plan,
                weights,
                Tenancy::default(),
            );
            for io in &program.inputs {
                let n = io.tensor.rows * io.tensor.cols;
                let values: Vec<f32> =
                    (0..n).map(|i| ((i * 7919) % 2003) as f32 / 1001.0 - 1.0).collect();
                session.write_f32(io.tensor, &values).unwrap();
            }
            group.bench_function(name, |b| {
                b.iter(|| session.run(false, &mut |_, _| ControlFlow::Continue(())).unwrap());
            });
        }
        group.finish();
    }
}

fn swap(c: &mut Criterion) {
    let mut pipeline = Engine::open(Options::default()).unwrap();
    let name = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/tiny/flux-tiny-pixel-lora.safetensors");
    let request = |strength: Option<f32>| {
        let loras = strength.map(|strength| LoraChoice::new(name, strength));
        Request::new("a fox").seed(1).loras(loras.into_iter().collect())
    };
    let mut group = c.benchmark_group("lora/swap");
    group.sample_size(20);
    // Without an image: only the work before the first step.
    group.bench_function("plan, no LoRA", |b| b.iter(|| pipeline.plan(&request(None)).unwrap()));
    group.bench_function("plan, the same LoRA", |b| {
        b.iter(|| pipeline.plan(&request(Some(0.7))).unwrap())
    });
    let mut weight = 0.5;
    group.bench_function("plan, another weight", |b| {
        b.iter(|| {
            weight += 0.001;
            pipeline.plan(&request(Some(weight))).unwrap()
        });
    });
    group.bench_function("picture, no LoRA", |b| {
        b.iter(|| pipeline.generate(&request(None)).unwrap());
    });
    group.bench_function("picture, another weight", |b| {
        b.iter(|| {
            weight += 0.001;
            pipeline.generate(&request(Some(weight))).unwrap()
        });
    });
    group.finish();
}

criterion_group!(benches, block, swap);
criterion_main!(benches);
