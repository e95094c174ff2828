//! Normalisations: layer norm with a modulation or an affine map, RMS norm, and in `qk_norm_rope`
//! norm and rotation of queries and keys. `shaders/norm.wgsl` explains the shaders.

mod qk_norm_rope;

use bytemuck::{Pod, Zeroable};

use super::elementwise::{
    Constants, activations, binds, combinations, dispatch, elements, in_elements, in_vectors,
    most_rows, moving, octets, type_of, wgsl,
};
use super::launch::{
    Args, Dispatch, Grid, Matrix, Needs, Shader, Variant, Wgpu, WgpuDevice, Window, blocks,
};
use crate::backend::gpu::variants;
use crate::op::{LayerNorm, LayerNormModulate, RmsNorm};

/// Threads of a workgroup, which processes one row.
const THREADS: usize = 128;
/// Columns of a row that a workgroup holds in registers: four groups of eight for each thread.
const HELD: usize = THREADS * 4 * 8;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct NormParams {
    grid: Grid,
    cols: u32,
    row: u32,
    scale_rows: u32,
    shift_rows: u32,
    x_base: u32,
    x_stride: u32,
    scale_base: u32,
    scale_stride: u32,
    shift_base: u32,
    shift_stride: u32,
    out_base: u32,
    out_stride: u32,
    eps: f32,
    inverse_cols: f32,
}

static NORM: Shader = Shader {
    name: "norm",
    sources: &[wgsl!("common"), wgsl!("octets"), wgsl!("sum_workgroup"), wgsl!("norm")],
    params_bytes: size_of::<NormParams>(),
    buffers: 4,
};
static NORM_SUBGROUP: Shader = Shader {
    name: "norm_subgroup",
    sources: &[wgsl!("common"), wgsl!("octets"), wgsl!("sum_subgroup"), wgsl!("norm")],
    params_bytes: size_of::<NormParams>(),
    buffers: 4,
};
static NORM_ANY: Shader = Shader {
    name: "norm_any",
    sources: &[wgsl!("common"), wgsl!("words"), wgsl!("sum_workgroup"), wgsl!("norm_any")],
    params_bytes: size_of::<NormParams>(),
    buffers: 4,
};
/// Bytes of the arrays in `sum_workgroup.wgsl` and in `sum_subgroup.wgsl`.
const NEEDS: Needs = Needs::new(THREADS as u32, (256 + 32) * 8);
const SUBGROUP_NEEDS: Needs =
    Needs { subgroups: Some((1, u32::MAX)), ..Needs::new(THREADS as u32, 256 * 8) };
/// The operation after the norm, as the shaders number it.
#[derive(Clone, Copy)]
enum After {
    Gain = 0,
    Affine = 1,
    Modulate = 2,
}

/// Any of the norms over rows.
#[derive(Clone, Copy)]
struct Norm {
    x: Matrix,
    after: After,
    /// Scale, weight or gain: one row for each group.
    scale: Matrix,
    /// Shift or bias.
    shift: Option<Matrix>,
    eps: f32,
    out: Matrix,
}

impl From<&Args<LayerNormModulate>> for Norm {
    fn from(a: &Args<LayerNormModulate>) -> Norm {
        Norm {
            x: a.x,
            after: After::Modulate,
            scale: a.scale,
            shift: Some(a.shift),
            eps: a.eps,
            out: a.out,
        }
    }
}

impl From<&Args<LayerNorm>> for Norm {
    fn from(a: &Args<LayerNorm>) -> Norm {
        Norm {
            x: a.x,
            after: After::Affine,
            scale: a.weight,
            shift: Some(a.bias),
            eps: a.eps,
            out: a.out,
        }
    }
}

impl From<&Args<RmsNorm>> for Norm {
    fn from(a: &Args<RmsNorm>) -> Norm {
        Norm { x: a.x, after: After::Gain, scale: a.weight, shift: None, eps: a.eps, out: a.out }
    }
}

impl Norm {
    fn vectors(&self) -> Vec<&Matrix> {
        [&self.scale].into_iter().chain(&self.shift).collect()
    }

    fn takes_any(&self, device: &WgpuDevice) -> Result<(), &'static str> {
        activations(&[&self.x, &self.out], device)?;
        activations(&self.vectors(), device)?;
        binds(&self.vectors(), device)
    }

    fn takes_octets(&self, device: &WgpuDevice) -> Result<(), &'static str> {
        self.takes_any(device)?;
        octets(&[&self.x, &self.out], device)?;
        octets(&self.vectors(), device)?;
        (self.x.cols <= HELD).then_some(()).ok_or("rows are longer than 4096")
    }

    fn constants(&self) -> Constants {
        let centred = !matches!(self.after, After::Gain);
        vec![
            ("CENTRED", f64::from(u8::from(centred))),
            ("AFTER", f64::from(self.after as u32)),
            ("X_TYPE", type_of(&self.x)),
            ("OUT_TYPE", type_of(&self.out)),
            ("SCALE_TYPE", type_of(&self.scale)),
            ("SHIFT_TYPE", self.shift.as_ref().map_or(0.0, type_of)),
        ]
    }

    /// One workgroup for each row. `bind` returns windows, bases and strides in the unit of the
    /// shader.
    fn dispatches(
        &self,
        device: &WgpuDevice,
        shader: &'static Shader,
        constants: &Constants,
        bind: fn(&Matrix, &WgpuDevice) -> (Option<Window>, u32, u32),
    ) -> Vec<Dispatch> {
        if elements(&self.x) == 0 {
            return vec![];
        }
        let (scale, scale_base, scale_stride) = bind(&self.scale, device);
        let (shift, shift_base, shift_stride) =
            self.shift.as_ref().map_or((None, 0, 0), |m| bind(m, device));
        let one = |rows: std::ops::Range<usize>| {
            let (x, x_base, x_stride) = bind(&self.x.band(rows.start, rows.len()), device);
            let (out, out_base, out_stride) = bind(&self.out.band(rows.start, rows.len()), device);
            let params = NormParams {
                grid: Grid::default(),
                cols: self.x.cols as u32,
                row: rows.start as u32,
                scale_rows: (self.x.rows / self.scale.rows.max(1)) as u32,
                shift_rows: (self.x.rows / self.shift.map_or(1, |m| m.rows.max(1))) as u32,
                x_base,
                x_stride,
                scale_base,
                scale_stride,
                shift_base,
                shift_stride,
                out_base,
                out_stride,
                eps: self.eps,
                inverse_cols: 1.0 / self.x.cols as f32,
            };
            let buffers = vec![x, scale, shift, out];
            let elements = rows.len() * self.x.cols;
            let moved = elements * (self.x.dtype.size() + self.out.dtype.size());
            moving(
                dispatch(shader, constants.clone(), buffers, &params, rows.len(), elements),
                moved,
            )
        };
        blocks(self.x.rows, most_rows(&[&self.x, &self.out], device), 1).map(one).collect()
    }

    fn by_octets(&self, device: &WgpuDevice, shader: &'static Shader) -> Vec<Dispatch> {
        let held = self.x.cols.div_ceil(8 * THREADS) as f64;
        let constants = [self.constants(), vec![("HELD", held)]].concat();
        self.dispatches(device, shader, &constants, in_vectors)
    }

    fn by_words(&self, device: &WgpuDevice) -> Vec<Dispatch> {
        self.dispatches(device, &NORM_ANY, &self.constants(), in_elements)
    }
}

/// The three variants of a norm over rows.
macro_rules! norm {
    ($subgroup:literal, $vector:literal, $any:literal) => {
        &[
            Variant {
                name: $subgroup,
                needs: SUBGROUP_NEEDS,
                accepts: |a, d| Norm::from(a).takes_octets(d),
                scratch: |_, _| 0,
                launches: |a, d| Norm::from(a).by_octets(d, &NORM_SUBGROUP),
            },
            Variant {
                name: $vector,
                needs: NEEDS,
                accepts: |a, d| Norm::from(a).takes_octets(d),
                scratch: |_, _| 0,
                launches: |a, d| Norm::from(a).by_octets(d, &NORM),
            },
            Variant {
                name: $any,
                needs: NEEDS,
                accepts: |a, d| Norm::from(a).takes_any(d),
                scratch: |_, _| 0,
                launches: |a, d| Norm::from(a).by_words(d),
            },
        ]
    };
}

/// Best first; the last one takes every type, width and alignment.
pub static LAYER_NORM_MODULATE: &[Variant<LayerNormModulate>] = norm!(
    "layer_norm_modulate_any_subgroup",
    "layer_norm_modulate_any_vectors",
    "layer_norm_modulate_any"
);
variants!(Wgpu, LayerNormModulate: LAYER_NORM_MODULATE);
/// Best first; the last one takes every type, width and alignment.
pub static LAYER_NORM: &[Variant<LayerNorm>] =
    norm!("layer_norm_any_subgroup", "layer_norm_any_vectors", "layer_norm_any");
variants!(Wgpu, LayerNorm: LAYER_NORM);
/// Best first; the last one takes every type, width and alignment.
pub static RMS_NORM: &[Variant<RmsNorm>] =
    norm!("rms_norm_any_subgroup", "rms_norm_any_vectors", "rms_norm_any");
variants!(Wgpu, RmsNorm: RMS_NORM);

/// Every shader of this family with every set of constants that it is used with.
pub fn shaders() -> Vec<(&'static Shader, Constants, Needs)> {
    let types: &[f64] = &[0.0, 1.0];
    let (x, out) = (("X_TYPE", types), ("OUT_TYPE", types));
    let plain: &[f64] = &[0.0];
    let kinds = [(0.0, 0.0, plain), (1.0, 1.0, plain), (1.0, 2.0, types)];
    let norms = |held: &'static [f64]| {
        let of_kind = move |(centred, after, rows): (f64, f64, &'static [f64])| {
            let (scale, shift) = (("SCALE_TYPE", rows), ("SHIFT_TYPE", rows));
            let kind = [
                ("CENTRED", &[centred][..]),
                ("AFTER", &[after][..]),
                x,
                out,
                scale,
                shift,
                ("HELD", held),
            ];
            combinations(&kind[..6 + usize::from(!held.is_empty())])
        };
        kinds.into_iter().flat_map(of_kind).collect::<Vec<_>>()
    };
    let held = norms(&[1.0, 2.0, 3.0, 4.0]);
    let all = [
        (&NORM, held.clone(), NEEDS),
        (&NORM_SUBGROUP, held, SUBGROUP_NEEDS),
        (&NORM_ANY, norms(&[]), NEEDS),
    ];
    let norms = all
        .into_iter()
        .flat_map(|(shader, sets, needs)| sets.into_iter().map(move |set| (shader, set, needs)));
    norms.chain(qk_norm_rope::shaders()).collect()
}
