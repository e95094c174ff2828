//! `linear` in 8-bit integers: `shaders/linear_int8.wgsl`, after the rows of x became integers
//! (`shaders/rotate_quantise.wgsl`).

use bytemuck::{Pod, Zeroable};

use super::dispatch::{Block, LARGE_BLOCK, SMALL_BLOCK, fours, products, shapes};
use super::modules::{INT8_ANY, INT8_LARGE, INT8_SMALL};
use crate::backend::gpu;
use crate::backend::wgpu::launch::{
    Args, Constants, Dispatch, Grid, Matrix, Needs, Shader, Spot, Variant, WgpuDevice, blocks, code,
};
use crate::dtype::DType;
use crate::op::Linear;

/// Bytes of the vectors in which the shaders access integers.
const VECTOR: usize = 16;
/// Distances of rows of x are multiples of this many bytes, which is what memory moves at a time.
const SECTOR: usize = 32;
/// With more columns, a sum of products could exceed 31 bits.
const MOST_COLUMNS: usize = (i32::MAX / (127 * 128)) as usize;

/// `Params` in `shaders/rotate_quantise.wgsl`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
struct QuantiseParams {
    grid: Grid,
    k: u32,
    x_base: u32,
    x_stride: u32,
    q_base: u32,
    q_stride: u32,
}

macro_rules! quantise_shader {
    ($name:ident, $text:literal) => {
        static $name: Shader = Shader {
            name: $text,
            sources: &[
                include_str!("../../../../shaders/common.wgsl"),
                include_str!("../../../../shaders/rotate_quantise.wgsl"),
                include_str!(concat!("../../../../shaders/", $text, ".wgsl")),
            ],
            params_bytes: size_of::<QuantiseParams>(),
            buffers: 2,
        };
    };
}
quantise_shader!(QUANTISE_VECTORS, "rotate_quantise_vectors");
quantise_shader!(QUANTISE_ELEMENTS, "rotate_quantise_elements");

/// Threads of a row, and bytes of the tile that they transpose and of the row's maximum.
const QUANTISE_NEEDS: Needs = Needs::new(64, 4 * 1088 + 4);
/// As the tiles of floats; integers need no features, since they are emulated where an adapter has
/// no instruction for them.
const NEEDS: Needs = Needs::new(256, 16 << 10);

/// x of `rows x k` as integers at `place`: each row is padded with zeros to whole vectors, then
/// comes a vector whose first four bytes are the scale.
fn integers(place: Spot, rows: usize, k: usize) -> Matrix {
    let cols = k.next_multiple_of(VECTOR) + VECTOR;
    let stride = cols.next_multiple_of(SECTOR);
    Matrix { place, rows, cols, stride, dtype: DType::I8 }
}

/// Bytes of scratch memory for x of `rows x k`, whatever variant runs.
pub fn scratch_bytes(rows: usize, k: usize) -> usize {
    let q = integers(Spot::default(), rows, k);
    q.rows * q.stride
}

/// The arguments with integers in place of x.
fn with_integers(a: &Args<Linear>) -> Args<Linear> {
    let place = a.scratch.map(|m| m.place).unwrap_or_default();
    Args::<Linear> { x: integers(place, a.x.rows, a.x.cols), ..*a }
}

/// The columns that are rotated together; 0 if none are.
fn group(a: &Args<Linear>) -> usize {
    a.int8.and_then(|int8| int8.rotation).map_or(0, |rotation| rotation.group())
}

fn constants(x: DType, group: usize) -> Constants {
    vec![("X_TYPE", f64::from(code(x))), ("GROUP", group as f64)]
}

/// The dispatches that make integers of x.
fn quantise(a: &Args<Linear>, q: Matrix, device: &WgpuDevice) -> Vec<Dispatch> {
    let k = a.x.cols;
    let whole = a.x.whole_vectors() && k.is_multiple_of(VECTOR);
    let most = a.x.rows_that_bind(device).min(q.rows_that_bind(device));
    let one = |rows: std::ops::Range<usize>| {
        let (x, x_base) = a.x.band(rows.start, rows.len()).bind(device);
        let (to, q_base) = q.band(rows.start, rows.len()).bind(device);
        let params = QuantiseParams {
            grid: Grid::default(),
            k: k as u32,
            x_base,
            x_stride: a.x.stride as u32,
            q_base: q_base / VECTOR as u32,
            q_stride: (q.stride / VECTOR) as u32,
        };
        let elements = (rows.len() * k) as u64;
        Dispatch {
            shader: if whole { &QUANTISE_VECTORS } else { &QUANTISE_ELEMENTS },
            constants: constants(a.x.dtype, group(a)),
            buffers: vec![Some(x), Some(to)],
            params: bytemuck::bytes_of(&params).to_vec(),
            groups: rows.len() as u64,
            // Every element is rotated twice, by stages of about three operations.
            work: 40 * elements,
        }
    };
    blocks(a.x.rows, most, 1).map(one).collect()
}

fn launches(
    shader: &'static Shader,
    block: Block,
    a: &Args<Linear>,
    device: &WgpuDevice,
) -> Vec<Dispatch> {
    let with = with_integers(a);
    let mut made = quantise(a, with.x, device);
    made.extend(products(shader, block, vec![], &with, device));
    made
}

/// Checks what every variant requires.
fn any(a: &Args<Linear>, device: &WgpuDevice) -> Result<(), &'static str> {
    let Some(int8) = a.int8 else { return Err("the weights are not integers for such products") };
    shapes(a, device)?;
    shapes(&with_integers(a), device)?;
    if int8.rotation.is_some_and(|r| !r.has_kernels() || !a.x.cols.is_multiple_of(r.group())) {
        return Err("the weights are rotated in groups that have no shader");
    }
    if a.x.cols > MOST_COLUMNS {
        return Err("the weight has too many columns: a sum of its products may exceed 32 bits");
    }
    let aligned = |n: usize| n.is_multiple_of(VECTOR);
    if !aligned(a.w.place.offset as usize) || !aligned(a.w.stride) {
        return Err("rows of the weights do not begin at multiples of 16 bytes");
    }
    Ok(())
}

/// Checks that four elements of all operands of the epilogue can be accessed at a time.
fn whole(a: &Args<Linear>, device: &WgpuDevice) -> Result<(), &'static str> {
    any(a, device)?;
    fours(a, device)
}

macro_rules! variant {
    ($name:literal, $accepts:ident, $shader:ident, $block:ident) => {
        Variant {
            name: $name,
            needs: NEEDS,
            accepts: $accepts,
            scratch: |a, _| scratch_bytes(a.x.rows, a.x.cols),
            launches: |a, d| launches(&$shader, $block, a, d),
        }
    };
}

/// The variants for weights that are integers; no other variant accepts these.
pub static LINEAR_INT8: &[Variant<Linear>] = &[
    variant!("linear_int8_128x128", whole, INT8_LARGE, LARGE_BLOCK),
    variant!("linear_int8_64x64", whole, INT8_SMALL, SMALL_BLOCK),
    variant!("linear_int8_any", any, INT8_ANY, SMALL_BLOCK),
];

/// The variant that is expected to be the fastest; `large` if there are enough large tiles for a
/// whole GPU.
pub fn choose(
    a: &Args<Linear>,
    device: &WgpuDevice,
    large: bool,
) -> Result<&'static Variant<Linear>, &'static str> {
    let [tiles, small, any] = [0, 1, 2].map(|i| &LINEAR_INT8[i]);
    let order = if large && a.x.rows > 64 { [tiles, small, any] } else { [small, tiles, any] };
    gpu::first(order, a, device)
}

/// Every shader with every set of constants that it is used with.
pub fn shaders() -> Vec<(&'static Shader, Constants, Needs)> {
    let mut all: Vec<_> =
        [&INT8_LARGE, &INT8_SMALL, &INT8_ANY].map(|shader| (shader, vec![], NEEDS)).into();
    for x in [DType::F32, DType::BF16] {
        for group in [0, 16, 64, 256] {
            for shader in [&QUANTISE_VECTORS, &QUANTISE_ELEMENTS] {
                all.push((shader, constants(x, group), QUANTISE_NEEDS));
            }
        }
    }
    all
}
