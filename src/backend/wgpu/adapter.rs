//! The operations that only adapters need: `shaders/group_mix.wgsl`, `shaders/scaled_add.wgsl`.

use bytemuck::{Pod, Zeroable};

use super::elementwise::{
    Constants, activations, binds, bytes, combinations, dispatch, elements, in_elements, most_rows,
    moving, perhaps, type_of, wgsl, words,
};
use super::launch::{
    Args, Dispatch, Grid, Matrix, Needs, Shader, Variant, Wgpu, WgpuDevice, blocks, code,
};
use crate::backend::gpu::variants;
use crate::dtype::DType;
use crate::op::{GroupMix, ScaledAdd};

/// Threads of a workgroup.
const THREADS: usize = 256;
const NEEDS: Needs = Needs::new(THREADS as u32, 0);

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct MixParams {
    grid: Grid,
    rows: u32,
    cols: u32,
    inputs: u32,
    width: u32,
    x_type: u32,
    x_base: u32,
    x_stride: u32,
    w_base: u32,
    out_base: u32,
    out_stride: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct ScaledAddParams {
    grid: Grid,
    rows: u32,
    cols: u32,
    x_type: u32,
    x_base: u32,
    x_stride: u32,
    add_type: u32,
    add_base: u32,
    add_stride: u32,
    scale_base: u32,
    residual_type: u32,
    residual_base: u32,
    residual_stride: u32,
    gate_type: u32,
    gate_base: u32,
    gate_stride: u32,
    out_base: u32,
    out_stride: u32,
    has: u32,
    activation: u32,
    first_row: u32,
    group_rows: u32,
}

static MIX: Shader = Shader {
    name: "group_mix",
    sources: &[wgsl!("common"), wgsl!("words"), wgsl!("group_mix"), wgsl!("words_main")],
    params_bytes: size_of::<MixParams>(),
    buffers: 3,
};
static SCALED_ADD: Shader = Shader {
    name: "scaled_add",
    sources: &[wgsl!("common"), wgsl!("words"), wgsl!("scaled_add"), wgsl!("words_main")],
    params_bytes: size_of::<ScaledAddParams>(),
    buffers: 6,
};

fn mix(a: &Args<GroupMix>, device: &WgpuDevice) -> Vec<Dispatch> {
    let one = |rows: std::ops::Range<usize>| {
        let (x, out) = (a.x.band(rows.start, rows.len()), a.out.band(rows.start, rows.len()));
        let constants = vec![("OUT_TYPE", type_of(&out))];
        let moved = bytes(&x) + bytes(&out);
        let (groups, n) = ((out.rows * words(&out)).div_ceil(THREADS), elements(&out));
        let x_type = code(x.dtype);
        let (w, w_base, _) = in_elements(&a.w, device);
        let (rows, cols) = (out.rows as u32, out.cols as u32);
        let (x, x_base, x_stride) = in_elements(&x, device);
        let (out, out_base, out_stride) = in_elements(&out, device);
        let params = MixParams {
            grid: Grid::default(),
            rows,
            cols,
            inputs: a.inputs as u32,
            width: (a.x.cols / a.inputs) as u32,
            x_type,
            x_base,
            x_stride,
            w_base,
            out_base,
            out_stride,
        };
        moving(dispatch(&MIX, constants, vec![x, w, out], &params, groups, n * a.inputs), moved)
    };
    if elements(&a.out) == 0 {
        return vec![];
    }
    blocks(a.out.rows, most_rows(&[&a.x, &a.out], device), 1).map(one).collect()
}

/// Takes every type, window and alignment.
pub static GROUP_MIX: &[Variant<GroupMix>] = &[Variant {
    name: "group_mix_any",
    needs: NEEDS,
    accepts: |a, d| {
        (a.w.dtype == DType::F32).then_some(()).ok_or("the small matrix is not f32")?;
        activations(&[&a.x, &a.out], d).and(binds(&[&a.w], d))
    },
    scratch: |_, _| 0,
    launches: mix,
}];
variants!(Wgpu, GroupMix: GROUP_MIX);

/// The operands with a row for each row of the output.
fn rows_of(a: &Args<ScaledAdd>) -> Vec<Matrix> {
    [Some(a.x), a.add, a.tail.residual(), Some(a.out)].into_iter().flatten().collect()
}

fn scaled_add(a: &Args<ScaledAdd>, device: &WgpuDevice) -> Vec<Dispatch> {
    let (residual, gate) = (a.tail.residual(), a.tail.gate());
    let one = |rows: std::ops::Range<usize>| {
        let part = |m: Matrix| m.band(rows.start, rows.len());
        let dtype = |m: Option<Matrix>| m.map_or(0, |m| code(m.dtype));
        let flag = |there: bool, bit: u32| if there { bit } else { 0 };
        let out = part(a.out);
        let (groups, n) = ((out.rows * words(&out)).div_ceil(THREADS), elements(&out));
        let moved = rows_of(a).into_iter().map(|m| bytes(&part(m))).sum();
        let (x, x_base, x_stride) = in_elements(&part(a.x), device);
        let (add, add_base, add_stride) = perhaps(a.add.map(part).as_ref(), device);
        let (scale, scale_base, _) = perhaps(a.scale.as_ref(), device);
        let (added, residual_base, residual_stride) = perhaps(residual.map(part).as_ref(), device);
        let (gates, gate_base, gate_stride) = perhaps(gate.as_ref(), device);
        let (to, out_base, out_stride) = in_elements(&out, device);
        let params = ScaledAddParams {
            grid: Grid::default(),
            rows: out.rows as u32,
            cols: out.cols as u32,
            x_type: code(a.x.dtype),
            x_base,
            x_stride,
            add_type: dtype(a.add),
            add_base,
            add_stride,
            scale_base,
            residual_type: dtype(residual),
            residual_base,
            residual_stride,
            gate_type: dtype(gate),
            gate_base,
            gate_stride,
            out_base,
            out_stride,
            has: flag(a.add.is_some(), 1)
                | flag(a.scale.is_some(), 2)
                | flag(residual.is_some(), 4)
                | flag(gate.is_some(), 8),
            activation: a.tail.activation_code(),
            first_row: rows.start as u32,
            group_rows: gate.map_or(1, |g| (a.out.rows / g.rows) as u32),
        };
        let buffers = vec![x, add, scale, added, gates, to];
        let constants = vec![("OUT_TYPE", type_of(&out))];
        moving(dispatch(&SCALED_ADD, constants, buffers, &params, groups, n), moved)
    };
    if elements(&a.out) == 0 {
        return vec![];
    }
    let matrices = rows_of(a);
    let most = most_rows(&matrices.iter().collect::<Vec<_>>(), device);
    blocks(a.out.rows, most, 1).map(one).collect()
}

/// Takes every type, window and alignment.
pub static SCALED_ADDS: &[Variant<ScaledAdd>] = &[Variant {
    name: "scaled_add_any",
    needs: NEEDS,
    accepts: |a, d| {
        let (matrices, vectors) = (rows_of(a), [a.scale, a.tail.gate()]);
        activations(&matrices.iter().collect::<Vec<_>>(), d)?;
        let vectors: Vec<&Matrix> = vectors.iter().flatten().collect();
        activations(&vectors, d).and(binds(&vectors, d))
    },
    scratch: |_, _| 0,
    launches: scaled_add,
}];
variants!(Wgpu, ScaledAdd: SCALED_ADDS);

/// Every shader of this family with every set of constants that it is used with.
pub fn shaders() -> Vec<(&'static Shader, Constants, Needs)> {
    let sets = combinations(&[("OUT_TYPE", &[0.0, 1.0])]);
    [&MIX, &SCALED_ADD]
        .into_iter()
        .flat_map(|shader| sets.clone().into_iter().map(move |set| (shader, set, NEEDS)))
        .collect()
}
