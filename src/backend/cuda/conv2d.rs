//! Convolutions. `kernels/conv2d.cu` explains the kernels.

use super::arch::{Arch, CudaDevice};
use super::launch::{Args, Cuda, Kernel, Launch, Matrix, Variant, address, code};
use crate::backend::gpu::{first, variants};
use crate::dtype::DType;
use crate::op::Conv2d;

/// As in `kernels/conv2d.cu`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    pixels: u32,
    height: u32,
    width: u32,
    out_height: u32,
    out_width: u32,
    channels: u32,
    outputs: u32,
    kernel: u32,
    stride: u32,
    pad: u32,
    up: u32,
    x_stride: u32,
    w_stride: u32,
    residual_stride: u32,
    out_stride: u32,
    dtype: u32,
    vector: u32,
    columns: u32,
}

/// A kernel and the tile of a block, in pixels and output channels.
struct Tiled {
    kernel: Kernel,
    pixels: usize,
    channels: usize,
}

const fn tiled(entry: &'static str, pixels: usize, channels: usize, shared: u32) -> Tiled {
    let params = size_of::<Params>();
    let kernel =
        Kernel { module: "conv2d.sm80", entry, buffers: 5, maps: 0, params, threads: 128, shared };
    Tiled { kernel, pixels, channels }
}

/// Bytes of `stages` stages of 32 input channels.
const fn stages(stages: u32, pixels: u32, channels: u32) -> u32 {
    stages * (pixels + channels) * 64
}

static WIDE: Tiled = tiled("conv2d_bf16_128x128", 128, 128, stages(3, 128, 128));
static MIDDLE: Tiled = tiled("conv2d_bf16_128x64", 128, 64, stages(4, 128, 64));
static NARROW: Tiled = tiled("conv2d_bf16_128x16", 128, 16, stages(3, 128, 16));
static ANY: Tiled = tiled("conv2d_any", 64, 64, 0);

/// Every kernel of this family.
pub static KERNELS: &[&Kernel] = &[&WIDE.kernel, &MIDDLE.kernel, &NARROW.kernel, &ANY.kernel];

/// All variants. They sum taps and channels in the same order; those with vector loads give the
/// same bits.
pub static CONV2D: &[Variant<Conv2d>] = &[
    Variant {
        name: "conv2d_bf16_128x128_sm80",
        needs: Arch::From(8, 0),
        accepts: chunks,
        scratch: none,
        launches: |a, _| vec![launch(&WIDE, a)],
    },
    Variant {
        name: "conv2d_bf16_128x64_sm80",
        needs: Arch::From(8, 0),
        accepts: chunks,
        scratch: none,
        launches: |a, _| vec![launch(&MIDDLE, a)],
    },
    Variant {
        name: "conv2d_bf16_128x16_sm80",
        needs: Arch::From(8, 0),
        accepts: chunks,
        scratch: none,
        launches: |a, _| vec![launch(&NARROW, a)],
    },
    Variant {
        name: "conv2d_any_sm80",
        needs: Arch::From(8, 0),
        accepts: any,
        scratch: none,
        launches: |a, _| vec![launch(&ANY, a)],
    },
];

variants!(Cuda, Conv2d: CONV2D; choose);

/// The fastest variant for these operands: the widest tile that the output channels fill, and the
/// plain kernel for the rest.
fn choose(
    args: &Args<Conv2d>,
    device: &CudaDevice,
) -> Result<&'static Variant<Conv2d>, &'static str> {
    let tile = match args.shape.out_channels {
        ..=16 => 2,
        17..=64 => 1,
        _ => 0,
    };
    let any = &CONV2D[CONV2D.len() - 1];
    first([&CONV2D[tile], any], args, device)
}

fn none(_: &Args<Conv2d>, _: &CudaDevice) -> usize {
    0
}

/// Checks what all kernels require: sizes that fit 32 bits, and operands that match the shape.
fn any(a: &Args<Conv2d>, _: &CudaDevice) -> Result<(), &'static str> {
    let s = &a.shape;
    let (source_height, source_width) = s.source();
    let matrix =
        |m: &Matrix, rows: usize, cols: usize| (m.rows, m.cols) == (rows, cols) && m.stride >= cols;
    let outer = |n: usize| n + s.pad_before + s.pad_after;
    if !matches!(s.kernel, 1 | 3) || !matches!(s.stride, 1 | 2) {
        return Err("kernel is not 1 or 3, or stride not 1 or 2");
    }
    if [s.batch, s.height, s.width, s.in_channels, s.out_channels].contains(&0)
        || outer(source_height).min(outer(source_width)) < s.kernel
    {
        return Err("there are no pixels");
    }
    let (height, width) = s.output();
    let pixels =
        s.batch.checked_mul(height).and_then(|n| n.checked_mul(width)).unwrap_or(usize::MAX);
    let taps = s.kernel * s.kernel;
    if a.x.dtype != DType::BF16 || a.w.dtype != DType::BF16 {
        return Err("x and w must be BF16");
    }
    if !matches!(a.out.dtype, DType::BF16 | DType::F32)
        || a.residual.is_some_and(|r| r.dtype != a.out.dtype)
    {
        return Err("out and residual must both be BF16 or both F32");
    }
    if !matrix(&a.x, s.batch * s.height * s.width, s.in_channels)
        || !matrix(&a.w, s.out_channels, taps * s.in_channels)
        || !matrix(&a.out, pixels, s.out_channels)
        || a.residual.is_some_and(|r| !matrix(&r, pixels, s.out_channels))
    {
        return Err("an operand does not match the shape");
    }
    // Coordinates are signed, and a grid has less than 2^31 blocks, even of the smallest tile.
    let strides = [a.x.stride, a.w.stride, a.out.stride, a.residual.map_or(0, |r| r.stride)];
    let blocks = pixels.div_ceil(64) as u128 * s.out_channels.div_ceil(16) as u128;
    if pixels.max(a.x.rows) >= 1 << 31
        || outer(source_height).max(outer(source_width)) >= 1 << 30
        || strides.iter().any(|n| *n >= 1 << 31)
        || blocks >= 1 << 31
    {
        return Err("more than 2^31 pixels or blocks");
    }
    Ok(())
}

/// Whether pixels and filters can be copied in chunks of 16 bytes.
fn chunks(a: &Args<Conv2d>, device: &CudaDevice) -> Result<(), &'static str> {
    any(a, device)?;
    if !a.x.aligned() {
        return Err("x is not made of whole 16-byte chunks");
    }
    if !a.w.address().is_multiple_of(16) || !a.w.stride.is_multiple_of(8) {
        return Err("rows of w do not begin at multiples of 16 bytes");
    }
    Ok(())
}

fn launch(tiled: &'static Tiled, a: &Args<Conv2d>) -> Launch {
    let s = &a.shape;
    let (out_height, out_width) = s.output();
    let pixels = s.batch * out_height * out_width;
    let columns = s.out_channels.div_ceil(tiled.channels);
    let four = |m: &Matrix| {
        m.address().is_multiple_of(4 * m.dtype.size() as u64) && m.stride.is_multiple_of(4)
    };
    let vector = s.out_channels.is_multiple_of(4)
        && four(&a.out)
        && a.residual.as_ref().is_none_or(four)
        && address(a.bias).is_multiple_of(16);
    let params = Params {
        pixels: pixels as u32,
        height: s.height as u32,
        width: s.width as u32,
        out_height: out_height as u32,
        out_width: out_width as u32,
        channels: s.in_channels as u32,
        outputs: s.out_channels as u32,
        kernel: s.kernel as u32,
        stride: s.stride as u32,
        pad: s.pad_before as u32,
        up: s.upsample.into(),
        x_stride: a.x.stride as u32,
        w_stride: a.w.stride as u32,
        residual_stride: a.residual.map_or(0, |r| r.stride) as u32,
        out_stride: a.out.stride as u32,
        dtype: code(a.out.dtype),
        vector: vector.into(),
        columns: columns as u32,
    };
    Launch {
        kernel: &tiled.kernel,
        grid: [(pixels.div_ceil(tiled.pixels) * columns) as u32, 1, 1],
        buffers: vec![
            a.x.address(),
            a.w.address(),
            address(a.bias),
            address(a.residual),
            a.out.address(),
        ],
        maps: vec![],
        params: bytemuck::bytes_of(&params).to_vec(),
    }
}
