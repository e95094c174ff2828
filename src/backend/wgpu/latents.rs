//! Operations that run once for each text, step or image: embeddings of tokens and times,
//! conversion between latents and tokens, the step of the sampler. They move a few megabytes, so
//! one variant is enough for each. `shaders/embed.wgsl` and the files next to it explain the
//! shaders.

use bytemuck::{Pod, Zeroable};

use super::elementwise::{
    Constants, activations, binds, combinations, counts, dispatch, elements, in_elements,
    most_rows, perhaps, type_of, wgsl, words,
};
use super::launch::{
    Args, Dispatch, Grid, Matrix, Needs, Shader, Variant, Wgpu, WgpuDevice, blocks,
};
use crate::backend::gpu::variants;
use crate::dtype::DType;
use crate::op::{Embed, EulerStep, Pack, TimestepEmbed, Unpack};

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct EmbedParams {
    grid: Grid,
    rows: u32,
    cols: u32,
    row: u32,
    table_first: u32,
    table_count: u32,
    table_rows: u32,
    table_base: u32,
    table_stride: u32,
    ids_base: u32,
    ids_stride: u32,
    positions_rows: u32,
    positions_base: u32,
    positions_stride: u32,
    out_base: u32,
    out_stride: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct TimestepParams {
    grid: Grid,
    rows: u32,
    half: u32,
    t_base: u32,
    t_stride: u32,
    out_base: u32,
    out_stride: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct LatentParams {
    grid: Grid,
    rows: u32,
    cols: u32,
    width: u32,
    x_base: u32,
    x_stride: u32,
    out_base: u32,
    out_stride: u32,
    scale: f32,
    shift: f32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct EulerParams {
    grid: Grid,
    rows: u32,
    cols: u32,
    x_base: u32,
    x_stride: u32,
    v_base: u32,
    u_base: u32,
    v_stride: u32,
    step_base: u32,
}

static EMBED_ANY: Shader = Shader {
    name: "embed_any",
    sources: &[wgsl!("common"), wgsl!("words"), wgsl!("embed")],
    params_bytes: size_of::<EmbedParams>(),
    buffers: 4,
};
static TIMESTEP_EMBED_ANY: Shader = Shader {
    name: "timestep_embed_any",
    sources: &[wgsl!("common"), wgsl!("words"), wgsl!("timestep_embed")],
    params_bytes: size_of::<TimestepParams>(),
    buffers: 2,
};
static LATENTS_ANY: Shader = Shader {
    name: "latents_any",
    sources: &[wgsl!("common"), wgsl!("words"), wgsl!("latents"), wgsl!("words_main")],
    params_bytes: size_of::<LatentParams>(),
    buffers: 2,
};
static EULER_STEP_ANY: Shader = Shader {
    name: "euler_step_any",
    sources: &[wgsl!("common"), wgsl!("euler_step")],
    params_bytes: size_of::<EulerParams>(),
    buffers: 4,
};

/// Threads of a workgroup, except for `timestep_embed`.
const THREADS: usize = 256;
const NEEDS: Needs = Needs::new(THREADS as u32, 0);
const TIMESTEP_THREADS: usize = 64;
const TIMESTEP_NEEDS: Needs = Needs::new(TIMESTEP_THREADS as u32, 0);

/// Checks the type of a table or of positions: these weights keep their stored type.
fn stored(m: &Matrix, device: &WgpuDevice) -> Result<(), &'static str> {
    let known = matches!(m.dtype, DType::BF16 | DType::F16 | DType::F32);
    known.then_some(()).ok_or("the table is none of bf16, f16 and f32")?;
    counts(&[m], device)
}

fn embed(a: &Args<Embed>, device: &WgpuDevice) -> Vec<Dispatch> {
    if elements(&a.out) == 0 || a.table.rows == 0 {
        return vec![];
    }
    let (positions, positions_base, positions_stride) = perhaps(a.positions.as_ref(), device);
    let constants: Constants = vec![
        ("TABLE_TYPE", type_of(&a.table)),
        ("POSITIONS", f64::from(u8::from(a.positions.is_some()))),
        ("POSITIONS_TYPE", a.positions.as_ref().map_or(0.0, type_of)),
        ("OUT_TYPE", type_of(&a.out)),
    ];
    let ranges: Vec<_> = blocks(a.table.rows, a.table.rows_that_bind(device), 1).collect();
    let one = |rows: std::ops::Range<usize>, range: std::ops::Range<usize>| {
        let (table, table_base, table_stride) =
            in_elements(&a.table.band(range.start, range.len()), device);
        let (ids, ids_base, ids_stride) = in_elements(&a.ids.band(rows.start, rows.len()), device);
        let part = a.out.band(rows.start, rows.len());
        let (out, out_base, out_stride) = in_elements(&part, device);
        let params = EmbedParams {
            grid: Grid::default(),
            rows: rows.len() as u32,
            cols: a.out.cols as u32,
            row: rows.start as u32,
            table_first: range.start as u32,
            table_count: range.len() as u32,
            table_rows: a.table.rows as u32,
            table_base,
            table_stride,
            ids_base,
            ids_stride,
            positions_rows: a.positions.map_or(1, |p| p.rows as u32),
            positions_base,
            positions_stride,
            out_base,
            out_stride,
        };
        let groups = (rows.len() * words(&a.out)).div_ceil(THREADS);
        let buffers = vec![table, ids, positions, out];
        dispatch(&EMBED_ANY, constants.clone(), buffers, &params, groups, elements(&part))
    };
    let rows = blocks(a.out.rows, most_rows(&[&a.ids, &a.out], device), 1);
    rows.flat_map(|r| ranges.iter().map(move |range| (r.clone(), range.clone())))
        .map(|(r, range)| one(r, range))
        .collect()
}

/// Takes every type and shape.
pub static EMBED: &[Variant<Embed>] = &[Variant {
    name: "embed_any",
    needs: NEEDS,
    accepts: |a, d| {
        stored(&a.table, d)?;
        if let Some(p) = &a.positions {
            stored(p, d)?;
            binds(&[p], d)?;
        }
        (a.ids.dtype == DType::I32).then_some(()).ok_or("ids are not i32")?;
        counts(&[&a.ids], d)?;
        activations(&[&a.out], d)
    },
    scratch: |_, _| 0,
    launches: embed,
}];
variants!(Wgpu, Embed: EMBED);

/// Takes every type and shape.
pub static TIMESTEP_EMBED: &[Variant<TimestepEmbed>] = &[Variant {
    name: "timestep_embed_any",
    needs: TIMESTEP_NEEDS,
    accepts: |a, d| {
        (a.t.dtype == DType::F32).then_some(()).ok_or("times are not f32")?;
        a.out.cols.is_multiple_of(2).then_some(()).ok_or("the number of columns is odd")?;
        (a.out.cols < 1 << 25).then_some(()).ok_or("there are 2^25 columns or more")?;
        activations(&[&a.t, &a.out], d)
    },
    scratch: |_, _| 0,
    launches: |a, d| {
        let one = |rows: std::ops::Range<usize>| {
            let part = a.out.band(rows.start, rows.len());
            let (t, t_base, t_stride) = in_elements(&a.t.band(rows.start, rows.len()), d);
            let (out, out_base, out_stride) = in_elements(&part, d);
            let (rows, half) = (rows.len() as u32, (a.out.cols / 2) as u32);
            let params = TimestepParams {
                grid: Grid::default(),
                rows,
                half,
                t_base,
                t_stride,
                out_base,
                out_stride,
            };
            let groups = (part.rows * words(&part)).div_ceil(TIMESTEP_THREADS);
            let constants = vec![("OUT_TYPE", type_of(&part))];
            // About two thousand operations for each element.
            dispatch(
                &TIMESTEP_EMBED_ANY,
                constants,
                vec![t, out],
                &params,
                groups,
                200 * elements(&part),
            )
        };
        let parts = blocks(a.out.rows, most_rows(&[&a.t, &a.out], d), 1);
        if a.out.cols == 0 { vec![] } else { parts.map(one).collect() }
    },
}];
variants!(Wgpu, TimestepEmbed: TIMESTEP_EMBED);

/// Tokens and pixels; one is read and the other written.
struct Latents {
    tokens: Matrix,
    pixels: Matrix,
    width: usize,
    scale: f32,
    shift: f32,
    pack: bool,
}

impl From<&Args<Pack>> for Latents {
    fn from(a: &Args<Pack>) -> Latents {
        Latents { tokens: a.out, pixels: a.x, width: a.width, scale: 1.0, shift: 0.0, pack: true }
    }
}

impl From<&Args<Unpack>> for Latents {
    fn from(a: &Args<Unpack>) -> Latents {
        Latents {
            tokens: a.x,
            pixels: a.out,
            width: a.width,
            scale: a.scale,
            shift: a.shift,
            pack: false,
        }
    }
}

impl Latents {
    /// Lines of tokens that windows can show together with their pixels.
    fn most_lines(&self, device: &WgpuDevice) -> usize {
        let (tokens, pixels) =
            (self.tokens.rows_that_bind(device), self.pixels.rows_that_bind(device));
        (tokens / (self.width / 2).max(1)).min(pixels / (2 * self.width).max(1))
    }

    fn accepts(&self, height: usize, device: &WgpuDevice) -> Result<(), &'static str> {
        let even = height.is_multiple_of(2) && self.width.is_multiple_of(2);
        even.then_some(()).ok_or("height or width is odd")?;
        activations(&[&self.tokens, &self.pixels], device)?;
        let shown = self.most_lines(device) > 0 || self.tokens.rows == 0;
        shown.then_some(()).ok_or("a line of pixels is larger than what the adapter binds")
    }

    fn dispatches(&self, device: &WgpuDevice) -> Vec<Dispatch> {
        if elements(&self.tokens) == 0 {
            return vec![];
        }
        let (across, line) = (self.width / 2, 2 * self.width);
        let one = |r: std::ops::Range<usize>| {
            let tokens = self.tokens.band(r.start * across, r.len() * across);
            let pixels = self.pixels.band(r.start * line, r.len() * line);
            let (from, to) = if self.pack { (pixels, tokens) } else { (tokens, pixels) };
            let (x, x_base, x_stride) = in_elements(&from, device);
            let (out, out_base, out_stride) = in_elements(&to, device);
            let params = LatentParams {
                grid: Grid::default(),
                rows: to.rows as u32,
                cols: to.cols as u32,
                width: self.width as u32,
                x_base,
                x_stride,
                out_base,
                out_stride,
                scale: self.scale,
                shift: self.shift,
            };
            let pack = ("PACK", f64::from(u8::from(self.pack)));
            let constants = vec![pack, ("X_TYPE", type_of(&from)), ("OUT_TYPE", type_of(&to))];
            let groups = (to.rows * words(&to)).div_ceil(THREADS);
            dispatch(&LATENTS_ANY, constants, vec![x, out], &params, groups, elements(&to))
        };
        blocks(self.tokens.rows / across, self.most_lines(device), 1).map(one).collect()
    }
}

/// Takes every type and shape.
pub static PACK: &[Variant<Pack>] = &[Variant {
    name: "pack_any",
    needs: NEEDS,
    accepts: |a, d| Latents::from(a).accepts(a.height, d),
    scratch: |_, _| 0,
    launches: |a, d| Latents::from(a).dispatches(d),
}];
variants!(Wgpu, Pack: PACK);

/// Takes every type and shape.
pub static UNPACK: &[Variant<Unpack>] = &[Variant {
    name: "unpack_any",
    needs: NEEDS,
    accepts: |a, d| Latents::from(a).accepts(a.height, d),
    scratch: |_, _| 0,
    launches: |a, d| Latents::from(a).dispatches(d),
}];
variants!(Wgpu, Unpack: UNPACK);

fn euler_step(a: &Args<EulerStep>, device: &WgpuDevice) -> Vec<Dispatch> {
    if elements(&a.x) == 0 {
        return vec![];
    }
    let (step, step_base, _) = in_elements(&a.params, device);
    let one = |rows: std::ops::Range<usize>| {
        let part = a.x.band(rows.start, rows.len());
        let (x, x_base, x_stride) = in_elements(&part, device);
        let (v, v_base, v_stride) = in_elements(&a.v.band(rows.start, rows.len()), device);
        let without = a.cfg.then(|| a.v.band(a.x.rows + rows.start, rows.len()));
        let (u, u_base, _) = perhaps(without.as_ref(), device);
        let (rows, cols) = (rows.len() as u32, a.x.cols as u32);
        let grid = Grid::default();
        let params =
            EulerParams { grid, rows, cols, x_base, x_stride, v_base, u_base, v_stride, step_base };
        let constants = vec![("V_TYPE", type_of(&a.v)), ("CFG", f64::from(u8::from(a.cfg)))];
        let groups = elements(&part).div_ceil(THREADS);
        dispatch(&EULER_STEP_ANY, constants, vec![x, v, u, step], &params, groups, elements(&part))
    };
    blocks(a.x.rows, most_rows(&[&a.x, &a.v], device), 1).map(one).collect()
}

/// Takes every type and shape.
pub static EULER_STEP: &[Variant<EulerStep>] = &[Variant {
    name: "euler_step_any",
    needs: NEEDS,
    accepts: |a, d| {
        let f32s = a.x.dtype == DType::F32 && a.params.dtype == DType::F32;
        f32s.then_some(()).ok_or("x or params are not f32")?;
        activations(&[&a.x, &a.v, &a.params], d)
    },
    scratch: |_, _| 0,
    launches: euler_step,
}];
variants!(Wgpu, EulerStep: EULER_STEP);

/// Every shader of this family with every set of constants that it is used with.
pub fn shaders() -> Vec<(&'static Shader, Constants, Needs)> {
    let (types, stored, flag): (&[f64], &[f64], &[f64]) =
        (&[0.0, 1.0], &[0.0, 1.0, 2.0], &[0.0, 1.0]);
    let embed = [
        ("TABLE_TYPE", stored),
        ("POSITIONS", flag),
        ("POSITIONS_TYPE", stored),
        ("OUT_TYPE", types),
    ];
    let all = [
        (&EMBED_ANY, combinations(&embed), NEEDS),
        (&TIMESTEP_EMBED_ANY, combinations(&[("OUT_TYPE", types)]), TIMESTEP_NEEDS),
        (
            &LATENTS_ANY,
            combinations(&[("PACK", flag), ("X_TYPE", types), ("OUT_TYPE", types)]),
            NEEDS,
        ),
        (&EULER_STEP_ANY, combinations(&[("V_TYPE", types), ("CFG", flag)]), NEEDS),
    ];
    all.into_iter()
        .flat_map(|(shader, sets, needs)| sets.into_iter().map(move |set| (shader, set, needs)))
        .collect()
}
