//! `attention` with heads of 128 columns on Hopper's asynchronous tensor cores (wgmma, TMA):
//! `kernels/attention_hopper.cu`.

use super::arch::{Arch, CudaDevice};
use super::launch::{Args, Kernel, Launch, Matrix, TensorMap, Variant, address};
use crate::dtype::DType;
use crate::op::Attention;

/// As in `kernels/attention_hopper.cu`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    heads: u32,
    queries: u32,
    tokens: u32,
    first: u32,
    query_tiles: u32,
    key_tiles: u32,
    tiles: u32,
    out_stride: u32,
    first_stride: u32,
    /// Multiplied by log2(e).
    scale: f32,
}

/// Queries and keys of a tile.
const TILE: usize = 128;

/// Buffers: out, first. Descriptors: q, k, v. Shared memory: a tile of queries, two of keys, two of
/// values, barriers.
static D128: Kernel = Kernel {
    module: "attention_hopper.sm90a",
    entry: "attention_d128_wgmma_sm90a",
    buffers: 2,
    maps: 3,
    params: size_of::<Params>(),
    threads: 384,
    shared: 5 * 128 * 256 + 8 * (2 + 4 * 2),
};

/// Every kernel of this family.
pub static KERNELS: &[&Kernel] = &[&D128];

fn accepts(a: &Args<Attention>, device: &CudaDevice) -> Result<(), &'static str> {
    if a.causal || a.bias.is_some() {
        return Err("neither bias nor causal masks");
    }
    if !(a.scale > 0.0 && a.scale.is_finite()) {
        return Err("the scale is not a positive number");
    }
    if a.q.rows == 0 || a.heads == 0 || a.head_dim() != 128 {
        return Err("a head does not have 128 columns");
    }
    let stored = a.first.filter(|(n, _)| *n > 0).map(|(_, t)| t);
    let all = [Some(a.q), Some(a.k), Some(a.v), Some(a.out), stored];
    if all.iter().flatten().any(|m| m.dtype != DType::BF16) {
        return Err("attention reads and writes BF16");
    }
    if !all.iter().flatten().all(Matrix::aligned) {
        return Err("rows do not begin at multiples of 16 bytes");
    }
    if all.iter().flatten().any(|m| m.rows > 1 << 30 || m.stride > 1 << 30)
        || tiles(a) > i32::MAX as usize
    {
        return Err("too large for 32-bit sizes");
    }
    if D128.shared > device.shared_bytes {
        return Err("too little shared memory");
    }
    Ok(())
}

fn tiles(a: &Args<Attention>) -> usize {
    a.queries().div_ceil(TILE) * a.heads * a.batch
}

fn map(m: Matrix) -> TensorMap {
    let (box_rows, box_cols) = (TILE as u32, 64);
    TensorMap {
        address: m.address(),
        rows: m.rows,
        cols: m.cols,
        pitch: m.stride * 2,
        dtype: m.dtype,
        box_rows,
        box_cols,
    }
}

/// Any number of tokens, heads and sequences; rows of q, k, v and out begin at multiples of 16
/// bytes.
pub static ATTENTION_HOPPER: &[Variant<Attention>] = &[Variant {
    name: "attention_d128_wgmma_sm90a",
    needs: Arch::Only(9, 0),
    accepts,
    scratch: |_, _| 0,
    launches: |a, device| {
        let (first, to) = a.first.map_or((0, None), |(n, m)| (n, Some(m)));
        let p = Params {
            heads: a.heads as u32,
            queries: a.queries() as u32,
            tokens: a.tokens() as u32,
            first: first as u32,
            query_tiles: a.queries().div_ceil(TILE) as u32,
            key_tiles: a.tokens().div_ceil(TILE) as u32,
            tiles: tiles(a) as u32,
            out_stride: a.out.stride as u32,
            first_stride: to.map_or(0, |m| m.stride as u32),
            scale: a.scale * std::f32::consts::LOG2_E,
        };
        vec![Launch {
            kernel: &D128,
            grid: [tiles(a).min(device.processors.max(1) as usize) as u32, 1, 1],
            buffers: vec![a.out.address(), address(to)],
            maps: vec![map(a.q), map(a.k), map(a.v)],
            params: bytemuck::bytes_of(&p).to_vec(),
        }]
    },
}];
