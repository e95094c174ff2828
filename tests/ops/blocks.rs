//! Weights of types stored in blocks, and `Linear` on them; `Linear` with a side.

use std::sync::Arc;

use flux_fast::dtype::DType;
use flux_fast::dtype::blocks::FORMATS;
use flux_fast::op::{Epilogue, Linear, Op, Side};
use flux_fast::tensor::{BlockScale, BlockScales, HostPart, HostWeight, Scale, Weight};

use crate::case::Case;
use crate::cuda;
use crate::wgpu;

/// The halves of a block that are f16 scales, by byte.
fn halves(dtype: DType) -> &'static [usize] {
    match dtype {
        DType::Q8_0 | DType::Q4_0 | DType::Q5_0 => &[0],
        DType::Q4_1 | DType::Q5_1 | DType::Q4K | DType::Q5K => &[0, 2],
        DType::Q2K => &[80, 82],
        DType::Q3K => &[108],
        DType::Q6K => &[208],
        _ => &[],
    }
}

impl Case {
    fn byte(&mut self) -> u8 {
        (self.random.bits() >> 33) as u8
    }

    /// `rows x cols` of random blocks of `dtype`, at an odd byte of their source, with all codes
    /// equally likely. `tiled`: separate scales are in cuBLAS's order.
    fn block_part(&mut self, rows: usize, cols: usize, dtype: DType, tiled: bool) -> HostPart {
        let offset = 3;
        let mut bytes = vec![0xff; offset];
        bytes.extend((0..rows * dtype.bytes(cols)).map(|_| self.byte()));
        let mut scale = Scale::Tensor(0.01);
        if let Some(format) = dtype.format() {
            let spread = if format.block == 256 { 0.002 } else { 0.02 };
            for block in bytes[offset..].chunks_exact_mut(format.bytes) {
                for at in halves(dtype) {
                    let d = half::f16::from_f32(self.random.number() * spread);
                    block[*at..at + 2].copy_from_slice(&d.to_le_bytes());
                }
            }
            scale = Scale::One;
            if format.scale_bytes > 0 {
                let per_row = format.blocks(cols);
                // The part begins at row 5 of the stored matrix.
                let count = (rows + 5).next_multiple_of(128) * per_row.next_multiple_of(4);
                let (stored, scales): (_, Vec<u8>) = match dtype {
                    DType::Mxfp8 => {
                        (BlockScale::E8M0, (0..count).map(|_| 115 + self.byte() % 10).collect())
                    }
                    DType::Nvfp4 => {
                        (BlockScale::E4M3, (0..count).map(|_| self.byte() % 0x60).collect())
                    }
                    _ => (
                        BlockScale::F32,
                        (0..count).flat_map(|_| self.random.number().to_le_bytes()).collect(),
                    ),
                };
                if matches!(dtype, DType::Mxfp8 | DType::F8Block) {
                    // No NaN codes.
                    bytes[offset..].iter_mut().for_each(|q| *q &= 0xbf);
                }
                let source = Arc::new(scales);
                let factor = if dtype == DType::Nvfp4 { 0.03 } else { 1.0 };
                scale = Scale::Blocks(BlockScales {
                    first_row: 5,
                    tall: if dtype == DType::F8Block { 16 } else { 1 },
                    tiled,
                    factor,
                    ..BlockScales::new(source, 0, stored, per_row)
                });
            }
        }
        HostPart { rotation: None, source: Arc::new(bytes), offset, rows, cols, dtype, scale }
    }

    /// A weight of parts in blocks.
    pub fn blocks(&mut self, cols: usize, parts: &[(usize, DType, bool)]) -> Weight {
        let parts: Vec<_> = parts
            .iter()
            .map(|&(rows, dtype, tiled)| self.block_part(rows, cols, dtype, tiled))
            .collect();
        let host = HostWeight { int8: None, rows: parts.iter().map(|p| p.rows).sum(), cols, parts };
        let weight = Weight { id: self.weights.len() as u32, rows: host.rows, cols };
        self.weights.push(host);
        weight
    }
}

#[test]
fn linear_in_every_block_format() {
    for dtype in FORMATS.iter().map(|f| f.dtype).chain([DType::I8]) {
        for (rows, k, n) in
            [(1, 256, 33), (5, 512, 72), (20, 768, 40), (130, 256, 136), (257, 512, 65)]
        {
            let mut c = Case::new();
            let tiled = dtype == DType::Nvfp4;
            let w = c.blocks(k, &[(n / 2, dtype, false), (n - n / 2, dtype, tiled)]);
            let (x, b, out) = (c.input(rows, k), c.vector(n), c.output(rows, n));
            let epilogue = if rows == 20 { Epilogue::GeluTanh } else { Epilogue::None };
            c.check(
                Op::Linear(Linear {
                    x: x.all(),
                    w,
                    bias: Some(b),
                    factors: None,
                    side: None,
                    epilogue,
                    out: out.all(),
                }),
                0,
            );
        }
    }
    // q, k and v from three files in three formats; a row length that is not a multiple of any
    // kernel's step.
    let mut c = Case::new();
    let w = c
        .blocks(1280, &[(24, DType::Q6K, false), (20, DType::Q4_0, false), (5, DType::Nf4, false)]);
    let (x, residual) = (c.input(33, 1280), c.input(33, 49));
    let gate = c.input(1, 98).columns(49, 49);
    let epilogue = Epilogue::GatedAdd { residual, gate };
    c.check(
        Op::Linear(Linear {
            x: x.all(),
            w,
            bias: None,
            factors: None,
            side: None,
            epilogue,
            out: residual.all(),
        }),
        0,
    );
    wgpu::all_ran_on_blocks();
}

/// Row counts that no tile divides, windows that begin at any column, and sums that are split into
/// parts, each with a side branch.
#[test]
fn linear_in_blocks_of_odd_shapes() {
    for (dtype, rows, k, n, rank, from) in [
        (DType::Q4_0, 9, 160, 40, 8, 0),
        (DType::Nvfp4, 3, 32, 36, 16, 8),
        (DType::Mxfp8, 70, 96, 40, 24, 0),
        (DType::F8Block, 21, 384, 40, 8, 5),
        (DType::Q5_1, 18, 224, 33, 5, 3),
        (DType::Q5K, 20, 512, 40, 16, 17),
        (DType::Q8_0, 70, 2048, 72, 20, 0),
        (DType::BF16, 70, 2048, 72, 40, 0),
    ] {
        let mut c = Case::new();
        let w = if dtype.is_plain() {
            c.weight(n, k, dtype)
        } else {
            c.blocks(k, &[(n, dtype, false)])
        };
        // The side branch's weights come from two files.
        let b = c.weight_of(
            rank,
            &[(n / 4, DType::F16, Scale::One), (n - n / 4, DType::BF16, Scale::One)],
        );
        let (x, t, bias, out) =
            (c.input(rows, from + k), c.input(rows, rank), c.vector(n), c.output(rows, n));
        let (x, side) = (x.columns(from, k), Some(Side { t, b }));
        c.check(
            Op::Linear(Linear {
                x,
                w,
                bias: Some(bias),
                factors: None,
                side,
                epilogue: Epilogue::Silu,
                out: out.all(),
            }),
            0,
        );
        c.check(
            Op::Linear(Linear {
                x,
                w,
                bias: None,
                factors: None,
                side: None,
                epilogue: Epilogue::None,
                out: out.all(),
            }),
            0,
        );
    }
}

/// The product with the identity matrix must be the weights, each rounded to bf16 once and then
/// scaled.
#[test]
fn weights_in_blocks_are_decoded_to_the_bit() {
    for dtype in FORMATS.iter().map(|f| f.dtype).chain([DType::I8]) {
        let mut c = Case::new();
        let w = c.blocks(512, &[(16, dtype, false)]);
        let part = &c.weights[w.id as usize].parts[0];
        let (factor, mut plain) = (part.scale.of(0), part.clone());
        plain.scale = match plain.scale {
            Scale::Blocks(scales) => Scale::Blocks(BlockScales { factor: 1.0, ..scales }),
            _ => Scale::One,
        };
        let values = HostWeight { int8: None, rows: 16, cols: 512, parts: vec![plain] }.to_f32();
        let expected: Vec<f32> = (0..512 * 16)
            .map(|i| half::bf16::from_f32(values[i % 16 * 512 + i / 16]).to_f32() * factor)
            .collect();
        let identity: Vec<f32> =
            (0..512 * 512).map(|i| if i % 513 == 0 { 1.0 } else { 0.0 }).collect();
        let (x, out) = (c.given(512, 512, &identity), c.output(512, 16));
        let op = Op::Linear(Linear {
            x: x.all(),
            w,
            bias: None,
            factors: None,
            side: None,
            epilogue: Epilogue::None,
            out: out.all(),
        });
        cuda::check_bits(&c, op, &expected);
    }
}

#[test]
fn linear_with_a_side() {
    let scales: Arc<[f32]> = (0..72).map(|i| 0.5 + i as f32 / 64.0).collect();
    let dtypes = [
        DType::F32,
        DType::BF16,
        DType::F16,
        DType::F8E4M3,
        DType::F8E5M2,
        DType::Q4K,
        DType::Mxfp8,
        DType::I8,
    ];
    // Every type with every number of rows, and both with every epilogue; all three together would
    // take twice as long.
    for (number, dtype) in dtypes.into_iter().enumerate() {
        for (rows, rank) in [(1, 4), (6, 16), (18, 16), (40, 1), (130, 72), (256, 33)] {
            let mut c = Case::new();
            let w = match dtype.is_plain() && dtype != DType::I8 {
                true if dtype.size() == 1 => {
                    c.weight_of(256, &[(72, dtype, Scale::Rows(scales.clone()))])
                }
                true => c.weight(72, 256, dtype),
                false => c.blocks(256, &[(72, dtype, false)]),
            };
            let wide = matches!(dtype, DType::F32 | DType::F16);
            let b = c.weight(72, rank, if wide { dtype } else { DType::BF16 });
            let (x, t, bias) = (c.input(rows, 256), c.input(rows, rank), c.vector(72));
            let (out, residual) = (c.output(rows, 72), c.input(rows, 72));
            let gate = c.input(1, 144).columns(72, 72);
            let linear = |epilogue, out: flux_fast::tensor::View| {
                Op::Linear(Linear {
                    x: x.all(),
                    w,
                    bias: Some(bias),
                    factors: None,
                    side: Some(Side { t, b }),
                    epilogue,
                    out,
                })
            };
            c.check(linear(Epilogue::None, out.all()), 0);
            if let Some(turn) = [1, 18, 130].iter().position(|n| *n == rows) {
                c.check_nan(linear(Epilogue::None, out.all()), t);
                let epilogues = [
                    linear(Epilogue::Silu, out.all()),
                    linear(Epilogue::GeluTanh, out.all()),
                    linear(Epilogue::QuickGelu, out.all()),
                    linear(Epilogue::Add { residual }, out.all()),
                    linear(Epilogue::GatedAdd { residual, gate }, residual.all()),
                ];
                for op in epilogues.into_iter().skip((turn + number) % 3).step_by(3) {
                    c.check(op, 0);
                }
                continue;
            }
            // A window of the output, as in the model's single blocks.
            let wide = c.output(rows, 80);
            c.check(linear(Epilogue::GeluTanh, wide.columns(8, 72)), rows * 8);
        }
    }
    cuda::all_ran("linear");
}
