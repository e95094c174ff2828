//! `linear`: `kernels/linear.cu`. [`choose`] says which tile suits a shape; `accepts` only says
//! which can run it.

use super::arch::{Arch, CudaDevice};
use super::launch::{Args, Kernel, Launch, Variant};
use super::linear_params::{Params, STEP, buffers, legal, params, vectors};
use crate::dtype::DType;
use crate::op::Linear;

/// A tiled kernel: the side of a tile, and the number of its blocks that share a multiprocessor.
#[derive(Clone, Copy)]
pub(super) struct Tile {
    side: usize,
    blocks: usize,
}

pub(super) const LARGE: Tile = Tile { side: 128, blocks: 2 };
pub(super) const SMALL: Tile = Tile { side: 64, blocks: 4 };

impl Tile {
    /// Tiles of the output.
    pub(super) fn count(self, a: &Args<Linear>) -> usize {
        a.out.rows.div_ceil(self.side) * a.out.cols.div_ceil(self.side)
    }

    /// Estimated time, in multiply-adds of one multiprocessor at its best rate: the share of the
    /// busiest multiprocessor, and how well its blocks use it. Starting and ending a block costs as
    /// much as 128 more k, a partial sum as much as 64 multiply-adds, the second launch as much as
    /// a million.
    pub(super) fn time(self, a: &Args<Linear>, device: &CudaDevice, splits: usize) -> f64 {
        let processors = device.processors.max(1) as usize;
        let per_processor = (self.count(a) * splits).div_ceil(processors);
        let together = per_processor.min(self.blocks) as f64 / self.blocks as f64;
        let best = if self.side == LARGE.side { 1.0 } else { 0.85 };
        let k = (split_steps(a, splits) * STEP) as f64 + 128.0;
        let product =
            (per_processor * self.side * self.side) as f64 * k / (best * (0.5 + 0.5 * together));
        match splits {
            1 => product,
            _ => {
                product
                    + 1e6
                    + 64.0 * (a.out.rows * a.out.cols * (splits + 1)) as f64 / processors as f64
            }
        }
    }

    /// Number of parts into which k is divided: one, unless twice as many blocks could run at the
    /// same time. Each part has at least 8 steps.
    fn splits(self, a: &Args<Linear>, device: &CudaDevice) -> usize {
        let places = self.blocks * device.processors as usize;
        let most = (places / self.count(a)).min(a.x.cols.div_ceil(STEP) / 8).clamp(1, 16);
        let best = (1..=most)
            .min_by(|&s, &t| self.time(a, device, s).total_cmp(&self.time(a, device, t)))
            .unwrap_or(1);
        // Every part must have work.
        a.x.cols.div_ceil(STEP).div_ceil(split_steps(a, best))
    }

    fn scratch(self, a: &Args<Linear>, device: &CudaDevice) -> usize {
        match self.splits(a, device) {
            1 => 0,
            splits => splits * a.out.rows * a.out.cols.next_multiple_of(4) * 4,
        }
    }

    fn launches(
        self,
        kernel: &'static Kernel,
        a: &Args<Linear>,
        device: &CudaDevice,
    ) -> Vec<Launch> {
        let splits = self.splits(a, device);
        let p = Params {
            splits: splits as u32,
            split_steps: split_steps(a, splits) as u32,
            ..params(a)
        };
        let mut launches = vec![launch(kernel, [self.count(a) as u32, 1, splits as u32], a, p)];
        if splits > 1 {
            let grid = [a.out.cols.div_ceil(4 * 128) as u32, a.out.rows.min(65_535) as u32, 1];
            launches.push(launch(&REDUCE, grid, a, p));
        }
        launches
    }
}

/// Steps of k in each of `splits` parts; the last may have fewer.
fn split_steps(a: &Args<Linear>, splits: usize) -> usize {
    a.x.cols.div_ceil(STEP).div_ceil(splits)
}

fn launch(kernel: &'static Kernel, grid: [u32; 3], a: &Args<Linear>, p: Params) -> Launch {
    Launch {
        kernel,
        grid,
        buffers: buffers(a),
        maps: vec![],
        params: bytemuck::bytes_of(&p).to_vec(),
    }
}

const fn kernel(module: &'static str, entry: &'static str, threads: u32, shared: u32) -> Kernel {
    Kernel { module, entry, buffers: 10, maps: 0, params: size_of::<Params>(), threads, shared }
}

static REDUCE: Kernel = kernel("linear.sm80", "linear_reduce_sm80", 128, 0);
static ANY: Kernel = kernel("linear.sm80", "linear_any_sm80", 128, 64 * 68 * 4);

/// Columns of a block of the kernels for few rows, and the rows that it processes at a time.
const FEW_COLUMNS: usize = 32;
const FEW_ROWS: usize = 16;

/// The kernels for one element type of weights.
struct Family {
    large: Kernel,
    small: Kernel,
    few: Kernel,
}

/// `$large`, `$small`: bytes of shared memory for the pipelines of the large and the small tile
/// (`Tile` in `kernels/linear_tile.cuh`).
macro_rules! family {
    ($name:ident, $module:literal, $text:literal, $large:expr, $small:expr) => {
        static $name: Family = Family {
            large: kernel($module, concat!("linear_", $text, "_128x128_sm80"), 128, $large),
            small: kernel($module, concat!("linear_", $text, "_64x64_sm80"), 128, $small),
            few: kernel($module, concat!("linear_", $text, "_rows16_sm80"), 256, 0),
        };
    };
}
family!(WITH_BF16, "linear.sm80", "bf16", 3 * 16_384, 3 * 8_192);
family!(WITH_F16, "linear.sm80", "f16", 3 * 16_384, 3 * 8_192);
family!(WITH_E4M3, "linear.sm80", "e4m3", 4 * 12_288, 4 * 6_144);
family!(WITH_E5M2, "linear.sm80", "e5m2", 4 * 12_288, 4 * 6_144);
family!(WITH_I8, "linear.sm80", "i8", 4 * 12_288, 4 * 6_144);
// After the pipeline come the sixteen values of a 4-bit type.
family!(WITH_BLOCKS, "linear_blocks.sm80", "blocks", 3 * 16_384 + 64, 3 * 8_192 + 64);

/// Every kernel of this family.
pub static KERNELS: &[&Kernel] = &[
    &REDUCE,
    &ANY,
    &WITH_BF16.large,
    &WITH_BF16.small,
    &WITH_BF16.few,
    &WITH_F16.large,
    &WITH_F16.small,
    &WITH_F16.few,
    &WITH_E4M3.large,
    &WITH_E4M3.small,
    &WITH_E4M3.few,
    &WITH_E5M2.large,
    &WITH_E5M2.small,
    &WITH_E5M2.few,
    &WITH_I8.large,
    &WITH_I8.small,
    &WITH_I8.few,
    &WITH_BLOCKS.large,
    &WITH_BLOCKS.small,
    &WITH_BLOCKS.few,
];

/// The weights that a family of kernels takes: one element type, or all block-quantised types.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stored {
    Plain(DType),
    Blocks,
}

/// In the order of `LINEAR`.
const STORED: [Stored; 6] = [
    Stored::Plain(DType::BF16),
    Stored::Plain(DType::F16),
    Stored::Plain(DType::F8E4M3),
    Stored::Plain(DType::F8E5M2),
    Stored::Plain(DType::I8),
    Stored::Blocks,
];

impl Stored {
    fn of(dtype: DType) -> Stored {
        if dtype.is_plain() { Stored::Plain(dtype) } else { Stored::Blocks }
    }
}

fn typed(a: &Args<Linear>, stored: Stored) -> Result<(), &'static str> {
    if Stored::of(a.w.dtype) == stored {
        vectors(a)
    } else {
        Err("the weights have another element type")
    }
}

macro_rules! tiled {
    ($family:ident, $kernel:ident, $stored:literal, $tile:ident, $name:literal) => {
        Variant {
            name: $name,
            needs: Arch::From(8, 0),
            accepts: |a, _| typed(a, STORED[$stored]),
            scratch: |a, d| $tile.scratch(a, d),
            launches: |a, d| $tile.launches(&$family.$kernel, a, d),
        }
    };
}
macro_rules! few {
    ($family:ident, $stored:literal, $name:literal) => {
        Variant {
            name: $name,
            needs: Arch::From(8, 0),
            accepts: |a, _| typed(a, STORED[$stored]),
            scratch: |_, _| 0,
            launches: |a, _| {
                let grid = [
                    a.out.cols.div_ceil(FEW_COLUMNS) as u32,
                    a.out.rows.div_ceil(FEW_ROWS).min(65_535) as u32,
                    1,
                ];
                vec![launch(&$family.few, grid, a, params(a))]
            },
        }
    };
}

/// All variants for any GPU from compute capability 8.0 on; [`choose`] says which suits.
pub static LINEAR: &[Variant<Linear>] = &[
    tiled!(WITH_BF16, large, 0, LARGE, "linear_bf16_128x128_sm80"),
    tiled!(WITH_F16, large, 1, LARGE, "linear_f16_128x128_sm80"),
    tiled!(WITH_E4M3, large, 2, LARGE, "linear_e4m3_128x128_sm80"),
    tiled!(WITH_E5M2, large, 3, LARGE, "linear_e5m2_128x128_sm80"),
    tiled!(WITH_I8, large, 4, LARGE, "linear_i8_128x128_sm80"),
    tiled!(WITH_BLOCKS, large, 5, LARGE, "linear_blocks_128x128_sm80"),
    tiled!(WITH_BF16, small, 0, SMALL, "linear_bf16_64x64_sm80"),
    tiled!(WITH_F16, small, 1, SMALL, "linear_f16_64x64_sm80"),
    tiled!(WITH_E4M3, small, 2, SMALL, "linear_e4m3_64x64_sm80"),
    tiled!(WITH_E5M2, small, 3, SMALL, "linear_e5m2_64x64_sm80"),
    tiled!(WITH_I8, small, 4, SMALL, "linear_i8_64x64_sm80"),
    tiled!(WITH_BLOCKS, small, 5, SMALL, "linear_blocks_64x64_sm80"),
    few!(WITH_BF16, 0, "linear_bf16_rows16_sm80"),
    few!(WITH_F16, 1, "linear_f16_rows16_sm80"),
    few!(WITH_E4M3, 2, "linear_e4m3_rows16_sm80"),
    few!(WITH_E5M2, 3, "linear_e5m2_rows16_sm80"),
    few!(WITH_I8, 4, "linear_i8_rows16_sm80"),
    few!(WITH_BLOCKS, 5, "linear_blocks_rows16_sm80"),
    Variant {
        name: "linear_any_sm80",
        needs: Arch::From(8, 0),
        accepts: |a, _| legal(a),
        scratch: |_, _| 0,
        launches: |a, _| vec![launch(&ANY, [SMALL.count(a) as u32, 1, 1], a, params(a))],
    },
];

/// The variant of [`LINEAR`] that is expected to be the fastest, or why there is none. This depends
/// on shapes, alignment and device alone.
pub fn choose(
    a: &Args<Linear>,
    device: &CudaDevice,
) -> Result<&'static Variant<Linear>, &'static str> {
    legal(a)?;
    let Some(stored) =
        STORED.iter().position(|&s| s == Stored::of(a.w.dtype)).filter(|_| vectors(a).is_ok())
    else {
        return Ok(&LINEAR[LINEAR.len() - 1]);
    };
    let time = |tile: Tile| tile.time(a, device, tile.splits(a, device));
    let kind = match a.out.rows {
        rows if rows <= FEW_ROWS => 2,
        _ if time(SMALL) < time(LARGE) => 1,
        _ => 0,
    };
    Ok(&LINEAR[kind * STORED.len() + stored])
}
