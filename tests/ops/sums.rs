//! Products on CUDA with the sums of real tensor cores, which cut bits off: the bounds of the table
//! hold for them, too.

use flux_fast::dtype::DType;
use flux_fast::op::{Attention, Conv2d, ConvShape, Epilogue, Linear, Op};

use crate::case::Case;
use crate::cuda;

#[test]
fn products_stay_within_their_bounds_with_the_sums_of_tensor_cores() {
    cuda::with_hardware_sums(|| {
        for dtype in [DType::BF16, DType::F16, DType::F8E4M3, DType::Q4K] {
            let mut c = Case::new();
            let (rows, k, n) = (20, 1024, 72);
            let (x, out) = (c.input(rows, k), c.output(rows, n));
            let w = match dtype.is_plain() {
                true => c.weight(n, k, dtype),
                false => c.blocks(k, &[(n, dtype, false)]),
            };
            let (bias, factors, side, epilogue) = (None, None, None, Epilogue::None);
            let (x, out) = (x.all(), out.all());
            cuda::check(&c, Linear { x, w, bias, factors, side, epilogue, out }.into(), 0);
        }
        for (tokens, heads, dim) in [(140, 2, 128), (140, 2, 64), (70, 1, 512)] {
            let mut c = Case::new();
            let width = heads * dim;
            let (qkv, out) = (c.input(tokens, 3 * width), c.output(tokens, width));
            let part = |i: usize| qkv.columns(i * width, width);
            let op = Attention {
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
            };
            cuda::check(&c, op.into(), 0);
        }
        let shape = ConvShape {
            batch: 1,
            height: 9,
            width: 7,
            in_channels: 64,
            out_channels: 72,
            kernel: 3,
            stride: 1,
            pad_before: 1,
            pad_after: 1,
            upsample: false,
        };
        let mut c = Case::new();
        let (x, w) = (c.input(9 * 7, 64), c.weight(72, 9 * 64, DType::BF16));
        let out = c.output(9 * 7, 72);
        cuda::check(&c, Conv2d { x, w, bias: None, shape, residual: None, out }.into(), 0);
    });
}

#[test]
fn the_sums_of_tensor_cores_are_not_those_of_the_nearest_number() {
    let mut c = Case::new();
    let (rows, k, n) = (20, 256, 72);
    let (x, w, out) =
        (c.input(rows, k).all(), c.weight(n, k, DType::BF16), c.output(rows, n).all());
    let (bias, factors, side, epilogue) = (None, None, None, Epilogue::None);
    let op = Op::Linear(Linear { x, w, bias, factors, side, epilogue, out });
    let nearest = cuda::bits(&c, op);
    let mut cut = Vec::new();
    cuda::with_hardware_sums(|| cut = cuda::bits(&c, op));
    assert!(nearest.is_empty() || nearest != cut, "the setting of the fake driver has no effect");
}
