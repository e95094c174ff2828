//! `linear`: shaders/linear*.wgsl. Which shader suits a shape is `choose`'s to say; `accepts` only says what can run.

mod dispatch;

use super::args::LinearArgs;
use super::launch::{Constants, Device, Dispatch, Needs, Shader, Variant, code};
use crate::dtype::DType;
use dispatch::{Block, LARGE_BLOCK, Params, SMALL_BLOCK, SOFTWARE_BLOCK, dispatches, legal, vectors};

const fn shader(name: &'static str, sources: &'static [&'static str]) -> Shader {
    Shader { name, sources, params_bytes: size_of::<Params>(), buffers: 7 }
}

/// A module: `$first` (`enable`s), what all share, then the files named.
macro_rules! shader {
    ($name:ident, $text:expr, $first:literal, $($file:literal),*) => {
        static $name: Shader = shader(
            $text,
            &[
                $first,
                include_str!("../../../shaders/common.wgsl"),
                include_str!("../../../shaders/linear_params.wgsl"),
                $(include_str!(concat!("../../../shaders/", $file, ".wgsl"))),*
            ],
        );
    };
}
macro_rules! tile_shader {
    ($name:ident, $text:expr, $first:literal, $weights:literal, $products:literal) => {
        shader!($name, $text, $first, "linear_tail", "linear_x", $weights, "linear", $products);
    };
}
macro_rules! coop_shader {
    ($name:ident, $text:expr, $first:literal, $weights:literal, $products:literal) => {
        shader!($name, $text, $first, "linear_tail", "linear_x", $weights, $products);
    };
}
macro_rules! few_shader {
    ($name:ident, $text:expr, $first:literal, $weights:literal, $sum:literal) => {
        shader!($name, $text, $first, "linear_tail", "linear_x", $weights, "linear_few", $sum);
    };
}

/// The shaders for weights of one byte and for larger ones.
struct Pair {
    narrow: &'static Shader,
    wide: &'static Shader,
}

impl Pair {
    fn of(&self, w: DType) -> &'static Shader {
        if w.size() == 1 { self.narrow } else { self.wide }
    }
}

macro_rules! pair {
    ($make:ident, $name:ident, $narrow:ident, $wide:ident, $text:literal, $first:literal, $last:literal) => {
        $make!($narrow, concat!($text, "_narrow"), $first, "linear_narrow", $last);
        $make!($wide, concat!($text, "_wide"), $first, "linear_wide", $last);
        static $name: Pair = Pair { narrow: &$narrow, wide: &$wide };
    };
}

pair!(
    tile_shader,
    LARGE,
    LARGE_NARROW,
    LARGE_WIDE,
    "linear_128x128",
    "const TILE: u32 = 128u;\nconst PARTS: u32 = 2u;\n",
    "linear_f32"
);
pair!(
    tile_shader,
    SMALL,
    SMALL_NARROW,
    SMALL_WIDE,
    "linear_64x64",
    "const TILE: u32 = 64u;\nconst PARTS: u32 = 1u;\n",
    "linear_f32"
);
pair!(
    tile_shader,
    HALF_LARGE,
    HALF_LARGE_NARROW,
    HALF_LARGE_WIDE,
    "linear_f16_128x128",
    "enable f16;\nconst TILE: u32 = 128u;\nconst PARTS: u32 = 2u;\n",
    "linear_f16"
);
pair!(
    tile_shader,
    HALF_SMALL,
    HALF_SMALL_NARROW,
    HALF_SMALL_WIDE,
    "linear_f16_64x64",
    "enable f16;\nconst TILE: u32 = 64u;\nconst PARTS: u32 = 1u;\n",
    "linear_f16"
);
pair!(few_shader, FEW, FEW_NARROW, FEW_WIDE, "linear_few", "", "linear_few_plain");
pair!(
    few_shader,
    FEW_SUBGROUP,
    FEW_SUBGROUP_NARROW,
    FEW_SUBGROUP_WIDE,
    "linear_few_subgroup",
    "",
    "linear_few_subgroup"
);
shader!(SOFTWARE_NARROW, "linear_software_narrow", "", "linear_tail", "linear_software_narrow", "linear_software");
shader!(SOFTWARE_WIDE, "linear_software_wide", "", "linear_tail", "linear_software_wide", "linear_software");
static SOFTWARE: Pair = Pair { narrow: &SOFTWARE_NARROW, wide: &SOFTWARE_WIDE };
pair!(
    coop_shader,
    COOPERATIVE,
    COOPERATIVE_NARROW,
    COOPERATIVE_WIDE,
    "linear_cooperative",
    "enable wgpu_cooperative_matrix;\n",
    "linear_cooperative"
);
shader!(ANY, "linear_any", "", "linear_any");

fn typed(a: &LinearArgs, device: &Device, dtype: DType) -> Result<(), &'static str> {
    if a.w.dtype == dtype { vectors(a, device) } else { Err("the weights have another element type") }
}

fn half(a: &LinearArgs, device: &Device, dtype: DType) -> Result<(), &'static str> {
    if device.half { typed(a, device, dtype) } else { Err("products in f16 were not asked for") }
}

/// Rows that a workgroup of shaders/linear_few.wgsl does at once.
fn few_rows(rows: usize) -> usize {
    match rows {
        1 => 1,
        2..=4 => 4,
        _ => 16,
    }
}

fn few(pair: &Pair, a: &LinearArgs, device: &Device) -> Vec<Dispatch> {
    let rows = few_rows(a.x.rows);
    dispatches(pair.of(a.w.dtype), Block { rows, columns: 4 }, &[("ROWS", rows as f64)], a, device)
}

const TILE: Needs = Needs::new(256, 16 << 10);
const HALF_TILE: Needs = Needs { f16: true, ..Needs::new(256, 8 << 10) };
const FEW_NEEDS: Needs = Needs::new(64, 4 << 10);
const FEW_SUBGROUP_NEEDS: Needs = Needs { subgroups: true, ..FEW_NEEDS };
const SOFTWARE_NEEDS: Needs = Needs { subgroups: true, ..Needs::new(8, 0) };
const COOPERATIVE_NEEDS: Needs = Needs { subgroups: true, cooperative_matrix: true, ..Needs::new(128, 26 << 10) };
const ANY_NEEDS: Needs = Needs::new(256, 8 << 10);

macro_rules! tiled {
    ($accepts:ident, $dtype:ident, $pair:ident, $block:ident, $needs:ident, $name:expr) => {
        Variant {
            name: $name,
            needs: $needs,
            accepts: |a, d| $accepts(a, d, DType::$dtype),
            scratch: |_, _| 0,
            dispatches: |a, d| dispatches($pair.of(DType::$dtype), $block, &[], a, d),
        }
    };
}
macro_rules! few {
    ($dtype:ident, $pair:ident, $needs:ident, $accepts:expr, $name:expr) => {
        Variant {
            name: $name,
            needs: $needs,
            accepts: $accepts,
            scratch: |_, _| 0,
            dispatches: |a, d| few(&$pair, a, d),
        }
    };
}
fn few_subgroup(a: &LinearArgs, device: &Device, dtype: DType) -> Result<(), &'static str> {
    if device.subgroups.is_some_and(|(least, _)| least < 4) {
        Err("subgroups are too small")
    } else {
        typed(a, device, dtype)
    }
}

fn cooperative(a: &LinearArgs, device: &Device, dtype: DType) -> Result<(), &'static str> {
    if device.subgroups != Some((32, 32)) { Err("subgroups do not have 32 threads") } else { typed(a, device, dtype) }
}

fn software(a: &LinearArgs, device: &Device, dtype: DType) -> Result<(), &'static str> {
    if device.subgroups.is_some_and(|(least, _)| least < 8) {
        return Err("subgroups are too small");
    }
    if device.software { typed(a, device, dtype) } else { Err("for drivers that compute on the processor") }
}

const TYPES: [DType; 5] = [DType::F32, DType::BF16, DType::F16, DType::F8E4M3, DType::F8E5M2];

/// Every kind for every type, in the order of `Kind` and `TYPES`.
macro_rules! table {
    ($(($dtype:ident, $text:literal)),*) => {
        /// All ways to run a `linear`; `choose` knows which suits.
        pub static LINEAR: &[Variant<LinearArgs>] = &[
            $(tiled!(half, $dtype, HALF_LARGE, LARGE_BLOCK, HALF_TILE, concat!("linear_", $text, "_f16_128x128")),)*
            $(tiled!(half, $dtype, HALF_SMALL, SMALL_BLOCK, HALF_TILE, concat!("linear_", $text, "_f16_64x64")),)*
            $(tiled!(typed, $dtype, LARGE, LARGE_BLOCK, TILE, concat!("linear_", $text, "_128x128")),)*
            $(tiled!(typed, $dtype, SMALL, SMALL_BLOCK, TILE, concat!("linear_", $text, "_64x64")),)*
            $(few!($dtype, FEW_SUBGROUP, FEW_SUBGROUP_NEEDS, |a, d| few_subgroup(a, d, DType::$dtype), concat!("linear_", $text, "_rows16_subgroup")),)*
            $(few!($dtype, FEW, FEW_NEEDS, |a, d| typed(a, d, DType::$dtype), concat!("linear_", $text, "_rows16")),)*
            $(tiled!(software, $dtype, SOFTWARE, SOFTWARE_BLOCK, SOFTWARE_NEEDS, concat!("linear_", $text, "_software")),)*
            $(tiled!(cooperative, $dtype, COOPERATIVE, SMALL_BLOCK, COOPERATIVE_NEEDS, concat!("linear_", $text, "_cooperative")),)*
            Variant {
                name: "linear_any",
                needs: ANY_NEEDS,
                accepts: legal,
                scratch: |_, _| 0,
                dispatches: |a, d| dispatches(&ANY, SMALL_BLOCK, &[], a, d),
            },
        ];
    };
}
table!((F32, "f32"), (BF16, "bf16"), (F16, "f16"), (F8E4M3, "e4m3"), (F8E5M2, "e5m2"));

#[derive(Clone, Copy)]
enum Kind {
    HalfLarge,
    HalfSmall,
    Large,
    Small,
    FewSubgroup,
    Few,
    Software,
}

/// Fewer large tiles than this leave many a GPU's processors without work.
const ENOUGH_TILES: usize = 160;

/// The variant of `LINEAR` that should be fastest, a function of shapes, alignment and device alone, or why there is none.
pub fn choose(a: &LinearArgs, device: &Device) -> Result<&'static Variant<LinearArgs>, &'static str> {
    legal(a, device)?;
    let few_tiles = a.x.rows.div_ceil(LARGE_BLOCK.rows) * a.w.rows.div_ceil(LARGE_BLOCK.columns) < ENOUGH_TILES;
    let order = match (a.x.rows, few_tiles) {
        (..=16, _) => [Kind::FewSubgroup, Kind::Few, Kind::HalfSmall, Kind::Small],
        (_, true) => [Kind::HalfSmall, Kind::Small, Kind::HalfLarge, Kind::Large],
        (_, false) => [Kind::HalfLarge, Kind::HalfSmall, Kind::Large, Kind::Small],
    };
    let dtype = TYPES.iter().position(|&t| t == a.w.dtype).unwrap_or(0);
    let runs = |v: &&Variant<LinearArgs>| v.needs.missing(device).is_none() && (v.accepts)(a, device).is_ok();
    let any = &LINEAR[LINEAR.len() - 1];
    let first = device.software.then_some(Kind::Software);
    let chosen =
        first.iter().chain(&order).map(|&kind| &LINEAR[kind as usize * TYPES.len() + dtype]).chain([any]).find(runs);
    chosen.ok_or("the adapter has too little workgroup memory")
}

/// Every shader with every set of constants that it may be compiled with, and what it needs: for tests.
pub fn shaders() -> Vec<(&'static Shader, Constants, Needs)> {
    let mut all = Vec::new();
    let pairs = [
        (&LARGE, TILE, false),
        (&SMALL, TILE, false),
        (&HALF_LARGE, HALF_TILE, false),
        (&HALF_SMALL, HALF_TILE, false),
        (&SOFTWARE, SOFTWARE_NEEDS, false),
        (&COOPERATIVE, COOPERATIVE_NEEDS, false),
        (&FEW, FEW_NEEDS, true),
        (&FEW_SUBGROUP, FEW_SUBGROUP_NEEDS, true),
    ];
    for x in [DType::F32, DType::BF16] {
        for w in TYPES {
            let types = [("X_TYPE", f64::from(code(x))), ("W_TYPE", f64::from(code(w)))];
            all.push((&ANY, types.to_vec(), ANY_NEEDS));
            for (pair, needs, few) in &pairs {
                let rows: &[f64] = if *few { &[1.0, 4.0, 16.0] } else { &[0.0] };
                for &rows in rows {
                    let more = few.then_some(("ROWS", rows));
                    all.push((pair.of(w), types.into_iter().chain(more).collect(), *needs));
                }
            }
        }
    }
    all
}
