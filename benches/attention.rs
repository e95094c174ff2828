//! Attention and norms at the model's sizes, with every variant that this machine can run: `cargo
//! bench --bench attention`. Criterion's throughput counts flops as elements for attention, and
//! bytes for the norms.

use std::sync::Arc;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use flux_fast::backend::cpu::isa::Isa;
use flux_fast::backend::cpu::{CpuBackend, CpuOptions, variants};
use flux_fast::backend::{Backend, KernelChoice, Layout, Place, Places, WeightKey};
use flux_fast::dtype::DType;
use flux_fast::op::{
    Attention, GroupNorm, GroupStatistics, LayerNormModulate, Op, Pairs, QkNormRope, Step, Use,
};
use flux_fast::tensor::{HostWeight, Scale, Slot, Tensor, Weight};

#[path = "common/traffic.rs"]
mod traffic;
use traffic::activation_bytes;

fn tensor(id: u32, rows: usize, cols: usize) -> Tensor {
    Tensor { slot: Slot::Input(id), rows, cols, dtype: DType::F32 }
}

/// A gain of ones.
fn ones(weight: &Weight) -> HostWeight {
    let bytes: Vec<u8> = (0..weight.rows * weight.cols).flat_map(|_| 1f32.to_le_bytes()).collect();
    let (rows, cols) = (weight.rows, weight.cols);
    HostWeight::whole(Arc::new(bytes), (rows, cols), DType::F32, Scale::One)
}

/// Runs `op` over `tensors` (inputs 0, 1, ...), filled with numbers around zero, with gains of one.
fn bench(
    c: &mut Criterion,
    label: &str,
    op: impl Into<Op>,
    tensors: &[Tensor],
    throughput: Throughput,
) {
    let op = op.into();
    op.check().expect("the benchmark's shapes fit");
    let mut group = c.benchmark_group(format!("{}/{label}", op.name()));
    group.throughput(throughput).sample_size(10).warm_up_time(Duration::from_secs(1));
    for (variant, needs) in variants::names(op.name()).expect("the operation has variants") {
        if needs > Isa::detect() || variant.ends_with("_reference") {
            continue;
        }
        let kernels = vec![KernelChoice::new(op.name(), variant)];
        let mut backend =
            CpuBackend::new(CpuOptions { kernels, ..CpuOptions::default() }).expect("a CPU");
        let mut places = Places::default();
        let mut next = 0;
        for t in tensors {
            places.inputs.push(next);
            next = (next + t.bytes()).next_multiple_of(64);
        }
        places.scratch = next;
        let weights: Vec<HostWeight> = op.weights().iter().map(ones).collect();
        let arena_bytes = next + backend.scratch_bytes(&op, &|w| &weights[w.id as usize]);
        backend.reserve(Layout { arena_bytes, ..Layout::default() }, 0).expect("memory");
        let mut state = 1u32;
        for (t, offset) in tensors.iter().zip(&places.inputs) {
            let mut number = || {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 8) as f32 / (1 << 23) as f32 - 1.0
            };
            let bytes: Vec<u8> =
                (0..t.rows * t.cols).flat_map(|_| number().to_le_bytes()).collect();
            backend.write(*offset, &bytes).expect("within the arena");
        }
        for (id, weight) in weights.iter().enumerate() {
            let key = WeightKey::new(id as u32);
            backend.load(key, Place::Resident(0), weight, Use::Vector).expect("loads");
            places.weights.push(key);
        }
        let step = Step { op, label: label.into(), net: 0 };
        group.bench_function(BenchmarkId::from_parameter(variant), |b| {
            b.iter(|| backend.run(&step, &places).expect("runs"));
        });
    }
    group.finish();
}

fn attention(c: &mut Criterion) {
    for (tokens, heads, dim) in [(1280, 24, 128), (4608, 24, 128), (512, 64, 64), (4096, 1, 512)] {
        let width = heads * dim;
        let (qkv, out) = (tensor(0, tokens, 3 * width), tensor(1, tokens, width));
        let op = Op::Attention(Attention {
            q: qkv.columns(0, width),
            k: qkv.columns(width, width),
            v: qkv.columns(2 * width, width),
            batch: 1,
            heads,
            scale: 1.0 / (dim as f32).sqrt(),
            causal: false,
            bias: None,
            first: None,
            out: out.all(),
        });
        bench(
            c,
            &format!("{tokens}x{heads}x{dim}"),
            op,
            &[qkv, out],
            Throughput::Elements(op.flops()),
        );
    }
}

fn norms(c: &mut Criterion) {
    let (rows, cols) = (4608, 3072);
    let (x, m, out) = (tensor(0, rows, cols), tensor(1, 1, 2 * cols), tensor(2, rows, cols));
    let op = Op::LayerNormModulate(LayerNormModulate {
        x,
        shift: m.columns(0, cols),
        scale: m.columns(cols, cols),
        eps: 1e-6,
        out,
    });
    bench(c, "4608x3072", op, &[x, m, out], Throughput::Bytes(activation_bytes(&op)));

    let (heads, dim, tokens) = (24, 128, 4608);
    let (qkv, rope) = (tensor(0, tokens, 3 * heads * dim), tensor(1, tokens, dim));
    let gain = |id| Weight { id, rows: 1, cols: dim };
    let (q_gain, k_gain) = (gain(0), gain(1));
    let op = Op::QkNormRope(QkNormRope {
        qkv,
        q_gain,
        k_gain,
        rope,
        pairs: Pairs::Adjacent,
        batch: 1,
        heads,
        kv_heads: heads,
        tokens,
        first: 0,
        eps: 1e-6,
        out: qkv,
    });
    bench(c, "4608x24x128", op, &[qkv, rope], Throughput::Bytes(activation_bytes(&op)));

    let (pixels, channels) = (512 * 512, 128);
    let x = tensor(0, pixels, channels);
    let affine = |id| Weight { id, rows: 1, cols: channels };
    let (weight, bias) = (affine(0), affine(1));
    let statistics = tensor(1, 512, 64);
    let op = GroupStatistics { x, width: 512, groups: 32, out: statistics }.into();
    let bytes = Throughput::Bytes(activation_bytes(&op));
    bench(c, "512x512x128", op, &[x, statistics], bytes);
    let op = Op::GroupNorm(GroupNorm {
        x,
        statistics,
        width: 512,
        weight,
        bias,
        groups: 32,
        eps: 1e-6,
        silu: true,
        out: x,
    });
    let bytes = Throughput::Bytes(activation_bytes(&op));
    bench(c, "512x512x128", op, &[x, statistics], bytes);
}

criterion_group!(benches, attention, norms);
criterion_main!(benches);
