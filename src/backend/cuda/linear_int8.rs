//! `linear` in 8-bit integers: `kernels/linear_int8.cu`, and `kernels/rotate.cuh`, which makes the
//! integers of x.

use super::arch::{Arch, CudaDevice};
use super::launch::{Args, Kernel, Launch, Matrix, Variant, address};
use super::linear::{LARGE, SMALL, Tile};
use super::linear_fp8::Quantised;
use super::linear_params::{Params, buffers, params, shapes};
use crate::dtype::int8::Rotation;
use crate::op::Linear;

const MODULE: &str = "linear_int8.sm80";

/// As in `kernels/rotate.cuh`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct RotateParams {
    k: u32,
    x_stride: u32,
    /// Bytes from row to row of the result.
    pitch: u32,
    /// Columns of a rotation group; 1 means no rotation.
    group: u32,
    vector: u32,
}

/// One block for each row. Buffers: x, the integers, their scales.
const fn rotate_kernel(entry: &'static str) -> Kernel {
    Kernel {
        module: MODULE,
        entry,
        buffers: 3,
        maps: 0,
        params: size_of::<RotateParams>(),
        threads: 256,
        shared: 0,
    }
}

/// Each with the longest row that it keeps in registers. They read x in vectors; the last takes any
/// row.
static ROTATE: [(usize, Kernel); 3] = [
    (4096, rotate_kernel("rotate_quantise_4096_sm80")),
    (16_384, rotate_kernel("rotate_quantise_16384_sm80")),
    (usize::MAX, rotate_kernel("rotate_quantise_any_sm80")),
];

/// Three steps of two operands of 64 bytes a row.
const fn product_kernel(entry: &'static str, side: u32) -> Kernel {
    let (params, shared) = (size_of::<Params>(), 3 * 2 * 64 * side);
    Kernel { module: MODULE, entry, buffers: 10, maps: 0, params, threads: 128, shared }
}

static PRODUCT_LARGE: Kernel = product_kernel("linear_int8_128x128_sm80", 128);
static PRODUCT_SMALL: Kernel = product_kernel("linear_int8_64x64_sm80", 64);

/// Buffers: scales, factors, their products.
static MULTIPLY_SCALES: Kernel = Kernel {
    module: MODULE,
    entry: "multiply_scales_sm80",
    buffers: 3,
    maps: 0,
    params: 4,
    threads: 128,
    shared: 0,
};

/// Every kernel of this family.
pub static KERNELS: &[&Kernel] =
    &[&ROTATE[0].1, &ROTATE[1].1, &ROTATE[2].1, &PRODUCT_LARGE, &PRODUCT_SMALL, &MULTIPLY_SCALES];

/// The longest k whose sums are sure to fit 32 bits: 127 * 127 * 2^17 < 2^31.
const LONGEST: usize = 1 << 17;

fn accepts(a: &Args<Linear>, _: &CudaDevice) -> Result<(), &'static str> {
    shapes(a)?;
    let Some(int8) = a.int8 else {
        return Err("the product is not to be computed in int8");
    };
    if !int8.rotation.is_none_or(Rotation::has_kernels) {
        return Err("integers must be rotated in groups of 16, 64 or 256");
    }
    if a.x.cols > LONGEST {
        return Err("integers are summed over at most 131072 columns");
    }
    if !a.w.address().is_multiple_of(16) || !a.w.stride.is_multiple_of(16) {
        return Err("rows of the weights do not begin at multiples of 16 bytes");
    }
    // The kernel counts offsets within an operand in chunks of 16 bytes.
    let chunks = |rows: usize, pitch: usize| (rows * pitch).div_ceil(16) <= u32::MAX as usize;
    if chunks(a.x.rows, a.x.cols.next_multiple_of(16)) && chunks(a.w.rows, a.w.stride) {
        Ok(())
    } else {
        Err("an operand has more than 64 GiB")
    }
}

/// The launch that makes the integers of x.
fn rotate(a: &Args<Linear>, x: Quantised) -> Launch {
    let vector = a.x.aligned();
    let kernel = ROTATE.iter().find(|(most, _)| vector && a.x.cols <= *most);
    let p = RotateParams {
        k: a.x.cols as u32,
        x_stride: a.x.stride as u32,
        pitch: x.pitch as u32,
        group: a.int8.and_then(|i| i.rotation).map_or(1, |r| r.group() as u32),
        vector: vector.into(),
    };
    Launch {
        kernel: &kernel.unwrap_or(&ROTATE[2]).1,
        grid: [a.x.rows as u32, 1, 1],
        buffers: vec![a.x.address(), x.address, x.scales],
        maps: vec![],
        params: bytemuck::bytes_of(&p).to_vec(),
    }
}

/// Where the products of scales and factors are, after the integers of x.
fn scaled_factors(a: &Args<Linear>) -> usize {
    Quantised::bytes(a).next_multiple_of(256)
}

fn scratch(a: &Args<Linear>) -> usize {
    match a.factors {
        Some(_) => scaled_factors(a) + 4 * a.w.rows,
        None => Quantised::bytes(a),
    }
}

fn launches(kernel: &'static Kernel, tile: Tile, a: &Args<Linear>) -> Vec<Launch> {
    let x = Quantised::in_scratch(a);
    let mut launches = vec![rotate(a, x)];
    let mut a = *a;
    if let Some(factors) = a.factors {
        let to = Matrix::f32_row(address(a.scratch) + scaled_factors(&a) as u64, a.w.rows);
        launches.push(Launch {
            kernel: &MULTIPLY_SCALES,
            grid: [(a.w.rows as u32).div_ceil(128), 1, 1],
            buffers: vec![address(a.scales), factors.address(), to.address()],
            maps: vec![],
            params: (a.w.rows as u32).to_le_bytes().to_vec(),
        });
        a.scales = Some(to);
    }
    let [_, w, scales, bias, residual, gate, out, _, t, b] = buffers(&a)[..] else {
        unreachable!("ten buffers")
    };
    let p = Params { x_stride: x.pitch as u32, ..params(&a) };
    launches.push(Launch {
        kernel,
        grid: [tile.count(&a) as u32, 1, 1],
        buffers: vec![x.address, x.scales, w, scales, bias, residual, gate, out, t, b],
        maps: vec![],
        params: bytemuck::bytes_of(&p).to_vec(),
    });
    launches
}

/// `linear_int8_*`: x is rotated and quantised row by row, then multiplied. They take every
/// product of integers, and nothing else.
pub static LINEAR_INT8: &[Variant<Linear>] = &[
    Variant {
        name: "linear_int8_128x128_sm80",
        needs: Arch::From(8, 0),
        accepts,
        scratch: |a, _| scratch(a),
        launches: |a, _| launches(&PRODUCT_LARGE, LARGE, a),
    },
    Variant {
        name: "linear_int8_64x64_sm80",
        needs: Arch::From(8, 0),
        accepts,
        scratch: |a, _| scratch(a),
        launches: |a, _| launches(&PRODUCT_SMALL, SMALL, a),
    },
];

/// The variant of [`LINEAR_INT8`] that is expected to be the fastest, or why there is none.
pub fn choose(
    a: &Args<Linear>,
    device: &CudaDevice,
) -> Result<&'static Variant<Linear>, &'static str> {
    accepts(a, device)?;
    let small = SMALL.time(a, device, 1) < LARGE.time(a, device, 1);
    Ok(&LINEAR_INT8[usize::from(small)])
}
