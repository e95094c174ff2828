//! Operations that run once for each text, step or image: embeddings of tokens and times,
//! conversion between latents and tokens, the step of the sampler. The kernels are in
//! `kernels/elementwise.cu`. They move a few megabytes, so one variant is enough for each.

use bytemuck::{Pod, Zeroable};

use super::arch::Arch;
use super::elementwise::{activations, counts, elements, grid_fits, kernel, launch};
use super::launch::{Cuda, Kernel, Matrix, Variant, address, code};
use crate::backend::gpu::variants;
use crate::dtype::DType;
use crate::op::{Embed, EulerStep, Pack, TimestepEmbed, Unpack};

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct EmbedParams {
    rows: u32,
    cols: u32,
    table_rows: u32,
    table_stride: u32,
    table_type: u32,
    positions_rows: u32,
    positions_stride: u32,
    positions_type: u32,
    out_stride: u32,
    out_type: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct TimestepParams {
    rows: u32,
    half: u32,
    t_stride: u32,
    out_stride: u32,
    out_type: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct LatentParams {
    tokens: u32,
    cols: u32,
    width: u32,
    x_stride: u32,
    out_stride: u32,
    x_type: u32,
    out_type: u32,
    scale: f32,
    shift: f32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct EulerParams {
    rows: u32,
    cols: u32,
    x_stride: u32,
    v_stride: u32,
    v_type: u32,
    cfg: u32,
}

static EMBED_ANY: Kernel = kernel::<EmbedParams>("embed_any_sm80", 4);
static TIMESTEP_EMBED_ANY: Kernel = kernel::<TimestepParams>("timestep_embed_any_sm80", 2);
static PACK_ANY: Kernel = kernel::<LatentParams>("pack_any_sm80", 2);
static UNPACK_ANY: Kernel = kernel::<LatentParams>("unpack_any_sm80", 2);
static EULER_STEP_ANY: Kernel = kernel::<EulerParams>("euler_step_any_sm80", 3);

/// Every kernel of this family.
pub static KERNELS: &[&Kernel] =
    &[&EMBED_ANY, &TIMESTEP_EMBED_ANY, &PACK_ANY, &UNPACK_ANY, &EULER_STEP_ANY];

/// Checks the type of a table or of positions: these weights keep their stored type.
fn stored(m: &Matrix) -> Result<(), &'static str> {
    let known = matches!(m.dtype, DType::BF16 | DType::F16 | DType::F32);
    known.then_some(()).ok_or("the table is none of bf16, f16 and f32")?;
    counts(&[m])
}

/// Takes every type and shape.
pub static EMBED: &[Variant<Embed>] = &[Variant {
    name: "embed_any_sm80",
    needs: Arch::From(8, 0),
    accepts: |a, _| {
        stored(&a.table)?;
        a.positions.as_ref().map_or(Ok(()), stored)?;
        activations(&[&a.out]).and(grid_fits(elements(&a.out)))
    },
    scratch: |_, _| 0,
    launches: |a, _| {
        let params = EmbedParams {
            rows: a.out.rows as u32,
            cols: a.out.cols as u32,
            table_rows: a.table.rows as u32,
            table_stride: a.table.stride as u32,
            table_type: code(a.table.dtype),
            positions_rows: a.positions.map_or(1, |p| p.rows as u32),
            positions_stride: a.positions.map_or(0, |p| p.stride as u32),
            positions_type: a.positions.map_or(0, |p| code(p.dtype)),
            out_stride: a.out.stride as u32,
            out_type: code(a.out.dtype),
        };
        let buffers =
            vec![a.table.address(), a.ids.address(), address(a.positions), a.out.address()];
        launch(&EMBED_ANY, elements(&a.out), buffers, &params)
    },
}];
variants!(Cuda, Embed: EMBED);

/// Takes every type and shape.
pub static TIMESTEP_EMBED: &[Variant<TimestepEmbed>] = &[Variant {
    name: "timestep_embed_any_sm80",
    needs: Arch::From(8, 0),
    accepts: |a, _| {
        (a.t.dtype == DType::F32).then_some(()).ok_or("times are not f32")?;
        a.out.cols.is_multiple_of(2).then_some(()).ok_or("the number of columns is odd")?;
        activations(&[&a.t, &a.out]).and(grid_fits(elements(&a.out) / 2))
    },
    scratch: |_, _| 0,
    launches: |a, _| {
        let params = TimestepParams {
            rows: a.out.rows as u32,
            half: (a.out.cols / 2) as u32,
            t_stride: a.t.stride as u32,
            out_stride: a.out.stride as u32,
            out_type: code(a.out.dtype),
        };
        launch(
            &TIMESTEP_EMBED_ANY,
            elements(&a.out) / 2,
            vec![a.t.address(), a.out.address()],
            &params,
        )
    },
}];
variants!(Cuda, TimestepEmbed: TIMESTEP_EMBED);

/// The parameters of `pack` and `unpack`; `tokens` is the packed side.
fn latents(tokens: &Matrix, width: usize, x: &Matrix, out: &Matrix) -> LatentParams {
    LatentParams {
        tokens: tokens.rows as u32,
        cols: tokens.cols as u32,
        width: width as u32,
        x_stride: x.stride as u32,
        out_stride: out.stride as u32,
        x_type: code(x.dtype),
        out_type: code(out.dtype),
        scale: 1.0,
        shift: 0.0,
    }
}

fn even(height: usize, width: usize) -> Result<(), &'static str> {
    let even = height.is_multiple_of(2) && width.is_multiple_of(2) && width < 1 << 31;
    even.then_some(()).ok_or("height or width is odd")
}

/// Takes every type and shape.
pub static PACK: &[Variant<Pack>] = &[Variant {
    name: "pack_any_sm80",
    needs: Arch::From(8, 0),
    accepts: |a, _| {
        even(a.height, a.width)?;
        activations(&[&a.x, &a.out]).and(grid_fits(elements(&a.out)))
    },
    scratch: |_, _| 0,
    launches: |a, _| {
        let params = latents(&a.out, a.width, &a.x, &a.out);
        launch(&PACK_ANY, elements(&a.out), vec![a.x.address(), a.out.address()], &params)
    },
}];
variants!(Cuda, Pack: PACK);

/// Takes every type and shape.
pub static UNPACK: &[Variant<Unpack>] = &[Variant {
    name: "unpack_any_sm80",
    needs: Arch::From(8, 0),
    accepts: |a, _| {
        even(a.height, a.width)?;
        activations(&[&a.x, &a.out]).and(grid_fits(elements(&a.x)))
    },
    scratch: |_, _| 0,
    launches: |a, _| {
        let params =
            LatentParams { scale: a.scale, shift: a.shift, ..latents(&a.x, a.width, &a.x, &a.out) };
        launch(&UNPACK_ANY, elements(&a.x), vec![a.x.address(), a.out.address()], &params)
    },
}];
variants!(Cuda, Unpack: UNPACK);

/// Takes every type and shape.
pub static EULER_STEP: &[Variant<EulerStep>] = &[Variant {
    name: "euler_step_any_sm80",
    needs: Arch::From(8, 0),
    accepts: |a, _| {
        (a.x.dtype == DType::F32).then_some(()).ok_or("x is not f32")?;
        activations(&[&a.x, &a.v]).and(grid_fits(elements(&a.x)))
    },
    scratch: |_, _| 0,
    launches: |a, _| {
        let params = EulerParams {
            rows: a.x.rows as u32,
            cols: a.x.cols as u32,
            x_stride: a.x.stride as u32,
            v_stride: a.v.stride as u32,
            v_type: code(a.v.dtype),
            cfg: a.cfg.into(),
        };
        launch(
            &EULER_STEP_ANY,
            elements(&a.x),
            vec![a.x.address(), a.v.address(), a.params.address()],
            &params,
        )
    },
}];
variants!(Cuda, EulerStep: EULER_STEP);
