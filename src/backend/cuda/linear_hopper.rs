//! `linear` on Hopper's asynchronous tensor cores (wgmma, TMA): `kernels/linear_hopper.cu`.

use super::arch::{Arch, CudaDevice};
use super::launch::{Args, Kernel, Launch, Matrix, Side, TensorMap, Variant};
use super::linear_fp8::{Quantised, quantise_kernel, w8a8};
use super::linear_params::{Params, buffers, legal, params};
use crate::dtype::DType;
use crate::op::Linear;

/// Columns of out that a block computes at a time.
const COLUMNS: usize = 128;
/// Elements along the rank that TMA copies at a time for the side branch.
const SIDE_STEP: u32 = 64;
/// Bytes of shared memory for results: 32 rows of 64 columns, two of these for each of two
/// warpgroups.
const STAGES: usize = 4 * 32 * (64 + 4) * 4;

/// A kernel for tiles of `rows` rows, with `x` and `w` slots in its pipeline, as `Layout` in the
/// source says.
const fn kernel(entry: &'static str, rows: usize, x: usize, w: usize) -> Kernel {
    let shared = x * rows * 128 + w * COLUMNS * 128 + STAGES + 16 * (x + w);
    let params = size_of::<Params>();
    Kernel {
        module: "linear_hopper.sm90a",
        entry,
        buffers: 10,
        maps: 4,
        params,
        threads: 384,
        shared: shared as u32,
    }
}

static QUANTISE: Kernel = quantise_kernel("linear_hopper.sm90a");

/// The kernels for one pair of element types.
struct Family {
    /// One for each of [`TILES`].
    kernels: [Kernel; 3],
    /// Elements of x in 128 bytes.
    x_step: u32,
    /// Elements of w in 128 bytes.
    w_step: u32,
}

/// Rows of a tile, and its efficiency relative to the best one: small tiles read more from L2.
const TILES: [(usize, f64); 3] = [(256, 1.0), (192, 0.93), (128, 0.8)];

/// `w`: slots of w for large tiles and for the small one.
macro_rules! family {
    ($name:ident, $text:literal, $x_step:literal, $w_step:literal, $w:expr) => {
        static $name: Family = Family {
            kernels: [
                kernel(concat!("linear_", $text, "_256x128_sm90a"), 256, 4, $w.0),
                kernel(concat!("linear_", $text, "_192x128_sm90a"), 192, 4, $w.0),
                kernel(concat!("linear_", $text, "_128x128_sm90a"), 128, 6, $w.1),
            ],
            x_step: $x_step,
            w_step: $w_step,
        };
    };
}
family!(BF16, "bf16_wgmma", 64, 64, (4, 6));
family!(W8A8, "e4m3_w8a8_wgmma", 128, 128, (4, 6));
family!(E4M3, "e4m3_wgmma", 64, 128, (3, 4));

fn tiles(a: &Args<Linear>, rows: usize) -> usize {
    a.out.rows.div_ceil(rows) * a.out.cols.div_ceil(COLUMNS)
}

/// Estimated time: the number of tiles of the busiest multiprocessor. Storing costs as much as 192
/// more k.
fn time(a: &Args<Linear>, device: &CudaDevice, (rows, rate): (usize, f64)) -> f64 {
    let rounds = tiles(a, rows).div_ceil(device.processors.max(1) as usize);
    (rounds * rows * (a.x.cols + 192)) as f64 / rate
}

/// The product of x, at `address` with `pitch` bytes from row to row, and w, by the tile
/// `TILES[tile]`.
fn product(
    (family, tile): (&'static Family, usize),
    a: &Args<Linear>,
    device: &CudaDevice,
    (address, pitch, dtype): (u64, usize, DType),
    x_scales: u64,
) -> Launch {
    let (kernel, rows) = (&family.kernels[tile], TILES[tile].0);
    let mut addresses = buffers(a);
    addresses[7] = x_scales;
    let x = TensorMap {
        address,
        rows: a.x.rows,
        cols: a.x.cols,
        pitch,
        dtype,
        box_rows: rows as u32,
        box_cols: family.x_step,
    };
    let w = TensorMap {
        address: a.w.address(),
        rows: a.w.rows,
        cols: a.w.cols,
        pitch: a.w.stride_bytes(),
        dtype: a.w.dtype,
        box_rows: COLUMNS as u32,
        box_cols: family.w_step,
    };
    // Without a side branch its descriptors are never used, but they must be valid.
    let side = |m: Matrix, rows: usize| TensorMap {
        address: m.address(),
        rows: m.rows,
        cols: m.cols,
        pitch: m.stride * 2,
        dtype: m.dtype,
        box_rows: rows as u32,
        box_cols: SIDE_STEP,
    };
    let (t, b) = a.side.map_or((x, w), |s| (side(s.t, rows), side(s.b, COLUMNS)));
    Launch {
        kernel,
        grid: [tiles(a, rows).min(device.processors.max(1) as usize) as u32, 1, 1],
        buffers: addresses,
        maps: vec![x, w, t, b],
        params: bytemuck::bytes_of(&params(a)).to_vec(),
    }
}

/// Checks what TMA requires of x in bf16, and of w.
fn copies(a: &Args<Linear>, device: &CudaDevice, dtype: DType) -> Result<(), &'static str> {
    legal(a)?;
    if a.w.dtype != dtype {
        return Err("the weights have another element type");
    }
    if !a.x.address().is_multiple_of(16) || !a.x.stride.is_multiple_of(8) {
        return Err("rows of x do not begin at multiples of 16 bytes");
    }
    if !a.w.address().is_multiple_of(16) || !a.w.stride_bytes().is_multiple_of(16) {
        return Err("rows of the weights do not begin at multiples of 16 bytes");
    }
    fits(a, device)
}

/// Checks sizes: coordinates of TMA are signed. All kernels need about the same amount of shared
/// memory.
fn fits(a: &Args<Linear>, device: &CudaDevice) -> Result<(), &'static str> {
    if let Some(Side { t, b }) = a.side {
        if !t.address().is_multiple_of(16) || !t.stride.is_multiple_of(8) {
            return Err("the LoRA's rank is not a multiple of 8");
        }
        if b.dtype != DType::BF16 {
            return Err("the LoRA's weights are not BF16");
        }
    }
    if [a.x.rows, a.x.cols, a.w.rows].iter().any(|&n| n > 1 << 30) {
        return Err("too large for TMA");
    }
    if BF16
        .kernels
        .iter()
        .chain(&W8A8.kernels)
        .chain(&E4M3.kernels)
        .any(|k| k.shared > device.shared_bytes)
    {
        return Err("too little shared memory");
    }
    Ok(())
}

/// A variant that reads x in bf16.
macro_rules! of_bf16 {
    ($family:ident, $tile:literal, $dtype:ident, $name:literal) => {
        Variant {
            name: $name,
            needs: Arch::Only(9, 0),
            accepts: |a, device| copies(a, device, DType::$dtype),
            scratch: |_, _| 0,
            launches: |a, device| {
                let x = (a.x.address(), a.x.stride * 2, DType::BF16);
                vec![product((&$family, $tile), a, device, x, 0)]
            },
        }
    };
}

/// A variant that quantises x row by row, then multiplies.
macro_rules! of_e4m3 {
    ($family:ident, $tile:literal, $name:literal) => {
        Variant {
            name: $name,
            needs: Arch::Only(9, 0),
            accepts: |a, device| w8a8(a, device).and_then(|()| fits(a, device)),
            scratch: |a, _| Quantised::bytes(a),
            launches: |a, device| {
                let q = Quantised::in_scratch(a);
                let x = (q.address, q.pitch, DType::F8E4M3);
                vec![q.launch(&QUANTISE, a), product((&$family, $tile), a, device, x, q.scales)]
            },
        }
    };
}

/// Any K, any rows, any window of out; x in bf16 must begin at multiples of 16 bytes. Family by
/// family, in each the tiles of [`TILES`], all of which take the same operands.
pub static LINEAR_HOPPER: &[Variant<Linear>] = &[
    of_e4m3!(W8A8, 0, "linear_e4m3_w8a8_wgmma_256x128_sm90a"),
    of_e4m3!(W8A8, 1, "linear_e4m3_w8a8_wgmma_192x128_sm90a"),
    of_e4m3!(W8A8, 2, "linear_e4m3_w8a8_wgmma_128x128_sm90a"),
    of_bf16!(BF16, 0, BF16, "linear_bf16_wgmma_256x128_sm90a"),
    of_bf16!(BF16, 1, BF16, "linear_bf16_wgmma_192x128_sm90a"),
    of_bf16!(BF16, 2, BF16, "linear_bf16_wgmma_128x128_sm90a"),
    of_bf16!(E4M3, 0, F8E4M3, "linear_e4m3_wgmma_256x128_sm90a"),
    of_bf16!(E4M3, 1, F8E4M3, "linear_e4m3_wgmma_192x128_sm90a"),
    of_bf16!(E4M3, 2, F8E4M3, "linear_e4m3_wgmma_128x128_sm90a"),
];

/// Every kernel of this family.
pub static KERNELS: &[&Kernel] = &[
    &QUANTISE,
    &W8A8.kernels[0],
    &W8A8.kernels[1],
    &W8A8.kernels[2],
    &BF16.kernels[0],
    &BF16.kernels[1],
    &BF16.kernels[2],
    &E4M3.kernels[0],
    &E4M3.kernels[1],
    &E4M3.kernels[2],
];

/// The variant of [`LINEAR_HOPPER`], if it is expected to be faster than all others: k is not
/// split, so it needs tiles for at least half of the multiprocessors, and enough rows to fill a
/// tile.
pub fn choose(a: &Args<Linear>, device: &CudaDevice) -> Option<&'static Variant<Linear>> {
    if a.out.rows < 64 || 2 * tiles(a, 128) < device.processors as usize {
        return None;
    }
    let runs =
        |v: &Variant<Linear>| v.needs.runs_on(device.capability) && (v.accepts)(a, device).is_ok();
    let family = LINEAR_HOPPER.chunks(TILES.len()).find(|family| runs(&family[0]))?;
    let time = |&i: &usize| time(a, device, TILES[i]);
    let best = (0..TILES.len()).min_by(|i, j| time(i).total_cmp(&time(j)))?;
    family.get(best)
}
