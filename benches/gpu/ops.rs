//! `cargo bench --bench ops -- --device cuda[:N]|wgpu[:N] [--fp8|--int8] [--compute f32|f16]
//! [--kernel OP=NAME] [FILTER]`: every slow kernel at FLUX's shapes, by the GPU's own clock if it
//! has one, compared with the GPU's peaks. `--int8` is for attention on CUDA: products in int8 are
//! always among the cases. Writes one JSON object per case to the file `FLUX_FAST_BENCH_JSON`, with
//! the names of `benches/peers/flux_torch.py`. A driver that computes on the processor gets smaller
//! shapes.

use std::sync::Arc;
use std::time::Duration;

use criterion::{Criterion, Throughput};
use flux_fast::dtype::DType;
use flux_fast::dtype::int8::{Int8, Rotation};
use flux_fast::op::{
    Attention, Conv2d, ConvShape, Epilogue, GeluMul, GroupNorm, GroupStatistics, LayerNormModulate,
    Linear, Op, Pairs, QkNormRope, RmsNorm, Step,
};
use flux_fast::tensor::{HostWeight, Scale, Slot, Tensor, Weight};

use crate::device::{Asked, Device, after, has, open, record};
use crate::operation;
use crate::traffic::activation_bytes;

struct Bench<'a> {
    fp8: bool,
    criterion: &'a mut Criterion,
    device: Device,
    tensors: Vec<Tensor>,
    weights: Vec<HostWeight>,
}

impl Bench<'_> {
    fn tensor(&mut self, rows: usize, cols: usize, dtype: DType) -> Tensor {
        let tensor = Tensor { slot: Slot::Input(self.tensors.len() as u32), rows, cols, dtype };
        self.tensors.push(tensor);
        tensor
    }

    fn act(&mut self, rows: usize, cols: usize) -> Tensor {
        let dtype = self.device.backend().caps().activation;
        self.tensor(rows, cols, dtype)
    }

    fn weight(&mut self, rows: usize, cols: usize, dtype: DType) -> Weight {
        let table: Vec<Vec<u8>> = (0..1021)
            .map(|i| {
                let mut one = Vec::new();
                dtype.encode((i as f32 / 510.0 - 1.0) * 0.03, &mut one);
                one
            })
            .collect();
        let bytes: Vec<u8> =
            (0..rows * cols).flat_map(|i| table[(i * 7919) % 1021].iter().copied()).collect();
        let scale = if dtype.size() == 1 { Scale::Tensor(0.5) } else { Scale::One };
        self.weights.push(HostWeight::whole(Arc::new(bytes), (rows, cols), dtype, scale));
        Weight { id: self.weights.len() as u32 - 1, rows, cols }
    }

    /// Times `op` over the operands that were made since the last case. `bytes` is the minimum
    /// memory traffic.
    fn case(&mut self, name: &str, op: impl Into<Op>, flops: u64) {
        let op = op.into();
        op.check().unwrap_or_else(|why| panic!("{name}: {why}"));
        let step = Step { op, label: name.into(), net: 0 };
        let backend = self.device.backend();
        let (mut places, arena_bytes) =
            operation::place(backend, &op, &self.tensors, &self.weights);
        let loaded = operation::reserve_and_load(backend, &op, &self.weights, arena_bytes);
        let weight_bytes;
        (places.weights, weight_bytes) = loaded.expect("memory for the operands");
        for (t, at) in self.tensors.iter().zip(&places.inputs) {
            let mut bytes = Vec::with_capacity(t.bytes());
            match t.dtype {
                DType::I32 => bytes.resize(t.bytes(), 0),
                dtype => (0..t.rows * t.cols).for_each(|i| {
                    dtype.encode(((i * 7919) % 2003) as f32 / 1001.0 - 1.0, &mut bytes)
                }),
            }
            backend.write(*at, &bytes).expect("within the arena");
        }
        let moved = activation_bytes(&op) + weight_bytes as u64;
        let device = &mut self.device;
        let mut best = f64::INFINITY;
        let mut group = self.criterion.benchmark_group(device.api);
        group
            .sample_size(10)
            .warm_up_time(Duration::from_millis(100))
            .measurement_time(Duration::from_millis(500));
        group.throughput(if flops > 0 {
            Throughput::Elements(flops)
        } else {
            Throughput::Bytes(moved)
        });
        group.bench_function(name, |b| {
            b.iter_custom(|n| {
                let seconds = device.seconds(&mut |backend| {
                    (0..n).for_each(|_| backend.run(&step, &places).expect("runs"));
                });
                best = best.min(seconds / n as f64);
                Duration::from_secs_f64(seconds)
            });
        });
        group.finish();
        for key in &places.weights {
            device.backend().forget(*key).expect("forgets");
        }
        self.tensors.clear();
        self.weights.clear();
        if best == f64::INFINITY {
            return; // filtered out
        }
        let (tflops, gbps) = (flops as f64 / best / 1e12, moved as f64 / best / 1e9);
        let (most, fastest) = (self.device.teraflops, self.device.gigabytes);
        let of_most = if most.is_nan() {
            String::new()
        } else {
            format!(" ({:.1} % of {most:.4})", 100.0 * tflops / most)
        };
        println!(
            "    {tflops:.4} TFLOP/s{of_most}, {gbps:.1} GB/s ({:.1} % of {fastest:.0})",
            100.0 * gbps / fastest
        );
        record(&format!(
            "{{\"name\":\"{name}\",\"seconds\":{best:e},\"tflops\":{tflops:.4},\"gbps\":{gbps:.2}}}"
        ));
    }

    fn linear(&mut self, rows: usize, k: usize, n: usize, dtype: DType) {
        let (x, w, b) =
            (self.act(rows, k), self.weight(n, k, dtype), self.weight(1, n, DType::F32));
        let out = self.act(rows, n);
        let op = Op::Linear(Linear {
            x: x.all(),
            w,
            bias: Some(b),
            factors: None,
            side: None,
            epilogue: Epilogue::GeluTanh,
            out: out.all(),
        });
        let fp8 = self.fp8 && dtype == DType::F8E4M3;
        let short = match dtype {
            _ if fp8 => "e4m3.w8a8",
            DType::F8E4M3 => "e4m3",
            DType::F8E5M2 => "e5m2",
            DType::F16 => "f16",
            DType::F32 => "f32",
            _ => "bf16",
        };
        self.case(&format!("linear.{rows}x{k}x{n}.{short}"), op, op.flops());
    }

    /// The same in 8-bit integers, with x rotated and quantised.
    fn integers(&mut self, rows: usize, k: usize, n: usize) {
        let (x, w) = (self.act(rows, k), self.weight(n, k, DType::I8));
        let out = self.act(rows, n);
        let weight = &mut self.weights[w.id as usize];
        let rotation = Rotation::of_columns(k);
        weight.int8 = Some(Int8 { rotation });
        weight.parts[0].rotation = rotation;
        let op = Op::Linear(Linear::plain(x.all(), w, out.all()));
        self.case(&format!("linear.{rows}x{k}x{n}.int8"), op, op.flops());
    }

    fn attention(&mut self, tokens: usize, heads: usize, dim: usize) {
        let (qkv, out) = (self.act(tokens, 3 * heads * dim), self.act(tokens, heads * dim));
        let part = |i| qkv.columns(i * heads * dim, heads * dim);
        let op = Op::Attention(Attention {
            q: part(0),
            k: part(1),
            v: part(2),
            batch: 1,
            heads,
            scale: 1.0 / (dim as f32).sqrt(),
            causal: false,
            bias: None,
            first: None,
            out: out.all(),
        });
        // Heads of 128 and long sequences, on GPUs where integers are faster; the others are computed
        // as without the option.
        let faster = self.device.backend().caps().description.ends_with("int8 with attention");
        let int8 = faster && dim == 128 && tokens > 512;
        let short = if int8 { ".int8" } else { "" };
        self.case(&format!("attention.{tokens}x{heads}x{dim}{short}"), op, op.flops());
    }

    fn conv(&mut self, size: usize, inside: usize, outside: usize, upsample: bool) {
        let shape = ConvShape {
            batch: 1,
            height: size,
            width: size,
            in_channels: inside,
            out_channels: outside,
            kernel: 3,
            stride: 1,
            pad_before: 1,
            pad_after: 1,
            upsample,
        };
        let (h, w) = shape.output();
        let (x, out) = (self.act(size * size, inside), self.act(h * w, outside));
        let (w, bias) =
            (self.weight(outside, inside * 9, DType::BF16), self.weight(1, outside, DType::F32));
        let op = Op::Conv2d(Conv2d { x, w, bias: Some(bias), shape, residual: None, out });
        self.case(
            &format!("conv2d.{h}x{h}.{inside}->{outside}{}", if upsample { ".up2" } else { "" }),
            op,
            op.flops(),
        );
    }
}

/// Runs all cases on the given GPU.
pub fn run(asked: &Asked) {
    let device = open(asked, 0);
    record(&format!("{{\"name\":\"h2d.pinned\",\"gbps\":{:.2}}}", device.upload_gigabytes));
    record(&format!("{{\"name\":\"ceiling.products\",\"tflops\":{:.4}}}", device.teraflops));
    record(&format!("{{\"name\":\"ceiling.copy\",\"gbps\":{:.2}}}", device.gigabytes));
    let values: Vec<String> =
        ["--device", "--kernel", "--compute"].into_iter().flat_map(after).collect();
    let filter = std::env::args().skip(1).find(|a| !a.starts_with("--") && !values.contains(a));
    let mut criterion = Criterion::default();
    if let Some(filter) = filter {
        criterion = criterion.with_filter(filter);
    }
    let software = device.software;
    let (fp8, tensors, weights) = (has("--fp8") && !asked.wgpu, vec![], vec![]);
    let mut bench = Bench { fp8, criterion: &mut criterion, device, tensors, weights };
    if software {
        return small(&mut bench);
    }
    for rows in [4608, 4352] {
        for (k, n) in [(3072, 9216), (3072, 12288), (12288, 3072), (15360, 3072), (3072, 21504)] {
            for dtype in [DType::BF16, DType::F8E4M3] {
                bench.linear(rows, k, n, dtype);
            }
            if bench.device.api == "cuda" {
                bench.integers(rows, k, n);
            }
        }
    }
    bench.linear(4608, 3072, 9216, DType::F16);
    // T5 for one prompt, CLIP, and the modulation of 28 steps and of one.
    for (rows, k, n) in [
        (512, 4096, 10240),
        (512, 10240, 4096),
        (512, 4096, 4096),
        (77, 768, 3072),
        (28, 3072, 18432),
        (1, 3072, 18432),
    ] {
        bench.linear(rows, k, n, DType::F8E4M3);
        bench.linear(rows, k, n, DType::BF16);
    }
    bench.attention(4608, 24, 128);
    bench.attention(4352, 24, 128);
    bench.attention(512, 64, 64);
    bench.attention(16384, 1, 512);
    for (size, inside, outside, up) in [
        (128, 16, 512, false),
        (128, 512, 512, false),
        (128, 512, 512, true),
        (256, 512, 512, false),
        (512, 512, 256, false),
        (512, 256, 256, false),
        (512, 256, 256, true),
        (1024, 256, 128, false),
        (1024, 128, 128, false),
        (1024, 128, 3, false),
    ] {
        bench.conv(size, inside, outside, up);
    }
    for (pixels, width, channels) in
        [(1 << 20, 1024, 128), (1 << 18, 512, 256), (1 << 16, 256, 512)]
    {
        let statistics = bench.tensor(pixels / width, 64, DType::F32);
        let (x, out) = (bench.act(pixels, channels), bench.act(pixels, channels));
        let (weight, bias) =
            (bench.weight(1, channels, DType::F32), bench.weight(1, channels, DType::F32));
        let op = Op::GroupNorm(GroupNorm {
            x,
            statistics,
            width,
            weight,
            bias,
            groups: 32,
            eps: 1e-6,
            silu: true,
            out,
        });
        let sums = GroupStatistics { x, width, groups: 32, out: statistics };
        bench.case(&format!("group_statistics.{pixels}x{channels}"), sums, 0);
        bench.case(&format!("group_norm.{pixels}x{channels}"), op, 0);
    }
    let (x, m, out) = (bench.act(4096, 3072), bench.act(1, 9 * 3072), bench.act(4096, 3072));
    let op = Op::LayerNormModulate(LayerNormModulate {
        x,
        shift: m.columns(0, 3072),
        scale: m.columns(3072, 3072),
        eps: 1e-6,
        out,
    });
    bench.case("layer_norm_modulate.4096x3072", op, 0);
    let (qkv, rope, out) =
        (bench.act(4608, 9216), bench.tensor(4608, 128, DType::F32), bench.act(4608, 9216));
    let (q_gain, k_gain) = (bench.weight(1, 128, DType::F32), bench.weight(1, 128, DType::F32));
    let op = Op::QkNormRope(QkNormRope {
        qkv,
        q_gain,
        k_gain,
        rope,
        pairs: Pairs::Adjacent,
        batch: 1,
        heads: 24,
        kv_heads: 24,
        tokens: 4608,
        first: 0,
        eps: 1e-6,
        out,
    });
    bench.case("qk_norm_rope.4608x9216", op, 0);
    let (gate, up, out) = (bench.act(512, 10240), bench.act(512, 10240), bench.act(512, 10240));
    bench.case("gelu_mul.512x10240", GeluMul { gate, up, out }, 0);
    let (x, out, gain) =
        (bench.act(512, 4096), bench.act(512, 4096), bench.weight(1, 4096, DType::F32));
    bench.case("rms_norm.512x4096", RmsNorm { x, weight: gain, eps: 1e-6, out }, 0);
}

/// The same at shapes that take seconds on a processor.
fn small(bench: &mut Bench) {
    for dtype in [DType::F32, DType::BF16, DType::F16, DType::F8E4M3, DType::F8E5M2] {
        bench.linear(1024, 1024, 1024, dtype);
        bench.linear(1, 3072, 4096, dtype);
    }
    bench.attention(1280, 4, 128);
    bench.attention(77, 12, 64);
    bench.attention(1024, 1, 512);
    for (size, inside, outside, up) in
        [(32, 512, 512, false), (64, 128, 128, true), (128, 128, 3, false)]
    {
        bench.conv(size, inside, outside, up);
    }
    let (x, out) = (bench.act(1 << 14, 128), bench.act(1 << 14, 128));
    let (width, statistics) = (128, bench.tensor(128, 64, DType::F32));
    let (weight, bias) = (bench.weight(1, 128, DType::F32), bench.weight(1, 128, DType::F32));
    let op = Op::GroupNorm(GroupNorm {
        x,
        statistics,
        width,
        weight,
        bias,
        groups: 32,
        eps: 1e-6,
        silu: true,
        out,
    });
    let sums = GroupStatistics { x, width, groups: 32, out: statistics };
    bench.case("group_statistics.16384x128", sums, 0);
    bench.case("group_norm.16384x128", op, 0);
    let (x, m, out) = (bench.act(1024, 3072), bench.act(1, 9 * 3072), bench.act(1024, 3072));
    let op = Op::LayerNormModulate(LayerNormModulate {
        x,
        shift: m.columns(0, 3072),
        scale: m.columns(3072, 3072),
        eps: 1e-6,
        out,
    });
    bench.case("layer_norm_modulate.1024x3072", op, 0);
}
