//! Norm and rotation of queries and keys. `shaders/qk_norm_rope.wgsl` explains the shaders.

use bytemuck::{Pod, Zeroable};

use crate::backend::gpu::{QkNormRopeArgs, variants};
use crate::backend::wgpu::elementwise::{
    Constants, activations, binds, combinations, counts, dispatch, elements, in_elements,
    in_vectors, most_rows, moving, octets, type_of,
};
use crate::backend::wgpu::launch::{
    Dispatch, Grid, Matrix, Needs, Shader, Spot, Variant, Wgpu, WgpuDevice, blocks,
};
use crate::dtype::DType;
use crate::op::{Pairs, QkNormRope};

/// Threads of a workgroup, which processes one head or several.
const THREADS: usize = 128;
const ANY_THREADS: u32 = 64;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct OctetParams {
    grid: Grid,
    row_heads: u32,
    heads: u32,
    total: u32,
    lanes: u32,
    group_heads: u32,
    count: u32,
    tokens: u32,
    first_token: u32,
    x_base: u32,
    x_stride: u32,
    q_base: u32,
    k_base: u32,
    rope_base: u32,
    rope_stride: u32,
    out_base: u32,
    out_stride: u32,
    eps: f32,
    inverse_dim: f32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct AnyParams {
    grid: Grid,
    row_heads: u32,
    heads: u32,
    kv_heads: u32,
    halves: u32,
    head_dim: u32,
    count: u32,
    tokens: u32,
    first_token: u32,
    x_base: u32,
    x_stride: u32,
    q_base: u32,
    k_base: u32,
    rope_base: u32,
    rope_stride: u32,
    out_base: u32,
    out_stride: u32,
    eps: f32,
    inverse_dim: f32,
}

static OCTETS: Shader = Shader {
    name: "qk_norm_rope",
    sources: &[
        include_str!("../../../../shaders/common.wgsl"),
        include_str!("../../../../shaders/octets.wgsl"),
        include_str!("../../../../shaders/qk_norm_rope.wgsl"),
    ],
    params_bytes: size_of::<OctetParams>(),
    buffers: 5,
};
static ANY: Shader = Shader {
    name: "qk_norm_rope_any",
    sources: &[
        include_str!("../../../../shaders/common.wgsl"),
        include_str!("../../../../shaders/words.wgsl"),
        include_str!("../../../../shaders/qk_norm_rope_any.wgsl"),
    ],
    params_bytes: size_of::<AnyParams>(),
    buffers: 5,
};

const NEEDS: Needs = Needs::new(THREADS as u32, THREADS as u32 * 4);
const ANY_NEEDS: Needs = Needs::new(ANY_THREADS, ANY_THREADS * 4);

/// Rows of queries, keys and values that fit into windows: `batch` sequences of `count` rows, in
/// windows that begin with the first of them. In `out`, the sequences are `tokens` rows apart. Row
/// t of a sequence is rotated by row `turn + t` of the rotations.
struct Part {
    qkv: Matrix,
    out: Matrix,
    count: usize,
    tokens: usize,
    turn: usize,
}

impl Part {
    /// Bytes read and written.
    fn moved(&self) -> usize {
        self.qkv.rows * self.out.cols * (self.qkv.dtype.size() + self.out.dtype.size())
    }
}

impl QkNormRopeArgs<Spot> {
    fn parts(&self, device: &WgpuDevice) -> Vec<Part> {
        let count = self.qkv.rows / self.batch;
        if self.batch * count * self.head_dim() == 0 {
            return vec![];
        }
        let part = |image: usize, batch: usize, from: usize, rows: usize| Part {
            qkv: self.qkv.band(image * count + from, (batch - 1) * count + rows),
            out: self
                .out
                .band(image * self.tokens + self.first + from, (batch - 1) * self.tokens + rows),
            count: rows,
            tokens: self.tokens,
            turn: self.first + from,
        };
        let all = part(0, self.batch, 0, count);
        if all.qkv.binds(device) && all.out.binds(device) {
            return vec![all];
        }
        let most = most_rows(&[&self.qkv, &self.out], device);
        let of_image = |p: usize| blocks(count, most, 1).map(move |r| part(p, 1, r.start, r.len()));
        (0..self.batch).flat_map(of_image).collect()
    }

    fn constants(&self) -> Constants {
        vec![("X_TYPE", type_of(&self.qkv)), ("OUT_TYPE", type_of(&self.out))]
    }

    fn takes_any(&self, device: &WgpuDevice) -> Result<(), &'static str> {
        activations(&[&self.qkv, &self.out], device)?;
        let tables = [&self.rope, &self.q_gain, &self.k_gain];
        tables
            .iter()
            .all(|m| m.dtype == DType::F32)
            .then_some(())
            .ok_or("gains or rotations are not f32")?;
        counts(&tables, device)?;
        binds(&tables, device)?;
        self.head_dim().is_multiple_of(2).then_some(()).ok_or("head_dim is odd")
    }

    fn takes_octets(&self, device: &WgpuDevice) -> Result<(), &'static str> {
        self.takes_any(device)?;
        self.is_joint()?;
        octets(&[&self.qkv, &self.rope, &self.q_gain, &self.k_gain, &self.out], device)?;
        (self.head_dim() <= 8 * THREADS).then_some(()).ok_or("head_dim is above 1024")
    }

    fn by_octets(&self, device: &WgpuDevice) -> Vec<Dispatch> {
        let lanes = self.head_dim() / 8;
        let group_heads = THREADS / lanes.max(1);
        let (q_gain, q_base, _) = in_vectors(&self.q_gain, device);
        let (k_gain, k_base, _) = in_vectors(&self.k_gain, device);
        let (rope, rope_base, rope_stride) = in_vectors(&self.rope, device);
        let one = |p: Part| {
            let (x, x_base, x_stride) = in_vectors(&p.qkv, device);
            let (out, out_base, out_stride) = in_vectors(&p.out, device);
            let total = p.qkv.rows * self.row_heads();
            let params = OctetParams {
                grid: Grid::default(),
                row_heads: self.row_heads() as u32,
                heads: self.heads as u32,
                total: total as u32,
                lanes: lanes as u32,
                group_heads: group_heads as u32,
                count: p.count as u32,
                tokens: p.tokens as u32,
                first_token: p.turn as u32,
                x_base,
                x_stride,
                q_base,
                k_base,
                rope_base,
                rope_stride,
                out_base,
                out_stride,
                eps: self.eps,
                inverse_dim: 1.0 / self.head_dim() as f32,
            };
            let buffers = vec![x, q_gain, k_gain, rope, out];
            let groups = total.div_ceil(group_heads);
            moving(
                dispatch(&OCTETS, self.constants(), buffers, &params, groups, elements(&p.qkv)),
                p.moved(),
            )
        };
        self.parts(device).into_iter().map(one).collect()
    }

    fn by_words(&self, device: &WgpuDevice) -> Vec<Dispatch> {
        let (q_gain, q_base, _) = in_elements(&self.q_gain, device);
        let (k_gain, k_base, _) = in_elements(&self.k_gain, device);
        let (rope, rope_base, rope_stride) = in_elements(&self.rope, device);
        let one = |p: Part| {
            let (x, x_base, x_stride) = in_elements(&p.qkv, device);
            let (out, out_base, out_stride) = in_elements(&p.out, device);
            let params = AnyParams {
                grid: Grid::default(),
                row_heads: self.row_heads() as u32,
                heads: self.heads as u32,
                kv_heads: self.kv_heads as u32,
                halves: u32::from(self.pairs == Pairs::Halves),
                head_dim: self.head_dim() as u32,
                count: p.count as u32,
                tokens: p.tokens as u32,
                first_token: p.turn as u32,
                x_base,
                x_stride,
                q_base,
                k_base,
                rope_base,
                rope_stride,
                out_base,
                out_stride,
                eps: self.eps,
                inverse_dim: 1.0 / self.head_dim() as f32,
            };
            let buffers = vec![x, q_gain, k_gain, rope, out];
            let groups = p.qkv.rows * self.row_heads();
            // For two elements, each thread sums the partial sums of all threads.
            let slow = 4 * p.moved();
            moving(
                dispatch(&ANY, self.constants(), buffers, &params, groups, elements(&p.qkv)),
                slow,
            )
        };
        self.parts(device).into_iter().map(one).collect()
    }
}

/// Best first; the last one takes every type, even head_dim and alignment.
pub static QK_NORM_ROPE: &[Variant<QkNormRope>] = &[
    Variant {
        name: "qk_norm_rope_any_vectors",
        needs: NEEDS,
        accepts: |a, d| a.takes_octets(d),
        scratch: |_, _| 0,
        launches: |a, d| a.by_octets(d),
    },
    Variant {
        name: "qk_norm_rope_any",
        needs: ANY_NEEDS,
        accepts: |a, d| a.takes_any(d),
        scratch: |_, _| 0,
        launches: |a, d| a.by_words(d),
    },
];
variants!(Wgpu, QkNormRope: QK_NORM_ROPE);

/// Every shader of this family with every set of constants that it is used with.
pub fn shaders() -> Vec<(&'static Shader, Constants, Needs)> {
    let types: &[f64] = &[0.0, 1.0];
    let sets = combinations(&[("X_TYPE", types), ("OUT_TYPE", types)]);
    let of = |shader: &'static Shader, needs| {
        sets.clone().into_iter().map(move |set| (shader, set, needs))
    };
    of(&OCTETS, NEEDS).chain(of(&ANY, ANY_NEEDS)).collect()
}
