//! `linear` with both operands in e4m3 (W8A8) by the FP8 `mma.sync` of sm_89 and sm_120:
//! `kernels/linear_fp8.cu`. Also the quantisation of activations (`kernels/quantise.cuh`), which
//! Hopper's kernels share.

use super::arch::{Arch, CudaDevice};
use super::launch::{Args, Kernel, Launch, Variant, address};
use super::linear_params::{Params, buffers, legal, params};
use crate::dtype::DType;
use crate::op::Linear;

/// As in `kernels/quantise.cuh`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct QuantiseParams {
    k: u32,
    x_stride: u32,
    /// Bytes from row to row of the result.
    pitch: u32,
    vector: u32,
}

/// `quantise_rows` in `module`. Buffers: x, the result, its scales. One block for each row.
pub const fn quantise_kernel(module: &'static str) -> Kernel {
    Kernel {
        module,
        entry: "quantise_rows_e4m3_sm89",
        buffers: 3,
        maps: 0,
        params: size_of::<QuantiseParams>(),
        threads: 128,
        shared: 0,
    }
}

/// x in e4m3: `rows x K` with `pitch` bytes from row to row and zeros beyond K, and the address of
/// one f32 scale for each row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Quantised {
    pub address: u64,
    pub pitch: usize,
    pub scales: u64,
}

impl Quantised {
    /// The places in the scratch memory of `a`: the rows, then their scales.
    pub fn in_scratch(a: &Args<Linear>) -> Quantised {
        let pitch = a.x.cols.next_multiple_of(16);
        Quantised {
            address: address(a.scratch),
            pitch,
            scales: address(a.scratch) + (a.x.rows * pitch).next_multiple_of(256) as u64,
        }
    }

    /// Bytes of scratch memory that the result needs.
    pub fn bytes(a: &Args<Linear>) -> usize {
        (Quantised::in_scratch(a).scales - address(a.scratch)) as usize + 4 * a.x.rows
    }

    /// The launch that computes it.
    pub fn launch(self, kernel: &'static Kernel, a: &Args<Linear>) -> Launch {
        let p = QuantiseParams {
            k: a.x.cols as u32,
            x_stride: a.x.stride as u32,
            pitch: self.pitch as u32,
            vector: a.x.aligned() as u32,
        };
        Launch {
            kernel,
            grid: [a.x.rows as u32, 1, 1],
            buffers: vec![a.x.address(), self.address, self.scales],
            maps: vec![],
            params: bytemuck::bytes_of(&p).to_vec(),
        }
    }
}

/// Checks what products of quantised x and e4m3 weights require. x can be any window.
pub fn w8a8(a: &Args<Linear>, device: &CudaDevice) -> Result<(), &'static str> {
    legal(a)?;
    if !device.fp8 {
        return Err("matrix products in FP8 are not asked for");
    }
    if a.w.dtype != DType::F8E4M3 {
        return Err("the weights are not F8_E4M3");
    }
    if !a.w.address().is_multiple_of(16) || !a.w.stride.is_multiple_of(16) {
        return Err("rows of the weights do not begin at multiples of 16 bytes");
    }
    if a.x.rows >= 1 << 31 {
        return Err("more rows than a grid has blocks");
    }
    Ok(())
}

/// Rows and columns of the tile of a block.
const TILE: usize = 128;

fn tiles(a: &Args<Linear>) -> usize {
    a.out.rows.div_ceil(TILE) * a.out.cols.div_ceil(TILE)
}

static QUANTISE: Kernel = quantise_kernel("linear_fp8.sm89");

/// Three steps of two operands, 128 rows of 64 bytes each.
static PRODUCT: Kernel = Kernel {
    module: "linear_fp8.sm89",
    entry: "linear_e4m3_w8a8_128x128_sm89",
    buffers: 10,
    maps: 0,
    params: size_of::<Params>(),
    threads: 256,
    shared: 3 * 2 * 128 * 64,
};

/// Every kernel of this family.
pub static KERNELS: &[&Kernel] = &[&QUANTISE, &PRODUCT];

fn accepts(a: &Args<Linear>, device: &CudaDevice) -> Result<(), &'static str> {
    w8a8(a, device)?;
    if matches!(device.capability.0, 9..=11) {
        return Err("mma.sync in FP8 is emulated on this GPU");
    }
    // The kernel counts offsets within an operand in chunks of 16 bytes.
    let chunks = |rows: usize, pitch: usize| (rows * pitch).div_ceil(16) <= u32::MAX as usize;
    if chunks(a.x.rows, a.x.cols.next_multiple_of(16)) && chunks(a.w.rows, a.w.stride) {
        Ok(())
    } else {
        Err("an operand has more than 64 GiB")
    }
}

/// `linear_e4m3_w8a8_*`: x is quantised row by row, then multiplied.
pub static LINEAR_FP8: &[Variant<Linear>] = &[Variant {
    name: "linear_e4m3_w8a8_128x128_sm89",
    needs: Arch::From(8, 9),
    accepts,
    scratch: |a, _| Quantised::bytes(a),
    launches: |a, _| {
        let x = Quantised::in_scratch(a);
        let w = a.w.address();
        let [scales, bias, residual, gate, out, _, t, b] = buffers(a)[2..] else {
            unreachable!("ten buffers")
        };
        let p = Params { x_stride: x.pitch as u32, ..params(a) };
        let product = Launch {
            kernel: &PRODUCT,
            grid: [tiles(a) as u32, 1, 1],
            buffers: vec![x.address, x.scales, w, scales, bias, residual, gate, out, t, b],
            maps: vec![],
            params: bytemuck::bytes_of(&p).to_vec(),
        };
        vec![x.launch(&QUANTISE, a), product]
    },
}];

/// The variant of [`LINEAR_FP8`], if it is expected to be faster than all others: it does not split
/// k, so it needs at least one tile for each multiprocessor.
pub fn choose(a: &Args<Linear>, device: &CudaDevice) -> Option<&'static Variant<Linear>> {
    let variant = &LINEAR_FP8[0];
    let runs = variant.needs.runs_on(device.capability) && (variant.accepts)(a, device).is_ok();
    (runs && a.out.rows >= 64 && tiles(a) >= device.processors as usize).then_some(variant)
}
