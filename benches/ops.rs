//! Matrix products and convolutions at FLUX's shapes, against the peak of the multipliers.
//!
//! `cargo bench --bench ops -- FILTER`. Criterion's `elem/s` are floating-point operations per
//! second. The line after a case gives its best run as a fraction of the peak, which independent
//! multiply-adds reach on all threads just before. On a GPU: `-- --device cuda` or `wgpu`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group};
use flux_fast::backend::Compute;
use flux_fast::backend::cpu::conv::{CONV2D, conv2d, conv2d_scratch};
use flux_fast::backend::cpu::isa::Isa;
use flux_fast::backend::cpu::linear::{LINEAR, Tail, Variant, choose, linear, linear_scratch};
use flux_fast::backend::cpu::matrix::{In, Out};
use flux_fast::dtype::DType;
use flux_fast::dtype::blocks::{FORMATS, Format};
use flux_fast::dtype::int8::{Int8, Rotation};
use flux_fast::op::ConvShape;
use flux_fast::tensor::{BlockScale, BlockScales, HostWeight, Scale};

/// Varied numbers between -1 and 1.
fn numbers(n: usize) -> Vec<f32> {
    (0..n as u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 23) as f32 - 1.0)
        .collect()
}

fn weight(rows: usize, cols: usize, dtype: DType) -> HostWeight {
    if let Some(format) = dtype.format() {
        return blocks(rows, cols, format);
    }
    let mut bytes = Vec::with_capacity(rows * cols * dtype.size());
    let row = numbers(8191);
    (0..rows * cols).for_each(|i| dtype.encode(row[i % 8191], &mut bytes));
    HostWeight::whole(Arc::new(bytes), (rows, cols), dtype, Scale::Tensor(0.02))
}

/// The same in blocks. Rows have the same bytes from different offsets.
fn blocks(rows: usize, cols: usize, format: &Format) -> HostWeight {
    let (mut bytes, mut scales) = (Vec::new(), Vec::new());
    let many = numbers(cols + 64);
    let some: Vec<(Vec<u8>, Vec<u8>)> = (0..64)
        .map(|r| {
            let (mut bytes, mut scales) = (Vec::new(), Vec::new());
            format.encode(&many[r..r + cols], 1.0, &mut bytes, &mut scales);
            (bytes, scales)
        })
        .collect();
    for r in 0..rows {
        bytes.extend_from_slice(&some[r % 64].0);
        scales.extend_from_slice(&some[r % 64].1);
    }
    let stored = match format.dtype {
        DType::Mxfp8 => BlockScale::E8M0,
        DType::Nvfp4 => BlockScale::E4M3,
        _ => BlockScale::F32,
    };
    let scale = match format.scale_bytes {
        0 => Scale::One,
        _ => Scale::Blocks(BlockScales::new(Arc::new(scales), 0, stored, format.blocks(cols))),
    };
    HostWeight::whole(Arc::new(bytes), (rows, cols), format.dtype, scale)
}

/// Operations per second of independent multiply-adds in registers, on all threads.
#[cfg(target_arch = "x86_64")]
mod peak {
    use std::arch::asm;
    use std::time::Instant;

    use flux_fast::backend::cpu::amx::Tiles;
    use flux_fast::backend::cpu::isa::Isa;

    const CHAINS: usize = 15;
    const ROUNDS: u64 = 1_000_000;

    /// A loop of 15 multiply-adds into 15 registers. In assembly, because a compiler would reorder
    /// or merge such sums.
    macro_rules! chains {
        ($name:ident, $feature:literal, $op:literal, $register:literal) => {
            #[target_feature(enable = $feature)]
            fn $name() {
                // SAFETY: only registers are used, and all of them are listed; the caller has
                // checked that the processor has the instructions.
                unsafe {
                    asm!(
                        "vxorps xmm15, xmm15, xmm15",
                        "2:",
                        chains!(@ $op, $register, "0"), chains!(@ $op, $register, "1"), chains!(@ $op, $register, "2"),
                        chains!(@ $op, $register, "3"), chains!(@ $op, $register, "4"), chains!(@ $op, $register, "5"),
                        chains!(@ $op, $register, "6"), chains!(@ $op, $register, "7"), chains!(@ $op, $register, "8"),
                        chains!(@ $op, $register, "9"), chains!(@ $op, $register, "10"), chains!(@ $op, $register, "11"),
                        chains!(@ $op, $register, "12"), chains!(@ $op, $register, "13"), chains!(@ $op, $register, "14"),
                        "dec {n}",
                        "jnz 2b",
                        n = inout(reg) ROUNDS => _,
                        out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _, out("xmm4") _, out("xmm5") _,
                        out("xmm6") _, out("xmm7") _, out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
                        out("xmm12") _, out("xmm13") _, out("xmm14") _, out("xmm15") _,
                        options(nomem, nostack),
                    );
                }
            }
        };
        (@ $op:literal, $register:literal, $n:literal) => {
            concat!($op, " ", $register, $n, ", ", $register, "15, ", $register, "15")
        };
    }

    chains!(bf16, "avx512f,avx512bf16", "vdpbf16ps", "zmm");
    chains!(vnni_512, "avx512f,avx512vnni", "vpdpbusd", "zmm");
    chains!(vnni_256, "avx2,avxvnni", "{{vex}} vpdpbusd", "ymm");
    chains!(f32_512, "avx512f", "vfmadd231ps", "zmm");
    chains!(f32_256, "avx2,fma", "vfmadd231ps", "ymm");

    /// Defines a loop of multiplications of tiles of AMX into four tiles. They hold random bytes,
    /// with which it is slower than with zeros, because more power is needed.
    macro_rules! tiles {
        ($name:ident, $op:literal) => {
            fn $name() {
                let mut state = 1u64;
                let bytes: Vec<u8> = (0..4096 + 64)
                    .map(|i| {
                        state = state.wrapping_mul(6364136223846793005).wrapping_add(1);
                        // Pairs of bytes are floats of moderate size.
                        let byte = (state >> 40) as u8;
                        if i % 2 == 1 { 0x3b + (byte & 0x84) + (byte & 3) } else { byte }
                    })
                    .collect();
                let start = bytes[bytes.as_ptr().align_offset(64)..].as_ptr();
                // SAFETY: the processor and the system have AMX, as `of` checks.
                let _tiles = unsafe { Tiles::configure() };
                // SAFETY: four tiles of 1024 bytes are read; all tiles are listed.
                unsafe {
                    asm!(
                        "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
                        "2:",
                        "tileloadd tmm4, [{at} + {row}]",
                        "tileloadd tmm6, [{at} + {row} + 2048]",
                        concat!($op, " tmm0, tmm4, tmm6"),
                        "tileloadd tmm7, [{at} + {row} + 3072]",
                        concat!($op, " tmm1, tmm4, tmm7"),
                        "tileloadd tmm5, [{at} + {row} + 1024]",
                        concat!($op, " tmm2, tmm5, tmm6"),
                        concat!($op, " tmm3, tmm5, tmm7"),
                        "dec {n}",
                        "jnz 2b",
                        n = inout(reg) ROUNDS / 8 => _,
                        at = in(reg) start,
                        row = in(reg) 64usize,
                        out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                        out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                        options(nostack, readonly),
                    );
                }
            }
        };
    }
    tiles!(amx_bf16, "tdpbf16ps");
    tiles!(amx_int8, "tdpbssd");

    /// The peak for the instruction set and arithmetic of a variant, by its name.
    pub fn of(name: &str) -> Option<f64> {
        let isa = Isa::detect();
        let (work, flops): (fn(), usize) = if name.ends_with("amx") && isa >= Isa::Amx {
            // An eighth of the rounds, of four products of 16 x 16 x 64 bytes.
            match name.contains("bf16_") {
                true => (amx_bf16, 4 * 2 * 16 * 16 * 32 / 8),
                false => (amx_int8, 4 * 2 * 16 * 16 * 64 / 8),
            }
        } else if name.contains("bf16_") && isa >= Isa::Avx512Bf16 {
            // SAFETY: the processor has the instruction set.
            (|| unsafe { bf16() }, CHAINS * 64)
        } else if name.ends_with("avx512vnni") && isa >= Isa::Avx512Vnni {
            // SAFETY: the processor has the instruction set.
            (|| unsafe { vnni_512() }, CHAINS * 128)
        } else if name == "linear_int8_avx2" && std::is_x86_feature_detected!("avxvnni") {
            // SAFETY: the processor has the instruction set.
            (|| unsafe { vnni_256() }, CHAINS * 64)
        } else if name.ends_with("avx512") && isa >= Isa::Avx512 {
            // SAFETY: the processor has the instruction set.
            (|| unsafe { f32_512() }, CHAINS * 32)
        } else if name.ends_with("avx2") && isa >= Isa::Avx2 {
            // SAFETY: the processor has the instruction set.
            (|| unsafe { f32_256() }, CHAINS * 16)
        } else {
            return None;
        };
        let once = || {
            let start = Instant::now();
            rayon::broadcast(|_| work());
            (flops * ROUNDS as usize * rayon::current_num_threads()) as f64
                / start.elapsed().as_secs_f64()
        };
        Some((0..5).map(|_| once()).fold(0.0, f64::max))
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod peak {
    pub fn of(_: &str) -> Option<f64> {
        None
    }
}

/// Times `work`, which does `flops`, and prints its best run with the peak of `variant`.
fn case(
    group: &mut BenchmarkGroup<WallTime>,
    name: &str,
    variant: &str,
    flops: usize,
    bytes: usize,
    mut work: impl FnMut(),
) {
    let mut best = f64::INFINITY;
    group.throughput(Throughput::Elements(flops as u64));
    group.bench_function(name, |b| {
        b.iter_custom(|n| {
            let mut total = Duration::ZERO;
            for _ in 0..n {
                let start = Instant::now();
                work();
                let took = start.elapsed();
                best = best.min(took.as_secs_f64());
                total += took;
            }
            total
        });
    });
    if best < f64::INFINITY {
        let (rate, speed) = (flops as f64 / best / 1e9, bytes as f64 / best / 1e9);
        let part = peak::of(variant).map_or(String::new(), |p| {
            format!(", {:.1} % of the peak of {:.0}", rate * 1e11 / p, p / 1e9)
        });
        println!("    {variant}: {rate:.0} GFLOP/s{part}; weights at {speed:.1} GB/s");
    }
}

fn group<'a>(c: &'a mut Criterion, name: &str) -> BenchmarkGroup<'a, WallTime> {
    let mut group = c.benchmark_group(name);
    group
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_secs(1));
    group
}

fn variants(table: &'static [Variant], dtype: DType) -> impl Iterator<Item = &'static Variant> {
    let stored = flux_fast::tensor::DTypes::default().with(dtype);
    let best = choose(table, Isa::detect(), stored, Compute::Auto, None).map(|v| v.name);
    // f32 also runs on the smaller instruction sets, for comparison.
    table.iter().filter(move |v| {
        Some(v.name) == best
            || dtype == DType::F32 && v.needs <= Isa::detect() && !v.is_of_integers()
    })
}

/// Products in 8-bit integers, of weights that are rotated and quantised when they are used, and of
/// integers in place.
fn integers(c: &mut Criterion) {
    for (k, n) in [(3072, 12288), (3072, 9216), (12288, 3072), (15360, 3072)] {
        for (what, dtype) in [("BF16", DType::BF16), ("F8_E4M3", DType::F8E4M3), ("I8", DType::I8)]
        {
            let mut w = weight(n, k, dtype);
            let rotation = Rotation::of_columns(k);
            w.int8 = Some(Int8 { rotation });
            w.parts[0].rotation = rotation.filter(|_| dtype == DType::I8);
            let bias = numbers(n);
            let rows = 1280;
            let mut group = group(c, &format!("int8 {rows}x{k}x{n}"));
            let (x, mut out) = (numbers(rows * k), vec![0.0; rows * n]);
            let all = (k, n) == (3072, 12288) && dtype == DType::BF16;
            let mut runnable =
                LINEAR.iter().filter(|v| v.is_of_integers() && v.needs <= Isa::detect());
            let some: Vec<_> = match all {
                true => runnable.filter(|v| v.needs > Isa::Portable).collect(),
                false => runnable.next().into_iter().collect(),
            };
            for v in some {
                let bytes = linear_scratch(v, rows, k, 0, n, rayon::current_num_threads());
                let mut scratch = vec![0; bytes];
                let name = format!("{what}/{}", v.name);
                case(&mut group, &name, v.name, 2 * rows * k * n, w.bytes(), || {
                    let out = Out::dense(&mut out, n);
                    let (x, tail) = (In::dense(&x, k), Tail::GeluTanh);
                    linear(x, &w, None, Some(&bias), None, tail, out, &mut scratch, v);
                });
            }
        }
    }
}

fn linears(c: &mut Criterion) {
    for (k, n) in [(3072, 12288), (3072, 9216), (12288, 3072), (15360, 3072)] {
        let plain = [DType::BF16, DType::F8E4M3, DType::F16, DType::F32, DType::I8];
        for dtype in plain.into_iter().chain(FORMATS.iter().map(|f| f.dtype)) {
            // The simplest shape runs with every variant, the others with the best one.
            let all = (k, n) == (3072, 12288);
            if !all && dtype != DType::BF16 {
                continue;
            }
            let w = weight(n, k, dtype);
            let bias = numbers(n);
            for rows in [1280, 4608, 28, 1] {
                let expanded = !dtype.is_plain() || dtype == DType::I8;
                if (!all && rows < 1280) || (expanded && rows == 4608) {
                    continue;
                }
                let mut group = group(c, &format!("linear {rows}x{k}x{n}"));
                let x = numbers(rows * k);
                let mut out = vec![0.0; rows * n];
                for v in variants(LINEAR, dtype) {
                    if rows > 1280 && v.needs < Isa::Avx512 {
                        continue;
                    }
                    let mut scratch =
                        vec![0; linear_scratch(v, rows, k, 0, n, rayon::current_num_threads())];
                    let name = format!("{}/{}", dtype.name(), v.name);
                    case(&mut group, &name, v.name, 2 * rows * k * n, w.bytes(), || {
                        let out = Out::dense(&mut out, n);
                        linear(
                            In::dense(&x, k),
                            &w,
                            None,
                            Some(&bias),
                            None,
                            Tail::GeluTanh,
                            out,
                            &mut scratch,
                            v,
                        );
                    });
                }
            }
        }
    }
}

/// The VAE decoder's convolutions; larger images are cropped to a tile.
fn convolutions(c: &mut Criterion) {
    for (channels, out_channels, size, upsample) in [
        (512, 512, 128, false),
        (512, 256, 128, false),
        (256, 256, 64, true),
        (256, 128, 128, false),
        (128, 128, 256, false),
    ] {
        let s = ConvShape {
            batch: 1,
            height: size,
            width: size,
            in_channels: channels,
            out_channels,
            kernel: 3,
            stride: 1,
            pad_before: 1,
            pad_after: 1,
            upsample,
        };
        let (height, width) = s.output();
        let mut group = group(
            c,
            &format!(
                "conv2d {channels}->{out_channels} {height}x{width}{}",
                if upsample { " up2" } else { "" }
            ),
        );
        let x = numbers(size * size * channels);
        let mut out = vec![0.0; height * width * out_channels];
        for dtype in [DType::BF16, DType::F32] {
            let w = weight(out_channels, channels * 9, dtype);
            for v in variants(CONV2D, dtype).filter(|v| v.needs >= Isa::Avx512) {
                let mut scratch = vec![0; conv2d_scratch(v, &s, rayon::current_num_threads())];
                let flops = 2 * height * width * out_channels * channels * 9;
                case(
                    &mut group,
                    &format!("{}/{}", dtype.name(), v.name),
                    v.name,
                    flops,
                    w.bytes(),
                    || {
                        let out = Out::dense(&mut out, out_channels);
                        conv2d(In::dense(&x, channels), &w, None, &s, None, out, &mut scratch, v);
                    },
                );
            }
        }
    }
}

criterion_group!(benches, linears, integers, convolutions);

#[path = "gpu/device.rs"]
#[allow(dead_code, reason = "shared with the bench of steps")]
mod device;
#[path = "gpu/ops.rs"]
mod gpu;
#[path = "../tests/common/operation.rs"]
mod operation;
#[path = "common/traffic.rs"]
mod traffic;

fn main() {
    match device::asked() {
        Some(asked) => gpu::run(&asked),
        None => {
            benches();
            Criterion::default().configure_from_args().final_summary();
        }
    }
}
