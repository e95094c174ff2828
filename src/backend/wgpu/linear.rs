//! `linear`: `shaders/linear*.wgsl`. [`choose`] says which shader suits a shape; `accepts` only
//! says which can run it.

mod dispatch;
mod int8;
mod modules;

use super::launch::{Args, Constants, Dispatch, Needs, Shader, Variant, WgpuDevice, code};
use crate::dtype::DType;
use crate::dtype::blocks::FORMATS;
use crate::op::Linear;
use dispatch::{
    ANY_BLOCK, Block, LARGE_BLOCK, LOW_BLOCK, SMALL_BLOCK, SOFTWARE_BLOCK, dispatches, legal,
    vectors,
};
pub use int8::{LINEAR_INT8, scratch_bytes};
use modules::{
    ANY, ANY_BLOCKS, COOPERATIVE, FEW, FEW_SUBGROUP, HALF_LARGE, HALF_SMALL, LARGE, LOW, SMALL,
    SOFTWARE, Trio,
};

/// The groups of element types that variants distinguish.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stored {
    F32,
    BF16,
    F16,
    E4M3,
    E5M2,
    I8,
    Blocks,
}

impl Stored {
    const COUNT: usize = Stored::Blocks as usize + 1;

    fn of(dtype: DType) -> Stored {
        match dtype {
            DType::F32 | DType::I32 => Stored::F32,
            DType::BF16 => Stored::BF16,
            DType::F16 => Stored::F16,
            DType::F8E4M3 => Stored::E4M3,
            DType::F8E5M2 => Stored::E5M2,
            DType::I8 => Stored::I8,
            _ => Stored::Blocks,
        }
    }
}

fn typed(a: &Args<Linear>, device: &WgpuDevice, stored: Stored) -> Result<(), &'static str> {
    if Stored::of(a.w.dtype) == stored {
        vectors(a, device)
    } else {
        Err("the weights have another element type")
    }
}

fn half(a: &Args<Linear>, device: &WgpuDevice, stored: Stored) -> Result<(), &'static str> {
    if !device.half {
        Err("products in f16 were not asked for")
    } else if stored == Stored::E5M2 && a.scales.is_some() {
        // It is not known which part of its range a scale was made for; products that are too small
        // for f16 would be lost.
        Err("scaled e5m2 reaches further than f16 does")
    } else {
        typed(a, device, stored)
    }
}

/// Rows that a workgroup of `shaders/linear_few.wgsl` computes at once.
fn few_rows(rows: usize) -> usize {
    match rows {
        1 => 1,
        2..=4 => 4,
        _ => 16,
    }
}

fn few(trio: &Trio, a: &Args<Linear>, device: &WgpuDevice) -> Vec<Dispatch> {
    let rows = few_rows(a.x.rows);
    dispatches(
        trio.of(a.w.dtype),
        Block { rows, columns: 4, slowness: 1 },
        &[("ROWS", rows as f64)],
        a,
        device,
    )
}

const TILE: Needs = Needs::new(256, 16 << 10);
const LOW_TILE: Needs = Needs::new(128, 12 << 10);
const HALF_TILE: Needs = Needs { f16: true, ..Needs::new(256, 8 << 10) };
const FEW_NEEDS: Needs = Needs::new(64, 4 << 10);
const FEW_SUBGROUP_NEEDS: Needs = Needs { subgroups: Some((4, u32::MAX)), ..FEW_NEEDS };
const SOFTWARE_NEEDS: Needs =
    Needs { subgroups: Some((8, u32::MAX)), software: true, ..Needs::new(8, 0) };
const COOPERATIVE_NEEDS: Needs =
    Needs { subgroups: Some((1, u32::MAX)), cooperative_matrix: true, ..Needs::new(128, 26 << 10) };
const ANY_NEEDS: Needs = Needs::new(256, 9 << 10);

macro_rules! tiled {
    ($accepts:ident, $stored:ident, $trio:ident, $block:ident, $needs:ident, $name:expr) => {
        Variant {
            name: $name,
            needs: $needs,
            accepts: |a, d| $accepts(a, d, Stored::$stored),
            scratch: |_, _| 0,
            launches: |a, d| dispatches($trio.of(a.w.dtype), $block, &[], a, d),
        }
    };
}
macro_rules! few {
    ($trio:ident, $needs:ident, $accepts:expr, $name:expr) => {
        Variant {
            name: $name,
            needs: $needs,
            accepts: $accepts,
            scratch: |_, _| 0,
            launches: |a, d| few(&$trio, a, d),
        }
    };
}
/// Every kind for every type, in the order of `Kind` and [`Stored`].
macro_rules! table {
    ($(($stored:ident, $text:literal)),*) => {
        /// All variants of `linear`; [`choose`] says which suits.
        pub static LINEAR: &[Variant<Linear>] = &[
            $(tiled!(
                half, $stored, HALF_LARGE, LARGE_BLOCK, HALF_TILE,
                concat!("linear_", $text, "_f16_128x128")
            ),)*
            $(tiled!(
                half, $stored, HALF_SMALL, SMALL_BLOCK, HALF_TILE,
                concat!("linear_", $text, "_f16_64x64")
            ),)*
            $(tiled!(
                typed, $stored, LARGE, LARGE_BLOCK, TILE,
                concat!("linear_", $text, "_128x128")
            ),)*
            $(tiled!(
                typed, $stored, SMALL, SMALL_BLOCK, TILE,
                concat!("linear_", $text, "_64x64")
            ),)*
            $(tiled!(
                typed, $stored, LOW, LOW_BLOCK, LOW_TILE,
                concat!("linear_", $text, "_32x64")
            ),)*
            $(few!(
                FEW_SUBGROUP, FEW_SUBGROUP_NEEDS, |a, d| typed(a, d, Stored::$stored),
                concat!("linear_", $text, "_rows16_subgroup")
            ),)*
            $(few!(
                FEW, FEW_NEEDS, |a, d| typed(a, d, Stored::$stored),
                concat!("linear_", $text, "_rows16")
            ),)*
            $(tiled!(
                typed, $stored, SOFTWARE, SOFTWARE_BLOCK, SOFTWARE_NEEDS,
                concat!("linear_", $text, "_software")
            ),)*
            $(tiled!(
                typed, $stored, COOPERATIVE, SMALL_BLOCK, COOPERATIVE_NEEDS,
                concat!("linear_", $text, "_cooperative")
            ),)*
            Variant {
                name: "linear_any",
                needs: ANY_NEEDS,
                accepts: legal,
                scratch: |_, _| 0,
                launches: |a, d| {
                    let shader = if a.w.dtype.is_plain() { &ANY } else { &ANY_BLOCKS };
                    dispatches(shader, ANY_BLOCK, &[], a, d)
                },
            },
        ];
    };
}
table!(
    (F32, "f32"),
    (BF16, "bf16"),
    (F16, "f16"),
    (E4M3, "e4m3"),
    (E5M2, "e5m2"),
    (I8, "i8"),
    (Blocks, "blocks")
);

#[derive(Clone, Copy)]
enum Kind {
    HalfLarge,
    HalfSmall,
    Large,
    Small,
    Low,
    FewSubgroup,
    Few,
    Software,
}

/// With fewer large tiles than this, half of the processors of a large GPU (about 128) have no
/// work; four times as many small tiles are then expected to finish sooner, although they take
/// longer for the same products (an estimate: they read workgroup memory twice as often). Smaller
/// GPUs are busy with fewer.
const ENOUGH_TILES: usize = 64;

/// The variant of [`LINEAR`] or [`LINEAR_INT8`] that is expected to be the fastest, or why there is
/// none. This depends on shapes, alignment and device alone.
pub fn choose(
    a: &Args<Linear>,
    device: &WgpuDevice,
) -> Result<&'static Variant<Linear>, &'static str> {
    let tiles = a.x.rows.div_ceil(LARGE_BLOCK.rows) * a.w.rows.div_ceil(LARGE_BLOCK.columns);
    if a.int8.is_some() {
        return int8::choose(a, device, tiles >= ENOUGH_TILES);
    }
    legal(a, device)?;
    let order = match a.x.rows {
        ..=16 => [Kind::FewSubgroup, Kind::Few, Kind::Low, Kind::Small],
        17..=32 => [Kind::Low, Kind::HalfSmall, Kind::Small, Kind::Few],
        65.. if tiles >= ENOUGH_TILES => {
            [Kind::HalfLarge, Kind::HalfSmall, Kind::Large, Kind::Small]
        }
        _ => [Kind::HalfSmall, Kind::Small, Kind::HalfLarge, Kind::Large],
    };
    let stored = Stored::of(a.w.dtype) as usize;
    let any = &LINEAR[LINEAR.len() - 1];
    let first = device.software.then_some(Kind::Software);
    let chosen = first
        .iter()
        .chain(&order)
        .map(|&kind| &LINEAR[kind as usize * Stored::COUNT + stored])
        .chain([any])
        .find(|v| v.fits(a, device));
    chosen.ok_or("the adapter has too little workgroup memory")
}

/// All element types of stored weights.
fn types() -> impl Iterator<Item = DType> {
    let plain = [DType::F32, DType::BF16, DType::F16, DType::F8E4M3, DType::F8E5M2, DType::I8];
    plain.into_iter().chain(FORMATS.iter().map(|f| f.dtype))
}

/// Every shader of this family with every set of constants that it is used with.
pub fn shaders() -> Vec<(&'static Shader, Constants, Needs)> {
    let mut all = Vec::new();
    let trios = [
        (&LARGE, TILE, false),
        (&SMALL, TILE, false),
        (&LOW, LOW_TILE, false),
        (&HALF_LARGE, HALF_TILE, false),
        (&HALF_SMALL, HALF_TILE, false),
        (&SOFTWARE, SOFTWARE_NEEDS, false),
        (&COOPERATIVE, COOPERATIVE_NEEDS, false),
        (&FEW, FEW_NEEDS, true),
        (&FEW_SUBGROUP, FEW_SUBGROUP_NEEDS, true),
    ];
    for x in [DType::F32, DType::BF16] {
        for w in types() {
            let codes = [("X_TYPE", f64::from(code(x))), ("W_TYPE", f64::from(code(w)))];
            all.push((if w.is_plain() { &ANY } else { &ANY_BLOCKS }, codes.to_vec(), ANY_NEEDS));
            for (trio, needs, few) in &trios {
                let rows: &[f64] = if *few { &[1.0, 4.0, 16.0] } else { &[0.0] };
                for &rows in rows {
                    let more = few.then_some(("ROWS", rows));
                    all.push((trio.of(w), codes.into_iter().chain(more).collect(), *needs));
                }
            }
        }
    }
    all.extend(int8::shaders());
    all
}
