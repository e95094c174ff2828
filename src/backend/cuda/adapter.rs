//! The operations that only adapters need; the kernels are in `kernels/elementwise.cu`.

use bytemuck::{Pod, Zeroable};

use super::arch::Arch;
use super::elementwise::{activations, elements, grid_fits, kernel, launch};
use super::launch::{Args, Cuda, Kernel, Launch, Matrix, Variant, address, code};
use crate::backend::gpu::variants;
use crate::dtype::DType;
use crate::op::{GroupMix, ScaledAdd};

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct MixParams {
    rows: u32,
    cols: u32,
    inputs: u32,
    width: u32,
    x_stride: u32,
    out_stride: u32,
    x_type: u32,
    out_type: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct ScaledAddParams {
    rows: u32,
    cols: u32,
    x_stride: u32,
    add_stride: u32,
    residual_stride: u32,
    gate_stride: u32,
    out_stride: u32,
    x_type: u32,
    add_type: u32,
    residual_type: u32,
    gate_type: u32,
    out_type: u32,
    activation: u32,
    group_rows: u32,
}

static MIX: Kernel = kernel::<MixParams>("group_mix_any_sm80", 3);
static SCALED_ADD: Kernel = kernel::<ScaledAddParams>("scaled_add_any_sm80", 6);

/// Every kernel of this family.
pub static KERNELS: &[&Kernel] = &[&MIX, &SCALED_ADD];

fn mix(a: &Args<GroupMix>) -> Vec<Launch> {
    let params = MixParams {
        rows: a.out.rows as u32,
        cols: a.out.cols as u32,
        inputs: a.inputs as u32,
        width: (a.x.cols / a.inputs) as u32,
        x_stride: a.x.stride as u32,
        out_stride: a.out.stride as u32,
        x_type: code(a.x.dtype),
        out_type: code(a.out.dtype),
    };
    let buffers = vec![a.x.address(), a.w.address(), a.out.address()];
    launch(&MIX, elements(&a.out), buffers, &params)
}

/// Takes every type, window and alignment.
pub static GROUP_MIX: &[Variant<GroupMix>] = &[Variant {
    name: "group_mix_any_sm80",
    needs: Arch::From(8, 0),
    accepts: |a, _| {
        (a.w.dtype == DType::F32).then_some(()).ok_or("the small matrix is not f32")?;
        activations(&[&a.x, &a.out]).and(grid_fits(elements(&a.out)))
    },
    scratch: |_, _| 0,
    launches: |a, _| mix(a),
}];
variants!(Cuda, GroupMix: GROUP_MIX);

fn scaled_add(a: &Args<ScaledAdd>) -> Vec<Launch> {
    let (residual, gate) = (a.tail.residual(), a.tail.gate());
    let stride = |m: Option<Matrix>| m.map_or(0, |m| m.stride as u32);
    let dtype = |m: Option<Matrix>| m.map_or(0, |m| code(m.dtype));
    let params = ScaledAddParams {
        rows: a.out.rows as u32,
        cols: a.out.cols as u32,
        x_stride: a.x.stride as u32,
        add_stride: stride(a.add),
        residual_stride: stride(residual),
        gate_stride: stride(gate),
        out_stride: a.out.stride as u32,
        x_type: code(a.x.dtype),
        add_type: dtype(a.add),
        residual_type: dtype(residual),
        gate_type: dtype(gate),
        out_type: code(a.out.dtype),
        activation: a.tail.activation_code(),
        group_rows: gate.map_or(1, |g| (a.out.rows / g.rows) as u32),
    };
    let optional = [a.add, a.scale, residual, gate].map(address);
    let buffers = [a.x.address()].into_iter().chain(optional).chain([a.out.address()]).collect();
    launch(&SCALED_ADD, elements(&a.out), buffers, &params)
}

/// Takes every type, window and alignment.
pub static SCALED_ADD_VARIANTS: &[Variant<ScaledAdd>] = &[Variant {
    name: "scaled_add_any_sm80",
    needs: Arch::From(8, 0),
    accepts: |a, _| {
        let (residual, gate) = (a.tail.residual(), a.tail.gate());
        let optional = [a.add, residual, gate];
        let all: Vec<&Matrix> =
            [&a.x, &a.out].into_iter().chain(optional.iter().flatten()).collect();
        activations(&all).and(grid_fits(elements(&a.out)))
    },
    scratch: |_, _| 0,
    launches: |a, _| scaled_add(a),
}];
variants!(Cuda, ScaledAdd: SCALED_ADD_VARIANTS);
