//! Memory accesses of the slowest kernels, counted by the PTX machine at shapes like the model's:
//! no bank conflicts in their loops, and no more global sectors than the data fills. `--nocapture`
//! prints the counts.

use std::sync::Arc;

use crate::common::driver::{self, Driver};
use crate::common::operation;
use flux_fast::backend::cuda::{CudaBackend, CudaOptions};
use flux_fast::backend::{Backend, Compute, KernelChoice};
use flux_fast::dtype::DType;
use flux_fast::dtype::blocks::FORMATS;
use flux_fast::dtype::int8::{Int8, Rotation};
use flux_fast::op::{
    Attention, Conv2d, ConvShape, Epilogue, GroupNorm, GroupStatistics, LayerNormModulate, Linear,
    Op, Side, Step,
};
use flux_fast::tensor::{BlockScale, BlockScales, HostWeight, Scale, Slot, Tensor, Weight};
use serde_json::Value;

#[derive(Default)]
struct Case {
    tensors: Vec<Tensor>,
    weights: Vec<HostWeight>,
}

impl Case {
    fn tensor(&mut self, rows: usize, cols: usize) -> Tensor {
        let slot = Slot::Input(self.tensors.len() as u32);
        self.tensors.push(Tensor { slot, rows, cols, dtype: DType::BF16 });
        self.tensors[self.tensors.len() - 1]
    }

    fn float(&mut self, rows: usize, cols: usize) -> Tensor {
        let id = self.tensors.len();
        self.tensor(rows, cols);
        self.tensors[id].dtype = DType::F32;
        self.tensors[id]
    }

    fn weight(&mut self, rows: usize, cols: usize, dtype: DType) -> Weight {
        let source = Arc::new(vec![0u8; rows * dtype.bytes(cols)]);
        let scale = match dtype.format() {
            Some(f) if f.scale_bytes > 0 => {
                let per_row = f.blocks(cols);
                let source = Arc::new(vec![0u8; rows * per_row * f.scale_bytes]);
                let stored = if f.scale_bytes == 4 { BlockScale::F32 } else { BlockScale::E4M3 };
                Scale::Blocks(BlockScales::new(source, 0, stored, per_row))
            }
            None if dtype.size() == 1 => Scale::Tensor(0.5),
            _ => Scale::One,
        };
        self.weights.push(HostWeight::whole(source, (rows, cols), dtype, scale));
        Weight { id: self.weights.len() as u32 - 1, rows, cols }
    }

    /// The counters of every kernel that `variant` launches for `op`.
    fn count(
        self,
        driver: &Driver,
        backend: &mut CudaBackend,
        variant: &str,
        op: impl Into<Op>,
    ) -> Vec<Value> {
        let op = op.into();
        op.check().unwrap_or_else(|why| panic!("{variant}: {why}"));
        backend.force(vec![KernelChoice::new(op.name(), variant)]).unwrap();
        let step = Step { op, label: variant.to_string(), net: 0 };
        let (mut places, arena_bytes) =
            operation::place(backend, &op, &self.tensors, &self.weights);
        let loaded = operation::reserve_and_load(backend, &op, &self.weights, arena_bytes);
        (places.weights, _) = loaded.unwrap();
        driver.report();
        backend.run(&step, &places).unwrap();
        backend.sync().unwrap();
        places.weights.iter().for_each(|key| backend.forget(*key).unwrap());
        driver
            .report()
            .into_iter()
            .filter(|line| line["runs"].as_u64().is_some_and(|n| n > 0))
            .collect()
    }
}

#[test]
fn loops_have_no_bank_conflicts_and_read_whole_sectors() {
    let Some(driver) = driver::get() else { return };
    if let Driver::Real { .. } = driver {
        eprintln!("SKIPPED counts of the PTX machine: the driver is a real one");
        return;
    }
    let _turn = driver::take_turn();
    // One multiprocessor, so that a block makes several tiles.
    driver.configure("sms.2=1");
    let open = |ordinal, compute| {
        CudaBackend::new(CudaOptions { ordinal, compute, ..CudaOptions::default() }).unwrap()
    };
    let mut ampere = open(driver::RTX_3060, Compute::Auto);
    let mut ada = open(driver::RTX_4060, Compute::Fp8);
    let mut hopper = open(driver::H100, Compute::Fp8);
    let mut seen = Vec::new();

    let linear = |rows, k, n, dtype| {
        let mut c = Case::default();
        let (x, w, bias) = (c.tensor(rows, k), c.weight(n, k, dtype), c.weight(1, n, DType::F32));
        let out = c.tensor(rows, n);
        (
            c,
            Op::Linear(Linear {
                x: x.all(),
                w,
                bias: Some(bias),
                factors: None,
                side: None,
                epilogue: Epilogue::GeluTanh,
                out: out.all(),
            }),
        )
    };
    for (name, dtype) in [
        ("bf16", DType::BF16),
        ("f16", DType::F16),
        ("e4m3", DType::F8E4M3),
        ("e5m2", DType::F8E5M2),
    ] {
        for (tile, rows) in [("128x128", 256), ("64x64", 128), ("rows16", 16)] {
            let (c, op) = linear(rows, 512, 384, dtype);
            seen.push(c.count(driver, &mut ampere, &format!("linear_{name}_{tile}_sm80"), op));
        }
    }
    // Products in integers: rows of x that stay in registers, and a row that is too long for that.
    let integers = [
        ("128x128", 256, 3072),
        ("64x64", 128, 3072),
        ("128x128", 128, 12_288),
        ("64x64", 64, 17_408),
    ];
    for (tile, rows, k) in integers {
        let (mut c, op) = linear(rows, k, 128, DType::I8);
        let rotation = Rotation::of_columns(k);
        c.weights[0].int8 = Some(Int8 { rotation });
        c.weights[0].parts[0].rotation = rotation;
        seen.push(c.count(driver, &mut ampere, &format!("linear_int8_{tile}_sm80"), op));
    }
    // Weights in blocks: a step reads less than a sector of 4-bit codes and scales per row, and the
    // next steps find the rest in L1. So sectors have a separate bound; the instruction count says
    // more.
    let mut blocks = Vec::new();
    for format in FORMATS.iter() {
        for (tile, rows) in [("128x128", 128), ("64x64", 64), ("rows16", 16)] {
            let (c, op) = linear(rows, 1024, 128, format.dtype);
            for line in c.count(driver, &mut ampere, &format!("linear_blocks_{tile}_sm80"), op) {
                blocks.push((format.name, line));
            }
        }
    }
    // A side branch of rank 64 next to K = 1024.
    for (dtype, tile) in [
        (DType::BF16, "bf16_128x128"),
        (DType::F8E4M3, "e4m3_128x128"),
        (DType::Q4K, "blocks_64x64"),
    ] {
        let (mut c, mut op) = linear(256, 1024, 128, dtype);
        let (t, b) = (c.tensor(256, 64), c.weight(128, 64, DType::BF16));
        if let Op::Linear(Linear { side, .. }) = &mut op {
            *side = Some(Side { t, b });
        }
        let lines = c.count(driver, &mut ampere, &format!("linear_{tile}_sm80"), op);
        match dtype.is_plain() {
            true => seen.push(lines),
            false => blocks.extend(lines.into_iter().map(|line| ("with a side", line))),
        }
    }
    // These kernels loop over tiles, so that the epilogue's sectors count as loop sectors; K is
    // long here, as in the model.
    let (c, op) = linear(128, 3072, 128, DType::F8E4M3);
    seen.push(c.count(driver, &mut ada, "linear_e4m3_w8a8_128x128_sm89", op));
    for (name, dtype) in
        [("bf16", DType::BF16), ("e4m3", DType::F8E4M3), ("e4m3_w8a8", DType::F8E4M3)]
    {
        for tile in ["256x128", "192x128", "128x128"] {
            let (c, op) = linear(384, 2048, 128, dtype);
            seen.push(c.count(
                driver,
                &mut hopper,
                &format!("linear_{name}_wgmma_{tile}_sm90a"),
                op,
            ));
        }
    }

    for (variant, tokens, heads, dim, biased) in [
        ("attention_d128_wgmma_sm90a", 512, 1, 128, false),
        ("attention_d128_int8_sm80", 512, 1, 128, false),
        ("attention_d128_sm80", 384, 2, 128, false),
        ("attention_d64_sm80", 192, 2, 64, true),
        ("attention_d512_sm80", 192, 1, 512, false),
    ] {
        let mut c = Case::default();
        let (qkv, table) = (c.tensor(tokens, 3 * heads * dim), c.tensor(2 * tokens - 1, heads));
        let out = c.tensor(tokens, heads * dim);
        let part = |i| qkv.columns(i * heads * dim, heads * dim);
        let (q, k, v, out) = (part(0), part(1), part(2), out.all());
        let bias = biased.then_some(table);
        let op = Op::Attention(Attention {
            q,
            k,
            v,
            batch: 1,
            heads,
            scale: 0.1,
            causal: false,
            bias,
            first: None,
            out,
        });
        let gpu = if variant.ends_with("sm90a") { &mut hopper } else { &mut ampere };
        seen.push(c.count(driver, gpu, variant, op));
    }

    for (variant, inside, outside, upsample) in [
        ("conv2d_bf16_128x128_sm80", 64, 256, false),
        ("conv2d_bf16_128x128_sm80", 64, 128, true),
        ("conv2d_bf16_128x64_sm80", 64, 64, false),
        ("conv2d_bf16_128x16_sm80", 128, 16, false),
    ] {
        let mut c = Case::default();
        let shape = ConvShape {
            batch: 1,
            height: 16,
            width: 16,
            in_channels: inside,
            out_channels: outside,
            kernel: 3,
            stride: 1,
            pad_before: 1,
            pad_after: 1,
            upsample,
        };
        let (h, w) = shape.output();
        let (x, out) = (c.tensor(256, inside), c.tensor(h * w, outside));
        let w = c.weight(outside, inside * 9, DType::BF16);
        seen.push(c.count(
            driver,
            &mut ampere,
            variant,
            Op::Conv2d(Conv2d { x, w, bias: None, shape, residual: None, out }),
        ));
    }
    let mut c = Case::default();
    let (x, out, weight, bias) = (
        c.tensor(1024, 128),
        c.tensor(1024, 128),
        c.weight(1, 128, DType::F32),
        c.weight(1, 128, DType::F32),
    );
    let statistics = c.float(16, 64);
    let op = Op::GroupNorm(GroupNorm {
        x,
        statistics,
        width: 64,
        weight,
        bias,
        groups: 32,
        eps: 1e-6,
        silu: true,
        out,
    });
    seen.push(c.count(driver, &mut ampere, "group_norm_bf16_sm80", op));
    let mut c = Case::default();
    let (x, out) = (c.tensor(1024, 128), c.float(16, 64));
    let op = Op::GroupStatistics(GroupStatistics { x, width: 64, groups: 32, out });
    seen.push(c.count(driver, &mut ampere, "group_statistics_bf16_sm80", op));
    let mut c = Case::default();
    let (x, m, out) = (c.tensor(64, 3072), c.tensor(1, 2 * 3072), c.tensor(64, 3072));
    let (shift, scale) = (m.columns(0, 3072), m.columns(3072, 3072));
    let op = Op::LayerNormModulate(LayerNormModulate { x, shift, scale, eps: 1e-6, out });
    seen.push(c.count(driver, &mut ampere, "layer_norm_modulate_bf16_sm80", op));

    println!(
        "{:<44} {:>12} {:>12} {:>8} {:>8}",
        "kernel", "instructions", "per mma", "sectors", "shared"
    );
    let mut faults = Vec::new();
    for line in seen.iter().flatten() {
        let number = |key: &str| line[key].as_f64().unwrap_or_else(|| panic!("no {key} in {line}"));
        let ratio = |a: &str, b: &str| if number(b) > 0.0 { number(a) / number(b) } else { 1.0 };
        let mma = number("mma_flops") / 4096.0;
        let name = line["kernel"].as_str().unwrap();
        let (sectors, shared) = (
            ratio("loop_sectors", "ideal_loop_sectors"),
            ratio("loop_wavefronts", "ideal_loop_wavefronts"),
        );
        let per_mma = if mma > 0.0 { number("instructions") / mma } else { f64::NAN };
        println!(
            "{name:<44} {:>12} {per_mma:>12.2} {sectors:>8.3} {shared:>8.3}",
            number("instructions")
        );
        assert!(line["findings"].as_array().unwrap().is_empty(), "{line}");
        if sectors > 1.1 {
            faults.push(format!("{name}: {sectors} sectors read for each sector of data"));
        }
        // In units of an mma in bf16: instructions of PTX, of which machine code has fewer.
        if name == "attention_d128_int8_sm80" && per_mma > 9.0 {
            faults.push(format!("{name}: {per_mma} instructions for each mma"));
        }
        if shared > 1.0 {
            faults
                .push(format!("{name}: {shared} shared-memory wavefronts for each necessary one"));
        }
    }
    for (format, line) in blocks.iter().filter(|(_, line)| line["mma_flops"].as_f64() > Some(0.0)) {
        let number = |key: &str| line[key].as_f64().unwrap_or_else(|| panic!("no {key} in {line}"));
        let name = format!("{} {format}", line["kernel"].as_str().unwrap());
        let per_mma = number("instructions") * 4096.0 / number("mma_flops");
        let sectors = number("loop_sectors") / number("ideal_loop_sectors");
        let shared = number("loop_wavefronts") / number("ideal_loop_wavefronts").max(1.0);
        println!(
            "{name:<44} {:>12} {per_mma:>12.2} {sectors:>8.3} {shared:>8.3}",
            number("instructions")
        );
        assert!(line["findings"].as_array().unwrap().is_empty(), "{line}");
        if sectors > if name.contains("rows16") { 2.4 } else { 1.7 } {
            faults.push(format!("{name}: {sectors} sectors read for each sector of data"));
        }
        if shared > 1.0 {
            faults
                .push(format!("{name}: {shared} shared-memory wavefronts for each necessary one"));
        }
    }
    assert!(seen.iter().all(|lines| !lines.is_empty()));
    assert!(faults.is_empty(), "{faults:#?}");
}
