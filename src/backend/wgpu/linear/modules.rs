//! The shaders of `linear`, put together from the files in `shaders/`.

use super::dispatch::Params;
use crate::backend::wgpu::launch::Shader;
use crate::dtype::DType;

const fn shader(name: &'static str, sources: &'static [&'static str], buffers: usize) -> Shader {
    Shader { name, sources, params_bytes: size_of::<Params>(), buffers }
}

/// A module: `$first` (`enable` lines), the common files, then the named files.
macro_rules! shader {
    ($name:ident, $text:expr, $first:literal, $($file:literal),*) => {
        shader!(@buffers 7, $name, $text, $first, $($file),*);
    };
    (@buffers $buffers:literal, $name:ident, $text:expr, $first:literal, $($file:literal),*) => {
        pub static $name: Shader = shader(
            $text,
            &[
                $first,
                include_str!("../../../../shaders/common.wgsl"),
                include_str!("../../../../shaders/linear_params.wgsl"),
                $(include_str!(concat!("../../../../shaders/", $file, ".wgsl"))),*
            ],
            $buffers,
        );
    };
}
macro_rules! tile_shader {
    ($name:ident, $text:expr, $first:literal, [$($weights:literal),*], $products:literal) => {
        shader!(
            $name, $text, $first, "linear_tail", "linear_x4", $($weights,)* "linear_floats",
            "linear", $products
        );
    };
}
macro_rules! software_shader {
    ($name:ident, $text:expr, $first:literal, [$($weights:literal),*], $products:literal) => {
        shader!($name, $text, $first, "linear_tail", "linear_x4", $($weights,)* $products);
    };
}
macro_rules! coop_shader {
    ($name:ident, $text:expr, $first:literal, [$($weights:literal),*], $products:literal) => {
        shader!($name, $text, $first, "linear_tail", "linear_x", $($weights,)* $products);
    };
}
macro_rules! few_shader {
    ($name:ident, $text:expr, $first:literal, [$($weights:literal),*], $sum:literal) => {
        shader!($name, $text, $first, "linear_tail", "linear_x", $($weights,)* "linear_few", $sum);
    };
}

/// The shaders for weights of one byte, for larger ones, and for block-quantised ones.
pub struct Trio {
    pub narrow: &'static Shader,
    pub wide: &'static Shader,
    pub blocks: &'static Shader,
}

impl Trio {
    /// The shader for weights of type `w`.
    pub fn of(&self, w: DType) -> &'static Shader {
        match w {
            _ if !w.is_plain() => self.blocks,
            _ if w.size() == 1 => self.narrow,
            _ => self.wide,
        }
    }
}

macro_rules! trio {
    (
        @four $make:ident, $name:ident, $narrow:ident, $wide:ident, $blocks:ident,
        $text:literal, $first:literal, $last:literal
    ) => {
        $make!($narrow, concat!($text, "_narrow"), $first, ["linear_narrow4"], $last);
        $make!($wide, concat!($text, "_wide"), $first, ["linear_wide4"], $last);
        $make!($blocks, concat!($text, "_blocks"), $first, ["blocks", "linear_blocks4"], $last);
        pub static $name: Trio = Trio { narrow: &$narrow, wide: &$wide, blocks: &$blocks };
    };
    (
        @eight $make:ident, $name:ident, $narrow:ident, $wide:ident, $blocks:ident,
        $text:literal, $first:literal, $last:literal
    ) => {
        $make!($narrow, concat!($text, "_narrow"), $first, ["linear_narrow"], $last);
        $make!($wide, concat!($text, "_wide"), $first, ["linear_wide"], $last);
        $make!($blocks, concat!($text, "_blocks"), $first, ["blocks", "linear_blocks"], $last);
        pub static $name: Trio = Trio { narrow: &$narrow, wide: &$wide, blocks: &$blocks };
    };
}

trio!(
    @four tile_shader,
    LARGE,
    LARGE_NARROW,
    LARGE_WIDE,
    LARGE_BLOCKS,
    "linear_128x128",
    "const ROWS: u32 = 128u;\nconst COLUMNS: u32 = 128u;\nconst PARTS: u32 = 2u;\n",
    "linear_f32"
);
trio!(
    @four tile_shader,
    SMALL,
    SMALL_NARROW,
    SMALL_WIDE,
    SMALL_BLOCKS,
    "linear_64x64",
    "const ROWS: u32 = 64u;\nconst COLUMNS: u32 = 64u;\nconst PARTS: u32 = 1u;\n",
    "linear_f32"
);
trio!(
    @four tile_shader,
    LOW,
    LOW_NARROW,
    LOW_WIDE,
    LOW_BLOCKS,
    "linear_32x64",
    "const ROWS: u32 = 32u;\nconst COLUMNS: u32 = 64u;\nconst PARTS: u32 = 1u;\n",
    "linear_f32"
);
trio!(
    @four tile_shader,
    HALF_LARGE,
    HALF_LARGE_NARROW,
    HALF_LARGE_WIDE,
    HALF_LARGE_BLOCKS,
    "linear_f16_128x128",
    "enable f16;\nconst ROWS: u32 = 128u;\nconst COLUMNS: u32 = 128u;\nconst PARTS: u32 = 2u;\n",
    "linear_f16"
);
trio!(
    @four tile_shader,
    HALF_SMALL,
    HALF_SMALL_NARROW,
    HALF_SMALL_WIDE,
    HALF_SMALL_BLOCKS,
    "linear_f16_64x64",
    "enable f16;\nconst ROWS: u32 = 64u;\nconst COLUMNS: u32 = 64u;\nconst PARTS: u32 = 1u;\n",
    "linear_f16"
);
trio!(
    @eight few_shader,
    FEW,
    FEW_NARROW,
    FEW_WIDE,
    FEW_BLOCKS,
    "linear_few",
    "",
    "linear_few_plain"
);
trio!(
    @eight few_shader,
    FEW_SUBGROUP,
    FEW_SUBGROUP_NARROW,
    FEW_SUBGROUP_WIDE,
    FEW_SUBGROUP_BLOCKS,
    "linear_few_subgroup",
    "",
    "linear_few_subgroup"
);
trio!(
    @four software_shader,
    SOFTWARE,
    SOFTWARE_NARROW,
    SOFTWARE_WIDE,
    SOFTWARE_BLOCKS,
    "linear_software",
    "",
    "linear_software"
);
trio!(
    @eight coop_shader,
    COOPERATIVE,
    COOPERATIVE_NARROW,
    COOPERATIVE_WIDE,
    COOPERATIVE_BLOCKS,
    "linear_cooperative",
    "enable wgpu_cooperative_matrix;\n",
    "linear_cooperative"
);
shader!(ANY, "linear_any", "", "linear_tail_any", "linear_any_plain", "linear_any");
shader!(
    ANY_BLOCKS,
    "linear_any_blocks",
    "",
    "blocks",
    "linear_tail_any",
    "linear_any_blocks",
    "linear_any"
);
/// The shaders of products in int8: tiles as in `linear.wgsl`.
macro_rules! int8_shader {
    ($name:ident, $text:literal, $first:literal, $tail:literal) => {
        shader!(@buffers 8, $name, $text, $first, $tail, "linear", "linear_int8");
    };
}
int8_shader!(
    INT8_LARGE,
    "linear_int8_128x128",
    "const ROWS: u32 = 128u;\nconst COLUMNS: u32 = 128u;\nconst PARTS: u32 = 2u;\n",
    "linear_tail"
);
int8_shader!(
    INT8_SMALL,
    "linear_int8_64x64",
    "const ROWS: u32 = 64u;\nconst COLUMNS: u32 = 64u;\nconst PARTS: u32 = 1u;\n",
    "linear_tail"
);
int8_shader!(
    INT8_ANY,
    "linear_int8_any",
    "const ROWS: u32 = 64u;\nconst COLUMNS: u32 = 64u;\nconst PARTS: u32 = 1u;\n",
    "linear_tail_any"
);
