//! Whole blocks and whole images.
//!
//! `block`: one double and one single block of FLUX.1's real width at 1024 image and 256 text
//! tokens, weights resident. The lower bound is the matrix work: 0.62 TFLOP divided by the
//! machine's bf16 peak (`ops` measures it). `klein`: the same of FLUX.2 [klein] 4B with 512 text
//! tokens, and one layer of Qwen3-4B. `picture`: the embedded model from prompt to pixels. On
//! a GPU: `-- --device cuda` or `wgpu`.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group};
use flux_fast::backend::Backend;
use flux_fast::backend::Compute;
use flux_fast::backend::cpu::isa::Isa;
use flux_fast::backend::cpu::{CpuBackend, CpuOptions};
use flux_fast::dtype::DType;
use flux_fast::model::SequenceShape;
use flux_fast::model::flux1::{DenoiseShape, denoise, rope};
use flux_fast::model::{Flux2Config, FluxConfig, Qwen3Config, flux2, qwen3};
use flux_fast::op::{Program, Step};
use flux_fast::pipeline::Engine;
use flux_fast::pipeline::request::{Options, Request};
use flux_fast::stream::{Holdings, Session, Tenancy};

fn block(c: &mut Criterion) {
    let config = FluxConfig { depth_double: 1, depth_single: 1, ..FluxConfig::dev() };
    let shape = DenoiseShape { images: 1, cfg: false, text_tokens: 256, height: 32, width: 32 };
    let mut group = c.benchmark_group("block/double+single/1024+256");
    group
        .sample_size(10)
        .measurement_time(Duration::from_secs(12))
        .warm_up_time(Duration::from_secs(2));
    let record = |act| denoise(&config, &shape, act);
    measure(&mut group, "", &record, &rope(&config, &shape));
    group.finish();
}

fn klein(c: &mut Criterion) {
    let config = Flux2Config { depth_double: 1, depth_single: 1, ..Flux2Config::klein_4b() };
    let image = DenoiseShape { images: 1, cfg: false, text_tokens: 512, height: 32, width: 32 };
    let shape = SequenceShape { image, references: Vec::new(), added_inputs: 0 };
    let mut group = c.benchmark_group("klein");
    group
        .sample_size(10)
        .measurement_time(Duration::from_secs(12))
        .warm_up_time(Duration::from_secs(2));
    let record = |act| flux2::denoise(&config, &shape, act);
    measure(&mut group, "double+single/1024+512/", &record, &flux2::rope(&config, &shape));
    let text = Qwen3Config { layers: 1, taps: vec![1], ..Qwen3Config::qwen3_4b() };
    let record = |act| qwen3::encode(&text, &[100], 512, act);
    measure(&mut group, "qwen3/layer/512/", &record, &qwen3::rope(&text, 512));
    group.finish();
}

/// Runs the program of `record` with weights of two types, and with products in 8-bit integers.
/// `rope` is its input of this name.
fn measure(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    record: &dyn Fn(DType) -> Program,
    rope: &[f32],
) {
    let cases = [
        (DType::F8E4M3, Compute::Auto),
        (DType::BF16, Compute::Auto),
        (DType::BF16, Compute::Int8),
        (DType::I8, Compute::Int8),
    ];
    // With AMX also without it, for comparison.
    let below = (Isa::detect() == Isa::Amx).then_some(Isa::Avx512Bf16);
    let levels = [Some(None), below.map(Some)].into_iter().flatten();
    for ((dtype, compute), isa) in
        cases.into_iter().flat_map(|c| levels.clone().map(move |l| (c, l)))
    {
        let mut backend =
            CpuBackend::new(CpuOptions { threads: None, compute, kernels: vec![], isa }).unwrap();
        let program = record(backend.caps().activation);
        let mut weights = weights::random(&program, dtype);
        if compute == Compute::Int8 {
            weights::in_integers(&program, &mut weights);
        }
        let plan = weights::planned(&backend, &program, &weights);
        let mut holdings = Holdings::default();
        holdings.reserve(&mut backend, plan.layout(), false).unwrap();
        let mut session =
            Session::new(&mut backend, &mut holdings, &program, &plan, weights, Tenancy::default());
        for io in &program.inputs {
            let n = io.tensor.rows * io.tensor.cols;
            let values = match io.name {
                "rope" => rope.to_vec(),
                _ => (0..n).map(|i| ((i * 7919) % 2003) as f32 / 1001.0 - 1.0).collect(),
            };
            session.write_f32(io.tensor, &values).unwrap();
        }
        group.throughput(Throughput::Elements(program.flops()));
        let how = if compute == Compute::Int8 { " in int8" } else { "" };
        let level = isa.map_or(String::new(), |isa| format!(" with {}", isa.name()));
        let mut ran = false;
        group.bench_function(format!("{name}{}{how}{level}", dtype.name()), |b| {
            ran = true;
            b.iter(|| session.run(false, &mut |_, _| ControlFlow::Continue(())).unwrap())
        });
        if ran {
            by_operation(&program, &mut session);
        }
    }
}

/// Prints the time of each kind of operation: the sum of the least times of its steps in 5 runs.
fn by_operation(program: &Program, session: &mut Session) {
    let mut least = vec![f64::INFINITY; program.steps.len()];
    for _ in 0..5 {
        let mut start = Instant::now();
        let mut each = |i: usize, _: &Step| {
            least[i] = least[i].min(start.elapsed().as_secs_f64());
            start = Instant::now();
            ControlFlow::Continue(())
        };
        session.run(false, &mut each).unwrap();
    }
    let mut sums = BTreeMap::<&str, (f64, u64)>::new();
    for (step, least) in program.steps.iter().zip(least) {
        let sum = sums.entry(step.op.name()).or_default();
        *sum = (sum.0 + least, sum.1 + step.op.flops());
    }
    for (name, (seconds, flops)) in sums {
        let rate = flops as f64 / seconds / 1e9;
        println!("    {name}: {:.1} ms, {rate:.0} G operations/s", seconds * 1e3);
    }
}

fn picture(c: &mut Criterion) {
    let mut pipeline = Engine::open(Options::default()).unwrap();
    let request = Request::new("a fox, 3D style, on a blue background").seed(1);
    let mut group = c.benchmark_group("picture");
    group.sample_size(10);
    group.bench_function("embedded/open", |b| {
        b.iter(|| Engine::open(Options::default()).map(black_box).unwrap());
    });
    group.bench_function("embedded/generate", |b| {
        b.iter(|| pipeline.generate(black_box(&request)).unwrap())
    });
    group.finish();
}

criterion_group!(benches, block, klein, picture);

#[path = "cpu/weights.rs"]
mod weights;

#[path = "gpu/device.rs"]
#[allow(dead_code, reason = "shared with the bench of operations")]
mod device;
#[path = "gpu/step.rs"]
mod gpu;

fn main() {
    match device::asked() {
        Some(asked) => gpu::run(&asked),
        None => {
            benches();
            Criterion::default().configure_from_args().final_summary();
        }
    }
}
